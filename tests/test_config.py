"""The configuration: typos and contradictions are refused with a hint."""

import ast
import inspect
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from keras_fa import config, optimizers
from keras_fa.config import BY_LAYER, check, default_config, named
from keras_fa.lab import plans
from keras_fa.results import in_present_form

FILES = sorted(pathlib.Path(__file__).parents[1].joinpath("configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_is_sound_and_says_where_it_comes_from(path):
    check(plans.read_config(path))
    page = ast.get_docstring(ast.parse(path.read_text()))
    for word in ("Source:", "Command:", "Expected"):
        assert word in page


def test_unknown_field_names_the_nearest():
    config = default_config()
    with config.unlocked():
        config.optimizer.lerning_rate = 0.1
    with pytest.raises(
        ValueError, match=r'Did you mean "config.optimizer.learning_rate"'
    ):
        check(config)


def test_missing_field():
    config = default_config()
    with config.unlocked():
        del config.loss
    with pytest.raises(ValueError, match=r"config.loss is missing"):
        check(config)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 0}, "config.epochs must be at least 1"),
        ({"epochs": None}, "config.epochs must be at least 1, not None"),
        ({"seed": None}, "config.seed must be a finite number of at least 0"),
        ({"epochs": 7, "log_every": 2, "checkpoint_every": 2}, "must divide"),
        ({"epochs": 6, "log_every": 2, "checkpoint_every": 3}, "must be a multiple"),
        ({"jit_compile": "yes"}, "config.jit_compile must be"),
        ({"schedule": {"boundaries": (5, 3), "factors": (1.0, 1.0)}}, "increasing"),
        ({"schedule": {"boundaries": (5,), "factors": ()}}, "one factor"),
    ],
)
def test_contradictions(changes, match):
    config = default_config()
    config.update(changes)
    with pytest.raises(ValueError, match=match):
        check(config)


FORMER = {
    # As the version before stored a cell of the grid rk23, the fields that changed.
    "rule": "fa",
    "feedback_initializer": None,
    "sign_scale": "glorot",
    "model": {"name": "mlp", "kernel_initializer": "glorot_uniform", "use_bias": False},
    "instruments": {"weight_alignment": True},
}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, "fa"),
        ({"feedback_initializer": "ones"}, {"name": "fa", "initializer": "ones"}),
        ({"rule": "sign_fa"}, "sign_fa"),
        (
            {"rule": "sign_fa", "sign_scale": "0.1"},
            {"name": "sign_fa", "scale": 0.1},
        ),
        # An argument of another rule had no effect.
        ({"rule": "backprop", "sign_scale": "0.1"}, "backprop"),
    ],
)
def test_configurations_of_the_former_form_are_read_as_of_today(changes, rule):
    stored = {**FORMER, **changes}
    before = json.dumps(stored)
    config = in_present_form(stored)
    assert config == {
        "rule": rule,
        "model": {"name": "mlp", "use_bias": False},
        "instruments": {"weight_alignment": True, "others": []},
    }
    assert json.dumps(stored) == before
    assert in_present_form(config) is config


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fa", ("fa", {})),
        ({"name": "sign_fa", "scale": 1.0}, ("sign_fa", {"scale": 1.0})),
        ({"conv*": "fa"}, (BY_LAYER, {"conv*": "fa"})),
    ],
)
def test_a_name_or_a_section_of_name_and_arguments(value, expected):
    assert named(value) == named(ConfigDict({"x": value}).x) == expected


@pytest.mark.parametrize("value", [None, 3, ["fa"], {}, {"name": 3}])
def test_what_is_neither_name_nor_section_is_refused(value):
    config = default_config()
    config.rule = value
    with pytest.raises(ValueError, match=r"config.rule: Expected a name"):
        check(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("weight_decay", float("inf")),
        ("momentum", -0.1),
    ],
)
def test_numbers_that_no_run_could_use_are_refused_by_name(field, value):
    config = default_config()
    config.optimizer[field] = value
    with pytest.raises(ValueError, match=rf"config.optimizer.{field} must be a finite"):
        check(config)


