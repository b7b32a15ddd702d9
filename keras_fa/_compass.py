"""W beside B: how the weights of a layer turn towards what the errors come back by."""

import base64
import math
import tempfile

import numpy as np

from keras_fa._extras import extra

with extra("figures"):
    import matplotlib.animation

    from keras_fa import _canvas

_COLOR = "#0072b2"
_FEEDBACK = "#d55e00"
# More points than these are one blot.
_MOST_ROWS, _MOST_ENTRIES = 150, 1500


def aligning(snapshots, path=None, *, steps=4):
    """Draws W turning towards B, a column for each of some moments.

    Above, each row W[j] of the kernel (what one input sends, for a convolution at one
    place) is an arrow that starts where B[j] points to the right: its angle is that of
    W[j] and B[j], its length |W[j]| over the largest there is. Below are the entries,
    B across and W up, with the line `<W, B> / |B|^2`. Moments are denser at the start,
    where most happens.

    Args:
        snapshots: A `keras_fa.live.Snapshots` that was in a training, or its `taken`.
        path: Image file to write as well, whole or not at all; None for none.
        steps: The number of moments, at most.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there is no snapshot, or `steps` is below 2.
        OSError: If the image file cannot be written.
    """
    taken = _taken(snapshots)
    if steps < 2:
        raise ValueError(f"`steps` must be at least 2, not {steps!r}.")
    places = np.geomspace(1, len(taken), min(steps, len(taken))).round().astype(int) - 1
    chosen = [taken[place] for place in dict.fromkeys(places)]
    figure = _canvas.Figure(figsize=(3.1 * len(chosen), 4.9), layout="constrained")
    axes = figure.subplots(
        2, len(chosen), squeeze=False, height_ratios=(1, 1.5), sharey="row"
    )
    drawn = _Drawing(taken)
    for column, snapshot in zip(axes.T, chosen, strict=True):
        drawn.compass(column[0], snapshot)
        drawn.entries(column[1], snapshot)
    for axis in axes[1, 1:]:
        axis.set_ylabel("")
    if path is not None:
        _canvas.write(figure, path)
    return figure


def aligning_animation(snapshots, path=None, *, interval=150):
    """`aligning`, one moment after the other.

    Args:
        snapshots: As for `aligning`.
        path: GIF file to write as well, whole or not at all; None for none.
        interval: Milliseconds from one snapshot to the next.

    Returns:
        `matplotlib.animation.FuncAnimation`, which a notebook shows as a GIF.

    Raises:
        ValueError: If there is no snapshot, or the path does not end with ".gif".
        OSError: If the file cannot be written.
    """
    taken = _taken(snapshots)
    if path is not None and not str(path).endswith(".gif"):
        raise ValueError(f'Expected a path that ends with ".gif". Received: {path}.')
    figure = _canvas.Figure(figsize=(7.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    drawn = _Drawing(taken)

    def draw(place):
        left.clear()
        right.clear()
        drawn.compass(left, taken[place])
        drawn.entries(right, taken[place])

    # Laid out once, since the layout takes longer than the drawing.
    draw(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    animation = _Animation(figure, draw, frames=len(taken), interval=interval)
    if path is not None:
        with _canvas.whole(path) as temporary:
            animation.save(temporary, writer="pillow")
    return animation


class _Animation(matplotlib.animation.FuncAnimation):
    """An animation that a notebook shows, without what other pages would serve."""

    def _repr_html_(self):
        with tempfile.NamedTemporaryFile(suffix=".gif") as file:
            self.save(file.name, writer="pillow")
            image = base64.b64encode(file.read()).decode()
        return f'<img alt="W turning towards B" src="data:image/gif;base64,{image}">'


class _Drawing:
    """What all moments share: scales, and which rows and entries are drawn."""

    def __init__(self, taken):
        shape = taken[0].kernel.shape
        random = np.random.default_rng(0)
        self._rows = _some(random, shape[0], _MOST_ROWS)
        self._entries = _some(random, math.prod(shape), _MOST_ENTRIES)
        self._longest = max(np.linalg.norm(s.kernel, axis=1).max() for s in taken)
        self._across = 1.05 * max(np.abs(s.feedback).max() for s in taken)
        self._up = 1.05 * max(np.abs(s.kernel).max() for s in taken)

    def compass(self, axis, snapshot):
        """The rows as arrows, B to the right."""
        w, b = snapshot.kernel[self._rows], snapshot.feedback[self._rows]
        lengths = np.linalg.norm(w, axis=1)
        scale = lengths * np.linalg.norm(b, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.clip(np.einsum("ij,ij->i", w, b) / scale, -1, 1)
        radii = lengths / self._longest
        across, up = radii * cosines, radii * np.sqrt(1 - cosines**2)
        zero = np.zeros_like(across)
        arrows = {"angles": "xy", "scale_units": "xy", "scale": 1}
        axis.plot([-1, 1], [0, 0], color="#bbbbbb", linewidth=1, zorder=0)
        axis.plot([0, 0], [0, 1], ":", color="#bbbbbb", linewidth=1, zorder=0)
        axis.quiver(
            zero, zero, across, up, color=_COLOR, alpha=0.45, width=0.006, **arrows
        )
        axis.quiver([0], [0], [1.1], [0], color=_FEEDBACK, width=0.012, **arrows)
        axis.text(1.13, 0, "B", color=_FEEDBACK, va="center", weight="bold")
        axis.set(xlim=(-1.1, 1.3), ylim=(-0.12, 1.1), aspect="equal")
        axis.set_title(f"epoch {snapshot.epoch}: cos(W, B) = {_cosine(snapshot):.2f}")
        axis.axis("off")

    def entries(self, axis, snapshot):
        """The entries of B and W as points."""
        w, b = snapshot.kernel.ravel(), snapshot.feedback.ravel()
        points = b[self._entries], w[self._entries]
        axis.plot(*points, ".", color=_COLOR, alpha=0.35, markersize=4)
        slope = (w @ b) / (b @ b) if b.any() else 0.0
        ends = np.array([-1, 1]) * self._across
        axis.plot(ends, slope * ends, color=_FEEDBACK, linewidth=1.6)
        axis.set(xlim=ends, ylim=(-self._up, self._up))
        axis.set(xlabel="entry of B", ylabel="entry of W")
        axis.spines[["top", "right"]].set_visible(False)


def _taken(snapshots):
    """The list of snapshots, wherever it is."""
    taken = list(getattr(snapshots, "taken", snapshots))
    if not taken:
        raise ValueError(
            "There is no snapshot to draw: give keras_fa.live.Snapshots to `fit` first."
        )
    return taken


def _some(random, count, most):
    """Which of some things are drawn: all, or a sample of them."""
    return np.sort(random.permutation(count)[:most])


def _cosine(snapshot):
    w, b = snapshot.kernel.ravel(), snapshot.feedback.ravel()
    norms = np.linalg.norm(w) * np.linalg.norm(b)
    return w @ b / norms if norms > 0 else math.nan
