"""784-800-800-10 on MNIST with dropout under direct feedback, and two rules beside it.

Source: Nokland (2016), arXiv 1609.01596.
Command: python trainers/sweep.py --grid=configs/grids/nokland_mnist.py \\
             --workdir=runs/nokland_mnist --jobs=2
Expected: 9 cells of 8 to 10 minutes, 45 minutes on 2 cores.
"""


def get_grid():
    return {
        "config": "nokland_mnist.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {
                "rule": ["dfa", "fa", "backprop"],
                "model.kernel_initializer": [
                    "zeros",
                    "glorot_uniform",
                    "glorot_uniform",
                ],
            },
        ],
        "seconds_per_cell": 600,
    }
