"""How well grids are cut into classes: maps of a model and of simple rules, and what they have right."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mirrors import MirrorMean
from segmentation_data import LabelledGrid, Processor, as_batch, for_model
from tiles import predict_in_tiles
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling_axial.training import AxisAccelerator


@torch.no_grad()
def predict(
    model: nn.Module,
    values: np.ndarray,
    processor: Processor,
    device: torch.device,
    tile: Sequence[int] | None = None,
    tiles_at_once: int = 1,
    mirror_axes: Sequence[int] = (),
    progress: bool = False,
) -> torch.Tensor:
    """
    The likeliest class of each pixel, (*pixels) int64, of a grid (C, *pixels): of the whole at once, or of tiles that
    overlap by a quarter, as `predict_in_tiles` puts them together; in the mean over the mirror images along
    `mirror_axes`. The model is put into its evaluation mode.
    """
    model = MirrorMean(model, mirror_axes).eval() if mirror_axes else model.eval()
    batch = for_model(as_batch(processor, [values]), device)
    if tile is None:
        outputs = model(**batch)
    else:
        logits = predict_in_tiles(
            model, batch, processor.patch_size, tile, tiles_at_once=tiles_at_once, progress=progress
        )
        outputs = SemanticSegmenterOutput(logits=logits)
    (labels,) = processor.post_process_semantic_segmentation(outputs, [values.shape[1:]])
    return labels.cpu()


def otsu_map(grid: LabelledGrid, brighter: bool) -> torch.Tensor:
    """
    Class 1 where the mean of the channels is above the threshold of Otsu (1979) of this grid, or, if it is not the
    `brighter` class, where it is not.
    """
    from skimage.filters import threshold_otsu

    values = np.asarray(grid.values, np.float64).mean(0)
    return torch.from_numpy((values > threshold_otsu(values.ravel())) == brighter).long()


class PixelClassifier:
    """
    Gives each pixel the class that a classifier of scikit-learn finds by its channels alone, which has learnt from the
    pixels of `grids` that count, about `LEARNT_PIXELS` of them at most, as many of each grid, drawn with a fixed seed.
    """

    LEARNT_PIXELS = 20_000

    def __init__(self, model: Any, grids: Sequence[LabelledGrid], ignore_index: int):
        pixels, labels, draw = [], [], np.random.default_rng(0)
        for grid in grids:
            counted = np.argwhere(grid.labels != ignore_index)
            drawn = tuple(draw.permutation(counted)[: -(-self.LEARNT_PIXELS // len(grids))].T)
            pixels.append(grid.values[(slice(None), *drawn)].T)  # of a file on the disk these alone are read
            labels.append(grid.labels[drawn])
        self.model = model.fit(np.concatenate(pixels), np.concatenate(labels))

    @classmethod
    def logistic(cls, grids: Sequence[LabelledGrid], ignore_index: int) -> "PixelClassifier":
        """A logistic regression, for many channels."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return cls(make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)), grids, ignore_index)

    @classmethod
    def tree(cls, grids: Sequence[LabelledGrid], ignore_index: int) -> "PixelClassifier":
        """A decision tree of 16 leaves, for one channel: the classes of 16 ranges of its values."""
        from sklearn.tree import DecisionTreeClassifier

        return cls(DecisionTreeClassifier(max_leaf_nodes=16, random_state=0), grids, ignore_index)

    def __call__(self, grid: LabelledGrid) -> torch.Tensor:
        labels = self.model.predict(np.asarray(grid.values).reshape(len(grid.values), -1).T)
        return torch.from_numpy(labels.astype(np.int64)).reshape(grid.labels.shape)


def nearest_labels(labels: np.ndarray, ignore_index: int) -> torch.Tensor:
    """Of each pixel of a grid (*pixels) the class of the nearest one that counts: what its place alone tells."""
    from sklearn.neighbors import KNeighborsClassifier

    counted = labels != ignore_index
    classifier = KNeighborsClassifier(1).fit(np.argwhere(counted), labels[counted])
    nearest = classifier.predict(np.indices(labels.shape).reshape(labels.ndim, -1).T)
    return torch.from_numpy(nearest.astype(np.int64)).reshape(labels.shape)


@dataclass(frozen=True)
class Scores:
    """
    Of maps, over the pixels that count: `accuracy`, the share of them whose class is right; `ious`, (num_labels,), the
    intersection over union of each class, NaN for one that is neither there nor predicted.
    """

    accuracy: float
    ious: torch.Tensor

    @property
    def mean_iou(self) -> float:
        """Over the classes that are there."""
        return self.ious.nanmean().item()

    def numbers(self) -> list[float]:
        return [self.accuracy, self.mean_iou, *self.ious.tolist()]

    def by_name(self, label_names: Sequence[str]) -> dict[str, float]:
        names = ("accuracy", "mean_iou", *(f"iou {name}" for name in label_names))
        return dict(zip(names, self.numbers(), strict=True))


def score_all(
    map_of: Callable[[LabelledGrid], torch.Tensor],
    grids: Sequence[LabelledGrid],
    num_labels: int,
    ignore_index: int,
    accelerator: AxisAccelerator,
) -> Scores:
    """The scores of maps over all grids. The processes share the work and get the same."""
    options = {"ignore_index": ignore_index, "process_group": accelerator.data_group}
    metrics = (
        MulticlassAccuracy(num_labels, average="micro", **options),
        MulticlassJaccardIndex(num_labels, average="none", zero_division=math.nan, **options),
    )
    metrics = [metric.to(accelerator.device) for metric in metrics]
    number, count = accelerator.share
    for grid in grids[number::count]:
        truth = torch.from_numpy(grid.labels.astype(np.int64))
        predicted = map_of(grid)
        for metric in metrics:
            metric.update(predicted.to(accelerator.device), truth.to(accelerator.device))
    accuracy, ious = (metric.compute().cpu() for metric in metrics)
    return Scores(accuracy.item(), ious)
