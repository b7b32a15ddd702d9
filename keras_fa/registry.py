"""One open table for each kind of thing that a name can stand for.

The toolkit's own rules, networks, data sets, losses, optimizers and instruments are
registered here as a user's are. A name "module:function" needs no entry: the module is
imported wherever the name is looked up, in the worker processes of a sweep too.
"""

import difflib
import functools
import importlib
import inspect

KINDS = ("rule", "model", "dataset", "loss", "optimizer", "instrument")

_TABLES = {kind: {} for kind in KINDS}


def register(kind, name):
    """Decorator that gives a function or class a name in one of the tables.

    Args:
        kind: "rule", "model", "dataset", "loss", "optimizer" or "instrument".
        name: The name, as configurations and builders will say it.

    Returns:
        A decorator that returns what it decorates.

    Raises:
        ValueError: If there is no such kind, the name is no plain word, or something
            else has it already. The same definition again, as when a notebook's cell
            is run twice, takes the place of the first.

    Example:
        >>> @keras_fa.register("loss", "fourth_power")
        ... def fourth_power(y_true, y_pred):
        ...     return keras.ops.mean((y_true - y_pred) ** 4, axis=-1)
    """
    table = _table(kind)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"The name of a {kind} must be a plain word, letters, digits and "
            f"underscores. Received: {name!r}."
        )

    def add(thing):
        known = table.get(name)
        if known is not None and _origin(known) != _origin(thing):
            raise ValueError(
                f"There is a {kind} called {name!r} already: {_origin(known)}. Choose "
                "another name."
            )
        table[name] = thing
        return thing

    return add


def get(kind, name):
    """What a name stands for.

    Args:
        kind: As for `register`.
        name: A registered name, or "module:function", whose module is imported;
            "module:Class.method" works as well. What was registered with an attribute
            `takes_address` is named with its first argument: "folder:PATH".

    Returns:
        What was registered, or the object of that name in the module.

    Raises:
        ValueError: If there is no such kind, name, module or attribute. The message
            has the nearest known name.
    """
    table = _table(kind)
    if isinstance(name, str) and ":" in name:
        scheme, address = name.split(":", 1)
        if getattr(table.get(scheme), "takes_address", False):
            return functools.partial(table[scheme], address)
        return _imported(kind, name)
    if name in table:
        return table[name]
    kind = kind.replace("dataset", "data set")
    raise ValueError(
        f"Unknown {kind}: {name!r}.{did_you_mean(name, table)} Known: "
        f'{", ".join(table)}; "module:function" names one of your own.'
    )


def made(kind, thing, arguments, given=None):
    """Calls what a name stands for with arguments that come from a configuration.

    The arguments are laid beside its signature first, so that an error says which of
    them does not fit, and one from inside the call is left as it is.

    Args:
        kind: As for `register`.
        thing: A function or class.
        arguments: Dict of the configuration's arguments.
        given: Dict of what the caller offers besides; what `thing` does not take is
            left out.

    Returns:
        What the call returns.

    Raises:
        ValueError: If an argument is unknown, doubly given or missing, or is no switch
            where the default is one.
    """
    parameters = inspect.signature(thing).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD,)]
    label = getattr(thing, "__name__", repr(thing))
    offered = {k: v for k, v in (given or {}).items() if any_name or k in parameters}
    for name in arguments:
        if name in offered or not (any_name or name in parameters):
            free = [k for k in known if k not in offered]
            raise ValueError(
                f"The {kind} {label} has no argument {name!r}."
                f"{did_you_mean(name, free)} Known: {', '.join(free) or 'none'}."
            )
        is_switch = isinstance(getattr(parameters.get(name), "default", None), bool)
        if is_switch and not isinstance(arguments[name], bool):
            raise ValueError(
                f"The argument {name!r} of the {kind} {label} must be True or False. "
                f"Received: {arguments[name]!r}."
            )
    try:
        inspect.signature(thing).bind(**offered, **arguments)
    except TypeError as error:
        raise ValueError(f"The {kind} {label}: {error}.") from error
    return thing(**offered, **arguments)


def names(kind):
    """The registered names of a kind, the toolkit's own first."""
    return tuple(_table(kind))


def name_of(kind, thing):
    """The name that something was registered under, or None."""
    found = (name for name, known in _table(kind).items() if known is thing)
    return next(found, None)


def modules():
    """The modules outside the toolkit whose import registered something, sorted.

    A process that is to know the same names imports them.
    """
    found = {thing.__module__ for table in _TABLES.values() for thing in table.values()}
    return sorted(m for m in found if m.partition(".")[0] not in ("keras_fa", "keras"))


def did_you_mean(name, known, form="{}"):
    """A sentence with the nearest of the known names, or nothing where none is near.

    Args:
        name: What was given.
        known: The names there are.
        form: What the name stands in, such as "config.{}".
    """
    close = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
    return f' Did you mean "{form.format(close[0])}"?' if close else ""


def _table(kind):
    if kind not in _TABLES:
        raise ValueError(
            f"Unknown kind: {kind!r}.{did_you_mean(kind, KINDS)} Known: "
            f"{', '.join(KINDS)}."
        )
    return _TABLES[kind]


def _imported(kind, name):
    module_name, _, path = name.partition(":")
    try:
        thing = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # An import inside the user's own module that fails is a fault of that module.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"The {kind} {name!r} is in a module {module_name!r} that cannot be "
            f"imported: {error}. Modules are looked for beside the configuration file, "
            "in the current folder and where Python looks."
        ) from error
    for part in path.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError as error:
            public = [n for n in dir(thing) if not n.startswith("_")]
            raise ValueError(
                f"The module {module_name!r} of the {kind} {name!r} has no {path!r}."
                f"{did_you_mean(path, public)}"
            ) from error
    return thing


def _origin(thing):
    return f"{thing.__module__}:{getattr(thing, '__qualname__', type(thing).__name__)}"
