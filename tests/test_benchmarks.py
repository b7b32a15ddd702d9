"""What the benchmarks count and compare; their times are nobody's test."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import costs
from keras_fa import layers


def test_calls_take_turns_and_nobody_always_goes_first():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seen = []
    seconds = costs.take_turns(calls, 6, on_round=lambda: seen.append(len(order)))
    assert seen == [9, 12, 15, 18, 21, 24], "after two rounds that do not count"
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(
        "abc", 6
    )
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 8
    assert set(rounds) == {"abc", "bca", "cab"}


def test_a_call_may_time_itself():
    times = iter([9.0, 9.0, 1.0, 2.0, 3.0])
    calls = {"own": lambda: next(times), "other": lambda: 7.0}
    seconds = costs.take_turns(calls, 3, ["own"])
    assert seconds["own"] == [1.0, 2.0, 3.0]
    assert max(seconds["other"]) < 1.0


def test_a_ratio_is_the_median_within_rounds():
    # The machine is three times slower in the second round: the ratio does not see it.
    seconds = {"base": [1.0, 3.0, 1.0], "ours": [1.1, 3.3, 1.2]}
    base, ours = costs.summarise(seconds, {"ours": "base"})
    assert "ratio" not in base
    assert ours["to"] == "base"
    assert ours["ratio"] == pytest.approx(1.1)
    assert ours["median_ms"] == 1200.0
    assert base["median_ms"] == 1000.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 2 n (3 (784 1000 + 1000 10) - 784 1000): the first layer sends nothing back.
        ("mlp", 2 * 600 * (3 * 794_000 - 784_000)),
        # Positions: 30 x 30, 13 x 13, 4 x 4.
        (
            "lenet128",
            2
            * 128
            * (
                2 * 900 * 9 * 3 * 32
                + 3 * (169 * 9 * 32 * 64 + 16 * 9 * 64 * 128 + 128 * 256 + 256 * 10)
            ),
        ),
    ],
)
def test_operations_of_a_step(name, expected):
    workload = costs.WORKLOADS[name]
    assert costs.operations(workload.make("fa"), workload.batch) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet128", "resnet18", "vit", "lstm"])
def test_stock_is_keras_alone_of_the_same_shapes(name):
    stock = costs.WORKLOADS[name].make("stock")
    ours = costs.WORKLOADS[name].make("backprop")
    kinds = (layers.FeedbackDense, layers.FeedbackConv2D)
    assert not any(isinstance(layer, kinds) for layer in stock.layers)
    assert any(isinstance(layer, kinds) for layer in ours.layers)
    shapes = [[v.shape for v in model.variables] for model in (stock, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.long
@pytest.mark.parametrize("name", ["mobilenet64", "resnet50"])
def test_converted_networks_take_the_fused_normalization(name):
    model = costs.WORKLOADS[name].make("fa", "mixed_bfloat16")
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) > 50
    assert {type(layer) for layer in norms} == {layers.BatchNormalization}
    assert {layer.compute_dtype for layer in norms} == {"bfloat16"}
    stock = costs.WORKLOADS[name].make("stock")
    assert not any(isinstance(x, layers.BatchNormalization) for x in stock.layers)


@pytest.mark.slow
def test_a_step_is_that_of_train_on_batch():
    workload = costs.Workload("mlp", (12,), 5)
    x, y = workload.batch_of()
    model, reference = workload.make("sign_fa"), workload.make("sign_fa")
    step = costs.step(model, x, y, False)
    for _ in range(3):
        step()
        reference.train_on_batch(x, y)
    for mine, other in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-7)


def test_operation_times_count_a_steps_operations(tmp_path):
    workload = costs.Workload("mlp", (12,), 5, {"hidden_units": (4,)})
    step = costs.step(workload.make("fa"), *workload.batch_of(), False)
    step()
    tf.profiler.experimental.start(str(tmp_path))
    step()
    step()
    tf.profiler.experimental.stop()
    rows = costs.operation_times(tmp_path, steps=2)
    calls = {row["operation"]: row["calls"] for row in rows}
    products = [n for kind, n in calls.items() if kind.endswith("MatMul")]
    # Forward and the kernel gradient of both layers, the input gradient of the second.
    assert sum(products) == 5, calls
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert all(row["milliseconds"] > 0 for row in rows)
    with pytest.raises(FileNotFoundError, match="No trace"):
        costs.operation_times(tmp_path / "none", 1)


def test_memory_says_what_makes_the_profiler_count():
    with pytest.raises(RuntimeError, match="TF_CPU_ALLOCATOR_USE_BFC=1"):
        costs.memory("mlp", "fa", False, 1)


_PEER = """
import json, sys
print(json.dumps({"rules": ["fa"], "threads": sys.argv[1]}), flush=True)
made = []
for line in sys.stdin:
    question = json.loads(line)
    if "step" in question:
        print(json.dumps(0.25), flush=True)
    else:
        made.append(question)
        print(json.dumps(len(made) - 1), flush=True)
