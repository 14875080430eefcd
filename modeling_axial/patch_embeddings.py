"""Pixels to tokens, for any number of axes."""

import torch
from torch import nn

from .configuration_axial import AxialConfig
from .grid import patchify
from .masks import clear_masked


class AxialPatchEmbeddings(nn.Module):
    """Projects each patch of pixels to a token: (B, C, *pixels) -> (B, *grid, hidden_size).

    Any size that the patch divides is accepted. The weight, seen as (hidden_size, C, *patch_shape), is that of the
    strided convolution that other vision transformers use.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_shape = config.patch_shape
        pixels_per_patch = torch.Size(config.patch_shape).numel()
        self.projection = nn.Linear(config.num_channels * pixels_per_patch, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`mask`: boolean (B, *grid); the pixels of False cells count as zeros. Raises as `batch_and_grid`."""
        self.batch_and_grid(pixel_values)
        patches = patchify(pixel_values.to(self.dtype), self.patch_shape)
        return self.projection(clear_masked(patches, mask))

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes: that of the bias, as a quantised weight is stored in another, such as int8."""
        return self.projection.bias.dtype

    def batch_and_grid(self, pixel_values: torch.Tensor) -> tuple[int, ...]:
        """(B, *grid), the shape of the tokens of `pixel_values` without their channels.

        Raises:
            ValueError: for a wrong rank, number of channels, integer pixels, or a size that the patch does not divide.
        """
        self.check(pixel_values)
        shape, grid = tuple(pixel_values.shape), []
        for axis, (pixels, patch) in enumerate(zip(shape[2:], self.patch_shape, strict=True)):
            if pixels == 0 or pixels % patch:
                raise ValueError(
                    f"pixel_values have {pixels} pixels along axis {axis}, which must be a positive multiple of the "
                    f"patch, {patch}: resize or pad (shape {shape}, patch {self.patch_shape})."
                )
            grid.append(pixels // patch)
        return shape[0], *grid

    def check(self, pixel_values: torch.Tensor) -> None:
        """Raises `ValueError` for a wrong rank, number of channels, or integer pixels, of any size."""
        shape = tuple(pixel_values.shape)
        if pixel_values.dim() != 2 + len(self.patch_shape):
            raise ValueError(
                f"pixel_values must be (batch, channels, *pixels) with {len(self.patch_shape)} axes, as the patch "
                f"{self.patch_shape} has; got shape {shape}."
            )
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values must have num_channels={self.num_channels} channels at dim 1, got shape {shape}."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floating point, got {pixel_values.dtype}: scale and normalise the pixels first, "
                "as AxialImageProcessor does."
            )
