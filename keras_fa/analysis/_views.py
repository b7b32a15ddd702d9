"""Kernels seen alike: which of their entries belong to which channel."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped


class View(NamedTuple):
    """How the entries of an array belong to input and output channels.

    Every kernel is read as an array `(area, inputs, groups, outputs)`: output channel
    `g * outputs + o` is made of the input channels `g * inputs + i`, at all places of
    the area. Dense kernels and convolutions, grouped ones too, are so already.

    Attributes:
        shape: Of the kernel.
        split: Shape that it is given first.
        order: Order in which its axes are then taken.
        inputs, groups, outputs: Sizes, within a group the first and the last.
        shift: Added to the entries: 1 for a gain that counts from 1.
    """

    shape: tuple
    split: tuple
    order: tuple
    inputs: int
    groups: int
    outputs: int
    shift: float = 0.0

    def __call__(
        self, array: Shaped[np.ndarray, "..."]
    ) -> Shaped[np.ndarray, "area inputs groups outputs"]:
        """An array of the kernel's shape, or a matrix with its rows, so seen."""
        if array.shape != self.shape:
            # What a rule stores with more columns: see `splits`.
            return array.reshape(-1, self.inputs, 1, array.shape[-1])
        seen = array.reshape(self.split).transpose(self.order)
        seen = seen.reshape(-1, self.inputs, self.groups, self.outputs)
        return seen + self.shift if self.shift else seen

    def splits(self, shape):
        """Whether an array's rows belong to single input channels."""
        return tuple(shape) == self.shape or self.groups == 1

    @property
    def columns(self):
        """Number of output channels."""
        return self.groups * self.outputs

    @property
    def rows(self):
        """Number of input channels."""
        return self.groups * self.inputs


def of_matrix(shape, groups=1):
    """The view of `(..., inputs / groups, outputs)`: dense kernels, convolutions."""
    *area, inputs, outputs = shape
    split = (math.prod(area), inputs, groups, outputs // groups)
    return View(tuple(shape), split, (0, 1, 2, 3), inputs, groups, outputs // groups)


def of_depthwise(shape):
    """The view of `(..., channels, multiplier)`: each channel for itself."""
    *area, channels, multiplier = shape
    split = (math.prod(area), 1, channels, multiplier)
    return View(tuple(shape), split, (0, 1, 2, 3), 1, channels, multiplier)


def of_transposed(shape):
    """The view of `(..., outputs, inputs)`."""
    *area, outputs, inputs = shape
    split = (math.prod(area), outputs, inputs, 1)
    return View(tuple(shape), split, (0, 2, 3, 1), inputs, 1, outputs)


def of_axes(shape, inputs, groups, outputs):
    """The view of a kernel by its axes: those summed over, kept, and made."""
    sizes = [math.prod(shape[a] for a in axes) for axes in (inputs, groups, outputs)]
    return View(tuple(shape), tuple(shape), (*inputs, *groups, *outputs), *sizes)


def of_vector(shape, shift=0.0):
    """The view of one number for each channel: biases, gains."""
    size = math.prod(shape)
    return View(tuple(shape), (1, 1, 1, size), (0, 1, 2, 3), 1, 1, size, shift)


def of_places(shape, order, columns):
    """The view of a bias that differs between places: `columns` along the last axes.

    Args:
        shape: Of the bias.
        order: Its axes, those of the places first.
        columns: Number of channels.
    """
    return View(tuple(shape), tuple(shape), tuple(order), 1, 1, columns)
