"""Every layer that is neither dense nor a convolution, under every rule.

Forward as stock Keras to the bit, and gradients as those written out by hand in
`oracles`, float64. What they share with the dense layer is in test_layers.py.
"""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import LEARNED, RULES, assert_close
from oracles import FURTHER

from keras_fa import convert, rules, to_stock
from keras_fa.layers import (
    COUNTERPARTS,
    FeedbackDense,
    FeedbackDepthwiseConv2D,
    FeedbackGRUCell,
    FeedbackLSTM,
    FeedbackLSTMCell,
    FeedbackMultiHeadAttention,
    FeedbackRNN,
    FeedbackSeparableConv1D,
    FeedbackSimpleRNNCell,
    conv,
    feedback_layers,
    forward_variables,
)

# Keras hands its variables to np.array as NumPy 2 no longer likes; any stock model that
# is saved gives the warning.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

every_case = pytest.mark.parametrize("case", FURTHER)
_VARIANTS = [(name, n) for name, c in FURTHER.items() for n in range(len(c.variants))]
# Layers that hold layers or loop over time take long. What they do with a rule is what
# depthwise kernels do, under every one in each run of the tests.
_DEAR = {name for name in FURTHER if name.startswith(("att", "gat", "gro", "emb"))}
_DEAR |= {name for name in FURTHER if name.startswith(("simple", "lstm", "gru"))}


def _cells(cells, is_short):
    """Cells of a table, of which the others are run with --long alone."""
    return [
        pytest.param(*cell, marks=() if is_short(*cell) else pytest.mark.long)
        for cell in cells
    ]


every_variant = pytest.mark.parametrize(
    ("case", "variant"),
    _cells(_VARIANTS, lambda case, variant: variant == 0 or case not in _DEAR),
)
# Every rule with the first arguments; with the others what is done with a B.
every_rule = pytest.mark.parametrize(
    ("case", "variant", "rule"),
    _cells(
        [(*v, rule) for v in _VARIANTS for rule in (RULES if v[1] == 0 else ["fa"])],
        lambda case, variant, rule: case not in _DEAR or rule in ("fa", "pfa"),
    ),
)


def _pair(case, rule, variant=0, **kwargs):
    """A feedback layer, its stock counterpart with the same weights, an input."""
    case = FURTHER[case]
    kwargs = {"dtype": "float64", **case.variants[variant], **kwargs}
    kwargs.pop("call", None)
    x = case.inputs(kwargs["dtype"], batch=2)
    if kwargs.get("data_format") == "channels_first":
        x = np.moveaxis(x, -1, 1)
    layer, stock = case.make(rule, **kwargs), case.make_stock(**kwargs)
    case.run(layer, x)
    case.run(stock, x)
    return layer, stock, x


def _move(layer, stock):
    """Moves a layer's weights, the learned ones too, and has the stock layer follow."""
    random = np.random.default_rng(2)
    for variable in layer.trainable_variables:
        variable.assign_add(random.normal(size=variable.shape) * 0.1)
    for to, source in zip(
        stock.trainable_variables, forward_variables(layer), strict=True
    ):
        to.assign(source)


def _run(case, variant, layer, x, error=None, **kwargs):
    """The output and the gradients of <output, error> for x and what is trained."""
    x = tf.constant(x)
    calls = FURTHER[case].variants[variant].get("call", {})
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = FURTHER[case].run(layer, x, **calls, **kwargs)
    gradients = tape.gradient(
        y,
        [x, *(v.value for v in layer.trainable_variables)],
        output_gradients=None if error is None else tf.constant(error(y)),
    )
    return y.numpy(), [tf.convert_to_tensor(g).numpy() for g in gradients]


def _error(y):
    return np.random.default_rng(3).normal(size=y.shape)


