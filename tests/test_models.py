"""The networks: sizes and shapes, gradients against hand-written feedback, with_rule.

The gradients of MLP and LeNet are compared with NumPy recursions, those of ResNet-18
with a stock Keras model through which the error is propagated layer by layer.
"""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import RULES, assert_close
from keras import layers

from keras_fa import analysis, losses, models, rules
from keras_fa.layers import (
    FeedbackConv2D,
    FeedbackDense,
    feedback_layers,
    feedback_variables,
    forward_variables,
)

every_rule = pytest.mark.parametrize("rule", RULES)
one_of_each_kind = pytest.mark.parametrize(
    "rule", [helpers.standing(rule, stands=rule in helpers.KINDS) for rule in RULES]
)

_SMALL = {
    "mlp": lambda rule, **kwargs: models.mlp((6,), (7, 5), 3, rule=rule, **kwargs),
    "lenet": lambda rule, **kwargs: models.lenet((18, 19, 2), 3, rule=rule, **kwargs),
    "resnet18": lambda rule, **kwargs: models.resnet18(
        (32, 32, 3), 3, rule=rule, **kwargs
    ),
}


def _data(model, n=3, dtype="float64"):
    random = np.random.default_rng(0)
    x = random.normal(size=(n, *model.input_shape[1:])).astype(dtype)
    return x, random.integers(0, model.output_shape[-1], n)


def _moved(model):
    """The kernels of the start, by layer name, after moving every trained weight."""
    random = np.random.default_rng(1)
    start = {layer.name: layer.kernel.numpy() for layer in feedback_layers(model)}
    for variable in model.trainable_variables:
        scale = 0.3 * variable.numpy().std() + 0.02
        variable.assign_add(random.normal(size=variable.shape) * scale)
    return start


def _feedback(model, rule, start):
    """Every layer's B by the oracle's rule."""
    feedback = {}
    for layer in feedback_layers(model):
        stored = helpers.stored(layer)
        feedback[layer.name] = RULES[rule](
            layer.kernel.numpy(), start[layer.name], stored
        )
    return feedback


def _gradients(model, x, labels):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")

    with tf.GradientTape() as tape:
        value = loss(labels, model(x, training=True))
    sources = [v.value for v in forward_variables(model)]
    return [g.numpy() for g in tape.gradient(value, sources)]


# --- Gradients ---


@every_rule
@pytest.mark.parametrize("network", ["mlp", "lenet"])
def test_gradients_equal_the_recursion_by_hand(network, rule):
    model = _SMALL[network](rule, dtype="float64")
    start = _moved(model)
    x, labels = _data(model)
    actual = _gradients(model, x, labels)
    # After the pass, in which it may have moved.
    feedback = list(_feedback(model, rule, start).values())
    weights = [(v.kernel.numpy(), v.bias.numpy()) for v in feedback_layers(model)]
    if network == "mlp":
        # The slope of TensorFlow's leaky ReLU is a float32, whatever the tensor is.
        slope = float(np.float32(0.01))
        expected = helpers.mlp_gradients(x, labels, weights, feedback, slope)
    else:
        expected = helpers.lenet_gradients(x, labels, weights, feedback)
    assert len(actual) == len(expected) == 2 * len(weights)
    for variable, a, e in zip(forward_variables(model), actual, expected, strict=True):
        # Measured: 2e-15.
        assert helpers.relative_error(a, e) < 1e-12, variable.path


def _stock(model):
    """The model with stock Keras layers and its weights."""

    def clone(layer):
        config = layer.get_config()
        if config.pop("rule", None) is None:
            return type(layer).from_config(config)
        stock = {FeedbackConv2D: layers.Conv2D, FeedbackDense: layers.Dense}
        return stock[type(layer)].from_config(config)

    stock = keras.models.clone_model(model, clone_function=clone)
    for layer in stock.layers[1:]:
        source = model.get_layer(layer.name)
        for name in ("kernel", "bias", "gamma", "beta"):
            if getattr(source, name, None) is not None:
                getattr(layer, name).assign(getattr(source, name))
    return stock


