"""Conserved groups: which channels of a Keras graph share a conserved quantity.

The law itself, what is conserved and when, is told in `conservation`.
"""

import contextlib
import dataclasses
import inspect
import re

import keras
import numpy as np
from keras import layers

from keras_fa import _keras, rules
from keras_fa.analysis import _graph
from keras_fa.layers import (
    COUNTERPARTS,
    BatchNormalization,
    DirectFeedback,
    FeedbackDense,
    FeedbackMixin,
)

# The linear layers whose channels are followed. Exact types everywhere: a subclass may
# compute anything.
_LINEAR = {layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D}
_STOCK = {feedback: stock for stock, feedback in COUNTERPARTS.items()}
_NORMS = {layers.BatchNormalization, BatchNormalization}


@dataclasses.dataclass(frozen=True, eq=False)
class Producer:
    """A layer whose output channels belong to a group.

    Attributes:
        layer: The Keras layer.
        path: Its name, after those of the nested models that it stands in.
        variables: Kernel and bias, or gamma and beta, as far as it has them; channels
            along the last axis of each. Empty for a layer without a known law.
        units: Integer array (output channels,): the unit of the group that each output
            channel belongs to, -1 for the channels of other groups.
    """

    layer: object
    path: str
    variables: tuple
    units: np.ndarray

    def __repr__(self):
        return f"<Producer {self.path} ({np.sum(self.units >= 0)} channels)>"


@dataclasses.dataclass(frozen=True, eq=False)
class Consumer:
    """A layer whose input channels belong to a group.

    Attributes:
        layer: The Keras layer.
        path: Its name, after those of the nested models that it stands in.
        kernel: Its kernel W, `(..., input channels / groups, output channels)`; None
            for a BatchNorm, which adds nothing, and a layer without a known law. Of
            direct feedback what is trained on the channels and the signal: B_l, its
            ghost, or the output layer's W.
        units: Integer array (input channels,): the unit of the group that each input
            channel, and with it the kernel's row, belongs to; -1 for other groups.
        tap: Which tap of a `DirectFeedback` it is, None for any other layer.
    """

    layer: object
    path: str
    kernel: object
    units: np.ndarray
    tap: int | None = None

    def __repr__(self):
        return f"<Consumer {self.path} ({np.sum(self.units >= 0)} channels)>"

    def reading(self):
        """What the law and its ledger need of it now, four tensors or variables.

        Returns:
            (V, P, W, B). It adds `<V[j], P[j]>` to the potential of input channel j, or
            `1/2 |V[j]|^2` where P is None: see `FeedbackRule.potential`. W and B are
            its forward and backward kernels, B None where it is W. Under a rule without
            a law V and P are W and B, so that its drift can still be measured.
        """
        if self.tap is not None and not self.layer.rule.learned:
            feedback = self.layer.feedback(self.tap)
            return self.kernel, feedback, self.kernel, feedback
        if not isinstance(self.layer, FeedbackMixin):
            return self.kernel, None, self.kernel, None
        backward = self.layer.backward_kernel()
        if backward is self.kernel:
            backward = None
        part = self.layer.potential()
        # Of the same numbers under most rules, and then to be told by identity.
        value, factor = (self.kernel, backward) if part is None else part
        return value, factor, self.kernel, backward


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels that share producers and consumers, and the law for each, if any.

    Attributes:
        name: Name of the first producer in the order of the graph, made unique:
            nested models' names stand before it if two producers share it, and a
            number after it (".2") if two groups share the producer.
        kind: "potential", or "norm" where all consumers are BatchNorms: then the
            conserved quantity is the producers' half squared norm.
        producers: Tuple of `Producer`.
        consumers: Tuple of `Consumer`.
        units: Number of conserved quantities.
        reason: Why there is no law, or None where there is one.
    """

    name: str
    kind: str
    producers: tuple
    consumers: tuple
    units: int
    reason: str | None

    @property
    def conserved(self):
        """Whether there is a law."""
        return self.reason is None

    def __str__(self):
        # Paths only where names do not tell the layers apart.
        ends = {end.path: end.layer.name for end in self.producers + self.consumers}
        if len(set(ends.values())) < len(ends):
            ends = {path: path for path in ends}
        sides = [
            " + ".join(ends[end.path] for end in side)
            for side in (self.producers, self.consumers)
        ]
        line = f"{' -> '.join(filter(None, sides))} ({self.units} units"
        if self.kind == "norm":
            line += ", norm"
        return line + (")" if self.conserved else f"; no law: {self.reason})")

    def __repr__(self):
        return f"<{self}>"


def conserved_groups(model):
    """The groups of channels of a model, each with its law or the reason for none.

    Dense layers and Conv1D to Conv3D, stock ones (backpropagation) and this toolkit's,
    and BatchNorm are joined through ReLU, leaky ReLU, pooling, padding, cropping,
    upsampling, flatten, reshape, permute, dropout, concatenation, and through sums,
    means, maxima and minima of tensors. A layer that is called twice has one law for
    both calls together. Whatever else uses its variables ends the law: a wrapper, a
    layer that holds or reads them, a penalty, a loss or training step of the model's
    own. To see that, operations of unknown kinds are called on symbols once. The
    channels of the last layer, which no layer consumes, and the input's, which none
    produces, form no group.

    Args:
        model: A built Sequential or functional Keras model; nested ones are followed.

    Returns:
        List of `Group`, in the order of the graph. It describes the model as it is:
        call again after a change of `trainable`.

    Raises:
        ValueError: If the model has no graph.

    Example:
        >>> model = keras_fa.models.mlp((784,), 60, 10)
        >>> for group in keras_fa.analysis.conserved_groups(model):
        ...     print(group)
        dense_1 -> dense_2 (60 units)
    """
    return _groups(_Walk(model))


@dataclasses.dataclass(eq=False)
class _End:
    """A layer with weights, and the numbers of its output and its input channels."""

    layer: object
    path: str
    columns: np.ndarray
    rows: np.ndarray
    known: bool = True
    # Of a tap of direct feedback: its number, and what is trained on it.
    tap: int | None = None
    readout: object = None

    @property
    def kernel(self):
        """The kernel that a consumer's part of the law is made of, or None."""
        if self.tap is not None:
            return self.readout
        return self.layer.kernel if self.known and _is_map(self.layer) else None


