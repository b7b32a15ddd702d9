r"""Makes the papers' tables and figures from the finished runs of sweeps.

Example:
    python trainers/reproduce.py --experiment=all --runs=runs --results=results

Nothing is trained. Where cells of a grid are missing, the tables are made of those that
are there, and the report names the others.
"""

import ast
import os
import pathlib
import re
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_EXPERIMENT = flags.DEFINE_list(
    "experiment",
    ["all"],
    "Which: all, or names such as table1, table3 or fig2, separated by commas; --list "
    "shows them.",
)
_RUNS = flags.DEFINE_string(
    "runs", "runs", "Folder with one folder of run folders for each grid."
)
_RESULTS = flags.DEFINE_string(
    "results", None, "Folder for the CSV files, the figures and the report."
)
_LIST = flags.DEFINE_bool("list", False, "Whether only to list the experiments.")


def main(argv):
    """Does what the flags say, then prints the checks and the paths."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    from keras_fa import papers
    from keras_fa.lab import run_folder
    from keras_fa.papers import report

    console = Console()
    experiments = papers.EXPERIMENTS
    if _LIST.value:
        _print_list(experiments, console)
        return
    try:
        names = _names(experiments)
        if _RESULTS.value is None:
            raise ValueError("--results is missing: the folder to write to.")
        folder = pathlib.Path(_RESULTS.value)
        folder.mkdir(parents=True, exist_ok=True)
        sections = []
        for name in names:
            section = _section(name, experiments[name], folder)
            sections.append(section)
            for file, frame in section.data.items():
                run_folder.write_text(folder / file, frame.to_csv(index=False))
            _print(section, console)
        file = (
            "report.html" if names == list(experiments) else f"{'-'.join(names)}.html"
        )
        report.write(
            sections,
            folder / file,
            "Feedback alignment: the papers' experiments with keras_fa",
            f"Made of {sum(len(s.runs) for s in _distinct(sections))} runs"
            + _revision()
            + ". RK24: Robertson and Koyejo (2024); RK23: Robertson and Koyejo (2023); "
            "S21: Song, Xu and Lafferty (2021).",
        )
    except (ValueError, OSError, run_folder.RunFolderError) as error:
        sys.exit(f"error: {error}")
    console.print(f"report: {folder / file}", soft_wrap=True)


def _names(experiments):
    if _EXPERIMENT.value == ["all"]:
        return list(experiments)
    unknown = [name for name in _EXPERIMENT.value if name not in experiments]
    if unknown:
        raise ValueError(
            f"Unknown experiment: {', '.join(unknown)}. Known: all, "
            f"{', '.join(experiments)}."
        )
    return _EXPERIMENT.value


def _section(name, experiment, folder):
    """The section of one experiment, from the runs that are there."""
    from keras_fa import config, papers, sweeps
    from keras_fa.papers import printed

    path = _ROOT / "configs" / "grids" / f"{experiment.grid}.py"
    text = ast.get_docstring(ast.parse(path.read_text()), clean=False)
    grid = config.read_plan(path, "get_grid", ("axes",))
    base = grid["config"]
    runs = pathlib.Path(_RUNS.value) / experiment.grid
    missing = {}
    for cell in sweeps.cells(base, grid["axes"]):
        state = sweeps.status(cell, runs)
        if state != sweeps.FINISHED:
            missing[cell.name] = state
    section = papers.Section(
        name,
        experiment.title,
        experiment.source,
        runs=papers.read_runs(runs),
        missing=missing,
        remarks=printed.REMARKS.get(name, "").strip(),
        config=str(base),
        command=_command(text)
        + f"\npython trainers/reproduce.py --experiment={name} --results=DIR",
    )
    if section.runs:
        for part in experiment.parts:
            part(section, section.runs, folder / "figures")
    section.figures = {k: v for k, v in section.figures.items() if v is not None}
    return section


def _command(text):
    """The commands in the head of a grid file."""
    found = re.search(r"Command: (.*?)\nExpected:", text, re.DOTALL)
    lines = found[1].splitlines() if found else []
    return "\n".join(line.removeprefix("    ") for line in lines)


def _distinct(sections):
    """One section for each set of runs."""
    return {tuple(run.path for run in s.runs): s for s in sections}.values()


def _revision():
    """The commit that the tables were made at, where git tells."""
    done = subprocess.run(
        ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f", tables made at commit {done.stdout.strip()}" if done.stdout else ""


def _print(section, console):
    cells = len(section.runs)
    console.print(
        f"[bold]{section.name}[/bold] ({section.source}): {cells} runs, "
        f"{len(section.missing)} cells missing",
        highlight=False,
    )
    words = {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "open"}
    for claim, holds, evidence in section.checks:
        console.print(f"  {words[holds]}: {claim}  ({evidence})", highlight=False)


def _print_list(experiments, console):
    table = Table("experiment", "what", "source", "grid")
    for name, experiment in experiments.items():
        table.add_row(name, experiment.title, experiment.source, experiment.grid)
    console.print(table)


if __name__ == "__main__":
    app.run(main)
