"""biotorch's LeNet on MNIST under the six rules of its table.

Source: the benchmark table of biotorch (2021), arXiv 2108.13446.
Command: python trainers/sweep.py --grid=configs/grids/biotorch_mnist_lenet.py \\
             --workdir=runs/biotorch_mnist_lenet --jobs=2
Expected: 18 cells, 12 of 3 to 4 minutes and 6 of 10, 55 minutes on 2 cores.

At the learning rate of the others, feedback alignment's loss grows to 1e6 in its first
epoch, and to 1e22 where an epoch at a third of it comes before. It and direct feedback
have that third, and three times as many epochs: biotorch's files for its CIFAR-10 LeNet
give them 1/100 and 1/1000 of backpropagation's rate, and all rules 250 epochs.
"""


def get_grid():
    return {
        "config": "biotorch_mnist_lenet.py",
        "axes": [
            {"seed": [0, 1, 2]},
            {
                "rule": ["backprop", "fa", "sign_fa", "frsf", "brsf", "dfa"],
                "optimizer.learning_rate": [0.01, 0.003, 0.01, 0.01, 0.01, 0.003],
                "epochs": [20, 60, 20, 20, 20, 60],
                "schedule.boundaries": [
                    (10, 15),
                    (30, 45),
                    (10, 15),
                    (10, 15),
                    (10, 15),
                    (30, 45),
                ],
            },
        ],
        "seconds_per_cell": 220,
    }
