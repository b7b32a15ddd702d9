"""Synthetic problems: random classification and regression, and the theory's sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras_fa.datasets.transforms import RawData

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0.0),
    "tanh": np.tanh,
}


def _generators(seed: np.random.SeedSequence) -> list[np.random.Generator]:
    """Streams for the problem, the training set and the test set.

    Apart, so that the size of one set changes neither the other nor the teacher.
    """
    return [np.random.default_rng(child) for child in seed.spawn(3)]


def synthetic_classification(
    seed: np.random.SeedSequence,
    *,
    n: int = 1000,
    n_test: int = 500,
    d_in: int = 20,
    d_out: int = 4,
    separation: float = 3.0,
) -> RawData:
    """A Gaussian cloud of unit variance around each of `d_out` random class means.

    Args:
        seed: Decides the means and the examples.
        n: Training examples.
        n_test: Test examples.
        d_in: Input dimension.
        d_out: Number of classes, whose sizes differ by at most one.
        separation: Length of the class means, in standard deviations of a cloud.
    """
    problem, *draws = _generators(seed)
    means = problem.standard_normal((d_out, d_in))
    means *= separation / np.linalg.norm(means, axis=1, keepdims=True)

    def sample(rng, size):
        labels = rng.permutation(np.arange(size) % d_out)
        return means[labels] + rng.standard_normal((size, d_in)), labels

    (x, y), (x_test, y_test) = map(sample, draws, (n, n_test))
    names = tuple(str(label) for label in range(d_out))
    return RawData(x, y, x_test, y_test, class_names=names)


def synthetic_regression(
    seed: np.random.SeedSequence,
    *,
    n: int = 1000,
    n_test: int = 500,
    d_in: int = 20,
    d_out: int = 1,
    noise: float = 0.1,
) -> RawData:
    """Noisy targets of a smooth non-linear map: mixed sines of random projections.

    Standard normal inputs; targets of variance about 1/2 before the noise.

    Args:
        seed: Decides the map and the examples.
        n: Training examples.
        n_test: Test examples.
        d_in: Input dimension.
        d_out: Target dimension.
        noise: Standard deviation of the Gaussian noise on the training targets; test
            targets are clean.
    """
    problem, *draws = _generators(seed)
    inner = problem.standard_normal((d_in, d_in)) * np.sqrt(2 / d_in)
    outer = problem.standard_normal((d_in, d_out)) / np.sqrt(d_in)

    def sample(rng, size, deviation):
        x = rng.standard_normal((size, d_in))
        clean = np.sin(x @ inner) @ outer
        return x, clean + deviation * rng.standard_normal(clean.shape)

    train, test = map(sample, draws, (n, n_test), (noise, 0.0))
    return RawData(*train, *test)


def linear_teacher(
    seed: np.random.SeedSequence,
    *,
    n: int = 50,
    n_test: int = 200,
    d_in: int = 100,
    d_out: int = 10,
) -> RawData:
    """Targets that are a noiseless linear map of normal inputs.

    The problem of section 6 of Robertson & Koyejo (2023), which leaves the sizes open;
    with `n < d_in` the interpolating maps are many, and the one of minimum norm is
    `pinv(x) @ y`. Inputs are N(0, I); the map has independent N(0, 1/d_in) entries.

    Args:
        seed: Decides the map and the examples.
        n: Training examples.
        n_test: Test examples.
        d_in: Input dimension.
        d_out: Target dimension.
    """
    problem, *draws = _generators(seed)
    teacher = problem.standard_normal((d_in, d_out)) / np.sqrt(d_in)

    def sample(rng, size):
        x = rng.standard_normal((size, d_in))
        return x, x @ teacher

    train, test = map(sample, draws, (n, n_test))
    return RawData(*train, *test)


def network_teacher(
    seed: np.random.SeedSequence,
    *,
    n: int = 50,
    n_test: int = 200,
    d_in: int = 150,
    width: int = 100,
    activation: str = "relu",
) -> RawData:
    """Targets of a random two-layer network, `f(x) = beta^T psi(W x) / sqrt(width)`.

    The synthetic problem of section 5 of Song, Xu & Lafferty (2021): W, beta and the
    inputs are standard Gaussian, and the student has the form of the teacher.

    Args:
        seed: Decides the teacher and the examples.
        n: Training examples; 50 in the paper.
        n_test: Test examples.
        d_in: Input dimension; 150 in the paper.
        width: Hidden units p of the teacher.
        activation: psi, one of `"linear"`, `"relu"` and `"tanh"`.

    Raises:
        ValueError: If `activation` is none of these.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {tuple(_ACTIVATIONS)}. "
            f"Received: {activation!r}."
        )
    psi = _ACTIVATIONS[activation]
    problem, *draws = _generators(seed)
    hidden = problem.standard_normal((width, d_in))
    beta = problem.standard_normal((width, 1))

    def sample(rng, size):
        x = rng.standard_normal((size, d_in))
        return x, psi(x @ hidden.T) @ beta / np.sqrt(width)

    train, test = map(sample, draws, (n, n_test))
    return RawData(*train, *test)


