"""The public name of `keras_fa.lab.sweep`."""

import sys

from keras_fa._extras import extra

with extra("lab"):
    from keras_fa.lab import sweep

sys.modules[__name__] = sweep
