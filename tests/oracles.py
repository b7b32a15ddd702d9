"""Layers with several axes or kernels in NumPy float64, their errors by hand.

Each function here gets the arguments of a layer, its input, its weights in the layer's
order and the backward kernel of each of its maps. It returns the output and a function
from the output's error to the gradients of the input and of each weight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from helpers import Convolution, LayerCase, Layout

from keras_fa import layers


def _convolution(arguments, rank, groups=1):
    def tuple_of(name):
        value = arguments.get(name, 1)
        return (value,) * rank if isinstance(value, int) else value

    return Convolution(
        tuple_of("strides"),
        tuple_of("dilation_rate"),
        arguments.get("padding", "valid"),
        groups,
    )


def _channels_last(oracle):
    """An oracle that also takes the input with its channels first."""

    def either(arguments, x, weights, feedback):
        if arguments.get("data_format") != "channels_first":
            return oracle(arguments, x, weights, feedback)
        y, pull = oracle(arguments, np.moveaxis(x, 1, -1), weights, feedback)

        def pull_first(error):
            dx, *rest = pull(np.moveaxis(error, 1, -1))
            return [np.moveaxis(dx, -1, 1), *rest]

        return np.moveaxis(y, -1, 1), pull_first

    return either


def _grouped(kernel):
    """A depthwise kernel as that of a convolution with a group for each channel."""
    *area, channels, multiplier = kernel.shape
    return kernel.reshape(*area, 1, channels * multiplier)


@_channels_last
def depthwise(arguments, x, weights, feedback):
    kernel, *bias = weights
    conv = _convolution(arguments, x.ndim - 2, groups=x.shape[-1])
    y = conv.forward(x, _grouped(kernel), *bias)

    def pull(error):
        dx, d_kernel, d_bias = conv.gradients(error, x, _grouped(feedback[0]))
        return [dx, d_kernel.reshape(kernel.shape), *[d_bias] * len(bias)]

    return y, pull


@_channels_last
def separable(arguments, x, weights, feedback):
    kernel, pointwise, *bias = weights
    hidden, pull_hidden = depthwise(
        {**arguments, "data_format": None}, x, [kernel], feedback[:1]
    )
    mixing = _convolution({}, x.ndim - 2)
    y = mixing.forward(hidden, pointwise, *bias)

    def pull(error):
        d_hidden, d_pointwise, d_bias = mixing.gradients(error, hidden, feedback[1])
        dx, d_kernel = pull_hidden(d_hidden)
        return [dx, d_kernel, d_pointwise, *[d_bias] * len(bias)]

    return y, pull


@_channels_last
def transposed(arguments, x, weights, feedback):
    """The input gradient of a convolution, forward; that convolution, backward."""
    kernel, *bias = weights
    conv = _convolution(arguments, x.ndim - 2)
    size = _transposed_size(arguments, x, kernel)
    blank = np.zeros((len(x), *size, kernel.shape[-2]))
    y = conv.gradients(x, blank, kernel)[0] + sum(bias)

    def pull(error):
        _, d_kernel, _ = conv.gradients(x, error, kernel)
        d_bias = error.reshape(-1, error.shape[-1]).sum(axis=0)
        return [conv.forward(error, feedback[0]), d_kernel, *[d_bias] * len(bias)]

    return y, pull


def _transposed_size(arguments, x, kernel):
    """The output's spatial size, by Keras's documentation of the transposed layers."""
    rank = x.ndim - 2
    sizes = []
    for axis, size in enumerate(x.shape[1:-1]):
        stride, taps = (
            value if isinstance(value, int) else value[axis]
            for value in (arguments.get("strides", 1), kernel.shape[axis])
        )
        extra = arguments.get("output_padding")
        if extra is not None:
            extra = (extra,) * rank if isinstance(extra, int) else extra
            pad = taps // 2 if arguments.get("padding") == "same" else 0
            sizes.append((size - 1) * stride + taps - 2 * pad + extra[axis])
        elif arguments.get("padding") == "same":
            sizes.append(size * stride)
        else:
            sizes.append(size * stride + max(taps - stride, 0))
    return sizes


def einsum(arguments, x, weights, feedback):
    """Letters of the batch stand for the equation's dots."""
    kernel, *bias = weights
    left, right, out = _letters(arguments["equation"], x.ndim)
    y = np.einsum(f"{left},{right}->{out}", x, kernel) + sum(bias)

    def pull(error):
        d_bias = []
        for values in bias:
            axes = range(error.ndim - values.ndim)
            summed = error.sum(axis=tuple(axes))
            ones = [a for a, n in enumerate(values.shape) if n == 1]
            d_bias.append(summed.sum(axis=tuple(ones), keepdims=True))
        return [
            np.einsum(f"{out},{right}->{left}", error, feedback[0]),
            np.einsum(f"{left},{out}->{right}", x, error),
            *d_bias,
        ]

    return y, pull


