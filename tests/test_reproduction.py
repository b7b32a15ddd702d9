"""The papers' tables from run folders whose numbers are known."""

import ast
import json
import math
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest

from keras_fa import analysis, papers, sweeps
from keras_fa.analysis._alignment import Alignment
from keras_fa.lab import build, plans, records, run_folder
from keras_fa.layers import feedback_layers
from keras_fa.papers import (
    akrout,
    audits,
    claims,
    class_subsets,
    drawing,
    measured,
    mnist_errors,
    noisy_mnist,
    precision,
    printed,
    report,
    sections,
    song,
    standing,
    theorems,
    theory,
)

ROOT = pathlib.Path(__file__).parents[1]
GRIDS = sorted((ROOT / "configs" / "grids").glob("*.py"))


def grid(name):
    found = plans.read_plan("grid", ROOT / "configs" / "grids" / f"{name}.py")
    return found["config"], found["axes"]


def leave(cell, root, lines, status="finished"):
    """A run folder as a run leaves it, with log lines of our choosing."""
    folder = root / cell.name
    with run_folder.RunFolder(folder, cell.config.to_dict()) as run:
        run.begin(-1)
        for line in lines:
            run.log(line)
        environment = {"keras_fa": "0", "devices": []}
        run.finish({"status": status, "final": lines[-1], "environment": environment})
    return folder


def table3_runs(root, axes, value):
    """Runs of table 3's grid: inner 0, |W1|^2 = 2 and then 2 (1 + deviation)."""
    config, _ = grid("table3")
    cells = sweeps.cells(config, axes)
    for cell in cells:
        deviation = value(cell)
        lines = []
        for epoch, factor in ((0, 1.0), (5, 1 + deviation)):
            lines.append(
                {
                    "epoch": epoch,
                    "loss": 0.5,
                    "accuracy": 0.8,
                    "val_loss": 0.4,
                    "val_accuracy": 0.9,
                    "norm/dense_1": math.sqrt(2 * factor),
                    "inner/dense_2": 0.0,
                    "potential/dense_1": -factor,
                    "alignment/dense_2": 0.9 if cell.config.rule == "ada_fa" else 0.8,
                    "alignment_bound/dense_2": 0.1,
                }
            )
        leave(cell, root, lines)
    return cells


def section(name="table3", **fields):
    return papers.Section(name, "Title", "source", **fields)


def test_aggregate_gives_mean_deviation_and_standard_error():
    table = pd.DataFrame({"a": [1, 1, 1, 2], "v": [1.0, 2.0, 6.0, 5.0]})
    one, two = run_folder.aggregate(table, ["a"], ["v"]).to_dict("records")
    assert one["v_mean"] == 3 and one["seeds"] == 3
    assert one["v_sd"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert one["v_se"] == pytest.approx(one["v_sd"] / math.sqrt(3))
    assert two["v_mean"] == 5 and two["seeds"] == 1 and math.isnan(two["v_se"])


def test_differences_are_in_combined_standard_errors():
    ours = pd.DataFrame(
        {
            "width": [15, 15, 17],
            "rule": ["fa", "backprop", "fa"],
            "mean": [1.0, 22.3, 1.0],
            "se": [0.8, math.nan, 0.1],
            "seeds": [2, 1, 2],
        }
    )
    paper = {(15, "fa"): (2.0, 0.6), (15, "backprop"): (19.1, 3.2)}
    first, second, third = sections.compare(ours, paper, ["width", "rule"]).to_dict(
        "records"
    )
    assert first["method"] == "FA" and first["paper"] == "2 ± 0.6"
    assert first["ours"] == "1.00 ± 0.80"
    assert first["difference / combined SE"] == "-1.0"
    assert first["verdict"] == "agrees"
    # Of a single run nothing is known of its error.
    assert second["verdict"] == "not comparable" and second["n"] == 1
    assert third["paper"] == "-" and third["verdict"] == "not comparable"
    apart = ours.assign(mean=[5.0, 22.3, 1.0], se=[0.8, 0.1, 0.1])
    verdicts = sections.compare(apart, paper, ["width", "rule"])["verdict"]
    assert list(verdicts) == ["larger", "agrees", "not comparable"]
    assert sections.tally(verdicts) == (
        False,
        "1 agrees, 1 larger, 1 not comparable",
    )
    assert sections.tally(["not comparable"]) == (None, "1 not comparable")
    below = sections.compare(ours.assign(mean=0.1, se=0.1), paper, ["width", "rule"])
    assert list(below["verdict"])[:2] == ["smaller", "smaller"]


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (61.63, 0.4, "61.63 ± 0.40"),
        (0.0061, 0.0021, "0.0061 ± 0.0021"),
        (22.31, 13.2, "22 ± 13"),
        (5.0, math.nan, "5"),
        (1.0, 0.0, "1"),
        (1.0, 8e-17, "1"),
    ],
)
def test_numbers_have_the_digits_that_their_error_allows(mean, error, text):
    assert sections.plus_minus(mean, error) == text


def test_bands_on_a_logarithmic_axis_stay_above_zero():
    values = np.array([[1e-4, 2.0], [1e-2, 2.0]])
    assert drawing.band(values, "sd")[0, 0] < 0
    low, middle, high = drawing.band(values, "sd", log=True)
    factor = 10 ** np.sqrt(2)  # the logarithms to base 10 are -4 and -2
    np.testing.assert_allclose(low, [1e-3 / factor, 2.0])
    np.testing.assert_allclose(middle, [1e-3, 2.0])
    np.testing.assert_allclose(high, [1e-3 * factor, 2.0])


def test_one_run_has_no_band():
    np.testing.assert_array_equal(drawing.band([[3.0, 4.0]]), [[3.0, 4.0]] * 3)


