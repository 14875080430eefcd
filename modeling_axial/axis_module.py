"""What works along one axis of a grid, and what such modules of all layers share."""

from typing import Any

import torch
from torch import nn

from .configuration_strict import AxisDescription, BlockConfig
from .layer_context import LayerContext
from .position_embeddings import AxisCells, cells_of_axis


class AxisModule(nn.Module):
    """Base of what works along one axis, each line along it a sequence of its own.

    A mixer, as `MIXER_CLASSES` names them, is one whose forward takes (hidden_states, context): (B, *grid, hidden_size)
    to the same shape, where cells that are False in `context.mask` are read by no other.
    """

    def __init__(self, config: BlockConfig, axis: int):
        super().__init__()
        self.config = config
        self.axis = axis
        self.description = config.axes[axis]

    @staticmethod
    def prepare(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> Any:
        """What the mixers of an axis share in all layers, made once per forward pass."""
        return None

    def prepared(self, hidden_states: torch.Tensor, context: LayerContext) -> Any:
        """What `prepare` has made, once for the model or, for a layer alone, now."""
        if context.prepared:
            return context.prepared[self.axis]
        return self.prepare(self.config, self.description, cells_of_axis(self.description, hidden_states, context))
