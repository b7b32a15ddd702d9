"""The Keras graph seen as channels: which units of which layers carry one signal.

A channel here is one output unit of a dense layer, convolution or BatchNorm. The walk
gives every channel a number and follows the numbers through the graph. An operation
that is positively homogeneous, `f(c x) = c f(x)` for c > 0, hands on the numbers it
got and joins those that it mixes. Any other operation hands them on as well, where it
can, and marks them with the reason why the conservation law does not survive it.

A product of two signals is homogeneous in each: what flows through it is what flows
through either factor, not their sum. It has channels of its own, and is a *gate*.
"""

import dataclasses

import keras
import numpy as np
from keras import layers

from keras_fa import _keras, autodiff
from keras_fa.analysis import _contractions
from keras_fa.analysis._calls import Input, is_float

# In the place of a size that is not known.
_UNKNOWN = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """A product: each of its entries has one channel of each factor and one of its own.

    Attributes:
        factors: Integer array (factors, entries).
        product: Integer array (entries,).
        path: Of the operation.
    """

    factors: np.ndarray
    product: np.ndarray
    path: str


class Channels:
    """The numbers of the channels, which of them are joined, and the marks on them.

    Labels, below, are integer arrays that broadcast against a tensor's shape without
    its batch axis, and say for each of its entries to which channel it belongs.

    Attributes:
        marks: List of (channels, reason why there is no law for them).
        gates: List of `Gate`, in the order of the graph.
        scores: List of `_contractions.Scores`.
        bent: List of channels that something else than a change of places or one
            constant factor for all stands behind.
    """

    def __init__(self):
        self._count = 0
        self._edges = []
        self.marks, self.gates, self.scores, self.bent = [], [], [], []

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

    def bend(self, labels):
        """Notes that channels do not stay as they are: see `bent`."""
        self.bent.append(np.unique(labels))
        return labels

    def gate(self, factors, path):
        """Labels of the product of tensors, given by their labels."""
        factors = np.broadcast_arrays(*factors)
        for factor in factors:
            self.bend(factor)
        entries, inverse = np.unique(
            np.stack([factor.ravel() for factor in factors]),
            axis=1,
            return_inverse=True,
        )
        product = self.new(entries.shape[1])
        self.gates.append(Gate(entries, product, path))
        return product[inverse].reshape(factors[0].shape)

    def merge_axes(self, labels, axes):
        """Joins the channels along axes, of which the labels then have one entry."""
        for axis in axes:
            if labels.shape[axis] > 1:
                kept = labels.take([0], axis)
                self.join(kept, labels)
                labels = kept
        return labels

    def components(self, further=()):
        """For each channel the smallest number joined with it, an array.

        Args:
            further: List of arrays (pairs, 2) of channels to join besides.
        """
        parents = list(range(self._count))

        def root(channel):
            while parents[channel] != channel:
                parents[channel] = parents[parents[channel]]
                channel = parents[channel]
            return channel

        for edges in (*self._edges, *further):
            for one, other in set(map(tuple, edges.tolist())):
                one, other = root(one), root(other)
                parents[max(one, other)] = min(one, other)
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
        if isinstance(result, str):
            reason = result
        elif result is not None:
            return result if isinstance(result, list) else [result]
        else:
            reason = f"the channels cannot be followed through '{call.path}'"
    carried = [
        label
        for label, tensor in zip(labels, call.taken, strict=True)
        if is_float(tensor)
    ]
    for label in carried:
        channels.mark(label, reason)
    return _blend(channels, call, carried or labels)


def is_known(call):
    """Whether an operation without weights is known to be positively homogeneous."""
    return _handler(call) is not None


def _unknown_kind(call):
    reason = activation_reason(call.operation, call.path)
    if reason is None or type(call.operation) in _HANDLERS:
        kind = type(call.operation).__name__
        reason = f"'{call.path}' ({kind}) is called with more than its inputs"
    if call.untraced:
        reason += f" ({call.untraced})"
    return reason


