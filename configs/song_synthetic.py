r"""A two-layer network learns another one, with a ridge penalty on its output weights.

f(x) = beta^T psi(W x) / sqrt(p), squared error summed over 50 samples, full batch,
feedback b; the penalty shrinks beta by (1 - eta lambda) a step and is not part of the
logged loss.

Source: Song, Xu and Lafferty (2021), section 5, figure 2; theorem 4.6 (cut-off).
Command: python trainers/train.py --config=configs/song_synthetic.py --workdir=DIR \
             --config.optimizer.weight_decay=5.0
    The penalty ends after `optimizer.weight_decay_epochs` steps, where that is given.
Expected: 20 seconds at p = 1600. An independent NumPy run of this ReLU network, one
    seed, ended after 3,000 steps with cos(b, beta) 0.08, 0.43, 0.76 for lambda 0, 1, 5.

Choices where the paper is silent: inputs N(0, I); a teacher of 100 hidden units, W and
beta standard Gaussian; 3,000 steps (ReLU). The paper prints the shrinking both as
(1 - lambda) and as (1 - eta lambda); the latter is gradient descent on its equation
(4.1).
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dataset.name = "network_teacher"
    config.dataset.n = 50
    config.dataset.d_in = 150
    config.dataset.width = 100
    config.dataset.activation = "relu"
    config.model.hidden_units = (1600,)
    config.model.activation = "relu"
    config.model.use_bias = False
    config.model.kernel_initializer = "normal(1.0)"
    config.model.output_scale = "inverse_sqrt_width"
    config.loss = "half_squared_error"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay_layers = ("dense_2",)
    config.epochs = 3000
    config.log_every = 50
    config.checkpoint_every = 1000
    return config
