"""Alignment dominance: from measured alignment to a bound on the loss curve.

Pure functions of NumPy arrays, in float64. Definitions, theorems and lemmas are those
of Robertson and Koyejo (2024).
"""

import dataclasses

import numpy as np


def running_alpha(inner_products, losses, beta, loss_star=0.0):
    """The largest alpha that (alpha, beta)-alignment dominance allows so far.

    Definition 4.2 asks `<grad, feedback grad> >= alpha (L - L*)^beta` at every point of
    the trajectory, so alpha is the smallest ratio of the two sides met until now.

    Args:
        inner_products: <gradient, feedback gradient> along the trajectory, shape
            `(..., times)`: `analysis.gradient_alignment(...).inner_product`.
        losses: L, of the same shape.
        beta: A positive number.
        loss_star: L*, the infimum of the loss.

    Returns:
        Array of the same shape, never increasing along the last axis. Where it is 0 or
        below, the rule does not dominate: `loss_bound` does not apply. A point with
        `(L - L*)^beta = 0` asks only that the inner product is not negative: it leaves
        alpha alone (inf, if all points so far are such) or makes it -inf.

    Raises:
        ValueError: If the shapes differ, beta is not positive, or a loss is below L*.
    """
    inner_products = np.asarray(inner_products, np.float64)
    losses = np.asarray(losses, np.float64)
    if inner_products.shape != losses.shape or losses.ndim == 0:
        raise ValueError(
            "Expected one loss for every inner product, times along the last axis. "
            f"Received shapes {inner_products.shape} and {losses.shape}."
        )
    if not beta > 0:
        raise ValueError(f"Expected beta > 0. Received: beta={beta}.")
    gaps = losses - loss_star
    if (gaps < 0).any():
        raise ValueError(
            "L* is the infimum of the loss, but a loss is below it. Received: "
            f"loss_star={loss_star}, smallest loss {np.nanmin(losses)}."
        )
    powers = gaps**beta
    at_optimum = np.where(inner_products < 0, -np.inf, np.inf)
    ratios = np.where(
        powers == 0, at_optimum, inner_products / np.where(powers == 0, 1.0, powers)
    )
    return np.minimum.accumulate(ratios, axis=-1)


def loss_bound(time, alpha, beta, initial_loss):
    """Upper bound on the loss under (alpha, beta)-alignment dominance.

    Theorem 5.1, for the flow and for losses with `L* = 0` (for another L*, pass
    `L(0) - L*` and read the bound as one on `L - L*`):

        L(t) <= L(0) exp(-alpha t)                                         beta = 1
        L(t) <= (L(0)^-(beta-1) + (beta-1) alpha t)^(-1/(beta-1))          beta > 1

    The second line is what integrating `dL/dt = -alpha L^beta` gives. It equals the
    paper's at beta = 2, `1 / (alpha t + 1/L(0))`. At other beta the paper has
    `((beta-1) / (alpha t + (beta-1)/L(0)))^(1/(beta-1))`, which is not L(0) at t = 0
    and is not always a bound.

    Args:
        time: t, not negative: learning rate times steps for small steps. Arrays
            broadcast against each other.
        alpha: Positive. A curve of `running_alpha` gives the bound as known by each t.
        beta: A number, at least 1.
        initial_loss: L(0), not negative.

    Returns:
        Array of the broadcast shape, or a NumPy scalar.

    Raises:
        ValueError: If beta < 1, alpha <= 0, or a time or initial loss is negative.
    """
    time, alpha, initial_loss = (
        np.asarray(argument, np.float64) for argument in (time, alpha, initial_loss)
    )
    if not beta >= 1:
        raise ValueError(f"Theorem 5.1 needs beta >= 1. Received: beta={beta}.")
    if not (alpha > 0).all():
        raise ValueError(
            "Theorem 5.1 needs alpha > 0: without alignment dominance there is no "
            f"bound. Received: smallest alpha {alpha.min()}."
        )
    if not ((time >= 0).all() and (initial_loss >= 0).all()):
        raise ValueError(
            "Expected times and initial losses that are not negative. Received: "
            f"smallest time {time.min()}, smallest initial loss {initial_loss.min()}."
        )
    if beta == 1:
        return initial_loss * np.exp(-alpha * time)
    power = beta - 1
    # L(0)^-power taken out of the bracket, so that L(0) = 0 needs no division.
    growth = power * alpha * time * initial_loss**power
    return initial_loss * (1 + growth) ** (-1 / power)


@dataclasses.dataclass(frozen=True)
class Separability:
    """How separable a labelled dataset is.

    Attributes:
        margin: gamma of definition 5.5, `min_ij <x_i y_i, x_j y_j>`, i = j included.
        overlap: gamma of definition 5.6, `max_{i != j} |<x_i, x_j>|`.
        epsilon: epsilon of definition 5.6, `min_i |x_i|^2 / n - overlap`.
        examples: n.
    """

    margin: float
    overlap: float
    epsilon: float
    examples: int

    @property
    def orthogonally_separable(self):
        """Definition 5.5: margin > 0."""
        return self.margin > 0

    @property
    def nearly_orthogonal(self):
        """Definition 5.6: epsilon > 0.

        Exactly orthogonal inputs, overlap 0, count as well; the definition leaves them
        out, but what is proved from it does not.
        """
        return self.epsilon > 0


