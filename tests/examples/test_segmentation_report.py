"""What the example tells about a model: the table, the figure, the model card."""

import ast
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from examples.results import OURS
from examples.segmentation_data import LabelledGrid
from examples.segmentation_report import (
    draw_predictions,
    loading_lines,
    planes,
    score_lines,
    shown,
    write_model_card,
)
from examples.segmentation_scores import Scores


def test_a_line_for_each():
    scores = {OURS: Scores(0.75, torch.tensor([0.5, 0.25])), "another": Scores(1.0, torch.tensor([math.nan, 1.0]))}
    assert score_lines(scores, ["ground", "cell"]) == [
        "accuracy, IoU: mean, ground, cell",
        "0.7500 0.3750 0.5000 0.2500  this model",
        "1.0000 1.0000 nan 1.0000  another",
    ]


def test_planes_are_middle_slices():
    grid = np.arange(3 * 5 * 7).reshape(3, 5, 7)
    assert [plane.shape for plane in planes(grid)] == [(5, 7), (3, 7), (3, 5)]
    assert all(np.array_equal(a, b) for a, b in zip(planes(grid), (grid[1], grid[:, 2], grid[:, :, 3]), strict=True))
    assert np.array_equal(planes(np.stack([grid, -grid, grid]))[0], -grid[1])
    assert np.array_equal(planes(grid[0])[0], grid[0]) and planes(grid[0, 0])[0].shape == (1, 7)


@pytest.mark.parametrize(("channels", "colours"), [(1, ()), (2, ()), (3, (3,)), (11, (3,))])
def test_values_are_shown_from_0_to_1(channels, colours):
    views = shown(np.random.default_rng(0).integers(100, 5000, (channels, 3, 5, 7)))
    assert [view.shape for view in views] == [(5, 7, *colours), (3, 7, *colours), (3, 5, *colours)]
    assert all(0 <= view.min() and view.max() <= 1 for view in views)


@pytest.mark.parametrize("shape", [(30,), (20, 30), (7, 20, 30), (2, 7, 20, 30)])
@pytest.mark.parametrize("wrong", [False, True])
def test_figure(tmp_path, shape, wrong):
    draw = np.random.default_rng(0)
    grids = [LabelledGrid("", draw.normal(size=(1, *shape)), draw.integers(0, 3, shape)) for _ in range(5)]
    seen = []

    def predict(grid):
        seen.append(grid)
        labels = torch.from_numpy(grid.labels)
        return (labels + 1) % 3 if wrong else labels

    draw_predictions(tmp_path / "figure.png", predict, grids, 3, 255)
    assert seen == [grids[0], grids[2], grids[4]]
    with Image.open(tmp_path / "figure.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert ((255, 0, 0) in colours) == wrong and len(colours) > 20


def test_what_does_not_count_is_no_error(tmp_path):
    grid = LabelledGrid("", np.zeros((1, 20, 30)), np.full((20, 30), 255))
    draw_predictions(tmp_path / "figure.png", lambda grid: torch.zeros(20, 30, dtype=torch.long), [grid], 2, 255)
    with Image.open(tmp_path / "figure.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert (255, 0, 0) not in colours and (211, 211, 211) in colours


@pytest.mark.parametrize("name", ["it's", 'say "hi"', "a|b", "日本"])
def test_model_card(tmp_path, name):
    data = SimpleNamespace(
        **{"name": "cells, and others", "hub_id": "imagefolder", "license": None, "label_names": ["ground", name]},
        **{"trained_on": "many cells", "measured_on": "few cells", "what_is_taken": "An array"},
        pixels_of_shape="[:2]",
    )
    (tmp_path / name).mkdir()
    scores = {OURS: Scores(0.75, torch.tensor([0.5, 0.25])), "another": Scores(0.5, torch.tensor([0.125, 1.0]))}
    write_model_card(tmp_path / name, data, scores, 3, (), None)
    card = ModelCard.load(tmp_path / name / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("cells, and others", "mean_iou", 0.375)
    assert "segmentation.py` on many cells.\n- Measured on few cells.\n" in card.text
    head = name.replace("|", "\\|")
    table = f"| | accuracy | mean | ground | {head} |\n|---|---:|---:|---:|---:|\n"
    assert f"{table}| this model | 0.7500 | 0.3750 | 0.5000 | 0.2500 |" in card.text
    (code,) = [part.removeprefix("python\n") for part in card.text.split("```") if part.startswith("python\n")]
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    opened = [ast.literal_eval(call.args[0]) for call in calls if getattr(call.func, "attr", "") == "from_pretrained"]
    assert opened == [name, name] and loading_lines(name) in code and "grid.shape[:2]" in code
    write_model_card(tmp_path / name, data, scores, 3, (0, 2), None)
    mirrored = (tmp_path / name / "README.md").read_text(encoding="utf-8")
    assert "few cells, in the mean over its mirror images\n  (`examples/predict.py --mirror_axes 0,2`).\n" in mirrored