def test_table3_and_its_checks(tmp_path):
    axes = [
        {"seed": [0, 1]},
        {"model.hidden_units": [(15,), (200,)]},
        {"rule": ["fa", "backprop"]},
    ]
    # Width 200's GD lies above the paper's 0.2 + 2 * 0.004 on purpose.
    values = {(15, "fa"): 0.2, (15, "backprop"): 9.0, (200, "fa"): 0.004}
    values[200, "backprop"] = 0.5

    def value(cell):
        base = values[cell.config.model.hidden_units[0], cell.config.rule]
        return base * (1 if cell.config.seed == 0 else 3)

    table3_runs(tmp_path, axes, value)
    runs = papers.read_runs(tmp_path)
    assert len(runs) == 8
    made = section()
    noisy_mnist.table3(made, runs, tmp_path)
    table = made.data["table3.csv"]
    columns = ["width", "method", "deviation_mean", "deviation_se", "seeds"]
    assert list(table.columns) == columns
    for row in table.itertuples():
        base = values[row.width, row.method]
        # The mean over the two epochs of |1 - 1| and the deviation.
        assert row.deviation_mean == pytest.approx(2 * base / 2)
        assert row.deviation_se == pytest.approx(base / 2)
        assert row.seeds == 2
    verdicts = {claim: (holds, why) for claim, holds, why in made.checks}
    agree = "{}: the deviation agrees with the paper's at every width"
    # FA's 0.2 ± 0.1 at width 15 lies 2.1 combined errors below 1.5 ± 0.6.
    assert verdicts[agree.format("GD")] == (False, "1 agrees, 1 smaller")
    assert verdicts[agree.format("FA")] == (False, "2 smaller")


def test_larger_steps_are_laid_beside_the_papers_deviations(tmp_path):
    config, axes = grid("table3_steps")
    axes = [*axes[:2], {"model.hidden_units": [(15,), (60,)]}, {"rule": ["fa"]}]
    # FA's 1.5 and 0.2 in the paper: 0.15 comes within 2 and 2.5 of both.
    values = {0.05: (0.03, 0.006), 0.1: (0.06, 0.012), 0.2: (6.0, 1.0)}
    values[0.15] = (0.75, 0.08)
    for cell in sweeps.cells(config, axes):
        rate, width = (
            cell.config.optimizer.learning_rate,
            cell.config.model.hidden_units,
        )
        deviation = values[rate][width == (60,)]
        lines = [
            {
                "epoch": epoch,
                "norm/dense_1": math.sqrt(2 * factor),
                "inner/dense_2": 0.0,
            }
            for epoch, factor in ((0, 1.0), (5, 9.0), (10, 1 + deviation))
        ]
        leave(cell, tmp_path, lines)
    made = section("table3_steps")
    noisy_mnist.larger_steps(made, papers.read_runs(tmp_path), tmp_path)
    verdicts = {claim: (holds, why) for claim, holds, why in made.checks}
    near = "FA: at some rate within a factor of 4 of the paper's at every width"
    apart = {0.05: "50", 0.1: "25", 0.15: "2.5", 0.2: "5"}
    told = ", ".join(f"a factor of {v} at {rate:g}" for rate, v in apart.items())
    assert verdicts[near] == (True, told)
    grown = (
        "FA: at three times the rate the narrowest network drifts more than three "
        "times as far"
    )
    assert verdicts[grown] == (True, "25 at width 15, 13.3 at width 60")
    (table,) = made.tables.values()
    assert table["paper, rate 0.05"].tolist() == ["1.5 ± 0.6", "0.2 ± 0.1"]
    assert table["rate 0.15"].tolist() == ["0.75", "0.08"]
    # A width that the paper has not, alone.
    (cell, *_) = sweeps.cells(config, [{"model.hidden_units": [(20,)]}])
    leave(cell, tmp_path / "other", lines)
    made = section("table3_steps")
    noisy_mnist.larger_steps(made, papers.read_runs(tmp_path / "other"), tmp_path)
    assert [holds for _, holds, _ in made.checks] == [None]
    (table,) = made.tables.values()
    assert table["paper, rate 0.05"].tolist() == ["-"]


def test_recorded_cells_count_when_their_folders_are_gone(tmp_path):
    axes = [
        {"seed": [0, 1]},
        {"model.hidden_units": [(15,)]},
        {"rule": ["fa", "sign_fa"]},
    ]
    root, file = tmp_path / "runs", tmp_path / "cells" / "table3.jsonl"
    cells = table3_runs(root, axes, lambda cell: 0.1 + cell.config.seed)
    assert records.without_recorded(cells, file) == cells
    folders = {cell.name: root / cell.name for cell in cells}
    open_one = folders.pop(cells[-1].name)
    (open_one / "summary.json").rename(tmp_path / "aside.json")
    whole = section()
    noisy_mnist.table3(whole, papers.read_runs(root), tmp_path)
    # The one that is not over stays out, and comes in once it is.
    folders[cells[-1].name] = open_one
    measures = papers.measures("table3")
    names = [cell.name for cell in cells]
    assert records.add(file, folders, measures) == names[:-1]
    assert records.add(file, folders, measures) == []
    assert [c.name for c in records.without_recorded(cells, file)] == names[-1:]
    runs = papers.read_runs(root, file)
    assert len(runs) == 3 and all(run.record is None for run in runs)
    shutil.rmtree(root)
    runs = papers.read_runs(root, file)
    assert len(runs) == 3 and runs[0].log["epoch"].tolist() == [0, 5]
    told = section()
    noisy_mnist.table3(told, runs, tmp_path)
    pd.testing.assert_frame_equal(told.data["table3.csv"], whole.data["table3.csv"])
    # Another configuration of the same name is another cell.
    changed = sweeps.cells(grid("table3")[0], [*axes, {"epochs": [5]}])
    assert len(records.without_recorded(changed, file)) == len(cells)
    file.write_text(file.read_text() + "torn\n")
    with pytest.raises(run_folder.RunFolderError, match="Line 4"):
        records.read(file)


def test_a_record_keeps_the_first_and_the_last_line_and_its_measures(tmp_path):
    config, _ = grid("table1")
    (cell,) = sweeps.cells(config, [{"seed": [0]}])
    accuracy = np.sin(np.arange(501) / 100)
    lines = [{"epoch": e, "val_accuracy": v} for e, v in enumerate(accuracy)]
    folder = leave(cell, tmp_path, lines)
    one = records.record(folder, cell.name, papers.measures("table1"))
    assert len(one["log"]["epoch"]) == 41
    assert one["log"]["epoch"][0] == 0 and one["log"]["epoch"][-1] == 500
    assert one["measures"]["best_accuracy"] == accuracy.max()
    assert one["measures"]["late_accuracy"] == pytest.approx(accuracy[-20:].mean())


