"""The dense layer under a feedback rule."""

import keras
from keras import ops

from keras_fa import rules
from keras_fa.layers._base import FeedbackMixin


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackDense(FeedbackMixin, keras.layers.Dense):
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

    ends_in_outputs = True

    def call(self, inputs, training=None):
        # Keras's Dense has no hook for its product, so its call is restated.
        outputs = self.linear(ops.matmul, inputs)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs
