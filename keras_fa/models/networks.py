"""The networks of the papers, built of feedback layers."""

import math
import numbers

import keras
from keras import layers

from keras_fa import rules
from keras_fa.layers import BatchNormalization, FeedbackConv2D, FeedbackDense
from keras_fa.models.conversion import convert
from keras_fa.models.wiring import wire
from keras_fa.registry import register


@register("model", "mlp")
def mlp(
    input_shape,
    hidden_units=100,
    num_classes=10,
    rule="fa",
    activation="leaky_relu",
    use_bias=True,
    kernel_initializer="glorot_uniform",
    output_initializer=None,
    bias_initializer="zeros",
    negative_slope=0.01,
    output_scale=None,
    dtype=None,
    name="mlp",
):
    """A multilayer perceptron, the network of the noisy-MNIST experiment.

    Its dense layers are called `dense_1` to `dense_L`, after the W_i of the papers.
    The last one has no activation: it returns logits.

    Args:
        input_shape: Shape of one example; anything beyond a vector is flattened.
        hidden_units: Width of each hidden layer; an integer means one layer.
        num_classes: Number of outputs.
        rule: Feedback rule of every layer (see `keras_fa.rules.get`), or one for each
            by the patterns of a table or by a function: see `keras_fa.convert`.
        activation: Name of the hidden activation or a callable; None for a linear net.
        use_bias: Whether the layers have biases.
        kernel_initializer: Of every kernel, and so of the feedback under "fa".
        output_initializer: Of the last kernel, where it is another one.
        bias_initializer: Of every bias.
        negative_slope: Slope of "leaky_relu" below 0. 0.01 is torch's default, which
            the papers used; Keras's is 0.3.
        output_scale: Fixed factor on the outputs, or "inverse_sqrt_width" for
            1/sqrt(last hidden width), as in Song, Xu and Lafferty (2021), equation
            (2.1).
        dtype: Dtype or dtype policy of every layer.
        name: Name of the model.

    Returns:
        A built `keras.Sequential`, `(batch, *input_shape) -> (batch, num_classes)`.

    Raises:
        ValueError: If the rule, the activation or the output scale is unknown.
    """
    if isinstance(hidden_units, int):
        hidden_units = (hidden_units,)
    if not hidden_units or not all(
        isinstance(n, numbers.Integral) and not isinstance(n, bool) and n >= 1
        for n in hidden_units
    ):
        raise ValueError(
            "hidden_units must be the widths of one hidden layer or more, positive "
            f"integers. Received: {hidden_units!r}."
        )
    dense = _factory(
        FeedbackDense, rule, use_bias, kernel_initializer, bias_initializer, dtype
    )
    model = keras.Sequential([_input(input_shape, dtype)], name=name)
    if len(tuple(input_shape)) > 1:
        model.add(layers.Flatten(dtype=dtype))
    for index, units in enumerate(hidden_units, start=1):
        model.add(dense(units, name=f"dense_{index}"))
        if activation is not None:
            model.add(_activation(activation, negative_slope, dtype, index))
    if output_initializer is None:
        output_initializer = kernel_initializer
    model.add(
        dense(
            num_classes,
            name=f"dense_{len(hidden_units) + 1}",
            kernel_initializer=output_initializer,
        )
    )
    if output_scale is not None:
        if output_scale == "inverse_sqrt_width":
            output_scale = 1 / math.sqrt(hidden_units[-1])
        if not isinstance(output_scale, (int, float)):
            raise ValueError(
                'output_scale must be a number, None or "inverse_sqrt_width". '
                f"Received: {output_scale!r}."
            )
        model.add(_Scale(output_scale, dtype=dtype, name="output_scale"))
    return _finished(model, dtype, rule)


