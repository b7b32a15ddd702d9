"""The audit: whether a claim that a deep network learns is real, and why."""

import dataclasses
import math

import keras
import numpy as np

from keras_fa import _keras
from keras_fa.analysis import _survey
from keras_fa.analysis._alignment import Alignment, layer_keys
from keras_fa.layers import forward_variables
from keras_fa.models.freezing import ends

LEARNS = "learns with depth"
NOTHING = "depth adds nothing"
UNMEASURABLE = "not measurable"
UNDECIDED = "undecided"

# The thresholds, which `audit` explains.
GROWTH = 100.0
ROUNDINGS = 10.0
CHANCES = 3.0
GAIN = 0.02
RANK_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class AuditRow:
    """What an audit knows of one layer, block or sum of a residual stream.

    Attributes:
        layer: Its key: its name, or its path where the name repeats.
        norm: Norm of its output h, the root mean square over examples.
        growth: That over the norm at initialisation; None without one.
        trains: Whether a weight of its own trains; None where it has none.
        moved: |W - W0| / |W0| of its weights; None where it has none or the
            initialisation is not known.
        signal: `keras_fa.analysis` alignment of the error signals at h, per example.
        gradient: The same of the gradients of its weights.
        chance: What a cosine of gradients has to be above to be none of chance; None
            where no cosine is.
        floor: The norm below which the true signal is not measurable.
        rank: Effective rank of the error signal through the feedback; None where it is
            not measurable.
        true_rank: That of the true error signal.
        full_rank: The largest that there could be.
        unmeasurable: Why its cosines and ranks mean nothing; None where they do.
    """

    layer: str
    norm: float | None = None
    growth: float | None = None
    trains: bool | None = None
    moved: float | None = None
    signal: Alignment | None = None
    gradient: Alignment | None = None
    chance: float | None = None
    floor: float | None = None
    rank: float | None = None
    true_rank: float | None = None
    full_rank: int | None = None
    unmeasurable: str | None = None

    @property
    def signal_cosine(self):
        """cos of the error signals; None where it is not measurable."""
        return None if self.unmeasurable else _cosine(self.signal)

    @property
    def cosine(self):
        """cos of the gradients of its weights; None where it is not measurable."""
        return None if self.unmeasurable else _cosine(self.gradient)

    def to_dict(self):
        """Texts, numbers and None alone, norms of signals and gradients included."""
        found = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("signal", "gradient", "unmeasurable")
        }
        found["signal_cosine"], found["cosine"] = self.signal_cosine, self.cosine
        for name in ("signal", "gradient"):
            terms = getattr(self, name)
            found[f"true_{name}_norm"] = terms and terms.true_norm
            found[f"feedback_{name}_norm"] = terms and terms.feedback_norm
        found["unmeasurable"] = self.unmeasurable
        return {key: _number(value) for key, value in found.items()}


