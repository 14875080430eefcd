"""Random crops and changes of grids with any number of axes, the same for pictures, volumes and clips."""

import math
from collections.abc import Sequence

import torch


def random_starts(
    sizes: Sequence[Sequence[int]],
    crop: Sequence[int],
    generator: torch.Generator,
    process_index: int = 0,
    num_processes: int = 1,
) -> list[list[int]]:
    """
    For each grid of `sizes` where a crop of it begins along each axis, all places alike; 0 along an axis that is no
    longer than the crop. Processes as in `RandomGridChanges`.
    """
    draws = torch.rand(len(sizes) * num_processes, len(crop), generator=generator, dtype=torch.float64)
    rooms = torch.tensor([[max(0, length - side) for length, side in zip(size, crop, strict=True)] for size in sizes])
    return (draws[process_index::num_processes] * (rooms + 1)).long().tolist()


class RandomGridChanges:
    """
    Mirrors each grid of a batch at random, exchanges its axes and changes its values.

    Args:
        flip_axes (`Sequence[int]`): along each of these, half of the grids are mirrored.
        exchange_axes (`Sequence[int]`): those of the same length, in pixels and in patches, get a random order. With
            `flip_axes` this makes all turns by 90 degrees and their mirror images, of a square 8, of a cube 48, all
            alike.
        contrast (`float`): values are multiplied by a factor in [1 - contrast, 1 + contrast], less than 1,
        brightness (`float`): and a number in [-brightness, brightness] is added. Both are uniform, and drawn for each
            channel.
        noise (`float`): to each value of each pixel a normal number with this deviation is added.

    Raises:
        `ValueError`: for axes that are negative or given twice, and strengths that are impossible.
    """

    def __init__(
        self,
        flip_axes: Sequence[int] = (),
        exchange_axes: Sequence[int] = (),
        contrast: float = 0.0,
        brightness: float = 0.0,
        noise: float = 0.0,
    ):
        for name, axes in (("flip_axes", flip_axes), ("exchange_axes", exchange_axes)):
            if len(set(axes)) < len(axes) or any(axis < 0 for axis in axes):
                raise ValueError(f"{name} must be different axes, counted from 0, got {tuple(axes)}")
        for name, value, limit in (
            ("contrast", contrast, 1),
            ("brightness", brightness, math.inf),
            ("noise", noise, math.inf),
        ):
            if not 0 <= value < limit:
                raise ValueError(f"{name} must be in [0, {limit}), got {value}")
        self.flip_axes, self.exchange_axes = tuple(flip_axes), tuple(exchange_axes)
        self.contrast, self.brightness, self.noise = contrast, brightness, noise

    def __call__(
        self,
        batch: dict[str, torch.Tensor],
        generator: torch.Generator,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> dict[str, torch.Tensor]:
        """
        `batch`: `pixel_values` (B, C, *pixels), whose values change, too, and what moves with them: `labels`
        (B, *pixels), and `attention_mask` (B, *grid) where there is one. Processes that share a step give equal
        generators, and get what one process with all their grids would, in which grid `i` of this one is number
        `i·num_processes + process_index`.

        Raises:
            `ValueError`: for an axis that the grids do not have.
        """
        values = batch["pixel_values"]
        shape = values.shape[2:]
        if max((*self.flip_axes, *self.exchange_axes), default=0) >= len(shape):
            raise ValueError(
                f"grids of {len(shape)} axes have the axes 0 to {len(shape) - 1}, not all of flip_axes="
                f"{self.flip_axes} and exchange_axes={self.exchange_axes}"
            )
        total = len(values) * num_processes
        mine = slice(process_index, None, num_processes)
        coins = torch.rand(total, len(self.flip_axes), generator=generator)[mine]
        keys = torch.rand(total, len(self.exchange_axes), generator=generator)[mine]
        levels = 2 * torch.rand(total, 2, values.shape[1], generator=generator)[mine] - 1

        shapes = [tensor.shape[-len(shape) :] for tensor in batch.values()]
        sides = list(zip(*shapes, strict=True))
        moves = [
            (
                self._order(draws, sides),
                [axis for axis, coin in zip(self.flip_axes, coin_of, strict=True) if coin < 0.5],
            )
            for draws, coin_of in zip(keys.tolist(), coins.tolist(), strict=True)
        ]
        changed = {
            name: torch.stack([move(grid, *how, len(shape)) for grid, how in zip(tensor, moves, strict=True)])
            for name, tensor in batch.items()
        }
        factor, offset = (1 + self.contrast * levels[:, 0], self.brightness * levels[:, 1])
        factor, offset = (level.to(values).view(*level.shape, *[1] * len(shape)) for level in (factor, offset))
        changed["pixel_values"] = changed["pixel_values"] * factor + offset
        if self.noise:  # drawn last, and only if asked for: all other draws are the same without
            normal = torch.randn(total, *values.shape[1:], generator=generator)[mine]
            changed["pixel_values"] += self.noise * normal.to(values)
        return changed

    def _order(self, draws: Sequence[float], sides: Sequence[tuple[int, ...]]) -> list[int]:
        """The axes in a random order, in which each takes the place of one that is as long."""
        order = list(range(len(sides)))
        for length in set(sides):
            group = [
                (draw, axis) for draw, axis in zip(draws, self.exchange_axes, strict=True) if sides[axis] == length
            ]
            for (_, axis), place in zip(sorted(group), sorted(axis for _, axis in group), strict=True):
                order[place] = axis
        return order


def move(grid: torch.Tensor, order: Sequence[int], flipped: Sequence[int], num_axes: int) -> torch.Tensor:
    """The last `num_axes` dims of a grid in another order, and then mirrored along some of them."""
    first = grid.ndim - num_axes
    grid = grid.permute(*range(first), *(first + axis for axis in order))
    return grid.flip([first + axis for axis in flipped])
