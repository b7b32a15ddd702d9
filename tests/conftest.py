"""What all tests share: two logical CPU devices, quiet logs, the programs' kernels."""

import importlib.util
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As the programs do, with which runs of this process are compared bit for bit.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Programs of tests are small: compiling them well takes longer than running them. With
# XLA_FLAGS set, even to nothing as in `make long`, it is as the environment says.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests beside each other, and the processes that they start, have a core each.
    for variable in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"

import keras
import pytest
from backends import BACKEND, FILES, NOT_ELSEWHERE, RUNS
from jaxtyping import install_import_hook

from keras_fa import _keras

# The shapes that the pure functions name are checked at each call of every test.
with install_import_hook(
    ["keras_fa.analysis._conservation", "keras_fa.analysis._minimum_norm"],
    "beartype.beartype",
):
    from keras_fa import analysis  # noqa: F401

if BACKEND == "tensorflow":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )


def pytest_ignore_collect(collection_path):
    """Other backends have a table of the files that they run."""
    if not collection_path.name.startswith("test_"):
        return None
    if BACKEND == "tensorflow":
        return collection_path.name in RUNS or None
    there = importlib.util.find_spec("tensorflow") is not None
    return collection_path.name not in (RUNS if there else FILES)


def pytest_addoption(parser):
    parser.addoption(
        "--long",
        action="store_true",
        help="Run what takes its time too, and cells for which others stand.",
    )


def pytest_collection_modifyitems(config, items):
    """Files with slow tests come first: a long one at the end would run alone."""
    if BACKEND != "tensorflow":
        for item in items:
            for reason, tests in NOT_ELSEWHERE[BACKEND].items():
                if f"{item.path.name}::{item.originalname}" in tests:
                    item.add_marker(pytest.mark.skip(reason=reason))
    if not config.getoption("long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def mirrored():
    """The process's only MirroredStrategy: a second one fails in its collectives."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True)
def fresh_keras():
    """Every test starts from the same seed and default names and dtypes."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    yield
    if BACKEND == "tensorflow":
        # A run asks for it, and it would refuse XLA to every test that comes after.
        _keras.set_op_determinism(False)
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
