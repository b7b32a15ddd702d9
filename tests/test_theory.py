"""The networks of the papers' theorems against each other and against the layers."""

import math

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_fa import analysis, models
from keras_fa.analysis import _kernels
from keras_fa.papers import flows, lemmas, theorems, theory
from keras_fa.papers.sections import Section, as_text, exponent


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


def test_a_linear_network_by_n_numbers_is_the_network():
    net = flows.TwoLayer(*two_layer("linear"))
    short = flows.LinearNetwork(net)
    for step in range(30):
        penalty = 0.5 if step < 20 else 0.0
        before = short.step(0.02, penalty)
        np.testing.assert_allclose(before, net.step(0.02, penalty), rtol=1e-8)
    np.testing.assert_allclose(short.errors(), net.errors(), rtol=1e-8)
    assert short.cosine() == pytest.approx(net.cosine(), rel=1e-8)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("rule", ["fa", {"name": "sign_fa", "scale": 1.0}])
def test_layers_are_the_network_of_layers(rule, loss):
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((6, 5)), rng.standard_normal((6, 3))
    if loss == "logistic":
        y = (y > 0).astype(float)
    model = models.mlp(
        (5,), (7, 4), 3, rule=rule, activation="leaky_relu", use_bias=False,
        dtype="float64",
    )  # fmt: skip
    layers = [model.get_layer(f"dense_{i}") for i in (1, 2, 3)]
    kernels = [layer.kernel.numpy() for layer in layers]
    sent = None
    if rule == "fa":
        sent = [layer.feedback.numpy() for layer in layers[1:]]
    net = flows.Layers(x, y, kernels, sent, 0.01, loss)
    start = net.potentials()
    for _ in range(3):
        with tf.GradientTape() as tape:
            outputs = model(x)
            each = (outputs - y) ** 2 / 2
            if loss == "logistic":
                each = tf.nn.sigmoid_cross_entropy_with_logits(y, outputs)
            value = tf.reduce_sum(each) / 6
        steps = tape.gradient(value, [layer.kernel for layer in layers])
        for layer, step in zip(layers, steps, strict=True):
            layer.kernel.assign_sub(0.1 * step)
        told, gradients = net.step(0.1)
        assert told == pytest.approx(float(value))
        # TensorFlow's leaky ReLU has its slope in float32.
        np.testing.assert_allclose(gradients[0], steps[0].numpy(), atol=1e-9)
    for kernel, layer in zip(net.kernels, layers, strict=True):
        np.testing.assert_allclose(kernel, layer.kernel.numpy(), atol=1e-9)
    ours = np.concatenate(list(analysis.potentials(model).values()))
    np.testing.assert_allclose(net.potentials(), ours, atol=1e-8)
    assert np.abs(ours - start).max() > 1e-4


def test_theorem_5_2s_drift_is_of_the_steps_and_its_section_tells(tmp_path):
    row = theory.theorem_5_2(0, "fa", "squared", 0.02, time=0.4)
    half = theory.theorem_5_2(0, "fa", "squared", 0.01, time=0.4)
    assert row["besides"] < 1e-13 < 1e-5 < row["drift"] < row["moved"] / 20
    # Measured: 2.02.
    assert row["drift"] / half["drift"] == pytest.approx(2, rel=0.1)
    assert theory.theorem_5_2(0, "sign_fa", "squared", 0.02)["besides"] > 1e-4

    def told(power, besides):
        rows = pd.DataFrame(
            {"method": method, "loss": "squared", "rate": rate, "moved": 1.0}
            | {"drift": rate**power, "besides": besides}
            | {"initial_loss": 2.0, "final_loss": 1.0}
            for method in ("fa", "sign_fa")
            for rate in (0.01, 0.02)
        )
        section = Section("theorem_5_2", "Theorem 5.2", "RK24")
        theorems.theorem_5_2(section, rows, tmp_path)
        return [holds for _, holds, _ in section.checks]

    assert told(1.0, 1e-15) == [True, True, True]
    assert told(0.5, 1e-15) == [False, True, False]
    assert told(1.0, 1e-3) == [True, False, True]


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
    row = theory.theorem_3_2(0, 200, steps=40)
    assert row["worst_ratio"] < row["bound"] < 1
    # gamma is that of E[G], as in the paper; one narrow network's G is below it.
    x, kernel, net = flows.song_network(0, 200, "tanh")
    found = analysis.kernels(x, kernel, net.beta, net.feedback)
    gamma = np.linalg.eigvalsh(lemmas.expected_kernel(x))[0]
    assert row["gamma"] == pytest.approx(gamma) and gamma > row["smallest"]
    assert row["smallest"] == pytest.approx(found.smallest)
    assert row["bound"] == pytest.approx(1 - gamma / 8)
    assert row["loss_over_bound"] <= 1 + 1e-9


