"""The benchmark runs, and both of its sides do the same job."""

import importlib.util
import re
import sys

import pytest

from modeling_axial.testing import receptive_field
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "crossovers.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("crossovers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["axial", "full", "induced", "line"])
def test_every_cell_reaches_every_other(benchmark, name):
    module, inputs = benchmark.make_side(name, 5)
    assert inputs.numel() == 128 * (5 if name in ("induced", "line") else 25)
    position = (1,) * (inputs.dim() - 2)
    assert receptive_field(module, inputs.shape, position, channel_dim=-1, output_channel_dim=-1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_that_of_a_training_step(benchmark):
    assert 0 < benchmark.added_memory(benchmark.__file__, "full", 8) < 1000


def test_it_writes_tables_and_a_plot(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmark, "added_memory", lambda *arguments: 1.0)  # tested above, in its slow fresh process
    benchmark.main(["--pairs", "1", "--largest", "32", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "crossovers.md").read_text() == printed.removesuffix("\n")
    rows = re.findall(r"^\| (\d+) \| \*\*([\d.]+)\*\* \| \*\*([\d.]+)\*\* \|", printed, re.MULTILINE)
    assert [int(size) for size, *_ in rows] == [8, 16, 24, 32, 32]
    assert all(float(ratio) > 0 for _, *ratios in rows for ratio in ratios)
    assert (tmp_path / "crossovers.png").stat().st_size > 10_000
