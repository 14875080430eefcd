"""Processes in groups, each of which runs one model together, split along an axis of its grid."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import recursively_apply
from torch.distributed.device_mesh import init_device_mesh


class AxisAccelerator(Accelerator):
    """
    An `Accelerator` whose processes are groups of `axis_parallel_size` neighbours. Those of a group work on the same
    examples, of which `gather` and `gather_for_metrics` give each once. With groups of one it is like any other.

    Attributes: `share`, (number, count): which of so many shares of the examples this process has. `axis_mesh`: the
    group, for `shard_axis`; `data_group`: the processes of one place in their groups, which have all examples once.
    Both are None with groups of one, which needs neither.

    Args:
        axis_parallel_size (`int`): processes of a group.
        kwargs: those of `Accelerator`.

    Raises:
        `ValueError`: if the processes do not make whole groups.
    """

    def __init__(self, axis_parallel_size: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        if axis_parallel_size < 1 or self.num_processes % axis_parallel_size:
            raise ValueError(
                f"axis_parallel_size={axis_parallel_size} must divide the number of processes, {self.num_processes}: "
                "start another number of them"
            )
        self.axis_parallel_size = axis_parallel_size
        self.share = self.process_index // axis_parallel_size, self.num_processes // axis_parallel_size
        self.axis_mesh = self.data_group = None
        if axis_parallel_size > 1:
            mesh = init_device_mesh(
                self.device.type, (self.share[1], axis_parallel_size), mesh_dim_names=("data", "axis")
            )
            self.axis_mesh, self.data_group = mesh["axis"], mesh["data"].get_group()

    def gather(self, tensor: Any) -> Any:
        """Tensors, or containers of them, of one process of each group, along their first dim."""
        gathered = super().gather(tensor)
        if self.axis_parallel_size == 1:
            return gathered
        return recursively_apply(self._of_each_group_once, gathered)

    def _of_each_group_once(self, gathered: torch.Tensor) -> torch.Tensor:
        return gathered.unflatten(0, (self.share[1], self.axis_parallel_size, -1))[:, 0].flatten(0, 1)