@every_rule
def test_equals_oracle_and_stock_keras(case, variant, rule):
    layer, stock, x = _pair(case, rule, variant)
    weights, maps = forward_variables(layer), helpers.maps_of(layer)
    starts = [weights[number].numpy() for _, _, number in maps]
    _move(layer, stock)
    y, (dx, *d_weights) = _run(case, variant, layer, x, _error)
    calls = FURTHER[case].variants[variant].get("call", {})
    np.testing.assert_array_equal(y, FURTHER[case].run(stock, x, **calls))

    layouts, feedback = FURTHER[case].layouts, []
    for (part, index, number), start, layout in zip(maps, starts, layouts, strict=True):
        now, stored = weights[number].numpy(), helpers.stored(part, index)
        helpers.assert_backward_kernel(part, rule, now, start, stored, index, layout)
        feedback.append(RULES[rule](now, start, stored, layout))
        relative = helpers.relative_error(feedback[-1], now)
        assert relative == 0 or relative > 0.1
    arguments = {**FURTHER[case].arguments, **FURTHER[case].variants[variant]}
    expected_y, pull = FURTHER[case].oracle(
        arguments, x, [w.numpy() for w in weights], feedback
    )
    assert_close(y, expected_y)
    expected_dx, *expected = pull(_error(y))
    assert_close(dx, expected_dx)
    wanted = {id(w): gradient for w, gradient in zip(weights, expected, strict=True)}
    if rule in LEARNED:
        for (part, index, number), layout in zip(maps, layouts, strict=True):
            stored = helpers.stored(part, index)
            made = LEARNED[rule](expected[number], stored, layout)
            wanted.update({id(part.stored(index)[n]): g for n, g in made.items()})
    largest = max(np.abs(gradient).max() for gradient in expected)
    for variable, gradient in zip(layer.trainable_variables, d_weights, strict=True):
        if np.abs(wanted[id(variable)]).max() < 1e-14 * largest:
            # The bias of the keys, which softmax takes away again.
            assert np.abs(gradient).max() < 1e-14 * largest
        else:
            assert_close(gradient, wanted[id(variable)])


@every_variant
def test_feedback_equal_to_the_weights_is_stock_keras(case, variant):
    layer, stock, x = _pair(case, "fa", variant)
    _move(layer, stock)
    weights = forward_variables(layer)
    for part, index, number in helpers.maps_of(layer):
        part.stored(index)["feedback"].assign(weights[number])
    y, gradients = _run(case, variant, layer, x)
    expected_y, expected = _run(case, variant, stock, x)
    np.testing.assert_array_equal(y, expected_y)
    for actual, wanted in zip(gradients, expected, strict=True):
        # Measured: 0, and 1.4e-16 for LSTM and GRU, whose sums have another order.
        assert_close(actual, wanted, 1e-14)


@every_case
def test_zero_feedback_moves_nothing_before(case):
    layer, _, x = _pair(case, "fa")
    for part, index, _ in helpers.maps_of(layer):
        part.stored(index)["feedback"].assign(0 * part.backward_kernel(index))
    _, (dx, *d_weights) = _run(case, 0, layer, x)
    assert not dx.any()
    assert any(gradient.any() for gradient in d_weights)


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("attention", {"dropout": 0.3}),
        ("grouped_attention", {"dropout": 0.3, "use_gate": True}),
        ("simple_rnn", {"dropout": 0.3, "recurrent_dropout": 0.2, "seed": 1}),
        ("lstm", {"dropout": 0.3, "recurrent_dropout": 0.2, "seed": 1}),
        ("lstm", {"dropout": 0.3, "seed": 1}),
        ("gru", {"dropout": 0.3, "recurrent_dropout": 0.2, "seed": 1}),
        ("gru", {"dropout": 0.3, "seed": 1}),
        ("gru_reset_before", {"recurrent_dropout": 0.2, "seed": 1}),
    ],
)
def test_dropout_is_that_of_stock_keras(case, arguments):
    """In training, under one seed, with B = W."""
    layer, stock, x = _pair(case, "fa", **arguments)
    weights = forward_variables(layer)
    for to, source in zip(stock.trainable_variables, weights, strict=True):
        to.assign(source)
    for part, index, number in helpers.maps_of(layer):
        part.stored(index)["feedback"].assign(weights[number])
    y, gradients = _run(case, 0, layer, x, training=True)
    expected_y, expected = _run(case, 0, stock, x, training=True)
    np.testing.assert_array_equal(y, expected_y)
    assert not np.array_equal(y, FURTHER[case].run(layer, x))
    for actual, wanted in zip(gradients, expected, strict=True):
        assert_close(actual, wanted, 1e-14)


