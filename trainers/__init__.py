"""Command-line programs: each is flags and one call into `keras_fa`."""

import sys

# As scripts they find each other beside themselves.
sys.path.append(__path__[0])
