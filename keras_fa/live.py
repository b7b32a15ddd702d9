"""Training as it is watched: curves while `fit` goes on, and snapshots of W and B.

Nothing here measures. `Watch` shows what the callbacks before it put into the logs, and
`Snapshots` keeps copies, which `keras_fa.figures.aligning` draws.
"""

import fnmatch
import importlib
import shutil
import sys
import time
from typing import NamedTuple

import keras
import numpy as np

from keras_fa import autodiff, registry
from keras_fa._extras import extra
from keras_fa.analysis import _alignment

_ANGLES = ("alignment/*", "gradient_cosine", "error_cosine/*")
_BLOCKS = "▁▂▃▄▅▆▇█"
_LONGEST = 24


class Watch(keras.callbacks.Callback):
    """Shows readings while `fit` goes on.

    In a notebook a figure of them is drawn anew in its place; elsewhere each epoch ends
    with a line of sparklines, which stays in its place if `fit` prints nothing itself
    (`verbose=0`, in a terminal). Drawing takes a tenth of the time at most.

    The rhythm is that of the instruments: with `unit="step"` their readings are shown
    between the ends of epochs too. Give this callback after them.

        >>> x, y = np.random.normal(size=(32, 4)), np.arange(32) % 3
        >>> model = keras_fa.models.mlp((4,), (8,), 3, rule="fa")
        >>> model.compile("sgd", "mse")
        >>> watched = [keras_fa.callbacks.WeightAlignment(), keras_fa.live.Watch()]
        >>> history = model.fit(x, np.eye(3)[y], callbacks=watched, verbose=0)
        alignment/dense_2 ...

    Args:
        keys: Patterns of the log keys to show, as of a shell: "alignment/*". None for
            the cosines: of weights but those of the first layer, whose B nothing
            reads, of the whole gradient, and of error signals.

    Attributes:
        curves: `{log key: (steps, values)}`, lists with one entry for each reading.

    Raises:
        TypeError: If `keys` is one text and no list.
        ValueError: When training begins to be shown, if no key of the logs fits.
        ImportError: In a notebook, if matplotlib is missing.
    """

    def __init__(self, keys=None):
        super().__init__()
        if isinstance(keys, str):
            raise TypeError(f"Expected a list of patterns, keys=[{keys!r}].")
        self.keys = keys
        self.curves = {}

    def on_train_begin(self, logs=None):
        self.curves = {}
        self._stepwise = set()
        self._show = _Figure.of_notebook() or _Line(self.params.get("verbose"))

    def on_epoch_begin(self, epoch, logs=None):
        # Not at the end of an epoch, when the progress bar is still on the line.
        self._show.between(self.curves)

    def on_train_batch_end(self, batch, logs=None):
        if found := self._found(logs):
            self._stepwise |= set(found)
            self._record(found)
            self._show.now(self.curves)

    def on_epoch_end(self, epoch, logs=None):
        # Of an instrument that reads after steps the end of an epoch has no news.
        found = self._found(logs)
        self._record({k: v for k, v in found.items() if k not in self._stepwise})
        if not self.curves:
            raise ValueError(
                "Watch finds nothing to show in the logs. It looks for "
                f"{', '.join(self.keys or _ANGLES)} and found "
                f"{', '.join(logs or {})}. Give it after the callbacks that measure."
            )
        self._show.now(self.curves)

    def on_train_end(self, logs=None):
        self._show.end(self.curves)

    def _found(self, logs):
        """What the logs have to show: dict from key to number."""
        found = {
            key: float(value)
            for key, value in (logs or {}).items()
            if any(fnmatch.fnmatchcase(key, p) for p in self.keys or _ANGLES)
        }
        weights = [key for key in found if key.startswith("alignment/")]
        if self.keys is None and len(weights) > 1:
            del found[weights[0]]
        return found

    def _record(self, found):
        if found:
            step = int(autodiff.array(self.model.optimizer.iterations))
        for key, value in found.items():
            steps, values = self.curves.setdefault(key, ([], []))
            steps.append(step)
            values.append(value)


def sparkline(values):
    """A line of blocks, one for each of the last values.

    Cosines, that is values between -1 and 1, stand on a scale from 0 to 1, so that
    chance looks like chance; what is below 0 is a dot, and what is not finite a blank.
    Other values stand between their smallest and their largest.

    Args:
        values: Sequence of numbers.

    Returns:
        Text of at most 24 characters.

        >>> keras_fa.live.sparkline([-0.1, 0.0, 0.5, 1.0])
        '·▁▅█'
    """
    values = np.asarray(values, float)[-_LONGEST:]
    finite = values[np.isfinite(values)]
    low, high = 0.0, 1.0
    if finite.size and np.abs(finite).max() > 1:
        low, high = finite.min(), finite.max()
    heights = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return "".join(_block(height) for height in heights)


