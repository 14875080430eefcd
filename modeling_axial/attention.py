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
from functools import cache, partial, reduce
from typing import Any, NoReturn

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
# Lines of at most so many cells are for the memory-efficient kernel, which cuts queries into tiles of 64, as it says by
# name (fmha_cutlassF_bf16_aligned_64x64). The tiles of flash attention have 128: for lines of 8 cells it computes 256
# times their scores, and its backward adds up 16 times their queries, in float32. That follows from the sizes and is
# not measured yet, which examples/benchmarks/gpu.py does. {} leaves the choice to PyTorch.
SHORT_LINES = {"cuda": 64}


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


def eager_attention_forward(
    module: nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(Q·Kᵀ·scaling + bias)·V in plain steps; transformers' attention interface.

    Args:
        query, key, value: (batch, heads, length, head_dim).
        attention_mask: broadcastable to (batch, heads, queries, keys). Boolean: True = may be attended, and a query
            without any key gives zeros and finite gradients. Floating point: the bias, -inf where a pair may not be
            attended, with which every query needs some key.

    Returns:
        The output (batch, queries, heads, head_dim) and the weights (batch, heads, queries, keys).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Scaled before the product, or float16 overflows where fused attention does not.
    scores = (query * scaling) @ key.transpose(-1, -2)
    softmax_dtype = torch.promote_types(scores.dtype, torch.float32)
    if attention_mask is not None and attention_mask.is_floating_point():
        scores, attention_mask = scores.to(softmax_dtype) + attention_mask, None
    if is_causal:
        causal_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        attention_mask = causal_mask if attention_mask is None else attention_mask & causal_mask
    if attention_mask is not None:
        # The lowest finite score and not -inf, whose softmax over a fully masked line has NaN gradients.
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=softmax_dtype).to(query.dtype)
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, 0.0)
    weights = nn.functional.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2), weights


def prefers_memory_efficient(
    device_type: str, dtype: torch.dtype, num_queries: int, num_keys: int, head_dim: int
) -> bool:
    """Whether lines without a mask are for the memory-efficient kernel where PyTorch would take another one first.

    Other kernels compute in half precision alone. Beyond a head_dim of 128 this one adds up outputs in global memory.
    """
    if device_type not in SHORT_LINES or dtype not in (torch.float16, torch.bfloat16):
        return False
    return max(num_queries, num_keys) <= SHORT_LINES[device_type] and head_dim <= 128


@torch.compiler.assume_constant_result  # torch.compile does not read these
def every_kernel_is_enabled() -> bool:
    """Which is so outside of `torch.nn.attention.sdpa_kernel` alone: what it asks for is what runs."""
    kernels = torch.backends.cuda
    return (
        kernels.flash_sdp_enabled()
        and kernels.mem_efficient_sdp_enabled()
        and kernels.cudnn_sdp_enabled()
        and kernels.math_sdp_enabled()
    )


@torch.compiler.assume_constant_result
def has_both_kernels(device: torch.device) -> bool:
    """Whether a GPU has flash and memory-efficient attention in bfloat16 as kernels of their own."""
    return torch.version.hip is None and (8, 0) <= torch.cuda.get_device_capability(device) <= (12, 1)


def takes_memory_efficient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `prefers_memory_efficient`, that kernel can, and nobody else has chosen."""
    # CPUs are asked about apart, which takes a tenth of the time of `device.type`.
    if query.is_cpu and "cpu" not in SHORT_LINES:
        return False
    # What is exported leaves lengths open, and kernels to where it will run.
    if query.device.type not in SHORT_LINES or torch.compiler.is_exporting():
        return False
    return (
        prefers_memory_efficient(query.device.type, query.dtype, query.shape[2], key.shape[2], query.shape[3])
        and all(
            states.dtype == query.dtype and states.shape[3] % 8 == 0 and states.stride(3) == 1 and states.numel() > 0
            for states in (query, key, value)
        )
        and every_kernel_is_enabled()
        and has_both_kernels(query.device)
    )


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """PyTorch's function of that name, which on short lines takes the kernel that is best for them."""
    if attention_mask is None and takes_memory_efficient(query, key, value):
        # By its operator, as `sdpa_kernel` changes the kernels of all threads, and may leave them so where two use it.
        with_backward = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
        output, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, with_backward, dropout, is_causal, scale=scaling
        )
        return output
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, is_causal=is_causal, scale=scaling
    )


