"""ResNet-18 on CIFAR-100 with the customary augmentation.

Source: the network is He et al. (2016), the changes of the images those of its section
    4.2: a crop of the image with a border of 4 pixels, and the mirror image half of the
    time.
Command: python trainers/train.py --config=configs/cifar100_resnet18.py --workdir=DIR \
             --config.rule=sign_fa
Expected: not run to its end yet.

The network is torchvision's, which was made for 224 pixels: 32 reach 1 x 1. Choices of
our own: 100 epochs in batches of 128, a cosine schedule with warm-up.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dataset.name = "cifar100"
    config.dataset.standardize = "channel"
    config.dataset.augment = ("random_crop", "flip")
    config.model.name = "resnet18"
    config.loss = {"name": "cross_entropy", "top_k": 5}
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.cosine = True
    config.schedule.warmup = 5
    config.epochs = 100
    config.batch_size = 128
    config.checkpoint_every_seconds = 600.0
    config.instruments.conservation = False
    return config
