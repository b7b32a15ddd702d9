"""The losses of the papers' experiments that Keras does not have, and their names."""

import functools
import inspect

import keras
from keras import ops

from keras_fa import _keras, registry, rules
from keras_fa.registry import register


class _Loss(keras.losses.Loss):
    """A loss whose configuration has its dtype, which that of Keras's losses lacks."""

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype}


@register("loss", "exponential")
@keras.saving.register_keras_serializable(rules.PACKAGE)
class ExponentialLoss(_Loss):
    """exp(-y f(x)), the loss of proposition 5.7 of Robertson and Koyejo (2024).

    Labels are -1 and +1, of the shape of the outputs, (batch, 1), or of shape (batch,).

    Raises:
        ValueError: In a call, if labels and outputs have other shapes.
    """

    def __init__(self, reduction="sum_over_batch_size", name="exponential", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        y_true, y_pred = _of_one_shape(y_true, y_pred, self.name)
        return ops.mean(ops.exp(-y_true * y_pred), axis=-1)


@register("loss", "half_squared_error")
@keras.saving.register_keras_serializable(rules.PACKAGE)
class HalfSquaredError(_Loss):
    """1/2 |f(x) - y|^2, by default summed over the batch.

    The squared error of Song, Xu and Lafferty (2021), equation (2.2), and of Robertson
    and Koyejo (2023): sums where Keras's mean squared error has means, so that step
    sizes mean what they mean there. With one output the targets may be of shape
    (batch,).

    Raises:
        ValueError: In a call, if targets and outputs have other shapes.
    """

    def __init__(self, reduction="sum", name="half_squared_error", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        y_true, y_pred = _of_one_shape(y_true, y_pred, self.name)
        return 0.5 * ops.sum(ops.square(y_pred - y_true), axis=-1)


@register("loss", "sigmoid_cross_entropy")
def _sigmoid_cross_entropy(dtype=None, **arguments):
    loss = SigmoidCrossEntropy(dtype=dtype, **arguments)
    return loss, {"accuracy": keras.metrics.sparse_categorical_accuracy}


@keras.saving.register_keras_serializable(rules.PACKAGE)
class SigmoidCrossEntropy(_Loss):
    """Cross-entropy of a sigmoid for each class, summed over the classes.

    The loss of Akrout et al. (2019) and of Nøkland (2016). Labels are class ids of
    shape (batch,) or (batch, 1); outputs are logits of shape (batch, classes). Keras's
    binary cross-entropy has the mean over the classes.
    """

    def __init__(
        self,
        reduction="sum_over_batch_size",
        name="sigmoid_cross_entropy",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        classes = y_pred.shape[-1]
        labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        targets = ops.one_hot(labels, classes, dtype=y_pred.dtype)
        each = ops.binary_crossentropy(targets, y_pred, from_logits=True)
        return ops.sum(each, axis=-1)


def _of_one_shape(y_true, y_pred, name):
    """Targets and outputs, of one shape: what is broadcast would pair all with all.

    A last axis of one entry comes and goes, as in Keras's own losses.
    """
    shapes = tuple(y_true.shape), tuple(y_pred.shape)
    y_true, y_pred = _keras.of_one_rank(y_true, y_pred)
    sizes = zip(y_true.shape, y_pred.shape, strict=False)
    if len(y_true.shape) != len(y_pred.shape) or any(
        one != other and None not in (one, other) for one, other in sizes
    ):
        raise ValueError(
            f"The loss '{name}' needs targets of the shape of the outputs. Received: "
            f"targets {shapes[0]}, outputs {shapes[1]}."
        )
    return y_true, y_pred


@keras.saving.register_keras_serializable(rules.PACKAGE)
class SoftCrossEntropy(_Loss):
    """Cross-entropy of the softmax of logits with targets that are mixtures of classes.

    Targets are class ids, (batch,) or (batch, 1), or vectors over the classes, (batch,
    classes), as mixup makes them; logits are (batch, classes).

    Args:
        label_smoothing: The part s of each target that goes to all classes alike, of
            which there are K: (1 - s) t + s / K, Szegedy et al. (2016).

    Raises:
        ValueError: If `label_smoothing` is not in [0, 1).
    """

    def __init__(
        self,
        label_smoothing=0.0,
        reduction="sum_over_batch_size",
        name="soft_cross_entropy",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1). Received: {label_smoothing!r}."
            )
        self.label_smoothing = label_smoothing

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}

    def call(self, y_true, y_pred):
        classes = y_pred.shape[-1]
        targets = y_true
        if not _are_vectors(y_true, y_pred):
            ids = ops.reshape(ops.cast(y_true, "int32"), (-1,))
            targets = ops.one_hot(ids, classes, dtype=y_pred.dtype)
        share = self.label_smoothing
        targets = (1 - share) * targets + share / classes
        return ops.categorical_crossentropy(targets, y_pred, from_logits=True)


def _are_vectors(y_true, y_pred):
    return len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] != 1


