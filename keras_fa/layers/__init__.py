"""Drop-in dense and convolution layers whose input gradient follows a feedback rule.

Each is the stock Keras layer with a mixin before it: every argument, shape and number
of the forward pass is Keras's own, and under `rule="backprop"` so is every gradient.
"""

from keras_fa.layers._base import feedback_layers
from keras_fa.layers.conv import FeedbackConv1D, FeedbackConv2D, FeedbackConv3D
from keras_fa.layers.dense import FeedbackDense

__all__ = [
    "FeedbackConv1D",
    "FeedbackConv2D",
    "FeedbackConv3D",
    "FeedbackDense",
    "feedback_layers",
]
