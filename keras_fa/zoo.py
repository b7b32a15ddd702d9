"""Trained networks of the standing table, as files whose checksum is known.

`zoo.json` beside this module says what the files are: configuration, seed, commit and
test accuracy of the run that each is of, the command that makes the run again, and the
SHA-256 of the file and of its weights. The files are no part of the package.
"""

import functools
import hashlib
import json
import os
import pathlib

import keras

from keras_fa.registry import did_you_mean

_MANIFEST = pathlib.Path(__file__).with_name("zoo.json")


@functools.cache
def _manifest():
    return json.loads(_MANIFEST.read_text(encoding="utf-8"))


def entries():
    """What is known of each network.

    Returns:
        `{name: entry}`, each entry a dict with `config`, `identity` (the hash of the
        configuration), `seed`, `commit`, `test_accuracy` (of 1), `command`, `bytes`,
        `sha256` (of the file) and `weights` (`keras_fa.experiment.weights_hash`).
    """
    return json.loads(json.dumps(_manifest()["networks"]))


def load(name, folder=None):
    """A trained network, from a file that is as it was released.

    It is given inputs as the run had them: `entries()[name]["config"]["dataset"]` has
    the arguments of `keras_fa.datasets.load`.

    Args:
        name: One of `entries()`, such as "mlp_fa".
        folder: Where the file `<name>.keras` is. None: the folder in the environment
            variable `KERAS_FA_ZOO` or, without it, the place that the release names,
            from which the file is fetched into Keras's cache.

    Returns:
        A `keras.Model` with its rule and its B, not compiled.

    Raises:
        ValueError: If the name is unknown, or the file has another checksum.
        FileNotFoundError: If the file is not there. The message has the commands that
            make it.
    """
    networks, url = _manifest()["networks"], _manifest()["url"]
    if name not in networks:
        raise ValueError(
            f"The zoo has no network {name!r}.{did_you_mean(name, networks)} It has "
            f"{', '.join(networks)}."
        )
    entry, file = networks[name], f"{name}.keras"
    folder = folder or os.environ.get("KERAS_FA_ZOO")
    if folder is None and url is not None:
        fetched = keras.utils.get_file(
            file, f"{url}/{file}", file_hash=entry["sha256"], cache_subdir="keras_fa"
        )
        folder = pathlib.Path(fetched).parent
    path = pathlib.Path(folder or ".", file)
    if folder is None or not path.is_file():
        where = f"is not in {folder}" if folder else "is in no folder that was named"
        raise FileNotFoundError(
            f"{file} {where}. Expected a file of {entry['bytes']} bytes with the "
            f"SHA-256 {entry['sha256']}. Name the folder that has it in `folder` or "
            "KERAS_FA_ZOO, or make it:\n"
            f"  {entry['command']}\n"
            "  keras-fa zoo --runs=runs --folder=zoo"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry["sha256"]:
        raise ValueError(
            f"{path} is not the file of the release: expected the SHA-256 "
            f"{entry['sha256']}, and it has {found}. Put the release's file in its "
            "place. One that was made here on another kind of processor differs in the "
            "last digits of its weights: keras.models.load_model opens it unchecked."
        )
    return keras.models.load_model(path, compile=False)
