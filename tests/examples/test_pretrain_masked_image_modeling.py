"""Pretraining by script: what a run leaves behind, that a kill costs nothing, a classifier from it, and errors."""

import json
import signal
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from examples import pretrain_masked_image_modeling
from modeling_axial.training import read_metrics
from tests.conftest import ROOT
from tests.examples import test_train_image_classification as classification
from tests.examples.test_train_image_classification_distributed import launch

SCRIPT = ROOT / "examples" / "pretrain_masked_image_modeling.py"
SMALL = {"model_type": "axial", "image_size": [6, 8], "patch_size": [2, 2], "num_channels": 1}
SMALL |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_dropout_prob": 0.1}


def pretrain(*arguments, kill_at=None):
    return classification.train(*arguments, kill_at=kill_at, script=SCRIPT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small configuration, and pictures of two classes whose rows are all alike."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "small.json").write_text(json.dumps(SMALL))
    draw = np.random.default_rng(0)
    for part, count in {"train": 8, "validation": 5}.items():
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                row = draw.integers(0, 256, 8, dtype=np.uint8)
                Image.fromarray(np.broadcast_to(row, (6, 8)).copy()).save(folder / part / name / f"{number}.png")
    return folder


def arguments_for(inputs, output_dir):
    """4 steps an epoch."""
    arguments = {
        "config_name": inputs / "small.json",
        "train_dir": inputs / "train",
        "validation_dir": inputs / "validation",
        "output_dir": output_dir,
        "max_train_steps": 10,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.02,
        "mask_ratio": 0.5,
        "logging_steps": 1,
        "checkpointing_steps": 3,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """(folder, printed text) of a run from beginning to end."""
    folder = tmp_path_factory.mktemp("pictures") / "run"
    exit_code, printed = pretrain(*arguments_for(inputs, folder))
    assert exit_code == 0, printed
    return folder, printed


def test_metrics_picture_and_card(unbroken):
    folder, printed = unbroken
    lines = read_metrics(folder / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 10 and losses[-1] < 0.95 * losses[0]
    evaluations = [line for line in lines if "error" in line]
    assert [line["step"] for line in evaluations] == [4, 8, 10]
    results = json.loads((folder / "results.json").read_text())
    assert results["scores"]["this model"]["error"] == evaluations[-1]["error"] and len(results["scores"]) == 4
    assert f"{evaluations[-1]['error']:.4f}  this model" in printed
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert result.metric_value == pytest.approx(evaluations[-1]["error"], abs=1e-6)
    with Image.open(folder / "reconstructions.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 30


def test_a_classifier_starts_from_it(unbroken, inputs, tmp_path):
    """The weights of the trunk arrive; after a step at learning rate 0 they are what they were, and the head is new."""
    arguments = [
        f"--model_name_or_path={unbroken[0]}",
        *(f"--{part}_dir={inputs / part}" for part in ("train", "validation")),
        *(f"--output_dir={tmp_path / 'tuned'}", "--max_train_steps=1", "--learning_rate=0"),
    ]
    exit_code, printed = classification.train(*arguments)
    assert exit_code == 0 and "kept for other classes" not in printed, printed
    before, after = (load_file(folder / "model.safetensors") for folder in (unbroken[0], tmp_path / "tuned"))
    trunk = {name for name in before if name.startswith("axial.")}
    assert len(trunk) > 10 and {name for name in after if name.startswith("axial.")} == trunk
    assert all(torch.equal(before[name], after[name]) for name in trunk)
    assert set(after) - trunk == {"classifier.weight", "classifier.bias"} and after["classifier.weight"].std() > 0
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b"} and config["architectures"] == ["AxialForImageClassification"]


@pytest.mark.audit
def test_killed_and_resumed(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*arguments_for(inputs, folder), "--resume_from_checkpoint=latest"]
    for moment, step in [("line written", 5), ("state written", 9)]:
        exit_code, printed = pretrain(*arguments, kill_at=(moment, step))
        assert exit_code == -signal.SIGKILL, printed
    exit_code, printed = pretrain(*arguments, kill_at=("line written", 7, signal.SIGTERM))
    assert exit_code == 143 and "Stopped as asked, with step 8 saved" in printed, printed
    exit_code, printed = pretrain(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-8." in printed, printed
    classification.assert_same_run(folder, unbroken[0])


@pytest.mark.audit
def test_a_stranger_opens_the_result(unbroken, run_python):
    code = "import torch\nfrom transformers import AutoImageProcessor, AutoModelForMaskedImageModeling\n"
    code += classification.lines_that_load(unbroken[1])
    code += "\nprint(model(torch.zeros(2, 1, 6, 8)).reconstruction.shape)"
    assert run_python(code).stdout.splitlines()[-1] == "torch.Size([2, 1, 6, 8])"


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(inputs, tmp_path):
    (tmp_path / "small.json").write_text(json.dumps({**SMALL, "hidden_dropout_prob": 0.0}))
    for name, run, batch_size in (("one", pretrain, 4), ("two", lambda *their: launch(SCRIPT, their), 2)):
        more = [f"--config_name={tmp_path / 'small.json'}", f"--per_device_train_batch_size={batch_size}"]
        exit_code, printed = run(*arguments_for(inputs, tmp_path / name), *more)
        assert exit_code == 0, printed
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 13
    for one, two in zip(*lines, strict=True):
        assert two == pytest.approx(one, rel=1e-4)


# Errors

DIGITS = ["--config_name=digits", "--dataset_name=digits"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset_name=digits"], "--config_name is missing"),
        (["--config_name=digits"], "give either --dataset_name, or --train_dir and --validation_dir"),
        ([*DIGITS, "--validation_dir=a"], "give either --dataset_name"),
        (["--config_name=digits", "--train_dir=a"], "--train_dir and --validation_dir go together"),
        (["--config_name=digits", "--train_dir=a", "--validation_dir="], "is an empty text"),
        (["--config_name=digits", "--train_dir=a", "--validation_dir=a"], "a is not there, or no folder"),
        ([*DIGITS, "--config_name=films"], "films is no model of pictures"),
        ([*DIGITS, "--config_name=nuclei2d"], "nuclei2d has dense_head='pyramid'"),
        ([*DIGITS, "--config_name=air_temperature"], "air_temperature has num_channels=7"),
        ([*DIGITS, "--mask_ratio=1"], "mask_ratio must be between 0 and 1, got 1.0"),
        ([*DIGITS, "--mask_ratio=nan"], "mask_ratio must be between 0 and 1, got nan"),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match=words):
        pretrain_masked_image_modeling.main()
    assert not list(tmp_path.iterdir())  # before work starts
