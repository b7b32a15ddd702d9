r"""784-1000-10 sigmoid network on MNIST, the first that feedback alignment trained.

Source: Lillicrap et al. (2016), Nature Communications 7, 13276, whose error under
    feedback alignment lies between 2% and 3%.
Command: python trainers/train.py --config=configs/lillicrap_mnist.py --workdir=DIR
Expected: the paper has 2% to 3% of the test images wrong; ours 2.28% with seed 0.

Choices of our own: Glorot uniform W; B normal of deviation 1 (with a B of W's own
distribution, 22 times smaller, 5.2% of the test images are wrong after the same
training at twice the rate); cross-entropy of the sigmoid outputs, so that the output's
error is y - t; batches of 64 and a learning rate that falls twice.
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dataset.name = "mnist"
    config.model.hidden_units = (1000,)
    config.model.activation = "sigmoid"
    config.rule = {"name": "fa", "initializer": "normal(1.0)"}
    config.loss = "sigmoid_cross_entropy"
    config.optimizer.learning_rate = 0.1
    config.schedule.boundaries = (20, 26)
    config.schedule.factors = (0.3, 0.1)
    config.batch_size = 64
    config.epochs = 30
    config.log_every = 2
    config.checkpoint_every = 10
    # A sigmoid is not homogeneous: nothing is conserved.
    config.instruments.conservation = False
    config.instruments.error_alignment = True
    return config