def _handler(call):
    """What hands the labels on through a positively homogeneous operation, or None."""
    operation = call.operation
    if "call" in vars(operation):
        return None
    # Functions of keras.ops, such as x + y, whose classes are not public. What else
    # they take besides tensors of the graph is constant.
    if _keras.is_own_operation(operation):
        return _OPERATIONS.get(type(operation).__name__)
    if not call.plain:
        return None
    if type(operation) in _HANDLERS:
        return _HANDLERS[type(operation)]
    return _bent if activation_reason(operation, call.path) is None else None


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


def _bent(channels, call, labels):
    """Entry by entry: a ReLU, a mask of dropout."""
    return channels.bend(labels[0])


def _rescaling(channels, call, labels):
    if np.any(call.operation.offset):
        return f"'{call.path}' (Rescaling) has an offset"
    linear = np.ndim(call.operation.scale) == 0
    return labels[0] if linear else channels.bend(labels[0])


def _merge(channels, call, labels):
    """A sum, difference, mean, maximum or minimum of tensors."""
    if len({label.ndim for label in labels}) > 1:
        return None
    constants = [x for x in call.operands() if not isinstance(x, Input)]
    if not call.plain and any(map(_is_nonzero, constants)):
        return f"'{call.path}' ({type(call.operation).__name__}) has a constant term"
    for label in labels:
        channels.bend(label)
    channels.join(*labels)
    return np.broadcast_arrays(*labels)[0]


def _is_nonzero(constant):
    return constant is not None and bool(np.any(autodiff.array(constant)))


def _product(channels, call, labels):
    """A product of tensors, or of one and a constant."""
    first, second = call.operands()[:2] if not call.plain else (Input(0), Input(1))
    if isinstance(first, Input) and isinstance(second, Input):
        if len({label.ndim for label in labels}) > 1:
            return None
        return channels.gate([labels[first.index], labels[second.index]], call.path)
    return _scaled(channels, call, labels)


def _products(channels, call, labels):
    """The layer that multiplies: any number of tensors."""
    if len({label.ndim for label in labels}) > 1:
        return None
    return channels.gate(labels, call.path)


def _quotient(channels, call, labels):
    """A tensor divided by a constant."""
    if isinstance(call.operands()[1], (Input, keras.Variable)):
        return None
    return _scaled(channels, call, labels)


def _scaled(channels, call, labels):
    constant = next(x for x in call.operands() if not isinstance(x, Input))
    if isinstance(constant, keras.Variable):
        return None
    if np.size(constant) > 1:
        if np.ndim(constant) > labels[0].ndim + 1:
            return None
        channels.bend(labels[0])
    return labels[0]


def _chosen(channels, call, labels):
    """`where`: a tensor under a mask, and 0 or another tensor elsewhere."""
    _, *branches = call.operands()
    followed = [labels[x.index] for x in branches if isinstance(x, Input)]
    if len({label.ndim for label in followed}) != 1 or any(
        _is_nonzero(x) for x in branches if not isinstance(x, Input)
    ):
        return None
    for label in followed:
        channels.bend(label)
    channels.join(*followed)
    return np.broadcast_arrays(*followed)[0]


def _moved(channels, call, labels):
    """Whatever puts entries into other places: done to the labels themselves."""
    if not all(map(is_float, call.taken)):
        # Which entry goes where is a matter of the data.
        return None
    index = {id(tensor): i for i, tensor in enumerate(call.taken)}

    def placed(leaf):
        if not isinstance(leaf, keras.KerasTensor):
            return _constant(channels, leaf)
        shape = [_UNKNOWN if size is None else size for size in leaf.shape]
        return np.array(np.broadcast_to(labels[index[id(leaf)]], shape))

    try:
        args, kwargs = keras.tree.map_structure(placed, call.arguments)
        moved = keras.tree.flatten(call.operation.call(*args, **kwargs))
    except Exception:
        # It needs the sizes that are not known.
        return None
    return _each(map(_without_batch, map(np.asarray, moved)), call)


