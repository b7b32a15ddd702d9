"""Files of trained networks: the same run makes the same file, another is refused."""

import functools
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_fa
from keras_fa import experiment, zoo
from keras_fa.config import default_config
from keras_fa.lab import run_folder
from keras_fa.papers import weights

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of one small network under two rules, and their release."""
    folder = tmp_path_factory.mktemp("zoo")
    config = default_config()
    config.dataset.train_size = 200
    config.model.hidden_units = (8,)
    config.optimizer.name, config.epochs, config.batch_size = "adam", 1, 50
    config.instruments.conservation = False
    for rule in ("fa", "dfa"):
        config.rule = rule
        experiment.run(config, folder / "runs" / rule)
    entries = weights.release(folder / "runs", folder / "files")
    (folder / "zoo.json").write_text(json.dumps({"url": None, "networks": entries}))
    return folder


@pytest.fixture
def released(made, monkeypatch):
    monkeypatch.setattr(zoo, "_MANIFEST", made / "zoo.json")
    monkeypatch.delenv("KERAS_FA_ZOO", raising=False)
    zoo._manifest.cache_clear()
    yield made / "files"
    zoo._manifest.cache_clear()


@pytest.mark.slow
def test_a_network_predicts_as_its_run_did(released, monkeypatch):
    assert list(zoo.entries()) == ["mlp_dfa", "mlp_fa"]
    for name, entry in zoo.entries().items():
        model = zoo.load(name, released)
        assert experiment.weights_hash(model) == entry["weights"]
        data = keras_fa.datasets.load("digits", train_size=200)
        x, y = data.arrays("test")
        found = np.argmax(model.predict(x, verbose=0), axis=-1)
        assert np.mean(found == y) == pytest.approx(entry["test_accuracy"], abs=1e-6)
        assert entry["bytes"] == (released / f"{name}.keras").stat().st_size
        assert not model.compiled
    summary = run_folder.read_summary(released.parent / "runs" / "dfa")
    assert zoo.entries()["mlp_dfa"]["weights"] == summary["weights"]
    monkeypatch.setenv("KERAS_FA_ZOO", str(released))
    b = zoo.load("mlp_fa").layers[-1].feedback
    np.testing.assert_array_equal(b, zoo.load("mlp_fa", released).layers[-1].feedback)


@pytest.mark.slow
def test_the_same_run_makes_the_same_file(released, tmp_path):
    assert weights.release(released.parent / "runs", tmp_path) == zoo.entries()
    for name in zoo.entries():
        again = (tmp_path / f"{name}.keras").read_bytes()
        assert again == (released / f"{name}.keras").read_bytes()


@pytest.mark.slow
def test_a_file_that_was_changed_is_refused(released, tmp_path):
    content = bytearray((released / "mlp_fa.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "mlp_fa.keras").write_bytes(content)
    with pytest.raises(ValueError, match="not the file of the release") as told:
        zoo.load("mlp_fa", tmp_path)
    assert zoo.entries()["mlp_fa"]["sha256"] in str(told.value)
    assert hashlib.sha256(content).hexdigest() in str(told.value)


@pytest.mark.slow
def test_what_is_not_there_is_told_with_the_command_that_makes_it(released, tmp_path):
    with pytest.raises(ValueError, match='Did you mean "mlp_fa"'):
        zoo.load("mlp-fa", released)
    for arguments, where in (((tmp_path,), str(tmp_path)), ((), "in no folder")):
        with pytest.raises(FileNotFoundError, match=re.escape(where)) as told:
            zoo.load("mlp_fa", *arguments)
        entry = zoo.entries()["mlp_fa"]
        assert entry["command"] in str(told.value)
        assert entry["sha256"] in str(told.value)
        assert "keras-fa zoo --runs=" in str(told.value)


@pytest.mark.slow
def test_a_file_is_fetched_from_where_the_release_says(released, tmp_path, monkeypatch):
    manifest = json.loads((released.parent / "zoo.json").read_text())
    manifest["url"] = released.as_uri()
    (tmp_path / "zoo.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(zoo, "_MANIFEST", tmp_path / "zoo.json")
    zoo._manifest.cache_clear()
    fetch = functools.partial(keras.utils.get_file, cache_dir=str(tmp_path))
    monkeypatch.setattr(keras.utils, "get_file", fetch)
    model = zoo.load("mlp_dfa")
    assert experiment.weights_hash(model) == zoo.entries()["mlp_dfa"]["weights"]
    # What lies in the cache is tested too.
    cached = tmp_path / "keras_fa" / "mlp_dfa.keras"
    cached.write_bytes(b"other")
    zoo.load("mlp_dfa")
    assert (
        hashlib.sha256(cached.read_bytes()).hexdigest()
        == (zoo.entries()["mlp_dfa"]["sha256"])
    )


@pytest.mark.slow
def test_runs_that_cannot_be_released(made, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="No finished run of mlp or lenet"):
        weights.release(made / "runs", tmp_path, seed=1)
    monkeypatch.setattr(weights.run, "weights_hash", lambda model: "other")
    with pytest.raises(run_folder.RunFolderError, match="not the weights that the run"):
        weights.release(made / "runs", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_files_and_manifest(made, tmp_path):
    program = [sys.executable, str(ROOT / "trainers" / "zoo.py")]
    files, manifest = tmp_path / "files", tmp_path / "zoo.json"
    flags = (f"--runs={made / 'runs'}", f"--folder={files}", f"--manifest={manifest}")
    done = subprocess.run(
        [*program, *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"mlp_dfa: \d+ bytes, sha256 \w{12}, \d+\.\d% of", done.stdout)
    assert json.loads(manifest.read_text()) == json.loads(
        (made / "zoo.json").read_text()
    )


def test_what_the_package_says_of_its_release():
    entries = zoo.entries()
    assert {"mlp_fa", "mlp_sign_fa", "lenet_fa", "lenet_sign_fa"} <= set(entries)
    assert sum(entry["bytes"] for entry in entries.values()) < 10e6
    for entry in entries.values():
        assert run_folder.identity(entry["config"]) == entry["identity"]
        assert not entry["commit"].endswith("dirty")
