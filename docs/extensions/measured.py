"""The directive `measured`: a table of means over seeds, from a file of results/.

    ```{measured} small_networks.csv
    :rows: rule
    :columns: network
    :value: accuracy
    :where: frozen=
    ```

`rows` and `columns` name columns of the file; without `columns` there is one column for
each of several values. A cell is the mean over the lines that belong to it, with its
standard error where there are several; what no line has measured leaves it empty.
`where` keeps the lines with these values, `digits` is the number of decimals, and
`scale` a factor.
"""

import pathlib
from typing import ClassVar

import pandas as pd
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results"


class Measured(SphinxDirective):
    """Reads the file when the site is built."""

    required_arguments = 1
    option_spec: ClassVar = {
        "rows": directives.unchanged_required,
        "columns": directives.unchanged_required,
        "value": directives.unchanged_required,
        "where": directives.unchanged_required,
        "digits": directives.nonnegative_int,
        "scale": float,
    }

    def run(self):
        """The table, as nodes."""
        path = RESULTS / self.arguments[0]
        self.env.note_dependency(str(path))
        options = {"digits": 3, "scale": 1.0, **self.options}
        head, body = table(pd.read_csv(path), **options)
        return [_nodes(head, body)]


def table(frame, rows, value, columns=None, where="", digits=3, scale=1.0):
    """`(head, body)`: lists of texts, and of lists of them.

    Raises:
        ValueError: If the file has no such column, or no line is left.
    """
    by, values = _names(rows), _names(value)
    kept = dict(pair.split("=") for pair in _names(where))
    if missing := {*by, *values, *_names(columns), *kept} - set(frame):
        raise ValueError(f"The file has no columns {sorted(missing)}.")
    for name, wanted in kept.items():
        frame = frame[frame[name].astype("string").fillna("") == wanted]
    if frame.empty:
        raise ValueError(f"No line has {where}.")
    body = []
    for key, lines in frame.groupby(by, sort=False, dropna=False):
        texts = [str(part) for part in key]
        if columns is None:
            texts += [_mean(lines[name], digits, scale) for name in values]
        else:
            for one in dict.fromkeys(frame[columns]):
                cell = lines.loc[lines[columns] == one, values[0]]
                texts.append(_mean(cell, digits, scale))
        body.append(texts)
    head = [name.replace("_", " ") for name in by + (values if columns is None else [])]
    if columns is not None:
        head += [str(value) for value in dict.fromkeys(frame[columns])]
    return head, body


def _names(text):
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _mean(series, digits, scale):
    series = series.dropna()
    if series.empty:
        return ""
    text = f"{scale * series.mean():.{digits}f}"
    # What each line repeats, such as a paper's number, has no error of ours.
    if series.nunique() > 1:
        text += f" ± {scale * series.sem():.{digits}f}"
    return text


def _nodes(head, body):
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    for part, lines in ((nodes.thead(), [head]), (nodes.tbody(), body)):
        for line in lines:
            row = nodes.row()
            for text in line:
                row += nodes.entry("", nodes.paragraph(text=text))
            part += row
        group += part
    # As the tables of the pages, which scroll by themselves.
    return nodes.table("", group, classes=["colwidths-auto"])


def setup(app):
    """Makes the directive known."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
