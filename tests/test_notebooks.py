"""The notebooks of docs/learn: what they are made of, and that they run.

`make notebooks` runs each in a kernel of its own, three minutes at most, and prints its
time; the numbers are asserted in the notebooks themselves. The default suite only looks
at them.
"""

import ast
import importlib
import json
import pathlib
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "learn"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 180


def _code(path):
    """The source of each code cell."""
    cells = json.loads(path.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_there_are_notebooks():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers and len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith(f"# {int(path.name[:2])}. ")
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_asserts_what_it_says_by_public_names(path):
    trees = [ast.parse(code) for code in _code(path)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assert sum(isinstance(node, ast.Assert) for node in nodes) >= 3
    chains = {c for node in nodes if (c := _chain(node)) and c[0] == "keras_fa"}
    assert chains
    for _, *names in chains:
        thing = importlib.import_module("keras_fa")
        for name in names:
            assert not name.startswith("_"), names
            assert hasattr(thing, name), names
            thing = getattr(thing, name)


def _chain(node):
    """The names of `a.b.c`, or None for anything else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if isinstance(node, ast.Name) else None


@pytest.mark.long
@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="the extra docs has it")
    nbclient = pytest.importorskip("nbclient", reason="the extra docs has it")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    start = time.perf_counter()
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    print(f"\n{path.stem}: {time.perf_counter() - start:.0f} seconds")
