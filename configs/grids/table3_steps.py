r"""Noisy MNIST at larger steps over the same time: what the numbers of table 3 hang on.

Source: Robertson and Koyejo (2024), table 3, whose deviations at small widths are up to
fifty times ours.
Command: python trainers/sweep.py --grid=configs/grids/table3_steps.py \
             --workdir=runs/table3_steps --jobs=2
Expected: 96 cells, ten minutes on 2 cores.

The law is that of the flow, from which steps of finite size drift. learning rate x
epochs is 50 everywhere, which is nine tenths of what the paper's schedule comes to.
"""


def get_grid():
    return {
        "config": "noisy_mnist.py",
        "axes": [
            {"seed": [0, 1]},
            {
                "optimizer.learning_rate": [0.05, 0.1, 0.15, 0.2],
                "epochs": [1000, 500, 335, 250],
                "schedule.boundaries": 4 * [()],
                "schedule.factors": 4 * [()],
            },
            {"model.hidden_units": [(15,), (30,), (60,), (125,)]},
            {"rule": ["fa", "ada_fa", "backprop"]},
        ],
        "seconds_per_cell": 14,
    }
