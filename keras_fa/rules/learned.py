"""Rules that learn their feedback, beside the weights or from noise."""

import math
import numbers

import keras
from keras import ops

from keras_fa import _keras
from keras_fa.registry import register
from keras_fa.rules.base import PACKAGE, DrawnRule, Slot


@register("rule", "kolen_pollack")
@keras.saving.register_keras_serializable(PACKAGE)
class KolenPollack(DrawnRule):
    """Kolen-Pollack feedback: B is trained on the gradient of W, `dB = dW`.

    B gets the same gradient, optimizer, schedule, decay, penalty and constraint as W,
    so their difference only shrinks: as `prod(1 - lr * weight_decay)` under decoupled
    decay (Keras's SGD, AdamW), and without decay stays what it was under every
    optimizer whose step depends on gradients alone, clipped or not. It moves under
    Adafactor, Ftrl and Lamb, whose step depends on the values. With `global_clipnorm`
    the gradient of B counts in the norm as that of W does. Source: Akrout et al.
    (2019), after Kolen and Pollack (1994). A consumer conserves `1/2 |B[j]|^2`.
    Arguments and errors are those of `DrawnRule`.
    """

    label, color = "KP", "#e69f00"

    def slots(self, kernel_shape):
        return {"feedback": Slot(tuple(kernel_shape), self._draw, learned=True)}

    def backward_kernel(self, kernel, feedback):
        return feedback

    def potential(self, kernel, feedback):
        return feedback, None


@register("rule", "pfa")
@keras.saving.register_keras_serializable(PACKAGE)
class ProductFeedback(DrawnRule):
    """Product feedback (PFA): `B = R P` with R learned on `dR = dW P^T` and P fixed.

    R goes from the inputs to an expansion `expansion` times as wide as the outputs, P
    from there to the outputs, so no pathway back holds the weights themselves. For a
    convolution, inputs are the kernel's area times its input channels; whatever a
    kernel's axes, it is the matrix from all inputs to all outputs that counts. As the
    expansion grows `P^T P` tends to a multiple of the identity, and the rule to
    Kolen-Pollack's. Source: Li et al. (2024), arXiv 2405.20594, with the gain of the
    authors' code. A consumer conserves `1/2 |R[j]|^2`.

    Args:
        expansion: k, how many times wider than the outputs; an integer of at least 1.
        initializer: What draws R and P, which authors draw as Glorot did.
        seed: As in `DrawnRule`.

    Raises:
        ValueError: If the expansion is no positive integer, and as in `DrawnRule`.
    """

    label, color = "PFA", "#8c564b"

    def __init__(self, expansion=10, initializer="glorot_uniform", seed=None):
        super().__init__(initializer, seed)
        if isinstance(expansion, bool) or not (
            isinstance(expansion, numbers.Integral) and expansion >= 1
        ):
            raise ValueError(
                "The expansion of ProductFeedback must be an integer of at least 1. "
                f"Received: expansion={expansion!r}."
            )
        self.expansion = int(expansion)

    def _start(self, kernel_shape):
        """Shape of the inputs, number of outputs, and what draws R and P."""
        geometry = self._geometry_of(kernel_shape)
        inputs = tuple(kernel_shape[axis] for axis in geometry.inputs)
        if geometry.told:
            # Of further axes Glorot's formula would make a convolution's area.
            inputs = (math.prod(inputs),)
        outputs = math.prod(kernel_shape[axis] for axis in geometry.outputs)
        middle = self.expansion * outputs
        gain = math.sqrt((1 + 1 / self.expansion) / 2)

        def draw_r(kernel, kernel_initializer):
            return self._draw(kernel, kernel_initializer, (*inputs, middle))

        def draw_p(kernel, kernel_initializer):
            shape = (middle, outputs)
            return gain * self._draw(kernel, kernel_initializer, shape, stream=1)

        return inputs, outputs, draw_r, draw_p

    def slots(self, kernel_shape):
        inputs, outputs, draw_r, draw_p = self._start(kernel_shape)
        middle = self.expansion * outputs
        return {
            "R": Slot((*inputs, middle), draw_r, learned=True),
            "P": Slot((middle, outputs), draw_p),
        }

    def backward_kernel(self, kernel, **stored):
        product = ops.matmul(stored["R"], stored["P"])
        return self._geometry_of(kernel.shape).kernel(product, tuple(kernel.shape))

    def potential(self, kernel, **stored):
        return stored["R"], None

    def get_config(self):
        return {"expansion": self.expansion, **super().get_config()}


