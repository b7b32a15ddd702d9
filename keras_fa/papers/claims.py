"""The numbered statements of the papers, and what the report's checks say of each.

A statement is confirmed where all its checks hold, in part where some do and the others
have too few runs, contrary where one fails, and not tested where no check tells: each
verdict comes from the checks, none is written here. Definitions and drawings say
nothing that could be tested.
"""

import dataclasses
import re

CONFIRMED, IN_PART = "confirmed", "confirmed in part"
CONTRARY, NOT_TESTED = "contrary", "not tested"
NOTHING = "nothing to test"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One numbered statement.

    Attributes:
        paper: "RK24", "RK23" or "S21".
        number: As the paper has it, such as "theorem 5.2".
        says: What it says, in a line.
        section: Name of the experiment that tests it; None of what says nothing that
            could be tested.
        checks: Regular expression; the checks of the section whose text it is found in
            decide.
        note: Why there is nothing to test, or what else there is to know.
    """

    paper: str
    number: str
    says: str
    section: str | None = None
    checks: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim with what came of it.

    Attributes:
        claim: The `Claim`.
        verdict: "confirmed", "confirmed in part", "contrary", "not tested" or "nothing
            to test".
        evidence: The numbers, of the checks that fail where some do; or the reason.
        place: Name of the section to read on in, or None.
    """

    claim: Claim
    verdict: str
    evidence: str
    place: str | None


def judge(sections):
    """The verdict on every claim, a list of `Verdict`, in the papers' order.

    Args:
        sections: List of `Section`.
    """
    known = {section.name: section for section in sections}
    return [_judged(claim, known.get(claim.section)) for claim in CLAIMS]


def _judged(claim, section):
    if claim.section is None:
        return Verdict(claim, NOTHING, claim.note, None)
    if section is None:
        return Verdict(claim, NOT_TESTED, "Its section is not here.", None)
    found = [c for c in section.checks if re.search(claim.checks, c[0])]
    told = [c for c in found if c[1] is not None]
    if not told:
        missing = "Its runs are missing."
        if section.tables and not section.runs:
            missing = "Its runs are gone; a table made of them earlier stands there."
        elif found:
            missing = f"Its runs are too few so far: {found[0][0]}: {found[0][2]}."
        words = f"{missing} {claim.note}".strip()
        return Verdict(claim, NOT_TESTED, words, section.name)
    failed = [c for c in told if not c[1]]
    shown = failed or told
    words = "; ".join(f"{text}: {evidence}" for text, _, evidence in shown[:2])
    if len(shown) > 2:
        words += f"; and {len(shown) - 2} more"
    waiting = [c for c in found if c[1] is None]
    if failed:
        verdict = CONTRARY
        held = f"{len(told) - len(failed)} of {len(told)} checks hold. "
    elif waiting:
        verdict = IN_PART
        held = f"Too few runs for {len(waiting)} of {len(found)} checks, such as: "
        held += f"{waiting[0][0]}. "
    else:
        verdict, held = CONFIRMED, ""
    words = f"{held}{words}."
    if section.complete:
        words += f" From {section.complete}."
    return Verdict(claim, verdict, f"{words} {claim.note}".strip(), section.name)


