"""Feedback rules: which kernel B the backward pass of a layer uses in place of W."""

import difflib

import keras

from keras_fa.rules.base import PACKAGE, FeedbackRule
from keras_fa.rules.fixed import (
    AdaptiveFeedbackAlignment,
    Backprop,
    FeedbackAlignment,
)
from keras_fa.rules.signs import SignFeedbackAlignment

__all__ = [
    "NAMES",
    "PACKAGE",
    "AdaptiveFeedbackAlignment",
    "Backprop",
    "FeedbackAlignment",
    "FeedbackRule",
    "SignFeedbackAlignment",
    "deserialize",
    "get",
    "serialize",
]

_RULES = {
    "backprop": Backprop,
    "fa": FeedbackAlignment,
    "ada_fa": AdaptiveFeedbackAlignment,
    "sign_fa": SignFeedbackAlignment,
}

NAMES = tuple(_RULES)


def get(identifier):
    """Looks a feedback rule up.

    Args:
        identifier: One of the names in `rules.NAMES`, a config as `serialize` returns
            it, a rule class, or a rule, which is returned as it is.

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
    if isinstance(identifier, str) and identifier in _RULES:
        return _RULES[identifier]()
    close = difflib.get_close_matches(str(identifier).lower(), NAMES, n=1, cutoff=0.4)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    raise ValueError(
        f"Unknown feedback rule: {identifier!r}.{hint} Known rules: "
        f"{', '.join(NAMES)}; a config dict or a FeedbackRule instance works as well."
    )


def serialize(rule):
    """The config dict of a rule, which `get` and `deserialize` take."""
    return keras.saving.serialize_keras_object(rule)


def deserialize(config):
    """The rule that a config dict describes.

    Args:
        config: What `serialize` returned, or in short
            `{"class_name": "fa", "config": {"seed": 1}}`.

    Returns:
        A `FeedbackRule`.

    Raises:
        ValueError: If the config does not describe a feedback rule.
    """
    known = _RULES | {rule.__name__: rule for rule in _RULES.values()}
    rule_class = known.get(config.get("class_name"))
    if rule_class is not None:
        return rule_class.from_config(config.get("config", {}))
    rule = keras.saving.deserialize_keras_object(config)
    if not isinstance(rule, FeedbackRule):
        raise ValueError(f"Not the config of a feedback rule: {config!r}.")
    return rule
