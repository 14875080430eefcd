"""Mutation testing: small faults are planted in the package one at a time, and some test should fail for each.

First the tests run once, to learn which lines each runs. Then, for each mutant, those that run its line run up to the
first that fails. Only what runs in the process of a test counts, without slow tests, audits and those of the examples.
`outputs/mutants` keeps what is known: a stopped run goes on. `tests/mutants.md` gives the reason of mutants that live;
equivalent and message-only ones do not count.
"""

import argparse
import ast
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import SourceFileLoader

import pytest
from hypothesis import Phase, settings

from tests.conftest import CACHES, ROOT  # sets the environment, before torch and Hugging Face libraries are imported

PACKAGE, REASONS, OUTPUT = ROOT / "modeling_axial", ROOT / "tests" / "mutants.md", ROOT / "outputs" / "mutants"
PAIRS = "FloorDiv Mult Mod Mult Pow Mult Add Sub Mult Div BitAnd BitOr And Or Lt LtE Gt GtE Eq NotEq Is IsNot In NotIn"
OPERATORS = [getattr(ast, name) for name in PAIRS.split()]
OTHER = dict(zip(OPERATORS[1::2] + OPERATORS[::2], OPERATORS[::2] + OPERATORS[1::2], strict=True))
settings.register_profile("mutants", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate], database=None)


def text(node, **changes):
    code = ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **changes}))
    return f"({code})" if isinstance(node, ast.expr) else code


