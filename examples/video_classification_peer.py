"""A transformer of divided space-time attention to compare with, TimeSformer of transformers."""

import torch
from transformers import TimesformerConfig, TimesformerForVideoClassification

from modeling_axial import AxialConfig


def timesformer_for(config: AxialConfig, num_parameters: int) -> TimesformerForVideoClassification:
    """
    TimeSformer (Bertasius et al. 2021, arXiv 2102.05095) for the clips and classes of a model: with its width, layers,
    heads and spatial patches, a token for each frame, and feed-forwards of the width that makes its parameters nearest
    to `num_parameters`.

    Raises:
        `ValueError`: if frames or patches are not square, or no width brings the parameters within 5 %.
    """
    num_frames, *pixels = config.image_shape
    _, *patch = config.patch_shape
    if len(set(pixels)) > 1 or len(set(patch)) > 1:
        raise ValueError(
            f"--peer=timesformer has square frames and patches, the model has {tuple(pixels)} and {tuple(patch)}"
        )

    def make(intermediate_size: int) -> TimesformerForVideoClassification:
        return TimesformerForVideoClassification(
            TimesformerConfig(
                image_size=pixels[0],
                patch_size=patch[0],
                num_channels=config.num_channels,
                num_frames=num_frames,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=intermediate_size,
                hidden_dropout_prob=config.hidden_dropout_prob,
                attention_probs_dropout_prob=config.attention_probs_dropout_prob,
                id2label=config.id2label,
                label2id=config.label2id,
            )
        )

    with torch.device("meta"):
        smallest, next_larger = (make(width).num_parameters() for width in (1, 2))
    width = max(1, 1 + round((num_parameters - smallest) / (next_larger - smallest)))
    excess = smallest + (width - 1) * (next_larger - smallest) - num_parameters
    if abs(excess) > 0.05 * num_parameters:
        raise ValueError(
            f"no TimeSformer of hidden_size={config.hidden_size} has within 5 % of the {num_parameters} parameters of "
            f"the model; the nearest differs by {excess}"
        )
    return make(width)
