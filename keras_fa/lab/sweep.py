"""Sweeps: the cells of a grid, each a run folder, run by a pool of processes.

What is done and what is not is read from the run folders alone, and each process works
in a folder of its own until the run is over: see `keras_fa.lab.attempts`. So a sweep
may be killed, started again, and started several times at once, on one machine or on
many with a file system in common: nothing is run twice, nothing is left out.
"""

import os
import pathlib
import time

from rich.console import Console

from keras_fa.lab import attempts, executors, run_folder
from keras_fa.lab.grid import (
    DIVERGED,
    ENDED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    OPEN,
    Cell,
    cells,
    clear,
    failure,
    narrow,
    status,
)
from keras_fa.lab.pool import LOGS, Pool
from keras_fa.lab.progress import Display, Estimates, duration

__all__ = [
    "DIVERGED",
    "ENDED",
    "FAILED",
    "FINISHED",
    "INTERRUPTED",
    "OPEN",
    "Cell",
    "Estimates",
    "attend",
    "cells",
    "clear",
    "describe",
    "duration",
    "failure",
    "narrow",
    "run",
    "status",
    "work",
]


def run(
    everything,
    workdir,
    jobs=1,
    seconds_per_cell=60.0,
    console=None,
    cell_seconds=None,
):
    """Runs all cells that are neither finished nor recorded as failed or diverged.

    A cell that the machine stops (a full disk, too little memory) is begun again a few
    times and then left open, with a line that says why: it is not recorded as failed.

    Args:
        everything: List of `Cell`.
        workdir: Folder of the run folders.
        jobs: Number of processes. The cores are shared out among them.
        seconds_per_cell: What the time left is reckoned with until cells are finished.
        console: `rich.console.Console` to show the progress on; None for a new one.
        cell_seconds: After which a cell is stopped and recorded as failed; None for
            never.

    Returns:
        `{cell name: status}`. A cell that another sweep has is waited for.

    Raises:
        ValueError: If `jobs` or `cell_seconds` is not positive.
        OSError: If the folder cannot be made or written.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1. Received: {jobs}.")
    if cell_seconds is not None and cell_seconds <= 0:
        raise ValueError(f"cell_seconds must be positive. Received: {cell_seconds}.")
    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    run_folder.tidy(workdir)
    console = console or Console()
    pool = Pool(everything, workdir, jobs, cell_seconds)
    display = Display(pool, seconds_per_cell, console)
    try:
        with display:
            while pool.advance():
                display.show()
                pool.wait(0.2)
            display.show()
    finally:
        pool.stop()
    _say_what_is_left(pool, console)
    return {cell.name: status(cell, workdir) for cell in everything}


def work(everything, workdir, jobs=1, console=None, cell_seconds=None):
    """Runs cells as one of many copies, on many machines, until there is none to claim.

    It looks at the folder as a whole, begins anywhere in the grid, and waits for
    nobody: cells that other copies have may still run when it ends.

    Args:
        everything: As for `run`, and the following too.
        workdir: Folder of the run folders, on a file system that all copies share.
        jobs: Number of processes of this copy.
        console: Where each cell that ends is said.
        cell_seconds: After which a cell is stopped and recorded as failed.

    Returns:
        `{cell name: status}` of the cells that this copy ran, and `{cell name: why}` of
        those that its machine stopped.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    console = console or Console()
    pool = Pool(everything, workdir, jobs, cell_seconds, shares=True)
    said = set()
    try:
        while pool.advance():
            for name in pool.states.keys() - said:
                said.add(name)
                text = f"{pool.states[name]}: {name}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)
            pool.wait(0.2)
    finally:
        pool.stop()
    _say_what_is_left(pool, console)
    return pool.states, pool.left


# Seconds between two looks at a folder in which others work, and at their engine.
_LOOK, _ASK = 2.0, 10.0


