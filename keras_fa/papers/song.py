"""Figures 2, 3 and theorem 4.6 of Song, Xu and Lafferty (2021)."""

import pandas as pd

from keras_fa.lab import run_folder
from keras_fa.papers import drawing
from keras_fa.papers.sections import (
    decreasing,
    pivot,
    plus_minus,
    stack,
)

_ACTIVATIONS = {"linear": "linear", "relu": "ReLU", "tanh": "tanh"}


def song_synthetic(section, runs, folder):
    """Alignment against width and penalty, loss curves: figure 2 of S21."""
    rows = _song_rows(runs)
    table = run_folder.aggregate(
        rows, ["activation", "p", "lambda"], ["cosine", "loss"]
    )
    section.data["song_synthetic.csv"] = table[
        ["activation", "p", "lambda", "cosine_mean", "cosine_se", "loss_mean", "seeds"]
    ]
    lambdas = sorted(rows["lambda"].unique())
    colors = drawing.shades(lambdas)
    labels = {value: f"λ = {value:g}" for value in lambdas}
    widths = sorted(rows["p"].unique())
    shown = 3200 if 3200 in widths else widths[-1]
    alignment, losses = {}, {}
    for activation, name in _ACTIVATIONS.items():
        own = rows[rows["activation"] == activation]
        alignment[name] = {
            value: [(p, g["cosine"].to_numpy()) for p, g in part.groupby("p")]
            for value, part in own.groupby("lambda")
        }
        losses[f"{name}, p = {shown}"] = {
            value: stack([runs[i] for i in part.index], lambda r: r.log["loss"], 1)
            for value, part in own[own["p"] == shown].groupby("lambda")
        }
        section.tables[f"cos(b, β) at the end, {name}: mean ± standard error."] = pivot(
            table[table["activation"] == activation],
            "p",
            "lambda",
            lambda r: plus_minus(r["cosine_mean"], r["cosine_se"]),
            order=lambdas,
            names=labels,
        )
    section.figures[
        "Figure 2 a to c: cos(b, β) against the width p, mean and standard deviation."
    ] = drawing.points(
        alignment, folder / "song_fig2_alignment.png", "p", "cos(b, β)", colors, labels,
        xscale="log", spread="sd",
    )  # fmt: skip
    section.figures[
        "Figure 2 d to f: training loss against steps, geometric mean and standard "
        "deviation."
    ] = drawing.curves(
        losses, folder / "song_fig2_loss.png", "step", "loss", colors, labels,
        yscale="log", spread="sd",
    )  # fmt: skip
    for activation, name in _ACTIVATIONS.items():
        own = table[table["activation"] == activation]
        falls = own[own["lambda"] == 0].sort_values("p")["cosine_mean"].to_numpy()
        section.checks.append(
            (
                f"{name}: without the penalty alignment falls with p",
                decreasing(falls) if len(falls) > 1 else None,
                " > ".join(f"{c:.3f}" for c in falls),
            )
        )
        rises = [
            part.sort_values("lambda")["cosine_mean"].to_numpy()
            for _, part in own.groupby("p")
        ]
        rises = [r for r in rises if len(r) > 1]
        section.checks.append(
            (
                f"{name}: alignment rises with lambda at every p",
                all(decreasing(-r) for r in rises) if rises else None,
                f"{len(rises)} widths, {len(lambdas)} penalties",
            )
        )


def song_cutoff(section, runs, folder):
    """A penalty that ends in the middle of the run: theorem 4.6 of S21."""
    rows = _song_rows(runs)
    table = run_folder.aggregate(
        rows, ["activation", "p", "lambda", "cutoff"], ["cosine", "loss"]
    )
    section.data["song_cutoff.csv"] = table
    lambdas = sorted(rows["lambda"].unique())
    colors = drawing.shades(lambdas)
    labels = {value: f"λ = {value:g}" for value in lambdas}
    panels = {"cos(b, β)": {}, "loss": {}}
    for activation, name in _ACTIVATIONS.items():
        own = rows[rows["activation"] == activation]
        for key, ylabel in (("alignment/dense_2", "cos(b, β)"), ("loss", "loss")):
            panels[ylabel][name] = {
                value: stack(
                    [runs[i] for i in part.index], lambda r, k=key: r.log[k], 1
                )
                for value, part in own.groupby("lambda")
            }
    for ylabel, stem, scale in (
        ("cos(b, β)", "alignment", "linear"),
        ("loss", "loss", "log"),
    ):
        section.figures[f"{ylabel} against steps; the penalty ends halfway."] = (
            drawing.curves(
                panels[ylabel],
                folder / f"song_cutoff_{stem}.png",
                "step",
                ylabel,
                colors,
                labels,
                yscale=scale,
                spread="sd",
            )
        )
    section.tables["At the end: alignment and loss."] = table.assign(
        cosine=[plus_minus(r.cosine_mean, r.cosine_se) for r in table.itertuples()],
        loss=[f"{r.loss_mean:.3g}" for r in table.itertuples()],
    )[["activation", "p", "lambda", "cutoff", "cosine", "loss", "seeds"]]
    for activation, name in _ACTIVATIONS.items():
        own = table[table["activation"] == activation]
        section.checks.append(
            (
                f"{name}: still aligned long after the cut-off (cos above 0 by more "
                "than 2 SE at every lambda), the loss near 0",
                bool(
                    (own["cosine_mean"] > 2 * own["cosine_se"]).all()
                    and (own["loss_mean"] < 0.01).all()
                )
                if len(own)
                else None,
                f"cos at least {own['cosine_mean'].min():.3f}, loss at most "
                f"{own['loss_mean'].max():.2g}",
            )
        )


