r"""ResNet-18 on Tiny-ImageNet subsets: table 2.

Source: Robertson and Koyejo (2024), section 6 and appendix A.
Command: python trainers/sweep.py --grid=configs/grids/table2.py --workdir=runs/table2
    Fewer: --axis="dataset.num_classes=[10]" --axis="seed=[0]" --axis="epochs=[2]".
Expected: 48 cells; 2 minutes an epoch on one core at 10 classes; meant for a GPU.
"""


def get_grid():
    return {
        "config": "tiny_imagenet_resnet18.py",
        "axes": [
            {"dataset.num_classes": [10, 25, 50]},
            {"seed": [0, 1, 2, 3], "dataset.class_seed": [1, 2, 3, 4]},
            {"rule": ["backprop", "sign_fa", "ada_fa", "fa"]},
        ],
        "seconds_per_cell": 6800,
    }
