"""Attempts: whatever becomes of a process, a run folder has one writer's work."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from keras_fa.lab import attempts, run_folder
from keras_fa.lab.run_folder import RunFolder, RunFolderBusyError

CONFIG = {"seed": 1, "log_every": 1}
EPOCHS = 24


@pytest.fixture
def apart(monkeypatch):
    """A function that makes this process seem to be on another machine."""
    monkeypatch.setattr(attempts, "BEAT", 0.1)
    monkeypatch.setattr(attempts, "LEASE", 0.5)
    monkeypatch.setattr(attempts, "patience", 0.0)
    monkeypatch.setattr(attempts, "_seen", {})

    def be(name):
        monkeypatch.setattr(attempts, "machine", lambda: name)

    be("one")
    return be


def begin(path, epochs=3):
    """A run under way: a log of its first epochs and a checkpoint of the last."""
    folder = RunFolder(path, CONFIG)
    folder.__enter__()
    folder.begin(-1)
    for epoch in range(epochs):
        folder.log({"epoch": epoch})
    (folder.path / "checkpoints").mkdir()
    for end in ("data-00000-of-00001", "index"):
        (folder.path / "checkpoints" / f"epoch-{epochs - 1}.{end}").write_text("w")
    return folder


def freeze(folder):
    """Takes the heart of an attempt without the process: it was stopped."""
    folder._attempt._over.set()


def test_a_run_is_elsewhere_until_it_is_over(tmp_path):
    path = tmp_path / "run"
    with RunFolder(path, CONFIG) as folder:
        folder.begin(-1)
        folder.log({"epoch": 0})
        assert not path.exists()
        # Who reads it finds it.
        assert run_folder.place(path) == folder.path
        assert [line["epoch"] for line in run_folder.read_metrics(path)] == [0]
        assert run_folder.read_summary(path) is None
        folder.finish({"status": "finished"})
        assert run_folder.place(path) == folder.path == path
    assert os.listdir(tmp_path) == ["run"]
    names = {"config.json", "metrics.jsonl", "summary.json"}
    assert {*os.listdir(path)} == names


def test_what_is_given_up_goes_on_and_is_marked_as_begun(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), RunFolder(path, CONFIG) as folder:
        folder.begin(-1)
        folder.log({"epoch": 0})
        raise KeyboardInterrupt
    assert {*os.listdir(path)} == {"config.json", "metrics.jsonl"}
    assert os.listdir(tmp_path / attempts.HOME / "run") == []
    with RunFolder(path, CONFIG) as folder:
        folder.begin(0)
        folder.finish({"status": "finished"})
    assert os.listdir(tmp_path) == ["run"]


def test_the_folder_of_an_earlier_version_goes_on(tmp_path):
    path = tmp_path / "run"
    with RunFolder(path, CONFIG) as folder:
        folder.begin(-1)
        folder.log({"epoch": 0})
    (path / ".lock").write_text("")
    (tmp_path / attempts.HOME / "run").rmdir()
    (tmp_path / attempts.HOME).rmdir()
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "epoch-0.index").write_text("w")
    with RunFolder(path, CONFIG) as folder:
        folder.begin(0)
        assert (folder.path / "checkpoints" / "epoch-0.index").exists()
        folder.finish({"status": "finished"})
    assert run_folder.read_summary(path)["status"] == "finished"


def test_who_gives_signs_of_life_keeps_the_run(tmp_path, apart):
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        folder.begin(-1)
        apart("two")
        target = tmp_path / "run"
        assert attempts.held(target) == attempts.UNKNOWN
        deadline = time.monotonic() + 5
        while attempts.held(target) != attempts.ALIVE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Long after the lease.
        time.sleep(3 * attempts.LEASE)
        assert attempts.held(target) == attempts.ALIVE
        with pytest.raises(RunFolderBusyError, match=f"process {os.getpid()} on"):
            RunFolder(target, CONFIG).__enter__()


@pytest.mark.parametrize("first", ["the new one", "the old one", "who gave up"])
def test_who_was_taken_for_dead_and_goes_on_harms_nothing(tmp_path, apart, first):
    path = tmp_path / "run"
    old = begin(path)
    freeze(old)
    apart("two")
    assert attempts.held(path) == attempts.UNKNOWN
    time.sleep(attempts.LEASE)
    new = RunFolder(path, CONFIG)
    new.__enter__()
    assert new.path != old.path
    # Links, not copies; and the log is its own.
    [index] = (new.path / "checkpoints").glob("*.index")
    assert index.stat().st_nlink == 2
    new.begin(2)
    # Both at work.
    for epoch in range(3, EPOCHS):
        new.log({"epoch": epoch, "by": "new"})
        if epoch < 10 or first == "the old one":
            old.log({"epoch": epoch, "by": "old"})
    if first == "the new one":
        assert new.finish({"status": "finished", "by": "new"})["by"] == "new"
        # The old one's files are gone, and it is told so by the first write.
        with pytest.raises(FileNotFoundError):
            old.log({"epoch": 10})
        assert old.has_ended()
        old.__exit__()
    elif first == "the old one":
        assert old.finish({"status": "finished", "by": "old"})["by"] == "old"
        with pytest.raises(FileNotFoundError):
            new.log({"epoch": EPOCHS})
        new.__exit__()
    else:
        # It is newest no more, and leaves the folder to the other.
        old.__exit__()
        assert not path.exists()
        # Or it was, when it looked.
        os.rename(old.path, path) if old.path != path else os.mkdir(path)
        (path / "thesis.tex").write_text("what it gave back")
        assert new.finish({"status": "finished", "by": "new"})["by"] == "new"
    by = {"the old one": "old"}.get(first, "new")
    assert run_folder.read_summary(path)["by"] == by
    lines = run_folder.read_metrics(path)
    assert [line["epoch"] for line in lines] == [*range(EPOCHS)]
    assert {line.get("by", by) for line in lines} == {by}
    assert os.listdir(tmp_path) == ["run"]


def test_the_end_of_a_run_between_look_and_claim_is_seen(tmp_path, monkeypatch):
    path = tmp_path / "run"

    def claim(target, original=attempts.claim):
        monkeypatch.setattr(attempts, "claim", original)
        with RunFolder(path, CONFIG) as other:
            other.begin(-1)
            other.finish({"status": "finished"})
        return original(target)

    monkeypatch.setattr(attempts, "claim", claim)
    with RunFolder(path, CONFIG) as folder:
        assert folder.path == path
        assert folder.summary() == {"status": "finished"}
    assert os.listdir(tmp_path) == ["run"]


def test_an_attempt_that_died_while_it_took_over_loses_nothing(tmp_path, apart):
    path = tmp_path / "run"
    old = begin(path)
    freeze(old)
    attempts._own.clear()
    # The second died before it had the configuration, which comes last.
    second = tmp_path / attempts.HOME / "run" / "2" / "half"
    second.mkdir(parents=True)
    (second / "metrics.jsonl").write_text("")
    apart("two")
    assert attempts.held(path) == attempts.UNKNOWN
    time.sleep(attempts.LEASE)
    with RunFolder(path, CONFIG) as third:
        third.begin(2)
        assert (third.path / "checkpoints" / "epoch-2.index").exists()
        third.finish({"status": "finished"})
    assert len(run_folder.read_metrics(path)) == 3


def test_a_file_system_without_links_or_locks_will_do(tmp_path, apart, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "run"
    freeze(begin(path))
    attempts._own.clear()
    monkeypatch.setattr(os, "link", refuse)
    with RunFolder(path, CONFIG) as folder:
        [index] = (folder.path / "checkpoints").glob("*.index")
        assert index.stat().st_nlink == 1 and index.read_text() == "w"
        folder.begin(2)


def test_a_mount_point_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(run_folder.RunFolderError, match="is a mount point"):
        RunFolder(tmp_path, {}).__enter__()
    assert os.listdir(tmp_path) == []


# Two machines: processes that do not see each other's ids, and whose locks are not
# shared, since there are none. Each logs a line every 20 ms and keeps a checkpoint.
_HOST = f"""
import os, pathlib, sys, time
from keras_fa.lab import attempts, run_folder
attempts.BEAT, attempts.LEASE, attempts.patience = 0.1, 0.6, 1.0
path, who = pathlib.Path(sys.argv[1]), sys.argv[2]
attempts.machine = lambda: who
while not run_folder.is_over(path):
    try:
        with run_folder.RunFolder(path, {CONFIG!r}) as folder:
            if folder.summary() is not None:
                break
            kept = folder.path / "checkpoints"
            kept.mkdir(exist_ok=True)
            epochs = [int(p.stem.split("-")[1]) for p in kept.glob("*.index")]
            epoch = max(epochs, default=-1)
            folder.begin(epoch)
            print("began", flush=True)
            for epoch in range(epoch + 1, {EPOCHS}):
                folder.log({{"epoch": epoch, "by": who}})
                folder.sync()
                (kept / f"new-{{epoch}}").write_text(str(epoch))
                (kept / f"new-{{epoch}}").rename(kept / f"epoch-{{epoch}}.index")
                time.sleep(0.02)
            folder.finish({{"status": "finished", "by": who}})
    except run_folder.RunFolderBusyError:
        time.sleep(0.05)
    except OSError:
        if not run_folder.is_over(path):
            raise
