"""Engines that start copies of a sweep, and the copies."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console
from test_sweeps import base, leave

from keras_fa import sweeps
from keras_fa.lab import attempts, executors, pool, run_folder, sweep

ROOT = pathlib.Path(__file__).parents[1]


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def program(folder, name, body):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def ssh(tmp_path, monkeypatch):
    """The example of the page, with an ssh that goes nowhere."""
    program(tmp_path, "ssh", 'shift; exec sh -c "$*"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = (ROOT / "docs" / "howto" / "cluster.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(block, "cluster.md", "exec"), names)
    return names["Ssh"]()


@pytest.mark.parametrize("kind", ["local", "ssh"])
def test_copies_are_started_told_and_stopped(tmp_path, monkeypatch, kind):
    engine = executors.Local() if kind == "local" else ssh(tmp_path, monkeypatch)
    job = engine.start(["sh", "-c", "echo begun; exec sleep 60"], 2, tmp_path)
    logs = [tmp_path / f"copy-{number}.log" for number in range(2)]
    until(lambda: [log.read_text() for log in logs] == ["begun\n"] * 2)
    assert engine.state(job) == {"running": 2}
    engine.stop(job)
    until(lambda: engine.state(job) == {})
    engine.stop(job)


def test_local_copies_of_another_machine_are_not_told(tmp_path, monkeypatch):
    engine = executors.Local()
    job = engine.start(["true"], 1, tmp_path)
    until(lambda: engine.state(job) == {})
    monkeypatch.setattr(attempts, "machine", lambda: "another")
    with pytest.raises(executors.EngineError, match="processes of another machine"):
        executors.Local().state(job)


def test_slurm_by_its_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(
        tmp_path, "sbatch", f'echo "$@" > {tmp_path}/asked; cat > {tmp_path}/script'
    )
    engine = executors.get("slurm", "--time=4:00:00 --comment='two words'")
    with open(tmp_path / "sbatch", "a") as file:
        file.write("echo '17;cluster'\n")
    assert engine.start(["run", "a b"], 20, tmp_path / "logs") == "17"
    asked = (tmp_path / "asked").read_text()
    assert "--array=0-19" in asked and "--comment=two words" in asked
    assert f"--output={tmp_path}/logs/%A_%a.log" in asked
    script = (tmp_path / "script").read_text()
    assert "\nrun 'a b' &\n" in script and "--signal=B:USR1@120" in script
    assert 'requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in script

    lines = "RUNNING None\\nRUNNING None\\nPENDING Resources"
    program(tmp_path, "squeue", f"printf '{lines}\\n'")
    assert engine.state("17") == {"running": 2, "pending (Resources)": 1}
    program(tmp_path, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(executors.EngineError, match="Unable to contact"):
        engine.state("17")
    program(tmp_path, "squeue", "echo 'Invalid job id specified' >&2; exit 1")
    assert engine.state("17") == {}
    program(tmp_path, "sbatch", "echo 'sbatch: error: too many' >&2; exit 1")
    with pytest.raises(ValueError, match="SLURM refuses the job: sbatch: error: too"):
        engine.start(["run"], 1, tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="There is no sbatch here"):
        engine.start(["run"], 1, tmp_path)


def test_engines_by_name():
    assert isinstance(executors.get("local"), executors.Local)
    with pytest.raises(ValueError, match=r'Did you mean "slurm"\?'):
        executors.get("slrm")
    with pytest.raises(ValueError, match="'nowhere:Ray' cannot be made"):
        executors.get("nowhere:Ray")


class _Engine:
    """Runs nothing; says what it is told to, and then lets the cells be over."""

    def __init__(self, cells, workdir, answers):
        self.cells, self.workdir, self.answers = cells, workdir, answers
        self.started = 0

    def start(self, command, copies, logs):
        assert logs.is_dir() and command == ["x"] and copies == 3
        self.started += 1
        return "17"

    def state(self, job):
        assert job == "17"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if not self.answers and self.cells:
            leave(self.cells.pop(), self.workdir, {"status": "finished", "seconds": 1})
        return answer


def test_a_sweep_is_watched_until_no_copy_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_LOOK", 0.0)
    monkeypatch.setattr(sweep, "_ASK", 0.0)
    cells = sweeps.cells(base(), [{"seed": [0, 1]}])
    away = executors.EngineError("squeue does not answer.")
    answers = [{"running": 3}, away, {"pending (Priority)": 3}, {}]
    engine = _Engine(cells[:1], tmp_path, answers)
    with open(tmp_path / "output", "w+") as file:

        def attend():
            console = Console(file=file, width=200)
            return sweeps.attend(
                cells, tmp_path / "runs", ("mine:E", engine), ["x"], 3, 9.0, console
            )

        engine.workdir = tmp_path / "runs"
        # A scheduler that does not answer does not mean that no copy is left.
        assert attend() == {"seed=0": sweeps.FINISHED, "seed=1": sweeps.OPEN}
        # Again: the first look finds copies, so that none are started.
        engine.cells, engine.answers = cells[1:], [{"running": 1}, {}]
        assert attend()["seed=1"] == sweeps.FINISHED
        assert engine.started == 1
        # And where nothing is left, neither.
        engine.answers = []
        assert set(attend().values()) == {sweeps.FINISHED}
        file.seek(0)
        output = file.read()
    for text in (
        "3 copies started as job 17",
        "copies: 3 running",
        "squeue does not answer. Its copies may go on",
        "copies: 3 pending (Priority)",
        "job 17 is at work here already",
        "finished: seed=1",
    ):
        assert text in output
    with pytest.raises(ValueError, match="copies of --executor=mine:E"):
        sweep._job_at_work(tmp_path / "runs", "local", executors.Local())


# A copy: `sweeps.work`, with workers that need no process.


class _Worker:
    def __init__(self, workdir, threads):
        self.workdir, self.cell, self.done, self.usable = workdir, None, 0, True

    def give(self, cell):
        self.cell, self.done = cell, self.done + 1

    def answer(self):
        folder = self.workdir / self.cell.name
        if run_folder.is_over(folder):
            return "over"
        leave(self.cell, self.workdir, {"status": "finished", "seconds": 1.0})
        return "done"

    def end(self):
        pass

    stop = end


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_Worker", _Worker)
    monkeypatch.setattr(pool.Pool, "wait", lambda self, seconds: None)
    monkeypatch.setattr(pool, "_PAUSE", 0.0)
    return lambda cells: sweeps.work(cells, tmp_path, console=Console(quiet=True))[0]


def test_a_copy_runs_what_nobody_has_and_waits_for_nobody(tmp_path, work):
    cells = sweeps.cells(base(), [{"seed": list(range(12))}])
    over, old, held, dead, given_up = cells[:5]
    # Ended, and begun by an earlier version, which had no mark for it.
    leave(over, tmp_path, {"status": "finished"})
    leave(old, tmp_path)
    (tmp_path / attempts.HOME / old.name).rmdir()
    (tmp_path / attempts.HOME).rmdir()
    before = work([over, old])
    assert before == {old.name: sweeps.FINISHED}
    leave(given_up, tmp_path)
    mine = attempts.claim(tmp_path / held.name)
    sweeps_of_another = attempts.claim(tmp_path / dead.name)
    attempts._own.discard(sweeps_of_another._token)
    ran = work(cells)
    assert {*ran.values()} == {sweeps.FINISHED}
    assert {*ran} == {c.name for c in cells} - {over.name, old.name, held.name}
    mine.drop()
    assert work(cells) == {held.name: sweeps.FINISHED}


def test_copies_that_meet_go_elsewhere(tmp_path, work, monkeypatch):
    cells = sweeps.cells(base(), [{"seed": list(range(12))}])
    monkeypatch.setattr(pool.random, "randrange", lambda size: 0)
    # Between its listing and its claims, others have run these.
    original, met = _Worker.give, []

    def give(self, cell):
        if not met:
            for other in cells[:6]:
                leave(other, tmp_path, {"status": "finished"})
        met.append(cell.name)
        original(self, cell)

    monkeypatch.setattr(_Worker, "give", give)
    assert {*work(cells)} == {cell.name for cell in cells[6:]}
    # One of them was met, and then the folder was looked at again.
    assert met == [cells[0].name, *(cell.name for cell in cells[6:])]


@pytest.mark.slow
@pytest.mark.long
def test_two_copies_as_processes(tmp_path):
    from test_sweeps import write_grid

    grid = write_grid(tmp_path / "configs", [{"seed": [0, 1, 2, 3]}], 3)
    command = [
        *(sys.executable, "trainers/sweep.py", f"--grid={grid}"),
        *(f"--workdir={tmp_path / 'runs'}", "--copies=2"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 copies started as job" in done.stdout and "4 finished" in done.stdout
    # The sweep is over with its cells, the copies a moment later.
    told, deadline = "", time.monotonic() + 60
    while told != "4 finished\ncopies: none\n" and time.monotonic() < deadline:
        told = subprocess.run(
            [*command, "--status"], cwd=ROOT, capture_output=True, text=True, timeout=60
        ).stdout
    assert told == "4 finished\ncopies: none\n"
