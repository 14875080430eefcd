"""Volumes, clips, fields -> pixel_values: arrays of any number of axes, normalised, padded, missing pixels masked."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypedDict

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import Unpack

from .processor_arrays import (
    cells_in_use,
    check_count,
    check_maps,
    check_size,
    describe,
    describe_labels,
    is_array,
    pad_end,
    padded_shape,
    pixels_of_cells,
    read,
    read_labels,
)
from .processor_options import ArrayProcessor, lengths, one_or_per_channel, per_channel, whole_number

LAYOUTS = ("channels_first", "channels_last")
VALUES_AT_ONCE = 2**22  # in float64, 32 MiB, while statistics are learnt


@dataclass(frozen=True)
class Grid:
    """One described sample that nobody has read: `pixels` along each axis, and its values channel by channel.

    `arrays`: one with all channels along `channel_dim` (None: it is the only channel), or one per channel.
    """

    name: str
    arrays: tuple[Any, ...]
    channel_dim: int | None
    pixels: tuple[int, ...]

    def channel(self, number: int, rows: slice = slice(None)) -> np.ndarray:
        """The values (*pixels) of one channel, of some rows of the first axis."""
        try:
            if self.channel_dim is None:
                values = self.arrays[number][rows]
            else:
                values = self.arrays[0][(number, rows) if self.channel_dim == 0 else (rows, ..., number)]
        except IndexError as error:
            raise ValueError(
                f"{self.name} announces channel {number}, but holds fewer; its source is damaged"
            ) from error
        values = read(values, self.name)
        announced = (len(range(*rows.indices(self.pixels[0]))), *self.pixels[1:])
        if values.shape != announced:
            raise ValueError(
                f"{self.name} announces {announced} pixels, but holds {values.shape}; its source is damaged"
            )
        return values


def check_batch(arrays: Any, name: str, batch_rank: int) -> None:
    """Raises ValueError for one array, or a batch in one, that is too large to be held."""
    if is_array(arrays):
        shape, _ = describe(arrays, name)
        check_size(shape, name)
        if len(shape) == batch_rank:
            check_count(shape[0], name)


def samples(arrays: Any, name: str, batch_rank: int) -> Iterator[Any]:
    """The samples of one array or mapping, of a batch of `batch_rank` dims, or of an iterable, nothing being read."""
    if isinstance(arrays, Mapping):
        yield arrays
    elif is_array(arrays):
        if len(arrays.shape) != batch_rank:
            yield arrays
        else:
            shape, _ = describe(arrays, name)
            for i in range(shape[0]):
                try:
                    sample = arrays[i]
                except IndexError as error:
                    raise ValueError(
                        f"{name} announces {shape[0]} samples, but holds {i}; its source is damaged"
                    ) from error
                yield sample
    elif isinstance(arrays, str | bytes) or not isinstance(arrays, Iterable):
        raise ValueError(f"{name} must be an array or a list of arrays, got {type(arrays).__name__}; read files first")
    else:
        yield from arrays


def describe_grid(array: Any, name: str, num_channels: int, options: SimpleNamespace) -> Grid:
    """The sample as a `Grid`, by its shape and dtype alone.

    Raises:
        ValueError: another number of axes or channels, names that are missing, or what `describe` refuses.
    """
    num_axes = len(options.patch_size)
    if isinstance(array, Mapping):
        names = options.channel_names
        if names is None or len(names) != num_channels:
            raise ValueError(f"{name} has its channels by name; channel_names must say their order, got {names}")
        missing = [channel for channel in names if channel not in array]
        if missing:
            raise ValueError(f"{name} lacks the channels {missing} of channel_names {list(names)}")
        arrays = tuple(array[channel] for channel in names)
        shapes = [describe(values, f"{name}[{channel!r}]")[0] for channel, values in zip(names, arrays, strict=True)]
        if len(set(shapes)) > 1 or len(shapes[0]) != num_axes:
            raise ValueError(f"{name} must have channels of one shape with {num_axes} axes, got {shapes}")
        return Grid(name, arrays, None, shapes[0])
    shape, _ = describe(array, name)
    if len(shape) == num_axes and num_channels == 1:
        return Grid(name, (array,), None, shape)
    if len(shape) != num_axes + 1:
        without = ", or without channels" if num_channels == 1 else ""
        raise ValueError(
            f"{name} must have {num_axes} axes (as patch_size {options.patch_size} has) and its channels{without}, got "
            f"shape {shape}"
        )
    channel_dim = 0 if options.input_data_format == "channels_first" else num_axes
    if shape[channel_dim] != num_channels:
        raise ValueError(
            f"{name} must have {num_channels} channels at dim {channel_dim} (input_data_format="
            f"{options.input_data_format!r}), got shape {shape}"
        )
    return Grid(name, (array,), channel_dim, shape[:channel_dim] + shape[channel_dim + 1 :])


def valid_pixels(values: np.ndarray, name: str, options: SimpleNamespace) -> np.ndarray:
    """Boolean (*pixels): True where there is a value; not where it is NaN, `missing_value` or masked by numpy.

    Raises:
        ValueError: infinite values, or missing ones with `do_mask_missing=False`.
    """
    data = np.ma.getdata(values)
    valid = ~np.ma.getmaskarray(values)
    if options.missing_value is not None:
        valid &= data != options.missing_value
    valid &= ~np.isnan(data)
    infinite = valid & np.isinf(data)
    if infinite.any():
        raise ValueError(
            f"{name} holds {infinite.sum()} infinite values, the first at {first_index(infinite)}; values that are "
            "missing are NaN, masked, or missing_value"
        )
    if not options.do_mask_missing and not valid.all():
        raise ValueError(
            f"{name} lacks {(~valid).sum()} values, the first at {first_index(~valid)}, and do_mask_missing is False"
        )
    return valid


def first_index(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(where.argmax(), where.shape))


def channel_statistics(
    grids: Iterable[Grid], num_channels: int, options: SimpleNamespace
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(means, standard deviations) of each channel over all values that there are, in float64.

    One pass over any number of grids, a part of one in memory at a time: the sums of squares of the parts are joined
    as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
    so that a large mean costs no digits. The deviation is that of the population.

    Raises:
        ValueError: no grid, a channel without values or of one value only, infinite values.
    """
    count, mean, squares = np.zeros((3, num_channels))
    for grid in grids:
        rows = max(1, VALUES_AT_ONCE // math.prod(grid.pixels[1:]))
        for channel in range(num_channels):
            for start in range(0, grid.pixels[0], rows):
                values = grid.channel(channel, slice(start, start + rows))
                found = np.ma.getdata(values)[valid_pixels(values, grid.name, options)].astype(np.float64)
                if not found.size:
                    continue
                its_mean = found.mean()
                total, difference = count[channel] + found.size, its_mean - mean[channel]
                squares[channel] += ((found - its_mean) ** 2).sum()
                squares[channel] += difference**2 * count[channel] * found.size / total
                mean[channel] += difference * found.size / total
                count[channel] = total
    for channel in range(num_channels):
        if not count[channel]:
            raise ValueError(f"channel {channel} has no values to learn its mean from")
        if not squares[channel] > 0:
            raise ValueError(
                f"channel {channel} has the value {mean[channel]} only: leave it out, or set its deviation"
            )
    return tuple(mean.tolist()), tuple(np.sqrt(squares / count).tolist())


def whitening_components(
    grids: Iterable[Grid],
    number: int,
    means: tuple[float, ...],
    deviations: tuple[float, ...],
    options: SimpleNamespace,
) -> np.ndarray:
    """(number, channels): the first principal components of the channels, normalised, each scaled to variance 1.

    Over all pixels whose channels are all there, in float64. Signs are such that the largest weight is positive.

    Raises:
        ValueError: no pixel with all channels, and components that do not vary.
    """
    products, count = np.zeros((len(means), len(means))), 0
    mean, deviation = np.reshape(means, (-1, 1)), np.reshape(deviations, (-1, 1))
    for grid in grids:
        rows = max(1, VALUES_AT_ONCE // (len(means) * math.prod(grid.pixels[1:])))
        for start in range(0, grid.pixels[0], rows):
            part = [grid.channel(channel, slice(start, start + rows)) for channel in range(len(means))]
            there = np.logical_and.reduce([valid_pixels(values, grid.name, options) for values in part])
            found = np.stack([np.ma.getdata(values)[there].astype(np.float64) for values in part])
            found = (found - mean) / deviation
            products += found @ found.T
            count += found.shape[1]
    if not count:
        raise ValueError("no pixel has all channels, so how they vary together is not known")
    variances, directions = np.linalg.eigh(products / count)  # from the smallest
    variances, directions = variances[::-1][:number], directions.T[::-1][:number]
    varying = int((variances > variances[0] * len(means) * np.finfo(np.float64).eps).sum())
    if varying < number:
        raise ValueError(f"the channels have only {varying} principal components that vary, asked for {number}")
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1)
    return directions * np.sign(largest) / np.sqrt(variances)[:, None]


def component_weights(value: Any, num_channels: int) -> tuple[tuple[float, ...], ...]:
    """`channel_components` as Python's floats: one weight for each channel in each of at least one row."""
    try:
        weights = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"channel_components must be rows of numbers, got {value!r}") from error
    if weights.ndim != 2 or not len(weights) or weights.shape[1] != num_channels:
        raise ValueError(
            f"channel_components must be rows with one weight for each of the {num_channels} channels, got shape "
            f"{weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise ValueError("channel_components must be finite")
    return tuple(tuple(row) for row in weights.tolist())


class AxialGridProcessorKwargs(TypedDict, total=False):
    """The options of `AxialGridProcessor`, whose docstring says what they are."""

    patch_size: int | list[int] | tuple[int, ...]
    num_channels: int
    channel_names: list[str] | tuple[str, ...] | None
    input_data_format: str
    do_normalize: bool
    image_mean: float | list[float] | tuple[float, ...]
    image_std: float | list[float] | tuple[float, ...]
    channel_components: list[list[float]] | tuple[tuple[float, ...], ...] | None
    do_mask_missing: bool
    missing_value: float | None
    add_validity_channel: bool
    do_pad: bool
    pad_size: int | list[int] | tuple[int, ...] | None
    num_labels: int | None
    ignore_index: int
    num_target_channels: int | None
    target_mean: float | list[float] | tuple[float, ...] | None
    target_std: float | list[float] | tuple[float, ...] | None


class AxialGridProcessor(ArrayProcessor):
    """Arrays of any number of axes -> `pixel_values` (B, C, *pixels), float32, and boolean `attention_mask` (B, *grid).

    Takes one array, a batch (B, ...) or a list of arrays of any sizes: (C, *pixels), or as `input_data_format` says,
    or (*pixels) alone where `num_channels` is 1. Their values are real numbers of any dtype, which are not scaled but
    by mean and deviation. An array is what has `shape` and `dtype`, can be indexed and turns into a numpy array: memory
    maps, tensors, and those of dask and xarray. What these two decide is refused before anything is read.

    - `patch_size`: that of the model, one length per axis; an int means two axes. It says how many axes there are.
    - `num_channels`: how many each array has. `input_data_format`: "channels_first" (default) or "channels_last".
      `channel_names`: their names in order; samples may then be mappings {name: (*pixels)}, such as a data set of
      xarray, of which these are taken in this order.
    - `image_mean`, `image_std`: one number, or one per channel; `fit` learns them. With `do_normalize`, values are
      (value - mean) / deviation, computed in float64.
    - `channel_components`: rows of one weight for each channel. `pixel_values` are then the sums of the channels,
      normalised, with these weights, one for each row (give the model as many `num_channels`). `fit_components` learns
      principal components.
    - Missing are NaN, `missing_value`, and what is masked in numpy's masked arrays (in one channel or several); with
      `do_mask_missing=False` they are refused. `attention_mask` is False for a cell whose pixels are **all** missing in
      all channels, as for padding. Elsewhere missing pixels become the channel's mean, 0 after normalising.
      `add_validity_channel` appends a channel: 1 for pixels whose channels are all there, else 0 (give the model
      `num_channels` + 1).
    - `do_pad` (default): the largest of the batch (or `pad_size`) rounded up to whole patches. Padding stands at the
      end of each axis. Without it all arrays have one size, which the patch divides.

    `segmentation_maps`, one per array, whole numbers (*pixels): `labels`, int64 (B, *pixels), are `ignore_index` in
    padding and masked cells. They are less than `num_labels`, if that is given.

    `targets`, one per array, (`num_target_channels` or as many as `num_channels`, *pixels): `labels`, float32
    (B, channels, *pixels), normalised by `target_mean` and `target_std` (default: those of the arrays), which
    `fit_targets` learns, and `loss_mask`, boolean of the same shape: True where the target is there and its cell is in
    use. Elsewhere labels are 0.

    Unknown options are dealt with as `StrictOptions` says.

    Raises:
        ValueError: whatever is no such array, map or target, by its name: wrong numbers of axes, channels or samples,
            no pixels, values that are no real numbers, not finite or beyond float32, nothing but missing pixels, more
            than `MAX_VALUES` values, labels out of range, bad options.
    """

    valid_kwargs: type = AxialGridProcessorKwargs
    model_input_names = ["pixel_values", "attention_mask"]

    patch_size: Any = 16
    num_channels: int = 1
    channel_names: Any = None
    input_data_format: str = "channels_first"
    do_normalize: bool = True
    image_mean: Any = 0.0
    image_std: Any = 1.0
    channel_components: Any = None
    do_mask_missing: bool = True
    missing_value: float | None = None
    add_validity_channel: bool = False
    do_pad: bool = True
    pad_size: Any = None
    num_labels: int | None = None
    ignore_index: int = 255
    num_target_channels: int | None = None
    target_mean: Any = None
    target_std: Any = None

    def __init__(self, **kwargs: Unpack[AxialGridProcessorKwargs]):
        super().__init__(**kwargs)

    def _standardize_kwargs(self, **options: Any) -> dict[str, Any]:  # pyrefly: ignore[bad-override]  as `preprocess`
        """All options, checked, in the form in which they are kept."""
        options["patch_size"] = patch = lengths(options["patch_size"], "patch_size")
        options["num_channels"] = num_channels = whole_number(options["num_channels"], "num_channels")
        if options["input_data_format"] not in LAYOUTS:
            raise ValueError(f"input_data_format must be one of {LAYOUTS}, got {options['input_data_format']!r}")
        if options["channel_names"] is not None:
            names = tuple(options["channel_names"])
            if len(set(names)) != num_channels or not all(isinstance(name, str) for name in names):
                raise ValueError(f"channel_names must be {num_channels} different names (num_channels), got {names}")
            options["channel_names"] = names
        for name in ("do_normalize", "do_mask_missing", "add_validity_channel", "do_pad"):
            if not isinstance(options[name], bool):
                raise ValueError(f"{name} must be True or False, got {options[name]!r}")
        if options["missing_value"] is not None:
            value = options["missing_value"]
            number = per_channel(value, "missing_value", 1)[0]
            # An int stays one: float has not all of 64 bits.
            options["missing_value"] = int(value) if isinstance(value, int | np.integer) else number
        if options["pad_size"] is not None:
            options["pad_size"] = lengths(options["pad_size"], "pad_size")
            if len(options["pad_size"]) != len(patch):
                raise ValueError(
                    f"pad_size must have {len(patch)} axes as patch_size {patch}, got {options['pad_size']}"
                )
        for name in ("num_labels", "num_target_channels"):
            if options[name] is not None:
                options[name] = whole_number(options[name], name)
        options["ignore_index"] = whole_number(options["ignore_index"], "ignore_index", least=-(2**63))
        num_targets = options["num_target_channels"] or num_channels
        for name, number in (("image", num_channels), ("target", num_targets)):
            for key, positive in ((f"{name}_mean", False), (f"{name}_std", True)):
                if options[key] is not None or name == "image":
                    options[key] = one_or_per_channel(options[key], key, number, positive)
        if options["channel_components"] is not None:
            options["channel_components"] = component_weights(options["channel_components"], num_channels)
        return options

    @staticmethod
    def _scale(options: SimpleNamespace) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(means, deviations) of the arrays' channels."""
        mean, deviation = (options.image_mean, options.image_std) if options.do_normalize else (0.0, 1.0)
        return (
            per_channel(mean, "image_mean", options.num_channels),
            per_channel(deviation, "image_std", options.num_channels),
        )

    @staticmethod
    def _target_scale(options: SimpleNamespace) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(means, deviations) of the channels of targets and predictions."""
        num_channels = options.num_target_channels or options.num_channels
        scale = []
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            number = getattr(options, f"target_{name}")
            if number is None:
                number = getattr(options, f"image_{name}")
                if np.ndim(number) and len(number) != num_channels:
                    raise ValueError(
                        f"targets have {num_channels} channels (num_target_channels), arrays {options.num_channels}: "
                        "set target_mean and target_std, as fit_targets does"
                    )
            scale.append(per_channel(number if options.do_normalize else neutral, f"target_{name}", num_channels))
        return scale[0], scale[1]

    def _grids(self, arrays: Any, name: str, num_channels: int, options: SimpleNamespace) -> Iterator[Grid]:
        """The samples of one array, a batch or an iterable of arrays, described one at a time."""
        for i, array in enumerate(samples(arrays, name, len(options.patch_size) + 2)):
            yield describe_grid(array, f"{name}[{i}]", num_channels, options)

    def preprocess(  # pyrefly: ignore[bad-override]  its options are not those of pictures
        self,
        images: Any,
        segmentation_maps: Any = None,
        targets: Any = None,
        return_tensors: str | None = None,
        **kwargs: Unpack[AxialGridProcessorKwargs],
    ) -> BatchFeature:
        """What the class does, with the options of `kwargs` in place of its own; values come as arrays by default.

        `return_tensors`: "pt" or "np".
        """
        options = self._options(**kwargs)
        check_batch(images, "images", len(options.patch_size) + 2)
        grids = list(self._grids(images, "images", options.num_channels, options))
        if not grids:
            raise ValueError("no array given; the processor needs at least one")
        if segmentation_maps is not None and targets is not None:
            raise ValueError("labels come from segmentation_maps or from targets; give one of them")
        shape = self._shape(grids, options)
        num_channels = options.num_channels + options.add_validity_channel
        check_size((len(grids), num_channels, *shape), "the batch")
        target_grids = [] if targets is None else self._pairs(grids, targets, shape, options)
        if segmentation_maps is not None:
            segmentation_maps = self._maps(grids, segmentation_maps)

        fill = 0.0 if options.do_normalize else options.image_mean
        values, valid = self._normalised(grids, shape, *self._scale(options), fill, options)
        mask = cells_in_use(np.asarray(valid.any(1)), options.patch_size)
        for grid, cells in zip(grids, mask, strict=True):
            if not cells.any():
                raise ValueError(f"{grid.name} has missing values only")
        if options.channel_components is not None:
            sums = np.tensordot(np.float32(options.channel_components), values, (1, 1))
            values = np.ascontiguousarray(sums.swapaxes(0, 1))
        if options.add_validity_channel:
            values = np.concatenate([values, valid.all(1, keepdims=True).astype(np.float32)], axis=1)
        data = {"pixel_values": values, "attention_mask": mask}

        in_use = pixels_of_cells(mask, options.patch_size)
        if segmentation_maps is not None:
            labels = [
                pad_end(
                    read_labels(labels, name, grid.pixels, options.num_labels, options.ignore_index),
                    shape,
                    options.ignore_index,
                )
                for name, labels, grid in zip(*segmentation_maps, grids, strict=True)
            ]
            data["labels"] = np.where(in_use, np.stack(labels), options.ignore_index)
        if target_grids:
            labels, there = self._normalised(target_grids, shape, *self._target_scale(options), 0.0, options)
            data["loss_mask"] = there & in_use[:, None]
            data["labels"] = np.where(data["loss_mask"], labels, np.float32(0))
        return BatchFeature(data, tensor_type=return_tensors)

    def _shape(self, grids: list[Grid], options: SimpleNamespace) -> tuple[int, ...]:
        """The pixels of the batch."""
        sizes = [grid.pixels for grid in grids]
        if options.do_pad:
            return padded_shape(sizes, options.patch_size, options.pad_size)
        for size in sizes:
            if size != sizes[0] or any(pixels % side for pixels, side in zip(size, options.patch_size, strict=True)):
                raise ValueError(
                    f"with do_pad=False all arrays must have one size, which patch_size {options.patch_size} divides, "
                    f"got {sizes}"
                )
        return sizes[0]

    def _pairs(self, grids: list[Grid], targets: Any, shape: tuple[int, ...], options: SimpleNamespace) -> list[Grid]:
        num_channels = len(self._target_scale(options)[0])
        check_size((len(grids), num_channels, *shape), "the targets")
        check_batch(targets, "targets", len(options.patch_size) + 2)
        pairs = list(self._grids(targets, "targets", num_channels, options))
        if len(pairs) != len(grids):
            raise ValueError(f"{len(grids)} arrays have {len(pairs)} targets; give one for each")
        for grid, target in zip(grids, pairs, strict=True):
            if grid.pixels != target.pixels:
                raise ValueError(f"{target.name} has {target.pixels} pixels, but {grid.name} has {grid.pixels}")
        return pairs

    def _maps(self, grids: list[Grid], maps: Any) -> tuple[list[str], list[Any]]:
        """(names, maps), by their shapes one for each grid."""
        num_axes = len(grids[0].pixels)
        check_batch(maps, "segmentation_maps", num_axes + 1)
        maps = list(samples(maps, "segmentation_maps", num_axes + 1))
        if len(maps) != len(grids):
            raise ValueError(f"{len(grids)} arrays have {len(maps)} segmentation_maps; give one for each")
        names = [f"segmentation_maps[{i}]" for i in range(len(maps))]
        for name, labels, grid in zip(names, maps, grids, strict=True):
            describe_labels(labels, name, grid.pixels)
        return names, maps

    def _normalised(
        self,
        grids: list[Grid],
        shape: tuple[int, ...],
        means: tuple[float, ...],
        deviations: tuple[float, ...],
        fill: float | tuple[float, ...],
        options: SimpleNamespace,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(values, whether they are there), (B, C, *shape); `fill` (one, or one per channel) where they are not."""
        values = np.empty((len(grids), len(means), *shape), np.float32)
        values[:] = np.reshape(fill, (-1, *[1] * len(shape)))
        there = np.zeros(values.shape, bool)
        for i, grid in enumerate(grids):
            place = tuple(slice(pixels) for pixels in grid.pixels)
            for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
                found = grid.channel(channel)
                valid = valid_pixels(found, grid.name, options)
                scaled = (np.ma.getdata(found)[valid].astype(np.float64) - mean) / deviation
                if np.abs(scaled).max(initial=0) > np.finfo(np.float32).max:
                    raise ValueError(f"{grid.name} holds values beyond float32, up to {np.abs(scaled).max()}")
                values[(i, channel, *place)][valid] = scaled
                there[(i, channel, *place)] = valid
        return values, there

    def fit(self, images: Any) -> "AxialGridProcessor":
        """Learns `image_mean` and `image_std` of each channel, as `channel_statistics` says. Returns the processor.

        Takes what the processor takes, or any iterable of arrays, such as a generator: they are read one after the
        other, and in parts. What is missing does not count.
        """
        options = self._options()
        grids = self._grids(images, "images", options.num_channels, options)
        self.image_mean, self.image_std = channel_statistics(grids, options.num_channels, options)
        return self

    def fit_components(self, images: Any, number: int) -> "AxialGridProcessor":
        """After `fit`: learns `channel_components`, the first `number` principal components of the channels, whitened.

        Takes what `fit` takes. Over the pixels whose channels are all there each component has variance 1, and no two
        of them vary together.

        Raises:
            ValueError: another number of components than there are.
        """
        options = self._options()
        if whole_number(number, "number") > options.num_channels:
            raise ValueError(f"{options.num_channels} channels have no {number} principal components")
        grids = self._grids(images, "images", options.num_channels, options)
        weights = whitening_components(grids, number, *self._scale(options), options)
        self.channel_components = component_weights(weights, options.num_channels)
        return self

    def fit_targets(self, targets: Any) -> "AxialGridProcessor":
        """As `fit`: learns `target_mean` and `target_std`."""
        options = self._options()
        num_channels = options.num_target_channels or options.num_channels
        grids = self._grids(targets, "targets", num_channels, options)
        self.target_mean, self.target_std = channel_statistics(grids, num_channels, options)
        return self

    def post_process_dense_prediction(self, outputs: Any, target_sizes: Any = None) -> list[torch.Tensor]:
        """`prediction` (B, channels, *pixels) -> for each sample (channels, *size) in the units of the targets.

        Quantiles (B, channels, quantiles, *pixels) become (channels, quantiles, *size) in these units. `target_sizes`:
        the pixels of each sample before padding, which is cut off; by default nothing is. The results are float64 on
        the CPU: prediction · deviation + mean, of the targets.

        Raises:
            ValueError: a prediction of another rank or number of channels, or smaller than its size.
        """
        options = self._options()
        means, deviations = self._target_scale(options)
        prediction, sizes = check_maps(outputs, "prediction", target_sizes, len(options.patch_size), quantiles=True)
        if prediction.shape[1] != len(means):
            raise ValueError(f"prediction must have {len(means)} channels, got shape {tuple(prediction.shape)}")
        dims = (-1, *[1] * (prediction.dim() - 2))
        mean, deviation = (torch.tensor(numbers, dtype=torch.float64).view(dims) for numbers in (means, deviations))
        cut = cut_to_sizes(prediction, sizes)
        return [sample.detach().cpu().double() * deviation + mean for sample in cut]

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Any = None, return_segmentation_scores: bool = False
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """`logits` (B, num_labels, *pixels) -> for each sample its map (*size) of the likeliest labels, int64.

        `target_sizes` as in `post_process_dense_prediction`. With `return_segmentation_scores` each result holds the
        map as `segmentation` and its logits as `segmentation_scores`.

        Raises:
            ValueError: logits of another rank, or smaller than their size.
        """
        logits, sizes = check_maps(outputs, "logits", target_sizes, len(self.patch_size))
        results = [
            BatchFeature({"segmentation": scores.argmax(0), "segmentation_scores": scores})
            for scores in cut_to_sizes(logits, sizes)
        ]
        return results if return_segmentation_scores else [result.segmentation for result in results]


def cut_to_sizes(maps: torch.Tensor, sizes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """The first pixels along every axis. Raises ValueError where there are fewer."""
    for size in sizes:
        pixels = tuple(maps.shape[-len(size) :])
        if any(length > there for length, there in zip(size, pixels, strict=True)):
            raise ValueError(f"target_sizes ask for {size} of {pixels} pixels")
    return [sample[(..., *map(slice, size))] for sample, size in zip(maps, sizes, strict=True)]


# Here and not in __init__.py, which stays home: a processor that was loaded as remote code saves its code again.
AxialGridProcessor.register_for_auto_class("AutoImageProcessor")
