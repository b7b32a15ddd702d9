"""Checkpoints from which a killed run goes on bit for bit."""

import json
import logging
import os
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf

_LOG = logging.getLogger("keras_fa")


class CheckpointError(RuntimeError):
    """Checkpoints are there and none of them can be read."""


class Checkpoints:
    """Saves and restores everything that the rest of a run depends on.

    That is every variable of the model (BatchNorm statistics and the states of random
    generators included) and of the optimizer, the epoch, and the state of callbacks. A
    save is one `tf.train.Checkpoint`, on JAX one NumPy file, which have a checksum for
    each tensor, written under another name, brought to the disk and then renamed, its
    index file last: it is there whole or not at all. Keras's own `BackupAndRestore` and
    its `.keras` files give neither, and `tf.train.CheckpointManager` cannot start when
    the small file in which it keeps count is damaged.

    Args:
        folder: Where the checkpoints go.
        model: A built and compiled Keras model whose optimizer is built.
        callbacks: Callbacks whose state belongs to the run: objects with `get_state()`,
            which returns something that JSON can hold, and `set_state(state)`. Their
            classes' names and their `prefix` tell them apart, and the order those that
            have both in common. None: only model and optimizer are restored.
        run: What tells whether a checkpoint is of this run, the same way: its
            `set_state` refuses another's by raising.
        keep: How many checkpoints to keep. The one before the newest is there for the
            case that the newest is damaged.
    """

    def __init__(self, folder, model, callbacks=(), keep=2, run=None):
        self._folder = pathlib.Path(folder)
        self._keep = keep
        self._run = run
        self._callbacks = {}
        for callback in callbacks or ():
            prefix = getattr(callback, "prefix", "")
            name, count = f"{type(callback).__name__} {prefix}".strip(), 1
            while (key := f"{name} {count}" if count > 1 else name) in self._callbacks:
                count += 1
            self._callbacks[key] = callback
        kind = _Tensors if keras.backend.backend() == "tensorflow" else _Arrays
        # Variables are listed one by one: Keras does not track the states of its seed
        # generators where tf.train.Checkpoint would find them through the model.
        self._files = kind(
            {"model": model.variables, "optimizer": model.optimizer.variables},
            (self._get_state, self._set_state) if callbacks is not None else None,
        )

    def save(self, epoch, batch=0):
        """Saves the state after an epoch, and so many batches after it.

        Raises:
            OSError: If it cannot be written. Older checkpoints are untouched.
        """
        try:
            unfinished = self._folder / "unfinished"
            # What a kill left behind.
            shutil.rmtree(unfinished, ignore_errors=True)
            # The run folder itself is not made: it may have been taken away.
            self._folder.mkdir(exist_ok=True)
            unfinished.mkdir()
            name = f"epoch-{epoch}-batch-{batch}" if batch else f"epoch-{epoch}"
            self._files.write(unfinished / name, epoch)
            # "data" comes before "index", which alone makes the rest count.
            for path in sorted(unfinished.iterdir()):
                _sync(path)
                path.rename(self._folder / path.name)
            unfinished.rmdir()
            _sync(self._folder)
        except (OSError, tf.errors.OpError) as error:
            raise OSError(
                f"Could not save a checkpoint in {self._folder} (is the disk full?): "
                f"{error} The checkpoints before it are intact; make room and start "
                "the same command again."
            ) from error
        for path in self._indices()[self._keep :]:
            path.unlink()
            for suffix in self._files.further:
                path.with_suffix(suffix).unlink(missing_ok=True)

    def restore(self):
        """Restores the newest checkpoint that can be read, and says if it was not it.

        Returns:
            The last whole epoch before it was saved; 0 if there is no checkpoint. How
            many batches came after it a callback's state says.

        Raises:
            CheckpointError: If there are checkpoints and none can be read. The message
                says of each what is wrong with it.
        """
        reasons = []
        for path in self._indices():
            try:
                return self._files.read(path.with_suffix(""))
            # What a damaged file makes TensorFlow raise is no fixed list.
            except Exception as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                reasons.append(f"{path.stem}: {lines[0]}")
                _LOG.warning(
                    "Checkpoint %s cannot be read: %s. The one before it is tried.",
                    path.stem,
                    lines[0],
                )
        if reasons:
            raise CheckpointError(
                f"None of the checkpoints in {self._folder} can be read:\n  "
                + "\n  ".join(reasons)
                + f"\nPut back a copy of them, or remove {self._folder.parent} to "
                "start the run anew."
            )
        return 0

    def _indices(self):
        """The files that make the checkpoints count, newest first."""
        found = self._folder.glob(f"epoch-*{self._files.index}")
        return sorted(found, key=_place, reverse=True)

    def _get_state(self):
        return {
            "run": self._run.get_state() if self._run else None,
            "callbacks": {n: c.get_state() for n, c in self._callbacks.items()},
        }

    def _set_state(self, state):
        if isinstance(state, list):
            # Of an earlier version of the toolkit, which told them by their order.
            state = {"callbacks": dict(zip(self._callbacks, state, strict=True))}
        if self._run and state.get("run"):
            self._run.set_state(state["run"])
        if state["callbacks"].keys() != self._callbacks.keys():
            raise ValueError(
                "It has the states of the callbacks "
                f"{', '.join(state['callbacks']) or 'none'}, and this run has "
                f"{', '.join(self._callbacks) or 'none'}: give those that it began with"
            )
        for name, callback in self._callbacks.items():
            callback.set_state(state["callbacks"][name])


