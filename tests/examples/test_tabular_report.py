"""What is told about a classifier of tables."""

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image

from examples.tabular_in_context import AxialForTableClassification
from examples.tabular_report import draw_report, score_table, write_model_card
from examples.tabular_scores import OURS
from modeling_axial import AxialConfig
from tests.examples.test_tabular_in_context import SMALL
from tests.examples.test_tabular_scores import blobs

FOUND = {
    OURS: {"blobs": np.array([[0.5, 0.7], [0.75, 0.85]]), "more": np.array([[0.2, 0.4], [0.5, 0.5]])},
    "nearest": {"blobs": np.full((2, 2), 0.25), "more": np.full((2, 2), 0.125)},
}


def test_table_of_scores():
    lines = score_table(FOUND)
    assert lines[0] == "| accuracy, labelled rows | mean, 10 | mean, 30 | blobs, 10 | blobs, 30 | more, 10 | more, 30 |"
    assert lines[1].count("|") == lines[0].count("|")
    assert lines[2] == f"| {OURS} | 0.450 | 0.650 | 0.600 | 0.800 | 0.300 | 0.500 |"
    assert lines[3].startswith("| nearest | 0.188 | 0.188 | 0.250")


def test_card(tmp_path):
    write_model_card(tmp_path, FOUND, "3 groups of drawn tables", "blobs, more (held out)", "you/tables")
    card = ModelCard.load(tmp_path / "README.md")
    assert [result.metric_value for result in card.data.eval_results] == [0.45, 0.65]
    assert "10 labelled rows" in card.data.eval_results[0].dataset_name and card.data.model_name == "you/tables"
    for words in ("# tables\n", "3 groups of drawn tables", "drawn 2 times", *score_table(FOUND), "predictions.png"):
        assert words in card.text
    assert 'TableClassifier("you/tables")' in card.text


def test_picture(tmp_path):
    torch.manual_seed(0)
    AxialForTableClassification(AxialConfig(**SMALL)).save_pretrained(tmp_path)
    draw_report(tmp_path / "a.png", tmp_path, {"blobs": blobs, "more": blobs}, FOUND)
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 400 and len(picture.convert("RGB").getcolors(2**24)) > 100
