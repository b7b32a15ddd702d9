"""The open tables: names of one's own, "module:function", and what errors say."""

import sys

import pytest

from keras_fa import registry, rules
from keras_fa.registry import register


@pytest.fixture
def table(monkeypatch):
    """A table of losses that forgets what a test puts into it."""
    monkeypatch.setitem(registry._TABLES, "loss", dict(registry._TABLES["loss"]))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, outside the package."""
    (tmp_path / "own_things.py").write_text(
        "import keras_fa\n"
        "class Outer:\n"
        "    def method(x): return x\n"
        "@keras_fa.register('loss', 'own_loss')\n"
        "def own_loss(y_true, y_pred): return y_pred\n"
    )
    (tmp_path / "own_broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("own_things", "own_broken"):
        sys.modules.pop(name, None)


def test_a_registered_thing_is_found_and_itself(table):
    @register("loss", "mine")
    def loss(y_true, y_pred):
        return y_pred

    assert registry.get("loss", "mine") is loss
    assert registry.names("loss")[-1] == "mine"
    assert registry.name_of("loss", loss) == "mine"
    assert registry.name_of("loss", print) is None


def test_a_cell_run_twice_replaces_and_another_definition_is_refused(table):
    def define():
        @register("loss", "mine")
        def loss(y_true, y_pred):
            return y_pred

        return loss

    define()
    second = define()
    assert registry.get("loss", "mine") is second
    with pytest.raises(ValueError, match=r"a loss called 'mine' already: .*define"):
        register("loss", "mine")(print)


@pytest.mark.parametrize("name", ["two words", "", "a:b", 3])
def test_names_are_plain_words(name):
    with pytest.raises(ValueError, match=r"plain word.*Received"):
        register("loss", name)


def test_unknown_kind_and_unknown_name_name_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown kind: 'rules'. Did you mean .rule"):
        register("rules", "x")
    with pytest.raises(ValueError, match='Did you mean "sign_fa"'):
        registry.get("rule", "sgn_fa")


def test_module_and_function(own, table):
    thing = registry.get("loss", "own_things:own_loss")
    assert thing is sys.modules["own_things"].own_loss
    # Its decorator ran on the way.
    assert registry.get("loss", "own_loss") is thing
    assert registry.modules() == ["own_things"]
    assert registry.get("model", "own_things:Outer.method")(3) == 3
    with pytest.raises(ValueError, match=r"no 'own_los'. Did you mean \"own_loss\""):
        registry.get("loss", "own_things:own_los")
    with pytest.raises(ValueError, match="'own_thing' that cannot be imported"):
        registry.get("loss", "own_thing:own_loss")
    # A fault inside the user's module is shown as what it is.
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        registry.get("loss", "own_broken:x")


def test_made_says_which_argument_does_not_fit():
    def builder(size, rule=None, width=3):
        return size, rule, width

    assert registry.made("model", builder, {"width": 4}, {"size": 1, "dtype": "x"}) == (
        1,
        None,
        4,
    )
    with pytest.raises(
        ValueError, match=r"no argument 'widht'. Did you mean \"width\""
    ):
        registry.made("model", builder, {"widht": 4}, {"size": 1})
    with pytest.raises(ValueError, match="missing a required argument: 'size'"):
        registry.made("model", builder, {})
    with pytest.raises(ValueError, match="no argument 'size'"):
        registry.made("model", builder, {"size": 2}, {"size": 1})

    def faulty():
        raise TypeError("inside")

    with pytest.raises(TypeError, match=r"^inside$"):
        registry.made("model", faulty, {})


def test_short_configs_of_rules():
    rule = rules.get({"name": "sign_fa", "scale": 1.0})
    assert rule.get_config() == {"scale": 1.0}
    with pytest.raises(ValueError, match="no argument 'scales'"):
        rules.get({"name": "sign_fa", "scales": 1.0})
    with pytest.raises(ValueError, match="must be a subclass"):
        rules.get("math:sqrt")
