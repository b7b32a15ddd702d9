"""Small networks under feedback alignment in NumPy, for the papers' theorems.

Full-batch gradient steps in float64, as the theorems have them, of networks too wide or
trained too long for the runs of grids. Nothing here is shared with the layers: each is
an oracle of the other.
"""

import math

import numpy as np

from keras_fa import analysis


class TwoLayer:
    """`f(x) = psi(x W) beta / sqrt(p)` on n examples, squared error `1/2 sum e^2`.

    The steps of W lie in the span of the examples, so that its values before the
    activation, shape `(p, n)`, and the inner products of the examples say everything.

    Args:
        x: Inputs, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        kernel: W at the start, shape `(d, p)`.
        beta: Output weights at the start, shape `(p,)`.
        feedback: b, shape `(p,)`.
        activation: psi: "linear", "relu" or "tanh".
    """

    def __init__(self, x, y, kernel, beta, feedback, activation):
        self.gram = x @ x.T
        self.y, self.beta, self.feedback = y, beta, feedback
        self.before = (x @ kernel).T
        self._psi, self._slope = analysis.ACTIVATIONS[activation]
        self._root = np.sqrt(len(beta))
        # W - W(0) = (coefficients x)^T.
        self.coefficients = np.zeros_like(self.before)

    def errors(self):
        """e, shape `(n,)`."""
        return self.beta @ self._psi(self.before) / self._root - self.y

    def inner(self):
        """<gradient, feedback gradient> of beta and W together."""
        errors, slope = self.errors(), self._slope(self.before)
        output = self._psi(self.before) @ errors / self._root
        sent = slope * errors / self._root
        hidden = np.einsum("rn,nm,rm->r", sent, self.gram, sent)
        return float(output @ output + (self.beta * self.feedback) @ hidden)

    def step(self, rate, penalty=0.0):
        """One step of W and beta, which shrinks by `1 - rate * penalty` besides.

        Returns:
            e before the step, shape `(n,)`.
        """
        after = self._psi(self.before)
        errors = self.beta @ after / self._root - self.y
        sent = self._slope(self.before) * (errors * rate / self._root)
        sent *= self.feedback[:, None]
        self.coefficients -= sent
        self.before = self.before - sent @ self.gram
        self.beta = (1 - rate * penalty) * self.beta - rate / self._root * (
            after @ errors
        )
        return errors

    def moved(self):
        """How far each unit's weights are from their start, shape `(p,)`."""
        squares = np.einsum(
            "rn,nm,rm->r", self.coefficients, self.gram, self.coefficients
        )
        return np.sqrt(np.maximum(squares, 0))

    def cosine(self):
        """cos(b, beta)."""
        return _cosine(self.feedback, self.beta)


def _cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def song_network(seed, p, activation, n=30, d=100, isometric=False):
    """Data and a network as Song et al. draw them: W, beta, b standard Gaussian.

    Args:
        seed: Of everything drawn.
        p: Number of hidden units.
        activation: Of `TwoLayer`.
        n: Number of examples.
        d: Number of inputs.
        isometric: Whether all singular values of the inputs are made 1.

    Returns:
        (inputs, shape `(n, d)`; W, shape `(d, p)`; a `TwoLayer`).
    """
    rng = np.random.default_rng([seed, p])
    x = rng.standard_normal((n, d)) * (1 / math.sqrt(d))
    if isometric:
        # All singular values 1: X X^T, or X^T X where n > d, is the identity.
        left, _, right = np.linalg.svd(x, full_matrices=False)
        x = left @ right
    y = rng.standard_normal(n)
    if n > d:
        y = x @ (x.T @ y)  # the part that a linear network can fit
    y *= math.sqrt(n) / np.linalg.norm(y)
    kernel = rng.standard_normal((d, p))
    beta, feedback = rng.standard_normal((2, p))
    return x, kernel, TwoLayer(x, y, kernel, beta, feedback, activation)


