"""Class folders and any TFDS set of images: what is read, and what is refused."""

import shutil

import numpy as np
import pytest

from keras_fa import datasets
from keras_fa.datasets import images, records
from tests import image_sets


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    return image_sets.tfds_set(tmp_path_factory.mktemp("tfds"))


def test_class_folders_are_read_as_they_lie(tmp_path):
    path = image_sets.folder(tmp_path / "set")
    (path / "train" / "ape" / "notes.txt").write_text("no image")
    data = datasets.load(f"folder:{path}")
    assert (data.num_train, data.num_test, data.class_names) == (12, 6, ("ape", "bee"))
    x, y = data.arrays("train")
    assert y.tolist() == [0] * 6 + [1] * 6
    from PIL import Image

    with Image.open(path / "train" / "bee" / "00002.png") as image:
        np.testing.assert_allclose(x[8] * 255, np.asarray(image), atol=1e-4)
    grey = datasets.load(f"folder:{path}", channels=1, image_size=6)
    assert grey.input_shape == (6, 6, 1)
    subset = datasets.load(f"folder:{path}", train_size=5, seed=3)
    assert subset.num_train == 5


def test_the_middle_of_images_of_any_size_is_taken():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None], (100, 50, 3))
    fitted = images.fit_to(np.ascontiguousarray(ramp), (28, 28))
    # 50 pixels wide become 32, of which 28 are taken: 1.5625 pixels each, 100 / 2 amid.
    expected = 49.5 + (np.arange(28) - 13.5) * 50 / 32
    np.testing.assert_allclose(fitted[:, 5, 0], expected, atol=1)
    same = np.zeros((28, 28, 3), np.uint8)
    assert images.fit_to(same, (28, 28)) is same


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: shutil.rmtree(p / "val" / "bee"), "bee only in .*train"),
        (lambda p: shutil.rmtree(p / "val"), "must hold train/CLASS"),
        (lambda p: (p / "train/ape/00003.png").write_bytes(b""), "00003.png is empty"),
        (
            lambda p: (p / "train/ape/00003.png").write_bytes(b"\x89PNG torn"),
            r"00003.png \(example 3\) cannot be read: it is no image",
        ),
        (
            lambda p: (p / "train/bee/00001.png").write_bytes(
                image_sets.encoded(1)[:-90]
            ),
            r"00001.png \(example 7\) cannot be read",
        ),
        (
            lambda p: (p / "train/ape/00003.png").write_bytes(
                image_sets.encoded(1, (9, 9))
            ),
            "is 9 x 9 pixels.*image_size",
        ),
        (
            lambda p: [f.unlink() for f in (p / "val" / "ape").iterdir()],
            "ape has no image",
        ),
    ],
)
def test_a_folder_with_a_fault_is_refused_by_name(tmp_path, spoil, message):
    path = image_sets.folder(tmp_path / "set")
    spoil(path)
    with pytest.raises(ValueError, match=message):
        datasets.load(f"folder:{path}")


def test_images_of_many_sizes_need_one_and_damaged_ones_may_be_left_out(tmp_path):
    path = image_sets.folder(tmp_path / "set", vary=True, ending="jpg")
    with pytest.raises(ValueError, match=r"differ in size: set dataset.image_size"):
        datasets.load(f"folder:{path}")
    (path / "train" / "bee" / "00001.jpg").write_bytes(b"torn")
    data = datasets.load(f"folder:{path}", image_size=8, on_bad_example="skip")
    assert (data.num_train, data.input_shape) == (11, (8, 8, 3))
    assert data.arrays("train")[1].tolist() == [0] * 6 + [1] * 5
    with pytest.raises(ValueError, match="'stop' or 'skip'"):
        datasets.load(f"folder:{path}", image_size=8, on_bad_example="ignore")
    with pytest.raises(ValueError, match="image_size has a meaning for folder"):
        datasets.load("digits", image_size=8)


def test_any_tfds_set_of_labelled_images_is_read(tfds_dir, tmp_path):
    data = datasets.load("tfds:bugs", data_dir=tfds_dir)
    assert (data.num_train, data.num_test) == (14, 6)
    assert (data.input_shape, data.class_names) == ((12, 10, 3), ("ant", "bug", "cat"))
    # As TFDS itself decodes it, in its order.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(tfds_dir / "bugs" / "1.0.0")
    x, y = tfds.as_numpy(
        builder.as_dataset(split="train", batch_size=-1, as_supervised=True)
    )
    np.testing.assert_array_equal(data.arrays("train")[1], y)
    np.testing.assert_allclose(data.arrays("train")[0] * 255, x, atol=1e-4)
    assert datasets.load("tfds:bugs:1.0.0", data_dir=tfds_dir).num_train == 14
    with pytest.raises(ValueError, match="TFDS has no set tfds:no_such_bugs"):
        datasets.load("tfds:no_such_bugs", data_dir=tmp_path)
    image_sets.tfds_set(tmp_path, name="unlabelled", label=False)
    with pytest.raises(ValueError, match=r"no set of images with class labels.*Scalar"):
        datasets.load("tfds:unlabelled", data_dir=tmp_path)


def test_a_large_tfrecord_set_is_converted_once(tfds_dir, tmp_path, monkeypatch):
    shutil.copytree(tfds_dir, tmp_path / "tfds")
    version = tmp_path / "tfds" / "bugs" / "1.0.0"
    plain = datasets.load("tfds:bugs", data_dir=tmp_path / "tfds")
    full = shutil.disk_usage(tmp_path)._replace(free=9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match=r"GB free.*python -m keras_fa.datasets.records"):
        records.read_prepared(version, "tfds:bugs", 0, [tmp_path / "tfds"])
    monkeypatch.undo()
    raw = records.read_prepared(version, "tfds:bugs", 0, [tmp_path / "tfds"])
    made = version.with_name("1.0.0-array_record")
    assert records.find("bugs", [tmp_path / "tfds"]) == made
    before = np.rint(255 * plain.arrays("train")[0])
    np.testing.assert_array_equal(raw.x_train.held()[0], before)
    np.testing.assert_array_equal(raw.y_test, plain.arrays("test")[1])
    shutil.rmtree(version)
    again = datasets.load("tfds:bugs", data_dir=tmp_path / "tfds")
    np.testing.assert_array_equal(again.arrays("test")[0], plain.arrays("test")[0])
    assert "array_record" in raw.x_train.where(3) and "Record 3" in raw.x_train.where(3)
