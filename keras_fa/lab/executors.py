"""Engines that start the copies of a sweep: processes of this machine, or SLURM.

An engine has three methods, and starts a command that it need not understand: what is
done and what is not is in the sweep's folder alone, so that copies may come and go.
`docs/howto/cluster.md` has one for another engine in twenty lines.
"""

import collections
import importlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from typing import Protocol

from keras_fa import registry
from keras_fa.lab import attempts, run_folder

NAMES = ("local", "slurm")
# What a sweep's folder says of the copies at work in it.
_JOB = "job.json"


class EngineError(RuntimeError):
    """An engine that does not answer now; its copies may well be at work."""


class Executor(Protocol):
    """What starts copies of a command, on machines that share the sweep's folder."""

    def start(self, command, copies, logs):
        """Starts copies of a command.

        Args:
            command: List of words. All copies are given the same.
            copies: How many.
            logs: Folder for what they print, a `pathlib.Path` that is there.

        Returns:
            The job, a text by which this engine knows the copies, in another process
            too.

        Raises:
            ValueError: If the engine refuses; the message has its words.
        """

    def state(self, job):
        """How the copies are.

        Args:
            job: What `start` returned.

        Returns:
            `{state: number of copies}` of those that are not over, the state in the
            engine's words, with the reason where one waits. Empty if all are over.

        Raises:
            EngineError: If the engine cannot say it now.
        """

    def stop(self, job):
        """Asks the copies to save and end, by SIGTERM, without waiting for them."""


class Local:
    """Processes of this machine."""

    def __init__(self):
        self._children = []

    def start(self, command, copies, logs):
        begun = []
        for number in range(copies):
            with open(logs / f"copy-{number}.log", "ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C is for who watches them.
                    start_new_session=True,
                )
            begun.append([process.pid, attempts.started(process.pid)])
            self._children.append(process)
        return json.dumps({"machine": attempts.machine(), "processes": begun})

    def state(self, job):
        living = self._living(job)
        return {"running": len(living)} if living else {}

    def stop(self, job):
        for pid in self._living(job):
            os.kill(pid, signal.SIGTERM)

    def _living(self, job):
        for child in self._children:
            child.poll()
        job = json.loads(job)
        if job["machine"] != attempts.machine():
            raise EngineError(
                "The copies are processes of another machine, or of this one before "
                "it was started again."
            )
        return [
            pid
            for pid, began in job["processes"]
            if began and attempts.started(pid) == began
        ]


# Before its time is over a copy is put back into the queue, with two minutes to save.
# What the user gives to sbatch comes before these lines.
_SCRIPT = """#!/bin/bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
trap 'scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"' USR1
trap 'kill -TERM $child' TERM
{command} &
child=$!
while wait $child; code=$?; kill -0 $child 2>/dev/null; do :; done
exit $code
"""


class Slurm:
    """An array of jobs of SLURM, by `sbatch`, `squeue` and `scancel`.

    Args:
        options: What `sbatch` is given besides, such as "--time=4:00:00 --gpus=1".
    """

    def __init__(self, options=""):
        self._options = shlex.split(options)

    def start(self, command, copies, logs):
        done = self._ask(
            "sbatch",
            "--parsable",
            f"--array=0-{copies - 1}",
            "--job-name=keras-fa",
            f"--output={logs}/%A_%a.log",
            *self._options,
            text=_SCRIPT.format(command=shlex.join(command)),
        )
        if done.returncode:
            raise ValueError(f"SLURM refuses the job: {done.stderr.strip()}")
        # With a cluster's name behind it where there are several.
        return done.stdout.strip().partition(";")[0]

    def state(self, job):
        done = self._ask("squeue", "--noheader", "--array", f"--jobs={job}", "-o%T %r")
        if done.returncode:
            # Of what was over some minutes ago it knows nothing any more.
            if "Invalid job id" in done.stderr:
                return {}
            raise EngineError(f"squeue does not answer: {done.stderr.strip()}")
        found = collections.Counter()
        for line in done.stdout.splitlines():
            state, _, reason = line.partition(" ")
            waits = state == "PENDING"
            found[f"{state.lower()} ({reason})" if waits else state.lower()] += 1
        return dict(found)

    def stop(self, job):
        done = self._ask("scancel", job)
        if done.returncode:
            raise EngineError(f"scancel does not answer: {done.stderr.strip()}")

    @staticmethod
    def _ask(*command, text=None):
        try:
            return subprocess.run(command, input=text, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"There is no {command[0]} here: --executor=slurm is for the login "
                "node of a cluster with SLURM."
            ) from error


def get(name, slurm=""):
    """The engine that a name stands for.

    Args:
        name: "local", "slurm", or "module:Class" for one of the user's own, which is
            made without arguments.
        slurm: What `sbatch` is given besides.

    Raises:
        ValueError: If there is none of that name.
    """
    if name == "local":
        return Local()
    if name == "slurm":
        return Slurm(slurm)
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"Unknown executor: {name!r}.{registry.did_you_mean(name, NAMES)} Known: "
            f'{", ".join(NAMES)}; "module:Class" names one of your own.'
        )
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The executor {name!r} cannot be made: {error}.") from error


def worker_command(program, arguments):
    """The command of one copy.

    Args:
        program: The program's file.
        arguments: Its flags.
    """
    return [sys.executable, str(pathlib.Path(program).resolve()), *arguments]


def write_job(workdir, executor, job):
    """Notes in a sweep's folder which copies are at work in it."""
    found = {"executor": executor, "job": job}
    run_folder.write_text(workdir / _JOB, run_folder.to_json(found, indent=2) + "\n")


def read_job(workdir):
    """The `(executor, job)` that a sweep's folder names, or None."""
    path = workdir / _JOB
    if not path.exists():
        return None
    found = run_folder.read_json(path, "Remove it: the sweep is started anew.")
    return found["executor"], found["job"]
