"""The walk along the graph: ends of layers, their channels, and who uses what."""

import contextlib
import inspect

import keras
import numpy as np
from keras import layers

from keras_fa import _keras, rules
from keras_fa.analysis import _calls, _ends, _graph, _views
from keras_fa.layers import DirectFeedback, FeedbackDense, FeedbackMixin


class Walk:
    """One walk along the graph.

    Attributes:
        channels: `Channels`.
        calls: The calls that it went through, a list of `Call`.
        ends: List of `End`, in the order of the graph.
        outputs: Numbers of the channels of the model's outputs.
        output_keys: Keys of its output tensors, a set.
        reasons: Why there is no law at all.
    """

    def __init__(self, model):
        self.channels = _graph.Channels()
        self._ends = {}
        self._columns = {}
        # Layers that were called in a way that nothing is known of.
        self._unknown = {}
        # Tables that are looked up and projected with: `{id: path}`.
        self._tied = {}
        # Who uses each variable: `{id: {id of a layer or the like: what to call it}}`.
        self._uses = {}
        self.reasons = []
        self.calls, outputs = _calls.flatten(model, _is_whole)
        self._makers = {key: call for call in self.calls for key in call.outputs}
        labels = {}
        for call in self.calls:
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
        self._mark_ties()
        for reason in self.reasons:
            self.channels.mark(self.channels.all(), reason)
        self.outputs = np.concatenate([labels[key].ravel() for key in outputs])
        self.output_keys = set(outputs)

    def _step(self, call, taken):
        """Labels of the outputs of a call, from those of its inputs."""
        layer = call.operation
        if not taken:
            return self._sources(call, "the network input")
        self._note_uses(call)
        if type(layer) is DirectFeedback and call.plain:
            self._taps(call, taken)
            return taken[:1]
        if call.plain or _ends.kind_of(layer) is layers.ReversibleEmbedding:
            made = self.whole(call, taken)
            if made is not None:
                return made
        if self.sends_nothing_back(call):
            return self._sources(call, "a constant")
        made = _ends.parameter(self, call, taken)
        if made is not None:
            return made
        if getattr(layer, "weights", None) and type(layer) is not layers.Normalization:
            return self._unknown_end(call, taken)
        return _graph.follow(self.channels, call, taken)

    def whole(self, call, taken):
        """Labels of the outputs of a call of a known layer with weights, or None."""
        layer = call.operation
        step = None if id(layer) in self._unknown else _ends.handler(layer)
        return None if step is None else step(self, call, taken)

    @staticmethod
    def sends_nothing_back(call):
        """Whether no error goes through a call to its inputs."""
        operation = call.operation
        if _keras.is_own_operation(operation) and (
            type(operation).__name__ in ("StopGradient", "OnesLike", "FullLike")
        ):
            return True
        if _ends.takes_no_values(operation):
            return True
        sides = (call.made, call.taken)
        return not getattr(operation, "weights", None) and any(
            not any(map(_calls.is_float, side)) for side in sides
        )

    def reasons_of(self, end):
        """Why the variables of an end do not follow its gradient alone."""
        return [
            reason
            for variable in end.variables
            for reason in (
                *_variable_reasons(variable, end.path),
                *self.others(end, variable),
                *filter(None, [self._tied.get(id(variable))]),
            )
        ]

    def within(self, call, taken):
        """The same of a layer in another one."""
        self._note_uses(call)
        return self.whole(call, taken)

    def columns(self, key, count):
        """The channels that one map of a layer makes, the same at each call of it."""
        if key not in self._columns:
            self._columns[key] = self.channels.new(count)
        return self._columns[key]

    def note(self, end):
        """Notes what a call does; of a further call the rows alone.

        The same weights again: their gradient is the sum over the calls, and so is the
        law.
        """
        if _is_cut(end.source):
            end.rows, end.kernel = end.rows[:0], None
        key = (id(end.layer), end.kernel is None, *map(id, end.variables))
        if key in self._ends:
            self.channels.join(self._ends[key].rows, end.rows)
            return
        self._ends[key] = end
        for variable, _, columns in end.parts:
            for reason in _variable_reasons(variable, end.path):
                self.channels.mark(columns, reason)
        for reason in _consumer_reasons(end):
            self.channels.mark(end.rows, reason)

    def tie(self, table, path):
        """Notes that a table is projected with."""
        self._tied[id(table)] = path

    def use(self, variables, call, key):
        """Notes who uses variables."""
        self._use(variables, key, f"'{call.path}'")

    def _note_uses(self, call):
        """Notes the variables of a layer, and what it reads besides."""
        operation = call.operation
        if _ends.wraps(operation) and call.plain:
            # Its layers do it themselves.
            return
        used = [*getattr(operation, "weights", ())]
        used += [
            leaf
            for leaf in keras.tree.flatten(call.arguments)
            if isinstance(leaf, keras.Variable)
        ]
        if not (_keras.is_own_operation(operation) or _reads_its_own_alone(call)):
            used += self._read(f"'{call.path}'", operation, call.arguments)
        inside = call.holder is not None and _keras.is_own_operation(operation)
        self.use(used, call, id(call.holder if inside else operation))

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
                self.reasons.append(f"'{model.name}' has a {method} of its own")

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
        self.reasons.append(f"what {name} reads cannot be followed")

    def _read(self, name, function, arguments):
        args, kwargs = arguments
        layer = isinstance(function, keras.Layer)
        if layer and "training" in inspect.signature(function.call).parameters:
            # Keras writes down False where nothing was said.
            kwargs = {**kwargs, "training": True}
        try:
            return _keras.variables_read(function, *args, **kwargs)
        except Exception as error:
            why = _calls.first_line(error)
            self.reasons.append(f"what {name} reads cannot be followed ({why})")
            return []

    def _use(self, variables, key, name):
        for variable in variables:
            self._uses.setdefault(id(variable), {}).setdefault(key, name)

    def _mark_second_uses(self):
        """Ends the law where a gradient comes from more than the calls of a layer."""
        for end in self.ends:
            for variable in end.variables if end.known and end.tap is None else ():
                for name in self.others(end, variable):
                    reason = f"{name} uses the {variable.name} of '{end.path}' too"
                    for part, _, columns in end.parts:
                        if part is variable:
                            self.channels.mark(columns, reason)
                    if end.kernel is variable:
                        self.channels.mark(end.rows, reason)

    def others(self, end, variable):
        """What else than an end's layer uses a variable of it, a list of names."""
        own = {id(end.layer), id(end.source), id(variable)}
        users = self._uses[id(variable)]
        return [name for key, name in users.items() if key not in own]

    def _mark_ties(self):
        """Ends the law of a table's gradient that is the sum of two unlike parts."""
        tied = self._tied.keys() & {id(v) for e in self.ends for v, _, _ in e.parts}
        for end in self.ends:
            for variable in end.variables:
                if id(variable) in tied:
                    path = self._tied[id(variable)]
                    reason = f"'{path}' looks up and projects with one table"
                    self.channels.mark(np.append(end.columns, end.rows), reason)

    def _sources(self, call, what):
        """Labels of the outputs of what nothing flows back to."""
        made = []
        for shape in call.output_shapes:
            labels = _graph.new_labels(self.channels, shape, -1)
            self.channels.mark(labels, f"{what} is part of the stream")
            made.append(labels)
        return made

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
            self._ends[id(layer), tap] = _ends.End(
                layer,
                layer.name,
                call.path,
                nothing,
                rows,
                kernel=readout,
                view=None if readout is None else _views.of_matrix(readout.shape),
                source=layer,
                tap=tap,
            )

    def _output_kernel(self, call, tap):
        """W of the output layer, where the tap and the error are all that train it."""
        maker = self._makers.get(call.inputs[0])
        if maker is None or call.operation.rule.signal != "error":
            return None
        layer = maker.operation
        if (
            type(layer) is FeedbackDense
            and id(layer) not in self._unknown
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
        kind = type(layer).__name__
        reason = f"'{call.path}' ({kind}) has no known law"
        if call.untraced:
            reason += f" ({call.untraced})"
        for end in [end for end in self._ends.values() if end.layer is layer]:
            rows = np.append(end.rows, rows)
            columns = np.append(end.columns, columns)
        for channels in (rows, columns):
            self.channels.mark(channels, reason)
        self.use(layer.weights, call, id(layer))
        self._unknown[id(layer)] = layer
        self._ends[id(layer)] = _ends.End(
            layer, layer.name, call.path, columns, rows, known=False
        )
        return made


def _is_whole(layer):
    """Whether a layer is followed as one call."""
    return (
        not isinstance(layer, keras.Layer)
        or type(layer) is DirectFeedback
        or _ends.handler(layer) is not None
    )


def _is_cut(layer):
    """Whether a layer sends nothing back itself: direct feedback does it."""
    return (
        isinstance(layer, FeedbackMixin)
        and isinstance(layer.rule, rules.DirectFeedbackAlignment)
        and layer.rule.wired
        and layer.rule.taps == "layers"
    )


def _is_kerass(loss):
    """Whether a loss is Keras's or this toolkit's, which read no variables."""
    of = loss if hasattr(loss, "__module__") else type(loss)
    return str(of.__module__).partition(".")[0] in ("keras", "keras_fa")


def _reads_its_own_alone(call):
    """Whether nothing in a call but Keras's own code reads variables."""
    layer = call.operation
    if getattr(layer, "activity_regularizer", None) is not None:
        return False
    activation = getattr(getattr(layer, "cell", layer), "activation", None)
    if _keras.is_own_layer(layer) and len(_keras.layers_of(layer)) == 1:
        # What a user gives it to compute is an activation, or a Lambda's function.
        own = getattr(activation, "__module__", "").startswith("keras.")
        return (own or activation is None) and type(layer) is not layers.Lambda
    if _ends.handler(layer) is None:
        return _graph.is_known(call)
    return _graph.activation_reason(activation, call.path) is None


def _consumer_reasons(end):
    if end.kernel is None:
        return
    yield from _variable_reasons(end.kernel, end.path)
    if isinstance(end.source, FeedbackMixin):
        part = end.source.potential(end.index)
        if part is None or not end.view.splits(part[0].shape):
            label = rules.label_of(end.source.rule)
            yield f"'{end.path}' follows {label}, without a known law"


def _variable_reasons(variable, path):
    if not variable.trainable:
        yield f"'{path}' is frozen (trainable=False)"
    for what in ("regularizer", "constraint"):
        if getattr(variable, what, None) is not None:
            yield f"'{path}' has a {variable.name} {what}"
