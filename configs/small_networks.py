"""A small MobileNetV2, ViT and ResNet of Keras's layers, on ten classes of CIFAR-100.

Source: Sandler et al. (2018), Dosovitskiy et al. (2021) and He et al. (2016) for the
    networks, made small enough for a core; the audit's protocol is that of
    arXiv 2606.21126.
Command: keras-fa sweep --grid=small_networks --workdir=runs/small_networks, then
    keras-fa reproduce --experiment=small_networks
Expected: results/small_networks.csv; one run takes about a minute on one core.

Choices where the sources are silent: standardised by the mean and standard deviation of
each colour channel over the chosen classes' training images; the last partial batch is
kept. The ViT has no positions: its patches are a set.
"""

import keras
from keras import layers

from keras_fa.config import default_config


def mobilenet(input_shape, num_classes):
    """Inverted residuals of 12, 16 and 24 channels; images of 32 x 32 end at 4 x 4."""

    def conv_bn(x, name, filters, size=1, strides=1, activation=True):
        conv = {"padding": "same", "use_bias": False, "name": name}
        x = layers.Conv2D(filters, size, strides, **conv)(x)
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x

    def inverted(x, name, filters, strides):
        y = conv_bn(x, f"{name}_expand", 3 * x.shape[-1])
        deep = f"{name}_depthwise"
        conv = {"padding": "same", "use_bias": False, "name": deep}
        y = layers.DepthwiseConv2D(3, strides, **conv)(y)
        y = layers.BatchNormalization(name=f"{deep}_norm")(y)
        y = layers.ReLU(6.0, name=f"{deep}_relu")(y)
        y = conv_bn(y, f"{name}_project", filters, activation=False)
        return layers.Add(name=f"{name}_add")([x, y]) if y.shape == x.shape else y

    inputs = keras.Input(input_shape)
    x = conv_bn(inputs, "stem", 12, 3, 2)
    sizes = ((12, 1), (16, 2), (16, 1), (24, 2), (24, 1))
    for number, (filters, strides) in enumerate(sizes, 1):
        x = inverted(x, f"block_{number}", filters, strides)
    x = layers.GlobalAveragePooling2D()(conv_bn(x, "last", 48))
    outputs = layers.Dense(num_classes, name="head")(x)
    return keras.Model(inputs, outputs, name="mobilenet")


def resnet(input_shape, num_classes):
    """Basic blocks of 16, 32 and 48 channels, one each; 32 x 32 images end at 4 x 4."""

    def conv_bn(x, name, filters, size=3, strides=1):
        conv = {"padding": "same", "use_bias": False, "name": name}
        x = layers.Conv2D(filters, size, strides, **conv)(x)
        return layers.BatchNormalization(name=f"{name}_norm")(x)

    inputs = keras.Input(input_shape)
    x = layers.ReLU(name="stem_relu")(conv_bn(inputs, "stem", 16, strides=2))
    for name, filters, strides in (
        ("block_1", 16, 1),
        ("block_2", 32, 2),
        ("block_3", 48, 2),
    ):
        y = conv_bn(x, f"{name}_conv_1", filters, strides=strides)
        y = layers.ReLU(name=f"{name}_relu_1")(y)
        y = conv_bn(y, f"{name}_conv_2", filters)
        if y.shape != x.shape:
            x = conv_bn(x, f"{name}_shortcut", filters, 1, strides)
        x = layers.ReLU(name=f"{name}_relu_2")(layers.Add(name=f"{name}_add")([x, y]))
    outputs = layers.Dense(num_classes, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="resnet")


def vit(input_shape, num_classes, width=48, blocks=3, heads=4, patch=8):
    """Pre-norm blocks of attention and GELU on patches of 8 x 8."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(width, patch, patch, name="patches")(inputs)
    x = layers.Reshape((-1, width))(x)
    for block in (f"block_{number}" for number in range(1, blocks + 1)):
        y = layers.LayerNormalization(name=f"{block}_norm_1")(x)
        attend = layers.MultiHeadAttention(
            heads, width // heads, name=f"{block}_attend"
        )
        x = layers.Add(name=f"{block}_add_1")([x, attend(y, y)])
        y = layers.LayerNormalization(name=f"{block}_norm_2")(x)
        y = layers.Dense(2 * width, activation="gelu", name=f"{block}_up")(y)
        y = layers.Dense(width, name=f"{block}_down")(y)
        x = layers.Add(name=f"{block}_add_2")([x, y])
    x = layers.LayerNormalization(name="norm")(x)
    outputs = layers.Dense(num_classes, name="head")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, outputs, name="vit")


def get_config():
    config = default_config()
    config.dataset.name = "cifar100"
    config.dataset.num_classes = 10
    config.dataset.class_seed = 0
    config.dataset.standardize = "channel"
    config.model.name = "small_networks:mobilenet"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.epochs = 10
    config.batch_size = 64
    config.checkpoint_every = 5
    config.instruments.conservation = False
    return config
