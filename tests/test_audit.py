"""The audit: its numbers against NumPy, its verdicts, and who it is told to."""

import json
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_fa
from keras_fa import analysis, callbacks, experiment, figures, models
from keras_fa.analysis._survey import Survey
from keras_fa.config import default_config
from keras_fa.lab import run_folder
from keras_fa.layers import feedback_layers

ROOT = pathlib.Path(__file__).parents[1]
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batch(number=12, inputs=6, classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(number, inputs)).astype("float32")
    return x, rng.integers(0, classes, number)


def residual(rule="fa", **arguments):
    keras.utils.set_random_seed(0)
    sizes = {"width": 5, "blocks": 2, "hidden_units": 7, **arguments}
    return models.residual_mlp((6,), 3, rule, **sizes)


def test_the_widths_of_the_residual_mlp_are_the_protocols():
    first, up, down, *_ = (
        v.kernel.shape for v in feedback_layers(models.residual_mlp((6,), 3))
    )
    assert (first, up, down) == ((6, 256), (256, 512), (512, 256))


def rows(verdict):
    return {row.layer: row for row in verdict.rows}


# Numbers.


def test_norms_signals_and_ranks_are_numpys():
    keras.utils.set_random_seed(0)
    model = models.mlp((5,), (7, 6), 3, "fa", "linear", dtype="float64")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)), rng.normal(size=(9, 3))
    loss, dtype, places, weights = Survey(model, "mse", run_eagerly=True)(x, y)
    kernels = [layer.kernel.numpy() for layer in feedback_layers(model)]
    backward = [layer.feedback.numpy() for layer in feedback_layers(model)]
    outputs = [x @ kernels[0], x @ kernels[0] @ kernels[1]]
    outputs.append(outputs[-1] @ kernels[2])
    # Of an example's own loss.
    error = 2 * (outputs[-1] - y) / 3
    signals = []
    for b in (kernels, backward):
        signals.append([error @ b[2].T @ b[1].T, error @ b[2].T, error])

    def rms(values):
        return math.sqrt((values**2).sum() / 9)

    def ratio(values):
        s = np.linalg.svd(values, compute_uv=False)
        return (s**2).sum() ** 2 / (s**4).sum()

    assert dtype == "float64"
    assert list(places) == list(weights) == ["dense_1", "dense_2", "dense_3"]
    for place, h, true, feedback in zip(
        places.values(), outputs, *signals, strict=True
    ):
        expected = [rms(h), rms(true), rms(feedback), ratio(feedback), ratio(true)]
        measured = [
            *(place.norm, place.signal.true_norm, place.signal.feedback_norm),
            *(place.rank, place.true_rank),
        ]
        np.testing.assert_allclose(measured, expected, rtol=1e-12)
        assert place.full_rank == min(h.shape)
        # Measured: 3e-16 to 6e-16.
        assert 1e-17 < place.rounding < 1e-14
    exact = analysis.gradient_alignment(model, x, y, "mse")
    assert loss == exact.loss
    for name, entry in weights.items():
        assert entry.gradient == pytest.approx(exact.layers[name])
        assert entry.size == math.prod(kernels[int(name[-1]) - 1].shape) + len(
            kernels[int(name[-1]) - 1][0]
        )


@pytest.mark.slow
def test_growth_and_movement_are_those_from_the_reference():
    start, model = residual(), residual()
    for name in ("block_2_down", "head"):
        layer = model.get_layer(name)
        layer.kernel.assign(3 * layer.kernel)
    x, y = batch()
    found = rows(keras_fa.audit(model, x, y, CROSSENTROPY, reference=start))
    assert found["block_1_add"].growth == 1
    assert found["block_2_down"].growth == pytest.approx(3)
    assert found["block_2_down"].moved == pytest.approx(2)
    assert found["head"].growth != 1 != found["block_2_add"].growth
    assert found["embedding"].moved == 0 and found["block_1_add"].moved is None
    earlier = keras_fa.audit(start, x, y, CROSSENTROPY)
    found = rows(keras_fa.audit(model, x, y, CROSSENTROPY, reference=earlier))
    assert found["block_2_down"].growth == pytest.approx(3)
    for wrong in (residual(width=6), residual(blocks=3), "residual"):
        with pytest.raises(ValueError, match="reference"):
            keras_fa.audit(model, x, y, CROSSENTROPY, reference=wrong)


