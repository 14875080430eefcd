"""Heads on AxialModel that give numbers for each pixel, for grids of any number of axes and pictures of any size.

A size that the patch does not divide is padded with zeros to whole patches, and what lies there is cut off again: a
picture gives what it gives when it is padded with zeros beforehand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedImageModelingOutput,
    ModelOutput,
    SemanticSegmenterOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_axial import AxialConfig
from .dense_heads import DENSE_HEAD_CLASSES, DenseHead
from .dense_losses import numbers_per_target, prediction_loss, reconstruction_loss, segmentation_loss
from .forward_keywords import POSITION_ARGUMENTS, also_takes, refuse_unknown_keywords
from .grid import unpatchify
from .layer_context import LayerContext
from .masks import boolean_mask, clear_masked, grid_mask, repeat_mask
from .modeling_axial import AxialModel, AxialPreTrainedModel, make_trunk
from .position_embeddings import check_position_period, parts_of_circles

# Arguments of all of these models, for `also_takes`.
DENSE_ARGUMENTS = rf"""
pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, *pixels)`):
    One picture, clip or volume each, of any size: padded with zeros to whole patches, and cut again.
attention_mask (`torch.BoolTensor` broadcastable to `(batch_size, *grid)`, *optional*):
    True (or 1) for cells to use, False for padding. Pixels of other cells do not count in the loss.
{POSITION_ARGUMENTS.strip()}
"""


def pad_to_patches(pixel_values: torch.Tensor, patch_shape: tuple[int, ...]) -> torch.Tensor:
    """(B, C, *pixels) with zeros behind the end of each axis, up to whole patches."""
    padding = []
    for pixels, patch in zip(reversed(pixel_values.shape[2:]), reversed(patch_shape), strict=True):
        # Not pixels + (-pixels % patch), of which the compiler does not know that the patch divides it.
        padding += [0, (pixels + patch - 1) // patch * patch - pixels]
    return nn.functional.pad(pixel_values, padding)


def cut(pixels: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The last dims of a tensor, cut to the first `sizes` of each."""
    if torch.compiler.is_exporting():  # a slice would bind the program to sizes that are whole, or that are not
        for dim, size in zip(range(-len(sizes), 0), sizes, strict=True):
            pixels = pixels.index_select(dim, torch.arange(size, device=pixels.device))
        return pixels
    return pixels[(..., *(slice(size) for size in sizes))]


class AxialDensePreTrainedModel(AxialPreTrainedModel):
    """What models with a dense head share: the trunk, the head, and the way from pixels to numbers for each pixel."""

    axial: AxialModel
    dense_head: DenseHead
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)pooler\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        gain = getattr(module, "initial_gain", None)
        if gain is not None:
            weight = module.get_parameter("weight")
            init.trunc_normal_(weight, std=gain * weight[0].numel() ** -0.5)

    def make_projection(self, channels: int) -> nn.Linear:
        """What makes so many numbers for each pixel of the features of the head. Each task has its own name for it."""
        pixels_per_cell = torch.Size(self.dense_head.output_shape).numel()
        return nn.Linear(self.dense_head.output_size, channels * pixels_per_cell)

    def in_patches(
        self, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pixels of any size as whole patches, in the dtype of the model, and the mask of their cells (B, *grid).

        Raises `ValueError` for pixels of another kind than this model's, for a mask that is none of theirs, and for a
        periodic axis that is no whole number of patches: zeros behind its end would stand between its ends.
        """
        embeddings = self.axial.embeddings.patch_embeddings
        embeddings.check(pixel_values)
        whole = pad_to_patches(pixel_values.to(embeddings.dtype), self.config.patch_shape)
        for axis in (axis.axis for axis in self.config.axes if axis.periodic):
            if whole.shape[axis + 2] != pixel_values.shape[axis + 2]:
                raise ValueError(
                    f"pixel_values have {pixel_values.shape[axis + 2]} pixels along axis {axis}, which is periodic and "
                    f"must be a multiple of the patch, {self.config.patch_shape[axis]}: resize."
                )
        batch_and_grid = embeddings.batch_and_grid(whole)
        return whole, None if attention_mask is None else grid_mask(attention_mask, batch_and_grid)

    def numbers_of_pixels(
        self,
        projection: nn.Module,
        whole: torch.Tensor,
        mask: torch.Tensor | None,
        head_mask: torch.Tensor | None,
        position_ids: Sequence[torch.Tensor] | None,
        position_period: Sequence[float | None] | None,
        keywords: Mapping[str, Any],
        added_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """The numbers for each pixel of whole patches (B, channels, *pixels), and what the trunk returns.

        Both masks are boolean (B, *grid): `mask` says which cells are there, `head_mask` of which of them the head sees
        the pixels. All others are arguments of the trunk.
        """
        # The trunk checks them again, but only after the head has read the pixels.
        periods = check_position_period(position_period, position_ids, self.config.axes)
        grid = self.axial.embeddings.patch_embeddings.batch_and_grid(whole)[1:]
        context = LayerContext(mask, cropped_axes=parts_of_circles(grid, periods))
        embeds, kept = self.dense_head.before_trunk(whole, context._replace(mask=head_mask))
        added = [term for term in (embeds, added_embeds) if term is not None]
        outputs = self.axial(
            whole,
            attention_mask=mask,
            position_ids=position_ids,
            position_period=position_period,
            added_embeds=sum(added) if added else None,
            **keywords,
        )
        features = self.dense_head(outputs.last_hidden_state, context, kept)
        return unpatchify(projection(features), self.dense_head.output_shape), outputs

    def pixel_mask(self, mask: torch.Tensor | None, sizes: Sequence[int]) -> torch.Tensor | None:
        """The mask of cells (B, *grid) as one of pixels (B, *sizes)."""
        of_pixels = repeat_mask(mask, self.config.patch_shape)
        return None if of_pixels is None else cut(of_pixels, sizes)


@auto_docstring(custom_intro="Logits of each pixel's class: a dense head on the axial trunk.")
class AxialForSemanticSegmentation(AxialDensePreTrainedModel):
    def __init__(self, config: AxialConfig):
        num_labels = config.num_labels or 0
        if num_labels < 2:
            raise ValueError(
                f"segmentation needs num_labels of at least 2, got {num_labels}: count the background as one."
            )
        super().__init__(config)
        self.axial = make_trunk(config)
        self.dense_head = DENSE_HEAD_CLASSES[config.dense_head](config)
        self.pixel_classifier = self.make_projection(num_labels)
        self.loss_function = segmentation_loss
        self.post_init()

    @can_return_tuple
    @auto_docstring
    @also_takes(DENSE_ARGUMENTS)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        position_period: Sequence[float | None] | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  position_ids is ours
    ) -> SemanticSegmenterOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, *pixels)`, *optional*):
            Class of each pixel in `[0, num_labels)`, or `semantic_loss_ignore_index` or -100 where it does not count:
            cross-entropy with `class_weights`, plus `dice_loss_weight` times the Dice loss. `Trainer` counts what is
            not -100 when it accumulates batches; batches with other shares of `semantic_loss_ignore_index` then weigh
            a little differently than in one.

        Returns `logits` `(batch_size, num_labels, *pixels)`, of the size of `pixel_values`.
        """
        refuse_unknown_keywords(self, kwargs)
        whole, mask = self.in_patches(pixel_values, attention_mask)
        logits, outputs = self.numbers_of_pixels(
            self.pixel_classifier, whole, mask, mask, position_ids, position_period, kwargs
        )
        logits = cut(logits, pixel_values.shape[2:])
        loss = None
        if labels is not None:
            pixel_mask = self.pixel_mask(mask, pixel_values.shape[2:])
            loss = self.loss_function(labels, logits, self.config, pixel_mask=pixel_mask, **kwargs)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(custom_intro="What `AxialForDensePrediction` returns.")
@dataclass
class DensePredictionOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*):
        The mean error over the numbers that count; there are `labels` then.
    prediction (`torch.FloatTensor` of shape `(batch_size, num_target_channels, *pixels)`):
        Numbers for each pixel; with `prediction_loss="quantile"`, `(batch_size, num_target_channels, num_quantiles,
        *pixels)`.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

    @property
    def reconstruction(self) -> torch.Tensor | None:
        """The prediction, under the name that transformers' image-to-image models give theirs."""
        return self.prediction


