"""Records of finished cells: one line each in a file that a repository can hold.

A run folder has every log line and the checkpoints, and goes with the disk that it is
on. Its record has the configuration, the summary (last log line, versions, commit),
what the papers' tables measure on the whole log, and some of the log's lines. A sweep
skips what stands in such a file.
"""

import contextlib
import fcntl
import json
import os
import pathlib

from keras_fa.lab import grid, run_folder

# Lines of the log that a record keeps, the first and the last among them.
_LINES = 41
_DIGITS = 6
# What figures do not draw, and what can be had from the rest.
_LEFT_OUT = (
    "alignment_bound/",
    "conservation/",
    "drift/",
    "feedback_gradient_norm",
    "gradient_cosine/",
    "gradient_norm",
    "learning_rate",
    "ledger/",
    "potential_ratio/",
    "seconds",
)


def record(folder, name, measures=()):
    """The record of a run that is over.

    Args:
        folder: Its run folder.
        name: What the cell is called.
        measures: Functions of the log, a `pandas.DataFrame`, that return a number:
            theirs are kept under their names.

    Returns:
        Dict that JSON can hold.

    Raises:
        keras_fa.results.RunFolderError: If the folder is damaged or holds no run.
    """
    config = run_folder.read_config(folder)
    log = run_folder.read_frame(folder)
    rows = sorted({round(i * (len(log) - 1) / (_LINES - 1)) for i in range(_LINES)})
    columns = [c for c in log.columns if not c.startswith(_LEFT_OUT)]
    # The ends in full: tables take the difference of potentials, which is small.
    thinned = {}
    for column in columns:
        values = log[column].iloc[rows].tolist()
        thinned[column] = (
            values[:1] + [_short(v) for v in values[1:-1]] + values[1:][-1:]
        )
    return {
        "cell": name,
        "identity": run_folder.identity(config),
        "config": config,
        "summary": run_folder.read_summary(folder),
        "measures": {f.__name__: _value(f, log) for f in measures},
        "log": thinned,
    }


def _short(value):
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _value(function, log):
    try:
        return float(function(log))
    except KeyError:
        return None  # A run without what it is measured by.


def read(path):
    """The records in a file, `{identity of the configuration: record}`.

    Raises:
        keras_fa.results.RunFolderError: If a line is no record.
    """
    path = pathlib.Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
            found[one["identity"]] = one
        except (ValueError, KeyError, TypeError) as error:
            raise run_folder.RunFolderError(
                f"Line {number} of {path} is no record of a cell: {error!r}. Put back "
                "the file as it was committed, or remove the line."
            ) from error
    return found


def add(path, folders, measures=()):
    """Adds run folders whose run is over to a file of records.

    Args:
        path: The file; made if missing.
        folders: `{name of the cell: run folder}`. Those that are not there or not over,
            and those that stand in the file, are left out.
        measures: As for `record`.

    Returns:
        The names that were added, a list.

    Raises:
        keras_fa.results.RunFolderError: If the file is damaged.
        OSError: If it cannot be written.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path.parent):
        found, added = read(path), []
        for name, folder in folders.items():
            if not (pathlib.Path(folder) / run_folder.SUMMARY).exists():
                continue
            # A damaged folder is for the sweep to tell.
            with contextlib.suppress(run_folder.RunFolderError):
                if run_folder.identity(run_folder.read_config(folder)) not in found:
                    one = record(folder, name, measures)
                    found[one["identity"]] = one
                    added.append(name)
        if added:
            ordered = sorted(found.values(), key=lambda one: one["cell"])
            lines = [run_folder.to_json(one, sort_keys=True) for one in ordered]
            run_folder.write_text(path, "\n".join(lines) + "\n")
    return added


@contextlib.contextmanager
def _held(folder):
    """Two sweeps that add to one file do it one after the other."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def without_recorded(cells, path, statuses=(grid.FINISHED, grid.DIVERGED)):
    """The cells that do not stand in a file of records.

    Args:
        cells: List of `Cell`.
        path: The file.
        statuses: How a recorded cell must have ended to count.

    Returns:
        List of `Cell`.
    """
    ended = endings(path)
    return [
        cell
        for cell in cells
        if ended.get(run_folder.identity(cell.config.to_dict())) not in statuses
    ]


def endings(path):
    """How the cells in a file of records ended, `{identity: status}`.

    Raises:
        keras_fa.results.RunFolderError: If a line is no record.
    """
    return {key: one["summary"]["status"] for key, one in read(path).items()}
