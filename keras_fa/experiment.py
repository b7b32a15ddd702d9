"""Runs: from a configuration to a run folder. The only place where all parts meet."""

import importlib.metadata
import math
import platform
import statistics
import time

import keras
import ml_collections
import numpy as np
import tensorflow as tf
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from keras_fa import callbacks, datasets, distribution, models, optimizers, results
from keras_fa import config as configuration
from keras_fa import rules as feedback_rules
from keras_fa.checkpoints import Checkpoints

# Above this number of steps in one call of the compiled loop nothing is gained, and
# Ctrl-C has to wait for the end of the call.
_MAX_STEPS_PER_CALL = 64


def run(config, workdir, strategy="default", progress=False):
    """Trains one network as a configuration says, and leaves a run folder.

    A run that was interrupted, even by SIGKILL, goes on after its last checkpoint when
    it is called again with the same arguments, and ends with the same weights, bit for
    bit, as one that was not (on a CPU, with `config.deterministic`). A run that is over
    is not run again.

    Args:
        config: `ml_collections.ConfigDict` or nested dict with the fields of
            `keras_fa.config.default_config`.
        workdir: The run folder: see `keras_fa.results`.
        strategy: "default" or "mirrored": see `keras_fa.distribution.get_strategy`.
        progress: Whether to show a progress bar with the time left.

    Returns:
        The summary, a dict: `status` ("finished", or "diverged" if the loss became NaN
        or infinite), `epochs`, the last log line under `final`, `seconds`,
        `seconds_per_step`, `parameters`, and the versions of what computed it.

    Raises:
        ValueError: If the configuration has a field that is unknown or impossible.
        keras_fa.results.RunFolderError: If the folder belongs to another configuration
            or another process.
        keras_fa.datasets.DatasetNotFound: If the data set is not there.
    """
    config = ml_collections.FrozenConfigDict(config)
    configuration.check(config)
    with results.RunFolder(workdir, config.to_dict()) as folder:
        summary = folder.summary()
        if summary is None:
            summary = _train(config, folder, strategy, progress)
            folder.finish(summary)
    return summary


def compare(config, workdir, rules, strategy="default", progress=False):
    """Runs one configuration under several rules, each in a folder of its own.

    The runs share the seed, and with it data, initial weights and batches.

    Args:
        config: As for `run`; its `rule` is overridden.
        workdir: Folder of the run folders, which are named after the rules.
        rules: Names of rules.
        strategy: As for `run`.
        progress: As for `run`.

    Returns:
        Dict from rule to summary.

    Raises:
        ValueError: If a rule is unknown; before anything is run.
    """
    for rule in rules:
        feedback_rules.get(rule)
    summaries = {}
    for rule in rules:
        rule_config = ml_collections.ConfigDict(config).copy_and_resolve_references()
        rule_config.rule = rule
        summaries[rule] = run(rule_config, f"{workdir}/{rule}", strategy, progress)
    return summaries


