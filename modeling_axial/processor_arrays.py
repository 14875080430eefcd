"""Arrays as processors get them: described before they are read, padded, seen in cells, labels checked.

An array is whatever has `shape` and `dtype` and turns into a numpy array: numpy's own, memory maps, masked arrays,
tensors, and those that are opened lazily (dask, xarray, zarr). `describe` looks at the two attributes alone, so that
what they decide is refused before anything is read.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

MAX_VALUES = 2**31  # of one batch, 8 GiB in float32; no larger one is made
MAX_SAMPLES = 2**16
DESCRIPTIONS_OF_KINDS = {
    "c": "complex numbers; give the real and the imaginary part as two channels",
    "O": "objects; give the array one numeric dtype",
    "M": "dates; give them as numbers",
    "m": "time spans; give them as numbers",
    "S": "text; give numbers",
    "T": "text; give numbers",
    "U": "text; give numbers",
    "V": "records; give each field as a channel",
}


def is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def describe(array: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype as numpy's) of an array of real numbers, without reading it.

    Raises:
        ValueError: no array, no or too many values, or a dtype that is no real number.
    """
    if not is_array(array):
        raise ValueError(f"{name} must be an array (shape and dtype), got {type(array).__name__}; read files first")
    dtype = array.dtype
    if isinstance(dtype, torch.dtype):
        # numpy has no bfloat16 and no 8-bit floats; `read` makes them float32.
        dtype = torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
        dtype = str(dtype).removeprefix("torch.")
    try:
        dtype = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"{name} has values of {array.dtype}, which numpy does not know") from error
    if dtype.kind not in "buif":
        raise ValueError(f"{name} has values of {dtype}: {DESCRIPTIONS_OF_KINDS[dtype.kind]}")
    try:
        shape = tuple(int(length) for length in array.shape)
    except (TypeError, ValueError) as error:  # an unknown length is NaN in dask, None elsewhere
        raise ValueError(f"{name} has lengths that are not known, shape {array.shape}; compute them first") from error
    if 0 in shape:
        raise ValueError(f"{name} is empty: shape {shape}")
    return shape, dtype


def check_size(shape: Sequence[int], name: str) -> None:
    """Raises ValueError for more than `MAX_VALUES` values."""
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(
            f"{name} would hold {math.prod(shape)} values, shape {tuple(shape)}; at most {MAX_VALUES} are taken at "
            "once: give crops, or fewer at a time"
        )


def check_count(number: int, name: str) -> None:
    """Raises ValueError for more than `MAX_SAMPLES` samples."""
    if number > MAX_SAMPLES:
        raise ValueError(f"{name} has {number} samples; at most {MAX_SAMPLES} are taken at once")


def read(array: Any, name: str) -> np.ndarray:
    """The described array as one of numpy; a masked array stays one.

    Raises:
        ValueError: it has not the shape or dtype that it announced.
    """
    shape, dtype = describe(array, name)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() and array.itemsize < 4 else array).numpy()
    values = array if isinstance(array, np.ma.MaskedArray) else np.asarray(array)
    if values.shape != shape or values.dtype.kind != dtype.kind:
        raise ValueError(
            f"{name} announces shape {shape} of {dtype}, but holds shape {values.shape} of {values.dtype}; its source "
            "is damaged"
        )
    return values


# Padding


def padded_shape(shapes: Sequence[Sequence[int]], patch: Sequence[int], least: Sequence[int] | None) -> tuple[int, ...]:
    """The smallest shape that holds all `shapes`, and `least`, and that the patch divides.

    Raises:
        ValueError: one of the shapes is larger than `least`.
    """
    for number, shape in enumerate(shapes):
        if least is not None and any(length > most for length, most in zip(shape, least, strict=True)):
            raise ValueError(f"pad_size {tuple(least)} is smaller than sample {number} of the batch, {tuple(shape)}")
    longest = [max(along) for along in zip(*shapes, *([least] if least is not None else []), strict=True)]
    return tuple(math.ceil(length / side) * side for length, side in zip(longest, patch, strict=True))


