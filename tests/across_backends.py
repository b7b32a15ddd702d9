"""Files and readings of one backend for the others: the part of one process.

    KERAS_BACKEND=jax .venv-jax/bin/python tests/across_backends.py FOLDER jax,torch

Writes what this backend makes to FOLDER, waits for the other backends that are named,
and trains on what each of them saved. `test_across_backends.py` starts one such process
for each backend and compares.
"""

import os
import pathlib
import sys
import time

import keras
import numpy as np

from keras_fa import analysis, autodiff, models, optimizers
from keras_fa.layers import BatchNormalization, FeedbackConv2D, FeedbackDense

RULES = ("fa", "sign_fa", "ada_fa", "kolen_pollack")
# Seconds to wait for what another backend writes.
_PATIENCE = 500


def data(shape, classes, examples):
    """The same numbers on every backend."""
    random = np.random.default_rng(0)
    x = random.normal(size=(examples, *shape)).astype("float32")
    return x, np.arange(examples) % classes


def network(rule):
    """Convolution, BatchNorm and dense layers, compiled with momentum."""
    inner = [
        keras.Input((8, 8, 2)),
        FeedbackConv2D(4, 3, strides=2, padding="same", use_bias=False, rule=rule),
        BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        FeedbackDense(12, "tanh", rule=rule),
        FeedbackDense(3, rule=rule),
    ]
    return compiled(keras.Sequential(inner), optimizers.TorchSGD(0.02, momentum=0.9))


def compiled(model, optimizer):
    """Compiled by this backend's defaults: a file says those of its own backend."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def trained(model):
    """After ten steps."""
    x, y = data((8, 8, 2), 3, 40)
    model.fit(x, y, 8, 2, shuffle=False, verbose=0)
    return model


def values(model):
    state = [*model.variables, *model.optimizer.variables]
    return {str(number): autodiff.array(v) for number, v in enumerate(state)}


def resnet18():
    """The angles of ResNet-18 under FA, its weights drawn by NumPy."""
    model = models.resnet18((32, 32, 3), 10, "fa")
    random = np.random.default_rng(1)
    for variable in model.variables:
        if len(variable.shape) > 1:
            scale = np.sqrt(2 / np.prod(variable.shape[:-1]))
            variable.assign((random.normal(size=variable.shape) * scale).astype("f"))
    found = analysis.gradient_alignment(
        model,
        *data((32, 32, 3), 10, 16),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    readings = {"whole": [found.cosine, found.gradient_norm, found.feedback_norm]}
    for name, part in found.layers.items():
        readings[name] = [part.cosine, part.true_norm, part.feedback_norm]
    return readings


def write(path, save):
    """A file that is there whole or not at all."""
    begun = path.with_name(f"begun-{path.name}")
    save(begun)
    os.replace(begun, path)


def main(folder, backends):
    own = keras.backend.backend()
    for rule in RULES:
        keras.utils.set_random_seed(len(rule))
        model = trained(network(rule))
        write(folder / f"{rule}-{own}.keras", model.save)
    write(folder / f"resnet18-{own}.npz", lambda path: np.savez(path, **resnet18()))
    for other in backends:
        for rule in RULES:
            made = folder / f"{rule}-{other}.keras"
            deadline = time.monotonic() + _PATIENCE
            while not made.exists():
                if time.monotonic() > deadline:
                    sys.exit(f"{other} wrote no {made.name} in {_PATIENCE} seconds")
                time.sleep(0.2)
            model = keras.models.load_model(made)
            model = trained(compiled(model, model.optimizer))
            path = folder / f"{rule}-{other}-{own}.npz"
            write(path, lambda path, model=model: np.savez(path, **values(model)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2].split(","))
