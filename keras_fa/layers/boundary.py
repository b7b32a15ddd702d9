"""Where one block of a residual network ends and the next one begins."""

import keras
from keras import ops

from keras_fa import rules


@keras.saving.register_keras_serializable(rules.PACKAGE)
class BlockBoundary(keras.layers.Layer):
    """Passes its input on; backward, no error under direct feedback.

    What makes blocks local under `keras_fa.direct(model, taps="blocks")`, which puts it
    behind each block's output. Under backpropagation, with which the instruments
    compare, the error goes through.

    Args:
        rule: `keras_fa.rules.DirectFeedbackAlignment` or a relative.
        **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, rule="dfa", **kwargs):
        super().__init__(**kwargs)
        self._rule = rules.get(rule)

    def call(self, inputs):
        if isinstance(self._rule, rules.Backprop):
            return inputs
        return ops.stop_gradient(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rule": rules.serialize(self._rule)}
