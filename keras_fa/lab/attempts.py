"""Attempts at a run, each private to one process; the first to end is the run folder.

A run of the folder `runs/x` is computed in a folder of its own behind it,
`runs/.attempts/x/N/TOKEN`, and becomes `runs/x` by one rename, which fails where
another attempt was first. So never do two processes write to one folder, whatever
became of them: one that was stopped, taken for dead and goes on writes to its own.

- `mkdir` of N, which succeeds once, is the claim. The token is drawn: no name of a
  folder is ever used twice, though numbers are.
- The holder touches `N/holder` from time to time. Who finds it untouched for as long
  as the lease, on its own clock, makes N + 1, with links to the checkpoints that are
  there. On one machine the process table is asked instead, which knows at once. A
  wrong answer costs work and nothing else.
- A run that is interrupted goes back to `runs/x`, and the next attempt takes it from
  there by a rename, as it does a folder of an earlier version. An empty `.attempts/x`
  stays to say that it is not over.

What the file system must do: mkdir and rename that happen once, and hard links or
copies. Locks (flock) are not asked for: NFS and Lustre have them not always, and not
of all hosts.
"""

import contextlib
import errno
import functools
import json
import os
import pathlib
import secrets
import shutil
import socket
import threading
import time

HOME = ".attempts"
_HOLDER = "holder"
# Seconds between two signs of life, and until who gives none is taken for dead: several
# times what a file system may show late.
BEAT, LEASE = 15.0, 60.0
# Seconds that a claim waits to see whether a holder on another machine lives.
patience = LEASE + BEAT

FREE, ALIVE, UNKNOWN = "free", "alive", "unknown"


class HeldError(RuntimeError):
    """Another process is at the run; the message names it."""


@functools.cache
def machine():
    """What two processes have in common that see each other's ids."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def started(pid):
    """When a process of this machine began, in ticks; None if it is not there."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()
    # One that nobody has waited for has ended all the same.
    return None if state in "ZX" else fields[18]


# Of this process: tokens of its attempts, and what it has seen of those of others,
# `{path of N: (holder as it was, since when, whether it has changed)}`.
_own = set()
_seen = {}


class Attempt:
    """One attempt at a run, this process's.

    Attributes:
        path: Its private folder.
    """

    def __init__(self, target, number):
        self._target, self._claim = target, home_of(target) / str(number)
        self._number = number
        self._token = secrets.token_hex(4)
        self.path = self._claim / self._token
        self._over = threading.Event()
        _own.add(self._token)
        holder = {
            "machine": machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "token": self._token,
        }
        (self._claim / _HOLDER).write_text(json.dumps(holder))
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self):
        while not self._over.wait(BEAT):
            # It goes when another attempt has ended the run; a full disk, say, is no
            # reason to stop.
            with contextlib.suppress(OSError):
                os.utime(self._claim / _HOLDER)

    def take(self):
        """Takes what there is of the run into the private folder.

        Returns:
            Whether there was anything.

        Raises:
            OSError: If the file system refuses.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(self._target):
                os.rename(self._target, self.path)
                return True
        self.path.mkdir()
        if self._number == 1:
            return False
        before = [n for n in _numbers(home_of(self._target)) if n < self._number]
        for number in sorted(before, reverse=True):
            for folder in _contents(home_of(self._target) / str(number)):
                _inherit(folder, self.path)
                return True
        return False

    def publish(self, is_over):
        """Makes the private folder the run folder.

        Args:
            is_over: Function of a path, whether a run there is over.

        Returns:
            Whether it did; False if another attempt was first, whose folder it is.
        """
        done = self._put_back(is_over)
        self._end()
        self._clear()
        return done

    def release(self, is_over):
        """Gives the run back as it is, for the next attempt to go on with."""
        try:
            is_begun = bool(os.listdir(self.path))
        except FileNotFoundError:
            is_begun = False
        if not is_begun:
            self.drop()
        elif self._number < max(_numbers(home_of(self._target)), default=0):
            # The one after it may be taking over what is here.
            self._end()
        else:
            is_first = self._put_back(is_over)
            self._end()
            shutil.rmtree(self._claim, ignore_errors=True)
            if not is_first:
                self._clear()

    def drop(self):
        """Takes away what the attempt holds, and the attempt."""
        self._end()
        shutil.rmtree(self._claim, ignore_errors=True)
        for folder in (home_of(self._target), home_of(self._target).parent):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _clear(self):
        """Takes away what other attempts have left, once the run is over."""
        shutil.rmtree(home_of(self._target), ignore_errors=True)
        # Of a sweep's other cells there may be more.
        with contextlib.suppress(OSError):
            home_of(self._target).parent.rmdir()

    def _end(self):
        self._over.set()
        _own.discard(self._token)

    def _put_back(self, is_over):
        while True:
            try:
                os.rename(self.path, self._target)
                return True
            except OSError as error:
                if is_over(self._target):
                    return False
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with contextlib.suppress(FileNotFoundError):
                if not (self._target / "config.json").exists():
                    # Of somebody who has not waited for the run folder: a callback.
                    for name in os.listdir(self._target):
                        if not (self.path / name).exists():
                            os.rename(self._target / name, self.path / name)
                # What a process that was taken for dead gave back.
                os.rename(self._target, self._claim / secrets.token_hex(4))


def claim(target):
    """The right to a next attempt at a run.

    Args:
        target: The run folder, an absolute path.

    Returns:
        `Attempt`, which has nothing yet. The run may have ended in the meantime: look.

    Raises:
        HeldError: If another process is at it.
        OSError: If the folders cannot be made.
    """
    home, deadline = home_of(target), time.monotonic() + patience
    while True:
        newest = max(_numbers(home), default=0)
        if newest and (state := _state(home / str(newest))) != FREE:
            if state == UNKNOWN and time.monotonic() < deadline:
                time.sleep(min(1.0, BEAT / 3))
                continue
            raise HeldError(_words(home / str(newest)))
        with contextlib.suppress(FileExistsError):
            try:
                (home / str(newest + 1)).mkdir()
            except FileNotFoundError:
                home.mkdir(parents=True, exist_ok=True)
                # Somebody may take the empty folder away again.
                with contextlib.suppress(FileNotFoundError):
                    (home / str(newest + 1)).mkdir()
                    return Attempt(target, newest + 1)
                continue
            return Attempt(target, newest + 1)


def held(target):
    """Whether somebody is at a run, as far as this process knows.

    Args:
        target: The run folder, an absolute path.

    Returns:
        FREE, ALIVE, or UNKNOWN for a holder on another machine that has given no sign
        of life since this process first looked, nor been silent for the lease.
    """
    newest = max(_numbers(home_of(target)), default=0)
    return _state(home_of(target) / str(newest)) if newest else FREE


def seen(target):
    """What this process has seen of a run's holders, for `tell` in another one."""
    prefix = f"{home_of(target)}{os.sep}"
    return {path: found for path, found in _seen.items() if path.startswith(prefix)}


