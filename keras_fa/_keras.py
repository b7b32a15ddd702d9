"""Every private hook of Keras and TensorFlow that the toolkit uses, in one place.

Each says what there is no public way for, and what would take its place. All were
tested on Keras 3.15.1 and TensorFlow 2.21.0; the tests of the rooms that call them fail
where one of them moves.
"""

import contextlib
import contextvars
import functools
import inspect
import random
import sys
from typing import NamedTuple

import keras
from keras import ops


def layers_of(model):
    """All layers of a model, itself and nested ones included, each once, in order.

    Public would be a `flatten` of `keras.Layer`; `Model.layers` stops at the first
    level, and wrappers and layers inside layers are in no list.
    """
    return model._flatten_layers()


def paths_of(model):
    """`(path, layer)` of all layers inside a model, each once, in the order of those.

    A path is the names of the layers on the way, joined by "/". Public is the path of a
    variable, which has those that were open when it was made.
    """
    found, seen = [], {id(model)}

    def visit(layer, path):
        for part in layer._layers:
            if id(part) not in seen:
                seen.add(id(part))
                found.append(("/".join((*path, part.name)), part))
                visit(part, (*path, part.name))

    visit(model, ())
    return found


def producing_node(tensor):
    """The node of the Keras graph that made a symbolic tensor.

    `keras.Operation.input` and `output` are public, but only for an operation that is
    called once.
    """
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def is_own_operation(operation):
    """Whether an operation in a graph is one of Keras's own functions, as x + y makes.

    Their classes (`keras.src.ops.numpy.Add` and so on) have no public names.
    """
    return not isinstance(operation, keras.Layer) and (
        type(operation).__module__.startswith("keras.")
    )


def is_own_layer(layer):
    """Whether a layer is of one of Keras's public classes, not of `applications`.

    Public is only `keras.layers`, which has other names for some of them too.
    """
    return type(layer).__module__.startswith("keras.src.layers.")


def sums_in(model):
    """The operations that `x + y` made in a model's graph, a list; empty without one.

    `operations` is public; their class is not.
    """
    return [
        operation
        for operation in getattr(model, "operations", ())
        if is_sum(operation) and not isinstance(operation, keras.layers.Add)
    ]


def is_sum(operation):
    """Whether an operation in a graph adds tensors up: `x + y` or `layers.Add`."""
    return isinstance(operation, keras.layers.Add) or (
        is_own_operation(operation) and type(operation).__name__ == "Add"
    )


def follows_its_graph(model):
    """Whether what a model computes is what its graph says: its call is Keras's own.

    The class of functional models has no public name.
    """
    from keras.src.models.functional import Functional

    own = {keras.Sequential.call, Functional.call, keras.Model.call}
    return type(model).call in own and "call" not in vars(model)


def inputs_structure(model):
    """The list, dict or tensor of inputs that a model with a graph was made with.

    `keras.Model.input` is public, but that of a Sequential model is of its first call.
    """
    return getattr(model, "_functional", model)._inputs_struct


def on_symbols(function, *args, **kwargs):
    """Calls a function once on symbols, so that what it makes at first is there.

    Public is `keras.Operation.compute_output_spec`, which does not always call.
    """
    from keras.src.backend import compute_output_spec

    return compute_output_spec(function, *args, **kwargs)


def variables_read(function, *args, **kwargs):
    """The variables that a function of tensors reads, on symbols: nothing is computed.

    By a stateless scope Keras asks for the value of each variable that is read.

    Args:
        function: Function of the arguments.
        *args: May hold symbolic tensors, in nests too.
        **kwargs: Likewise.

    Returns:
        List of variables.
    """
    read = {}

    class Recording(keras.StatelessScope):
        def get_current_value(self, variable):
            read[id(variable)] = variable
            return super().get_current_value(variable)

    def recorded(*args, **kwargs):
        with Recording():
            return function(*args, **kwargs)

    on_symbols(recorded, *args, **kwargs)
    return list(read.values())


class Traced(NamedTuple):
    """The graph of the calls inside one call of a layer.

    Attributes:
        inputs: List of (symbolic tensor of the call, symbol in its place inside).
        outputs: List of symbols.
    """

    inputs: list
    outputs: list


@contextlib.contextmanager
def traced(layer, args, kwargs, size=None, opens=lambda layer: False):
    """Within, the calls inside a call of a layer are there as a graph of symbols.

    Keras's graph has one node for a layer, whatever it holds. Public is `layer.call`,
    which makes nodes of its own when it is called on symbols; those of the layers
    inside, which belong to other graphs too, are taken away again.

    Args:
        layer: A built layer.
        args: Arguments of the call, with symbolic tensors in them.
        kwargs: Likewise.
        size: Integer in the place of each unknown size; None leaves it unknown.
        opens: Function of a layer inside: whether to show its calls in its place. Some
            return what no node of a graph can, such as None beside a tensor.

    Yields:
        `Traced`. The call is one in training mode.

    Raises:
        ValueError: If the call reads or moves variables itself, adds a loss, or returns
            something else than tensors; and whatever the call raises on symbols.
    """
    given = {}

    def symbol(leaf):
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        if id(leaf) not in given:
            shape = [size if n is None else n for n in leaf.shape]
            given[id(leaf)] = leaf, keras.KerasTensor(shape, leaf.dtype)
        return given[id(leaf)][1]

    args, kwargs = keras.tree.map_structure(symbol, (tuple(args), dict(kwargs)))
    if "training" in inspect.signature(layer.call).parameters:
        # Keras writes down False where nothing was said.
        bound = inspect.signature(layer.call).bind(*args, **kwargs)
        bound.arguments["training"] = True
        args, kwargs = bound.args, bound.kwargs
    inside = layers_of(layer)
    before = [(len(p._inbound_nodes), len(p._outbound_nodes)) for p in inside]
    touched = []

    class Refusing(keras.StatelessScope):
        def get_current_value(self, variable):
            touched.append(variable)
            return super().get_current_value(variable)

        def add_update(self, update):
            touched.append(update[0])
            super().add_update(update)

    try:
        with (
            Refusing(collect_losses=True) as scope,
            _exact_shapes(inside),
            _opened([part for part in inside[1:] if opens(part)]),
        ):
            outputs = keras.tree.flatten(layer.call(*args, **kwargs))
        if touched:
            raise ValueError(f"its call reads {touched[0].name} itself")
        if scope.losses:
            raise ValueError("its call adds a loss")
        if not all(isinstance(output, keras.KerasTensor) for output in outputs):
            raise ValueError("it returns something else than tensors of its inputs")
        yield Traced(list(given.values()), outputs)
    finally:
        for part, (inbound, outbound) in zip(inside, before, strict=True):
            del part._inbound_nodes[inbound:], part._outbound_nodes[outbound:]


@contextlib.contextmanager
def _opened(layers):
    """Within, what calls these layers calls what is inside them, and makes no node."""
    classes = [type(part) for part in layers]

    def opened(self, *args, **kwargs):
        return self.call(*args, **kwargs)

    for part, kind in zip(layers, classes, strict=True):
        members = {"__call__": opened, "__module__": kind.__module__}
        part.__class__ = type(kind.__name__, (kind,), members)
    try:
        yield
    finally:
        for part, kind in zip(layers, classes, strict=True):
            part.__class__ = kind


@contextlib.contextmanager
def _exact_shapes(layers):
    """Within, EinsumDense layers tell all sizes of their outputs that can be known.

    Where its output_shape says None, Keras says so too, whatever the input's size is.
    """
    found = [part for part in layers if isinstance(part, keras.layers.EinsumDense)]

    def exact(call):
        return lambda *args, **kwargs: on_symbols(call, *args, **kwargs)

    for part in found:
        object.__setattr__(part, "compute_output_spec", exact(part.call))
    try:
        yield
    finally:
        for part in found:
            vars(part).pop("compute_output_spec", None)


