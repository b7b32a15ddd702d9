"""What a wheel holds. What describes it is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

# The programs and their configurations lie beside the package and travel inside it.
beside = ["trainers", *find_namespace_packages(include=["configs", "configs.*"])]

setup(
    packages=[
        *find_packages(include=["keras_fa", "keras_fa.*"]),
        *(f"keras_fa.{name}" for name in beside),
    ],
    package_dir={f"keras_fa.{name}": name.replace(".", "/") for name in beside},
    package_data={"keras_fa": ["py.typed", "zoo.json"]},
    # The command stands beside the package, since to import that loads TensorFlow.
    py_modules=["keras_fa_command"],
)
