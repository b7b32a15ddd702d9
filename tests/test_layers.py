"""The feedback layers as Keras layers: rules x layers x properties.

One test a property, each over every rule and, where it matters, every layer of the
tables in `helpers`; a new rule or layer is a new row there. Gradients are in
test_gradients.py, channels_first among them; the rules themselves in test_rules.py.
"""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CELLS,
    KINDS,
    LAYERS,
    LEARNED,
    MOVING,
    RULES,
    assert_close,
    standing,
)
from keras import ops

from keras_fa import models, rules
from keras_fa.layers import (
    FeedbackConv2D,
    FeedbackDense,
    FeedbackMixin,
    feedback_layers,
    feedback_variables,
    forward_variables,
)

every_rule = pytest.mark.parametrize("rule", RULES)
every_layer = pytest.mark.parametrize("case", LAYERS)
every_cell = pytest.mark.parametrize(("case", "rule"), CELLS)
# What a dense layer shows too where a convolution does, for tests that take their time.
every_cell_once = pytest.mark.parametrize(
    ("case", "rule"),
    [
        standing(
            *cell.values,
            stands=not cell.marks and ("conv2d" in cell.values or "fa" in cell.values),
        )
        for cell in CELLS
    ],
)

# Keras hands its variables to np.array as NumPy 2 no longer likes; any stock model that
# is saved gives the warning.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

# Steps run without a graph where compilation is not the subject: it costs a second a
# model, and test_gradients.py shows that compiled and eager gradients agree.
EAGER = {"run_eagerly": True}


def _network(case, rule, dtype="float32", **kwargs):
    """The layer between an input and a small head of the same rule."""
    return keras.Sequential(
        [
            keras.Input(LAYERS[case].input_shape),
            LAYERS[case].make(rule, dtype=dtype, **kwargs),
            keras.layers.LeakyReLU(dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            FeedbackDense(3, rule=rule, dtype=dtype),
        ]
    )


def _targets(n):
    return np.random.default_rng(1).normal(size=(n, 3)).astype("float32")


def _compile(model, **kwargs):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, "mse", **{"jit_compile": False, **kwargs})
    return model


def _train(model, case, steps=2):
    x = LAYERS[case].inputs()
    for _ in range(steps):
        model.train_on_batch(x, _targets(len(x)))
    return model


def _assert_same_variables(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e, err_msg=e.path)


def _input_gradient(layer, x):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return tape.gradient(y, x)


# --- What is a weight, what is trained ---


@every_cell
def test_feedback_is_stored_and_not_trained(case, rule):
    layer = LAYERS[case].make(rule)
    layer.build((None, *LAYERS[case].input_shape))
    slots = layer.rule.slots(tuple(layer.kernel.shape))
    learned = [name for name, slot in slots.items() if slot.learned]
    kept = [name for name in slots if name not in learned]
    assert [v.name for v in layer.trainable_weights] == ["kernel", "bias", *learned]
    assert [v.name for v in layer.non_trainable_weights] == kept
    assert (layer.feedback is not None) == ("feedback" in slots)
    assert layer.backward_kernel().shape == layer.kernel.shape
    assert [v.name for v in forward_variables(layer)] == ["kernel", "bias"]
    expected = {
        **{"fa": ["feedback"], "ada_fa": ["feedback"], "frsf": ["magnitude"]},
        **{"pfa": ["P"], "pfa_short": ["offset", "gram", "rest"]},
    }
    assert kept == expected.get(rule, list(MOVING.get(rule, ())))
    assert bool(learned) == (rule in LEARNED)


@every_cell_once
def test_training_changes_the_weights_and_not_the_feedback(case, rule):
    model = _compile(_network(case, rule), **EAGER)
    layer = model.layers[0]
    kernel = layer.kernel.numpy()
    stored = helpers.stored(layer)
    _train(model, case, steps=1)
    assert not np.array_equal(layer.kernel, kernel)
    learned = [name for name, s in layer.rule.slots((1, 1)).items() if s.learned]
    for name, values in helpers.stored(layer).items():
        # Of the short form decay alone moves the share.
        moves = name in (*learned, *MOVING.get(rule, ())) and name != "share"
        assert np.array_equal(values, stored[name]) != moves


@every_cell
def test_forward_is_stock_keras(case, rule):
    layer = LAYERS[case].make(rule, bias_initializer="random_normal")
    stock = LAYERS[case].make_stock()
    x = LAYERS[case].inputs()
    layer.build(x.shape)
    stock.build(x.shape)
    stock.set_weights([layer.kernel, layer.bias])
    np.testing.assert_array_equal(layer(x), stock(x))
    assert layer.compute_output_shape(x.shape) == stock.compute_output_shape(x.shape)


# --- Dtypes ---


