"""Half precision beside float32: accuracy, and how the ledger closes."""

import numpy as np
import pandas as pd

from keras_fa import _logs


def precision(section, runs, folder):
    """Each network and rule in each precision, and what rounding does to its ledger.

    `first_order` is its sum over the groups, as a part of the drift: under plain
    gradient descent it is what the rounding of gradients did. `remainder` is the
    largest that a unit's ledger leaves unexplained, as a part of the same.

    Args:
        section: `Section` to write to.
        runs: Its finished runs.
        folder: Of the figures; there are none.
    """
    rows = []
    for run in runs:
        drift = _of_groups(run, "measured").sum()
        rows.append(
            {
                "network": run.settings["model.name"],
                "rule": run.settings["rule"],
                "dtype": run.settings["dtype"],
                "accuracy": run.final["val_accuracy"],
                "loss": run.final["loss"],
                "drift": drift,
                "first_order": _of_groups(run, "first_order").sum() / drift,
                "remainder": _of_groups(run, "remainder").max() / drift,
            }
        )
    # float32 comes first by its name.
    table = pd.DataFrame(rows).sort_values(
        ["network", "rule", "dtype"], ignore_index=True
    )
    section.data[f"{section.name}.csv"] = table
    section.tables["At the end of training; first order and remainder over drift."] = (
        pd.DataFrame(
            {
                "network": row.network,
                "method": _logs.look(row.rule)[0],
                "precision": row.dtype,
                "test accuracy": f"{row.accuracy:.3f}",
                "loss": f"{row.loss:.4f}",
                "drift": f"{row.drift:.3g}",
                "first order": f"{row.first_order:.1e}",
                "remainder": f"{row.remainder:.1e}",
            }
            for row in table.itertuples()
        )
    )
    section.checks.append(
        (
            "The ledger closes in every precision: remainder below 1e-9 of the drift",
            bool((table["remainder"] < 1e-9).all()),
            f"at most {table['remainder'].max():.1e}",
        )
    )


def _of_groups(run, term):
    """Absolute values of one term of the ledger, of each group, at the end."""
    start = f"ledger/{term}/"
    return np.abs([v for key, v in run.final.items() if key.startswith(start)])
