"""Strategies: where a model's replicas live, and what Keras needs to train them right.

`MultiWorkerMirroredStrategy` does not run under Keras 3.15 as it comes (keras issue
20585); `prepare` mends that. It also weighs a partial batch right, which Keras does
not: the mean over replicas of their means is not the mean over the examples where the
replicas have different numbers of them.

On JAX a model is one replica, whose batches are laid out on the devices.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
import warnings

import keras
import tensorflow as tf
from keras import tree

from keras_fa import _cluster, _keras
from keras_fa._cluster import ClusterError, read_cluster, slurm_tasks

__all__ = [
    "NAMES",
    "ClusterError",
    "JaxDevices",
    "WorkerLostError",
    "check_agreement",
    "check_shared",
    "get_strategy",
    "lost_workers_explained",
    "of_the_chief",
    "prepare",
    "read_cluster",
    "set_logical_devices",
    "slurm_tasks",
    "trained_in",
]

NAMES = ("default", "mirrored", "multi_worker")
"""The names of the strategies."""

_ON_JAX = keras.backend.backend() == "jax"

# The versions of Keras that `prepare` was tested on.
_TESTED = ("3.15",)

# A worker that stops is noticed within about 20 seconds: a look every 5, and three
# attempts of 5. TensorFlow's own numbers make it a minute.
_HEALTH_INTERVAL, _HEALTH_TIMEOUT = 5, 5


class WorkerLostError(RuntimeError):
    """Another worker stopped, so that this one cannot go on."""


# TensorFlow fails on a second mirrored strategy in a process.
_made = {}


def get_strategy(name):
    """The `tf.distribute` strategy with a name; on JAX, `JaxDevices`.

    To be called before anything is computed. Asked again, it gives the same object:
    TensorFlow fails on a second mirrored strategy in a process.

    Args:
        name: "default" for one device; "mirrored" for a `MirroredStrategy` over all
            GPUs, or over all logical CPU devices where there is no GPU;
            "multi_worker" for a `MultiWorkerMirroredStrategy` over the workers that the
            environment variable `TF_CONFIG` names. It waits for all of them, and says
            for which. They listen on all interfaces of their machines.

    Returns:
        A `tf.distribute.Strategy`, or `JaxDevices`. Both have a `scope()`, to make a
        model in, and JAX to train it in too.

    Raises:
        ValueError: If the name is unknown, or not one of JAX's: "default" and
            "mirrored", which lays each batch out on all devices.
        ClusterError: If `TF_CONFIG` is missing or wrong, or this worker's port is in
            use, under "multi_worker".
    """
    if name not in NAMES:
        raise ValueError(f"Unknown strategy: {name!r}. Known: {', '.join(NAMES)}.")
    if _ON_JAX:
        if name == "multi_worker":
            raise ValueError(
                "The strategy multi_worker is TensorFlow's, and this process computes "
                "with JAX. Use KERAS_BACKEND=tensorflow, or the strategy mirrored on "
                "the devices of one machine."
            )
        return JaxDevices(name == "mirrored")
    if name == "default":
        return tf.distribute.get_strategy()
    if name not in _made:
        _made[name] = _mirrored() if name == "mirrored" else _multi_worker()
    return _made[name]


class JaxDevices:
    """Where JAX computes: on one device, or on all, among which batches are shared out.

    The second is `keras.distribution.DataParallel`: each device has all variables, and
    one program computes the whole batch. So means are those over the batch, BatchNorm
    normalises with the statistics of all of it, and nothing has to be prepared.

    Args:
        all_devices: Whether on all.
    """

    def __init__(self, all_devices):
        self._layout = keras.distribution.DataParallel() if all_devices else None

    @property
    def devices(self):
        """How many share a batch."""
        return self._layout.num_model_replicas if self._layout else 1

    def scope(self):
        """A context in which models are made and trained there."""
        return self._layout.scope() if self._layout else contextlib.nullcontext()

    def check_batches(self, sizes):
        """Refuses batches that cannot be shared out evenly.

        Args:
            sizes: The numbers of examples of the batches.

        Raises:
            ValueError: If one is no multiple of the number of devices.
        """
        for size in sizes:
            if size % self.devices:
                raise ValueError(
                    f"JAX shares a batch out evenly among its {self.devices} devices, "
                    f"and one has {size} examples. Choose a config.batch_size that is "
                    f"a multiple of {self.devices}, with config.drop_last if the last "
                    "batch is smaller."
                )


def trained_in(strategy):
    """The context in which models are trained: JAX's scope, which TensorFlow enters."""
    on_jax = isinstance(strategy, JaxDevices)
    return strategy.scope() if on_jax else contextlib.nullcontext()


