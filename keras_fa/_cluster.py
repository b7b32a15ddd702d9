"""The workers of `TF_CONFIG`: their addresses, and how they find each other.

TensorFlow waits for missing workers within a call that says nothing and cannot be
interrupted. So they meet before it.
"""

import json
import logging
import os
import socket
import time

_LOG = logging.getLogger("keras_fa")

# Seconds between two lines about those who are missing, and before the first one: all
# start at a time, and not all are equally fast.
_EVERY, _AT_ONCE = 10, 1


class ClusterError(ValueError):
    """`TF_CONFIG` is missing or does not describe a cluster; the message says how."""


def read_cluster():
    """The cluster that `TF_CONFIG` describes, or else the tasks of an `srun`.

    Returns:
        `(workers, index)`: the addresses of all workers, the chief first, and which of
        them this process is.

    Raises:
        ClusterError: If it is not set, no JSON, or incomplete.
    """
    if "TF_CONFIG" not in os.environ and (tasks := slurm_tasks()):
        task = {"type": "worker", "index": int(os.environ["SLURM_PROCID"])}
        # For TensorFlow too, which reads it there.
        found = {"cluster": {"worker": tasks}, "task": task}
        os.environ["TF_CONFIG"] = json.dumps(found)
    text = os.environ.get("TF_CONFIG")
    example = (
        'For two workers on one machine, the first one\'s is {"cluster": {"worker": '
        '["localhost:12345", "localhost:23456"]}, "task": {"type": "worker", "index": '
        "0}}, the second one's the same with index 1."
    )
    if not text:
        raise ClusterError(
            "The strategy multi_worker needs the environment variable TF_CONFIG, which "
            f"is not set. {example} keras-fa launch sets it; under srun with several "
            "tasks none is needed."
        )
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ClusterError(f"TF_CONFIG is no JSON: {error}. {example}") from error
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise ClusterError(f'TF_CONFIG needs "cluster" and "task". {example}')
    others = sorted(cluster.keys() - {"chief", "worker"})
    if others:
        raise ClusterError(
            "MultiWorkerMirroredStrategy has chief and workers only. TF_CONFIG's "
            f"cluster also names: {', '.join(others)}."
        )
    for job, addresses in cluster.items():
        if not isinstance(addresses, list) or not addresses:
            raise ClusterError(
                f'TF_CONFIG\'s cluster["{job}"] must be a list of "host:port". '
                f"Received: {addresses!r}. {example}"
            )
        for address in addresses:
            host, _, port = str(address).rpartition(":")
            if not host or not port.isdigit():
                raise ClusterError(
                    f'TF_CONFIG\'s cluster["{job}"] must hold addresses "host:port". '
                    f"Received: {address!r}."
                )
    chief, workers = cluster.get("chief", []), cluster.get("worker", [])
    everyone = [*chief, *workers]
    if len(chief) > 1:
        raise ClusterError(
            f"TF_CONFIG names {len(chief)} chiefs; there is one at most."
        )
    if len(set(everyone)) < len(everyone):
        raise ClusterError(f"TF_CONFIG names an address twice: {everyone}.")
    job, index = task.get("type"), task.get("index")
    if job not in cluster:
        raise ClusterError(
            f'TF_CONFIG\'s task["type"] is {job!r}, which the cluster does not have: '
            f"{', '.join(cluster)}."
        )
    if isinstance(index, bool) or not isinstance(index, int):
        raise ClusterError(
            f'TF_CONFIG\'s task["index"] must be a number, not {index!r}.'
        )
    if not 0 <= index < len(cluster[job]):
        raise ClusterError(
            f'TF_CONFIG\'s task["index"] is {index}, but there are '
            f'{len(cluster[job])} of type "{job}", counted from 0.'
        )
    return everyone, index if job == "chief" or not chief else index + 1


def slurm_tasks():
    """The addresses of the tasks of the `srun` that this process is one of.

    Returns:
        List of "host:port", by rank; None outside of an srun of several tasks. The
        ports come from the job's number, so that two jobs on a node have others.

    Raises:
        ClusterError: If TensorFlow's resolver has the hosts in another order than
            SLURM has the ranks.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks < 2:
        return None
    import tensorflow as tf

    numbers = (os.environ.get(f"SLURM_{n}", "0") for n in ("JOB_ID", "STEP_ID"))
    job, step = (int(number) if number.isdigit() else 0 for number in numbers)
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=12000 + (64 * job + 16 * step) % 16000,
        # Not what is there, for which it would call nvidia-smi: SLURM shares GPUs out.
        gpus_per_node=tasks,
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    found = resolver.cluster_spec().as_dict()["worker"]
    rank, node = int(os.environ["SLURM_PROCID"]), os.environ.get("SLURMD_NODENAME")
    if node and found[rank].rpartition(":")[0] != node:
        raise ClusterError(
            f"Task {rank} of this srun runs on {node}, where TensorFlow's resolver has "
            f"{found[rank]}. Set TF_CONFIG by keras-fa launch --hosts=... instead."
        )
    return found


def meet(workers, index):
    """Waits until all workers are there; says who is waited for, and for how long.

    Each listens on the port that TensorFlow is about to take, and goes on once it has
    reached all others: what listens there then may be TensorFlow already.

    Args:
        workers: The addresses of all workers, "host:port".
        index: Which of them this process is.

    Raises:
        ClusterError: If the port of this one cannot be had.
    """
    begun = time.monotonic()
    say_at = begun + _AT_ONCE
    missing = {i: "" for i in range(len(workers)) if i != index}
    with _listening(workers, index):
        while missing:
            asked = {i: _why_not_there(workers[i]) for i in missing}
            missing = {i: why for i, why in asked.items() if why}
            now = time.monotonic()
            if missing and now >= say_at:
                say_at = now + _EVERY
                _LOG.warning(
                    "Worker %d of %d has waited %.0f s for worker %s. Start the same "
                    "command there, or end this one with Ctrl-C.",
                    index,
                    len(workers),
                    now - begun,
                    ", ".join(
                        f"{i} ({workers[i]}: {why})" for i, why in missing.items()
                    ),
                )
            if missing:
                time.sleep(0.2)


def _listening(workers, index):
    """A socket on the port of a worker, on all interfaces as TensorFlow's will be."""
    port = int(workers[index].rpartition(":")[2])
    try:
        return socket.create_server(("", port), backlog=len(workers))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(
            f"Worker {index} of {len(workers)} cannot listen on port {port} of this "
            f"machine: {reason}. TF_CONFIG expects it at {workers[index]}, with that "
            f"port free. `ss -tlnp sport = :{port}` shows what has it, perhaps a "
            "worker of an earlier command: stop that, or give another port to all."
        ) from error


def _why_not_there(address):
    """Why a worker cannot be reached; empty if it can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""
