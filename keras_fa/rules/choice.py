"""Rules that go by layer: a table of name patterns, or a function of the layer."""

import fnmatch

from keras_fa.rules.base import FeedbackRule


def is_by_layer(spec):
    """Whether a `rule` argument is a table of patterns or a function of the layer.

    A dict with the key "name" or "class_name" is the config of one rule.
    """
    if isinstance(spec, dict):
        return not {"name", "class_name"} & set(spec)
    is_rule = isinstance(spec, FeedbackRule) or (
        isinstance(spec, type) and issubclass(spec, FeedbackRule)
    )
    return callable(spec) and not is_rule


class ByLayer:
    """Chooses each layer's rule, and knows in the end what was of no use.

    Args:
        spec: A rule, for all layers; a table `{pattern: rule}`, of which the first that
            fits counts: shell patterns of a layer's name, or of its path or that of
            something around it ("encoder/attention"); or a function of the layer that
            returns a rule, or None for a layer that is to be left as it is.
        get: Looks a rule up: `keras_fa.rules.get`.
    """

    def __init__(self, spec, get):
        self._get = get
        self._function = self._table = None
        # One object for each rule that is said twice, or its seed would repeat.
        self._said = []
        if not is_by_layer(spec):
            self._table = {"*": get(spec)}
        elif isinstance(spec, dict):
            self._table = {pattern: self._once(rule) for pattern, rule in spec.items()}
        else:
            self._function = spec
        self._unused = set(self._table or ())
        self._paths = []

    def rule(self, layer, path):
        """The rule of a layer, or None.

        Args:
            layer: A Keras layer.
            path: Names of the layers around it and of itself, joined by "/".
        """
        self._paths.append(path)
        if self._function:
            return self._once(self._function(layer))
        steps = path.split("/")
        names = [layer.name]
        names += ["/".join(steps[:end]) for end in range(1, len(steps) + 1)]
        chosen = None
        for pattern, rule in self._table.items():
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                self._unused.discard(pattern)
                chosen = chosen or rule
        return chosen

    def _once(self, spec):
        if spec is None:
            return None
        for known, rule in self._said:
            if known is spec or (isinstance(spec, (str, dict)) and known == spec):
                return rule
        self._said.append((spec, self._get(spec)))
        return self._said[-1][1]

    def check(self):
        """Raises a ValueError for patterns that fit none of the layers asked for."""
        if self._unused and self._paths:
            patterns = ", ".join(repr(pattern) for pattern in sorted(self._unused))
            raise ValueError(
                f"No layer fits {patterns} in the table of rules. The layers that can "
                f"have a rule: {', '.join(self._paths)}."
            )
