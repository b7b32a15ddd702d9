"""What the figures draw, read back from their axes, for logs written by hand."""

import json

import matplotlib.figure
import numpy as np
import pytest

from keras_fa import figures
from keras_fa.lab import run_folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order."""
    saved = []
    save = matplotlib.figure.Figure.savefig

    def record(self, *arguments, **keywords):
        saved.append(self)
        save(self, *arguments, **keywords)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", record)
    return saved


def run(folder, rule, lines):
    with run_folder.RunFolder(folder, {"rule": rule}) as writer:
        writer.begin(-1)
        for epoch, line in enumerate(lines):
            writer.log({"epoch": epoch, **line})
    return folder


def line(axis, label):
    (found,) = [item for item in axis.get_lines() if item.get_label() == label]
    return found.get_ydata()


def test_potentials_relative_to_the_first_line_rules_together(tmp_path, drawn):
    fa = run(tmp_path / "fa", "fa", [{"potential/d": v} for v in (4.0, 5.0, 6.0)])
    sign = run(tmp_path / "s", "sign_fa", [{"potential/d": v} for v in (-2.0, -2.0)])
    path = figures.potential_ratio([fa, sign], tmp_path / "figures" / "x.png")
    assert path.stat().st_size > 5000
    (axis,) = drawn[0].axes
    np.testing.assert_array_equal(line(axis, "FA"), [1, 1.25, 1.5])
    np.testing.assert_array_equal(line(axis, "sign-FA"), [1, 1])


def test_alignment_leaves_the_first_layer_out_and_draws_the_bound(tmp_path, drawn):
    logs = {"alignment/a": 0.1, "alignment/b": 0.5, "alignment_bound/b": 0.2}
    folder = run(tmp_path / "run", "sign_fa", [logs] * 3)
    figures.weight_alignment([folder], tmp_path / "x.png")
    (axis,) = drawn[0].axes
    assert axis.get_title() == "alignment of b"
    values = [tuple(item.get_ydata()) for item in axis.get_lines()]
    assert values == [(0.5,) * 3, (0.2,) * 3]


def test_ledger_dots_are_the_sum_of_its_terms(tmp_path, drawn):
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
    figures.drift_against_ledger([folder], tmp_path / "x.png")
    measured, predicted = drawn[0].axes[0].get_lines()
    np.testing.assert_array_equal(measured.get_ydata(), predicted.get_ydata())


def test_the_bound_holds_the_loss_and_needs_alpha_above_zero(tmp_path, drawn):
    time = np.linspace(0, 2, 9)
    loss = 1 / (3 * time + 0.5)  # dL/dt = -3 L^2: alpha = 3 at beta = 2
    logs = [
        {"flow_time": t, "gradient_loss": v, "gradient_inner": 3 * v**2}
        for t, v in zip(time, loss, strict=True)
    ]
    folder = run(tmp_path / "run", "fa", logs)
    figures.loss_bound([folder], tmp_path / "x.png")
    (axis,) = drawn[0].axes
    assert "3" in axis.get_title()
    np.testing.assert_allclose(line(axis, "bound"), loss, rtol=1e-12)
    np.testing.assert_array_equal(line(axis, "FA"), loss)
    logs[3]["gradient_inner"] = -0.1
    folder = run(tmp_path / "other", "fa", logs)
    assert figures.loss_bound([folder], tmp_path / "x.png") is None


def test_gradient_decomposition_and_accuracy_in_percent(tmp_path, drawn):
    keys = ("gradient_cosine", "gradient_norm", "feedback_gradient_norm")
    logs = {key: 0.5 for key in (*keys, "gradient_inner", "accuracy", "val_accuracy")}
    folder = run(tmp_path / "run", "ada_fa", [logs] * 2)
    figures.gradient_decomposition([folder], tmp_path / "x.png")
    assert len(drawn[0].axes) == 4
    assert [axis.get_yscale() for axis in drawn[0].axes] == ["linear", *["log"] * 3]
    figures.accuracy([folder], tmp_path / "y.png")
    np.testing.assert_array_equal(line(drawn[1].axes[0], "adaFA"), [50, 50])


def test_runs_without_the_logs_give_no_figure(tmp_path):
    folder = run(tmp_path / "run", "fa", [{"loss": 1.0}])
    for name in (
        "potential_ratio",
        "weight_alignment",
        "drift_against_ledger",
        "gradient_decomposition",
        "loss_bound",
        "accuracy",
    ):
        assert getattr(figures, name)([folder], tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()
    assert json.loads((folder / "config.json").read_text()) == {"rule": "fa"}
