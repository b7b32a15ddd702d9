"""The layers with weights that the laws know: what they make, and of what.

Each has a function of the walk and a call, which notes the layer's kernels and gains
(`Walk.note`) and returns the labels of its outputs.
"""

import dataclasses

import keras
import numpy as np
from keras import layers

from keras_fa import _keras
from keras_fa.analysis import _graph, _views
from keras_fa.layers import COUNTERPARTS, BatchNormalization

_STOCK = {feedback: stock for stock, feedback in COUNTERPARTS.items()}


@dataclasses.dataclass(eq=False)
class End:
    """A map or a gain of a layer, with the numbers of its output and input channels.

    Attributes:
        layer: The Keras layer.
        name: What to call it beside others: the layer's name, with that of the kernel
            where the layer has several.
        path: Name or that after those of the models and layers that it stands in.
        columns: Numbers of the output channels.
        rows: Numbers of the input channels.
        parts: What it makes the columns with: tuple of (variable, `View`, columns).
        kernel: What it makes of the rows, or None.
        view: `View` of the kernel.
        source: The layer that has the rule of that kernel.
        index: Which of its maps it is.
        known: Whether it has a law.
        normalizes: Whether it does not see the scale of its input.
        tap: Of direct feedback, which tap.
    """

    layer: object
    name: str
    path: str
    columns: np.ndarray
    rows: np.ndarray
    parts: tuple = ()
    kernel: object = None
    view: object = None
    source: object = None
    index: int = 0
    known: bool = True
    normalizes: bool = False
    tap: int | None = None

    @property
    def variables(self):
        """All variables that its law is made of."""
        made = [variable for variable, _, _ in self.parts]
        return made if self.kernel is None else [*made, self.kernel]


def _end(call, columns, rows, parts=(), kernel=None, view=None, **further):
    """The `End` of a layer that has one map or gain alone."""
    layer = call.operation
    source = None if kernel is None else layer
    return End(
        layer,
        layer.name,
        call.path,
        columns,
        rows,
        parts,
        kernel,
        view,
        source,
        **further,
    )


def kind_of(layer):
    """The stock class of a layer, stock itself or with a rule; exact types alone.

    A subclass may compute anything, and is its own kind.
    """
    kind = getattr(layer, "stock_class", type(layer))
    return _STOCK.get(kind, kind)


def handler(layer):
    """The function for a layer, None if there is none for it as it is."""
    if "call" in vars(layer):
        return None
    found = _HANDLERS.get(kind_of(layer)) or _foreign(layer)
    if getattr(layer, "lora_enabled", False) or (
        getattr(layer, "quantization_mode", None) is not None
    ):
        return None
    return found


def takes_no_values(layer):
    """Whether a layer takes of its input the shape or the indices alone."""
    return kind_of(layer) is layers.Embedding or _foreign(layer) is _positions


def wraps(layer):
    """Whether a layer is followed as those inside it."""
    return kind_of(layer) in (layers.TimeDistributed, layers.Bidirectional)


def _only(labels, axes):
    """The axes of labels that are not those."""
    return [axis for axis in range(labels.ndim) if axis not in axes]


def _activated(walk, call, labels):
    reason = _graph.activation_reason(call.operation.activation, call.path)
    if reason is not None:
        walk.channels.mark(labels, reason)
    if call.operation.activation not in (None, keras.activations.linear):
        walk.channels.bend(labels)
    return [labels]


def _bias(layer, columns):
    if layer.bias is None:
        return ()
    return ((layer.bias, _views.of_vector(layer.bias.shape), columns),)


def _channels_of(walk, call, labels):
    """Numbers of the input channels of a layer that has one axis of them."""
    axis = _graph.channel_axis(call.operation) % labels.ndim
    merged = walk.channels.merge_axes(labels, _only(labels, [axis]))
    return np.broadcast_to(merged.ravel(), call.input_shapes[0][1:][axis])


def _along_channels(call, columns):
    axis = _graph.channel_axis(call.operation)
    return _graph.along(columns, len(call.output_shapes[0]) - 1, axis)


