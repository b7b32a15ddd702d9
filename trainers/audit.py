r"""Audits the network of a run: whether its depth learned, and how that is known.

Example:
    keras-fa audit --run=runs/fa --baselines=runs/fa_body,runs/fa_last

The baselines are runs of the same configuration with --config.model.frozen=body and
--config.model.frozen=all_but_last. Writes audit.csv, audit.json and audit.png into the
folder `audit` of the run.
"""

import pathlib

import _binary
from absl import flags
from rich.console import Console
from rich.table import Table

_RUN = flags.DEFINE(
    _binary.PATH, "run", None, "Run folder of a finished run.", required=True
)
_BASELINES = flags.DEFINE_list(
    "baselines",
    [],
    "Run folders of the same network with its body frozen or its last layer alone "
    "trained. Without them depth utility is not measured.",
)
_SIZE = flags.DEFINE_integer(
    "size", 512, "Training examples to measure on.", lower_bound=1
)
_FIGURE = flags.DEFINE_bool("figure", True, "Whether to draw the figure.")


@_binary.program("The run is as it was.")
def main():
    """Audits, prints the table and writes the files."""
    from keras_fa import experiment
    from keras_fa.lab import run_folder

    # The brackets of a name or an error are no markup.
    console = Console(markup=False, emoji=False)
    baselines = [pathlib.Path(folder).expanduser() for folder in _BASELINES.value]
    verdict = experiment.audit(_RUN.value, baselines, _SIZE.value)
    console.print(_table(verdict))
    console.print(f"verdict: {verdict.verdict}")
    for reason in verdict.reasons:
        console.print(f"- {reason}", highlight=False)
    folder = _RUN.value / "audit"
    folder.mkdir(exist_ok=True)
    csv = verdict.to_frame().to_csv(index=False)
    run_folder.write_text(folder / "audit.csv", csv)
    text = run_folder.to_json(verdict.to_dict(), indent=2) + "\n"
    run_folder.write_text(folder / "audit.json", text)
    if _FIGURE.value:
        from keras_fa import figures

        figures.audit(folder / "audit.json", folder / "audit.png")
    console.print(f"written: {folder}", soft_wrap=True)


def _table(verdict):
    head, *body = verdict.table()
    table = Table(head[0])
    for heading in head[1:]:
        table.add_column(heading, justify="right")
    for line in body:
        table.add_row(*line)
    return table


if __name__ == "__main__":
    main()
