"""Linear and ReLU networks on a linear map: Robertson and Koyejo (2023)."""

import pandas as pd

from keras_fa.papers import drawing
from keras_fa.papers.sections import stack


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
        ratio[name] = stack(own, lambda r: r.log[key] / r.log[key].iloc[0])
        loss[name] = stack(own, lambda r: r.log["loss"], skip=1)
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
    section.figures["Figure 1: the conserved ratio against steps."] = drawing.curves(
        {"conserved ratio": ratio},
        folder / "rk23_fig1.png",
        "step",
        "Φ(t) / Φ(0)",
        colors,
        line=1.0,
    )
    section.figures["Figure 2: the loss against steps."] = drawing.curves(
        {"loss": loss}, folder / "rk23_fig2.png", "step", "loss", colors, yscale="log"
    )
    for name, (_, losses) in loss.items():
        fell = losses[:, -1] / losses[:, 0]
        section.checks.append(
            (
                f"{name}: the loss falls below a tenth of its first value",
                bool((fell < 0.1).all()),
                f"to {fell.min():.2g} to {fell.max():.2g} of it in {len(fell)} runs",
            )
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


_HOMOGENEOUS = ("linear", "relu", "leaky_relu")


def variants(section, runs, folder):
    """The conserved ratio of the first two layers under one change at a time."""
    rows = []
    for run in runs:
        log = run.log
        phi = log["inner/dense_2"] - 0.5 * log["norm/dense_1"] ** 2
        rows.append(
            {
                "activation": run.settings["model.activation"],
                "hidden": "x".join(map(str, run.settings["model.hidden_units"])),
                "dtype": run.settings["dtype"],
                "learning_rate": run.settings["optimizer.learning_rate"],
                "batch": run.settings["batch_size"] or "all",
                "ratio_at_end": phi.iloc[-1] / phi.iloc[0],
                "largest_deviation": (phi / phi.iloc[0] - 1).abs().max(),
                "train_loss": run.final["loss"],
            }
        )
    table = pd.DataFrame(rows)
    section.data["rk23_variants.csv"] = table
    section.tables[
        "(<W2, B2> - ½|W1|²) over its start, at the end and at its farthest from 1."
    ] = table.map(lambda v: f"{v:.5g}" if isinstance(v, float) else v)
    for holds, own in table.groupby(table["activation"].isin(_HOMOGENEOUS)):
        deviation = own["largest_deviation"]
        names = ", ".join(sorted(set(own["activation"])))
        section.checks.append(
            (f"{names}: the ratio stays within 1%", bool((deviation < 0.01).all()),
             f"at most {deviation.max():.2g} from 1 in {len(own)} runs")
            if holds
            else (f"{names}: no law, so the ratio leaves 1 by more than 1%",
                  bool((deviation > 0.01).all()), f"{deviation.min():.2g} at the least")
        )  # fmt: skip


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
        drawing.curves(
            {
                "from W1 = 0": {
                    "FA": stack(runs, lambda r: r.log["minimum_norm_distance"])
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
