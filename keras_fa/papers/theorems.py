"""Sections of the report for what `keras-fa measure` has measured."""

import json

import numpy as np
import pandas as pd

from keras_fa import analysis
from keras_fa.lab import run_folder
from keras_fa.papers import drawing
from keras_fa.papers.sections import as_text, exponent, plus_minus

_ACTIVATIONS = {"linear": "linear", "relu": "ReLU", "tanh": "tanh"}
# What alignment may fall by from one penalty to the next, by chance.
_CHANCE = 0.01


def theorem_3_2(section, rows, folder):
    """Contraction, lazy weights; RK24's theorem 5.1 at beta = 1; the rate."""
    section.tables[
        "tanh, 30 inputs N(0, I/d) with d = 100, step 0.5, until the error is 1e-6 of "
        "its start. The worst |e(t+1)| / |e(t)| beside 1 - eta gamma / 4, gamma the "
        "smallest eigenvalue of E[G], beside that of G at the start; how far single "
        "weights move."
    ] = as_text(
        rows[
            [
                *("p", "seed", "gamma", "smallest", "worst_ratio", "bound"),
                *("largest_beta_shift", "largest_w_shift", "error_ratio", "cosine"),
            ]
        ],
        5,
    )
    section.tables[
        "The same runs: the largest alpha of (alpha, 1)-dominance, the loss over "
        "L(0) exp(-alpha t), the rate r of |e| about e^(-rt) as G + H predicts and as "
        "fitted over the second half, and how far log|e| is from that line."
    ] = as_text(
        rows[
            [
                *("p", "seed", "alpha_1", "loss_over_bound", "rate_predicted"),
                *("rate_measured", "off_the_line"),
            ]
        ],
        4,
    )
    apart = (rows["worst_ratio"] - rows["bound"]).max()
    shifts = {k: exponent(rows, "p", f"largest_{k}_shift") for k in ("beta", "w")}
    relative = rows["rate_measured"] / rows["rate_predicted"]
    section.checks += [
        (
            "|e(t+1)| <= (1 - eta gamma / 4) |e(t)| at every step and every p (3.1)",
            bool((rows["worst_ratio"] <= rows["bound"]).all()),
            f"largest ratio minus bound {apart:.2g} in {len(rows)} runs",
        ),
        (
            "the largest steps away of beta and w fall with p (3.2: as 1 / sqrt(p), "
            "of w with a further sqrt(log p))",
            bool(all(s is not None and s < -0.25 for s in shifts.values())),
            "exponents of p: "
            + ", ".join(f"{k} {s:.2f}" for k, s in shifts.items() if s is not None),
        ),
        (
            "alpha > 0 and L(t) <= L(0) exp(-alpha t): theorem 5.1 of RK24, beta = 1",
            bool(
                (rows["alpha_1"] > 0).all()
                and (rows["loss_over_bound"] <= 1 + 1e-9).all()
            ),
            f"alpha at least {rows['alpha_1'].min():.3g}, loss over bound at most "
            f"{rows['loss_over_bound'].max():.6f}",
        ),
        (
            "|e(t)| falls at the end at the rate of G + H at the start less 10%, or "
            "faster",
            bool(relative.min() > 0.9),
            f"measured over predicted {relative.min():.2f} to {relative.max():.2f}",
        ),
    ]


def proposition_3_3(section, rows, folder):
    """gamma > 0 for Gaussian inputs."""
    table = run_folder.aggregate(rows, ["activation", "d_over_n", "n"], ["gamma"])
    wide = table.pivot(
        index=["activation", "d_over_n"], columns="n", values="gamma_mean"
    )
    section.tables[
        "The smallest eigenvalue of E[G], n inputs N(0, I/d), d in proportion to n: "
        f"means over {table['seeds'].max()} draws."
    ] = as_text(wide.rename(columns="n = {}".format).reset_index())
    above = wide[wide.index.get_level_values("d_over_n") >= 1]
    for activation, group in above.groupby("activation"):
        # gamma is a constant, of n: it may not go to 0 as n grows.
        share = (group.iloc[:, -1] / group.iloc[:, 0]).min()
        section.checks.append(
            (
                f"{activation}: gamma > 0 where d is at least n, and no less the "
                "larger n, to 20%",
                # Eigenvalues of nothing come out within 1e-15 of 0.
                bool(group.min(axis=None) > 1e-9 and share > 0.8)
                if group.shape[1] > 1
                else None,
                f"at least {group.min(axis=None):.3g}, at n = {group.columns[-1]} "
                f"{share:.2f} of that at {group.columns[0]} or more",
            )
        )


