r"""Makes the files that keras_fa.zoo opens from run folders of the standing table.

Example:
    keras-fa sweep --grid=zoo --workdir=runs/zoo
    keras-fa zoo --runs=runs/zoo --folder=zoo
"""

import _binary
from absl import flags
from rich.console import Console

_RUNS = flags.DEFINE(
    _binary.PATH,
    "runs",
    None,
    "Folder with run folders of the standing table anywhere below it.",
    required=True,
)
_FOLDER = flags.DEFINE(
    _binary.PATH, "folder", None, "Where the files go.", required=True
)
_MANIFEST = flags.DEFINE(
    _binary.PATH,
    "manifest",
    None,
    "File that takes what is known of each network, such as keras_fa/zoo.json, which "
    "keras_fa.zoo reads. Without it none is written.",
)
_URL = flags.DEFINE_string(
    "url", None, "Address of the folder that the files can be fetched from, if any."
)


@_binary.program("The same command begins anew.")
def main():
    """Writes the files and prints a line for each."""
    from keras_fa.lab import run_folder
    from keras_fa.papers import weights

    console = Console(markup=False, emoji=False, soft_wrap=True, highlight=False)
    networks = weights.release(_RUNS.value, _FOLDER.value)
    for name, entry in networks.items():
        console.print(
            f"{name}: {entry['bytes']} bytes, sha256 {entry['sha256'][:12]}, "
            f"{100 * entry['test_accuracy']:.1f}% of the test set"
        )
    if _MANIFEST.value is not None:
        manifest = {"url": _URL.value, "networks": networks}
        text = run_folder.to_json(manifest, indent=1, sort_keys=True) + "\n"
        run_folder.write_text(_MANIFEST.value, text)


if __name__ == "__main__":
    main()
