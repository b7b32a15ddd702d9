"""The pool of processes that runs the cells of a sweep on one machine."""

import collections
import contextlib
import dataclasses
import errno
import importlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import random
import signal
import socket
import threading
import time
import traceback

from keras_fa import registry
from keras_fa.lab import attempts, run_folder
from keras_fa.lab.grid import ENDED, INTERRUPTED, OPEN, fail, failed, status

# Folder of what the workers of a sweep print, in its own.
LOGS = "logs"
# TensorFlow keeps a little of every model that a process has built.
_CELLS_PER_PROCESS = 25
# How often a cell is begun that the machine stopped (a full disk, say, or too little
# memory), the seconds before it is begun again, and how many such ends in a row tell
# that the machine cannot run any.
_ATTEMPTS, _PAUSE, _MOST_IN_A_ROW = 3, 2, 10
# Seconds that a worker has to save and end when it is asked to, and its exit code then.
_GRACE, _ASKED = 15, 128 + signal.SIGTERM
# How many of the cells that others are at a copy watches when nothing else is left.
_WATCHED = 8

# The disk is full, or the user's share of it: no other cell would fare better.
_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]
_PASSING = [
    *_FULL,
    *(os.strerror(errno.EFBIG), os.strerror(errno.EROFS), os.strerror(errno.EIO)),
    *(os.strerror(errno.ENOMEM), os.strerror(errno.EAGAIN), os.strerror(errno.ESTALE)),
    *(os.strerror(errno.EMFILE), os.strerror(errno.ENFILE), os.strerror(errno.ENOLCK)),
]


@dataclasses.dataclass
class Mishap:
    """What ended a cell before its end.

    Attributes:
        error: A line for the user.
        traceback: Where it came from; empty if that is not known.
        is_passing: Whether the machine is to blame and not the cell.
        is_full: Whether it is for want of room on the disk.
    """

    error: str
    traceback: str = ""
    is_passing: bool = False
    is_full: bool = False


class _Worker:
    """A process that runs one cell after another."""

    def __init__(self, workdir, threads):
        self.cell = None
        self.done = 0
        self.since = None
        self._workdir = workdir
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work,
            # What registers names of the user's, for the process to know them as well.
            args=(theirs, str(workdir), threads, registry.modules(), _names()),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def give(self, cell):
        self.cell, self.done, self.since = cell, self.done + 1, time.monotonic()
        self.pipe.send((cell, attempts.seen(self._workdir / cell.name)))

    def answer(self):
        """What came of the cell: "done", "busy" where somebody else is at it, "over"
        where it had ended before, or a `Mishap`; None while it runs.
        """
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            pass
        if self._process.is_alive():
            return None
        code = self._process.exitcode
        # Killed from outside: by the kernel for want of memory, above all.
        killed = code in (-signal.SIGKILL, -signal.SIGTERM, _ASKED)
        reason = " (killed; was there too little memory?)" if killed else ""
        return Mishap(
            f"The process of this cell ended with exit code {code}{reason}.",
            is_passing=killed,
        )

    @property
    def usable(self):
        return self._process.is_alive() and self.done < _CELLS_PER_PROCESS

    def end(self):
        """Asks the process to save and end, without waiting for it."""
        self._process.terminate()

    def stop(self):
        """Ends the process; one that has been asked to end has time to."""
        self._process.join(_GRACE if self.cell is not None else 0)
        self._process.kill()
        self._process.join()


