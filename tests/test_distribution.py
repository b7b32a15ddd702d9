"""Several replicas and several workers train as one device does."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fa
from keras_fa import distribution, losses, results, rules

ROOT = pathlib.Path(__file__).parents[1]
# 61 examples in batches of 16 leave a partial batch, which two replicas cannot halve.
EXAMPLES, BATCH, EPOCHS = 61, 16, 5

CLUSTER = {"worker": ["localhost:1111", "localhost:2222"]}
TASK = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (None, "is not set.*trainers/launch.py"),
        ("{", "is no JSON"),
        ("[]", 'needs "cluster" and "task"'),
        ({"cluster": CLUSTER}, 'needs "cluster" and "task"'),
        ({"cluster": {**CLUSTER, "ps": ["a:1"]}, "task": TASK}, "also names: ps"),
        ({"cluster": {"worker": []}, "task": TASK}, "must be a list"),
        ({"cluster": {"worker": "a:1"}, "task": TASK}, "must be a list"),
        ({"cluster": {"worker": ["localhost"]}, "task": TASK}, '"host:port"'),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": TASK}, "twice"),
        ({"cluster": {**CLUSTER, "chief": ["a:1", "b:1"]}, "task": TASK}, "2 chiefs"),
        ({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}, "'chief'"),
        ({"cluster": CLUSTER, "task": {"type": "worker"}}, "must be a number"),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}, "there are 2"),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": -1}}, "there are 2"),
    ],
)
def test_a_wrong_tf_config_says_what_is_wrong(monkeypatch, config, match):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(distribution.ClusterError, match=match):
        distribution.get_strategy("multi_worker")


@pytest.mark.parametrize(
    ("job", "index", "expected"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)]
)
def test_the_chief_comes_first(monkeypatch, job, index, expected):
    cluster = {"chief": ["localhost:3333"], **CLUSTER}
    config = {"cluster": cluster, "task": {"type": job, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    workers, own = distribution.read_cluster()
    assert workers == ["localhost:3333", "localhost:1111", "localhost:2222"]
    assert own == expected


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="Known: default, mirrored, multi_worker"):
        distribution.get_strategy("miror")


def data(kind):
    random = np.random.default_rng(0)
    shape = (8,) if kind == "mlp" else (18, 18, 3)
    x = random.normal(size=(EXAMPLES, *shape)).astype("float32")
    y = random.integers(0, 3, EXAMPLES)
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return batches.with_options(options)


def network(kind, rule, loss=None):
    keras.utils.set_random_seed(0)
    if kind == "mlp":
        model = keras_fa.models.mlp((8,), (16,), 3, rule=rule)
    else:
        model = keras_fa.models.lenet((18, 18, 3), 3, rule=rule)
    model.compile(
        keras_fa.optimizers.TorchSGD(0.05, 0.9),
        loss or losses.get("cross_entropy")[0],
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def train(model, batches):
    """Weights after 20 steps, the last logs, and predictions."""
    history = model.fit(
        batches, validation_data=batches, epochs=EPOCHS, shuffle=False, verbose=0
    ).history
    logs = {key: values[-1] for key, values in history.items()}
    evaluated = model.evaluate(batches, verbose=0, return_dict=True)
    logs |= {f"evaluate_{key}": value for key, value in evaluated.items()}
    weights = np.concatenate([w.ravel() for w in model.get_weights()])
    return weights, logs, model.predict(batches, verbose=0)


def assert_same(ours, reference):
    for mine, other in zip(ours[::2], reference[::2], strict=True):
        # Measured: 2e-7.
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)
    assert ours[1].keys() == reference[1].keys()
    for key, value in reference[1].items():
        assert ours[1][key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("rule", rules.NAMES)
def test_two_replicas_and_a_partial_batch_equal_one_device(mirrored, rule):
    batches = data("mlp")
    reference = train(network("mlp", rule), batches)
    with mirrored.scope():
        model = network("mlp", rule)
    assert distribution.prepare(model) is model
    assert distribution.prepare(model) is model
    assert_same(train(model, batches), reference)


def test_keras_alone_weighs_the_partial_batch_wrong(mirrored):
    # When this fails, Keras has learned it, and prepare() must not do it again.
    batches = data("mlp")
    reference = train(network("mlp", "fa"), batches)
    with mirrored.scope():
        model = network("mlp", "fa")
    assert np.abs(train(model, batches)[0] - reference[0]).max() > 1e-4


def test_summed_losses_stay_as_they_are(mirrored):
    x = np.random.default_rng(0).normal(size=(13, 8)).astype("float32")
    y = np.random.default_rng(1).normal(size=(13, 3)).astype("float32")
    weights = []
    for scope in (contextlib.nullcontext(), mirrored.scope()):
        with scope:
            model = network("mlp", "fa", losses.HalfSquaredError())
            model.optimizer.learning_rate = 1e-3
        distribution.prepare(model)
        model.fit(x, y, batch_size=5, epochs=3, shuffle=False, verbose=0)
        weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(*weights, rtol=0, atol=1e-6)


def test_one_replica_is_left_alone_and_an_uncompiled_model_refused():
    model = network("mlp", "fa")
    before = model.train_step
    assert distribution.prepare(model).train_step == before
    with pytest.raises(ValueError, match="compile"):
        distribution.prepare(keras_fa.models.mlp((8,), (16,), 3))


_WORKER = """
import json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras_fa
from keras_fa import distribution, rules
strategy = distribution.get_strategy("multi_worker")
import numpy as np
import test_distribution as shared

