"""What is damaged, killed, full or wrong must never pass in silence: counted.

Each campaign injects faults into runs and searches of a second and says what came of
them:

- noticed: an error as the programs print it, in one line, with the folder's name (of an
  input: the field's), before anything is written.
- equal: what is read, or the run that is gone on with, is that of one without faults.
  A run that a full disk stopped has said so in one line.
- silent: neither. There must be none.
- traceback: an exception that the programs would show with its traceback.
"""

import builtins
import collections
import contextlib
import errno
import math
import os
import pathlib
import random
import resource
import shutil
import signal
import tempfile

import keras

from keras_fa import experiment
from keras_fa.config import check, default_config
from keras_fa.lab import plans, run_folder

OUTCOMES = ("noticed", "equal", "silent", "traceback")
# What the programs print in one line.
EXPECTED = (ValueError, OSError, ImportError, RuntimeError, MemoryError)


class Report(collections.Counter):
    """How often each outcome was, and what was injected where it should not be."""

    def __init__(self):
        super().__init__(dict.fromkeys(OUTCOMES, 0))
        self.wrong = []

    def add(self, outcome, what):
        self[outcome] += 1
        if outcome in ("silent", "traceback"):
            self.wrong.append(f"{outcome}: {what}")

    def __str__(self):
        counts = ", ".join(f"{self[outcome]} {outcome}" for outcome in OUTCOMES)
        return "\n  ".join([f"{sum(self.values())} injected: {counts}", *self.wrong])


def configuration(**changes):
    config = default_config()
    config.dataset.train_size = 60
    config.model.hidden_units = (4,)
    config.batch_size = 30
    config.epochs = 4
    config.optimizer.learning_rate = 0.02
    config.update(changes)
    return config


class _Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


def interrupted(folder):
    """A run that was stopped with two checkpoints and lines behind both."""
    with contextlib.suppress(KeyboardInterrupt):
        experiment.run(configuration(), folder, extra_callbacks=[_Stop()])
    return folder


def read(folder):
    """All that tables and figures read of a run."""
    summary = run_folder.read_summary(folder)
    if summary is None:
        # A table counts it among the missing ones, a sweep takes it up.
        raise run_folder.RunFolderError(f"The run in {folder} is not over.")
    return run_folder.read_config(folder), summary, run_folder.read_metrics(folder)


def end_of(folder):
    """What a run comes to, but for its clock."""
    summary = run_folder.read_summary(folder)
    lines = run_folder.read_metrics(folder)
    for line in lines:
        del line["seconds"]
    return summary["status"], summary["epochs"], summary["parameters"], lines


def outcome(action, expected, named):
    """What came of an action that should give the expected value or an error."""
    try:
        found = action()
    except EXPECTED as error:
        return "noticed" if str(named) in str(error) else f"unnamed: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "equal" if found == expected else "silent"


def _add(report, found, what):
    if found in OUTCOMES:
        report.add(found, what)
    else:
        report.add("traceback", f"{what}: {found.splitlines()[0]:.200}")


def _files(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]


def _damaged(damages, workdir):
    """Injects damages, functions of a file's content, into an ended and a stopped run.

    Args:
        damages: Function of (file, content) that yields damaged contents, None for a
            file that is not there any more.
        workdir: An empty folder.
    """
    report = Report()
    config = configuration()
    whole = workdir / "whole"
    experiment.run(config, whole)
    right = end_of(whole)
    stopped = interrupted(workdir / "stopped")

    def go_on(folder):
        keras.backend.clear_session()
        experiment.run(config, folder)
        return end_of(folder)

    for source, action, expected in (
        (whole, read, read(whole)),
        (stopped, go_on, right),
    ):
        for file in _files(source):
            if source == whole and "checkpoints" in file.parts:
                # Of a run that is over they are not read.
                continue
            for content in damages(file, file.read_bytes()):
                folder = workdir / "copy"
                shutil.copytree(source, folder)
                damaged = folder / file.relative_to(source)
                damaged.unlink()
                if content is not None:
                    damaged.write_bytes(content)
                what = f"{source.name}/{file.relative_to(source)}"
                found = outcome(lambda f=folder, a=action: a(f), expected, folder)
                _add(report, found, what)
                shutil.rmtree(folder)
    return report