class LinearNetwork:
    """A linear network of `TwoLayer`'s form by numbers of size n.

    For ever `Z = Z0 - b u^T / sqrt(p)` and `beta = a beta0 - Z0 v / sqrt(p) + c b`, Z
    the values of the hidden units: u, v of length n, and a, c are all that changes. A
    step costs n^2 for any width p.

    Args:
        network: A linear `TwoLayer` at its start.
    """

    def __init__(self, network):
        before, beta, feedback = network.before, network.beta, network.feedback
        self._width = len(beta)
        root = np.sqrt(self._width)
        self._y, self._gram = network.y, network.gram
        self._q, self._g = beta @ before / root, feedback @ before / root
        self._k = before.T @ before / self._width
        self._s, self._bb = feedback @ beta, feedback @ feedback
        self._b0 = beta @ beta
        self._a, self._c = 1.0, 0.0
        self._u, self._v = np.zeros((2, len(self._y)))

    def _inner(self):
        """<b, beta> and K v."""
        inner = self._a * self._s - self._g @ self._v + self._c * self._bb
        return inner, self._k @ self._v

    def errors(self):
        """e, shape `(n,)`."""
        inner, kv = self._inner()
        outputs = self._a * self._q - kv + self._c * self._g
        return outputs - self._u * (inner / self._width) - self._y

    def step(self, rate, penalty=0.0):
        """One step, as `TwoLayer.step`: e before it, shape `(n,)`."""
        errors = self.errors()
        shrink = 1 - rate * penalty
        along = self._u @ errors / self._width
        self._a = shrink * self._a
        self._v = shrink * self._v + rate * errors
        self._c = shrink * self._c + rate * along
        self._u = self._u + self._gram @ (rate * errors)
        return errors

    def cosine(self):
        """cos(b, beta)."""
        inner, kv = self._inner()
        squares = self._a**2 * self._b0 + self._v @ kv + self._c**2 * self._bb
        squares += 2 * self._a * self._c * self._s
        squares -= 2 * (self._a * self._q + self._c * self._g) @ self._v
        return float(inner / np.sqrt(self._bb * squares))


class Classifier:
    """`f(x) = phi(x W) w`, leaky ReLU, mean exponential loss, labels -1 and 1.

    Args:
        x: Inputs, shape `(n, d)`.
        y: Labels, shape `(n,)`.
        kernel: W at the start, shape `(d, m)`.
        output: w at the start, shape `(m,)`.
        slope: Of the leaky ReLU below 0.
        sign: Whether the feedback is sign(w), kept up to date, and not w at the start.
    """

    def __init__(self, x, y, kernel, output, slope, sign=False):
        self._x, self._y, self._slope, self._sign = x, y, slope, sign
        self.kernel, self.output = kernel.copy(), output.copy()
        self._start = output.copy()

    def gradients(self):
        """The loss, the feedback's gradients of W and w, and <gradient, feedback's>."""
        before = self._x @ self.kernel
        slopes = np.where(before > 0, 1.0, self._slope)
        after = before * slopes
        losses = np.exp(-self._y * (after @ self.output))
        errors = -self._y * losses / len(self._y)
        feedback = np.sign(self.output) if self._sign else self._start
        output = after.T @ errors
        # Columns of the true and the feedback's gradient differ by w[j] and b[j] alone.
        common = self._x.T @ (slopes * errors[:, None])
        inner = output @ output + (self.output * feedback) @ (common**2).sum(axis=0)
        return losses.mean(), common * feedback, output, float(inner)

    def step(self, rate, kernel, output):
        """A step along gradients of `gradients`."""
        self.kernel -= rate * kernel
        self.output -= rate * output


