"""What befalls the update of a residual function, x + f(x), before it is added: LayerScale, stochastic depth."""

from collections import OrderedDict

import torch
from torch import nn

from .configuration_axial import AxialConfig


class LayerScale(nn.Module):
    """Each channel times a number to learn: (..., hidden_size) -> the same (Touvron et al. 2021, arXiv 2103.17239).

    All numbers start at `initial_value`, small ones for deep models.
    """

    def __init__(self, hidden_size: int, initial_value: float):
        super().__init__()
        self.initial_value = float(initial_value)
        self.lambda1 = nn.Parameter(torch.full((hidden_size,), self.initial_value))

    def forward(self, update: torch.Tensor) -> torch.Tensor:
        return update * self.lambda1


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): the whole update of a sample is dropped, or kept.

    In training each sample (B, ...) is zeros with the probability `rate`, from 0 up to but without 1, and else divided
    by 1 - rate, so that its mean is what eval mode gives: the update as it is.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, update: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return update
        dropped = torch.rand(update.shape[0], *[1] * (update.dim() - 1), device=update.device) < self.rate
        return (update / (1 - self.rate)).masked_fill(dropped, 0.0)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def make_update(config: AxialConfig, layer_idx: int) -> nn.Sequential:
    """What befalls the updates of a layer, counted from 0: nothing, unless the configuration asks for it.

    Of n layers, layer l drops at `drop_path_rate` · (l + 1) / n, linear over depth as in the paper: the last at the
    whole rate.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if config.layer_scale_init_value is not None:
        parts["layer_scale"] = LayerScale(config.hidden_size, config.layer_scale_init_value)
    if config.drop_path_rate:
        parts["drop_path"] = DropPath(config.drop_path_rate * (layer_idx + 1) / config.num_hidden_layers)
    return nn.Sequential(parts)
