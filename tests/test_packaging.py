"""What is installed: the layout of the wheel, the extras, the command."""

import importlib.metadata
import itertools
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import pytest
import setuptools
import yaml

import keras_fa
from keras_fa.lab import run

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def command(*arguments, path=ROOT, cwd=None):
    """`keras-fa` of the package in a folder, as its console script starts it."""
    script = [sys.executable, "-Pc", "from keras_fa_command import main; main()"]
    return subprocess.run(
        [*script, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel installs, as setup.py says, far from the checkout."""
    layout = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", layout.update)
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    folder = tmp_path_factory.mktemp("installed")
    for package in layout["packages"]:
        name = package.replace(".", "/")
        source = ROOT / layout["package_dir"].get(package, name)
        patterns = ["*.py", *layout["package_data"].get(package, [])]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in [file for pattern in patterns for file in source.glob(pattern)]:
            shutil.copy(file, folder / name)
    for module in layout["py_modules"]:
        shutil.copy(ROOT / f"{module}.py", folder)
    return folder


def test_the_wheel_holds_package_programs_and_configurations(installed):
    held = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    inside = {"trainers", "configs"}
    expected = {"keras_fa_command.py", "keras_fa/py.typed", "keras_fa/zoo.json"}
    for folder in ("keras_fa", *inside):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            expected.add(f"keras_fa/{name}" if folder in inside else name)
    assert held == expected


def test_versions_and_requirements_have_one_source():
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+", keras_fa.__version__)
    assert f"keras_fa {keras_fa.__version__}\n" == command("--version").stdout
    pinned = {
        line.partition("==")[0].lower().replace("-", "_")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    for requirement in itertools.chain(PROJECT["dependencies"], *EXTRAS.values()):
        name = re.match(r"[\w-]+", requirement)[0].lower().replace("-", "_")
        assert name in {*pinned, "keras_fa"}, requirement


def test_what_hosts_and_readers_are_told_agrees_with_the_metadata():
    def read(name):
        return yaml.safe_load((ROOT / name).read_text())

    (job,) = read(".github/workflows/tests.yml")["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    classifier = "Programming Language :: Python :: "
    assert [f"{classifier}{v}" for v in versions] == [
        c for c in PROJECT["classifiers"] if c.startswith(f"{classifier}3.")
    ]
    assert PROJECT["requires-python"] == f">={versions[0]},<3.14"
    assert versions[-1] == "3.13"
    assert job["steps"][-1]["run"].startswith("make test")
    citation = read("CITATION.cff")
    assert citation["version"] == keras_fa.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert all(h["entry"].startswith(".venv/bin/ruff") for h in local["hooks"])


def test_a_run_knows_its_versions_without_the_packages_metadata(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    environment = run._environment("1a2b3c4")
    assert environment["commit"] == "1a2b3c4"
    assert environment["keras_fa"] == keras_fa.__version__
    assert {"keras", "tensorflow", "numpy"} <= environment.keys()


_WITHOUT_EXTRAS = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import keras
import numpy as np
import keras_fa

data = keras_fa.datasets.load("separable", n=32, n_test=8, d_in=4)
model = keras_fa.models.mlp(data.input_shape, (8,), 1, rule="fa")
model.compile(keras_fa.optimizers.TorchSGD(0.1), "mse")
readers = [keras_fa.callbacks.WeightAlignment(), keras_fa.callbacks.Conservation()]
history = model.fit(data.train, epochs=1, verbose=0, callbacks=readers).history
assert keras_fa.analysis.conserved_groups(model)
assert keras_fa.distribution and keras_fa.losses and keras_fa.results

messages = {{}}
for code in json.load(sys.stdin):
    try:
        exec(code)
        messages[code] = "nothing was missing"
    except ImportError as error:
        messages[code] = str(error)
print(json.dumps([list(history), messages]))
"""


@pytest.mark.slow
def test_the_layers_need_no_extra_and_a_room_without_its_own_names_it():
    needed = {
        "keras_fa.datasets.load('digits')": ("sklearn", "data"),
        "keras_fa.datasets.load('mnist')": ("tensorflow_datasets", "data"),
        "keras_fa.figures": ("matplotlib", "figures"),
        "import keras_fa.figures": ("matplotlib", "figures"),
        "keras_fa.config": ("ml_collections", "lab"),
        "keras_fa.experiment": ("ml_collections", "lab"),
        "import keras_fa.sweeps": ("ml_collections", "lab"),
        "keras_fa.tuning": ("keras_tuner", "tune"),
        "import keras_fa.tuning": ("keras_tuner", "tune"),
        "from keras_fa import papers": ("pandas", "papers"),
    }
    absent = {module for module, _ in needed.values()} | {"jinja2", "tensorboard"}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS.format(absent=absent)],
        input=json.dumps(list(needed)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    logs, messages = json.loads(done.stdout.splitlines()[-1])
    assert "alignment/dense_1" in logs
    for code, (module, extra) in needed.items():
        assert extra in EXTRAS
        assert messages[code] == (
            f"This needs {module}, which is not installed: "
            f"pip install 'keras_fa[{extra}]'."
        )


def test_the_command_says_what_there_is(installed):
    for arguments in ((), ("--help",), ("help",)):
        done = command(*arguments)
        assert done.returncode == 0
        assert "keras-fa COMMAND" in done.stdout
        for program in [*(ROOT / "trainers").glob("[!_]*.py")]:
            assert re.search(rf"^  {program.stem} +[A-Z].*\.$", done.stdout, re.M)
        assert re.search(r"^  benchmark +Measures", done.stdout, re.M)
    unknown = command("trian", "--workdir=x")
    assert unknown.returncode == 1
    assert 'Unknown command: trian. Did you mean "train"?' in unknown.stderr
    assert "benchmark  not installed" in command(path=installed).stdout
    benchmark = command("benchmark", path=installed)
    assert benchmark.returncode == 1
    assert "benchmarks/run.py in a checkout" in benchmark.stderr


@pytest.mark.parametrize("where", ["checkout", "installed"])
def test_the_command_hands_its_arguments_over(request, tmp_path, where):
    path = ROOT if where == "checkout" else request.getfixturevalue("installed")
    arguments = ["--hosts=a,b", "--index=1", "--", "printenv", "TF_CONFIG"]
    done = command("launch", *arguments, path=path, cwd=tmp_path)
    assert json.loads(done.stdout)["task"] == {"type": "worker", "index": 1}
    assert command("launch", path=path, cwd=tmp_path).returncode == 1


@pytest.mark.slow
@pytest.mark.long
def test_an_installed_sweep_takes_names_and_its_workers_are_quiet(installed, tmp_path):
    grid = tmp_path / "configs" / "grids" / "small.py"
    grid.parent.mkdir(parents=True)
    grid.write_text(
        "def get_grid():\n"
        "    axes = [{'epochs': [1]}, {'batch_size': [500]}]\n"
        "    return {'config': 'digits', 'axes': axes, 'seconds_per_cell': 9}\n"
    )
    arguments = ("sweep", "--grid=small", "--workdir=runs")
    done = command(*arguments, path=installed, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("finished: epochs=1,batch_size=500\n1 finished\n")
    listed = command(
        "sweep",
        "--grid=table3",
        "--workdir=x",
        "--dry-run",
        path=installed,
        cwd=tmp_path,
    )
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "240 cells; about" in listed.stdout