def _propagate(stock, x, labels, feedback):
    """{variable path: gradient}: the error sent back layer by layer.

    Each layer's vector-Jacobian product is taken at its saved input: for a layer with
    feedback, the weights' with W in the layer, the input's with B in its place.
    """
    saved, values = [], {id(stock.inputs[0]): tf.constant(x)}
    for layer in stock.layers[1:]:
        one = not isinstance(layer.input, list)
        inputs = [values[id(t)] for t in ([layer.input] if one else layer.input)]
        values[id(layer.output)] = layer(inputs[0] if one else inputs, training=True)
        saved.append((layer, one, inputs))
    errors = {
        id(stock.outputs[0]): tf.constant(
            helpers.softmax_error(values[id(stock.outputs[0])].numpy(), labels)
        )
    }
    gradients = {}
    for layer, one, inputs in reversed(saved):
        error = errors.pop(id(layer.output))
        variables = layer.trainable_variables

        def pull(layer=layer, one=one, inputs=inputs, error=error):
            sources = [*inputs, *(v.value for v in layer.trainable_variables)]
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = layer(inputs[0] if one else inputs, training=True)
            values = tape.gradient(y, sources, output_gradients=error)
            return values[: len(inputs)], values[len(inputs) :]

        back, d_weights = pull()
        for variable, value in zip(variables, d_weights, strict=True):
            gradients[variable.path] = value.numpy()
        if layer.name in feedback:
            kernel = layer.kernel.numpy()
            layer.kernel.assign(feedback[layer.name])
            back, _ = pull()
            layer.kernel.assign(kernel)
        for tensor, value in zip(
            [layer.input] if one else layer.input, back, strict=True
        ):
            errors[id(tensor)] = errors.get(id(tensor), 0) + value
    return gradients


# What is its alone, the graph; the rules of layers have their own tests.
@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [helpers.standing(r, stands=r == "kolen_pollack") for r in RULES],
)
def test_resnet_gradients_equal_the_error_propagated_layer_by_layer(rule):
    # The product of so wide a network is as dear as all others together.
    spec = rules.ProductFeedback(expansion=1) if rule == "pfa" else rule
    model = _SMALL["resnet18"](spec, dtype="float64")
    start = _moved(model)
    x, labels = _data(model, n=4)
    stock = _stock(model)
    actual = _gradients(model, x, labels)
    feedback = _feedback(model, rule, start)
    assert len(feedback) == 21
    expected = _propagate(stock, x, labels, feedback)
    assert len(actual) == len(expected) == 62
    for variable, gradient in zip(forward_variables(model), actual, strict=True):
        error = helpers.relative_error(gradient, expected[variable.path])
        # Measured: 3e-15.
        assert error < 1e-12, variable.path


# --- Sizes, shapes, constants ---


def _trainable(model):
    return sum(v.numpy().size for v in forward_variables(model))


def test_without_sizes_an_mlp_has_a_hundred_units_and_ten_outputs():
    assert [x.units for x in feedback_layers(models.mlp((4,)))] == [100, 10]


@every_rule
def test_parameter_counts(rule):
    lenet = models.lenet((32, 32, 3), 10, rule=rule)
    assert _trainable(lenet) == 128_842
    mlp = models.mlp((28, 28), (1000,), 10, rule=rule)
    assert _trainable(mlp) == 784 * 1000 + 1000 + 1000 * 10 + 10
    for model in (lenet, mlp):
        kernels = sum(layer.kernel.numpy().size for layer in feedback_layers(model))
        stored = sum(v.numpy().size for v in feedback_variables(model))
        assert model.count_params() - _trainable(model) == stored
        if rule in ("fa", "ada_fa", "frsf", "kolen_pollack"):
            assert stored == kernels
        elif rule in ("backprop", "sign_fa"):
            assert stored == 0


