"""The losses of the papers' experiments that Keras does not have, and their names."""

import keras
from keras import ops

from keras_fa import rules


def exponential_loss(y_true, y_pred):
    """exp(-y f(x)), the loss of proposition 5.7 of Robertson and Koyejo (2024).

    Args:
        y_true: Labels -1 and +1, shape (batch, 1).
        y_pred: Outputs f(x), shape (batch, 1).

    Returns:
        Tensor (batch,).
    """
    return ops.mean(ops.exp(-y_true * y_pred), axis=-1)


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


def get(name):
    """A loss by the name that a configuration gives it, and what is measured with it.

    Args:
        name: "cross_entropy" (softmax of logits, integer labels), "exponential",
            "half_squared_error" or the name of a Keras loss.

    Returns:
        The loss, and `{name: function of (y_true, y_pred) -> (batch,)}`: the further
        measures whose means over the examples are logged.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "cross_entropy":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss, {"accuracy": keras.metrics.sparse_categorical_accuracy}
    if name == "exponential":
        return exponential_loss, {}
    if name == "half_squared_error":
        return HalfSquaredError(), {}
    return keras.losses.get(name), {}