def _letters(equation, rank):
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    dots = "zyxw"[: rank - len(left.replace("...", ""))]
    return left.replace("...", dots), right, out.replace("...", dots)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _summed(error, rank):
    """The error of a bias of that rank, along the last axes."""
    return error.sum(axis=tuple(range(error.ndim - rank)))


def attention(arguments, x, weights, feedback):
    """Self-attention; fewer heads of keys and values than of queries are repeated."""
    names = ["query", "key", "value", "output"]
    if arguments.get("use_gate"):
        names.insert(2, "gate")
    with_bias = arguments.get("use_bias", True)
    kernels = dict(zip(names, weights[:: 1 + with_bias], strict=True))
    biases = dict(zip(names, weights[1::2] if with_bias else [0.0] * 5, strict=False))
    back = dict(zip(names, feedback, strict=True))
    made = {
        name: np.einsum("btd,dnh->btnh", x, kernels[name]) + biases[name]
        for name in names[:-1]
    }
    repeats = kernels["query"].shape[1] // kernels["key"].shape[1]
    q, k, v = made["query"], *(made[n].repeat(repeats, 2) for n in ("key", "value"))
    scale = 1 / np.sqrt(q.shape[-1])
    scores = scale * np.einsum("bqnh,bknh->bnqk", q, k)
    seen = np.ones(scores.shape[-2:], bool)
    if arguments.get("call", {}).get("use_causal_mask"):
        seen = np.tril(seen)
    if "attention_mask" in arguments.get("call", {}):
        seen = seen & arguments["call"]["attention_mask"][:, None]
    exp = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    p = exp / exp.sum(-1, keepdims=True)
    mixed = np.einsum("bnqk,bknh->bqnh", p, v)
    gate = _sigmoid(made["gate"]) if "gate" in made else 1.0
    y = np.einsum("bqnh,nhd->bqd", mixed * gate, kernels["output"]) + biases["output"]

    def pull(error):
        d_gated = np.einsum("bqd,nhd->bqnh", error, back["output"])
        d_mixed = d_gated * gate
        d_p = np.einsum("bqnh,bknh->bnqk", d_mixed, v)
        d_scores = scale * p * (d_p - (d_p * p).sum(-1, keepdims=True))

        def heads(values):
            return values.reshape(*values.shape[:2], -1, repeats, q.shape[-1]).sum(3)

        d_made = {
            "query": np.einsum("bnqk,bknh->bqnh", d_scores, k),
            "key": heads(np.einsum("bnqk,bqnh->bknh", d_scores, q)),
            "gate": d_gated * mixed * gate * (1 - gate),
            "value": heads(np.einsum("bnqk,bqnh->bknh", p, d_mixed)),
        }
        dx, d_weights = 0.0, []
        for name in names[:-1]:
            dx = dx + np.einsum("btnh,dnh->btd", d_made[name], back[name])
            d_weights.append(np.einsum("btd,btnh->dnh", x, d_made[name]))
            d_weights += [_summed(d_made[name], 2)] * with_bias
        d_weights.append(np.einsum("bqnh,bqd->nhd", mixed * gate, error))
        d_weights += [_summed(error, 1)] * with_bias
        return [dx, *d_weights]

    return y, pull


# One step of each cell: its outputs, and from the errors of the new states those of
# x W, h U and what of the old states does not go through U.


