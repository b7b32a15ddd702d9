"""The calls of a Keras graph, those inside nested models and other layers too.

A layer that holds layers, or one of a user's own, is called once on symbols, so that
what it calls is there to be followed; or the reason is, why that cannot be.
"""

import dataclasses
import inspect
import re

import keras

from keras_fa import _keras

# Where a size is unknown, as the batch's is, and a layer asks for it.
_SIZE = 3
# Layers of Keras's own that compute what a user says.
_OF_USERS = (keras.layers.Lambda,)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one operation in a flattened graph.

    Attributes:
        operation: The Keras layer or operation.
        path: Its name, after the names of the nested models and layers that it stands
            in, joined by "/".
        inputs: Keys of the tensors it takes; equal keys are the same tensor.
        outputs: Keys of the tensors it returns.
        taken: The symbolic tensors of those inputs.
        made: Those of the outputs.
        plain: Whether these inputs, in their order, are all that it computes with
            besides its own weights, masks aside: no constants, no further arguments.
        arguments: Positional and keyword arguments as it was called with, a pair.
        holder: The layer in whose call it was found, None elsewhere.
        untraced: Why the calls inside a layer are unknown, None where they are not
            asked for.
    """

    operation: object
    path: str
    inputs: tuple
    outputs: tuple
    taken: tuple
    made: tuple
    plain: bool
    arguments: tuple
    holder: object = None
    untraced: str | None = None

    @property
    def input_shapes(self):
        """Shapes of the inputs, batch axis included, None where unknown."""
        return tuple(tuple(tensor.shape) for tensor in self.taken)

    @property
    def output_shapes(self):
        """Shapes of the outputs."""
        return tuple(tuple(tensor.shape) for tensor in self.made)

    def operands(self):
        """All arguments in a flat list: a tensor is the index of its input."""
        index = {id(tensor): number for number, tensor in enumerate(self.taken)}
        args, kwargs = self.arguments
        return [
            Input(index[id(leaf)]) if isinstance(leaf, keras.KerasTensor) else leaf
            for leaf in keras.tree.flatten([*args, *kwargs.values()])
        ]

    def argument(self, name):
        """An argument of a layer's call by its name, None if it was not given."""
        args, kwargs = self.arguments
        signature = inspect.signature(self.operation.call)
        return signature.bind(*args, **kwargs).arguments.get(name)


@dataclasses.dataclass(frozen=True)
class Input:
    """Stands for a tensor among the operands of a call: which input it is."""

    index: int


def flatten(model, is_whole):
    """The calls of a Keras graph, nested models resolved into their own calls.

    Args:
        model: A built Sequential or functional Keras model.
        is_whole: Function of a layer: whether to leave it one call.

    Returns:
        (calls, outputs): a list of `Call`, each after those that it takes tensors
        from, and the keys of the model's output tensors.

    Raises:
        ValueError: If the model has no graph: it is a subclassed model or not built.
    """
    if _graph(model) is None:
        raise ValueError(
            f"Model '{model.name}' has no graph to follow. Expected a Sequential or "
            "functional model that knows its input shape; received a "
            f"{type(model).__name__}. Give a Sequential model a keras.Input as its "
            "first layer or call it on data; a subclassed model, or one with a call of "
            "its own, cannot be followed."
        )
    flattening = _Flattening(is_whole)
    inputs, outputs = _graph(model)
    return flattening.calls, flattening.graph(inputs, outputs, None, (), None)


