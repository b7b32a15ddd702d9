"""Sweeps: the cells of a grid, each a run folder, run by a pool of processes.

What is done and what is not is read from the run folders alone, and the lock of a run
folder, which the operating system drops with the process that holds it, decides who
runs a cell. So a sweep may be killed, started again, and started several times at once:
nothing is run twice, nothing is left out.
"""

import pathlib
import time

from rich.console import Console

from keras_fa.lab import run_folder
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
from keras_fa.lab.pool import Pool
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
    "cells",
    "clear",
    "duration",
    "failure",
    "narrow",
    "run",
    "status",
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
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    run_folder.tidy(workdir)
    console = console or Console()
    pool = Pool(everything, workdir, jobs, cell_seconds)
    display = Display(pool, seconds_per_cell, console)
    try:
        with display:
            while pool.advance():
                display.show()
                time.sleep(0.2)
            display.show()
    finally:
        pool.stop()
    for name, why in pool.left.items():
        text = f"left open: {name}: {why}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return {cell.name: status(cell, workdir) for cell in everything}
