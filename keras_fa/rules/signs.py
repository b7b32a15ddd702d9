"""Rules that keep the signs of W and not its sizes."""

import copy
import math

import keras
from keras import ops

from keras_fa.registry import register
from keras_fa.rules.base import PACKAGE, FeedbackRule


@register("rule", "sign_fa")
@keras.saving.register_keras_serializable(PACKAGE)
class SignFeedbackAlignment(FeedbackRule):
    """sign-FA (uSF): `B = s * sign(W)`, computed anew in every backward pass.

    Nothing is stored. `sign(0) = -1`, the convention of Robertson and Koyejo (2024),
    section 3. Source of the rule: Liao et al. (2016).

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

    def for_map(self, fans):
        if self.scale != "glorot":
            return self
        rule = copy.copy(self)
        rule.scale = math.sqrt(2 / sum(fans))
        return rule

    def backward_kernel(self, kernel):
        kernel = ops.convert_to_tensor(kernel)
        scale = self.scale
        if scale == "glorot":
            *area, channels_in, channels_out = kernel.shape
            scale = math.sqrt(2 / (math.prod(area) * (channels_in + channels_out)))
        # Not ops.cast, which takes a Python number through float32.
        scale = ops.convert_to_tensor(scale, dtype=kernel.dtype)
        # ops.sign would give 0 at 0.
        return ops.where(kernel > 0, scale, -scale)

    def potential(self, kernel):
        # s |W[j]|_1, whose derivative is s sign(W[j]): theorem 5.2 of the paper.
        return kernel, self.backward_kernel(kernel)

    def alignment_bound(self, kernel_shape):
        # Proposition 5.3: |W|_1 >= |W|_2.
        return 1 / math.sqrt(math.prod(kernel_shape))

    def get_config(self):
        return {"scale": self.scale}
