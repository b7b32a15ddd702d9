"""The programs' common part: help, mistakes, noise and Ctrl-C."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from keras_fa.lab import run_folder

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = sorted(
    [
        *(ROOT / "trainers").glob("[!_]*.py"),
        ROOT / "benchmarks" / "run.py",
    ]
)
TRAIN = [sys.executable, str(ROOT / "trainers" / "train.py")]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_help_is_fast_and_says_what_every_flag_is_for(program):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(program), "--helpshort"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "absl.app" in loaded
    assert not loaded & {"tensorflow", "keras", "keras_fa", "numpy"}
    flags = re.findall(
        r"^  --(?:\[no\])?([\w-]+):(.*\n(?:    .*\n)?)", done.stdout, re.M
    )
    assert flags
    for name, text in flags:
        assert re.search(r"[A-Z]", text.split("(default")[0]), name


# One process for many command lines: to import TensorFlow takes longer than the rest.
_COMMANDS = """
import contextlib, io, json, sys, traceback
from absl import flags
from trainers import train

answers = []
for arguments in json.load(sys.stdin):
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    for flag in flags.FLAGS.flags_by_module_dict()[train.__name__]:
        flag.unparse()
    flags.FLAGS["verbosity"].unparse()
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            train.main(["train.py", *arguments])
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


@pytest.mark.long
def test_a_mistake_is_a_line_and_verbosity_tells_where_it_came_from(tmp_path):
    (tmp_path / "wrong.py").write_text("x = 1\n\ndef get_config()\n")
    (tmp_path / "none.py").write_text("def get_config():\n    pass\n")
    mistakes = [
        (["--config=digts"], 'Did you mean "digits"?'),
        (["--config=wrong.py"], "wrong.py, line 3: expected ':'"),
        (["--config=none.py"], "should return a configuration"),
        (["--config=digits", "--config.optimiser.x=1"], "config.optimizer"),
        (["--config=digits", "--config.epochs", "3.5"], "takes int. Received: 3.5"),
        (["--config=digits", "--config.epochs=0"], "must be at least 1"),
        (["--config=digits", "--rules=fa,fb"], "Unknown"),
        (["--config=digits", "digits"], "Unexpected arguments: digits"),
        (["--config=digits", "--wrokdir=x"], "Did you mean: workdir"),
        ([], "--config must have a value"),
        (["--config=digits", "--workdir="], "no path is given"),
    ]
    lines = [["--workdir=out", *arguments] for arguments, _ in mistakes]
    lines.append(["--config=wrong.py", "--workdir=out", "--verbosity=1"])
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        input=json.dumps(lines),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *answers, traced = json.loads(done.stdout.splitlines()[-1])
    for (code, output), (arguments, message) in zip(answers, mistakes, strict=True):
        assert code == 1, arguments
        assert message in output
        assert "Traceback" not in output
    assert traced[0] == 1 and "Traceback" in traced[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_prints_its_progress_its_table_and_its_figures_alone(tmp_path):
    # A module of the user's, called as one of the programs is.
    (tmp_path / "train.py").write_text(
        "import keras_fa\n\n"
        "class Halved(keras_fa.rules.FeedbackRule):\n"
        "    def backward_kernel(self, kernel):\n"
        "        return kernel / 2\n"
        "    def potential(self, kernel):\n"
        "        return kernel, kernel / 4\n"
    )
    fields = ["--config.epochs=1", "--config.rule=train:Halved"]
    done = subprocess.run(
        [*TRAIN, "--config=digits", *fields, "--workdir=~/run"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    progress, *table, _ = [
        line for line in done.stdout.splitlines() if not line.startswith("figure: ")
    ]
    assert re.match(r"train:Halved .* 1/1 .* loss", progress)
    assert {line[0] for line in table} <= set("┏┃┡│└")
    assert run_folder.read_summary(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_leaves_no_traceback(tmp_path, number):
    process = subprocess.Popen(
        [*TRAIN, "--config=digits", f"--workdir={tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while "libtensorflow" not in maps.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 128 + number
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)], ids=["term", "ctrl_c"]
)
def test_a_signal_that_meets_the_garbage_collector_stops_all_the_same(number, code):
    # What a callback of the collector raises is printed and lost.
    program = f"""
import gc, os, signal, time
from trainers._binary import program

@program("Go on with the same command.", command=True)
def main(rest):
    def meets(phase, info):
        gc.callbacks.remove(meets)
        os.kill(os.getpid(), signal.{number})
    gc.callbacks.append(meets)
    gc.collect()
    time.sleep(30)
    print("not stopped")

main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == "\nInterrupted. Go on with the same command.\n"
