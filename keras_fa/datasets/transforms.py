"""Raw arrays and what is done to them in NumPy: classes, subsets, noise, moments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

STANDARDIZATIONS = ("none", "scalar", "channel", "feature")
NOISE_TARGETS = ("other", "all")

# Every random choice has a stream of its own, so that switching one option on does
# not change what another draws. The numbers are part of what a seed means: append.
_STREAMS = {
    "problem": 0,
    "classes": 1,
    "train_size": 2,
    "noise_examples": 3,
    "noise_labels": 4,
    "order": 5,
    "augment": 6,
    "moments": 7,
}


def stream(seed: int, purpose: str) -> np.random.SeedSequence:
    """The independent random stream that `seed` gives to one purpose.

    Args:
        seed: Non-negative integer.
        purpose: One of `"problem"`, `"classes"`, `"train_size"`,
            `"noise_examples"`, `"noise_labels"`, `"order"`, `"augment"` and
            `"moments"`.
    """
    return np.random.SeedSequence(seed, spawn_key=(_STREAMS[purpose],))


@dataclass(frozen=True, eq=False)
class RawData:
    """A data set as its source has it, before any option is applied.

    Attributes:
        x_train: Training inputs, `(n, *input_shape)`, uint8 images or float64.
        y_train: Training targets: int64 class ids `(n,)`, or float64 `(n, d_out)`.
        x_test: Test inputs, `(n_test, *input_shape)`.
        y_test: Test targets.
        class_names: The name of each class, or None for a regression set.
        divisor: What brings the inputs to [0, 1]; 1 leaves them as they are.
        fixed_geometry: Whether the inner products between the inputs are what
            defines the set, so that the inputs must not be transformed.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] | None = None
    divisor: float = 1.0
    fixed_geometry: bool = False

    @classmethod
    def from_arrays(cls, splits, name: str = "arrays") -> RawData:
        """A data set of arrays.

        Args:
            splits: `(x_train, y_train), (x_test, y_test)`. Targets that are whole
                numbers, `(n,)`, are class ids from 0; others are real, `(n,)` or
                `(n, d_out)`.
            name: What the set is called in errors.

        Raises:
            ValueError: If the arrays are none of these or do not fit each other.
        """
        try:
            (x_train, y_train), (x_test, y_test) = (
                tuple(map(np.asarray, split)) for split in splits
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The data set {name!r} must be (x_train, y_train), (x_test, y_test), "
                f"arrays. Received: {type(splits).__name__} ({error})."
            ) from error
        shapes = [a.shape for a in (x_train, y_train, x_test, y_test)]
        if (
            x_train.shape[1:] != x_test.shape[1:]
            or y_train.shape[1:] != y_test.shape[1:]
            or len(x_train) != len(y_train)
            or len(x_test) != len(y_test)
            or 0 in (len(x_train), len(x_test))
            or y_train.ndim not in (1, 2)
        ):
            raise ValueError(
                f"The arrays of the data set {name!r} do not fit each other: expected "
                "x (n, ...) and y (n,) or (n, d_out), alike in training and test. "
                f"Received the shapes {shapes}."
            )
        if not all(np.isfinite(a).all() for a in (x_train, y_train, x_test, y_test)):
            raise ValueError(f"The data set {name!r} has NaN or infinite entries.")
        classes = y_train.ndim == 1 and all(
            np.issubdtype(y.dtype, np.integer) for y in (y_train, y_test)
        )
        if not classes:
            y_train, y_test = (
                y.reshape(len(y), -1).astype("float64") for y in (y_train, y_test)
            )
            return cls(x_train, y_train, x_test, y_test)
        labels = np.concatenate([y_train, y_test]).astype(np.int64)
        if labels.min() < 0:
            raise ValueError(
                f"The class ids of the data set {name!r} must be 0, 1, ... Received: "
                f"{labels.min()}."
            )
        return cls(
            x_train,
            labels[: len(y_train)],
            x_test,
            labels[len(y_train) :],
            class_names=tuple(str(c) for c in range(labels.max() + 1)),
        )

    def with_classes(self, chosen: np.ndarray) -> RawData:
        """Keeps the examples of some classes and numbers these 0, 1, ... in order.

        Args:
            chosen: Increasing class ids.
        """
        new_id = np.full(len(self.class_names), -1, np.int64)
        new_id[chosen] = np.arange(len(chosen))
        train, test = new_id[self.y_train], new_id[self.y_test]
        return replace(
            self,
            x_train=self.x_train[train >= 0],
            y_train=train[train >= 0],
            x_test=self.x_test[test >= 0],
            y_test=test[test >= 0],
            class_names=tuple(self.class_names[c] for c in chosen),
        )

    def with_train_size(self, size: int, seed: int) -> RawData:
        """Keeps a random subset of the training set; smaller ones are nested in it.

        Args:
            size: How many training examples to keep.
            seed: Chooses them.

        Raises:
            ValueError: If there are fewer.
        """
        available = len(self.x_train)
        if not 0 < size <= available:
            raise ValueError(
                f"train_size={size} asks for more or less than there is: expected 1 "
                f"to {available:,}, the training examples left once classes are chosen."
            )
        order = np.random.default_rng(stream(seed, "train_size")).permutation(available)
        kept = np.sort(order[:size])
        return replace(self, x_train=self.x_train[kept], y_train=self.y_train[kept])


