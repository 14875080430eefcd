"""Arrays are described without being read, padded to whole patches and reduced to cells as slow loops do it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling_axial import processor_arrays
from modeling_axial.processor_arrays import (
    cells_in_use,
    check_count,
    check_maps,
    check_size,
    describe,
    pad_end,
    padded_shape,
    pixels_of_cells,
    read,
    read_labels,
)
from tests.lazy_array import LazyArray


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", ">u2", "uint64", "float16", "float32", ">f8"])
def test_arrays_of_every_kind_are_described_and_read(dtype, tmp_path):
    values = np.arange(30).reshape(2, 3, 5).astype(dtype)
    file = np.memmap(tmp_path / "values", dtype=dtype, mode="w+", shape=values.shape)
    file[:] = values
    lazy = LazyArray(values)
    for array in (values, file, lazy, np.ma.masked_equal(values, 3)):
        assert describe(array, "a") == ((2, 3, 5), np.dtype(dtype))
        assert lazy.reads == [0] or array is not lazy
        np.testing.assert_array_equal(np.ma.getdata(read(array, "a")), values)
    assert lazy.reads == [30] and isinstance(read(np.ma.masked_equal(values, 3), "a"), np.ma.MaskedArray)


def test_tensors_are_read():
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.uint16, torch.float64, torch.float32):
        tensor = torch.arange(6).reshape(2, 3).to(dtype)
        assert describe(tensor, "a") == ((2, 3), tensor.numpy().dtype)
        np.testing.assert_array_equal(read(tensor, "a"), tensor.numpy())
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).to(dtype)
        assert describe(tensor, "a") == ((2, 3), np.dtype("float32"))
        np.testing.assert_array_equal(read(tensor, "a"), np.arange(6.0).reshape(2, 3))


FOUR = np.zeros(4)
BAD_ARRAYS = {
    "nothing": (None, "must be an array .* got NoneType"),
    "a list": ([1, 2], "must be an array .* got list"),
    "complex": (FOUR.astype(complex), "complex numbers; give the real and the imaginary part"),
    "complex tensor": (torch.zeros(4, dtype=torch.complex64), "complex numbers"),
    "objects": (FOUR.astype(object), "objects; give the array one numeric dtype"),
    "dates": (FOUR.astype("M8[s]"), "dates"),
    "time spans": (FOUR.astype("m8[s]"), "time spans"),
    "bytes": (FOUR.astype("S"), "text"),
    "text": (FOUR.astype(str), "text"),
    "records": (np.zeros(4, [("u", "f4")]), "records; give each field as a channel"),
    "unknown dtype": (LazyArray(FOUR, dtype="float7"), "float7, which numpy does not know"),
    "quantised tensor": (LazyArray(FOUR, dtype=torch.qint8), "qint8, which numpy does not know"),
    "unknown length": (LazyArray(FOUR, shape=(float("nan"), 3)), "not known"),
    "no length": (LazyArray(FOUR, shape=(None, 3)), "not known"),
    "empty": (np.zeros((3, 0, 5)), "empty: shape"),
}
if hasattr(np.dtypes, "StringDType"):  # from numpy 2.0 on
    BAD_ARRAYS["text of any length"] = LazyArray(FOUR, dtype=np.dtypes.StringDType()), "text"


@pytest.mark.parametrize(("array", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_arrays(array, message):
    with pytest.raises(ValueError, match=f"the field.*{message}"):
        describe(array, "the field")


def test_an_array_that_is_not_what_it_announces():
    for lazy in (
        LazyArray(FOUR, shape=(5,)),
        LazyArray(FOUR, dtype=np.dtype(int)),
        LazyArray(FOUR.astype(object), dtype=FOUR.dtype),
    ):
        with pytest.raises(ValueError, match="the field announces .* but holds"):
            read(lazy, "the field")


def test_size(monkeypatch):
    monkeypatch.setattr(processor_arrays, "MAX_VALUES", 30)
    check_size((2, 3, 5), "the batch")
    with pytest.raises(ValueError, match="the batch would hold 31 values"):
        check_size((31,), "the batch")
    check_count(2**16, "the batch")
    with pytest.raises(ValueError, match="the batch has 65537 samples; at most 65536"):
        check_count(2**16 + 1, "the batch")


def test_padded_shape():
    assert padded_shape([(5, 7), (6, 3)], (2, 3), None) == (6, 9)
    assert padded_shape([(4, 6)], (2, 3), None) == (4, 6)
    assert padded_shape([(4, 6), (1, 1)], (2, 3), (5, 6)) == (6, 6)
    with pytest.raises(ValueError, match=r"pad_size \(5, 6\) is smaller than sample 1 of the batch, \(4, 7\)"):
        padded_shape([(4, 6), (4, 7)], (2, 3), (5, 6))


def test_pad_end():
    values = np.arange(6).reshape(1, 2, 3)
    padded = pad_end(values, (3, 5), -1)
    np.testing.assert_array_equal(padded[:, :2, :3], values)
    assert padded.shape == (1, 3, 5) and (padded == -1).sum() == 9


@given(patch=st.lists(st.integers(1, 3), min_size=1, max_size=4), data=st.data())
def test_cells_against_loops(patch, data):
    grid = data.draw(st.lists(st.integers(1, 3), min_size=len(patch), max_size=len(patch)))
    seed = data.draw(st.integers(0, 9))
    shape = [cells * side for cells, side in zip(grid, patch, strict=True)]
    pixels = np.random.default_rng(seed).random((2, *shape)) < 0.2
    expected = np.zeros((2, *grid), bool)
    for index in itertools.product(range(2), *map(range, shape)):
        cell = (index[0], *(i // side for i, side in zip(index[1:], patch, strict=True)))
        expected[cell] |= pixels[index]
    cells = cells_in_use(pixels, patch)
    np.testing.assert_array_equal(cells, expected)
    for index in itertools.product(range(2), *map(range, shape)):
        cell = (index[0], *(i // side for i, side in zip(index[1:], patch, strict=True)))
        assert pixels_of_cells(cells, patch)[index] == expected[cell]


def test_labels():
    labels = np.array([[0, 2, 255], [1, 1, 0]])
    for dtype in (np.uint8, np.int16, ">i4", np.uint64):
        found = read_labels(labels.astype(dtype), "map", (2, 3), 3, 255)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(read_labels(torch.tensor(labels), "map", (2, 3), 3, 255), labels)
    assert read_labels(labels == 1, "map", (2, 3), 2, 255).tolist() == [[0, 0, 0], [1, 1, 0]]
    masked = np.ma.MaskedArray(labels, labels == 255)
    assert read_labels(masked, "map", (2, 3), 3, -100).tolist() == [[0, 2, -100], [1, 1, 0]]
    assert read_labels(labels, "map", (2, 3), None, -100).tolist() == labels.tolist()


BAD_LABELS = {
    "shape": (np.zeros((3, 2), int), r"shape \(3, 2\), but what it labels has \(2, 3\) pixels"),
    "rank": (np.zeros((1, 2, 3), int), "shape"),
    "floating point": (np.zeros((2, 3)), "whole numbers, got float64"),
    "too large": (np.full((2, 3), 3), "the label 3; labels are 0 to 2, or 255"),
    "negative": (np.full((2, 3), -1), "the label -1; labels are 0 to 2, or 255"),
    "beyond int64": (np.full((2, 3), 2**64 - 1, np.uint64), "holds the label"),
}


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=f"the map.*{message}"):
        read_labels(labels, "the map", (2, 3), 3, 255)


def test_negative_labels_are_refused_whatever_their_number():
    with pytest.raises(ValueError, match="the label -1; labels are 0 or more, or -100"):
        read_labels(np.full((2, 3), -1), "the map", (2, 3), None, -100)


def test_maps():
    logits = torch.zeros(2, 3, 5, 7)
    output = SemanticSegmenterOutput(logits=logits)
    assert check_maps(output, "logits", None, 2) == (logits, [(5, 7), (5, 7)])
    sizes = [(4, 7), (5, 6)]
    assert check_maps(output, "logits", sizes, 2)[1] == sizes
    assert check_maps(output, "logits", torch.tensor(sizes), 2)[1] == sizes
    for bad, message in (
        ([(4, 7)], "one size for each of the 2 samples, got 1"),
        ([(4, 7), (5, 6, 7)], "2 positive lengths"),
        ([(4, 7), (5, 0)], "2 positive lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            check_maps(output, "logits", bad, 2)
    for name, bad in (("logits", SemanticSegmenterOutput(logits=logits[0])), ("predictions", output)):
        with pytest.raises(ValueError, match=rf"must have {name} \(batch, channels, \*pixels\) with 2 axes"):
            check_maps(bad, name, None, 2)
