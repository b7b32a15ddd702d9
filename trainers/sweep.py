r"""Runs a grid of experiments in a pool of processes, or on a cluster.

Example:
    keras-fa sweep --grid=table3 --workdir=runs/table3 --jobs=2
    keras-fa sweep --grid=table3 --workdir=/scratch/runs/table3 --executor=slurm \
        --copies=20 --slurm="--time=4:00:00 --gpus=1"

A sweep that was stopped goes on when the same command is given again, and several on
one --workdir share the work.
"""

import ast
import contextlib
import re
import sys
import threading

import _binary
from absl import flags
from rich.console import Console
from rich.table import Table

_GRID = flags.DEFINE_string(
    "grid",
    None,
    "Grid file, or the name of one: which config, and which fields vary.",
    required=True,
)
_WORKDIR = flags.DEFINE(
    _binary.PATH, "workdir", None, "Folder of the cells' run folders.", required=True
)
_AXIS = flags.DEFINE_multi_string(
    "axis",
    [],
    'Other values of one field: --axis="seed=[0,1,2,3]", or --axis="seed=range(4)" for '
    "the same. May be given several times. "
    "If other fields of the grid vary with the field, only the rows with these values "
    "stay; a field that the grid does not vary becomes an axis.",
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Processes at once; the cores are shared out among them.",
    lower_bound=1,
)
_CELL_MINUTES = flags.DEFINE_float(
    "cell_minutes",
    None,
    "Time limit of a cell: one that takes longer is stopped and recorded as failed. "
    "Without it a cell that hangs is waited for.",
    lower_bound=0.01,
)
_CELLS = flags.DEFINE(
    _binary.PATH,
    "cells",
    None,
    "File of finished cells, such as results/cells/table3.jsonl: what stands there is "
    "not run again, and what finishes is added, with its last log line, its commit and "
    "a part of its log.",
)
_EXECUTOR = flags.DEFINE_string(
    "executor",
    "local",
    'What starts the processes: "local" for this machine, "slurm", or "module:Class" '
    "for an engine of your own.",
)
_COPIES = flags.DEFINE_integer(
    "copies",
    None,
    "How many copies of the sweep the executor starts, each with --jobs processes. "
    "Without it the local executor starts none: the processes are this program's.",
    lower_bound=1,
)
_SLURM = flags.DEFINE_string(
    "slurm", "", 'What sbatch is given besides, such as "--time=4:00:00 --gpus=1".'
)
_WORKER = flags.DEFINE_bool(
    "worker",
    False,
    "Whether this is one of many copies: it runs cells until there is none to claim, "
    "shows no progress and waits for nobody. Any engine may start it.",
)
_STATUS = flags.DEFINE_bool(
    "status",
    False,
    "Whether only to say how many cells are over and how the copies are.",
)
_STOP = flags.DEFINE_bool(
    "stop", False, "Whether only to have the copies save and end."
)
_RETRY = flags.DEFINE_bool(
    "retry", False, "Whether to take up cells that failed or diverged before."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Whether only to list the cells, how far they are and how long they will take.",
)
flags.DEFINE_alias("dry-run", "dry_run")


@_binary.program("The same command goes on where the cells are.", watches=True)
def main():
    """Does what the flags say, then prints how the cells ended."""
    from keras_fa import sweeps
    from keras_fa.lab import plans, run_folder

    # The brackets of a name or an error are no markup.
    console = Console(markup=False, emoji=False)
    workdir = _WORKDIR.value
    grid = plans.read_plan("grid", _GRID.value)
    axes = grid["axes"]
    for text in _AXIS.value:
        axes = sweeps.narrow(axes, *_parse_axis(text))
    cells = sweeps.cells(grid["config"], axes, named_by=grid["axes"])
    seconds = grid["seconds_per_cell"]
    if _CELLS.value is not None:
        cells = _not_recorded(cells, console)
        if not cells:
            return
    if _STATUS.value or _STOP.value:
        _look_at_copies(cells, workdir, console)
        return
    if _DRY_RUN.value:
        _list(cells, workdir, seconds, console)
        return
    if _RETRY.value:
        for cell in cells:
            # Another sweep that holds it has taken it up already.
            with contextlib.suppress(run_folder.RunFolderBusyError):
                sweeps.clear(cell, workdir)
    limit = None if _CELL_MINUTES.value is None else 60 * _CELL_MINUTES.value
    if _WORKER.value:
        states, left = sweeps.work(cells, workdir, _JOBS.value, console, limit)
        console.print(_counted(states))
        if left:
            sys.exit("error: this machine cannot run the cells that were left open.")
        return
    with _recorded(cells, workdir, plans.find("grid", _GRID.value).stem):
        if _EXECUTOR.value == "local" and _COPIES.value is None:
            states = sweeps.run(cells, workdir, _JOBS.value, seconds, console, limit)
        else:
            states = _attend(cells, workdir, seconds, console)
    console.print(_counted(states))
    for cell in cells:
        if states[cell.name] == sweeps.FAILED:
            error = sweeps.failure(cell, workdir)["error"]
            text = f"failed: {cell.name}: {error}"
            console.print(text, highlight=False, soft_wrap=True)
    if set(states.values()) != {sweeps.FINISHED}:
        sys.exit(
            "error: not all cells finished; --retry takes them up again, and the same "
            "command what was left open."
        )


