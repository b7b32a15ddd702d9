"""Training under every rule, against the same steps in NumPy float64.

One network has a layer under each rule, so that what one sends back reaches the others:
a dense one and a convolutional one, each with momentum and with decoupled decay.
"""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import LEARNED, RULES, Convolution, assert_close, standing

import keras_fa
from keras_fa import _keras, registry
from keras_fa.layers import FeedbackConv2D, FeedbackDense

STEPS, EXAMPLES, CLASSES = 30, 8, 3
# Exact in float32, in which Keras holds a learning rate.
RATE, MOMENTUM, DECAY = 2.0**-4, 0.875, 2.0**-5


@pytest.fixture
def double():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")


def dense_network(names=RULES):
    """A layer under each rule but the first, through which nothing is fed back."""
    sizes = [FeedbackDense(6, "relu", rule=rule) for rule in names]
    end = FeedbackDense(CLASSES, rule="fa")
    return keras.Sequential([keras.Input((5,)), *sizes, end])


def convolutional_network(names=RULES):
    layers = [
        FeedbackConv2D(4, 3, padding="same", activation="relu", rule=rule)
        for rule in names
    ]
    flat = [keras.layers.Flatten(), FeedbackDense(CLASSES, rule="fa")]
    return keras.Sequential([keras.Input((4, 3, 2)), *layers, *flat])


class Momentum:
    """Torch's update: the velocity holds gradients."""

    made = keras_fa.optimizers.TorchSGD(RATE, MOMENTUM)
    rate = RATE

    def __init__(self):
        self.velocities = {}

    def __call__(self, key, value, gradient):
        self.velocities[key] = MOMENTUM * self.velocities.get(key, 0) + gradient
        return value - self.rate * self.velocities[key]


class DecoupledDecay(Momentum):
    """Keras's update: what decays is the value, and the velocity holds steps."""

    made = keras.optimizers.SGD(RATE, MOMENTUM, weight_decay=DECAY)

    def __call__(self, key, value, gradient):
        value = value * (1 - DECAY * self.rate)
        velocity = MOMENTUM * self.velocities.get(key, 0) - self.rate * gradient
        self.velocities[key] = velocity
        return value + velocity


class Twin:
    """A layer's numbers, and what its rule does to them, without Keras."""

    def __init__(self, layer):
        self.layer, self.rule = layer, registry.name_of("rule", type(layer.rule))
        self.kernel, self.bias = layer.kernel.numpy(), layer.bias.numpy()
        self.start, self.stored = self.kernel, helpers.stored(layer)
        convolution = Convolution((1, 1), (1, 1), "same")
        of_dense = helpers.dense, helpers.dense_gradients
        of_convolution = convolution.forward, convolution.gradients
        dense = isinstance(layer, FeedbackDense)
        self.forward, self.gradients = of_dense if dense else of_convolution

    def advance(self):
        if self.rule == "brsf":
            # A draw has no oracle but for its law, which is tested elsewhere.
            self.stored = helpers.stored(self.layer)
        if self.rule == "weight_mirror":
            rule, flat = self.layer.rule, self.kernel.reshape(-1, len(self.bias))
            uniform = keras.initializers.RandomUniform(-rule.noise, rule.noise, seed=0)
            shape = (rule.batch, len(flat))
            xi = np.asarray(
                _keras.drawn(uniform, self.stored["noise"], shape, "float64")
            )
            seen = xi.T @ (1 / (1 + np.exp(-(xi @ flat + self.bias))))
            self.stored["feedback"] += rule.rate * seen.reshape(self.kernel.shape)
            self.stored["noise"] = self.stored["noise"] + [0, 1]

    def step(self, update, number, error, inputs):
        """Updates everything, and returns the inputs' error."""
        backward = RULES[self.rule](self.kernel, self.start, self.stored)
        back, kernel, bias = self.gradients(error, inputs, backward)
        learned = LEARNED.get(self.rule, lambda gradient, stored: {})
        for name, gradient in learned(kernel, self.stored).items():
            self.stored[name] = update((number, name), self.stored[name], gradient)
        self.kernel = update((number, "kernel"), self.kernel, kernel)
        self.bias = update((number, "bias"), self.bias, bias)
        return back