def flips(count, workdir, seed=0):
    """Flips single bits in the files of runs.

    Args:
        count: How many in each file.
        workdir: An empty folder.
    """
    draw = random.Random(seed)

    def damages(file, content):
        for _ in range(count):
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            yield bytes(changed)

    return _damaged(damages, workdir)


def truncations(count, workdir):
    """Cuts each file of runs at so many places, and takes it away.

    Args:
        count: How many: 10 cuts at every tenth.
        workdir: An empty folder.
    """

    def damages(file, content):
        yield None
        for part in range(count):
            yield content[: part * len(content) // count]

    return _damaged(damages, workdir)


# Kills and full disks: a process that is stopped at a chosen call.

_CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")


@contextlib.contextmanager
def _stopped_at(number, stop):
    """Calls `stop` in the place of the call of that number that changes a file."""
    left = [number]

    def counted(call, changes=lambda *a, **k: True):
        def instead(*arguments, **options):
            if changes(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    stop()
            return call(*arguments, **options)

        return instead

    kept = {name: getattr(os, name) for name in _CALLS}
    plain = builtins.open
    for name, call in kept.items():
        setattr(os, name, counted(call))
    builtins.open = counted(
        plain, lambda file, mode="r", *a, **k: any(c in mode for c in "wax")
    )
    try:
        yield left
    finally:
        builtins.open = plain
        for name, call in kept.items():
            setattr(os, name, call)


def _child(action):
    """Runs an action in a process of its own.

    Returns:
        What it wrote of an error that it ended with, None after SIGKILL, "" if all
        went well. What it printed goes nowhere.
    """
    with tempfile.TemporaryFile("w+") as file:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
                action()
                code = 0
            except EXPECTED as error:
                file.write(f"noticed: {error}")
            except BaseException as error:
                file.write(f"{type(error).__name__}: {error}")
            finally:
                file.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        text = file.read()
    if os.WIFSIGNALED(status):
        return None
    return text


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _calls(action):
    """How many calls of an action change files."""
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "found"

        def count():
            with _stopped_at(-1, lambda: None) as left:
                action(pathlib.Path(folder) / "run")
                calls = -1 - left[0]
            found.write_text(str(calls))

        _child(count)
        return int(found.read_text())


def _stopped(action, end, count, workdir, ways, seed=0):
    """Stops an action at chosen calls, gives it again, and compares its end."""
    report, draw = Report(), random.Random(seed)
    calls = _calls(action)
    plain = workdir / "plain"
    _child(lambda: action(plain))
    right = end(plain)
    for number in range(count):
        # Every call in turn, then any.
        at = 1 + number if number < calls else 1 + draw.randrange(calls)
        name, way = ways[number % len(ways)]
        folder = workdir / f"{name}-{number}"

        def stopped(folder=folder, at=at, way=way):
            if way is None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                size = draw.randrange(1, 6000)
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)
                )
                action(folder)
            else:
                with _stopped_at(at, way):
                    action(folder)

        said = _child(stopped)
        if said and not said.startswith("noticed"):
            _add(report, said, f"{name} at call {at}")
        again = _child(lambda folder=folder: action(folder))
        if again:
            _add(report, f"not gone on with: {again}", f"{name} at call {at}")
        else:
            _add(report, "equal" if end(folder) == right else "silent", f"{name} {at}")
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _train(folder):
    experiment.run(configuration(), folder)


def kills(count, workdir):
    """Kills runs at calls that change files, most of them within saves."""
    return _stopped(_train, end_of, count, workdir, [("kill", _kill)])


def disks(count, workdir):
    """Lets the disk be full for a run, from such a call on or beyond a file's size."""
    ways = [("full", _full), ("limit", None)]
    return _stopped(_train, end_of, count, workdir, ways)


