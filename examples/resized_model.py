"""A classifier made for another size of pictures."""

import copy
from collections.abc import Sequence

import torch

from modeling_axial import AxialForImageClassification
from modeling_axial.position_embeddings import LearnedPositionEmbedding, RelativePosition, read_table, spread_over


def resized(model: AxialForImageClassification, image_size: Sequence[int]) -> AxialForImageClassification:
    """
    A model with `image_size` in its configuration, and so with positions for a grid of that size, which gives for such
    pictures what `model` gives for them: a table of learned positions is spread over the grid and resampled linearly,
    one of relative positions keeps its numbers, and distances that it did not have get that of the largest. Rotary
    positions have no weights; on periodic axes their turns are rounded to the new length.

    Raises:
        `ValueError`: for a size that is no multiple of the patch.
    """
    check_whole_patches(image_size, model.config.patch_shape)
    config = copy.deepcopy(model.config)
    config.image_size = list(image_size)
    new = type(model)(config).to(model.dtype).train(model.training)
    weights = dict(model.state_dict())
    for name, module in new.named_modules():
        if isinstance(module, LearnedPositionEmbedding):
            for axis in module.axes:
                key, length = f"{name}.axis_{axis}", config.grid_shape[axis]
                rows = spread_over(0, length, length, weights[key])
                weights[key] = read_table(weights[key], rows, axis in module.periodic_axes)[0]
        elif isinstance(module, RelativePosition):
            reach, before = (len(table) // 2 for table in (module.table, weights[f"{name}.table"]))
            weights[f"{name}.table"] = read_table(weights[f"{name}.table"], torch.arange(-reach, reach + 1.0) + before)
    new.load_state_dict(weights)
    return new


def check_whole_patches(image_size: Sequence[int], patch_shape: Sequence[int]) -> None:
    if any(side % patch for side, patch in zip(image_size, patch_shape, strict=True)):
        raise ValueError(
            f"image_size={tuple(image_size)} must be whole patches, multiples of patch_size={tuple(patch_shape)}"
        )