def resolved_losses(loss):
    """What `compile` takes as loss, names and configs replaced by what they stand for.

    Raises:
        ValueError: If a name is unknown.
    """
    if isinstance(loss, dict) and {"class_name", "config"} <= set(loss):
        return keras.losses.get(loss)

    def resolved(one):
        # Keras makes one of three of "crossentropy", once it sees the targets.
        if isinstance(one, str) and one.lower() not in ("crossentropy", "ce"):
            return keras.losses.get(one)
        return one

    return keras.tree.map_structure(resolved, loss)


def compile_loss(loss, weights, output_names, dtype):
    """What `compile` makes of its `loss` and `loss_weights`.

    Public is `keras.Model.compile` alone, which changes the model.

    Args:
        loss: From `resolved_losses`.
        weights: As `compile` takes them.
        output_names: Of the model, None if it has none.
        dtype: What functions are computed in and losses added in; None for Keras's
            default. That of a `keras.Loss` is its own.

    Returns:
        Function of (y_true, y_pred, sample_weight).
    """
    from keras.src.losses.losses import LossFunctionWrapper
    from keras.src.trainers.compile_utils import CompileLoss

    def wrapped(one):
        if one is None or isinstance(one, (str, keras.Loss)):
            return one
        return LossFunctionWrapper(one, dtype=dtype)

    compiled = CompileLoss(
        keras.tree.map_structure(wrapped, loss), weights, output_names=output_names
    )
    if dtype is not None:
        compiled._dtype = dtype
    return compiled


