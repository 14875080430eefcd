"""Attention for sets: an axis mixed through a few inducing points, and a grid pooled by a few seeds.

Both are due to the Set Transformer (Lee et al. 2019, arXiv 1810.00825): ISAB and PMA. How this differs from the paper:
norms stand before what they feed and residuals around the attention, as everywhere in this package; scores are scaled
by the width of a head and not of the whole layer; padding is masked; and the feed-forward behind an induced attention
is that of the layer it stands in.
"""

import torch
from torch import nn

from .attention import AxialCrossAttention
from .configuration_axial import AxialConfig
from .feed_forward import AxialMLP
from .masks import clear_masked


class InducedAxialAttention(nn.Module):
    """Attention along one axis by way of m learned points: (B, *G, hidden_size) -> the same.

    p = points + Attention(points, h), then Attention(h, norm(p)), for each line along the axis: m · L scores instead of
    L². Without positions on that axis it is equivariant to permutations along it; rotary positions do not apply to it.
    """

    def __init__(self, config: AxialConfig, axis: int, num_points: int):
        super().__init__()
        self.axis = axis
        self.points = nn.Parameter(torch.empty(num_points, config.hidden_size))
        self.points_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gather = AxialCrossAttention(config, axis)
        self.induced_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.scatter = AxialCrossAttention(config, axis)

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        rotations: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None,
        output_attentions: bool = False,
    ) -> torch.Tensor:
        """`mask`: boolean (B, *G), False cells are read by no point. `rotations` is accepted and has no use here."""
        faster_axes = [1] * (hidden_states.dim() - self.axis - 3)
        points = self.points.view(*[1] * (self.axis + 1), -1, *faster_axes, self.points.shape[-1])
        gathered = self.gather(self.points_norm(points), hidden_states, mask=mask, output_attentions=output_attentions)
        return self.scatter(hidden_states, self.induced_norm(points + gathered), output_attentions=output_attentions)


class AttentionPooling(nn.Module):
    """The whole grid pooled by k learned seeds: (B, *G, hidden_size) -> (B, k · hidden_size).

    s = seeds + Attention(seeds, h) over all cells, then norm(s + mlp(norm(s))), the seeds side by side. Invariant to
    permutations of the cells, for a grid of any size, k · N scores for N cells.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.seeds = nn.Parameter(torch.empty(config.num_pooling_seeds, config.hidden_size))
        self.seeds_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AxialCrossAttention(config, axis=0)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AxialMLP(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`mask`: boolean (B, *G), False cells do not count."""
        mask = None if mask is None else mask.flatten(1)
        cells = clear_masked(hidden_states.flatten(1, -2), mask)
        seeds = self.seeds[None]
        pooled = seeds + self.attention(self.seeds_norm(seeds), cells, mask=mask)
        pooled = pooled + self.mlp(self.mlp_norm(pooled))
        return self.norm(pooled).flatten(1)
