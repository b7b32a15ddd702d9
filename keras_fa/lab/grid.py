"""The cells of a grid: their names, configurations and state on the disk."""

import collections
import dataclasses
import itertools
import pathlib
import re

from ml_collections import ConfigDict

from keras_fa.lab import config as configuration
from keras_fa.lab import plans, run_folder

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"

INTERRUPTED, OPEN = "interrupted", "open"
ENDED = (FINISHED, DIVERGED, FAILED)

# 255 are what file systems take; ".failed.json" and the like are put behind.
_LONGEST_NAME = 220


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: Its settings, and the name of its run folder.
        settings: `{field: value}` of the fields that the grid varies.
        base: `ConfigDict` that all cells of the grid change.
    """

    name: str
    settings: dict
    base: ConfigDict

    @property
    def config(self):
        """Its whole configuration, a `ConfigDict`, made anew at each look."""
        return plans.changed(self.base, self.settings)


def cells(base, axes, named_by=()):
    """The cells of a grid: every combination of one row of each axis.

    Args:
        base: `ConfigDict` that the cells change.
        axes: Sequence of axes. An axis is a dict from field, such as
            "model.hidden_units", to the sequence of its values; fields of one axis vary
            together. The first field of each axis names the cells, with the next ones
            where it does not tell its rows apart.
        named_by: The axes before they were narrowed: cells keep their names.

    Returns:
        List of `Cell`, the last axis varying fastest.

    Raises:
        ValueError: If there is no axis, an axis is empty or uneven, a field is unknown
            or in two axes, a value is of the wrong kind, or two cells have the same
            name.
    """
    if not axes:
        raise ValueError("A grid needs at least one axis: it names the cells.")
    fields = [field for axis in axes for field in axis]
    twice = sorted({field for field in fields if fields.count(field) > 1})
    if twice:
        raise ValueError(f"Fields in more than one axis: {', '.join(twice)}.")
    for axis in axes:
        for field, values in axis.items():
            if not isinstance(values, (list, tuple, range)):
                raise ValueError(
                    f"The values of {field!r} in a grid must be a list. Received: "
                    f"{values!r}."
                )
        lengths = {field: len(values) for field, values in axis.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(
                "The fields of an axis vary together and need equally many values, at "
                f"least one. Received: {lengths}."
            )
    whole = {next(iter(axis)): axis for axis in named_by}
    naming = [
        named
        for axis in axes
        for named in _naming(axis, whole.get(next(iter(axis)), axis))
    ]
    labels = _labels([field for field, _ in naming])
    beside = {
        field: (label, values)
        for label, (field, values) in zip(labels, naming, strict=True)
    }
    # Each row of each axis is looked at once, not once for each of its cells.
    columns = [[dict(zip(a, row, strict=True)) for row in _rows(a)] for a in axes]
    _check(base, columns)
    parts = [
        [
            (row, [f"{beside[k][0]}={_text(row[k], beside[k][1])}" for k in shown])
            for row in rows
        ]
        for axis, rows in zip(axes, columns, strict=True)
        for shown in [[field for field in axis if field in beside]]
    ]
    base = base.copy_and_resolve_references()
    found = []
    for chosen in itertools.product(*parts):
        settings, texts = {}, []
        for row, text in chosen:
            settings |= row
            texts += text
        found.append(Cell(",".join(texts), settings, base))
    names = [cell.name for cell in found]
    longest = max(names, key=lambda name: len(name.encode()))
    size = len(longest.encode())
    if size > _LONGEST_NAME:
        raise ValueError(
            f"The cell {longest[:60]!r}... has a name of {size} bytes, and a folder "
            f"may have {_LONGEST_NAME}. Let the first field of each axis "
            "be one with short values: it names the cells."
        )
    twice = sorted(name for name, n in collections.Counter(names).items() if n > 1)
    if twice:
        raise ValueError(f"More than one cell is called {twice[0]!r}.")
    return found


def _rows(axis):
    return zip(*axis.values(), strict=True)


# Fields of one group are checked against each other, a section's among themselves.
_GROUPS = {"log_every": "epochs", "checkpoint_every": "epochs"}


def _check(base, columns):
    """Refuses axes of which some cell could not run, without a look at every cell.

    What a configuration may not be says something of one group of fields each time. So
    the axes that share no group are tried one after the other, beside the first rows of
    the others: a sum of their lengths, not the product.
    """
    groups = []
    for rows in columns:
        fields = {
            _GROUPS.get(word, word) for f in rows[0] for word in [f.split(".")[0]]
        }
        joined = [group for group in groups if group[0] & fields]
        groups = [group for group in groups if group not in joined]
        fields = fields.union(*(group[0] for group in joined))
        together = [axis for group in joined for axis in group[1]]
        groups.append((fields, [*together, rows]))
    first = {k: v for rows in columns for k, v in rows[0].items()}
    _try(base, first)
    for fields, axes in groups:
        for chosen in itertools.product(*(_telling(fields, rows) for rows in axes)):
            settings = {k: v for row in chosen for k, v in row.items()}
            _try(base, {k: settings.get(k, v) for k, v in first.items()})


def _telling(fields, rows):
    """The rows of an axis that stand for all of them."""
    (field, first), *others = rows[0].items()
    values = [row[field] for row in rows]
    # Of seeds, and any number that is not to divide another, an interval is asked.
    is_asked = "." in field or (fields == {field} and field != "epochs")
    if others or not is_asked or type(first) not in (int, float):
        return rows
    if any(type(value) is not type(first) or value != value for value in values):
        return rows
    return [{field: min(values)}, {field: max(values)}]


def _try(base, settings):
    configuration.check(plans.changed(base, settings))


def narrow(axes, field, values):
    """Axes with other values of one field.

    Args:
        axes: As for `cells`.
        field: A field. If it varies alone, it takes the values; if others vary with it,
            only the rows with one of the values stay; if it is in no axis, it becomes
            one, the first.
        values: Sequence of values.

    Raises:
        ValueError: If other fields vary with it and there is no row for a value.
    """
    for index, axis in enumerate(axes):
        if field not in axis:
            continue
        if len(axis) == 1:
            changed = {field: list(values)}
        else:
            rows = []
            for value in values:
                if value not in axis[field]:
                    raise ValueError(
                        f"The grid has no row with {field}={value!r}. It has "
                        f"{', '.join(map(repr, axis[field]))}."
                    )
                rows += [row for row, v in enumerate(axis[field]) if v == value]
            changed = {key: [column[r] for r in rows] for key, column in axis.items()}
        return [*axes[:index], changed, *axes[index + 1 :]]
    return [{field: list(values)}, *axes]


def _naming(axis, whole):
    """The first fields of an axis with their values, as many as tell its rows apart."""
    columns = list((whole if len(whole) > 1 else axis).items())
    texts = [[_text(value, values) for value in values] for _, values in columns]
    for count in range(1, len(texts) + 1):
        rows = list(zip(*texts[:count], strict=True))
        if len(set(rows)) == len(rows):
            return columns[:count]
    return columns


def _labels(fields):
    """The fields' last words where these differ, else the fields themselves."""
    words = [field.rsplit(".", 1)[-1] for field in fields]
    return [
        word if words.count(word) == 1 else field
        for word, field in zip(words, fields, strict=True)
    ]