# --- Scale, seeds and the weight mirror: what a rule knows of a kernel ---

# Larger ones, so that a root mean square over the entries says what it should be.
_WIDE = {
    "depthwise1d": ({"kernel_size": 5, "depth_multiplier": 8}, (6, 40)),
    "depthwise2d": ({"depth_multiplier": 8}, (3, 5, 40)),
    "separable1d": ({"filters": 50, "depth_multiplier": 8}, (6, 90)),
    "separable2d": ({"filters": 50, "depth_multiplier": 8}, (3, 5, 40)),
    "conv1d_transpose": ({"filters": 60}, (6, 20)),
    "conv2d_transpose": ({"filters": 60}, (3, 5, 20)),
    "conv3d_transpose": ({"filters": 20}, (3, 2, 5, 10)),
    "einsum": ({"output_shape": (None, 4, 30)}, (5, 80)),
    "einsum_order": ({"output_shape": (30, 20)}, (6, 20, 40)),
    "einsum_shared": ({"output_shape": (50, 40)}, (50, 60)),
    "attention": ({"num_heads": 6, "key_dim": 20}, (5, 90)),
    "gated_attention": ({"num_heads": 6, "key_dim": 20}, (5, 90)),
    "grouped_attention": (
        {"num_query_heads": 6, "num_key_value_heads": 3, "head_dim": 20},
        (5, 90),
    ),
    "simple_rnn": ({"units": 60}, (5, 40)),
    "lstm": ({"units": 60}, (5, 40)),
    "gru": ({"units": 60}, (5, 40)),
    "gru_reset_before": ({"units": 60}, (5, 40)),
    "embedding": (
        {"input_dim": 90, "output_dim": 40, "embeddings_initializer": "glorot_uniform"},
        (2, 40),
    ),
    "embedding_untied": (
        {"input_dim": 90, "output_dim": 40, "embeddings_initializer": "glorot_uniform"},
        (2, 40),
    ),
}


@pytest.mark.parametrize(
    "rule",
    ["sign_fa", "fa", "frsf", rules.FeedbackAlignment("glorot_uniform")],
    ids=str,
)
@every_case
def test_backward_kernel_has_the_scale_of_the_kernel(case, rule):
    """rms(B) / rms(W) with Glorot kernels, and orthogonal recurrent ones."""
    arguments, shape = _WIDE[case]
    layer = FURTHER[case].make(rule, **arguments)
    FURTHER[case].run(layer, keras.Input(shape))
    for part, index, _ in helpers.maps_of(layer):
        assert part.geometry() == part.geometry(0)
        if (
            isinstance(rule, rules.FeedbackAlignment)
            and "recurrent" in part.maps[index][0]
        ):
            continue
        sides = part.backward_kernel(index), getattr(part, part.maps[index].kernel)
        b, w = (np.sqrt(np.mean(np.square(side))) for side in sides)
        # Measured, the worst: 0.99 and 1.02; a wrong count of the fans is a factor.
        assert 0.95 < b / w < 1.05


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        *((name, 0) for name in FURTHER if "conv" in name or "able" in name),
        *((name, 0) for name in FURTHER if "depthwise" in name or "einsum" in name),
        ("einsum", 2),
        ("einsum_order", 1),
    ],
)
def test_weight_mirror_sees_the_bias_of_each_output(case, variant):
    """Through a ReLU, what has a large negative bias mirrors nothing."""
    rule = rules.WeightMirror(activation="relu")
    layer, stock, x = _pair(case, rule, variant)
    _move(layer, stock)
    dead = np.arange(layer.bias.shape.num_elements()).reshape(layer.bias.shape) % 2
    layer.bias.assign(np.where(dead, -1e3, 1e3))
    index = len(layer.maps) - 1
    before = layer.stored(index)["feedback"].numpy()
    keras.Sequential([layer])(x, training=True)
    moved = layer.stored(index)["feedback"].numpy() != before
    weights = [w.numpy() for w in forward_variables(layer)]
    arguments = {**FURTHER[case].arguments, **FURTHER[case].variants[variant]}
    y, pull = FURTHER[case].oracle(arguments, x, weights, weights)
    expected = pull(np.where(y < 0, 0.0, 1.0))[1 + index] != 0
    np.testing.assert_array_equal(moved, expected)
    assert moved.any() and not moved.all()


