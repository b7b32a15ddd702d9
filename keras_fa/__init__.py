"""Feedback alignment for Keras: layers, models and instruments."""

import importlib

__version__ = "0.1.0"

from keras_fa import gradients, layers, models, optimizers, registry, rules
from keras_fa.layers import forward_variables
from keras_fa.models import convert, direct, to_stock
from keras_fa.registry import register

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
    "losses",
    "papers",
    "results",
    "sweeps",
    "tuning",
)

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


def __dir__():
    return sorted({*globals(), *__all__})


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"keras_fa.{name}")
    if name == "audit":
        return importlib.import_module("keras_fa.analysis").audit
    raise AttributeError(f"module 'keras_fa' has no attribute {name!r}")