def fused_attention_forward(
    module: nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """PyTorch's fused attention: transformers' "sdpa", which refuses empty batches, without its other cases.

    Forward-mode derivatives and torch.func transforms, which the fused kernels lack, are those of eager attention, and
    on CPUs so is a bias that needs gradients.
    Where a backward is differentiated again, which they lack too, a `ValueError` says what to do.
    """
    eagerly = not torch.compiler.is_compiling()
    # The kernel of CPUs takes no mask that needs gradients. PyTorch's plain steps, which it falls back to, need 1.2
    # times the time of eager attention, forward and backward (1.16 to 1.25; 1.02 to 1.16 where keys are masked, too).
    learned_bias = attention_mask is not None and attention_mask.requires_grad and attention_mask.device.type == "cpu"
    if eagerly and (learned_bias or transforms_are_active()):
        options = {"scaling": scaling, "dropout": dropout, "is_causal": is_causal}
        return eager_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    output = scaled_dot_product_attention(query, key, value, attention_mask, dropout, is_causal, scaling)
    if eagerly and output.grad_fn is not None:
        output.grad_fn.register_hook(_name_the_way_to_second_derivatives)
    output = output.transpose(1, 2)
    if learned_bias and torch.compiler.is_exporting():
        # PyTorch's plain steps have other strides than its kernel, and who exports on to ONNX has no gradients.
        output = output.clone(memory_format=torch.contiguous_format)
    return output, None


def transforms_are_active() -> bool:
    """Whether forward-mode derivatives or transforms of torch.func are under way."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _name_the_way_to_second_derivatives(gradients: tuple[torch.Tensor | None, ...], _) -> None:
    """A hook of a node of the graph: where its gradients cannot be differentiated, the error shall say what to do."""
    if torch.is_grad_enabled():
        for node in {gradient.grad_fn for gradient in gradients if gradient is not None}:
            if node is not None and node.name().endswith("NotImplemented"):
                node.register_prehook(_refuse_second_derivatives)


def _refuse_second_derivatives(_) -> NoReturn:
    raise ValueError(
        "PyTorch's fused attention has no second derivatives: run forward and backward inside `with "
        'torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):`, or use attn_implementation="eager".'
    )


def flexible_attention_forward(
    module: nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """PyTorch's flex attention: transformers' "flex_attention", which would add the 0 and 1 of a boolean mask to the
    scores, read that of the first head for all, and leave out `is_causal`.

    Each query needs some key. On CPUs it serves inference alone, in float32 and less. PyTorch compiles it for each of
    the first eight shapes, for seconds, and runs plain steps after that.
    """
    if query.numel() == 0:
        return fused_attention_forward(module, query, key, value, attention_mask)
    operands = (query, key, value) if attention_mask is None else (query, key, value, attention_mask)
    on_cpu = query.device.type == "cpu"
    missing = {
        f"dropout={dropout}": dropout > 0,
        "backward on CPUs": on_cpu and torch.is_grad_enabled() and any(states.requires_grad for states in operands),
        "torch.float64 on CPUs": on_cpu and query.dtype == torch.float64,
        # PyTorch's compiler for CPUs lowers it for tensors of 4 dims alone, and no views of others.
        "place in a compiled model on CPUs": on_cpu and torch.compiler.is_compiling(),
    }
    for what, is_missing in missing.items():
        if is_missing:
            raise ValueError(f'attn_implementation="flex_attention" has no {what}: take "sdpa".')
    if attention_mask is not None:
        attention_mask = attention_mask.expand(*query.shape[:-1], key.shape[-2])

    def score_mod(score, batch, head, query_cell, key_cell):
        if attention_mask is not None:
            at_pair = attention_mask[batch, head, query_cell, key_cell]
            score = torch.where(at_pair, score, -torch.inf) if attention_mask.dtype == torch.bool else score + at_pair
        return torch.where(query_cell >= key_cell, score, -torch.inf) if is_causal else score

    attend = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
    return attend(query, key, value, score_mod=score_mod, scale=scaling).transpose(1, 2), None


@cache
def compiled_flex_attention() -> Callable:
    # Not as transformers compiles it: with open sizes the code for CPUs does not compile (torch 2.13).
    return torch.compile(flex_attention, dynamic=False)


def flash_lines_forward(
    module: nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """FlashAttention's own package: transformers' "flash_attention_2" and later, which read a mask as one of padding,
    and leave it to the environment whether backward is deterministic.

    Lines are its samples. It has no masks, biases or windows over pairs, computes in half precision alone, and takes a
    head_dim of at most 256.
    """
    if query.numel() == 0:
        return fused_attention_forward(module, query, key, value, attention_mask)
    if module is None:
        raise ValueError("FlashAttention's version is that of a module's configuration: give axial_attention(module=).")
    dtype = query.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    missing = {
        "masks, biases or windows": attention_mask is not None,
        f"{dtype}": dtype not in (torch.float16, torch.bfloat16),
        f"head_dim={query.shape[-1]}, above 256": query.shape[-1] > 256,
    }
    for what, is_missing in missing.items():
        if is_missing:
            raise ValueError(f'FlashAttention has no {what}: take attn_implementation="sdpa".')
    return flash_attention_forward(
        module,
        query,
        key,
        value,
        None,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        deterministic=torch.are_deterministic_algorithms_enabled() or None,
    )


# What stands in for functions of transformers' `AttentionInterface`, which do not mind all that lines may be.
INTERFACES = {
    None: fused_attention_forward,
    sdpa_attention_forward: fused_attention_forward,
    flex_attention_forward: flexible_attention_forward,
    flash_attention_forward: flash_lines_forward,
}
# Interfaces that treat all heads alike, and so may take lines as heads, which needs no copy.
LINES_AS_HEADS: set[Callable] = {fused_attention_forward}
# Interfaces that give zeros to a query without any key, where the mask is boolean.
ZEROS_WITHOUT_KEY: set[Callable] = {fused_attention_forward, eager_attention_forward}


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
