"""What a sweep shows while it runs, and how long it will take."""

import collections
import contextlib
import json
import os
import pathlib
import statistics
import time

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from keras_fa.lab import run_folder
from keras_fa.lab.grid import ENDED, FINISHED, status

_SECONDS_BETWEEN_LINES = 60
# A cell is watched for so long, and so many of its epochs, before its pace counts.
_WATCHED_SECONDS, _WATCHED_EPOCHS = 20, 2


class Estimates:
    """How long cells will take, one job at a time.

    The median over the finished cells of its settings, seeds and rules left aside; then
    the pace of a running one of them; then the median over the finished cells that
    share the most settings with it; without any, the default.

    Args:
        everything: List of `Cell`.
        workdir: Folder of the run folders.
        default: Seconds.
    """

    def __init__(self, everything, workdir, default):
        self._unknown = list(everything)
        self._workdir = pathlib.Path(workdir)
        self._default = default
        # From settings to the seconds of the cells that have them, and the answers.
        self._times = collections.defaultdict(list)
        self._medians = {}
        # Of running cells by name: when which epoch was seen first, and the last seen.
        self._seen = {}
        # From settings to the seconds that the paces of running cells come to.
        self._paces = {}

    def update(self):
        """Takes in the cells that have finished since."""
        unknown, there = [], set()
        with contextlib.suppress(FileNotFoundError):
            there = {*os.listdir(self._workdir)}
        for cell in self._unknown:
            if cell.name not in there or status(cell, self._workdir) != FINISHED:
                unknown.append(cell)
                continue
            summary = run_folder.read_summary(self._workdir / cell.name)
            self._times[self._key(cell)].append(summary["seconds"])
            self._medians = {}
        self._unknown = unknown

    def watch(self, cell, epoch, now):
        """Takes in how far a running cell is.

        Args:
            cell: A `Cell`.
            epoch: The last that it has logged; 0 before.
            now: Seconds of a monotonic clock.
        """
        since, first, last = self._seen.get(cell.name, (now, 0, 0))
        if first == 0 or epoch < last:  # It loads and compiles, or went back.
            since, first = now, epoch
        self._seen[cell.name] = since, first, epoch
        epochs, seconds = epoch - first, now - since
        if epochs >= _WATCHED_EPOCHS and seconds >= _WATCHED_SECONDS:
            self._paces[self._key(cell)] = seconds / epochs * cell.config.epochs

    def __call__(self, cell):
        """Seconds that a cell will take."""
        key = self._key(cell)
        if key not in self._times and key in self._paces:
            return self._paces[key]
        if key not in self._medians:
            times = collections.defaultdict(list)
            for other, seconds in self._times.items():
                shared = sum(a == b for a, b in zip(key, other, strict=True))
                times[shared] += seconds
            nearest = times[max(times)] if times else [self._default]
            self._medians[key] = statistics.median(nearest)
        return self._medians[key]

    @staticmethod
    def _key(cell):
        settings = cell.settings.items()
        return tuple(repr(v) for k, v in settings if k not in ("rule", "seed"))


class Display:
    """The progress of a sweep: bars on a terminal, else a line from time to time."""

    def __init__(self, pool, seconds_per_cell, console):
        self._pool = pool
        self._console = console
        self._estimates = Estimates(pool.everything, pool.workdir, seconds_per_cell)
        self._printed = float("-inf")
        self._reported = {name for name, state in pool.states.items() if state in ENDED}
        self._all = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._total = self._all.add_task(
            "cells", total=len(pool.everything), note="", completed=0
        )
        self._each = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            console=console,
        )
        self._tasks = {}
        self._live = None

    def __enter__(self):
        if self._console.is_terminal:
            self._live = Live(
                Group(self._all, self._each),
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()
        return self

    def __exit__(self, *exception):
        if self._live is not None:
            self._live.stop()

    def show(self):
        """Brings the display up to date."""
        pool = self._pool
        ended = [name for name, state in pool.states.items() if state in ENDED]
        for name in ended:
            if name not in self._reported:
                self._reported.add(name)
                self._console.print(
                    f"{pool.states[name]}: {name}", highlight=False, soft_wrap=True
                )
        now = time.monotonic()
        if now - self._printed < (1 if self._live else _SECONDS_BETWEEN_LINES):
            return
        self._printed = now
        epochs = {cell.name: self._epoch(cell) for cell in pool.running}
        left = duration(self._seconds_left(epochs))
        note = f"about {left} left"
        if pool.elsewhere:
            note += f", {len(pool.elsewhere)} with another sweep"
        self._all.update(self._total, completed=len(ended), note=note)
        if self._live is None:
            self._console.print(
                f"{len(ended)} of {len(pool.everything)} cells over, "
                f"{len(pool.running)} running, {note}",
                highlight=False,
            )
            return
        for name in set(self._tasks) - set(epochs):
            self._each.remove_task(self._tasks.pop(name))
        for cell in pool.running:
            if cell.name not in self._tasks:
                task = self._each.add_task(cell.name, total=cell.config.epochs)
                self._tasks[cell.name] = task
            self._each.update(self._tasks[cell.name], completed=epochs[cell.name])

    def _epoch(self, cell):
        """The last epoch that a running cell has logged."""
        folder = run_folder.place(self._pool.workdir / cell.name)
        path = folder / run_folder.METRICS
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - 65536))
                return json.loads(file.read().splitlines()[-1])["epoch"]
        except (OSError, IndexError, KeyError, ValueError):
            return 0

    def _seconds_left(self, epochs):
        pool = self._pool
        self._estimates.update()
        for cell in pool.running:
            self._estimates.watch(cell, epochs[cell.name], time.monotonic())
        seconds = sum(self._estimates(cell) for cell in pool.waiting)
        for cell in pool.running:
            share = epochs[cell.name] / cell.config.epochs
            seconds += (1 - share) * self._estimates(cell)
        return seconds / pool.jobs


def duration(seconds):
    """Seconds as a reader likes them: "1 h 02 min", "2 min 05 s" or "7 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
