"""Random choices that a model makes before its trunks, made alike on the ranks of a group."""

from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.hooks import RemovableHandle


class SharedDraws:
    """From the call of a model to its first trunk, all ranks draw from one seed, which the first of them draws.

    Then each goes on with its own random state, moved by that one draw.
    """

    def __init__(self, model: nn.Module, trunks: list[nn.Module], mesh: DeviceMesh):
        self.mesh, self.conditions = mesh, ExitStack()
        self.handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.begin),
            model.register_forward_hook(self.end, always_call=True),
            *(trunk.register_forward_pre_hook(self.end) for trunk in trunks),
        ]

    def begin(self, model: nn.Module, args: tuple) -> None:
        if model.training:
            device = next(model.parameters()).device
            seed = torch.randint(2**62, (1,)).to(self.mesh.device_type)
            dist.broadcast(seed, group=self.mesh.get_group(), group_src=0)
            devices = [] if device.type == "cpu" else [device]
            self.conditions.enter_context(torch.random.fork_rng(devices, device_type=device.type))
            torch.default_generator.manual_seed(int(seed))
            if devices:
                torch.get_device_module(device).manual_seed(int(seed))

    def end(self, module: nn.Module, *_: Any) -> None:
        self.conditions.close()
