"""What the README and the docstrings show runs as it stands."""

import doctest
import importlib
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_fa
from keras_fa import registry
from keras_fa.lab import plans

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_examples_of_docstrings(monkeypatch):
    """They know keras, keras_fa and np; all else they bring along."""
    tables = {kind: dict(table) for kind, table in registry._TABLES.items()}
    monkeypatch.setattr(registry, "_TABLES", tables)
    said = []
    finder = doctest.DocTestFinder(exclude_empty=True)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(verbose=False, optionflags=options)
    for found in pkgutil.walk_packages(keras_fa.__path__, "keras_fa."):
        module = importlib.import_module(found.name)
        # The laboratory's short names are other modules under their own.
        if module.__name__ != found.name:
            continue
        names = {"keras": keras, "keras_fa": keras_fa, "np": np}
        for example in finder.find(module, found.name, globs=names):
            keras.utils.clear_session(free_memory=False)
            runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).attempted > 10
    assert not said, "".join(said)


_BLOCKS = """
import json, sys, traceback

failures = []
for block in json.load(sys.stdin):
    try:
        exec(compile(block, "README", "exec"), {"__name__": "__main__"})
    except Exception:
        failures.append(block + traceback.format_exc())
print(json.dumps(failures))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "pages",
    ["README.md", pytest.param("docs/**/*.md", marks=pytest.mark.long)],
)
def test_every_python_block_runs_on_its_own(tmp_path, pages):
    blocks = [
        block
        for page in sorted(ROOT.glob(pages))
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    ]
    assert len(blocks) > 2
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKS],
        input=json.dumps(blocks),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_pages_have_every_rule():
    page = (ROOT / "docs" / "explain" / "rules.md").read_text()
    for name in keras_fa.rules.NAMES:
        assert f'| `"{name}"` |' in README
        assert f'| `"{name}"` |' in page
        assert f'**`"{name}"`**' in page or name == "backprop"


def test_what_the_pages_type_is_there():
    pages = [README, *(page.read_text() for page in (ROOT / "docs").rglob("*.md"))]
    typed = "\n".join(pages).replace("\\\n", " ")
    # What is quoted is for others, such as SLURM.
    typed = re.sub(r'"[^"\n]*"', "x", typed)
    commands = re.findall(
        r"keras-fa ([a-z]+)\b((?: +(?!-- )[\"'\w.=/,:$\[\]{}()-]+)*)", typed
    )
    assert {name for name, _ in commands} >= {"train", "sweep", "tune", "reproduce"}
    for name, arguments in commands:
        folder = "benchmarks/run" if name == "benchmark" else f"trainers/{name}"
        program = (ROOT / f"{folder}.py").read_text()
        flags = set(re.findall(r'DEFINE\w*\(\s*(?:_binary\.PATH,\s*)?"(\w+)"', program))
        given = re.findall(r"--([\w-]+)(\.[\w.]+)?=?(\S*)", arguments)
        for flag, field, value in given:
            assert flag.replace("-", "_") in flags, f"{name} --{flag}"
            is_plan = flag in ("config", "grid", "space") and not field
            if is_plan and value.isidentifier():
                assert value in plans.names(flag)
    for path in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README):
        assert (ROOT / path).exists(), path
