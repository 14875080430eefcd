"""One axis of the token grid split over the ranks of a mesh: an executor and hooks, put on a model from outside.

Each rank runs the trunk on its part of the grid, whole along all axes but one. What mixes cells along that axis gets
its normalised input with the axis whole and another one split instead, by one all-to-all, and its output goes back by
another: 2 (P - 1) / P of a rank's own activation for both, of P ranks. Convolutions get the cells at their edges.
(After Dynamic Sequence Parallelism, Zhao et al. 2024, arXiv 2403.10266; how this differs: the layout between attentions
is always the same, sizes may be uneven, and no part of a model is rewritten.)

Gradients. Each exchange is differentiated by its true adjoint, so a rank's gradients are those of the sum of all ranks'
losses. The mean over all ranks, those along the split axis and those along others, is then the gradient of the mean
loss, both of parts that ran on a share of the grid and of heads that ran on all of it: what DDP and FSDP2 do anyway.
"""

from collections.abc import Iterator
from datetime import timedelta
from functools import wraps
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..axial_layer import ResidualPair
from ..axis_module import AxisModule
from ..feed_forward import AxialConvolutionFeedForward, AxialGatedMLP, AxialMLP
from ..layer_context import LayerContext
from ..modeling_axial import AxialModel
from ..modeling_axial_decoder import AxialForCausalImageModeling
from ..residual_updates import DropPath
from ..reversible import OneStream, Residual, TwoStream
from .agreement import arguments_in_words, check_agreement
from .shared_draws import SharedDraws
from .switching import gather, shard_sizes, shard_slice, switch, with_neighbours

Executor = type[OneStream] | type[TwoStream]
Model = TypeVar("Model", bound=nn.Module)

CELL_BY_CELL = (AxialMLP, AxialGatedMLP)  # feed-forwards that run on any part of a grid


class Layout:
    """How the grid of one forward pass lies on the ranks: at home along the split axis, switched along another one.

    `shape`: of the whole hidden states (B, *grid, hidden_size). The axis that is split when switched is the longest of
    the others.
    """

    def __init__(self, shape: torch.Size, axis: int, group: dist.ProcessGroup):
        self.group, self.rank, world_size = group, dist.get_rank(group), dist.get_world_size(group)
        self.dim = axis + 1
        self.other_dim = max((dim for dim in range(1, len(shape) - 1) if dim != self.dim), key=shape.__getitem__)
        self.sizes = shard_sizes(shape[self.dim], world_size)
        self.other_sizes = shard_sizes(shape[self.other_dim], world_size)
        self.whole_context: LayerContext | None = None
        self.home_context = self.switched_context = LayerContext()

    def part(self, states: Tensor, dim: int) -> Tensor:
        """This rank's part along the dim of the home or of the switched layout, without holding on to the rest."""
        own = shard_slice(states.shape[dim], self.rank, len(self.sizes))
        return states.narrow(dim, own.start, own.stop - own.start).clone(memory_format=torch.contiguous_format)

    def take(self, context: LayerContext) -> LayerContext:
        """The context of this rank's part, and both layouts from now on."""
        if context is not self.whole_context:
            home, switched = context, context
            if context.mask is not None:
                home = context._replace(mask=self.part(context.mask, self.dim))
                switched = context._replace(mask=self.part(context.mask, self.other_dim))
            # The ends of a part do not meet: neighbours are fetched.
            self.home_context = home._replace(cropped_axes=(*context.cropped_axes, self.dim - 1))
            self.whole_context, self.switched_context = context, switched
        return self.home_context

    def gather(self, states: Tensor) -> Tensor:
        return gather(states, self.dim, self.sizes, self.group)

    def to_switched(self, states: Tensor) -> Tensor:
        return switch(states, self.other_dim, self.other_sizes, self.dim, self.sizes, self.group)

    def to_home(self, states: Tensor) -> Tensor:
        return switch(states, self.dim, self.sizes, self.other_dim, self.other_sizes, self.group)


