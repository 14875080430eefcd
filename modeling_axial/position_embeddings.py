"""Where a token is: learned tables per axis, or rotations by the 1-D position along the attended axis."""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_axial import AxialConfig
from .configuration_strict import BlockConfig
from .masks import bounding_box


class LearnedPositionEmbedding(nn.Module):
    """Adds one learned vector per axis and coordinate: h[i, j, ...] + axis_0[i] + axis_1[j] + ...

    The tables `axis_0`, `axis_1`, ... are (length of the native grid, hidden_size), and are spread over the grid at
    hand, or, under a mask, over the bounding box of the cells in use of each sample: a padded picture has the positions
    that it has alone, wherever it lies. At native size a cell gets its row exactly, elsewhere a linear mix of two.

    `grid_shape`: the native grid, if it is not that of `config`.
    """

    def __init__(self, config: BlockConfig, grid_shape: Sequence[int] | None = None):
        super().__init__()
        for axis, length in enumerate(config.grid_shape if grid_shape is None else grid_shape):
            self.register_parameter(f"axis_{axis}", nn.Parameter(torch.empty(length, config.hidden_size)))

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, *grid, hidden_size) -> the same shape, for any grid lengths. `mask`: boolean (B, *grid)."""
        grid_shape = hidden_states.shape[1:-1]
        boxes = [(0, length) for length in grid_shape] if mask is None else bounding_box(mask)
        for axis, (length, box) in enumerate(zip(grid_shape, boxes, strict=True)):
            # Not get_parameter, which refuses the plain tensors that functional_call puts in place of parameters.
            table = getattr(self, f"axis_{axis}")
            vectors = read_table(table, spread_over(*box, length, table))
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
    options = {"dtype": torch.promote_types(table.dtype, torch.float32), "device": table.device}
    cells = torch.arange(length, **options)[None]
    if isinstance(extent, torch.Tensor):  # of integers, whose quotients are float32
        extent = extent.to(cells)
    return (cells - first + 0.5) * (table.shape[0] / extent) - 0.5


def read_table(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows of a table (rows, hidden_size) at any positions (...), counted in rows: (..., hidden_size).

    Linear between two rows, exact at whole numbers, and the first or last row beyond the edges. Made of gathers, whose
    backward has a deterministic form on every device.
    """
    positions = positions.clamp(0, table.shape[0] - 1)
    below = positions.long()
    above = (below + 1).clamp(max=table.shape[0] - 1)
    wide = torch.promote_types(table.dtype, torch.float32)
    mixed = torch.lerp(table[below].to(wide), table[above].to(wide), (positions - below)[..., None].to(wide))
    return mixed.to(table.dtype)


def resample_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Linear resampling of a table (rows, hidden_size) to (length, hidden_size); exact if it has so many rows."""
    return read_table(table, spread_over(0, length, length, table))[0]


class RotaryPositionEmbedding(nn.Module):
    """Angles of the rotary embedding (Su et al. 2021, arXiv 2104.09864), one set per axis.

    Position p turns the pair of channels k by p · rope_theta ** (-2k / head_dim) radians. Attention along an axis then
    depends on the distance along that axis. Computed in forward: no buffer to lose on the meta device.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta

    def forward(self, hidden_states: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """(B, *grid, hidden_size) -> for each axis (cos, sin), each (axis length, head_dim), at least float32."""
        options = {
            "dtype": torch.promote_types(hidden_states.dtype, torch.float32),
            "device": hidden_states.device,
        }
        frequencies = self.rope_theta ** -(torch.arange(0, self.head_dim, 2, **options) / self.head_dim)
        rotations = []
        for length in hidden_states.shape[1:-1]:
            angles = torch.arange(length, **options)[:, None] * frequencies
            angles = torch.cat((angles, angles), dim=-1)
            rotations.append((angles.cos(), angles.sin()))
        return tuple(rotations)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axis: int) -> torch.Tensor:
    """Turns queries or keys (B, *grid, heads, head_dim) by their position along `axis`; cos, sin (length, head_dim)."""
    over_faster_axes_and_heads = [1] * (states.dim() - axis - 3)
    cos, sin = (table.view(table.shape[0], *over_faster_axes_and_heads, -1) for table in (cos, sin))
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)
