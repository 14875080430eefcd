"""Random turns and sizes of pictures and volumes, labels and masks included."""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import affine_grid, grid_sample


def warp(batch: dict[str, torch.Tensor], angles: torch.Tensor, factors: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Grids that are turned by `angles` (B,), in radians, in the plane of the last two axes, from the first of them to the
    second, and `factors` (B,) times as large, about their middle. What comes in from outside is their mirror image.

    Values are interpolated linearly. A pixel gets the label of the nearest one, and a cell is one of the mask if any
    of its pixels comes from such a cell.

    Args:
        batch: as in `RandomGridChanges`, of 2 or 3 axes, whose pixels are as long along one axis as along another.
    """
    values = batch["pixel_values"]
    shape = values.shape[2:]
    places = sources(shape, angles, factors).to(values.device)
    warped = {"pixel_values": _sample(values, places, "bilinear")}
    if "labels" in batch:
        warped["labels"] = _sample(batch["labels"][:, None], places, "nearest")[:, 0]
    if "attention_mask" in batch:
        mask = batch["attention_mask"]
        patch = [length // cells for length, cells in zip(shape, mask.shape[1:], strict=True)]
        for axis, side in enumerate(patch):
            mask = mask.repeat_interleave(side, axis + 1)
        mask = _sample(mask[:, None], places, "nearest")[:, 0]
        for axis, side in enumerate(patch):
            mask = mask.unflatten(axis + 1, (-1, side)).any(axis + 2)
        warped["attention_mask"] = mask
    return warped


def sources(shape: Sequence[int], angles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """(B, *shape, axes): where pixels come from, as `grid_sample` counts: -1 to 1, and the fastest axis first."""
    num_axes = len(shape)
    turns = torch.eye(num_axes, dtype=torch.float64).repeat(len(angles), 1, 1)
    cosines, sines = angles.double().cos(), angles.double().sin()
    turns[:, -2:, -2:] = torch.stack((cosines, sines, -sines, cosines), -1).view(-1, 2, 2)
    lengths = torch.tensor(shape, dtype=torch.float64)
    matrices = turns / factors.double()[:, None, None] * lengths / lengths[:, None]
    matrices = torch.cat((matrices.flip(1, 2), torch.zeros(len(angles), num_axes, 1, dtype=torch.float64)), 2)
    return affine_grid(matrices, [len(angles), 1, *shape], align_corners=False)


def _sample(grids: torch.Tensor, places: torch.Tensor, mode: str) -> torch.Tensor:
    """Whole numbers and masks by way of float64, which holds all that labels may be."""
    numbers = grids if grids.is_floating_point() else grids.double()
    sampled = grid_sample(numbers, places.to(numbers), mode, padding_mode="reflection", align_corners=False)
    return sampled.to(grids.dtype)


class RandomWarping:
    """
    Turns each grid of a batch at random, and makes it larger or smaller.

    Args:
        num_axes (`int`): of the grids.
        turn (`float`): by up to so many degrees either way, in [0, 180].
        zoom (`float`): by a factor in [1 / (1 + zoom), 1 + zoom]; its logarithm is uniform.

    Raises:
        `ValueError`: for strengths that are impossible, and for other than 2 or 3 axes, which nothing interpolates.
    """

    def __init__(self, num_axes: int, turn: float = 0.0, zoom: float = 0.0):
        if not 0 <= turn <= 180:
            raise ValueError(f"turn must be in [0, 180], got {turn}")
        if not 0 <= zoom < math.inf:
            raise ValueError(f"zoom must be in [0, inf), got {zoom}")
        if (turn or zoom) and num_axes not in (2, 3):
            raise ValueError(f"grids of 2 or 3 axes can be turned and zoomed, these have {num_axes}: turn=0, zoom=0")
        self.turn, self.zoom = turn, zoom

    def __call__(
        self,
        batch: dict[str, torch.Tensor],
        generator: torch.Generator,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> dict[str, torch.Tensor]:
        """As `RandomGridChanges`; without any strength nothing is drawn, and the batch stays as it is."""
        if not self.turn and not self.zoom:
            return batch
        total = len(batch["pixel_values"]) * num_processes
        draws = 2 * torch.rand(total, 2, generator=generator)[process_index::num_processes] - 1
        return warp(batch, math.radians(self.turn) * draws[:, 0], (1 + self.zoom) ** draws[:, 1])
