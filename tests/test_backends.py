"""The toolkit on every backend, in float32: each rule on each layer, each instrument.

The other files test it on TensorFlow in float64, to rounding; here is what shows that
JAX and PyTorch compute the same. A rule, layer or model is a row of the tables that
those files use.
"""

import importlib
import importlib.util
import itertools

import helpers
import keras
import numpy as np
import pytest
import test_rooms
from backends import BACKEND, array, differentiated
from helpers import LAYERS, LEARNED, RULES, assert_close
from keras import ops
from oracles import FURTHER

import keras_fa
from keras_fa import analysis, callbacks, models, optimizers, rules
from keras_fa.layers import (
    FeedbackConv2D,
    FeedbackDense,
    feedback_layers,
    feedback_variables,
    forward_variables,
)

# TensorFlow has its own tests of all this: a few cells stand for the others there.
ELSEWHERE = BACKEND != "tensorflow"


def cells(table, stands):
    return [
        helpers.standing(*cell, stands=ELSEWHERE or stands(*cell)) for cell in table
    ]


def moved(layer):
    """Moves a layer's trained weights away from where they began."""
    random = np.random.default_rng(2)
    for variable in layer.trainable_variables:
        step = random.normal(size=variable.shape) * 0.1
        variable.assign(array(variable) + step.astype("float32"))


def error(shape):
    return np.random.default_rng(3).normal(size=shape).astype("float32")


def data(shape, classes=3, examples=8):
    random = np.random.default_rng(0)
    x = random.normal(size=(examples, *shape)).astype("float32")
    return x, np.arange(examples) % classes


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_the_toolkit_asks_for_no_tensorflow():
    """And says so where it needs it, before anything is done."""
    rooms = test_rooms.ROOMS
    toolkit = (*rooms[: rooms.index("callbacks") + 1], "_logs", "figures")
    for room in toolkit:
        importlib.import_module(f"keras_fa.{room}")
    if BACKEND == "tensorflow":
        return
    assert importlib.util.find_spec("tensorflow") is None
    for name in ("datasets", "distribution"):
        with pytest.raises(ImportError, match="needs TensorFlow"):
            getattr(keras_fa, name)
    with pytest.raises(ImportError, match=r"pip install 'keras_fa\[lab\]'"):
        _ = keras_fa.experiment
    with pytest.raises(ImportError, match="written by TensorFlow"):
        callbacks.Conservation(histogram_dir="histograms")


# --- Rules x layers ---


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", LAYERS)
def test_dense_layers_and_convolutions_equal_the_oracle(case, rule):
    layer, x = LAYERS[case].make(rule), LAYERS[case].inputs()
    layer.build(x.shape)
    start = array(layer.kernel)
    moved(layer)
    y, (dx, *d_weights) = differentiated(layer, x, layer.trainable_variables, error)
    stored, kernel, bias = helpers.stored(layer), array(layer.kernel), array(layer.bias)
    feedback = RULES[rule](kernel, start, stored)
    if case.startswith("dense"):
        forward, backward = helpers.dense, helpers.dense_gradients
    else:
        one = (1,) * (x.ndim - 2)
        oracle = helpers.Convolution(one, one, "same")
        forward, backward = oracle.forward, oracle.gradients
    expected_dx, *expected = backward(error(y.shape), x, feedback)
    if rule in LEARNED:
        expected += LEARNED[rule](expected[0], stored).values()
    assert_rounding(y, forward(x, kernel, bias))
    assert_rounding(dx, expected_dx)
    for actual, wanted in zip(d_weights, expected, strict=True):
        assert_rounding(actual, wanted)
    helpers.assert_backward_kernel(layer, rule, kernel, start, stored)


