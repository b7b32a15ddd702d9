"""LeNet and ResNet-18: tables 1, 2, figures 5 to 7 of Robertson and Koyejo (2024)."""

import math

import numpy as np
import pandas as pd

from keras_fa.lab import run_folder
from keras_fa.papers import drawing, printed
from keras_fa.papers.sections import (
    compare,
    in_order,
    plus_minus,
    stack,
    tally,
    to_three_digits,
)


def best_accuracy(log):
    """Test accuracy after the best epoch, which some papers' tools report."""
    return log["val_accuracy"].max()


def late_accuracy(log):
    """Mean test accuracy over the last 20 log lines."""
    return log["val_accuracy"].iloc[-20:].mean()


def _rows(runs):
    return pd.DataFrame(
        {
            "classes": run.settings["dataset.num_classes"],
            "method": run.settings["rule"],
            "epochs": run.settings["epochs"],
            "subset": run.settings["dataset.class_seed"],
            "seed": run.settings["seed"],
            "accuracy": 100 * run.final["val_accuracy"],
            "best": 100 * run.measured(best_accuracy),
            "late": 100 * run.measured(late_accuracy),
            "train_accuracy": 100 * run.final.get("accuracy", math.nan),
            "train_loss": run.final.get("loss", math.nan),
            "cosine": run.final.get("gradient_cosine", math.nan),
        }
        for run in runs
    )


def _over_samples(rows, by, values):
    """`run_folder.aggregate` where seeds may share a sample of classes.

    Runs on the same classes are no independent draws of them. Where there are several
    samples, each counts once, with the mean of its seeds, and errors are those over
    samples; of one sample they are those over its seeds. "samples" is added.
    """
    groups = rows.groupby(by)
    several = groups["subset"].transform("nunique") > 1
    each = rows[several].groupby([*by, "subset"], as_index=False)[values].mean()
    table = run_folder.aggregate(pd.concat([rows[~several], each]), by, values)
    counts = groups["subset"].agg(samples="nunique", seeds="size").reset_index()
    return table.drop(columns="seeds").merge(counts, on=by)


def _draws(table):
    """How many independent values each mean of `_over_samples` is of."""
    return table["samples"].where(table["samples"] > 1, table["seeds"])


def accuracies(section, runs, folder, number):
    """Final test accuracy by number of classes and method: tables 1 and 2."""
    rows = _rows(runs)
    table = _over_samples(
        rows,
        ["classes", "method", "epochs"],
        ["accuracy", "best", "train_accuracy", "train_loss"],
    )
    section.data[f"table{number}.csv"] = table
    section.data[f"table{number}_runs.csv"] = rows
    paper = {1: printed.TABLE1, 2: printed.TABLE2}[number]
    ours = in_order(
        table.rename(
            columns={"method": "rule", "accuracy_mean": "mean", "accuracy_se": "se"}
        )
    )
    compared = compare(ours, paper, ["classes", "rule"])
    section.tables[
        "Test accuracy after the last epoch, percent; mean ± standard error of n runs, "
        "beside the accuracy of the best epoch, and the training set's: over samples "
        "of classes where there are several, each of them the mean of its seeds, over "
        "seeds where there is one. Ours are on other samples than the paper's, which "
        "moves all levels: the ratios below say more than the verdicts here."
    ] = compared.assign(
        samples=list(ours["samples"]),
        best=[plus_minus(r.best_mean, r.best_se) for r in ours.itertuples()],
        train=[f"{r.train_accuracy_mean:.1f}" for r in ours.itertuples()],
        train_loss=[f"{r.train_loss_mean:.3g}" for r in ours.itertuples()],
        epochs=list(ours["epochs"]),
    )
    ratios = _ratios(rows, paper)
    if len(ratios):
        section.data[f"table{number}_ratios.csv"] = ratios
        section.tables[
            "Each method's accuracy over GD's with the same classes and the same seed; "
            "mean ± standard error of n pairs. `subset` is the seed that draws the "
            "classes; over all of them, each counts once."
        ] = _shown_ratios(ratios)
    for classes, group in rows.groupby("classes"):
        # On the same classes and seeds; each sample of classes counts once.
        wide = group.pivot_table(
            index=["subset", "seed", "epochs"], columns="method", values="accuracy"
        )
        for better, worse in (
            ("ada_fa", "fa"),
            ("sign_fa", "ada_fa"),
            ("backprop", "sign_fa"),
        ):
            both = wide.reindex(columns=[better, worse]).dropna()
            mean, known = both.groupby("subset").mean().mean(), len(both) > 0
            section.checks.append(
                (
                    f"{classes} classes: {drawing.LABELS[better]} above "
                    f"{drawing.LABELS[worse]}",
                    bool(mean[better] > mean[worse]) if known else None,
                    f"{mean[better]:.1f} against {mean[worse]:.1f}, n = {len(both)}"
                    if known
                    else "",
                )
            )
        verdicts = compared[compared["classes"] == classes]["verdict"]
        section.checks.append(
            (
                f"{classes} classes: every method's accuracy agrees with the paper's",
                *tally(verdicts),
            )
        )


