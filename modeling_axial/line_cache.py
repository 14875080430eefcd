"""What causal attention keeps where a grid is given one position after the other: keys and values of lines."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .position_embeddings import AxisCells


class LineCache:
    """Keys and values of causal attention along one axis, that is given one position after the other.

    Set `position` before each; going back to 0 begins new lines.
    """

    def __init__(self, axis: int, length: int):
        self.axis = axis
        self.length = length
        self.position = 0
        self._kept: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        self._prepared: dict[int, Any] = {}

    def append(
        self, attention: nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keeps `key` and `value` (B, *grid, heads, head_dim), of length 1 along the axis, for this attention module.

        Returns views of all that it was given on these lines, at positions 0 to `position`, and no mask.
        """
        dim = self.axis + 1
        keys, values = self._find(attention, key, value)
        keys.narrow(dim, self.position, 1).copy_(key)
        values.narrow(dim, self.position, 1).copy_(value)
        return keys.narrow(dim, 0, self.position + 1), values.narrow(dim, 0, self.position + 1), None

    def select(self, cells: AxisCells) -> AxisCells:
        """Of all cells along the axis: the position that is given, which meets those whose keys come back."""
        keys = torch.arange(self.position + 1, device=cells.positions.device)
        newest = cells.positions.narrow(1, self.position, 1)
        return cells._replace(positions=newest, queries=keys[-1:], keys=keys, line=cells.positions)

    def prepare(self, make: Callable[[], Any]) -> Any:
        """What `make()` gives at this position, which is the same on all lines, and so made once."""
        if self.position not in self._prepared:
            self._prepared[self.position] = make()
        return self._prepared[self.position]

    def _find(self, attention: nn.Module, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if attention not in self._kept:
            dim = self.axis + 1
            shape = (*key.shape[:dim], self.length, *key.shape[dim + 1 :])
            # Zeros, as what a mask hides must still be finite.
            self._kept[attention] = key.new_zeros(shape), value.new_zeros(shape)
        return self._kept[attention]


class StaticLineCache(LineCache):
    """As `LineCache`, in tensors whose shape is the same at every position, as compilers want."""

    def __init__(self, axis: int, length: int, device: torch.device):
        self._positions = torch.arange(length, device=device)
        self.position_index = torch.zeros(1, dtype=torch.long, device=device)  # `position`, where code may be compiled
        super().__init__(axis, length)

    @property
    def position(self) -> int:
        return int(self.position_index)

    @position.setter
    def position(self, position: int) -> None:
        self.position_index.fill_(position)

    def append(
        self, attention: nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Returns whole lines, and a mask (length, *1) over the axis and those after it: what has been given."""
        keys, values = self._find(attention, key, value)
        keys.index_copy_(self.axis + 1, self.position_index, key)
        values.index_copy_(self.axis + 1, self.position_index, value)
        axes_after = [1] * (key.dim() - self.axis - 4)
        return keys, values, (self._positions <= self.position_index).view(-1, *axes_after)

    def select(self, cells: AxisCells) -> AxisCells:
        """Whose keys come back are those of whole lines."""
        newest = cells.positions.index_select(1, self.position_index)
        return cells._replace(positions=newest, queries=self.position_index, keys=self._positions, line=cells.positions)

    def prepare(self, make: Callable[[], Any]) -> Any:
        """What `make()` gives, which compiled code makes from the position."""
        return make()
