"""Drop-in dense and convolution layers whose input gradient follows a feedback rule.

Each is the stock Keras layer with a mixin before it: every argument, shape and number
of the forward pass is Keras's own, and under `rule="backprop"` so is every gradient.
"""

import keras

from keras_fa.layers._base import (
    FeedbackHolder,
    FeedbackMixin,
    Map,
    feedback_layers,
    feedback_variables,
    forward_variables,
)
from keras_fa.layers.attention import (
    FeedbackGroupQueryAttention,
    FeedbackMultiHeadAttention,
)
from keras_fa.layers.boundary import BlockBoundary
from keras_fa.layers.conv import (
    FeedbackConv1D,
    FeedbackConv1DTranspose,
    FeedbackConv2D,
    FeedbackConv2DTranspose,
    FeedbackConv3D,
    FeedbackConv3DTranspose,
)
from keras_fa.layers.dense import FeedbackDense
from keras_fa.layers.depthwise import (
    FeedbackDepthwiseConv1D,
    FeedbackDepthwiseConv2D,
    FeedbackSeparableConv1D,
    FeedbackSeparableConv2D,
)
from keras_fa.layers.direct import DirectFeedback
from keras_fa.layers.einsum import FeedbackEinsumDense
from keras_fa.layers.embedding import FeedbackReversibleEmbedding
from keras_fa.layers.normalization import BatchNormalization
from keras_fa.layers.recurrent import (
    FeedbackGRU,
    FeedbackGRUCell,
    FeedbackLSTM,
    FeedbackLSTMCell,
    FeedbackRNN,
    FeedbackSimpleRNN,
    FeedbackSimpleRNNCell,
)

__all__ = [
    "COUNTERPARTS",
    "BatchNormalization",
    "BlockBoundary",
    "DirectFeedback",
    "FeedbackConv1D",
    "FeedbackConv1DTranspose",
    "FeedbackConv2D",
    "FeedbackConv2DTranspose",
    "FeedbackConv3D",
    "FeedbackConv3DTranspose",
    "FeedbackDense",
    "FeedbackDepthwiseConv1D",
    "FeedbackDepthwiseConv2D",
    "FeedbackEinsumDense",
    "FeedbackGRU",
    "FeedbackGRUCell",
    "FeedbackGroupQueryAttention",
    "FeedbackHolder",
    "FeedbackLSTM",
    "FeedbackLSTMCell",
    "FeedbackMixin",
    "FeedbackMultiHeadAttention",
    "FeedbackRNN",
    "FeedbackReversibleEmbedding",
    "FeedbackSeparableConv1D",
    "FeedbackSeparableConv2D",
    "FeedbackSimpleRNN",
    "FeedbackSimpleRNNCell",
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
    keras.layers.DepthwiseConv1D: FeedbackDepthwiseConv1D,
    keras.layers.DepthwiseConv2D: FeedbackDepthwiseConv2D,
    keras.layers.SeparableConv1D: FeedbackSeparableConv1D,
    keras.layers.SeparableConv2D: FeedbackSeparableConv2D,
    keras.layers.Conv1DTranspose: FeedbackConv1DTranspose,
    keras.layers.Conv2DTranspose: FeedbackConv2DTranspose,
    keras.layers.Conv3DTranspose: FeedbackConv3DTranspose,
    keras.layers.EinsumDense: FeedbackEinsumDense,
    keras.layers.ReversibleEmbedding: FeedbackReversibleEmbedding,
    keras.layers.SimpleRNNCell: FeedbackSimpleRNNCell,
    keras.layers.LSTMCell: FeedbackLSTMCell,
    keras.layers.GRUCell: FeedbackGRUCell,
    # These hold the layers that have the kernels, each of them a row of its own.
    keras.layers.MultiHeadAttention: FeedbackMultiHeadAttention,
    keras.layers.GroupQueryAttention: FeedbackGroupQueryAttention,
    keras.layers.RNN: FeedbackRNN,
    keras.layers.SimpleRNN: FeedbackSimpleRNN,
    keras.layers.LSTM: FeedbackLSTM,
    keras.layers.GRU: FeedbackGRU,
}
"""The feedback layer for each stock layer that has one."""
