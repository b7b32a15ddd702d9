"""Layers with several axes or kernels in NumPy float64, their errors by hand.

Each function here gets the arguments of a layer, its input, its weights in the layer's
order and the backward kernel of each of its maps. It returns the output and a function
from the output's error to the gradients of the input and of each weight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from helpers import Convolution, LayerCase, Layout

from keras_fa import layers


def _convolution(arguments, rank, groups=1):
    def tuple_of(name):
        value = arguments.get(name, 1)
        return (value,) * rank if isinstance(value, int) else value

    return Convolution(
        tuple_of("strides"),
        tuple_of("dilation_rate"),
        arguments.get("padding", "valid"),
        groups,
    )


def _channels_last(oracle):
    """An oracle that also takes the input with its channels first."""

    def either(arguments, x, weights, feedback):
        if arguments.get("data_format") != "channels_first":
            return oracle(arguments, x, weights, feedback)
        y, pull = oracle(arguments, np.moveaxis(x, 1, -1), weights, feedback)

        def pull_first(error):
            dx, *rest = pull(np.moveaxis(error, 1, -1))
            return [np.moveaxis(dx, -1, 1), *rest]

        return np.moveaxis(y, -1, 1), pull_first

    return either


def _grouped(kernel):
    """A depthwise kernel as that of a convolution with a group for each channel."""
    *area, channels, multiplier = kernel.shape
    return kernel.reshape(*area, 1, channels * multiplier)


@_channels_last
def depthwise(arguments, x, weights, feedback):
    kernel, *bias = weights
    conv = _convolution(arguments, x.ndim - 2, groups=x.shape[-1])
    y = conv.forward(x, _grouped(kernel), *bias)

    def pull(error):
        dx, d_kernel, d_bias = conv.gradients(error, x, _grouped(feedback[0]))
        return [dx, d_kernel.reshape(kernel.shape), *[d_bias] * len(bias)]

    return y, pull


@_channels_last
def separable(arguments, x, weights, feedback):
    kernel, pointwise, *bias = weights
    hidden, pull_hidden = depthwise(
        {**arguments, "data_format": None}, x, [kernel], feedback[:1]
    )
    mixing = _convolution({}, x.ndim - 2)
    y = mixing.forward(hidden, pointwise, *bias)

    def pull(error):
        d_hidden, d_pointwise, d_bias = mixing.gradients(error, hidden, feedback[1])
        dx, d_kernel = pull_hidden(d_hidden)
        return [dx, d_kernel, d_pointwise, *[d_bias] * len(bias)]

    return y, pull


@_channels_last
def transposed(arguments, x, weights, feedback):
    """The input gradient of a convolution, forward; that convolution, backward."""
    kernel, *bias = weights
    conv = _convolution(arguments, x.ndim - 2)
    size = _transposed_size(arguments, x, kernel)
    blank = np.zeros((len(x), *size, kernel.shape[-2]))
    y = conv.gradients(x, blank, kernel)[0] + sum(bias)

    def pull(error):
        _, d_kernel, _ = conv.gradients(x, error, kernel)
        d_bias = error.reshape(-1, error.shape[-1]).sum(axis=0)
        return [conv.forward(error, feedback[0]), d_kernel, *[d_bias] * len(bias)]

    return y, pull


def _transposed_size(arguments, x, kernel):
    """The output's spatial size, by Keras's documentation of the transposed layers."""
    rank = x.ndim - 2
    sizes = []
    for axis, size in enumerate(x.shape[1:-1]):
        stride, taps = (
            value if isinstance(value, int) else value[axis]
            for value in (arguments.get("strides", 1), kernel.shape[axis])
        )
        extra = arguments.get("output_padding")
        if extra is not None:
            extra = (extra,) * rank if isinstance(extra, int) else extra
            pad = taps // 2 if arguments.get("padding") == "same" else 0
            sizes.append((size - 1) * stride + taps - 2 * pad + extra[axis])
        elif arguments.get("padding") == "same":
            sizes.append(size * stride)
        else:
            sizes.append(size * stride + max(taps - stride, 0))
    return sizes


def einsum(arguments, x, weights, feedback):
    """Letters of the batch stand for the equation's dots."""
    kernel, *bias = weights
    left, right, out = _letters(arguments["equation"], x.ndim)
    y = np.einsum(f"{left},{right}->{out}", x, kernel) + sum(bias)

    def pull(error):
        d_bias = []
        for values in bias:
            axes = range(error.ndim - values.ndim)
            summed = error.sum(axis=tuple(axes))
            ones = [a for a, n in enumerate(values.shape) if n == 1]
            d_bias.append(summed.sum(axis=tuple(ones), keepdims=True))
        return [
            np.einsum(f"{out},{right}->{left}", error, feedback[0]),
            np.einsum(f"{left},{out}->{right}", x, error),
            *d_bias,
        ]

    return y, pull


