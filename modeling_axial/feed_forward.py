"""What happens at each cell, or its close neighbourhood, between attentions: (B, *grid, hidden_size) to the same.

Each class takes what the layers share, and where a cell reads its neighbours, it reads none that is False in the mask.
Its `last_projection` is the layer that its output comes from, so that a model may start with that near zero.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_strict import BlockConfig
from .grid import unwrap, wrap
from .layer_context import NO_CONTEXT, LayerContext
from .masks import clear_masked


def make_convolution(num_axes: int, in_channels: int, out_channels: int) -> nn.Module:
    """3 wide along each of 1 to 3 axes, zero-padded, for `convolve`."""
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[num_axes - 1](in_channels, out_channels, kernel_size=3, padding=1)


def convolve(
    convolution: nn.Module, hidden_states: torch.Tensor, context: LayerContext, periodic_axes: Sequence[int]
) -> torch.Tensor:
    """A convolution of (B, *grid, channels), of zeros in masked cells.

    Across the ends of a periodic axis it goes on, unless the grid is a part of it only.
    """
    closed_axes = [axis for axis in periodic_axes if axis not in context.cropped_axes]
    cells = wrap(clear_masked(hidden_states, context.mask), closed_axes)
    return unwrap(convolution(cells.movedim(-1, 1)).movedim(1, -1), closed_axes)


class AxialMLP(nn.Module):
    """fc2(act(fc1(h))), cell by cell."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))

    @property
    def last_projection(self) -> nn.Module:
        return self.fc2


class AxialGatedMLP(nn.Module):
    """down(act(gate(h)) · up(h)), cell by cell (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))

    @property
    def last_projection(self) -> nn.Module:
        return self.down_proj


class AxialConvolutionFeedForward(nn.Module):
    """3-wide convolution up, activation, 3-wide convolution back, over 1 to 3 axes, zero-padded.

    That of `axial_attention`. Cells that are masked count as what lies beyond the edge: as zeros, for both
    convolutions. Across the ends of a periodic axis they go on.
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        num_axes = len(config.axes)
        self.conv1 = make_convolution(num_axes, config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.conv2 = make_convolution(num_axes, config.intermediate_size, config.hidden_size)
        self.periodic_axes = [axis.axis for axis in config.axes if axis.periodic]

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        inner = convolve(self.conv1, hidden_states, context, self.periodic_axes).movedim(-1, 1)
        # Channels first again for the activation, of which the last bits may differ in another layout.
        return convolve(self.conv2, self.activation(inner).movedim(1, -1), context, self.periodic_axes)

    @property
    def last_projection(self) -> nn.Module:
        return self.conv2


FEED_FORWARD_CLASSES = {
    "mlp": AxialMLP,
    "gated_mlp": AxialGatedMLP,
    "convolution": AxialConvolutionFeedForward,
}
