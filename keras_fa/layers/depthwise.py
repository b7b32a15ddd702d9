"""Depthwise and separable convolutions under a feedback rule."""

import keras
from keras import ops

from keras_fa import rules
from keras_fa.layers._base import FeedbackMixin, Map
from keras_fa.layers.conv import finished


class _Depthwise(FeedbackMixin):
    """What depthwise and separable convolutions share: a kernel for each channel."""

    def geometry(self, index=0):
        # Each channel is a map of its own, which only the axes tell: Keras's fans are
        # those of a dense convolution.
        geometry = super().geometry(index)
        if index:
            return geometry
        axes = geometry.inputs + geometry.outputs
        return geometry._replace(inputs=axes[:-2], outputs=axes[-2:])

    def _filtered(self, inputs, kernel):
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


class _FeedbackDepthwiseConvolution(_Depthwise):
    maps = (Map("kernel", "depthwise_initializer"),)

    def mirrored_bias(self, index=0):
        if self.bias is None:
            return None
        return ops.reshape(self.bias, self.kernel.shape[-2:])

    def call(self, inputs):
        return finished(self, self.linear(self._filtered, inputs))


class _FeedbackSeparableConvolution(_Depthwise):
    maps = (
        Map("depthwise_kernel", "depthwise_initializer"),
        Map("pointwise_kernel", "pointwise_initializer"),
    )

    def mirrored_bias(self, index=0):
        return self.bias if index else None

    def call(self, inputs):
        # Two products, so that the depthwise kernel sees the pointwise B's error.
        outputs = self.linear(self._filtered, inputs)
        return finished(self, self.linear(self._mixed, outputs, index=1))

    def _mixed(self, inputs, kernel):
        # As Keras does, since TensorFlow has no channels_first convolution on a CPU.
        first = self.data_format == "channels_first"
        if first:
            inputs = ops.moveaxis(inputs, 1, -1)
        outputs = ops.conv(inputs, kernel, padding="valid", data_format="channels_last")
        return ops.moveaxis(outputs, -1, 1) if first else outputs


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackDepthwiseConv1D(
    _FeedbackDepthwiseConvolution, keras.layers.DepthwiseConv1D
):
    """`keras.layers.DepthwiseConv1D` with a rule: see `FeedbackDepthwiseConv2D`."""


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackDepthwiseConv2D(
    _FeedbackDepthwiseConvolution, keras.layers.DepthwiseConv2D
):
    """`keras.layers.DepthwiseConv2D` with a feedback rule.

    Args:
        kernel_size: Integer or tuple.
        rule: Feedback rule: see `keras_fa.rules.get`.
        **kwargs: Every other argument of the Keras layer.

    Attributes:
        feedback: The stored B, of the kernel's shape
            `(*kernel_size, input_channels, depth_multiplier)`, or None where the rule
            stores none.

    Raises:
        ValueError: If the rule is unknown, or if B comes out equal to W under "fa".
    """


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackSeparableConv1D(
    _FeedbackSeparableConvolution, keras.layers.SeparableConv1D
):
    """`keras.layers.SeparableConv1D` with a rule: see `FeedbackSeparableConv2D`."""


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackSeparableConv2D(
    _FeedbackSeparableConvolution, keras.layers.SeparableConv2D
):
    """`keras.layers.SeparableConv2D` with a feedback rule.

    Both kernels have a B: the error goes through the pointwise one to the depthwise
    kernel, whose gradient is the ordinary one given that error, and through the
    depthwise one to the input.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or tuple.
        rule: Feedback rule: see `keras_fa.rules.get`.
        **kwargs: Every other argument of the Keras layer.

    Attributes:
        maps: Of the depthwise and of the pointwise kernel: `layer.stored(1)` and
            `layer.backward_kernel(1)` are of the latter.

    Raises:
        ValueError: If the rule is unknown, or if a B comes out equal to its W under
            "fa".
    """
