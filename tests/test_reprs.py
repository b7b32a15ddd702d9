"""What a notebook's cell shows of a result is a line, without weights or data."""

import numpy as np

from keras_fa import analysis, datasets, models


def shown(result):
    text = repr(result)
    assert "\n" not in text
    assert len(text) <= 88, text
    return text


def test_groups_read_like_their_texts():
    model = models.lenet((28, 28, 1), 10)
    groups = analysis.conserved_groups(model)
    assert [shown(group) for group in groups] == [f"<{group}>" for group in groups]
    assert shown(groups[0].producers[0]) == "<Producer C1 (32 channels)>"
    assert shown(groups[0].consumers[0]) == "<Consumer C2 (32 channels)>"


def test_measurements_are_numbers():
    model = models.mlp((6,), (8,), 3)
    model.compile("sgd", "mse")
    x, y = np.ones((4, 6), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]]
    ledger = analysis.Ledger(model)
    result = analysis.gradient_alignment(model, x, y)
    whole = result.whole
    assert shown(result) == (
        f"GradientAlignmentResult(cosine={whole.cosine:.4g}, "
        f"gradient_norm={whole.true_norm:.4g}, feedback_norm={whole.feedback_norm:.4g})"
    )
    assert shown(whole) == (
        f"Alignment(cosine={whole.cosine:.4g}, true_norm={whole.true_norm:.4g}, "
        f"feedback_norm={whole.feedback_norm:.4g})"
    )
    model.train_on_batch(x, y)
    ledger.step()
    entry = ledger.report()["dense_1"]
    measured, predicted = np.sum(entry.measured), np.sum(entry.predicted)
    assert shown(entry) == (
        f"<LedgerEntry of 8 units, summed: measured {measured:.3g}, predicted "
        f"{predicted:.3g}>"
    )


def test_a_data_set_says_what_it_is():
    assert shown(datasets.load("digits", batch_size=32)) == (
        "<Dataset 'digits': 1,437 + 360 examples (8, 8, 1), 10 classes, batch_size=32>"
    )
    assert "targets (1,)" in shown(datasets.load("separable"))
