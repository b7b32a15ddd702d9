"""The alignment instruments against NumPy, and that looking changes nothing."""

import math

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_fa import analysis, losses, models, registry, rules
from keras_fa.analysis import _alignment
from keras_fa.layers import (
    FeedbackConv2D,
    FeedbackDense,
    FeedbackSeparableConv2D,
    feedback_layers,
    forward_variables,
)

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batch(shape, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=shape).astype("float32"),
        rng.integers(0, classes, shape[0]),
    )


def residual(rule="fa", dropout=0.3):
    """A net with a nested block, BatchNorm, a skip, dropout and an activation=."""
    inputs = keras.Input((8, 8, 2))
    block_in = keras.Input((8, 8, 4))
    x = FeedbackConv2D(4, 3, padding="same", rule=rule, name="conv_2")(block_in)
    x = layers.BatchNormalization(name="bn_2")(x)
    block = keras.Model(block_in, layers.Add()([x, block_in]), name="block")
    x = FeedbackConv2D(4, 3, padding="same", rule=rule, name="conv_1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="bn_1")(x))
    x = layers.MaxPooling2D(2)(layers.ReLU()(block(x)))
    x = layers.Dropout(dropout)(layers.Flatten()(x))
    x = FeedbackDense(6, activation="relu", rule=rule, name="hidden")(x)
    return keras.Model(inputs, FeedbackDense(3, rule=rule, name="output")(x))


class Subclassed(keras.Model):
    """The one kind of model that cannot be cloned."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = FeedbackDense(6, activation="tanh", name="first")
        self.second = FeedbackDense(3, name="second")

    def call(self, inputs):
        return self.second(self.first(inputs))


def cosine(a, b):
    return np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


def numpy_feedback(layer):
    """B by the definition of the layer's rule."""
    kernel = layer.kernel.numpy().astype("float64")
    if isinstance(layer.rule, rules.Backprop):
        return kernel
    if isinstance(layer.rule, rules.SignFeedbackAlignment):
        fans = math.prod(kernel.shape[:-2]) * sum(kernel.shape[-2:])
        scale = np.asarray(math.sqrt(2 / fans), layer.kernel.dtype).astype("float64")
        return np.where(kernel > 0, 1, -1) * scale
    if layer.feedback is not None:
        return layer.feedback.numpy().astype("float64")
    name = registry.name_of("rule", type(layer.rule))
    return helpers.RULES[name](kernel, kernel, helpers.stored(layer)).astype("float64")


# TensorFlow keeps the slope of leaky_relu in float32 even in a float64 model.
SLOPE = float(np.float32(0.01))


def numpy_mlp(model, x, y, slope=SLOPE):
    """Both backward passes of a leaky-ReLU MLP with loss 1/n sum |f - y|^2, by hand.

    Returns:
        For (backprop, feedback): the {layer: (dW, db)}, and the {layer: dL/da}.
    """
    dense = feedback_layers(model)
    kernels = [np.asarray(layer.kernel.numpy(), "float64") for layer in dense]
    biases = [np.asarray(layer.bias.numpy(), "float64") for layer in dense]
    activations, pre = [x], []
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        pre.append(activations[-1] @ kernel + bias)
        last = i == len(dense) - 1
        activations.append(
            pre[-1] if last else np.where(pre[-1] > 0, pre[-1], slope * pre[-1])
        )
    results = []
    for backward in (
        kernels,
        [numpy_feedback(d) for d in dense],
    ):
        delta = 2 * (activations[-1] - y) / y.size
        gradients, errors = {}, {}
        for i in reversed(range(len(dense))):
            gradients[dense[i].name] = activations[i].T @ delta, delta.sum(axis=0)
            if i > 0:
                error = delta @ backward[i].T
                errors[dense[i - 1].name] = error
                delta = error * np.where(pre[i - 1] > 0, 1, slope)
        results.append((gradients, errors))
    return results


def float64_mlp(rule, outputs=2, **kwargs):
    model = models.mlp(
        (5,),
        (7, 6),
        outputs,
        rule,
        bias_initializer="random_normal",
        dtype="float64",
        **kwargs,
    )
    rng = np.random.default_rng(3)
    return model, rng.normal(size=(9, 5)), rng.normal(size=(9, outputs))


def flat(gradients, names):
    return np.concatenate([part.ravel() for name in names for part in gradients[name]])


# Weights.


# B is a sum of float32 products under pfa, and no layer's own under direct feedback.
@pytest.mark.parametrize("rule", sorted(set(helpers.RULES) - set(helpers.PRODUCTS)))
def test_weight_alignment_is_the_cosine_of_kernel_and_backward_kernel(rule):
    model = models.lenet((18, 18, 2), 3, rule=rule)
    for layer in feedback_layers(model):
        layer.kernel.assign_add(0.1 * np.random.normal(size=layer.kernel.shape))
    terms = analysis.alignment_terms(model)
    cosines = analysis.weight_alignment(model)
    assert list(terms) == list(cosines) == ["C1", "C2", "C3", "F1", "F2"]
    for layer in feedback_layers(model):
        w = layer.kernel.numpy().astype("float64")
        b = numpy_feedback(layer)
        measured = terms[layer.name]
        np.testing.assert_allclose(measured.inner_product, (w * b).sum(), rtol=1e-12)
        np.testing.assert_allclose(measured.true_norm**2, (w**2).sum(), rtol=1e-12)
        np.testing.assert_allclose(measured.feedback_norm**2, (b**2).sum(), rtol=1e-12)
        np.testing.assert_allclose(cosines[layer.name], cosine(w, b), rtol=1e-12)
        if rule == "backprop":
            assert cosines[layer.name] == pytest.approx(1, abs=1e-15)


def test_there_is_no_angle_to_zero():
    model = models.mlp((4,), 3, 2, rule="sign_fa", kernel_initializer="zeros")
    assert all(math.isnan(c) for c in analysis.weight_alignment(model).values())


@pytest.mark.parametrize(("sign", "degrees"), [(1, 0), (-1, 180)])
def test_an_angle_stands_a_cosine_that_rounding_made_more_than_one(sign, degrees):
    one = _alignment.Alignment(sign * (1 + 1e-15), 1.0, 1.0)
    assert abs(one.cosine) > 1
    assert one.degrees == degrees


def test_layers_that_send_nothing_back_have_no_alignment():
    assert analysis.weight_alignment(models.mlp((4,), 3, 2, rule="dfa")) == {}


@pytest.mark.parametrize("rule", helpers.RULES)
def test_lemma_5_4_is_promised_of_fixed_feedback_alone(rule):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            FeedbackDense(3, "relu", rule=rule, use_bias=False),
            FeedbackDense(1, rule=rule, use_bias=False),
        ]
    )
    hidden, output = feedback_layers(model)
    hidden.kernel.assign(0.01 * hidden.kernel)
    output.kernel.assign(np.ones((3, 1)))
    if "feedback" in output.stored():
        output.feedback.assign(np.ones((3, 1)))
    promised = analysis.weight_alignment_bounds(model)[output.name] is not None
    assert promised == (rule in ("backprop", "fa", "ada_fa", "sign_fa"))