@every_cell_once
@pytest.mark.parametrize(
    ("policy", "variable", "compute", "tolerance"),
    [
        # Measured against float64, the worst of the table: 2.4e-7, 0, 1.6e-2, 2.4e-3.
        ("float32", "float32", "float32", 1e-6),
        ("float64", "float64", "float64", 1e-12),
        ("mixed_bfloat16", "float32", "bfloat16", 3e-2),
        ("mixed_float16", "float32", "float16", 5e-3),
    ],
)
def test_dtype_policy(case, rule, policy, variable, compute, tolerance):
    x = LAYERS[case].inputs("float64")
    layer = LAYERS[case].make(rule, dtype=policy)
    exact = LAYERS[case].make(rule, dtype="float64")
    layer.build(x.shape)
    exact.build(x.shape)
    for to, source in zip(exact.variables, layer.variables, strict=True):
        assert source.dtype == ("int32" if source.name == "noise" else variable)
        to.assign(source)
    actual = _input_gradient(layer, tf.cast(x, compute))
    assert actual.dtype == compute
    assert layer(x).dtype == compute
    assert_close(tf.cast(actual, "float64"), _input_gradient(exact, x), tolerance)


# --- Data format ---


def test_data_format_follows_the_keras_setting():
    keras.config.set_image_data_format("channels_first")
    layer = FeedbackConv2D(4, 3)
    layer.build((None, 2, 8, 9))
    assert layer.data_format == "channels_first"
    assert layer.feedback.shape == layer.kernel.shape == (3, 3, 2, 4)


# --- Building: wherever Keras decides to build ---


class Outer(keras.layers.Layer):
    """A layer that leaves the building of the one inside to Keras."""

    def __init__(self, rule, **kwargs):
        super().__init__(**kwargs)
        self.inner = FeedbackDense(4, rule=rule)

    def call(self, inputs):
        return self.inner(inputs)


class Subclassed(keras.Model):
    def __init__(self, rule):
        super().__init__()
        self.inner = FeedbackDense(4, rule=rule)
        self.head = FeedbackDense(3, rule=rule)

    def call(self, inputs):
        return self.head(self.inner(inputs))


def _fit_unbuilt(model):
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    x = LAYERS["dense"].inputs()
    model.fit(x, _targets(len(x)), verbose=0)
    return feedback_layers(model)[0]


def _in_a_trace(rule):
    layer = FeedbackDense(4, rule=rule)
    tf.function(lambda x: layer(x))(LAYERS["dense"].inputs())
    return layer


_BUILDS = {
    "sequential": lambda rule: _fit_unbuilt(
        keras.Sequential([FeedbackDense(4, rule=rule), FeedbackDense(3, rule=rule)])
    ),
    "subclassed": lambda rule: _fit_unbuilt(Subclassed(rule)),
    "nested": lambda rule: feedback_layers(
        keras.Sequential([keras.Input((5,)), Outer(rule)])
    )[0],
    "tf.function": _in_a_trace,
}


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        standing(
            build,
            rule,
            stands=(build == "subclassed" and rule == "pfa") or rule == "fa",
        )
        for build in _BUILDS
        for rule in RULES
    ],
)
def test_feedback_when_keras_builds_the_layer_late(build, rule):
    layer = _BUILDS[build](rule)
    kernel = layer.kernel.numpy()
    stored = helpers.stored(layer)
    helpers.assert_backward_kernel(layer, rule, kernel, kernel, stored)
    if rule == "fa":
        # A Glorot draw of 20 numbers that is not the kernel.
        assert not np.array_equal(stored["feedback"], kernel)
        assert len(np.unique(stored["feedback"])) == 20


# --- Configs, files, clones ---


@every_cell
def test_config_round_trip(case, rule):
    layer = LAYERS[case].make(rule, activation="relu", use_bias=False, name="it")
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert type(again.rule) is type(layer.rule)
    restored = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(restored) is type(layer) and restored.get_config() == config


@every_layer
def test_config_holds_the_arguments_of_the_rule(case):
    layer = LAYERS[case].make(rules.FeedbackAlignment("he_normal", seed=3))
    again = type(layer).from_config(layer.get_config())
    assert isinstance(again.rule.initializer, keras.initializers.HeNormal)
    assert again.rule.seed == 3
    scaled = LAYERS[case].make(rules.SignFeedbackAlignment(0.7))
    assert type(scaled).from_config(scaled.get_config()).rule.scale == 0.7