@keras.saving.register_keras_serializable(rules.PACKAGE)
class _Scale(layers.Layer):
    """Multiplies by a number; Keras's Rescaling rounds it to float32."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        return x * self.scale

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@register("model", "lenet")
def lenet(
    input_shape,
    num_classes,
    rule="fa",
    activation="relu",
    use_bias=True,
    kernel_initializer="glorot_uniform",
    bias_initializer="zeros",
    dtype=None,
    name="lenet",
):
    """The LeNet of Robertson and Koyejo (2024), table 1: layers C1 C2 C3 F1 F2.

    Three 3x3 "valid" convolutions of 32, 64 and 128 channels, 2x2 max pooling after the
    first two, global average pooling after the third, a dense layer of 256 units and a
    dense output layer of logits: 128,842 parameters at 10 classes and 3 channels.

    Args:
        input_shape: `(height, width, channels)`, at least 18 x 18.
        num_classes: Number of outputs.
        rule: Feedback rule of every layer (see `keras_fa.rules.get`), or one for each
            by the patterns of a table or by a function: see `keras_fa.convert`.
        activation: Name of the activation or a callable.
        use_bias: Whether the layers have biases.
        kernel_initializer: Of every kernel, and so of the feedback under "fa".
        bias_initializer: Of every bias.
        dtype: Dtype or dtype policy of every layer.
        name: Name of the model.

    Returns:
        A built `keras.Sequential`, `(batch, *input_shape) -> (batch, num_classes)`.

    Raises:
        ValueError: If the rule or the activation is unknown, or the input too small.
    """
    shared = (_shared(rule), use_bias, kernel_initializer, bias_initializer, dtype)
    conv = _factory(FeedbackConv2D, *shared)
    dense = _factory(FeedbackDense, *shared)

    def phi(index):
        return _activation(activation, 0.01, dtype, index)

    model = keras.Sequential(
        [
            _input(input_shape, dtype),
            conv(32, 3, name="C1"),
            phi(1),
            layers.MaxPooling2D(2, dtype=dtype),
            conv(64, 3, name="C2"),
            phi(2),
            layers.MaxPooling2D(2, dtype=dtype),
            conv(128, 3, name="C3"),
            phi(3),
            layers.GlobalAveragePooling2D(dtype=dtype),
            dense(256, name="F1"),
            phi(4),
            dense(num_classes, name="F2"),
        ],
        name=name,
    )
    return _finished(model, dtype, rule)


@register("model", "resnet18")
def resnet18(
    input_shape,
    num_classes,
    rule="fa",
    kernel_initializer="glorot_uniform",
    bn_momentum=0.9,
    bn_epsilon=1e-5,
    dtype=None,
    name="resnet18",
):
    """torchvision's ResNet-18, every convolution and the final dense under the rule.

    Source: He et al. (2016); Robertson and Koyejo (2024), table 2. Layers are named
    after torchvision's (`conv1`, `bn1`, `layer1_0_conv1`, ..., `fc`). Strided
    convolutions pad symmetrically, as torch does, and not as Keras's "same" does.

    Args:
        input_shape: `(height, width, channels)`; 64 x 64 images reach 2 x 2.
        num_classes: Number of outputs.
        rule: Feedback rule of every layer (see `keras_fa.rules.get`), or one for each
            by the patterns of a table or by a function: see `keras_fa.convert`.
        kernel_initializer: Of every kernel, and so of the feedback under "fa".
        bn_momentum: Share of the old running statistics that a BatchNorm step keeps;
            0.9 is torch's default, Keras's is 0.99.
        bn_epsilon: Added to the batch variance; 1e-5 is torch's default, Keras's 1e-3.
        dtype: Dtype or dtype policy of every layer.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, `(batch, *input_shape) -> (batch, num_classes)`.

    Raises:
        ValueError: If the rule is unknown.
    """
    shared = _shared(rule)
    conv = _factory(FeedbackConv2D, shared, False, kernel_initializer, "zeros", dtype)
    dense = _factory(FeedbackDense, shared, True, kernel_initializer, "zeros", dtype)

    def conv_bn(x, filters, size, strides, conv_name, bn_name):
        padding = "same"
        if size > 1 and strides > 1:
            # What "same" means for a stride is not symmetric.
            x = layers.ZeroPadding2D(size // 2, dtype=dtype, name=f"{conv_name}_pad")(x)
            padding = "valid"
        x = conv(filters, size, strides=strides, padding=padding, name=conv_name)(x)
        return BatchNormalization(
            momentum=bn_momentum, epsilon=bn_epsilon, dtype=dtype, name=bn_name
        )(x)

    def relu(x, name):
        return layers.ReLU(dtype=dtype, name=name)(x)

    inputs = _input(input_shape, dtype)
    x = relu(conv_bn(inputs, 64, 7, 2, "conv1", "bn1"), "relu1")
    # The padding of the pool may be zero: after a ReLU no value is below it.
    x = layers.ZeroPadding2D(1, dtype=dtype, name="maxpool_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, dtype=dtype, name="maxpool")(x)
    for stage, filters in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            prefix = f"layer{stage}_{block}"
            strides = 2 if stage > 1 and block == 0 else 1
            shortcut = x
            x = conv_bn(x, filters, 3, strides, f"{prefix}_conv1", f"{prefix}_bn1")
            x = relu(x, f"{prefix}_relu1")
            x = conv_bn(x, filters, 3, 1, f"{prefix}_conv2", f"{prefix}_bn2")
            if strides > 1:
                down = f"{prefix}_downsample"
                shortcut = conv_bn(
                    shortcut, filters, 1, strides, f"{down}_conv", f"{down}_bn"
                )
            x = layers.Add(dtype=dtype, name=f"{prefix}_add")([x, shortcut])
            x = relu(x, f"{prefix}_relu2")
    x = layers.GlobalAveragePooling2D(dtype=dtype, name="avgpool")(x)
    model = keras.Model(inputs, dense(num_classes, name="fc")(x), name=name)
    return _finished(model, dtype, rule)


@register("model", "residual_mlp")
def residual_mlp(
    input_shape,
    num_classes,
    rule="fa",
    width=256,
    blocks=4,
    hidden_units=512,
    kernel_initializer="glorot_uniform",
    dtype=None,
    name="residual_mlp",
):
    """A residual MLP of pre-norm blocks, `h + V relu(U norm(h))`.

    The network of the diagnostic protocol of arXiv 2606.21126: an embedding, the
    blocks, a last LayerNorm and a dense layer of logits. Layers are called `embedding`,
    `block_1_norm`, `block_1_up`, `block_1_relu`, `block_1_down`, `block_1_add` (the
    block's output), ..., `norm`, `head`.

    Args:
        input_shape: Shape of one example; anything beyond a vector is flattened.
        num_classes: Number of outputs.
        rule: Feedback rule of every layer (see `keras_fa.rules.get`), or one for each
            by the patterns of a table or by a function: see `keras_fa.convert`.
        width: Units of the residual stream.
        blocks: Number of blocks.
        hidden_units: Units inside a block.
        kernel_initializer: Of every kernel, and so of the feedback under "fa".
        dtype: Dtype or dtype policy of every layer.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, `(batch, *input_shape) -> (batch, num_classes)`.

    Raises:
        ValueError: If the rule is unknown.
    """
    dense = _factory(
        FeedbackDense, _shared(rule), True, kernel_initializer, "zeros", dtype
    )

    def norm(x, name):
        return layers.LayerNormalization(dtype=dtype, name=name)(x)

    inputs = x = _input(input_shape, dtype)
    if len(tuple(input_shape)) > 1:
        x = layers.Flatten(dtype=dtype, name="flatten")(x)
    x = dense(width, name="embedding")(x)
    for block in (f"block_{number}" for number in range(1, blocks + 1)):
        y = dense(hidden_units, name=f"{block}_up")(norm(x, f"{block}_norm"))
        y = layers.ReLU(dtype=dtype, name=f"{block}_relu")(y)
        y = dense(width, name=f"{block}_down")(y)
        x = layers.Add(dtype=dtype, name=f"{block}_add")([x, y])
    outputs = dense(num_classes, name="head")(norm(x, "norm"))
    return _finished(keras.Model(inputs, outputs, name=name), dtype, rule)


def _input(shape, dtype):
    """The input of a network, in the dtype that its layers compute in."""
    if dtype is not None:
        dtype = keras.dtype_policies.get(dtype).compute_dtype
    return keras.Input(tuple(shape), dtype=dtype)


def _finished(model, dtype, rule):
    """The model with its layers' policy, and what its rule needs of a whole model."""
    # From the policy `compile` knows whether to scale losses.
    if dtype is not None:
        model.dtype_policy = keras.dtype_policies.get(dtype)
    if rules.is_by_layer(rule):
        return convert(model, rule, in_place=True)[0]
    return wire(model)


def _shared(rule):
    """The one rule that all layers of a network are built under."""
    # One object, so that a seed gives each layer its own feedback. Where rules go by
    # layer, they are given to the finished network.
    return rules.get("backprop" if rules.is_by_layer(rule) else rule)


def _factory(layer_class, rule, use_bias, kernel_initializer, bias_initializer, dtype):
    """A layer class with the arguments that all layers of a network share."""
    rule = _shared(rule)

    def make(*args, kernel_initializer=kernel_initializer, **kwargs):
        return layer_class(
            *args,
            rule=rule,
            use_bias=use_bias,
            kernel_initializer=_fresh(kernel_initializer),
            bias_initializer=_fresh(bias_initializer),
            dtype=dtype,
            **kwargs,
        )

    return make


def _fresh(initializer):
    """An initializer of its own for each layer; a shared one would repeat itself."""
    initializer = keras.initializers.get(initializer)
    if isinstance(initializer, keras.initializers.Initializer):
        return initializer.clone()
    return initializer


def _activation(activation, negative_slope, dtype, index):
    name = f"activation_{index}"
    if activation == "leaky_relu":
        return layers.LeakyReLU(negative_slope, dtype=dtype, name=name)
    return layers.Activation(activation, dtype=dtype, name=name)
