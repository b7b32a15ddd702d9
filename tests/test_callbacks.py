"""The instruments in the logs of `fit`: keys, rhythm, readers, and a resumed run."""

import csv
import json

import keras
import numpy as np
import pytest

from keras_fa import analysis, callbacks, layers, models

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


@pytest.mark.slow
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
            callbacks.ErrorAlignment(X, Y, per_example=True, prefix="each_"),
        ],
    )
    end = analysis.potentials(model)["dense_1"]
    terms = analysis.alignment_terms(model)["dense_2"]
    gradient = analysis.gradient_alignment(model, X, Y)
    each = analysis.error_alignment(model, X, Y, per_example=True)["dense_1"]
    error = analysis.error_alignment(model, X, Y)["dense_1"]
    assert each.cosine != pytest.approx(error.cosine, abs=1e-3)
    assert history["each_error_cosine/dense_1"][-1] == pytest.approx(each.cosine)
    expected = {
        "alignment/dense_2": terms.cosine,
        "norm/dense_2": terms.true_norm,
        "inner/dense_2": terms.inner_product,
        "conservation/dense_1": np.mean(np.abs(end / start - 1)),
        "drift/dense_1": np.mean(np.abs(end - start)),
        "potential/dense_1": np.sum(end),
        "potential_ratio/dense_1": np.sum(end) / np.sum(start),
        "gradient_cosine": gradient.cosine,
        "gradient_norm": gradient.gradient_norm,
        "feedback_gradient_norm": gradient.feedback_norm,
        "gradient_inner": gradient.inner_product,
        "gradient_loss": gradient.loss,
        "gradient_cosine/dense_1": gradient.layers["dense_1"].cosine,
        "gradient_norm/dense_1": gradient.layers["dense_1"].true_norm,
        "error_cosine/dense_1": error.cosine,
    }
    # The ledger costs a reading a step, and is kept where it is asked for.
    assert not any(key.startswith("ledger") for key in history)
    for key, value in expected.items():
        assert len(history[key]) == 4
        # Eager and compiled float32 sums differ by up to 2e-7 here.
        assert history[key][-1] == pytest.approx(value, rel=1e-5), key
    assert history["drift/dense_1"][-1] > 0


@pytest.mark.slow
def test_where_b_learns_its_norm_and_distance_are_logged_and_angles_on_request():
    instrument = callbacks.WeightAlignment(terms=True, degrees=True)
    model = compiled("kolen_pollack")
    history = fit(model, [instrument])
    w, b = (
        np.asarray(values, "float64")
        for values in (model.layers[-1].kernel, model.layers[-1].feedback)
    )
    cosine = np.sum(w * b) / np.linalg.norm(w) / np.linalg.norm(b)
    for key, value in {
        "angle/dense_2": np.degrees(np.arccos(cosine)),
        "feedback_norm/dense_2": np.linalg.norm(b),
        "distance/dense_2": np.linalg.norm(w - b),
    }.items():
        assert history[key][-1] == pytest.approx(value, rel=1e-9), key
    # Without decay the two keep the distance that they had.
    assert history["distance/dense_2"][0] == pytest.approx(np.linalg.norm(w - b), 1e-6)
    fixed = fit(compiled("fa"), [callbacks.WeightAlignment(terms=True)])
    assert not {"angle/dense_2", "distance/dense_2"} & fixed.keys()


@pytest.mark.slow
def test_sign_fa_logs_its_bound():
    history = fit(compiled("sign_fa"), [callbacks.WeightAlignment()])
    assert history["alignment_bound/dense_1"] == [pytest.approx(48**-0.5)] * 4
    assert min(history["alignment/dense_1"]) > 48**-0.5
    assert "alignment_bound/dense_1" not in fit(compiled(), [])


