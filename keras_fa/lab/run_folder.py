"""The run folder: config.json, metrics.jsonl, summary.json; written whole, read back.

A run is plain files, so that figures, tables and other programs need no model:

- `config.json`: the configuration, written once, before anything is computed. Under
  ".backend" it has the Keras backend that computes the run.
- `metrics.jsonl`: one JSON object a line, one line for each log, in order of epochs. A
  number that is not finite is null. Under ".crc" each line has the CRC-32 of the file
  up to there.
- `summary.json`: how the run ended. It appears last, and only when the run is over.
  Under ".checks" it has what tells whether it and the other two are as they were.

What was written before there were such checks is read all the same.
"""

import copy
import functools
import hashlib
import json
import math
import os
import pathlib
import sys
import zlib

from keras_fa.lab import attempts
from keras_fa.lab.attempts import place

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
_CRC, _CHECKS, _BACKEND = ".crc", ".checks", ".backend"
_CRC_MARK = f', "{_CRC}": "'.encode()


class RunFolderError(RuntimeError):
    """A run folder that cannot be used as asked; the message says what to do."""


class RunFolderBusyError(RunFolderError):
    """A run folder that another process holds."""


class OtherBackendError(RunFolderError):
    """A run folder that was made on another Keras backend."""


def backend():
    """The Keras backend of this process, which need not have loaded Keras."""
    if "keras" in sys.modules:
        return sys.modules["keras"].backend.backend()
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        return json.loads((home / "keras.json").read_text())["backend"]
    except (OSError, ValueError, KeyError):
        return "tensorflow"


def check_backend(path):
    """Refuses the folder of a run that another Keras backend than this one made.

    Args:
        path: A run folder; one without a run is nobody's.

    Raises:
        OtherBackendError: If it is so.
    """
    _settled(_check_backend, path)


