"""The custom gradient: against NumPy oracles, against stock Keras, and its cost.

Every dense and convolution layer under every rule equals the float64 oracle; under
"backprop" it is the stock layer bit for bit; and a compiled feedback step holds exactly
as many matrix products as a compiled backpropagation step.
"""

import itertools
import re

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CELLS,
    DEAR,
    KINDS,
    LAYERS,
    LEARNED,
    RULES,
    Convolution,
    assert_close,
    standing,
)
from keras import ops
from tensorflow.python.eager import context

from keras_fa import gradients, layers, models

rules_and = pytest.mark.parametrize("rule", RULES)


def _differentiate(function, x, variables, error):
    """y = function(x) and the gradients of <y, error> for x and the variables."""
    x = tf.convert_to_tensor(x)
    sources = [x, *(v.value for v in variables)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        loss = tf.reduce_sum(y * error(y.shape))
    return [value.numpy() for value in (y, *tape.gradient(loss, sources))]


def _layer_against_oracle(layer, rule, x, forward, backward, channels_first=False):
    """Runs a float64 layer whose weights have moved since the start.

    `forward(x, kernel, bias)` and `backward(error, x, B)` are the oracle's, channels
    last.
    """
    random = np.random.default_rng(2)
    to_layer = (lambda a: np.moveaxis(a, -1, 1)) if channels_first else np.asarray
    to_oracle = (lambda a: np.moveaxis(a, 1, -1)) if channels_first else np.asarray
    layer.build(to_layer(x).shape)
    start = layer.kernel.numpy()
    for variable in layer.trainable_variables:
        variable.assign_add(random.normal(size=variable.shape) * 0.1)

    upstream = []

    def error(shape):
        upstream.append(random.normal(size=shape))
        return upstream[-1]

    y, dx, *d_weights = _differentiate(
        layer, to_layer(x), layer.trainable_variables, error
    )
    stored = helpers.stored(layer)
    kernel = layer.kernel.numpy()
    feedback = RULES[rule](kernel, start, stored)
    assert (relative := helpers.relative_error(feedback, kernel)) == 0 or relative > 0.1
    bias = layer.bias.numpy() if layer.use_bias else 0.0
    expected_dx, *expected = backward(to_oracle(upstream[0]), x, feedback)
    assert_close(to_oracle(y), forward(x, kernel, bias))
    assert_close(to_oracle(dx), expected_dx)
    expected = expected[: 1 + layer.use_bias]
    if rule in LEARNED:
        expected += LEARNED[rule](expected[0], stored).values()
    for actual, wanted in zip(d_weights, expected, strict=True):
        assert_close(actual, wanted)
    if rule == "kolen_pollack":
        np.testing.assert_array_equal(d_weights[-1], d_weights[0])
    helpers.assert_backward_kernel(layer, rule, kernel, start, stored)


def test_linear_is_the_fan_out_of_its_formula():
    random = np.random.default_rng(0)
    x, error = random.normal(size=(4, 3)), random.normal(size=(4, 2))
    kernel, feedback = random.normal(size=(2, 3, 2))
    inputs, w, b = (tf.constant(a) for a in (x, kernel, feedback))
    with tf.GradientTape() as tape:
        tape.watch([inputs, w, b])
        y = gradients.linear(ops.matmul, inputs, w, b)
    dx, dw, db = tape.gradient(y, [inputs, w, b], output_gradients=tf.constant(error))
    assert_close(y, x @ kernel)
    assert_close(dx, error @ feedback.T)
    assert_close(dw, x.T @ error)
    # Nothing to B: the tape reports the absence of a path.
    assert db is None


def test_linear_with_the_kernel_itself_is_the_bare_operation():
    calls = []
    kernel = tf.ones((3, 2))

    def op(inputs, kernel):
        calls.append(kernel)
        return ops.matmul(inputs, kernel)

    gradients.linear(op, tf.ones((4, 3)), kernel, kernel)
    assert len(calls) == 1 and calls[0] is kernel


@rules_and
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (2, 3, 4, 3)])
def test_dense_equals_oracle(shape, use_bias, rule):
    layer = layers.FeedbackDense(5, rule=rule, use_bias=use_bias, dtype="float64")
    x = np.random.default_rng(1).normal(size=shape)
    _layer_against_oracle(layer, rule, x, helpers.dense, helpers.dense_gradients)


