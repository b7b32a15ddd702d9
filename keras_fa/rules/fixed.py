"""Rules whose feedback never changes: B is W itself, a draw, or a copy."""

import keras
from keras import ops

from keras_fa.registry import register
from keras_fa.rules.base import (
    PACKAGE,
    DrawnRule,
    FeedbackRule,
    Slot,
    carries_errors,
)


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
class FeedbackAlignment(DrawnRule, _StoredFeedback):
    """Feedback alignment (FA): B is drawn once, independent of W, and stays fixed.

    Source: Lillicrap et al. (2016); Robertson and Koyejo (2024), section 3. Arguments
    and errors are those of `DrawnRule`: `initializer` and `seed`.
    """

    label, color = "FA", "#0072b2"

    def _initial(self, kernel, kernel_initializer):
        return self._draw(kernel, kernel_initializer)


@register("rule", "ada_fa")
@keras.saving.register_keras_serializable(PACKAGE)
class AdaptiveFeedbackAlignment(_StoredFeedback):
    """adaFA: B is a copy of W at initialisation and then stays fixed.

    Source: Boopathy and Fiete (2022); Robertson and Koyejo (2024), section 3.
    """

    label, color = "adaFA", "#d55e00"

    def _initial(self, kernel, kernel_initializer):
        return carries_errors(ops.copy(kernel), "the kernel's initializer drew")
