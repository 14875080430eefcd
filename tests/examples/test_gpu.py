"""The benchmark for GPUs runs on a CPU, as far as that goes, and tells what it is there for."""

import importlib.util
import re

import pytest
import torch

from modeling_axial import AxialConfig
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "gpu.py"
SMALL = {"image_size": 28, "patch_size": 4, "hidden_size": 24, "num_attention_heads": 2}
CPU = ["--device", "cpu", "--tokens", "60", "--lengths", "5", "12", "--batch", "2", "--repeats", "1"]


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(module.KERNELS, "Triton", raising=False)  # not on CPUs
    monkeypatch.setattr(module, "load_preset", lambda name: AxialConfig(num_hidden_layers=3, **SMALL))
    return module


def test_kernels_bound_and_determinism_are_told(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # which takes minutes
    benchmark.main(
        [
            *CPU,
            "--parts",
            "kernels",
            "bound",
            "determinism",
            "--bound",
            str(12 * 128 * 64 * 3),
            "--output",
            str(tmp_path),
        ]
    )
    report = (tmp_path / "gpu.md").read_text()
    assert report == capsys.readouterr().out.removesuffix("\n")
    assert report.startswith("no GPU, PyTorch")
    # Flash and plain attention are what a CPU has, as they are and compiled, chosen by PyTorch and by us.
    taken = r"\d+\.\d+, nan \| "
    kernels = re.findall(
        rf"^\| (\d+) \| (\w+) \| (\w+) \| {taken}- \| - \| {taken * 4}\d+\.\d\d \|$", report, re.MULTILINE
    )
    assert kernels == [
        (length, which, fold) for length in ("5", "12") for which in ("forward", "both") for fold in ("heads", "batch")
    ]
    bound = re.findall(r"^\| (\d) \| (\S+) \|$", report, re.MULTILINE)
    assert [lines for lines, _ in bound] == ["2", "4"] and all(float(difference) < 1e-2 for _, difference in bound)
    assert "| no | equal |\n| yes | equal |" in report


def test_every_kernel_computes_the_same(benchmark, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    states = [torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    expected = torch.nn.functional.scaled_dot_product_attention(*states)
    for name in ("flash", "plain", "plain, compiled", "PyTorch's choice", "ours"):
        torch.testing.assert_close(benchmark.KERNELS[name](*states), expected)
    with pytest.raises(RuntimeError):
        benchmark.KERNELS["memory-efficient"](*states)


def test_ours_is_the_choice_of_the_package(benchmark, monkeypatch):
    monkeypatch.setattr(
        benchmark.attention_interfaces, "scaled_dot_product_attention", lambda *states, **options: states
    )
    assert benchmark.KERNELS["ours"](1, 2, 3) == (1, 2, 3, None)


def test_gradients_that_differ_in_parts_are_seen(benchmark, monkeypatch):
    assert benchmark.difference_in_parts(5, 14, torch.device("cpu")) < 1e-2
    gradients = benchmark.gradients
    monkeypatch.setattr(
        benchmark, "gradients", lambda states: [each + (len(states[0][0]) > 3) for each in gradients(states)]
    )
    assert benchmark.difference_in_parts(5, 14, torch.device("cpu")) > 0.1


def test_a_step_is_profiled_and_compared(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **options: None)  # which takes minutes
    benchmark.main([*CPU, "--parts", "profile", "models"])
    report = capsys.readouterr().out
    attention, copies = map(float, re.search(r"Attention takes (.*?)% of the step, copies (.*?)%", report).groups())
    assert 0 < attention < 60 and 0 <= copies < 60
    assert len(re.findall(r"^\| (?:`axial_\w+`|ViT|Swin) \| 0\.\d \| [\d,]+ \| [\d,]+ \|$", report, re.MULTILINE)) == 6


def test_peers_have_as_many_parameters(benchmark):
    config = AxialConfig(num_hidden_layers=12, **SMALL | {"hidden_size": 96})

    def size(model):
        return sum(value.numel() for name, value in model.named_parameters() if "position" not in name)

    ours = size(benchmark.AxialModel(config))
    for peer in benchmark.peers_of(config).values():
        assert size(peer) == pytest.approx(ours, rel=0.05)
