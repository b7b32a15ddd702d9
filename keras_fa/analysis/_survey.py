"""What one batch tells of every place in a model: the measurements of an audit."""

import collections
import dataclasses
import math
import types

import keras
import numpy as np
from keras import ops

from keras_fa import _keras, autodiff
from keras_fa.analysis._alignment import Alignment, layer_keys
from keras_fa.analysis._gradient_alignment import (
    GradientAlignment,
    backpropagation,
    filled,
    from_squares,
    hidden_outputs,
    squares,
)
from keras_fa.layers import DirectFeedback, feedback_layers, feedback_variables

# The distance from 1 to the next number.
EPSILON = {
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}


@dataclasses.dataclass(frozen=True)
class Place:
    """What was measured of one output h, of shape (batch, ..., channels).

    Attributes:
        norm: Of h, the root mean square over the examples.
        signal: `Alignment` of the error signals, true and sent through the feedback.
            An example's own is the number of examples times its part of dL/dh, so that
            the norms are those of a mean loss, whatever the batch; root mean squares.
        rounding: Norm of the change of the true signal when weights change by their
            last digit, in the same units.
        rank: Effective rank of the signal through the feedback; see `keras_fa.audit`.
        true_rank: That of the true one.
        full_rank: The largest that there could be.
    """

    norm: float
    signal: Alignment
    rounding: float
    rank: float
    true_rank: float
    full_rank: int


@dataclasses.dataclass(frozen=True)
class Weights:
    """What was measured of the gradients of one layer's weights.

    Attributes:
        gradient: `Alignment` of both gradients.
        rounding: As for `Place`, of the true gradient.
        size: Number of the weights.
    """

    gradient: Alignment
    rounding: float
    size: int


class Survey(GradientAlignment):
    """Looks at all places of a model at once: see `GradientAlignment`.

    Three passes: one with the feedback, one with backpropagation, one with that and
    every trained weight moved by its last digit.
    """

    _measures = types.MappingProxyType({"_survey": ()})

    def __call__(self, x, y, sample_weight=None):
        """What one batch tells.

        Returns:
            (loss, its dtype, places, weights): `{key: Place}` in the order of the
            forward pass and `{key: Weights}` in the order of the model.
        """
        batch = self._batch(x, y, sample_weight)
        loss, terms = self._scaled(self._survey, batch)
        examples = int(keras.tree.flatten(batch[0])[0].shape[0])
        sizes = {}
        for name, value in zip(self._layer_names, self._state()[0], strict=True):
            sizes[name] = sizes.get(name, 0) + math.prod(value.shape)
        places, weights = {}, {}
        for key, term in terms.items():
            kind, name = key.split(":", 1)
            if kind == "place":
                places[name] = Place(
                    math.sqrt(term[4] / examples),
                    from_squares(examples * term[:3]),
                    math.sqrt(examples * term[3]),
                    *map(float, term[5:7]),
                    int(term[7]),
                )
            else:
                weights[name] = Weights(
                    from_squares(term[:3]), math.sqrt(term[3]), sizes[name]
                )
        weights = {k: weights[k] for k in sizes if k in weights}
        return float(loss), keras.backend.standardize_dtype(loss.dtype), places, weights

    def _survey(self, batch, state, scale):
        values, others = state
        moved = self._moved_by_a_digit(values), others
        loss, feedback, heard = self._traced(batch, state, scale, True, True)
        with backpropagation(self.model):
            _, true, meant = self._traced(batch, state, scale, True, True)
            _, other, rounded = self._traced(batch, moved, scale, True, True)
        terms = collections.OrderedDict()
        for name in (name for name in meant if name in heard):
            calls = [
                (h, *filled(*signals))
                for (h, *signals) in (
                    (h, t, f, r)
                    for (h, t), (_, f), (_, r) in zip(
                        meant[name], heard[name], rounded[name], strict=True
                    )
                )
                if any(signal is not None for signal in signals)
            ]
            if calls:
                with autodiff.in_float64():
                    terms[f"place:{name}"] = _place_terms(calls, scale)
        for name, *sides in zip(self._layer_names, true, feedback, other, strict=True):
            if any(side is not None for side in sides):
                t, f, o = filled(*sides)
                with autodiff.in_float64():
                    term = _with_change(t, f, o, scale)
                    terms[f"weights:{name}"] = terms.get(f"weights:{name}", 0) + term
        return loss, terms

    def _moved_by_a_digit(self, values):
        layers = feedback_layers(self.model)
        epsilon = max(EPSILON[layer.compute_dtype] for layer in layers)
        return [
            value * (1 + epsilon * ops.cast(_signs(value.shape, seed), value.dtype))
            for seed, value in enumerate(values)
        ]


