"""The fields of a run's configuration, their defaults, and the check against typos."""

import functools
import inspect
import json
import math
import numbers
import os
import subprocess
import sys

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from keras_fa import registry


def default_config():
    """Every field of a run, with its default.

    Returns:
        A locked, type-safe `ml_collections.ConfigDict`:

        - `seed`: One integer from which all randomness follows: data, initial weights,
          feedback, order of the batches.
        - `dtype`: Dtype or dtype policy of the model.
        - `deterministic`: Whether to ask TensorFlow for deterministic kernels, without
          which a resumed run need not equal an undisturbed one bit for bit.
        - `jit_compile`: XLA "on" or "off"; "auto" is what was measured to be the
          faster: off on a CPU, Keras's choice on a GPU.
        - `dataset`: `name`, and any other argument of `keras_fa.datasets.load`; None
          leaves the argument out. `exclude_classes` are never drawn: those that a
          setting was tuned on. A data set of one's own is a function of its
          arguments, and of `seed` if it takes one, that returns
          `(x_train, y_train), (x_test, y_test)`.
        - `model`: `name` (mlp, lenet, resnet18, or a network of `keras.applications`
          such as "applications.MobileNetV2") and any other argument of its builder. A
          builder of one's own takes `input_shape`, `num_classes`, `rule` and `dtype` as
          far as it cares, and returns a Keras model; one that takes no rule is
          converted. `frozen` keeps a part of it as it was drawn, "body" or
          "all_but_last" or patterns of names: see `keras_fa.models.freeze`. These are
          the baselines of an audit, and one of two that differ in nothing else draws
          the same weights.
          `kernel_initializer` and `output_initializer` may also be "uniform_fan_in",
          uniform in +-1/sqrt(fan in), torch's default for dense layers;
          "uniform_width", uniform in +-1/sqrt(first hidden width) for every layer; or
          "normal(0.5)", normal with standard deviation 0.5.
        - `rule`: A name, such as "fa" (`keras_fa.rules.NAMES`), or a section of the
          name and arguments, such as `{"name": "sign_fa", "scale": 0.1}`. A rule's
          `initializer` may have the names of the model's. A table of name patterns
          gives each layer its own: `{"conv*": "sign_fa", "*": "fa"}`.
        - `loss`: A name or a section of name and arguments: "cross_entropy" (softmax,
          integer labels; its arguments `label_smoothing` and `top_k`, the k of a
          further accuracy), "exponential" (labels -1 and 1), "half_squared_error"
          (summed), a Keras loss, or a function (y_true, y_pred) of one's own.
        - `optimizer`: `name`: "sgd" is `keras_fa.optimizers.TorchSGD`, any other that
          of a Keras optimizer; `learning_rate`, `momentum`, `weight_decay` (coupled for
          sgd) and any other argument of the optimizer. For sgd also
          `weight_decay_layers`, the names of the only layers to decay (none: all), and
          `weight_decay_epochs`, after which it ends (None: never).
        - `schedule`: From epoch `boundaries[i]` on the learning rate is the initial one
          times `factors[i]`. Or, with `cosine`, it falls along half a cosine to 0 at
          the end, after it has risen from 0 in a line for the first `warmup` epochs.
        - `epochs`: How many.
        - `batch_size`: Examples a step; None is the full batch.
        - `drop_last`: Whether to leave out a last partial batch.
        - `log_every`: Epochs between two log lines; divides `epochs`.
        - `checkpoint_every`: Epochs between two checkpoints; a multiple of `log_every`.
        - `checkpoint_every_seconds`: Seconds between two checkpoints. As soon as they
          are over one is written, in the middle of an epoch too (with one replica of
          TensorFlow); those of `checkpoint_every` that come sooner are left out, but
          for the last. 0 writes those of `checkpoint_every` alone. On a cluster, whose
          file systems answer slowly, 60 or more.
        - `instruments`: What each log line measures besides losses, on or off:
          `weight_alignment`; `layer_terms`, its norms and inner products;
          `conservation`; `ledger`, which accounts for every step and makes training
          slower; `gradient_alignment` and `error_alignment`, on the first `probe_size`
          training examples (None: on all); `minimum_norm`, for linear networks.
          `others` holds further instruments, or any Keras callbacks, each a name or a
          section of name and arguments: `("mine:Curvature",)`.

        Wherever a name stands for a thing it may be one that was given with
        `keras_fa.register`, or "module:function", which is imported from beside the
        configuration file, the current folder, or where Python looks.
    """
    config = ConfigDict()
    config.seed = 0
    config.dtype = "float32"
    config.deterministic = True
    config.jit_compile = "auto"
    config.dataset = ConfigDict(
        {
            "name": "digits",
            "train_size": placeholder(int),
            "label_noise": placeholder(float),
            "noise_over": placeholder(str),
            "num_classes": placeholder(int),
            "class_seed": placeholder(int),
            "exclude_classes": placeholder(tuple),
            "standardize": placeholder(str),
            "image_size": placeholder(int),
            "memory_bytes": placeholder(int),
            "augment": placeholder(tuple),
            "on_bad_example": placeholder(str),
            "threads": placeholder(int),
            "workers": placeholder(int),
        }
    )
    config.model = ConfigDict({"name": "mlp"})
    config.rule = FieldReference("fa", field_type=object)
    config.loss = FieldReference("cross_entropy", field_type=object)
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "weight_decay_layers": (),
            "weight_decay_epochs": placeholder(int),
        }
    )
    config.schedule = ConfigDict(
        {"boundaries": (), "factors": (), "cosine": False, "warmup": 0}
    )
    config.epochs = 1
    config.batch_size = placeholder(int)
    config.drop_last = False
    config.log_every = 1
    config.checkpoint_every = 1
    config.checkpoint_every_seconds = 0.0
    config.instruments = ConfigDict(
        {
            "weight_alignment": True,
            "layer_terms": False,
            "conservation": True,
            "ledger": False,
            "gradient_alignment": False,
            "error_alignment": False,
            "minimum_norm": False,
            "probe_size": placeholder(int),
            "others": (),
        }
    )
    config.instruments.probe_size = 512
    return config