def test_a_network_of_figure_2_that_diverges_is_followed_by_shorter_steps(monkeypatch):
    monkeypatch.setitem(theory._RATES, "relu", 5e-4)
    usual = theory.figure_2(0, "relu", 20, 5.0, 1600)
    assert usual["rate"] == 5e-4
    monkeypatch.setitem(theory._RATES, "relu", 8e-3)
    row = theory.figure_2(0, "relu", 20, 5.0, 100)
    assert 5e-4 <= row["rate"] < 8e-3
    # The same time by other steps; measured: 8e-4 and 5e-5 of it apart.
    assert row["cosine"] == pytest.approx(usual["cosine"], abs=1e-2)
    assert row["loss"] == pytest.approx(usual["loss"], rel=0.05)


def test_lemma_a_1s_expected_kernel_is_the_mean_of_kernels():
    row = lemmas.simple_matrix(0, 4, 3)
    rng = np.random.default_rng([0, 4, 3])
    x = rng.standard_normal((4, 3)) / math.sqrt(3)
    rng = np.random.default_rng(1)
    kernels = [
        analysis.kernels(x, rng.standard_normal((3, 50_000)), *np.zeros((2, 50_000)))
        for _ in range(10)
    ]
    mean = np.mean([k.output for k in kernels], axis=0)
    assert row["gamma"] == pytest.approx(np.linalg.eigvalsh(mean)[0], rel=0.02)
    np.testing.assert_allclose(lemmas.expected_kernel(x), mean, atol=2e-3)
    hidden = 1 / (1 + np.exp(-x @ rng.standard_normal((3, 10**6))))
    sigmoid = lemmas.expected_kernel(x, lambda v: 1 / (1 + np.exp(-v)))
    np.testing.assert_allclose(sigmoid, hidden @ hidden.T / 10**6, atol=2e-3)
    z = rng.standard_normal(10**6)
    linear, square = (1 - np.tanh(z) ** 2).mean() ** 2, (np.tanh(z) ** 2).mean()
    norms = np.linalg.norm(x, axis=1)
    simple = linear * (x @ x.T) / np.outer(norms, norms)
    simple += (square - linear) * np.eye(4)
    distance = np.linalg.norm(mean - simple, 2)
    assert math.sqrt(row["squared_distance"]) == pytest.approx(distance, abs=2e-3)
    assert row["order"] == pytest.approx(math.log(4) / 3 + 16 / 9)


def test_sizes_at_the_start_are_those_of_gaussians():
    row = lemmas.start(0, 6400)
    # Measured: within 2% of their means; W's 7% below the edge of its spectrum.
    assert row["mean_b"] == pytest.approx(math.sqrt(2 / math.pi), rel=0.03)
    assert row["mean_b_beta"] == pytest.approx(2 / math.pi, rel=0.05)
    assert row["b_w"] == pytest.approx(1, rel=0.25)
    assert row["b_beta"] < 4 and row["b_squared"] < 4 * math.sqrt(2)
    edge = 2 * math.sqrt(100 / 6400) + 100 / 6400
    assert row["w_w"] == pytest.approx(edge, rel=0.1)
    assert 0.5 < row["largest_b"] < 1 and 1 < row["error"] < 2


def test_the_sums_of_linear_networks_give_errors_weights_and_cosine():
    row = lemmas.sums(0, 100, n=8, d=20)
    assert row["recursion"] < 1e-13 and row["beta_recursion"] < 1e-13
    # From tau on e is near its rest, -y lambda / (lambda + gamma).
    assert 0.5 < row["along"] < 5 / 6 and row["across"] < 0.3
    assert row["ratio_at_cutoff"] > 0
    expected = row["ratio"] / math.hypot(1, row["ratio"])
    # Measured: 8% above, of W(0)'s part along b at so small a width.
    assert row["cosine"] == pytest.approx(expected, rel=0.2)


