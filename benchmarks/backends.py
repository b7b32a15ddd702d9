r"""What a rule costs a training step on this Keras backend, against stock Keras.

Needs no TensorFlow. A line for each network: the medians of the CPU time of a step of
`train_on_batch` on one core, and of its ratio to the stock network's, which are taken
in turn. A second stock network says what a ratio of 1 looks like on the machine.

    KERAS_BACKEND=torch taskset -c 0 .venv-torch/bin/python benchmarks/backends.py 41
"""

import statistics
import sys
import time

import keras
import numpy as np

from keras_fa import models, optimizers

RULES = ("stock", "fa", "sign_fa", "stock again")
WORKLOADS = {
    "MLP 784-1000-10, batch 600": ("mlp", (784,), 600, {"hidden_units": (1000,)}),
    "LeNet 32x32x3, batch 128": ("lenet", (32, 32, 3), 128, {}),
}


def stepper(network, shape, batch, arguments, rule):
    """A function that does a training step and returns its seconds of CPU time."""
    stock = rule.startswith("stock")
    own = "backprop" if stock else rule
    model = models.network(network, shape, 10, own, "float32", **arguments)
    model = models.to_stock(model) if stock else model
    model.compile(
        optimizers.TorchSGD(0.01, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # As Keras does by itself on JAX and PyTorch; XLA slows TensorFlow's down.
        jit_compile=keras.backend.backend() == "jax",
    )
    random = np.random.default_rng(0)
    x = keras.ops.convert_to_tensor(random.normal(size=(batch, *shape)), "float32")
    y = keras.ops.convert_to_tensor(random.integers(0, 10, batch), "int32")

    def step():
        start = time.process_time()
        float(model.train_on_batch(x, y))
        return time.process_time() - start

    return step


def main(rounds):
    """Prints the lines, from so many steps of each network."""
    for name, workload in WORKLOADS.items():
        steps = [stepper(*workload, rule) for rule in RULES]
        seconds = [[] for _ in RULES]
        for number in range(-3, rounds):
            for place in range(len(RULES)):
                # Nobody always follows the same one.
                place = (place + number) % len(RULES)
                taken = steps[place]()
                if number >= 0:
                    seconds[place].append(taken)
        cells = []
        for rule, values in zip(RULES, seconds, strict=True):
            ratios = [a / b for a, b in zip(values, seconds[0], strict=True)]
            cells.append(
                f"{rule} {1000 * statistics.median(values):.1f} ms, "
                f"{statistics.median(ratios):.3f}"
            )
        print(f"{keras.backend.backend()}, {name}: " + "; ".join(cells), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 41)