@pytest.mark.parametrize(
    ("shape", "classes", "number"),
    [((224, 224, 3), 1000, 11_689_512), ((64, 64, 3), 10, 11_181_642)],
)
def test_resnet_has_torchvisions_parameters(shape, classes, number):
    model = models.resnet18(shape, classes, rule="sign_fa", kernel_initializer="zeros")
    assert _trainable(model) == number
    # Means and variances of the BatchNorms only.
    assert model.count_params() - number == 2 * 4800


@pytest.mark.parametrize(
    ("size", "stages"), [(224, (56, 28, 14, 7)), (64, (16, 8, 4, 2))]
)
def test_resnet_stages(size, stages):
    model = models.resnet18((size, size, 3), 10, "backprop", "zeros")
    assert model.get_layer("conv1").output.shape == (None, size // 2, size // 2, 64)
    sides = zip(stages, (64, 128, 256, 512), strict=True)
    for stage, (side, width) in enumerate(sides, start=1):
        for block in range(2):
            output = model.get_layer(f"layer{stage}_{block}_relu2").output
            assert output.shape == (None, side, side, width)
    assert model.get_layer("avgpool").output.shape == (None, 512)
    assert model.output_shape == (None, 10)
    assert len(feedback_layers(model)) == 21
    assert [layer.use_bias for layer in feedback_layers(model)] == [False] * 20 + [True]


def test_resnet_batch_norm_has_torchs_constants():
    model = models.resnet18((32, 32, 3), 3, "backprop", "zeros")
    norms = [v for v in model.layers if isinstance(v, layers.BatchNormalization)]
    assert len(norms) == 20
    assert {(v.momentum, v.epsilon) for v in norms} == {(0.9, 1e-5)}
    other = models.resnet18(
        (32, 32, 3), 3, "backprop", "zeros", bn_momentum=0.99, bn_epsilon=1e-3
    )
    norm = other.get_layer("bn1")
    assert (norm.momentum, norm.epsilon) == (0.99, 1e-3)


@pytest.mark.slow
def test_resnet_pads_as_torch_does():
    """A stride-2 convolution of torch starts one pixel before the image."""
    model = models.resnet18((32, 32, 3), 3, "backprop", dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    conv = model.get_layer("conv1")
    expected = helpers.Convolution((2, 2), (1, 1)).forward(
        np.pad(x, [(0, 0), (3, 3), (3, 3), (0, 0)]), conv.kernel.numpy()
    )
    assert_close(keras.Model(model.input, conv.output)(x), expected)
    pool = model.get_layer("maxpool")
    assert (pool.pool_size, pool.strides, pool.padding) == ((3, 3), (2, 2), "valid")


def test_lenet_shapes():
    model = models.lenet((32, 32, 3), 10)
    shapes = {v.name: v.output.shape[1:] for v in feedback_layers(model)}
    assert shapes == {
        "C1": (30, 30, 32),
        "C2": (13, 13, 64),
        "C3": (4, 4, 128),
        "F1": (256,),
        "F2": (10,),
    }
    assert model.output_shape == (None, 10)
    with pytest.raises(ValueError):
        models.lenet((17, 17, 3), 10)
    assert models.lenet((18, 18, 3), 10).output_shape == (None, 10)


def test_mlp_names_shapes_and_slope():
    model = models.mlp((4, 5), (7, 6), 3)
    assert [v.name for v in feedback_layers(model)] == ["dense_1", "dense_2", "dense_3"]
    assert [v.kernel.shape for v in feedback_layers(model)] == [(20, 7), (7, 6), (6, 3)]
    relus = [v for v in model.layers if isinstance(v, layers.LeakyReLU)]
    assert [v.negative_slope for v in relus] == [0.01, 0.01]
    assert model.layers[-1] is feedback_layers(model)[-1]
    assert model.layers[-1].activation is keras.activations.linear
    steep = models.mlp((4,), 7, 3, negative_slope=0.2)
    assert steep.get_layer("activation_1").negative_slope == 0.2
    assert [v.kernel.shape for v in feedback_layers(steep)] == [(4, 7), (7, 3)]


@pytest.mark.parametrize("activation", ["relu", "tanh", keras.activations.gelu])
def test_activations_by_name_and_callable(activation):
    function = keras.activations.get(activation)
    for model in (
        models.mlp((4,), 7, 3, activation=activation),
        models.lenet((18, 18, 3), 3, activation=activation),
    ):
        assert model.get_layer("activation_1").activation is function
    with pytest.raises(ValueError):
        models.mlp((4,), 7, 3, activation="no such activation")


def test_linear_mlp_and_other_options():
    model = models.mlp(
        (4,),
        (5,),
        3,
        activation=None,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomUniform(2, 3),
        dtype="float64",
        name="net",
    )
    assert model.name == "net" and len(model.layers) == 2
    one, two = feedback_layers(model)
    assert one.bias is None and one.kernel.dtype == one.feedback.dtype == "float64"
    x = np.ones((2, 4))
    assert_close(model(x), x @ one.kernel.numpy() @ two.kernel.numpy())
    for layer in (one, two):
        for values in (layer.kernel.numpy(), layer.feedback.numpy()):
            assert 2 <= values.min() < values.max() <= 3


# --- The output scale ---


def _scaled(activation="tanh", output_scale="inverse_sqrt_width"):
    # Scales here are powers of 2: Keras's Rescaling takes its factor as a float32,
    # whatever the dtype, and 1/sqrt(7) would be off by 2e-8 of itself.
    return models.mlp(
        (4,),
        16,
        1,
        rule="fa",
        activation=activation,
        use_bias=False,
        output_scale=output_scale,
        dtype="float64",
    )


@pytest.mark.parametrize(
    ("output_scale", "factor"),
    [(None, 1.0), (0.5, 0.5), (2, 2.0), ("inverse_sqrt_width", 1 / 4)],
)
def test_outputs_are_scaled(output_scale, factor):
    model = _scaled(output_scale=output_scale)
    w, beta = (layer.kernel.numpy() for layer in feedback_layers(model))
    x, _ = _data(model)
    # Measured: 2e-16.
    assert_close(model(x), factor * np.tanh(x @ w) @ beta, 1e-14)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(x), model(x))


@pytest.mark.parametrize("output_scale", ["sqrt_width", [1.0]])
def test_an_unknown_output_scale_is_refused(output_scale):
    with pytest.raises(ValueError, match="output_scale must be"):
        _scaled(output_scale=output_scale)


_PSI = {
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype("float64")),
}


