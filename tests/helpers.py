"""Oracles in NumPy float64, independent of TensorFlow, and the tables the tests share.

Dense and convolution with their three gradients, the input gradient taken through any
backward kernel; the feedback recursion of the MLP and of LeNet written out by hand;
each rule's backward kernel; and the two tables that the property tests cross, one row a
rule and one row a layer.
"""

import itertools
import math
from dataclasses import dataclass, field

import keras
import numpy as np
import pytest

from keras_fa import autodiff, layers


def relative_error(actual, expected):
    """Largest difference over the largest expected magnitude; of zeros that itself."""
    actual, expected = (
        autodiff.array(side).astype("float64") for side in (actual, expected)
    )
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0)


def assert_close(actual, expected, tolerance=1e-12):
    assert relative_error(actual, expected) < tolerance


# --- Rules: the backward kernel from W now, W at the start and what is stored ---


@dataclass(frozen=True)
class Layout:
    """Of a kernel that is not (..., inputs, outputs): axes of its inputs and outputs.

    `counted` is whether its initializer counts fan_in and fan_out by these axes.
    """

    inputs: tuple
    outputs: tuple
    counted: bool = False

    def fan_sum(self, shape):
        if not self.counted:
            return _fan_sum(shape)
        return sum(
            math.prod(shape[a] for a in axes) for axes in (self.inputs, self.outputs)
        )

    def kernel(self, matrix, shape):
        """The kernel of that shape that a matrix (inputs, outputs) stands for."""
        order = self.inputs + self.outputs
        values = matrix.reshape([shape[axis] for axis in order])
        return np.moveaxis(values, range(len(order)), order)

    def matrix(self, kernel):
        order = self.inputs + self.outputs
        size = math.prod(kernel.shape[axis] for axis in self.inputs)
        return kernel.transpose(order).reshape(size, -1)


def _fan_sum(shape):
    *area, channels_in, channels_out = shape
    return math.prod(area) * (channels_in + channels_out)


def _sign(kernel, layout):
    fans = layout.fan_sum(kernel.shape) if layout else _fan_sum(kernel.shape)
    scale = np.sqrt(2 / fans)
    return (scale * np.where(kernel > 0, 1.0, -1.0)).astype(kernel.dtype)


def _signed(now, start, stored, layout=None):
    return np.where(now > 0, stored["magnitude"], -stored["magnitude"])


def _product(now, start, stored, layout=None):
    if layout is None:
        return stored["R"] @ stored["P"]
    middle = len(stored["P"])
    return layout.kernel(stored["R"].reshape(-1, middle) @ stored["P"], now.shape)


def _short_product(now, start, stored, layout=None):
    matrix = now if layout is None else layout.matrix(now)
    offset = stored["offset"] if layout is None else _flat(stored["offset"])
    product = (stored["share"] * offset + matrix) @ stored["gram"]
    return product if layout is None else layout.kernel(product, now.shape)


def _flat(values):
    return values.reshape(-1, values.shape[-1])


def _product_gradient(gradient, stored, layout=None):
    if layout is not None:
        gradient = layout.matrix(gradient)
    return {"R": (gradient @ stored["P"].T).reshape(stored["R"].shape)}


RULES = {
    "backprop": lambda now, start, stored, layout=None: now,
    "fa": lambda now, start, stored, layout=None: stored["feedback"],
    "ada_fa": lambda now, start, stored, layout=None: start,
    "sign_fa": lambda now, start, stored, layout=None: _sign(now, layout),
    "frsf": _signed,
    "brsf": _signed,
    "kolen_pollack": lambda now, start, stored, layout=None: stored["feedback"],
    "pfa": _product,
    "pfa_short": _short_product,
    "weight_mirror": lambda now, start, stored, layout=None: stored["feedback"],
}
# The gradients of what the optimizer trains besides W, from that of W.
LEARNED = {
    "kolen_pollack": lambda gradient, stored, layout=None: {"feedback": gradient},
    "pfa": _product_gradient,
    # For its decay alone.
    "pfa_short": lambda gradient, stored, layout=None: {"share": 0 * stored["share"]},
}
# What moves by itself in each training pass.
MOVING = {"brsf": ("magnitude", "noise"), "weight_mirror": ("feedback", "noise")}


# One of each kind, where the others would show the same: W itself, a variable, made of
# W, trained, a product.
KINDS = ("backprop", "fa", "sign_fa", "kolen_pollack", "pfa")


def standing(*values, stands):
    """A cell of a table; one for which others stand runs with --long alone."""
    return pytest.param(*values, marks=[] if stands else pytest.mark.long)


# Rules whose B is made of products.
PRODUCTS = ("pfa", "pfa_short")
# Rules whose compiled step has products of its own, beyond those of backpropagation.
DEAR = (*PRODUCTS, "weight_mirror")