def test_what_moves_in_wide_networks():
    x, kernel, net = flows.song_network(0, 300, "tanh")
    found = analysis.kernels(x, kernel, net.beta, net.feedback, "tanh")
    free, bound = (lemmas.lazy(0, 300, total, steps=150) for total in (0.0, 0.5))
    for row in (free, bound):
        expected = lemmas.expected_kernel(x)
        assert row["gamma"] == pytest.approx(np.linalg.eigvalsh(expected)[0])
        assert row["smallest"] == pytest.approx(found.smallest)
        assert row["h_start"] == pytest.approx(found.hidden_norm)
        assert 0 < row["worst_over_bound"] < 1
        assert 0 < row["beta_over_bound"] < 1 and 0 < row["w_over_bound"] < 1
        shifts = row["g_shift"] + row["h_shift"] + row["remainder"] + row["h_start"]
        assert max(row["g_shift"], row["h_shift"]) < row["together"] <= shifts
    assert free["beta_besides"] == free["beta"]
    # exp(-0.5) of beta(0) is left at the end.
    assert bound["beta"] > bound["beta_besides"]
    # A remainder of the second order in the rate, over the rate.
    fine = lemmas.lazy(0, 300, 0.0, rate=0.002, steps=1)
    coarse = lemmas.lazy(0, 300, 0.0, rate=0.02, steps=1)
    ratio = coarse["remainder"] / fine["remainder"]
    assert ratio == pytest.approx(10, rel=0.05)  # Measured: 10.05.


def test_lemma_a_3_asks_for_both_kernels():
    row = lemmas.kernels_at_start(0, 3000)
    x, kernel, net = flows.song_network(0, 3000, "tanh")
    found = analysis.kernels(x, kernel, net.beta, net.feedback)
    assert row["smallest"] == pytest.approx(found.smallest)
    assert row["norm_of_h"] == pytest.approx(found.hidden_norm)
    gap = found.output - lemmas.expected_kernel(x)
    assert row["distance"] == pytest.approx(np.abs(np.linalg.eigvalsh(gap)).max())
    # Eigenvalues are no further apart than the matrices (Weyl).
    assert abs(row["gamma"] - row["smallest"]) < row["distance"] < row["gamma"]

    def told(**wide):
        rows = pd.DataFrame(
            {"p": p, "gamma": 0.1, "distance": p**-0.5, "norm_of_h": p**-0.5} | more
            for p, more in (
                (400, {"smallest": 0.07}),
                (40_000, {"smallest": 0.08, **wide}),
            )
        )
        section = Section("lemma_a_3", "Lemma A.3", "S21")
        lemmas.kernels_at_start_section(section, rows, None)
        return [holds for _, holds, _ in section.checks]

    assert told() == [True, True]
    assert told(smallest=0.07) == [False, True]
    assert told(norm_of_h=0.03) == [False, False]
    assert told(distance=0.05) == [True, False]


def test_gamma_may_not_go_to_0_with_the_number_of_examples():
    def told(*gammas):
        rows = pd.DataFrame(
            {"seed": 0, "activation": "tanh", "d_over_n": share, "n": n, "gamma": gamma}
            for n, gamma in zip((60, 240), gammas, strict=False)
            for share in (0.5, 1, 2)
        )
        rows.loc[rows["d_over_n"] == 0.5, "gamma"] = 0.0  # Of which nothing is said.
        section = Section("proposition_3_3", "Proposition 3.3", "S21")
        theorems.proposition_3_3(section, rows, None)
        ((_, holds, _),) = section.checks
        return holds

    assert told(0.02, 0.019) is True and told(0.02, 0.01) is False
    assert told(-0.01, -0.01) is False and told(0.02) is None
    row = theory.proposition_3_3(0, "sigmoid", 20, 2)
    x = np.random.default_rng([0, 20]).standard_normal((20, 40)) / math.sqrt(40)
    kernel = lemmas.expected_kernel(x, lambda v: 1 / (1 + np.exp(-v)))
    assert row["gamma"] == pytest.approx(np.linalg.eigvalsh(kernel)[0])