def separability(x, y):
    """Which of the data assumptions of proposition 5.7 a dataset meets.

    Args:
        x: Inputs, shape `(n, d)`.
        y: Labels -1 and +1, shape `(n,)` or `(n, 1)`.

    Returns:
        `Separability`, computed from the n x n inner products in float64.

    Raises:
        ValueError: If the shapes do not match or a label is not -1 or +1.
    """
    x = np.asarray(x, np.float64)
    y = np.asarray(y, np.float64)
    if x.ndim != 2 or y.shape not in ((len(x),), (len(x), 1)) or len(x) == 0:
        raise ValueError(
            "Expected x of shape (n, d) and y of shape (n,) or (n, 1). Received: "
            f"{x.shape} and {y.shape}."
        )
    y = y.ravel()
    if not np.isin(y, (-1, 1)).all():
        raise ValueError(
            f"Expected labels -1 and +1. Received: {np.unique(y)[:5].tolist()}."
        )
    gram = x @ x.T
    overlap = np.abs(gram - np.diag(np.diag(gram))).max()
    return Separability(
        margin=float((gram * np.outer(y, y)).min()),
        overlap=float(overlap),
        epsilon=float(np.diag(gram).min() / len(x) - overlap),
        examples=len(x),
    )


def output_alignment_bound(kernel, output_kernel, output_feedback, bias=0.0):
    """Lower bound on cos(w, b) of a scalar output layer, from now on.

    Lemma 5.4. The potential `w[j] b[j] - 1/2 |W[:, j]|^2 - 1/2 bias[j]^2` of a hidden
    unit is conserved (theorem 5.2), so once positive it keeps `w[j] b[j]` positive.
    With all of them positive w has the signs of b for ever, and so
    `cos(w, b) >= min |b| / |b|`. That is `1/sqrt(m)` for the `w(0) = b = 1` of the
    lemma, whose condition on W is that the potentials are positive; being conserved,
    they can be looked at at any time, not only at the start.

    It holds for the feedback flow, for hidden layers followed by (leaky) ReLU. Finite
    steps lower the potentials by half the squared steps; momentum, weight decay and
    other penalties break the conservation.

    Args:
        kernel: W of the hidden layer, shape `(d, m)`.
        output_kernel: w, shape `(m,)` or `(m, 1)`.
        output_feedback: b, of the same shape.
        bias: Bias of the hidden layer, shape `(m,)`, if it has one.

    Returns:
        The bound, a float, or None where a potential is not positive.
    """
    if _potentials(kernel, output_kernel, output_feedback, bias).min() <= 0:
        return None
    feedback = np.abs(np.asarray(output_feedback, np.float64))
    return float(feedback.min() / np.linalg.norm(feedback))


def guaranteed_alpha(
    separability, kernel, output_kernel, output_feedback, negative_slope
):
    """The alpha that proposition 5.7 guarantees from the initial weights on.

    For two-layer nets `f(x) = w^T phi(x W)` without biases, leaky ReLU of slope c, the
    exponential loss `mean_i exp(-y_i f(x_i))`, under FA or sign-FA: along the flow
    `<grad, feedback grad> >= alpha L^2`, with S the sum of the potentials of lemma 5.4,

        alpha = S c^2 gamma                                   (definition 5.5)
        alpha = S (c^2 (gamma + epsilon) - gamma (1 - 1/n))   (definition 5.6)

    and the larger one is returned. The constants are worked out anew: c is squared
    because two examples meet in every term, and in the second case, where terms can be
    negative, c must also not shrink the positive ones below them. So near orthogonality
    alone is enough only if c is not too small.

    Args:
        separability: What `separability(x, y)` returned.
        kernel: W at the start, shape `(d, m)`.
        output_kernel: w at the start, shape `(m,)` or `(m, 1)`.
        output_feedback: b, of the same shape: stored, or `s sign(w)` under sign-FA.
        negative_slope: c, in (0, 1].

    Returns:
        alpha, a float; 0 where nothing is guaranteed: a potential is not positive, or
        the data meet neither definition.

    Raises:
        ValueError: If the slope is not in (0, 1].
    """
    if not 0 < negative_slope <= 1:
        raise ValueError(
            "Proposition 5.7 needs a leaky ReLU of slope in (0, 1]. Received: "
            f"negative_slope={negative_slope}."
        )
    potentials = _potentials(kernel, output_kernel, output_feedback)
    if potentials.min() <= 0:
        return 0.0
    slope = negative_slope**2
    gamma, epsilon = separability.overlap, separability.epsilon
    data = max(
        slope * separability.margin,
        slope * (gamma + epsilon) - gamma * (1 - 1 / separability.examples),
    )
    return max(0.0, float(potentials.sum() * data))


def _potentials(kernel, output_kernel, output_feedback, bias=0.0):
    kernel, output_kernel, output_feedback, bias = (
        np.asarray(array, np.float64)
        for array in (kernel, output_kernel, output_feedback, bias)
    )
    if not (
        kernel.ndim == 2
        and output_kernel.shape in ((kernel.shape[1],), (kernel.shape[1], 1))
        and output_feedback.shape == output_kernel.shape
    ):
        raise ValueError(
            "Expected a hidden kernel (d, m) and a scalar output's kernel and feedback "
            f"(m,) or (m, 1). Received shapes {kernel.shape}, {output_kernel.shape} "
            f"and {output_feedback.shape}."
        )
    incoming = (kernel**2).sum(axis=0) + bias**2
    return (output_kernel * output_feedback).ravel() - incoming / 2
