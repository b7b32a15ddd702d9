"""Callbacks that evaluate, record and show a run while `model.fit` trains it."""

import contextlib
import functools
import json
import math
import signal
import statistics
import threading
import time

import keras
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

from keras_fa import _keras, autodiff
from keras_fa.lab import run_folder
from keras_fa.lab.config import named


class Evaluation(keras.callbacks.Callback):
    """Logs what `fit(validation_data=...)` does, at the price of the arithmetic alone.

    `val_loss` and one `val_<name>` for each measure. Keras's own evaluation adds some
    8 ms a time (measured on a CPU), which full-batch experiments would pay every few
    steps. For one replica; give several ones `validation_data`.

    Args:
        batches: `tf.data.Dataset` of `(x, y)`, finite.
        measures: `{name: function of (y_true, y_pred) -> (batch,)}`.
    """

    def __init__(self, batches, measures):
        super().__init__()
        # A set of one batch stays in memory as it is; more are made anew each time.
        self._batches = list(batches) if len(batches) == 1 else batches
        self._measures = measures

    def on_train_begin(self, logs=None):
        self._sums = _SUMS[keras.backend.backend()](self.model, self._measures.values())

    def on_epoch_end(self, epoch, logs=None):
        size, *totals = np.sum(
            [np.asarray(self._sums(x, y), np.float64) for x, y in self._batches], axis=0
        )
        for name, total in zip(("loss", *self._measures), totals, strict=True):
            logs[f"val_{name}"] = float(total / size)


def _sums_of_tensorflow(model, measures):
    @tf.function(jit_compile=model.jit_compile, reduce_retracing=True)
    def sums(x, y):
        outputs = model(x, training=False)
        loss = model.compute_loss(x, y, outputs, training=False)
        size = tf.cast(tf.shape(y)[0], loss.dtype)
        values = [tf.reduce_sum(measure(y, outputs)) for measure in measures]
        return tf.stack([size, loss * size, *(tf.cast(v, loss.dtype) for v in values)])

    return sums


def _sums_of_jax(model, measures):
    # The weights are arguments, or JAX would keep those of the first epoch.
    def sums(weights, x, y):
        with keras.StatelessScope(list(zip(model.variables, weights, strict=True))):
            outputs = model(x, training=False)
            loss = model.compute_loss(x, y, outputs, training=False)
        values = [keras.ops.sum(measure(y, outputs)) for measure in measures]
        size = len(y)
        return keras.ops.stack([size, loss * size, *values])

    compiled = autodiff.compiled(sums)
    return lambda x, y: compiled(
        autodiff.readings(model.variables), x.numpy(), y.numpy()
    )


_SUMS = {"tensorflow": _sums_of_tensorflow, "jax": _sums_of_jax}