@pytest.mark.slow
def test_weight_mirror_sees_the_biases_of_recurrent_kernels():
    for case in ("simple_rnn", "lstm", "gru_reset_before"):
        cell = _pair(case, "fa")[0].cell
        assert cell.mirrored_bias(0) is cell.bias and cell.mirrored_bias(1) is None
    cell = _pair("gru", "fa")[0].cell
    cell.bias.assign(np.arange(24.0).reshape(2, 12))
    for index in range(2):
        np.testing.assert_array_equal(cell.mirrored_bias(index), cell.bias[index])
    assert _pair("gru", "fa", use_bias=False)[0].cell.mirrored_bias(1) is None


@pytest.mark.parametrize(
    ("case", "arguments", "shape"),
    [
        (
            "separable1d",
            {"kernel_size": 1, "depth_multiplier": 1, "filters": 3},
            (7, 3),
        ),
        ("lstm", {"recurrent_initializer": "glorot_uniform"}, (5, 4)),
        ("attention", {}, (5, 3)),
    ],
)
def test_the_kernels_of_a_layer_draw_different_feedback_from_one_seed(
    case, arguments, shape
):
    """And the same again from the layer's config, built or not."""
    rule = rules.FeedbackAlignment("random_normal", seed=3)
    layer = FURTHER[case].make(rule, **arguments)
    drawn = []
    for config in (layer.get_config(), None):
        if config is None:
            config = layer.get_config()
        again = type(layer).from_config(config)
        for one in (layer, again):
            FURTHER[case].run(one, keras.Input(shape))
            maps = helpers.maps_of(one)
            drawn.append([np.ravel(part.backward_kernel(n)) for part, n, _ in maps])
    for number, first in enumerate(drawn[0]):
        for other in drawn[1:]:
            np.testing.assert_array_equal(other[number], first)
        for second in drawn[0][:number]:
            size = min(len(first), len(second))
            assert not np.array_equal(first[:size], second[:size])


# --- Loops over time ---

_CELLS = {
    "simple_rnn": (FeedbackSimpleRNNCell, keras.layers.SimpleRNNCell),
    "lstm": (FeedbackLSTMCell, keras.layers.LSTMCell),
    "gru": (FeedbackGRUCell, keras.layers.GRUCell),
}


@pytest.mark.parametrize("loop", [keras.layers.RNN, FeedbackRNN])
@pytest.mark.parametrize("case", _CELLS)
def test_a_cell_in_a_loop_of_its_own_is_the_layer(case, loop):
    layer, _, x = _pair(case, "fa")
    cell = _CELLS[case][0](4, rule="fa", dtype="float64")
    other = loop(cell, dtype="float64")
    other(x)
    for to, source in zip(other.variables, layer.variables, strict=True):
        to.assign(source)
    results = [_run(case, 0, one, x) for one in (layer, other)]
    np.testing.assert_array_equal(*(y for y, _ in results))
    for actual, expected in zip(*(g for _, g in results), strict=True):
        assert_close(actual, expected, 1e-14)


def test_a_cell_computes_in_the_dtype_of_its_own():
    x = FURTHER["lstm"].inputs()
    cell = FeedbackLSTMCell(3, rule="sign_fa", dtype="float32")
    layer = FeedbackRNN(cell, dtype="mixed_float16")
    stock_cell = keras.layers.LSTMCell(3, dtype="float32")
    stock = keras.layers.RNN(stock_cell, dtype="mixed_float16")
    for one in (layer, stock):
        one(x)
    for to, source in zip(stock_cell.weights, cell.weights, strict=True):
        to.assign(source)
    np.testing.assert_array_equal(layer(x), stock(x))