def tell(found):
    """Takes over what another process of this machine has seen."""
    _seen.update(found)


def place(target):
    """Where the files of a run are now: its folder, or that of its newest attempt.

    Args:
        target: The run folder.
    """
    target = pathlib.Path(target)
    if not (target / "config.json").exists():
        for number in sorted(_numbers(home_of(target)), reverse=True):
            for folder in _contents(home_of(target) / str(number)):
                return folder
    return target


def home_of(target):
    """Where the attempts at a run are, each in a folder of its number."""
    return target.parent / HOME / target.name


def _numbers(home):
    try:
        return [int(name) for name in os.listdir(home) if name.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _contents(claim):
    """The folders of runs that have begun in a claim."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(claim):
            if name != _HOLDER and (claim / name / "config.json").exists():
                yield claim / name


def _state(claim):
    """FREE, ALIVE or UNKNOWN."""
    try:
        text = (claim / _HOLDER).read_text()
        touched = (claim / _HOLDER).stat().st_mtime_ns
    except FileNotFoundError:
        # It ended just now, or died before it had said who it is.
        text, touched = "", 0
        if not claim.exists():
            return FREE
    with contextlib.suppress(ValueError):
        holder = json.loads(text)
        if holder["machine"] == machine():
            is_there = started(holder["pid"]) == holder["started"]
            if holder["pid"] == os.getpid():
                is_there = holder["token"] in _own
            return ALIVE if is_there else FREE
    now, key = time.monotonic(), str(claim)
    found, since, has_changed = _seen.get(key, (None, now, None))
    if found != (text, touched):
        since, has_changed = now, has_changed is not None
        _seen[key] = ((text, touched), since, has_changed)
    if now - since >= LEASE:
        return FREE
    return ALIVE if has_changed else UNKNOWN


def _words(claim):
    try:
        holder = json.loads((claim / _HOLDER).read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError):
        return "a process that has not said who it is"


def _inherit(folder, into):
    """Begins a private folder with what another attempt has come to.

    Its configuration comes last: what lacks it has not been taken over whole. It may be
    at work all the while.
    """
    for path in sorted((folder / "checkpoints").glob("epoch-*")):
        (into / "checkpoints").mkdir(exist_ok=True)
        # Of two that an older one takes away the index may be here alone: it counts for
        # nothing then, and there is a newer one.
        with contextlib.suppress(FileNotFoundError):
            _link(path, into / "checkpoints" / path.name)
    for name in ("metrics.jsonl", "config.json"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(folder / name, into / name)


def _link(path, into):
    """A link to a file that never changes; a copy where there are no links."""
    try:
        os.link(path, into)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.copyfile(path, into)