def choose_classes(
    available: int,
    num_classes: int | None,
    classes: Iterable[int] | None,
    exclude_classes: Iterable[int] | None,
    seed: int,
) -> np.ndarray:
    """Which classes to keep, as increasing ids.

    Args:
        available: How many classes the set has.
        num_classes: How many to draw at random, or None for all that are left.
        classes: The very classes to keep, instead of a draw.
        exclude_classes: Classes never to draw.
        seed: Decides the draw.

    Raises:
        ValueError: For ids that are not there or given twice, options that contradict
            each other, or more classes asked for than there are.
    """
    if classes is not None:
        if num_classes is not None or exclude_classes is not None:
            raise ValueError(
                "`classes` names the classes itself: give it without `num_classes` "
                "and `exclude_classes`."
            )
        chosen = _check_ids("classes", classes, available)
    else:
        excluded = () if exclude_classes is None else exclude_classes
        excluded = _check_ids("exclude_classes", excluded, available)
        pool = np.setdiff1d(np.arange(available), excluded)
        count = len(pool) if num_classes is None else num_classes
        if not 0 < count <= len(pool):
            raise ValueError(
                f"num_classes={count} is not to be had: {len(pool)} of the "
                f"{available} classes are left to choose from."
            )
        # A prefix of one permutation, so that the exclusion changes only what it must.
        order = np.random.default_rng(stream(seed, "classes")).permutation(available)
        chosen = np.sort(order[np.isin(order, pool)][:count])
    if len(chosen) < 2:
        raise ValueError(
            f"A classification set needs 2 classes. Received: {len(chosen)}."
        )
    return chosen


def _check_ids(option: str, ids: Iterable[int], available: int) -> np.ndarray:
    given = list(ids)
    if not set(given) <= set(range(available)) or len(set(given)) != len(given):
        raise ValueError(
            f"{option} must hold different class ids from 0 to {available - 1}. "
            f"Received: {given}."
        )
    return np.sort(np.array(given, np.int64))


def with_label_noise(
    labels: np.ndarray, num_classes: int, rate: float, over: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric label noise on exactly `round(rate * n)` examples.

    Args:
        labels: Class ids, `(n,)`.
        num_classes: How many classes there are.
        rate: Share of the examples whose label is drawn again, 0 to 1.
        over: `"other"` draws uniformly from the wrong classes, so that every such
            label is wrong; `"all"` draws from all classes, so that about one in
            `num_classes` stays right.
        seed: Chooses the examples and their labels.

    Returns:
        The noisy labels, `(n,)`, and the mask of the examples drawn again, `(n,)`.

    Raises:
        ValueError: If `rate` or `over` is none of these.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"label_noise must be a share from 0 to 1. Received: {rate}.")
    if over not in NOISE_TARGETS:
        raise ValueError(
            f"noise_over must be one of {NOISE_TARGETS}. Received: {over!r}."
        )
    n = len(labels)
    order = np.random.default_rng(stream(seed, "noise_examples")).permutation(n)
    noisy = np.zeros(n, bool)
    noisy[order[: round(rate * n)]] = True
    draw = np.random.default_rng(stream(seed, "noise_labels"))
    if over == "other":
        # One draw per example, noisy or not: raising the rate keeps earlier ones.
        drawn = (labels + draw.integers(1, num_classes, n)) % num_classes
    else:
        drawn = draw.integers(0, num_classes, n)
    return np.where(noisy, drawn, labels), noisy


def moments(
    x: np.ndarray, standardize: str, divisor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation to standardise `x / divisor` by.

    Args:
        x: Inputs, `(n, *input_shape)`.
        standardize: `"none"` gives 0 and 1; `"scalar"` one number for everything;
            `"channel"` one for each index of the last axis; `"feature"` one for each
            entry of an input.
        divisor: What the inputs are divided by beforehand.

    Returns:
        Two float64 arrays that broadcast against an input. The standard deviation
        (population, divisor n) of what is constant is given as 1.

    Raises:
        ValueError: If `standardize` is none of these.
    """
    if standardize not in STANDARDIZATIONS:
        raise ValueError(
            f"standardize must be one of {STANDARDIZATIONS}. Received: {standardize!r}."
        )
    if standardize == "none":
        return np.zeros(()), np.ones(())
    # Axes of one input. Over the examples it is summed first: that is 4 times faster.
    axes = {
        "scalar": tuple(range(x.ndim - 1)),
        "channel": tuple(range(x.ndim - 2)),
        "feature": (),
    }[standardize]
    count = len(x) * np.prod([x.shape[1 + axis] for axis in axes])
    # Two passes in float64 over slices: exact for images (a constant pixel has a
    # deviation of exactly 0) without a float64 copy of the whole set.
    slices = np.array_split(x, max(1, x.nbytes // 2**20))
    mean = sum(s.sum(0, dtype=np.float64) for s in slices).sum(axes) / count
    square = sum(((s - mean) ** 2).sum(0) for s in slices).sum(axes)
    std = np.sqrt(square / count)
    constant = std <= 1e-12 * np.abs(mean)
    return mean / divisor, np.where(constant, 1.0, std / divisor)