def _signs(shape, seed):
    return ops.sign(keras.random.uniform(shape, -1, 1, dtype="float32", seed=seed))


def _with_change(true, feedback, other, scale):
    change = ops.cast(true, "float64") - ops.cast(other, "float64")
    return ops.concatenate(
        [squares(true, feedback, scale), squares(change, change, scale)[:1]]
    )


def _place_terms(calls, scale):
    """All that is known of one place, a tensor (8,) in float64."""
    first = sum(_with_change(t, f, o, scale) for _, t, f, o in calls)
    norm = sum(ops.sum(ops.square(ops.cast(h, "float64"))) for h, *_ in calls)
    rank, full = _effective_rank([f for *_, f, _ in calls])
    true_rank, _ = _effective_rank([t for _, t, *_ in calls])
    last = [ops.cast(v, "float64") for v in (norm, rank, true_rank, full)]
    return ops.concatenate([first, ops.stack(last)])


def _effective_rank(signals):
    """(participation ratio, full rank) of signals (..., channels), one under another.

    Calls of a layer with different channels, as a tied table's, have no row in common.
    The ratio is 0 where the signals are.
    """
    stacked = {}
    for signal in signals:
        channels = signal.shape[-1] if len(signal.shape) > 1 else 1
        if keras.backend.standardize_dtype(signal.dtype) != "float64":
            signal = ops.cast(signal, "float32")
        stacked.setdefault(channels, []).append(ops.reshape(signal, (-1, channels)))
    stacked = [ops.concatenate(rows) for rows in stacked.values()]
    # Scaled first, or small errors' fourth powers would be lost.
    largest = ops.max(ops.stack([ops.max(ops.abs(rows)) for rows in stacked]))
    trace = squared = full = 0
    for rows in stacked:
        count, channels = ops.shape(rows)
        rows = ops.divide_no_nan(rows, largest)
        if isinstance(count, int) and count < channels:
            rows = ops.transpose(rows)
        # Its eigenvalues are the squared singular values.
        gram = ops.matmul(ops.transpose(rows), rows)
        trace += ops.trace(gram)
        squared += ops.sum(ops.square(gram))
        full += ops.minimum(count, channels)
    return ops.divide_no_nan(ops.square(trace), squared), full


def norms(model, x):
    """Norms of all places in a pass of training that leaves no trace.

    Args:
        model: A built Keras model.
        x: Inputs, as the model takes them.

    Returns:
        `{key: norm}`, as `Place` has it, in the order of the pass.
    """
    with (
        keras.StatelessScope(),
        hidden_outputs(model, lambda tensor: tensor, everything=True) as hidden,
    ):
        x = keras.tree.map_structure(ops.convert_to_tensor, x)
        model(x, training=True)
    examples = keras.tree.flatten(x)[0].shape[0]
    found = {}
    for name, h in hidden.values():
        with autodiff.in_float64():
            square = ops.sum(ops.square(ops.cast(h, "float64")))
        square = float(autodiff.array(square))
        found[name] = found.get(name, 0.0) + square / examples
    return {name: math.sqrt(square) for name, square in found.items()}


def weights_of(model):
    """The variables of the forward pass that each layer has itself, frozen or not.

    Args:
        model: A built Keras model.

    Returns:
        `{key: [variable]}`, keys as in `layer_keys`, layers without any left out.
    """
    keys = layer_keys(model)
    feedback = {id(variable) for variable in feedback_variables(model)}
    found = {}
    for layer in _keras.layers_of(model):
        own = [v for v in _keras.own_variables(layer)[0] if id(v) not in feedback]
        if own and not isinstance(layer, DirectFeedback):
            found[keys[id(layer)]] = own
    return found


def distance(variables, reference):
    """|W - W0| / |W0| over several variables, infinite where W0 = 0 and W is not."""
    apart = start = 0.0
    for variable, first in zip(variables, reference, strict=True):
        now, then = (autodiff.array(v).astype(np.float64) for v in (variable, first))
        apart += float(np.sum((now - then) ** 2))
        start += float(np.sum(then**2))
    if start == 0:
        return math.inf if apart else 0.0
    return math.sqrt(apart / start)