def changes_of(node):
    """(part of the node, text that takes its place)"""
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in OTHER:
            yield node, text(node, op=OTHER[type(op)]())
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                yield node, text(node, ops=[*ops[:place], OTHER[type(op)](), *ops[place + 1 :]])
        case ast.UnaryOp(operand=operand):
            yield node, text(operand)
        case ast.Constant(value=int(value) | float(value)):
            yield node, str(not value if isinstance(value, bool) else value + 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.comprehension(ifs=[test]):
            yield from ((test, "False"), (test, "True"))
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield node, "return None"
        case ast.Call(func=func, args=args, keywords=keywords):
            path, _, name = ast.unparse(func).rpartition(".")
            plain = [argument for argument in args[:2] if not isinstance(argument, ast.Starred)]
            if len(plain) == 2 and name not in ("max", "min", "promote_types", "transpose"):  # symmetric
                yield node, text(node, args=[*plain[::-1], *args[2:]])
            if path and not re.match(r"(self|super|torch|nn|init|math|os|signal|itertools)\b", path):
                yield node, text(func.value)  # a.f(...) as a
            elif plain and name[0].islower():
                yield node, text(plain[0])  # f(a, ...) as a
            for keyword in (keyword for keyword in keywords if keyword.arg != "strict"):
                yield node, text(node, keywords=[other for other in keywords if other is not keyword])
    if isinstance(node, ast.Compare | ast.Dict | ast.Subscript):
        strings = [part for part in ast.iter_child_nodes(node) if isinstance(getattr(part, "value", None), str)]
        yield from ((part, repr(part.value + "?")) for part in strings)
    again = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in map(ast.unparse, ast.walk(node.value))
    if again or isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield node, "pass"  # in place of x = f(x), x += 1, f(x)


def nodes_of(node, ranges):
    """(node, line numbers of what it is a part of, from the smallest to the whole file) but for messages and types"""
    yield node, ranges
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            silent = field in ("annotation", "returns") or isinstance(child, ast.Raise | ast.JoinedStr)
            silent |= isinstance(node, ast.keyword) and node.arg == "strict"  # of zip: an assertion
            silent |= isinstance(child, ast.Call) and ast.unparse(child.func).startswith(("logger.", "warnings."))
            if isinstance(child, ast.AST) and not silent:
                own = [range(child.lineno, child.end_lineno + 1)] if isinstance(child, ast.stmt | ast.expr) else []
                yield from nodes_of(child, own + ranges)


def mutants_of(path):
    """{file, line where the change begins, and the same line changed: (path, changed source, line numbers as above)}"""
    source, mutants = path.read_bytes(), {}
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
    for node, ranges in nodes_of(ast.parse(source), [range(1, len(starts) + 1)]):
        for part, new in changes_of(node):
            row, last_row = starts[part.lineno - 1], starts[part.end_lineno - 1]
            changed = source[: row + part.col_offset] + new.encode() + source[last_row + part.end_col_offset :]
            before, after = (code[row:].partition(b"\n")[0].decode().strip() for code in (source, changed))
            name = f"{path.stem}: `{before}` -> `{after}`"
            while name in mutants:  # the same line stands elsewhere, too
                name += " again"
            mutants[name] = path, changed, ranges
    return mutants


class Trace:
    """A plugin of pytest that writes {test that passes: (CPU seconds, {file of the package: lines that it runs})}."""

    def __init__(self, output):
        self.output, self.tests = output, {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        def trace(frame, event, argument):
            if frame.f_code.co_filename.startswith(str(PACKAGE)):
                lines.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
                return trace

        failures, start, lines = item.session.testsfailed, sum(os.times()[:4]), {}
        sys.settrace(trace)
        yield
        sys.settrace(None)
        if item.session.testsfailed == failures:
            self.tests[item.nodeid] = sum(os.times()[:4]) - start, {file: [*lines[file]] for file in lines}
        return True

    def pytest_sessionfinish(self):
        self.output.write_text(json.dumps(self.tests))


def passes_in_fork(arguments, seconds, *plugins, path=None, source=None):
    """Whether pytest passes, in so many seconds of the CPU, with another source in a file."""
    for name in ("torch", "transformers.modeling_utils", "transformers.image_processing_utils", "accelerate"):
        importlib.import_module(name)  # once, as it takes long and is not changed
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    original = SourceFileLoader.get_code
    SourceFileLoader.get_code = lambda loader, name: (
        compile(source, path, "exec") if loader.path == str(path) else original(loader, name)
    )
    CACHES.cleanup = list  # other forks use them
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    os.dup2(os.dup2(os.open(os.devnull, os.O_WRONLY), 1), 2)
    options = f"-p no:cacheprovider --hypothesis-profile=mutants --timeout=120 --basetemp={CACHES.name}/pytest"
    os._exit(pytest.main([*options.split(), *map(str, arguments)], plugins=plugins))


def traced(test_file):
    """What `Trace` writes of a file of tests; kept until they or the package change."""
    sources = b"".join(path.read_bytes() for path in [test_file, *sorted(PACKAGE.rglob("*.py"))])
    output = OUTPUT / f"{test_file.stem}-{hashlib.sha256(sources).hexdigest()}.json"
    if not output.exists():
        passes_in_fork([test_file, "-m", "not slow and not audit and not distributed"], 3600, Trace(output))
    return json.loads(output.read_text())


def tests_of(path, ranges, traces, seconds=15):
    """{test: seconds} of the module's own tests, and of others, that run a line of the smallest range that any runs."""
    parts = {}, {}
    for numbers in map(set, ranges):
        tests = [t for t, (_, lines) in traces.items() if not any(parts) and numbers & set(lines.get(str(path), ()))]
        for test in sorted(tests, key=lambda test: traces[test][0]):
            part = parts[f"/test_{path.name}:" not in test]
            part |= {test: traces[test][0]} if sum(part.values()) < seconds else {}
    return parts


def is_killed(path, source, parts):
    output = OUTPUT / f"{hashlib.sha256(source).hexdigest()}.killed"
    for tests in filter(None, () if output.exists() else parts):  # apart, as files take longer to import than to run
        if not passes_in_fork(["-x", *tests], 10 + 3 * sum(tests.values()), path=path, source=source):
            return output.touch() is None
    return output.exists()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", nargs="*", default=[], help="all mutants of these, such as training/sampler")
    parser.add_argument("--sampled", nargs="*", default=[], help="some of the mutants of these")
    parser.add_argument("--sample", type=int, default=400, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    options, mutants, results = parser.parse_args(), {}, {}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    reasons = dict(re.findall(r"^- (.+?: `.+` -> `.+`.*?): (.+)$", REASONS.read_text(), re.MULTILINE))
    for files, size in (options.files, None), (options.sampled, options.sample):
        found = {name: mutant for file in files for name, mutant in mutants_of(PACKAGE / f"{file}.py").items()}
        drawn = sorted(found, key=lambda name: hashlib.sha256(f"{options.seed} {name}".encode()).digest())[:size]
        mutants |= {name: found[name] for name in drawn if not re.match("equivalent|message", reasons.get(name, ""))}
    test_files = set((ROOT / "tests").rglob("test_*.py")) - set((ROOT / "tests" / "examples").iterdir())
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        traces = {test: trace for found in pool.map(traced, sorted(test_files)) for test, trace in found.items()}
        jobs = [(path, source, tests_of(path, ranges, traces)) for path, source, ranges in mutants.values()]
        for name, killed in zip(mutants, pool.map(is_killed, *zip(*jobs, strict=True)), strict=True):
            results.setdefault(name.partition(":")[0], []).append(killed)
            if not killed:
                print(f"- {name}: {reasons.get(name, '')}", flush=True)
    for file, killed in {**results, "all": sum(results.values(), [])}.items():
        print(f"{file}: {sum(killed)} of {len(killed)} killed, {sum(killed) / len(killed):.1%}")
    sys.exit(sum(killed) < 0.95 * len(killed))


if __name__ == "__main__":
    main()
