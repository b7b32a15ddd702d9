"""From a configuration to its data, model and instruments: the one reader of fields."""

import contextlib
import functools
import inspect
import math
import re

import keras
import numpy as np
import tensorflow as tf

from keras_fa import (
    _keras,
    callbacks,
    datasets,
    distribution,
    losses,
    models,
    optimizers,
    registry,
    rules,
)
from keras_fa.lab.config import BY_LAYER, named
from keras_fa.layers import feedback_layers

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
    # Keras draws the seeds of layers and initializers from Python's `random`, which
    # other threads of the process may use as well.
    with _keras.seeded(model_seed):
        model = _network(config, dataset, rule_of(config, feedback_seed))
    steps_per_period = dataset.steps_per_epoch * config.log_every
    single_steps = config.instruments.ledger
    # Half-precision models have their loss in float32.
    precise = "float64" if config.dtype == "float64" else None
    loss, measures = _loss(config, precise)
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


def measures_of(config):
    """What is logged beside the loss: `{name: function of (y_true, y_pred)}`."""
    return _loss(config, None)[1]


def instruments(config, dataset):
    """The callbacks that a configuration asks for, a list.

    Args:
        config: As for `run`.
        dataset: The data set of the run, for those that measure on it.

    Raises:
        ValueError: If one is unknown, or an argument does not fit it.
    """
    fields = config.instruments
    chosen = []
    if fields.weight_alignment:
        chosen.append(callbacks.WeightAlignment(terms=fields.layer_terms))
    if fields.conservation:
        chosen.append(callbacks.Conservation(ledger=fields.ledger))
    probe = _probe(fields.probe_size, dataset)
    if fields.gradient_alignment:
        chosen.append(callbacks.GradientAlignment(**probe()))
    if fields.error_alignment:
        chosen.append(callbacks.ErrorAlignment(**probe()))
    if fields.minimum_norm:
        chosen.append(callbacks.MinimumNorm(*dataset.arrays("train")))
    for number, value in enumerate(fields.others):
        with _field(f"config.instruments.others[{number}]"):
            name, arguments = named(value)
            thing = registry.get("instrument", name)
            given = {"dataset": dataset}
            if {"x", "y"} <= inspect.signature(thing).parameters.keys():
                given |= probe()
            given = {key: v for key, v in given.items() if key not in arguments}
            chosen.append(registry.made("instrument", thing, arguments, given))
    return chosen


def _probe(size, dataset):
    """A function that returns the first training examples as x and y."""

    @functools.cache
    def probe():
        x, y = dataset.first("train", size)
        return {"x": x, "y": y}

    return probe


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
    for field in _OF_THE_RUN & arguments.keys():
        raise ValueError(
            f"config.dataset.{field} is the whole run's: set config.{field}."
        )
    changes = [named(change) for change in arguments.pop("augment", ())]
    if changes:
        if _mixes(config) and named(config.loss)[0] != "cross_entropy":
            raise ValueError(
                "config.dataset.augment: mixup makes targets that are vectors, which "
                f"cross_entropy takes. Received: config.loss={config.loss!r}."
            )
        arguments["augment"] = [{"name": n, **given} for n, given in changes]
    with _field("config.dtype"):
        dtype = keras.DTypePolicy(config.dtype).variable_dtype
    try:
        with _field("config.dataset"):
            registry.get("dataset", name)
            return datasets.load(
                name,
                batch_size=config.batch_size,
                drop_last=config.drop_last,
                dtype=dtype,
                seed=config.seed,
                **arguments,
            )
    except datasets.UnknownOptionError as error:
        raise ValueError(f"config.dataset: {error}") from error
    except ValueError as error:
        # What `load` says of the whole run's fields.
        words = str(error).removeprefix("config.dataset: ")
        if not words.startswith(tuple(_OF_THE_RUN)):
            raise
        raise ValueError(f"config.{words}") from error


# Arguments of `load` that are fields of the whole configuration.
_OF_THE_RUN = {"batch_size", "drop_last", "dtype", "seed"}