def build(config, dataset):
    """The model of a configuration, built and compiled.

    Args:
        config: As for `run`.
        dataset: The `keras_fa.datasets.Dataset` that it will be trained on.

    Returns:
        A compiled `keras.Model` whose optimizer is built.

    Raises:
        ValueError: If the model, rule, loss or optimizer is unknown.
    """
    model_seed, feedback_seed = _seeds(config.seed)
    keras.utils.set_random_seed(model_seed)
    model = _network(config, dataset, _rule(config, feedback_seed))
    steps_per_period = dataset.steps_per_epoch * config.log_every
    single_steps = config.instruments.ledger
    loss, metrics = _loss(config.loss)
    model.compile(
        optimizer=_optimizer(config, dataset.steps_per_epoch),
        loss=loss,
        metrics=metrics,
        jit_compile=_jit_compile(config.jit_compile),
        steps_per_execution=1 if single_steps else _steps_per_call(steps_per_period),
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _train(config, folder, strategy, progress):
    # Keras refuses XLA under op determinism; on a CPU XLA is deterministic without it.
    if config.deterministic and config.jit_compile != "on":
        tf.config.experimental.enable_op_determinism()
    dataset = load(config)
    with distribution.get_strategy(strategy).scope():
        model = build(config, dataset)
    instruments = _instruments(config.instruments, dataset)
    recorder = _Recorder(folder, config, instruments, dataset.steps_per_epoch)
    stateful = [c for c in [*instruments, recorder] if hasattr(c, "get_state")]
    recorder.checkpoints = Checkpoints(folder.path / "checkpoints", model, stateful)
    epoch = recorder.checkpoints.restore()
    # Without a checkpoint even the line about the initial state is written anew.
    folder.begin(epoch if epoch > 0 else -1)
    shown = [_ProgressBar(config, epoch)] if progress else []
    try:
        model.fit(
            dataset.train_from(epoch),
            steps_per_epoch=dataset.steps_per_epoch * config.log_every,
            initial_epoch=epoch // config.log_every,
            epochs=config.epochs // config.log_every,
            validation_data=dataset.test,
            callbacks=[*instruments, recorder, *shown],
            shuffle=False,
            verbose=0,
        )
    finally:
        # Ctrl-C skips on_train_end, and the terminal must get its cursor back.
        for bar in shown:
            bar.stop()
    lines = results.read_metrics(folder.path)
    return {
        "status": "diverged" if recorder.diverged else "finished",
        "epochs": lines[-1]["epoch"],
        "final": lines[-1],
        "seconds": recorder.seconds,
        "seconds_per_step": recorder.seconds_per_step(),
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
        "steps_per_epoch": dataset.steps_per_epoch,
        "strategy": strategy,
        "environment": _environment(),
    }


def _instruments(fields, dataset):
    """The callbacks that a configuration's section asks for."""
    instruments = []
    if fields.weight_alignment:
        instruments.append(callbacks.WeightAlignment(terms=fields.layer_terms))
    if fields.conservation:
        instruments.append(callbacks.Conservation(ledger=fields.ledger))
    if fields.gradient_alignment or fields.error_alignment:
        probe = [array[: fields.probe_size] for array in dataset.arrays("train")]
        if fields.gradient_alignment:
            instruments.append(callbacks.GradientAlignment(*probe))
        if fields.error_alignment:
            instruments.append(callbacks.ErrorAlignment(*probe))
    return instruments


class _Recorder(keras.callbacks.Callback):
    """Writes the log lines and checkpoints of a run, and stops it when it diverges."""

    def __init__(self, folder, config, instruments, steps_per_epoch):
        super().__init__()
        self._folder = folder
        self._config = config
        self._instruments = instruments
        self._steps_per_epoch = steps_per_epoch
        self.checkpoints = None
        self.diverged = False
        self.seconds = 0.0
        self._periods = []

    def get_state(self):
        return {"seconds": self.seconds}

    def set_state(self, state):
        self.seconds = state["seconds"]

    def on_train_begin(self, logs=None):
        if not results.read_metrics(self._folder.path):
            readings = {}
            for instrument in self._instruments:
                readings |= instrument.read()
            line = {"epoch": 0, **readings, "flow_time": 0.0, "seconds": 0.0}
            self._folder.log(line)

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        self._trained = None

    def on_test_begin(self, logs=None):
        self._trained = time.perf_counter() - self._start

    def on_epoch_end(self, epoch, logs=None):
        self._periods.append(self._trained)
        self.seconds += time.perf_counter() - self._start
        epochs = (epoch + 1) * self._config.log_every
        learning_rate = float(np.asarray(self.model.optimizer.learning_rate))
        line = {"epoch": epochs, **logs, "learning_rate": learning_rate}
        line["flow_time"] = _flow_time(self._config, epochs, self._steps_per_epoch)
        self._folder.log({**line, "seconds": round(self.seconds, 3)})
        if not math.isfinite(logs["loss"]):
            self.diverged = True
            self.model.stop_training = True
        elif (
            epochs % self._config.checkpoint_every == 0 or epochs == self._config.epochs
        ):
            self.checkpoints.save(epochs)

    def seconds_per_step(self):
        """Median over the periods of this process, its first one (tracing) left out."""
        periods = self._periods[1:] or self._periods
        if not periods:
            return None
        steps = self._steps_per_epoch * self._config.log_every
        return statistics.median(periods) / steps


class _ProgressBar(keras.callbacks.Callback):
    """A progress bar over the epochs of a run, with the time left.

    Where the output is not a terminal, a line from time to time instead.
    """

    _SECONDS_BETWEEN_LINES = 30

    def __init__(self, config, epoch):
        super().__init__()
        self._log_every = config.log_every
        self._progress = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[readings]}"),
        )
        self._task = self._progress.add_task(
            config.rule, total=config.epochs, completed=epoch, readings=""
        )
        self._printed = time.monotonic()

    def on_train_begin(self, logs=None):
        self._progress.start()

    def on_epoch_end(self, epoch, logs=None):
        done = (epoch + 1) * self._log_every
        readings = f"loss {logs['loss']:.3g}"
        if "val_accuracy" in logs:
            readings += f", test {100 * logs['val_accuracy']:.1f}%"
        self._progress.update(self._task, completed=done, readings=readings)
        now = time.monotonic()
        waited = now - self._printed > self._SECONDS_BETWEEN_LINES
        if waited and not self._progress.console.is_terminal:
            self._printed = now
            task = self._progress.tasks[0]
            left = "?" if task.time_remaining is None else f"{task.time_remaining:.0f}"
            self._progress.console.print(
                f"{task.description} epoch {done}/{task.total:.0f}, {left} s left, "
                f"{readings}"
            )

    def stop(self):
        self._progress.stop()


