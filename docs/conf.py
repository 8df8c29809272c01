"""How Sphinx builds this site: ``make docs``, or ``sphinx-build -W -b html docs docs/_build/html``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

# The examples are small; one of them on a busy accelerator would only be slower. No memory is set aside either.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from apl_jax import __version__ as release  # noqa: E402

project = "apl_jax"
author = "the authors of apl_jax"
copyright = author
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docstrings",
    "generated_tables",
]
exclude_patterns = ["_build", "jupyter_execute", "extensions"]

# Pages are Markdown; those with {code-cell} are executed when the site is built, and an error stops the build.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"apl_jax {release}"
html_theme_options = {"navigation_with_keys": True}
html_show_copyright = False
html_copy_source = False
