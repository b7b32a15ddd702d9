"""Figures from logs of training. Nothing here trains, builds or loads a model.

What a figure calls `runs` is one log, a list of logs, or a dict from names to logs. A
log is any of these:

- the path of a run folder, or of the file of a `keras.callbacks.CSVLogger`;
- a `keras.callbacks.History`, which `fit` returns, or its dict `history`;
- a `pandas.DataFrame` with a row for each epoch.

A run is called by its name in the dict or in `labels`, or else by its feedback rule and
what tells it from others of the rule: its seed, or its folder.

Epochs count those that are over: epoch 0 is before training, and only run folders have
a line of it. Keras counts from 0 the epochs that begin, so its first line is drawn at
epoch 1. So is that of a DataFrame without a column `epoch`, or with a loss at epoch 0.

Every figure is returned as a `matplotlib.figure.Figure`, which a notebook shows and
`savefig` writes. pyplot knows nothing of it, so there is nothing to close.
"""

import math
import os
import warnings

import numpy as np

from keras_fa import analysis, registry
from keras_fa._extras import extra
from keras_fa.lab import run_folder

with extra("figures"):
    from keras_fa import _canvas, _logs
    from keras_fa._compass import aligning, aligning_animation

__all__ = [
    "accuracy",
    "aligning",
    "aligning_animation",
    "audit",
    "drift_against_ledger",
    "gradient_decomposition",
    "grid",
    "loss_bound",
    "potential_ratio",
    "search",
    "weight_alignment",
]


def potential_ratio(runs, path=None, *, groups=None, labels=None, ax=None):
    """Draws `Phi(t) / Phi(0)` against epochs, a panel for each conserved group.

    Phi is the layer-level sum over the group's units. Theorem 5.2 of Robertson and
    Koyejo (2024) predicts 1.

    Args:
        runs: One log or several, drawn together: see the head of this module.
        path: Image file to write as well, whole or not at all; None for none.
        groups: The names of the groups to draw, one or a list; None for all.
        labels: Names of the runs, in order; None for those that they have.
        ax: `matplotlib.axes.Axes` to draw in, where there is one panel to draw.

    Returns:
        `matplotlib.figure.Figure`, or None where no run has a conserved group.

    Raises:
        ValueError: If a group is unknown, labels do not fit the runs, or `ax` is given
            and there are several panels.
        TypeError: If something among the runs is no log.
        OSError: If a log is not there, or the image file cannot be written.
        keras_fa.results.RunFolderError: If a folder holds no run.
    """
    logs = _logs.read(runs, labels)

    def draw(axis, group):
        axis.axhline(1.0, color="#bbbbbb", linewidth=1, zorder=0)
        for log in logs:
            _line(axis, log, _potential_ratio(log.frame, group))
        axis.set(title=f"conserved potential of {group}", xlabel="epoch")
        axis.set(ylabel=r"$\Phi(t)\,/\,\Phi(0)$")

    known = [*_keys(logs, "potential_ratio/"), *_keys(logs, "potential/")]
    known = [
        group
        for group in dict.fromkeys(known)
        if any(_potential_ratio(log.frame, group) is not None for log in logs)
    ]
    return grid(known, draw, path, ax, groups, "groups")


def weight_alignment(runs, path=None, *, layers=None, labels=None, ax=None):
    """Draws `cos(W, B)` and its guaranteed lower bounds, for each layer but the first.

    The first layer's feedback is left out because nothing reads it: the gradient with
    respect to the network's input is not needed. Bounds are dotted: `1/sqrt(n)` for
    sign-FA, proposition 5.3 of Robertson and Koyejo (2024), lemma 5.4 for scalar
    outputs.

    Args:
        runs: As for `potential_ratio`.
        path: As for `potential_ratio`.
        layers: The names of the layers to draw, the first one too if it is named; None
            for all others.
        labels: As for `potential_ratio`.
        ax: As for `potential_ratio`.

    Returns:
        `matplotlib.figure.Figure`, or None where no run logged the alignment of a
        second layer.

    Raises:
        ValueError: As for `potential_ratio`, which has the other errors too.
    """
    logs = _logs.read(runs, labels)

    def draw(axis, layer):
        for log in logs:
            _line(axis, log, log.frame.get(f"alignment/{layer}"))
            bound = log.frame.get(f"alignment_bound/{layer}")
            # That of backpropagation, 1, is no news.
            if bound is not None and bound.min() < 1:
                axis.plot(log.frame["epoch"], bound, ":", color=log.color, lw=1.2)
        axis.set(title=f"alignment of {layer}", xlabel="epoch", ylabel=r"$\cos(W, B)$")

    known = _keys(logs, "alignment/")
    items = known if layers is not None else known[1:]
    return grid(items, draw, path, ax, layers, "layers")


