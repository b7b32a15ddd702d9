"""The runs of a figure: their logs, wherever they are, their names and their lines."""

import collections
import dataclasses
import itertools
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping

import keras
import matplotlib.colors
import numpy as np
import pandas as pd

from keras_fa import registry, rules
from keras_fa.lab import run_folder
from keras_fa.layers import feedback_layers

# For runs whose rule has no colour of its own.
_FREE_COLORS = ("#cc79a7", "#56b4e9", "#e69f00", "#8c564b", "#6a3d9a", "#17becf")
# Dotted lines are bounds.
_DASHES = ("-", "--", "-.")


@dataclasses.dataclass
class Log:
    """The log of one run, as a figure draws it.

    Attributes:
        frame: `pandas.DataFrame`, a row for each line of the log; the column `epoch`
            counts the epochs that are over.
        path: Where it was read from; None for what is in memory.
        config: The configuration, a dict; None outside of run folders.
        rule: Label of the feedback rule; None where that is not known.
        color: Colour of its lines; that of the rule until the runs are told apart.
        dash: Their line style.
        name: What it is called; None until the runs are told apart.
    """

    frame: pd.DataFrame
    path: pathlib.Path | None = None
    config: dict | None = None
    rule: str | None = None
    color: str | tuple | None = None
    dash: str = "-"
    name: str | None = None


def read(runs, labels=None):
    """The logs that a figure was given, each with a name and a line of its own.

    Args:
        runs: One log, a list of logs or a dict of them: see `keras_fa.figures`.
        labels: Names in the order of the runs; None for those that they have.

    Returns:
        List of `Log`.

    Raises:
        ValueError: If there is not one label for each run, or two are the same, or a
            file is not that of a CSVLogger.
        TypeError: If something among the runs is no log.
        OSError: If there is no such folder or file.
        keras_fa.results.RunFolderError: If a folder holds no run.
    """
    if isinstance(runs, Mapping) and not _is_history(runs):
        names, sources = list(runs), list(runs.values())
    else:
        one = isinstance(runs, str | os.PathLike | pd.DataFrame | Mapping)
        one = one or isinstance(runs, keras.callbacks.History)
        sources = [runs] if one or not isinstance(runs, Iterable) else list(runs)
        names = [None] * len(sources)
    if labels is not None:
        names = [labels] if isinstance(labels, str) else list(labels)
        if len(names) != len(sources) or len(set(names)) < len(names):
            raise ValueError(
                f"Expected distinct labels, one for each of the {len(sources)} runs. "
                f"Received: labels={labels!r}."
            )
    logs = []
    for name, source in zip(names, sources, strict=True):
        log = _log(source)
        log.name = name
        if log.rule is None and name in registry.names("rule"):
            log.rule, log.color = look(name)
        logs.append(log)
    _name(logs)
    _dress(logs)
    return logs


def _is_history(runs):
    """Whether a dict is the `history` of a History: all columns of numbers."""
    return all(isinstance(v, list | tuple | np.ndarray) for v in runs.values())


def _log(source):
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source).expanduser()
        return _folder(path) if path.is_dir() else _csv(path)
    if isinstance(source, keras.callbacks.History):
        frame = _columns(source.history, source.epoch)
        return Log(frame, None, None, *_look_of_model(source.model))
    if isinstance(source, Mapping) and _is_history(source):
        return Log(_columns(source, []))
    if isinstance(source, pd.DataFrame):
        return Log(_counted(source, from_zero=False))
    raise TypeError(
        "Expected a run folder, the file of a CSVLogger, a History of Keras or its "
        "dict, a pandas.DataFrame, or a list or dict of these. Received: "
        f"{type(source).__name__} {source!r:.80}."
    )


def _folder(path):
    config = run_folder.read_config(path)
    frame = _counted(run_folder.read_frame(path), from_zero=False)
    return Log(frame, path, config, *look(config.get("rule")))


def _csv(path):
    if not path.exists():
        raise FileNotFoundError(
            f"There is no run folder and no CSV file {path}."
            + registry.did_you_mean(path.name, _siblings(path))
        )
    try:
        frame = pd.read_csv(path)
        frame["epoch"]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"Expected the file of a keras.callbacks.CSVLogger, with commas and a "
            f"column `epoch`. Received {path}: {type(error).__name__}: {error}. Read a "
            "file of another make with pandas and give the DataFrame."
        ) from error
    rule = path.stem if path.stem in registry.names("rule") else None
    return Log(_counted(frame, from_zero=True), path, None, *look(rule))


