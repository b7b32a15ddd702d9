"""Measures what the instruments cost, as ratios taken interleaved in one process.

Example:
    python trainers/benchmark.py --rounds=15

For the LeNet of the papers on random images: an epoch of `model.fit` with
`WeightAlignment` and `Conservation` against one without, and a reading of
`GradientAlignment` on one batch against one plain training step on it.
"""

import os
import statistics
import sys
import time

# Quietens TensorFlow's start-up notices; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags
from rich.console import Console
from rich.table import Table

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each kind.", 3)
_IMAGES = flags.DEFINE_integer("images", 5000, "Images an epoch.", 128)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Images a step.", 1)


def instruments(rounds, images, batch_size):
    """Costs of the instruments on a LeNet.

    Args:
        rounds: Measurements of each kind, interleaved.
        images: Images an epoch.
        batch_size: Images a step.

    Returns:
        Dict from what was measured to the list of its seconds, one for each round.
    """
    import keras
    import numpy as np

    from keras_fa import analysis, callbacks, models

    random = np.random.default_rng(0)
    x = random.normal(size=(images, 32, 32, 3)).astype("float32")
    y = random.integers(0, 10, images)
    model = models.lenet((32, 32, 3), 10, rule="fa")
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    alignment = callbacks.WeightAlignment()
    conservation = callbacks.Conservation()
    gradient = analysis.GradientAlignment(model)
    batch = x[:batch_size], y[:batch_size]

    def fit(*instruments):
        model.fit(x, y, batch_size, callbacks=list(instruments), verbose=0)

    def read():
        for instrument in (alignment, conservation):
            instrument.read()

    fit(alignment, conservation)
    work = {
        "plain epoch": fit,
        "epoch with both": lambda: fit(alignment, conservation),
        "reading both": read,
        "plain step": lambda: model.train_on_batch(*batch),
        "gradient alignment": lambda: gradient(*batch),
    }
    seconds = {name: [] for name in work}
    for repetition in range(rounds + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if repetition:  # the first round traces
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main(argv):
    """Prints the table of medians, spreads and ratios."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _BATCH.value > _IMAGES.value:
        sys.exit("error: --batch_size is larger than --images.")
    seconds = instruments(_ROUNDS.value, _IMAGES.value, _BATCH.value)
    against = {
        "epoch with both": "plain epoch",
        "reading both": "plain epoch",
        "gradient alignment": "plain step",
    }
    table = Table("what", "median ms", "quartiles ms", "ratio", "to")
    for name, values in seconds.items():
        low, median, high = (1000 * q for q in statistics.quantiles(values, n=4))
        base = against.get(name)
        ratio = ""
        if base is not None:
            pairs = zip(values, seconds[base], strict=True)
            ratio = f"{statistics.median(a / b for a, b in pairs):.4f}"
        table.add_row(
            name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", ratio, base or ""
        )
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
