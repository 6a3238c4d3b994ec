"""How Sphinx builds the documentation: `make docs`, offline, to docs/_build/html."""

from __future__ import annotations

import bayeshnet

project = "bayeshnet"
author = "The bayeshnet authors"
copyright = "2026, the bayeshnet authors"
version = release = bayeshnet.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
default_role = "code"  # single backticks in a docstring are code, not a title

html_theme = "furo"
html_title = f"bayeshnet {version}"
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# A subpackage's page (_templates/subpackage.rst) shows what its __all__ names, wherever in it that is written.
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes in a class docstring are not documented twice
