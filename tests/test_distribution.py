"""Several replicas and several workers train as one device does."""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fa
from keras_fa import _cluster, distribution, losses
from keras_fa.lab import run_folder

ROOT = pathlib.Path(__file__).parents[1]
# 61 examples in batches of 16 leave a partial batch, which two replicas cannot halve.
EXAMPLES, BATCH, EPOCHS = 61, 16, 5
# 49 leave one, of which the second replica gets nothing; of 64 each gets as many.
SIZES = {"norm": 49, "even": 64}

CLUSTER = {"worker": ["localhost:1111", "localhost:2222"]}
TASK = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (None, "is not set.*keras-fa launch"),
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


def test_a_port_in_use_is_an_error_before_anything_begins(monkeypatch):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = {"worker": [f"localhost:{port}", "localhost:1"]}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": TASK}))
        match = f"Worker 0 of 2 cannot listen on port {port}.*in use.*sport = :{port}"
        with pytest.raises(distribution.ClusterError, match=match):
            distribution.get_strategy("multi_worker")


def test_who_is_waited_for_is_said_at_once_and_again(monkeypatch, caplog):
    with contextlib.ExitStack() as stack:

        def listening(port=0):
            return stack.enter_context(socket.create_server(("localhost", port)))

        ports = [listening().getsockname()[1] for _ in range(2)]
        stack.pop_all().close()
        there = listening().getsockname()[1]
        workers = [f"localhost:{port}" for port in (*ports, there)]

        class Clock:
            now = 0.0

            def monotonic(self):
                return self.now

            def sleep(self, seconds):
                before, self.now = self.now, self.now + seconds
                if before < 15 <= self.now:
                    listening(ports[1])

        monkeypatch.setattr(_cluster, "time", Clock())
        _cluster.meet(workers, 0)
    who = f"for worker 1 (localhost:{ports[1]}: Connection refused). Start the same"
    for seconds, message in zip((1, 11), caplog.messages, strict=True):
        assert f"Worker 0 of 3 has waited {seconds} s {who} command there" in message
        assert str(there) not in message


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="Known: default, mirrored, multi_worker"):
        distribution.get_strategy("miror")


def data(kind):
    random = np.random.default_rng(0)
    size = SIZES.get(kind, EXAMPLES)
    x = random.normal(size=(size, 8)).astype("float32")
    y = random.integers(0, 3, size)
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return batches.with_options(options)


# Every rule of a layer in one network, which is compiled once, and the direct rules.
# Nothing is fed back through a first layer: backpropagation has it. The signal of drtp
# is scaled by the examples of a replica, which a partial batch that is shared out
# unevenly makes another number on each.
DEEP = {f"dense_{i}": rule for i, rule in enumerate(helpers.RULES, start=1)}
NETWORKS = [("deep", None), ("mlp", "dkp"), ("mlp", "dfa"), ("even", "drtp")]


def network(kind, rule, loss=None):
    keras.utils.set_random_seed(0)
    if kind in ("mlp", "even"):
        model = keras_fa.models.mlp((8,), (16,), 3, rule=rule)
    elif kind == "deep":
        model = keras_fa.models.mlp((8,), (8,) * len(DEEP), 3, rule={**DEEP, "*": "fa"})
    else:
        together = kind == "synchronized norm"
        model = keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.BatchNormalization(name="first", synchronized=together),
                keras_fa.layers.FeedbackDense(16, "relu", rule=rule),
                keras.layers.BatchNormalization(name="second", synchronized=together),
                keras_fa.layers.FeedbackDense(3, rule=rule),
            ]
        )
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


@functools.cache
def trained_alone(kind, rule):
    """What one device makes of it."""
    return train(network(kind, rule), data(kind))


def assert_same(ours, reference):
    for mine, other in zip(ours[::2], reference[::2], strict=True):
        # Measured: 2e-7.
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)
    assert ours[1].keys() == reference[1].keys()
    for key, value in reference[1].items():
        assert ours[1][key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rule"),
    [helpers.standing(*found, stands=found == NETWORKS[0]) for found in NETWORKS],
)
def test_two_replicas_and_a_partial_batch_equal_one_device(mirrored, kind, rule):
    with mirrored.scope():
        model = network(kind, rule)
    assert distribution.prepare(model) is model
    assert distribution.prepare(model) is model
    assert_same(train(model, data(kind)), trained_alone(kind, rule))


@pytest.fixture(scope="module")
def norms(mirrored):
    """A network with norms and its training on two replicas, one without examples."""
    with mirrored.scope():
        model = network("norm", "fa")
    return model, train(distribution.prepare(model), data("norm"))