def _simple_step(a, c, states):
    h = np.tanh(a + c)

    def pull(d_h):
        d_z = d_h * (1 - h**2)
        return d_z, d_z, [0.0]

    return [h], pull


def _lstm_step(a, c, states):
    gates = np.split(a + c, 4, axis=-1)
    i, f, o = (_sigmoid(gates[n]) for n in (0, 1, 3))
    g, carry = np.tanh(gates[2]), states[1]
    new = f * carry + i * g
    t = np.tanh(new)

    def pull(d_h, d_new):
        d_new = d_new + d_h * o * (1 - t**2)
        d_z = np.concatenate(
            [
                d_new * g * i * (1 - i),
                d_new * carry * f * (1 - f),
                d_new * i * (1 - g**2),
                d_h * t * o * (1 - o),
            ],
            axis=-1,
        )
        return d_z, d_z, [0.0, d_new * f]

    return [o * t, new], pull


def _gru_step(a, c, states):
    """The kind whose reset gate comes after the product."""
    (h,) = states
    ax, cx = np.split(a, 3, axis=-1), np.split(c, 3, axis=-1)
    z, r = _sigmoid(ax[0] + cx[0]), _sigmoid(ax[1] + cx[1])
    g = np.tanh(ax[2] + r * cx[2])

    def pull(d_h):
        d_g = d_h * (1 - z) * (1 - g**2)
        d_z = d_h * (h - g) * z * (1 - z)
        d_r = d_g * cx[2] * r * (1 - r)
        return (
            np.concatenate([d_z, d_r, d_g], axis=-1),
            np.concatenate([d_z, d_r, d_g * r], axis=-1),
            [d_h * z],
        )

    return [z * h + (1 - z) * g], pull


def _recurrent(step, states):
    """A loop over time around a step, with its way back."""

    def oracle(arguments, x, weights, feedback):
        kernel, recurrent, *bias = weights
        biases = [0.0, 0.0]
        if bias:
            biases = list(bias[0]) if bias[0].ndim == 2 else [bias[0], 0.0]
        order = list(range(x.shape[1]))[:: -1 if arguments.get("go_backwards") else 1]
        mask = arguments.get("call", {}).get("mask", np.ones(x.shape[:2], bool))
        now = [np.zeros((len(x), recurrent.shape[0]))] * states
        outputs, pulls = [], []
        for t in order:
            before, kept = now, mask[:, t, None]
            a, c = x[:, t] @ kernel + biases[0], before[0] @ recurrent + biases[1]
            new, pull_step = step(a, c, before)
            now = [np.where(kept, n, b) for n, b in zip(new, before, strict=True)]
            # What a masked step puts out is the last output, not the last state.
            last = outputs[-1] if outputs else np.zeros_like(new[0])
            outputs.append(np.where(kept, new[0], last))
            pulls.append((t, kept, before[0], pull_step))
        sequences = arguments.get("return_sequences", False)
        parts = [np.stack(outputs, 1)] if sequences else [outputs[-1]]
        if arguments.get("return_state"):
            parts += now
        y = np.concatenate([part.reshape(len(x), -1) for part in parts], axis=1)
        y = y.reshape(parts[0].shape) if len(parts) == 1 else y

        def pull(error):
            error, sizes = error.reshape(len(x), -1), [p[0].size for p in parts]
            pieces = np.split(error, np.cumsum(sizes)[:-1], axis=1)
            pieces = [e.reshape(p.shape) for e, p in zip(pieces, parts, strict=True)]
            d_states = pieces[1:] or [np.zeros_like(now[0])] * states
            d_outputs = [np.zeros_like(now[0]) for _ in order]
            if sequences:
                d_outputs = [pieces[0][:, n] for n in range(len(order))]
            else:
                d_outputs[-1] = pieces[0]
            dx, d_u = np.zeros_like(x), np.zeros_like(recurrent)
            d_w = np.zeros_like(kernel)
            d_biases, d_last = [0.0, 0.0], 0.0
            for n, (t, kept, hidden, pull_step) in reversed(list(enumerate(pulls))):
                d_out = d_outputs[n] + d_last
                d_last = np.where(kept, 0.0, d_out)
                d_new = [np.where(kept, d, 0.0) for d in d_states]
                d_new[0] = d_new[0] + np.where(kept, d_out, 0.0)
                d_a, d_c, direct = pull_step(*d_new)
                d_states = [
                    np.where(kept, 0.0, d) + e
                    for d, e in zip(d_states, direct, strict=True)
                ]
                d_states[0] = d_states[0] + d_c @ feedback[1].T
                dx[:, t] = d_a @ feedback[0].T
                d_w, d_u = d_w + x[:, t].T @ d_a, d_u + hidden.T @ d_c
                for number, d in enumerate((d_a, d_c)):
                    d_biases[number] = d_biases[number] + d.sum(axis=0)
            d_bias = []
            if bias:
                d_bias = [d_biases[0] if bias[0].ndim == 1 else np.stack(d_biases)]
            return [dx, d_w, d_u, *d_bias]

        return y, pull

    return oracle


