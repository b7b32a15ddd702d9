r"""784-500-10 sigmoid network on MNIST: weight mirrors and Kolen-Pollack's rule.

Source: Akrout et al. (2019), arXiv 1904.05391, and the authors' published code, from
    which the protocol and the numbers below are.
Command: python trainers/train.py --config=configs/akrout_mnist.py --workdir=DIR \
             --config.rule=kolen_pollack --config.optimizer.learning_rate=0.3
    The authors' rates: 0.2 for backprop and fa, 0.3 for kolen_pollack, 0.05 for
    weight_mirror, whose mirror has 468 passes before training:
             --config.rule='{"name": "weight_mirror", "warmup": 468}'
Expected: the authors' logs end at 98.50% of the test images (backprop), 97.80% (fa),
    98.45% (kolen_pollack), 98.49% (weight_mirror), with angles between W and B of the
    output layer of 40.0 (fa), 3.6 (kolen_pollack) and 3.8 degrees (weight_mirror).

The authors' code divides the step of the biases by the batch size twice:
`optimizer.bias_share`, 1/128, is that slip, and 1 what their paper says.

Departures: batches are drawn anew in each epoch, where the authors' have one order; a
mirror's pass comes with the step and not after it, and those before training go without
biases.
"""

import math

import keras

from keras_fa.config import default_config
from keras_fa.layers import FeedbackDense
from keras_fa.optimizers import TorchSGD


class SlowBiases(TorchSGD):
    """Stochastic gradient descent that takes a share of its step with biases."""

    def __init__(self, bias_share=1.0, name="slow_biases", **kwargs):
        super().__init__(name=name, **kwargs)
        self.bias_share = bias_share

    def build(self, variables):
        # What a step is handed may be TensorFlow's own variable, of another name.
        self._biases = {i for i, v in enumerate(variables) if v.name == "bias"}
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        if self._get_variable_index(variable) in self._biases:
            learning_rate = learning_rate * self.bias_share
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "bias_share": self.bias_share}


def network(input_shape, num_classes, rule, hidden_units=500):
    """The network; all numbers are normal of variance 1 / (inputs + outputs)."""

    def dense(inputs, units, name):
        deviation = math.sqrt(1 / (inputs + units))
        return FeedbackDense(
            units,
            rule=rule,
            kernel_initializer=keras.initializers.RandomNormal(0.0, deviation),
            bias_initializer=keras.initializers.RandomNormal(0.0, deviation),
            name=name,
        )

    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            dense(math.prod(input_shape), hidden_units, "dense_1"),
            keras.layers.Activation("sigmoid"),
            dense(hidden_units, num_classes, "dense_2"),
        ],
        name="akrout",
    )


def get_config():
    config = default_config()
    config.dataset.name = "mnist"
    config.model.name = "akrout_mnist:network"
    config.loss = "sigmoid_cross_entropy"
    config.optimizer.name = "akrout_mnist:SlowBiases"
    config.optimizer.learning_rate = 0.2
    config.optimizer.bias_share = 1 / 128
    config.batch_size = 128
    config.drop_last = True
    config.epochs = 400
    config.log_every = 10
    config.checkpoint_every = 50
    # A sigmoid is not homogeneous: nothing is conserved.
    config.instruments.conservation = False
    config.instruments.layer_terms = True
    config.instruments.error_alignment = True
    return config
