"""Gradients, compilation and random states: what each backend of Keras does its way.

Keras has no public function that differentiates. Here is the little that the
instruments need of it, once for TensorFlow, JAX and PyTorch. All state that a compiled
function reads is an argument of it: JAX would keep what it finds elsewhere as it was
when it compiled.
"""

import contextlib

import keras
import numpy as np

BACKEND = keras.backend.backend()

TRACES = BACKEND == "jax"
"""Whether gradients are those of traced functions, which make no variables."""


def value_and_gradients(function, values):
    """The value of a function and its gradients, at its arguments and on the way.

    Args:
        function: Function of (values, watch) that returns (value, watched, rest): a
            scalar; a list of tensors that `watch` returned; a nest of tensors. What
            `watch(tensor)` returns takes the tensor's place in what follows. The
            function may be called more than once.
        values: List of tensors of floating point.

    Returns:
        (value, rest, gradients, signals): the gradients with respect to the values and
        to the watched tensors, lists. An entry is None where the value does not depend
        on the tensor.
    """
    return _value_and_gradients(function, list(values))


def compiled(function, static=()):
    """A function of nests of tensors, compiled; on PyTorch the function itself.

    Args:
        function: Its results are tensors in nests. Of a dict in them JAX sorts the
            keys, but not those of an `OrderedDict`.
        static: Names of arguments that are no tensors.
    """
    return _compiled(function, static)


def readings(variables):
    """The values that variables have now, a list of tensors."""
    return [_reading(variable) for variable in variables]


def array(value):
    """A tensor or variable as a NumPy array, which may share its memory."""
    return _array(value)


def undrawn():
    """Within, random numbers of the backend's own state are drawn as if for nothing.

    Keras's seeds are variables; PyTorch's dropout without a seed does not ask them.
    """
    return _undrawn()


def in_float64():
    """Within, `keras.ops.cast(tensor, "float64")` is what it says on every backend."""
    return _in_float64()


if BACKEND == "tensorflow":
    import tensorflow as tf

    def _value_and_gradients(function, values):
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watch(tensor):
                tape.watch(tensor)
                return tensor

            tape.watch(values)
            value, watched, rest = function(values, watch)
        gradients, signals = tape.gradient(value, [values, watched])
        # Those of embeddings are slices.
        gradients = [g if g is None else tf.convert_to_tensor(g) for g in gradients]
        return value, rest, gradients, signals

    def _compiled(function, static):
        return tf.function(function, reduce_retracing=True)

    def _reading(variable):
        return tf.convert_to_tensor(variable.value)

    _array = np.asarray

    _undrawn = _in_float64 = contextlib.nullcontext

elif BACKEND == "jax":
    import jax
    import jax.numpy as jnp
    from jax.extend.core import Literal, jaxpr_as_fun

    def _value_and_gradients(function, values):
        """Watched tensors get zeros added, whose gradients are theirs."""
        shapes = []

        def shape_of(tensor):
            shapes.append(jax.ShapeDtypeStruct(tensor.shape, tensor.dtype))
            return tensor + jnp.zeros_like(tensor)

        def forward(values):
            value, _, rest = function(values, shape_of)
            return value, rest

        jax.eval_shape(forward, values)
        zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]

        # Which of the zeros belong to the tensors that were returned.
        places = []

        def shifted(values, zeros):
            own = {}

            def watch(tensor):
                number = len(own)
                tensor = tensor + zeros[number]
                # Kept with its number, or the id could be given to another one.
                own[id(tensor)] = number, tensor
                return tensor

            value, watched, rest = function(values, watch)
            places[:] = [own[id(tensor)][0] for tensor in watched]
            return value, rest

        def both(values, zeros):
            differentiated = jax.value_and_grad(shifted, (0, 1), has_aux=True)
            (value, rest), (gradients, signals) = differentiated(values, zeros)
            return gradients, [signals[place] for place in places], value, rest

        traced, result = jax.make_jaxpr(both, return_shape=True)(values, zeros)
        flat = jaxpr_as_fun(traced)(*values, *zeros)
        gradients, signals, value, rest = jax.tree.unflatten(
            jax.tree.structure(result), flat
        )
        reached = _reached(traced.jaxpr)
        gradients = [
            gradient if there else None
            for gradient, there in zip(gradients, reached, strict=False)
        ]
        signals = [
            signal if there else None
            for signal, there in zip(signals, reached[len(values) :], strict=False)
        ]
        return value, rest, gradients, signals

    def _reached(jaxpr):
        """For each result of a program, whether it is more than zeros made for it.

        JAX gives such zeros where there is no way from the value back to an argument.
        """
        made = {}
        for equation in jaxpr.eqns:
            for result in equation.outvars:
                made[result] = equation

        def is_zero(atom):
            if isinstance(atom, Literal):
                return not np.any(atom.val)
            equation = made.get(atom)
            return (
                equation is not None
                and equation.primitive.name
                in ("broadcast_in_dim", "convert_element_type")
                and is_zero(equation.invars[0])
            )

        return [not is_zero(atom) for atom in jaxpr.outvars]

    def _compiled(function, static):
        return jax.jit(function, static_argnames=static)

    def _reading(variable):
        return variable.value

    _array = np.asarray

    _undrawn = contextlib.nullcontext

    def _in_float64():
        return jax.enable_x64(True)

elif BACKEND == "torch":
    import torch

    def _value_and_gradients(function, values):
        values = [value.detach().requires_grad_() for value in values]

        def watch(tensor):
            return tensor if tensor.requires_grad else tensor.requires_grad_()

        with torch.enable_grad():
            value, watched, rest = function(values, watch)
        gradients = [None] * (len(values) + len(watched))
        if value.requires_grad and gradients:
            gradients = torch.autograd.grad(
                value, [*values, *watched], allow_unused=True
            )
        rest = keras.tree.map_structure(
            lambda leaf: leaf.detach() if torch.is_tensor(leaf) else leaf, rest
        )
        return (
            value.detach(),
            rest,
            list(gradients[: len(values)]),
            list(gradients[len(values) :]),
        )

    def _compiled(function, static):
        return function

    def _reading(variable):
        return variable.value.detach()

    def _array(value):
        value = value.value if isinstance(value, keras.Variable) else value
        return np.asarray(value.detach().cpu() if torch.is_tensor(value) else value)

    _undrawn, _in_float64 = torch.random.fork_rng, contextlib.nullcontext

else:
    raise ImportError(
        "keras_fa runs on the Keras backends tensorflow, jax and torch. Received: "
        f"KERAS_BACKEND={BACKEND}."
    )