@functools.cache
def _known():
    """Every field, to be looked at only."""
    return default_config()


# Sections whose fields are the arguments of something else, which checks them itself.
_OPEN = ("dataset", "model", "optimizer")
# Fields that are a name or a section of a name and arguments.
NAMED = ("rule", "loss")
# What `named` calls a table of rules by layer.
BY_LAYER = "by_layer"


def named(value):
    """The name and the arguments of a thing in a configuration.

    Args:
        value: A name, or a dict or `ConfigDict` of `name` and arguments.

    Returns:
        `(name, arguments)`, the arguments a dict; of a table of rules by layer,
        `BY_LAYER` and the table.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        arguments = dict(value)
        if value and "name" not in value:
            return BY_LAYER, arguments
        if isinstance(name := arguments.pop("name", None), str):
            return name, arguments
    elif isinstance(value, str):
        return value, {}
    raise ValueError(
        'Expected a name, or a section {"name": ..., **arguments}. Received: '
        f"{value!r}."
    )


def set_value(config, field, value):
    """Sets a field, which may take a section in a name's place and the reverse.

    The name that a section has already leaves the section as it is, arguments and all.

    Args:
        config: `ConfigDict` or a section of one, unlocked.
        field: Its last word.
        value: The value.

    Raises:
        TypeError: If the field is of another kind.
    """
    if field in NAMED:
        if isinstance(value, str) and named(config[field])[0] == value:
            return
        with config.ignore_type():
            config[field] = value
    else:
        config[field] = value


def check(config):
    """Refuses a configuration that could not run, before anything is computed.

    Args:
        config: A `ConfigDict` or nested dict with the fields of `default_config`.

    Raises:
        ValueError: If a field is unknown (with the nearest known one), missing, or
            contradicts another.
    """
    if not isinstance(config, ConfigDict):
        config = ConfigDict(config)
    _check_fields(config, _known(), "")
    _check_values(config.to_dict(), "config")
    _check_kinds(config, _known(), "")
    for field in ("epochs", "log_every", "checkpoint_every"):
        if config[field] is None or config[field] < 1:
            raise ValueError(f"config.{field} must be at least 1, not {config[field]}.")
    if config.epochs % config.log_every:
        raise ValueError(
            f"config.log_every ({config.log_every}) must divide config.epochs "
            f"({config.epochs}), so that the last epoch is logged."
        )
    if config.checkpoint_every % config.log_every:
        raise ValueError(
            f"config.checkpoint_every ({config.checkpoint_every}) must be a multiple "
            f"of config.log_every ({config.log_every})."
        )
    boundaries, factors = config.schedule.boundaries, config.schedule.factors
    for epoch in boundaries:
        if isinstance(epoch, bool) or not isinstance(epoch, numbers.Integral):
            raise ValueError(
                f"config.schedule.boundaries are whole epochs. Received: {epoch!r}."
            )
    if len(boundaries) != len(factors) or list(boundaries) != sorted(set(boundaries)):
        raise ValueError(
            "config.schedule needs increasing boundaries (epochs) and one factor for "
            f"each. Received boundaries={tuple(boundaries)}, factors={tuple(factors)}."
        )
    cosine, warmup = config.schedule.cosine, config.schedule.warmup
    if (cosine and boundaries) or (warmup and not cosine) or warmup >= config.epochs:
        raise ValueError(
            "config.schedule has either boundaries or cosine, and warmup with cosine "
            "alone, of fewer epochs than config.epochs. Received: boundaries="
            f"{tuple(boundaries)}, cosine={cosine}, warmup={warmup}, "
            f"epochs={config.epochs}."
        )
    for field in NAMED:
        try:
            named(config[field])
        except ValueError as error:
            raise ValueError(f"config.{field}: {error}") from error
    _check_numbers(config)
    _check_optimizer(config.optimizer)
    if config.jit_compile not in ("on", "off", "auto"):
        raise ValueError(
            'config.jit_compile must be "on", "off" or "auto". '
            f"Received: {config.jit_compile!r}."
        )


def _check_numbers(config):
    """Refuses numbers that no run could use."""
    rules = {
        "seed": (config.seed, 0, math.inf),
        "checkpoint_every_seconds": (config.checkpoint_every_seconds, 0, math.inf),
        "batch_size": (config.batch_size, 1, math.inf),
        "schedule.warmup": (config.schedule.warmup, 0, math.inf),
        "instruments.probe_size": (config.instruments.probe_size, 1, math.inf),
        "optimizer.weight_decay_epochs": (
            config.optimizer.weight_decay_epochs,
            1,
            math.inf,
        ),
    }
    for name in ("learning_rate", "momentum", "weight_decay"):
        rules[f"optimizer.{name}"] = (config.optimizer.get(name), 0, math.inf)
    for number, factor in enumerate(config.schedule.factors):
        rules[f"schedule.factors[{number}]"] = (factor, 0, math.inf)
    for number, epoch in enumerate(config.schedule.boundaries):
        rules[f"schedule.boundaries[{number}]"] = (epoch, 1, math.inf)
    for field, (value, low, high) in rules.items():
        if value is None and field not in ("seed", "optimizer.learning_rate"):
            continue
        if not (_is_number(value) and low <= value < high):
            raise ValueError(
                f"config.{field} must be a finite number of at least {low}. Received: "
                f"{value!r}."
            )


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_values(value, field):
    """Refuses what a run folder could not hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{field} needs texts as names. Received: {key!r}.")
            _check_values(item, f"{field}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_values(item, f"{field}[{number}]")
    elif hasattr(value, "tolist"):
        _check_values(value.tolist(), field)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{field} must be a finite number. Received: {value!r}.")
    elif not isinstance(value, (int, str, type(None))):
        raise ValueError(
            f"{field} must be a text, a number, a switch, None, or a list or section "
            f"of these. Received: {type(value).__name__} {value!r:.80}."
        )


_KINDS = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: _is_number(value) and isinstance(value, numbers.Integral),
    float: _is_number,
    str: lambda value: isinstance(value, str),
    tuple: lambda value: isinstance(value, (list, tuple)),
}
# Fields with a default that may be None all the same.
_OPTIONAL = ("probe_size", "momentum", "weight_decay")


