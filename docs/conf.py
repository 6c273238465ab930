"""Sphinx builds the Markdown of this repository: ``make docs``. The package must be installed."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import generated  # noqa: E402

from ucm import __version__  # noqa: E402

project = "ucm-store"
author = "the ucm-store authors"
copyright = author
release = __version__

# The source folder is the repository, so that links between its pages work here as they do there.
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/*.md",
    "docs/*.md",
    "examples/*/*.md",
    "plugins/*/*.md",
    "ucm/data/*.md",
]
exclude_patterns = [".venv", "build", ".git"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

html_theme = "furo"
html_title = f"ucm-store {release}"
html_copy_source = False
html_show_sphinx = False


def _fill_in(app, docname, source):
    source[0] = generated.fill_in(source[0])


def _start_page(app, error):
    """Let the folder open at the root page, which lies one deeper."""
    if error is None and app.builder.format == "html":
        page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(page)


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
    app.connect("build-finished", _start_page)
