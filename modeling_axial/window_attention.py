"""Attention along one axis within a window: a cell reads the cells at most so far from it.

A line is cut into blocks, and each block reads itself and what is in reach of it, so that the cost grows with the
length of the line and not with its square.
"""

from typing import Any, NamedTuple

import torch

from .attention import AxialAttentionCore, AxialSelfAttention
from .configuration_strict import AxisDescription, BlockConfig
from .layer_context import NO_CONTEXT, LayerContext
from .position_embeddings import AxisCells, prepare_line


class WindowBlocks(NamedTuple):
    """How lines are cut: block i holds the cells i · size, i · size + 1, ..., the last one some beyond the end."""

    queries: torch.Tensor  # (blocks, size): the cells of each block, the last one again beyond the end
    keys: torch.Tensor  # (blocks, keys): the cells that it reads
    allowed: torch.Tensor  # (blocks, size, keys): which of them each of its cells reads


def window_blocks(length: int, window: int, wraps: bool, device: torch.device) -> WindowBlocks:
    """Blocks of a line in which each cell reads those at most `window` from it, across the ends if it `wraps`."""
    size = block_size(length, window)
    # An exported graph keeps its sizes open: comparisons would close them, as would a number of blocks that may be 1.
    blocks = length // size + 2 if torch.compiler.is_exporting() else -(-length // size)
    first = torch.arange(blocks, device=device)[:, None] * size
    queries = first + torch.arange(size, device=device)
    if not torch.compiler.is_exporting() and size == length:
        offsets = queries[:, None, :] - queries[:, :, None]
        if wraps:
            offsets = (offsets + length // 2) % length - length // 2
        return WindowBlocks(queries, queries, offsets.abs() <= window)
    keys = first + torch.arange(-window, size + window, device=device)
    offsets = keys[:, None, :] - queries[:, :, None]
    allowed = offsets.abs() <= window
    if wraps:
        # Where the window is longer than the line, a cell would be read twice.
        allowed = allowed & (2 * offsets >= -length) & (2 * offsets < length)
        keys = keys % torch.full_like(keys[:1, :1], length)  # as a tensor: ONNX has no remainder by an open size
    else:
        allowed, keys = allowed & ((keys >= 0) & (keys < length))[:, None, :], keys.clamp(0, length - 1)
    return WindowBlocks(queries.clamp(max=length - 1), keys, allowed)


def block_size(length: int, window: int) -> int:
    """Cells of a block; all of the line where blocks would not pay."""
    # Measured (CPU, 6 heads of 32 channels): blocks of 16 and of 64 need 0.9 to 1.2 times the time. Against a mask over
    # whole lines they need 0.9 to 1.0 times at half of the line read, 0.7 to 0.8 at a quarter, 0.3 at a tenth.
    size = max(window, 32)
    return size if torch.compiler.is_exporting() or 2 * (size + 2 * window) <= length else length


def window_of(axis: AxisDescription) -> int:
    """How far a cell reads; raises `ValueError` where that is not said."""
    if axis.attention_window is None:
        raise ValueError(
            f"attention_window must be given for axis {axis.axis}, which is None: give it a number of cells, or take "
            "another mixer."
        )
    return axis.attention_window


class WindowAttentionCore(AxialAttentionCore):
    """`AxialAttentionCore` in blocks: the maps are those of whole lines, zero outside of the window."""

    def __init__(self, config: BlockConfig, axis: int):
        super().__init__(config, axis + 1)  # that of the cells in a block, behind that of the blocks

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        pairs: Any = None,
        **options: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`pairs`: the `WindowBlocks` of the lines. `options`: as in `AxialAttentionCore`."""
        blocks: WindowBlocks = pairs
        dim, length = self.axis, query.shape[self.axis]  # as an axis it follows the blocks, as a dim the batch
        num_blocks = blocks.allowed.shape[0]
        pairs_shape = (*[1] * dim, num_blocks, 1)
        output, weights = super().forward(
            take_blocks(query, dim, blocks.queries),
            take_blocks(key, dim, blocks.keys),
            take_blocks(value, dim, blocks.keys),
            None if mask is None else take_blocks(mask, dim, blocks.keys),
            None if bias is None else bias.reshape(-1, *pairs_shape[1:-1], *bias.shape[2:]),
            blocks.allowed.view(*pairs_shape, *blocks.allowed.shape[1:]),
            **options,
        )
        output = output.flatten(dim, dim + 1).index_select(dim, torch.arange(length, device=output.device))
        if weights is not None:
            faster = query.shape[dim + 1 : -2].numel()
            weights = weights.unflatten(0, (-1, num_blocks, faster)).movedim(1, 3)  # (lines, faster, N, blocks, ...)
            lines = weights.new_zeros(*weights.shape[:-1], length)
            lines = lines.scatter_add(-1, blocks.keys[:, None, :].expand_as(weights), weights)
            weights = lines.flatten(3, 4).narrow(3, 0, length).flatten(0, 1)
        return output, weights


def take_blocks(states: torch.Tensor, dim: int, cells: torch.Tensor) -> torch.Tensor:
    """The cells (blocks, keys) along `dim`, which becomes two: blocks and keys."""
    return states[(*[slice(None)] * dim, cells)]


class WindowedAxialAttention(AxialSelfAttention):
    """Multi-head self-attention along one grid axis, each cell reading those at most `attention_window` from it."""

    def make_core(self, config: BlockConfig, axis: int, is_causal: bool) -> AxialAttentionCore:
        return WindowAttentionCore(config, axis)

    @staticmethod
    def prepare(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> tuple[WindowBlocks, tuple[Any, ...]]:
        length = cells.positions.shape[-1]
        blocks = window_blocks(length, window_of(axis), cells.wraps, cells.positions.device)
        return blocks, prepare_line(config, axis, cells._replace(queries=blocks.queries, keys=blocks.keys))

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        blocks, prepared = self.prepared(hidden_states, context)
        return self.attend(hidden_states, hidden_states, context, self.with_prepared(prepared), blocks)


class MaskedWindowAttention(WindowedAxialAttention):
    """`WindowedAxialAttention` as a mask over whole lines: causal too, and where lines come one position at a time."""

    def make_core(self, config: BlockConfig, axis: int, is_causal: bool) -> AxialAttentionCore:
        return AxialAttentionCore(config, axis, is_causal)

    @staticmethod
    def prepare(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> Any:
        """Which queries and keys may meet, (1, queries, keys), and what the positions prepare."""
        return cells.counted.distances.abs() <= window_of(axis), prepare_line(config, axis, cells)
