"""Settings of the documentation: Markdown pages, and the reference of the Python API from the docstrings."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "torchinit"
author = "the torchinit authors"
copyright = f"2026, {author}"
version = release = installed_version("torchinit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"torchinit {version}"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["pages.css"]
pygments_dark_style = "github-dark"  # furo's own underlines the names of modules

# What a button copies is what one types: without prompts, and without what a command prints.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
