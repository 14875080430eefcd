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
    assert (made / "samples.png").read_text() == "samples.png"
    config = json.loads((made / "config.json").read_text())
    assert config == {"auto_map": {"AutoModel": "modeling_axial/a_file.AClass"}, "hidden_size": 8}
    card = (made / "README.md").read_text()
    assert 'from_pretrained(".", subfolder="checkpoints/digits-autoregressive", trust_remote_code=True)' in card


def test_a_classifier_of_tables_is_the_one_that_is_opened_by_default(trained, monkeypatch, tmp_path):
    folder = trained.rename(trained.parent / "tables")
    (folder / "predictions.png").write_text("a picture")
    (folder / "README.md").write_text('---\nlicense: mit\n---\n\n# tables\n\nx = TableClassifier("tables")\n')
    make(monkeypatch, "tables")
    made = tmp_path / "checkpoints" / "tables"
    names = {"README.md", "config.json", "model.safetensors", "predictions.png"}
    assert {path.name for path in made.iterdir()} == names
    assert "x = TableClassifier()\n" in (made / "README.md").read_text()


def test_a_forecast_brings_what_it_needs_beside_its_weights(trained, monkeypatch, tmp_path):
    (trained / "samples.png").unlink()
    names = {"preprocessor_config.json", "predictions.png", "forecast.json", "climatology.npy"}
    for name in names:
        (trained / name).write_text(json.dumps({"auto_map": {}}))
    make(monkeypatch, "digits-autoregressive")
    made = tmp_path / "checkpoints" / "digits-autoregressive"
    assert {path.name for path in made.iterdir()} == names | {"README.md", "config.json", "model.safetensors"}


def test_what_cannot_be_a_checkpoint(trained, monkeypatch):
    with pytest.raises(ValueError, match="name the checkpoints"):
        make(monkeypatch)
    for name in ("digits", "nothing"):
        with pytest.raises(FileNotFoundError, match="make demo"):
            make(monkeypatch, name)
    (trained / "README.md").write_text(CARD.format(name="another"))
    with pytest.raises(ValueError, match="does not say from_pretrained"):
        make(monkeypatch, "digits-autoregressive")
    (trained / "model.safetensors").write_bytes(b"0" * (make_checkpoint.LARGEST + 1))
    with pytest.raises(ValueError, match="at most 2097152"):
        make(monkeypatch, "digits-autoregressive")
