"""Feedback rules: which kernel B the backward pass of a layer uses in place of W.

A rule knows two things: what a layer stores when it is built (`initial_feedback`) and
what its backward pass sees (`backward_kernel`). Rules know nothing of layers or models.
"""

import copy
import difflib
import math

import keras
import numpy as np
from keras import ops

PACKAGE = "keras_fa"


class FeedbackRule:
    """Base class of the feedback rules.

    Subclasses override the two methods below. The layer owns the variable that holds
    `initial_feedback`, so one rule object can serve any number of layers.
    """

    def for_layer(self):
        """The rule that one more layer keeps; itself unless a layer needs its own."""
        return self

    @property
    def stores_feedback(self):
        """Whether layers store a B: whether the rule overrides `initial_feedback`."""
        return type(self).initial_feedback is not FeedbackRule.initial_feedback

    def initial_feedback(self, kernel, kernel_initializer):
        """The feedback to store with a layer; not overridden where nothing is stored.

        It may be called on symbolic tensors while an unbuilt model is traced.

        Args:
            kernel: The layer's kernel W, already initialised, of any rank.
            kernel_initializer: What drew it: a Keras initializer or any callable
                `(shape, dtype) -> values`.

        Returns:
            B, an array of the kernel's shape.
        """
        raise NotImplementedError

    def backward_kernel(self, kernel, feedback):
        """The kernel of the backward pass.

        Args:
            kernel: The current W.
            feedback: What the layer stored, None where it stores nothing.

        Returns:
            A tensor of the kernel's shape and dtype. `kernel` itself means ordinary
            backpropagation.
        """
        raise NotImplementedError

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


@keras.saving.register_keras_serializable(PACKAGE)
class Backprop(FeedbackRule):
    """Backpropagation, "GD" in the papers: `B = W` at every step.

    Layers under it are bit-identical to the stock Keras layers.
    """

    def backward_kernel(self, kernel, feedback):
        return kernel


@keras.saving.register_keras_serializable(PACKAGE)
class FeedbackAlignment(FeedbackRule):
    """Feedback alignment (FA): B is drawn once, independent of W, and stays fixed.

    Source: Lillicrap et al. (2016); Robertson and Koyejo (2024), section 3.

    Args:
        initializer: What draws B: a Keras initializer, its name or its config. None,
            the default, means the layer's own kernel initializer with a fresh seed, so
            that the error keeps the scale that the network was built for.
        seed: Integer. The first layer that takes the rule object draws with it, every
            further layer with a seed derived from it, so feedback differs from layer
            to layer and is the same again in the next process. None, the default,
            follows `keras.utils.set_random_seed`.

    Raises:
        ValueError: If the seed is not an integer, and, when a layer is built, if its
            kernel and its feedback come out alike.
    """

    def __init__(self, initializer=None, seed=None):
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(
                "The seed of FeedbackAlignment must be an integer or None. "
                f"Received: seed={seed!r}."
            )
        self.initializer = None
        if initializer is not None:
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

    def initial_feedback(self, kernel, kernel_initializer):
        initializer = self.initializer
        if initializer is None:
            initializer = kernel_initializer
        if self.seed is not None and self.seed == _integer_seed(kernel_initializer):
            raise ValueError(
                f"The kernel initializer and the feedback share the seed {self.seed}, "
                "which would make B a copy of W. Give FeedbackAlignment another seed, "
                'or use rule="ada_fa" if B = W at the start is what you want.'
            )
        feedback = _reseeded(initializer, self.seed)(
            tuple(kernel.shape), dtype=keras.backend.standardize_dtype(kernel.dtype)
        )
        if _is_copy(feedback, kernel):
            raise ValueError(
                f"The initializer {initializer!r} drew feedback equal to the kernel. "
                "Give FeedbackAlignment an initializer that draws anew, or use "
                'rule="ada_fa" if B = W at the start is what you want.'
            )
        return feedback

    def backward_kernel(self, kernel, feedback):
        return feedback

    def get_config(self):
        initializer = self.initializer
        if initializer is not None:
            initializer = keras.initializers.serialize(initializer)
        return {"initializer": initializer, "seed": self.seed}


@keras.saving.register_keras_serializable(PACKAGE)
class AdaptiveFeedbackAlignment(FeedbackRule):
    """adaFA: B is a copy of W at initialisation and then stays fixed.

    Source: Boopathy and Fiete (2022); Robertson and Koyejo (2024), section 3.
    """

    def initial_feedback(self, kernel, kernel_initializer):
        return ops.copy(kernel)

    def backward_kernel(self, kernel, feedback):
        return feedback


