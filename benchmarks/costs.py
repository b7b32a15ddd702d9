"""What things cost: times as ratios, taken in turn in one process, and memory.

A time alone says more about the machine and its other tenants than about the code. So
whatever is compared is measured in turn, round after round, and a ratio is the median
over rounds of the ratio within a round.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from keras_fa import (
    analysis,
    callbacks,
    distribution,
    experiment,
    models,
    optimizers,
    registry,
)

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def take_turns(calls, rounds, timed=(), on_round=None):
    """Times calls in turn.

    Args:
        calls: `{name: function}`.
        rounds: How often each is called. Each is called twice before.
        timed: Names of calls that return the seconds that they took.
        on_round: Called without arguments after each round.

    Returns:
        `{name: list of seconds, one for each round}`.
    """
    seconds = {name: [] for name in calls}
    names = list(calls)
    for repetition in range(-2, rounds):
        # Who goes first moves on, so that nobody always follows the same one.
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            result = calls[name]()
            taken = result if name in timed else time.perf_counter() - start
            if repetition >= 0:
                seconds[name].append(taken)
        if on_round is not None and repetition >= 0:
            on_round()
    return seconds


def summarise(seconds, against=None):
    """Medians, quartiles and ratios of times.

    Args:
        seconds: As `take_turns` returns it.
        against: `{name: name of what it is compared with}`.

    Returns:
        List of dicts with `what`, `median_ms`, `low_ms`, `high_ms` (quartiles), and
        where it is compared `to`, `ratio`, `ratio_low` and `ratio_high`: the median and
        quartiles of the ratio within a round.
    """
    rows = []
    for name, values in seconds.items():
        low, median, high = (1000 * q for q in statistics.quantiles(values, n=4))
        row = {"what": name, "median_ms": median, "low_ms": low, "high_ms": high}
        base = (against or {}).get(name)
        if base is not None:
            ratios = [a / b for a, b in zip(values, seconds[base], strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4)
            row |= {"to": base, "ratio": median, "ratio_low": low, "ratio_high": high}
        rows.append(row)
    return rows


def machine():
    """What the numbers were measured on: processor, cores, versions."""
    names = ("keras", "tensorflow", "numpy")
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


# --- training steps -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and a batch.

    Attributes:
        network: "mlp", "lenet" or "resnet18"; or a stock network that is converted,
            one of `_CONVERTED`.
        input_shape: Shape of one example.
        batch: Examples a step.
        arguments: Of the network's builder.
    """

    network: str
    input_shape: tuple
    batch: int
    arguments: dict = dataclasses.field(default_factory=dict)

    def make(self, rule, dtype="float32"):
        """The compiled network; "stock" for one of Keras's own layers."""
        keras.utils.set_random_seed(0)
        if self.network in _CONVERTED:
            keras.config.set_dtype_policy(dtype)
            model = _CONVERTED[self.network](self.input_shape)
            keras.config.set_dtype_policy("float32")
            if rule != "stock":
                model, _ = models.convert(
                    model, rule, in_place=True, fused_batch_norm=True
                )
        else:
            own = "backprop" if rule == "stock" else rule
            model = models.network(
                self.network, self.input_shape, 10, own, dtype, **self.arguments
            )
            if rule == "stock":
                model = models.to_stock(model)
        model.compile(
            optimizers.TorchSGD(0.01, 0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
        return model

    def batch_of(self, seed=0):
        """Random examples and labels, as arrays."""
        random = np.random.default_rng(seed)
        x = random.normal(size=(self.batch, *self.input_shape)).astype("float32")
        return x, random.integers(0, 10, self.batch)


WORKLOADS = {
    "mlp": Workload("mlp", (784,), 600, {"hidden_units": (1000,)}),
    "mlp3": Workload("mlp", (784,), 600, {"hidden_units": (1000, 1000, 1000)}),
    "mlp3_wide": Workload("mlp", (1024,), 512, {"hidden_units": (2048, 2048, 2048)}),
    "lenet128": Workload("lenet", (32, 32, 3), 128),
    "lenet1024": Workload("lenet", (32, 32, 3), 1024),
    "resnet18": Workload("resnet18", (64, 64, 3), 32),
    "mobilenet64": Workload("mobilenetv2", (64, 64, 3), 32),
    "resnet50": Workload("resnet50", (64, 64, 3), 32),
    "vit": Workload("vit", (64, 64, 3), 32),
    "lstm": Workload("lstm", (50, 64), 64),
}


def _mobilenet(input_shape):
    return keras.applications.MobileNetV2(
        weights=None, input_shape=input_shape, classes=10, classifier_activation=None
    )


def _resnet50(input_shape):
    return keras.applications.ResNet50(
        weights=None, input_shape=input_shape, classes=10, classifier_activation=None
    )


def _vit(input_shape, width=64, patch=8, blocks=3, heads=4):
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(width, patch, patch)(inputs)
    x = keras.layers.Reshape((-1, width))(x)
    for _ in range(blocks):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(heads, width // heads)(y, y)
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(2 * width, activation="gelu")(y)
        x = x + keras.layers.Dense(width)(y)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def _lstm(input_shape, units=128):
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.LSTM(units, return_sequences=True),
            keras.layers.LSTM(units),
            keras.layers.Dense(10),
        ]
    )


# Stock networks, which are converted.
_CONVERTED = {
    "mobilenetv2": _mobilenet,
    "resnet50": _resnet50,
    "vit": _vit,
    "lstm": _lstm,
}


def known_rules():
    """What `Workload.make` takes for a rule, a tuple of names."""
    return ("stock", *registry.names("rule"))


def operations(model, batch):
    """Multiplications and additions of a training step in products with kernels.

    Forward, the input gradient (which the first layer does without) and the kernel
    gradient of every dense and convolution layer.

    Args:
        model: A built functional or sequential model.
        batch: Examples a step.
    """
    counts = []
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
            positions = math.prod(layer.output.shape[1:-1])
            counts.append(2 * batch * positions * math.prod(layer.kernel.shape))
    return 3 * sum(counts) - counts[0]


def step(model, x, y, jit_compile):
    """A compiled training step on one batch: forward, backward, update.

    Args:
        model: A compiled model.
        x: Its inputs.
        y: Its targets.
        jit_compile: Whether XLA compiles it.

    Returns:
        A function without arguments that does one step and waits for its end.
    """
    one = _compiled_step(model, x, y, jit_compile)

    def call():
        one().numpy()

    return call


def _compiled_step(model, x, y, jit_compile):
    x, y = tf.constant(x), tf.constant(y)

    @tf.function(jit_compile=jit_compile)
    def one():
        with tf.GradientTape() as tape:
            loss = model.loss(y, model(x, training=True))
        variables = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return one


def product(size=2048):
    """A large matrix product, whose rate is what the machine can attain.

    Args:
        size: Rows and columns of both factors.

    Returns:
        `(function, operations)`: a function that computes it and waits for its end, and
        its multiplications and additions.
    """
    random = np.random.default_rng(0)
    a, b = (
        tf.constant(random.normal(size=(size, size)).astype("float32"))
        for _ in range(2)
    )
    multiply = tf.function(lambda: tf.matmul(a, b)[0, 0])
    return lambda: multiply().numpy(), 2 * size**3


def operation_times(folder, steps):
    """What a trace of steps says of each kind of operation.

    Operations overlap, as several run at once and each on several threads: the
    milliseconds are of their sum, not of a step's.

    Args:
        folder: Where `tf.profiler` wrote the trace of one run.
        steps: How many steps it holds.

    Returns:
        List of dicts with `operation`, `milliseconds` a step, `share` of all
        operations' time and `calls` a step, the longest first.

    Raises:
        FileNotFoundError: If the folder holds no trace.
    """
    # The only reader of traces that TensorFlow brings (tested on 2.21); without it
    # there is TensorBoard with its profile plugin.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    traces = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
    if not traces:
        raise FileNotFoundError(f"No trace (*.xplane.pb) in {folder}.")
    milliseconds, calls = {}, {}
    for plane in xplane_pb2.XSpace.FromString(traces[-1].read_bytes()).planes:
        for line in plane.lines:
            for event in line.events:
                # An operation of a graph is "its name:its kind". With two colons it is
                # a part of the runtime, with a space after one a whole graph.
                name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(
                    ":"
                )
                if not name or name.endswith(":") or kind.startswith(" "):
                    continue
                milliseconds[kind] = milliseconds.get(kind, 0) + event.duration_ps / 1e9
                calls[kind] = calls.get(kind, 0) + 1
    whole = sum(milliseconds.values())
    return [
        {
            "operation": kind,
            "milliseconds": milliseconds[kind] / steps,
            "share": milliseconds[kind] / whole,
            "calls": calls[kind] / steps,
        }
        for kind in sorted(milliseconds, key=milliseconds.get, reverse=True)
    ]


class Peer:
    """A process of another Python that does the same steps in another library.

    Args:
        script: The script that it runs: see `benchmarks/README.md`.
        python: The interpreter.
        threads: Threads for the arithmetic.

    Raises:
        RuntimeError: If it does not start; what it said is in the message.
    """

    def __init__(self, script, python, threads):
        self._process = subprocess.Popen(
            [str(python), str(script), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.versions = self._read()
        except RuntimeError:
            self.close()
            raise

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"The peer ended: {self._process.stderr.read().strip()[-2000:]}"
            )
        return json.loads(line)

    def _ask(self, **question):
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._read()

    def step(self, workload, rule, low_precision=False):
        """A function that does one step and returns the seconds that it took."""
        name = self._ask(
            make=workload.network,
            shape=workload.input_shape,
            batch=workload.batch,
            rule=rule,
            low_precision=low_precision,
            **workload.arguments,
        )

        def call():
            # Threads of ours that still spin for work would slow it, and the reverse.
            time.sleep(0.01)
            seconds = self._ask(step=name)
            time.sleep(0.01)
            return seconds

        return call

    def close(self):
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()


def steps(name, rules, jit, rounds, peer=None, dtype="float32", on_round=None):
    """Times training steps of one workload.

    Args:
        name: One of `WORKLOADS`.
        rules: Names of rules, "stock" among them for Keras's own layers.
        jit: List of booleans: without XLA, with it.
        rounds: Measurements of each kind.
        peer: A `Peer` to be measured beside them, in each of its modes and where it
            knows the rule.
        dtype: Dtype policy of ours; under a low one the peer takes its autocast.
        on_round: Called without arguments after each round.

    Returns:
        Rows as of `summarise`; those of steps also have `workload`, `rule`, `jit` and
        `attained`, the fraction of the matrix product's rate, where the products of
        the network can be counted. Ratios are to the stock
        step of the same kind; those of ours to the peer's step of the same rule under
        `to_peer`, and to the fastest of its modes under `to_best`.
    """
    workload = WORKLOADS[name]
    batch = workload.batch_of()
    multiply, product_operations = product()
    calls, against, labels = {"product": multiply}, {}, {}
    for compiled in jit:
        for rule in rules:
            label = f"{rule}, XLA" if compiled else rule
            model = workload.make(rule, dtype)
            calls[label] = step(model, *batch, compiled)
            labels[label] = {"rule": rule, "jit": compiled}
            if rule != "stock" and "stock" in rules:
                against[label] = "stock, XLA" if compiled else "stock"
    count = None
    if workload.network not in _CONVERTED:
        count = operations(model, workload.batch)
    if peer is not None and workload.network not in _CONVERTED:
        modes = peer.versions["modes"]
        for rule in [*modes, *(r for r in rules if r in peer.versions["rules"])]:
            label = rule if rule in modes else f"peer {rule}"
            calls[label] = peer.step(workload, rule, dtype != "float32")
            labels[label] = {"rule": rule, "peer": True}
    theirs = [label for label in labels if "peer" in labels[label]]
    seconds = take_turns(calls, rounds, theirs, on_round)
    rows = summarise(seconds, against)
    rate = product_operations / statistics.median(seconds["product"])
    modes = [label for label in theirs if not label.startswith("peer ")]
    best = min(modes, key=lambda mode: statistics.median(seconds[mode]), default=None)

    def to(label, other):
        pairs = zip(seconds[label], seconds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    for row in rows:
        row |= {"workload": name, "dtype": dtype}
        if row["what"] == "product":
            row["gflops"] = rate / 1e9
            continue
        label = labels[row["what"]]
        row |= label
        if count is not None:
            row["attained"] = count / (row["median_ms"] / 1000) / rate
        if "peer" in label:
            continue
        if f"peer {label['rule']}" in theirs:
            row["to_peer"] = to(row["what"], f"peer {label['rule']}")
        if best is not None:
            row["to_best"] = to(row["what"], best)
    return rows


def memory(name, rule, jit, count=11, dtype="float32"):
    """Memory of one workload under one rule, to be called in a process of its own.

    TensorFlow's profiler tells what is allocated and freed in a step, which it does on
    a CPU only if TF_CPU_ALLOCATOR_USE_BFC=1 is in the environment when it starts.

    Args:
        name: One of `WORKLOADS`.
        rule: Name of a rule, or "stock".
        jit: Whether XLA compiles the step.
        count: Steps to look at.
        dtype: Dtype policy.

    Returns:
        Dict of bytes: `variables`, weights, feedback and optimizer state; `step`, the
        most that a step has allocated beyond them at one time (median over the steps:
        the order of operations is not always the same); `left`, the most of it that a
        step did not free; `peak`, the sum of the first two.

    Raises:
        RuntimeError: If the profiler does not see every allocation.
    """
    # oneDNN's allocator tells the profiler of its large blocks alone.
    small = tf.ones(7)
    if 28 not in _allocations(lambda: (small + small).numpy()):
        raise RuntimeError(
            "TensorFlow's profiler does not see every allocation. On a CPU it does if "
            "TF_CPU_ALLOCATOR_USE_BFC=1 is set before TensorFlow starts."
        )
    workload = WORKLOADS[name]
    model = workload.make(rule, dtype)
    call = step(model, *workload.batch_of(), jit)
    for _ in range(3):
        call()
    peaks, left = [], []
    for _ in range(count):
        held = np.cumsum(_allocations(call))
        peaks.append(int(held.max()))
        left.append(int(held[-1]))
    variables = sum(
        math.prod(v.shape) * np.dtype(v.dtype).itemsize
        for v in [*model.variables, *model.optimizer.variables]
    )
    peak = statistics.median_low(peaks)
    return {
        "variables": variables,
        "step": peak,
        "left": max(left),
        "peak": variables + peak,
    }


def _allocations(call):
    """Bytes requested (> 0) and freed (< 0) in a call, in the order of time."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        files = pathlib.Path(folder).rglob("*.xplane.pb")
        spaces = [xplane_pb2.XSpace.FromString(file.read_bytes()) for file in files]
    signs = {"MemoryAllocation": 1, "MemoryDeallocation": -1}
    events = []
    for space in spaces:
        for plane in space.planes:
            for line in plane.lines:
                for event in line.events:
                    sign = signs.get(plane.event_metadata[event.metadata_id].name)
                    if sign is None:
                        continue
                    time_ps = 1000 * line.timestamp_ns + event.offset_ps
                    (size,) = (
                        stat.int64_value or stat.uint64_value
                        for stat in event.stats
                        if plane.stat_metadata[stat.metadata_id].name
                        == "requested_bytes"
                    )
                    events.append((time_ps, sign * size))
    return [size for _, size in sorted(events)]


# --- what is around the steps ---------------------------------------------------------


def _config(name):
    return runpy.run_path(str(_CONFIGS / f"{name}.py"))["get_config"]()


class _Between(keras.callbacks.Callback):
    """Times the epochs of `fit`, and lets other work have its turn between them."""

    def __init__(self, name, calls):
        super().__init__()
        self._name, self._calls, self._end = name, calls, None
        self.seconds = {other: [] for other in [*calls, name]}

    def on_epoch_begin(self, epoch, logs=None):
        start = time.perf_counter()
        # The first epochs trace.
        if epoch > 1:
            self.seconds[self._name].append(start - self._end)
        for name, call in self._calls.items():
            start = time.perf_counter()
            call()
            if epoch > 1:
                self.seconds[name].append(time.perf_counter() - start)
        self._end = time.perf_counter()


def full_batch(rounds, width=100, rule="fa"):
    """Times a noisy-MNIST run with all its logs against loops of bare steps.

    Args:
        rounds: Log periods to measure.
        width: Hidden units.
        rule: Name of a rule.

    Returns:
        Rows as of `summarise`: a log period of the run, and loops that do nothing but
        its training steps, as TensorFlow compiles a loop and with XLA.
    """
    config = _config("noisy_mnist")
    config.model.hidden_units = (width,)
    config.rule = rule
    count = config.log_every
    config.epochs = (rounds + 2) * count
    dataset = experiment.load(config)
    batch = dataset.arrays("train")
    calls = {}
    for name, jit_compile in (("bare loop", False), ("bare loop, XLA", True)):
        model = experiment.build(config, dataset)
        calls[name] = _loop(model, *batch, count, jit_compile)
    between = _Between("run", calls)
    with tempfile.TemporaryDirectory() as folder:
        experiment.run(config, f"{folder}/run", extra_callbacks=[between])
    against = {"run": "bare loop", "bare loop, XLA": "bare loop"}
    return summarise(between.seconds, against)


def _loop(model, x, y, count, jit_compile):
    one = _compiled_step(model, x, y, jit_compile)

    @tf.function
    def loop():
        for _ in tf.range(count):
            one()

    return loop


def epochs(name, rounds, **fields):
    """Times epochs of a run and of `model.fit` against bare steps.

    Args:
        name: Name of a config.
        rounds: Epochs to measure.
        **fields: Fields of the config to set.

    Returns:
        Rows as of `summarise`: "bare steps", as many compiled steps on one batch as an
        epoch has; "bare epoch", those and a forward pass over the test set;
        "model.fit", an epoch with the pipeline and nothing else; "run", one with the
        test set, the instruments of the config, and the log.
    """
    config = _config(name)
    config.update(fields)
    config.epochs = rounds + 2
    dataset = experiment.load(config)
    count = dataset.steps_per_epoch
    x, y = (array[: config.batch_size] for array in dataset.arrays("train"))
    model = experiment.build(config, dataset)
    bare = _loop(model, x, y, count, model.jit_compile)
    forward = tf.function(
        lambda x: model(x, training=False),
        jit_compile=model.jit_compile,
        reduce_retracing=True,
    )
    test = [tf.constant(x) for x, _ in dataset.test]

    def with_test():
        bare()
        for x in test:
            forward(x).numpy()

    fitted = experiment.build(config, dataset)

    def fit():
        fitted.fit(dataset.train, steps_per_epoch=count, verbose=0, shuffle=False)

    between = _Between(
        "run", {"bare steps": bare, "bare epoch": with_test, "model.fit": fit}
    )
    with tempfile.TemporaryDirectory() as folder:
        experiment.run(config, f"{folder}/run", extra_callbacks=[between])
    against = {
        "bare epoch": "bare steps",
        "model.fit": "bare steps",
        "run": "bare epoch",
    }
    return summarise(between.seconds, against)


def pipelines(rounds):
    """Times the input of CIFAR-100 and Tiny-ImageNet against the steps that eat it.

    Args:
        rounds: Batches to measure.

    Returns:
        Rows as of `summarise`, of a batch of input and of a step. The ratio of a step
        to its batch says how many times faster the input is.

    Raises:
        keras_fa.datasets.DatasetNotFound: If one of the sets is not there.
    """
    seconds, against = {}, {}
    for name, config_name in (
        ("lenet128", "cifar100_lenet"),
        ("lenet1024", "cifar100_lenet"),
        ("resnet18", "tiny_imagenet_resnet18"),
    ):
        workload = WORKLOADS[name]
        config = _config(config_name)
        config.batch_size = workload.batch
        batches = iter(experiment.load(config).train_from(0))

        def read(batches=batches):
            # Several, or the time is that of taking what lies ready.
            start = time.perf_counter()
            for _ in range(5):
                next(batches)[0].numpy()
            return (time.perf_counter() - start) / 5

        calls = {
            f"{name}, step": step(workload.make("fa"), *workload.batch_of(), False),
            f"{name}, input": read,
        }
        seconds |= take_turns(calls, rounds, [f"{name}, input"])
        against[f"{name}, step"] = f"{name}, input"
    return summarise(seconds, against)


_HEAVY = ("tensorflow_datasets", "keras_tuner", "matplotlib", "pandas", "sklearn")


def start(rounds):
    """Times what `import keras_fa` adds to `import keras`, in processes of their own.

    Args:
        rounds: Processes to start.

    Returns:
        Rows as of `summarise`; that of keras_fa has `heavy`, the heavy libraries that
        it has brought along.
    """
    script = (
        "import json, sys, time; a = time.perf_counter(); import keras; "
        "b = time.perf_counter(); there = set(sys.modules); c = time.perf_counter(); "
        "import keras_fa; d = time.perf_counter(); new = set(sys.modules) - there; "
        f"print(json.dumps([b - a, d - c, [m for m in {_HEAVY} if m in new]]))"
    )
    seconds = {"import keras": [], "import keras_fa": []}
    heavy = set()
    for repetition in range(-1, rounds):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        *taken, brought = json.loads(done.stdout.splitlines()[-1])
        heavy.update(brought)
        if repetition >= 0:
            for values, value in zip(seconds.values(), taken, strict=True):
                values.append(value)
    rows = summarise(seconds, {"import keras_fa": "import keras"})
    rows[1]["heavy"] = sorted(heavy)
    return rows


def instruments(rounds, images=5000, batch_size=128):
    """Times the instruments on a LeNet.

    Args:
        rounds: Measurements of each kind.
        images: Images an epoch.
        batch_size: Images a step.

    Returns:
        Rows as of `summarise`: an epoch of `model.fit` with `WeightAlignment` and
        `Conservation` against one without, and a reading of `GradientAlignment` on a
        batch against a plain training step on it.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=(images, 32, 32, 3)).astype("float32")
    y = random.integers(0, 10, images)
    model = WORKLOADS["lenet128"].make("fa")
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
    calls = {
        "plain epoch": fit,
        "epoch with both": lambda: fit(alignment, conservation),
        "reading both": read,
        "plain step": lambda: model.train_on_batch(*batch),
        "gradient alignment": lambda: gradient(*batch),
    }
    against = {
        "epoch with both": "plain epoch",
        "reading both": "plain epoch",
        "gradient alignment": "plain step",
    }
    return summarise(take_turns(calls, rounds), against)


def audit(rounds, names=("lenet128", "vit"), every=50, examples=512):
    """Times what an audit costs: its cheap parts in training, and a whole one.

    Args:
        rounds: Measurements of each kind; of the whole audit three.
        names: Workloads of which training is measured.
        every: Steps between two readings of `keras_fa.callbacks.Audit`, each of one
            batch of training.
        examples: What the whole audit, of a ResNet-18 beside its initialisation, is
            made on.

    Returns:
        Rows as of `summarise`: for each workload `every` plain steps, and as many with
        a reading after them; then the whole audit, without baselines.
    """
    seconds, against = {}, {}
    for name in names:
        workload = WORKLOADS[name]
        model, (x, y) = workload.make("fa"), workload.batch_of()
        one, reader = step(model, x, y, False), callbacks.Audit(x, y, every)
        reader.set_model(model)
        reader.on_train_begin()

        def train(one=one):
            for _ in range(every):
                one()

        def train_and_read(train=train, reader=reader):
            train()
            reader.read()

        plain, audited = f"{name}, plain steps", f"{name}, with the audit"
        seconds |= take_turns({plain: train, audited: train_and_read}, rounds)
        against[audited] = plain
    workload = dataclasses.replace(WORKLOADS["resnet18"], batch=examples)
    model, reference = workload.make("fa"), workload.make("fa")
    batch = workload.batch_of()
    whole = {
        f"resnet18, whole audit of {examples}": lambda: analysis.audit(
            model, *batch, reference=reference
        )
    }
    return summarise(seconds | take_turns(whole, min(rounds, 3)), against)


def strategies(name, rounds, batch_size=128, count=40):
    """Times the training steps of `model.fit` under a strategy and without.

    Args:
        name: The name of the strategy: see `keras_fa.distribution.get_strategy`. Under
            "multi_worker" all workers call this.
        rounds: Measurements of each kind.
        batch_size: Examples a step, over all replicas.
        count: Steps of one measurement.

    Returns:
        Rows as of `summarise`; None on workers other than the chief.
    """
    strategy = distribution.get_strategy(name)
    chief = name != "multi_worker" or distribution.read_cluster()[1] == 0
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    rows = []
    for network in ("lenet128", "mlp"):
        workload = dataclasses.replace(WORKLOADS[network], batch=batch_size)
        batches = tf.data.Dataset.from_tensors(workload.batch_of()).repeat()
        batches = batches.with_options(options)
        calls = {}
        for kind, one in (("default", tf.distribute.get_strategy()), (name, strategy)):
            with one.scope():
                model = workload.make("fa")
            distribution.prepare(model)
            # Builds what fit calls. Its iterator is not measured: see keras_fa.datasets
            # for how long TensorFlow may take to delete one.
            model.fit(batches.take(2), verbose=0, shuffle=False)
            stream = iter(one.experimental_distribute_dataset(batches))

            def train(model=model, stream=stream):
                for _ in range(count):
                    logs = model.train_function(stream)
                float(logs["loss"])

            # The other workers wait for the chief in the steps that they share.
            idle = not chief and kind == "default"
            calls[f"{workload.network}, {kind}"] = (lambda: None) if idle else train
        first, second = calls
        rows += summarise(take_turns(calls, rounds), {second: first})
    return rows if chief else None
