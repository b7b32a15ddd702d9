r"""ResNet-18 on ImageNet, sign-symmetric in its convolutions.

Source: Xiao, Chen, Liao and Poggio (2018), "Biologically-plausible learning algorithms
    can scale to large datasets", arXiv 1811.03567, train a ResNet-18 on ImageNet with
    sign-symmetric feedback; Moskovitz, Litwin-Kumar and Abbott (2018), "Feedback
    alignment in deep convolutional networks", arXiv 1812.06488, deep convolutional
    networks. Crops, mirror images and 224 pixels as in He et al. (2016), label
    smoothing as in Szegedy et al. (2016).
Command: python trainers/train.py --config=configs/imagenet_resnet18.py --workdir=DIR
    Own folder of train/CLASS and val/CLASS: --config.dataset.name=folder:PATH
    Backpropagation: --config.rule=backprop
    Eight GPUs of one machine: --strategy=mirrored
Expected: not run on ImageNet: docs/explain/imagenet.md reckons what it takes. On class
    folders of generated JPEGs it runs to its end, on one device and on two workers.

ImageNet is prepared by TFDS from the archives, which one fetches by hand. Choices of
our own: 90 epochs in batches of 256, a cosine schedule with warm-up, the last layer
under backpropagation.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dtype = "mixed_bfloat16"
    config.dataset.name = "tfds:imagenet2012"
    config.dataset.image_size = 224
    config.dataset.standardize = "channel"
    config.dataset.augment = (
        "random_resized_crop",
        "flip",
        {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    )
    config.dataset.on_bad_example = "skip"
    config.dataset.workers = 8
    config.dataset.threads = 4
    config.model.name = "resnet18"
    config.rule = {"fc": "backprop", "*": "sign_fa"}
    config.loss = {"name": "cross_entropy", "label_smoothing": 0.1, "top_k": 5}
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.cosine = True
    config.schedule.warmup = 5
    config.epochs = 90
    config.batch_size = 256
    config.drop_last = True
    config.checkpoint_every_seconds = 600.0
    config.instruments.conservation = False
    return config