@dataclasses.dataclass(frozen=True, repr=False)
class Verdict:
    """What `keras_fa.audit` found; prints as a table.

    Attributes:
        verdict: "learns with depth", "depth adds nothing", "not measurable" or
            "undecided".
        reasons: Sentences, the one that decided first.
        rows: `AuditRow` of each place, from the input to the output.
        loss: The loss on the batch.
        scores: `{name: mean accuracy}` of the network ("trained") and its baselines.
        gain: The network's less that of its harder baseline; None without them.
    """

    verdict: str
    reasons: tuple
    rows: tuple
    loss: float
    scores: dict
    gain: float | None

    def __repr__(self):
        return f"Verdict({self.verdict!r}: {self.reasons[0]})"

    def __str__(self):
        head, *body = self.table()
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = [
            "  ".join(
                text.ljust(width) if number == 0 else text.rjust(width)
                for number, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (head, *body)
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        why = [f"- {reason}" for reason in self.reasons]
        return "\n".join([f"Verdict: {self.verdict}", *why, "", *lines])

    def table(self):
        """Headings and a line for each row, lists of texts.

        "n. m." is not measurable; nothing stands where there is nothing to measure.
        """
        return [_COLUMNS, *map(_cells, self.rows)]

    def to_dict(self):
        """Nested dicts and lists of texts, numbers and None, as JSON holds them."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "loss": _number(self.loss),
            "scores": dict(self.scores),
            "gain": self.gain,
            "layers": [row.to_dict() for row in self.rows],
        }

    def to_frame(self):
        """The rows as a `pandas.DataFrame`, a line for each layer."""
        import pandas as pd

        return pd.DataFrame([row.to_dict() for row in self.rows])


_COLUMNS = (
    "layer",
    "norm",
    "growth",
    "moved",
    "true signal",
    "cos(signal)",
    "true grad.",
    "feedback grad.",
    "cos(grad.)",
    "rank",
    "true rank",
)


def _cells(row):
    """A line of the table."""

    def text(value, form):
        return "" if value is None else format(value, form)

    def measured(terms, value, form):
        return "n. m." if terms is not None and row.unmeasurable else text(value, form)

    signal, gradient = row.signal, row.gradient
    moved = "frozen" if row.trains is False else text(row.moved, ".2g")
    return (
        row.layer,
        text(row.norm, ".3g"),
        text(row.growth, ".3g"),
        moved,
        text(signal and signal.true_norm, ".2g"),
        measured(signal, row.signal_cosine, ".2f"),
        text(gradient and gradient.true_norm, ".2g"),
        text(gradient and gradient.feedback_norm, ".2g"),
        measured(gradient, row.cosine, ".2f"),
        measured(signal, row.rank, ".1f"),
        measured(signal, row.true_rank, ".1f"),
    )


def audit(
    model,
    x,
    y,
    loss=None,
    *,
    reference=None,
    score=None,
    baselines=None,
    sample_weight=None,
    loss_weights=None,
):
    """Whether a claim that a deep network learns is real, with the reasons.

    Accuracy and one cosine can both look well while the depth of a network adds
    nothing (arXiv 2606.21126). The audit has five parts:

    1. *Growth*: the norm of each output h, the root mean square over examples, against
       that at initialisation. Local objectives reward larger outputs of a block, and a
       last LayerNorm hides it. More than 100 times is told. No threshold is published;
       `results/audit.csv` has at most 7 under backpropagation and FA, 25 under direct
       feedback, and 18,000 and 25,000 under that at the outputs of blocks.
    2. *The true gradient* at each output, dL/dh of an example's own loss, against the
       rounding floor. Below it a cosine means nothing, and the layer is not measurable.
       The floor is the larger of two. First, the epsilon of the loss's dtype: 1.2e-7 in
       float32, since the error p - y at the output is only known to that; the published
       floor of 1e-7 is this one. Second, 10 times the norm of what the signal changes
       by when each trained weight changes by its last digit in the dtype that the
       layers compute in: a cosine is then known to about 0.1.
    3. *Cosines* of the feedback gradient of each layer's weights with the true one, and
       of the error signals, both norms beside them. Directions drawn at random have a
       cosine of 0 +- 1/sqrt(n) for n weights; one that is not above three times that is
       told.
    4. *Depth utility*: the accuracy of the network against the same one trained with
       the same budget, its body frozen at initialisation or its last layer alone
       trained (`keras_fa.models.freeze`). The harder baseline counts. At least 2 points
       above it mean that the depth learns: the threshold of arXiv 2606.21126.
    5. *Effective rank* of the error signal (arXiv 2606.11123), with examples and
       positions as rows and channels as columns: the participation ratio
       `(sum s^2)^2 / sum s^4` of its singular values s. Less than half of that of the
       true signal is told; the half is our choice, as none is published.

    The fourth part decides, as it alone speaks of what was learned: "learns with
    depth" or "depth adds nothing". A body whose weights do not train or stand where
    they began adds nothing either. Without scores the verdict is "not measurable" where
    the true gradient is so at a layer of the body, else "undecided".

    Args:
        model: A built Keras model with feedback layers, of whatever kind; nothing in it
            changes.
        x: Inputs of one batch, as the model takes them; some hundred examples.
        y: Targets, as the loss takes them.
        loss: As `compile` takes it, a mean over examples; None takes the compiled
            model's.
        reference: The network at initialisation: a model made in the same way, or the
            `Verdict` of an audit before training. From the same seed a model also tells
            how far the weights have moved.
        score: Accuracy of the network on its test set, from 0 to 1, or a list of those
            of several seeds.
        baselines: `{name: accuracy or list}` of the baselines.
        sample_weight: As for `keras_fa.analysis.gradient_alignment`.
        loss_weights: Likewise.

    Returns:
        `keras_fa.analysis.Verdict`.

    Raises:
        ValueError: If a score comes without baselines or the reverse, or is no
            accuracy, or the reference is another network; else as
            `keras_fa.analysis.gradient_alignment` does.

    Example:
        >>> model = keras_fa.models.mlp((4,), (8, 8), 3)
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> keras_fa.audit(
        ...     model, x, y, loss, score=0.9, baselines={"body frozen": 0.89}
        ... ).verdict
        'depth adds nothing'
    """
    scores, errors = _scores(score, baselines)
    survey = _survey.Survey(model, loss, True, loss_weights)
    norms, start = _initialisation(model, reference, x)
    found = survey(x, y, sample_weight)
    rows = rows_of(model, found, norms, start)
    reasons = []
    verdict = _depth(scores, errors, reasons)
    body = _body(model, rows)
    if body and all(row.trains is False or row.moved == 0 for row in body):
        verdict = NOTHING
        names = _few([f"{row.layer} ({_stillness(row)})" for row in body])
        reasons.insert(0, f"Nothing between its ends trained: {names}.")
    if verdict is None:
        verdict = _without_scores(body, reasons)
    reasons += _remarks(rows, reference)
    gain = None
    if scores:
        gain = scores["trained"] - max(v for k, v in scores.items() if k != "trained")
    return Verdict(verdict, tuple(reasons), tuple(rows), found[0], scores, gain)


def rows_of(model, found, norms=None, start=None):
    """The rows of a survey.

    Args:
        model: The model.
        found: From `Survey`.
        norms: `{key: norm}` at initialisation, or None.
        start: `{key: [variable]}` at initialisation, or None.

    Returns:
        List of `AuditRow`.
    """
    _, dtype, places, weights = found
    own = _survey.weights_of(model)
    training = {id(variable) for variable in forward_variables(model)}
    epsilon = _survey.EPSILON[dtype]
    rows = []
    for layer in [*places, *(name for name in own if name not in places)]:
        fields = {}
        if layer in own:
            fields["trains"] = any(id(v) in training for v in own[layer])
            if start is not None:
                fields["moved"] = _survey.distance(own[layer], start[layer])
        place, weight = places.get(layer), weights.get(layer)
        if place is not None:
            fields |= {
                "norm": place.norm,
                "signal": place.signal,
                "floor": max(epsilon, ROUNDINGS * place.rounding),
                "full_rank": place.full_rank,
            }
            if norms is not None and norms[layer] > 0:
                fields["growth"] = place.norm / norms[layer]
        if weight is not None:
            fields["gradient"] = weight.gradient
            # Of so few weights a cosine tells nothing.
            chance = CHANCES / math.sqrt(weight.size)
            fields["chance"] = chance if chance < 1 else None
        why = _why_unmeasurable(place, weight, fields.get("floor"))
        fields["unmeasurable"] = why
        if place is not None and why is None:
            fields |= {"rank": place.rank, "true_rank": place.true_rank}
        rows.append(AuditRow(layer, **fields))
    return rows


def _why_unmeasurable(place, weight, floor):
    """Why the cosines of a row mean nothing, or None."""
    if place is not None:
        if not _finite(place.norm, place.rounding, *_norms(place.signal)):
            return "not everything is finite"
        if place.signal.true_norm < floor:
            return (
                f"the true signal's norm {place.signal.true_norm:.2g} is under the "
                f"rounding floor {floor:.2g}"
            )
        if place.signal.feedback_norm == 0:
            return "no error arrives through the feedback"
    if weight is not None:
        norm, floor = weight.gradient.true_norm, ROUNDINGS * weight.rounding
        if not _finite(weight.rounding, *_norms(weight.gradient)):
            return "not everything is finite"
        if norm <= floor:
            return (
                f"the true gradient's norm {norm:.2g} is under {ROUNDINGS:g} times its "
                f"rounding error, {floor:.2g}"
            )
    return None


def _norms(alignment):
    return alignment.inner_product, alignment.true_norm, alignment.feedback_norm


def _finite(*values):
    return all(map(math.isfinite, values))


def _initialisation(model, reference, x):
    """Norms and variables at initialisation, under the keys of the model."""
    if reference is None:
        return None, None
    if isinstance(reference, Verdict):
        return {row.layer: row.norm for row in reference.rows}, None
    if not isinstance(reference, keras.Model):
        raise ValueError(
            "`reference` is the network at initialisation, a Keras model, or the "
            f"verdict of an audit before training. Received: {reference!r:.80}."
        )
    # Keras numbers layers without a name, so that twins differ in names.
    ours, its = _survey.weights_of(model), _survey.weights_of(reference)
    shapes = [
        [[tuple(v.shape) for v in own] for own in found.values()]
        for found in (ours, its)
    ]
    norms = _survey.norms(reference, x)
    # For the names alone one example does.
    one = keras.tree.map_structure(lambda part: part[:1], x)
    names = list(_survey.norms(model, one)) if shapes[0] == shapes[1] else []
    if len(names) != len(norms):
        raise ValueError(
            f"The reference '{reference.name}' is another network than "
            f"'{model.name}': the shapes or the order of their weights differ. Give "
            "one that was built in the same way."
        )
    return (
        dict(zip(names, norms.values(), strict=True)),
        dict(zip(ours, its.values(), strict=True)),
    )


def _scores(score, baselines):
    """(means, standard errors) of the network and its baselines, two dicts."""
    if (score is None) != (not baselines):
        raise ValueError(
            "Depth utility needs the network's `score` and those of its `baselines`, "
            "or neither. Received: "
            f"score={score!r}, baselines={baselines!r}."
        )
    if score is None:
        return {}, {}
    means, errors = {}, {}
    for name, values in {"trained": score, **baselines}.items():
        values = np.atleast_1d(np.asarray(values, np.float64))
        if values.size == 0 or not np.all((values >= 0) & (values <= 1)):
            raise ValueError(
                "Scores are accuracies from 0 to 1, one or a list of those of several "
                f"seeds. Received for {name}: {values.tolist()}."
            )
        means[name] = float(values.mean())
        if values.size > 1:
            errors[name] = float(values.std(ddof=1) / math.sqrt(values.size))
    return means, errors


def _depth(scores, errors, reasons):
    """What depth utility says, None without scores."""
    if not scores:
        return None
    harder = max((k for k in scores if k != "trained"), key=scores.get)
    gain = scores["trained"] - scores[harder]
    spread = ""
    if {"trained", harder} <= errors.keys():
        spread = f" +- {math.hypot(errors['trained'], errors[harder]):.3f}"
    # So that 0.52 - 0.50 counts as two points.
    learns = round(gain, 9) >= GAIN
    reasons.append(
        f"Its accuracy {scores['trained']:.3f} is {gain:+.3f}{spread} from that of its "
        f"harder baseline, {harder} ({scores[harder]:.3f}): "
        f"{'at least' if learns else 'less than'} the {GAIN:g} that count."
    )
    return LEARNS if learns else NOTHING


def _without_scores(body, reasons):
    why = (
        "Depth utility was not measured: no score and baselines were given "
        "(keras_fa.models.freeze makes them)."
    )
    blind = [row.layer for row in body if row.unmeasurable]
    if blind:
        reasons += [
            f"At {_few(blind)} nothing can be said of the direction of learning.",
            why,
        ]
        return UNMEASURABLE
    reasons.append(why)
    return UNDECIDED


def _body(model, rows):
    """The rows of layers with weights that are neither first nor last."""
    keys, by_name = layer_keys(model), {row.layer: row for row in rows}
    first, last = ends(model)
    spared = {id(p) for layer in (*first, *last) for p in _keras.layers_of(layer)}
    names = [key for identity, key in keys.items() if identity not in spared]
    rows = [by_name[name] for name in names if name in by_name]
    return [row for row in rows if row.trains is not None]


def _stillness(row):
    return "frozen" if row.trains is False else "as it was drawn"


def _remarks(rows, reference):
    """What the other parts tell, sentences."""
    found = []
    grown = [f"{r.layer} ({r.growth:.3g} times)" for r in rows if _above(r.growth)]
    if grown:
        found.append(
            f"Activations are more than {GROWTH:g} times as large as at "
            f"initialisation: {_few(grown)}."
        )
    reasons = {}
    for row in rows:
        if row.unmeasurable:
            reasons.setdefault(row.unmeasurable, []).append(row.layer)
    blind = [f"{_few(names)} ({why})" for why, names in reasons.items()]
    if blind:
        found.append(f"Not measurable: {_few(blind)}.")
    poor = [
        f"{row.layer} ({row.cosine:.2g}, chance {row.chance:.1g})"
        for row in rows
        if None not in (row.cosine, row.chance) and row.cosine <= row.chance
    ]
    if poor:
        found.append(f"The feedback gradient is no better than chance: {_few(poor)}.")
    narrow = [
        f"{row.layer} ({row.rank:.1f} of {row.true_rank:.1f})"
        for row in rows
        if row.rank is not None and row.rank < RANK_SHARE * row.true_rank
    ]
    if narrow:
        found.append(
            f"The feedback's error signal has less than {RANK_SHARE:g} of the true "
            f"one's effective rank: {_few(narrow)}."
        )
    if reference is None:
        found.append(
            "Growth was not measured: no initialisation was given (reference=)."
        )
    return found


def _above(growth):
    return growth is not None and growth > GROWTH


def _few(names):
    text = ", ".join(names[:4])
    return text if len(names) <= 4 else f"{text} and {len(names) - 4} more"


def _cosine(alignment):
    return None if alignment is None else _number(alignment.cosine)


def _number(value):
    """The value, None for a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