def _mirrored():
    devices = tf.config.list_logical_devices("GPU")
    devices = devices or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _multi_worker():
    _cluster.meet(*read_cluster())
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    _keras.set_health_check(strategy, _HEALTH_INTERVAL, _HEALTH_TIMEOUT)
    return strategy


def set_logical_devices(count):
    """Makes several devices of the CPU, to try a mirrored strategy out.

    Args:
        count: How many.

    Raises:
        RuntimeError: If TensorFlow, or JAX, has computed something already.
    """
    if _ON_JAX:
        import jax

        return jax.config.update("jax_num_cpu_devices", count)
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(cpu, devices)


def check_agreement(strategy, facts):
    """Makes sure that all workers are about to do the same.

    To be called on all workers, as often on each.

    Args:
        strategy: The strategy of the model; for others than of several workers nothing
            happens.
        facts: What this worker goes by, a nested dict that JSON can hold.

    Raises:
        RuntimeError: On every worker, if they differ. The message names each fact that
            does, and what each worker has.
    """
    if not _keras.is_multi_worker(strategy):
        return
    text = json.dumps(facts, sort_keys=True, default=str)
    everyones = [_flat(json.loads(t)) for t in _of_all_replicas(strategy, text)]
    differ = []
    for key in sorted(set().union(*everyones)):
        values = [json.dumps(f[key]) if key in f else "nothing" for f in everyones]
        if len(set(values)) > 1:
            each = [f"{value} on worker {i}" for i, value in enumerate(values)]
            differ.append(f"{key}: {', '.join(each)}")
    if differ:
        raise RuntimeError(
            "The workers would not train the same network on the same data:\n  "
            + "\n  ".join(differ[:10])
            + "\nGive all of them the same command, and the same --workdir on a file "
            "system that they share."
        )


def of_the_chief(strategy, text):
    """What the chief says, on all workers.

    To be called on all workers, as often on each.

    Args:
        strategy: The strategy of the model.
        text: What this worker would say.

    Returns:
        The text of worker 0; for others than strategies of several workers its own.
    """
    if not _keras.is_multi_worker(strategy):
        return text
    own = json.dumps([read_cluster()[1], text])
    return min(map(json.loads, _of_all_replicas(strategy, own)))[1]


# Seconds in which a shared file system shows on one machine what another has written.
_SHOWN = 10


def check_shared(strategy, folder):
    """Makes sure that a folder is one and the same for all workers.

    To be called on all workers, before they compute anything that goes there. The chief
    writes an empty file into it for as long as the call takes.

    Args:
        strategy: The strategy of the model; for others than of several workers nothing
            happens.
        folder: Its path. The chief must have made it.

    Raises:
        RuntimeError: On every worker, if one does not see what the chief wrote. The
            message names it, its machine and its folder.
    """
    if not _keras.is_multi_worker(strategy):
        return
    folder, (_, index) = pathlib.Path(folder).absolute(), read_cluster()
    own = f".seen.{uuid.uuid4().hex}" if index == 0 else ""
    try:
        if own:
            (folder / own).touch()
        # Nobody looks before the chief has written: it takes part in this too.
        mark = next(name for name in _of_all_replicas(strategy, own) if name)
        own_view = [index, f"{socket.gethostname()}:{folder}", _appears(folder / mark)]
        views = _of_all_replicas(strategy, json.dumps(own_view))
    finally:
        if own:
            (folder / own).unlink(missing_ok=True)
    views = {index: (place, sees) for index, place, sees in map(json.loads, views)}
    blind = [f"{i} ({place})" for i, (place, sees) in views.items() if not sees]
    if blind:
        raise RuntimeError(
            f"The workers do not share the run folder. Expected that all see what "
            f"worker 0 writes in {views[0][0]}; not so worker {', '.join(blind)}. Give "
            "all of them the same --workdir, on a file system that they share."
        )


def _appears(path):
    """Whether a file is there, within the time that file systems take to show it."""
    deadline = time.monotonic() + _SHOWN
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        # A client of NFS asks the server again when a folder is opened.
        with contextlib.suppress(OSError):
            os.listdir(path.parent.parent)
            os.listdir(path.parent)
    return True


