"""The classes of `axial_attention` 0.6.1, under the names and parameters that its users know, on this project's parts.

Weights go both ways: the parameters have the same names and shapes, and the same random seed draws the same initial
weights. The words `dim`, `dim_index`, `heads`, `dim_heads` and `num_dimensions` are used in this file only: `dim` is
the number of channels, `dim_index` the tensor dimension that holds them, `num_dimensions` the number of axes.

How this differs from the package: channels move to the end once instead of once per axis, attention is fused, and what
the page docs/migrate/axial_attention.md lists is repaired.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.output_capturing import OutputRecorder

from .attention import axial_attention
from .attention_interfaces import eager_attention_forward
from .configuration_image_transformer import AxialImageTransformerConfig
from .forward_keywords import records_outputs, refuse_unknown_keywords
from .remote_code import CodeCarryingModel
from .reversible import OneStream, RebuiltTwoStream, in_full_under_autocast

# Tokens for each thread that are projected and attended at a time on a CPU: what lies between two steps need not leave
# the cache, takes little memory, and uses the same pages again and again.
BLOCK_TOKENS = 8_192


def tokens_at_once() -> int:
    return BLOCK_TOKENS * torch.get_num_threads()


def channel_dim(name: str, index: int, num_dimensions: int) -> int:
    """The tensor dimension of the channels counted from 0, for an `index` that may be negative."""
    num_dims = num_dimensions + 2
    if index % num_dims == 0 or not -num_dims <= index < num_dims:
        raise ValueError(
            f"{name}={index} must be the dimension of the channels among {num_dims} (batch, {num_dimensions} axes, "
            f"channels): 1 to {num_dims - 1}, or -1 to {1 - num_dims}. Dimension 0 is the batch."
        )
    return index % num_dims


def check_input(x: torch.Tensor, dim: int, dim_index: int, num_dimensions: int) -> None:
    """Raises `ValueError` unless x has a batch, `num_dimensions` axes, and `dim` channels at `dim_index`."""
    if x.dim() != num_dimensions + 2 or x.shape[dim_index] != dim:
        raise ValueError(
            f"The input must have {num_dimensions + 2} dimensions (batch, num_dimensions={num_dimensions} axes, "
            f"channels) with dim={dim} channels at dimension {dim_index}, got shape {tuple(x.shape)}."
        )


class AxialPositionalEmbedding(nn.Module):
    """Adds one learned vector per axis and position: x[.., i, .., j, ..] + param_0[i] + param_1[j] + ...

    Args:
        dim: channels of the input.
        shape: positions in the table of each axis, slow to fast. Smaller inputs use the leading positions.
        emb_dim_index: dimension of the channels.

    Raises:
        ValueError: for an `emb_dim_index` that is none, and for inputs that do not fit or exceed a table.
    """

    def __init__(self, dim: int, shape: Sequence[int], emb_dim_index: int = 1):
        super().__init__()
        self.dim = dim
        self.emb_dim_index = channel_dim("emb_dim_index", emb_dim_index, len(shape))
        self.axis_dims = tuple(d for d in range(1, len(shape) + 2) if d != self.emb_dim_index)
        for axis, length in enumerate(shape):
            table_shape = [1] * (len(shape) + 2)
            table_shape[self.emb_dim_index], table_shape[self.axis_dims[axis]] = dim, length
            self.register_parameter(f"param_{axis}", nn.Parameter(torch.empty(table_shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self.parameters():
            nn.init.normal_(table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_input(x, self.dim, self.emb_dim_index, len(self.axis_dims))
        for axis, axis_dim in enumerate(self.axis_dims):
            # Not get_parameter, which refuses the plain tensors that functional_call puts in place of parameters.
            table, length = getattr(self, f"param_{axis}"), x.shape[axis_dim]
            if length > table.shape[axis_dim]:
                raise ValueError(
                    f"The input has {length} positions along axis {axis}, the positional table only "
                    f"{table.shape[axis_dim]}: make it with the shape of the largest input, got {tuple(x.shape)}."
                )
            x = x + table.narrow(axis_dim, 0, length)
        return x


class AttentionMaps(nn.Identity):
    """Passes on the attention weights of a `SelfAttention`, to be recorded here."""


class SelfAttention(nn.Module):
    """Multi-head attention: (B, length, dim) -> the same shape, or along one `axis` of any grid (B, *grid, dim).

    Args:
        dim: channels of input and output.
        heads, dim_heads: number and width of the heads; `dim // heads` wide if not given.

    Raises:
        ValueError: if `dim_heads` is not given and `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, dim_heads: int | None = None):
        super().__init__()
        if dim_heads is None and (heads < 1 or dim % heads):
            raise ValueError(f"dim={dim} must be a multiple of heads={heads}, or dim_heads must be given.")
        self.heads = heads
        self.dim_heads = dim // heads if dim_heads is None else dim_heads
        dim_hidden = self.heads * self.dim_heads
        self.to_q = nn.Linear(dim, dim_hidden, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_hidden, bias=False)
        self.to_out = nn.Linear(dim_hidden, dim)
        self.maps = AttentionMaps()

    def forward(
        self,
        x: torch.Tensor,
        kv: torch.Tensor | None = None,
        axis: int = 0,
        attention_interface: Callable | None = None,
    ) -> torch.Tensor:
        """`kv`: what to read instead of x, shaped as x but for the length along `axis`. `attention_interface`: a
        function of transformers' `AttentionInterface`; PyTorch's fused attention by default."""
        query = self.to_q(x)
        key, value = self.to_kv(x if kv is None else kv).chunk(2, dim=-1)
        query, key, value = (states.unflatten(-1, (self.heads, self.dim_heads)) for states in (query, key, value))
        output, weights = axial_attention(query, key, value, axis, attention_interface=attention_interface, module=self)
        if weights is not None:
            self.maps(weights)
        return self.to_out(output.flatten(-2))


class InducedSetAttention(nn.Module):
    """`num_queries` learned queries read x, then x reads the result: (B, length, dim) -> the same shape.

    The induced attention of the Set Transformer (Lee et al. 2019, arXiv 1810.00825) without its residuals, norms and
    feed-forward, linear in the length and equivariant to permutations of it; as in `axial_attention` 0.2.2 to 0.3.2,
    but that `dim_heads` counts.
    """

    def __init__(self, num_queries: int, dim: int, heads: int, dim_heads: int | None = None):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, num_queries, dim))
        self.reset_parameters()
        self.attn_in = SelfAttention(dim, heads, dim_heads)
        self.attn_out = SelfAttention(dim, heads, dim_heads)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.queries)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        induced = self.attn_in(self.queries.expand(x.shape[0], -1, -1), x)
        return self.attn_out(x, induced)


def by_blocks_of_lines(
    function: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor, axis: int
) -> torch.Tensor:
    """function(hidden_states) where function treats lines along `axis` alone, for some lines at a time.

    Args:
        function: (lines, L, dim) -> the same shape.
        hidden_states: (B, *grid, dim), L long along `axis`.
    """
    lines = hidden_states.movedim(axis + 1, -2)
    flat = lines.flatten(0, -3)  # attention on lines whose cells lie far apart in memory misses the cache
    lines_at_once = max(1, tokens_at_once() // flat.shape[1])
    blocks = map(function, flat.split(lines_at_once))
    if torch.is_grad_enabled():
        output = torch.cat(list(blocks))
    else:
        first = next(blocks)
        output = first.new_empty(flat.shape)
        for place, block in zip(output.split(lines_at_once), itertools.chain([first], blocks), strict=True):
            place.copy_(block)
    return output.view(lines.shape).movedim(-2, axis + 1)


class AlongAxis(nn.Module):
    """(B, *grid, dim) -> the same shape, through `fn(hidden_states, axis=axis)`, in blocks of lines where that pays.

    An `attention_interface` is handed to `fn`, with all lines at once, so that its maps are whole.
    """

    def __init__(self, axis: int, fn: nn.Module):
        super().__init__()
        self.axis = axis
        self.fn = fn

    def forward(self, hidden_states: torch.Tensor, attention_interface: Callable | None = None) -> torch.Tensor:
        if attention_interface is not None:
            return self.fn(hidden_states, axis=self.axis, attention_interface=attention_interface)
        eager_on_cpu = hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        if eager_on_cpu and hidden_states.shape[:-1].numel() > tokens_at_once():
            return by_blocks_of_lines(self.fn, hidden_states, self.axis)
        return self.fn(hidden_states, axis=self.axis)


class AxialAttention(nn.Module):
    """Attention along each axis of an input whose channels may stand anywhere; same shape out. No residual, no norm.

    Args:
        dim: number of channels.
        num_dimensions: number of axes, 2 for pictures, 3 for video, whatever the number of channels.
        heads, dim_heads: number and width of the heads; `dim // heads` wide if not given.
        dim_index: dimension of the channels; dimension 0 is the batch.
        sum_axial_out: all axes read the input and their outputs are added; else each axis reads the output of the one
            before (slow to fast).

    Raises:
        ValueError: for sizes that do not fit together, in the constructor or in the input; in backward where second
            derivatives are taken, as fused attention has none: run forward and backward inside
            `torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)` to take them.
    """

    def __init__(
        self,
        dim: int,
        num_dimensions: int = 2,
        heads: int = 8,
        dim_heads: int | None = None,
        dim_index: int = -1,
        sum_axial_out: bool = True,
    ):
        super().__init__()
        if num_dimensions < 1:
            raise ValueError(f"num_dimensions={num_dimensions} must be at least 1: the axes, without the channels.")
        self.dim = dim
        self.num_dimensions = num_dimensions
        self.dim_index = channel_dim("dim_index", dim_index, num_dimensions)
        self.sum_axial_out = sum_axial_out
        self.axial_attentions = nn.ModuleList(
            AlongAxis(axis, SelfAttention(dim, heads, dim_heads)) for axis in range(num_dimensions)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_input(x, self.dim, self.dim_index, self.num_dimensions)
        output = self._attend(x.movedim(self.dim_index, -1).contiguous())
        return output.movedim(-1, self.dim_index).contiguous()

    def _attend(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.sum_axial_out:
            for attention in self.axial_attentions:
                hidden_states = attention(hidden_states)
            return hidden_states
        first, *others = self.axial_attentions
        total = first(hidden_states)
        for index, attention in enumerate(others):
            # In place from the second time on: what forward hooks have seen of the first axis stays as it was.
            total = total.add_(attention(hidden_states)) if index else total + attention(hidden_states)
        return total


class PreNorm(nn.Module):
    """fn(norm(x), ...)."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.fn(self.norm(hidden_states), **kwargs)


