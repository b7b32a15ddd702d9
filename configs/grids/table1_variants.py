r"""What closes sign-FA's gap to GD: LeNet of table 1, one change at a time.

Source: Robertson and Koyejo (2024), table 1; variants: biotorch's loader and start
(drop_last; W as torch draws it, B at Xavier's scale), scales of B, small batches.
Command: python trainers/sweep.py --grid=configs/grids/table1_variants.py \
             --workdir=runs/table1_variants
    One variant: --axis="model.kernel_initializer=['uniform_fan_in']".
Expected: 40 cells; 22 minutes each on 2 cores, those with batches of 128 more.

Seeds, samples of classes and everything that a row does not change are table 1's, so
that each cell is paired with one of GD on the same classes.
"""

# As in table1.py.
TUNED_ON = (15, 24, 25, 26, 34, 59, 65, 66, 80, 94)

_GLOROT, _TORCH = "glorot_uniform", "uniform_fan_in"
_ROWS = [
    # rule, W's start, drop_last, batch, learning rate
    ("backprop", _TORCH, False, 1024, 0.01),
    ("sign_fa", _TORCH, False, 1024, 0.01),
    ({"name": "fa", "initializer": _GLOROT}, _TORCH, False, 1024, 0.01),
    ("ada_fa", _TORCH, False, 1024, 0.01),
    ("backprop", _GLOROT, True, 1024, 0.01),
    ("sign_fa", _GLOROT, True, 1024, 0.01),
    ({"name": "sign_fa", "scale": 1.0}, _GLOROT, False, 1024, 0.01),
    ({"name": "sign_fa", "scale": 0.1}, _GLOROT, False, 1024, 0.01),
    ("backprop", _GLOROT, False, 128, 0.05),
    ("sign_fa", _GLOROT, False, 128, 0.05),
]


def get_grid():
    rules, kernels, drops, batches, rates = map(list, zip(*_ROWS, strict=True))
    return {
        "config": "cifar100_lenet.py",
        "axes": [
            {
                "seed": [0, 1, 2, 3],
                "dataset.class_seed": [1, 1, 1, 2],
                "dataset.num_classes": 4 * [10],
                "dataset.exclude_classes": 4 * [TUNED_ON],
            },
            {
                "rule": rules,
                "model.kernel_initializer": kernels,
                "batch_size": batches,
                "drop_last": drops,
                "optimizer.learning_rate": rates,
            },
        ],
        "seconds_per_cell": 1400,
    }
