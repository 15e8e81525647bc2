"""The documentation: ``sphinx-build -W --keep-going -n docs build/docs`` (extra ``docs``)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import pycc  # noqa: E402

project = "pycc"
author = "the authors of pycc"
version = release = pycc.__version__
copyright = "the authors of pycc, MIT licence"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "pycc_docs",
]
exclude_patterns = ["_ext", "_templates", "results"]
templates_path = ["_templates"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_typehints = "none"  # signatures show them; the text says shapes and units
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Names of other projects, and of internal modules (pycc.PACKAGE.MODULE.NAME), that docstrings and
# lists of base classes mention; every name of a public module has to exist.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pycc\.).*"),
    (r"py:.*", r"pycc\.\w+(\.\w+){2,}"),
    (r"py:obj", r"pycc\.\w+\.[A-Z]"),
]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"pycc {release}"
html_theme_options = {"navigation_with_keys": True}

linkcheck_anchors = True
linkcheck_timeout = 20
