"""Sphinx settings of the documentation site. `make docs` builds it into build/docs; warnings are errors."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "syncbn"
author = "the syncbn maintainers"
release = version = version_of("syncbn")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# The source folder is the checkout (`make docs`), so that pages may link to results, code and each other.
root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/results/*.md", "*.md", "sync_bn/README.md", "**/*.png"]
exclude_patterns = ["build", ".venv", "demo", "**/node_modules"]
html_theme = "furo"
html_title = f"syncbn {release}"
html_show_sourcelink = False

myst_heading_anchors = 3
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
