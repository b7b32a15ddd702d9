"""Feedback alignment for Keras: layers, models and instruments."""

import importlib

from keras_fa import gradients, layers, models, optimizers, registry, rules
from keras_fa.registry import register

# Rooms that bring a data set library or a plotting library load on first use. Those of
# the laboratory have a short name here.
_LAZY = {
    "analysis": "analysis",
    "callbacks": "callbacks",
    "config": "lab.config",
    "datasets": "datasets",
    "distribution": "distribution",
    "experiment": "lab.run",
    "figures": "figures",
    "lab": "lab",
    "losses": "losses",
    "papers": "papers",
    "results": "lab.run_folder",
    "sweeps": "lab.sweep",
    "tuning": "lab.tuning",
}

__all__ = [
    "gradients",
    "layers",
    "models",
    "optimizers",
    "register",
    "registry",
    "rules",
    *sorted(_LAZY),
]


def __dir__():
    return sorted({*globals(), *__all__})


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"keras_fa.{_LAZY[name]}")
    raise AttributeError(f"module 'keras_fa' has no attribute {name!r}")