def excerpt(section, runs, folder, name):
    """Accuracies on an excerpt of the data, beside no paper's."""
    table = run_folder.aggregate(
        _rows(runs),
        ["classes", "method", "epochs"],
        ["accuracy", "best", "train_accuracy", "train_loss"],
    )
    section.data[f"{name}.csv"] = table
    table = table.assign(order=table["method"].map(drawing.RULES.index))
    table = table.sort_values(["classes", "epochs", "order"])
    section.tables["Test accuracy after the last epoch, percent."] = pd.DataFrame(
        {
            "classes": table["classes"],
            "method": table["method"].map(drawing.LABELS),
            "test": [
                plus_minus(r.accuracy_mean, r.accuracy_se, 1)
                for r in table.itertuples()
            ],
            "best": [f"{v:.1f}" for v in table["best_mean"]],
            "train": [f"{v:.1f}" for v in table["train_accuracy_mean"]],
            "train loss": [f"{v:.3g}" for v in table["train_loss_mean"]],
            "epochs": table["epochs"],
            "n": table["seeds"],
        }
    )


def _ratios(rows, paper):
    """Accuracy over GD's of the same classes, seed and epochs, a row for each run."""
    keys = ["classes", "subset", "seed", "epochs"]
    baseline = rows[rows["method"] == "backprop"].set_index(keys)["accuracy"]
    found = []
    for row in rows.itertuples():
        key = tuple(getattr(row, k) for k in keys)
        if key not in baseline.index:
            continue
        theirs = paper.get((row.classes, row.method))
        gd = paper.get((row.classes, "backprop"))
        found.append(
            {
                "classes": row.classes,
                "subset": row.subset,
                "seed": row.seed,
                "method": row.method,
                "epochs": row.epochs,
                "accuracy": row.accuracy,
                "ratio": row.accuracy / baseline[key],
                "paper_ratio": theirs[0] / gd[0] if theirs and gd else math.nan,
            }
        )
    return pd.DataFrame(found)


def _shown_ratios(ratios):
    values = ["ratio", "accuracy", "paper_ratio"]
    own = run_folder.aggregate(ratios, ["classes", "subset", "method"], values)
    over = _over_samples(ratios, ["classes", "method"], values).assign(subset="all")
    table = pd.concat([own, over[over["samples"] > 1]], ignore_index=True)
    table["order"] = table["method"].map(drawing.RULES.index)
    table["last"] = table["subset"] == "all"
    table = table.sort_values(["classes", "last", "subset", "order"])
    return pd.DataFrame(
        {
            "classes": table["classes"],
            "subset": table["subset"],
            "method": table["method"].map(drawing.LABELS),
            "accuracy": [f"{v:.1f}" for v in table["accuracy_mean"]],
            "ratio": [
                plus_minus(r.ratio_mean, r.ratio_se, 3) for r in table.itertuples()
            ],
            "paper's ratio": [f"{v:.3f}" for v in table["paper_ratio_mean"]],
            "n": table["seeds"],
        }
    )


