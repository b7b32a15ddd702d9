"""Sweeps: the cells of a grid, and that each is run once, whatever is killed."""

import errno
import io
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf
from rich.console import Console

from keras_fa import sweeps
from keras_fa.config import default_config, named, set_value
from keras_fa.lab import attempts, grid, pool, run_folder

ROOT = pathlib.Path(__file__).parents[1]
SWEEP = [sys.executable, "trainers/sweep.py"]
EPOCHS = 40
# Seconds until what hangs is given up. Far more than anything takes.
_PATIENCE = 300


def base(**changes):
    config = default_config()
    config.dataset.train_size = 200
    config.model.hidden_units = (8,)
    config.batch_size = 50
    config.epochs = EPOCHS
    config.optimizer.learning_rate = 0.02
    config.update(changes)
    return config


def write_grid(folder, axes, epochs=EPOCHS):
    """A grid file and its config, laid out as in configs; the path of the first."""
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
        "    return config\n"
    )
    path = folder / "grids" / "grid.py"
    grid = {"config": "base.py", "axes": axes, "seconds_per_cell": 90}
    path.write_text(f"def get_grid():\n    return {grid!r}\n")
    return path


def leave(cell, workdir, summary=None):
    """A run folder with a line and a checkpoint, as a run would leave it."""
    with run_folder.RunFolder(workdir / cell.name, cell.config.to_dict()) as run:
        run.begin(-1)
        run.log({"epoch": 0, "loss": 1.0})
        (run.path / "checkpoints").mkdir(exist_ok=True)
        (run.path / "checkpoints" / "epoch-1.index").write_text("")
        if summary is not None:
            run.finish(summary)


def lines(path):
    """The log of a run but for its clock."""
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in run_folder.read_metrics(path)
    ]


def wait_until(condition, seconds, message):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.02)


def names(axes, config=None):
    return [cell.name for cell in sweeps.cells(config or base(), axes)]


# The grid.


def test_cells_are_the_product_of_the_axes():
    config = base()
    axes = [
        {"seed": [3, 5]},
        {"rule": ["fa", "sign_fa"]},
        {"model.hidden_units": [(8,), (4, 2)], "optimizer.learning_rate": [0.1, 0.2]},
    ]
    found = sweeps.cells(config, axes)
    assert [cell.name for cell in found] == [
        f"seed={seed},rule={rule},hidden_units={units}"
        for seed in (3, 5)
        for rule in ("fa", "sign_fa")
        for units in ("8", "4x2")
    ]
    cell = found[-1]
    assert cell.settings == {
        "seed": 5,
        "rule": "sign_fa",
        "model.hidden_units": (4, 2),
        "optimizer.learning_rate": 0.2,
    }
    assert (cell.config.seed, cell.config.rule) == (5, "sign_fa")
    assert cell.config.model.hidden_units == (4, 2)
    assert [c.config.optimizer.learning_rate for c in found] == [0.1, 0.2] * 4
    # Neither the config that the cells change nor what the grid leaves alone.
    assert config == base()
    assert all(c.config.batch_size == 50 for c in found)


def test_names_tell_fields_of_the_same_name_apart_and_suit_a_file_system():
    axes = [{"model.name": ["mlp", "a/../b c"]}, {"dataset.name": ["digits"]}]
    assert names(axes) == [
        "model.name=mlp,dataset.name=digits",
        "model.name=a_.._b_c,dataset.name=digits",
    ]
    axes = [{"batch_size": [None, 7]}, {"model.x": [()]}]
    assert names(axes) == ["batch_size=none,x=none", "batch_size=7,x=none"]


def test_sections_are_named_by_what_tells_them_apart():
    scaled = {"name": "sign_fa", "scale": 0.1}
    assert names([{"rule": ["fa", scaled]}]) == ["rule=fa", "rule=sign_fa"]
    assert names([{"rule": ["sign_fa", scaled]}]) == [
        "rule=sign_fa",
        "rule=sign_fa(scale=0.1)",
    ]


def test_fields_that_vary_together_are_named_as_far_as_needed():
    axis = {"rule": ["fa", "fa", "dfa"], "model.frozen": [None, "body", None]}
    cells = [f"rule={r},frozen={f}" for r, f in zip(*axis.values(), strict=True)]
    assert names([{**axis, "epochs": [1, 2, 3]}]) == [
        cell.replace("None", "none") for cell in cells
    ]
    (narrowed,) = sweeps.narrow([axis], "rule", ["fa"])
    assert narrowed == {"rule": ["fa", "fa"], "model.frozen": [None, "body"]}
    # A narrowed sweep finds the folders of the whole one.
    narrowed = sweeps.narrow([axis], "model.frozen", [None])
    found = sweeps.cells(base(), narrowed, named_by=[axis])
    assert [c.name for c in found] == ["rule=fa,frozen=none", "rule=dfa,frozen=none"]


