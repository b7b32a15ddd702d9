"""Configs, grids and spaces are found by path or name; mistakes tell file and line."""

import functools
import operator
import sys

import pytest

from keras_fa import config as configuration
from keras_fa import registry
from keras_fa.lab import plans

CONFIG = "from keras_fa.config import default_config\n\nget_config = default_config\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    # Reading a file makes the modules beside it known until the process ends.
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("kind", "name"), [("config", "digits"), ("grid", "table3"), ("space", "digits")]
)
def test_a_path_comes_first_then_the_users_names_then_the_toolkits(folder, kind, name):
    packaged = plans.find(kind, name)
    assert packaged.is_absolute() and packaged.stem == name
    below = {"config": "", "grid": "grids", "space": "tuning"}[kind]
    own = write(folder / "configs" / below / f"{name}.py", CONFIG)
    assert plans.find(kind, name).resolve() == own
    assert plans.names(kind).count(name) == 1
    path = write(folder / name, CONFIG)
    assert plans.find(kind, name).resolve() == path
    assert plans.find(kind, own) == own


def test_an_unknown_name_lists_the_known_ones(folder):
    write(folder / "configs" / "mine.py", CONFIG)
    with pytest.raises(
        ValueError,
        match=r"no file .digts., and no config of that name\. Did you mean .digits.\? "
        r"Known: mine, akrout_mnist, .*digits",
    ):
        plans.read_config("digts")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("def get_config(:\n", r"line 1: invalid syntax"),
        ("x = 1\ny = x.z\n", r"line 2: AttributeError: 'int' object"),
        (
            "def deep():\n    return 1 / 0\n\ndef get_config():\n    return deep()\n",
            r"line 2: ZeroDivisionError",
        ),
        ("import no_such_module\n", r"line 1: ModuleNotFoundError: No module named"),
        ("", r"has no function get_config\(\)"),
        ("def get_config():\n    pass\n", r"should return a config.*Received: None"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(folder, text, match):
    path = write(folder / "wrong.py", text)
    with pytest.raises(ValueError, match=match) as caught:
        plans.read_config(path)
    assert str(path) in str(caught.value)


def test_a_config_may_import_what_is_beside_it_and_take_an_argument(folder):
    write(folder / "there" / "beside_it.py", "RATE = 0.125\n")
    path = write(
        folder / "there" / "own.py",
        "from keras_fa.config import default_config\n\nimport beside_it\n\n"
        "def get_config(epochs):\n    config = default_config()\n"
        "    config.optimizer.learning_rate = beside_it.RATE\n"
        "    config.epochs = int(epochs)\n    return config\n",
    )
    config = plans.read_config(f"{path}:7")
    assert (config.optimizer.learning_rate, config.epochs) == (0.125, 7)


def plan(config):
    keys = f"'config': '{config}', 'axes': [], 'seconds_per_cell': 1"
    return f"def get_grid():\n    return {{{keys}}}\n"


@pytest.mark.parametrize(
    ("config", "where"),
    [("own.py", "."), ("own.py", "grids"), ("digits.py", None), ("digits", None)],
)
def test_the_config_of_a_plan_is_above_it_beside_it_or_a_name(folder, config, where):
    grid = write(folder / "grids" / "grid.py", plan(config))
    if where is not None:
        write(folder / where / config, CONFIG.replace("get", "seed = 0\nget", 1))
    if config == "digits.py":
        packaged = plans.find("config", "digits").read_text()
        write(folder / "digits.py", packaged)
    found = plans.read_plan("grid", grid)
    expected = 1 if where is not None else 60
    assert found["config"].epochs == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("def get_grid():\n    return []\n", r"should return a dict. Received: \[\]"),
        ("def get_grid():\n    return {}\n", "lacks axes, config, seconds_per_cell"),
        (plan("digits").replace("axes", "axis"), "unknown key 'axis'.*\"axes\""),
        (
            plan("digits").replace("[]", "[{'seed': 3}]"),
            r"'axes' in .*grid\.py should be a list of dicts.*Received: \[{'seed'",
        ),
        (plan("digits").replace("[]", "{'seed': [3]}"), "should be a list of dicts"),
        (plan("digits").replace(": 1}", ": '1'}"), "should be a positive number"),
        (plan("none"), "There is no file 'none', and no config of that name"),
    ],
)
def test_a_wrong_plan_is_refused(folder, text, match):
    with pytest.raises(ValueError, match=match):
        plans.read_plan("grid", write(folder / "grids" / "grid.py", text))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("space", "[1]", "a dict from a field to the dict of its range"),
        ("space", "{'seed': 3}", "a dict from a field to the dict of its range"),
        ("objective", "7", "a key of the logs"),
        ("fields", "[]", "a dict"),
        ("patience", "0", "a positive number of epochs"),
        ("confirm", "{'seed': 1}", "a dict from a field to the list of its values"),
    ],
)
def test_a_wrong_space_is_refused(folder, key, value, words):
    keys = {"config": "'digits'", "space": "{}", "objective": "'loss'", key: value}
    text = ", ".join(f"{k!r}: {v}" for k, v in keys.items())
    path = write(folder / "space.py", f"def get_space():\n    return {{{text}}}\n")
    with pytest.raises(ValueError, match=f"'{key}' in .* should be {words}. Received:"):
        plans.read_plan("space", path)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("epochs", "3", 3),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.weight_decay_layers", "('a', 'b')", ("a", "b")),
        ("optimizer.weight_decay_layers", "['a']", ("a",)),
        ("rule", "sign_fa", "sign_fa"),
        ("loss", "my_module:loss", "my_module:loss"),
        ("dataset.standardize", "none", "none"),
        ("dataset.standardize", "None", None),
        ("dataset.train_size", "None", None),
        ("dataset.train_size", "100", 100),
        ("batch_size", "None", None),
        ("drop_last", "True", True),
        ("drop_last", "true", True),
        ("drop_last", "0", False),
        # An argument of the builder that the file does not give.
        ("model.use_bias", "False", False),
        ("model.activation", "tanh", "tanh"),
    ],
)
def test_a_field_is_set_from_a_command_line(field, text, value):
    config = configuration.default_config()
    config.batch_size = 32
    plans.set_field(config, field, plans.read_value(config, field, text))
    configuration.check(config)
    found = functools.reduce(operator.getitem, field.split("."), config)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "match"),
    [
        ("epochs", "3.5", r"config\.epochs takes int\. Received: 3\.5"),
        ("epochs", "many", r"config\.epochs takes int\. Received: 'many'"),
        ("epochs", "True", r"config\.epochs takes int\. Received: True"),
        ("drop_last", "2", r"config\.drop_last takes bool\. Received: 2"),
        (
            "optimiser.name",
            "sgd",
            r"no section 'optimiser'\. Did you mean \"config\.optimizer\"",
        ),
        ("optimizer.nam", "sgd", r"Did you mean \W*config\.optimizer\.name"),
        ("epochs.x", "1", r"field config\.epochs\.x: there is no section 'epochs'"),
        ("schedule.a.b", "1", r"there is no section 'schedule\.a'\. Sections: none"),
        ("dataset./etc/x", "1", r"the names of fields are words"),
        ("model.a b", "1", r"the names of fields are words"),
        ("schedule", "3", r"is a section: set one of its fields, boundaries, cosine"),
    ],
)
def test_a_wrong_field_is_refused(field, text, match):
    config = configuration.default_config()
    with pytest.raises(ValueError, match=match):
        plans.set_field(config, field, plans.read_value(config, field, text))
        configuration.check(config)


