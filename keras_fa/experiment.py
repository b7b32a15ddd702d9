"""Runs: from a configuration to a run folder. The only place where all parts meet."""

import importlib.metadata
import math
import os
import platform
import re

import keras
import ml_collections
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from keras_fa import (
    callbacks,
    datasets,
    distribution,
    losses,
    models,
    optimizers,
    recording,
    results,
)
from keras_fa import config as configuration
from keras_fa import rules as feedback_rules
from keras_fa.checkpoints import Checkpoints

# Above this number of steps in one call of the compiled loop nothing is gained, and
# Ctrl-C has to wait for the end of the call.
_MAX_STEPS_PER_CALL = 64


def run(config, workdir, strategy="default", progress=False, extra_callbacks=()):
    """Trains one network as a configuration says, and leaves a run folder.

    A run that was interrupted, even by SIGKILL, goes on after its last checkpoint when
    it is called again with the same arguments, and ends with the same weights, bit for
    bit, as one that was not (on a CPU, with `config.deterministic`). A run that is over
    is not run again.

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

    Returns:
        The summary, a dict: `status` ("finished", or "diverged" if the loss became NaN
        or infinite), `epochs`, the last log line under `final`, `seconds`,
        `seconds_per_step`, `parameters`, and the versions of what computed it.

    Raises:
        ValueError: If the configuration has a field that is unknown or impossible.
        keras_fa.results.RunFolderError: If the folder belongs to another configuration
            or another process.
        keras_fa.datasets.DatasetNotFound: If the data set is not there.
        keras_fa.distribution.ClusterError: If `TF_CONFIG` is wrong.
        keras_fa.distribution.WorkerLostError: If another worker stopped.
    """
    config = ml_collections.FrozenConfigDict(config)
    configuration.check(config)
    writes = strategy != "multi_worker" or distribution.read_cluster()[1] == 0
    with results.RunFolder(workdir, config.to_dict(), writes) as folder:
        summary = folder.summary()
        if summary is None:
            with distribution.lost_workers_explained(strategy):
                summary = _train(config, folder, strategy, progress, extra_callbacks)
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
    # Half-precision models have their loss in float32.
    precise = "float64" if config.dtype == "float64" else None
    loss, measures = losses.get(config.loss, precise)
    model.compile(
        optimizer=_optimizer(config, model, dataset.steps_per_epoch),
        loss=loss,
        metrics=[
            keras.metrics.MeanMetricWrapper(measure, name)
            for name, measure in measures.items()
        ],
        jit_compile=_jit_compile(config.jit_compile),
        steps_per_execution=1 if single_steps else _steps_per_call(steps_per_period),
    )
    model.optimizer.build(model.trainable_variables)
    return distribution.prepare(model)


