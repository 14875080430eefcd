import re

import pytest

from tests import mutants

TINY = '''"""A module."""


def last(items, offset=0):
    """The last of some items."""
    if not items:
        raise ValueError(f"no {'items'} in {items}")
    return items[-1 - offset]
'''
TESTS = """
import pytest
from tiny import last

def test_blind():
    assert last([1, 2]) is not None

def test_seeing():
    assert last([1, 2]) == last([1, 2, 3], offset=1) == 2

def test_error():
    with pytest.raises(ValueError):
        last([])
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The path of a module in a project of its own."""
    for name, text in {"tiny.py": TINY, "test_tiny.py": TESTS, "pytest.ini": "[pytest]\npythonpath = .\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mutants, "PACKAGE", tmp_path)
    monkeypatch.setattr(mutants, "OUTPUT", tmp_path / "outputs")
    return tmp_path / "tiny.py"


def test_changes_of_a_module(module):
    found = mutants.mutants_of(module)
    assert set(found) == {
        "tiny: `def last(items, offset=0):` -> `def last(items, offset=1):`",
        "tiny: `if not items:` -> `if False:`",
        "tiny: `if not items:` -> `if True:`",
        "tiny: `if not items:` -> `if (items):`",
        "tiny: `return items[-1 - offset]` -> `return None`",
        "tiny: `return items[-1 - offset]` -> `return items[(-1 + offset)]`",
        "tiny: `return items[-1 - offset]` -> `return items[(1) - offset]`",
        "tiny: `return items[-1 - offset]` -> `return items[-2 - offset]`",
    }
    for name, (_, source, _) in found.items():
        before, after = re.fullmatch("tiny: `(.+)` -> `(.+)`", name).groups()
        assert source.decode() == TINY.replace(before, after)


@pytest.mark.parametrize(
    "statement, changed",
    {
        "x = f(a, b, c=1)": ["(f(b, a, c=1))", "(a)", "(f(a, b))", "f(a, b, c=2)"],
        "x = x.flatten(a)": ["pass", "(x)"],
        "x += 1": ["x -= 1", "pass", "x += 2"],
        "f(*x)": ["pass"],
        "x = a < b or a in c": ["(a < b and a in c)", "(a <= b)", "(a not in c)"],
        "x = {'a': True}['a']": ["'a?'", "False", "'a?'"],
        "x = max(a, 0.5)": ["(a)", "max(a, 1.5)"],
        "x = [a for a in b if a]": ["False", "True"],
        "logger.warning('a', 1)": ["pass"],
        "x: Optional['a'] = zip(a, b, strict=True)": ["(zip(b, a, strict=True))", "(a)"],
    }.items(),
)
def test_changes_of_a_statement(tmp_path, statement, changed):
    (tmp_path / "one.py").write_text(f"{statement}\n")
    found = [name.partition("-> `")[2].partition("`")[0] for name in mutants.mutants_of(tmp_path / "one.py")]
    assert len(found) == len(changed) and all(any(text in name for name in found) for text in changed), found


def test_blind_tests_let_mutants_live_and_seeing_ones_kill(module):
    traces = mutants.traced(module.with_name("test_tiny.py"))
    found = mutants.mutants_of(module)
    path, source, ranges = found["tiny: `return items[-1 - offset]` -> `return items[(1) - offset]`"]
    tests = mutants.tests_of(path, ranges, traces)
    assert set(tests) == {"test_tiny.py::test_blind", "test_tiny.py::test_seeing"}  # which run the line
    assert not mutants.is_killed(path, source, {})
    assert not mutants.is_killed(path, source, {"test_tiny.py::test_blind": 0.1})
    assert mutants.is_killed(path, source, tests)
    assert mutants.is_killed(path, source, {})  # as is known by now
    assert not mutants.is_killed(path, TINY.encode(), dict.fromkeys(traces, 0.1))
