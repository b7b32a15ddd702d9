r"""Starts a command as several workers on this machine, to try training on several out.

Example:
    keras-fa launch --workers=2 -- keras-fa train --strategy=multi_worker \
        --config=digits --workdir=runs/two_workers

Each worker gets a TF_CONFIG of its own. With --hosts it starts the one worker of this
machine instead; the same command goes to all machines, by hand or with srun:

    keras-fa launch --hosts=node1:12345,node2:12345 --index=0 -- keras-fa train ...

The ports listen on all interfaces, for everybody: use them in a network that you trust.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import _binary
from absl import app, flags

_WORKERS = flags.DEFINE_integer(
    "workers", 2, "How many processes to start.", lower_bound=1
)
_GRACE = flags.DEFINE_float(
    "grace", 60.0, "Seconds that the other workers have to stop when one has failed."
)
_HOSTS = flags.DEFINE_list(
    "hosts",
    None,
    "host:port of every worker, the chief first, the same on all machines. A host "
    "without a port gets 12345.",
)
_INDEX = flags.DEFINE_integer(
    "index",
    None,
    "Which of --hosts this machine is, from 0; without it SLURM_PROCID (set by srun).",
    lower_bound=0,
)


@_binary.program("The same command goes on with what was saved.", command=True)
def main(command):
    """Starts the workers, shows what they say, and ends when all have ended."""
    if not command:
        raise app.UsageError("Say what to start after --: see the example.")
    if shutil.which(command[0]) is None:
        raise ValueError(f"There is no command {command[0]!r} to start.")
    if _HOSTS.value:
        hosts = [h if ":" in h else f"{h}:12345" for h in _HOSTS.value]
        environment = _environment(hosts, _index(len(hosts)))
        os.execvpe(command[0], command, environment)
    if _INDEX.value is not None:
        raise app.UsageError("--index says which of --hosts this is; give both.")
    addresses = [f"localhost:{port}" for port in _free_ports(_WORKERS.value)]
    workers = [_start(command, addresses, index) for index in range(_WORKERS.value)]
    try:
        sys.exit(_wait(workers))
    except KeyboardInterrupt as stop:
        # A terminal sends Ctrl-C to the workers too, SIGTERM comes to this one alone.
        for worker in workers:
            if stop.args:
                worker.terminate()
            worker.wait()
        raise
    finally:
        for worker in workers:
            worker.kill()


def _index(count):
    index = _INDEX.value
    if index is None:
        index = os.environ.get("SLURM_PROCID")
        if index is None:
            raise app.UsageError("Give --index with --hosts, or start it with srun.")
        index = int(index)
    if index >= count:
        raise app.UsageError(f"Worker {index} of {count} --hosts: there is none.")
    return index


def _environment(addresses, index):
    task = {"type": "worker", "index": index}
    config = {"cluster": {"worker": addresses}, "task": task}
    return {**os.environ, "TF_CONFIG": json.dumps(config)}


def _free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _start(command, addresses, index):
    worker = subprocess.Popen(
        command,
        env=_environment(addresses, index),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    threading.Thread(target=_show, args=(worker, index), daemon=True).start()
    return worker


def _show(worker, index):
    for line in worker.stdout:
        print(f"[{index}] {line}", end="", flush=True)


def _wait(workers):
    """The exit code of the first worker that failed, or 0."""
    deadline = None
    while any(worker.poll() is None for worker in workers):
        failed = [w for w in workers if w.poll() not in (None, 0)]
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE.value
        if deadline is not None and time.monotonic() > deadline:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 5
        time.sleep(0.1)
    time.sleep(0.2)  # for the last lines
    codes = [worker.returncode for worker in workers]
    return next((abs(code) for code in codes if code), 0)


if __name__ == "__main__":
    main()