def pad_end(values: np.ndarray, shape: Sequence[int], fill: float) -> np.ndarray:
    """The last dims brought to `shape` with `fill` after what is there."""
    missing = [length - there for length, there in zip(shape, values.shape[-len(shape) :], strict=True)]
    widths = [(0, 0)] * (values.ndim - len(shape)) + [(0, length) for length in missing]
    return np.pad(values, widths, constant_values=fill)


def cells_in_use(pixels: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """Boolean (B, *pixels) -> (B, *grid): True where any pixel of the patch is."""
    for axis, side in enumerate(patch):
        shape = pixels.shape
        patches = pixels.reshape(*shape[: axis + 1], shape[axis + 1] // side, side, *shape[axis + 2 :])
        pixels = np.asarray(patches.any(axis + 2))
    return pixels


def pixels_of_cells(cells: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """(B, *grid) -> (B, *pixels): each cell's value for all its pixels."""
    for axis, side in enumerate(patch):
        cells = cells.repeat(side, axis=axis + 1)
    return cells


# Labels


def describe_labels(labels: Any, name: str, pixels: Sequence[int]) -> None:
    """Raises ValueError, before anything is read, unless this is an array of whole numbers, one for each pixel."""
    shape, dtype = describe(labels, name)
    if shape != tuple(pixels):
        raise ValueError(f"{name} has shape {shape}, but what it labels has {tuple(pixels)} pixels: one label for each")
    if dtype.kind not in "bui":
        raise ValueError(f"{name} must hold labels as whole numbers, got {dtype}; see astype(int) of an exact map")


def read_labels(labels: Any, name: str, pixels: Sequence[int], num_labels: int | None, ignore_index: int) -> np.ndarray:
    """One label per pixel -> int64 (*pixels), each in 0 to `num_labels` - 1 or `ignore_index`.

    What is masked in numpy's masked arrays becomes `ignore_index`.

    Raises:
        ValueError: as `describe_labels`, or labels out of range.
    """
    describe_labels(labels, name, pixels)
    values = read(labels, name)
    if isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), ignore_index, values.data.astype(np.int64))
    values = values.astype(np.int64)
    wrong = (values < 0) if num_labels is None else (values < 0) | (values >= num_labels)
    wrong &= values != ignore_index
    if wrong.any():
        range_text = "0 or more" if num_labels is None else f"0 to {num_labels - 1}"
        raise ValueError(
            f"{name} holds the label {values[wrong][0]}; labels are {range_text}, or {ignore_index} for pixels that do "
            "not count (ignore_index)"
        )
    return values


def check_maps(
    output: Any, name: str, target_sizes: Any, num_axes: int, quantiles: bool = False
) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """Maps (B, channels, *pixels) of a model, and the size to bring each to (that of the map without `target_sizes`).

    With `quantiles`, maps (B, channels, quantiles, *pixels) are taken, too.

    Raises:
        ValueError: no such maps in the output, of another rank, or sizes that do not fit them.
    """
    maps = getattr(output, name, None)
    if not isinstance(maps, torch.Tensor) or maps.dim() - num_axes not in ((2, 3) if quantiles else (2,)):
        got = f"shape {tuple(maps.shape)}" if isinstance(maps, torch.Tensor) else "none"
        raise ValueError(f"outputs must have {name} (batch, channels, *pixels) with {num_axes} axes, got {got}")
    if target_sizes is None:
        return maps, [tuple(maps.shape[-num_axes:])] * len(maps)
    if isinstance(target_sizes, torch.Tensor):
        target_sizes = target_sizes.tolist()
    sizes = [tuple(int(length) for length in size) for size in target_sizes]
    if len(sizes) != len(maps):
        raise ValueError(f"target_sizes must have one size for each of the {len(maps)} samples, got {len(sizes)}")
    for size in sizes:
        if len(size) != num_axes or any(length < 1 for length in size):
            raise ValueError(f"target_sizes must have {num_axes} positive lengths for each sample, got {size}")
    return maps, sizes