def _linear(view_of):
    """Dense layers and convolutions, by a function that views their kernel."""

    def step(walk, call, labels):
        layer = call.operation
        rows = _channels_of(walk, call, labels[0])
        view = view_of(layer, len(rows))
        columns = walk.columns((id(layer), 0), view.columns)
        parts = ((layer.kernel, view, columns), *_bias(layer, columns))
        walk.note(_end(call, columns, rows, parts, layer.kernel, view))
        return _activated(walk, call, _along_channels(call, columns))

    return step


def _separable(walk, call, labels):
    layer = call.operation
    rows = _channels_of(walk, call, labels[0])
    kernels = layer.depthwise_kernel, layer.pointwise_kernel
    views = _views.of_depthwise(kernels[0].shape), _views.of_matrix(kernels[1].shape)
    for index, (kernel, view) in enumerate(zip(kernels, views, strict=True)):
        columns = walk.columns((id(layer), index), view.columns)
        bias = _bias(layer, columns) if index else ()
        walk.note(_of_several(call, index, kernel, view, rows, columns, bias))
        rows = columns
    return _activated(walk, call, _along_channels(call, columns))


def _of_several(call, index, kernel, view, rows, columns, further, source=None):
    """The `End` of one of a layer's kernels."""
    layer, suffix = call.operation, f".{kernel.name}"
    return End(
        layer,
        layer.name + suffix,
        call.path + suffix,
        columns,
        rows,
        ((kernel, view, columns), *further),
        kernel,
        view,
        source or layer,
        index,
    )


def _einsum(walk, call, labels):
    layer, (label,) = call.operation, labels
    source, letters, out = _letters(layer, label.ndim + 1)
    if letters is None or source[0] in letters or out[:1] != source[:1]:
        return None
    made = [x for x in letters if x in out and x not in source]
    kept = [x for x in letters if x in out and x in source]
    summed = [x for x in letters if x not in out]
    if not set(summed) <= set(source):
        return None
    axes = [[letters.index(x) for x in xs] for xs in (summed, kept, made)]
    view = _views.of_axes(layer.kernel.shape, *axes)
    sizes = dict(zip(letters, layer.kernel.shape, strict=True))
    inputs = [source.index(x) - 1 for x in (*kept, *summed)]
    rows = walk.channels.merge_axes(label, _only(label, inputs))
    rows = rows.transpose([*inputs, *_only(label, inputs)])
    rows = rows.reshape(rows.shape[: len(inputs)])
    rows = np.broadcast_to(rows, [sizes[x] for x in (*kept, *summed)]).ravel()
    columns = walk.columns((id(layer), 0), view.columns)
    shaped = columns.reshape([sizes[x] for x in (*kept, *made)])
    parts = [(layer.kernel, view, columns)]
    if layer.bias is not None:
        parts.append(_einsum_bias(walk, layer, out, (*kept, *made), shaped))
    walk.note(_end(call, columns, rows, tuple(parts), layer.kernel, view))
    order = [(*kept, *made).index(x) for x in out if x in sizes and x in (*kept, *made)]
    made_labels = shaped.transpose(order)
    shape = [sizes[x] if x in (*kept, *made) else 1 for x in out[1:]]
    return _activated(walk, call, made_labels.reshape(shape))


def _letters(layer, rank):
    """The axes of input, kernel and output, one letter each; None for the kernel."""
    inputs, out = layer.equation.replace(" ", "").split("->")
    source, letters = inputs.split(",")
    if "..." in layer.equation:
        free = "0123456789"[: rank - len(source.replace("...", ""))]
        source, out = source.replace("...", free), out.replace("...", free)
    ok = len(source) == rank and all(
        len({*x}) == len(x) for x in (source, letters, out)
    )
    return source, letters if ok else None, out


