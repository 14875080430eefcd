"""Attention for sets: an axis mixed through a few inducing points.

It is due to the Set Transformer (Lee et al. 2019, arXiv 1810.00825), as ISAB. How this differs from the paper: norms
stand before what they feed and residuals around the attention, as everywhere in this package; scores are scaled by the
width of a head and not of the whole layer; padding is masked; and the feed-forward behind an induced attention is that
of the layer it stands in.
"""

import torch
from torch import nn

from .attention import AxialCrossAttention
from .axis_module import AxisModule
from .configuration_strict import BlockConfig
from .layer_context import NO_CONTEXT, LayerContext


class InducedAxialAttention(AxisModule):
    """Attention along one axis by way of m learned points: (B, *G, hidden_size) -> the same.

    p = points + Attention(points, h), then Attention(h, norm(p)), for each line along the axis: m · L scores instead of
    L². Without positions on that axis it is equivariant to permutations along it; of positions only those added to the
    grid apply to it.
    """

    def __init__(self, config: BlockConfig, axis: int):
        super().__init__(config, axis)
        num_points, num_heads = self.description.num_inducing_points, self.description.num_heads
        if num_points is None:
            raise ValueError(
                f"num_inducing_points must be given for axis {axis}, which is None: give it a number of points, or "
                "take another mixer."
            )
        self.points = nn.Parameter(torch.empty(num_points, config.hidden_size))
        self.points_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gather = AxialCrossAttention(config, axis, num_heads=num_heads)
        self.induced_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.scatter = AxialCrossAttention(config, axis, num_heads=num_heads)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        """Cells that are False in the mask are read by no point."""
        faster_axes = [1] * (hidden_states.dim() - self.axis - 3)
        points = self.points.view(*[1] * (self.axis + 1), -1, *faster_axes, self.points.shape[-1])
        gathered = self.gather(self.points_norm(points), hidden_states, context)
        return self.scatter(hidden_states, self.induced_norm(points + gathered), context._replace(mask=None))
