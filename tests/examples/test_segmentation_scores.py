"""How well a grid is cut into classes: intersection over union, Otsu's threshold, whole grids and tiles."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples.segmentation_data import LabelledGrid
from examples.segmentation_samples import BrainTissue, Nuclei2d, Nuclei3d
from examples.segmentation_scores import PixelClassifier, Scores, nearest_labels, otsu_map, predict, score_all
from modeling_axial import AxialConfig, AxialForSemanticSegmentation
from modeling_axial.grid_processing_axial import AxialGridProcessor
from modeling_axial.training import AxisAccelerator

CPU = torch.device("cpu")


def make_grids(*shapes, num_labels=4, seed=0):
    draw = np.random.default_rng(seed)
    return [
        LabelledGrid(f"{i}", draw.normal(size=(1, *shape)), draw.integers(0, num_labels, shape, dtype=np.uint8))
        for i, shape in enumerate(shapes)
    ]


def make_model(num_axes=2, **overrides):
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[8] * num_axes,
        patch_size=[2] * num_axes,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        num_labels=3,
        **overrides,
    )
    return AxialForSemanticSegmentation(config)


def slow_iou(maps, grids, label, ignore_index):
    both = either = 0
    for predicted, grid in zip(maps, grids, strict=True):
        for a, b in zip(predicted.flatten().tolist(), grid.labels.flatten().tolist(), strict=True):
            if b != ignore_index:
                both += a == b == label
                either += a == label or b == label
    return both / either


@pytest.mark.parametrize("ignore_index", [255, 1])
def test_scores_equal_the_slow_ones(ignore_index):
    grids = make_grids((5, 7), (3, 11), (2, 2, 3), num_labels=3)
    grids[0].labels[0] = ignore_index
    maps = {
        id(grid): torch.from_numpy(other.labels).long()
        for grid, other in zip(grids, make_grids((5, 7), (3, 11), (2, 2, 3), num_labels=3, seed=1), strict=True)
    }
    scores = score_all(lambda grid: maps[id(grid)], grids, 4, ignore_index, AxisAccelerator(cpu=True))
    for label in {0, 1, 2} - {ignore_index}:
        assert scores.ious[label].item() == pytest.approx(slow_iou(maps.values(), grids, label, ignore_index), abs=1e-6)
    assert scores.ious[3].isnan()  # neither there nor predicted
    counted = [grid.labels != ignore_index for grid in grids]
    right = [(maps[id(grid)].numpy() == grid.labels)[where] for grid, where in zip(grids, counted, strict=True)]
    assert scores.accuracy == pytest.approx(np.concatenate(right).mean(), abs=1e-6)


def test_the_mean_is_over_classes_that_are_there():
    scores = Scores(0.625, torch.tensor([0.5, math.nan, 1.0]))
    assert scores.mean_iou == 0.75
    assert list(scores.by_name("abc")) == ["accuracy", "mean_iou", "iou a", "iou b", "iou c"]
    assert scores.numbers()[:3] == list(scores.by_name("abc").values())[:3] == [0.625, 0.75, 0.5]


def test_a_rule_on_single_pixels():
    """It learns from pixels that count alone, and finds classes by all channels."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, (20, 30))
    values = np.stack([1.0 * (labels == 0), 100.0 * (labels == 1)]) + draw.normal(scale=0.1, size=(2, 20, 30))
    learnt = labels.copy()
    learnt[:, 10:] = 7
    rule = PixelClassifier.logistic([LabelledGrid("grid", values, learnt)], ignore_index=7)
    found = rule(LabelledGrid("grid", values, labels))
    assert found.shape == (20, 30) and (found.numpy() == labels).mean() > 0.99


def test_a_tree_parts_ranges_of_one_channel():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, (20, 30, 2))
    values = (np.array([50.0, 0.0, 20.0])[labels] + draw.normal(scale=2, size=labels.shape))[None]
    learnt = labels.copy()
    learnt[:, 10:] = 7
    rule = PixelClassifier.tree([LabelledGrid("grid", values, learnt)], ignore_index=7)
    found = rule(LabelledGrid("grid", values, labels))
    assert found.shape == labels.shape and (found.numpy() == labels).mean() > 0.99


@pytest.mark.parametrize(("fold", "mean_iou"), [(0, 0.9249), (1, 0.9075), (2, 0.9167), (3, 0.9203)])
def test_a_tree_on_the_brain(fold, mean_iou):
    data = BrainTissue(AxialConfig(image_size=[4] * 3, patch_size=[2] * 3), fold)
    scores = score_all(PixelClassifier.tree(data.train, 255), data.held_out, 4, 255, AxisAccelerator(cpu=True))
    assert scores.ious[0] == 1  # where there is nothing to see
    assert scores.mean_iou == pytest.approx(mean_iou, abs=5e-4)


