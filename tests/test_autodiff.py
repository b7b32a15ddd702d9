"""Gradients on each backend, against derivatives written out by hand."""

import keras
import numpy as np
import pytest
from backends import BACKEND, array
from keras import ops

from keras_fa import autodiff, gradients

X = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]], "float32")
W = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], "float32")
V = np.array([[1.0], [-2.0], [0.5]], "float32")


def measured(x, w, v, unused, whole):
    """The sum of tanh(x W) V, its gradients, and the error signal at tanh."""

    def function(values, watch):
        w, v, _ = values
        hidden = watch(ops.tanh(ops.matmul(x, w)))
        watch(ops.matmul(hidden, v))
        watched = [hidden, watch(ops.ones((2,)))] if whole else [hidden]
        return ops.sum(ops.matmul(hidden, v)), watched, {"hidden": hidden}

    value, rest, gradients, signals = autodiff.value_and_gradients(
        function, [w, v, unused]
    )
    assert [g is None for g in gradients] == [False, False, True]
    assert [s is None for s in signals] == [False, True][: len(signals)]
    return value, rest["hidden"], gradients[:2], signals[:1]


@pytest.mark.parametrize("how", ["plain", "compiled"])
def test_gradients_and_signals_are_those_written_out(how):
    function = measured
    if how == "compiled":
        function = autodiff.compiled(measured, ("whole",))
    tensors = [ops.convert_to_tensor(a) for a in (X, W, V, np.ones(2, "float32"))]
    for whole in (True, False):
        value, hidden, (dw, dv), (signal,) = function(*tensors, whole=whole)
        h = np.tanh(X @ W)
        errors = np.ones((3, 1)) @ V.T
        np.testing.assert_allclose(array(value), np.sum(h @ V), rtol=1e-6)
        np.testing.assert_allclose(array(hidden), h, rtol=1e-6)
        np.testing.assert_allclose(array(signal), errors, rtol=1e-6)
        np.testing.assert_allclose(array(dv), h.sum(0)[:, None], rtol=1e-5)
        np.testing.assert_allclose(array(dw), X.T @ (errors * (1 - h**2)), rtol=1e-5)


def test_a_gradient_of_zeros_is_told_from_none():
    """What the value depends on has a gradient, whatever it is."""

    def function(values, watch):
        first, second, _ = values
        return ops.sum(0.0 * first * second) + ops.sum(second), [], ()

    values = [ops.convert_to_tensor(np.full(2, n, "float32")) for n in (1, 2, 3)]
    _, _, (first, second, third), _ = autodiff.value_and_gradients(function, values)
    np.testing.assert_array_equal(array(first), 0)
    np.testing.assert_array_equal(array(second), 1)
    assert third is None


def test_a_value_that_depends_on_nothing_has_no_gradients():
    values = [ops.ones((2,))]
    value, rest, gradients, signals = autodiff.value_and_gradients(
        lambda values, watch: (ops.sum(ops.ones((3,))), [], ()), values
    )
    assert float(value) == 3 and rest == () and gradients == [None] and signals == []


def test_sums_in_float64_are_so_on_every_backend():
    @autodiff.compiled
    def square(tensor):
        with autodiff.in_float64():
            return ops.sum(ops.square(ops.cast(tensor, "float64")))

    total = array(square(ops.convert_to_tensor(np.full(3, 1e-30, "float32"))))
    # In float32 it would be 0.
    np.testing.assert_allclose(total, 3 * np.float64(np.float32(1e-30)) ** 2)
    assert total.dtype == "float64"


def test_what_is_undrawn_is_drawn_again():
    layer = keras.layers.Dropout(0.5)
    x = ops.ones((1000,))
    with autodiff.undrawn(), keras.StatelessScope():
        first = array(layer(x, training=True))
    second = array(layer(x, training=True))
    np.testing.assert_array_equal(first, second)
    assert 300 < np.count_nonzero(first) < 700
    assert not np.array_equal(second, array(layer(x, training=True)))


def test_readings_are_values_and_no_variables():
    variable = keras.Variable(np.ones(2, "float32"))
    (reading,) = autodiff.readings([variable])
    assert not isinstance(reading, keras.Variable)
    np.testing.assert_array_equal(array(reading), 1)
    assert (BACKEND == "jax") is autodiff.TRACES


# --- The exchange of what PyTorch's products save ---

ON_TORCH = pytest.mark.skipif(
    BACKEND != "torch", reason="PyTorch alone pays for unused products"
)


