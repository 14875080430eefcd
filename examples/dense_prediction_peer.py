"""A U-Net of convolutions to compare with, which goes on across the ends of periodic axes."""

from collections.abc import Sequence

import torch
from peers import equally_large_unet
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_axial import AxialConfig
from modeling_axial.dense_losses import prediction_loss
from modeling_axial.modeling_axial_dense import DensePredictionOutput

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class CircularUNetConfig(PreTrainedConfig):
    """
    Args:
        num_channels, num_target_channels, prediction_loss: as in `AxialConfig`.
        periodic: for each axis whether its ends meet.
        widths: channels at full, half and quarter resolution.
    """

    model_type = "circular_unet"

    def __init__(
        self,
        num_channels: int = 1,
        num_target_channels: int = 1,
        periodic: Sequence[bool] = (False, True),
        widths: Sequence[int] = (8, 16, 32),
        prediction_loss: str = "squared",
        **kwargs,
    ):
        self.num_channels, self.num_target_channels = num_channels, num_target_channels
        self.periodic, self.widths = list(periodic), list(widths)
        self.prediction_loss = prediction_loss
        super().__init__(**kwargs)


class CircularConvolution(nn.Module):
    """3-wide, (B, in_channels, *pixels) to (B, out_channels, *pixels); beyond an edge lie zeros, or the other end."""

    def __init__(self, config: CircularUNetConfig, in_channels: int, out_channels: int):
        super().__init__()
        periodic = config.periodic[::-1]  # padding is given for the last axis first
        self.circle = [int(meet) for meet in periodic for _ in range(2)]
        self.zeros = [int(not meet) for meet in periodic for _ in range(2)]
        self.convolution = CONVOLUTIONS[len(periodic) - 1](in_channels, out_channels, 3)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.convolution(F.pad(F.pad(states, self.zeros), self.circle, mode="circular"))


class Block(nn.Module):
    """Twice a convolution, with a norm and an activation before each, beside a linear way around."""

    def __init__(self, config: CircularUNetConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, in_channels), nn.GroupNorm(1, out_channels)
        self.conv1 = CircularConvolution(config, in_channels, out_channels)
        self.conv2 = CircularConvolution(config, out_channels, out_channels)
        self.around = CONVOLUTIONS[len(config.periodic) - 1](in_channels, out_channels, 1)
        self.activation = nn.GELU()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(self.activation(self.norm1(states)))
        return self.around(states) + self.conv2(self.activation(self.norm2(inner)))


class CircularUNet(PreTrainedModel):
    """
    The U-Net of Ronneberger et al. 2015 (arXiv 1505.04597) with two halvings and residual blocks: takes and returns
    what `AxialForDensePrediction` does, for 1 to 3 axes. Masked pixels are read as they are, zeros as the processor
    makes them. A periodic axis with an odd number of pixels is not halved.
    """

    config_class = CircularUNetConfig
    base_model_prefix = "unet"
    main_input_name = "pixel_values"

    def __init__(self, config: CircularUNetConfig):
        super().__init__(config)
        full, half, quarter = config.widths
        self.stem = CircularConvolution(config, config.num_channels, full)
        self.down = nn.ModuleList([Block(config, full, full), Block(config, full, half)])
        self.bottom = Block(config, half, quarter)
        self.up = nn.ModuleList([Block(config, quarter + half, half), Block(config, half + full, full)])
        self.norm = nn.GroupNorm(1, full)
        self.pixel_predictor = CircularConvolution(config, full, config.num_target_channels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As PyTorch does; but what has learnt nothing is to predict nearly nothing, as `AxialForDensePrediction`."""
        if module is self.pixel_predictor:
            nn.init.normal_(module.convolution.weight, std=0.02)
            nn.init.zeros_(module.convolution.bias)

    def halve(self, states: torch.Tensor) -> torch.Tensor:
        """Means of two pixels along each axis; the last of an odd number stands alone."""
        sizes = states.shape[2:]
        steps = [1 if meet and size % 2 else 2 for size, meet in zip(sizes, self.config.periodic, strict=True)]
        return POOLS[len(sizes) - 1](states, steps, ceil_mode=True, count_include_pad=False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_mask: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
    ) -> DensePredictionOutput:
        states, kept = self.stem(pixel_values), []
        for block in self.down:
            states = block(states)
            kept.append(states)
            states = self.halve(states)
        states = self.bottom(states)
        for block in self.up:
            skip = kept.pop()
            states = F.interpolate(states, size=skip.shape[2:], mode="nearest")
            states = block(torch.cat([states, skip], dim=1))
        prediction = self.pixel_predictor(F.gelu(self.norm(states)))
        loss = None
        if labels is not None:
            loss = prediction_loss(labels, prediction, self.config, loss_mask=loss_mask, loss_weights=loss_weights)
        return DensePredictionOutput(loss=loss, prediction=prediction)


def unet_for(config: AxialConfig, num_parameters: int) -> CircularUNet:
    """The U-Net for the data of a model with about `num_parameters`; `ValueError` where there is none."""
    if config.num_axes > len(CONVOLUTIONS):
        raise ValueError(f"--peer=unet exists for 1 to {len(CONVOLUTIONS)} axes, the model has {config.num_axes}")

    def make(widths: Sequence[int]) -> CircularUNet:
        return CircularUNet(
            CircularUNetConfig(
                num_channels=config.num_channels,
                num_target_channels=config.num_target_channels,
                periodic=[axis.periodic for axis in config.axes],
                widths=widths,
                prediction_loss=config.prediction_loss,
            )
        )

    return equally_large_unet(make, num_parameters)
