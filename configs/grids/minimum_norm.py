r"""Linear networks from W1 = 0, which go to the minimum-norm solution.

Source: Robertson and Koyejo (2023), theorem 5.2 and section 6. Zero lies in the span of
any data.
Command: python trainers/sweep.py --grid=configs/grids/minimum_norm.py \
             --workdir=runs/minimum_norm --jobs=2
Expected: 5 cells, 3 minutes on 2 cores; distances of 1e-10 and less.
"""


def get_grid():
    return {
        "config": "rk23.py",
        "axes": [
            {"seed": [0, 1, 2, 3, 4]},
            {"model.kernel_initializer": ["zeros"]},
        ],
        "seconds_per_cell": 60,
    }
