"""How `make docs` builds the site: Sphinx, with the notebooks of docs/learn run."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "extensions")]

project = "keras_fa"
author = copyright = "the keras_fa authors"
# Read, since to import the package loads Keras.
_package = (ROOT / "keras_fa" / "__init__.py").read_text()
release = version = re.search(r'__version__ = "(.*)"', _package)[1]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "closed",
    "docstrings",
    "mathml",
    "measured",
]
exclude_patterns = ["data.md", "extensions"]

html_theme = "furo"
html_title = "keras_fa"
html_static_path = ["static"]
# The papers' report is a page of its own make.
html_extra_path = ["../results/report.html"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Mathematics is MathML when the page is built, and nothing is left to MathJax.
myst_update_mathjax = False

# Notebooks are kept without outputs and run here. The cache knows those that changed.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
# TensorFlow says there what it says of each machine.
nb_output_stderr = "remove"
nb_ipywidgets_js = {}

autodoc_default_options = {"no-value": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