@auto_docstring(custom_intro="Numbers for each pixel, such as next month's field: a dense head on the axial trunk.")
class AxialForDensePrediction(AxialDensePreTrainedModel):
    def __init__(self, config: AxialConfig):
        super().__init__(config)
        self.axial = make_trunk(config)
        self.dense_head = DENSE_HEAD_CLASSES[config.dense_head](config)
        numbers = torch.Size(numbers_per_target(config)).numel()
        self.pixel_predictor = self.make_projection(config.num_target_channels * numbers)
        self.loss_function = prediction_loss
        self.post_init()

    @can_return_tuple
    @auto_docstring
    @also_takes(DENSE_ARGUMENTS)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_mask: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        position_period: Sequence[float | None] | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  some are ours
    ) -> DensePredictionOutput:
        r"""
        labels (`torch.FloatTensor` of shape `(batch_size, num_target_channels, *pixels)`, *optional*):
            The numbers to predict. The loss is that of `prediction_loss`.
        loss_mask (`torch.BoolTensor` broadcastable to `labels`, *optional*):
            True (or 1) for numbers that count in the loss, False for those that are missing, whatever stands there.
        loss_weights (`torch.FloatTensor` broadcastable to `labels`, *optional*):
            What each number counts, not negative, such as the cosine of the latitude, `(1, 1, latitudes, 1)`. The loss
            is the weighted mean.
        """
        refuse_unknown_keywords(self, kwargs)
        whole, mask = self.in_patches(pixel_values, attention_mask)
        prediction, outputs = self.numbers_of_pixels(
            self.pixel_predictor, whole, mask, mask, position_ids, position_period, kwargs
        )
        targets = (self.config.num_target_channels, *numbers_per_target(self.config))
        prediction = cut(prediction, pixel_values.shape[2:]).unflatten(1, targets)
        loss = None
        if labels is not None:
            masks = {"pixel_mask": self.pixel_mask(mask, pixel_values.shape[2:]), "loss_mask": loss_mask}
            loss = self.loss_function(labels, prediction, self.config, **masks, loss_weights=loss_weights, **kwargs)
        return DensePredictionOutput(
            loss=loss, prediction=prediction, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def hidden_patches(bool_masked_pos: torch.Tensor, batch_and_grid: tuple[int, ...]) -> torch.Tensor:
    """`bool_masked_pos` as booleans (B, *grid); `ValueError` for another shape, and as in `boolean_mask`."""
    flat = (batch_and_grid[0], torch.Size(batch_and_grid[1:]).numel())
    if tuple(bool_masked_pos.shape) not in (batch_and_grid, flat):
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, but must be (batch, *grid) {batch_and_grid}, "
            f"or (batch, patches) {flat}."
        )
    return boolean_mask(bool_masked_pos, "bool_masked_pos").reshape(batch_and_grid)


