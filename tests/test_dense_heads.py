import itertools
import math

import pytest
import torch

from modeling_axial import AxialConfig
from modeling_axial.dense_heads import DENSE_HEAD_CLASSES, LinearDenseHead, PyramidConvolution, PyramidDenseHead
from modeling_axial.layer_context import NO_CONTEXT, LayerContext
from modeling_axial.testing import receptive_field
from tests.test_feed_forward import ACTIVATIONS, activated, cells, linear, slow_convolution

# (grid, patch): even and odd sides of patches, so that half resolution is there along some axes only.
CASES = [((3,), (4,)), ((5, 3), (2, 3)), ((3, 2), (6, 4)), ((2, 1, 3), (1, 4, 2))]
cases = pytest.mark.parametrize(("grid", "patch"), CASES, ids=str)


def make_head(dense_head, grid, patch, dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=sizes_of(grid, patch),
        patch_size=list(patch),
        num_channels=2,
        hidden_size=8,
        num_attention_heads=2,
        pyramid_size=4,
        dense_head=dense_head,
        **overrides,
    )
    return DENSE_HEAD_CLASSES[dense_head](config).to(dtype)


def sizes_of(grid, patch):
    return [length * side for length, side in zip(grid, patch, strict=True)]


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_head_is_the_grid_itself():
    head, hidden_states = make_head("linear", (5, 3), (2, 3)), draw(2, 5, 3, 8)
    assert type(head) is LinearDenseHead and not list(head.parameters())
    assert head.before_trunk(draw(2, 2, 10, 9)) == (None, ()) and head(hidden_states) is hidden_states
    assert (head.output_size, head.output_shape) == (8, (2, 3))


# ---- the pyramid, written out over dictionaries from cells to vectors; cells that are masked are not in them ----


def normalised(norm, states):
    output = {}
    for cell, vector in states.items():
        centred = vector - vector.mean()
        output[cell] = norm.weight * centred / (centred.square().mean() + 1e-6).sqrt() + norm.bias
    return output


def slow_block(block, states, hidden_act):
    inner = normalised(block.norm, states)
    inner = {cell: activated(v, hidden_act) for cell, v in slow_convolution(block.conv1.convolution, inner).items()}
    return {cell: states[cell] + v for cell, v in slow_convolution(block.conv2.convolution, inner).items()}


def slow_down(layer, states, factors):
    """Blocks of cells to a cell each, their vectors laid out as (channels, *factors)."""
    coarse = {tuple(c // factor for c, factor in zip(cell, factors, strict=True)) for cell in states}
    output = {}
    for cell in coarse:
        lines = [range(c * factor, (c + 1) * factor) for c, factor in zip(cell, factors, strict=True)]
        inside = itertools.product(*lines)
        output[cell] = linear(layer, torch.stack([states[fine] for fine in inside], dim=-1).flatten())
    return output


def slow_up(layer, states, factors):
    output = {}
    for cell, vector in states.items():
        block = linear(layer, vector).view(-1, *factors)
        for offset in itertools.product(*(range(factor) for factor in factors)):
            fine = tuple(c * factor + o for c, factor, o in zip(cell, factors, offset, strict=True))
            output[fine] = block[(slice(None), *offset)]
    return output


def added(first, second):
    return {cell: first[cell] + second[cell] for cell in first}


def slow_pyramid(head, pixels, tokens, hidden_act):
    half_shape = [1 if side % 2 else 2 for side in head.patch_shape]
    rest_shape = [side // half for side, half in zip(head.patch_shape, half_shape, strict=True)]
    full = slow_block(head.full_before, slow_convolution(head.stem.convolution, pixels), hidden_act)
    half = slow_block(head.half_before, slow_down(head.full_to_half, full, half_shape), hidden_act)
    embeds = slow_down(head.half_to_tokens, half, rest_shape)
    half = slow_block(head.half_after, added(slow_up(head.tokens_to_half, tokens, rest_shape), half), hidden_act)
    full = slow_block(head.full_after, added(slow_up(head.half_to_full, half, half_shape), full), hidden_act)
    return embeds, normalised(head.norm, full)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
@cases
def test_pyramid_written_out(grid, patch, hidden_act, masked):
    assert hidden_act in ACTIVATIONS
    head = make_head("pyramid", grid, patch, hidden_act=hidden_act)
    assert type(head) is PyramidDenseHead and (head.output_size, head.output_shape) == (4, (1,) * len(grid))
    for parameter in head.parameters():
        parameter.data = torch.randn_like(parameter) / 3
    pixel_values, hidden_states = draw(2, 2, *sizes_of(grid, patch)), draw(2, *grid, 8, seed=2)
    mask = torch.arange(2 * math.prod(grid)).view(2, *grid) % 3 != (1 if masked else 3)
    assert mask.all() == (not masked)
    filled = pixel_values.clone()
    for sample, *pixel in itertools.product(range(2), *map(range, sizes_of(grid, patch))):
        if not mask[(sample, *(position // side for position, side in zip(pixel, patch, strict=True)))]:
            filled[(sample, slice(None), *pixel)] = torch.nan
    with torch.no_grad():
        context = LayerContext(mask if masked else None)
        embeds, kept = head.before_trunk(filled, context)
        output = head(hidden_states, context, kept)
        assert embeds.shape == hidden_states.shape and output.shape == (2, *sizes_of(grid, patch), 4)
        for sample in range(2):
            tokens = {cell: hidden_states[(sample, *cell)] for cell in cells(grid) if mask[(sample, *cell)]}
            pixels = {
                pixel: pixel_values[(sample, slice(None), *pixel)]
                for pixel in cells(sizes_of(grid, patch))
                if tuple(position // side for position, side in zip(pixel, patch, strict=True)) in tokens
            }
            slow_embeds, slow_output = slow_pyramid(head, pixels, tokens, hidden_act)
            assert slow_embeds.keys() == tokens.keys() and slow_output.keys() == pixels.keys()
            for cell, expected in slow_embeds.items():
                torch.testing.assert_close(embeds[(sample, *cell)], expected, rtol=1e-12, atol=1e-12)
            for pixel, expected in slow_output.items():
                torch.testing.assert_close(output[(sample, *pixel)], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("grid", "position"), [((11,), (4,)), ((7, 5), (0, 3)), ((5, 3, 4), (2, 1, 3))], ids=str)
def test_what_a_convolution_reads(grid, position):
    torch.manual_seed(0)
    config = AxialConfig(image_size=list(grid), patch_size=[1] * len(grid))
    seen = receptive_field(PyramidConvolution(config, 2, 3).double(), (1, *grid, 2), position)
    for cell in cells(grid):
        assert seen[cell] == (max(abs(c - p) for c, p in zip(cell, position, strict=True)) <= 1)


@pytest.mark.parametrize("dense_head", DENSE_HEAD_CLASSES)
def test_half_precision_and_autocast(dense_head):
    pixel_values, hidden_states = draw(2, 2, 10, 9).bfloat16(), draw(2, 5, 3, 8).bfloat16()
    head = make_head(dense_head, (5, 3), (2, 3), dtype=torch.bfloat16)
    _, kept = head.before_trunk(pixel_values)
    assert head(hidden_states, NO_CONTEXT, kept).dtype == torch.bfloat16
    head = head.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, kept = head.before_trunk(pixel_values.float())
        output = head(hidden_states.float(), NO_CONTEXT, kept)
    assert all(states.dtype == torch.float32 for states in kept) and output.isfinite().all()


@pytest.mark.parametrize("dense_head", DENSE_HEAD_CLASSES)
def test_gradcheck(dense_head):
    head = make_head(dense_head, (2, 3), (2, 1))

    def both(pixel_values, hidden_states):
        embeds, kept = head.before_trunk(pixel_values)
        output = head(hidden_states, NO_CONTEXT, kept)
        return output if embeds is None else (embeds, output)

    inputs = draw(1, 2, 4, 3).requires_grad_(dense_head == "pyramid"), draw(1, 2, 3, 8).requires_grad_()
    assert torch.autograd.gradcheck(both, inputs)
