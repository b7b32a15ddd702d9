"""The configuration: typos and contradictions are refused with a hint."""

import importlib.util
import pathlib

import pytest

from keras_fa.config import check, default_config

FILES = sorted(pathlib.Path(__file__).parents[1].joinpath("configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_is_sound_and_says_where_it_comes_from(path):
    module = load(path)
    check(module.get_config())
    for word in ("Source:", "Command:", "Expected"):
        assert word in module.__doc__


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
