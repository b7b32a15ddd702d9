"""Runs that SIGKILL ends at random batches, and what they come to when they go on.

python -m tests.killed_runs FOLDER KILLS [STRATEGY] prints a line for each kill;
"mirrored" trains on two devices of the CPU.
"""

import functools
import os
import pathlib
import random
import signal
import sys
import threading

import keras
import numpy as np

from keras_fa import config as configuration
from keras_fa import distribution
from keras_fa.lab import run as runs
from keras_fa.lab import run_folder
from tests import image_sets

EPOCHS, PER_CLASS, BATCH = 3, 37, 8


def network(input_shape, num_classes):
    """A convolution, BatchNorm and Dropout: all that has a state."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(num_classes),
        ]
    )


def config_of(path, is_streamed):
    """The configuration of a run that saves itself every few batches."""
    config = configuration.default_config()
    config.dataset.name = f"folder:{path}"
    config.dataset.memory_bytes = 0 if is_streamed else 10**9
    config.dataset.augment = ({"name": "random_crop", "padding": 2}, "flip")
    config.model.name = "tests.killed_runs:network"
    config.optimizer.momentum = 0.9
    config.batch_size, config.epochs = BATCH, EPOCHS
    config.checkpoint_every_seconds = 0.05
    # Single steps: a call of several has no batch in its middle.
    config.instruments.ledger = True
    return config


class Killed(keras.callbacks.Callback):
    """SIGKILL some time after a batch has begun: in a step, in a save, between."""

    def __init__(self, step, delay):
        super().__init__()
        self.step, self.delay = step, delay

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            arguments = (os.getpid(), signal.SIGKILL)
            threading.Timer(self.delay, os.kill, arguments).start()


def in_a_process(function):
    """Calls a function in a process that is forked off; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end_of(config, folder, strategy, callbacks=()):
    """Trains, and leaves the weights beside the run."""
    if strategy == "mirrored":
        distribution.set_logical_devices(2)
    runs.run(config, folder, strategy, extra_callbacks=callbacks)
    model = runs.load_model(folder)
    np.savez(f"{folder}.npz", *model.get_weights(), *model.optimizer.variables)


def same(some, other):
    """Whether two runs ended with the same weights and lines, bit for bit."""
    files = [np.load(f"{folder}.npz") for folder in (some, other)]
    logs = [run_folder.read_metrics(folder) for folder in (some, other)]
    for line in (line for log in logs for line in log):
        for clock in ("seconds", "data_wait"):
            line.pop(clock, None)
    arrays = [[file[name].tobytes() for name in file.files] for file in files]
    return arrays[0] == arrays[1] and logs[0] == logs[1]


def main(folder, kills, strategy="default"):
    folder, draw = pathlib.Path(folder), random.Random(0)
    path = image_sets.folder(folder / "set", train=PER_CLASS, test=4)
    steps = -(-2 * PER_CLASS // BATCH) * EPOCHS
    wholes = {}
    for number in range(int(kills)):
        is_streamed = bool(number % 2)
        config = config_of(path, is_streamed)
        if is_streamed not in wholes:
            wholes[is_streamed] = folder / f"whole{number}"
            whole = wholes[is_streamed]
            train = functools.partial(end_of, config, whole, strategy)
            assert in_a_process(train) == 0
        run = folder / f"killed{number}"
        callback = Killed(draw.randrange(1, steps), draw.uniform(0, 0.05))
        train = functools.partial(end_of, config, run, strategy)
        code = in_a_process(functools.partial(train, [callback]))
        kept = sorted(p.stem for p in folder.glob(f".attempts/{run.name}/**/*.index"))
        again = in_a_process(train)
        is_same = again == 0 and same(wholes[is_streamed], run)
        where = "streamed" if is_streamed else "in memory"
        print(
            f"{where}, step {callback.step}/{steps}: {code}, {kept[-1:]}, "
            f"{'same' if is_same else 'DIFFERENT'}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
