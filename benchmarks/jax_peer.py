"""Training steps of stock Keras on JAX, for benchmarks/run.py --peer=jax.

Runs under an interpreter that has keras and jax, and need not have TensorFlow.
"""

import os
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import peer
from keras import layers

MODES = ("jax",)
_POLICIES = {False: "float32", True: "mixed_bfloat16"}


def mlp(x, hidden_units):
    """Dense layers."""
    for units in hidden_units:
        x = layers.Dense(units, "relu")(x)
    return layers.Dense(10)(x)


def lenet(x):
    """The LeNet of `keras_fa.models`."""
    for filters in (32, 64):
        x = layers.MaxPooling2D(2)(layers.Conv2D(filters, 3, activation="relu")(x))
    x = layers.Conv2D(128, 3, activation="relu")(x)
    x = layers.Dense(256, "relu")(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(10)(x)


def _convolution(x, filters, size, strides):
    x = layers.ZeroPadding2D(size // 2)(x) if strides > 1 else x
    padding = "valid" if strides > 1 else "same"
    x = layers.Conv2D(filters, size, strides, padding, use_bias=False)(x)
    return layers.BatchNormalization()(x)


def resnet18(x):
    """The ResNet-18 of `keras_fa.models`, whose pool starts one pixel earlier."""
    x = layers.ReLU()(_convolution(x, 64, 7, 2))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for filters in (64, 128, 256, 512):
        for strides in (1 if filters == 64 else 2, 1):
            y = layers.ReLU()(_convolution(x, filters, 3, strides))
            y = _convolution(y, filters, 3, 1)
            if strides > 1:
                x = layers.Conv2D(filters, 1, strides, use_bias=False)(x)
                x = layers.BatchNormalization()(x)
            x = layers.ReLU()(layers.Add()([y, x]))
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))


_NETWORKS = {"mlp": mlp, "lenet": lenet, "resnet18": resnet18}


def stepper(make, shape, batch, rule, low_precision=False, **arguments):
    """A function that does a training step on random data and returns its seconds."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(_POLICIES[low_precision])
    inputs = keras.Input(shape)
    model = keras.Model(inputs, _NETWORKS[make](inputs, **arguments))
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    random = np.random.default_rng(0)
    x = jax.numpy.asarray(random.normal(size=(batch, *shape)), "float32")
    y = jax.numpy.asarray(random.integers(0, 10, batch))

    def loss(weights, others):
        outputs, others = model.stateless_call(weights, others, x, training=True)
        return cross_entropy(y, outputs), others

    @jax.jit
    def update(weights, others, state):
        gradient, others = jax.grad(loss, has_aux=True)(weights, others)
        weights, state = optimizer.stateless_apply(state, gradient, weights)
        return weights, others, state

    variables = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
        [v.value for v in optimizer.variables],
    )

    def step():
        nonlocal variables
        start = time.perf_counter()
        variables = jax.block_until_ready(update(*variables))
        return time.perf_counter() - start

    return step


if __name__ == "__main__":
    versions = {"jax": jax.__version__, "keras": keras.__version__}
    peer.answer({"rules": [], "modes": MODES, **versions}, stepper)