simple_rnn = _recurrent(_simple_step, 1)
lstm = _recurrent(_lstm_step, 2)
gru = _recurrent(_gru_step, 1)


def gru_reset_before(arguments, x, weights, feedback):
    """The kind whose reset gate comes before the product, which is then another one."""
    kernel, recurrent, *bias = weights
    n = recurrent.shape[0]
    h = np.zeros((len(x), n))
    outer, inner = np.split(recurrent, [2 * n], axis=1)
    outer_back, inner_back = np.split(feedback[1], [2 * n], axis=1)
    steps = []
    for t in range(x.shape[1]):
        ax = np.split(x[:, t] @ kernel + sum(bias), 3, axis=1)
        cx = np.split(h @ outer, 2, axis=1)
        z, r = _sigmoid(ax[0] + cx[0]), _sigmoid(ax[1] + cx[1])
        g = np.tanh(ax[2] + (r * h) @ inner)
        steps.append((h, z, r, g))
        h = z * h + (1 - z) * g

    def pull(error):
        dx, d_h = np.zeros_like(x), error
        d_w, d_u, d_b = np.zeros_like(kernel), np.zeros_like(recurrent), 0.0
        for t, (h, z, r, g) in reversed(list(enumerate(steps))):
            d_g = d_h * (1 - z) * (1 - g**2)
            d_kept = d_g @ inner_back.T
            d_gates = np.concatenate(
                [d_h * (h - g) * z * (1 - z), d_kept * h * r * (1 - r)], axis=1
            )
            d_a = np.concatenate([d_gates, d_g], axis=1)
            dx[:, t] = d_a @ feedback[0].T
            d_w, d_b = d_w + x[:, t].T @ d_a, d_b + d_a.sum(axis=0)
            d_u += np.concatenate([h.T @ d_gates, (r * h).T @ d_g], axis=1)
            d_h = d_h * z + d_kept * r + d_gates @ outer_back.T
        return [dx, d_w, d_u, *[d_b] * len(bias)]

    return h, pull


TOKENS = np.array([[1, 2], [2, 3]])


def embedding(arguments, x, weights, feedback):
    """The logits of vectors, and beside them the vectors of some tokens."""
    table, *reverse = weights
    kernel = reverse[0] if reverse else table.T
    back = feedback[0] if reverse else feedback[0].T
    cap = arguments.get("logit_soft_cap")
    logits = x @ kernel
    slope = 1.0
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
        slope = 1 - (logits / cap) ** 2
    y = np.concatenate([logits, table[TOKENS]], axis=-1)

    def pull(error):
        d_logits, d_vectors = np.split(error, [logits.shape[-1]], axis=-1)
        d_logits = d_logits * slope
        d_table = np.zeros_like(table)
        np.add.at(d_table, TOKENS, d_vectors)
        d_kernel = np.einsum("btd,btv->dv", x, d_logits)
        if reverse:
            return [d_logits @ back.T, d_table, d_kernel]
        return [d_logits @ back.T, d_table + d_kernel.T]

    return y, pull


# --- The table: a row a layer, with further arguments for the comparison ---


