"""The fields of a run's configuration, their defaults, and the check against typos."""

import difflib

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


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
          leaves the argument out.
        - `model`: `name` (mlp, lenet, resnet18) and any other argument of its builder.
          `kernel_initializer` and `output_initializer` may also be "uniform_fan_in",
          uniform in +-1/sqrt(fan in), torch's default for dense layers;
          "uniform_width", uniform in +-1/sqrt(first hidden width) for every layer; or
          "normal(0.5)", normal with standard deviation 0.5.
        - `rule`: backprop, fa, ada_fa or sign_fa.
        - `feedback_initializer`: What draws B under "fa", by the same names; None is
          the layer's own kernel initializer.
        - `sign_scale`: Scale s of "sign_fa": "glorot" or a number in quotes.
        - `loss`: "cross_entropy" (softmax, integer labels), "exponential" (labels -1
          and 1), "half_squared_error" (summed) or the name of a Keras loss.
        - `optimizer`: `name` ("sgd" is `keras_fa.optimizers.TorchSGD`, "adam" Keras's),
          `learning_rate`, `momentum` (sgd) and `weight_decay` (coupled for sgd). For
          sgd also `weight_decay_layers`, the names of the only layers to decay (none:
          all), and `weight_decay_epochs`, after which it ends (None: never).
        - `schedule`: From epoch `boundaries[i]` on the learning rate is the initial one
          times `factors[i]`.
        - `epochs`: How many.
        - `batch_size`: Examples a step; None is the full batch.
        - `drop_last`: Whether to leave out a last partial batch.
        - `log_every`: Epochs between two log lines; divides `epochs`.
        - `checkpoint_every`: Epochs between two checkpoints; a multiple of `log_every`.
        - `instruments`: What each log line measures besides losses, on or off:
          `weight_alignment`; `layer_terms`, its norms and inner products;
          `conservation`; `ledger`, which accounts for every step and makes training
          slower; `gradient_alignment` and `error_alignment`, on the first `probe_size`
          training examples (None: on all); `minimum_norm`, for linear networks.
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
            "standardize": placeholder(str),
        }
    )
    config.model = ConfigDict({"name": "mlp", "kernel_initializer": "glorot_uniform"})
    config.rule = "fa"
    config.feedback_initializer = placeholder(str)
    config.sign_scale = "glorot"
    config.loss = "cross_entropy"
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
    config.schedule = ConfigDict({"boundaries": (), "factors": ()})
    config.epochs = 1
    config.batch_size = placeholder(int)
    config.drop_last = False
    config.log_every = 1
    config.checkpoint_every = 1
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
        }
    )
    config.instruments.probe_size = 512
    return config


# Sections whose fields are the arguments of something else, which checks them itself.
_OPEN = ("dataset", "model")


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
    _check_fields(config, default_config(), "")
    for field in ("epochs", "log_every", "checkpoint_every"):
        if config[field] < 1:
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
    if len(boundaries) != len(factors) or list(boundaries) != sorted(set(boundaries)):
        raise ValueError(
            "config.schedule needs increasing boundaries (epochs) and one factor for "
            f"each. Received boundaries={tuple(boundaries)}, factors={tuple(factors)}."
        )
    fields = config.optimizer
    if fields.name == "adam":
        for field in ("momentum", "weight_decay_layers", "weight_decay_epochs"):
            if fields[field]:
                raise ValueError(
                    f"config.optimizer.{field} has no meaning for adam. Received: "
                    f"{fields[field]!r}."
                )
    if config.jit_compile not in ("on", "off", "auto"):
        raise ValueError(
            'config.jit_compile must be "on", "off" or "auto". '
            f"Received: {config.jit_compile!r}."
        )


def _check_fields(config, known, prefix):
    for key in config:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f" Did you mean config.{prefix}{close[0]}?" if close else ""
            raise ValueError(
                f"Unknown field config.{prefix}{key}.{hint} "
                f"Known: {', '.join(sorted(known))}."
            )
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