def assert_backward_kernel(layer, rule, now, start, values, index=0, layout=None):
    """The layer's B is the oracle's, bit for bit unless it takes sums to make it."""
    expected = RULES[rule](now, start, values, layout)
    if rule in PRODUCTS:
        # Measured: 2e-7 in float32, 3e-16 in float64.
        tolerance = 1e-6 if expected.dtype == "float32" else 1e-14
        assert_close(layer.backward_kernel(index), expected, tolerance)
    else:
        actual = autodiff.array(layer.backward_kernel(index))
        np.testing.assert_array_equal(actual, expected)


def stored(layer, index=0):
    """Copies of all that a layer's rule stores with a kernel, by name."""
    return {name: np.array(variable) for name, variable in layer.stored(index).items()}


def maps_of(layer):
    """`(part, index, number)` of each kernel of a layer and of the layers it holds.

    The index is that among the part's maps, the number that among all forward
    weights of the layer, by which they are in order.
    """
    weights = layers.forward_variables(layer)
    found = [
        (part, index, next(n for n, w in enumerate(weights) if w is kernel))
        for part in layers.feedback_layers(layer)
        for index, entry in enumerate(part.maps)
        for kernel in [getattr(part, entry.kernel)]
    ]
    return sorted(found, key=lambda each: each[2])


# --- Layers: a feedback layer, its stock counterpart, arguments and input shape ---


@dataclass
class LayerCase:
    feedback: type
    stock: type
    arguments: dict
    input_shape: tuple = field(default=())

    def make(self, rule, **kwargs):
        return self.feedback(**{**self.arguments, **kwargs}, rule=rule)

    def make_stock(self, **kwargs):
        return self.stock(**{**self.arguments, **kwargs})

    def inputs(self, dtype="float32", batch=4):
        shape = (batch, *self.input_shape)
        return np.random.default_rng(0).normal(size=shape).astype(dtype)


_CONV = {"filters": 4, "kernel_size": 3, "padding": "same"}
LAYERS = {
    "dense": LayerCase(layers.FeedbackDense, keras.layers.Dense, {"units": 4}, (5,)),
    "dense_3d": LayerCase(
        layers.FeedbackDense, keras.layers.Dense, {"units": 4}, (3, 5)
    ),
    "conv1d": LayerCase(layers.FeedbackConv1D, keras.layers.Conv1D, _CONV, (6, 2)),
    "conv2d": LayerCase(layers.FeedbackConv2D, keras.layers.Conv2D, _CONV, (5, 6, 2)),
    "conv3d": LayerCase(
        layers.FeedbackConv3D, keras.layers.Conv3D, _CONV, (4, 3, 5, 2)
    ),
}


# Every rule on every layer: on two layers all, on the others one of each kind.
CELLS = [
    standing(case, rule, stands=case in ("dense", "conv2d") or rule in KINDS[1:4])
    for case in LAYERS
    for rule in RULES
]


# --- Dense: any number of axes before the last ---


def dense(x, kernel, bias=0.0):
    return np.einsum("...i,io->...o", x, kernel) + bias


def dense_gradients(error, x, backward_kernel):
    """The gradients of inputs, kernel and bias."""
    rows, errors = x.reshape(-1, x.shape[-1]), error.reshape(-1, error.shape[-1])
    return (
        np.einsum("...o,io->...i", error, backward_kernel),
        np.einsum("ni,no->io", rows, errors),
        errors.sum(axis=0),
    )


# --- Convolution: channels last, an explicit loop over the kernel's positions ---


