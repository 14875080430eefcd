"""
How large a model is and what it computes, found without making it. Prints both for each preset:

    python -m configuration.counts
"""

from math import prod

import torch

from configuration import list_presets, load_preset
from modeling_axial import AxialConfig, AxialDecoderConfig, AxialForCausalImageModeling, AxialModel
from modeling_axial.configuration_strict import AxisDescription
from modeling_axial.window_attention import block_size


def count_parameters(config: AxialConfig | AxialDecoderConfig) -> int:
    """Parameters of AxialModel, to which a classifier adds (hidden_size + 1) · num_labels, or of the decoder."""
    with torch.device("meta"):
        if isinstance(config, AxialDecoderConfig):
            return AxialForCausalImageModeling(config).num_parameters()
        return AxialModel(config).num_parameters()


def count_flops(config: AxialConfig | AxialDecoderConfig) -> int:
    """Floating-point operations of the matrix products and convolutions in one forward pass, for one input of the
    native size; a multiplication and the addition behind it count as two."""
    return count_decoder_flops(config) if isinstance(config, AxialDecoderConfig) else count_encoder_flops(config)


def count_encoder_flops(config: AxialConfig) -> int:
    """Those of AxialModel.

    With T tokens, D = hidden_size, I = intermediate_size and A = heads · head_dim, each layer and each of its axes of
    length L costs 2T · (4DA + 2LA) for projections, scores and weighted values, each layer 2T · 2DI for a plain MLP.
    Along an axis with a window, L is the mean number of cells that one reads, those of its block included.
    """
    tokens, hidden_size = prod(config.grid_shape), config.hidden_size

    def attention(projected: int, scores: int, heads: int) -> int:
        return (projected * hidden_size + 2 * scores) * heads * config.head_dim

    embedding = tokens * config.num_channels * prod(config.patch_shape) * hidden_size
    products = {"mlp": 2, "gated_mlp": 3, "convolution": 2 * 3**config.num_axes}[config.feed_forward]
    cells = tokens
    if config.feed_forward == "convolution":  # which also reads the other end of a periodic axis, as two more cells
        cells = prod(axis.length + 2 * axis.periodic for axis in config.axes)
    layers = config.num_hidden_layers * cells * products * hidden_size * config.intermediate_size
    for axis in (axis for layer in range(config.num_hidden_layers) for axis in config.axes_of_layer(layer)):
        length, points, heads = axis.length, axis.num_inducing_points, axis.num_heads
        if points is None:
            layers += attention(4 * tokens, tokens // length * pairs_of_a_line(axis), heads)
        else:  # the points, the same for all lines, read their line, and its cells read from them
            points_of_all_lines = points * tokens // length
            layers += attention(points + 2 * tokens + points_of_all_lines, points * tokens, heads)
            layers += attention(2 * tokens + 2 * points_of_all_lines, points * tokens, heads)
    pooling = 0
    if config.pooling == "attention":
        seeds = config.num_pooling_seeds
        pooling = attention(2 * seeds + 2 * tokens, seeds * tokens, config.num_attention_heads)
        pooling += 2 * seeds * hidden_size * config.intermediate_size
    return 2 * (embedding + layers + pooling)


def pairs_of_a_line(axis: AxisDescription) -> int:
    """How many scores between cells there are on one line of the native grid."""
    if axis.attention_window is None or (size := block_size(axis.length, axis.attention_window)) == axis.length:
        return axis.length**2
    return -(-axis.length // size) * size * (size + 2 * axis.attention_window)


def count_decoder_flops(config: AxialDecoderConfig) -> int:
    """Those of AxialForCausalImageModeling scoring all channels of a picture. Masked scores count like the others.

    Letters as in `count_encoder_flops`. A block along an axis of length L costs 2T · (4DA + 2LA + 2DI) with a plain MLP
    on the T tokens of one grid.
    """
    hidden_size, num_pixels = config.hidden_size, prod(config.image_size)
    attention_size = config.num_attention_heads * config.head_dim
    products = {"mlp": 2, "gated_mlp": 3}[config.feed_forward]

    def block(length: int) -> int:  # for one token
        return attention_size * (4 * hidden_size + 2 * length) + products * hidden_size * config.intermediate_size

    # Level by level, with the blocks along an axis once for its own level and once for each slower one.
    *outer_axes, fastest = config.grid_shape
    levels = [config.grid_shape[axis:] for axis in range(len(outer_axes))]
    blocks = config.num_outer_layers * sum(block(length) for level in levels for length in level)
    blocks += config.num_inner_layers * block(fastest)
    decoder = prod(config.grid_shape) * (blocks + hidden_size * config.vocab_size)
    exterior = 0
    if config.num_exterior_channels:
        features = config.num_exterior_channels * 3 ** len(config.image_size)
        exterior_blocks = config.num_exterior_layers * sum(block(length) for length in config.image_size)
        exterior = num_pixels * (features * hidden_size + exterior_blocks)
    return 2 * config.num_grids * (decoder + exterior)


if __name__ == "__main__":
    for name in list_presets():
        config = load_preset(name)
        print(f"{name:24} {count_parameters(config):>15,} {count_flops(config):>20,}")
