"""The TFDS builder of Tiny-ImageNet, for the official archive and excerpts of it.

Importing this module imports tensorflow_datasets and makes `"tiny_imagenet"` known to
it.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = "tiny-imagenet-200.zip"
_IMAGE_SHAPE = (64, 64, 3)
_JPEG = b"\xff\xd8\xff"


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny-ImageNet: 64x64 photographs, 500 of each class to train on.

    Reads `tiny-imagenet-200.zip` from TFDS's manual folder, or downloads it. The
    classes are those in the archive's `wnids.txt`, in that order: 200 officially, fewer
    in an excerpt. So neither their number nor their names are known before the archive
    is read. They are set while preparing and kept with the prepared set: the label's
    names are the WordNet ids, and `info.metadata` has

    - `"words"`: the readable name of each class, from `words.txt`,
    - `"archive_bytes"`: the size of the archive that was read.

    Splits: `train` and `validation`; the archive's own test images have no labels.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: {ARCHIVE}, from {URL}"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="64x64 images of a part of ImageNet's classes.",
            homepage="http://cs231n.stanford.edu/",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=_IMAGE_SHAPE, encoding_format="jpeg"
                    ),
                    "label": tfds.features.ClassLabel(),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        archive = _find_archive(dl_manager)
        with zipfile.ZipFile(archive) as files:
            root = _root(files)
            wnids = files.read(f"{root}wnids.txt").decode().split()
            words = dict(
                line.split("\t", 1)
                for line in files.read(f"{root}words.txt").decode().splitlines()
            )
        self.info.features["label"].names = wnids
        self.info.metadata["words"] = [words.get(wnid, wnid) for wnid in wnids]
        self.info.metadata["archive_bytes"] = os.path.getsize(archive)
        return {
            "train": self._generate_examples(archive, "train"),
            "validation": self._generate_examples(archive, "val"),
        }

    def _generate_examples(self, archive: str, split: str) -> Iterator[tuple]:
        with zipfile.ZipFile(archive) as files:
            list_images = {"train": _train_images, "val": _validation_images}[split]
            wnids = self.info.features["label"].names
            for path, wnid in list_images(files, _root(files), wnids):
                # Kept as encoded; reading checks the archive's CRC of the file.
                image = files.read(path)
                if not image.startswith(_JPEG):
                    raise ValueError(f"{path} in {archive} is no JPEG picture.")
                features = {"image": io.BytesIO(image), "label": wnid}
                yield path.rsplit("/", 1)[-1], features


def _find_archive(dl_manager: tfds.download.DownloadManager) -> str:
    try:
        manual = dl_manager.manual_dir / ARCHIVE
    except AssertionError:  # TFDS's word for a folder that is missing or empty
        return os.fspath(dl_manager.download(URL))
    return os.fspath(manual if manual.exists() else dl_manager.download(URL))


def _root(files: zipfile.ZipFile) -> str:
    """The folder that everything in the archive lies in, with its slash."""
    for name in files.namelist():
        if name == "wnids.txt" or name.endswith("/wnids.txt"):
            return name[: -len("wnids.txt")]
    raise ValueError(
        f"{files.filename} is not laid out as Tiny-ImageNet is: it has no wnids.txt."
    )


def _train_images(
    files: zipfile.ZipFile, root: str, wnids: list[str]
) -> Iterator[tuple[str, str]]:
    known = set(wnids)
    for path in files.namelist():
        parts = path[len(root) :].split("/")
        if len(parts) == 4 and parts[0] == "train" and parts[3] and parts[1] in known:
            yield path, parts[1]


def _validation_images(
    files: zipfile.ZipFile, root: str, wnids: list[str]
) -> Iterator[tuple[str, str]]:
    known = set(wnids)
    lines = files.read(f"{root}val/val_annotations.txt").decode().splitlines()
    for line in lines:
        name, wnid = line.split("\t")[:2]
        if wnid in known:
            yield f"{root}val/images/{name}", wnid
