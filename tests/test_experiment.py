"""Runs end to end: what they leave, that they resume bit for bit, what they refuse."""

import concurrent.futures
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from keras_fa import experiment, rules
from keras_fa.config import default_config
from keras_fa.lab import build, plans, recording, run, run_folder
from keras_fa.lab.checkpoints import CheckpointError, Checkpoints, _place
from keras_fa.layers import feedback_layers, forward_variables

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = [sys.executable, "trainers/train.py", "--config=configs/digits.py"]


def digits(**changes):
    config = default_config()
    config.dataset.train_size = 300
    config.model.hidden_units = (16,)
    config.batch_size = 64
    config.epochs = 3
    config.optimizer.learning_rate = 0.02
    config.update(changes)
    return config


def lines(path):
    """The log of a run but for its clock."""
    kept = run_folder.read_metrics(path)
    for line in kept:
        del line["seconds"]
    return kept


def weights(path):
    """Every tensor of a run's newest checkpoint."""
    checkpoints = pathlib.Path(path).glob("checkpoints/epoch-*.index")
    newest = max(checkpoints, key=_place)
    reader = tf.train.load_checkpoint(str(newest.with_suffix("")))
    names = reader.get_variable_to_shape_map()
    return {
        name: reader.get_tensor(name)
        for name in names
        if name.startswith(("model", "optimizer"))
    }


def equal(left, right):
    return left.keys() == right.keys() and all(
        np.array_equal(left[name], right[name]) for name in left
    )