def gradient_scatter(section, runs, folder):
    """Hypothesis 2: accuracy over GD's against the angle to the true gradient."""
    rows = _rows(runs).dropna(subset=["cosine"])
    if not len(rows):
        return
    merged = rows.merge(
        rows[rows["method"] == "backprop"][["classes", "subset", "seed", "accuracy"]],
        on=["classes", "subset", "seed"],
        suffixes=("", "_gd"),
    )
    merged["ratio"] = merged["accuracy"] / merged["accuracy_gd"]
    section.data["hypothesis2.csv"] = merged[
        ["classes", "subset", "seed", "method", "cosine", "accuracy", "ratio"]
    ]
    panels = {
        f"{classes} classes": {
            rule: (part["cosine"].to_numpy(), part["ratio"].to_numpy())
            for rule in drawing.RULES
            if len(part := group[group["method"] == rule])
        }
        for classes, group in merged.groupby("classes")
    }
    section.figures[
        "Hypothesis 2: accuracy over GD's on the same classes against the cosine of "
        "the feedback gradient and the true one on a probe batch, at the end."
    ] = drawing.scatter(
        panels,
        folder / "hypothesis2.png",
        "cos(ω) at the end",
        "accuracy / GD's",
        drawing.COLORS,
        drawing.LABELS,
    )
    for classes, group in merged[merged["method"] != "backprop"].groupby("classes"):
        # Ranks, since nothing says that the relation is a line.
        rank = group[["cosine", "ratio"]].rank().corr().iloc[0, 1]
        section.checks.append(
            (
                f"{classes} classes: accuracy rises with the gradient's cosine, GD "
                "left out (hypothesis 2)",
                bool(rank > 0.5) if len(group) > 3 else None,
                f"rank correlation {rank:.2f} over {len(group)} runs",
            )
        )


def _variant(settings):
    """What a run changes of table 1's, in words."""
    changes = []
    if settings.get("model.kernel_initializer", "glorot_uniform") != "glorot_uniform":
        changes.append("W as torch draws it, B at Xavier's scale")
    if settings["drop_last"]:
        changes.append("drop_last")
    if settings["batch_size"] != 1024:
        rate = settings["optimizer.learning_rate"]
        changes.append(f"batch {settings['batch_size']}, learning rate {rate:g}")
    if settings["epochs"] != 500:
        changes.append(f"{settings['epochs']} epochs")
    return ", ".join(changes) or "table 1's setting"


# How a run's test accuracy is taken, and what its columns begin with.
_MEASURES = {"accuracy": "", "late": "late_", "best": "best_"}


def _shown_gaps(table, prefix):
    """Gap to GD, how much of it is closed, and the ratio, as text."""
    return {
        f"{prefix}{what}".replace("_", " "): [
            "-" if math.isnan(mean) else plus_minus(mean, error, digits)
            for mean, error in zip(
                table[f"{prefix}{what}_mean"], table[f"{prefix}{what}_se"], strict=True
            )
        ]
        for what, digits in (("gap", None), ("closed", None), ("ratio", 3))
    }