@dataclass
class FurtherCase(LayerCase):
    """A layer of another shape than a dense one or a convolution.

    `layouts` has one entry for each kernel, in the order of the layer's weights; None
    stands for (..., inputs, outputs). Of a variant's arguments those under "call" are
    not the layer's but its call's.
    """

    oracle: Callable = None
    layouts: tuple = (None,)
    variants: tuple = ({},)
    runs: Callable = None

    def run(self, layer, x, **kwargs):
        """The output, several of them as one."""
        made = self.runs(layer, x, **kwargs) if self.runs else layer(x, **kwargs)
        outputs = keras.tree.flatten(made)
        if len(outputs) == 1:
            return outputs[0]
        flat = [keras.ops.reshape(part, (len(x), -1)) for part in outputs]
        return keras.ops.concatenate(flat, axis=1)


def _case(name, arguments, input_shape, oracle, layouts, *variants, **kwargs):
    return FurtherCase(
        getattr(layers, f"Feedback{name}"),
        getattr(keras.layers, name),
        arguments,
        input_shape,
        oracle,
        layouts,
        ({}, *variants),
        **kwargs,
    )


def _on_itself(layer, x, **kwargs):
    return layer(x, x, **kwargs)


def _both_ways(layer, x):
    if isinstance(x, keras.KerasTensor):
        return layer(x, reverse=True)
    vectors = layer(TOKENS[: len(x)])
    return keras.ops.concatenate([layer(x, reverse=True), vectors], axis=-1)


def _channels(rank):
    """The layout of a depthwise kernel: a map for each channel."""
    return Layout(tuple(range(rank)), (rank, rank + 1))


def _swapped(rank):
    """The layout of a transposed convolution's kernel."""
    return Layout((rank + 1,), tuple(range(rank + 1)))


class _Orthogonal(Layout):
    """Of a kernel whose entries have the variance 1 / max(rows, columns)."""

    def fan_sum(self, shape):
        return 2 * max(shape)


_ORTHOGONAL = _Orthogonal((0,), (1,))
_PROJECTED = Layout((0,), (1, 2), counted=True)
_JOINED = Layout((0, 1), (2,), counted=True)
# Each query sees itself, and what else is left to chance.
_SEEN = np.random.default_rng(4).random((2, 5, 5)) < 0.5
_SEEN |= np.eye(5, dtype=bool)
# Sequences that begin late, have a gap and end early.
_STEPS = np.array([[0, 1, 0, 1, 1], [1, 1, 1, 0, 0]], bool)

