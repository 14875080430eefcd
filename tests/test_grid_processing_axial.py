"""Arrays of any number of axes come out as slow loops in float64 compute it, and go back; bad ones are refused by name,
before memory is taken where shape and dtype decide."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput

from modeling_axial import AxialConfig, AxialGridProcessor, AxialModel, grid_processing_axial
from modeling_axial.modeling_axial_dense import DensePredictionOutput
from tests.lazy_array import LazyArray, Sealed, peak_memory


def predicted(prediction):
    """What `AxialForDensePrediction` returns."""
    return DensePredictionOutput(prediction=prediction)


def fields(*shape, seed=0, missing=0.0, dtype=np.float64):
    """Numbers around 7, each missing with some probability."""
    generator = np.random.default_rng(seed)
    values = 7 + 3 * generator.standard_normal(shape)
    values[generator.random(shape) < missing] = np.nan
    return values.astype(dtype)


def reference(arrays, patch, mean, std, targets=None, target_mean=None, target_std=None):
    """pixel_values, validity, attention_mask, labels and loss_mask of channels-first arrays, pixel by pixel."""
    num_axes, num_channels = len(patch), len(mean)
    longest = [max(array.shape[1 + axis] for array in arrays) for axis in range(num_axes)]
    grid = [math.ceil(pixels / side) for pixels, side in zip(longest, patch, strict=True)]
    shape = [cells * side for cells, side in zip(grid, patch, strict=True)]
    values = np.zeros((len(arrays), num_channels, *shape))
    validity = np.zeros((len(arrays), *shape))
    mask = np.zeros((len(arrays), *grid), bool)
    for i, array in enumerate(arrays):
        for index in itertools.product(*map(range, array.shape[1:])):
            pixel = array[(slice(None), *index)]
            cell = tuple(i // side for i, side in zip(index, patch, strict=True))
            mask[(i, *cell)] |= not np.isnan(pixel).all()
            validity[(i, *index)] = not np.isnan(pixel).any()
            for channel, value in enumerate(pixel):
                if not np.isnan(value):
                    values[(i, channel, *index)] = (value - mean[channel]) / std[channel]
    if targets is None:
        return values, validity, mask
    labels = np.zeros((len(arrays), len(target_mean), *shape))
    loss_mask = np.zeros(labels.shape, bool)
    for i, target in enumerate(targets):
        for channel, *index in itertools.product(*map(range, target.shape)):
            value = target[(channel, *index)]
            cell = tuple(i // side for i, side in zip(index, patch, strict=True))
            if not np.isnan(value) and mask[(i, *cell)]:
                loss_mask[(i, channel, *index)] = True
                labels[(i, channel, *index)] = (value - target_mean[channel]) / target_std[channel]
    return values, validity, mask, labels, loss_mask


CASES = st.integers(1, 4).flatmap(
    lambda num_axes: st.fixed_dictionaries(
        {
            "patch": st.lists(st.integers(1, 3), min_size=num_axes, max_size=num_axes),
            "shapes": st.lists(
                st.lists(st.integers(1, 5), min_size=num_axes, max_size=num_axes), min_size=1, max_size=3
            ),
            "num_channels": st.integers(1, 3),
            "last": st.booleans(),
            "missing": st.sampled_from([0.0, 0.3, 0.8]),
            "seed": st.integers(0, 9),
        }
    )
)


@given(case=CASES)
def test_values_and_masks_against_loops(case):
    patch, num_channels, seed = case["patch"], case["num_channels"], case["seed"]
    arrays = [
        fields(num_channels, *shape, seed=seed + i, missing=case["missing"]) for i, shape in enumerate(case["shapes"])
    ]
    for array in arrays:
        array[(0,) * array.ndim] = 8.0  # a sample has at least one value
    targets = [fields(2, *shape, seed=seed + 20 + i, missing=case["missing"]) for i, shape in enumerate(case["shapes"])]
    mean, std = [7.0, 6.5, -2.0][:num_channels], [3.0, 0.25, 11.0][:num_channels]
    processor = AxialGridProcessor(
        patch_size=patch,
        num_channels=num_channels,
        image_mean=mean,
        image_std=std,
        add_validity_channel=True,
        input_data_format="channels_last" if case["last"] else "channels_first",
        num_target_channels=2,
        target_mean=[1.0, 2.0],
        target_std=[3.0, 5.0],
    )
    given_arrays, given_targets = arrays, targets
    if case["last"]:
        given_arrays, given_targets = ([np.moveaxis(array, 0, -1) for array in part] for part in (arrays, targets))
    inputs = processor(given_arrays, targets=given_targets, return_tensors="pt")
    values, validity, mask, labels, loss_mask = reference(arrays, patch, mean, std, targets, [1.0, 2.0], [3.0, 5.0])
    np.testing.assert_allclose(inputs.pixel_values[:, :-1], values, rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(inputs.pixel_values[:, -1], validity)
    np.testing.assert_array_equal(inputs.attention_mask, mask)
    np.testing.assert_array_equal(inputs.loss_mask, loss_mask)
    np.testing.assert_allclose(inputs.labels, labels, rtol=1e-7, atol=1e-7)
    assert inputs.pixel_values.dtype == inputs.labels.dtype == torch.float32
    assert inputs.attention_mask.dtype == inputs.loss_mask.dtype == torch.bool


@given(case=CASES)
def test_the_way_back(case):
    patch, num_channels = case["patch"], case["num_channels"]
    arrays = [fields(num_channels, *shape, seed=case["seed"] + i) for i, shape in enumerate(case["shapes"])]
    processor = AxialGridProcessor(patch_size=patch, num_channels=num_channels, image_mean=7.5, image_std=3.0)
    inputs = processor(arrays, targets=arrays, return_tensors="pt")
    assert torch.equal(inputs.labels, inputs.pixel_values)
    back = processor.post_process_dense_prediction(predicted(inputs.labels), [array.shape[1:] for array in arrays])
    for array, found in zip(arrays, back, strict=True):
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found, array, rtol=0, atol=3e-6)
    whole = processor.post_process_dense_prediction(predicted(inputs.labels.bfloat16().requires_grad_()))
    assert [sample.shape for sample in whole] == [inputs.labels.shape[1:]] * len(arrays)


def test_the_way_back_of_quantiles():
    """Each quantile is brought to the units of its channel."""
    processor = AxialGridProcessor(patch_size=[2, 3], num_channels=2, image_mean=[7.0, -2.0], image_std=[3.0, 0.5])
    arrays = [fields(2, 3, 5, seed=1), fields(2, 4, 2, seed=2)]
    quantiles = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    back = processor.post_process_dense_prediction(predicted(quantiles), [array.shape[1:] for array in arrays])
    for sample, array, found in zip(quantiles, arrays, back, strict=True):
        _, rows, columns = array.shape
        assert found.shape == (2, 3, rows, columns)
        for channel, (mean, deviation) in enumerate(((7.0, 3.0), (-2.0, 0.5))):
            for number in range(3):
                expected = sample[channel, number, :rows, :columns] * deviation + mean
                torch.testing.assert_close(found[channel, number], expected, rtol=0, atol=1e-12)
    whole = processor.post_process_dense_prediction(predicted(quantiles))
    assert [sample.shape for sample in whole] == [(2, 3, 4, 6)] * 2


# --- what arrays may be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", ">i2", "uint16", ">u2", "int64", "float16", "float32", ">f8"]
)
def test_every_dtype(dtype, tmp_path):
    """16-bit slices and floating point as they are, without a scale."""
    low, high = (0, 1) if dtype == "bool" else (0, 200) if dtype == "uint8" else (0, 2000)
    values = np.random.default_rng(0).integers(low, high, (2, 5, 7), endpoint=True).astype(dtype)
    file = np.memmap(tmp_path / "slices", dtype=values.dtype, mode="w+", shape=values.shape)
    file[:] = values
    processor = AxialGridProcessor(patch_size=[5, 7], num_channels=2, image_mean=[100, 0.5], image_std=[3, 7])
    expected = (values.astype(np.float64) - np.array([100, 0.5])[:, None, None]) / np.array([3, 7])[:, None, None]
    for array in (values, file, LazyArray(values), np.ma.MaskedArray(values), values[:, ::-1][:, ::-1]):
        found = processor(array, return_tensors="np").pixel_values
        np.testing.assert_array_equal(found, expected[None].astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_tensors(dtype):
    values = torch.arange(35).reshape(1, 5, 7).to(dtype)
    found = AxialGridProcessor(patch_size=[5, 7], image_mean=3, image_std=2)(values, return_tensors="pt").pixel_values
    assert torch.equal(found[0], (values.double() - 3).div(2).float())


def test_a_large_mean_costs_no_digits():
    """In float32, 1e5 + 1 has two decimals left: arithmetic in float64 keeps what the array has."""
    values = np.float32(1e5) + np.arange(35, dtype=np.float32).reshape(1, 5, 7) / 64
    found = AxialGridProcessor(patch_size=5, image_mean=1e5 + 0.1, image_std=1e-2)(values).pixel_values[0, :, :5, :7]
    expected = (values.astype(np.float64) - (1e5 + 0.1)) / 1e-2
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_layouts():
    array = fields(2, 5, 7)
    processor = AxialGridProcessor(patch_size=[5, 7], num_channels=2, channel_names=["u", "v"])
    expected = processor([array, -array]).pixel_values
    last = np.moveaxis(array, 0, -1)
    names = {"v": LazyArray(array[1]), "u": array[0], "more": None}
    for batch in (
        np.stack([array, -array]),
        torch.tensor(np.stack([array, -array])),
        LazyArray(np.stack([array, -array])),
        iter((array, -array)),
        [names, {"u": -array[0], "v": -array[1]}],
    ):
        np.testing.assert_array_equal(processor(batch).pixel_values, expected)
    for one in (array, names, [array], (array,)):
        np.testing.assert_array_equal(processor(one).pixel_values, expected[:1])
    for batch in (last, [last], last[None]):
        found = processor(batch, input_data_format="channels_last").pixel_values
        np.testing.assert_array_equal(found, expected[:1])
    single = AxialGridProcessor(patch_size=[5, 7])
    for one in (array[0], array[:1], array[None, :1], [array[0]]):
        np.testing.assert_array_equal(single(one).pixel_values, expected[:1, :1])


def test_padding_options():
    arrays = [fields(2, 5, 7), fields(2, 4, 9)]
    processor = AxialGridProcessor(patch_size=[2, 3], num_channels=2, image_mean=7, image_std=3)
    padded = processor(arrays, pad_size=[5, 13])
    assert padded.pixel_values.shape == (2, 2, 6, 15) and padded.attention_mask.shape == (2, 3, 5)
    assert padded.attention_mask.sum(axis=(1, 2)).tolist() == [3 * 3, 2 * 3]
    alone = processor([arrays[1]], do_pad=False)
    assert alone.pixel_values.shape == (1, 2, 4, 9) and alone.attention_mask.all()
    np.testing.assert_array_equal(alone.pixel_values[0], padded.pixel_values[1, :, :4, :9])


def test_missing_values_of_every_sort():
    values = fields(1, 5, 7, missing=0.5)
    missing = np.isnan(values)
    processor = AxialGridProcessor(patch_size=[1, 1], image_mean=7, image_std=3)
    expected = processor(values, targets=values)
    assert 0 < missing.sum() < missing.size
    np.testing.assert_array_equal(expected.attention_mask, ~missing)
    marked = np.where(missing, -9999, values)
    masked = np.ma.MaskedArray(np.where(missing, np.inf, values), missing)
    for array, options in ((marked, {"missing_value": -9999}), (masked, {})):
        found = processor(array, targets=array, **options)
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
    whole = np.where(missing, -1, values.round(0)).astype(np.int16)
    assert processor(whole, missing_value=-1.0).attention_mask.tolist() == (~missing).tolist()
    large = np.where(missing, 2**62 + 1, 2**62)
    assert processor(large, missing_value=2**62 + 1).attention_mask.tolist() == (~missing).tolist()
    single = np.where(missing, -9999.9, values).astype(np.float32)
    assert processor(single, missing_value=-9999.9).attention_mask.tolist() == (~missing).tolist()


def test_without_normalising():
    values = fields(1, 4, 6, missing=0.3)
    processor = AxialGridProcessor(patch_size=[2, 3], image_mean=7.5, image_std=3, do_normalize=False)
    inputs = processor(values, targets=values, return_tensors="pt")
    np.testing.assert_array_equal(inputs.pixel_values[0], np.where(np.isnan(values), 7.5, values).astype(np.float32))
    back = processor.post_process_dense_prediction(predicted(inputs.labels))[0]
    np.testing.assert_array_equal(back, np.where(np.isnan(values), 0, values).astype(np.float32))


def test_segmentation_maps():
    arrays = [fields(2, 4, 6, 5, missing=0.2, seed=i)[..., : 5 - i] for i in range(2)]
    arrays[0][:, :2, :3, :2] = np.nan  # one cell without any value
    maps = [np.random.default_rng(i).integers(0, 9, array.shape[1:]) for i, array in enumerate(arrays)]
    maps[1][0, 0, 0] = 255
    processor = AxialGridProcessor(patch_size=[2, 3, 2], num_channels=2, num_labels=9)
    inputs = processor(arrays, segmentation_maps=maps, return_tensors="pt")
    assert inputs.labels.shape == (2, 4, 6, 6) and inputs.labels.dtype == torch.int64
    assert not inputs.attention_mask[0, 0, 0, 0]
    for i, labels in enumerate(maps):
        for index in itertools.product(range(4), range(6), range(6)):
            cell = tuple(place // side for place, side in zip(index, (2, 3, 2), strict=True))
            there = index[2] < labels.shape[2] and inputs.attention_mask[(i, *cell)]
            assert inputs.labels[(i, *index)] == (labels[index] if there else 255)
    logits = torch.nn.functional.one_hot(inputs.labels % 255, 9).movedim(-1, 1).float()
    outputs = SemanticSegmenterOutput(logits=logits)
    sizes = [labels.shape for labels in maps]
    scored = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    for i, found in enumerate(processor.post_process_semantic_segmentation(outputs, sizes)):
        place = tuple(map(slice, sizes[i]))
        assert torch.equal(found, inputs.labels[i][place] % 255)
        assert torch.equal(scored[i].segmentation, found)
        assert torch.equal(scored[i].segmentation_scores, logits[i][(slice(None), *place)])
    ignored = processor(arrays[0], maps[0], ignore_index=-100).labels
    assert (ignored[..., 5:] == -100).all() and (ignored[0, :2, :3, :2] == -100).all()
    batch = processor(np.stack([arrays[0]] * 2), np.stack([maps[0]] * 2)).labels
    np.testing.assert_array_equal(batch[0], batch[1])


def test_models_see_nothing_of_padding_and_missing_cells():
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[4, 9, 10],
        patch_size=[2, 3, 5],
        num_channels=2,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = AxialModel(config).double().eval()
    volumes = [fields(2, 4, 9, 10), fields(2, 3, 6, 10, seed=1)]
    volumes[0][:, :2, 3:6, :5] = np.nan
    processor = AxialGridProcessor(patch_size=[2, 3, 5], num_channels=2).fit(volumes)
    with torch.no_grad():
        together = model(**processor(volumes, return_tensors="pt")).pooler_output
        for pooled, volume in zip(together, volumes, strict=True):
            alone = model(**processor(volume, return_tensors="pt")).pooler_output[0]
            torch.testing.assert_close(pooled, alone, rtol=1e-12, atol=1e-12)


# --- statistics -------------------------------------------------------------------------------------------------------


@given(case=CASES, at_once=st.sampled_from([1, 7, 2**22]), offset=st.sampled_from([0.0, 1e8]))
def test_statistics_against_all_values_at_once(case, at_once, offset):
    num_channels = case["num_channels"]
    arrays = [
        fields(num_channels, *shape, seed=case["seed"] + i, missing=case["missing"]) + offset
        for i, shape in enumerate([*case["shapes"], [4] * len(case["patch"])])
    ]
    for number, value in enumerate((7.0, 8.0)):  # at least two values in each channel
        arrays[-1][(slice(None), *[number] * len(case["patch"]))] = value + offset
    processor = AxialGridProcessor(patch_size=case["patch"], num_channels=num_channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_processing_axial, "VALUES_AT_ONCE", at_once)
        assert processor.fit(array for array in arrays) is processor
    for channel in range(num_channels):
        values = np.concatenate([array[channel].ravel() for array in arrays])
        values = values[~np.isnan(values)].astype(np.longdouble)
        assert processor.image_mean[channel] == pytest.approx(float(values.mean()), rel=1e-13)
        assert processor.image_std[channel] == pytest.approx(float(values.std()), rel=1e-6 if offset else 1e-12)


def test_statistics_of_16_bits_last_channels_and_names():
    values = np.random.default_rng(0).integers(0, 65536, (3, 11, 7), dtype=np.uint16)
    flat = values.reshape(3, -1).astype(np.float64)
    processor = AxialGridProcessor(patch_size=4, num_channels=3, channel_names=["a", "b", "c"])
    expected = processor.fit(values).image_mean, processor.image_std
    np.testing.assert_allclose(expected, (flat.mean(1), flat.std(1)), rtol=1e-13)
    named = {"c": values[2], "a": values[0], "b": values[1]}
    np.testing.assert_allclose((processor.fit([named, named]).image_mean, processor.image_std), expected, rtol=1e-13)
    last = AxialGridProcessor(patch_size=4, num_channels=3, input_data_format="channels_last")
    np.testing.assert_allclose((last.fit(np.moveaxis(values, 0, -1)).image_mean, last.image_std), expected, rtol=1e-13)
    normalised = processor([values, values]).pixel_values[:, :, :11, :7].astype(np.float64)
    np.testing.assert_allclose(normalised.mean(axis=(0, 2, 3)), 0, atol=1e-7)
    np.testing.assert_allclose(normalised.std(axis=(0, 2, 3)), 1, rtol=1e-7)


@pytest.mark.parametrize("at_once", [1, 7, 2**22])
def test_components_are_those_of_all_pixels_with_variance_1(monkeypatch, at_once):
    """Beside an eigendecomposition of what lies in all parts together: variances fall, signs are fixed."""
    monkeypatch.setattr(grid_processing_axial, "VALUES_AT_ONCE", at_once)
    mix = np.random.default_rng(1).standard_normal((4, 4))
    arrays = [np.einsum("oc,cij->oij", mix, fields(4, *shape, seed=shape[0])) for shape in ((6, 7), (3, 2), (5, 1))]
    processor = AxialGridProcessor(patch_size=1, num_channels=4).fit(arrays)
    assert processor.fit_components((array for array in arrays), 3) is processor
    pixels = np.concatenate([array.reshape(4, -1) for array in arrays], 1)
    variances, directions = np.linalg.eigh(np.corrcoef(pixels))
    weights = np.array(processor.channel_components)
    for row, variance, direction in zip(weights, variances[::-1], directions.T[::-1], strict=False):
        assert row[np.abs(row).argmax()] > 0
        np.testing.assert_allclose(row * np.sign(row @ direction), direction / variance**0.5, rtol=1e-8, atol=1e-9)
    inputs = processor(arrays, return_tensors="pt")
    assert inputs.pixel_values.shape == (3, 3, 6, 7) and inputs.pixel_values.is_contiguous()
    seen = [values[:, : a.shape[1], : a.shape[2]] for values, a in zip(inputs.pixel_values, arrays, strict=True)]
    seen = torch.cat([values.flatten(1) for values in seen], 1)
    np.testing.assert_allclose(seen @ seen.T / seen.shape[1], np.eye(3), atol=1e-5)


def test_components_of_channels_that_are_missing():
    """A channel that is missing counts as its mean, padding stays 0, and the mask is that of the channels."""
    array = fields(2, 5, 4)
    array[0, 1, 2] = array[1, 3] = np.nan
    array[:, 0, 0] = np.nan
    plain = AxialGridProcessor(patch_size=[1, 3], num_channels=2, image_mean=7.0, image_std=3.0)
    weights = [[1.0, 2.0], [0.5, -1.0], [0.0, 4.0]]
    options = {"channel_components": weights, "add_validity_channel": True}
    before, after = plain([array]), plain([array], **options)
    expected = np.einsum("oc,bcij->boij", weights, before.pixel_values)
    np.testing.assert_allclose(after.pixel_values[:, :3], expected, atol=1e-6)
    assert not after.pixel_values[:, :, :, 4:].any() and np.array_equal(after.attention_mask, before.attention_mask)
    assert np.array_equal(after.pixel_values[0, 3, :, :4], ~np.isnan(array).any(0))
    # What is learnt is that of the pixels with both channels.
    there = (array[:, ~np.isnan(array).any(0)] - 7) / 3
    (weight,) = plain.fit_components([array], 1).channel_components
    variance, direction = (numbers[..., -1] for numbers in np.linalg.eigh(there @ there.T / there.shape[1]))
    np.testing.assert_allclose(np.abs(weight), np.abs(direction) / variance**0.5, rtol=1e-9)


def test_components_that_are_not_there():
    array = fields(2, 6, 7)
    processor = AxialGridProcessor(patch_size=1, num_channels=3).fit(np.stack([*array, array[0] * 2 + 1]))
    for arrays, number, message in (
        (np.stack([*array, array[0] * 2 + 1]), 3, "only 2 principal components that vary, asked for 3"),
        (np.stack([*array, np.full((6, 7), np.nan)]), 1, "no pixel has all channels"),
        (fields(3, 6, 7), 4, "3 channels have no 4 principal components"),
        (fields(3, 6, 7), 0, "number must be an int of at least 1"),
        (fields(2, 6, 7), 1, "must have 3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.fit_components(arrays, number)
        assert processor.channel_components is None


def test_statistics_of_targets():
    arrays, targets = fields(1, 5, 7), fields(2, 5, 7, seed=3)
    processor = AxialGridProcessor(patch_size=[5, 7], num_target_channels=2).fit(arrays).fit_targets(targets)
    np.testing.assert_allclose(processor.target_mean, targets.mean(axis=(1, 2)), rtol=1e-13)
    labels = processor(arrays, targets=targets, return_tensors="pt").labels
    np.testing.assert_allclose(labels.double().mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(processor.post_process_dense_prediction(predicted(labels))[0], targets, atol=3e-6)
    assert processor.image_mean == pytest.approx((arrays.mean(),))


def test_one_number_serves_any_number_of_channels():
    processor = AxialGridProcessor(patch_size=[5, 7], image_mean=7, image_std=3, target_mean=0.0, num_target_channels=2)
    assert (processor.image_mean, processor.image_std, processor.target_mean) == (7.0, 3.0, 0.0)
    array = fields(3, 5, 7)
    inputs = processor(array, num_channels=3, targets=array[:2], return_tensors="pt")
    np.testing.assert_allclose(inputs.pixel_values[0], (array - 7) / 3, rtol=1e-6)
    np.testing.assert_allclose(inputs.labels[0], array[:2] / 3, rtol=1e-6)  # its own mean, the arrays' deviation


def test_statistics_read_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(grid_processing_axial, "VALUES_AT_ONCE", 2**16)
    file = np.broadcast_to(np.arange(512, dtype=np.float32), (1, 64, 256, 512))  # 32 MiB, were it held
    processor = AxialGridProcessor(patch_size=[1, 1, 1])
    assert peak_memory(processor.fit, file) < 8 * 2**20
    assert processor.image_mean == pytest.approx((255.5,))


# --- bad ones ---------------------------------------------------------------------------------------------------------

VOLUME = fields(2, 4, 6, 10)
MAP = np.zeros((4, 6, 10), int)


def broken(value, *index):
    array = VOLUME.copy()
    array[index or (1, 2, 3, 4)] = value
    return array


# kind: (arrays, other arguments, message); the processor is for volumes of two channels
BAD_BEFORE_READING = {
    "nothing": (None, {}, "images must be an array or a list of arrays, got NoneType"),
    "a number": (3.5, {}, "got float"),
    "a path": ("volume.nii", {}, "got str; read files first"),
    "bytes": (b"volume", {}, "got bytes"),
    "no array": ([], {}, "no array given"),
    "a list with nothing in it": ([Sealed(2, 4, 6, 10), None], {}, r"images\[1\] must be an array .* got NoneType"),
    "lists of numbers": ([[1.0, 2.0]], {}, r"images\[0\] must be an array .* got list"),
    "a path in a list": (["volume.nii"], {}, r"images\[0\] must be an array .* got str"),
    "3-D for 4-D": (Sealed(4, 6, 10), {}, r"3 axes .* and its channels, got shape \(4, 6, 10\)"),
    "2-D for 4-D": (Sealed(6, 10), {}, r"got shape \(6, 10\)"),
    "6-D for 4-D": (Sealed(1, 1, 2, 4, 6, 10), {}, r"got shape \(1, 1, 2, 4, 6, 10\)"),
    "no dims": (Sealed(), {}, r"got shape \(\)"),
    "a batch in a list": ([Sealed(3, 2, 4, 6, 10)], {}, r"got shape \(3, 2, 4, 6, 10\)"),
    "4-D for 3-D": (Sealed(17, 4, 6, 10), {"num_channels": 1}, r"must have 1 channels at dim 0 .* \(17, 4, 6, 10\)"),
    "channel count": (Sealed(3, 4, 6, 10), {}, r"must have 2 channels at dim 0 .*channels_first.* \(3, 4, 6, 10\)"),
    "channels last": (Sealed(4, 6, 10, 2), {}, "must have 2 channels at dim 0"),
    "channels first": (Sealed(2, 4, 6, 10), {"input_data_format": "channels_last"}, "must have 2 channels at dim 3"),
    "channel count in a batch": (Sealed(5, 3, 4, 6, 10), {}, r"images\[0\] must have 2 channels"),
    "no slices": (Sealed(2, 0, 6, 10), {}, r"empty: shape \(2, 0, 6, 10\)"),
    "an empty batch": (Sealed(0, 2, 4, 6, 10), {}, "empty"),
    "an unknown length": (Sealed(2, None, 6, 10), {}, "lengths that are not known"),
    "objects": (Sealed(2, 4, 6, 10, dtype=object), {}, "objects"),
    "complex": (Sealed(2, 4, 6, 10, dtype=complex), {}, "complex numbers"),
    "text": (Sealed(2, 4, 6, 10, dtype="U3"), {}, "text"),
    "dates": (Sealed(2, 4, 6, 10, dtype="M8[s]"), {}, "dates"),
    "records": (Sealed(2, 4, 6, 10, dtype=[("re", "f4")]), {}, "records"),
    "complex tensor": (torch.zeros(2, 4, 6, 10, dtype=torch.complex64), {}, "complex numbers"),
    "huge": (
        np.broadcast_to(np.float32(0), (2, 2**18, 2**18, 2**18)),
        {},
        "images would hold .* at most 2147483648",
    ),
    "huge once padded": ([Sealed(2, 2**25, 1, 1), Sealed(2, 1, 2**25, 1)], {}, "the batch would hold"),
    "huge batch": (Sealed(2**25, 2, 4, 6, 10), {}, "images would hold"),
    "endless batch": (Sealed(2**28, 2, 1, 1, 1), {}, "images has 268435456 samples; at most 65536"),
    "two sizes without padding": ([Sealed(2, 4, 6, 10), Sealed(2, 4, 6, 5)], {"do_pad": False}, "must have one size"),
    "a size that the patch does not divide": (Sealed(2, 4, 6, 11), {"do_pad": False}, r"which patch_size \(2, 3, 5\)"),
    "larger than pad_size": (Sealed(2, 4, 6, 10), {"pad_size": [4, 6, 9]}, "pad_size .* is smaller than sample 0"),
    "names without their order": ({"u": Sealed(4, 6, 10)}, {}, "channel_names must say their order"),
    "a name that is missing": ({"u": Sealed(4, 6, 10)}, {"channel_names": ["u", "v"]}, r"lacks the channels \['v'\]"),
    "channels of two shapes": (
        {"u": Sealed(4, 6, 10), "v": Sealed(4, 6, 5)},
        {"channel_names": ["u", "v"]},
        "channels of one shape with 3 axes",
    ),
    "map of another shape": (
        Sealed(2, 4, 6, 10),
        {"segmentation_maps": Sealed(4, 10, 6, dtype=int)},
        r"segmentation_maps\[0\] has shape \(4, 10, 6\), but what it labels has \(4, 6, 10\) pixels",
    ),
    "map with channels": (Sealed(2, 4, 6, 10), {"segmentation_maps": [Sealed(1, 4, 6, 10, dtype=int)]}, "has shape"),
    "floating-point map": (Sealed(2, 4, 6, 10), {"segmentation_maps": Sealed(4, 6, 10)}, "whole numbers, got float32"),
    "two maps for one": (Sealed(2, 4, 6, 10), {"segmentation_maps": [MAP, MAP]}, "1 arrays have 2 segmentation_maps"),
    "no maps": (Sealed(2, 4, 6, 10), {"segmentation_maps": []}, "1 arrays have 0 segmentation_maps"),
    "path of a map": (Sealed(2, 4, 6, 10), {"segmentation_maps": "map.nii"}, "segmentation_maps must be an array"),
    "target of another shape": (
        Sealed(2, 4, 6, 10),
        {"targets": Sealed(2, 4, 6, 5)},
        r"targets\[0\] has \(4, 6, 5\) pixels, but images\[0\] has \(4, 6, 10\)",
    ),
    "target of other channels": (
        Sealed(2, 4, 6, 10),
        {"targets": Sealed(3, 4, 6, 10)},
        "targets.* must have 2 channels",
    ),
    "two targets for one": (Sealed(2, 4, 6, 10), {"targets": [VOLUME, VOLUME]}, "1 arrays have 2 targets"),
    "target of objects": (Sealed(2, 4, 6, 10), {"targets": Sealed(2, 4, 6, 10, dtype=object)}, "objects"),
    "targets without their scale": (
        Sealed(2, 4, 6, 10),
        {"targets": Sealed(1, 4, 6, 10), "num_target_channels": 1, "image_mean": [1, 2]},
        "set target_mean and target_std",
    ),
    "map and target": (Sealed(2, 4, 6, 10), {"segmentation_maps": MAP, "targets": VOLUME}, "give one of them"),
    "unknown option": (Sealed(2, 4, 6, 10), {"channels": 2}, "no option 'channels': did you mean 'num_channels'"),
}
BAD_VALUES = {
    "infinite": (broken(np.inf), {}, r"images\[0\] holds 1 infinite values, the first at \(2, 3, 4\)"),
    "minus infinity": (broken(-np.inf), {}, "infinite"),
    "infinite where masked elsewhere": (
        np.ma.MaskedArray(broken(np.inf), np.arange(480).reshape(2, 4, 6, 10) < 9),
        {},
        "infinite",
    ),
    "infinite in half precision": (broken(np.inf).astype(np.float16), {}, "infinite"),
    "NaN, not to be masked": (broken(np.nan), {"do_mask_missing": False}, r"lacks 1 values, .* \(2, 3, 4\)"),
    "masked, not to be masked": (np.ma.masked_less(VOLUME, 5), {"do_mask_missing": False}, "do_mask_missing is False"),
    "beyond float32": (broken(1e300), {}, "beyond float32"),
    "NaN only": (np.full_like(VOLUME, np.nan), {}, r"images\[0\] has missing values only"),
    "missing_value only": (np.full_like(VOLUME, -9.0), {"missing_value": -9}, "has missing values only"),
    "one of two is NaN only": ([VOLUME, np.full_like(VOLUME, np.nan)], {}, r"images\[1\] has missing values only"),
    "label too large": (VOLUME, {"segmentation_maps": MAP + 3}, "holds the label 3; labels are 0 to 2, or 255"),
    "label negative": (VOLUME, {"segmentation_maps": MAP - 1}, "holds the label -1"),
    "infinite target": (VOLUME, {"targets": broken(np.inf)}, r"targets\[0\] holds 1 infinite values"),
    "announces another shape": (
        LazyArray(VOLUME, shape=(2, 4, 6, 15)),
        {},
        r"announces \(4, 6, 15\) pixels, but holds",
    ),
    "announces more slices": (LazyArray(VOLUME, shape=(2, 8, 6, 10)), {}, r"announces \(8, 6, 10\) pixels, but holds"),
    "announces more channels": (LazyArray(VOLUME[:1], shape=(2, 4, 6, 10)), {}, "announces channel 1, but holds fewer"),
    "announces more samples": (
        LazyArray(VOLUME[None], shape=(2, *VOLUME.shape)),
        {},
        "announces 2 samples, but holds 1",
    ),
    "announces another dtype": (LazyArray(VOLUME.astype(object), dtype=VOLUME.dtype), {}, "objects"),
}


def refused(arrays, arguments, message):
    processor = AxialGridProcessor(patch_size=[2, 3, 5], num_channels=2, num_labels=3)
    with pytest.raises(ValueError, match=message):
        processor(arrays, **arguments)


@pytest.mark.parametrize("kind", BAD_BEFORE_READING)
def test_what_shape_and_dtype_decide_is_refused_before_memory_is_taken(kind):
    refused(*BAD_BEFORE_READING[kind])  # what is imported only now is no memory of the array
    assert peak_memory(refused, *BAD_BEFORE_READING[kind]) < 2**20


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_bad_values_are_refused(kind):
    refused(*BAD_VALUES[kind])


def test_bad_kinds_are_many_and_the_good_one_passes():
    assert len(BAD_BEFORE_READING) + len(BAD_VALUES) >= 60
    processor = AxialGridProcessor(patch_size=[2, 3, 5], num_channels=2, num_labels=3)
    assert processor(VOLUME, segmentation_maps=MAP).pixel_values.shape == (1, 2, 4, 6, 10)
    assert processor(VOLUME, targets=VOLUME).labels.shape == (1, 2, 4, 6, 10)


BAD_OPTIONS = {
    "patch_size": ([], [2, 0], "2", 2.0, [2, True]),
    "num_channels": (0, 2.0, True, None),
    "channel_names": (["u"], ["u", "u"], [1, 2]),
    "input_data_format": ("channels_middle", None, 0),
    "do_normalize": (1, "yes"),
    "image_mean": ([1.0], [1.0, np.nan], "x", [[1.0, 2.0]]),
    "image_std": (0.0, [1.0, -1.0], np.inf),
    "channel_components": ([1.0, 2.0], [], [[1.0]], [[1.0, np.inf]], "x", [[1.0, 2.0], [3.0]]),
    "do_mask_missing": (0,),
    "missing_value": (np.nan, np.inf, "none", [1.0, 2.0]),
    "add_validity_channel": (2,),
    "do_pad": (None,),
    "pad_size": ([5], 0, [5, 5, 5]),
    "num_labels": (0, 2.5),
    "ignore_index": (None, 2.5),
    "num_target_channels": (0,),
    "target_mean": ([1.0, 2.0, 3.0],),
    "target_std": ([0.0, 1.0],),
}


def test_bad_options_are_refused():
    assert set(BAD_OPTIONS) == set(AxialGridProcessor.valid_kwargs.__annotations__)
    for name, values in BAD_OPTIONS.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                AxialGridProcessor(**{"num_channels": 2, name: value})


def test_bad_statistics():
    processor = AxialGridProcessor(patch_size=[4, 5], num_channels=2)
    for arrays, message in (
        ([], "channel 0 has no values"),
        (np.stack([fields(4, 5), np.full((4, 5), np.nan)]), "channel 1 has no values"),
        (np.stack([fields(4, 5), np.full((4, 5), 3)]), r"channel 1 has the value 3\.0 only"),
        (np.stack([fields(4, 5), np.full((4, 5), np.inf)]), "infinite"),
        (Sealed(3, 4, 5), "must have 2 channels"),
        ("fields.nc", "got str"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.fit(arrays)
        assert processor.image_mean == 0.0 and processor.image_std == 1.0
        with pytest.raises(ValueError, match=message):
            processor.fit_targets(arrays)


def test_bad_outputs():
    processor = AxialGridProcessor(patch_size=[4, 5], num_channels=2)
    for outputs, sizes, message in (
        (predicted(torch.zeros(1, 3, 4, 5)), None, "prediction must have 2 channels"),
        (predicted(torch.zeros(1, 2, 4)), None, "2 axes"),
        (predicted(torch.zeros(1, 2, 3, 3, 4, 5)), None, "2 axes"),
        (predicted(torch.zeros(1, 2, 3, 4, 5)), [(4, 6)], r"target_sizes ask for \(4, 6\) of \(4, 5\) pixels"),
        (ModelOutput(), None, "must have prediction "),
        (predicted(torch.zeros(1, 2, 4, 5)), [(4, 6)], r"target_sizes ask for \(4, 6\) of \(4, 5\) pixels"),
        (predicted(torch.zeros(1, 2, 4, 5)), [(4, 5)] * 2, "one size for each"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.post_process_dense_prediction(outputs, sizes)
    outputs = SemanticSegmenterOutput(logits=torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match="target_sizes ask for"):
        processor.post_process_semantic_segmentation(outputs, [(5, 5)])
    with pytest.raises(ValueError, match="2 axes"):
        processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=torch.zeros(1, 3, 3, 4, 5)))


# --- its file ---------------------------------------------------------------------------------------------------------

CHOICES = {
    "patch_size": [2, 3, 5],
    "num_channels": 2,
    "channel_names": ["u", "v"],
    "input_data_format": "channels_last",
    "do_normalize": True,
    "image_mean": [1 / 3, 1e-30],
    "image_std": [2 / 3, 1e30],
    "channel_components": [[1 / 3, 1e-30], [0.0, 2.0], [1.0, -1.0]],
    "do_mask_missing": True,
    "missing_value": -9999,
    "add_validity_channel": True,
    "do_pad": True,
    "pad_size": [8, 9, 10],
    "num_labels": 3,
    "ignore_index": -100,
    "num_target_channels": 1,
    "target_mean": [0.1],
    "target_std": [0.2],
}


def test_saved_file_holds_the_choices(tmp_path):
    assert set(CHOICES) == set(AxialGridProcessor.valid_kwargs.__annotations__)
    processor = AxialGridProcessor(**CHOICES)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        **CHOICES,
        "auto_map": {"AutoImageProcessor": "grid_processing_axial.AxialGridProcessor"},
        "image_processor_type": "AxialGridProcessor",
    }
    for again in (AxialGridProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(again) is AxialGridProcessor and again.to_dict() == processor.to_dict()
    assert AxialGridProcessor.from_pretrained(tmp_path, missing_value=2.5).missing_value == 2.5
    assert AxialGridProcessor.from_pretrained(tmp_path, dtype="auto").to_dict() == processor.to_dict()


def test_learnt_statistics_are_kept_to_the_last_digit(tmp_path):
    processor = AxialGridProcessor(patch_size=3, num_channels=2).fit(fields(2, 11, 7))
    processor.save_pretrained(tmp_path)
    again = AxialGridProcessor.from_pretrained(tmp_path)
    assert (again.image_mean, again.image_std) == (processor.image_mean, processor.image_std)
    assert "channel_names" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