def variants(section, runs, folder):
    """Which change closes how much of sign-FA's gap to GD, paired with GD."""
    runs = [r for r in runs if r.settings["dataset.num_classes"] == 10]
    rows = _rows(runs)
    rows["variant"] = [_variant(run.settings) for run in runs]
    rows["scale"] = [
        "" if (scale := run.settings.get("rule.scale", "glorot")) == "glorot" else scale
        for run in runs
    ]
    keys = ["variant", "subset", "seed", "epochs"]
    gd = rows[rows["method"] == "backprop"].set_index(keys)
    pairs = []
    for row in rows[rows["method"] != "backprop"].itertuples():
        key = tuple(getattr(row, k) for k in keys)
        if key not in gd.index:
            continue
        scale = f", scale {row.scale}" if row.scale != "" else ""
        pair = {
            "variant": row.variant + scale,
            "method": row.method,
            "subset": row.subset,
            "seed": row.seed,
            "accuracy": row.accuracy,
            "gd": gd["accuracy"][key],
            "train_accuracy": row.train_accuracy,
        }
        for measure, prefix in _MEASURES.items():
            own, theirs = getattr(row, measure), gd[measure][key]
            pair |= {f"{prefix}gap": theirs - own, f"{prefix}ratio": own / theirs}
        pairs.append(pair)
    if not pairs:
        return
    pairs = pd.DataFrame(pairs)
    section.data["table1_variants.csv"] = pairs
    # Against the base on the same classes and seeds alone.
    base = pairs[pairs["variant"] == "table 1's setting"]
    gaps = [f"{prefix}gap" for prefix in _MEASURES.values()]
    pairs = pairs.merge(
        base[["method", "subset", "seed", *gaps]],
        on=["method", "subset", "seed"],
        suffixes=("", "_of_base"),
        how="left",
    )
    for prefix in _MEASURES.values():
        pairs[f"{prefix}closed"] = pairs[f"{prefix}gap_of_base"] - pairs[f"{prefix}gap"]
    columns = [c for c in pairs if c not in ("variant", "method", "subset", "seed")]
    table = _over_samples(pairs, ["variant", "method"], columns)
    named = {"change": table["variant"], "method": table["method"].map(drawing.LABELS)}
    section.tables[
        "Test accuracy after the last epoch, 10 classes; each run beside GD's with the "
        "same classes, seed and setting. Gap: GD's minus the method's, in points. "
        "Closed: points of table 1's gap on the same classes and seed that the change "
        "takes away, over the pairs that table 1's setting has too. Mean ± standard "
        "error of n pairs, over samples of classes where there are several, each of "
        "them the mean of its seeds."
    ] = pd.DataFrame(
        {
            **named,
            "accuracy": [f"{v:.1f}" for v in table["accuracy_mean"]],
            "GD": [f"{v:.1f}" for v in table["gd_mean"]],
            **_shown_gaps(table, ""),
            "train": [f"{v:.1f}" for v in table["train_accuracy_mean"]],
            "n": table["seeds"],
            "samples": table["samples"],
        }
    )
    section.tables[
        "The same by the mean over the last 20 epochs, which moves less from epoch to "
        "epoch than the last one, and by each run's best epoch, which the paper's tool "
        "keeps."
    ] = pd.DataFrame(
        {
            **named,
            **_shown_gaps(table, "late_"),
            **_shown_gaps(table, "best_"),
            "n": table["seeds"],
        }
    )
    theirs = printed.TABLE1[10, "sign_fa"][0] / printed.TABLE1[10, "backprop"][0]
    for row in table[table["method"] == "sign_fa"].itertuples():
        known = row.seeds > 1 and row.ratio_se > 0
        section.checks.append(
            (
                f"{row.variant}: sign-FA over GD agrees with the paper's {theirs:.3f} "
                "within 2 SE",
                bool(abs(row.ratio_mean - theirs) <= 2 * row.ratio_se)
                if known
                else None,
                f"{plus_minus(row.ratio_mean, row.ratio_se, 3)}, n = {row.seeds} on "
                f"{row.samples} sample{'s' * (row.samples > 1)}",
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
            "train_accuracy": 100 * run.final.get("accuracy", math.nan),
            "train_loss": run.final.get("loss", math.nan),
        }
        for run in runs
    )
    settings = ["learning_rate", "weight_decay", "drop_last", "sign_scale"]
    rows = rows.sort_values(["method", *settings])
    section.data["table1_tuning.csv"] = rows
    wide = rows.pivot(index=settings, columns="method", values="accuracy")
    train = rows.pivot(index=settings, columns="method", values="train_accuracy")
    chosen = [rule for rule in drawing.RULES if rule in wide]
    for caption, frame in (
        ("Test accuracy, percent, after the epochs of the grid; one seed.", wide),
        ("Accuracy on the training set, percent.", train),
    ):
        shown = frame[chosen].map(lambda v: "-" if math.isnan(v) else f"{v:.1f}")
        section.tables[caption] = shown.rename(columns=drawing.LABELS).reset_index()
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


