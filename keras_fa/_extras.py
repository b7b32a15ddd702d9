"""Libraries that only some rooms need, and the extra that installs each of them."""

import contextlib


@contextlib.contextmanager
def extra(name):
    """Around imports: a library that is not there is told with what installs it.

    Args:
        name: An extra of the package, such as "tune".

    Raises:
        ImportError: If an import inside fails for want of a library.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"This needs {error.name}, which is not installed: "
            f"pip install 'keras_fa[{name}]'.",
            name=error.name,
        ) from error