def _siblings(path):
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _columns(history, epochs):
    """The frame of a History's dict."""
    lengths = {key: len(values) for key, values in history.items()}
    rows = max(lengths.values(), default=0)
    short = [key for key, length in lengths.items() if length < rows]
    if short:
        warnings.warn(
            f"Left out: {', '.join(short)}. The History has {rows} epochs but fewer "
            "values of these, and does not say which epochs they belong to. A "
            "DataFrame with a column `epoch` does.",
            stacklevel=4,
        )
    frame = pd.DataFrame({k: v for k, v in history.items() if k not in short})
    if len(epochs) == rows:
        frame["epoch"] = np.asarray(epochs) + 1
    return _counted(frame, from_zero=False)


def _counted(frame, from_zero):
    """The frame with epochs that are over in its column `epoch`, without empty columns.

    Args:
        frame: The log as it was given.
        from_zero: Whether Keras counted, so that epoch 0 is the first one's end.
    """
    # A CSVLogger makes columns for a validation that there was not.
    frame = frame.dropna(axis="columns", how="all").reset_index(drop=True)
    if "epoch" not in frame:
        return frame.assign(epoch=np.arange(1, len(frame) + 1))
    first = frame.iloc[0]
    trained = pd.notna(first.get("loss"))
    if first["epoch"] == 0:
        # A run folder's epoch 0 is before training, when there is no loss yet.
        from_zero = trained
    return frame.assign(epoch=frame["epoch"] + 1) if from_zero else frame


def _look_of_model(model):
    """(label, colour) of the one rule of a model's feedback layers."""
    looks = {look(layer.rule) for layer in feedback_layers(model)} if model else set()
    return looks.pop() if len(looks) == 1 else (None, None)


def look(rule):
    """(label, colour) of a rule, given as in a configuration; colour None for any."""
    if rule is None:
        return None, None
    if rules.is_by_layer(rule):
        return "by layer", None
    try:
        rule = rules.get(rule)
    except (ValueError, ImportError):
        # A rule of another process or machine: its runs can be drawn all the same.
        return str(rule["name"] if isinstance(rule, dict) else rule), None
    return rules.label_of(rule), rule.color


def _name(logs):
    """Calls each by its rule, and by what tells it from the others where that needs."""
    alike = collections.defaultdict(list)
    for log in logs:
        if log.name is None:
            alike[log.rule].append(log)
    for rule, group in alike.items():
        told = _told_apart(group) if rule is None or len(group) > 1 else [None]
        for log, text in zip(group, told, strict=True):
            log.name = ", ".join(filter(None, (rule, text)))


def _told_apart(group):
    """A text for each of some runs of one rule: the seed, the folder, or a number."""
    seeds = [(log.config or {}).get("seed") for log in group]
    if len(group) > 1 and None not in seeds and len(set(seeds)) == len(seeds):
        return [f"seed {seed}" for seed in seeds]
    if all(log.path for log in group):
        if len(group) == 1:
            return [group[0].path.name]
        paths = [log.path.resolve().parts[::-1] for log in group]
        differ = [len(set(parts)) > 1 for parts in itertools.zip_longest(*paths)]
        if True in differ:
            # From the last part that differs up to where all of them do.
            first = differ.index(True)
            for end in range(first + 1, len(differ) + 1):
                ends = ["/".join(parts[first:end][::-1]) for parts in paths]
                if len(set(ends)) == len(ends):
                    return ends
    return [f"run {number}" for number in range(1, len(group) + 1)]


def _dress(logs):
    """Gives each a colour and a dash: shades where several have the rule's colour."""
    free = itertools.cycle(_FREE_COLORS)
    colors = {}
    for log in logs:
        if log.color is None:
            key = log.rule or id(log)
            if key not in colors:
                colors[key] = next(free)
            log.color = colors[key]
    alike = collections.defaultdict(list)
    for log in logs:
        alike[log.color].append(log)
    for group in alike.values():
        rgb = np.array(matplotlib.colors.to_rgb(group[0].color))
        for i, log in enumerate(group):
            white = 0.6 * i / len(group)
            log.color = tuple((1 - white) * rgb + white)
            log.dash = _DASHES[i % len(_DASHES)]
