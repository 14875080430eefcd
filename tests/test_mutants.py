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
    (tmp_path / "outputs").mkdir()
    (tmp_path / "tests" / "examples").mkdir(parents=True)
    for name, text in {
        "tiny.py": TINY,
        "tests/test_tiny.py": TESTS,
        "pytest.ini": "[pytest]\npythonpath = .\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    places = {"ROOT": tmp_path, "PACKAGE": tmp_path, "OUTPUT": tmp_path / "outputs", "REASONS": tmp_path / "reasons.md"}
    for name, place in places.items():
        monkeypatch.setattr(mutants, name, place)
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


@pytest.mark.audit
def test_blind_tests_let_mutants_live_and_seeing_ones_kill(module):
    traces = mutants.traced(module.with_name("tests") / "test_tiny.py")
    found = mutants.mutants_of(module)
    path, source, ranges = found["tiny: `return items[-1 - offset]` -> `return items[(1) - offset]`"]
    own, others = mutants.tests_of(path, ranges, traces)
    assert set(own) == {"tests/test_tiny.py::test_blind", "tests/test_tiny.py::test_seeing"}  # which run the line
    assert others == {} and mutants.tests_of(path.with_name("other.py"), ranges, traces) == ({}, {})
    assert not mutants.is_killed(path, source, ({}, {}))
    assert not mutants.is_killed(path, source, ({}, {"tests/test_tiny.py::test_blind": 0.1}))
    assert mutants.is_killed(path, source, ({"tests/test_tiny.py::test_blind": 0.1}, own))
    assert mutants.is_killed(path, source, ({}, {}))  # as is known by now
    assert not mutants.is_killed(path, TINY.encode(), ({}, dict.fromkeys(traces, 0.1)))


class InThisProcess:
    """As a pool of processes, without any."""

    def __init__(self, mp_context):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


def test_what_is_drawn_counted_and_printed(module, monkeypatch, capsys):
    blind, wrong = "`return items[-1 - offset]` -> `return None`", "`if not items:` -> `if True:`"
    mutants.REASONS.write_text(
        f"# Survivors\n\n- tiny: {blind}: equivalent, if it were\n- tiny: {wrong}: hard to see\n"
    )
    asked = []

    def is_killed(path, source, parts):
        assert path == module and 2 <= len(parts[0]) <= 3 and not parts[1]
        asked.append(source)
        return "if True" not in source.decode()

    monkeypatch.setattr(mutants, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(mutants, "is_killed", is_killed)
    monkeypatch.setattr("sys.argv", ["mutants", "--files", "tiny"])
    with pytest.raises(SystemExit) as ended:
        mutants.main()
    assert capsys.readouterr().out.splitlines() == [
        f"- tiny: {wrong}: hard to see",
        "tiny: 6 of 7 killed, 85.7%",
        "all: 6 of 7 killed, 85.7%",
    ]
    assert ended.value.code == 1  # less than 95%
    counted = [source for name, (_, source, _) in mutants.mutants_of(module).items() if blind not in name]
    assert sorted(asked) == sorted(counted)

    def drawn(seed):
        asked.clear()
        monkeypatch.setattr("sys.argv", ["mutants", "--sampled", "tiny", "--sample", "3", "--seed", str(seed)])
        with pytest.raises(SystemExit):
            mutants.main()
        return list(asked)

    assert drawn(0) == drawn(0) and len({tuple(drawn(seed)) for seed in range(5)}) > 1
    assert 2 <= len(drawn(0)) <= 3  # three are drawn, of which one may be equivalent
