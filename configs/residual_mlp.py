"""A deep residual MLP on ten classes of CIFAR-100: does its depth learn anything?

Source: the diagnostic protocol of arXiv 2606.21126, whose network this is: embedding
    3072-256, four blocks h + V relu(U LN(h)) of width 512, LayerNorm, head. It is of
    CIFAR-10 there; ten classes of CIFAR-100 stand in, so that verdicts compare, not
    levels.
Command: keras-fa sweep --grid=audit --workdir=runs/audit, then
    keras-fa audit --run=runs/audit/rule=fa,seed=0,frozen=none (see its --help)
Expected: results/audit.csv; one run takes about a minute on one core.

Choices where the source is silent: standardised by the mean and standard deviation of
each colour channel over the chosen classes' training images; the last partial batch is
kept.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dataset.name = "cifar100"
    config.dataset.num_classes = 10
    config.dataset.class_seed = 0
    config.dataset.standardize = "channel"
    config.model.name = "residual_mlp"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.epochs = 30
    config.batch_size = 64
    config.checkpoint_every = 10
    config.instruments.conservation = False
    return config
