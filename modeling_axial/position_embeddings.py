"""Where a token is. A kind of position is added to the grid, turns queries and keys, or biases the scores.

A kind that acts on the grid before the first layer is a `GridPosition`, one that attention along an axis reads a
`LinePosition`; `POSITION_KINDS` names them. Positions are counted in cells, and may come from outside of the model.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from .configuration_strict import AxisDescription, BlockConfig
from .layer_context import NO_CONTEXT, LayerContext
from .masks import bounding_box, values_are_hidden


class AxisCells(NamedTuple):
    """Where the cells along an axis lie."""

    positions: torch.Tensor  # (1 or B, length), in cells
    period: float | None = None  # of a periodic axis: positions that differ by it are the same place
    # Which meet in attention, by their numbers on the line: (*blocks, queries) and (*blocks, keys), all by default.
    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    line: torch.Tensor | None = None  # the positions of the whole line, where those above are of a part of it

    @property
    def wraps(self) -> bool:
        """Whether the last cell stands before the first: all cells of a periodic axis are there."""
        return self.period is not None and self.positions.shape[-1] == self.period

    @property
    def counted(self) -> "AxisCells":
        """The same cells of a line that is no circle, counted from 0."""
        line = self.positions if self.line is None else self.line
        return AxisCells(count_cells(line.shape[-1], line), queries=self.queries, keys=self.keys)

    @property
    def distances(self) -> torch.Tensor:
        """From keys to queries, (1 or B, *blocks, queries, keys): by the shorter way round on periodic axes."""
        line = self.positions if self.line is None else self.line
        queries, keys = (line if cells is None else line[:, cells] for cells in (self.queries, self.keys))
        distances = queries[..., :, None] - keys[..., None, :]
        if self.period is None:
            return distances
        return (distances + self.period / 2).remainder(self.period) - self.period / 2


class GridPosition(nn.Module):
    """Base of a kind of position that changes the embedded grid, along the axes that have it."""

    name_in_embeddings: ClassVar[str]  # of the module, and so of its parameters

    def __init__(self, config: BlockConfig, axes: Sequence[int]):
        super().__init__()

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        cells: tuple[AxisCells, ...] | None = None,
    ) -> torch.Tensor:
        """(B, *grid, hidden_size) -> the same shape, for any grid lengths.

        `mask`: boolean (B, *grid). `cells`: for each axis, where positions come from outside.
        """
        raise NotImplementedError


class LinePosition(nn.Module):
    """Base of a kind of position that attention along an axis reads. Each part does nothing unless a class says so."""

    def __init__(self, config: BlockConfig, axis: AxisDescription):
        super().__init__()

    @staticmethod
    def prepare(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> Any:
        """What all layers share, made once per forward pass."""
        return None

    def turn(self, states: torch.Tensor, prepared: Any) -> torch.Tensor:
        """Queries or keys (B, *grid, heads, head_dim) -> the same shape."""
        return states

    def bias(self, prepared: Any) -> torch.Tensor | None:
        """What is added to the scores: (1 or B, *blocks, heads, queries, keys), or None."""
        return None


class LearnedPositionEmbedding(GridPosition):
    """Adds one learned vector per axis and coordinate: h[i, j, ...] + axis_0[i] + axis_1[j] + ...

    The tables `axis_0`, `axis_1`, ... are (length of the native grid, hidden_size). Positions from outside are rows of
    them, and are clamped at their ends. Without, the tables are spread over the grid at hand, or, under a mask, over
    the bounding box of the cells in use of each sample: a padded picture has the positions that it has alone, wherever
    it lies. At native size a cell gets its row exactly, elsewhere a linear mix of two. On a periodic axis the table is
    a circle, spread over the period, whatever the mask.

    `axes`: those that have a table, all by default.
    """

    name_in_embeddings = "position_embeddings"

    def __init__(self, config: BlockConfig, axes: Sequence[int] | None = None):
        axes = range(len(config.grid_shape)) if axes is None else axes
        super().__init__(config, axes)
        self.axes = tuple(axes)
        for axis in self.axes:
            table = nn.Parameter(torch.empty(config.grid_shape[axis], config.hidden_size))
            self.register_parameter(f"axis_{axis}", table)
        self.periodic_axes = {axis.axis for axis in config.axes if axis.periodic}

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        cells: tuple[AxisCells, ...] | None = None,
    ) -> torch.Tensor:
        grid_shape = hidden_states.shape[1:-1]
        boxes = None if mask is None or cells else bounding_box(mask)
        for axis in self.axes:
            # Not get_parameter, which refuses the plain tensors that functional_call puts in place of parameters.
            table, length = getattr(self, f"axis_{axis}"), grid_shape[axis]
            periodic = axis in self.periodic_axes
            if cells is not None:
                rows, period = cells[axis].positions, cells[axis].period
                rows = rows if period is None else rows * (table.shape[0] / period)
            else:
                box = (0, length) if boxes is None or periodic else boxes[axis]
                rows = spread_over(*box, length, table)
            vectors = read_table(table, rows, periodic)
            axes_after = [1] * (len(grid_shape) - axis - 1)
            hidden_states = hidden_states + vectors.view(-1, *[1] * axis, length, *axes_after, vectors.shape[-1])
        return hidden_states


def spread_over(
    first: int | torch.Tensor, extent: int | torch.Tensor, length: int, table: torch.Tensor
) -> torch.Tensor:
    """Where in a table each of `length` cells lies when the table is spread over `extent` cells from `first` on.

    Cell i lies at (i - first + 1/2) · rows / extent - 1/2: centres of cells on centres of rows. `first` and `extent`
    are numbers, or (B, 1); returns (1 or B, length), in rows, at least float32.
    """
    cells = count_cells(length, table)
    if isinstance(extent, torch.Tensor):  # of integers, whose quotients are float32
        extent = extent.to(cells)
    return (cells - first + 0.5) * (table.shape[0] / extent) - 0.5


def read_table(table: torch.Tensor, positions: torch.Tensor, periodic: bool = False) -> torch.Tensor:
    """Rows of a table (rows, hidden_size) at any positions (...), counted in rows: (..., hidden_size).

    Linear between two rows, exact at whole numbers, and the first or last row beyond the edges, or, if it is periodic,
    as if the table was repeated there. Made of gathers, whose backward has a deterministic form on every device.
    """
    return mix_rows(table, find_rows(table.shape[0], positions, periodic))


class TableRows(NamedTuple):
    """Between which rows of a table positions lie."""

    below: torch.Tensor
    above: torch.Tensor
    share: torch.Tensor  # of the row above


def find_rows(num_rows: int, positions: torch.Tensor, periodic: bool = False) -> TableRows:
    """The rows at positions (...), as `read_table` takes them."""
    last = num_rows - 1
    positions = positions.remainder(num_rows) if periodic else positions.clamp(0, last)
    below = positions.long().clamp(max=last)  # a remainder is rounded up to the divisor where it is closest to that
    above = below + 1
    above = above.remainder(num_rows) if periodic else above.clamp(max=last)
    return TableRows(below, above, positions - below)


def mix_rows(table: torch.Tensor, rows: TableRows) -> torch.Tensor:
    """What stands between these rows (...) of a table (rows, width): (..., width)."""
    wide = torch.promote_types(table.dtype, torch.float32)
    mixed = torch.lerp(table[rows.below].to(wide), table[rows.above].to(wide), rows.share[..., None].to(wide))
    return mixed.to(table.dtype)


def resample_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Linear resampling of a table (rows, hidden_size) to (length, hidden_size); exact if it has so many rows."""
    return read_table(table, spread_over(0, length, length, table))[0]


