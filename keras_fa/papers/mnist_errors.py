"""Test errors on MNIST beside those of Lillicrap, of Nokland and of biotorch."""

import pandas as pd

from keras_fa import _logs
from keras_fa.lab import run_folder
from keras_fa.papers import drawing
from keras_fa.papers.sections import plus_minus, stack


def errors(section, runs, folder, expected, points=None):
    """Error of each rule at the end, in percent of the test images, and its curve.

    Args:
        section: `Section` to write to.
        runs: Its finished runs.
        folder: Of the figures.
        expected: `{rule: error in percent}`, the source's.
        points: How far a mean may be from it; None where the source names a bound.
    """
    rows = pd.DataFrame(
        {
            "rule": run.settings["rule"],
            "error": 100 - 100 * run.final["val_accuracy"],
            "train_error": 100 - 100 * run.final["accuracy"],
        }
        for run in runs
    )
    table = run_folder.aggregate(rows, ["rule"], ["error", "train_error"])
    section.data[f"{section.name}.csv"] = table
    looks = {rule: _logs.look(rule) for rule in table["rule"]}
    label = {rule: look[0] for rule, look in looks.items()}
    shown = []
    for row in table.itertuples():
        theirs = expected.get(row.rule)
        shown.append(
            {
                "method": label[row.rule],
                "test error, %": plus_minus(row.error_mean, row.error_se),
                "the source": "-" if theirs is None else theirs,
                "train error, %": plus_minus(row.train_error_mean, row.train_error_se),
                "seeds": row.seeds,
            }
        )
        if theirs is None:
            continue
        if points is None:
            claim, holds = f"at most {theirs}%", row.error_mean <= theirs
        else:
            claim = f"within {points} points of the source"
            holds = abs(row.error_mean - theirs) <= points
        section.checks.append(
            (
                f"{label[row.rule]}: error {claim}",
                bool(holds),
                f"{row.error_mean:.2f} and {theirs}",
            )
        )
    section.tables["At the end; mean ± standard error over seeds."] = pd.DataFrame(
        shown
    )
    curves = {
        rule: stack(
            [runs[i] for i in part.index],
            lambda run: 100 - 100 * run.log["val_accuracy"],
            skip=1,
        )
        for rule, part in rows.groupby("rule")
    }
    section.figures["Test error against epochs, percent."] = drawing.curves(
        {"": curves},
        folder / f"{section.name}.png",
        "epoch",
        "test error, %",
        {rule: look[1] for rule, look in looks.items()},
        label,
        yscale="log",
    )
