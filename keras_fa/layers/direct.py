"""The layer that brings the output's error to the hidden layers."""

import math

import keras
import numpy as np
from keras import ops

from keras_fa import _keras, gradients, rules


@keras.saving.register_keras_serializable(rules.PACKAGE)
class DirectFeedback(keras.layers.Layer):
    """Returns a model's output; backward, hands its error to the hidden layers too.

    Called on `[output, *taps]`, tensors of shape (batch, outputs) and (batch, ...).
    With the error e at the output, tap l gets `signal(e) B_l^T`. Each B_l is the kernel
    of a readout of the tap whose forward product nothing consumes, so that compiled
    steps have the backward product alone. See `keras_fa.direct`.

    Args:
        rule: `keras_fa.rules.DirectFeedbackAlignment` or a relative.
        **kwargs: Of `keras.layers.Layer`.

    Attributes:
        ghosts: List of the ghost readouts G_l, variables (units, outputs); empty
            without ghosts.

    Raises:
        ValueError: When it is built, if the rule asks for more nonzeros than there are
            outputs, or for a B_l that is zero or not finite.
        NotImplementedError: In training on JAX under a loss scale, with a signal that
            takes its size from it.
    """

    def __init__(self, rule="dfa", **kwargs):
        super().__init__(**kwargs)
        self._rule = rules.get(rule)
        self.ghosts = []
        self._parts = []

    @property
    def rule(self):
        """The layer's rule."""
        return self._rule

    def build(self, input_shape):
        rule, (output, *taps) = self._rule, input_shape
        units = [math.prod(shape[1:]) for shape in taps]
        seeds = iter(self._seeds(2 * len(units) + 1))
        if rule.kind == "shared":
            shape = (max(units), output[-1])
            shared = self._add("B", shape, _uniform(1.0, next(seeds)))
            self._parts = [(shared,)] * len(units)
        else:
            self._parts = [
                self._own_parts(number, size, output[-1], seeds)
                for number, size in enumerate(units)
            ]
        self._units = units
        if rule.ghost:
            self.ghosts = [
                self._add(f"G_{number}", (size, output[-1]), "zeros", trainable=True)
                for number, size in enumerate(units)
            ]

    def _own_parts(self, number, size, outputs, seeds):
        """What the B of a tap is made of: itself, or U and V^T."""
        rule = self._rule
        limit = rule.limit(size, outputs)
        if rule.kind == "low_rank":
            # Factors with the same limit, and a product with the full B's variance.
            limit = math.sqrt(limit * math.sqrt(3 / rule.rank))
            return tuple(
                self._add(f"{name}_{number}", shape, _uniform(limit, next(seeds)))
                for name, shape in (
                    ("U", (size, rule.rank)),
                    ("V", (rule.rank, outputs)),
                )
            )
        initializer = rule.initializer or _uniform(limit, next(seeds))
        if rule.kind == "sparse":
            initializer = _sparse(initializer, rule.nonzeros, next(seeds))
        return (self._add(f"B_{number}", (size, outputs), initializer, rule.learned),)

    def _add(self, name, shape, initializer, trainable=False):
        initializer = keras.initializers.get(initializer)

        def drawn(shape, dtype):
            values = initializer(shape, dtype=dtype)
            if name.startswith("G_"):
                return values
            return rules.carries_errors(values, f"the initializer of {name} drew")

        return self.add_weight(
            name=name, shape=shape, initializer=drawn, trainable=trainable
        )

    def _seeds(self, count):
        seed = self._rule.seed
        if seed is None:
            seed = keras.initializers.RandomUniform().seed
        drawn = np.random.SeedSequence([seed % 2**64, 2**30]).generate_state(count)
        return [int(value >> 1) for value in drawn]

    def feedback(self, index):
        """B_l of a tap now, a tensor (units, outputs)."""
        first, *others = (ops.copy(part) for part in self._parts[index])
        if self._rule.kind == "shared":
            return first[: self._units[index]] / math.sqrt(max(self._units))
        return ops.matmul(first, *others) if others else first

    def readout(self, index):
        """What is trained on a tap and the signal, a variable (units, outputs).

        B_l itself under a rule that learns it, else the ghost G_l, or None.
        """
        if self._rule.learned:
            return self._parts[index][0]
        return self.ghosts[index] if self.ghosts else None

    def feedback_variables(self):
        """All that is stored: feedback and ghosts."""
        return list(self.weights)

    def call(self, inputs):
        output, *taps = inputs
        if isinstance(self._rule, rules.Backprop):
            return output
        if self.ghosts and _keras.in_training(self):
            self._keep_ghosts_out_of_norm()
        readouts = []
        for index, tap in enumerate(taps):
            tap = ops.reshape(tap, (ops.shape(tap)[0], self._units[index]))
            feedback = self.feedback(index)
            if not self._rule.learned:
                feedback = ops.stop_gradient(feedback)
            else:
                # As in the feedback layers: read before the optimizer writes.
                tap = _keras.after(tap, [feedback])
            readouts.append(ops.matmul(tap, feedback))
            if self.ghosts:
                tap = ops.stop_gradient(tap)
                readouts.append(ops.matmul(tap, self.ghosts[index]))
        return gradients.direct(output, readouts, self._rule.signal, self._loss_scale())

    def _loss_scale(self):
        """What a training step multiplies its loss by, against half precision."""
        optimizer = _keras.optimizer_of_call(self) if _keras.in_training(self) else None
        if optimizer is None:
            return 1.0
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if scaled and self._rule.signal != "error" and keras.config.backend() == "jax":
            raise NotImplementedError(
                f'The signal "{self._rule.signal}" takes its size from the loss scale, '
                "which JAX would keep as it was when it compiled the step. Train in "
                '"mixed_bfloat16" or float32, use signal="error", or another backend.'
            )
        return optimizer.scale_loss(1.0)

    def _keep_ghosts_out_of_norm(self):
        """With ghosts, the weights take the steps that they take without."""
        optimizer = _keras.optimizer_of_call(self)
        while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        if optimizer is not None:
            _keras.keep_out_of_norm(optimizer, self.ghosts)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])

    def get_config(self):
        return {**super().get_config(), "rule": rules.serialize(self._rule)}


def _uniform(limit, seed):
    return keras.initializers.RandomUniform(-limit, limit, seed=seed)


def _sparse(initializer, nonzeros, seed):
    """What an initializer draws, all but some entries of each row set to zero."""

    def draw(shape, dtype=None):
        outputs = shape[1]
        if nonzeros > outputs:
            raise ValueError(
                f"Each unit is to have {nonzeros} nonzeros in its row of B, but there "
                f"are {outputs} outputs. Choose at most so many."
            )
        order = np.random.default_rng(seed).random(shape).argsort(axis=1)
        mask = ops.convert_to_tensor(order < nonzeros, dtype)
        return mask * initializer(shape, dtype=dtype)

    return draw
