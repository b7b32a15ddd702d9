"""Small sets of images for the tests, as class folders and as prepared TFDS sets."""

import io

import numpy as np
from PIL import Image


def encoded(seed, size=(12, 10), ending="png", channels=3, grid=(4, 4)):
    """The bytes of a random image, interpolated from a grid of random colours."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (*grid, channels), np.uint8)
    image = Image.fromarray(coarse[..., 0] if channels == 1 else coarse)
    image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG"}.get(ending, ending.upper()))
    return buffer.getvalue()


def folder(path, train=6, test=3, classes=("ape", "bee"), vary=False, ending="png"):
    """Class folders with some images a class; those of `vary` differ in size."""
    seed = 0
    for split, count in (("train", train), ("val", test)):
        for name in classes:
            (path / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed += 1
                size = (12 + vary * (seed % 5), 10 + vary * (seed % 3))
                file = path / split / name / f"{number:05d}.{ending}"
                file.write_bytes(encoded(seed, size, ending))
    return path


def tfds_set(path, file_format="tfrecord", name="bugs", label=True, train=14, test=6):
    """A prepared TFDS set of 12 x 10 PNG images with three classes."""
    import tensorflow_datasets as tfds

    kind = tfds.features.ClassLabel(names=["ant", "bug", "cat"])
    features = {"image": tfds.features.Image(shape=(12, 10, 3)), "label": kind}
    if not label:
        features["label"] = tfds.features.Scalar(np.int64)

    def examples(count, seed):
        for number in range(count):
            image = Image.open(io.BytesIO(encoded(seed + number)))
            yield {"image": np.asarray(image), "label": (number + seed) % 3}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(train, 0),
                "test": self._generate_examples(test, 99),
            }

        def _generate_examples(self, count, seed):
            yield from enumerate(examples(count, seed))

    Builder.name = name
    builder = Builder(data_dir=path, file_format=file_format)
    builder.download_and_prepare()
    return path


def imagenet_like(path, classes=6, train=8, test=2, sizes=(300, 500)):
    """Class folders of JPEGs of many sizes, as ImageNet's, the names its synsets'.

    With a colour every other pixel a file has about the bytes that ImageNet's have, of
    which the time to decode it depends.
    """
    draw, seed = np.random.default_rng(0), 0
    for split, count in (("train", train), ("val", test)):
        for number in range(classes):
            into = path / split / f"n{number:08d}"
            into.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                seed += 1
                size = tuple(int(n) for n in draw.integers(*sizes, 2, endpoint=True))
                grid = (size[0] // 2, size[1] // 2)
                picture = encoded(seed, size, "jpg", grid=grid)
                (into / f"{image:05d}.JPEG").write_bytes(picture)
    return path
