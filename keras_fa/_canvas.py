"""What figures are drawn on, and how they become files."""

import contextlib
import io
import math
import os
import pathlib

from keras_fa._extras import extra

with extra("figures"):
    import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows, without pyplot having been there before."""

    def _repr_png_(self):
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=100)
        return image.getvalue()


def panels(count):
    """(figure, axes) of so many panels, at most four in a row."""
    across = min(count, 4)
    down = math.ceil(count / across)
    figure = Figure(
        figsize=(3.8 * across + 1.0, 3.1 * down + 0.3), layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def write(figure, path):
    """Writes an image file, whole or not at all."""
    with whole(path) as temporary:
        figure.savefig(
            temporary, dpi=120, format=pathlib.Path(path).suffix[1:] or "png"
        )


@contextlib.contextmanager
def whole(path):
    """A file beside `path`, with its ending, that becomes it if all goes well."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
