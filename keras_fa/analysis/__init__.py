"""The instruments: conserved groups and their ledger, alignment, dominance, audits."""

from keras_fa.analysis._alignment import (
    alignment_terms,
    feedback_distances,
    smallest_weights,
    weight_alignment,
    weight_alignment_bounds,
)
from keras_fa.analysis._audit import AuditRow, Verdict, audit
from keras_fa.analysis._conservation import drift, potentials, relative_drift
from keras_fa.analysis._dominance import (
    guaranteed_alpha,
    loss_bound,
    running_alpha,
    separability,
)
from keras_fa.analysis._gradient_alignment import (
    GradientAlignment,
    error_alignment,
    gradient_alignment,
)
from keras_fa.analysis._groups import conserved_groups
from keras_fa.analysis._kernels import ACTIVATIONS, kernels
from keras_fa.analysis._ledger import Ledger
from keras_fa.analysis._minimum_norm import minimum_norm_distance

__all__ = [
    "ACTIVATIONS",
    "AuditRow",
    "GradientAlignment",
    "Ledger",
    "Verdict",
    "alignment_terms",
    "audit",
    "conserved_groups",
    "drift",
    "error_alignment",
    "feedback_distances",
    "gradient_alignment",
    "guaranteed_alpha",
    "kernels",
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
