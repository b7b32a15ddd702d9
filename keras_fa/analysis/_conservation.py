"""The conservation law of feedback training on any Keras graph: groups and potentials.

Between the layers that produce a channel j and the layers that consume it stand only
positively homogeneous operations. What the error signal does to the channel is then
the same on both sides, for any forward and backward kernels W and B:

    sum_producers <W_p[:, j], gradient of W_p[:, j]> + b_p[j] gradient of b_p[j]
        = sum_consumers <B_c[j, :], gradient of W_c[j, :]>

and what gradient flow conserves is the difference of the two sides' integrals:

    Phi_j = sum_consumers <W_c[j, :], B_c[j, :]>
            - sum_producers 1/2 (|W_p[:, j]|^2 + b_p[j]^2)

This is theorem 5.2 of Robertson and Koyejo (2024) for one producer, one consumer and
no bias. Where B is W itself, under backpropagation, the consumer's integral is
1/2 |W_c[j, :]|^2: the balance of Du et al. (2018). Everything else here is this
toolkit's own and checked numerically, see tests/test_conservation.py: biases;
convolutions, pooling and flattening; residual streams, where only the sum over all
producers and consumers is conserved; weights used more than once; and BatchNorm. As a
producer it is a diagonal layer, 1/2 (gamma^2 + beta^2). As a consumer it adds nothing,
since it does not see the scale of its input: what feeds only BatchNorms keeps its norm.
That last is exact for epsilon 0 and else off by epsilon / (variance + epsilon).

The law is one of training mode, float arithmetic and the loss alone: plain gradient
descent follows it up to its steps (see `ledger`); momentum, weight decay, adaptive
steps and clipping do not, and float16 or bfloat16 layers only to their rounding.
"""

import numpy as np
from jaxtyping import Float64, Int, Shaped

from keras_fa.analysis._groups import conserved_groups

# Kernels are widened to float64 in blocks of so many numbers, which fit the cache.
_BLOCK = 2**16


def half_squares(
    variables: list[Shaped[np.ndarray, "*_ channels"]],
    units: Int[np.ndarray, " channels"],
    size: int,
) -> Float64[np.ndarray, " {size}"]:
    """The producers' part: 1/2 (|W[:, j]|^2 + b[j]^2), summed over each unit's columns.

    Args:
        variables: Arrays with the channels along the last axis.
        units: Integer array (channels,), -1 for channels to leave out.
        size: Number of units.

    Returns:
        Array (size,), float64.
    """
    total = np.zeros(len(units))
    for values in variables:
        total += 0.5 * column_products(values, values)
    return by_unit(total, units, size)