def contraction(section, rows, folder, number):
    """The contraction under a penalty of bounded sum: theorems 4.2 and 4.3."""
    columns = [
        *("schedule", "p", "n", "d", "seed", "gamma", "m_over_gamma", "sum_of_lambda"),
        *("worst_over_bound", "final_error", "cosine"),
    ]
    rows = rows.assign(**{c: rows.get(c, "") for c in ("n", "d", "m_over_gamma")})
    if number == "4.2":
        columns = [c for c in columns if c not in ("n", "d", "m_over_gamma")]
    rows = rows.fillna({"n": 30, "d": 100})
    section.tables[
        "The largest |e(t+1)| over the right side of the theorem on the way; the sum "
        "of lambda in proportion to sqrt(p). With eta lambda |y| at the end, as the "
        "proofs have it: the statements print lambda |y|, which bounds less tightly."
    ] = as_text(rows[columns])
    section.checks.append(
        (
            f"the contraction of theorem {number} at every step, for cut-off, "
            "exponential and inverse-square penalties"
            + (", n > d among them" if number == "4.3" else ""),
            bool((rows["worst_over_bound"] <= 1 + 1e-9).all()),
            f"largest left over right {rows['worst_over_bound'].max():.5f} in "
            f"{len(rows)} runs",
        )
    )


def proposition_4_5(section, rows, folder):
    """Gaussian inputs become isometric."""
    table = run_folder.aggregate(rows, ["d"], ["gamma", "m_over_gamma"])
    section.tables[
        "50 inputs N(0, I/d): gamma, and M / gamma, isometry's 1 + epsilon."
    ] = as_text(table[["d", "gamma_mean", "m_over_gamma_mean", "seeds"]])
    means = table.sort_values("d")["m_over_gamma_mean"].to_numpy()
    section.checks.append(
        (
            "M / gamma falls to 1 as d grows",
            bool((np.diff(means) < 0).all() and means[-1] < 1.2),
            " > ".join(f"{m:.3g}" for m in means),
        )
    )
    below = rows.assign(epsilon=1 - rows["gamma"])
    rate = exponent(below, "d", "epsilon")
    needed = table["d"] * (1 - table["gamma_mean"]) ** 2 / 50
    section.checks.append(
        (
            "as printed, d of the order (n / epsilon) log(1 / epsilon) is enough, so "
            "that epsilon = 1 - gamma falls about as 1 / d",
            None if rate is None else bool(rate < -0.75),
            f"it falls as d^{rate or 0:.2f}; d epsilon² / n is {needed.min():.2f} to "
            f"{needed.max():.2f}: the order is n / epsilon²",
        )
    )