def test_a_rule_keeps_the_arguments_that_its_section_has():
    config = base()
    drawn = {"name": "fa", "initializer": "ones"}
    set_value(config, "rule", drawn)
    cells = sweeps.cells(config, [{"rule": ["fa", "sign_fa"]}])
    assert [cell.name for cell in cells] == ["rule=fa", "rule=sign_fa"]
    assert named(cells[0].config.rule) == ("fa", {"initializer": "ones"})
    assert named(cells[1].config.rule) == ("sign_fa", {})
    assert named(config.rule) == ("fa", {"initializer": "ones"})


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        ([], "at least one axis"),
        ([{}], "at least one"),
        ([{"seed": []}], "at least one"),
        ([{"seed": [0, 1], "rule": ["fa"]}], r"equally many .*'seed': 2, 'rule': 1"),
        ([{"seed": [0]}, {"seed": [1], "rule": ["fa"]}], "more than one axis: seed"),
        ([{"seed": [0, 0]}], "More than one cell is called 'seed=0'"),
        ([{"model.x": ["a b", "a_b"]}], "More than one cell is called 'x=a_b'"),
        ([{"sed": [0]}], "Did you mean .config.seed"),
        ([{"optimizer.learning_rat": [0.1]}], "config.optimizer.learning_rate"),
        ([{"optimiser.learning_rate": [0.1]}], "no section 'optimiser'.*optimizer"),
        ([{"seed.first": [0]}], "no section 'seed'"),
        ([{"seed.first.bit": [0]}], "no section 'seed'"),
        ([{"seed": ["zero"]}], "config.seed takes int. Received: 'zero'"),
        ([{"optimizer": [3]}], "config.optimizer"),
        ([{"epochs": [0]}], "at least 1"),
        ([{"rule": "fa"}], "values of 'rule' in a grid must be a list. Received: 'fa'"),
        ([{"dataset./abs/path": [1]}], "names of fields are words"),
        ([{"": [1]}], "names of fields are words"),
        ([{"model.x": ["a" * 300]}], "has a name of 302 bytes"),
    ],
)
def test_impossible_grids_are_refused(axes, match):
    with pytest.raises(ValueError, match=match):
        sweeps.cells(base(), axes)


def test_narrow_replaces_filters_and_adds():
    zipped = {"rule": ["fa", "ada_fa", "sign_fa"], "epochs": [1, 2, 3]}
    axes = [{"seed": [0, 1]}, zipped]
    assert sweeps.narrow(axes, "seed", (7,)) == [{"seed": [7]}, zipped]
    assert sweeps.narrow(axes, "rule", ["sign_fa", "fa"]) == [
        {"seed": [0, 1]},
        {"rule": ["sign_fa", "fa"], "epochs": [3, 1]},
    ]
    # Any field of the axis chooses rows, not only the one that names the cells.
    assert sweeps.narrow(axes, "epochs", [2])[1] == {"rule": ["ada_fa"], "epochs": [2]}
    assert sweeps.narrow(axes, "batch_size", [9]) == [{"batch_size": [9]}, *axes]
    with pytest.raises(ValueError, match=r"no row with rule='backprop'.*'ada_fa'"):
        sweeps.narrow(axes, "rule", ["fa", "backprop"])
    assert axes == [{"seed": [0, 1]}, zipped]


# What the run folders say.


def test_status_of_every_kind(tmp_path):
    cells = sweeps.cells(base(), [{"seed": [0, 1, 2, 3, 4, 5]}])
    leave(cells[1], tmp_path)
    leave(cells[2], tmp_path, {"status": "finished"})
    leave(cells[3], tmp_path, {"status": "diverged"})
    grid.fail(cells[4], tmp_path, "ValueError: no", "Traceback ...")
    # One that went wrong only after it had begun.
    leave(cells[5], tmp_path)
    grid.fail(cells[5], tmp_path, "OSError: full")
    assert [sweeps.status(cell, tmp_path) for cell in cells] == [
        sweeps.OPEN,
        sweeps.INTERRUPTED,
        sweeps.FINISHED,
        sweeps.DIVERGED,
        sweeps.FAILED,
        sweeps.FAILED,
    ]
    assert sweeps.failure(cells[4], tmp_path) == {
        "error": "ValueError: no",
        "traceback": "Traceback ...",
    }


def test_a_cell_is_finished_only_under_its_own_configuration(tmp_path):
    axes = [{"seed": [0, 1]}]
    zero, one = sweeps.cells(base(), axes)
    leave(zero, tmp_path, {"status": "finished"})
    leave(one, tmp_path)
    # The grid's configuration was edited.
    for cell in sweeps.cells(base(batch_size=40), axes):
        assert sweeps.status(cell, tmp_path) == sweeps.FAILED
        error = sweeps.failure(cell, tmp_path)["error"]
        assert f"{tmp_path / cell.name} belongs to a run with another" in error
        assert "batch_size: 50 in the folder, 40 given" in error
        assert "another --workdir" in error
        sweeps.clear(cell, tmp_path)
    # The folders were swapped.
    for old, new in (("seed=0", "x"), ("seed=1", "seed=0"), ("x", "seed=1")):
        (tmp_path / old).rename(tmp_path / new)
    for cell in (zero, one):
        assert sweeps.status(cell, tmp_path) == sweeps.FAILED
        assert re.search(r"seed: \d in the", sweeps.failure(cell, tmp_path)["error"])
    for old, new in (("seed=0", "x"), ("seed=1", "seed=0"), ("x", "seed=1")):
        (tmp_path / old).rename(tmp_path / new)
    states = [sweeps.status(cell, tmp_path) for cell in (zero, one)]
    assert states == [sweeps.FINISHED, sweeps.INTERRUPTED]


