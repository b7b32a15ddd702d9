"""Every private hook of Keras and TensorFlow that the toolkit uses, in one place.

Each says what there is no public way for, and what would take its place. All were
tested on Keras 3.15.1 and TensorFlow 2.21.0; the tests of the rooms that call them fail
where one of them moves.
"""

import keras


def layers_of(model):
    """All layers of a model, itself and nested ones included, each once, in order.

    Public would be a `flatten` of `keras.Layer`; `Model.layers` stops at the first
    level, and wrappers and layers inside layers are in no list.
    """
    return model._flatten_layers()


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


def causal_padding(layer):
    """What a causal Conv1D pads its input with, as `keras.ops.pad` takes it."""
    return layer._compute_causal_padding()


def set_op_determinism(on):
    """Asks TensorFlow for deterministic kernels, or takes that back.

    `tf.config.experimental.enable_op_determinism` is public and has no counterpart.
    """
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