def test_alignment_checks_know_what_is_missing(tmp_path):
    axes = [
        {"seed": [0]},
        {"model.hidden_units": [(15,), (30,)]},
        {"rule": ["fa", "ada_fa"]},
    ]
    cells = table3_runs(tmp_path, axes, lambda cell: 0.1)
    (tmp_path / cells[-1].name / "summary.json").unlink()
    made = section("fig3")
    noisy_mnist.figure3(made, papers.read_runs(tmp_path), tmp_path)
    verdicts = {claim: holds for claim, holds, _ in made.checks}
    assert verdicts["width 15: adaFA's alignment above FA's"] is True
    assert verdicts["width 30: adaFA's alignment above FA's"] is None
    assert (tmp_path / "fig3.png").stat().st_size > 5000


def _on_the_way(rule, width, **lines):
    """A run of noisy MNIST whose log has these columns."""
    log = pd.DataFrame({"epoch": range(len(next(iter(lines.values())))), **lines})
    return types.SimpleNamespace(
        settings={"rule": rule},
        width=width,
        log=log,
        final=dict(log.iloc[-1]),
        measured=lambda function: function(log),
    )


def test_a_ratio_is_conserved_beside_gds_and_widths_and_rules_are_told_apart(tmp_path):
    # <W2, B2> of three lines; |W1| = 0, so that it is the potential.
    def checks(**ends):
        runs = [
            _on_the_way(
                rule,
                width,
                **{"inner/dense_2": [1.0, 1.0 + end / 2, 1.0 + end]},
                **{"norm/dense_1": [0.0, 0.0, 0.0]},
            )
            for rule, both in ends.items()
            for width, end in zip((15, 200), both, strict=True)
        ]
        made = section("fig2")
        noisy_mnist.figure2(made, runs, tmp_path)
        return {text: holds for text, holds, _ in made.checks}

    told = checks(backprop=(8, 0.4), fa=(0.5, 0.03), ada_fa=(0.4, 0.02))
    conserved = "the ratio is conserved: at every width its mean deviation from 1 is "
    conserved += "below a tenth of GD's"
    narrow = "the deviation is larger at the smallest width than at the largest"
    most = "the deviation is largest under FA, at every width"
    assert told[f"FA: {conserved}"] is told[f"FA: {narrow}"] is True
    assert told[f"sign-FA: {conserved}"] is told[f"sign-FA: {narrow}"] is None
    assert told[most] is None
    further = checks(
        backprop=(8, 0.4), fa=(0.5, 0.05), ada_fa=(0.4, 0.06), sign_fa=(0.01, 0.02)
    )
    assert further[f"FA: {conserved}"] is further[f"sign-FA: {narrow}"] is False
    assert further[f"sign-FA: {conserved}"] is True and further[most] is False
    held = checks(fa=(0.5, 0.05), ada_fa=(0.4, 0.04), sign_fa=(0.01, 0.02))
    assert held[most] is True and held[f"FA: {conserved}"] is None


@pytest.mark.parametrize(
    ("fa", "sign_fa", "told"),
    [([0.0, 0.3], [0.8, 0.9, 0.7], (True, True)),
     ([0.0, 0.3, -0.1], [0.8, 0.85, 0.845, 0.9], (False, False))],
)  # fmt: skip
def test_alignment_that_rises_and_that_is_not_monotonic(tmp_path, fa, sign_fa, told):
    runs = [
        _on_the_way(
            rule,
            15,
            **{"alignment/dense_2": cosines, "alignment_bound/dense_2": 0.1},
        )
        for rule, cosines in (("fa", fa), ("sign_fa", sign_fa))
    ]
    made = section("fig3")
    noisy_mnist.figure3(made, runs, tmp_path)
    (rises,) = (h for text, h, _ in made.checks if "rises from start" in text)
    (falls,) = (h for text, h, _ in made.checks if "not monotonic" in text)
    assert (rises, falls) == told


def test_fas_alignment_in_lenet_rises_most_in_the_output_layer(tmp_path):
    def told(**rises):
        columns = {f"alignment/{layer}": [0.0, rise] for layer, rise in rises.items()}
        run = _on_the_way("fa", None, **columns)
        run.settings |= {"dataset.num_classes": 10, "dataset.class_seed": 1}
        made = section("fig5")
        class_subsets.layer_alignment(made, [run], tmp_path, 10)
        return made.checks[0]

    text, holds, words = told(C2=0.01, C3=0.02, F1=0.05, F2=0.4)
    assert holds and "in every layer, most in the output" in text and "+0.400" in words
    assert not told(C2=0.01, C3=0.02, F1=0.5, F2=0.4)[1]
    assert not told(C2=-0.01, C3=0.02, F1=0.05, F2=0.4)[1]


def test_accuracy_ratios_compare_on_the_same_classes(tmp_path):
    config, _ = grid("table1")
    axes = [
        {"dataset.num_classes": [10]},
        {"seed": [0, 1], "dataset.class_seed": [1, 2]},
        {"rule": ["backprop", "fa"]},
    ]
    accuracy = {("backprop", 1): 0.8, ("fa", 1): 0.4, ("backprop", 2): 0.5}
    accuracy["fa", 2] = 0.45
    for cell in sweeps.cells(config, axes):
        key = cell.config.rule, cell.config.dataset.class_seed
        leave(cell, tmp_path, [{"epoch": 500, "val_accuracy": accuracy[key]}])
    made = section("table1")
    class_subsets.accuracies(made, papers.read_runs(tmp_path), tmp_path, 1)
    table = made.data["table1.csv"].set_index("method")
    shown = next(iter(made.tables.values()))
    assert {"best", "train", "train_loss", "n", "verdict"} <= set(shown.columns)
    assert table.loc["fa", "accuracy_mean"] == pytest.approx(42.5)
    assert table.loc["backprop", "accuracy_se"] == pytest.approx(15)
    assert table.loc["fa", "epochs"] == 500
    ratios = made.data["table1_ratios.csv"].set_index(["method", "subset"])["ratio"]
    assert ratios["fa", 1] == pytest.approx(0.5)
    assert ratios["fa", 2] == pytest.approx(0.9)
    paper = made.data["table1_ratios.csv"].set_index("method")["paper_ratio"]
    assert paper["fa"].iloc[0] == pytest.approx(55.2 / 75.8)


