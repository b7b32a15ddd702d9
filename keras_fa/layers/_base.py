"""The mixin that makes a Keras layer a feedback layer."""

import math
import threading
from typing import NamedTuple

import keras
from keras import ops

from keras_fa import _keras, autodiff, gradients, rules

# Which layers of the calls now under way have had a product pass through their rule.
_calls = threading.local()


class Map(NamedTuple):
    """One linear map of a layer: the attributes that hold what belongs to it.

    Attributes:
        kernel: Name of the attribute with the kernel W.
        initializer: Name of the attribute with what drew it.
    """

    kernel: str = "kernel"
    initializer: str = "kernel_initializer"


class FeedbackMixin:
    """What the feedback layers have in common; stands before a Keras layer class.

    A subclass routes each of its products through `linear`, and lists its kernels in
    `maps` if there are others than `kernel`. A call in which nothing was routed is an
    error: the layer would train by plain backpropagation under another rule's name.

    Args:
        *args: Of the Keras layer.
        rule: Feedback rule: see `keras_fa.rules.get`.
        **kwargs: Of the Keras layer.

    Attributes:
        maps: Tuple of `Map`, one for each kernel.

    Example:
        >>> class FeedbackOuter(keras_fa.layers.FeedbackMixin, keras.layers.Dense):
        ...     def call(self, inputs):
        ...         return self.linear(keras.ops.matmul, inputs)
        >>> FeedbackOuter(2, rule="sign_fa")(np.ones((1, 3))).shape
        TensorShape([1, 2])
    """

    maps = (Map(),)
    # Whether each output channel is a number of the kernel's last axis, made of all
    # channels of the input, and stands on the last axis of what a product returns.
    ends_in_outputs = False

    def __init__(self, *args, rule="fa", **kwargs):
        super().__init__(*args, **kwargs)
        if self.quantization_mode is not None:
            self._refuse_quantization()
        self._rule = rules.get(rule).for_layer()
        # What the rule stores: `{name: variable}` for each map.
        self._stored = [{} for _ in self.maps]

    @property
    def rule(self):
        """The layer's `FeedbackRule`. `models.with_rule` gives a model another one."""
        return self._rule

    @property
    def feedback(self):
        """The stored B of the first kernel, a variable, or None if none is stored."""
        return self._stored[0].get("feedback")

    def build(self, input_shape):
        super().build(input_shape)
        self._add_feedback()

    def take_rule(self, rule):
        """Puts the layer under another rule; what it stores is made anew.

        Args:
            rule: See `keras_fa.rules.get`.
        """
        self.drop_feedback()
        self._rule = rules.get(rule).for_layer()
        if not self.built:
            self._stored = [{} for _ in self.maps]
            return
        with _keras.open_for_weights(self):
            self._stored = [{} for _ in self.maps]
            self._add_feedback()

    def drop_feedback(self):
        """Takes what the rule stores from the layer, which then needs another rule."""
        # A layer that was a stock one until now has nothing.
        for stored in getattr(self, "_stored", ()):
            for variable in stored.values():
                _keras.forget_variable(self, variable)
        self._stored = ()

    def _add_feedback(self):
        """Makes what the rule stores, on a layer that has its kernels."""
        if getattr(self, "lora_enabled", False):
            if self._rule.learns:
                self._refuse_lora()
            _keras.allow_more_weights(self)
        for index, entry in enumerate(self.maps):
            kernel = getattr(self, entry.kernel)
            slots = self._rule_of(index).slots(tuple(kernel.shape))
            for name, slot in slots.items():
                self._stored[index][name] = self.add_weight(
                    name=name if len(self.maps) == 1 else f"{entry.kernel}_{name}",
                    shape=slot.shape,
                    dtype=slot.dtype or self.variable_dtype,
                    initializer=self._slot_initializer(entry, slot),
                    trainable=slot.learned,
                    # Of what each replica makes by itself, alike on all of them.
                    aggregation="mean" if slot.learned else "only_first_replica",
                    constraint=kernel.constraint if slot.learned else None,
                    regularizer=_force(kernel.regularizer) if slot.learned else None,
                )

    def _slot_initializer(self, entry, slot):
        # Called when W has its values, which in a model that `fit` builds is later.
        def initialize(shape, dtype):
            return ops.cast(self._initial(entry, slot), dtype)

        return initialize

    def _initial(self, entry, slot):
        try:
            return slot.initial(
                getattr(self, entry.kernel), getattr(self, entry.initializer)
            )
        except ValueError as error:
            raise ValueError(f"Layer '{self.name}': {error}") from error

    def _rule_of(self, index):
        return self._rule.for_map(self.geometry(index))

    def geometry(self, index=0):
        """How a kernel maps its inputs to its outputs, a `keras_fa.rules.Geometry`.

        Here it is that of dense kernels and convolutions: outputs along the last axis,
        and fans in which the kernel's area counts twice, Keras's convention.

        Args:
            index: Which of the layer's `maps`.
        """
        shape = getattr(self, self.maps[index].kernel).shape
        *area, inputs, outputs = shape
        axes = tuple(range(len(shape)))
        fans = math.prod(area) * inputs, math.prod(area) * outputs
        return rules.Geometry(axes[:-1], axes[-1:], fans, index)

    def mirrored_bias(self, index=0):
        """The bias that belongs to a map, None where there is none.

        Args:
            index: Which of the layer's `maps`.

        Returns:
            A variable or tensor that broadcasts against the output axes of the kernel.
        """
        return getattr(self, "bias", None)

    def reset_feedback(self):
        """Makes what is stored anew, as at the layer's build, from the current W."""
        for index, (entry, stored) in enumerate(
            zip(self.maps, self._stored, strict=True)
        ):
            kernel = getattr(self, entry.kernel)
            slots = self._rule_of(index).slots(tuple(kernel.shape))
            for name, variable in stored.items():
                variable.assign(self._initial(entry, slots[name]))

    def stored(self, index=0):
        """`{name: variable}` of what the rule stores with a kernel."""
        return dict(self._stored[index])

    def feedback_variables(self):
        """All that the rule stores, a list of variables."""
        return [v for stored in self._stored for v in stored.values()]

    def backward_kernel(self, index=0):
        """What the backward pass uses in place of W now.

        Args:
            index: Which of the layer's `maps`.

        Returns:
            A tensor or variable of the kernel's shape; the kernel itself under
            backpropagation, None where the layer sends nothing back.
        """
        kernel = getattr(self, self.maps[index].kernel)
        return self._rule_of(index).backward_kernel(kernel, **self._stored[index])

    def potential(self, index=0):
        """The layer's part in the conservation law: see `FeedbackRule.potential`."""
        kernel = getattr(self, self.maps[index].kernel)
        found = self._rule_of(index).potential(kernel, **self._stored[index])
        if found is None or getattr(self, "groups", 1) == 1:
            return found
        # A channel of a group has its filters alone, which only the kernel tells apart.
        return found if tuple(found[0].shape) == tuple(kernel.shape) else None

    def linear(self, op, inputs, kernel=None, index=0):
        """A product of the layer, its input gradient taken with the rule's B.

        Args:
            op: Function of (inputs, kernel), linear in each.
            inputs: Tensor.
            kernel: W, where it is not the attribute as it stands: standardised, say.
            index: Which of the layer's `maps` it is.

        Returns:
            `op(inputs, kernel)`.
        """
        self._mark_as_routed()
        pair = self._pair(index, kernel, autodiff.goes_back(inputs))
        return gradients.linear(op, inputs, *pair)

    def _pair(self, index, kernel=None, goes_back=True):
        """One reading of W, and the B that belongs to it: `(W, K, M)`, B = K M.

        M is None where B is no product, and K where no error goes back.
        """
        kernel, stored = self._read(index, kernel)
        rule = self._rule_of(index)
        factors = None if goes_back else (None, None)
        if goes_back and self.ends_in_outputs:
            factors = rule.factors(kernel, **stored)
        if factors is None:
            factors = rule.backward_kernel(kernel, **stored), None
        if self._rule.learns:
            kernel = gradients.learned(kernel, rule.learned(kernel, **stored))
        return kernel, *factors

    def _check_decay(self, optimizer, kernel, stored):
        # What the optimizer learns beside W is meant to shrink as W does.
        learned = [variable for variable in stored.values() if variable.trainable]
        decays = _keras.decays(optimizer, kernel)
        other = [x.path for x in learned if _keras.decays(optimizer, x) is not decays]
        if other:
            acts, spares = [kernel.path], other
            if not decays:
                acts, spares = spares, acts
            raise ValueError(
                f"Under {self._rule!r} the optimizer's weight decay has to act on what "
                "is learned beside a kernel as on the kernel. It acts on "
                f"{', '.join(acts)}, but not on {', '.join(spares)}. Name all of them "
                "in `exclude_from_weight_decay`, or none."
            )

    def _read(self, index, kernel=None):
        """One reading of W, and of what is stored with it."""
        rule = self._rule_of(index)
        variable = getattr(self, self.maps[index].kernel)
        if _keras.in_training(self):
            optimizer = _keras.optimizer_of_call(self)
            rule.check_training(optimizer, variable)
            if optimizer is not None and self._rule.learns:
                self._check_decay(optimizer, variable, self._stored[index])
        if kernel is None:
            kernel = variable
        # W is read once, and B made from that reading. With a second reading of its
        # own, B sometimes came from the weights after the update: nothing in the graph
        # held the update back until then.
        kernel = autodiff.reading_in_graph(kernel)
        stored = self._stored[index]
        if self._rule.learns or self._rule.advances:
            stored = self._moving(rule, kernel, index)
            # TensorFlow drops the reading of B together with the dead second product,
            # and with it what held B's update back: W's reading waits for it instead.
            kernel = _keras.after(kernel, list(stored.values()))
        return kernel, stored

    def _moving(self, rule, kernel, index):
        """Readings of what is stored with a kernel, moved on in a training pass."""
        stored = {name: ops.copy(v) for name, v in self._stored[index].items()}
        # Not under the backpropagation that the instruments put in a rule's place.
        if self._rule.advances and self.trainable and _keras.in_training(self):
            initializer = getattr(self, self.maps[index].initializer)
            for name, value in rule.advance(
                ops.stop_gradient(kernel),
                self.mirrored_bias(index),
                initializer,
                **stored,
            ).items():
                self._stored[index][name].assign(value)
                stored[name] = ops.cast(value, stored[name].dtype)
        return stored

    def __call__(self, *args, **kwargs):
        if not hasattr(_calls, "unrouted"):
            _calls.unrouted = []
        _calls.unrouted.append(self)
        try:
            outputs = super().__call__(*args, **kwargs)
        finally:
            unrouted = _calls.unrouted.pop() is self
        if unrouted and not isinstance(self._rule, rules.Backprop):
            self._refuse_detour(outputs)
        return outputs

    def _mark_as_routed(self):
        calls = getattr(_calls, "unrouted", None)
        if calls and calls[-1] is self:
            calls[-1] = None

    def _refuse_detour(self, outputs):
        # On symbols Keras may work out the shape alone, without a call.
        if any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(outputs)):
            return
        raise TypeError(
            f"The layer '{self.name}' ({type(self).__name__}) is under the rule "
            f"{self._rule!r}, but nothing in its call went through it: it would train "
            "by plain backpropagation. Compute its product with "
            "`self.linear(op, inputs)`, or derive from one of the layers in "
            "keras_fa.layers."
        )

    def get_config(self):
        return {**super().get_config(), "rule": rules.serialize(self._rule)}

    # Dense and the convolutions read and write kernel and bias only; Layer's own pair
    # takes every variable of the layer.
    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        try:
            keras.layers.Layer.load_own_variables(self, store)
        except ValueError as error:
            raise ValueError(
                f"{error} A file of a stock Keras model knows its layers by other "
                "names, and has no feedback: load it into the stock model and convert "
                "that, keras_fa.convert(model, rule); for the way back there is "
                "keras_fa.to_stock(model)."
            ) from error

    def enable_lora(self, *args, **kwargs):
        if self._rule.learns:
            self._refuse_lora()
        super().enable_lora(*args, **kwargs)

    def _refuse_lora(self):
        raise ValueError(
            f"Layer '{self.name}': LoRA freezes the kernel, and {self._rule!r} learns "
            "its feedback from the kernel's gradient. Use a rule with fixed feedback, "
            'such as "fa" or "sign_fa".'
        )

    def quantize(self, *args, **kwargs):
        self._refuse_quantization()

    def _refuse_quantization(self):
        raise NotImplementedError(
            f"{type(self).__name__} cannot be quantized: a quantized layer has no "
            "backward pass. Train first, then quantize a stock-Keras copy of the model."
        )


