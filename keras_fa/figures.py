"""Figures from run folders. Nothing here trains, builds or loads a model."""

import math
import pathlib

import matplotlib.figure
import numpy as np

from keras_fa import results

_LABELS = {"backprop": "BP", "fa": "FA", "ada_fa": "adaFA", "sign_fa": "sign-FA"}
_COLORS = {
    "backprop": "#444444",
    "fa": "#0072b2",
    "ada_fa": "#d55e00",
    "sign_fa": "#009e73",
}


def potential_ratio(runs, path):
    """Draws `Phi(t) / Phi(0)` against epochs, a panel for each conserved group.

    Phi is the layer-level sum over the group's units. Theorem 5.2 of Robertson and
    Koyejo (2024) predicts 1 for feedback rules whose B is fixed.

    Args:
        runs: Run folders, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run has a conserved group.
    """

    def ratio(values):
        return values / values.iloc[0]

    return _panels(
        runs,
        path,
        prefix="potential/",
        transform=ratio,
        ylabel=r"$\Phi(t)\,/\,\Phi(0)$",
        reference=1.0,
        title="conserved potential of {}",
    )


def weight_alignment(runs, path):
    """Draws `cos(W, B)` against epochs, a panel for each layer but the first.

    The first layer's feedback is left out because nothing reads it: the gradient with
    respect to the network's input is not needed.

    Args:
        runs: Run folders, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run logged alignment.
    """
    return _panels(
        runs,
        path,
        prefix="alignment/",
        transform=lambda values: values,
        ylabel=r"$\cos(W, B)$",
        reference=None,
        title="alignment of {}",
        skip=1,
    )


def accuracy(runs, path):
    """Draws the accuracy on the training and the test set against epochs, in percent.

    Args:
        runs: Run folders, drawn together.
        path: Image file to write.

    Returns:
        The path, or None where no run logged an accuracy.
    """
    return _panels(
        runs,
        path,
        prefix="",
        names=("accuracy", "val_accuracy"),
        transform=lambda values: 100 * values,
        ylabel="%",
        reference=None,
        title="{}",
    )


def _panels(
    runs, path, prefix, transform, ylabel, reference, title, skip=0, names=None
):
    """One panel for each logged key, one line in it for each run."""
    frames = {}
    for run in runs:
        frames[str(run)] = (results.read_config(run)["rule"], results.read_frame(run))
    columns = []
    for _, frame in frames.values():
        keys = names or [key for key in frame if key.startswith(prefix)]
        columns += [key for key in keys if key in frame and key not in columns]
    columns = columns[skip:]
    if not columns:
        return None
    across = min(len(columns), 4)
    down = math.ceil(len(columns) / across)
    figure = matplotlib.figure.Figure(
        figsize=(4.2 * across + 0.6, 3.1 * down + 0.3), layout="constrained"
    )
    axes = np.atleast_1d(figure.subplots(down, across, squeeze=False)).ravel()
    for axis, column in zip(axes, columns, strict=False):
        if reference is not None:
            axis.axhline(reference, color="#bbbbbb", linewidth=1, zorder=0)
        for rule, frame in frames.values():
            if column in frame:
                frame = frame[["epoch", column]].dropna()
                axis.plot(
                    frame["epoch"],
                    transform(frame[column]),
                    label=_LABELS.get(rule, rule),
                    color=_COLORS.get(rule),
                    linewidth=1.6,
                )
        name = column.removeprefix(prefix)
        name = {"accuracy": "training accuracy", "val_accuracy": "test accuracy"}.get(
            name, name
        )
        axis.set(title=title.format(name), xlabel="epoch", ylabel=ylabel)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0)
    for axis in axes[len(columns) :]:
        axis.remove()
    axes[0].legend(frameon=False)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
