r"""A small search on the embedded digits.

Source: the fields that the papers tuned, on a set that is always there.
Command: python trainers/tune.py --space=configs/tuning/digits.py --workdir=DIR
Expected: 12 trials of 10 epochs, a minute on 2 cores.
"""


def get_space():
    return {
        "config": "digits.py",
        "fields": {
            "epochs": 10,
            "instruments.ledger": False,
            "instruments.gradient_alignment": False,
        },
        "space": {
            "optimizer.learning_rate": {"min": 1e-3, "max": 1.0, "log": True},
            "optimizer.momentum": {"min": 0.0, "max": 0.95},
            "batch_size": {"choices": [32, 64, 128]},
            "rule": {"choices": ["fa", "ada_fa", "sign_fa"]},
        },
        "objective": "val_accuracy",
        "patience": 4,
        # What to confirm the best trial on.
        "confirm": {"seed": [1, 2, 3]},
    }