def _of_ids(measure):
    """A measure that takes class ids, of vectors over the classes too."""

    def of_either(y_true, y_pred):
        if _are_vectors(y_true, y_pred):
            y_true = ops.argmax(y_true, axis=-1)
        return measure(y_true, y_pred)

    return of_either


def _top(k):
    """The measure whether the class is among the k largest outputs."""

    def is_among(y_true, y_pred):
        # TensorFlow's kernel takes no other floats.
        y_pred = ops.cast(y_pred, "float32")
        return keras.metrics.sparse_top_k_categorical_accuracy(y_true, y_pred, k)

    return is_among


@register("loss", "cross_entropy")
def _cross_entropy(
    dtype=None, label_smoothing=0.0, top_k=None, vectors=False, **arguments
):
    if label_smoothing or vectors:
        loss = SoftCrossEntropy(label_smoothing, dtype=dtype, **arguments)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, dtype=dtype, **arguments
        )
    measures = {"accuracy": keras.metrics.sparse_categorical_accuracy}
    if top_k is not None:
        if not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k must be an integer from 1. Received: {top_k!r}.")
        measures[f"top_{top_k}_accuracy"] = _top(top_k)
    if vectors:
        measures = {name: _of_ids(measure) for name, measure in measures.items()}
    return loss, measures


def get(name, dtype=None, **arguments):
    """A loss by the name that a configuration gives it, and what is measured with it.

    Args:
        name: "cross_entropy" (softmax of logits, integer labels; with `label_smoothing`
            in [0, 1), with `top_k` the share of examples whose class is among the k
            largest outputs is measured too, with `vectors` targets may be vectors over
            the classes), "exponential", "half_squared_error", the name of a Keras loss,
            a registered name or "module:function". One's own is a loss, a class of
            losses, a function (y_true, y_pred), or a function that returns a loss and
            what is to be measured with it, as below.
        dtype: What the loss is computed in. Keras takes float32 unless told otherwise,
            in a float64 model too; so do its own losses by name.
        **arguments: Of the loss.

    Returns:
        The loss, and `{name: function of (y_true, y_pred) -> (batch,)}`: the further
        measures whose means over the examples are logged.

    Raises:
        ValueError: If the name is unknown or an argument does not fit.
    """
    if name not in registry.names("loss") and ":" not in str(name):
        try:
            identifier = name
            if arguments:
                identifier = {"class_name": name, "config": arguments}
            return keras.losses.get(identifier), {}
        except (ValueError, TypeError) as error:
            known = registry.names("loss")
            raise ValueError(
                f"Unknown loss: {name!r} {arguments or ''}."
                f"{registry.did_you_mean(name, known)} Known: {', '.join(known)}, the "
                f'names of Keras\'s losses and "module:function". ({error})'
            ) from error
    found = registry.get("loss", name)
    if isinstance(found, keras.losses.Loss):
        return found, {}
    if not isinstance(found, type) and _is_function_of_outputs(found):
        return functools.partial(found, **arguments) if arguments else found, {}
    try:
        made = registry.made("loss", found, arguments, {"dtype": dtype})
    except TypeError as error:
        # Of what takes any argument and hands it on.
        raise ValueError(f"The loss {name!r}: {error}.") from error
    return made if isinstance(made, tuple) else (made, {})


def _is_function_of_outputs(function):
    """Whether a function takes (y_true, y_pred) rather than arguments of a loss."""
    parameters = inspect.signature(function).parameters.values()
    needed = [
        p
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 2