def _train(config, folder, strategy, progress, extra_callbacks):
    _set_determinism(config)
    # Before anything is computed: several workers need that.
    scope = distribution.get_strategy(strategy).scope()
    dataset = load(config)
    with scope:
        model = build(config, dataset)
    instruments = _instruments(config.instruments, dataset)
    recorder = recording.Recorder(folder, config, instruments, dataset.steps_per_epoch)
    stateful = [*instruments, *extra_callbacks, recorder]
    stateful = [callback for callback in stateful if hasattr(callback, "get_state")]
    recorder.checkpoints = Checkpoints(folder.path / "checkpoints", model, stateful)
    epoch = recorder.checkpoints.restore()
    distribution.check_agreement(model.distribute_strategy, epoch)
    # Without a checkpoint even the line about the initial state is written anew.
    folder.begin(epoch if epoch > 0 else -1)
    shown = [recording.ProgressBar(config, epoch)] if progress else []
    evaluation, validation_data = [], dataset.test
    if model.distribute_strategy.num_replicas_in_sync == 1:
        measures = losses.get(config.loss)[1]
        evaluation = [recording.Evaluation(dataset.test, measures)]
        validation_data = None
    try:
        model.fit(
            dataset.train_from(epoch),
            steps_per_epoch=dataset.steps_per_epoch * config.log_every,
            initial_epoch=epoch // config.log_every,
            epochs=config.epochs // config.log_every,
            validation_data=validation_data,
            callbacks=[
                *evaluation,
                *instruments,
                *extra_callbacks,
                recorder,
                *shown,
            ],
            shuffle=False,
            verbose=0,
        )
    finally:
        # Ctrl-C skips on_train_end, and the terminal must get its cursor back.
        for bar in shown:
            bar.stop()
    # Without a period to train, what came before is read back.
    final = recorder.final or results.read_metrics(folder.path)[-1]
    return {
        "status": "diverged" if recorder.diverged else "finished",
        "epochs": final["epoch"],
        "final": final,
        "seconds": recorder.seconds,
        "seconds_per_step": recorder.seconds_per_step(),
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
        "steps_per_epoch": dataset.steps_per_epoch,
        "dataset": {
            "train": dataset.num_train,
            "test": dataset.num_test,
            "classes": dataset.classes and list(dataset.classes),
        },
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
    if fields.minimum_norm:
        instruments.append(callbacks.MinimumNorm(*dataset.arrays("train")))
    return instruments


def load(config):
    """The `keras_fa.datasets.Dataset` of a configuration.

    Args:
        config: As for `run`.

    Raises:
        ValueError: If the data set or one of its options is unknown, or an option has
            no meaning for the set.
        keras_fa.datasets.DatasetNotFound: If the data set is not there.
    """
    arguments = {k: v for k, v in config.dataset.to_dict().items() if v is not None}
    name = arguments.pop("name")
    try:
        return datasets.load(
            name,
            batch_size=config.batch_size,
            drop_last=config.drop_last,
            dtype=keras.DTypePolicy(config.dtype).variable_dtype,
            seed=config.seed,
            **arguments,
        )
    except TypeError as error:
        raise ValueError(f"config.dataset does not fit {name!r}: {error}") from error


def _seeds(seed):
    """Independent seeds for the initial weights and the feedback."""
    # The data draws from a stream of its own, and feedback must not take from the
    # weights' stream, or two rules with one seed would start from different weights.
    return [int(s >> 1) for s in np.random.SeedSequence([seed, 1]).generate_state(2)]


def _rule(config, seed):
    if config.rule == "fa":
        initializer = _initializer(config.feedback_initializer, config.model)
        return feedback_rules.FeedbackAlignment(initializer, seed)
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
    for field in ("kernel_initializer", "output_initializer"):
        if field in arguments:
            arguments[field] = _initializer(arguments[field], arguments)
    try:
        return _BUILDERS[name](
            dataset.input_shape,
            # A regression set has as many outputs as targets.
            num_classes=dataset.num_classes or dataset.target_shape[-1],
            rule=rule,
            dtype=config.dtype,
            **arguments,
        )
    except TypeError as error:
        raise ValueError(f"config.model does not fit {name!r}: {error}") from error


def _initializer(name, arguments):
    """The initializer of a name: `keras_fa.config` says which there are."""
    if name == "uniform_fan_in":
        return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    if name == "uniform_width":
        limit = 1 / math.sqrt(arguments["hidden_units"][0])
        return keras.initializers.RandomUniform(-limit, limit)
    normal = re.fullmatch(r"normal\(([-+.e\d]+)\)", str(name))
    if normal:
        return keras.initializers.RandomNormal(0.0, float(normal[1]))
    return name


def _optimizer(config, model, steps_per_epoch):
    fields = config.optimizer
    learning_rate = fields.learning_rate
    if config.schedule.boundaries:
        learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # Keras keeps the old value at the boundary step itself.
            [epoch * steps_per_epoch - 1 for epoch in config.schedule.boundaries],
            [learning_rate * factor for factor in (1.0, *config.schedule.factors)],
        )
    if fields.name == "sgd":
        epochs = fields.weight_decay_epochs
        optimizer = optimizers.TorchSGD(
            learning_rate,
            fields.momentum,
            fields.weight_decay,
            None if epochs is None else epochs * steps_per_epoch,
        )
        if fields.weight_decay_layers:
            weights = {v.name: v.trainable_variables for v in model.layers}
            for name in fields.weight_decay_layers:
                if not weights.get(name):
                    known = ", ".join(other for other in weights if weights[other])
                    raise ValueError(
                        "config.optimizer.weight_decay_layers: the model has no layer "
                        f"{name!r} with weights. Known: {known}."
                    )
            decayed = {
                id(variable)
                for name in fields.weight_decay_layers
                for variable in weights[name]
            }
            variables = model.trainable_variables
            optimizer.exclude_from_weight_decay(
                [v for v in variables if id(v) not in decayed]
            )
        return optimizer
    if fields.name == "adam":
        return keras.optimizers.Adam(learning_rate, weight_decay=fields.weight_decay)
    raise ValueError(f"Unknown optimizer: {fields.name!r}. Known: adam, sgd.")


def _set_determinism(config):
    # Keras refuses XLA under op determinism; on a CPU XLA is deterministic without it.
    if config.deterministic and config.jit_compile != "on":
        tf.config.experimental.enable_op_determinism()
    else:
        # A run before this one, in the same process, may have turned it on.
        tf_config.disable_op_determinism()


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
        # Which kernels TensorFlow takes on a CPU: sums differ in their last digits.
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        **versions,
    }
