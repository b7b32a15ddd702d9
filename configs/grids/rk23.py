r"""Linear and ReLU networks on a linear map: figures 1 and 2 of RK23.

Source: Robertson and Koyejo (2023), section 6.
Command: python trainers/sweep.py --grid=configs/grids/rk23.py --workdir=runs/rk23 \
             --jobs=2
Expected: 6 cells, 3 minutes on 2 cores.
"""


def get_grid():
    return {
        "config": "rk23.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {
                "model.activation": ["linear", "relu"],
                "instruments.minimum_norm": [True, False],
            },
        ],
        "seconds_per_cell": 60,
    }