def assert_rounding(actual, expected):
    """Float32 against float64. Measured on PyTorch: 1.1e-6 of the largest entry."""
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(
    ("case", "rule"),
    cells(itertools.product(FURTHER, RULES), lambda _, rule: rule in ("fa", "frsf")),
)
def test_further_layers_equal_the_oracle(case, rule):
    row = FURTHER[case]
    layer, x = row.make(rule), row.inputs(batch=2)
    row.run(layer, x)
    weights, maps = forward_variables(layer), helpers.maps_of(layer)
    starts = [array(weights[number]) for _, _, number in maps]
    moved(layer)
    y, (dx, *d_weights) = differentiated(
        lambda x: row.run(layer, x), x, layer.trainable_variables, error
    )
    feedback = []
    for (part, index, number), start, layout in zip(
        maps, starts, row.layouts, strict=True
    ):
        now, stored = array(weights[number]), helpers.stored(part, index)
        helpers.assert_backward_kernel(part, rule, now, start, stored, index, layout)
        feedback.append(RULES[rule](now, start, stored, layout))
    expected_y, pull = row.oracle(
        row.arguments, x.astype("float64"), [array(w) for w in weights], feedback
    )
    assert_rounding(y, expected_y)
    expected_dx, *expected = pull(error(y.shape))
    assert_rounding(dx, expected_dx)
    wanted = {id(w): gradient for w, gradient in zip(weights, expected, strict=True)}
    if rule in LEARNED:
        for (part, index, number), layout in zip(maps, row.layouts, strict=True):
            stored = helpers.stored(part, index)
            made = LEARNED[rule](expected[number], stored, layout)
            wanted.update({id(part.stored(index)[n]): g for n, g in made.items()})
    largest = max(np.abs(gradient).max() for gradient in expected)
    for variable, gradient in zip(layer.trainable_variables, d_weights, strict=True):
        if np.abs(wanted[id(variable)]).max() < 1e-14 * largest:
            # The bias of the keys, which softmax takes away again.
            assert np.abs(gradient).max() < 1e-6 * largest
        else:
            assert_rounding(gradient, wanted[id(variable)])


# --- Networks ---


def network(rule):
    """A convolution and two dense layers."""
    keras.utils.set_random_seed(1)
    inner = [
        keras.Input((5, 6, 2)),
        FeedbackConv2D(4, 3, rule=rule, name="first"),
        keras.layers.LeakyReLU(),
        keras.layers.Flatten(),
        FeedbackDense(6, "tanh", rule=rule, name="second"),
        FeedbackDense(3, rule=rule, name="third"),
    ]
    return models.wiring.wire(keras.Sequential(inner))


def compiled(model, optimizer=None, **how):
    model.compile(
        optimizer or optimizers.TorchSGD(0.05, momentum=0.9), cross_entropy(), **how
    )
    return model


def values(model):
    return [array(v) for v in model.variables]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", cells(zip(rules.NAMES), lambda rule: rule in ("sign_fa", "kolen_pollack"))
)
def test_a_model_trains_is_saved_and_trains_on(rule, tmp_path):
    """Compiled as Keras does by default, and the file's model with the same steps."""
    model = compiled(network(rule))
    x, y = data((5, 6, 2))
    kept = [array(v) for v in feedback_variables(model) if not v.trainable]
    start = values(model)
    model.fit(x, y, 4, 3, shuffle=False, verbose=0)
    assert not np.array_equal(values(model)[0], start[0])
    if rule not in helpers.MOVING:
        still = [array(v) for v in feedback_variables(model) if not v.trainable]
        for one, other in zip(still, kept, strict=True):
            np.testing.assert_array_equal(one, other)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [type(part.rule) for part in feedback_layers(loaded)] == [
        type(part.rule) for part in feedback_layers(model)
    ]
    for one in (model, loaded):
        one.fit(x, y, 4, 2, shuffle=False, verbose=0)
    for one, other in zip(values(loaded), values(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_short_form_of_product_feedback_knows_the_optimizers_it_holds_for():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            FeedbackDense(5, rule="pfa_short"),
            FeedbackDense(3, rule="pfa_short"),
        ]
    )
    for optimizer in (keras.optimizers.SGD(0.1), optimizers.TorchSGD(0.1)):
        model.compile(optimizer, cross_entropy())
        assert np.isfinite(model.train_on_batch(*data((4,))))
    for optimizer in (
        keras.optimizers.Adam(0.1),
        keras.optimizers.SGD(0.1, clipnorm=1),
    ):
        model.compile(optimizer, cross_entropy())
        with pytest.raises(ValueError, match="linear in the gradient"):
            model.train_on_batch(*data((4,)))


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [None, 2])
def test_ghosts_are_no_part_of_a_global_norm(accumulated):
    ends = []
    for ghost in (False, True):
        keras.utils.set_random_seed(0)
        rule = rules.DirectFeedbackAlignment(seed=1, ghost=ghost)
        model = models.mlp((5,), (6, 6), 3, rule)
        optimizer = keras.optimizers.SGD(
            0.5, global_clipnorm=0.1, gradient_accumulation_steps=accumulated
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        x = np.random.default_rng(0).normal(size=(8, 5))
        for _ in range(4):
            model.train_on_batch(x, np.arange(8) % 3)
        ends.append(
            [
                np.array(layer.kernel)
                for layer in model.layers
                if layer.name[:5] == "dense"
            ]
        )
    assert len(ends[0]) == 3
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)
    ghosts = model.layers[-1].ghosts
    # Clipped by the same factor: a step of theirs is no longer than the weights' one.
    lengths = [np.linalg.norm(g) for g in ghosts]
    assert all(0 < length < 4 * 0.5 * 0.2 for length in lengths)


