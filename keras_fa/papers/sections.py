"""Runs, sections of the report, and the tables that they are made of."""

import dataclasses
import functools
import math
import pathlib

import numpy as np
import pandas as pd

from keras_fa.lab import records, run_folder
from keras_fa.lab.config import named
from keras_fa.papers import drawing


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, or its record where the folder is elsewhere.

    Attributes:
        path: The folder, or the name of the recorded cell.
        settings: Its configuration, `{"section.field": value}`.
        summary: Its summary.
        record: Its record (`keras_fa.lab.records`); None of a run folder.
    """

    path: pathlib.Path
    settings: dict
    summary: dict
    record: dict | None = None

    @functools.cached_property
    def log(self):
        """Its log lines, a `pandas.DataFrame`; of a record those that it kept."""
        if self.record is not None:
            return pd.DataFrame(self.record["log"]).astype(float)
        return run_folder.read_frame(self.path)

    def measured(self, function):
        """A number that is measured on the whole log.

        Args:
            function: Function of the log. Of a record, what it gave when the whole log
                was there; NaN where it was not asked then.
        """
        if self.record is None:
            return function(self.log)
        value = self.record["measures"].get(function.__name__)
        return math.nan if value is None else value

    @property
    def width(self):
        """Units of the first hidden layer."""
        return self.settings["model.hidden_units"][0]

    @property
    def final(self):
        """Its last log line, a dict."""
        return self.summary["final"]


@dataclasses.dataclass
class Section:
    """What came of one experiment.

    Attributes:
        name: As the command line calls it.
        title: For people.
        source: Where it is in which paper.
        tables: `{caption: pandas.DataFrame}` to be read.
        figures: `{caption: image file}`.
        remarks: What there is to say about differences from the paper.
        checks: List of (claim, whether it holds, evidence); None where the runs that
            would tell are missing.
        data: `{file name: pandas.DataFrame}`, the results as CSV files.
        runs: The runs that it is made of.
        missing: Names of the grid's cells that are not finished, with what they are.
        config: Text of the grid's configuration.
        command: The commands that make the runs.
        complete: How much there is of what the paper has, such as "60 of 240 cells".
    """

    name: str
    title: str
    source: str
    tables: dict = dataclasses.field(default_factory=dict)
    figures: dict = dataclasses.field(default_factory=dict)
    remarks: str = ""
    checks: list = dataclasses.field(default_factory=list)
    data: dict = dataclasses.field(default_factory=dict)
    runs: list = dataclasses.field(default_factory=list)
    missing: dict = dataclasses.field(default_factory=dict)
    config: str = ""
    command: str = ""
    complete: str = ""


def read_runs(path, cells=None):
    """The finished runs under a folder, and those that stand in a file of records.

    Args:
        path: The folder.
        cells: The file, or None. A run that is in both is taken from its folder.

    Returns:
        List of `Run`.
    """
    runs, known = [], set()
    for folder in run_folder.finished_runs(path):
        config = run_folder.read_config(folder)
        known.add(run_folder.identity(config))
        summary = run_folder.read_summary(folder)
        runs.append(Run(folder, _settings(config), summary))
    for identity, one in records.read(cells).items() if cells is not None else ():
        if identity not in known and one["summary"]["status"] == "finished":
            name = pathlib.Path(one["cell"])
            runs.append(Run(name, _settings(one["config"]), one["summary"], one))
    return runs


def _settings(config):
    """The fields of a configuration, a rule's name and arguments among them."""
    name, arguments = named(config["rule"])
    settings = run_folder.flatten({**config, "rule": arguments})
    return {**settings, "rule": name}


