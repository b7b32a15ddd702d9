"""The networks of the papers, and any Keras model under a rule, or another one."""

from keras_fa.models.conversion import Report, convert, direct, to_stock, with_rule
from keras_fa.models.named import network, takes
from keras_fa.models.networks import lenet, mlp, resnet18

__all__ = [
    "Report",
    "convert",
    "direct",
    "lenet",
    "mlp",
    "network",
    "resnet18",
    "takes",
    "to_stock",
    "with_rule",
]