@pytest.mark.slow
def test_every_place_is_looked_at_once_whatever_the_model():
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Dense(4, "relu", name="inner")

        def call(self, x):
            return x + self.inner(x)

    tokens, floats = keras.Input((3,), dtype="int32", name="t"), keras.Input((4,))
    table = layers.ReversibleEmbedding(7, 4, name="table")
    x = layers.RNN([layers.LSTMCell(4), layers.GRUCell(4)], name="rnn")(table(tokens))
    x = Block(name="first")(x + layers.Dense(4, name="side")(floats))
    x = Block(name="second")(x)
    heads = [layers.Dense(2, name="one")(x), table(x, reverse=True)]
    model, _ = keras_fa.convert(keras.Model([tokens, floats], heads), in_place=True)
    x = [np.arange(6).reshape(2, 3) % 7, np.ones((2, 4), "float32")]
    y = [np.array([0, 1]), np.array([3, 4])]
    loss = [CROSSENTROPY, CROSSENTROPY]
    verdict = keras_fa.audit(model, x, y, loss, reference=model)
    assert {row.layer for row in verdict.rows} == {
        *("table", "gru_cell", "lstm_cell", "side", "add", "one"),
        *("first/inner", "first", "second/inner", "second"),
    }
    assert len(verdict.rows) == 10
    assert all(row.growth == 1 for row in verdict.rows if row.signal is not None)
    # A cell inside a loop has gradients, but no output that could be seen.
    assert rows(verdict)["lstm_cell"].signal is None
    json.dumps(verdict.to_dict(), allow_nan=False)


# Verdicts.


@pytest.mark.slow
def test_a_network_with_a_frozen_body_is_told():
    x, y = batch()
    scores = {"score": 0.9, "baselines": {"its last layer alone trained": 0.4}}

    def made():
        keras.utils.set_random_seed(0)
        return models.mlp((6,), (5, 4, 3), 3)

    start, model, forgotten = made(), made(), made()
    models.freeze(model, "body")
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    model.train_on_batch(x, y)
    # As after a training whose freezing was forgotten.
    forgotten.set_weights(model.get_weights())
    for network in (model, forgotten):
        verdict = keras_fa.audit(network, x, y, CROSSENTROPY, reference=start, **scores)
        assert verdict.verdict == "depth adds nothing"
        how = "frozen" if network is model else "as it was drawn"
        assert verdict.reasons[0] == (
            f"Nothing between its ends trained: dense_2 ({how}), dense_3 ({how})."
        )
        found = rows(verdict)
        assert found["dense_1"].moved > 0 < found["dense_4"].moved
        assert found["dense_2"].moved == 0 and found["dense_3"].moved == 0
        assert found["dense_2"].trains == (network is forgotten)
    forgotten.get_layer("dense_3").bias.assign_add(np.ones(3))
    verdict = keras_fa.audit(forgotten, x, y, CROSSENTROPY, reference=start, **scores)
    assert verdict.verdict == "learns with depth"


@pytest.mark.parametrize(
    ("score", "baselines", "verdict", "said"),
    [
        (0.52, {"a": 0.50, "b": 0.4}, "learns with depth", "a (0.500)"),
        (0.519, {"a": 0.2, "b": 0.5}, "depth adds nothing", "b (0.500)"),
        ([0.5, 0.6], {"a": [0.51, 0.53]}, "learns with depth", "+0.030 +- 0.051"),
        (None, None, "undecided", "was not measured"),
    ],
)
def test_two_points_over_the_harder_baseline_decide(score, baselines, verdict, said):
    model = models.mlp((6,), (8, 8), 3)
    x, y = batch()
    found = keras_fa.audit(model, x, y, CROSSENTROPY, score=score, baselines=baselines)
    assert found.verdict == verdict and said in found.reasons[0]
    assert repr(found) == f"Verdict({verdict!r}: {found.reasons[0]})"
    assert str(found).startswith(f"Verdict: {verdict}\n- {found.reasons[0]}\n")


@pytest.mark.parametrize(
    "scores",
    [
        {"score": 0.5},
        {"baselines": {"a": 0.5}},
        {"score": 51.0, "baselines": {"a": 0.5}},
        {"score": [], "baselines": {"a": 0.5}},
        {"score": math.nan, "baselines": {"a": 0.5}},
    ],
)
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match=r"[Ss]core"):
        keras_fa.audit(models.mlp((6,), 8, 3), *batch(), CROSSENTROPY, **scores)


