r"""LeNet on ten classes of CIFAR-100, with and without augmentation, under three rules.

Source: the network and data of table 1 in Robertson and Koyejo (2024); the paper does
    not augment. The changes are the customary ones of CIFAR: a crop of the image with a
    border of 4 pixels, and the mirror image half of the time.
Command: python trainers/sweep.py --grid=configs/grids/cifar100_augmentation.py \
             --workdir=runs/cifar100_augmentation
Expected: 6 cells of 60 epochs; docs/howto/data.md says what augmentation does to each
    rule.

Batches of 128 and 60 epochs in place of table 1's 1,024 and 500, with the learning rate
that table 1's variants have for such batches. FA diverged at it; of 0.01 and 0.003 it
learned more in twelve epochs at the first.
"""


def get_grid():
    return {
        "config": "cifar100_lenet.py",
        "axes": [
            {
                "rule": ["backprop", "sign_fa", "fa"],
                "optimizer.learning_rate": [0.05, 0.05, 0.01],
            },
            {"dataset.augment": [(), ("random_crop", "flip")]},
            {
                "epochs": [60],
                "batch_size": [128],
                "schedule.boundaries": [(30, 45)],
                "schedule.factors": [(0.2, 0.04)],
                "checkpoint_every": [10],
            },
        ],
        "seconds_per_cell": 600,
    }
