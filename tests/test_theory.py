"""The networks of the papers' theorems against each other and against the layers."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_fa import analysis, models
from keras_fa.analysis import _kernels
from keras_fa.papers import flows, theory


def two_layer(activation, n=5, d=7, p=11, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal(n)
    kernel = rng.standard_normal((d, p))
    beta, feedback = rng.standard_normal((2, p))
    return x, y, kernel, beta, feedback, activation


@pytest.mark.parametrize("activation", list(_kernels.ACTIVATIONS))
def test_errors_fall_as_the_kernels_say(activation):
    x, _, kernel, beta, feedback, _ = arguments = two_layer(activation)
    found = analysis.kernels(x, kernel, beta, feedback, activation)
    net = flows.TwoLayer(*arguments)
    before, rate = net.errors(), 1e-7
    net.step(rate)
    measured = (net.errors() - before) / rate
    expected = -(found.output + found.hidden) @ before
    np.testing.assert_allclose(measured, expected, rtol=1e-4)
    assert found.smallest == pytest.approx(np.linalg.eigvalsh(found.output).min())


def test_backpropagations_kernel_is_that_of_its_gradients():
    x, _, kernel, beta, _, _ = two_layer("tanh")
    found = analysis.kernels(x, kernel, beta, beta, "tanh")
    root = math.sqrt(len(beta))
    jacobian = []
    for one in x:
        slope = 1 - np.tanh(one @ kernel) ** 2
        hidden = np.outer(one, beta * slope) / root
        jacobian.append(np.concatenate([np.tanh(one @ kernel) / root, hidden.ravel()]))
    jacobian = np.array(jacobian)
    np.testing.assert_allclose(
        found.output + found.hidden, jacobian @ jacobian.T, rtol=1e-12
    )


def test_kernels_refuse_what_does_not_fit():
    x, _, kernel, beta, feedback, _ = two_layer("tanh")
    with pytest.raises(ValueError, match="Received shapes"):
        analysis.kernels(x.T, kernel, beta, feedback)
    with pytest.raises(ValueError, match="'sine'"):
        analysis.kernels(x, kernel, beta, feedback, "sine")


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
def test_a_network_in_the_span_is_the_network_of_layers(activation):
    x, y, kernel, beta, feedback, _ = arguments = two_layer(activation)
    model = models.mlp(
        (7,), 11, 1, activation=activation, use_bias=False, dtype="float64",
        output_scale="inverse_sqrt_width",
    )  # fmt: skip
    hidden, output = (model.get_layer(f"dense_{i}") for i in (1, 2))
    hidden.kernel.assign(kernel)
    output.kernel.assign(beta[:, None])
    output.feedback.assign(feedback[:, None])
    net, rate, penalty = flows.TwoLayer(*arguments), 0.01, 0.7
    inner = []
    for _ in range(4):
        inner.append(net.inner())
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x)[:, 0] - y) ** 2) / 2
        first, second = tape.gradient(loss, [hidden.kernel, output.kernel])
        hidden.kernel.assign_sub(rate * first)
        output.kernel.assign_sub(rate * (second + penalty * output.kernel))
        net.step(rate, penalty)
    np.testing.assert_allclose(net.beta, output.kernel.numpy()[:, 0], rtol=1e-9)
    moved = np.linalg.norm(hidden.kernel.numpy() - kernel, axis=0)
    np.testing.assert_allclose(net.moved(), moved, rtol=1e-7)
    np.testing.assert_allclose(net.errors(), model(x).numpy()[:, 0] - y, rtol=1e-8)
    alignment = analysis.weight_alignment(model)["dense_2"]
    assert net.cosine() == pytest.approx(alignment)
    assert inner[0] != pytest.approx(inner[-1])


def test_linear_networks_by_n_numbers_are_the_networks():
    nets = [flows.TwoLayer(*two_layer("linear", seed=seed)) for seed in (1, 2)]
    short = flows.LinearNetworks(nets)
    for step in range(30):
        penalty = 0.5 if step < 20 else 0.0
        short.step(0.02, penalty)
        for net in nets:
            net.step(0.02, penalty)
    np.testing.assert_allclose(short.errors(), [n.errors() for n in nets], rtol=1e-8)
    np.testing.assert_allclose(short.cosines(), [n.cosine() for n in nets], rtol=1e-8)


@pytest.mark.parametrize("sign", [False, True])
def test_a_classifiers_gradients_are_true_where_feedback_is_w(sign):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((6, 4)), np.sign(rng.standard_normal(6))
    kernel, output = rng.standard_normal((4, 5)), rng.standard_normal(5)
    net = flows.Classifier(x, y, kernel, output, 0.1, sign)
    loss, first, second, inner = net.gradients()

    def value(kernel, output):
        before = x @ kernel
        after = np.where(before > 0, before, 0.1 * before)
        return np.exp(-y * (after @ output)).mean()

    assert loss == pytest.approx(value(kernel, output))
    true = np.zeros_like(kernel)
    for place in np.ndindex(*kernel.shape):
        shift = np.zeros_like(kernel)
        shift[place] = 1e-6
        true[place] = value(kernel + shift, output) - value(kernel - shift, output)
    true /= 2e-6
    # The true gradient has w where the feedback's has b.
    scaled = first / (np.sign(output) if sign else output) * output
    np.testing.assert_allclose(scaled, true, rtol=1e-5, atol=1e-9)
    whole = second @ second + (true * first).sum()
    assert inner == pytest.approx(whole, rel=1e-5)


def test_the_linear_map_keeps_its_law_and_its_span():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((6, 9)), rng.standard_normal((6, 3))
    net = flows.LinearMap(
        x, y, rng.standard_normal((9, 5)), rng.standard_normal((5, 3))
    )
    drifts = []
    for rate in (1e-4, 1e-5):
        own = flows.LinearMap(x, y, net.first, net.second)
        start = own.potential()
        for _ in range(round(1e-2 / rate)):
            own.step(rate)
        drifts.append(abs(own.potential() - start))
        moved = own.first - net.first
        assert np.linalg.norm(moved - own.projected(moved)) < 1e-12
    # Of the first order in the rate: the flow keeps it.
    assert drifts[1] == pytest.approx(drifts[0] / 10, rel=0.1)
    on, off = own.distance()
    solution = np.linalg.pinv(x) @ y
    whole = own.first @ own.second - solution
    expected = np.linalg.norm(whole) / np.linalg.norm(solution)
    assert math.hypot(on, off) == pytest.approx(expected)


def test_cells_of_a_measurement_differ_and_one_runs():
    for name, one in theory.MEASUREMENTS.items():
        texts = [str(sorted(cell.items())) for cell in one.cells]
        assert len(set(texts)) == len(texts), name
    row = theory.theorem_3_2(0, 200, "tanh", steps=40)
    assert row["worst_ratio"] < row["bound"] < 1
    assert row["loss_over_bound"] <= 1 + 1e-9