def train_by_hand(twins, update, x, labels):
    inputs, h = [], x
    for twin in twins:
        twin.advance()
        if twin is twins[-1]:
            shape, h = h.shape, h.reshape(len(h), -1)
        inputs.append(h)
        h = twin.forward(h, twin.kernel, twin.bias)
        if twin is not twins[-1]:
            h = np.maximum(h, 0)
    error = helpers.softmax_error(h, labels)
    for number in reversed(range(len(twins))):
        back = twins[number].step(update, number, error, inputs[number])
        if twins[number] is twins[-1]:
            back = back.reshape(shape)
        error = back * (inputs[number].reshape(back.shape) > 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "update"),
    [
        (dense_network, DecoupledDecay),
        (convolutional_network, Momentum),
        standing(dense_network, Momentum, stands=False),
        standing(convolutional_network, DecoupledDecay, stands=False),
    ],
)
def test_thirty_steps_equal_numpys(double, network, update):
    model = network()
    model.compile(
        update.made.from_config(update.made.get_config()),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    twins = [Twin(layer) for layer in keras_fa.layers.feedback_layers(model)]
    random = np.random.default_rng(0)
    x = random.normal(size=(EXAMPLES, *model.input_shape[1:]))
    labels = random.integers(0, CLASSES, EXAMPLES)
    by_hand = update()
    for _ in range(STEPS):
        model.train_on_batch(x, labels)
        train_by_hand(twins, by_hand, x, labels)
    for twin in twins:
        moved = helpers.relative_error(twin.kernel, twin.start)
        assert moved > 1e-3, twin.rule
        now = helpers.stored(twin.layer)
        for actual, expected in (
            (twin.layer.kernel, twin.kernel),
            (twin.layer.bias, twin.bias),
            *((now[name], value) for name, value in twin.stored.items()),
        ):
            # Measured: 2e-15.
            assert_close(actual, expected, 1e-12)


# --- One training in several ways ---


def compiled(names=tuple(RULES), optimizer=None, **arguments):
    """A network of layers under rules, and the seed's data: 16 examples."""
    keras.utils.set_random_seed(0)
    layers = [FeedbackDense(6, "relu", rule=rule) for rule in names]
    end = FeedbackDense(CLASSES, rule="fa")
    model = keras.Sequential([keras.Input((5,)), *layers, end])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer or keras.optimizers.SGD(RATE, MOMENTUM),
        loss,
        jit_compile=False,
        **arguments,
    )
    x = np.random.default_rng(0).normal(size=(2 * EXAMPLES, 5))
    return model, x, np.arange(2 * EXAMPLES) % CLASSES


def by_batches(model, x, y, step):
    for _ in range(3):
        for start in range(0, len(x), EXAMPLES):
            step(x[start : start + EXAMPLES], y[start : start + EXAMPLES])


def by_fit(model, x, y):
    model.fit(x, y, batch_size=EXAMPLES, epochs=3, shuffle=False, verbose=0)


def by_a_loop(model, x, y):
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        variables = model.trainable_variables
        values = [v.value for v in variables]
        model.optimizer.apply(tape.gradient(loss, values), variables)

    model.optimizer.build(model.trainable_variables)
    by_batches(model, x, y, lambda x, y: step(tf.constant(x), tf.constant(y)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "arguments"),
    [
        (by_fit, {"steps_per_execution": 2}),
        standing(
            lambda model, x, y: by_batches(model, x, y, model.train_on_batch),
            {},
            stands=False,
        ),
        standing(by_a_loop, {}, stands=False),
    ],
    ids=["steps_per_execution", "train_on_batch", "own loop"],
)
def test_every_way_of_training_is_one(double, train, arguments):
    model, x, y = compiled()
    by_fit(model, x, y)
    other, _, _ = compiled(**arguments)
    train(other, x, y)
    for one, another in zip(model.variables, other.variables, strict=True):
        # Measured: the same to the bit.
        assert_close(another, one, 1e-13)


# --- Kolen-Pollack: the difference of W and B ---

# Their step depends on the values too, not on the gradients alone.
_DEPENDENT = {"Adafactor", "Ftrl", "Lamb"}
_OPTIMIZERS = {
    name: optimizer
    for name, optimizer in vars(keras.optimizers).items()
    if isinstance(optimizer, type)
    and issubclass(optimizer, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
}


def difference(optimizer, steps=12, dtype="float64", penalty=None):
    """|W - B| before each step of training and after the last, and how far W went."""
    keras.utils.set_random_seed(0)
    layers = [FeedbackDense(6, "tanh", dtype=dtype) for _ in range(2)]
    end = FeedbackDense(
        CLASSES, rule="kolen_pollack", dtype=dtype, kernel_regularizer=penalty
    )
    model = keras.Sequential([keras.Input((5,), dtype=dtype), *layers, end])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
    model.compile(optimizer, loss, run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 5))
    start, found = end.kernel.numpy(), []
    for _ in range(steps):
        found.append(np.linalg.norm(end.kernel.numpy() - end.feedback.numpy()))
        model.train_on_batch(x, np.arange(EXAMPLES) % CLASSES)
    found.append(np.linalg.norm(end.kernel.numpy() - end.feedback.numpy()))
    return np.array(found), np.linalg.norm(end.kernel.numpy() - start)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        helpers.standing(name, stands=name in ("Adam", "Muon", "RMSprop"))
        for name in _OPTIMIZERS
        if name not in _DEPENDENT
    ],
)
def test_kolen_pollacks_difference_is_constant_without_decay(name):
    arguments = {"weight_decay": 0.0} if name in ("AdamW", "Muon") else {}
    # Keras 3.15's Muon does not compute in float64.
    dtype, rounding = ("float32", 1e-6) if name == "Muon" else ("float64", 1e-13)
    found, moved = difference(_OPTIMIZERS[name](RATE, **arguments), dtype=dtype)
    # Measured: 2e-16; Muon 0.
    np.testing.assert_allclose(found, found[0], rtol=rounding)
    assert moved > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("make", [keras.optimizers.SGD, keras.optimizers.AdamW])