def test_schedules_probes_and_batches_are_numbers_that_mean_something():
    for changes, message in (
        ({"schedule": {"boundaries": (1,), "factors": (float("nan"),)}}, "factors.0."),
        ({"schedule": {"boundaries": (-1,), "factors": (0.5,)}}, "boundaries.0."),
        ({"schedule": {"boundaries": (1.5,), "factors": (0.5,)}}, "whole epochs"),
        ({"instruments": {"probe_size": -5}}, "probe_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "config.seed"),
    ):
        config = default_config()
        config.update(changes)
        with pytest.raises(ValueError, match=message):
            check(config)


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 3.0}, r"config\.epochs takes int\. Received: 3\.0"),
        ({"epochs": True}, "config.epochs takes int"),
        ({"log_every": None}, "config.log_every must be at least 1"),
        ({"dtype": None}, "config.dtype takes str, not None"),
        ({"drop_last": None}, "config.drop_last takes bool, not None"),
        ({"drop_last": 1}, "config.drop_last takes bool"),
        ({"instruments": {"ledger": None}}, "config.instruments.ledger takes bool"),
        ({"instruments": {"others": None}}, "config.instruments.others takes tuple"),
        ({"instruments": {"others": {"x"}}}, r"instruments\.others must be .* set"),
        ({"instruments": {"probe_size": 0}}, "probe_size must be a finite number"),
        ({"schedule": {"boundaries": None}}, "schedule.boundaries takes tuple"),
        ({"schedule": {"boundaries": ("a", 1), "factors": (1, 1)}}, "whole epochs"),
        ({"model": {"hidden_units": {4}}}, r"model\.hidden_units must be .* set \{4\}"),
        ({"model": {"a": [{"b": NAN}]}}, r"model\.a\[0\]\.b must be a finite number"),
        ({"model": {"a": {3: 1}}}, r"config\.model\.a needs texts as names"),
        (
            {"rule": {"name": "sign_fa", "scale": NAN}},
            "config.rule.scale must be a fin",
        ),
        ({"dataset": {"label_noise": "x"}}, "config.dataset.label_noise takes float"),
        ({"optimizer": {"learning_rate": None}}, "optimizer.learning_rate takes float"),
        ({"optimizer": {"momentum": None}}, "optimizer.momentum must be a number"),
        ({"optimizer": {"momentum": 1.0}}, r"momentum must be a number in \[0, 1\)"),
        ({"optimizer": {"weight_decay_epochs": 0}}, "weight_decay_epochs must be"),
        ({"optimizer": {"clipnorm": -1.0}}, "clipnorm must be a positive number"),
        ({"optimizer": {"clipvalue": "x"}}, "clipvalue must be a positive number"),
        ({"optimizer": {"name": "adam", "beta_1": -1}}, "beta_1 must be .* at least 0"),
        ({"optimizer": {"name": "adam", "beta_2": 1}}, r"beta_2 must be .* \[0, 1\)"),
        ({"optimizer": {"name": "adam", "weight_decay": -1.0}}, "weight_decay must be"),
        (
            {"optimizer": {"name": "adam", "momentum": 0.9}},
            "optimizer.momentum has no meaning for adam",
        ),
    ],
)
def test_what_no_run_could_use_is_refused_by_its_name(changes, match):
    # A dict of the user's own knows no types.
    config = default_config().to_dict()
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config[key], dict):
            config[key] |= value
        else:
            config[key] = value
    with pytest.raises(ValueError, match=match):
        check(config)


def test_numbers_of_an_optimizer_may_be_negative_where_its_own_are():
    config = default_config()
    with config.unlocked():
        config.optimizer = {
            **config.optimizer.to_dict(),
            "name": "ftrl",
            "learning_rate_power": -0.25,
        }
    check(config)


def test_the_defaults_of_sgd_are_those_of_its_class():
    parameters = inspect.signature(optimizers.TorchSGD).parameters
    for name, default in config._OF_SGD.items():
        assert default is None or default == parameters[name].default
