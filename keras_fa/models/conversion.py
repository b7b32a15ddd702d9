"""Another feedback rule for a model that has one."""

import keras

from keras_fa import rules
from keras_fa.layers import feedback_layers, feedback_variables
from keras_fa.models.wiring import unwire, wire


def with_rule(model, rule):
    """The same architecture and weights under another feedback rule.

    The kernels, biases, BatchNorm statistics and random seeds of the new model equal
    the old one's; its feedback is made anew: under "ada_fa" B is a copy of the current
    W, under "fa" it is drawn. The new model shares nothing with the old one and is not
    compiled.

    Args:
        model: A built Sequential or functional model with feedback layers.
        rule: Feedback rule of every feedback layer: see `keras_fa.rules.get`.

    Returns:
        A new model of the same kind.

    Raises:
        ValueError: If the rule is unknown, the model has no feedback layers, is a
            subclassed model, which Keras cannot clone, or has feedback layers whose
            rule is not in its config.
    """
    if not feedback_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no feedback layers. Expected a model built of "
            "keras_fa.layers, such as keras_fa.models.mlp returns."
        )
    rule = rules.get(rule)
    model = unwire(model)

    def clone(layer):
        config = _with_wrapped_rule(layer.get_config(), rule)
        if "rule" in config and feedback_layers(layer):
            config["rule"] = rule
        return type(layer).from_config(config)

    new = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for layer in feedback_layers(new):
        if type(layer.rule) is not type(rule):
            raise ValueError(
                f"Layer '{layer.name}' would keep the rule {layer.rule!r}: the layer "
                "around it makes it without asking its config. Give that layer a "
                "`rule` argument that its `get_config` returns."
            )
    old_state, new_state = _state(model), _state(new)
    for old_variable, new_variable in zip(old_state, new_state, strict=True):
        new_variable.assign(old_variable)
    for layer in feedback_layers(new):
        layer.reset_feedback()
    # A clone has the default policy.
    new.dtype_policy = model.dtype_policy
    return wire(new)


def direct(model, kind="full", signal="error", learned=False, **arguments):
    """The same architecture and weights under direct feedback.

    Each feedback layer sends nothing back; its input, unless nothing below it trains,
    gets the output's error through a matrix of its own. Source: Nokland (2016).

    Args:
        model: A built Sequential or functional model with feedback layers and one
            output of shape (batch, outputs). The softmax belongs to the loss.
        kind: "full", "shared", "low_rank" or "sparse".
        signal: "error", "sign" or "target".
        learned: Whether B_l learns, by `h_l^T e`: `keras_fa.rules.DirectKolenPollack`.
        **arguments: Further ones of `keras_fa.rules.DirectFeedbackAlignment`: `rank`,
            `nonzeros`, `ghost`, `initializer`, `seed`.

    Returns:
        A functional model whose last layer is a `keras_fa.layers.DirectFeedback`. Its
        predictions are the model's, to the bit.

    Raises:
        ValueError: If an argument is wrong or the model cannot have direct feedback:
            the message says why.

    Example:
        >>> model = keras_fa.direct(keras_fa.models.mlp((4,), (8, 8), 3), seed=0)
        >>> [tuple(b.shape) for b in model.layers[-1].weights]
        [(8, 3), (8, 3)]
    """
    rule = rules.DirectFeedbackAlignment
    if learned:
        rule = rules.DirectKolenPollack
    return with_rule(model, rule(kind=kind, signal=signal, **arguments))


def _with_wrapped_rule(config, rule):
    """The config with another rule in the feedback layers that it wraps, if any."""
    if isinstance(config, (list, tuple)):
        return type(config)(_with_wrapped_rule(item, rule) for item in config)
    if not isinstance(config, dict):
        return config
    config = {key: _with_wrapped_rule(value, rule) for key, value in config.items()}
    wrapped = config.get("config")
    if isinstance(wrapped, dict) and "class_name" in config and "rule" in wrapped:
        wrapped["rule"] = rules.serialize(rule.for_layer())
    return config


def _state(model):
    """Every variable of the model but the feedback, seeds included, in order."""
    feedback = {id(variable) for variable in feedback_variables(model)}
    return [v for v in model.variables if id(v) not in feedback]
