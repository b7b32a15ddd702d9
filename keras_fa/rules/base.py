"""What a feedback rule is: what it stores, what it sends back, what it conserves.

Rules know nothing of layers or models. Everything that is said of one rule and not of
another, to its name in a figure's legend, is said in its class.
"""

import copy
import dataclasses
import math
import weakref
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_fa import _keras, autodiff, registry

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
        learned: Whether the optimizer trains it, on a gradient that flows into the
            backward kernel: that of W, bit for bit.
        dtype: None for the kernel's. An "int32" slot holds what noise is drawn from.
    """

    shape: tuple
    initial: Callable
    learned: bool = False
    dtype: str | None = None


class Geometry(NamedTuple):
    """How a kernel maps the inputs of a product to its outputs.

    Attributes:
        inputs: Axes of the kernel that the product sums over, a tuple.
        outputs: The others.
        fans: Pair of integers, how many numbers of the input an output is made of and
            how many outputs an input goes into, as the kernel's initializer counts
            them.
        index: Which of the layer's kernels it is.
        told: Whether the layer tells these axes to initializers that ask for them, as
            Keras's EinsumDense does.
    """

    inputs: tuple
    outputs: tuple
    fans: tuple
    index: int = 0
    told: bool = False

    def matrix(self, kernel):
        """A kernel, or one like it, as a matrix (inputs, outputs)."""
        shape = tuple(kernel.shape)
        kernel = _transposed(kernel, self.inputs + self.outputs)
        return ops.reshape(kernel, (-1, math.prod(shape[a] for a in self.outputs)))

    def kernel(self, matrix, shape):
        """Undoes `matrix` for a kernel of that shape."""
        order = self.inputs + self.outputs
        kernel = ops.reshape(matrix, [shape[axis] for axis in order])
        return _transposed(kernel, sorted(range(len(order)), key=order.__getitem__))


def _transposed(tensor, order):
    in_order = list(order) == sorted(order)
    return tensor if in_order else ops.transpose(tensor, order)


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

    def for_map(self, geometry):
        """The rule as one linear map of a layer sees it.

        Args:
            geometry: `Geometry` of its kernel.

        Returns:
            The rule itself unless the geometry matters to it.
        """
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
            backpropagation, None that no error goes to the layer's inputs.
        """
        raise NotImplementedError

    def factors(self, kernel, **stored):
        """B as a product, where that is cheaper than to make B.

        Layers whose outputs are the kernel's last axis take it: the error then goes
        through the second factor before it goes through the first.

        Args:
            kernel: The current W.
            **stored: What the layer stores, by the names of `slots`.

        Returns:
            None; or (K, M), K of the kernel's shape and M a square matrix, with
            B = K M along the last axis.
        """
        return None

    def learned(self, kernel, **stored):
        """What gets the gradient of W besides W, for the optimizer to train its parts.

        Args:
            kernel: The current W.
            **stored: What the layer stores, by the names of `slots`.

        Returns:
            A tensor of the kernel's shape, made of the learned slots: B by default.
        """
        return self.backward_kernel(kernel, **stored)

    def check_training(self, optimizer, kernel):
        """Refuses what the rule cannot be trained with, in a training pass.

        Args:
            optimizer: The optimizer of the model that is trained; None where it is not
                known, in a training loop of one's own.
            kernel: The variable W.

        Raises:
            ValueError: If training would go wrong.
        """

    def advance(self, kernel, bias, initializer, **stored):
        """What becomes of the slots in a training pass, before its products.

        A pure function, once for each call of the layer in training mode. What the
        optimizer learns is not its affair.

        Args:
            kernel: The current W.
            bias: The bias, which broadcasts against the kernel's output axes; None
                where there is none.
            initializer: What drew the kernel: see `Slot`.
            **stored: As for `backward_kernel`.

        Returns:
            `{slot name: new value}` of those that change.
        """
        return {}

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

    @property
    def learns(self):
        """Whether the optimizer trains something that the rule stores."""
        return any(slot.learned for slot in self.slots((1, 1)).values())

    @property
    def advances(self):
        """Whether something that the rule stores changes with each training pass."""
        return type(self).advance is not FeedbackRule.advance

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


