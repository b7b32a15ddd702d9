"""Networks by name: the toolkit's, those of keras.applications, and a user's own."""

import contextlib
import inspect
import logging

import keras

from keras_fa import registry
from keras_fa.models.conversion import convert

_APPLICATIONS = "applications."


def network(name, input_shape, num_classes, rule="fa", dtype=None, **arguments):
    """A network by its name, under a rule.

    Args:
        name: "mlp", "lenet" or "resnet18"; a name given with
            `keras_fa.register("model", name)`; "module:function"; or
            "applications.MobileNetV2", a network of `keras.applications` without
            weights, which returns logits.
        input_shape: Shape of one example.
        num_classes: Number of outputs.
        rule: Feedback rule: see `keras_fa.convert`.
        dtype: Dtype or dtype policy of every layer.
        **arguments: Further ones of what the name stands for. That is called with
            `input_shape`, `num_classes`, `rule` and `dtype` as far as it takes them,
            and returns a built model. One that takes no rule is converted; what has
            weights that no rule reaches then is told in the log.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: If the name is unknown, an argument does not fit, or the model
            cannot be converted.

    Example:
        >>> keras_fa.models.network("mlp", (4,), 3, hidden_units=5).output_shape
        (None, 3)
    """
    builder = _builder_of(name)
    taken = inspect.signature(builder).parameters
    given = {
        "input_shape": tuple(input_shape),
        "num_classes": num_classes,
        "rule": rule,
        "dtype": dtype,
    }
    with contextlib.nullcontext() if "dtype" in taken else _default_dtype(dtype):
        model = registry.made("model", builder, arguments, given)
    if "rule" in taken:
        return model
    model, report = convert(model, rule, in_place=True)
    if report.left_out:
        logging.getLogger("keras_fa").warning(
            "%s has a rule but for:\n%s", name, report
        )
    return model


def takes(name, argument):
    """Whether what a name stands for takes an argument of that name.

    Args:
        name: As for `network`.
        argument: Name of an argument.

    Raises:
        ValueError: If the name is unknown.
    """
    parameters = inspect.signature(_builder_of(name)).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return argument in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def _builder_of(name):
    if not str(name).startswith(_APPLICATIONS):
        return registry.get("model", name)
    known = [n for n, f in vars(keras.applications).items() if inspect.isfunction(f)]
    short = name.removeprefix(_APPLICATIONS)
    if short not in known:
        raise ValueError(
            f"keras.applications has no {short!r}."
            f"{registry.did_you_mean(short, known, _APPLICATIONS + '{}')} Known: "
            f"{', '.join(known)}."
        )
    application = getattr(keras.applications, short)

    def build(input_shape, num_classes, **arguments):
        return application(
            weights=None,
            input_shape=input_shape,
            classes=num_classes,
            classifier_activation=None,
            **arguments,
        )

    # Under its own name and with its own arguments in what errors say.
    build.__name__ = name
    fixed = ("weights", "input_shape", "classes", "classifier_activation")
    own = inspect.signature(application).parameters.values()
    parameters = list(inspect.signature(build).parameters.values())[:2]
    parameters += [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in own
        if p.name not in fixed and p.name != "input_tensor"
    ]
    build.__signature__ = inspect.Signature(parameters)
    return build


@contextlib.contextmanager
def _default_dtype(dtype):
    """Within, layers without a dtype of their own have this one."""
    before = keras.config.dtype_policy()
    if dtype is not None:
        keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
