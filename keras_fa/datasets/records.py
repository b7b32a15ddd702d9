"""Sets of TensorFlow Datasets as records that are read one by one."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np

from keras_fa._extras import extra
from keras_fa.datasets.images import Images, of_one_size, sized
from keras_fa.datasets.transforms import RawData

_LOG = logging.getLogger("keras_fa")
# Of a prepared version as array_record beside the same one as TFRecord.
_SUFFIX = "-array_record"
_VERSION = rf"\d+\.\d+\.\d+({_SUFFIX})?"


class Records:
    """The records of a split, in memory or in array_record files.

    Args:
        files: The files of the split, in order.
        lengths: How many records each has.
        key: The feature that is the encoded image.
        held: The records themselves, bytes, where they are in memory.
    """

    def __init__(self, files, lengths, key, held=None):
        self._files = [os.fspath(file) for file in files]
        self._ends = np.cumsum(lengths)
        self._key = key
        self._held = held
        self._source = None if held is not None else _array_records(self._files)

    def record(self, index):
        """The bytes of one record."""
        return (self._held or self._source)[index]

    def read(self, index):
        """The bytes of the image of one record."""
        return _feature(self.record(index), self._key).bytes_list.value[0]

    def where(self, index):
        """What an error calls one record."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (self._ends[number - 1] if number else 0)
        return f"Record {within} of {self._files[number]} (example {index})"


def _is_array_record(builder):
    return "array_record" in builder.info.file_format.name.lower()


def _array_records(files):
    with extra("streaming"):
        from array_record.python import array_record_data_source

    return array_record_data_source.ArrayRecordDataSource(files)


def _feature(record, key):
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[key]


def read_prepared(path, name, memory_bytes, folders, image_size=None, channels=None):
    """A prepared image set with labels, as `RawData` of `Images`.

    Args:
        path: The folder of the version.
        name: What errors call the set.
        memory_bytes: TFRecord files of a split up to this size are read into memory;
            larger ones are converted to array_record, once.
        folders: TFDS folders, of which the first that can be written takes that.
        image_size: As for `images.read_folder`.
        channels: By default those that the set's description has, or 3.

    Raises:
        ValueError: If the set has no pair of an image and a class label, or no split to
            test on.
        OSError: If it has to be converted and there is no room or folder for it. The
            message has the command that does it elsewhere.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(os.fspath(path))
    image, label = _supervised(builder.info, name)
    names = {"train", "test", "validation"} & set(builder.info.splits)
    if "train" not in names or len(names) < 2:
        raise ValueError(
            f"{name} must have the splits train and test or validation. It has: "
            f"{', '.join(builder.info.splits) or 'none'}."
        )
    largest = max(builder.info.splits[split].num_bytes for split in names)
    if not _is_array_record(builder) and largest > memory_bytes:
        path = converted(path, folders, name)
        builder = tfds.builder_from_directory(os.fspath(path))
    parts = {split: _split(builder, split, image, label) for split in sorted(names)}
    test = "test"
    # The labels of a test set that is kept secret are -1.
    if test not in parts or parts[test][1].min() < 0:
        test = "validation"
    if test not in parts or min(parts[s][1].min() for s in ("train", test)) < 0:
        raise ValueError(f"{name} has examples without labels in training or test.")
    described = builder.info.features[image].shape
    splits = []
    for records, labels in (parts["train"], parts[test]):
        images = Images(records, len(labels), channels or described[-1] or 3)
        looked_at = np.linspace(0, len(labels) - 1, 9).astype(int)
        splits += [sized(images, looked_at.tolist(), image_size), labels]
    classes = tuple(builder.info.features[label].names)
    return RawData(*of_one_size(splits, name), classes, divisor=255.0)


def _supervised(info, name):
    import tensorflow_datasets as tfds

    keys, features = info.supervised_keys, info.features
    wanted = (tfds.features.Image, tfds.features.ClassLabel)
    if not (
        isinstance(keys, tuple)
        and len(keys) == 2
        and all(
            isinstance(key, str) and isinstance(features[key], kind)
            for key, kind in zip(keys, wanted, strict=True)
        )
    ):
        found = ", ".join(f"{k} ({type(v).__name__})" for k, v in features.items())
        raise ValueError(
            f"{name} is no set of images with class labels: its supervised keys are "
            f"{keys}, its features {found}. Another set is read by a function of your "
            'own, "module:function".'
        )
    return keys


def _split(builder, split, image, label):
    """The records of a split and their labels, int64 `(n,)`."""
    info = builder.info.splits[split]
    files = [Path(file) for file in info.filepaths]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing: put it back, or delete {file.parent} and have the "
                "set prepared anew."
            )
    held = None if _is_array_record(builder) else list(_tf_records(files))
    records = Records(files, info.shard_lengths, image, held)
    kept = files[0].parent / f"labels-{split}.npy"
    if kept.exists():
        return records, np.load(kept)
    shown = _Progress(f"Labels of {files[0].parent.name} {split}", info.num_examples)
    labels = np.empty(info.num_examples, np.int64)
    for index in range(len(labels)):
        labels[index] = _feature(records.record(index), label).int64_list.value[0]
        shown.advance()
    return records, labels


def _tf_records(files):
    import tensorflow as tf

    for file in files:
        read = 0
        try:
            for record in tf.data.TFRecordDataset([str(file)]):
                yield record.numpy()
                read += 1
        except tf.errors.DataLossError as error:
            raise OSError(
                f"{file} is damaged at its record {read}: {error.message} Put "
                f"back a copy, or delete {file.parent} and have the set prepared anew."
            ) from error


def find(name, folders):
    """The folder of a prepared set, or None.

    Args:
        name: `NAME[/CONFIG][:VERSION]`.
        folders: TFDS folders, searched in order. The newest version in the first that
            has one counts; as array_record rather than as TFRecord.
    """
    name, _, version = name.partition(":")
    for folder in folders:
        found = [
            path.parent
            for path in (folder / name).glob("*/dataset_info.json")
            if re.fullmatch(_VERSION, path.parent.name)
            and version in ("", path.parent.name.removesuffix(_SUFFIX))
        ]
        if found:
            return max(found, key=_by_version)
        # A set of several configurations, of which one is prepared.
        configs = {
            path.parents[1] for path in folder.glob(f"{name}/*/*/dataset_info.json")
        }
        if len(configs) == 1:
            wanted = f"{name}/{configs.pop().name}"
            return find(f"{wanted}:{version}" if version else wanted, [folder])
    return None


def _by_version(path):
    version = path.name.removesuffix(_SUFFIX)
    return [int(v) for v in version.split(".")], path.name.endswith(_SUFFIX)


def converted(path, folders, name):
    """A set prepared as TFRecord, brought into array_record files beside it, once.

    Args:
        path: The folder of the version as TFRecord.
        folders: TFDS folders: the first that can be written takes the new folder.
        name: `NAME[/CONFIG]`, with or without a version.

    Returns:
        The new folder, which is there whole or not at all.

    Raises:
        OSError: If there is no folder to write, or no room.
    """
    where = name.removeprefix("tfds:").partition(":")[0]
    for folder in folders:
        target = folder / where / (path.name + _SUFFIX)
        if (target / "dataset_info.json").exists():
            return target
    size = sum(file.stat().st_size for file in path.iterdir())
    tried = []
    for folder in folders:
        reason = _no_place(folder, size)
        if reason is None:
            return convert(path, folder / where / (path.name + _SUFFIX))
        tried.append(f"{folder}: {reason}")
    raise OSError(
        f"{name} is prepared as TFRecord, of which no single example can be read, and "
        f"there is no place for a copy as array_record ({'; '.join(tried)}). Make one: "
        f"python -m keras_fa.datasets.records {path} "
        f"FOLDER/{where}/{path.name}{_SUFFIX}, and set TFDS_DATA_DIR=FOLDER; or raise "
        "dataset.memory_bytes."
    )


def _no_place(folder, size):
    """Why a folder cannot take so many bytes, or None."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK) or not folder.stat().st_mode & 0o222:
        return "no write access"
    free = shutil.disk_usage(folder).free
    if free < 1.1 * size:
        return f"{free / 1e9:.1f} GB free, {1.1 * size / 1e9:.1f} GB needed"
    return None


