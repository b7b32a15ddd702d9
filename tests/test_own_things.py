"""A folder of the user's own: rule, model, data, loss and instrument, from everywhere.

Nothing of it is in the package; names are registered, or said as "module:function".
"""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fa
from keras_fa.lab import plans, run_folder

ROOT = pathlib.Path(__file__).parents[1]

THINGS = '''
    """What a user brings."""
    import keras
    import numpy as np

    import keras_fa


    @keras_fa.register("rule", "squared")
    class Squared(keras_fa.rules.FeedbackRule):
        label = "squared"

        def __init__(self, scale=1.0):
            self.scale = scale

        def backward_kernel(self, kernel):
            return self.scale * kernel * keras.ops.abs(kernel)

        def potential(self, kernel):
            return kernel, self.scale * kernel * keras.ops.abs(kernel) / 3

        def get_config(self):
            return {"scale": self.scale}


    def network(input_shape, num_classes, rule, width=6):
        dense = keras_fa.layers.FeedbackDense
        return keras.Sequential(
            [
                keras.Input(input_shape),
                dense(width, rule=rule, name="one"),
                keras.layers.ReLU(),
                dense(num_classes, rule=rule, name="two"),
            ]
        )


    def blobs(seed, n=60):
        random = np.random.default_rng(seed)
        y = random.integers(0, 3, 2 * n)
        x = random.normal(size=(2 * n, 4)).astype("float32") + y[:, None]
        return (x[:n], y[:n]), (x[n:], y[n:])


    def hinge_like(y_true, y_pred):
        one_hot = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), 3)
        return keras.ops.mean((y_pred - one_hot) ** 2, axis=-1)


    class Largest(keras.callbacks.Callback):
        """Logs the largest weight; knows the data set that it is given."""

        def __init__(self, dataset, name="largest"):
            super().__init__()
            self.key = f"{name}_of_{dataset.num_train}"

        def read(self):
            weights = [np.abs(v).max() for v in self.model.trainable_variables]
            return {self.key: float(max(weights))}

        def on_epoch_end(self, epoch, logs=None):
            logs.update(self.read())
'''
CONFIG = """
    from keras_fa.config import default_config
    import own_things  # registers the rule


    def get_config():
        config = default_config()
        config.dataset = {"name": "own_things:blobs", "n": 50}
        config.model = {"name": "own_things:network", "width": 5}
        config.rule = {"name": "squared", "scale": 2.0}
        config.loss = "own_things:hinge_like"
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 0.02
        config.batch_size = 10
        config.epochs = 2
        config.instruments.ledger = True
        config.instruments.others = ("own_things:Largest",)
        return config
"""
GRID = """
    def get_grid():
        return {
            "config": "own_config.py",
            "axes": [{"rule": ["squared", "fa"]}, {"seed": [0, 1]}],
            "seconds_per_cell": 2,
        }
"""
SPACE = """
    def get_space():
        return {
            "config": "own_config.py",
            "space": {"model.width": {"min": 4, "max": 6}},
            "objective": "val_loss",
        }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, text in {
        "own_things": THINGS,
        "own_config": CONFIG,
        "own_grid": GRID,
        "own_space": SPACE,
    }.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def start(folder, program, *arguments):
    """Starts one of the programs in the user's folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "trainers" / f"{program}.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.long
