"""Dense layers by Einstein's summation under a feedback rule."""

import math

import keras
from keras import ops

from keras_fa import rules
from keras_fa.layers._base import FeedbackMixin


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackEinsumDense(FeedbackMixin, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with a feedback rule.

    The input gradient is the einsum of the error with the rule's B in place of W.

    Args:
        equation: Such as "abc,cde->abde".
        output_shape: Shape of the output without the batch axis.
        rule: Feedback rule: see `keras_fa.rules.get`.
        **kwargs: Every other argument of the Keras layer.

    Attributes:
        feedback: The stored B, of the kernel's shape, or None where the rule stores
            none.

    Raises:
        ValueError: If the rule is unknown, or if B comes out equal to W under "fa".
    """

    def geometry(self, index=0):
        shape, (_, letters, out) = self.kernel.shape, self._letters()
        outputs = tuple(axis for axis, name in enumerate(letters) if name in out)
        inputs = tuple(axis for axis in range(len(shape)) if axis not in outputs)
        fans = tuple(math.prod(shape[a] for a in axes) for axes in (inputs, outputs))
        return rules.Geometry(inputs, outputs, fans, index, told=True)

    def mirrored_bias(self, index=0):
        if self.bias is None:
            return None
        _, letters, out = self._letters()
        made = [name for name in letters if name in out]
        if not set(self.bias_axes) <= set(made):
            # It differs between the places of the input, which noise has not.
            return None
        found = [name for name in out if name in self.bias_axes]
        sizes = dict(zip(letters, self.kernel.shape, strict=True))
        bias = ops.reshape(self.bias, [sizes[name] for name in found])
        order = [found.index(name) for name in made if name in found]
        shape = [sizes[name] if name in found else 1 for name in made]
        return ops.reshape(ops.transpose(bias, order), shape)

    def _letters(self):
        """The axes of the inputs, the kernel and the outputs, without dots."""
        sources, out = self.equation.replace(".", "").split("->")
        return (*sources.split(","), out)

    def call(self, inputs, training=None):
        def product(inputs, kernel):
            return ops.einsum(self.equation, inputs, kernel)

        # Keras's EinsumDense has no hook for its product, so its call is restated.
        outputs = self.linear(product, inputs)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs
