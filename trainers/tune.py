r"""Searches hyperparameters of a config with keras-tuner.

Example:
    keras-fa tune --space=digits --workdir=runs/tune_digits

A search that was stopped goes on when the same command is given again. Several
processes share one search in keras-tuner's distributed mode: the README shows how.
"""

import sys

import _binary
from absl import flags
from rich.console import Console
from rich.table import Table

_SPACE = flags.DEFINE_string(
    "space",
    None,
    "File, or the name of one, with the config, its fields to tune and their ranges.",
    required=True,
)
_WORKDIR = flags.DEFINE(
    _binary.PATH,
    "workdir",
    None,
    "Folder of the search: trials, tables and figures go there.",
    required=True,
)
_ALGORITHM = flags.DEFINE_enum(
    "algorithm", "random", ["random", "hyperband", "bayesian"], "How to search."
)
_TRIALS = flags.DEFINE_integer(
    "trials", 12, "How many trials; hyperband has as many as it needs.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the search.", lower_bound=0)
_CONFIRM = flags.DEFINE_bool(
    "confirm",
    True,
    "Whether to run the best trial again as the file's `confirm` says: with other "
    "seeds and on other classes.",
)


@_binary.program("The same command goes on with the search.")
def main():
    """Does what the flags say, then prints the table of trials and the confirmation."""
    from keras_fa import sweeps, tuning
    from keras_fa.lab import plans

    # The brackets of a name or an error are no markup.
    console = Console(markup=False, emoji=False)
    workdir = _WORKDIR.value
    role = tuning.read_role()
    given = plans.read_plan("space", _SPACE.value)
    for field, value in given.get("fields", {}).items():
        plans.set_field(given["config"], field, value)
    if given.get("confirm"):
        # What is wrong with it is not to be found out behind the search.
        sweeps.cells(given["config"], [given["confirm"]])
    search = tuning.Search(
        given["config"],
        given["space"],
        workdir,
        _ALGORITHM.value,
        _TRIALS.value,
        given["objective"],
        _SEED.value,
        given.get("patience"),
    )
    if role == "chief":
        console.print("This process hands out the trials; workers run them.")
    search.run(console)
    if role == "worker":
        console.print("No trial is left for this worker; the chief reports.")
        return
    states = _report(search, workdir, console)
    if "finished" not in states:
        sys.exit("error: no trial has finished.")
    if _CONFIRM.value and given.get("confirm"):
        _confirm(search, given["confirm"], workdir, console)


def _report(search, workdir, console):
    """Writes table, plot and TensorBoard's page; returns what came of the trials."""
    from keras_fa import figures, tuning
    from keras_fa.lab import run_folder

    table = search.table()
    run_folder.write_text(workdir / "trials.csv", table.to_csv(index=False))
    shown = Table("trial", "status", search.objective, "epochs", "settings")
    for row in table.to_dict("records"):
        fields = {field.rsplit(".", 1)[-1]: row.pop(field) for field in search.space}
        settings = ", ".join(f"{k}={tuning.short(v)}" for k, v in fields.items())
        shown.add_row(*map(tuning.short, row.values()), settings)
    console.print(shown)
    for trial, message in search.failures().items():
        console.print(f"trial {trial} failed: {message.strip().splitlines()[-1]}")
    path = workdir / "search.png"
    if figures.search(table, search.objective, search.space, path) is not None:
        console.print(f"figure: {path}", soft_wrap=True)
    search.write_hparams(workdir / "hparams")
    console.print(f"tensorboard --logdir={workdir / 'hparams'}", soft_wrap=True)
    return set(table["status"])


def _confirm(search, axis, workdir, console):
    """The best trial's settings on what the search has not seen."""
    from keras_fa import experiment, sweeps
    from keras_fa.lab import run_folder

    readings = []
    for cell in sweeps.cells(search.best(), [axis]):
        folder = workdir / "confirm" / cell.name
        summary = experiment.run(cell.config, folder, progress=True)
        lines = run_folder.read_metrics(folder)
        readings.append(lines[-1].get(search.objective))
        value = "diverged" if summary["status"] == "diverged" else f"{readings[-1]:.4f}"
        console.print(f"best trial, {cell.name}: {search.objective} {value}")
    finite = [reading for reading in readings if reading is not None]
    if finite:
        import pandas as pd

        frame = pd.DataFrame({"all": 0, "value": finite})
        row = run_folder.aggregate(frame, ["all"], ["value"]).iloc[0]
        console.print(
            f"{search.objective}: {row['value_mean']:.4f} ± {row['value_se']:.4f} "
            f"(mean and standard error of {row['seeds']:.0f})"
        )


if __name__ == "__main__":
    main()
