"""Attention of short lines in Triton: several lines share a tile, and each is read where it lies in the grid.

Shapes as in transformers' attention interface: (batch, heads, length, head_dim), of any strides. Batch and heads
together count lines, and a tile holds the cells of as many whole lines as fit into `TILE` rows; scores between two
lines count for nothing. As a tile sees all keys of its queries, backward computes the weights again from query and key
alone, and adds up each gradient in one program: no atomics, and the same bits each time.

NOT RUN ON A GPU. The numbers are those of Triton's interpreter, on CPUs; `TILE` and `NUM_WARPS` are not tuned.
"""

import torch
import triton
import triton.language as tl
from torch import nn

from ..attention_interfaces import fused_attention_forward, transforms_are_active

TILE = 64  # rows, and so the longest line
MAX_HEAD_DIM = 128
NUM_WARPS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # as TRITON_INTERPRET=1 has it


# Parts of kernels


@triton.jit
def _product(left, right):
    if INTERPRETED:  # where numbers in bfloat16 are bare bits; products of 16-bit numbers are exact in float32
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _rows(num_lines, LENGTH: tl.constexpr, LINES: tl.constexpr, ROWS: tl.constexpr):
    """Of each row of the tile of this program: its line, its cell in that line, and whether there is such a cell."""
    row = tl.arange(0, ROWS)
    line = tl.program_id(0) * LINES + row // LENGTH
    return line, row % LENGTH, (row < LINES * LENGTH) & (line < num_lines)