index = distribution.read_cluster()[1]
with strategy.scope():
    model = shared.network("mlp", "fa")
try:
    shared.train(model, shared.data("mlp"))
except Exception as error:
    unprepared = type(error).__name__
else:
    unprepared = None
found = {{"unprepared": unprepared}}
for kind in ("mlp", "lenet"):
    for rule in rules.NAMES:
        with strategy.scope():
            model = shared.network(kind, rule)
        weights, logs, predicted = shared.train(
            distribution.prepare(model), shared.data(kind)
        )
        np.savez({folder!r} + f"/{{kind}}-{{rule}}-{{index}}", weights, predicted)
        found[f"{{kind}}-{{rule}}"] = logs
with open({folder!r} + f"/{{index}}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """Two processes that train every network under every rule, and what they leave."""
    folder = tmp_path_factory.mktemp("workers")
    tests = str(pathlib.Path(__file__).parent)
    script = _WORKER.format(root=str(ROOT), tests=tests, folder=str(folder))
    (folder / "worker.py").write_text(script)
    done = subprocess.run(
        [
            *(sys.executable, "trainers/launch.py", "--workers=2", "--"),
            *(sys.executable, str(folder / "worker.py")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


@pytest.mark.parametrize("rule", rules.NAMES)
@pytest.mark.parametrize("kind", ["mlp", "lenet"])
def test_two_workers_equal_each_other_and_one_device(two_workers, kind, rule):
    found = []
    for index in (0, 1):
        arrays = np.load(two_workers / f"{kind}-{rule}-{index}.npz")
        logs = json.loads((two_workers / f"{index}.json").read_text())
        found.append((arrays["arr_0"], logs[f"{kind}-{rule}"], arrays["arr_1"]))
    first, second = found
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[2].shape == (EXAMPLES, 3)
    assert_same(first, train(network(kind, rule), data(kind)))


def test_keras_still_needs_the_mending(two_workers):
    for index in (0, 1):
        found = json.loads((two_workers / f"{index}.json").read_text())
        assert found["unprepared"] is not None, (
            "Keras trains under MultiWorkerMirroredStrategy by itself now: take "
            "_build_from_one_replica and _reduce_per_replica out of prepare()."
        )


def _workers_of(launcher):
    """The process ids of the workers of a launcher, in the order of their start."""
    path = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_a_killed_worker_ends_the_others_and_all_resume(tmp_path):
    arguments = [
        *("--config=configs/digits.py", "--config.epochs=40", "--nofigures"),
        *("--config.batch_size=100", "--config.dataset.train_size=330"),
    ]
    train_py = [sys.executable, "trainers/train.py", *arguments]
    command = [
        *(sys.executable, "trainers/launch.py", "--workers=2", "--"),
        *(*train_py, "--strategy=multi_worker", f"--workdir={tmp_path / 'two'}"),
    ]
    with open(tmp_path / "log", "w+") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 200
            while len(results.read_metrics(tmp_path / "two")) < 4:
                assert launcher.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(_workers_of(launcher)[1], signal.SIGKILL)
            killed = time.monotonic()
            assert launcher.wait(timeout=60) != 0
        finally:
            launcher.kill()
        log.seek(0)
        text = log.read()
    # Measured: 9 seconds.
    assert time.monotonic() - killed < 60
    assert "Another worker stopped" in text
    assert results.read_summary(tmp_path / "two") is None

    again = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=200)
    assert again.returncode == 0, again.stdout[-3000:]
    one = [*train_py, f"--workdir={tmp_path / 'one'}"]
    subprocess.run(one, cwd=ROOT, capture_output=True, timeout=200, check=True)
    assert results.read_summary(tmp_path / "two")["status"] == "finished"
    pairs = zip(
        results.read_metrics(tmp_path / "two"),
        results.read_metrics(tmp_path / "one"),
        strict=True,
    )
    for two, single in pairs:
        assert two.keys() == single.keys()
        for key in single.keys() - {"seconds"}:
            assert two[key] == pytest.approx(single[key], rel=1e-5, abs=1e-5), key


def test_the_command_line_explains_tf_config(tmp_path):
    failed = subprocess.run(
        [
            *(sys.executable, "trainers/train.py", "--config=configs/digits.py"),
            *("--strategy=multi_worker", f"--workdir={tmp_path / 'x'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert failed.returncode == 1
    assert "TF_CONFIG, which is not set" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "x").exists()
