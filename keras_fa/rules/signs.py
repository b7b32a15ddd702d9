"""Rules that keep the signs of W and not its sizes."""

import copy
import math

import keras
from keras import ops

from keras_fa import _keras
from keras_fa.registry import register
from keras_fa.rules.base import PACKAGE, DrawnRule, FeedbackRule, Slot


@register("rule", "sign_fa")
@keras.saving.register_keras_serializable(PACKAGE)
class SignFeedbackAlignment(FeedbackRule):
    """sign-FA (uSF): `B = s * sign(W)`, of the W that each training pass has.

    B is made in the forward pass and kept for the backward one; no variable holds it.
    `sign(0) = -1`, the convention of Robertson and Koyejo (2024), section 3. Source of
    the rule: Liao et al. (2016).

    Args:
        scale: s. `"glorot"`, the default, is `sqrt(2 / (fan_in + fan_out))`, the
            standard deviation of Glorot initialisation, with the fans as the layer
            counts them: the unscaled rule explodes in deep networks. A positive number
            is taken as it is; 1.0 is the definition of the paper. Cosines and the
            conservation law do not depend on s.

    Raises:
        ValueError: If the scale is neither "glorot" nor a positive number.
    """

    label, color = "sign-FA", "#009e73"

    def __init__(self, scale="glorot"):
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if not (scale == "glorot" or (number and 0 < scale < math.inf)):
            raise ValueError(
                'The scale of SignFeedbackAlignment must be "glorot" or a positive '
                f"number. Received: scale={scale!r}."
            )
        self.scale = scale

    def for_map(self, geometry):
        if self.scale != "glorot":
            return self
        rule = copy.copy(self)
        rule.scale = math.sqrt(2 / sum(geometry.fans))
        return rule

    def backward_kernel(self, kernel):
        kernel = ops.convert_to_tensor(kernel)
        scale = self.scale
        if scale == "glorot":
            *area, channels_in, channels_out = kernel.shape
            scale = math.sqrt(2 / (math.prod(area) * (channels_in + channels_out)))
        # Not ops.cast, which takes a Python number through float32.
        scale = ops.convert_to_tensor(scale, dtype=kernel.dtype)
        return _signed(kernel, scale)

    def potential(self, kernel):
        # s |W[j]|_1, whose derivative is s sign(W[j]): theorem 5.2 of the paper.
        return kernel, self.backward_kernel(kernel)

    def alignment_bound(self, kernel_shape):
        # Proposition 5.3: |W|_1 >= |W|_2.
        return 1 / math.sqrt(math.prod(kernel_shape))

    def get_config(self):
        return {"scale": self.scale}


@register("rule", "frsf")
@keras.saving.register_keras_serializable(PACKAGE)
class FixedRandomSign(DrawnRule):
    """Fixed random-magnitude sign-concordant feedback (frSF): `B = M sign(W)`.

    The magnitudes M are drawn once, `|a draw as W|`, and stay fixed; the signs are
    those of the current W, `sign(0) = -1` as in sign-FA. Source: Liao et al. (2016),
    "frSF"; biotorch takes the magnitudes so. A consumer conserves `sum M |W[j]|`.
    Arguments and errors are those of `DrawnRule`: `initializer` and `seed`.
    """

    label, color = "frSF", "#cc79a7"

    def slots(self, kernel_shape):
        return {"magnitude": Slot(tuple(kernel_shape), self._magnitude)}

    def _magnitude(self, kernel, kernel_initializer):
        return ops.abs(self._draw(kernel, kernel_initializer))

    def backward_kernel(self, kernel, magnitude):
        return _signed(kernel, magnitude)

    def potential(self, kernel, magnitude):
        return kernel, _signed(kernel, magnitude)


@register("rule", "brsf")
@keras.saving.register_keras_serializable(PACKAGE)
class BatchRandomSign(FixedRandomSign):
    """Batch-wise random-magnitude sign-concordant feedback (brSF): `B = M sign(W)`.

    As frSF, but M is drawn anew in each training pass, from a counter that is seeded
    and saved with the layer, so that a resumed run draws what the undisturbed one
    would, and all replicas the same; for one seed XLA draws other numbers than
    TensorFlow's own kernels. Source: Liao et al. (2016), "brSF". As M moves by
    itself nothing is conserved; the ledger books each redraw under `flips`. Arguments
    and errors are those of `DrawnRule`: `initializer` and `seed`.
    """

    label, color = "brSF", "#56b4e9"

    def slots(self, kernel_shape):
        return {**super().slots(kernel_shape), "noise": self._noise()}

    def advance(self, kernel, bias, initializer, magnitude, noise):
        draw = _keras.drawn(
            self._drawing(initializer),
            noise,
            tuple(magnitude.shape),
            keras.backend.standardize_dtype(magnitude.dtype),
        )
        return {"magnitude": ops.abs(draw), "noise": noise + ops.array([0, 1], "int32")}

    def backward_kernel(self, kernel, magnitude, noise):
        return _signed(kernel, magnitude)


def _signed(kernel, magnitude):
    # ops.sign would give 0 at 0.
    return ops.where(kernel > 0, ops.convert_to_tensor(magnitude), -magnitude)