def compare(ours, paper, keys):
    """Our means beside the paper's.

    Args:
        ours: `pandas.DataFrame` with the columns of `keys`, "mean", "se" and "seeds".
        paper: `{tuple of keys: (mean, standard error)}`.
        keys: Names of the columns that settings are in; the last is the rule.

    Returns:
        `pandas.DataFrame` with the settings, "ours", "n" (runs), "paper" (as printed),
        "difference / combined SE": (ours - paper) / sqrt(SE^2 + SE_paper^2), and
        "verdict": "agrees" within two of them, "smaller", "larger", or "not comparable"
        where ours is of a single run or the paper has no number.
    """
    rows = []
    for _, row in ours.iterrows():
        key = tuple(row[k] for k in keys)
        entry = dict(zip(keys, key, strict=True))
        entry["method"] = drawing.LABELS[entry.pop("rule")]
        entry["ours"] = plus_minus(row["mean"], row["se"])
        entry["n"] = int(row["seeds"])
        mean, error = paper.get(key, (math.nan, math.nan))
        entry["paper"] = f"{mean:g} ± {error:g}" if key in paper else "-"
        difference = (row["mean"] - mean) / math.hypot(error, row["se"])
        known = math.isfinite(difference)
        entry["difference / combined SE"] = f"{difference:+.1f}" if known else "-"
        entry["verdict"] = NOT_COMPARABLE
        if known:
            apart = "smaller" if difference < 0 else "larger"
            entry["verdict"] = AGREES if abs(difference) <= 2 else apart
        rows.append(entry)
    return pd.DataFrame(rows)


AGREES, NOT_COMPARABLE = "agrees", "not comparable"


def tally(verdicts):
    """Whether all verdicts of `compare` agree (None: nothing to compare); in words."""
    counts = pd.Series(list(verdicts), dtype=object).value_counts()
    compared = counts.drop(NOT_COMPARABLE, errors="ignore")
    holds = bool(set(compared.index) <= {AGREES}) if len(compared) else None
    order = [AGREES, "smaller", "larger", NOT_COMPARABLE]
    return holds, ", ".join(f"{counts[v]} {v}" for v in order if v in counts)


def plus_minus(mean, error, digits=None):
    """Text of a mean and its standard error, with the digits that the error allows.

    Args:
        mean: A number.
        error: Its standard error; where it is not finite or nothing, only the mean is
            told.
        digits: Behind the point, where the error says nothing.
    """
    # Numbers that differ by rounding alone have no error to speak of.
    if not (math.isfinite(error) and error > 1e-12 * abs(mean)):
        return f"{mean:.3g}" if digits is None else f"{mean:.{digits}f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def stack(runs, series, skip=0):
    """Epochs (t,) and a series of each run (repetitions, t), as far as all runs go."""
    length = min(len(run.log) for run in runs)
    epochs = runs[0].log["epoch"].to_numpy()[skip:length]
    return epochs, np.stack([series(r).to_numpy()[skip:length] for r in runs])


def in_order(table):
    """Rows in the papers' order of the methods."""
    order = table["rule"].map(drawing.RULES.index)
    return table.assign(_order=order).sort_values([table.columns[0], "_order"])


def pivot(table, down, across, text, order=drawing.RULES, names=drawing.LABELS):
    """A table of texts, one setting down and one across."""
    rows = {}
    for _, row in table.iterrows():
        rows.setdefault(row[down], {})[row[across]] = text(row)
    return pd.DataFrame(
        [
            {down: key, **{names[k]: cells.get(k, "-") for k in order}}
            for key, cells in sorted(rows.items())
        ]
    )


def decreasing(values):
    """Whether each value is below the one before."""
    return bool(np.all(np.diff(values) < 0))


def to_three_digits(value):
    """Text of a number that may be missing."""
    return "-" if value is None else f"{value:.3f}"


def as_text(table, digits=3):
    """A table whose floating-point numbers are texts of so many digits."""
    return table.map(lambda v: f"{v:.{digits}g}" if isinstance(v, float) else v)


def exponent(rows, x, y):
    """The exponent of a power law through the means of y at each x; None of one x."""
    means = rows.groupby(x)[y].mean()
    if len(means) < 2:
        return None
    return float(np.polyfit(np.log(means.index), np.log(means), 1)[0])
