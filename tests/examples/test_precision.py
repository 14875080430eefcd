"""The benchmark of number formats runs, and each way computes what float32 does, as closely as it can."""

import importlib.util
import re

import pytest
import torch

from modeling_axial import AxialConfig
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "precision.py"
SIZES = {"image_size": [6, 10], "patch_size": 2, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("precision", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "training", "error"),
    [
        ("autocast", False, 0.03),
        ("autocast", True, 0.03),
        ("bfloat16", False, 0.05),
        ("bfloat16", True, 0.05),
        ("int8", False, 0.03),
        pytest.param("compiled", False, 1e-5, marks=pytest.mark.audit),
        pytest.param("compiled, autocast", True, 0.03, marks=pytest.mark.audit),
    ],
)
def test_each_way_computes_the_same_in_its_own_format(benchmark, name, training, error):
    torch.compiler.reset()
    config = AxialConfig(**SIZES)
    expected = benchmark.make_pass(benchmark.EAGER, config, training)()
    run = benchmark.make_pass(benchmark.WAYS[name], config, training)
    difference = (run().float() - expected).abs().max() / expected.abs().max()
    assert difference < error
    assert name == "compiled" or difference > 1e-4  # it is another format
    model = run.args[0]
    assert all((parameter.grad is not None) == training for parameter in model.layers.parameters())


def test_it_writes_a_table(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmark, "load_preset", lambda name: AxialConfig(**SIZES))
    monkeypatch.setattr(benchmark, "compare", lambda runs, clock, pairs: (3.0, 2.0, 1.5))
    monkeypatch.setattr(benchmark, "compiled", benchmark.as_it_is)
    monkeypatch.setattr(benchmark, "WAYS", {name: way for name, way in benchmark.WAYS.items() if "comp" not in name})
    benchmark.main(["--presets", "axial_tiny", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "precision.md").read_text() == printed.removesuffix("\n")
    assert re.findall(r"^\| `axial_tiny` \| (.*) \|$", printed, re.MULTILINE) == [
        "forward | 3 | 1.50 | 1.50 | 1.50",
        "training step | 3 | 1.50 | 1.50 | -",
    ]