def test_theorem_4_6s_constant_is_compared_over_widths_and_settings(tmp_path):
    rows = pd.DataFrame(
        {
            **{"seed": 0, "inputs": "isometric", "schedule": "cutoff", "n": 50},
            **{"time": "sqrt(p)", "p": p, "d": d, "rate": rate, "cosine": cosine},
            **dict.fromkeys(("gamma", "m_over_gamma", "l", "cutoff"), 1.0),
            **dict.fromkeys(("sum_of_lambda", "smallest_after", "final_error"), 1.0),
        }
        for p in (800, 3200)
        for d, rate, cosine in (
            (150, math.nan, 0.6),
            (150, 0.005, 0.61),
            (300, 0.01, 0.7),
        )
    )

    def told(rows):
        section = Section("theorem_4_6", "Theorem 4.6", "S21")
        theorems.theorem_4_6(section, rows, tmp_path)
        return {
            text.rpartition("n = 50")[2]: holds for text, holds, _ in section.checks
        }

    same = ": the same at every p to 10%, and above 0.1"
    over = "isometric, cutoff, T ~ sqrt(p): the same for every n, d and eta to 10%"
    # What was measured before the rate was a field is of 0.01.
    assert told(rows) == {
        **dict.fromkeys((same, f", eta = 0.005{same}", f", d = 300{same}"), True),
        over: False,
    }
    assert told(rows[rows["d"] == 150])[over] is True
    alone = rows[rows["rate"].isna()].drop(columns="rate")
    assert told(alone) == {same: True, over: None}
    rows.loc[rows["p"] == 800, "cosine"] *= 1.2
    assert told(rows)[same] is False


def test_tails_and_isometry_are_those_of_the_distributions():
    row = lemmas.tails(0, 1)
    # P(Z^2 - 1 >= 2 sqrt(t) + 2 t) exp(t) is largest at t = 0.25: P(|Z| >= 1.58).
    assert row["above"] == pytest.approx(0.1138 * math.exp(0.25), rel=0.02)
    assert row["below"] == 0 and 0 < row["product"] < 1  # It is never below -1.
    assert 0 < lemmas.tails(0, 10)["below"] < 1
    row = lemmas.isometry(0, 1, 10**4)
    assert row["missed"] == pytest.approx(0.1573, abs=2e-3)  # P(|Z| > sqrt(2))
    row = lemmas.isometry(0, 3, 5000)
    assert row["draws"] == 400 and 0 < row["missed"] < 1


def test_sections_of_lemmas_tell_a_fall_from_none():
    names = ("beta", "beta_besides", "w", "g_shift", "h_shift", "remainder")
    rows = pd.DataFrame(
        {
            "seed": 0,
            "total": 0.5,
            "p": p,
            "gamma": 0.1,
            "smallest": 0.08,
            **dict.fromkeys(names, p**-0.5),
            "beta": 1.5,
            "together": 0.01,
            **dict.fromkeys(("beta_over_bound", "w_over_bound"), 0.1),
            "h_start": 0.1,
            "worst_over_bound": 0.9,
        }
        for p in (100, 400)
    )
    section = Section("lemmas", "Lemmas", "S21")
    lemmas.lazy_section(section, rows, None)
    told = {text.split(":")[0]: holds for text, holds, _ in section.checks}
    assert told == {
        "lemma A.6": True,
        "lemma A.6 as printed, (A.14)": False,
        "lemma A.7": True,
    }
    assert exponent(rows, "p", "w") == pytest.approx(-0.5)
    assert exponent(rows[:1], "p", "w") is None
    assert as_text(rows[["p", "w"]])["w"].tolist() == ["0.1", "0.05"]
    section = Section("lemmas", "Lemmas", "S21")
    lemmas.lazy_section(section, rows.assign(together=0.1), None)
    assert [c[1] for c in section.checks] == [True, False, False]
    section = Section("lemmas", "Lemmas", "S21")
    lemmas.lazy_section(section, rows[:1], None)
    assert [c[1] for c in section.checks] == [None, None, True]
