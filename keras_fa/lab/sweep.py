"""Sweeps: the cells of a grid, each a run folder, run by a pool of processes.

What is done and what is not is read from the run folders alone, and the lock of a run
folder, which the operating system drops with the process that holds it, decides who
runs a cell. So a sweep may be killed, started again, and started several times at once:
nothing is run twice, nothing is left out.
"""

import pathlib
import time

from rich.console import Console

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


def run(everything, workdir, jobs=1, seconds_per_cell=60.0, console=None):
    """Runs all cells that are neither finished nor recorded as failed or diverged.

    Args:
        everything: List of `Cell`.
        workdir: Folder of the run folders.
        jobs: Number of processes. The cores are shared out among them.
        seconds_per_cell: What the time left is reckoned with until cells are finished.
        console: `rich.console.Console` to show the progress on; None for a new one.

    Returns:
        `{cell name: status}`. A cell that another sweep has is waited for.

    Raises:
        ValueError: If `jobs` is not positive.
        OSError: If the folder cannot be made or written.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1. Received: {jobs}.")
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    pool = Pool(everything, workdir, jobs)
    display = Display(pool, seconds_per_cell, console or Console())
    try:
        with display:
            while pool.advance():
                display.show()
                time.sleep(0.2)
            display.show()
    finally:
        pool.stop()
    return {cell.name: status(cell, workdir) for cell in everything}