class Recorder(keras.callbacks.Callback):
    """Writes the log lines and checkpoints of a run, and stops it when it diverges.

    Goes behind all callbacks that add to the logs. For a streamed set it adds
    `data_wait`, the part of the training time of these epochs that steps waited for
    data, and `bad_examples`, how many examples could not be read so far.

    Args:
        folder: The run's `keras_fa.results.RunFolder`.
        config: Its configuration; `log_every` epochs are one epoch of `fit`.
        instruments: The `keras_fa.callbacks` whose readings the line of epoch 0 has.
        steps_per_epoch: Optimizer steps an epoch of the configuration.
        loading: The `keras_fa.datasets.streams.Loading` of a streamed training set,
            which the log lines tell of, or None.

    Attributes:
        checkpoints: `keras_fa.lab.checkpoints.Checkpoints`, to be set before training.
        batch: Batches since the last log line.
        final: The last log line, as it is read back; None before the first.
        diverged: Whether the loss became NaN or infinite.
        seconds: Wall time of training so far, that before an interruption included.
        ends_next: Whether to save and raise KeyboardInterrupt as soon as can be.
    """

    def __init__(self, folder, config, instruments, steps_per_epoch, loading=None):
        super().__init__()
        self._folder = folder
        self._config = config
        self._instruments = instruments
        self._steps_per_epoch = steps_per_epoch
        self._loading = loading
        self.checkpoints = None
        self.batch = 0
        self.final = None
        self.diverged = False
        self.seconds = 0.0
        self.ends_next = False
        self._periods = []
        self._trained = self._waited = 0.0
        self._saved = -math.inf
        self._restored = None

    def get_state(self):
        """What of a run is in no variable of the model, as JSON can hold it."""
        state = {
            "seconds": self.seconds,
            "readings": [_plain(getattr(i, "last", {})) for i in self._instruments],
        }
        if self._loading is not None:
            state["bad"] = sorted(self._loading.bad)
        if self.batch:
            sums = _sums_of(self.model)
            state |= {
                "seconds": self.seconds + time.perf_counter() - self._start,
                "batch": self.batch,
                "trained": self._trained,
                "waited": self._waited,
                # The sums of which the epoch's loss and measures will be made.
                "metrics": sums[0],
                "metrics_of_others": sums[1:],
            }
        return state

    def set_state(self, state):
        """Takes over what was there when the run was interrupted."""
        self.seconds = state["seconds"]
        self.batch = state.get("batch", 0)
        self._restored = state
        if self._loading is not None:
            self._loading.bad = set(state.get("bad", ()))

    def set_model(self, model):
        super().set_model(model)
        if keras.backend.backend() == "jax":
            self._learning_rate = lambda: autodiff.array(model.optimizer.learning_rate)
            return
        # Compiled: read eagerly, a schedule takes 3 ms.
        self._learning_rate = tf.function(
            lambda: tf.convert_to_tensor(model.optimizer.learning_rate)
        )

    def on_train_begin(self, logs=None):
        self._saved = time.monotonic()
        if self._restored is not None:
            readings = self._restored.get("readings", ())
            for instrument, last in zip(self._instruments, readings, strict=False):
                if last:
                    instrument.last = last
        if self._folder.writes and not run_folder.read_metrics(self._folder.path):
            readings = {}
            for instrument in self._instruments:
                readings |= instrument.read()
            line = {"epoch": 0, **readings, "flow_time": 0.0, "seconds": 0.0}
            self._folder.log(line)

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        self._epochs = epoch * self._config.log_every
        # Of this period, in the processes before this one.
        former = self._restored if self.batch else {}
        self._trained_before = former.get("trained", 0.0)
        self._waited_before = former.get("waited", 0.0) - self._waited_in_all
        if self.batch:
            sums = [former["metrics"], *former.get("metrics_of_others", ())]
            _give_sums(self.model, sums, self._folder.writes)

    def on_train_batch_end(self, batch, logs=None):
        self._trained = self._trained_before + time.perf_counter() - self._start
        self._waited = self._waited_before + self._waited_in_all
        self.batch = batch + 1
        is_last = self.batch == self._steps_per_epoch * self._config.log_every
        if is_last or not self._saves_anywhere:
            return
        if self.ends_next or 0 < self._config.checkpoint_every_seconds <= self._since:
            self._save()
        if self.ends_next:
            raise KeyboardInterrupt("SIGTERM")

    def on_epoch_end(self, epoch, logs=None):
        self.batch = 0
        self._periods.append(self._trained)
        self.seconds += time.perf_counter() - self._start
        self._epochs = epochs = (epoch + 1) * self._config.log_every
        learning_rate = float(self._learning_rate())
        if self._loading is not None:
            logs["data_wait"] = round(self._waited / max(self._trained, 1e-9), 4)
            logs["bad_examples"] = len(self._loading.bad)
        line = {"epoch": epochs, **logs, "learning_rate": learning_rate}
        line["flow_time"] = _flow_time(self._config, epochs, self._steps_per_epoch)
        line["seconds"] = round(self.seconds, 3)
        self._folder.log(line)
        self.final = json.loads(run_folder.to_json(line))
        if not math.isfinite(logs["loss"]):
            self.diverged = True
            self.model.stop_training = True
        elif self._is_due or epochs == self._config.epochs or self.ends_next:
            self._save()
        if self.ends_next:
            raise KeyboardInterrupt("SIGTERM")

    def _save(self):
        # A resumed run needs the lines before its checkpoint.
        self._folder.sync()
        if self._folder.writes:
            self.checkpoints.save(self._epochs, self.batch)
        self._saved = time.monotonic()

    @functools.cached_property
    def _saves_anywhere(self):
        """Whether checkpoints come in the middle of an epoch too."""
        # Several workers would have to agree in each step whether now is the time, and
        # JAX brings its variables up to date at the end of an epoch.
        if keras.backend.backend() != "tensorflow":
            return False
        return not _keras.is_multi_worker(self.model.distribute_strategy)

    @property
    def _since(self):
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    @property
    def _is_due(self):
        """Whether a checkpoint is due after these whole epochs."""
        if self._epochs % self._config.checkpoint_every:
            return False
        return self._since >= self._config.checkpoint_every_seconds

    @property
    def _waited_in_all(self):
        return self._loading.waited if self._loading is not None else 0.0

    def seconds_per_step(self):
        """Median over the periods of this process, its first one (tracing) left out."""
        periods = self._periods[1:] or self._periods
        if not periods:
            return None
        steps = self._steps_per_epoch * self._config.log_every
        return statistics.median(periods) / steps