class Layers:
    """Leaky ReLU layers, several linear outputs, no biases, under FA or sign-FA.

    Args:
        x: Inputs, shape `(n, d)`.
        y: Targets, shape `(n, k)`; of "logistic" 0 and 1.
        kernels: Of the layers at the start, each of shape `(in, out)`.
        feedback: In their place on the way back, for all but the first; None for their
            signs, kept up to date.
        slope: Of the leaky ReLU below 0.
        loss: "squared", half of it, or "logistic", summed over outputs; mean over n.
    """

    def __init__(self, x, y, kernels, feedback, slope, loss):
        self._x, self._y, self._slope, self._loss = x, y, slope, loss
        self.kernels = [kernel.copy() for kernel in kernels]
        self._fixed = feedback

    def _feedback(self):
        """B of all layers but the first."""
        if self._fixed is not None:
            return self._fixed
        return [np.sign(kernel) for kernel in self.kernels[1:]]

    def step(self, rate):
        """One step of all layers: the loss before it and the steps' directions."""
        values, slopes = [self._x], []
        for kernel in self.kernels[:-1]:
            before = values[-1] @ kernel
            slopes.append(np.where(before > 0, 1.0, self._slope))
            values.append(before * slopes[-1])
        outputs = values[-1] @ self.kernels[-1]
        if self._loss == "squared":
            errors = outputs - self._y
            loss = 0.5 * (errors**2).sum() / len(errors)
        else:
            errors = 1 / (1 + np.exp(-outputs)) - self._y
            loss = (np.logaddexp(0, outputs) - self._y * outputs).sum() / len(errors)
        feedback = self._feedback()
        sent, gradients = errors / len(errors), []
        for layer in reversed(range(len(self.kernels))):
            gradients.insert(0, values[layer].T @ sent)
            if layer:
                sent = (sent @ feedback[layer - 1].T) * slopes[layer - 1]
        for kernel, gradient in zip(self.kernels, gradients, strict=True):
            kernel -= rate * gradient
        return float(loss), gradients

    def potentials(self):
        """<W2[j], B2[j]> - 1/2 |W1[:, j]|^2 of each hidden unit, layer after layer."""
        return np.concatenate(
            [
                (out * sent).sum(axis=1) - 0.5 * (into**2).sum(axis=0)
                for into, out, sent in zip(
                    self.kernels, self.kernels[1:], self._feedback(), strict=False
                )
            ]
        )


class LinearMap:
    """`f(X) = X W1 W2`, several outputs, squared error `1/2 sum e^2`, feedback W2(0).

    Args:
        x: Inputs, shape `(n, d)`.
        y: Targets, shape `(n, k)`.
        first: W1 at the start, shape `(d, m)`.
        second: W2 at the start and B, shape `(m, k)`.
    """

    def __init__(self, x, y, first, second):
        self._x, self._y = x, y
        self.first, self.second = first.copy(), second.copy()
        self.feedback = second.copy()
        self._solution = np.linalg.pinv(x) @ y
        # Rows of the examples, made orthonormal.
        self._span = np.linalg.svd(x, full_matrices=False)[2]

    def errors(self):
        """e, shape `(n, k)`."""
        return self._x @ self.first @ self.second - self._y

    def step(self, rate):
        """One step of both layers; returns the norm of e before it."""
        hidden = self._x @ self.first
        errors = hidden @ self.second - self._y
        first = self._x.T @ (errors @ self.feedback.T)
        self.second -= rate * (hidden.T @ errors)
        self.first -= rate * first
        return float(np.linalg.norm(errors))

    def distance(self):
        """|W1 W2 - X^+ Y| / |X^+ Y|, the parts on and off the span of the examples."""
        apart = self.first @ self.second - self._solution
        on = self._span.T @ (self._span @ apart)
        size = np.linalg.norm(self._solution)
        return float(np.linalg.norm(on) / size), float(
            np.linalg.norm(apart - on) / size
        )

    def projected(self, first):
        """A first layer, with what is off the span of the examples taken away."""
        return self._span.T @ (self._span @ first)

    def potential(self):
        """<W2, B> - 1/2 |W1|^2 of theorem 5.1."""
        inner = (self.second * self.feedback).sum()
        return float(inner - 0.5 * (self.first**2).sum())
