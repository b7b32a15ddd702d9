"""Data sets by name: images, the embedded digits, and the theory's synthetic problems.

Example:
    ```python
    data = keras_fa.datasets.load("digits", batch_size=64, standardize="scalar")
    model.fit(data.train, epochs=3, validation_data=data.test, shuffle=False)
    ```
"""

from __future__ import annotations

import inspect
import numbers
import os
from collections.abc import Sequence

import numpy as np

from keras_fa import registry
from keras_fa.datasets import (
    augmentation,
    images,
    sources,
    streams,
    synthetic,
    transforms,
)
from keras_fa.datasets.images import BadExample
from keras_fa.datasets.pipelines import Dataset
from keras_fa.datasets.sources import DatasetNotFound

__all__ = [
    "NAMES",
    "BadExample",
    "Dataset",
    "DatasetNotFound",
    "UnknownOptionError",
    "load",
]

NAMES = ("digits", *sources.TFDS_NAMES, *synthetic.PROBLEMS)
"""The names of the toolkit's own data sets."""

for _name in NAMES:
    registry.register("dataset", _name)(
        synthetic.PROBLEMS.get(_name) or sources.reader(_name)
    )

# Of images that lie encoded somewhere, named "scheme:address".
_SCHEMES = {"folder": images.read_folder, "tfds": sources.read_address}
for _name, _read in _SCHEMES.items():
    _read.takes_address = True
    registry.register("dataset", _name)(_read)


class UnknownOptionError(TypeError):
    """An option that `load` or the data set does not have."""


_AUTO_BATCH_SIZE = 128
_MEMORY_BYTES = 2**32
# So many examples tell the moments of a set that is not in memory.
_MEASURED = 4096


