import itertools
import math

import pytest
import torch

from modeling_axial import AxialConfig
from modeling_axial.feed_forward import FEED_FORWARD_CLASSES, AxialConvolutionFeedForward, AxialGatedMLP, AxialMLP
from modeling_axial.layer_context import LayerContext
from modeling_axial.testing import receptive_field
from tests.drawn import states

GRIDS = [(7,), (5, 3), (2, 5, 3)]
HIDDEN, INTERMEDIATE = 5, 7

# Activations written out, x a float.
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def feed_forward(kind, grid, hidden_act="gelu", **overrides):
    config = AxialConfig(
        image_size=list(grid),
        patch_size=[1] * len(grid),
        hidden_size=HIDDEN,
        num_attention_heads=1,
        intermediate_size=INTERMEDIATE,
        hidden_act=hidden_act,
        feed_forward=kind,
        **overrides,
    )
    torch.manual_seed(0)
    return FEED_FORWARD_CLASSES[kind](config).double()


def cells(grid):
    return itertools.product(*(range(length) for length in grid))


def linear(layer, vector):
    return torch.stack([(row * vector).sum() + bias for row, bias in zip(layer.weight, layer.bias, strict=True)])


def activated(vector, hidden_act):
    return torch.tensor([ACTIVATIONS[hidden_act](value) for value in vector.tolist()], dtype=torch.float64)


def slow_mlp(module, hidden_states, hidden_act):
    return linear(module.fc2, activated(linear(module.fc1, hidden_states), hidden_act))


def slow_gated_mlp(module, hidden_states, hidden_act):
    gate = activated(linear(module.gate_proj, hidden_states), hidden_act)
    return linear(module.down_proj, gate * linear(module.up_proj, hidden_states))


def slow_convolution(layer, grid):
    """The 3-wide convolution of `grid`, a dictionary from cells to vectors; cells that are not in it count as zero."""
    num_axes = layer.weight.dim() - 2
    output = {}
    for cell in grid:
        total = layer.bias.clone()
        for offsets in itertools.product((-1, 0, 1), repeat=num_axes):
            neighbour = tuple(c + offset for c, offset in zip(cell, offsets, strict=True))
            if neighbour in grid:
                total = total + layer.weight[(..., *(offset + 1 for offset in offsets))] @ grid[neighbour]
        output[cell] = total
    return output


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
@pytest.mark.parametrize(
    ("kind", "module_class", "reference"), [("mlp", AxialMLP, slow_mlp), ("gated_mlp", AxialGatedMLP, slow_gated_mlp)]
)
@pytest.mark.parametrize("grid", [*GRIDS, (2, 3, 1, 5)], ids=str)
def test_equals_the_formula_cell_by_cell(grid, kind, module_class, reference, hidden_act):
    module, hidden_states = feed_forward(kind, grid, hidden_act), states(2, *grid, HIDDEN)
    assert type(module) is module_class
    output = module(hidden_states)
    assert output.shape == hidden_states.shape
    with torch.no_grad():
        for sample, *cell in itertools.product(range(2), *(range(length) for length in grid)):
            expected = reference(module, hidden_states[(sample, *cell)], hidden_act)
            assert torch.allclose(output[(sample, *cell)], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_convolution_equals_its_sum_over_neighbours(grid, hidden_act):
    module, hidden_states = feed_forward("convolution", grid, hidden_act), states(2, *grid, HIDDEN)
    assert type(module) is AxialConvolutionFeedForward
    output = module(hidden_states)
    assert output.shape == hidden_states.shape
    with torch.no_grad():
        for sample in range(2):
            inner = slow_convolution(module.conv1, {cell: hidden_states[(sample, *cell)] for cell in cells(grid)})
            inner = {cell: activated(vector, hidden_act) for cell, vector in inner.items()}
            for cell, expected in slow_convolution(module.conv2, inner).items():
                assert torch.allclose(output[(sample, *cell)], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_masked_cells_are_beyond_the_edge_of_a_convolution(grid):
    module, hidden_states = feed_forward("convolution", grid), states(2, *grid, HIDDEN)
    mask = states(3, *grid)[1:] > -0.5
    output = module(hidden_states.masked_fill(~mask[..., None], torch.nan), LayerContext(mask))
    with torch.no_grad():
        for sample in range(2):
            used = [cell for cell in cells(grid) if mask[(sample, *cell)]]
            assert 0 < len(used) < mask[sample].numel()
            inner = slow_convolution(module.conv1, {cell: hidden_states[(sample, *cell)] for cell in used})
            inner = {cell: activated(vector, "gelu") for cell, vector in inner.items()}
            for cell, expected in slow_convolution(module.conv2, inner).items():
                assert torch.allclose(output[(sample, *cell)], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cropped_axes", [(), (0,)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", [*GRIDS, (1, 5), (2, 3)], ids=str)
def test_convolution_goes_on_across_the_ends_of_periodic_axes(grid, masked, cropped_axes):
    module, hidden_states = feed_forward("convolution", grid, periodic=[True] * len(grid)), states(2, *grid, HIDDEN)
    mask = states(3, *grid)[1:] > -0.5 if masked else None
    output = module(hidden_states, LayerContext(mask, cropped_axes=cropped_axes))
    closed = [axis for axis in range(len(grid)) if axis not in cropped_axes]
    with torch.no_grad():
        for sample in range(2):
            used = {cell: hidden_states[(sample, *cell)] for cell in cells(grid) if not masked or mask[(sample, *cell)]}
            inner = slow_convolution(module.conv1, around(used, grid, closed))
            inner = {cell: activated(inner[cell], "gelu") for cell in used}
            outer = slow_convolution(module.conv2, around(inner, grid, closed))
            for cell in used:
                assert torch.allclose(output[(sample, *cell)], outer[cell], rtol=0, atol=1e-13)


def around(used, grid, closed):
    """The cells again one length before and after along closed axes."""
    for axis in closed:
        copies = [(cell, step) for cell in used for step in (-grid[axis], 0, grid[axis])]
        used = {(*cell[:axis], cell[axis] + step, *cell[axis + 1 :]): used[cell] for cell, step in copies}
    return used


@pytest.mark.parametrize(
    ("grid", "position"), [((11,), (4,)), ((11, 7), (5, 2)), ((11, 7), (0, 6)), ((7, 11, 6), (3, 8, 1))], ids=str
)
def test_what_a_cell_sees(grid, position):
    far = 0
    for kind, reach in [("mlp", 0), ("gated_mlp", 0), ("convolution", 2)]:
        seen = receptive_field(feed_forward(kind, grid), (1, *grid, HIDDEN), position)
        assert seen.shape == grid
        for cell in cells(grid):
            distance = max(abs(c - p) for c, p in zip(cell, position, strict=True))
            assert seen[cell] == (distance <= reach)
            far += distance > reach
    assert far > 0


@pytest.mark.parametrize("kind", FEED_FORWARD_CLASSES)
def test_gradcheck(kind):
    module, hidden_states = feed_forward(kind, (3, 2)), states(1, 3, 2, HIDDEN).requires_grad_()
    assert torch.autograd.gradcheck(module, (hidden_states,))


@pytest.mark.parametrize("kind", FEED_FORWARD_CLASSES)
def test_empty_batch_and_strides(kind):
    module, hidden_states = feed_forward(kind, (5, 3)), states(2, HIDDEN, 3, 5).permute(0, 3, 2, 1)
    assert module(hidden_states[:0]).shape == (0, 5, 3, HIDDEN)
    assert torch.allclose(module(hidden_states), module(hidden_states.contiguous()), rtol=0, atol=1e-14)
