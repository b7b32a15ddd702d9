"""The kernels of a two-layer network under feedback alignment, and the rate they give.

Pure functions of NumPy arrays, in float64. Source: Song, Xu and Lafferty (2021),
section 3.
"""

import dataclasses

import numpy as np

# psi and its derivative.
ACTIVATIONS = {
    "linear": (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(np.float64)),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
}


@dataclasses.dataclass(frozen=True)
class Kernels:
    """G and H of `kernels`.

    Attributes:
        output: G, shape `(n, n)`: of the steps of the output weights; never negative.
        hidden: H, shape `(n, n)`: of the steps that the feedback gives the hidden ones;
            near 0 in wide networks, and of no sign.
    """

    output: np.ndarray
    hidden: np.ndarray

    @property
    def smallest(self):
        """The smallest eigenvalue of G."""
        return float(np.linalg.eigvalsh(self.output)[0])

    @property
    def hidden_norm(self):
        """The spectral norm of H."""
        return float(np.linalg.norm(self.hidden, 2))

    @property
    def rate(self):
        """The rate r of the flow, |e(t)| about e^{-r t}, that G + H gives at the end.

        The smallest real part among the eigenvalues of G + H.
        """
        return float(np.linalg.eigvals(self.output + self.hidden).real.min())


def kernels(x, kernel, output_kernel, output_feedback, activation="tanh"):
    """G and H: under feedback alignment, errors fall by `de/dt = -(G + H) e`.

    For `f(x) = psi(x W) beta / sqrt(p)` and the squared error `1/2 sum e^2`:

        G_ij = 1/p sum_r psi(x_i w_r) psi(x_j w_r)
        H_ij = <x_i, x_j> / p  sum_r beta_r b_r psi'(x_i w_r) psi'(x_j w_r)

    Lemma A.3 of the source, whose (A.9) leaves <x_i, x_j> out of the second expression.
    Theorem 3.2: with G's smallest eigenvalue at least gamma and p large,
    `|e(t+1)| <= (1 - eta gamma / 4) |e(t)|`.

    Args:
        x: Inputs, shape `(n, d)`.
        kernel: W, shape `(d, p)`.
        output_kernel: beta, shape `(p,)` or `(p, 1)`.
        output_feedback: b, of the same shape; beta itself gives backpropagation's H.
        activation: psi: "linear", "relu" or "tanh".

    Returns:
        `Kernels`.

    Raises:
        ValueError: If the shapes do not match or the activation is unknown.
    """
    x, kernel, beta, feedback = (
        np.asarray(array, np.float64)
        for array in (x, kernel, output_kernel, output_feedback)
    )
    if not (
        x.ndim == kernel.ndim == 2
        and x.shape[1] == kernel.shape[0]
        and beta.shape in ((kernel.shape[1],), (kernel.shape[1], 1))
        and feedback.shape == beta.shape
    ):
        raise ValueError(
            "Expected x (n, d), a hidden kernel (d, p) and an output kernel and "
            f"feedback (p,) or (p, 1). Received shapes {x.shape}, {kernel.shape}, "
            f"{beta.shape} and {feedback.shape}."
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)}. Received: "
            f"{activation!r}."
        )
    psi, derivative = ACTIVATIONS[activation]
    before = x @ kernel
    width = kernel.shape[1]
    after, slope = psi(before), derivative(before)
    weights = (beta * feedback).ravel() / width
    return Kernels(after @ after.T / width, (x @ x.T) * ((slope * weights) @ slope.T))
