"""convert and to_stock: nets of every kind, what they keep, files, rules by layer."""

import os
import pathlib
import subprocess
import sys
import textwrap

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standing
from keras import layers

import keras_fa
from keras_fa import models, rules
from keras_fa.lab import build
from keras_fa.layers import COUNTERPARTS, FeedbackMixin, feedback_layers


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Layers in attributes and in a list, built in the first call."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.mix = layers.Dense(units, name="mix")
        self.steps = [layers.Dense(units, activation="relu") for _ in range(2)]

    def build(self, input_shape):
        self.mix.build(input_shape)
        for step in self.steps:
            step.build((*input_shape[:-1], self.units))

    def call(self, x):
        x = self.mix(x)
        for step in self.steps:
            x = x + step(x)
        return x

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(5)
        self.norm = layers.LayerNormalization()
        self.head = layers.Dense(3, name="head")

    def call(self, x, training=None):
        return self.head(self.norm(self.block(x)))


@keras.saving.register_keras_serializable("tests")
class Mixer(keras.layers.Layer):
    """Attention, which makes its projections late, and a loop, within another layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 3)
        self.loop = layers.LSTM(6)

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.loop.build(input_shape)

    def call(self, inputs):
        return self.loop(inputs + self.attention(inputs, inputs))


@keras.saving.register_keras_serializable("tests")
class Late(layers.Layer):
    """A layer that makes what it holds when it is built."""

    def build(self, input_shape):
        self.inner = layers.Dense(input_shape[-1], activation="relu", name="inner")
        self.inner.build(input_shape)

    def call(self, x):
        return x + self.inner(x)


@keras.saving.register_keras_serializable("tests")
class BuildsItself(keras.Model):
    """A model that a file builds without calling any layer of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.late, self.head = Late(), layers.Dense(3)

    def build(self, input_shape):
        self.late.build(input_shape)
        self.head.build(input_shape)

    def call(self, x, training=None):
        return self.head(self.late(x))


@keras.saving.register_keras_serializable("tests")
class OwnStep(keras.Model):
    def train_step(self, data):
        return {"own": tf.constant(7.0), **super().train_step(data)}


def _sequential(*parts, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *parts])


def _deep():
    innermost = keras.Sequential([layers.Dense(5), layers.BatchNormalization()])
    inner = keras.Sequential([layers.Dense(5, activation="relu"), innermost])
    return _sequential(inner, layers.Dropout(0.5, seed=3), layers.Dense(3))


def _shared():
    shared = layers.Dense(4, name="shared")
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    x = layers.Concatenate()([shared(shared(one)), shared(two)])
    return keras.Model([one, two], layers.Dense(3, name="head")(x))


def _wrapped():
    return _sequential(
        layers.TimeDistributed(layers.Dense(4)),
        layers.Conv1D(4, 3, padding="causal"),
        layers.Flatten(),
        layers.Dense(3),
        shape=(5, 2),
    )


def _own_step():
    inputs = keras.Input((6,))
    return OwnStep(inputs, layers.Dense(3)(layers.Dense(5, activation="relu")(inputs)))


def _named_outputs():
    inputs = keras.Input((6,))
    x = layers.Dense(5, activation="relu")(inputs)
    outputs = {"a": layers.Dense(3, name="a")(x), "b": layers.Dense(2, name="b")(x)}
    return keras.Model(inputs, outputs)


def _arithmetic():
    """Keras functions between the layers."""
    inputs = keras.Input((6,))
    x = layers.Dense(5)(inputs) * 2.0 + 1.0
    return keras.Model(inputs, layers.Dense(3)(keras.ops.relu(x)))