def test_a_sample_of_classes_counts_once_however_many_seeds_share_it(tmp_path):
    config, _ = grid("table1")
    axes = [
        {"seed": [0, 1, 2, 3], "dataset.class_seed": [1, 1, 1, 2]},
        {"rule": ["backprop", "fa", "ada_fa"]},
    ]
    # FA keeps 0.5, 0.6 and 0.7 of GD's on one sample, and all of it on another.
    accuracy = {"backprop": [0.8, 0.8, 0.8, 0.5], "fa": [0.4, 0.48, 0.56, 0.5]}
    # adaFA was run on the second alone: below FA there, above FA's mean.
    accuracy["ada_fa"] = [None, None, None, 0.495]
    for cell in sweeps.cells(config, axes):
        value = accuracy[cell.config.rule][cell.config.seed]
        if value is not None:
            leave(cell, tmp_path, [{"epoch": 500, "val_accuracy": value}])
    made = section("table1")
    class_subsets.accuracies(made, papers.read_runs(tmp_path), tmp_path, 1)
    table = made.data["table1.csv"].set_index("method")
    # 48 on one sample, 50 on the other.
    assert table.loc["fa", "accuracy_mean"] == pytest.approx(49)
    assert table.loc["fa", "accuracy_se"] == pytest.approx(1)
    assert tuple(table.loc["fa", ["samples", "seeds"]]) == (2, 4)
    ratios = list(made.tables.values())[1].set_index(["method", "subset"])
    assert ratios.loc[("FA", 1), "ratio"] == "0.600 ± 0.058"
    assert ratios.loc[("FA", "all"), "ratio"] == "0.80 ± 0.20"
    assert ("adaFA", "all") not in ratios.index
    checks = {claim: (holds, words) for claim, holds, words in made.checks}
    assert checks["10 classes: adaFA above FA"] == (False, "49.5 against 50.0, n = 1")
    assert checks["10 classes: GD above sign-FA"][0] is None


def test_a_variant_closes_what_it_takes_off_the_gap_to_gd(tmp_path):
    config, _ = grid("table1_variants")
    axes = [
        {"dataset.num_classes": [10]},
        {"seed": [0, 1]},
        {"rule": ["backprop", "sign_fa"]},
        {"model.kernel_initializer": ["glorot_uniform", "uniform_fan_in"]},
    ]
    # Gaps of 4 and 8 points in table 1's setting and of 1 and 4 in the other one: 3 and
    # 4 are closed. In one of the last twenty epochs GD is 4 points higher: its best,
    # and 0.2 more over the twenty. Before them everyone is at nothing.
    gaps = {("glorot_uniform", 0): 4, ("glorot_uniform", 1): 8}
    gaps |= {("uniform_fan_in", 0): 1, ("uniform_fan_in", 1): 4}
    for cell in sweeps.cells(config, axes):
        key = cell.config.model.get("kernel_initializer"), cell.config.seed
        gd = cell.config.rule == "backprop"
        last = 0.8 if gd else 0.8 - gaps[key] / 100
        values = [0.0, 0.84 if gd else last, *(19 * [last])]
        lines = [
            {"epoch": 480 + i, "val_accuracy": value} for i, value in enumerate(values)
        ]
        leave(cell, tmp_path, lines)
    made = section("table1_variants")
    class_subsets.variants(made, papers.read_runs(tmp_path), tmp_path)
    last, others = (
        table.set_index("change").loc["W as torch draws it, B at Xavier's scale"]
        for table in made.tables.values()
    )
    assert (last["gap"], last["closed"]) == ("2.5 ± 1.5", "3.50 ± 0.50")
    assert (others["best gap"], others["best closed"]) == ("6.5 ± 1.5", "3.50 ± 0.50")
    assert (others["late gap"], others["late closed"]) == ("2.7 ± 1.5", "3.50 ± 0.50")
    pairs = made.data["table1_variants.csv"].set_index(["variant", "seed"])
    base = pairs.loc["table 1's setting", 1]
    assert base["gap"] == pytest.approx(8)
    assert base["best_ratio"] == pytest.approx(72 / 84)
    checked = {claim.partition(":")[0]: holds for claim, holds, _ in made.checks}
    assert checked[last.name] is True and checked["table 1's setting"] is False


def test_tuning_is_judged_against_the_best_setting(tmp_path):
    config, _ = grid("table1_tuning")
    axes = [
        {"rule": ["backprop", "fa"]},
        {"optimizer.learning_rate": [0.01, 0.03]},
        {"optimizer.weight_decay": [0.0, 1e-4]},
    ]
    for cell in sweeps.cells(config, axes):
        better = cell.config.optimizer.learning_rate == 0.03
        gain = 0.05 if better and cell.config.rule == "fa" else 0.01 if better else 0.0
        leave(cell, tmp_path, [{"epoch": 40, "val_accuracy": 0.5 + gain}])
    made = section("table1_tuning")
    class_subsets.tuning(made, papers.read_runs(tmp_path), tmp_path)
    table, _ = made.tables.values()
    assert table["FA"].tolist() == ["50.0", "50.0", "55.0", "55.0"]
    verdicts = {claim.partition(":")[0]: holds for claim, holds, _ in made.checks}
    assert verdicts == {"FA": False, "GD": True}


def test_song_tables_and_checks(tmp_path):
    config, _ = grid("song_synthetic")
    axes = [
        {"seed": [0, 1]},
        {"model.hidden_units": [(200,), (400,)]},
        {"optimizer.weight_decay": [0.0, 5.0]},
    ]
    # Alignment falls with p without the penalty, but does not rise with it at p = 200.
    cosine = {(200, 0.0): 0.5, (200, 5.0): 0.4, (400, 0.0): 0.1, (400, 5.0): 0.8}
    for cell in sweeps.cells(config, axes):
        key = cell.config.model.hidden_units[0], cell.config.optimizer.weight_decay
        line = {"alignment/dense_2": cosine[key], "loss": 0.25}
        leave(cell, tmp_path, [{"epoch": e, **line} for e in (0, 50, 100)])
    made = section("song_synthetic")
    song.song_synthetic(made, papers.read_runs(tmp_path), tmp_path)
    table = made.data["song_synthetic.csv"]
    assert list(table.columns) == [
        "activation",
        "p",
        "lambda",
        "cosine_mean",
        "cosine_se",
        "loss_mean",
        "seeds",
    ]
    assert len(table) == 4 and set(table["seeds"]) == {2}
    verdicts = {claim: holds for claim, holds, _ in made.checks}
    assert verdicts["ReLU: without the penalty alignment falls with p"] is True
    assert verdicts["ReLU: alignment rises with lambda at every p"] is False
    assert verdicts["tanh: without the penalty alignment falls with p"] is None