def _sums_of(model):
    """The values of the metrics' variables on each replica of this process, lists."""
    each = [_here(model, variable) for variable in model.metrics_variables]
    return [
        [np.asarray(v).tolist() for v in values] for values in zip(*each, strict=True)
    ]


def _give_sums(model, sums, is_first):
    """Gives the replicas of this process the sums that others had.

    As many replicas in one process take each its own, so that what is added to them is
    rounded as it would have been. Else the first of all takes the totals.
    """
    for number, variable in enumerate(model.metrics_variables):
        values = [each[number] for each in sums]
        replicas = _here(model, variable)
        if not len(values) == len(replicas) == _keras.replicas_of(model):
            total = sum(values) if is_first else 0.0
            values = [total] + [0.0] * (len(replicas) - 1)
        for replica, value in zip(replicas, values, strict=True):
            replica.assign(value)


def _here(model, variable):
    """A variable of Keras as each replica of this process has it."""
    if _keras.replicas_of(model) == 1:
        return [variable]
    strategy = model.distribute_strategy
    return strategy.experimental_local_results(variable.value)


def _plain(readings):
    """Readings as JSON can hold them, to the bit."""
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in readings.items()}


class Callbacks(keras.callbacks.CallbackList):
    """Callbacks to which several calls of `fit` are one training.

    A training that goes on in the middle of a period is two: the rest of that period,
    and those after it.

    Args:
        callbacks: List of Keras callbacks.
        model: The model.
        **params: What callbacks are told: `epochs`, `steps`, `verbose`.

    Attributes:
        skipped: Batches of the period that came before this call of `fit`.
    """

    def __init__(self, callbacks, model, **params):
        super().__init__(callbacks, add_history=True, model=model, **params)
        self.skipped = 0
        self._begun, self._ended = False, None

    def on_train_begin(self, logs=None):
        if not self._begun:
            self._begun = True
            super().on_train_begin(logs)

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch + self.skipped, logs)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch + self.skipped, logs)

    def on_train_end(self, logs=None):
        self._ended = logs

    def end(self):
        """Ends the training, after the last call of `fit`."""
        super().on_train_end(self._ended)


# What schedulers leave between SIGTERM and SIGKILL is half a minute and more.
_SECONDS_TO_A_SAVE = 10


