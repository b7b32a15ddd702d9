"""The ledger of the conservation law: what each finite step does to each potential.

Gradient flow conserves Phi (see `conservation`); a training step does not, but what it
does is known exactly. For any update W <- W + dW, from whatever optimizer,

    dPhi_j = sum_consumers <B_c[j], dW_c[j]> - sum_producers <W_p[:, j], dW_p[:, j]>
             + sum_consumers <W_c[j] + dW_c[j], dB_c[j]>
             - 1/2 sum_producers |dW_p[:, j]|^2

with B, W before the step and biases counted among the W_p. The first line is the first
order, and the law says that plain gradient descent makes it zero, up to rounding. The
second is the change of the feedback: the flips of signs under sign-FA, nothing under
fixed feedback; under a rule with another potential, what that moved beyond the first
order. The third are the steps' half squares. Under backpropagation, where the
consumer's part of Phi is 1/2 |W_c[j]|^2, the consumer has a half squared step as well,
with a plus, and no flips. A "norm" group has all signs of its producers reversed.

The identity is this toolkit's own; tests/test_ledger.py checks that nothing remains.
"""

import dataclasses

import numpy as np

from keras_fa.analysis._conservation import (
    Reader,
    by_unit,
    potential,
    row_products,
    row_sums,
    squares,
)
from keras_fa.analysis._groups import conserved_groups

_TERMS = ("squared_steps", "flips", "first_order")


@dataclasses.dataclass(frozen=True, eq=False)
class LedgerEntry:
    """The account of one group since the ledger was opened, arrays (units,) float64.

    Attributes:
        measured: Phi now less Phi at the start.
        squared_steps: Summed half squares of the steps, with their sign: negative for
            producers, positive for a "norm" group and for consumers under
            backpropagation.
        flips: What changes of the feedback added: the sign flips of sign-FA; under a
            rule whose part of the law is no product of W and B, what that part moved
            beyond <B, dW>.
        first_order: What the first order of the steps added: rounding under plain
            gradient descent; momentum, weight decay and adaptive steps show up here.
    """

    measured: np.ndarray
    squared_steps: np.ndarray
    flips: np.ndarray
    first_order: np.ndarray

    @property
    def predicted(self):
        """The drift that the terms add up to."""
        return self.squared_steps + self.flips + self.first_order

    @property
    def remainder(self):
        """What the terms leave unexplained: rounding, or a bug."""
        return self.measured - self.predicted

    def __repr__(self):
        return (
            f"<LedgerEntry of {len(self.measured)} units, summed: "
            f"measured {np.sum(self.measured):.3g}, "
            f"predicted {np.sum(self.predicted):.3g}>"
        )


