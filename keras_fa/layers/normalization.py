"""Batch normalisation by TensorFlow's fused kernel, where it can be had."""

import keras
from keras import ops

from keras_fa import _keras, rules


@keras.saving.register_keras_serializable(rules.PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, in training by one fused kernel.

    Keras makes a chain of elementwise operations of it, each of which reads and writes
    the activations; in float16 and bfloat16 it casts them to float32 and back besides.
    The fused kernel reads them twice, in their own dtype, and computes in float32.

    It is taken in training on TensorFlow for inputs of shape (batch, height, width,
    channels) in float32, float16 or bfloat16, without a mask, and neither
    `synchronized` nor `renorm`; anything else is Keras's own. Variables and files are
    Keras's, outputs and running statistics equal to rounding: those keep the variance
    of the batch divided by its size N, as Keras's do, and not by N - 1.

    Args:
        **kwargs: Arguments of the Keras layer.
    """

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable and self._fuses(inputs, mask)):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        gamma = ops.ones(channels) if self.gamma is None else self.gamma
        beta = ops.zeros(channels) if self.beta is None else self.beta
        outputs, mean, variance = _keras.fused_batch_norm(
            inputs, ops.cast(gamma, "float32"), ops.cast(beta, "float32"), self.epsilon
        )
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = ops.cast(moving, "float32")
            moving.assign(old * self.momentum + new * (1.0 - self.momentum))
        return outputs

    def _fuses(self, inputs, mask):
        return (
            keras.config.backend() == "tensorflow"
            and mask is None
            and not (self.synchronized or self.renorm)
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.shape[-1] is not None
            and keras.backend.standardize_dtype(inputs.dtype)
            in ("float32", "float16", "bfloat16")
        )
