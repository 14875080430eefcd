"""Slow, obvious references that fast code is compared with. No helper of the package is used here."""

import itertools
import math

import torch


def reference_axial_attention(
    query, key, value, axis, mask=None, is_causal=False, scaling=None, bias=None, pair_mask=None
):
    """Attention along `axis` of (B, *grid, heads, head_dim), by loops over lines and positions, softmax written out.

    Differentiable. `bias` and `pair_mask` broadcast to (B, heads, queries, keys).

    Returns the output and the weights (B, *rest, heads, queries, keys), rest = the other axes, slow to fast.
    """
    scaling = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    batch, heads = query.shape[0], query.shape[-2]
    grid, key_length = query.shape[1:-2], key.shape[1 + axis]
    if mask is not None:
        mask = mask.expand(key.shape[:-2])
    pairs_shape = (batch, heads, grid[axis], key_length)
    bias = torch.zeros((), dtype=query.dtype).expand(pairs_shape) if bias is None else bias.expand(pairs_shape)
    pair_mask = torch.tensor(True).expand(pairs_shape) if pair_mask is None else pair_mask.expand(pairs_shape)
    output = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype)
    rest = [length for number, length in enumerate(grid) if number != axis]
    weights = torch.zeros(batch, *rest, heads, grid[axis], key_length, dtype=query.dtype)
    for b, n in itertools.product(range(batch), range(heads)):
        for others in itertools.product(*(range(length) for length in rest)):

            def cell(position, others=others, b=b):
                return (b, *others[:axis], position, *others[axis:])

            for t in range(grid[axis]):
                allowed = [
                    s
                    for s in range(key_length)
                    if (mask is None or mask[cell(s)]) and pair_mask[b, n, t, s] and (not is_causal or s <= t)
                ]
                if not allowed:
                    continue
                scores = [
                    scaling * (query[(*cell(t), n)] * key[(*cell(s), n)]).sum() + bias[b, n, t, s] for s in allowed
                ]
                exponentials = (torch.stack(scores) - max(score.item() for score in scores)).exp()
                for s, weight in zip(allowed, exponentials / exponentials.sum(), strict=True):
                    weights[(b, *others, n, t, s)] = weight
                    output[(*cell(t), n)] += weight * value[(*cell(s), n)]
    return output, weights
