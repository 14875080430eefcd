"""Pixels to tokens that know where they are."""

import torch
from torch import nn

from .configuration_axial import AxialConfig
from .masks import clear_masked
from .patch_embeddings import AxialPatchEmbeddings
from .position_embeddings import AxisCells, add_grid_positions


class AxialEmbeddings(nn.Module):
    """Pixels to positioned tokens: (B, C, *pixels) -> (B, *grid, hidden_size).

    `mask`: boolean (B, *grid). `cells`: for each axis, where positions come from outside. `added`: added to the patches
    before their positions.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.patch_embeddings = AxialPatchEmbeddings(config)
        self.position_names = add_grid_positions(self, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        mask: torch.Tensor | None = None,
        cells: tuple[AxisCells, ...] | None = None,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_states = self.patch_embeddings(pixel_values, mask)
        if added is not None:
            hidden_states = hidden_states + clear_masked(added, mask)
        for name in self.position_names:
            hidden_states = self.get_submodule(name)(hidden_states, mask, cells)
        return self.dropout(hidden_states)
