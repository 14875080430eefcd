"""Means over mirror images: written out, and what they no longer depend on."""

import pytest
import torch

from examples.mirrors import MirrorMean
from examples.tiles import predict_in_tiles
from modeling_axial import AxialConfig, AxialForSemanticSegmentation


def make_model(image_size, patch_size, **overrides):
    torch.manual_seed(0)
    options = {"num_channels": 2, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    options |= {"initializer_range": 0.5, "position_embedding": "learned+relative", "dense_head": "pyramid"}
    config = AxialConfig(image_size=image_size, patch_size=patch_size, **options | overrides)
    return AxialForSemanticSegmentation(config).double().eval()


def make_batch(pixels, cells):
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(2, *cells, generator=draw) < 0.7
    return torch.randn(2, 2, *pixels, generator=draw, dtype=torch.float64), mask


@torch.no_grad()
def test_mean_written_out():
    model = make_model([4, 6, 5], [2, 2, 1])
    pixel_values, mask = make_batch((4, 6, 5), (2, 3, 5))

    def turned(*axes):
        of_pixels, of_cells = [axis + 2 for axis in axes], [axis + 1 for axis in axes]
        return model(pixel_values.flip(of_pixels), attention_mask=mask.flip(of_cells)).logits.flip(of_pixels)

    images = [turned(), turned(0), turned(2), turned(0, 2)]
    found = MirrorMean(model, (0, 2))(pixel_values, attention_mask=mask).logits
    torch.testing.assert_close(found, torch.stack(images).mean(0), rtol=0, atol=1e-12)
    assert min((images[0] - image).abs().max() for image in images[1:]) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_grid_gets_mirrored_logits(axis):
    model = make_model([6, 10], 2)
    pixel_values, mask = make_batch((6, 10), (3, 5))
    mean = MirrorMean(model, (axis,))
    expected = mean(pixel_values, attention_mask=mask).logits.flip(axis + 2)
    mirrored = {"pixel_values": pixel_values.flip(axis + 2), "attention_mask": mask.flip(axis + 1)}
    torch.testing.assert_close(mean(**mirrored).logits, expected, rtol=0, atol=1e-12)
    assert (model(**mirrored).logits - expected).abs().max() > 0.1


def test_tiles_of_a_model_that_sees_each_patch_alone():
    """Gives in tiles what it gives at once, where each image of a tile stays in its place."""
    model = make_model([6, 10], 2, position_embedding="none", dense_head="linear")
    model.axial.layers = torch.nn.ModuleList()
    pixel_values, mask = make_batch((6, 10), (3, 5))
    batch = {"pixel_values": pixel_values, "attention_mask": mask}
    mean = MirrorMean(model, (0, 1)).eval()
    with torch.no_grad():
        expected = mean(**batch).logits
    found = predict_in_tiles(mean, batch, (2, 2), (4, 4))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert (expected - model(**batch).logits).abs().max() > 0.1
