r"""LeNet and ResNet-18 in half precision, beside themselves in float32.

Source: none; a question of our own: what half precision does to accuracy under each
    rule, and to the ledger of the conserved quantities.
Command: python trainers/sweep.py --grid=configs/grids/precision.py \
             --workdir=runs/precision --jobs=2
Expected: 18 cells of 1.5 to 3.5 minutes, 25 minutes on 2 cores.

Plain gradient descent, under which the first order of the ledger is 0 but for rounding.
Compiled by XLA, which on a CPU without bfloat16 or float16 computes in float32 and
rounds what comes out, in some 1.5 of float32's time; TensorFlow's own kernels take some
18 times as long.
"""


def get_grid():
    return {
        "config": "cifar100_lenet.py",
        "axes": [
            {"optimizer.momentum": [0.0]},
            {"optimizer.weight_decay": [0.0]},
            {"optimizer.learning_rate": [0.02]},
            {"log_every": [1]},
            {"jit_compile": ["on"]},
            {"instruments.ledger": [True]},
            {
                "model.name": ["lenet", "resnet18"],
                "epochs": [10, 2],
                "batch_size": [128, 32],
                "dataset.train_size": [5000, 640],
            },
            {"dtype": ["float32", "mixed_bfloat16", "mixed_float16"]},
            {"rule": ["backprop", "fa", "sign_fa"]},
        ],
        "seconds_per_cell": 150,
    }
