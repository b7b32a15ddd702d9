"""Direct feedback: against NumPy, for every kind and signal, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, softmax_error, standing

import keras_fa
from keras_fa import models
from keras_fa.layers import (
    DirectFeedback,
    FeedbackConv2D,
    FeedbackDense,
    feedback_layers,
    feedback_variables,
    forward_variables,
)
from keras_fa.models.wiring import wire

KINDS = {
    "full": {},
    "shared": {"kind": "shared"},
    "low_rank": {"kind": "low_rank", "rank": 2},
    "sparse": {"kind": "sparse", "nonzeros": 1},
    "sign": {"signal": "sign"},
    "target": {"signal": "target"},
    "learned": {"learned": True},
    "ghost": {"ghost": True},
    "shared_sign_ghost": {"kind": "shared", "signal": "sign", "ghost": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(8, 5))
LABELS = np.arange(8) % 3


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")


def network(rule="fa", activation="relu"):
    return models.mlp((5,), (6, 7), 3, rule, activation, dtype="float64")


def gradients(model, x, labels):
    with tf.GradientTape() as tape:
        loss = cross_entropy()(labels, model(x, training=True))
    variables = [v.value for v in model.trainable_variables]
    return [np.asarray(g) for g in tape.gradient(loss, variables)]


def by_hand(model, signal):
    """Gradients of weights and biases, and h_l^T s for each tap."""
    (w1, b1), (w2, b2), (w3, b3) = (
        (np.asarray(layer.kernel), np.asarray(layer.bias))
        for layer in feedback_layers(model)
    )
    h1 = X @ w1 + b1
    h2 = np.maximum(h1, 0) @ w2 + b2
    a1, a2 = np.maximum(h1, 0), np.maximum(h2, 0)
    outputs = a2 @ w3 + b3
    p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    one_hot = np.eye(3)[LABELS]
    error = (p - one_hot) / 8
    s = {"error": error, "sign": np.sign(error) / 8, "target": one_hot / 8}[signal]
    feedback = [np.asarray(model.layers[-1].feedback(tap)) for tap in range(2)]
    delta1, delta2 = (
        (s @ b.T) * (h > 0) for b, h in zip(feedback, (h1, h2), strict=True)
    )
    products = [(X, delta1), (a1, delta2), (a2, error)]
    wanted = [g for a, d in products for g in (a.T @ d, d.sum(axis=0))]
    return wanted, [a1.T @ s, a2.T @ s]


@every_kind
def test_gradients_equal_the_recursion_by_hand(kind):
    arguments = KINDS[kind]
    model = keras_fa.direct(network(), seed=0, **arguments)
    wanted, read = by_hand(model, arguments.get("signal", "error"))
    if "learned" in arguments or "ghost" in arguments:
        # B itself under dkp, the ghosts of the others: trained by h_l^T s.
        wanted += read
    actual = gradients(model, X, LABELS)
    for one, other in zip(actual, wanted, strict=True):
        assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        standing(kind, stands=kind in ("full", "low_rank", "learned", "ghost"))
        for kind in KINDS
    ],
)
def test_predictions_are_those_of_the_model_there_and_back(kind, tmp_path):
    model = network()
    direct = keras_fa.direct(model, **KINDS[kind])
    np.testing.assert_array_equal(direct(X), model(X))
    direct.compile("sgd", cross_entropy())
    direct.fit(X, LABELS, verbose=0)
    back = models.with_rule(direct, "sign_fa")
    assert not any(isinstance(layer, DirectFeedback) for layer in back.layers)
    np.testing.assert_array_equal(back(X), direct(X))
    direct.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded.variables, direct.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    before = gradients(direct, X, LABELS)
    for one, other in zip(gradients(loaded, X, LABELS), before, strict=True):
        np.testing.assert_array_equal(one, other)


@every_kind
def test_matrices_are_as_the_kind_says(kind):
    arguments = KINDS[kind]
    model = keras_fa.direct(models.mlp((5,), (64, 32), 10), seed=1, **arguments)
    end = model.layers[-1]
    first, second = (np.asarray(end.feedback(tap)) for tap in range(2))
    assert first.shape == (64, 10) and second.shape == (32, 10)
    again = keras_fa.direct(models.mlp((5,), (64, 32), 10), seed=1, **arguments)
    np.testing.assert_array_equal(again.layers[-1].feedback(0), first)
    kind = arguments.get("kind", "full")
    if kind == "shared":
        np.testing.assert_array_equal(first[:32], second)
        assert 0.9 / 8 < np.abs(first).max() <= 1 / 8
        assert len(end.weights) == 1 + 2 * arguments.get("ghost", False)
    else:
        assert not np.array_equal(first[:32], second)
    if kind == "full":
        assert 0.9 / np.sqrt(64) < np.abs(first).max() <= 1 / np.sqrt(64)
    elif kind == "low_rank":
        assert np.linalg.matrix_rank(first) == 2
        # Uniform within 1/sqrt(units): a variance of 1 / (3 units).
        assert 0.5 < first.var() * 3 * 64 < 2
        # Which two factors of that variance have, each uniform within this limit.
        (u,) = (w for w in end.weights if w.shape == (64, 2))
        assert 0.95 < np.abs(u).max() / np.sqrt(np.sqrt(3 / 2) / np.sqrt(64)) <= 1
    elif kind == "sparse":
        assert (np.count_nonzero(first, axis=1) == 1).all()
        assert len(set(np.abs(first).argmax(axis=1))) > 3


@pytest.mark.parametrize("signal", ["error", "sign", "target"])
def test_a_step_of_an_optimizer_has_the_gradients_of_a_tape(signal):
    model = keras_fa.direct(network(), signal=signal, seed=1)
    wanted = [
        variable.numpy() - 0.5 * gradient
        for variable, gradient in zip(
            model.trainable_variables, gradients(model, X, LABELS), strict=True
        )
    ]
    model.compile(keras.optimizers.SGD(0.5), cross_entropy())
    model.train_on_batch(X, LABELS)
    for variable, value in zip(model.trainable_variables, wanted, strict=True):
        # Measured: 1e-16.
        assert_close(variable.numpy(), value, 1e-13)


def test_feedback_is_no_weight_of_the_forward_pass():
    for arguments in ({"learned": True}, {"ghost": True}):
        plain = network()
        model = keras_fa.direct(plain, **arguments)
        assert len(model.trainable_variables) == 8
        counts = [
            sum(v.numpy().size for v in forward_variables(one))
            for one in (plain, model)
        ]
        assert counts[0] == counts[1] == 5 * 6 + 6 + 6 * 7 + 7 + 7 * 3 + 3
        end = {id(v) for v in model.layers[-1].weights}
        assert end == {id(v) for v in feedback_variables(model)}


def test_convolutions_get_the_error_at_every_place():
    keras.utils.set_random_seed(0)
    model = models.lenet((18, 18, 1), 4, rule="dfa", dtype="float64")
    end = model.layers[-1]
    shapes = [tuple(v.shape) for v in end.weights]
    # After pooling: 8 x 8 x 32 and 3 x 3 x 64; then 128 channels and 256 units.
    assert shapes == [(2048, 4), (576, 4), (128, 4), (256, 4)]
    x = RANDOM.normal(size=(3, 18, 18, 1))
    labels = np.array([0, 1, 3])
    c2 = keras.Model(model.input, model.get_layer("C2").input)
    maps = np.asarray(c2(x))
    p = np.asarray(tf.nn.softmax(model(x)))
    error = (p - np.eye(4)[labels]) / 3
    with tf.GradientTape() as tape:
        tap = tf.constant(maps)
        tape.watch(tap)
        flat = tf.reshape(tap, (3, -1))
        value = tf.reduce_sum(tf.constant(error) * (flat @ np.asarray(end.feedback(0))))
    hidden = np.asarray(tape.gradient(value, tap))
    # C1's gradient is that of its own branch under the hidden error.
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(c2(x) * hidden)
    kernel = model.get_layer("C1").kernel.value
    assert_close(gradients(model, x, labels)[0], tape.gradient(value, kernel))


@pytest.mark.slow
def test_a_residual_network_trains():
    inputs = keras.Input((6, 6, 2))
    x = FeedbackConv2D(4, 3, padding="same", rule="dfa", name="stem")(inputs)
    y = keras.layers.BatchNormalization()(x)
    y = FeedbackConv2D(4, 3, padding="same", rule="dfa", name="c")(keras.ops.relu(y))
    x = keras.layers.Add()([x, y])
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, FeedbackDense(3, rule="dfa", name="head")(x))
    model = models.with_rule(model, "dfa")
    # Nothing trains below the stem: it has no tap.
    assert len(model.layers[-1].weights) == 2
    model.compile(keras.optimizers.SGD(0.1), cross_entropy())
    labels = np.arange(16) % 3
    x = RANDOM.normal(size=(16, 6, 6, 2)) + labels[:, None, None, None]
    losses = model.fit(x, labels, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [standing("full", stands=False), "learned"])
def test_training_follows_the_same_numbers_compiled(kind):
    """Eager, compiled and XLA steps, with momentum."""
    weights = []
    for arguments in (
        {"run_eagerly": True},
        {"jit_compile": False},
        {"jit_compile": True},
    ):
        keras.utils.set_random_seed(0)
        model = keras_fa.direct(network(), seed=0, **KINDS[kind])
        model.compile(keras.optimizers.SGD(0.1, 0.9), cross_entropy(), **arguments)
        model.fit(X, LABELS, epochs=5, verbose=0)
        weights.append([v.numpy() for v in model.trainable_variables])
    for other in weights[1:]:
        for one, another in zip(weights[0], other, strict=True):
            assert_close(one, another, 1e-11)  # Measured: 2e-15.


def test_a_layer_that_is_called_twice_has_two_taps():
    keras.config.set_floatx("float64")
    try:
        inputs = keras.Input((5,))
        first, shared = (FeedbackDense(4, "relu", dtype="float64") for _ in range(2))
        outputs = FeedbackDense(3, dtype="float64")(shared(shared(first(inputs))))
        model = keras_fa.direct(keras.Model(inputs, outputs))
    finally:
        keras.config.set_floatx("float32")
    w0, ws, w1 = (layer.kernel.numpy() for layer in feedback_layers(model))
    h0 = np.maximum(X @ w0, 0)
    h1 = np.maximum(h0 @ ws, 0)
    h2 = np.maximum(h1 @ ws, 0)
    error = softmax_error(h2 @ w1, LABELS)
    deltas = [
        (error @ np.asarray(model.layers[-1].feedback(tap)).T) * (h > 0)
        for tap, h in enumerate((h0, h1, h2))
    ]
    actual = gradients(model, X, LABELS)
    assert_close(actual[0], X.T @ deltas[0])
    assert_close(actual[2], h0.T @ deltas[1] + h1.T @ deltas[2])


def test_unwired_layers_are_refused():
    with pytest.raises(ValueError, match=r"nothing brings.*keras_fa.direct"):
        FeedbackDense(3, rule="dfa")(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"keras_fa\.direct"):
        keras.Sequential([keras.Input((3,)), FeedbackDense(3, rule="dfa")])(
            np.ones((2, 3))
        )


def two_outputs():
    inputs = keras.Input((4,))
    outputs = [FeedbackDense(2, name=name)(inputs) for name in "ab"]
    return keras.Model(inputs, outputs)


def in_a_nested_model():
    inner = keras.Sequential([keras.Input((4,)), FeedbackDense(4, name="hidden")])
    return keras.Sequential([keras.Input((4,)), inner, FeedbackDense(2)])


def maps_at_the_output():
    return keras.Sequential([keras.Input((5, 4)), FeedbackDense(2)])


def of_unknown_length():
    return keras.Sequential(
        [
            keras.Input((None, 4)),
            FeedbackDense(3, name="low"),
            FeedbackDense(3, name="high"),
            keras.layers.GlobalAveragePooling1D(),
            FeedbackDense(2),
        ]
    )


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (two_outputs, r"one output of shape.*\(None, 2\), \(None, 2\)"),
        (maps_at_the_output, r"one output of shape.*\(None, 5, 2\)"),
        (in_a_nested_model, r"nested model.*'hidden'"),
        (of_unknown_length, r"'high' has the shape \(None, None, 3\)"),
    ],
)
def test_models_that_cannot_have_it_say_why(build, reason):
    with pytest.raises(ValueError, match=reason):
        keras_fa.direct(build())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kind": "fll"}, "must be one of full, shared"),
        ({"signal": "loss"}, "must be one of error, sign, target"),
        ({"kind": "low_rank"}, "rank must be a positive integer"),
        ({"kind": "shared", "initializer": "zeros"}, "take None.*kind='shared"),
        ({"rank": 2}, "rank must be .* and None for the others"),
        ({"kind": "sparse", "nonzeros": 0}, "nonzeros must be a positive"),
        ({"kind": "sparse", "nonzeros": 4}, "are 3 outputs"),
        ({"learned": True, "kind": "shared"}, "learns a whole B"),
        ({"initializer": "zeros"}, "B would be zero"),
    ],
)
def test_wrong_arguments_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        keras_fa.direct(network(), **arguments)


def test_one_direct_rule_in_a_model():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            FeedbackDense(3, rule="dfa"),
            FeedbackDense(3, rule="dkp"),
        ]
    )
    with pytest.raises(ValueError, match="one direct rule, or none"):
        wire(model)


@pytest.mark.slow
def test_at_block_outputs_blocks_are_local_and_right_within():
    """Each part's gradient is that of <e B_l, its output>, its input held still."""
    model = models.residual_mlp(
        (5,), 3, "fa", width=4, blocks=2, hidden_units=6, dtype="float64"
    )
    new = keras_fa.direct(model, taps="blocks", seed=0)
    np.testing.assert_array_equal(new(X), model(X))
    again = keras.Model.from_config(new.get_config())
    again.set_weights(new.get_weights())
    part = {layer.name: layer for layer in new.layers}

    def block(h, name):
        inner = part[f"{name}_up"](part[f"{name}_norm"](h))
        return h + part[f"{name}_down"](tf.nn.relu(inner))

    hidden = [part["embedding"](X)]
    hidden += [block(hidden[0], "block_1")]
    hidden += [block(hidden[1], "block_2")]
    end = part["direct_feedback"]
    assert [tuple(b.shape) for b in end.weights] == [(4, 3)] * 3
    error = softmax_error(np.asarray(new(X)), LABELS)
    credits = [error @ np.asarray(end.feedback(tap)).T for tap in range(3)]
    with tf.GradientTape() as tape:
        outputs = [part["embedding"](X)]
        outputs += [block(hidden[0], "block_1"), block(hidden[1], "block_2")]
        told = [tf.reduce_sum(c * o) for c, o in zip(credits, outputs, strict=True)]
        logits = part["head"](part["norm"](hidden[2]))
        total = tf.add_n([*told, cross_entropy()(LABELS, logits)])
    expected = tape.gradient(total, [v.value for v in new.trainable_variables])
    for one in (new, again):
        for ours, theirs in zip(gradients(one, X, LABELS), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)
    # What the instruments compare with is the true gradient of the whole.
    true = keras_fa.analysis.gradient_alignment(model, X, LABELS, cross_entropy())
    seen = keras_fa.analysis.gradient_alignment(new, X, LABELS, cross_entropy())
    for name, terms in seen.layers.items():
        assert terms.true_norm == pytest.approx(true.layers[name].true_norm, rel=1e-12)
    assert seen.layers["block_1_up"].cosine < 0.99
    # No error crosses the stream; within a block the laws are backpropagation's.
    laws = {g.name for g in keras_fa.analysis.conserved_groups(new) if g.reason is None}
    assert laws == {
        *("block_1_norm", "block_1_up", "block_2_norm", "block_2_up", "norm")
    }
    new.compile(keras.optimizers.SGD(0.1), cross_entropy(), jit_compile=False)
    ledger = keras_fa.analysis.Ledger(new)
    for _ in range(3):
        new.train_on_batch(X, LABELS)
        ledger.step()
    for entry in ledger.report().values():
        assert abs(entry.first_order).max() < 1e-15 < abs(entry.measured).max()
    back = models.with_rule(new, "fa")
    assert [type(x).__name__ for x in back.layers] == [
        type(x).__name__ for x in model.layers
    ]
    with pytest.raises(ValueError, match="no sums of a residual stream"):
        keras_fa.direct(network(), taps="blocks")


def test_block_outputs_of_a_transformer_are_its_sums():
    inputs = keras.Input((6, 4))
    x = keras.layers.Dense(4, name="patches")(inputs)
    y = keras.layers.LayerNormalization()(x)
    x = x + keras.layers.MultiHeadAttention(2, 2, name="attention")(y, y)
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x))
    rule = keras_fa.rules.DirectFeedbackAlignment(taps="blocks", seed=1)
    model, _ = keras_fa.convert(keras.Model(inputs, x), rule)
    assert [tuple(b.shape) for b in model.layers[-1].weights] == [(24, 3)] * 2
    x, y = np.random.default_rng(0).normal(size=(8, 6, 4)), LABELS
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = keras_fa.analysis.gradient_alignment(model, x, y, loss)
    assert found.layers["query"].feedback_norm > 0
    assert found.layers["patches"].cosine < 0.99
