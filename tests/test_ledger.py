import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standing
from keras import layers

from keras_fa import models
from keras_fa.analysis import Ledger, conserved_groups, potentials
from keras_fa.layers import FeedbackConv2D, FeedbackDense
from keras_fa.optimizers import TorchSGD


@pytest.fixture(autouse=True)
def double_precision(fresh_keras):
    keras.config.set_dtype_policy("float64")


def mlp(use_bias=True):
    return models.mlp((5,), (8, 7), 3, use_bias=use_bias)


def small_lenet(flatten=False):
    """LeNet in small: max pooling, then global pooling or flatten."""
    pooling = layers.Flatten() if flatten else layers.GlobalAveragePooling2D()
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            FeedbackConv2D(4, 3, activation="relu", name="C1"),
            layers.MaxPooling2D(2),
            FeedbackConv2D(5, 3, activation="relu", padding="same", name="C2"),
            pooling,
            FeedbackDense(6, activation="relu", name="F1"),
            FeedbackDense(3, name="F2"),
        ]
    )


def small_resnet():
    """ResNet in small: a block with an identity shortcut, one with a projection."""

    def conv_norm(x, filters, name, strides=1):
        x = FeedbackConv2D(
            filters, 3, strides, padding="same", use_bias=False, name=name
        )(x)
        # An epsilon that vanishes beside a variance in float64.
        return layers.BatchNormalization(epsilon=1e-30, name=f"{name}_bn")(x)

    inputs = keras.Input((6, 6, 2))
    x = layers.ReLU()(conv_norm(inputs, 3, "stem"))
    y = conv_norm(layers.ReLU()(conv_norm(x, 4, "b1")), 3, "b2")
    x = layers.ReLU()(layers.Add()([x, y]))
    y = conv_norm(layers.ReLU()(conv_norm(x, 4, "c1", 2)), 4, "c2")
    x = layers.ReLU()(layers.Add()([conv_norm(x, 4, "skip", 2), y]))
    return keras.Model(
        inputs, FeedbackDense(3, name="fc")(layers.GlobalAveragePooling2D()(x))
    )


def train(model, optimizer, steps, *ledgers):
    """Steps on fresh batches of noise with random labels; books after each one."""
    data = np.random.default_rng(0)
    x = data.normal(size=(steps, 8, *model.input_shape[1:]))
    y = data.integers(3, size=(steps, 8))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = model.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, variables), variables)

    for batch in zip(tf.constant(x), tf.constant(y), strict=True):
        step(*batch)
        for ledger in ledgers:
            ledger.step()


NETWORKS = {
    "mlp": mlp,
    "mlp without biases": lambda: mlp(use_bias=False),
    "lenet": small_lenet,
    "lenet with flatten": lambda: small_lenet(flatten=True),
    "resnet": small_resnet,
}


def largest(array):
    return np.abs(array).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, rule",
    [
        standing("mlp", "fa", stands=False),
        standing("mlp without biases", "ada_fa", stands=False),
        standing("lenet", "fa", stands=False),
        standing("lenet with flatten", "fa", stands=False),
        standing("resnet", "fa", stands=False),
        ("mlp", "sign_fa"),
        standing("lenet", "sign_fa", stands=False),
        standing("mlp", "backprop", stands=False),
    ],
)
def test_nothing_remains_after_500_steps_of_sgd(network, rule):
    model = models.with_rule(NETWORKS[network](), rule)
    ledger = Ledger(model)
    start = potentials(model)
    train(model, keras.optimizers.SGD(0.05), 500, ledger)
    report, end = ledger.report(), potentials(model)
    assert list(report) == [group.name for group in conserved_groups(model)]
    for name, entry in report.items():
        drift = largest(entry.measured)
        np.testing.assert_array_equal(entry.measured, end[name] - start[name])
        assert drift > 1e-3
        # Measured: at most 2e-14 of the drift remain, and the first order is at most
        # 6e-13 of it; both are 1e-15 and less where potentials are of order 1.
        assert largest(entry.remainder) < 1e-12 * drift
        assert largest(entry.first_order) < 5e-12 * drift
    assert any(largest(entry.flips) > 0 for entry in report.values()) == (
        rule == "sign_fa"
    )


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sign_fa", standing("fa", stands=False)])
def test_momentum_and_weight_decay_are_first_order(rule):
    model = models.with_rule(small_lenet(), rule)
    ledger = Ledger(model)
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9, weight_decay=1e-3)
    train(model, optimizer, 150, ledger)
    for entry in ledger.report().values():
        drift = largest(entry.measured)
        assert largest(entry.remainder) < 1e-12 * drift
        assert largest(entry.first_order) > 0.1 * drift