class _Folder:
    """A sweep that others run, as its folder shows it: what `Display` wants to know."""

    def __init__(self, everything, workdir):
        self.everything, self.workdir, self.jobs = everything, workdir, 1
        self.states = {}
        self.running, self.waiting, self.elsewhere = [], [], []

    def look(self):
        """Brings it up to date: two listings, and a look at each cell that is new."""
        there = {*os.listdir(self.workdir)}
        home = self.workdir / attempts.HOME
        begun = {*os.listdir(home)} if home.exists() else set()
        self.running, self.waiting = [], []
        for cell in self.everything:
            if self.states.get(cell.name) in ENDED:
                continue
            is_there = cell.name in there or f"{cell.name}.failed.json" in there
            if is_there:
                self.states[cell.name] = status(cell, self.workdir)
                if self.states[cell.name] in ENDED:
                    continue
            else:
                self.states[cell.name] = INTERRUPTED if cell.name in begun else OPEN
            is_held = cell.name in begun and cell.name not in there
            (self.running if is_held else self.waiting).append(cell)


def attend(
    everything,
    workdir,
    executor,
    command,
    copies=1,
    seconds_per_cell=60.0,
    console=None,
):
    """Has an engine run the cells, and shows how far they are until no copy is left.

    Where copies are at work in the folder already, it watches those and starts none.

    Args:
        everything: List of `Cell`.
        workdir: Folder of the run folders, on a file system that all copies share.
        executor: `(name, engine)`: see `keras_fa.lab.executors`.
        command: What a copy is, a list of words: it calls `work`.
        copies: How many.
        seconds_per_cell: As for `run`.
        console: As for `run`.

    Returns:
        `{cell name: status}`.

    Raises:
        ValueError: If the engine refuses, or copies of another one are at work.
        OSError: If the folder cannot be made or written.
    """
    workdir = pathlib.Path(workdir).absolute()
    (workdir / LOGS).mkdir(parents=True, exist_ok=True)
    run_folder.tidy(workdir)
    console = console or Console()
    folder = _Folder(everything, workdir)
    folder.look()
    if not (folder.running or folder.waiting):
        return folder.states
    name, engine = executor
    job = _job_at_work(workdir, name, engine)
    if job is None:
        job = engine.start(command, copies, workdir / LOGS)
        executors.write_job(workdir, name, job)
        text = f"{copies} copies started as job {_short(job)}"
    else:
        text = f"job {_short(job)} is at work here already, and is watched"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    display = Display(folder, seconds_per_cell, console)
    folder.jobs, said, asked = copies, None, time.monotonic()
    with display:
        while folder.running or folder.waiting:
            display.show()
            time.sleep(_LOOK)
            folder.look()
            if time.monotonic() - asked < _ASK:
                continue
            asked = time.monotonic()
            try:
                found = engine.state(job)
            except executors.EngineError as error:
                # While a scheduler is started again its jobs go on.
                text = f"{error} Its copies may go on; it is asked again."
            else:
                if not found:
                    break
                folder.jobs = max(1, found.get("running", 0))
                text = describe(found)
            if text != said:
                said = text
                console.print(text, markup=False, highlight=False, soft_wrap=True)
        folder.look()
        display.show()
    return folder.states


def describe(found):
    """What an engine says of its copies, as a line."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.items()))
    return f"copies: {states or 'none'}"


def _short(job):
    return job if len(job) < 40 else f"{job[:36]}..."


def _job_at_work(workdir, name, engine):
    """The job whose copies are at work in a folder, or None."""
    found = executors.read_job(workdir)
    if found is None:
        return None
    if found[0] != name:
        raise ValueError(
            f"{workdir} has copies of --executor={found[0]}. Give that, or remove "
            f"{workdir / 'job.json'} once they have ended."
        )
    return found[1] if engine.state(found[1]) else None


def _say_what_is_left(pool, console):
    # A full disk leaves all the others open, of which there may be thousands.
    names = {}
    for name, why in pool.left.items():
        names.setdefault(why, []).append(name)
    for why, (first, *others) in names.items():
        more = f" and {len(others)} more" if others else ""
        text = f"left open: {first}{more}: {why}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