"""


def test_a_peer_answers_and_one_that_does_not_start_says_why(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(_PEER)
    peer = costs.Peer(script, sys.executable, 2)
    try:
        assert peer.versions == {"rules": ["fa"], "threads": "2"}
        assert peer.step(costs.WORKLOADS["mlp"], "fa")() == 0.25
    finally:
        peer.close()
    script.write_text("raise SystemExit('no such library')")
    with pytest.raises(RuntimeError, match="no such library"):
        costs.Peer(script, sys.executable, 2)


@pytest.mark.slow
def test_the_fastest_of_the_peers_modes_is_what_ours_is_compared_with(monkeypatch):
    seconds = {"eager": 100.0, "compiled": 50.0, "fa": 200.0}

    class Torch:
        def __init__(self):
            self.versions = {"rules": ["fa"], "modes": ["eager", "compiled"]}

        def step(self, workload, rule, low_precision):
            assert not low_precision
            return lambda: seconds[rule]

    monkeypatch.setitem(costs.WORKLOADS, "tiny", costs.Workload("mlp", (4,), 2))
    rows = costs.steps("tiny", ["fa"], [False], 2, Torch())
    (ours,) = (row for row in rows if row.get("rule") == "fa" and "peer" not in row)
    assert 0 < ours["to_best"] < 0.1
    assert ours["to_best"] == pytest.approx(4 * ours["to_peer"])


@pytest.mark.long
def test_the_package_loads_no_heavy_library():
    (_, ours) = costs.start(2)
    assert ours["heavy"] == []


def call(*arguments):
    return subprocess.run(
        [sys.executable, "benchmarks/run.py", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.long
def test_the_command_line(tmp_path):
    output = tmp_path / "found.json"
    done = call(
        *("--what=steps", "--workloads=mlp", "--rules=stock,fa", "--rounds=3"),
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["machine"]["keras"] == keras.__version__
    product, stock, fa = found["steps"]
    assert (product["what"], stock["rule"], fa["rule"]) == ("product", "stock", "fa")
    assert fa["to"] == "stock" and fa["ratio"] > 0 and fa["attained"] > 0


@pytest.mark.long
def test_memory_is_that_of_the_weights_and_of_b(tmp_path):
    output = tmp_path / "found.json"
    done = call(
        *("--what=memory", "--workloads=mlp", "--rules=stock,fa"), f"--output={output}"
    )
    assert done.returncode == 0, done.stderr
    stock, fa = json.loads(output.read_text())["memory"]
    weights = 784 * 1000 + 1000 + 1000 * 10 + 10
    kernels = 784 * 1000 + 1000 * 10
    # Weights and momentum in float32; the optimizer's counter and rate are small.
    assert stock["variables"] == pytest.approx(8 * weights, abs=64)
    assert fa["variables"] - stock["variables"] == 4 * kernels
    assert stock["left"] == fa["left"] == 0
    # At least the gradients, and activations in which the rules do not differ.
    assert 4 * weights < stock["step"] < 6 * 4 * weights
    # Medians agreed exactly where they were compared; single steps, in which operations
    # come in another order, were between 6.0 and 10.6 MiB.
    assert fa["step"] == pytest.approx(stock["step"], rel=0.3)
    low = tmp_path / "low.json"
    done = call(
        *("--what=memory", "--workloads=mlp", "--rules=fa"),
        *("--dtype=mixed_bfloat16", f"--output={low}"),
    )
    assert done.returncode == 0, done.stderr
    (half,) = json.loads(low.read_text())["memory"]
    # Weights, momentum and B stay in the variables' float32, activations do not.
    assert half["dtype"] == "mixed_bfloat16"
    assert half["variables"] == fa["variables"]
    wrong = call("--rules=stock,fb")
    assert wrong.returncode == 1
    assert "--rules takes some of stock, " in wrong.stdout + wrong.stderr