def _constant(channels, leaf):
    """Labels in the place of numbers that are put beside a tensor."""
    if not hasattr(leaf, "shape") or not is_float(leaf):
        return leaf
    label = channels.new(1)
    if isinstance(leaf, keras.Variable) or _is_nonzero(leaf):
        channels.mark(label, "a constant is part of the stream")
    return np.broadcast_to(label, leaf.shape)


def _without_batch(moved):
    if not moved.size or not moved.ndim or np.any(moved != moved[:1]):
        return None
    return _shrunk(moved[0])


def _each(moved, call):
    """Labels for each output, None where one does not fit its shape."""
    moved = list(moved)
    for label, shape in zip(moved, call.output_shapes, strict=True):
        if label is None or not _fits(
            label.shape, [1 if size is None else size for size in shape[1:]]
        ):
            return None
    return moved


def _reduced(channels, call, labels):
    """A sum, mean, maximum or minimum over axes."""
    operation, rank = call.operation, labels[0].ndim + 1
    axes = operation.axis
    axes = range(rank) if axes is None else np.atleast_1d(axes) % rank
    if 0 in axes or getattr(operation, "initial", None) is not None:
        return None
    inner = [int(axis) - 1 for axis in axes]
    label = channels.merge_axes(channels.bend(labels[0]), inner)
    return label if operation.keepdims else np.squeeze(label, tuple(inner))


def _padded(channels, call, labels):
    operation = call.operation
    constants = [x for x in call.operands() if not isinstance(x, Input)]
    if operation.mode != "constant" or any(map(_is_nonzero, constants)):
        return None
    return channels.merge_axes(
        channels.bend(labels[0]),
        [axis - 1 for axis, pads in enumerate(operation.pad_width) if any(pads)],
    )


def _mixed(channels, call, labels):
    """A fixed linear map of many entries: what is left is the sum over all."""
    everything = np.concatenate([channels.bend(label).ravel() for label in labels])
    channels.join(everything[0], everything)
    return [
        everything[0].reshape((1,) * (len(shape) - 1)) for shape in call.output_shapes
    ]


def _zeros(channels, call, labels):
    """Zeros take no part in what they are added to."""
    return [new_labels(channels, shape, -1) for shape in call.output_shapes]


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
        channels.bend(labels[0]),
        [other for other in range(labels[0].ndim) if other != axis],
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
    return _shrunk(np.broadcast_to(label, old_shape).reshape(new_shape))


def _shrunk(label):
    """Labels with one entry along the axes that they do not differ along."""
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
    layers.Identity: _same,
    layers.Rescaling: _rescaling,
    **dict.fromkeys(
        [
            layers.Dropout,
            layers.GaussianDropout,
            layers.Masking,
            *_of_dimension("SpatialDropout"),
        ],
        _bent,
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
    layers.Multiply: _products,
    layers.Concatenate: _concatenate,
    layers.Flatten: _flatten_layer,
    layers.Reshape: _reshape,
    layers.Permute: _permute,
}

_OPERATIONS = {
    **dict.fromkeys(["Add", "Subtract", "Maximum", "Minimum"], _merge),
    **dict.fromkeys(["Relu", "LeakyRelu", "ReLU", "LeakyReLU"], _bent),
    **dict.fromkeys(["Identity", "Negative", "Cast"], _same),
    **dict.fromkeys(["Sum", "Mean", "Max", "Min"], _reduced),
    **dict.fromkeys(
        [
            "BroadcastTo",
            "Concatenate",
            "ExpandDims",
            "Flip",
            "GetItem",
            "Moveaxis",
            "Ravel",
            "Repeat",
            "Reshape",
            "Roll",
            "Split",
            "Squeeze",
            "Stack",
            "Swapaxes",
            "Take",
            "Tile",
            "Transpose",
        ],
        _moved,
    ),
    **dict.fromkeys(["Divide", "TrueDivide"], _quotient),
    "DotProductAttention": _contractions.attended,
    "Einsum": _contractions.einsum,
    **dict.fromkeys(["FFT", "FFT2"], _mixed),
    "Matmul": _contractions.matmul,
    "Multiply": _product,
    "Pad": _padded,
    "Where": _chosen,
    "ZerosLike": _zeros,
}