def _einsum_bias(walk, layer, out, channels, columns):
    """The bias as a part: it may lack axes of the channels, and have further ones."""
    names = [x for x in out if x in layer.bias_axes]
    # Axes of size one stand for those that it lacks.
    first = out.index(names[0])
    of_axis = out[first : first + len(layer.bias.shape)]
    shared = [i for i, x in enumerate(channels) if x not in names]
    kept = walk.channels.merge_axes(columns, shared)
    own = [x for x in channels if x in names]
    kept = kept.reshape([n for i, n in enumerate(kept.shape) if i not in shared])
    order = [of_axis.index(x) for x in own]
    places = [axis for axis in range(len(of_axis)) if axis not in order]
    view = _views.of_places(layer.bias.shape, [*places, *order], kept.size)
    return layer.bias, view, kept.ravel()


def _embedding(walk, call, labels):
    """A table of vectors: nothing flows to its indices."""
    layer = call.operation
    return [_looked_up(walk, call, layer.embeddings)]


def _looked_up(walk, call, table):
    layer, (count, size) = call.operation, table.shape
    columns = walk.columns((id(layer), "table"), size)
    view = _views.View(
        tuple(table.shape), (count, 1, 1, size), (0, 1, 2, 3), 1, 1, size
    )
    walk.note(_end(call, columns, walk.channels.new(0), ((table, view, columns),)))
    return _graph.along(columns, len(call.output_shapes[0]) - 1, -1)


def _reversible(walk, call, labels):
    layer = call.operation
    if not call.argument("reverse"):
        return [_looked_up(walk, call, layer.embeddings)]
    kernel = layer.embeddings if layer.tie_weights else layer.reverse_embeddings
    view_of = _views.of_transposed if layer.tie_weights else _views.of_matrix
    merged = walk.channels.merge_axes(labels[0], range(labels[0].ndim - 1))
    rows = np.broadcast_to(merged.ravel(), call.input_shapes[0][-1])
    made = walk.columns((id(layer), 0), kernel.shape[0 if layer.tie_weights else -1])
    view = view_of(kernel.shape)
    walk.note(_end(call, walk.channels.new(0), rows, (), kernel, view))
    walk.channels.mark(made, f"'{call.path}' makes logits")
    if layer.tie_weights:
        walk.tie(kernel, call.path)
    return [_graph.along(made, len(call.output_shapes[0]) - 1, -1)]


def _normalization(axes_of, block_of, gain_names=("gamma", "beta"), shift=0.0):
    """Layers that do not see the scale of what they normalise.

    Args:
        axes_of: Function of (layer, rank) to the axes of the gain, the batch's being 0.
        block_of: Function of (layer, channels) to how many consecutive ones of them
            share a norm; None for all, and over all axes of the gain.
        gain_names: Attributes of gain and shift.
        shift: What the gain counts from.
    """

    def step(walk, call, labels):
        layer, (label,) = call.operation, labels
        rank = len(call.input_shapes[0])
        axes = sorted(axis % rank - 1 for axis in axes_of(layer, rank))
        if min(axes) < 0:
            return None
        sizes = [call.input_shapes[0][1:][axis] for axis in axes]
        rows = walk.channels.merge_axes(label, _only(label, axes))
        rows = np.broadcast_to(
            rows.transpose([*axes, *_only(label, axes)]).reshape(
                [rows.shape[axis] for axis in axes]
            ),
            sizes,
        ).ravel()
        block = block_of(layer, rows.size)
        blocks = rows.reshape(-1, block)
        walk.channels.join(blocks[:, :1], blocks)
        columns = walk.columns((id(layer), 0), rows.size)
        gains = [getattr(layer, name, None) for name in gain_names]
        parts = [
            (v, _views.of_vector(v.shape, 0.0 if i else shift), columns)
            for i, v in enumerate(gains)
            if v is not None
        ]
        walk.note(_end(call, columns, rows, tuple(parts), normalizes=True))
        if not gains or gains[0] is None:
            # Its outputs are then not scaled by anything that learns.
            walk.channels.mark(columns, f"'{call.path}' has no gamma (scale=False)")
        if isinstance(layer, layers.BatchNormalization) and not layer.trainable:
            # By fixed statistics: an affine map, not scale-invariant.
            walk.channels.mark(rows, f"'{call.path}' is frozen (trainable=False)")
        shape = [1] * (rank - 1)
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        return [columns.reshape(shape)]

    return step


def _last(layer, rank):
    return [rank - 1]