def theorem_4_6(section, rows, folder):
    """Alignment that stays after the penalty has ended."""
    rows = rows.assign(rate=rows["rate"].fillna(0.01) if "rate" in rows else 0.01)
    rows = rows.assign(
        case=[
            f"{r.inputs}, {r.schedule.replace('_', ' ')}, T ~ {r.time}, n = {r.n}"
            + (f", d = {r.d}" if r.d != 150 else "")
            + (f", eta = {r.rate:g}" if r.rate != 0.01 else "")
            for r in rows.itertuples()
        ]
    )
    table = run_folder.aggregate(
        rows,
        ["case", "p"],
        [
            *("gamma", "m_over_gamma", "l", "cutoff", "sum_of_lambda"),
            *("smallest_after", "cosine", "final_error"),
        ],
    )
    section.tables[
        "Linear networks, d = 150 and eta = 0.01 where nothing else is said, lambda(0) "
        "= 5 gamma, T = sqrt(p / (n gamma)) / eta steps; fixed: that of p = 3200. The "
        "cosine at the end and the smallest from T on; mean ± standard error over n "
        "runs. An error of 0 says converged."
    ] = _theorem_4_6_table(table)
    panels = {"at the end": {}}
    for case, group in rows.groupby("case"):
        panels["at the end"][case] = [
            (p, part["cosine"].to_numpy()) for p, part in group.groupby("p")
        ]
    section.figures["cos(b, beta) at the end against p."] = drawing.points(
        panels,
        folder / "theorem_4_6.png",
        "p",
        "cos(b, β)",
        drawing.shades(panels["at the end"]),
        xscale="log",
    )
    for case, group in table.groupby("case"):
        means = group.sort_values("p")["cosine_mean"].to_numpy()
        values = ", ".join(f"{m:.3f}" for m in means)
        if "fixed" in case:
            claim = "falls with p, as T does not grow"
            holds = bool((np.diff(means) < 0).all())
        else:
            claim = "the same at every p to 10%, and above 0.1"
            holds = bool(np.ptp(means) < 0.1 * means.mean() and means.min() > 0.1)
        section.checks.append(
            (f"{case}: {claim}", holds if len(means) > 1 else None, values)
        )
    alike = rows.query(
        "inputs == 'isometric' and schedule == 'cutoff' and time == 'sqrt(p)'"
    )
    means = alike.groupby(["n", "d", "rate"])["cosine"].mean()
    section.checks.append(
        (
            "isometric, cutoff, T ~ sqrt(p): the same for every n, d and eta to 10%",
            bool(np.ptp(means) < 0.1 * means.mean()) if len(means) > 1 else None,
            "; ".join(
                f"n = {n}, d = {d}, eta = {rate:g}: {mean:.3f}"
                for (n, d, rate), mean in means.items()
            ),
        )
    )


def _theorem_4_6_table(table):
    shown = table[["case", "p"]].copy()
    for value, name in (
        ("m_over_gamma", "M / gamma"),
        ("l", "L"),
        ("cutoff", "T"),
        ("sum_of_lambda", "sum of lambda"),
        ("smallest_after", "smallest cosine"),
    ):
        shown[name] = [f"{v:.3g}" for v in table[f"{value}_mean"]]
    shown["cosine"] = [
        plus_minus(r.cosine_mean, r.cosine_se) for r in table.itertuples()
    ]
    shown["error"] = [f"{v:.1g}" for v in table["final_error_mean"]]
    shown["n"] = table["seeds"]
    return shown


def theorem_5_2(section, rows, folder):
    """RK24's conservation law of single units, by the rate."""
    by = ["method", "loss", "rate"]
    values = ["initial_loss", "final_loss", "moved", "drift", "besides"]
    names = {
        "moved": "½|W1|² moves",
        "drift": "<W2, B2> - ½|W1|² moves",
        "besides": "besides -½ η² Σ |g|²",
    }
    table = rows.groupby(by)[values].mean().reset_index()
    section.tables[
        "Leaky ReLU (slope 0.1), 10-12-9-3 units, no biases, 20 examples, full batch, "
        "to t = 4: the largest of the 21 hidden units, mean over seeds. The last "
        "column is what is left without the steps' own term of second order, g the "
        "steps' direction; under FA nothing, under sign-FA what weights that "
        "change sign add."
    ] = as_text(table.rename(columns=names))
    for method, group in rows.groupby("method"):
        label = drawing.LABELS[method]
        powers = [exponent(part, "rate", "drift") for _, part in group.groupby("loss")]
        told = [power for power in powers if power is not None]
        finest = group[group["rate"] == group["rate"].min()]
        share = (finest["drift"] / finest["moved"]).max()
        section.checks.append(
            (
                f"{label}: the drift of every unit falls in proportion to the rate, so "
                "that the flow conserves",
                # By choice; a drift that does not vanish with the rate would give 0.
                all(abs(power - 1) < 0.15 for power in told) if told else None,
                "exponents "
                + ", ".join(f"{power:.3f}" for power in told)
                + f"; at the smallest rate at most {share:.2g} of what ½|W1|² moves",
            )
        )
        if method == "fa":
            section.checks.append(
                (
                    f"{label}: the drift is the steps' own term of second order, to "
                    "rounding",
                    bool((group["besides"] < 1e-12).all()),
                    f"{group['besides'].max():.1g} besides",
                )
            )


