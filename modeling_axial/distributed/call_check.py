"""What is looked at before each call of a model of which each rank runs its part."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from ..modeling_axial_heads import AxialForVideoClassification
from .agreement import arguments_in_words, check_agreement, named_arguments
from .switching import shard_sizes


class CallCheck:
    """All ranks along the axis are given the same, or all raise."""

    def __init__(self, mesh: DeviceMesh, timeout: timedelta | None):
        self.mesh, self.timeout = mesh, timeout

    def __call__(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.agree(model, arguments_in_words(model.forward, args, kwargs), [], "")

    def agree(self, model: nn.Module, arguments: list[str], refusals: list[str], told: str) -> list[str]:
        """What each rank has `told`, after all have found that they call the model in the same mode, with the same
        `arguments`, and that none refuses."""
        if model.training and torch.is_grad_enabled():
            refusals = refusals + self.missing_wrapper(model)
        entries = [
            f"train() = {model.training}",
            f"gradients enabled = {torch.is_grad_enabled()}",
            f"trainable parameters = {sum(parameter.requires_grad for parameter in model.parameters())}",
            *arguments,
        ]
        return check_agreement(entries, refusals, self.mesh, self.timeout, told)

    def missing_wrapper(self, model: nn.Module) -> list[str]:
        """Why gradients would not be averaged over all ranks; empty if they are."""
        wrapper = DistributedDataParallel._get_active_ddp_module()
        if wrapper is not None:
            reduced = dist.get_process_group_ranks(wrapper.process_group)
            if set(dist.get_process_group_ranks(self.mesh.get_group())) <= set(reduced):
                return []
            return [
                f"gradients are averaged over the ranks {reduced} only, but must be over all, those along the split "
                "axis too: give DistributedDataParallel the default process group."
            ]
        if any(isinstance(module, FSDPModule) for module in model.modules()):
            return []
        return [
            "training a model that is split along an axis needs gradients averaged over all ranks: wrap it in "
            "DistributedDataParallel or fully_shard, or let Accelerate do so."
        ]


class LocalCallCheck(CallCheck):
    """Each rank along the axis is given its own part of one grid, or all raise.

    Parts cannot be compared: of tensors only the number of dims and the dtype are, and the other sides of the pixels.
    `sizes`: the cells of each rank along the axis in the present call.
    """

    def __init__(self, mesh: DeviceMesh, timeout: timedelta | None, axis: int):
        super().__init__(mesh, timeout)
        self.axis = axis
        self.sizes: list[int] = []

    def __call__(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given = named_arguments(model.forward, args, kwargs)
        pixel_values, patch, refusals = given.pop("pixel_values", None), model.config.patch_shape[self.axis], []
        words, cells = [f"{name} = {in_outline(value)}" for name, value in given.items()], 0
        if isinstance(pixel_values, Tensor) and pixel_values.dim() == len(model.config.patch_shape) + 2:
            # Clips have the frames in front of the channels.
            dim = 1 if isinstance(model, AxialForVideoClassification) and self.axis == 0 else self.axis + 2
            pixels = pixel_values.shape[dim]
            sides = [str(side) for side in pixel_values.shape]
            sides[dim] = "its part"
            words.insert(0, f"pixel_values = ({', '.join(sides)}) {pixel_values.dtype}")
            cells = pixels // patch
            if pixels % patch:
                refusals.append(
                    f"a part of {pixels} pixels along axis {self.axis} is not cut between patches of {patch}."
                )
        else:
            refusals.append(f"pixel_values must be a tensor of {len(model.config.patch_shape) + 2} dims.")
        sizes = [int(told) for told in self.agree(model, words, refusals, str(cells))]
        if sizes != shard_sizes(sum(sizes), len(sizes)) or 0 in sizes:
            raise ValueError(
                f"the ranks along axis {self.axis} were given {sizes} cells, but must have "
                f"{shard_sizes(sum(sizes), len(sizes))} of {sum(sizes)}, and each at least one: cut by own_slice."
            )
        self.sizes = sizes


def in_outline(value: Any) -> str:
    """What the parts of one tensor have in common, or the text of another value."""
    if isinstance(value, Tensor):
        return f"{value.dim()} dims of {value.dtype}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_outline, value))}]"
    return repr(value)