class MaskToken(nn.Module):
    """What stands for the pixels of a hidden patch: boolean (B, *grid) -> (B, *grid, hidden_size), zeros elsewhere."""

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.token = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[..., None] * self.token


@auto_docstring(
    custom_intro="Pixels of hidden patches, from those that are seen (Xie et al. 2022, SimMIM, arXiv 2111.09886)."
)
class AxialForMaskedImageModeling(AxialDensePreTrainedModel):
    def __init__(self, config: AxialConfig):
        super().__init__(config)
        self.axial = make_trunk(config)
        self.dense_head = DENSE_HEAD_CLASSES[config.dense_head](config)
        self.pixel_decoder = self.make_projection(config.num_channels)
        self.mask_token = MaskToken(config)
        self.loss_function = reconstruction_loss
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskToken):
            init.trunc_normal_(module.token, std=self.config.initializer_range)

    @can_return_tuple
    @auto_docstring
    @also_takes(DENSE_ARGUMENTS)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        position_period: Sequence[float | None] | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  position_ids is ours
    ) -> MaskedImageModelingOutput:
        r"""
        attention_mask (`torch.BoolTensor` broadcastable to `(batch_size, *grid)`, *optional*):
            True (or 1) for cells to use, False for padding, which is neither read nor to be reconstructed.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, *grid)` or `(batch_size, num_patches)`, *optional*):
            True (or 1) for patches to hide: the model sees `mask_token` in their place, and the loss is the mean
            absolute error of their pixels.

        Returns `reconstruction` `(batch_size, num_channels, *pixels)`.
        """
        refuse_unknown_keywords(self, kwargs)
        whole, mask = self.in_patches(pixel_values, attention_mask)
        batch_and_grid = self.axial.embeddings.patch_embeddings.batch_and_grid(whole)
        if bool_masked_pos is None:
            hidden = torch.zeros(batch_and_grid, dtype=torch.bool, device=whole.device)
        else:
            hidden = hidden_patches(bool_masked_pos, batch_and_grid)
        seen = clear_masked(whole.movedim(1, -1), repeat_mask(~hidden, self.config.patch_shape)).movedim(-1, 1)
        head_mask, wanted = (~hidden, hidden) if mask is None else (mask & ~hidden, mask & hidden)
        reconstruction, outputs = self.numbers_of_pixels(
            self.pixel_decoder,
            seen,
            mask,
            head_mask,
            position_ids,
            position_period,
            kwargs,
            added_embeds=self.mask_token(hidden),
        )
        reconstruction = cut(reconstruction, pixel_values.shape[2:])
        loss = None
        if bool_masked_pos is not None:
            pixel_mask = self.pixel_mask(wanted, pixel_values.shape[2:])
            loss = self.loss_function(pixel_values, reconstruction, pixel_mask)
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