def _flat(facts, prefix=""):
    flat = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _of_all_replicas(strategy, text):
    """The texts of all replicas, in their order."""
    replicas = strategy.num_replicas_in_sync

    @tf.function(reduce_retracing=True)
    def rows(values):
        def row(values):
            context = tf.distribute.get_replica_context()
            place = tf.one_hot(context.replica_id_in_sync_group, replicas)
            return context.all_reduce("SUM", place[:, None] * values)

        return strategy.experimental_local_results(strategy.run(row, args=(values,)))[0]

    # Collectives take numbers alone, of one shape on all workers.
    codes = list(text.encode())
    sizes = rows(tf.constant([len(codes)], tf.float32)).numpy()[:, 0].astype(int)
    codes += [0] * (max(sizes) - len(codes))
    everyones = rows(tf.constant(codes, tf.float32)).numpy().astype("uint8")
    return [
        codes[:size].tobytes().decode()
        for codes, size in zip(everyones, sizes, strict=True)
    ]


@contextlib.contextmanager
def lost_workers_explained(name):
    """Turns what TensorFlow raises when another worker stops into `WorkerLostError`.

    Args:
        name: The name of the strategy; for others than "multi_worker" nothing changes.
    """
    try:
        yield
    except _LOST as error:
        if name != "multi_worker":
            raise
        reason = str(error).splitlines()[0]
        raise WorkerLostError(
            f"Another worker stopped, or cannot be reached any more ({reason}). Start "
            "the same command on all workers again: they go on after the last "
            "checkpoint."
        ) from error


_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


def prepare(model):
    """Makes a compiled model train, evaluate and predict right under its strategy.

    For a model on one replica nothing changes. On several,

    - a batch that is shared out unevenly counts each example once: each loss of
      `compile` by itself, whose mean over n of N examples counts n / N (masked ones and
      `mean_with_sample_weight` by their weights), and whose sum counts as it is;
    - the loss that is logged is that of the whole batch;
    - a replica that gets no example of a last, small batch adds nothing: alone, Keras's
      BatchNorm would divide by zero there and fill the weights with NaN;
    - BatchNorm normalises with the statistics of each replica's own part of the batch,
      as Keras's does, but the moving statistics, which Keras lets drift apart, are
      those of all replicas after every step: their mean, weighed by examples;
    - metrics and loss are built from one replica's part of a batch: Keras 3.15 takes
      the mean of all parts, and fails where their sizes differ, and on several workers
      always (keras issue 20585);
    - on several workers logs are reduced as the scalars that they are, which Keras also
      fails to do.

    Args:
        model: A compiled Keras model, made in the strategy's scope.

    Returns:
        The model.

    Raises:
        ValueError: If the model is not compiled, or what it adds up over replicas is
            unknown: a train_step or compute_loss of its own, an activity regularizer,
            and in training `add_loss` and losses that return one number for a batch.
    """
    if not getattr(model, "compiled", False):
        raise ValueError(
            "prepare() needs a compiled model: call model.compile() first."
        )
    if _keras.replicas_of(model) == 1 or hasattr(model, "_keras_fa_prepared"):
        return model
    strategy = model.distribute_strategy
    if not keras.__version__.startswith(_TESTED):
        warnings.warn(
            f"keras_fa.distribution.prepare was tested on Keras {', '.join(_TESTED)}, "
            f"this is {keras.__version__}: compare a run on several workers with one "
            "on a single device before you trust it.",
            stacklevel=2,
        )
    _refuse_what_is_unknown(model)
    model._keras_fa_prepared = True
    _weigh_by_examples(model, strategy)
    _build_from_one_replica(model, strategy)
    if _keras.is_multi_worker(strategy):
        _keras.replace_log_reduction(_reduce_per_replica)
    return model