def test_a_failure_is_that_of_one_configuration(tmp_path):
    [cell] = sweeps.cells(base(), [{"seed": [0]}])
    [other] = sweeps.cells(base(batch_size=40), [{"seed": [0]}])
    grid.fail(cell, tmp_path, "OSError: full")
    assert sweeps.status(cell, tmp_path) == sweeps.FAILED
    assert sweeps.status(other, tmp_path) == sweeps.OPEN
    (tmp_path / "seed=0.failed.json").write_text('{"error": "of another version"}')
    assert sweeps.status(other, tmp_path) == sweeps.FAILED


@pytest.mark.parametrize("name", ["seed=0/summary.json", "seed=0.failed.json"])
def test_a_damaged_file_stops_its_cell_alone_and_is_named(tmp_path, name):
    zero, one = sweeps.cells(base(), [{"seed": [0, 1]}])
    leave(zero, tmp_path)
    leave(one, tmp_path, {"status": "finished", "seconds": 1.0})
    (tmp_path / name).write_text('{"error": "unfin')
    assert sweeps.status(zero, tmp_path) == sweeps.FAILED
    assert str(tmp_path / name) in sweeps.failure(zero, tmp_path)["error"]
    estimates = sweeps.Estimates([zero, one], tmp_path, 60.0)
    estimates.update()
    assert estimates(zero) == 1.0
    states = sweeps.run([zero, one], tmp_path, console=Console(quiet=True))
    assert states == {"seed=0": sweeps.FAILED, "seed=1": sweeps.FINISHED}


def test_cells_of_a_former_version_still_count(tmp_path):
    config = base()
    config.model.kernel_initializer = "glorot_uniform"
    [cell] = sweeps.cells(config, [{"seed": [0]}])
    leave(cell, tmp_path)
    folder = tmp_path / cell.name
    stored = json.loads((folder / "config.json").read_text())
    stored |= {"sign_scale": "glorot", "feedback_initializer": None}
    del stored["instruments"]["others"]
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "metrics.jsonl").write_text('{"epoch": 0}\n')
    (folder / "summary.json").write_text('{"status": "finished"}')
    # Whether the field is stated, which was a field of every configuration, or not.
    for given in (config, base()):
        [cell] = sweeps.cells(given, [{"seed": [0]}])
        assert sweeps.status(cell, tmp_path) == sweeps.FINISHED


def test_estimates_come_from_the_nearest_finished_cells(tmp_path):
    axes = [{"seed": [0, 1, 2]}, {"rule": ["fa", "sign_fa"]}, {"batch_size": [10, 50]}]
    cells = {cell.name: cell for cell in sweeps.cells(base(), axes)}
    small = cells["seed=2,rule=fa,batch_size=10"]
    large = cells["seed=2,rule=fa,batch_size=50"]

    estimates = sweeps.Estimates(cells.values(), tmp_path, 60.0)

    def estimate(cell):
        estimates.update()
        return estimates(cell)

    def end(name, seconds, status="finished"):
        leave(cells[name], tmp_path, {"status": status, "seconds": seconds})

    assert estimate(small) == 60
    end("seed=0,rule=fa,batch_size=10", 1, "diverged")
    assert estimate(small) == 60
    end("seed=0,rule=fa,batch_size=50", 4)
    assert estimate(small) == estimate(large) == 4
    end("seed=0,rule=sign_fa,batch_size=10", 20)
    assert (estimate(small), estimate(large)) == (20, 4)
    # Neither the same seed nor the same rule counts as nearer.
    end("seed=1,rule=fa,batch_size=50", 6)
    end("seed=2,rule=sign_fa,batch_size=50", 300)
    assert (estimate(small), estimate(large)) == (20, 6)


def test_estimates_follow_a_running_cell_where_none_like_it_has_finished(tmp_path):
    config = base()
    config.epochs = 100
    cells = sweeps.cells(config, [{"seed": [0, 1]}, {"batch_size": [10, 50]}])
    running, other, later, _ = cells
    estimates = sweeps.Estimates(cells, tmp_path, 60.0)
    estimates.watch(running, 0, 0.0)
    estimates.watch(running, 3, 40.0)  # Loading and compiling do not count.
    estimates.watch(running, 13, 55.0)
    assert estimates(running) == 60  # Too short a time to tell.
    estimates.watch(running, 43, 120.0)
    assert estimates(running) == estimates(later) == 80 / 40 * 100
    assert estimates(other) == 60
    # Begun again from an earlier checkpoint: its clock begins again.
    estimates.watch(running, 20, 200.0)
    estimates.watch(running, 30, 240.0)
    assert estimates(later) == 40 / 10 * 100
    leave(running, tmp_path, {"status": "finished", "seconds": 300})
    estimates.update()
    assert estimates(later) == 300


