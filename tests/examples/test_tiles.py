"""Tiles see what they would see in the whole grid, and are put together to what the whole gives."""

import sys

import numpy as np
import pytest
import torch

from examples.benchmarks.reversible_conformance import LiveBytes
from examples.segmentation_scores import predict
from examples.tiles import positions_of_parts, predict_in_tiles, whole_tile
from modeling_axial import AxialConfig, AxialForDensePrediction, AxialForSemanticSegmentation, AxialGridProcessor


def make_model(model_class=AxialForSemanticSegmentation, native=(6, 10), patch=(2, 1), **overrides):
    torch.manual_seed(0)
    options = {
        "image_size": list(native),
        "patch_size": list(patch),
        "num_channels": 2,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.5,
        "num_labels": 3,
    }
    return model_class(AxialConfig(**options | overrides)).double().eval()


def in_tiles(model, batch, tile, **options):
    return predict_in_tiles(model, batch, model.config.patch_shape, tile, **options)


def without_attention(model):
    """Each cell reads itself alone, so that what a tile gives depends on where it lies and on nothing beside it."""
    for layer in model.axial.layers:
        for mixer in layer.attention.axes:
            torch.nn.init.zeros_(mixer.o_proj.weight)
    return model


@pytest.mark.parametrize("native", [(6, 10), (14, 4)])
@pytest.mark.parametrize("periodic", [False, [False, True]])
@pytest.mark.parametrize(("tile", "tiles_at_once"), [((4, 3), 1), ((8, 5), 3), ((40, 5), 2)])
def test_a_tile_lies_where_it_lies_in_the_whole(native, periodic, tile, tiles_at_once):
    """Learned positions are spread over the whole grid, of whatever size the native one is."""
    model = without_attention(make_model(native=native, periodic=periodic))
    batch = {"pixel_values": torch.randn(2, 2, 14, 11, dtype=torch.float64)}
    whole = model(**batch).logits
    found = in_tiles(model, batch, tile, tiles_at_once=tiles_at_once)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)  # positions and weights are float32


@pytest.mark.parametrize("position_embedding", ["relative", "rotary", "learned"])
def test_one_tile_is_the_whole(position_embedding):
    model = make_model(position_embedding=position_embedding)
    batch = {"pixel_values": torch.randn(1, 2, 14, 11, dtype=torch.float64)}
    torch.testing.assert_close(in_tiles(model, batch, (20, 30)), model(**batch).logits, rtol=1e-5, atol=1e-5)


def test_tiles_are_parts_with_the_positions_that_are_given():
    """Of tiles without overlap each is what the model gives for that part."""
    model = make_model(native=(14, 11), position_embedding="learned+relative")
    pixel_values = torch.randn(1, 2, 14, 12, dtype=torch.float64)[..., :11]
    found = in_tiles(model, {"pixel_values": pixel_values}, (2, 11), overlap=0)
    for row in range(7):
        given = {"position_ids": [torch.tensor([float(row)]), torch.arange(11.0)]}
        expected = model(pixel_values[:, :, 2 * row : 2 * row + 2], **given).logits
        torch.testing.assert_close(found[:, :, 2 * row : 2 * row + 2], expected, rtol=1e-6, atol=1e-6)


def test_masks_are_cut_like_the_pixels():
    """What stands in masked cells has no effect, whatever tile they lie in, and a tile without any is no error."""
    model = make_model(position_embedding="relative")
    mask = torch.ones(2, 7, 11, dtype=torch.bool)
    mask[0, 2:5, 3:] = mask[1, :, :6] = False
    results = []
    for number in (0.0, torch.nan):
        pixel_values = torch.randn(2, 2, 14, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        hidden = ~mask.repeat_interleave(2, 1)[:, None].expand_as(pixel_values)
        batch = {"pixel_values": pixel_values.masked_fill(hidden, number), "attention_mask": mask}
        results.append(in_tiles(model, batch, (4, 3), tiles_at_once=4).masked_fill(hidden[:, :1], 0))
    assert results[0].isfinite().all() and torch.equal(*results)


def test_quantiles_stay_apart():
    model = make_model(
        AxialForDensePrediction,
        position_embedding="none",
        prediction_loss="quantile",
        num_target_channels=2,
        quantiles=[0.1, 0.5, 0.9],
    )
    without_attention(model)
    batch = {"pixel_values": torch.randn(2, 2, 14, 11, dtype=torch.float64)}
    found, whole = in_tiles(model, batch, (4, 3)), model(**batch).prediction
    assert found.shape == (2, 2, 3, 14, 11)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)


