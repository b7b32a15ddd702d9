"""The lemmas of Song et al. (2021): each measured in NumPy, and its section.

A lemma is a step of a proof. Its constants are mostly not named, so that what is looked
at is the order in which a quantity falls with the width; where a constant follows from
the proof, the bound itself.
"""

import functools
import math

import numpy as np

from keras_fa import analysis
from keras_fa.papers.flows import song_network
from keras_fa.papers.sections import as_text, exponent

# Of Hermite's polynomials; with 100 gamma is the same to 2e-5 (measured, 60 inputs).
_TERMS = 40


@functools.cache
def _quadrature():
    """Nodes and weights of a standard Gaussian's mean, shapes `(terms,)`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_TERMS)
    return nodes, weights / weights.sum()


def expected_kernel(x, psi=np.tanh):
    """E[G] over Gaussian W, by Hermite's polynomials.

    Args:
        x: Inputs, shape `(n, d)`.
        psi: The activation: smooth, since the series is cut.

    Returns:
        Shape `(n, n)`.
    """
    nodes, weights = _quadrature()
    # Orthonormal: E[h_j(Z) h_k(Z')] is the correlation^k of Z and Z' where j = k.
    polynomials = [np.ones(_TERMS), nodes]
    for k in range(2, _TERMS):
        further = nodes * polynomials[-1] - math.sqrt(k - 1) * polynomials[-2]
        polynomials.append(further / math.sqrt(k))
    gram = x @ x.T
    norms = np.sqrt(gram.diagonal())
    correlation = gram / np.outer(norms, norms)
    parts = (psi(np.outer(norms, nodes)) * weights) @ np.transpose(polynomials)
    return sum(np.outer(part, part) * correlation**k for k, part in enumerate(parts.T))


def gamma(x, psi=np.tanh):
    """The smallest eigenvalue of `expected_kernel`: Song et al., assumption 3.1.

    That of one network's G is below it on average, and the further the narrower the
    network.
    """
    return float(np.linalg.eigvalsh(expected_kernel(x, psi))[0])


def simple_matrix(seed, n, d):
    """E[G] for tanh beside the matrix of lemma A.1."""
    rng = np.random.default_rng([seed, n, d])
    x = rng.standard_normal((n, d)) / math.sqrt(d)
    norms = np.linalg.norm(x, axis=1)
    correlation = x @ x.T / np.outer(norms, norms)
    psi, slope = analysis.ACTIVATIONS["tanh"]
    nodes, weights = _quadrature()
    linear, square = (weights @ slope(nodes)) ** 2, weights @ psi(nodes) ** 2
    simple = linear * correlation + (square - linear) * np.eye(n)
    return {
        "gamma": gamma(x),
        "squared_distance": np.linalg.norm(expected_kernel(x) - simple, 2) ** 2,
        "order": math.log(n) / d + n**2 / d**2,
    }


def simple_matrix_section(section, rows, folder):
    """Lemma A.1."""
    ratio = rows["squared_distance"] / rows["order"]
    section.tables[
        "tanh, n inputs N(0, I/d): |E[G] - the matrix of lemma A.1|², spectral, beside "
        "log n / d + n² / d²."
    ] = as_text(rows[["n", "d", "gamma", "squared_distance", "order"]])
    section.checks.append(
        (
            "lemma A.1: the squared distance is at most log n / d + n² / d²",
            bool((ratio <= 1).all()),
            f"{ratio.min():.2g} to {ratio.max():.2g} of it in {len(rows)} cases",
        )
    )


def start(seed, p):
    """The sizes at the start of lemmas A.2 and B.2."""
    _, kernel, net = song_network(seed, p, "tanh")
    d = len(kernel)
    b, beta, root = net.feedback, net.beta, math.sqrt(p)
    return {
        "mean_b": np.abs(b).mean(),
        "mean_b_beta": np.abs(b * beta).mean(),
        "error": np.linalg.norm(net.errors()) / math.sqrt(len(net.y)),
        "largest_b": np.abs(b).max() / (2 * math.sqrt(math.log(p))),
        "b_beta": abs(b @ beta) / root,
        "b_w": np.linalg.norm(kernel @ b) / math.sqrt(p * d),
        "b_squared": abs(b @ b / p - 1) * root,
        "w_w": np.linalg.norm(kernel @ kernel.T / p - np.eye(d), 2),
    }


def start_section(section, rows, folder):
    """Lemmas A.2 and B.2."""
    names = {
        "mean_b": "mean |b|",
        "mean_b_beta": "mean |b β|",
        "error": "|e| / √n",
        "largest_b": "max |b| / 2√log p",
        "b_beta": "|bᵀβ| / √p",
        "b_w": "|bᵀW| / √(pd)",
        "b_squared": "√p ||b|²/p - 1|",
        "w_w": "|WᵀW/p - I|",
    }
    largest = rows.groupby("p")[list(names)].max()
    section.tables[
        "The largest over the seeds, d = 100, 30 examples: (A.4) to (A.7), then (B.6) "
        "to (B.9)."
    ] = as_text(largest.rename(columns=names).reset_index())
    # Twice the mean is far above what ten draws of such sums are apart.
    bounded = rows[["mean_b", "mean_b_beta", "error"]]
    rate = exponent(rows, "p", "w_w")
    sizes = {k: rows.groupby("p")[k].mean() for k in ("b_beta", "b_w", "b_squared")}
    section.checks += [
        (
            "lemma A.2: the means of |b| and |b beta| and |e(0)| / sqrt(n) are at most "
            "2, max |b| at most 2 sqrt(log p)",
            bool((bounded <= 2).all(axis=None) and (rows["largest_b"] <= 1).all()),
            ", ".join(f"{names[k]} {rows[k].max():.3g}" for k in list(names)[:4])
            + f" at most, in {len(rows)} draws",
        ),
        (
            "lemma B.2, (B.6) to (B.8): of the same size at every p",
            # Without the square root of p they would be 8 times apart.
            all(bool(s.max() < 3 * s.min()) for s in sizes.values())
            if rows["p"].nunique() > 1
            else None,
            "; ".join(
                f"{names[k]} {s.min():.2g} to {s.max():.2g}" for k, s in sizes.items()
            )
            + ", means at each p",
        ),
        (
            "lemma B.2, (B.9) as printed: p of the order d / epsilon is enough, so "
            "|WᵀW/p - I| falls about as 1 / p",
            None if rate is None else bool(rate < -0.75),
            f"it falls as p^{rate or 0:.2f}: d / epsilon² is needed",
        ),
    ]


_TAILS = (0.25, 0.5, 1.0, 2.0, 4.0)
_DRAWS = 10**6


def tails(seed, p):
    """How often chi squared and products of Gaussians pass lemma C.3's and C.4's t."""
    rng = np.random.default_rng([seed, p, 3])
    square = rng.chisquare(p, _DRAWS)
    # Given X, <X, Y> is Gaussian with variance |X|^2.
    product = np.abs(np.sqrt(square) * rng.standard_normal(_DRAWS))
    found = {"above": 0.0, "below": 0.0, "product": 0.0}
    for t in _TAILS:
        root = math.sqrt(p * t)
        for name, passed, bound in (
            ("above", square - p >= 2 * root + 2 * t, math.exp(-t)),
            ("below", square - p <= -2 * root, math.exp(-t)),
            ("product", product >= math.sqrt(2) * root + 2 * t, 2 * math.exp(-t)),
        ):
            found[name] = max(found[name], float(passed.mean() / bound))
    return found


def tails_section(section, rows, folder):
    """Lemmas C.3 and C.4."""
    section.tables[
        f"How often, of {_DRAWS:,} draws, over the lemma's bound, the largest over t = "
        f"{', '.join(f'{t:g}' for t in _TAILS)}. C.4 with 2 exp(-t): its 2 exp(t) is "
        "above 1."
    ] = as_text(rows[["p", "above", "below", "product"]])
    for name, columns in (("C.3", ["above", "below"]), ("C.4", ["product"])):
        largest = rows[columns].max(axis=None)
        section.checks.append(
            (
                f"lemma {name}: seen no oftener than the bound",
                bool(largest <= 1),
                f"at most {largest:.2f} of it for p of {rows['p'].min()} to "
                f"{rows['p'].max()}",
            )
        )


def kernels_at_start(seed, p):
    """G and H at the start beside E[G]: lemma A.3."""
    x, kernel, net = song_network(seed, p, "tanh")
    found = analysis.kernels(x, kernel, net.beta, net.feedback, "tanh")
    return {
        "gamma": gamma(x),
        "smallest": found.smallest,
        "distance": np.linalg.norm(found.output - expected_kernel(x), 2),
        "norm_of_h": found.hidden_norm,
    }


def kernels_at_start_section(section, rows, folder):
    """Lemma A.3."""
    rows = rows.assign(
        share=rows["smallest"] / rows["gamma"],
        h_share=rows["norm_of_h"] / rows["gamma"],
    )
    rows["both"] = (rows["share"] >= 0.75) & (rows["h_share"] <= 0.25)
    table = rows.groupby("p", as_index=False).agg(
        gamma=("gamma", "mean"),
        share=("share", "min"),
        h_share=("h_share", "max"),
        distance=("distance", "mean"),
        both=("both", "sum"),
        n=("both", "size"),
    )
    names = {
        "share": "least λ_min(G(0)) / gamma",
        "h_share": "largest |H(0)| / gamma",
        "distance": "|G(0) - E[G]|",
        "both": "networks with both",
    }
    section.tables[
        "tanh, 30 inputs N(0, I/d), d = 100: the smallest eigenvalue of G at the start "
        "over gamma, that of E[G], for which the lemma has 3/4 at least, and |H| over "
        "gamma, for which it has 1/4 at most; of n networks."
    ] = as_text(table.rename(columns=names))
    widest = rows[rows["p"] == rows["p"].max()]
    falls = {k: exponent(rows, "p", k) for k in ("distance", "norm_of_h")}
    section.checks += [
        (
            "lemma A.3: at the largest p G's smallest eigenvalue is at least 3/4 gamma "
            "and |H| at most gamma / 4",
            bool(widest["both"].all()),
            f"{widest['share'].min():.2f} of gamma at least, "
            f"{widest['h_share'].max():.2f} at most in {len(widest)} networks of p = "
            f"{widest['p'].max()}",
        ),
        (
            "lemma A.3: |G(0) - E[G]| and |H(0)| fall about as 1 / sqrt(p)",
            None
            if None in falls.values()
            else all(abs(s + 0.5) < 0.1 for s in falls.values()),
            "exponents of p: "
            + ", ".join(f"{s:.2f}" for s in falls.values() if s is not None),
        ),
    ]


def isometry(seed, k, m, draws=400):
    """How often |A v|^2 leaves 1 ± 2 sqrt(k / m) on a subspace of dimension k."""
    rng = np.random.default_rng([seed, k, m])
    epsilon = 2 * math.sqrt(k / m)
    if k == 1:  # There it is chi squared.
        missed = np.abs(rng.chisquare(m, _DRAWS) / m - 1) > epsilon
    else:
        missed = np.array(
            [
                np.linalg.norm(a.T @ a / m - np.eye(k), 2) > epsilon
                for a in (rng.standard_normal((m, k)) for _ in range(draws))
            ]
        )
    return {"epsilon": epsilon, "missed": missed.mean(), "draws": len(missed)}


def isometry_section(section, rows, folder):
    """Lemma C.1 and corollary C.2."""
    section.tables[
        "The share of draws of A, m by k with entries N(0, 1/m), whose |A v|² / |v|² "
        "leaves 1 ± epsilon for a v in a subspace of dimension k, at epsilon = 2 "
        "√(k / m)."
    ] = as_text(rows[["k", "m", "epsilon", "missed", "draws"]])
    for k, group in rows.groupby("k"):
        shares = group.sort_values("m")["missed"].to_numpy()
        section.checks.append(
            (
                f"{'lemma C.1' if k == 1 else 'corollary C.2'} as printed, k = {k}: "
                "the share falls with m, to 0 as exp(-gamma epsilon m)",
                bool(shares[-1] < shares[0] / 2) if len(shares) > 1 else None,
                ", ".join(f"{s:.3f}" for s in shares)
                + f" at m = {', '.join(str(m) for m in sorted(group['m']))}",
            )
        )


def lazy(seed, p, total, rate=0.5, cutoff=100, steps=800):
    """The quantities of lemmas A.4 to A.7 on the way; eta sum lambda is `total`."""
    x, _, net = song_network(seed, p, "tanh")
    psi, slope = analysis.ACTIVATIONS["tanh"]
    size, beta = np.linalg.norm(net.y), net.beta.copy()
    errors = net.errors()
    first = now = np.linalg.norm(errors)

    def kernels(before, later):
        after, slopes = psi(before), slope(before)
        sent = slopes * (later * net.feedback)[:, None]
        return after.T @ after / p, net.gram * (sent.T @ slopes) / p

    output, hidden = kernels(net.before, net.beta)
    least = gamma(x)
    kept, worst = 1.0, 0.0
    seen = dict.fromkeys(
        ("beta", "beta_besides", "w", "g_shift", "h_shift", "remainder", "together"),
        0.0,
    )
    for step in range(steps):
        penalty = total / (rate * cutoff) if step < cutoff else 0.0
        before, previous = net.before, errors
        net.step(rate, penalty)
        kept *= 1 - rate * penalty
        errors = net.errors()
        right = (1 - rate * least / 4 - rate * penalty) * now + rate * penalty * size
        new = np.linalg.norm(errors)
        worst = max(worst, new / right)
        if step % 5 == 0:
            g, h = kernels(before, net.beta)
            said = (1 - rate * penalty) * previous - rate * (g + h) @ previous
            said -= rate * penalty * net.y
            terms = {
                "g_shift": np.linalg.norm(g - output, 2),
                "h_shift": np.linalg.norm(h - hidden, 2),
                "remainder": np.linalg.norm(errors - said) / (rate * now),
            }
            terms["together"] = sum(terms.values()) + np.linalg.norm(hidden, 2)
            terms["beta"] = np.abs(net.beta - beta).max()
            terms["beta_besides"] = np.abs(net.beta - kept * beta).max()
            terms["w"] = net.moved().max()
            seen = {name: max(value, terms[name]) for name, value in seen.items()}
        now = new
        if now < 1e-6 * first:
            break
    # |psi|, |psi'| are at most 1, eta sum |e| at most 4 (|e(0)| + total |y|) / gamma.
    bound = 4 * math.sqrt(len(net.y) / p) * (first + total * size) / least
    longest = np.sqrt(net.gram.diagonal().max()) * np.abs(net.feedback).max()
    return {
        "gamma": least,
        "smallest": np.linalg.eigvalsh(output)[0],
        **seen,
        "beta_over_bound": seen["beta_besides"] / bound,
        "w_over_bound": seen["w"] / (bound * longest),
        "h_start": np.linalg.norm(hidden, 2),
        "worst_over_bound": worst,
    }


def lazy_section(section, rows, folder):
    """Lemmas A.4 to A.7."""
    section.tables[
        "tanh, 30 inputs N(0, I/d), d = 100, step 0.5; eta times the sum of lambda in "
        "100 steps. The largest on the way: how far a weight of beta is from its start "
        "(besides: from what the penalty leaves of it) and one unit's of W, and over "
        "the bounds that the proofs give; of n runs."
    ] = _means(
        rows,
        ["total", "p"],
        [
            *("gamma", "beta", "beta_besides", "w"),
            *("beta_over_bound", "w_over_bound", "worst_over_bound"),
        ],
    )
    section.tables[
        "The same runs: what the proofs put against G(0)'s smallest eigenvalue less "
        "gamma / 4: |G(t) - G(0)|, |H(0)|, |H(t) - H(0)|, the remainder |v| / (eta "
        "|e|), and their sum at one time."
    ] = _means(
        rows,
        ["total", "p"],
        ["g_shift", "h_start", "h_shift", "remainder", "together", "smallest", "gamma"],
    )
    for total, weights, errors in ((0.0, "A.4", "A.5"), (0.5, "A.6", "A.7")):
        own = rows[rows["total"] == total]
        if not len(own):
            continue
        falls = {k: exponent(own, "p", k) for k in ("beta", "beta_besides", "w")}
        few = falls["w"] is None
        over = own[["beta_over_bound", "w_over_bound"]].max(axis=None)
        besides = " besides what the penalty takes" if total else ""
        section.checks.append(
            (
                f"lemma {weights}: steps away of w, and of beta{besides}, are under "
                "the bound of the proof and fall with p",
                None
                if few
                else bool(
                    over <= 1 and falls["w"] < -0.25 and falls["beta_besides"] < -0.25
                ),
                f"at most {over:.2g} of it; exponents of p: w {falls['w'] or 0:.2f}, "
                f"beta {falls['beta_besides'] or 0:.2f}",
            )
        )
        if total:
            section.checks.append(
                (
                    f"lemma {weights} as printed, (A.14): all that beta moves falls "
                    "with p as 1 / sqrt(p), eta sum lambda fixed",
                    None if few else bool(falls["beta"] < -0.25),
                    f"exponent of p {falls['beta'] or 0:.2f}: the penalty takes a "
                    "share of beta(0) away at every width",
                )
            )
        widest = own[own["p"] == own["p"].max()]
        room = widest["smallest"] - widest["gamma"] / 4
        share = (widest["together"] / room).max()
        section.checks.append(
            (
                f"lemma {errors}: errors contract at every step, and at the largest p "
                "what the proof puts against G(0) leaves the contraction",
                bool((own["worst_over_bound"] <= 1).all() and share <= 1),
                f"|e(t+1)| over the bound at most {own['worst_over_bound'].max():.3f}; "
                f"the proof's terms at p = {widest['p'].max()} {share:.2f} of "
                "G(0)'s smallest eigenvalue less gamma / 4",
            )
        )


def sums(seed, p, n=50, d=150, rate=0.01, most=4000):
    """Lemmas B.1 and B.3 to B.5: linear, isometric, lambda = 5 gamma, T ~ sqrt(p)."""
    _, _, net = song_network(seed, p, "linear", n, d, isometric=True)
    gram, y, b, beta = net.gram, net.y, net.feedback, net.beta.copy()
    size, root = np.linalg.norm(y), math.sqrt(p)
    gamma = float(np.linalg.eigvalsh(gram)[0])
    penalty = 5 * gamma
    cutoff = math.floor(math.sqrt(p / (n * gamma)) / rate)
    begin = math.ceil(5 / (rate * penalty))  # tau, its constant 5
    values = net.before.copy()
    output, sent = values.T @ values / p, values.T @ b / root  # of W(0)
    plain, faded, double, kept = np.zeros(n), np.zeros(n), 0.0, 1.0  # s, ŝ, Ŝ, product
    errors = net.errors()
    found = {"recursion": 0.0, "along": math.inf, "across": 0.0}

    def ratio():
        return rate * double / (math.sqrt(p * gamma) * np.linalg.norm(faded))

    for step in range(cutoff + most):
        now = penalty if step <= cutoff else 0.0
        kept *= 1 - rate * now
        pulled = gram @ plain
        double = (1 - rate * now) * double + errors @ pulled
        faded = (1 - rate * now) * faded + errors
        first = (b @ beta) / p * kept * gram
        second = (sent @ faded) * gram + np.outer(pulled, sent) + np.outer(sent, pulled)
        third = (b @ b) * (double * gram + np.outer(pulled, pulled))
        whole = output + first - rate / p * second + (rate / p) ** 2 * third
        said = (1 - rate * now) * errors - rate * whole @ errors - rate * now * y
        net.step(rate, now)
        plain, errors = plain + errors, net.errors()
        apart = np.linalg.norm(said - errors) / size
        found["recursion"] = max(found["recursion"], apart)
        if begin <= step + 1 <= cutoff:
            along = -(errors @ y) / size
            across = np.linalg.norm(errors + along * y / size)
            found["along"] = min(found["along"], along / size)
            found["across"] = max(found["across"], across / size)
        if step == cutoff:
            found["ratio_at_cutoff"] = ratio()
        if step > cutoff and np.linalg.norm(errors) < 1e-4 * size:
            break
    said = kept * beta - rate / root * values @ faded + rate**2 / p * double * b
    return {
        "gamma": gamma,
        "cutoff": cutoff,
        **found,
        "beta_recursion": np.abs(said - net.beta).max(),
        "ratio": ratio(),
        "cosine": net.cosine(),
    }


def sums_section(section, rows, folder):
    """Lemmas B.1 and B.3 to B.5."""
    section.tables[
        "Linear networks, isometric inputs (50 examples, d = 150), lambda = 5 gamma to "
        "T = sqrt(p / (n gamma)) / eta, eta = 0.01, until |e| is 1e-4 |y|; means over "
        "n runs. recursion: (B.3) less the error of the network, over |y|; along, "
        "across: the least of e along -y and the most across it from tau = 5 / (eta "
        "lambda) to T, over |y|; ratio: eta S / (sqrt(p gamma) |s|) of lemma B.3's "
        "sums, at T and at the end."
    ] = _means(
        rows,
        ["p"],
        [
            *("cutoff", "recursion", "beta_recursion", "along", "across"),
            *("ratio_at_cutoff", "ratio", "cosine"),
        ],
        digits=4,
    )
    at_cutoff = rows.groupby("p")["ratio_at_cutoff"].mean()
    # With beta(0)'s part gone and W(0)'s across b: r / sqrt(1 + r^2).
    expected = rows["ratio"] / np.hypot(1, rows["ratio"])
    share = rows["cosine"] / expected
    section.checks += [
        (
            "lemma B.1: the recursion gives the network's errors, and (B.5) its beta",
            bool(rows[["recursion", "beta_recursion"]].max(axis=None) < 1e-10),
            f"apart by at most {rows['recursion'].max():.1g} of |y| and "
            f"{rows['beta_recursion'].max():.1g}",
        ),
        (
            "lemma B.3: the cosine is at least 0.9 of r / sqrt(1 + r²), r the ratio of "
            "its sums, at every p",
            bool((share >= 0.9).all()),
            f"{share.min():.3f} to {share.max():.3f} of it, r from "
            f"{rows['ratio'].min():.2f} to {rows['ratio'].max():.2f}",
        ),
        (
            "lemma B.4: from tau to T e is along -y to (lambda - gamma) / (lambda + "
            "gamma) = 2/3 at least, across it gamma / (lambda + gamma) = 1/6 at most",
            bool((rows["along"] >= 2 / 3).all() and (rows["across"] <= 1 / 6).all()),
            f"along at least {rows['along'].min():.3f} |y|, across at most "
            f"{rows['across'].max():.3f} |y|",
        ),
        (
            "lemma B.5: the ratio at T is the same at every p to 20%",
            bool(np.ptp(at_cutoff) < 0.2 * at_cutoff.mean())
            if len(at_cutoff) > 1
            else None,
            ", ".join(f"{r:.3f}" for r in at_cutoff)
            + f" at p = {', '.join(str(p) for p in at_cutoff.index)}",
        ),
    ]


def _means(rows, by, columns, digits=3):
    """Means over the runs of equal fields, with how many they are of, as texts."""
    groups = rows.groupby(by)
    means = groups[columns].mean().assign(n=groups.size())
    return as_text(means.reset_index(), digits)
