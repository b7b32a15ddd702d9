"""Feedback alignment for Keras: layers, models and instruments."""

import importlib
import os

__version__ = "0.1.0"

# Loaded on first use: they bring a library for data, figures or the laboratory.
_LAZY = (
    "analysis",
    "callbacks",
    "config",
    "datasets",
    "distribution",
    "experiment",
    "figures",
    "lab",
    "live",
    "losses",
    "papers",
    "results",
    "sweeps",
    "tuning",
    "zoo",
)
# Where each other name is. They are loaded at once, so that Keras knows the layers of a
# file that it loads, but for a process that only watches others: see trainers/_binary.
_HOMES = {
    **{name: name for name in ("gradients", "layers", "models", "optimizers", "rules")},
    "registry": "registry",
    "forward_variables": "layers",
    "convert": "models",
    "direct": "models",
    "to_stock": "models",
    "register": "registry",
    "audit": "analysis",
}

__all__ = [
    "audit",
    "convert",
    "direct",
    "forward_variables",
    "gradients",
    "layers",
    "models",
    "optimizers",
    "register",
    "registry",
    "rules",
    "to_stock",
    *_LAZY,
]

if "KERAS_FA_WATCHES" not in os.environ:
    from keras_fa import gradients, layers, models, optimizers, registry, rules
    from keras_fa.layers import forward_variables
    from keras_fa.models import convert, direct, to_stock
    from keras_fa.registry import register


def __dir__():
    return sorted({*globals(), *__all__})


def __getattr__(name):
    if name in _LAZY or name == _HOMES.get(name):
        try:
            return importlib.import_module(f"keras_fa.{name}")
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":
                raise
            raise ImportError(
                f"keras_fa.{name} needs TensorFlow, which prepares the data on every "
                "backend: pip install 'tensorflow>=2.21,<2.22'.",
                name="tensorflow",
            ) from error
    if name in _HOMES:
        return getattr(importlib.import_module(f"keras_fa.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'keras_fa' has no attribute {name!r}")
