"""Laws of two factors that are summed over: the queries and keys of attention.

The scores `s_ts = <q_t, k_s>` of a head do not change under `q -> q M`,
`k -> k M^-T` for any invertible M, so what flows back obeys

    sum_t q_t^T (error of q_t) = (sum_s k_s^T (error of k_s))^T

whatever the scores go into. With `q = x W_Q`, the bias as one more row of W_Q, the left
side is `W_Q^T` times the gradient of W_Q, and gradient flow conserves

    W_Q^T W_Q - W_K^T W_K

for each head; where several heads of queries share one of keys, the sum over theirs.
Where the channels are mixed or bent on the way, by a rotation of pairs or a gain, the
trace over what is joined remains.
"""

import numpy as np


def laws(walk):
    """The laws of a walk's scores; where there is none the channels are marked.

    Args:
        walk: A `Walk`.

    Returns:
        List of (kind, producing, consuming, units, size): see `_groups._Found`.
    """
    channels = walk.channels
    if not channels.scores:
        return []
    base = channels.components()
    sides, alike = {}, {}
    for scores in channels.scores:
        # Of a layer that is called several times the sum over its calls.
        key = base[scores.first].tobytes(), base[scores.second].tobytes()
        alike.setdefault(key, scores)
    for scores in alike.values():
        for component in np.unique(base[np.append(scores.first, scores.second)]):
            sides.setdefault(int(component), []).append(scores)
    why = _reasons(walk, base)
    bent = np.zeros(len(base), bool)
    for numbers in channels.bent:
        bent[numbers] = True
    found = []
    for scores in alike.values():
        first, second = base[scores.first], base[scores.second]
        everything = np.unique(np.append(first, second)).tolist()
        reasons = dict.fromkeys(r for c in everything for r in why.get(c, ()))
        if any(len(sides[c]) > 1 for c in everything):
            reasons[f"'{scores.path}' is not alone in taking them"] = None
        if np.intersect1d(first, second).size:
            reasons[f"the factors of '{scores.path}' are not apart"] = None
        for reason in reasons:
            channels.mark(np.array(everything), reason)
        if not reasons:
            found += _laws_of(walk, base, first, second, bent)
    return found


def _reasons(walk, base):
    """Why components have no law of their own, `{component: [reason]}`."""
    found = {}

    def add(numbers, reason):
        for component in np.unique(base[numbers]):
            found.setdefault(int(component), []).append(reason)

    for numbers, reason in walk.channels.marks:
        add(numbers, reason)
    for end in walk.ends:
        add(end.rows, f"'{end.path}' takes it too")
    for gate in walk.channels.gates:
        add(gate.factors, f"'{gate.path}' takes it too")
        add(gate.product, f"'{gate.path}' is part of the stream")
    add(walk.outputs, "the stream is an output of the model")
    return found


def _laws_of(walk, base, first, second, bent):
    """The law of scores whose factors, (heads, channels), have one."""
    ends = [_makers(walk, base, side) for side in (first, second)]
    if not all(ends):
        return []
    kind, (units, size) = "balance", _joined(base, first, second)
    if not _is_bent(walk, base, first, second, bent, ends):
        numbered = _by_head(first, second, len(base))
        if _is_even(walk, base, numbered, ends):
            kind, units = "matrix", numbered
            size = (units.max() + 1) * first.shape[1]
    # One layer may make both sides.
    producing = [
        (index, sign, np.where(np.isin(base, side), units[base], -1))
        for sign, side, made in zip((1, -1), (first, second), ends, strict=True)
        for index in made
    ]
    return [(kind, producing, [], units[base], int(size))]


def _by_head(first, second, count):
    """Units of channels: those of a head in a row, after those of the heads before."""
    units, size = np.full(count, -1), first.shape[1]
    for number, heads in enumerate(_clusters(first, second)):
        for side in (first, second):
            units[side[heads]] = number * size + np.arange(size)
    return units


def _makers(walk, base, side):
    return [
        index
        for index, end in enumerate(walk.ends)
        if end.parts and np.isin(base[end.columns], side).any()
    ]


def _clusters(first, second):
    """Lists of heads that share queries or keys."""
    clusters = []
    for head in range(len(first)):
        sharing = [
            cluster
            for cluster in clusters
            if any(
                np.array_equal(side[head], side[other])
                for other in cluster
                for side in (first, second)
            )
        ]
        joined = sorted(sum(sharing, [head]))
        clusters = [cluster for cluster in clusters if cluster not in sharing]
        clusters.append(joined)
    return clusters


def _is_bent(walk, base, first, second, bent, ends):
    """Whether channels reach the scores otherwise than as one layer made them."""
    if any(len(side) > 1 for side in ends):
        return True
    for side, (index,) in zip((first, second), ends, strict=True):
        made = base[walk.ends[index].columns]
        made = made[np.isin(made, side)]
        if bent[np.isin(base, side)].any() or np.unique(made).size < made.size:
            return True
        # A head's channels, each once, and none of another head's but all of them.
        heads = {tuple(head) for head in side.tolist()}
        if len({c for head in heads for c in head}) != sum(map(len, heads)):
            return True
    return False


def _is_even(walk, base, units, ends):
    """Whether all units have the same number of channels on either side."""
    for (index,) in ends:
        made = units[base[walk.ends[index].columns]]
        if np.unique(np.unique(made[made >= 0], return_counts=True)[1]).size > 1:
            return False
    return True


def _joined(base, first, second):
    """The units of what is joined by multiplying: (units of channels, their number)."""
    parents = {int(c): int(c) for c in np.append(first, second)}

    def root(component):
        while parents[component] != component:
            component = parents[component]
        return component

    for one, other in np.unique(np.stack([first.ravel(), second.ravel()], 1), axis=0):
        low, high = sorted((root(int(one)), root(int(other))))
        parents[high] = low
    roots = sorted({root(c) for c in parents})
    units = np.full(len(base), -1)
    for component in parents:
        units[component] = roots.index(root(component))
    return units, len(roots)
