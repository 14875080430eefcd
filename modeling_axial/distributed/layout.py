"""How a grid lies on the ranks between attentions, and during attention along the axis that is split."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..layer_context import LayerContext
from .switching import gather, shard_sizes, shard_slice, switch


class Layout:
    """How the grid of one forward pass lies on the ranks: at home along the split axis, switched along another one.

    `shape`: of the whole hidden states (B, *grid, hidden_size). The axis that is split when switched is the longest of
    the others. `periodic`: whether the split axis is.
    """

    def __init__(self, shape: torch.Size, axis: int, periodic: bool, group: dist.ProcessGroup):
        self.periodic = periodic
        self.group, self.rank, world_size = group, dist.get_rank(group), dist.get_world_size(group)
        self.dim = axis + 1
        self.other_dim = max((dim for dim in range(1, len(shape) - 1) if dim != self.dim), key=shape.__getitem__)
        self.sizes = shard_sizes(shape[self.dim], world_size)
        self.other_sizes = shard_sizes(shape[self.other_dim], world_size)
        self.given_context: LayerContext | None = None
        self.home_context = self.switched_context = LayerContext()

    def part(self, states: Tensor, dim: int) -> Tensor:
        """This rank's part along the dim of the home or of the switched layout, without holding on to the rest."""
        own = shard_slice(states.shape[dim], self.rank, len(self.sizes))
        return states.narrow(dim, own.start, own.stop - own.start).clone(memory_format=torch.contiguous_format)

    def take(self, context: LayerContext) -> LayerContext:
        """The context of this rank's part at home; from now on that of the switched layout is known, too."""
        if context is not self.given_context:
            home, self.switched_context = self.contexts(context)
            # The ends of a part do not meet: neighbours are fetched.
            self.home_context = home._replace(cropped_axes=(*context.cropped_axes, self.dim - 1))
            self.given_context = context
        return self.home_context

    def contexts(self, context: LayerContext) -> tuple[LayerContext, LayerContext]:
        """Of this rank's part at home and when switched, from that of the whole grid."""
        if context.mask is None:
            return context, context
        home, switched = self.masks(context.mask)
        return context._replace(mask=home), context._replace(mask=switched)

    def masks(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of this rank's part at home and when switched, from that of the whole grid."""
        return self.part(mask, self.dim), self.part(mask, self.other_dim)

    @property
    def wraps(self) -> bool:
        """Whether the ends of the split axis meet."""
        return self.periodic and self.given_context is not None and self.dim - 1 not in self.given_context.cropped_axes

    def gather(self, states: Tensor) -> Tensor:
        return gather(states, self.dim, self.sizes, self.group)

    def to_switched(self, states: Tensor) -> Tensor:
        return switch(states, self.other_dim, self.other_sizes, self.dim, self.sizes, self.group)

    def to_home(self, states: Tensor) -> Tensor:
        return switch(states, self.dim, self.sizes, self.other_dim, self.other_sizes, self.group)


class PreparedLayout(Layout):
    """The layout of a grid of which each rank embeds its part, and what depends on the whole is made elsewhere.

    `prepared`: what the mixers of the split axis have prepared, of the whole axis; `closed`: whether its ends meet.
    """

    def __init__(self, *arguments: Any, prepared: Any, closed: bool):
        super().__init__(*arguments)
        self.prepared, self.closed = prepared, closed

    def contexts(self, context: LayerContext) -> tuple[LayerContext, LayerContext]:
        prepared = tuple(self.prepared if dim == self.dim else each for dim, each in enumerate(context.prepared, 1))
        return super().contexts(context._replace(prepared=prepared))

    @property
    def wraps(self) -> bool:
        return self.closed


class LocalLayout(PreparedLayout):
    """The layout of a grid of which each rank is given its part, the mask too, and no rank ever holds the whole."""

    def masks(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        return mask, self.to_switched(mask.to(torch.uint8)).bool()