def test_models_without_feedback_layers_or_weights_are_refused():
    with pytest.raises(ValueError, match="no feedback layers"):
        analysis.weight_alignment(keras.Sequential([keras.Input((2,))]))
    with pytest.raises(ValueError, match="'first' of model 'subclassed' is not built"):
        analysis.weight_alignment(Subclassed(name="subclassed"))


def test_layers_of_one_name_are_told_apart_by_their_paths():
    def block(name):
        # The two of one name in one place have nothing but their order.
        stock = [layers.Dense(3, name="stock"), layers.Dense(3, name="alone")]
        model = keras.Sequential([keras.Input((3,)), *stock[: 1 + (name == "a")]])
        return keras.Sequential(
            [keras.Input((3,)), model, FeedbackDense(3, name="d")], name=name
        )

    for part in (blocks := [block("a"), block("b")]):
        part.layers[0].name = "inner"
    model = keras.Sequential(
        [keras.Input((3,)), *blocks, FeedbackDense(2, name="last")]
    )
    cosines = analysis.weight_alignment(model)
    assert list(cosines) == ["a/d", "b/d", "last"]
    for name in "ab":
        layer = model.get_layer(name).layers[-1]
        expected = cosine(layer.kernel.numpy().ravel(), layer.feedback.numpy().ravel())
        assert cosines[f"{name}/d"] == pytest.approx(expected)
    x = np.random.normal(size=(4, 3)).astype("float32")
    result = analysis.gradient_alignment(model, x, x[:, :2], "mse")
    stock = {"a/inner/stock", "alone", "b/inner/stock"}
    assert set(result.layers) == {*cosines, *stock}
    assert set(analysis.error_alignment(model, x, x[:, :2], "mse")) == {"a/d", "b/d"}


def test_layers_of_one_path_are_numbered():
    class Pair(layers.Layer):
        def __init__(self):
            super().__init__(name="pair")
            self.parts = [FeedbackDense(3, name="d"), FeedbackDense(3, name="d")]

        def call(self, x):
            return self.parts[1](self.parts[0](x))

    inputs = keras.Input((3,))
    model = keras.Model(inputs, FeedbackDense(1)(Pair()(inputs)))
    keys = list(analysis.weight_alignment(model))
    assert keys[:2] == ["pair/d", "pair/d.2"]


def test_a_layer_of_several_maps_has_an_angle_for_each():
    inputs = keras.Input((6, 6, 2))
    layer = FeedbackSeparableConv2D(3, 2, rule="sign_fa", name="s")
    model = keras.Model(inputs, layers.Flatten()(layer(inputs)))
    cosines = analysis.weight_alignment(model)
    bounds = analysis.weight_alignment_bounds(model)
    for index, name in enumerate(("depthwise_kernel", "pointwise_kernel")):
        kernel = getattr(layer, name).numpy().ravel()
        backward = layer.backward_kernel(index).numpy().ravel()
        assert cosines[f"s/{name}"] == pytest.approx(cosine(kernel, backward))
        assert bounds[f"s/{name}"] == pytest.approx(kernel.size**-0.5)
    assert set(analysis.smallest_weights(model)) == set()
    inputs = keras.Input((3,))
    one = FeedbackDense(1, name="one")
    assert set(analysis.smallest_weights(keras.Model(inputs, one(inputs)))) == {"one"}


@pytest.mark.slow
def test_transformers_and_bidirectional_networks_are_measured():
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 2, name="m1")(inputs, inputs)
    x = layers.MultiHeadAttention(2, 2, name="m2")(x, x)
    x = layers.Bidirectional(layers.GRU(3, name="g"), name="bi")(x)
    model = keras.Model(inputs, FeedbackDense(2, name="out")(x))
    x, y = np.random.normal(size=(2, 5, 4)), np.zeros((2, 2))
    result = analysis.gradient_alignment(model, x.astype("float32"), y, "mse")
    parts = ("query", "key", "value", "attention_output")
    assert set(result.layers) == {
        *(f"{m}/{part}" for m in ("m1", "m2") for part in parts),
        "bi/forward_g/gru_cell",
        "bi/backward_g/gru_cell",
        "out",
    }


