"""The site of the documentation: every page has its place in the navigation, every public name its place in the
reference, and the build gives no warning and no dead link.
"""

import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import modeling_axial
import modeling_axial.distributed
import modeling_axial.training
from tests.test_documentation import PAGES, ROOT, name_of

REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.rst"))
CONF = runpy.run_path(str(ROOT / "docs" / "conf.py"))


def test_every_page_stands_in_the_navigation_once():
    pages = [page for caption in CONF["NAVIGATION"].values() for page in caption]
    assert len(pages) == len(set(pages))
    assert {name_of(page.with_suffix("")) for page in PAGES[1:] + REFERENCE} <= set(pages)
    assert all("*" in page or list(ROOT.glob(f"{page}.*")) for page in pages)


def test_every_public_name_stands_in_the_reference_once():
    text = "".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    names = re.findall(r"^\.\. auto(?:class|function):: (?:modeling_axial\.)?(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(modeling_axial.__all__)


def read_docstring(text, what="class"):
    lines = text.split("\n")
    CONF["read_markdown"](None, what, "name", None, None, lines)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("docstring", "read"),
    {
        "(B, *grid, C) to *all* of (B, *pixels), a * b": r"(B, \*grid, C) to *all* of (B, \*pixels), a \* b",
        "The **last** of `(B, *grid)`, `*args`": "The **last** of `(B, *grid)`, `*args`",
        ">>> f(*x)\n... + *y": ">>> f(*x)\n... + *y",
        "See [`AxialModel`] and [torch](https://pytorch.org/x)": "See `AxialModel` and `torch <https://pytorch.org/x>`__",
        "The `Axis`es of `x`, ``x``": r"The `Axis`\ es of `x`, ``x``",
        "  <Tip>\n\nText < Tip\n\n</Tip>": "\n\nText < Tip\n\n",
    }.items(),
)
def test_docstrings_are_read_as_they_are_meant(docstring, read):
    assert read_docstring(docstring) == read


def test_docstrings_of_modules_and_properties_are_read_as_they_are_meant():
    assert read_docstring("Text.\n\n    command --option\n\nText.", "module") == (
        "Text.\n\n::\n\n    command --option\n\nText."
    )
    assert read_docstring("Whether a: b. So: c.", "property") == "Whether a:\nb. So: c."


# Links


class HtmlPage(HTMLParser):
    """What of a page can be linked, and what it links."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = {""}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append(value)


def read_site(folder):
    return {path: HtmlPage(path) for path in folder.resolve().rglob("*.html")}


def dead_links(pages):
    """(page, link) of all that lead from a page of the site to nowhere."""
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue  # of another site
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else {""}
            if not target.is_file() or unquote(parts.fragment) not in known:
                dead.append((path.name, link))
    return dead


def test_dead_links_of_a_site_are_seen(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other.html").write_text('<h1 id="one-ä">One</h1>')
    (tmp_path / "picture.png").touch()
    good = ["#here", "#", "folder/other.html#one-%C3%A4", "picture.png?v=1", "https://example.org/x", "mailto:a@b.c"]
    bad = ["#gone", "gone.html", "folder", "folder/other.html#two", "picture.png#here"]
    links = [f'<a href="{link}">text</a>' for link in good + bad]
    (tmp_path / "page.html").write_text(f'<p id="here">{"".join(links)}<img src="gone.png"></p>')
    assert dead_links(read_site(tmp_path)) == [("page.html", link) for link in [*bad, "gone.png"]]


@pytest.mark.audit
def test_the_site_is_built_without_a_warning_or_a_dead_link(tmp_path):
    pytest.importorskip("sphinx", reason="is of the extra docs, which dev has")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "--builder", "html"]
    done = subprocess.run([*command, "--conf-dir", "docs", ".", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = read_site(tmp_path)
    assert {tmp_path / name_of(page.with_suffix(".html")) for page in PAGES} <= set(pages)
    assert not dead_links(pages)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == (tmp_path / "README.html").read_text("utf-8")
    anchors = set().union(*(page.anchors for page in pages.values()))
    for module in (modeling_axial, modeling_axial.distributed, modeling_axial.training):
        assert {f"{module.__name__}.{name}" for name in module.__all__} <= anchors
