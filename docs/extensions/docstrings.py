"""Turns the docstrings' single backticks into what reStructuredText means by them.

In the docstrings `x` is code, and `keras_fa.x` a name that the reference links.
"""

import re

# What reStructuredText would take for a substitution, emphasis or a target.
_MARKUP = re.compile(r"\||\*|(?<=\w)_(?!\w)")


def setup(app):
    """Listens before napoleon, which reads the sections of the docstrings."""
    app.connect("autodoc-process-docstring", _process, priority=400)
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