@pytest.mark.parametrize("case", _CELLS)
def test_stateful_layers_go_on_where_they_stopped(case):
    case = FURTHER[case]
    x = case.inputs("float64", batch=2)
    layer = case.make("fa", stateful=True, dtype="float64")
    stock = case.make_stock(stateful=True, dtype="float64")
    for one in (layer, stock):
        one.build(x.shape)
    for to, source in zip(
        stock.trainable_variables, forward_variables(layer), strict=True
    ):
        to.assign(source)
    first = layer(x)
    np.testing.assert_array_equal(first, stock(x))
    np.testing.assert_array_equal(second := layer(x), stock(x))
    assert not np.array_equal(first, second)
    layer.reset_state()
    np.testing.assert_array_equal(layer(x), first)


def test_a_rule_that_moves_by_itself_moves_once_for_a_loop():
    """Nor is anything held when the loop has failed."""
    x = FURTHER["lstm"].inputs()
    cells = [FeedbackLSTMCell(3, rule="brsf"), FeedbackGRUCell(3, rule="brsf")]
    for layer in (FURTHER["lstm"].make("brsf"), FeedbackRNN(cells)):
        layer(x, training=True)
        layer(x, training=False)
        for part, index, _ in helpers.maps_of(layer):
            assert part.stored(index)["noise"].numpy()[1] == 1
    before = cells[0](x[:, 0], cells[0].get_initial_state(4))[0]
    cells[1].activation = None
    with pytest.raises(TypeError):
        layer(x)
    cells[0].kernel.assign(2 * cells[0].kernel)
    assert not np.array_equal(
        cells[0](x[:, 0], cells[0].get_initial_state(4))[0], before
    )


@keras.saving.register_keras_serializable("tests")
class OwnLSTM(keras.layers.LSTM):
    """A user's own class of a layer that may go through cuDNN."""


@pytest.mark.slow
def test_a_rule_never_goes_through_cudnn(monkeypatch):
    """Whose loops are those of `keras.src.backend`, on a GPU."""
    taken = []
    for name in ("lstm", "gru", "bidirectional_lstm", "bidirectional_gru"):

        def loop(*args, name=name, **kwargs):
            taken.append(name)
            raise NotImplementedError

        monkeypatch.setattr(keras.src.backend, name, loop)
    layers = keras.layers
    several = {"return_sequences": True}
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.Bidirectional(layers.LSTM(3, **several)),
            layers.Bidirectional(FURTHER["gru"].make("fa", **several)),
            OwnLSTM(3, **several),
            layers.GRU(3),
        ]
    )
    x = FURTHER["lstm"].inputs()
    new, _ = convert(model)
    taken.clear()
    new(x)
    assert not taken
    for other in (to_stock(new), convert(new, "backprop")[0]):
        taken.clear()
        other(x)
        assert set(taken) == {"lstm", "gru", "bidirectional_lstm", "bidirectional_gru"}
    with pytest.raises(ValueError, match="knows no rule but"):
        FURTHER["lstm"].make("fa", use_cudnn=True)(x)
    with pytest.raises(ValueError, match="cuDNN is not supported"):
        FURTHER["lstm"].make("backprop", use_cudnn=True)(x)


# --- The layers that hold layers ---


def test_projections_may_have_rules_of_their_own():
    table = {"query": "sign_fa", "*output": "backprop", "[kv]*": "fa"}
    layer = FURTHER["attention"].make(table)
    assert layer.rule == table
    again = type(layer).from_config(layer.get_config())
    for one in (layer, again):
        one(x := FURTHER["attention"].inputs(), x)
        found = {name: rules.label_of(rule) for name, rule in one.rule.items()}
        assert found == {
            "query": "sign-FA",
            "key": "FA",
            "value": "FA",
            "attention_output": "BP",
        }
    rebuilt = type(layer).from_config(layer.get_config())
    rebuilt(x, x)
    assert rebuilt.get_config() == layer.get_config()


