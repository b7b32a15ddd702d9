"""Files of the standing table's trained networks, which `keras_fa.zoo` opens."""

import hashlib
import io
import json
import os
import pathlib
import tempfile
import zipfile

import keras

from keras_fa.lab import run, run_folder
from keras_fa.papers.sections import read_runs
from keras_fa.papers.standing import facts

# What the release holds: the others are larger, and built of functions of a config.
NETWORKS = ("mlp", "lenet")


def release(runs, folder, seed=0):
    """Writes a file for each finished run of a small network, without its optimizer.

    The same weights make the same file, byte for byte. For that Keras counts the names
    of layers anew, as by `keras.utils.clear_session`.

    Args:
        runs: Folder with run folders of the standing table anywhere below it.
        folder: Where the files go; made if missing.
        seed: The runs that count.

    Returns:
        `{name: entry}` as `keras_fa.zoo.entries` has them, sorted by name.

    Raises:
        ValueError: If there is no such run, or two of one network and rule.
        keras_fa.results.RunFolderError: If a run has lost its checkpoint, or the
            checkpoint has not the weights that the run ended with.
        keras_fa.datasets.DatasetNotFound: If the data of a run is not there.
    """
    networks = {}
    for one in read_runs(runs):
        told = facts(one)
        if told["network"] in NETWORKS and told["seed"] == seed:
            name = f"{told['network']}_{told['rule']}"
            if name in networks:
                raise ValueError(
                    f"{networks[name][0].path} and {one.path} are both {name} of seed "
                    f"{seed}. Give the folder of one grid."
                )
            networks[name] = one, told
    if not networks:
        raise ValueError(
            f"No finished run of {' or '.join(NETWORKS)} with seed {seed} is below "
            f"{runs}. Give the --workdir of keras-fa sweep --grid=zoo."
        )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: _entry(*networks[name], folder / f"{name}.keras")
        for name in sorted(networks)
    }


def _entry(one, told, path):
    keras.utils.clear_session(free_memory=False)
    model = run.load_model(one.path)
    weights = run.weights_hash(model)
    if weights != one.summary.get("weights", weights):
        raise run_folder.RunFolderError(
            f"The newest checkpoint in {one.path} has not the weights that the run "
            f"ended with. Remove {one.path} and give the command that makes it again: "
            f"{told['command']}"
        )
    content = _file(model)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
    return {
        "config": run_folder.read_config(one.path),
        "identity": told["identity"],
        "seed": told["seed"],
        "commit": told["commit"],
        "test_accuracy": one.final["val_accuracy"],
        "command": told["command"],
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "weights": weights,
    }


def _file(model):
    """The bytes of a model's `.keras` file, without optimizer and time of day."""
    # Keras's clone_model would compile it, optimizer and all.
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        bare.save(path)
        with zipfile.ZipFile(path) as saved:
            parts = {name: saved.read(name) for name in sorted(saved.namelist())}
    metadata = json.loads(parts["metadata.json"])
    del metadata["date_saved"]
    parts["metadata.json"] = json.dumps(metadata).encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, content in parts.items():
            # The earliest time that an archive can name.
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return written.getvalue()
