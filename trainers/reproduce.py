r"""Makes the papers' tables and figures from the finished runs of sweeps.

Example:
    keras-fa reproduce --experiment=all --runs=runs --results=results

Nothing is trained. Finished runs are recorded in files that a repository can hold, and
count from there when their folders are gone. Where cells of a grid are missing, the
tables are made of those that are there, and the report names the others.
"""

import ast
import pathlib
import re
import shutil
import subprocess

import _binary
from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_EXPERIMENT = flags.DEFINE_list(
    "experiment",
    ["all"],
    "Which: all, or names such as table1, table3 or fig2, separated by commas; --list "
    "shows them.",
)
_RUNS = flags.DEFINE(
    _binary.PATH,
    "runs",
    "runs",
    "Folder with one folder of run folders for each grid.",
)
_CELLS = flags.DEFINE(
    _binary.PATH,
    "cells",
    None,
    "Folder of the files of finished cells, one for each grid: runs that stand there "
    "count as those in --runs, and those in --runs are added. By default the folder "
    "cells in --results.",
)
_RESULTS = flags.DEFINE(
    _binary.PATH,
    "results",
    None,
    "Folder for the CSV files, the figures and the report.",
)
_LIST = flags.DEFINE_bool("list", False, "Whether only to list the experiments.")


@_binary.program("The same command begins anew.")
def main():
    """Does what the flags say, then prints the checks and the paths."""
    from keras_fa import papers
    from keras_fa.lab import run_folder
    from keras_fa.papers import report

    # The brackets of a name or an error are no markup.
    console = Console(markup=False, emoji=False)
    experiments = papers.EXPERIMENTS
    if _LIST.value:
        _print_list(experiments, console)
        return
    names = _names(experiments)
    folder = _RESULTS.value
    if folder is None:
        raise ValueError("--results is missing: the folder to write to.")
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for name in names:
        section = _section(name, experiments[name], folder)
        sections.append(section)
        for file, frame in section.data.items():
            run_folder.write_text(folder / file, frame.to_csv(index=False))
        _print(section, console)
    file = "report.html" if names == list(experiments) else f"{'-'.join(names)}.html"
    report.write(
        sections,
        folder / file,
        "Feedback alignment: the papers' experiments with keras_fa",
        f"Made of {sum(len(s.runs) for s in _distinct(sections))} runs"
        + _revision()
        + ". RK24: Robertson and Koyejo (2024); RK23: Robertson and Koyejo (2023); "
        "S21: Song, Xu and Lafferty (2021).",
        whole=names == list(experiments),
    )
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
    from keras_fa import papers, sweeps
    from keras_fa.lab import plans, records, run_folder
    from keras_fa.papers import printed

    if experiment.measured:
        return _measured(name, experiment, folder)
    path = plans.find("grid", experiment.grid)
    text = ast.get_docstring(ast.parse(path.read_text()), clean=False)
    grid = plans.read_plan("grid", path)
    base = grid["config"]
    runs = _RUNS.value / experiment.grid
    found = _runs_of(experiment.grid)
    ended = records.endings(_recorded(experiment.grid))
    missing = {}
    for cell in sweeps.cells(base, grid["axes"]):
        status = ended.get(run_folder.identity(cell.config.to_dict()))
        if status != sweeps.FINISHED:
            missing[cell.name] = status or sweeps.status(cell, runs)
    section = papers.Section(
        name,
        experiment.title,
        experiment.source,
        runs=found,
        missing=missing,
        remarks=printed.REMARKS.get(name, "").strip(),
        config=str(base),
        command=_command(text)
        + f"\npython trainers/reproduce.py --experiment={name} --results=DIR",
    )
    if experiment.paper is not None:
        count, total, unit = experiment.paper
        section.complete = f"{count(section.runs)} of the paper's {total} {unit}"
    for grid_beside in experiment.beside:
        section.runs += _runs_of(grid_beside)
    if section.runs:
        for part in experiment.parts:
            part(section, section.runs, folder / "figures")
    if not section.tables:
        _earlier(section, experiment, folder)
    section.figures = {k: v for k, v in section.figures.items() if v is not None}
    return section


def _measured(name, experiment, folder):
    """The section of one experiment, from the rows that were measured."""
    from keras_fa import papers
    from keras_fa.papers import measured, printed

    rows = measured.read(folder / "theory", experiment.measured)
    cells = measured.MEASUREMENTS[experiment.measured].cells
    section = papers.Section(
        name,
        experiment.title,
        experiment.source,
        remarks=printed.REMARKS.get(name, "").strip(),
        command=f"keras-fa measure --what={experiment.measured} --results=DIR\n"
        f"keras-fa reproduce --experiment={name} --results=DIR",
        complete=f"{len(rows)} of {len(cells)} cells measured",
    )
    if len(rows):
        for part in experiment.parts:
            part(section, rows, folder / "figures")
        commits = ", ".join(sorted(set(rows["commit"].astype(str))))
        section.config = f"measured at {commits}"
    section.figures = {k: v for k, v in section.figures.items() if v is not None}
    return section


# Longer ones are for programs.
_ROWS = 60


def _earlier(section, experiment, folder):
    """Shows what was made of runs whose folders and records are gone."""
    import pandas as pd

    for file in experiment.stored:
        earlier = "made earlier, of runs that are neither in --runs nor recorded."
        if file.endswith(".png") and (folder / file).exists():
            section.figures[f"{file}: {earlier}"] = folder / file
        elif (folder / file).exists():
            table = pd.read_csv(folder / file)
            rows = f", the first {_ROWS} of {len(table)} rows"
            section.tables[f"{file}{rows if len(table) > _ROWS else ''}: {earlier}"] = (
                table.head(_ROWS).round(4)
            )


def _recorded(grid):
    """The file of a grid's finished cells."""
    return (_CELLS.value or _RESULTS.value / "cells") / f"{grid}.jsonl"


def _runs_of(grid):
    """The finished runs of a grid, which are recorded as well."""
    from keras_fa import papers
    from keras_fa.lab import records, run_folder

    root = _RUNS.value / grid
    folders = {
        str(path.relative_to(root)): path for path in run_folder.finished_runs(root)
    }
    records.add(_recorded(grid), folders, papers.measures(grid))
    return papers.read_runs(root, _recorded(grid))


def _command(text):
    """The commands in the head of a grid file."""
    found = re.search(r"Command: (.*?)\nExpected:", text, re.DOTALL)
    lines = found[1].splitlines() if found else []
    return "\n".join(line.removeprefix("    ") for line in lines)


def _distinct(sections):
    """One section for each set of runs."""
    return {tuple(run.path for run in s.runs): s for s in sections}.values()


def _revision():
    """The commit that the tables were made at, in a checkout where git tells."""
    if not (_ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(
        ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f", tables made at commit {done.stdout.strip()}" if done.stdout else ""


def _print(section, console):
    cells = len(section.runs)
    rest = f" ({section.source}): {cells} runs, {len(section.missing)} cells missing"
    console.print(Text.assemble((section.name, "bold"), rest))
    words = {True: ("yes", "green"), False: ("NO", "red"), None: "open"}
    for claim, holds, evidence in section.checks:
        console.print(Text.assemble("  ", words[holds], f": {claim}  ({evidence})"))


def _print_list(experiments, console):
    table = Table("experiment", "what", "source", "grid or measurement")
    for name, experiment in experiments.items():
        made_of = experiment.grid or experiment.measured
        table.add_row(name, experiment.title, experiment.source, made_of)
    console.print(table)


if __name__ == "__main__":
    main()
