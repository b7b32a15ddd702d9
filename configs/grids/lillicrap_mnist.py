"""784-1000-10 on MNIST under backpropagation and feedback alignment.

Source: Lillicrap et al. (2016), Nature Communications 7, 13276.
Command: python trainers/sweep.py --grid=configs/grids/lillicrap_mnist.py \\
             --workdir=runs/lillicrap_mnist --jobs=2
Expected: 6 cells of 2 to 3 minutes, 9 minutes on 2 cores.
"""

FEEDBACK = {"name": "fa", "initializer": "normal(1.0)"}


def get_grid():
    return {
        "config": "lillicrap_mnist.py",
        "axes": [{"seed": [0, 1, 2]}, {"rule": [FEEDBACK, "backprop"]}],
        "seconds_per_cell": 150,
    }