def proposition_5_7(section, rows, folder):
    """alpha known before training, and its bound beside the loss."""
    by = ["data", "method", "slope", "start"]
    values = [
        *("initial_loss", "final_loss", "alpha_known", "loss_over_known_bound"),
        *("alpha_1", "loss_over_bound_1", "alpha_2", "loss_over_bound_2"),
    ]
    table = run_folder.aggregate(rows, by, [*values, "smallest_w2"])
    section.tables[
        "Means over n runs, to t = 20. `start`: how far all hidden units lie along the "
        "mean of y x, so that L(0) is above and below 1. alpha known: before training, "
        "of proposition 5.7; then the largest alphas that beta = 1 and 2 allow over "
        "the run, each with the largest loss over its bound."
    ] = as_text(
        table[[*by, *(f"{v}_mean" for v in values), "seeds"]].rename(
            columns=lambda c: c.removesuffix("_mean").replace("seeds", "n")
        )
    )
    colors = {
        "loss": "#0072b2",
        "known before": "#d55e00",
        "measured, beta = 2": "#888",
    }
    panels = {}
    for (data, method, slope), group in rows[rows["seed"] == 0].groupby(by[:3]):
        row = group[group["start"] == 0.0]
        if not len(row):
            continue
        row = row.iloc[0]
        time, loss = np.array(json.loads(row["curve"]))
        panel = {"loss": (time, loss[None])}
        for key, alpha in (("known before", "alpha_known"), *_MEASURED):
            if row[alpha] > 0:
                bound = analysis.loss_bound(time, row[alpha], 2.0, loss[0])
                panel[key] = (time, bound[None])
        title = f"{data.replace('_', ' ')}, {drawing.LABELS[method]}, c = {slope:g}"
        panels[title] = panel
    section.figures[
        "The loss and its bounds against the time of the flow (one seed, start 0). No "
        "orange line: the proposition guarantees nothing there."
    ] = drawing.curves(
        panels,
        folder / "proposition_5_7.png",
        "time of the flow",
        "loss",
        colors,
        yscale="log",
    )
    known = rows[rows["alpha_known"] > 0]
    for data, group in rows.groupby("data"):
        guaranteed = group["alpha_known"] > 0
        section.checks.append(
            (
                f"{data.replace('_', ' ')}: alpha > 0 is known before training",
                bool(guaranteed.all()),
                f"in {guaranteed.sum()} of {len(group)} runs",
            )
        )
        section.checks.append(
            (
                f"{data.replace('_', ' ')}: dominance with beta = 2 over every run",
                bool((group["alpha_2"] > 0).all()),
                f"alpha at least {group['alpha_2'].min():.3g} in {len(group)} runs",
            )
        )
    section.checks += [
        (
            "the loss stays under the bound of the alpha known before",
            bool((known["loss_over_known_bound"] <= 1 + 1e-3).all())
            if len(known)
            else None,
            f"loss over bound at most {known['loss_over_known_bound'].max():.5f} in "
            f"{len(known)} runs",
        ),
        (
            "the measured alpha at beta = 2 is at least the known one",
            bool((known["alpha_2"] >= known["alpha_known"] * (1 - 1e-6)).all())
            if len(known)
            else None,
            f"measured over known at least "
            f"{(known['alpha_2'] / known['alpha_known']).min():.3g}",
        ),
        (
            "theorem 5.1's bound holds at beta = 1 and 2 with the measured alpha",
            bool(
                (rows["loss_over_bound_1"] <= 1 + 1e-2).all()
                and (rows["loss_over_bound_2"] <= 1 + 1e-2).all()
            ),
            f"loss over bound at most {rows['loss_over_bound_1'].max():.5f} and "
            f"{rows['loss_over_bound_2'].max():.5f}",
        ),
        (
            "w2 > 0 throughout (lemma 5.4)",
            bool((rows["smallest_w2"] > 0).all()),
            f"smallest weight {rows['smallest_w2'].min():.3g}",
        ),
    ]