def test_a_projection_without_a_rule_is_a_stock_layer():
    layer = FURTHER["attention"].make({"query": "fa"})
    layer(x := FURTHER["attention"].inputs(), x)
    assert type(layer.value_dense) is keras.layers.EinsumDense
    assert list(layer.rule) == ["query"]
    again = type(layer).from_config(layer.get_config())
    again(x, x)
    assert type(again.value_dense) is keras.layers.EinsumDense
    with pytest.raises(ValueError, match="No layer fits 'qeury'"):
        FURTHER["attention"].make({"qeury": "fa"})(x, x)


def test_embedding_takes_its_first_weights():
    table = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    for weights in (table, [table]):
        layer = FURTHER["embedding"].make("ada_fa", weights=weights)
        np.testing.assert_array_equal(layer.embeddings, table)
        np.testing.assert_array_equal(layer.feedback, table)


@pytest.mark.parametrize("rule", ["fa", "kolen_pollack"])
def test_embedding_masks_its_tokens(rule):
    layer = FURTHER["embedding"].make(rule, mask_zero=True)
    assert layer(np.array([[0, 2]]))._keras_mask.numpy().tolist() == [[False, True]]
    np.testing.assert_array_equal(layer(np.array([2]))[0], layer.embeddings[2])


# --- What every layer has, under two rules each ---

_SOME = {
    "depthwise2d": ("fa", "kolen_pollack"),
    "separable1d": ("sign_fa", "pfa"),
    "conv2d_transpose": ("brsf", "weight_mirror"),
    "einsum": ("frsf", "pfa"),
    "attention": ("fa", "kolen_pollack"),
    "grouped_attention": ("sign_fa", "brsf"),
    "simple_rnn": ("fa", "weight_mirror"),
    "lstm": ("kolen_pollack", "brsf"),
    "gru": ("sign_fa", "pfa"),
    "embedding": ("ada_fa", "kolen_pollack"),
}
some = pytest.mark.parametrize(
    ("case", "rule"),
    _cells(
        [(case, rule) for case, both in _SOME.items() for rule in both],
        lambda case, rule: rule == _SOME[case][case in _DEAR],
    ),
)
_KINDS = {
    "fa": {"feedback": False},
    "ada_fa": {"feedback": False},
    "sign_fa": {},
    "frsf": {"magnitude": False},
    "brsf": {"magnitude": False, "noise": False},
    "kolen_pollack": {"feedback": True},
    "pfa": {"R": True, "P": False},
    "weight_mirror": {"feedback": False, "noise": False},
}


def _network(case, rule, dtype=None, **kwargs):
    inputs = keras.Input(FURTHER[case].input_shape)
    layer = FURTHER[case].make(rule, dtype=dtype, **kwargs)
    flat = keras.layers.Flatten(dtype=dtype)(FURTHER[case].run(layer, inputs))
    model = keras.Model(inputs, FeedbackDense(3, rule=rule, dtype=dtype)(flat))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", run_eagerly=True)
    return model, layer


def _train(model, case, steps=2):
    x = FURTHER[case].inputs()
    targets = np.random.default_rng(1).normal(size=(len(x), 3)).astype("float32")
    for _ in range(steps):
        model.train_on_batch(x, targets)
    return model


def _assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=other.path)


def _of_layers(model):
    """All but the states of random numbers, which Keras does not save."""
    return [v for v in model.variables if "seed_generator" not in v.path]


@some
def test_what_is_stored_and_what_is_trained(case, rule):
    layer, stock, _ = _pair(case, rule)
    names = [v.name for v in stock.trainable_variables]
    assert [v.name for v in forward_variables(layer)] == names
    for part, index, number in helpers.maps_of(layer):
        found = {name: v.trainable for name, v in part.stored(index).items()}
        assert found == _KINDS[rule]
        weight = forward_variables(layer)[number]
        if "feedback" in found:
            assert part.stored(index)["feedback"].shape == weight.shape
        assert part.backward_kernel(index).shape == weight.shape
    layer.trainable = False
    assert not layer.trainable_variables


