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

from keras_fa import autodiff
from keras_fa.analysis._groups import conserved_groups

# Kernels are widened to float64 in blocks of so many numbers, which fit the cache.
_BLOCK = 2**16


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
    first: Shaped[np.ndarray, "area inputs groups outputs"],
    second: Shaped[np.ndarray, "area inputs groups outputs"],
) -> Float64[np.ndarray, " channels"]:
    """<X[j], Y[j]> in float64, j the input channels of two kernels as a `View` has it.

    Returns:
        Array (groups * inputs,).
    """
    total = np.zeros(first.shape[1:3])
    for one, other in zip(first, second, strict=True):
        total += np.multiply(one, other, dtype=np.float64).sum(axis=-1)
    return total.T.ravel()


def grams(
    first: Float64[np.ndarray, "rows channels"],
    second: Float64[np.ndarray, "rows channels"],
    units: Int[np.ndarray, " channels"],
    size: int,
) -> Float64[np.ndarray, " {size}"]:
    """X^T Y of each head, summed over the heads of a unit, flat.

    Args:
        first: Array (rows, channels).
        second: Likewise.
        units: Integer array (channels,): the n units of all heads together, those of a
            head in a row; channels of several heads may share one.
        size: Number of entries: n times the channels of a head.
    """
    count = int(units.max()) + 1
    order = np.argsort(units, kind="stable")[np.sum(units < 0) :]
    # (groups of heads, channels of a head, heads of a group)
    heads = order.reshape(count * count // size, size // count, -1)
    one, other = first[:, heads], second[:, heads]
    return np.einsum("rgah,rgbh->gab", one, other).ravel()


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
        kind: See `Group`.
        producers: List of (sign, [(array with the channels last, its `units`)]).
        consumers: List of (V, P, W, B, its `units`): see `Consumer.reading`; without
            normalisations.
        size: Number of units.

    Returns:
        Array (size,), float64. Its sum is the law of the layer as a whole.
    """
    if kind == "sum":
        return row_sums(producers[0][1])
    phi = np.zeros(size)
    for sign, parts in producers:
        for values, units in parts:
            phi += sign * squares(kind, values, values, units, size)
    for value, factor, _, _, units in consumers:
        phi += by_unit(consumer_part(value, factor), units, size)
    return phi


def squares(kind, first, second, units, size):
    """A producer's part, 1/2 <X[:, j], Y[:, j]> of each unit, or X^T Y of each head."""
    if kind == "matrix":
        first, second = (
            side.reshape(-1, side.shape[-1]).astype(np.float64)
            for side in (first, second)
        )
        return grams(first, second, units, size)
    return by_unit(0.5 * column_products(first, second), units, size)


def row_sums(parts):
    """Sums over the channels of each row of arrays, in one array."""
    return np.concatenate(
        [values.sum(axis=-1, dtype=np.float64).ravel() for values, _ in parts]
    )


def consumer_part(value, factor):
    """Q_j of `FeedbackRule.potential`, an array (channels,)."""
    if factor is None:
        return 0.5 * row_products(value, value)
    return row_products(value, factor)


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
            (
                producer.sign,
                [
                    (_channels_last(part.view(self._read(part.variable))), part.units)
                    for part in producer.parts
                ],
            )
            for producer in group.producers
        ]
        consumers = [
            (*self._viewed(consumer), consumer.units)
            for consumer in group.consumers
            if consumer.kernel is not None and group.kind != "sum"
        ]
        return producers, consumers

    def _viewed(self, consumer):
        """The readings of a consumer; what is one variable is one array."""
        seen = {}

        def viewed(variable):
            if variable is None:
                return None
            if id(variable) not in seen:
                seen[id(variable)] = consumer.view(self._read(variable))
            return seen[id(variable)]

        return [viewed(variable) for variable in consumer.reading()]

    def _read(self, variable):
        if id(variable) not in self._arrays:
            values = autodiff.array(variable)
            # The variable is kept as well: a freed one could pass on its id.
            kept = values.copy() if self._copy else values
            self._arrays[id(variable)] = (variable, kept)
        return self._arrays[id(variable)][1]


def _channels_last(seen):
    """A `View` as an array of which the last axis is that of all output channels."""
    return seen.reshape(*seen.shape[:2], -1)
