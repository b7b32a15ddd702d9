r"""784-500-10 on MNIST under four rules and both steps of the biases.

Source: Akrout et al. (2019), arXiv 1904.05391, and the authors' published logs.
Command: python trainers/sweep.py --grid=configs/grids/akrout_mnist.py \
             --workdir=runs/akrout_mnist --jobs=2
Expected: 24 cells of 7 to 12 minutes, 2 hours on 2 cores.
"""

MIRROR = {"name": "weight_mirror", "warmup": 468}


def get_grid():
    return {
        "config": "akrout_mnist.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {"optimizer.bias_share": [1 / 128, 1.0]},
            {
                "rule": ["backprop", "fa", "kolen_pollack", MIRROR],
                "optimizer.learning_rate": [0.2, 0.2, 0.3, 0.05],
            },
        ],
        "seconds_per_cell": 580,
    }
