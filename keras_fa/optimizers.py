"""Stochastic gradient descent as the papers meant it, which Keras's SGD is not."""

import inspect

import keras
from keras import ops

from keras_fa import registry, rules
from keras_fa.registry import register


@register("optimizer", "sgd")
@keras.saving.register_keras_serializable(rules.PACKAGE)
class TorchSGD(keras.optimizers.Optimizer):
    """SGD with torch's momentum and torch's coupled weight decay.

    The update of a variable w with gradient g is

        v <- momentum * v + (g + weight_decay * w)
        w <- w - learning_rate * v

    Keras's SGD keeps the learning rate inside v, which differs as soon as the learning
    rate changes, and its `weight_decay` acts on w directly instead of passing through
    v. The papers' experiments ran on torch.

    Args:
        learning_rate: Number or `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: Share of v that a step keeps, in [0, 1).
        weight_decay: Coefficient of the L2 term. It acts on every variable but those
            given to `exclude_from_weight_decay`.
        weight_decay_steps: Steps after which the L2 term ends; None for never. With
            it, the cut-off penalty of theorem 4.6 of Song, Xu and Lafferty (2021).
        **kwargs: Further arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: If momentum or weight decay is out of range.
    """

    # What the short form of product feedback asks for.
    linear_in_gradient = True

    def __init__(
        self,
        learning_rate=0.01,
        momentum=0.0,
        weight_decay=0.0,
        weight_decay_steps=None,
        name="torch_sgd",
        **kwargs,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1). Received: {momentum}.")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0. Received: {weight_decay}.")
        # The base class would apply a weight_decay of its own, decoupled.
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay
        self.weight_decay_steps = weight_decay_steps

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._velocities = []
        if self.momentum:
            self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        step = ops.cast(gradient, variable.dtype)
        if self.coupled_weight_decay and self._use_weight_decay(variable):
            step = ops.add(step, ops.multiply(variable, self._decay(variable.dtype)))
        if self.momentum:
            velocity = self._velocities[self._get_variable_index(variable)]
            step = ops.add(ops.multiply(velocity, self.momentum), step)
            self.assign(velocity, step)
        learning_rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, ops.multiply(learning_rate, step))

    def _decay(self, dtype):
        if self.weight_decay_steps is None:
            return self.coupled_weight_decay
        on = ops.less(self.iterations, self.weight_decay_steps)
        return ops.multiply(ops.cast(on, dtype), self.coupled_weight_decay)

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "weight_decay": self.coupled_weight_decay,
            "weight_decay_steps": self.weight_decay_steps,
        }


def get(name):
    """The class of an optimizer by the name that a configuration gives it.

    Args:
        name: "sgd" for `TorchSGD`; the name of any Keras optimizer, in any case, such
            as "adamw" or "Lion"; a registered name or "module:Class".

    Returns:
        A `keras.optimizers.Optimizer` class.

    Raises:
        ValueError: If there is none of that name.
    """
    known = {
        key.lower(): value
        for key, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    }
    # Keras's own SGD is not what the papers' "sgd" was; the others hold optimizers.
    for key in ("optimizer", "sgd", "lossscaleoptimizer", "multioptimizer"):
        known.pop(key, None)
    if isinstance(name, str) and name.lower() in known:
        return known[name.lower()]
    if name not in registry.names("optimizer") and ":" not in str(name):
        everything = [*registry.names("optimizer"), *known]
        raise ValueError(
            f"Unknown optimizer: {name!r}.{registry.did_you_mean(name, everything)} "
            f"Known: {', '.join(everything)}."
        )
    found = registry.get("optimizer", name)
    if not (isinstance(found, type) and issubclass(found, keras.optimizers.Optimizer)):
        raise ValueError(
            f"The optimizer {name!r} must be a subclass of keras.optimizers.Optimizer. "
            f"Received: {found!r}."
        )
    return found


def arguments(optimizer_class):
    """The names of an optimizer's arguments, a list.

    Those of its base classes are among them as far as it passes further arguments on.
    """
    names = []
    for base in optimizer_class.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        further = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        names += [p.name for p in parameters if p not in further]
        if not further:
            break
    return list(dict.fromkeys(names))
