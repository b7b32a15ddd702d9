"""The feedback gradient and error signals against backpropagation's.

Both sides run on the model itself, forward and backward, once under its own rules and
once under backpropagation.
"""

import collections
import contextlib
import dataclasses
import inspect
import math
import types
import warnings

import keras
import numpy as np
from keras import ops

from keras_fa import _keras, autodiff, rules
from keras_fa.analysis._alignment import (
    Alignment,
    found_feedback_layers,
    layer_keys,
)
from keras_fa.layers import DirectFeedback, FeedbackMixin, forward_variables

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


class GradientAlignment:
    """Compares a model's feedback gradient with its true gradient, batch after batch.

    Compiled once and kept, so that a callback can ask again every epoch. Both passes
    run on the model itself, the true one with `rules.Backprop` in every feedback layer
    while it is traced: nothing is copied, and weights, batch, dropout masks and
    BatchNorm mode are the same by construction. Every pass is made as in training, and
    none leaves a trace: moving statistics, random seeds, metrics and weights stay.

    Both gradients are those of `model.compute_loss`, with its reduction: penalties on
    weights and activities are part of the loss, of both gradients and of both norms.
    Weight decay belongs to the optimizer and is not. Models that compute in float16 are
    measured through a scaled loss, as their optimizer trains them. The whole batch is
    one pass, so it has to fit in memory as a training step of that size would. Models
    of a `tf.distribute` strategy are measured on one replica; call from outside its
    scope, as callbacks are, for inside Keras divides every loss by the number of
    replicas.

    Args:
        model: A built Keras model. Make a new object if a layer's `trainable` changes.
        loss: What `model.compile` takes as loss: a Keras loss, its name, a function of
            (y_true, y_pred), or a list or dict of them for several outputs. Penalties
            are added. Names and functions are computed in float64 for outputs in
            float64. None takes the compiled model's.
        run_eagerly: Do not compile: the better way to measure once. JAX compiles all
            the same.
        loss_weights: With a loss for each output, their weights as `compile` has them.

    Raises:
        ValueError: If the model has no feedback layers, if there is no loss, the loss
            is unknown or depends on no trainable variable, or targets are missing.
    """

    # What is compiled, with the arguments that are no tensors.
    _measures = types.MappingProxyType(
        {
            "_compare_gradients": (),
            "_compare_signals": ("per_example",),
            "_small_step": (),
        }
    )

    def __init__(self, model, loss=None, run_eagerly=False, loss_weights=None):
        found_feedback_layers(model)
        if loss is None and not model.compiled:
            raise ValueError(
                f"Model '{model.name}' is not compiled, so it has no loss. Compile it, "
                'or pass a loss, such as loss="mse".'
            )
        if loss is None and loss_weights is not None:
            raise ValueError("`loss_weights` belong to a `loss`, which was not given.")
        if loss is None and type(model).train_step is not keras.Model.train_step:
            warnings.warn(
                f"Model '{model.name}' has a train_step of its own. What is measured "
                "is the gradient of its compute_loss, whatever that step trains by; a "
                "`loss` given to the instrument says that it is meant.",
                stacklevel=2,
            )
        self.model = model
        self._loss, self._loss_weights = _keras.resolved_losses(loss), loss_weights
        self._objective = None
        self._layer_names = _owners(model)
        self._prepared = run_eagerly and not autodiff.TRACES
        if not self._prepared:
            for name, static in self._measures.items():
                method = autodiff.compiled(getattr(self, name), static)
                setattr(self, name, method)

    def __call__(self, x, y, sample_weight=None):
        """The alignment on one batch: see `gradient_alignment`."""
        batch = self._batch(x, y, sample_weight)
        loss, terms = self._scaled(self._compare_gradients, batch)
        layers = {
            name: terms[name]
            for name in dict.fromkeys(self._layer_names)
            if name in terms
        }
        return GradientAlignmentResult(
            float(loss),
            from_squares(np.sum(list(layers.values()), axis=0)),
            {name: from_squares(squares) for name, squares in layers.items()},
        )

    def loss_decrease(self, x, y, step_size, sample_weight=None):
        """What a small step along the feedback gradient should gain, and what it does.

        Equation (1) of Robertson and Koyejo (2024) at a finite step: their ratio tends
        to 1 with the step, the difference being of second order in it. The measured
        side is a difference of losses, which in float32 are good to about 1e-7 of
        their value: do not take the step too small.

        Args:
            x: Inputs, as for `gradient_alignment`.
            y: Targets.
            step_size: The learning rate of the step, a float.
            sample_weight: As for `gradient_alignment`.

        Returns:
            (predicted, measured): `step_size * <gradient, feedback gradient>`, and the
            loss at theta less the loss at `theta - step_size * feedback gradient`.
        """
        step = _constant(step_size)
        batch = self._batch(x, y, sample_weight)
        decrease, terms = self._scaled(self._small_step, batch, step_size=step)
        return float(step_size * terms["slope"]), float(decrease)

    def errors(self, x, y, per_example=False, sample_weight=None):
        """The alignment of the error signals on one batch: see `error_alignment`."""
        batch = self._batch(x, y, sample_weight)
        _, terms = self._scaled(
            self._compare_signals, batch, per_example=bool(per_example)
        )
        return {name: from_squares(term) for name, term in terms.items()}

    def _batch(self, x, y, sample_weight):
        loss = self.model.loss if self._loss is None else self._loss
        if y is None and loss is not None:
            raise ValueError(
                "The loss needs targets, but `y` is None. Pass those of the batch; "
                "None is for models whose losses come from `add_loss` alone."
            )
        batch = keras.tree.map_structure(
            lambda leaf: None if leaf is None else ops.convert_to_tensor(leaf),
            (x, y, sample_weight),
        )
        if not self._prepared:
            self._prepared = True
            if keras.tree.is_nested(y) or keras.tree.is_nested(loss):
                # For several losses Keras makes variables, which compiled code cannot.
                _keras.on_symbols(self._forward, batch, *self._state())
        return batch

    def _scaled(self, measure, batch, **arguments):
        """`measure(batch, state, scale of the loss, ...)`, its terms NumPy arrays.

        Like the optimizer's, the scale falls until the gradients are finite.
        """
        scale = _loss_scale(self.model)
        while True:
            tensor = None if scale is None else _constant(scale)
            value, terms = measure(batch, self._state(), tensor, **arguments)
            terms = {name: ops.convert_to_numpy(term) for name, term in terms.items()}
            finite = all(np.isfinite(term).all() for term in terms.values())
            if finite or scale is None or scale <= 1:
                return value, terms
            scale = max(scale / 16, 1.0)

    def _gradient_pair(self, batch, state, scale):
        loss, feedback, _ = self._traced(batch, state, scale, watched=True)
        with backpropagation(self.model):
            _, true, _ = self._traced(batch, state, scale, watched=True)
        pairs = [
            # Without a gradient on either side there is nothing to compare.
            None if one is None and other is None else filled(one, other)
            for one, other in zip(true, feedback, strict=True)
        ]
        if not any(pairs):
            raise ValueError(
                f"The loss of model '{self.model.name}' depends on none of its "
                f"{len(pairs)} trainable variables of the forward pass: there is no "
                "gradient to measure. Unfreeze a layer, or give another loss."
            )
        return loss, pairs

    def _compare_gradients(self, batch, state, scale):
        loss, pairs = self._gradient_pair(batch, state, scale)
        terms = collections.OrderedDict()
        with autodiff.in_float64():
            for name, pair in zip(self._layer_names, pairs, strict=True):
                if pair is not None:
                    terms[name] = terms.get(name, 0) + squares(*pair, scale)
        return loss, terms

    def _small_step(self, batch, state, scale, step_size):
        before, pairs = self._gradient_pair(batch, state, scale)
        with autodiff.in_float64():
            slope = sum(squares(*p, scale)[0] for p in pairs if p is not None)
        if scale is not None:
            step_size = step_size / scale
        values, others = state
        values = [
            value
            if pair is None
            else value - ops.cast(step_size, value.dtype) * pair[1]
            for value, pair in zip(values, pairs, strict=True)
        ]
        with autodiff.undrawn():
            after, _ = self._forward(batch, values, others)
        with autodiff.in_float64():
            decrease = ops.cast(before, "float64") - ops.cast(after, "float64")
        return decrease, {"slope": slope}

    def _compare_signals(self, batch, state, scale, per_example):
        *_, feedback = self._traced(batch, state, scale, everything=False)
        with backpropagation(self.model):
            *_, true = self._traced(batch, state, scale, everything=False)
        terms = collections.OrderedDict()
        # A direct rule's last step stands between the output layer and the outputs.
        for name in (name for name in true if name in feedback):
            for (_, one), (_, other) in zip(true[name], feedback[name], strict=True):
                if one is None and other is None:
                    continue
                pair = filled(one, other)
                if not per_example:
                    pair = [ops.sum(side, axis=0) for side in pair]
                with autodiff.in_float64():
                    terms[name] = terms.get(name, 0) + squares(*pair, scale)
        return ops.zeros(()), terms

    def _traced(self, batch, state, scale, watched=False, everything=None):
        """One pass, forward and backward.

        Args:
            batch: From `_batch`.
            state: From `_state`.
            scale: Of the loss, or None.
            watched: Whether the gradients of the forward variables are wanted.
            everything: Whether to look at all places that have an output, what the
                model returns among them, or only at those of `error_alignment`; None
                for none.

        Returns:
            (loss, gradients, hidden): gradients of the watched, None where there is
            none, and `{key: [(h, dL/dh)]}` with an entry for each call.
        """
        values, others = state
        names = []

        def objective(watched, watch):
            looking = contextlib.nullcontext({})
            if everything is not None:
                looking = hidden_outputs(self.model, watch, everything)
            with looking as hidden:
                loss, outputs = self._forward(batch, watched or values, others)
            outputs = {id(output) for output in keras.tree.flatten(outputs)}
            kept = [v for k, v in hidden.items() if everything or k not in outputs]
            names[:] = [name for name, _ in kept]
            tensors = [tensor for _, tensor in kept]
            return _times(loss, scale), tensors, (loss, tensors)

        with autodiff.undrawn():
            _, (loss, tensors), gradients, signals = autodiff.value_and_gradients(
                objective, values if watched else []
            )
        # A layer that the model calls more than once has a signal for each call.
        named = {}
        for name, tensor, signal in zip(names, tensors, signals, strict=True):
            named.setdefault(name, []).append((tensor, signal))
        return loss, gradients, named

    def _variables(self):
        """The forward variables, and all others that a pass reads."""
        forward = forward_variables(self.model)
        known = {id(variable) for variable in forward}
        optimizer = getattr(self.model, "optimizer", None)
        others = [*self.model.variables, getattr(optimizer, "dynamic_scale", None)]
        others = [v for v in others if v is not None and id(v) not in known]
        return forward, others

    def _state(self):
        """The values now of what `_variables` returns."""
        return tuple(autodiff.readings(variables) for variables in self._variables())

    def _forward(self, batch, values, others):
        """(loss, outputs) in training mode in this state, no effects."""
        model, (x, y, sample_weight) = self.model, batch
        forward, rest = self._variables()
        mapping = zip([*forward, *rest], [*values, *others], strict=True)
        with keras.StatelessScope(list(mapping), collect_losses=True):
            outputs = model(x, training=True)
            if self._loss is None:
                loss = _compiled_loss(model, x, y, outputs, sample_weight)
                # Without a reduction training follows the sum of its entries.
                return ops.sum(loss), outputs
            if self._objective is None:
                self._objective = _keras.compile_loss(
                    self._loss,
                    self._loss_weights,
                    getattr(model, "output_names", None),
                    _precision(outputs),
                )
            loss = ops.sum(self._objective(y, outputs, sample_weight))
            for penalty in model.losses:
                loss = ops.add(loss, ops.cast(ops.sum(penalty), loss.dtype))
            return loss, outputs