def separable(
    seed: np.random.SeedSequence,
    *,
    n: int = 100,
    n_test: int = 100,
    d_in: int = 20,
    gamma: float = 1.0,
    spread: float = 1.0,
) -> RawData:
    """Gamma-orthogonally separable binary data: `<x_i y_i, x_j y_j> >= gamma`.

    Definition 5.5 of Robertson & Koyejo (2024). Each `y x` is a common vector plus one
    of length `spread` in a random direction orthogonal to it, and the common vector is
    just long enough. Training and test set satisfy the definition together.

    Args:
        seed: Decides the directions and labels.
        n: Training examples, half of them of each label.
        n_test: Test examples.
        d_in: Input dimension, at least 2.
        gamma: The margin, positive.
        spread: Distance of the examples from the common vector, positive.

    Returns:
        Labels are -1 and +1, float, `(n, 1)`.

    Raises:
        ValueError: If there is no such set.
    """
    _check_positive(gamma=gamma, spread=spread)
    if d_in < 2:
        raise ValueError(f"separable needs d_in of at least 2. Received: {d_in}.")
    problem, *draws = _generators(seed)
    common = problem.standard_normal(d_in)
    common /= np.linalg.norm(common)
    # Two spread vectors have an inner product of at least -spread^2. The last factor
    # pays for rounding the inputs to float32.
    length = np.sqrt((gamma + spread**2) * (1 + 1e-5))

    def sample(rng, size):
        offset = rng.standard_normal((size, d_in))
        offset -= np.outer(offset @ common, common)
        offset *= spread / np.linalg.norm(offset, axis=1, keepdims=True)
        y = _signs(rng, size)
        return y * (length * common + offset), y

    train, test = map(sample, draws, (n, n_test))
    return RawData(*train, *test, fixed_geometry=True)


def nearly_orthogonal(
    seed: np.random.SeedSequence,
    *,
    n: int = 20,
    n_test: int = 20,
    d_in: int = 100,
    gamma: float = 0.1,
    epsilon: float = 0.1,
) -> RawData:
    """(gamma, epsilon)-nearly orthogonal inputs with random binary labels.

    Definition 5.6 of Robertson & Koyejo (2024): with gamma the largest
    `|<x_i, x_j>|` of two different inputs, `min ||x_i||^2 >= n (gamma + epsilon)`.
    Training and test set satisfy it together, with their joint size for n. The labels
    are independent of the inputs, so on the test set every classifier is at chance.

    Args:
        seed: Decides the inputs and labels.
        n: Training examples, half of them of each label.
        n_test: Test examples.
        d_in: Input dimension, at least `n + n_test`.
        gamma: Largest inner product between two of the inputs, positive.
        epsilon: What the norms have beyond it, positive.

    Returns:
        Labels are -1 and +1, float, `(n, 1)`.

    Raises:
        ValueError: If there is no such set.
    """
    _check_positive(gamma=gamma, epsilon=epsilon)
    total = n + n_test
    if d_in < total:
        raise ValueError(
            f"nearly_orthogonal needs d_in of at least n + n_test = {total}. Received: "
            f"{d_in}."
        )
    problem, *draws = _generators(seed)
    # The Gram matrix is chosen, then factored. Its diagonal dominates, so it is
    # positive definite; the 1% pays for rounding the inputs to float32.
    products = np.triu(problem.uniform(-1, 1, (total, total)), 1)
    products *= gamma / np.max(np.abs(products))
    gram = products + products.T
    np.fill_diagonal(gram, 1.01 * total * (gamma + epsilon))
    basis, _ = np.linalg.qr(problem.standard_normal((d_in, total)))
    x = np.linalg.cholesky(gram) @ basis.T
    y, y_test = (
        _signs(rng, size) for rng, size in zip(draws, (n, n_test), strict=True)
    )
    return RawData(x[:n], y, x[n:], y_test, fixed_geometry=True)


def _signs(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.permutation(np.where(np.arange(size) % 2, 1.0, -1.0))[:, np.newaxis]


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive. Received: {value}.")


PROBLEMS: dict[str, Callable[..., RawData]] = {
    problem.__name__: problem
    for problem in (
        synthetic_classification,
        synthetic_regression,
        linear_teacher,
        network_teacher,
        separable,
        nearly_orthogonal,
    )
}