_LAYERS = ("C2", "C3", "F1", "F2")


def layer_alignment(section, runs, folder, classes):
    """cos(W, B) per layer against epochs: figures 5 to 7, for one number of classes."""
    number = {10: 5, 25: 6, 50: 7}[classes]
    chosen = [r for r in runs if r.settings["dataset.num_classes"] == classes]
    panels, ends, rises = {}, [], {}
    for layer in _LAYERS:
        panel = {}
        for rule in ("fa", "ada_fa", "sign_fa"):
            own = [run for run in chosen if run.settings["rule"] == rule]
            if own:
                cosines = [run.log[f"alignment/{layer}"] for run in own]
                panel[rule] = stack(own, lambda r, k=f"alignment/{layer}": r.log[k])
                if rule == "fa":
                    rises[layer] = np.mean([c.iloc[-1] - c.iloc[0] for c in cosines])
                ends += [
                    {
                        "layer": layer,
                        "method": rule,
                        "subset": run.settings["dataset.class_seed"],
                        "cosine": run.final[f"alignment/{layer}"],
                    }
                    for run in own
                ]
        panels[layer] = panel
    if not ends:
        return
    section.figures[
        f"Figure {number}: cos(W, B) against epochs at {classes} classes, mean and "
        "standard error over runs. C1 is left out: nothing is sent back through it."
    ] = drawing.curves(
        panels,
        folder / f"fig{number}.png",
        "epoch",
        "cos(W, B)",
        drawing.COLORS,
        drawing.LABELS,
    )
    table = _over_samples(pd.DataFrame(ends), ["layer", "method"], ["cosine"])
    section.data[f"fig{number}.csv"] = table
    section.checks.append(
        (
            f"{classes} classes: FA's alignment rises in every layer, most in the "
            "output layer",
            bool(min(rises.values()) > 0 and max(rises, key=rises.get) == "F2")
            if rises
            else None,
            ", ".join(f"{layer} {rise:+.3f}" for layer, rise in rises.items()),
        )
    )
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


def alignment_by_classes(section, runs, folder):
    """Whether alignment falls with the number of classes, sign-FA's least."""
    layers = pd.DataFrame(
        {
            "run": number,
            "classes": run.settings["dataset.num_classes"],
            "subset": run.settings["dataset.class_seed"],
            "method": run.settings["rule"],
            "layer": layer,
            "cosine": run.final[f"alignment/{layer}"],
        }
        for number, run in enumerate(runs)
        if run.settings["rule"] != "backprop"
        for layer in _LAYERS
    )
    if not len(layers):
        return
    _by_layer(section, layers)
    of_run = ["run", "classes", "subset", "method"]
    ends = layers.groupby(of_run, as_index=False)["cosine"].mean()
    table = _over_samples(ends, ["method", "classes"], ["cosine"])
    section.data["alignment_by_classes.csv"] = table
    # A method with runs at more numbers of classes has further to fall: falls are
    # compared between those that all methods have.
    known = table.groupby("classes")["method"].nunique()
    shared = known.index[known == table["method"].nunique()]
    falls = {}
    for rule, group in table.groupby("method"):
        ends = group[group["classes"].isin([shared.min(), shared.max()])]
        if len(ends) > 1:
            first, last = ends.sort_values("classes")["cosine_mean"]
            error = _spread(group) * np.sqrt((1 / _draws(ends)).sum())
            falls[rule] = 1 - last / first, error / first
        if rule == "fa":
            told, words = _falls(group.sort_values("classes"))
            section.checks.append(
                (
                    "FA's alignment, mean over C2 to F2, falls with the number of "
                    "classes",
                    told,
                    words,
                )
            )
    section.checks.append(
        (
            "sign-FA's alignment falls least with the number of classes",
            _least(falls, "sign_fa", {"fa", "ada_fa"}),
            (f"from {shared.min()} to {shared.max()} classes " if falls else "")
            + ", ".join(
                f"{drawing.LABELS[rule]} by "
                + ("{:.1f}%" if math.isnan(error) else "{:.1f} ± {:.1f}%").format(
                    100 * fall, 100 * error
                )
                for rule, (fall, error) in falls.items()
            ),
        )
    )