def test_figure_2_tells_what_rises_with_the_penalty_and_what_has_ended(tmp_path):
    cosines = {
        200: [0.1, 0.9, 0.895],  # Less than chance below the one before.
        800: [0.05, 0.9, 0.8],
        3200: [0.1, 0.105, 0.109],
    }
    rows = pd.DataFrame(
        {
            "seed": 0,
            "activation": "linear",
            "p": p,
            "penalty": penalty,
            "steps": steps,
            "cosine": cosine,
            # At p = 3200 it goes on falling.
            "loss": penalty * (10 / steps if p == 3200 else 1),
        }
        for p, found in cosines.items()
        for penalty, cosine in zip((0.0, 0.2, 2.0), found, strict=True)
        for steps in (10, 100)
    )
    for p, holds in ((200, True), (800, False), (3200, False)):
        made = section("figure2_steps")
        theorems.figure_2(made, rows[rows["p"] == p], tmp_path)
        told = {claim: verdict for claim, verdict, _ in made.checks}
        assert (
            told["linear: alignment rises with lambda at every p, 100 steps"] is holds
        )
        (ended,) = [v for c, v in told.items() if "comes to a positive number" in c]
        assert ended is (p != 3200)
        for steps in (10, 100):
            claim = "linear: the loss is larger the larger lambda, at every p"
            assert told[f"{claim}, {steps} steps"] is True
    (table,) = made.tables.values()
    assert table.columns[-1] == "n" and "cosine, 100" in table.columns
    made = section("figure2_steps")
    theorems.figure_2(made, rows.assign(loss=1.0), tmp_path)
    free, *others = made.checks
    # At every width together: 0.1 at the smallest and at the largest.
    assert free[1] is False and [c[1] for c in others] == [False, False, False, True]


def test_the_report_is_one_file_with_everything_in_it(tmp_path):
    axes = [{"seed": [0]}, {"model.hidden_units": [(15,)]}, {"rule": ["fa"]}]
    table3_runs(tmp_path / "runs", axes, lambda cell: 0.1)
    runs = papers.read_runs(tmp_path / "runs")
    made = section(
        runs=runs,
        missing={"seed=1,<b>": "open"},
        config="learning_rate: 0.05",
        complete="7 of 9 cells",
        command="python trainers/sweep.py",
        remarks="First.\n\nSecond & third.",
    )
    for part in (noisy_mnist.table3, noisy_mnist.figure2):
        part(made, runs, tmp_path)
    path = report.write([made], tmp_path / "report.html", "Title", "below")
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert 'src="data:image/png;base64,' in text
    assert (
        "Partial: 1" in text
        and "7 of 9 cells" in text
        and "open: seed=1,&lt;b&gt;" in text
    )
    assert "learning_rate: 0.05" in text and "python trainers/sweep.py" in text
    assert "<p>Second &amp; third.</p>" in text
    assert "FA: the deviation agrees with" in text


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_are_whole(path):
    text = runpy.run_path(str(path))["__doc__"]
    for word in ("Source:", f"--grid=configs/grids/{path.name}", "Expected:"):
        assert word in text
    cells = sweeps.cells(*grid(path.stem))
    assert cells
    listed = re.search(r"Expected: (\d+) cells", text)
    assert listed is None or int(listed[1]) == len(cells)


def _small(path):
    """The cells of a grid with networks that are built in no time."""
    cells = sweeps.cells(*grid(path.stem))
    return [c.config for c in cells if c.config.model.name in ("mlp", "lenet")]


SMALL = [path for path in GRIDS if _small(path)]


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_networks_of_grids_can_be_built(path):
    """One of each kind: rules and initializers must go together."""
    chosen = {}
    for config in _small(path):
        if "hidden_units" in config.model:
            config.model.hidden_units = len(config.model.hidden_units) * (3,)
        chosen[f"{config.model}{config.rule}"] = config
    for config in chosen.values():
        shape = (5,) if config.model.name == "mlp" else (32, 32, 3)
        dataset = types.SimpleNamespace(input_shape=shape, num_classes=2)
        model = build._network(config, dataset, build.rule_of(config))
        assert feedback_layers(model)


def _at_classes(classes, rule, *cosines, sample=1):
    """A run of LeNet that ended with this alignment of C2, C3, F1 and F2, from 0."""
    ends = {
        f"alignment/{layer}": cosine
        for layer, cosine in zip(("C2", "C3", "F1", "F2"), cosines, strict=True)
    }
    return types.SimpleNamespace(
        settings={
            "dataset.num_classes": classes,
            "dataset.class_seed": sample,
            "rule": rule,
        },
        final=ends,
        log=pd.DataFrame({"epoch": [0, 1], **{k: [0.0, c] for k, c in ends.items()}}),
    )


@pytest.mark.parametrize(
    ("cosines", "told"),
    [
        ({10: [0.20, 0.21], 25: [0.15]}, True),
        ({10: [0.20, 0.24], 25: [0.19]}, None),
        ({10: [0.20, 0.21], 25: [0.26, 0.25]}, False),
        ({10: [0.20, 0.21], 25: [0.15], 50: [0.15]}, None),
        ({10: [0.20], 25: [0.15]}, None),  # No seed repeated: nothing to tell by.
        ({10: [0.20, 0.21]}, None),
    ],
)
def test_alignment_falls_where_it_is_told_from_chance(tmp_path, cosines, told):
    runs = [
        _at_classes(classes, "fa", c, c, c, c)
        for classes, values in cosines.items()
        for c in values
    ]
    made = section("alignment_by_classes")
    class_subsets.alignment_by_classes(made, runs, tmp_path)
    (by_layer, same, _), (text, holds, words), _ = made.checks
    assert "FA's alignment" in text and holds is told
    assert "(n = " in words and "at 10" in words
    # Here every layer has the same cosines.
    assert "every layer" in by_layer and same is told
    (table,) = made.tables.values()
    assert list(table["layer"]) == ["C2", "C3", "F1", "F2"]
    shown = table["10 classes"].str.split().str[0].astype(float)
    np.testing.assert_allclose(shown, np.mean(cosines[10]), atol=1e-3)


