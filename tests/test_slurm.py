"""Sweeps on a real SLURM of four logical nodes, begun and ended by the tests."""

import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from keras_fa.lab import attempts, run_folder

ROOT = pathlib.Path(__file__).parents[1]
SWEEP = [sys.executable, "trainers/sweep.py"]
_MISSING = [n for n in ("slurmctld", "slurmd", "munged") if shutil.which(n) is None]
# Seconds until what hangs is given up.
_PATIENCE = 900

pytestmark = [
    pytest.mark.long,
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(_MISSING) or os.geteuid() != 0,
        reason="needs root and SLURM: apt-get install -y --no-install-recommends "
        f"slurm-wlm munge (missing: {', '.join(_MISSING) or 'root'})",
    ),
]

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=20
KillWait=20
MpiDefault=none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1 \
RealMemory=4000
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={several} CPUs=3 \
RealMemory=4000
PartitionName=main Nodes=n[1-4] Default=YES PriorityTier=1 MaxTime=60
PartitionName=urgent Nodes=n[1-4] PriorityTier=10 MaxTime=60
PartitionName=several Nodes=localhost MaxTime=60
"""


class _Cluster:
    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        # A core each.
        for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
            self.env[name] = "1"
        self.nodes = {}

    def begin(self, *command):
        return subprocess.Popen(
            command,
            env=self.env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, *command):
        done = subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def running(self):
        """`{job id: (its node, its array task)}` of what runs now."""
        listing = self.ask("squeue", "-h", "-t", "R", "-o", "%A %N %F_%K")
        return {j: (n, t) for j, n, t in (x.split() for x in listing.splitlines())}

    def processes(self, **variables):
        """Ids of processes that SLURM started, by variables that it gives them."""
        wanted = [f"SLURM_CONF={self.env['SLURM_CONF']}"]
        wanted += [f"{name}={value}" for name, value in variables.items()]
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            try:
                given = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(word.startswith("SLURM_JOB_ID=") for word in given) and all(
                word in given for word in wanted
            ):
                found.append(int(path.parent.name))
        return found

    def kill_node(self, job):
        """Kills a node as a power cut would: slurmd, stepd and all of a job."""
        node, _ = self.running()[job]
        self.nodes[node].kill()
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if words.startswith(f"slurmstepd: [{job}."):
                os.kill(int(path.parent.name), signal.SIGKILL)
        for pid in self.processes(SLURM_JOB_ID=job):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def wait_until(condition, message, seconds=_PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    found = _Cluster(folder)
    host = socket.gethostname()
    # Of its own: what an earlier one has left may still report to its ports.
    port = 20000 + 10 * (os.getpid() % 1000)
    (folder / "slurm.conf").write_text(
        _CONF.format(
            host=host,
            folder=folder,
            port=port,
            first=port + 1,
            last=port + 4,
            several=port + 5,
        )
    )
    munge, started = None, []
    if not pathlib.Path("/run/munge/munge.socket.2").exists():
        pathlib.Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        munge = found.begin("runuser", "-u", "munge", "--", "munged", "--foreground")
        started.append(munge)
        socket_file = pathlib.Path("/run/munge/munge.socket.2")
        wait_until(socket_file.exists, "munged does not start", 20)
    try:
        started.append(found.begin("slurmctld", "-D"))
        for name in ("n1", "n2", "n3", "n4", "localhost"):
            found.nodes[name] = found.begin("slurmd", "-D", "-N", name)
            started.append(found.nodes[name])
        wait_until(
            lambda: (
                subprocess.run(
                    ["sinfo", "-h", "-N", "-o", "%t"],
                    env=found.env,
                    capture_output=True,
                    text=True,
                ).stdout.split()
                # Each node in each of its partitions.
                == ["idle"] * 9
            ),
            "the nodes do not come up",
            60,
        )
        yield found
    finally:
        if len(started) > 1:
            subprocess.run(["scancel", "-u", "root", "-f"], env=found.env)
            wait_until(lambda: not found.processes(), "jobs do not end", 60)
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.communicate(timeout=60)


def write_grid(folder, epochs, seeds):
    (folder / "grids").mkdir(parents=True)
    (folder / "base.py").write_text(
        "from keras_fa.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.dataset.train_size = 200\n"
        "    config.model.hidden_units = (8,)\n"
        "    config.batch_size = 50\n"
        f"    config.epochs = {epochs}\n"
        "    config.optimizer.learning_rate = 0.02\n"
        "    config.checkpoint_every_seconds = 2.0\n"
        "    return config\n"
    )
    path = folder / "grids" / "grid.py"
    axes = [{"seed": list(range(seeds))}, {"rule": ["fa", "sign_fa"]}]
    grid = {"config": "base.py", "axes": axes, "seconds_per_cell": 5}
    path.write_text(f"def get_grid():\n    return {grid!r}\n")
    return path


def table(workdir):
    """All that a sweep comes to, but for its clocks."""
    return {
        path.name: [
            {key: value for key, value in line.items() if key != "seconds"}
            for line in run_folder.read_metrics(path)
        ]
        for path in run_folder.finished_runs(workdir)
    }


def cells_over(workdir):
    return len([*workdir.glob("*/summary.json")])


def test_impossible_requests_are_refused_with_slurms_words(cluster, tmp_path):
    grid = write_grid(tmp_path / "configs", 2, 1)
    command = [*SWEEP, f"--grid={grid}", f"--workdir={tmp_path / 'runs'}"]
    process = cluster.begin(*command, "--executor=slurm", "--slurm=--partition=none")
    output, _ = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 1
    assert "SLURM refuses the job: sbatch: error: invalid partition" in output


def test_a_sweep_on_a_cluster_on_which_all_goes_wrong(cluster, tmp_path):
    """Scancel, a dead node, the end of the time, a preemption: each cell once."""
    grid = write_grid(tmp_path / "configs", 80, 12)
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    command = [*SWEEP, f"--grid={grid}", f"--workdir={shared}", "--executor=slurm"]
    options = "--slurm=--time=4 --signal=B:USR1@60"
    drawn = random.Random(0)
    sweep = cluster.begin(*command, "--copies=4", options)
    try:
        wait_until(lambda: cells_over(shared) >= 1, "no cell ends")
        # Somebody else, at the same time: it attaches. Ctrl-C leaves the jobs alone.
        second = cluster.begin(*command, "--copies=4", options)
        for line in second.stdout:
            if "is at work here already, and is watched" in line:
                break
        second.send_signal(signal.SIGINT)
        output, _ = second.communicate(timeout=60)
        assert second.returncode == 130
        assert "The copies go on." in output
        assert cluster.running()

        # scancel.
        job, (_, task) = drawn.choice(sorted(cluster.running().items()))
        assert cluster.processes(SLURM_JOB_ID=job)
        cluster.ask("scancel", task)
        wait_until(
            lambda: not cluster.processes(SLURM_JOB_ID=job), "scancel leaves some", 30
        )
        # A node dies: slurmd, stepd and job.
        wait_until(cluster.running, "nothing runs")
        job = drawn.choice(sorted(cluster.running()))
        cluster.kill_node(job)
        # A preemption: more urgent jobs than there are free nodes.
        over = cells_over(shared)
        wait_until(lambda: cells_over(shared) > over, "no cell ends any more")
        cluster.ask(
            *("sbatch", "-p", "urgent", "--array=0-2", "-o", "/dev/null"),
            *("--wrap", "sleep 3"),
        )
        output, _ = sweep.communicate(timeout=_PATIENCE)
    finally:
        sweep.kill()
        sweep.wait()
    assert sweep.returncode == 0, output
    assert "24 finished" in output

    # Nothing is left running, and nothing lies about.
    wait_until(lambda: not cluster.processes(), "processes are left", 60)
    assert cluster.ask("squeue", "-h", "-t", "R") == ""
    names = {path.name for path in shared.iterdir()}
    assert names - {"job.json", "logs"} == {
        f"seed={seed},rule={rule}" for seed in range(12) for rule in ("fa", "sign_fa")
    }
    assert not (shared / attempts.HOME).exists()
    # Each was ended once.
    logs = "".join(p.read_text() for p in (shared / "logs").glob("[0-9]*_[0-9].log"))
    ended = re.findall(r"^finished: (.*)$", logs, re.MULTILINE)
    assert len(ended) == len({*ended})
    # What was to go wrong went wrong: copies were begun again, two or three of them by
    # the preemption and on a slow machine more, whose time is over before the sweep is.
    [job] = re.findall(r"copies started as job (\d+)", output)
    shown = cluster.ask("scontrol", "show", "job", job)
    restarts = [int(n) for n in re.findall(r"Restarts=(\d+)", shown)]
    assert sum(restarts) >= 1, shown

    undisturbed = cluster.begin(*SWEEP, f"--grid={grid}", f"--workdir={whole}")
    output, _ = undisturbed.communicate(timeout=_PATIENCE)
    assert undisturbed.returncode == 0, output
    assert table(shared) == table(whole)
    assert len(table(whole)) == 24


def _srun(cluster, tasks, *command):
    process = cluster.begin(
        *("srun", "--partition=several", f"--ntasks={tasks}", "--kill-on-bad-exit=1"),
        *(sys.executable, *command),
    )
    output, _ = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 0, output
    print(output)
    return output


def test_two_workers_as_one_line_of_srun(cluster, tmp_path):
    output = _srun(
        *(cluster, 2, "trainers/train.py", "--strategy=multi_worker"),
        *("--config=digits", "--config.epochs=3", f"--workdir={tmp_path / 'two'}"),
        "--nofigures",
    )
    assert output.count("mean") == 1, "the chief alone shows its table"
    summary = run_folder.read_summary(tmp_path / "two")
    assert (summary["status"], summary["strategy"]) == ("finished", "multi_worker")
    assert [line["epoch"] for line in run_folder.read_metrics(tmp_path / "two")] == [
        *range(4)
    ]


def test_a_search_as_one_line_of_srun(cluster, tmp_path):
    (tmp_path / "base.py").write_text(
        (write_grid(tmp_path / "x", 3, 1).parents[1] / "base.py").read_text()
    )
    space = {
        "config": "base.py",
        "space": {"optimizer.learning_rate": {"min": 0.01, "max": 0.1, "log": True}},
        "objective": "val_accuracy",
    }
    (tmp_path / "space.py").write_text(f"def get_space():\n    return {space!r}\n")
    output = _srun(
        *(cluster, 3, "trainers/tune.py", f"--space={tmp_path / 'space.py'}"),
        *(f"--workdir={tmp_path / 'search'}", "--trials=4", "--noconfirm"),
    )
    assert "This process hands out the trials; workers run them." in output
    assert output.count("No trial is left for this worker; the chief reports.") == 2
    trials = run_folder.finished_runs(tmp_path / "search" / "trials")
    assert len(trials) == 4
