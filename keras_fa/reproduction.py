"""The papers' tables and figures from finished run folders. Nothing here trains."""

import dataclasses
import functools
import math
import pathlib

import numpy as np
import pandas as pd

from keras_fa import figures, paper_figures, papers, results
from keras_fa.analysis import dominance

_RULES = ("fa", "ada_fa", "sign_fa", "backprop")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run folder.

    Attributes:
        path: The folder.
        settings: Its configuration, `{"section.field": value}`.
        summary: Its summary.
    """

    path: pathlib.Path
    settings: dict
    summary: dict

    @functools.cached_property
    def log(self):
        """Its log lines, a `pandas.DataFrame`."""
        return results.read_frame(self.path)

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


def read_runs(path):
    """The finished runs under a folder, a list of `Run`."""
    return [
        Run(
            folder,
            results.flatten(results.read_config(folder)),
            results.read_summary(folder),
        )
        for folder in results.finished_runs(path)
    ]


def compare(ours, paper, keys):
    """Our means beside the paper's.

    Args:
        ours: `pandas.DataFrame` with the columns of `keys`, "mean", "se" and "seeds".
        paper: `{tuple of keys: (mean, standard error)}`.
        keys: Names of the columns that settings are in; the last is the rule.

    Returns:
        `pandas.DataFrame` with the settings, "ours", "seeds", "paper" (as printed) and
        "difference / combined SE": (ours - paper) / sqrt(SE^2 + SE_paper^2), which
        takes the paper's SE alone where ours is of a single run.
    """
    rows = []
    for _, row in ours.iterrows():
        key = tuple(row[k] for k in keys)
        entry = dict(zip(keys, key, strict=True))
        entry["method"] = paper_figures.LABELS[entry.pop("rule")]
        entry["ours"] = plus_minus(row["mean"], row["se"])
        entry["seeds"] = int(row["seeds"])
        if key in paper:
            mean, error = paper[key]
            entry["paper"] = f"{mean:g} ± {error:g}"
            combined = math.hypot(error, np.nan_to_num(row["se"]))
            entry["difference / combined SE"] = (
                f"{(row['mean'] - mean) / combined:+.1f}"
            )
        else:
            entry["paper"] = entry["difference / combined SE"] = "-"
        rows.append(entry)
    return pd.DataFrame(rows)


def plus_minus(mean, error):
    """Text of a mean and its standard error, with the digits that the error allows."""
    # Numbers that differ by rounding alone have no error to speak of.
    if not error > 1e-12 * abs(mean):
        return f"{mean:.3g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


# --- noisy MNIST: table 3, figures 2 to 4 of RK24 -------------------------------------


def _paper_potential(run):
    """<W2, B2> - 1/2 |W1|^2, the papers' form for every method, GD included."""
    return run.log["inner/dense_2"] - 0.5 * run.log["norm/dense_1"] ** 2


def _width(run):
    return run.settings["model.hidden_units"][0]


def table3(section, runs, folder):
    """Mean absolute deviation of the conserved ratio from 1, by width and method."""
    rows = []
    for run in runs:
        phi = _paper_potential(run)
        deviation = (phi / phi.iloc[0] - 1).abs().mean()
        own = run.log["potential/dense_1"]
        rows.append(
            {
                "width": _width(run),
                "method": run.settings["rule"],
                "deviation": deviation,
                "own_law": (own / own.iloc[0] - 1).abs().mean(),
            }
        )
    table = results.aggregate(
        pd.DataFrame(rows), ["width", "method"], ["deviation", "own_law"]
    )
    section.data["table3.csv"] = table[
        ["width", "method", "deviation_mean", "deviation_se", "seeds"]
    ]
    ours = table.rename(
        columns={"method": "rule", "deviation_mean": "mean", "deviation_se": "se"}
    )
    ours = _in_order(ours)
    section.tables[
        "Mean absolute deviation of (<W2,B2> - ½|W1|²) / its initial value from 1 over "
        "all logged epochs; mean ± standard error over seeds."
    ] = compare(ours, papers.TABLE3, ["width", "rule"])
    section.tables[
        "The same for the law that each method obeys: for GD ½|W2|² - ½|W1|², for the "
        "others as above."
    ] = _pivot(
        table,
        "width",
        "method",
        lambda r: plus_minus(r["own_law_mean"], r["own_law_se"]),
    )
    for _, row in ours.iterrows():
        key = (row["width"], row["rule"])
        if key not in papers.TABLE3:
            continue
        mean, error = papers.TABLE3[key]
        section.checks.append(
            (
                f"width {row['width']}, {paper_figures.LABELS[row['rule']]}: deviation "
                "within the paper's value + 2 SE",
                bool(row["mean"] <= mean + 2 * error),
                f"{row['mean']:.3g} ≤ {mean + 2 * error:.3g}",
            )
        )