@register("rule", "pfa_short")
@keras.saving.register_keras_serializable(PACKAGE)
class ShortProductFeedback(ProductFeedback):
    """Product feedback without its expansion, for optimizers linear in the gradient.

    It has no R. An optimizer that is linear in the gradient keeps
    `Z = R - W P^T` but for its decay, which a scalar a, trained on a gradient of zero,
    goes through beside it. So with `G = P^T P` and D the part of Z that P sees,
    `D G = Z P` at the start,

        B = (a D + W) G,    |R[j]|^2 = (a D + W)[j] G (a D + W)[j]^T + a^2 q[j]^2

    with q[j] the norm of the rest of Z[j]: two products of the layer's own size in
    place of two of k times that. It is that of the long form to rounding.

    Args:
        expansion: As in `ProductFeedback`.
        initializer: The same.
        seed: The same.

    Raises:
        ValueError: As in `ProductFeedback`; and in a training pass of a model whose
            optimizer is neither `TorchSGD` nor Keras's SGD (momentum and decay as they
            like, no clipping), or whose kernel has a constraint or a penalty that is
            not L2. A training loop of one's own has to know.
    """

    label, color = "PFA, short", "#c49c94"

    def slots(self, kernel_shape):
        inputs, outputs, draw_r, draw_p = self._start(kernel_shape)
        geometry = self._geometry_of(kernel_shape)
        found = {}

        def part(name):
            def initial(kernel, kernel_initializer):
                # All of them are of one draw of R and P.
                if not found:
                    dtype = keras.backend.standardize_dtype(kernel.dtype)
                    # TensorFlow solves nothing in half precision.
                    wide = keras.backend.result_type(dtype, "float32")
                    r = ops.cast(draw_r(kernel, kernel_initializer), wide)
                    p = ops.cast(draw_p(kernel, kernel_initializer), wide)
                    kernel = ops.cast(kernel, wide)
                    rest = ops.reshape(r, (-1, p.shape[0]))
                    rest = rest - ops.matmul(geometry.matrix(kernel), ops.transpose(p))
                    gram = ops.matmul(ops.transpose(p), p)
                    seen = ops.matmul(rest, p)
                    offset = ops.transpose(ops.solve(gram, ops.transpose(seen)))
                    outside = rest - ops.matmul(offset, ops.transpose(p))
                    norm = ops.norm(outside, axis=-1)
                    found["gram"] = ops.cast(gram, dtype)
                    offset = ops.reshape(offset, (*inputs, outputs))
                    found["offset"] = ops.cast(offset, dtype)
                    found["rest"] = ops.cast(ops.reshape(norm, (*inputs, 1)), dtype)
                return found.pop(name)

            return initial

        return {
            "offset": Slot((*inputs, outputs), part("offset")),
            "gram": Slot((outputs, outputs), part("gram")),
            "rest": Slot((*inputs, 1), part("rest")),
            "share": Slot(
                (), lambda kernel, _: ops.ones((), kernel.dtype), learned=True
            ),
        }

    def _inner(self, kernel, offset, share):
        """`a D + W`, a matrix."""
        matrix = self._geometry_of(kernel.shape).matrix(kernel)
        offset = ops.reshape(offset, (-1, matrix.shape[-1]))
        share, offset = (ops.cast(x, matrix.dtype) for x in (share, offset))
        return share * offset + matrix

    def backward_kernel(self, kernel, **stored):
        inner = self._inner(kernel, stored["offset"], stored["share"])
        product = ops.matmul(inner, ops.cast(stored["gram"], inner.dtype))
        return self._geometry_of(kernel.shape).kernel(product, tuple(kernel.shape))

    def factors(self, kernel, **stored):
        inner = self._inner(kernel, stored["offset"], stored["share"])
        inner = self._geometry_of(kernel.shape).kernel(inner, tuple(kernel.shape))
        return inner, ops.cast(stored["gram"], inner.dtype)

    def learned(self, kernel, **stored):
        # The share gets a gradient of zero: its decay is what it is trained for.
        return ops.broadcast_to(0 * stored["share"], kernel.shape)

    def check_training(self, optimizer, kernel):
        penalty = kernel.regularizer
        if kernel.constraint is not None or (
            penalty is not None and type(penalty) is not keras.regularizers.L2
        ):
            raise ValueError(
                "The short form of product feedback holds for a kernel without a "
                "constraint and with no penalty but keras.regularizers.L2. Received: "
                f"constraint={kernel.constraint!r}, regularizer={penalty!r}. Use "
                'the long one, rule="pfa".'
            )
        while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        if optimizer is not None and not _is_linear(optimizer):
            raise ValueError(
                "The short form of product feedback holds for optimizers whose step is "
                "linear in the gradient: keras_fa.optimizers.TorchSGD and "
                "keras.optimizers.SGD, without clipping, and those with a true "
                "linear_in_gradient. Received: "
                f'{optimizer.name}. Use the long form, rule="pfa".'
            )

    def potential(self, kernel, **stored):
        inner = self._inner(kernel, stored["offset"], stored["share"])
        root = ops.cholesky(ops.cast(stored["gram"], inner.dtype))
        rest = ops.convert_to_tensor(stored["share"]) * stored["rest"]
        seen = ops.reshape(ops.matmul(inner, root), (*rest.shape[:-1], root.shape[0]))
        return ops.concatenate([seen, ops.cast(rest, seen.dtype)], axis=-1), None


