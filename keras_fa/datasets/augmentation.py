"""Random changes of training images, each a function of seed, epoch and example.

So they are the same for any number of workers, processes and threads, and after a
resume. Keras's preprocessing layers and Grain's random maps draw from states or from
the position in a stream instead, which a shard or a resume changes.
"""

from __future__ import annotations

import inspect

import numpy as np

from keras_fa import registry
from keras_fa.datasets import images


def random_crop(image, draw, size, padding=4):
    """A random part of an image with a border of zeros, of the image's own size."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = draw.integers(0, 2 * padding + 1, 2)
    return padded[top : top + height, left : left + width]


def flip(image, draw, size, probability=0.5):
    """An image and its mirror image, left for right."""
    return image[:, ::-1] if draw.random() < probability else image


def random_resized_crop(image, draw, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """A random part of the area `scale` and the shape `ratio`, at the set's size.

    The sampling of Szegedy et al. (2015): ten tries, then the whole image's middle.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * draw.uniform(*scale)
        shape = np.exp(draw.uniform(*np.log(ratio)))
        wide, high = round(np.sqrt(area * shape)), round(np.sqrt(area / shape))
        if 0 < wide <= width and 0 < high <= height:
            top = draw.integers(0, height - high + 1)
            left = draw.integers(0, width - wide + 1)
            break
    else:
        side = min(height, width)
        wide = high = side
        top, left = (height - side) // 2, (width - side) // 2
    return images.resized(image, (left, top, left + wide, top + high), size)


def color_jitter(image, draw, size, brightness=0.4, contrast=0.4, saturation=0.4):
    """Brightness, contrast and saturation times 1 ± up to these, in a random order."""
    x = image.astype(np.float32)
    for number in draw.permutation(3):
        strength = (brightness, contrast, saturation)[number]
        factor = np.float32(draw.uniform(max(0.0, 1 - strength), 1 + strength))
        if number == 0:
            x = x * factor
        elif number == 1:
            x = x * factor + (1 - factor) * _luma(x).mean()
        elif x.shape[-1] == 3:
            x = x * factor + (1 - factor) * _luma(x)
        x = np.clip(x, 0, 255)
    return np.rint(x).astype(np.uint8)


def _luma(x):
    if x.shape[-1] == 1:
        return x
    return x @ np.array([[0.299], [0.587], [0.114]], np.float32)


def cutout(image, draw, size, length=8, fill=128):
    """A square of one grey value, its centre anywhere: DeVries and Taylor (2017)."""
    height, width = image.shape[:2]
    y, x = draw.integers(0, height), draw.integers(0, width)
    image = image.copy()
    top, left = y - length // 2, x - length // 2
    image[max(0, top) : top + length, max(0, left) : left + length] = fill
    return image


def rand_augment(image, draw, size, operations=2, magnitude=9):
    """Some of fourteen operations at one magnitude of 0 to 30: Cubuk et al. (2020).

    Operations and ranges are those of torchvision.
    """
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for _ in range(operations):
        name = _OPERATIONS[draw.integers(len(_OPERATIONS))]
        picture = _operated(picture, name, magnitude / 30, draw.choice((-1, 1)))
    return np.asarray(picture).reshape(image.shape)


_OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)


def _operated(picture, name, strength, sign):
    from PIL import Image, ImageEnhance, ImageOps

    width, height = picture.size
    shift = sign * strength
    affine = {
        "shear_x": (1, 0.3 * shift, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * shift, 1, 0),
        "translate_x": (1, 0, 150 / 331 * shift * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 150 / 331 * shift * height),
    }
    if name in affine:
        kind = Image.Transform.AFFINE
        return picture.transform(picture.size, kind, affine[name])
    if name == "rotate":
        return picture.rotate(30 * shift)
    if hasattr(ImageEnhance, name):
        return getattr(ImageEnhance, name)(picture).enhance(1 + 0.9 * shift)
    if name == "posterize":
        return ImageOps.posterize(picture, 8 - round(4 * strength))
    if name == "solarize":
        return ImageOps.solarize(picture, round(255 * (1 - strength)))
    if name in ("autocontrast", "equalize"):
        return getattr(ImageOps, name)(picture)
    return picture


