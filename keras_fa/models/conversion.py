"""Any Keras model under a feedback rule, and back to stock Keras layers."""

import dataclasses

import keras

from keras_fa import _keras, rules
from keras_fa.layers import COUNTERPARTS, FeedbackMixin, feedback_layers
from keras_fa.models import copying, swapping
from keras_fa.models.wiring import is_direct, unwire, wire

# Nothing flows through their weights from the layer below, or element by element only,
# which backpropagation does without any transport of weights.
_NOTHING_BELOW = ("Embedding", "PositionEmbedding")
_ELEMENTWISE = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
    keras.layers.RMSNormalization,
)


@dataclasses.dataclass
class Report:
    """What `convert` did with the layers of a model, each under its path in it.

    Attributes:
        converted: List of `(path, class name, rule)`.
        left_out: List of `(path, class name, reason)` of layers with weights that may
            be linear maps: they go on with plain backpropagation.
        nothing: List of `(path, class name, reason)` of layers with weights of rank 2
            and more that have nothing to feed back.
    """

    converted: list
    left_out: list
    nothing: list

    def __str__(self):
        rows = [("layer", "class", "rule")]
        rows += [(path, kind, rules.label_of(r)) for path, kind, r in self.converted]
        rows += [(p, kind, f"left out: {why}") for p, kind, why in self.left_out]
        rows += [(p, kind, f"nothing: {why}") for p, kind, why in self.nothing]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{p:<{widths[0]}}  {k:<{widths[1]}}  {what}" for p, k, what in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join(lines)

    __repr__ = __str__


def convert(model, rule="fa", in_place=False, fused_batch_norm=False):
    """A Keras model whose linear maps follow a feedback rule, and what became of each.

    Weights, states and predictions are those of the model, to the last bit. Layers
    that hold layers (attention, blocks, subclassed models) keep their class, with a
    part before it that saves the rules in `.keras` files. Of a model that has a rule
    already the rule is changed: its feedback is made anew, from the current W.

    Weight files know layers by their class: load the file of a stock model into a
    stock model and convert that, and save `keras_fa.to_stock(model)` for stock ones.

    Args:
        model: A Keras model that is built: Sequential, functional or subclassed.
        rule: Feedback rule: see `keras_fa.rules.get`. Or one for each layer: a table
            `{pattern: rule}`, of which the first that fits counts, with shell patterns
            of a layer's name, of its path or of a layer around it; or a function of
            the layer, which returns a rule, or None to leave the layer as it is.
        in_place: Whether to change the layers of the model itself, and keep its
            optimizer with its state, rather than those of a copy, which is not
            compiled. Under a direct rule the functional model that is returned is a
            new one in both cases; it uses the layers of the old one then.
        fused_batch_norm: Whether to make `keras_fa.layers.BatchNormalization` of the
            model's BatchNormalization layers, which trains the same in less time.
            Inside a layer with a class of its own a file does not keep that.

    Returns:
        `(model, report)`: the converted model and a `Report`, which prints as a table.

    Raises:
        ValueError: If the rule is unknown, a pattern fits no layer, no layer can be
            converted, the model is not built or cannot be copied, feedback would be
            zero (in place, the layers before that one are converted then), or the
            optimizer of a model in place would miss learned feedback.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")])
        >>> keras_fa.convert(net, "sign_fa")[1]
        layer  class  rule
        ---------------------
        d      Dense  sign-FA
    """
    chooser = rules.by_layer(rule)
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built: its layers have no weights. Call it "
            "on a batch first, or give it an Input."
        )
    plan, report = _plan(unwire(model), chooser)
    if not report.converted:
        raise ValueError(
            f"Model '{model.name}' has no layer that can have a rule.\n{report}"
        )
    return _carried_out(model, plan, in_place, fused_batch_norm), report


def with_rule(model, rule):
    """The same architecture and weights under another feedback rule.

    `convert` for models that have feedback layers, which alone are changed: stock
    layers beside them stay stock. The new model shares nothing with the old one and is
    not compiled.

    Args:
        model: A built model with feedback layers.
        rule: Feedback rule of every feedback layer, or one for each: see `convert`.

    Returns:
        A new model of the same kind.

    Raises:
        ValueError: As for `convert`, and if the model has no feedback layers.
    """
    if not feedback_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no feedback layers. Expected a model built of "
            "keras_fa.layers, such as keras_fa.models.mlp returns, or one from "
            "keras_fa.convert."
        )
    plan, _ = _plan(unwire(model), rules.by_layer(rule), FeedbackMixin)
    return _carried_out(model, plan, in_place=False)


def to_stock(model):
    """A copy of a model with stock Keras layers in the place of the feedback layers.

    Weights, states and predictions are the model's, to the last bit, and `quantize`,
    `export` and tools that know Keras alone take it. It is not compiled.

    Args:
        model: A Keras model with feedback layers, of whatever kind.

    Raises:
        ValueError: If a feedback layer has no stock counterpart, or the model cannot
            be copied.

    Example:
        >>> net = keras_fa.to_stock(keras_fa.models.mlp((4,), 5, 3))
        >>> [type(layer).__name__ for layer in net.layers]
        ['Dense', 'LeakyReLU', 'Dense']
    """
    stock = copying.copy(unwire(model))
    for layer in _keras.layers_of(stock):
        if swapping.has_a_rule(layer):
            swapping.put_back(layer)
    return stock


