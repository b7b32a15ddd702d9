"""What the figures draw, read back from their axes, for logs written by hand."""

import keras
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from matplotlib import colors

from keras_fa import figures, models
from keras_fa.lab import run_folder
from keras_fa.papers import drawing

BLUE = "#0072b2"  # FA's


def run(folder, config, lines):
    config = {"rule": config} if isinstance(config, str) else config
    with run_folder.RunFolder(folder, config) as writer:
        writer.begin(-1)
        for epoch, line in enumerate(lines):
            writer.log({"epoch": epoch, **line})
    return folder


def line(axis, label):
    (found,) = [item for item in axis.get_lines() if item.get_label() == label]
    return found.get_ydata()


def names(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def looks(axis):
    return [(colors.to_hex(i.get_color()), i.get_linestyle()) for i in axis.lines]


def accuracies(*values):
    return [{"val_accuracy": value} for value in values]


def test_potentials_relative_to_the_start_rules_together(tmp_path):
    fa = run(tmp_path / "fa", "fa", [{"potential/d": v} for v in (4.0, 5.0, 6.0)])
    sign = run(tmp_path / "s", "sign_fa", [{"potential/d": v} for v in (-2.0, -2.0)])
    path = tmp_path / "figures" / "x.png"
    figure = figures.potential_ratio([fa, sign], path)
    assert path.stat().st_size > 5000
    (axis,) = figure.axes
    np.testing.assert_array_equal(line(axis, "FA"), [1, 1.25, 1.5])
    np.testing.assert_array_equal(line(axis, "sign-FA"), [1, 1])
    # Without epoch 0 the log does not hold Phi(0), unless the callback divided by it.
    assert figures.potential_ratio({"potential/d": [4.0, 5.0]}) is None
    figure = figures.potential_ratio({"potential_ratio/d": [1.5, 1.75]})
    np.testing.assert_array_equal(line(figure.axes[0], "run 1"), [1.5, 1.75])


def test_alignment_leaves_the_first_layer_out_and_draws_the_bound(tmp_path):
    logs = {"alignment/a": 0.1, "alignment/b": 0.5, "alignment_bound/b": 0.2}
    folder = run(tmp_path / "run", "sign_fa", [logs] * 3)
    (axis,) = figures.weight_alignment([folder]).axes
    assert axis.get_title() == "alignment of b"
    values = [tuple(item.get_ydata()) for item in axis.get_lines()]
    assert values == [(0.5,) * 3, (0.2,) * 3]
    (axis,) = figures.weight_alignment(folder, layers="a").axes
    assert axis.get_title() == "alignment of a"
    exact = {"alignment/a": 1.0, "alignment/b": 1.0, "alignment_bound/b": 1.0}
    (axis,) = figures.weight_alignment(run(tmp_path / "r", "backprop", [exact])).axes
    assert len(axis.get_lines()) == 1


def test_ledger_dots_are_the_sum_of_its_terms(tmp_path):
    logs = [
        {
            "ledger/measured/d": -1.0 * i,
            "ledger/squared_steps/d": -3.0 * i,
            "ledger/flips/d": 1.5 * i,
            "ledger/first_order/d": 0.5 * i,
        }
        for i in range(4)
    ]
    folder = run(tmp_path / "run", "sign_fa", logs)
    (axis,) = figures.drift_against_ledger([folder]).axes
    measured, predicted = axis.get_lines()
    np.testing.assert_array_equal(measured.get_ydata(), predicted.get_ydata())


def dominated(times=9):
    """Logs of dL/dt = -3 L^2: alpha = 3 at beta = 2, and the bound is the loss."""
    time = np.linspace(0, 2, times)
    loss = 1 / (3 * time + 0.5)
    return [
        {"flow_time": t, "gradient_loss": v, "gradient_inner": 3 * v**2}
        for t, v in zip(time, loss, strict=True)
    ]


def test_the_bound_holds_the_loss_and_needs_alpha_above_zero(tmp_path):
    logs = dominated()
    loss = [entry["gradient_loss"] for entry in logs]
    folder = run(tmp_path / "run", "fa", logs)
    (axis,) = figures.loss_bound([folder]).axes
    assert "3" in axis.get_title()
    np.testing.assert_allclose(line(axis, "bound"), loss, rtol=1e-12)
    np.testing.assert_array_equal(line(axis, "FA"), loss)
    logs[3]["gradient_inner"] = -0.1
    folder = run(tmp_path / "other", "fa", logs)
    with pytest.warns(UserWarning, match="FA: .* uphill"):
        assert figures.loss_bound([folder]) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"batch_size": 32}, "batch_size=32"),
        ({"optimizer": {"name": "sgd", "momentum": 0.9}}, "plain gradient descent"),
        ({"optimizer": {"name": "adam", "weight_decay": 0.0}}, "plain gradient"),
        ({"instruments": {"probe_size": 16}}, "probe_size=16"),
    ],
)
def test_the_bound_is_left_out_where_the_theorem_is_silent(tmp_path, fields, reason):
    folder = run(tmp_path / "run", {"rule": "fa", **fields}, dominated())
    with pytest.warns(UserWarning, match=reason):
        assert figures.loss_bound(folder) is None
    assert figures.loss_bound(folder, full_batch=True) is not None