def test_clear_makes_room_for_another_try(tmp_path):
    failed, diverged, finished, open_ = sweeps.cells(base(), [{"seed": [0, 1, 2, 3]}])
    leave(failed, tmp_path)
    grid.fail(failed, tmp_path, "OSError: full")
    leave(diverged, tmp_path, {"status": "diverged"})
    leave(finished, tmp_path, {"status": "finished"})
    for cell in (failed, diverged, finished, open_):
        sweeps.clear(cell, tmp_path)
    assert sweeps.status(failed, tmp_path) == sweeps.INTERRUPTED
    # It goes on where it was.
    assert (tmp_path / failed.name / "checkpoints" / "epoch-1.index").exists()
    assert sweeps.status(diverged, tmp_path) == sweeps.OPEN
    assert not (tmp_path / diverged.name).exists()
    assert sweeps.status(finished, tmp_path) == sweeps.FINISHED
    assert (tmp_path / finished.name / "checkpoints" / "epoch-1.index").exists()
    assert sweeps.status(open_, tmp_path) == sweeps.OPEN
    assert not (tmp_path / open_.name).exists()


def test_clear_refuses_what_another_process_holds(tmp_path, monkeypatch):
    [cell] = sweeps.cells(base(), [{"seed": [0]}])
    leave(cell, tmp_path, {"status": "diverged"})
    held = attempts.claim(tmp_path / cell.name)
    with pytest.raises(run_folder.RunFolderBusyError, match="Another process"):
        sweeps.clear(cell, tmp_path)
    held.drop()
    assert sweeps.status(cell, tmp_path) == sweeps.DIVERGED

    # Another sweep runs it again between the look and the claim: its work is kept.
    def claim(target, original=attempts.claim):
        monkeypatch.setattr(attempts, "claim", original)
        shutil.rmtree(target)
        leave(cell, tmp_path, {"status": "finished"})
        return original(target)

    monkeypatch.setattr(attempts, "claim", claim)
    sweeps.clear(cell, tmp_path)
    assert sweeps.status(cell, tmp_path) == sweeps.FINISHED
    assert len(run_folder.read_metrics(tmp_path / cell.name)) == 1


# The pool, with workers that need no process.


