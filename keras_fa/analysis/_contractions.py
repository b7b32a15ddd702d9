"""Products of two signals that are summed over axes: einsums, matmuls, attention.

Where only one of them has several channels along what is summed over, the product is a
gate: values under the weights of attention. Where both have, it is one of scores.
"""

import dataclasses

import numpy as np

from keras_fa.analysis._calls import Input, is_float


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Products of two signals summed over channels, such as those of attention.

    Attributes:
        first, second: Channels of either, integer arrays (heads, channels of a head).
        path: Of the operation.
    """

    first: np.ndarray
    second: np.ndarray
    path: str


def einsum(channels, call, labels):
    """A product of two tensors, summed over what they share and the result lacks."""
    operands = call.operands()
    if len(operands) != 2 or not all(isinstance(x, Input) for x in operands):
        return _fixed(call)
    sources, made = call.operation.subscripts.replace(" ", "").split("->")
    terms = sources.split(",")
    if len(terms) != 2 or "." in sources or len({*made}) != len(made):
        return None
    batch = made[0]
    if any(term[0] != batch or len({*term}) != len(term) for term in terms):
        return None
    labels = [labels[x.index] for x in operands]
    return _contracted(channels, call, labels, terms, made)


def _contracted(channels, call, labels, terms, made):
    """The einsum of two terms, letters for axes, the batch's first."""
    shared = [x for x in terms[0] if x in terms[1] and x not in made]
    if any(
        all(
            label.shape[term.index(x) - 1] > 1
            for term, label in zip(terms, labels, strict=True)
        )
        for x in shared
    ):
        return _scores(channels, call, labels, terms, shared, made)
    aligned = []
    for term, label in zip(terms, labels, strict=True):
        gone = [axis - 1 for axis, x in enumerate(term) if x not in made]
        label = channels.merge_axes(label, gone)
        kept = [x for x in term[1:] if x in made]
        label = np.squeeze(label, tuple(gone))
        order = [kept.index(x) for x in made[1:] if x in kept]
        label = label.transpose(order)
        aligned.append(
            label.reshape(
                [
                    label.shape[[kept[i] for i in order].index(x)] if x in kept else 1
                    for x in made[1:]
                ]
            )
        )
    return channels.gate(aligned, call.path)


def matmul(channels, call, labels):
    """A product of stacks of matrices, as an einsum."""
    ranks = {len(shape) for shape in call.input_shapes}
    if len(call.taken) != 2:
        return _fixed(call)
    if len(ranks) != 1 or ranks == {2}:
        return None
    stack = "abcdefgh"[: ranks.pop() - 2]
    terms = [stack + "xy", stack + "yz"]
    return _contracted(channels, call, labels, terms, stack + "xz")


def _scores(channels, call, labels, terms, shared, made):
    """Scalar products of the channels of queries and keys, head by head."""
    heads = [
        x
        for x in made[1:]
        if any(_varies(t, la, x) for t, la in zip(terms, labels, strict=True))
    ]
    sides = []
    for term, label in zip(terms, labels, strict=True):
        other = [i - 1 for i, x in enumerate(term) if i and x not in (*heads, *shared)]
        label = np.squeeze(channels.merge_axes(label, other), tuple(other))
        kept = [x for x in term[1:] if x in (*heads, *shared)]
        order = [kept.index(x) for x in (*heads, *shared) if x in kept]
        label = label.transpose(order)
        names = [kept[i] for i in order]
        sides.append(
            label.reshape(
                [
                    label.shape[names.index(x)] if x in names else 1
                    for x in (*heads, *shared)
                ]
            )
        )
    first, second = np.broadcast_arrays(*sides)
    size = int(np.prod(first.shape[len(heads) :]))
    return _scored(channels, call, first.reshape(-1, size), second.reshape(-1, size))


def _varies(term, label, name):
    return name in term[1:] and label.shape[term.index(name) - 1] > 1


def _scored(channels, call, first, second):
    """Notes the scores, and returns labels of them: one channel without a law."""
    channels.scores.append(Scores(first, second, call.path))
    label = channels.new(1)
    channels.mark(
        label,
        f"'{call.path}' ({type(call.operation).__name__}) has two "
        "factors, and sums over their channels",
    )
    return label.reshape((1,) * (len(call.output_shapes[0]) - 1))


def attended(channels, call, labels):
    """`dot_product_attention` of query, key, value: (batch, places, heads, size)."""
    operands = call.operands()
    if not all(isinstance(x, Input) for x in operands[:3]) or any(
        isinstance(x, Input) and is_float(call.taken[x.index]) for x in operands[3:]
    ):
        return None
    query, key, value = (
        channels.merge_axes(labels[x.index], [0])[0] for x in operands[:3]
    )
    query, key = np.broadcast_arrays(query, _repeated(key, query))
    _scored(channels, call, query, key)
    return _repeated(value, query)[None]


def _repeated(label, query):
    """Labels (heads, size) of which several queries share each head."""
    if 1 < len(label) < len(query):
        label = np.repeat(label, len(query) // len(label), axis=0)
    return label


def _fixed(call):
    kind = type(call.operation).__name__
    return f"'{call.path}' ({kind}) has a factor that is no signal"
