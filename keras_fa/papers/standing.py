"""The standing table: rules beside each other on networks that nobody tuned."""

import pandas as pd

from keras_fa import _logs
from keras_fa.lab import run_folder
from keras_fa.papers.sections import plus_minus


def standing(section, runs, folder):
    """Test accuracy, seconds and cos(W, B) of each network under each rule.

    Args:
        section: `Section` to write to.
        runs: Its finished runs; those with a frozen part are left out.
        folder: Of the figures; there is none.
    """
    rows, layers = [], []
    for run in runs:
        if run.settings.get("model.frozen"):
            continue
        told = facts(run)
        setting = {name: told[name] for name in ("network", "data", "rule", "seed")}
        cosines = {
            key.removeprefix("alignment/"): value
            for key, value in run.final.items()
            if key.startswith("alignment/") and value is not None
        }
        # Nothing reads the feedback of the first layer.
        read = pd.Series(list(cosines.values())[1:], dtype=float)
        rows.append(
            {
                **setting,
                "accuracy": 100 * run.final["val_accuracy"],
                "seconds": run.summary["seconds"],
                "smallest_cosine": read.min(),
                "median_cosine": read.median(),
                **{n: told[n] for n in ("commit", "identity", "weights", "command")},
            }
        )
        layers += [
            {**setting, "layer": layer, "cosine": cosine}
            for layer, cosine in cosines.items()
        ]
    keys = ["network", "data", "rule", "seed"]
    table = pd.DataFrame(rows).sort_values(keys, ignore_index=True)
    section.data[f"{section.name}.csv"] = table
    section.data[f"{section.name}_layers.csv"] = pd.DataFrame(layers)
    measured = ["accuracy", "seconds", "smallest_cosine", "median_cosine"]
    means = run_folder.aggregate(table, keys[:-1], measured)
    section.tables[
        "After the last epoch; mean ± standard error over seeds. Cosines of W and B, "
        "of all layers but the first; direct feedback has none."
    ] = pd.DataFrame(
        {
            "network": row.network,
            "data": row.data,
            "method": _logs.look(row.rule)[0],
            "test accuracy, %": plus_minus(row.accuracy_mean, row.accuracy_se),
            "cosines, smallest and median": "-"
            if pd.isna(row.median_cosine_mean)
            else f"{row.smallest_cosine_mean:.3f}, {row.median_cosine_mean:.3f}",
            "seconds": f"{row.seconds_mean:.0f}",
            "seeds": row.seeds,
        }
        for row in means.itertuples()
    )


def facts(run):
    """What a row of the table is of.

    Args:
        run: `Run`.

    Returns:
        Dict with `network`, `data`, `rule`, `seed`, `commit`, `identity` (the hash of
        its configuration), `weights` (that of its weights; None of earlier runs) and
        `command`, which runs it again.
    """
    return {
        "network": run.settings["model.name"].rpartition(":")[2],
        "data": run.settings["dataset.name"],
        "rule": run.settings["rule"],
        "seed": run.settings["seed"],
        "commit": run.summary["environment"].get("commit"),
        "identity": _identity(run),
        "weights": run.summary.get("weights"),
        "command": _command(run),
    }


def _identity(run):
    """The hash of its configuration."""
    if run.record is not None:
        return run.record["identity"]
    return run_folder.identity(run_folder.read_config(run.path))


def _command(run):
    """What runs it again."""
    name, rule = run.settings["model.name"], run.settings["rule"]
    of_small = name.startswith("small_networks:") and not name.endswith("resnet")
    grid = "small_networks" if of_small and rule != "dfa" else "zoo"
    command = (
        f"keras-fa sweep --grid={grid} --workdir=runs/{grid} "
        f'--axis="seed=[{run.settings["seed"]}]" --axis="model.name=[\'{name}\']" '
        f"--axis=\"rule=['{rule}']\""
    )
    return f'{command} --axis="model.frozen=[None]"' if grid != "zoo" else command
