"""Runs: what a configuration builds is trained, and leaves a run folder."""

import contextlib
import functools
import hashlib
import importlib
import math
import os
import pathlib
import platform
import shutil
import subprocess

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from keras_fa import __version__, _keras, analysis, autodiff, distribution
from keras_fa import rules as feedback_rules
from keras_fa.lab import config as configuration
from keras_fa.lab import recording, run_folder, tracking
from keras_fa.lab.build import build, check_loss, instruments, load, measures_of
from keras_fa.lab.checkpoints import Checkpoints
from keras_fa.layers import forward_variables

__all__ = ["audit", "build", "compare", "load", "load_model", "run", "weights_hash"]


def run(
    config,
    workdir,
    strategy="default",
    progress=False,
    extra_callbacks=(),
    track=(),
):
    """Trains one network as a configuration says, and leaves a run folder.

    A run that was interrupted, even by SIGKILL, goes on after its last checkpoint, in
    the middle of an epoch too, when it is called again with the same arguments, and
    ends with the same weights and log lines, bit for bit, as one that was not (on a
    CPU, with `config.deterministic`). A run that is over is not run again. SIGTERM
    saves a run that trains before it ends it.

    Args:
        config: `ml_collections.ConfigDict` or nested dict with the fields of
            `keras_fa.config.default_config`.
        workdir: The run folder: see `keras_fa.results`.
        strategy: "default", "mirrored" or "multi_worker": see
            `keras_fa.distribution.get_strategy`. Of several workers, which all call
            this with the same arguments, the first one writes, and the others read its
            checkpoints: the folder must be the same for all.
        progress: Whether to show a progress bar with the time left.
        extra_callbacks: Further Keras callbacks, which see what the instruments read.
            One epoch of theirs is `config.log_every` epochs of the run. If they have
            `get_state()` and `set_state(state)`, a resumed run takes their state over.
        track: Names of libraries to which the configuration and the log lines go too:
            `keras_fa.lab.tracking.NAMES`.

    Returns:
        The summary, a dict: `status` ("finished", or "diverged" if the loss became NaN
        or infinite), `epochs`, the last log line under `final`, `seconds`,
        `seconds_per_step`, `parameters`, the hash of the weights at the end, by which
        two runs are seen to be the same bit for bit (`weights_hash`), and the versions
        of what computed it.

    Raises:
        ValueError: If the configuration has a field that is unknown or impossible.
        keras_fa.results.RunFolderError: If the folder belongs to another configuration,
            another Keras backend or another process.
        keras_fa.datasets.DatasetNotFound: If the data set is not there.
        keras_fa.distribution.ClusterError: If `TF_CONFIG` is wrong, or this worker's
            port in use.
        keras_fa.distribution.WorkerLostError: If another worker stopped.
        RuntimeError: On every worker, if they were given different configurations,
            data or folders, or do not share the folder. The message names what differs.
    """
    # Not frozen, which would not take sections in a list.
    config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    config.lock()
    configuration.check(config)
    _check_backend(config)
    writes = strategy != "multi_worker" or distribution.read_cluster()[1] == 0
    _set_determinism(config)
    with distribution.lost_workers_explained(strategy):
        is_over = (pathlib.Path(workdir) / run_folder.SUMMARY).exists()
        distribution.check_agreement(
            # Before anything is computed: several workers need that.
            distribution.get_strategy(strategy),
            {"config": config.to_dict(), "the run is over": is_over},
        )
    with run_folder.RunFolder(workdir, config.to_dict(), writes) as folder:
        summary = folder.summary()
        if summary is None:
            with distribution.lost_workers_explained(strategy):
                workers = distribution.get_strategy(strategy)
                folder.follow(distribution.of_the_chief(workers, folder.place))
                distribution.check_shared(workers, folder.path)
                tracks = track if folder.writes else ()
                trackers = [tracking.Tracker(name, config, workdir) for name in tracks]
                callbacks = (*extra_callbacks, *trackers)
                try:
                    summary = _train(config, folder, strategy, progress, callbacks)
                except OSError:
                    # Another attempt may have come to the end, and cleared this away.
                    if not (folder.writes and folder.has_ended()):
                        raise
                    return run_folder.read_summary(workdir)
                finally:
                    for tracker in trackers:
                        tracker.stop()
            summary = folder.finish(summary)
    return summary


