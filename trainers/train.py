r"""Trains a network under one feedback rule or several, from a config file.

Example:
    keras-fa train --config=digits --workdir=runs/digits \
        --rules=backprop,fa,ada_fa,sign_fa

A run that was stopped goes on when the same command is given again.
"""

import os
import re
import sys

import _binary
from absl import app, flags
from rich.console import Console
from rich.table import Table

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Config file, or the name of one; --config.field=value sets a field of it.",
    required=True,
)
_WORKDIR = flags.DEFINE(
    _binary.PATH,
    "workdir",
    None,
    "Run folder: results go there, and only there.",
    required=True,
)
_RULES = flags.DEFINE_list(
    "rules",
    None,
    "Feedback rules to train, one after the other, each in a folder of its own in "
    "--workdir. Without it the config's one rule is trained in --workdir itself.",
)
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "default",
    ["default", "mirrored", "multi_worker"],
    "Where the model lives: on one device, mirrored on all devices of this machine, or "
    "on the workers that the environment variable TF_CONFIG names, each of which runs "
    "this command.",
)
_LOGICAL_DEVICES = flags.DEFINE_integer(
    "logical_devices",
    None,
    "Makes so many devices of the CPU, to try --strategy=mirrored out.",
    lower_bound=1,
)
_TRACK = flags.DEFINE_list(
    "track",
    [],
    "Libraries to which the config and the log lines go too: tensorboard, mlflow, "
    "wandb, trackio.",
)
_FIGURES = flags.DEFINE_bool("figures", True, "Whether to draw the figures.")


def _parse(argv):
    """Parses the flags, among them one for each field that `--config.field` sets."""
    for given, following in zip(argv, [*argv[1:], "-"], strict=True):
        field = re.fullmatch(r"--?(no)?(config\..+?)(=.*)?", given, re.DOTALL)
        if field is None or field[2] in flags.FLAGS:
            continue
        # As for any flag of absl, --flag and --noflag are the two values of a switch.
        is_switch = field[1] or not (field[3] or not following.startswith("-"))
        define = flags.DEFINE_bool if is_switch else flags.DEFINE_string
        define(field[2], None, "A field of the config.")
    return app.parse_flags_with_usage(argv)


@_binary.program("The same command goes on after the last checkpoint.", _parse)
def main():
    """Runs what the flags say, then prints the table and the figures' paths."""
    from keras_fa import distribution, experiment
    from keras_fa.lab.config import named

    # The brackets of a name or an error are no markup.
    console = Console(markup=False, emoji=False)
    workdir = _WORKDIR.value
    config = _config()
    shared = {"strategy": _STRATEGY.value, "progress": True, "track": _TRACK.value}
    if _LOGICAL_DEVICES.value is not None:
        distribution.set_logical_devices(_LOGICAL_DEVICES.value)
    chief = True
    try:
        if _STRATEGY.value == "multi_worker":
            # The first thing that TensorFlow does must be to meet the other workers.
            distribution.get_strategy("multi_worker")
            chief = distribution.read_cluster()[1] == 0
            shared["progress"] = chief
        if _RULES.value:
            summaries = experiment.compare(config, workdir, _RULES.value, **shared)
            runs = {rule: workdir / rule for rule in _RULES.value}
        else:
            rule, _ = named(config.rule)
            summaries = {rule: experiment.run(config, workdir, **shared)}
            runs = {rule: workdir}
    except distribution.WorkerLostError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # The ordinary way out waits for the workers that are no more.
        os._exit(1)
    if not chief:
        return
    console.print(_table(summaries))
    if _FIGURES.value:
        for path in _draw(config, runs, workdir / "figures"):
            console.print(f"figure: {path}", soft_wrap=True)
    if any(summary["status"] == "diverged" for summary in summaries.values()):
        sys.exit("error: the loss became NaN or infinite: see the table's status.")


def _config():
    from keras_fa.lab import plans

    config = plans.read_config(_CONFIG.value)
    fields = {
        name.removeprefix("config."): str(flags.FLAGS[name].value)
        for name in flags.FLAGS
        if name.startswith("config.")
    }
    if foreign := plans.override(config, fields):
        print(
            f"note: {config.model.name} takes no {', '.join(foreign)}: what "
            f"{_CONFIG.value} gives there is left out.",
            file=sys.stderr,
        )
    return config


def _table(summaries):
    table = Table("rule", "epochs")
    for heading in ("train\nloss", "test\nloss", "test\nacc. %"):
        table.add_column(heading, justify="right")
    for heading in ("cos(W,B)\noutput", "mean\n|Φ/Φ(0)-1|", "ms a\nstep"):
        table.add_column(heading, justify="right")
    for rule, summary in summaries.items():
        final = summary["final"]
        alignment = [v for k, v in final.items() if k.startswith("alignment/")]
        deviation = [v for k, v in final.items() if k.startswith("conservation/")]
        accuracy = final.get("val_accuracy")
        step = summary["seconds_per_step"]
        diverged = "diverged: " if summary["status"] == "diverged" else ""
        table.add_row(
            rule,
            f"{diverged}{summary['epochs']}",
            _number(final.get("loss")),
            _number(final.get("val_loss")),
            _number(None if accuracy is None else 100 * accuracy, ".2f"),
            _number(alignment[-1] if alignment else None, ".3f"),
            _number(_mean(deviation), ".2g"),
            _number(None if step is None else 1000 * step, ".2f"),
        )
    return table


def _mean(values):
    if not values or None in values:
        return None
    return sum(values) / len(values)


def _number(value, form=".4g"):
    return "-" if value is None else format(value, form)


def _draw(config, runs, folder):
    from keras_fa import figures

    runs = list(runs.values())
    drawings = {
        "potentials": figures.potential_ratio,
        "ledger": figures.drift_against_ledger,
        "alignment": figures.weight_alignment,
        "gradient": figures.gradient_decomposition,
        "accuracy": figures.accuracy,
    }
    # Of minibatch runs theorem 5.1 says nothing, and the figure would only say so.
    if config.batch_size is None:
        drawings["loss_bound"] = figures.loss_bound
    paths = {folder / f"{name}.png": draw for name, draw in drawings.items()}
    return [path for path, draw in paths.items() if draw(runs, path) is not None]


if __name__ == "__main__":
    main()
