"""A vision transformer, a decoder and an LSTM, converted: their gradients and the rest.

What every layer has is in test_further_layers.py; with --long a whole network is seen
to have it: files, clones, a resumed training, two replicas, dtypes, XLA.
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
from keras import layers

import keras_fa

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def _block(x, causal=False):
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 3)(y, y, use_causal_mask=causal)
    y = layers.Dense(12, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(6)(y)


def _vit():
    inputs = keras.Input((6, 6, 2))
    x = layers.Reshape((-1, 6))(layers.Conv2D(6, 3, 3)(inputs))
    x = layers.GlobalAveragePooling1D()(_block(_block(x)))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def _decoder():
    """Tokens in, the logits of the next ones out, through one table."""
    inputs = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(7, 6, name="head")
    return keras.Model(inputs, table(_block(table(inputs), causal=True), reverse=True))


def _lstm():
    inputs = keras.Input((5, 2))
    x = layers.LSTM(4, return_sequences=True)(layers.Dense(3)(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.LSTM(4)(x)))


NETS = {"vit": _vit, "decoder": _decoder, "lstm": _lstm}
every_net = pytest.mark.parametrize("net", NETS)
every_cell = pytest.mark.parametrize(
    ("net", "rule"), [(net, rule) for net in NETS for rule in ("fa", "kolen_pollack")]
)


def _data(model, number=8):
    random = np.random.default_rng(1)
    shape = (number, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        x = random.integers(0, 7, shape)
    else:
        x = random.normal(size=shape).astype("float32")
    return x, random.normal(size=(number, *model.output_shape[1:])).astype("float32")


def _compiled(model, jit_compile=False):
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=jit_compile)
    return model


def _fit(model, epochs=1):
    model.fit(*_data(model), batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return model


def _assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=b.path)


@pytest.mark.slow
@every_net
def test_gradients_are_those_of_the_rule(net):
    """With B set to W the stock model's; with B set to 0 none below the head."""
    keras.config.set_dtype_policy("float64")
    stock = NETS[net]()
    new, _ = keras_fa.convert(stock)
    x, y = _data(stock)

    def gradients(model):
        with tf.GradientTape() as tape:
            error = model(x) - y
            loss = keras.ops.sum(error**2)
        sources = keras_fa.layers.forward_variables(model)
        found = tape.gradient(loss, [v.value for v in sources])
        pairs = zip(sources, found, strict=True)
        return {v.path: np.array(tf.convert_to_tensor(g)) for v, g in pairs}

    expected = gradients(stock)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    weights = keras_fa.layers.forward_variables(new)
    for layer, index, number in helpers.maps_of(new):
        layer.stored(index)["feedback"].assign(weights[number])
    np.testing.assert_array_equal(new(x), stock(x))
    for path, gradient in gradients(new).items():
        # Measured: 0.
        assert np.abs(gradient - expected[path]).max() < 1e-13 * largest, path
    for layer, index, _ in helpers.maps_of(new):
        layer.stored(index)["feedback"].assign(0 * layer.backward_kernel(index))
    for path, gradient in gradients(new).items():
        assert gradient.any() == path.startswith("head/"), path


# --- What a layer has, a network has ---


@pytest.mark.long
def test_files_are_read_in_a_fresh_process(tmp_path):
    for net, rule in [(net, rule) for net in NETS for rule in ("fa", "sign_fa")]:
        model, _ = keras_fa.convert(NETS[net](), rule)
        _fit(_compiled(model)).save(tmp_path / f"{net}-{rule}.keras")
        x, _ = _data(model)
        np.savez(tmp_path / f"{net}-{rule}.npz", x=x, y=model(x))
    program = f"""
        import pathlib
        import numpy as np, keras, keras_fa
        for path in sorted(pathlib.Path(r"{tmp_path}").glob("*.keras")):
            model = keras.saving.load_model(path)
            arrays = np.load(path.with_suffix(".npz"))
            np.testing.assert_array_equal(model(arrays["x"]), arrays["y"])
            rule = path.stem.partition("-")[2]
            found = keras_fa.layers.feedback_layers(model)
            assert {{type(v.rule) for v in found}} == {{type(keras_fa.rules.get(rule))}}
            x, y = arrays["x"], np.zeros_like(arrays["y"])
            assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()
            print(path.stem)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    )
    assert len(done.stdout.split()) == 2 * len(NETS)


@pytest.mark.long
@every_cell
def test_a_saved_training_goes_on_bit_for_bit(net, rule, tmp_path):
    model, _ = keras_fa.convert(NETS[net](), rule)
    _fit(_compiled(model)).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        _fit(one)
    # All but the states of random numbers, which Keras does not save.
    kept = [
        [v for v in one.variables if "seed_generator" not in v.path]
        for one in (loaded, model)
    ]
    _assert_equal(*kept)
    _assert_equal(loaded.optimizer.variables, model.optimizer.variables)


@pytest.mark.long
@every_cell
def test_a_clone_has_the_rules_and_trains_by_itself(net, rule):
    model, _ = keras_fa.convert(NETS[net](), rule)
    before = [v.numpy() for v in model.variables]
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x, _ = _data(model)
    np.testing.assert_array_equal(clone(x), model(x))
    pairs = zip(*map(keras_fa.layers.feedback_layers, (model, clone)), strict=True)
    assert all(type(one.rule) is type(other.rule) for one, other in pairs)
    _fit(_compiled(clone))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.long
@every_cell
def test_two_replicas_train_as_one_device(net, rule, mirrored):
    def trained(scope):
        keras.utils.set_random_seed(3)
        with scope:
            model = keras_fa.convert(NETS[net](), rule)[0]
            # Adam magnifies what rounding makes of a gradient that is zero.
            model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
        return _fit(model, epochs=2)

    one, two = trained(tf.device("CPU:0")), trained(mirrored.scope())
    for actual, expected in zip(two.variables, one.variables, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    for variable in keras_fa.layers.feedback_variables(two):
        first, second = mirrored.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)


@pytest.mark.long
@pytest.mark.parametrize(
    ("net", "policy"),
    [
        (net, policy)
        for net in NETS
        for policy in ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
        # Stock Keras cannot draw orthogonal kernels in it.
        if (net, policy) != ("lstm", "bfloat16")
    ],
)
def test_dtypes(net, policy):
    keras.config.set_dtype_policy(policy)
    stock = NETS[net]()
    new, _ = keras_fa.convert(stock)
    x, _ = _data(stock)
    np.testing.assert_array_equal(new(x), stock(x))
    dtype = keras.DTypePolicy(policy).variable_dtype
    stored = keras_fa.layers.feedback_variables(new)
    assert stored and {v.dtype for v in stored} == {dtype}
    before = [v.numpy() for v in new.trainable_variables]
    new.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    assert np.isfinite(_fit(new).evaluate(*_data(new), verbose=0))
    # Some steps are smaller than what half a precision tells: measured, 0.65 move.
    moved = zip(new.trainable_variables, before, strict=True)
    assert np.mean([np.any(v.numpy() != old) for v, old in moved]) > 0.6


@pytest.mark.long
@every_cell
def test_xla_trains_alike(net, rule):
    model, _ = keras_fa.convert(NETS[net](), rule)
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    other, _ = keras_fa.convert(model, rule)
    other.set_weights(model.get_weights())
    other.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=True)
    for one in (model, other):
        _fit(one)
    for actual, expected in zip(other.variables, model.variables, strict=True):
        if "seed_generator" not in expected.path:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
