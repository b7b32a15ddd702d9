r"""784-1000-10 on MNIST over penalties: figure 3 of Song et al.

Source: Song, Xu and Lafferty (2021), section 5, figure 3: 300 epochs, 10 repetitions.
Command: python trainers/sweep.py --grid=configs/grids/song_mnist.py \
             --workdir=runs/song_mnist --jobs=2
    The paper's length and repetitions: --axis="epochs=[300]"
             --axis="seed=range(10)"
Expected: 6 cells of 50 epochs, 12 minutes on 2 cores.
"""


def get_grid():
    return {
        "config": "song_mnist.py",
        "axes": [
            {"epochs": [50]},
            {"seed": [0, 1]},
            {"optimizer.weight_decay": [0.0, 0.1, 0.3]},
        ],
        "seconds_per_cell": 240,
    }
