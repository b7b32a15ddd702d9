"""Properties x rules: one test a property, each over every rule that has a name.

One network, a convolution and two dense layers, is under each rule in turn. With a row
for the rules of layers in `helpers.RULES` a new rule has all of these, and what tests
of other files do with a layer under each rule in one network: two worker processes
(test_distribution.py), a run that is killed and resumed (test_experiment.py).
"""

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
from helpers import assert_close

from keras_fa import models, rules
from keras_fa.layers import (
    FeedbackConv2D,
    FeedbackDense,
    feedback_layers,
    feedback_variables,
)
from keras_fa.models.wiring import wire

# Keras hands its variables to np.array as NumPy 2 no longer likes; any stock model that
# is saved gives the warning.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

# Steps run without a graph where compilation is not the subject.
EAGER = {"run_eagerly": True}
EXAMPLES = 8


def every_rule(*standing):
    """One cell a rule; the named ones stand for the others but with --long."""
    cells = [helpers.standing(r, stands=r in standing) for r in rules.NAMES]
    return pytest.mark.parametrize("rule", cells)


def network(rule, dtype="float32"):
    """The same forward weights under each rule."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((5, 6, 2)),
        FeedbackConv2D(4, 3, rule=rule, dtype=dtype, name="first"),
        keras.layers.LeakyReLU(dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        FeedbackDense(6, "tanh", rule=rule, dtype=dtype, name="second"),
        FeedbackDense(3, rule=rule, dtype=dtype, name="third"),
    ]
    return wire(keras.Sequential(layers))


def compiled(model, optimizer=None, **how):
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{"jit_compile": False, **how},
    )
    return model


def data(number=EXAMPLES):
    x = np.random.default_rng(0).normal(size=(number, 5, 6, 2))
    return x.astype("float32"), np.arange(number) % 3


def fitted(model, epochs=2, batch_size=EXAMPLES, examples=EXAMPLES):
    x, y = data(examples)
    model.fit(x, y, batch_size, epochs, shuffle=False, verbose=0)
    return model


def values(model):
    return [v.numpy() for v in model.variables]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def rules_of(model):
    return [type(layer.rule) for layer in feedback_layers(model)]


_READER = """
    import json, pathlib, sys
    import keras, numpy as np
    import keras_fa
    folder = pathlib.Path(sys.argv[1])
    arrays = np.load(folder / "data.npz")
    for path in sorted(folder.glob("*.keras")):
        model = keras.saving.load_model(path)
        found = {type(x.rule) for x in keras_fa.layers.feedback_layers(model)}
        assert found == {type(keras_fa.rules.get(path.stem))}, path
        model.run_eagerly = True
        model.fit(arrays["x"], arrays["y"], 8, 2, shuffle=False, verbose=0)
        np.savez(path.with_suffix(".npz"), *[v.numpy() for v in model.variables])