_MEASURED = (("measured, beta = 2", "alpha_2"),)


def rk23(section, rows, folder):
    """The minimum-norm solution, Lemma A.1, the rate, the vector corollary."""
    names = {
        "variance": "printed: N(0, 1/10), variance 1/10",
        "deviation": "printed: N(0, 1/10), deviation 1/10",
        "zero": "zero",
        "projected": "printed, projected on the span",
    }
    values = [
        *("distance_on_span", "distance_off_span", "error_ratio", "rate_measured"),
        *("off_the_line", "off_span_of_w1_moved", "phi_at_start"),
        *("smallest_inner_product", "phi_drift"),
    ]
    table = run_folder.aggregate(rows, ["start"], values)
    shown = table[["start", *(f"{v}_mean" for v in values), "seeds"]]
    section.tables[
        "100 inputs, 50 examples, 10 outputs, 50 hidden units, W2 = B ~ N(0, 1). "
        "|W1 W2 - X⁺Y| / |X⁺Y| on and off the span of the examples at the end; |e| "
        "over its start; the rate r of |e|; what W1 moved off the span; Phi(0) = "
        "<W2, B> - ½|W1|², the smallest <W2, B>, the drift of Phi by finite steps. "
        "Means over n runs."
    ] = as_text(
        shown.assign(start=shown["start"].map(names)).rename(
            columns=lambda c: c.removesuffix("_mean").replace("seeds", "n")
        )
    )
    for start, group in rows.groupby("start"):
        total = np.hypot(group["distance_on_span"], group["distance_off_span"])
        section.checks.append(
            (
                f"W1 {names[start]}: the minimum-norm solution to three digits",
                bool((total < 5e-4).all()),
                f"{group['distance_on_span'].max():.2g} on the span, "
                f"{group['distance_off_span'].mean():.3g} off it (n = {len(group)})",
            )
        )
    moved = rows["off_span_of_w1_moved"].max()
    slack = rows["smallest_inner_product"] - rows["phi_at_start"]
    positive = rows[rows["phi_at_start"] > 0]
    section.checks += [
        (
            "W1 moves in the span of the data alone (lemma A.1)",
            bool(moved < 1e-10),
            f"at most {moved:.1g} of its norm off it",
        ),
        (
            "|e| falls as e^(-rt): log|e| over the last half of the steps on a line, "
            "to 2% of its fall",
            # Half of the fall to 1e-10 at the least.
            bool((rows["off_the_line"] < 0.02 * np.log(1e10) / 2).all()),
            f"r from {rows['rate_measured'].min():.3g} to "
            f"{rows['rate_measured'].max():.3g}, log|e| at most "
            f"{rows['off_the_line'].max():.2g} off the line",
        ),
        (
            "<W2, B> >= Phi(0) with ten outputs (the corollary), up to the drift of "
            "finite steps",
            bool((slack >= rows["phi_drift"].clip(upper=0) - 1e-9).all()),
            f"smallest difference {slack.min():.3g}; Phi(0) > 0, without which it says "
            f"little, in {len(positive)} of {len(rows)} runs",
        ),
    ]