# Per rank: the layer, an input's spatial shape and kernel size with odd and even
# numbers, and the steps, unequal along the axes. No spatial size equals the number of
# filters: keras.ops.add would then add a channels_first bias along the wrong axis.
_RANKS = {
    1: (layers.FeedbackConv1D, (8,), (3,), (2,), (2,)),
    2: (layers.FeedbackConv2D, (6, 7), (3, 2), (2, 3), (1, 2)),
    3: (layers.FeedbackConv3D, (5, 4, 6), (2, 3, 2), (2, 1, 3), (2, 1, 2)),
}
_STEPS = ("plain", "strided", "dilated")
_PLAIN = [
    (rank, padding, step, 1, bias, "channels_last")
    for rank in _RANKS
    for padding, step, bias in itertools.product(
        ("valid", "same", "causal") if rank == 1 else ("valid", "same"),
        _STEPS,
        (True, False),
    )
]
# Keras compiles these on the CPU, 0.1 s to 0.3 s an operation, so not the full product.
_COMPILED = [
    (1, "causal", "strided", 2, False, "channels_last"),
    (2, "same", "strided", 2, True, "channels_last"),
    (2, "valid", "dilated", 4, False, "channels_last"),
    (3, "same", "strided", 2, True, "channels_last"),
    (2, "same", "strided", 2, True, "channels_first"),
    (3, "valid", "plain", 1, True, "channels_first"),
]
# TensorFlow has no ungrouped channels_first convolution of rank 1 and 2 on the CPU.
_NEEDS_GPU = [
    (1, "causal", "plain", 1, True, "channels_first"),
    (2, "same", "strided", 1, True, "channels_first"),
]


# Every rule on one convolution of each rank, and one of each kind on all.
_WHOLE_TABLE = [(rank, "same", "strided", 1, True, "channels_last") for rank in _RANKS]


def _of_cell(cell):
    """The rules that stand for the others: two that compile, all kinds with a bias."""
    if cell in _COMPILED:
        return ("fa", "pfa")
    return KINDS if cell[4] else ("fa",)


@pytest.mark.parametrize(
    ("rank", "padding", "step", "groups", "use_bias", "data_format", "rule"),
    [
        standing(*cell, rule, stands=cell in _WHOLE_TABLE or rule in _of_cell(cell))
        for cell in _PLAIN + _COMPILED + _NEEDS_GPU
        for rule in RULES
    ],
)
def test_convolution_equals_oracle(
    rank, padding, step, groups, use_bias, data_format, rule
):
    layer_class, shape, size, strides, dilation = _RANKS[rank]
    ones = (1,) * rank
    oracle = Convolution(
        strides if step == "strided" else ones,
        dilation if step == "dilated" else ones,
        padding,
        groups,
    )
    layer = layer_class(
        12,
        size,
        strides=oracle.strides,
        dilation_rate=oracle.dilation,
        padding=padding,
        groups=groups,
        use_bias=use_bias,
        data_format=data_format,
        rule=rule,
        dtype="float64",
    )
    x = np.random.default_rng(1).normal(size=(2, *shape, 4))
    channels_first = data_format == "channels_first"
    try:
        _layer_against_oracle(
            layer, rule, x, oracle.forward, oracle.gradients, channels_first
        )
    except tf.errors.UnimplementedError as error:
        assert channels_first and "only supports the NHWC tensor format" in str(error)
        pytest.skip("TensorFlow has no channels_first Conv2D on this device")


@pytest.mark.parametrize(
    ("case", "rule", "compiled"),
    [
        standing(
            *cell.values,
            compiled,
            stands=not cell.marks
            and compiled == "jit"
            and (cell.values[0] == "conv2d" or cell.values[1] == "fa"),
        )
        for compiled in ("graph", "jit")
        for cell in CELLS
    ],
)
def test_compiled_gradients_equal_eager(case, compiled, rule):
    layer = LAYERS[case].make(rule, dtype="float64")
    x = tf.constant(LAYERS[case].inputs("float64"))
    layer.build(x.shape)
    layer.kernel.assign(layer.kernel * 1.5)

    def run():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.square(y))
        return (y, *tape.gradient(loss, [x, layer.kernel.value, layer.bias.value]))

    eager = run()
    for actual, expected in zip(
        tf.function(run, jit_compile=compiled == "jit")(), eager, strict=True
    ):
        assert_close(actual, expected)


@rules_and
@pytest.mark.parametrize("case", LAYERS)
def test_a_graph_reads_the_kernel_once(case, rule):
    """A second reading, for sign-FA's B, could come after the optimizer's update."""
    layer = LAYERS[case].make(rule)
    x = tf.constant(LAYERS[case].inputs())
    layer.build(x.shape)

    @tf.function
    def gradients_of(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, [x, layer.kernel.value])

    graph = gradients_of.get_concrete_function(x).graph
    (handle,) = [
        inner for outer, inner in graph.captures if outer is layer.kernel.value.handle
    ]
    readers = [
        op for op in graph.get_operations() if any(i is handle for i in op.inputs)
    ]
    assert [op.type for op in readers] == ["ReadVariableOp"]


