"""Rules whose feedback never changes: B is W itself, a draw, or a copy."""

import copy

import keras
import numpy as np
from keras import ops

from keras_fa.registry import register
from keras_fa.rules.base import PACKAGE, FeedbackRule, Slot


@register("rule", "backprop")
@keras.saving.register_keras_serializable(PACKAGE)
class Backprop(FeedbackRule):
    """Backpropagation, "GD" in the papers: `B = W` at every step.

    Layers under it are bit-identical to the stock Keras layers. It conserves the
    balance of Du et al. (2018), in which a consumer's part is 1/2 |W[j]|^2: <W, W>
    moves twice as fast as the law allows.
    """

    label, color = "BP", "#444444"

    # Whatever is stored: the instruments put it in the place of a layer's own rule.
    def backward_kernel(self, kernel, **stored):
        return kernel

    def potential(self, kernel, **stored):
        return kernel, None

    def alignment_bound(self, kernel_shape):
        return 1.0


class _StoredFeedback(FeedbackRule):
    """A rule whose B is stored and stays as it is, so that <W, B> changes by <dW, B>.

    Source: theorem 5.2 of Robertson and Koyejo (2024).
    """

    def slots(self, kernel_shape):
        return {"feedback": Slot(tuple(kernel_shape), self._initial)}

    def _initial(self, kernel, kernel_initializer):
        raise NotImplementedError

    def backward_kernel(self, kernel, feedback):
        return feedback

    def potential(self, kernel, feedback):
        return kernel, feedback


@register("rule", "fa")
@keras.saving.register_keras_serializable(PACKAGE)
class FeedbackAlignment(_StoredFeedback):
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

    label, color = "FA", "#0072b2"

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

    def _initial(self, kernel, kernel_initializer):
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

    def get_config(self):
        initializer = self.initializer
        if initializer is not None:
            initializer = keras.initializers.serialize(initializer)
        return {"initializer": initializer, "seed": self.seed}


@register("rule", "ada_fa")
@keras.saving.register_keras_serializable(PACKAGE)
class AdaptiveFeedbackAlignment(_StoredFeedback):
    """adaFA: B is a copy of W at initialisation and then stays fixed.

    Source: Boopathy and Fiete (2022); Robertson and Koyejo (2024), section 3.
    """

    label, color = "adaFA", "#d55e00"

    def _initial(self, kernel, kernel_initializer):
        return ops.copy(kernel)


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
