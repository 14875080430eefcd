"""
How large a model is and what it computes, found without making it. Prints both for each preset:

    python -m configuration.counts
"""

from math import prod

import torch

from configuration import list_presets, load_preset
from modeling_axial import AxialConfig, AxialModel


def count_parameters(config: AxialConfig) -> int:
    """Parameters of AxialModel. A classifier on top adds (hidden_size + 1) · num_labels."""
    with torch.device("meta"):
        return AxialModel(config).num_parameters()


def count_flops(config: AxialConfig) -> int:
    """Floating-point operations of the matrix products and convolutions in one forward pass of AxialModel.

    For one input of the native size; a multiplication and the addition behind it count as two. With T tokens,
    D = hidden_size, I = intermediate_size and A = num_attention_heads · head_dim, each layer and axis of length L costs
    2T · (4DA + 2LA) for projections, scores and weighted values, each layer 2T · 2DI for a plain MLP.
    """
    tokens, hidden_size = prod(config.grid_shape), config.hidden_size
    head_dim: int = config.head_dim  # pyrefly: ignore[bad-assignment]  the config has set it
    intermediate_size: int = config.intermediate_size  # pyrefly: ignore[bad-assignment]  the config has set it
    attention_size = config.num_attention_heads * head_dim

    def attention(projected: int, scores: int) -> int:
        return projected * hidden_size * attention_size + 2 * scores * attention_size

    embedding = tokens * config.num_channels * prod(config.patch_shape) * hidden_size
    layer = 0
    for length, points in zip(config.grid_shape, config.inducing_points, strict=True):
        if points is None:
            layer += attention(4 * tokens, tokens * length)
        else:  # the points, the same for all lines, read their line, and its cells read from them
            points_of_all_lines = points * tokens // length
            layer += attention(points + 2 * tokens + points_of_all_lines, points * tokens)
            layer += attention(2 * tokens + 2 * points_of_all_lines, points * tokens)
    products = {"mlp": 2, "gated_mlp": 3, "convolution": 2 * 3**config.num_axes}[config.feed_forward]
    layer += tokens * products * hidden_size * intermediate_size
    pooling = 0
    if config.pooling == "attention":
        seeds = config.num_pooling_seeds
        pooling = attention(2 * seeds + 2 * tokens, seeds * tokens) + 2 * seeds * hidden_size * intermediate_size
    return 2 * (embedding + config.num_hidden_layers * layer + pooling)


if __name__ == "__main__":
    for name in list_presets():
        config = load_preset(name)
        print(f"{name:24} {count_parameters(config):>15,} {count_flops(config):>20,}")