@pytest.mark.slow
def test_every_other_epoch_and_the_first_and_between_them_the_last(tmp_path):
    rhythm = callbacks.Conservation(every=2)
    each = callbacks.Conservation(prefix="each_")
    log = tmp_path / "log.csv"
    history = fit(compiled(), [each, rhythm, keras.callbacks.CSVLogger(log)], epochs=5)
    drifts = history["each_drift/dense_1"]
    assert len(set(drifts)) == 5
    expected = [drifts[i] for i in (0, 1, 1, 3, 3)]
    assert history["drift/dense_1"] == expected
    with open(log) as file:
        assert [float(row["drift/dense_1"]) for row in csv.DictReader(file)] == expected


def test_a_step_rhythm_longer_than_an_epoch_reads_at_the_first_ones_end():
    rhythm = callbacks.WeightAlignment(every=8, unit="step")
    history = fit(compiled(), [rhythm], epochs=3)
    assert [reading["step"] for reading in rhythm.history] == [6, 8, 16]
    readings = [reading["alignment/dense_2"] for reading in rhythm.history]
    assert history["alignment/dense_2"] == readings


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_every_so_many_steps(steps_per_execution):
    rhythm = callbacks.WeightAlignment(every=4, unit="step")
    model = compiled(steps_per_execution=steps_per_execution)
    history = fit(model, [rhythm], epochs=2)
    read = [reading["step"] for reading in rhythm.history]
    # Several steps in one call: read at the first look at or after each fourth step.
    assert read == ([4, 8, 12] if steps_per_execution == 1 else [6, 9, 12])
    assert history["alignment/dense_2"][-1] == rhythm.history[-1]["alignment/dense_2"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_after_a_resume_everything_refers_to_the_first_start():
    whole = compiled("sign_fa")
    copy = keras.models.clone_model(whole)
    copy.set_weights(whole.get_weights())
    copy.compile(keras.optimizers.SGD(0.1), whole.loss)
    first = callbacks.Conservation(ledger=True)
    expected = fit(whole, [callbacks.Conservation(ledger=True)], shuffle=False)

    fit(copy, [first], epochs=2, shuffle=False)
    second = callbacks.Conservation(ledger=True)
    fit(compiled(), [second], epochs=1)
    second.set_state(json.loads(json.dumps(first.get_state())))
    resumed = fit(copy, [second], epochs=2, shuffle=False)
    for key in ("drift/dense_1", "ledger/measured/dense_1", "ledger/flips/dense_1"):
        assert resumed[key] == pytest.approx(expected[key][2:], rel=1e-9), key
    bounds = callbacks.WeightAlignment()
    fit(compiled(), [bounds], epochs=1)
    bounds.set_state({"dense_2": 0.125})
    fresh = fit(copy, [callbacks.Conservation(), bounds], epochs=1)
    assert fresh["alignment_bound/dense_2"] == [0.125]
    assert fresh["drift/dense_1"][0] < resumed["drift/dense_1"][-1]


@pytest.mark.slow
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
        ({"prefix": 1}, "a text"),
    ],
)
def test_bad_arguments(arguments, match):
    for instrument in (callbacks.WeightAlignment, callbacks.Conservation):
        with pytest.raises(ValueError, match=match):
            instrument(**arguments)


@pytest.mark.slow
def test_class_weights_of_fit_are_seen_and_sample_weights_asked_for():
    weights, labels = {0: 0.1, 1: 5.0}, Y.astype("int64")
    counts = np.array([weights.get(label, 1.0) for label in Y], "float32")
    model = compiled()
    probe = callbacks.GradientAlignment(X, labels)
    history = fit(model, [probe], epochs=1, class_weight=weights)
    expected = analysis.gradient_alignment(model, X, Y, sample_weight=counts)
    assert history["gradient_norm"][0] == pytest.approx(expected.gradient_norm)
    plain = analysis.gradient_alignment(model, X, Y)
    assert history["gradient_norm"][0] != pytest.approx(plain.gradient_norm, rel=0.01)
    with pytest.raises(ValueError, match="training data have sample weights"):
        fit(model, [callbacks.GradientAlignment(X, Y)], sample_weight=counts)
    with pytest.raises(ValueError, match="training data have sample weights"):
        batches = ((X[:8], Y[:8], counts[:8]) for _ in range(2))
        probe = callbacks.ErrorAlignment(X, Y)
        model.fit(batches, callbacks=[probe], verbose=0, shuffle=False)
    probes = [
        callbacks.GradientAlignment(X, Y, sample_weight=counts),
        callbacks.ErrorAlignment(X, Y, sample_weight=counts),
    ]
    history = fit(model, probes, epochs=1, sample_weight=counts)
    expected = analysis.gradient_alignment(model, X, Y, sample_weight=counts)
    assert history["gradient_norm"][0] == pytest.approx(expected.gradient_norm)
    expected = analysis.error_alignment(model, X, Y, sample_weight=counts)["dense_1"]
    assert history["error_cosine/dense_1"][0] == pytest.approx(expected.cosine)


