"""Training a classifier of clips by script: what a run leaves behind, that a kill costs nothing, and its errors."""

import json
import re
import signal
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from examples import train_video_classification
from examples.train_video_classification import (
    ClipTrainingArguments,
    DataArguments,
    RunArguments,
    load_data,
)
from modeling_axial import AxialForVideoClassification
from modeling_axial.training import parse_arguments, read_metrics
from tests.conftest import ROOT
from tests.examples import test_train_image_classification as classification
from tests.examples.test_train_image_classification_distributed import launch
from tests.examples.test_video_classification_data import small_films, write_clip

__all__ = ["small_films"]  # a fixture

SCRIPT = ROOT / "examples" / "train_video_classification.py"
SMALL = {"model_type": "axial", "image_size": [4, 8, 8], "patch_size": [2, 4, 4], "num_channels": 1}
SMALL |= {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_dropout_prob": 0.1}


def train(*arguments, kill_at=None):
    return classification.train(*arguments, kill_at=kill_at, script=SCRIPT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small configuration, and clips of different lengths in two classes: brighter to the right, or to the left."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "small.json").write_text(json.dumps(SMALL))
    draw = np.random.default_rng(0)
    for part, count in {"train": 5, "validation": 3}.items():
        for name, side in {"left": slice(0, 6), "right": slice(6, 12)}.items():
            for number in range(count):
                clip = draw.integers(0, 60, (4 + number, 10, 12), dtype=np.uint8)
                clip[:, :, side] += 150
                write_clip(folder / part / name / f"{number}.mkv", clip)
    return folder


def arguments_for(inputs, output_dir):
    """3 steps an epoch, the last of 2 clips instead of 4."""
    arguments = {
        "config_name": inputs / "small.json",
        "train_dir": inputs / "train",
        "validation_dir": inputs / "validation",
        "output_dir": output_dir,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.02,
        "dataloader_num_workers": 1,
        "logging_steps": 1,
        "checkpointing_steps": 2,
        "peer": "timesformer",
        "peer_steps": 4,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """(folder, printed text) of a run from beginning to end."""
    folder = tmp_path_factory.mktemp("clips") / "run"
    exit_code, printed = train(*arguments_for(inputs, folder))
    assert exit_code == 0, printed
    return folder, printed


def test_metrics_picture_and_card(unbroken):
    folder, printed = unbroken
    lines = read_metrics(folder / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 9 and losses[-1] < 0.8 * losses[0]
    evaluations = [line for line in lines if "accuracy" in line]
    assert [line["step"] for line in evaluations] == [3, 6, 9]
    results = json.loads((folder / "results.json").read_text())
    measured = results["scores"]["this model"]
    assert list(measured) == ["accuracy", "mean accuracy", "accuracy left", "accuracy right"]
    assert all(evaluations[-1][name] == value for name, value in measured.items())
    assert f"{' '.join(f'{value:.4f}' for value in measured.values())}  this model" in printed
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert result.metric_value == pytest.approx(measured["accuracy"], abs=1e-6)
    assert all(its["cpu_seconds"] > 0 for its in results["trained"].values())
    with Image.open(folder / "predictions.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 30


def test_the_peer_is_trained_likewise(unbroken):
    folder, _ = unbroken
    lines = read_metrics(folder / "timesformer" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    results = json.loads((folder / "results.json").read_text())
    ours, peer = results["trained"]
    assert re.fullmatch(r"TimeSformer with [\d,]+ parameters", peer)
    assert results["scores"][peer]["accuracy"] == [line["accuracy"] for line in lines if "accuracy" in line][-1]
    sizes = [results["trained"][name]["num_parameters"] for name in (ours, peer)]
    assert abs(sizes[1] - sizes[0]) <= 0.05 * sizes[0]


def test_a_baseline_stands_beside_the_model(unbroken):
    """Of own clips, too: printed, written and in the card. All clips are alike but for the side that is bright."""
    folder, printed = unbroken
    name = "logistic regression on brightness, contrast and change"
    scores = json.loads((folder / "results.json").read_text())["scores"]
    assert list(scores)[2:] == [name]  # behind the model and its peer
    measured = scores[name]
    assert list(measured) == list(scores["this model"]) and 0 <= measured["accuracy"] < 1
    numbers = [f"{value:.4f}" for value in measured.values()]
    assert f"{' '.join(numbers)}  {name}" in printed
    assert f"| {name} | {' | '.join(numbers)} |" in (folder / "README.md").read_text()


@pytest.mark.audit
def test_a_stranger_classifies_a_clip(unbroken, inputs, run_python):
    """With the lines of the model card, as the script has measured."""
    folder, printed = unbroken
    card = (folder / "README.md").read_text()
    code = card[card.index("import av") : card.index("def classify")]
    code = code.replace(code[code.index("model = ") :], classification.lines_that_load(printed) + "\nmodel.eval()\n\n")
    code += card[card.index("def classify") : card.rindex("```")]
    clips = [str(path) for path in sorted((inputs / "validation").glob("*/*.mkv"))]
    found = json.loads(run_python(f"{code}\nimport json\nprint(json.dumps(list(map(classify, {clips}))))").stdout)
    share = np.mean([name == path.split("/")[-2] for name, path in zip(found, clips, strict=True)])
    measured = json.loads((folder / "results.json").read_text())["scores"]["this model"]["accuracy"]
    assert share == pytest.approx(measured)


# A kill costs nothing


@pytest.mark.audit
def test_killed_and_resumed(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*arguments_for(inputs, folder), "--resume_from_checkpoint=latest"]
    for moment, step in [("line written", 3), ("line written", 5), ("state written", 8)]:
        exit_code, printed = train(*arguments, kill_at=(moment, step))
        assert exit_code == -signal.SIGKILL, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-6." in printed, printed
    classification.assert_same_run(folder, unbroken[0])


def test_sigterm_saves_and_the_run_goes_on_with_its_peer(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*arguments_for(inputs, folder), "--resume_from_checkpoint=latest", "--dataloader_num_workers=0"]
    exit_code, printed = train(*arguments, kill_at=("line written", 4, signal.SIGTERM))
    assert exit_code == 143 and "Stopped as asked, with step 5 saved" in printed, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-5." in printed, printed
    for part in (".", "timesformer"):
        classification.assert_same_run(folder / part, unbroken[0] / part)  # which had a worker


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(inputs, tmp_path):
    """Of one with the same global batch, and the same draws; without dropout, which differs between them."""
    (tmp_path / "small.json").write_text(json.dumps({**SMALL, "hidden_dropout_prob": 0.0}))
    more = [f"--config_name={tmp_path / 'small.json'}", "--gradient_accumulation_steps=1", "--augment_mirror"]
    for name, run, batch_size in (("one", train, 4), ("two", lambda *their: launch(SCRIPT, their), 2)):
        arguments = [*arguments_for(inputs, tmp_path / name), *more, f"--per_device_train_batch_size={batch_size}"]
        exit_code, printed = run(*arguments)
        assert exit_code == 0, printed
    results = [json.loads((tmp_path / name / "results.json").read_text())["scores"] for name in ("one", "two")]
    assert list(results[0].items())[2:] == list(results[1].items())[2:] != []  # the baseline
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 12
    for one, two in zip(*lines, strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_the_recipe(small_films):
    recipe = str(ROOT / "configuration" / "training" / "films.yaml")
    arguments, training, _ = parse_arguments(DataArguments, ClipTrainingArguments, RunArguments, argv=[recipe])
    config, data = load_data(arguments, training)
    assert isinstance(data, train_video_classification.Films) and config.id2label == {
        0: "bigbuckbunny",
        1: "bikes",
        2: "carphone",
    }
    clips = torch.randn(2, config.image_shape[0], config.num_channels, *config.image_shape[1:])
    loss = AxialForVideoClassification(config)(pixel_values=clips, labels=torch.tensor([0, 2])).loss
    assert 0.3 < loss.item() < 4


# Errors

FILMS = ["--config_name=films", "--dataset_name=films"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset_name=films"], "--config_name is missing"),
        (["--config_name=films"], "give either --dataset_name, or --train_dir and --validation_dir"),
        ([*FILMS, "--train_dir=a"], "give either --dataset_name"),
        (["--config_name=films", "--train_dir=a"], "--train_dir and --validation_dir go together"),
        (["--config_name=films", "--train_dir=", "--validation_dir=a"], "is an empty text"),
        (["--config_name=films", "--train_dir=a", "--validation_dir=a"], "a is not there, or no folder"),
        ([*FILMS, "--config_name=digits"], "digits has 2 axes; a model of clips has 3"),
        ([*FILMS, "--config_name=video_autoregressive"], "is no classifier"),
        ([*FILMS, "--validation_share=1"], r"validation_share must be in \[0, 1\), got 1.0"),
        ([*FILMS, "--peer_steps=0"], "peer_steps must be at least 1"),
        ([*FILMS, "--dataloader_num_workers=-1"], "dataloader_num_workers must be at least 0"),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match=words):
        train_video_classification.main()
    assert not list(tmp_path.iterdir())  # before work starts


def test_bad_clips_end_a_run_before_its_first_step(inputs, tmp_path):
    for part in ("train", "validation"):
        for name in ("left", "right"):
            write_clip(tmp_path / part / name / "1.mkv", np.zeros((5 - 2 * (part == "validation"), 8, 8), np.uint8))
    more = [f"--{part}_dir={tmp_path / part}" for part in ("train", "validation")]
    exit_code, printed = train(*arguments_for(inputs, tmp_path / "run"), *more)
    assert exit_code == 1 and "2 of 4 clips cannot be used" in printed and "has 3 frames; the model reads 4" in printed
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