@pytest.mark.slow
def test_what_is_not_measurable_is_said_and_is_no_number():
    x, y = batch()
    start = residual()
    # A stream so large that the last LayerNorm lets nearly no gradient through.
    model = residual()
    layer = model.get_layer("embedding")
    layer.kernel.assign(1e9 * layer.kernel)
    before = keras_fa.audit(start, x, y, CROSSENTROPY)
    verdict = keras_fa.audit(model, x, y, CROSSENTROPY, reference=before)
    assert verdict.verdict == "not measurable"
    assert "block_1_add" in str(verdict) and "Activations are more" in str(verdict)
    row = rows(verdict)["block_1_add"]
    assert row.growth > 1e6 and row.signal.true_norm < row.floor
    assert row.signal_cosine is row.rank is row.true_rank is None
    assert "under the rounding floor" in row.unmeasurable
    entry = next(e for e in verdict.to_dict()["layers"] if e["layer"] == row.layer)
    assert entry["signal_cosine"] is None and entry["true_signal_norm"] > 0
    assert rows(verdict)["head"].cosine == pytest.approx(1)
    frame = verdict.to_frame().set_index("layer")
    assert np.isnan(frame.loc["block_1_add", "signal_cosine"])
    # In float64 the same gradients are above the floor.
    keras.config.set_dtype_policy("float64")
    model = residual()
    layer = model.get_layer("embedding")
    layer.kernel.assign(1e9 * layer.kernel)
    verdict = keras_fa.audit(model, x.astype("float64"), y, CROSSENTROPY)
    assert rows(verdict)["block_1_add"].unmeasurable is None


@pytest.mark.slow
def test_a_signal_that_hangs_on_the_last_digits_is_not_measurable():
    x, y = batch()
    model = residual()
    # Softmax takes the large constant off again, and what was lost with it is gone.
    model.get_layer("head").bias.assign([1e7] * 3)
    verdict = keras_fa.audit(model, x, y, CROSSENTROPY)
    assert verdict.verdict == "not measurable"
    row = rows(verdict)["head"]
    assert row.signal.true_norm < row.floor and row.floor > 0.1
    broken = models.mlp((6,), (8, 8), 3)
    broken.get_layer("dense_2").kernel.assign(np.full((8, 8), np.nan))
    verdict = keras_fa.audit(broken, x, y, CROSSENTROPY)
    assert rows(verdict)["dense_2"].unmeasurable == "not everything is finite"
    json.dumps(verdict.to_dict(), allow_nan=False)


# Baselines.


def test_parts_of_a_model_are_frozen():
    assert models.freeze(residual(), "all_but_last")[0] == "embedding"
    model = residual("dfa")
    assert models.freeze(model, "body")[-1] == "norm"
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {
        "embedding",
        "head",
    }
    assert models.freeze(residual(), "block_1_*, norm") == [
        "block_1_norm",
        "block_1_up",
        "block_1_down",
        "norm",
    ]
    nested = keras.Sequential(
        [
            keras.Input((6,)),
            models.mlp((6,), (4,), 5, name="stem"),
            layers.Dense(2, name="head"),
        ]
    )
    # A model's name stands for what is in it.
    assert models.freeze(nested, "stem") == ["stem/dense_1", "stem/dense_2"]
    assert models.freeze(nested, "stem/dense_2") == ["stem/dense_2"]
    with pytest.raises(ValueError, match="No layer with weights fits 'blocks'"):
        models.freeze(residual(), "blocks")
    with pytest.raises(ValueError, match="has no body to freeze"):
        models.freeze(models.mlp((6,), 8, 3), "body")


def test_ends_are_found_in_graphs_of_several_and_in_models_without_one():
    a, b = keras.Input((3,)), keras.Input((3,))
    x = layers.Concatenate()([layers.Dense(2, name="a")(a), layers.Dense(2)(b)])
    x = layers.BatchNormalization(name="norm")(layers.Dense(4, name="middle")(x))
    heads = [layers.Dense(1, name="h1")(x), layers.Softmax()(layers.Dense(2)(x))]
    model = keras.Model([a, b], heads)
    assert models.freeze(model, "body") == ["middle", "norm"]
    # Frozen, BatchNorm normalises by its batch all the same.
    before = model.get_layer("norm").moving_mean.numpy()
    model([np.ones((4, 3)), np.ones((4, 3))], training=True)
    assert np.any(before != model.get_layer("norm").moving_mean.numpy())

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [layers.Dense(2, name=name) for name in "xyz"]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    model = Own()
    model(np.ones((1, 2)))
    assert models.freeze(model, "body") == ["y"]


# Where it is told.


