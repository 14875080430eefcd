import itertools
import math

import pytest
import torch

from modeling_axial.grid import neighbourhoods, patchify, shift, unpatchify, unwrap, wrap

CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
# (grid, patch): prime lengths, none of them twice next to each other.
CASES = [
    ((7,), (3,)),
    ((5, 3), (2, 7)),
    ((5, 3), (1, 2)),
    ((2, 5, 3), (3, 1, 2)),
    ((2, 5, 3, 7), (3, 2, 1, 2)),
    ((2, 3, 1, 2, 5), (1, 2, 3, 1, 2)),
]
cases = pytest.mark.parametrize(("grid", "patch"), CASES, ids=str)


def pixels(grid, patch, batch=2, channels=3, dtype=torch.float64):
    sizes = [length * side for length, side in zip(grid, patch, strict=True)]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, *sizes, generator=generator, dtype=dtype)


@cases
def test_patches_by_index_arithmetic(grid, patch):
    image = pixels(grid, patch)
    patches = patchify(image, patch)
    assert patches.shape == (2, *grid, 3 * math.prod(patch))
    for cell in itertools.product(*(range(length) for length in grid)):
        number = 0  # of the pixel in its patch: channels, then axes slow to fast
        for channel in range(3):
            for offset in itertools.product(*(range(side) for side in patch)):
                pixel = [c * side + o for c, side, o in zip(cell, patch, offset, strict=True)]
                assert torch.equal(patches[(slice(None), *cell, number)], image[(slice(None), channel, *pixel)])
                number += 1
        assert number == patches.shape[-1]


@cases
def test_unpatchify_is_the_inverse(grid, patch):
    image = pixels(grid, patch)
    assert torch.equal(unpatchify(patchify(image, patch), patch), image)
    patches = torch.randn(2, *grid, 3 * math.prod(patch), dtype=torch.float64)
    assert torch.equal(patchify(unpatchify(patches, patch), patch), patches)


def test_patches_of_an_empty_batch():
    assert unpatchify(patchify(pixels((5, 3), (2, 7), batch=0), (2, 7)), (2, 7)).shape == (0, 3, 10, 21)


@pytest.mark.parametrize("grid", [(5,), (4, 3), (2, 3, 4)], ids=str)
def test_neighbourhoods_make_a_convolution(grid):
    planes = torch.randn(2, *grid, 3, dtype=torch.float64)
    weight = torch.randn(7, 3, *[3] * len(grid), dtype=torch.float64)
    expected = CONVOLUTIONS[len(grid)](planes.movedim(-1, 1), weight, padding=1).movedim(1, -1)
    # Neighbours come axis by axis, so the offsets along the last axis are outermost.
    axes = range(weight.dim() - 1, 1, -1)
    found = neighbourhoods(planes) @ weight.permute(0, *axes, 1).flatten(1).T
    torch.testing.assert_close(found, expected)


def test_shift():
    states = torch.arange(1.0, 13).view(1, 3, 4, 1)
    assert shift(states, 0)[0, :, :, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert shift(states, 1)[0, :, :, 0].tolist() == [[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11]]
    assert shift(states, 0, -1)[0, :, :, 0].tolist() == [[5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 0]]
    assert not shift(states[:, :1], 0).any()


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2, 0)], ids=str)
def test_wrapped_axes_go_on_with_their_other_end(axes):
    states = torch.randn(2, 5, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    wrapped = wrap(states, axes)
    grid = [length + 2 * (axis in axes) for axis, length in enumerate((5, 1, 3))]
    assert wrapped.shape == (2, *grid, 4)
    for cell in itertools.product(*map(range, grid)):
        origin = [(at - (axis in axes)) % length for axis, (at, length) in enumerate(zip(cell, (5, 1, 3), strict=True))]
        assert torch.equal(wrapped[(0, *cell)], states[(0, *origin)])
    assert torch.equal(unwrap(wrapped, axes), states)
