"""Runs, sweeps and searches that JAX computes, beside TensorFlow for the data."""

import io
import json
import signal
import subprocess
import time

import keras
import ml_collections
import numpy as np
import pytest
import rich.console
from backends import array
from test_experiment import ROOT, TRAIN, _Network, digits, lines

import keras_fa
from keras_fa import distribution, experiment, sweeps, tuning
from keras_fa.lab import run_folder
from keras_fa.lab.checkpoints import CheckpointError, Checkpoints
from keras_fa.layers import feedback_layers

# Before anything is computed: two devices of the CPU.
distribution.set_logical_devices(2)


def weights(path):
    """Every array of a run's newest checkpoint."""
    newest = max(path.glob("checkpoints/*.npz"), key=lambda p: int(p.stem[6:]))
    with np.load(newest) as file:
        return {name: file[name] for name in file.files if name != "callbacks"}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_a_run_leaves_its_folder_and_its_network(tmp_path):
    config = digits(rule="sign_fa", epochs=6, log_every=3, checkpoint_every=6)
    summary = experiment.run(config, tmp_path / "run")
    assert summary["environment"]["backend"] == "jax"
    assert json.loads((tmp_path / "run/config.json").read_text())[".backend"] == "jax"
    log = run_folder.read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in log] == [0, 3, 6]
    assert log[2]["loss"] < log[1]["loss"]
    assert log[2]["learning_rate"] == pytest.approx(0.02)
    # The evaluation is Keras's, with the weights of the moment.
    model = experiment.load_model(tmp_path / "run")
    dataset = experiment.load(ml_collections.ConfigDict(config))
    loss, accuracy = model.evaluate(*dataset.arrays("test"), verbose=0)
    assert log[-1]["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert log[-1]["val_accuracy"] == pytest.approx(accuracy)


def test_killed_and_resumed_equals_undisturbed(tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = [*TRAIN, "--nofigures", "--config.rule=fa", "--config.epochs=24"]
    # Momentum, and through the ledger a state of callbacks too.
    arguments += ["--config.optimizer.momentum=0.5", "--config.dataset.train_size=320"]
    process = subprocess.Popen([*arguments, f"--workdir={stopped}"], cwd=ROOT)
    deadline = time.monotonic() + 300
    while len(run_folder.read_metrics(stopped)) < 8:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 8 <= len(run_folder.read_metrics(stopped)) < 24
    assert run_folder.read_summary(stopped) is None
    for folder in (stopped, whole):
        subprocess.run([*arguments, f"--workdir={folder}"], cwd=ROOT, check=True)
    assert len(lines(whole)) == 25
    assert lines(stopped) == lines(whole)
    assert_equal(weights(stopped), weights(whole))


def test_two_devices_equal_one(tmp_path):
    """Of 300 examples in batches of 64 the last has 44: each counts once."""
    config = digits(rule="fa", epochs=6)
    config.instruments.gradient_alignment = True
    seen = []

    class Placement(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            layer = feedback_layers(self.model)[0]
            for variable in (layer.kernel, layer.feedback):
                shards = variable.value.addressable_shards
                seen.append([str(shard.device) for shard in shards])
                np.testing.assert_array_equal(*[shard.data for shard in shards])

    for strategy, callbacks in (("default", []), ("mirrored", [Placement()])):
        folder = tmp_path / strategy
        experiment.run(config, folder, strategy, extra_callbacks=callbacks)
    assert seen and all(len(set(devices)) == 2 for devices in seen)
    one, two = (weights(tmp_path / name) for name in ("default", "mirrored"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-6)
    for left, right in zip(
        lines(tmp_path / "default"), lines(tmp_path / "mirrored"), strict=True
    ):
        for key in left:
            assert right[key] == pytest.approx(left[key], rel=1e-5, abs=1e-5), key
    # The run is one of JAX, however many devices computed it.
    assert len(experiment.load_model(tmp_path / "mirrored").get_weights()) == 6


def test_a_network_is_on_the_device_asked_for():
    with keras.device("cpu:1"):
        model = keras_fa.models.lenet((18, 18, 2), 3, "fa")
        assert {str(v.value.device) for v in model.variables} == {"cpu:1"}
        outputs = model(keras.ops.ones((2, 18, 18, 2)))
    assert str(outputs.device) == "cpu:1"


@pytest.mark.parametrize(
    ("changes", "strategy", "match"),
    [
        ({"dtype": "float64"}, "default", "config.dtype: Keras takes float64 for"),
        ({}, "multi_worker", "multi_worker is TensorFlow's.*Use KERAS_BACKEND=tensor"),
        ({"batch_size": 65}, "mirrored", "among its 2 devices.* 65 examples"),
        ({"batch_size": 62, "dataset.train_size": 299}, "mirrored", " 51 examples"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path, monkeypatch, changes, strategy, match):
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    task = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    config = digits()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=match):
        experiment.run(config, tmp_path / "run", strategy)
    assert not (tmp_path / "run").exists()


def test_a_run_of_tensorflow_is_refused(tmp_path, monkeypatch):
    config = digits(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "backend", lambda: "tensorflow")
        with run_folder.RunFolder(tmp_path / "seed=0", config.to_dict()) as folder:
            folder.begin(-1)
    match = "of the Keras backend tensorflow, and this process is on jax.*another"
    for refusing in (
        lambda: experiment.run(config, tmp_path / "seed=0"),
        lambda: experiment.load_model(tmp_path / "seed=0"),
        lambda: experiment.audit(tmp_path / "seed=0"),
    ):
        with pytest.raises(run_folder.OtherBackendError, match=match):
            refusing()
    [cell] = sweeps.cells(config, [{"seed": [0]}])
    assert sweeps.status(cell, tmp_path) == sweeps.FAILED
    assert "KERAS_BACKEND=tensorflow" in sweeps.failure(cell, tmp_path)["error"]


def test_checkpoints_carry_dropout_batchnorm_and_adam(tmp_path):
    whole, first, second = _Network(), _Network(), _Network()
    whole.fit(5)
    first.fit(2)
    Checkpoints(tmp_path, first.model).save(2)
    assert Checkpoints(tmp_path, second.model).restore() == 2
    second.fit(3)
    own, other = (
        [*network.model.variables, *network.model.optimizer.variables]
        for network in (whole, second)
    )
    for one, two in zip(own, other, strict=True):
        np.testing.assert_array_equal(array(one), array(two))


def test_whatever_is_wrong_with_a_checkpoint_the_one_before_it_is_taken(
    tmp_path, caplog
):
    network = _Network()
    checkpoints = Checkpoints(tmp_path, network.model)
    checkpoints.save(1)
    kept = [array(v) for v in network.model.variables]
    network.fit(1)
    checkpoints.save(2)
    path = tmp_path / "epoch-2.npz"
    content = path.read_bytes()
    with np.load(path) as file:
        values = [file[name].tobytes() for name in file.files]
    places = [content.index(value) + len(value) // 2 for value in values if len(value)]
    flipped = [
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in places
    ]
    cut = [content[: int(len(content) * share)] for share in (0, 0.3, 0.6, 0.99)]
    fresh = _Network()
    for damaged in (*flipped, *cut):
        path.write_bytes(damaged)
        caplog.clear()
        assert Checkpoints(tmp_path, fresh.model).restore() == 1
        assert "Checkpoint epoch-2 cannot be read" in caplog.text
        for variable, value in zip(fresh.model.variables, kept, strict=True):
            np.testing.assert_array_equal(array(variable), value)
    path.write_bytes(content)
    assert Checkpoints(tmp_path, fresh.model).restore() == 2
    # Of another network it is nothing.
    keras.utils.clear_session()
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    other.compile("adam", "mse")
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(CheckpointError, match=r"kernel it has float32 \(6, 8\), not"):
        Checkpoints(tmp_path, other).restore()


def test_half_precision_survives_a_checkpoint(tmp_path):
    def made(value):
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(3, dtype="bfloat16")]
        )
        model.compile("sgd", "mse")
        model.optimizer.build(model.trainable_variables)
        for variable in model.trainable_variables:
            variable.assign(np.full(variable.shape, value))
        return model

    Checkpoints(tmp_path, made(1.5)).save(1)
    restored = made(0.0)
    assert Checkpoints(tmp_path, restored).restore() == 1
    assert restored.layers[0].kernel.dtype == "bfloat16"
    np.testing.assert_array_equal(array(restored.layers[0].kernel), 1.5)


def test_a_sweep_and_a_search(tmp_path, monkeypatch):
    console = rich.console.Console(file=io.StringIO())
    cells = sweeps.cells(digits(epochs=2), [{"rule": ["fa", "sign_fa"]}])
    states = sweeps.run(cells, tmp_path / "sweep", jobs=1, console=console)
    assert set(states.values()) == {sweeps.FINISHED}, console.file.getvalue()
    for cell in cells:
        summary = run_folder.read_summary(tmp_path / "sweep" / cell.name)
        assert summary["environment"]["backend"] == "jax"
    space = {"optimizer.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True}}
    search = tuning.Search(
        digits(epochs=1), space, tmp_path / "search", algorithm="random", trials=2
    )
    search.run(console)
    assert list(search.table()["status"]) == [sweeps.FINISHED] * 2
    monkeypatch.setattr(run_folder, "backend", lambda: "tensorflow")
    with pytest.raises(
        run_folder.RunFolderError, match=r"another search.*\n.*'jax' in"
    ):
        tuning.Search(
            digits(epochs=1), space, tmp_path / "search", algorithm="random", trials=2
        )
