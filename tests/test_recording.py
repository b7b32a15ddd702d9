"""Evaluation against Keras's own, the recorder's rhythm, and the progress bar."""

import io
import json
import math
import sys
import types

import keras
import numpy as np
import pytest
import rich.progress
import tensorflow as tf

from keras_fa import losses, models
from keras_fa.config import default_config
from keras_fa.lab import recording, run_folder, tracking

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(23, 6)).astype("float32")
LABELS = RANDOM.integers(0, 3, 23)
TARGETS = RANDOM.normal(size=(23, 3)).astype("float32")


def compiled(loss_name, jit_compile=False):
    model = models.mlp((6,), (8,), 3)
    loss, measures = losses.get(loss_name)
    model.compile(
        keras.optimizers.SGD(0.01),
        loss,
        metrics=[
            keras.metrics.MeanMetricWrapper(measure, name)
            for name, measure in measures.items()
        ],
        jit_compile=jit_compile,
    )
    return model, measures


@pytest.mark.slow
@pytest.mark.parametrize("loss_name", ["cross_entropy", "half_squared_error"])
@pytest.mark.parametrize(
    ("jit_compile", "regularized"), [(False, False), (False, True), (True, True)]
)
def test_evaluation_equals_keras(loss_name, jit_compile, regularized):
    model, measures = compiled(loss_name, jit_compile)
    if regularized:
        model.get_layer("dense_1").kernel.regularizer = keras.regularizers.L2(0.1)
        assert len(model.losses) == 1
    y = LABELS if loss_name == "cross_entropy" else TARGETS
    readings = []
    # One batch, several even ones, several with an odd last one.
    for size, batch_size in ((23, 23), (20, 5), (23, 5)):
        examples = tf.data.Dataset.from_tensor_slices((X[:size], y[:size]))
        batches = examples.batch(batch_size)
        evaluation = recording.Evaluation(batches, measures)
        evaluation.set_model(model)
        evaluation.on_train_begin()
        for _ in range(2):
            for variable in model.trainable_variables:
                variable.assign(0.9 * variable)
            logs = {"loss": 1.0}
            evaluation.on_epoch_end(0, logs)
            expected = model.evaluate(batches, verbose=0, return_dict=True)
            assert ("accuracy" in expected) == (loss_name == "cross_entropy")
            assert logs.keys() == {"loss", *(f"val_{key}" for key in expected)}
            for key, value in expected.items():
                # Keras adds the batches up in float32. Measured: 1e-7.
                assert logs[f"val_{key}"] == pytest.approx(value, rel=5e-7), key
            readings.append(logs["val_loss"])
    assert len(set(readings)) == 6


class _Checkpoints:
    def __init__(self):
        self.saved = []

    def save(self, epochs, batch=0):
        self.saved.append((epochs, batch) if batch else epochs)


def recorder(folder, **changes):
    config = default_config()
    config.update({"epochs": 10, "log_every": 2, "checkpoint_every": 4, **changes})
    made = recording.Recorder(folder, config, [], steps_per_epoch=3)
    made.checkpoints = _Checkpoints()
    made.set_model(compiled("cross_entropy")[0])
    return made


def test_checkpoints_come_at_their_epochs_and_at_the_end(tmp_path):
    with run_folder.RunFolder(tmp_path, {}) as folder:
        made = recorder(folder)
        for period in range(5):
            made.on_epoch_begin(period)
            made.on_epoch_end(period, {"loss": 1.0})
    assert made.checkpoints.saved == [4, 8, 10]
    lines = run_folder.read_metrics(tmp_path)
    assert [line["epoch"] for line in lines] == [2, 4, 6, 8, 10]
    assert [line["flow_time"] for line in lines] == pytest.approx(
        [0.01 * 3 * line["epoch"] for line in lines]
    )
    assert not made.diverged


