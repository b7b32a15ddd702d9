"""The papers' theorems, measured on small networks in NumPy: a row for each cell.

Nothing here draws: `measured` fills the files of results/theory, `theorems` reads them.
"""

import dataclasses
import itertools
import json
import math

import numpy as np

from keras_fa import analysis, datasets
from keras_fa.papers import lemmas
from keras_fa.papers.flows import (
    Classifier,
    Layers,
    LinearMap,
    LinearNetwork,
    TwoLayer,
    song_network,
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One table of results/theory.

    Attributes:
        function: Of the fields of a cell; returns what was measured, a dict.
        cells: List of dicts.
    """

    function: object
    cells: list


def _product(**fields):
    return [
        dict(zip(fields, values, strict=True))
        for values in itertools.product(*fields.values())
    ]


def theorem_3_2(seed, p, rate=0.5, steps=1500):
    """Contraction, lazy weights; theorem 5.1 of RK24 at beta = 1; the rate e^{rt}."""
    x, kernel, net = song_network(seed, p, "tanh")
    start = net.beta.copy()
    found = analysis.kernels(x, kernel, net.beta, net.feedback, "tanh")
    gamma = lemmas.gamma(x)
    norms, inner, losses = [], [], []
    moved = shifted = 0.0
    for step in range(steps):
        if step % 10 == 0:
            inner.append(net.inner())
            moved = max(moved, net.moved().max())
            shifted = max(shifted, np.abs(net.beta - start).max())
        norms.append(np.linalg.norm(net.step(rate)))
        if step % 10 == 0:
            losses.append(norms[-1] ** 2 / 2)
        if norms[-1] < 1e-6 * norms[0]:
            break
    norms, inner, losses = np.array(norms), np.array(inner), np.array(losses)
    time = rate * np.arange(len(norms))
    alpha = analysis.running_alpha(inner, losses, 1.0)[-1]
    bound = math.nan
    if alpha > 0:
        bound = analysis.loss_bound(time[::10], alpha, 1.0, losses[0])
    late = slice(len(norms) // 2, None)
    line = np.polyfit(time[late], np.log(norms[late]), 1)
    residual = np.log(norms[late]) - np.polyval(line, time[late])
    return {
        "gamma": gamma,
        "smallest": found.smallest,
        "worst_ratio": (norms[1:] / norms[:-1]).max(),
        "bound": 1 - rate * gamma / 4,
        "largest_beta_shift": shifted,
        "largest_w_shift": moved,
        "error_ratio": norms[-1] / norms[0],
        "alpha_1": alpha,
        "loss_over_bound": (losses / bound).max(),
        "rate_predicted": found.rate,
        "rate_measured": -line[0],
        "off_the_line": np.abs(residual).max(),
        "cosine": net.cosine(),
    }


def proposition_3_3(seed, activation, n, d_over_n):
    """The smallest eigenvalue of G's expectation for Gaussian inputs."""
    rng = np.random.default_rng([seed, n])
    x = rng.standard_normal((n, int(d_over_n * n))) / math.sqrt(d_over_n * n)
    psi = {"tanh": np.tanh, "sigmoid": lambda v: 1 / (1 + np.exp(-v))}[activation]
    return {"gamma": lemmas.gamma(x, psi)}


def _schedule(name, total, cutoff):
    """lambda(t) of a sum, in units of the rate: a function of the step."""
    if name == "constant":
        return lambda t: total / cutoff
    if name == "cutoff":
        return lambda t: total / cutoff if t < cutoff else 0.0
    if name == "exponential":
        return lambda t: total / cutoff * math.exp(-t / cutoff)
    # 1 / (1 + t/T)^2 has the sum T.
    return lambda t: total / cutoff / (1 + t / cutoff) ** 2


def _contraction(net, y, gamma, rate, share, penalty, steps):
    """The largest left side over right side of (4.2) or (4.3) on the way."""
    size, worst = np.linalg.norm(y), 0.0
    right = math.inf
    for step in range(steps):
        value = penalty(step)
        now = np.linalg.norm(net.step(rate, value))
        worst = max(worst, now / right)
        if now < 1e-9 * size:
            break  # What comes is rounding.
        right = (1 - rate * gamma / share - rate * value) * now + rate * value * size
    return worst, now


def theorem_4_2(seed, p, schedule, rate=0.5, cutoff=100, steps=800):
    """tanh with a penalty of a bounded sum: the contraction (4.2)."""
    x, _, net = song_network(seed, p, "tanh")
    gamma = lemmas.gamma(x)
    # The sum of lambda in proportion to sqrt(p), as the theorem allows.
    penalty = _schedule(schedule, 0.02 * math.sqrt(p) / rate, cutoff)
    worst, end = _contraction(net, net.y, gamma, rate, 4, penalty, steps)
    return {
        "gamma": gamma,
        "sum_of_lambda": sum(penalty(t) for t in range(steps)),
        "worst_over_bound": worst,
        "final_error": end,
        "cosine": net.cosine(),
    }


def theorem_4_3(seed, p, schedule, n=30, d=100, rate=0.2, steps=800):
    """Linear networks with a penalty of a bounded sum: the contraction (4.3)."""
    x, _, net = song_network(seed, p, "linear", n, d)
    eigenvalues = np.linalg.eigvalsh(x @ x.T)[-min(n, d) :]
    penalty = _schedule(schedule, 0.02 * math.sqrt(p) / rate, 100)
    short = LinearNetwork(net)
    worst, end = _contraction(short, net.y, eigenvalues[0], rate, 2, penalty, steps)
    return {
        "gamma": eigenvalues[0],
        "m_over_gamma": eigenvalues[-1] / eigenvalues[0],
        "sum_of_lambda": sum(penalty(t) for t in range(steps)),
        "worst_over_bound": worst,
        "final_error": end,
        "cosine": short.cosine(),
    }


def proposition_4_5(seed, d, n=50):
    """How isometric Gaussian inputs are."""
    x = np.random.default_rng([seed, d]).standard_normal((n, d)) / math.sqrt(d)
    eigenvalues = np.linalg.eigvalsh(x @ x.T)
    return {"gamma": eigenvalues[0], "m_over_gamma": eigenvalues[-1] / eigenvalues[0]}


def theorem_4_6(seed, p, schedule, time, n, d, inputs, rate=0.01, steps=20_000):
    """Linear networks, lambda = 5 gamma, T as the theorem has it or fixed."""
    x, _, net = song_network(seed, p, "linear", n, d, isometric=inputs == "isometric")
    eigenvalues = np.linalg.eigvalsh(x @ x.T)[-min(n, d) :]
    gamma = eigenvalues[0]
    # Lemma B.5 with C_T = 1.
    wide = p if time == "sqrt(p)" else 3200
    cutoff = math.floor(math.sqrt(wide / (n * gamma)) / rate)
    penalty = _schedule(schedule, 5 * gamma * cutoff, cutoff)
    net = LinearNetwork(net)
    smallest = at_cutoff = math.nan
    total = 0.0
    for step in range(steps):
        value = penalty(step)
        total += value
        net.step(rate, value)
        if step + 1 == cutoff:
            at_cutoff = net.cosine()
        if step + 1 >= cutoff and step % 10 == 0:
            smallest = np.fmin(smallest, net.cosine())
            if np.linalg.norm(net.errors()) < 1e-4 and value < 1e-4:
                break
    return {
        "gamma": gamma,
        "m_over_gamma": eigenvalues[-1] / gamma,
        "l": penalty(0) / gamma,
        "cutoff": cutoff,
        "sum_of_lambda": total,
        "cosine_at_cutoff": at_cutoff,
        "smallest_after": smallest,
        "cosine": net.cosine(),
        "final_error": np.linalg.norm(net.errors()),
    }


# Of the paper; and the steps after which there is something to see: as many as its
# curves of the loss show, and ten times as many once or twice.
_RATES = {"linear": 1e-4, "relu": 1e-3, "tanh": 1e-2}
_STEPS = {"linear": [3_000, 30_000, 300_000], "relu": [3_000, 30_000]}
_STEPS["tanh"] = [1_000, 10_000]


def figure_2(seed, activation, p, penalty, steps):
    """Alignment and loss after so many steps: figure 2 of Song et al."""
    rng = np.random.default_rng([seed, 2])
    n, d, width = 50, 150, 100
    psi = analysis.ACTIVATIONS[activation][0]
    x = rng.standard_normal((n, d))
    y = psi(x @ rng.standard_normal((d, width))) @ rng.standard_normal(width)
    y /= math.sqrt(width)
    rng = np.random.default_rng([seed, 3, p])
    kernel = rng.standard_normal((d, p))
    beta, feedback = rng.standard_normal((2, p))
    shorter, loss = 1, math.nan
    # W grows while the penalty keeps up an error, until the same steps are too long.
    while not math.isfinite(loss) and shorter <= 128:
        net = TwoLayer(x, y, kernel, beta, feedback, activation)
        if activation == "linear":
            net = LinearNetwork(net)
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(steps * shorter):
                net.step(_RATES[activation] / shorter, penalty)
            errors = net.errors()
            loss = float(errors @ errors / 2)
        rate = _RATES[activation] / shorter
        shorter *= 2
    return {"cosine": net.cosine(), "loss": loss, "rate": rate}


def theorem_5_2(seed, method, loss, rate, time=4.0):
    """What units of two hidden layers conserve, and what finite steps take of it."""
    rng = np.random.default_rng([seed, 52])
    x, y = rng.standard_normal((20, 10)), rng.standard_normal((20, 3))
    if loss == "logistic":
        y = (y > 0).astype(float)
    shapes = ((10, 12), (12, 9), (9, 3))
    kernels, feedback = (
        [rng.standard_normal(shape) / math.sqrt(shape[0]) for shape in shapes]
        for _ in range(2)
    )
    sent = None if method == "sign_fa" else feedback[1:]
    net = Layers(x, y, kernels, sent, 0.1, loss)
    start = net.potentials()
    drift, second, losses = 0.0, np.zeros_like(start), []
    for _ in range(round(time / rate)):
        before, gradients = net.step(rate)
        losses.append(before)
        # Terms of first order in the rate cancel: W1's only other one is this.
        second -= 0.5 * rate**2 * np.concatenate([_squares(g) for g in gradients[:-1]])
        drift = max(drift, np.abs(net.potentials() - start).max())
    moved = [
        np.abs(0.5 * (_squares(kernel) - _squares(first))).max()
        for kernel, first in zip(net.kernels[:-1], kernels, strict=False)
    ]
    return {
        "initial_loss": losses[0],
        "final_loss": losses[-1],
        "moved": max(moved),
        "drift": drift,
        "besides": np.abs(net.potentials() - start - second).max(),
    }


def _squares(kernel):
    """|W[:, j]|^2 of each unit."""
    return (kernel**2).sum(axis=0)


def proposition_5_7(seed, data, method, slope, start, time=20.0, most=60_000):
    """alpha known before training, its bound on the loss, the measured alpha."""
    size = {"separable": (50, 20), "nearly_orthogonal": (20, 100)}[data]
    found = datasets.load(data, n=size[0], d_in=size[1], seed=seed, dtype="float64")
    x, y = found.arrays("train")
    x, y = np.asarray(x, float), np.asarray(y, float).ravel()
    units = 20
    rng = np.random.default_rng([seed, 57])
    direction = (x * y[:, None]).mean(axis=0)
    direction /= np.linalg.norm(direction)
    kernel = 0.1 * rng.standard_normal((x.shape[1], units)) / math.sqrt(x.shape[1])
    kernel += start * direction[:, None]
    output = np.ones(units)
    guaranteed = analysis.guaranteed_alpha(
        analysis.separability(x, y), kernel, output, output, slope
    )
    net = Classifier(x, y, kernel, output, slope, sign=method == "sign_fa")
    times, losses, inner, smallest = [0.0], [], [], math.inf
    for _ in range(most):
        loss, first, second, product = net.gradients()
        losses.append(loss)
        inner.append(product)
        smallest = min(smallest, net.output.min())
        if times[-1] >= time:
            break
        # The loss falls by at most 1% a step.
        rate = min(1e-2, 1e-2 * loss / max(product, 1e-12))
        net.step(rate, first, second)
        times.append(times[-1] + rate)
    size = len(losses)
    times, losses, inner = np.array(times[:size]), np.array(losses), np.array(inner)
    row = {
        "initial_loss": losses[0],
        "final_loss": losses[-1],
        "time": times[-1],
        "largest_start_norm": np.linalg.norm(kernel, axis=0).max(),
        "smallest_w2": smallest,
        "alpha_known": guaranteed,
        "loss_over_known_bound": math.nan,
    }
    if guaranteed > 0:
        bound = analysis.loss_bound(times, guaranteed, 2.0, losses[0])
        row["loss_over_known_bound"] = (losses / bound).max()
    for beta in (1.0, 2.0):
        alpha = analysis.running_alpha(inner, losses, beta)[-1]
        row[f"alpha_{beta:.0f}"] = alpha
        bound = analysis.loss_bound(times, alpha, beta, losses[0])
        row[f"loss_over_bound_{beta:.0f}"] = (losses / bound).max()
    chosen = np.unique(np.linspace(0, size - 1, 60).astype(int))
    row["curve"] = json.dumps(
        [[float(f"{v:.4g}") for v in a[chosen]] for a in (times, losses)]
    )
    return row


def rk23(seed, start, rate=2e-5, most=200_000):
    """The minimum norm on and off the span, the rate, the corollary's bound."""
    rng = np.random.default_rng([seed, 23])
    x = rng.standard_normal((50, 100))
    y = x @ rng.standard_normal((100, 10))
    first = rng.standard_normal((100, 50))
    # N(0, 1/10), 1/10 read as a variance, or as a standard deviation.
    first *= {"deviation": 0.1, "zero": 0.0}.get(start, math.sqrt(0.1))
    second = rng.standard_normal((50, 10))
    net = LinearMap(x, y, first, second)
    if start == "projected":
        net.first = net.projected(net.first)
    known = net.potential()
    off = net.first - net.projected(net.first)
    norms, smallest = [], math.inf
    for step in range(most):
        norms.append(net.step(rate))
        if step % 50 == 0:
            smallest = min(smallest, (net.second * net.feedback).sum())
            if norms[-1] < 1e-10 * norms[0]:
                break
    on, apart = net.distance()
    log, time = np.log(norms), rate * np.arange(len(norms))
    late = slice(len(norms) // 2, None)
    line = np.polyfit(time[late], log[late], 1)
    moved = net.first - net.projected(net.first) - off
    return {
        "distance_on_span": on,
        "distance_off_span": apart,
        "off_span_of_w1_moved": np.linalg.norm(moved) / max(np.linalg.norm(first), 1),
        "error_ratio": norms[-1] / norms[0],
        "steps": len(norms),
        "rate_measured": -line[0],
        "off_the_line": np.abs(log[late] - np.polyval(line, time[late])).max(),
        "phi_at_start": known,
        "smallest_inner_product": smallest,
        "phi_drift": net.potential() - known,
    }


_SCHEDULES = ["cutoff", "exponential", "inverse_square"]
_SEEDS = [0, 1, 2]


def _aligning(seeds, **changes):
    """Cells of theorem 4.6: changes of n = 50 isometric inputs and a cut-off at T."""
    base = {"schedule": "cutoff", "time": "sqrt(p)", "n": 50, "inputs": "isometric"}
    fields = {key: [value] for key, value in {**base, "d": 150, **changes}.items()}
    return _product(seed=seeds, p=[800, 3200, 12800], **fields)


MEASUREMENTS = {
    "theorem_3_2": Measurement(
        theorem_3_2,
        _product(seed=_SEEDS, p=[400, 1600]) + _product(seed=[0], p=[6400]),
    ),
    "proposition_3_3": Measurement(
        proposition_3_3,
        _product(
            seed=_SEEDS,
            activation=["tanh", "sigmoid"],
            n=[60, 240, 480],
            d_over_n=[0.5, 1, 2, 4],
        ),
    ),
    "theorem_4_2": Measurement(
        theorem_4_2,
        _product(seed=[0], p=[400, 1600], schedule=_SCHEDULES)
        + _product(seed=[0], p=[6400], schedule=["cutoff"]),
    ),
    "theorem_4_3": Measurement(
        theorem_4_3,
        _product(seed=_SEEDS, p=[800, 3200], schedule=_SCHEDULES)
        + _product(seed=_SEEDS, p=[3200], schedule=["cutoff"], n=[200], d=[100]),
    ),
    "proposition_4_5": Measurement(
        proposition_4_5, _product(seed=_SEEDS, d=[150, 500, 2000, 10_000, 50_000])
    ),
    "theorem_4_6": Measurement(
        theorem_4_6,
        _aligning(_SEEDS)
        + _aligning(_SEEDS, time="fixed")
        + _aligning([0], schedule="exponential")
        + _aligning([0], schedule="inverse_square")
        + _aligning([0], schedule="constant")
        + _aligning([0], n=300)
        + _aligning([0], n=25)
        + _aligning([0], n=100)
        + _aligning([0], d=300)
        + _aligning([0], rate=0.005)
        + _aligning([0], inputs="gaussian"),
    ),
    "theorem_5_2": Measurement(
        theorem_5_2,
        _product(
            seed=_SEEDS,
            method=["fa", "sign_fa"],
            loss=["squared", "logistic"],
            rate=[0.04, 0.02, 0.01, 0.005],
        ),
    ),
    "proposition_5_7": Measurement(
        proposition_5_7,
        _product(
            seed=[0, 1],
            data=["separable"],
            method=["fa", "sign_fa"],
            slope=[0.1],
            start=[-0.1, 0.0, 0.4],
        )
        + _product(
            seed=[0, 1],
            data=["nearly_orthogonal"],
            method=["fa", "sign_fa"],
            slope=[0.1, 0.9],
            start=[-0.1, 0.0, 0.4],
        ),
    ),
    "rk23": Measurement(
        rk23,
        _product(seed=_SEEDS, start=["variance", "deviation", "zero", "projected"]),
    ),
    "figure_2": Measurement(
        figure_2,
        _product(
            activation=["linear"],
            steps=_STEPS["linear"],
            seed=list(range(10)),
            p=[200, 800, 3200, 12800],
            penalty=[0.0, 0.02, 0.05, 0.2, 2.0, 5.0],
        )
        + [
            cell
            for activation in ("tanh", "relu")
            for cell in _product(
                activation=[activation],
                steps=_STEPS[activation],
                seed=_SEEDS,
                p=[200, 800, 3200],
                penalty=[0.0, 0.05, 0.2, 1.0, 5.0],
            )
        ],
    ),
    "lemma_a_1": Measurement(
        lemmas.simple_matrix,
        _product(seed=[0], n=[50], d=[50, 200, 800, 3200, 12800])
        + [{"seed": 0, "n": n, "d": n} for n in (25, 100, 200)],
    ),
    "lemmas_a_2_b_2": Measurement(
        lemmas.start, _product(seed=list(range(10)), p=[400, 1600, 6400, 25600])
    ),
    "lemma_a_3": Measurement(
        lemmas.kernels_at_start,
        _product(seed=list(range(10)), p=[400, 1600, 6400, 25600]),
    ),
    "lemmas_a_4_a_7": Measurement(
        lemmas.lazy,
        _product(seed=_SEEDS, total=[0.0, 0.5], p=[400, 1600, 6400])
        + _product(seed=[0], total=[0.0, 0.5], p=[25600]),
    ),
    "lemmas_b_1_b_5": Measurement(
        lemmas.sums,
        _product(seed=_SEEDS, p=[200, 800, 3200]) + _product(seed=[0], p=[12800]),
    ),
    "lemmas_c_1_c_2": Measurement(
        lemmas.isometry,
        _product(seed=[0], k=[1, 10], m=[100, 400, 1600, 6400, 25600]),
    ),
    "lemmas_c_3_c_4": Measurement(
        lemmas.tails, _product(seed=[0], p=[1, 10, 100, 1000])
    ),
}