def test_a_batch_as_large_as_the_set_is_the_full_batch(tmp_path):
    config = {"rule": "fa", "batch_size": 32, "instruments": {"probe_size": 32}}
    folder = run(tmp_path / "run", config, dominated())
    with run_folder.RunFolder(folder, config) as writer:
        writer.finish({"status": "finished", "dataset": {"train": 32}})
    assert figures.loss_bound(folder) is not None


def test_the_bound_of_a_history_needs_a_word_and_the_learning_rate():
    log = pd.DataFrame(dominated())
    time, loss = log.pop("flow_time").to_numpy(), log["gradient_loss"].to_numpy()
    with pytest.warns(UserWarning, match="full_batch=True"):
        assert figures.loss_bound(log) is None
    with pytest.raises(ValueError, match="learning_rate="):
        figures.loss_bound(log, full_batch=True)
    # An eighth of the time a step, from the first reading on.
    for given, arguments in (
        (log, {"learning_rate": 0.25}),
        (log.assign(learning_rate=0.25), {}),
    ):
        (axis,) = figures.loss_bound(given, full_batch=True, **arguments).axes
        np.testing.assert_allclose(axis.get_lines()[0].get_xdata(), time, rtol=1e-12)
        np.testing.assert_allclose(line(axis, "bound"), loss, rtol=1e-12)
    # The first reading may be that of the first epoch's end.
    late = pd.DataFrame(dominated()[2:])
    (axis,) = figures.loss_bound(late, full_batch=True).axes
    np.testing.assert_allclose(line(axis, "bound"), loss[2:], rtol=1e-12)


def test_gradient_decomposition_and_accuracy_in_percent(tmp_path):
    keys = ("gradient_cosine", "gradient_norm", "feedback_gradient_norm")
    logs = {key: 0.5 for key in (*keys, "gradient_inner", "accuracy", "val_accuracy")}
    folder = run(tmp_path / "run", "ada_fa", [logs] * 2)
    axes = figures.gradient_decomposition([folder]).axes
    assert [axis.get_yscale() for axis in axes] == ["linear", *["log"] * 3]
    uphill = pd.DataFrame([logs]).assign(gradient_inner=-0.5)
    (axis,) = figures.gradient_decomposition(uphill, keys="gradient_inner").axes
    assert axis.get_yscale() == "linear"
    axes = figures.accuracy([folder]).axes
    assert len(axes) == 2
    np.testing.assert_array_equal(line(axes[0], "adaFA"), [50, 50])