def test_checkpoints_come_no_sooner_than_asked(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recording.time, "monotonic", lambda: clock[0])
    with run_folder.RunFolder(tmp_path, {}) as folder:
        made = recorder(
            folder, epochs=20, checkpoint_every=2, checkpoint_every_seconds=60.0
        )
        made.on_train_begin()
        for period in range(10):
            made.on_epoch_begin(period)
            # The first is as far from the beginning as the next from it.
            clock[0] += 25.0
            made.on_epoch_end(period, {"loss": 1.0})
            if made.checkpoints.saved == [6, 12] and period == 6:
                made.ends_next = True
                with pytest.raises(KeyboardInterrupt):
                    made.on_epoch_end(period + 1, {"loss": 1.0})
                made.ends_next = False
    assert made.checkpoints.saved == [6, 12, 16, 20]


def test_checkpoints_come_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recording.time, "monotonic", lambda: clock[0])
    with run_folder.RunFolder(tmp_path, {}) as folder:
        made = recorder(
            folder, epochs=6, checkpoint_every=6, checkpoint_every_seconds=60.0
        )
        made.on_train_begin()
        for period in range(3):
            made.on_epoch_begin(period)
            for batch in range(6):
                clock[0] += 25.0
                made.on_train_batch_end(batch)
            made.on_epoch_end(period, {"loss": 1.0})
    # Every third batch is late enough, but the last of a period has its end.
    assert made.checkpoints.saved == [(0, 3), (2, 1), (2, 4), (4, 1), (4, 4), 6]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_epoch_is_logged_but_not_kept(tmp_path, loss):
    with run_folder.RunFolder(tmp_path, {}) as folder:
        made = recorder(folder, checkpoint_every=2)
        made.on_epoch_begin(0)
        made.on_epoch_end(0, {"loss": loss})
    assert made.diverged and made.model.stop_training
    assert made.checkpoints.saved == []
    assert run_folder.read_metrics(tmp_path)[0]["loss"] is None


def test_the_clock(tmp_path, monkeypatch):
    clock, per_step = [100.0], []
    monkeypatch.setattr(recording.time, "perf_counter", lambda: clock[0])
    with run_folder.RunFolder(tmp_path, {}) as folder:
        made = recorder(folder)
        made.set_state({"seconds": 5.0})
        assert made.seconds_per_step() is None
        for period, training in enumerate((60.0, 3.0, 6.0, 12.0)):
            made.on_epoch_begin(period)
            clock[0] += training
            made.on_train_batch_end(0)
            clock[0] += 1.0  # evaluation and instruments
            made.on_epoch_end(period, {"loss": 1.0})
            per_step.append(made.seconds_per_step())
    # A period has 6 steps; the first, with the tracing, counts only while it is alone.
    assert per_step == [60 / 6, 3 / 6, 4.5 / 6, 6 / 6]
    assert made.get_state() == {"seconds": 5.0 + 60 + 3 + 6 + 12 + 4, "readings": []}
    logged = [line["seconds"] for line in run_folder.read_metrics(tmp_path)]
    assert logged == [66.0, 70.0, 77.0, 90.0]


def test_the_progress_bar_prints_lines_where_there_is_no_terminal(monkeypatch):
    clock, output = [100.0], io.StringIO()
    monkeypatch.setattr(recording.time, "monotonic", lambda: clock[0])
    console = rich.console.Console(file=output, force_terminal=False, width=120)
    monkeypatch.setattr(rich.progress, "get_console", lambda: console)
    config = default_config()
    config.update({"epochs": 10, "log_every": 2})
    bar = recording.ProgressBar(config, epoch=0)
    bar.on_train_begin()
    try:
        for period, seconds in enumerate((20, 20, 20, 20)):
            clock[0] += seconds
            bar.on_epoch_end(period, {"loss": 0.5, "val_accuracy": 0.75})
        lines = [line for line in output.getvalue().splitlines() if "epoch" in line]
    finally:
        bar.stop()
        bar.stop()
    # 30 seconds have gone by at the second and at the fourth look.
    assert [line.split(",")[0] for line in lines] == ["fa epoch 4/10", "fa epoch 8/10"]
    assert all(line.endswith("s left, loss 0.5, test 75.0%") for line in lines)


