"""The mixin that makes a Keras layer a feedback layer."""

import keras
from keras import ops

from keras_fa import gradients, rules


class Feedback:
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


def feedback_layers(model):
    """The feedback layers of a model, nested ones too, in order, each once.

    Args:
        model: A Keras model or layer.

    Returns:
        List of `FeedbackDense` and `FeedbackConv*` layers.
    """
    return [layer for layer in model._flatten_layers() if isinstance(layer, Feedback)]