def _its_axes(layer, rank):
    return np.atleast_1d(layer.axis).tolist()


def _whole(layer, channels):
    return channels


def _each(layer, channels):
    return 1


def _of_groups(layer, channels):
    return channels // (channels if layer.groups == -1 else layer.groups)


def _prelu(walk, call, labels):
    """It is homogeneous whatever its slopes are."""
    return [walk.channels.bend(labels[0])]


def _recurrent(walk, call, labels):
    """A loop over a cell: its kernel takes the inputs."""
    layer, cell = call.operation, call.operation.cell
    kind = kind_of(cell)
    if kind not in _CELLS or "call" in vars(cell):
        return None
    merged = walk.channels.merge_axes(labels[0], range(labels[0].ndim - 1))
    rows = np.broadcast_to(merged.ravel(), call.input_shapes[0][-1])
    view = _views.of_matrix(cell.kernel.shape)
    columns = walk.columns((id(layer), 0), cell.units)
    consumer = End(
        layer, layer.name, call.path, columns, rows, (), cell.kernel, view, cell
    )
    if kind is layers.SimpleRNNCell:
        recurrent = cell.recurrent_kernel
        square = _views.of_matrix(recurrent.shape)
        consumer.parts = (
            (cell.kernel, view, columns),
            (recurrent, square, columns),
            *_bias(cell, columns),
        )
        again = _of_several(
            call, 1, recurrent, square, columns, walk.channels.new(0), (), cell
        )
        again.parts = ()
        walk.note(consumer)
        walk.note(again)
        reason = _graph.activation_reason(cell.activation, call.path)
        if layer.stateful:
            reason = f"'{call.path}' keeps its state between batches (stateful=True)"
    else:
        walk.note(consumer)
        reason = f"'{call.path}' ({kind_of(layer).__name__}) has gates"
    if reason is not None:
        walk.channels.mark(columns, reason)
    return [
        _graph.along(walk.channels.bend(columns), len(shape) - 1, -1)
        for shape in call.output_shapes
    ]


_CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)


def _time_distributed(walk, call, labels):
    """One layer at each place of the first axis."""
    layer = call.operation.layer
    merged = walk.channels.merge_axes(labels[0], [0])
    taken, made = (
        tuple(keras.KerasTensor((t.shape[0], *t.shape[2:]), t.dtype) for t in tensors)
        for tensors in (call.taken, call.made)
    )
    inner = dataclasses.replace(
        call,
        operation=layer,
        path=f"{call.path}/{layer.name}",
        taken=taken,
        made=made,
        arguments=(taken, {}),
    )
    outputs = walk.within(inner, [merged[0]])
    return None if outputs is None else [label[None] for label in outputs]


def _bidirectional(walk, call, labels):
    """Two loops over the same inputs, and what joins their outputs."""
    layer = call.operation
    if layer.return_state or layer.merge_mode is None:
        return None
    both = [layer.forward_layer, layer.backward_layer]
    if not all(kind_of(getattr(inner, "cell", None)) in _CELLS for inner in both):
        return None
    made = []
    for inner in both:
        shape = (*call.output_shapes[0][:-1], inner.cell.units)
        outputs = walk.within(
            dataclasses.replace(
                call,
                operation=inner,
                path=f"{call.path}/{inner.name}",
                made=(keras.KerasTensor(shape, call.made[0].dtype),),
            ),
            labels,
        )
        if outputs is None:
            return None
        made += outputs
    if layer.merge_mode == "concat":
        return [np.concatenate(made, axis=-1)]
    if layer.merge_mode == "mul":
        return [walk.channels.gate(made, call.path)]
    walk.channels.join(*made)
    return [made[0]]


