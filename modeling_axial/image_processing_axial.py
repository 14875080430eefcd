"""Pictures -> pixel_values: opens picture files, brings any picture to the channels, size and range of the model."""

import os
import warnings
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from .processor_arrays import cells_in_use, check_maps, pad_end, padded_shape, read_labels
from .processor_options import StrictOptions, lengths, whole_number

# Pillow opens more than these, but EPS would start Ghostscript, an ICO can hide a picture larger than its header says,
# and a truncated JPEG 2000 opens as a coarser picture without a word.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
MAX_PIXELS = 1024**3 // 12  # 89,478,485, 256 MiB of RGB: where Pillow begins to warn of decompression bombs
ARRAY_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def read_image(path_or_bytes: str | os.PathLike | bytes) -> Image.Image:
    """Opens one picture, upright, in the mode of its file (16-bit greyscale stays 16-bit).

    Takes the path or the contents of a file in one of `FORMATS`, whatever its name; the EXIF turn is applied, and of an
    animation the first frame is taken. No setting of Pillow is changed: where the process itself has set
    `PIL.ImageFile.LOAD_TRUNCATED_IMAGES`, Pillow fills up most truncated files instead of refusing them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, an empty file, no picture, a truncated or damaged one, or more than `MAX_PIXELS` pixels
            (decided by the header, before the pixels are decoded).
        TypeError: neither a path nor bytes.
    """
    if isinstance(path_or_bytes, bytes):
        return _decode(BytesIO(path_or_bytes), f"the picture given as {len(path_or_bytes)} bytes")
    if not isinstance(path_or_bytes, str | os.PathLike):
        raise TypeError(f"read_image takes a path or the bytes of a file, got {type(path_or_bytes).__name__}")
    if os.path.exists(path_or_bytes) and not os.path.isfile(path_or_bytes):
        raise ValueError(f"{path_or_bytes} is no regular file; give the path of one picture")
    with open(path_or_bytes, "rb") as file:
        return _decode(file, str(path_or_bytes))