class _Flattening:
    """One way through a graph and those inside it: the calls that it has met."""

    def __init__(self, is_whole):
        self.calls = []
        self._is_whole = is_whole

    def graph(self, inputs, outputs, given, path, holder):
        """Appends a graph's calls. `given`: the keys of its inputs, None for the top.

        Returns:
            The keys of its outputs.
        """
        # Keys are tensors' ids under the calls of nested models that lead to them, as a
        # nested model that is called twice has two tensors for each of its own.
        context = (*path, len(self.calls)) if path else ()
        keys = {}
        if given is not None:
            keys = {id(t): key for t, key in zip(inputs, given, strict=True)}
        for node in _nodes(outputs, stop=set(keys)):
            self._node(node, keys, context, path, holder)
        return [keys[id(tensor)] for tensor in outputs]

    def _node(self, node, keys, context, path, holder):
        operation = node.operation
        first = _first_argument(node)
        plain = first is not None
        leaves = keras.tree.flatten(first) if plain else node.input_tensors
        if not all(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            plain, leaves = False, node.input_tensors
        made, untraced = self._inside(node, first if plain else None, keys, path)
        if made is not None:
            keys.update(zip(map(id, node.output_tensors), made, strict=True))
            return
        keys.update((id(t), (*context, id(t))) for t in node.output_tensors)
        name = operation.name
        if holder is not None:
            # The layers around it may not show in the graph.
            ways = {id(part): way for way, part in _keras.paths_of(holder)}
            name = ways.get(id(operation), name)
        self.calls.append(
            Call(
                operation,
                "/".join((*path, name)),
                tuple(keys[id(tensor)] for tensor in leaves),
                tuple(keys[id(tensor)] for tensor in node.output_tensors),
                tuple(leaves),
                tuple(node.output_tensors),
                plain,
                (node.arguments.args, node.arguments.kwargs),
                holder,
                untraced,
            )
        )

    def _inside(self, node, first, keys, path):
        """(keys of the outputs, None) of a call whose inside was followed.

        Else (None, why not): None where there is nothing to follow.
        """
        operation, inner = node.operation, (*path, node.operation.name)
        graph = None if first is None else _graph(operation)
        matched = None if graph is None else _matched(first, operation, graph[0])
        if matched is not None:
            taken = [keys[id(tensor)] for tensor in matched]
            return self.graph(*graph, taken, inner, None), None
        if graph is not None or self._is_whole(operation) or not _is_made_of(operation):
            return None, None
        arguments = node.arguments.args, node.arguments.kwargs
        start = len(self.calls)
        for size, opens in ((_SIZE, None), (None, None), (_SIZE, self._opens)):
            try:
                with _keras.traced(
                    operation, *arguments, size, opens or (lambda layer: False)
                ) as traced:
                    taken = [keys[id(tensor)] for tensor, _ in traced.inputs]
                    symbols = [symbol for _, symbol in traced.inputs]
                    _check_outputs(traced.outputs, node.output_tensors)
                    return (
                        self.graph(symbols, traced.outputs, taken, inner, operation),
                        None,
                    )
            except Exception as error:
                # What a user's layer may raise on symbols is anything.
                del self.calls[start:]
                why = _why(error)
        return None, why

    def _opens(self, layer):
        return not self._is_whole(layer) and _is_made_of(layer)


def first_line(error):
    """What an error says, in one line."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line for line in text.splitlines() if line] or [type(error).__name__]
    # Keras's first line then says where, and the second what.
    return lines[min(1, len(lines) - 1)] if "encountered" in lines[0] else lines[0]


def _why(error):
    line = first_line(error)
    if "add_loss" in line:
        return "its call adds a loss"
    return "it computes past keras.ops" if "A KerasTensor cannot" in line else line


def _check_outputs(traced, known):
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (traced, known)]
    if not (
        len(traced) == len(known)
        and all(
            len(one) == len(other)
            and all(
                b is None or a in (None, b) for a, b in zip(one, other, strict=True)
            )
            for one, other in zip(*shapes, strict=True)
        )
    ):
        raise ValueError("its outputs on symbols are not those of its call")


def _is_made_of(operation):
    """Whether a layer may be made of calls to other layers and operations."""
    if not isinstance(operation, keras.Layer):
        return False
    if len(_keras.layers_of(operation)) > 1 or isinstance(operation, _OF_USERS):
        return True
    # Maps of its own no call inside it would show.
    maps = any(len(v.shape) > 1 for v in _keras.own_variables(operation)[0])
    return not (maps or _keras.is_own_layer(operation))


def _graph(operation):
    """(inputs, outputs), lists of symbolic tensors, of a model with a graph."""
    if not isinstance(operation, keras.Model) or not _keras.follows_its_graph(
        operation
    ):
        return None
    # A Sequential model that is not built raises AttributeError, as a subclassed one.
    inputs = getattr(operation, "inputs", None)
    return None if inputs is None else (inputs, operation.outputs)


def _first_argument(node):
    """What a call works on, None if further arguments carry an error signal too.

    Arguments have their places in the signature, whichever way they were given: the
    tensors of a node are in the order of the keywords, a mask before the input.
    """
    args, kwargs = node.arguments.args, node.arguments.kwargs
    if not isinstance(node.operation, keras.Layer):
        return [*args, *kwargs.values()]
    try:
        bound = inspect.signature(node.operation.call).bind(*args, **kwargs)
    except TypeError:
        return None
    first, *others = bound.arguments.values() or [[]]
    if any(
        isinstance(leaf, (keras.KerasTensor, keras.Variable)) and is_float(leaf)
        for leaf in keras.tree.flatten(others)
    ):
        return None
    return first


def is_float(tensor):
    """Whether a derivative goes through a tensor: none does through a mask."""
    return not str(tensor.dtype).startswith(("bool", "int", "uint", "string"))


def _matched(given, model, inputs):
    """The tensors of a nested model's call in the order of its inputs, or None.

    Keras takes a dict for a list too, by the names of the inputs, and inputs of
    another rank, which it reshapes. In the latter case the model stays one operation,
    of an unknown kind.
    """
    expected = _keras.inputs_structure(model)
    if isinstance(given, dict) and not isinstance(expected, dict):
        names = [tensor.name for tensor in inputs]
        given = [given[name] for name in names] if set(names) <= set(given) else []
    tensors = keras.tree.flatten(given)
    if [len(t.shape) for t in tensors] != [len(t.shape) for t in inputs]:
        return None
    return tensors


def _nodes(outputs, stop):
    """The nodes that lead to the outputs, parents first; `stop`: ids of tensors."""
    done, order = set(), []
    stack = [(tensor, False) for tensor in reversed(outputs)]
    while stack:
        tensor, parents_done = stack.pop()
        if id(tensor) in stop:
            continue
        node = _keras.producing_node(tensor)
        if parents_done:
            order.append(node)
        elif id(node) not in done:
            done.add(id(node))
            stack.append((tensor, True))
            stack.extend((parent, False) for parent in reversed(node.input_tensors))
    return order
