r"""ResNet-18 on an excerpt of Tiny-ImageNet: table 2's methods on fewer classes.

Source: Robertson and Koyejo (2024), section 6 and appendix A; the data are 20 of the
200 classes, so that these are not cells of the paper's table.
Command: python trainers/sweep.py --grid=configs/grids/table2_excerpt.py \
             --workdir=runs/table2_excerpt
    Fewer epochs: --axis="epochs=[7]".
Expected: 4 cells; 2 minutes an epoch on one core.
"""


def get_grid():
    return {
        "config": "tiny_imagenet_resnet18.py",
        "axes": [
            {"dataset.num_classes": [10]},
            {"seed": [0], "dataset.class_seed": [1]},
            {"rule": ["backprop", "sign_fa", "ada_fa", "fa"]},
        ],
        "seconds_per_cell": 6800,
    }
