"""From a configuration to its data, model and instruments: the one reader of fields."""

import math
import re

import keras
import numpy as np
import tensorflow as tf

from keras_fa import callbacks, datasets, distribution, losses, models, optimizers
from keras_fa import rules as feedback_rules

# Above this number of steps in one call of the compiled loop nothing is gained, and
# Ctrl-C has to wait for the end of the call.
_MAX_STEPS_PER_CALL = 64


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


def instruments(fields, dataset):
    """The callbacks that a configuration's section asks for."""
    chosen = []
    if fields.weight_alignment:
        chosen.append(callbacks.WeightAlignment(terms=fields.layer_terms))
    if fields.conservation:
        chosen.append(callbacks.Conservation(ledger=fields.ledger))
    if fields.gradient_alignment or fields.error_alignment:
        probe = [array[: fields.probe_size] for array in dataset.arrays("train")]
        if fields.gradient_alignment:
            chosen.append(callbacks.GradientAlignment(*probe))
        if fields.error_alignment:
            chosen.append(callbacks.ErrorAlignment(*probe))
    if fields.minimum_norm:
        chosen.append(callbacks.MinimumNorm(*dataset.arrays("train")))
    return chosen


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