def _check_kinds(config, known, prefix):
    for key in known:
        kind, value = known.get_type(key), config.get(key)
        if isinstance(known[key], ConfigDict):
            _check_kinds(value, known[key], f"{prefix}{key}.")
        elif value is None:
            # Those that count epochs, and names, have an error of their own.
            if known[key] is None or key in _OPTIONAL or kind in (int, object):
                continue
            raise ValueError(f"config.{prefix}{key} takes {kind.__name__}, not None.")
        elif kind in _KINDS and not _KINDS[kind](value):
            raise ValueError(
                f"config.{prefix}{key} takes {kind.__name__}. Received: {value!r}."
            )


def _check_optimizer(section):
    """Refuses arguments that neither the optimizer nor every optimizer has."""
    fields = _known().optimizer
    if section.name == "sgd" and all(key in fields for key in section):
        takes = _OF_SGD
    else:
        takes = _arguments_of(section.name)
    known = [*fields, *takes]
    for key in section:
        if key not in known:
            hint = registry.did_you_mean(key, known, "config.optimizer.{}")
            raise ValueError(
                f"Unknown field config.optimizer.{key}.{hint} Known: "
                f"{', '.join(sorted(set(known)))}."
            )
        # Fields of every configuration, which must be off where they mean nothing.
        if key in fields and section[key]:
            if key in takes or key == "name" or section.name == "sgd":
                continue
            raise ValueError(
                f"config.optimizer.{key} has no meaning for {section.name}. Received: "
                f"{section[key]!r}."
            )
    for key, default in takes.items():
        if key in section and key != "name":
            _check_argument(key, section[key], default)