def column_products(
    first: Shaped[np.ndarray, "*rest channels"],
    second: Shaped[np.ndarray, "*rest channels"],
) -> Float64[np.ndarray, " channels"]:
    """<X[..., j], Y[..., j]> in float64, an array over the last axis."""
    first, second = (
        np.asarray(side).reshape(-1, side.shape[-1]) for side in (first, second)
    )
    total = np.zeros(first.shape[1])
    # In blocks that stay in the cache when they are widened to float64.
    block = max(1, _BLOCK // first.shape[1])
    for start in range(0, len(first), block):
        one, other = (
            side[start : start + block].astype(np.float64) for side in (first, second)
        )
        total += np.einsum("ij,ij->j", one, other)
    return total


def row_products(
    first: Shaped[np.ndarray, "*area rows outputs"],
    second: Shaped[np.ndarray, "*area rows outputs"],
    channels: int,
) -> Float64[np.ndarray, " {channels}"]:
    """<X[j], Y[j]> in float64, j the input channels of two kernels.

    Args:
        first: Array `(..., channels / groups, outputs)`.
        second: Array of the same shape.
        channels: Number of input channels, `groups` times that of the kernel: channel
            j belongs to group `j // (channels / groups)`, and its row is what the
            filters of that group have of it.

    Returns:
        Array (channels,).
    """
    *_, rows, outputs = first.shape
    groups = channels // rows
    shape = (-1, rows, groups, outputs // groups)
    total = np.zeros((rows, groups))
    for one, other in zip(first.reshape(shape), second.reshape(shape), strict=True):
        total += np.multiply(one, other, dtype=np.float64).sum(axis=-1)
    return total.T.ravel()


def by_unit(
    values: Float64[np.ndarray, " channels"],
    units: Int[np.ndarray, " channels"],
    size: int,
) -> Float64[np.ndarray, " {size}"]:
    """Sums over the channels of each unit; channels with unit -1 are left out."""
    kept = units >= 0
    return np.bincount(units[kept], values[kept], size)


def potential(kind, producers, consumers, size):
    """Phi of a group, a pure function of arrays.

    Args:
        kind: "potential" or "norm": see `Group`.
        producers: List of (arrays of a producer's variables, its `units`).
        consumers: List of (V, P, W, B, its `units`): see `Consumer.reading`; without
            BatchNorms.
        size: Number of units.

    Returns:
        Array (size,), float64. Its sum is the law of the layer as a whole.
    """
    phi = np.zeros(size)
    for variables, units in producers:
        phi -= half_squares(variables, units, size)
    for value, factor, _, _, units in consumers:
        phi += by_unit(consumer_part(value, factor, len(units)), units, size)
    return -phi if kind == "norm" else phi


def consumer_part(value, factor, channels):
    """Q_j of `FeedbackRule.potential`, an array (channels,)."""
    if factor is None:
        return 0.5 * row_products(value, value, channels)
    return row_products(value, factor, channels)


def potentials(model, groups=None):
    """Phi of every conserved group, now.

    Source: theorem 5.2 of Robertson and Koyejo (2024) and, beyond it, the head of this
    module.

    Args:
        model: A built Sequential or functional Keras model.
        groups: What `conserved_groups(model)` returned, to save the walk; those
            without a law are passed over.

    Returns:
        `{group name: array (units,)}`, computed in float64.

    Raises:
        ValueError: If the model has no graph.
    """
    if groups is None:
        groups = conserved_groups(model)
    read = Reader()
    return {
        group.name: potential(group.kind, *read(group), group.units)
        for group in groups
        if group.conserved
    }


def drift(
    phi: Float64[np.ndarray, " units"], start: Float64[np.ndarray, " units"]
) -> float:
    """Mean over units of |Phi_j - Phi_j(0)|: meaningful where Phi_j(0) is near 0 too.

    Args:
        phi: Potentials of a group, array (units,): see `potentials`.
        start: The same at the start, Phi(0).

    Returns:
        Float, in the units of Phi: those of a squared weight.
    """
    return float(np.mean(np.abs(phi - start)))


def relative_drift(
    phi: Float64[np.ndarray, " units"], start: Float64[np.ndarray, " units"]
) -> float:
    """Mean over units of |Phi_j / Phi_j(0) - 1|.

    Args:
        phi: Potentials of a group, array (units,): see `potentials`.
        start: The same at the start, Phi(0).

    Returns:
        Float; inf or nan where a Phi_j(0) is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.abs(phi / start - 1)))


class Reader:
    """Reads the arrays of groups from their variables, each variable once."""

    def __init__(self, copy=False):
        self._arrays = {}
        self._copy = copy

    def __call__(self, group):
        """(producers, consumers) of a group, as `potential` takes them."""
        producers = [
            ([self._read(v) for v in producer.variables], producer.units)
            for producer in group.producers
        ]
        consumers = [
            (*map(self._read, consumer.reading()), consumer.units)
            for consumer in group.consumers
            if consumer.kernel is not None
        ]
        return producers, consumers

    def _read(self, variable):
        if variable is None:
            return None
        if id(variable) not in self._arrays:
            values = np.asarray(variable)
            # The variable is kept as well: a freed one could pass on its id.
            kept = values.copy() if self._copy else values
            self._arrays[id(variable)] = (variable, kept)
        return self._arrays[id(variable)][1]