class FeedbackHolder:
    """What layers made of feedback layers have in common; stands before a Keras class.

    The rules are those of the layers inside, feedback layers in their own right; the
    layer around them says in its config what they are. A subclass has a `rule`: one, or
    `{name: rule}` by the names of the layers inside.
    """

    def get_config(self):
        rule = self.rule
        if isinstance(rule, dict):
            rule = {name: rules.serialize(rules.get(one)) for name, one in rule.items()}
        else:
            rule = rules.serialize(rule)
        return {**super().get_config(), "rule": rule}


def _force(regularizer):
    """A penalty's gradient without its part in the loss, which W's has already."""
    if regularizer is None:
        return None

    def force(values):
        penalty = regularizer(values)
        return penalty - ops.stop_gradient(penalty)

    return force


def feedback_layers(model):
    """The feedback layers of a model, nested ones too, in order, each once.

    Args:
        model: A Keras model or layer.

    Returns:
        List of the layers that have the kernels: of an attention layer its projections,
        of a recurrent one its cell. Layers of one's own with the `FeedbackMixin` too.
    """
    return [x for x in _keras.layers_of(model) if isinstance(x, FeedbackMixin)]


def feedback_variables(model):
    """What the rules of a model's layers store, as a list of variables."""
    return [
        variable
        for layer in _keras.layers_of(model)
        if hasattr(layer, "feedback_variables")
        for variable in layer.feedback_variables()
    ]


def forward_variables(model):
    """The trainable variables of the forward pass: weights, not feedback.

    "Trainable" and "weight of the forward pass" are two things as soon as a rule
    learns its feedback.

    Args:
        model: A Keras model or layer.

    Returns:
        List of variables, in the order of `model.trainable_variables`.
    """
    feedback = {id(variable) for variable in feedback_variables(model)}
    return [v for v in model.trainable_variables if id(v) not in feedback]
