r"""Song et al.'s synthetic problem over widths, penalties and activations: figure 2.

Source: Song, Xu and Lafferty (2021), section 5, figure 2 a to f.
Command: python trainers/sweep.py --grid=configs/grids/song_synthetic.py \
             --workdir=runs/song_synthetic --jobs=2
    The paper's 50 repetitions: --axis="seed=range(50)".
Expected: 525 cells, an hour on 2 cores.

The paper's figure does not give lambda for every activation; these five cover the range
from no alignment to strong alignment in all three. With a penalty these steps do not
reach convergence: a linear network of p = 800 ends with a cosine of 0.07 at lambda 0.5
after them, and with 0.48 after ten times as many. `keras-fa measure` follows the same
networks until loss and cosine stand still.
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
            },
            {
                "model.hidden_units": [
                    (200,),
                    (400,),
                    (800,),
                    (1600,),
                    (3200,),
                    (6400,),
                    (12800,),
                ]
            },
            {"optimizer.weight_decay": [0.0, 0.5, 1.0, 2.0, 5.0]},
        ],
        "seconds_per_cell": 15,
    }