def test_own_things_in_a_run_a_sweep_and_a_search(folder):
    # Side by side, since each of them mostly waits for TensorFlow.
    train = start(folder, "train", "--config=own_config.py", "--workdir=run")
    sweep = start(folder, "sweep", "--grid=own_grid.py", "--workdir=sweep", "--jobs=2")
    outputs = [process.communicate(timeout=300)[0] for process in (train, sweep)]
    tune = start(
        folder, "tune", "--space=own_space.py", "--workdir=search", "--trials=2"
    )
    outputs.append(tune.communicate(timeout=300)[0])
    for process, output in zip((train, sweep, tune), outputs, strict=True):
        assert process.returncode == 0, output
    lines = run_folder.read_metrics(folder / "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["largest_of_50"] > 0
    # The user's rule has a law, and its ledger closes.
    assert (
        abs(lines[-1]["ledger/remainder/one"])
        < 1e-9 * abs(lines[-1]["ledger/measured/one"]) + 1e-12
    )
    assert lines[-1]["drift/one"] > 0
    assert (folder / "run" / "figures" / "potentials.png").is_file()
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["rule"] == {"name": "squared", "scale": 2.0}
    summaries = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted((folder / "sweep").glob("*/summary.json"))
    }
    assert list(summaries) == [
        f"rule={rule},seed={seed}" for rule in ("fa", "squared") for seed in (0, 1)
    ]
    assert {summary["status"] for summary in summaries.values()} == {"finished"}
    # A sweep's worker gives the numbers of train.py.
    cell = summaries["rule=squared,seed=0"]["final"]
    assert {**cell, "seconds": 0} == {**lines[-1], "seconds": 0}
    trials = (folder / "search" / "trials.csv").read_text()
    assert trials.count("finished") == 2


NETWORK = '''
    """A network that knows nothing of rules, with a layer of its own."""
    import keras


    @keras.saving.register_keras_serializable("own_network")
    class Residual(keras.layers.Layer):
        def build(self, shape):
            self.inner = keras.layers.Dense(shape[-1], activation="relu", name="inner")
            self.inner.build(shape)

        def call(self, x):
            return x + self.inner(x)


    def network(input_shape, num_classes, activation="relu"):
        return keras.Sequential(
            [
                keras.Input(input_shape),
                keras.layers.Flatten(),
                Residual(),
                keras.layers.Activation(activation),
                keras.layers.Dense(num_classes),
            ]
        )
'''


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_a_network_of_ones_own_is_trained_and_taken_away(tmp_path, monkeypatch):
    """By its name on a command line; saved, served, stock again and quantized."""
    (tmp_path / "own_network.py").write_text(textwrap.dedent(NETWORK))
    monkeypatch.syspath_prepend(tmp_path)
    config = plans.read_config("digits")
    fields = {
        "model.name": "own_network:network",
        "rule": "sign_fa",
        "epochs": "2",
        "dataset.train_size": "64",
    }
    assert plans.override(config, fields) == ["hidden_units"]
    assert config.model.to_dict() == {
        "name": "own_network:network",
        "activation": "leaky_relu",
    }
    config.instruments.ledger = config.instruments.gradient_alignment = False
    run = tmp_path / "run"
    with pytest.raises(run_folder.RunFolderError, match="No run in"):
        keras_fa.experiment.load_model(run)
    with pytest.warns(UserWarning, match="the network input is part of the stream"):
        summary = keras_fa.experiment.run(config, run)
    model = keras_fa.experiment.load_model(run)
    # One is in the layer of the user's own.
    assert len(keras_fa.layers.feedback_layers(model)) == 2
    dataset = keras_fa.experiment.load(config)
    x, labels = dataset.arrays("test")
    y = model(x).numpy()
    accuracy = np.mean(y.argmax(axis=1) == labels)
    assert accuracy == pytest.approx(summary["final"]["val_accuracy"], abs=1e-6)
    stock = keras_fa.to_stock(model)
    for name, one in (("model", model), ("stock", stock)):
        one.save(tmp_path / f"{name}.keras")
        loaded = keras.saving.load_model(tmp_path / f"{name}.keras")
        np.testing.assert_array_equal(loaded(x), y)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    # Measured: 0. A graph's sums may have another order.
    np.testing.assert_allclose(served.serve(x), y, rtol=1e-5, atol=1e-5)
    stock.quantize("int8")
    same = stock(x).numpy().argmax(axis=1) == y.argmax(axis=1)
    assert np.mean(same) > 0.9
