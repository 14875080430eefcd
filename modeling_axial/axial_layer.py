"""One layer of a trunk as a pair of residual functions: f = attention along the axes, g = feed-forward.

Both include their normalisation in front and their dropout behind; the executor adds the residuals.
"""

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .attention import AxialSelfAttention
from .axis_module import AxisModule
from .configuration_axial import AxialConfig
from .configuration_strict import BlockConfig
from .feed_forward import FEED_FORWARD_CLASSES
from .layer_context import NO_CONTEXT, LayerContext
from .residual_updates import make_update
from .reversible import OneStream, TwoStream
from .set_attention import InducedAxialAttention
from .window_attention import MaskedWindowAttention, WindowedAxialAttention

logger = logging.get_logger(__name__)


# What mixes the cells of an axis: classes made of (config, axis), that take (hidden_states, context).
MIXER_CLASSES: dict[str, type[AxisModule]] = {
    "full": AxialSelfAttention,
    "induced": InducedAxialAttention,
    "window": WindowedAxialAttention,
}

# The same where a block has one axis alone: made of (config, axis, is_causal).
BLOCK_MIXER_CLASSES: dict[str, type[AxialSelfAttention]] = {
    "full": AxialSelfAttention,
    "window": MaskedWindowAttention,
}


def make_axes(config: AxialConfig, layer_idx: int) -> nn.ModuleList:
    """The mixers of the axes of a layer, as the configuration describes them, named after their axes."""
    mixers = nn.ModuleList()
    for axis in config.axes_of_layer(layer_idx):
        # Not append, which would name the only axis of a layer 0 whichever it is.
        mixers.add_module(str(axis.axis), MIXER_CLASSES[axis.mixer](config, axis.axis))
    return mixers


class SummedAxialAttention(nn.Module):
    """f(h) = Σ_a Attention_a(norm(h)) over the axes of the layer: all read the same input, a cell reaches its cross.

    Heads that are shared out over the axes make it the attention of CSWin (Dong et al. 2022, arXiv 2107.00652), whose
    heads stand side by side before one output projection: that is the sum of the projections of each axis' heads.
    A layer of one axis reaches its line.
    """

    def __init__(self, config: AxialConfig, layer_idx: int = 0):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.axes = make_axes(config, layer_idx)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        normalised = self.norm(hidden_states)
        return reduce(torch.add, (self.dropout(attention(normalised, context)) for attention in self.axes))


class SequentialAxialAttention(nn.Module):
    """f(h) = Σ_a u_a with u_a = Attention_a(norm_a(h + u_0 + ... + u_{a-1})).

    Each axis reads what the axes before it wrote, so a cell reaches the full grid. The residual sum inside f keeps a
    cell's own content in view of every axis; in the sequential mode of `axial_attention` each sees only the output of
    the last.
    """

    def __init__(self, config: AxialConfig, layer_idx: int = 0):
        super().__init__()
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(config.num_axes)
        )
        self.axes = make_axes(config, layer_idx)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        updates = []
        for norm, attention in zip(self.norms, self.axes, strict=True):
            updates.append(self.dropout(attention(norm(hidden_states), context)))
            hidden_states = hidden_states + updates[-1]
        return reduce(torch.add, updates)


class OneAxisAttention(nn.Module):
    """f(h) = dropout(Attention_axis(norm(h))), one axis alone."""

    def __init__(self, config: BlockConfig, axis: int, is_causal: bool):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = BLOCK_MIXER_CLASSES[config.axes[axis].mixer](config, axis, is_causal)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        return self.dropout(self.attention(self.norm(hidden_states), context))

    @property
    def last_projection(self) -> nn.Module:
        return self.attention.o_proj


# Classes made of (config, layer_idx). Modes may differ in the axes of a layer and the heads of an axis alone, which the
# configuration describes.
ATTENTION_CLASSES = {
    "sequential": SequentialAxialAttention,
    "sum": SummedAxialAttention,
    "split": SummedAxialAttention,
    "alternating": SummedAxialAttention,
}


class AxialFeedForward(nn.Module):
    """g(h) = dropout(feed_forward(norm(h)))."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.net = FEED_FORWARD_CLASSES[config.feed_forward](config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        return self.dropout(self.net(self.norm(hidden_states), context))

    @property
    def last_projection(self) -> nn.Module:
        return self.net.last_projection


class ResidualLayer(GradientCheckpointingLayer):
    """Runs its pair (f, g) on the residual streams through an executor of `reversible.py`.

    `make_update`: makes what befalls the output of f, and that of g, before it is added.
    """

    def __init__(
        self, attention: nn.Module, feed_forward: nn.Module, make_update: Callable[[], nn.Module] = nn.Identity
    ):
        super().__init__()
        self.attention = attention
        self.attention_update = make_update()
        self.feed_forward = feed_forward
        self.feed_forward_update = make_update()

    def forward(
        self,
        *streams: torch.Tensor,
        executor,
        context: LayerContext = NO_CONTEXT,
        output_hidden_states: bool = False,
    ):
        """One stream (B, *grid, hidden_size): returns the new stream.

        Two streams: returns (mean of the new streams or None, the two new streams). The mean stands first because
        that is where transformers records hidden states, and is only computed when they are asked for.
        """

        def attention(hidden_states: torch.Tensor) -> torch.Tensor:
            return self.attention_update(self.attention(hidden_states, context))

        def feed_forward(hidden_states: torch.Tensor) -> torch.Tensor:
            return self.feed_forward_update(self.feed_forward(hidden_states, context))

        streams = executor.couple(attention, feed_forward, *streams)
        if len(streams) == 1:
            return streams[0]
        return executor.leave(*streams) if output_hidden_states else None, *streams


def run_layers(
    layers: nn.ModuleList,
    executor_class: type[OneStream] | type[TwoStream],
    hidden_states: torch.Tensor,
    layer_context: LayerContext = NO_CONTEXT,
    output_hidden_states: bool = False,
) -> torch.Tensor:
    """(B, *grid, hidden_size) through a chain of `ResidualLayer`s, which share `layer_context`; the same shape out.

    `executor_class`: of `reversible.py`. Where layers are checkpointed, the one that stores activations stands in for
    one that rebuilds them: checkpointing keeps the streams between the layers, so that nothing is left to rebuild.
    """
    checkpointed = any(layer.gradient_checkpointing and layer.training for layer in layers)
    if executor_class.stored is not None and checkpointed:
        logger.warning_once(
            "Gradient checkpointing stores the streams between all layers. Without it a reversible model rebuilds them "
            "and needs less memory."
        )
        executor_class = executor_class.stored
    executor = executor_class()
    streams = executor.enter(hidden_states)
    for layer in layers:
        output = layer(*streams, executor=executor, context=layer_context, output_hidden_states=output_hidden_states)
        streams = output[1:] if isinstance(output, tuple) else (output,)
    return executor.leave(*streams)


class AxialLayer(ResidualLayer):
    """Attention along the axes of the layer, then a feed-forward. `layer_idx`: how many layers stand before it."""

    def __init__(self, config: AxialConfig, layer_idx: int = 0):
        super().__init__(
            ATTENTION_CLASSES[config.attention_mode](config, layer_idx),
            AxialFeedForward(config),
            partial(make_update, config, layer_idx),
        )


class OneAxisLayer(ResidualLayer):
    """Attention along one axis, causal or not, then a feed-forward."""

    def __init__(self, config: BlockConfig, axis: int, is_causal: bool):
        super().__init__(OneAxisAttention(config, axis, is_causal), AxialFeedForward(config))