def accuracy(runs, path=None, *, keys=None, labels=None, ax=None):
    """Draws the accuracy on the training and the test set against epochs, in percent.

    Args:
        runs: As for `potential_ratio`.
        path: As for `potential_ratio`.
        keys: "accuracy" (training set) or "val_accuracy" (test set); None for both.
        labels: As for `potential_ratio`.
        ax: As for `potential_ratio`.

    Returns:
        `matplotlib.figure.Figure`, or None where no run logged an accuracy.

    Raises:
        ValueError: As for `potential_ratio`, which has the other errors too.
    """
    logs = _logs.read(runs, labels)
    titles = {"accuracy": "training accuracy", "val_accuracy": "test accuracy"}

    def draw(axis, key):
        for log in logs:
            if key in log.frame:
                _line(axis, log, 100 * log.frame[key])
        axis.set(title=titles[key], xlabel="epoch", ylabel="%")

    known = [key for key in titles if any(key in log.frame for log in logs)]
    return grid(known, draw, path, ax, keys, "keys")


def drift_against_ledger(runs, path=None, *, groups=None, labels=None, ax=None):
    """Draws the drift of each potential and what the ledger says it must be.

    Measured drift of `sum_j Phi_j` as a line, the ledger's prediction (squared steps,
    sign flips and first order together) as dots on it: see `keras_fa.analysis.Ledger`.

    Args:
        runs: As for `potential_ratio`, with `ledger/...` in their logs.
        path: As for `potential_ratio`.
        groups: As for `potential_ratio`.
        labels: As for `potential_ratio`.
        ax: As for `potential_ratio`.

    Returns:
        `matplotlib.figure.Figure`, or None where no run kept a ledger.

    Raises:
        ValueError: As for `potential_ratio`, which has the other errors too.
    """
    logs = _logs.read(runs, labels)

    def draw(axis, group):
        for log in logs:
            measured = log.frame.get(f"ledger/measured/{group}")
            if measured is None:
                continue
            _line(axis, log, measured)
            terms = ("squared_steps", "flips", "first_order")
            predicted = sum(log.frame[f"ledger/{term}/{group}"] for term in terms)
            dots = slice(None, None, max(1, len(predicted) // 15))
            axis.plot(log.frame["epoch"][dots], predicted[dots], "k.", markersize=5)
        axis.set(title=f"drift of {group}", ylabel=r"$\Phi(t) - \Phi(0)$")
        axis.set(xlabel="epoch   (dots: the ledger)")

    known = _keys(logs, "ledger/measured/")
    return grid(known, draw, path, ax, groups, "groups")


def gradient_decomposition(runs, path=None, *, keys=None, labels=None, ax=None):
    """Draws the factors of equation (1) against epochs.

    `dL/dt = -cos(omega) |gradient| |feedback gradient|`, Robertson and Koyejo (2024):
    the cosine, the two norms and their product.

    Args:
        runs: As for `potential_ratio`, with `gradient_cosine` in their logs.
        path: As for `potential_ratio`.
        keys: Those of "gradient_cosine", "gradient_norm", "feedback_gradient_norm" and
            "gradient_inner" to draw; None for all.
        labels: As for `potential_ratio`.
        ax: As for `potential_ratio`.

    Returns:
        `matplotlib.figure.Figure`, or None where no run logged it.

    Raises:
        ValueError: As for `potential_ratio`, which has the other errors too.
    """
    logs = [log for log in _logs.read(runs, labels) if "gradient_cosine" in log.frame]
    factors = {
        "gradient_cosine": r"$\cos\,\omega$",
        "gradient_norm": r"$\|\nabla L\|$",
        "feedback_gradient_norm": r"$\|\widetilde\nabla L\|$",
        "gradient_inner": r"$\langle\nabla L, \widetilde\nabla L\rangle$",
    }

    def draw(axis, key):
        for log in logs:
            _line(axis, log, log.frame[key])
        # A logarithmic axis would hide an inner product that is negative.
        if key != "gradient_cosine" and all(
            (log.frame[key].dropna() > 0).all() for log in logs
        ):
            axis.set_yscale("log")
        axis.set(title=factors[key], xlabel="epoch")

    return grid(list(factors) if logs else [], draw, path, ax, keys, "keys")


def loss_bound(
    runs,
    path=None,
    *,
    beta=2.0,
    full_batch=None,
    learning_rate=None,
    labels=None,
    ax=None,
):
    """Draws the loss and theorem 5.1's bound on it against the time of the flow.

    The bound of Robertson and Koyejo (2024) takes the largest alpha for which the whole
    run satisfied (alpha, beta)-alignment dominance, definition 4.2 with L* = 0. Time is
    the sum of the learning rates. The theorem speaks of the flow of one loss: of plain
    gradient descent on the full batch, in small steps, with `gradient_alignment` on
    that batch. Runs that it does not speak of are left out, with a warning that says
    why.

    Args:
        runs: As for `potential_ratio`, with `gradient_inner` in their logs, a panel
            each.
        path: As for `potential_ratio`.
        beta: Exponent of the dominance, at least 1.
        full_batch: True says that the runs are as the theorem needs them. None asks
            the configuration of a run folder; other logs cannot answer.
        learning_rate: For logs without a column `flow_time` or `learning_rate`.
        labels: As for `potential_ratio`.
        ax: As for `potential_ratio`.

    Returns:
        `matplotlib.figure.Figure`, or None where there is no bound to draw.

    Raises:
        ValueError: As for `potential_ratio`, which has the other errors too, and if a
            learning rate is missing.
    """
    panels, reasons = {}, []
    for log in _logs.read(runs, labels):
        if not {"gradient_inner", "gradient_loss"} <= set(log.frame):
            continue
        reason = None if full_batch else _why_no_bound(log)
        if reason is None:
            frame = log.frame.dropna(subset=["gradient_inner", "gradient_loss"])
            inner = frame["gradient_inner"].to_numpy()
            loss = frame["gradient_loss"].to_numpy()
            if np.all(inner > 0):
                alpha = analysis.running_alpha(inner, loss, beta)[-1]
                time = _flow_time(log.name, frame, learning_rate)
                panels[log.name] = (log, time, loss, alpha)
            else:
                reason = "its feedback gradient pointed uphill, so alpha is not above 0"
        if reason is not None:
            reasons.append(f"{log.name}: {reason}")
    if reasons:
        warnings.warn(
            f"Theorem 5.1 has no bound for {'; '.join(reasons)}.", stacklevel=2
        )

    def draw(axis, name):
        log, time, loss, alpha = panels[name]
        bound = analysis.loss_bound(time - time[0], alpha, beta, loss[0])
        axis.plot(time, bound, "--", color="#888888", label="bound")
        axis.plot(time, loss, label=name, color=log.color, linewidth=1.6)
        axis.set(title=rf"{name}: $\alpha$ = {alpha:.3g}")
        axis.set(xlabel="time of the flow", ylabel="loss", yscale="log")

    return grid(list(panels), draw, path, ax, chooser="runs")


def audit(verdicts, path=None, *, parts=None):
    """Draws audits: the layers downwards, the parts of `keras_fa.audit` across.

    Growth of the activations since initialisation; norm of the true error signal, its
    rounding floor dotted; cosines of the weights' gradients; effective rank of the
    error signal through the feedback, the true one dotted. What is not measurable is
    not drawn.

    Args:
        verdicts: A `keras_fa.analysis.Verdict`, its `to_dict()` or the path of an
            audit.json; or a dict of several of them by name, networks of the same
            layers.
        path: As for `potential_ratio`.
        parts: Those of "growth", "true signal", "cosine" and "effective rank" to draw,
            one or a list; None for all.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If a part is unknown or the networks have not the same layers.
        OSError: If a file is not there, or the image cannot be written.
        keras_fa.results.RunFolderError: If a file is no audit's.
    """
    if not isinstance(verdicts, dict) or "layers" in verdicts:
        verdicts = {"": verdicts}
    tables = {name: _audited(one) for name, one in verdicts.items()}
    first = next(iter(tables.values()))
    names = [row["layer"] for row in first["layers"]]
    for name, table in tables.items():
        if [row["layer"] for row in table["layers"]] != names:
            raise ValueError(
                f"The audit {name!r} is of a network with other layers than the first "
                "one. Draw it in a figure of its own."
            )
    columns = {
        "growth": ("growth", None, "log"),
        "true signal": ("true_signal_norm", "floor", "log"),
        "cosine": ("cosine", None, "linear"),
        "effective rank": ("rank", "true_rank", "linear"),
    }
    labels = {
        "growth": "growth",
        "true signal": "true signal; dotted: its floor",
        "cosine": "cosine of the gradients",
        "effective rank": "effective rank; dotted: the true one",
    }
    parts = _chosen(list(columns), parts, "parts")
    size = (3.0 * len(parts) + 3.0, 0.24 * len(names) + 1.4)
    figure = _canvas.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axis, part in zip(axes, parts, strict=True):
        main, beside, scale = columns[part]
        for name, table in tables.items():
            # A gap where nothing was measured.
            values = [
                [
                    np.nan if row.get(key) is None else row[key]
                    for row in table["layers"]
                ]
                for key in (main, beside)
            ]
            label = f"{name}: {table['verdict']}" if name else table["verdict"]
            rows = range(len(names))
            (line,) = axis.plot(values[0], rows, "o", markersize=4, label=label)
            color = line.get_color()
            axis.plot(values[1], rows, ":", color=color, linewidth=1.2)
        axis.set(xlabel=labels[part], xscale=scale)
        if part == "cosine":
            axis.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
            axis.set(xlim=(-1.08, 1.08), xticks=(-1, -0.5, 0, 0.5, 1))
        axis.grid(axis="y", color="#eeeeee")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False
    )
    if path is not None:
        _canvas.write(figure, path)
    return figure


def _audited(verdict):
    """The dict of an audit, wherever it is."""
    if isinstance(verdict, analysis.Verdict):
        return verdict.to_dict()
    if isinstance(verdict, str | os.PathLike):
        verdict = run_folder.read_json(verdict, "Audit the run again.")
    if not {"verdict", "layers"} <= set(verdict):
        raise ValueError(
            "Expected the verdict of keras_fa.audit, its to_dict() or the path of an "
            f"audit.json. Received: {verdict!r:.80}."
        )
    return verdict


def search(table, objective, space, path=None, *, fields=None, ax=None):
    """Draws the objective of the trials of a search against each tuned field.

    Args:
        table: What `keras_fa.tuning.Search.table` returns.
        objective: Name of its column with the objective.
        space: The fields: see `keras_fa.tuning.check_space`.
        path: As for `potential_ratio`.
        fields: The fields to draw, or "best so far"; None for all.
        ax: As for `potential_ratio`.

    Returns:
        `matplotlib.figure.Figure`, or None where no trial has finished.

    Raises:
        ValueError: As for `potential_ratio`.
        OSError: If the image file cannot be written.
    """
    table = table[table[objective].notna()]

    def draw(axis, field):
        if field == "best so far":
            best = np.minimum if objective.endswith("loss") else np.maximum
            in_order = best.accumulate(table.sort_values("trial")[objective].to_numpy())
            axis.step(range(1, len(in_order) + 1), in_order, where="post", marker="o")
            axis.margins(x=0.1)
            axis.xaxis.get_major_locator().set_params(integer=True)
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
    return grid(items, draw, path, ax, fields, "fields")


def grid(items, draw, path=None, ax=None, chosen=None, chooser="items", order=()):
    """A figure with one panel for each item, and a legend of all lines beside them.

    Args:
        items: The items, texts.
        draw: Function of (axis, item); what it gives a label is in the legend.
        path: Image file to write, whole or not at all; None for none.
        ax: `matplotlib.axes.Axes` to draw the one item in, in place of a new figure.
        chosen: The items to draw, one or a list; None for all.
        chooser: Name of the argument that `chosen` came from.
        order: Labels in the legend's order; others come behind them, as drawn.

    Returns:
        `matplotlib.figure.Figure`, or None without items.

    Raises:
        ValueError: If an item is unknown, or `ax` is given for several.
        OSError: If the file cannot be written.
    """
    if not items:
        return None
    items = _chosen(items, chosen, chooser)
    if ax is None:
        figure, axes = _canvas.panels(len(items))
    elif len(items) == 1:
        figure, axes = ax.get_figure(root=True), [ax]
    else:
        raise ValueError(
            f"`ax` has room for one panel, and this figure has {len(items)}. Choose "
            f"one with {chooser}: {', '.join(items)}."
        )
    for axis, item in zip(axes, items, strict=True):
        axis.margins(x=0)
        draw(axis, item)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    places = {label: place for place, label in enumerate(order)}
    named = sorted(handles, key=lambda label: places.get(label, len(places)))
    handles = {label: handles[label] for label in named}
    if handles and ax is None:
        legend = figure.legend(
            handles.values(), handles.keys(), loc="outside right center", frameon=False
        )
        # Panels have room for a legend of an inch and would be squeezed by more.
        wide = legend.get_window_extent().width / figure.dpi
        figure.set_figwidth(figure.get_figwidth() + max(wide - 1.0, 0))
    elif handles:
        # Beside the axes, where no curve runs.
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    if path is not None:
        _canvas.write(figure, path)
    return figure


def _chosen(items, chosen, chooser):
    """Those of the items that were asked for: all of them for None."""
    if chosen is None:
        return items
    chosen = [chosen] if isinstance(chosen, str) else list(chosen)
    for item in chosen:
        if item not in items:
            raise ValueError(
                f"There is no {item!r} to draw."
                f"{registry.did_you_mean(item, items)} Known {chooser}: "
                f"{', '.join(items)}."
            )
    return chosen


def _keys(logs, prefix):
    """What stands behind a prefix in the logs, in order, each once."""
    names = [
        key.removeprefix(prefix)
        for log in logs
        for key in log.frame
        if key.startswith(prefix)
    ]
    return list(dict.fromkeys(names))


def _line(axis, log, values):
    """The curve of one run; nothing where it has no values."""
    if values is None:
        return
    read = values.notna()
    axis.plot(
        log.frame["epoch"][read],
        values[read],
        label=log.name,
        color=log.color,
        linestyle=log.dash,
        linewidth=1.6,
        # A line of one point would not be seen.
        marker="o" if read.sum() == 1 else None,
    )


def _potential_ratio(frame, group):
    """Phi(t) / Phi(0), or None where the log does not tell."""
    if f"potential_ratio/{group}" in frame:
        return frame[f"potential_ratio/{group}"]
    phi = frame.get(f"potential/{group}")
    if phi is None or frame["epoch"].iloc[0] != 0:
        return None
    return phi / phi.iloc[0]


def _why_no_bound(log):
    """Why theorem 5.1 says nothing of a run, or None."""
    if log.config is None:
        return "its log does not tell its batches; full_batch=True does"
    summary = run_folder.read_summary(log.path) or {}
    examples = summary.get("dataset", {}).get("train", math.inf)
    batch_size = log.config.get("batch_size")
    full = batch_size in (None, "full")
    if not (full or (isinstance(batch_size, int) and batch_size >= examples)):
        return f"it made minibatch steps, batch_size={batch_size}"
    optimizer = log.config.get("optimizer", {})
    others = ("momentum", "weight_decay")
    if optimizer.get("name", "sgd") != "sgd" or any(map(optimizer.get, others)):
        return "its optimizer is not plain gradient descent"
    probe = log.config.get("instruments", {}).get("probe_size")
    if probe is not None and probe < examples:
        return f"its gradients are those of probe_size={probe} examples alone"
    return None


def _flow_time(name, frame, learning_rate):
    """The sum of the learning rates at each line, on the full batch one an epoch."""
    if "flow_time" in frame:
        return frame["flow_time"].to_numpy()
    if learning_rate is None and "learning_rate" not in frame:
        raise ValueError(
            f"{name}: the log has no column `flow_time` or `learning_rate`, so its "
            "time is not known. Give learning_rate=, that of every step."
        )
    rates = frame["learning_rate"] if learning_rate is None else learning_rate
    return (rates * frame["epoch"].diff().fillna(0)).cumsum().to_numpy()