def test_runs_without_the_logs_give_no_figure(tmp_path):
    folder = run(tmp_path / "run", "fa", [{"loss": 1.0}])
    config = (folder / "config.json").read_text()
    for name in (
        "potential_ratio",
        "weight_alignment",
        "drift_against_ledger",
        "gradient_decomposition",
        "loss_bound",
        "accuracy",
    ):
        for runs in ([folder], [], {}, {"loss": [1.0]}):
            assert getattr(figures, name)(runs, tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()
    assert (folder / "config.json").read_text() == config


def fitted(rule, *callbacks, initial_epoch=0):
    model = models.mlp((4,), (3,), 2, rule=rule)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    x, y = np.ones((8, 4), "float32"), np.array([0, 1] * 4)
    return model.fit(
        x,
        y,
        epochs=3,
        initial_epoch=initial_epoch,
        verbose=0,
        callbacks=list(callbacks),
    )


@pytest.mark.slow
def test_a_history_its_dict_its_csv_file_and_its_frame_draw_the_same(tmp_path):
    path = tmp_path / "log.csv"
    history = fitted("fa", keras.callbacks.CSVLogger(path))
    table = pd.DataFrame(history.history)
    expected = 100 * np.array(history.history["accuracy"])
    for log, name in (
        (history, "FA"),
        (history.history, "run 1"),
        (path, "log.csv"),
        (str(path), "log.csv"),
        (table, "run 1"),
        (table.assign(epoch=range(3)), "run 1"),
        (table.assign(epoch=range(1, 4)), "run 1"),
        (pd.read_csv(path), "run 1"),
    ):
        # One panel: there was no validation, for which a CSVLogger has columns.
        figure = figures.accuracy(log)
        (axis,) = figure.axes
        assert names(figure) == [name]
        (curve,) = axis.get_lines()
        # What Keras calls epoch 0 is the end of the first.
        np.testing.assert_array_equal(curve.get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(curve.get_ydata(), expected)


@pytest.mark.slow
def test_a_history_that_went_on_says_so():
    history = fitted("fa", initial_epoch=1)
    (curve,) = figures.accuracy(history).axes[0].get_lines()
    np.testing.assert_array_equal(curve.get_xdata(), [2, 3])


def test_a_run_folders_frame_keeps_its_epoch_before_training(tmp_path):
    lines = [{}, {"loss": 1.0, "accuracy": 0.5}, {"loss": 0.5, "accuracy": 0.75}]
    folder = run(tmp_path / "run", "fa", lines)
    run_folder.read_frame(folder).to_csv(tmp_path / "copy.csv")
    for log in (folder, run_folder.read_frame(folder), tmp_path / "copy.csv"):
        (curve,) = figures.accuracy(log).axes[0].get_lines()
        np.testing.assert_array_equal(curve.get_xdata(), [1, 2])


@pytest.mark.slow
def test_columns_with_gaps_are_drawn_where_they_were_read(tmp_path):
    log = {"accuracy": [0.5, 0.75], "val_accuracy": [None, 0.25]}
    figure = figures.accuracy(pd.DataFrame(log))
    curves = [axis.lines[0] for axis in figure.axes]
    assert [list(curve.get_xdata()) for curve in curves] == [[1, 2], [2]]
    assert [curve.get_marker() for curve in curves] == ["None", "o"]
    history = fitted("fa")
    history.history["val_accuracy"] = [0.5]
    with pytest.warns(UserWarning, match="Left out: val_accuracy"):
        assert len(figures.accuracy(history).axes) == 1


def test_runs_of_one_rule_are_told_apart_by_seed_or_folder(tmp_path):
    lines = accuracies(0.1, 0.2)
    folders = [
        run(tmp_path / name / "fa", {"rule": "fa", "seed": seed}, lines)
        for name, seed in (("a", 0), ("b", 1), ("c", 1))
    ]
    sign = run(tmp_path / "s", "sign_fa", lines)
    assert names(figures.accuracy(folders[:2])) == ["FA, seed 0", "FA, seed 1"]
    figure = figures.accuracy([*folders, sign])
    assert names(figure) == ["FA, a", "FA, b", "FA, c", "sign-FA"]
    found = looks(figure.axes[0])
    assert found[0] == (BLUE, "-")
    assert len({color for color, _ in found}) == len({d for _, d in found[:3]}) + 1 == 4
    figure = figures.accuracy([folders[0], folders[0]])
    assert names(figure) == ["FA, run 1", "FA, run 2"]
    assert len(set(looks(figure.axes[0]))) == 2


def test_a_dict_and_labels_name_the_runs(tmp_path):
    folder = run(tmp_path / "run", "fa", accuracies(0.1))
    log = {"val_accuracy": [0.2, 0.3]}
    figure = figures.accuracy({"ours": folder, "fa": log, "other": log})
    assert names(figure) == ["ours", "fa", "other"]
    found = looks(figure.axes[0])
    assert found[0][0] == BLUE
    # Named after a rule, a log has its hue; the third has another.
    assert found[1][1] == "--" and found[2][1] == "-"
    found = looks(figures.accuracy({"one": log, "two": log}).axes[0])
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]
    assert names(figures.accuracy([folder, log], labels=["x", "y"])) == ["x", "y"]
    assert names(figures.accuracy(log, labels="mine")) == ["mine"]
    for labels in (["x"], ["x", "x"]):
        with pytest.raises(ValueError, match="distinct labels, one for each of the 2"):
            figures.accuracy([folder, log], labels=labels)


def test_rules_that_are_dicts_or_unknown_here(tmp_path):
    lines = accuracies(0.1)
    runs = [
        run(tmp_path / "a", {"rule": {"name": "sign_fa", "scale": 1.0}}, lines),
        run(tmp_path / "b", {"rule": "no_such_module:rule"}, lines),
        run(tmp_path / "c", {"rule": {"name": "new"}}, lines),
    ]
    figure = figures.accuracy(runs)
    assert names(figure) == ["sign-FA", "no_such_module:rule", "new"]
    assert len(set(looks(figure.axes[0]))) == 3


def test_one_panel_goes_into_the_users_axes(tmp_path):
    logs = {"alignment/a": 0.1, "alignment/b": 0.5, "alignment/c": 0.6}
    folder = run(tmp_path / "run", "fa", [logs] * 2)
    mine = matplotlib.figure.Figure()
    left, right = mine.subplots(1, 2)
    with pytest.raises(ValueError, match=r"has 2\. Choose one with layers: b, c"):
        figures.weight_alignment(folder, ax=left)
    assert figures.weight_alignment(folder, layers=["c"], ax=right) is mine
    assert not left.lines
    np.testing.assert_array_equal(line(right, "FA"), [0.6, 0.6])
    with pytest.raises(ValueError, match=r"no 'bb' to draw\. Did you mean .b."):
        figures.weight_alignment(folder, layers="bb")


def test_legends_cross_no_axes(tmp_path):
    logs = {"accuracy": [0.1, 0.9], "val_accuracy": [0.1, 0.9]}
    figure = figures.accuracy({f"a run of number {i}": logs for i in range(12)})
    figure.draw_without_rendering()
    assert len(set(looks(figure.axes[0]))) == 12
    (box,) = [legend.get_window_extent() for legend in figure.legends]
    assert box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axis.get_window_extent()) for axis in figure.axes)
    mine = matplotlib.figure.Figure(layout="constrained")
    axis = mine.subplots()
    figures.accuracy(logs, keys="accuracy", ax=axis)
    mine.draw_without_rendering()
    box = axis.get_legend().get_window_extent()
    assert axis.get_window_extent().x1 <= box.x0 and box.x1 <= mine.bbox.x1


