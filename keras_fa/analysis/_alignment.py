"""Weight alignment: how near the backward kernels are to the forward ones."""

import collections
import dataclasses
import math

import keras
import numpy as np

from keras_fa import _keras, autodiff
from keras_fa.analysis import _dominance, _graph
from keras_fa.layers import feedback_layers


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The angle between two vectors of the same shape, and what it is made of.

    Attributes:
        inner_product: <true, feedback>, a float.
        true_norm: Euclidean norm of the true side: W, the gradient of the loss, or the
            error signal of backpropagation.
        feedback_norm: The same of what stands in its place: B, the feedback gradient,
            or the error signal sent through B.
    """

    inner_product: float
    true_norm: float
    feedback_norm: float

    @property
    def cosine(self):
        """Cosine of the angle; nan where a norm is 0 and there is no angle."""
        norms = self.true_norm * self.feedback_norm
        return self.inner_product / norms if norms > 0 else math.nan

    @property
    def degrees(self):
        """The angle, from 0 to 180 degrees; nan where there is none."""
        return math.degrees(math.acos(max(-1.0, min(1.0, self.cosine))))

    def __repr__(self):
        return (
            f"Alignment(cosine={self.cosine:.4g}, true_norm={self.true_norm:.4g}, "
            f"feedback_norm={self.feedback_norm:.4g})"
        )


def alignment_terms(model):
    """<W, B>, |W| and |B| of every feedback layer.

    Source: Robertson and Koyejo (2024), definition 4.1.

    Args:
        model: A built Keras model.

    Returns:
        `{key: Alignment}`, W on the true side, computed in float64. The key is the name
        of the layer: its path where layers of other parts of the model have that name
        ("encoder_2/query"), and with the name of the kernel after it where it has
        several ("separable/pointwise_kernel"). Nested layers included, in the order of
        the model; layers that send nothing back, under direct feedback, are left out.

    Raises:
        ValueError: If the model has no feedback layers, or one is not built.
    """
    return {
        key: _alignment(kernel, backward)
        for key, layer, index, kernel in found_maps(model)
        if (backward := layer.backward_kernel(index)) is not None
    }


def weight_alignment(model):
    """cos(W, B) = <W, B> / (|W| |B|) of every feedback layer.

    Source: Robertson and Koyejo (2024), definition 4.1.

    Args:
        model: A built Keras model.

    Returns:
        `{key: cosine}`, floats computed in float64: 1 under backpropagation, nan where
        W = 0 or B = 0, so that there is no angle. Keys are those of `alignment_terms`.

    Raises:
        ValueError: As `alignment_terms` does.
    """
    return {name: terms.cosine for name, terms in alignment_terms(model).items()}


def feedback_distances(model):
    """|W - B| of every layer whose rule learns B or moves it.

    A cosine of W with a B that learns tends to 1 and hides its scale. Under
    Kolen-Pollack's rule this distance is what only decay changes: see
    `keras_fa.rules.KolenPollack`.

    Args:
        model: A built Keras model.

    Returns:
        `{key: float}`, keys as in `alignment_terms`, computed in float64.

    Raises:
        ValueError: As `alignment_terms` does.
    """
    found = {}
    for key, layer, index, kernel in found_maps(model):
        if layer.rule.learns or layer.rule.advances:
            apart = (_array(kernel) - _array(layer.backward_kernel(index))).ravel()
            found[key] = math.sqrt(_inner(apart, apart))
    return found


def smallest_weights(model):
    """min_j w[j] of every linear map with a single output.

    Source: Robertson and Koyejo (2024), lemma 5.4, under whose conditions w stays
    positive.

    Args:
        model: A built Keras model.

    Returns:
        `{key: float}`, keys as in `alignment_terms`.
    """
    return {
        key: float(autodiff.array(kernel).min())
        for key, layer, index, kernel in found_maps(model)
        if math.prod(kernel.shape[a] for a in layer.geometry(index).outputs) == 1
    }


def weight_alignment_bounds(model):
    """What theory guarantees of `weight_alignment`.

    1 under backpropagation. `1/sqrt(n)` for a layer of n weights under sign-FA, at any
    time (proposition 5.3 of Robertson and Koyejo, 2024). For the one-unit output layer
    of a `keras.Sequential` with a stored B, after a dense layer followed by nothing but
    (leaky) ReLU and dropout: `dominance.output_alignment_bound` (lemma 5.4), where the
    current weights allow it. That one is promised from now on, for the feedback flow
    of the loss alone, both layers training.

    Args:
        model: A built Keras model.

    Returns:
        `{key: lower bound}`, None where nothing is guaranteed; keys as in
        `alignment_terms`.

    Raises:
        ValueError: As `alignment_terms` does.
    """
    bounds = {}
    for key, layer, _, kernel in found_maps(model):
        bounds[key] = layer.rule.alignment_bound(tuple(kernel.shape))
        if bounds[key] is not None:
            continue
        if (hidden := _hidden_layer_before(model, layer)) is not None:
            arrays = [hidden.kernel, layer.kernel, layer.feedback]
            if hidden.bias is not None:
                arrays.append(hidden.bias)
            bounds[key] = _dominance.output_alignment_bound(
                *(_array(array) for array in arrays)
            )
    return bounds


def _hidden_layer_before(model, layer):
    """The dense layer that lemma 5.4 pairs with a scalar output layer, or None."""
    scalar_output = (
        isinstance(model, keras.Sequential)
        and layer is model.layers[-1]
        and isinstance(layer, keras.layers.Dense)
        and layer.kernel.shape[1:] == (1,)
        and layer.feedback is not None
        # The lemma is about a B that stays as it is.
        and not (layer.rule.learns or layer.rule.advances)
    )
    if not scalar_output:
        return None
    for before in reversed(model.layers[:-1]):
        if isinstance(before, keras.layers.Dense):
            return before if _is_homogeneous(before.activation) else None
        if not (isinstance(before, keras.layers.Dropout) or _is_homogeneous(before)):
            return None
    return None


def _is_homogeneous(activation):
    return _graph.activation_reason(activation, path="") is None


def _alignment(true, feedback):
    true, feedback = _array(true).ravel(), _array(feedback).ravel()
    return Alignment(
        _inner(true, feedback),
        math.sqrt(_inner(true, true)),
        math.sqrt(_inner(feedback, feedback)),
    )


def _inner(first, second):
    # Not `first @ second`: the threads of NumPy's BLAS go on spinning for a while
    # after a call, and training steps that follow a reading take twice as long.
    return float(np.einsum("i,i->", first, second))


def _array(values):
    return autodiff.array(values).astype(np.float64, copy=False)


def found_maps(model):
    """Yields `(key, layer, index, kernel)` for each linear map of the feedback layers.

    Raises:
        ValueError: If there are none, or one is not built.
    """
    found = {id(layer): layer for layer in found_feedback_layers(model)}
    for identity, name in layer_keys(model).items():
        layer = found.get(identity)
        for index, entry in enumerate(layer.maps if layer else ()):
            key = name if len(layer.maps) == 1 else f"{name}/{entry.kernel}"
            yield key, layer, index, getattr(layer, entry.kernel)


def found_feedback_layers(model):
    """The feedback layers of a model, a list.

    Raises:
        ValueError: If there are none, or one is not built.
    """
    layers = feedback_layers(model)
    if not layers:
        raise ValueError(
            f"Model '{model.name}' has no feedback layers. Expected a model built of "
            "keras_fa.layers, such as keras_fa.models.mlp returns."
        )
    for layer in layers:
        if not layer.built:
            raise ValueError(
                f"The layer '{layer.name}' of model '{model.name}' is not built: it "
                "has no weights yet. Call the model on a batch first."
            )
    return layers


def layer_keys(model):
    """What the readings of each layer with weights are called.

    Args:
        model: A Keras model.

    Returns:
        `{id(layer): text}`: its name, or the names on the way to it where layers with
        weights share one, and a number after it (".2") where even those are the same.
    """
    paths = _keras.paths_of(model)
    weighty = [
        (path, layer)
        for path, layer in [(model.name, model), *paths]
        if any(map(len, _keras.own_variables(layer)))
    ]
    names = collections.Counter(layer.name for _, layer in weighty)
    keys, taken = {}, collections.Counter()
    for path, layer in weighty:
        key = layer.name if names[layer.name] == 1 else path
        taken[key] += 1
        keys[id(layer)] = key if taken[key] == 1 else f"{key}.{taken[key]}"
    return keys
