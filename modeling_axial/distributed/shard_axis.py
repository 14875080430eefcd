"""One axis of the token grid split over the ranks of a mesh: an executor and hooks, put on a model from outside.

Each rank embeds its part of the grid, and runs the trunk on it, whole along all axes but one. What mixes cells along
that axis gets its normalised input with the axis whole and another one split instead, by one all-to-all, and its output
goes back by another: 2 (P - 1) / P of a rank's own activation for both, of P ranks. Convolutions get the cells at their
edges.
(After Dynamic Sequence Parallelism, Zhao et al. 2024, arXiv 2403.10266; how this differs: the layout between attentions
is always the same, sizes may be uneven, and no part of a model is rewritten.)

Gradients. Each exchange is differentiated by its true adjoint, so a rank's gradients are those of the sum of all ranks'
losses. The mean over all ranks, those along the split axis and those along others, is then the gradient of the mean
loss, both of parts that ran on a share of the grid and of heads that ran on all of it: what DDP and FSDP2 do anyway.
"""

from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ..dense_heads import LinearDenseHead
from ..feed_forward import AxialConvolutionFeedForward, AxialGatedMLP, AxialMLP
from ..modeling_axial import AxialModel
from ..modeling_axial_decoder import AxialForCausalImageModeling
from ..modeling_axial_dense import (
    AxialDensePreTrainedModel,
    AxialForDensePrediction,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
)
from ..modeling_axial_heads import AxialForImageClassification, AxialForVideoClassification
from ..pooling import MeanPooling
from ..position_embeddings import LearnedPositionEmbedding
from ..residual_updates import DropPath
from .call_check import CallCheck, LocalCallCheck
from .loss_of_parts import LossOfParts
from .model_split import LateTrunkSplit, LocalTrunkSplit, WholeTrunkSplit
from .numbers_of_parts import NumbersOfParts
from .shared_draws import SharedDraws
from .switching import shard_slice
from .trunk_split import ShardedExecutor, TrunkSplit, layers_of, sharded

Model = TypeVar("Model", bound=nn.Module)

CELL_BY_CELL = (AxialMLP, AxialGatedMLP)  # feed-forwards that run on any part of a grid

# Models that read nothing of the grid but its mean, and such as read it by a dense head. What inherits from these may
# read more.
READ_THE_MEAN = (AxialForImageClassification, AxialForVideoClassification)
READ_BY_A_HEAD = (AxialForSemanticSegmentation, AxialForDensePrediction, AxialForMaskedImageModeling)


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


def refuse_inexact_parts(model: Any) -> None:
    """Raises `ValueError` for what does not give the numbers of one process where no rank holds the whole grid."""
    trunks = trunks_of(model)
    if not all(isinstance(trunk, AxialModel) for trunk in trunks):
        raise ValueError(f"{type(model).__name__} reads cells across parts outside of its attention: use gather=True.")
    for trunk in trunks:
        if not isinstance(trunk.pooler, MeanPooling):
            raise ValueError(f"{type(trunk.pooler).__name__} attends to the whole grid: use gather=True.")
        for name in trunk.embeddings.position_names:
            positions = trunk.embeddings.get_submodule(name)
            if not isinstance(positions, LearnedPositionEmbedding):
                raise ValueError(f"{type(positions).__name__} is not known to place a part of a grid: use gather=True.")
    head = getattr(model, "dense_head", None)
    if head is not None and not isinstance(head, LinearDenseHead):
        raise ValueError(f"{type(head).__name__} reads pixels across parts: use gather=True.")


def reads_parts(model: Any) -> bool:
    """Whether a model needs the grid of its trunk nowhere whole."""
    if type(model) in READ_THE_MEAN:
        return isinstance(model.axial.pooler, MeanPooling)
    return type(model) in READ_BY_A_HEAD and isinstance(model.dense_head, LinearDenseHead)


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


def shard_axis(
    model: Model,
    mesh: DeviceMesh,
    axis: int | None = None,
    gather: bool = True,
    timeout: timedelta | None = None,
) -> Model:
    """Splits one axis of the token grid over the ranks of a mesh of one dim; the model, changed in place, is returned.

    Its numbers are those of one process. Positions, masks, reversible trunks and gradient checkpointing work as before,
    and checkpoints are the same. Until `unshard_axis`, all ranks of the mesh call the model together.

    With `gather`, every rank is given the same whole pixels and gets whole results, which are gathered at the end of
    the trunk, behind a linear dense head if its numbers are fewer, or as the mean alone. Without, each is given its
    part of all that lies on the grid (pixels, masks, positions of the split axis), cut by `own_slice`, and gets its
    part of the results; no rank ever holds the whole grid, and the mean over it and losses are those of all parts.

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
        raise ValueError(f"{type(model).__name__} has no axial trunk: give a model of this package, not its wrapper.")
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
    if gather:
        check, make_split = CallCheck(mesh, timeout), LateTrunkSplit if reads_parts(model) else WholeTrunkSplit
    else:
        refuse_inexact_parts(model)
        check = LocalCallCheck(mesh, timeout, axis)
        make_split = partial(LocalTrunkSplit, sizes_of_call=lambda: check.sizes)
        if isinstance(model, AxialDensePreTrainedModel):
            model.loss_function = LossOfParts(model.loss_function, mesh, timeout)
    handles = [model.register_forward_pre_hook(check, with_kwargs=True)]
    if isinstance(model, AxialForCausalImageModeling):
        handles += SharedDraws(model, trunks, mesh).handles
    for trunk in trunks:
        # A decoder may have one axis more than its encoder, in front.
        own_axis = axis - len(grid_shape) + len(trunk.config.axes)
        if own_axis >= 0:
            make = make_split if isinstance(trunk, AxialModel) else TrunkSplit
            split = make(trunk, mesh, own_axis)
            split.handles += handles  # which may be removed more than once
            trunk.executor_class = sharded(trunk.executor_class, split)
            if isinstance(split, LateTrunkSplit) and isinstance(model, AxialDensePreTrainedModel):
                model.numbers_of_pixels = NumbersOfParts(model.numbers_of_pixels, split)
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
        if isinstance(module, AxialDensePreTrainedModel) and isinstance(module.loss_function, LossOfParts):
            module.loss_function = module.loss_function.whole
        if isinstance(module.__dict__.get("numbers_of_pixels"), NumbersOfParts):
            del module.numbers_of_pixels
    return model