@contextlib.contextmanager
def saved_at_sigterm(recorder):
    """Lets SIGTERM save a run behind its batch and end it as Ctrl-C does.

    With several workers it is saved at its next log line. KeyboardInterrupt is raised
    behind that, or without it when it takes longer than 10 seconds or SIGTERM comes
    again. Outside the main thread, which alone hears signals, nothing changes.

    Args:
        recorder: The `Recorder` of the run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, frame):
        raise KeyboardInterrupt("SIGTERM")

    def ask(number, frame):
        recorder.ends_next = True
        signal.signal(signal.SIGTERM, end)
        signal.alarm(_SECONDS_TO_A_SAVE)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, ask),
        signal.SIGALRM: signal.signal(signal.SIGALRM, end),
    }
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            # None was set by another language and cannot be set again.
            signal.signal(number, handler or signal.SIG_DFL)


def _flow_time(config, epoch, steps_per_epoch):
    """The sum of the learning rates of all steps so far: the time t of the flow."""
    if config.schedule.get("cosine"):
        steps = np.arange(epoch * steps_per_epoch)
        warmup = config.schedule.warmup * steps_per_epoch
        rest = (steps - warmup) / (config.epochs * steps_per_epoch - warmup)
        fall = 0.5 * (1 + np.cos(np.pi * np.clip(rest, 0, 1)))
        share = np.where(steps < warmup, steps / max(warmup, 1), fall)
        return float(config.optimizer.learning_rate * share.sum())
    edges = [0, *config.schedule.boundaries, math.inf]
    factors = [1.0, *config.schedule.factors]
    epochs = sum(
        factor * max(0, min(epoch, end) - start)
        for factor, start, end in zip(factors, edges, edges[1:], strict=False)
    )
    return config.optimizer.learning_rate * steps_per_epoch * epochs


class ProgressBar(keras.callbacks.Callback):
    """A progress bar over the epochs of a run, with the time left.

    A notebook's cell shows it as a line that is brought up to date. Where there is no
    terminal either, a line is printed from time to time instead.

    Args:
        config: The run's configuration.
        epoch: The epoch that it goes on after.
    """

    _SECONDS_BETWEEN_LINES = 30

    def __init__(self, config, epoch):
        super().__init__()
        self._log_every = config.log_every
        self._progress = Progress(
            TextColumn("{task.description:8}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[readings]}"),
        )
        self._task = self._progress.add_task(
            named(config.rule)[0], total=config.epochs, completed=epoch, readings=""
        )
        self._prints = not self._progress.console.is_terminal
        self._printed = time.monotonic()
        self._cell = None

    def on_train_begin(self, logs=None):
        if self._progress.console.is_jupyter:
            # The live display of rich needs ipywidgets there, and shows nothing else.
            from IPython.display import display

            self._cell = display(self._progress, display_id=True)
        else:
            self._progress.start()

    def on_epoch_end(self, epoch, logs=None):
        done = (epoch + 1) * self._log_every
        readings = f"loss {logs['loss']:.3g}"
        if "val_accuracy" in logs:
            readings += f", test {100 * logs['val_accuracy']:.1f}%"
        if "data_wait" in logs:
            readings += f", waited {100 * logs['data_wait']:.0f}% for data"
        if logs.get("bad_examples"):
            readings += f", {logs['bad_examples']} bad examples"
        self._progress.update(self._task, completed=done, readings=readings)
        now = time.monotonic()
        waited = now - self._printed
        if self._cell is not None:
            if waited >= 1:
                self._printed = now
                self._cell.update(self._progress)
        elif self._prints and waited > self._SECONDS_BETWEEN_LINES:
            self._printed = now
            task = self._progress.tasks[0]
            left = "?" if task.time_remaining is None else f"{task.time_remaining:.0f}"
            self._progress.console.print(
                f"{task.description} epoch {done}/{task.total:.0f}, {left} s left, "
                f"{readings}",
                markup=False,
            )

    def stop(self):
        """Gives the terminal back; safe to call twice."""
        self._progress.stop()
        if self._cell is not None:
            self._cell.update(self._progress)
