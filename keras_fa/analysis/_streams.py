"""The law of sums: what LayerNorm does to all that it alone takes in.

LayerNorm takes the mean away, so the errors that it sends back sum to zero over its
axis, at each place and for each example. If nothing else takes a signal in, and on the
way to the LayerNorms are only sums and constant factors, then every step of a kernel
that makes the signal sums to zero over its outputs, for each of its rows and for the
bias. That is exact at any step size, and under any rule.
"""

import keras
import numpy as np
from keras import layers

from keras_fa import _keras
from keras_fa.analysis import _ends, _graph
from keras_fa.analysis._calls import Input, is_float

_LINEAR_KINDS = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.EinsumDense,
    layers.Embedding,
    layers.ReversibleEmbedding,
)


def sums(walk):
    """The laws of sums.

    Args:
        walk: A `Walk`.

    Returns:
        List of (producing, consuming, units, size): see `_groups._Found`.
    """
    if walk.reasons:
        return []
    norms = _norms_alone(walk)
    made = {}
    for call in walk.calls:
        if len(call.outputs) == 1:
            made.setdefault(id(call.operation), []).append(call)
    found = []
    for index, end in enumerate(walk.ends):
        calls = made.get(id(end.layer), [])
        reached = [norms.get(call.outputs[0]) for call in calls]
        if not calls or not all(reached) or not _makes_sums(walk, end, calls):
            continue
        consuming = sorted({index for one in reached for index in one})
        units = np.full(len(walk.channels.all()), -1)
        units[end.columns] = 0
        size = sum(int(np.prod(v.shape)) // len(columns) for v, _, columns in end.parts)
        found.append(([(index, 1, units)], consuming, units, size))
    return found


def _makes_sums(walk, end, calls):
    kind = _ends.kind_of(end.layer)
    positions = type(end.layer).__name__ == "PositionEmbedding"
    if not end.known or not end.parts or not (kind in _LINEAR_KINDS or positions):
        return False
    activation = getattr(end.layer, "activation", None)
    if activation not in (None, keras.activations.linear):
        return False
    if _graph.channel_axis(end.layer) != -1:
        return False
    if any(call.output_shapes[0][-1] != len(end.columns) for call in calls):
        return False
    # A part with other channels than these, or a group of its own, has other sums.
    if any(len(columns) != view.outputs for _, view, columns in end.parts):
        return False
    return not walk.reasons_of(end)


def _norms_alone(walk):
    """Tensors that LayerNorms alone take in: `{key: ends of those, a set}`."""
    index_of = {id(end.layer): i for i, end in enumerate(walk.ends) if end.normalizes}
    found = dict.fromkeys(walk.output_keys, frozenset())
    for call in reversed(walk.calls):
        if not call.inputs or walk.sends_nothing_back(call):
            continue
        takes = frozenset()
        if _takes_the_mean(call):
            takes = frozenset({index_of[id(call.operation)]})
        elif _is_linear(call):
            onward = [found.get(key, frozenset()) for key in call.outputs]
            takes = frozenset().union(*onward) if all(onward) else takes
        for key, tensor in zip(call.inputs, call.taken, strict=True):
            if is_float(tensor):
                known = found.get(key, takes)
                # What one consumer spoils, no other mends.
                found[key] = known | takes if known and takes else frozenset()
    return found


def _takes_the_mean(call):
    layer = call.operation
    if _ends.kind_of(layer) is not layers.LayerNormalization or not call.plain:
        return False
    if "call" in vars(layer) or layer.rms_scaling or layer.activity_regularizer:
        return False
    last = len(call.input_shapes[0]) - 1
    return np.atleast_1d(layer.axis).tolist() in ([-1], [last])


def _is_linear(call):
    """Whether errors that sum to zero over the last axis do so before a call too."""
    operation, name = call.operation, type(call.operation).__name__
    if getattr(operation, "activity_regularizer", None) is not None:
        return False
    widths = {shape[-1] for shape in (*call.input_shapes, *call.output_shapes)}
    if len(widths) != 1:
        return False
    if _keras.is_own_operation(operation):
        constants = [x for x in call.operands() if not isinstance(x, Input)]
        if name in ("Multiply", "Divide", "TrueDivide"):
            scalar = len(constants) == 1 and np.size(constants[0]) == 1
            return scalar and not isinstance(constants[0], keras.Variable)
        return name in ("Add", "Subtract", "Identity", "Cast")
    if "call" in vars(operation):
        return False
    kind = type(operation)
    if kind is layers.Dropout:
        return not operation.rate
    if kind in (layers.Rescaling, layers.Concatenate):
        scale = getattr(operation, "scale", 1)
        axis = getattr(operation, "axis", 1) % len(call.input_shapes[0])
        return np.ndim(scale) == 0 and axis != len(call.input_shapes[0]) - 1
    if kind is layers.Reshape:
        # Of equal widths, each place stays one.
        return None not in call.output_shapes[0][1:]
    if kind is layers.GlobalAveragePooling1D:
        return operation.data_format == "channels_last"
    return kind in (layers.Add, layers.Subtract, layers.Average, layers.Identity)