@pytest.mark.slow
def test_batch_norm_and_a_replica_without_examples(mirrored, norms):
    model, (weights, logs, _) = norms
    assert np.isfinite(weights).all()
    assert logs["val_loss"] == logs["evaluate_loss"]
    for name in ("first", "second"):
        layer = model.get_layer(name)
        for variable in (layer.moving_mean, layer.moving_variance):
            both = mirrored.experimental_local_results(variable.value)
            np.testing.assert_array_equal(*both)
    # The first one sees the data themselves: its mean is that of whole batches.
    alone = network("norm", "fa")
    alone.fit(data("norm"), epochs=EPOCHS, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        model.get_layer("first").moving_mean,
        alone.get_layer("first").moving_mean,
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.slow
def test_synchronized_batch_norm_equals_one_device(mirrored):
    with mirrored.scope():
        model = network("synchronized norm", "fa")
    trained = train(distribution.prepare(model), data("norm"))
    assert_same(trained, trained_alone("norm", "fa"))


@pytest.mark.slow
def test_a_frozen_batch_norm_keeps_its_statistics(mirrored):
    with mirrored.scope():
        model = network("norm", "fa")
    layer = model.get_layer("first")
    layer.moving_mean.assign(np.linspace(0.1, 0.7, 8))
    layer.trainable = False
    before = np.asarray(layer.moving_mean)
    distribution.prepare(model).fit(data("norm"), shuffle=False, verbose=0)
    np.testing.assert_array_equal(layer.moving_mean, before)


@pytest.mark.long
def test_keras_alone_weighs_the_partial_batch_wrong(mirrored):
    # When this fails, Keras has learned it, and prepare() must not do it again.
    batches = data("mlp")
    alone = network("mlp", "fa")
    with mirrored.scope():
        model = network("mlp", "fa")
    for each in (alone, model):
        each.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0)
    ours, reference = model.get_weights(), alone.get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(ours, reference, strict=True)) > 1e-4


@pytest.mark.slow
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


def _several_losses():
    """Three outputs, one masked, with losses of every reduction."""
    keras.utils.set_random_seed(0)
    words = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(5, 3, mask_zero=True)(words)
    dense = keras.layers.Dense(1, name="masked")
    masked = dense(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras_fa.layers.FeedbackDense(6, "tanh", kernel_regularizer="l2")(x)
    outputs = {
        "summed": keras.layers.Dense(2, name="summed")(x),
        "weighted": keras.layers.Dense(2, name="weighted")(x),
        "masked": masked,
        "masked_weighted": masked,
    }
    model = keras.Model(words, outputs)
    of = keras.losses.MeanSquaredError
    model.compile(
        keras.optimizers.SGD(0.1),
        {
            "summed": losses.HalfSquaredError(),
            "weighted": of("mean_with_sample_weight"),
            "masked": "mse",
            "masked_weighted": of("mean_with_sample_weight"),
        },
        loss_weights={
            "summed": 0.1,
            "weighted": 2.0,
            "masked": 0.5,
            "masked_weighted": 0.3,
        },
        jit_compile=False,
    )
    return model


@pytest.mark.slow
def test_each_loss_adds_up_by_its_own_reduction(mirrored):
    # Batches of 5 give one replica 3 examples; the last, of 1, leaves one without.
    random = np.random.default_rng(0)
    x = random.integers(0, 5, (11, 4)).astype("int32")
    x[:, 0] = 1
    y = {name: random.normal(size=(11, 2)) for name in ("summed", "weighted")}
    y |= {n: random.normal(size=(11, 4, 1)) for n in ("masked", "masked_weighted")}
    # Those of sequences have one for each step, as the mask has.
    weights = {name: random.uniform(0, 3, part.shape[:-1]) for name, part in y.items()}
    found = []
    for scope in (contextlib.nullcontext(), mirrored.scope()):
        with scope:
            model = _several_losses()
        distribution.prepare(model)
        arguments = {"sample_weight": weights, "batch_size": 5, "verbose": 0}
        logs = model.fit(x, y, epochs=2, shuffle=False, **arguments).history
        logs |= model.evaluate(x, y, return_dict=True, **arguments)
        found.append((model.get_weights(), logs))
    (reference, logs), (ours, our_logs) = found
    for mine, other in zip(ours, reference, strict=True):
        # Measured: 6e-8.
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)
    assert logs.keys() == our_logs.keys()
    for key, value in logs.items():
        assert our_logs[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.slow
def test_a_summed_loss_is_logged_as_that_of_the_batch(mirrored):
    x = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    y = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")
    with mirrored.scope():
        model = network("mlp", "fa", losses.HalfSquaredError())
    expected = 0.5 * np.sum((model(x).numpy() - y) ** 2)
    distribution.prepare(model)
    (logged,) = model.fit(x, y, batch_size=5, verbose=0).history["loss"]
    assert logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("what", ["train_step", "compute_loss", "activity", "added"])
def test_losses_of_unknown_sums_are_refused(mirrored, what):
    class Added(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x**2))
            return x

    with mirrored.scope():
        base = keras.Model
        if what in ("train_step", "compute_loss"):
            base = type("Own", (base,), {what: lambda *args, **kwargs: 0.0})
        inputs = keras.Input((3,))
        activity = "l2" if what == "activity" else None
        outputs = keras.layers.Dense(1, activity_regularizer=activity)(inputs)
        model = base(inputs, Added()(outputs) if what == "added" else outputs)
        model.compile("sgd", "mse")
    x = np.ones((4, 3), "float32")
    with pytest.raises(ValueError, match=f"{what}|add_loss"):
        distribution.prepare(model).fit(x, x[:, :1], verbose=0)


