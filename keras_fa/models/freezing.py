"""Parts of a model that stay as they were drawn: the baselines of an audit."""

import fnmatch

import keras

from keras_fa import _keras
from keras_fa.layers import DirectFeedback

BODY, ALL_BUT_LAST = "body", "all_but_last"


def freeze(model, what):
    """Freezes part of a model at its present weights.

    Trained so, with the same budget, a network is a baseline for the claim that its
    depth learns: see `keras_fa.audit`. Weights are frozen one by one, and not by
    `layer.trainable`, with which BatchNorm would no longer normalise by its batch.

    Args:
        model: A built Keras model, which changes. Compile it afterwards.
        what: "body", all but the first and the last layers with weights: those that
            the input and the output of the model reach without passing weights. Or
            "all_but_last". Or shell patterns of names or paths of layers, with commas
            between them: "block_*,encoder/norm". A layer goes with all that is in it.

    Returns:
        Paths of the layers that have been frozen, a list.

    Raises:
        ValueError: If a pattern fits no layer with weights, or nothing would be frozen.

    Example:
        >>> keras_fa.models.freeze(keras_fa.models.mlp((4,), (5, 6), 3), "body")
        ['dense_2']
    """
    weighty = {
        path: layer
        for path, layer in _keras.paths_of(model)
        if not isinstance(layer, DirectFeedback) and _keras.own_variables(layer)[0]
    }
    if what in (BODY, ALL_BUT_LAST):
        first, last = ends(model)
        spared = last if what == ALL_BUT_LAST else [*first, *last]
        spared = {id(part) for layer in spared for part in _keras.layers_of(layer)}
        frozen = {p: x for p, x in weighty.items() if id(x) not in spared}
    else:
        frozen = {}
        for pattern in str(what).split(","):
            found = {p: x for p, x in weighty.items() if _fits(p, pattern.strip())}
            if not found:
                raise ValueError(
                    f"No layer with weights fits {pattern!r}. Expected {BODY!r}, "
                    f"{ALL_BUT_LAST!r} or shell patterns of these names, with commas "
                    f"between them: {', '.join(weighty)}."
                )
            frozen |= found
    if not frozen:
        raise ValueError(
            f"Model '{model.name}' has no {what} to freeze. Its layers with weights: "
            f"{', '.join(weighty) or 'none'}."
        )
    for layer in frozen.values():
        for variable in _keras.own_variables(layer)[0]:
            variable.trainable = False
    return list(frozen)


def _fits(path, pattern):
    steps = path.split("/")
    names = [steps[-1]]
    names += ["/".join(steps[:end]) for end in range(1, len(steps) + 1)]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def ends(model):
    """The first and the last layers with weights, two lists."""
    if getattr(model, "inputs", None) is None or not _keras.follows_its_graph(model):
        layers = [x for x in model.layers if _has_weights(x)]
        return layers[:1], layers[-1:]
    first, last, seen = [], [], {}

    def visit(tensor, is_below):
        """Whether there are weights at or below a tensor."""
        if (id(tensor), is_below) in seen:
            return seen[id(tensor), is_below]
        node = _keras.producing_node(tensor)
        layer, parents = node.operation, node.input_tensors
        if isinstance(layer, DirectFeedback):
            parents = parents[:1]
        has_weights = _has_weights(layer)
        if has_weights and not is_below:
            last.append(layer)
        below = any([visit(p, is_below or has_weights) for p in parents])
        if has_weights and not below:
            first.append(layer)
        seen[id(tensor), is_below] = below or has_weights
        return below or has_weights

    for output in model.outputs:
        visit(output, False)
    return first, last


def _has_weights(operation):
    return (
        isinstance(operation, keras.Layer)
        and not isinstance(operation, DirectFeedback)
        and any(map(lambda x: _keras.own_variables(x)[0], _keras.layers_of(operation)))
    )
