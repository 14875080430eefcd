import itertools

import pytest
import torch

from modeling_axial import AxialConfig
from modeling_axial.patch_embeddings import AxialPatchEmbeddings
from tests.test_grid import CASES, CONVOLUTIONS, cases, pixels


def embeddings(grid, patch, dtype=torch.float64, channels=3):
    config = AxialConfig(
        image_size=[length * side for length, side in zip(grid, patch, strict=True)],
        patch_size=list(patch),
        num_channels=channels,
        hidden_size=11,
        num_attention_heads=1,
    )
    torch.manual_seed(1)
    return AxialPatchEmbeddings(config).to(dtype)


@pytest.mark.parametrize(("grid", "patch"), [case for case in CASES if len(case[0]) <= 3], ids=str)
def test_equals_a_strided_convolution(grid, patch):
    module, image = embeddings(grid, patch), pixels(grid, patch)
    weight = module.projection.weight.view(11, 3, *patch)
    expected = CONVOLUTIONS[len(grid)](image, weight, module.projection.bias, stride=patch).movedim(1, -1)
    output = module(image)
    assert output.shape == (2, *grid, 11)
    assert torch.allclose(output, expected, rtol=0, atol=1e-13)


@cases
def test_each_token_is_the_projection_of_its_patch(grid, patch):
    module, image = embeddings(grid, patch), pixels(grid, patch)
    weight, bias = module.projection.weight.detach(), module.projection.bias.detach()
    output = module(image)
    assert output.shape == (2, *grid, 11)
    for cell in itertools.product(*(range(length) for length in grid)):
        region = tuple(slice(c * side, (c + 1) * side) for c, side in zip(cell, patch, strict=True))
        expected = torch.stack([weight @ sample[(slice(None), *region)].reshape(-1) + bias for sample in image])
        assert torch.allclose(output[(slice(None), *cell)], expected, rtol=0, atol=1e-13)


def test_other_sizes_than_the_native_one():
    module = embeddings((5, 3), (2, 7))
    for grid in [(1, 1), (3, 5), (11, 2)]:
        image = pixels(grid, (2, 7))
        weight = module.projection.weight.view(11, 3, 2, 7)
        expected = torch.nn.functional.conv2d(image, weight, module.projection.bias, stride=(2, 7)).movedim(1, -1)
        assert torch.allclose(module(image), expected, rtol=0, atol=1e-13)


def test_empty_batch_and_strides():
    module = embeddings((5, 3), (2, 7))
    assert module(pixels((5, 3), (2, 7), batch=0)).shape == (0, 5, 3, 11)
    image = pixels((5, 3), (2, 7))
    channels_last = image.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(module(channels_last), module(image))
    expanded = image[:1, :, :1].expand(2, 3, 10, 21)
    assert torch.equal(module(expanded), module(expanded.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_take_the_dtype_of_the_weight(dtype):
    module, image = embeddings((5, 3), (2, 7), dtype=torch.float32), pixels((5, 3), (2, 7), dtype=dtype)
    output = module(image)
    assert output.dtype == torch.float32
    assert torch.equal(output, module(image.float()))


def test_pixels_are_not_rounded_to_the_dtype_of_a_quantised_weight():
    module, image = embeddings((5, 3), (2, 7), dtype=torch.float32), pixels((5, 3), (2, 7), dtype=torch.float32)
    expected, weight = module(image), module.projection.weight.detach()
    module.projection.weight = torch.nn.Parameter(torch.zeros(weight.shape, dtype=torch.int8), requires_grad=False)
    module.projection.forward = lambda patches: torch.nn.functional.linear(patches, weight, module.projection.bias)
    assert torch.equal(module(image), expected)


def test_gradient_reaches_the_pixels():
    module = embeddings((5, 3), (2, 7), channels=1)
    image = pixels((5, 3), (2, 7), batch=1, channels=1).requires_grad_()
    assert torch.autograd.gradcheck(module, (image,))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        # rank
        (torch.zeros(3, 10, 21), ["(batch, channels, *pixels)", "2 axes", "(3, 10, 21)"]),
        (torch.zeros(1, 3, 4, 10, 21), ["2 axes", "(1, 3, 4, 10, 21)"]),
        (torch.zeros(()), ["2 axes", "shape ()"]),
        # channels
        (torch.zeros(1, 1, 10, 21), ["num_channels=3", "(1, 1, 10, 21)"]),
        (torch.zeros(1, 4, 10, 21), ["num_channels=3", "(1, 4, 10, 21)"]),
        (torch.zeros(1, 0, 10, 21), ["num_channels=3", "(1, 0, 10, 21)"]),
        (torch.zeros(1, 10, 21, 3), ["num_channels=3", "dim 1", "(1, 10, 21, 3)"]),
        # dtype
        (torch.zeros(1, 3, 10, 21, dtype=torch.uint8), ["floating point", "torch.uint8", "AxialImageProcessor"]),
        (torch.zeros(1, 3, 10, 21, dtype=torch.int64), ["floating point", "torch.int64"]),
        (torch.zeros(1, 3, 10, 21, dtype=torch.bool), ["floating point", "torch.bool"]),
        (torch.zeros(1, 3, 10, 21, dtype=torch.complex64), ["floating point", "torch.complex64"]),
        # a size that the patch does not divide
        (torch.zeros(1, 3, 11, 21), ["11 pixels", "axis 0", "multiple", "2"]),
        (torch.zeros(1, 3, 10, 20), ["20 pixels", "axis 1", "multiple", "7"]),
        (torch.zeros(1, 3, 21, 10), ["21 pixels", "axis 0"]),
        (torch.zeros(1, 3, 1, 21), ["1 pixels", "axis 0"]),
        # no pixels
        (torch.zeros(1, 3, 0, 21), ["0 pixels", "axis 0", "positive"]),
        (torch.zeros(1, 3, 10, 0), ["0 pixels", "axis 1", "positive"]),
    ],
    ids=lambda value: f"{tuple(value.shape)}-{value.dtype}" if isinstance(value, torch.Tensor) else "",
)
def test_bad_pixels(image, words):
    with pytest.raises(ValueError) as error:
        embeddings((5, 3), (2, 7), dtype=torch.float32)(image)
    for word in words:
        assert word in str(error.value)