def _letters(equation, rank):
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    dots = "zyxw"[: rank - len(left.replace("...", ""))]
    return left.replace("...", dots), right, out.replace("...", dots)


# --- The table: a row a layer, with further arguments for the comparison ---


@dataclass
class FurtherCase(LayerCase):
    """A layer of another shape than a dense one or a convolution.

    `layouts` has one entry for each map, None for (..., inputs, outputs).
    """

    oracle: Callable = None
    layouts: tuple = (None,)
    variants: tuple = ({},)


def _case(name, arguments, input_shape, oracle, layouts, *variants):
    return FurtherCase(
        getattr(layers, f"Feedback{name}"),
        getattr(keras.layers, name),
        arguments,
        input_shape,
        oracle,
        layouts,
        ({}, *variants),
    )


def _channels(rank):
    """The layout of a depthwise kernel: a map for each channel."""
    return Layout(tuple(range(rank)), (rank, rank + 1))


def _swapped(rank):
    """The layout of a transposed convolution's kernel."""
    return Layout((rank + 1,), tuple(range(rank + 1)))


_DEPTHWISE = {"kernel_size": 3, "padding": "same", "depth_multiplier": 2}
_SEPARABLE = {**_DEPTHWISE, "filters": 4}
_TRANSPOSED = {"filters": 4, "kernel_size": 3, "padding": "same"}
# No spatial size equals the number of channels, as in test_gradients.py.
_FILTERED = (
    {"padding": "valid", "use_bias": False},
    {"strides": 2},
    {"dilation_rate": 2},
    {"strides": 2, "dilation_rate": 2},
    {"data_format": "channels_first", "strides": 2},
)
_SPREAD = (
    {"padding": "valid", "use_bias": False},
    {"strides": 2},
    {"padding": "valid", "strides": 2},
    {"padding": "valid", "strides": 2, "output_padding": 1, "kernel_size": 2},
)
FURTHER = {
    "depthwise1d": _case(
        "DepthwiseConv1D",
        _DEPTHWISE,
        (7, 3),
        depthwise,
        (_channels(1),),
        *_FILTERED[:3],
    ),
    "depthwise2d": _case(
        "DepthwiseConv2D", _DEPTHWISE, (5, 9, 3), depthwise, (_channels(2),), *_FILTERED
    ),
    "separable1d": _case(
        "SeparableConv1D",
        _SEPARABLE,
        (7, 3),
        separable,
        (_channels(1), None),
        *_FILTERED[:3],
    ),
    "separable2d": _case(
        "SeparableConv2D",
        _SEPARABLE,
        (5, 9, 3),
        separable,
        (_channels(2), None),
        *_FILTERED,
    ),
    "conv1d_transpose": _case(
        "Conv1DTranspose", _TRANSPOSED, (6, 3), transposed, (_swapped(1),), *_SPREAD
    ),
    "conv2d_transpose": _case(
        "Conv2DTranspose",
        _TRANSPOSED,
        (3, 5, 3),
        transposed,
        (_swapped(2),),
        *_SPREAD,
        {"strides": (2, 1), "kernel_size": (2, 3)},
    ),
    "conv3d_transpose": _case(
        "Conv3DTranspose",
        _TRANSPOSED,
        (3, 2, 5, 3),
        transposed,
        (_swapped(3),),
        *_SPREAD[:2],
    ),
    "einsum": _case(
        "EinsumDense",
        {"equation": "abc,cde->abde", "output_shape": (None, 2, 3), "bias_axes": "de"},
        (5, 4),
        einsum,
        (Layout((0,), (1, 2), counted=True),),
        {"bias_axes": None},
        {"bias_axes": "e"},
        {"bias_axes": "be", "output_shape": (5, 2, 3)},
    ),
    "einsum_order": _case(
        "EinsumDense",
        {"equation": "...ab,cbad->...dc", "output_shape": (3, 2), "bias_axes": "dc"},
        (2, 5, 4),
        einsum,
        (Layout((1, 2), (0, 3), counted=True),),
        {"bias_axes": "c"},
    ),
    "einsum_shared": _case(
        "EinsumDense",
        {"equation": "abc,bcd->abd", "output_shape": (5, 3), "bias_axes": "bd"},
        (5, 4),
        einsum,
        (Layout((1,), (0, 2), counted=True),),
        {"bias_axes": "d"},
    ),
}
