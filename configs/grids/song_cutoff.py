r"""Song et al.'s synthetic problem with a penalty that is cut off: theorem 4.6.

Source: Song, Xu and Lafferty (2021), theorem 4.6: lambda(t) = lambda up to step T, and
then 0.
Command: python trainers/sweep.py --grid=configs/grids/song_cutoff.py \
             --workdir=runs/song_cutoff --jobs=2
Expected: 60 cells, 7 minutes on 2 cores.
"""


def get_grid():
    return {
        "config": "song_synthetic.py",
        "axes": [
            {"seed": [0, 1, 2, 3, 4]},
            {
                "model.activation": ["linear", "relu", "tanh"],
                "dataset.activation": ["linear", "relu", "tanh"],
                "optimizer.learning_rate": [1e-4, 1e-3, 1e-2],
                "epochs": [6000, 3000, 2000],
                "optimizer.weight_decay_epochs": [3000, 1500, 1000],
            },
            {"model.hidden_units": [(3200,)]},
            {"optimizer.weight_decay": [1.0, 2.0, 5.0, 50.0]},
        ],
        "seconds_per_cell": 15,
    }