class _Walk:
    """One walk along the graph: its ends, and the channels of the model's outputs."""

    def __init__(self, model):
        self.channels = _graph.Channels()
        self._ends = {}
        # Who uses each variable: `{id: {id of a layer or the like: what to call it}}`.
        self._uses = {}
        # Why there is no law at all.
        self._reasons = []
        calls, outputs = _graph.flatten(model)
        self._makers = {key: call for call in calls for key in call.outputs}
        labels = {}
        for call in calls:
            made = self._step(call, [labels[key] for key in call.inputs])
            labels.update(zip(call.outputs, made, strict=True))
            if getattr(call.operation, "activity_regularizer", None) is not None:
                for channels in made:
                    self.channels.mark(
                        channels, f"'{call.path}' has an activity regularizer"
                    )
        self.ends = list(self._ends.values())
        self._note_penalties(model)
        self._mark_second_uses()
        for reason in self._reasons:
            self.channels.mark(self.channels.all(), reason)
        self.outputs = np.concatenate([labels[key].ravel() for key in outputs])

    def _step(self, call, taken):
        """Labels of the outputs of a call, from those of its inputs."""
        layer = call.operation
        if not taken:
            return [self._source(shape) for shape in call.output_shapes]
        self._note_uses(call)
        first = self._ends.get(id(layer))
        followed = call.plain and (first is None or first.known)
        if followed and _is_linear(layer):
            axis = _graph.channel_axis(layer)
            labels = self._end(call, taken[0], axis)
            reason = _graph.activation_reason(layer.activation, call.path)
            if reason is not None:
                self.channels.mark(labels, reason)
            return [labels]
        if followed and _is_norm(layer) and len(taken) == 1:
            axis = layer.axis % len(call.input_shapes[0]) - 1
            return [self._end(call, taken[0], axis)]
        if type(layer) is DirectFeedback and call.plain:
            self._taps(call, taken)
            return taken[:1]
        if getattr(layer, "weights", None):
            return self._unknown_end(call, taken)
        return _graph.follow(self.channels, call, taken)

    def _note_uses(self, call):
        """Notes the variables of a layer, and what it reads besides."""
        operation = call.operation
        used = [*getattr(operation, "weights", ())]
        used += [
            leaf
            for leaf in keras.tree.flatten(call.arguments)
            if isinstance(leaf, keras.Variable)
        ]
        if not (_keras.is_own_operation(operation) or _reads_its_own_alone(call)):
            used += self._read(f"'{call.path}'", operation, call.arguments)
        self._use(used, id(operation), f"'{call.path}'")

    def _note_penalties(self, model):
        """Notes what a model's loss has beyond its outputs."""
        for variable in model.variables:
            penalty = getattr(variable, "regularizer", None)
            if penalty is not None:
                name = f"the regularizer of '{variable.path}'"
                read = self._read(name, penalty, ((variable.value,), {}))
                self._use(read, id(variable), name)
        for loss in keras.tree.flatten(getattr(model, "loss", None)):
            if callable(loss) and not _is_kerass(loss):
                self._note_loss(loss, model)
        for method in ("compute_loss", "train_step"):
            own = getattr(type(model), method) is not getattr(keras.Model, method)
            if own or (method == "compute_loss" and method in vars(model)):
                self._reasons.append(f"'{model.name}' has a {method} of its own")

    def _note_loss(self, loss, model):
        """Notes the variables that a loss of the user's reads, besides the outputs."""
        name = f"the loss '{getattr(loss, '__name__', type(loss).__name__)}'"
        for outputs in keras.tree.flatten(model.outputs):
            batch = outputs.shape[:1]
            # Its targets are of the outputs' shape, or labels.
            for shape, dtype in (
                (outputs.shape, outputs.dtype),
                (batch, "int64"),
                ((*batch, 1), "int64"),
            ):
                targets = keras.KerasTensor(shape, dtype)
                with contextlib.suppress(Exception):
                    read = _keras.variables_read(loss, targets, outputs)
                    self._use(read, id(loss), name)
                    return
        self._reasons.append(f"what {name} reads cannot be followed")

    def _read(self, name, function, arguments):
        args, kwargs = arguments
        layer = isinstance(function, keras.Layer)
        if layer and "training" in inspect.signature(function.call).parameters:
            # Keras writes down False where nothing was said.
            kwargs = {**kwargs, "training": True}
        try:
            return _keras.variables_read(function, *args, **kwargs)
        except Exception as error:
            # Keras's first line says where, and the second what, in bold.
            text = re.sub(r"\x1b\[\d*m", "", str(error))
            lines = [line for line in text.splitlines() if line]
            why = (lines[1:2] or lines or [type(error).__name__])[0]
            self._reasons.append(f"what {name} reads cannot be followed ({why})")
            return []

    def _use(self, variables, key, name):
        for variable in variables:
            self._uses.setdefault(id(variable), {}).setdefault(key, name)

    def _mark_second_uses(self):
        """Ends the law where a gradient comes from more than the calls of a layer."""
        for end in self.ends:
            if not end.known or end.tap is not None:
                continue
            for variable in _variables(end.layer):
                users = self._uses[id(variable)]
                for key, name in users.items():
                    if key not in (id(end.layer), id(variable)):
                        reason = f"{name} uses the {variable.name} of '{end.path}' too"
                        self.channels.mark(end.columns, reason)
                        if _is_map(end.layer) and variable is end.layer.kernel:
                            self.channels.mark(end.rows, reason)

    def _source(self, shape):
        labels = _graph.new_labels(self.channels, shape, -1)
        self.channels.mark(labels, "the network input is part of the stream")
        return labels

    def _end(self, call, labels, axis):
        """A call of a dense layer, a convolution or a BatchNorm."""
        layer, size = call.operation, call.input_shapes[0][1:][axis]
        axis %= labels.ndim
        rows = self.channels.merge_axes(
            labels, [other for other in range(labels.ndim) if other != axis]
        )
        rows = np.broadcast_to(rows.ravel(), size)
        if _is_cut(layer):
            rows = rows[:0]
        if id(layer) in self._ends:
            # The same weights again: their gradient is the sum over the calls, and so
            # is the law.
            self.channels.join(self._ends[id(layer)].rows, rows)
        else:
            columns = self.channels.new(
                layer.kernel.shape[-1] if _is_map(layer) else size
            )
            self._ends[id(layer)] = _End(layer, call.path, columns, rows)
            for reason in _producer_reasons(layer, call.path):
                self.channels.mark(columns, reason)
            for reason in _consumer_reasons(layer, call.path):
                self.channels.mark(rows, reason)
        columns = self._ends[id(layer)].columns
        return _graph.along(columns, len(call.output_shapes[0]) - 1, axis)

    def _taps(self, call, taken):
        """The hidden layers to which direct feedback brings the output's error."""
        layer = call.operation
        nothing = self.channels.new(0)
        for tap, labels in enumerate(taken[1:]):
            shape = call.input_shapes[1 + tap][1:]
            rows = np.broadcast_to(labels, shape).ravel()
            readout = layer.readout(tap)
            if readout is None:
                readout = self._output_kernel(call, tap)
            if readout is None:
                self.channels.mark(
                    rows,
                    f"'{call.path}' ({rules.label_of(layer.rule)}) has a law for its "
                    "ghost readouts alone: ask for ghost=True",
                )
            self._ends[id(layer), tap] = _End(
                layer, call.path, nothing, rows, tap=tap, readout=readout
            )

    def _output_kernel(self, call, tap):
        """W of the output layer, where the tap and the error are all that train it."""
        maker = self._makers.get(call.inputs[0])
        if maker is None or call.operation.rule.signal != "error":
            return None
        layer = maker.operation
        known = id(layer) in self._ends and self._ends[id(layer)].known
        if (
            known
            and type(layer) is FeedbackDense
            and layer.activation is keras.activations.linear
            and maker.inputs[0] == call.inputs[1 + tap]
            and not list(_variable_reasons(layer.kernel, maker.path))
        ):
            return layer.kernel
        return None

    def _unknown_end(self, call, taken):
        """A call of any other layer with weights."""
        layer = call.operation
        made = [
            _graph.new_labels(self.channels, shape, -1) for shape in call.output_shapes
        ]
        rows, columns = (
            np.concatenate([labels.ravel() for labels in side])
            for side in (taken, made)
        )
        for channels in (rows, columns):
            self.channels.mark(
                channels, f"'{call.path}' ({type(layer).__name__}) has no known law"
            )
        known = self._ends.get(id(layer))
        if known is not None:
            rows = np.concatenate([known.rows, rows])
            columns = np.concatenate([known.columns, columns])
        self._ends[id(layer)] = _End(layer, call.path, columns, rows, known=False)
        return made


