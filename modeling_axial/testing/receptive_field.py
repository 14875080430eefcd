"""The axis audit: which input positions does an output position of a layer really depend on?

A layer that attends along the wrong axis gives tensors of the right shape, trains, and is wrong. What tells it from the
right one is where its outputs look.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


def receptive_field(
    module: nn.Module,
    input_shape: Sequence[int],
    position: Sequence[int],
    *,
    channel_dim: int = -1,
    output_channel_dim: int | None = None,
    output_fn: Callable[[Any], torch.Tensor] | None = None,
    num_draws: int = 3,
    seed: int = 0,
) -> torch.Tensor:
    """The input positions that influence the output at `position`: boolean, in the shape of the input grid.

    An input position counts if d(r · y[position]) / dx there is not exactly zero, r a random direction of the channels
    of the output y = module(x). The gradient is taken in float64 on a copy of `module` in eval mode whose weights are
    all drawn anew, so that branches that start at zero count too; `module` itself stays as it is. Several draws of
    weights, x and r are united, so that an accidental zero hides nothing. Norms, padding masks and whatever else a
    layer has take part as they are: what is reported is what the whole module does. A gradient sees only what moves
    the output smoothly: of hard choices (max pooling, top-k, rounding) it shows what the draws happened to choose.

    Args:
        module: Takes one floating tensor (wrap what needs more). Returns a tensor, a tuple whose first entry is one,
            or an output of a model of transformers, of which `last_hidden_state` is taken.
        input_shape: `(batch, *grid, channels)`, with the channels at `channel_dim`. The grid may be one of pixels, and
            coarser in the output. With a batch of more than one, samples must not influence each other.
        position: One index per axis of the grid of the *output*, of its first sample, counted from 0. Empty if the
            output has no grid, as class scores.
        channel_dim: The dim of the channels in the input: -1 for token grids, 1 for `pixel_values`.
        output_channel_dim: The dim of the channels in the output, by default `channel_dim`. A model from `pixel_values`
            to a token grid has `channel_dim=1, output_channel_dim=-1`.
        output_fn: Takes what `module` returns and gives the tensor to look at.
        num_draws: How many independent draws are united.
        seed: Of the private random numbers; torch's own are not touched.

    Raises:
        ValueError: if a shape, a dim or the position does not fit, if the output is no floating tensor, is not
            differentiable in the input (integer inputs have no gradient: give the part behind the embedding) or is
            not finite, or if samples of a batch influence each other.

    Example: attention along the rows of a grid, for `(batch, height, width, channels)`. A transposed grid would have
    given a column, and on a square grid nobody would see the difference, so use lengths that all differ.

    >>> import torch
    >>> from modeling_axial.testing import receptive_field
    >>> class RowAttention(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    ...
    ...     def forward(self, hidden_states):
    ...         rows = hidden_states.flatten(0, 1)
    ...         return self.attention(rows, rows, rows)[0].view_as(hidden_states)
    >>> receptive_field(RowAttention(), (1, 2, 3, 4), position=(1, 0)).int()
    tensor([[0, 0, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}: wrap a function in one.")
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}.")
    input_shape, position = tuple(input_shape), tuple(position)
    if len(input_shape) < 2 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be (batch, *grid, channels), each at least 1, got {input_shape}.")
    channels = _dim_of_channels("channel_dim", channel_dim, len(input_shape))

    probe = copy.deepcopy(module).double().eval().requires_grad_(False)
    device = next((parameter.device for parameter in probe.parameters()), None)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    reached = torch.zeros(input_shape[1:channels] + input_shape[channels + 1 :], dtype=torch.bool)
    for _ in range(num_draws):
        _redraw_weights(probe, draw)
        inputs = draw(*input_shape).requires_grad_()
        with torch.enable_grad():
            output = _output_grid(probe, inputs, output_fn)
            cell = _cell(output, position, channel_dim if output_channel_dim is None else output_channel_dim)
            (gradient,) = torch.autograd.grad(cell @ draw(*cell.shape).to(cell), inputs)
        if not (cell.isfinite().all() and gradient.isfinite().all()):
            raise ValueError(
                f"{type(module).__name__} gives values that are not finite with weights from N(0, 1/fan-in)."
            )
        influences = (gradient != 0).any(channels).cpu()
        if influences[1:].any():
            raise ValueError(f"{type(module).__name__} lets samples of a batch influence each other.")
        reached |= influences[0]
    return reached


def _redraw_weights(module: nn.Module, draw: Callable[..., torch.Tensor]) -> None:
    """Every floating parameter from N(0, 1/fan-in), where fan-in is the size of one row; 1 for vectors and scalars."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            fan_in = math.prod(parameter.shape[1:])
            parameter.data.copy_(draw(*parameter.shape) / math.sqrt(max(fan_in, 1)))


def _output_grid(module: nn.Module, inputs: torch.Tensor, output_fn: Callable[[Any], torch.Tensor] | None):
    name = type(module).__name__
    try:
        output = module(inputs)
    except Exception as error:
        raise ValueError(
            f"{name} fails on a float64 tensor of the shape {tuple(inputs.shape)}. Check input_shape; of a module for "
            f"integers, give the part behind the embedding. It says: {error}"
        ) from error
    if output_fn is not None:
        output = output_fn(output)
    elif hasattr(output, "last_hidden_state"):
        output = output.last_hidden_state
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"{name} returns {type(output).__name__}: give an output_fn that takes the tensor out of it.")
    if not output.is_floating_point():
        raise ValueError(f"{name} returns {output.dtype}, which has no gradient: the output must be floating.")
    if not output.requires_grad:
        raise ValueError(
            f"The output of {name} is not differentiable in its input: it ignores it, turns it into integers, or "
            "detaches it (torch.no_grad, .detach())."
        )
    return output


def _cell(output: torch.Tensor, position: tuple[int, ...], channel_dim: int) -> torch.Tensor:
    """The channels of `output` at `position` of its first sample: (channels,)."""
    if output.ndim != len(position) + 2:
        raise ValueError(
            f"The output has the shape {tuple(output.shape)}, so position must have {output.ndim - 2} indices (batch "
            f"and channels do not count), got {position}."
        )
    grid = output[0].movedim(_dim_of_channels("output_channel_dim", channel_dim, output.ndim) - 1, -1)
    if not all(0 <= index < length for index, length in zip(position, grid.shape, strict=False)):
        raise ValueError(f"position must lie in the output grid {tuple(grid.shape[:-1])}, from 0 on, got {position}.")
    return grid[position]


def _dim_of_channels(name: str, dim: int, rank: int) -> int:
    """`dim` counted from 0."""
    if not -rank < dim < rank or dim == 0:
        raise ValueError(f"{name} must be a dim of the {rank} other than the batch (dim 0), got {dim}.")
    return dim % rank
