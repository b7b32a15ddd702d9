"""The Keras graph seen as channels: which units of which layers carry one signal.

A channel here is one output unit of a dense layer, convolution or BatchNorm. The walk
gives every channel a number and follows the numbers through the graph. An operation
that is positively homogeneous, `f(c x) = c f(x)` for c > 0, hands on the numbers it
got and joins those that it mixes. Any other operation hands them on as well, where it
can, and marks them with the reason why the conservation law does not survive it.
"""

import dataclasses
import inspect

import keras
import numpy as np
from keras import layers

from keras_fa import _keras


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one operation in a flattened graph.

    Attributes:
        operation: The Keras layer or operation.
        path: Its name, after the names of the nested models that it stands in, joined
            by "/".
        inputs: Keys of the tensors it takes; equal keys are the same tensor.
        outputs: Keys of the tensors it returns.
        input_shapes: Shapes of the inputs, batch axis included, None where unknown.
        output_shapes: Shapes of the outputs.
        plain: Whether these inputs, in their order, are all that it computes with
            besides its own weights, masks aside: no constants, no further arguments.
        arguments: Positional and keyword arguments as it was called with, a pair.
    """

    operation: object
    path: str
    inputs: tuple
    outputs: tuple
    input_shapes: tuple
    output_shapes: tuple
    plain: bool
    arguments: tuple


def flatten(model):
    """The calls of a Keras graph, nested models resolved into their own calls.

    Args:
        model: A built Sequential or functional Keras model.

    Returns:
        (calls, outputs): a list of `Call`, each after those that it takes tensors
        from, and the keys of the model's output tensors.

    Raises:
        ValueError: If the model has no graph: it is a subclassed model or not built.
    """
    if _graph(model) is None:
        raise ValueError(
            f"Model '{model.name}' has no graph to follow. Expected a Sequential or "
            "functional model that knows its input shape; received a "
            f"{type(model).__name__}. Give a Sequential model a keras.Input as its "
            "first layer or call it on data; a subclassed model, or one with a call of "
            "its own, cannot be followed."
        )
    calls = []
    return calls, _flatten(model, None, (), calls)


def _flatten(model, given, path, calls):
    """Appends the model's calls. `given`: the keys of its inputs, None for the top."""
    inputs, outputs = _graph(model)
    # Keys are tensors' ids under the calls of nested models that lead to them, as a
    # nested model that is called twice has two tensors for each of its own.
    context = (*path, len(calls)) if path else ()
    keys = {}
    if given is not None:
        keys = {id(tensor): key for tensor, key in zip(inputs, given, strict=True)}
    for node in _nodes(outputs, stop=set(keys)):
        operation = node.operation
        first = _first_argument(node)
        plain = first is not None
        leaves = keras.tree.flatten(first) if plain else node.input_tensors
        if not all(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            plain, leaves = False, node.input_tensors
        inner = _graph(operation) if plain else None
        matched = None if inner is None else _matched(first, operation, inner[0])
        if matched is not None:
            taken = [keys[id(tensor)] for tensor in matched]
            made = _flatten(operation, taken, (*path, operation.name), calls)
            keys.update(zip(map(id, node.output_tensors), made, strict=True))
            continue
        keys.update((id(t), (*context, id(t))) for t in node.output_tensors)
        calls.append(
            Call(
                operation,
                "/".join((*path, operation.name)),
                tuple(keys[id(tensor)] for tensor in leaves),
                tuple(keys[id(tensor)] for tensor in node.output_tensors),
                tuple(tuple(tensor.shape) for tensor in leaves),
                tuple(tuple(tensor.shape) for tensor in node.output_tensors),
                plain,
                (node.arguments.args, node.arguments.kwargs),
            )
        )
    return [keys[id(tensor)] for tensor in outputs]


def _graph(operation):
    """(inputs, outputs), lists of symbolic tensors, of a model with a graph."""
    if not isinstance(operation, keras.Model) or not _keras.follows_its_graph(
        operation
    ):
        return None
    # A Sequential model that is not built raises AttributeError, as a subclassed one.
    inputs = getattr(operation, "inputs", None)
    return None if inputs is None else (inputs, operation.outputs)


def _first_argument(node):
    """What a call works on, None if further arguments carry an error signal too.

    Arguments have their places in the signature, whichever way they were given: the
    tensors of a node are in the order of the keywords, a mask before the input.
    """
    args, kwargs = node.arguments.args, node.arguments.kwargs
    if not isinstance(node.operation, keras.Layer):
        return [*args, *kwargs.values()]
    try:
        bound = inspect.signature(node.operation.call).bind(*args, **kwargs)
    except TypeError:
        return None
    first, *others = bound.arguments.values() or [[]]
    if any(
        isinstance(leaf, (keras.KerasTensor, keras.Variable))
        # No derivative goes through a mask.
        and not leaf.dtype.startswith(("bool", "int", "uint", "string"))
        for leaf in keras.tree.flatten(others)
    ):
        return None
    return first


def _matched(given, model, inputs):
    """The tensors of a nested model's call in the order of its inputs, or None.

    Keras takes a dict for a list too, by the names of the inputs, and inputs of
    another rank, which it reshapes. In the latter case the model stays one operation,
    of an unknown kind.
    """
    expected = _keras.inputs_structure(model)
    if isinstance(given, dict) and not isinstance(expected, dict):
        names = [tensor.name for tensor in inputs]
        given = [given[name] for name in names] if set(names) <= set(given) else []
    tensors = keras.tree.flatten(given)
    if [len(t.shape) for t in tensors] != [len(t.shape) for t in inputs]:
        return None
    return tensors


def _nodes(outputs, stop):
    """The nodes that lead to the outputs, parents first; `stop`: ids of tensors."""
    done, order = set(), []
    stack = [(tensor, False) for tensor in reversed(outputs)]
    while stack:
        tensor, parents_done = stack.pop()
        if id(tensor) in stop:
            continue
        node = _keras.producing_node(tensor)
        if parents_done:
            order.append(node)
        elif id(node) not in done:
            done.add(id(node))
            stack.append((tensor, True))
            stack.extend((parent, False) for parent in reversed(node.input_tensors))
    return order


class Channels:
    """The numbers of the channels, which of them are joined, and the marks on them.

    Labels, below, are integer arrays that broadcast against a tensor's shape without
    its batch axis, and say for each of its entries to which channel it belongs.
    """

    def __init__(self):
        self._count = 0
        self._edges = []
        self.marks = []

    def new(self, count):
        """Numbers of so many new channels, an array (count,)."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def all(self):
        """The numbers of all channels so far."""
        return np.arange(self._count)

    def join(self, first, *others):
        """Makes channels one, entry by entry of the labels, which may broadcast."""
        for other in others:
            pairs = np.broadcast_arrays(first, other)
            self._edges.append(np.stack([side.ravel() for side in pairs], axis=1))

    def mark(self, labels, reason):
        """Notes why there is no law for these channels."""
        self.marks.append((np.unique(labels), reason))

    def merge_axes(self, labels, axes):
        """Joins the channels along axes, of which the labels then have one entry."""
        for axis in axes:
            if labels.shape[axis] > 1:
                kept = labels.take([0], axis)
                self.join(kept, labels)
                labels = kept
        return labels

    def components(self):
        """For each channel the smallest number joined with it, an array."""
        parents = list(range(self._count))

        def root(channel):
            while parents[channel] != channel:
                parents[channel] = parents[parents[channel]]
                channel = parents[channel]
            return channel

        for edges in self._edges:
            for pair in np.unique(edges, axis=0):
                low, high = sorted(map(root, pair))
                parents[high] = low
        return np.array([root(channel) for channel in range(self._count)], int)


def channel_axis(operation):
    """Axis of the channels in labels: -1, or 0 in the channels-first layout."""
    first = getattr(operation, "data_format", None) == "channels_first"
    return 0 if first else -1


def follow(channels, call, labels):
    """Labels of the outputs of an operation without weights.

    Args:
        channels: `Channels`; joined, and marked where the law ends.
        call: The `Call`.
        labels: Labels of its inputs, a list.

    Returns:
        Labels of its outputs, a list.
    """
    handler = _handler(call)
    if handler is None:
        reason = _unknown_kind(call)
    else:
        result = handler(channels, call, labels)
        if result is not None:
            return [result]
        reason = f"the channels cannot be followed through '{call.path}'"
    for label in labels:
        channels.mark(label, reason)
    return _blend(channels, call, labels)


def is_known(call):
    """Whether an operation without weights is known to be positively homogeneous."""
    return _handler(call) is not None


def _unknown_kind(call):
    reason = activation_reason(call.operation, call.path)
    if reason is None or type(call.operation) in _HANDLERS:
        kind = type(call.operation).__name__
        reason = f"'{call.path}' ({kind}) is called with more than its inputs"
    return reason


def _handler(call):
    """What hands the labels on through a positively homogeneous operation, or None."""
    operation = call.operation
    if not call.plain or "call" in vars(operation):
        return None
    if type(operation) in _HANDLERS:
        return _HANDLERS[type(operation)]
    if activation_reason(operation, call.path) is None:
        return _same
    # What remains are functions of keras.ops, such as x + y, whose classes are not
    # public. With a constant as the other operand they are not plain.
    if not _keras.is_own_operation(operation):
        return None
    name = type(operation).__name__
    if name in {"Add", "Subtract", "Maximum", "Minimum"}:
        return _merge
    return _same if name in {"Relu", "LeakyRelu", "Identity"} else None


def activation_reason(activation, path):
    """Why an activation breaks the law, or None where it is positively homogeneous.

    Args:
        activation: A function, or a Keras layer or operation without weights.
        path: Name of the layer it belongs to.

    Returns:
        None or a text.
    """
    if type(activation) is layers.Activation:
        activation = activation.activation
    if activation in (
        None,
        keras.activations.linear,
        keras.activations.relu,
        keras.activations.leaky_relu,
    ):
        return None
    if isinstance(activation, keras.Operation):
        name = type(activation).__name__
        if type(activation) is layers.LeakyReLU:
            return None
        # The layer and the operation of that name have the same attributes.
        is_relu = name == "ReLU" and _keras.is_own_operation(activation)
        if is_relu or type(activation) is layers.ReLU:
            if activation.max_value is None and not activation.threshold:
                return None
            name = "ReLU with a max_value or threshold"
    else:
        name = getattr(activation, "__name__", repr(activation))
    return f"'{path}' ({name}) is not known to be positively homogeneous"


def _same(channels, call, labels):
    return labels[0]


def _merge(channels, call, labels):
    """A sum, difference, mean, maximum or minimum of tensors."""
    if len({label.ndim for label in labels}) > 1:
        return None
    channels.join(*labels)
    return np.broadcast_arrays(*labels)[0]


def _concatenate(channels, call, labels):
    rank = labels[0].ndim
    axis = call.operation.axis % (rank + 1) - 1
    if axis < 0:
        return None
    shapes = [list(label.shape) for label in labels]
    common = np.max(shapes, axis=0)
    for shape, full in zip(shapes, call.input_shapes, strict=True):
        shape[:] = common
        shape[axis] = full[axis + 1]
    if any(None in shape for shape in shapes):
        return None
    return np.concatenate(
        [
            np.broadcast_to(label, shape)
            for label, shape in zip(labels, shapes, strict=True)
        ],
        axis,
    )


def _window(channels, call, labels):
    """Pooling, padding, cropping, upsampling: each channel for itself."""
    axis = channel_axis(call.operation) % labels[0].ndim
    return channels.merge_axes(
        labels[0], [other for other in range(labels[0].ndim) if other != axis]
    )


def _global_pooling(channels, call, labels):
    label = _window(channels, call, labels)
    if call.operation.keepdims:
        return label
    axis = channel_axis(call.operation) % label.ndim
    return label.reshape(label.shape[axis])


def _permute(channels, call, labels):
    return labels[0].transpose([axis - 1 for axis in call.operation.dims])


def _flatten_layer(channels, call, labels):
    shape, label = call.input_shapes[0][1:], labels[0]
    if shape and channel_axis(call.operation) == 0:
        # Keras moves the channels last before it flattens.
        shape, label = (*shape[1:], shape[0]), np.moveaxis(label, 0, -1)
    return _reshaped(label, shape, call.output_shapes[0][1:])


def _reshape(channels, call, labels):
    return _reshaped(labels[0], call.input_shapes[0][1:], call.output_shapes[0][1:])


def _reshaped(label, old_shape, new_shape):
    if None in old_shape or None in new_shape:
        return None
    label = np.broadcast_to(label, old_shape).reshape(new_shape)
    for axis in range(label.ndim):
        first = label.take([0], axis)
        if (label == first).all():
            label = first
    return label


def _blend(channels, call, labels):
    """Labels after an operation of an unknown kind, whose inputs are marked."""
    blends = []
    for shape in call.output_shapes:
        if all(_fits(label.shape, shape[1:]) for label in labels):
            channels.join(*labels)
            blends.append(np.broadcast_arrays(*labels)[0])
        else:
            everything = np.concatenate([label.ravel() for label in labels])
            channels.join(everything[0], everything)
            blends.append(everything[0].reshape((1,) * (len(shape) - 1)))
    return blends


def _fits(shape, full):
    return len(shape) == len(full) and all(
        one in (1, other) for one, other in zip(shape, full, strict=True)
    )


def new_labels(channels, shape, axis):
    """New channels along one axis of a tensor; its shape includes the batch axis."""
    shape = shape[1:]
    size = shape[axis] if shape else None
    return along(channels.new(size or 1), len(shape), axis)


def along(numbers, rank, axis):
    """Channel numbers, an array (n,), as labels of that rank along one axis."""
    shape = [1] * rank
    if rank:
        shape[axis] = len(numbers)
    return numbers.reshape(shape)


def _of_dimension(*names):
    return [getattr(layers, f"{name}{rank}D") for name in names for rank in (1, 2, 3)]


_HANDLERS = {
    **dict.fromkeys(
        [layers.Identity, layers.Dropout, *_of_dimension("SpatialDropout")], _same
    ),
    **dict.fromkeys(
        _of_dimension(
            "MaxPooling", "AveragePooling", "ZeroPadding", "Cropping", "UpSampling"
        ),
        _window,
    ),
    **dict.fromkeys(
        _of_dimension("GlobalMaxPooling", "GlobalAveragePooling"), _global_pooling
    ),
    **dict.fromkeys(
        [
            layers.Add,
            layers.Subtract,
            layers.Average,
            layers.Maximum,
            layers.Minimum,
        ],
        _merge,
    ),
    layers.Concatenate: _concatenate,
    layers.Flatten: _flatten_layer,
    layers.Reshape: _reshape,
    layers.Permute: _permute,
}
