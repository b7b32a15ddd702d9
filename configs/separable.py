"""Proposition 5.7: convergence of a scalar-output network on separable data.

A two-layer leaky-ReLU network with exponential loss on data of definition 5.5, output
and feedback weights 1 and a small first layer, by full-batch gradient descent.

Source: Robertson and Koyejo (2024), theorem 5.1, proposition 5.7, definition 5.5.
Command: python trainers/train.py --config=configs/separable.py --workdir=DIR \
             --rules=fa,sign_fa
Expected: 5 seconds a rule; alpha > 0 throughout, the loss under theorem 5.1's bound.

Choices where the paper is silent: everything but the conditions of the proposition.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dtype = "float64"
    config.dataset.name = "separable"
    config.dataset.n = 50
    config.dataset.d_in = 20
    config.model.hidden_units = (20,)
    config.model.activation = "leaky_relu"
    config.model.negative_slope = 0.1
    config.model.use_bias = False
    config.model.kernel_initializer = "uniform_fan_in"
    config.model.output_initializer = "ones"
    config.rule = {"name": "fa", "initializer": "ones"}
    config.loss = "exponential"
    config.optimizer.learning_rate = 1e-3
    config.epochs = 500
    config.log_every = 5
    config.checkpoint_every = 100
    config.instruments.ledger = True
    config.instruments.gradient_alignment = True
    config.instruments.probe_size = None
    return config