@pytest.mark.parametrize(
    ("names", "refused"),
    [(["kernel"], True), (["share|feedback|R"], True), (["bias"], False)],
)
@pytest.mark.parametrize("rule", ["pfa_short", "pfa", "kolen_pollack"])
def test_decay_acts_on_what_is_learned_as_on_w(rule, names, refused):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            FeedbackDense(3, rule=rule, name="one"),
            FeedbackDense(2, rule=rule, name="two"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=names)
    model.compile(optimizer, "mse", run_eagerly=True)
    before = model.get_weights()
    if refused:
        with pytest.raises(ValueError, match=r"act on what.*one/kernel.*Name all"):
            model.train_on_batch(np.ones((3, 4)), np.ones((3, 2)))
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        model.train_on_batch(np.ones((3, 4)), np.ones((3, 2)))


@pytest.mark.skipif(BACKEND != "torch", reason="the device meta is PyTorch's")
def test_a_network_is_on_the_device_asked_for():
    with keras.device("meta"):
        model = models.lenet((18, 18, 2), 3, "fa")
        assert {v.value.device.type for v in model.variables} == {"meta"}
        assert model(ops.ones((2, 18, 18, 2))).device.type == "meta"


@pytest.mark.parametrize("rule", ["fa", "sign_fa", "ada_fa"])
def test_a_stock_model_is_converted_and_back(rule):
    stock = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x, _ = data((6, 6, 1))
    model, report = keras_fa.convert(stock, rule)
    assert "Conv2D" in str(report)
    np.testing.assert_array_equal(array(model(x)), array(stock(x)))
    back = keras_fa.to_stock(model)
    assert not feedback_layers(back)
    np.testing.assert_array_equal(array(back(x)), array(stock(x)))


# --- The instruments ---


def mlp(rule, inputs=6, units=(7, 5), classes=3, seed=4):
    """Weights of NumPy's, so that every backend has the same."""
    model = models.mlp((inputs,), units, classes, rule)
    random = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype == "float32":
            scale = np.sqrt(1 / max(variable.shape[0], 1))
            variable.assign((random.normal(size=variable.shape) * scale).astype("f"))
    return model


def mlp_sides(model, x, y):
    """Both gradients of the mean cross entropy by hand: [dW_1, db_1, ...] twice."""
    dense = feedback_layers(model)
    weights = [(array(d.kernel).astype("d"), array(d.bias).astype("d")) for d in dense]
    kernels = [kernel for kernel, _ in weights]
    sides = []
    for feedback in (kernels, [array(d.backward_kernel()).astype("d") for d in dense]):
        sides.append(helpers.mlp_gradients(x.astype("d"), y, weights, feedback, 0.01))
    return sides


@pytest.mark.parametrize("rule", ["fa", "sign_fa", "backprop", "kolen_pollack"])
def test_gradient_alignment_is_that_of_both_gradients_by_hand(rule):
    model = mlp(rule)
    x, y = data((6,))
    before = values(model)
    found = analysis.gradient_alignment(model, x, y, cross_entropy())
    true, feedback = (
        np.concatenate([g.ravel() for g in s]) for s in mlp_sides(model, x, y)
    )
    # Measured on PyTorch, the norms: 2e-8.
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(true), rtol=1e-5)
    np.testing.assert_allclose(found.feedback_norm, np.linalg.norm(feedback), rtol=1e-5)
    np.testing.assert_allclose(found.inner_product, true @ feedback, rtol=1e-5)
    assert list(found.layers) == [layer.name for layer in feedback_layers(model)]
    kept = analysis.GradientAlignment(model, cross_entropy())
    for _ in range(2):
        again = kept(x, y)
        np.testing.assert_allclose(again.inner_product, found.inner_product, rtol=1e-6)
    # Other weights are seen, which compiled code might have kept.
    model.variables[0].assign(2 * array(model.variables[0]))
    before[0] = 2 * before[0]
    true, feedback = (
        np.concatenate([g.ravel() for g in s]) for s in mlp_sides(model, x, y)
    )
    np.testing.assert_allclose(kept(x, y).inner_product, true @ feedback, rtol=1e-5)
    for one, other in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rule", ["kolen_pollack", "pfa_short"])