def _is_map(layer):
    return _STOCK.get(type(layer), type(layer)) in _LINEAR


def _is_linear(layer):
    return (
        _is_map(layer)
        and "call" not in vars(layer)
        and not layer.lora_enabled
        and layer.quantization_mode is None
    )


def _is_cut(layer):
    """Whether a layer sends nothing back itself: direct feedback does it."""
    return (
        isinstance(layer, FeedbackMixin)
        and isinstance(layer.rule, rules.DirectFeedbackAlignment)
        and layer.rule.wired
    )


def _is_kerass(loss):
    """Whether a loss is Keras's or this toolkit's, which read no variables."""
    of = loss if hasattr(loss, "__module__") else type(loss)
    return str(of.__module__).partition(".")[0] in ("keras", "keras_fa")


def _is_norm(layer):
    return type(layer) in _NORMS and "call" not in vars(layer)


def _reads_its_own_alone(call):
    """Whether nothing in a call but Keras's own code reads variables."""
    layer = call.operation
    if getattr(layer, "activity_regularizer", None) is not None:
        return False
    if _is_linear(layer):
        return _graph.activation_reason(layer.activation, call.path) is None
    return _is_norm(layer) or _graph.is_known(call)


def _variables(layer):
    """What a layer produces its channels with, as far as it has it."""
    if _is_map(layer):
        variables = (layer.kernel, layer.bias)
    else:
        variables = (layer.gamma, layer.beta)
    return tuple(v for v in variables if v is not None)