def mixup(alpha=0.2):
    """The weight of an image beside another one, Beta(alpha, alpha), and its label.

    Zhang et al. (2018). Targets become vectors over the classes. The other example is
    drawn from the whole training set and goes through what stands before in the list,
    so each image is read twice.
    """
    return alpha


CHANGES = {
    change.__name__: change
    for change in (
        *(random_crop, flip, random_resized_crop, color_jitter, cutout),
        *(rand_augment, mixup),
    )
}


class Augmentation:
    """A list of changes, applied to one example.

    Args:
        changes: Names of `CHANGES`, or dicts of `name` and arguments.
        key: An integer that stands for the seed.
        size: `(height, width)` of the images handed out.
        count: How many training examples there are, for mixup.

    Attributes:
        count: As the argument.
        alpha: That of mixup, or None.

    Raises:
        ValueError: If a name or argument is unknown, mixup is not the last, or
            random_resized_crop not the first.
    """

    def __init__(self, changes, key, size, count):
        self._key, self._size, self.count = key, tuple(size), count
        self._changes, self.alpha = [], None
        for number, change in enumerate(changes):
            function, arguments = _checked(change)
            last = number == len(changes) - 1
            if function is mixup:
                self.alpha = mixup(**arguments)
                if not last or not self.alpha > 0:
                    raise ValueError(
                        "augment: mixup must be the last of the list, with an alpha "
                        f"above 0. Received: {changes!r}."
                    )
                continue
            if function is random_resized_crop and number:
                raise ValueError(
                    "augment: random_resized_crop must be the first of the list: it "
                    f"takes the image as it is stored. Received: {changes!r}."
                )
            self._changes.append((function, arguments))

    @property
    def takes_whole_images(self):
        """Whether it crops images as they are stored, of any size."""
        return bool(self._changes) and self._changes[0][0] is random_resized_crop

    def __call__(self, read, epoch, index):
        """One example of an epoch.

        Args:
            read: Function from an index to its image.
            epoch: Which epoch.
            index: Which example.

        Returns:
            The image, uint8 or, mixed, float32; the example it is mixed with and its
            own weight, or `(index, 1.0)`.
        """
        image = self._changed(read(index), epoch, index)
        if self.alpha is None:
            return image, index, 1.0
        draw = self._draw(epoch, index, len(self._changes))
        weight = np.float32(draw.beta(self.alpha, self.alpha))
        other = int(draw.integers(self.count))
        second = self._changed(read(other), epoch, other)
        return weight * image + (1 - weight) * second, other, weight

    def _changed(self, image, epoch, index):
        for number, (function, arguments) in enumerate(self._changes):
            draw = self._draw(epoch, index, number)
            image = function(image, draw, self._size, **arguments)
        return image

    def _draw(self, epoch, index, number):
        # Each change has a stream of its own: one more in the list moves no other.
        source = np.random.SeedSequence(self._key, spawn_key=(epoch, index, number))
        return np.random.Generator(np.random.Philox(source))


def _checked(change):
    arguments = {} if isinstance(change, str) else dict(change)
    name = change if isinstance(change, str) else arguments.pop("name", None)
    if name not in CHANGES:
        raise ValueError(
            f"augment: unknown change {name!r}."
            f"{registry.did_you_mean(str(name), CHANGES)} Known: {', '.join(CHANGES)}."
        )
    parameters = inspect.signature(CHANGES[name]).parameters
    known = [p for p in parameters if p not in ("image", "draw", "size")]
    for argument, value in arguments.items():
        if argument not in known:
            raise ValueError(
                f"augment: {name} has no argument {argument!r}. Known: "
                f"{', '.join(known)}."
            )
        numbers = np.asarray(value)
        like = np.shape(parameters[argument].default)
        if (
            numbers.dtype.kind not in "if"
            or numbers.shape != like
            or (numbers < 0).any()
        ):
            raise ValueError(
                f"augment: {name}.{argument} must be like its default "
                f"{parameters[argument].default!r} and not negative. Received: "
                f"{value!r}."
            )
    return CHANGES[name], arguments
