"""Weights made by the package `axial_attention` itself, converted, against what it computes with them."""

import subprocess
import sys
from pathlib import Path

import axial_attention as package
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from modeling_axial.convert.axial_attention_to_hf import convert, main, read_state_dict

ROOT = Path(__file__).parents[2]

TRANSFORMERS = {
    "reversible": {"dim": 6, "depth": 3, "heads": 2},
    "plain": {"dim": 6, "depth": 2, "heads": 3, "reversible": False},
    "positions": {"dim": 7, "depth": 1, "heads": 7, "axial_pos_emb_shape": (5, 3)},
    "wide heads": {
        "dim": 6,
        "depth": 2,
        "heads": 2,
        "dim_heads": 5,
        "axial_pos_emb_shape": (5, 3),
        "reversible": False,
    },
}


def package_transformer(options):
    torch.manual_seed(0)
    return package.AxialImageTransformer(**options).double()


def feature_maps(dim):
    return torch.randn(2, dim, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("options", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_converted_checkpoint_computes_what_the_package_does(options, suffix, tmp_path, capsys):
    transformer, x = package_transformer(options), feature_maps(options["dim"])
    weights = tmp_path / f"package{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save(transformer.state_dict(), weights)
    main([str(weights), str(tmp_path / "folder"), "--heads", str(options["heads"])])
    printed = capsys.readouterr().out
    assert str(tmp_path / "folder") in printed and f"{sum(p.numel() for p in transformer.parameters()):,}" in printed
    model = AutoModel.from_pretrained(tmp_path / "folder")
    assert model.dtype == torch.float64 and not model.training
    config = model.config
    assert (config.num_hidden_layers, config.reversible) == (options["depth"], options.get("reversible", True))
    assert config.position_embedding_shape == (list(options.get("axial_pos_emb_shape", [])) or None)
    with torch.no_grad():
        expected = transformer(x)
        error = (model(x).last_hidden_state - expected).norm() / expected.norm()
    assert error <= 1e-10


def test_prefix_of_data_parallel():
    transformer = package_transformer(TRANSFORMERS["reversible"])
    model = convert({f"module.{name}": tensor for name, tensor in transformer.state_dict().items()}, heads=2)
    with torch.no_grad():
        torch.testing.assert_close(model(feature_maps(6)).last_hidden_state, transformer(feature_maps(6)))


def test_command(tmp_path):
    torch.save(package_transformer(TRANSFORMERS["plain"]).state_dict(), tmp_path / "package.pt")
    command = [sys.executable, "-m", "modeling_axial.convert.axial_attention_to_hf"]
    done = subprocess.run(
        [*command, tmp_path / "package.pt", tmp_path / "folder", "--heads", "3", "--dim-heads", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Saved AxialImageTransformerModel") and (tmp_path / "folder/config.json").is_file()


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_files_that_run_code_are_refused(tmp_path, capsys):
    torch.save({"weight": torch.zeros(1), "other": RunsCode(str(tmp_path / "ran"))}, tmp_path / "unsafe.pt")
    torch.save(package_transformer(TRANSFORMERS["plain"]), tmp_path / "module.pt")
    for name in ("unsafe.pt", "module.pt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as plain tensors and was not loaded"):
            read_state_dict(tmp_path / name)
        with pytest.raises(SystemExit) as stopped:
            main([str(tmp_path / name), str(tmp_path / "folder"), "--heads", "3"])
        assert stopped.value.code == 1 and "state_dict" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "folder").exists()


def test_other_files_are_named(tmp_path):
    (tmp_path / "noise.pt").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for name in ("noise.pt", "noise.safetensors", "numbers.pt", "list.pt"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    for name in ("missing.pt", "missing.safetensors"):
        with pytest.raises(OSError, match=name):
            read_state_dict(tmp_path / name)


def whole_weights(options):
    return package_transformer(options).state_dict()


def test_weights_that_do_not_fit_are_named():
    weights = whole_weights(TRANSFORMERS["positions"])
    with pytest.raises(ValueError, match="heads=2 of dim_heads=None do not fit .* 7 wide"):
        convert(weights, heads=2)
    with pytest.raises(ValueError, match="heads=7 of dim_heads=2"):
        convert(weights, heads=7, dim_heads=2)
    with pytest.raises(ValueError, match="heads=0"):
        convert(weights, heads=0)
    lacking = {name: tensor for name, tensor in weights.items() if not name.endswith("1.g.net.0.b")}
    with pytest.raises(ValueError, match="(?s)not whole.*1.g.net.0.b"):
        convert(lacking, heads=7)
    with pytest.raises(ValueError, match="(?s)not whole.*classifier"):
        convert({**weights, "classifier.weight": torch.zeros(2, 2)}, heads=7)
    with pytest.raises(ValueError, match="not the weights of an AxialImageTransformer"):
        convert(package.AxialAttention(4, heads=2).state_dict(), heads=2)
    with pytest.raises(ValueError, match="not the weights of an AxialImageTransformer"):
        convert({}, heads=2)
