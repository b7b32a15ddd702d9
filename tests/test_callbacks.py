"""The instruments in the logs of `fit`: keys, rhythm, readers, and a resumed run."""

import json

import keras
import numpy as np
import pytest

from keras_fa import analysis, callbacks, models

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(48, 6)).astype("float32")
Y = RANDOM.integers(0, 3, 48)


def compiled(rule="fa", **arguments):
    model = models.mlp((6,), (8,), 3, rule=rule)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, **arguments)
    return model


def fit(model, instruments, epochs=4, **arguments):
    return model.fit(
        X, Y, batch_size=8, epochs=epochs, callbacks=instruments, verbose=0, **arguments
    ).history


def test_keys_and_values_reach_the_history():
    model = compiled()
    start = analysis.potentials(model)["dense_1"]
    history = fit(
        model,
        [
            callbacks.WeightAlignment(terms=True),
            callbacks.Conservation(),
            callbacks.GradientAlignment(X, Y),
            callbacks.ErrorAlignment(X, Y),
        ],
    )
    end = analysis.potentials(model)["dense_1"]
    terms = analysis.alignment_terms(model)["dense_2"]
    gradient = analysis.gradient_alignment(model, X, Y)
    error = analysis.error_alignment(model, X, Y)["dense_1"]
    expected = {
        "alignment/dense_2": terms.cosine,
        "norm/dense_2": terms.true_norm,
        "inner/dense_2": terms.inner_product,
        "conservation/dense_1": np.mean(np.abs(end / start - 1)),
        "drift/dense_1": np.mean(np.abs(end - start)),
        "potential/dense_1": np.sum(end),
        "gradient_cosine": gradient.cosine,
        "gradient_norm": gradient.gradient_norm,
        "feedback_gradient_norm": gradient.feedback_norm,
        "gradient_inner": gradient.inner_product,
        "gradient_loss": gradient.loss,
        "gradient_cosine/dense_1": gradient.layers["dense_1"].cosine,
        "gradient_norm/dense_1": gradient.layers["dense_1"].true_norm,
        "error_cosine/dense_1": error.cosine,
    }
    for key, value in expected.items():
        assert len(history[key]) == 4
        # Eager and compiled float32 sums differ by up to 2e-7 here.
        assert history[key][-1] == pytest.approx(value, rel=1e-5), key
    assert history["drift/dense_1"][-1] > 0


def test_sign_fa_logs_its_bound():
    history = fit(compiled("sign_fa"), [callbacks.WeightAlignment()])
    assert history["alignment_bound/dense_1"] == [pytest.approx(48**-0.5)] * 4
    assert min(history["alignment/dense_1"]) > 48**-0.5
    assert "alignment_bound/dense_1" not in fit(compiled(), [])


def test_every_other_epoch():
    rhythm = callbacks.Conservation(every=2)
    keys = []
    spy = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: keys.append("drift/dense_1" in logs)
    )
    fit(compiled(), [rhythm, spy])
    assert keys == [False, True, False, True]


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_every_so_many_steps(steps_per_execution):
    rhythm = callbacks.WeightAlignment(every=4, unit="step")
    model = compiled(steps_per_execution=steps_per_execution)
    history = fit(model, [rhythm], epochs=2)
    read = [reading["step"] for reading in rhythm.history]
    # Several steps in one call: read at the first look at or after each fourth step.
    assert read == ([4, 8, 12] if steps_per_execution == 1 else [6, 9, 12])
    assert history["alignment/dense_2"][-1] == rhythm.history[-1]["alignment/dense_2"]


def test_csv_logger_early_stopping_and_tensorboard_see_the_keys(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = compiled()
    history = fit(
        model,
        [
            callbacks.WeightAlignment(),
            callbacks.Conservation(histogram_dir=tmp_path / "histograms"),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.EarlyStopping(
                "drift/dense_1", mode="min", patience=1, min_delta=10.0
            ),
            keras.callbacks.TensorBoard(tmp_path / "board"),
        ],
        epochs=9,
    )
    assert len(history["loss"]) == 2, "the drift falls by less than 10: stop at once"
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert "alignment/dense_1" in header
    assert "conservation/dense_1" in header
    board = EventAccumulator(str(tmp_path / "board" / "train"))
    board.Reload()
    assert "epoch_drift/dense_1" in board.Tags()["tensors"]
    histograms = EventAccumulator(str(tmp_path / "histograms"))
    histograms.Reload()
    assert "deviation/dense_1" in histograms.Tags()["tensors"]


def test_after_a_resume_everything_refers_to_the_first_start():
    whole = compiled("sign_fa")
    copy = keras.models.clone_model(whole)
    copy.set_weights(whole.get_weights())
    copy.compile(keras.optimizers.SGD(0.1), whole.loss)
    first = callbacks.Conservation(ledger=True)
    expected = fit(whole, [callbacks.Conservation(ledger=True)], shuffle=False)

    fit(copy, [first], epochs=2, shuffle=False)
    second = callbacks.Conservation(ledger=True)
    second.set_state(json.loads(json.dumps(first.get_state())))
    resumed = fit(copy, [second], epochs=2, shuffle=False)
    for key in ("drift/dense_1", "ledger/measured/dense_1", "ledger/flips/dense_1"):
        assert resumed[key] == pytest.approx(expected[key][2:], rel=1e-9), key
    fresh = fit(copy, [callbacks.Conservation()], epochs=1)
    assert fresh["drift/dense_1"][0] < resumed["drift/dense_1"][-1]


def test_the_ledger_balances_and_needs_single_steps():
    history = fit(compiled("sign_fa"), [callbacks.Conservation(ledger=True)])
    measured = history["ledger/measured/dense_1"][-1]
    terms = sum(
        history[f"ledger/{term}/dense_1"][-1]
        for term in ("squared_steps", "flips", "first_order")
    )
    assert abs(measured) > 1e-4
    assert terms == pytest.approx(measured, rel=1e-9)
    assert history["ledger/remainder/dense_1"][-1] < 1e-12
    with pytest.raises(ValueError, match="steps_per_execution=2"):
        fit(compiled(steps_per_execution=2), [callbacks.Conservation(ledger=True)])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"every": 0}, "positive integer"),
        ({"every": 1.5}, "positive integer"),
        ({"unit": "batch"}, '"epoch" or "step"'),
    ],
)
def test_bad_arguments(arguments, match):
    for instrument in (callbacks.WeightAlignment, callbacks.Conservation):
        with pytest.raises(ValueError, match=match):
            instrument(**arguments)