@pytest.mark.slow
def test_the_identity_holds_for_any_optimizer_and_float32_weights():
    keras.config.set_dtype_policy("float32")
    model = models.mlp((5,), (8, 7), 3)
    ledger = Ledger(model)
    train(model, keras.optimizers.Adam(0.01), 50, ledger)
    for entry in ledger.report().values():
        drift = largest(entry.measured)
        assert largest(entry.remainder) < 1e-12 * drift
        assert largest(entry.first_order) > 0.1 * drift


def test_terms_of_one_update_by_hand():
    model = models.mlp((1,), 2, 2, rule="sign_fa")
    first, second = model.get_layer("dense_1"), model.get_layer("dense_2")
    first.kernel.assign([[1.0, -2.0]])
    first.bias.assign([0.5, 0.0])
    second.kernel.assign([[1.0, -1.0], [2.0, 3.0]])
    ledger = Ledger(model)
    first.kernel.assign([[1.5, -2.0]])
    first.bias.assign([0.25, 0.0])
    second.kernel.assign([[-0.5, -1.0], [2.0, 4.0]])
    # The output layer's bias does not enter.
    second.bias.assign([9.0, 9.0])
    ledger.step()
    entry = ledger.report()["dense_1"]
    s = np.sqrt(2 / 4)
    steps = -0.5 * np.array([0.5**2 + 0.25**2, 0.0])
    np.testing.assert_allclose(entry.squared_steps, steps, rtol=1e-14)
    # W[0, 0] has become -0.5 and its feedback -s.
    np.testing.assert_allclose(entry.flips, [-0.5 * -2 * s, 0], rtol=1e-14)
    first_order = [-1.5 * s - (1.0 * 0.5 + 0.5 * -0.25), s]
    np.testing.assert_allclose(entry.first_order, first_order, rtol=1e-14)
    np.testing.assert_allclose(entry.predicted, entry.measured, rtol=1e-14)


def test_several_steps_booked_at_once_balance_as_one():
    model = mlp()
    every, last = Ledger(model), Ledger(model)
    train(model, keras.optimizers.SGD(0.05), 20, every)
    last.step()
    assert (every.steps, last.steps) == (20, 1)
    for name, entry in last.report().items():
        single = every.report()[name]
        np.testing.assert_array_equal(entry.measured, single.measured)
        assert largest(entry.remainder) < 1e-12 * largest(entry.measured)
        assert largest(entry.first_order) > 1e-3 * largest(entry.measured)


@pytest.mark.slow
def test_a_resumed_ledger_goes_on():
    model = small_resnet()
    whole = Ledger(model)
    optimizer = keras.optimizers.SGD(0.05)
    train(model, optimizer, 5, whole)
    state = whole.state()
    resumed = Ledger(model)
    resumed.load_state(state)
    train(model, optimizer, 5, whole, resumed)
    assert resumed.steps == whole.steps == 10
    for name, entry in whole.report().items():
        other = resumed.report()[name]
        for term in ("measured", "squared_steps", "flips", "first_order"):
            np.testing.assert_array_equal(getattr(other, term), getattr(entry, term))
    # A state that is older than the weights leaves a remainder.
    late = Ledger(model)
    late.load_state(state)
    assert largest(late.report()["stem"].remainder) > 1e-8


def test_the_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"dense_2/first_order"):
        Ledger(models.mlp((5,), 8, 3)).load_state(Ledger(mlp()).state())


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("rule", ["fa", "sign_fa"])
def test_the_books_balance_in_low_precision(policy, rule):
    model = models.mlp((6,), (20,), 3, rule, dtype=policy)
    variables = [v for v in model.variables if "seed" not in v.path]
    held = "float32" if policy.startswith("mixed") else "bfloat16"
    assert {v.dtype for v in variables} == {held}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(TorchSGD(0.1), loss, run_eagerly=True)
    ledger = Ledger(model)
    x = np.random.default_rng(0).normal(size=(16, 6))
    for _ in range(6):
        model.train_on_batch(x, np.arange(16) % 3)
        ledger.step()
    entry = ledger.report()["dense_1"]
    assert np.abs(entry.measured).max() > 1e-4
    # What the rounding of a step does is booked as what it is, a part of the step.
    assert np.abs(entry.remainder).max() < 1e-12
    assert np.abs(entry.first_order).max() > 1e-6