def figure2(section, runs, folder):
    """The conserved ratio against epochs, by width."""
    panels, colors = _by_width(
        runs, lambda run: _paper_potential(run) / _paper_potential(run).iloc[0]
    )
    section.figures["The conserved ratio against epochs, mean and standard error."] = (
        paper_figures.curves(
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
        paper_figures.curves(
            panels, folder / "fig3.png", "epoch", "cos(W2, B2)", colors
        )
    )
    table = results.aggregate(
        pd.DataFrame(
            {
                "width": _width(run),
                "method": run.settings["rule"],
                "cosine": run.final["alignment/dense_2"],
            }
            for run in runs
        ),
        ["width", "method"],
        ["cosine"],
    )
    section.data["fig3.csv"] = table
    section.tables["cos(W2, B2) at the end."] = _pivot(
        table, "width", "method", lambda r: plus_minus(r["cosine_mean"], r["cosine_se"])
    )
    means = {(r.width, r.method): r.cosine_mean for r in table.itertuples()}
    for width in sorted({width for width, _ in means}):
        fa, ada = means.get((width, "fa")), means.get((width, "ada_fa"))
        section.checks.append(
            (
                f"width {width}: adaFA's alignment above FA's",
                None if fa is None or ada is None else bool(ada > fa),
                f"{_number(ada)} against {_number(fa)}",
            )
        )
    bound = [
        (run.log["alignment/dense_2"] - run.log["alignment_bound/dense_2"]).min()
        for run in runs
        if run.settings["rule"] == "sign_fa"
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
            "width": _width(run),
            "method": run.settings["rule"],
            "test_loss": run.final["val_loss"],
            "test_accuracy": 100 * run.final["val_accuracy"],
            "train_accuracy": 100 * run.final["accuracy"],
        }
        for run in runs
    )
    table = results.aggregate(
        rows, ["width", "method"], ["test_loss", "test_accuracy", "train_accuracy"]
    )
    section.data["fig4.csv"] = table
    lines = {
        rule: [
            (width, group["test_loss"].to_numpy())
            for width, group in rows[rows["method"] == rule].groupby("width")
        ]
        for rule in _RULES
        if (rows["method"] == rule).any()
    }
    section.figures["Final test loss against width, mean and standard error."] = (
        paper_figures.points(
            {"noisy MNIST": lines},
            folder / "fig4.png",
            "width m",
            "test loss",
            figures.COLORS,
            paper_figures.LABELS,
        )
    )
    section.tables["Final test loss."] = _pivot(
        table,
        "width",
        "method",
        lambda r: plus_minus(r["test_loss_mean"], r["test_loss_se"]),
    )
    section.tables["Final test accuracy, percent (labels clean)."] = _pivot(
        table,
        "width",
        "method",
        lambda r: plus_minus(r["test_accuracy_mean"], r["test_accuracy_se"]),
    )


def _by_width(runs, series):
    """Panels of curves, one for each method, a curve for each width."""
    widths = sorted({_width(run) for run in runs})
    panels = {}
    for rule in _RULES:
        panel = {}
        for width in widths:
            chosen = [
                run
                for run in runs
                if run.settings["rule"] == rule and _width(run) == width
            ]
            if chosen:
                panel[f"m = {width}"] = _stack(chosen, series)
        panels[paper_figures.LABELS[rule]] = panel
    return panels, paper_figures.shades(f"m = {width}" for width in widths)