def compare(config, workdir, rules, strategy="default", progress=False, track=()):
    """Runs one configuration under several rules, each in a folder of its own.

    The runs share the seed, and with it data, initial weights and batches.

    Args:
        config: As for `run`; its `rule` is overridden.
        workdir: Folder of the run folders, which are named after the rules.
        rules: Names of rules.
        strategy: As for `run`.
        progress: As for `run`.
        track: As for `run`.

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
        configuration.set_value(rule_config, "rule", rule)
        summaries[rule] = run(
            rule_config, f"{workdir}/{rule}", strategy, progress, track=track
        )
    return summaries


def load_model(workdir):
    """The model that a run has trained, as its newest checkpoint has it.

    Args:
        workdir: A run folder, whose data set must be there, and the modules that its
            configuration names.

    Returns:
        A compiled `keras.Model` with its optimizer's state: see `keras_fa.to_stock` for
        one that needs nothing of the toolkit.

    Raises:
        keras_fa.results.RunFolderError: If it is no run folder, or has no checkpoint.
        keras_fa.lab.checkpoints.CheckpointError: If none of them can be read.
        keras_fa.datasets.DatasetNotFound: If the data set is not there.
    """
    run_folder.check_backend(workdir)
    config = ml_collections.ConfigDict(run_folder.read_config(workdir))
    return _restored(workdir, build(config, load(config)))


def weights_hash(model):
    """What two networks have in common only if their weights are equal to the bit.

    Args:
        model: A built Keras model.

    Returns:
        The SHA-256, in hexadecimal digits, of the bytes of all its weights in their
        order: kernels, biases, stored B, statistics of BatchNorm.
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(autodiff.array(weight)).tobytes())
    return digest.hexdigest()


def _restored(workdir, model):
    """A built model with the weights and the state of a run's newest checkpoint."""
    folder = run_folder.place(workdir) / "checkpoints"
    checkpoints = Checkpoints(folder, model, None)
    if not checkpoints.restore():
        raise run_folder.RunFolderError(
            f"The run in {workdir} has no checkpoint yet. Give the command that began "
            "it again."
        )
    return model


# In what a run and its baselines may differ.
_APART = (
    "model.frozen",
    "rule",
    "seed",
    "instruments",
    "log_every",
    "checkpoint_every",
)
_BASELINES = {"body": "its body frozen", "all_but_last": "its last layer alone trained"}


def audit(workdir, baselines=(), size=512):
    """Whether the depth of a run's network learned: `keras_fa.audit` of its folder.

    On its first training examples, with its network before training as the reference.

    Args:
        workdir: The folder of a finished run.
        baselines: Folders of finished runs of the same network with part of it frozen
            (`config.model.frozen`) and the same budget. They may be under another rule
            and of other seeds; of several of one kind the mean counts. Without any,
            depth utility is not measured.
        size: How many examples.

    Returns:
        `keras_fa.analysis.Verdict`.

    Raises:
        ValueError: If a baseline has nothing frozen, or differs from the run in its
            data, network or budget, or the accuracy is not known.
        keras_fa.results.RunFolderError: If a folder holds no finished run.
    """
    run_folder.check_backend(workdir)
    stored = run_folder.read_config(workdir)
    score, scores = None, {}
    if baselines:
        score = _accuracy(workdir)
        for folder in baselines:
            scores.setdefault(_kind(folder, stored), []).append(_accuracy(folder))
    config = ml_collections.ConfigDict(stored)
    dataset = load(config)
    x, y = dataset.first("train", size)
    model = _restored(workdir, build(config, dataset))
    reference = build(config, dataset)
    return analysis.audit(
        model, x, y, reference=reference, score=score, baselines=scores
    )


def _kind(folder, trained):
    """What a baseline is called, once it is seen to be one of the run's."""
    config = run_folder.read_config(folder)
    frozen = config["model"].get("frozen")
    if frozen is None:
        raise ValueError(
            f"{folder} is no baseline: nothing in its network was frozen. Expected a "
            'run with config.model.frozen, such as "body" or "all_but_last".'
        )
    flat = [
        {k: v for k, v in run_folder.flatten(c).items() if not k.startswith(_APART)}
        for c in (config, trained)
    ]
    if different := run_folder.differences(*flat):
        lines = [d.replace("in the folder", "there") for d in different[:5]]
        raise ValueError(
            f"{folder} is no baseline of the run: it differs in more than what is "
            "frozen, rule and seed:\n  " + "\n  ".join(lines)
        )
    return _BASELINES.get(frozen, f"{frozen} frozen")


def _accuracy(folder):
    summary = run_folder.read_summary(folder)
    if summary is None or summary["status"] != "finished":
        raise run_folder.RunFolderError(
            f"The run in {folder} is not finished: give the command that began it "
            "again."
        )
    if summary["final"].get("val_accuracy") is None:
        raise ValueError(
            f"The run in {folder} has no accuracy, by which depth utility is measured. "
            "Audit it without baselines."
        )
    return summary["final"]["val_accuracy"]


