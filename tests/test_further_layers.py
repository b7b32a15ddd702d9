"""Every layer that is neither dense nor a convolution, under every rule.

Forward as stock Keras to the bit, and gradients as those written out by hand in
`oracles`, float64. What they share with the dense layer is in test_layers.py.
"""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import LEARNED, RULES, assert_close
from oracles import FURTHER

from keras_fa import rules
from keras_fa.layers import COUNTERPARTS, forward_variables

every_case = pytest.mark.parametrize("case", FURTHER)
_VARIANTS = [(name, n) for name, c in FURTHER.items() for n in range(len(c.variants))]
every_variant = pytest.mark.parametrize(("case", "variant"), _VARIANTS)
# Every rule with the first arguments; with the others what is done with a B.
every_rule = pytest.mark.parametrize(
    ("case", "variant", "rule"),
    [(*v, rule) for v in _VARIANTS for rule in (RULES if v[1] == 0 else ["fa"])],
)


def _pair(case, rule, variant=0, **kwargs):
    """A feedback layer, its stock counterpart with the same weights, an input."""
    case = FURTHER[case]
    kwargs = {"dtype": "float64", **case.variants[variant], **kwargs}
    x = case.inputs(kwargs["dtype"], batch=2)
    if kwargs.get("data_format") == "channels_first":
        x = np.moveaxis(x, -1, 1)
    layer, stock = case.make(rule, **kwargs), case.make_stock(**kwargs)
    layer.build(x.shape)
    stock.build(x.shape)
    return layer, stock, x


def _move(layer, stock):
    """Moves a layer's weights, the learned ones too, and has the stock layer follow."""
    random = np.random.default_rng(2)
    for variable in layer.trainable_variables:
        variable.assign_add(random.normal(size=variable.shape) * 0.1)
    for to, source in zip(
        stock.trainable_variables, forward_variables(layer), strict=True
    ):
        to.assign(source)


