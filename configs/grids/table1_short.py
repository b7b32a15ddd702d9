r"""Sign-FA's gap to GD in 40 epochs of small batches: LeNet of table 1.

Source: beside Robertson and Koyejo (2024), table 1: after its 500 epochs of five steps
each sign-FA has not fitted its training labels, so more and larger steps are tried, in
a tenth of the epochs. FA and adaFA diverge at this rate.
Command: python trainers/sweep.py --grid=configs/grids/table1_short.py \
             --workdir=runs/table1_short
Expected: 8 cells, two minutes of a core each.

Seeds and samples of classes are table1_variants'.
"""

# As in table1.py.
TUNED_ON = (15, 24, 25, 26, 34, 59, 65, 66, 80, 94)


def get_grid():
    return {
        "config": "cifar100_lenet.py",
        "axes": [
            {
                "epochs": [40],
                "batch_size": [128],
                "optimizer.learning_rate": [0.05],
                "schedule.boundaries": [(20, 30)],
                "schedule.factors": [(0.2, 0.04)],
            },
            {
                "seed": [0, 1, 2, 3],
                "dataset.class_seed": [1, 1, 1, 2],
                "dataset.num_classes": 4 * [10],
                "dataset.exclude_classes": 4 * [TUNED_ON],
            },
            {"rule": ["backprop", "sign_fa"]},
        ],
        "seconds_per_cell": 120,
    }
