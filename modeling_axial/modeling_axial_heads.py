"""Task heads on AxialModel."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_axial import AxialConfig
from .forward_keywords import TRUNK_ARGUMENTS, also_takes, refuse_unknown_keywords
from .modeling_axial import AxialModel, AxialPreTrainedModel, make_trunk


def classification_loss(labels, logits, config: AxialConfig, num_items_in_batch=None, **kwargs) -> torch.Tensor:
    """
    transformers' loss; with `num_items_in_batch`, the number of labels in all batches that `Trainer` accumulates, their
    sum over that number, where transformers does so for cross-entropy alone.
    """
    labels = as_targets(labels, logits, config)
    loss = ForSequenceClassificationLoss(labels, logits, config, num_items_in_batch=num_items_in_batch, **kwargs)
    if num_items_in_batch is None or config.problem_type == "single_label_classification":
        return loss
    return loss * labels.numel() / num_items_in_batch


def as_targets(labels: torch.Tensor, logits: torch.Tensor, config: AxialConfig) -> torch.Tensor:
    """Labels in the dtype that transformers' loss takes: int64 for class indices, else that of the logits."""
    numbers = config.num_labels == 1 or config.problem_type in ("regression", "multi_label_classification")
    if numbers or labels.shape == logits.shape:
        return labels.to(logits.dtype)
    return labels if labels.is_floating_point() else labels.long()


@auto_docstring(custom_intro="Class logits: a linear classifier on the pooled grid of the axial trunk.")
class AxialForImageClassification(AxialPreTrainedModel):
    def __init__(self, config: AxialConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.axial = AxialModel(config)
        self.classifier = nn.Linear(config.pooled_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    @auto_docstring
    @also_takes(TRUNK_ARGUMENTS)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        position_period: Sequence[float | None] | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  position_ids is ours
    ) -> ImageClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Class indices in `[0, num_labels)`: cross-entropy loss. With `num_labels == 1`: numbers, squared error. Of
            shape `(batch_size, num_labels)`, 0 or 1: several classes at once, binary cross-entropy.
        """
        refuse_unknown_keywords(self, kwargs)
        outputs = self.axial(
            pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            position_period=position_period,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(custom_intro="Class logits of clips: `AxialForImageClassification` for pixels as transformers' videos.")
class AxialForVideoClassification(AxialForImageClassification):
    def __init__(self, config: AxialConfig):
        if config.num_axes != 3:
            raise ValueError(
                f"clips have 3 axes (time, height, width), but patch_size={config.patch_size} has {config.num_axes}."
            )
        super().__init__(config)

    @can_return_tuple
    @auto_docstring
    @also_takes(TRUNK_ARGUMENTS)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        position_period: Sequence[float | None] | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  position_ids is ours
    ) -> ImageClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
            One clip each, any size that `patch_size` divides. All other models here have the channels in front of the
            frames.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            As in [`AxialForImageClassification`].
        """
        if pixel_values.dim() != 5 or pixel_values.shape[2] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be (batch, frames, num_channels={self.config.num_channels}, height, width), got "
                f"shape {tuple(pixel_values.shape)}."
            )
        return super().forward(
            pixel_values.movedim(2, 1), attention_mask, labels, position_ids, position_period, **kwargs
        )


@auto_docstring(custom_intro="The axial trunk as a backbone: one map of features for each chosen layer.")
class AxialBackbone(BackboneMixin, AxialPreTrainedModel):
    # A backbone pools nothing, and opens the checkpoints of models that do, and of all that have a head.
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)pooler\.", r"^(classifier|dense_head|mask_token|pixel_\w+)\."]

    def __init__(self, config: AxialConfig):
        super().__init__(config)
        self.axial = make_trunk(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.post_init()

    # BackboneMixin would read the choice as it is stored, where None stands for the last layer.
    @BackboneMixin.out_features.getter
    def out_features(self) -> list[str]:
        return self.config.out_features

    @BackboneMixin.out_indices.getter
    def out_indices(self) -> list[int]:
        return self.config.out_indices

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    @also_takes(TRUNK_ARGUMENTS)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        position_period: Sequence[float | None] | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  position_ids is ours
    ) -> BackboneOutput:
        r"""
        Returns `feature_maps`, one `(batch_size, hidden_size, *grid)` for each of `out_features`: the hidden state
        after that layer under the final norm of the trunk, channels first.
        """
        refuse_unknown_keywords(self, kwargs)
        outputs = self.axial(
            pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            position_period=position_period,
            **kwargs,
        )
        states = dict(zip(self.stage_names, outputs.hidden_states, strict=True))
        return BackboneOutput(
            feature_maps=tuple(self.axial.norm(states[stage]).movedim(-1, 1) for stage in self.out_features),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
