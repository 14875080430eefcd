"""Every example of examples/by_feature runs to its end, in this process; each compares with the plain model itself."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "by_feature"
ACCURACY = f"{ModelCard.load(ROOT / 'README.md').data.eval_results[0].metric_value:.1%}"


@pytest.fixture
def run(monkeypatch, capsys):
    """run(name, *arguments) -> what the example printed"""
    torch.compiler.reset()

    def run_example(name, *arguments):
        script = str(FOLDER / f"{name}.py")
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    yield run_example
    torch.compiler.reset()


def test_each_example_has_its_feature_marked_and_a_test():
    names = {path.stem for path in FOLDER.glob("*.py")} - {"digits"}
    tests = Path(__file__).read_text(encoding="utf-8")
    for name in names:
        assert "# ---- the feature ----" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert f'run("{name}"' in tests


@pytest.mark.audit
def test_compile_model(run):
    printed = run("compile_model", "--backend=aot_eager")
    assert f"{ACCURACY} of 1000 digits, as without it" in printed and "A training step of 64 digits" in printed


def test_compile_regions(run):
    printed = run("compile_regions", "--backend=aot_eager")
    eager, compiled = (line.split()[2:] for line in printed.splitlines())
    assert len(eager) == 5 and [float(loss) for loss in compiled] == pytest.approx([float(x) for x in eager], abs=2e-4)


@pytest.mark.audit
def test_export_program(run, tmp_path):
    printed = run("export_program", "--output", tmp_path / "folder" / "digits.pt2")
    assert f"{ACCURACY} of 1000 digits" in printed and "at other sizes, too" in printed


@pytest.mark.slow
def test_export_onnx(run, tmp_path):
    printed = run("export_onnx", "--output", tmp_path / "folder" / "digits.onnx")
    assert f"{ACCURACY} of 1000 digits" in printed and "at other sizes, too" in printed


def test_quantize_int8(run):
    printed = run("quantize_int8")
    before, after = (float(share) for share in re.findall(r"([\d.]+)% [ob]", printed.replace("after", "before")))
    assert f"{before}%" == ACCURACY and after == pytest.approx(before, abs=0.3)


def test_finetune_lora(run, tmp_path):
    run("finetune_lora", "--output_dir", tmp_path, "--steps=3")
    adapters = load_file(tmp_path / "adapter_model.safetensors")
    second_factors = [tensor for name, tensor in adapters.items() if "lora_B" in name]
    assert len(second_factors) == 4 * 2 * 4  # layers, axes, projections
    assert all(tensor.abs().max() > 0 for tensor in second_factors)  # they start at zero: all had gradients


@pytest.mark.audit
def test_one_huge_volume(run):
    printed = run("one_huge_volume").splitlines()
    assert [line.partition(" has ")[0] for line in printed[:4]] == [f"process {rank}" for rank in range(4)]
    assert printed[3].endswith("the slices 68 to 87") and printed[4].startswith(
        "100.00% of 236544 voxels, in 3 classes"
    )
