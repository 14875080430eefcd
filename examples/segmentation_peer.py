"""Networks of convolutions to compare with, MONAI's: a U-Net, and one that keeps the resolution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        network: a name in `NETWORKS`.
        num_axes, num_channels, semantic_loss_ignore_index, class_weights, dice_loss_weight: as in `AxialConfig`.
        widths: channels inside, as the network says.
    """

    model_type = "monai_convolutions"

    def __init__(
        self,
        network: str = "unet",
        num_axes: int = 2,
        num_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        semantic_loss_ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        dice_loss_weight: float = 0.0,
        **kwargs,
    ):
        self.network, self.num_axes, self.num_channels, self.widths = network, num_axes, num_channels, list(widths)
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.class_weights, self.dice_loss_weight = class_weights, dice_loss_weight
        super().__init__(**kwargs)


def make_unet(config: ConvolutionsConfig) -> nn.Module:
    """
    MONAI's residual U-Net (Kerfoot et al. 2019, after Ronneberger et al. 2015, arXiv 1505.04597) with two halvings, two
    convolutions at each resolution and instance norms. `widths`: channels at full, half and quarter resolution.
    """
    from monai.networks.nets import UNet

    return UNet(config.num_axes, config.num_channels, config.num_labels, config.widths, (2, 2), num_res_units=2)


def make_highresnet(config: ConvolutionsConfig) -> nn.Module:
    """
    MONAI's network of residual convolutions at full resolution (Li et al. 2017, arXiv 1707.01992) with batch norms: a
    convolution, two residual ones, two residual ones of every other pixel, and three of single pixels. A pixel reads
    those up to 7 away. `widths`: channels of the first three, and of those behind them, at least as many.
    """
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


@dataclass(frozen=True)
class Network:
    """`make` from a configuration: (B, num_channels, *pixels) -> (B, num_labels, *pixels), which `cell` divides."""

    title: str
    make: Callable[[ConvolutionsConfig], nn.Module]
    cell: int


NETWORKS = {"unet": Network("U-Net", make_unet, 4), "highresnet": Network("HighResNet", make_highresnet, 1)}


class ConvolutionsForSemanticSegmentation(PreTrainedModel):
    """
    A network of MONAI's for 1 to 3 axes. Takes and returns what `AxialForSemanticSegmentation` does. Masked pixels are
    read as they are, zeros as the processor makes them.
    """

    config_class = ConvolutionsConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvolutionsConfig):
        super().__init__(config)
        kind = NETWORKS[config.network]
        try:
            self.network = kind.make(config)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the {kind.title} is that of monai: pip install 'modeling-axial[segmentation]'"
            ) from error
        self.whole = (kind.cell,) * config.num_axes
        self.post_init()

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


def make_peer(name: str, config: AxialConfig, num_parameters: int) -> ConvolutionsForSemanticSegmentation:
    """
    The network of that name for the data of a model, with about `num_parameters`; `ValueError` where there is none.
    """
    if config.num_axes > 3:
        raise ValueError(f"--peer={name} exists for 1 to 3 axes, the model has {config.num_axes}")

    def make(widths: Sequence[int]) -> ConvolutionsForSemanticSegmentation:
        return ConvolutionsForSemanticSegmentation(
            ConvolutionsConfig(
                network=name,
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

    return equally_large_unet(make, num_parameters) if name == "unet" else equally_wide(name, make, num_parameters)


def equally_wide(name: str, make: Callable[[Sequence[int]], PreTrainedModel], num_parameters: int) -> PreTrainedModel:
    """As `equally_large_unet`, with two widths that differ by 1 at most."""
    width = 1
    while size_difference(make, (width + 1, width + 1), num_parameters) <= 0:
        width += 1
    between = [(width, width), (width, width + 1), (width + 1, width + 1)]
    return equally_large(make, between, num_parameters, NETWORKS[name].title)
