"""The run folder: config.json, metrics.jsonl, summary.json; written whole, read back.

A run is plain files, so that figures, tables and other programs need no model:

- `config.json`: the configuration, written once, before anything is computed.
- `metrics.jsonl`: one JSON object a line, one line for each log, in order of epochs. A
  number that is not finite is null.
- `summary.json`: how the run ended. It appears last, and only when the run is over.
"""

import contextlib
import copy
import fcntl
import json
import math
import os
import pathlib
import shutil

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
_LOCK = ".lock"


class RunFolderError(RuntimeError):
    """A run folder that cannot be used as asked; the message says what to do."""


class RunFolderBusyError(RunFolderError):
    """A run folder that another process holds."""


def write_text(path, text):
    """Writes a file whole or not at all.

    Data, fsync, rename, fsync of the folder: a kill or a full disk at any moment leaves
    either the old file or the new one.

    Args:
        path: Where to.
        text: The whole content.

    Raises:
        OSError: If the disk is full or the folder cannot be written. The file that was
            there before is untouched.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def to_json(value, **kwargs):
    """JSON text of nested dicts, sequences and NumPy scalars; non-finite as null."""
    return json.dumps(_plain(value), allow_nan=False, **kwargs)


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RunFolder:
    """The folder of one run, held by one process at a time.

    Use as a context manager; entering takes the lock, which the operating system drops
    when the process ends, however it ends.

    Args:
        path: The folder; made if missing.
        config: The run's configuration, a dict that JSON can hold.
        writes: Whether this process writes. Of several workers only the chief does; the
            others take no lock and change nothing.

    Raises:
        RunFolderError: On entering, if the folder belongs to another configuration, if
            another process holds it (`RunFolderBusyError`), or if it holds files but no
            configuration.
    """

    def __init__(self, path, config, writes=True):
        self.path = pathlib.Path(path)
        self.config = config
        self.writes = writes
        self._lock = None

    def __enter__(self):
        if not self.writes:
            self._check()
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"Cannot make the run folder {self.path}: {error}. Choose another "
                "--workdir."
            ) from error
        self._lock = open(self.path / _LOCK, "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunFolderBusyError(
                f"Another process is using the run folder {self.path}. Wait for it, "
                "stop it, or choose another --workdir."
            ) from error
        try:
            self._check()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *exception):
        if self._lock is not None:
            self._lock.close()

    def _check(self):
        path = self.path / CONFIG
        if not path.exists():
            if not self.writes:
                return
            others = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if others:
                raise RunFolderError(
                    f"{self.path} is not empty and holds no {CONFIG} (found: "
                    f"{', '.join(sorted(others)[:5])}). Choose another --workdir."
                )
            return
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = in_present_form(stored)
        different = differences(stored, json.loads(to_json(self.config)))
        if different:
            raise RunFolderError(
                f"{self.path} belongs to a run with another configuration:\n  "
                + "\n  ".join(different[:10])
                + "\nChoose another --workdir, or give the configuration that is there."
            )

    def begin(self, epoch):
        """Begins or resumes the run: the folder belongs to its configuration from here.

        Log lines after the epoch are dropped, and a line that a kill left torn.

        Args:
            epoch: The last epoch whose results are kept; -1 keeps nothing.
        """
        if not self.writes:
            return
        text = to_json(self.config, indent=2, sort_keys=True) + "\n"
        write_text(self.path / CONFIG, text)
        lines = [
            to_json(line) + "\n"
            for line in read_metrics(self.path)
            if line["epoch"] <= epoch
        ]
        write_text(self.path / METRICS, "".join(lines))

    def summary(self):
        """The summary, or None while the run is not over."""
        return read_summary(self.path)

    def finish(self, summary):
        """Ends the run: writes its summary, a dict."""
        if not self.writes:
            return
        write_text(self.path / SUMMARY, to_json(summary, indent=2) + "\n")

    def clear(self):
        """Forgets the run: takes its results and checkpoints away."""
        # The summary first: without it a half-cleared run is one to be run again.
        for name in (SUMMARY, METRICS):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def log(self, values):
        """Appends one line to metrics.jsonl, which survives the end of the process.

        Args:
            values: Dict of numbers with an integer `epoch` among them.
        """
        if not self.writes:
            return
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(to_json(values) + "\n")

    def sync(self):
        """Waits until all lines are on the disk, and so survive the machine's end too.

        To be called before a checkpoint: a resumed run makes the lines after its
        checkpoint again, and needs those before it.
        """
        if not self.writes:
            return
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())


def differences(stored, given, prefix=""):
    """Lines that name each field in which two configurations differ.

    Args:
        stored: Nested dict, as read from a folder.
        given: Nested dict, as JSON holds it.
        prefix: What to put before the names.
    """
    lines = []
    for key in sorted(stored.keys() | given.keys()):
        old, new = stored.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new or (key in stored) != (key in given):
            lines.append(f"{prefix}{key}: {old!r} in the folder, {new!r} given")
    return lines


def read_metrics(path):
    """The log lines of a run folder, as a list of dicts.

    A torn last line, the trace of a kill, is left out.
    """
    path = pathlib.Path(path) / METRICS
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return lines


def read_frame(path):
    """The log lines of a run folder as a `pandas.DataFrame`, null as NaN."""
    import pandas as pd

    return pd.DataFrame(read_metrics(path))


def read_config(path):
    """The configuration of a run folder, a dict.

    Raises:
        RunFolderError: If there is no run in the folder.
    """
    path = pathlib.Path(path) / CONFIG
    if not path.exists():
        raise RunFolderError(f"No run in {path.parent}: {CONFIG} is missing.")
    return in_present_form(json.loads(path.read_text(encoding="utf-8")))


def in_present_form(stored):
    """A configuration that an earlier version of the toolkit stored, as of today.

    Args:
        stored: Nested dict, as read from a run folder.

    Returns:
        A dict: the same one if it is of the present form.
    """
    if "sign_scale" not in stored:
        return stored
    config = copy.deepcopy(stored)
    initializer = config.pop("feedback_initializer")
    scale = config.pop("sign_scale")
    if config["rule"] == "fa" and initializer is not None:
        config["rule"] = {"name": "fa", "initializer": initializer}
    elif config["rule"] == "sign_fa" and scale != "glorot":
        config["rule"] = {"name": "sign_fa", "scale": float(scale)}
    config["instruments"].setdefault("others", [])
    # It was a field of every configuration, and is the builders' own default.
    if config["model"].get("kernel_initializer") == "glorot_uniform":
        del config["model"]["kernel_initializer"]
    return config


def read_summary(path):
    """The summary of a run folder, a dict, or None while the run is not over."""
    path = pathlib.Path(path) / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def finished_runs(path):
    """The run folders under a folder whose run is finished, sorted by path.

    Diverged runs are not among them.
    """
    found = sorted(pathlib.Path(path).glob(f"**/{SUMMARY}"))
    return [p.parent for p in found if read_summary(p.parent)["status"] == "finished"]


def flatten(config):
    """`{"section.field": value}` of a nested configuration."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def aggregate(table, by, values):
    """Mean and standard error over the runs of equal settings.

    Args:
        table: `pandas.DataFrame`, a row for each run.
        by: Columns with the settings.
        values: Columns with the results.

    Returns:
        `pandas.DataFrame` with a row for each combination of settings that is there:
        the columns `by`; `<value>_mean`, `<value>_sd` (n - 1 in the denominator) and
        `<value>_se` (sd / sqrt(n)) for each value, the last two NaN for a single run;
        and `seeds`, the number of runs n.
    """
    groups = table.groupby(list(by), sort=True, dropna=False)
    columns = {}
    for value in values:
        columns[f"{value}_mean"] = groups[value].mean()
        columns[f"{value}_sd"] = groups[value].std(ddof=1)
        columns[f"{value}_se"] = groups[value].sem(ddof=1)
    columns["seeds"] = groups.size()

    import pandas as pd

    return pd.DataFrame(columns).reset_index()
