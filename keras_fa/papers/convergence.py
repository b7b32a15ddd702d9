"""Theorem 5.1, proposition 5.7 and lemma 5.4 of Robertson and Koyejo (2024)."""

import math

import pandas as pd

from keras_fa import analysis
from keras_fa.papers import drawing


def convergence(section, runs, folder):
    """The loss and theorem 5.1's bound; positive output weights."""
    rows, panels = [], {}
    colors = {"loss": "#0072b2", "bound of theorem 5.1": "#888888"}
    for run in runs:
        log = run.log[["flow_time", "gradient_inner", "gradient_loss"]].dropna()
        time, inner, loss = (
            log[k].to_numpy() for k in ("flow_time", "gradient_inner", "gradient_loss")
        )
        alpha = analysis.running_alpha(inner, loss, 2.0)[-1]
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
            bound = analysis.loss_bound(time, alpha, 2.0, loss[0])
            row["largest_loss_over_bound"] = (loss / bound).max()
            if run.settings["seed"] == min(r.settings["seed"] for r in runs):
                data = row["data"].replace("_", " ")
                method = drawing.LABELS[row["method"]]
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
        drawing.curves(
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