@pytest.mark.slow
def test_sign_feedback_is_never_under_its_bound_in_training():
    x, y = batch((32, 18, 18, 2))
    model = models.lenet((18, 18, 2), 3, rule="sign_fa")
    # One weight far above the others brings the first layer near the bound.
    kernel = model.get_layer("C1").kernel
    spike = np.full(kernel.shape, 1e-6)
    spike[0, 0, 0, 0] = 1
    kernel.assign(spike)
    bounds = analysis.weight_alignment_bounds(model)
    assert bounds["C2"] == 1 / math.sqrt(3 * 3 * 32 * 64)
    assert analysis.weight_alignment(model)["C1"] < 1.01 * bounds["C1"]
    model.compile(keras.optimizers.SGD(0.2, momentum=0.9), CROSSENTROPY)
    for _ in range(8):
        model.train_on_batch(x, y)
        cosines = analysis.weight_alignment(model)
        assert all(cosines[name] >= bounds[name] for name in bounds)


def test_bounds_of_the_other_rules():
    assert set(
        analysis.weight_alignment_bounds(models.mlp((3,), 4, 2, "backprop")).values()
    ) == {1.0}
    assert analysis.weight_alignment_bounds(models.mlp((3,), 4, 2, "fa")) == {
        "dense_1": None,
        "dense_2": None,
    }


def scalar_output_net(*middle, scale=0.1, **hidden):
    ones = {"kernel_initializer": "ones", "use_bias": False}
    start = keras.initializers.RandomNormal(stddev=scale, seed=1)
    return keras.Sequential(
        [
            keras.Input((3,)),
            FeedbackDense(16, kernel_initializer=start, **hidden),
            *middle,
            FeedbackDense(1, name="output", **ones),
        ]
    )


@pytest.mark.parametrize(
    ("model", "bound"),
    [
        (lambda: scalar_output_net(layers.LeakyReLU(0.1)), 1 / 4),
        (lambda: scalar_output_net(layers.ReLU(), layers.Dropout(0.1)), 1 / 4),
        (lambda: scalar_output_net(layers.Activation("relu")), 1 / 4),
        (lambda: scalar_output_net(activation="relu"), 1 / 4),
        # Incoming norms too large, by the kernel or by the bias.
        (lambda: scalar_output_net(layers.ReLU(), scale=3.0), None),
        (lambda: scalar_output_net(layers.ReLU(), bias_initializer="ones"), 1 / 4),
        (
            lambda: scalar_output_net(
                layers.ReLU(), bias_initializer=keras.initializers.Constant(1.5)
            ),
            None,
        ),
        # Not positively homogeneous.
        (lambda: scalar_output_net(layers.ReLU(max_value=6)), None),
        (lambda: scalar_output_net(layers.ReLU(threshold=0.5)), None),
        (lambda: scalar_output_net(activation="tanh"), None),
        (lambda: scalar_output_net(layers.Activation("tanh")), None),
        (lambda: scalar_output_net(layers.BatchNormalization()), None),
    ],
)
def test_the_bound_of_a_scalar_output_layer_needs_the_conditions_of_the_lemma(
    model, bound
):
    assert analysis.weight_alignment_bounds(model())["output"] == bound


# Gradients.


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: models.mlp((6,), (8, 8), 3, "backprop"), (16, 6)),
        (lambda: models.lenet((18, 18, 2), 3, "backprop"), (8, 18, 18, 2)),
        (lambda: residual("backprop"), (16, 8, 8, 2)),
    ],
)
def test_under_backpropagation_both_gradients_are_one(model, shape):
    model = model()
    result = analysis.gradient_alignment(model, *batch(shape), CROSSENTROPY)
    for terms in (result.whole, *result.layers.values()):
        # A bias before BatchNorm has a gradient of rounding errors only.
        if terms.true_norm > 1e-6:
            assert terms.cosine == pytest.approx(1, abs=1e-6)
            assert terms.true_norm == pytest.approx(terms.feedback_norm, rel=1e-6)


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("rule", ["fa", "sign_fa", "ada_fa"])
def test_gradient_alignment_equals_two_backward_passes_by_hand(rule, run_eagerly):
    model, x, y = float64_mlp(rule)
    for layer in feedback_layers(model):
        layer.kernel.assign_add(0.4 * np.random.normal(size=layer.kernel.shape))
    result = analysis.GradientAlignment(model, "mse", run_eagerly)(x, y)
    (true, _), (feedback, _) = numpy_mlp(model, x, y)
    # Rounding of float64: the worst seen is 6e-16.
    for terms, names in [
        (result.whole, list(true)),
        *((result.layers[name], [name]) for name in true),
    ]:
        a, b = flat(true, names), flat(feedback, names)
        np.testing.assert_allclose(terms.inner_product, a @ b, rtol=1e-12)
        np.testing.assert_allclose(terms.true_norm, np.linalg.norm(a), rtol=1e-12)
        np.testing.assert_allclose(terms.feedback_norm, np.linalg.norm(b), rtol=1e-12)
        np.testing.assert_allclose(terms.cosine, cosine(a, b), rtol=1e-12)
    np.testing.assert_allclose(result.loss, ((model(x) - y) ** 2).numpy().mean())
    assert result.cosine == result.whole.cosine < 0.99
    assert result.gradient_norm == result.whole.true_norm
    assert result.feedback_norm == result.whole.feedback_norm
    assert result.inner_product == result.whole.inner_product