def test_seeds_of_one_sample_of_classes_count_once_in_its_alignment(tmp_path):
    # Two seeds share the first sample of ten classes: 0.20, 0.21 and 0.23 once each.
    ends = [(10, 1, 0.20), (10, 1, 0.22), (10, 2, 0.20), (10, 3, 0.23), (25, 1, 0.1786)]
    runs = [
        _at_classes(classes, "fa", c, c, c, c, sample=sample)
        for classes, sample, c in ends
    ]
    made = section("alignment_by_classes")
    class_subsets.alignment_by_classes(made, runs, tmp_path)
    _, (_, told, words), (_, _, falls) = made.checks
    spread = np.std([0.21, 0.20, 0.23], ddof=1)
    assert "0.213 (n = 3), 0.179 (n = 1)" in words and f"{spread:.2g}" in words
    # The fall, 0.0347, is between two standard errors of four draws and of three.
    assert 2 * spread * (1 + 1 / 4) ** 0.5 < 0.0347 < 2 * spread * (1 + 1 / 3) ** 0.5
    assert told is None
    error = spread * (1 + 1 / 3) ** 0.5 / (0.64 / 3)
    assert falls.endswith(f"FA by 16.3 ± {100 * error:.1f}%")
    (table,) = made.tables.values()
    assert table["10 classes"][0] == f"0.2133 ± {spread / 3**0.5:.4f}"
    class_subsets.layer_alignment(made, runs, tmp_path, 10)
    table = made.data["fig5.csv"].set_index("layer")
    assert table.loc["C2", "cosine_mean"] == pytest.approx(0.64 / 3)
    assert table.loc["C2", "cosine_se"] == pytest.approx(spread / 3**0.5)


def test_a_layer_whose_alignment_rises_with_the_classes_is_told(tmp_path):
    ends = {10: (0.01, 0.05, 0.4), 25: (0.02, 0.05, 0.2)}  # C2, in between, F2
    runs = [
        _at_classes(classes, "fa", low + scatter, middle, middle, high + scatter)
        for classes, (low, middle, high) in ends.items()
        for scatter in (0.0, 1e-4)
    ]
    made = section("alignment_by_classes")
    class_subsets.alignment_by_classes(made, runs, tmp_path)
    (_, by_layer, words), (_, mean, _), _ = made.checks
    assert by_layer is False and mean is True
    assert words.startswith("C2 0.010, 0.020; C3 0.050, 0.050;")


def test_falls_of_alignment_are_compared_between_the_same_numbers_of_classes(tmp_path):
    # FA's rises at 50 classes, which the others have no run of.
    ends = {
        "fa": {10: (0.40, 0.41), 25: (0.30,), 50: (0.50,)},
        "ada_fa": {10: (0.90, 0.91), 25: (0.60,)},
        "sign_fa": {10: (0.80, 0.81), 25: (0.79,)},
    }
    runs = [
        _at_classes(classes, rule, c, c, c, c)
        for rule, by_classes in ends.items()
        for classes, values in by_classes.items()
        for c in values
    ]
    made = section("alignment_by_classes")
    class_subsets.alignment_by_classes(made, runs, tmp_path)
    text, holds, words = made.checks[-1]
    assert "sign-FA's" in text and holds is True
    assert words.startswith("from 10 to 25 classes") and "FA by 25.9 ± " in words
    # No two numbers of classes have all three methods.
    class_subsets.alignment_by_classes(made, runs[:4] + runs[6:], tmp_path)
    assert made.checks[-1][1:] == (None, "")


@pytest.mark.parametrize(
    ("fa", "told"),
    [((0.30, 0.02), True), ((0.09, 0.02), None), ((0.01, 0.01), False), (None, None),
     ((0.30, math.nan), None)],
)  # fmt: skip
def test_the_least_fall_is_told_from_chance(fa, told):
    falls = {"sign_fa": (0.05, 0.01), "ada_fa": (0.2, 0.01)}
    if fa is not None:
        falls["fa"] = fa
    assert class_subsets._least(falls, "sign_fa", {"fa", "ada_fa"}) is told


def test_a_claim_is_contrary_as_soon_as_a_check_fails():
    claim = claims.Claim("RK24", "theorem 0", "It.", "fig3", "above")
    told = section("fig3", checks=[("b above a", True, "2 > 1"), ("other", False, "")])
    verdict = claims._judged(claim, told)
    assert verdict.verdict == "confirmed" and "2 > 1" in verdict.evidence
    told.checks.append(("c above b", None, "- against 2"))
    verdict = claims._judged(claim, told)
    assert verdict.verdict == "confirmed in part" and "2 > 1" in verdict.evidence
    assert "Too few runs for 1 of 2 checks, such as: c above b." in verdict.evidence
    told.checks.append(("d above c", False, "3 < 4"))
    verdict = claims._judged(claim, told)
    assert verdict.verdict == "contrary" and "1 of 2" in verdict.evidence
    assert "3 < 4" in verdict.evidence and "2 > 1" not in verdict.evidence
    told.complete = "4 of the paper's 72 cells"
    assert claims._judged(claim, told).evidence.endswith(f"From {told.complete}.")
    told.checks = [("b above a", None, "one run")]
    verdict = claims._judged(claim, told)
    assert verdict.verdict == "not tested"
    assert verdict.evidence == "Its runs are too few so far: b above a: one run."
    assert claims._judged(claim, None).verdict == "not tested"


def test_claims_are_of_experiments_and_stand_in_the_report(tmp_path):
    chosen = [claim for claim in claims.CLAIMS if claim.section is not None]
    assert {claim.section for claim in chosen} <= papers.EXPERIMENTS.keys()
    assert all(claim.checks for claim in chosen)
    named = [(claim.paper, claim.number) for claim in claims.CLAIMS]
    assert len(set(named)) == len(named)
    told = section("fig3", checks=[("FA aligns: c > 0", True, "<i>")])
    path = report.write([told], tmp_path / "report.html", "Title", "", whole=True)
    text = path.read_text()
    assert text.count('<tr id="claim-') == len(claims.CLAIMS)
    assert "1 confirmed, 0 confirmed in part, 0 contrary" in text
    assert "&lt;i&gt;" in text
    assert '<a href="#fig3">section</a>' in text


