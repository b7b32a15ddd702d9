r"""Linear networks from W1 = 0, which go to the minimum-norm solution.

Source: Robertson and Koyejo (2023), theorem 5.2 and section 6. Zero lies in the span of
any data. The first layer has no B, which ada_fa would take from its zeros: below it
no layer waits for an error, so that both rules train it alike.
Command: python trainers/sweep.py --grid=configs/grids/minimum_norm.py \
             --workdir=runs/minimum_norm --jobs=2
Expected: 5 cells, 3 minutes on 2 cores; distances of 1e-10 and less.
"""


def get_grid():
    return {
        "config": "rk23.py",
        "axes": [
            {"seed": [0, 1, 2, 3, 4]},
            {
                "model.kernel_initializer": ["zeros"],
                "rule": [{"dense_1": "backprop", "dense_2": "ada_fa"}],
            },
        ],
        "seconds_per_cell": 60,
    }
