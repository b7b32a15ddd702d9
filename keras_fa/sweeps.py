"""Sweeps: the cells of a grid, each a run folder, run by a pool of processes.

What is done and what is not is read from the run folders alone, and the lock of a run
folder, which the operating system drops with the process that holds it, decides who
runs a cell. So a sweep may be killed, started again, and started several times at once:
nothing is run twice, nothing is left out.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import statistics
import threading
import time
import traceback

from ml_collections import ConfigDict
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from keras_fa import config as configuration
from keras_fa import results

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"
INTERRUPTED, OPEN = "interrupted", "open"

# TensorFlow keeps a little of every model that a process has built.
_CELLS_PER_PROCESS = 25
_SECONDS_BETWEEN_LINES = 60


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: Its settings, and the name of its run folder.
        settings: `{field: value}` of the fields that the grid varies.
        config: Its whole configuration, a `ConfigDict`.
    """

    name: str
    settings: dict
    config: ConfigDict


def cells(base, axes):
    """The cells of a grid: every combination of one row of each axis.

    Args:
        base: `ConfigDict` that the cells change.
        axes: Sequence of axes. An axis is a dict from field, such as
            "model.hidden_units", to the sequence of its values; fields of one axis vary
            together. The first field of each axis names the cells.

    Returns:
        List of `Cell`, the last axis varying fastest.

    Raises:
        ValueError: If there is no axis, an axis is empty or uneven, a field is unknown
            or in two axes, a value is of the wrong kind, or two cells have the same
            name.
    """
    if not axes:
        raise ValueError("A grid needs at least one axis: it names the cells.")
    fields = [field for axis in axes for field in axis]
    twice = sorted({field for field in fields if fields.count(field) > 1})
    if twice:
        raise ValueError(f"Fields in more than one axis: {', '.join(twice)}.")
    for axis in axes:
        lengths = {field: len(values) for field, values in axis.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(
                "The fields of an axis vary together and need equally many values, at "
                f"least one. Received: {lengths}."
            )
    labels = _labels([next(iter(axis)) for axis in axes])
    found = []
    for rows in itertools.product(*(range(len(next(iter(a.values())))) for a in axes)):
        settings = {
            field: values[row]
            for axis, row in zip(axes, rows, strict=True)
            for field, values in axis.items()
        }
        name = ",".join(
            f"{label}={_text(settings[next(iter(axis))])}"
            for label, axis in zip(labels, axes, strict=True)
        )
        found.append(Cell(name, settings, _with(base, settings)))
    names = [cell.name for cell in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"More than one cell is called {twice[0]!r}.")
    return found


def narrow(axes, field, values):
    """Axes with other values of one field.

    Args:
        axes: As for `cells`.
        field: A field. If it varies alone, it takes the values; if others vary with it,
            only the rows with one of the values stay; if it is in no axis, it becomes
            one, the first.
        values: Sequence of values.

    Raises:
        ValueError: If other fields vary with it and there is no row for a value.
    """
    for index, axis in enumerate(axes):
        if field not in axis:
            continue
        if len(axis) == 1:
            changed = {field: list(values)}
        else:
            rows = []
            for value in values:
                if value not in axis[field]:
                    raise ValueError(
                        f"The grid has no row with {field}={value!r}. It has "
                        f"{', '.join(map(repr, axis[field]))}."
                    )
                rows.append(list(axis[field]).index(value))
            changed = {key: [column[r] for r in rows] for key, column in axis.items()}
        return [*axes[:index], changed, *axes[index + 1 :]]
    return [{field: list(values)}, *axes]


def _labels(fields):
    """The fields' last words where these differ, else the fields themselves."""
    words = [field.rsplit(".", 1)[-1] for field in fields]
    return [
        word if words.count(word) == 1 else field
        for word, field in zip(words, fields, strict=True)
    ]


def _text(value):
    if isinstance(value, (tuple, list)):
        return "x".join(map(_text, value)) or "none"
    text = "none" if value is None else str(value)
    return re.sub(r"[^-+.\w()]", "_", text)


def _with(base, settings):
    config = base.copy_and_resolve_references()
    sections = {key for key in config if isinstance(config[key], ConfigDict)}
    for field, value in settings.items():
        *path, last = field.split(".")
        section = config
        for key in path:
            if key not in section or not isinstance(section[key], ConfigDict):
                raise ValueError(
                    f"Unknown field config.{field}: there is no section {key!r}. "
                    f"Sections: {', '.join(sorted(sections))}."
                )
            section = section[key]
        try:
            with section.unlocked():
                section[last] = value
        except TypeError as error:
            raise ValueError(f"config.{field} cannot be {value!r}: {error}") from error
    configuration.check(config)
    return config


def status(cell, workdir):
    """How far a cell is: one of the five constants at the head of this module.

    "interrupted" is every cell that was begun and is not over, be it because it was
    stopped or because a process is at it.
    """
    folder = pathlib.Path(workdir) / cell.name
    summary = results.read_summary(folder)
    if summary is not None:
        return summary["status"]
    if _failure_path(cell, workdir).exists():
        return FAILED
    return INTERRUPTED if (folder / results.CONFIG).exists() else OPEN


def failure(cell, workdir):
    """What went wrong in a failed cell, a dict with `error` and `traceback`."""
    return json.loads(_failure_path(cell, workdir).read_text(encoding="utf-8"))


def _failure_path(cell, workdir):
    return pathlib.Path(workdir) / f"{cell.name}.failed.json"


def _fail(cell, workdir, error, trace=""):
    text = results.to_json({"error": error, "traceback": trace}, indent=2) + "\n"
    results.write_text(_failure_path(cell, workdir), text)


class Estimates:
    """How long cells will take, one job at a time.

    The median over the finished cells that share the most settings with it, seeds and
    rules left aside; without any, the default.

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

    def update(self):
        """Takes in the cells that have finished since."""
        unknown = []
        for cell in self._unknown:
            summary = results.read_summary(self._workdir / cell.name)
            if summary is None or summary["status"] != FINISHED:
                unknown.append(cell)
            else:
                self._times[self._key(cell)].append(summary["seconds"])
                self._medians = {}
        self._unknown = unknown

    def __call__(self, cell):
        """Seconds that a cell will take."""
        key = self._key(cell)
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


def clear(cell, workdir):
    """Makes a failed or diverged cell ready to be run again.

    A failed cell goes on after its last checkpoint; a diverged one begins anew.

    Raises:
        keras_fa.results.RunFolderError: If another process is at it.
    """
    _failure_path(cell, workdir).unlink(missing_ok=True)
    folder = pathlib.Path(workdir) / cell.name
    summary = results.read_summary(folder)
    if summary is not None and summary["status"] == DIVERGED:
        with results.RunFolder(folder, cell.config.to_dict()) as run:
            # Before the lock was ours, another sweep may have run it again.
            summary = run.summary()
            if summary is not None and summary["status"] == DIVERGED:
                run.clear()


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
    pool = _Pool(everything, workdir, jobs)
    display = _Display(pool, seconds_per_cell, console or Console())
    try:
        with display:
            while pool.advance():
                display.show()
                time.sleep(0.2)
            display.show()
    finally:
        pool.stop()
    return {cell.name: status(cell, workdir) for cell in everything}


class _Worker:
    """A process that runs one cell after another."""

    def __init__(self, workdir, threads):
        self.cell = None
        self.done = 0
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, str(workdir), threads), daemon=True
        )
        self._process.start()
        theirs.close()

    def give(self, cell):
        self.cell, self.done = cell, self.done + 1
        self._pipe.send((cell.name, cell.settings, cell.config))

    def answer(self):
        """What came of the cell: None while it runs, else "done", "busy" or an error.

        An error is a pair of message and traceback.
        """
        try:
            if self._pipe.poll():
                return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            pass
        if self._process.is_alive():
            return None
        code = self._process.exitcode
        return f"The process of this cell ended with exit code {code}.", ""

    @property
    def usable(self):
        return self._process.is_alive() and self.done < _CELLS_PER_PROCESS

    def stop(self):
        self._process.kill()
        self._process.join()


class _Pool:
    """Hands the cells to the workers and takes down what came of them."""

    def __init__(self, everything, workdir, jobs):
        self.everything = everything
        self.workdir = workdir
        self.jobs = jobs
        self.states = {cell.name: status(cell, workdir) for cell in everything}
        self._queue = collections.deque(
            cell for cell in everything if self.states[cell.name] in (INTERRUPTED, OPEN)
        )
        # Cells that another sweep has, and when to look again.
        self._elsewhere = {}
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._workers = []

    @property
    def running(self):
        return [worker.cell for worker in self._workers if worker.cell is not None]

    @property
    def elsewhere(self):
        return [cell for cell, _ in self._elsewhere.values()]

    @property
    def waiting(self):
        return list(self._queue)

    def advance(self):
        """One look at everything. Returns whether there is more to do."""
        for worker in list(self._workers):
            if worker.cell is not None:
                answer = worker.answer()
                if answer is not None:
                    self._take_down(worker.cell, answer)
                    worker.cell = None
                    # Nothing was built.
                    worker.done -= answer == "busy"
            if worker.cell is None and not worker.usable:
                worker.stop()
                self._workers.remove(worker)
        now = time.monotonic()
        for name, (cell, when) in list(self._elsewhere.items()):
            if now >= when:
                del self._elsewhere[name]
                self._queue.append(cell)
        while self._queue and len(self.running) < self.jobs:
            cell = self._queue.popleft()
            self.states[cell.name] = status(cell, self.workdir)
            # Another sweep may have been faster.
            if self.states[cell.name] not in (INTERRUPTED, OPEN):
                continue
            idle = [worker for worker in self._workers if worker.cell is None]
            if not idle:
                idle = [_Worker(self.workdir, self._threads)]
                self._workers += idle
            try:
                idle[0].give(cell)
            except OSError:
                # It ended while it was idle: the cell is for the next one.
                idle[0].stop()
                self._workers.remove(idle[0])
                self._queue.appendleft(cell)
        return bool(self._queue or self._elsewhere or self.running)

    def _take_down(self, cell, answer):
        if answer == "busy":
            self._elsewhere[cell.name] = (cell, time.monotonic() + 2)
        elif answer != "done" and status(cell, self.workdir) not in _ENDED:
            _fail(cell, self.workdir, *answer)
        self.states[cell.name] = status(cell, self.workdir)

    def stop(self):
        for worker in self._workers:
            worker.stop()


def _work(pipe, workdir, threads):
    """The life of a worker process."""
    import signal

    # Ctrl-C goes to all processes of a terminal; the sweep stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[variable] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    log = os.open(
        os.path.join(workdir, "workers.log"),
        os.O_WRONLY | os.O_APPEND | os.O_CREAT,
        0o666,
    )
    os.dup2(log, 1)
    os.dup2(log, 2)

    import keras

    from keras_fa import experiment

    with contextlib.suppress(EOFError):
        while True:
            name, settings, config = pipe.recv()
            cell = Cell(name, settings, config)
            try:
                answer = _run_cell(experiment, cell, workdir)
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}", traceback.format_exc()
                # At once: the cell is free for a sweep that waits for it. Where it
                # cannot be written, the parent tries again and says so.
                with contextlib.suppress(OSError):
                    _fail(cell, workdir, *answer)
            keras.backend.clear_session()
            pipe.send(answer)


def _run_cell(experiment, cell, workdir):
    # Between the sweep's look at a cell and its start here, another sweep may have
    # recorded a failure: that cell is over.
    if status(cell, workdir) == FAILED:
        return "done"
    try:
        experiment.run(cell.config, pathlib.Path(workdir) / cell.name)
    except results.RunFolderBusyError:
        return "busy"
    return "done"


def _end_with_parent():
    """Ends this process with its parent, which may be killed and tell nobody."""

    def watch():
        # Not by its id: the parent may have ended while this process was starting.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Display:
    """The progress of a sweep: bars on a terminal, else a line from time to time."""

    def __init__(self, pool, seconds_per_cell, console):
        self._pool = pool
        self._console = console
        self._estimates = Estimates(pool.everything, pool.workdir, seconds_per_cell)
        self._printed = float("-inf")
        self._reported = {
            name for name, state in pool.states.items() if state in _ENDED
        }
        self._all = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._total = self._all.add_task(
            "cells", total=len(pool.everything), note="", completed=0
        )
        self._each = Progress(
            TextColumn("  {task.description}"),
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
        ended = [name for name, state in pool.states.items() if state in _ENDED]
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
        path = self._pool.workdir / cell.name / results.METRICS
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - 65536))
                return json.loads(file.read().splitlines()[-1])["epoch"]
        except (OSError, IndexError, KeyError, ValueError):
            return 0

    def _seconds_left(self, epochs):
        pool = self._pool
        self._estimates.update()
        seconds = sum(self._estimates(cell) for cell in pool.waiting)
        for cell in pool.running:
            share = epochs[cell.name] / cell.config.epochs
            seconds += (1 - share) * self._estimates(cell)
        return seconds / pool.jobs


_ENDED = (FINISHED, DIVERGED, FAILED)


def duration(seconds):
    """Seconds as a reader likes them: "1 h 02 min", "2 min 05 s" or "7 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
