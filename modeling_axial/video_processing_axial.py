"""Decoded clips -> pixel_values: frames are sampled, brought to one size and kind as pictures, padded as a grid."""

import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, TypedDict

import numpy as np
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import Unpack

from .grid_processing_axial import AxialGridProcessor
from .image_processing_axial import MAX_PIXELS, AxialImageProcessor
from .processor_arrays import check_count, check_size, describe, is_array, read
from .processor_options import ArrayProcessor, one_or_per_channel, per_channel, whole_number


def sampled_frames(num_frames: int, wanted: int | None) -> Sequence[int]:
    """Which of `num_frames` frames are taken: the middle one of each of `wanted` equal parts of the clip, in order.

    All, where no more than that are there or none are `wanted`: no frame is taken twice.
    """
    if wanted is None or num_frames <= wanted:
        return range(num_frames)
    return [(2 * part + 1) * num_frames // (2 * wanted) for part in range(wanted)]


def is_picture(value: Any) -> bool:
    """A picture of PIL, or an array of the rank of one."""
    return len(value.shape) in (2, 3) if is_array(value) else hasattr(value, "convert")


def split_clips(clips: Any) -> list[Any]:
    """One clip, a batch (B, T, ...) or a list of clips -> the clips, each an array (T, ...) or a list of frames."""
    if is_array(clips):
        if len(clips.shape) not in (4, 5):
            raise ValueError(
                "a clip must be (frames, height, width, channels) or (frames, channels, height, width), a batch of "
                f"clips one dim more, or a list of frames; got an array of shape {tuple(clips.shape)}"
            )
        if len(clips.shape) == 4:
            return [clips]
        num_clips = describe(clips, "clips")[0][0]
        check_count(num_clips, "clips")
        return [clips[i] for i in range(num_clips)]
    if isinstance(clips, str | bytes) or not isinstance(clips, Iterable):
        raise ValueError(f"clips must be arrays or lists of frames, got {type(clips).__name__}; decode files first")
    clips = list(clips)
    return [clips] if clips and is_picture(clips[0]) else clips


def check_clip(clip: Any, name: str, wanted: int | None) -> Sequence[int]:
    """Which frames are sampled of one clip, whose frames are described and not read.

    Raises:
        ValueError: no clip, no frames, frames of different shapes, too large, or that are no pictures.
    """
    if is_array(clip):
        shape, _ = describe(clip, name)
        if len(shape) != 4:
            raise ValueError(f"{name} must have 4 dims, the frames first, got shape {shape}")
        sampled, shapes = sampled_frames(shape[0], wanted), {shape[1:]}
    elif isinstance(clip, list | tuple):
        if not clip:
            raise ValueError(f"{name} has no frames; a clip has at least one")
        sampled = sampled_frames(len(clip), wanted)
        shapes = {describe_frame(clip[i], f"{name}, frame {i}") for i in sampled}
    else:
        raise ValueError(f"{name} must be an array or a list of frames, got {type(clip).__name__}; decode files first")
    if len(shapes) > 1:
        raise ValueError(f"{name} must have frames of one shape, got {sorted(shapes)}")
    shape = shapes.pop()
    if math.prod(shape) > 4 * MAX_PIXELS:  # of up to 4 channels
        raise ValueError(f"{name} has frames of shape {shape}, beyond {MAX_PIXELS} pixels")
    return sampled


def describe_frame(frame: Any, name: str) -> tuple[int, ...]:
    if not is_picture(frame):
        got = f"shape {tuple(frame.shape)}" if is_array(frame) else type(frame).__name__
        raise ValueError(f"{name} must be a picture of PIL or an array of 2 or 3 dims, got {got}")
    return describe(frame, name)[0] if is_array(frame) else (frame.height, frame.width)


def read_frame(clip: Any, number: int, name: str) -> Any:
    """The frame as `AxialImageProcessor` takes it."""
    try:
        frame = clip[number]
    except IndexError as error:
        raise ValueError(f"{name} announces frame {number}, but holds fewer; its source is damaged") from error
    return read(frame, f"{name}, frame {number}") if is_array(frame) else frame


class AxialVideoProcessorKwargs(TypedDict, total=False):
    """The options of `AxialVideoProcessor`, whose docstring says what they are."""

    num_frames: int | None
    num_channels: int
    input_data_format: str | None
    do_resize: bool
    size: int | list[int] | tuple[int, ...] | dict[str, int]
    resample: int
    do_normalize: bool
    image_mean: float | list[float] | tuple[float, ...]
    image_std: float | list[float] | tuple[float, ...]
    patch_size: int | list[int] | tuple[int, ...]
    do_pad: bool
    pad_size: int | list[int] | tuple[int, ...] | None


class AxialVideoProcessor(ArrayProcessor):
    """Decoded clips -> `pixel_values` (B, T, C, H, W), float32, by default in [-1, 1], and `attention_mask` (B, *grid).

    Takes one clip, a batch or a list of clips. A clip is an array or tensor (T, H, W, C) or (T, C, H, W), or a list of
    frames: pictures of PIL, or arrays (H, W), (H, W, C) or (C, H, W), C being 1, 3 (RGB) or 4 (RGBA). Files are decoded
    before (with PyAV, for one). Of longer clips only the frames that are sampled are read.

    - `num_frames`: the clip is cut into so many equal parts, and the middle frame of each is taken (frame
      floor((i + 1/2) · T / num_frames), whatever their rate is). A clip of no more frames keeps all of its own, once;
      None keeps all. Pipelines of transformers choose frames themselves, the first ones, before this processor.
    - Frames become pictures as in `AxialImageProcessor`: 8 bits, `num_channels` (1 or 3), `size` and `resample` with
      `do_resize`; then [0, 1], and with `do_normalize` (value - `image_mean`) / `image_std`.
    - `patch_size` (frames, height, width), `do_pad`, `pad_size` and `attention_mask` as in `AxialGridProcessor`: clips
      of different sizes and numbers of frames become one batch, and padding is masked.

    An image processor, opened by `AutoImageProcessor`, since those that transformers makes for videos need torchvision.
    Unknown options are dealt with as `StrictOptions` says.

    Raises:
        ValueError: whatever is no such clip, by its name: no frames, frames of different shapes, too large, or of
            another number of channels, values out of range or no real numbers, more than `MAX_VALUES` values, bad
            options.
    """

    valid_kwargs: type = AxialVideoProcessorKwargs
    model_input_names = ["pixel_values", "attention_mask"]

    num_frames: int | None = 16
    num_channels: int = 3
    input_data_format: Any = None
    do_resize: bool = True
    size: Any = {"height": 224, "width": 224}
    resample: Any = PILImageResampling.BILINEAR
    do_normalize: bool = True
    image_mean: Any = 0.5
    image_std: Any = 0.5
    patch_size: Any = (2, 16, 16)
    do_pad: bool = True
    pad_size: Any = None

    def __init__(self, **kwargs: Unpack[AxialVideoProcessorKwargs]):
        super().__init__(**kwargs)

    def _standardize_kwargs(self, **options: Any) -> dict[str, Any]:  # pyrefly: ignore[bad-override]  as `preprocess`
        """All options, checked, in the form in which they are kept."""
        if options["num_frames"] is not None:
            options["num_frames"] = whole_number(options["num_frames"], "num_frames")
        for name in ("do_resize", "do_normalize"):
            if not isinstance(options[name], bool):
                raise ValueError(f"{name} must be True or False, got {options[name]!r}")
        pictures, grids = self._parts(SimpleNamespace(**options))
        if len(grids.patch_size) != 3:
            raise ValueError(f"patch_size of clips is (frames, height, width), got {grids.patch_size}")
        for name, positive in (("image_mean", False), ("image_std", True)):
            options[name] = one_or_per_channel(options[name], name, pictures.num_channels, positive)
        return {**options, "size": pictures.size, "patch_size": grids.patch_size, "pad_size": grids.pad_size}

    @staticmethod
    def _parts(options: SimpleNamespace) -> tuple[AxialImageProcessor, AxialGridProcessor]:
        """What makes pictures of frames, 8 bits each, and what makes a batch of those."""
        pictures = AxialImageProcessor(num_channels=options.num_channels, size=options.size)
        mean, deviation = (options.image_mean, options.image_std) if options.do_normalize else (0.0, 1.0)
        grids = AxialGridProcessor(
            num_channels=pictures.num_channels,
            image_mean=[255 * number for number in per_channel(mean, "image_mean", pictures.num_channels)],
            image_std=[255 * number for number in per_channel(deviation, "image_std", pictures.num_channels, True)],
            patch_size=options.patch_size,
            do_pad=options.do_pad,
            pad_size=options.pad_size,
        )
        return pictures, grids

    def preprocess(  # pyrefly: ignore[bad-override]  its options are not those of pictures
        self, images: Any, return_tensors: str | None = None, **kwargs: Unpack[AxialVideoProcessorKwargs]
    ) -> BatchFeature:
        """What the class does, with the options of `kwargs` in place of its own; values come as arrays by default.

        `return_tensors`: "pt" or "np".
        """
        options = self._options(**kwargs)
        pictures, grids = self._parts(options)
        clips = split_clips(images)
        if not clips:
            raise ValueError("no clip given; the processor needs at least one")
        sampled = [check_clip(clip, f"clip {i}", options.num_frames) for i, clip in enumerate(clips)]
        arrays = []
        for i, (clip, numbers) in enumerate(zip(clips, sampled, strict=True)):
            frames = []
            for number in numbers:
                frame = pictures.process_image(
                    read_frame(clip, number, f"clip {i}"),
                    num_channels=options.num_channels,
                    input_data_format=options.input_data_format,
                )
                if options.do_resize:
                    frame = pictures.resize(frame, pictures.size, options.resample)
                if not frames:
                    check_size((len(clips), len(numbers), *frame.shape), "the clips")
                frames.append(frame)
            arrays.append(np.stack(frames, axis=1))  # (C, T, H, W)
        batch = grids(arrays)
        batch["pixel_values"] = np.moveaxis(batch["pixel_values"], 1, 2)
        return batch.convert_to_tensors(return_tensors)


# Here and not in __init__.py, which stays home: a processor that was loaded as remote code saves its code again.
AxialVideoProcessor.register_for_auto_class("AutoImageProcessor")