class Ledger:
    """Accounts for the drift of every potential of a model, step by step.

    It keeps a copy of the weights and feedback of all conserved groups, and reads them
    again after every step: a full pass over the weights, meant for small models or few
    steps.

    Args:
        model: A built Sequential or functional Keras model.
        groups: What `conserved_groups(model)` returned, to save the walk.

    Raises:
        ValueError: If the model has no graph.

    Example:
        >>> model = keras_fa.models.mlp((4,), 60, 3)
        >>> model.compile("sgd", "mse")
        >>> ledger = keras_fa.analysis.Ledger(model)
        >>> for _ in range(3):
        ...     loss = model.train_on_batch(np.ones((8, 4)), np.ones((8, 3)))
        ...     ledger.step()
        >>> remainder = ledger.report()["dense_1"].remainder
        >>> bool(np.all(np.abs(remainder) < 1e-4))
        True
    """

    def __init__(self, model, groups=None):
        if groups is None:
            groups = conserved_groups(model)
        self.groups = [group for group in groups if group.conserved]
        self._kept = self._read()
        self._start = self._potentials()
        self._sums = {
            group.name: np.zeros((len(_TERMS), group.units)) for group in self.groups
        }
        self.steps = 0

    def step(self):
        """Books the change of the weights since the last call or since the start.

        Call it after every single step of the optimizer. Over several at once the
        books still balance, but the three terms are then those of one large step: its
        square is not the sum of the squares, and its first order is not zero.
        """
        before, self._kept = self._kept, self._read()
        for group in self.groups:
            self._sums[group.name] += _terms(
                group, before[group.name], self._kept[group.name]
            )
        self.steps += 1

    def report(self):
        """The account so far.

        Returns:
            `{group name: LedgerEntry}`.
        """
        now = self._potentials()
        return {
            name: LedgerEntry(now[name] - self._start[name], *sums.copy())
            for name, sums in self._sums.items()
        }

    def state(self):
        """What a resumed run needs to go on with the books.

        Returns:
            Flat dict of NumPy arrays: for each group its potential at the start and
            its terms, and the number of steps.
        """
        state = {"steps": np.array(self.steps)}
        for name, sums in self._sums.items():
            state[f"{name}/start"] = self._start[name].copy()
            state.update(zip((f"{name}/{t}" for t in _TERMS), sums.copy(), strict=True))
        return state

    def load_state(self, state):
        """Goes on with the books of `state`, from the weights that the model has now.

        Args:
            state: What `state` returned when the model had these weights.

        Raises:
            ValueError: If the state is that of other groups.
        """
        expected = {key: value.shape for key, value in self.state().items()}
        received = {key: np.shape(value) for key, value in state.items()}
        if expected != received:
            differing = sorted(
                key
                for key in expected.keys() | received.keys()
                if expected.get(key) != received.get(key)
            )
            raise ValueError(
                "The state is not that of this model's conserved groups. Expected "
                f"arrays of the shapes {expected}; these differ or are missing on one "
                f"side: {differing}."
            )
        self.steps = int(state["steps"])
        for name, sums in self._sums.items():
            self._start[name] = np.array(state[f"{name}/start"], np.float64)
            sums[:] = [state[f"{name}/{term}"] for term in _TERMS]
        self._kept = self._read()

    def _read(self):
        # Copies, as an array of a backend may share its memory with the variable.
        read = Reader(copy=True)
        return {group.name: read(group) for group in self.groups}

    def _potentials(self):
        return {
            group.name: potential(group.kind, *self._kept[group.name], group.units)
            for group in self.groups
        }


def _terms(group, before, after):
    """What one step adds: half squares, flips and first order, array (3, units)."""
    terms = np.zeros((len(_TERMS), group.units))
    of_steps, _, first_order = terms
    (old_producers, old_consumers), (new_producers, new_consumers) = before, after
    steps = [
        [
            (_difference(new, old), units)
            for (old, units), (new, _) in zip(old_parts, new_parts, strict=True)
        ]
        for (_, old_parts), (_, new_parts) in zip(
            old_producers, new_producers, strict=True
        )
    ]
    if group.kind == "sum":
        first_order += row_sums(steps[0])
        return terms
    for (sign, old_parts), parts in zip(old_producers, steps, strict=True):
        for (old, units), (step, _) in zip(old_parts, parts, strict=True):

            def part(one, other, units=units):
                return squares(group.kind, one, other, units, group.units)

            of_steps += sign * part(step, step)
            crossed = part(step, old) if group.kind == "matrix" else part(old, step)
            first_order += sign * (part(old, step) + crossed)
    for old, new in zip(old_consumers, new_consumers, strict=True):
        _consumer_terms(terms, group, old, new)
    return terms


def _consumer_terms(terms, group, old, new):
    """Adds what one consumer's step does to `terms`."""
    of_steps, flips, first_order = terms
    old_value, old_factor, old_kernel, old_backward, units = old
    new_value, new_factor, new_kernel, _, _ = new

    def add(term, one, other, scale=1.0):
        products = scale * row_products(one, other)
        term += by_unit(products, units, group.units)

    step = _difference(new_kernel, old_kernel)
    if old_backward is None:
        old_backward = old_kernel
    add(first_order, old_backward, step)
    value_step = step
    if old_value is not old_kernel:
        value_step = _difference(new_value, old_value)
    # The first order of Q, which is that of the law unless B has moved by itself.
    slope = old_value if old_factor is None else old_factor
    if value_step is not step or not np.array_equal(slope, old_backward):
        add(flips, slope, value_step)
        add(flips, old_backward, step, -1.0)
    if old_factor is None:
        add(of_steps, value_step, value_step, 0.5)
    elif not np.array_equal(old_factor, new_factor):
        add(flips, new_value, _difference(new_factor, old_factor))


def _difference(new, old):
    return np.subtract(new, old, dtype=np.float64)
