"""Where a token is: learned tables per axis, or rotations by the 1-D position along the attended axis."""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_axial import AxialConfig


class LearnedPositionEmbedding(nn.Module):
    """Adds one learned vector per axis and coordinate: h[i, j, ...] + axis_0[i] + axis_1[j] + ...

    The tables `axis_0`, `axis_1`, ... are (length of the native grid, hidden_size), and are resampled linearly to the
    grid at hand (cell centres aligned, edges clamped); at native size that is exact.

    `grid_shape`: the native grid, if it is not that of `config`.
    """

    def __init__(self, config: AxialConfig, grid_shape: Sequence[int] | None = None):
        super().__init__()
        for axis, length in enumerate(config.grid_shape if grid_shape is None else grid_shape):
            self.register_parameter(f"axis_{axis}", nn.Parameter(torch.empty(length, config.hidden_size)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, *grid, hidden_size) -> the same shape, for any grid lengths."""
        grid_shape = hidden_states.shape[1:-1]
        for axis, length in enumerate(grid_shape):
            # Not get_parameter, which refuses the plain tensors that functional_call puts in place of parameters.
            table = resample_table(getattr(self, f"axis_{axis}"), length)
            hidden_states = hidden_states + table.view(length, *[1] * (len(grid_shape) - axis - 1), -1)
        return hidden_states


def resample_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Linear resampling of a table (native length, hidden_size) to (length, hidden_size); exact at native length."""
    resampled = nn.functional.interpolate(table.T[None], size=length, mode="linear", align_corners=False)
    return resampled[0].T


class RotaryPositionEmbedding(nn.Module):
    """Angles of the rotary embedding (Su et al. 2021, arXiv 2104.09864), one set per axis.

    Position p turns the pair of channels k by p · rope_theta ** (-2k / head_dim) radians. Attention along an axis then
    depends on the distance along that axis. Computed in forward: no buffer to lose on the meta device.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.head_dim: int = config.head_dim  # pyrefly: ignore[bad-assignment]  the config has set it
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
