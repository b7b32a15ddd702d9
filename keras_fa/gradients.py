"""The one custom gradient of the toolkit: a linear operation fed back through B.

Any linear layer computes ``y = op(x, W)``, and its backward pass is two products: the
input gradient, which sees the kernel, and the kernel gradient, which does not. A
feedback rule changes the first and only the first.

The construction is a fan-out rather than a hand-written backward pass. Forward, the
function returns ``op(x, W)``; backward it hands the incoming error to two branches,
``op(stop_gradient(x), W)``, which yields the kernel gradient, and
``op(x, stop_gradient(B))``, which yields the input gradient. Automatic differentiation
does the rest, so the same few lines serve dense layers and convolutions of any rank,
stride, padding, dilation and grouping, on any Keras backend. The second forward
product has no consumer: compiled graphs drop it, eager mode pays for it, and PyTorch is
spared it by `autodiff.swapped`.

The gradients that come out are those of first order, and no more can be had: a second
derivative would have to differentiate the *update*, in which B is a constant, and
automatic differentiation would differentiate the forward pass by the rule once more.
It is refused, and so is forward mode, which is made of two backward passes.
"""

import keras
from keras import ops

from keras_fa import _keras, autodiff


@_keras.custom_gradient
def _first_order(error):
    """Returns its argument, and refuses to be differentiated."""

    def backward(*args, upstream=None):
        raise NotImplementedError(
            "A second derivative, or a forward-mode one, was taken through a layer "
            "under a feedback rule. The backward pass of a rule is no derivative of "
            "anything, so what automatic differentiation would make of it is wrong. If "
            "the update is meant as a constant, put keras.ops.stop_gradient around the "
            'gradients; if a true derivative is wanted, use rule="backprop" '
            '(keras_fa.models.with_rule(model, "backprop")).'
        )

    return error, backward


# On the TensorFlow backend keras.ops.custom_gradient is tf.custom_gradient.
@_keras.custom_gradient
def _once(output):
    """Returns its argument, which can be differentiated once."""

    def backward(*args, upstream=None):
        return _first_order(args[0] if upstream is None else upstream)

    return output, backward


@_keras.custom_gradient
def _fan_out(output, feedback_output):
    """Returns `output`; backward, gives both arguments the incoming error."""

    def backward(*args, upstream=None):
        error = _first_order(args[0] if upstream is None else upstream)
        return error, error

    return output, backward


def learned(kernel, backward_kernel):
    """W, with B getting the gradient of W too, bit for bit.

    It is what Kolen and Pollack's rule trains B on.

    Args:
        kernel: Forward kernel W, a tensor.
        backward_kernel: B, or what it is made of, of the same shape.

    Returns:
        W, for `linear`.
    """
    return _fan_out(kernel, backward_kernel)


def linear(op, inputs, kernel, backward_kernel, mix=None):
    """Applies `op(inputs, kernel)`, its input gradient taken through another kernel.

    For incoming error ``delta = dL/dy`` the gradients are those of Lillicrap et al.
    (2016): ``dL/dx`` as if the kernel were ``backward_kernel``, ``dL/dkernel`` the
    ordinary one, nothing to ``backward_kernel``.

    Args:
        op: Function of (inputs, kernel), linear in each of them.
        inputs: Tensor of any shape that `op` takes.
        kernel: Forward kernel W, a tensor or variable.
        backward_kernel: B, of the shape and dtype of `kernel`. Passing `kernel` itself
            gives `op` untouched, bit for bit ordinary backpropagation. None sends no
            error to the inputs: a direct rule brings it there by another way.
        mix: A square matrix M over the last axis of the output: B is then
            `backward_kernel` times M. The error goes through M first, which for a
            batch smaller than the kernel's inputs is cheaper than to make B.

    Returns:
        `op(inputs, kernel)`.

    Raises:
        NotImplementedError: When a derivative of these gradients is taken, or a
            forward-mode one.
    """
    if backward_kernel is kernel:
        return op(inputs, kernel)
    if backward_kernel is not None and mix is None:
        output = autodiff.swapped(op, inputs, kernel, backward_kernel)
        if output is not None:
            return _once(output)
    # Only results of operations reach the custom gradient, never a variable, for which
    # TensorFlow would ask through a `variables` argument.
    output = op(ops.stop_gradient(inputs), kernel)
    if backward_kernel is None:
        return output
    back = op(inputs, ops.stop_gradient(backward_kernel))
    if mix is not None:
        back = ops.matmul(back, ops.stop_gradient(mix))
    return _fan_out(output, back)


def direct(output, readouts, signal, scale=1.0):
    """Returns an output; backward, hands its error to readouts of hidden layers too.

    Source: Nokland (2016). What a readout `h B` gets becomes the hidden error
    `signal(e) B^T`.

    Args:
        output: Tensor (batch, outputs).
        readouts: List of tensors of the same shape.
        signal: "error", "sign" or "target": see
            `keras_fa.rules.DirectFeedbackAlignment`.
        scale: What the loss is multiplied by, which signals that take no size from the
            error are multiplied by too. A number or scalar tensor.

    Returns:
        `output`.
    """

    @_keras.custom_gradient
    def fan_out(output, *readouts):
        def backward(*args, upstream=None):
            error = _first_order(args[0] if upstream is None else upstream)
            return error, *[_signal(error, signal, scale)] * len(readouts)

        return output, backward

    return fan_out(output, *readouts)


def _signal(error, signal, scale):
    if signal == "error":
        return error
    # The axis of the examples, counted from the end: a vectorised map adds one.
    examples = ops.shape(error)[-2] * _keras.replicas()
    signs = {"sign": ops.sign, "target": lambda e: ops.cast(e < 0, e.dtype)}
    values = signs[signal](error)
    # A loss scale may be too large for half a precision by itself.
    wide = keras.backend.result_type(error.dtype, "float32")
    factor = ops.cast(scale, wide) / ops.cast(examples, wide)
    return values * ops.cast(factor, error.dtype)
