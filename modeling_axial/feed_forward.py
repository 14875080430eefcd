"""What happens at each cell, or its close neighbourhood, between attentions: (B, *grid, hidden_size) to the same.

Each class takes a boolean mask (B, *grid), and where a cell reads its neighbours, it reads none that is False there.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_axial import AxialConfig
from .masks import clear_masked


class AxialMLP(nn.Module):
    """fc2(act(fc1(h))), cell by cell."""

    def __init__(self, config: AxialConfig):
        super().__init__()
        width: int = config.intermediate_size  # pyrefly: ignore[bad-assignment]  the config has set it
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class AxialGatedMLP(nn.Module):
    """down(act(gate(h)) · up(h)), cell by cell (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: AxialConfig):
        super().__init__()
        width: int = config.intermediate_size  # pyrefly: ignore[bad-assignment]  the config has set it
        self.gate_proj = nn.Linear(config.hidden_size, width)
        self.up_proj = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class AxialConvolutionFeedForward(nn.Module):
    """3-wide convolution up, activation, 3-wide convolution back, over 1 to 3 axes, zero-padded (the seed's).

    Cells that are masked count as what lies beyond the edge: as zeros, for both convolutions.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        width: int = config.intermediate_size  # pyrefly: ignore[bad-assignment]  the config has set it
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[config.num_axes - 1]
        self.conv1 = convolution(config.hidden_size, width, kernel_size=3, padding=1)
        self.activation = ACT2FN[config.hidden_act]
        self.conv2 = convolution(width, config.hidden_size, kernel_size=3, padding=1)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        inner = self.activation(self.conv1(clear_masked(hidden_states, mask).movedim(-1, 1)))
        return self.conv2(clear_masked(inner.movedim(1, -1), mask).movedim(-1, 1)).movedim(1, -1)


FEED_FORWARD_CLASSES = {
    "mlp": AxialMLP,
    "gated_mlp": AxialGatedMLP,
    "convolution": AxialConvolutionFeedForward,
}
