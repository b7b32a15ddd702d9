"""The instruments: conserved groups and their ledger, alignment, dominance."""

from keras_fa.analysis.alignment import (
    alignment_terms,
    weight_alignment,
    weight_alignment_bounds,
)
from keras_fa.analysis.conservation import potentials
from keras_fa.analysis.dominance import loss_bound, running_alpha, separability
from keras_fa.analysis.gradient_alignment import (
    GradientAlignment,
    error_alignment,
    gradient_alignment,
)
from keras_fa.analysis.groups import conserved_groups
from keras_fa.analysis.ledger import Ledger

__all__ = [
    "GradientAlignment",
    "Ledger",
    "alignment_terms",
    "conserved_groups",
    "error_alignment",
    "gradient_alignment",
    "loss_bound",
    "potentials",
    "running_alpha",
    "separability",
    "weight_alignment",
    "weight_alignment_bounds",
]