def test_gradients_are_those_of_a_cloned_model_with_a_skip_and_a_nested_block():
    model = residual(dropout=0.0)
    x, y = batch((16, 8, 8, 2))
    result = analysis.gradient_alignment(model, x, y, CROSSENTROPY)
    gradients = []
    for net in (models.with_rule(model, "backprop"), models.with_rule(model, "fa")):
        for old, new in zip(feedback_layers(model), feedback_layers(net), strict=True):
            if new.feedback is not None:
                new.feedback.assign(old.feedback)
        with tf.GradientTape() as tape:
            loss = CROSSENTROPY(y, net(x, training=True))
        gradients.append(
            tape.gradient(loss, [v.value for v in net.trainable_variables])
        )
    squares = np.zeros(3)
    for name, terms in result.layers.items():
        pairs = [
            np.concatenate(
                [
                    gradient.numpy().ravel().astype("float64")
                    for gradient, v in zip(side, model.trainable_variables, strict=True)
                    if f"/{name}/" in f"/{v.path}"
                ]
            )
            for side in gradients
        ]
        expected = np.array(
            [pairs[0] @ pairs[1], pairs[0] @ pairs[0], pairs[1] @ pairs[1]]
        )
        squares += expected
        np.testing.assert_allclose(
            [terms.inner_product, terms.true_norm**2, terms.feedback_norm**2],
            expected,
            rtol=1e-4,
            atol=1e-9,
        )
    assert set(result.layers) == {
        "conv_1",
        "conv_2",
        "bn_1",
        "bn_2",
        "hidden",
        "output",
    }
    whole = result.whole
    np.testing.assert_allclose(
        [whole.inner_product, whole.true_norm**2, whole.feedback_norm**2],
        squares,
        rtol=1e-5,
    )
    assert result.cosine < 0.99


def test_both_passes_see_the_same_dropout_masks_and_batch_statistics():
    model = residual()
    result = analysis.gradient_alignment(model, *batch((16, 8, 8, 2)), CROSSENTROPY)
    # No feedback reaches the output layer: another mask alone could make them differ.
    output = result.layers["output"]
    assert output.cosine == pytest.approx(1, abs=1e-12)
    assert output.true_norm == pytest.approx(output.feedback_norm, rel=1e-12)
    assert abs(result.layers["conv_1"].cosine) < 0.99


def test_layers_add_up_to_the_whole():
    model = residual()
    result = analysis.gradient_alignment(model, *batch((16, 8, 8, 2)), CROSSENTROPY)
    layers_ = result.layers.values()
    assert sum(t.inner_product for t in layers_) == pytest.approx(result.inner_product)
    assert sum(t.true_norm**2 for t in layers_) == pytest.approx(
        result.gradient_norm**2
    )
    assert sum(t.feedback_norm**2 for t in layers_) == pytest.approx(
        result.feedback_norm**2
    )


def test_penalties_are_part_of_both_gradients():
    keras.config.set_dtype_policy("float64")

    def net(**penalties):
        return keras.Sequential(
            [
                keras.Input((4,)),
                FeedbackDense(5, "tanh", name="a", **penalties),
                FeedbackDense(2, name="b"),
            ]
        )

    plain, penalised = net(), net(kernel_regularizer=keras.regularizers.L2(0.3))
    for layer, other in zip(plain.layers, penalised.layers, strict=True):
        other.set_weights(layer.get_weights())
    x, y = np.random.normal(size=(6, 4)), np.random.normal(size=(6, 2))
    loss = keras.losses.MeanSquaredError(dtype="float64")
    without, with_penalty = (
        analysis.gradient_alignment(model, x, y, loss) for model in (plain, penalised)
    )
    kernel = plain.get_layer("a").kernel.numpy()
    assert with_penalty.loss == pytest.approx(without.loss + 0.3 * (kernel**2).sum())
    assert with_penalty.layers["b"] == without.layers["b"]
    with tf.GradientTape() as tape:
        value = tf.reduce_mean((plain(x) - y) ** 2)
    feedback = tape.gradient(value, [v.value for v in plain.get_layer("a").weights[:2]])
    expected = feedback[0].numpy() + 0.6 * kernel, feedback[1].numpy()
    assert with_penalty.layers["a"].feedback_norm ** 2 == pytest.approx(
        sum((part**2).sum() for part in expected)
    )


def test_the_loss_is_the_compiled_models_or_the_one_given():
    model = models.mlp((6,), 8, 3)
    x, y = batch((10, 6))
    with pytest.raises(ValueError, match="not compiled"):
        analysis.gradient_alignment(model, x, y)
    with pytest.raises(ValueError, match="bogus"):
        analysis.gradient_alignment(model, x, y, "bogus")
    model.compile("sgd", CROSSENTROPY)
    compiled = analysis.gradient_alignment(model, x, y)
    assert compiled == analysis.gradient_alignment(model, x, y, CROSSENTROPY)
    assert compiled.loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-6)
    doubled = analysis.gradient_alignment(
        model, x, y, lambda y, p: 2 * CROSSENTROPY(y, p)
    )
    assert doubled.gradient_norm == pytest.approx(2 * compiled.gradient_norm, rel=1e-5)


def trained_gradients(model, x, y, **arguments):
    """The gradient that a step of training takes, {layer: vector}: minus the step."""

    def values():
        return [[v.numpy() for v in layer.trainable_variables] for layer in own]

    own = [layer for layer in model.layers if layer.trainable_variables]
    before = values()
    model.train_on_batch(x, y, **arguments)
    return {
        layer.name: np.concatenate(
            [(one - two).ravel() for one, two in zip(old, new, strict=True)]
        )
        for layer, old, new in zip(own, before, values(), strict=True)
    }


def assert_measures_what_is_trained(model, instruments, x, y, **arguments):
    results = [instrument(x, y, **arguments) for instrument in instruments]
    gradients = trained_gradients(model, x, y, **arguments)
    for result in results:
        assert set(result.layers) == set(gradients)
        for name, gradient in gradients.items():
            norm = result.layers[name].feedback_norm
            # Differences of weights of order 1, in float32.
            assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4, abs=1e-6)


ONE_OUTPUT = {
    "hinge": "hinge",
    "binary_crossentropy": "binary_crossentropy",
    "mse": "mse",
    "crossentropy": "crossentropy",
    "half squares": losses.HalfSquaredError(),
    "exponential": losses.ExponentialLoss(),
    "sum": keras.losses.MeanSquaredError(reduction="sum"),
    "none": keras.losses.MeanSquaredError(reduction=None),
    "weighted mean": keras.losses.Huber(reduction="mean_with_sample_weight"),
    "function": lambda y, p: ops.square(y - p) + 0.1 * p,
    "scalar": lambda y, p: ops.sum(ops.abs(y - p)),
    "list": ["mse"],
}