@pytest.mark.slow
def test_two_probes_need_two_prefixes():
    first = callbacks.GradientAlignment(X, Y)
    with pytest.raises(ValueError, match="'gradient_inner' in the logs already"):
        fit(compiled(), [first, callbacks.GradientAlignment(X[:8], Y[:8])])
    second = callbacks.GradientAlignment(X[:8], Y[:8], prefix="few_")
    model = compiled()
    history = fit(model, [first, second])
    assert second.read()["few_gradient_cosine"] == history["few_gradient_cosine"][-1]
    assert history["few_gradient_cosine"] != history["gradient_cosine"]


def test_one_dict_of_logs_may_serve_all_epochs_of_a_loop():
    instrument, logs = callbacks.WeightAlignment(), {}
    model = compiled()
    instrument.set_model(model)
    instrument.on_train_begin()
    for epoch in range(2):
        model.train_on_batch(X, Y)
        instrument.on_epoch_end(epoch, logs)
        assert logs["alignment/dense_2"] == analysis.weight_alignment(model)["dense_2"]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_quiet_instruments_stay_out_of_the_line_that_fit_prints(tmp_path, capfd, unit):
    log = tmp_path / "log.csv"
    instruments = [
        callbacks.WeightAlignment(unit=unit, quiet=True),
        callbacks.Conservation(unit=unit),
        keras.callbacks.CSVLogger(log),
    ]
    for verbose in (1, 2):
        history = compiled().fit(X, Y, epochs=2, callbacks=instruments, verbose=verbose)
        printed = capfd.readouterr().out
        assert "loss" in printed and "drift/dense_1" in printed
        assert "alignment" not in printed
        assert len(history.history["alignment/dense_2"]) == 2
        assert "alignment/dense_2" in log.read_text()


@pytest.mark.slow
def test_minimum_norm_is_that_of_the_linear_networks_map():
    x, y = X[:4], RANDOM.normal(size=(4, 3)).astype("float32")
    solution = np.linalg.lstsq(x, y, rcond=None)[0]  # of several, the shortest
    expected = []

    def by_hand(epoch, logs):
        first, second = (w.kernel.numpy() for w in layers.feedback_layers(model))
        distance = np.linalg.norm(first @ second - solution)
        expected.append(distance / np.linalg.norm(solution))

    model = models.mlp((6,), (8,), 3, activation="linear")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    instruments = [
        keras.callbacks.LambdaCallback(on_epoch_end=by_hand),
        callbacks.MinimumNorm(x, y),
    ]
    logs = model.fit(x, y, epochs=3, callbacks=instruments, verbose=0).history
    assert min(v.bias.numpy().any() for v in layers.feedback_layers(model))
    assert logs["minimum_norm_distance"] == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == 3
    with pytest.raises(ValueError, match="speaks of linear networks"):
        fit(compiled(), [callbacks.MinimumNorm(X, Y[:, None])])