@every_cell_once
def test_saved_model_trains_on_bit_for_bit(case, rule, tmp_path):
    model = _train(_compile(_network(case, rule), **EAGER), case)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [type(layer.rule) for layer in feedback_layers(loaded)] == [
        type(layer.rule) for layer in feedback_layers(model)
    ]
    _assert_same_variables(loaded.variables, model.variables)
    _assert_same_variables(loaded.optimizer.variables, model.optimizer.variables)
    loaded.run_eagerly = True
    before = model.layers[0].kernel.numpy()
    _train(model, case)
    _train(loaded, case)
    _assert_same_variables(loaded.variables, model.variables)
    _assert_same_variables(loaded.optimizer.variables, model.optimizer.variables)
    assert not np.array_equal(model.layers[0].kernel, before)


@every_cell_once
def test_weights_file_round_trip(case, rule, tmp_path):
    model, other = _network(case, rule), _network(case, rule)
    model.layers[0].kernel.assign_add(ops.ones_like(model.layers[0].kernel))
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    _assert_same_variables(other.variables, model.variables)


@every_cell
def test_clone_has_the_rule_and_its_own_feedback(case, rule):
    model = _network(case, rule)
    clone = keras.models.clone_model(model)
    layer, copy = model.layers[0], clone.layers[0]
    assert type(copy.rule) is type(layer.rule)
    assert copy.kernel is not layer.kernel
    kernel = copy.kernel.numpy()
    stored = helpers.stored(copy)
    helpers.assert_backward_kernel(copy, rule, kernel, kernel, stored)
    if rule == "fa":
        assert not np.array_equal(stored["feedback"], layer.feedback)
        assert not np.array_equal(stored["feedback"], kernel)


def test_clone_of_a_seeded_model_draws_the_same_feedback():
    rule = rules.FeedbackAlignment(seed=3)
    model = _network("dense", rule)
    first, second = feedback_layers(model)
    clone = keras.models.clone_model(model)
    for layer, copy in zip((first, second), feedback_layers(clone), strict=True):
        np.testing.assert_array_equal(copy.feedback, layer.feedback)


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        standing(case, rule, stands=rule in (KINDS if case == "dense" else ("fa",)))
        for case in ("dense", "conv2d")
        for rule in RULES
    ],
)
def test_export_serves_the_same_outputs(case, rule, tmp_path):
    model = _network(case, rule)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    x = LAYERS[case].inputs()
    # Measured: 0; float32, a graph against single operations.
    assert_close(served.serve(x), model(x), 1e-6)


# --- The other arguments of the Keras layers ---


@every_cell
def test_activation_regularizers_and_use_bias(case, rule):
    """Same outputs, losses and kernel gradient as the stock layer."""
    kwargs = {
        "activation": "tanh",
        "use_bias": False,
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "activity_regularizer": keras.regularizers.L1(0.2),
    }
    layer, stock = LAYERS[case].make(rule, **kwargs), LAYERS[case].make_stock(**kwargs)
    x = tf.constant(LAYERS[case].inputs())
    layer.build(x.shape)
    stock.build(x.shape)
    stock.set_weights([layer.kernel])
    assert layer.bias is None
    results = []
    for one in (layer, stock):
        with tf.GradientTape() as tape:
            y = one(x)
            loss = ops.sum(y) + sum(one.losses)
        # A learned B has the penalty's gradient, and not its value a second time.
        assert sum(np.asarray(penalty) != 0 for penalty in one.losses) == 2
        assert len(one.losses) == 2 + (one is layer and rule in LEARNED)
        results.append((y, loss, tape.gradient(loss, one.kernel.value)))
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected)


# The short form of product feedback refuses them, which its own tests see.
@pytest.mark.parametrize(
    ("case", "rule"), [cell for cell in CELLS if cell.values[1] != "pfa_short"]
)
def test_constraints_hold_after_a_step(case, rule):
    model = _network(
        case,
        rule,
        kernel_constraint=keras.constraints.NonNeg(),
        bias_constraint=keras.constraints.NonNeg(),
    )
    layer = model.layers[0]
    assert layer.kernel.numpy().min() < 0
    stored = helpers.stored(layer)
    _train(_compile(model, **EAGER), case, steps=1)
    assert layer.kernel.numpy().min() >= 0 and layer.bias.numpy().min() >= 0
    if rule in ("fa", "ada_fa"):
        # The constraint is the kernel's; B keeps its signs.
        np.testing.assert_array_equal(layer.feedback, stored["feedback"])
        assert stored["feedback"].min() < 0
    elif rule == "kolen_pollack":
        assert layer.feedback.numpy().min() >= 0