def _ten_steps(layer, x, mode):
    """y and the gradients before, and all weights after, ten steps of SGD."""
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(layer.trainable_variables)

    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_mean(tf.square(y - 1.0))
        dx, *d_weights = tape.gradient(
            loss, [x, *(v.value for v in layer.trainable_variables)]
        )
        optimizer.apply(d_weights, layer.trainable_variables)
        return [y, dx, *d_weights]

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    first = step()
    for _ in range(9):
        step()
    return [np.asarray(v) for v in (*first, *layer.trainable_variables)]


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize("case", LAYERS)
def test_backprop_is_stock_keras_bit_for_bit(case, mode):
    x = tf.constant(LAYERS[case].inputs())
    layer = LAYERS[case].make("backprop", activation="relu")
    stock = LAYERS[case].make_stock(activation="relu")
    layer.build(x.shape)
    stock.build(x.shape)
    stock.set_weights(layer.get_weights())
    start = layer.kernel.numpy()
    assert len(layer.weights) == len(stock.weights)
    for actual, expected in zip(
        _ten_steps(layer, x, mode), _ten_steps(stock, x, mode), strict=True
    ):
        assert np.array_equal(actual, expected)
    assert not np.array_equal(layer.kernel, start)


@pytest.mark.parametrize("arguments", [{"groups": 2}, {"padding": "causal"}])
def test_backprop_is_stock_keras_for_grouped_and_causal(arguments):
    case = LAYERS["conv1d"]
    x = tf.constant(case.inputs())
    layer, stock = case.make("backprop", **arguments), case.make_stock(**arguments)
    layer.build(x.shape)
    stock.build(x.shape)
    stock.set_weights(layer.get_weights())
    for actual, expected in zip(
        _ten_steps(layer, x, "graph"), _ten_steps(stock, x, "graph"), strict=True
    ):
        assert np.array_equal(actual, expected)


# Forward, kernel gradient and, but for the first layer, input gradient: 3L - 1.
_NETWORKS = {
    "mlp": (lambda rule: models.mlp((6,), (7, 5), 3, rule=rule), 8),
    "lenet": (lambda rule: models.lenet((18, 18, 3), 3, rule=rule), 14),
}


def _training_gradients(network, rule, **kwargs):
    """A compiled function that returns all weight gradients, and arguments for it."""
    model = _NETWORKS[network][0](rule)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    x = tf.random.normal((4, *model.input_shape[1:]))
    return tf.function(step, **kwargs), (x, tf.constant([0, 1, 2, 0]))


def _products(graphs):
    """Matrix products and convolutions in the nodes of some graphs.

    Their names say what computes them and what is fused with them, such as
    _MklNativeConv2DBackpropFilterWithBias where oneDNN is on.
    """
    return sum(
        "MatMul" in node.op or "Conv2D" in node.op
        for graph in graphs
        for node in graph.node
    )


_FREE = [rule for rule in RULES if rule not in DEAR]


@pytest.mark.parametrize("rule", _FREE)
@pytest.mark.parametrize("network", _NETWORKS)
def test_compiled_step_has_backprops_number_of_products(network, rule):
    step, arguments = _training_gradients(network, rule)
    context.enable_run_metadata()
    try:
        step(*arguments)
        graphs = context.export_run_metadata().function_graphs
    finally:
        context.disable_run_metadata()
    number = _NETWORKS[network][1]
    traced = _products(graph.pre_optimization_graph for graph in graphs)
    executed = _products(p for graph in graphs for p in graph.partition_graphs)
    # The second forward product is in the trace, and not in what runs.
    assert traced > number or rule == "backprop"
    assert executed == number


@pytest.mark.parametrize("rule", _FREE)
def test_xla_step_has_backprops_number_of_products(rule):
    step, arguments = _training_gradients("mlp", rule, jit_compile=True)
    hlo = step.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    assert len(re.findall(r" dot\(", hlo)) == _NETWORKS["mlp"][1]


# --- What the gradients are not: derivatives of something ---


