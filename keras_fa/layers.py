"""Drop-in dense and convolution layers whose input gradient follows a feedback rule.

Each is the stock Keras layer with a mixin before it: every argument, shape and number
of the forward pass is Keras's own, and under `rule="backprop"` so is every gradient.
"""

import keras
from keras import ops

from keras_fa import gradients, rules


class _Feedback:
    """What the feedback layers have in common; stands before a Keras layer class."""

    def __init__(self, *args, rule="fa", **kwargs):
        super().__init__(*args, **kwargs)
        if self.quantization_mode is not None:
            self._refuse_quantization()
        self._rule = rules.get(rule).for_layer()
        self.feedback = None

    @property
    def rule(self):
        """The layer's `FeedbackRule`. `models.with_rule` gives a model another one."""
        return self._rule

    def build(self, input_shape):
        super().build(input_shape)
        if not self._rule.stores_feedback:
            return
        if self.lora_enabled:
            # Keras locks the layer behind the LoRA weights that it added last.
            self._tracker.unlock()
        self.feedback = self.add_weight(
            name="feedback",
            shape=self.kernel.shape,
            dtype=self.variable_dtype,
            # Called when W has its values, which in a model that `fit` builds is later.
            initializer=lambda shape, dtype: ops.cast(self._initial_feedback(), dtype),
            trainable=False,
        )

    def _initial_feedback(self):
        return self._rule.initial_feedback(self.kernel, self.kernel_initializer)

    def reset_feedback(self):
        """Makes the stored B anew, as when the layer was built, from the current W."""
        if self.feedback is not None:
            self.feedback.assign(self._initial_feedback())

    def backward_kernel(self):
        """What the backward pass uses in place of W now.

        Returns:
            A tensor or variable of the kernel's shape; the kernel itself under
            backpropagation.
        """
        return self._rule.backward_kernel(self.kernel, self.feedback)

    def _linear(self, op, inputs, kernel):
        # W is read once, and B made from that reading. With a second reading of its
        # own, B sometimes came from the weights after the update: nothing in the graph
        # held the update back until then. (ops.convert_to_tensor would not read.)
        kernel = ops.copy(kernel)
        return gradients.linear(
            op, inputs, kernel, self._rule.backward_kernel(kernel, self.feedback)
        )

    def get_config(self):
        return {**super().get_config(), "rule": rules.serialize(self._rule)}

    # Dense and the convolutions read and write kernel and bias only; Layer's own pair
    # takes every variable of the layer.
    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def quantize(self, *args, **kwargs):
        self._refuse_quantization()

    def _refuse_quantization(self):
        raise NotImplementedError(
            f"{type(self).__name__} cannot be quantized: a quantized layer has no "
            "backward pass. Train first, then quantize a stock-Keras copy of the model."
        )


class _FeedbackConvolution(_Feedback):
    """The convolutions' part: they all pass through `convolution_op`."""

    def convolution_op(self, inputs, kernel):
        return self._linear(super().convolution_op, inputs, kernel)


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackDense(_Feedback, keras.layers.Dense):
    """`keras.layers.Dense` with a feedback rule.

    Forward `y = x W + b`; backward `dL/dx = dL/dy B^T` with the rule's B, and the
    ordinary gradients of W and b.

    Args:
        units: Width of the output.
        rule: Feedback rule: a name ("fa", "ada_fa", "sign_fa", "backprop"), a config or
            a `keras_fa.rules.FeedbackRule`.
        **kwargs: Every other argument of `keras.layers.Dense`.

    Attributes:
        feedback: The stored B, a non-trainable variable of the kernel's shape
            `(input_dim, units)`, or None where the rule stores nothing.

    Raises:
        ValueError: If the rule is unknown, or if B comes out equal to W under "fa".

    Example:
        >>> layer = keras_fa.layers.FeedbackDense(10, rule="sign_fa")
        >>> layer(np.ones((2, 3))).shape
        TensorShape([2, 10])
    """

    def call(self, inputs, training=None):
        # Keras's Dense has no hook for its product, so its call is restated.
        outputs = self._linear(ops.matmul, inputs, self.kernel)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs


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
                ops.pad(inputs, self._compute_causal_padding()),
                kernel,
                strides=list(self.strides),
                padding="valid",
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            )

        return self._linear(causal, inputs, kernel)


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


def feedback_layers(model):
    """The feedback layers of a model, nested ones too, in order, each once.

    Args:
        model: A Keras model or layer.

    Returns:
        List of `FeedbackDense` and `FeedbackConv*` layers.
    """
    return [layer for layer in model._flatten_layers() if isinstance(layer, _Feedback)]
