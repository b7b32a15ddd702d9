"""Figures from run folders. Nothing here trains, builds or loads a model."""

import math
import pathlib

import matplotlib.figure
import numpy as np

from keras_fa import analysis
from keras_fa.lab import run_folder

_LABELS = {"backprop": "BP", "fa": "FA", "ada_fa": "adaFA", "sign_fa": "sign-FA"}
COLORS = {
    "backprop": "#444444",
    "fa": "#0072b2",
    "ada_fa": "#d55e00",
    "sign_fa": "#009e73",
}


def potential_ratio(runs, path):
    """Draws `Phi(t) / Phi(0)` against epochs, a panel for each conserved group.

    Phi is the layer-level sum over the group's units. Theorem 5.2 of Robertson and
    Koyejo (2024) predicts 1.

    Args:
        runs: Run folders, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run has a conserved group.
    """
    frames = _frames(runs)

    def draw(axis, group):
        axis.axhline(1.0, color="#bbbbbb", linewidth=1, zorder=0)
        for rule, frame in frames:
            if f"potential/{group}" in frame:
                phi = frame[f"potential/{group}"]
                axis.plot(frame["epoch"], phi / phi.iloc[0], **_line(rule))
        axis.set(title=f"conserved potential of {group}", xlabel="epoch")
        axis.set(ylabel=r"$\Phi(t)\,/\,\Phi(0)$")

    return grid(_keys(frames, "potential/"), draw, path)


def weight_alignment(runs, path):
    """Draws `cos(W, B)` and its guaranteed lower bounds, for each layer but the first.

    The first layer's feedback is left out because nothing reads it: the gradient with
    respect to the network's input is not needed. Bounds are dotted: `1/sqrt(n)` for
    sign-FA, proposition 5.3 of Robertson and Koyejo (2024), lemma 5.4 for scalar
    outputs.

    Args:
        runs: Run folders, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run logged the alignment of a second layer.
    """
    frames = _frames(runs)

    def draw(axis, layer):
        for rule, frame in frames:
            if f"alignment/{layer}" not in frame:
                continue
            axis.plot(frame["epoch"], frame[f"alignment/{layer}"], **_line(rule))
            bound = f"alignment_bound/{layer}"
            if bound in frame and rule != "backprop":
                color = COLORS.get(rule)
                axis.plot(frame["epoch"], frame[bound], ":", color=color, linewidth=1.2)
        axis.set(title=f"alignment of {layer}", xlabel="epoch", ylabel=r"$\cos(W, B)$")

    return grid(_keys(frames, "alignment/")[1:], draw, path)


def accuracy(runs, path):
    """Draws the accuracy on the training and the test set against epochs, in percent.

    Args:
        runs: Run folders, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run logged an accuracy.
    """
    frames = [(r, f) for r, f in _frames(runs) if "val_accuracy" in f]
    titles = {"accuracy": "training accuracy", "val_accuracy": "test accuracy"}

    def draw(axis, key):
        for rule, frame in frames:
            axis.plot(frame["epoch"], 100 * frame[key], **_line(rule))
        axis.set(title=titles[key], xlabel="epoch", ylabel="%")

    return grid(list(titles) if frames else [], draw, path)