def load(
    name: str,
    *,
    num_classes: int | None = None,
    class_seed: int | None = None,
    classes: Sequence[int] | None = None,
    exclude_classes: Sequence[int] | None = None,
    train_size: int | None = None,
    label_noise: float = 0.0,
    noise_over: str = "other",
    scale: bool = True,
    standardize: str = "none",
    flatten: bool = False,
    dtype: str = "float32",
    batch_size: int | str | None = "auto",
    drop_last: bool = False,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    memory_bytes: int = _MEMORY_BYTES,
    augment: Sequence[str | dict] = (),
    on_bad_example: str = "stop",
    threads: int | None = None,
    workers: int = 0,
    **sizes: int | float | str,
) -> Dataset:
    """Loads a data set.

    Options apply in the order in which they are listed. Each draws from a random stream
    of its own, so that the seed chooses the same examples with label noise as without.

    Args:
        name: One of `NAMES`, a name given with `keras_fa.register("dataset", name)`, or
            "module:function": one's own is a function of the further arguments, and of
            `seed` if it takes one, that returns `(x_train, y_train), (x_test, y_test)`;
            whole numbers from 0 are classes. `"digits"` is inside scikit-learn and
            works everywhere. `"mnist"`, `"fashion_mnist"`, `"cifar10"`, `"cifar100"`
            and `"tiny_imagenet"` are read through TensorFlow Datasets and, where they
            are not prepared, downloaded by it; Tiny-ImageNet's validation set is the
            test set. The others are synthetic: see `keras_fa.datasets.synthetic`.
            `"folder:PATH"` reads `PATH/train/CLASS/*.jpg` and the same classes in
            `PATH/test`, `val` or `validation`; `"tfds:NAME[/CONFIG][:VERSION]"` any set
            of TensorFlow Datasets that has images and class labels.
        num_classes: Keep this many classes, drawn at random.
        class_seed: Draws them; by default `seed`. Give it to repeat a run with other
            seeds on the same classes.
        classes: Keep these class ids instead.
        exclude_classes: Class ids never to draw: those a run was tuned on, say.
        train_size: Keep a random subset of this many training examples.
        label_noise: Share of the training labels to draw again. Test labels stay clean.
        noise_over: `"other"` draws them from the wrong classes, `"all"` from all.
        scale: Bring pixels to [0, 1]. Synthetic inputs have no such unit and stay.
        standardize: Subtract the mean and divide by the standard deviation of the
            training subset: one for all inputs (`"scalar"`), one for each channel, the
            last axis (`"channel"`), or one for each entry (`"feature"`). What is
            constant is only centred. `"none"` does nothing.
        flatten: Make each input a vector.
        dtype: `"float32"` or `"float64"`, of inputs and regression targets.
        batch_size: Examples a batch; None or `"full"` for the whole training set, and
            the whole test set, as one batch; `"auto"` for 128, or all there are where
            they are fewer.
        drop_last: Leave an incomplete last training batch out.
        seed: Non-negative integer behind all random choices. What is the test set
            never depends on it, except in synthetic problems.
        data_dir: The TensorFlow Datasets folder to read, and to prepare sets in. By
            default `TFDS_DATA_DIR` and then `~/tensorflow_datasets` are looked
            through, and what is in neither is prepared in the first of them that can be
            written. So a `TFDS_DATA_DIR` may be read-only.
        manual_dir: Folder with archives fetched by hand, such as
            `tiny-imagenet-200.zip`. By default `downloads/manual` in any of these.
        image_size: Side of the images of "folder:" and "tfds:", which are scaled, and
            cut to their middle. Needed where they differ in size.
        channels: 1 or 3, of the same: 3 unless the set's description says other.
        memory_bytes: Sets up to this size, decoded, are held in memory. Larger ones
            are read from the disk batch by batch, in the same order. Their
            `standardize` measures 4,096 training examples, drawn by the seed.
        augment: Random changes of the training images, in this order: names or dicts of
            `name` and arguments, of `keras_fa.datasets.augmentation.CHANGES`. Each is a
            function of the seed, the epoch and the example. With "mixup" training
            targets are vectors over the classes, float32.
        on_bad_example: "stop" refuses an image that cannot be read by its file and
            index; "skip" leaves such images out, with a warning for each. Where they
            are read from the disk, the next one that can be read takes the place.
        threads: Threads that read and change images; by default one for each core.
        workers: Processes for that besides this one. A program must then have the main
            guard, and each loads TensorFlow.
        **sizes: The sizes of a synthetic problem, such as `n`, `n_test` and `d_in`.

    Returns:
        The data set. Regression sets have `num_classes` None and float targets of shape
        `(n, d_out)`; so have the binary sets, whose labels are -1 and +1.

    Raises:
        ValueError: For a name or value that is not to be had, or an option without
            meaning for this set.
        UnknownOptionError: For an option that does not exist; a TypeError.
        DatasetNotFound: If the set is not on this machine and cannot be downloaded.
        ImportError: If the library that has the set is not installed: the extra
            "data".
    """
    _check(name, sizes, dtype, seed, class_seed)
    _check_images(name, image_size, channels, memory_bytes, on_bad_example)
    for option, value, least in (("threads", threads, 1), ("workers", workers, 0)):
        if value is not None and not (
            isinstance(value, numbers.Integral) and value >= least
        ):
            raise ValueError(
                f"{option} must be an integer from {least}. Received: {value!r}."
            )
    for option, value in (
        ("scale", scale),
        ("flatten", flatten),
        ("drop_last", drop_last),
    ):
        if not isinstance(value, bool):
            raise ValueError(f"{option} must be True or False. Received: {value!r}.")
    if name in synthetic.PROBLEMS:
        problem_seed = transforms.stream(seed, "problem")
        raw = synthetic.PROBLEMS[name](problem_seed, **sizes)
    elif name in NAMES:
        raw = sources.reader(name)(data_dir, manual_dir)
    elif name.partition(":")[0] in _SCHEMES:
        scheme, _, address = name.partition(":")
        fields = {"image_size": image_size, "channels": channels}
        if scheme == "tfds":
            fields |= {
                "data_dir": data_dir,
                "manual_dir": manual_dir,
                "memory_bytes": memory_bytes,
            }
        raw = _SCHEMES[scheme](address, **fields)
    else:
        source = registry.get("dataset", name)
        given = {} if "seed" in sizes else {"seed": seed}
        splits = registry.made("dataset", source, sizes, given)
        raw = transforms.RawData.from_arrays(splits, name)

    is_classification = raw.class_names is not None
    chosen = None
    if is_classification:
        draw_seed = seed if class_seed is None else class_seed
        chosen = transforms.choose_classes(
            len(raw.class_names), num_classes, classes, exclude_classes, draw_seed
        )
        if len(chosen) < len(raw.class_names):
            raw = raw.with_classes(chosen)
    elif label_noise or any(
        option is not None
        for option in (num_classes, class_seed, classes, exclude_classes)
    ):
        raise ValueError(
            f"{name!r} has real-valued targets, not classes: num_classes, class_seed, "
            "classes, exclude_classes and label_noise have no meaning for it."
        )
    if train_size is not None:
        raw = raw.with_train_size(train_size, seed)

    order_key = int(transforms.stream(seed, "order").generate_state(1)[0])
    changes = None
    if augment:
        _check_augmentable(name, raw, is_classification, flatten, augment)
        key = int(transforms.stream(seed, "augment").generate_state(1)[0])
        size, count = raw.x_train.shape[1:3], len(raw.x_train)
        changes = augmentation.Augmentation(augment, key, size, count)
    if isinstance(raw.x_train, images.Images):
        # What takes images of any size cannot take them from an array of one.
        whole = changes is not None and changes.takes_whole_images
        fits = raw.x_train.nbytes + raw.x_test.nbytes <= memory_bytes
        if fits and not (whole and raw.x_train.scales):
            raw = images.in_memory(raw, on_bad_example)
            if changes is not None:
                changes.count = len(raw.x_train)
        elif flatten:
            raise ValueError(
                f"flatten=True needs {name!r} in memory; let the model flatten."
            )

    labels, noisy = raw.y_train, None
    if is_classification:
        labels, noisy = transforms.with_label_noise(
            labels, len(chosen), label_noise, noise_over, seed
        )
    if raw.fixed_geometry and standardize != "none":
        raise ValueError(
            f"standardize={standardize!r} would undo what defines {name!r}, the inner "
            'products of its inputs; leave it "none".'
        )
    divisor = raw.divisor if scale else 1.0
    measured = raw.x_train
    if isinstance(measured, images.Images) and standardize != "none":
        sample = np.random.default_rng(transforms.stream(seed, "moments"))
        count = min(len(measured), _MEASURED)
        chosen_few = np.sort(sample.permutation(len(measured))[:count])
        measured, _ = measured[chosen_few].held(on_bad_example)
    mean, std = transforms.moments(measured, standardize, divisor)
    x_train, x_test = raw.x_train, raw.x_test
    if flatten:
        if mean.ndim:
            mean, std = (np.broadcast_to(m, x_train.shape[1:]) for m in (mean, std))
            mean, std = mean.reshape(-1), std.reshape(-1)
        x_train = x_train.reshape(len(x_train), -1)
        x_test = x_test.reshape(len(x_test), -1)
    if is_classification:
        y_train, y_test = labels, raw.y_test
    else:
        y_train, y_test = labels.astype(dtype), raw.y_test.astype(dtype)
    return Dataset(
        name=name,
        input_shape=x_train.shape[1:],
        target_shape=y_train.shape[1:],
        num_classes=len(chosen) if is_classification else None,
        class_names=raw.class_names,
        classes=tuple(chosen.tolist()) if is_classification else None,
        num_train=len(x_train),
        num_test=len(x_test),
        mean=mean,
        std=std,
        batch_size=_batch_size(batch_size, len(x_train)),
        drop_last=drop_last,
        seed=seed,
        noisy=noisy,
        clean_labels=raw.y_train if is_classification else None,
        loading=streams.Loading(threads, workers, on_bad_example),
        _augmentation=changes,
        _splits={"train": (x_train, y_train), "test": (x_test, y_test)},
        _divisor=divisor,
        _dtype=dtype,
        _order_key=order_key,
    )