def _text(value, beside=()):
    """A value as part of a name; `beside`: the others that it is to be told from."""
    if isinstance(value, dict):
        name, arguments = configuration.named(value)
        same = [v for v in beside if isinstance(v, (str, dict))]
        if [configuration.named(v)[0] for v in same].count(name) == 1:
            arguments = {}
        inside = ",".join(f"{key}={_text(v)}" for key, v in arguments.items())
        return f"{_text(name)}({inside})" if inside else _text(name)
    if isinstance(value, (tuple, list)):
        return "x".join(map(_text, value)) or "none"
    text = "none" if value is None else str(value)
    return re.sub(r"[^-+.\w()]", "_", text)


def status(cell, workdir):
    """How far a cell is: one of the five constants at the head of this module.

    "interrupted" is every cell that was begun and is not over, be it because it was
    stopped or because a process is at it. "failed" is also one whose folder is another
    run's, by its configuration, or is damaged: `failure` says which and what to do.
    """
    try:
        return _status(cell, workdir)
    except run_folder.RunFolderError:
        return FAILED


def _status(cell, workdir):
    folder = run_folder.place(pathlib.Path(workdir) / cell.name)
    begun = (folder / run_folder.CONFIG).exists()
    if begun:
        run_folder.check(folder, cell.config.to_dict())
        summary = run_folder.read_summary(folder)
        if summary is not None:
            return summary["status"]
    if _recorded(cell, workdir) is not None:
        return FAILED
    return INTERRUPTED if begun else OPEN


def failure(cell, workdir):
    """What went wrong in a failed cell, a dict with `error` and `traceback`."""
    try:
        _status(cell, workdir)
    except run_folder.RunFolderError as error:
        return {"error": f"RunFolderError: {error}", "traceback": ""}
    return _recorded(cell, workdir)


def failed(cell, workdir):
    """Whether it is recorded that a cell failed."""
    return _recorded(cell, workdir) is not None


def _recorded(cell, workdir):
    """What `fail` recorded of this cell, or None."""
    path = _failure_path(cell, workdir)
    if not path.exists():
        return None
    found = run_folder.read_json(path, "Remove it, or start again with --retry.")
    # Of the same name, the cell may have had another configuration then.
    if found.pop("config", _identity(cell)) != _identity(cell):
        return None
    return found


def _identity(cell):
    return run_folder.identity(cell.config.to_dict())


def _failure_path(cell, workdir):
    return pathlib.Path(workdir) / f"{cell.name}.failed.json"


def fail(cell, workdir, error, trace=""):
    """Records that a cell failed, and why."""
    found = {"config": _identity(cell), "error": error, "traceback": trace}
    text = run_folder.to_json(found, indent=2) + "\n"
    run_folder.write_text(_failure_path(cell, workdir), text)


def clear(cell, workdir):
    """Makes a failed or diverged cell ready to be run again.

    A failed cell goes on after its last checkpoint; a diverged one begins anew. One
    whose folder is another run's or damaged is for the user to mend.

    Raises:
        keras_fa.results.RunFolderError: If another process is at it.
    """
    _failure_path(cell, workdir).unlink(missing_ok=True)
    if status(cell, workdir) == DIVERGED:
        run_folder.forget(pathlib.Path(workdir) / cell.name, DIVERGED)
