"""A loaded data set and its tf.data pipelines, resumable and deterministic."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_fa.datasets import streams
from keras_fa.datasets.augmentation import Augmentation
from keras_fa.datasets.images import Images

# Inputs up to this size are kept as they are handed out. Larger ones are kept as they
# were read, a quarter of the size for images, and made ready batch by batch.
_READY_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as `load` returns it.

    Inputs come scaled, standardised and in the chosen dtype. Classification labels are
    int64 ids of shape `(batch,)`; regression targets floats of shape `(batch, d_out)`.

    The order of epoch k of the training set is a function of the seed and k alone. If
    one batch is the whole set, it is never shuffled and is made once.

    Attributes:
        name: The name it was loaded by.
        input_shape: Shape of one input, without the batch axis.
        target_shape: Shape of one target: `()` for class ids, else `(d_out,)`.
        num_classes: Number of classes, or None for a regression set.
        class_names: Their names, or None.
        classes: Their ids in the set that they were chosen from, increasing, or None.
        num_train: Number of training examples.
        num_test: Number of test examples.
        mean: What is subtracted from the (scaled) inputs; broadcasts against one.
        std: What they are then divided by.
        batch_size: Examples a batch.
        drop_last: Whether an incomplete last training batch is left out.
        seed: The seed that all random choices were made by.
        noisy: Mask of the training examples whose label was drawn again, `(n,)`, or
            None for a regression set.
        clean_labels: The training labels before label noise, `(n,)`, or None.
        loading: How examples are read where batches are made one by one, and what that
            met: `keras_fa.datasets.streams.Loading`.
    """

    name: str
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    num_classes: int | None
    class_names: tuple[str, ...] | None
    classes: tuple[int, ...] | None
    num_train: int
    num_test: int
    mean: np.ndarray
    std: np.ndarray
    batch_size: int
    drop_last: bool
    seed: int
    noisy: np.ndarray | None
    clean_labels: np.ndarray | None
    loading: streams.Loading
    _augmentation: Augmentation | None
    _splits: dict[str, tuple[np.ndarray | Images, np.ndarray]]
    _divisor: float
    _dtype: str
    _order_key: int

    def __repr__(self) -> str:
        size = f"{self.num_train:,} + {self.num_test:,} examples"
        targets = f"{self.num_classes} classes"
        if self.num_classes is None:
            targets = f"targets {self.target_shape}"
        return (
            f"<Dataset {self.name!r}: {size} {self.input_shape}, {targets}, "
            f"batch_size={self.batch_size:,}>"
        )

    @property
    def steps_per_epoch(self) -> int:
        """Training batches an epoch."""
        full, rest = divmod(self.num_train, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    @property
    def test_steps(self) -> int:
        """Batches of the test set."""
        return 1 if self._tests_at_once else -(-self.num_test // self.batch_size)

    @property
    def _tests_at_once(self) -> bool:
        if isinstance(self._splits["test"][0], Images):
            return False
        return self._is_full_batch or self.num_test <= self.batch_size

    @functools.cached_property
    def train(self) -> tf.data.Dataset:
        """One epoch of training batches `(x, y)`, for `fit(data.train, ...)`.

        Each pass over it, as `fit` makes one an epoch, is shuffled anew: the k-th pass
        in the life of this object, from 0, has the order of epoch k. A strategy looks
        at one batch before it trains, and that counts as a pass.
        """
        passes = itertools.count()
        if self.is_streamed:
            steps = self.steps_per_epoch
            return self._streamed(
                "train",
                lambda: {"start": next(passes) * steps, "count": steps},
                steps,
            )
        if self._is_full_batch:
            return self._finish(self._whole("train"), 1)
        epochs = tf.data.Dataset.from_generator(
            lambda: iter([next(passes)]),
            output_signature=tf.TensorSpec((), tf.int64),
        )
        return self._finish(self._batches(epochs), self.steps_per_epoch)

    def train_from(
        self, epoch: int = 0, batch: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """The endless stream of training batches from the start of an epoch on.

        For `fit(data.train_from(k), initial_epoch=k,
        steps_per_epoch=data.steps_per_epoch, epochs=...)`. It goes on exactly as a
        stream started earlier does, so that an interrupted run can be resumed.

        Args:
            epoch: The epoch to start at, from 0.
            batch: How many of its batches to pass over.
            shard: `(k, n)`, of a streamed set only: the k-th of n parts of each batch.
                The parts are disjoint, and together they are the batch.

        Returns:
            Endless batches `(x, y)`. Every `steps_per_epoch` of them hold each
            training example once (with `drop_last`, at most once).

        Raises:
            ValueError: If `epoch` or `batch` is negative, or `shard` is none or not to
                be had.
        """
        for name, value in (("epoch", epoch), ("batch", batch)):
            if value < 0:
                raise ValueError(f"{name} counts from 0. Received: {value}.")
        if not 0 <= shard[0] < shard[1] or (shard[1] > 1 and not self.is_streamed):
            raise ValueError(
                "shard must be (k, n) with 0 <= k < n, and n = 1 for a set that is not "
                f"streamed. Received: {shard}."
            )
        if self.is_streamed:
            start = epoch * self.steps_per_epoch + batch
            return self._streamed("train", lambda: {"start": start, "shard": shard})
        if self._is_full_batch:
            stream = self._whole("train").repeat()
        else:
            further, batch = divmod(batch, self.steps_per_epoch)
            epochs = tf.data.Dataset.range(epoch + further, np.iinfo(np.int64).max)
            stream = self._batches(epochs, batch)
        return self._finish(stream, tf.data.INFINITE_CARDINALITY)

    def shared_out(
        self, strategy, split: str = "train", epoch: int = 0, batch: int = 0
    ):
        """A split for `fit` under a strategy, each worker of which makes its part.

        A set in memory comes as `train_from` and `test` give it: `fit` shares its
        batches out. Of a streamed one each replica is handed the same examples as that
        would give it, and no worker reads those of another: the batches, their order
        and their augmentation do not depend on the number of workers and replicas.

        Args:
            strategy: The `tf.distribute.Strategy` of the model, or anything else for a
                model on one replica.
            split: `"train"` or `"test"`.
            epoch: As for `train_from`; of the training set only.
            batch: Likewise.

        Returns:
            A `tf.data.Dataset` of `(x, y)` or, of a streamed set on several replicas,
            an endless `tf.distribute.DistributedDataset`, the test set too: give `fit`
            its `validation_steps`, which are `test_steps`.

        Raises:
            ValueError: If `split` is none, or `epoch` or `batch` is negative.
        """
        self._check_split(split)
        training = split == "train"
        whole = self.train_from(epoch, batch) if training else self.test
        streamed = isinstance(self._splits[split][0], Images)
        streamed = streamed or (training and self.is_streamed)
        if not streamed or getattr(strategy, "num_replicas_in_sync", 1) == 1:
            return whole
        start = epoch * self.steps_per_epoch + batch if training else 0

        def part(context: tf.distribute.InputContext) -> tf.data.Dataset:
            workers = context.num_input_pipelines
            here = {
                "start": start,
                "shard": (context.input_pipeline_id, workers),
                "pieces": context.num_replicas_in_sync // workers,
            }
            return self._streamed(split, lambda: here)

        return strategy.distribute_datasets_from_function(part)

    @functools.cached_property
    def test(self) -> tf.data.Dataset:
        """The test set in its order, in batches `(x, y)` of at most `batch_size`.

        If training is full-batch, then so is this.
        """
        if isinstance(self._splits["test"][0], Images):
            steps = self.test_steps
            return self._streamed("test", lambda: {"count": steps}, steps)
        if self._tests_at_once:
            return self._finish(self._whole("test"), 1)
        indices = self._in_batches(
            tf.range(self.num_test, dtype=tf.int64), self.num_test
        )
        return self._finish(self._gather("test", indices), self.test_steps)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All of a split, as the pipelines give it.

        Args:
            split: `"train"` (in the order of `noisy` and `clean_labels`) or `"test"`.

        Returns:
            Inputs `(n, *input_shape)` and labels `(n,)` or targets `(n, d_out)`.

        Raises:
            ValueError: If `split` is neither, or the set is not held in memory.
        """
        self._check_split(split)
        if isinstance(self._splits[split][0], Images):
            raise ValueError(
                f"{self.name!r} is read from the disk batch by batch: there is no "
                "array of it. Take `first(split, count)`, or raise "
                f"dataset.memory_bytes above {self._splits[split][0].nbytes:,}."
            )
        return self._ready(*self._splits[split])

    def first(self, split: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The first examples of a split, as `arrays` gives them, never augmented.

        Args:
            split: `"train"` or `"test"`.
            count: How many; None for all.
        """
        self._check_split(split)
        if count is None:
            return self.arrays(split)
        x, y = (part[:count] for part in self._splits[split])
        if isinstance(x, Images):
            x, good = x.held(self.loading.on_bad_example)
            y = y[good]
        return self._ready(x, y)

    @property
    def is_streamed(self) -> bool:
        """Whether training batches are made one by one: augmented, or from the disk."""
        return self._augmentation is not None or isinstance(
            self._splits["train"][0], Images
        )

    def _check_split(self, split: str) -> None:
        if split not in self._splits:
            raise ValueError(f"split must be 'train' or 'test'. Received: {split!r}.")

    def _ready(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = x.astype(self._dtype)
        shift, gain = self._affine
        x -= shift
        x *= gain
        return x, y.copy()

    @property
    def _is_full_batch(self) -> bool:
        return self.batch_size == self.num_train

    @property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Shift and gain that take stored inputs to the ones handed out."""
        shift = np.asarray(self.mean * self._divisor, self._dtype)
        return shift, np.asarray(1.0 / (self.std * self._divisor), self._dtype)

    def _whole(self, split: str) -> tf.data.Dataset:
        # On the CPU, where tf.data runs; from a GPU it would be copied at each step.
        with tf.device("CPU:0"):
            return tf.data.Dataset.from_tensors(self.arrays(split))

    def _streamed(
        self, split: str, place, count: int = tf.data.INFINITE_CARDINALITY
    ) -> tf.data.Dataset:
        """Batches that Grain makes; `place()` says which, at each pass over them."""
        training = split == "train"
        options = {"key": None, "shuffled": False}
        if training:
            options = {
                "key": self._order_key,
                "shuffled": not self._is_full_batch,
                "drop_last": self.drop_last,
                "augmentation": self._augmentation,
                "num_classes": self.num_classes,
            }

        def source(**more) -> streams.Batches:
            return streams.Batches(
                self._splits[split],
                self.batch_size,
                self._affine,
                self.loading.on_bad_example,
                **options,
                **more,
            )

        def batches():
            return self.loading.batches(source(**place()))

        stream = tf.data.Dataset.from_generator(
            batches, output_signature=source().signature
        )
        return self._finish(stream, count)

    def _batches(self, epochs: tf.data.Dataset, skipped: int = 0) -> tf.data.Dataset:
        """Batches of the training set, for each epoch number in turn."""

        def indices(epoch: tf.Tensor) -> tf.data.Dataset:
            order = streams.epoch_order(self._order_key, epoch, self.num_train)
            return self._in_batches(order, self.num_train, self.drop_last)

        return self._gather("train", epochs.flat_map(indices).skip(skipped))

    def _in_batches(
        self, order: tf.Tensor, size: int, drop_last: bool = False
    ) -> tf.data.Dataset:
        """Slices of an order of `size` examples: batch() would take them one by one."""
        full, rest = divmod(size, self.batch_size)
        whole = tf.reshape(order[: full * self.batch_size], (full, self.batch_size))
        batches = tf.data.Dataset.from_tensor_slices(whole)
        if rest and not drop_last:
            last = tf.data.Dataset.from_tensors(order[full * self.batch_size :])
            batches = batches.concatenate(last)
        return batches

    def _gather(self, split: str, indices: tf.data.Dataset) -> tf.data.Dataset:
        """Whole batches by their indices."""
        inputs, targets = self._splits[split]
        ready = inputs.size * np.dtype(self._dtype).itemsize <= _READY_BYTES
        if ready:
            inputs, targets = self.arrays(split)
        with tf.device("CPU:0"):
            inputs, targets = tf.constant(inputs), tf.constant(targets)
            shift, gain = (tf.constant(a) for a in self._affine)

        def batch(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            x = tf.gather(inputs, index)
            if not ready:
                x = (tf.cast(x, self._dtype) - shift) * gain
            return x, tf.gather(targets, index)

        return indices.map(
            batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).prefetch(2)

    def _finish(self, batches: tf.data.Dataset, steps: int) -> tf.data.Dataset:
        options = tf.data.Options()
        # Several workers each make every batch and keep their share: there are no files
        # to divide, and all workers agree on the order.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        # An iterator with it often takes as long again to end as it has lived: it waits
        # for its tuning thread, which sleeps twice as long each time, up to a minute.
        options.autotune.enabled = False
        return batches.apply(
            tf.data.experimental.assert_cardinality(steps)
        ).with_options(options)