@pytest.mark.parametrize("name", ONE_OUTPUT)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_objective_is_that_of_training(name, weighted):
    inputs = keras.Input((4,))
    hidden = FeedbackDense(5, "tanh", name="hidden")(inputs)
    model = keras.Model(inputs, FeedbackDense(1, "sigmoid", name="out")(hidden))
    loss, (x, y) = ONE_OUTPUT[name], batch((6, 4), classes=2)
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    given = (None, loss)
    instruments = [analysis.GradientAlignment(model, loss, True) for loss in given]
    weights = np.linspace(0.2, 3, 6, dtype="float32") if weighted else None
    assert_measures_what_is_trained(
        model, instruments, x, y.astype("float32"), sample_weight=weights
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "dict", "one", "missing"])
def test_objectives_of_several_outputs_are_those_of_training(kind):
    inputs = keras.Input((4,))
    hidden = FeedbackDense(5, "tanh", name="hidden")(inputs)
    heads = [FeedbackDense(1, "tanh", name=name)(hidden) for name in "ab"]
    x, y = batch((6, 4), classes=2)
    y = y.astype("float32")
    loss, weights, targets = ["hinge", "mse"], [0.3, 2.0], [y, 1 - y]
    if kind == "dict":
        loss, weights = ({"b": b, "a": a} for a, b in (loss, weights))
        targets = {"b": targets[1], "a": targets[0]}
    elif kind == "one":
        loss, weights = "mse", None
    elif kind == "missing":
        loss, weights, targets = ["hinge", None], None, [y, None]
    model = keras.Model(inputs, heads)
    if kind == "missing":
        # Keras's own training has no value for a loss that is not there.
        model.get_layer("b").trainable = False
    model.compile(keras.optimizers.SGD(1.0), loss, weights, run_eagerly=True)
    instruments = [
        analysis.GradientAlignment(model, run_eagerly=True),
        analysis.GradientAlignment(model, loss, True, weights),
        analysis.GradientAlignment(model, loss, loss_weights=weights),
    ]
    assert_measures_what_is_trained(model, instruments, x, targets)


@pytest.mark.slow
def test_penalties_and_embeddings_are_trained_as_they_are_measured():
    class Penalty(layers.Layer):
        def call(self, x):
            self.add_loss(0.3 * ops.mean(x**2))
            return x

    x, y = np.arange(12).reshape(4, 3) % 5, np.ones((4, 2), "float32")
    for loss, targets in (("mse", y), (None, None)):
        inputs = keras.Input((3,), dtype="int32")
        h = layers.Embedding(7, 2, mask_zero=True, name="table")(inputs)
        h = layers.GlobalAveragePooling1D()(h)
        h = FeedbackDense(5, "tanh", name="a", activity_regularizer="l2")(h)
        last = {"use_bias": False, "kernel_regularizer": "l1", "name": "b"}
        h = FeedbackDense(2, **last)(Penalty()(h))
        model = keras.Model(inputs, h)
        model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
        instruments = [analysis.GradientAlignment(model)]
        if loss is not None:
            instruments.append(analysis.GradientAlignment(model, loss))
            with pytest.raises(ValueError, match="needs targets, but `y` is None"):
                instruments[0](x, None)
        assert_measures_what_is_trained(model, instruments, x, targets)


def test_what_the_loss_does_not_depend_on_is_left_out():
    inputs = keras.Input((4,))
    used = FeedbackDense(3, name="used")(inputs)
    stopped = ops.stop_gradient(FeedbackDense(3, name="stopped")(inputs))
    outputs = FeedbackDense(2, name="out")(layers.Add()([used, stopped]))
    model = keras.Model(inputs, [outputs, FeedbackDense(1, name="idle")(inputs)])
    x, _ = batch((6, 4))
    loss = ["mse", None]
    result = analysis.gradient_alignment(model, x, [x[:, :2], None], loss)
    assert set(result.layers) == {"used", "out"}
    errors = analysis.error_alignment(model, x, [x[:, :2], None], loss)
    assert set(errors) == {"used"}
    model.get_layer("used").trainable = model.get_layer("out").trainable = False
    with pytest.raises(ValueError, match="depends on none of its 4 trainable"):
        analysis.gradient_alignment(model, x, [x[:, :2], None], loss)


@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_is_measured_through_a_scaled_loss(compiled):
    def made(policy):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        return models.mlp((6,), (8, 8), 3)

    precise, half = made("float32"), made("mixed_float16")
    half.set_weights(precise.get_weights())
    x, y = batch((12, 6))

    def small(y, p):
        # Gradients of 1e-8, of which float16 holds nothing.
        return 1e-7 * CROSSENTROPY(y, p)

    expected = analysis.gradient_alignment(precise, x, y, small)
    if compiled:
        half.compile("sgd", small)
        result = analysis.GradientAlignment(half)(x, y)
    else:
        result = analysis.gradient_alignment(half, x, y, small)
    errors = analysis.error_alignment(half, x, y, small)
    # Measured: 3e-5 and 1.4e-4, rounding in float16.
    assert result.gradient_norm == pytest.approx(expected.gradient_norm, rel=3e-3)
    assert result.cosine == pytest.approx(expected.cosine, abs=3e-3)
    for name, terms in analysis.error_alignment(precise, x, y, small).items():
        assert errors[name].true_norm == pytest.approx(terms.true_norm, rel=1e-2)
    # A loss whose scaled gradients overflow is scaled by less.
    large = analysis.gradient_alignment(half, x, y, lambda y, p: 1e10 * small(y, p))
    assert large.gradient_norm == pytest.approx(1e10 * result.gradient_norm, rel=1e-2)


