"""The layer that brings the output's error to a model's hidden layers, and its taps."""

import copy

import keras

from keras_fa import _keras, rules
from keras_fa.layers import DirectFeedback, FeedbackMixin, feedback_layers


def is_direct(rule):
    """Whether a rule needs a model's output error brought to its layers."""
    return isinstance(rule, rules.DirectFeedbackAlignment)


def wire(model):
    """Gives a model whose layers are under a direct rule the layer they need.

    Args:
        model: A Sequential or functional model. Its layers are used, not copied.

    Returns:
        A functional model with a `DirectFeedback` at its end; the model itself if none
        of its layers is under a direct rule.

    Raises:
        ValueError: If the model cannot have direct feedback.
    """
    layers = [x for x in feedback_layers(model) if is_direct(x.rule)]
    if not layers:
        return model
    rule = layers[0].rule
    for layer in layers:
        if _unwired(layer.rule) != _unwired(rule):
            raise ValueError(
                "The layers of a model are under one direct rule, or none. Received: "
                f"{rule!r} in '{layers[0].name}', {layer.rule!r} in '{layer.name}'."
            )
    output = _output(model)
    taps = _taps(output, layers)
    wired = copy.copy(rule)
    wired.wired = True
    for layer in layers:
        layer._rule = wired
    # That of the output: what casts an output on its way would change it.
    policy = _keras.producing_node(output).operation.dtype_policy
    end = DirectFeedback(wired, dtype=policy, name="direct_feedback")
    return _with_output(model, end([output, *taps]))


def unwire(model):
    """The model without the `DirectFeedback` at its end, if it has one.

    Its layers stay under their rule, which is of no use to them then.
    """
    ends = [x for x in model.layers if isinstance(x, DirectFeedback)]
    if not ends:
        return model
    node = _keras.producing_node(_output(model))
    return _with_output(model, node.input_tensors[0])


def _with_output(model, output):
    """A functional model of the same inputs, name and policy."""
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    new = keras.Model(inputs, output, name=model.name)
    new.dtype_policy = model.dtype_policy
    return new


def _unwired(rule):
    return {**rule.get_config(), "class": type(rule), "wired": False}


def _output(model):
    if getattr(model, "inputs", None) is None:
        raise ValueError(
            f"Model '{model.name}' has no graph in which to find the hidden layers. "
            "Direct feedback needs a Sequential or functional model that knows its "
            "input shape."
        )
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in model.outputs)
        raise ValueError(
            "Direct feedback needs one output of shape (batch, outputs), whose error "
            f"is a vector for each example. Received: {shapes}."
        )
    return model.outputs[0]


def _taps(output, layers):
    """The tensors that get the error: the inputs of the layers above others."""
    expected = {id(layer): layer for layer in layers}
    taps, trains = {}, {}

    def visit(tensor):
        """Whether something trains on the way to a tensor."""
        if id(tensor) in trains:
            return trains[id(tensor)]
        node = _keras.producing_node(tensor)
        operation = node.operation
        below = any([visit(parent) for parent in node.input_tensors])
        if isinstance(operation, FeedbackMixin) and expected.pop(id(operation), None):
            _add_tap(taps, node.input_tensors[0], operation, below)
        elif isinstance(operation, FeedbackMixin) and is_direct(operation.rule):
            # The same layer called again.
            _add_tap(taps, node.input_tensors[0], operation, below)
        own = getattr(operation, "trainable_variables", ())
        trains[id(tensor)] = below or bool(own)
        return trains[id(tensor)]

    visit(output)
    if expected:
        names = ", ".join(f"'{layer.name}'" for layer in expected.values())
        raise ValueError(
            "Direct feedback reaches the inputs of layers in the model's own graph. "
            f"These stand in a nested model, a wrapper or a loop: {names}. Take them "
            "out, or leave them under another rule."
        )
    return list(taps.values())


def _add_tap(taps, tensor, layer, below):
    if not below:
        return
    if None in tensor.shape[1:]:
        raise ValueError(
            f"The input of '{layer.name}' has the shape {tuple(tensor.shape)}: its "
            "feedback matrix needs a size that is known. Give the model's Input a full "
            "shape."
        )
    taps[id(tensor)] = tensor