def test_a_notebooks_cell_shows_progress_without_widgets(monkeypatch):
    clock, shown = [100.0], []

    class Cell:
        def __init__(self, progress, display_id):
            assert display_id
            self.update(progress)

        def update(self, progress):
            shown.append(progress._repr_mimebundle_((), ())["text/plain"])

    # What IPython offers, as a kernel has it.
    notebook = types.ModuleType("IPython.display")
    notebook.display = Cell
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    monkeypatch.setattr(recording.time, "monotonic", lambda: clock[0])
    console = rich.console.Console(file=io.StringIO(), force_jupyter=True, width=120)
    monkeypatch.setattr(rich.progress, "get_console", lambda: console)
    config = default_config()
    config.update({"epochs": 4})
    bar = recording.ProgressBar(config, epoch=0)
    bar.on_train_begin()
    for epoch in range(4):
        clock[0] += 0.6
        bar.on_epoch_end(epoch, {"loss": 0.5})
    bar.stop()
    # At the start, after each second, and at the end.
    epochs = [line.partition("/4")[0][-1] for line in shown]
    assert epochs == ["0", "2", "4", "4"]
    assert "loss 0.5" in shown[-1]


def test_a_run_is_tracked_line_by_line(tmp_path):
    config = default_config()
    config.log_every = 2
    tracker = tracking.Tracker("tensorboard", config, tmp_path / "run")
    for period in range(3):
        tracker.on_epoch_end(period, {"loss": 1.0 / (period + 1), "name": "x"})
    tracker.stop()
    [path] = (tmp_path / "tensorboard" / "run").iterdir()
    found = {
        (value.tag, event.step): tf.make_ndarray(value.tensor)
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    losses = {step: float(v) for (tag, step), v in found.items() if tag == "loss"}
    assert losses == pytest.approx({2: 1.0, 4: 1 / 2, 6: 1 / 3})
    [text] = [v for (tag, _), v in found.items() if tag == "config"]
    assert b"optimizer.learning_rate: 0.01" in text.item()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="Unknown tracker: 'mlfow'"):
        tracking.Tracker("mlfow", config, tmp_path / "run")


def test_event_files_are_made_of_finished_runs(tmp_path):
    lines = [{"epoch": e, "loss": 1.0 / (e + 1), "val_loss": None} for e in range(3)]
    for name in ("grid/a", "grid/b", "open"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"rule": "fa", "epochs": 2}))
        log = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "metrics.jsonl").write_text(log)
        if name != "open":
            summary = {"status": "finished", "epochs": 2}
            (folder / "summary.json").write_text(json.dumps(summary))
    runs, logdir = tmp_path / "runs", tmp_path / "events"
    for _ in range(2):
        found = tracking.write_events(runs, logdir)
        assert [folder.name for folder in found] == ["a", "b"]
        # What was there before is gone, and nothing is told twice.
        [path] = (logdir / "grid" / "a").iterdir()
        losses = {
            event.step: float(tf.make_ndarray(value.tensor))
            for event in tf.compat.v1.train.summary_iterator(str(path))
            for value in event.summary.value
            if value.tag == "loss"
        }
        assert losses == pytest.approx({0: 1.0, 1: 1 / 2, 2: 1 / 3})
    assert not (logdir / "open").exists()
    tracking.write_events(runs / "grid" / "a", tmp_path / "one")
    assert len(list((tmp_path / "one" / "a").iterdir())) == 1
    # A run stays whole where its events are written into its own folder.
    for _ in range(2):
        tracking.write_events(runs, runs)
    names = sorted(path.name for path in (runs / "grid" / "a").iterdir())
    assert [name[:6] for name in names] == ["config", "events", "metric", "summar"]
    with pytest.raises(ValueError, match="no finished run"):
        tracking.write_events(tmp_path / "nothing", logdir)