def _check(
    name: str, sizes: dict, dtype: str, seed: int, class_seed: int | None
) -> None:
    """Refuses what is wrong on its face, before anything is read."""
    registry.get("dataset", name)
    options = [p.name for p in inspect.signature(load).parameters.values()]
    options = [option for option in options if option not in ("name", "sizes")]
    known, scheme = [], name.partition(":")[0]
    if name in synthetic.PROBLEMS:
        known = list(inspect.signature(synthetic.PROBLEMS[name]).parameters)[1:]
    for option, value in sizes.items():
        if (name in NAMES or scheme in _SCHEMES) and option not in known:
            hint = registry.did_you_mean(option, [*options, *known], "{}")
            raise UnknownOptionError(
                f"load({name!r}) has no option {option!r}.{hint} Its sizes are "
                f"{', '.join(known) or '(none)'}; the options of all sets are "
                f"{', '.join(options)}."
            )
        if option in ("n", "n_test", "d_in", "d_out", "width") and not (
            isinstance(value, numbers.Integral) and value > 0
        ):
            raise ValueError(
                f"{option} must be a positive integer. Received: {value!r}."
            )
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64'. Received: {dtype!r}.")
    for option, value in (("seed", seed), ("class_seed", class_seed)):
        if value is not None and not (
            isinstance(value, numbers.Integral) and value >= 0
        ):
            raise ValueError(
                f"{option} must be an integer from 0. Received: {value!r}."
            )


