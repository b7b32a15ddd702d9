"""Figures over many runs, drawn as the papers draw them: means with bands or bars."""

import math

import matplotlib
import numpy as np
from matplotlib import ticker

from keras_fa import _logs
from keras_fa.figures import grid

# The methods of the papers' tables, in their order; backpropagation is "GD" there.
RULES = ("fa", "ada_fa", "sign_fa", "backprop")
LABELS = {rule: _logs.look(rule)[0] for rule in RULES} | {"backprop": "GD"}
COLORS = {rule: _logs.look(rule)[1] for rule in RULES}


def shades(keys):
    """A colour for each of an ordered family of curves, from light to dark."""
    keys = list(keys)
    colors = matplotlib.colormaps["viridis_r"](np.linspace(0.1, 0.95, len(keys)))
    return dict(zip(keys, colors, strict=True))


def curves(panels, path, xlabel, ylabel, colors, labels=None, **axes):
    """Mean curves over repetitions, with bands.

    Args:
        panels: `{title: {key: (x, values)}}`: x an array (t,), values an array
            (repetitions, t).
        path: Image file to write.
        xlabel: Of every panel.
        ylabel: Of every panel.
        colors: `{key: colour}`.
        labels: `{key: text of the legend}`; by default the keys.
        **axes: `spread` ("se" or "sd": half the height of a band), `line` (a horizontal
            line to draw), and anything that `Axes.set` takes. With yscale="log" the
            curves are geometric means.

    Returns:
        The path, or None where there is nothing to draw.
    """
    spread, line = axes.pop("spread", "se"), axes.pop("line", None)

    def draw(axis, title):
        if line is not None:
            axis.axhline(line, color="#bbbbbb", linewidth=1, zorder=0)
        for key, (x, values) in panels[title].items():
            low, middle, high = band(values, spread, axes.get("yscale") == "log")
            label = (labels or {}).get(key, key)
            axis.plot(x, middle, color=colors[key], label=label, linewidth=1.5)
            if len(values) > 1:
                axis.fill_between(x, low, high, color=colors[key], alpha=0.2, lw=0)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, **axes)
        _write_out(axis.yaxis)

    figure = grid([t for t in panels if panels[t]], draw, path)
    return None if figure is None else path


def points(panels, path, xlabel, ylabel, colors, labels=None, **axes):
    """Means against a setting, with error bars.

    Args:
        panels: `{title: {key: [(x, values), ...]}}`, values the repetitions at x.
        path: Image file to write.
        xlabel: Of every panel.
        ylabel: Of every panel.
        colors: `{key: colour}`.
        labels: `{key: text of the legend}`; by default the keys.
        **axes: As for `curves`.

    Returns:
        The path, or None where there is nothing to draw.
    """
    spread, line = axes.pop("spread", "se"), axes.pop("line", None)

    def draw(axis, title):
        if line is not None:
            axis.axhline(line, color="#bbbbbb", linewidth=1, zorder=0)
        for key, found in panels[title].items():
            x = [point for point, _ in found]
            bands = [band(np.asarray(v)[:, None], spread)[:, 0] for _, v in found]
            low, middle, high = np.transpose(bands)
            label = (labels or {}).get(key, key)
            axis.errorbar(
                x,
                middle,
                (middle - low, high - middle),
                color=colors[key],
                label=label,
                marker="o",
                markersize=4,
                linewidth=1.3,
                capsize=2.5,
            )
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, **axes)
        axis.margins(x=0.04)
        if axes.get("xscale") == "log":
            # matplotlib's own labels of less than a decade lie over each other.
            at = sorted({x for found in panels[title].values() for x, _ in found})
            axis.set_xticks(at, [f"{x:g}" for x in at])
            axis.set_xticks([], minor=True)
        _write_out(axis.yaxis)

    order = (labels or {}).values()
    figure = grid([t for t in panels if panels[t]], draw, path, order=order)
    return None if figure is None else path


def scatter(panels, path, xlabel, ylabel, colors, labels=None, **axes):
    """A point for each run.

    Args:
        panels: `{title: {key: (x, y)}}`, arrays of equal length.
        path: Image file to write.
        xlabel: Of every panel.
        ylabel: Of every panel.
        colors: `{key: colour}`.
        labels: `{key: text of the legend}`; by default the keys.
        **axes: Anything that `Axes.set` takes.

    Returns:
        The path, or None where there is nothing to draw.
    """

    def draw(axis, title):
        for key, (x, y) in panels[title].items():
            label = (labels or {}).get(key, key)
            axis.plot(x, y, "o", color=colors[key], label=label, markersize=5)
        axis.margins(x=0.04)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, **axes)

    figure = grid([t for t in panels if panels[t]], draw, path)
    return None if figure is None else path


def _write_out(axis):
    """Numbers such as 0.2 on a logarithmic axis of two decades or less."""
    low, high = axis.get_view_interval()
    if axis.get_scale() == "log" and high <= 100 * low:
        axis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")


def band(values, spread="se", log=False):
    """The middle and the edges of repetitions.

    Args:
        values: Array (repetitions, t).
        spread: "se" or "sd": half the height.
        log: Whether to take both of the logarithms, for a logarithmic axis, on which
            mean - sd may not exist: the geometric mean, and it over and times the
            geometric standard deviation.

    Returns:
        Array (3, t): lower edge, mean, upper edge; of one repetition all are the same.
    """
    values = np.asarray(values, float)
    if log:
        values = np.log(values)
    mean = values.mean(axis=0)
    half = np.zeros_like(mean)
    if len(values) > 1:
        half = values.std(axis=0, ddof=1)
        half /= math.sqrt(len(values)) if spread == "se" else 1
    edges = np.stack([mean - half, mean, mean + half])
    return np.exp(edges) if log else edges
