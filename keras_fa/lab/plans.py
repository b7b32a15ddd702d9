"""Files that say what to run: configurations, grids and search spaces.

They are found by path or by name, and what is wrong in one is told with file and line.
"""

import ast
import contextlib
import pathlib
import runpy
import sys
import traceback

from ml_collections import ConfigDict

from keras_fa.lab.config import BY_LAYER, NAMED, named, set_value
from keras_fa.registry import did_you_mean

# Where the files of each kind are below a folder of configurations, and their function.
_KINDS = {
    "config": ("", "get_config"),
    "grid": ("grids", "get_grid"),
    "space": ("tuning", "get_space"),
}


def _is_axis(value):
    return isinstance(value, dict) and all(
        isinstance(values, (list, tuple, range)) for values in value.values()
    )


def _is_positive(value):
    return isinstance(value, (int, float)) and value > 0


# What a plan has, which values fit, and how that is said.
_KEYS = {
    "grid": {
        "config": (lambda value: True, ""),
        "axes": (
            lambda value: (
                isinstance(value, (list, tuple)) and all(map(_is_axis, value))
            ),
            "a list of dicts from a field to the list of its values",
        ),
        "seconds_per_cell": (_is_positive, "a positive number"),
    },
    "space": {
        "config": (lambda value: True, ""),
        "fields": (lambda value: isinstance(value, dict), "a dict"),
        "space": (
            lambda value: (
                isinstance(value, dict)
                and all(isinstance(field, dict) for field in value.values())
            ),
            "a dict from a field to the dict of its range",
        ),
        "objective": (lambda value: isinstance(value, str), "a key of the logs"),
        "patience": (_is_positive, "a positive number of epochs"),
        "confirm": (_is_axis, "a dict from a field to the list of its values"),
    },
}
_OPTIONAL = {"fields", "patience", "confirm"}

_SWITCH = {"true": True, "1": True, "false": False, "0": False}


def _folders(kind):
    """Where names are looked for: the user's own folder, then the toolkit's."""
    package = pathlib.Path(__file__).parents[1]
    own = package / "configs"  # in a wheel; in a checkout it lies beside the package
    if not own.is_dir():
        own = package.parent / "configs"
    return [folder / _KINDS[kind][0] for folder in (pathlib.Path("configs"), own)]


def names(kind):
    """The names that `find` knows: those in ./configs, then the toolkit's own.

    Args:
        kind: "config", "grid" or "space".
    """
    files = [file for f in _folders(kind) for file in sorted(f.glob("*.py"))]
    return list(dict.fromkeys(file.stem for file in files))


def find(kind, name):
    """The file that a name stands for.

    Args:
        kind: "config", "grid" or "space".
        name: A path. Where there is no such file, the name of one in `./configs` (of a
            grid in `./configs/grids`, of a space in `./configs/tuning`) or among the
            toolkit's own.

    Returns:
        `pathlib.Path`.

    Raises:
        ValueError: If there is none. The message has the known names.
    """
    path = pathlib.Path(name).expanduser()
    named = [folder / f"{name}.py" for folder in _folders(kind)]
    for candidate in (path, *named):
        if candidate.is_file():
            return candidate
    known = names(kind)
    raise ValueError(
        f"There is no file {str(name)!r}, and no {kind} of that name."
        f"{did_you_mean(path.stem, known)} Known: {', '.join(known)}."
    )


def read_config(name):
    """Reads a configuration file.

    Args:
        name: As for `find`. What follows a colon is handed to `get_config`.

    Returns:
        `ml_collections.ConfigDict`.

    Raises:
        ValueError: If there is no such file, or it fails, or returns something else.
    """
    name, *argument = str(name).split(":", 1)
    path = find("config", name)
    config = _call(path, "get_config", *argument)
    if not isinstance(config, (ConfigDict, dict)):
        raise ValueError(
            f"get_config() in {path} should return a configuration: start from "
            f"keras_fa.config.default_config(). Received: {config!r}."
        )
    return config if isinstance(config, ConfigDict) else ConfigDict(config)


def read_plan(kind, name):
    """Reads a plan around a configuration: the grid of a sweep, the space of a search.

    Args:
        kind: "grid" or "space".
        name: As for `find`.

    Returns:
        The plan, a dict: of a grid `axes` and `seconds_per_cell`, of a space `space`,
        `objective` and perhaps `fields`, `patience` and `confirm`. Under `config` it
        has the `ConfigDict` that the file names: a file in the folder above its own or
        in its own, or what `find` knows.

    Raises:
        ValueError: If there is no such file, or it fails, or a key is unknown, missing
            or of another kind.
    """
    path = find(kind, name)
    function = _KINDS[kind][1]
    before = [*sys.path]
    plan = _call(path, function)
    if not isinstance(plan, dict):
        raise ValueError(
            f"{function}() in {path} should return a dict. Received: {plan!r}."
        )
    keys = _KEYS[kind]
    for key, value in plan.items():
        if key not in keys:
            raise ValueError(
                f"What {path} returns has an unknown key {key!r}."
                f"{did_you_mean(key, keys)} Known: {', '.join(keys)}."
            )
        fits, words = keys[key]
        if not fits(value):
            raise ValueError(
                f"{key!r} in {path} should be {words}. Received: {value!r}."
            )
    missing = keys.keys() - _OPTIONAL - plan.keys()
    if missing:
        raise ValueError(f"What {path} returns lacks {', '.join(sorted(missing))}.")
    config = plan["config"]
    for folder in (path.resolve().parents[1], path.resolve().parent):
        if (folder / str(config)).is_file():
            config = folder / config
            break
    plan = {**plan, "config": read_config(config)}
    # Modules beside the configuration come first: a grid often has the name of its own.
    folder = str(path.resolve().parent)
    if folder not in before:
        sys.path.remove(folder)
        sys.path.append(folder)
    return plan