@pytest.mark.slow
@some
def test_a_model_trains_is_saved_and_trains_on_bit_for_bit(case, rule, tmp_path):
    model, layer = _network(case, rule)
    start = [w.numpy() for w in forward_variables(layer)]
    maps = [(*one, helpers.stored(one[0], one[1])) for one in helpers.maps_of(layer)]
    _train(model, case)
    moving = {n for n, learned in _KINDS[rule].items() if learned}
    moving |= set(helpers.MOVING.get(rule, ()))
    for part, index, number, stored in maps:
        assert not np.array_equal(forward_variables(layer)[number], start[number])
        for name, values in helpers.stored(part, index).items():
            assert np.array_equal(values, stored[name]) == (name not in moving)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    _assert_same(_of_layers(loaded), _of_layers(model))
    loaded.run_eagerly = True
    for one in (loaded, model):
        _train(one, case)
    _assert_same(_of_layers(loaded), _of_layers(model))
    _assert_same(loaded.optimizer.variables, model.optimizer.variables)
    other = keras.models.clone_model(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    _assert_same(_of_layers(other), _of_layers(model))


@some
def test_config_and_clone_have_the_rule_and_feedback_of_their_own(case, rule):
    model, layer = _network(case, rule, name="it")
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert type(again.rule) is type(layer.rule) is type(rules.get(rule))
    copied = keras.models.clone_model(model).get_layer("it")
    for old, new, layout in zip(
        *map(helpers.maps_of, (layer, copied)), FURTHER[case].layouts, strict=True
    ):
        part, index, number = new
        kernel, stored = forward_variables(copied)[number], helpers.stored(part, index)
        values = kernel.numpy()
        helpers.assert_backward_kernel(
            part, rule, values, values, stored, index, layout
        )
        if rule == "fa":
            assert not np.array_equal(stored["feedback"], old[0].stored(old[1]))
            assert not np.array_equal(stored["feedback"], values)


@pytest.mark.parametrize(
    ("policy", "compute", "tolerance"),
    _cells(
        [
            # Measured against float64, the worst of the table: 1.8e-7, 1.4e-2, 1.5e-3.
            ("float32", "float32", 1e-6),
            ("mixed_bfloat16", "bfloat16", 3e-2),
            ("mixed_float16", "float16", 5e-3),
        ],
        lambda policy, *_: policy == "mixed_float16",
    ),
)
@pytest.mark.parametrize("case", _SOME)
def test_dtype_policy(case, policy, compute, tolerance):
    rule = _SOME[case][0]
    x = FURTHER[case].inputs("float64", batch=2)
    layer = FURTHER[case].make(rule, dtype=policy)
    exact = FURTHER[case].make(rule, dtype="float64")
    for one, values in ((layer, tf.cast(x, compute)), (exact, x)):
        FURTHER[case].run(one, values)
    for to, source in zip(exact.weights, layer.weights, strict=True):
        assert source.dtype == ("int32" if source.name == "noise" else "float32")
        to.assign(source)
    _, (actual, *_) = _run(case, 0, layer, tf.cast(x, compute))
    _, (expected, *_) = _run(case, 0, exact, x)
    assert actual.dtype == compute
    assert_close(actual.astype("float64"), expected, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "compiled"),
    _cells(
        [(case, compiled) for case in _SOME for compiled in ("graph", "jit")],
        lambda *cell: cell in (("attention", "graph"), ("lstm", "jit")),
    ),
)
def test_compiled_gradients_equal_eager(case, compiled):
    rule = _SOME[case][compiled == "jit"]
    layer, _, x = _pair(case, rule)

    def run():
        inputs = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(tf.square(FURTHER[case].run(layer, inputs)))
        sources = [inputs, *(v.value for v in layer.trainable_variables)]
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, sources)]

    results = run(), tf.function(run, jit_compile=compiled == "jit")()
    largest = max(np.abs(expected).max() for expected in results[0])
    for expected, actual in zip(*results, strict=True):
        assert np.abs(expected - actual).max() < 1e-12 * largest


