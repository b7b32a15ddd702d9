"""Data sets: what is read, what the options do to it, and the order it comes in."""

import io
import itertools
import json
import runpy
import sys
import zipfile
from pathlib import Path
from urllib.error import HTTPError

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fa import datasets
from keras_fa.datasets import sources, synthetic, transforms


def _prepared(name):
    return sources._find_prepared(name, sources._data_dirs(None)) is not None


def needs(name):
    return pytest.mark.skipif(
        not _prepared(name), reason=f"TFDS has no prepared {name} (see TFDS_DATA_DIR)"
    )


def labels(batches, count):
    """The labels of the next batches, an array for each."""
    return [y.numpy() for _, y in itertools.islice(batches, count)]


# --- sources -------------------------------------------------------------------------


def test_digits_have_a_fixed_stratified_split():
    data, other = (datasets.load("digits", seed=seed) for seed in (0, 5))
    assert (data.num_train, data.num_test) == (1437, 360)
    assert (data.input_shape, data.target_shape) == ((8, 8, 1), ())
    assert (data.num_classes, data.class_names[3]) == (10, "3")
    for split in ("train", "test"):
        for a, b in zip(data.arrays(split), other.arrays(split), strict=True):
            np.testing.assert_array_equal(a, b)
    (x, y), (x_test, y_test) = data.arrays("train"), data.arrays("test")
    everything = np.concatenate([x, x_test])
    assert (everything.min(), everything.max()) == (0.0, 1.0)
    counts = np.bincount(y_test), np.bincount(np.concatenate([y, y_test])) / 5
    assert np.abs(counts[0] - counts[1]).max() <= 1
    # Together they are scikit-learn's images, each once.
    from sklearn.datasets import load_digits

    original = load_digits().images.reshape(-1, 64)
    restored = everything.reshape(-1, 64) * 16
    assert sorted(map(tuple, restored)) == sorted(map(tuple, original))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "num_classes"),
    [
        pytest.param("mnist", (28, 28, 1), 10, marks=needs("mnist")),
        pytest.param(
            "cifar100", (32, 32, 3), 100, marks=[needs("cifar100"), pytest.mark.long]
        ),
    ],
)
def test_tfds_sets(name, shape, num_classes):
    data = datasets.load(name, num_classes=num_classes // 10 + 1, train_size=300)
    assert data.input_shape == shape
    assert data.num_train == 300
    x, y = next(iter(data.test))
    assert x.dtype == tf.float32
    assert (float(tf.reduce_min(x)), float(tf.reduce_max(x))) == (0.0, 1.0)
    assert set(y.numpy()) <= set(range(data.num_classes))
    raw = sources.read_tfds(name)
    assert raw.x_train.dtype == np.uint8
    assert len(raw.class_names) == num_classes
    assert raw is sources.read_tfds(name)
    assert not raw.x_train.flags.writeable
    assert data.num_test == np.isin(raw.y_test, data.classes).sum()


@pytest.mark.parametrize("library", ["tensorflow_datasets", "sklearn"])
def test_data_libraries_are_imported_when_needed(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)  # importing it now fails
    for name in ("__init__", "pipelines", "sources", "synthetic", "transforms"):
        runpy.run_path(str(Path(datasets.__file__).with_name(f"{name}.py")))
    assert datasets.load("linear_teacher").num_train == 50


@pytest.fixture
def no_network(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append((request.full_url, timeout))
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


def test_without_network_says_what_to_do(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(datasets.DatasetNotFound) as error:
        datasets.load("fashion_mnist")
    for hint in ("TFDS_DATA_DIR", "empty", "home", "'digits'", "fashion-mnist.s3"):
        assert hint in str(error.value)
    ((_, timeout),) = no_network
    assert timeout <= 10
    assert not list(tmp_path.rglob("*.tmp.*"))


def test_a_failing_server_is_not_asked_ten_times(tmp_path, monkeypatch):
    def fail(request, timeout):
        raise HTTPError(request.full_url, 503, "Unavailable", None, None)

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(datasets.DatasetNotFound, match=r"toronto\.edu answers 503"):
        datasets.load("cifar10", data_dir=tmp_path)


def test_fetched_archive_needs_no_network(tmp_path, no_network):
    # An archive in the download cache or the manual folder is left to TFDS, which then
    # finds that this one is not the real thing.
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "cifar-10-binary.tar.gz").write_bytes(b"not it")
    with pytest.raises(datasets.DatasetNotFound, match="wrong checksum"):
        datasets.load("cifar10", data_dir=tmp_path / "data", manual_dir=manual)
    assert not no_network


def test_an_archive_in_the_download_cache_is_found_by_its_checksum(
    tmp_path, no_network
):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    url, name = "https://host/set.tar.gz", "set.tar.gz"
    info = tfds.download.checksums.UrlInfo(size=1, checksum="0" * 64, filename=name)
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / resource.get_dl_fname(url, info.checksum)).touch()
    asked = {name: url}, {url: info}, tmp_path, tmp_path
    assert sources._unreachable(*asked) is None and not no_network
    (folder / resource.get_dl_fname(url, info.checksum)).unlink()
    assert "host cannot be reached" in sources._unreachable(*asked)


# --- Tiny-ImageNet -------------------------------------------------------------------

_WNIDS = ("n03", "n01", "n02")


def _tiny_archive(folder, wnids=_WNIDS):
    """An archive in the official layout: 4 + 2 images a class, one of them grey."""
    folder.mkdir(parents=True, exist_ok=True)
    root = "tiny-imagenet-200/"
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:

        def image(path, value, grey=False):
            pixels = np.full((64, 64, 1 if grey else 3), value, np.uint8)
            archive.writestr(root + path, tf.io.encode_jpeg(pixels).numpy())

        archive.writestr(root, "")
        archive.writestr(root + "wnids.txt", "\n".join(wnids) + "\n")
        # More words than classes, as in the official archive, and one of them twice.
        words = "n01\tcrane\nn02\tcrane\nn03\tgoldfish, Carassius auratus\nn99\tnone\n"
        archive.writestr(root + "words.txt", words)
        annotations = io.StringIO()
        for c, wnid in enumerate(wnids):
            archive.writestr(root + f"train/{wnid}/{wnid}_boxes.txt", "x\t0\t0\t1\t1\n")
            for i in range(4):
                path = f"train/{wnid}/images/{wnid}_{i}.JPEG"
                image(path, 40 * c + i, grey=i == 0)
            for i in range(2):
                name = f"val_{2 * c + i}.JPEG"
                image(f"val/images/{name}", 40 * c + 10 + i)
                annotations.write(f"{name}\t{wnid}\t0\t0\t1\t1\n")
        archive.writestr(root + "val/val_annotations.txt", annotations.getvalue())
        image("test/images/test_0.JPEG", 200)
    return folder


def test_tiny_imagenet_from_an_archive(tmp_path, capfd):
    manual = _tiny_archive(tmp_path / "manual")
    data_dir = tmp_path / "data"
    data = datasets.load("tiny_imagenet", data_dir=data_dir, manual_dir=manual)
    assert (data.num_classes, data.num_train, data.num_test) == (3, 12, 6)
    assert data.input_shape == (64, 64, 3)
    # In the order of wnids.txt, not of the alphabet.
    assert data.class_names == ("goldfish, Carassius auratus", "crane", "crane")
    for split, offsets in (("train", {0, 1, 2, 3}), ("test", {10, 11})):
        x, y = data.arrays(split)
        brightness = np.round(255 * x).astype(int)
        assert (brightness == brightness[:, :1, :1, :1]).all()
        found = {
            (c, b - 40 * c) for c, b in zip(y, brightness[:, 0, 0, 0], strict=True)
        }
        assert found == {(c, offset) for c in range(3) for offset in offsets}
    assert capfd.readouterr().out == ""
    # Prepared: the archive is needed no more.
    (manual / "tiny-imagenet-200.zip").unlink()
    again = datasets.load("tiny_imagenet", data_dir=data_dir, classes=[0, 2])
    assert again.class_names == ("goldfish, Carassius auratus", "crane")
    # A damaged record, a file that lost its end, a description that is none.
    prepared = data_dir / "tiny_imagenet" / "1.0.0"
    record = next(prepared.glob("*train.tfrecord*"))
    whole = record.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for file, content in (
        (record, bytes(flipped)),
        (record, whole[:-100]),
        (prepared / "features.json", b"{"),
    ):
        kept = file.read_bytes()
        file.write_bytes(content)
        sources._read_prepared.cache_clear()
        with pytest.raises(datasets.DatasetNotFound, match="Delete that fold") as found:
            datasets.load("tiny_imagenet", data_dir=data_dir)
        assert str(prepared) in str(found.value)
        file.write_bytes(kept)


def test_tiny_imagenet_is_prepared_where_it_can_be_written(tmp_path, monkeypatch):
    shared, home = tmp_path / "shared", tmp_path / "home"
    _tiny_archive(shared / "downloads" / "manual")
    home.mkdir()
    shared.chmod(0o555)
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared))
    monkeypatch.setenv("HOME", str(home))
    try:
        assert datasets.load("tiny_imagenet").num_classes == 3
        assert (home / "tensorflow_datasets" / "tiny_imagenet").is_dir()
        assert [path.name for path in shared.iterdir()] == ["downloads"]
        with pytest.raises(datasets.DatasetNotFound, match="no write access"):
            datasets.load("cifar10", data_dir=shared)
    finally:
        shared.chmod(0o755)