@dataclass
class Convolution:
    """Strides and dilation are tuples, one number an axis."""

    strides: tuple
    dilation: tuple
    padding: str = "valid"
    groups: int = 1

    def forward(self, x, kernel, bias=0.0):
        padded, _, out = self._pad(x, kernel)
        y = np.zeros((len(x), *out, self.groups, kernel.shape[-1] // self.groups))
        for position, window in self._windows(kernel, out):
            y += np.einsum(
                "...gi,igo->...go",
                self._grouped(padded[window]),
                self._grouped(kernel[position]),
            )
        return y.reshape(*y.shape[:-2], -1) + bias

    def gradients(self, error, x, backward_kernel):
        """The gradients of inputs, kernel and bias."""
        padded, inner, out = self._pad(x, backward_kernel)
        d_padded = np.zeros_like(padded)
        d_kernel = np.zeros_like(backward_kernel)
        delta = self._grouped(error)
        x_group = self._grouped(x).shape[-2:]
        for position, window in self._windows(backward_kernel, out):
            d_kernel[position] = np.einsum(
                "ngi,ngo->igo",
                self._grouped(padded[window]).reshape(-1, *x_group),
                delta.reshape(-1, *delta.shape[-2:]),
            ).reshape(d_kernel[position].shape)
            d_padded[window] += np.einsum(
                "...go,igo->...gi", delta, self._grouped(backward_kernel[position])
            ).reshape(padded[window].shape)
        d_bias = error.reshape(-1, error.shape[-1]).sum(axis=0)
        return d_padded[inner], d_kernel, d_bias

    def _grouped(self, array):
        return array.reshape(*array.shape[:-1], self.groups, -1)

    def _pad(self, x, kernel):
        """The padded input, the slices that undo the padding, the output's size."""
        pads, out = [], []
        axes = (x.shape[1:-1], kernel.shape, self.strides, self.dilation)
        for size, taps, stride, dilation in zip(*axes, strict=False):
            extent = (taps - 1) * dilation + 1
            before = after = 0
            if self.padding == "causal":
                before = extent - 1
            elif self.padding == "same":
                total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
                before, after = total // 2, total - total // 2
            pads.append((before, after))
            out.append((size + before + after - extent) // stride + 1)
        padded = np.pad(x, [(0, 0), *pads, (0, 0)])
        inner = tuple(
            slice(before, before + size)
            for (before, _), size in zip(pads, x.shape[1:-1], strict=True)
        )
        return padded, (slice(None), *inner), tuple(out)

    def _windows(self, kernel, out):
        """Each kernel position with the slices of the padded input that it meets."""
        for position in itertools.product(*map(range, kernel.shape[:-2])):
            starts = [p * d for p, d in zip(position, self.dilation, strict=True)]
            yield (
                position,
                (
                    slice(None),
                    *(
                        slice(start, start + (n - 1) * stride + 1, stride)
                        for start, n, stride in zip(
                            starts, out, self.strides, strict=True
                        )
                    ),
                ),
            )


# --- The networks: feedback recursions by hand, mean softmax cross entropy ---


def softmax_error(logits, labels):
    """dL/dlogits of the mean cross entropy."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    one_hot = np.eye(logits.shape[1])[labels]
    return (exp / exp.sum(axis=1, keepdims=True) - one_hot) / len(labels)


def mlp_gradients(x, labels, weights, feedback, slope):
    """[dW_1, db_1, ..., dW_L, db_L] for weights [(W_1, b_1), ...], feedback [B_1, ...].

    delta_i = (delta_{i+1} B_{i+1}^T) * phi'(h_i), phi the leaky ReLU.
    """
    activations, h = [x], None
    slopes = []
    for kernel, bias in weights:
        h = activations[-1] @ kernel + bias
        slopes.append(np.where(h > 0, 1.0, slope))
        activations.append(h * slopes[-1])
    delta = softmax_error(h, labels)
    gradients = []
    for i in reversed(range(len(weights))):
        gradients = [activations[i].T @ delta, delta.sum(axis=0), *gradients]
        if i > 0:
            delta = (delta @ feedback[i].T) * slopes[i - 1]
    return gradients


def max_pool(x):
    """2x2 maxima, a last odd row or column left out, and the mask of the winners."""
    n, height, width, channels = x.shape
    rows, columns = height // 2, width // 2
    tiles = x[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, columns, 2, channels)
    maxima = tiles.max(axis=(2, 4), keepdims=True)
    mask = np.zeros_like(x)
    mask[:, : 2 * rows, : 2 * columns] = (tiles == maxima).reshape(
        n, 2 * rows, 2 * columns, channels
    )
    return maxima.reshape(n, rows, columns, channels), mask


def unpool(error, mask):
    """The error of `max_pool` sent to the winners. Winners are unique but among zeros,
    where the ReLU before the pool stops the error."""
    spread = error.repeat(2, axis=1).repeat(2, axis=2)
    missing = [(0, a - b) for a, b in zip(mask.shape, spread.shape, strict=True)]
    return np.pad(spread, missing) * mask


def lenet_gradients(x, labels, weights, feedback):
    """Kernel and bias gradients of C1, C2, C3, F1, F2, in this order."""
    conv = Convolution((1, 1), (1, 1))
    (w1, b1), (w2, b2), (w3, b3), (w4, b4), (w5, b5) = weights
    _, B2, B3, B4, B5 = feedback  # nothing is fed back through C1

    h1 = conv.forward(x, w1, b1)
    a1, mask1 = max_pool(np.maximum(h1, 0))
    h2 = conv.forward(a1, w2, b2)
    a2, mask2 = max_pool(np.maximum(h2, 0))
    h3 = conv.forward(a2, w3, b3)
    a3 = np.maximum(h3, 0).mean(axis=(1, 2))
    h4 = a3 @ w4 + b4
    a4 = np.maximum(h4, 0)
    h5 = a4 @ w5 + b5

    delta5 = softmax_error(h5, labels)
    delta4 = (delta5 @ B5.T) * (h4 > 0)
    pooled = (delta4 @ B4.T)[:, None, None, :] / (h3.shape[1] * h3.shape[2])
    delta3 = pooled * (h3 > 0)
    # Convolution.gradients takes dx through the B it is given; dW and db do not see it.
    da2, dw3, db3 = conv.gradients(delta3, a2, B3)
    delta2 = unpool(da2, mask2) * (h2 > 0)
    da1, dw2, db2 = conv.gradients(delta2, a1, B2)
    delta1 = unpool(da1, mask1) * (h1 > 0)
    _, dw1, db1 = conv.gradients(delta1, x, np.zeros_like(w1))
    return [
        *(dw1, db1, dw2, db2, dw3, db3),
        *(a3.T @ delta4, delta4.sum(axis=0)),
        *(a4.T @ delta5, delta5.sum(axis=0)),
    ]
