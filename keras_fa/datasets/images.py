"""Images that lie encoded on the disk: class folders, and any image set of TFDS."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
from pathlib import Path

import numpy as np

from keras_fa._extras import extra
from keras_fa.datasets.transforms import RawData

_LOG = logging.getLogger("keras_fa")
_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_TEST_FOLDERS = ("test", "val", "validation")
# Images are made this much larger than what is cut from their middle: 256 to 224.
_MARGIN = 8 / 7


class BadExample(ValueError):
    """An example that cannot be read; the message names its file and index."""


class Files:
    """Encoded images, each a file of its own.

    Args:
        paths: The files, in the order of the set.
    """

    def __init__(self, paths):
        self._paths = paths

    def read(self, index):
        """The bytes of one image."""
        with open(self._paths[index], "rb") as file:
            return file.read()

    def where(self, index):
        """What an error calls one image."""
        return f"{self._paths[index]} (example {index})"


class Images:
    """Encoded images that are decoded when they are asked for.

    It has the length, shape and selection of an array `(n, height, width, channels)`
    of uint8, so that classes and subsets are chosen of either alike.

    Args:
        store: What has the bytes: `read(index)` and `where(index)`, as `Files`.
        count: How many images there are.
        channels: 1 for grey images, 3 for colours; others are brought to it.
        size: `(height, width)` of what is handed out.
        scales: Whether images of other sizes are brought to it, or refused.
    """

    dtype = np.dtype("uint8")

    def __init__(self, store, count, channels, size=None, scales=False):
        with extra("streaming"):
            import PIL  # noqa: F401 (before anything is read)
        self._store = store
        self._kept = np.arange(count)
        self._channels = channels
        self.size = size
        self.scales = scales

    def __len__(self):
        return len(self._kept)

    def __getitem__(self, selection) -> Images:
        chosen = object.__new__(Images)
        chosen.__dict__.update(self.__dict__, _kept=self._kept[selection])
        return chosen

    @property
    def shape(self):
        """That of the array that they would make."""
        return (len(self), *self.size, self._channels)

    @property
    def nbytes(self):
        """The bytes of that array."""
        return int(np.prod(self.shape, dtype=np.int64))

    def where(self, index):
        """What an error calls one image."""
        return self._store.where(int(self._kept[index]))

    def header(self, index):
        """`(height, width)` of one image, which is not decoded for it."""
        with self._opened(index) as image:
            return image.height, image.width

    def decode(self, index):
        """One image as it is stored, uint8, `(height, width, channels)`.

        Raises:
            BadExample: If it cannot be read or decoded.
        """
        with self._opened(index) as image:
            try:
                # Sixteen bits would be cut off, not scaled.
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"pixels of kind {image.mode}, not 8 bit")
                array = np.asarray(image.convert("L" if self._channels == 1 else "RGB"))
            except Exception as error:
                raise self._bad(index, error) from error
        return array.reshape(*array.shape[:2], self._channels)

    def fitted(self, index):
        """One image at `size`: see `fit_to`."""
        image = self.decode(index)
        if image.shape[:2] != self.size and not self.scales:
            raise BadExample(
                f"{self.where(index)} is {image.shape[0]} x {image.shape[1]} pixels, "
                f"the first of the set {self.size[0]} x {self.size[1]}: set "
                "dataset.image_size, to which the middle of each is brought."
            )
        return fit_to(image, self.size)

    def held(self, on_bad_example="stop"):
        """All of them as one array, with the mask of those that could be read.

        Args:
            on_bad_example: "stop" raises at the first damaged image, "skip" leaves
                such images out.

        Returns:
            uint8 `(m, height, width, channels)` and a bool mask `(n,)` with m trues.
        """
        array = np.empty(self.shape, np.uint8)
        good = np.ones(len(self), bool)
        for index in range(len(self)):
            try:
                array[index] = self.fitted(index)
            except BadExample as error:
                if on_bad_example == "stop":
                    raise
                _LOG.warning("Left out: %s", error)
                good[index] = False
        return (array if good.all() else array[good]), good

    def _opened(self, index):
        from PIL import Image

        try:
            return Image.open(io.BytesIO(self._store.read(int(self._kept[index]))))
        # What damaged pictures and records raise is no fixed list.
        except Exception as error:
            raise self._bad(index, error) from error

    def _bad(self, index, error):
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Pillow names the buffer that it read from.
        if reason.startswith("cannot identify image file"):
            reason = "it is no image"
        return BadExample(
            f"{self.where(index)} cannot be read: {reason}. Put back a good copy, or "
            "set on_bad_example='skip', which leaves such examples out and counts them."
        )


def fit_to(image, size):
    """An image at a size: scaled until it covers it with a margin, its middle taken.

    Args:
        image: uint8, `(height, width, channels)`.
        size: `(height, width)`. An image of that size is returned as it is.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    scale = _MARGIN * max(size[0] / height, size[1] / width)
    high, wide = size[0] / scale, size[1] / scale
    top, left = (height - high) / 2, (width - wide) / 2
    return resized(image, (left, top, left + wide, top + high), size)


