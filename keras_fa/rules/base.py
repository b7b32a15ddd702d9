"""What a feedback rule is: what it stores, what it sends back, what it conserves.

Rules know nothing of layers or models. Everything that is said of one rule and not of
another, to its name in a figure's legend, is said in its class.
"""

import dataclasses
from collections.abc import Callable

from keras_fa import registry

PACKAGE = "keras_fa"


@dataclasses.dataclass(frozen=True)
class Slot:
    """One variable that a rule stores with each kernel of a layer.

    Attributes:
        shape: Its shape, a tuple.
        initial: Function of (kernel, kernel_initializer) that returns its first values:
            the kernel W is initialised already, of any rank; what drew it is a Keras
            initializer or any callable `(shape, dtype) -> values`. It may be called on
            symbolic tensors while an unbuilt model is traced.
        dtype: None for the kernel's.
    """

    shape: tuple
    initial: Callable
    dtype: str | None = None


class FeedbackRule:
    """Base class of the feedback rules.

    A subclass says at least `backward_kernel`, and `slots` if something is to be
    stored. The layer owns the variables, so one rule object serves any number of
    layers. With a name, `@keras_fa.register("rule", "mine")`, it can be used wherever
    a rule can.

    Attributes:
        label: Short name for legends and tables; a class without one of its own is
            shown by its registered name, or else by the name of the class.
        color: Colour of its curves, as matplotlib takes it; None for any free one.

    Example:
        >>> class Halved(keras_fa.rules.FeedbackRule):
        ...     def backward_kernel(self, kernel):
        ...         return kernel / 2
        ...     def potential(self, kernel):
        ...         return kernel, kernel / 4
        >>> layer = keras_fa.layers.FeedbackDense(3, rule=Halved())
    """

    label = None
    color = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        # A subclass of "fa" is another rule: it does not take over its name, nor, with
        # a backward kernel of its own, what it conserves and guarantees.
        if "label" not in own:
            cls.label = cls.color = None
        if "backward_kernel" in own:
            for promise in ("potential", "alignment_bound"):
                if promise not in own:
                    setattr(cls, promise, getattr(FeedbackRule, promise))

    def for_layer(self):
        """The rule that one more layer keeps; itself unless a layer needs its own."""
        return self

    def slots(self, kernel_shape):
        """What a layer stores for each of its kernels.

        Args:
            kernel_shape: Shape of the kernel W.

        Returns:
            `{name: Slot}`. The name "feedback" is that of B itself, which the layer
            shows as `layer.feedback`.
        """
        return {}

    def backward_kernel(self, kernel, **stored):
        """The kernel of the backward pass.

        Args:
            kernel: The current W.
            **stored: What the layer stores, by the names of `slots`.

        Returns:
            A tensor of the kernel's shape and dtype. `kernel` itself means ordinary
            backpropagation.
        """
        raise NotImplementedError

    def potential(self, kernel, **stored):
        """A consumer's part in the conservation law, or None where there is none.

        For input channel j, whose row of the kernel is W[j], the part is a function Q_j
        of the weights whose change along the flow is <B[j], dW[j]>: then `Q_j` less
        the producers' half squared norms is conserved (`keras_fa.analysis`).

        Args:
            kernel: The current W.
            **stored: As for `backward_kernel`.

        Returns:
            None; or (V, B) for Q_j = <V[j], B[j]>; or (V, None) for
            Q_j = 1/2 |V[j]|^2. Tensors whose rows are those of the kernel.
        """
        return None

    def alignment_bound(self, kernel_shape):
        """What the rule guarantees of cos(W, B) at any time; None: nothing."""
        return None

    def get_config(self):
        """Constructor arguments, JSON-serialisable."""
        return {}

    @classmethod
    def from_config(cls, config):
        """The rule that `get_config` described."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def label_of(rule):
    """How a rule is called in legends and tables, a short text."""
    rule_class = type(rule)
    return (
        rule_class.label
        or registry.name_of("rule", rule_class)
        or registry.name_of("rule", rule)
        or rule_class.__name__
    )