def test_the_scale_of_a_loss_falls_to_one():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input((1,)),
            FeedbackDense(1, rule="backprop", kernel_initializer="zeros"),
        ]
    )
    sgd = keras.optimizers.SGD(loss_scale_factor=2.0)
    model.compile(sgd, "mse", auto_scale_loss=False)
    x, y = np.full((1, 1), 200.0), np.full((1, 1), -100.0)
    # The kernel's part, 2 * 100 * 200, float16 holds; twice of it is infinite there.
    norm = analysis.GradientAlignment(model)(x, y).gradient_norm
    assert norm == pytest.approx(math.hypot(40_000, 200), rel=1e-3)


def test_a_training_step_of_ones_own_is_told():
    class Own(keras.Model):
        def train_step(self, data):
            return {}

    inputs = keras.Input((4,))
    model = Own(inputs, FeedbackDense(2)(inputs))
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="a train_step of its own"):
        analysis.GradientAlignment(model)
    analysis.GradientAlignment(model, "mse")


@pytest.mark.slow
def test_models_of_two_outputs_and_subclassed_models():
    inputs = keras.Input((4,))
    shared = FeedbackDense(5, "tanh", name="shared")(inputs)
    heads = {name: FeedbackDense(2, name=name)(shared) for name in ("a", "b")}
    model = keras.Model(inputs, heads)
    model.compile("sgd", {"a": "mse", "b": "mse"}, metrics={"a": ["mae"]})
    x, y = np.random.normal(size=(2, 6, 4)).astype("float32"), np.zeros((6, 2))
    y = {"a": y, "b": y}
    before = [v.numpy() for v in model.variables]
    result = analysis.gradient_alignment(model, x[0], y)
    assert all(
        np.array_equal(a, v.numpy())
        for a, v in zip(before, model.variables, strict=True)
    )
    assert result.loss == pytest.approx(model.evaluate(x[0], y, verbose=0)[0], rel=1e-6)
    assert result.layers["a"].cosine == pytest.approx(1)
    assert set(analysis.error_alignment(model, x[0], y)) == {"shared"}

    model = Subclassed()
    model(x[0])
    assert analysis.gradient_alignment(model, x[0], y["a"][:, :1], "mse").cosine < 0.999
    assert set(analysis.error_alignment(model, x[0], y["a"][:, :1], "mse")) == {"first"}


def state(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


@pytest.mark.slow
def test_looking_changes_nothing():
    x, y = batch((16, 8, 8, 2))
    runs = []
    for look in (False, True):
        keras.utils.set_random_seed(5)
        model = residual()
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9), CROSSENTROPY, metrics=["acc"]
        )
        owned = [dict(vars(layer)) for layer in model._flatten_layers()]
        own_rules = [layer.rule for layer in feedback_layers(model)]
        instrument = analysis.GradientAlignment(model)
        for _ in range(3):
            if look:
                before = state(model)
                instrument(x, y)
                instrument.errors(x, y)
                instrument.loss_decrease(x, y, 0.1)
                for old, new in zip(before, state(model), strict=True):
                    np.testing.assert_array_equal(old, new)
            model.train_on_batch(x, y)
        assert [layer.rule for layer in feedback_layers(model)] == own_rules
        for layer, attributes in zip(model._flatten_layers(), owned, strict=True):
            assert ("call" in vars(layer)) == ("call" in attributes)
        runs.append(state(model))
    for without, with_looks in zip(*runs, strict=True):
        np.testing.assert_array_equal(without, with_looks)


def test_a_failing_pass_leaves_rules_and_layers_as_they_were():
    model = models.mlp((4,), 3, 2)
    instrument = analysis.GradientAlignment(model, "mse")
    wrong = np.ones((2, 5), "float32")
    own = [layer.rule for layer in feedback_layers(model)]
    for method in (instrument, instrument.errors):
        with pytest.raises(ValueError, match="incompatible"):
            method(wrong, np.ones((2, 2), "float32"))

    def fails_under_backpropagation(y, outputs):
        if isinstance(feedback_layers(model)[0].rule, rules.Backprop):
            raise RuntimeError("here")
        return outputs

    instrument = analysis.GradientAlignment(model, fails_under_backpropagation)
    for method in (instrument, instrument.errors):
        with pytest.raises(RuntimeError, match="here"):
            method(np.ones((2, 4), "float32"), np.ones((2, 2), "float32"))
    assert [layer.rule for layer in feedback_layers(model)] == own
    assert not any("call" in vars(layer) for layer in model.layers)


def test_an_instrument_follows_the_weights_and_takes_any_batch_size():
    model = models.mlp((6,), 8, 3)
    instrument = analysis.GradientAlignment(model, CROSSENTROPY)
    x, y = batch((12, 6))
    first = instrument(x, y)
    feedback_layers(model)[-1].kernel.assign(feedback_layers(model)[-1].feedback)
    assert instrument(x, y).cosine == pytest.approx(1, abs=1e-6)
    assert first.cosine < 0.99
    fewer = x[:5], y[:5]
    assert instrument(*fewer).inner_product == pytest.approx(
        analysis.gradient_alignment(model, *fewer, CROSSENTROPY).inner_product,
        rel=1e-5,
    )


def test_frozen_layers_are_left_out():
    model = models.mlp((6,), (8, 7), 3)
    model.get_layer("dense_1").trainable = False
    x, y = batch((12, 6))
    instrument = analysis.GradientAlignment(model, CROSSENTROPY)
    assert set(instrument(x, y).layers) == {"dense_2", "dense_3"}
    # An error still arrives at its output.
    errors = instrument.errors(x, y)
    assert set(errors) == {"dense_1", "dense_2"}
    assert all(terms.feedback_norm > 0 for terms in errors.values())