@triton.jit
def _offsets(line, cell, num_heads, strides):
    # In 64 bits: a grid may have more numbers than 32 bits count.
    batch, head = (line // num_heads).to(tl.int64), (line % num_heads).to(tl.int64)
    return batch * strides[0] + head * strides[1] + cell.to(tl.int64) * strides[2]


@triton.jit
def _places(line, cell, is_cell, num_heads, strides, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the numbers (rows, channels) of a tile lie, and which of them exist."""
    channel = tl.arange(0, COLUMNS)
    places = _offsets(line, cell, num_heads, strides)[:, None] + channel[None, :] * strides[3]
    return places, is_cell[:, None] & (channel < WIDTH)[None, :]


@triton.jit
def _weights(
    query, key, mask, mask_strides, q_line, q_cell, is_query, k_line, k_cell, is_key, num_heads, scaling,
    IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Attention weights (queries, keys) of a tile: zero between lines, and in rows without any key."""
    scores = _product(query, tl.trans(key)) * scaling
    meets = (q_line[:, None] == k_line[None, :]) & is_query[:, None] & is_key[None, :]
    if IS_CAUSAL:
        meets = meets & (k_cell[None, :] <= q_cell[:, None])
    if mask is not None:
        places = _offsets(q_line, q_cell, num_heads, mask_strides)[:, None] + k_cell[None, :] * mask_strides[3]
        at_pairs = tl.load(mask + places, mask=meets, other=0)
        if mask.dtype.element_ty == tl.int1:
            meets = meets & at_pairs
        else:
            scores += at_pairs.to(tl.float32)
    scores = tl.where(meets, scores, -float("inf"))
    highest = tl.max(scores, 1)
    exponentials = tl.exp(scores - tl.where(highest == -float("inf"), 0.0, highest)[:, None])
    total = tl.sum(exponentials, 1)
    return exponentials / tl.where(total == 0.0, 1.0, total)[:, None]


# Kernels, one program for each tile


@triton.jit
def forward_kernel(
    query, query_strides, key, key_strides, value, value_strides, mask, mask_strides, output, output_strides,
    num_lines, num_heads, scaling,
    IS_CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    LINES: tl.constexpr, Q_ROWS: tl.constexpr, K_ROWS: tl.constexpr, COLUMNS: tl.constexpr, V_COLUMNS: tl.constexpr,
):  # fmt: skip
    q_line, q_cell, is_query = _rows(num_lines, QUERIES, LINES, Q_ROWS)
    k_line, k_cell, is_key = _rows(num_lines, KEYS, LINES, K_ROWS)
    places, exists = _places(q_line, q_cell, is_query, num_heads, query_strides, WIDTH, COLUMNS)
    q = tl.load(query + places, mask=exists, other=0.0)
    places, exists = _places(k_line, k_cell, is_key, num_heads, key_strides, WIDTH, COLUMNS)
    k = tl.load(key + places, mask=exists, other=0.0)
    places, exists = _places(k_line, k_cell, is_key, num_heads, value_strides, VALUE_WIDTH, V_COLUMNS)
    v = tl.load(value + places, mask=exists, other=0.0)
    weights = _weights(
        q, k, mask, mask_strides, q_line, q_cell, is_query, k_line, k_cell, is_key, num_heads, scaling, IS_CAUSAL
    )
    places, exists = _places(q_line, q_cell, is_query, num_heads, output_strides, VALUE_WIDTH, V_COLUMNS)
    tl.store(output + places, _product(weights.to(v.dtype), v).to(v.dtype), mask=exists)


@triton.jit
def backward_kernel(
    query, query_strides, key, key_strides, value, value_strides, mask, mask_strides, gradient, gradient_strides,
    d_query, d_query_strides, d_key, d_key_strides, d_value, d_value_strides, d_mask, d_mask_strides,
    num_lines, num_heads, scaling,
    IS_CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    LINES: tl.constexpr, Q_ROWS: tl.constexpr, K_ROWS: tl.constexpr, COLUMNS: tl.constexpr, V_COLUMNS: tl.constexpr,
):  # fmt: skip
    q_line, q_cell, is_query = _rows(num_lines, QUERIES, LINES, Q_ROWS)
    k_line, k_cell, is_key = _rows(num_lines, KEYS, LINES, K_ROWS)
    places, exists = _places(q_line, q_cell, is_query, num_heads, query_strides, WIDTH, COLUMNS)
    q = tl.load(query + places, mask=exists, other=0.0)
    places, exists = _places(k_line, k_cell, is_key, num_heads, key_strides, WIDTH, COLUMNS)
    k = tl.load(key + places, mask=exists, other=0.0)
    weights = _weights(
        q, k, mask, mask_strides, q_line, q_cell, is_query, k_line, k_cell, is_key, num_heads, scaling, IS_CAUSAL
    )
    places, exists = _places(q_line, q_cell, is_query, num_heads, gradient_strides, VALUE_WIDTH, V_COLUMNS)
    d_output = tl.load(gradient + places, mask=exists, other=0.0)

    places, exists = _places(k_line, k_cell, is_key, num_heads, d_value_strides, VALUE_WIDTH, V_COLUMNS)
    d_v = _product(tl.trans(weights.to(d_output.dtype)), d_output)
    tl.store(d_value + places, d_v.to(q.dtype), mask=exists)

    places, exists = _places(k_line, k_cell, is_key, num_heads, value_strides, VALUE_WIDTH, V_COLUMNS)
    v = tl.load(value + places, mask=exists, other=0.0)
    d_weights = _product(d_output, tl.trans(v))
    d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None])
    if d_mask is not None:
        meets = (q_line[:, None] == k_line[None, :]) & is_query[:, None] & is_key[None, :]
        places = _offsets(q_line, q_cell, num_heads, d_mask_strides)[:, None] + k_cell[None, :] * d_mask_strides[3]
        tl.store(d_mask + places, d_scores, mask=meets)

    d_scores = (d_scores * scaling).to(q.dtype)
    places, exists = _places(q_line, q_cell, is_query, num_heads, d_query_strides, WIDTH, COLUMNS)
    tl.store(d_query + places, _product(d_scores, k).to(q.dtype), mask=exists)
    places, exists = _places(k_line, k_cell, is_key, num_heads, d_key_strides, WIDTH, COLUMNS)
    tl.store(d_key + places, _product(tl.trans(d_scores), q).to(q.dtype), mask=exists)


def launch(kernel, query, key, value, mask, *others: torch.Tensor | None, scaling: float, is_causal: bool) -> None:
    """Runs a kernel on all tiles. `others`: (batch, heads, length, width) too, which it reads or writes."""
    (batch, heads, queries, width), (keys, value_width) = query.shape, value.shape[2:]
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
    lines = TILE // max(queries, keys)
    tensors = (query, key, value, mask, *others)
    with torch.cuda.device_of(query):  # of several, which need not be the current one
        kernel[(triton.cdiv(batch * heads, lines),)](
            *(part for each in tensors for part in (each, None if each is None else each.stride())),
            num_lines=batch * heads,
            num_heads=heads,
            scaling=scaling,
            IS_CAUSAL=is_causal,
            QUERIES=queries,
            KEYS=keys,
            WIDTH=width,
            VALUE_WIDTH=value_width,
            LINES=lines,
            # Powers of two, of which the products of tiles take 16 at least.
            Q_ROWS=max(16, triton.next_power_of_2(lines * queries)),
            K_ROWS=max(16, triton.next_power_of_2(lines * keys)),
            COLUMNS=max(16, triton.next_power_of_2(width)),
            V_COLUMNS=max(16, triton.next_power_of_2(value_width)),
            num_warps=NUM_WARPS,
        )


