"""The benchmark runs, and its two models are alike in size and in what they read."""

import importlib.util
import re
import sys

import pytest
import torch

from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "cost_at_size.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("cost_at_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_models_have_as_many_parameters_and_every_token_reaches_every_other(benchmark):
    models = [benchmark.make_model(name, 12).eval() for name in benchmark.MODELS]
    assert benchmark.num_parameters(models[0]) == pytest.approx(benchmark.num_parameters(models[1]), rel=0.01)
    assert all(model.config._attn_implementation == "sdpa" for model in models)
    for model, num_tokens in zip(models, (36, 37), strict=True):  # ViT has one more, which stands for the picture
        pixel_values = torch.randn(1, 3, 12, 12, requires_grad=True)
        states = model(pixel_values).last_hidden_state.reshape(-1, 64)
        assert len(states) == num_tokens
        states[-1].square().sum().backward()
        assert pixel_values.grad.abs().amin() > 0


@pytest.mark.audit
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_it_measures_in_a_fresh_process_and_writes_a_table_and_a_plot(benchmark, monkeypatch, capsys, tmp_path):
    seconds, memory = benchmark.measure("axial", "training step", 64)
    assert 0 < seconds < 60 and 5 < memory < 500
    calls = []
    monkeypatch.setattr(
        benchmark, "measure", lambda *what: calls.append(what) or (2.0 if what[0] == "full" else 1.0, 3.0)
    )
    benchmark.main(["--repeats", "2", "--largest", "128", "--output", str(tmp_path)])
    assert calls[:4] == [(name, "forward", 64) for name in ("axial", "full")] * 2 and len(calls) == 16
    printed = capsys.readouterr().out
    assert (tmp_path / "cost_at_size.md").read_text() == printed.removesuffix("\n")
    rows = re.findall(r"^\| (\d+) x \1 \| ([\d,]+) \| 1.00, 2.00, \*\*2.00\*\* \|", printed, re.MULTILINE)
    assert rows == [("64", "1,024"), ("128", "4,096")]
    assert (tmp_path / "cost_at_size.png").stat().st_size > 10_000


def test_what_takes_long_is_measured_once(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda name, *what: (70.0, 1.0) if name == "full" else (1.0, 1.0))
    calls = []
    original = benchmark.measure
    monkeypatch.setattr(benchmark, "measure", lambda *what: calls.append(what[0]) or original(*what))
    benchmark.measure_all([64], 3)
    assert calls.count("full") == 2 and calls.count("axial") == 6  # of two passes
