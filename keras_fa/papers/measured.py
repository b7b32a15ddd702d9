"""Files of results/theory: a CSV file for each measurement, a row for each cell.

A cell that stands there is not measured again; rows are added as they come.
"""

import pandas as pd

from keras_fa.lab import run_folder
from keras_fa.papers.theory import MEASUREMENTS


def read(folder, name):
    """The rows of a measurement, a `pandas.DataFrame`, empty where there are none."""
    path = folder / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def measure(folder, name, commit=None, tell=None):
    """Measures the cells that are not in the file yet.

    Args:
        folder: That of the files; made if missing.
        name: One of `MEASUREMENTS`.
        commit: What to say of the code, under "commit".
        tell: Function of each new row, a dict.

    Returns:
        The rows, a `pandas.DataFrame`.

    Raises:
        OSError: If the file cannot be written. What is there stays.
    """
    one, rows = MEASUREMENTS[name], read(folder, name).to_dict("records")
    folder.mkdir(parents=True, exist_ok=True)
    known = [{k: v for k, v in row.items() if not _missing(v)} for row in rows]
    for cell in one.cells:
        if any(all(row.get(k) == v for k, v in cell.items()) for row in known):
            continue
        row = {**cell, **one.function(**cell), "commit": commit}
        rows.append(row)
        text = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
        run_folder.write_text(folder / f"{name}.csv", text)
        if tell is not None:
            tell(row)
    return read(folder, name)


def _missing(value):
    return isinstance(value, float) and value != value