def _constant(number):
    """A number as a tensor, in float64 where the backend has it."""
    return ops.convert_to_tensor(np.asarray(number, np.float64))


def _compiled_loss(model, x, y, outputs, sample_weight):
    arguments = {"x": x, "y": y, "y_pred": outputs, "sample_weight": sample_weight}
    # Keras itself calls older ones without it.
    if "training" in inspect.signature(model.compute_loss).parameters:
        arguments["training"] = True
    return model.compute_loss(**arguments)


def _precision(outputs):
    dtypes = {
        keras.backend.standardize_dtype(o.dtype) for o in keras.tree.flatten(outputs)
    }
    return "float64" if "float64" in dtypes else None


def _loss_scale(model):
    """What the loss is multiplied by, so that float16 can hold its gradients."""
    if all(layer.compute_dtype != "float16" for layer in _keras.layers_of(model)):
        return None
    optimizer = getattr(model, "optimizer", None)
    dynamic = getattr(optimizer, "dynamic_scale", None)
    if dynamic is not None:
        return float(autodiff.array(dynamic))
    fixed = getattr(optimizer, "loss_scale_factor", None)
    # That at which Keras's LossScaleOptimizer begins.
    return float(fixed or 2**15)


@dataclasses.dataclass(frozen=True)
class GradientAlignmentResult:
    """What `gradient_alignment` measured on one batch.

    Attributes:
        loss: The total loss, penalties included.
        whole: `Alignment` of the gradients with respect to all trainable variables.
        layers: `{layer: Alignment}`: kernel and bias of a layer (or gamma and beta, or
            whatever it trains) taken together, stock Keras layers included. The key is
            the layer's name: its path where the name repeats.
    """

    loss: float
    whole: Alignment
    layers: dict

    @property
    def cosine(self):
        """cos(omega) of the whole network."""
        return self.whole.cosine

    @property
    def gradient_norm(self):
        """Norm of the true gradient of the whole network."""
        return self.whole.true_norm

    @property
    def feedback_norm(self):
        """Norm of the feedback gradient of the whole network."""
        return self.whole.feedback_norm

    @property
    def inner_product(self):
        """<gradient, feedback gradient>: -dL/dt along the feedback flow."""
        return self.whole.inner_product

    def __repr__(self):
        return (
            f"GradientAlignmentResult(cosine={self.cosine:.4g}, "
            f"gradient_norm={self.gradient_norm:.4g}, "
            f"feedback_norm={self.feedback_norm:.4g})"
        )