def _stateful():
    inputs = keras.Input(batch_shape=(4, 5, 2))
    x = layers.SimpleRNN(4, stateful=True)(layers.Dense(3)(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


def _adapted():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(294, 5, (50, 6)))
    return _sequential(normalization, layers.Dense(3))


def _lambda():
    return _sequential(
        layers.Lambda(lambda x: keras.ops.relu(x), output_shape=(6,)), layers.Dense(3)
    )


def _subclassed():
    model = Subclassed()
    model(np.ones((2, 6), "float32"))
    return model


def _builds_itself():
    model = BuildsItself()
    model(np.ones((2, 6), "float32"))
    return model


def _lora():
    model = _sequential(layers.Dense(5, activation="relu"), layers.Dense(3))
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign_add(np.ones((2, 5)))
    return model


def _attention():
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = layers.GroupQueryAttention(3, 2, 1, use_gate=True)(x, x)
    return keras.Model(inputs, layers.Dense(3)(x[:, 0]))


def _recurrent():
    return _sequential(
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.RNN([layers.GRUCell(3), layers.LSTMCell(4)], return_sequences=True),
        layers.GRU(4),
        layers.Dense(3),
        shape=(5, 2),
    )


NETS = {
    "attention": _attention,
    "recurrent": _recurrent,
    "mixer": lambda: _sequential(Mixer(), layers.Dense(3), shape=(5, 6)),
    "deep": _deep,
    "shared": _shared,
    "wrapped": _wrapped,
    "own_step": _own_step,
    "named_outputs": _named_outputs,
    "arithmetic": _arithmetic,
    "stateful": _stateful,
    "adapted": _adapted,
    "lambda": _lambda,
    "block": lambda: _sequential(Block(5), layers.Dense(3)),
    "subclassed": _subclassed,
    "builds_itself": _builds_itself,
    "lora": _lora,
    "mixed": lambda: _sequential(
        layers.Dense(5, dtype="mixed_bfloat16"), layers.Dense(3)
    ),
}
UNLIKE = ("shared", "own_step", "stateful", "subclassed", "recurrent", "mixed")
every_net = pytest.mark.parametrize("net", NETS)


def _inputs(model):
    random = np.random.default_rng(1)
    if getattr(model, "inputs", None) is None:
        return random.normal(size=(4, 6)).astype("float32")
    values = [
        random.normal(size=(4, *x.shape[1:])).astype("float32") for x in model.inputs
    ]
    return values[0] if len(values) == 1 else values


def _assert_same(one, other, x, **kwargs):
    keras.tree.map_structure(
        np.testing.assert_array_equal, one(x, **kwargs), other(x, **kwargs)
    )


def _stock_layers(model):
    """The layers with kernels that have a counterpart."""
    return [
        x
        for x in keras_fa._keras.layers_of(model)
        if issubclass(COUNTERPARTS.get(type(x), object), FeedbackMixin)
    ]


def _moved(model):
    """A model whose weights and seeds are not those of its start."""
    random = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign_add(0.1 * random.normal(size=variable.shape))
    return model


# --- What conversion keeps ---


@every_net
@pytest.mark.parametrize("rule", ["fa", standing("sign_fa", stands=False)])
def test_predictions_are_kept_there_and_back(net, rule):
    model = _moved(NETS[net]())
    before = [v.numpy() for v in model.variables]
    number = len(_stock_layers(model))
    new, report = keras_fa.convert(model, rule)
    assert len(report.converted) == len(feedback_layers(new)) == number > 0
    assert {type(v.rule) for v in feedback_layers(new)} == {type(rules.get(rule))}
    assert isinstance(new, type(model)) and new.name == model.name
    # Attention and recurrent layers have classes of their own, which hold their W.
    held = {getattr(v, "stock_class", None) for v in keras_fa._keras.layers_of(new)}
    assert not held & COUNTERPARTS.keys()
    back = keras_fa.to_stock(new)
    assert not feedback_layers(back) and not feedback_layers(model)
    assert [type(v) for v in keras_fa._keras.layers_of(back)] == [
        type(v) for v in keras_fa._keras.layers_of(model)
    ]
    spare, _ = keras_fa.convert(model, rule)
    for variable in spare.variables:
        variable.assign_add(keras.ops.ones_like(variable))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    x = _inputs(model)
    # Once: a stateful model moves on.
    expected = model(x)
    for other in (new, back):
        assert not other.compiled
        keras.tree.map_structure(np.testing.assert_array_equal, other(x), expected)


def test_the_masks_of_dropout_are_kept():
    model = _deep()
    x = _inputs(model)
    model(x, training=True)
    new, _ = keras_fa.convert(model)
    _assert_same(new, model, x, training=True)


def test_a_stateful_model_goes_on_where_it_stopped():
    model = _stateful()
    model(x := _inputs(model))
    new, _ = keras_fa.convert(model)
    back = keras_fa.to_stock(new)
    expected = model(x)
    for other in (new, back):
        np.testing.assert_array_equal(other(x), expected)


WORDS = np.array([["red"], ["green"], ["red"], ["blue"]])
NUMBERS = np.array([[7], [3], [7], [9]])


@pytest.mark.parametrize(
    ("table", "data", "dtype"),
    [
        (lambda: layers.StringLookup(output_mode="multi_hot"), WORDS, "string"),
        (lambda: layers.TextVectorization(output_mode="tf_idf"), WORDS, "string"),
        (lambda: layers.IntegerLookup(output_mode="tf_idf"), NUMBERS, "int64"),
        (
            lambda: layers.Discretization(num_bins=3, output_mode="one_hot"),
            NUMBERS,
            "float32",
        ),
        (lambda: layers.Normalization(invert=True), NUMBERS, "float32"),
    ],
)
def test_states_outside_of_variables_are_kept(table, data, dtype):
    table = table()
    table.adapt(data)
    inputs = keras.Input((1,), dtype=dtype)
    inner = keras.Sequential([keras.Input((1,), dtype=dtype), table])
    model = keras.Model(inputs, layers.Dense(3)(inner(inputs)))
    new, _ = keras_fa.convert(model)
    _assert_same(new, model, tf.constant(data))


def test_states_that_no_config_tells_are_refused():
    class Scaled(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self._factor, self.told = np.ones(3), 1.0

        def call(self, inputs):
            return inputs * self._factor * self.told

    scaled = Scaled(name="scaled")
    model = _sequential(layers.Dense(3), scaled)
    x = np.ones((2, 6), "float32")
    _assert_same(keras_fa.convert(model)[0], model, x)
    scaled._factor = np.array([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"has _factor=.*config of Scaled"):
        keras_fa.convert(model)
    scaled._factor = np.ones((1, 3))
    with pytest.raises(ValueError, match=r"has _factor=.*config of Scaled"):
        keras_fa.convert(model)
    scaled._factor = np.ones(3)
    scaled.told = 7.0
    with pytest.raises(ValueError, match=r"told=7.0, its copy 1.0"):
        keras_fa.to_stock(model)
    assert keras_fa.convert(model, in_place=True)[0] is model


def test_a_stock_file_says_how_it_is_loaded(tmp_path):
    stock = _sequential(layers.Dense(3, name="d"))
    stock.save_weights(tmp_path / "stock.weights.h5")
    for rule in ("backprop", "fa"):
        model = _sequential(keras_fa.layers.FeedbackDense(3, rule=rule, name="d"))
        with pytest.raises(ValueError, match=r"stock model and convert that"):
            model.load_weights(tmp_path / "stock.weights.h5")


@pytest.mark.parametrize(
    ("net", "rule"),
    [
        # Those whose training is not that of layers in a row.
        standing(net, rule, stands=rule == "fa" and net in UNLIKE)
        for net in NETS
        for rule in ("fa", "sign_fa")
    ],
)
def test_fit_trains_the_converted_model(net, rule):
    model = NETS[net]()
    x = _inputs(model)
    new, _ = keras_fa.convert(model, rule)
    before = [v.numpy() for v in new.trainable_variables]
    # A compilation takes a second or two.
    compiled = net in ("deep", "subclassed")
    new.compile("sgd", "mse", run_eagerly=not compiled)
    y = keras.tree.map_structure(lambda v: np.ones(v.shape), new(x))
    history = new.fit(x, y, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert ("own" in history) == (net == "own_step")
    # Some unit of a ReLU is at work: each variable moves.
    moved = zip(before, new.trainable_variables, strict=True)
    assert all(np.any(old != variable.numpy()) for old, variable in moved)


def test_gradients_are_those_of_the_rule():
    """With B set to W those of the stock model; with B set to 0 none below the head."""
    model = _sequential(
        Block(5),
        layers.Reshape((5, 1)),
        layers.TimeDistributed(layers.Dense(2)),
        layers.Flatten(),
        layers.Dense(3, name="head"),
    )
    new, _ = keras_fa.convert(model)
    x = _inputs(model)

    def gradients(net):
        with tf.GradientTape() as tape:
            loss = keras.ops.sum(net(x) ** 2)
        return tape.gradient(loss, [v.value for v in net.trainable_variables])

    wrong = zip(gradients(new), gradients(model), strict=True)
    assert max(helpers.relative_error(a, b) for a, b in wrong) > 0.1
    for layer in feedback_layers(new):
        layer.feedback.assign(layer.kernel)
    for a, b in zip(gradients(new), gradients(model), strict=True):
        np.testing.assert_array_equal(a, b)
    for layer in feedback_layers(new):
        layer.feedback.assign(keras.ops.zeros_like(layer.kernel))
    *below, kernel, bias = gradients(new)
    assert all(not np.any(g) for g in below)
    assert np.any(kernel) and np.any(bias)


def test_a_frozen_backbone_stays_frozen_under_a_new_head():
    backbone = _deep()
    backbone.trainable = False
    model = _sequential(backbone, layers.Dense(2, name="top"))
    new, _ = keras_fa.convert(model)
    assert [v.path.split("/")[-2:] for v in new.trainable_variables] == [
        ["top", "kernel"],
        ["top", "bias"],
    ]
    assert not new.layers[0].trainable


def test_layers_that_are_frozen_in_a_layer_stay_frozen():
    """What is stored with their kernels, too, and what no config says of them."""
    model = _sequential(Block(5), layers.Dense(2))
    model.layers[0].mix.trainable = False
    model.layers[1].bias.trainable = False
    new, _ = keras_fa.convert(model, "kolen_pollack")
    back = keras_fa.to_stock(new)
    assert not new.layers[0].mix.trainable and not back.layers[0].mix.trainable
    # Of two steps kernel, bias and B, of the head all but the bias.
    assert len(new.trainable_variables) == 8
    assert len(back.trainable_variables) == len(model.trainable_variables) == 5


def test_the_head_can_be_popped_after_conversion():
    model, _ = keras_fa.convert(_deep())
    model.pop()
    assert model.output_shape == (None, 5)
    again, _ = keras_fa.convert(model, "sign_fa")
    _assert_same(again, model, _inputs(model))
    inputs = keras.Input((6,))
    top = keras.Model(inputs, layers.Dense(2)(model(inputs)))
    again, report = keras_fa.convert(top, "fa")
    assert len(report.converted) == 3
    _assert_same(again, top, _inputs(top))


# --- In place, twice ---


@pytest.mark.slow
def test_a_second_conversion_changes_the_rule_and_what_is_stored():
    model, _ = keras_fa.convert(_subclassed(), "fa")
    new, report = keras_fa.convert(model, rules.SignFeedbackAlignment(0.7))
    assert [v.rule.scale for v in feedback_layers(new)] == [0.7] * 4
    assert not keras_fa.layers.feedback_variables(new)
    assert len(new.variables) == len(model.variables) - 4
    assert len(report.converted) == 4
    assert [type(v.rule) for v in feedback_layers(model)] == [
        rules.FeedbackAlignment
    ] * 4
    learned, _ = keras_fa.convert(new, "kolen_pollack")
    assert len(learned.trainable_variables) == len(new.trainable_variables) + 4
    _assert_same(learned, model, _inputs(model))


@pytest.mark.slow
def test_in_place_the_compiled_step_follows_the_new_rule():
    model = _sequential(layers.Dense(5), layers.Dense(3), shape=(6,))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x, y = _inputs(model), np.ones((4, 3))
    model.fit(x, y, verbose=0)
    momenta = [v.numpy() for v in model.optimizer.variables]
    other, _ = keras_fa.convert(model, "fa")
    new, _ = keras_fa.convert(model, "fa", in_place=True)
    assert new is model and len(feedback_layers(model)) == 2
    for a, b in zip(momenta, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    # With B = 0 nothing reaches the first layer, but its momentum.
    model.layers[1].feedback.assign(np.zeros((5, 3)))
    before, momentum = model.layers[0].kernel.numpy(), model.optimizer.variables[2]
    assert momentum.shape == (6, 5)
    step = 0.9 * momentum.numpy()
    model.fit(x, y, verbose=0)
    np.testing.assert_allclose(model.layers[0].kernel, before + step, rtol=1e-6)
    keras_fa.convert(model, "sign_fa", in_place=True)
    assert not keras_fa.layers.feedback_variables(model)
    model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="learns its feedback changes them"):
        keras_fa.convert(model, "kolen_pollack", in_place=True)
    assert len(feedback_layers(other)) == 2


def test_direct_rules_are_wired():
    model = _sequential(layers.Dense(5, activation="relu"), layers.Dense(3))
    new, _ = keras_fa.convert(model, "dfa")
    assert type(new.layers[-1]) is keras_fa.layers.DirectFeedback
    _assert_same(new, model, _inputs(model))
    for back in (keras_fa.to_stock(new), keras_fa.convert(new, "fa")[0]):
        _assert_same(back, model, _inputs(model))
        assert len(back.layers) == 3


# --- The report ---


def test_the_report_says_what_became_of_each_layer():
    class Outer(layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    class Own(layers.Layer):
        def build(self, input_shape):
            self.matrix = self.add_weight(shape=(input_shape[-1], 2), name="matrix")

        def call(self, inputs):
            return keras.ops.matmul(inputs, self.matrix)

    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(9, 3, name="table"),
            layers.Dense(4, name="dense"),
            layers.PReLU(name="slopes"),
            Outer(3, name="outer"),
            Own(name="own"),
        ]
    )
    new, report = keras_fa.convert(model)
    assert [v.name for v in feedback_layers(new)] == ["dense"]
    assert [row[:2] for row in report.converted] == [("dense", "Dense")]
    assert [row[0] for row in report.nothing] == ["table", "slopes"]
    assert [row[0] for row in report.left_out] == ["outer", "own"]
    assert str(report) == repr(report)
    lines = str(report).splitlines()
    assert lines[0] == "layer   class      rule"
    assert lines[2] == "dense   Dense      FA"
    assert lines[3].endswith("left out: a subclass of Dense with a call of its own")
    assert lines[4].endswith(
        "left out: no feedback layer for its weights matrix (3, 2)"
    )
    _assert_same(new, model, np.ones((2, 4), "int32"))


# --- What is refused ---


class Hidden(keras.Model):
    """Its config does not make it again."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {}


def test_a_model_that_cannot_be_copied_is_converted_in_place():
    model = Hidden(layers.Dense(3))
    x = np.ones((2, 4), "float32")
    y = model(x)
    with pytest.raises(ValueError, match="config does not make it again"):
        keras_fa.convert(model)
    new, report = keras_fa.convert(model, in_place=True)
    assert new is model and [row[0] for row in report.converted] == ["dense"]
    np.testing.assert_array_equal(model(x), y)


def test_a_layer_whose_build_builds_nothing_is_not_copied_with_other_weights():
    @keras.saving.register_keras_serializable("tests")
    class Lazy(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Dense(3)

        def build(self, input_shape):
            pass

        def call(self, x):
            return self.inner(x)

    model = Lazy()
    model(np.ones((2, 4)))
    with pytest.raises(ValueError, match="only once the model is called"):
        keras_fa.convert(model)


def test_sharing_that_a_config_loses_is_refused():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((3, 4))
    x = layers.TimeDistributed(shared)(inputs)
    model = keras.Model(inputs, layers.Dense(2)(shared(x)))
    with pytest.raises(ValueError, match="'shared', shared by several layers"):
        keras_fa.convert(model)


def test_errors():
    with pytest.raises(ValueError, match="not built"):
        keras_fa.convert(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(ValueError, match="no layer that can have a rule"):
        keras_fa.convert(_sequential(layers.ReLU()))
    with pytest.raises(ValueError, match="Unknown rule"):
        keras_fa.convert(_deep(), "nothing")
    with pytest.raises(ValueError, match="B would be zero"):
        keras_fa.convert(_sequential(layers.Dense(3, kernel_initializer="zeros")))

    class Outer(FeedbackMixin, layers.Dense):
        def call(self, inputs):
            return self.linear(keras.ops.matmul, inputs)

    with pytest.raises(ValueError, match="is a Outer, for which there is no stock"):
        keras_fa.to_stock(_sequential(Outer(3)))


# --- Rules by layer ---


def _rules(model):
    return {v.name: rules.label_of(v.rule) for v in feedback_layers(model)}


@pytest.mark.parametrize(
    "rule",
    [
        {"C*": "sign_fa", "F2": "backprop", "*": {"name": "fa", "seed": 1}},
        lambda layer: (
            "sign_fa"
            if hasattr(layer, "filters")
            else {"F2": "backprop"}.get(layer.name, {"name": "fa", "seed": 1})
        ),
    ],
)
def test_rules_by_layer_in_builders_and_conversion(rule):
    expected = dict.fromkeys(("C1", "C2", "C3"), "sign-FA") | {"F1": "FA", "F2": "BP"}
    built = models.lenet((18, 18, 1), 3, rule=rule)
    assert _rules(built) == expected
    new, _ = keras_fa.convert(models.lenet((18, 18, 1), 3), rule)
    assert _rules(new) == _rules(models.with_rule(built, rule)) == expected


def test_a_table_of_one_rule_is_that_rule():
    keras.utils.set_random_seed(3)
    one = models.mlp((4,), (5, 5), 3, rule="fa")
    keras.utils.set_random_seed(3)
    table = models.mlp((4,), (5, 5), 3, rule={"*": "fa"})
    assert len(one.variables) == len(table.variables) == 9
    values = [sorted(v.numpy().tobytes() for v in m.variables) for m in (one, table)]
    assert values[0] == values[1]


def test_one_seed_in_a_table_or_function_gives_each_layer_its_own_feedback():
    seeded = {"name": "fa", "seed": 3}
    for rule in (
        {"*": seeded},
        {"dense_1": seeded, "*": dict(seeded)},
        lambda layer: dict(seeded),
    ):
        model = models.mlp((4,), (4, 4), 4, rule=rule)
        values = {v.feedback.numpy().tobytes() for v in feedback_layers(model)}
        assert len(values) == 3


def test_patterns_fit_names_paths_and_what_is_around():
    model = _sequential(Block(5, name="one"), Block(5, name="two"), layers.Dense(3))
    new, report = keras_fa.convert(
        model, {"one/mix": "backprop", "two": "sign_fa", "mix": "ada_fa", "*": "fa"}
    )
    chosen = {path: rules.label_of(rule) for path, _, rule in report.converted}
    assert chosen["one/mix"] == "BP"
    assert {chosen[path] for path in chosen if path.startswith("two/")} == {"sign-FA"}
    assert len(chosen) == 7 and list(chosen.values()).count("FA") == 3
    assert sorted(map(rules.label_of, (v.rule for v in feedback_layers(new)))) == (
        sorted(chosen.values())
    )


def test_a_pattern_that_fits_nothing_is_an_error_that_names_the_layers():
    table = {"conv*": "sign_fa", "*": "fa"}
    with pytest.raises(ValueError, match=r"fits 'conv\*'.*dense_1, dense_2"):
        models.mlp((4,), 5, 3, rule=table)
    with pytest.raises(ValueError, match=r"fits 'conv\*'"):
        keras_fa.convert(_deep(), table)


def test_layers_without_a_rule_are_left_as_they_are():
    model = _sequential(layers.Dense(5, name="a"), layers.Dense(3, name="b"))
    for rule in ({"a": "fa"}, lambda layer: "fa" if layer.name == "a" else None):
        new, report = keras_fa.convert(model, rule)
        assert [type(v) in COUNTERPARTS for v in new.layers] == [False, True]
        assert report.left_out == [("b", "Dense", "no rule was given for it")]


# --- Networks by name ---


def plain(input_shape, num_classes, units=5):
    """A builder that knows nothing of rules."""
    return _sequential(
        layers.Flatten(),
        layers.Dense(units, name="below"),
        layers.Dense(num_classes),
        shape=input_shape,
    )


def test_networks_by_name():
    with pytest.raises(ValueError, match="Unknown model"):
        models.network("mlq", (4,), 3)
    built = models.network("mlp", (4,), 3, "sign_fa", "float64", hidden_units=5)
    assert _rules(built) == dict.fromkeys(("dense_1", "dense_2"), "sign-FA")
    assert built.layers[0].kernel.dtype == "float64"
    own = models.network(
        "test_conversion:plain", (4,), 3, {"below": "fa", "*": "backprop"}, units=7
    )
    assert sorted(_rules(own).values()) == ["BP", "FA"]
    assert own.layers[1].units == 7
    with pytest.raises(ValueError, match=r"no argument 'unit'.*units"):
        models.network("test_conversion:plain", (4,), 3, unit=7)


def test_a_configuration_names_any_network_and_rules_by_layer():
    config = keras_fa.config.default_config()
    config.dataset.name = "digits"
    config.model = {"name": "test_conversion:plain", "units": 10}
    config.rule = {"below": "fa", "*": {"name": "fa", "initializer": "he_normal"}}
    model = build.build(config, build.load(config))
    first, second = feedback_layers(model)
    assert first.rule.seed != second.rule.seed
    assert second.rule.initializer is not None


@pytest.mark.slow
def test_applications_by_name():
    model = models.network(
        "applications.MobileNet", (32, 32, 3), 5, "sign_fa", "float64", alpha=0.25
    )
    assert model.output_shape == (None, 5)
    assert "conv_preds" in _rules(model)
    assert model(np.zeros((1, 32, 32, 3))).dtype == "float64"
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(ValueError, match=r"Did you mean .applications\.MobileNetV2"):
        models.network("applications.MobilNetV2", (32, 32, 3), 5)
    with pytest.raises(ValueError, match=r"no argument 'alpa'.*alpha"):
        models.network("applications.MobileNet", (32, 32, 3), 5, alpa=1)


# --- Files ---


# Keras itself does not load lambdas.
@pytest.mark.parametrize("net", [net for net in NETS if net != "lambda"])
def test_files_bring_the_model_back(net, tmp_path):
    model = NETS[net]()
    table = {"mix": "sign_fa", "*": "fa"} if "block" in _names(model) else "fa"
    new, _ = keras_fa.convert(_moved(model), table)
    path = tmp_path / "model.keras"
    new.save(path)
    loaded = keras.saving.load_model(path)
    _assert_same(loaded, new, _inputs(model))
    pairs = zip(feedback_layers(new), feedback_layers(loaded), strict=True)
    for layer, other in pairs:
        assert repr(layer.rule) == repr(other.rule)
        np.testing.assert_array_equal(layer.backward_kernel(), other.backward_kernel())


def test_a_container_that_is_not_built_yet_tells_its_rules():
    new, _ = keras_fa.convert(_sequential(Late(), layers.Dense(3)), "sign_fa")
    layer = new.layers[0]
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert not feedback_layers(again)
    assert again.get_config()["rules"] == config["rules"]
    again(_inputs(new))
    (inner,) = feedback_layers(again)
    assert isinstance(inner.rule, rules.SignFeedbackAlignment)


def _names(model):
    return {v.name.rpartition("_")[0] or v.name for v in model.layers}


@pytest.mark.slow
def test_files_are_read_in_a_fresh_process(tmp_path):
    model, _ = keras_fa.convert(
        _sequential(Block(5), layers.TimeDistributed(layers.Dense(2)), shape=(3, 6)),
        {"mix": "sign_fa", "*": "fa"},
    )
    model.save(tmp_path / "model.keras")
    x = _inputs(model)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", model(x))
    program = f"""
        import numpy as np, keras, keras_fa
        import test_conversion
        model = keras.saving.load_model(r"{tmp_path / "model.keras"}")
        x, y = (np.load(rf"{tmp_path}/{{name}}.npy") for name in "xy")
        np.testing.assert_array_equal(model(x), y)
        found = [keras_fa.rules.label_of(v.rule)
                 for v in keras_fa.layers.feedback_layers(model)]
        assert sorted(found) == ["FA", "FA", "FA", "sign-FA"], found
        again, report = keras_fa.convert(model, "ada_fa")
        np.testing.assert_array_equal(again(x), y)
    """
    paths = pathlib.Path(__file__).parent, pathlib.Path(keras_fa.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )


def test_stock_files_reach_a_converted_model_and_back(tmp_path):
    stock, trained = _deep(), _moved(_deep())
    trained.save_weights(tmp_path / "stock.weights.h5")
    stock.load_weights(tmp_path / "stock.weights.h5")
    new, _ = keras_fa.convert(stock)
    x = _inputs(new)
    _assert_same(new, trained, x)
    keras_fa.to_stock(_moved(new)).save_weights(tmp_path / "back.weights.h5")
    stock.load_weights(tmp_path / "back.weights.h5")
    _assert_same(new, stock, x)


def test_the_factors_of_lora_reach_stock_files(tmp_path):
    new, _ = keras_fa.convert(_lora())
    keras_fa.to_stock(new).save_weights(tmp_path / "lora.weights.h5")
    plain = _sequential(layers.Dense(5, activation="relu"), layers.Dense(3))
    plain.load_weights(tmp_path / "lora.weights.h5")
    x = _inputs(new)
    # The file has the product of the factors added to the kernel. Measured: 1e-7.
    np.testing.assert_allclose(plain(x), new(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_what_comes_back_can_be_quantized():
    model = _sequential(layers.Dense(64, activation="relu"), layers.Dense(3))
    new, _ = keras_fa.convert(model)
    with pytest.raises(NotImplementedError, match="cannot be quantized"):
        new.layers[0].quantize("int8")
    stock = keras_fa.to_stock(new)
    stock.quantize("int8")
    assert stock.layers[0].quantization_mode == "int8"
    np.testing.assert_allclose(stock(_inputs(model)), new(_inputs(model)), atol=0.1)
