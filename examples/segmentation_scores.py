"""How well grids are cut into classes: maps of a model and of Otsu's threshold, and their intersection over union."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from segmentation_data import LabelledGrid, Processor, as_batch, for_model
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex
from transformers.modeling_outputs import SemanticSegmenterOutput


@torch.no_grad()
def predict(
    model: nn.Module,
    grid: LabelledGrid,
    processor: Processor,
    device: torch.device,
    tile: Sequence[int] | None = None,
    tiles_at_once: int = 1,
) -> torch.Tensor:
    """
    The likeliest class of each pixel, (*pixels) int64, of the whole grid at once; or of tiles that overlap by a
    quarter, whose logits are averaged with Gaussian weights. The model is put into its evaluation mode.
    """
    model.eval()
    batch = for_model(as_batch(processor, [grid.values]), device)
    if tile is None:
        outputs = model(**batch)
    else:
        try:
            from monai.inferers import sliding_window_inference
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "tiles are put together by monai: pip install 'modeling-axial[segmentation]'"
            ) from error

        pixel_values = batch["pixel_values"]
        logits = sliding_window_inference(
            pixel_values,
            [min(side, pixels) for side, pixels in zip(tile, pixel_values.shape[2:], strict=True)],
            tiles_at_once,
            lambda tiles: model(pixel_values=tiles).logits,
            mode="gaussian",
        )
        outputs = SemanticSegmenterOutput(logits=logits)
    (labels,) = processor.post_process_semantic_segmentation(outputs, [grid.labels.shape])
    return labels.cpu()


def otsu_map(grid: LabelledGrid, brighter: bool) -> torch.Tensor:
    """
    Class 1 where the mean of the channels is above the threshold of Otsu (1979) of this grid, or, if it is not the
    `brighter` class, where it is not.
    """
    from skimage.filters import threshold_otsu

    values = np.asarray(grid.values, np.float64).mean(0)
    return torch.from_numpy((values > threshold_otsu(values.ravel())) == brighter).long()


def score_all(
    map_of: Callable[[LabelledGrid], torch.Tensor],
    grids: Sequence[LabelledGrid],
    num_labels: int,
    ignore_index: int,
    accelerator: Accelerator,
) -> torch.Tensor:
    """
    The intersection over union of each class, (num_labels,), over the pixels of all grids that count; NaN for a class
    that is neither there nor predicted. The processes share the work and get the same.
    """
    metric = MulticlassJaccardIndex(num_labels, average="none", ignore_index=ignore_index, zero_division=math.nan)
    metric = metric.to(accelerator.device)
    for grid in grids[accelerator.process_index :: accelerator.num_processes]:
        truth = torch.from_numpy(grid.labels.astype(np.int64))
        metric.update(map_of(grid).to(accelerator.device), truth.to(accelerator.device))
    return metric.compute().cpu()
