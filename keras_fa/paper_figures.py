"""Figures over many runs, drawn as the papers draw them: means with bands or bars."""

import math

import matplotlib
import numpy as np

from keras_fa.figures import grid

LABELS = {"backprop": "GD", "fa": "FA", "ada_fa": "adaFA", "sign_fa": "sign-FA"}


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
            line to draw), and anything that `Axes.set` takes, such as `yscale`.

    Returns:
        The path, or None where there is nothing to draw.
    """
    spread, line = axes.pop("spread", "se"), axes.pop("line", None)

    def draw(axis, title):
        if line is not None:
            axis.axhline(line, color="#bbbbbb", linewidth=1, zorder=0)
        for key, (x, values) in panels[title].items():
            mean, half = _spread(values, spread)
            label = (labels or {}).get(key, key)
            axis.plot(x, mean, color=colors[key], label=label, linewidth=1.5)
            if half is not None:
                axis.fill_between(
                    x, mean - half, mean + half, color=colors[key], alpha=0.2, lw=0
                )
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, **axes)

    return grid([t for t in panels if panels[t]], draw, path, "outside")


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
            spreads = [_spread(np.asarray(v)[:, None], spread) for _, v in found]
            mean = [m[0] for m, _ in spreads]
            half = [0.0 if h is None else h[0] for _, h in spreads]
            label = (labels or {}).get(key, key)
            axis.errorbar(
                x, mean, half, color=colors[key], label=label, marker="o",
                markersize=4, linewidth=1.3, capsize=2.5,
            )  # fmt: skip
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, **axes)
        axis.margins(x=0.04)

    return grid([t for t in panels if panels[t]], draw, path, "outside")


def _spread(values, kind):
    """Mean and half height of the band of (repetitions, t); None of one repetition."""
    values = np.asarray(values, float)
    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, None
    deviation = values.std(axis=0, ddof=1)
    return mean, deviation if kind == "sd" else deviation / math.sqrt(len(values))
