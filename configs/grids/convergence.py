r"""Proposition 5.7: convergence on separable and on nearly orthogonal data.

Source: Robertson and Koyejo (2024), theorem 5.1, proposition 5.7, definitions 5.5, 5.6.
Command: python trainers/sweep.py --grid=configs/grids/convergence.py \
             --workdir=runs/convergence --jobs=2
Expected: 12 cells, 2 minutes on 2 cores.
"""


def get_grid():
    return {
        "config": "separable.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {
                "dataset.name": ["separable", "nearly_orthogonal"],
                "dataset.n": [50, 20],
                "dataset.d_in": [20, 100],
            },
            {"rule": ["fa", "sign_fa"]},
        ],
        "seconds_per_cell": 15,
    }