def test_processes_share_the_work():
    grids = make_grids(*[(3, 5)] * 7)
    seen = []

    def record(grid):
        seen.append(int(grid.name))
        return torch.zeros(3, 5, dtype=torch.long)

    for process in range(3):
        score_all(record, grids, 4, 255, SimpleNamespace(share=(process, 3), data_group=None, device=CPU))
    assert seen == [0, 3, 6, 1, 4, 2, 5]


@pytest.mark.parametrize("brighter", [True, False])
def test_otsu_parts_two_levels(brighter):
    labels = np.random.default_rng(0).integers(0, 2, (5, 7, 3))
    values = np.stack([labels * 9.0 + 1, labels * 1.0]) + np.random.default_rng(1).normal(scale=0.1, size=(2, 5, 7, 3))
    grid = LabelledGrid("grid", values if brighter else -values, labels)
    # Not all: the threshold is the middle of a bin, which may hold the last values of a level.
    assert (otsu_map(grid, brighter).numpy() == labels).mean() > 0.95
    assert torch.equal(otsu_map(grid, not brighter), 1 - otsu_map(grid, brighter))


@pytest.mark.parametrize("shape", [(7, 10), (5, 4, 9)])
def test_whole_grids(shape):
    model = make_model(len(shape), hidden_dropout_prob=0.5).train()
    processor = AxialGridProcessor(patch_size=[2] * len(shape), image_mean=0.3, image_std=2.0)
    (grid,) = make_grids(shape)
    labels = predict(model, grid.values, processor, CPU)
    expected = model((torch.from_numpy(grid.values)[None].float() - 0.3) / 2).logits.argmax(1)[0]
    assert not model.training and labels.shape == shape and labels.dtype == torch.int64
    assert torch.equal(labels, expected)
    assert len(labels.unique()) > 1


@pytest.mark.parametrize(("data", "fold", "iou"), [(Nuclei2d, 0, 0.767), (Nuclei3d, 0, 0.6318)])
def test_otsu_on_nuclei(data, fold, iou):
    config = AxialConfig(patch_size=[2] * data.num_axes, image_size=[4] * data.num_axes)
    scores = score_all(
        lambda grid: otsu_map(grid, True), data(config, fold).held_out, 2, 255, AxisAccelerator(cpu=True)
    )
    assert scores.ious[1].item() == pytest.approx(iou, abs=5e-4)


@pytest.mark.parametrize(("shape", "tile"), [((14, 10), (6, 8)), ((4, 14, 10), (8, 8, 8))])
def test_tiles_of_a_model_that_looks_no_further(shape, tile):
    """One that sees each patch alone gives in tiles what it gives at once."""
    model = make_model(len(shape), position_embedding="none")
    model.axial.layers = torch.nn.ModuleList()
    processor = AxialGridProcessor(patch_size=[2] * len(shape))
    (grid,) = make_grids(shape)
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["pixel_values"].shape), with_kwargs=True
    )
    whole = predict(model, grid.values, processor, CPU)
    in_tiles = predict(model, grid.values, processor, CPU, tile, tiles_at_once=2)
    assert torch.equal(in_tiles, whole) and len(whole.unique()) > 1
    smaller = tuple(min(side, length) for side, length in zip(tile, shape, strict=True))
    assert len(sizes) > 2 and {size[2:] for size in sizes[1:]} == {smaller} and max(size[0] for size in sizes) == 2


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.inferers", None)
    with pytest.raises(ModuleNotFoundError, match=r"monai: pip install 'modeling-axial\[segmentation\]'"):
        predict(make_model(), make_grids((4, 4))[0].values, AxialGridProcessor(patch_size=2), CPU, (2, 2))


@pytest.mark.parametrize("shape", [(9,), (6, 7), (3, 4, 5)])
def test_the_nearest_known_class(shape):
    draw = np.random.default_rng(len(shape))
    labels = np.where(draw.random(shape) < 0.3, draw.integers(0, 4, shape), 255)
    known = np.argwhere(labels != 255)
    nearest = nearest_labels(labels, 255)
    for pixel in np.ndindex(shape):
        distances = ((known - pixel) ** 2).sum(1)
        best = known[distances == distances.min()]
        assert int(nearest[pixel]) in {labels[tuple(place)] for place in best}
    assert nearest.dtype == torch.int64 and nearest.shape == shape
