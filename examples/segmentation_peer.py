"""Networks of convolutions to compare with, MONAI's: a U-Net, and one that keeps the resolution."""

from collections.abc import Callable, Sequence

import torch
from peers import equally_large, equally_large_unet, size_difference
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling_axial import AxialConfig
from modeling_axial.dense_losses import segmentation_loss
from modeling_axial.modeling_axial_dense import cut, pad_to_patches


class ConvolutionsConfig(PreTrainedConfig):
    """
    Args:
        num_axes, num_channels, semantic_loss_ignore_index, class_weights, dice_loss_weight: as in `AxialConfig`.
        widths: channels inside, as the network says.
    """

    default_widths: Sequence[int] = ()

    def __init__(
        self,
        num_axes: int = 2,
        num_channels: int = 1,
        widths: Sequence[int] | None = None,
        semantic_loss_ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        dice_loss_weight: float = 0.0,
        **kwargs,
    ):
        self.num_axes, self.num_channels = num_axes, num_channels
        self.widths = list(self.default_widths if widths is None else widths)
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.class_weights, self.dice_loss_weight = class_weights, dice_loss_weight
        super().__init__(**kwargs)


class UNetConfig(ConvolutionsConfig):
    """`widths`: channels at full, half and quarter resolution."""

    model_type = "monai_unet"
    default_widths = (16, 32, 64)


class HighResNetConfig(ConvolutionsConfig):
    """`widths`: channels of the first three convolutions, and of those behind them, at least as many."""

    model_type = "monai_highresnet"
    default_widths = (16, 16)


class ConvolutionsForSemanticSegmentation(PreTrainedModel):
    """
    Base of a network of MONAI's for 1 to 3 axes. Takes and returns what `AxialForSemanticSegmentation` does. Masked
    pixels are read as they are, zeros as the processor makes them.
    """

    base_model_prefix = "network"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvolutionsConfig):
        super().__init__(config)
        try:
            self.network = self.make_network(config)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "networks of convolutions are those of monai: pip install 'modeling-axial[segmentation]'"
            ) from error
        self.whole = (self.pixels_of_a_cell(config),) * config.num_axes
        self.post_init()

    def make_network(self, config: ConvolutionsConfig) -> nn.Module:
        """(B, num_channels, *pixels) -> (B, num_labels, *pixels)"""
        raise NotImplementedError

    def pixels_of_a_cell(self, config: ConvolutionsConfig) -> int:
        """What must divide the pixels of each axis, at the lowest resolution."""
        return 1

    def _init_weights(self, module: nn.Module) -> None:
        """Those that MONAI has given."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SemanticSegmenterOutput:
        logits = cut(self.network(pad_to_patches(pixel_values, self.whole)), pixel_values.shape[2:])
        loss = None if labels is None else segmentation_loss(labels, logits, self.config)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class UNetForSemanticSegmentation(ConvolutionsForSemanticSegmentation):
    """
    MONAI's residual U-Net (Kerfoot et al. 2019, after Ronneberger et al. 2015, arXiv 1505.04597) with two halvings, two
    convolutions at each resolution and instance norms.
    """

    config_class = UNetConfig

    def make_network(self, config: ConvolutionsConfig) -> nn.Module:
        from monai.networks.nets import UNet

        strides = (2,) * (len(config.widths) - 1)
        return UNet(config.num_axes, config.num_channels, config.num_labels, config.widths, strides, num_res_units=2)

    def pixels_of_a_cell(self, config: ConvolutionsConfig) -> int:
        return 2 ** (len(config.widths) - 1)


class HighResNetForSemanticSegmentation(ConvolutionsForSemanticSegmentation):
    """
    MONAI's network of residual convolutions at full resolution (Li et al. 2017, arXiv 1707.01992) with batch norms: a
    convolution, two residual ones, two residual ones of every other pixel, and three of single pixels. A pixel reads
    those up to 7 away.
    """

    config_class = HighResNetConfig

    def make_network(self, config: ConvolutionsConfig) -> nn.Module:
        from monai.networks.blocks import Convolution
        from monai.networks.nets import HighResNet

        first, last = config.widths
        layers = (
            {"n_features": first, "kernel_size": 3},
            {"n_features": first, "kernels": (3, 3), "repeat": 1},
            {"n_features": last, "kernels": (3, 3), "repeat": 1},
            {"n_features": last, "kernel_size": 1},
            {"kernel_size": 1},
        )
        features = HighResNet(config.num_axes, config.num_channels, last, layer_params=layers)
        # Its own end is a norm and a ReLU, where logits are to be any numbers.
        logits = Convolution(config.num_axes, last, config.num_labels, kernel_size=1, conv_only=True)
        return nn.Sequential(features, logits)


def make_peer(name: str, config: AxialConfig, num_parameters: int) -> ConvolutionsForSemanticSegmentation:
    """
    The network "unet" or "highresnet" for the data of a model, with about `num_parameters`; `ValueError` where there is
    none.
    """
    if config.num_axes > 3:
        raise ValueError(f"--peer={name} exists for 1 to 3 axes, the model has {config.num_axes}")
    config_class, peer_class = {
        "unet": (UNetConfig, UNetForSemanticSegmentation),
        "highresnet": (HighResNetConfig, HighResNetForSemanticSegmentation),
    }[name]

    def make(widths: Sequence[int]) -> ConvolutionsForSemanticSegmentation:
        return peer_class(
            config_class(
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

    equally_large_one = equally_large_unet if name == "unet" else equally_large_highresnet
    return equally_large_one(make, num_parameters)


def equally_large_highresnet(make: Callable[[Sequence[int]], PreTrainedModel], num_parameters: int) -> PreTrainedModel:
    """As `equally_large_unet`, with two widths that differ by 1 at most."""
    width = 1
    while size_difference(make, (width + 1, width + 1), num_parameters) <= 0:
        width += 1
    between = [(width, width), (width, width + 1), (width + 1, width + 1)]
    return equally_large(make, between, num_parameters, "HighResNet")
