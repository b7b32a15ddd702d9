"""Turns the docstrings' single backticks into what reStructuredText means by them.

In the docstrings `x` is code, and `keras_fa.x` a name that the reference links. A
public name that the reference lacks is a warning.
"""

import importlib
import re

from sphinx.util import logging

# What reStructuredText would take for a substitution, emphasis or a target.
_MARKUP = re.compile(r"\||\*|(?<=\w)_(?!\w)")


def setup(app):
    """Listens before napoleon, which reads the sections of the docstrings."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}


def _process(app, what, name, obj, options, lines):
    text = "\n".join(lines)
    parts = re.split(r"(``[^`]+``|`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = _MARKUP.sub(lambda found: "\\" + found[0], part)
        elif not part.startswith("``"):
            code = re.sub(r"\s+", " ", part[1:-1])
            is_name = re.fullmatch(r"keras_fa(\.\w+)+", code)
            parts[i] = f":py:obj:`{code}`" if is_name else f"``{code}``"
    lines[:] = "".join(parts).split("\n")


def _check(app, env):
    import keras_fa

    known = env.get_domain("py").objects
    for room in keras_fa.__all__:
        module = getattr(keras_fa, room)
        # Functions of the package itself are those of a room.
        if isinstance(module, type(keras_fa)):
            for name in _public(module):
                if f"{module.__name__}.{name}" not in known:
                    logging.getLogger(__name__).warning(
                        "The reference lacks keras_fa.%s.%s", room, name
                    )


def _public(module):
    """The names that a module is for."""
    if hasattr(module, "__all__"):
        return [
            name
            for name in module.__all__
            if not isinstance(getattr(module, name), type(importlib))
        ]
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", None) == module.__name__
    ]
