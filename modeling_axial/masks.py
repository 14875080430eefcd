"""Masks over the cells of a grid: True = the cell is used, False = it is not there, whatever stands in it.

What is not there is set to zero where content meets a mask (pixels, keys and values, convolutions, pools), and not only
weighted by zero: 0 · NaN is NaN.
"""

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import is_fake


def values_are_hidden(tensor: torch.Tensor) -> bool:
    """Whether values cannot be looked at: in compiled and exported code, of fake and of meta tensors."""
    return torch.compiler.is_compiling() or tensor.device.type == "meta" or is_fake(tensor)


def broadcasts(shape: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether a tensor of `shape` broadcasts to `sizes`."""
    # Not `in (1, size)`: compiled code takes a number and an open size that has this value for different.
    pairs = zip(reversed(shape), reversed(sizes), strict=False)
    return len(shape) <= len(sizes) and all(ours == 1 or ours == size for ours, size in pairs)


def boolean_mask(mask: torch.Tensor, name: str) -> torch.Tensor:
    """A mask of booleans, or of numbers that are exactly 0 or 1, as booleans.

    Where values are hidden integers are taken as they are.

    Raises:
        ValueError: for other numbers, such as those of an additive mask, and for floating point without values.
    """
    if mask.dtype == torch.bool:
        return mask
    true_is_to_use = "True (or 1) stands for what is used, False (or 0) for what is not"
    if values_are_hidden(mask):
        if mask.is_floating_point() or mask.is_complex():
            raise ValueError(
                f"{name} must be boolean or of integers where its values cannot be looked at, got {mask.dtype}: "
                f"{true_is_to_use}."
            )
    elif not ((mask == 0) | (mask == 1)).all():
        other = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(
            f"{name} must be boolean, or numbers that are exactly 0 or 1: {true_is_to_use}. Got {other}; an additive "
            "mask becomes one by `mask == 0`."
        )
    return mask != 0


def grid_mask(mask: torch.Tensor, batch_and_grid: tuple[int, ...]) -> torch.Tensor:
    """The boolean mask (B, *grid) that `attention_mask` stands for, a tensor of its own.

    Raises:
        ValueError: for a mask that does not broadcast to `batch_and_grid`, for values as in `boolean_mask`, and for
            floating-point zeros alone, as they are what an additive mask that hides nothing looks like.
    """
    if mask.dim() != len(batch_and_grid) or not broadcasts(mask.shape, batch_and_grid):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but must broadcast to (batch, *grid) {batch_and_grid}."
        )
    if mask.is_floating_point() and mask.numel() and not values_are_hidden(mask) and not mask.any():
        raise ValueError(
            "attention_mask holds floating-point zeros alone: an additive mask that hides nothing, or one that hides "
            "all. Give booleans, True for the cells that are used; an additive mask becomes one by `mask == 0`."
        )
    # A copy: what the caller does to the mask after forward must not reach backward.
    return boolean_mask(mask, "attention_mask").expand(batch_and_grid).clone()


def clear_masked(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, *grid, ...) with zeros where the mask (B, *grid), or of as many dimensions, is False."""
    if mask is None:
        return states
    return states.masked_fill(~mask[(..., *[None] * (states.dim() - mask.dim()))], 0.0)


def repeat_mask(mask: torch.Tensor | None, factors: Sequence[int]) -> torch.Tensor | None:
    """The mask (B, *grid) on a finer grid, of `factors` cells along each axis for each cell of the first."""
    if mask is None:
        return None
    for axis, factor in enumerate(factors):
        mask = mask.repeat_interleave(factor, dim=1 + axis)
    return mask


def bounding_box(mask: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each axis of a mask (B, *grid), per sample: the first True coordinate, and the extent from there to the last.

    Both (B, 1); the whole axis where a sample has no True cell.
    """
    box = []
    for dim in range(1, mask.dim()):
        used = mask.movedim(dim, 1).flatten(2).any(2) if mask.dim() > 2 else mask
        first = used.int().argmax(1, keepdim=True)
        box.append((first, used.shape[1] - used.flip(1).int().argmax(1, keepdim=True) - first))
    return box