def test_what_an_optimizer_learns_is_measured_with_and_without_one(rule):
    model = models.mlp((5,), (6,), 3, rule=rule)
    x, y = data((5,))
    loss = cross_entropy()
    alone = analysis.gradient_alignment(model, x, y, loss)
    errors = analysis.error_alignment(model, x, y, loss)
    # Its decay is asked for at each call in training.
    model.compile(optimizers.TorchSGD(0.1, weight_decay=1e-3), loss)
    assert analysis.gradient_alignment(model, x, y) == alone
    assert analysis.error_alignment(model, x, y) == errors


def test_error_signals_are_those_by_hand():
    model = mlp("fa")
    x, y = data((6,))
    first, second, third = feedback_layers(model)
    hidden = array(x)
    for layer in (first, second):
        pre = hidden @ array(layer.kernel) + array(layer.bias)
        hidden = np.where(pre > 0, pre, 0.01 * pre)
    delta = helpers.softmax_error(hidden @ array(third.kernel) + array(third.bias), y)
    slope = np.where(pre > 0, 1, 0.01)
    found = {}
    for side in ("kernel", "feedback"):
        signal = delta @ array(getattr(third, side)).T
        before = (signal * slope) @ array(getattr(second, side)).T
        found[side] = {second.name: signal, first.name: before}
    for per_example in (False, True):
        measured = analysis.error_alignment(
            model, x, y, cross_entropy(), per_example=per_example
        )
        assert list(measured) == [first.name, second.name]
        for name, alignment in measured.items():
            sides = [found[side][name] for side in ("kernel", "feedback")]
            if not per_example:
                sides = [side.sum(axis=0) for side in sides]
            true, feedback = (side.ravel() for side in sides)
            np.testing.assert_allclose(
                alignment.cosine,
                true @ feedback / np.linalg.norm(true) / np.linalg.norm(feedback),
                rtol=1e-5,
            )


def lenet():
    keras.utils.set_random_seed(0)
    model = models.lenet((18, 18, 2), 3, "fa")
    random = np.random.default_rng(7)
    for variable in model.variables:
        if variable.dtype == "float32":
            scale = np.sqrt(1 / max(np.prod(variable.shape[:-1]), 1))
            variable.assign((random.normal(size=variable.shape) * scale).astype("f"))
    return model


def test_gradient_alignment_of_lenet_is_that_of_both_gradients_by_hand():
    model = lenet()
    x, y = data((18, 18, 2))
    found = analysis.gradient_alignment(model, x, y, cross_entropy())
    layers = feedback_layers(model)
    weights = [(array(d.kernel).astype("d"), array(d.bias).astype("d")) for d in layers]
    sides = [
        helpers.lenet_gradients(x.astype("d"), y, weights, feedback)
        for feedback in (
            [kernel for kernel, _ in weights],
            [array(d.backward_kernel()).astype("d") for d in layers],
        )
    ]
    true, feedback = (np.concatenate([g.ravel() for g in side]) for side in sides)
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(true), rtol=1e-5)
    np.testing.assert_allclose(found.feedback_norm, np.linalg.norm(feedback), rtol=1e-5)
    np.testing.assert_allclose(found.inner_product, true @ feedback, rtol=1e-5)


