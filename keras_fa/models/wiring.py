"""The layer that brings the output's error to a model's hidden layers, and its taps."""

import collections
import copy

import keras

from keras_fa import _keras, rules
from keras_fa.layers import (
    BlockBoundary,
    DirectFeedback,
    FeedbackMixin,
    feedback_layers,
)


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
    wired = copy.copy(rule)
    wired.wired = True
    if rule.taps == "blocks":
        output, taps = _bounded(model, output, wired)
    else:
        taps = _taps(output, layers)
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
    new = _with_output(model, node.input_tensors[0])
    if not any(isinstance(x, BlockBoundary) for x in new.layers):
        return new

    def call(operation, *args, **kwargs):
        if isinstance(operation, BlockBoundary):
            return args[0]
        return operation(*args, **kwargs)

    return _with_output(new, _called_again(new, call))


def _with_output(model, output):
    """A functional model of the same inputs, name and policy."""
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    new = keras.Model(inputs, output, name=model.name)
    new.dtype_policy = model.dtype_policy
    return new


def _called_again(model, call):
    """The output of a model when `call(operation, ...)` stands for each call."""
    again = keras.models.clone_model(
        model, model.input, clone_function=lambda layer: layer, call_function=call
    )
    return again.outputs[0]


def _bounded(model, output, rule):
    """The output with a boundary behind each block, and the blocks' outputs."""
    ends, taps = _block_ends(output), {}

    def call(operation, *args, **kwargs):
        tensor = operation(*args, **kwargs)
        if id(operation) not in ends:
            return tensor
        _add_tap(taps, tensor, operation, ends[id(operation)])
        name = f"{operation.name}_boundary"
        return BlockBoundary(rule, dtype=tensor.dtype, name=name)(tensor)

    if not ends:
        raise ValueError(
            f"Model '{model.name}' has no sums of a residual stream, at which "
            'taps="blocks" has its blocks end. Use taps="layers".'
        )
    return _called_again(model, call), list(taps.values())


def _block_ends(output):
    """`{id(operation): whether something trains there or below}` of blocks' ends.

    A block ends in a sum. What a sum takes that is read elsewhere too, as by a block,
    is the stream at its beginning.
    """
    trains, nodes = {}, {}

    def visit(tensor):
        if id(tensor) not in trains:
            node = _keras.producing_node(tensor)
            nodes[id(node)] = node
            below = any([visit(parent) for parent in node.input_tensors])
            own = getattr(node.operation, "trainable_variables", ())
            trains[id(tensor)] = below or bool(own)
        return trains[id(tensor)]

    visit(output)
    uses = collections.Counter(
        id(tensor) for node in nodes.values() for tensor in node.input_tensors
    )
    ends = {}
    for node in nodes.values():
        if _keras.is_sum(node.operation) and len(node.input_tensors) > 1:
            streams = [x for x in node.input_tensors if uses[id(x)] > 1]
            for tensor in (*node.outputs, *streams):
                operation = _keras.producing_node(tensor).operation
                if not isinstance(operation, keras.layers.InputLayer):
                    ends[id(operation)] = trains[id(tensor)]
    return ends


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