# --- LeNet and ResNet-18: tables 1 and 2, figures 5 to 7 of RK24 ----------------------


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
    table = results.aggregate(rows, ["classes", "method", "epochs"], ["accuracy"])
    section.data[f"table{number}.csv"] = table[
        ["classes", "method", "accuracy_mean", "accuracy_se", "seeds", "epochs"]
    ]
    paper = {1: papers.TABLE1, 2: papers.TABLE2}[number]
    ours = _in_order(
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
        shown["method"] = shown["method"].map(paper_figures.LABELS)
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
                    f"{classes} classes: {paper_figures.LABELS[better]} above "
                    f"{paper_figures.LABELS[worse]}",
                    bool(mean[better] > mean[worse]) if known else None,
                    f"{mean[better]:.1f} against {mean[worse]:.1f}" if known else "",
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
                panel[rule] = _stack(own, lambda r, k=f"alignment/{layer}": r.log[k])
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
    ] = paper_figures.curves(
        panels,
        folder / f"fig{number}.png",
        "epoch",
        "cos(W, B)",
        figures.COLORS,
        paper_figures.LABELS,
    )
    table = results.aggregate(pd.DataFrame(ends), ["layer", "method"], ["cosine"])
    section.data[f"fig{number}.csv"] = table
    means = {(r.layer, r.method): r.cosine_mean for r in table.itertuples()}
    for layer in panels:
        fa, ada = means.get((layer, "fa")), means.get((layer, "ada_fa"))
        section.checks.append(
            (
                f"{classes} classes, {layer}: adaFA's alignment above FA's",
                None if fa is None or ada is None else bool(ada > fa),
                f"{_number(ada)} against {_number(fa)}",
            )
        )


# --- convergence: theorem 5.1, proposition 5.7 of RK24 --------------------------------


def convergence(section, runs, folder):
    """The loss and theorem 5.1's bound; positive output weights."""
    rows, panels = [], {}
    colors = {"loss": "#0072b2", "bound of theorem 5.1": "#888888"}
    for run in runs:
        log = run.log[["flow_time", "gradient_inner", "gradient_loss"]].dropna()
        time, inner, loss = (
            log[k].to_numpy() for k in ("flow_time", "gradient_inner", "gradient_loss")
        )
        alpha = dominance.running_alpha(inner, loss, 2.0)[-1]
        row = {
            "data": run.settings["dataset.name"],
            "method": run.settings["rule"],
            "seed": run.settings["seed"],
            "alpha": alpha,
            "initial_loss": loss[0],
            "final_loss": loss[-1],
            "largest_loss_over_bound": math.nan,
            "smallest_w2": run.log["smallest/dense_2"].min(),
        }
        if alpha > 0:
            bound = dominance.loss_bound(time, alpha, 2.0, loss[0])
            row["largest_loss_over_bound"] = (loss / bound).max()
            if run.settings["seed"] == min(r.settings["seed"] for r in runs):
                data = row["data"].replace("_", " ")
                method = paper_figures.LABELS[row["method"]]
                panels[f"{data}, {method}\nalpha = {alpha:.3g}"] = {
                    "loss": (time, loss[None]),
                    "bound of theorem 5.1": (time, bound[None]),
                }
        rows.append(row)
    table = pd.DataFrame(rows).sort_values(["data", "method", "seed"])
    section.data["convergence.csv"] = table
    section.tables[
        "The largest alpha of (alpha, 2)-alignment dominance over each run, the loss "
        "against the bound 1 / (alpha t + 1 / L(0)), and the smallest output weight."
    ] = table.round(4)
    section.figures["Loss and bound against the time of the flow (one seed)."] = (
        paper_figures.curves(
            panels,
            folder / "convergence.png",
            "time of the flow",
            "loss",
            colors,
            yscale="log",
        )
    )
    section.checks += [
        (
            "alpha > 0 in every run",
            bool((table["alpha"] > 0).all()),
            f"smallest {table['alpha'].min():.3g} in {len(table)} runs",
        ),
        (
            "the loss stays under theorem 5.1's bound",
            bool((table["largest_loss_over_bound"] <= 1 + 1e-9).all()),
            f"largest loss / bound {table['largest_loss_over_bound'].max():.6f}",
        ),
        (
            "w2 > 0 throughout (lemma 5.4)",
            bool((table["smallest_w2"] > 0).all()),
            f"smallest weight {table['smallest_w2'].min():.3g}",
        ),
    ]


# --- linear and ReLU networks on a linear map: RK23 -----------------------------------