def _half_squared_gradients(model, x, y):
    loss = losses.HalfSquaredError(dtype="float64")
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=True))
    return [
        g.numpy()
        for g in tape.gradient(value, [v.value for v in model.trainable_variables])
    ]


@pytest.mark.parametrize("activation", _PSI)
def test_gradients_are_those_of_song_xu_and_lafferty(activation):
    model = _scaled(activation)
    psi, slope = _PSI[activation]
    hidden, output = feedback_layers(model)
    w = hidden.kernel.numpy()
    beta, b = (v.numpy()[:, 0] for v in (output.kernel, output.feedback))
    x, _ = _data(model, n=5)
    y = np.random.default_rng(2).normal(size=5)
    # f = beta^T psi(W x) / sqrt(p), error e = f - y, D_i = diag(psi'(W x_i)).
    root = np.sqrt(16)
    e = psi(x @ w) @ beta / root - y
    pairs = list(zip(e, x, strict=True))
    dw = sum(np.outer(x_i, e_i * slope(x_i @ w) * b) for e_i, x_i in pairs) / root
    dbeta = sum(e_i * psi(x_i @ w) for e_i, x_i in pairs) / root
    actual = _half_squared_gradients(model, x, y[:, None])
    assert_close(actual[0], dw)
    assert_close(actual[1], dbeta[:, None])