def load(config):
    """The `keras_fa.datasets.Dataset` of a configuration.

    Args:
        config: As for `run`.

    Raises:
        ValueError, TypeError: If the data set or one of its options is unknown.
        keras_fa.datasets.DatasetNotFound: If the data set is not there.
    """
    arguments = {k: v for k, v in config.dataset.to_dict().items() if v is not None}
    return datasets.load(
        arguments.pop("name"),
        batch_size=config.batch_size,
        drop_last=config.drop_last,
        dtype=keras.DTypePolicy(config.dtype).variable_dtype,
        seed=config.seed,
        **arguments,
    )


def _seeds(seed):
    """Independent seeds for the initial weights and the feedback."""
    # The data draws from a stream of its own, and feedback must not take from the
    # weights' stream, or two rules with one seed would start from different weights.
    return [int(s >> 1) for s in np.random.SeedSequence([seed, 1]).generate_state(2)]


def _rule(config, seed):
    if config.rule == "fa":
        return feedback_rules.FeedbackAlignment(config.feedback_initializer, seed)
    if config.rule == "sign_fa":
        scale = config.sign_scale
        scale = scale if scale == "glorot" else float(scale)
        return feedback_rules.SignFeedbackAlignment(scale)
    return feedback_rules.get(config.rule)


_BUILDERS = {"mlp": models.mlp, "lenet": models.lenet, "resnet18": models.resnet18}


def _network(config, dataset, rule):
    arguments = config.model.to_dict()
    name = arguments.pop("name")
    if name not in _BUILDERS:
        raise ValueError(
            f"Unknown model: {name!r}. Known: {', '.join(sorted(_BUILDERS))}."
        )
    initializer = arguments.pop("kernel_initializer")
    if initializer == "uniform_fan_in":
        initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    elif initializer == "uniform_width":
        limit = 1 / math.sqrt(arguments["hidden_units"][0])
        initializer = keras.initializers.RandomUniform(-limit, limit)
    try:
        return _BUILDERS[name](
            dataset.input_shape,
            # A regression set has as many outputs as targets.
            num_classes=dataset.num_classes or dataset.target_shape[-1],
            rule=rule,
            kernel_initializer=initializer,
            dtype=config.dtype,
            **arguments,
        )
    except TypeError as error:
        raise ValueError(f"config.model does not fit {name!r}: {error}") from error


def _loss(name):
    if name == "cross_entropy":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss, [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
    if name == "exponential":
        return exponential_loss, []
    return keras.losses.get(name), []


def exponential_loss(y_true, y_pred):
    """exp(-y f(x)), the loss of proposition 5.7 of Robertson and Koyejo (2024).

    Args:
        y_true: Labels -1 and +1, shape (batch, 1).
        y_pred: Outputs f(x), shape (batch, 1).

    Returns:
        Tensor (batch,).
    """
    return keras.ops.mean(keras.ops.exp(-y_true * y_pred), axis=-1)


def _optimizer(config, steps_per_epoch):
    fields = config.optimizer
    learning_rate = fields.learning_rate
    if config.schedule.boundaries:
        learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # Keras keeps the old value at the boundary step itself.
            [epoch * steps_per_epoch - 1 for epoch in config.schedule.boundaries],
            [learning_rate * factor for factor in (1.0, *config.schedule.factors)],
        )
    if fields.name == "sgd":
        return optimizers.TorchSGD(learning_rate, fields.momentum, fields.weight_decay)
    if fields.name == "adam":
        return keras.optimizers.Adam(learning_rate, weight_decay=fields.weight_decay)
    raise ValueError(f"Unknown optimizer: {fields.name!r}. Known: adam, sgd.")


def _flow_time(config, epoch, steps_per_epoch):
    """The sum of the learning rates of all steps so far: the time t of the flow."""
    edges = [0, *config.schedule.boundaries, math.inf]
    factors = [1.0, *config.schedule.factors]
    epochs = sum(
        factor * max(0, min(epoch, end) - start)
        for factor, start, end in zip(factors, edges, edges[1:], strict=False)
    )
    return config.optimizer.learning_rate * steps_per_epoch * epochs


def _jit_compile(choice):
    if choice != "auto":
        return choice == "on"
    # Measured on CPUs: XLA makes the papers' dense networks up to 1.07 times faster,
    # small ones 2 times and convolutions 2 to 4 times slower. On a GPU Keras decides.
    return "auto" if tf.config.list_logical_devices("GPU") else False


def _steps_per_call(steps):
    """The largest divisor of `steps` that one call may take: fit would overrun else."""
    # Several replicas and several steps in one call do not go together in Keras 3.15:
    # TensorFlow fails with "You must feed a value for placeholder tensor".
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return 1
    return max(n for n in range(1, _MAX_STEPS_PER_CALL + 1) if steps % n == 0)


def _environment():
    packages = ("keras_fa", "keras", "tensorflow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    devices = [device.name for device in tf.config.list_logical_devices()]
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "devices": devices,
        **versions,
    }
