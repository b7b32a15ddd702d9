"""Strategies: where a model's replicas live."""

import tensorflow as tf

NAMES = ("default", "mirrored")


def get_strategy(name):
    """The `tf.distribute` strategy with a name.

    Args:
        name: "default" for one device, "mirrored" for a `MirroredStrategy` over all
            GPUs, or over all logical CPU devices where there is no GPU.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    raise ValueError(f"Unknown strategy: {name!r}. Known: {', '.join(NAMES)}.")
