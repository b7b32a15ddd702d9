"""Sets read batch by batch: equal to sets in memory, whoever reads them."""

import functools
import hashlib
import itertools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fa import config as configuration
from keras_fa import datasets, distribution
from keras_fa.datasets import augmentation
from keras_fa.lab import recording, run_folder
from keras_fa.lab import run as runs
from tests import image_sets

CHANGES = (
    {"name": "random_crop", "padding": 2},
    "flip",
    "color_jitter",
    {"name": "cutout", "length": 4},
    "rand_augment",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return image_sets.folder(tmp_path_factory.mktemp("data") / "set", train=7)


def load(path, **options):
    options = {"memory_bytes": 0, "batch_size": 4, "threads": 1, **options}
    return datasets.load(f"folder:{path}", **options)


def taken(batches, count):
    pairs = itertools.islice(batches, count)
    return [(x.numpy(), y.numpy()) for x, y in pairs]


def same(some, others):
    for (x, y), (other_x, other_y) in zip(some, others, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


@pytest.mark.slow
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_is_what_the_set_in_memory_gives(path, drop_last):
    options = {"drop_last": drop_last, "seed": 3, "standardize": "channel"}
    held, streamed = (load(path, memory_bytes=b, **options) for b in (10**9, 0))
    assert (held.is_streamed, streamed.is_streamed) == (False, True)
    steps = held.steps_per_epoch
    assert steps == streamed.steps_per_epoch == 3 + (not drop_last)
    same(taken(held.train_from(1), 9), taken(streamed.train_from(1), 9))
    same(taken(held.test, 9), taken(streamed.test, 9))
    same(taken(held.train, 9), taken(streamed.train, 9))
    same([held.first("train", 5)], [streamed.first("train", 5)])
    with pytest.raises(ValueError, match="there is no array of it"):
        streamed.arrays("train")
    # Any place of an epoch, in memory and streamed.
    for batch in (1, steps, steps + 2):
        later = taken(held.train_from(0), batch + 3)[batch:]
        same(later, taken(held.train_from(0, batch), 3))
        same(later, taken(streamed.train_from(0, batch), 3))


def digest(batches):
    """The examples of some batches as hashes, in order, with their labels."""
    return [
        (hashlib.sha256(image.tobytes()).hexdigest(), label.tolist())
        for x, y in batches
        for image, label in zip(x, y, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("memory_bytes", [0, 10**9])
def test_augmented_images_do_not_depend_on_threads_and_shards(path, memory_bytes):
    options = {"augment": (*CHANGES, "mixup"), "memory_bytes": memory_bytes}
    whole = taken(load(path, **options).train_from(0), 8)
    assert len({image for image, _ in digest(whole)}) == 28  # changed in each epoch
    assert whole[0][1].shape == (4, 2)
    np.testing.assert_allclose(whole[3][1].sum(-1), 1, rtol=1e-6)
    same(whole, taken(load(path, threads=3, **options).train_from(0), 8))
    for parts in (2, 4):
        shards = [
            taken(load(path, **options).train_from(0, 0, (part, parts)), 8)
            for part in range(parts)
        ]
        for batch, pieces in zip(whole, zip(*shards, strict=True), strict=True):
            assert digest([batch]) == [d for piece in pieces for d in digest([piece])]


class Cluster:
    """What `shared_out` sees of a strategy: so many workers with so many replicas."""

    def __init__(self, workers, replicas):
        self.workers, self.num_replicas_in_sync = workers, replicas

    def distribute_datasets_from_function(self, part):
        every = range(self.workers)
        context = tf.distribute.InputContext
        return [
            part(context(self.workers, k, self.num_replicas_in_sync)) for k in every
        ]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [(1, 2), (2, 2), (4, 4), (2, 4)], ids=str)
def test_all_workers_together_have_the_batches_of_one(path, cluster):
    workers, replicas = cluster
    each = replicas // workers
    for options in ({}, {"augment": (*CHANGES, "mixup")}):
        data = load(path, **options)
        for split, count in (("train", 8), ("test", 2)):
            whole = [
                digest([batch]) for batch in taken(data.shared_out(None, split), count)
            ]
            parts = data.shared_out(Cluster(*cluster), split)
            parts = [taken(part, count * each) for part in parts]
            # Steps of each replica, in the order of the replicas.
            of_replicas = [part[i::each] for part in parts for i in range(each)]
            sizes = [[len(x) for x, _ in steps] for steps in of_replicas]
            assert np.ptp(sizes, axis=0).max() <= 1 and len(of_replicas) == replicas
            for step, batch in enumerate(whole):
                pieces = [digest([steps[step]]) for steps in of_replicas]
                assert [example for piece in pieces for example in piece] == batch
            if split == "train":
                for epoch in (whole[:4], whole[4:]):
                    assert len({image for batch in epoch for image, _ in batch}) == 14


@pytest.mark.slow
def test_replicas_are_handed_what_a_set_in_memory_gives_them(path, mirrored):
    held, streamed = (load(path, memory_bytes=b) for b in (10**9, 0))
    for split, count in (("train", 5), ("test", 2)):
        some, others = (
            itertools.islice(
                mirrored.experimental_distribute_dataset(held.shared_out(None, split)),
                count,
            ),
            itertools.islice(streamed.shared_out(mirrored, split), count),
        )
        for one, other in zip(some, others, strict=True):
            for values in zip(one, other, strict=True):
                for mine, his in zip(
                    *map(mirrored.experimental_local_results, values), strict=True
                ):
                    np.testing.assert_array_equal(mine, his)


@pytest.mark.slow
@pytest.mark.long
def test_augmented_images_do_not_depend_on_processes(path):
    options = {"augment": (*CHANGES, "mixup")}
    whole = taken(load(path, **options).train_from(0, 1), 6)
    same(whole, taken(load(path, workers=2, **options).train_from(0, 1), 6))


def test_one_more_change_leaves_the_draws_of_the_others(path):
    few, more = (load(path, augment=a) for a in (("flip",), ("flip", "cutout")))
    x, y = (taken(d.train_from(0), 1)[0][0] for d in (few, more))
    changed = (x != y).any(-1).mean()
    assert 0 < changed < 0.6  # only the squares, at most 8 x 8 of 12 x 10
    other = taken(load(path, augment=("flip",), seed=1).train_from(0), 1)[0][0]
    assert not np.array_equal(x, other)


def test_each_change_does_what_its_name_says():
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)

    def made(*changes):
        change = augmentation.Augmentation(changes, 5, (12, 10), 50)
        return [change(lambda _: image, 0, index)[0] for index in range(50)]

    flipped = [np.array_equal(x, image[:, ::-1]) for x in made("flip")]
    kept = [np.array_equal(x, image) for x in made("flip")]
    assert 15 < sum(flipped) < 35 and sum(flipped) + sum(kept) == 50
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    parts = [padded[i : i + 12, j : j + 10] for i in range(5) for j in range(5)]
    for x in made({"name": "random_crop", "padding": 2}):
        assert any(np.array_equal(x, part) for part in parts)
    for x in made({"name": "cutout", "length": 4}):
        assert 4 <= (x != image).any(-1).sum() <= 16
        assert (x[(x != image).any(-1)] == 128).all()
    for x in made({"name": "random_resized_crop", "scale": (1.0, 1.0)}):
        assert x.shape == image.shape
    one = {
        "name": "color_jitter",
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
    }
    assert np.array_equal(made(one)[0], image)
    bright = made({**one, "brightness": 0.5})
    gains = [x.mean() / image.mean() for x in bright]
    assert min(gains) < 0.8 and max(gains) > 1.1
    assert all(x.shape == image.shape for x in made("rand_augment"))
    assert not all(np.array_equal(x, image) for x in made("rand_augment"))
    mixed = augmentation.Augmentation(("mixup",), 5, (12, 10), 50)
    x, other, weight = mixed(lambda i: np.full((12, 10, 1), i, np.uint8), 0, 7)
    np.testing.assert_allclose(x, weight * 7 + (1 - weight) * other, rtol=1e-6)


def test_crops_are_taken_of_whole_images(tmp_path):
    path = image_sets.folder(tmp_path / "set", vary=True)
    crop = {"name": "random_resized_crop", "scale": (0.5, 1.0)}
    few, many = (
        load(path, image_size=8, augment=(crop,), memory_bytes=b) for b in (0, 10**9)
    )
    assert many.is_streamed
    same(taken(few.train_from(2), 3), taken(many.train_from(2), 3))


def test_damaged_images_while_training(tmp_path, caplog):
    path = image_sets.folder(tmp_path / "set", train=7)
    (path / "train" / "ape" / "00002.png").write_bytes(image_sets.encoded(1)[:-90])
    (path / "val" / "bee" / "00002.png").write_bytes(b"torn")
    data = load(path)
    with pytest.raises(Exception, match=r"00002.png \(example 2\) cannot be read"):
        taken(data.train, 4)
    assert isinstance(data.loading.error, datasets.BadExample)
    data = load(path, on_bad_example="skip")
    first = taken(data.train_from(0), 4)
    assert sum(len(x) for x, _ in first) == 14
    images = [image for image, _ in digest(first)]
    assert len(set(images)) == 13  # the next one came twice
    assert data.loading.bad == {2} and caplog.text.count("Left out") == 1
    assert sum(len(y) for _, y in taken(data.test, 2)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ("flop",)}, "unknown change 'flop'. Did you mean.*flip"),
        ({"augment": ("mixup", "flip")}, "mixup must be the last"),
        ({"augment": ("flip", "random_resized_crop")}, "must be the first"),
        ({"augment": ({"name": "flip", "p": 1},)}, "no argument 'p'"),
        ({"augment": ({"name": "cutout", "length": -1},)}, "like its default 8"),
        ({"augment": ("flip",), "flatten": True}, "not flattened"),
        ({"threads": 0}, "threads must be an integer from 1"),
    ],
)
def test_what_no_stream_could_do_is_refused(path, options, message):
    with pytest.raises(ValueError, match=message):
        load(path, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory_bytes", "strategy", "then"),
    [
        (0, "default", "default"),
        (10**9, "default", "default"),
        (0, "mirrored", "mirrored"),
        (10**9, "default", "mirrored"),
    ],
)
def test_a_run_goes_on_in_the_middle_of_an_epoch(
    path, tmp_path, memory_bytes, strategy, then, mirrored, monkeypatch
):
    monkeypatch.setitem(distribution._made, "mirrored", mirrored)
    run = functools.partial(runs.run, strategy=strategy)
    config = configuration.default_config()
    config.dataset.name = f"folder:{path}"
    config.dataset.memory_bytes = memory_bytes
    config.dataset.augment = ("flip", {"name": "cutout", "length": 4})
    config.model.hidden_units = (8,)
    config.optimizer.momentum = 0.9
    config.batch_size, config.epochs = 3, 3
    config.checkpoint_every_seconds = 1e-9
    config.instruments.ledger = True  # Single steps.

    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations >= 13:
                raise Killed

    seen = []

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

        def on_train_begin(self, logs=None):
            seen.append("begin")

        def on_train_end(self, logs=None):
            seen.append("end")

    run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", extra_callbacks=[Kill()])
    kept = sorted(tmp_path.glob("killed/checkpoints/*.index"))
    assert [p.stem for p in kept] == ["epoch-2-batch-1", "epoch-2-batch-2"]
    run(config, tmp_path / "killed", strategy=then, extra_callbacks=[Seen()])
    assert seen == ["begin", 2, 3, 4, "end"]
    ends = []
    for name in ("whole", "killed"):
        model = runs.load_model(tmp_path / name)
        lines = run_folder.read_metrics(tmp_path / name)
        assert all(0 <= line.pop("data_wait") <= 1 for line in lines[1:])
        assert all(line.pop("seconds") >= 0 for line in lines)
        assert all(line["bad_examples"] == 0 for line in lines[1:])
        weights = [w.tobytes() for w in model.get_weights()]
        ends.append(
            (lines, weights, [np.asarray(v) for v in model.optimizer.variables])
        )
    if then != strategy:
        for one, other in zip(ends[0][0], ends[1][0], strict=True):
            assert other == pytest.approx(one, rel=1e-5, abs=1e-5)
        return
    assert ends[0][:2] == ends[1][:2]
    for one, other in zip(ends[0][2], ends[1][2], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_each_replica_goes_on_with_its_own_sums(mirrored):
    with mirrored.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse", metrics=["mae"])
    ones = np.ones((3, 2))
    distribution.prepare(model).fit(ones, ones, batch_size=3, verbose=0)
    before = recording._sums_of(model)
    assert len(before) == 2 and before[0] != before[1]
    recording._give_sums(model, [[0.0] * len(before[0])] * 2, True)
    recording._give_sums(model, before, True)
    assert recording._sums_of(model) == before
    recording._give_sums(model, [[0.5] * len(before[0])], True)
    totals = [variable.value.numpy() for variable in model.metrics_variables]
    assert totals == [0.5] * len(before[0])


@pytest.mark.slow
def test_a_run_with_mixup_a_cosine_and_a_second_accuracy(path, tmp_path):
    config = configuration.default_config()
    config.dataset.name, config.dataset.memory_bytes = f"folder:{path}", 0
    config.dataset.augment = ("flip", "mixup")
    config.model.hidden_units = (8,)
    config.loss = {"name": "cross_entropy", "label_smoothing": 0.1, "top_k": 2}
    config.optimizer.learning_rate = 0.4
    config.schedule.cosine, config.schedule.warmup = True, 1
    config.batch_size, config.epochs = 4, 3
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            rates.extend(
                float(self.model.optimizer._learning_rate(n)) for n in range(12)
            )

    runs.run(config, tmp_path / "run", extra_callbacks=[Rates()])
    fall = 0.2 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, *fall], atol=1e-7)
    lines = run_folder.read_metrics(tmp_path / "run")
    flows = [0.0, *np.cumsum(rates)[3::4]]
    assert [line["flow_time"] for line in lines] == pytest.approx(flows, rel=1e-6)
    # Of two classes both are among the best two.
    assert lines[-1]["top_2_accuracy"] == lines[-1]["val_top_2_accuracy"] == 1
    config.loss = "sparse_categorical_crossentropy"
    with pytest.raises(ValueError, match="vectors, which cross_entropy takes"):
        runs.run(config, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.long
def test_two_workers_train_on_a_stream_as_one_device(path, tmp_path):
    arguments = [
        *("--config=configs/digits.py", f"--config.dataset.name=folder:{path}"),
        *("--config.dataset.memory_bytes=0", "--config.batch_size=4", "--nofigures"),
        *("--config.dataset.augment=('random_crop', 'flip')", "--config.epochs=3"),
    ]
    train = [sys.executable, "trainers/train.py", *arguments]
    for command in (
        [*train, f"--workdir={tmp_path / 'one'}"],
        [
            *(sys.executable, "trainers/launch.py", "--workers=2", "--", *train),
            *("--strategy=multi_worker", f"--workdir={tmp_path / 'two'}"),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one, two = (run_folder.read_metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 4
    for single, both in zip(one, two, strict=True):
        assert single.keys() == both.keys()
        for key in single.keys() - {"seconds", "data_wait"}:
            assert both[key] == pytest.approx(single[key], rel=1e-5, abs=1e-5), key


@pytest.mark.slow
@pytest.mark.long
def test_the_config_of_imagenet_runs_on_its_layout_with_two_workers(tmp_path):
    path = image_sets.imagenet_like(tmp_path / "set", classes=4, train=4, test=2)
    done = subprocess.run(
        [
            *(sys.executable, "trainers/launch.py", "--workers=2", "--"),
            *(sys.executable, "trainers/train.py", "--nofigures"),
            *("--config=imagenet_resnet18", f"--workdir={tmp_path / 'run'}"),
            *("--strategy=multi_worker", f"--config.dataset.name=folder:{path}"),
            *("--config.epochs=2", "--config.schedule.warmup=1"),
            *("--config.batch_size=8", "--config.dataset.threads=1"),
            # Processes of Grain are tested by themselves, and bfloat16 takes a CPU
            # many times as long.
            *("--config.dataset.workers=0", "--config.dtype=float32"),
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, *lines = run_folder.read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert np.isfinite(line["loss"]) and line["bad_examples"] == 0
        assert line["top_5_accuracy"] == line["val_top_5_accuracy"] == 1
    assert lines[-1]["alignment/conv1"] != first["alignment/conv1"]


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_random_batches_and_resumed_a_run_ends_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs", str(tmp_path), "20"],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 20, done.stderr[-2000:]
    assert all(line.endswith("same") for line in lines), lines
    # Some after they had ended: the last batches are soon over.
    assert sum(": -9" in line for line in lines) >= 15, lines