def test_tiles_begin_at_patches_and_overlap_as_asked(monkeypatch):
    model, starts = make_model(patch=(2, 5), native=(6, 10), position_embedding="none"), set()
    forward = model.forward

    def record(pixel_values, position_ids, **kwargs):
        assert pixel_values.shape[2:] == (8, 20)
        starts.add(float(pixel_values[0, 0, 0, 0]))
        return forward(pixel_values, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(model, "forward", record)
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(40.0), indexing="ij")
    pixel_values = (100 * rows + columns).expand(1, 2, 20, 40).double()
    in_tiles(model, {"pixel_values": pixel_values}, (8, 20), overlap=0.25)
    assert starts == {100 * row + column for row in (0, 6, 12) for column in (0, 15, 20)}


@pytest.mark.parametrize("to_classes", [False, True])
def test_the_memory_of_the_model_is_that_of_a_tile(to_classes):
    """
    The peak of all tensors that are alive, without the batch, the logits and MONAI's weights, is that of the smallest
    grid of more than one tile, to the byte, and with the classes of its pixels.
    """
    overrides = {"position_embedding": "relative", "dense_head": "pyramid", "num_channels": 1, "num_labels": 4}
    model = make_model(native=(16, 16, 16), patch=(4, 4, 4), hidden_size=64, **overrides).float()
    processor, peaks = AxialGridProcessor(patch_size=[4, 4, 4]), []
    for shape in ((16, 16, 20), (33, 40, 29)):
        values = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        batch = {"pixel_values": processor(values, return_tensors="pt").pixel_values}
        beside = (1 + 4) * batch["pixel_values"].nbytes
        with LiveBytes(batch.values()) as live:
            if to_classes:
                predict(model, values, processor, torch.device("cpu"), (16, 16, 16))
                beside += batch["pixel_values"].nbytes  # made once more
            else:
                in_tiles(model, batch, (16, 16, 16))
        peaks.append(live.peak - beside)
    assert peaks[1] == peaks[0] > 4 * 16**3 * 16, peaks


def test_positions_that_cannot_be_both():
    config = make_model(position_embedding="learned+relative").config
    with pytest.raises(
        ValueError, match=r"axis 0 has the positions learned\+relative and 3 cells of its own, .* 7 cells"
    ):
        positions_of_parts(config, torch.zeros(1, 2), (4, 10), (14, 10))


@pytest.mark.parametrize("tile", [(3, 4), (0, 4), (4,), (4, 4, 4)])
def test_tiles_are_whole_patches(tile):
    with pytest.raises(ValueError, match=r"whole patches of \(2, 1\) pixels, got"):
        whole_tile(tile, (14, 11), (2, 1))


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_overlaps_that_are_none(overlap):
    with pytest.raises(ValueError, match="overlap must be in"):
        predict_in_tiles(make_model(), {"pixel_values": torch.zeros(1, 2, 8, 8)}, (2, 1), (4, 4), overlap=overlap)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.inferers", None)
    with pytest.raises(ModuleNotFoundError, match=r"monai: pip install 'modeling-axial\[segmentation\]'"):
        predict_in_tiles(make_model(), {"pixel_values": torch.zeros(1, 2, 8, 8)}, (2, 1), (4, 4))
