"""Batch normalisation by the fused kernel against Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_fa
from keras_fa import analysis, models
from keras_fa.layers import BatchNormalization, FeedbackConv2D

# Of the largest entry; measured at most 1.4e-6 where it is the same rounding.
CLOSE = 2e-5


def batch(shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype("float32")


def trained_once(layer, x, jit_compile=False):
    """Outputs, gradients and running statistics of a training pass, in float32."""
    layer.build(x.shape)
    for variable in layer.trainable_variables:
        variable.assign(np.linspace(0.5, 1.5, variable.shape[0]))
    x = tf.cast(x, layer.compute_dtype)

    @tf.function(jit_compile=jit_compile)
    def one():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y**3)
        sources = [x, *(v.value for v in layer.trainable_variables)]
        return y, tape.gradient(loss, sources)

    y, gradients = one()
    moving = [v.value for v in layer.non_trainable_variables]
    found = [y, *gradients, *moving]
    return y.dtype, [np.asarray(tf.cast(v, "float64")) for v in found]


def assert_as_kerass(arguments, x, **kwargs):
    (dtype, found), (wanted_dtype, wanted) = (
        trained_once(make(**arguments), x, **kwargs)
        for make in (BatchNormalization, layers.BatchNormalization)
    )
    assert dtype == wanted_dtype
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=CLOSE * np.abs(other).max())


def operations(layer, shape):
    """Types of the operations of a training pass."""
    layer.build(shape)
    trace = tf.function(lambda x: layer(x, training=True)).get_concrete_function(
        tf.TensorSpec(shape, layer.compute_dtype)
    )
    return [operation.type for operation in trace.graph.get_operations()]


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("arguments", [{}, {"scale": False}, {"center": False}])
def test_a_training_pass_is_kerass(dtype, arguments):
    arguments = {"dtype": dtype, "momentum": 0.9, **arguments}
    assert_as_kerass(arguments, batch((4, 5, 5, 3)))
    assert "FusedBatchNormV3" in operations(
        BatchNormalization(**arguments), (4, 5, 5, 3)
    )


def test_a_single_value_has_a_variance_of_zero():
    assert_as_kerass({"momentum": 0.5, "epsilon": 0.1}, batch((1, 1, 1, 3)))


@pytest.mark.slow
def test_with_xla():
    assert_as_kerass({}, batch((4, 3, 3, 2)), jit_compile=True)


def test_low_precision_is_not_cast():
    shape = (4, 5, 5, 3)
    fused = operations(BatchNormalization(dtype="mixed_bfloat16"), shape)
    assert "Cast" in operations(
        layers.BatchNormalization(dtype="mixed_bfloat16"), shape
    )
    # That of the number of values.
    assert fused.count("Cast") == 1


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"dtype": "float64"}, (4, 5, 5, 3)),
        ({"axis": 1}, (4, 3, 5, 5)),
        ({}, (6, 3)),
        ({}, (6, 4, 3)),
        ({"renorm": True}, (4, 5, 5, 3)),
        ({"synchronized": True}, (4, 5, 5, 3)),
    ],
)
def test_what_the_kernel_cannot_do_is_kerass_to_the_bit(arguments, shape):
    x = batch(shape)
    (_, found), (_, wanted) = (
        trained_once(make(**arguments), x)
        for make in (BatchNormalization, layers.BatchNormalization)
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_frozen_and_in_inference_it_is_kerass_to_the_bit():
    x = batch((4, 5, 5, 3))
    layer, stock = BatchNormalization(), layers.BatchNormalization()
    for made in (layer, stock):
        made.build(x.shape)
        made.moving_mean.assign([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(layer(x), stock(x))
    layer.trainable = stock.trainable = False
    np.testing.assert_array_equal(layer(x, training=True), stock(x, training=True))
    np.testing.assert_array_equal(layer.moving_mean, [1.0, 2.0, 3.0])


def net(normalization=layers.BatchNormalization, conv=layers.Conv2D):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            conv(4, 3, use_bias=False, name="c1"),
            normalization(name="bn"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="d"),
        ]
    )


@pytest.mark.slow
def test_conversion_gives_it_to_any_model_and_takes_it_back(tmp_path):
    model, x = net(), batch((8, 6, 6, 2))
    model.get_layer("bn").moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    same, _ = keras_fa.convert(model, "fa")
    assert type(same.get_layer("bn")) is layers.BatchNormalization
    fused, _ = keras_fa.convert(model, "fa", fused_batch_norm=True)
    assert type(fused.get_layer("bn")) is BatchNormalization
    wanted = model.predict(x, verbose=0)
    np.testing.assert_array_equal(fused.predict(x, verbose=0), wanted)
    fused.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fused.fit(x, np.arange(8) % 3, verbose=0)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.models.load_model(tmp_path / "fused.keras")
    assert type(loaded.get_layer("bn")) is BatchNormalization
    trained = fused.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), trained)
    stock = keras_fa.to_stock(fused)
    assert type(stock.get_layer("bn")) is layers.BatchNormalization
    np.testing.assert_array_equal(stock.predict(x, verbose=0), trained)
    # Nobody gets it who did not ask.
    assert type(keras_fa.to_stock(same).get_layer("bn")) is layers.BatchNormalization
    # Files of weights are one another's.
    stock.save_weights(tmp_path / "stock.weights.h5")
    other = net(BatchNormalization)
    other.load_weights(tmp_path / "stock.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), trained)


def test_the_laws_know_it():
    found = [
        {
            (group.name, group.kind, tuple(c.path for c in group.consumers))
            for group in analysis.conserved_groups(net(kind, FeedbackConv2D))
        }
        for kind in (BatchNormalization, layers.BatchNormalization)
    ]
    assert found[0] == found[1] and any(kind == "norm" for _, kind, _ in found[0])


@pytest.mark.slow
def test_replicas_keep_the_statistics_that_kerass_keep(mirrored):
    x, y = batch((8, 6, 6, 2)), np.arange(8) % 3
    kept = []
    for kind in (BatchNormalization, layers.BatchNormalization):
        keras.utils.set_random_seed(0)
        with mirrored.scope():
            model = net(kind)
            model.compile(
                "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            )
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        kept.append([np.asarray(w) for w in model.get_weights()])
    for one, other in zip(*kept, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_resnet18_is_that_of_padded_convolutions():
    # In float64 nothing is fused; in float32 twenty layers differ by 6e-4.
    model = models.resnet18((16, 16, 3), 4, "backprop", dtype="float64")
    again = models.to_stock(model)

    def padded(layer):
        """The layer of before: its input padded by a layer of its own."""
        config = layer.get_config()
        if not isinstance(layer, layers.Conv2D) or config["padding"] == "valid":
            return type(layer).from_config(config)
        assert layer.strides == (1, 1) or layer.kernel_size == (1, 1)
        inner = layers.Conv2D.from_config({**config, "padding": "valid"})
        pad = layers.ZeroPadding2D(layer.kernel_size[0] // 2, dtype="float64")
        return keras.Sequential([pad, inner], name=layer.name)

    old = keras.models.clone_model(again, clone_function=padded)
    old.set_weights(again.get_weights())
    x, y = batch((4, 16, 16, 3)), np.arange(4)
    loss = keras.losses.SparseCategoricalCrossentropy(True, dtype="float64")
    found = []
    for network in (model, old):
        with tf.GradientTape() as tape:
            value = loss(y, network(x, training=True))
        gradients = tape.gradient(value, network.trainable_variables)
        moving = [v.value for v in network.non_trainable_variables]
        found.append([np.asarray(v) for v in [value, *gradients, *moving]])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10 * np.abs(other).max())
