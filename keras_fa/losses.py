"""The losses of the papers' experiments that Keras does not have, and their names."""

import keras
from keras import ops

from keras_fa import rules


@keras.saving.register_keras_serializable(rules.PACKAGE)
class ExponentialLoss(keras.losses.Loss):
    """exp(-y f(x)), the loss of proposition 5.7 of Robertson and Koyejo (2024).

    Labels are -1 and +1; labels and outputs have shape (batch, 1).
    """

    def __init__(self, reduction="sum_over_batch_size", name="exponential", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        return ops.mean(ops.exp(-y_true * y_pred), axis=-1)

    def get_config(self):
        return {"reduction": self.reduction, "name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable(rules.PACKAGE)
class HalfSquaredError(keras.losses.Loss):
    """1/2 |f(x) - y|^2, by default summed over the batch.

    The squared error of Song, Xu and Lafferty (2021), equation (2.2), and of Robertson
    and Koyejo (2023): sums where Keras's mean squared error has means, so that step
    sizes mean what they mean there.
    """

    def __init__(self, reduction="sum", name="half_squared_error", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        return 0.5 * ops.sum(ops.square(y_pred - y_true), axis=-1)

    def get_config(self):
        return {"reduction": self.reduction, "name": self.name, "dtype": self.dtype}


def get(name, dtype=None):
    """A loss by the name that a configuration gives it, and what is measured with it.

    Args:
        name: "cross_entropy" (softmax of logits, integer labels), "exponential",
            "half_squared_error" or the name of a Keras loss.
        dtype: What the loss is computed in. Keras takes float32 unless told otherwise,
            in a float64 model too; so do its own losses by name.

    Returns:
        The loss, and `{name: function of (y_true, y_pred) -> (batch,)}`: the further
        measures whose means over the examples are logged.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "cross_entropy":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
        return loss, {"accuracy": keras.metrics.sparse_categorical_accuracy}
    if name == "exponential":
        return ExponentialLoss(dtype=dtype), {}
    if name == "half_squared_error":
        return HalfSquaredError(dtype=dtype), {}
    return keras.losses.get(name), {}