def test_a_loss_of_one_number_is_refused_on_several_replicas(mirrored):
    with mirrored.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", lambda y, p: keras.ops.mean((y - p) ** 2))
    x = np.ones((4, 3), "float32")
    with pytest.raises(ValueError, match="returns one number"):
        distribution.prepare(model).fit(x, x[:, :1], verbose=0)


def test_one_replica_is_left_alone_and_an_uncompiled_model_refused():
    model = network("mlp", "fa")
    before = model.train_step
    assert distribution.prepare(model).train_step == before
    with pytest.raises(ValueError, match="compile"):
        distribution.prepare(keras_fa.models.mlp((8,), (16,), 3))


# The first two stand for the others.
OF_TWO_WORKERS = [("norm", "fa"), *NETWORKS]

_WORKER = """
import json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras_fa
from keras_fa import distribution
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
distribution.check_agreement(strategy, {{"seed": 1, "name": "a longer ä"}})
try:
    facts = {{"seed": 1, "config": {{"rule": "fa" * (1 + index)}}, str(index): None}}
    distribution.check_agreement(strategy, facts)
except RuntimeError as error:
    found["disagreement"] = str(error)
distribution.check_shared(strategy, {folder!r})
distribution._SHOWN = 0
try:
    distribution.check_shared(strategy, {folder!r} + "/apart" * index)
except RuntimeError as error:
    found["apart"] = str(error)
for number, (kind, rule) in enumerate(shared.OF_TWO_WORKERS[:{count}]):
    with strategy.scope():
        model = shared.network(kind, rule)
    weights, logs, predicted = shared.train(
        distribution.prepare(model), shared.data(kind)
    )
    np.savez({folder!r} + f"/{{number}}-{{index}}", weights, predicted)
    found[number] = logs
with open({folder!r} + f"/{{index}}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, pytestconfig):
    """What each of two workers has after training: weights, logs and predictions."""
    folder = tmp_path_factory.mktemp("workers")
    count = len(OF_TWO_WORKERS) if pytestconfig.getoption("long") else 2
    tests = str(pathlib.Path(__file__).parent)
    script = _WORKER.format(
        root=str(ROOT), tests=tests, folder=str(folder), count=count
    )
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
    found = []
    for index in (0, 1):
        logs = json.loads((folder / f"{index}.json").read_text())
        arrays = [np.load(folder / f"{number}-{index}.npz") for number in range(count)]
        trained = [
            (arrays["arr_0"], logs[str(number)], arrays["arr_1"])
            for number, arrays in enumerate(arrays)
        ]
        messages = logs["apart"], logs["disagreement"]
        found.append((trained, logs["unprepared"], *messages))
    return found


@pytest.mark.slow
def test_workers_that_differ_are_refused_on_all_of_them(two_workers):
    for *_, message in two_workers:
        assert 'config.rule: "fa" on worker 0, "fafa" on worker 1' in message
        assert "0: null on worker 0, nothing on worker 1" in message
        assert "seed" not in message
        assert "the same command" in message


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_on_all_workers(two_workers):
    for *_, apart, _ in two_workers:
        assert "do not share the run folder" in apart
        assert "not so worker 1" in apart


@pytest.mark.parametrize("shared", [True, False])
def test_workers_see_what_the_chief_writes(monkeypatch, tmp_path, shared):
    # Two workers as threads: what they tell each other meets at a barrier.
    worker, barrier, told = threading.local(), threading.Barrier(2), {}

    def of_all(strategy, text):
        told[worker.index] = text
        barrier.wait(10)
        texts = [told[0], told[1]]
        barrier.wait(10)
        return texts

    monkeypatch.setattr(distribution._keras, "is_multi_worker", lambda strategy: True)
    monkeypatch.setattr(distribution, "read_cluster", lambda: (CLUSTER, worker.index))
    monkeypatch.setattr(distribution, "_of_all_replicas", of_all)
    monkeypatch.setattr(distribution, "_SHOWN", 0)
    folders = [tmp_path / "a", tmp_path / ("a" if shared else "b")]
    folders[0].mkdir()

    def check(index):
        worker.index = index
        try:
            distribution.check_shared(None, folders[index])
        except RuntimeError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        errors = list(pool.map(check, range(2)))
    if shared:
        assert errors == [None, None]
    else:
        assert errors[0] == errors[1]
        assert f"worker 0 writes in {socket.gethostname()}:{folders[0]};" in errors[0]
        assert f"worker 1 ({socket.gethostname()}:{folders[1]})" in errors[0]
        assert "the same --workdir" in errors[0]
    # Nothing of it stays.
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_texts_of_all_replicas(mirrored):
    text = "one line, ä"
    assert distribution._of_all_replicas(mirrored, text) == [text] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [helpers.standing(n, stands=n < 2) for n in range(1, len(OF_TWO_WORKERS))]
)
def test_two_workers_equal_each_other_and_one_device(two_workers, number):
    kind, rule = OF_TWO_WORKERS[number]
    first, second = (trained[number] for trained, *_ in two_workers)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[2].shape == (SIZES.get(kind, EXAMPLES), 3)
    assert_same(first, trained_alone(kind, rule))


@pytest.mark.slow
def test_batch_norm_of_two_workers_equals_two_replicas(two_workers, norms):
    for trained, *_ in two_workers:
        assert_same(trained[0], norms[1])


@pytest.mark.slow
def test_keras_still_needs_the_mending(two_workers):
    for _, unprepared, *_ in two_workers:
        assert unprepared is not None, (
            "Keras trains under MultiWorkerMirroredStrategy by itself now: take "
            "_build_from_one_replica and _reduce_per_replica out of prepare()."
        )


def _workers_of(launcher):
    """The process ids of the workers of a launcher, in the order of their start."""
    path = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_worker_ends_the_others_and_all_resume(tmp_path):
    arguments = [
        *("--config=configs/digits.py", "--config.epochs=12", "--nofigures"),
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
            while len(run_folder.read_metrics(tmp_path / "two")) < 4:
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
    assert run_folder.read_summary(tmp_path / "two") is None

    again = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=200)
    assert again.returncode == 0, again.stdout[-3000:]
    one = [*train_py, f"--workdir={tmp_path / 'one'}"]
    subprocess.run(one, cwd=ROOT, capture_output=True, timeout=200, check=True)
    assert run_folder.read_summary(tmp_path / "two")["status"] == "finished"
    pairs = zip(
        run_folder.read_metrics(tmp_path / "two"),
        run_folder.read_metrics(tmp_path / "one"),
        strict=True,
    )
    for two, single in pairs:
        assert two.keys() == single.keys()
        for key in single.keys() - {"seconds"}:
            assert two[key] == pytest.approx(single[key], rel=1e-5, abs=1e-5), key


@pytest.mark.slow
@pytest.mark.long
def test_a_run_in_a_folder_of_each_worker_is_refused_before_any_work(tmp_path):
    command = (
        f"{sys.executable} trainers/train.py --config=configs/digits.py --nofigures "
        f"--strategy=multi_worker --workdir={tmp_path}/$$"
    )
    done = subprocess.run(
        [
            *(sys.executable, "trainers/launch.py", "--workers=2", "--"),
            *("sh", "-c", command + " & wait $!"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    for index in (0, 1):
        assert (
            f"[{index}] error: The workers do not share the run folder" in done.stdout
        )
    assert "Traceback" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.long
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


def launch(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "trainers/launch.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--index=1"], {}), ([], {"SLURM_PROCID": "1"})],
)
def test_the_worker_of_one_of_several_machines(arguments, environment):
    command = ["--hosts=node1:2000,node2", *arguments, "--", "printenv", "TF_CONFIG"]
    started = launch(*command, **environment)
    assert json.loads(started.stdout) == {
        "cluster": {"worker": ["node1:2000", "node2:12345"]},
        "task": {"type": "worker", "index": 1},
    }


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--hosts=a,b", "--index=2", "--", "true"], "Worker 2 of 2 --hosts"),
        (["--hosts=a,b", "--", "true"], "Give --index with --hosts"),
        (["--index=1", "--", "true"], "give both"),
        ([], "Say what to start"),
        (["--workers=1", "--", "no_such"], "There is no command 'no_such' to start"),
    ],
)
def test_the_launcher_says_what_it_needs(arguments, match):
    failed = launch(*arguments)
    assert failed.returncode == 1
    assert match in failed.stdout + failed.stderr


def test_a_failed_worker_is_the_launchers_exit_code():
    command = 'case "$TF_CONFIG" in *\'"index": 1\'*) exit 3;; esac'
    assert launch("--workers=2", "--", "sh", "-c", command).returncode == 3
    assert launch("--workers=2", "--", "true").returncode == 0