def noisy():
    """A net with BatchNorm, a skip and dropout without a seed of its own."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 2))
    x = FeedbackConv2D(4, 3, padding="same", name="conv_1")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn_1")(x))
    y = FeedbackConv2D(4, 3, padding="same", name="conv_2")(x)
    y = keras.layers.BatchNormalization(name="bn_2")(y)
    x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.Dropout(0.4)(keras.layers.Flatten()(x))
    x = FeedbackDense(6, "relu", name="hidden")(x)
    return keras.Model(inputs, FeedbackDense(3, name="output")(x))


@pytest.mark.slow
def test_both_passes_see_one_dropout_mask_and_leave_nothing():
    """Under B = W they are one pass: another mask or moving statistic would show."""
    model = compiled(noisy())
    for layer in feedback_layers(model):
        layer.feedback.assign(array(layer.kernel))
    x, y = data((8, 8, 2))
    before = values(model)
    measure = analysis.GradientAlignment(model)
    first = measure(x, y)
    np.testing.assert_allclose(first.cosine, 1.0, rtol=1e-9)
    np.testing.assert_allclose(first.gradient_norm, first.feedback_norm, rtol=1e-9)
    assert set(measure.errors(x, y)) >= {"conv_1", "conv_2", "hidden"}
    predicted, decrease = measure.loss_decrease(x, y, 1e-3)
    # Measured on PyTorch: 0.8 % of second order.
    np.testing.assert_allclose(decrease, predicted, rtol=0.05)
    for one, other in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_audit_looks_at_every_place():
    model = compiled(noisy())
    x, y = data((8, 8, 2))
    before = values(model)
    verdict = analysis.audit(model, x, y)
    assert {row.layer for row in verdict.rows} >= {
        "conv_1",
        "conv_2",
        "hidden",
        "output",
    }
    for one, other in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rule", ["fa", "sign_fa"])
def test_groups_potentials_and_the_ledger_close(rule):
    model = models.mlp((6,), (7, 5), 3, rule, activation="relu")
    model.compile(optimizers.TorchSGD(0.1), cross_entropy())
    x, y = data((6,))
    groups = analysis.conserved_groups(model)
    assert [group.conserved for group in groups].count(True) == 2
    start = analysis.potentials(model, groups)
    ledger = analysis.Ledger(model, groups)
    for _ in range(5):
        model.train_on_batch(x, y)
        ledger.step()
    for name, entry in ledger.report().items():
        now = analysis.potentials(model, groups)[name]
        np.testing.assert_array_equal(entry.measured, now - start[name])
        assert np.abs(entry.measured).max() > 1e-6
        # The weights are float32, the books float64.
        assert np.abs(entry.remainder).max() < 1e-12
        # Of first order is what float32 rounds.
        assert np.abs(entry.first_order).max() < 1e-6


@pytest.mark.slow
def test_callbacks_read_the_weights_of_the_moment():
    model = compiled(noisy(), optimizers.TorchSGD(0.05))
    x, y = data((8, 8, 2))
    seen = []

    class Weights(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(analysis.weight_alignment(self.model)["hidden"])

    instruments = [
        callbacks.WeightAlignment(unit="step"),
        callbacks.Conservation(ledger=True),
        callbacks.GradientAlignment(x, y),
        callbacks.ErrorAlignment(x, y),
        callbacks.Audit(x, y, unit="epoch", every=1),
        Weights(),
    ]
    history = model.fit(
        x, y, 4, 2, shuffle=False, verbose=0, callbacks=instruments
    ).history
    assert len(set(seen)) == 4
    assert history["alignment/hidden"] == [seen[1], seen[3]]
    assert {"gradient_cosine", "error_cosine/hidden", "audit/rank/conv_1"} <= {*history}
    remainders = [v for k, v in history.items() if "ledger/remainder" in k]
    drifts = [v for k, v in history.items() if "drift/" in k]
    assert remainders and np.max(np.abs(remainders)) < 1e-12
    assert np.max(drifts) > 1e-6
    assert set(history["gradient_cosine"]) != {1.0}


def test_a_second_derivative_is_refused():
    layer = FeedbackDense(3)
    layer.build((None, 4))

    def loss(x):
        return ops.sum(ops.tanh(layer(x)))

    with pytest.raises(NotImplementedError, match="second derivative"):
        SECOND[BACKEND](loss, ops.ones((2, 4)))


def _second_of_tensorflow(loss, x):
    import tensorflow as tf

    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = loss(x)
        square = ops.sum(inner.gradient(value, x) ** 2)
    outer.gradient(square, x)


def _second_of_jax(loss, x):
    import jax

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (x,), (x,))
    jax.jit(jax.grad(lambda x: ops.sum(jax.grad(loss)(x) ** 2)))(x)


def _second_of_torch(loss, x):
    import torch

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), [x], create_graph=True)
    torch.autograd.grad(ops.sum(gradient**2), [x])


SECOND = {
    "tensorflow": _second_of_tensorflow,
    "jax": _second_of_jax,
    "torch": _second_of_torch,
}
