"""What is told of a forecaster: its errors in words, a picture for grids of any number of axes, a model card."""

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from examples.dense_prediction_data import Fields, ForecastData, ForecastSetup, Split
from examples.dense_prediction_report import (
    OURS,
    draw_forecasts,
    headings,
    leads_in_words,
    plane,
    score_lines,
    write_model_card,
)


def make_data(grid=(3, 5), step="month", lead_time=1):
    values = np.random.default_rng(0).normal(size=(24, 2, *grid)).astype(np.float32)
    values[:, :, 1] = np.nan
    seasons = np.arange(24) % 12 if step == "month" else np.zeros(24, int)
    times = tuple(f"time {number}" for number in range(24))
    fields = Fields(values, ("warm$th", "speed"), ("K", ""), times, seasons, step, None, "made up", "mit")
    return ForecastData(
        fields, Split(20, 24, "last 4 steps, held out"), ForecastSetup(2, lead_time, False, fields.channel_names)
    )


SCORES = {OURS: np.array([[0.12345, 2], [0.5, 3]]), "persistence": np.array([[0.25, 1], [0.75, np.nan]])}


@pytest.mark.parametrize(
    ("step", "lead_time", "rollout", "words"),
    [
        ("month", 1, 1, "1 month ahead"),
        ("month", 1, 3, "1, 2, 3 months ahead"),
        ("step", 2, 2, "2, 4 steps ahead"),
        ("12 months", 1, 2, "1, 2 times 12 months ahead"),
    ],
)
def test_leads_in_words(step, lead_time, rollout, words):
    assert leads_in_words(make_data(step=step, lead_time=lead_time), rollout) == words


def test_errors_are_told_by_channel_with_their_units():
    titles = headings(make_data(), 2, weighted=True)
    assert titles[0] == "RMSE of warm$th in K, weighted by the cosine of the latitude, 1, 2 months ahead"
    assert headings(make_data(), 2, weighted=False)[1] == "RMSE of speed, 1, 2 months ahead"
    lines = score_lines(SCORES, titles)
    assert lines[0] == titles[0] and lines[3] == titles[1]
    assert lines[1].split() == ["0.1235", "0.5", "this", "model"]
    assert lines[5].split() == ["1", "nan", "persistence"]


@pytest.mark.parametrize("grid", [(7,), (3, 5), (3, 5, 7)])
def test_picture(tmp_path, grid):
    data = make_data(grid)
    draw = np.random.default_rng(1)
    truth, forecasts = draw.normal(size=(2, 4, 2, 2, *grid))
    truth[0, 0, 0] = np.nan
    draw_forecasts(tmp_path / "predictions.png", data, forecasts, truth, SCORES)
    with Image.open(tmp_path / "predictions.png") as picture:
        assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_what_is_drawn_of_many_axes():
    values = np.arange(3 * 5 * 7).reshape(3, 5, 7)
    assert np.array_equal(plane(values), values[1])
    assert np.array_equal(plane(values[0, 0]), values[0, :1])


def test_model_card(tmp_path):
    folder = tmp_path / "it's mine"
    folder.mkdir()
    data = make_data()
    write_model_card(folder, data, SCORES, headings(data, 2, False), None)
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.metric_name) == ("rmse", 0.12345, "RMSE of warm$th in K")
    assert (card.data.license, card.data.pipeline_tag, result.dataset_name) == ("mit", "image-to-image", "made up")
    assert "on made up: 20 steps, time 0 to time 19." in card.text
    assert "- Measured on the last 4 steps, held out: time 20 to time 23." in card.text
    assert "| this model | 0.1235 | 0.5 |" in card.text and "| persistence | 1 | nan |" in card.text
    assert 'from_pretrained("it\'s mine", trust_remote_code=True)' in card.text
    assert "(12, 2, 3, 5)" in card.text and "of each calendar month" in card.text
