"""Every Python block of the README and of the pages in docs/ runs, and every link of the documentation leads somewhere.

Blocks run in order, each in a fresh process. Those of one page share one folder that looks like a fresh clone (links to
all that is in this one, outputs aside), so that what a block saves a later one can load, and nothing is left behind. A
block that cannot run here says why: `<!-- not run: reason -->` in the line before it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "configuration" / "README.md", *sorted((ROOT / "examples").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>\S.*) -->\n)?(?P<fence>```+)python\n(?P<code>(?:.*\n)*?)(?P=fence)$", re.MULTILINE
)


def python_blocks(text):
    """(line of the first statement, code, reason not to run it or None) of every block."""
    return [
        (text.count("\n", 0, match.start("code")) + 1, match["code"], match["reason"]) for match in BLOCK.finditer(text)
    ]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def clone(tmp_path):
    for path in ROOT.iterdir():
        if path.name not in ("outputs", ".git"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run_block(code, folder):
    script = folder / "block.py"
    script.write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def blocks_to_run(page):
    """(line, code) of each block that does not say why it cannot run."""
    return [(line, code) for line, code, reason in python_blocks(page.read_text(encoding="utf-8")) if reason is None]


def page_cases():
    for page in filter(blocks_to_run, PAGES):
        exhaustive = page.parent != ROOT and page.stem != "grids_and_axes"
        yield pytest.param(page, id=name_of(page), marks=[pytest.mark.audit] if exhaustive else [])


@pytest.mark.parametrize("page", list(page_cases()))
def test_blocks_of_a_page(clone, page):
    for line, code in blocks_to_run(page):
        done = run_block(code, clone)
        assert done.returncode == 0, f"{name_of(page)}, line {line}: {done.stderr}"


def test_the_readme_and_every_guide_have_blocks_to_run():
    assert all(blocks_to_run(page) for page in PAGES if page.parent == ROOT or page.parent.name == "guide")


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "guide"], ids=name_of)
def test_a_guide_begins_with_a_block_and_ends_with_what_goes_wrong(page):
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# [^\n]+\n\n[^\n#`|][^#`|]*[.:]\n\n```python\n", text), "a title, a sentence, then a block"
    assert re.findall(r"^## .*$", text, re.MULTILINE)[-1] == "## What goes wrong"


def missing_tests(text):
    """Tests that the text names as `tests/file.py::test_name`, and that are not there."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert named
    return [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]


def test_every_feature_has_its_test():
    text = (ROOT / "docs" / "verified.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20 and all("::test_" in row.rpartition(" | ")[2] for row in rows)
    assert not missing_tests(text)


def test_a_test_that_is_missing_is_seen():
    assert missing_tests("`tests/test_documentation.py::test_nothing`") and missing_tests("`tests/gone.py::test_x`")
    assert not missing_tests("`tests/test_documentation.py::test_a_test_that_is_missing_is_seen`")


# Links

LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text):
    """The text without fenced blocks and without code in lines."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"^(```+)\w*\n(?:.*\n)*?\1$", "", text, flags=re.MULTILINE))


def anchors(text):
    """The anchors of the headings as GitHub makes them: in lower case, joined by hyphens, without other characters."""
    text = re.sub(r"^(```+)\w*\n(?:.*\n)*?\1$", "", text, flags=re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page):
    """Relative links of a page to files, folders and headings that are not there."""
    dead = []
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"\w+:", link):
            continue  # of another site
        if not target.exists() or not target.resolve().is_relative_to(ROOT.resolve()):
            dead.append(link)
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    assert not dead_links(page)


def test_every_page_is_reached_from_the_readme():
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links}
    assert {page.resolve() for page in PAGES[1:]} <= reached


def test_dead_links_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# One `name`, two: (3 x 4)\n\n```bash\n# no heading\n```\n")
    good = ["other.md", "../docs", "other.md#one-name-two-3-x-4", "#title", "https://example.org/gone#x"]
    bad = ["gone.md", "../gone.png", "other.md#one", "other.md#no-heading", "#gone", "../../outside.md"]
    (tmp_path.parent / "outside.md").touch()
    page = tmp_path / "docs" / "page.md"
    page.write_text(
        "# Title\n" + "".join(f"[text]({link}) and ![picture]({link})\n" for link in good) + "`axis[0](code.md)`\n"
    )
    assert not dead_links(page)
    for link in bad:
        page.write_text(f"# Title\n\n| a [text]({link}) |\n")
        assert dead_links(page) == [link]


# What finds blocks, and runs them


def test_blocks_are_found_and_marks_read():
    text = """
Text with `python`.

```python
first = 1
```
<!-- not run: needs a GPU -->
```python
second
```
<!-- not run: too far away -->

```python
third
```
<!-- not run: -->
```python
fourth
```
````python
'''
```python
'''
````
```bash
python x
```
"""
    assert [(line, code.splitlines()[0], reason) for line, code, reason in python_blocks(text)] == [
        (5, "first = 1", None),
        (9, "second", "needs a GPU"),
        (14, "third", None),
        (18, "fourth", None),
        (21, "'''", None),
    ]


def test_blocks_share_their_folder_and_nothing_else(tmp_path):
    assert run_block("open('left.txt', 'w').write('x')\nname = 1", tmp_path).returncode == 0
    assert run_block("assert open('left.txt').read() == 'x'", tmp_path).returncode == 0
    failed = run_block("name", tmp_path)
    assert failed.returncode == 1 and "NameError" in failed.stderr and os.listdir(tmp_path)
