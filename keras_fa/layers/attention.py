"""Attention under a feedback rule: its projections are feedback layers."""

import keras

from keras_fa import _keras, rules
from keras_fa.layers._base import FeedbackHolder, feedback_layers
from keras_fa.layers.einsum import FeedbackEinsumDense

_PROJECTION = keras.layers.EinsumDense


class _FeedbackAttention(FeedbackHolder):
    """The attention layers' part: Keras makes the projections when it builds them."""

    # What they are to get then. A layer that became one of these later has them.
    _given = None

    def __init__(self, *args, rule="fa", **kwargs):
        super().__init__(*args, **kwargs)
        if not (isinstance(rule, dict) and rules.is_by_layer(rule)):
            rule = rules.get(rule).for_layer()
        self._given = rule

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        chooser = rules.by_layer(self._given)
        for part in _keras.layers_of(self):
            if type(part) is _PROJECTION:
                chosen = chooser.rule(part, part.name)
                if chosen is not None:
                    _keras.change_class(part, FeedbackEinsumDense)
                    part.take_rule(chosen)
        chooser.check()

    @property
    def rule(self):
        """The rule of the projections; `{name: rule}` where they differ."""
        found = {part.name: part.rule for part in feedback_layers(self)}
        if not found:
            return self._given
        stock = [x for x in _keras.layers_of(self) if type(x) is _PROJECTION]
        first, *others = map(rules.serialize, found.values())
        alike = not stock and all(other == first for other in others)
        return next(iter(found.values())) if alike else found


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackMultiHeadAttention(_FeedbackAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with a feedback rule.

    The projections of query, key, value, gate and output are `FeedbackEinsumDense`
    layers. What is between them has no weights, and its error is the ordinary one.

    Args:
        num_heads: Number of heads.
        key_dim: Size of each head for query and key.
        rule: Feedback rule: see `keras_fa.rules.get`. Or a table `{pattern: rule}`, of
            which the first counts that fits the name of a projection: "query", "key",
            "value", "gate", "attention_output". One that none fits is a stock layer.
        **kwargs: Every other argument of the Keras layer.

    Attributes:
        query_dense, key_dense, value_dense, output_dense: The projections, each with
            its rule and its B.

    Raises:
        ValueError: If a rule is unknown; and when it is built, if B comes out equal to
            W under "fa" or a pattern fits no projection.
    """


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackGroupQueryAttention(_FeedbackAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` with a rule: as `FeedbackMultiHeadAttention`.

    Args:
        head_dim: Size of each head.
        num_query_heads: Number of query heads.
        num_key_value_heads: Number of heads of keys and values.
        rule: As in `FeedbackMultiHeadAttention`.
        **kwargs: Every other argument of the Keras layer.

    Raises:
        ValueError: As in `FeedbackMultiHeadAttention`.
    """
