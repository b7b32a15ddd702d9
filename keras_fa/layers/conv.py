"""Convolutions of one to three dimensions, and transposed ones, under a rule."""

import keras
from keras import ops

from keras_fa import _keras, rules
from keras_fa.layers._base import FeedbackMixin


def finished(layer, outputs):
    """What convolutions without a hook do after their product: bias, activation."""
    if layer.use_bias:
        shape = [1] * len(outputs.shape)
        shape[1 if layer.data_format == "channels_first" else -1] = -1
        outputs = ops.add(outputs, ops.reshape(layer.bias, shape))
    if layer.activation is not None:
        outputs = layer.activation(outputs)
    return outputs


class _FeedbackConvolution(FeedbackMixin):
    """The convolutions' part: they all pass through `convolution_op`."""

    @property
    def ends_in_outputs(self):
        return self.groups == 1 and self.data_format == "channels_last"

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


class _FeedbackTransposedConvolution(FeedbackMixin):
    """The transposed convolutions' part: they have no hook for their product."""

    def geometry(self, index=0):
        # The kernel is (*kernel_size, filters, input channels).
        geometry = super().geometry(index)
        return geometry._replace(inputs=geometry.outputs, outputs=geometry.inputs)

    def call(self, inputs):
        def transposed(inputs, kernel):
            return ops.conv_transpose(
                inputs,
                kernel,
                strides=list(self.strides),
                padding=self.padding,
                output_padding=self.output_padding,
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            )

        return finished(self, self.linear(transposed, inputs))


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackConv1DTranspose(
    _FeedbackTransposedConvolution, keras.layers.Conv1DTranspose
):
    """`keras.layers.Conv1DTranspose` with a rule: see `FeedbackConv2DTranspose`."""


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackConv2DTranspose(
    _FeedbackTransposedConvolution, keras.layers.Conv2DTranspose
):
    """`keras.layers.Conv2DTranspose` with a feedback rule.

    The input gradient is the convolution with the rule's B in place of W.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or tuple.
        rule: Feedback rule: see `keras_fa.rules.get`.
        **kwargs: Every other argument of the Keras layer.

    Attributes:
        feedback: The stored B, of the kernel's shape
            `(*kernel_size, filters, input_channels)`, or None where the rule stores
            none.

    Raises:
        ValueError: If the rule is unknown, or if B comes out equal to W under "fa".
    """


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackConv3DTranspose(
    _FeedbackTransposedConvolution, keras.layers.Conv3DTranspose
):
    """`keras.layers.Conv3DTranspose` with a rule: see `FeedbackConv2DTranspose`."""