def test_the_predicted_decrease_is_the_measured_one_as_the_step_shrinks():
    # A smooth network: at a kink of ReLU the rest is not of second order.
    model, x, y = float64_mlp("fa", activation="tanh")
    instrument = analysis.GradientAlignment(model, "mse")
    slope = instrument(x, y).inner_product
    deviations = []
    for step in (1e-3, 1e-4, 1e-5):
        predicted, measured = instrument.loss_decrease(x, y, step)
        assert predicted == pytest.approx(step * slope, rel=1e-12)
        deviations.append(abs(measured / predicted - 1))
    assert 0 < deviations[0] < 0.1
    np.testing.assert_allclose(deviations[0], 10 * deviations[1], rtol=0.05)
    np.testing.assert_allclose(deviations[1], 10 * deviations[2], rtol=0.05)


# Error signals.


@pytest.mark.parametrize("own_activation", [False, True])
def test_error_alignment_equals_two_backward_passes_by_hand(own_activation):
    model, x, y = float64_mlp("fa")
    (_, true), (_, feedback) = numpy_mlp(model, x, y)
    if own_activation:
        dense = feedback_layers(model)
        fused = keras.Sequential([keras.Input((5,), dtype="float64")])
        for layer in dense:
            config = layer.get_config()
            if layer is not dense[-1]:
                config["activation"] = lambda h: ops.leaky_relu(h, 0.01)
            fused.add(FeedbackDense(**config))
        fused.set_weights(model.get_weights())
        model = fused
    instrument = analysis.GradientAlignment(model, "mse")
    for per_example in (False, True):
        measured = instrument.errors(x, y, per_example)
        assert set(measured) == {"dense_1", "dense_2"}
        for name, terms in measured.items():
            a, b = true[name], feedback[name]
            if not per_example:
                a, b = a.sum(axis=0), b.sum(axis=0)
            np.testing.assert_allclose(terms.inner_product, np.vdot(a, b), rtol=1e-12)
            np.testing.assert_allclose(terms.true_norm, np.linalg.norm(a), rtol=1e-12)
            np.testing.assert_allclose(
                terms.feedback_norm, np.linalg.norm(b), rtol=1e-12
            )
            np.testing.assert_allclose(terms.cosine, cosine(a, b), rtol=1e-12)


def test_with_one_output_error_alignment_is_that_of_the_output_weights():
    model = models.mlp((6,), 8, 1, activation="relu")
    x, _ = batch((12, 6))
    y = np.linspace(-1, 1, 12, dtype="float32")[:, None]
    expected = analysis.weight_alignment(model)["dense_2"]
    for per_example in (False, True):
        errors = analysis.error_alignment(model, x, y, "mse", per_example)
        assert errors["dense_1"].cosine == pytest.approx(expected, abs=1e-6)


def test_error_alignment_through_skips_and_nested_models():
    model = residual()
    x, y = batch((16, 8, 8, 2))
    errors = analysis.error_alignment(model, x, y, CROSSENTROPY)
    assert set(errors) == {"conv_1", "conv_2", "hidden"}
    assert all(-1 < terms.cosine < 0.99 for terms in errors.values())
    backprop = models.with_rule(model, "backprop")
    errors = analysis.error_alignment(backprop, x, y, CROSSENTROPY)
    assert all(terms.cosine == pytest.approx(1, abs=1e-6) for terms in errors.values())


def test_error_alignment_of_recurrent_layers_is_that_of_their_outputs():
    inputs = keras.Input((5, 4))
    model = keras.Model(
        inputs, layers.Dense(1, name="out")(layers.LSTM(3, name="lstm")(inputs))
    )
    model, _ = models.convert(model, "fa")
    x, y = np.random.normal(size=(2, 5, 4)).astype("float32"), np.zeros((2, 1))
    for instrument in (
        analysis.GradientAlignment(model, "mse"),
        analysis.GradientAlignment(model, "mse", run_eagerly=True),
    ):
        (errors,) = instrument.errors(x, y).values()
        # With one output: the cosine of its weights.
        expected = analysis.weight_alignment(model)["out"]
        assert errors.cosine == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_error_alignment_of_several_cells_in_one_loop_is_that_of_the_last(run_eagerly):
    inputs = keras.Input((5, 4))
    cells = [layers.SimpleRNNCell(3, name=name) for name in ("low", "high")]
    x = layers.TimeDistributed(layers.Dense(4, name="each"))(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="out")(layers.RNN(cells)(x)))
    model, _ = models.convert(model, "fa")
    x, y = np.random.normal(size=(2, 5, 4)).astype("float32"), np.zeros((2, 1))
    errors = analysis.GradientAlignment(model, "mse", run_eagerly).errors(x, y)
    assert set(errors) == {"each", "high"}
    expected = analysis.weight_alignment(model)["out"]
    assert errors["high"].cosine == pytest.approx(expected, abs=1e-6)


def test_inputs_and_outputs_by_name_tokens_and_grouped_queries_are_measured():
    inputs = {
        "tokens": keras.Input((3,), dtype="int32", name="tokens"),
        "floats": keras.Input((4,), name="floats"),
    }
    x = layers.Embedding(7, 4, name="table")(inputs["tokens"])
    norm = layers.RMSNormalization(name="norm")(x)
    x = x + layers.GroupQueryAttention(2, 4, 2, name="attend")(norm, norm)
    x = layers.Flatten()(x + layers.Dense(4, name="side")(inputs["floats"])[:, None])
    heads = {
        name: layers.Dense(size, name=name)(x) for name, size in (("a", 3), ("b", 1))
    }
    model, _ = models.convert(keras.Model(inputs, heads), "fa")
    x = {"tokens": np.arange(6).reshape(2, 3) % 7, "floats": np.ones((2, 4), "float32")}
    y = {"a": np.array([0, 2]), "b": np.zeros((2, 1), "float32")}
    loss = {"a": CROSSENTROPY, "b": "mse"}
    parts = {"query", "key", "value", "attention_output"}
    assert set(analysis.weight_alignment(model)) == parts | {"side", "a", "b"}
    result = analysis.gradient_alignment(model, x, y, loss)
    assert set(result.layers) == parts | {"table", "norm", "side", "a", "b"}
    assert set(analysis.error_alignment(model, x, y, loss)) == parts | {"side"}
    assert result.layers["a"].cosine == pytest.approx(1)


