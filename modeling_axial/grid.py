"""Functions of grids of any number of axes, numbered slow to fast: cut into patches, moved, seen with neighbours."""

from collections.abc import Sequence

import torch
from torch import nn


def patchify(pixel_values: torch.Tensor, patch_shape: tuple[int, ...]) -> torch.Tensor:
    """Cuts (B, C, *pixels) into patches: (B, *grid, C·prod(patch_shape)).

    A patch is laid out as (C, *patch_shape), as the weight of a strided convolution. Inverse: `unpatchify`.
    """
    for axis, patch in enumerate(patch_shape):
        pixel_values = pixel_values.unflatten(2 + 2 * axis, (-1, patch))
    num_axes = len(patch_shape)
    grid_dims = range(2, 2 + 2 * num_axes, 2)
    patch_dims = range(3, 3 + 2 * num_axes, 2)
    return pixel_values.permute(0, *grid_dims, 1, *patch_dims).flatten(1 + num_axes)


def unpatchify(patches: torch.Tensor, patch_shape: tuple[int, ...]) -> torch.Tensor:
    """Puts patches (B, *grid, C·prod(patch_shape)) back together: (B, C, *pixels). Inverse of `patchify`."""
    num_axes = len(patch_shape)
    patches = patches.unflatten(-1, (-1, *patch_shape))  # (B, *grid, C, *patch_shape)
    interleaved = [dim for axis in range(num_axes) for dim in (1 + axis, 2 + num_axes + axis)]
    pixels = patches.permute(0, 1 + num_axes, *interleaved)
    for axis in range(num_axes):
        pixels = pixels.flatten(2 + axis, 3 + axis)
    return pixels


def shift(states: torch.Tensor, axis: int, step: int = 1) -> torch.Tensor:
    """(B, *grid, ...) moved by `step` cells along an axis, zeros where nothing comes from: out[i] = in[i - step]."""
    dims_after = states.dim() - axis - 2
    return nn.functional.pad(states, [0, 0] * dims_after + [step, -step])


def neighbourhoods(planes: torch.Tensor) -> torch.Tensor:
    """(B, *grid, K) -> (B, *grid, K · 3 ** axes): each cell with its neighbours, zeros beyond the edges.

    A linear layer on these is a convolution, 3 wide along every axis, for any number of axes.
    """
    for axis in range(planes.dim() - 2):
        planes = torch.cat((shift(planes, axis, 1), planes, shift(planes, axis, -1)), dim=-1)
    return planes


def wrap(states: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """(B, *grid, ...) with the last cells once more before the first, and the first behind the last, along `axes`."""
    for dim in (axis + 1 for axis in axes):
        length = states.shape[dim]
        states = torch.cat((states.narrow(dim, length - 1, 1), states, states.narrow(dim, 0, 1)), dim)
    return states


def unwrap(states: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Without the first and the last cells along `axes`. Inverse of `wrap`."""
    for dim in (axis + 1 for axis in axes):
        states = states.narrow(dim, 1, states.shape[dim] - 2)
    return states
