"""Feedback alignment for Keras: layers, models and instruments."""

from keras_fa import gradients, layers, models, rules
