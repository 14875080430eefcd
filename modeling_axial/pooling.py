"""A grid summed up: (B, *grid, hidden_size) to one vector per sample, whatever the size of the grid.

Each class takes a boolean mask (B, *grid), and cells that are False there do not count.
"""

import torch
from torch import nn

from .attention import AxialCrossAttention
from .configuration_axial import AxialConfig
from .feed_forward import AxialMLP
from .layer_context import LayerContext
from .masks import clear_masked


def sum_and_count(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | int]:
    """The sum over the cells of each sample (B, hidden_size), in at least float32, and their number: an int, or (B, 1).

    Those of the parts of a grid add up to those of the whole.
    """
    cells, counted = hidden_states.flatten(1, -2), None if mask is None else mask.flatten(1)
    # float16 ends at 65,504, which a sum over a large grid, or the number of its cells, exceeds.
    total = clear_masked(cells, counted).sum(1, dtype=torch.promote_types(cells.dtype, torch.float32))
    return total, cells.shape[1] if counted is None else counted.sum(1, keepdim=True)


class MeanPooling(nn.Module):
    """The mean over the grid: (B, *grid, hidden_size) -> (B, hidden_size), zeros where no cell counts."""

    def __init__(self, config: AxialConfig):
        super().__init__()

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        total, count = sum_and_count(hidden_states, mask)
        if isinstance(count, torch.Tensor):
            count = count.clamp(min=1)
        return (total / count).to(hidden_states.dtype)


class AttentionPooling(nn.Module):
    """The whole grid pooled by k learned seeds: (B, *G, hidden_size) -> (B, k · hidden_size).

    s = seeds + Attention(seeds, h) over all cells, then norm(s + mlp(norm(s))), the seeds side by side. Invariant to
    permutations of the cells, for a grid of any size, k · N scores for N cells. Due to the Set Transformer (Lee et al.
    2019, arXiv 1810.00825), as PMA; how it differs is in `set_attention.py`.
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
        mask = None if mask is None else mask.flatten(1)
        cells = clear_masked(hidden_states.flatten(1, -2), mask)
        seeds = self.seeds[None]
        pooled = seeds + self.attention(self.seeds_norm(seeds), cells, LayerContext(mask=mask))
        pooled = pooled + self.mlp(self.mlp_norm(pooled))
        return self.norm(pooled).flatten(1)


POOLING_CLASSES = {"mean": MeanPooling, "attention": AttentionPooling}
