"""Layers that become feedback layers, and back, where they stand in a model."""

import functools

import keras

from keras_fa import _keras, rules
from keras_fa.layers import COUNTERPARTS, BatchNormalization, FeedbackMixin
from keras_fa.layers.recurrent import PastCuDNN

_STOCK = {feedback: stock for stock, feedback in COUNTERPARTS.items()}
_STOCK[BatchNormalization] = keras.layers.BatchNormalization


def put_under(layer, rule):
    """Makes a layer that has a counterpart a feedback layer, and gives it the rule."""
    if not isinstance(layer, FeedbackMixin):
        _keras.change_class(layer, COUNTERPARTS[type(layer)])
    layer.take_rule(rule)


def fuse(layer):
    """Makes a stock BatchNormalization one that takes the fused kernel."""
    if type(layer) is keras.layers.BatchNormalization:
        _keras.change_class(layer, BatchNormalization)


def put_back(layer):
    """Makes a feedback layer or a container the stock layer that it was.

    Raises:
        ValueError: If a feedback layer is of no class that has a stock counterpart.
    """
    if isinstance(layer, FeedbackContainer):
        _keras.change_class(layer, layer.stock_class)
        return
    if type(layer) not in _STOCK:
        raise ValueError(
            f"Layer '{layer.name}' is a {type(layer).__name__}, for which there is no "
            "stock Keras layer."
        )
    if isinstance(layer, FeedbackMixin):
        layer.drop_feedback()
        del layer._rule, layer._stored
    _keras.change_class(layer, _STOCK[type(layer)])


def has_a_rule(layer):
    """Whether a layer is a feedback layer or holds some under a class of its own."""
    return isinstance(layer, (FeedbackMixin, FeedbackContainer)) or (
        type(layer) in _STOCK
    )


def written_class(layer):
    """The class of which a layer was made: a container's is that of its user."""
    return getattr(layer, "stock_class", type(layer))


def contain(model):
    """Has the layers that hold feedback layers tell so in their config.

    Those whose config lists the layers inside it as they are do so already.
    """
    for layer in _keras.layers_of(model):
        if _needs_container(layer) and any(
            isinstance(part, FeedbackMixin) for part in _keras.layers_of(layer)
        ):
            _make_container(layer, {})


def _needs_container(layer):
    return not (
        isinstance(layer, (FeedbackMixin, FeedbackContainer, keras.layers.InputLayer))
        or type(layer) in (keras.layers.TimeDistributed, *_STOCK)
        or (isinstance(layer, keras.Model) and _keras.is_graph(layer))
    )


@keras.saving.register_keras_serializable(rules.PACKAGE)
class FeedbackContainer:
    """What a layer gets that makes feedback layers of the stock layers inside it.

    Its config is that of the stock class with the rule of each layer inside. Each
    class that holds layers gets a class of its own, called as it is, with this before
    it; all are serialised under this one's name.
    """

    stock_class = None

    def __call__(self, *args, **kwargs):
        outputs = super().__call__(*args, **kwargs)
        # What its layers hold may have come into being in this call.
        self._feed()
        return outputs

    def load_own_variables(self, store):
        # Its layers load theirs right after it.
        self._feed()
        self.stock_class.load_own_variables(self, store)

    def _feed(self):
        """Gives their rules to those of its layers that are there by now.

        An attention or a recurrent layer then gets the class that it has here.
        """
        if self._awaited:
            _apply(self, self._awaited)
        if not self._awaited and self.stock_class in COUNTERPARTS:
            _keras.change_class(self, COUNTERPARTS[self.stock_class])

    def get_config(self):
        # Keras tells by the class whether a config is to be derived from __init__.
        contained, self.__class__ = type(self), self.stock_class
        try:
            stock = keras.saving.serialize_keras_object(self)
        finally:
            self.__class__ = contained
        for key in ("build_config", "compile_config"):
            stock.pop(key, None)
        found = {
            way: rules.serialize(layer.rule)
            for way, _, layer in within(self)
            if isinstance(layer, FeedbackMixin)
        }
        return {"stock": stock, "rules": {**self._awaited, **found}}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["stock"])
        _make_container(layer, dict(config["rules"]))
        return layer


def _make_container(layer, awaited):
    """Makes a layer a container.

    Args:
        layer: A layer that holds layers.
        awaited: `{way: rule}` for the layers inside it that are to get a rule.
    """
    if not isinstance(layer, FeedbackContainer):
        _keras.change_class(layer, _container_class(type(layer)))
        object.__setattr__(layer, "_awaited", {})
    layer._awaited.update(awaited)
    layer._feed()


@functools.cache
def _container_class(stock):
    members = {
        "stock_class": stock,
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
    }
    bases = [FeedbackContainer, stock]
    if issubclass(stock, (keras.layers.LSTM, keras.layers.GRU)):
        bases.insert(1, PastCuDNN)
    made = type(stock.__name__, tuple(bases), members)
    # Whichever of them a file finds under the name, its config says which it is to be.
    return keras.saving.register_keras_serializable(
        rules.PACKAGE, FeedbackContainer.__name__
    )(made)


def _apply(layer, awaited):
    """Gives rules to the layers in a layer, and takes the ways that were gone away."""
    for step, part in _keras.parts_of(layer):
        if step in awaited:
            put_under(part, awaited.pop(step))
            continue
        inside = [way for way in awaited if way.startswith(f"{step}/")]
        if not inside:
            continue
        below = {way[len(step) + 1 :]: awaited.pop(way) for way in inside}
        if _needs_container(part) or isinstance(part, FeedbackContainer):
            _make_container(part, below)
        else:
            _apply(part, below)


def within(layer):
    """Yields `(way, path, layer)` for all layers in one, each once, from the top down.

    The way is that of attributes, the same in each process; the path that of names,
    which Keras may have numbered.
    """
    seen = set()

    def visit(way, path, layer):
        for step, part in _keras.parts_of(layer):
            if id(part) not in seen:
                seen.add(id(part))
                yield way + step, path + part.name, part
                yield from visit(f"{way}{step}/", f"{path}{part.name}/", part)

    return visit("", "", layer)