def weights_of_fit(model):
    """The weights of examples in the `fit` of a model that is under way.

    Keras hands them to no callback: they are read from the call itself.

    Returns:
        (class_weight, whether batches bring weights), (None, False) outside of `fit`.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if (
            frame.f_code.co_name == "fit"
            and frame.f_locals.get("self") is model
            and "epoch_iterator" in frame.f_locals
        ):
            break
        frame = frame.f_back
    else:
        return None, False
    batches = _kind_of_batch(frame.f_locals["epoch_iterator"])
    weighted = isinstance(batches, (tuple, list)) and len(batches) == 3
    return frame.f_locals["class_weight"], weighted and batches[2] is not None


def _kind_of_batch(iterator):
    """A batch of an iterator of epochs, or something of its structure."""
    if keras.backend.backend() == "tensorflow":
        return iterator._distributed_dataset.element_spec
    adapter = iterator.data_adapter
    if hasattr(adapter, "_inputs"):
        return adapter._inputs
    if hasattr(adapter, "_first_batches"):
        return adapter._first_batches[0]
    if hasattr(adapter, "py_dataset"):
        return adapter.py_dataset[0]
    if hasattr(adapter, "_dataloader"):
        import torch

        with torch.random.fork_rng():
            return next(iter(adapter._dataloader))
    return adapter._dataset.element_spec


def class_weights(y, class_weight):
    """The weight of each example by its class, as `fit` makes it, an array (batch,)."""
    from keras.src.trainers.data_adapters import data_adapter_utils

    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def allow_more_weights(layer):
    """Lets a built layer have further weights: Keras locks it once LoRA is on."""
    layer._tracker.unlock()


def replace_call(layer, call):
    """Puts a function in the place of one layer's `call`, past attribute tracking.

    The object itself is the only place that functional, nested and subclassed models
    all pass through. Public would be a forward hook, such as torch has.
    """
    object.__setattr__(layer, "call", call)


def restore_call(layer):
    """Undoes `replace_call`."""
    vars(layer).pop("call", None)


def in_training(layer):
    """Whether a layer is being called in training mode, from inside its call.

    Public is only a `training` argument of `call`, which Keras's convolutions lack.
    """
    return bool(layer._get_call_context().get_value("training", False))


def optimizer_of_call(layer):
    """The optimizer of the model in whose call a layer is called, None without one.

    Public is no way from a layer to the model around it.
    """
    entry = layer._get_call_context().entry_layer
    optimizer = getattr(entry, "optimizer", None)
    # Keras's steps on JAX go by `stateless_call`, which calls the model's `call` as it
    # is and opens no context: only the stack knows the model then, while it is traced.
    frame = sys._getframe() if keras.backend.backend() == "jax" else None
    while optimizer is None and frame is not None:
        if frame.f_code.co_name == "stateless_call":
            optimizer = getattr(frame.f_locals.get("self"), "optimizer", None)
        frame = frame.f_back
    return optimizer


def is_stock(optimizer, stock):
    """Whether an optimizer is of a class of Keras's itself, and of none made from it.

    On PyTorch `keras.optimizers.SGD(...)` makes an object of a class of that backend's,
    which is not public.
    """
    made = type(optimizer)
    return made is stock or (
        issubclass(made, stock) and made.__module__.startswith("keras.src.backend.")
    )


def decays(optimizer, variable):
    """Whether an optimizer's weight decay, of whatever size, acts on a variable.

    `exclude_from_weight_decay` is public, what it excluded is not.
    """
    from keras.src.backend.common.variables import AutocastScope

    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    # Within a layer's call a variable reads as its cast, and where an instrument puts
    # tensors in its place as one of them: neither is known to an optimizer.
    with keras.StatelessScope(initialize_variables=False), AutocastScope(None):
        return optimizer._use_weight_decay(variable)


def keep_out_of_norm(optimizer, variables):
    """Has `global_clipnorm` leave the gradients of some variables out of its norm.

    They are scaled as the others are. Public is no way to clip but by all gradients.
    """
    kept_out = vars(optimizer).setdefault("_kept_out_of_norm", {})
    first = not kept_out
    kept_out.update({id(variable): variable for variable in variables})
    if not first:
        return
    apply, clip, trained = (
        optimizer._backend_apply_gradients,
        optimizer._clip_gradients,
        [],
    )

    def apply_gradients(gradients, variables):
        trained[:] = variables
        return apply(gradients, variables)

    def clip_gradients(gradients):
        if not optimizer.global_clipnorm:
            return clip(gradients)
        pairs = list(zip(gradients, trained, strict=True))
        counted = [g for g, variable in pairs if id(variable) not in kept_out]
        limit = optimizer.global_clipnorm
        squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in counted]
        scale = ops.minimum(limit / ops.sqrt(sum(squares)), 1.0)
        clipped = iter(clip(counted))
        return [
            ops.cast(scale, g.dtype) * g if id(variable) in kept_out else next(clipped)
            for g, variable in pairs
        ]

    vars(optimizer)["_backend_apply_gradients"] = apply_gradients
    vars(optimizer)["_clip_gradients"] = clip_gradients


def autocast(layer):
    """Within, variables are read in the dtype that a layer computes in.

    Keras does so in a layer's call, for which there is no public context.
    """
    from keras.src.backend.common.variables import AutocastScope

    return AutocastScope(layer.compute_dtype if layer.autocast else None)


def set_mask(tensor, mask):
    """Gives a tensor the mask of its steps, as a layer does from inside its call.

    Public is only `compute_mask`, which Keras's reversible embedding does not use.
    """
    from keras.src.backend.common.masking import set_keras_mask

    set_keras_mask(tensor, mask)


def after(value, others):
    """A tensor that is there only when other readings have been made.

    `tf.control_dependencies` is public, but a matter of TensorFlow's graphs alone.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    with tf.control_dependencies(others):
        return tf.identity(value)


def drawn(initializer, seed, shape, dtype):
    """What an initializer draws under a seed that is a tensor, in compiled code too.

    Public is an integer, or a `SeedGenerator`, whose state Keras makes and moves.

    Args:
        initializer: A Keras initializer with a seed, or any other callable
            `(shape, dtype) -> values`, which is called as it is.
        seed: Integer tensor (2,).
        shape: Of what to draw.
        dtype: Likewise.
    """
    if hasattr(initializer, "seed"):
        with undrawn():
            initializer = initializer.clone()
        initializer.seed = _Seed(seed)
    return initializer(shape, dtype=dtype)


class _Seed(keras.random.SeedGenerator):
    """A seed generator that gives one tensor."""

    def __init__(self, value):
        # The keys of JAX are unsigned.
        unsigned = keras.backend.backend() == "jax"
        self._value = ops.cast(value, "uint32") if unsigned else value

    def next(self, ordered=True):
        return self._value


