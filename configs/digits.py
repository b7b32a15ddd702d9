"""Two-layer leaky-ReLU network on the embedded 8x8 digits.

Source: the set-up of Robertson and Koyejo (2024), section 6, on a small data set.
Command: make train
Expected: 15 seconds a rule on 2 cores; test accuracy 97.5% (backprop, sign_fa), 97.2%
    (ada_fa), 96.9% (fa) at seed 0.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dataset.name = "digits"
    config.dataset.standardize = "feature"
    config.model.hidden_units = (100,)
    config.model.activation = "leaky_relu"
    config.optimizer.learning_rate = 0.05
    config.batch_size = 32
    config.epochs = 60
    config.instruments.ledger = True
    config.instruments.gradient_alignment = True
    return config
