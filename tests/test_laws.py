"""The law of every rule: drift falls with the step size, and the ledger closes.

A group's law is that of the rule of its consumer, wherever its errors come from: one
network with a branch for each rule has the laws of all.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import RULES, standing

import keras_fa
from keras_fa import models, rules
from keras_fa.analysis import Ledger, conserved_groups, potentials
from keras_fa.layers import FeedbackConv2D, FeedbackDense

# B moves by itself in each pass: what the laws look like without one.
LAWLESS = ("brsf", "weight_mirror")
CLASSES, EXAMPLES = 3, 12


@pytest.fixture(autouse=True)
def double_precision(fresh_keras):
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def dense_network():
    inputs = keras.Input((5,))
    branches = [
        FeedbackDense(CLASSES, rule=rule, name=rule)(
            FeedbackDense(6, "relu", name=f"below_{rule}")(inputs)
        )
        for rule in RULES
    ]
    return keras.Model(inputs, keras.layers.Add()(branches))


def convolutional_network():
    inputs = keras.Input((4, 3, 2))
    branches = [
        FeedbackConv2D(CLASSES, 3, padding="same", rule=rule, name=rule)(
            FeedbackConv2D(4, 3, activation="relu", name=f"below_{rule}")(inputs)
        )
        for rule in RULES
    ]
    added = keras.layers.Add()(branches)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(added))


def descent(model):
    """A compiled function of (rate, steps) that descends on one batch.

    Gradient descent written out, as an optimizer holds its rate in float32.
    """
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(EXAMPLES, *model.input_shape[1:])))
    y = tf.constant(random.integers(0, CLASSES, EXAMPLES))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def descend(rate, steps):
        for _ in tf.range(steps):
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True))
            for variable, gradient in zip(
                variables, tape.gradient(value, variables), strict=True
            ):
                variable.assign_sub(rate * gradient)

    return lambda rate, steps: descend(
        tf.constant(rate, tf.float64), tf.constant(steps)
    )


def drifts(model, descend, groups):
    """Mean absolute drift of each group at a rate and at a tenth of it."""
    start, found = [v.numpy() for v in model.variables], []
    for steps in (40, 400):
        for variable, value in zip(model.variables, start, strict=True):
            variable.assign(value)
        before = potentials(model, groups)
        descend(0.1 / steps, steps)
        after = potentials(model, groups)
        found.append({k: np.abs(after[k] - before[k]).mean() for k in before})
    return found


def assert_closes(model, descend, steps=100):
    ledger = Ledger(model)
    for _ in range(steps):
        descend(0.1, 1)
        ledger.step()
    for name, entry in ledger.report().items():
        drift = np.abs(entry.measured).max()
        # Measured: 4e-13, and 2e-12.
        assert np.abs(entry.remainder).max() < 1e-12 * drift, name
        assert np.abs(entry.first_order).max() < 1e-11 * drift, name
    return ledger.report()


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        standing(dense_network, stands=False),
        standing(convolutional_network, stands=True),
    ],
)
def test_every_rule_with_a_law_keeps_it(network):
    model = network()
    groups = conserved_groups(model)
    rule_of = {g.name: rules.label_of(g.consumers[0].layer.rule) for g in groups}
    lawful = {
        group.name: group.consumers[0].layer.name not in LAWLESS for group in groups
    }
    assert {group.name: group.conserved for group in groups} == lawful
    # What the lawless ones' would be is a drift to compare with.
    all_groups = [dataclasses.replace(group, reason=None) for group in groups]
    descend = descent(model)
    coarse, fine = drifts(model, descend, all_groups)
    for name, is_lawful in lawful.items():
        ratio = fine[name] / coarse[name]
        # Measured: within 0.001, and above 0.4.
        assert (abs(ratio - 0.1) < 0.01) == is_lawful, (rule_of[name], ratio)
    report = assert_closes(model, descend, steps=300)
    flipped = {name for name, entry in report.items() if np.abs(entry.flips).max() > 0}
    assert {"below_sign_fa", "below_frsf"} <= flipped
    assert not flipped & {"below_fa", "below_ada_fa", "below_backprop"}


DIRECT = {
    "dfa": {"ghost": True},
    "shared": {"ghost": True, "kind": "shared"},
    "low_rank": {"ghost": True, "kind": "low_rank", "rank": 2},
    "sign": {"ghost": True, "signal": "sign"},
    "target": {"ghost": True, "signal": "target"},
    "dkp": {"learned": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIRECT)
def test_direct_feedback_keeps_the_law_of_its_ghosts(kind):
    if kind == "dfa":
        plain = keras.Sequential(
            [
                keras.Input((4, 3, 2)),
                FeedbackConv2D(4, 3, activation="relu", padding="same", name="C1"),
                keras.layers.MaxPooling2D(2),
                FeedbackConv2D(4, 3, activation="relu", padding="same", name="C2"),
                keras.layers.Flatten(),
                FeedbackDense(CLASSES, name="last"),
            ]
        )
    else:
        plain = models.mlp((5,), (6, 7), CLASSES)
    model = keras_fa.direct(plain, seed=0, **DIRECT[kind])
    groups = conserved_groups(model)
    assert [group.conserved for group in groups] == [True, True], groups
    descend = descent(model)
    coarse, fine = drifts(model, descend, groups)
    for group in groups:
        ratio = fine[group.name] / coarse[group.name]
        assert abs(ratio - 0.1) < 0.01
    assert_closes(model, descend)


@pytest.mark.slow
def test_without_ghosts_the_output_layer_is_the_last_ones_readout():
    model = keras_fa.direct(models.mlp((5,), (6, 7), CLASSES), seed=0)
    first, last = conserved_groups(model)
    assert "ask for ghost=True" in first.reason
    assert last.conserved and str(last) == "dense_2 -> direct_feedback (7 units)"
    assert last.consumers[0].kernel is model.get_layer("dense_3").kernel
    descend = descent(model)
    coarse, fine = drifts(model, descend, [last])
    assert abs(fine["dense_2"] / coarse["dense_2"] - 0.1) < 0.01
    assert_closes(model, descend)
    # The signs of the errors are not what trains the output layer.
    model = keras_fa.direct(models.mlp((5,), (6,), CLASSES), signal="sign")
    assert not conserved_groups(model)[0].conserved