@every_case
def test_a_graph_reads_each_kernel_once(case):
    """And, in a layer that loops over time, before the loop."""
    layer, _, x = _pair(case, "sign_fa")

    @tf.function
    def gradients_of(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            # Looking tokens up, where no B is made, reads the table besides.
            reverse = "embedding" in case
            y = layer(x, reverse=True) if reverse else FURTHER[case].run(layer, x)
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, x)

    graph = gradients_of.get_concrete_function(tf.constant(x)).graph
    for _, _, number in helpers.maps_of(layer):
        kernel = forward_variables(layer)[number]
        (handle,) = [
            inner for outer, inner in graph.captures if outer is kernel.value.handle
        ]
        readers = [
            operation.type
            for operation in graph.get_operations()
            if any(source is handle for source in operation.inputs)
        ]
        assert readers == ["ReadVariableOp"]


@some
def test_penalties_and_constraints_are_those_of_stock_keras(case, rule):
    """Each kernel's penalty counts once, and a learned B has its constraint."""
    part_class = helpers.maps_of(_pair(case, rule)[0])[0][0]
    names = {
        entry.initializer.removesuffix("_initializer") for entry in part_class.maps
    }
    arguments = {}
    for name in names:
        arguments[f"{name}_regularizer"] = keras.regularizers.L2(0.1)
        arguments[f"{name}_constraint"] = keras.constraints.NonNeg()
    layer, stock, _ = _pair(case, rule, **arguments)
    _move(layer, stock)
    losses = [sum(float(loss) for loss in one.losses) for one in (layer, stock)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12) and losses[1] > 0
    model, layer = _network(case, rule, **arguments)
    assert any(w.numpy().min() < 0 for w in forward_variables(layer))
    _train(model, case, steps=1)
    for part, index, number in helpers.maps_of(layer):
        assert forward_variables(layer)[number].numpy().min() >= 0
        for variable in part.stored(index).values():
            assert not variable.trainable or variable.numpy().min() >= 0


@some
def test_quantization_is_refused(case, rule):
    layer, _, _ = _pair(case, rule)
    for part in feedback_layers(layer):
        with pytest.raises(NotImplementedError, match="cannot be quantized"):
            part.quantize("int8")


@pytest.mark.slow
def test_two_replicas_train_as_one_device(mirrored):
    """Attention, a loop over time and depthwise kernels, learned and redrawn B."""

    def trained(scope):
        keras.utils.set_random_seed(3)
        with scope:
            inputs = keras.Input((6, 4))
            x = FeedbackSeparableConv1D(4, 3, rule="brsf")(inputs)
            x = FeedbackMultiHeadAttention(2, 3, rule="kolen_pollack")(x, x)
            x = FeedbackLSTM(3, rule="brsf")(x)
            model = keras.Model(inputs, FeedbackDense(2, rule="fa")(x))
            model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False)
        random = np.random.default_rng(0)
        x, y = random.normal(size=(32, 6, 4)), random.normal(size=(32, 2))
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        return model

    one, two = trained(tf.device("CPU:0")), trained(mirrored.scope())
    for layer in feedback_layers(two):
        for variable in layer.feedback_variables():
            first, second = mirrored.experimental_local_results(variable.value)
            np.testing.assert_array_equal(first, second)
    for actual, expected in zip(two.variables, one.variables, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_a_bias_lies_along_the_axis_of_channels():
    """Channels first too, for which TensorFlow has no convolutions on a CPU."""
    outputs = np.arange(24.0, dtype="float32").reshape(1, 4, 2, 3)
    bias = np.array([10.0, 20.0, 30.0, 40.0], "float32")
    for first in (True, False):
        given = outputs if first else np.moveaxis(outputs, 1, -1)
        layer = FeedbackDepthwiseConv2D(
            1, data_format="channels_first" if first else "channels_last"
        )
        layer.build(given.shape)
        layer.bias.assign(bias)
        expected = given + (bias[:, None, None] if first else bias)
        np.testing.assert_array_equal(conv.finished(layer, given), expected)


def test_every_layer_has_a_row():
    tables = (helpers.LAYERS, FURTHER)
    covered = {case.stock: case.feedback for table in tables for case in table.values()}
    cells = {stock: feedback for feedback, stock in _CELLS.values()}
    assert {**covered, **cells, keras.layers.RNN: FeedbackRNN} == COUNTERPARTS