_DEFINITION = "A definition: what meets it is measured where it is used."
_DRAWING = "A drawing."
CLAIMS = (
    Claim(
        "RK24",
        "definition 4.1",
        "Weights align: cos(W, B) >= c for all t > T_c.",
        "fig3",
        "aligns",
    ),
    Claim(
        "RK24", "definition 4.2", "(alpha, beta)-alignment dominance.", note=_DEFINITION
    ),
    Claim(
        "RK24",
        "theorem 5.1",
        "Under dominance the loss is bounded: exponential at beta = 1, 1 / (alpha t + "
        "1 / L(0)) at beta = 2.",
        "proposition_5_7",
        "theorem 5.1's bound",
        "At other beta the printed bound is not L(0) at t = 0; ours is what "
        "integrating dL/dt = -alpha L^beta gives.",
    ),
    Claim(
        "RK24",
        "theorem 5.2",
        "A unit's <W2, B2> - ½|W1|² is conserved by the flow of FA and sign-FA.",
        "theorem_5_2",
        "the drift",
        "Without biases; with them ½ b² belongs to it.",
    ),
    Claim(
        "RK24",
        "proposition 5.3",
        "Under sign-FA cos(W, B) >= 1 / sqrt(n).",
        "fig3",
        "sign-FA's alignment above 1/sqrt",
    ),
    Claim(
        "RK24",
        "lemma 5.4",
        "From w = b = 1 and a small first layer, w > 0 for ever.",
        "proposition_5_7",
        "w2 > 0 throughout",
    ),
    Claim("RK24", "definition 5.5", "Orthogonally separable data.", note=_DEFINITION),
    Claim("RK24", "definition 5.6", "Nearly orthogonal data.", note=_DEFINITION),
    Claim(
        "RK24",
        "proposition 5.7",
        "Dominance with beta = 2, so convergence, on separable data.",
        "proposition_5_7",
        "^separable|under the bound of the alpha known|at least the known one",
        "The proof has c where two examples meet in each term: c² here.",
    ),
    Claim(
        "RK24",
        "proposition 5.7, nearly orthogonal",
        "The same on nearly orthogonal data, for any slope c > 0.",
        "proposition_5_7",
        "^nearly orthogonal: dominance",
        "With c², near orthogonality guarantees an alpha only if c is not too small; "
        "the measured alpha is positive all the same.",
    ),
    Claim(
        "RK24",
        "hypothesis 1",
        "The conservation law holds in training.",
        "fig2",
        "ratio is conserved",
        "The bound of proposition 5.3 in training: see figure 3.",
    ),
    Claim(
        "RK24",
        "hypothesis 2",
        "Alignment with the true gradient helps accuracy.",
        "hypothesis2",
        "hypothesis 2",
    ),
    Claim("RK24", "figure 1", "The setting.", note=_DRAWING),
    Claim(
        "RK24",
        "figure 2",
        "The conserved ratio stays near 1; deviations are larger in narrow networks "
        "and under FA.",
        "fig2",
        "ratio|deviation",
    ),
    Claim(
        "RK24",
        "figure 3",
        "Alignment rises, adaFA's is above FA's, and sign-FA's above its bound, but "
        "not monotonic.",
        "fig3",
        "alignment (above|rises|is not)",
        "adaFA starts at 1, W being B, and can only fall.",
    ),
    Claim(
        "RK24",
        "figure 4",
        "Benign overfitting: noise is fitted, test loss falls with width, and "
        "networks generalize despite it.",
        "noise_fitted",
        "noise is fitted|benign|test loss at the largest",
        "Of FA alone, one seed. By the printed schedule noise is not fitted.",
    ),
    Claim(
        "RK24",
        "table 1",
        "Accuracies of LeNet on CIFAR-100 subsets: FA's the lowest, then adaFA's, "
        "sign-FA's, GD's.",
        "table1",
        "above|agrees",
        "Ours are other classes than the paper's: see the ratios to GD.",
    ),
    Claim(
        "RK24",
        "table 2",
        "Accuracies of ResNet-18 on Tiny-ImageNet subsets.",
        "table2",
        "above|agrees",
        "An excerpt of the data was trained: see table2_excerpt.",
    ),
    Claim(
        "RK24",
        "table 3",
        "Deviation of the ratio from 1, by width and method.",
        "table3",
        "the deviation agrees",
    ),
    *(
        Claim(
            "RK24",
            f"figure {number}",
            f"Alignment of LeNet's layers at {classes} classes: FA's rises, most in "
            "the output layer, and adaFA's is above it.",
            f"fig{number}",
            f"^{classes} classes.*alignment (above|rises)",
        )
        for number, classes in ((5, 10), (6, 25), (7, 50))
    ),
    Claim(
        "RK24",
        "figures 5 to 7",
        "Alignment falls with the number of classes, sign-FA's least.",
        "alignment_by_classes",
        "falls .*with the number of classes",
    ),
    Claim(
        "RK23",
        "theorem 5.1",
        "The layers' <W2, B> - ½|W1|² is conserved.",
        "rk23",
        "conserved ratio|ledger",
    ),
    Claim(
        "RK23",
        "corollary of theorem 5.1",
        "From W2(0) = B, <W2, B> >= |W2(0)|² - ½|W1(0)|².",
        "rk23_theorems",
        "the corollary",
    ),
    Claim(
        "RK23",
        "theorem 5.2",
        "From W1(0) in the span of the data FA goes to the minimum-norm solution.",
        "rk23_theorems",
        "^W1 (zero|printed, projected)",
    ),
    Claim(
        "RK23",
        "theorem 5.2, rate",
        "The error falls exponentially.",
        "rk23_theorems",
        "falls as e",
    ),
    Claim(
        "RK23",
        "lemma A.1",
        "What starts in the span of the data stays there.",
        "rk23_theorems",
        "lemma A.1",
    ),
    Claim(
        "RK23",
        "section 6",
        "From the printed start N(0, 1/10) the weights equal the pseudoinverse "
        "solution to three digits.",
        "rk23_theorems",
        "^W1 printed: ",
        "All of the distance is off the span, where no step reaches.",
    ),
    Claim(
        "RK23",
        "figure 1",
        "The conserved ratio is 1 in linear and ReLU networks.",
        "rk23",
        "conserved ratio",
    ),
    Claim(
        "RK23",
        "figure 2",
        "The loss falls in linear and ReLU networks.",
        "rk23",
        "the loss",
    ),
    Claim("S21", "figure 1", "The algorithm.", note=_DRAWING),
    Claim(
        "S21",
        "theorem 3.2",
        "Wide networks converge at a rate of gamma / 4, with lazy weights.",
        "theorem_3_2",
        r"\(3\.1\)|3\.2",
    ),
    Claim(
        "S21",
        "proposition 3.3",
        "gamma > 0 for Gaussian inputs with d of the order of n, of tanh and sigmoid.",
        "proposition_3_3",
        "gamma > 0",
    ),
    Claim(
        "S21",
        "definition 4.1",
        "A network aligns: cos(b, beta(t)) >= c for all t > T_c.",
        note=_DEFINITION,
    ),
    Claim(
        "S21",
        "theorem 4.2",
        "The contraction with a penalty of bounded sum.",
        "theorem_4_2",
        "contraction",
        "With eta lambda |y|, as in the appendix; the statement prints lambda |y|.",
    ),
    Claim(
        "S21",
        "theorem 4.3",
        "The same for linear networks, n > d too.",
        "theorem_4_3",
        "contraction",
    ),
    Claim("S21", "definition 4.4", "Isometric data.", note=_DEFINITION),
    Claim(
        "S21",
        "proposition 4.5",
        "Gaussian inputs are isometric to epsilon if d is of the order (n / epsilon) "
        "log(1 / epsilon).",
        "proposition_4_5",
        "M / gamma|as printed",
        "They are, but with d of the order n / epsilon².",
    ),
    Claim(
        "S21",
        "theorem 4.6",
        "Alignment stays after a penalty that ends at T ~ sqrt(p), by a constant that "
        "does not depend on p, n, d or eta.",
        "theorem_4_6",
        r"^isometric, (cutoff|exponential|inverse).*sqrt",
    ),
    Claim(
        "S21",
        "figure 2",
        "Alignment falls with p without a penalty, rises with it; the loss converges, "
        "the slower the larger lambda, to a positive number.",
        "figure2_steps",
        "penalty|lambda",
        "With independent examples (n < d), none of which leaves all ReLUs at zero, no "
        "weights are at rest under a constant penalty on beta alone: W rests where "
        "e = 0 only, and there beta shrinks.",
    ),
    Claim(
        "S21",
        "figure 3",
        "On MNIST alignment and accuracy rise with lambda.",
        "song_mnist",
        "the paper's start",
    ),
    Claim(
        "S21",
        "lemma A.1",
        "The expected kernel is near a simple matrix for Gaussian inputs.",
        "lemma_a_1",
        r"^lemma A\.1",
    ),
    Claim(
        "S21",
        "lemma A.2",
        "Sizes of b, beta(0) and e(0) at the start.",
        "lemmas_a_2_b_2",
        r"^lemma A\.2",
    ),
    Claim(
        "S21",
        "lemma A.3",
        "At the start G's smallest eigenvalue is near gamma and |H| small.",
        "lemma_a_3",
        r"^lemma A\.3",
        "(A.9) leaves <x_i, x_j> out of its second expression.",
    ),
    Claim(
        "S21",
        "lemma A.4",
        "Weights move little while errors contract.",
        "lemmas_a_4_a_7",
        r"^lemma A\.4",
    ),
    Claim(
        "S21",
        "lemma A.5",
        "Errors contract while weights move little.",
        "lemmas_a_4_a_7",
        r"^lemma A\.5",
    ),
    Claim(
        "S21",
        "lemma A.6",
        "As A.4 with a penalty.",
        "lemmas_a_4_a_7",
        r"^lemma A\.6",
        "What the penalty itself takes of beta(0) is missing in (A.14). Theorem 4.2's "
        "contraction holds all the same.",
    ),
    Claim(
        "S21",
        "lemma A.7",
        "As A.5 with a penalty.",
        "lemmas_a_4_a_7",
        r"^lemma A\.7",
    ),
    Claim(
        "S21",
        "lemma B.1",
        "The recursion of the errors of linear networks.",
        "lemmas_b_1_b_5",
        r"^lemma B\.1",
        "I is of size n, not d.",
    ),
    Claim(
        "S21",
        "lemma B.2",
        "Sizes of b, beta(0) and W(0) at the start.",
        "lemmas_a_2_b_2",
        r"^lemma B\.2",
        "Used at a fixed epsilon, where the order in it does not matter.",
    ),
    Claim(
        "S21",
        "lemma B.3",
        "beta aligns where a sum of errors is large beside another.",
        "lemmas_b_1_b_5",
        r"^lemma B\.3",
        "The inner sum of S ends at i - 1, as in lemma B.1, not at t - 1.",
    ),
    Claim(
        "S21",
        "lemma B.4",
        "While the penalty lasts e is along -y.",
        "lemmas_b_1_b_5",
        r"^lemma B\.4",
        "tau is C / (eta lambda); C / (n lambda) is printed.",
    ),
    Claim(
        "S21",
        "lemma B.5",
        "At T the sums of lemma B.3 are in proportion.",
        "lemmas_b_1_b_5",
        r"^lemma B\.5",
    ),
    Claim(
        "S21",
        "lemma C.1",
        "A Gaussian matrix is isometric on a subspace, but with a probability of "
        "(c / epsilon)^k exp(-gamma epsilon m).",
        "lemmas_c_1_c_2",
        r"^lemma C\.1",
        "These shares go with epsilon² in the exponent.",
    ),
    Claim(
        "S21",
        "corollary C.2",
        "Lemma C.1 at k = n.",
        "lemmas_c_1_c_2",
        r"^corollary C\.2",
        "As lemma C.1. I is of size n, not m.",
    ),
    Claim(
        "S21",
        "lemma C.3",
        "Tails of chi squared.",
        "lemmas_c_3_c_4",
        r"^lemma C\.3",
    ),
    Claim(
        "S21",
        "lemma C.4",
        "Tails of products of Gaussian vectors.",
        "lemmas_c_3_c_4",
        r"^lemma C\.4",
        "With 2 exp(-t): 2 exp(t), as printed, is above 1.",
    ),
)
