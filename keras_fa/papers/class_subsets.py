"""LeNet and ResNet-18: tables 1, 2, figures 5 to 7 of Robertson and Koyejo (2024)."""

import math

import pandas as pd

from keras_fa.lab import run_folder
from keras_fa.papers import drawing, printed
from keras_fa.papers.sections import (
    compare,
    in_order,
    stack,
    to_three_digits,
)


def best_accuracy(log):
    """Test accuracy after the best epoch, which some papers' tools report."""
    return log["val_accuracy"].max()


def late_accuracy(log):
    """Mean test accuracy over the last 20 log lines."""
    return log["val_accuracy"].iloc[-20:].mean()


def accuracies(section, runs, folder, number):
    """Final test accuracy by number of classes and method: tables 1 and 2."""
    rows = pd.DataFrame(
        {
            "classes": run.settings["dataset.num_classes"],
            "method": run.settings["rule"],
            "epochs": run.settings["epochs"],
            "subset": run.settings["dataset.class_seed"],
            "seed": run.settings["seed"],
            "accuracy": 100 * run.final["val_accuracy"],
        }
        for run in runs
    )
    table = run_folder.aggregate(rows, ["classes", "method", "epochs"], ["accuracy"])
    section.data[f"table{number}.csv"] = table[
        ["classes", "method", "accuracy_mean", "accuracy_se", "seeds", "epochs"]
    ]
    paper = {1: printed.TABLE1, 2: printed.TABLE2}[number]
    ours = in_order(
        table.rename(
            columns={"method": "rule", "accuracy_mean": "mean", "accuracy_se": "se"}
        )
    )
    section.tables[
        "Final test accuracy, percent; mean ± standard error over seeds, each with its "
        "own sample of classes. The seeds differ in their classes, the paper's SE "
        "suggests that its repetitions did not."
    ] = compare(ours, paper, ["classes", "rule"]).assign(epochs=list(ours["epochs"]))
    baseline = rows[rows["method"] == "backprop"].set_index(
        ["classes", "subset", "seed", "epochs"]
    )["accuracy"]
    ratios = []
    for row in rows.itertuples():
        key = (row.classes, row.subset, row.seed, row.epochs)
        if key in baseline.index:
            theirs = paper.get((row.classes, row.method))
            gd = paper.get((row.classes, "backprop"))
            ratios.append(
                {
                    "classes": row.classes,
                    "subset": row.subset,
                    "method": row.method,
                    "epochs": row.epochs,
                    "accuracy": row.accuracy,
                    "ratio": row.accuracy / baseline[key],
                    "paper_ratio": theirs[0] / gd[0] if theirs and gd else math.nan,
                }
            )
    if ratios:
        ratios = pd.DataFrame(ratios)
        section.data[f"table{number}_ratios.csv"] = ratios
        shown = ratios.copy()
        shown["method"] = shown["method"].map(drawing.LABELS)
        for column, digits in (("accuracy", 1), ("ratio", 2), ("paper_ratio", 2)):
            shown[column] = shown[column].map(f"{{:.{digits}f}}".format)
        section.tables[
            "Each method's accuracy over GD's on the same classes, beside the paper's "
            "ratio. `subset` is the seed that draws the classes."
        ] = shown
    for classes, group in rows.groupby("classes"):
        mean = group.groupby("method")["accuracy"].mean()
        for better, worse in (
            ("ada_fa", "fa"),
            ("sign_fa", "ada_fa"),
            ("backprop", "sign_fa"),
        ):
            known = better in mean and worse in mean
            section.checks.append(
                (
                    f"{classes} classes: {drawing.LABELS[better]} above "
                    f"{drawing.LABELS[worse]}",
                    bool(mean[better] > mean[worse]) if known else None,
                    f"{mean[better]:.1f} against {mean[worse]:.1f}" if known else "",
                )
            )


def tuning(section, runs, folder):
    """Test accuracy by learning rate and weight decay, on classes of their own."""
    rows = pd.DataFrame(
        {
            "method": run.settings["rule"],
            "learning_rate": run.settings["optimizer.learning_rate"],
            "weight_decay": run.settings["optimizer.weight_decay"],
            "drop_last": run.settings["drop_last"],
            "sign_scale": run.settings.get("rule.scale", "glorot"),
            "epochs": run.settings["epochs"],
            "accuracy": 100 * run.final["val_accuracy"],
        }
        for run in runs
    )
    settings = ["learning_rate", "weight_decay", "drop_last", "sign_scale"]
    rows = rows.sort_values(["method", *settings])
    section.data["table1_tuning.csv"] = rows
    wide = rows.pivot(index=settings, columns="method", values="accuracy")
    chosen = [rule for rule in drawing.RULES if rule in wide]
    shown = wide[chosen].map(lambda v: "-" if math.isnan(v) else f"{v:.1f}")
    section.tables[
        "Test accuracy, percent, after the epochs of the grid; one seed."
    ] = shown.rename(columns=drawing.LABELS).reset_index()
    for rule in chosen:
        rate, decay, *_ = wide[rule].idxmax()
        paper = wide[rule].get((0.01, 1e-4, False, "glorot"))
        section.checks.append(
            (
                f"{drawing.LABELS[rule]}: the paper's setting (0.01, 1e-4) within 2 "
                "points of the best",
                None if paper is None else bool(wide[rule].max() - paper <= 2),
                f"{paper:.1f} against {wide[rule].max():.1f} at ({rate:g}, {decay:g})"
                if paper is not None
                else "",
            )
        )


def layer_alignment(section, runs, folder, classes):
    """cos(W, B) per layer against epochs: figures 5 to 7, for one number of classes."""
    number = {10: 5, 25: 6, 50: 7}[classes]
    chosen = [r for r in runs if r.settings["dataset.num_classes"] == classes]
    panels, ends = {}, []
    for layer in ("C2", "C3", "F1", "F2"):
        panel = {}
        for rule in ("fa", "ada_fa", "sign_fa"):
            own = [run for run in chosen if run.settings["rule"] == rule]
            if own:
                panel[rule] = stack(own, lambda r, k=f"alignment/{layer}": r.log[k])
                ends += [
                    {
                        "layer": layer,
                        "method": rule,
                        "cosine": run.final[f"alignment/{layer}"],
                    }
                    for run in own
                ]
        panels[layer] = panel
    if not ends:
        return
    section.figures[
        f"Figure {number}: cos(W, B) against epochs at {classes} classes, mean and "
        "standard error. C1 is left out: nothing is sent back through it."
    ] = drawing.curves(
        panels,
        folder / f"fig{number}.png",
        "epoch",
        "cos(W, B)",
        drawing.COLORS,
        drawing.LABELS,
    )
    table = run_folder.aggregate(pd.DataFrame(ends), ["layer", "method"], ["cosine"])
    section.data[f"fig{number}.csv"] = table
    means = {(r.layer, r.method): r.cosine_mean for r in table.itertuples()}
    for layer in panels:
        fa, ada = means.get((layer, "fa")), means.get((layer, "ada_fa"))
        section.checks.append(
            (
                f"{classes} classes, {layer}: adaFA's alignment above FA's",
                None if fa is None or ada is None else bool(ada > fa),
                f"{to_three_digits(ada)} against {to_three_digits(fa)}",
            )
        )
