"""Feedback rules: which kernel B the backward pass of a layer uses in place of W."""

import keras

from keras_fa import registry
from keras_fa.rules.base import (
    PACKAGE,
    DrawnRule,
    FeedbackRule,
    Geometry,
    Slot,
    carries_errors,
    label_of,
)
from keras_fa.rules.choice import ByLayer, is_by_layer
from keras_fa.rules.direct import (
    DirectFeedbackAlignment,
    DirectKolenPollack,
    DirectRandomTargetProjection,
)
from keras_fa.rules.fixed import (
    AdaptiveFeedbackAlignment,
    Backprop,
    FeedbackAlignment,
)
from keras_fa.rules.learned import (
    KolenPollack,
    ProductFeedback,
    ShortProductFeedback,
    WeightMirror,
)
from keras_fa.rules.signs import (
    BatchRandomSign,
    FixedRandomSign,
    SignFeedbackAlignment,
)

__all__ = [
    "NAMES",
    "PACKAGE",
    "AdaptiveFeedbackAlignment",
    "Backprop",
    "BatchRandomSign",
    "DirectFeedbackAlignment",
    "DirectKolenPollack",
    "DirectRandomTargetProjection",
    "DrawnRule",
    "FeedbackAlignment",
    "FeedbackRule",
    "FixedRandomSign",
    "Geometry",
    "KolenPollack",
    "ProductFeedback",
    "ShortProductFeedback",
    "SignFeedbackAlignment",
    "Slot",
    "WeightMirror",
    "by_layer",
    "carries_errors",
    "deserialize",
    "get",
    "is_by_layer",
    "label_of",
    "serialize",
]

NAMES = registry.names("rule")
"""The names of the toolkit's own rules."""


def get(identifier):
    """Looks a feedback rule up.

    Args:
        identifier: A name: one of `rules.NAMES`, one given with
            `keras_fa.register("rule", name)`, or "module:Class"; a config: that which
            `serialize` returns, or in short `{"name": "fa", "seed": 1}`; a rule class;
            or a rule, which is returned as it is.

    Returns:
        A `FeedbackRule`.

    Raises:
        ValueError: If there is no such rule. The message lists the known ones.
    """
    if isinstance(identifier, FeedbackRule):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, FeedbackRule):
        return identifier()
    if isinstance(identifier, dict):
        return deserialize(identifier)
    rule = registry.get("rule", identifier)
    if isinstance(rule, FeedbackRule):
        return rule
    if isinstance(rule, type) and issubclass(rule, FeedbackRule):
        return rule()
    raise ValueError(
        f"The rule {identifier!r} must be a subclass of keras_fa.rules.FeedbackRule or "
        f"an object of one. Received: {rule!r}."
    )


def by_layer(spec):
    """What chooses the rule of each layer: see `ByLayer`, whose `spec` this is."""
    return ByLayer(spec, get)


def serialize(rule):
    """The config dict of a rule, which `get` and `deserialize` take."""
    return keras.saving.serialize_keras_object(rule)


def deserialize(config):
    """The rule that a config dict describes.

    Args:
        config: What `serialize` returned, or in short a name and its arguments, such as
            `{"name": "fa", "seed": 1}`.

    Returns:
        A `FeedbackRule`.

    Raises:
        ValueError: If the config does not describe a feedback rule, or one with the
            argument `form` that "pfa" had once.
    """
    if "name" in config:
        arguments = {key: value for key, value in config.items() if key != "name"}
        rule = registry.get("rule", config["name"])
        _check_form(rule, arguments)
        return registry.made("rule", rule, arguments)
    class_name = config.get("class_name")
    for name in registry.names("rule"):
        rule = registry.get("rule", name)
        if class_name in (name, getattr(rule, "__name__", None)):
            _check_form(rule, config.get("config", {}))
            return rule.from_config(config.get("config", {}))
    rule = keras.saving.deserialize_keras_object(config)
    if not isinstance(rule, FeedbackRule):
        raise ValueError(f"Not the config of a feedback rule: {config!r}.")
    return rule


def _check_form(rule, arguments):
    if rule is ProductFeedback and "form" in arguments:
        raise ValueError(
            "The forms of product feedback are two rules: in place of "
            'form="long" use the rule "pfa", in place of form="short" the rule '
            f'"pfa_short", both without `form`. Received: form={arguments["form"]!r}.'
        )
