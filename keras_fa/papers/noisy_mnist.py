"""Noisy MNIST: table 3 and figures 2 to 4 of Robertson and Koyejo (2024)."""

import pandas as pd

from keras_fa.lab import run_folder
from keras_fa.papers import drawing, printed
from keras_fa.papers.sections import (
    compare,
    in_order,
    pivot,
    plus_minus,
    stack,
    to_three_digits,
)


def _paper_potential(log):
    """<W2, B2> - 1/2 |W1|^2, the papers' form for every method, GD included."""
    return log["inner/dense_2"] - 0.5 * log["norm/dense_1"] ** 2


def deviation(log):
    """Mean absolute deviation of the paper's potential over its start from 1."""
    phi = _paper_potential(log)
    return (phi / phi.iloc[0] - 1).abs().mean()


def own_law(log):
    """The same of the potential that the method conserves."""
    own = log["potential/dense_1"]
    return (own / own.iloc[0] - 1).abs().mean()


def above_bound(log):
    """The smallest distance of cos(W2, B2) from 1/sqrt(n) over the run."""
    return (log["alignment/dense_2"] - log["alignment_bound/dense_2"]).min()


def table3(section, runs, folder):
    """Mean absolute deviation of the conserved ratio from 1, by width and method."""
    rows = []
    for run in runs:
        rows.append(
            {
                "width": run.width,
                "method": run.settings["rule"],
                "deviation": run.measured(deviation),
                "own_law": run.measured(own_law),
            }
        )
    table = run_folder.aggregate(
        pd.DataFrame(rows), ["width", "method"], ["deviation", "own_law"]
    )
    section.data["table3.csv"] = table[
        ["width", "method", "deviation_mean", "deviation_se", "seeds"]
    ]
    ours = table.rename(
        columns={"method": "rule", "deviation_mean": "mean", "deviation_se": "se"}
    )
    ours = in_order(ours)
    section.tables[
        "Mean absolute deviation of (<W2,B2> - ½|W1|²) / its initial value from 1 over "
        "all logged epochs; mean ± standard error over seeds."
    ] = compare(ours, printed.TABLE3, ["width", "rule"])
    section.tables[
        "The same for the law that each method obeys: for GD ½|W2|² - ½|W1|², for the "
        "others as above."
    ] = pivot(
        table,
        "width",
        "method",
        lambda r: plus_minus(r["own_law_mean"], r["own_law_se"]),
    )
    for _, row in ours.iterrows():
        key = (row["width"], row["rule"])
        if key not in printed.TABLE3:
            continue
        mean, error = printed.TABLE3[key]
        section.checks.append(
            (
                f"width {row['width']}, {drawing.LABELS[row['rule']]}: deviation "
                "within the paper's value + 2 SE",
                bool(row["mean"] <= mean + 2 * error),
                f"{row['mean']:.3g} ≤ {mean + 2 * error:.3g}",
            )
        )


def figure2(section, runs, folder):
    """The conserved ratio against epochs, by width."""
    panels, colors = _by_width(
        runs,
        lambda run: _paper_potential(run.log) / _paper_potential(run.log).iloc[0],
    )
    section.figures["The conserved ratio against epochs, mean and standard error."] = (
        drawing.curves(
            {k: v for k, v in panels.items() if k != "GD"},
            folder / "fig2.png",
            "epoch",
            "Φ(t) / Φ(0)",
            colors,
            line=1.0,
        )
    )


def figure3(section, runs, folder):
    """cos(W2, B2) against epochs, by width."""
    panels, colors = _by_width(
        [run for run in runs if run.settings["rule"] != "backprop"],
        lambda run: run.log["alignment/dense_2"],
    )
    section.figures["cos(W2, B2) against epochs, mean and standard error."] = (
        drawing.curves(panels, folder / "fig3.png", "epoch", "cos(W2, B2)", colors)
    )
    table = run_folder.aggregate(
        pd.DataFrame(
            {
                "width": run.width,
                "method": run.settings["rule"],
                "cosine": run.final["alignment/dense_2"],
            }
            for run in runs
        ),
        ["width", "method"],
        ["cosine"],
    )
    section.data["fig3.csv"] = table
    section.tables["cos(W2, B2) at the end."] = pivot(
        table, "width", "method", lambda r: plus_minus(r["cosine_mean"], r["cosine_se"])
    )
    means = {(r.width, r.method): r.cosine_mean for r in table.itertuples()}
    for width in sorted({width for width, _ in means}):
        fa, ada = means.get((width, "fa")), means.get((width, "ada_fa"))
        section.checks.append(
            (
                f"width {width}: adaFA's alignment above FA's",
                None if fa is None or ada is None else bool(ada > fa),
                f"{to_three_digits(ada)} against {to_three_digits(fa)}",
            )
        )
    bound = [
        run.measured(above_bound) for run in runs if run.settings["rule"] == "sign_fa"
    ]
    section.checks.append(
        (
            "sign-FA's alignment above 1/sqrt(n) at every logged epoch (prop. 5.3)",
            bool(min(bound) > 0) if bound else None,
            f"smallest distance {min(bound):.3f} in {len(bound)} runs" if bound else "",
        )
    )


def figure4(section, runs, folder):
    """Final test loss against width."""
    rows = pd.DataFrame(
        {
            "width": run.width,
            "method": run.settings["rule"],
            "test_loss": run.final["val_loss"],
            "test_accuracy": 100 * run.final["val_accuracy"],
            "train_accuracy": 100 * run.final["accuracy"],
        }
        for run in runs
    )
    table = run_folder.aggregate(
        rows, ["width", "method"], ["test_loss", "test_accuracy", "train_accuracy"]
    )
    section.data["fig4.csv"] = table
    lines = {
        rule: [
            (width, group["test_loss"].to_numpy())
            for width, group in rows[rows["method"] == rule].groupby("width")
        ]
        for rule in drawing.RULES
        if (rows["method"] == rule).any()
    }
    section.figures["Final test loss against width, mean and standard error."] = (
        drawing.points(
            {"noisy MNIST": lines},
            folder / "fig4.png",
            "width m",
            "test loss",
            drawing.COLORS,
            drawing.LABELS,
        )
    )
    section.tables["Final test loss."] = pivot(
        table,
        "width",
        "method",
        lambda r: plus_minus(r["test_loss_mean"], r["test_loss_se"]),
    )
    section.tables["Final test accuracy, percent (labels clean)."] = pivot(
        table,
        "width",
        "method",
        lambda r: plus_minus(r["test_accuracy_mean"], r["test_accuracy_se"]),
    )


def _by_width(runs, series):
    """Panels of curves, one for each method, a curve for each width."""
    widths = sorted({run.width for run in runs})
    panels = {}
    for rule in drawing.RULES:
        panel = {}
        for width in widths:
            chosen = [
                run
                for run in runs
                if run.settings["rule"] == rule and run.width == width
            ]
            if chosen:
                panel[f"m = {width}"] = stack(chosen, series)
        panels[drawing.LABELS[rule]] = panel
    return panels, drawing.shades(f"m = {width}" for width in widths)