def _block(height):
    if not np.isfinite(height):
        return " "
    return "·" if height < 0 else _BLOCKS[round(height * (len(_BLOCKS) - 1))]


class _Line:
    """Sparklines on the standard output."""

    def __init__(self, verbose):
        self._in_place = not verbose and sys.stdout.isatty()
        self._pace = _Pace()
        self._said = None

    def now(self, curves):
        if self._in_place and self._pace.ready():
            self._pace.timed(lambda: self._write(curves, "\r", "\x1b[K"))

    def between(self, curves):
        if curves and not self._in_place:
            self._write(curves, "", "\n")

    def end(self, curves):
        if curves:
            self._write(curves, *(("\r", "\x1b[K\n") if self._in_place else ("", "\n")))

    def _write(self, curves, before, after):
        parts = [f"{k} {sparkline(v)} {v[-1]:.3f}" for k, (_, v) in curves.items()]
        text = "   ".join(parts)
        if self._in_place:
            # A longer line would not be written over.
            text = text[: shutil.get_terminal_size().columns - 1]
        sys.stdout.write(before + text + after)
        sys.stdout.flush()


class _Figure:
    """A figure of a notebook, written over by each new one."""

    def __init__(self, display):
        with extra("figures"):
            from keras_fa import _canvas
        self._figure = _canvas.Figure
        self._display = display
        self._handle = None
        self._pace = _Pace()

    @classmethod
    def of_notebook(cls):
        """One for the notebook that this process serves; None elsewhere."""
        ipython = sys.modules.get("IPython")
        if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
            return None
        return cls(importlib.import_module("IPython.display"))

    def now(self, curves):
        if self._pace.ready():
            self._pace.timed(lambda: self._draw(curves))

    def between(self, curves):
        """The figure is no matter of lines."""

    def end(self, curves):
        if curves:
            self._draw(curves)

    def _draw(self, curves):
        figure = self._figure(figsize=(7, 3), layout="constrained")
        axis = figure.subplots()
        for key, (steps, values) in curves.items():
            axis.plot(steps, values, label=key, marker="o" if len(steps) == 1 else None)
        values = np.concatenate([values for _, values in curves.values()])
        if np.nanmax(np.abs(values)) <= 1:
            axis.set_ylim(min(0.0, np.nanmin(values)) - 0.02, 1.02)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right center", frameon=False)
        if self._handle is None:
            self._handle = self._display.display(figure, display_id=True)
        else:
            self._handle.update(figure)


class _Pace:
    """When to draw again: so that drawing takes a tenth of the time at most."""

    def __init__(self):
        self._next = 0.0

    def ready(self):
        return time.monotonic() >= self._next

    def timed(self, draw):
        begin = time.monotonic()
        draw()
        end = time.monotonic()
        self._next = end + 9 * (end - begin)


class Snapshot(NamedTuple):
    """One layer's W and B at one time.

    Attributes:
        epoch: Number of epochs that were over.
        kernel: W, float64 array (inputs, outputs).
        feedback: What the backward pass uses in its place, an array of the same shape.
    """

    epoch: int
    kernel: np.ndarray
    feedback: np.ndarray


class Snapshots(keras.callbacks.Callback):
    """Keeps W and B of one layer, before training and after epochs.

    Args:
        layer: The key of the layer in `keras_fa.analysis.weight_alignment`; None for
            the last one.
        every: Epochs between two snapshots.

    Attributes:
        layer: The key of the layer.
        taken: The list of `Snapshot`, the first one from before training.

    Raises:
        ValueError: If `every` is not positive, or, in training, if the model has no
            such layer or the layer sends nothing back, as under direct feedback.
    """

    def __init__(self, layer=None, every=1):
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"`every` must be a positive integer, not {every!r}.")
        self.layer, self.every, self.taken = layer, every, []

    def on_train_begin(self, logs=None):
        self.taken = []

    def on_epoch_begin(self, epoch, logs=None):
        if not self.taken:
            self._take(epoch)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0:
            self._take(epoch + 1)

    def _take(self, epoch):
        maps = {key: rest for key, *rest in _alignment.found_maps(self.model)}
        if self.layer is None:
            self.layer = list(maps)[-1]
        if self.layer not in maps:
            raise ValueError(
                f"Model '{self.model.name}' has no feedback layer {self.layer!r}."
                f"{registry.did_you_mean(self.layer, maps)} It has {', '.join(maps)}."
            )
        layer, index, kernel = maps[self.layer]
        feedback = layer.backward_kernel(index)
        if feedback is None:
            raise ValueError(
                f"The layer {self.layer!r} sends nothing back, so there is no B of its "
                "shape to be compared with W."
            )
        matrix = layer.geometry(index).matrix
        self.taken.append(
            Snapshot(epoch, *(_copy(matrix(part)) for part in (kernel, feedback)))
        )


def _copy(tensor):
    return np.array(autodiff.array(tensor), np.float64)