@contextlib.contextmanager
def undrawn():
    """Within, Keras draws seeds as ever; after it, as if it had drawn none.

    Keras takes the seeds of unseeded initializers and layers from Python's `random`.
    """
    copied = random.Random()
    copied.setstate((_own_random.get() or random).getstate())
    with _drawing_from(copied):
        yield


def seeded(seed):
    """Within, Keras draws the seeds it would draw after `random.seed(seed)`.

    From a generator of its own, so that other threads change nothing, whether they use
    `random` or build models. Public is only a seed for each layer and initializer.
    """
    return _drawing_from(random.Random(seed))


@contextlib.contextmanager
def _drawing_from(generator):
    from keras.src.random import seed_generator

    if not isinstance(seed_generator.python_random, _RandomOfContext):
        seed_generator.python_random = _RandomOfContext()
    token = _own_random.set(generator)
    try:
        yield
    finally:
        _own_random.reset(token)


_own_random = contextvars.ContextVar("keras_fa_random", default=None)


class _RandomOfContext:
    """Python's `random` for Keras's seeds, or what this thread draws them from."""

    def __getattr__(self, name):
        return getattr(_own_random.get() or random, name)


def hide_from_progress_line(model, keys):
    """Keeps keys of the logs out of the line that `fit` prints while it trains a model.

    Nothing called here is private, but the order is Keras's own affair: behind the
    callbacks of the user stands `model.history`, and behind that what prints. So keys
    are taken out of the logs once the History has them. A callback behind a History
    that the user put into the list would miss them. Public would be a
    `keras.callbacks.ProgbarLogger` that is told what to print.
    """
    history = getattr(model, "history", None)
    if history is None:
        return
    if not hasattr(history, "hidden"):
        history.hidden = set()

        def then_hide(hook):
            def hook_then_hide(index, logs=None):
                hook(index, logs)
                for key in history.hidden.intersection(logs or ()):
                    del logs[key]

            return hook_then_hide

        history.on_train_batch_end = then_hide(history.on_train_batch_end)
        history.on_epoch_end = then_hide(history.on_epoch_end)
    history.hidden.update(keys)


def replicas():
    """How many replicas share the batch: e is that of the mean over all of them."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def replicas_of(model):
    """How many replicas train a model, each with a loss of its own part of the batch.

    JAX trains one, whose batch may lie on several devices.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def causal_padding(layer):
    """What a causal Conv1D pads its input with, as `keras.ops.pad` takes it."""
    return layer._compute_causal_padding()


