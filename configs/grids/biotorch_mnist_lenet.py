"""biotorch's LeNet on MNIST under the six rules of its table.

Source: the benchmark table of biotorch (2021), arXiv 2108.13446.
Command: python trainers/sweep.py --grid=configs/grids/biotorch_mnist_lenet.py \\
             --workdir=runs/biotorch_mnist_lenet --jobs=2
Expected: 18 cells of 3 to 4 minutes, 35 minutes on 2 cores.

At the learning rate of the others, feedback alignment's loss grows to 1e6 in its first
epoch: it and direct feedback have a third of it.
"""


def get_grid():
    return {
        "config": "biotorch_mnist_lenet.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {
                "rule": ["backprop", "fa", "sign_fa", "frsf", "brsf", "dfa"],
                "optimizer.learning_rate": [0.01, 0.003, 0.01, 0.01, 0.01, 0.003],
            },
        ],
        "seconds_per_cell": 220,
    }
