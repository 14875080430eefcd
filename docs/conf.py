"""The site of the documentation, which `make docs` builds from the Markdown files as they are and from the docstrings.

The folder of the repository is that of the site: a relative link leads to the same file in both. The README is the
first page, and the order of its tables is that of the navigation.
"""

import re
import shutil
from pathlib import Path

from modeling_axial import __version__

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

project = "Axial"
author = "The Axial authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

root_doc = "README"
include_patterns = ["*.md", "checkpoints/**.md", "configuration/**.md", "docs/**", "examples/**.md"]
ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()]
exclude_patterns = ["examples/web/page/**", *ignored, *(f"**/{pattern}" for pattern in ignored)]

html_theme = "furo"
html_title = f"Axial {release}"

# Markdown as GitHub reads it: each heading has an anchor.
myst_heading_anchors = 6

# Docstrings: what stands in single backticks is code, and a link where it is the name of something on these pages.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?s)(?!modeling_axial\.).*"),  # names of other packages, and code that is no name
    ("py:class", r".*Kwargs|modeling_axial\.distributed\.shard_axis\.Model"),  # which are for type checkers alone
]
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100


def linked_pages(folder):
    """Pages of a folder, in the order of the tables of the README."""
    return re.findall(rf"^\| \[[^]]+\]\(({folder}/[^)]+)\.md\)", README, re.MULTILINE)


def contents(caption, pages):
    return "\n".join(["", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```", ""])


NAVIGATION = {
    "Guides": linked_pages("docs/guide"),
    "More": [*linked_pages("docs/migrate"), "docs/benchmarks", "docs/verified", "docs/design", "configuration/README"],
    "Reference": [
        f"docs/reference/{page}"
        for page in ("configurations", "models", "processors", "layers", "extensions", "reversible", "axial_attention")
        + ("distributed", "kernels", "training", "testing")
    ],
    "Models": linked_pages("checkpoints"),
    "Measurements": ["examples/results", "examples/benchmarks/results/*"],
    "Project": ["CHANGELOG", "CONTRIBUTING", "SECURITY"],
}


def complete_page(app, docname, source):
    """Gives the README the navigation, and a title to tables of results, which stand as their scripts print them."""
    (text,) = source
    if docname == root_doc:
        text += "".join(contents(caption, pages) for caption, pages in NAVIGATION.items())
    elif docname.startswith("examples/") and not re.search(r"^# ", text, re.MULTILINE):
        text = f"# {Path(docname).name.replace('_', ' ').capitalize()}\n\n{text}"
    source[0] = text


# What stays as it is, then what is changed: prompts, code, emphasis; a star that begins nothing.
STARS = re.compile(r"^ *(?:>>>|\.\.\.) .*$|`+[^`]+`+|(\*\*?)\b[^*\n]*\b\1|(?P<star>\*)", re.MULTILINE)


def read_markdown(app, what, name, obj, options, lines):
    """Docstrings are plain text, and what transformers adds is Markdown; both in the words of Sphinx."""
    text = "\n".join(lines)
    text = STARS.sub(lambda found: r"\*" if found["star"] else found[0], text)
    text = re.sub(r"(`+[^`]+`+)(\w?)", lambda found: r"\ ".join(filter(None, found.groups())), text)  # plurals of code
    text = re.sub(r"\[(`[^`]+`)\]", r"\1", text)
    text = re.sub(r"\[([^]`]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", text)
    text = re.sub(r"^ *</?Tip>$", "", text, flags=re.MULTILINE)
    if what == "module":
        text = re.sub(r"\n\n(?= {4})", "\n\n::\n\n", text)  # commands and formulas
    elif what == "property":
        text = text.replace(": ", ":\n", 1)  # what stands before a colon in the line is its type for napoleon
    lines[:] = text.split("\n")


def begin_at_the_readme(app, exception):
    """A folder is opened by its index.html."""
    if exception is None and app.builder.format == "html":
        shutil.copyfile(Path(app.outdir) / f"{app.config.root_doc}.html", Path(app.outdir) / "index.html")


def setup(app):
    app.connect("source-read", complete_page)
    app.connect("autodoc-process-docstring", read_markdown, priority=100)  # before napoleon
    app.connect("build-finished", begin_at_the_readme)
