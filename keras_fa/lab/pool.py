"""The pool of processes that runs the cells of a sweep on one machine."""

import collections
import contextlib
import importlib
import multiprocessing
import os
import pathlib
import threading
import time
import traceback

from keras_fa import registry
from keras_fa.lab import run_folder
from keras_fa.lab.grid import ENDED, FAILED, INTERRUPTED, OPEN, Cell, fail, status

# TensorFlow keeps a little of every model that a process has built.
_CELLS_PER_PROCESS = 25


class _Worker:
    """A process that runs one cell after another."""

    def __init__(self, workdir, threads):
        self.cell = None
        self.done = 0
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work,
            # What registers names of the user's, for the process to know them as well.
            args=(theirs, str(workdir), threads, registry.modules()),
            daemon=True,
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


class Pool:
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
        elif answer != "done" and status(cell, self.workdir) not in ENDED:
            fail(cell, self.workdir, *answer)
        self.states[cell.name] = status(cell, self.workdir)

    def stop(self):
        for worker in self._workers:
            worker.stop()


def _work(pipe, workdir, threads, modules):
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

    from keras_fa.lab.run import run

    for module in modules:
        # What cannot be imported here is missed by the cells that need it, and said.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)

    with contextlib.suppress(EOFError):
        while True:
            name, settings, config = pipe.recv()
            cell = Cell(name, settings, config)
            try:
                answer = _run_cell(run, cell, workdir)
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}", traceback.format_exc()
                # At once: the cell is free for a sweep that waits for it. Where it
                # cannot be written, the parent tries again and says so.
                with contextlib.suppress(OSError):
                    fail(cell, workdir, *answer)
            keras.backend.clear_session()
            pipe.send(answer)


def _run_cell(run, cell, workdir):
    # Between the sweep's look at a cell and its start here, another sweep may have
    # recorded a failure: that cell is over.
    if status(cell, workdir) == FAILED:
        return "done"
    try:
        run(cell.config, pathlib.Path(workdir) / cell.name)
    except run_folder.RunFolderBusyError:
        return "busy"
    return "done"


def _end_with_parent():
    """Ends this process with its parent, which may be killed and tell nobody."""

    def watch():
        # Not by its id: the parent may have ended while this process was starting.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