def _refuse_what_is_unknown(model):
    for method in ("train_step", "compute_loss"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            raise ValueError(
                f"'{model.name}' has a {method} of its own, of which prepare() cannot "
                "tell how its losses add up over replicas. Express it as losses, "
                "loss_weights and sample weights, or train on one replica."
            )
    for layer in _keras.layers_of(model):
        if getattr(layer, "activity_regularizer", None) is not None:
            _refuse_added_losses(f"'{layer.name}' has an activity regularizer")


def _refuse_added_losses(what):
    raise ValueError(
        f"{what}: of what it adds to the loss of a replica's part of the batch nobody "
        "can tell whether it is a sum over the examples or a mean. Make it one of the "
        "losses given to compile(), or train on one replica."
    )


def _weigh_by_examples(model, strategy):
    """Lets each replica count by its share of the examples of the batch."""
    train_step = model.train_step
    # Each replica of this process is traced in a thread of its own.
    replica = threading.local()

    def weighed_train_step(data):
        norms = [layer for layer in _keras.layers_of(model) if _is_local_norm(layer)]
        if not norms:
            return train_step(data)
        context = tf.distribute.get_replica_context()
        size = tf.shape(tree.flatten(data)[0])[0]
        replica.here = here = size > 0
        examples = tf.cast(size, tf.float32)
        share = examples / context.all_reduce("SUM", examples)
        # A replica without examples computes on a row of zeros, and forgets it.
        before = [tf.identity(variable) for variable in model.metrics_variables]
        try:
            logs = train_step(tree.map_structure(_at_least_one_row, data))
        finally:
            del replica.here
        for variable, value in zip(model.metrics_variables, before, strict=True):
            variable.assign(tf.where(here, variable, value))
        _share_moving_statistics(norms, context, share)
        return logs

    def shared_loss(keras_loss):
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return keras_loss()
        if _keras.added_losses(model):
            _refuse_added_losses(f"'{model.name}' uses add_loss")
        if not _keras.losses_are_built(model):
            keras_loss()
        _keras.wrap_losses(model, lambda loss: _SharedLoss(loss, replica))
        loss = keras_loss()
        # Keras logs the loss of each replica, times their number, by its examples.
        total = context.all_reduce("SUM", loss) / strategy.num_replicas_in_sync
        return loss + tf.stop_gradient(total - loss)

    model.train_step = weighed_train_step
    _keras.replace_compute_loss(model, shared_loss)


class _SharedLoss:
    """A Keras loss of a replica's examples, as its part of the loss of the batch.

    The parts of all replicas add up: a mean of n of N entries counts n / N.
    """

    def __init__(self, loss, replica):
        self.name, self._loss, self._replica = loss.name, loss, replica

    def __call__(self, y_true, y_pred, sample_weight=None):
        loss = self._loss(y_true, y_pred, sample_weight)
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return loss
        # A row of zeros in the place of no examples does not count.
        here = tf.cast(getattr(self._replica, "here", True), loss.dtype)
        if self._loss.reduction in ("sum", "none", None):
            return loss * here
        entries = self._entries(y_true, y_pred, sample_weight, loss.dtype) * here
        share = tf.math.divide_no_nan(entries, context.all_reduce("SUM", entries))
        return loss * share * context.num_replicas_in_sync

    def _entries(self, y_true, y_pred, sample_weight, dtype):
        """What the mean of these examples was divided by, up to a constant."""
        values = self._loss.call(
            *(
                tree.map_structure(lambda y: tf.cast(y, self._loss.dtype), side)
                for side in (y_true, y_pred)
            )
        )
        if not values.shape.rank:
            raise ValueError(
                f"The loss '{self.name}' returns one number for the examples of a "
                "replica, and it is unknown how such numbers add up. Return one for "
                "each example, and let Keras take the mean or sum."
            )
        mask = _keras.mask_of(y_pred)
        weigh = self._loss.reduction == "mean_with_sample_weight"
        if mask is None and not (weigh and sample_weight is not None):
            return tf.cast(tf.shape(values)[0], dtype)
        if mask is None:
            return tf.cast(tf.reduce_sum(sample_weight), dtype)
        mask = tf.cast(mask, dtype)
        if weigh and sample_weight is not None:
            weights = tf.cast(sample_weight, dtype)
            mask, weights = _keras.of_one_rank(mask, weights)
            mask = mask * weights
        return tf.reduce_sum(mask)


def _is_local_norm(layer):
    norm = isinstance(layer, keras.layers.BatchNormalization)
    return norm and layer.trainable and not layer.synchronized


def _at_least_one_row(value):
    if value is None:
        return None
    size = tf.shape(value)[0]
    rows = [[0, tf.maximum(size, 1) - size]]
    return tf.pad(value, rows + [[0, 0]] * (len(value.shape) - 1))


def _share_moving_statistics(norms, context, share):
    variables = [
        variable
        for layer in norms
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    # As one vector: one round of messages, however many layers there are.
    own = tf.concat([tf.reshape(variable, [-1]) for variable in variables], 0)
    shared = context.all_reduce("SUM", own * tf.cast(share, own.dtype))
    sizes = [tf.size(variable) for variable in variables]
    for variable, value in zip(variables, tf.split(shared, sizes), strict=True):
        variable.assign(tf.reshape(value, variable.shape))


def _build_from_one_replica(model, strategy):
    def symbolic_build(iterator=None, data_batch=None):
        if iterator is not None:
            for _, _, batches in iterator:
                data_batch = tree.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0],
                    next(batches),
                )
                break
        with strategy.scope():
            _keras.symbolic_build(model, data_batch)

    _keras.replace_symbolic_build(model, symbolic_build)


def _reduce_per_replica(values, strategy, reduction, keras_reduce):
    # Keras takes the mean over axis 0 of logs, which are scalars.
    if reduction in ("auto", "mean") and _keras.is_multi_worker(strategy):
        return tree.map_structure(
            lambda value: strategy.reduce("MEAN", value, axis=None), values
        )
    return keras_reduce(values, strategy, reduction)