print("over", flush=True)
"""


def host(path, name):
    return subprocess.Popen(
        [sys.executable, "-c", _HOST, str(path), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_FA_WATCHES": "1"},
    )


def stopped_and_continued(path, seconds, first_ends=False):
    """A holder that is stopped, taken over from, and goes on: what came of the run.

    `first_ends` stops the other one meanwhile, so that the first one's end is first.
    """
    first = host(path, "one")
    assert first.stdout.readline() == "began\n"
    while len(run_folder.read_metrics(path)) < 5:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    second = host(path, "two")
    assert second.stdout.readline() == "began\n", second.stderr.read()
    time.sleep(seconds)
    if first_ends:
        second.send_signal(signal.SIGSTOP)
    first.send_signal(signal.SIGCONT)
    if first_ends:
        first.wait(60)
        second.send_signal(signal.SIGCONT)
    for process in (first, second):
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert output.endswith("over\n")
    lines = run_folder.read_metrics(path)
    assert [line["epoch"] for line in lines] == [*range(EPOCHS)]
    names = {"config.json", "metrics.jsonl", "summary.json", "checkpoints"}
    assert {*os.listdir(path)} == names
    assert len([*(path / "checkpoints").iterdir()]) == EPOCHS
    return run_folder.read_summary(path)["by"]


def test_a_holder_that_is_stopped_and_continued_on_another_machine(tmp_path):
    stopped_and_continued(tmp_path / "run", 0.1)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.long
def test_twenty_of_twenty(tmp_path):
    ends = [
        stopped_and_continued(tmp_path / str(number), 0.01 * number, number % 2 == 1)
        for number in range(20)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {*map(str, range(20))}
    assert set(ends[1::2]) == {"one"}, ends


def test_the_claims_file_says_who_it_is(tmp_path):
    with RunFolder(tmp_path / "run", CONFIG):
        [holder] = pathlib.Path(tmp_path).glob(f"{attempts.HOME}/run/1/holder")
        found = json.loads(holder.read_text())
        assert found["pid"] == os.getpid()


def test_a_run_that_ends_while_it_is_read_is_read_where_it_is_then(
    tmp_path, monkeypatch
):
    path = tmp_path / "run"
    folder = begin(path)
    ends = [True]

    def place(target, original=attempts.place):
        found = original(target)
        if ends and ends.pop():
            folder.finish({"status": "finished"})
        return found

    monkeypatch.setattr(run_folder, "place", place)
    for read in (run_folder.read_summary, run_folder.read_metrics):
        assert read(path)
    run_folder.check(path, CONFIG)
    assert ends == []


def test_errors_name_the_run_folder(tmp_path):
    path = tmp_path / "run"
    with RunFolder(path, CONFIG) as folder:
        folder.begin(-1)
        folder.log({"epoch": 0})
        folder.log({"epoch": 1})
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text.replace('"epoch": 0', '"epoch": 9'))
    with (
        pytest.raises(run_folder.RunFolderError, match="line 1 is damaged") as found,
        RunFolder(path, CONFIG) as folder,
    ):
        folder.summary()
    assert str(path / "metrics.jsonl") in str(found.value)
    assert attempts.HOME not in str(found.value)


def test_a_worker_follows_the_one_that_writes_in_its_own_folder_alone(tmp_path):
    with RunFolder(tmp_path / "run", CONFIG) as chief:
        (chief.path / "seen").touch()
        for name, sees in (("run", True), ("beside", False)):
            worker = RunFolder(tmp_path / name, CONFIG, writes=False)
            worker.follow(chief.place)
            assert (worker.path / "seen").exists() is sees


def test_what_a_callback_lays_into_the_run_folder_stays(tmp_path):
    path = tmp_path / "run"
    with RunFolder(path, CONFIG) as folder:
        folder.begin(-1)
        path.mkdir()
        (path / "mine.csv").write_text("mine")
        folder.finish({"status": "finished"})
    assert (path / "mine.csv").read_text() == "mine"
    assert run_folder.read_summary(path) == {"status": "finished"}
    assert os.listdir(tmp_path) == ["run"]
