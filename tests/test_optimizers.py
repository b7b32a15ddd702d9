"""TorchSGD against the update that torch documents, written out in NumPy."""

import keras
import numpy as np
import pytest

from keras_fa import optimizers
from keras_fa.optimizers import TorchSGD


def _torch(w, gradients, rates, momentum, decays):
    velocity = np.zeros_like(w)
    for gradient, rate, decay in zip(gradients, rates, decays, strict=True):
        velocity = momentum * velocity + gradient + decay * w
        w = w - rate * velocity
    return w


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_update_is_torchs_when_the_rate_changes(momentum, weight_decay):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=5), random.normal(size=(6, 5))
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.05])
    variable = keras.Variable(start, dtype="float64")
    optimizer = TorchSGD(schedule, momentum, weight_decay)
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    rates = [0.5] * 3 + [0.05] * 3
    expected = _torch(start, gradients, rates, momentum, [weight_decay] * 6)
    # The rate is a float32: 0.05 is off by 1.5e-8 of itself.
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-7)


def test_keras_sgd_differs_when_the_rate_changes():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.05])
    values = []
    for optimizer in (TorchSGD(schedule, 0.9), keras.optimizers.SGD(schedule, 0.9)):
        variable = keras.Variable(np.ones(1), dtype="float64")
        for _ in range(2):
            optimizer.apply([keras.ops.ones(1, "float64")], [variable])
        values.append(float(variable.numpy()[0]))
    np.testing.assert_allclose(values, [0.405, 0.0], atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("limit", "done"), [(0, 0), (4, 0), (4, 3), (4, 5)])
def test_weight_decay_ends_after_so_many_steps_counted_from_the_first(
    momentum, limit, done
):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=5), random.normal(size=(7, 5))
    variable = keras.Variable(start, dtype="float64")
    optimizer = TorchSGD(0.5, momentum, weight_decay=0.1, weight_decay_steps=limit)
    optimizer.build([variable])
    # What a checkpoint restores.
    optimizer.iterations.assign(done)
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    decays = [0.1 if step < limit else 0.0 for step in range(done, done + 7)]
    expected = _torch(start, gradients, [0.5] * 7, momentum, decays)
    # Measured: 7e-16; the rate 0.5 is exact in float32 too.
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("limit", [None, 3])
def test_excluded_variables_do_not_decay(limit):
    random = np.random.default_rng(0)
    starts, gradients = random.normal(size=(3, 5)), random.normal(size=(6, 5))
    variables = [keras.Variable(start, dtype="float64") for start in starts]
    optimizer = TorchSGD(0.5, 0.9, weight_decay=0.1, weight_decay_steps=limit)
    optimizer.exclude_from_weight_decay([variables[0], variables[2]])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)] * 3, variables)
    steps = 6 if limit is None else limit
    for index, (variable, start) in enumerate(zip(variables, starts, strict=True)):
        decays = [0.1 if index == 1 and step < steps else 0.0 for step in range(6)]
        expected = _torch(start, gradients, [0.5] * 6, 0.9, decays)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-13)


def test_config_round_trip():
    optimizer = TorchSGD(0.1, momentum=0.9, weight_decay=1e-4, weight_decay_steps=7)
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert isinstance(again, TorchSGD)
    assert again.get_config() == optimizer.get_config()
    assert (again.momentum, again.coupled_weight_decay) == (0.9, 1e-4)
    assert again.weight_decay_steps == 7
    plain = keras.optimizers.serialize(TorchSGD())
    assert keras.optimizers.deserialize(plain).weight_decay_steps is None


def test_velocity_only_with_momentum():
    variable = keras.Variable(np.ones(3))
    plain, heavy = TorchSGD(0.1), TorchSGD(0.1, momentum=0.5)
    plain.build([variable])
    heavy.build([variable])
    assert len(heavy.variables) - len(plain.variables) == 1


@pytest.mark.parametrize("bad", [{"momentum": 1.0}, {"weight_decay": -1e-4}])
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TorchSGD(0.1, **bad)


def test_arguments_are_those_that_are_passed_on_as_well():
    class Own(optimizers.TorchSGD):
        def __init__(self, share=1.0, **kwargs):
            super().__init__(**kwargs)

    names = optimizers.arguments(Own)
    assert names[0] == "share" and {"learning_rate", "momentum", "clipnorm"} <= {*names}
    assert "kwargs" not in names
    assert "momentum" not in optimizers.arguments(keras.optimizers.Adam)
