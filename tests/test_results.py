"""The run folder: whole files, one owner, torn lines, other configurations."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from keras_fa.lab import run_folder
from keras_fa.lab.run_folder import RunFolder, RunFolderBusyError, RunFolderError


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


def test_one_process_at_a_time_and_the_lock_dies_with_its_holder(tmp_path):
    program = (
        "import sys, time\n"
        "from run_folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1], {})\n"
        "folder.__enter__()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    # Importing the package would load TensorFlow; this room alone does not need it.
    source = os.path.dirname(run_folder.__file__)
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunFolderBusyError, match="Another process"):
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
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"epoch": 4, "lo')
        assert [line["epoch"] for line in run_folder.read_metrics(tmp_path)] == [
            0,
            1,
            2,
            3,
        ]
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


def test_sync_waits_for_the_log_and_leaves_it_as_it_is(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    with RunFolder(tmp_path, {}) as folder:
        folder.log({"epoch": 1})
        assert synced == []
        folder.sync()
    path = tmp_path / "metrics.jsonl"
    assert synced == [path.stat().st_ino]
    assert path.read_text() == '{"epoch": 1}\n'


def test_clear_takes_the_results_and_leaves_the_configuration(tmp_path):
    config = {"seed": 1}
    with RunFolder(tmp_path, config) as folder:
        folder.clear()  # nothing there yet
        folder.begin(-1)
        folder.log({"epoch": 1})
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "epoch-1.index").write_text("weights")
        folder.finish({"status": "finished"})
        folder.clear()
        assert folder.summary() is None
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"config.json"}
    assert run_folder.read_config(tmp_path) == config
    assert run_folder.read_metrics(tmp_path) == []


def test_no_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"config\.json is missing"):
        run_folder.read_config(tmp_path)