_STARTS = {
    "normal(1.0)": "the paper's start",
    "uniform_fan_in": "torch's start",
}


def song_mnist(section, runs, folder):
    """Error-signal alignment and test accuracy on MNIST: figure 3 of S21."""
    each = "example_error_cosine/dense_1"
    rows = pd.DataFrame(
        {
            "start": _STARTS[run.settings["model.kernel_initializer"]],
            "lambda": run.settings["optimizer.weight_decay"],
            "epochs": run.settings["epochs"],
            "cosine": run.final[each],
            "cosine_of_sum": run.final["error_cosine/dense_1"],
            "weight_cosine": run.final["alignment/dense_2"],
            "accuracy": 100 * run.final["val_accuracy"],
            "train_accuracy": 100 * run.final["accuracy"],
            "train_loss": run.final["loss"],
        }
        for run in runs
    )
    values = [c for c in rows if c not in ("start", "lambda", "epochs")]
    table = run_folder.aggregate(rows, ["start", "lambda", "epochs"], values)
    section.data["song_mnist.csv"] = table
    lambdas = sorted(rows["lambda"].unique())
    labels = {value: f"λ = {value:g}" for value in lambdas}
    panels = {
        f"{title}, {start}": {
            value: stack(
                [runs[i] for i in part.index], lambda r, k=key, s=scale: s * r.log[k], 1
            )
            for value, part in group.groupby("lambda")
        }
        for start, group in rows.groupby("start")
        for title, key, scale in (
            ("cos(δ_BP, δ_FA)", each, 1),
            ("test accuracy, %", "val_accuracy", 100),
        )
    }
    section.figures[
        "Alignment at the hidden layer, the errors of the examples side by side, and "
        "accuracy against epochs, mean and sd."
    ] = drawing.curves(
        panels,
        folder / "song_fig3.png",
        "epoch",
        "",
        drawing.shades(lambdas),
        labels,
        spread="sd",
    )
    section.tables[
        "After the last epoch; mean ± standard error over n runs. `of sum`: the angle "
        "of the errors summed over the batch, which nearly cancel."
    ] = pd.DataFrame(
        {
            "start": table["start"],
            "λ": table["lambda"],
            "epochs": table["epochs"],
            "cosine": [plus_minus(r.cosine_mean, r.cosine_se) for r in _each(table)],
            "of sum": [f"{v:.3f}" for v in table["cosine_of_sum_mean"]],
            "cos(b, β)": [f"{v:.3f}" for v in table["weight_cosine_mean"]],
            "test": [plus_minus(r.accuracy_mean, r.accuracy_se) for r in _each(table)],
            "train": [f"{v:.1f}" for v in table["train_accuracy_mean"]],
            "train loss": [f"{v:.3g}" for v in table["train_loss_mean"]],
            "n": table["seeds"],
        }
    )
    for start, group in table.groupby("start"):
        group = group.sort_values("lambda")
        for what, value in (("alignment", "cosine"), ("test accuracy", "accuracy")):
            means = group[f"{value}_mean"].to_numpy()
            section.checks.append(
                (
                    f"{start}: {what} rises with lambda",
                    decreasing(-means) if len(means) > 1 else None,
                    ", ".join(
                        f"λ = {r['lambda']:g}: {r[f'{value}_mean']:.3f} "
                        f"(n = {r['seeds']})"
                        for r in group.to_dict("records")
                    ),
                )
            )


def _each(table):
    return list(table.itertuples())


def _song_rows(runs):
    return pd.DataFrame(
        {
            "activation": run.settings["model.activation"],
            "p": run.width,
            "lambda": run.settings["optimizer.weight_decay"],
            "cutoff": run.settings["optimizer.weight_decay_epochs"],
            "cosine": run.final["alignment/dense_2"],
            "loss": run.final["loss"],
        }
        for run in runs
    )
