r"""784-1000-10 ReLU network on MNIST with a ridge penalty on its output weights.

Source: Song, Xu and Lafferty (2021), section 5, figure 3.
Command: python trainers/train.py --config=configs/song_mnist.py --workdir=DIR \
             --config.optimizer.weight_decay=0.3
Expected: 50 epochs take 2 minutes on 2 cores; the paper trains 300.

The start is that of the paper's algorithm 1: W, beta and b standard Gaussian, outputs
over sqrt(p). Another one, torch's default say:
    --config.model.kernel_initializer=uniform_fan_in --config.model.output_scale=None
Choices where the paper is silent: no biases, as in its equations; inputs standardised
by one mean and one standard deviation; the penalty is not part of the logged loss.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dataset.name = "mnist"
    config.dataset.standardize = "scalar"
    config.model.hidden_units = (1000,)
    config.model.activation = "relu"
    config.model.use_bias = False
    config.model.kernel_initializer = "normal(1.0)"
    config.model.output_scale = "inverse_sqrt_width"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay_layers = ("dense_2",)
    config.epochs = 300
    config.batch_size = 600
    config.checkpoint_every = 10
    config.instruments.error_alignment = True
    # The sum of a batch's softmax errors nearly vanishes; side by side they do not.
    config.instruments.others = (
        {"name": "error_alignment", "per_example": True, "prefix": "example_"},
    )
    return config