class DrawnRule(FeedbackRule):
    """Base of the rules that draw something as W was drawn, and apart from it.

    Args:
        initializer: What draws: a Keras initializer, its name or its config. None, the
            default, means the layer's own kernel initializer under another seed, so
            that the error keeps the scale that the network was built for.
        seed: Integer. The first layer that takes the rule object draws with it, every
            further layer with a seed derived from it, so feedback differs from layer
            to layer and is the same again in the next process. None, the default,
            derives the seed from that of the kernel's initializer, which follows
            `keras.utils.set_random_seed`: nothing is taken from the stream that W is
            drawn from, so a network has the same W under every rule.

    Raises:
        ValueError: If the seed is not an integer, and, when a layer is built, if what
            is drawn repeats the kernel, is zero, or is not finite.
    """

    _geometry = None

    def __init__(self, initializer=None, seed=None):
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(
                f"The seed of {type(self).__name__} must be an integer or None. "
                f"Received: seed={seed!r}."
            )
        self.initializer = None
        if initializer is not None:
            with _keras.undrawn():
                self.initializer = keras.initializers.get(initializer)
        self.seed = seed
        self._layers = 0

    def for_layer(self):
        # One seed must not give two layers the same B. Each layer keeps a rule of its
        # own with its seed in it, so that a layer made from this layer's config draws
        # the same B again, as Keras layers with seeded initializers do.
        base = self.seed
        if base is None:
            base = _integer_seed(self.initializer)
        if base is None:
            return self
        seed = base if self._layers == 0 else _derived_seed(base, self._layers)
        self._layers += 1
        rule = copy.copy(self)
        rule.seed = seed
        rule._layers = 1
        return rule

    def for_map(self, geometry):
        rule = copy.copy(self)
        rule._geometry = geometry
        if geometry.index and self.seed is not None:
            # One seed must not give two kernels of a layer the same B either.
            rule.seed = _derived_seed(self.seed, _MAP_STREAM + geometry.index)
        return rule

    def _geometry_of(self, kernel_shape):
        """The kernel's geometry; without a layer, that of a dense kernel."""
        if self._geometry is not None:
            return self._geometry
        axes = tuple(range(len(kernel_shape)))
        return Geometry(axes[:-1], axes[-1:], ())

    def _drawing(self, kernel_initializer):
        """What draws something like the kernel."""
        initializer = self.initializer
        if initializer is None:
            initializer = kernel_initializer
        told = self._geometry is not None and self._geometry.told
        asks = isinstance(initializer, keras.initializers.VarianceScaling) and (
            initializer.input_axes is None or initializer.output_axes is None
        )
        if not (told and asks):
            return initializer
        axes = {
            "input_axes": self._geometry.inputs,
            "output_axes": self._geometry.outputs,
        }
        config = {**initializer.get_config(), **axes, "seed": initializer.seed}
        return type(initializer).from_config(config)

    def _draw(self, kernel, kernel_initializer, shape=None, stream=0):
        """Values of the kernel's shape, or another, unlike the kernel's own.

        What a rule draws for one kernel comes from streams with different numbers.
        """
        if shape is None:
            initializer = self._drawing(kernel_initializer)
        elif self.initializer is None:
            initializer = kernel_initializer
        else:
            initializer = self.initializer
        if self.seed is not None and self.seed == _integer_seed(kernel_initializer):
            raise ValueError(
                f"The kernel initializer and the feedback share the seed {self.seed}, "
                f"which would make B a copy of W. Give {type(self).__name__} another "
                'seed, or use rule="ada_fa" if B = W at the start is what you want.'
            )
        seed = self._seed(kernel_initializer, stream)
        values = _reseeded(initializer, seed)(
            tuple(kernel.shape) if shape is None else shape,
            dtype=keras.backend.standardize_dtype(kernel.dtype),
        )
        if shape is None and _is_copy(values, kernel):
            raise ValueError(
                f"The initializer {initializer!r} drew feedback equal to the kernel. "
                f"Give {type(self).__name__} an initializer that draws anew, or use "
                'rule="ada_fa" if B = W at the start is what you want.'
            )
        return carries_errors(values, f"the initializer {initializer!r} drew")

    def _seed(self, kernel_initializer, stream=0):
        if self.seed is None:
            return _seed_beside(kernel_initializer)
        return self.seed if stream == 0 else _derived_seed(self.seed, -stream % 2**32)

    def _noise(self):
        """A slot that noise is drawn from: its seed, and how often it was drawn."""

        def initial(kernel, kernel_initializer):
            seed = self._seed(kernel_initializer, stream=1)
            return np.array([0 if seed is None else seed, 0], "int32")

        return Slot((2,), initial, dtype="int32")

    def get_config(self):
        initializer = self.initializer
        if initializer is not None:
            initializer = keras.initializers.serialize(initializer)
        return {"initializer": initializer, "seed": self.seed}


