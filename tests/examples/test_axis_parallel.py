"""The benchmark runs, its two sides are one model, and what it counts is what the formula says."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "axis_parallel.py"


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_bytes_are_those_of_the_formula_and_losses_alike():
    """Losses that differ from that of one process would end it."""
    small = ["--cells", "4", "3", "2", "--layers", "1", "--processes", "2", "--steps", "1"]
    done = subprocess.run([sys.executable, "-W", "ignore", SCRIPT, *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own = 2 * 3 * 2 * 64 * 4 / 1e6  # half of the cells, 64 channels in float32
    rows = re.findall(r"^\| ([a-z ]+) \| 2 \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", done.stdout, re.M)
    expected = {"forward": own, "training step": 2 * own, "rebuilt": 3 * own}  # 2 (P - 1) / P = 1
    assert [name for name, *_ in rows] == list(expected)
    for name, counted, by_formula, of_ulysses, by_its_formula in rows:
        assert counted == by_formula == f"{expected[name]:.3f}"
        assert of_ulysses == by_its_formula == f"{2 * expected[name]:.3f}"
    assert len(re.findall(r"^\| (?:forward|training step) \| 2 \| (?:whole|local) \|", done.stdout, re.M)) == 4
