"""Recurrent cells and layers under a feedback rule."""

import contextlib
import threading

import keras
from keras import ops

from keras_fa import _keras, rules
from keras_fa.layers._base import FeedbackHolder, FeedbackMixin, Map

# What is held for the loops now under way: `{id of a cell: [(W, B), (U, C)]}`.
_held = threading.local()
_NOT_UNDER_A_RULE = "not under a rule"
_BACKPROP = rules.Backprop()


class _FeedbackCell(FeedbackMixin):
    """The cells' part: an input and a recurrent kernel, with columns for each gate.

    What is sent back in time goes through the recurrent kernel's B at each step.
    """

    maps = (Map(), Map("recurrent_kernel", "recurrent_initializer"))

    def geometry(self, index=0):
        geometry = super().geometry(index)
        initializer = getattr(self, self.maps[index].initializer)
        if isinstance(initializer, keras.initializers.Orthogonal):
            # Its entries have the variance 1 / max(rows, columns).
            geometry = geometry._replace(fans=(max(geometry.fans),) * 2)
        return geometry

    def mirrored_bias(self, index=0):
        return None if index else self.bias

    @contextlib.contextmanager
    def held(self):
        """Within, each call of the cell uses one reading of its kernels, made here."""
        with _keras.autocast(self):
            pairs = [self._pair(index) for index in range(len(self.maps))]
            pairs = [
                (
                    kernel,
                    back if back is None or back is kernel else ops.copy(back),
                    mix,
                )
                for kernel, back, mix in pairs
            ]
        loops = vars(_held).setdefault("pairs", {})
        loops[id(self)] = pairs
        try:
            yield
        finally:
            del loops[id(self)]

    def _pair(self, index, kernel=None, goes_back=True):
        pairs = getattr(_held, "pairs", {}).get(id(self))
        return pairs[index] if pairs else super()._pair(index, kernel, goes_back)

    def _masks(self, training, inputs, hidden):
        """The dropout masks of inputs and state, each None where there is none."""
        masks = [None, None]
        if training and 0.0 < self.dropout < 1.0:
            masks[0] = self.get_dropout_mask(inputs)
        if training and 0.0 < self.recurrent_dropout < 1.0:
            masks[1] = self.get_recurrent_dropout_mask(hidden)
        return masks

    def _products(self, inputs, index, mask, gates):
        """The product with each gate's columns, a list of so many.

        Implementation 1 has a product and a mask for each gate, 2 one for all.
        """
        if self.implementation == 1:
            return [
                self._product(
                    inputs if mask is None else inputs * mask[gate], index, gate
                )
                for gate in range(gates)
            ]
        if mask is not None:
            inputs = inputs * mask
        return ops.split(self._product(inputs, index, 0, gates), gates, axis=-1)

    def _product(self, inputs, index, first, gates=1):
        """The product with the columns of some gates."""
        columns = slice(first * self.units, (first + gates) * self.units)

        def product(inputs, kernel):
            if columns != slice(0, kernel.shape[-1]):
                kernel = kernel[:, columns]
            return ops.matmul(inputs, kernel)

        return self.linear(product, inputs, index=index)


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackSimpleRNNCell(_FeedbackCell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with a feedback rule: see `FeedbackLSTMCell`."""

    def call(self, sequence, states, training=False):
        nested = isinstance(states, (list, tuple))
        hidden = states[0] if nested else states
        mask = self.get_dropout_mask(sequence)
        recurrent_mask = self.get_recurrent_dropout_mask(hidden)
        if training and mask is not None:
            sequence = sequence * mask
        outputs = self.linear(ops.matmul, sequence)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if training and recurrent_mask is not None:
            hidden = hidden * recurrent_mask
        outputs = outputs + self.linear(ops.matmul, hidden, index=1)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs, [outputs] if nested else outputs


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackLSTMCell(_FeedbackCell, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` with a feedback rule.

    Args:
        units: Size of the state.
        rule: Feedback rule: see `keras_fa.rules.get`.
        **kwargs: Every other argument of the Keras cell.

    Attributes:
        maps: Of the kernel and of the recurrent kernel: `layer.stored(1)` and
            `layer.backward_kernel(1)` are of the latter.

    Raises:
        ValueError: If the rule is unknown, or if a B comes out equal to its W under
            "fa".
    """

    def call(self, inputs, states, training=False):
        hidden, carry = states
        masks = self._masks(training, inputs, hidden)
        x = self._products(inputs, 0, masks[0], 4)
        h = self._products(hidden, 1, masks[1], 4)
        # In the order of Keras's own sums, which differs between the two.
        early = self.implementation == 1
        if self.use_bias and early:
            x = _sums(x, ops.split(self.bias, 4))
        z = _sums(x, h)
        if self.use_bias and not early:
            z = _sums(z, ops.split(self.bias, 4))
        carry, gate = self._compute_carry_and_output_fused(z, carry)
        hidden = gate * self.activation(carry)
        return hidden, [hidden, carry]


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackGRUCell(_FeedbackCell, keras.layers.GRUCell):
    """`keras.layers.GRUCell` with a feedback rule: see `FeedbackLSTMCell`."""

    def mirrored_bias(self, index=0):
        if self.bias is not None and self.reset_after:
            return self.bias[index]
        return super().mirrored_bias(index)

    def call(self, inputs, states, training=False):
        nested = keras.tree.is_nested(states)
        hidden = states[0] if nested else states
        masks = self._masks(training, inputs, hidden)
        x = self._products(inputs, 0, masks[0], 3)
        h = self._products(hidden, 1, masks[1], 3 if self.reset_after else 2)
        if self.use_bias:
            x = _sums(x, ops.split(self.mirrored_bias(0), 3))
            if self.reset_after:
                h = _sums(h, ops.split(self.mirrored_bias(1), 3))
        update = self.recurrent_activation(x[0] + h[0])
        reset = self.recurrent_activation(x[1] + h[1])
        if self.reset_after:
            kept = reset * h[2]
        else:
            before = hidden if masks[1] is None else hidden * masks[1][2]
            kept = self._product(reset * before, 1, 2)
        candidate = self.activation(x[2] + kept)
        hidden = update * hidden + (1 - update) * candidate
        return hidden, [hidden] if nested else hidden


def _sums(first, second):
    return [one + other for one, other in zip(first, second, strict=True)]


class _FeedbackLoop:
    """The recurrent layers' part: their cells' kernels are read once a call."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        with contextlib.ExitStack() as stack:
            for cell in _keras.layers_of(self.cell):
                if isinstance(cell, _FeedbackCell):
                    stack.enter_context(cell.held())
            return super().call(
                sequences, initial_state=initial_state, mask=mask, training=training
            )


class PastCuDNN:
    """Keeps LSTM and GRU from cuDNN's loops, whose backward pass of their own has W.

    Stands before the Keras class of a layer whose cell has a rule. Keras's loops ask
    `use_cudnn`, that of its bidirectional layer too.
    """

    @property
    def use_cudnn(self):
        """What was specified; under a rule neither True nor "auto"."""
        # In a container the cell may have been left without a rule.
        if isinstance(getattr(self.cell, "rule", _BACKPROP), rules.Backprop):
            return vars(self).get("use_cudnn")
        return _NOT_UNDER_A_RULE

    @use_cudnn.setter
    def use_cudnn(self, value):
        # A bidirectional layer hands on what it reads of the layer it was made of.
        if value is not _NOT_UNDER_A_RULE:
            vars(self)["use_cudnn"] = value

    def inner_loop(self, sequences, initial_state, mask, training=False):
        if self.use_cudnn is _NOT_UNDER_A_RULE and vars(self)["use_cudnn"] is True:
            raise ValueError(
                f"Layer '{self.name}': use_cudnn=True was specified, but cuDNN knows "
                f'no rule but "backprop". Received: rule={self.cell.rule!r}. Use '
                'use_cudnn="auto".'
            )
        return super().inner_loop(sequences, initial_state, mask, training)


class _FeedbackRecurrent(_FeedbackLoop, FeedbackHolder):
    """A layer with a cell of its own, which becomes a feedback cell."""

    cell_class = None

    def __init__(self, *args, rule="fa", **kwargs):
        super().__init__(*args, **kwargs)
        _keras.change_class(self.cell, self.cell_class)
        self.cell.take_rule(rule)

    @property
    def rule(self):
        """The cell's rule."""
        return self.cell.rule


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackRNN(_FeedbackLoop, keras.layers.RNN):
    """`keras.layers.RNN` that reads its feedback cells' kernels once a call.

    `keras.layers.RNN` runs feedback cells too, but reads W and makes B at each step of
    the loop, which takes longer; a rule that moves by itself moves at each step then.

    Args:
        cell: A cell or a list of cells, such as `FeedbackLSTMCell`, with their rules.
        **kwargs: Every other argument of the Keras layer.
    """


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackSimpleRNN(_FeedbackRecurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with a feedback rule: see `FeedbackLSTM`."""

    cell_class = FeedbackSimpleRNNCell


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackLSTM(PastCuDNN, _FeedbackRecurrent, keras.layers.LSTM):
    """`keras.layers.LSTM` with a feedback rule.

    The error goes to the input through the B of the kernel, and back in time through
    that of the recurrent kernel. cuDNN is never used but under "backprop".

    Args:
        units: Size of the state.
        rule: Feedback rule: see `keras_fa.rules.get`.
        **kwargs: Every other argument of the Keras layer.

    Attributes:
        cell: The `FeedbackLSTMCell`, which has the rule and both B.

    Raises:
        ValueError: If the rule is unknown, if a B comes out equal to its W under "fa",
            and when it is called with `use_cudnn=True`.
    """

    cell_class = FeedbackLSTMCell


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackGRU(PastCuDNN, _FeedbackRecurrent, keras.layers.GRU):
    """`keras.layers.GRU` with a feedback rule: see `FeedbackLSTM`."""

    cell_class = FeedbackGRUCell