@pytest.mark.slow
def test_the_callback_logs_the_cheap_parts():
    x, y = batch()
    model = residual(blocks=1)
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    reader = callbacks.Audit(x, y, every=2)
    calls = {"verbose": 0, "callbacks": [reader]}
    logs = model.fit(x, y, batch_size=4, epochs=2, **calls).history
    assert [reading["step"] for reading in reader.history] == [2, 4, 6]
    start = residual(blocks=1)
    found = rows(keras_fa.audit(model, x, y, reference=start))
    last = reader.history[-1]
    for name in ("block_1_up", "block_1_add"):
        row = found[name]
        for key, expected in (
            ("growth", row.growth),
            ("signal", row.signal.true_norm),
            ("signal_cosine", row.signal_cosine),
            ("rank", row.rank),
            ("true_rank", row.true_rank),
            ("measurable", 1),
        ):
            read = last[f"audit/{key}/{name}"]
            assert read == pytest.approx(expected, rel=1e-3)
    assert last["audit/cosine/head"] == pytest.approx(1)
    assert logs["audit/growth/head"][-1] == last["audit/growth/head"]
    model.get_layer("embedding").kernel.assign(np.full((6, 5), np.nan))
    blind = reader.read()
    assert blind["audit/measurable/block_1_add"] == 0
    assert math.isnan(blind["audit/signal_cosine/block_1_add"])
    assert blind.keys() == last.keys() - {"step"}
    resumed = callbacks.Audit(x, y)
    resumed.set_state(json.loads(json.dumps(reader.get_state())))
    assert resumed.get_state() == reader.get_state()


def trained(workdir, **model):
    config = default_config()
    config.dataset.train_size = 120
    config.model.name = "residual_mlp"
    with config.unlocked():
        config.model.update({"width": 8, "hidden_units": 8, "blocks": 1, **model})
    config.batch_size = 40
    config.instruments.conservation = False
    experiment.run(config, workdir)
    return workdir


@pytest.mark.slow
def test_a_run_folder_is_audited_with_its_baselines(tmp_path):
    run = trained(tmp_path / "run")
    baselines = [trained(tmp_path / w, frozen=w) for w in ("body", "all_but_last")]
    verdict = experiment.audit(run, baselines, size=50)
    assert set(verdict.scores) == {
        "trained",
        "its body frozen",
        "its last layer alone trained",
    }
    assert all(row.moved > 0 for row in verdict.rows if row.moved is not None)
    # From the same weights: what is frozen stands where the run began.
    frozen = rows(experiment.audit(baselines[1], size=50))
    assert frozen["embedding"].trains is False and frozen["embedding"].moved == 0
    assert frozen["head"].moved > 0
    with pytest.raises(ValueError, match="nothing in its network was frozen"):
        experiment.audit(run, [run])
    longer = {**run_folder.read_config(run), "epochs": 9}
    with pytest.raises(ValueError, match="epochs: 1 there, 9 given"):
        experiment._kind(baselines[0], longer)
    with pytest.raises(run_folder.RunFolderError, match="No run in"):
        experiment.audit(tmp_path / "nothing")
    path = tmp_path / "audit.png"
    figure = figures.audit({"one": verdict, "two": verdict.to_dict()}, path)
    assert path.stat().st_size > 0
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [row.layer for row in verdict.rows]
    assert len(figures.audit(verdict, parts="growth").axes) == 1
    with pytest.raises(ValueError, match="other layers"):
        other = keras_fa.audit(residual(), *batch(), CROSSENTROPY)
        figures.audit({"one": verdict, "two": other})


@pytest.mark.long
def test_the_program_writes_table_files_and_figure(tmp_path):
    run = trained(tmp_path / "run")
    body = trained(tmp_path / "body", frozen="body")
    program = [sys.executable, str(ROOT / "trainers" / "audit.py"), f"--run={run}"]

    def called(*arguments):
        return subprocess.run(
            [*program, *arguments], capture_output=True, text=True, timeout=300
        )

    done = called(f"--baselines={body}", "--size=50")
    assert (done.returncode, done.stderr) == (0, "")
    assert "block_1_add" in done.stdout and "verdict: " in done.stdout
    found = json.loads((run / "audit" / "audit.json").read_text())
    assert found["scores"].keys() == {"trained", "its body frozen"}
    assert (run / "audit" / "audit.csv").read_text().startswith("layer,norm,growth")
    assert (run / "audit" / "audit.png").stat().st_size > 0
    done = called(f"--baselines={run}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