def _is_linear(optimizer):
    return (
        _keras.is_stock(optimizer, keras.optimizers.SGD)
        or getattr(optimizer, "linear_in_gradient", False)
    ) and not any(
        getattr(optimizer, clip, None) is not None
        for clip in ("clipnorm", "clipvalue", "global_clipnorm")
    )


@register("rule", "weight_mirror")
@keras.saving.register_keras_serializable(PACKAGE)
class WeightMirror(DrawnRule):
    """Weight mirror: B learns W from what noise makes of the layer's outputs.

    In each training pass a batch of noise xi goes through the layer, and

        B <- (1 - decay) B + rate xi^T phi(xi W + b)

    To first order in the noise the mean of `xi^T phi` is `batch * noise^2 / 3` times W,
    column j times phi'(b_j), as the entries of xi are independent with mean 0. For a
    convolution xi is a patch of the kernel's size. Source: Akrout et al. (2019),
    section 3, with the numbers of the authors' code; without a decay B adds all of this
    up and outgrows W. No quantity is known that the rule conserves.

    Args:
        rate: Learning rate of the mirror, positive.
        noise: Half width of the uniform noise, positive.
        batch: How many rows of noise a pass has.
        decay: Share of B that each pass takes away, in [0, 1).
        warmup: Passes that are made when the layer is built, without its bias.
        activation: phi, a Keras activation by name; "linear" for none.
        initializer: As in `DrawnRule`.
        seed: As in `DrawnRule`; of the noise as well.

    Raises:
        ValueError: If a number is out of its range, and as in `DrawnRule`.
    """

    label, color = "WM", "#6a3d9a"

    def __init__(
        self,
        rate=0.01,
        noise=0.05,
        batch=128,
        decay=0.0,
        warmup=0,
        activation="sigmoid",
        initializer=None,
        seed=None,
    ):
        super().__init__(initializer, seed)
        for name, value, fits in (
            ("rate", rate, 0 < rate < math.inf),
            ("noise", noise, 0 < noise < math.inf),
            ("batch", batch, isinstance(batch, int) and batch >= 1),
            ("decay", decay, 0 <= decay < 1),
            ("warmup", warmup, isinstance(warmup, int) and warmup >= 0),
        ):
            if not fits:
                raise ValueError(
                    f"The {name} of WeightMirror is out of its range: see its "
                    f"documentation. Received: {name}={value!r}."
                )
        self.rate, self.noise, self.batch = rate, noise, batch
        self.decay, self.warmup = decay, warmup
        self.activation = keras.activations.get(activation)

    def slots(self, kernel_shape):
        return {
            "feedback": Slot(tuple(kernel_shape), self._warm),
            "noise": self._noise(),
        }

    def _warm(self, kernel, kernel_initializer):
        feedback = self._draw(kernel, kernel_initializer)
        seed = self._seed(kernel_initializer, stream=2) or 0
        kernel = ops.convert_to_tensor(kernel)
        for count in range(self.warmup):
            noise = ops.array([seed, count], "int32")
            feedback = self._mirror(kernel, None, feedback, noise)
        return feedback

    def advance(self, kernel, bias, initializer, feedback, noise):
        return {
            "feedback": self._mirror(kernel, bias, feedback, noise),
            "noise": noise + ops.array([0, 1], "int32"),
        }

    def _mirror(self, kernel, bias, feedback, noise):
        geometry = self._geometry_of(kernel.shape)
        flat = geometry.matrix(kernel)
        dtype = keras.backend.standardize_dtype(kernel.dtype)
        xi = _keras.drawn(
            keras.initializers.RandomUniform(-self.noise, self.noise, seed=0),
            noise,
            (self.batch, flat.shape[0]),
            dtype,
        )
        outputs = ops.matmul(xi, flat)
        if bias is not None:
            shape = [kernel.shape[axis] for axis in geometry.outputs]
            bias = ops.broadcast_to(ops.cast(bias, dtype), shape)
            outputs = outputs + ops.reshape(bias, (-1,))
        seen = ops.matmul(ops.transpose(xi), self.activation(outputs))
        seen = geometry.kernel(seen, tuple(kernel.shape))
        seen = ops.cast(seen, feedback.dtype)
        return (1 - self.decay) * feedback + self.rate * seen

    def backward_kernel(self, kernel, feedback, noise):
        return feedback

    def get_config(self):
        return {
            "rate": self.rate,
            "noise": self.noise,
            "batch": self.batch,
            "decay": self.decay,
            "warmup": self.warmup,
            "activation": keras.activations.serialize(self.activation),
            **super().get_config(),
        }
