"""The feedback gradient and error signals against backpropagation's.

Both sides run on the model itself, forward and backward, once under its own rules and
once under backpropagation. This is the one part of the instruments that needs
TensorFlow itself, for its gradient tape.
"""

import contextlib
import dataclasses
import functools
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_fa import _keras, rules
from keras_fa.analysis._alignment import Alignment, by_name, named_feedback_layers
from keras_fa.layers import feedback_layers, forward_variables

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
    Weight decay belongs to the optimizer and is not. The whole batch is one pass, so
    it has to fit in memory as a training step of that size would. Models of a
    `tf.distribute` strategy are measured on one replica; call from outside its scope,
    as callbacks are, for inside Keras divides every loss by the number of replicas.

    Args:
        model: A built Keras model. Make a new object if a layer's `trainable` changes.
        loss: A Keras loss, its name, or a function of (y_true, y_pred), averaged over
            what it returns; penalties are added. None takes the compiled model's.
        run_eagerly: Do not compile: the better way to measure once.

    Raises:
        ValueError: If the model has no feedback layers or two trainable layers of one
            name, if there is no loss, or the loss is unknown.
    """

    def __init__(self, model, loss=None, run_eagerly=False):
        named_feedback_layers(model)
        if loss is None and not model.compiled:
            raise ValueError(
                f"Model '{model.name}' is not compiled, so it has no loss. Compile it, "
                'or pass a loss, such as loss="mse".'
            )
        self.model = model
        self._loss = None if loss is None else keras.losses.get(loss)
        self._layer_names = _owners(model)
        if not run_eagerly:
            compiled = functools.partial(tf.function, reduce_retracing=True)
            self._compare_gradients = compiled(self._compare_gradients)
            self._compare_signals = compiled(self._compare_signals)
            self._small_step = compiled(self._small_step)

    def __call__(self, x, y):
        """The alignment on one batch: see `gradient_alignment`."""
        loss, terms = self._compare_gradients(*_tensors(x, y))
        terms = terms.numpy()
        layers = {
            name: _from_squares(terms[np.asarray(self._layer_names) == name].sum(0))
            for name in dict.fromkeys(self._layer_names)
        }
        return GradientAlignmentResult(
            float(loss), _from_squares(terms.sum(axis=0)), layers
        )

    def loss_decrease(self, x, y, step_size):
        """What a small step along the feedback gradient should gain, and what it does.

        Equation (1) of Robertson and Koyejo (2024) at a finite step: their ratio tends
        to 1 with the step, the difference being of second order in it. The measured
        side is a difference of losses, which in float32 are good to about 1e-7 of
        their value: do not take the step too small.

        Args:
            x: Inputs, as for `gradient_alignment`.
            y: Targets.
            step_size: The learning rate of the step, a float.

        Returns:
            (predicted, measured): `step_size * <gradient, feedback gradient>`, and the
            loss at theta less the loss at `theta - step_size * feedback gradient`.
        """
        step = tf.constant(step_size, tf.float64)
        slope, decrease = self._small_step(*_tensors(x, y), step)
        return float(step_size * slope), float(decrease)

    def errors(self, x, y, per_example=False):
        """The alignment of the error signals on one batch: see `error_alignment`."""
        terms = self._compare_signals(*_tensors(x, y), per_example)
        return {name: _from_squares(term.numpy()) for name, term in terms.items()}

    def _gradient_pair(self, x, y):
        loss, feedback = self._gradients(x, y)
        with _backpropagation(self.model):
            _, true = self._gradients(x, y)
        return loss, true, feedback

    def _compare_gradients(self, x, y):
        loss, true, feedback = self._gradient_pair(x, y)
        pairs = zip(true, feedback, strict=True)
        return loss, tf.stack([_squares(*pair) for pair in pairs])

    def _small_step(self, x, y, step_size):
        before, true, feedback = self._gradient_pair(x, y)
        pairs = zip(true, feedback, strict=True)
        slope = tf.add_n([_squares(*pair)[0] for pair in pairs])
        values = [
            value - tf.cast(step_size, value.dtype) * gradient
            for value, gradient in zip(self._values(), feedback, strict=True)
        ]
        after, _ = self._forward(x, y, values)
        return slope, tf.cast(before, tf.float64) - tf.cast(after, tf.float64)

    def _compare_signals(self, x, y, per_example):
        feedback = self._error_signals(x, y)
        with _backpropagation(self.model):
            true = self._error_signals(x, y)
        terms = {}
        for (name, true_signal), (_, signal) in zip(true, feedback, strict=True):
            if not per_example:
                true_signal = tf.reduce_sum(true_signal, axis=0)
                signal = tf.reduce_sum(signal, axis=0)
            # A layer that the model calls more than once has a signal for each call.
            terms[name] = terms.get(name, 0) + _squares(true_signal, signal)
        return terms

    def _gradients(self, x, y):
        values = self._values()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss, _ = self._forward(x, y, values)
        return loss, tape.gradient(
            loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    def _error_signals(self, x, y):
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            _hidden_outputs(self.model, tape.watch) as hidden,
        ):
            loss, outputs = self._forward(x, y, self._values())
        outputs = {id(output) for output in keras.tree.flatten(outputs)}
        hidden = [item for key, item in hidden.items() if key not in outputs]
        signals = tape.gradient(
            loss,
            [tensor for _, tensor in hidden],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [(name, s) for (name, _), s in zip(hidden, signals, strict=True)]

    def _values(self):
        return [tf.convert_to_tensor(v.value) for v in forward_variables(self.model)]

    def _forward(self, x, y, values):
        """(loss, outputs) in training mode with these trainable values, no effects."""
        model = self.model
        mapping = list(zip(forward_variables(model), values, strict=True))
        with keras.StatelessScope(mapping, collect_losses=True):
            outputs = model(x, training=True)
            if self._loss is None:
                return model.compute_loss(x, y, outputs), outputs
            # What compile makes of a function: the mean of its values. A keras.Loss
            # has reduced them already.
            loss = ops.mean(self._loss(y, outputs))
            for penalty in model.losses:
                loss = ops.add(loss, penalty)
            return loss, outputs


@dataclasses.dataclass(frozen=True)
class GradientAlignmentResult:
    """What `gradient_alignment` measured on one batch.

    Attributes:
        loss: The total loss, penalties included.
        whole: `Alignment` of the gradients with respect to all trainable variables.
        layers: `{layer name: Alignment}`: kernel and bias of a layer (or gamma and
            beta, or whatever it trains) taken together, stock Keras layers included.
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