def _decoder():
    """Tokens through one table in and out: its gradients are slices and a matrix."""
    tokens = keras.Input((3,), dtype="int32")
    table = layers.ReversibleEmbedding(7, 4, name="table")
    x = table(tokens)
    x = x + layers.MultiHeadAttention(2, 2)(x, x, use_causal_mask=True)
    x = x + layers.Dense(4, "gelu", name="up")(x)
    return keras.Model(tokens, [table(x, reverse=True)]), {"table", "up"}


def _two_of_each():
    inputs = [keras.Input((5, 4)), keras.Input((3,))]
    x = layers.Bidirectional(layers.GRU(2, name="g"), name="bi")(inputs[0])
    x = layers.Concatenate()([x, layers.Dense(3, "tanh", name="side")(inputs[1])])
    heads = [layers.Dense(size, name=f"head_{size}")(x) for size in (3, 1)]
    names = {"bi/forward_g/gru_cell", "bi/backward_g/gru_cell", "side"}
    return keras.Model(inputs, heads), names


class _Blocks(keras.Model):
    """Two blocks of one name, whose layers have one name."""

    def __init__(self):
        super().__init__()
        self.blocks = [
            keras.Sequential(
                [layers.Dense(6, "relu", name="d"), layers.Dense(4, name="e")],
                name="block",
            )
            for _ in range(2)
        ]
        self.head = layers.Dense(3, name="head")

    def call(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def _subclassed():
    model = _Blocks()
    model(np.zeros((1, 4)))
    return model, {"block/d", "block/e", "block/d.2", "block/e.2"}


@pytest.mark.parametrize(
    "made",
    [_decoder, _subclassed, pytest.param(_two_of_each, marks=pytest.mark.long)],
)
def test_gradients_of_any_converted_model_are_those_of_two_tapes(made):
    keras.config.set_dtype_policy("float64")
    stock, names = made()
    rng = np.random.default_rng(0)
    x = {
        _decoder: rng.integers(0, 7, (6, 3)),
        _two_of_each: [rng.normal(size=(6, 5, 4)), rng.normal(size=(6, 3))],
        _subclassed: rng.normal(size=(6, 4)),
    }[made]
    y = [rng.normal(size=o.shape) for o in keras.tree.flatten(stock(x))]

    def gradients(net, variables):
        values = [v.value for v in variables]
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(net(x, training=True))
            squares = [
                tf.reduce_mean((o - t) ** 2) for o, t in zip(outputs, y, strict=True)
            ]
            loss = tf.add_n(squares)
        found = tape.gradient(loss, values)
        return np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in found])

    true = gradients(stock, stock.trainable_variables)
    model, _ = models.convert(stock, "fa", in_place=True)
    feedback = gradients(model, forward_variables(model))
    targets = y if len(y) > 1 else y[0]
    instrument = analysis.GradientAlignment(model, "mse", run_eagerly=True)
    result = instrument(x, targets)
    assert names <= set(result.layers)
    found = result.inner_product, result.gradient_norm, result.feedback_norm
    expected = true @ feedback, np.linalg.norm(true), np.linalg.norm(feedback)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert result.cosine < 0.99
    assert set(instrument.errors(x, targets)) <= set(result.layers)


def test_error_alignment_under_direct_feedback_and_of_keyword_calls():
    model = models.mlp((6,), (8, 7), 3, rule="dfa")
    x, _ = batch((12, 6))
    errors = analysis.error_alignment(model, x, x[:, :3], "mse")
    assert set(errors) == {"dense_1", "dense_2"}
    inputs = keras.Input((6,))
    hidden = layers.ReLU()(inputs=FeedbackDense(4, name="h")(inputs=inputs))
    model = keras.Model(inputs, FeedbackDense(1, name="o")(inputs=hidden))
    errors = analysis.error_alignment(model, x, x[:, :1], "mse")
    expected = analysis.weight_alignment(model)["o"]
    assert errors["h"].cosine == pytest.approx(expected, abs=1e-6)


def test_a_softmax_layer_after_the_output_layer_is_output_too():
    model = models.mlp((6,), 8, 3)
    model.add(layers.Softmax())
    errors = analysis.error_alignment(
        model, *batch((12, 6)), "sparse_categorical_crossentropy"
    )
    assert set(errors) == {"dense_1"}


def test_a_layer_called_twice_has_the_errors_of_both_calls():
    inputs = keras.Input((4,)), keras.Input((4,))
    shared = FeedbackDense(5, name="shared")
    output = FeedbackDense(1, name="output")
    added = layers.Add()([shared(inputs[0]), shared(inputs[1])])
    model = keras.Model(inputs, output(added))
    x = list(np.random.normal(size=(2, 6, 4)).astype("float32"))
    y = np.ones((6, 1), "float32")
    terms = analysis.error_alignment(model, x, y, "mse")["shared"]
    error = abs(2 * (model(x).numpy() - y).mean())
    for norm, kernel in (
        (terms.true_norm, output.kernel),
        (terms.feedback_norm, output.feedback),
    ):
        one_call = error * np.linalg.norm(kernel.numpy())
        assert norm == pytest.approx(math.sqrt(2) * one_call, rel=1e-5)
