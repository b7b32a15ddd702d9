"""Direct feedback: the output's error goes to each hidden layer by a way of its own."""

import math
import numbers

import keras

from keras_fa.registry import register
from keras_fa.rules.base import PACKAGE, FeedbackRule

KINDS = ("full", "shared", "low_rank", "sparse")
SIGNALS = ("error", "sign", "target")
TAPS = ("layers", "blocks")


@register("rule", "dfa")
@keras.saving.register_keras_serializable(PACKAGE)
class DirectFeedbackAlignment(FeedbackRule):
    """Direct feedback alignment (DFA): the hidden error is `e B_l^T`.

    e is the error at the model's output, dL/d(logits), and B_l, of shape
    (units of the hidden layer, outputs), is drawn once. Layers under the rule send
    nothing back themselves; `keras_fa.direct` gives a model the layer that does, and
    the builders do so by themselves. Source: Nokland (2016); for the kinds, the
    TinyDFA of Launay et al. (2020), arXiv 2006.12878 ("shared"), and Crafton et al.
    (2019), arXiv 1903.02083 ("sparse").

    Args:
        kind: "full", a B_l for each layer; "shared", one B, of which each layer takes
            as many rows as it has units, over the root of the widest; "low_rank",
            `B_l = U V^T` of a given rank; "sparse", a given number of nonzeros for each
            unit.
        signal: "error"; "sign", the error's signs; "target", the targets y* in its
            place, told by the error's negative entries: for softmax or sigmoid with
            cross-entropy and targets 0 and 1. A prediction that rounds to its target
            has no such entry and gives no signal. The last two are scaled like the
            error of a mean loss, by 1/N and the optimizer's loss scale; on several
            replicas right for batches that they share evenly.
        rank: Of "low_rank", an integer.
        nonzeros: Of "sparse", an integer.
        taps: Where the error enters. "layers", at the input of each layer, which sends
            nothing back itself; "blocks", at the output of each block of a residual
            network, within which the error goes back through the transposes: direct
            feedback as arXiv 2606.21126 has it.
        ghost: Whether each layer gets a ghost readout G_l, trained on h_l^T e and used
            by nothing, with which its conservation law can be told: `<G_l[j], B_l[j]>`
            less the producers' half squared norm.
        initializer: What draws the B_l of "full" and "sparse"; None is uniform within
            1/sqrt(units). The other kinds have a scale of their own and take none.
        seed: Integer, or None to follow `keras.utils.set_random_seed`.
        wired: Whether the model has the layer that brings the error. Set by
            `keras_fa.direct`.

    Raises:
        ValueError: If an argument is none of these, or has no meaning for the kind.
    """

    label, color = "DFA", "#cc3311"
    learned = False

    def __init__(
        self,
        kind="full",
        signal="error",
        rank=None,
        nonzeros=None,
        ghost=False,
        initializer=None,
        seed=None,
        wired=False,
        taps="layers",
    ):
        for name, value, known in (
            ("kind", kind, KINDS),
            ("signal", signal, SIGNALS),
            ("taps", taps, TAPS),
        ):
            if value not in known:
                raise ValueError(
                    f"The {name} of {type(self).__name__} must be one of "
                    f"{', '.join(known)}. Received: {name}={value!r}."
                )
        for name, value, owner in (
            ("rank", rank, "low_rank"),
            ("nonzeros", nonzeros, "sparse"),
        ):
            fits = isinstance(value, numbers.Integral) and value >= 1
            if (value is not None or kind == owner) and not (fits and kind == owner):
                raise ValueError(
                    f'{name} must be a positive integer for kind="{owner}", and None '
                    f"for the others. Received: kind={kind!r}, {name}={value!r}."
                )
        if initializer is not None and kind not in ("full", "sparse"):
            raise ValueError(
                'initializer draws the B_l of kind="full" and "sparse"; the others '
                "have a scale of their own and take None. Received: "
                f"kind={kind!r}, initializer={initializer!r}."
            )
        self.kind, self.signal, self.taps = kind, signal, taps
        self.rank, self.nonzeros = rank, nonzeros
        self.ghost = ghost
        self.initializer = None
        if initializer is not None:
            self.initializer = keras.initializers.get(initializer)
        self.seed = seed
        self.wired = wired

    def backward_kernel(self, kernel):
        if not self.wired:
            raise ValueError(
                f"A layer is under the rule {self!r}, and nothing brings the output's "
                "error to the layers below it. Give the finished model to "
                "keras_fa.direct(model), or the rule to one of the builders in "
                "keras_fa.models, which does it."
            )
        return kernel if self.taps == "blocks" else None

    def potential(self, kernel):
        return (kernel, None) if self.taps == "blocks" else None

    def limit(self, units, outputs):
        """The half width of the uniform draw of B_l."""
        return 1 / math.sqrt(units)

    def get_config(self):
        initializer = self.initializer
        if initializer is not None:
            initializer = keras.initializers.serialize(initializer)
        return {
            "kind": self.kind,
            "signal": self.signal,
            "rank": self.rank,
            "nonzeros": self.nonzeros,
            "ghost": self.ghost,
            "initializer": initializer,
            "seed": self.seed,
            "wired": self.wired,
            "taps": self.taps,
        }


@register("rule", "drtp")
@keras.saving.register_keras_serializable(PACKAGE)
class DirectRandomTargetProjection(DirectFeedbackAlignment):
    """Direct random target projection (DRTP): the hidden error is `y* B_l^T / N`.

    `DirectFeedbackAlignment` with the targets for a signal and B_l drawn as He did,
    uniform within sqrt(6 / outputs); the authors' code counts the fans the other way
    and draws within sqrt(6 / units). Source: Frenkel, Lefebvre and Bol (2021),
    arXiv 1909.01311. Arguments are those of `DirectFeedbackAlignment`.
    """

    label, color = "DRTP", "#009988"

    def __init__(self, signal="target", **kwargs):
        super().__init__(signal=signal, **kwargs)

    def limit(self, units, outputs):
        return math.sqrt(6 / outputs)


@register("rule", "dkp")
@keras.saving.register_keras_serializable(PACKAGE)
class DirectKolenPollack(DirectFeedbackAlignment):
    """Direct Kolen-Pollack (DKP): DFA whose B_l is trained on `h_l^T e`.

    B_l learns what a readout of the hidden layer would. A consumer conserves
    `1/2 |B_l[j]|^2`. Source: Webster et al. (2020), after Akrout et al. (2019).
    Arguments are those of `DirectFeedbackAlignment`; the kind is "full".

    Raises:
        ValueError: If another kind is asked for.
    """

    label, color = "DKP", "#ee7733"
    learned = True

    def __init__(self, kind="full", **kwargs):
        if kind != "full":
            raise ValueError(
                'DirectKolenPollack learns a whole B for each layer: kind="full". '
                f"Received: kind={kind!r}."
            )
        super().__init__(kind=kind, **kwargs)
