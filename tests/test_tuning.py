"""Searches: what is tuned, what came of it, and that a kill changes neither."""

import io
import json
import math
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import keras_tuner
import numpy as np
import pandas as pd
import pytest
import rich.console
from helpers import standing

from keras_fa import datasets, tuning
from keras_fa.config import default_config
from keras_fa.lab import run_folder

ROOT = pathlib.Path(__file__).parents[1]
RATE = {"optimizer.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True}}
RULES = {"rule": {"choices": ["fa", "sign_fa", "pfa"]}}


def base(**changes):
    config = default_config()
    config.dataset.train_size = 100
    config.model.hidden_units = (8,)
    config.batch_size = 50
    config.epochs = 3
    config.rule = "fa"
    config.update(changes)
    return config


@pytest.mark.parametrize(
    ("space", "match"),
    [
        ({}, "at least one field"),
        ({"optimizer.learning_rat": {"choices": [1]}}, "'optimizer.learning_rate'?"),
        ({"optimizer": {"choices": [1]}}, "unknown field"),
        ({"batch_size": {"choices": []}}, "must be"),
        ({"batch_size": {"min": 1}}, "must be"),
        ({"batch_size": {"min": 1, "max": 2, "step": 1}}, "must be"),
        ({"batch_size": {"min": 3, "max": 2}}, "min < max"),
        ({"optimizer.momentum": {"min": 0, "max": 1, "log": True}}, "min > 0"),
        ({"batch_size": {"min": 1.5, "max": 9.5}}, "cannot be drawn from a range"),
        ({"batch_size": {"min": 0, "max": 9}}, "config.batch_size must be"),
        ({"batch_size": {"min": "a", "max": "b"}}, "must be of numbers"),
        ({"model.hidden_units": {"min": 1, "max": 9}}, "cannot be drawn from a range"),
        ({"drop_last": {"min": 0, "max": 1}}, "cannot be drawn from a range"),
        ({"optimizer.momentum": {"min": -1, "max": 0.5}}, "config.optimizer.momentum"),
        ({"optimizer.momentum": {"min": 0, "max": math.inf}}, "must be finite"),
        ({"epochs": {"choices": [3, "many"]}}, "config.epochs takes int"),
        ({"epochs": {"choices": [3, 0]}}, "config.epochs must be at least 1"),
        (
            {"rule.scale": {"choices": [1.0], "when": {"rule": ["sign_fa"]}}},
            "hangs on 'rule', which must stand before it",
        ),
        ({**RULES, "rule.scale": {"choices": [1.0], "when": {"rule": ["fe"]}}}, "'fe'"),
        ({**RULES, "rule.scale": {"choices": [1.0]}}, "has no argument 'scale'"),
        (
            {**RULES, "rule.scal": {"choices": [1.0], "when": {"rule": ["sign_fa"]}}},
            'has no argument .scal.. Did you mean "scale"',
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path, space, match):
    with pytest.raises(ValueError, match=match):
        tuning.hypermodel(base(), space)
    with pytest.raises(ValueError, match=match):
        tuning.Search(base(), space, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_chosen_values_reach_the_configuration_as_what_they_are():
    space = {
        "optimizer.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True},
        "batch_size": {"min": 10, "max": 20},
        "rule": {"choices": [{"name": "sign_fa", "scale": 0.5}]},
        "optimizer.momentum": {"min": 0, "max": 1},
        "dataset.label_noise": {"min": 0, "max": 1},
        "model.hidden_units": {"choices": [(8, 4)]},
    }
    config = base()
    parameters = keras_tuner.HyperParameters()
    parameters.Fixed("optimizer.learning_rate", 0.05)
    changed = tuning.configure(config, space, parameters)
    assert changed.optimizer.learning_rate == 0.05
    assert changed.batch_size == 10 and isinstance(changed.batch_size, int)
    assert changed.rule.to_dict() == {"name": "sign_fa", "scale": 0.5}
    # The field's type decides, not that of the bounds.
    tuning.check_space(config, space)
    assert isinstance(parameters.get("optimizer.momentum"), float)
    assert isinstance(parameters.get("dataset.label_noise"), float)
    assert changed.model.hidden_units == (8, 4)
    assert config.optimizer.learning_rate != 0.05 and config.batch_size == 50


@pytest.mark.slow
def test_what_belongs_to_one_rule_is_searched_under_that_rule(tmp_path):
    space = {
        **RULES,
        "rule.scale": {"min": 0.1, "max": 1.0, "when": {"rule": ["sign_fa"]}},
        "rule.expansion": {"choices": [1, 2], "when": {"rule": ["pfa"]}},
    }
    search = tuning.Search(base(epochs=1), space, tmp_path / "search", trials=6)
    search.run()
    table = search.table()
    assert set(table["status"]) == {"finished"}
    # Seed 0 draws each of them.
    assert set(table["rule"]) == {"fa", "sign_fa", "pfa"}
    for row in table.to_dict("records"):
        rule = run_folder.read_config(tmp_path / "search" / "trials" / row["trial"])[
            "rule"
        ]
        expected = {"name": row["rule"]}
        if row["rule"] == "sign_fa":
            expected["scale"] = row["rule.scale"]
        elif row["rule"] == "pfa":
            expected["expansion"] = int(row["rule.expansion"])
        assert rule == (expected if len(expected) > 1 else row["rule"])
        assert pd.isna(row["rule.scale"]) == (row["rule"] != "sign_fa")
    search.write_hparams(tmp_path / "hparams")
    again = tuning.Search(base(epochs=1), space, tmp_path / "search", trials=6)
    again.run()
    pd.testing.assert_frame_equal(again.table(), table)


@pytest.mark.long
def test_any_tuner_takes_the_hypermodel(tmp_path):
    hypermodel = tuning.hypermodel(base(), RATE)
    given = {"objective": "val_accuracy", "max_trials": 2, "seed": 1}
    tuner = keras_tuner.RandomSearch(
        hypermodel, directory=tmp_path, project_name="own", **given
    )
    tuner.search(verbose=0)
    scores = [trial.score for trial in tuner.oracle.get_best_trials(2)]
    # The score of a trial is that of the configuration's own data and epochs.
    best = tuner.get_best_hyperparameters(1)[0]
    model = hypermodel.build(best)
    history = hypermodel.fit(best, model)
    assert len(history.history["val_accuracy"]) == 3
    assert max(history.history["val_accuracy"]) == pytest.approx(scores[0])
    # Data of the user's own goes first.
    x, y = np.ones((10, 8, 8, 1), "float32"), np.ones((10, 1), "int32")
    tuner = keras_tuner.RandomSearch(
        hypermodel, directory=tmp_path, project_name="given", **given
    )
    tuner.search(x, y, validation_data=(x, y), epochs=40, verbose=0)
    assert tuner.oracle.get_best_trials(1)[0].score == 1.0


@pytest.mark.slow
def test_a_search_ranks_its_trials_and_survives_diverged_ones(tmp_path):
    space = {"optimizer.learning_rate": {"choices": [1e-6, 0.5, 1e30]}}
    search = tuning.Search(base(), space, tmp_path / "search", trials=3)
    search.run()
    table = search.table()
    assert list(table["optimizer.learning_rate"]) == ["0.5", "1e-06", "1e+30"]
    assert list(table["status"]) == ["finished", "finished", "diverged"]
    assert table["val_accuracy"][:2].is_monotonic_decreasing
    assert math.isnan(table["val_accuracy"].iloc[-1])
    for row in table[:2].itertuples():
        logs = run_folder.read_metrics(tmp_path / "search" / "trials" / row.trial)
        assert row.val_accuracy == logs[-1]["val_accuracy"]
        assert row.epochs == 3
    best = search.best()
    assert best.optimizer.learning_rate == 0.5
    assert best.epochs == 3 and best.rule == "fa"
    assert search.failures() == {}
    search.write_hparams(tmp_path / "hparams")
    search.write_hparams(tmp_path / "hparams")
    assert len(list((tmp_path / "hparams").glob("*/events*"))) == 3


@pytest.mark.slow
def test_the_smallest_loss_is_the_best(tmp_path):
    space = {"optimizer.learning_rate": {"choices": [1e-6, 0.5]}}
    options = {"objective": "val_loss", "algorithm": "bayesian", "trials": 2}
    search = tuning.Search(base(), space, tmp_path, **options)
    search.run()
    assert list(search.table()["optimizer.learning_rate"]) == ["0.5", "1e-06"]
    assert search.best().optimizer.learning_rate == 0.5


@pytest.mark.slow
def test_hyperband_trains_what_its_rounds_say(tmp_path):
    search = tuning.Search(base(), RATE, tmp_path, "hyperband")
    search.run()
    rounds = tuning._hyperband_rounds(3)
    trained = list(search.table().sort_values("trial")["epochs"])
    assert trained == rounds == [1, 1, 1, 3, 3, 3]
    # What goes on to the next round is the best of the last.
    trials = search._oracle.trials
    values = {n: t.hyperparameters.values for n, t in trials.items()}
    first = sorted(trials)[:3]
    best = max(first, key=lambda name: trials[name].score)
    rate = "optimizer.learning_rate"
    assert values[sorted(trials)[3]][rate] == values[best][rate]


@pytest.mark.parametrize("longest", [1, 2, 3, 8, 9, 10, 27, 81, 100])
def test_rounds_are_keras_tuners(longest):
    oracle = keras_tuner.oracles.HyperbandOracle(max_epochs=longest)
    rounds = [
        oracle._get_epochs(bracket, number)
        for bracket in reversed(range(oracle._get_num_brackets()))
        for number in range(oracle._get_num_rounds(bracket))
        for _ in range(oracle._get_size(bracket, number))
    ]
    assert tuning._hyperband_rounds(longest) == rounds


@pytest.mark.slow
def test_a_trial_that_does_not_get_better_ends_early(tmp_path):
    # Nothing is learned at this rate, so no line is better than the first.
    space = {"optimizer.learning_rate": {"choices": [1e-12, 2e-12]}}
    search = tuning.Search(base(epochs=9), space, tmp_path, trials=1, patience=2)
    search.run()
    assert list(search.table()["epochs"]) == [3]
    assert list(search.table()["status"]) == ["finished"]


def test_patience_outlives_a_stop():
    stop = tuning.StopEarly("val_loss", patience=3, mode="min")

    class Model:
        stop_training = False
        optimizer = None

    stop.set_model(Model())
    stop.on_train_begin()
    for epoch, loss in enumerate([1.0, 2.0, 2.0]):
        stop.on_epoch_end(epoch, {"val_loss": loss})
    resumed = tuning.StopEarly("val_loss", patience=3, mode="min")
    resumed.set_state(json.loads(json.dumps(stop.get_state())))
    resumed.set_model(Model())
    resumed.on_train_begin()
    assert not resumed.model.stop_training
    resumed.on_epoch_end(3, {"val_loss": 1.5})
    assert resumed.model.stop_training


def test_what_would_fail_every_trial_stops_the_search(tmp_path):
    config = base()
    config.dataset.name = "mnist"
    config.dataset.data_dir = str(tmp_path / "nowhere")
    search = tuning.Search(config, RATE, tmp_path / "search", trials=3)
    with pytest.raises(datasets.DatasetNotFound):
        search.run()
    assert len(list((tmp_path / "search" / "tuner").glob("trial_*"))) == 1


@pytest.mark.slow
def test_what_fails_one_trial_is_recorded(tmp_path):
    space = {"loss": {"choices": ["cross_entropy", "nonsense"]}}
    search = tuning.Search(base(), space, tmp_path, trials=2)
    search.run()
    assert list(search.table()["status"]) == ["finished", "failed"]
    (message,) = search.failures().values()
    assert "nonsense" in message
    # It is not run again.
    again = tuning.Search(base(), space, tmp_path, trials=2)
    assert again.table().equals(search.table())
    (message,) = again.failures().values()
    assert "nonsense" in message


def test_an_objective_that_is_not_logged_stops_the_search(tmp_path):
    search = tuning.Search(base(), RATE, tmp_path, objective="val_acuracy", trials=2)
    with pytest.raises(ValueError, match=r"They log .*val_accuracy"):
        search.run()
    assert not search.table().size
    with pytest.raises(ValueError, match="No trial"):
        search.best()


def test_a_folder_of_another_search_is_refused(tmp_path):
    tuning.Search(base(), RATE, tmp_path / "search", trials=2)
    tuning.Search(base(), RATE, tmp_path / "search", trials=5)
    with pytest.raises(
        run_folder.RunFolderError, match=r"config\.rule: 'fa'.*'ada_fa'"
    ):
        tuning.Search(base(rule="ada_fa"), RATE, tmp_path / "search")
    with pytest.raises(run_folder.RunFolderError, match=r"seed: 0 .*, 1 given"):
        tuning.Search(base(), RATE, tmp_path / "search", seed=1)
    # As a former version stored it.
    path = tmp_path / "search" / "search.json"
    stored = json.loads(path.read_text())
    stored["config"] |= {"sign_scale": "glorot", "feedback_initializer": None}
    del stored["config"]["instruments"]["others"]
    path.write_text(json.dumps(stored))
    tuning.Search(base(), RATE, tmp_path / "search", trials=2)
    path.write_text("[]")
    with pytest.raises(run_folder.RunFolderError, match=r"search\.json should hold"):
        tuning.Search(base(), RATE, tmp_path / "search", trials=2)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("mine")
    with pytest.raises(run_folder.RunFolderError, match="holds no search"):
        tuning.Search(base(), RATE, tmp_path / "letters")


def _without(path):
    shutil.rmtree(path)


def _shortened(path):
    for file in path.rglob("*.json"):
        file.write_text(file.read_text()[: file.stat().st_size // 2])


def _lists(path):
    (path / "oracle.json").write_text("[]")


def _ghost(path):
    """As a kill between two of keras-tuner's writes left it."""
    state = json.loads((path / "oracle.json").read_text())
    state["ongoing_trials"] = {"tuner0": "1"}
    (path / "oracle.json").write_text(json.dumps(state))


SEARCHES = {
    "random": {"trials": 3},
    "bayesian": {"algorithm": "bayesian", "trials": 4},
    "hyperband": {"algorithm": "hyperband"},
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of each kind, and its table."""
    found = {}
    for name, options in SEARCHES.items():
        workdir = tmp_path_factory.mktemp(name)
        search = tuning.Search(base(), RATE, workdir, **options)
        search.run()
        found[name] = workdir, search.table()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        standing(damage, stands=damage is _shortened)
        for damage in (_without, _shortened, _lists, _ghost)
    ],
)
def test_what_keras_tuner_wrote_may_be_damaged(searched, tmp_path, damage):
    workdir, table = searched["random"]
    shutil.copytree(workdir, tmp_path / "search")
    damage(tmp_path / "search" / "tuner")
    before = [p.stat().st_mtime_ns for p in tmp_path.rglob("summary.json")]
    again = tuning.Search(base(), RATE, tmp_path / "search", **SEARCHES["random"])
    # It is all there before anything is run.
    assert again.table().equals(table)
    again.run()
    assert again.table().equals(table)
    assert [p.stat().st_mtime_ns for p in tmp_path.rglob("summary.json")] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        standing("random", 0, stands=False),
        standing("bayesian", 3, stands=False),
        ("hyperband", 2),
    ],
)
def test_a_search_goes_on_where_its_trials_are(searched, tmp_path, name, kept):
    workdir, table = searched[name]
    shutil.copytree(workdir / "trials", tmp_path / "trials")
    shutil.copy(workdir / "search.json", tmp_path)
    for folder in sorted((tmp_path / "trials").iterdir())[kept:]:
        shutil.rmtree(folder)
    again = tuning.Search(base(), RATE, tmp_path, **SEARCHES[name])
    assert len(again.table()) == kept
    again.run()
    assert again.table().equals(table)


@pytest.mark.slow
def test_a_trial_that_was_stopped_is_gone_on_with(searched, tmp_path):
    workdir, table = searched["random"]
    shutil.copytree(workdir, tmp_path / "search")
    (tmp_path / "search" / "trials" / "1" / "summary.json").unlink()
    again = tuning.Search(base(), RATE, tmp_path / "search", **SEARCHES["random"])
    assert list(again.table()["status"]) == ["finished", "finished", "running"]
    again.run()
    assert again.table().equals(table)


@pytest.mark.slow
def test_more_trials_of_a_search(searched, tmp_path):
    workdir, table = searched["random"]
    shutil.copytree(workdir, tmp_path / "search")
    again = tuning.Search(base(), RATE, tmp_path / "search", trials=11)
    rates = list(again.table()["optimizer.learning_rate"])
    assert rates == list(table["optimizer.learning_rate"])
    names = sorted(p.name for p in (tmp_path / "search" / "trials").iterdir())
    assert names == ["00", "01", "02"] == sorted(again.table()["trial"])


@pytest.mark.slow
def test_what_a_trial_was_given_is_what_it_has(searched, tmp_path):
    """As where workers shared the search, so that trials ended in another order."""
    workdir, table = searched["bayesian"]
    trials = tmp_path / "search" / "trials"
    shutil.copytree(workdir, tmp_path / "search")
    for old, new in (("2", "x"), ("3", "2"), ("x", "3")):
        (trials / old).rename(trials / new)
    again = tuning.Search(base(), RATE, tmp_path / "search", **SEARCHES["bayesian"])
    again.run()
    columns = ["optimizer.learning_rate", "val_accuracy", "status"]
    assert (
        again.table()[columns]
        .reset_index(drop=True)
        .equals(table[columns].reset_index(drop=True))
    )
    # What this search could not have given is refused.
    config = json.loads((trials / "2" / "config.json").read_text())
    config["seed"] = 5
    (trials / "2" / "summary.json").unlink()
    (trials / "2" / "config.json").write_text(json.dumps(config))
    with pytest.raises(run_folder.RunFolderError, match="seed: 5 in the folder"):
        tuning.Search(base(), RATE, tmp_path / "search", **SEARCHES["bayesian"])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "alone"),
        ({"ORACLE_IP": "h", "ORACLE_PORT": "1", "TUNER_ID": "chief"}, "chief"),
        ({"ORACLE_IP": "h", "ORACLE_PORT": "1", "TUNER_ID": "tuner1"}, "worker"),
        ({"ORACLE_IP": "h", "TUNER_ID": "chief"}, "Missing: KERASTUNER_ORACLE_PORT"),
        ({"TUNER_ID": "chief"}, "KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT"),
    ],
)
def test_the_role_in_a_distributed_search(monkeypatch, environment, expected):
    for name in ("ORACLE_IP", "ORACLE_PORT", "TUNER_ID"):
        monkeypatch.delenv(f"KERASTUNER_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"KERASTUNER_{name}", value)
    if "KERASTUNER" in expected:
        with pytest.raises(ValueError, match=expected):
            tuning.read_role()
    else:
        assert tuning.read_role() == expected


SPACE = """
def get_space():
    return {
        "config": "digits.py",
        "fields": {"epochs": 2, "dataset.train_size": 200, "log_every": 1},
        "space": {
            "optimizer.learning_rate": {"min": 1e-3, "max": 1.0, "log": True},
            "rule": {"choices": ["fa", "ada_fa", "sign_fa"]},
        },
        "objective": "val_accuracy",
        "confirm": {"seed": [1, 2]},
    }
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "space.py").write_text(SPACE)
    shutil.copy(ROOT / "configs" / "digits.py", tmp_path)
    return tmp_path / "tuning" / "space.py"


def start(space, workdir, trials, **environment):
    return subprocess.Popen(
        [
            *(sys.executable, "trainers/tune.py", f"--space={space}"),
            *(f"--workdir={workdir}", f"--trials={trials}"),
        ],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "shared", [[None], ["chief", "tuner0", "tuner1"]], ids=["alone", "shared"]
)
def test_killed_and_shared_searches_end_like_an_undisturbed_one(
    tmp_path, space, shared
):
    plain = start(space, tmp_path / "plain", 4)
    output = plain.communicate(timeout=300)[0]
    assert plain.returncode == 0, output
    assert "best trial, seed=2: val_accuracy" in output
    assert "(mean and standard error of 2)" in output
    expected = (tmp_path / "plain" / "trials.csv").read_text()
    assert expected.count("finished") == 4
    assert (tmp_path / "plain" / "search.png").stat().st_size > 5000

    # Killed in its third trial.
    killed = start(space, tmp_path / "killed", 4)
    third = tmp_path / "killed" / "trials" / "2"
    patience = time.monotonic() + 300
    begun = lambda: (run_folder.place(third) / "config.json").exists()  # noqa: E731
    while not begun() and killed.poll() is None:
        assert time.monotonic() < patience
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "trials" / "3").exists()

    # Gone on with by the same command, or by a chief and two workers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    oracle = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    begun = [
        start(
            space,
            tmp_path / "killed",
            4,
            **({"KERASTUNER_TUNER_ID": name, **oracle} if name else {}),
        )
        for name in shared
    ]
    for process in begun:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    assert (tmp_path / "killed" / "trials.csv").read_text() == expected


@pytest.mark.slow
def test_a_wrong_space_file_is_named(tmp_path, space):
    missing = start(tmp_path / "none.py", tmp_path / "out", 1)
    space.write_text("def get_space():\n    return {'config': 'digits.py'}\n")
    lacking = start(space, tmp_path / "out", 1)
    assert "error: There is no file" in missing.communicate(timeout=300)[0]
    assert "lacks objective, space" in lacking.communicate(timeout=300)[0]
    assert missing.returncode == lacking.returncode == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_worker_whose_chief_has_gone_says_so(tmp_path, monkeypatch, handler):
    monkeypatch.setattr(tuning, "_LOOK", 0.05)
    monkeypatch.setattr(tuning, "_SILENCE", 0.2)
    search = tuning.Search(base(), RATE, tmp_path, trials=2)
    chief = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(chief.getsockname()[1]))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "tuner0")

    def wait():
        chief.accept()[0].close()
        chief.close()
        for _ in range(200):
            time.sleep(0.1)

    monkeypatch.setattr(search._tuner, "search", wait)
    # What shells put into the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(RuntimeError, match="chief of the search cannot be reached"):
            search.run()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_chief_says_which_trial_nobody_is_at(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_LOOK", 0.05)
    workdir, _ = searched["random"]
    shutil.copytree(workdir, tmp_path / "search")
    trial = tmp_path / "search" / "trials" / "1"
    (trial / "summary.json").unlink()
    os.utime(trial / "metrics.jsonl", (time.time() - 95, time.time() - 95))
    search = tuning.Search(base(), RATE, tmp_path / "search", trials=3)
    monkeypatch.setattr(tuning, "read_role", lambda: "chief")
    monkeypatch.setattr(search._tuner, "search", lambda: time.sleep(0.5))
    output = io.StringIO()
    search.run(rich.console.Console(file=output, width=300))
    assert output.getvalue().count("Trial 1 has logged nothing for 1 min 35 s") == 1
