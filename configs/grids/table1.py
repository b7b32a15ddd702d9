r"""LeNet on CIFAR-100 subsets of 10, 25 and 50 classes: table 1, figures 5 to 7.

Source: Robertson and Koyejo (2024), section 6 and appendix A.
Command: python trainers/sweep.py --grid=configs/grids/table1.py --workdir=runs/table1 \
             --axis="dataset.num_classes=[10]"
    25 and 50 classes, one sample of classes: --axis="dataset.num_classes=[25,50]" \
             --axis="seed=[0]".
Expected: 72 cells; 18 minutes of a core a cell at 10 classes, 43 at 25, 105 at 50.

Which classes are drawn matters more than anything else, so methods are compared on the
same classes: seeds 0, 1 and 2 share one sample, 3, 4 and 5 have one each. The classes
of class_seed 0, on which learning rate and weight decay were checked (grid
table1_tuning), are never drawn. The angle to the true gradient is read every 10 epochs.
"""

# CIFAR-100's ids of the ten classes of table1_tuning.
TUNED_ON = (15, 24, 25, 26, 34, 59, 65, 66, 80, 94)


def get_grid():
    return {
        "config": "cifar100_lenet.py",
        "axes": [
            {
                "dataset.num_classes": [10, 25, 50],
                "dataset.exclude_classes": 3 * [TUNED_ON],
                "instruments.others": 3
                * [({"name": "gradient_alignment", "every": 10},)],
            },
            {"seed": [0, 1, 2, 3, 4, 5], "dataset.class_seed": [1, 1, 1, 2, 3, 4]},
            {"rule": ["backprop", "sign_fa", "ada_fa", "fa"]},
        ],
        "seconds_per_cell": 1400,
    }
