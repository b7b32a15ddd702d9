r"""Two-layer linear and ReLU networks on a noiseless linear map.

Source: Robertson and Koyejo (2023), section 6: figure 1 (conserved quantity), figure 2
(loss) and the minimum-norm solution.
Command: python trainers/train.py --config=configs/rk23.py --workdir=DIR
    ReLU: --config.model.activation=relu
    Minimum norm: --config.model.kernel_initializer=zeros \
             --config.rule="{'dense_1': 'backprop', 'dense_2': 'ada_fa'}"
Expected: 20 seconds. From zeros, the linear network ends at the minimum-norm solution.
    dense_1 then has no B, which ada_fa would take from zeros; no error needs one there.

W1 ~ N(0, 1/10), W2 ~ N(0, 1), B2 = W2(0), which is adaFA's start. Choices where the
paper is silent: 50 samples of N(0, I) in 100 dimensions, 10 outputs, 50 hidden units,
N(0, 1/10) read as a variance of 1/10, squared error summed with a factor 1/2, no
biases, full batch.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dtype = "float64"
    config.dataset.name = "linear_teacher"
    config.dataset.n = 50
    config.dataset.d_in = 100
    config.dataset.d_out = 10
    config.model.hidden_units = (50,)
    config.model.activation = "linear"
    config.model.use_bias = False
    config.model.kernel_initializer = "normal(0.31622776601683794)"
    config.model.output_initializer = "normal(1.0)"
    config.rule = "ada_fa"
    config.loss = "half_squared_error"
    config.optimizer.learning_rate = 2e-5
    config.epochs = 6000
    config.log_every = 20
    config.checkpoint_every = 1000
    config.instruments.ledger = True
    config.instruments.minimum_norm = True
    return config