def gradient_alignment(model, x, y, loss=None, sample_weight=None, loss_weights=None):
    """The angle between the feedback gradient and the gradient of the loss.

    Equation (1) of Robertson and Koyejo (2024): along the feedback flow the loss obeys
    `dL/dt = -<gradient, feedback gradient> = -cos(omega) |gradient| |feedback|`. Read
    the cosine beside the norms: against a gradient of rounding errors it means nothing.

    Costs three to four compiled training steps on the batch, as it runs eagerly. To
    measure again and again for two steps each, keep a `GradientAlignment(model, loss)`
    and call that.

    Args:
        model: A built Keras model with feedback layers. Nothing in it changes.
        x: Inputs as `model` takes them: an array, or a list or dict of arrays.
        y: Targets as the loss takes them.
        loss: As `compile` takes it. None, the default, takes the compiled model's.
        sample_weight: What each example counts, as `fit` takes it.
        loss_weights: As `compile` takes them, with a loss for each output.

    Returns:
        `GradientAlignmentResult`; its sums are taken in float64. Layers on which the
        loss does not depend have no part in it.

    Raises:
        ValueError: As `GradientAlignment` does.
    """
    return GradientAlignment(model, loss, True, loss_weights)(x, y, sample_weight)


def error_alignment(
    model, x, y, loss=None, per_example=False, sample_weight=None, loss_weights=None
):
    """The angle between the error signals at every hidden layer.

    Song, Xu and Lafferty (2021), section 4: `delta_BP(h) = dL/dh`, with respect to the
    hidden activations h, so *before* the factor phi'; `delta_FA(h)` is what the
    feedback sends there instead. In their two-layer network of p units both are vectors
    of length p, W2 and B2 times the sum of the output errors *over the batch*, and so
    are they here. With one output their cosine is that of W2 and B2.

    h is the output of a feedback layer after its activation: its own `activation=` or
    the activation layer that takes its output directly. Where another layer takes it,
    as BatchNorm does, h is the feedback layer's output itself; of a recurrent layer it
    is the layer's output, under the key of its cell, the last one of several. What
    the model returns is left out, as no feedback reaches the error there. So is what
    runs in a loop of one's own, unless the instrument runs eagerly.

    Args:
        model: A built Keras model with feedback layers. Nothing in it changes.
        x: Inputs as `model` takes them.
        y: Targets as the loss takes them.
        loss: As in `gradient_alignment`.
        per_example: Take the errors of all examples side by side, as one vector of
            batch times p, in place of their sum. The sum forgets what cancels between
            examples: with softmax outputs on a batch of balanced classes, nearly all.
        sample_weight: As in `gradient_alignment`.
        loss_weights: Likewise.

    Returns:
        `{layer: Alignment}`, the error signal of backpropagation on the true side. The
        key is the layer's name: its path where the name repeats. Layers on which the
        loss does not depend are left out.

    Raises:
        ValueError: As `GradientAlignment` does.
    """
    instrument = GradientAlignment(model, loss, True, loss_weights)
    return instrument.errors(x, y, per_example, sample_weight)


