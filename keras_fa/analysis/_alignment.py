"""Weight alignment: how near the backward kernels are to the forward ones."""

import dataclasses
import math

import keras
import numpy as np

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
        `{layer name: Alignment}`, W on the true side, computed in float64. Nested
        layers included, in the order of the model; layers that send nothing back,
        under direct feedback, are left out.

    Raises:
        ValueError: If the model has no feedback layers, or two of one name.
    """
    pairs = {
        name: (layer.kernel, layer.backward_kernel())
        for name, layer in named_feedback_layers(model).items()
    }
    return {
        name: _alignment(kernel, backward)
        for name, (kernel, backward) in pairs.items()
        if backward is not None
    }


def weight_alignment(model):
    """cos(W, B) = <W, B> / (|W| |B|) of every feedback layer.

    Source: Robertson and Koyejo (2024), definition 4.1.

    Args:
        model: A built Keras model.

    Returns:
        `{layer name: cosine}`, floats computed in float64: 1 under backpropagation,
        nan for a layer with W = 0 or B = 0, which has no angle.

    Raises:
        ValueError: If the model has no feedback layers, or two of one name.
    """
    return {name: terms.cosine for name, terms in alignment_terms(model).items()}


def smallest_weights(model):
    """min_j w[j] of every feedback layer with a single output.

    Source: Robertson and Koyejo (2024), lemma 5.4, under whose conditions w stays
    positive.

    Args:
        model: A built Keras model.

    Returns:
        `{layer name: float}`.
    """
    return {
        name: float(np.asarray(layer.kernel).min())
        for name, layer in named_feedback_layers(model).items()
        if layer.kernel.shape[-1] == 1
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
        `{layer name: lower bound}`, None where nothing is guaranteed.

    Raises:
        ValueError: If the model has no feedback layers, or two of one name.
    """
    bounds = {}
    for name, layer in named_feedback_layers(model).items():
        bounds[name] = layer.rule.alignment_bound(tuple(layer.kernel.shape))
        if bounds[name] is not None:
            continue
        if (hidden := _hidden_layer_before(model, layer)) is not None:
            arrays = [hidden.kernel, layer.kernel, layer.feedback]
            if hidden.bias is not None:
                arrays.append(hidden.bias)
            bounds[name] = _dominance.output_alignment_bound(
                *(_array(array) for array in arrays)
            )
    return bounds


def _hidden_layer_before(model, layer):
    """The dense layer that lemma 5.4 pairs with a scalar output layer, or None."""
    scalar_output = (
        isinstance(model, keras.Sequential)
        and layer is model.layers[-1]
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
    return np.asarray(values, dtype=np.float64)


def named_feedback_layers(model):
    """`{name: feedback layer}`; ValueError if there are none or two of one name."""
    layers = feedback_layers(model)
    if not layers:
        raise ValueError(
            f"Model '{model.name}' has no feedback layers. Expected a model built of "
            "keras_fa.layers, such as keras_fa.models.mlp returns."
        )
    return by_name(layers)


def by_name(layers):
    """`{name: layer}`; ValueError if two layers have one name."""
    named = {layer.name: layer for layer in layers}
    if len(named) < len(layers):
        names = [layer.name for layer in layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            "Results are keyed by layer name, so the layers need distinct names, those "
            f"of nested models too. Received more than one layer called {twice}."
        )
    return named