def test_the_output_scale_leaves_the_conservation_law():
    model = _scaled("relu")
    groups = analysis.conserved_groups(model)
    assert [str(group) for group in groups] == ["dense_1 -> dense_2 (16 units)"]
    x, _ = _data(model, n=5)
    y = np.random.default_rng(2).normal(size=(5, 1))
    gradients = _half_squared_gradients(model, x, y)
    start = [v.numpy() for v in model.trainable_variables]
    phi = {}
    for step in (-0.1, 0.0, 0.1):
        for variable, w, g in zip(
            model.trainable_variables, start, gradients, strict=True
        ):
            variable.assign(w - step * g)
        phi[step] = analysis.potentials(model)["dense_1"]
    # Phi is quadratic in the weights: what is odd in the step is the first order.
    second_order = phi[0.1] + phi[-0.1] - 2 * phi[0.0]
    assert np.abs(second_order).max() > 1e-4
    # Measured: 1e-16.
    np.testing.assert_allclose(phi[0.1] - phi[-0.1], 0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("network", _SMALL)
def test_every_layer_draws_for_itself(network):
    """An initializer or a seeded rule that the layers share does not repeat itself."""

    def build():
        return feedback_layers(
            _SMALL[network](
                rules.FeedbackAlignment(seed=3),
                kernel_initializer=keras.initializers.RandomNormal(),
            )
        )

    layers_of_one = build()
    for values in (
        [layer.kernel.numpy().ravel()[:15] for layer in layers_of_one],
        [layer.feedback.numpy().ravel()[:15] for layer in layers_of_one],
    ):
        assert len({v.tobytes() for v in values}) == len(values)
    for layer, other in zip(layers_of_one, build(), strict=True):
        np.testing.assert_array_equal(layer.feedback, other.feedback)


@one_of_each_kind
@pytest.mark.parametrize("network", _SMALL)
def test_the_rule_reaches_every_layer(network, rule):
    model = _SMALL[network](rule)
    assert {type(v.rule) for v in feedback_layers(model)} == {type(rules.get(rule))}
    weighted = {v.name for v in model.layers if hasattr(v, "kernel")}
    assert {v.name for v in feedback_layers(model)} == weighted


def test_unknown_rule_is_refused_by_the_builders():
    for build in _SMALL.values():
        with pytest.raises(ValueError, match="Unknown rule"):
            build("no such rule")


# --- with_rule ---


def _nested():
    """Everything that with_rule must carry: nesting, BatchNorm, seeds, wrappers."""
    inner = keras.Sequential(
        [
            keras.Input((4, 4)),
            FeedbackDense(4, name="inner"),
            layers.BatchNormalization(),
            layers.Dropout(0.5, seed=3),
        ],
        name="nested",
    )
    shared = FeedbackDense(4, name="shared")
    inputs = keras.Input((4, 4))
    x = shared(shared(inner(inputs)))
    x = layers.TimeDistributed(FeedbackDense(5, name="wrapped"))(x)
    x = layers.Dense(2, name="stock")(layers.Flatten()(x))
    model = keras.Model(inputs, FeedbackDense(3, name="head")(x))
    # Moves the BatchNorm statistics and the dropout's seed.
    for _ in range(3):
        model(np.random.default_rng(0).normal(size=(8, 4, 4)), training=True)
    return model


def _own_state(model):
    feedback = {id(v) for v in feedback_variables(model)}
    return [v for v in model.variables if id(v) not in feedback]


@pytest.mark.slow
@every_rule
def test_with_rule_carries_the_state_and_renews_the_feedback(rule):
    model = _nested()
    _moved(model)
    state = [v.numpy() for v in _own_state(model)]
    new = models.with_rule(model, rule)
    assert [v.name for v in _own_state(new)] == [v.name for v in _own_state(model)]
    assert {"moving_mean", "seed_generator_state"} <= {v.name for v in _own_state(new)}
    for old, copied, before in zip(
        _own_state(model), _own_state(new), state, strict=True
    ):
        assert copied is not old
        np.testing.assert_array_equal(copied, before)
        np.testing.assert_array_equal(old, before)
    names = ["inner", "shared", "wrapped", "head"]
    assert sorted(v.name for v in feedback_layers(new)) == sorted(names)
    for old, layer in zip(feedback_layers(model), feedback_layers(new), strict=True):
        assert type(layer.rule) is type(rules.get(rule))
        assert type(old.rule) is rules.FeedbackAlignment
        kernel = layer.kernel.numpy()
        stored = helpers.stored(layer)
        helpers.assert_backward_kernel(layer, rule, kernel, kernel, stored)
        if rule == "fa":
            assert not np.array_equal(stored["feedback"], old.feedback)
    x = np.random.default_rng(1).normal(size=(8, 4, 4)).astype("float32")
    np.testing.assert_array_equal(new(x), model(x))
    # The same masks too: the seeds were carried.
    np.testing.assert_array_equal(new(x, training=True), model(x, training=True))
    assert not new.compiled


def test_with_rule_of_a_seeded_rule_is_reproducible_and_differs_by_layer():
    model = models.mlp((4,), (4, 4), 4, rule="backprop")
    first, second = (
        models.with_rule(model, rules.FeedbackAlignment(seed=3)) for _ in range(2)
    )
    values = [layer.feedback.numpy() for layer in feedback_layers(first)]
    for value, layer in zip(values, feedback_layers(second), strict=True):
        np.testing.assert_array_equal(value, layer.feedback)
    assert not np.array_equal(values[0], values[1])


def test_with_rule_passes_the_arguments_of_the_rule():
    new = models.with_rule(_nested(), rules.SignFeedbackAlignment(0.7))
    assert [v.rule.scale for v in feedback_layers(new)] == [0.7] * 4


def test_with_rule_shares_nothing():
    model = models.mlp((4,), 5, 3)
    new = models.with_rule(model, "fa")
    before = [v.numpy() for v in model.variables]
    for variable in new.variables:
        variable.assign_add(tf.ones(variable.shape))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


class Composite(keras.layers.Layer):
    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)