def carries_errors(feedback, origin):
    """The feedback, unless it is zero or not finite: no error would pass.

    Args:
        feedback: Array or tensor.
        origin: Where it came from, for the error: "the initializer ... drew".

    Raises:
        ValueError: If every entry is zero, or one is NaN or infinite.
    """
    values = _values(feedback)
    if values is None:
        return feedback
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"B must be finite, but {origin} NaN or infinite values. Use another "
            "initializer."
        )
    if not values.any():
        raise ValueError(
            f"B would be zero, for {origin} zeros: no error would ever reach the "
            "layers below. Give the rule an initializer of its own, such as "
            'keras_fa.rules.FeedbackAlignment("glorot_uniform"), or the kernel another '
            "one. A first layer, which passes no error on, can do without: "
            'rule="backprop".'
        )
    return feedback


def _values(tensor):
    """A tensor as a float array, or None while it is symbolic."""
    try:
        return autodiff.array(tensor).astype("float64")
    except (NotImplementedError, TypeError):
        # Symbolic tensors, in TensorFlow's and in JAX's words: nothing to see yet.
        return None


def _integer_seed(initializer):
    """The integer seed that an initializer was made with, or None."""
    if isinstance(initializer, keras.initializers.Initializer):
        seed = initializer.get_config().get("seed")
        return seed if isinstance(seed, int) else None
    return None


def _derived_seed(seed, index):
    """Another 31-bit seed for each index, a pure function of both."""
    return int(np.random.SeedSequence([seed % 2**64, index]).generate_state(1)[0] >> 1)


# How often feedback was drawn beside each kernel initializer, which layers may share.
_drawn_beside = weakref.WeakKeyDictionary()

# Of the streams that are derived from a seed: the lab's are counted from 0.
_FEEDBACK_STREAM = 2**31
_MAP_STREAM = 3 * 2**29


def _seed_beside(initializer):
    """A seed from that of a kernel's initializer, another one each time; or None."""
    seed = getattr(initializer, "seed", None)
    if not isinstance(seed, int):
        return None
    count = _drawn_beside.get(initializer, 0)
    _drawn_beside[initializer] = count + 1
    return _derived_seed(seed, _FEEDBACK_STREAM + count)


def _is_copy(feedback, kernel):
    """Whether B repeats the random values of W; a constant B may equal a constant W."""
    feedback, kernel = _values(feedback), _values(kernel)
    if feedback is None or kernel is None:
        return False
    return feedback.min() != feedback.max() and np.array_equal(feedback, kernel)


def _reseeded(initializer, seed):
    """The initializer with another seed (None: a fresh one), if it takes one at all."""
    if isinstance(initializer, keras.initializers.Initializer):
        config = initializer.get_config()
        if "seed" in config:
            return type(initializer).from_config({**config, "seed": seed})
    return initializer