class _Scripted:
    """A worker that answers as it is told, once per look, and may die while idle."""

    made = 0
    answers: tuple = ()

    def __init__(self, workdir, threads):
        type(self).made += 1
        self.workdir = workdir
        self.cell, self.done, self.usable = None, 0, True

    def give(self, cell):
        if self.made == 1 and self.done == 1:
            self.usable = False
            raise BrokenPipeError("nobody reads")
        self.cell, self.done = cell, self.done + 1

    def answer(self):
        answer = self.answers[self.cell.config.seed].pop(0)
        if answer == "done":
            leave(self.cell, self.workdir, {"status": "finished", "seconds": 1.0})
        return answer

    def end(self):
        pass

    def stop(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    class Worker(_Scripted):
        pass

    monkeypatch.setattr(pool, "_Worker", Worker)
    monkeypatch.setattr(pool.Pool, "wait", lambda self, seconds: None)
    clock = itertools.count()
    monkeypatch.setattr(pool.time, "monotonic", lambda: float(next(clock)))
    return Worker


def test_a_worker_that_dies_while_idle_costs_no_cell(tmp_path, scripted):
    cells = sweeps.cells(base(), [{"seed": [0, 1]}])
    scripted.answers = (["done"], [None, "done"])
    states = sweeps.run(cells, tmp_path, console=Console(quiet=True))
    assert set(states.values()) == {sweeps.FINISHED}
    assert scripted.made == 2


def test_a_cell_of_another_sweep_is_waited_for(tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(pool, "_CELLS_PER_PROCESS", 2)
    [cell] = sweeps.cells(base(), [{"seed": [0]}])
    scripted.give = lambda self, cell: vars(self).update(cell=cell, done=self.done + 1)
    scripted.usable = property(lambda self: self.done < 2, lambda self, value: None)
    scripted.answers = (["busy"] * 5 + ["done"],)
    states = sweeps.run([cell], tmp_path, console=Console(quiet=True))
    assert states == {cell.name: sweeps.FINISHED}
    assert scripted.answers == ([],)
    # To find a cell busy costs nothing that would make a new process needful.
    assert scripted.made == 1


SMALL = pool.Mishap("OSError: Cannot allocate memory", is_passing=True)


def test_what_the_machine_stopped_is_begun_again_and_then_left_open(tmp_path, scripted):
    cells = sweeps.cells(base(), [{"seed": [0, 1, 2]}])
    scripted.give = lambda self, cell: vars(self).update(cell=cell)
    crashed = pool.Mishap("The process of this cell ended with exit code -11.")
    scripted.answers = ([SMALL, SMALL, "done"], [SMALL] * 9, [crashed])
    output = io.StringIO()
    states = sweeps.run(cells, tmp_path, console=Console(file=output, width=300))
    assert states == {
        "seed=0": sweeps.FINISHED,
        "seed=1": sweeps.OPEN,
        "seed=2": sweeps.FAILED,
    }
    assert "left open: seed=1: OSError: Cannot allocate memory\n" in output.getvalue()
    assert len(scripted.answers[1]) == 9 - 3
    # The same command takes it up.
    scripted.answers = ([], ["done"], [])
    states = sweeps.run(cells, tmp_path, console=Console(quiet=True))
    assert states["seed=1"] == sweeps.FINISHED


def test_a_machine_that_stops_every_cell_is_not_asked_for_ever(tmp_path, scripted):
    cells = sweeps.cells(base(), [{"seed": list(range(50))}])
    scripted.give = lambda self, cell: vars(self).update(cell=cell)
    scripted.answers = [[SMALL] * 3 for _ in cells]
    states = sweeps.run(cells, tmp_path, console=Console(quiet=True))
    assert set(states.values()) == {sweeps.OPEN}
    assert sum(map(len, scripted.answers)) == 3 * 50 - 10


def test_a_full_disk_ends_the_sweep_with_the_cells_left_open(tmp_path, scripted):
    cells = sweeps.cells(base(), [{"seed": list(range(50))}])
    scripted.give = lambda self, cell: vars(self).update(cell=cell)
    full = _raised(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    scripted.answers = [["done"], [full], *([] for _ in range(48))]
    output = io.StringIO()
    states = sweeps.run(cells, tmp_path, console=Console(file=output, width=300))
    assert list(states.values()) == [sweeps.FINISHED, *[sweeps.OPEN] * 49]
    (line,) = (x for x in output.getvalue().splitlines() if x.startswith("left open"))
    assert " and 48 more: OSError: [Errno 122] Disk quota" in line
    assert not list(tmp_path.glob("*.failed.json"))


def test_a_cell_beyond_its_time_is_stopped_and_recorded(tmp_path, scripted):
    cells = sweeps.cells(base(), [{"seed": [0, 1]}])
    scripted.give = lambda self, cell: vars(self).update(
        cell=cell, since=pool.time.monotonic()
    )
    scripted.answers = ([None] * 900, ["done"])
    quiet = Console(quiet=True)
    states = sweeps.run(cells, tmp_path, console=quiet, cell_seconds=90.0)
    assert states == {"seed=0": sweeps.FAILED, "seed=1": sweeps.FINISHED}
    assert "longer than 1.5 minutes" in sweeps.failure(cells[0], tmp_path)["error"]
    with pytest.raises(ValueError, match="cell_seconds must be positive"):
        sweeps.run(cells, tmp_path, console=quiet, cell_seconds=0)


def _raised(error, cause=None):
    try:
        raise error from cause
    except Exception as raised:
        return pool._mishap(raised, {"mine"})


@pytest.mark.parametrize(
    ("error", "cause", "is_passing"),
    [
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), None, True),
        (
            OSError("Could not save a checkpoint"),
            tf.errors.ResourceExhaustedError(None, None, "No space left on device"),
            True,
        ),
        (ValueError("No space left on device"), None, False),
        (FileNotFoundError(errno.ENOENT, "No such file"), None, False),
        (MemoryError("Unable to allocate"), None, False),
    ],
)
def test_what_is_the_machines_fault(error, cause, is_passing):
    mishap = _raised(error, cause)
    assert mishap.is_passing == is_passing
    assert mishap.is_full == ("checkpoint" in str(error))
    assert str(error) in mishap.error and "Traceback" in mishap.traceback


def test_a_name_that_only_the_sweeps_own_process_knows_is_explained():
    text = _raised(ValueError("Unknown rule: 'mine'. Known: fa")).error
    assert "knows 'mine', but from a program" in text and '"module:mine"' in text
    assert "module" not in _raised(ValueError("Unknown rule: 'mime'.")).error


def test_no_jobs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        sweeps.run([], tmp_path / "sweep", jobs=0)
    assert not (tmp_path / "sweep").exists()


# Real processes.


def state_of(workdir):
    """What would change if anything were written: names, times, contents."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def kill_when_at_work(workdir, name):
    """Kills the process that runs a cell, as a machine out of memory would."""

    def kill():
        wait_until(
            lambda: len(run_folder.read_metrics(workdir / name)) > 5,
            _PATIENCE,
            "it never began",
        )
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


_MISHAPS = [
    {
        "seed": [0, 1, 2, 3, 4],
        "epochs": [150, 2, 40, 2, 2],
        "optimizer.learning_rate": [0.02, 0.02, 1e30, 0.02, 0.02],
        "batch_size": [200, 50, 50, 500, 50],
    }
]


@pytest.fixture(scope="module")
def mishaps(tmp_path_factory):
    """A sweep in which all goes wrong that can: its folder, cells, states, output."""
    folder = tmp_path_factory.mktemp("mishaps")
    write_grid(folder, _MISHAPS)
    workdir = folder / "runs"
    cells = sweeps.cells(base(), _MISHAPS)
    (workdir / "seed=4").mkdir(parents=True)
    (workdir / "seed=4" / "thesis.tex").write_text("precious")
    killer = kill_when_at_work(workdir, "seed=0")
    with open(folder / "output", "w+") as file:
        states = sweeps.run(cells, workdir, console=Console(file=file, width=300))
        killer.join()
        file.seek(0)
        return folder, cells, states, file.read()


@pytest.mark.slow
def test_mishaps_are_recorded_and_stop_nothing(mishaps):
    folder, cells, states, output = mishaps
    workdir = folder / "runs"
    assert states == {
        # Killed, and begun again.
        "seed=0": sweeps.FINISHED,
        "seed=1": sweeps.FINISHED,
        "seed=2": sweeps.DIVERGED,
        "seed=3": sweeps.FAILED,
        "seed=4": sweeps.FAILED,
    }
    for name, state in states.items():
        assert f"{state}: {name}\n" in output
    errors = {cell.name: cell for cell in cells if states[cell.name] == sweeps.FAILED}
    errors = {name: sweeps.failure(cell, workdir) for name, cell in errors.items()}
    assert [line["epoch"] for line in lines(workdir / "seed=0")] == list(range(151))
    assert (
        "ValueError: config.batch_size=500 is more than the 200"
        in errors["seed=3"]["error"]
    )
    assert "datasets" in errors["seed=3"]["traceback"]
    assert "RunFolderError: " in errors["seed=4"]["error"]
    assert "thesis.tex" in errors["seed=4"]["error"]
    assert [line["epoch"] for line in lines(workdir / "seed=1")] == [0, 1, 2]
    # Of the process that was killed and of the one after it.
    logs = list((workdir / pool.LOGS).iterdir())
    assert len(logs) == 2
    assert all(log.stat().st_mode & 0o111 == 0 for log in logs)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_what_is_over_is_not_run_again(mishaps, monkeypatch):
    folder, cells, states, _ = mishaps
    before = state_of(folder / "runs")
    monkeypatch.setattr(pool, "_Worker", None)
    again = sweeps.run(cells, folder / "runs", console=Console(quiet=True))
    assert again == states
    assert state_of(folder / "runs") == before


# One process for many command lines: to import TensorFlow takes longer than the rest.
_COMMANDS = """
import contextlib, io, json, sys, traceback
from absl import flags
from trainers import sweep

answers = []
for arguments in json.load(sys.stdin):
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.flags_by_module_dict()[sweep.__name__]:
        flag.unparse()
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            sweep.main(["sweep.py", *arguments])
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 1
    answers.append([code, out.getvalue()])
print(json.dumps(answers))
"""


def commands(*all_arguments):
    """Exit code and output of several command lines of trainers/sweep.py."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        input=json.dumps([list(map(str, arguments)) for arguments in all_arguments]),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.long
def test_the_command_line(mishaps, tmp_path):
    folder, cells, _, _ = mishaps
    workdir = folder / "runs"
    grid = f"--grid={folder / 'grids' / 'grid.py'}"
    (folder / "grids" / "empty.py").write_text("")
    (folder / "grids" / "half.py").write_text("def get_grid():\n    return {}\n")
    before = state_of(workdir)
    mistakes = [
        ([f"--grid={tmp_path / 'none.py'}"], "error: There is no file"),
        ([f"--grid={folder / 'grids' / 'empty.py'}"], "has no function get_grid"),
        ([f"--grid={folder / 'grids' / 'half.py'}"], "lacks axes, config, seconds_"),
        ([grid, "--axis=seed"], "error: --axis='seed' should be a field and a list"),
        ([grid, "--axis=seed=3"], "should be a field and a list"),
        ([grid, "--axis=rule=[fa]"], "should be a field and a list"),
        ([grid, "--axis=rule=[{[]: 0}]"], "should be a field and a list"),
        ([grid, "--axis=optimizer.momentun=[0.9]"], "error: Unknown field config."),
        ([grid, "--axis=rate.x=[0.9]"], "there is no section 'rate'"),
        ([grid, "--axis=rule=[]"], "at least one"),
        ([grid, "--axis=seed=[7]"], "error: The grid has no row with seed=7"),
        ([grid, "--jobs=0"], "--jobs=0"),
        ([grid, "table3"], "Unexpected arguments: table3"),
    ]
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "seed=4" / "thesis.tex").unlink()
    copied = time.time_ns()
    *failed, dry, fresh, retried = commands(
        *([*arguments, f"--workdir={tmp_path / 'x'}"] for arguments, _ in mistakes),
        [grid, f"--workdir={workdir}", "--dry-run"],
        [
            *(grid, f"--workdir={tmp_path / 'x'}", "--dry_run", "--jobs=2"),
            *("--axis=rule=['fa','sign_fa']", "--axis=epochs=[40]"),
            "--axis=dataset.class_seed=range(1)",
        ],
        [grid, f"--workdir={copy}", "--retry"],
    )
    for (code, output), (arguments, message) in zip(failed, mistakes, strict=True):
        assert code == 1, arguments
        assert message in output
        assert "Traceback" not in output

    def rows(output):
        found = [line.split("│")[1:-1] for line in output.splitlines()]
        return [[text.strip() for text in row] for row in found if row]

    assert dry[0] == 0
    assert rows(dry[1]) == [
        ["seed=0", "finished", ""],
        ["seed=1", "finished", ""],
        ["seed=2", "diverged", ""],
        ["seed=3", "failed", ""],
        ["seed=4", "failed", ""],
    ]
    assert "5 cells; about 0 minutes left with --jobs=1." in dry[1]
    assert fresh[0] == 0
    assert rows(fresh[1]) == [
        ["class_seed=0,rule=fa,seed=2", "open", "1.5"],
        ["class_seed=0,rule=sign_fa,seed=2", "open", "1.5"],
    ]
    assert "2 cells; about 2 minutes left with --jobs=2." in fresh[1]
    assert state_of(workdir) == before
    assert not (tmp_path / "x").exists()

    # What could not begin begins, what must fail fails again.
    assert retried[0] == 1
    assert "3 finished, 1 diverged, 1 failed\n" in retried[1]
    assert (
        "failed: seed=3: ValueError: config.batch_size=500 is more than" in retried[1]
    )
    assert "error: not all cells finished; --retry takes them up" in retried[1]
    states = [sweeps.status(cell, copy) for cell in cells]
    assert states == ["finished", "finished", "diverged", "failed", "finished"]
    assert not (copy / "seed=4.failed.json").exists()
    for name, file in (("seed=2", "summary.json"), ("", "seed=3.failed.json")):
        assert (copy / name / file).stat().st_ctime_ns > copied
    for file in ("metrics.jsonl", "summary.json"):
        assert (copy / "seed=1" / file).stat().st_ctime_ns < copied