# What of `optimizers.TorchSGD` is a field of every configuration: no library is loaded
# for the optimizer of most runs.
_OF_SGD = {"name": None, "learning_rate": 0.01, "momentum": 0.0, "weight_decay": 0.0}


def _arguments_of(optimizer):
    """`{argument: default}` of what a name stands for; "" for what is not plain."""
    if "keras" in sys.modules:
        found = _inspected(optimizer)
    else:
        found = _inspected_elsewhere(optimizer)
    if isinstance(found, str):
        raise ValueError(f"config.optimizer: {found}")
    return found


def _inspected(optimizer):
    """The arguments, or the text of what is wrong with the name."""
    from keras_fa import optimizers

    try:
        found = optimizers.get(optimizer)
    except ValueError as error:
        return str(error)
    defaults = {k: p.default for k, p in inspect.signature(found).parameters.items()}
    plain = (int, float, str, type(None))
    return {
        key: default if isinstance(default := defaults.get(key), plain) else ""
        for key in optimizers.arguments(found)
    }


@functools.cache
def _inspected_elsewhere(optimizer):
    """The same by a process that ends: this one is to stay without TensorFlow."""
    code = (
        "import json, sys; from keras_fa.lab import config; "
        "print(json.dumps(config._inspected(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(optimizer)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


def _check_argument(key, value, default):
    """Refuses a number that an optimizer would take and go wrong with."""
    wanted = None
    if value is None:
        if _is_number(default):
            wanted = "a number"
    elif key in ("clipnorm", "clipvalue", "global_clipnorm"):
        if not (_is_number(value) and value > 0):
            wanted = "a positive number or None"
    elif not _is_number(value):
        if _is_number(default) or (default is None and isinstance(value, str)):
            wanted = "a number"
    elif value < 0 and not (_is_number(default) and default < 0):
        wanted = "a number of at least 0"
    elif key.startswith(("beta_", "rho", "momentum", "ema_momentum")) and value >= 1:
        wanted = "a number in [0, 1)"
    if wanted:
        raise ValueError(
            f"config.optimizer.{key} must be {wanted}. Received: {value!r}."
        )


def _check_fields(config, known, prefix):
    for key in config:
        if key not in known:
            hint = registry.did_you_mean(key, known, f"config.{prefix}{{}}")
            raise ValueError(
                f"Unknown field config.{prefix}{key}.{hint} "
                f"Known: {', '.join(sorted(known))}."
            )
        if not prefix and key in NAMED:
            continue
        is_section = isinstance(known[key], ConfigDict)
        if is_section != isinstance(config[key], ConfigDict):
            kind = "a section of fields" if is_section else "a value"
            raise ValueError(f"config.{prefix}{key} must be {kind}.")
        if is_section and key not in _OPEN:
            _check_fields(config[key], known[key], f"{prefix}{key}.")
    for key in known:
        if key not in config:
            raise ValueError(
                f"The field config.{prefix}{key} is missing. Start from "
                "keras_fa.config.default_config(), which has them all."
            )
