"""Convolutions of one to three dimensions under a feedback rule."""

import keras
from keras import ops

from keras_fa import _keras, rules
from keras_fa.layers._base import FeedbackMixin


class _FeedbackConvolution(FeedbackMixin):
    """The convolutions' part: they all pass through `convolution_op`."""

    def convolution_op(self, inputs, kernel):
        return self.linear(super().convolution_op, inputs, kernel)


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackConv1D(_FeedbackConvolution, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a feedback rule: see `FeedbackConv2D`."""

    def call(self, inputs):
        # Keras's Conv1D goes past convolution_op; the class above it does not.
        return super(keras.layers.Conv1D, self).call(inputs)

    def convolution_op(self, inputs, kernel):
        if self.padding != "causal":
            return super().convolution_op(inputs, kernel)

        def causal(inputs, kernel):
            return ops.conv(
                ops.pad(inputs, _keras.causal_padding(self)),
                kernel,
                strides=list(self.strides),
                padding="valid",
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            )

        return self.linear(causal, inputs, kernel)


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackConv2D(_FeedbackConvolution, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a feedback rule.

    The input gradient is the transposed convolution with the rule's B in place of W;
    kernel and bias gradients are the ordinary ones.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or tuple.
        rule: Feedback rule: a name ("fa", "ada_fa", "sign_fa", "backprop"), a config or
            a `keras_fa.rules.FeedbackRule`.
        **kwargs: Every other argument of the Keras layer (strides, padding, dilation,
            groups, data_format, ...).

    Attributes:
        feedback: The stored B, a non-trainable variable of the kernel's shape
            `(*kernel_size, input_channels / groups, filters)`, or None where the rule
            stores nothing.

    Raises:
        ValueError: If the rule is unknown, or if B comes out equal to W under "fa".
    """


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackConv3D(_FeedbackConvolution, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with a feedback rule: see `FeedbackConv2D`."""
