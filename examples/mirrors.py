"""What a model says of a grid in the mean over its mirror images, which shows what one view alone misses."""

from collections.abc import Sequence
from itertools import product

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput


class MirrorMean(nn.Module):
    """
    A model with classes for each pixel, whose logits are the mean over all mirror images along some axes, 2^n of n
    axes, each turned back. Positions stay where they are, as in training where `RandomGridChanges` mirrors crops.

    Args:
        model: takes `pixel_values` (B, C, *pixels), whole patches, `attention_mask` (B, *cells) and others that stay.
        axes: different ones, counted from 0.
    """

    def __init__(self, model: nn.Module, axes: Sequence[int]):
        super().__init__()
        self.model, self.config = model, extract_model_from_parallel(model).config
        self.axes = tuple(axes)

    def forward(
        self, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **others
    ) -> SemanticSegmenterOutput:
        total, images = 0, list(product((False, True), repeat=len(self.axes)))
        for chosen in images:
            flipped = [axis for axis, is_flipped in zip(self.axes, chosen, strict=True) if is_flipped]
            of_pixels, of_cells = [axis + 2 for axis in flipped], [axis + 1 for axis in flipped]
            mask = None if attention_mask is None else attention_mask.flip(of_cells)
            logits = self.model(pixel_values=pixel_values.flip(of_pixels), attention_mask=mask, **others).logits
            total = total + logits.flip(of_pixels)
        return SemanticSegmenterOutput(logits=total / len(images))
