"""The minimum-norm solution, to which over-parameterised linear networks may go."""

import numpy as np
from jaxtyping import Float


def minimum_norm_distance(
    linear_map: Float[np.ndarray, "d_in d_out"],
    x: Float[np.ndarray, "n d_in"],
    y: Float[np.ndarray, "n d_out"],
) -> float:
    """|M - X^+ Y| / |X^+ Y|: how far a linear map is from the minimum-norm solution.

    Source: Robertson and Koyejo (2023), theorem 5.2: under feedback alignment an
    over-parameterised two-layer linear network M = W1 W2 whose W1 starts in the span of
    the data goes to X^+ Y, X^+ the Moore-Penrose inverse.

    Args:
        linear_map: M, array (d_in, d_out), which takes inputs x to x M.
        x: Inputs, array (n, d_in).
        y: Targets, array (n, d_out).

    Returns:
        Float, in Frobenius norms.
    """
    solution = np.linalg.pinv(x) @ y
    return float(np.linalg.norm(linear_map - solution) / np.linalg.norm(solution))
