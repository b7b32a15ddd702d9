"""Writes TensorBoard's event files from the logs of runs that are over.

Example:
    keras-fa events --runs=runs
    tensorboard --logdir=runs/tensorboard
"""

import _binary
from absl import flags
from rich.console import Console

_RUNS = flags.DEFINE(
    _binary.PATH,
    "runs",
    None,
    "A run folder, or a folder with any number of them below it.",
    required=True,
)
_LOGDIR = flags.DEFINE(
    _binary.PATH,
    "logdir",
    None,
    "Where the event files go; without it `tensorboard` in --runs.",
)


@_binary.program("The same command begins anew.")
def main():
    """Writes the files and prints the command that shows them."""
    from keras_fa.lab import tracking

    logdir = _LOGDIR.value or _RUNS.value / "tensorboard"
    found = tracking.write_events(_RUNS.value, logdir)
    console = Console(markup=False, emoji=False)
    console.print(f"{len(found)} runs. tensorboard --logdir={logdir}", soft_wrap=True)


if __name__ == "__main__":
    main()