def drift_against_ledger(runs, path):
    """Draws the drift of each potential and what the ledger says it must be.

    Measured drift of `sum_j Phi_j` as a line, the ledger's prediction (squared steps,
    sign flips and first order together) as dots on it: see `keras_fa.analysis.Ledger`.

    Args:
        runs: Run folders with `ledger/...` in their logs, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run kept a ledger.
    """
    frames = _frames(runs)
    groups = _keys(frames, "ledger/measured/")

    def draw(axis, group):
        for rule, frame in frames:
            if f"ledger/measured/{group}" not in frame:
                continue
            terms = ("squared_steps", "flips", "first_order")
            predicted = sum(frame[f"ledger/{term}/{group}"] for term in terms)
            measured = frame[f"ledger/measured/{group}"]
            axis.plot(frame["epoch"], measured, **_line(rule))
            dots = slice(None, None, max(1, len(frame) // 15))
            axis.plot(
                frame["epoch"][dots], predicted[dots], "o", color="black", markersize=3
            )
        axis.set(title=f"drift of {group}", ylabel=r"$\Phi(t) - \Phi(0)$")
        axis.set(xlabel="epoch   (dots: the ledger)")

    return grid(groups, draw, path)


def gradient_decomposition(runs, path):
    """Draws the factors of equation (1) against epochs.

    `dL/dt = -cos(omega) |gradient| |feedback gradient|`, Robertson and Koyejo (2024):
    the cosine, the two norms and their product.

    Args:
        runs: Run folders with `gradient_cosine` in their logs, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run logged it.
    """
    frames = [(r, f) for r, f in _frames(runs) if "gradient_cosine" in f]
    factors = {
        "gradient_cosine": r"$\cos\,\omega$",
        "gradient_norm": r"$\|\nabla L\|$",
        "feedback_gradient_norm": r"$\|\widetilde\nabla L\|$",
        "gradient_inner": r"$\langle\nabla L, \widetilde\nabla L\rangle$",
    }

    def draw(axis, key):
        for rule, frame in frames:
            axis.plot(frame["epoch"], frame[key], **_line(rule))
        if key != "gradient_cosine":
            axis.set_yscale("log")
        axis.set(title=factors[key], xlabel="epoch")

    return grid(list(factors) if frames else [], draw, path)


def loss_bound(runs, path, beta=2.0):
    """Draws the loss and theorem 5.1's bound on it against the time of the flow.

    The bound of Robertson and Koyejo (2024) takes the largest alpha for which the whole
    run satisfied (alpha, beta)-alignment dominance, definition 4.2 with L* = 0. Time is
    the sum of the learning rates. The theorem speaks of the flow, on one fixed set:
    full-batch runs with small steps and `gradient_alignment` on the full batch.

    Args:
        runs: Run folders with `gradient_inner` in their logs, a panel each.
        path: Image file to write.
        beta: Exponent of the dominance, at least 1.

    Returns:
        The path, or None where no run had alpha > 0 throughout.
    """
    panels = {}
    for rule, frame in _frames(runs):
        if "gradient_inner" not in frame:
            continue
        frame = frame[["flow_time", "gradient_inner", "gradient_loss"]].dropna()
        inner, loss = (frame[k].to_numpy() for k in ("gradient_inner", "gradient_loss"))
        if len(loss) and np.all(inner > 0):
            alpha = analysis.running_alpha(inner, loss, beta)[-1]
            panels[rule] = (frame["flow_time"].to_numpy(), loss, alpha)

    def draw(axis, rule):
        time, loss, alpha = panels[rule]
        bound = analysis.loss_bound(time, alpha, beta, loss[0])
        axis.plot(time, bound, "--", color="#888888", label="bound")
        axis.plot(time, loss, **_line(rule))
        axis.set(title=rf"{_LABELS.get(rule, rule)}: $\alpha$ = {alpha:.3g}")
        axis.set(xlabel="time of the flow", ylabel="loss", yscale="log")

    return grid(list(panels), draw, path, legend="every")


def search(table, objective, space, path):
    """Draws the objective of the trials of a search against each tuned field.

    Args:
        table: What `keras_fa.tuning.Search.table` returns.
        objective: Name of its column with the objective.
        space: The fields: see `keras_fa.tuning.check_space`.
        path: Image file to write.

    Returns:
        The path, or None where no trial has finished.
    """
    table = table[table[objective].notna()]

    def draw(axis, field):
        if field == "best so far":
            best = np.minimum if objective.endswith("loss") else np.maximum
            in_order = best.accumulate(table.sort_values("trial")[objective].to_numpy())
            axis.step(range(1, len(in_order) + 1), in_order, where="post", marker="o")
            axis.set(title=field, xlabel="trials finished")
        else:
            values = table[field]
            if "choices" in space[field]:
                choices = [str(choice) for choice in space[field]["choices"]]
                values = [choices.index(str(value)) for value in values]
                axis.set_xticks(range(len(choices)), choices)
            axis.scatter(values, table[objective], s=18)
            axis.margins(x=0.1)
            axis.set(xlabel=field)
            if space[field].get("log"):
                axis.set_xscale("log")
        axis.set(ylabel=objective)

    items = ["best so far", *space] if len(table) else []
    return grid(items, draw, path, legend="none")


def _frames(runs):
    """(rule, log) of each run folder."""
    return [
        (run_folder.read_config(run)["rule"], run_folder.read_frame(run))
        for run in runs
    ]


def _keys(frames, prefix):
    """What stands behind a prefix in the logs, in order, each once."""
    names = [
        key.removeprefix(prefix)
        for _, frame in frames
        for key in frame
        if key.startswith(prefix)
    ]
    return list(dict.fromkeys(names))


def _line(rule):
    return {
        "label": _LABELS.get(rule, rule),
        "color": COLORS.get(rule),
        "linewidth": 1.6,
    }


def grid(items, draw, path, legend="first"):
    """A figure with one panel for each item.

    Args:
        items: The items.
        draw: Function of (axis, item).
        path: Image file to write.
        legend: "first" or "every" panel, "outside" for one legend of all panels, or
            "none".

    Returns:
        The path, or None without items.
    """
    if not items:
        return None
    across = min(len(items), 4)
    down = math.ceil(len(items) / across)
    figure = matplotlib.figure.Figure(
        figsize=(3.8 * across + 1.0, 3.1 * down + 0.3), layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(items) :]:
        axis.remove()
    axes = axes[: len(items)]
    for axis, item in zip(axes, items, strict=True):
        axis.margins(x=0)
        draw(axis, item)
        axis.spines[["top", "right"]].set_visible(False)
    if legend == "outside":
        handles = {}
        for axis in axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(), handles.keys(), loc="outside right center", frameon=False
        )
    elif legend != "none":
        for axis in axes if legend == "every" else axes[:1]:
            axis.legend(frameon=False)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