class RotaryPosition(LinePosition):
    """The rotary embedding (Su et al. 2021, arXiv 2104.09864).

    Position p turns the pair of channels k by p · rope_theta ** (-2k / head_dim) radians, so that scores depend on
    distances along the axis. On a periodic axis these are rounded to whole turns per period, of the native length; a
    pair that would make less than half a turn makes none, but for the first, which makes one at least. Computed in
    forward: no buffer to lose on the meta device.
    """

    def __init__(self, config: BlockConfig, axis: AxisDescription):
        super().__init__(config, axis)
        self.axis = axis.axis

    @staticmethod
    def prepare(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each (1 or B, length, head_dim)."""
        positions = cells.positions[..., None]
        pairs = torch.arange(0, config.head_dim, 2, dtype=positions.dtype, device=positions.device)
        frequencies = axis.rope_theta ** -(pairs / config.head_dim)
        if cells.period is None:
            angles = positions * frequencies
        else:
            turns = (frequencies * (axis.length / (2 * math.pi))).round()
            turns = torch.maximum(turns, (pairs == 0).to(turns))
            # Only what exceeds whole turns, so that places one period apart have one angle to the last bit.
            angles = (positions * turns).remainder(cells.period) * (2 * math.pi / cells.period)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def turn(self, states: torch.Tensor, prepared: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        cos, sin = prepared
        return apply_rotary(states, cos, sin, self.axis)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axis: int) -> torch.Tensor:
    """Turns queries or keys (B, *grid, heads, head_dim) by their positions along `axis`; cos, sin (1 or B, length,
    head_dim)."""
    over_faster_axes_and_heads = [1] * (states.dim() - axis - 3)
    cos, sin = (
        table.view(table.shape[0], *[1] * axis, table.shape[1], *over_faster_axes_and_heads, -1) for table in (cos, sin)
    )
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


class RelativePosition(LinePosition):
    """A learned number per head and distance, added to the scores (Shaw et al. 2018, arXiv 1803.02155; this form: Liu
    et al. 2021, arXiv 2103.14030).

    Row r of `table` (2 · reach + 1, heads) belongs to the distance r - reach from key to query, where `reach` is the
    largest on the native axis. Larger distances have that of the largest, others than whole ones a linear mix of two.
    """

    def __init__(self, config: BlockConfig, axis: AxisDescription):
        super().__init__(config, axis)
        self.table = nn.Parameter(torch.empty(2 * axis.reach + 1, axis.num_heads))

    @staticmethod
    def prepare(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> TableRows:
        """The rows of the pairs, each (1 or B, *blocks, queries, keys)."""
        return find_rows(2 * axis.reach + 1, cells.distances + axis.reach)

    def bias(self, prepared: TableRows) -> torch.Tensor:
        return mix_rows(self.table, prepared).movedim(-1, -3)


class PositionKind(NamedTuple):
    """What a name in `position_embedding` stands for."""

    grid: type[GridPosition] | None = None
    line: type[LinePosition] | None = None


POSITION_KINDS = {
    "none": PositionKind(),
    "learned": PositionKind(grid=LearnedPositionEmbedding),
    "rotary": PositionKind(line=RotaryPosition),
    "relative": PositionKind(line=RelativePosition),
}


def make_grid_positions(config: BlockConfig) -> list[GridPosition]:
    """The kinds of position of a grid, each over the axes that have it."""
    axes_of: dict[type[GridPosition], list[int]] = {}
    for axis in config.axes:
        for kind in (POSITION_KINDS[name].grid for name in axis.positions):
            if kind is not None:
                axes_of.setdefault(kind, []).append(axis.axis)
    return [kind(config, axes) for kind, axes in axes_of.items()]


def add_grid_positions(module: nn.Module, config: BlockConfig) -> list[str]:
    """Adds the kinds of position of a grid to the module that embeds it, under their own names, which it returns."""
    kinds = make_grid_positions(config)
    for kind in kinds:
        module.add_module(kind.name_in_embeddings, kind)
    return [kind.name_in_embeddings for kind in kinds]


def line_classes(axis: AxisDescription) -> list[type[LinePosition]]:
    """The kinds of position that attention along an axis reads."""
    return [kind for kind in (POSITION_KINDS[name].line for name in axis.positions) if kind is not None]


def prepare_line(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> tuple[Any, ...]:
    """What the `LinePosition`s of an axis prepare."""
    return tuple(kind.prepare(config, axis, cells) for kind in line_classes(axis))


def cells_of_axis(axis: AxisDescription, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> AxisCells:
    """The cells of a grid (B, *grid, hidden_size) along an axis: those of the context, or all, counted from 0.

    Along the axis of a cache the grid is one position, which meets all those before it.
    """
    cache = context.cache if context.cache is not None and context.cache.axis == axis.axis else None
    if context.cells:
        cells = context.cells[axis.axis]
    else:
        length = hidden_states.shape[axis.axis + 1] if cache is None else cache.length
        cells = AxisCells(count_cells(length, hidden_states), length if axis.periodic else None)
    return cells if cache is None else cache.select(cells)


def count_cells(length: int, states: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... of shape (1, length), on the device of `states`, in at least float32."""
    return torch.arange(length, dtype=torch.promote_types(states.dtype, torch.float32), device=states.device)[None]


def check_position_ids(
    position_ids: Sequence[torch.Tensor], batch_and_grid: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Positions from outside, one tensor for each axis, as (1 or B, length), in at least `dtype` and float32.

    Raises:
        ValueError: unless there is one tensor of finite real numbers for each axis, (length,) or (B, length).
    """
    batch_size, *grid = batch_and_grid
    if isinstance(position_ids, torch.Tensor) or len(position_ids) != len(grid):
        raise ValueError(
            f"position_ids must be a sequence of one tensor for each of the {len(grid)} axes, (length,) or (batch, "
            f"length), in cells; got {type(position_ids).__name__} of {len(position_ids)}."
        )
    positions = []
    for axis, (given, length) in enumerate(zip(position_ids, grid, strict=True)):
        if not isinstance(given, torch.Tensor) or given.is_complex() or given.dtype == torch.bool:
            kind = given.dtype if isinstance(given, torch.Tensor) else type(given).__name__
            raise ValueError(f"position_ids of axis {axis} must be a tensor of real numbers, got {kind}.")
        # By ==, as compiled code finds an open size in no tuple.
        of_samples = given.dim() == 2 and (given.shape[0] == 1 or given.shape[0] == batch_size)
        if not (given.dim() == 1 or of_samples) or given.shape[-1] != length:
            raise ValueError(
                f"position_ids of axis {axis} must have shape ({length},) or ({batch_size}, {length}), got "
                f"{tuple(given.shape)}."
            )
        if not values_are_hidden(given) and not given.isfinite().all():
            raise ValueError(f"position_ids of axis {axis} must be finite, those of masked cells too.")
        wide = torch.promote_types(torch.promote_types(given.dtype, dtype), torch.float32)
        positions.append(given.to(device, wide).reshape(-1, length))
    return tuple(positions)


def parts_of_circles(lengths: Sequence[int], periods: Sequence[float | None]) -> tuple[int, ...]:
    """The periodic axes of which a grid of these lengths is a part only, whose ends do not meet.

    `periods`: of each axis, None where it is not periodic or the grid is all of it.
    """
    pairs = enumerate(zip(lengths, periods, strict=True))
    return tuple(axis for axis, (length, period) in pairs if period is not None and length != period)


def check_position_period(
    position_period: Sequence[float | None] | None,
    position_ids: Sequence[torch.Tensor] | None,
    axes: Sequence[AxisDescription],
) -> tuple[float | None, ...]:
    """The period of each axis in the units of its `position_ids`, None where it is not periodic.

    Raises:
        ValueError: unless, with `position_ids`, each periodic axis has a positive number, and others None.
    """
    periods = (None,) * len(axes) if position_period is None else tuple(position_period)
    if position_period is not None and position_ids is None:
        raise ValueError("position_period is in the units of position_ids: give both, or neither for whole axes.")
    is_number = [isinstance(period, int | float) and 0 < period < math.inf for period in periods]
    if is_number != [axis.periodic and position_ids is not None for axis in axes]:
        periodic = [axis.axis for axis in axes if axis.periodic]
        raise ValueError(
            f"position_period={position_period} must have one entry for each of the {len(axes)} axes: with "
            f"position_ids a positive number for those that are periodic, {periodic}, and None for others."
        )
    return periods
