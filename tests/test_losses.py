"""The losses: values and gradients by hand, saving and loading, and the names."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fa import losses

RANDOM = np.random.default_rng(0)
OUTPUTS = RANDOM.normal(size=(5, 3))
TARGETS = RANDOM.normal(size=(5, 3))
SIGNS = np.array([[1.0], [-1.0], [-1.0], [1.0], [1.0]])


def test_exponential_loss():
    loss = losses.ExponentialLoss("none", dtype="float64")
    values = loss(SIGNS, OUTPUTS[:, :1])
    # Measured: 2e-16.
    expected = np.exp(-SIGNS[:, 0] * OUTPUTS[:, 0])
    np.testing.assert_allclose(values, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [("sum", np.sum), ("sum_over_batch_size", np.mean), ("none", np.asarray)],
)
def test_half_squared_error(reduction, reduce):
    loss = losses.HalfSquaredError(reduction, dtype="float64")
    errors = OUTPUTS - TARGETS
    expected = reduce([0.5 * np.dot(error, error) for error in errors])
    np.testing.assert_allclose(loss(TARGETS, OUTPUTS), expected, rtol=1e-14)


@pytest.mark.parametrize("flat", ["labels", "outputs"])
def test_labels_without_the_last_axis_meet_their_own_output(flat):
    outputs, labels = OUTPUTS[:, :1], SIGNS
    squares = 0.5 * np.sum((outputs - labels) ** 2)
    exponential = np.mean(np.exp(-labels * outputs))
    if flat == "labels":
        labels = labels[:, 0]
    else:
        outputs = outputs[:, 0]
    loss = losses.HalfSquaredError(dtype="float64")
    np.testing.assert_allclose(loss(labels, outputs), squares, rtol=1e-14)
    loss = losses.ExponentialLoss(dtype="float64")
    np.testing.assert_allclose(loss(labels, outputs), exponential, rtol=1e-14)


def test_sequences_of_single_outputs():
    outputs, targets = OUTPUTS[:, :, None], TARGETS
    loss = losses.HalfSquaredError("sum_over_batch_size", dtype="float64")
    expected = 0.5 * np.mean(np.sum((OUTPUTS - TARGETS) ** 2, axis=1))
    np.testing.assert_allclose(loss(targets, outputs), expected, rtol=1e-14)


@pytest.mark.parametrize("loss", [losses.HalfSquaredError, losses.ExponentialLoss])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3, 1, 1), (1, 3)])
def test_targets_that_would_be_broadcast_are_refused(loss, shape):
    with pytest.raises(ValueError, match=r"of the outputs. Received: targets"):
        loss()(np.ones(shape), OUTPUTS)


def test_half_squared_error_is_summed_unless_told_otherwise():
    assert losses.HalfSquaredError().reduction == "sum"


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_sigmoid_cross_entropy_is_summed_over_the_classes(shape):
    loss, measures = losses.get("sigmoid_cross_entropy", "float64")
    labels = np.array([0, 2, 1, 1, 0])
    probabilities = 1 / (1 + np.exp(-OUTPUTS))
    targets = np.eye(3)[labels]
    each = targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities)
    value = loss(labels.reshape(shape), OUTPUTS)
    np.testing.assert_allclose(value, -each.sum(axis=1).mean(), rtol=1e-14)
    hits = measures["accuracy"](labels, OUTPUTS)
    np.testing.assert_array_equal(hits, OUTPUTS.argmax(axis=1) == labels)
    assert loss.from_config(loss.get_config()).get_config() == loss.get_config()


def test_the_gradient_of_half_squared_error_is_the_residual():
    loss = losses.HalfSquaredError(dtype="float64")
    outputs = tf.constant(OUTPUTS)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        value = loss(TARGETS, outputs)
    gradient = tape.gradient(value, outputs)
    np.testing.assert_allclose(gradient, OUTPUTS - TARGETS, rtol=1e-14)


def test_a_model_compiled_with_it_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    loss = losses.HalfSquaredError("none", name="ours", dtype="float32")
    model.compile("sgd", loss)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, losses.HalfSquaredError)
    assert loaded.loss.get_config() == loss.get_config()
    np.testing.assert_array_equal(loaded.loss(TARGETS, OUTPUTS), loss(TARGETS, OUTPUTS))


def test_names():
    loss, measures = losses.get("cross_entropy")
    labels = np.array([0, 2, 1, 1, 0])
    shifted = OUTPUTS - np.log(np.exp(OUTPUTS).sum(axis=1, keepdims=True))
    # Measured: 7e-8, in float32.
    np.testing.assert_allclose(
        loss(labels, OUTPUTS), -shifted[np.arange(5), labels].mean(), rtol=1e-6
    )
    assert list(measures) == ["accuracy"]
    np.testing.assert_array_equal(
        measures["accuracy"](labels, OUTPUTS), labels == OUTPUTS.argmax(axis=1)
    )
    loss, measures = losses.get("exponential", "float64")
    assert isinstance(loss, losses.ExponentialLoss)
    assert (loss.dtype, measures) == ("float64", {})
    loss, measures = losses.get("half_squared_error")
    assert isinstance(loss, losses.HalfSquaredError)
    assert (loss.reduction, measures) == ("sum", {})
    assert losses.get("mean_absolute_error") == (keras.losses.mean_absolute_error, {})


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="half_sqared_error"):
        losses.get("half_sqared_error")


@pytest.mark.parametrize(
    "loss",
    [losses.ExponentialLoss, losses.HalfSquaredError, losses.SigmoidCrossEntropy],
)
def test_a_loss_comes_back_from_its_configuration(loss):
    made = loss(reduction="none", name="own", dtype="float64")
    again = loss.from_config(made.get_config())
    assert (again.reduction, again.name, again.dtype) == ("none", "own", "float64")


def test_cross_entropy_with_mixed_targets_and_smoothing():
    random = np.random.default_rng(0)
    logits, ids = random.normal(size=(6, 4)), random.integers(0, 4, 6)
    vectors = random.dirichlet(np.ones(4), 6)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    loss, measures = losses.get(
        "cross_entropy", "float64", label_smoothing=0.1, top_k=2, vectors=True
    )
    for given, targets in ((ids, np.eye(4)[ids]), (vectors, vectors)):
        smooth = 0.9 * targets + 0.1 / 4
        expected = -(smooth * np.log(softmax)).sum(-1).mean()
        found = keras.ops.convert_to_numpy(loss(given, logits))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        best = np.argsort(-logits, axis=-1)
        right = best == targets.argmax(-1)[:, None]
        for name, k in (("accuracy", 1), ("top_2_accuracy", 2)):
            found = keras.ops.convert_to_numpy(measures[name](given, logits))
            np.testing.assert_array_equal(found, right[:, :k].any(-1))
    for wrong in ({"label_smoothing": 1.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            losses.get("cross_entropy", **wrong)
    plain, measures = losses.get("cross_entropy")
    assert isinstance(plain, keras.losses.SparseCategoricalCrossentropy)
    assert measures.keys() == {"accuracy"}