def test_every_experiment_has_a_grid():
    stems = {path.stem for path in GRIDS}
    grids = {e.grid for e in papers.EXPERIMENTS.values() if not e.measured}
    assert grids <= stems
    named = {e.measured for e in papers.EXPERIMENTS.values() if e.grid is None}
    assert named == theory.MEASUREMENTS.keys()
    assert printed.REMARKS.keys() <= papers.EXPERIMENTS.keys()
    # Runs that stand beside those of an experiment are measured as they are.
    both = papers.measures("table1_short"), papers.measures("table1_variants")
    assert (
        both[0]
        == both[1]
        == (
            class_subsets.best_accuracy,
            class_subsets.late_accuracy,
        )
    )
    config, axes = grid("table1_short")
    cell = sweeps.cells(config, axes)[0]
    assert class_subsets._variant(run_folder.flatten(cell.config.to_dict())) == (
        "batch 128, learning rate 0.05, 40 epochs"
    )


@pytest.mark.parametrize(
    "name", [name for name, e in papers.EXPERIMENTS.items() if e.measured]
)
def test_every_measurement_makes_a_section(tmp_path, name):
    chosen = papers.EXPERIMENTS[name]
    rows = measured.read(ROOT / "results" / "theory", chosen.measured)
    told = section(name)
    for part in chosen.parts:
        part(told, rows, tmp_path)
    assert told.tables and told.checks
    assert all(isinstance(holds, bool) for _, holds, _ in told.checks)
    decided = [c for c in claims.CLAIMS if c.section == name]
    assert all(any(re.search(c.checks, k[0]) for k in told.checks) for c in decided)
    # Half of a measurement is looked at too.
    for part in chosen.parts:
        part(section(name), rows[:1], tmp_path)


@pytest.mark.long
def test_the_command_line(tmp_path):
    axes = [{"seed": [0]}, {"model.hidden_units": [(15,)]}, {"rule": ["fa", "ada_fa"]}]
    table3_runs(tmp_path / "runs" / "table3", axes, lambda cell: 0.1)
    command = [sys.executable, "trainers/reproduce.py", f"--runs={tmp_path / 'runs'}"]
    # Its folder is gone, its record is not.
    (gone,) = sweeps.cells(grid("table3")[0], [{"seed": [1]}, *axes[1:2]])
    leave(gone, tmp_path / "apart", [{"epoch": 0}], "diverged")
    records.add(
        tmp_path / "results" / "cells" / "table3.jsonl",
        {"seed=1,hidden_units=15,rule=fa": tmp_path / "apart" / gone.name},
    )

    def reproduce(*arguments):
        return subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = reproduce("--experiment=all", f"--results={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    assert "table3 (RK24, table 3): 2 runs, 238 cells missing" in done.stdout
    text = (tmp_path / "results" / "report.html").read_text()
    assert "open: seed=2,hidden_units=200,rule=backprop" in text
    assert "diverged: seed=1,hidden_units=15,rule=fa" in text
    assert len(pd.read_csv(tmp_path / "results" / "table3.csv")) == 2

    refused = reproduce("--experiment=tabel3", f"--results={tmp_path / 'other'}")
    assert refused.returncode != 0 and "Known: all, table3" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "other").exists()
    assert json.loads(
        (next((tmp_path / "runs/table3").iterdir()) / "config.json").read_text()
    )


def test_fitted_noise_is_benign_where_the_test_loss_ends_near_its_least(tmp_path):
    def benign(fitted, *ends, unmeasured=0):
        told = section("noise_fitted")
        runs = []
        for width, end in zip((60, 200), ends, strict=True):
            lines = {"val_loss": [2.0, 0.5, end], "accuracy": [0.1, 0.8, fitted]}
            log = pd.DataFrame(lines | {"loss": 0.1, "val_accuracy": 0.7})
            runs.append(
                types.SimpleNamespace(
                    width=width,
                    settings={"rule": "fa"},
                    final=dict(log.iloc[-1]),
                    measured=lambda function, log=log: function(log),
                )
            )
        for _ in range(unmeasured):  # Records that were not asked for it.
            record = types.SimpleNamespace(**vars(runs[-1]))
            record.measured = lambda function: math.nan
            runs.append(record)
        noisy_mnist.figure4(told, runs, tmp_path)
        return {claim: holds for claim, holds, _ in told.checks}

    def the_one(checks):
        (found,) = (holds for claim, holds in checks.items() if "benign" in claim)
        return found

    assert the_one(benign(1.0, 2.0, 0.54))  # It is the largest width that counts.
    assert not the_one(benign(1.0, 0.5, 0.56))
    assert not any("benign" in claim for claim in benign(0.8, 0.5, 0.56))
    assert the_one(benign(1.0, 2.0, 0.54, unmeasured=1)) is None


def test_the_ledger_in_half_precision_is_a_part_of_the_drift():
    def run(dtype, remainder):
        terms = {"measured": (-3.0, 1.0), "first_order": (0.2, -0.2)}
        terms["remainder"] = (remainder, 1e-16)
        final = {
            f"ledger/{term}/{group}": value
            for term, values in terms.items()
            for group, value in zip("ab", values, strict=True)
        }
        settings = {"model.name": "lenet", "rule": "fa", "dtype": dtype}
        final |= {"val_accuracy": 0.5, "loss": 1.0}
        return types.SimpleNamespace(settings=settings, final=final)

    runs = [run("mixed_float16", -4e-8), run("float32", 4e-15)]
    told = section("precision")
    precision.precision(told, runs, None)
    table = told.data["precision.csv"]
    assert list(table["dtype"]) == ["float32", "mixed_float16"]
    np.testing.assert_allclose(table["drift"], 4.0)
    np.testing.assert_allclose(table["first_order"], 0.1)
    np.testing.assert_allclose(table["remainder"], [1e-15, 1e-8])
    ((_, closes, _),) = told.checks
    assert not closes
    precision.precision(again := section("precision"), runs[1:], None)
    assert again.checks[0][1]