@contextlib.contextmanager
def backpropagation(model):
    """Backpropagation in place of every layer's own rule, while a pass is traced."""
    # A DirectFeedback, which is no feedback layer, has a rule too.
    layers = [x for x in _keras.layers_of(model) if hasattr(x, "_rule")]
    own = {layer: layer._rule for layer in layers}
    try:
        for layer in own:
            layer._rule = rules.Backprop()
        yield
    finally:
        for layer, rule in own.items():
            layer._rule = rule


@contextlib.contextmanager
def hidden_outputs(model, watch, everything=False):
    """Fills `{id: (key, h)}` in order while a pass runs; see `error_alignment`.

    Args:
        model: A Keras model.
        watch: Called with each h; what it returns takes the place of h.
        everything: Whether to look at all that has weights, in itself or in layers
            inside it, and at the sums of residual streams.
    """
    hidden, places = {}, _places(model, everything)

    def recorded(operation, name, call):
        def call_and_record(*args, **kwargs):
            outputs = call(*args, **kwargs)
            key = name
            # With its states behind it, where it returns them.
            output, *others = keras.tree.flatten(outputs)
            if isinstance(operation, _ACTIVATIONS):
                taken, *_ = (*args, *kwargs.values())
                key, _ = hidden.pop(id(taken), (None, None))
            # What holds the last layer of its call returns what that returned.
            if key is not None and id(output) not in hidden:
                watched = watch(output)
                if watched is not output:
                    if (mask := _keras.mask_of(output)) is not None:
                        _keras.set_mask(watched, mask)
                    outputs = keras.tree.pack_sequence_as(outputs, [watched, *others])
                # Kept with its tensor, or the id could be given to another one.
                hidden[id(watched)] = key, watched
            return outputs

        return call_and_record

    try:
        for operation, name in places:
            call = recorded(operation, name, operation.call)
            _keras.replace_call(operation, call)
        yield hidden
    finally:
        for operation, _ in places:
            _keras.restore_call(operation)