def _call(path, function, *arguments):
    """What a function of a file returns; what goes wrong in it names file and line."""
    # For "module:function" names of modules beside it, here and in worker processes.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        functions = runpy.run_path(str(path))
        if function in functions:
            return functions[function](*arguments)
    except SyntaxError as error:
        raise ValueError(
            f"{error.filename}, line {error.lineno}: {error.msg}."
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    raise ValueError(f"{path} has no function {function}().")


def set_field(config, field, value):
    """Sets a field of a configuration.

    A field that the configuration does not have is added to its section: whether it may
    be there is for `keras_fa.config.check` to say.

    Args:
        config: `ConfigDict`, which changes.
        field: The field's path, such as "optimizer.learning_rate", or an argument of a
            named thing, such as "rule.scale".
        value: Its value.

    Raises:
        ValueError: If there is no such section (with the nearest one), or the value is
            of another kind than the field's.
    """
    if is_argument(field):
        head, argument = _words(field)
        name, arguments = named(config[head])
        if name == BY_LAYER:
            raise ValueError(
                f"config.{head} is a table of rules by layer: set the whole of it. "
                f"Received: {field}={value!r}."
            )
        with config.unlocked():
            set_value(config, head, {"name": name, **arguments, argument: value})
        return
    section, last = _section(config, field)
    kind = section.get_type(last) if last in section else type(value)
    try:
        if isinstance(value, bool) and kind in (int, float):
            raise TypeError
        with section.unlocked():
            set_value(section, last, value)
    except TypeError:
        takes = f"takes {kind.__name__}"
        if isinstance(section[last], ConfigDict):
            takes = f"is a section: set one of its fields, {', '.join(section[last])}"
        raise ValueError(f"config.{field} {takes}. Received: {value!r}.") from None


def kind_of(config, field):
    """The type that a field of a configuration takes; None where anything goes.

    Args:
        config: `ConfigDict`.
        field: The field's path.

    Raises:
        ValueError: If there is no such section.
    """
    if is_argument(field):
        return None
    section, last = _section(config, field)
    kind = section.get_type(last) if last in section else None
    return None if kind in (object, type(None)) else kind


def override(config, fields):
    """Sets the fields of a configuration that a command line gives.

    Of the arguments that the file gives to its model one of another name keeps those
    that it takes: the others were meant for the model of before.

    Args:
        config: `ConfigDict`, which changes.
        fields: `{field: text}`, as for `read_value`.

    Returns:
        Names of the arguments that were taken away, a list.

    Raises:
        ValueError: As for `set_field`, and if the model's name is unknown.
    """
    from keras_fa import models

    foreign = []
    if fields.get("model.name", config.model.name) != config.model.name:
        name = fields["model.name"]
        given = [key for key in config.model if key not in ("name", "frozen")]
        try:
            foreign = [key for key in given if not models.takes(name, key)]
        except ValueError as error:
            raise ValueError(f"config.model.name: {error}") from error
        with config.model.unlocked():
            for key in foreign:
                del config.model[key]
    for field, text in fields.items():
        set_field(config, field, read_value(config, field, text))
    return foreign


def read_value(config, field, text):
    """The value that a command line gives to a field of a configuration.

    Args:
        config: `ConfigDict`.
        field: The field's path.
        text: The value: as it is for a text, else as Python writes it; a switch is
            also "true" or "1". "None" is none.

    Raises:
        ValueError: If there is no such section.
    """
    kind = kind_of(config, field)
    if kind is bool and text in _SWITCH:
        return _SWITCH[text]
    if kind is not str or text == "None":
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
    return text


def is_argument(field):
    """Whether a field is an argument of a thing that a configuration names.

    Args:
        field: The field's path, such as "rule.scale".

    Raises:
        ValueError: If it is none.
    """
    head, *rest = _words(field)
    return head in NAMED and len(rest) == 1


def changed(config, fields):
    """A copy of a configuration with other values.

    Args:
        config: `ConfigDict`; stays as it is.
        fields: `{field: value}`, as for `set_field`.

    Raises:
        ValueError: As `set_field` does.
    """
    copy = config.copy_and_resolve_references()
    for field, value in fields.items():
        set_field(copy, field, value)
    return copy


def _words(field):
    words = field.split(".")
    if not all(word.isidentifier() for word in words):
        raise ValueError(
            f"Unknown field {'config.' + field!r}: the names of fields are words of "
            "letters, digits and underscores with dots between them."
        )
    return words


def _section(config, field):
    """The section that a field is in, and the field's last word."""
    *path, last = _words(field)
    section, prefix = config, ""
    for key in path:
        sections = [k for k in section if isinstance(section[k], ConfigDict)]
        if key not in sections:
            raise ValueError(
                f"Unknown field config.{field}: there is no section {prefix + key!r}."
                f"{did_you_mean(key, sections, f'config.{prefix}{{}}')} "
                f"Sections: {', '.join(sections) or 'none'}."
            )
        section, prefix = section[key], f"{prefix}{key}."
    return section, last
