"""Package metadata. `constraints.txt` pins the versions that the tests ran on."""

from setuptools import find_packages, setup

setup(
    name="keras_fa",
    version="0.1.0",
    description="Feedback alignment for Keras: layers, models and instruments",
    license="Apache-2.0",
    packages=find_packages(include=["keras_fa", "keras_fa.*"]),
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py",
        # tensorflow-datasets imports it without declaring it.
        "importlib_resources",
        "jinja2",
        "keras>=3.15,<3.16",
        "matplotlib",
        "ml_collections",
        "numpy",
        "pandas",
        "rich",
        "scikit-learn",
        "tensorboard",
        "tensorflow>=2.21,<2.22",
        "tensorflow-datasets>=4.9.10",
    ],
    extras_require={
        "tune": ["keras-tuner>=1.4.8"],
        "dev": ["keras-tuner>=1.4.8", "pytest", "ruff"],
    },
)