def _check_augmentable(name, raw, is_classification, flatten, augment) -> None:
    x = raw.x_train
    if len(x.shape) != 4 or x.dtype != np.uint8 or flatten or not is_classification:
        raise ValueError(
            "augment needs images with classes: inputs (n, height, width, channels) of "
            f"uint8, not flattened. Received: {augment!r} for {name!r}, with inputs "
            f"{tuple(x.shape)} {x.dtype}{', flattened' if flatten else ''}."
        )


def _check_images(name, image_size, channels, memory_bytes, on_bad_example) -> None:
    """Refuses options of encoded images that are wrong, or of a set without any."""
    given = {"image_size": image_size, "channels": channels}
    if name.partition(":")[0] not in _SCHEMES:
        for option, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{option} has a meaning for folder:PATH and tfds:NAME alone, not "
                    f"for {name!r}."
                )
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3. Received: {channels!r}.")
    if on_bad_example not in ("stop", "skip"):
        raise ValueError(
            f"on_bad_example must be 'stop' or 'skip'. Received: {on_bad_example!r}."
        )
    for option, value in (("image_size", image_size), ("memory_bytes", memory_bytes)):
        if value is not None and not (
            isinstance(value, numbers.Integral)
            and not isinstance(value, bool)
            and value >= (option == "image_size")
        ):
            raise ValueError(
                f"{option} must be a positive integer. Received: {value!r}."
            )


def _batch_size(batch_size: int | str | None, num_train: int) -> int:
    if batch_size is None or batch_size == "full":
        return num_train
    if batch_size == "auto":
        return min(_AUTO_BATCH_SIZE, num_train)
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ValueError(
            "batch_size must be a positive integer, None, 'full' or 'auto'. Received: "
            f"{batch_size!r}."
        )
    if batch_size > num_train:
        raise ValueError(
            f"batch_size={batch_size:,} is more than the {num_train:,} training "
            "examples; for full-batch training say None."
        )
    return batch_size