class Pool:
    """Hands the cells to the workers and takes down what came of them.

    Args:
        everything: List of `Cell`.
        workdir: Folder of the run folders, an absolute path.
        jobs: How many workers.
        cell_seconds: After which a cell is stopped and recorded as failed.
        shares: Whether it is one of many copies, on many machines. It looks at the
            folder as a whole and not at each cell, begins at a place of its own in the
            grid, and ends when others are at all that is left.

    Attributes:
        states: `{cell name: status}`; where it shares, of what it ran itself.
        left: `{cell name: why}` of the cells that the machine stopped, and that were
            not begun once more.
    """

    def __init__(self, everything, workdir, jobs, cell_seconds=None, shares=False):
        self.everything = everything
        self.workdir = workdir
        self.jobs = jobs
        self._shares = shares
        self._queue = collections.deque()
        self._next_look, self._has_looked = 0.0, False
        # Cells that somebody was at, and whether to watch more of them.
        self._watched, self._watches_on = set(), True
        self.states = {}
        if not shares:
            there = {*_listed(workdir), *_listed(workdir / attempts.HOME)}
            for cell in everything:
                is_there = not there.isdisjoint({cell.name, f"{cell.name}.failed.json"})
                state = status(cell, workdir) if is_there else OPEN
                self.states[cell.name] = state
                if state in (INTERRUPTED, OPEN):
                    self._queue.append(cell)
        self.left = {}
        self._cell_seconds = cell_seconds
        self._stopped = False
        self._attempts = collections.Counter()
        self._in_a_row = 0
        # Cells for later: when, and whether another sweep has them.
        self._later = {}
        # Of the cores that a scheduler, or taskset, leaves to this process.
        self._threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        self._workers = []

    @property
    def running(self):
        return [worker.cell for worker in self._workers if worker.cell is not None]

    @property
    def elsewhere(self):
        return [cell for cell, _, is_elsewhere in self._later.values() if is_elsewhere]

    @property
    def waiting(self):
        return list(self._queue)

    def advance(self):
        """One look at everything. Returns whether there is more to do."""
        for worker in list(self._workers):
            if worker.cell is not None:
                answer = worker.answer() or self._overdue(worker)
                if answer is not None:
                    self._take_down(worker.cell, answer)
                    worker.cell = None
                    # Nothing was built.
                    worker.done -= answer in ("busy", "over")
            if worker.cell is None and not worker.usable:
                worker.stop()
                self._workers.remove(worker)
        now = time.monotonic()
        for name, (cell, when, _) in list(self._later.items()):
            if now >= when:
                del self._later[name]
                self._queue.append(cell)
        is_idle = len(self.running) < self.jobs and not self._queue
        if self._shares and is_idle and not self._stopped and now >= self._next_look:
            self._look()
            self._next_look = now + _PAUSE
        while self._queue and len(self.running) < self.jobs:
            cell = self._queue.popleft()
            if not self._is_free(cell):
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
        return bool(self._queue or self._later or self.running)

    def wait(self, seconds):
        """Waits until a cell has ended, or so long."""
        pipes = [worker.pipe for worker in self._workers if worker.cell is not None]
        if pipes:
            multiprocessing.connection.wait(pipes, seconds)
        else:
            time.sleep(seconds)

    def _is_free(self, cell):
        """Whether a cell of the queue is still to be run, and nobody is at it."""
        if self._shares and cell.name not in self._watched:
            # The worker that makes the claim finds out.
            return True
        if not self._shares:
            self.states[cell.name] = status(cell, self.workdir)
            # Another sweep may have been faster.
            if self.states[cell.name] not in (INTERRUPTED, OPEN):
                return False
        held = attempts.held(self.workdir / cell.name)
        if held == attempts.FREE:
            self._watches_on = True
            return True
        if not (self._shares and held == attempts.ALIVE):
            self._later[cell.name] = (cell, time.monotonic() + 2, True)
        return False

    def _look(self):
        """Fills the queue with what the folder, listed once, shows to be left.

        A cell that is over is a folder, and none of `.attempts`. One that was begun is
        in `.attempts`: most have a holder, and a few of them, drawn anew by each copy,
        are watched for one that has died.
        """
        there, begun = {*_listed(self.workdir)}, _listed(self.workdir / attempts.HOME)
        if not (begun or self._has_looked):
            # What an earlier version left unfinished is to be seen by all.
            for cell in self.everything:
                folder = self.workdir / cell.name
                if cell.name in there and not run_folder.is_over(folder):
                    (self.workdir / attempts.HOME / cell.name).mkdir(
                        parents=True, exist_ok=True
                    )
            begun = _listed(self.workdir / attempts.HOME)
        begun, self._has_looked = {*begun}, True
        over = {name for name in there if name not in begun}
        over |= self.states.keys() | self.left.keys() | self._later.keys()
        over |= {cell.name for cell in self.running}
        cells = [
            cell
            for cell in self.everything
            if cell.name not in over and f"{cell.name}.failed.json" not in there
        ]
        fresh = [cell for cell in cells if cell.name not in begun]
        start = random.randrange(len(fresh)) if fresh else 0
        self._queue.extend(fresh[start:] + fresh[:start])
        if self._watches_on and not fresh:
            held = [
                cell
                for cell in cells
                if cell.name in begun and cell.name not in self._watched
            ]
            drawn = random.sample(held, min(_WATCHED, len(held)))
            self._watched |= {cell.name for cell in drawn}
            self._queue.extend(drawn)
            # More of them only where one of these had nobody.
            self._watches_on = False

    def _overdue(self, worker):
        """The mishap of a cell that takes too long, whose worker is ended."""
        if self._cell_seconds is None:
            return None
        if time.monotonic() - worker.since < self._cell_seconds:
            return None
        worker.end()
        worker.stop()
        return Mishap(
            f"It took longer than {self._cell_seconds / 60:g} minutes, the limit of a "
            "cell. Taken up again, it goes on after its last checkpoint."
        )

    def _take_down(self, cell, answer):
        is_mishap = isinstance(answer, Mishap)
        is_passing = is_mishap and answer.is_passing
        self._in_a_row = self._in_a_row + 1 if is_passing else 0
        if answer in ("busy", "over") and self._shares:
            # Here others have been: it goes on elsewhere, at once.
            self._queue.clear()
            self._next_look = 0.0
            return
        if answer == "busy":
            self._later[cell.name] = (cell, time.monotonic() + 2, True)
        elif is_passing:
            self._attempts[cell.name] += 1
            if self._attempts[cell.name] < _ATTEMPTS and not answer.is_full:
                pause = _PAUSE * 4 ** (self._attempts[cell.name] - 1)
                self._later[cell.name] = (cell, time.monotonic() + pause, False)
            else:
                self.left[cell.name] = answer.error
            if answer.is_full or self._in_a_row == _MOST_IN_A_ROW:
                self._leave_all(answer.error)
        elif is_mishap and status(cell, self.workdir) not in ENDED:
            try:
                fail(cell, self.workdir, answer.error, answer.traceback)
            except OSError as error:
                self.left[cell.name] = f"{answer.error} This is not recorded: {error}."
        if self._shares and answer == "done":
            # By this copy, just now: it need not be checked.
            path = self.workdir / cell.name / run_folder.SUMMARY
            self.states[cell.name] = run_folder.read_json(path, "Remove it.")["status"]
        else:
            self.states[cell.name] = status(cell, self.workdir)

    def _leave_all(self, reason):
        """Begins no cell any more: the machine would stop it as it did the last."""
        for cell in (*self._queue, *(cell for cell, _, _ in self._later.values())):
            self.left[cell.name] = reason
        self._queue.clear()
        self._later.clear()
        self._stopped = True

    def stop(self):
        """Ends all workers; those that train save first."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.stop()


def _listed(folder):
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _names():
    return {kind: registry.names(kind) for kind in registry.KINDS}


def _work(pipe, workdir, threads, modules, names):
    """The life of a worker process."""
    # Ctrl-C goes to all processes of a terminal; the sweep stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[variable] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # One each: what processes of several machines append to one file is lost or mixed.
    path = os.path.join(workdir, LOGS, f"{socket.gethostname()}-{os.getpid()}.log")
    # On a full disk it is done without.
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)

    import keras

    from keras_fa.lab.run import run

    for module in modules:
        # What cannot be imported here is missed by the cells that need it, and said.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    # The sweep asks again.
    attempts.patience = 0
    own = _names()
    missing = {n for kind, known in names.items() for n in known if n not in own[kind]}

    with contextlib.suppress(EOFError):
        while True:
            cell, found = pipe.recv()
            attempts.tell(found)
            try:
                answer = _run_cell(run, cell, workdir)
            except KeyboardInterrupt:
                # The sweep asked for it, and the run is saved.
                os._exit(_ASKED)
            except BaseException as error:
                answer = _mishap(error, missing)
                # At once: the cell is free for a sweep that waits for it. Where it
                # cannot be written, the parent tries again and says so.
                if not answer.is_passing:
                    with contextlib.suppress(OSError):
                        fail(cell, workdir, answer.error, answer.traceback)
            keras.backend.clear_session()
            pipe.send(answer)


def _mishap(error, missing):
    """What an exception of a cell was; `missing`: names that this process lacks."""
    text = f"{type(error).__name__}: {error}"
    for name in sorted(missing):
        if repr(name) in text:
            text += (
                f" The sweep's own process knows {name!r}, but from a program, a "
                "notebook or a configuration file, which its workers do not import. "
                "Put it into a module of its own beside the configuration and name it "
                f'"module:{name}", or import that module in the configuration.'
            )
    cause, said = error, ""
    while cause is not None:
        if isinstance(cause, OSError) or hasattr(cause, "error_code"):
            said += str(cause)
        cause = cause.__cause__ or cause.__context__
    return Mishap(
        text,
        traceback.format_exc(),
        is_passing=any(words in said for words in _PASSING),
        is_full=any(words in said for words in _FULL),
    )


def _run_cell(run, cell, workdir):
    # Between the sweep's look at a cell and its start here, another sweep may have
    # recorded a failure: that cell is over.
    folder = pathlib.Path(workdir) / cell.name
    if failed(cell, workdir) or run_folder.is_over(folder):
        return "over"
    try:
        run(cell.config, folder)
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
