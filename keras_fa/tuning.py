"""The public name of `keras_fa.lab.tuning`."""

import sys

from keras_fa._extras import extra

with extra("tune"):
    from keras_fa.lab import tuning

sys.modules[__name__] = tuning