def figure_2(section, rows, folder):
    """Alignment and loss against width, penalty and time."""
    penalties = sorted(rows["penalty"].unique())
    colors = drawing.shades(penalties)
    labels = {value: f"λ = {value:g}" for value in penalties}
    alignment, losses = {}, {}
    for activation, name in _ACTIVATIONS.items():
        own = rows[rows["activation"] == activation]
        if not len(own):
            continue
        last = own[own["steps"] == own["steps"].max()]
        alignment[name] = {
            penalty: [(p, g["cosine"].to_numpy()) for p, g in part.groupby("p")]
            for penalty, part in last.groupby("penalty")
        }
        widest = own["p"].max()
        losses[f"{name}, p = {widest}"] = {
            penalty: [(s, g["loss"].to_numpy()) for s, g in part.groupby("steps")]
            for penalty, part in own[own["p"] == widest].groupby("penalty")
            if penalty > 0
        }
        _figure_2_table(section, name, own)
        _figure_2_checks(section, name, own)
    for panels, stem, x, y, scale in (
        (alignment, "alignment", "p", "cos(b, β)", "linear"),
        (losses, "loss", "step", "loss", "log"),
    ):
        of = "after the last steps against p" if x == "p" else "against the steps"
        section.figures[f"{y} {of}, mean and standard error."] = drawing.points(
            panels,
            folder / f"figure_2_{stem}.png",
            x,
            y,
            colors,
            labels,
            xscale="log",
            yscale=scale,
        )


def _figure_2_table(section, name, own):
    table = run_folder.aggregate(own, ["penalty", "p", "steps"], ["cosine", "loss"])
    lines = []
    for (penalty, p), group in table.groupby(["penalty", "p"]):
        line = {"λ": f"{penalty:g}", "p": p}
        for row in group.itertuples():
            mean = plus_minus(row.cosine_mean, row.cosine_se)
            line[f"cosine, {row.steps:,}"] = mean
        for row in group.itertuples():
            line[f"loss, {row.steps:,}"] = f"{row.loss_mean:.3g}"
        lines.append(line | {"n": group["seeds"].min()})
    section.tables[
        f"{name}: cos(b, β) and the loss after so many of the paper's steps; mean ± "
        "standard error over n runs. Where a network diverges, twice as many of half "
        "the length."
    ] = pd.DataFrame(lines).fillna("")


def _figure_2_checks(section, name, own):
    counts = sorted(own["steps"].unique())
    means = own.groupby(["steps", "p", "penalty"])[["cosine", "loss"]].mean()
    last = means.loc[counts[-1]]
    steps = f"{counts[-1]:,} steps"
    free = last.xs(0.0, level="penalty")["cosine"].to_numpy()
    section.checks.append(
        (
            f"{name}: without the penalty |cos| at the largest p is below that at "
            f"the smallest, {steps}",
            bool(abs(free[-1]) < abs(free[0])) if len(free) > 1 else None,
            ", ".join(f"{c:.3f}" for c in free),
        )
    )
    rises = [np.diff(g["cosine"]) for _, g in last.groupby("p") if len(g) > 1]
    found = [bool(s.sum() > _CHANCE and (s > -_CHANCE).all()) for s in rises]
    section.checks.append(
        (
            f"{name}: alignment rises with lambda at every p, {steps}",
            all(found) if found else None,
            f"at {sum(found)} of {len(found)} widths",
        )
    )
    for count in counts if len(rises) else []:
        grows = [
            bool((np.diff(g["loss"]) > 0).all())
            for _, g in means.loc[count].groupby("p")
        ]
        section.checks.append(
            (
                f"{name}: the loss is larger the larger lambda, at every p, {count:,} "
                "steps",
                all(grows),
                f"at {sum(grows)} of {len(grows)} widths",
            )
        )
    if len(counts) > 1:
        before = means.loc[counts[-2]]
        share = (last["loss"] / before["loss"]).drop(0.0, level="penalty")
        section.checks.append(
            (
                f"{name}: under a penalty the loss comes to a positive number: it "
                f"moves by less than 10% from {counts[-2]:,} steps to {counts[-1]:,}",
                bool((abs(share - 1) < 0.1).all()) if len(share) else None,
                f"to {share.min():.2g} to {share.max():.2g} of what it was",
            )
        )
