"""What is put on an `AxialModel` of which each rank runs its part of the grid, from the embedding of its pixels on."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..axial_embeddings import AxialEmbeddings
from ..axial_layer import MIXER_CLASSES
from ..masks import bounding_box
from ..modeling_axial import AxialModel
from ..pooling import sum_and_count
from ..position_embeddings import AxisCells, LearnedPositionEmbedding, check_position_ids, count_cells, spread_over
from .layout import Layout, LocalLayout, PreparedLayout
from .switching import all_reduce, gather, resized, shard_sizes, shard_slice
from .trunk_split import TrunkSplit


def used_along(mask: Tensor, axis: int) -> Tensor:
    """Which coordinates along an axis any cell of a mask (B, *grid) uses, (B, length)."""
    return mask.movedim(axis + 1, 1).flatten(2).any(2)


def cut_out(states: Tensor, dim: int, part: slice) -> Tensor:
    return states.narrow(dim, part.start, part.stop - part.start)


class ModelSplit(TrunkSplit):
    """The split of a trunk that embeds pixels, of which each rank embeds its part.

    What depends on the whole grid is made from what a subclass knows of it: positions, and what attention along the
    split axis prepares.

    `sizes`: how many cells each rank holds in the present call. `own`: those that this one embeds. `given`: all cells
    of the split axis, where their positions come from outside.
    """

    sizes: list[int]
    own: slice
    given: AxisCells | None
    layout_class: type[PreparedLayout] = PreparedLayout

    def __init__(self, trunk: AxialModel, mesh: DeviceMesh, axis: int):
        super().__init__(trunk, mesh, axis)
        self.handles.append(trunk.register_forward_hook(self.behind_trunk))
        for name in trunk.embeddings.position_names:
            positions = trunk.embeddings.get_submodule(name)
            if isinstance(positions, LearnedPositionEmbedding):
                self.handles.append(positions.register_forward_pre_hook(self.before_positions))

    def enter(self, hidden_states: Tensor) -> tuple[Layout, Tensor]:
        length, dim = sum(self.sizes), self.axis + 1
        counted = AxisCells(count_cells(length, hidden_states), length if self.description.periodic else None)
        cells = counted if self.given is None else self.given
        self.entered = self.layout_class(
            resized(hidden_states.shape, {dim: length}),
            self.axis,
            self.description.periodic,
            self.mesh.get_group(),
            prepared=MIXER_CLASSES[self.description.mixer].prepare(self.config, self.description, cells),
            closed=cells.wraps,
        )
        return self.entered, hidden_states

    def behind_trunk(self, trunk: nn.Module, args: tuple, output: Any) -> None:
        """The first of the recorded states is what entered the first layer: this rank's part."""
        if not isinstance(output, BaseModelOutputWithPooling):
            raise ValueError("return_dict=False is not for the trunk of a model that is split along an axis.")
        if output.hidden_states is not None and output.hidden_states[0] is not None:
            first, *others = output.hidden_states
            output.hidden_states = self.leave(self.entered, first), *others

    def before_positions(self, module: LearnedPositionEmbedding, args: tuple) -> tuple:
        """Without positions from outside the tables are spread over the whole grid, or over what is used of it."""
        hidden_states, mask, cells = args
        if cells is not None:
            return args
        spread = []
        for axis, length in enumerate(hidden_states.shape[1:-1]):
            length = sum(self.sizes) if axis == self.axis else length
            box = 0, length
            if mask is not None and axis not in module.periodic_axes:
                (box,) = bounding_box(self.in_use(mask, axis))
            table = getattr(module, f"axis_{axis}", hidden_states)  # an axis without one reads nothing
            rows = spread_over(*box, length, table)
            spread.append(AxisCells(rows[:, self.own] if axis == self.axis else rows))
        return hidden_states, mask, tuple(spread)

    def in_use(self, mask: Tensor, axis: int) -> Tensor:
        """Which coordinates along an axis any cell of the whole grid uses, (B, length). `mask`: of what is embedded."""
        raise NotImplementedError

    def behind_pooler(self, pooler: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """The mean over the whole grid, of parts."""
        hidden_states, _ = args
        total, count = sum_and_count(*args)
        group = self.mesh.get_group()
        count = all_reduce(torch.as_tensor(count, device=total.device), group).clamp(min=1)
        return (all_reduce(total, group) / count).to(hidden_states.dtype)


class WholeTrunkSplit(ModelSplit):
    """The split of a trunk that is given the whole pixels, and gives the whole grid.

    Where a rank would have no cells to embed, or positions are of a kind that is not known to place a part of a grid,
    each embeds all of them.
    """

    mask: Tensor | None  # of the whole grid

    def __init__(self, trunk: AxialModel, mesh: DeviceMesh, axis: int):
        super().__init__(trunk, mesh, axis)
        positions = map(trunk.embeddings.get_submodule, trunk.embeddings.position_names)
        self.embeds_parts = all(isinstance(each, LearnedPositionEmbedding) for each in positions)
        self.handles.append(trunk.embeddings.register_forward_pre_hook(self.before_embeddings))

    def before_embeddings(self, embeddings: AxialEmbeddings, args: tuple) -> tuple:
        pixel_values, self.mask, cells, added = args
        length = embeddings.patch_embeddings.batch_and_grid(pixel_values)[self.axis + 1]
        self.sizes = shard_sizes(length, self.mesh.size())
        self.given = None if cells is None else cells[self.axis]
        self.own = slice(0, length)
        if self.embeds_parts and 0 not in self.sizes:
            self.own = shard_slice(length, dist.get_rank(self.mesh.get_group()), len(self.sizes))
        if self.given is not None:
            part = self.given._replace(positions=self.given.positions[:, self.own])
            cells = *cells[: self.axis], part, *cells[self.axis + 1 :]
        patch = self.config.patch_shape[self.axis]
        pixels = cut_out(pixel_values, self.axis + 2, slice(self.own.start * patch, self.own.stop * patch))
        return pixels, self.own_cells(self.mask), cells, self.own_cells(added)

    def own_cells(self, cells: Tensor | None) -> Tensor | None:
        """Those that this rank embeds, of (B, *grid, ...)."""
        return None if cells is None else cut_out(cells, self.axis + 1, self.own)

    def in_use(self, mask: Tensor, axis: int) -> Tensor:
        return used_along(mask if self.mask is None else self.mask, axis)

    def enter(self, hidden_states: Tensor) -> tuple[Layout, Tensor]:
        layout, embedded = super().enter(hidden_states)
        if self.own == slice(0, sum(self.sizes)):
            return layout, layout.part(embedded, layout.dim)
        return layout, embedded


class LateTrunkSplit(WholeTrunkSplit):
    """The split of a trunk that is given the whole pixels, and gives this rank's part of the grid.

    For heads that read cell by cell, and poolers that take the mean. What is recorded is whole.
    """

    def __init__(self, trunk: AxialModel, mesh: DeviceMesh, axis: int):
        super().__init__(trunk, mesh, axis)
        self.handles.append(trunk.pooler.register_forward_pre_hook(self.before_pooler))
        self.handles.append(trunk.pooler.register_forward_hook(self.behind_pooler))

    def leave(self, layout: Layout, hidden_states: Tensor) -> Tensor:
        return hidden_states

    def behind_layer(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        output = super().behind_layer(layer, args, kwargs, output)
        if kwargs["output_hidden_states"]:
            recorded, *streams = output
            return kwargs["executor"].layout.gather(recorded), *streams
        return output

    def behind_trunk(self, trunk: nn.Module, args: tuple, output: Any) -> None:
        super().behind_trunk(trunk, args, output)
        if output.hidden_states is not None and output.hidden_states[0] is not None:
            first, *others = output.hidden_states
            output.hidden_states = self.entered.gather(first), *others

    def before_pooler(self, pooler: nn.Module, args: tuple) -> tuple:
        hidden_states, mask = args
        return hidden_states, None if mask is None else self.entered.part(mask, self.entered.dim)


class LocalTrunkSplit(ModelSplit):
    """The split of a trunk that is given this rank's part of the pixels, and gives this rank's part of the grid.

    `sizes_of_call`: how many cells each rank was given in the present call.
    """

    layout_class = LocalLayout

    def __init__(self, trunk: AxialModel, mesh: DeviceMesh, axis: int, sizes_of_call: Callable[[], list[int]]):
        super().__init__(trunk, mesh, axis)
        self.sizes_of_call = sizes_of_call
        self.handles.append(trunk.register_forward_pre_hook(self.before_trunk, with_kwargs=True))
        self.handles.append(trunk.pooler.register_forward_hook(self.behind_pooler))

    def before_trunk(self, trunk: AxialModel, args: tuple, kwargs: dict[str, Any]) -> None:
        given = inspect.signature(trunk.forward).bind(*args, **kwargs).arguments
        group, self.sizes, self.given = self.mesh.get_group(), self.sizes_of_call(), None
        self.own = shard_slice(sum(self.sizes), dist.get_rank(group), len(self.sizes))
        if given.get("position_ids") is not None:
            pixel_values = given["pixel_values"]
            embeddings = trunk.embeddings.patch_embeddings
            batch_and_grid, dtype = embeddings.batch_and_grid(pixel_values), embeddings.projection.bias.dtype
            positions = check_position_ids(given["position_ids"], batch_and_grid, dtype, pixel_values.device)
            period = given.get("position_period")
            self.given = AxisCells(
                gather(positions[self.axis], 1, self.sizes, group), None if period is None else period[self.axis]
            )

    def leave(self, layout: Layout, hidden_states: Tensor) -> Tensor:
        return hidden_states

    def in_use(self, mask: Tensor, axis: int) -> Tensor:
        used, group = used_along(mask, axis).int(), self.mesh.get_group()
        return (gather(used, 1, self.sizes, group) if axis == self.axis else all_reduce(used, group)) > 0