def convert(source, target):
    """Copies a prepared TFRecord set into array_record files, record by record.

    Args:
        source: The folder of the version.
        target: The folder to make. It appears when all is written.

    Returns:
        `target`, a path.
    """
    import tensorflow_datasets as tfds

    with extra("streaming"):
        from array_record.python import array_record_module

    source, target = Path(source), Path(target)
    builder = tfds.builder_from_directory(os.fspath(source))
    _, label = _supervised(builder.info, os.fspath(source))
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        for split, info in builder.info.splits.items():
            shown = _Progress(f"{source.name} {split}", info.num_examples)
            labels = []
            for file in map(Path, info.filepaths):
                name = file.name.replace(".tfrecord-", ".array_record-")
                # One record a group: any of them is read without its neighbours.
                writer = array_record_module.ArrayRecordWriter(
                    os.fspath(unfinished / name), "group_size:1"
                )
                for record in _tf_records([file]):
                    writer.write(record)
                    value = _feature(record, label).int64_list.value
                    labels.append(value[0] if value else -1)
                    shown.advance()
                writer.close()
            np.save(unfinished / f"labels-{split}.npy", np.array(labels, np.int64))
        for file in source.iterdir():
            if ".tfrecord-" not in file.name:
                shutil.copy(file, unfinished / file.name)
        description = json.loads((source / "dataset_info.json").read_text())
        description["fileFormat"] = "array_record"
        (unfinished / "dataset_info.json").write_text(json.dumps(description, indent=2))
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


class _Progress:
    """A line of the log for each twentieth of a long reading."""

    def __init__(self, what, total):
        self._what, self._total, self._done = what, total, 0
        self._step = max(total // 20, 20_000)

    def advance(self):
        self._done += 1
        if self._done % self._step == 0:
            _LOG.warning("%s: %d of %d", self._what, self._done, self._total)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python -m keras_fa.datasets.records FOLDER NEW_FOLDER")
    sys.stdout.write(f"{convert(*sys.argv[1:])}\n")