def _search(folder):
    from keras_fa import tuning

    space = {"optimizer.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True}}
    search = tuning.Search(configuration(epochs=2), space, folder, trials=3)
    search.run()
    run_folder.write_text(folder / "trials.csv", search.table().to_csv())


def _table(folder):
    return (folder / "trials.csv").read_text()


def searches(count, workdir):
    """Kills searches, or lets their disk be full, within keras-tuner's files too."""
    ways = [("kill", _kill), ("full", _full)]
    return _stopped(_search, _table, count, workdir, ways)


NAN, INF = math.nan, math.inf
INPUTS = {
    "epochs": (3.0, "3", True, -1, 0, None),
    "log_every": (0, 1.0, None, 3),
    "checkpoint_every": (0, None, -2),
    "seed": (1.5, "a", True, NAN, None, -1),
    "batch_size": (2.0, "full", 10**9, True, -1, 0),
    "dtype": ("float31", None, 3, "int32", "mixed_foo"),
    "deterministic": (None, "yes"),
    "drop_last": (None, 3),
    "jit_compile": (True, None, "yes"),
    "instruments.probe_size": (0, -5, 1.5, "x", True),
    "instruments.ledger": (None, 2),
    "instruments.others": (("nonsense",), (3,), "mine:X", None, {"a"}),
    "schedule.boundaries": (("a",), ("a", 1), (-1,), (1.5,), (NAN,), 3, None, {1}),
    "schedule.factors": (None, ("a",), (NAN,), (-1.0,)),
    "optimizer.learning_rate": (NAN, INF, -1.0, "fast", None, True),
    "optimizer.momentum": (NAN, -1.0, 2.0, None),
    "optimizer.weight_decay": (NAN, -1.0),
    "optimizer.name": ("adamm", None, 3),
    "optimizer.clipnorm": ("x", -1.0),
    "optimizer.nesterov": ("x",),
    "optimizer.weight_decay_layers": (("nope",), "dense_1", (3,)),
    "optimizer.weight_decay_epochs": (-1, 1.5, 0),
    "optimizer.learning_rat": (1.0,),
    "optimiser.learning_rate": (1.0,),
    "model.name": ("lenett", None, 3, "nosuch:module", "json:loads", "os:getcwd"),
    "model.hidden_units": (
        (),
        (0,),
        (-3,),
        (2.5,),
        ("a",),
        (True,),
        "abc",
        {4},
        (NAN,),
    ),
    "model.activation": ("reluu", 3),
    "model.use_bias": ("yes", 3),
    "model.kernel_initializer": (
        "glorott",
        "normal(x)",
        "normal(-1)",
        "normal(nan)",
        3,
    ),
    "model.depth": (3,),
    "rule": (
        *("feedback", None, 3, {}, ["fa"], "os:getcwd", {"*": "nope"}, {"*": 3}),
        *({"name": "fa", "foo": 1}, {"conv*": "fa", "*": "sign_fa"}),
        *({"name": "sign_fa", "scale": scale} for scale in (NAN, -1.0, 0.0, "x")),
        *({"name": "fa", "initializer": name} for name in ("zeros", "normal(nan)")),
    ),
    "loss": (
        *("cross_entrpy", None, 3, "half_squared_error", "exponential", "mse"),
        *("binary_crossentropy", "hinge", {"name": "cross_entropy", "foo": 1}),
    ),
    "dataset.name": ("digit", None, 3, "", "os:getcwd"),
    "dataset.train_size": (0, -1, 10**9, 2.5, "x", True),
    "dataset.label_noise": (-0.1, 1.5, NAN, "x"),
    "dataset.noise_over": ("some",),
    "dataset.num_classes": (0, 11, 1, 2.0),
    "dataset.class_seed": (-1,),
    "dataset.standardize": ("zscore",),
    "dataset.flatten": ("x",),
    "dataset.classes": ((0, 99), "x", (1, 1), ()),
    "dataset.trainsize": (3,),
    "dataset.seed": (3,),
    "dataset./abs/path": (1,),
    "model.a b": (1,),
    "": (1,),
}


def inputs(count, workdir):
    """Gives runs what no run could use.

    Args:
        count: How many; 0 for all.
        workdir: An empty folder.
    """
    report = Report()
    everything = [(field, v) for field, values in INPUTS.items() for v in values]
    step = max(1, len(everything) // count) if count else 1
    for field, value in everything[::step]:
        folder = workdir / "run"
        # What a section does not know is told by the section's name.
        section = field.split(".")[0]

        def run(field=field, value=value, folder=folder):
            config = configuration()
            plans.set_field(config, field, value)
            check(config)
            keras.backend.clear_session()
            experiment.run(config, folder)

        found = outcome(run, object(), section)
        if found == "noticed" and folder.exists():
            found = "silent until files were written"
        _add(report, found, f"{field}={value!r}")
        shutil.rmtree(folder, ignore_errors=True)
    return report


CAMPAIGNS = {
    "flips": (flips, 150),
    "truncations": (truncations, 10),
    "inputs": (inputs, 0),
    "kills": (kills, 150),
    "disks": (disks, 60),
    "searches": (searches, 60),
}