def direct(
    model, kind="full", signal="error", learned=False, taps="layers", **arguments
):
    """The same architecture and weights under direct feedback.

    Each feedback layer sends nothing back; its input, unless nothing below it trains,
    gets the output's error through a matrix of its own. Source: Nokland (2016). With
    `taps="blocks"` it is the outputs of a residual network's blocks that get it, and
    blocks are local: within one the error goes back as under backpropagation, and none
    leaves it. Blocks end at the sums of the graph, and where a stream begins.

    Args:
        model: A built Sequential or functional model with feedback layers and one
            output of shape (batch, outputs). The softmax belongs to the loss.
        kind: "full", "shared", "low_rank" or "sparse".
        signal: "error", "sign" or "target".
        learned: Whether B_l learns, by `h_l^T e`: `keras_fa.rules.DirectKolenPollack`.
        taps: "layers" or "blocks".
        **arguments: Further ones of `keras_fa.rules.DirectFeedbackAlignment`: `rank`,
            `nonzeros`, `ghost`, `initializer`, `seed`.

    Returns:
        A functional model whose last layer is a `keras_fa.layers.DirectFeedback`. Its
        predictions are the model's, to the bit.

    Raises:
        ValueError: If an argument is wrong or the model cannot have direct feedback:
            the message says why.

    Example:
        >>> model = keras_fa.direct(keras_fa.models.mlp((4,), (8, 8), 3), seed=0)
        >>> [tuple(b.shape) for b in model.layers[-1].weights]
        [(8, 3), (8, 3)]
    """
    rule = rules.DirectFeedbackAlignment
    if learned:
        rule = rules.DirectKolenPollack
    return with_rule(model, rule(kind=kind, signal=signal, taps=taps, **arguments))


def _plan(model, chooser, only=keras.Layer):
    """The rules of a model's layers, `{way: rule}`, and the report of them."""
    plan, report = {}, Report([], [], [])
    for way, path, layer in swapping.within(model):
        kind = type(layer).__name__
        reason = _unknown(layer)
        if reason is None and isinstance(layer, only):
            rule = chooser.rule(layer, path)
            if rule is not None:
                plan[way] = rule
                report.converted.append((path, kind, rule))
                continue
            reason = "no rule was given for it"
        wide = [
            f"{variable.name} {tuple(variable.shape)}"
            for variable in _keras.own_variables(layer)[0]
            if len(variable.shape) > 1
        ]
        if not wide:
            continue
        if kind in _NOTHING_BELOW:
            report.nothing.append((path, kind, "a table of vectors has no input below"))
        elif isinstance(layer, _ELEMENTWISE):
            report.nothing.append((path, kind, "element by element"))
        else:
            reason = reason or f"no feedback layer for its weights {', '.join(wide)}"
            report.left_out.append((path, kind, reason))
    chooser.check()
    return plan, report


def _unknown(layer):
    """Why a layer cannot have a rule: None if it can, "" if nothing is known of it."""
    if isinstance(layer, FeedbackMixin):
        return None
    if type(layer) not in COUNTERPARTS:
        stock = next((c for c in COUNTERPARTS if isinstance(layer, c)), None)
        return f"a subclass of {stock.__name__} with a call of its own" if stock else ""
    if not issubclass(COUNTERPARTS[type(layer)], FeedbackMixin):
        # The layers in it that have the kernels come by themselves.
        return ""
    if layer.quantization_mode is not None:
        return "quantized layers have no backward pass"
    if not layer.built:
        return "nothing has called it: it has no weights"
    return None


def _carried_out(model, plan, in_place, fused_batch_norm=False):
    """The model, or a copy of it, under the rules of a plan."""
    if in_place:
        _check_optimizer(model, plan)
    new = unwire(model) if in_place else copying.copy(unwire(model))
    for way, _, layer in list(swapping.within(new)):
        if way in plan:
            swapping.put_under(layer, plan[way])
        elif fused_batch_norm:
            swapping.fuse(layer)
    swapping.contain(new)
    for part in _keras.layers_of(new):
        if isinstance(part, keras.Model):
            # Compiled with the rules of before.
            part.train_function = part.test_function = part.predict_function = None
    return wire(new)


def _check_optimizer(model, plan):
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return
    learning = [x.rule for x in feedback_layers(model)] + list(plan.values())
    if any(rule.learns or is_direct(rule) for rule in learning):
        raise ValueError(
            f"The optimizer of '{model.name}' knows the variables that the model has "
            "now, and a rule that learns its feedback changes them. Convert before "
            "`fit`, or convert a copy (in_place=False) and compile it."
        )
