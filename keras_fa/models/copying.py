"""A copy of any Keras model, with its weights and the states outside of them."""

import tempfile

import keras
import numpy as np

from keras_fa import _keras, autodiff
from keras_fa.models import swapping


def copy(model):
    """The same model made again, with the weights and states of the old one.

    Args:
        model: A Keras model or layer.

    Returns:
        One of the same class that shares nothing with it and is not compiled.

    Raises:
        ValueError: If the model cannot be made again from its graph or config, or what
            is made is another one. The message says where.
    """
    new = _made_again(model)
    reached = set()
    for way, old, made in _pairs(model, new):
        reached.add(id(old))
        _check(way, old, made)
        _carry(old, made)
        _compare_attributes(way, old, made)
    for layer in _keras.layers_of(model):
        if id(layer) not in reached and any(map(len, _keras.own_variables(layer))):
            _refuse(
                f"no attribute of the model leads to its layer '{layer.name}', so that "
                "files of weights miss it too"
            )
    return new


def _refuse(reason):
    raise ValueError(
        f"The model cannot be copied: {reason}. With in_place=True it is converted "
        "itself, without a copy."
    )


def _made_again(model):
    models = [x for x in _keras.layers_of(model) if isinstance(x, keras.Model)]
    classes = {swapping.written_class(x) for x in _keras.layers_of(model)}
    known = {c.__name__: c for c in classes if not c.__module__.startswith("keras.")}

    def again(layer):
        if isinstance(layer, keras.layers.Lambda):
            return _keras.same_lambda(layer)
        config = keras.saving.serialize_keras_object(layer)
        config.pop("compile_config", None)
        if layer is not model:
            # The graph around it builds it.
            config.pop("build_config", None)
        return keras.saving.deserialize_keras_object(
            config, custom_objects=known, safe_mode=False
        )

    if not (models and all(map(_keras.is_graph, models))):
        try:
            return again(model)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} '{model.name}' cannot be copied, since its "
                f"config does not make it again: {str(error).splitlines()[0]} Give the "
                "class a get_config that returns the arguments of its __init__, and an "
                "__init__ that hands further ones (**kwargs) on, or use in_place=True."
            ) from error
    # Sequential models would be compiled like the old one.
    compiled, model.compiled = model.compiled, False
    try:
        return keras.models.clone_model(model, clone_function=again, recursive=True)
    except Exception as error:
        raise ValueError(
            f"Model '{model.name}' cannot be copied, since its layers' configs do not "
            f"make them again: {error} Use in_place=True."
        ) from error
    finally:
        model.compiled = compiled


def _pairs(old, new):
    """Yields `(way, layer, its copy)` for a model and all in it, from the top down."""
    copies = {}

    def visit(way, old, new):
        if id(old) in copies:
            if copies[id(old)] is not new:
                _refuse(f"'{old.name}', shared by several layers, would come out twice")
            return
        copies[id(old)] = new
        yield way, old, new
        # Now: carrying its own variables may have changed what is in the copy.
        theirs = dict(_keras.parts_of(new))
        for step, part in _keras.parts_of(old):
            if step not in theirs:
                _refuse(f"there is no '{way}/{step}' in the copy")
            yield from visit(f"{way}/{step}", part, theirs[step])

    yield from visit(old.name, old, new)


def _check(way, old, new):
    if type(old) is not type(new):
        _refuse(f"'{way}' would be a {type(new).__name__}, not a {type(old).__name__}")
    if any(map(len, _keras.own_variables(old))) and not new.built:
        _refuse(f"'{way}' has its weights only once the model is called")
    shapes, copied = (
        [[tuple(v.shape) for v in kind] for kind in _keras.own_variables(layer)]
        for layer in (old, new)
    )
    if shapes != copied:
        _refuse(f"'{way}' has variables of the shapes {shapes}, its copy {copied}")


def _compare_attributes(way, old, new):
    """Refuses a copy of a user's layer that its config does not make as it is now."""
    if type(old).__module__.startswith("keras."):
        return
    # Whether it is compiled, and the like.
    of_keras, others = vars(keras.Model()), vars(new)
    for name, value in vars(old).items():
        plain = isinstance(value, _PLAIN) or keras.ops.is_tensor(value)
        # What the copy has not at all it gets in a call, or cannot be called.
        if not plain or name in of_keras or name not in others:
            continue
        if not _alike(value, others[name]):
            _refuse(
                f"'{way}' has {name}={value!r}, its copy {others[name]!r}, since the "
                f"get_config of {type(old).__name__} does not tell"
            )


_PLAIN = (bool, int, float, str, np.ndarray, np.generic)


def _alike(one, other):
    try:
        one, other = autodiff.array(one), autodiff.array(other)
    except (TypeError, ValueError, NotImplementedError):
        # Symbols have no values.
        return True
    if one.shape != other.shape:
        return False
    same = one == other
    return bool(np.all(same | ((one != one) & (other != other))))


def _carry(old, new):
    # Frozen layers, and what `quantize` or LoRA froze in one.
    if old.trainable != new.trainable:
        new.trainable = old.trainable
    if isinstance(old, keras.Model):
        new.dtype_policy = old.dtype_policy
    # What layers keep outside of variables, they keep for files.
    store = {}
    old.save_own_variables(store)
    new.load_own_variables(store)
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    if isinstance(old, keras.layers.RNN) and old.stateful:
        # What it remembers is in no list of variables, nor in files.
        states = map(keras.tree.flatten, (old.states, new.states))
        for state, copied in zip(*states, strict=True):
            copied.assign(state)
    # Last, as LoRA's factors are merged into what a file gets.
    kinds = zip(_keras.own_variables(old), _keras.own_variables(new), strict=True)
    for variables, copies in kinds:
        for variable, copied in zip(variables, copies, strict=True):
            copied.trainable = variable.trainable
            copied.assign(variable)
