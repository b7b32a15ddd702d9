"""Alignment dominance against its definitions, and proposition 5.7 in training."""

import math

import keras
import numpy as np
import pytest
from backends import BACKEND
from helpers import standing
from keras import layers, ops

from keras_fa import analysis, rules
from keras_fa.analysis import _dominance as dominance
from keras_fa.layers import FeedbackDense


def test_running_alpha_is_the_largest_that_the_definition_allows():
    rng = np.random.default_rng(0)
    products, losses = rng.uniform(0.1, 2, (2, 3, 20))
    for beta, star in ((1, 0), (2, 0), (1.5, 0.05)):
        alphas = dominance.running_alpha(products, losses, beta, star)
        assert alphas.shape == (3, 20)
        for series in range(3):
            for now in range(20):
                met = slice(0, now + 1)
                right = (losses[series, met] - star) ** beta
                margin = products[series, met] - alphas[series, now] * right
                # Met by all points so far, and by one of them with equality.
                assert margin.min() == pytest.approx(0, abs=1e-14)
    products[1, 7] = -1
    assert (dominance.running_alpha(products, losses, 2)[1, 7:] < 0).all()


def test_a_point_at_the_optimum_asks_for_a_product_that_is_not_negative():
    losses = [0.0, 1.0, 0.0, 1e-200]
    np.testing.assert_array_equal(
        dominance.running_alpha([0.0, 3.0, 0.0, 1.0], losses, 2), [np.inf, 3, 3, 3]
    )
    assert dominance.running_alpha([1.0, 3.0, -1e-9, 1.0], losses, 2)[2] == -np.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [1.0], 2), "shapes"),
        ((1.0, 1.0, 2), "shapes"),
        (([1.0], [1.0], 0), "beta > 0"),
        (([1.0], [1.0], math.nan), "beta > 0"),
        (([1.0, 1.0], [1.0, 0.1], 2, 0.2), "below it"),
    ],
)
def test_running_alpha_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        dominance.running_alpha(*arguments)


@pytest.mark.parametrize("beta", [1, 1.5, 2, 3])
@pytest.mark.parametrize("initial_loss", [0.4, 3.0])
def test_the_loss_bound_solves_its_differential_equation(beta, initial_loss):
    alpha, step, steps = 0.7, 1e-3, 4000

    def slope(loss):
        return -alpha * loss**beta

    losses = [initial_loss]
    for _ in range(steps):
        loss = losses[-1]
        k1 = slope(loss)
        k2 = slope(loss + step / 2 * k1)
        k3 = slope(loss + step / 2 * k2)
        k4 = slope(loss + step * k3)
        losses.append(loss + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    times = step * np.arange(steps + 1)
    bound = dominance.loss_bound(times, alpha, beta, initial_loss)
    # Of the Runge-Kutta solution: the worst seen is 8e-12.
    np.testing.assert_allclose(bound, losses, rtol=1e-10)


def test_the_loss_bound_at_beta_2_is_the_papers_and_arguments_broadcast():
    times, alphas = np.linspace(0, 5, 6), np.array([[0.1], [2.0]])
    bound = dominance.loss_bound(times, alphas, 2, 0.8)
    np.testing.assert_allclose(bound, 1 / (alphas * times + 1 / 0.8), rtol=1e-14)
    np.testing.assert_array_equal(dominance.loss_bound(times, 1.0, 2, 0.0), 0)
    np.testing.assert_allclose(dominance.loss_bound(2.0, 0.5, 1, 3.0), 3 / math.e)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, 0.9, 1.0), "beta >= 1"),
        ((1.0, 1.0, math.nan, 1.0), "beta >= 1"),
        ((1.0, [0.1, 0.0], 2, 1.0), "alpha > 0"),
        ((1.0, math.nan, 2, 1.0), "alpha > 0"),
        (([0.0, -1.0], 1.0, 2, 1.0), "not negative"),
        ((1.0, 1.0, 2, -0.1), "not negative"),
    ],
)
def test_the_loss_bound_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        dominance.loss_bound(*arguments)


def test_separability_by_loops_over_the_pairs():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 30)), np.sign(rng.normal(size=7))
    result = dominance.separability(x, y[:, None])
    margin = min(y[i] * y[j] * (x[i] @ x[j]) for i in range(7) for j in range(7))
    overlap = max(abs(x[i] @ x[j]) for i in range(7) for j in range(7) if i != j)
    shortest = min(x[i] @ x[i] for i in range(7))
    np.testing.assert_allclose(result.margin, margin, rtol=1e-12)
    np.testing.assert_allclose(result.overlap, overlap, rtol=1e-12)
    np.testing.assert_allclose(result.epsilon, shortest / 7 - overlap, rtol=1e-12)
    assert not result.orthogonally_separable and not result.nearly_orthogonal
    assert result.examples == 7


