r"""Measures costs, as ratios taken interleaved in one process.

Example:
    python trainers/benchmark.py --what=instruments --rounds=15
    python trainers/benchmark.py --what=full_batch --rounds=200
    python trainers/benchmark.py --what=mirrored
    python trainers/launch.py --workers=2 -- python trainers/benchmark.py \
        --what=multi_worker

instruments: for the LeNet of the papers on random images, an epoch of `model.fit` with
`WeightAlignment` and `Conservation` against one without, and a reading of
`GradientAlignment` on one batch against one plain training step on it.

full_batch: a noisy-MNIST run of `configs/noisy_mnist.py` with all its logs, against
compiled loops that do nothing but the same number of training steps, once as
TensorFlow compiles a loop and once with XLA.

mirrored, multi_worker: an epoch of `model.fit` of LeNet and of 784-1000-10 under the
strategy against one without, of the same batches. mirrored has one device here;
multi_worker needs workers, which trainers/launch.py starts, and the chief measures.
"""

import os
import pathlib
import runpy
import statistics
import sys
import tempfile
import time

# Quietens TensorFlow's start-up notices; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow turns oneDNN on for some CPUs only; where it does not, LeNet takes twice as
# long without it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from absl import app, flags
from rich.console import Console
from rich.table import Table

_WHAT = flags.DEFINE_enum(
    "what",
    "instruments",
    ["instruments", "full_batch", "mirrored", "multi_worker"],
    "instruments: what readings cost a LeNet; full_batch: a noisy-MNIST run against "
    "bare compiled loops; mirrored, multi_worker: what a strategy costs.",
)
_WIDTH = flags.DEFINE_integer("width", 100, "Hidden units of full_batch.", 1)
_RULE = flags.DEFINE_string("rule", "fa", "Feedback rule of full_batch.")
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


def full_batch(rounds, width, rule):
    """Costs of a noisy-MNIST run beyond its training steps.

    Args:
        rounds: Log periods to measure.
        width: Hidden units.
        rule: Feedback rule.

    Returns:
        Dict from what was measured to the list of its seconds, one for each log period.
    """
    import keras
    import tensorflow as tf

    from keras_fa import experiment

    path = pathlib.Path(__file__).parents[1] / "configs" / "noisy_mnist.py"
    config = runpy.run_path(str(path))["get_config"]()
    config.model.hidden_units = (width,)
    config.rule = rule
    steps = config.log_every
    config.epochs = (rounds + 2) * steps
    dataset = experiment.load(config)
    x, y = (tf.constant(array) for array in dataset.arrays("train"))

    def bare_loop(jit_compile):
        model = experiment.build(config, dataset)

        @tf.function(jit_compile=jit_compile)
        def step():
            with tf.GradientTape() as tape:
                loss = model.loss(y, model(x, training=True))
            variables = model.trainable_variables
            model.optimizer.apply(tape.gradient(loss, variables), variables)

        @tf.function
        def loop():
            for _ in tf.range(steps):
                step()

        return loop

    loops = {"bare loop": bare_loop(False), "bare loop, XLA": bare_loop(True)}
    seconds = {name: [] for name in [*loops, "run"]}

    class Interleave(keras.callbacks.Callback):
        """Lets the bare loops run between the log periods of the run."""

        end = None

        def on_epoch_begin(self, epoch, logs=None):
            start = time.perf_counter()
            # The first periods trace.
            if epoch > 1:
                seconds["run"].append(start - self.end)
            for name, loop in loops.items():
                start = time.perf_counter()
                loop()
                if epoch > 1:
                    seconds[name].append(time.perf_counter() - start)
            self.end = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        experiment.run(config, f"{folder}/run", extra_callbacks=[Interleave()])
    return seconds


def strategies(name, rounds, images, batch_size):
    """Costs of a strategy.

    Args:
        name: The name of the strategy.
        rounds: Measurements of each kind, interleaved.
        images: Images an epoch.
        batch_size: Images a step, over all replicas.

    Returns:
        Dict from what was measured to the list of its seconds, one for each round; None
        on workers other than the chief.
    """
    from keras_fa import distribution

    strategy = distribution.get_strategy(name)
    chief = name != "multi_worker" or distribution.read_cluster()[1] == 0

    import keras
    import numpy as np
    import tensorflow as tf

    from keras_fa import models

    random = np.random.default_rng(0)
    y = random.integers(0, 10, images)
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy

    def fit(model, x):
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
        batches = batches.with_options(options)
        start = time.perf_counter()
        model.fit(batches, verbose=0)
        return time.perf_counter() - start

    makers = {
        "LeNet": (lambda: models.lenet((32, 32, 3), 10, rule="fa"), (32, 32, 3)),
        "MLP": (lambda: models.mlp((784,), (1000,), 10, rule="fa"), (784,)),
    }
    seconds = {}
    for network, (make, shape) in makers.items():
        x = random.normal(size=(images, *shape)).astype("float32")
        trained = {}
        scopes = {"default": tf.distribute.get_strategy(), name: strategy}
        for kind, one in scopes.items():
            with one.scope():
                trained[kind] = make()
                trained[kind].compile(
                    "sgd",
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    jit_compile=False,
                )
        distribution.prepare(trained[name])
        for repetition in range(rounds + 1):
            for kind, model in trained.items():
                # The other workers wait for the chief in the epoch that they share.
                if chief or kind != "default":
                    taken = fit(model, x)
                if chief and repetition:  # the first round traces
                    seconds.setdefault(f"{network}, {kind}", []).append(taken)
    return seconds if chief else None


_AGAINST = {
    "LeNet, mirrored": "LeNet, default",
    "MLP, mirrored": "MLP, default",
    "LeNet, multi_worker": "LeNet, default",
    "MLP, multi_worker": "MLP, default",
    "epoch with both": "plain epoch",
    "reading both": "plain epoch",
    "gradient alignment": "plain step",
    "bare loop, XLA": "bare loop",
    "run": "bare loop",
}


def main(argv):
    """Prints the table of medians, spreads and ratios."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _BATCH.value > _IMAGES.value:
        sys.exit("error: --batch_size is larger than --images.")
    if _WHAT.value == "instruments":
        seconds = instruments(_ROUNDS.value, _IMAGES.value, _BATCH.value)
    elif _WHAT.value == "full_batch":
        seconds = full_batch(_ROUNDS.value, _WIDTH.value, _RULE.value)
    else:
        seconds = strategies(_WHAT.value, _ROUNDS.value, _IMAGES.value, _BATCH.value)
        if seconds is None:
            return
    table = Table("what", "median ms", "quartiles ms", "ratio", "to")
    for name, values in seconds.items():
        low, median, high = (1000 * q for q in statistics.quantiles(values, n=4))
        base = _AGAINST.get(name)
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
