r"""784-1000-10 on MNIST over penalties and two starts: figure 3 of Song et al.

Source: Song, Xu and Lafferty (2021), section 5, figure 3: 300 epochs, 10 repetitions.
Command: python trainers/sweep.py --grid=configs/grids/song_mnist.py \
             --workdir=runs/song_mnist --jobs=2
    The paper's repetitions: --axis="seed=range(10)".
Expected: 18 cells of 300 epochs, 12 minutes each on 2 cores.

The paper's start is that of its algorithm 1, standard Gaussian weights and outputs over
sqrt(p); beside it torch's, uniform in +-1/sqrt(fan in).
"""


def get_grid():
    return {
        "config": "song_mnist.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {
                "model.kernel_initializer": ["normal(1.0)", "uniform_fan_in"],
                "model.output_scale": ["inverse_sqrt_width", None],
            },
            {"optimizer.weight_decay": [0.0, 0.1, 0.3]},
        ],
        "seconds_per_cell": 720,
    }