class _Tensors:
    """The files of a `tf.train.Checkpoint`.

    Args:
        variables: `{name: list of Keras variables}`.
        state: Functions that get and set what JSON can hold, or None.
    """

    index, further = ".index", (".data-00000-of-00001",)

    def __init__(self, variables, state):
        self._epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        parts = {name: [v.value for v in some] for name, some in variables.items()}
        if state is not None:
            parts["callbacks"] = _JsonState(*state)
        self._checkpoint = tf.train.Checkpoint(**parts, epoch=self._epoch)

    def write(self, path, epoch):
        self._epoch.assign(epoch)
        self._checkpoint.write(str(path))

    def read(self, path):
        status = self._checkpoint.read(str(path))
        status.assert_existing_objects_matched()
        # Without callbacks their state stays unread, of which TensorFlow would warn.
        status.expect_partial()
        return int(self._epoch.numpy())


class _Arrays:
    """One file of NumPy arrays, for backends of which TensorFlow saves nothing.

    It is a zip archive, which has a CRC-32 of each array.

    Args:
        variables: As for `_Tensors`.
        state: Likewise.
    """

    index, further = ".npz", ()

    def __init__(self, variables, state):
        self._variables = {
            f"{name}/{number}": variable
            for name, some in variables.items()
            for number, variable in enumerate(some)
        }
        self._state = state

    def write(self, path, epoch):
        arrays = {key: np.asarray(v.value) for key, v in self._variables.items()}
        if self._state is not None:
            text = json.dumps(self._state[0]()).encode()
            arrays["callbacks"] = np.frombuffer(text, np.uint8)
        np.savez(path.with_suffix(self.index), **arrays, epoch=epoch)

    def read(self, path):
        # All of it, and all checksums with it, before anything is changed.
        with open(path.with_suffix(self.index), "rb") as opened:
            file = np.load(opened, allow_pickle=False)
            found = {name: file[name] for name in file.files}
        values = {}
        for key, variable in self._variables.items():
            value = found.get(key)
            dtype = np.asarray(variable.value).dtype
            if value is not None and value.dtype.kind == "V":
                # NumPy's files do not know bfloat16.
                value = value.view(dtype)
            if value is None or (value.shape, value.dtype) != (variable.shape, dtype):
                has = "nothing" if value is None else f"{value.dtype} {value.shape}"
                raise ValueError(
                    f"For {variable.path} it has {has}, not {dtype} {variable.shape}"
                )
            values[key] = value
        if self._state is not None:
            self._state[1](json.loads(found["callbacks"].tobytes()))
        for key, value in values.items():
            self._variables[key].assign(value)
        return int(found["epoch"])


class _JsonState(tf.train.experimental.PythonState):
    """Python values that travel inside a checkpoint, as JSON."""

    def __init__(self, get, put):
        super().__init__()
        self._get, self._put = get, put

    def serialize(self):
        return json.dumps(self._get())

    def deserialize(self, string_value):
        self._put(json.loads(string_value))


def _place(path):
    """Epoch and batch in a checkpoint's name, `epoch-E` or `epoch-E-batch-B`."""
    _, epoch, *batch = path.stem.split("-")
    return int(epoch), int(batch[1]) if batch else 0


def _sync(path):
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