def parameter(walk, call, labels):
    """A sum or product of a tensor and a variable, or None if a call is none.

    The gain of a scaled branch, for one: a diagonal layer.
    """
    name = type(call.operation).__name__
    if not _keras.is_own_operation(call.operation) or name not in ("Add", "Multiply"):
        return None
    operands = call.operands()
    variables = [x for x in operands if isinstance(x, keras.Variable)]
    if len(operands) != 2 or len(variables) != 1 or len(call.taken) != 1:
        return None
    (variable,) = variables
    rank, shape = labels[0].ndim, tuple(variable.shape)
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    if len(shape) > rank or not _broadcasts(shape, call.output_shapes[0][1:]):
        return None
    layer = call.holder or call.operation
    path = call.path.rpartition("/")[0] or call.path
    columns = walk.columns((id(variable), 0), int(np.prod(shape)))
    view = _views.of_vector(variable.shape)
    nothing = walk.channels.new(0)
    walk.note(
        End(
            layer,
            layer.name,
            path,
            columns,
            nothing,
            ((variable, view, columns),),
        )
    )
    own = columns.reshape((1,) * (rank - len(shape)) + shape)
    if name == "Multiply":
        return [walk.channels.gate([labels[0], own], call.path)]
    walk.channels.join(labels[0], own)
    for label in (labels[0], own):
        walk.channels.bend(label)
    return [np.broadcast_arrays(labels[0], own)[0]]


def _broadcasts(shape, full):
    tail = full[len(full) - len(shape) :]
    return all(one in (1, other) for one, other in zip(shape, tail, strict=True))


# Norms of keras-hub, which has no public place for their classes: names of the gain,
# and what it counts from.
_HUB_NORMS = {
    ("gemma", "RMSNormalization"): ("scale", 1.0),
    ("llama", "LlamaLayerNorm"): ("scale", 0.0),
    ("mistral", "MistralLayerNormalization"): ("scale", 0.0),
    ("phi3", "Phi3LayerNorm"): ("scale", 0.0),
    ("t5", "T5LayerNorm"): ("weight", 0.0),
}


def _foreign(layer):
    """The function for a layer of keras-hub that computes with its own variables."""
    place = type(layer).__module__.split(".")
    if place[0] != "keras_hub" or len(place) < 2:
        return None
    found = _HUB_NORMS.get((place[-2], type(layer).__name__))
    if found is not None:
        name, shift = found
        return _normalization(_last, _whole, (name,), shift)
    if type(layer).__name__ == "PositionEmbedding":
        return _positions
    return None


def _positions(walk, call, labels):
    """A vector for each place; of its input it takes the shape alone."""
    return [_looked_up(walk, call, call.operation.position_embeddings)]


def _grouped(layer, channels):
    shape = layer.kernel.shape
    return _views.of_matrix(shape, channels // shape[-2])


def _dense(layer, channels):
    return _views.of_matrix(layer.kernel.shape)


def _of_dimension(name, ranks=(1, 2, 3)):
    return [getattr(layers, name.format(rank)) for rank in ranks]


_HANDLERS = {
    layers.Dense: _linear(_dense),
    **dict.fromkeys(_of_dimension("Conv{}D"), _linear(_grouped)),
    **dict.fromkeys(
        _of_dimension("DepthwiseConv{}D", (1, 2)),
        _linear(lambda layer, _: _views.of_depthwise(layer.kernel.shape)),
    ),
    **dict.fromkeys(
        _of_dimension("Conv{}DTranspose"),
        _linear(lambda layer, _: _views.of_transposed(layer.kernel.shape)),
    ),
    **dict.fromkeys(_of_dimension("SeparableConv{}D", (1, 2)), _separable),
    layers.EinsumDense: _einsum,
    layers.Embedding: _embedding,
    layers.ReversibleEmbedding: _reversible,
    **dict.fromkeys(
        [layers.BatchNormalization, BatchNormalization],
        _normalization(_its_axes, _each),
    ),
    layers.LayerNormalization: _normalization(_its_axes, _whole),
    layers.RMSNormalization: _normalization(_its_axes, _whole, ("scale",)),
    layers.GroupNormalization: _normalization(_its_axes, _of_groups),
    layers.UnitNormalization: _normalization(_its_axes, _whole, ()),
    layers.PReLU: _prelu,
    **dict.fromkeys(
        [layers.SimpleRNN, layers.LSTM, layers.GRU, layers.RNN], _recurrent
    ),
    layers.TimeDistributed: _time_distributed,
    layers.Bidirectional: _bidirectional,
}
