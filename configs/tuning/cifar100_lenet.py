r"""The protocol of Robertson and Koyejo: tuned on one subset, reported on others.

Source: Robertson and Koyejo (2024), appendix A.
Command: python trainers/tune.py --space=configs/tuning/cifar100_lenet.py \
             --workdir=DIR --algorithm=hyperband
Expected: 20 epochs of a trial take half a minute on 2 cores.
"""


def get_space():
    return {
        "config": "cifar100_lenet.py",
        "fields": {"epochs": 20},
        "space": {
            "optimizer.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True},
            "optimizer.momentum": {"choices": [0.0, 0.9]},
            "optimizer.weight_decay": {"choices": [0.0, 1e-4, 1e-3]},
            "batch_size": {"choices": [128, 1024]},
            "rule": {
                "choices": [
                    "fa",
                    {"name": "fa", "initializer": "he_normal"},
                    {"name": "fa", "initializer": "normal(0.05)"},
                    {"name": "fa", "initializer": "normal(0.2)"},
                ]
            },
        },
        "objective": "val_accuracy",
        "patience": 5,
        # Fresh classes, and a seed for each.
        "confirm": {"seed": [1, 2, 3], "dataset.class_seed": [1, 2, 3]},
    }
