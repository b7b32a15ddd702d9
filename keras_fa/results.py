"""The public name of `keras_fa.lab.run_folder`."""

import sys

from keras_fa.lab import run_folder

sys.modules[__name__] = run_folder
