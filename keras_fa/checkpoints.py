"""Checkpoints from which a killed run goes on bit for bit."""

import glob
import json
import logging
import os

import tensorflow as tf

_LOG = logging.getLogger("keras_fa")


class CheckpointError(RuntimeError):
    """Checkpoints are there and none of them can be read."""


class Checkpoints:
    """Saves and restores everything that the rest of a run depends on.

    That is every variable of the model (BatchNorm statistics and the states of random
    generators included) and of the optimizer, the epoch, and the state of callbacks. A
    save is one `tf.train.Checkpoint`: written whole or not at all, with a checksum for
    each tensor. Keras's own `BackupAndRestore` and its `.keras` files give neither.

    Args:
        folder: Where the checkpoints go.
        model: A built and compiled Keras model whose optimizer is built.
        callbacks: Callbacks whose state belongs to the run: objects with `get_state()`,
            which returns something that JSON can hold, and `set_state(state)`.
        keep: How many checkpoints to keep. The one before the newest is there for the
            case that the newest is damaged.
    """

    def __init__(self, folder, model, callbacks=(), keep=2):
        self._folder = os.fspath(folder)
        self._callbacks = list(callbacks)
        self._extra = _JsonState(self._get_state, self._set_state)
        self._epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Variables are listed one by one: Keras does not track the states of its seed
        # generators where tf.train.Checkpoint would find them through the model.
        self._checkpoint = tf.train.Checkpoint(
            model=[_tensorflow_variable(v) for v in model.variables],
            optimizer=[_tensorflow_variable(v) for v in model.optimizer.variables],
            epoch=self._epoch,
            callbacks=self._extra,
        )
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, self._folder, max_to_keep=keep, checkpoint_name="epoch"
        )

    def save(self, epoch):
        """Saves the state after an epoch.

        Raises:
            OSError: If it cannot be written. Older checkpoints are untouched.
        """
        self._epoch.assign(epoch)
        try:
            self._manager.save(checkpoint_number=epoch)
        except tf.errors.OpError as error:
            raise OSError(
                f"Could not save a checkpoint in {self._folder} (is the disk full?): "
                f"{error.message} The checkpoints before it are intact; make room and "
                "start the same command again."
            ) from error

    def restore(self):
        """Restores the newest checkpoint that can be read, and says if it was not it.

        Returns:
            The epoch after which it was saved; 0 if there is no checkpoint.

        Raises:
            CheckpointError: If there are checkpoints and none can be read.
        """
        paths = self._paths()
        for path in paths:
            try:
                status = self._checkpoint.restore(path)
                status.assert_existing_objects_matched()
                return int(self._epoch.numpy())
            except (tf.errors.OpError, ValueError, AssertionError) as error:
                reason = str(error).splitlines()[0]
                _LOG.warning("Checkpoint %s cannot be read: %s", path, reason)
        if paths:
            raise CheckpointError(
                f"None of the checkpoints in {self._folder} can be read: "
                f"{', '.join(os.path.basename(p) for p in paths)}. Remove the run "
                "folder to start the run anew."
            )
        return 0

    def _paths(self):
        """Checkpoints, newest first; found on disk even if their index file is lost."""
        found = glob.glob(os.path.join(glob.escape(self._folder), "epoch-*.index"))
        paths = [path.removesuffix(".index") for path in found]
        return sorted(paths, key=lambda p: int(p.rsplit("-", 1)[1]), reverse=True)

    def _get_state(self):
        return [callback.get_state() for callback in self._callbacks]

    def _set_state(self, states):
        for callback, state in zip(self._callbacks, states, strict=True):
            callback.set_state(state)


class _JsonState(tf.train.experimental.PythonState):
    """Python values that travel inside a checkpoint, as JSON."""

    def __init__(self, get, put):
        super().__init__()
        self._get, self._put = get, put

    def serialize(self):
        return json.dumps(self._get())

    def deserialize(self, string_value):
        self._put(json.loads(string_value))


def _tensorflow_variable(variable):
    return getattr(variable, "value", variable)
