"""What one backend saved the others load and train on, and all measure the same."""

import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from across_backends import RULES

ROOT = pathlib.Path(__file__).parents[1]
PYTHONS = {
    "tensorflow": pathlib.Path(sys.executable),
    "jax": ROOT / ".venv-jax/bin/python",
    "torch": ROOT / ".venv-torch/bin/python",
}

pytestmark = [pytest.mark.long, pytest.mark.slow]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder in which a process of each backend has left its files."""
    for backend, python in PYTHONS.items():
        if not python.exists():
            pytest.skip(f"no .venv-{backend}: make .venv-{backend}/ready")
    folder = tmp_path_factory.mktemp("across")
    processes = [
        subprocess.Popen(
            [python, "tests/across_backends.py", folder, ",".join(PYTHONS)],
            cwd=ROOT,
            env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        )
        for backend, python in PYTHONS.items()
    ]
    try:
        assert [process.wait(900) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("made", PYTHONS)
@pytest.mark.parametrize("rule", RULES)
def test_training_goes_on_alike_whoever_saved_it(written, rule, made):
    states = []
    for backend in PYTHONS:
        with np.load(written / f"{rule}-{made}-{backend}.npz") as file:
            states.append([file[name].astype("d") for name in file.files])
    for one, other in itertools.combinations(states, 2):
        for left, right in zip(one, other, strict=True):
            scale = max(np.abs(left).max(), 1e-3)
            np.testing.assert_allclose(left / scale, right / scale, atol=1e-4)


def test_gradient_alignment_of_resnet18_is_one_on_all(written):
    readings = []
    for backend in PYTHONS:
        with np.load(written / f"resnet18-{backend}.npz") as file:
            readings.append({name: file[name] for name in file.files})
    assert len(readings[0]) == 42
    for other in readings[1:]:
        assert other.keys() == readings[0].keys()
        for name, reading in readings[0].items():
            # A cosine is of the order 1. Measured: 1.8e-7 where it is 1.4e-4, and
            # 8.4e-4 of the others and the norms at most.
            np.testing.assert_allclose(
                other[name], reading, rtol=1e-3, atol=1e-5, err_msg=name
            )