def resized(image, box, size):
    """A part of an image, scaled by Pillow's bilinear filter, which averages.

    Args:
        image: uint8, `(height, width, channels)`.
        box: `(left, top, right, bottom)` of the part, in pixels.
        size: `(height, width)` of the result.
    """
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    scaled = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(scaled).reshape(*size, image.shape[-1])


def read_folder(address, image_size=None, channels=None, **_):
    """The class folders of `PATH/train` and of `PATH/test`, `val` or `validation`.

    Args:
        address: The path.
        image_size: Side of the images handed out, or None if they all have one size.
        channels: 1 or 3; by default 3, to which grey images are brought.

    Raises:
        ValueError: If the folder is not laid out so, a class is missing on one side or
            empty, or the images differ in size and `image_size` is None.
        BadExample: If a file is empty or, of each class the first, no image.
    """
    root = Path(address).expanduser()
    tests = [root / name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if not (root / "train").is_dir() or len(tests) != 1:
        found = (
            sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else "nothing"
        )
        raise ValueError(
            f"folder:{address} must hold train/CLASS/*.jpg and one of "
            f"{', '.join(_TEST_FOLDERS)} with the same classes. Found: {found}."
        )
    classes = {side: _classes(side) for side in (root / "train", tests[0])}
    train, test = classes.values()
    if train != test or len(train) < 2:
        only = [f"{c} only in {root / 'train'}" for c in sorted({*train} - {*test})]
        only += [f"{c} only in {tests[0]}" for c in sorted({*test} - {*train})]
        raise ValueError(
            f"folder:{address} must have the same two or more class folders in "
            f"training and test. {'; '.join(only[:8]) or f'Found: {train}'}."
        )
    splits = []
    for side in classes:
        paths, labels, firsts = [], [], []
        for number, name in enumerate(train):
            of_class = _image_files(side / name)
            firsts.append(len(paths))
            paths += of_class
            labels += [number] * len(of_class)
        images = Images(Files(paths), len(paths), channels or 3)
        splits += [sized(images, firsts, image_size), np.array(labels, np.int64)]
    return RawData(
        *of_one_size(splits, f"folder:{address}"), tuple(train), divisor=255.0
    )


def _classes(folder):
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")


def _image_files(folder):
    with os.scandir(folder) as entries:
        files = sorted(
            (entry for entry in entries if entry.name.lower().endswith(_ENDINGS)),
            key=lambda entry: entry.name,
        )
        for entry in files:
            if entry.stat().st_size == 0:
                raise BadExample(
                    f"{entry.path} is empty. Put back a good copy or remove it."
                )
    if not files:
        raise ValueError(
            f"The class folder {folder} has no image. Expected files that end in "
            f"{', '.join(_ENDINGS)}; a class without examples must not be there."
        )
    return [entry.path for entry in files]


def sized(images, looked_at, image_size):
    """The images with their size, or that of those looked at if they agree."""
    sizes = {images.header(index) for index in looked_at}
    if image_size is not None:
        images.size, images.scales = (image_size, image_size), True
    elif len(sizes) == 1:
        (images.size,) = sizes
    return images


def of_one_size(splits, name):
    """The splits, whose images must have one size, as it is known by now."""
    if splits[0].size is None or splits[0].size != splits[2].size:
        raise ValueError(
            f"The images of {name} differ in size: set dataset.image_size, 224 say, to "
            "which the middle of each is brought."
        )
    return splits


def in_memory(raw, on_bad_example="stop"):
    """A data set of images with both splits decoded into arrays, `RawData`."""
    sides = {}
    for side in ("train", "test"):
        x, y = getattr(raw, f"x_{side}"), getattr(raw, f"y_{side}")
        sides[f"x_{side}"], good = x.held(on_bad_example)
        sides[f"y_{side}"] = y[good]
        if not good.any():
            raise BadExample(f"No {side} example can be read, the first: {x.where(0)}.")
    return dataclasses.replace(raw, **sides)