@pytest.mark.slow
def test_another_model_starts_anew_and_the_same_goes_on():
    instruments = [
        callbacks.Conservation(ledger=True),
        callbacks.WeightAlignment(unit="step"),
        callbacks.GradientAlignment(X, Y),
    ]
    fit(compiled(), instruments)
    model, twin = compiled("sign_fa"), compiled("sign_fa")
    twin.set_weights(model.get_weights())
    again = fit(model, instruments, shuffle=False)
    fresh = [
        callbacks.Conservation(ledger=True),
        callbacks.WeightAlignment(unit="step"),
        callbacks.GradientAlignment(X, Y),
    ]
    expected = fit(twin, fresh, shuffle=False)
    for key in ("drift/dense_1", "ledger/measured/dense_1", "gradient_cosine"):
        assert again[key] == pytest.approx(expected[key], rel=1e-6), key
    assert "alignment_bound/dense_2" in again
    assert len(instruments[1].history) == 24
    further = fit(model, instruments)
    start = instruments[0].reference["dense_1"]
    end = analysis.potentials(model)["dense_1"]
    assert further["drift/dense_1"][-1] == pytest.approx(analysis.drift(end, start))
    assert further["ledger/remainder/dense_1"][-1] < 1e-12


def test_what_a_callback_behind_it_restores_is_the_start():
    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            for variable in self.model.trainable_variables:
                variable.assign(0.5 * variable)

    instrument = callbacks.Conservation(ledger=True)
    history = fit(compiled(), [instrument, Restore()], epochs=1)
    assert history["drift/dense_1"][0] < 0.02
    assert history["ledger/remainder/dense_1"][0] < 1e-12


@pytest.mark.slow
def test_groups_that_come_and_go_with_trainable():
    model = models.mlp((6,), (8, 7), 3, rule="fa")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = X, np.eye(3)[Y]
    instrument = callbacks.Conservation(ledger=True)

    def trained(frozen):
        model.get_layer("dense_1").trainable = not frozen
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model.fit(x, y, callbacks=[instrument], verbose=0).history

    start = analysis.potentials(model)
    before = trained(frozen=True)
    assert "drift/dense_1" not in before
    model.get_layer("dense_1").trainable = True
    middle = analysis.potentials(model)
    with pytest.warns(UserWarning, match="From here on Conservation measures dense_1"):
        after = trained(frozen=False)
    end = analysis.potentials(model)
    drifts = {"dense_1": middle, "dense_2": start}
    for name, reference in drifts.items():
        expected = analysis.drift(end[name], reference[name])
        assert after[f"drift/{name}"][0] == pytest.approx(expected, rel=1e-9)
        expected = np.sum(end[name] - reference[name])
        assert after[f"ledger/measured/{name}"][0] == pytest.approx(expected, rel=1e-9)
        assert after[f"ledger/remainder/{name}"][0] < 1e-12
    assert int(instrument._books.steps) == 4


@pytest.mark.slow
def test_a_group_of_the_same_name_with_another_consumer_is_new():
    def layer(units, name):
        return layers.FeedbackDense(units, activation="relu", name=name)

    model = keras.Sequential([keras.Input((6,)), layer(8, "a"), layer(3, "b")])
    instrument = callbacks.Conservation()
    for last in ("b", "c"):
        model.pop()
        model.add(layer(3, last))
        model.compile("sgd", "mse")
        start = analysis.potentials(model)["a"]
        if last == "b":
            model.fit(X, np.eye(3)[Y], callbacks=[instrument], verbose=0)
    with pytest.warns(UserWarning, match="From here on Conservation measures a"):
        model.fit(X, np.eye(3)[Y], callbacks=[instrument], verbose=0)
    np.testing.assert_array_equal(instrument.reference["a"], start)


@pytest.mark.slow
def test_a_network_without_a_law_trains_on_with_a_warning():
    model = models.mlp((6,), (8,), 3, activation="tanh")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="dense_1 -> dense_2 .*tanh"):
        history = fit(model, [callbacks.Conservation(ledger=True)])
    assert list(history) == ["loss"]

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="logs nothing: .*graph"):
        history = fit(model, [callbacks.Conservation()])
    assert len(history["loss"]) == 4
