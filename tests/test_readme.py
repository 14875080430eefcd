"""Every Python block of the README runs, in order, each in a fresh process.

The processes share one folder that looks like a fresh clone (links to all that is in this one, outputs aside), so that
what a block saves a later one can load, and nothing is left behind. A block that cannot run here says why:
`<!-- not run: reason -->` in the line before it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>\S.*) -->\n)?(?P<fence>```+)python\n(?P<code>(?:.*\n)*?)(?P=fence)$", re.MULTILINE
)


def python_blocks(text):
    """(line of the first statement, code, reason not to run it or None) of every block."""
    return [
        (text.count("\n", 0, match.start("code")) + 1, match["code"], match["reason"]) for match in BLOCK.finditer(text)
    ]


def readme_cases():
    blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert any(reason is None for _, _, reason in blocks), "no block of the README is run"
    for line, code, reason in blocks:
        yield pytest.param(code, id=f"line {line}", marks=pytest.mark.skipif(reason is not None, reason=reason or ""))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in ("outputs", ".git"):
            (folder / path.name).symlink_to(path)
    return folder


def run_block(code, folder):
    script = folder / "block.py"
    script.write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("code", list(readme_cases()))
def test_block_of_the_readme(clone, code):
    done = run_block(code, clone)
    assert done.returncode == 0, done.stderr


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
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## What works, and the test that shows it")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20 and all("::test_" in row.rpartition(" | ")[2] for row in rows)
    assert not missing_tests(text)


def test_a_test_that_is_missing_is_seen():
    assert missing_tests("`tests/test_readme.py::test_nothing`") and missing_tests("`tests/gone.py::test_x`")
    assert not missing_tests("`tests/test_readme.py::test_a_test_that_is_missing_is_seen`")


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
