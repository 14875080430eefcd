"""A U-Net of convolutions to compare with, MONAI's."""

from collections.abc import Sequence

import torch
from peers import equally_large_unet
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling_axial import AxialConfig
from modeling_axial.dense_losses import segmentation_loss
from modeling_axial.modeling_axial_dense import cut, pad_to_patches


class UNetConfig(PreTrainedConfig):
    """
    Args:
        num_axes, num_channels, semantic_loss_ignore_index, class_weights, dice_loss_weight: as in `AxialConfig`.
        widths: channels at full, half and quarter resolution.
    """

    model_type = "monai_unet"

    def __init__(
        self,
        num_axes: int = 2,
        num_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        semantic_loss_ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        dice_loss_weight: float = 0.0,
        **kwargs,
    ):
        self.num_axes, self.num_channels, self.widths = num_axes, num_channels, list(widths)
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.class_weights, self.dice_loss_weight = class_weights, dice_loss_weight
        super().__init__(**kwargs)


class UNetForSemanticSegmentation(PreTrainedModel):
    """
    MONAI's residual U-Net (Kerfoot et al. 2019, after Ronneberger et al. 2015, arXiv 1505.04597) with two halvings, two
    convolutions at each resolution and instance norms, for 1 to 3 axes. Takes and returns what
    `AxialForSemanticSegmentation` does. Masked pixels are read as they are, zeros as the processor makes them.
    """

    config_class = UNetConfig
    base_model_prefix = "unet"
    main_input_name = "pixel_values"

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        try:
            from monai.networks.nets import UNet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the U-Net is that of monai: pip install 'modeling-axial[segmentation]'"
            ) from error

        halvings = len(config.widths) - 1
        self.unet = UNet(
            config.num_axes, config.num_channels, config.num_labels, config.widths, (2,) * halvings, num_res_units=2
        )
        self.whole = (2**halvings,) * config.num_axes
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Those that MONAI has given."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SemanticSegmenterOutput:
        logits = cut(self.unet(pad_to_patches(pixel_values, self.whole)), pixel_values.shape[2:])
        loss = None if labels is None else segmentation_loss(labels, logits, self.config)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


def unet_for(config: AxialConfig, num_parameters: int) -> UNetForSemanticSegmentation:
    """The U-Net for the data of a model with about `num_parameters`; `ValueError` where there is none."""
    if config.num_axes > 3:
        raise ValueError(f"--peer=unet exists for 1 to 3 axes, the model has {config.num_axes}")

    def make(widths: Sequence[int]) -> UNetForSemanticSegmentation:
        return UNetForSemanticSegmentation(
            UNetConfig(
                num_axes=config.num_axes,
                num_channels=config.num_channels,
                widths=widths,
                semantic_loss_ignore_index=config.semantic_loss_ignore_index,
                class_weights=config.class_weights,
                dice_loss_weight=config.dice_loss_weight,
                id2label=config.id2label,
                label2id=config.label2id,
            )
        )

    return equally_large_unet(make, num_parameters)