def test_another_model_keeps_the_arguments_that_it_takes():
    """Those of the file; what the command line itself gives is set, fit or not."""
    for name, taken, kept in (
        ("applications.MobileNetV2", ["activation", "hidden_units"], {"alpha": 0.35}),
        ("lenet", ["hidden_units"], {"activation": "tanh", "alpha": 0.35}),
        ("mlp", [], {"activation": "tanh", "hidden_units": (5,), "alpha": 0.35}),
    ):
        config = configuration.default_config()
        config.model = {"name": "mlp", "activation": "tanh", "hidden_units": (5,)}
        fields = {"model.alpha": "0.35", "model.name": name}
        assert sorted(plans.override(config, fields)) == taken
        assert config.model.to_dict() == {"name": name, **kept}
    with pytest.raises(ValueError, match=r"config\.model\.name: .*mean .lenet"):
        plans.override(config, {"model.name": "lenett"})


def test_an_argument_of_a_named_thing_is_a_field_too():
    config = configuration.default_config()
    for field, text in (("rule", "sign_fa"), ("rule.scale", "0.5")):
        plans.set_field(config, field, plans.read_value(config, field, text))
    configuration.check(config)
    assert config.rule == {"name": "sign_fa", "scale": 0.5}
    # The name that is there already leaves its arguments alone.
    plans.set_field(config, "rule", "sign_fa")
    assert config.rule == {"name": "sign_fa", "scale": 0.5}
    plans.set_field(config, "rule", {"conv*": "sign_fa", "*": "fa"})
    with pytest.raises(ValueError, match="a table of rules by layer: set the whole"):
        plans.set_field(config, "rule.scale", 0.5)
    # A cell's folder has the field's name.
    with pytest.raises(ValueError, match="the names of fields are words"):
        plans.set_field(config, "rule./abroad/scale", 0.5)


def test_every_packaged_plan_can_be_read():
    for name in plans.names("grid"):
        assert plans.read_plan("grid", name)["axes"]
    for name in plans.names("space"):
        assert plans.read_plan("space", name)["space"]


def test_a_grid_may_have_the_name_of_its_configuration(folder):
    write(folder / "twice_named.py", CONFIG + "rule = 'sign_fa'\n")
    path = write(folder / "grids" / "twice_named.py", plan("twice_named.py"))
    plans.read_plan("grid", path)
    assert registry.get("rule", "twice_named:rule") == "sign_fa"


def test_where_python_looked_before_it_looks_as_before(folder):
    write(folder / "above.py", CONFIG)
    path = write(folder / "grids" / "some.py", plan("above.py"))
    sys.path.insert(0, str(path.parent))
    plans.read_plan("grid", path)
    assert sys.path[0] == str(path.parent) and sys.path.count(sys.path[0]) == 1
