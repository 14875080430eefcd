"""How a trained folder becomes a checkpoint of this repository."""

import json
import sys

import pytest

from examples import make_checkpoint

CARD = '---\nlibrary_name: transformers\n---\n\n# {name}\n\nmodel = from_pretrained("{name}", trust_remote_code=True)\n'


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """outputs/digits-autoregressive of a repository in `tmp_path`."""
    monkeypatch.setattr(make_checkpoint, "ROOT", tmp_path)
    folder = tmp_path / "outputs" / "digits-autoregressive"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "samples.png", "attention.py"):
        (folder / name).write_text(name)
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "a_file.AClass"}, "hidden_size": 8}))
    (folder / "README.md").write_text(CARD.format(name=folder.name))
    return folder


def make(monkeypatch, *names):
    monkeypatch.setattr(sys, "argv", ["make_checkpoint.py", *names])
    make_checkpoint.main()


def test_a_checkpoint_takes_its_code_from_the_root(trained, monkeypatch, tmp_path):
    make(monkeypatch, "digits-autoregressive")
    made = tmp_path / "checkpoints" / "digits-autoregressive"
    assert {path.name for path in made.iterdir()} == {"README.md", "config.json", "model.safetensors", "samples.png"}
    config = json.loads((made / "config.json").read_text())
    assert config == {"auto_map": {"AutoModel": "modeling_axial/a_file.AClass"}, "hidden_size": 8}
    card = (made / "README.md").read_text()
    assert 'from_pretrained(".", subfolder="checkpoints/digits-autoregressive", trust_remote_code=True)' in card


def test_what_cannot_be_a_checkpoint(trained, monkeypatch):
    for names in ((), ("nothing",), ("digits", "nothing")):
        with pytest.raises(ValueError, match="digits digits-autoregressive"):
            make(monkeypatch, *names)
    with pytest.raises(FileNotFoundError, match="make demo"):
        make(monkeypatch, "digits")
    (trained / "README.md").write_text(CARD.format(name="another"))
    with pytest.raises(ValueError, match="does not say from_pretrained"):
        make(monkeypatch, "digits-autoregressive")
    (trained / "model.safetensors").write_bytes(b"0" * (make_checkpoint.LARGEST + 1))
    with pytest.raises(ValueError, match="at most 2097152"):
        make(monkeypatch, "digits-autoregressive")