def _producer_reasons(layer, path):
    if not _is_map(layer) and layer.gamma is None:
        # Its outputs are then not scaled by anything that learns.
        yield f"'{path}' has no gamma (scale=False)"
    for variable in _variables(layer):
        yield from _variable_reasons(variable, path)


def _consumer_reasons(layer, path):
    if _is_cut(layer):
        return
    if _is_map(layer):
        yield from _variable_reasons(layer.kernel, path)
        if isinstance(layer, FeedbackMixin) and layer.potential() is None:
            yield f"'{path}' follows {rules.label_of(layer.rule)}, without a known law"
    elif not layer.trainable:
        # It then normalises by fixed statistics: an affine map, not scale-invariant.
        yield f"'{path}' is frozen (trainable=False)"


def _variable_reasons(variable, path):
    if not variable.trainable:
        yield f"'{path}' is frozen (trainable=False)"
    for what in ("regularizer", "constraint"):
        if getattr(variable, what, None) is not None:
            yield f"'{path}' has a {variable.name} {what}"


def _groups(walk):
    """The components of channels, those with the same ends and fate in one group."""
    components = walk.channels.components()

    def of(channels):
        return np.unique(components[channels]).tolist()

    producers, consumers, reasons = ({c: [] for c in of(...)} for _ in range(3))
    for index, end in enumerate(walk.ends):
        for component in of(end.columns):
            producers[component].append(index)
        for component in of(end.rows):
            consumers[component].append(index)
    for channels, reason in walk.channels.marks:
        for component in of(channels):
            reasons[component].append(reason)
    for component in of(walk.outputs):
        if consumers[component]:
            reasons[component].append("the stream is an output of the model")
        else:
            producers[component].clear()
    alike = {}
    for component in sorted(producers, key=lambda c: (producers[c], c)):
        # A component without consumers counts if what takes their place is unknown.
        if producers[component] and (consumers[component] or reasons[component]):
            sides = (tuple(producers[component]), tuple(consumers[component]))
            lawful = not reasons[component]
            alike.setdefault((*sides, lawful), []).append(component)
    names = _names([walk.ends[producing[0]] for producing, _, _ in alike])
    groups = []
    for name, (key, members) in zip(names, alike.items(), strict=True):
        unit_of = np.full(len(components), -1)
        unit_of[members] = np.arange(len(members))
        why = dict.fromkeys(reason for c in members for reason in reasons[c])
        producing, consuming = ([walk.ends[i] for i in side] for side in key[:2])
        groups.append(
            _group(name, producing, consuming, unit_of[components], "; ".join(why))
        )
    return groups


def _group(name, producing, consuming, units, reason):
    """A `Group` of ends; `units`: the unit of every channel, -1 outside the group."""
    producers = tuple(
        Producer(
            end.layer,
            end.path,
            _variables(end.layer) if end.known else (),
            units[end.columns],
        )
        for end in producing
    )
    consumers = tuple(
        Consumer(
            end.layer,
            end.path,
            end.kernel,
            units[end.rows],
            end.tap,
        )
        for end in consuming
    )
    norms = [type(end.layer) in _NORMS for end in consuming]
    kind = "norm" if norms and all(norms) else "potential"
    return Group(name, kind, producers, consumers, int(units.max()) + 1, reason or None)


def _names(ends):
    """Names of groups after their first producers, made unique."""
    layers_of_name = {}
    for end in ends:
        layers_of_name.setdefault(end.layer.name, set()).add(id(end.layer))
    names, taken = [], {}
    for end in ends:
        name = end.layer.name
        if len(layers_of_name[name]) > 1:
            name = end.path
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}.{taken[name]}")
    return names
