"""TorchSGD against the update that torch documents, written out in NumPy."""

import keras
import numpy as np
import pytest

from keras_fa.optimizers import TorchSGD


def _torch(w, gradients, rates, momentum, weight_decay):
    velocity = np.zeros_like(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = momentum * velocity + gradient + weight_decay * w
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
    expected = _torch(start, gradients, [0.5] * 3 + [0.05] * 3, momentum, weight_decay)
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


def test_config_round_trip():
    optimizer = TorchSGD(0.1, momentum=0.9, weight_decay=1e-4)
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert isinstance(again, TorchSGD)
    assert again.get_config() == optimizer.get_config()
    assert (again.momentum, again.coupled_weight_decay) == (0.9, 1e-4)


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