_DEPTHWISE = {"kernel_size": 3, "padding": "same", "depth_multiplier": 2}
_SEPARABLE = {**_DEPTHWISE, "filters": 4}
_TRANSPOSED = {"filters": 4, "kernel_size": 3, "padding": "same"}
# No spatial size equals the number of channels, as in test_gradients.py.
_FILTERED = (
    {"padding": "valid", "use_bias": False},
    {"strides": 2},
    {"dilation_rate": 2},
    {"strides": 2, "dilation_rate": 2},
    {"data_format": "channels_first", "strides": 2},
)
_SPREAD = (
    {"padding": "valid", "use_bias": False},
    {"strides": 2},
    {"padding": "valid", "strides": 2},
    {"padding": "valid", "strides": 2, "output_padding": 1, "kernel_size": 2},
)
_LOOPS = (
    {"use_bias": False, "go_backwards": True, "return_sequences": True},
    {"unroll": True, "return_state": True},
    {"return_sequences": True, "call": {"mask": _STEPS}},
)
FURTHER = {
    "depthwise1d": _case(
        "DepthwiseConv1D",
        _DEPTHWISE,
        (7, 3),
        depthwise,
        (_channels(1),),
        *_FILTERED[:3],
    ),
    "depthwise2d": _case(
        "DepthwiseConv2D", _DEPTHWISE, (5, 9, 3), depthwise, (_channels(2),), *_FILTERED
    ),
    "separable1d": _case(
        "SeparableConv1D",
        _SEPARABLE,
        (7, 3),
        separable,
        (_channels(1), None),
        *_FILTERED[:3],
    ),
    "separable2d": _case(
        "SeparableConv2D",
        _SEPARABLE,
        (5, 9, 3),
        separable,
        (_channels(2), None),
        *_FILTERED,
    ),
    "conv1d_transpose": _case(
        "Conv1DTranspose", _TRANSPOSED, (6, 3), transposed, (_swapped(1),), *_SPREAD
    ),
    "conv2d_transpose": _case(
        "Conv2DTranspose",
        _TRANSPOSED,
        (3, 5, 3),
        transposed,
        (_swapped(2),),
        *_SPREAD,
        {"strides": (2, 1), "kernel_size": (2, 3)},
    ),
    "conv3d_transpose": _case(
        "Conv3DTranspose",
        _TRANSPOSED,
        (3, 2, 5, 3),
        transposed,
        (_swapped(3),),
        *_SPREAD[:2],
    ),
    "einsum": _case(
        "EinsumDense",
        {"equation": "abc,cde->abde", "output_shape": (5, 2, 3), "bias_axes": "de"},
        (5, 4),
        einsum,
        (Layout((0,), (1, 2), counted=True),),
        {"bias_axes": None, "output_shape": (None, 2, 3)},
        {"bias_axes": "e"},
        {"bias_axes": "be"},
    ),
    "einsum_order": _case(
        "EinsumDense",
        {"equation": "...ab,cbad->...dc", "output_shape": (3, 2), "bias_axes": "dc"},
        (2, 5, 4),
        einsum,
        (Layout((1, 2), (0, 3), counted=True),),
        {"bias_axes": "c"},
    ),
    "einsum_shared": _case(
        "EinsumDense",
        {"equation": "abc,bcd->abd", "output_shape": (5, 3), "bias_axes": "bd"},
        (5, 4),
        einsum,
        (Layout((1,), (0, 2), counted=True),),
        {"bias_axes": "d"},
    ),
    "attention": _case(
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 4, "seed": 1},
        (5, 3),
        attention,
        (_PROJECTED, _PROJECTED, _PROJECTED, _JOINED),
        {"use_bias": False, "call": {"use_causal_mask": True}},
        {"call": {"attention_mask": _SEEN}},
        runs=_on_itself,
    ),
    "gated_attention": _case(
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 4, "use_gate": True},
        (5, 3),
        attention,
        (_PROJECTED, _PROJECTED, _PROJECTED, _PROJECTED, _JOINED),
        runs=_on_itself,
    ),
    "grouped_attention": _case(
        "GroupQueryAttention",
        {"num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "seed": 1},
        (5, 3),
        attention,
        (_PROJECTED, _PROJECTED, _PROJECTED, _JOINED),
        {"call": {"use_causal_mask": True}},
        runs=_on_itself,
    ),
    "simple_rnn": _case(
        "SimpleRNN", {"units": 4}, (5, 3), simple_rnn, (None, None), *_LOOPS
    ),
    "lstm": _case(
        "LSTM",
        {"units": 4},
        (5, 3),
        lstm,
        (None, _ORTHOGONAL),
        *_LOOPS,
        {"implementation": 1},
    ),
    "gru": _case(
        "GRU",
        {"units": 4},
        (5, 3),
        gru,
        (None, _ORTHOGONAL),
        *_LOOPS,
        {"implementation": 1},
    ),
    "gru_reset_before": _case(
        "GRU",
        {"units": 4, "reset_after": False},
        (5, 3),
        gru_reset_before,
        (None, _ORTHOGONAL),
        {"implementation": 1},
        {"use_bias": False, "unroll": True},
    ),
    "embedding": _case(
        "ReversibleEmbedding",
        {"input_dim": 6, "output_dim": 3},
        (2, 3),
        embedding,
        (Layout((1,), (0,)),),
        {"logit_soft_cap": 2.0},
        runs=_both_ways,
    ),
    "embedding_untied": _case(
        "ReversibleEmbedding",
        {"input_dim": 6, "output_dim": 3, "tie_weights": False},
        (2, 3),
        embedding,
        (None,),
        runs=_both_ways,
    ),
}