class ShardedExecutor:
    """Mixed into an executor: enters with this rank's part of the grid, leaves with all of it."""

    stored: ClassVar[type | None]
    split: ClassVar["TrunkSplit"]
    whole: ClassVar[Executor]  # the executor that it is mixed into
    layout: Layout

    def enter(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        self.layout = self.split.entered = Layout(hidden_states.shape, self.split.axis, self.split.mesh.get_group())
        return super().enter(self.layout.part(hidden_states, self.layout.dim))  # pyrefly: ignore[missing-attribute]

    def couple(self, f: Residual, g: Residual, *streams: Tensor) -> tuple[Tensor, ...]:
        f, g = (self.split.runs_in(self.layout, function) for function in (f, g))
        return super().couple(f, g, *streams)  # pyrefly: ignore[missing-attribute]

    def leave(self, *streams: Tensor) -> Tensor:
        return self.layout.gather(super().leave(*streams))  # pyrefly: ignore[missing-attribute]


def sharded(executor_class: Executor, split: "TrunkSplit") -> type:
    """The executor of the same numbers, of which each rank has a part."""
    stored = executor_class.stored and sharded(executor_class.stored, split)
    attributes = {"split": split, "whole": executor_class, "stored": stored}
    return type(f"Sharded{executor_class.__name__}", (ShardedExecutor, executor_class), attributes)


class TrunkSplit:
    """What `shard_axis` has put on a trunk: its executor, and hooks."""

    def __init__(self, trunk: Any, mesh: DeviceMesh, axis: int):
        self.mesh, self.axis = mesh, axis
        self.periodic = trunk.config.axes[axis].periodic
        self.layout: Layout | None = None  # of what runs now
        self.entered: Layout  # of the newest forward pass
        self.handles: list[RemovableHandle] = []
        if isinstance(trunk, AxialModel):
            self.handles.append(trunk.register_forward_hook(self.behind_trunk))
        for layer in layers_of(trunk):
            self.handles.append(layer.register_forward_pre_hook(self.before_layer, with_kwargs=True))
            # In front of the hooks that record.
            self.handles.append(layer.register_forward_hook(self.behind_layer, prepend=True, with_kwargs=True))
            for mixer in mixers_of(layer.attention):
                if mixer.axis == axis:
                    self.handles.append(mixer.register_forward_pre_hook(self.before_mixer))
                    self.handles.append(mixer.register_forward_hook(self.behind_mixer))
            for convolution in convolutions_of(layer.feed_forward):
                self.handles.append(convolution.register_forward_pre_hook(self.before_convolution))
                self.handles.append(convolution.register_forward_hook(self.behind_convolution))

    def runs_in(self, layout: Layout, function: Residual) -> Residual:
        """The function, for which this layout is the present one, also when it runs again in backward."""

        @wraps(function)
        def run(hidden_states: Tensor) -> Tensor:
            before, self.layout = self.layout, layout
            try:
                return function(hidden_states)
            finally:
                self.layout = before

        return run

    @property
    def present(self) -> Layout:
        if self.layout is None:
            raise ValueError("a part of a model that is split along an axis runs inside its trunk only: call the model")
        return self.layout

    def before_layer(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        executor, context = kwargs["executor"], kwargs["context"]
        if not isinstance(executor, ShardedExecutor):
            raise ValueError(
                f"the executor is {type(executor).__name__}, but the model is split along an axis: set executor_class "
                "before shard_axis."
            )
        if context.cache is not None:
            raise ValueError("positions one after the other are not split along an axis: split the batch instead.")
        if context.output_attentions:
            raise ValueError(
                "output_attentions=True would give each rank the maps of its own lines only: record them without "
                "splitting an axis (unshard_axis)."
            )
        return args, kwargs | {"context": executor.layout.take(context)}

    def behind_layer(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """What is recorded is whole: the first of a tuple, as that of two streams is already."""
        if kwargs["output_hidden_states"] and isinstance(output, Tensor):
            return kwargs["executor"].layout.gather(output), output
        return output

    def behind_trunk(self, trunk: nn.Module, args: tuple, output: Any) -> None:
        """The first of the recorded states is what entered the first layer: this rank's part."""
        if not isinstance(output, BaseModelOutputWithPooling):
            raise ValueError("return_dict=False is not for the trunk of a model that is split along an axis.")
        if output.hidden_states is not None and output.hidden_states[0] is not None:
            first, *others = output.hidden_states
            output.hidden_states = self.entered.gather(first), *others

    def before_mixer(self, mixer: nn.Module, args: tuple) -> tuple:
        hidden_states, _ = args
        return self.present.to_switched(hidden_states), self.present.switched_context

    def behind_mixer(self, mixer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.present.to_home(output)

    def before_convolution(self, convolution: nn.Module, args: tuple) -> tuple:
        (cells,), layout = args, self.present  # (B, channels, *grid)
        whole_context = layout.whole_context or LayerContext()
        wraps_around = self.periodic and self.axis not in whole_context.cropped_axes
        return (with_neighbours(cells, layout.dim + 1, layout.sizes, wraps_around, layout.group),)

    def behind_convolution(self, convolution: nn.Module, args: tuple, output: Tensor) -> Tensor:
        dim = self.present.dim + 1
        return output.narrow(dim, 1, output.shape[dim] - 2)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class CallCheck:
    """Before each call of a model: all ranks along the axis were given the same, or all raise."""

    def __init__(self, mesh: DeviceMesh, timeout: timedelta | None):
        self.mesh, self.timeout = mesh, timeout

    def __call__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        trains = model.training and torch.is_grad_enabled()
        refusals = [text for text in (self.missing_wrapper(model),) if trains and text]
        entries = [
            f"train() = {model.training}",
            f"gradients enabled = {torch.is_grad_enabled()}",
            f"trainable parameters = {sum(parameter.requires_grad for parameter in model.parameters())}",
            *arguments_in_words(model.forward, args, kwargs),
        ]
        check_agreement(entries, refusals, self.mesh, self.timeout)

    def missing_wrapper(self, model: nn.Module) -> str | None:
        wrapper = DistributedDataParallel._get_active_ddp_module()
        if wrapper is not None:
            reduced = dist.get_process_group_ranks(wrapper.process_group)
            if set(dist.get_process_group_ranks(self.mesh.get_group())) <= set(reduced):
                return None
            return (
                f"gradients are averaged over the ranks {reduced} only, but must be over all, those along the split "
                "axis too: give DistributedDataParallel the default process group."
            )
        if any(isinstance(module, FSDPModule) for module in model.modules()):
            return None
        return (
            "training a model that is split along an axis needs gradients averaged over all ranks: wrap it in "
            "DistributedDataParallel or fully_shard, or let Accelerate do so."
        )


def layers_of(trunk: Any) -> list[ResidualPair]:
    return [module for module in trunk.modules() if isinstance(module, ResidualPair)]


def mixers_of(module: nn.Module) -> Iterator[AxisModule]:
    """The outermost modules that work along one axis."""
    for child in module.children():
        if isinstance(child, AxisModule):
            yield child
        else:
            yield from mixers_of(child)


def convolutions_of(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d)]


def trunks_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "executor_class")]


def is_split(trunk: Any) -> bool:
    return issubclass(trunk.executor_class, ShardedExecutor)


def refuse_inexact(trunk: Any) -> None:
    """Raises `ValueError` for what is not known to give the numbers of one process."""
    layers = layers_of(trunk)
    if not layers:
        raise ValueError(f"{type(trunk).__name__} has no layers of attention along axes that could be split.")
    for layer in layers:
        net = layer.feed_forward.net
        if not isinstance(net, (*CELL_BY_CELL, AxialConvolutionFeedForward)):
            raise ValueError(
                f"{type(net).__name__} is not known to run on a part of the grid: use a feed_forward of mlp, gated_mlp "
                "or convolution, or do not split an axis."
            )
    if any(isinstance(module, DropPath) for module in trunk.modules()):
        raise ValueError(
            "drop_path_rate drops the update of a whole sample, which the ranks would draw each for itself: set it to "
            "0, or do not split an axis."
        )


def refuse_to_generate(*args, **kwargs) -> NoReturn:
    raise ValueError(
        "generate draws one position after the other, for which no axis is split: split the batch over the ranks "
        "instead, each with a whole model (unshard_axis)."
    )


def longest_axis(grid_shape: tuple[int, ...]) -> int:
    """The first of the longest."""
    return max(range(len(grid_shape)), key=grid_shape.__getitem__)


def check_mesh(mesh: DeviceMesh) -> None:
    if mesh.ndim != 1:
        raise ValueError(
            f'the mesh has {mesh.ndim} dims {mesh.mesh_dim_names}, but must have one, such as mesh["axis"].'
        )


def check_axis(grid_shape: tuple[int, ...], axis: int) -> None:
    if not 0 <= axis < len(grid_shape):
        raise ValueError(f"axis={axis} is none of the {len(grid_shape)} axes of the grid {grid_shape}, counted from 0.")


def own_slice(grid_shape: tuple[int, ...], mesh: DeviceMesh, axis: int | None = None) -> slice:
    """The cells along the split axis that this rank holds of a grid; None = its longest axis, the first of them.

    In pixels, these times the patch.
    """
    check_mesh(mesh)
    axis = longest_axis(grid_shape) if axis is None else axis
    check_axis(grid_shape, axis)
    return shard_slice(grid_shape[axis], mesh.get_local_rank(), mesh.size())


def shard_axis(model: Model, mesh: DeviceMesh, axis: int | None = None, timeout: timedelta | None = None) -> Model:
    """Splits one axis of the token grid over the ranks of a mesh of one dim; the model, changed in place, is returned.

    Every rank is given the whole pixels and gets whole results, those of one process. Positions, masks, reversible
    trunks and gradient checkpointing work as before, and checkpoints are the same. Between the call and
    `unshard_axis` all ranks of the mesh call the model together, with the same arguments.

    Train it with gradients averaged over all ranks, those along the axis too: by DDP over the default process group, or
    by FSDP2, put around the model after this call. Dropout differs between the ranks, as it does between the cells.

    Args:
        axis: counted from 0, slow to fast; the longest axis of the configured grid by default.
        timeout: how long a rank waits for the others at the beginning of a call, that of the process group by default.
            For the exchanges behind, the latter holds.

    Raises:
        ValueError: for what cannot be split: another axis, a grid of one axis, an axis of one cell, a model that is
            split already or has parts that would not be exact. Calls of the model then raise it, on all ranks, when
            these are given different arguments, train without averaging gradients, or ask for attention maps.
    """
    check_mesh(mesh)
    trunks, config = trunks_of(model), getattr(model, "config", None)
    if not trunks or config is None:
        raise ValueError(
            f"{type(model).__name__} has no axial trunk: give it a model of this package, not its wrapper."
        )
    if any(map(is_split, trunks)):
        raise ValueError("the model is split along an axis already: unshard_axis first.")
    grid_shape = tuple(config.grid_shape)
    axis = longest_axis(grid_shape) if axis is None else axis
    check_axis(grid_shape, axis)
    if grid_shape[axis] < 2:
        raise ValueError(f"axis {axis} of the grid {grid_shape} has 1 cell, which is nothing to split.")
    for trunk in trunks:
        refuse_inexact(trunk)
        if len(trunk.config.axes) < 2:
            raise ValueError(
                f"{type(trunk).__name__} has a grid of one axis, and none to split in its attention: split the batch."
            )
    handles = [model.register_forward_pre_hook(CallCheck(mesh, timeout), with_kwargs=True)]
    if isinstance(model, AxialForCausalImageModeling):
        handles += SharedDraws(model, trunks, mesh).handles
    for trunk in trunks:
        # A decoder may have one axis more than its encoder, in front.
        own_axis = axis - len(grid_shape) + len(trunk.config.axes)
        if own_axis >= 0:
            split = TrunkSplit(trunk, mesh, own_axis)
            split.handles += handles  # which may be removed more than once
            trunk.executor_class = sharded(trunk.executor_class, split)
    if hasattr(model, "generate"):
        model.generate = refuse_to_generate  # pyrefly: ignore[bad-argument-type]
    return model


def unshard_axis(model: Model) -> Model:
    """Makes a model that `shard_axis` has split run on one process again, in place; returns it.

    Raises `ValueError` if it is not split.
    """
    split_trunks = list(filter(is_split, trunks_of(model)))
    if not split_trunks:
        raise ValueError(f"{type(model).__name__} is not split along an axis.")
    for trunk in split_trunks:
        trunk.executor_class.split.remove()
        trunk.executor_class = trunk.executor_class.whole
    for module in model.modules():
        if module.__dict__.get("generate") is refuse_to_generate:
            del module.generate
    return model
