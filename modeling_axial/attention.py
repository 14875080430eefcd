"""Attention along one axis of an N-dimensional token grid.

Shapes: B batch, *G grid axes slow to fast, N heads, D head_dim, L length of the attended axis,
P product of B and the axes before it, S product of the axes after it.

How this differs from `axial_attention` 0.6.1: lines are folded by views instead of permuted copies, every
call goes through a fused kernel, masks, causality and dropout exist, and a grid of more lines than a CUDA kernel
accepts is split.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_interfaces import INTERFACES, LINES_AS_HEADS, ZEROS_WITHOUT_KEY, eager_attention_forward
from .axis_module import AxisModule
from .configuration_strict import AxisDescription, BlockConfig
from .layer_context import NO_CONTEXT, LayerContext
from .masks import broadcasts, clear_masked
from .position_embeddings import AxisCells, line_classes, prepare_line

# CUDA attention kernels put batch and heads on grid dimensions that end at 65,535 (pytorch #142228, #146704).
MAX_LINES = 65_535
# The backward of flash attention counts with 32 bits what it accumulates for queries: batch, heads, the length in tiles
# of 128, head_dim of at least 32. Beyond, it reads foreign memory (flash-attention #1500, measured in TabPFN #1184).
MAX_ACCUMULATED = {"cuda": 2**31}


def fold_lines_into_heads(states: torch.Tensor, axis: int) -> torch.Tensor:
    """(B, *G, N, D) -> (P, S·N, L, D), a view of a contiguous tensor: axes after `axis` become heads."""
    return states.flatten(0, axis).flatten(2, -2).transpose(1, 2)


def fold_lines_into_batch(states: torch.Tensor, axis: int) -> torch.Tensor:
    """(B, *G, N, D) -> (P·S, N, L, D), lines ordered as the remaining axes, slow to fast."""
    return states.movedim(axis + 1, -3).flatten(0, -4).transpose(1, 2)


def fold_pairs(pairs: torch.Tensor, fold: Callable, query: torch.Tensor, axis: int) -> torch.Tensor:
    """What the lines of a sample share, as the scores of lines folded by `fold`, where sizes of 1 stay.

    `query` is (B, *G, N, D), and `pairs` broadcasts to (N, queries, keys), to (B, N, queries, keys), or, where lines
    differ by the axes before `axis`, to (B, *those, N, queries, keys).
    """
    batch = () if pairs.dim() == 3 else pairs.shape[: pairs.dim() - 3]
    slower = (*batch, *[1] * (axis + 1 - len(batch)))
    # Repeated only where the dim that takes these lines counts something else, too.
    into_heads = fold is fold_lines_into_heads
    shared = all(size == 1 for size in slower)
    alone = pairs.shape[-3] == 1 if into_heads else shared
    after = 1 if alone else math.prod(query.shape[axis + 2 : -2])
    pairs = pairs.reshape(*slower, 1, *pairs.shape[-3:])
    pairs = pairs.expand(*(slower if shared else query.shape[: axis + 1]), after, -1, -1, -1)
    return pairs.flatten(axis + 1, axis + 2).flatten(0, axis) if into_heads else pairs.flatten(0, axis + 1)


def axial_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    axis: int,
    *,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    pair_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    scaling: float | None = None,
    attention_interface: Callable | None = None,
    module: nn.Module | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Multi-head attention along one grid axis; every line along that axis is an independent sequence.

    For each line: softmax(Q·Kᵀ·scaling + bias)·V, so each cell reads the cells that differ from it in coordinate
    `axis` only (Ho et al. 2019, arXiv 1912.12180). A query that may attend to no key gives zeros.

    Args:
        query: (B, *G, N, D), any number of grid axes.
        key, value: as `query`, but the length along `axis` may differ, and the head_dim of `value` too.
        axis: the grid axis to attend along, counted from 0 (slowest); negative values are refused.
        mask: boolean over the keys, broadcastable to (B, *G of key); True = may be attended. What stands in other keys
            and values, NaN included, has no effect, nor has a query that is not finite in such a cell where queries and
            keys have one grid: it counts as zeros.
        bias: floating point, added to the scaled scores in the dtype of `query`; the same for all lines. With 3
            dimensions it broadcasts to (N, queries, keys), with 4 to (B, N, queries, keys), where queries and keys are
            the lengths along `axis`. Finite, but for pairs that may not be attended, where it has no effect.
        pair_mask: boolean, True = this query may attend to this key, of shapes as those of `bias`. Unlike `mask`, it
            does not hide numbers that are not finite in `key` and `value`.
        is_causal: position t attends to positions <= t; query and key then have the same length.
        dropout: probability of dropping an attention weight; applied as given, so pass 0.0 outside training.
        scaling: factor of the scores, D ** -0.5 by default.
        attention_interface: a function of transformers' `AttentionInterface`; PyTorch's fused attention by default.
            Its attention mask is boolean, or with a `bias` the additive one: the bias, -inf where masked.
        module: handed to the interface as its first argument.

    Returns:
        The output, shaped as `query` with the head_dim of `value`, and the attention weights (B·lines, N, L, L) where
        the interface gives them (lines ordered as the remaining axes, slow to fast), else None.

    Raises:
        ValueError: for shapes, an axis, masks or a bias that do not fit together.
    """
    _check_arguments(query, key, value, axis, mask, bias, pair_mask, is_causal)
    if mask is not None:
        mask = mask.expand(key.shape[:-2])
        key, value = clear_masked(key, mask), clear_masked(value, mask)
        if query.shape == key.shape:
            query = query.masked_fill(~mask[..., None, None] & ~query.isfinite(), 0.0)
    return attend_along_axis(
        query,
        key,
        value,
        axis,
        mask=mask,
        bias=bias,
        pair_mask=pair_mask,
        is_causal=is_causal,
        dropout=dropout,
        scaling=scaling,
        attention_interface=attention_interface,
        module=module,
    )