def test_separability_of_known_cases():
    aligned = dominance.separability([[1.0, 1], [-3, 0], [1, 1]], [1, -1, 1])
    assert aligned.margin == 2 and aligned.orthogonally_separable
    assert aligned.overlap == 3 and not aligned.nearly_orthogonal
    # i = j counts: a short example limits the margin.
    short = dominance.separability([[2.0, 0], [0.5, 0]], [1, 1])
    assert short.margin == 0.25 and short.orthogonally_separable
    edge = dominance.separability([[2.0, 0], [1, 2]], [1, -1])
    assert edge.epsilon == 0 and not edge.nearly_orthogonal
    orthogonal = dominance.separability(2 * np.eye(3), [1, -1, 1])
    assert orthogonal.margin == 0 and not orthogonal.orthogonally_separable
    assert orthogonal.overlap == 0 and orthogonal.epsilon == 4 / 3
    assert orthogonal.nearly_orthogonal


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 2)), [1, 1], "Received"),
        (np.ones(3), [1, 1, 1], "Received"),
        (np.ones((0, 2)), [], "Received"),
        (np.ones((2, 2)), [0, 1], "labels -1 and"),
    ],
)
def test_separability_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        dominance.separability(x, y)


def test_the_output_bound_is_that_of_the_worst_vector_of_the_same_signs():
    kernel, feedback = np.full((2, 3), 0.1), np.array([1.0, -2.0, 0.5])
    bound = dominance.output_alignment_bound(kernel, 2 * feedback, feedback)
    assert bound == pytest.approx(0.5 / math.sqrt(5.25))
    # Reached as w concentrates on the unit of the smallest |b|.
    w = np.array([1e-9, -1e-9, 1.0])
    cosine = w @ feedback / np.linalg.norm(w) / np.linalg.norm(feedback)
    assert cosine == pytest.approx(bound)
    column = feedback[:, None]
    ones = dominance.output_alignment_bound(kernel, np.sign(column), np.sign(column))
    assert ones == pytest.approx(1 / math.sqrt(3))


def test_the_output_bound_needs_every_potential_to_be_positive():
    ones = np.ones(4)
    kernel = np.zeros((3, 4))
    kernel[:, 1] = math.sqrt(2 / 3) * 0.999
    assert dominance.output_alignment_bound(kernel, ones, ones) == 0.5
    assert dominance.output_alignment_bound(kernel * 1.01, ones, ones) is None
    assert dominance.output_alignment_bound(kernel, ones, ones, 0.1 * ones) is None
    assert dominance.output_alignment_bound(kernel, ones, -ones) is None
    with pytest.raises(ValueError, match="Received shapes"):
        dominance.output_alignment_bound(kernel.T, ones, ones)
    with pytest.raises(ValueError, match="Received shapes"):
        dominance.output_alignment_bound(kernel, np.ones((4, 2)), np.ones((4, 2)))


def by_hand(x, y, kernel, w, b, slope):
    """L and the first layer's share of <grad, feedback grad>, summed over pairs."""
    hidden = x @ kernel
    phi = np.where(hidden > 0, 1.0, slope)
    losses = np.exp(-y * ((hidden * phi) @ w))
    product = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            product += (
                losses[i] * losses[j] * y[i] * y[j] * (x[i] @ x[j])
                * (w * phi[i] * phi[j] * b).sum()
            )  # fmt: skip
    return losses.mean(), product / len(x) ** 2


def orthogonally_separable(rng, n=12, d=8):
    y = np.where(np.arange(n) % 2, 1.0, -1.0)
    x = np.full(d, 0.4) + 0.1 * rng.normal(size=(n, d))
    return x * y[:, None], y


def nearly_orthogonal(rng, n=6, d=1500):
    y = np.where(np.arange(n) % 2, 1.0, -1.0)
    return rng.normal(size=(n, d)) / math.sqrt(d), y