def _places(model, everything):
    """`(layer, key)` of all that has an h, the key None of activations alone."""
    keys, parts = layer_keys(model), _keras.layers_of(model)

    def counts(layer):
        trains = everything and _keras.own_variables(layer)[0]
        return isinstance(layer, FeedbackMixin) or bool(trains)

    recurrent = [x for x in parts if isinstance(x, keras.layers.RNN)]
    # What a recurrent layer has outside of its loop is that of its last cell.
    loops = [(x, [c for c in _keras.layers_of(x.cell) if counts(c)]) for x in recurrent]
    inside = {id(c) for x in recurrent for c in _keras.layers_of(x.cell)}
    # A model is no place in itself; a direct rule's last layer is none of the forward
    # pass.
    outside = [
        x
        for x in parts
        if x is not model and id(x) not in inside and not isinstance(x, DirectFeedback)
    ]
    places = [(x, keys.get(id(x))) for x in outside if counts(x)]
    places += [(x, keys.get(id(cells[-1]))) for x, cells in loops if cells]
    if everything:
        known = {id(x) for x, _ in places}
        more = [x for x in outside if id(x) not in known and _is_block(x)]
        sums = [op for part in parts for op in _keras.sums_in(part)]
        taken = set(keys.values())
        for operation in (*more, *sums):
            name, number = operation.name, 1
            while (key := name if number == 1 else f"{name}.{number}") in taken:
                number += 1
            taken.add(key)
            places.append((operation, key))
    return places + [(x, None) for x in parts if isinstance(x, _ACTIVATIONS)]


def _is_block(layer):
    """Whether a layer adds streams up, or holds layers with weights and calls them."""
    if isinstance(layer, keras.layers.Add):
        return True
    # What these hold has a place of its own under the name of what has the weights.
    if isinstance(layer, (keras.layers.RNN, keras.layers.Wrapper)):
        return False
    inside = [x for x in _keras.layers_of(layer) if x is not layer]
    return any(_keras.own_variables(x)[0] for x in inside)


def _owners(model):
    """The key of the layer that owns each trainable variable, in order."""
    keys, owners = layer_keys(model), {}
    for layer in _keras.layers_of(model):
        for variable in _keras.own_variables(layer)[0]:
            owners.setdefault(id(variable), keys[id(layer)])
    return [owners[id(variable)] for variable in forward_variables(model)]


def filled(*sides):
    """A pair of gradients, zeros where one side has none: it stands still there."""
    shape = next(side for side in sides if side is not None)
    return [ops.zeros_like(shape) if side is None else side for side in sides]


def _times(loss, scale):
    return loss if scale is None else loss * ops.cast(scale, loss.dtype)


def squares(true, feedback, scale):
    """<true, feedback>, |true|^2 and |feedback|^2, which add up over variables.

    To be called, and added up, within `autodiff.in_float64()`.
    """
    true, feedback = (ops.cast(side, "float64") for side in (true, feedback))
    if scale is not None:
        scale = ops.cast(scale, "float64")
        true, feedback = true / scale, feedback / scale
    return ops.stack(
        [
            ops.sum(true * feedback),
            ops.sum(true * true),
            ops.sum(feedback * feedback),
        ]
    )


def from_squares(terms):
    inner_product, true, feedback = (float(term) for term in terms)
    return Alignment(inner_product, math.sqrt(true), math.sqrt(feedback))
