"""MNIST under Kolen-Pollack's rule and weight mirrors: Akrout et al. (2019)."""

import numpy as np
import pandas as pd

from keras_fa import _logs
from keras_fa.lab import run_folder
from keras_fa.papers import drawing, printed
from keras_fa.papers.sections import plus_minus, stack

# The share of a step that the authors' code takes with biases; their paper says 1.
_OF_THE_CODE = 1 / 128


def _steps(share):
    return f"biases take {share:.2g} of the step" if share != 1 else "biases step as W"


def _angle(cosine):
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def akrout_mnist(section, runs, folder):
    """Test accuracy and angles at the end, and the curves of the angles."""
    rows = pd.DataFrame(
        {
            "bias_share": run.settings["optimizer.bias_share"],
            "rule": run.settings["rule"],
            "accuracy": 100 * run.final["val_accuracy"],
            "angle": _angle(run.final["alignment/dense_2"]),
            "error_angle": _angle(run.final["error_cosine/dense_1"]),
        }
        for run in runs
    )
    numbers = ["accuracy", "angle", "error_angle"]
    table = run_folder.aggregate(rows, ["bias_share", "rule"], numbers)
    section.data["akrout_mnist.csv"] = table
    looks = {rule: _logs.look(rule) for rule in rows["rule"].unique()}
    label = {rule: look[0] for rule, look in looks.items()}
    shown = []
    for row in table.itertuples():
        accuracy, angle = printed.AKROUT.get(row.rule, (None, None))
        shown.append(
            {
                "": _steps(row.bias_share),
                "method": label[row.rule],
                "test accuracy, %": plus_minus(row.accuracy_mean, row.accuracy_se),
                "authors' log": "-" if accuracy is None else accuracy,
                "angle of W and B, output": plus_minus(row.angle_mean, row.angle_se),
                "their angle": "-" if angle is None else angle,
                "angle of the errors": plus_minus(
                    row.error_angle_mean, row.error_angle_se
                ),
                "seeds": row.seeds,
            }
        )
        if row.bias_share != _OF_THE_CODE or accuracy is None:
            # The logs are those of their code.
            continue
        section.checks.append(
            (
                f"{label[row.rule]}: test accuracy within 0.3 points of the log",
                bool(abs(row.accuracy_mean - accuracy) <= 0.3),
                f"{row.accuracy_mean:.2f} and {accuracy}",
            )
        )
        if angle is not None:
            section.checks.append(
                (
                    f"{label[row.rule]}: angle of the output layer within 3 degrees",
                    bool(abs(row.angle_mean - angle) <= 3),
                    f"{row.angle_mean:.1f} and {angle}",
                )
            )
    section.tables["After 400 epochs; mean ± standard error over seeds."] = (
        pd.DataFrame(shown)
    )
    panels = {
        _steps(share): {
            rule: stack(
                [runs[i] for i in part.index],
                lambda run: _angle(run.log["alignment/dense_2"]),
            )
            for rule, part in of_share.groupby("rule")
            if rule != "backprop"
        }
        for share, of_share in rows.groupby("bias_share")
    }
    section.figures["Angle of W and B in the output layer against epochs, degrees."] = (
        drawing.curves(
            panels,
            folder / "akrout_mnist.png",
            "epoch",
            "angle of W and B, degrees",
            {rule: look[1] for rule, look in looks.items()},
            label,
        )
    )