def through(op, shapes, leaf=False, frozen=False):
    """An op's gradients through B, how many products it took, and those of W and B.

    Args:
        op: Function of (inputs, kernel).
        shapes: Of both.
        leaf: Whether the inputs are the very tensor that the derivative is of.
        frozen: Whether the kernel has no derivative.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    random = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=random) for s in (*shapes, shapes[1]))
    x.requires_grad_()
    w.requires_grad_(not frozen)
    products = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.__name__.split(".")[0] in ("mm", "bmm", "convolution"):
                products.append(function)
            return function(*args, **(kwargs or {}))

    with Counting():
        y = gradients.linear(op, x if leaf else 1.0 * x, w, b)
    error = torch.randn(y.shape, generator=random)
    values = [x] if frozen else [x, w]
    found = torch.autograd.grad(y, values, error)
    (dx,) = torch.autograd.grad(op(x, b), [x], error)
    wanted = [dx]
    if not frozen:
        wanted += torch.autograd.grad(op(x.detach(), w), [w], error)
    found, wanted = [y, *found], [op(x, w), *wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array(one), array(other), rtol=1e-5, atol=1e-5)
    return len(products)


def strided(x, w):
    return ops.conv(x, w, strides=2, padding="same")


IMAGES = (2, 7, 8, 4), (3, 3, 4, 6)


@ON_TORCH
@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (ops.matmul, ((5, 4), (4, 3))),
        (ops.matmul, ((5, 2, 4), (4, 3))),
        (ops.conv, IMAGES),
        (strided, IMAGES),
        (ops.conv, ((2, 9, 4), (3, 4, 6))),
        (ops.conv, ((2, 5, 5, 5, 2), (2, 2, 2, 2, 3))),
        # In two groups.
        (ops.conv, ((2, 7, 8, 4), (3, 3, 2, 6))),
        (ops.conv_transpose, ((2, 7, 8, 4), (3, 3, 6, 4))),
    ],
)
def test_torch_is_spared_the_second_product(op, shapes, leaf):
    assert through(op, shapes, leaf) == 1


@ON_TORCH
@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        # What they save is no view of W, W twice, or what was made of W beside it.
        (lambda x, w: ops.matmul(x, 2.0 * w), ((5, 4), (4, 3))),
        (lambda x, w: ops.matmul(x, w) + ops.matmul(3.0 * x, w), ((5, 4), (4, 3))),
        (lambda x, w: ops.matmul(x, w) + ops.matmul(x, -2.0 * w), ((5, 4), (4, 3))),
        (lambda x, w: ops.conv(x, w * ops.ones_like(w)), IMAGES),
        (lambda x, w: ops.conv(x, ops.flip(w, 0)), IMAGES),
        (lambda x, w: ops.conv(x, ops.concatenate([w[:1], w[1:]], 0)), IMAGES),
        (
            lambda x, w: ops.depthwise_conv(x, w, padding="same"),
            ((2, 7, 8, 4), (3, 3, 4, 2)),
        ),
    ],
)
def test_what_torch_saves_otherwise_goes_the_other_way(op, shapes):
    """By an exchange made blindly some of these would be backpropagation in silence."""
    for _ in range(2):
        assert through(op, shapes) >= 1


@ON_TORCH
def test_the_other_way_is_taken_where_nothing_can_be_exchanged():
    assert through(ops.matmul, ((5, 4), (4, 3)), frozen=True) == 2


@ON_TORCH
def test_torch_counts_what_was_exchanged():
    import torch

    x, w, b = (torch.ones((2, 2), requires_grad=True) for _ in range(3))
    y = gradients.linear(ops.matmul, 1.0 * x, w, b)
    with torch.no_grad():
        b.mul_(2.0)
    with pytest.raises(RuntimeError, match="feedback kernel was changed in place"):
        y.sum().backward()
    with torch.no_grad():
        assert not gradients.linear(ops.matmul, x, w, b).requires_grad
    inputs = torch.ones((2, 2))
    y = gradients.linear(ops.matmul, inputs, w, b)
    (dw,) = torch.autograd.grad(y, [w], torch.ones((2, 2)), create_graph=True)
    np.testing.assert_array_equal(array(dw), 2)
    assert type(y.grad_fn).__name__ == "CustomGradientFunctionBackward"


@ON_TORCH
def test_a_kernel_that_torch_keeps_out_of_sight_is_not_backpropagation():
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x)
            ctx.kernel = w
            return x @ w

        @staticmethod
        def backward(ctx, error):
            (x,) = ctx.saved_tensors
            return error @ ctx.kernel.T, x.T @ error

    through(Product.apply, ((5, 4), (4, 3)))
