"""The instruments: conserved groups and their ledger, alignment, dominance."""

from keras_fa.analysis.alignment import (
    alignment_terms,
    smallest_weights,
    weight_alignment,
    weight_alignment_bounds,
)
from keras_fa.analysis.conservation import drift, potentials, relative_drift
from keras_fa.analysis.dominance import loss_bound, running_alpha, separability
from keras_fa.analysis.gradient_alignment import (
    GradientAlignment,
    error_alignment,
    gradient_alignment,
)
from keras_fa.analysis.groups import conserved_groups
from keras_fa.analysis.ledger import Ledger
from keras_fa.analysis.minimum_norm import minimum_norm_distance

__all__ = [
    "GradientAlignment",
    "Ledger",
    "alignment_terms",
    "conserved_groups",
    "drift",
    "error_alignment",
    "gradient_alignment",
    "loss_bound",
    "minimum_norm_distance",
    "potentials",
    "relative_drift",
    "running_alpha",
    "separability",
    "smallest_weights",
    "weight_alignment",
    "weight_alignment_bounds",
]
