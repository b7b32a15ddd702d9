"""The short form of product feedback against the long one, and what it is not for."""

import keras
import numpy as np
import pytest
from helpers import assert_close, standing

import keras_fa
from keras_fa import rules
from keras_fa.layers import FeedbackConv2D, FeedbackDense
from keras_fa.optimizers import TorchSGD

STEPS, RATE = 30, 2.0**-4
FORMS = {"long": rules.ProductFeedback, "short": rules.ShortProductFeedback}


def network(form, kind="dense", dtype="float64", expansion=3, **arguments):
    """A network whose two upper layers are under the rule."""
    rule = FORMS[form](expansion, seed=3)
    arguments = {"rule": rule, "dtype": dtype, "activation": "tanh", **arguments}
    keras.utils.set_random_seed(0)
    if kind == "dense":
        shape, layers = (5,), [FeedbackDense(6, **arguments) for _ in range(3)]
    else:
        shape = (4, 3, 2)
        first = FeedbackConv2D(3, 3, padding="same", **arguments)
        second = FeedbackConv2D(4, (2, 3), **arguments)
        layers = [first, second, keras.layers.Flatten(dtype=dtype)]
    end = FeedbackDense(3, rule=rule, dtype=dtype)
    start = keras.Input(shape, dtype=keras.DTypePolicy(dtype).compute_dtype)
    return keras.Sequential([start, *layers, end])


def data(model, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(8, *model.input_shape[1:])), np.arange(8) % 3


def trained(model, optimizer, steps=STEPS):
    """The weights of the forward pass after some steps, the rate halved midway."""
    dtype = model.layers[-1].variable_dtype
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
    model.compile(optimizer, loss, jit_compile=False)
    for step in range(steps):
        if step == steps // 2:
            model.optimizer.learning_rate = RATE / 2
        model.train_on_batch(*data(model, step))
    return [np.array(w) for w in keras_fa.layers.forward_variables(model)]


OPTIMIZERS = {
    "sgd": lambda: TorchSGD(RATE),
    "momentum, coupled decay": lambda: TorchSGD(RATE, 0.875, weight_decay=2.0**-5),
    "decoupled decay": lambda: keras.optimizers.SGD(RATE, 0.875, weight_decay=2.0**-5),
    "nesterov": lambda: keras.optimizers.SGD(RATE, 0.5, nesterov=True),
}


@pytest.fixture
def double():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


# Two cells stand for all: both kinds, both ways to decay.
STANDING = [("dense", "decoupled decay"), ("conv", "momentum, coupled decay")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        standing(kind, name, stands=(kind, name) in STANDING)
        for kind in ("dense", "conv")
        for name in OPTIMIZERS
    ],
)
def test_thirty_steps_are_those_of_the_long_form(double, kind, optimizer):
    ends = [
        trained(network(form, kind), OPTIMIZERS[optimizer]())
        for form in ("short", "long")
    ]
    for one, other in zip(*ends, strict=True):
        # Measured: 2e-15.
        assert_close(one, other, 1e-12)


@pytest.mark.slow
def test_b_and_the_law_are_those_of_the_long_form(double):
    models = [network(form, "conv") for form in ("short", "long")]
    for model in models:
        trained(model, OPTIMIZERS["momentum, coupled decay"]())
    for short, long in zip(*map(keras_fa.layers.feedback_layers, models), strict=True):
        assert_close(short.backward_kernel(), long.backward_kernel(), 1e-11)
        (one, none), (other, _) = short.potential(), long.potential()
        assert none is None
        squares = [np.sum(np.square(v), axis=-1) for v in (one, other)]
        assert_close(*squares, 1e-11)
        assert one.shape[-1] == short.kernel.shape[-1] + 1


def test_p_has_glorots_scale_times_the_gain():
    rule = rules.ProductFeedback(expansion=2, seed=1)
    layer = keras_fa.layers.FeedbackDense(50, rule=rule)
    layer.build((None, 30))
    (p,) = (w.numpy() for w in layer.weights if w.shape == (100, 50))
    # (1 + 1/k) / 2 of the variance 2 / (100 + 50). Measured: 1.00.
    assert p.var() / (0.75 * 2 / 150) == pytest.approx(1, abs=0.05)


def test_nothing_of_the_expansions_size_is_stored():
    layer = FeedbackDense(6, rule=rules.ShortProductFeedback(100))
    layer.build((None, 5))
    assert {v.name: tuple(v.shape) for v in layer.feedback_variables()} == {
        **{"offset": (5, 6), "gram": (6, 6)},
        **{"rest": (5, 1), "share": ()},
    }


def test_an_expansion_of_one_leaves_nothing_outside(double):
    layer = network("short", expansion=1).layers[1]
    assert np.abs(layer.stored()["rest"].numpy()).max() < 1e-9


@pytest.mark.slow
def test_float32_and_mixed_precision():
    # Measured: 8e-7, and 0.02, which is bfloat16's rounding over thirty steps.
    for dtype, tolerance in (("float32", 1e-5), ("mixed_bfloat16", 5e-2)):
        ends = [
            trained(network(form, dtype=dtype), OPTIMIZERS["sgd"]())
            for form in ("short", "long")
        ]
        for one, other in zip(*ends, strict=True):
            assert_close(one, other, tolerance)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "match"),
    [
        ("adam", {}, "linear in the gradient.*Received: adam"),
        (lambda: TorchSGD(RATE, clipnorm=1.0), {}, "without clipping"),
        (lambda: keras.optimizers.SGD(global_clipnorm=1.0), {}, "without clipping"),
        ("sgd", {"kernel_constraint": "non_neg"}, "without a constraint"),
        ("sgd", {"kernel_regularizer": "l1"}, "no penalty but"),
    ],
)
def test_what_it_is_not_for_is_refused(optimizer, arguments, match):
    model = network("short", dtype="float32", **arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made = [o if isinstance(o, str) else o() for o in (optimizer, optimizer)]
    model.compile(made[0], loss, run_eagerly=True)
    with pytest.raises(ValueError, match=match):
        model.train_on_batch(*data(model))
    long = network("long", dtype="float32", **arguments)
    long.compile(made[1], loss, run_eagerly=True)
    long.train_on_batch(*data(long))
    # In inference and without training nobody is refused.
    assert model.predict(data(model)[0], verbose=0).shape == (8, 3)


@pytest.mark.slow
def test_a_penalty_of_squares_and_a_loss_scale_are_for_both(double):
    sgd = OPTIMIZERS["sgd"]
    ends = [
        trained(
            network(form, kernel_regularizer=keras.regularizers.L2(0.01)),
            TorchSGD(RATE),
        )
        for form in ("short", "long")
    ]
    for one, other in zip(*ends, strict=True):
        assert_close(one, other, 1e-11)
    model = network("short", dtype="mixed_float16")
    trained(model, keras.optimizers.LossScaleOptimizer(sgd()), 2)


def test_grouped_channels_have_no_law():
    rule = rules.ProductFeedback(2)
    layer = FeedbackConv2D(4, 3, groups=2, rule=rule)
    layer.build((None, 6, 6, 4))
    assert layer.potential() is None
    whole = FeedbackConv2D(4, 3, rule=rule)
    whole.build((None, 6, 6, 4))
    assert whole.potential() is not None