def linear_map(section, runs, folder):
    """The conserved ratio and the loss: figures 1 and 2 of RK23."""
    names = {"linear": "linear", "relu": "ReLU"}
    colors = {"linear": "#0072b2", "ReLU": "#d55e00"}
    ratio, loss, rows = {}, {}, []
    key = "potential/dense_1"
    for activation, name in names.items():
        own = [r for r in runs if r.settings["model.activation"] == activation]
        if not own:
            continue
        ratio[name] = _stack(own, lambda r: r.log[key] / r.log[key].iloc[0])
        loss[name] = _stack(own, lambda r: r.log["loss"], skip=1)
        for run in own:
            phi = run.log[key]
            drift = phi.iloc[-1] - phi.iloc[0]
            steps = run.final["ledger/squared_steps/dense_1"]
            rows.append(
                {
                    "network": name,
                    "seed": run.settings["seed"],
                    "ratio_at_end": phi.iloc[-1] / phi.iloc[0],
                    "drift": drift,
                    "ledger_squared_steps": steps,
                    "unexplained": abs(drift - steps),
                    "final_loss": run.final["loss"],
                }
            )
    table = pd.DataFrame(rows)
    section.data["rk23.csv"] = table
    section.tables[
        "The conserved ratio at the end, the drift of the potential, the ledger's "
        "squared steps, which must equal it, and the loss."
    ] = table.map(lambda v: f"{v:.6g}" if isinstance(v, float) else v)
    section.figures["Figure 1: the conserved ratio against steps."] = (
        paper_figures.curves(
            {"conserved ratio": ratio},
            folder / "rk23_fig1.png",
            "step",
            "Φ(t) / Φ(0)",
            colors,
            line=1.0,
        )
    )
    section.figures["Figure 2: the loss against steps."] = paper_figures.curves(
        {"loss": loss}, folder / "rk23_fig2.png", "step", "loss", colors, yscale="log"
    )
    section.checks += [
        (
            "the conserved ratio stays within 1% of 1",
            bool(((table["ratio_at_end"] - 1).abs() < 0.01).all()),
            f"largest deviation {(table['ratio_at_end'] - 1).abs().max():.2g}",
        ),
        (
            "the ledger accounts for the drift to 1e-9 of it",
            bool((table["unexplained"] < 1e-9 * table["drift"].abs()).all()),
            f"largest unexplained part "
            f"{(table['unexplained'] / table['drift'].abs()).max():.1e}",
        ),
    ]


def minimum_norm(section, runs, folder):
    """The distance to the minimum-norm solution from W1 = 0."""
    table = pd.DataFrame(
        {
            "seed": run.settings["seed"],
            "loss": run.final["loss"],
            "relative_distance": run.final["minimum_norm_distance"],
        }
        for run in runs
    )
    section.data["minimum_norm.csv"] = table
    section.tables["|W1 W2 - X⁺Y| / |X⁺Y| at the end of training from W1 = 0."] = (
        table.map(lambda v: f"{v:.3g}" if isinstance(v, float) else v)
    )
    section.figures["The distance to the minimum-norm solution against steps."] = (
        paper_figures.curves(
            {
                "from W1 = 0": {
                    "FA": _stack(runs, lambda r: r.log["minimum_norm_distance"])
                }
            },
            folder / "minimum_norm.png",
            "step",
            "relative distance",
            {"FA": "#0072b2"},
            yscale="log",
        )
    )
    section.checks.append(
        (
            "equal to the pseudoinverse solution to three significant digits",
            bool((table["relative_distance"] < 5e-4).all()),
            f"largest relative distance {table['relative_distance'].max():.1e}",
        )
    )


# --- Song et al. ----------------------------------------------------------------------

_ACTIVATIONS = {"linear": "linear", "relu": "ReLU", "tanh": "tanh"}


