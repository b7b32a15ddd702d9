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


def reading_in_graph(kernel):
    """A tensor of a variable's value, which gradients pass, read here and not later.

    In a graph of TensorFlow the reading alone holds updates back until it is done.
    JAX's values never change, and PyTorch's gradients see themselves to it that what
    they need was not written to: a copy would cost them its time for nothing.
    """
    return _reading_in_graph(kernel)


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


def goes_back(inputs):
    """Whether an error may be asked for at a tensor, as far as it is known yet."""
    return _goes_back(inputs)


def swapped(op, inputs, kernel, backward_kernel):
    """`op(inputs, kernel)`, its input gradient taken with another kernel, at one price.

    PyTorch alone pays for a product of which only the gradient is used. There the
    kernel that the product saved for its backward pass is exchanged, if it is known
    that nothing but the input gradient will see it: the product saved a view of the
    kernel once, and besides only what was made of the inputs.

    Args:
        op: Function of (inputs, kernel), linear in each of them.
        inputs: Tensor.
        kernel: Tensor or variable.
        backward_kernel: Of the kernel's shape and dtype.

    Returns:
        The result, or None where it must be had by another way.
    """
    return _swapped(op, inputs, kernel, backward_kernel)


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

    # `convert_to_tensor` would not read.
    _reading_in_graph = keras.ops.copy

    _array = np.asarray

    _undrawn = _in_float64 = contextlib.nullcontext

    def _goes_back(inputs):
        return True

    def _swapped(op, inputs, kernel, backward_kernel):
        return None

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

    _reading_in_graph = keras.ops.convert_to_tensor

    _array = np.asarray

    _undrawn = contextlib.nullcontext

    def _in_float64():
        return jax.enable_x64(True)

    def _goes_back(inputs):
        return True

    def _swapped(op, inputs, kernel, backward_kernel):
        return None

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

    _reading_in_graph = keras.ops.convert_to_tensor

    def _array(value):
        value = value.value if isinstance(value, keras.Variable) else value
        return np.asarray(value.detach().cpu() if torch.is_tensor(value) else value)

    _undrawn, _in_float64 = torch.random.fork_rng, contextlib.nullcontext

    # The products, by code and shapes, that saved something else: not tried again.
    _unfit = set()

    def _goes_back(inputs):
        return not torch.is_tensor(inputs) or (
            torch.is_grad_enabled() and inputs.requires_grad
        )

    def _swapped(op, inputs, kernel, backward_kernel):
        if not torch.is_tensor(inputs) or torch.compiler.is_compiling():
            return None
        weights = keras.ops.convert_to_tensor(kernel)
        if not _goes_back(inputs):
            return op(inputs, weights)
        function = getattr(op, "__func__", op)
        code = getattr(function, "__code__", function)
        product = code, inputs.shape[1:], weights.shape, inputs.device.type
        if not weights.requires_grad or product in _unfit:
            return None
        feedback = keras.ops.convert_to_tensor(backward_kernel).detach()
        if weights.ndim > 2:
            # Keras's convolutions would copy any other layout.
            weights, feedback = map(_output_first, (weights, feedback))
        if _form(weights) != _form(feedback):
            return None
        exchange = _Exchange(inputs, weights, feedback)
        try:
            with torch.autograd.graph.saved_tensors_hooks(exchange.pack, _unpacked):
                output = op(inputs, weights)
        except RuntimeError:
            # PyTorch's function transforms take no hooks; and what fails without them
            # too fails by the other way.
            return None
        if exchange.is_right():
            return output
        _unfit.add(product)
        return None

    def _output_first(kernel):
        return kernel.movedim(-1, 0).contiguous().movedim(0, -1)

    def _form(tensor):
        return tensor.shape, tensor.stride(), tensor.dtype, tensor.device

    class _Exchange:
        """Puts B in place of W among the tensors that a product saves, and counts."""

        def __init__(self, inputs, kernel, feedback):
            self._inputs, self._kernel, self._feedback = inputs, kernel, feedback
            self._count, self._others = 0, []

        def pack(self, tensor):
            if not _share_memory(tensor, self._kernel):
                self._others.append(tensor)
                return tensor, None, None
            self._count += 1
            offset = tensor.storage_offset() - self._kernel.storage_offset()
            view = self._feedback.as_strided(
                tensor.size(), tensor.stride(), offset + self._feedback.storage_offset()
            )
            return view, self._feedback, self._feedback._version

        def is_right(self):
            return self._count == 1 and all(map(self._is_of_inputs, self._others))

        def _is_of_inputs(self, tensor):
            """Whether a tensor was made of the inputs, and of nothing else."""
            if _share_memory(tensor, self._inputs):
                return True
            if tensor.grad_fn is None:
                return False
            end = torch.autograd.graph.get_gradient_edge(self._inputs).node
            nodes = [tensor.grad_fn]
            for node in nodes:
                if node is end:
                    continue
                before = [n for n, _ in node.next_functions if n is not None]
                # More than what reshapes or pads the inputs is not looked into.
                if not before or len(nodes) > 20:
                    return False
                nodes += before
            return True

    def _share_memory(one, other):
        places = [tensor.untyped_storage().data_ptr() for tensor in (one, other)]
        return places[0] == places[1] != 0

    def _unpacked(saved):
        tensor, feedback, version = saved
        if feedback is not None and feedback._version != version:
            raise RuntimeError(
                "The feedback kernel was changed in place between the forward pass and "
                "the backward pass, which needs it as it was."
            )
        return tensor

else:
    raise ImportError(
        "keras_fa runs on the Keras backends tensorflow, jax and torch. Received: "
        f"KERAS_BACKEND={BACKEND}."
    )
