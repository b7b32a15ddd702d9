"""What is watched: curves of the logs, lines, a notebook's figure, snapshots."""

import io
import sys
import types

import keras
import numpy as np
import PIL.Image
import pytest

from keras_fa import analysis, callbacks, figures, layers, live, models

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(48, 6)).astype("float32")
Y = RANDOM.integers(0, 3, 48)


def compiled(rule="fa"):
    model = models.mlp((6,), (8,), 3, rule=rule)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def driven(watch, *epochs, verbose=0):
    """Hands logs over as `fit` does, without a model; an epoch has one step."""
    steps = types.SimpleNamespace(iterations=np.array(0))
    watch.set_model(types.SimpleNamespace(optimizer=steps))
    watch.set_params({"verbose": verbose})
    watch.on_train_begin()
    for epoch, logs in enumerate(epochs):
        watch.on_epoch_begin(epoch)
        steps.iterations = steps.iterations + 1
        watch.on_epoch_end(epoch, logs)
    watch.on_train_end()


def test_what_fit_logs_is_shown_and_w_and_b_are_kept(capsys):
    model = compiled()
    by_steps = callbacks.WeightAlignment(every=4, unit="step")
    watch, kept = live.Watch(["*alignment/dense_2"]), live.Snapshots(every=2)
    start = np.array(model.layers[-1].kernel)
    history = model.fit(
        X,
        Y,
        batch_size=8,
        epochs=3,
        verbose=0,
        callbacks=[by_steps, callbacks.WeightAlignment(prefix="its_"), watch, kept],
    ).history
    # The readings after steps are shown once, those of epochs at their ends.
    ends = "its_alignment/dense_2"
    assert watch.curves.keys() == {"alignment/dense_2", ends}
    assert watch.curves[ends] == ([6, 12, 18], history[ends])
    steps, values = watch.curves["alignment/dense_2"]
    assert steps == [4, 8, 12, 16]
    assert values == [entry["alignment/dense_2"] for entry in by_steps.history]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("alignment/dense_2 ")
    assert lines[-1].endswith(f" {history[ends][-1]:.3f}")

    assert kept.layer == "dense_2"
    assert [snapshot.epoch for snapshot in kept.taken] == [0, 2]
    first = kept.taken[0]
    np.testing.assert_array_equal(first.kernel, start)
    np.testing.assert_array_equal(first.feedback, np.array(model.layers[-1].feedback))
    # A copy, and not what goes on being trained.
    assert np.abs(kept.taken[1].kernel - start).max() > 1e-3


def test_snapshots_name_what_is_missing_and_take_a_kernel_as_a_matrix():
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), layers.FeedbackConv2D(3, 2, rule="sign_fa")]
    )
    kept = live.Snapshots()
    kept.set_model(model)
    kept.on_epoch_begin(0)
    snapshot = kept.taken[0]
    assert snapshot.kernel.shape == snapshot.feedback.shape == (8, 3)
    cosine = np.sum(snapshot.kernel * snapshot.feedback) / (
        np.linalg.norm(snapshot.kernel) * np.linalg.norm(snapshot.feedback)
    )
    (expected,) = analysis.weight_alignment(model).values()
    assert cosine == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="every"):
        live.Snapshots(every=0)
    kept = live.Snapshots("conv2")
    kept.set_model(model)
    with pytest.raises(ValueError, match=r"no feedback layer 'conv2'.* It has "):
        kept.on_epoch_begin(0)
    direct = models.mlp((6,), (8,), 3, rule="dfa")
    kept = live.Snapshots("dense_1")
    kept.set_model(direct)
    with pytest.raises(ValueError, match="sends nothing back"):
        kept.on_epoch_begin(0)


def test_a_sparkline_has_the_scale_of_cosines_or_that_of_its_values():
    assert live.sparkline([-0.2, 0.0, 0.5, np.nan, 1.0]) == "·▁▅ █"
    assert live.sparkline([10, 20, 30]) == "▁▅█"
    assert live.sparkline([7, 7]) == "▁▁"
    assert len(live.sparkline(np.zeros(100))) == 24


