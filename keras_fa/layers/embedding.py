"""An embedding whose way back to the tokens follows a feedback rule."""

import keras
from keras import ops

from keras_fa import _keras, rules
from keras_fa.layers._base import FeedbackMixin, Map


@_keras.custom_gradient
def _whole(table):
    """Returns a table; its gradient, of some rows, becomes one of all."""

    def backward(*args, upstream=None):
        error = args[0] if upstream is None else upstream
        return ops.add(ops.zeros(table.shape, error.dtype), error)

    return table, backward


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackReversibleEmbedding(FeedbackMixin, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` whose projection has a feedback rule.

    Reversed, it makes logits of vectors by a product whose input gradient goes through
    B. Looking a token up is no product: the table gets the ordinary gradient of both.
    A learned B of a tied table gets it too, as a gradient of all rows.

    Args:
        input_dim: Number of tokens.
        output_dim: Size of a token's vector.
        rule: Feedback rule: see `keras_fa.rules.get`. sign-FA's default scale is that
            of Glorot's initializers, which Keras's "uniform" is not.
        **kwargs: Every other argument of the Keras layer.

    Attributes:
        feedback: The stored B, of the shape of the kernel of the projection, the table
            `(input_dim, output_dim)` itself or with `tie_weights=False` another matrix
            `(output_dim, input_dim)`; None where the rule stores none.

    Raises:
        ValueError: If the rule is unknown, or if B comes out equal to W under "fa".
    """

    def __init__(self, *args, rule="fa", weights=None, **kwargs):
        super().__init__(*args, rule=rule, **kwargs)
        if weights is not None:
            # Keras would do it before there is a rule.
            self.build()
            one = isinstance(weights, list) and len(weights) == 1
            self._embeddings.assign(weights[0] if one else weights)
            self.reset_feedback()

    @property
    def maps(self):
        kernel = "embeddings" if self.tie_weights else "reverse_embeddings"
        return (Map(kernel, "embeddings_initializer"),)

    def build(self, input_shape=None):
        if not self.built:
            super().build(input_shape)

    def geometry(self, index=0):
        geometry = super().geometry(index)
        if not self.tie_weights:
            return geometry
        return geometry._replace(inputs=geometry.outputs, outputs=geometry.inputs)

    def call(self, inputs, reverse=False):
        if not reverse:
            self._mark_as_routed()
            return self._looked_up(inputs)
        if self.reverse_dtype is not None:
            inputs = ops.cast(inputs, self.reverse_dtype)
        # Keras has no hook for the product, so the rest of its call is restated.
        logits = self.linear(self._projected, inputs)
        if self.logit_soft_cap is not None:
            cap = self.logit_soft_cap
            logits = ops.multiply(ops.tanh(ops.divide(logits, cap)), cap)
        return logits

    def _looked_up(self, inputs):
        if not (self.tie_weights and self.rule.learns):
            return super().call(inputs)
        # What B is to learn of the table's gradient comes by this way too.
        table, *_ = self._pair(0)
        vectors = ops.take(_whole(table), ops.cast(inputs, "int32"), axis=0)
        vectors = ops.cast(vectors, self.compute_dtype)
        mask = keras.layers.Embedding.compute_mask(self, inputs)
        if mask is not None:
            _keras.set_mask(vectors, mask)
        return vectors

    def _projected(self, inputs, kernel):
        if self.tie_weights:
            kernel = ops.transpose(kernel)
        if self.reverse_dtype is not None:
            kernel = ops.cast(kernel, self.reverse_dtype)
        return ops.matmul(inputs, kernel)