def test_help_says_what_every_flag_is_for():
    done = subprocess.run(
        [*SWEEP, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE
    )
    assert done.returncode == 1, "absl's exit code for --help"
    assert "Runs a grid of experiments in a pool of processes, or on a" in done.stdout
    flags = re.findall(r"^  --(?:\[no\])?(\w+): (\w*)", done.stdout, re.MULTILINE)
    assert dict(flags).keys() == {
        *("grid", "workdir", "axis", "jobs", "cell_minutes", "cells"),
        *("executor", "copies", "slurm", "worker", "status", "stop"),
        *("retry", "dry_run"),
    }
    assert all(text for _, text in flags)


class _Watch:
    """Counts how often each cell of a sweep is begun, first or again.

    A run that begins has a folder of its own.
    """

    def __init__(self, workdir, cells):
        self._folders = {name: workdir / name for name in cells}
        self._attempts = {name: {*self._seen(name)} for name in cells}
        self._before = {name: len(found) for name, found in self._attempts.items()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()

    def _seen(self, name):
        place = run_folder.place(self._folders[name])
        return [place] if place != self._folders[name] else []

    def _look(self):
        over = False
        while not over:
            # One look more after the end.
            over = self._over.wait(0.01)
            for name, found in self._attempts.items():
                found.update(self._seen(name))

    @property
    def begun(self):
        return {n: len(f) - self._before[n] for n, f in self._attempts.items()}


def processes():
    """`{id: parent's id}` of all processes but those that only wait to be reaped."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True
    )
    rows = [line.split() for line in listing.stdout.splitlines()]
    return {int(row[0]): int(row[1]) for row in rows if row[2][0] != "Z"}


@pytest.fixture
def begin():
    """A function that starts a sweep; what it started ends with the test."""
    started = []

    def start(grid, workdir):
        process = subprocess.Popen(
            [*SWEEP, f"--grid={grid}", f"--workdir={workdir}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.long
def test_killed_and_shared_by_two_equals_undisturbed(tmp_path, begin):
    axes = [{"seed": [0, 1, 2]}]
    cells = names(axes)
    grid = write_grid(tmp_path / "configs", axes)
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    undisturbed = begin(grid, whole)
    killed = begin(grid, shared)
    wait_until(
        lambda: len(lines(shared / "seed=1")) > 5, _PATIENCE, "no second cell was begun"
    )
    children = {pid for pid, ppid in processes().items() if ppid == killed.pid}
    assert children
    killed.kill()
    killed.wait()
    # Among them the one that was in the middle of the cell.
    wait_until(lambda: not children & processes().keys(), 10, "workers live on")
    states = [sweeps.status(cell, shared) for cell in sweeps.cells(base(), axes)]
    assert states == ["finished", "interrupted", "open"]
    assert len(lines(shared / "seed=1")) <= EPOCHS, "the kill came outside the cell"
    before = state_of(shared / "seed=0")
    expected, _ = undisturbed.communicate(timeout=_PATIENCE)
    assert undisturbed.returncode == 0, expected

    with _Watch(shared, cells) as watch:
        both = [begin(grid, shared) for _ in range(2)]
        outputs = [process.communicate(timeout=_PATIENCE)[0] for process in both]
    for process, output in zip(both, outputs, strict=True):
        assert process.returncode == 0, output
        assert "3 finished" in output
        for name in cells:
            assert output.count(f"finished: {name}\n") == (name != "seed=0")
    # Each cell that was not over was begun once, by one of the two.
    assert watch.begun == {"seed=0": 0, "seed=1": 1, "seed=2": 1}
    assert state_of(shared / "seed=0") == before
    assert {p.name for p in shared.iterdir()} == {p.name for p in whole.iterdir()}
    for name in cells:
        assert lines(shared / name) == lines(whole / name)
        assert [line["epoch"] for line in lines(whole / name)] == [*range(EPOCHS + 1)]


def test_of_ten_thousand_cells_a_few_are_looked_at(monkeypatch):
    axes = [
        {"seed": list(range(250))},
        {"rule": ["fa", "sign_fa", "ada_fa", "backprop"]},
        {"optimizer.learning_rate": [0.1 * i + 0.01 for i in range(10)]},
    ]
    looked_at, check = [], grid.configuration.check
    monkeypatch.setattr(
        grid.configuration, "check", lambda c: looked_at.append(1) or check(c)
    )
    cells = sweeps.cells(base(), axes)
    # The two ends of each axis of numbers, each rule, and the first cell.
    assert len(looked_at) == 2 + 2 + 4 + 1
    assert len(cells) == 10_000
    assert cells[-1].config == base(
        seed=249, rule="backprop", optimizer=cells[-1].config.optimizer
    )


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        # Of many numbers those in the middle count too.
        ([{"seed": [0, 1.5, 2]}], "config.seed takes int"),
        ([{"optimizer.momentum": [0.0, 1.5, 0.5]}], r"momentum must be .* in \[0, 1\)"),
        ([{"optimizer.learning_rate": [0.1, math.nan, 0.2]}], "finite number"),
        ([{"optimizer.learning_rate": [0.1, -0.1, 0.2]}], "at least 0"),
        # Each is right in itself.
        (
            [{"epochs": [4, 40]}, {"log_every": [4, 10], "checkpoint_every": [4, 10]}],
            r"\(10\) must divide",
        ),
        (
            [{"epochs": [10, 11, 12]}, {"log_every": [2], "checkpoint_every": [2]}],
            r"\(2\) must divide",
        ),
        (
            [
                {"seed": [0, 1], "log_every": [1, 3], "checkpoint_every": [3, 3]},
                {"epochs": [3, 4]},
            ],
            r"\(3\) must divide config.epochs \(4\)",
        ),
        (
            [{"optimizer.name": ["sgd", "adam"]}, {"optimizer.momentum": [0.0, 0.9]}],
            "momentum has no meaning for adam",
        ),
    ],
)
def test_a_cell_anywhere_in_the_grid_is_refused(axes, match):
    with pytest.raises(ValueError, match=match):
        sweeps.cells(base(), axes)


_WATCHES = """
import sys
from trainers import sweep
try:
    sweep.main(["sweep.py", *sys.argv[1:]])
finally:
    print(sorted({"keras", "tensorflow", "pandas"} & sys.modules.keys()))
"""


def test_who_only_watches_loads_no_tensorflow(tmp_path):
    grid = write_grid(tmp_path, [{"seed": [0, 1]}])
    done = subprocess.run(
        [
            *(sys.executable, "-c", _WATCHES, f"--grid={grid}", "--dry-run"),
            f"--workdir={tmp_path / 'runs'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "2 cells; about 3 minutes left" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.long
def test_who_only_watches_knows_the_optimizers_all_the_same(tmp_path):
    grid = write_grid(tmp_path, [{"optimizer.name": ["adam"]}, {"seed": [0]}])
    mistakes = (
        "optimizer.beta_1=[1.5]",
        "optimizer.beta=[0.5]",
        "optimizer.name=['a']",
    )
    for axis, match in zip(
        mistakes, ("in [0, 1)", "Unknown field", "Unknown optimizer"), strict=True
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-c", _WATCHES, f"--grid={grid}", f"--axis={axis}"),
                *(f"--workdir={tmp_path / 'runs'}", "--dry-run"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        assert done.returncode == 1
        assert match in done.stderr
        assert done.stdout.endswith("[]\n")