@pytest.mark.slow
def test_akrouts_table_compares_what_his_code_did_and_shows_both_steps(tmp_path):
    config, axes = grid("akrout_mnist")
    runs = tmp_path / "runs" / "akrout_mnist"
    for cell in sweeps.cells(config, [{"seed": [0]}, *axes[1:]]):
        line = {
            **{"epoch": 400, "val_accuracy": 0.98, "error_cosine/dense_1": 0.5},
            "alignment/dense_2": np.cos(np.radians(40.0)),
        }
        leave(cell, runs, [{**line, "epoch": 0}, line])
    told = section("akrout_mnist")
    akrout.akrout_mnist(told, sections.read_runs(runs), tmp_path)
    [table] = told.tables.values()
    assert list(table["angle of W and B, output"]) == ["40"] * 8
    assert list(table["angle of the errors"]) == ["60"] * 8
    assert list(table["authors' log"]) == 2 * [98.5, 97.8, 98.45, 98.49]
    holds = {claim: holds for claim, holds, _ in told.checks}
    assert len(holds) == 7 and holds["FA: angle of the output layer within 3 degrees"]
    assert not holds["KP: angle of the output layer within 3 degrees"]
    assert (tmp_path / "akrout_mnist.png").stat().st_size > 5000
    # Of a rule and a step that they have not there is nothing to compare with.
    other = {"seed": [1], "rule": ["sign_fa"], "optimizer.bias_share": [0.5]}
    for cell in sweeps.cells(config, [other]):
        leave(cell, runs, [{**line, "epoch": 0}, line])
    again = section("akrout_mnist")
    akrout.akrout_mnist(again, sections.read_runs(runs), tmp_path)
    assert again.checks == told.checks
    [table] = again.tables.values()
    assert list(table[table["method"] == "sign-FA"]["authors' log"]) == ["-"]


@pytest.mark.parametrize(
    ("name", "expected", "points", "holds"),
    [
        ("lillicrap_mnist", printed.LILLICRAP, None, {"FA: error at most 3.0%": True}),
        (
            "nokland_mnist",
            printed.NOKLAND,
            0.3,
            {"DFA: error within 0.3 points of the source": False},
        ),
    ],
)
def test_errors_stand_beside_those_of_the_source(
    tmp_path, name, expected, points, holds
):
    config, axes = grid(name)
    runs = tmp_path / "runs" / name
    for cell in sweeps.cells(config, axes):
        # 2.0, 2.5 and 3.0% over the seeds.
        accuracy = 0.98 - 0.005 * cell.config.seed
        line = {"epoch": 30, "val_accuracy": accuracy, "accuracy": 1.0}
        leave(cell, runs, [{"epoch": 0}, {**line, "epoch": 1}, line])
    told = section(name)
    mnist_errors.errors(told, sections.read_runs(runs), tmp_path, expected, points)
    [table] = told.tables.values()
    assert set(table["test error, %"]) == {"2.50 ± 0.29"}
    assert set(table["train error, %"]) == {"0"}
    assert {claim: true for claim, true, _ in told.checks} == holds
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_audits_stand_beside_their_own_baselines(tmp_path, monkeypatch):
    config, axes = grid("audit")
    runs = tmp_path / "runs"
    for cell in sweeps.cells(config, axes):
        frozen, rule = cell.config.model.get("frozen"), cell.settings["rule"]
        accuracy = {"body": 0.34, "all_but_last": 0.35}.get(frozen, 0.40)
        if frozen is None and isinstance(rule, dict):
            accuracy = 0.3
        leave(cell, runs, [{"epoch": 1, "val_accuracy": accuracy}])
    asked = {}

    def audit(path, baselines):
        score = run_folder.read_summary(path)["final"]["val_accuracy"]
        asked[path.name] = {one.name for one in baselines}
        scores = {
            one.name: run_folder.read_summary(one)["final"]["val_accuracy"]
            for one in baselines
        }
        gain = score - max(scores.values()) if scores else None
        verdict = "depth adds nothing" if not gain or gain < 0.02 else "it learns"
        terms = Alignment(0.5, 1.0, 1.0)
        rows = [
            analysis.AuditRow(f"layer_{number}", growth=float(number), gradient=terms)
            for number in range(3)
        ]
        return analysis.Verdict(verdict, ("why",), tuple(rows), 1.0, scores, gain)

    monkeypatch.setattr(audits, "audit", audit)
    told = section("audit")
    audits.audits(told, sections.read_runs(runs), tmp_path, printed.AUDIT)
    assert asked["seed=1,rule=dfa,frozen=none"] == {
        "seed=1,rule=dfa,frozen=body",
        "seed=1,rule=backprop,frozen=all_but_last",
    }
    assert asked["seed=0,rule=fa,frozen=body"] == set()
    table = told.data["audit.csv"].set_index(["seed", "rule"]).sort_index()
    row = table[table.frozen.isna()].loc[(0, "DFA at blocks")]
    assert row.gain == pytest.approx(-0.05) and row.verdict == "depth adds nothing"
    assert (row.median_cosine, row.largest_growth) == (0.5, 2.0)
    assert len(told.data["audit_layers.csv"]) == 3 * 18
    assert {claim: true for claim, true, _ in told.checks} == {
        "A frozen body: depth adds nothing": True,
        "FA: learns with depth, as published": True,
        "DFA at blocks: depth adds nothing, as published": True,
    }
    assert len(told.figures) == 2 and all(f.exists() for f in told.figures.values())


def test_the_standing_table(tmp_path):
    """Means over seeds, and commands that name the one cell that they run again."""
    cells = ROOT / "results" / "cells" / "small_networks.jsonl"
    runs = sections.read_runs(tmp_path, cells)
    told = section("zoo")
    standing.standing(told, runs, tmp_path)
    table = told.data["zoo.csv"]
    # Five rules, two networks, three seeds; what has a frozen part is left out.
    assert len(runs) == 36 and len(table) == 30
    records = [json.loads(line) for line in cells.read_text().splitlines()]
    named = "name=small_networks_vit,rule=fa,frozen=none"
    scores = [
        100 * one["summary"]["final"]["val_accuracy"]
        for one in records
        if one["cell"].endswith(named)
    ]
    shown = next(iter(told.tables.values()))
    row = shown[(shown["network"] == "vit") & (shown["method"] == "FA")].iloc[0]
    mean, error = row["test accuracy, %"].split(" ± ")
    assert float(mean) == pytest.approx(np.mean(scores), abs=0.05)
    assert float(error) == pytest.approx(np.std(scores, ddof=1) / 3**0.5, rel=0.05)
    assert row["seeds"] == 3
    plan = plans.read_plan("grid", ROOT / "configs" / "grids" / "small_networks.py")
    for one in table.iloc[[0, 17, 29]].itertuples():
        axes = plan["axes"]
        for field, values in re.findall(r'--axis="([\w.]+)=(.*?)"', one.command):
            axes = sweeps.narrow(axes, field, ast.literal_eval(values))
        (cell,) = sweeps.cells(plan["config"], axes, named_by=plan["axes"])
        assert run_folder.identity(cell.config.to_dict()) == one.identity
