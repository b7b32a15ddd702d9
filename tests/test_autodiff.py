"""Gradients on each backend, against derivatives written out by hand."""

import keras
import numpy as np
import pytest
from backends import BACKEND, array
from keras import ops

from keras_fa import autodiff

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
