"""Batches made one by one, ahead of training, by threads and processes of Grain."""

from __future__ import annotations

import functools
import logging
import os
import time
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from keras_fa._extras import extra
from keras_fa.datasets.images import BadExample, Images

_LOG = logging.getLogger("keras_fa")
_ENDLESS = 2**62


def epoch_order(key, epoch, size):
    """The order of the training set in an epoch, an int64 tensor `(size,)`."""
    return tf.random.experimental.stateless_shuffle(
        tf.range(size, dtype=tf.int64),
        seed=tf.stack([tf.constant(key, tf.int64), tf.cast(epoch, tf.int64)]),
        alg="philox",
    )


@functools.lru_cache(maxsize=4)
def _order(key, epoch, size):
    with tf.device("CPU:0"):
        return epoch_order(key, epoch, size).numpy()


@dataclass
class Loading:
    """How examples are read.

    Attributes:
        threads: Threads that make batches, in each process.
        workers: Processes beside this one; 0: none.
        on_bad_example: "stop", or "skip": in training the next example that can be
            read takes the place of one that cannot, in testing it is left out.
        waited: Seconds that training has waited for batches.
        bad: Indices of the training examples that could not be read.
        error: What ended a stream.
    """

    threads: int | None = None
    workers: int = 0
    on_bad_example: str = "stop"
    waited: float = 0.0
    bad: set = field(default_factory=set)
    error: Exception | None = None

    def batches(self, source):
        """The batches of a source `Batches`, in order, made ahead."""
        with extra("streaming"):
            import grain
            from absl import flags

        threads = self.threads or len(os.sched_getaffinity(0))
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=threads + 2
        )
        stream = grain.MapDataset.source(source).to_iter_dataset(options)
        if self.workers:
            if not flags.FLAGS.is_parsed():
                # Grain asks for a flag of its own, in programs without flags too.
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.workers, per_worker_buffer_size=2
                )
            )
        batches = iter(stream)
        try:
            while True:
                start = time.perf_counter()
                try:
                    batch, bad = next(batches)
                except StopIteration:
                    return
                except Exception as error:
                    self.error = error
                    raise
                self.waited += time.perf_counter() - start
                for index, text in bad:
                    if index not in self.bad:
                        self.bad.add(index)
                        _LOG.warning("Left out: %s", text)
                yield batch
        finally:
            if hasattr(batches, "close"):
                batches.close()


class Batches:
    """The batches of a split by their numbers, as Grain reads a source.

    Args:
        split: Inputs, an array or `Images`, and targets.
        size: Examples a batch.
        affine: Shift and gain of the inputs, as arrays of their final dtype.
        on_bad_example: See `Loading`.
        key: Of the order of the epochs; None: in the order of the set, once.
        drop_last: Whether an incomplete last batch of an epoch is left out.
        start: The number of the first batch, counted over the epochs.
        count: How many batches; None: without end.
        augmentation: An `Augmentation`, or None.
        num_classes: Length of the targets that mixup makes.
        shard: `(k, n)`: the k-th of n parts of each batch.
        pieces: In how many pieces, one after the other, a part is handed out: one for
            each replica of a worker. Piece i of all has the examples i * ceil(size /
            number of pieces) and on, as a strategy shares a batch out.
        shuffled: Whether the epochs are shuffled.
    """

    def __init__(
        self,
        split,
        size,
        affine,
        on_bad_example="stop",
        key=None,
        drop_last=False,
        start=0,
        count=None,
        augmentation=None,
        num_classes=None,
        shard=(0, 1),
        pieces=1,
        shuffled=True,
    ):
        self._x, self._y = split
        self._size, self._affine, self._key = size, affine, key
        self._on_bad_example = on_bad_example
        full, rest = divmod(len(self._x), size)
        self._steps = full + bool(rest and not drop_last)
        self._start = start
        self._count = _ENDLESS if count is None else count * pieces
        self._augmentation, self._num_classes = augmentation, num_classes
        part, parts = shard
        self._pieces, self._first, self._in_all = pieces, part * pieces, parts * pieces
        self._shuffled = shuffled

    def __len__(self):
        return self._count

    def __getitem__(self, number):
        """`((x, y), bad)`: a batch, and index and error of what could not be read."""
        number, piece = divmod(int(number), self._pieces)
        epoch, batch = divmod(self._start + number, self._steps)
        begin = batch * self._size
        end = min(begin + self._size, len(self._x))
        share = -(-(end - begin) // self._in_all)
        begin += (self._first + piece) * share
        end = min(begin + share, end)
        if self._shuffled and self._key is not None:
            indices = _order(self._key, epoch, len(self._x))[begin:end]
        else:
            indices = np.arange(begin, max(begin, end))
        shift, gain = self._affine
        shape = self._x.shape[1:]
        x = np.empty((len(indices), *shape), gain.dtype)
        ys, bad, filled = [], [], 0
        for index in indices.tolist():
            image, y = self._example(epoch, index, bad)
            if image is not None:
                x[filled] = image
                ys.append(y)
                filled += 1
        x = x[:filled]
        x -= shift
        x *= gain
        y = np.array(ys, self._target_dtype).reshape(filled, *self._target_shape)
        return (x, y), bad

    def _example(self, epoch, index, bad):
        for offset in range(len(self._x)):
            at = (index + offset) % len(self._x)
            try:
                if self._augmentation is None:
                    return self._read(at), self._y[at]
                image, other, weight = self._augmentation(self._read, epoch, at)
                return image, self._target(at, other, weight)
            except BadExample as error:
                if self._on_bad_example == "stop":
                    raise
                bad.append((at, str(error)))
                if self._key is None:
                    return None, None
        raise BadExample(f"No example can be read. The last: {bad[-1][1]}")

    def _read(self, index):
        if not isinstance(self._x, Images):
            return self._x[index]
        augmentation = self._augmentation
        if augmentation is not None and augmentation.takes_whole_images:
            return self._x.decode(index)
        return self._x.fitted(index)

    @property
    def _mixes(self):
        return self._augmentation is not None and self._augmentation.alpha is not None

    @property
    def _target_shape(self):
        return (self._num_classes,) if self._mixes else self._y.shape[1:]

    @property
    def _target_dtype(self):
        return np.dtype("float32") if self._mixes else self._y.dtype

    def _target(self, index, other, weight):
        if not self._mixes:
            return self._y[index]
        target = np.zeros(self._num_classes, np.float32)
        target[self._y[index]] += weight
        target[self._y[other]] += 1 - weight
        return target

    @property
    def signature(self):
        """The `tf.TensorSpec` of inputs and targets."""
        dtype = self._affine[1].dtype
        return (
            tf.TensorSpec((None, *self._x.shape[1:]), dtype),
            tf.TensorSpec((None, *self._target_shape), self._target_dtype),
        )
