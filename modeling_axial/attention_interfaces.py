"""Attention of lines by functions of transformers' `AttentionInterface`: plain steps, PyTorch's fused attention, flex
attention and FlashAttention's package, each of which says by name what it lacks.

Shapes: (batch, heads, length, head_dim) in, (batch, length, heads, head_dim) out, and the weights where there are some.
"""

from collections.abc import Callable
from functools import cache
from typing import NoReturn

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# Lines of at most so many cells are for the memory-efficient kernel, which cuts queries into tiles of 64, as it says by
# name (fmha_cutlassF_bf16_aligned_64x64). The tiles of flash attention have 128: for lines of 8 cells it computes 256
# times their scores, and its backward adds up 16 times their queries, in float32. That follows from the sizes and is
# not measured yet, which examples/benchmarks/gpu.py does. {} leaves the choice to PyTorch.
SHORT_LINES = {"cuda": 64}


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