def gradient_alignment(model, x, y, loss=None):
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
        loss: A Keras loss, its name or a function. None, the default, takes the
            compiled model's.

    Returns:
        `GradientAlignmentResult`; its sums are taken in float64.

    Raises:
        ValueError: As `GradientAlignment` does.
    """
    return GradientAlignment(model, loss, run_eagerly=True)(x, y)


def error_alignment(model, x, y, loss=None, per_example=False):
    """The angle between the error signals at every hidden layer.

    Song, Xu and Lafferty (2021), section 4: `delta_BP(h) = dL/dh`, with respect to the
    hidden activations h, so *before* the factor phi'; `delta_FA(h)` is what the
    feedback sends there instead. In their two-layer network of p units both are vectors
    of length p, W2 and B2 times the sum of the output errors *over the batch*, and so
    are they here. With one output their cosine is that of W2 and B2.

    h is the output of a feedback layer after its activation: its own `activation=` or
    the activation layer that takes its output directly. Where another layer takes it,
    as BatchNorm does, h is the feedback layer's output itself. What the model returns
    is left out, as no feedback reaches the error there.

    Args:
        model: A built Keras model with feedback layers. Nothing in it changes.
        x: Inputs as `model` takes them.
        y: Targets as the loss takes them.
        loss: As in `gradient_alignment`.
        per_example: Take the errors of all examples side by side, as one vector of
            batch times p, in place of their sum. The sum forgets what cancels between
            examples: with softmax outputs on a batch of balanced classes, nearly all.

    Returns:
        `{layer name: Alignment}`, the error signal of backpropagation on the true side.

    Raises:
        ValueError: As `GradientAlignment` does.
    """
    instrument = GradientAlignment(model, loss, run_eagerly=True)
    return instrument.errors(x, y, per_example)


@contextlib.contextmanager
def _backpropagation(model):
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
def _hidden_outputs(model, watch):
    """Fills `{id: (layer name, h)}` while a pass is traced; see `error_alignment`."""
    hidden = {}

    def recorded(layer, call):
        def call_and_record(inputs, *args, **kwargs):
            outputs = call(inputs, *args, **kwargs)
            name = layer.name
            if isinstance(layer, _ACTIVATIONS):
                name, _ = hidden.pop(id(inputs), (None, None))
            if name is not None:
                watch(outputs)
                # Kept with its tensor, or the id could be given to another one.
                hidden[id(outputs)] = name, outputs
            return outputs

        return call_and_record

    activations = [x for x in _keras.layers_of(model) if isinstance(x, _ACTIVATIONS)]
    layers = [*feedback_layers(model), *activations]
    try:
        for layer in layers:
            _keras.replace_call(layer, recorded(layer, layer.call))
        yield hidden
    finally:
        for layer in layers:
            _keras.restore_call(layer)


def _owners(model):
    """The name of the innermost layer that owns each trainable variable, in order."""
    owners = {}
    for layer in _keras.layers_of(model):
        owners.update((id(v), layer) for v in layer.trainable_variables)
    layers = [owners[id(v)] for v in forward_variables(model)]
    by_name(list(dict.fromkeys(layers)))
    return [layer.name for layer in layers]


def _tensors(x, y):
    return keras.tree.map_structure(tf.convert_to_tensor, (x, y))


def _squares(true, feedback):
    """<true, feedback>, |true|^2 and |feedback|^2, which add up over variables."""
    true, feedback = (tf.cast(side, tf.float64) for side in (true, feedback))
    return tf.stack(
        [
            tf.reduce_sum(true * feedback),
            tf.reduce_sum(true * true),
            tf.reduce_sum(feedback * feedback),
        ]
    )


def _from_squares(terms):
    inner_product, true, feedback = (float(term) for term in terms)
    return Alignment(inner_product, math.sqrt(true), math.sqrt(feedback))