def _run(layer, x, sources, error=None):
    """The output and the gradients of <output, error> for x and the variables."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    gradients = tape.gradient(
        y,
        [x, *(v.value for v in sources)],
        output_gradients=None if error is None else tf.constant(error),
    )
    return y.numpy(), [np.asarray(g) for g in gradients]


def _error(y):
    return np.random.default_rng(3).normal(size=y.shape)


@every_rule
def test_equals_oracle_and_stock_keras(case, variant, rule):
    layer, stock, x = _pair(case, rule, variant)
    kernels = [np.asarray(getattr(layer, entry.kernel)) for entry in layer.maps]
    _move(layer, stock)
    weights = forward_variables(layer)
    y, (dx, *d_weights) = _run(
        layer, x, layer.trainable_variables, error := _error(np.asarray(layer(x)))
    )
    np.testing.assert_array_equal(y, stock(x))

    feedback, learned = [], []
    for index, (entry, start) in enumerate(zip(layer.maps, kernels, strict=True)):
        now = np.asarray(getattr(layer, entry.kernel))
        layout, stored = FURTHER[case].layouts[index], helpers.stored(layer, index)
        helpers.assert_backward_kernel(layer, rule, now, start, stored, index, layout)
        feedback.append(RULES[rule](now, start, stored, layout))
        relative = helpers.relative_error(feedback[-1], now)
        assert relative == 0 or relative > 0.1
        number = next(i for i, w in enumerate(weights) if w is getattr(layer, entry[0]))
        learned.append((number, stored, layout))
    arguments = {**FURTHER[case].arguments, **FURTHER[case].variants[variant]}
    expected_y, pull = FURTHER[case].oracle(
        arguments, x, [w.numpy() for w in weights], feedback
    )
    assert_close(y, expected_y)
    expected_dx, *expected = pull(error)
    assert_close(dx, expected_dx)
    if rule in LEARNED:
        for number, stored, layout in learned:
            made = LEARNED[rule](expected[number], stored, layout)
            expected += made.values()
    for actual, wanted in zip(d_weights, expected, strict=True):
        assert_close(actual, wanted)


@every_variant
def test_feedback_equal_to_the_weights_is_stock_keras(case, variant):
    layer, stock, x = _pair(case, "fa", variant)
    _move(layer, stock)
    for index, entry in enumerate(layer.maps):
        layer.stored(index)["feedback"].assign(getattr(layer, entry.kernel))
    results = [_run(one, x, one.trainable_variables) for one in (layer, stock)]
    for actual, expected in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(actual, expected)


@every_case
def test_zero_feedback_moves_nothing_before(case):
    layer, _, x = _pair(case, "fa")
    for index in range(len(layer.maps)):
        layer.stored(index)["feedback"].assign(
            np.zeros(layer.backward_kernel(index).shape)
        )
    _, (dx, *d_weights) = _run(layer, x, layer.trainable_variables)
    assert not dx.any()
    # Of the last product alone nothing else is asked than an error.
    assert d_weights[len(layer.maps) - 1].any()
    if len(layer.maps) > 1:
        assert not d_weights[0].any()


# Larger ones, so that a root mean square over the entries says what it should be.
_WIDE = {
    "depthwise1d": ({"kernel_size": 5, "depth_multiplier": 8}, (6, 40)),
    "depthwise2d": ({"depth_multiplier": 8}, (3, 5, 40)),
    "separable1d": ({"filters": 50, "depth_multiplier": 8}, (6, 90)),
    "separable2d": ({"filters": 50, "depth_multiplier": 8}, (3, 5, 40)),
    "conv1d_transpose": ({"filters": 60}, (6, 20)),
    "conv2d_transpose": ({"filters": 60}, (3, 5, 20)),
    "conv3d_transpose": ({"filters": 20}, (3, 2, 5, 10)),
    "einsum": ({"output_shape": (None, 4, 30)}, (5, 80)),
    "einsum_order": ({"output_shape": (30, 20)}, (6, 20, 40)),
    "einsum_shared": ({"output_shape": (50, 40)}, (50, 60)),
}


@pytest.mark.parametrize(
    "rule",
    ["sign_fa", "fa", "frsf", rules.FeedbackAlignment("glorot_uniform")],
    ids=str,
)
@every_case
def test_backward_kernel_has_the_scale_of_the_kernel(case, rule):
    """rms(B) / rms(W) with Glorot kernels."""
    arguments, shape = _WIDE[case]
    layer = FURTHER[case].make(rule, **arguments)
    layer.build((None, *shape))
    for index, entry in enumerate(layer.maps):
        sides = layer.backward_kernel(index), getattr(layer, entry.kernel)
        b, w = (np.sqrt(np.mean(np.square(side))) for side in sides)
        # Measured, the worst: 0.98 and 1.02; a wrong count of the fans is a factor.
        assert 0.95 < b / w < 1.05


@pytest.mark.parametrize(
    ("case", "variant"),
    [*((name, 0) for name in FURTHER), ("einsum", 2), ("einsum_order", 1)],
)
def test_weight_mirror_sees_the_bias_of_each_output(case, variant):
    """Through a ReLU, what has a large negative bias mirrors nothing."""
    rule = rules.WeightMirror(activation="relu")
    layer, stock, x = _pair(case, rule, variant)
    _move(layer, stock)
    dead = np.arange(layer.bias.shape.num_elements()).reshape(layer.bias.shape) % 2
    layer.bias.assign(np.where(dead, -1e3, 1e3))
    index = len(layer.maps) - 1
    before = layer.stored(index)["feedback"].numpy()
    keras.Sequential([layer])(x, training=True)
    moved = layer.stored(index)["feedback"].numpy() != before
    weights = [w.numpy() for w in forward_variables(layer)]
    arguments = {**FURTHER[case].arguments, **FURTHER[case].variants[variant]}
    y, pull = FURTHER[case].oracle(arguments, x, weights, weights)
    expected = pull(np.where(y < 0, 0.0, 1.0))[1 + index] != 0
    np.testing.assert_array_equal(moved, expected)
    assert moved.any() and not moved.all()


@pytest.mark.parametrize("case", ["separable1d"])
def test_the_kernels_of_a_layer_draw_different_feedback_from_one_seed(case):
    """And the same again from the layer's config."""
    rule = rules.FeedbackAlignment("random_normal", seed=3)
    layer = FURTHER[case].make(rule, kernel_size=1, depth_multiplier=1, filters=3)
    again = type(layer).from_config(layer.get_config())
    for one in (layer, again):
        one.build((None, 7, 3))
    first, second = (np.ravel(layer.backward_kernel(i)) for i in range(2))
    assert not np.array_equal(first, second[:3])
    for index in range(2):
        np.testing.assert_array_equal(
            layer.backward_kernel(index), again.backward_kernel(index)
        )


def test_every_layer_has_a_row():
    tables = (helpers.LAYERS, FURTHER)
    covered = {case.stock: case.feedback for table in tables for case in table.values()}
    assert covered == COUNTERPARTS