def check_loss(config, model, dataset):
    """Refuses a loss that does not fit what the network gives and the data has.

    Args:
        config: As for `run`.
        model: As `build` returns it, on one replica.
        dataset: As `load` returns it.

    Raises:
        ValueError: With the shapes of both.
    """
    x, y = next(iter(dataset.test))
    # As many examples as there are outputs could be taken for them.
    size = 3 if model.output_shape[-1] == 2 else 2
    x, y = (keras.ops.convert_to_tensor(part[:size].numpy()) for part in (x, y))
    outputs = model(x, training=False)
    try:
        model.compute_loss(x, y, outputs, training=False)
    except Exception as error:
        raise ValueError(
            f"config.loss: {named(config.loss)[0]} does not fit the targets "
            f"{tuple(y.shape[1:])} of {dataset.name!r} and the outputs "
            f"{tuple(outputs.shape[1:])} of the model: {str(error).splitlines()[0]}"
        ) from error


@contextlib.contextmanager
def _field(name):
    """Says of a value that is refused which field it stood in."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} does not fit into memory: {reason}") from error


def _seeds(seed):
    """Independent seeds for the initial weights and the feedback."""
    # The data draws from a stream of its own, and feedback must not take from the
    # weights' stream, or two rules with one seed would start from different weights.
    return [int(s >> 1) for s in np.random.SeedSequence([seed, 1]).generate_state(2)]


def rule_of(config, seed=0):
    """The rule of a configuration, or a table of rules by layer.

    Args:
        config: As for `run`.
        seed: Of what the rule draws.

    Raises:
        ValueError: If it is unknown, or an argument does not fit it.
    """
    with _field("config.rule"):
        name, arguments = named(config.rule)
        if name != BY_LAYER:
            return _one_rule(name, arguments, config, seed)
        # Two rules that draw must not draw the same.
        return {
            pattern: _one_rule(*named(value), config, (seed + number) % 2**31)
            for number, (pattern, value) in enumerate(arguments.items())
        }


def _one_rule(name, arguments, config, seed):
    rule = registry.get("rule", name)
    if not isinstance(rule, type):
        return rules.get(rule)
    if "initializer" in arguments:
        initializer = _initializer(arguments["initializer"], config.model)
        arguments = {**arguments, "initializer": initializer}
    given = {} if "seed" in arguments else {"seed": seed}
    return registry.made("rule", rule, arguments, given)


def _network(config, dataset, rule):
    arguments = config.model.to_dict()
    name, frozen = arguments.pop("name"), arguments.pop("frozen", None)
    for field in ("kernel_initializer", "output_initializer"):
        if field in arguments:
            with _field(f"config.model.{field}"):
                arguments[field] = _initializer(arguments[field], arguments)
                keras.initializers.get(arguments[field])
    with _field("config.model"):
        model = models.network(
            name,
            dataset.input_shape,
            # A regression set has as many outputs as targets.
            num_classes=dataset.num_classes or dataset.target_shape[-1],
            rule=rule,
            dtype=config.dtype,
            **arguments,
        )
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"The builder {name!r} must return a Keras model. Received: {model!r}."
            )
        if not feedback_layers(model) and not isinstance(rule, rules.Backprop):
            raise ValueError(
                f"The model {name!r} has no feedback layers, so the rule {rule!r} "
                "would change nothing. Build it of keras_fa.layers with the `rule` "
                "that the builder is given, or let it take no rule and be converted."
            )
    if frozen is not None:
        with _field("config.model.frozen"):
            models.freeze(model, frozen)
    return model


def _mixes(config):
    """Whether training targets are vectors over the classes."""
    changes = config.dataset.get("augment") or ()
    return "mixup" in [named(change)[0] for change in changes]


def _loss(config, dtype):
    with _field("config.loss"):
        name, arguments = named(config.loss)
        if _mixes(config):
            arguments["vectors"] = True
        return losses.get(name, dtype, **arguments)


def _initializer(name, arguments):
    """The initializer of a name: `keras_fa.config` says which there are."""
    if name == "uniform_fan_in":
        return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    if name == "uniform_width":
        limit = 1 / math.sqrt(arguments["hidden_units"][0])
        return keras.initializers.RandomUniform(-limit, limit)
    normal = re.fullmatch(r"normal\((.*)\)", str(name))
    if not normal:
        return name
    try:
        deviation = float(normal[1])
    except ValueError:
        deviation = math.nan
    if not 0 <= deviation < math.inf:
        raise ValueError(
            "normal(...) takes the standard deviation, a finite number of at least 0. "
            f"Received: {name!r}."
        )
    return keras.initializers.RandomNormal(0.0, deviation)


def _optimizer(config, model, steps_per_epoch):
    arguments = config.optimizer.to_dict()
    name = arguments.pop("name")
    if config.schedule.boundaries:
        rate = arguments["learning_rate"]
        arguments["learning_rate"] = keras.optimizers.schedules.PiecewiseConstantDecay(
            # Keras keeps the old value at the boundary step itself.
            [epoch * steps_per_epoch - 1 for epoch in config.schedule.boundaries],
            [rate * factor for factor in (1.0, *config.schedule.factors)],
        )
    elif config.schedule.get("cosine"):
        warmup = config.schedule.warmup * steps_per_epoch
        arguments["learning_rate"] = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else arguments["learning_rate"],
            config.epochs * steps_per_epoch - warmup,
            warmup_target=arguments["learning_rate"] if warmup else None,
            warmup_steps=warmup,
        )
    with _field("config.optimizer"):
        optimizer_class = optimizers.get(name)
        layers = arguments.pop("weight_decay_layers")
        epochs = arguments.pop("weight_decay_epochs")
        takes = optimizers.arguments(optimizer_class)
        if optimizer_class is optimizers.TorchSGD:
            if epochs is not None:
                arguments["weight_decay_steps"] = epochs * steps_per_epoch
        elif layers or epochs is not None:
            raise ValueError(
                "weight_decay_layers and weight_decay_epochs have a meaning for sgd "
                f"alone. Received: {name!r}."
            )
        for field in ("momentum", "weight_decay"):
            if field not in takes and not arguments[field]:
                del arguments[field]
        optimizer = registry.made("optimizer", optimizer_class, arguments)
        if layers:
            _decay_only(optimizer, model, layers)
    return optimizer


def _decay_only(optimizer, model, layers):
    """Takes weight decay off every weight but those of some layers."""
    weights = {layer.name: layer.trainable_variables for layer in model.layers}
    for name in layers:
        if not weights.get(name):
            known = [other for other in weights if weights[other]]
            raise ValueError(
                f"weight_decay_layers: the model has no layer {name!r} with weights."
                f"{registry.did_you_mean(name, known)} Known: {', '.join(known)}."
            )
    decayed = {id(variable) for name in layers for variable in weights[name]}
    optimizer.exclude_from_weight_decay(
        [v for v in model.trainable_variables if id(v) not in decayed]
    )


def _jit_compile(choice):
    if choice != "auto":
        return choice == "on"
    # Measured on CPUs: XLA makes the papers' dense networks up to 1.07 times faster,
    # small ones 2 times and convolutions 2 to 4 times slower. On GPUs, and on JAX, that
    # knows no other way to compile, Keras decides.
    decides = keras.backend.backend() == "jax" or tf.config.list_logical_devices("GPU")
    return "auto" if decides else False


def _steps_per_call(steps):
    """The largest divisor of `steps` that one call may take: fit would overrun else."""
    # Several replicas and several steps in one call do not go together in Keras 3.15:
    # TensorFlow fails with "You must feed a value for placeholder tensor".
    if _keras.replicas() > 1:
        return 1
    return max(n for n in range(1, _MAX_STEPS_PER_CALL + 1) if steps % n == 0)
