r"""LeNet on CIFAR-100 subsets of 10, 25 and 50 classes: table 1, figures 5 to 7.

Source: Robertson and Koyejo (2024), section 6 and appendix A.
Command: python trainers/sweep.py --grid=configs/grids/table1.py --workdir=runs/table1 \
             --axis="dataset.num_classes=[10]"
    25 and 50 classes: --axis="dataset.num_classes=[25,50]".
Expected: 22 minutes a cell on 2 cores at 10 classes, 55 at 25, 110 at 50.

Each seed has a sample of classes of its own: which classes are drawn matters more than
anything else, so methods are compared on the same classes. Learning rate and weight
decay were checked on the classes of class_seed 0 (grid table1_tuning), which are not
among these.
"""


def get_grid():
    return {
        "config": "cifar100_lenet.py",
        "axes": [
            {"dataset.num_classes": [10, 25, 50]},
            {"seed": [0, 1], "dataset.class_seed": [1, 2]},
            {"rule": ["backprop", "sign_fa", "ada_fa", "fa"]},
        ],
        "seconds_per_cell": 1400,
    }