def test_a_notebook_shows_the_figure_without_pyplot():
    figure = figures.accuracy({"accuracy": [0.1, 0.9]})
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    log = {"accuracy": [0.1, 0.9]}
    path = tmp_path / "new" / "x.pdf"
    figures.accuracy(log, path)
    before = path.read_bytes()
    assert before.startswith(b"%PDF")

    def fail(self, file, **arguments):
        open(file, "w").close()
        raise OSError("No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        figures.accuracy(log, path)
    assert [p.name for p in path.parent.iterdir()] == ["x.pdf"]
    assert path.read_bytes() == before


def test_what_is_no_log_is_refused(tmp_path):
    for wrong in (3, [0.5], {"fa": 0.5}, [None]):
        with pytest.raises(TypeError, match=r"Expected a run folder.*Received"):
            figures.accuracy(wrong)
    (tmp_path / "log.csv").write_text("epoch;loss\n0;1.0\n")
    with pytest.raises(ValueError, match=r"CSVLogger.*log\.csv.*DataFrame"):
        figures.accuracy(tmp_path / "log.csv")
    with pytest.raises(FileNotFoundError, match=r'Did you mean "log\.csv"'):
        figures.accuracy(tmp_path / "logs.csv")
    with pytest.raises(run_folder.RunFolderError, match="No run in"):
        figures.accuracy(tmp_path)


def test_a_search_draws_the_best_so_far_and_each_field(tmp_path):
    space = {"rate": {"min": 0.1, "max": 1, "log": True}, "rule": {"choices": ["fa"]}}
    rows = {"trial": ["0", "1", "2"], "val_loss": [3.0, None, 2.0]}
    table = pd.DataFrame({**rows, "rate": [0.1, 0.2, 0.4], "rule": ["fa"] * 3})
    best, rate, _ = figures.search(table, "val_loss", space, tmp_path / "x.png").axes
    np.testing.assert_array_equal(best.get_lines()[0].get_ydata(), [3, 2])
    assert rate.get_xscale() == "log"
    axis = matplotlib.figure.Figure().subplots()
    figures.search(table, "val_loss", space, fields="rate", ax=axis)
    assert axis.get_xlabel() == "rate"
    assert figures.search(table[1:2], "val_loss", space) is None


def test_a_long_legend_leaves_the_panel_its_width():
    def draw(axis, item):
        axis.plot(
            [0, 1], [0, 1], label="isometric, inverse square, T ~ sqrt(p), n = 50"
        )

    figure = figures.grid(["one"], draw)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    # Measured: 3.2 inches; 0.6 where the legend's width is not added.
    assert axis.get_position().width * figure.get_figwidth() > 2.5


def test_a_legend_keeps_its_order_whatever_the_panels_have():
    lines = {"one": ["0", "5", "other"], "two": ["1", "5"]}

    def draw(axis, item):
        for label in lines[item]:
            axis.plot([0, 1], [0, 1], label=label)

    for order, expected in (
        ((), ["0", "5", "other", "1"]),
        (("0", "1", "2", "5"), ["0", "1", "5", "other"]),
    ):
        (legend,) = figures.grid(list(lines), draw, order=order).legends
        assert [text.get_text() for text in legend.get_texts()] == expected


@pytest.mark.parametrize(
    ("values", "written"),
    [([0.2, 1.0, 3.0], ["0.2", "0.3", "0.5", "1", "2", "3"]), ([1e-6, 1e-3, 1.0], [])],
)
def test_a_short_logarithmic_axis_is_written_out(
    values, written, tmp_path, monkeypatch
):
    made = []

    def kept(*arguments):
        made.append(figures.grid(*arguments))
        return made[0]

    monkeypatch.setattr(drawing, "grid", kept)
    panels = {"": {"a": (np.arange(3), np.asarray([values]))}}
    drawing.curves(panels, tmp_path / "figure.png", "x", "y", {"a": "k"}, yscale="log")
    (axis,) = made[0].axes
    shown = {tick.get_text() for tick in axis.get_yticklabels(which="both")}
    assert shown >= set(written)
    assert written or all("10^" in text for text in shown if text)
