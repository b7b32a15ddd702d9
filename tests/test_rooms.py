"""The house: imports point one way, and each private hook is in its room."""

import ast
import pathlib
import re

import pytest

import keras_fa

ROOT = pathlib.Path(keras_fa.__file__).parent

# From the ground up: a room imports from those above it in this list alone.
ROOMS = (
    "_extras",
    "_keras",
    "autodiff",
    "registry",
    "gradients",
    "rules.base",
    "rules.fixed",
    "rules.learned",
    "rules.direct",
    "rules.signs",
    "rules.choice",
    "rules",
    "layers._base",
    "layers.dense",
    "layers.conv",
    "layers.depthwise",
    "layers.direct",
    "layers.boundary",
    "layers.einsum",
    "layers.attention",
    "layers.embedding",
    "layers.normalization",
    "layers.recurrent",
    "layers",
    "models.wiring",
    "models.swapping",
    "models.copying",
    "models.freezing",
    "models.conversion",
    "models.networks",
    "models.named",
    "models",
    "losses",
    "optimizers",
    "analysis._calls",
    "analysis._contractions",
    "analysis._graph",
    "analysis._minimum_norm",
    "analysis._dominance",
    "analysis._kernels",
    "analysis._views",
    "analysis._ends",
    "analysis._walk",
    "analysis._scores",
    "analysis._streams",
    "analysis._groups",
    "analysis._conservation",
    "analysis._ledger",
    "analysis._alignment",
    "analysis._gradient_alignment",
    "analysis._survey",
    "analysis._audit",
    "analysis",
    "zoo",
    "callbacks",
    "_canvas",
    "live",
    "_cluster",
    "distribution",
    "datasets.transforms",
    "datasets.images",
    "datasets.augmentation",
    "datasets.streams",
    "datasets.records",
    "datasets.pipelines",
    "datasets.tiny_imagenet",
    "datasets.sources",
    "datasets.synthetic",
    "datasets",
    # The laboratory, which the toolkit above never imports.
    "lab",
    "lab.config",
    "lab.plans",
    "lab.attempts",
    "lab.run_folder",
    "lab.checkpoints",
    "lab.tracking",
    "lab.recording",
    "lab.build",
    "lab.run",
    "lab.grid",
    "lab.executors",
    "lab.pool",
    "lab.progress",
    "lab.sweep",
    "lab.records",
    "lab.tuning",
    "config",
    "experiment",
    "results",
    "sweeps",
    "tuning",
    "_logs",
    "_compass",
    "figures",
    "papers.printed",
    "papers.drawing",
    "papers.flows",
    "papers.sections",
    "papers.lemmas",
    "papers.theory",
    "papers.measured",
    "papers.akrout",
    "papers.audits",
    "papers.class_subsets",
    "papers.convergence",
    "papers.linear_map",
    "papers.mnist_errors",
    "papers.noisy_mnist",
    "papers.precision",
    "papers.song",
    "papers.standing",
    "papers.weights",
    "papers.theorems",
    "papers.experiments",
    "papers.claims",
    "papers.report",
    "papers",
)


def rooms():
    """`{room: its syntax tree}` of every module but the package's own front door."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name not in ("__init__", "__main__"):
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imported(tree, known):
    """The rooms that a module imports, in functions too."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # "from keras_fa.lab import grid" means the room lab.grid.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_room = full.removeprefix("keras_fa.") in known
                names.append(full if is_room else node.module)
        for name in names:
            if name.startswith("keras_fa."):
                yield name.removeprefix("keras_fa.")


@pytest.mark.slow
def test_every_room_has_its_place_in_the_list():
    assert sorted(ROOMS) == sorted(rooms())


def test_imports_point_one_way():
    trees = rooms()
    up = [
        f"{room} imports {other}"
        for room, tree in trees.items()
        for other in imported(tree, trees)
        if ROOMS.index(other) >= ROOMS.index(room)
    ]
    assert not up


def test_private_hooks_of_keras_and_tensorflow_are_in_their_room():
    private = re.compile(
        r"keras\.src|tensorflow\.python|\._(flatten_layers|keras_history|inbound_nodes"
        r"|symbolic_build|maybe_symbolic_build|tracker|check_health\w*"
        r"|collective_all_reduce\w*|compute_causal_padding)\b"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "_keras.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if private.search(line)
    ]
    assert not found
    assert private.search((ROOT / "_keras.py").read_text())


def test_no_module_is_called_as_a_public_function_beside_it():
    for package in ("analysis", "datasets", "layers", "models", "rules"):
        room = getattr(keras_fa, package)
        for path in (ROOT / package).glob("*.py"):
            # The name is the module's alone, if it is public at all.
            assert path.stem not in getattr(room, "__all__", ())
