"""The public name of `keras_fa.lab.run`."""

import sys

from keras_fa._extras import extra

with extra("lab"):
    from keras_fa.lab import run

sys.modules[__name__] = run
