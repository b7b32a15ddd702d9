"""Conserved groups: which channels of a Keras graph share a conserved quantity.

The law itself, what is conserved and when, is told in `conservation`.
"""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from keras_fa.analysis import _scores, _streams
from keras_fa.analysis._views import View
from keras_fa.analysis._walk import Walk
from keras_fa.layers import FeedbackMixin


class Part(NamedTuple):
    """One variable that a producer makes its channels with.

    Attributes:
        variable: Kernel, recurrent kernel, bias, gain or shift.
        view: Function of its values to an array whose last two axes are the channels.
        units: Integer array (channels,), as `Producer.units`.
    """

    variable: object
    view: View
    units: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Producer:
    """A layer whose output channels belong to a group.

    Attributes:
        layer: The Keras layer.
        name: Its name, with that of the kernel where it has several.
        path: That name after those of the models and layers that it stands in.
        parts: Tuple of `Part`: kernel and bias, or gamma and beta, as far as it has
            them. Empty for a layer without a known law.
        units: Integer array (output channels,): the unit of the group that each output
            channel belongs to, -1 for the channels of other groups.
        sign: Sign of its half squared norms in the conserved quantity.
    """

    layer: object
    name: str
    path: str
    parts: tuple
    units: np.ndarray
    sign: int = -1

    @property
    def variables(self):
        """The variables of its parts, a tuple."""
        return tuple(part.variable for part in self.parts)

    def __repr__(self):
        return f"<Producer {self.path} ({np.sum(self.units >= 0)} channels)>"