@pytest.mark.parametrize("data", [orthogonally_separable, nearly_orthogonal])
def test_no_weights_of_positive_potentials_have_less_than_the_guaranteed_alpha(data):
    rng = np.random.default_rng(2)
    x, y = data(rng)
    slope = 0.8
    separability = dominance.separability(x, y)
    for _ in range(20):
        kernel = rng.normal(size=(x.shape[1], 5)) * 0.5 / math.sqrt(x.shape[1])
        w, b = rng.uniform(0.5, 1.5, (2, 5))
        alpha = dominance.guaranteed_alpha(separability, kernel, w, b, slope)
        loss, product = by_hand(x, y, kernel, w, b, slope)
        assert 0 < alpha <= product / loss**2
        # S is the sum of potentials, the factor belongs to the data alone.
        potentials = w @ b - (kernel**2).sum() / 2
        gamma, epsilon = separability.overlap, separability.epsilon
        factors = [
            slope**2 * separability.margin,
            slope**2 * (gamma + epsilon) - gamma * (1 - 1 / len(x)),
        ]
        assert alpha == pytest.approx(potentials * max(factors))


def test_nothing_is_guaranteed_without_the_conditions():
    ones, kernel = np.ones(3), np.zeros((2, 3))
    good = dominance.separability([[1.0, 1], [1, 0]], [1, 1])
    bad = dominance.separability([[1.0, 1], [1, 0]], [1, -1])
    assert dominance.guaranteed_alpha(good, kernel, ones, ones, 0.5) == 0.75
    assert dominance.guaranteed_alpha(bad, kernel, ones, ones, 0.5) == 0
    assert dominance.guaranteed_alpha(good, kernel, ones, -ones, 0.5) == 0
    one_negative = np.array([1.0, 1.0, -0.1])
    assert dominance.guaranteed_alpha(good, kernel, one_negative, ones, 0.5) == 0
    for slope in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match="slope in"):
            dominance.guaranteed_alpha(good, kernel, ones, ones, slope)


def exponential_loss(y, outputs):
    return ops.exp(-ops.cast(y, outputs.dtype) * outputs)


RULES = {
    "fa": lambda: rules.FeedbackAlignment("ones"),
    "sign_fa": lambda: rules.SignFeedbackAlignment(1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "data"),
    [
        # Elsewhere a cell of each row and column.
        standing("fa", orthogonally_separable, stands=True),
        standing("sign_fa", orthogonally_separable, stands=BACKEND == "tensorflow"),
        standing("fa", nearly_orthogonal, stands=BACKEND == "tensorflow"),
        standing("sign_fa", nearly_orthogonal, stands=True),
    ],
)
def test_proposition_5_7(rule, data):
    """Dominance with beta = 2, the loss under its bound, and w2 > 0, all through."""
    x, y = data(np.random.default_rng(4))
    slope, step, steps = 0.8, 0.02, 150
    separability = dominance.separability(x, y)
    assert separability.orthogonally_separable == (data is orthogonally_separable)
    assert separability.nearly_orthogonal == (data is nearly_orthogonal)
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            FeedbackDense(
                8,
                rule=RULES[rule](),
                use_bias=False,
                kernel_initializer=keras.initializers.RandomNormal(
                    stddev=0.5 / math.sqrt(x.shape[1]), seed=1
                ),
            ),
            layers.LeakyReLU(slope),
            FeedbackDense(
                1, rule=RULES[rule](), use_bias=False, kernel_initializer="ones"
            ),
        ]
    )
    hidden, output = model.layers[0], model.layers[-1]
    guaranteed = dominance.guaranteed_alpha(
        separability,
        hidden.kernel.numpy(),
        output.kernel.numpy(),
        np.ones((8, 1)),
        slope,
    )
    bound = analysis.weight_alignment_bounds(model)[output.name]
    assert bound == pytest.approx(1 / math.sqrt(8))
    instrument = analysis.GradientAlignment(model, exponential_loss)
    model.compile(keras.optimizers.SGD(step), exponential_loss, jit_compile=False)
    products, losses = [], []
    for _ in range(steps):
        result = instrument(x, y[:, None])
        products.append(result.inner_product)
        losses.append(result.loss)
        assert (output.kernel.numpy() > 0).all()
        assert analysis.weight_alignment(model)[output.name] >= bound
        model.train_on_batch(x, y[:, None])
    alphas = dominance.running_alpha(products, losses, beta=2)
    assert alphas[-1] >= guaranteed > 0
    times = step * np.arange(steps)
    for alpha in (alphas[-1], guaranteed):
        limit = dominance.loss_bound(times, alpha, 2, losses[0])
        # The first point is L(0) itself.
        assert (np.asarray(losses) <= limit * (1 + 1e-12)).all()
    assert losses[-1] < 0.5 * losses[0]