def test_a_quiet_terminal_has_one_line_that_is_written_over(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    logs = [{"a": 0.0}, {"a": 1.0}]
    monkeypatch.setattr(sys, "stdout", Terminal())
    # Each drawing is asked for at once here.
    monkeypatch.setattr(live._Pace, "ready", lambda self: True)
    driven(live.Watch(["a"]), *logs)
    last = "\ra ▁█ 1.000\x1b[K"
    assert sys.stdout.getvalue() == f"\ra ▁ 0.000\x1b[K{last}{last}\n"
    # Where `fit` prints lines itself each of ours is one more.
    monkeypatch.setattr(sys, "stdout", Terminal())
    driven(live.Watch(["a"]), *logs, verbose=1)
    assert sys.stdout.getvalue() == "a ▁ 0.000\na ▁█ 1.000\n"


def test_a_notebook_has_one_figure_that_is_drawn_anew(monkeypatch, capsys):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(("again", figure._repr_png_()))

    def display(figure, display_id):
        assert display_id is True
        shown.append(("first", figure._repr_png_()))
        return Handle()

    notebook = types.ModuleType("IPython")
    notebook.version_info = (9, 18)
    notebook.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    notebook.display = types.ModuleType("IPython.display")
    notebook.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook.display)
    monkeypatch.setattr(live._Pace, "ready", lambda self: True)
    driven(live.Watch(["a*"]), {"a": 0.1, "ab": -0.2}, {"a": 0.3, "ab": 0.0})
    assert [when for when, _ in shown] == ["first", "again", "again"]
    assert all(image.startswith(b"\x89PNG") for _, image in shown)
    assert shown[0] != shown[1]
    assert capsys.readouterr().out == ""
    # In a terminal IPython has no kernel.
    notebook.get_ipython = lambda: types.SimpleNamespace()
    driven(live.Watch(["a"]), {"a": 0.1})
    assert capsys.readouterr().out == "a ▂ 0.100\n"


def test_the_cosines_are_shown_unless_something_else_is_asked_for(capsys):
    logs = {
        "loss": 2.0,
        "alignment/a": 0.1,
        "alignment/b": 0.2,
        "alignment_bound/b": 0.0,
        "gradient_cosine": 0.3,
        "gradient_cosine/a": 0.4,
        "error_cosine/a": 0.5,
    }
    # The first layer's B is read by nothing, unless there is no other.
    for left_out, expected in [
        ([], ["alignment/b", "gradient_cosine", "error_cosine/a"]),
        (["alignment/b"], ["alignment/a", "gradient_cosine", "error_cosine/a"]),
    ]:
        watch = live.Watch()
        driven(watch, {k: v for k, v in logs.items() if k not in left_out})
        assert list(watch.curves) == expected
    capsys.readouterr()


def test_nothing_to_show_is_told():
    with pytest.raises(ValueError, match=r"looks for alignment/\*.* found loss"):
        driven(live.Watch(), {"loss": 1.0})
    with pytest.raises(TypeError, match=r"keys=\['loss'\]"):
        live.Watch("loss")


def turning(degrees):
    """Snapshots of one row of W at some angles to B, as long as the angle is large."""
    return [
        live.Snapshot(
            epoch,
            (1 + a / 90) * np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))]]),
            np.array([[2.0, 0.0]]),
        )
        for epoch, a in enumerate(degrees)
    ]


def test_arrows_have_the_angles_of_the_rows_and_their_lengths(tmp_path):
    path = tmp_path / "aligning.png"
    taken = turning([120, 90, 60, 45, 30, 15])
    figure = figures.aligning(taken, path, steps=3)
    assert path.stat().st_size > 5000
    compasses, scatters = figure.axes[:3], figure.axes[3:]
    # Denser at the start: of six moments the first, the second and the last.
    for axis, snapshot, angle in zip(
        compasses, [taken[0], taken[1], taken[5]], [120, 90, 15], strict=True
    ):
        arrow, b = axis.collections
        long = (1 + angle / 90) / (1 + 120 / 90)
        assert arrow.U[0] == pytest.approx(long * np.cos(np.radians(angle)), abs=1e-9)
        assert arrow.V[0] == pytest.approx(long * np.sin(np.radians(angle)), abs=1e-9)
        assert (b.U[0], b.V[0]) == (1.1, 0)
        cosine = np.cos(np.radians(angle))
        assert axis.get_title() == f"epoch {snapshot.epoch}: cos(W, B) = {cosine:.2f}"
    points, line = scatters[2].get_lines()
    np.testing.assert_array_equal(points.get_xdata(), [2, 0])
    np.testing.assert_array_equal(points.get_ydata(), taken[5].kernel[0])
    slope = np.diff(line.get_ydata()) / np.diff(line.get_xdata())
    assert slope == pytest.approx(taken[5].kernel[0, 0] * 2 / 4)
    with pytest.raises(ValueError, match="no snapshot"):
        figures.aligning([])
    with pytest.raises(ValueError, match="steps"):
        figures.aligning(taken, steps=1)


@pytest.mark.slow
def test_the_animation_has_a_frame_for_each_snapshot(tmp_path):
    path = tmp_path / "aligning.gif"
    animation = figures.aligning_animation(turning([90, 30]), path)
    with PIL.Image.open(path) as image:
        assert image.n_frames == 2
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert 'src="data:image/gif;base64,R0lG' in animation._repr_html_()
    with pytest.raises(ValueError, match=r'"\.gif"'):
        figures.aligning_animation(turning([90]), tmp_path / "x.mp4")