def _by_layer(section, layers):
    """Alignment of each layer by the number of classes, and whether FA's falls."""
    table = _over_samples(layers, ["method", "layer", "classes"], ["cosine"])
    shown, told, words = {}, [], []
    for (rule, layer), group in table.groupby(["method", "layer"]):
        group = group.sort_values("classes")
        shown[drawing.RULES.index(rule), _LAYERS.index(layer)] = {
            "method": drawing.LABELS[rule],
            "layer": layer,
            **{
                f"{r.classes} classes": plus_minus(r.cosine_mean, r.cosine_se, 3)
                for r in group.itertuples()
            },
        }
        if rule == "fa":
            told.append(_falls(group)[0])
            means = ", ".join(f"{mean:.3f}" for mean in group["cosine_mean"])
            words.append(f"{layer} {means}")
    section.tables[
        "cos(W, B) at the end by layer and number of classes; mean ± standard error "
        "over samples of classes where there are several, over seeds where there is "
        "one."
    ] = pd.DataFrame([row for _, row in sorted(shown.items())]).fillna("-")
    if words:
        section.checks.append(
            (
                "FA's alignment falls with the number of classes in every layer",
                False if False in told else None if None in told else True,
                "; ".join(words),
            )
        )


def _least(falls, rule, others):
    """Whether a rule's fall is below the others', by more than two standard errors."""
    if not {rule, *others} <= falls.keys():
        return None
    own, error = falls[rule]
    apart = [
        (falls[other][0] - own) / math.hypot(falls[other][1], error) for other in others
    ]
    if all(value > 2 for value in apart):
        return True
    return False if any(value < -2 for value in apart) else None


def _spread(group):
    """The standard deviation within numbers of classes, pooled; NaN if none repeats."""
    draws = _draws(group)
    repeated, weights = group[draws > 1], draws[draws > 1] - 1
    if not len(repeated):
        return math.nan
    return math.sqrt((weights * repeated["cosine_sd"] ** 2).sum() / weights.sum())


def _falls(group):
    """Whether a mean cosine falls from each number of classes to the next.

    By more than two standard errors of the difference, from `_spread`; None where the
    runs are too few to tell.
    """
    means, draws = group["cosine_mean"].to_numpy(), _draws(group).to_numpy()
    words = ", ".join(f"{m:.3f} (n = {n})" for m, n in zip(means, draws, strict=True))
    words += f" at {', '.join(str(c) for c in group['classes'])} classes"
    spread = _spread(group)
    if len(means) < 2 or math.isnan(spread):
        return None, f"{words}: no seed was repeated" if len(means) > 1 else words
    errors = spread * np.sqrt(1 / draws[1:] + 1 / draws[:-1])
    steps = np.diff(means)
    words += f", standard deviation at one number of them {spread:.2g}"
    if (steps < -2 * errors).all():
        return True, words
    return (False if (steps > 2 * errors).any() else None), words