def test_tiny_imagenet_refuses_the_wrong_archive(tmp_path, no_network):
    three = _tiny_archive(tmp_path / "three")
    two = _tiny_archive(tmp_path / "two", _WNIDS[:2])
    data_dir = tmp_path / "data"
    datasets.load("tiny_imagenet", data_dir=data_dir, manual_dir=three)
    with pytest.raises(ValueError, match="another archive"):
        datasets.load("tiny_imagenet", data_dir=data_dir, manual_dir=two)
    other = tmp_path / "other"
    with pytest.raises(datasets.DatasetNotFound, match=r"no tiny-imagenet-200\.zip in"):
        datasets.load("tiny_imagenet", data_dir=other, manual_dir=tmp_path)
    with zipfile.ZipFile(two / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(datasets.DatasetNotFound, match=r"no wnids\.txt"):
        datasets.load("tiny_imagenet", data_dir=other, manual_dir=two)
    # What is no picture is found out before the set counts as prepared.
    with zipfile.ZipFile(_tiny_archive(two) / "tiny-imagenet-200.zip", "a") as archive:
        archive.writestr("tiny-imagenet-200/train/n01/images/n01_9.JPEG", b"GIF89a")
    with pytest.raises(datasets.DatasetNotFound, match=r"n01_9\.JPEG in .* is no JPEG"):
        datasets.load("tiny_imagenet", data_dir=other, manual_dir=two)
    assert not list((other / "tiny_imagenet").glob("1*"))


def test_tiny_imagenet_found_prepared_by_another_process(tmp_path, monkeypatch):
    from keras_fa.datasets.tiny_imagenet import TinyImagenet

    manual, data_dir = _tiny_archive(tmp_path / "manual"), tmp_path / "data"
    prepare = TinyImagenet.download_and_prepare

    def beaten(self, **kwargs):
        prepare(self, **kwargs)
        raise OSError("Directory not empty")

    monkeypatch.setattr(TinyImagenet, "download_and_prepare", beaten)
    data = datasets.load("tiny_imagenet", data_dir=data_dir, manual_dir=manual)
    assert data.num_classes == 3


def _excerpt():
    """TFDS's own manual folder, if there is an archive in it."""
    wanted = {"tiny-imagenet-200.zip": ""}
    return sources._find_manual(wanted, sources._data_dirs(None), None)


@pytest.mark.skipif(_excerpt() is None, reason="TFDS's manual folder has no archive")
@pytest.mark.long
def test_tiny_imagenet_at_hand(tmp_path):
    with zipfile.ZipFile(_excerpt() / "tiny-imagenet-200.zip") as archive:
        wnids = archive.read("tiny-imagenet-200/wnids.txt").decode().split()
    data = datasets.load("tiny_imagenet", data_dir=tmp_path, batch_size=512)
    assert data.num_classes == len(wnids)
    assert (data.num_train, data.num_test) == (500 * len(wnids), 50 * len(wnids))
    for split, size in (("train", 500), ("test", 50)):
        assert set(np.bincount(data._splits[split][1])) == {size}
    prepared = tmp_path / "tiny_imagenet" / "1.0.0"
    assert (prepared / "label.labels.txt").read_text().split() == wnids
    words = json.loads((prepared / "metadata.json").read_text())["words"]
    assert data.class_names == tuple(words)
    x, _ = next(iter(data.train))
    assert x.shape == (512, 64, 64, 3)


# --- options -------------------------------------------------------------------------


def test_class_subsets():
    data = datasets.load("digits", num_classes=4, seed=1)
    assert data.num_classes == 4
    assert list(data.classes) == sorted(set(data.classes))
    assert data.class_names == tuple(str(c) for c in data.classes)
    everything = datasets.load("digits")
    for split in ("train", "test"):
        x, y = everything.arrays(split)
        kept = np.isin(y, data.classes)
        np.testing.assert_array_equal(data.arrays(split)[0], x[kept])
        renumbered = np.searchsorted(data.classes, y[kept])
        np.testing.assert_array_equal(data.arrays(split)[1], renumbered)

    fresh = datasets.load("digits", num_classes=5, exclude_classes=data.classes)
    assert not set(fresh.classes) & set(data.classes)
    explicit = datasets.load("digits", classes=np.array([7, 2]))
    assert (explicit.classes, explicit.class_names) == ((2, 7), ("2", "7"))


def test_class_seed_alone_decides_the_classes():
    def classes(**kwargs):
        return datasets.load("digits", num_classes=3, **kwargs).classes

    assert classes(seed=4) == classes(class_seed=4) == classes(class_seed=4, seed=8)
    assert len({classes(seed=seed) for seed in range(5)}) > 1


def test_train_size_is_a_nested_random_subset():
    def train(**kwargs):
        return datasets.load("digits", flatten=True, **kwargs).arrays("train")

    x, y = train(train_size=300)
    assert (x.shape, y.shape) == ((300, 64), (300,))
    every = {tuple(row) for row in train()[0]}
    small, large, other = (
        {tuple(row) for row in train(**kwargs)[0]}
        for kwargs in (
            {"train_size": 100},
            {"train_size": 300},
            {"train_size": 300, "seed": 1},
        )
    )
    assert len(small) == 100
    assert small < large < every
    assert other != large
    # Not the head of the set: a shuffled one has these classes all over.
    assert len(set(y[:50])) == 10


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_label_noise_over_the_other_classes(rate):
    data = datasets.load("digits", label_noise=rate, seed=3)
    y = data.arrays("train")[1]
    wrong = y != data.clean_labels
    np.testing.assert_array_equal(wrong, data.noisy)
    assert wrong.sum() == round(rate * 1437)
    np.testing.assert_array_equal(
        data.clean_labels, datasets.load("digits")._splits["train"][1]
    )
    np.testing.assert_array_equal(
        data.arrays("test")[1], datasets.load("digits").arrays("test")[1]
    )
    # The pipeline has the same labels, not the clean ones.
    counts = np.bincount(np.concatenate(labels(data.train, 99)), minlength=10)
    np.testing.assert_array_equal(counts, np.bincount(y, minlength=10))


def test_label_noise_is_uniform():
    def drawn(over):
        data = datasets.load(
            "synthetic_classification",
            n=20_000,
            d_in=2,
            label_noise=0.5,
            noise_over=over,
        )
        assert data.noisy.sum() == 10_000
        y, clean = data.arrays("train")[1], data.clean_labels
        np.testing.assert_array_equal(y[~data.noisy], clean[~data.noisy])
        shift = (y - clean)[data.noisy] % 4
        return np.bincount(shift, minlength=4) / 10_000

    # Standard error of each share: 0.005.
    np.testing.assert_allclose(drawn("other"), [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)
    np.testing.assert_allclose(drawn("all"), [0.25] * 4, atol=0.02)


@pytest.mark.parametrize(
    ("scale", "flatten"), [(True, False), (False, False), (True, True)]
)
@pytest.mark.parametrize("standardize", ["none", "scalar", "channel", "feature"])
def test_standardisation_is_that_of_numpy(standardize, scale, flatten, monkeypatch):
    rng = np.random.default_rng(0)
    shape = (4, 5, 3)
    x = rng.integers(0, 256, (200, *shape)).astype(np.uint8)
    x[:, 0, 0], x[:, 0, 1] = 77, 0  # constant features
    x[..., 2] //= 4
    y = np.arange(200) % 4
    raw = sources.RawData(x, y, x[:50], y[:50], tuple("abcd"), divisor=255.0)
    monkeypatch.setattr(sources, "read_digits", lambda: raw)
    data = datasets.load(
        "digits",
        standardize=standardize,
        scale=scale,
        flatten=flatten,
        train_size=120,
        dtype="float64",
        batch_size=50,
    )
    kept = data._splits["train"][0].reshape(120, *shape)
    unit = 255.0 if scale else 1.0
    expected = x[:50] / unit
    if standardize != "none":
        axes = {"scalar": None, "channel": (0, 1, 2), "feature": 0}[standardize]
        mean, std = (kept / unit).mean(axes), (kept / unit).std(axes)
        std = np.where(std < 1e-12, 1.0, std)
        expected = (expected - mean) / std
        assert (std == 1.0).sum() == (6 if standardize == "feature" else 0)
    expected = expected.reshape(50, -1) if flatten else expected
    assert data.input_shape == ((60,) if flatten else shape)
    np.testing.assert_allclose(data.arrays("test")[0], expected, rtol=0, atol=1e-12)
    ((x_test, _),) = data.test
    np.testing.assert_array_equal(x_test, data.arrays("test")[0])
    # The documented meaning of `mean` and `std`.
    restored = data.arrays("test")[0] * data.std + data.mean
    np.testing.assert_allclose(
        restored.reshape(x[:50].shape), x[:50] / unit, atol=1e-12
    )


def test_streams_are_different():
    draws = {
        tuple(transforms.stream(seed, purpose).generate_state(2))
        for seed in (0, 1)
        for purpose in transforms._STREAMS
    }
    assert len(draws) == 2 * len(transforms._STREAMS)


@pytest.mark.slow
def test_each_option_has_a_random_stream_of_its_own():
    def load(**kwargs):
        return datasets.load("digits", train_size=500, seed=2, **kwargs)

    plain, noisy = load(), load(label_noise=0.3)
    np.testing.assert_array_equal(plain.arrays("train")[0], noisy.arrays("train")[0])
    half = load(label_noise=0.15)
    assert not (half.noisy & ~noisy.noisy).any()
    np.testing.assert_array_equal(
        half.arrays("train")[1][half.noisy], noisy.arrays("train")[1][half.noisy]
    )
    alone = datasets.load("digits", seed=2)
    assert [len(b) for b in labels(alone.train, 3)] == [128] * 3

    def positions(data, epoch):
        index = {tuple(x): i for i, x in enumerate(data.arrays("train")[0])}
        batches = itertools.islice(data.train_from(epoch), data.steps_per_epoch)
        return [index[tuple(row)] for x, _ in batches for row in x.numpy()]

    orders = [
        positions(datasets.load("digits", train_size=500, flatten=True, **kwargs), 1)
        for kwargs in ({}, {"label_noise": 0.3}, {"standardize": "scalar"})
    ]
    assert orders[0] == orders[1] == orders[2]

    def classes(**kwargs):
        return datasets.load("digits", num_classes=3, seed=2, **kwargs).classes

    assert classes() == classes(train_size=40, label_noise=0.5)


# --- order ---------------------------------------------------------------------------


@pytest.fixture
def numbered():
    """A set of 103 examples, each of which is its own number."""

    def load(**kwargs):
        x = np.arange(103, dtype=np.float64)[:, np.newaxis]
        raw = sources.RawData(x, x.copy(), x[:30], x[:30].copy())
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(synthetic.PROBLEMS, "linear_teacher", lambda seed: raw)
            return datasets.load("linear_teacher", **kwargs)

    return load


def _numbers(batches):
    return [x.numpy()[:, 0].astype(int).tolist() for x, _ in batches]


def _flat(lists):
    return list(itertools.chain.from_iterable(lists))


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_a_permutation(numbered, drop_last):
    data = numbered(batch_size=20, drop_last=drop_last)
    steps = 5 if drop_last else 6
    assert data.steps_per_epoch == steps == int(data.train.cardinality())
    stream = iter(data.train_from())
    epochs = [_numbers(itertools.islice(stream, steps)) for _ in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [20] * 5 + [3] * (not drop_last)
        seen = sorted(_flat(epoch))
        assert len(seen) == len(set(seen)) == (100 if drop_last else 103)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])
    for x, y in data.train:
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_stream_resumes_where_it_would_be(numbered):
    data = numbered(batch_size=20)
    uninterrupted = _numbers(itertools.islice(data.train_from(), 5 * 6))
    tf.random.set_seed(99)  # the global seed has no say
    for epoch in (0, 2, 4):
        resumed = _numbers(
            itertools.islice(numbered(batch_size=20).train_from(epoch), (5 - epoch) * 6)
        )
        assert resumed == uninterrupted[epoch * 6 :]
    other = _numbers(itertools.islice(numbered(batch_size=20, seed=1).train_from(), 6))
    assert other != uninterrupted[:6]


def test_passes_over_train_are_the_epochs_of_the_stream(numbered):
    data = numbered(batch_size=20)
    passes = [_numbers(data.train) for _ in range(3)]
    assert _flat(passes) == _numbers(itertools.islice(data.train_from(), 3 * 6))


def test_the_test_set_keeps_its_order(numbered):
    data = numbered(batch_size=20)
    for _ in range(2):
        assert _flat(_numbers(data.test)) == list(range(30))
    assert int(data.test.cardinality()) == 2
    assert _numbers(numbered(batch_size=40).test) == [list(range(30))]


@pytest.mark.parametrize("batch_size", [None, "full", 103])
def test_a_full_batch_is_made_once(numbered, batch_size):
    data = numbered(batch_size=batch_size)
    assert (data.batch_size, data.steps_per_epoch) == (103, 1)
    batches = [x for x, _ in data.train_from(7).take(3)]
    for x in batches:
        np.testing.assert_array_equal(x, data.arrays("train")[0])
    # One buffer, not a copy a step.
    views = [np.asarray(x) for x in batches]
    assert np.shares_memory(views[0], views[1])
    assert [_numbers(data.train) for _ in range(2)] == [[list(range(103))]] * 2
    assert data.train.element_spec[0].shape == (103, 1)


@pytest.mark.parametrize("ready", [True, False])
def test_batches_are_the_arrays(monkeypatch, ready):
    if not ready:
        monkeypatch.setattr(datasets.pipelines, "_READY_BYTES", 0)
    data = datasets.load("digits", standardize="feature", label_noise=0.2)
    x, y = data.arrays("train")
    index = {row.tobytes(): i for i, row in enumerate(x)}
    for batch, target in data.train:
        rows = [index[row.tobytes()] for row in batch.numpy()]  # equal to the bit
        np.testing.assert_array_equal(target, y[rows])
    x, y = x.copy(), y.copy()
    for mine in data.arrays("train"):
        mine[:] = 0  # no concern of the data set's
    np.testing.assert_array_equal(data.arrays("train")[0], x)
    np.testing.assert_array_equal(data.arrays("train")[1], y)


def test_whole_batches_have_a_static_shape(numbered):
    data = numbered(train_size=100, batch_size=20)
    assert data.train.element_spec[0].shape == (20, 1)
    assert numbered(batch_size=20).train.element_spec[0].shape == (None, 1)


@pytest.mark.parametrize("batch_size", [20, None])
def test_workers_share_out_the_batches(numbered, batch_size):
    data = numbered(batch_size=batch_size)
    for pipeline in (data.train, data.train_from(), data.test):
        policy = pipeline.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.DATA


def _model(data):
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.build((None, *data.input_shape))
    return model


@pytest.mark.slow
def test_fit_resumes_bit_for_bit():
    data = datasets.load("digits", train_size=200, batch_size=64)

    def fit(model, start, stop):
        model.fit(
            data.train_from(start),
            steps_per_epoch=data.steps_per_epoch,
            initial_epoch=start,
            epochs=stop,
            verbose=0,
            shuffle=False,
        )
        return model.get_weights()

    initial = _model(data).get_weights()
    straight, broken, passes = (_model(data) for _ in range(3))
    for model in (straight, broken, passes):
        model.set_weights(initial)
    fit(broken, 0, 2)
    resumed = fit(broken, 2, 4)
    passes.fit(
        data.train, epochs=4, verbose=0, shuffle=False, validation_data=data.test
    )
    for a, b, c in zip(fit(straight, 0, 4), resumed, passes.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.slow
@pytest.mark.skipif(
    len(tf.config.list_logical_devices("CPU")) < 2, reason="one logical CPU device"
)
@pytest.mark.parametrize(
    ("n", "batch_size"),
    # The first as large as CIFAR: it is captured by the pipelines' graphs.
    [(50_001, 500), (1001, 100), (1001, None)],
)
def test_distribution_loses_and_repeats_nothing(mirrored, monkeypatch, n, batch_size):
    x = np.zeros((n, 32, 32, 3), np.uint8)
    x[:, 0, 0] = np.stack([np.arange(n) >> 8 * i & 255 for i in range(3)], 1)
    y = np.arange(n) % 10
    raw = sources.RawData(x, y, x[:701], y[:701], tuple("0123456789"), 255.0)
    monkeypatch.setattr(sources, "read_digits", lambda: raw)
    data = datasets.load("digits", batch_size=batch_size, scale=False, seed=1)

    def seen(pipeline, steps):
        distributed = mirrored.experimental_distribute_dataset(pipeline)
        numbers = []
        for x, _ in itertools.islice(distributed, steps):
            parts = [p.numpy() for p in mirrored.experimental_local_results(x)]
            assert abs(len(parts[0]) - len(parts[1])) <= 1
            numbers += [part[:, 0, 0] @ [1, 1 << 8, 1 << 16] for part in parts]
        return np.sort(np.concatenate(numbers))

    pipelines = [data.train_from(3)]
    if n < 50_000:
        pipelines.append(data.train)
        steps = int(data.test.cardinality())
        np.testing.assert_array_equal(seen(data.test, steps), np.arange(701))
    for pipeline in pipelines:
        numbers = seen(pipeline, data.steps_per_epoch)
        np.testing.assert_array_equal(numbers, np.arange(n))


@pytest.mark.slow
@pytest.mark.skipif(
    len(tf.config.list_logical_devices("CPU")) < 2, reason="one logical CPU device"
)
def test_fit_on_two_devices_is_fit_on_one(mirrored):
    data = datasets.load("digits", train_size=200, batch_size=64)
    alone = _model(data)
    with mirrored.scope():
        shared = _model(data)
    shared.set_weights(alone.get_weights())
    for model in (alone, shared):
        model.fit(
            data.train_from(),
            steps_per_epoch=data.steps_per_epoch,
            epochs=2,
            verbose=0,
            shuffle=False,
            validation_data=data.test,
        )
    for a, b in zip(alone.get_weights(), shared.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# --- synthetic problems --------------------------------------------------------------


@pytest.mark.parametrize("name", synthetic.PROBLEMS)
def test_synthetic_sets_have_the_sizes_asked_for(name):
    data = datasets.load(name, n=12, n_test=8, d_in=30, batch_size=None)
    assert (data.num_train, data.num_test, data.input_shape) == (12, 8, (30,))
    x, y = data.arrays("train")
    if data.num_classes is None:
        assert y.dtype == np.float32
        assert y.shape == (12, *data.target_shape)
        assert data.class_names is data.classes is data.noisy is None
    else:
        assert y.dtype == np.int64
    repeated, other = (
        datasets.load(name, n=12, n_test=8, d_in=30, batch_size=None, seed=seed)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(x, repeated.arrays("train")[0])
    assert not np.array_equal(x, other.arrays("train")[0])
    assert not set(map(tuple, x)) & set(map(tuple, data.arrays("test")[0]))


@pytest.mark.parametrize(
    "name", [n for n in synthetic.PROBLEMS if n != "nearly_orthogonal"]
)
def test_the_size_of_one_set_leaves_the_other_alone(name):
    base, more = (
        datasets.load(name, n=16, n_test=n_test, batch_size=None) for n_test in (8, 9)
    )
    for a, b in zip(base.arrays("train"), more.arrays("train"), strict=True):
        np.testing.assert_array_equal(a, b)


# Shapes of x, y and the test x, and the sums of |x| and |y|, at seed 0: results have
# only the names of these sets.
_AS_THEY_ARE = {
    "synthetic_classification": ((1000, 20), (1000,), (500, 20), 19256, 1500),
    "synthetic_regression": ((1000, 20), (1000, 1), (500, 20), 16006.8, 628.85),
    "linear_teacher": ((50, 100), (50, 10), (200, 100), 3924.95, 396.499),
    "network_teacher": ((50, 150), (50, 1), (200, 150), 5975.74, 317.455),
    "separable": ((100, 20), (100, 1), (100, 20), 635.681, 100),
    "nearly_orthogonal": ((20, 100), (20, 1), (20, 100), 463.381, 20),
}


@pytest.mark.parametrize("name", synthetic.PROBLEMS)
def test_synthetic_sets_stay_what_they_are(name):
    data = datasets.load(name, batch_size=None, dtype="float64")
    (x, y), (x_test, _) = data.arrays("train"), data.arrays("test")
    *shapes, of_x, of_y = _AS_THEY_ARE[name]
    assert [x.shape, y.shape, x_test.shape] == shapes
    assert np.abs(x).sum() == pytest.approx(of_x, rel=1e-5)
    assert np.abs(y).sum() == pytest.approx(of_y, rel=1e-5)


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (np.array([0, 2, 1, 2]), ("0", "1", "2")),
        (np.array([[0], [2], [1], [2]]), None),
        (np.array([0.0, 2.0, 1.0, 2.0]), None),
    ],
)
def test_whole_numbers_along_one_axis_are_class_ids(targets, classes):
    x = np.arange(8.0).reshape(4, 2)
    raw = sources.RawData.from_arrays(((x, targets), (x[:2], targets[:2])))
    assert raw.class_names == classes
    shape = (4,) if classes else (4, 1)
    assert raw.y_train.shape == shape
    assert raw.y_train.dtype == ("int64" if classes else "float64")


def test_targets_of_several_numbers_are_real_ones():
    x, y = np.zeros((4, 2)), np.arange(24).reshape(4, 6)
    raw = sources.RawData.from_arrays(((x, y), (x[:2], y[:2])))
    np.testing.assert_array_equal(raw.y_train, y)
    assert raw.y_train.dtype == "float64"
    assert raw.y_test.shape == (2, 6)


def test_linear_teacher_is_a_noiseless_linear_map():
    data = datasets.load(
        "linear_teacher",
        n=60,
        n_test=500,
        d_in=40,
        d_out=3,
        dtype="float64",
        batch_size=None,
    )
    (x, y), (x_test, y_test) = data.arrays("train"), data.arrays("test")
    np.testing.assert_allclose(x_test @ (np.linalg.pinv(x) @ y), y_test, atol=1e-10)
    assert np.abs(np.cov(x_test.T) - np.eye(40)).max() < 0.3
    default = datasets.load("linear_teacher", batch_size=None)
    assert default.num_train < default.input_shape[0]  # over-parameterised
    assert default.input_shape == (100,) and default.target_shape == (10,)


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
def test_network_teacher_is_that_of_the_paper(activation):
    seed = np.random.SeedSequence(3)
    raw = synthetic.network_teacher(seed, width=70, activation=activation)
    assert raw.x_train.shape == (50, 150)
    rng = np.random.default_rng(np.random.SeedSequence(3).spawn(1)[0])
    hidden, beta = rng.standard_normal((70, 150)), rng.standard_normal(70)
    psi = {"linear": lambda z: z, "relu": lambda z: z * (z > 0), "tanh": np.tanh}
    for x, y in ((raw.x_train, raw.y_train), (raw.x_test, raw.y_test)):
        expected = [beta @ psi[activation](hidden @ row) / 70**0.5 for row in x]
        np.testing.assert_allclose(y[:, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("d_in", [2, 20])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_separable_meets_definition_5_5(dtype, d_in):
    data = datasets.load(
        "separable", gamma=0.5, spread=2.0, d_in=d_in, dtype=dtype, batch_size=None
    )
    x, y = (
        np.concatenate(parts)
        for parts in zip(data.arrays("train"), data.arrays("test"), strict=True)
    )
    z = (x * y).astype(np.float64)
    assert (z @ z.T).min() >= 0.5
    assert (z @ z.T).min() < (0.501 if d_in == 2 else 1.5)  # not by brute length
    assert set(y[:, 0]) == {-1.0, 1.0}
    assert y[:100].sum() == y[100:].sum() == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nearly_orthogonal_meets_definition_5_6(dtype):
    data = datasets.load(
        "nearly_orthogonal", gamma=0.3, epsilon=0.2, dtype=dtype, batch_size=None
    )
    x = np.concatenate([data.arrays(split)[0] for split in ("train", "test")])
    gram = x.astype(np.float64) @ x.T
    norms, products = np.diag(gram).copy(), gram - np.diag(np.diag(gram))
    gamma = np.abs(products).max()
    np.testing.assert_allclose(gamma, 0.3, rtol=1e-5)
    # Not by brute length either, and with products of both signs.
    assert len(x) * (gamma + 0.2) <= norms.min() <= norms.max() < 1.02 * len(x) * 0.5
    pairs = products[np.triu_indices(len(x), 1)]
    assert abs(pairs.mean()) < 0.02 and pairs.min() < -0.29
    assert data.arrays("train")[1].sum() == 0


def test_synthetic_classification_can_be_learned():
    data = datasets.load("synthetic_classification", d_out=3, separation=6.0)
    x, y = data.arrays("train")
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    x_test, y_test = data.arrays("test")
    nearest = ((x_test[:, None] - means) ** 2).sum(-1).argmin(-1)
    assert (nearest == y_test).mean() > 0.99
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 6.0, atol=0.8)


def test_synthetic_regression_has_noise_on_the_training_targets_only():
    def load(noise):
        return datasets.load("synthetic_regression", n=5000, d_out=2, noise=noise)

    clean, noisy = load(0.0), load(0.3)
    difference = noisy.arrays("train")[1] - clean.arrays("train")[1]
    assert abs(difference.std() - 0.3) < 0.01
    np.testing.assert_array_equal(clean.arrays("test")[1], noisy.arrays("test")[1])


def test_teachers_have_targets_of_the_documented_size():
    sizes = {"n": 20_000, "d_in": 300}
    linear = datasets.load("linear_teacher", **sizes).arrays("train")[1]
    # Sums of 300 products of variance 1/300. Measured: 1.04.
    assert abs(linear.var() - 1) < 0.1
    smooth = datasets.load("synthetic_regression", noise=0.0, **sizes)
    # Of 300 sines, of variance 1/2 each. Measured: 0.55.
    assert abs(smooth.arrays("train")[1].var() - 0.5) < 0.1


def test_as_many_inputs_as_examples_can_be_nearly_orthogonal():
    data = datasets.load("nearly_orthogonal", n=20, n_test=20, d_in=40)
    assert data.arrays("train")[0].shape == (20, 40)


# --- errors --------------------------------------------------------------------------


_ERRORS = [
    ("mnits", {}, ValueError, 'Did you mean "mnist"'),
    (None, {}, ValueError, "Known: digits"),
    ("digits", {"trainsize": 9}, TypeError, 'Did you mean "train_size"'),
    ("digits", {"d_in": 9}, TypeError, "sizes are \\(none\\)"),
    ("separable", {"gama": 1.0}, TypeError, 'Did you mean "gamma"'),
    ("separable", {"d_out": 1}, TypeError, "no option 'd_out'"),
    ("separable", {"seed_": 1}, TypeError, "no option 'seed_'"),
    ("separable", {"n": 0}, ValueError, "n must be a positive integer. Received: 0"),
    ("separable", {"gamma": 0.0}, ValueError, "gamma must be positive"),
    ("separable", {"d_in": 1}, ValueError, "d_in of at least 2"),
    ("separable", {"standardize": "scalar"}, ValueError, "inner products"),
    ("nearly_orthogonal", {"d_in": 39}, ValueError, "at least n \\+ n_test = 40"),
    ("network_teacher", {"activation": "gelu"}, ValueError, "one of .*'relu'"),
    ("linear_teacher", {"label_noise": 0.1}, ValueError, "real-valued"),
    ("linear_teacher", {"num_classes": 2}, ValueError, "real-valued"),
    ("digits", {"num_classes": 11}, ValueError, "num_classes=11 .* 10 of the 10"),
    ("digits", {"num_classes": 1}, ValueError, "needs 2 classes"),
    ("digits", {"num_classes": 0}, ValueError, "num_classes=0"),
    (
        "digits",
        {"num_classes": 4, "exclude_classes": range(7)},
        ValueError,
        "3 of the 10",
    ),
    ("digits", {"classes": [1, 10]}, ValueError, "0 to 9. Received: \\[1, 10\\]"),
    ("digits", {"classes": [1, 1]}, ValueError, "different class ids"),
    ("digits", {"exclude_classes": [-1]}, ValueError, "exclude_classes"),
    ("digits", {"classes": [1, 2], "num_classes": 2}, ValueError, "itself"),
    ("digits", {"label_noise": 1.2}, ValueError, "from 0 to 1. Received: 1.2"),
    ("digits", {"label_noise": float("nan")}, ValueError, "from 0 to 1"),
    ("digits", {"noise_over": "some"}, ValueError, "noise_over"),
    ("digits", {"standardize": "pixel"}, ValueError, "standardize must be one of"),
    ("digits", {"train_size": 1438}, ValueError, "1,437"),
    ("digits", {"train_size": 0}, ValueError, "train_size=0"),
    ("digits", {"batch_size": 1438}, ValueError, "1,438 is more than the 1,437"),
    ("digits", {"batch_size": 0}, ValueError, "positive integer"),
    ("digits", {"batch_size": "half"}, ValueError, "Received: 'half'"),
    ("digits", {"dtype": "float16"}, ValueError, "float32"),
    ("digits", {"seed": -1}, ValueError, "seed must be"),
    ("digits", {"class_seed": 0.5}, ValueError, "class_seed must be"),
]


def test_errors_say_what_was_expected():
    for name, options, error, message in _ERRORS:
        with pytest.raises(error, match=message):
            datasets.load(name, **options)


def test_errors_of_a_loaded_set():
    data = datasets.load("linear_teacher", batch_size=None)
    with pytest.raises(ValueError, match=r"'train' or 'test'\. Received: 'validation'"):
        data.arrays("validation")
    with pytest.raises(ValueError, match=r"counts from 0\. Received: -1"):
        data.train_from(-1)


def test_names():
    assert len(set(datasets.NAMES)) == len(datasets.NAMES) == 12
