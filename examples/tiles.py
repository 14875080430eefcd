"""Grids that are too large for a model at once: in overlapping tiles, of which each knows where it lies."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from modeling_axial import AxialConfig


def whole_numbers(text: str, name: str) -> tuple[int, ...]:
    """`1,2` as (1, 2), nothing as ()."""
    if not re.fullmatch(r"(\s*\d+\s*(,\s*\d+\s*)*)?", text):
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r}")
    return tuple(map(int, text.split(","))) if text else ()


def numbers_per_axis(text: str | None, name: str, num_axes: int) -> tuple[int, ...] | None:
    """`64` as (64, 64) for two axes, and `16,64` as (16, 64); None as it is."""
    if text is None:
        return None
    sides = whole_numbers(text, name)
    if len(sides) not in (1, num_axes) or 0 in sides:
        raise ValueError(f"{name} must be one positive number, or one for each of {num_axes} axes, got {text!r}")
    return sides * num_axes if len(sides) == 1 else sides


def axis_numbers(text: str, name: str, num_axes: int) -> tuple[int, ...]:
    """`0,2` as (0, 2); `ValueError` for an axis that a model of `num_axes` has not, or that is given twice."""
    axes = whole_numbers(text, name)
    if max(axes, default=0) >= num_axes or len(set(axes)) < len(axes):
        raise ValueError(f"{name} must be different axes of the model, 0 to {num_axes - 1}, got {text!r}")
    return axes


def positions_of_parts(
    config: AxialConfig, starts: torch.Tensor, length: Sequence[int], whole: Sequence[int]
) -> dict[str, list]:
    """
    `position_ids` and `position_period` by which parts of grids are seen as in their whole.

    Learned positions are spread over the whole, as a model does it with a grid that it is given at once. Of rotary and
    relative ones distances count alone, so that axes which have no others are counted from the start of the part.

    Args:
        starts: (B, axes), the first pixel of each part.
        length, whole: the pixels of the parts, and of the grids that they are of, along each axis.

    Raises:
        `ValueError`: for an axis with learned positions and others, on a grid that is not the native one: there a
            position cannot be both a place in the table and a distance in cells.
    """
    position_ids, periods = [], []
    for axis, patch, start, part, full in zip(
        config.axes, config.patch_shape, starts.unbind(1), length, whole, strict=True
    ):
        cells, total = torch.arange(-(-part // patch), dtype=torch.float32, device=starts.device), -(-full // patch)
        if "learned" in axis.positions:
            rows = axis.length / total
            cells = cells + start[:, None] / patch
            if axis.periodic:  # where the model itself divides by the period
                cells = cells + 0.5 * (1 - 1 / rows)
            elif set(axis.positions) == {"learned"} or rows == 1:
                cells = (cells + 0.5) * rows - 0.5
            else:
                raise ValueError(
                    f"axis {axis.axis} has the positions {'+'.join(axis.positions)} and {axis.length} cells of its "
                    f"own, so that {total} cells cannot be seen in parts: give whole grids, or take a model without "
                    "learned positions"
                )
        position_ids.append(cells)
        periods.append(float(total) if axis.periodic else None)
    return {"position_ids": position_ids, "position_period": periods}


def whole_tile(tile: Sequence[int], pixels: Sequence[int], patch: Sequence[int]) -> list[int]:
    """A tile no larger than the grid, in whole patches; `ValueError` for one that is not."""
    if len(tile) != len(patch) or any(side < 1 or side % step for side, step in zip(tile, patch, strict=True)):
        raise ValueError(f"a tile must be whole patches of {tuple(patch)} pixels, got {tuple(tile)}")
    return [min(side, length) for side, length in zip(tile, pixels, strict=True)]


@torch.no_grad()
def predict_in_tiles(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    patch: Sequence[int],
    tile: Sequence[int],
    overlap: float = 0.25,
    tiles_at_once: int = 1,
    progress: bool = False,
) -> torch.Tensor:
    """
    What a model with a dense head gives for a batch of its processor, in whole patches: logits (B, labels, *pixels), or
    the prediction (B, channels, *pixels) or (B, channels, quantiles, *pixels). Put together by MONAI's
    `sliding_window_inference`, where tiles overlap with Gaussian weights. The model never sees more than
    `tiles_at_once` tiles, and beside it there are the batch, the result and the weights.

    Args:
        model: one with an `AxialConfig`, which is told where its tiles lie, or another, prepared or not.
        batch: `pixel_values`, and `attention_mask` where there is one; what stands in masked cells means nothing.
        patch: pixels of a cell of the mask along each axis.
        tile: pixels along each axis, whole patches; of axes that are shorter, all.
        overlap: share of a tile that the next one covers, too, to the nearest patch.

    Raises:
        `ValueError`: for a tile that is none, and as `positions_of_parts`.
        `ModuleNotFoundError`: without MONAI.
    """
    try:
        from monai.inferers import sliding_window_inference
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tiles are put together by monai: pip install 'modeling-axial[segmentation]'"
        ) from error

    config = extract_model_from_parallel(model).config
    pixel_values, mask = batch["pixel_values"], batch.get("attention_mask")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    whole = pixel_values.shape[2:]
    tile = whole_tile(tile, whole, patch)
    # MONAI takes the whole part of (1 - overlap) · tile as the way to the next one.
    steps = [max(1, round((1 - overlap) * side / step)) * step for side, step in zip(tile, patch, strict=True)]
    overlaps = [max(0.0, 1 - (step + 0.5) / side) for step, side in zip(steps, tile, strict=True)]
    between: list[int] = []  # sizes of the dims before the pixels that a channel stands for

    def of_tiles(tiles: torch.Tensor, places: Sequence[Sequence[slice]]) -> torch.Tensor:
        given: dict[str, Any] = {"pixel_values": tiles}
        if isinstance(config, AxialConfig):
            starts = torch.tensor([[side.start for side in place[2:]] for place in places], device=tiles.device)
            given |= positions_of_parts(config, starts, tile, whole)
        if mask is not None:
            given["attention_mask"] = torch.cat([mask[(place[0], *cells_of(place[2:], patch))] for place in places])
        outputs = model(**given)
        values = outputs.logits if "logits" in outputs else outputs.prediction
        between[:] = values.shape[1 : -len(tile)]
        return values.flatten(1, -len(tile) - 1)

    values = sliding_window_inference(
        pixel_values, tile, tiles_at_once, of_tiles, overlaps, "gaussian", progress=progress, with_coord=True
    )
    return values.unflatten(1, between)  # pyrefly: ignore[missing-attribute]  one tensor, as `of_tiles` gives


def cells_of(pixels: Sequence[slice], patch: Sequence[int]) -> list[slice]:
    """The cells of a tile, whose first pixel is the first of a patch."""
    return [slice(side.start // step, -(-side.stop // step)) for side, step in zip(pixels, patch, strict=True)]