def _not_recorded(cells, console):
    """The cells that do not stand in the file of --cells."""
    from keras_fa import sweeps
    from keras_fa.lab import records

    counting = (sweeps.FINISHED,) if _RETRY.value else sweeps.ENDED
    left = records.without_recorded(cells, _CELLS.value, counting)
    if stand := len(cells) - len(left):
        console.print(f"{stand} of {len(cells)} cells stand in {_CELLS.value}")
    return left


@contextlib.contextmanager
def _recorded(cells, workdir, name):
    """Adds cells that are over to the file of --cells, once a minute and at the end."""
    if _CELLS.value is None:
        yield
        return
    from keras_fa import papers
    from keras_fa.lab import records

    folders = {cell.name: workdir / cell.name for cell in cells}
    measures = papers.measures(name)
    over = threading.Event()

    def add():
        while not over.wait(60):
            records.add(_CELLS.value, folders, measures)

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        records.add(_CELLS.value, folders, measures)


def _counted(states):
    values = list(states.values())
    counts = {state: values.count(state) for state in values}
    return ", ".join(f"{n} {state}" for state, n in counts.items()) or "no cell run"


def _attend(cells, workdir, seconds, console):
    """Has the executor run the cells in copies of this program."""
    from keras_fa import sweeps
    from keras_fa.lab import executors, plans

    command = executors.worker_command(
        __file__,
        [
            "--worker",
            f"--grid={plans.find('grid', _GRID.value).resolve()}",
            f"--workdir={workdir.absolute()}",
            f"--jobs={_JOBS.value}",
            *(f"--axis={text}" for text in _AXIS.value),
            *([f"--cell_minutes={m}"] if (m := _CELL_MINUTES.value) else []),
            *([f"--cells={f.absolute()}"] if (f := _CELLS.value) else []),
        ],
    )
    engine = executors.get(_EXECUTOR.value, _SLURM.value)
    try:
        return sweeps.attend(
            cells,
            workdir,
            (_EXECUTOR.value, engine),
            command,
            _COPIES.value or 1,
            seconds,
            console,
        )
    except KeyboardInterrupt:
        print(
            "\nThe copies go on. The same command watches them again; with --status "
            "it says how they are, with --stop it ends them.",
            flush=True,
        )
        raise


def _look_at_copies(cells, workdir, console):
    """Says how far the sweep is and how its copies are; stops them if asked to."""
    from keras_fa import sweeps
    from keras_fa.lab import executors

    console.print(_counted({cell.name: sweeps.status(cell, workdir) for cell in cells}))
    found = executors.read_job(workdir)
    if found is None:
        console.print("copies: none were started by an executor")
        return
    name, job = found
    engine = executors.get(name, _SLURM.value)
    console.print(sweeps.describe(engine.state(job)), highlight=False)
    if _STOP.value:
        engine.stop(job)
        console.print("They were asked to save and end.")


def _parse_axis(text):
    field, _, values = text.partition("=")
    counted = re.fullmatch(r"range\((\d+)\)", values.strip())
    if counted:
        return field.strip(), list(range(int(counted[1])))
    try:
        values = ast.literal_eval(values.strip())
    except (SyntaxError, TypeError, ValueError):
        values = None
    if not isinstance(values, (list, tuple)):
        raise ValueError(
            f"--axis={text!r} should be a field and a list of Python values, such as "
            '--axis="seed=[0,1]" or --axis="rule=[\'fa\']".'
        )
    return field.strip(), values


def _list(cells, workdir, seconds_per_cell, console):
    from keras_fa import sweeps

    table = Table("cell", "status")
    table.add_column("minutes", justify="right")
    total = 0.0
    estimate = sweeps.Estimates(cells, workdir, seconds_per_cell)
    estimate.update()
    for cell in cells:
        state = sweeps.status(cell, workdir)
        minutes = ""
        if state in (sweeps.OPEN, sweeps.INTERRUPTED):
            seconds = estimate(cell)
            total += seconds
            minutes = f"{seconds / 60:.1f}"
        table.add_row(cell.name, state, minutes)
    console.print(table)
    console.print(
        f"{len(cells)} cells; about {total / 60 / _JOBS.value:.0f} minutes left with "
        f"--jobs={_JOBS.value}."
    )


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    # A worker process, which needs it before it has a log of its own.
    _binary.load_tensorflow()