def song_synthetic(section, runs, folder):
    """Alignment against width and penalty, loss curves: figure 2 of S21."""
    rows = _song_rows(runs)
    table = results.aggregate(rows, ["activation", "p", "lambda"], ["cosine", "loss"])
    section.data["song_synthetic.csv"] = table[
        ["activation", "p", "lambda", "cosine_mean", "cosine_se", "loss_mean", "seeds"]
    ]
    lambdas = sorted(rows["lambda"].unique())
    colors = paper_figures.shades(lambdas)
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
            value: _stack([runs[i] for i in part.index], lambda r: r.log["loss"], 1)
            for value, part in own[own["p"] == shown].groupby("lambda")
        }
        section.tables[f"cos(b, β) at the end, {name}: mean ± standard error."] = (
            _pivot(
                table[table["activation"] == activation],
                "p",
                "lambda",
                lambda r: plus_minus(r["cosine_mean"], r["cosine_se"]),
                order=lambdas,
                names=labels,
            )
        )
    section.figures[
        "Figure 2 a to c: cos(b, β) against the width p, mean and standard deviation."
    ] = paper_figures.points(
        alignment, folder / "song_fig2_alignment.png", "p", "cos(b, β)", colors, labels,
        xscale="log", spread="sd",
    )  # fmt: skip
    section.figures[
        "Figure 2 d to f: training loss against steps, mean and standard deviation."
    ] = paper_figures.curves(
        losses, folder / "song_fig2_loss.png", "step", "loss", colors, labels,
        yscale="log", spread="sd",
    )  # fmt: skip
    for activation, name in _ACTIVATIONS.items():
        own = table[table["activation"] == activation]
        falls = own[own["lambda"] == 0].sort_values("p")["cosine_mean"].to_numpy()
        section.checks.append(
            (
                f"{name}: without the penalty alignment falls with p",
                _decreasing(falls) if len(falls) > 1 else None,
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
                all(_decreasing(-r) for r in rises) if rises else None,
                f"{len(rises)} widths, {len(lambdas)} penalties",
            )
        )