@dataclasses.dataclass(frozen=True, eq=False)
class Consumer:
    """A layer whose input channels belong to a group.

    Attributes:
        layer: The Keras layer.
        name: Its name, with that of the kernel where it has several.
        path: That name after those of the models and layers that it stands in.
        kernel: Its kernel W; None for a normalisation, which adds nothing, and a layer
            without a known law. Of direct feedback what is trained on the channels and
            the signal: B_l, its ghost, or the output layer's W.
        view: Function of the kernel's values to an array
            `(area, input channels / groups, groups, outputs / groups)`.
        units: Integer array (input channels,): the unit of the group that each input
            channel, and with it the kernel's row, belongs to; -1 for other groups.
        source: What has the rule of the kernel: the layer, or its cell.
        index: Which of the maps of that it is.
        tap: Which tap of a `DirectFeedback` it is, None for any other layer.
    """

    layer: object
    name: str
    path: str
    kernel: object
    view: View | None
    units: np.ndarray
    source: object
    index: int = 0
    tap: int | None = None

    def __repr__(self):
        return f"<Consumer {self.path} ({np.sum(self.units >= 0)} channels)>"

    def reading(self):
        """What the law and its ledger need of it now, four tensors or variables.

        Returns:
            (V, P, W, B). It adds `<V[j], P[j]>` to the potential of input channel j, or
            `1/2 |V[j]|^2` where P is None: see `FeedbackRule.potential`. W and B are
            its forward and backward kernels, B None where it is W. Under a rule without
            a law V and P are W and B, so that its drift can still be measured.
        """
        if self.tap is not None and not self.layer.rule.learned:
            feedback = self.layer.feedback(self.tap)
            return self.kernel, feedback, self.kernel, feedback
        if not isinstance(self.source, FeedbackMixin):
            return self.kernel, None, self.kernel, None
        backward = self.source.backward_kernel(self.index)
        if backward is self.kernel:
            backward = None
        part = self.source.potential(self.index)
        # Of the same numbers under most rules, and then to be told by identity.
        value, factor = (self.kernel, backward) if part is None else part
        return value, factor, self.kernel, backward


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels that share producers and consumers, and the law for each, if any.

    Attributes:
        name: Name of the first producer in the order of the graph, made unique:
            nested models' names stand before it if two producers share it, and a
            number after it (".2") if two groups share the producer.
        kind: What is conserved, for each unit. "potential": the consumers' part less
            the producers' half squared norms. "norm", where all consumers are
            normalisations: those norms. "balance": those of the producers with one
            sign less those with the other. "matrix": the same of their matrices
            `W^T W`. "sum": the sum over a kernel's outputs, for each row and the bias.
        producers: Tuple of `Producer`.
        consumers: Tuple of `Consumer`.
        units: Number of conserved quantities.
        reason: Why there is no law, or None where there is one.
    """

    name: str
    kind: str
    producers: tuple
    consumers: tuple
    units: int
    reason: str | None

    @property
    def conserved(self):
        """Whether there is a law."""
        return self.reason is None

    def __str__(self):
        # Paths only where names do not tell the layers apart.
        ends = {end.path: end.name for end in self.producers + self.consumers}
        if len(set(ends.values())) < len(ends):
            ends = {path: path for path in ends}
        made = ""
        for end in self.producers:
            minus = self.kind in ("balance", "matrix") and end.sign < 0
            made += (" - " if minus else " + ") * bool(made) + ends[end.path]
        taken = " + ".join(ends[end.path] for end in self.consumers)
        line = f"{' -> '.join(filter(None, [made, taken]))} ({self.units} units"
        if self.kind != "potential":
            line += f", {self.kind}"
        return line + (")" if self.conserved else f"; no law: {self.reason})")

    def __repr__(self):
        return f"<{self}>"


def conserved_groups(model):
    """The groups of channels of a model, each with its law or the reason for none.

    All linear maps of Keras, stock ones (backpropagation) and this toolkit's,
    embeddings and normalisations are joined through ReLU, leaky ReLU, pooling, padding,
    cropping, upsampling, changes of shape and place, dropout, and through sums, means,
    maxima and minima of tensors; through products too, which have a law for each
    factor. Layers that hold layers, such as attention, are called on symbols once, and
    what they call is followed. A layer that is called twice has one law for both calls
    together. Whatever else uses its variables ends the law: a layer that reads them, a
    penalty, a loss or training step of the model's own. The channels of the last
    layer, which no layer consumes, and the input's, which none produces, form no
    group.

    Args:
        model: A built Sequential or functional Keras model; nested ones are followed.

    Returns:
        List of `Group`, in the order of the graph. It describes the model as it is:
        call again after a change of `trainable`.

    Raises:
        ValueError: If the model has no graph.

    Example:
        >>> model = keras_fa.models.mlp((784,), 60, 10)
        >>> for group in keras_fa.analysis.conserved_groups(model):
        ...     print(group)
        dense_1 -> dense_2 (60 units)
    """
    walk = Walk(model)
    # They mark what has no law.
    paired = [_Found(*law, reason="") for law in _scores.laws(walk)]
    found = _found(walk) + paired
    found += [_Found("sum", *law, reason="") for law in _streams.sums(walk)]
    found.sort(key=lambda one: one.producing[0][0])
    return _named(walk, found)


class _Found(NamedTuple):
    """A group before it has a name.

    Attributes:
        kind: As of `Group`.
        producing: List of (index of an end, sign, the unit of every channel as that
            end has it).
        consuming: List of indexes of ends.
        units: The unit of every channel, -1 outside the group.
        size: Number of conserved quantities.
        reason: "" where there is a law.
    """

    kind: str
    producing: list
    consuming: list
    units: np.ndarray
    size: int
    reason: str


def _found(walk):
    """The groups of channels that are joined: of each choice of factors, each once."""
    found, seen = [], set()
    for components, marks, spent in _choices(walk.channels):
        for one in _of_components(walk, components, marks, spent):
            ends = (*(index for index, *_ in one.producing), -1, *one.consuming)
            key = (ends, not one.reason, one.units.tobytes())
            if key not in seen:
                seen.add(key)
                found.append(one)
    return found


def _choices(channels):
    """What is joined when each product is followed through one of its factors.

    Of a product `y = a b` the flow through y is that through a, and that through b. So
    y may be joined with either, where that one has a law up to there, and what the
    other one is made of has then its law from another choice.

    Yields:
        (components, marks, spent): for each channel the smallest number joined with
        it; the marks of `Channels` and further ones; the channels of factors that have
        a law, but not from this choice.
    """
    base = channels.components()
    marked = np.zeros(len(base), bool)
    reasons = {}
    for numbers, reason in channels.marks:
        marked[base[numbers]] = True
        for component in np.unique(base[numbers]):
            reasons.setdefault(component, {})[reason] = None
    marks, chosen = list(channels.marks), []
    for gate in channels.gates:
        factors = np.sort(base[gate.factors], axis=0)
        lawful = ~marked[factors]
        for entry in np.flatnonzero(~lawful.any(axis=0)):
            product = gate.product[entry]
            marked[base[product]] = True
            for factor in factors[:, entry]:
                for reason in reasons.get(factor, ()):
                    marks.append((np.array([product]), reason))
                    reasons.setdefault(base[product], {})[reason] = None
        chosen.append((factors, gate.product, lawful))
    rounds = max([1, *(int(lawful.sum(axis=0).max()) for _, _, lawful in chosen)])
    for number in range(rounds):
        joins, spent = [], [np.zeros(0, int)]
        for factors, product, lawful in chosen:
            # The n-th factor with a law, or the last one that has.
            rank = np.cumsum(lawful, axis=0) - 1
            last = np.maximum(rank[-1], 0)
            taken = lawful & (rank == np.minimum(number, last))
            which, entry = np.nonzero(taken)
            joins.append(np.stack([factors[which, entry], product[entry]], axis=1))
            spent.append(factors[lawful & ~taken])
        components = channels.components(joins) if joins else base
        yield components, marks, np.concatenate(spent)


def _of_components(walk, components, marks, spent):
    """The components of channels, those with the same ends and fate in one group."""

    def of(channels):
        return np.unique(components[channels]).tolist()

    producers, consumers, reasons = (collections.defaultdict(list) for _ in range(3))
    for index, end in enumerate(walk.ends):
        for component in of(end.columns):
            producers[component].append(index)
        for component in of(end.rows):
            consumers[component].append(index)
    for channels, reason in marks:
        for component in of(channels):
            reasons[component].append(reason)
    for component in of(spent):
        producers[component].clear()
    for component in of(walk.outputs):
        if consumers[component]:
            reasons[component].append("the stream is an output of the model")
        else:
            producers[component].clear()
    alike = {}
    for component in sorted(producers, key=lambda c: (producers[c], c)):
        # A component without consumers counts if what takes their place is unknown.
        if producers[component] and (consumers[component] or reasons[component]):
            sides = (tuple(producers[component]), tuple(consumers[component]))
            lawful = not reasons[component]
            alike.setdefault((*sides, lawful), []).append(component)
    for (producing, consuming, _), members in alike.items():
        unit_of = np.full(len(components), -1)
        unit_of[members] = np.arange(len(members))
        why = dict.fromkeys(reason for c in members for reason in reasons[c])
        norm = consuming and all(walk.ends[i].normalizes for i in consuming)
        units = unit_of[components]
        yield _Found(
            "norm" if norm else "potential",
            [(index, 1 if norm else -1, units) for index in producing],
            list(consuming),
            units,
            len(members),
            "; ".join(why),
        )


def _named(walk, found):
    """`Group`s of what was found."""
    names = _names([(walk.ends[one.producing[0][0]], one.kind) for one in found])
    return [
        Group(
            name,
            one.kind,
            tuple(
                _producer(walk.ends[index], units, sign)
                for index, sign, units in one.producing
            ),
            tuple(_consumer(walk.ends[index], one.units) for index in one.consuming),
            one.size,
            one.reason or None,
        )
        for name, one in zip(names, found, strict=True)
    ]


def _producer(end, units, sign):
    parts = tuple(
        Part(variable, view, units[columns]) for variable, view, columns in end.parts
    )
    return Producer(end.layer, end.name, end.path, parts, units[end.columns], sign)


def _consumer(end, units):
    rows = units[end.rows]
    return Consumer(
        end.layer,
        end.name,
        end.path,
        end.kernel,
        end.view,
        rows,
        end.source,
        end.index,
        end.tap,
    )


def _names(ends):
    """Names of groups after their first producers and kinds, made unique."""
    layers_of_name = {}
    for end, _ in ends:
        layers_of_name.setdefault(end.name, set()).add(id(end.layer))
    names, taken = [], {}
    for end, kind in ends:
        name = end.path if len(layers_of_name[end.name]) > 1 else end.name
        if kind not in ("potential", "norm"):
            name = f"{name}.{kind}"
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}.{taken[name]}")
    return names
