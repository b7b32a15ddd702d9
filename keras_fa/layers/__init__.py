"""Drop-in dense and convolution layers whose input gradient follows a feedback rule.

Each is the stock Keras layer with a mixin before it: every argument, shape and number
of the forward pass is Keras's own, and under `rule="backprop"` so is every gradient.
"""

import keras

from keras_fa.layers._base import (
    FeedbackMixin,
    Map,
    feedback_layers,
    feedback_variables,
    forward_variables,
)
from keras_fa.layers.conv import FeedbackConv1D, FeedbackConv2D, FeedbackConv3D
from keras_fa.layers.dense import FeedbackDense
from keras_fa.layers.direct import DirectFeedback

__all__ = [
    "COUNTERPARTS",
    "DirectFeedback",
    "FeedbackConv1D",
    "FeedbackConv2D",
    "FeedbackConv3D",
    "FeedbackDense",
    "FeedbackMixin",
    "Map",
    "feedback_layers",
    "feedback_variables",
    "forward_variables",
]

COUNTERPARTS = {
    keras.layers.Dense: FeedbackDense,
    keras.layers.Conv1D: FeedbackConv1D,
    keras.layers.Conv2D: FeedbackConv2D,
    keras.layers.Conv3D: FeedbackConv3D,
}
"""The feedback layer for each stock layer that has one."""