def command(*arguments):
    return subprocess.run(
        [*TRAIN, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_run_leaves_its_folder(tmp_path):
    summary = experiment.run(digits(), tmp_path / "run")
    assert summary == run_folder.read_summary(tmp_path / "run")
    assert summary["status"] == "finished"
    assert summary["epochs"] == 3
    assert summary["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    log = run_folder.read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in log] == [0, 1, 2, 3]
    assert summary["final"] == log[-1]
    assert log[-1]["loss"] < log[1]["loss"]
    for key in ("accuracy", "val_loss", "val_accuracy", "learning_rate"):
        assert key in log[-1]
    for key in ("alignment/dense_2", "conservation/dense_1", "drift/dense_1"):
        assert key in log[-1]
    assert log[0]["drift/dense_1"] == 0 < log[-1]["drift/dense_1"]


@pytest.mark.slow
def test_same_seed_same_numbers_other_seed_other_numbers(tmp_path):
    hashes = [
        experiment.run(digits(seed=seed), tmp_path / name)["weights"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    restored = experiment.load_model(tmp_path / "a")
    assert experiment.weights_hash(restored) == hashes[0]
    restored.layers[-1].bias.assign(np.nextafter(restored.layers[-1].bias, np.inf))
    assert experiment.weights_hash(restored) != hashes[0]
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert lines(tmp_path / "a") != lines(tmp_path / "c")


@pytest.mark.slow
def test_rules_share_data_and_initial_weights(tmp_path):
    networks = {}
    for rule in rules.NAMES:
        config = digits(rule=rule)
        dataset = experiment.load(config)
        networks[rule] = experiment.build(config, dataset)
        batch = next(iter(dataset.train_from(0)))[0].numpy()
        networks[rule].first_batch = batch
    reference = networks["backprop"]
    for network in networks.values():
        np.testing.assert_array_equal(network.first_batch, reference.first_batch)
        for own, other in zip(
            forward_variables(network), forward_variables(reference), strict=True
        ):
            np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize(
    ("name", "deviation", "largest"),
    [
        # Torch's own start: within 1 / sqrt(fan_in).
        ("uniform_fan_in", 0.05 / 3**0.5, 0.05),
        ("uniform_width", 0.2 / 3**0.5, 0.2),
        ("normal(0.3)", 0.3, None),
    ],
)
def test_kernels_start_as_the_configuration_says(name, deviation, largest):
    config = default_config()
    config.dataset.n, config.dataset.name, config.dataset.d_in = 20, "separable", 400
    config.loss = "half_squared_error"
    config.model.hidden_units, config.model.kernel_initializer = (25,), name
    model = build.build(config, build.load(config))
    kernel = feedback_layers(model)[0].kernel.numpy()
    assert kernel.std() == pytest.approx(deviation, rel=0.02)
    if largest is not None:
        assert 0.99 * largest < np.abs(kernel).max() <= largest


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight_decay_layers", ("output",)), ("weight_decay_epochs", 1)],
)
def test_decay_of_some_layers_or_epochs_is_sgds_alone(field, value):
    config = default_config()
    config.optimizer.name = "adam"
    config.optimizer[field] = value
    with pytest.raises(ValueError, match="have a meaning for sgd alone"):
        build.build(config, build.load(config))


_EVERY_RULE = """
from keras_fa.config import default_config

def get_config():
    config = default_config()
    config.dataset.train_size = 300
    config.model.hidden_units = {units!r}
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.02
    config.epochs = 60
    config.rule = {rules!r}
    return config
"""


# A layer under each rule. Nothing is fed back through the first one.
_TABLE = {f"dense_{i}": rule for i, rule in enumerate(helpers.RULES, start=1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        # What draws in each step, and what learns its B.
        pytest.param(
            {"dense_1": "brsf", "*": "kolen_pollack"}, id="moving and learned"
        ),
        pytest.param(
            {**_TABLE, "*": "fa"}, id="every rule of a layer", marks=pytest.mark.long
        ),
        *(
            pytest.param(rule, marks=pytest.mark.long)
            for rule in rules.NAMES
            if rule not in helpers.RULES
        ),
    ],
)
def test_stopped_twice_and_resumed_equals_undisturbed(tmp_path, rule):
    units = (16,) * (len(rule) if isinstance(rule, dict) else 2)
    config = tmp_path / "every_rule.py"
    config.write_text(_EVERY_RULE.format(units=units, rules=rule))
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = [sys.executable, "trainers/train.py", f"--config={config}"]
    arguments += ["--nofigures"]
    for stop, line in ((signal.SIGKILL, 10), (signal.SIGINT, 30)):
        process = subprocess.Popen(
            [*arguments, f"--workdir={stopped}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 100
        while len(run_folder.read_metrics(stopped)) < line:
            assert process.poll() is None, "the run ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(stop)
        assert process.wait() == (130 if stop == signal.SIGINT else -stop)
        reached = len(run_folder.read_metrics(stopped))
        assert line <= reached < 60, "the stop came outside the run"
        assert run_folder.read_summary(stopped) is None

    for folder in (stopped, whole):
        done = subprocess.run(
            [*arguments, f"--workdir={folder}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert run_folder.read_summary(stopped)["status"] == "finished"
    assert lines(stopped) == lines(whole)
    assert equal(weights(stopped), weights(whole))


class _Network:
    """Dropout, BatchNorm and Adam: everything whose state a resume must carry."""

    def __init__(self):
        keras.utils.set_random_seed(3)
        self.x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
        self.y = np.random.default_rng(1).normal(size=(32, 2)).astype("float32")
        self.model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(8),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(2),
            ]
        )
        self.model.compile("adam", "mse")
        self.model.optimizer.build(self.model.trainable_variables)

    def fit(self, epochs):
        self.model.fit(
            self.x, self.y, batch_size=8, epochs=epochs, shuffle=False, verbose=0
        )


@pytest.mark.slow
def test_checkpoints_carry_dropout_batchnorm_and_adam(tmp_path):
    whole, first, second = _Network(), _Network(), _Network()
    whole.fit(5)
    first.fit(2)
    Checkpoints(tmp_path, first.model).save(2)
    assert Checkpoints(tmp_path, second.model).restore() == 2
    second.fit(3)
    for own, other in zip(whole.model.variables, second.model.variables, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    network = _Network()
    checkpoints = Checkpoints(tmp_path, network.model)
    checkpoints.save(1)
    network.fit(1)
    checkpoints.save(2)
    kept = network.model.get_weights()
    network.fit(1)
    checkpoints.save(3)
    assert len(list(tmp_path.iterdir())) == 4
    data = next(tmp_path.glob("epoch-3.data*"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "epoch-4.index").write_text("torn")

    fresh = _Network()
    assert Checkpoints(tmp_path, fresh.model).restore() == 2
    assert "epoch-3 cannot be read" in caplog.text
    for own, other in zip(fresh.model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(own, other)

    next(tmp_path.glob("epoch-2.index")).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"epoch-3: (.|\n)*epoch-2: (.|\n)*remove"
    ):
        Checkpoints(tmp_path, _Network().model).restore()


def _cut(index, data, share):
    data.write_bytes(data.read_bytes()[: int(share * data.stat().st_size)])


def _cut_index(index, data, share):
    _cut(data, index, share)


def _swap(index, data, share):
    other = data.with_name(data.name.replace("epoch-2", "epoch-1"))
    data.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "share"),
    [
        *itertools.product((_cut, _cut_index), (0.0, 0.3, 0.6, 0.99)),
        (_swap, None),
        (lambda index, data, share: data.unlink(), None),
    ],
)
def test_whatever_is_wrong_with_a_checkpoint_the_one_before_it_is_taken(
    tmp_path, caplog, damage, share
):
    network = _Network()
    checkpoints = Checkpoints(tmp_path, network.model)
    checkpoints.save(1)
    kept = network.model.get_weights()
    for weight in network.model.trainable_variables:
        weight.assign(weight + 1.0)
    checkpoints.save(2)
    index = tmp_path / "epoch-2.index"
    damage(index, index.with_suffix(".data-00000-of-00001"), share)
    fresh = _Network()
    assert Checkpoints(tmp_path, fresh.model).restore() == 1
    assert "Checkpoint epoch-2 cannot be read" in caplog.text
    for own, other in zip(fresh.model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(own, other)


class _Stops(keras.callbacks.Callback):
    """Ends the process's part in a run as Ctrl-C does."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


def stopped(path, **changes):
    """A run that was stopped after its third epoch of five."""
    config = digits(epochs=5, **changes)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, path, extra_callbacks=[_Stops()])
    return config


class _Terminated(keras.callbacks.Callback):
    """SIGTERM in the midst of the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_sigterm_saves_and_ends_like_ctrl_c(tmp_path):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGALRM)]
    config = digits(epochs=5, checkpoint_every=5)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        experiment.run(config, tmp_path / "run", extra_callbacks=[_Terminated()])
    # Behind the first call of the compiled loop, which makes a whole epoch here.
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [0, 1, 2]
    assert list(tmp_path.glob("run/checkpoints/epoch-2.index"))
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGALRM)]
    experiment.run(config, tmp_path / "run")
    experiment.run(config, tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_sigterm_does_not_wait_for_a_line_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_SECONDS_TO_A_SAVE", 1)

    class Hangs(_Terminated):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            time.sleep(30 * epoch)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        experiment.run(digits(), tmp_path / "run", extra_callbacks=[Hangs()])
    assert time.monotonic() - begun < 20


@pytest.mark.slow
def test_a_log_that_lost_its_end_goes_on_from_the_checkpoint_that_it_fits(
    tmp_path, caplog
):
    config = stopped(tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    kept = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(kept[:3]))
    experiment.run(config, tmp_path / "run")
    assert "epoch-3 cannot be read" in caplog.text
    assert "metrics.jsonl is not the log that it was saved with" in caplog.text
    experiment.run(config, tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"", b'{"epoch": 0, "x": 1}\n'])
def test_a_lost_log_is_never_made_anew_from_a_checkpoint(tmp_path, content):
    config = stopped(tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    log.unlink() if content is None else log.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is not .*(.|\n)*remove"):
        experiment.run(config, tmp_path / "run")


@pytest.mark.slow
def test_checkpoints_of_another_seed_are_refused(tmp_path):
    config = stopped(tmp_path / "run")
    stopped(tmp_path / "other", seed=1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(
        tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints"
    )
    with pytest.raises(CheckpointError, match="by a run with another configuration"):
        experiment.run(config, tmp_path / "run")


@pytest.mark.slow
def test_threads_of_one_process_change_nothing_in_each_others_models():
    configs = [digits(seed=seed) for seed in range(3)]
    for config in configs:
        config.model.hidden_units = (4,) * 5
    dataset = experiment.load(configs[0])

    def weights_of(config):
        model = experiment.build(config, dataset)
        return [array.tolist() for array in model.get_weights()]

    def draw():
        while not stop.is_set():
            random.random()

    expected = [weights_of(config) for config in configs]
    stop = threading.Event()
    noise = threading.Thread(target=draw)
    noise.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            assert list(pool.map(weights_of, configs)) == expected
    finally:
        stop.set()
        noise.join()


class _Counter:
    def __init__(self, count=0):
        self.count = count

    def get_state(self):
        return self.count

    def set_state(self, state):
        self.count = state


class _Other(_Counter):
    pass


class _Prefixed(_Counter):
    def __init__(self, prefix, count=0):
        super().__init__(count)
        self.prefix = prefix


def test_states_go_to_the_callbacks_that_they_came_from(tmp_path):
    model = _Network().model
    saved = [_Counter(1), _Other(2), _Counter(3)]
    Checkpoints(tmp_path, model, saved).save(1)
    fresh = [_Other(), _Counter(), _Counter()]
    assert Checkpoints(tmp_path, model, fresh).restore() == 1
    assert [callback.count for callback in fresh] == [2, 1, 3]
    saved = [_Prefixed("test_", 4), _Prefixed("", 5)]
    Checkpoints(tmp_path / "prefixed", model, saved).save(1)
    turned = [_Prefixed(""), _Prefixed("test_")]
    Checkpoints(tmp_path / "prefixed", model, turned).restore()
    assert [callback.count for callback in turned] == [5, 4]
    with pytest.raises(
        CheckpointError, match="_Counter, _Other, _Counter 2, and this run has _Other"
    ):
        Checkpoints(tmp_path, model, [_Other()]).restore()


def test_states_of_a_version_that_told_callbacks_by_their_order(tmp_path):
    model, callbacks = _Network().model, [_Counter(), _Other()]

    class Former(Checkpoints):
        def _get_state(self):
            return [1, 2]

    Former(tmp_path, model, callbacks).save(1)
    Checkpoints(tmp_path, model, callbacks).restore()
    assert [callback.count for callback in callbacks] == [1, 2]
    for others in (callbacks[:1], [*callbacks, _Counter()]):
        with pytest.raises(CheckpointError, match=r"argument 2 is (longer|shorter)"):
            Checkpoints(tmp_path, model, others).restore()


def test_one_seed_draws_what_it_drew_before():
    # The results of earlier versions stay those of their configurations.
    config = digits()
    config.rule = {"dense_1": "fa", "*": "fa"}
    first, second = build._seeds(0)
    assert (first, second) == (1982462498, 679461430)
    rule = build.rule_of(config, second)
    assert [one.seed for one in rule.values()] == [second, second + 1]


def test_a_full_disk_names_the_remedy_and_keeps_the_older_checkpoint(tmp_path):
    import resource

    network = _Network()
    checkpoints = Checkpoints(tmp_path, network.model)
    checkpoints.save(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="is the disk full"):
            checkpoints.save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert Checkpoints(tmp_path, _Network().model).restore() == 1


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_another_config_refused(tmp_path):
    first = experiment.run(digits(), tmp_path)
    # Killed between its last checkpoint and its end, it only comes to that.
    (tmp_path / "summary.json").unlink()
    again = experiment.run(digits(), tmp_path)
    assert again["status"] == "finished" and again["final"] == first["final"]
    first = run_folder.read_summary(tmp_path)
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    assert experiment.run(digits(), tmp_path) == first
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(run_folder.RunFolderError, match=r"learning_rate: 0\.02"):
        experiment.run(digits(optimizer={"learning_rate": 0.03}), tmp_path)


@pytest.mark.slow
def test_divergence_is_recorded(tmp_path):
    config = digits(optimizer={"learning_rate": 1e30}, epochs=20)
    summary = experiment.run(config, tmp_path)
    assert summary["status"] == "diverged"
    assert summary["epochs"] < 20
    assert summary["final"]["loss"] is None
    assert experiment.run(config, tmp_path) == summary


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rule": "feedback"}, 'config.rule: Unknown rule: .*Did you mean "backprop"'),
        ({"optimizer": {"name": "sdg"}}, 'Unknown optimizer.*Did you mean "sgd"'),
        (
            {"dataset": {"name": "digit"}},
            'config.dataset: Unknown.*Did you mean "digits"',
        ),
        (
            {"model": {"name": "vgg"}},
            "config.model: Unknown model: 'vgg'. Known: mlp, lenet, resnet18",
        ),
        ({"model": {"hidden_units": (16,), "depth": 3}}, "depth"),
        (
            {"dataset": {"trainsize": 9}},
            'config.dataset.*trainsize.*Did you mean "train_size"',
        ),
        ({"loss": "cross_entrpy"}, "cross_entrpy"),
        (
            {"optimizer": {"weight_decay_layers": ("dense_1", "dense_3")}},
            "weight_decay_layers: .* no layer 'dense_3' .* Known: dense_1, dense_2",
        ),
        (
            {"optimizer": {"weight_decay_layers": ("activation_1",)}},
            "no layer 'activation_1' with weights",
        ),
        ({"log_every": 2}, "must divide"),
        ({"loss": "mse"}, r"config.loss: mse does not fit the targets \(\) .* \(10,\)"),
        ({"loss": {"name": "cross_entropy", "foo": 1}}, "'cross_entropy': .* 'foo'"),
        ({"batch_size": 301}, r"config\.batch_size=301 is more than the 300"),
        ({"dtype": "float31"}, "config.dtype: Cannot convert 'float31'"),
        ({"dataset": {"num_classes": 1}}, "config.dataset: .* needs 2 classes"),
        ({"dataset": {"seed": 3}}, r"config\.dataset\.seed .* set config\.seed"),
        ({"dataset": {"flatten": "x"}}, "config.dataset: flatten must be True or"),
        ({"dataset": {"name": None}}, "config.dataset.name takes str"),
        (
            {"model": {"hidden_units": (16,), "use_bias": "yes"}},
            "config.model: .* 'use_bias' .* must be True or False. Received: 'yes'",
        ),
        ({"model": {"hidden_units": (True,)}}, "config.model: hidden_units"),
        *(
            (
                {"model": {"hidden_units": (16,), "kernel_initializer": name}},
                r"config\.model\.kernel_initializer: ",
            )
            for name in ("glorott", "normal(x)", "normal(-1)", "normal(nan)")
        ),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_written(
    tmp_path, changes, match
):
    config = digits()
    with config.unlocked(), config.ignore_type():
        config.update(changes)
    with pytest.raises(ValueError, match=match):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_workers_tell_their_data_by_what_they_have():
    one, same, other = (
        run._features(experiment.load(digits(seed=seed))) for seed in (0, 0, 1)
    )
    assert one == same != other
    assert one["train"] == experiment.load(digits()).num_train


@pytest.mark.slow
def test_sections_among_the_further_instruments(tmp_path):
    config = digits(epochs=1)
    config.instruments.others = (
        {"name": "weight_alignment", "prefix": "own/"},
        # Which takes examples, that a run has for it.
        {"name": "gradient_alignment", "prefix": "own/"},
    )
    summary = experiment.run(config, tmp_path / "run")
    assert "own/alignment/dense_1" in summary["final"]
    assert "own/gradient_cosine" in summary["final"]
    assert experiment.run(config, tmp_path / "run") == summary


def test_normal_initializers_of_a_configuration():
    config = digits()
    with config.unlocked():
        config.model = {
            "name": "mlp",
            "hidden_units": (200,),
            "kernel_initializer": "normal(0.5)",
            "output_initializer": "normal(2.5e-1)",
        }
    model = experiment.build(config, experiment.load(config))
    for layer, deviation in (("dense_1", 0.5), ("dense_2", 0.25)):
        for kernel in ("kernel", "feedback"):
            values = getattr(model.get_layer(layer), kernel).numpy()
            # Measured: 2.6 %; of the 2,000 numbers of dense_2 1.6 % are to be expected.
            assert values.std() == pytest.approx(deviation, rel=0.03)
            assert abs(values.mean()) < 0.05 * deviation


def decay_alone(steps, **fields):
    """Factors by which steps without a gradient shrink dense_1 and dense_2."""
    fields = {"learning_rate": 0.5, "weight_decay": 0.5, **fields}
    config = digits(optimizer=fields)
    model = experiment.build(config, experiment.load(config))
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(keras.ops.ones_like(variable))
    for _ in range(steps):
        model.optimizer.apply([keras.ops.zeros_like(v) for v in variables])
    factors = []
    for layer in ("dense_1", "dense_2"):
        values = [v.numpy().ravel() for v in model.get_layer(layer).trainable_variables]
        factors.append(set(np.concatenate(values).tolist()))
    return factors


def test_only_the_named_layers_decay():
    assert decay_alone(2) == [{0.75**2}, {0.75**2}]
    assert decay_alone(2, weight_decay_layers=("dense_2",)) == [{1.0}, {0.75**2}]


def test_weight_decay_ends_after_its_epochs():
    # 300 examples in batches of 64 make 5 steps an epoch.
    named = {"weight_decay_layers": ("dense_1",), "weight_decay_epochs": 2}
    assert decay_alone(9, **named) == [{0.75**9}, {1.0}]
    assert decay_alone(13, **named) == [{0.75**10}, {1.0}]


@pytest.mark.slow
def test_extra_callbacks_see_what_the_instruments_read(tmp_path):
    seen = []

    def add(epoch, logs):
        seen.append((epoch, "loss" in logs, "drift/dense_1" in logs))
        logs["extra"] = 10.0 * epoch

    extra = keras.callbacks.LambdaCallback(on_epoch_end=add)
    config = digits(epochs=4, log_every=2, checkpoint_every=2)
    summary = experiment.run(config, tmp_path, extra_callbacks=[extra])
    assert seen == [(0, True, True), (1, True, True)]
    log = run_folder.read_metrics(tmp_path)
    assert [line.get("extra") for line in log] == [None, 0.0, 10.0]
    assert "drift/dense_1" in summary["final"]


@pytest.mark.slow
def test_a_run_with_xla_may_follow_a_deterministic_one(tmp_path):
    experiment.run(digits(epochs=1), tmp_path / "deterministic")
    assert tf_config.is_op_determinism_enabled()
    compiled = digits(epochs=1, jit_compile="on")
    summary = experiment.run(compiled, tmp_path / "compiled")
    assert summary["status"] == "finished"
    assert not tf_config.is_op_determinism_enabled()


@pytest.mark.slow
def test_schedule_and_full_batch(tmp_path):
    config = digits(
        batch_size=None,
        epochs=8,
        log_every=2,
        checkpoint_every=4,
        schedule={"boundaries": (2, 6), "factors": (0.1, 0.01)},
    )
    experiment.run(config, tmp_path)
    rates = {
        e["epoch"]: e.get("learning_rate") for e in run_folder.read_metrics(tmp_path)
    }
    # Logged after the period: the rate of the step that comes next.
    expected = {0: None, 2: 0.002, 4: 0.002, 6: 0.0002, 8: 0.0002}
    assert rates.keys() == expected.keys()
    for epoch, rate in expected.items():
        assert rates[epoch] == (None if rate is None else pytest.approx(rate))


@pytest.mark.long
def test_mirrored_run_equals_the_single_device(tmp_path, mirrored, monkeypatch):
    monkeypatch.setattr(experiment.distribution, "get_strategy", lambda _: mirrored)
    everything = {"ledger": True, "gradient_alignment": True, "error_alignment": True}
    config = digits(batch_size=50, instruments=everything)
    experiment.run(config, tmp_path / "two", strategy="mirrored")
    monkeypatch.undo()
    experiment.run(config, tmp_path / "one")
    for two, one in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert two.keys() == one.keys()
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), key


@pytest.mark.long
def test_the_command_line(tmp_path):
    done = command(
        "--rules=fa,sign_fa", "--config.epochs=2", f"--workdir={tmp_path / 'run'}"
    )
    assert done.returncode == 0, done.stderr
    rows = [
        [cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()
    ]
    for rule in ("fa", "sign_fa"):
        summary = run_folder.read_summary(tmp_path / "run" / rule)
        final = summary["final"]
        [row] = [cells for cells in rows if rule in cells]
        assert str(summary["epochs"]) in row
        for value in (
            f"{final['loss']:.4g}",
            f"{final['val_loss']:.4g}",
            f"{100 * final['val_accuracy']:.2f}",
        ):
            assert value in row
    for name in ("potentials", "alignment", "accuracy"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").stat().st_size > 5000
    assert json.loads((tmp_path / "run/fa/config.json").read_text())["rule"] == "fa"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        helpers.standing(
            ["--config.rule=fe", "--workdir=x"], 'Did you mean "fa"', stands=False
        ),
        helpers.standing(
            ["--config.optimizer.learning_rat=1", "--workdir=x"],
            "learning_rate",
            stands=False,
        ),
        helpers.standing(
            ["--rules=fa,nonsense", "--workdir=x"], "nonsense", stands=False
        ),
        ([], "--workdir"),
    ],
)
def test_mistakes_on_the_command_line_get_a_message(tmp_path, arguments, message):
    arguments = [a.replace("=x", f"={tmp_path / 'x'}") for a in arguments]
    failed = command(*arguments)
    assert failed.returncode != 0
    assert message in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list(tmp_path.glob("x/**/config.json"))


@pytest.mark.slow
def test_a_network_of_keras_applications_and_rules_by_layer(tmp_path):
    """A converted network, one rule for its convolutions and one for its head."""
    config = digits(epochs=1)
    config.dataset = {
        "name": "own_images:images",
    }
    config.model = {"name": "applications.MobileNetV2", "alpha": 0.35}
    config.rule = {"*conv*": "sign_fa", "predictions": "backprop", "*": "fa"}
    dataset = SimpleNamespace(input_shape=(32, 32, 3), num_classes=3, steps_per_epoch=1)
    model = experiment.build(config, dataset)
    assert model.output_shape == (None, 3)
    labels = {rules.label_of(layer.rule) for layer in feedback_layers(model)}
    assert {"sign-FA", "BP"} <= labels


@pytest.mark.slow
def test_akrouts_biases_take_their_share_of_the_step():
    config = plans.read_config("akrout_mnist")
    config.batch_size, config.dataset.name = 60, "digits"
    moved = []
    for share in (1.0, 0.5):
        config.optimizer.bias_share = share
        dataset = experiment.load(config)
        model = experiment.build(config, dataset)
        start = model.get_weights()
        model.train_on_batch(*next(iter(dataset.train_from(0))))
        ends = zip(model.get_weights(), start, strict=True)
        moved.append([end - before for end, before in ends])
    for variable, whole, part in zip(model.weights, *moved, strict=True):
        scale = 0.5 if variable.name == "bias" else 1.0
        np.testing.assert_allclose(part, scale * whole, rtol=1e-2, atol=1e-7)
