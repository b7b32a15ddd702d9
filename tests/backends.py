"""What the tests need to run on each backend of Keras, and which of them do."""

import keras
import numpy as np
from keras import ops

from keras_fa import autodiff

BACKEND = keras.backend.backend()

FILES = (
    "test_autodiff.py",
    "test_backends.py",
    "test_callbacks.py",
    "test_dominance.py",
    "test_registry.py",
)
"""The files of tests that run on JAX and PyTorch, where TensorFlow is not there."""

_TENSORBOARD = {
    "TensorBoard's callback asks for TensorFlow": {
        "test_callbacks.py::test_csv_logger_early_stopping_and_tensorboard_see_the_keys"
    }
}
RUNS = ("test_runs_on_jax.py",)
"""Those that run on JAX beside TensorFlow, which prepares the data of runs there."""

NOT_ELSEWHERE = {
    "jax": _TENSORBOARD,
    "torch": {
        **_TENSORBOARD,
        "Keras refuses steps_per_execution > 1 on PyTorch": {
            "test_callbacks.py::test_every_so_many_steps"
        },
    },
}
"""`{backend: {reason: {"file::test"}}}` of what they leave out of these files."""


def differentiated(function, x, variables, error):
    """An output and its gradients, on any backend.

    Args:
        function: Function of a tensor.
        x: Array, its argument.
        variables: List of Keras variables that it reads.
        error: Function of a shape that returns the output's error, an array.

    Returns:
        (y, gradients): arrays; the gradients of <y, error> with respect to x and the
        variables, None where there is none.
    """
    drawn = []

    def objective(values, watch):
        first, *others = values
        with keras.StatelessScope(list(zip(variables, others, strict=True))):
            y = function(first)
        if not drawn:
            drawn.append(error(tuple(y.shape)))
        return ops.sum(y * ops.convert_to_tensor(drawn[0], y.dtype)), [], y

    values = [ops.convert_to_tensor(x), *autodiff.readings(variables)]
    _, y, gradients, _ = autodiff.value_and_gradients(objective, values)
    return array(y), [None if g is None else array(g) for g in gradients]


def array(tensor):
    """A tensor or variable as a NumPy array."""
    return np.array(ops.convert_to_numpy(tensor))