def song_cutoff(section, runs, folder):
    """A penalty that ends in the middle of the run: theorem 4.6 of S21."""
    rows = _song_rows(runs)
    table = results.aggregate(
        rows, ["activation", "p", "lambda", "cutoff"], ["cosine", "loss"]
    )
    section.data["song_cutoff.csv"] = table
    lambdas = sorted(rows["lambda"].unique())
    colors = paper_figures.shades(lambdas)
    labels = {value: f"λ = {value:g}" for value in lambdas}
    panels = {"cos(b, β)": {}, "loss": {}}
    for activation, name in _ACTIVATIONS.items():
        own = rows[rows["activation"] == activation]
        for key, ylabel in (("alignment/dense_2", "cos(b, β)"), ("loss", "loss")):
            panels[ylabel][name] = {
                value: _stack(
                    [runs[i] for i in part.index], lambda r, k=key: r.log[k], 1
                )
                for value, part in own.groupby("lambda")
            }
    for ylabel, stem, scale in (
        ("cos(b, β)", "alignment", "linear"),
        ("loss", "loss", "log"),
    ):
        section.figures[f"{ylabel} against steps; the penalty ends halfway."] = (
            paper_figures.curves(
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


def song_mnist(section, runs, folder):
    """Error-signal alignment and test accuracy on MNIST: figure 3 of S21."""
    rows = pd.DataFrame(
        {
            "lambda": run.settings["optimizer.weight_decay"],
            "epochs": run.settings["epochs"],
            "cosine": run.final["error_cosine/dense_1"],
            "accuracy": 100 * run.final["val_accuracy"],
        }
        for run in runs
    )
    table = results.aggregate(rows, ["lambda", "epochs"], ["cosine", "accuracy"])
    section.data["song_mnist.csv"] = table
    lambdas = sorted(rows["lambda"].unique())
    labels = {value: f"λ = {value:g}" for value in lambdas}
    panels = {
        title: {
            value: _stack(
                [runs[i] for i in part.index], lambda r, k=key, s=scale: s * r.log[k], 1
            )
            for value, part in rows.groupby("lambda")
        }
        for title, key, scale in (
            ("cos(δ_BP, δ_FA) at the hidden layer", "error_cosine/dense_1", 1),
            ("test accuracy, %", "val_accuracy", 100),
        )
    }
    section.figures["Alignment and accuracy against epochs, mean and sd."] = (
        paper_figures.curves(
            panels,
            folder / "song_fig3.png",
            "epoch",
            "",
            paper_figures.shades(lambdas),
            labels,
            spread="sd",
        )
    )
    section.tables["After the last epoch."] = table.assign(
        cosine=[plus_minus(r.cosine_mean, r.cosine_se) for r in table.itertuples()],
        accuracy=[
            plus_minus(r.accuracy_mean, r.accuracy_se) for r in table.itertuples()
        ],
    )[["lambda", "epochs", "cosine", "accuracy", "seeds"]]
    cosines = table.sort_values("lambda")["cosine_mean"].to_numpy()
    section.checks.append(
        (
            "alignment rises with lambda",
            _decreasing(-cosines) if len(cosines) > 1 else None,
            " < ".join(f"{c:.3f}" for c in cosines),
        )
    )


def _song_rows(runs):
    return pd.DataFrame(
        {
            "activation": run.settings["model.activation"],
            "p": _width(run),
            "lambda": run.settings["optimizer.weight_decay"],
            "cutoff": run.settings["optimizer.weight_decay_epochs"],
            "cosine": run.final["alignment/dense_2"],
            "loss": run.final["loss"],
        }
        for run in runs
    )


# --- what they share ------------------------------------------------------------------


def _stack(runs, series, skip=0):
    """Epochs (t,) and a series of each run (repetitions, t), as far as all runs go."""
    length = min(len(run.log) for run in runs)
    epochs = runs[0].log["epoch"].to_numpy()[skip:length]
    return epochs, np.stack([series(r).to_numpy()[skip:length] for r in runs])


def _in_order(table):
    """Rows in the papers' order of the methods."""
    order = table["rule"].map(_RULES.index)
    return table.assign(_order=order).sort_values([table.columns[0], "_order"])


def _pivot(table, down, across, text, order=_RULES, names=paper_figures.LABELS):
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


def _decreasing(values):
    return bool(np.all(np.diff(values) < 0))


def _number(value):
    return "-" if value is None else f"{value:.3f}"


# --- the list -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Experiment:
    """How an experiment's section is made.

    Attributes:
        grid: Name of the grid, and of the folder of its runs.
        title: For people.
        source: Where it is in which paper.
        parts: Functions of (section, runs, folder of the figures).
    """

    grid: str
    title: str
    source: str
    parts: tuple


def _with(function, *arguments):
    def part(section, runs, folder):
        function(section, runs, folder, *arguments)

    return part


EXPERIMENTS = {
    "table3": Experiment(
        "table3",
        "Noisy MNIST: how well the law is conserved",
        "RK24, table 3",
        (table3,),
    ),
    "fig2": Experiment(
        "table3", "Noisy MNIST: the conserved ratio", "RK24, figure 2", (figure2,)
    ),
    "fig3": Experiment(
        "table3", "Noisy MNIST: alignment", "RK24, figure 3", (figure3,)
    ),
    "fig4": Experiment(
        "table3", "Noisy MNIST: benign overfitting", "RK24, figure 4", (figure4,)
    ),
    "table1": Experiment(
        "table1",
        "LeNet on CIFAR-100 subsets",
        "RK24, table 1",
        (_with(accuracies, 1),),
    ),
    "fig5": Experiment(
        "table1",
        "LeNet: alignment at 10 classes",
        "RK24, figure 5",
        (_with(layer_alignment, 10),),
    ),
    "fig6": Experiment(
        "table1",
        "LeNet: alignment at 25 classes",
        "RK24, figure 6",
        (_with(layer_alignment, 25),),
    ),
    "fig7": Experiment(
        "table1",
        "LeNet: alignment at 50 classes",
        "RK24, figure 7",
        (_with(layer_alignment, 50),),
    ),
    "table2": Experiment(
        "table2",
        "ResNet-18 on Tiny-ImageNet subsets",
        "RK24, table 2",
        (_with(accuracies, 2),),
    ),
    "convergence": Experiment(
        "convergence",
        "Convergence on separable and nearly orthogonal data",
        "RK24, theorem 5.1, proposition 5.7, lemma 5.4",
        (convergence,),
    ),
    "rk23": Experiment(
        "rk23",
        "Linear and ReLU networks on a linear map",
        "RK23, figures 1 and 2",
        (linear_map,),
    ),
    "minimum_norm": Experiment(
        "minimum_norm",
        "The minimum-norm solution",
        "RK23, theorem 5.2 and section 6",
        (minimum_norm,),
    ),
    "song_synthetic": Experiment(
        "song_synthetic",
        "A penalty makes wide networks align",
        "S21, figure 2",
        (song_synthetic,),
    ),
    "song_cutoff": Experiment(
        "song_cutoff",
        "A penalty that is cut off",
        "S21, theorem 4.6",
        (song_cutoff,),
    ),
    "song_mnist": Experiment(
        "song_mnist",
        "MNIST with a penalty on the output weights",
        "S21, figure 3",
        (song_mnist,),
    ),
}