class OwnRule(Composite):
    """A layer whose config does not know of the rule inside it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = FeedbackDense(3, rule="fa")


class GivenRule(Composite):
    """One whose config does."""

    def __init__(self, rule="fa", **kwargs):
        super().__init__(**kwargs)
        self.inner = FeedbackDense(3, rule=rule)

    def get_config(self):
        return {**super().get_config(), "rule": rules.serialize(self.inner.rule)}


@pytest.mark.parametrize("composite", [OwnRule, GivenRule])
def test_with_rule_reaches_into_composite_layers(composite):
    model = keras.Sequential([keras.Input((4,)), composite()])
    new = models.with_rule(model, rules.SignFeedbackAlignment(0.7))
    assert [v.rule.scale for v in feedback_layers(new)] == [0.7]
    assert isinstance(new.layers[0], composite)
    assert type(model.layers[0].inner.rule) is rules.FeedbackAlignment


def test_with_rule_errors():
    stock = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="no feedback layers"):
        models.with_rule(stock, "fa")
    with pytest.raises(ValueError, match="Unknown rule"):
        models.with_rule(models.mlp((4,), 5, 3), "nothing")

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = FeedbackDense(3)

        def call(self, inputs):
            return self.inner(inputs)

    model = Subclassed()
    model(np.ones((2, 4)))
    with pytest.raises(ValueError, match="config does not make it again"):
        models.with_rule(model, "fa")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "lenet"])
def test_mixed_float16_scales_its_losses(network):
    shape = (6,) if network == "mlp" else (18, 18, 1)
    arguments = {"hidden_units": 5} if network == "mlp" else {}
    model = getattr(models, network)(
        shape, num_classes=3, dtype="mixed_float16", **arguments
    )
    model.compile("sgd", "mse")
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    x = np.ones((2, *shape), "float32")
    assert model(x).dtype == "float16"
    before = [v.numpy() for v in model.trainable_variables]
    # The scale starts so high that first steps are skipped, and halved until they fit.
    for _ in range(6):
        model.train_on_batch(x, np.ones((2, 3)))
    moved = zip(before, model.trainable_variables, strict=True)
    assert any(np.abs(old - new).max() > 0 for old, new in moved)


@pytest.mark.parametrize("widths", [(), 0, (4, 0), (True,), (2.0,)])
def test_widths_of_hidden_layers_are_positive_integers(widths):
    with pytest.raises(ValueError, match="hidden_units must be the widths"):
        models.mlp((5,), widths, 3)
