r"""Measures costs, as ratios taken in turn in one process.

Examples:
    keras-fa benchmark
    keras-fa benchmark --what=steps --workloads=lenet128 --jit=off,on \
        --peer=torch --peer_python=benchmarks/.venv/bin/python
    keras-fa benchmark --what=steps --what=memory --workloads=mobilenet64,vit,lstm
    keras-fa benchmark --what=steps --what=memory --rules=all \
        --workloads=mlp,lenet128,resnet18
    keras-fa benchmark --what=mirrored
    keras-fa launch --workers=2 -- keras-fa benchmark --what=multi_worker

steps: a training step of each workload under each rule, against the same network of
stock Keras layers, beside the rate of a large matrix product. --peer adds the same
steps in raw torch, in each of three modes, and in biotorch, or in Keras on JAX:
benchmarks/README.md says how to set that up.

memory: weights, feedback and optimizer state, and what a step allocates beyond them.

full_batch: a noisy-MNIST run with all its logs against loops of bare steps.

epochs: an epoch of model.fit and of a run against bare steps.

pipelines: the input of CIFAR-100 and Tiny-ImageNet against the steps that eat it.

start: what import keras_fa adds to import keras.

instruments: what readings cost a LeNet.

audit: what the cheap parts of an audit cost training, and how long a whole one takes.

mirrored, multi_worker: steps of model.fit under the strategy against steps without.
multi_worker needs workers, which keras-fa launch starts, and the chief reports.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "trainers"))

import _binary
from absl import app, flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_KINDS = (
    *("steps", "memory", "full_batch", "epochs", "pipelines", "start"),
    *("instruments", "audit", "mirrored", "multi_worker"),
)
_NETWORKS = ("mlp", "lenet128", "lenet1024", "resnet18")
_DEEP = ("mlp3", "mlp3_wide")
_CONVERTED = ("mobilenet64", "resnet50", "vit", "lstm")

_WHAT = flags.DEFINE_multi_enum(
    "what",
    ["steps", "memory", "full_batch"],
    _KINDS,
    "What to measure; may be given several times. See above.",
)
_WORKLOADS = flags.DEFINE_list(
    "workloads",
    list(_NETWORKS),
    f"For steps and memory, of {', '.join((*_NETWORKS, *_DEEP))}, and of "
    f"{', '.join(_CONVERTED)}, which are converted from stock Keras.",
)
_FEEDBACK = flags.DEFINE_list(
    "rules",
    ["stock", "backprop", "fa", "sign_fa"],
    "For steps and memory: stock, which is Keras's own layers, the name of any "
    "rule, or all.",
)
_JIT = flags.DEFINE_list(
    "jit", ["off"], "For steps and memory: off, on, or both, with XLA or without."
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "For steps and memory: dtype policy of ours; for a peer a mixed one is bfloat16.",
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 21, "Measurements of each kind.", lower_bound=3
)
_WIDTH = flags.DEFINE_integer("width", 100, "Hidden units of full_batch.", 1)
_RULE = flags.DEFINE_string("rule", "fa", "Feedback rule of full_batch.")
_IMAGES = flags.DEFINE_integer("images", 5000, "Images an epoch of instruments.", 128)
_BATCH = flags.DEFINE_integer(
    "batch_size", 128, "Images a step of instruments and strategies.", 1
)
_PEER = flags.DEFINE_enum(
    "peer", None, ["torch", "jax"], "Library to measure beside ours, for steps."
)
_PEER_PYTHON = flags.DEFINE_string(
    "peer_python",
    "benchmarks/.venv/bin/python",
    "The Python interpreter that has it.",
)
_OUTPUT = flags.DEFINE(_binary.PATH, "output", None, "JSON file for all numbers.")
_PROFILE = flags.DEFINE(
    _binary.PATH,
    "profile",
    None,
    "Folder for a TensorBoard trace of ten steps of the first of --workloads under the "
    "last of --rules, instead of measuring; prints how long each kind of operation "
    "takes.",
)
_MEMORY_OF = flags.DEFINE_list(
    "memory_of", None, "Workload, rule, off or on: what memory starts for each."
)


@_binary.program("")
def main():
    """Measures what the flags say, and prints the tables."""
    import costs

    rules = costs.known_rules()
    for given, known in (
        (_WORKLOADS, (*_NETWORKS, *_DEEP, *_CONVERTED)),
        (_FEEDBACK, (*rules, "all")),
        (_JIT, ("off", "on")),
    ):
        wrong = sorted(set(given.value) - set(known))
        if wrong or not given.value:
            raise app.UsageError(
                f"--{given.name} takes some of {', '.join(known)}, not "
                f"{', '.join(wrong) or 'nothing'}."
            )
    if _BATCH.value > _IMAGES.value:
        raise app.UsageError("--batch_size is larger than --images.")
    if _MEMORY_OF.value:
        name, rule, jit = _MEMORY_OF.value
        row = costs.memory(name, rule, jit == "on", dtype=_DTYPE.value)
        print(json.dumps(row))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    if _PROFILE.value:
        _profile(console)
        return
    found = {"command": sys.argv[1:]}
    for what in _WHAT.value:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}, elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress:
            if what == "memory":
                rows = _memory(progress)
            elif what == "steps":
                rows = _steps(found, progress)
            else:
                progress.add_task(what, total=1)
                rows = _other(what)
        if rows is None:  # a worker that is not the chief
            return
        found[what] = rows
        console.print(_table(what, rows))
    import costs

    from keras_fa.lab import run_folder

    found["machine"] = costs.machine()
    console.print(", ".join(f"{k} {v}" for k, v in found["machine"].items()))
    if _OUTPUT.value:
        run_folder.write_text(_OUTPUT.value, run_folder.to_json(found) + "\n")


def _rules():
    import costs

    every = "all" in _FEEDBACK.value
    return list(costs.known_rules()) if every else _FEEDBACK.value


def _steps(found, progress):
    import costs

    rounds = _ROUNDS.value
    task = progress.add_task("steps", total=len(_WORKLOADS.value) * rounds)
    peer = None
    if _PEER.value:
        script = pathlib.Path(__file__).parent
        peer = costs.Peer(
            script / f"{_PEER.value}_peer.py",
            _PEER_PYTHON.value,
            len(os.sched_getaffinity(0)),
        )
        found["peer"] = peer.versions
    jit = [value == "on" for value in _JIT.value]
    try:
        return [
            row
            for name in _WORKLOADS.value
            for row in costs.steps(
                name,
                _rules(),
                jit,
                rounds,
                peer,
                _DTYPE.value,
                on_round=lambda: progress.advance(task),
            )
        ]
    finally:
        if peer is not None:
            peer.close()


def _memory(progress):
    rows = []
    kinds = list(itertools.product(_WORKLOADS.value, _JIT.value, _rules()))
    task = progress.add_task("memory", total=len(kinds))
    for name, jit, rule in kinds:
        done = subprocess.run(
            [
                *(sys.executable, __file__, f"--memory_of={name},{rule},{jit}"),
                f"--dtype={_DTYPE.value}",
            ],
            env={**os.environ, "TF_CPU_ALLOCATOR_USE_BFC": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"Memory of {name}, {rule}: {done.stderr[-2000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        kind = {"workload": name, "dtype": _DTYPE.value, "rule": rule, "jit": jit}
        rows.append({**kind, **row})
        progress.advance(task)
    return rows


def _other(what):
    import costs

    rounds = _ROUNDS.value
    if what == "full_batch":
        return costs.full_batch(rounds, _WIDTH.value, _RULE.value)
    if what == "epochs":
        rows = []
        for label, name, fields in (
            ("LeNet", "cifar100_lenet", {"batch_size": 128}),
            ("MLP", "song_mnist", {}),
        ):
            for row in costs.epochs(name, rounds, **fields):
                rows.append({**row, "what": f"{label}, {row['what']}"})
        return rows
    if what == "pipelines":
        return costs.pipelines(rounds)
    if what == "start":
        return costs.start(rounds)
    if what == "instruments":
        return costs.instruments(rounds, _IMAGES.value, _BATCH.value)
    if what == "audit":
        return costs.audit(rounds)
    return costs.strategies(what, rounds, _BATCH.value)


def _profile(console, steps=10):
    import costs
    import tensorflow as tf

    workload = costs.WORKLOADS[_WORKLOADS.value[0]]
    step = costs.step(
        workload.make(_FEEDBACK.value[-1]),
        *workload.batch_of(),
        _JIT.value[0] == "on",
    )
    for _ in range(3):
        step()
    tf.profiler.experimental.start(str(_PROFILE.value))
    for _ in range(steps):
        step()
    tf.profiler.experimental.stop()
    table = Table("operation", "ms a step", "of all operations", "calls a step")
    for row in costs.operation_times(_PROFILE.value, steps):
        if row["share"] >= 0.005:
            table.add_row(
                row["operation"],
                f"{row['milliseconds']:.2f}",
                f"{row['share']:.1%}",
                f"{row['calls']:.0f}",
            )
    console.print(table)
    console.print(f"tensorboard --logdir={_PROFILE.value}", soft_wrap=True)


def _table(title, rows):
    """Times as medians and quartiles, ratios likewise, memory in MiB."""
    shown_rows = [_shown(row) for row in rows]
    names = list(dict.fromkeys(name for row in shown_rows for name in row))
    table = Table(*names, title=title)
    for row in shown_rows:
        table.add_row(*(row.get(name, "") for name in names))
    return table


def _shown(row):
    shown = {}
    if "workload" in row:
        shown |= {"workload": row["workload"], "dtype": row["dtype"]}
    if "variables" in row:
        shown |= {"rule": row["rule"], "XLA": row["jit"]}
        for title, field in (
            ("weights and state, MiB", "variables"),
            ("a step, MiB", "step"),
            ("left after it, MiB", "left"),
            ("peak, MiB", "peak"),
        ):
            shown[title] = f"{row[field] / 2**20:.2f}"
    else:
        shown["what"] = row["what"]
        shown["median ms"] = f"{row['median_ms']:.2f}"
        shown["quartiles"] = f"{row['low_ms']:.2f} to {row['high_ms']:.2f}"
    if "gflops" in row:
        shown["of the product's rate"] = f"{row['gflops']:.0f} GFLOP/s"
    if "attained" in row:
        shown["of the product's rate"] = f"{100 * row['attained']:.0f}%"
    if "ratio" in row:
        shown["ratio"] = f"{row['ratio']:.3f}"
        shown["its quartiles"] = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}"
        shown["to"] = row["to"]
    if "to_peer" in row:
        shown["to biotorch"] = f"{row['to_peer']:.3f}"
    if "to_best" in row:
        shown["to the peer's best"] = f"{row['to_best']:.3f}"
    if "heavy" in row:
        shown["heavy libraries"] = ", ".join(row["heavy"]) or "none"
    return shown


if __name__ == "__main__":
    main()