@every_cell_once
def test_lora(case, rule, tmp_path):
    """Frozen kernel, trained factors, and B in the input gradient all the same."""
    if rule in LEARNED:
        with pytest.raises(ValueError, match="LoRA freezes the kernel"):
            _network(case, rule, lora_rank=2)
        layer = _network(case, rule).layers[0]
        with pytest.raises(ValueError, match="LoRA freezes the kernel"):
            layer.enable_lora(2)
        return
    model = _compile(_network(case, rule, lora_rank=2), **EAGER)
    layer = model.layers[0]
    names = ["bias", "lora_kernel_a", "lora_kernel_b"]
    assert [v.name for v in layer.trainable_weights] == names
    start = np.asarray(layer.kernel)
    _train(model, case)
    stored = helpers.stored(layer)
    effective = np.asarray(layer.kernel)
    assert not np.array_equal(effective, start)
    np.testing.assert_array_equal(layer._kernel, start)
    helpers.assert_backward_kernel(layer, rule, effective, start, stored)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    _assert_same_variables(loaded.variables, model.variables)


@every_cell
def test_quantization_is_refused(case, rule):
    layer = LAYERS[case].make(rule)
    layer.build((None, *LAYERS[case].input_shape))
    with pytest.raises(NotImplementedError, match="cannot be quantized"):
        layer.quantize("int8")
    with pytest.raises(NotImplementedError, match="cannot be quantized"):
        LAYERS[case].make(rule, dtype="int8_from_float32")


@every_rule
def test_kernel_that_a_subclass_passes_on_is_used(rule):
    """Weight standardisation, the example in Keras's own documentation of the hook."""

    class Standardised(FeedbackConv2D):
        def convolution_op(self, inputs, kernel):
            kernel = kernel - ops.mean(kernel)
            return super().convolution_op(inputs, kernel)

    layer = Standardised(4, 3, rule=rule, use_bias=False)
    x = LAYERS["conv2d"].inputs()
    y = layer(x)
    kernel = layer.kernel.numpy()
    layer.kernel.assign_add(ops.ones_like(layer.kernel))
    # Measured: 2.7e-7, float32. The mean is subtracted, so the shift cannot be seen.
    assert_close(layer(x), y, 2e-6)
    assert_close(y, ops.conv(x, kernel - kernel.mean()), 2e-6)


def test_unknown_rule_is_refused_by_the_layer():
    with pytest.raises(ValueError, match="Unknown rule"):
        FeedbackDense(3, rule="random")


def test_rule_cannot_be_replaced_in_place():
    layer = FeedbackDense(3)
    with pytest.raises(AttributeError):
        layer.rule = "ada_fa"


def test_feedback_layers_finds_nested_ones_once_and_in_order():
    inner = keras.Sequential([keras.Input((4,)), FeedbackDense(4, name="b")])
    shared = FeedbackDense(4, name="c")
    inputs = keras.Input((5,))
    x = FeedbackDense(4, name="a")(inputs)
    outputs = keras.layers.Dense(2)(shared(shared(inner(x))))
    model = keras.Model(inputs, outputs)
    assert [layer.name for layer in feedback_layers(model)] == ["a", "b", "c"]
    assert feedback_layers(shared) == [shared]
    assert feedback_layers(keras.layers.Dense(2)) == []


# --- Layers of one's own ---


class Detour(FeedbackMixin, keras.layers.DepthwiseConv2D):
    """Goes past the rule: its stock `call` computes the product by itself."""


class OwnDense(FeedbackMixin, keras.layers.Dense):
    def call(self, inputs):
        return self.linear(keras.ops.matmul, inputs)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_product_that_goes_past_the_rule_is_refused(compiled):
    x = tf.ones((1, 4, 4, 2))
    layer = Detour(3, rule="backprop")
    layer(x)  # Is backpropagation, as it says.
    layer = Detour(3, rule="sign_fa")
    call = tf.function(layer) if compiled else layer
    with pytest.raises(TypeError, match="nothing in its call went through it"):
        call(x)
    # Nothing is left over from the failed call.
    assert OwnDense(2, rule="sign_fa")(tf.ones((1, 3))).shape == (1, 2)


def test_the_guard_is_not_fooled_by_an_inner_layer():
    class Holder(FeedbackMixin, keras.layers.Dense):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.inner = OwnDense(self.units, rule="fa")

        def call(self, inputs):
            return self.inner(inputs)

    with pytest.raises(TypeError, match=r"Holder.*went through it"):
        Holder(2, rule="fa")(tf.ones((1, 3)))


def test_the_guard_lets_symbols_pass():
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, Detour(3, rule="sign_fa")(inputs))
    with pytest.raises(TypeError, match="nothing in its call"):
        model(tf.ones((1, 4, 4, 2)))


def test_forward_variables_are_the_weights_without_the_feedback():
    model = models.mlp((4,), (3,), 2, rule="fa")
    first, second = feedback_layers(model)
    assert [id(v) for v in feedback_variables(model)] == [
        id(first.feedback),
        id(second.feedback),
    ]
    assert [v.path for v in forward_variables(model)] == [
        v.path for v in model.trainable_variables
    ]
    first.trainable = False
    assert len(forward_variables(model)) == 2
