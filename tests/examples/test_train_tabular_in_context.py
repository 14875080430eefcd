"""Training a classifier of tables by script: what a run leaves behind, that a kill costs nothing, and its errors."""

import json
import re
import signal
import sys

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from configuration import load_preset
from examples import train_tabular_in_context
from examples.tabular_in_context import AxialForTableClassification, TableClassifier
from examples.tabular_scores import BASELINES
from modeling_axial.training import STOPPED_EXIT_CODE, checkpoints, parse_arguments, read_metrics
from tests.conftest import ROOT
from tests.examples import test_train_image_classification as classification
from tests.examples.test_tabular_in_context import SMALL

SCRIPT = ROOT / "examples" / "train_tabular_in_context.py"


def train(*arguments, kill_at=None):
    return classification.train(*arguments, kill_at=kill_at, script=SCRIPT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "config.json").write_text(json.dumps({"model_type": "axial", **SMALL, "hidden_dropout_prob": 0.1}))
    return folder


def arguments_of(inputs, output_dir):
    arguments = {
        "config_name": inputs / "config.json",
        "output_dir": output_dir,
        "num_draws": 1,
        "max_train_steps": 8,
        "gradient_accumulation_steps": 2,
        "cells_per_group": 400,
        "logging_steps": 1,
        "checkpointing_steps": 3,
        "seed": 7,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """(folder, printed text) of a run from beginning to end."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    exit_code, printed = train(*arguments_of(inputs, folder))
    assert exit_code == 0, printed
    return folder, printed


def test_metrics_scores_and_card(unbroken):
    folder, printed = unbroken
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    (measured,) = [line for line in lines if "drawn_loss" in line]
    assert measured["step"] == 8 and 0 < measured["drawn_accuracy"] < 1
    results = json.loads((folder / "results.json").read_text())
    assert list(results["trained"]) == ["this model"]
    assert (
        results["trained"]["this model"]["num_parameters"]
        == AxialForTableClassification.from_pretrained(folder).num_parameters()
    )
    scores = results["scores"]
    assert list(scores) == ["this model", *BASELINES]
    for who, values in scores.items():
        assert len(values) == 10 and 0.1 < min(values.values()) and max(values.values()) <= 1
        (row,) = re.findall(rf"^\| {who} \| ([\d.]+) \|", printed, re.MULTILINE)
        assert float(row) == pytest.approx(values["accuracy mean n=10"], abs=6e-4)
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_value == pytest.approx(scores["this model"]["accuracy mean n=10"], abs=1e-6)
    assert "on 16 groups of drawn tables" in card.text and "digits 3, 8, 9 (held out)" in card.text
    with Image.open(folder / "predictions.png") as picture:
        assert min(picture.size) > 500
    assert TableClassifier(folder).fit([[0.0], [1.0]], [0, 1]).predict([[1.0]]).shape == (1,)


@pytest.mark.audit
def test_killed_and_resumed(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*arguments_of(inputs, folder), "--resume_from_checkpoint=latest"]
    exit_code, printed = train(*arguments, kill_at=("line written", 5))
    assert exit_code == -signal.SIGKILL and "starting from zero" in printed, printed
    exit_code, printed = train(*arguments, kill_at=("checkpoint named", 6, signal.SIGTERM))
    assert exit_code == STOPPED_EXIT_CODE and "Stopped as asked, with step 7 saved" in printed, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-7." in printed, printed
    classification.assert_same_run(folder, unbroken[0])
    table = re.compile(r"^\|.*\|$", re.MULTILINE)
    assert table.findall(printed) == table.findall(unbroken[1])
    assert len(checkpoints.list_checkpoints(folder)) == 2


def test_recipe():
    data, training, _ = parse_arguments(
        train_tabular_in_context.DataArguments,
        train_tabular_in_context.TableTrainingArguments,
        train_tabular_in_context.RunArguments,
        argv=[str(ROOT / "configuration" / "training" / "tables.yaml")],
    )
    assert data.measured_on == "held_out" and data.num_draws == 16
    groups = training.max_train_steps * training.gradient_accumulation_steps
    assert groups <= train_tabular_in_context.ENDLESS
    AxialForTableClassification(load_preset(data.config_name))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max_train_steps=3"], "--config_name is missing"),
        (["--config_name=tables"], "max_train_steps is missing"),
        (["--config_name=tables", "--max_train_steps=3", "--per_device_train_batch_size=2"], "must be 1, got 2"),
        (["--config_name=tables", "--max_train_steps=3", "--cells_per_group=0"], "cells_per_group must be at least 1"),
        (["--config_name=tables", "--max_train_steps=3", "--num_draws=0"], "num_draws must be at least 1"),
        (["--config_name=digits_autoregressive", "--max_train_steps=3"], "is no model of tables"),
        (["--config_name=sst", "--max_train_steps=3"], "a model of tables needs patch_size"),
        (["--config_name=nowhere", "--max_train_steps=3"], "There is no preset 'nowhere'"),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match=words):
        train_tabular_in_context.main()
    assert not list(tmp_path.iterdir())