def _two_layers(rule):
    """A float64 network of two layers, and its inputs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="float64"),
            layers.FeedbackDense(4, rule=rule, dtype="float64"),
            keras.layers.Activation("tanh", dtype="float64"),
            layers.FeedbackDense(2, rule=rule, dtype="float64"),
        ]
    )
    return model, tf.constant(np.random.default_rng(0).normal(size=(5, 3)))


def _in_eager_mode(function):
    return function


MODES = {
    "eager": _in_eager_mode,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}
in_every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("mapped", "rule"),
    [
        standing(mapped, rule, stands=rule == "fa")
        for mapped in (tf.vectorized_map, ops.vectorized_map)
        for rule in KINDS
    ],
)
def test_a_vectorized_map_keeps_the_rule(rule, cached, mapped):
    model, x = _two_layers(rule)
    kernels = [layer.kernel.value for layer in model.layers if layer.weights]

    def loss(row):
        return tf.reduce_sum(model(row[None]) ** 2)

    def mapped_gradients():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(mapped(of_one, x))
        return tape.gradient(total, kernels)

    def gradients_of_one(row):
        with tf.GradientTape() as tape:
            value = of_one(row)
        return tape.gradient(value, kernels)

    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.map_fn(loss, x))
    expected = tape.gradient(total, kernels)
    of_one = loss
    if cached:
        # Traced before the map, when nothing tells that one will come.
        of_one = tf.function(loss)
        of_one(x[0])
    for gradient in (mapped_gradients(), [g for g in mapped(gradients_of_one, x)]):
        for kernel, values in zip(expected, gradient, strict=True):
            if len(values.shape) > 2:  # one for each example
                values = tf.reduce_sum(values, axis=0)
            assert_close(values, kernel)
    if not cached:
        # Of a cached function TensorFlow itself finds no gradient in a graph.
        for kernel, values in zip(
            expected, tf.function(mapped_gradients)(), strict=True
        ):
            assert_close(values, kernel)


@rules_and
def test_a_vectorized_map_over_kernels(rule):
    """Kernels that differ from example to example beside inputs that do not."""
    x = tf.constant(np.random.default_rng(1).normal(size=(2, 3)))
    random = np.random.default_rng(2).normal(size=(6, 3, 4))
    kernels, backward = tf.constant(random), tf.constant(random[0])

    def output(kernel):
        b = kernel if rule == "backprop" else backward
        return tf.reduce_sum(gradients.linear(tf.matmul, x, kernel, b) ** 2)

    derivatives = []
    for mapped in (tf.vectorized_map, tf.map_fn):
        with tf.GradientTape() as tape:
            tape.watch([kernels, x])
            total = tf.reduce_sum(mapped(output, kernels))
        derivatives.append(tape.gradient(total, [kernels, x]))
    for actual, expected in zip(*derivatives, strict=True):
        assert_close(actual, expected)


@in_every_mode
@pytest.mark.parametrize(
    "rule", [standing(r, stands=r in KINDS) for r in RULES if r != "backprop"]
)
def test_second_derivatives_are_refused(rule, mode):
    model, x = _two_layers(rule)
    kernels = [layer.kernel.value for layer in model.layers if layer.weights]

    def penalty(held=lambda gradients: gradients):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(model(x) ** 2)
            step = held(inner.gradient(loss, kernels))
            total = sum(tf.reduce_sum(gradient**2) for gradient in step)
            total += tf.reduce_sum(model(x) ** 2)
        return outer.gradient(total, [x, *kernels])

    with pytest.raises(NotImplementedError, match=r"second derivative.*stop_gradient"):
        mode(penalty)()
    # The remedy that it names.
    held = mode(lambda: penalty(lambda step: [tf.stop_gradient(g) for g in step]))()
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(model(x) ** 2)
    for actual, expected in zip(held, tape.gradient(loss, [x, *kernels]), strict=True):
        assert_close(actual, expected)


def test_second_derivatives_inside_a_vectorized_map_are_refused():
    model, x = _two_layers("fa")

    def squared_gradient(row):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(row[None]) ** 2)
        return tf.reduce_sum(tape.gradient(loss, model.layers[0].kernel.value) ** 2)

    # TensorFlow makes the backward pass of a compiled map when a tape sees it called.
    with (
        pytest.raises(NotImplementedError, match="second derivative"),
        tf.GradientTape() as tape,
    ):
        tape.watch(x)
        total = tf.reduce_sum(tf.vectorized_map(squared_gradient, x))
        tape.gradient(total, x)


@pytest.mark.parametrize("mode", [_in_eager_mode, tf.function], ids=["eager", "graph"])
def test_forward_mode_is_refused(mode):
    model, x = _two_layers("sign_fa")

    def forward():
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = model(x)
        return accumulator.jvp(y)

    with pytest.raises(NotImplementedError, match="forward-mode"):
        mode(forward)()


@in_every_mode
def test_backpropagation_has_second_derivatives(mode):
    model, x = _two_layers("backprop")

    def penalty():
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(model(x) ** 2)
            total = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        return outer.gradient(total, x)

    assert np.abs(mode(penalty)()).max() > 1e-3


@rules_and
def test_jacobians_follow_the_rule(rule):
    model, x = _two_layers(rule)
    kernel = model.layers[0].kernel.value

    def jacobian():
        with tf.GradientTape(persistent=True) as tape:
            y = tf.reduce_sum(model(x), axis=0)
            parts = [y[i] for i in range(2)]
        return tape.jacobian(y, kernel), [tape.gradient(p, kernel) for p in parts]

    for mode in (_in_eager_mode, tf.function):
        whole, parts = mode(jacobian)()
        assert_close(whole, tf.stack(parts))
