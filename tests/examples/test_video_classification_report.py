"""What is told about a classifier of clips: accuracies, baselines, the picture, the model card."""

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch.utils.data import TensorDataset

from examples.image_classification_scores import score
from examples.results import OURS
from examples.video_classification_report import (
    accuracies,
    draw_predictions,
    loading_lines,
    score_lines,
    side_by_side,
    write_model_card,
)


def test_accuracies_by_hand():
    scores = accuracies(
        score(torch.ones(5), torch.tensor([0, 0, 1, 3, 3]), torch.tensor([0, 0, 0, 1, 3]), 4), ["a", "b", "c", "d"]
    )
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert {name: scores[f"accuracy {name}"] for name in "abd"} == pytest.approx({"a": 2 / 3, "b": 0, "d": 1})
    assert "accuracy c" not in scores and scores["mean accuracy"] == pytest.approx(5 / 9)
    head, line = score_lines({OURS: scores})
    assert (
        head == "accuracy, mean accuracy, of each class: a, b, d"
        and line == "0.6000 0.5556 0.6667 0.0000 1.0000  " + OURS
    )


def test_frames_stand_side_by_side():
    clip = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 2, 5)
    drawn = side_by_side(clip)
    assert drawn.shape == (2, 20, 3)
    assert drawn[0, ::5, 0] == pytest.approx([0, 3 / 9, 6 / 9, 1])
    assert side_by_side(clip[:2]).shape == (2, 10, 3)


@pytest.mark.parametrize(("number", "errors"), [(3, 1), (40, 20), (13, 0)])
def test_picture(tmp_path, number, errors):
    labels = torch.arange(number) % 2
    predictions = labels.clone()
    predictions[:errors] = 1 - labels[:errors]
    dataset = TensorDataset(torch.rand(number, 4, 1, 6, 10), labels)
    draw_predictions(tmp_path / "figure.png", dataset, predictions, labels, ["a $x", "b_$"])
    with Image.open(tmp_path / "figure.png") as picture:
        colours = picture.convert("RGB").getcolors(2**24)
    assert len(colours) > 50
    assert any(red > 200 and green < 60 and blue < 60 for _, (red, green, blue) in colours) == (errors > 0)


def test_model_card(tmp_path):
    class Data:
        hub_id, license, name = "videofolder", None, "few | films"
        trained_on, measured_on, label_names = "many films", "few films", ["a|b", "c"]

    scores = {who: {"accuracy": 0.5, "mean accuracy": 0.25, "accuracy a|b": 1.0} for who in (OURS, "TimeSformer")}
    write_model_card(tmp_path, Data, scores, 8, "user/films")
    card = ModelCard.load(tmp_path / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("few | films", "accuracy", 0.5)
    assert card.data.pipeline_tag == "video-classification" and card.data.model_name == "user/films"
    assert "on many films.\n- Measured on few films.\n" in card.text and "It sees 8 frames" in card.text
    assert "| | accuracy | mean accuracy | accuracy a\\|b |\n" in card.text
    assert "| TimeSformer | 0.5000 | 0.2500 | 1.0000 |" in card.text
    assert loading_lines("user/films") in card.text