def attend_along_axis(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    axis: int,
    *,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    pair_mask: torch.Tensor | None,
    is_causal: bool,
    dropout: float,
    scaling: float | None,
    attention_interface: Callable | None,
    module: nn.Module | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`axial_attention` of arguments that fit together, and of finite numbers: 0 · NaN under a mask would be NaN."""
    # Scaled-dot-product attention takes 4-D only: 5-D operands give wrong results when compiled for CPU, and cannot be
    # exported. Heads are independent, so the fused kernel may take lines as heads, which needs no copy; any other
    # interface may count on real heads (biases, maps), and gets lines as batch. A bias of heads is repeated for lines
    # that are heads, which needs 0.7 to 1.2 times the time of copies of query, key and value (1.6 on 1 grid of 256²).
    attention_interface = INTERFACES.get(attention_interface, attention_interface)
    fold = fold_lines_into_heads if attention_interface in LINES_AS_HEADS else fold_lines_into_batch
    masks = []
    if mask is not None:
        mask = mask[..., None, None].expand(*key.shape[:-1], 1)
        masks.append(fold(mask, axis).transpose(-1, -2))  # (P, S·N, 1, L) or (P·S, N, 1, L)
    if pair_mask is not None:
        masks.append(fold_pairs(pair_mask, fold, query, axis))
    if is_causal and (masks or bias is not None):
        length = key.shape[axis + 1]
        masks.append(torch.ones(1, 1, length, length, dtype=torch.bool, device=query.device).tril())
        is_causal = False
    allowed = reduce(operator.and_, masks) if masks else None
    # What a graph is exported to may give a mean or NaN to queries without any key.
    gives_zeros = attention_interface in ZEROS_WITHOUT_KEY and not torch.compiler.is_exporting()
    if bias is None and pair_mask is None and gives_zeros:
        attention_mask, without_key = allowed, None
    else:
        bias = None if bias is None else fold_pairs(bias.to(query.dtype), fold, query, axis)
        attention_mask, without_key = _leave_a_key(allowed, bias)
    output, weights = _attend_in_pieces(
        attention_interface,
        module,
        fold(query, axis),
        fold(key, axis),
        fold(value, axis),
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
    )
    if without_key is not None:
        output = output.masked_fill(without_key.transpose(1, 2), 0.0)
        weights = None if weights is None else weights.masked_fill(without_key, 0.0)
    if fold is fold_lines_into_heads:
        return output.reshape(*query.shape[:-1], value.shape[-1]), weights
    lines_shape = query.movedim(axis + 1, -3).shape
    return output.reshape(*lines_shape[:-1], value.shape[-1]).movedim(-3, axis + 1), weights


def _leave_a_key(
    allowed: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The attention mask by which queries without any key read all of them, as not every interface minds none.

    Returns:
        The mask, additive if there is a bias, and which queries (..., queries, 1) those are: their output is to drop.
    """
    if allowed is None:
        return bias, None
    without_key = ~allowed.any(-1, keepdim=True)
    if bias is None:
        return allowed | without_key, without_key
    elsewhere = torch.where(without_key, 0.0, -torch.inf).to(bias.dtype)
    return torch.where(allowed, bias, elsewhere), without_key


def _attend_in_pieces(interface, module, query, key, value, mask, **options):
    """One call of the interface, or several where batch or heads exceed what a CUDA kernel takes."""
    # An exported graph keeps its sizes open, and a comparison would close them.
    for dim in () if torch.compiler.is_exporting() else (0, 1):
        most = _largest_piece(query)[dim]
        if query.shape[dim] > most:
            broadcast = mask is None or mask.shape[dim] == 1
            masks = [mask] * -(-query.shape[dim] // most) if broadcast else mask.split(most, dim)
            pieces = zip(*(states.split(most, dim) for states in (query, key, value)), masks, strict=True)
            outputs, weights = zip(
                *(_attend_in_pieces(interface, module, *piece, **options) for piece in pieces), strict=True
            )
            # Interfaces return (batch, length, heads, head_dim).
            return torch.cat(outputs, 2 * dim), None if weights[0] is None else torch.cat(weights, dim)
    return interface(module, query, key, value, mask, **options)


def _largest_piece(query: torch.Tensor) -> tuple[int, int]:
    """How much of the batch, and how many heads, one call of a kernel takes; one of each at least."""
    limit = MAX_ACCUMULATED.get(query.device.type)
    if limit is None:
        return MAX_LINES, MAX_LINES
    _, num_heads, length, head_dim = query.shape
    lines = limit // (-(-length // 128) * 128 * max(head_dim, 32))
    heads = max(1, min(lines, MAX_LINES, num_heads))
    return max(1, min(lines // heads, MAX_LINES)), heads


def _check_arguments(query, key, value, axis, mask, bias, pair_mask, is_causal) -> None:
    num_axes = query.dim() - 3
    if num_axes < 1:
        raise ValueError(f"query must be (batch, *grid, heads, head_dim) with at least 1 axis, got {_shape(query)}.")
    if not 0 <= axis < num_axes:
        raise ValueError(f"axis counts the grid axes from 0 to {num_axes - 1}, got {axis}.")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"key and value must agree but for head_dim, got {_shape(key)} and {_shape(value)}.")
    before, after = slice(axis + 1), slice(axis + 2, None)
    if query.shape[before] != key.shape[before] or query.shape[after] != key.shape[after]:
        raise ValueError(f"query and key must agree but for axis {axis}, got {_shape(query)} and {_shape(key)}.")
    if is_causal and query.shape[axis + 1] != key.shape[axis + 1]:
        raise ValueError(f"is_causal needs equally long query and key, got {_shape(query)} and {_shape(key)}.")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean (True = may be attended), got {mask.dtype}.")
        if not broadcasts(mask.shape, key.shape[:-2]):
            raise ValueError(f"mask {_shape(mask)} must broadcast over the keys (batch, *grid) of {_shape(key)}.")
    if bias is not None and not bias.is_floating_point():
        raise ValueError(f"bias must be floating point (it is added to the scores), got {bias.dtype}.")
    if pair_mask is not None and pair_mask.dtype != torch.bool:
        raise ValueError(f"pair_mask must be boolean (True = may be attended), got {pair_mask.dtype}.")
    sizes = (query.shape[0], query.shape[-2], query.shape[axis + 1], key.shape[axis + 1])
    for name, pairs in (("bias", bias), ("pair_mask", pair_mask)):
        if pairs is not None and not (pairs.dim() >= 3 and broadcasts(pairs.shape, sizes)):
            raise ValueError(
                f"{name} {_shape(pairs)} must have 3 dimensions that broadcast to (heads, queries, keys) {sizes[1:]}, "
                f"or 4 that broadcast to (batch, heads, queries, keys) {sizes}."
            )


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


class AxialAttentionCore(nn.Module):
    """The parameter-free part of attention along one axis. Returns (output, attention weights or None).

    It calls the backend chosen by `attn_implementation`. Where that backend gives no weights and `output_attentions`
    asks for them, eager attention takes over for this call. Forward hooks for attention maps hang here.
    """

    def __init__(self, config: BlockConfig, axis: int, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.axis = axis
        self.is_causal = is_causal
        self.attention_dropout = config.attention_probs_dropout_prob

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        pairs: Any = None,
        *,
        is_causal: bool = False,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`pairs`: which queries and keys may meet, here as the `pair_mask` of `axial_attention`."""
        # A layer that no PreTrainedModel holds has no implementation chosen.
        implementation = self.config._attn_implementation or "sdpa"
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if output_attentions and interface is sdpa_attention_forward:
            interface = eager_attention_forward
        attend = partial(
            attend_along_axis,
            query,
            key,
            value,
            self.axis,
            mask=mask,
            bias=bias,
            pair_mask=pairs,
            is_causal=is_causal,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=None,
            module=self,
        )
        output, weights = attend(attention_interface=interface)
        if output_attentions and weights is None:
            output, weights = attend(attention_interface=eager_attention_forward)
        return output, weights if output_attentions else None


class HeadLayerNorm(nn.LayerNorm):
    """(..., head_dim), each head by itself; in the dtype of the values, to which autocast would prefer float32."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states).to(states.dtype)


class AxialAttentionProjections(AxisModule):
    """The weights of multi-head attention along one grid axis, and what is done with them.

    `num_heads`: those of the configuration if not given.
    """

    def __init__(self, config: BlockConfig, axis: int, is_causal: bool = False, num_heads: int | None = None):
        super().__init__(config, axis)
        self.head_dim = config.head_dim
        inner_size = (config.num_attention_heads if num_heads is None else num_heads) * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        head_norm = nn.Identity
        if self.description.use_qk_norm:
            head_norm = partial(HeadLayerNorm, config.head_dim, eps=config.layer_norm_eps, bias=False)
        self.q_norm, self.k_norm = head_norm(), head_norm()
        self.core = self.make_core(config, axis, is_causal)
        self.o_proj = nn.Linear(inner_size, config.hidden_size)

    def make_core(self, config: BlockConfig, axis: int, is_causal: bool) -> AxialAttentionCore:
        return AxialAttentionCore(config, axis, is_causal)

    def attend(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor,
        context: LayerContext,
        positions: Sequence[tuple[Any, Any]] = (),
        pairs: Any = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, *G, hidden_size), what reads. Broadcast where it has length 1 beside the axis.
            key_value_states: (B, *G, hidden_size), what is read, of another length along the axis or the same.
            context: its mask is over `key_value_states`.
            positions: `LinePosition`s of the axis, each with what it has prepared.
            pairs: which queries and keys may meet, as the core takes it.
        """
        split_heads = (-1, self.head_dim)  # -1: tensor parallelism shards the heads
        query = self.q_norm(self.q_proj(hidden_states).unflatten(-1, split_heads))
        if hidden_states is not key_value_states:
            batch_and_grid = list(key_value_states.shape[:-1])
            batch_and_grid[self.axis + 1] = hidden_states.shape[self.axis + 1]
            query = query.expand(*batch_and_grid, -1, -1)
        key = self.k_norm(self.k_proj(key_value_states).unflatten(-1, split_heads))
        value = self.v_proj(key_value_states).unflatten(-1, split_heads)
        for position, prepared in positions:
            query, key = position.turn(query, prepared), position.turn(key, prepared)
        biases = [position.bias(prepared) for position, prepared in positions]
        biases = [bias for bias in biases if bias is not None]
        bias = reduce(torch.add, biases) if biases else None
        mask, is_causal = context.mask, self.core.is_causal
        if context.cache is not None and is_causal:
            key, value, mask = context.cache.append(self, key, value)
            is_causal = False  # the query is the newest position, and reads all keys that there are
        output, _ = self.core(
            query, key, value, mask, bias, pairs, is_causal=is_causal, output_attentions=context.output_attentions
        )
        return self.o_proj(output.flatten(-2))


class AxialSelfAttention(AxialAttentionProjections):
    """Multi-head self-attention along one grid axis: (B, *G, hidden_size) -> (B, *G, hidden_size).

    With `is_causal`, position t of a line reads positions <= t.
    """

    def __init__(self, config: BlockConfig, axis: int, is_causal: bool = False):
        super().__init__(config, axis, is_causal, config.axes[axis].num_heads)
        self.positions = nn.ModuleList(kind(config, self.description) for kind in line_classes(self.description))

    @staticmethod
    def prepare(config: BlockConfig, axis: AxisDescription, cells: AxisCells) -> Any:
        return prepare_line(config, axis, cells)

    def with_prepared(self, prepared: tuple[Any, ...]) -> list[tuple[Any, Any]]:
        """The `LinePosition`s of the axis, each with what it has prepared."""
        return list(zip(self.positions, prepared, strict=True))

    def forward(self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        positions = self.with_prepared(self.prepared(hidden_states, context))
        return self.attend(hidden_states, hidden_states, context, positions)


class AxialCrossAttention(AxialAttentionProjections):
    """Multi-head attention along one grid axis, from one grid to another whose length along that axis may differ."""

    def forward(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor, context: LayerContext = NO_CONTEXT
    ) -> torch.Tensor:
        """Arguments as in `attend`."""
        return self.attend(hidden_states, key_value_states, context)