def _check_backend(path):
    if not (path / CONFIG).exists():
        return
    made, here = _read_config(path / CONFIG).get(_BACKEND, "tensorflow"), backend()
    if made != here:
        raise OtherBackendError(
            f"{path} holds a run of the Keras backend {made}, and this process is on "
            f"{here}, which draws other numbers and cannot read its checkpoints. Start "
            f"the same command with KERAS_BACKEND={made}, or choose another --workdir."
        )


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
    """The folder of one run, which one process at a time works at.

    Use as a context manager. Inside it the files are in a folder of this process's own;
    at the end, and when the run is given up, they are in the run folder: see
    `keras_fa.lab.attempts`. To read a run needs none of this: the functions of this
    module find its files.

    Args:
        path: The folder; made if missing.
        config: The run's configuration, a dict that JSON can hold.
        writes: Whether this process writes. Of several workers only the chief does; the
            others make no attempt and change nothing.

    Attributes:
        path: Where its files are now.

    Raises:
        RunFolderError: On entering, if the folder belongs to another configuration, if
            another process is at it (`RunFolderBusyError`), if it holds files but no
            configuration, or if it cannot be made.
    """

    def __init__(self, path, config, writes=True):
        path = pathlib.Path(os.path.abspath(path))
        # What is renamed is the folder, wherever a link to it lies.
        self._target = path.resolve() if path.is_symlink() else path
        self.path = self._target
        self.config = config
        self.writes = writes
        self._attempt = None
        self._is_new = False
        # Of the log so far as it goes on, None until it is known; of its last line.
        self._crc = self._mark = None

    def __enter__(self):
        # Before anything is written: the folder may be somebody else's.
        check(self._target, self.config)
        if not self.writes or is_over(self._target):
            return self
        if os.path.ismount(self._target):
            raise RunFolderError(
                f"{self._target} is a mount point, which cannot be renamed as a run "
                "folder is. Choose a --workdir below it."
            )
        try:
            attempt = attempts.claim(self._target)
        except attempts.HeldError as error:
            raise RunFolderBusyError(
                f"Another process is using the run folder {self._target}: {error}. "
                "Wait for it, stop it, or choose another --workdir."
            ) from error
        except OSError as error:
            raise RunFolderError(
                f"Cannot make the run folder {self._target}: {error}. Choose another "
                "--workdir."
            ) from error
        # Between the look and the claim it may have come to its end.
        if is_over(self._target):
            attempt.drop()
            check(self._target, self.config)
            return self
        try:
            self._is_new = not attempt.take()
            if not self._is_new:
                check(attempt.path, self.config)
                for path in attempt.path.glob(_TEMPORARY):
                    path.unlink(missing_ok=True)
        except BaseException as error:
            attempt.release(is_over)
            self._say_where(error, attempt.path)
            raise
        self._attempt, self.path = attempt, attempt.path
        return self

    def __exit__(self, kind=None, error=None, trace=None):
        if self._attempt is None:
            return
        self._attempt.release(is_over)
        self._say_where(error, self.path)
        self._attempt, self.path = None, self._target

    def _say_where(self, error, private):
        """Names the run folder in an error that was raised in the private one.

        That is where the files are by now.
        """
        if error is not None and error.args and isinstance(error.args[0], str):
            text = error.args[0].replace(str(private), str(self._target))
            error.args = (text, *error.args[1:])

    @property
    def place(self):
        """Which attempt has its files, as workers that share the folder are told it.

        Who does not write has none to tell of: "".
        """
        if not self.writes:
            return ""
        return str(self.path.relative_to(attempts.home_of(self._target)))

    def follow(self, place):
        """Reads where the worker that writes has its files: its `place`.

        A worker that was given another folder finds nothing there.
        """
        if not self.writes:
            self.path = attempts.home_of(self._target) / place

    def begin(self, epoch):
        """Begins or resumes the run: the folder belongs to its configuration from here.

        Log lines after the epoch are dropped, and a line that a kill left torn.

        Args:
            epoch: The last epoch whose results are kept; -1 keeps nothing.

        Raises:
            RunFolderError: If the log does not hold the lines up to that epoch.
        """
        if not self.writes:
            return
        if not (self.path / CONFIG).exists():
            stored = {**self.config, _BACKEND: backend()}
            text = to_json(stored, indent=2, sort_keys=True) + "\n"
            write_text(self.path / CONFIG, text)
        lines = [_values(line) for line in _scan(self.path)[0]]
        lines = [line for line in lines if line["epoch"] <= epoch]
        epochs = [line["epoch"] for line in lines]
        expected = list(range(0, epoch + 1, self.config.get("log_every", 1)))
        if epochs != expected:
            missing = sorted(set(expected) - set(epochs))
            raise RunFolderError(
                f"{self.path / METRICS} lacks lines from before the checkpoint of "
                f"epoch {epoch}: those of epochs {_few(missing)}. {_anew(self.path)}"
            )
        self._crc, self._mark, text = 0, None, b""
        for line in lines:
            text += self._chained(line)
        write_text(self.path / METRICS, text.decode())

    def get_state(self):
        """What a checkpoint says of the run: its configuration and its log so far."""
        return {"config": self._identity(), "log": self._mark}

    def set_state(self, state):
        """Makes sure that a checkpoint belongs to this run and its log.

        Raises:
            RunFolderError: If it was saved under another configuration, or the log has
                not the lines any more that it had then.
        """
        if state["config"] != self._identity():
            raise RunFolderError("It was saved by a run with another configuration")
        lines, damage = _scan(self.path)
        if state["log"] not in [_crc_of([line]) for line in lines]:
            raise RunFolderError(
                f"{self.path / METRICS} is not the log that it was saved with: "
                + (damage or "lines are missing")
            )

    def _identity(self):
        path = self.path / CONFIG
        given = {**self.config, _BACKEND: backend()}
        return identity(_read_config(path) if path.exists() else given)

    def summary(self):
        """The summary, or None while the run is not over."""
        return None if self._is_new else read_summary(self.path)

    def finish(self, summary):
        """Ends the run: writes its summary, a dict, and makes it the run folder.

        Returns:
            The summary that the run folder has: that of another attempt, if one was
            first.
        """
        if not self.writes:
            return summary
        checks = {"config": self._identity(), "log": _crc_of(_scan(self.path)[0])}
        checks["summary"] = identity([summary, checks])
        written = {**summary, _CHECKS: checks}
        write_text(self.path / SUMMARY, to_json(written, indent=2) + "\n")
        is_first = self._attempt.publish(is_over)
        self._attempt, self.path = None, self._target
        self._is_new = False
        return summary if is_first else self.summary()

    def has_ended(self):
        """Whether the run has come to its end, by another attempt than this one."""
        return is_over(self._target)

    def log(self, values):
        """Appends one line to metrics.jsonl, which survives the end of the process.

        Args:
            values: Dict of numbers with an integer `epoch` among them.
        """
        if not self.writes:
            return
        path = self.path / METRICS
        if self._crc is None:
            self._crc = zlib.crc32(path.read_bytes()) if path.exists() else 0
        with open(path, "ab") as file:
            file.write(self._chained(values))

    def _chained(self, values):
        """The line of some values, with the checksum of the log up to it."""
        body = to_json(values)[:-1].encode()
        self._crc = zlib.crc32(body, self._crc)
        self._mark = f"{self._crc:08x}"
        end = _CRC_MARK + self._mark.encode() + b'"}\n'
        self._crc = zlib.crc32(end, self._crc)
        return body + end

    def sync(self):
        """Waits until all lines are on the disk, and so survive the machine's end too.

        To be called before a checkpoint: a resumed run makes the lines after its
        checkpoint again, and needs those before it.
        """
        if not self.writes:
            return
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())


# What `write_text` calls a file that is not whole yet.
_TEMPORARY = ".*.*.tmp"


def tidy(folder):
    """Removes what `write_text` left in a folder when processes were killed.

    Files of processes that are still there stay.
    """
    for path in pathlib.Path(folder).glob(_TEMPORARY):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and (int(pid) == os.getpid() or not _is_alive(int(pid))):
            path.unlink(missing_ok=True)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def is_over(path):
    """Whether the run of a folder has come to its end, if only by the look of it."""
    return (path / SUMMARY).exists()


def forget(path, status):
    """Takes a run away, if it has ended as is said.

    Args:
        path: The run folder.
        status: Its status: that of any other run stays.

    Raises:
        RunFolderBusyError: If another process is at it.
    """
    path = pathlib.Path(os.path.abspath(path))
    try:
        attempt = attempts.claim(path)
    except attempts.HeldError as error:
        raise RunFolderBusyError(
            f"Another process is using the run folder {path}: {error}."
        ) from error
    try:
        summary = read_summary(path)
        if summary is not None and summary["status"] == status:
            attempt.take()
    finally:
        attempt.drop()


def check(path, config):
    """Refuses a folder that a run with a configuration may not use; changes nothing.

    Args:
        path: The folder, which need not be there.
        config: The configuration, a dict.

    Raises:
        RunFolderError: If it is a run's of another configuration or Keras backend, or
            holds other files and no run, or is no folder. The message names the fields
            that differ.
    """
    _settled(functools.partial(_check, config=config), path)


def _settled(read, path):
    """What a function reads of a run, wherever its files are just now.

    They may be renamed to their place between the look and the reading.
    """
    while True:
        found = place(path)
        try:
            result = read(found)
        except (FileNotFoundError, RunFolderError):
            if attempts.HOME not in found.parts or found.exists():
                raise
            continue
        if attempts.HOME not in found.parts or found.exists():
            return result


def _check(path, config):
    if not path.exists():
        return
    if not path.is_dir():
        raise RunFolderError(f"{path} is no folder. Choose another --workdir.")
    if not (path / CONFIG).exists():
        others = [p.name for p in path.iterdir() if not p.name.startswith(".")]
        if others:
            raise RunFolderError(
                f"{path} is not empty and holds no {CONFIG} (found: "
                f"{', '.join(sorted(others)[:5])}). Choose another --workdir."
            )
        return
    _check_backend(path)
    stored = _read_config(path / CONFIG)
    stored.pop(_BACKEND, None)
    different = differences(stored, json.loads(to_json(config)))
    if different:
        raise RunFolderError(
            f"{path} belongs to a run with another configuration:\n  "
            + "\n  ".join(different[:10])
            + "\nChoose another --workdir, or give the configuration that is there."
        )


def identity(value):
    """A text that two values, configurations say, share only if they are the same.

    A field that earlier versions did not have counts only where it is not at its
    default: what they stored keeps its identity.

    Args:
        value: Nested dicts and lists that JSON can hold.
    """
    text = to_json(_without_later_fields(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# Fields that came later, those of sections first: the default there is what a
# configuration without them says, so that both are of one run.
_LATER = (
    ("dataset", "exclude_classes", None),
    ("dataset", "image_size", None),
    ("dataset", "memory_bytes", None),
    ("dataset", "augment", None),
    ("dataset", "on_bad_example", None),
    ("dataset", "threads", None),
    ("dataset", "workers", None),
    ("schedule", "cosine", False),
    ("schedule", "warmup", 0),
    ("checkpoint_every_seconds", 0.0),
    (_BACKEND, "tensorflow"),
)


def _without_later_fields(value):
    for *section, field, default in _LATER:
        found = value.get(section[0]) if section and isinstance(value, dict) else value
        if isinstance(found, dict) and field in found and found[field] == default:
            kept = {key: item for key, item in found.items() if key != field}
            value = {**value, section[0]: kept} if section else kept
    return value


def read_json(path, remedy):
    """The object in a JSON file that this program wrote.

    Args:
        path: The file.
        remedy: What to do where it is damaged, a sentence.

    Returns:
        A dict.

    Raises:
        FileNotFoundError: If it is not there.
        RunFolderError: If it is no JSON, or holds something else than an object. The
            message names the file, what is wrong, and the remedy.
    """
    try:
        found = json.loads(pathlib.Path(path).read_bytes().decode())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path} cannot be read as the JSON object that it should hold: {error}. "
            f"{remedy}"
        ) from error
    if not isinstance(found, dict):
        raise RunFolderError(
            f"{path} should hold a JSON object. Received: {found!r:.80}. {remedy}"
        )
    return found


def _anew(folder):
    return f"Put back a copy of it, or remove {folder} to start the run anew."


def _few(values):
    text = ", ".join(map(str, values[:5]))
    return text if len(values) <= 5 else f"{text}, and {len(values) - 5} more"


def _read_config(path):
    return read_json(path, _anew(path.parent))


def differences(stored, given, prefix=""):
    """Lines that name each field in which two configurations differ.

    Args:
        stored: Nested dict, as read from a folder.
        given: Nested dict, as JSON holds it.
        prefix: What to put before the names.
    """
    former, given = _without_later_fields(stored), _without_later_fields(given)
    stored = in_present_form(former)
    if stored is not former and "model" in given:
        given = {**given, "model": _without_former_default(given["model"])}
    return _differences(stored, given, prefix)


def _differences(stored, given, prefix):
    lines = []
    for key in sorted(stored.keys() | given.keys()):
        old, new = stored.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new or (key in stored) != (key in given):
            lines.append(f"{prefix}{key}: {old!r} in the folder, {new!r} given")
    return lines


def _scan(path):
    """What a run folder's log holds, as far as it is whole.

    Returns:
        `(lines, damage)`: the lines, bytes, and what is wrong with the one after them,
        a text, or None. A torn last line, the trace of a kill, is not wrong.
    """
    path = pathlib.Path(path) / METRICS
    *lines, torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
    # A kill may have come between a line and its end.
    lines += [torn] if torn else []
    crc, is_checked = 0, False
    for number, line in enumerate(lines):
        body, mark, end = line.rpartition(_CRC_MARK)
        is_checked = is_checked or bool(mark)
        if is_checked:
            crc = zlib.crc32(body, crc)
            is_whole = end == b'%08x"}' % crc
            crc = zlib.crc32(mark + end + b"\n", crc)
        else:
            is_whole = _is_log_line(line)
            crc = zlib.crc32(line + b"\n", crc)
        if not is_whole:
            is_torn = torn and number == len(lines) - 1
            return lines[:number], None if is_torn else f"line {number + 1} is damaged"
    return lines, None


def _is_log_line(text):
    try:
        return type(json.loads(text)["epoch"]) is int
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _crc_of(lines):
    """The checksum of a log with these lines; None if the last one has none."""
    _, mark, end = lines[-1].rpartition(_CRC_MARK) if lines else (b"", b"", b"")
    return end[:-2].decode() if mark else None


def _values(line):
    return {key: value for key, value in json.loads(line).items() if key != _CRC}


def read_metrics(path):
    """The log lines of a run folder, as a list of dicts.

    A torn last line, the trace of a kill, is left out.

    Raises:
        RunFolderError: If a line is damaged, or the log is not the one that the summary
            was written with.
    """
    return [_values(line) for line in _settled(_checked, path)[1]]


def _checked(path):
    """The summary (None while there is none) and the lines of a run folder, checked."""
    lines, damage = _scan(path)
    if damage:
        raise RunFolderError(
            f"{path / METRICS} is not as it was written: {damage}. {_anew(path)}"
        )
    if not (path / SUMMARY).exists():
        return None, lines
    again = (
        f"Remove {path / SUMMARY} and start the same command again: the run goes on "
        "after its last checkpoint."
    )
    summary = read_json(path / SUMMARY, again)
    checks = summary.pop(_CHECKS, None)
    if checks is None and _crc_of(lines) is None:
        # Of a version of the toolkit that had no checks yet.
        is_whole = summary.get("status") in _STATUSES
        last = _values(lines[-1]) if lines else None
        is_same_log = summary.get("final", last) == last
    else:
        checks = checks if isinstance(checks, dict) else {}
        is_whole = checks.pop("summary", "") == identity([summary, checks])
        is_same_log = checks.get("log") == _crc_of(lines)
        if is_whole and checks.get("config") != identity(_stored_config(path)):
            raise RunFolderError(
                f"{path / SUMMARY} and {path / CONFIG} are of runs with different "
                f"configurations. Put back what belongs together, or remove {path} to "
                "start the run anew."
            )
    if not is_whole:
        raise RunFolderError(f"{path / SUMMARY} is not as it was written. {again}")
    if not is_same_log:
        raise RunFolderError(
            f"{path / METRICS} is not the log that {SUMMARY} beside it was written "
            f"with: lines are missing or changed. {_anew(path)}"
        )
    return summary, lines


_STATUSES = ("finished", "diverged")


def read_frame(path):
    """The log lines of a run folder as a `pandas.DataFrame`, null as NaN."""
    import pandas as pd

    return pd.DataFrame(read_metrics(path))


def read_config(path):
    """The configuration of a run folder, a dict.

    Raises:
        RunFolderError: If there is no run in the folder, or it is damaged.
    """

    def read(path):
        _checked(path)
        return _stored_config(path)

    config = in_present_form(_settled(read, path))
    config.pop(_BACKEND, None)
    if "checkpoint_every" in config:
        config.setdefault("checkpoint_every_seconds", 0.0)
    return config


def _stored_config(path):
    if not (path / CONFIG).exists():
        raise RunFolderError(f"No run in {path}: {CONFIG} is missing.")
    return _read_config(path / CONFIG)


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
    initializer = config.pop("feedback_initializer", None)
    scale = config.pop("sign_scale")
    if config.get("rule") == "fa" and initializer is not None:
        config["rule"] = {"name": "fa", "initializer": initializer}
    elif config.get("rule") == "sign_fa" and scale != "glorot":
        config["rule"] = {"name": "sign_fa", "scale": float(scale)}
    config.setdefault("instruments", {}).setdefault("others", [])
    config["model"] = _without_former_default(config.get("model", {}))
    return config


def _without_former_default(model):
    # It was a field of every configuration, and is the builders' own default.
    if model.get("kernel_initializer") != "glorot_uniform":
        return model
    return {key: v for key, v in model.items() if key != "kernel_initializer"}


def read_summary(path):
    """The summary of a run folder, a dict, or None while the run is not over.

    Raises:
        RunFolderError: If it is damaged, or of another run than the configuration and
            the log beside it. The message says what to do.
    """
    return _settled(_checked, path)[0]


def finished_runs(path):
    """The run folders under a folder whose run is finished, sorted by path.

    Diverged runs are not among them.
    """
    found = sorted(pathlib.Path(path).glob(f"**/{SUMMARY}"))
    # Not those of attempts that ended second, or are just being renamed.
    found = [p.parent for p in found if attempts.HOME not in p.relative_to(path).parts]
    return [p for p in found if read_summary(p)["status"] == "finished"]


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
