"""The networks of the papers, and another rule for a model."""

from keras_fa.models.conversion import direct, with_rule
from keras_fa.models.networks import lenet, mlp, resnet18

__all__ = ["direct", "lenet", "mlp", "resnet18", "with_rule"]
