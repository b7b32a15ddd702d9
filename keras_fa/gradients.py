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
product has no consumer: compiled graphs drop it, only eager mode pays for it.
"""

from keras import ops


# On the TensorFlow backend keras.ops.custom_gradient is tf.custom_gradient.
@ops.custom_gradient
def _fan_out(output, feedback_output):
    """Returns `output`; backward, gives both arguments the incoming error."""

    def backward(*args, upstream=None):
        error = args[0] if upstream is None else upstream
        return error, error

    return output, backward


def linear(op, inputs, kernel, backward_kernel):
    """Applies `op(inputs, kernel)`, its input gradient taken through another kernel.

    For incoming error ``delta = dL/dy`` the gradients are those of Lillicrap et al.
    (2016): ``dL/dx`` as if the kernel were ``backward_kernel``, ``dL/dkernel`` the
    ordinary one, nothing to ``backward_kernel``.

    Args:
        op: Function of (inputs, kernel), linear in each of them.
        inputs: Tensor of any shape that `op` takes.
        kernel: Forward kernel W, a tensor or variable.
        backward_kernel: B, of the shape and dtype of `kernel`. Passing `kernel` itself
            gives `op` untouched, bit for bit ordinary backpropagation.

    Returns:
        `op(inputs, kernel)`.
    """
    if backward_kernel is kernel:
        return op(inputs, kernel)
    # Only results of operations reach the custom gradient, never a variable, for which
    # TensorFlow would ask through a `variables` argument.
    return _fan_out(
        op(ops.stop_gradient(inputs), kernel),
        op(inputs, ops.stop_gradient(backward_kernel)),
    )
