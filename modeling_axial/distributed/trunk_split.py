"""What is put on a trunk of which each rank runs its part of the grid: an executor, and hooks on what mixes cells."""

from collections.abc import Iterator
from functools import wraps
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.hooks import RemovableHandle

from ..axial_layer import ResidualLayer
from ..axis_module import AxisModule
from ..reversible import OneStream, Residual, TwoStream
from .layout import Layout
from .switching import with_neighbours

Executor = type[OneStream] | type[TwoStream]


def layers_of(trunk: Any) -> list[ResidualLayer]:
    return [module for module in trunk.modules() if isinstance(module, ResidualLayer)]


def mixers_of(module: nn.Module) -> Iterator[AxisModule]:
    """The outermost modules that work along one axis."""
    for child in module.children():
        if isinstance(child, AxisModule):
            yield child
        else:
            yield from mixers_of(child)


def convolutions_of(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d)]


class ShardedExecutor:
    """Mixed into an executor: enters with this rank's part of the grid, leaves as its split says."""

    stored: ClassVar[type | None]
    split: ClassVar["TrunkSplit"]
    whole: ClassVar[Executor]  # the executor that it is mixed into
    layout: Layout

    def enter(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        self.layout, own = self.split.enter(hidden_states)
        return super().enter(own)  # pyrefly: ignore[missing-attribute]

    def couple(self, f: Residual, g: Residual, *streams: Tensor) -> tuple[Tensor, ...]:
        f, g = (self.split.runs_in(self.layout, function) for function in (f, g))
        return super().couple(f, g, *streams)  # pyrefly: ignore[missing-attribute]

    def leave(self, *streams: Tensor) -> Tensor:
        return self.split.leave(self.layout, super().leave(*streams))  # pyrefly: ignore[missing-attribute]


def sharded(executor_class: Executor, split: "TrunkSplit") -> type:
    """The executor of the same numbers, of which each rank has a part."""
    stored = executor_class.stored and sharded(executor_class.stored, split)
    attributes = {"split": split, "whole": executor_class, "stored": stored}
    return type(f"Sharded{executor_class.__name__}", (ShardedExecutor, executor_class), attributes)


class TrunkSplit:
    """What `shard_axis` puts on a trunk that is given the whole grid and gives it back: hooks, and what they need."""

    def __init__(self, trunk: Any, mesh: DeviceMesh, axis: int):
        self.mesh, self.axis = mesh, axis
        self.config, self.description = trunk.config, trunk.config.axes[axis]
        self.layout: Layout | None = None  # of what runs now
        self.entered: Layout  # of the newest forward pass
        self.handles: list[RemovableHandle] = []
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

    def enter(self, hidden_states: Tensor) -> tuple[Layout, Tensor]:
        """The layout of a forward pass, and this rank's part of what enters the layers."""
        group = self.mesh.get_group()
        layout = self.entered = Layout(hidden_states.shape, self.axis, self.description.periodic, group)
        return layout, layout.part(hidden_states, layout.dim)

    def leave(self, layout: Layout, hidden_states: Tensor) -> Tensor:
        """What is given to the outside, of a rank's part of the grid."""
        return layout.gather(hidden_states)

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
        """What is recorded is the first of a tuple: as it leaves, which that of two streams has done already."""
        if kwargs["output_hidden_states"] and isinstance(output, Tensor):
            return self.leave(kwargs["executor"].layout, output), output
        return output

    def before_mixer(self, mixer: nn.Module, args: tuple) -> tuple:
        hidden_states, _ = args
        return self.present.to_switched(hidden_states), self.present.switched_context

    def behind_mixer(self, mixer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.present.to_home(output)

    def before_convolution(self, convolution: nn.Module, args: tuple) -> tuple:
        (cells,), layout = args, self.present  # (B, channels, *grid)
        return (with_neighbours(cells, layout.dim + 1, layout.sizes, layout.wraps, layout.group),)

    def behind_convolution(self, convolution: nn.Module, args: tuple, output: Tensor) -> Tensor:
        dim = self.present.dim + 1
        return output.narrow(dim, 1, output.shape[dim] - 2)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
