"""The feedback rules: look-up, serialisation, and the B that each of them makes."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import initializers

from keras_fa import models, registry, rules
from keras_fa.layers import FeedbackConv2D, FeedbackDense, feedback_layers
from keras_fa.rules import (
    AdaptiveFeedbackAlignment,
    Backprop,
    FeedbackAlignment,
    SignFeedbackAlignment,
)

CLASSES = {
    "backprop": Backprop,
    "fa": FeedbackAlignment,
    "ada_fa": AdaptiveFeedbackAlignment,
    "sign_fa": SignFeedbackAlignment,
    "frsf": rules.FixedRandomSign,
    "brsf": rules.BatchRandomSign,
    "kolen_pollack": rules.KolenPollack,
    "pfa": rules.ProductFeedback,
    "pfa_short": rules.ShortProductFeedback,
    "weight_mirror": rules.WeightMirror,
    "dfa": rules.DirectFeedbackAlignment,
    "drtp": rules.DirectRandomTargetProjection,
    "dkp": rules.DirectKolenPollack,
}


_DIRECT = (
    rules.DirectFeedbackAlignment,
    rules.DirectRandomTargetProjection,
    rules.DirectKolenPollack,
)


def _dense(rule, units=4, inputs=5, **kwargs):
    layer = FeedbackDense(units, rule=rule, **kwargs)
    layer.build((None, inputs))
    return layer


def _feedback(*args, **kwargs):
    return _dense(*args, **kwargs).feedback.numpy()


@keras.saving.register_keras_serializable("tests")
class RedrawsTheSame(initializers.Initializer):
    """Draws one and the same array whenever it is called."""

    def __call__(self, shape, dtype=None):
        values = np.random.default_rng(0).normal(size=shape)
        return keras.ops.convert_to_tensor(values, dtype=dtype)


@keras.saving.register_keras_serializable("tests")
class DoubledFeedback(FeedbackAlignment):
    """A rule from outside the package."""

    def backward_kernel(self, kernel, feedback):
        return 2 * feedback


# --- Look-up and serialisation ---


def test_every_rule_is_a_row_of_the_tables():
    assert set(CLASSES) == set(rules.NAMES)
    direct = {name for name, rule in CLASSES.items() if rule in _DIRECT}
    # Those of direct feedback, which have no B of a layer's own, are in test_direct.
    assert set(rules.NAMES) - direct == set(helpers.RULES)


@pytest.mark.parametrize("name", CLASSES)
def test_get_takes_name_class_instance_and_config(name):
    rule_class = CLASSES[name]
    instance = rule_class()
    assert type(rules.get(name)) is rule_class
    assert type(rules.get(rule_class)) is rule_class
    assert rules.get(instance) is instance
    assert type(rules.get(rules.serialize(instance))) is rule_class
    assert type(rules.get({"class_name": name, "config": {}})) is rule_class
    assert type(rules.get({"class_name": rule_class.__name__})) is rule_class


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [("sing_fa", "sign_fa"), ("adafa", "ada_fa"), ("Backprob", "backprop")],
)
def test_get_unknown_lists_the_known_rules_and_the_nearest(unknown, nearest):
    with pytest.raises(ValueError) as error:
        rules.get(unknown)
    message = str(error.value)
    assert repr(unknown) in message
    assert f'Did you mean "{nearest}"?' in message
    assert all(name in message for name in rules.NAMES)


@pytest.mark.parametrize("unknown", [None, 3, "xyzzy", keras.layers.Dense])
def test_get_unknown_without_a_near_name_makes_no_guess(unknown):
    with pytest.raises(ValueError, match="Unknown rule") as error:
        rules.get(unknown)
    assert "Did you mean" not in str(error.value)


def test_get_refuses_the_config_of_something_else():
    with pytest.raises(ValueError, match="Not the config of a feedback rule"):
        rules.get(keras.saving.serialize_keras_object(keras.layers.Dense(1)))


@pytest.mark.parametrize("form", ["long", "short"])
def test_the_forms_that_product_feedback_had_name_the_two_rules(form):
    saved = rules.serialize(rules.ProductFeedback(4))
    saved["config"]["form"] = form
    layer = {**FeedbackDense(3).get_config(), "rule": saved}
    for read in (
        lambda: rules.get({"name": "pfa", "form": form}),
        lambda: rules.get(saved),
        lambda: FeedbackDense.from_config(layer),
    ):
        with pytest.raises((TypeError, ValueError), match=rf'"pfa_short".*{form!r}'):
            read()


@pytest.mark.parametrize(
    "rule",
    [
        Backprop(),
        AdaptiveFeedbackAlignment(),
        SignFeedbackAlignment(),
        SignFeedbackAlignment(1.0),
        FeedbackAlignment(),
        FeedbackAlignment(seed=7),
        FeedbackAlignment(initializers.RandomNormal(stddev=0.3, seed=5), seed=6),
        DoubledFeedback(seed=7),
    ],
    ids=repr,
)
def test_serialisation_round_trip(rule):
    config = rules.serialize(rule)
    again = rules.deserialize(config)
    assert type(again) is type(rule)
    assert again.get_config() == rule.get_config()
    assert rules.serialize(again) == config
    assert repr(again) == repr(rule)


def test_config_of_rules_holds_their_arguments():
    assert SignFeedbackAlignment(0.5).get_config() == {"scale": 0.5}
    assert FeedbackAlignment("ones", 3).get_config()["seed"] == 3
    assert isinstance(
        rules.get(rules.serialize(FeedbackAlignment("ones"))).initializer,
        initializers.Ones,
    )


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_seed_must_be_an_integer(seed):
    with pytest.raises(ValueError, match="must be an integer or None"):
        FeedbackAlignment(seed=seed)


@pytest.mark.parametrize("scale", ["he", 0, -1.0, float("inf"), True, None])
def test_scale_must_be_glorot_or_positive(scale):
    with pytest.raises(ValueError, match="must be"):
        SignFeedbackAlignment(scale)


def test_a_base_rule_stores_nothing_and_promises_nothing():
    rule = rules.FeedbackRule()
    assert rule.slots((5, 4)) == {}
    with pytest.raises(NotImplementedError):
        rule.backward_kernel(None)
    assert rule.potential(None) is None and rule.alignment_bound((5, 4)) is None
    for stored in (FeedbackAlignment(), DoubledFeedback()):
        assert stored.slots((5, 4))["feedback"].shape == (5, 4)


def test_labels_and_colours_are_the_rules_own():
    labels = [rules.label_of(rules.get(name)) for name in CLASSES]
    assert labels[:6] == ["BP", "FA", "adaFA", "sign-FA", "frSF", "brSF"]
    colors = {rules.get(name).color for name in CLASSES}
    assert len(set(labels)) == len(colors) == len(CLASSES)
    # Another rule, which neither looks nor is called like its base.
    assert rules.label_of(DoubledFeedback()) == "DoubledFeedback"
    assert DoubledFeedback.color is None


def test_a_rule_with_a_backward_kernel_of_its_own_promises_nothing_by_inheritance():
    """2B goes backward, so <W, B> is not what it conserves."""

    class Renamed(SignFeedbackAlignment):
        pass

    assert DoubledFeedback().potential(1, feedback=2) is None
    assert FeedbackAlignment().potential(1, feedback=2) == (1, 2)
    assert Renamed().alignment_bound((4, 4)) == 1 / 4


def test_a_rule_of_ones_own_by_name(monkeypatch):
    monkeypatch.setitem(
        registry._TABLES, "rule", dict(registry._TABLES["rule"], twice=DoubledFeedback)
    )
    layer = _dense({"name": "twice", "seed": 3})
    assert type(layer.rule) is DoubledFeedback
    assert rules.label_of(layer.rule) == "twice"


# --- sign-FA ---


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sign_of_zero_is_minus_one(dtype):
    kernel = tf.constant([[0.0, -0.0, 2.0, -3.0, 1e-7]], dtype)
    feedback = SignFeedbackAlignment(1.0).backward_kernel(kernel)
    assert feedback.dtype == dtype
    np.testing.assert_array_equal(feedback, [[-1.0, -1.0, 1.0, -1.0, 1.0]])


@pytest.mark.parametrize(
    ("shape", "fans"),
    [((5, 4), 9), ((3, 2, 4), 3 * 6), ((3, 2, 5, 4), 6 * 9), ((2, 2, 3, 1, 6), 12 * 7)],
)
def test_sign_scale_counts_the_area_in_both_fans(shape, fans):
    kernel = tf.random.normal(shape, dtype="float64")
    glorot = SignFeedbackAlignment().backward_kernel(kernel).numpy()
    # Exact in float64: the scale must not pass through float32.
    np.testing.assert_array_equal(np.abs(glorot), np.sqrt(2 / fans))
    np.testing.assert_array_equal(np.sign(glorot), np.sign(kernel))
    for scale in (1, 0.3):
        literal = SignFeedbackAlignment(scale).backward_kernel(kernel)
        np.testing.assert_array_equal(np.abs(literal), np.float64(scale))
    # The standard deviation of Keras's own Glorot initializer.
    drawn = initializers.GlorotNormal(seed=0)((30, 20, 40, 50)).numpy()
    kernel = tf.ones(drawn.shape)
    s = SignFeedbackAlignment().backward_kernel(kernel).numpy().max()
    # Measured: 1e-3 off with 1.2e6 draws.
    np.testing.assert_allclose(s, drawn.std(), rtol=3e-3)


def test_sign_follows_the_kernel_and_stores_nothing():
    layer = _dense("sign_fa")
    assert layer.feedback is None
    assert len(layer.weights) == 2 and not layer.non_trainable_weights
    x = tf.ones((3, 5))

    def input_gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, x)

    compiled = tf.function(input_gradient)
    before = layer.backward_kernel().numpy()
    gradient = compiled()
    layer.kernel.assign(-layer.kernel)
    np.testing.assert_array_equal(layer.backward_kernel(), -before)
    # The trace from before the update sees the new signs.
    np.testing.assert_array_equal(compiled(), -gradient)


# --- FA ---


def test_fa_is_independent_of_the_kernel():
    layer = _dense("fa", 300, 300)
    kernel, feedback = layer.kernel.numpy().ravel(), layer.feedback.numpy().ravel()
    # Two independent samples of 90,000: the correlation's deviation is 1/300.
    assert abs(np.corrcoef(kernel, feedback)[0, 1]) < 4 / 300
    # Both are Glorot uniform: the same bounds, nearly reached.
    limit = np.sqrt(6 / 600)
    for values in (kernel, feedback):
        assert 0.999 * limit < np.abs(values).max() <= limit
        np.testing.assert_allclose(values.std(), limit / np.sqrt(3), rtol=0.01)


def test_fa_stays_when_the_kernel_moves():
    layer = _dense("fa")
    before = layer.feedback.numpy()
    layer.kernel.assign(layer.kernel * 3)
    np.testing.assert_array_equal(layer.feedback, before)
    np.testing.assert_array_equal(layer.backward_kernel(), before)


@pytest.mark.parametrize(
    "initializer", ["glorot_uniform", "he_normal", initializers.RandomUniform(-2, 2)]
)
@pytest.mark.parametrize("make", [FeedbackDense, FeedbackConv2D])
def test_fa_has_the_scale_of_the_kernel_initializer(make, initializer):
    arguments = (400,) if make is FeedbackDense else (80, 5)
    layer = make(*arguments, kernel_initializer=initializer)
    layer.build((None, 9, 9, 50))
    kernel, feedback = layer.kernel.numpy(), layer.feedback.numpy()
    # Samples of 20,000 and more: 0.5% of deviation.
    np.testing.assert_allclose(feedback.std(), kernel.std(), rtol=0.03)
    assert abs(np.corrcoef(kernel.ravel(), feedback.ravel())[0, 1]) < 0.04


_SHARED = {
    "name": lambda: "fa",
    "unseeded": FeedbackAlignment,
    "seeded": lambda: FeedbackAlignment(seed=3),
    "initializer": lambda: FeedbackAlignment(initializers.RandomNormal()),
    "seeded_initializer": lambda: FeedbackAlignment(initializers.RandomNormal(seed=3)),
    "subclass": lambda: DoubledFeedback(seed=3),
}


@pytest.mark.parametrize("kind", _SHARED)
def test_layers_that_share_a_rule_draw_different_feedback(kind):
    rule = _SHARED[kind]()
    drawn = [_feedback(rule) for _ in range(3)]
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert not np.array_equal(drawn[i], drawn[j])
        # 20 pairs: not the same values in disguise either.
        assert abs(np.corrcoef(drawn[i].ravel(), drawn[j].ravel())[0, 1]) < 0.8


@pytest.mark.parametrize("kind", _SHARED)
def test_feedback_is_reproducible_from_the_global_seed(kind):
    drawn = []
    for seed in (5, 5, 6):
        keras.utils.set_random_seed(seed)
        rule = _SHARED[kind]()
        drawn.append([_feedback(rule) for _ in range(2)])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    # An explicit seed does not listen to the global one.
    explicit = kind in ("seeded", "seeded_initializer", "subclass")
    assert np.array_equal(drawn[0], drawn[2]) == explicit


def test_seed_decides_the_feedback():
    first = _feedback(FeedbackAlignment(seed=3))
    np.testing.assert_array_equal(first, _feedback(FeedbackAlignment(seed=3)))
    assert not np.array_equal(first, _feedback(FeedbackAlignment(seed=4)))
    drawn = keras.initializers.GlorotUniform(seed=3)(first.shape)
    np.testing.assert_array_equal(first, drawn)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_layer_from_the_config_of_a_seeded_one_draws_the_same(index):
    rule = FeedbackAlignment(seed=3)
    layer = [_dense(rule) for _ in range(index + 1)][-1]
    again = FeedbackDense.from_config(layer.get_config())
    again.build((None, 5))
    np.testing.assert_array_equal(again.feedback, layer.feedback)


def test_a_subclass_of_fa_survives_its_seed():
    layer = _dense(DoubledFeedback(seed=3))
    assert type(layer.rule) is DoubledFeedback
    np.testing.assert_array_equal(layer.backward_kernel(), 2 * layer.feedback.numpy())


def test_seed_of_the_kernel_is_refused():
    with pytest.raises(ValueError, match="share the seed 3"):
        _dense(
            FeedbackAlignment(seed=3),
            kernel_initializer=initializers.GlorotUniform(seed=3),
        )
    layer = _dense(
        FeedbackAlignment(seed=4), kernel_initializer=initializers.GlorotUniform(seed=3)
    )
    assert not np.array_equal(layer.feedback, layer.kernel)


def test_seeded_kernel_initializer_does_not_seed_the_feedback():
    kernel = initializers.GlorotUniform(seed=3)
    first, second = (_dense("fa", kernel_initializer=kernel) for _ in range(2))
    np.testing.assert_array_equal(first.kernel, second.kernel)
    assert not np.array_equal(first.feedback, first.kernel)
    assert not np.array_equal(first.feedback, second.feedback)


def test_initializer_that_redraws_the_kernel_is_refused():
    same = RedrawsTheSame()
    with pytest.raises(ValueError, match="equal to the kernel"):
        _dense("fa", kernel_initializer=same)
    with pytest.raises(ValueError, match="equal to the kernel"):
        _dense(FeedbackAlignment(same), kernel_initializer=same)
    layer = _dense(FeedbackAlignment("glorot_uniform"), kernel_initializer=same)
    assert not np.array_equal(layer.feedback, layer.kernel)


def test_constant_feedback_is_allowed_beside_a_constant_kernel():
    layer = _dense(FeedbackAlignment("ones"), kernel_initializer="ones")
    np.testing.assert_array_equal(layer.feedback, np.ones((5, 4)))


@pytest.mark.parametrize("rule", ["fa", "ada_fa"])
def test_feedback_that_carries_no_error_is_refused(rule):
    with pytest.raises(ValueError, match=r"'head': B would be zero.*glorot_uniform"):
        _dense(rule, kernel_initializer="zeros", name="head")
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="B must be finite"):
            _dense(rule, kernel_initializer=initializers.Constant(value))
    # The remedy that the error names.
    layer = _dense(FeedbackAlignment("glorot_uniform"), kernel_initializer="zeros")
    assert layer.feedback.numpy().any()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "lenet"])
def test_a_network_has_the_same_weights_under_every_rule(network):
    """Whatever a rule draws is not taken from the stream that W is drawn from."""

    def kernels(rule):
        keras.utils.set_random_seed(7)
        if network == "mlp":
            model = models.mlp((5,), (4, 4), 3, rule=rule)
        else:
            model = models.lenet((18, 18, 1), 3, rule=rule)
        return [layer.kernel.numpy() for layer in feedback_layers(model)]

    expected = kernels("backprop")
    for rule in (
        *rules.NAMES,
        FeedbackAlignment("he_normal"),
        FeedbackAlignment(seed=1),
    ):
        for kernel, other in zip(expected, kernels(rule), strict=True):
            np.testing.assert_array_equal(kernel, other)


def test_unseeded_feedback_follows_the_global_seed():
    def draw():
        keras.utils.set_random_seed(3)
        return [layer.feedback.numpy() for layer in (_dense("fa"), _dense("fa"))]

    first, second = draw(), draw()
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(*first)


def test_custom_initializers_draw_the_feedback():
    wide = _feedback(FeedbackAlignment(initializers.RandomUniform(5, 6)), 50, 50)
    assert 5 <= wide.min() < wide.max() <= 6
    np.testing.assert_array_equal(
        _feedback(
            FeedbackAlignment({"class_name": "Constant", "config": {"value": 2}})
        ),
        2,
    )
    # Any callable (shape, dtype) -> values will do.
    layer = _dense(
        FeedbackAlignment(lambda shape, dtype: keras.ops.full(shape, 7.0, dtype))
    )
    np.testing.assert_array_equal(layer.feedback, 7)


# --- adaFA and backpropagation ---


def test_ada_fa_is_the_kernel_of_the_start():
    layer = _dense("ada_fa")
    start = layer.kernel.numpy()
    np.testing.assert_array_equal(layer.feedback, start)
    layer.kernel.assign(layer.kernel * 3)
    np.testing.assert_array_equal(layer.backward_kernel(), start)
    layer.reset_feedback()
    np.testing.assert_array_equal(layer.feedback, 3 * start)


def test_backprop_is_the_kernel_itself():
    layer = _dense("backprop")
    assert layer.feedback is None and layer.backward_kernel() is layer.kernel