def set_op_determinism(on):
    """Asks TensorFlow for deterministic kernels, or takes that back.

    `tf.config.experimental.enable_op_determinism` is public and has no counterpart.
    On other backends, where TensorFlow computes nothing of a model, nothing happens.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf
    from tensorflow.python.framework import config

    if on:
        tf.config.experimental.enable_op_determinism()
    else:
        config.disable_op_determinism()


def set_health_check(strategy, interval, timeout):
    """How often a worker looks whether the others live, and waits for an answer.

    Args:
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`.
        interval: Seconds between two looks.
        timeout: Seconds of an attempt.
    """
    strategy.extended._check_health_interval = interval
    strategy.extended._check_health_timeout = timeout


def is_multi_worker(strategy):
    """Whether a strategy's replicas live in several processes."""
    if keras.backend.backend() != "tensorflow":
        return False
    return _trainer()._collective_all_reduce_multi_worker(strategy)


def replace_symbolic_build(model, build):
    """Has `fit` build metrics and loss with another function.

    Args:
        model: A Keras model.
        build: Function of (iterator, data_batch) that calls `symbolic_build`.
    """
    model._maybe_symbolic_build = build


def symbolic_build(model, data_batch):
    """Builds metrics and loss on symbols shaped as a batch of data."""
    model._symbolic_build(data_batch=data_batch)


def replace_compute_loss(model, compute):
    """Has a model's training and test steps compute their loss with another function.

    Public is `compute_loss`, which a user may call or overwrite as well.

    Args:
        model: A Keras model.
        compute: Function of a function without arguments, Keras's own.
    """
    own = model._compute_loss
    model._compute_loss = lambda *args, **kwargs: compute(
        functools.partial(own, *args, **kwargs)
    )


def losses_are_built(model):
    """Whether a model knows which loss belongs to which output: after a first batch."""
    return model._compile_loss is None or model._compile_loss.built


def wrap_losses(model, wrap):
    """Puts `wrap(loss)` in the place of each loss of a model, unless it stands there.

    Public is `compile` alone, before it is known what a name stands for.
    """
    if model._compile_loss is None:
        return
    losses = model._compile_loss._flat_losses
    if losses and isinstance(losses[0].loss, keras.Loss):
        model._compile_loss._flat_losses = [
            entry._replace(loss=wrap(entry.loss)) for entry in losses
        ]


def added_losses(model):
    """What `add_loss` and activity regularizers added in the last call, a list.

    `model.losses` has the penalties on weights too.
    """
    return [loss for layer in layers_of(model) for loss in layer._get_own_losses()]


def mask_of(tensor):
    """The mask that Keras keeps with a tensor, None if there is none."""
    return getattr(tensor, "_keras_mask", None)


def of_one_rank(first, second):
    """Two tensors, a last axis of one entry added or taken as Keras's losses do."""
    from keras.src.losses.loss import squeeze_or_expand_to_same_rank

    return squeeze_or_expand_to_same_rank(first, second)


def replace_log_reduction(reduce):
    """Has Keras reduce the logs of several workers with another function.

    Args:
        reduce: Function of (values, strategy, reduction, keras_reduce), the last one
            Keras's own function of the first three.
    """
    trainer = _trainer()
    own = getattr(
        trainer.reduce_per_replica, "keras_fa_replaced", trainer.reduce_per_replica
    )

    def reduce_per_replica(values, strategy, reduction):
        return reduce(values, strategy, reduction, own)

    reduce_per_replica.keras_fa_replaced = own
    trainer.reduce_per_replica = reduce_per_replica


def _trainer():
    # Only on the TensorFlow backend is there such a module.
    from keras.src.backend.tensorflow import trainer

    return trainer


_SCOPE = "keras_fa_custom_gradient"


def custom_gradient(function):
    """`keras.ops.custom_gradient`, which `tf.vectorized_map` does not lose.

    TensorFlow vectorises a custom gradient, an IdentityN operation with another
    gradient, into a plain IdentityN: a derivative taken outside of the map is then that
    of the forward pass, silently. Functions decorated here are told by the name scope
    of their operation, in functions traced before the map too, and keep theirs. It is
    right for functions whose gradient uses nothing but the incoming error: any tensor
    of the loop's body would be one example's. Public would be a converter to register,
    `RegisterPFor`, without the check against a second one.

    Args:
        function: As for `keras.ops.custom_gradient`.
    """
    if keras.backend.backend() == "jax":
        return _on_all_levels(function)
    decorated = keras.ops.custom_gradient(function)
    if keras.backend.backend() != "tensorflow":
        return decorated
    import tensorflow as tf

    _keep_in_vectorized_map()

    @functools.wraps(function)
    def in_scope(*args):
        with tf.name_scope(_SCOPE):
            return decorated(*args)

    return in_scope


def _on_all_levels(function):
    """A custom gradient of JAX's that a derivative of a derivative meets as well.

    `jax.custom_gradient` differentiates what `function` returns in place of itself: a
    second derivative then is that of the forward pass, silently.
    """
    import jax

    @jax.custom_vjp
    def decorated(*args):
        return function(*args)[0]

    def forward(*args):
        # For the levels outside of the one that is differentiated here.
        return decorated(*args), args

    def backward(args, upstream):
        gradients = function(*args)[1](upstream)
        return gradients if isinstance(gradients, tuple) else (gradients,)

    decorated.defvjp(forward, backward)
    return decorated


@functools.cache
def _keep_in_vectorized_map():
    import tensorflow as tf
    from tensorflow.python.eager import record
    from tensorflow.python.framework import ops
    from tensorflow.python.ops.parallel_for import pfor

    plain = pfor._pfor_converter_registry["IdentityN"]

    def convert(pfor_input):
        operation = pfor_input.op
        if _SCOPE not in operation.name:
            return plain(pfor_input)
        # What comes back in place of one input has the shape of another.
        pfor_input.stack_inputs()
        inputs = [pfor_input.stacked_input(i) for i in range(pfor_input.num_inputs)]
        gradient_name = operation.get_attr("_gradient_op_type").decode()
        gradient = ops.gradient_registry.lookup(gradient_name)
        override = {"IdentityN": gradient_name}
        with (
            ops.get_default_graph().gradient_override_map(override),
            tf.name_scope(_SCOPE),
        ):
            outputs = tf.identity_n(inputs)
        # A tape at work does not look at overrides.
        record.record_operation(
            _SCOPE, outputs, inputs, lambda *errors: gradient(None, *errors)
        )
        return [pfor.wrap(output, True) for output in outputs]

    pfor._pfor_converter_registry["IdentityN"] = convert


def parts_of(layer):
    """The layers that a layer holds itself, each with the way to it.

    The walk is that of Keras's files of weights, which has no public name.

    Returns:
        List of `(way, layer)`: the name of an attribute, and within lists and dicts a
        number, such as "blocks/0".
    """
    from keras.src.saving.saving_lib import _walk_saveable

    found = []

    def visit(way, thing):
        if isinstance(thing, keras.Layer):
            found.append((way, thing))
        elif isinstance(thing, (list, tuple, dict)):
            items = thing.values() if isinstance(thing, dict) else thing
            for number, item in enumerate(items):
                visit(f"{way}/{number}", item)

    for name, thing in _walk_saveable(layer):
        visit(name, thing)
    return found


def own_variables(layer):
    """The variables of a layer itself, as lists: trained ones, others, random states.

    `keras.Layer.variables` has those of the layers inside it too.
    """
    seeds = [generator.state for generator in layer._seed_generators]
    return layer._trainable_variables, layer._non_trainable_variables, seeds


def is_graph(model):
    """Whether `clone_model` makes a model again from its graph, class and all.

    The class of functional models has no public name.
    """
    from keras.src.models.functional import Functional, functional_like_constructor

    if isinstance(model, keras.Sequential):
        return type(model) is keras.Sequential
    return (
        isinstance(model, Functional)
        and functional_like_constructor(type(model))
        and type(model).get_config is Functional.get_config
    )


def change_class(layer, new):
    """Makes a layer one of another class, which must take its attributes as they are.

    Keras binds `build` and `quantize` of the class to each object, in a wrapper of its
    own: they are bound anew. Public would be a graph in which layers can be replaced.
    """
    layer.__class__ = new
    for name in ("build", "quantize"):
        wrapper = vars(layer)[name]
        cells = dict(
            zip(wrapper.__code__.co_freevars, wrapper.__closure__, strict=True)
        )
        cells[f"original_{name}_method"].cell_contents = getattr(new, name).__get__(
            layer
        )


@contextlib.contextmanager
def open_for_weights(layer):
    """Within, a layer that is built takes further weights, named as in its build."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        with layer._open_name_scope():
            yield
    finally:
        if locked:
            layer._lock_state()


def forget_variable(layer, variable):
    """Takes a variable from a layer."""
    layer._untrack_variable(variable)


def same_lambda(layer):
    """A Lambda layer of the same function.

    From its config it would have the function's code alone, without its globals.
    """
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        **keras.Layer.get_config(layer),
    )


def fused_batch_norm(x, gamma, beta, epsilon):
    """Normalises over all but the last axis of four, by one kernel with a gradient.

    Public in `keras.ops` is `batch_normalization` alone, which is given the moments.

    Returns:
        `(outputs, mean, variance)`, the variance that of the sum over the size.
    """
    import tensorflow as tf

    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        is_training=True,
    )
    # The kernel's is the unbiased estimate, but for that of a single value.
    size = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
    return outputs, mean, variance * (tf.maximum(size - 1, 1) / size)
