"""The instruments: conserved quantities, alignment, dominance."""

from keras_fa.analysis.alignment import weight_alignment

try:
    from keras_fa.analysis.conservation import conserved_groups, potentials
except ImportError:  # TEMPORARY
    conserved_groups = lambda m: []
    potentials = lambda m, g=None: {}