@keras.saving.register_keras_serializable(PACKAGE)
class SignFeedbackAlignment(FeedbackRule):
    """sign-FA (uSF): `B = s * sign(W)`, computed anew in every backward pass.

    Nothing is stored. `sign(0) = -1`, the convention of Robertson and Koyejo (2024),
    section 3. Source of the rule: Liao et al. (2016).

    Args:
        scale: s. `"glorot"`, the default, is `sqrt(2 / (fan_in + fan_out))`, the
            standard deviation of Glorot initialisation, the kernel's area counted in
            both fans: the unscaled rule explodes in deep networks. A positive number
            is taken as it is; 1.0 is the definition of the paper. Cosines and the
            conservation law do not depend on s.

    Raises:
        ValueError: If the scale is neither "glorot" nor a positive number.
    """

    def __init__(self, scale="glorot"):
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if not (scale == "glorot" or (number and 0 < scale < math.inf)):
            raise ValueError(
                'The scale of SignFeedbackAlignment must be "glorot" or a positive '
                f"number. Received: scale={scale!r}."
            )
        self.scale = scale

    def backward_kernel(self, kernel, feedback):
        kernel = ops.convert_to_tensor(kernel)
        scale = self.scale
        if scale == "glorot":
            *area, channels_in, channels_out = kernel.shape
            scale = math.sqrt(2 / (math.prod(area) * (channels_in + channels_out)))
        # Not ops.cast, which takes a Python number through float32.
        scale = ops.convert_to_tensor(scale, dtype=kernel.dtype)
        # ops.sign would give 0 at 0.
        return ops.where(kernel > 0, scale, -scale)

    def get_config(self):
        return {"scale": self.scale}


_RULES = {
    "backprop": Backprop,
    "fa": FeedbackAlignment,
    "ada_fa": AdaptiveFeedbackAlignment,
    "sign_fa": SignFeedbackAlignment,
}

NAMES = tuple(_RULES)


def get(identifier):
    """Looks a feedback rule up.

    Args:
        identifier: One of the names in `rules.NAMES`, a config as `serialize` returns
            it, a rule class, or a rule, which is returned as it is.

    Returns:
        A `FeedbackRule`.

    Raises:
        ValueError: If there is no such rule. The message lists the known ones.
    """
    if isinstance(identifier, FeedbackRule):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, FeedbackRule):
        return identifier()
    if isinstance(identifier, dict):
        return deserialize(identifier)
    if isinstance(identifier, str) and identifier in _RULES:
        return _RULES[identifier]()
    close = difflib.get_close_matches(str(identifier).lower(), NAMES, n=1, cutoff=0.4)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    raise ValueError(
        f"Unknown feedback rule: {identifier!r}.{hint} Known rules: "
        f"{', '.join(NAMES)}; a config dict or a FeedbackRule instance works as well."
    )


def serialize(rule):
    """The config dict of a rule, which `get` and `deserialize` take."""
    return keras.saving.serialize_keras_object(rule)


def deserialize(config):
    """The rule that a config dict describes.

    Args:
        config: What `serialize` returned, or in short
            `{"class_name": "fa", "config": {"seed": 1}}`.

    Returns:
        A `FeedbackRule`.

    Raises:
        ValueError: If the config does not describe a feedback rule.
    """
    known = _RULES | {rule.__name__: rule for rule in _RULES.values()}
    rule_class = known.get(config.get("class_name"))
    if rule_class is not None:
        return rule_class.from_config(config.get("config", {}))
    rule = keras.saving.deserialize_keras_object(config)
    if not isinstance(rule, FeedbackRule):
        raise ValueError(f"Not the config of a feedback rule: {config!r}.")
    return rule


def _integer_seed(initializer):
    """The integer seed that an initializer was made with, or None."""
    if isinstance(initializer, keras.initializers.Initializer):
        seed = initializer.get_config().get("seed")
        return seed if isinstance(seed, int) else None
    return None


def _derived_seed(seed, index):
    """Another 31-bit seed for each index, a pure function of both."""
    return int(np.random.SeedSequence([seed % 2**64, index]).generate_state(1)[0] >> 1)


def _is_copy(feedback, kernel):
    """Whether B repeats the random values of W; a constant B may equal a constant W."""
    try:
        feedback, kernel = np.asarray(feedback), np.asarray(kernel)
    except (NotImplementedError, TypeError):
        # Symbolic tensors, in TensorFlow's and in JAX's words: nothing to compare yet.
        return False
    return feedback.min() != feedback.max() and np.array_equal(feedback, kernel)


def _reseeded(initializer, seed):
    """The initializer with another seed (None: a fresh one), if it takes one at all."""
    if isinstance(initializer, keras.initializers.Initializer):
        config = initializer.get_config()
        if "seed" in config:
            return type(initializer).from_config({**config, "seed": seed})
    return initializer
