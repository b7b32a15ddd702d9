"""The run folder: whole files, one owner, torn lines, other configurations."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from keras_fa.lab import run_folder
from keras_fa.lab.config import default_config
from keras_fa.lab.run_folder import RunFolder, RunFolderBusyError, RunFolderError

ROOT = pathlib.Path(__file__).parents[1]


def test_round_trip(tmp_path):
    config = {"seed": 1, "model": {"hidden_units": (3, 4)}}
    with RunFolder(tmp_path / "run", config) as folder:
        folder.begin(-1)
        folder.log({"epoch": 1, "loss": np.float32(0.5)})
        folder.log({"epoch": 2, "loss": float("nan"), "x": np.arange(2)})
        assert folder.summary() is None
        folder.finish({"status": "finished"})
    path = tmp_path / "run"
    assert run_folder.read_config(path) == {
        "seed": 1,
        "model": {"hidden_units": [3, 4]},
    }
    assert run_folder.read_metrics(path)[1] == {"epoch": 2, "loss": None, "x": [0, 1]}
    assert run_folder.read_summary(path) == {"status": "finished"}
    frame = run_folder.read_frame(path)
    assert frame["epoch"].tolist() == [1, 2]
    assert np.isnan(frame["loss"][1])


def test_a_field_that_came_later_changes_no_run_while_it_is_none(tmp_path):
    before = {"seed": 1, "dataset": {"name": "digits"}}
    later = {"seed": 1, "dataset": {"name": "digits", "exclude_classes": None}}
    given = {"seed": 1, "dataset": {"name": "digits", "exclude_classes": (3,)}}
    assert run_folder.identity(before) == run_folder.identity(later)
    assert run_folder.identity(before) != run_folder.identity(given)
    with RunFolder(tmp_path / "run", before) as folder:
        folder.begin(-1)
    run_folder.check(tmp_path / "run", later)
    with pytest.raises(RunFolderError, match=r"dataset.exclude_classes.*\[3\] given"):
        run_folder.check(tmp_path / "run", given)


def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path):
    with RunFolder(tmp_path, {"a": {"b": 1}, "c": 2}) as folder:
        folder.begin(-1)
        folder.log({"epoch": 1})
    before = (tmp_path / "config.json").read_bytes()
    match = "a.b: 1 in the folder, 3 given"
    with pytest.raises(RunFolderError, match=match) as refusal:
        RunFolder(tmp_path, {"a": {"b": 3}, "c": 2}).__enter__()
    assert not isinstance(refusal.value, RunFolderBusyError)
    assert (tmp_path / "config.json").read_bytes() == before
    assert len(run_folder.read_metrics(tmp_path)) == 1


def test_a_run_of_another_backend_is_refused_and_told(tmp_path, monkeypatch):
    config = {"rule": "fa"}
    for backend in ("jax", "tensorflow"):
        monkeypatch.setattr(run_folder, "backend", lambda backend=backend: backend)
        with RunFolder(tmp_path / backend, config) as folder:
            folder.begin(-1)
            folder.log({"epoch": 0})
            state = folder.get_state()
    # That TensorFlow is at work here is no part of a configuration.
    assert state["config"] == run_folder.identity(config)
    run_folder.check(tmp_path / "tensorflow", config)
    assert run_folder.read_config(tmp_path / "jax") == config
    for refusing in (
        lambda path: RunFolder(path, config).__enter__(),
        run_folder.check_backend,
    ):
        with pytest.raises(
            run_folder.OtherBackendError,
            match=r"of the Keras backend jax.* on tensorflow.*KERAS_BACKEND=jax",
        ):
            refusing(tmp_path / "jax")
    monkeypatch.setattr(run_folder, "backend", lambda: "jax")
    with (
        RunFolder(tmp_path / "jax", config) as folder,
        pytest.raises(RunFolderError, match="another configuration"),
    ):
        folder.set_state(state)


def test_the_backend_is_known_without_keras(tmp_path):
    code = "from keras_fa.lab.run_folder import backend; print(backend(), end='')"
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    env = {**os.environ, "KERAS_FA_WATCHES": "1", "KERAS_HOME": str(tmp_path)}
    env.pop("KERAS_BACKEND", None)
    for given, expected in (({}, "torch"), ({"KERAS_BACKEND": "jax"}, "jax")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**env, **given}, capture_output=True
        )
        assert done.stdout.decode() == expected, done.stderr.decode()


def test_a_run_that_never_began_leaves_the_folder_free(tmp_path):
    with RunFolder(tmp_path, {"rule": "typo"}):
        pass
    with RunFolder(tmp_path, {"rule": "fa"}) as folder:
        folder.begin(-1)
    assert run_folder.read_config(tmp_path) == {"rule": "fa"}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        RunFolder(tmp_path, {}).__enter__()


def test_one_process_at_a_time_and_the_claim_dies_with_its_holder(tmp_path):
    program = (
        "import sys, time\n"
        "from keras_fa.lab.run_folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1], {})\n"
        "folder.__enter__()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        # Without TensorFlow, which this room does not need.
        env={**os.environ, "KERAS_FA_WATCHES": "1"},
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunFolderBusyError, match=f"process {holder.pid} on "):
        RunFolder(tmp_path, {}).__enter__()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with RunFolder(tmp_path, {}):
        pass


def test_resuming_drops_later_epochs_and_a_torn_line(tmp_path):
    with RunFolder(tmp_path, {}) as folder:
        for epoch in range(4):
            folder.log({"epoch": epoch})
        with open(folder.path / "metrics.jsonl", "a") as file:
            file.write('{"epoch": 4, "lo')
        read = run_folder.read_metrics(folder.path)
        assert [line["epoch"] for line in read] == [0, 1, 2, 3]
        folder.begin(2)
        folder.log({"epoch": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    run_folder.write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run_folder.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_cannot_begin_says_why(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="No space left on device"):
        run_folder.write_text(tmp_path / "x", "new")


def test_sync_waits_for_the_log_and_leaves_it_as_it_is(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    with RunFolder(tmp_path, {}) as folder:
        folder.log({"epoch": 1})
        assert synced == []
        path = folder.path / "metrics.jsonl"
        before = path.read_bytes()
        assert before.startswith(b'{"epoch": 1, ".crc": ')
        folder.sync()
    path = tmp_path / "metrics.jsonl"
    assert synced == [path.stat().st_ino]
    assert path.read_bytes() == before


def test_a_run_is_forgotten_if_it_ended_as_is_said(tmp_path):
    path = whole(tmp_path / "run")
    run_folder.forget(path, "diverged")
    assert run_folder.read_summary(path)["status"] == "finished"
    run_folder.forget(path, "finished")
    assert os.listdir(tmp_path) == []


def test_no_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"config\.json is missing"):
        run_folder.read_config(tmp_path)


# What is nobody's to touch.


def test_a_refused_run_leaves_no_trace(tmp_path):
    with RunFolder(tmp_path / "run", {"a": 1}) as folder:
        folder.begin(-1)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, before in (
        ("run", {"config.json", "metrics.jsonl"}),
        ("letters", {"mine.txt"}),
    ):
        with pytest.raises(RunFolderError):
            RunFolder(tmp_path / name, {"a": 2}).__enter__()
        assert set(os.listdir(tmp_path / name)) == before
    with pytest.raises(RunFolderError, match="is no folder"):
        RunFolder(tmp_path / "file", {"a": 2}).__enter__()


def test_what_a_kill_left_of_a_write_goes_at_the_next_start(tmp_path):
    left = tmp_path / f".summary.json.{os.getpid()}.tmp"
    left.write_text('{"sta')
    (tmp_path / ".hidden").write_text("mine")
    with RunFolder(tmp_path, {}) as folder:
        assert os.listdir(folder.path) == [".hidden"]
    left.write_text('{"sta')
    with subprocess.Popen(["sleep", "60"]) as living:
        of_a_living_process = tmp_path / f".x.json.{living.pid}.tmp"
        of_a_living_process.write_text("{")
        run_folder.tidy(tmp_path)
        assert not left.exists() and of_a_living_process.exists()
        # To look whether it is there does nothing to it.
        with pytest.raises(subprocess.TimeoutExpired):
            living.wait(0.2)
        living.kill()
    assert (tmp_path / ".hidden").exists()


# What is damaged is noticed, with the file's name and the remedy.


def whole(path, lines=4):
    """A finished run as this version leaves it."""
    with RunFolder(path, {"seed": 1, "log_every": 1}) as folder:
        folder.begin(-1)
        for epoch in range(lines):
            folder.log({"epoch": epoch, "loss": 1 / (1 + epoch), "seconds": epoch})
        final = {"epoch": lines - 1, "loss": 1 / lines, "seconds": lines - 1}
        folder.finish({"status": "finished", "epochs": lines - 1, "final": final})
    return path


def former(path):
    """The same as a version without checks left it."""
    whole(path)
    log = (path / "metrics.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in log]
    log = [{k: v for k, v in line.items() if k != ".crc"} for line in log]
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log))
    summary = json.loads((path / "summary.json").read_text())
    del summary[".checks"]
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def everything(path):
    return (
        run_folder.read_summary(path),
        run_folder.read_config(path),
        run_folder.read_metrics(path),
    )


def test_a_run_of_a_version_without_checks_reads_the_same(tmp_path):
    new, old = whole(tmp_path / "new"), former(tmp_path / "old")
    assert everything(new) == everything(old)
    assert [line.keys() for line in run_folder.read_metrics(new)] == [
        {"epoch", "loss", "seconds"}
    ] * 4
    # Gone on with, it has them.
    (old / "summary.json").unlink()
    with RunFolder(old, {"seed": 1, "log_every": 1}) as folder:
        folder.begin(3)
        folder.finish(run_folder.read_summary(new))
    assert (old / "metrics.jsonl").read_bytes() == (new / "metrics.jsonl").read_bytes()
    assert (old / "summary.json").read_bytes() == (new / "summary.json").read_bytes()


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.json"])
def test_no_flipped_bit_passes(tmp_path, name):
    path = whole(tmp_path / "run") / name
    content, right = path.read_bytes(), everything(tmp_path / "run")
    passed = []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            if everything(tmp_path / "run") != right:
                passed.append(position)
        except RunFolderError as error:
            assert str(path) in str(error) and "emove" in str(error)
    assert passed == []


@pytest.mark.parametrize("make", [whole, former])
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_shortened_or_deleted_log_of_a_finished_run_is_noticed(tmp_path, make, lines):
    path = make(tmp_path / "run") / "metrics.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[:lines]
    path.write_bytes(b"".join(kept))
    for read in (run_folder.read_summary, run_folder.read_metrics):
        with pytest.raises(RunFolderError, match=r"metrics\.jsonl is not the log"):
            read(tmp_path / "run")
    path.unlink()
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is not the log"):
        run_folder.read_frame(tmp_path / "run")


def test_a_log_without_a_line_from_its_middle_is_noticed_at_a_resume(tmp_path):
    path = former(tmp_path / "run")
    (path / "summary.json").unlink()
    log = path / "metrics.jsonl"
    first, _, *rest = log.read_text().splitlines(keepends=True)
    log.write_text(first + "".join(rest))
    with (
        RunFolder(path, {"seed": 1, "log_every": 1}) as folder,
        pytest.raises(RunFolderError, match=r"lacks lines .* epoch 3: .* epochs 1\."),
    ):
        folder.begin(3)


def test_another_runs_summary_is_refused(tmp_path):
    one, two = whole(tmp_path / "one"), tmp_path / "two"
    with RunFolder(two, {"seed": 2}) as folder:
        folder.begin(-1)
        folder.log({"epoch": 0})
    (two / "summary.json").write_bytes((one / "summary.json").read_bytes())
    with pytest.raises(RunFolderError, match="runs with different configurations"):
        run_folder.read_summary(two)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", r"Received: \[\]"),
        (b"null", "Received: None"),
        (b'"' + 100 * b"x", "Unterminated"),
        (b"\xff{}", "can't decode"),
        (b"[" * 100000, "recursion"),
    ],
)
@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_damaged_json_is_told_with_its_file_and_the_remedy(
    tmp_path, name, content, words
):
    path = whole(tmp_path / "run") / name
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=words) as caught:
        everything(tmp_path / "run")
    assert str(path) in str(caught.value)
    assert "emove" in str(caught.value)


def test_a_field_that_came_later_changes_nothing_at_its_default(tmp_path):
    now = {"epochs": 3, "checkpoint_every": 1, "checkpoint_every_seconds": 0.0}
    before = {"epochs": 3, "checkpoint_every": 1}
    # That of a run before there was the field, by its first version's own words.
    text = json.dumps(before, sort_keys=True)
    assert run_folder.identity(now) == hashlib.sha256(text.encode()).hexdigest()
    assert run_folder.identity({**now, "checkpoint_every_seconds": 60.0}) not in (
        run_folder.identity(now),
        run_folder.identity(before),
    )
    path = tmp_path / "run"
    with RunFolder(path, before) as folder:
        folder.begin(-1)
        state = folder.get_state()
        folder.log({"epoch": 0})
    with RunFolder(path, now) as folder:
        folder.begin(0)
        assert folder.get_state()["config"] == state["config"]
        folder.finish({"status": "finished"})
    assert run_folder.read_summary(path) == {"status": "finished"}
    assert run_folder.read_config(path) == now
    with pytest.raises(RunFolderError, match=r"_seconds: .*, 60.0 given"):
        RunFolder(path, {**now, "checkpoint_every_seconds": 60.0}).__enter__()


def _with_defaults(config, defaults):
    """A stored configuration as the code of today would write it."""
    new = {key: value for key, value in defaults.items() if key not in config}
    for key in ("dataset", "schedule", "instruments"):
        config = {**config, key: {**defaults[key], **config[key]}}
    return {**config, **new}


def test_what_is_stored_keeps_its_identity():
    """Else a new field, left at its default, would have every cell run again."""
    defaults = default_config().to_dict()
    lines = [
        json.loads(line)
        for path in (ROOT / "results" / "cells").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) > 60
    for one in lines:
        now = _with_defaults(one["config"], defaults)
        assert run_folder.identity(now) == one["identity"], one["cell"]
