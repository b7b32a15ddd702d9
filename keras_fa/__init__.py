"""Feedback alignment for Keras: layers, models and instruments."""

import importlib

from keras_fa import gradients, layers, models, optimizers, rules

# Rooms that bring a data set library or a plotting library load on first use.
_LAZY = (
    "analysis",
    "benchmarks",
    "callbacks",
    "datasets",
    "distribution",
    "experiment",
    "figures",
    "losses",
    "reproduction",
    "results",
    "sweeps",
    "tuning",
)

__all__ = ["gradients", "layers", "models", "optimizers", "rules", *_LAZY]


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"keras_fa.{name}")
    raise AttributeError(f"module 'keras_fa' has no attribute {name!r}")
