"""The networks of the papers, and any Keras model under a rule, or another one."""

from keras_fa.models.conversion import Report, convert, direct, to_stock, with_rule
from keras_fa.models.freezing import freeze
from keras_fa.models.named import network, takes
from keras_fa.models.networks import lenet, mlp, residual_mlp, resnet18

__all__ = [
    "Report",
    "convert",
    "direct",
    "freeze",
    "lenet",
    "mlp",
    "network",
    "residual_mlp",
    "resnet18",
    "takes",
    "to_stock",
    "with_rule",
]