"""


@pytest.mark.long
def test_a_fresh_process_reads_a_file_and_trains_on_bit_for_bit(tmp_path):
    x, y = data()
    trained = {}
    for rule in rules.NAMES:
        model = fitted(compiled(network(rule), **EAGER))
        model.save(tmp_path / f"{rule}.keras")
        trained[rule] = values(fitted(model))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    root = str(pathlib.Path(__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_READER), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    for rule, expected in trained.items():
        found = np.load(tmp_path / f"{rule}.npz")
        assert_same(list(found.values()), expected)


@every_rule("dkp", "drtp")
def test_a_clone_has_the_rule_and_trains_by_itself(rule):
    model = network(rule)
    before = values(model)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert rules_of(clone) == rules_of(model)
    np.testing.assert_array_equal(clone(data()[0]), model(data()[0]))
    fitted(compiled(clone, **EAGER))
    assert_same(values(model), before)
    # What it learned is what the model itself would have.
    assert_same(values(clone), values(fitted(compiled(model, **EAGER))))
    assert not np.array_equal(values(model)[0], before[0])


@pytest.mark.slow
@every_rule("kolen_pollack", "dkp")
def test_another_rule_and_back_keeps_the_weights(rule):
    model = fitted(compiled(network(rule), **EAGER))
    for name in ("backprop", "fa", "dfa"):
        other = models.with_rule(model, name)
        assert set(rules_of(other)) == {type(rules.get(name))}
        back = models.with_rule(other, rule)
        assert rules_of(back) == rules_of(model)
        for a, b in zip(feedback_layers(back), feedback_layers(model), strict=True):
            np.testing.assert_array_equal(a.kernel, b.kernel)
            np.testing.assert_array_equal(a.bias, b.bias)
        for one in (other, back):
            np.testing.assert_array_equal(one(data()[0]), model(data()[0]))
    stored = [[v.shape for v in feedback_variables(one)] for one in (model, back)]
    assert stored[0] == stored[1]


@pytest.mark.slow
@every_rule("brsf")
def test_two_replicas_train_as_one_device(rule, mirrored):
    """The same B on both, and after 20 steps the weights of one device."""

    def trained(scope):
        with scope:
            model = compiled(network(rule))
        start = values(model)
        return fitted(model, epochs=10, examples=2 * EXAMPLES), start

    one, start = trained(tf.device("CPU:0"))
    two, other = trained(mirrored.scope())
    assert_same(start, other)
    for variable in feedback_variables(two):
        replicas = mirrored.experimental_local_results(variable.value)
        assert len(replicas) == 2
        np.testing.assert_array_equal(*replicas)
    assert two.optimizer.iterations == 20
    for actual, expected in zip(two.variables, one.variables, strict=True):
        # Measured: 1.9e-6 under drtp, 2.4e-7 under the others.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert np.abs(one.get_layer("first").kernel - start[0]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@every_rule("pfa", "weight_mirror", "drtp")
def test_mixed_precision_takes_the_same_steps(rule, policy):
    exact = network(rule)
    start = [layer.kernel.numpy() for layer in feedback_layers(exact)]
    fitted(compiled(exact, **EAGER))
    keras.config.set_dtype_policy(policy)
    model = compiled(network(rule, None), **EAGER)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    if scaled:
        # With drtp the scale that Keras begins with overflows, and a step is left out.
        model.optimizer.initial_scale = 2.0**10
    fitted(model)
    both = zip(*map(feedback_layers, (model, exact)), start, strict=True)
    for layer, other, before in both:
        assert layer.kernel.dtype == "float32"
        moved = layer.kernel.numpy() - before
        # The rate times the gradient, if the loss scale is undone.
        assert 1e-3 < np.abs(moved).max() < 1
        if rule not in helpers.MOVING:
            assert_close(moved, other.kernel.numpy() - before, 0.1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_rule("pfa_short")
def test_half_precision_trains(rule, dtype):
    model = compiled(network(rule, dtype), keras.optimizers.SGD(0.05), **EAGER)
    start = [layer.kernel.numpy() for layer in feedback_layers(model)]
    fitted(model)
    assert {v.dtype for v in feedback_variables(model)} <= {dtype, "int32"}
    for layer, before in zip(feedback_layers(model), start, strict=True):
        moved = np.abs((layer.kernel.numpy() - before).astype("float32")).max()
        assert 1e-4 < moved < 1


@pytest.mark.slow
@every_rule("brsf")
def test_steps_are_the_same_eager_in_graphs_and_under_xla(rule):
    results = [
        values(fitted(compiled(network(rule), **how)))
        for how in (EAGER, {"jit_compile": False}, {"jit_compile": True})
    ]
    if rule in helpers.MOVING:
        # For one seed XLA draws other numbers than TensorFlow's own kernels.
        results.pop()
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            if np.any(expected):
                # Measured: 2.2e-7, float32.
                assert_close(actual, expected, 2e-6)


@pytest.mark.slow
@every_rule("kolen_pollack", "dkp")
def test_accumulated_gradients_are_those_of_the_whole_batch(rule):
    ends = []
    for steps, size in ((None, 2 * EXAMPLES), (2, EXAMPLES)):
        optimizer = keras.optimizers.SGD(0.05, 0.9, gradient_accumulation_steps=steps)
        model = compiled(network(rule, "float64"), optimizer, **EAGER)
        start = model.get_layer("first").kernel.numpy()
        fitted(model, epochs=3, batch_size=size, examples=2 * EXAMPLES)
        assert not np.array_equal(model.get_layer("first").kernel, start)
        ends.append(model)
    whole, halves = ends
    if rule in helpers.MOVING:
        # What moves by itself does so in each pass, and there are two in place of one.
        passes = [one.get_layer("second").stored()["noise"][1] for one in ends]
        assert passes[1] == 2 * passes[0] == 6
        return
    for one, other in zip(whole.variables, halves.variables, strict=True):
        assert_close(other, one, 1e-12)


@every_rule("kolen_pollack", "weight_mirror", "dkp")
def test_a_frozen_layer_keeps_all_that_it_has_and_passes_the_error_on(rule):
    model = network(rule)
    frozen = model.get_layer("second")
    frozen.trainable = False
    compiled(model, **EAGER)
    below, above = (model.get_layer(name) for name in ("first", "third"))
    kept = [v.numpy() for v in frozen.variables]
    moved = [layer.kernel.numpy() for layer in (below, above)]
    fitted(model)
    assert_same([v.numpy() for v in frozen.variables], kept)
    for layer, before in zip((below, above), moved, strict=True):
        assert not np.array_equal(layer.kernel, before)