def _decode(file: BinaryIO, name: str) -> Image.Image:
    if not file.read(1):
        raise ValueError(f"{name} is empty; a picture has at least one byte")
    # Pillow's decoders meet bad bytes with nearly every type of exception, so each stage catches them all.
    try:
        image = Image.open(file, formats=FORMATS)
        num_pixels = image.width * image.height
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # decodes whole tiles, however small the picture is
            tile = [int(image.tag_v2.get(tag, 0)) for tag in (ExifTags.Base.TileWidth, ExifTags.Base.TileLength)]
            num_pixels = max(num_pixels, tile[0] * tile[1])
    except Exception as error:
        raise ValueError(f"{name} does not open as a picture ({', '.join(FORMATS)}): {error}") from error
    if num_pixels > MAX_PIXELS:
        raise ValueError(f"{name} would be decoded to {num_pixels} pixels; at most {MAX_PIXELS} are")
    try:
        if image.format == "PNG":  # decoding alone reads neither its checksums nor its last 20 bytes
            image.verify()
            image = Image.open(file, formats=FORMATS)
        return ImageOps.exif_transpose(image)  # loads, turns and detaches from the file
    except Exception as error:
        raise ValueError(f"{name} is truncated or damaged: {error}") from error


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixel values of any real type -> uint8, the full scale of the type on 0 to 255, rounded to nearest.

    uint8 as it is; bool False -> 0, True -> 255; uint16 v -> v / 257; floating point [0, 1] -> 255 v; other integers
    hold 8-bit values already.

    Raises:
        ValueError: floating point outside [0, 1] or not finite, other integers outside 0 to 255.
        TypeError: any other type of values (complex, objects, text).
    """
    kind, itemsize = pixels.dtype.kind, pixels.dtype.itemsize
    if kind not in "buif":
        raise TypeError(f"pixels must be numbers, got an array of {pixels.dtype}")
    if kind == "b":
        return pixels.astype(np.uint8) * 255
    if kind == "u" and itemsize == 2:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    lowest, highest = pixels.min(), pixels.max()
    if kind == "f":
        if not (lowest >= 0 and highest <= 1):  # written so that NaN fails, too
            raise ValueError(
                f"{pixels.dtype} pixels must lie in [0, 1], got {lowest} to {highest}; divide by their full scale"
            )
        return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    if lowest < 0 or highest > 255:
        raise ValueError(
            f"{pixels.dtype} pixels must lie in 0 to 255, got {lowest} to {highest}; give 16-bit pixels as uint16"
        )
    return pixels.astype(np.uint8)


def picture_from_array(pixels: np.ndarray, input_data_format: str | ChannelDimension | None = None) -> Image.Image:
    """(H, W), (H, W, C) or (C, H, W) with C 1, 3 (RGB) or 4 (RGBA), values as for `to_uint8` -> L, RGB or RGBA picture.

    Where the first and the last dim may both be the channels, the first one is taken, as everywhere in transformers,
    with a warning, unless `input_data_format` says which.

    Raises:
        ValueError: no pixels, or another number of channels.
    """
    if 0 in pixels.shape:
        raise ValueError(f"a picture needs at least one pixel, got shape {pixels.shape}")
    if pixels.ndim == 3:
        layout = ChannelDimension(input_data_format or _layout(pixels.shape))
        if layout == ChannelDimension.FIRST:
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.shape[-1] not in ARRAY_CHANNELS:
            raise ValueError(f"a picture has 1, 3 or 4 channels, got {pixels.shape[-1]} ({layout.value})")
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(to_uint8(pixels)))


def _layout(shape: tuple[int, int, int]) -> ChannelDimension:
    """As `infer_channel_dimension_format` of transformers, which warns by its log alone."""
    first, last = shape[0] in ARRAY_CHANNELS, shape[-1] in ARRAY_CHANNELS
    if not first and not last:
        raise ValueError(f"a picture has 1, 3 or 4 channels, first or last, got shape {shape}")
    if first and last:
        warnings.warn(
            f"an array of shape {shape} may be a picture with its channels first or last; they are taken to be first. "
            'Say which with input_data_format="channels_first" or "channels_last".',
            stacklevel=2,
        )
    return ChannelDimension.FIRST if first else ChannelDimension.LAST


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Modes I;16*, I (16-bit values) and F ([0, 1]) -> L by `to_uint8`, where Pillow's own conversion saturates."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    if image.mode == "I":
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(
                f"a picture of mode I must hold 16-bit values, 0 to 65535, got {pixels.min()} to {pixels.max()}"
            )
        pixels = pixels.astype(np.uint16)
    grey = to_uint8(pixels)
    if "transparency" in image.info:  # the one grey value that a PNG declares transparent
        grey = np.where(pixels == image.info["transparency"], np.uint8(255), grey)
    return Image.fromarray(grey)


def convert_channels(image: Image.Image, num_channels: int) -> Image.Image:
    """A picture of any 8-bit mode -> mode L (`num_channels=1`) or RGB (3).

    Transparency is composited on white. Grey is the luma of ITU-R 601-2, 0.299 R + 0.587 G + 0.114 B.
    """
    mode = "L" if num_channels == 1 else "RGB"
    if image.mode == "La":  # premultiplied; Pillow converts it to nothing else
        image = image.convert("LA")
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").convert(mode)  # by way of RGB: LAB and HSV have no direct way to grey


class AxialImageProcessorKwargs(ImagesKwargs, total=False):
    """
    num_channels (`int`, *optional*, defaults to 3):
        1 for greyscale, 3 for RGB.
    patch_size (`int` or `tuple[int, int]`, *optional*):
        The patch of the model, (height, width), which `do_pad` needs.
    num_labels (`int`, *optional*):
        Labels of segmentation maps are less than this.
    ignore_index (`int`, *optional*, defaults to 255):
        The label of pixels that do not count, and of padding.
    """

    num_channels: int | None
    patch_size: int | list[int] | tuple[int, ...] | None
    num_labels: int | None
    ignore_index: int | None


class AxialImageProcessor(StrictOptions, PilBackend):
    """Pictures of any kind -> `pixel_values` (B, num_channels, H, W), float32, by default in [-1, 1].

    Takes one picture, a batch or (nested) lists of PIL pictures, numpy arrays or torch tensors: (H, W), (H, W, C),
    (C, H, W), or batches of the latter two. Each is brought to 8 bits (`to_uint8`) and to `num_channels`
    (`convert_channels`), then resized, rescaled by 1/255 and normalized as in any processor of transformers:

    - `num_channels` (1 or 3) decides the colours alone; `do_convert_rgb` has no effect.
    - `size`: an int (square), `{"height", "width"}` or `{"shortest_edge"}`; pictures are resized in 8 bits.
    - `image_mean` and `image_std`: one number for all channels, or one per channel.
    - With `do_rescale=False` values stay in 0 to 255 (uint8 if they are not normalized, either). Floating-point
      pictures, always taken as [0, 1], are refused then.
    - `do_pad` (needs `patch_size`): pictures of different sizes become one batch, the largest of it (or `pad_size`)
      rounded up to whole patches. Padding stands below and to the right, 0 after normalizing, and `attention_mask`,
      boolean (B, *grid), is True for every cell that holds a pixel of the picture. Models take both as they come.
    - `segmentation_maps`, one for each picture and of its size: PIL pictures of one channel (a palette's indices are
      the labels), or whole numbers (H, W), of which three dims are a batch. They become `labels`, int64 (B, H, W),
      resized to nearest, cropped and padded as the pictures; what is beyond a map is `ignore_index`.

    A pipeline of transformers opens files itself and converts them to RGB before this processor sees them: 16-bit
    pictures saturate there, and transparency is dropped instead of composited. For those call the processor yourself,
    on `read_image(path)`. A PIL picture is taken as it lies: its EXIF turn is applied by `read_image` or the pipeline.

    Unknown options are dealt with as `StrictOptions` says.

    Raises:
        TypeError: not a picture (paths are not opened here: use `read_image`), or pixels that are no numbers.
        ValueError: no picture at all, wrong rank or number of channels, values out of range, a damaged file behind a
            PIL picture that is not loaded yet, `num_channels` neither 1 nor 3, an unknown option, maps that do not fit
            their pictures, labels out of range, padding without a patch or to less than a picture.
    """

    valid_kwargs = AxialImageProcessorKwargs
    model_input_names = ["pixel_values", "attention_mask"]

    num_channels = 3
    do_resize = True
    size: Any = {"height": 224, "width": 224}  # of an instance, a SizeDict
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    do_normalize = True
    image_mean = 0.5
    image_std = 0.5
    do_center_crop: bool | None = None
    do_pad: bool | None = None
    ignore_index = 255

    def __init__(self, **kwargs: Unpack[AxialImageProcessorKwargs]):
        super().__init__(**kwargs)

    def _standardize_kwargs(
        self,
        *args,
        num_channels: int | None = None,
        patch_size: int | list[int] | tuple[int, ...] | None = None,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        **kwargs,
    ) -> dict:
        if type(num_channels) is not int or num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 (greyscale) or 3 (RGB), got {num_channels!r}")
        if patch_size is not None:
            patch_size = lengths(patch_size, "patch_size")
            if len(patch_size) != 2:
                raise ValueError(f"patch_size of pictures is (height, width), got {patch_size}")
        if num_labels is not None:
            num_labels = whole_number(num_labels, "num_labels")
        ignore_index = whole_number(ignore_index, "ignore_index", least=-(2**63))
        options = {"patch_size": patch_size, "num_labels": num_labels, "ignore_index": ignore_index}
        return super()._standardize_kwargs(*args, num_channels=num_channels, **options, **kwargs)

    def preprocess(  # pyrefly: ignore[bad-override]  as every processor of transformers that takes maps
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[AxialImageProcessorKwargs],
    ) -> BatchFeature:
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(  # pyrefly: ignore[bad-override]  as above
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        *,
        do_pad: bool | None,
        pad_size: SizeDict | None,
        patch_size: tuple[int, int] | None,
        num_labels: int | None,
        ignore_index: int,
        return_tensors: Any,
        **kwargs,
    ) -> BatchFeature:
        pictures = self._prepare_image_like_inputs(images, **kwargs)
        maps = None
        if segmentation_maps is not None:
            maps = list(_flatten_maps(segmentation_maps))
            if len(maps) != len(pictures):
                raise ValueError(f"{len(pictures)} pictures have {len(maps)} segmentation_maps; give one for each")
            maps = [
                read_labels(labels, f"segmentation_maps[{i}]", picture.shape[1:], num_labels, ignore_index)
                for i, (labels, picture) in enumerate(zip(maps, pictures, strict=True))
            ]
            maps = [self._process_map(labels, ignore_index, **kwargs) for labels in maps]
        values = self._preprocess(pictures, do_pad=False, pad_size=None, return_tensors=None, **kwargs)["pixel_values"]

        data = {"pixel_values": values}
        if do_pad:
            if patch_size is None:
                raise ValueError(
                    "do_pad needs patch_size, the model's patch (height, width), for the mask of its cells"
                )
            least = None
            if pad_size is not None:
                if pad_size.height is None or pad_size.width is None:
                    raise ValueError(f"pad_size must be {{height, width}}, got {dict(pad_size)}")
                least = pad_size.height, pad_size.width
            shapes = [picture.shape[1:] for picture in values]
            target = padded_shape(shapes, patch_size, least)
            data["pixel_values"] = [pad_end(picture, target, 0) for picture in values]
            there = np.stack([pad_end(np.ones(shape, bool), target, False) for shape in shapes])
            data["attention_mask"] = list(cells_in_use(there, patch_size))
            maps = maps and [pad_end(labels, target, ignore_index) for labels in maps]
        if maps is not None:
            data["labels"] = maps
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _process_map(
        self,
        labels: np.ndarray,
        ignore_index: int,
        *,
        do_resize: bool | None,
        size: SizeDict,
        do_center_crop: bool | None,
        crop_size: SizeDict,
        **kwargs,
    ) -> np.ndarray:
        """A map (H, W) resized and cropped as its picture."""
        if do_resize:
            height, width = self._resized(labels.shape, size)
            # As Pillow's nearest, by which transformers would bring the labels to 8 bits first.
            rows, columns = (
                (2 * np.arange(new) + 1) * old // (2 * new)
                for new, old in zip((height, width), labels.shape, strict=True)
            )
            labels = labels[np.ix_(rows, columns)]
        if do_center_crop:  # which fills up with zeros
            labels = self.center_crop((labels - ignore_index)[None], crop_size)[0] + ignore_index
        return labels

    def _resized(self, shape: tuple[int, ...], size: SizeDict) -> tuple[int, int]:
        """(height, width) that resizing gives a picture of this one."""
        blank = np.broadcast_to(np.uint8(0), (1, *shape))
        return self.resize(blank, size).shape[1:]

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Any = None, return_segmentation_scores: bool = False
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """`logits` (B, num_labels, H, W) -> for each picture its map (height, width) of the likeliest labels, int64.

        `target_sizes`: (height, width) of each picture as it was given to the processor; logits are resized to it
        (bilinear, float32), after their padding is cut off where this processor pads (`do_pad`, `do_resize` and `size`
        count as they are set in the processor, not as they were given to a call). Without it maps are as large as the
        logits, padding included. With `return_segmentation_scores` each result holds the map as `segmentation` and its
        logits (num_labels, height, width) as `segmentation_scores`, as in transformers.

        Raises:
            ValueError: logits of another rank, another number of sizes, logits smaller than the picture was before
                padding, or a processor that crops, whose maps cannot be put back.
        """
        logits, sizes = check_maps(outputs, "logits", target_sizes, 2)
        if target_sizes is not None and self.do_center_crop:
            raise ValueError("do_center_crop cuts off what target_sizes ask for; call without target_sizes")
        results = []
        for scores, size in zip(logits.float(), sizes, strict=True):
            if target_sizes is not None and self.do_pad:
                height, width = self._resized(size, self.size) if self.do_resize else size
                if height > scores.shape[1] or width > scores.shape[2]:
                    raise ValueError(
                        f"logits of {tuple(scores.shape[1:])} pixels are smaller than the picture before padding, "
                        f"({height}, {width}); target_sizes are (height, width) of the pictures given to this processor"
                    )
                scores = scores[:, :height, :width]
            if tuple(scores.shape[1:]) != size:
                scores = torch.nn.functional.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
            results.append(BatchFeature({"segmentation": scores.argmax(0), "segmentation_scores": scores}))
        return results if return_segmentation_scores else [result.segmentation for result in results]

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        pictures = list(_flatten(images))
        if not pictures:
            raise ValueError("no picture given; the processor needs at least one")
        return pictures

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        num_channels: int = 3,
        do_rescale: bool | None = True,
        **kwargs,
    ) -> np.ndarray:
        """One picture -> uint8 (num_channels, H, W)."""
        is_floating_point = False
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()  # numpy has no bfloat16
        if isinstance(image, np.ndarray):
            is_floating_point = image.dtype.kind == "f"
            image = picture_from_array(image, input_data_format)
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"pictures are PIL images, arrays or tensors, got {type(image).__name__}; open files with read_image"
            )
        if not do_rescale and (is_floating_point or image.mode == "F"):
            raise ValueError("floating-point pictures, [0, 1], go to 0 to 255 first, so they need do_rescale=True")
        if 0 in image.size:
            raise ValueError(f"a picture needs at least one pixel, got {image.width} x {image.height}")
        try:
            image.load()
        except Exception as error:  # as in _decode
            raise ValueError(f"{getattr(image, 'filename', '') or image} is truncated or damaged: {error}") from error
        pixels = np.array(convert_channels(scale_to_8_bits(image), num_channels))
        return pixels[None] if num_channels == 1 else np.moveaxis(pixels, -1, 0)


def _flatten(images):
    if isinstance(images, list | tuple):
        for nested in images:
            yield from _flatten(nested)
    elif isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim not in (2, 3, 4):
            raise ValueError(f"a picture has 2 or 3 dimensions and a batch 4, got shape {tuple(images.shape)}")
        yield from images if images.ndim == 4 else (images,)
    else:
        yield images


def _flatten_maps(maps):
    if isinstance(maps, list | tuple):
        for nested in maps:
            yield from _flatten_maps(nested)
    elif isinstance(maps, Image.Image):
        # L, P (its indices), 1, I and I;16; of other modes the shape says what is wrong
        yield np.array(maps)
    elif getattr(maps, "ndim", None) == 3:
        yield from maps
    else:
        yield maps


# Here and not in __init__.py, which stays home: a processor that was loaded as remote code saves its code again.
AxialImageProcessor.register_for_auto_class("AutoImageProcessor")
