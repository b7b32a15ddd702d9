"""The command `keras-fa`, which starts one of the programs.

It stands beside the package, since to import that loads TensorFlow, and gives its own
place to the program, so that signals reach it, and processes that it starts find it,
as if the program's file had been started.
"""

import ast
import difflib
import os
import pathlib
import re
import sys

_PROGRAMS = {
    "train": "trainers/train.py",
    "sweep": "trainers/sweep.py",
    "tune": "trainers/tune.py",
    "audit": "trainers/audit.py",
    "events": "trainers/events.py",
    "measure": "trainers/measure.py",
    "reproduce": "trainers/reproduce.py",
    "zoo": "trainers/zoo.py",
    "launch": "trainers/launch.py",
    "benchmark": "benchmarks/run.py",
}
_PACKAGE = pathlib.Path(__file__).resolve().with_name("keras_fa")
# In a wheel the programs are inside the package, in a checkout beside it.
_ROOT = _PACKAGE if (_PACKAGE / "trainers").is_dir() else _PACKAGE.parent


def main():
    """Starts the program that the command line names, in the place of this one."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(_usage())
    elif command == "--version":
        text = (_PACKAGE / "__init__.py").read_text(encoding="utf-8")
        print("keras_fa", re.search(r'__version__ = "(.*)"', text)[1])
    elif command in _PROGRAMS:
        path = _ROOT / _PROGRAMS[command]
        if not path.is_file():
            sys.exit(
                f"error: {command} is not installed with the package: start "
                f"{_PROGRAMS[command]} in a checkout of the source."
            )
        os.execv(sys.executable, [sys.executable, str(path), *arguments])
    else:
        close = difflib.get_close_matches(command, _PROGRAMS, n=1)
        hint = f' Did you mean "{close[0]}"?' if close else ""
        sys.exit(
            f"error: Unknown command: {command}.{hint} Known: {', '.join(_PROGRAMS)}."
        )


def _usage():
    lines = [
        "Feedback alignment for Keras.",
        "",
        "keras-fa COMMAND [--flag=value ...]",
        "",
    ]
    for command, path in _PROGRAMS.items():
        what = "not installed with the package"
        if (_ROOT / path).is_file():
            text = (_ROOT / path).read_text(encoding="utf-8")
            what = ast.get_docstring(ast.parse(text)).splitlines()[0]
        lines.append(f"  {command:10} {what}")
    return "\n".join(
        [*lines, "", "keras-fa COMMAND --help lists the flags of a command."]
    )