def test_kolen_pollacks_difference_shrinks_with_decoupled_decay(make):
    found, _ = difference(make(RATE, weight_decay=DECAY))
    # Measured: 2e-16.
    expected = found[0] * (1 - RATE * DECAY) ** np.arange(len(found))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("how", ["optimizer", "penalty"])
def test_kolen_pollacks_difference_shrinks_with_coupled_decay(double, how):
    """Torch's decay, and an L2 penalty: either acts on B as on W."""
    penalty, optimizer = None, keras.optimizers.SGD(RATE)
    if how == "penalty":
        penalty = keras.regularizers.L2(DECAY / 2)
    else:
        optimizer = keras_fa.optimizers.TorchSGD(RATE, weight_decay=DECAY)
    found, _ = difference(optimizer, penalty=penalty)
    expected = found[0] * (1 - RATE * DECAY) ** np.arange(len(found))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_kolen_pollacks_difference_is_constant_where_gradients_are_clipped(clip):
    found, _ = difference(keras.optimizers.SGD(RATE, **{clip: 1e-2}))
    np.testing.assert_allclose(found, found[0], rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(_DEPENDENT))
def test_what_an_optimizer_makes_of_the_whole_kernel_moves_the_difference(name):
    found, _ = difference(_OPTIMIZERS[name](RATE))
    assert np.abs(found / found[0] - 1).max() > 1e-6


# --- Direct feedback ---

DIRECT = {
    "full": {},
    "shared": {"kind": "shared"},
    "low_rank": {"kind": "low_rank", "rank": 2},
    "sparse": {"kind": "sparse", "nonzeros": 1},
    "sign": {"signal": "sign"},
    "target": {"signal": "target"},
    "learned": {"learned": True},
}
SIGNALS = {
    "error": lambda e: e,
    "sign": lambda e: np.sign(e) / len(e),
    "target": lambda e: (e < 0) / len(e),
}
# Whatever B is made of and what goes through it, in either network; one that learns
# its B with decay too.
DIRECT_CELLS = [
    helpers.standing(
        *(network, name, update),
        stands=(network, name)
        in [(dense_network, "low_rank"), (convolutional_network, "learned")],
    )
    for network in (dense_network, convolutional_network)
    for name in DIRECT
    for update in (Momentum, DecoupledDecay)
    if update is Momentum or name == "learned"
]


def direct_step_by_hand(twins, readouts, arguments, update, x, labels):
    """A step in which each layer's error comes from the output's."""
    inputs, h = [], x
    for twin in twins:
        if twin is twins[-1]:
            h = h.reshape(len(h), -1)
        inputs.append(h)
        h = twin.forward(h, twin.kernel, twin.bias)
        if twin is not twins[-1]:
            h = np.maximum(h, 0)
    output_error = helpers.softmax_error(h, labels)
    signal = SIGNALS[arguments.get("signal", "error")](output_error)
    for number, twin in enumerate(twins):
        error = output_error
        if twin is not twins[-1]:
            error = (signal @ readouts[number].T).reshape(inputs[number + 1].shape)
            if twin is twins[-2]:
                shape = (len(x), *twin.layer.output.shape[1:])
                error = error.reshape(shape)
            error = error * (inputs[number + 1].reshape(error.shape) > 0)
        _, kernel, bias = twin.gradients(error, inputs[number], twin.kernel)
        twin.kernel = update((number, "kernel"), twin.kernel, kernel)
        twin.bias = update((number, "bias"), twin.bias, bias)
    if arguments.get("learned"):
        for number, readout in enumerate(readouts):
            gradient = inputs[number + 1].reshape(len(x), -1).T @ signal
            readouts[number] = update((number, "B"), readout, gradient)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "name", "update"), DIRECT_CELLS)
def test_thirty_steps_of_direct_feedback_equal_numpys(double, network, name, update):
    model = keras_fa.direct(network(3 * ["fa"]), seed=5, **DIRECT[name])
    model.compile(
        update.made.from_config(update.made.get_config()),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    twins = [Twin(layer) for layer in keras_fa.layers.feedback_layers(model)]
    end = model.layers[-1]
    readouts = [np.array(end.feedback(number)) for number in range(len(twins) - 1)]
    random = np.random.default_rng(0)
    x = random.normal(size=(EXAMPLES, *model.input_shape[1:]))
    labels = random.integers(0, CLASSES, EXAMPLES)
    by_hand = update()
    # Of errors that have vanished rounding would make the signs.
    by_hand.rate = RATE / 8
    model.optimizer.learning_rate = by_hand.rate
    for _ in range(STEPS):
        model.train_on_batch(x, labels)
        direct_step_by_hand(twins, readouts, DIRECT[name], by_hand, x, labels)
    for twin in twins:
        assert helpers.relative_error(twin.kernel, twin.start) > 1e-3
        # Measured: 5e-16.
        assert_close(twin.layer.kernel, twin.kernel, 1e-12)
        assert_close(twin.layer.bias, twin.bias, 1e-12)
    for number, readout in enumerate(readouts):
        assert_close(end.feedback(number), readout, 1e-12)