def _train(config, folder, strategy, progress, extra_callbacks):
    # The code that this process has, whatever is checked out when the run ends.
    revision = commit()
    devices = distribution.get_strategy(strategy)
    dataset = load(config)
    if isinstance(devices, distribution.JaxDevices):
        steps, size = dataset.steps_per_epoch, dataset.batch_size
        devices.check_batches({size, min(size, dataset.num_train - (steps - 1) * size)})
    with devices.scope():
        model = build(config, dataset)
    if _keras.replicas_of(model) == 1:
        check_loss(config, model, dataset)
    readers = instruments(config, dataset)
    loading = dataset.loading if dataset.is_streamed else None
    steps = dataset.steps_per_epoch
    recorder = recording.Recorder(folder, config, readers, steps, loading)
    stateful = [*readers, *extra_callbacks, recorder]
    stateful = [callback for callback in stateful if hasattr(callback, "get_state")]
    recorder.checkpoints = Checkpoints(
        folder.path / "checkpoints", model, stateful, run=folder
    )
    epoch = recorder.checkpoints.restore()
    if strategy == "multi_worker":
        restored = {"epoch restored": epoch, "batch restored": recorder.batch}
        facts = {**restored, "data": _features(dataset)}
        distribution.check_agreement(devices, facts)
    # Without a checkpoint even the line about the initial state is written anew.
    folder.begin(epoch if epoch or recorder.batch else -1)
    shown = [recording.ProgressBar(config, epoch)] if progress else []
    if _keras.replicas_of(model) == 1:
        evaluation = [recording.Evaluation(dataset.test, measures_of(config))]
        validation_data = None
    else:
        evaluation, validation_data = [], dataset.shared_out(devices, "test")
    chain = [*evaluation, *readers, *extra_callbacks, recorder, *shown]
    try:
        with recording.saved_at_sigterm(recorder), distribution.trained_in(devices):
            place = epoch, recorder.batch
            _fit(config, model, dataset, devices, place, chain, validation_data)
    finally:
        # Ctrl-C skips on_train_end, and the terminal must get its cursor back.
        for bar in shown:
            bar.stop()
    # Without a period to train, what came before is read back.
    final = recorder.final or run_folder.read_metrics(folder.path)[-1]
    return {
        "status": "diverged" if recorder.diverged else "finished",
        "epochs": final["epoch"],
        "final": final,
        "seconds": recorder.seconds,
        "seconds_per_step": recorder.seconds_per_step(),
        "parameters": sum(math.prod(v.shape) for v in forward_variables(model)),
        "weights": weights_hash(model),
        "steps_per_epoch": dataset.steps_per_epoch,
        "dataset": {
            "train": dataset.num_train,
            "test": dataset.num_test,
            "classes": dataset.classes and list(dataset.classes),
        },
        "strategy": strategy,
        "environment": _environment(revision),
    }


def _fit(config, model, dataset, devices, place, callbacks, validation_data):
    """Trains from an epoch, and some batches after it, to the end."""
    epoch, batch = place
    periods, steps = config.epochs // config.log_every, dataset.steps_per_epoch
    period, steps = epoch // config.log_every, steps * config.log_every
    callbacks = recording.Callbacks(callbacks, model, epochs=periods, steps=steps)
    fit = functools.partial(
        model.fit,
        validation_data=validation_data,
        validation_steps=None if validation_data is None else dataset.test_steps,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )
    if batch:
        # Keras makes them in the first step, and their sums are wanted before it.
        with devices.scope():
            _keras.symbolic_build(model, dataset.train_from(0).element_spec)
        callbacks.skipped = batch
        fit(
            dataset.shared_out(devices, "train", epoch, batch),
            steps_per_epoch=steps - batch,
            initial_epoch=period,
            epochs=period + 1,
        )
        callbacks.skipped = 0
        period += 1
    if not batch or (period < periods and not model.stop_training):
        fit(
            dataset.shared_out(devices, "train", period * config.log_every),
            steps_per_epoch=steps,
            initial_epoch=period,
            epochs=periods,
        )
    callbacks.end()


def _features(dataset):
    """What tells two data sets apart, equal on machines whose rounding differs."""
    x, y = next(iter(dataset.train_from(0)))
    return {
        "train": dataset.num_train,
        "test": dataset.num_test,
        **{
            f"first {name}": f"{np.mean(values):.4g} ± {np.std(values):.4g}"
            for name, values in (("inputs", x), ("targets", y))
        },
    }


def _check_backend(config):
    """Refuses what the Keras backend cannot run, and keeps devices free for it."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return
    if backend != "jax":
        raise ValueError(
            "Runs compute with TensorFlow or JAX. Received: "
            f"KERAS_BACKEND={backend}. The rules, layers and instruments work there "
            "with `model.fit`."
        )
    if keras.DTypePolicy(config.dtype).variable_dtype == "float64":
        raise ValueError(
            "config.dtype: Keras takes float64 for float32 on JAX. Use float32, or "
            "KERAS_BACKEND=tensorflow."
        )
    # TensorFlow, which only prepares the data, would take the memory of all GPUs.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def _set_determinism(config):
    # Keras refuses XLA under op determinism; on a CPU XLA is deterministic without it.
    if config.deterministic and config.jit_compile != "on":
        _keras.set_op_determinism(True)
    else:
        # A run before this one, in the same process, may have turned it on.
        _keras.set_op_determinism(False)


def commit():
    """The commit of the toolkit's code, in a checkout where git tells; else None."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def _environment(revision):
    if keras.backend.backend() == "tensorflow":
        devices = [device.name for device in tf.config.list_logical_devices()]
        versions = {}
    else:
        devices = keras.distribution.list_devices()
        versions = {"jax": importlib.import_module("jax").__version__}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "devices": devices,
        # Which kernels TensorFlow takes on a CPU: sums differ in their last digits.
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "keras_fa": __version__,
        "commit": revision,
        "backend": keras.backend.backend(),
        **versions,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }
