"""What the command-line programs share: environment, flags, errors and the way out.

Imported before anything large: TensorFlow reads the environment when it is loaded, and
until a program begins Ctrl-C and SIGTERM end it at once, without a traceback out of an
import.
"""

import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import sys
import threading

for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, lambda number, frame: os._exit(128 + number))
# TensorFlow logs as errors what it recovers from (a GPU that is not there, an attribute
# that an older kernel does not know); what stops a program is an exception besides.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow turns oneDNN on for some CPUs only; where it does not, LeNet takes twice as
# long without it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from absl import app, flags, logging  # noqa: E402 (itself an import that takes time)


class _Path(flags.ArgumentParser):
    """For a flag whose value is a `pathlib.Path`, ~ the user's home."""

    def parse(self, argument):
        if not argument:
            raise ValueError("no path is given")
        return pathlib.Path(argument).expanduser()

    def flag_type(self):
        return "path"


PATH = _Path()


def program(
    interrupted, parse=app.parse_flags_with_usage, command=False, watches=False
):
    """Decorator that makes a command-line program of a function.

    What the user can mend ends the program with a line and code 1; `--verbosity=1`
    shows where it came from. Ctrl-C ends it with code 130, SIGTERM with 143.

    Args:
        interrupted: What to say after Ctrl-C.
        parse: Function of the command line that parses the flags and returns the rest.
        command: Whether the function takes the arguments behind the flags, a command
            of which this program is only the launcher: TensorFlow is not loaded.
        watches: Whether it has others compute, and only watches them: TensorFlow, of
            600 MB, is not loaded either.

    Returns:
        A decorator. The program takes a command line, by default that of the process.
    """

    def decorate(body):
        def begin(argv):
            if not flags.FLAGS["verbosity"].present:
                # absl shows every library's progress notes unless told otherwise.
                logging.set_verbosity(logging.WARNING)
            if command:
                _raise_when_stopped()
                return body(argv[1:])
            if len(argv) > 1:
                raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
            if watches:
                _import_without_tensorflow()
            else:
                load_tensorflow()
            _raise_when_stopped()
            return body()

        @functools.wraps(body)
        def main(argv=None):
            # Names such as "module:function" are looked for in the current folder too,
            # and the script's own comes last: it has a train.py as the user may have.
            sys.path.append(os.getcwd())
            here = os.path.dirname(os.path.abspath(sys.argv[0]))
            sys.path.sort(key=lambda folder: folder == here)
            try:
                app.run(begin, argv, parse)
            except KeyboardInterrupt as stop:
                print(f"\nInterrupted. {interrupted}".rstrip(), flush=True)
                sys.exit(128 + (signal.SIGTERM if stop.args else signal.SIGINT))
            except BrokenPipeError:
                # Whoever read the output has seen enough; the rest goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.exit(1)
            except _expected() as error:
                if logging.get_verbosity() > logging.WARNING:
                    raise
                sys.exit(f"error: {error}")

        return main

    return decorate


def _import_without_tensorflow():
    """Imports the toolkit, of which each room is then loaded when it is asked for."""
    # Not for the processes that this one starts.
    os.environ["KERAS_FA_WATCHES"] = "1"
    try:
        import keras_fa  # noqa: F401
    finally:
        del os.environ["KERAS_FA_WATCHES"]


def _raise_when_stopped():
    """Has Ctrl-C and SIGTERM raise KeyboardInterrupt, wherever they come."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _come_again


def _terminate(number, frame):
    raise KeyboardInterrupt("SIGTERM")


def _come_again(lost):
    """Sends a signal again that met a destructor or a callback of the collector.

    Python prints what these raise and goes on.
    """
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    number = signal.SIGTERM if lost.exc_value.args else signal.SIGINT
    # In a moment: here it would be lost once more.
    timer = threading.Timer(0.1, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _expected():
    """What a user's mistake, a missing file or a full machine raises."""
    found = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        found += (tf.errors.OpError,)
    return found


# Runs beside the program, so that nothing is lost if loading kills it.
_FILTER = r"""
import re, sys
for line in sys.stdin.buffer:
    if not re.match(rb"I\d{4} |WARNING: All log messages before absl::Init", line):
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
"""


def load_tensorflow():
    """Imports TensorFlow without the notices that its libraries print when loaded.

    They print them before they have read TF_CPP_MIN_LOG_LEVEL (tensorflow issue
    100442), so no switch reaches them. Warnings and errors are passed on.
    """
    if "tensorflow" in sys.modules or os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0":
        return
    with (
        subprocess.Popen(
            [sys.executable, "-ISc", _FILTER],
            stdin=subprocess.PIPE,
            stdout=2,
            # Ctrl-C is for the program, whose end ends the filter.
            start_new_session=True,
        ) as passed_on,
        contextlib.ExitStack() as stack,
    ):
        kept = os.dup(2)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        os.dup2(passed_on.stdin.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError(
                "This needs TensorFlow, which prepares the data of runs on every Keras "
                "backend: pip install 'keras_fa[lab]'."
            ) from error
