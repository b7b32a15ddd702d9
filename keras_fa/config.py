"""The public name of `keras_fa.lab.config`."""

import sys

from keras_fa._extras import extra

with extra("lab"):
    from keras_fa.lab import config

sys.modules[__name__] = config