class ChannelNorm(nn.Module):
    """(x - mean) / (std + 1e-5) · g + b over the channels of (B, dim, *grid). `axial_attention` adds to the deviation.

    Where all channels are equal the gradient through the deviation is taken as 0; that of `axial_attention` is NaN.
    """

    def __init__(self, dim: int, num_dimensions: int):
        super().__init__()
        self.g = nn.Parameter(torch.empty(1, dim, *[1] * num_dimensions))
        self.b = nn.Parameter(torch.empty(1, dim, *[1] * num_dimensions))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.g)
        nn.init.zeros_(self.b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        # torch.std is an order of magnitude slower over dense channels.
        std = torch.linalg.vector_norm(centred, dim=1, keepdim=True) * x.shape[1] ** -0.5
        return torch.addcmul(self.b, centred / (std + 1e-5), self.g)


class ConvolutionFeedForward(nn.Sequential):
    """Norm, 3-wide convolution to 4 · dim, leaky ReLU, 3-wide convolution back: (B, *grid, dim) -> the same shape."""

    def __init__(self, dim: int, num_dimensions: int):
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[num_dimensions]
        super().__init__(
            ChannelNorm(dim, num_dimensions),
            convolution(dim, 4 * dim, kernel_size=3, padding=1),
            nn.LeakyReLU(inplace=True),
            convolution(4 * dim, dim, kernel_size=3, padding=1),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.movedim(-1, 1)).movedim(1, -1)


def attend_through(attention_interface: Callable | None, function: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function, its attention done by `attention_interface` if it attends and there is one."""
    if attention_interface is None or not isinstance(function, AlongAxis):
        return function
    return partial(function, attention_interface=attention_interface)


class TwoStreamPair(nn.Module):
    """A pair of residual functions for two streams, under the parameter names of `axial_attention`."""

    def __init__(self, f: nn.Module, g: nn.Module):
        super().__init__()
        self.f = nn.ModuleDict({"net": f})
        self.g = nn.ModuleDict({"net": g})

    def forward(self, *streams: torch.Tensor, executor, attention_interface=None) -> tuple[torch.Tensor, ...]:
        f, g = (attend_through(attention_interface, function["net"]) for function in (self.f, self.g))
        return executor.couple(f, g, *streams)


class OneStreamPair(nn.ModuleList):
    """A pair of residual functions for one stream, under the parameter names of `axial_attention`."""

    def forward(self, *streams: torch.Tensor, executor, attention_interface=None) -> tuple[torch.Tensor, ...]:
        f, g = (attend_through(attention_interface, function) for function in self)
        return executor.couple(f, g, *streams)


class StackOfPairs(nn.Module):
    """Takes residual functions two by two and runs them through an executor of `reversible.py`.

    `executor_class` may be changed at any time: `TwoStream` gives the same numbers as `RebuiltTwoStream`, and is faster
    in training for the price of storing the activations.
    """

    def __init__(self, functions: list[nn.Module], reversible: bool):
        super().__init__()
        pairs = zip(functions[::2], functions[1::2], strict=True)
        self.blocks = nn.ModuleList(TwoStreamPair(f, g) if reversible else OneStreamPair([f, g]) for f, g in pairs)
        self.executor_class = RebuiltTwoStream if reversible else OneStream

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_interface: Callable | None = None,
        after_block: Callable[[int, torch.Tensor], object] | None = None,
    ) -> torch.Tensor:
        """`after_block`: called after each block with the number of blocks so far and what the streams stand for."""
        executor = self.executor_class()
        streams = executor.enter(hidden_states)
        for number, block in enumerate(self.blocks, start=1):
            streams = block(*streams, executor=executor, attention_interface=attention_interface)
            if after_block is not None:
                after_block(number, executor.leave(*streams))
        return executor.leave(*streams)


class LayerStates(nn.Module):
    """(before, after) -> after. Recorded here: the states before and after the first layer, then those after each."""

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return after


class AxialImageTransformer(nn.Module):
    """`depth` layers on feature maps, same shape out. A layer is, along each axis in turn, attention(norm(x)), then as
    many convolutional feed-forwards, each a residual function; they are executed two by two.

    Args:
        dim: number of channels.
        depth: number of layers.
        heads, dim_heads: number and width of the heads; `dim // heads` wide if not given.
        dim_index: dimension of the channels; dimension 0 is the batch.
        reversible: two residual streams, entered with (x, x) and left with their mean, whose activations are rebuilt in
            backward, so that memory does not grow with depth; else one stream. Two different functions of the weights.
        axial_pos_emb_shape: positions to learn along each axis, slow to fast; no positions if not given.
        num_dimensions: number of axes, 1 to 3.

    Raises:
        ValueError: for sizes that do not fit together, in the constructor or in the input; for second derivatives as in
            `AxialAttention`; where activations are rebuilt, for torch.func transforms and in a backward that
            forward-mode derivatives are taken of, which `layers.executor_class = TwoStream` allows.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int = 8,
        dim_heads: int | None = None,
        dim_index: int = 1,
        reversible: bool = True,
        axial_pos_emb_shape: Sequence[int] | None = None,
        num_dimensions: int = 2,
    ):
        super().__init__()
        if not 1 <= num_dimensions <= 3:
            raise ValueError(
                f"num_dimensions={num_dimensions} must be 1, 2 or 3, as the feed-forward is a convolution; "
                'AxialModel with feed_forward="mlp" takes any number of axes.'
            )
        if axial_pos_emb_shape is not None and len(axial_pos_emb_shape) != num_dimensions:
            raise ValueError(
                f"axial_pos_emb_shape={axial_pos_emb_shape} must have one length per axis, num_dimensions="
                f"{num_dimensions}."
            )
        self.dim = dim
        self.num_dimensions = num_dimensions
        self.dim_index = channel_dim("dim_index", dim_index, num_dimensions)
        learned = axial_pos_emb_shape is not None
        self.pos_emb = AxialPositionalEmbedding(dim, axial_pos_emb_shape, dim_index) if learned else nn.Identity()
        functions = []
        for _ in range(depth):
            functions += [
                AlongAxis(axis, PreNorm(dim, SelfAttention(dim, heads, dim_heads))) for axis in range(num_dimensions)
            ]
            functions += [ConvolutionFeedForward(dim, num_dimensions) for _ in range(num_dimensions)]
        self.layers = StackOfPairs(functions, reversible)
        self.states = LayerStates()

    def forward(
        self, x: torch.Tensor, attention_interface: Callable | None = None, output_hidden_states: bool = False
    ) -> torch.Tensor:
        """`attention_interface`: a function of transformers' `AttentionInterface`, fused attention by default.
        `output_hidden_states`: whether `states` is called after each layer."""
        check_input(x, self.dim, self.dim_index, self.num_dimensions)
        x = in_full_under_autocast(self.pos_emb(x))

        def after_block(number: int, hidden_states: torch.Tensor) -> None:
            if number % self.num_dimensions == 0:  # a layer of as many blocks
                self.states(x, self._channels_back(hidden_states))

        hidden_states = x.movedim(self.dim_index, -1).contiguous()
        recorder = after_block if output_hidden_states else None
        return self._channels_back(self.layers(hidden_states, attention_interface, recorder))

    def _channels_back(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.movedim(-1, self.dim_index).contiguous()


@auto_docstring(custom_intro="The image transformer of `axial_attention` on feature maps, as a model of transformers.")
class AxialImageTransformerModel(CodeCarryingModel):
    config: AxialImageTransformerConfig
    base_model_prefix = "axial_image_transformer"
    main_input_name = "feature_maps"
    input_modalities = "image"
    _no_split_modules = ["AxialPositionalEmbedding", "TwoStreamPair", "OneStreamPair"]
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": LayerStates, "attentions": OutputRecorder(AttentionMaps)}
    code_auto_map = {
        "AutoConfig": "configuration_image_transformer.AxialImageTransformerConfig",
        "AutoModel": "image_transformer.AxialImageTransformerModel",
    }

    def __init__(self, config: AxialImageTransformerConfig):
        super().__init__(config)
        self.transformer = AxialImageTransformer(
            dim=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            dim_heads=config.head_dim,
            reversible=config.reversible,
            axial_pos_emb_shape=config.position_embedding_shape,
            num_dimensions=config.num_axes,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The initial weights of axial_attention are PyTorch's own, which every module with parameters draws itself.
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()

    @records_outputs
    @auto_docstring
    def forward(self, feature_maps: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        r"""
        feature_maps (`torch.FloatTensor` of shape `(batch_size, hidden_size, *grid)`):
            Features of one picture, clip or volume each, on any grid. With learned positions the grid may not exceed
            `position_embedding_shape`.

        Returns `last_hidden_state` of the same shape.

        With `output_hidden_states`, `num_hidden_layers + 1` feature maps: with the positions, then after each layer
        (the mean of the two streams where there are two), the last being `last_hidden_state`. With
        `output_attentions`, one map `(batch_size · lines, num_attention_heads, length, length)` for each layer and
        axis, layer by layer and axes slow to fast, lines ordered as the remaining axes, slow to fast; attention is
        eager for that call.
        """
        refuse_unknown_keywords(self, kwargs)
        implementation = self.config._attn_implementation or "sdpa"
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if kwargs.get("output_attentions", self.config.output_attentions):
            interface = eager_attention_forward
        last_hidden_state = self.transformer(
            feature_maps,
            attention_interface=None if interface is sdpa_attention_forward else interface,
            output_hidden_states=bool(kwargs.get("output_hidden_states", self.config.output_hidden_states)),
        )
        return BaseModelOutput(last_hidden_state=last_hidden_state)