# Operators of PyTorch, which compiled code calls as they are


@torch.library.custom_op("axial::packed_attention", mutates_args=())
def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    is_causal: bool,
) -> torch.Tensor:
    """The output (batch, queries, heads, width of value), contiguous; arguments as in `packed_attention_forward`."""
    output = _empty_output(query, value)
    launch(forward_kernel, query, key, value, mask, output.transpose(1, 2), scaling=scaling, is_causal=is_causal)
    return output


@packed_attention.register_fake
def _(query, key, value, mask, scaling, is_causal):
    return _empty_output(query, value)


def _empty_output(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1])


@torch.library.custom_op("axial::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    is_causal: bool,
    for_mask: bool,
) -> list[torch.Tensor]:
    """The gradients of query, key and value, laid out as these; `for_mask`, also that of each score, in float32."""
    gradients = _empty_gradients(query, key, value, for_mask)
    d_mask = gradients[3] if for_mask else None
    launch(
        backward_kernel,
        *(query, key, value, mask, gradient.transpose(1, 2), *gradients[:3], d_mask),
        scaling=scaling,
        is_causal=is_causal,
    )
    return gradients


@packed_attention_backward.register_fake
def _(gradient, query, key, value, mask, scaling, is_causal, for_mask):
    return _empty_gradients(query, key, value, for_mask)


def _empty_gradients(query, key, value, for_mask) -> list[torch.Tensor]:
    gradients = [torch.empty_like(each) for each in (query, key, value)]
    if for_mask:
        gradients.append(query.new_empty(*query.shape[:3], key.shape[2], dtype=torch.float32))
    return gradients


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scaling, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    mask, for_mask = ctx.saved_tensors[3], ctx.needs_input_grad[3]
    gradients = packed_attention_backward(gradient, *ctx.saved_tensors, ctx.scaling, ctx.is_causal, for_mask)
    d_mask = gradients.pop().sum_to_size(mask.shape).to(mask.dtype) if for_mask else None
    return *gradients, d_mask, None, None


def _refuse_second_derivatives(ctx, gradients):
    raise ValueError('attn_implementation="axial_triton" has no second derivatives: take "eager".')


packed_attention.register_autograd(_backward, setup_context=_save)
packed_attention_backward.register_autograd(_refuse_second_derivatives)


def packed_attention_forward(
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
    """softmax(Q·Kᵀ·scaling + bias)·V for short lines; transformers' attention interface, as "axial_triton".

    Products are summed in float32. What the kernel is not made for goes to PyTorch's fused attention, as "sdpa" has
    it: lines of more than 64 cells, heads of more than 128 channels, float64, dtypes that differ, dropout, exported
    graphs, forward-mode derivatives and transforms of torch.func.

    Args:
        query, key, value: (batch, heads, length, head_dim), of any strides; the head_dim of `value` may differ.
        attention_mask: broadcastable to (batch, heads, queries, keys). Boolean: True = may be attended, and a query
            without any key gives zeros. Floating point: the bias, -inf where a pair may not be attended.

    Returns:
        The output (batch, queries, heads, head_dim) and no weights.

    Raises:
        ValueError: on CPUs, but in Triton's interpreter; and where a backward is differentiated again.
    """
    lengths, widths = (query.shape[2], key.shape[2]), (query.shape[3], value.shape[3])
    takes_it = (
        max(lengths) <= TILE
        and max(widths) <= MAX_HEAD_DIM
        and query.dtype == key.dtype == value.dtype
        and query.dtype in DTYPES
        and dropout == 0
        and query.numel() > 0
        and key.numel() > 0
        and value.numel() > 0
        and not torch.compiler.is_exporting()
        and (torch.compiler.is_compiling() or not transforms_are_active())
    )
    if not takes_it:
        options = {"scaling": scaling, "dropout": dropout, "is_causal": is_causal}
        return fused_attention_forward(module, query, key, value, attention_mask, **options)
    if query.device.type == "cpu" and not INTERPRETED.value:
        raise ValueError(
            'attn_implementation="axial_triton" runs on GPUs, and the model is on the CPU: take "sdpa". To try it '
            "there, set TRITON_INTERPRET=1 before Triton is imported."
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(query, key, value, attention_mask, scaling, is_causal), None
