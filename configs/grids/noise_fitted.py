r"""Noisy MNIST at a constant learning rate, until the noise is fitted.

Source: Robertson and Koyejo (2024), figure 4, which speaks of benign overfitting. Under
the schedule that the paper states the noise is not fitted; without decay it is.
Command: python trainers/sweep.py --grid=configs/grids/noise_fitted.py \
             --workdir=runs/noise_fitted --jobs=2
Expected: 24 cells, three hours on 2 cores.
"""


def get_grid():
    return {
        "config": "noisy_mnist.py",
        "axes": [
            {
                "epochs": [30000],
                "schedule.boundaries": [()],
                "schedule.factors": [()],
                "log_every": [50],
            },
            {"seed": [0, 1]},
            {"model.hidden_units": [(60,), (100,), (200,)]},
            {"rule": ["fa", "ada_fa", "sign_fa", "backprop"]},
        ],
        "seconds_per_cell": 840,
    }
