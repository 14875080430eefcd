"""Pictures of every kind come out as computed by hand, bad ones with a named error, and the processor travels alone."""

import json
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from packaging.version import Version
from PIL import ExifTags, Image, ImageFile
from transformers import AutoImageProcessor, pipeline
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format, load_image
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling_axial import AxialConfig, AxialModel, AxialPreTrainedModel, image_processing_axial
from modeling_axial.image_processing_axial import FORMATS, MAX_PIXELS, AxialImageProcessor, read_image, to_uint8

HEIGHT, WIDTH = 11, 7
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
RED, WHITE = (255, 0, 0), (255, 255, 255)
OLD_PILLOW = Version(PIL.__version__) < Version("13")


def encode(image, format="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width, height, bit_depth=8, rows=b"", extra=()):
    """A greyscale PNG written by hand; `rows` are its uncompressed scan lines, each with a leading filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def webp(width, height):
    data = encode(Image.new("RGB", (8, 8)), "WEBP")
    start = data.index(b"\x9d\x01\x2a") + 3  # the start code of a key frame, then its size
    return data[:start] + struct.pack("<HH", width, height) + data[start + 4 :]


def tiled_tiff(tile_size):
    """A TIFF of one grey pixel in one tile of `tile_size` squared."""
    data = zlib.compress(b"\0" * 64)
    # width, height, bits, compression (deflate), black is zero, samples, tile width, tile height, offset, bytes
    values = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile_size, 323: tile_size, 324: 8, 325: len(data)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    end = struct.pack("<H", len(values)) + directory + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + end


def raw_pixels(image, num_channels, **options):
    """What the processor makes of one picture, in 0 to 255, as (H, W, num_channels)."""
    processor = AxialImageProcessor(num_channels=num_channels, do_resize=False, do_normalize=False)
    values = processor(image, return_tensors="np", **options).pixel_values[0] * 255
    np.testing.assert_allclose(values, values.round(), atol=1e-4)  # 8-bit steps
    return np.moveaxis(values.round().astype(int), 0, -1)


# --- read_image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_opens_from_path_and_bytes_under_any_name(format, tmp_path):
    data = encode(NOISE, format, **({"lossless": True} if format == "WEBP" else {}))
    path = tmp_path / "picture.txt"
    path.write_bytes(data)
    pictures = [read_image(source) for source in (data, path, str(path))]
    for picture in pictures:
        assert type(picture) is Image.Image  # detached from the file
        assert picture.size == (WIDTH, HEIGHT)
        assert picture.tobytes() == pictures[0].tobytes()
        if format not in ("JPEG", "GIF"):  # those two lose something by nature
            np.testing.assert_array_equal(np.asarray(picture), NOISE)


@pytest.mark.parametrize(
    ("mode", "format"),
    [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [("CMYK", "JPEG"), ("F", "TIFF"), ("I;16B", "TIFF"), ("LAB", "TIFF")]
    # Older versions call the files of this kind that they write themselves truncated.
    + [pytest.param("YCbCr", "TIFF", marks=pytest.mark.skipif(OLD_PILLOW, reason="needs pillow 13"))],
)
def test_mode_of_the_file_is_kept(mode, format):
    assert read_image(encode(Image.new(mode, (WIDTH, HEIGHT)), format)).mode == mode


# How a camera held in each of the eight ways stores an upright picture.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.T,
    6: lambda upright: np.rot90(upright),  # counterclockwise
    7: lambda upright: upright[::-1, ::-1].T,
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_turn_is_applied_once(orientation, format):
    upright = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(np.ascontiguousarray(STORED[orientation](upright)), format, exif=exif, **options)
    picture = read_image(data)
    np.testing.assert_array_equal(np.asarray(picture.convert("L")), upright)
    np.testing.assert_array_equal(np.asarray(read_image(encode(picture)).convert("L")), upright)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_is_taken(format):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(BytesIO(data)).n_frames == 3
    assert read_image(data).convert("RGB").getcolors() == [(WIDTH * HEIGHT, RED)]


NOT_CUT_SILENTLY = [
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("BMP", {}),
    ("PPM", {}),
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("format", "options"), NOT_CUT_SILENTLY, ids=lambda value: str(value))
def test_a_file_cut_anywhere_is_refused_or_whole(format, options):
    data = encode(NOISE, format, **options)
    whole = read_image(data).tobytes()
    opened = []
    for length in range(len(data)):
        try:
            assert read_image(data[:length]).tobytes() == whole
            opened.append(length - len(data))
        except ValueError:
            pass
    # What may be missing are a GIF's or PNG's end marker and a BMP's padding, never a pixel.
    assert min(opened, default=0) >= -4


def cut(format, percent):
    data = encode(np.repeat(np.repeat(NOISE, 9, 0), 13, 1), format)
    return data[: len(data) * percent // 100]


def bmp_of_width(width):
    data = encode(NOISE, "BMP")
    return data[:18] + struct.pack("<i", width) + data[22:]


def flipped_bit():
    data = bytearray(encode(NOISE, compress_level=0))  # of a pixel, which decodes without complaint
    data[data.index(b"IDAT") + 40] ^= 1
    return bytes(data)


REFUSED = "does not open as a picture|is truncated or damaged"  # by which stage is the decoder's affair
BAD_CONTENTS = {
    "no bytes": (b"", "is empty"),
    "one byte": (b"\x89", "does not open as a picture"),
    "text": (b"a picture says more than words\n" * 9, "does not open as a picture"),
    "html": (b"<!doctype html><title>404</title>", "does not open as a picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "does not open as a picture"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "does not open as a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "does not open as a picture"),
    "icon": (encode(Image.new("RGB", (16, 16)), "ICO"), "does not open as a picture"),
    "random bytes": (np.random.default_rng(1).bytes(999), "does not open as a picture"),
    "zip": (b"PK\x03\x04" + bytes(99), "does not open as a picture"),
    "png signature alone": (b"\x89PNG\r\n\x1a\n", "does not open as a picture"),
    "png without pixels": (png(WIDTH, HEIGHT), "truncated or damaged"),
    "png of size zero": (png(0, HEIGHT), REFUSED),
    "png with a flipped bit": (flipped_bit(), "truncated or damaged"),
    "jpeg header and zeros": (encode(NOISE, "JPEG")[:200] + bytes(2000), REFUSED),
    "gif header alone": (b"GIF89a\x07\0\x0b\0\0\0\0", REFUSED),
    "bmp wider than its data": (bmp_of_width(700), REFUSED),
    **{f"png cut at {p} %": (cut("PNG", p), REFUSED) for p in (1, 10, 25, 50, 75, 90, 99)},
    **{f"jpeg cut at {p} %": (cut("JPEG", p), REFUSED) for p in (1, 10, 25, 50, 75, 90, 99)},
    "png of 100 megapixels": (png(10_000, 10_000), "decoded to 100000000 pixels; at most 89478485"),
    "png of 400 megapixels": (png(20_000, 20_000), "decompression bomb"),
    "png one pixel high": (png(2**31 - 1, 1), "decompression bomb"),
    "webp of 92 megapixels": (webp(9_600, 9_600), "decoded to 92160000 pixels"),
    "tiff of one pixel in a huge tile": (tiled_tiff(20_000), "decoded to 400000000 pixels"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("data", "message"), BAD_CONTENTS.values(), ids=BAD_CONTENTS.keys())
def test_bad_contents_are_refused_by_name(data, message, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"bad.png.*({message})"):
        read_image(path)
    with pytest.raises(ValueError, match=f"given as {len(data)} bytes.*({message})"):
        read_image(data)


def test_the_header_decides_about_bombs_whatever_pillow_is_set_to(monkeypatch):
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS  # where Pillow begins to warn
    bomb = png(10_000, 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="decompression bomb"):
            read_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for data in (bomb, png(30_000, 30_000), webp(16_383, 16_383)):
        with pytest.raises(ValueError, match="would be decoded to"):
            read_image(data)
    assert 5 * 17_895_697 == MAX_PIXELS
    with pytest.raises(ValueError, match="truncated or damaged"):  # large enough to be decoded, but there are no pixels
        read_image(png(5, 17_895_697))


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.png"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError):
        read_image("")
    with pytest.raises(ValueError, match="no regular file"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="no regular file"):
        read_image("/dev/null")
    for source in (None, 3, NOISE, BytesIO(encode(NOISE)), [encode(NOISE)]):
        with pytest.raises(TypeError, match="a path or the bytes of a file"):
            read_image(source)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_settings_of_pillow_and_of_warnings_stay_as_they_are(monkeypatch):
    for limit, load_truncated in ((12_345_678, False), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", load_truncated)
        filters = list(warnings.filters)
        for data in (encode(NOISE), encode(NOISE)[:300], png(10_000, 10_000), b"text"):
            try:
                read_image(data)
            except ValueError:
                pass
            assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (limit, load_truncated)
            assert warnings.filters == filters


# --- conversions, against values computed by hand ---------------------------------------------------------------------


def new(mode, color, **info):
    image = Image.new(mode, (WIDTH, HEIGHT), color)
    image.info.update(info)
    return image


def palette(color, mode="P", **info):
    image = Image.new(mode, (WIDTH, HEIGHT), 1 if mode == "P" else (1, 128))
    image.putpalette([0, 0, 0, *color])
    image.info.update(info)
    return image


def full(value, dtype, *shape):
    return np.full(shape or (HEIGHT, WIDTH), value, dtype)


RGBA_ARRAY = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
RGBA_ARRAY[..., 3] = 128

# picture, its one colour as RGB; grey is the luma of that: round(0.299 R + 0.587 G + 0.114 B)
COLOURS = {
    "grey": (new("L", 200), (200,) * 3, 200),
    "red": (new("RGB", RED), RED, 76),
    "green": (new("RGB", (0, 255, 0)), (0, 255, 0), 150),
    "blue": (new("RGB", (0, 0, 255)), (0, 0, 255), 29),
    "1-bit, on": (new("1", 1), WHITE, 255),
    "1-bit, off": (new("1", 0), (0, 0, 0), 0),
    "black, half transparent": (new("RGBA", (0, 0, 0, 128)), (127,) * 3, 127),
    "red, fully transparent": (new("RGBA", (*RED, 0)), WHITE, 255),
    "red, opaque": (new("RGBA", (*RED, 255)), RED, 76),
    "grey with alpha": (new("LA", (0, 128)), (127,) * 3, 127),
    "premultiplied alpha": (new("RGBa", (0, 0, 0, 128)), (127,) * 3, 127),
    "premultiplied grey": (new("La", (64, 128)), (191,) * 3, 191),  # 128 under half of a white
    "premultiplied grey, opaque": (new("La", (200, 255)), (200,) * 3, 200),
    "padded RGB": (new("RGBX", (*RED, 0)), RED, 76),
    "palette": (palette(RED), RED, 76),
    "palette, colour transparent": (palette(RED, transparency=1), WHITE, 255),
    "palette, other colour transparent": (palette(RED, transparency=0), RED, 76),
    "palette, alpha per colour": (palette((0, 0, 0), transparency=bytes([255, 128])), (127,) * 3, 127),
    "palette with alpha": (palette((0, 0, 0), "PA"), (127,) * 3, 127),
    "transparent RGB value": (new("RGB", RED, transparency=RED), WHITE, 255),
    "other transparent RGB value": (new("RGB", RED, transparency=WHITE), RED, 76),
    "transparent grey value": (new("L", 9, transparency=9), WHITE, 255),
    "cmyk, magenta and yellow": (new("CMYK", (0, 255, 255, 0)), RED, 76),
    "cmyk, key": (new("CMYK", (0, 0, 0, 255)), (0, 0, 0), 0),
    "ycbcr": (new("YCbCr", (128, 128, 128)), (128,) * 3, 128),
    "hsv": (new("HSV", (0, 255, 255)), RED, 76),
    "16-bit, middle": (new("I;16", 0x8000), (128,) * 3, 128),  # 127.50
    "16-bit, rounded down": (new("I;16", 128), (0,) * 3, 0),  # 0.498
    "16-bit, rounded up": (new("I;16", 129), (1,) * 3, 1),  # 0.502
    "16-bit, full": (new("I;16", 65535), WHITE, 255),
    "16-bit, big end first": (new("I;16B", 0x8000), (128,) * 3, 128),
    "16-bit, transparent value": (new("I;16", 257, transparency=257), WHITE, 255),
    "16-bit, other transparent value": (new("I;16", 257, transparency=256), (1,) * 3, 1),
    "32-bit with 16-bit values": (new("I", 0x8000), (128,) * 3, 128),
    "float": (new("F", 0.2), (51,) * 3, 51),
    "array": (full(200, np.uint8), (200,) * 3, 200),
    "array of bool": (full(True, bool), WHITE, 255),
    "array of uint16": (full(0x8000, np.uint16), (128,) * 3, 128),
    "array of uint16, big end first": (full(0x8000, ">u2"), (128,) * 3, 128),
    "array of int64": (full(200, np.int64), (200,) * 3, 200),
    "array of float64": (full(0.2, np.float64), (51,) * 3, 51),
    "array of float16": (full(0.2, np.float16), (51,) * 3, 51),
    "array, RGBA last": (RGBA_ARRAY, (127,) * 3, 127),
    "array, RGBA first": (np.moveaxis(RGBA_ARRAY, -1, 0), (127,) * 3, 127),
    "array, one channel last": (full(200, np.uint8, HEIGHT, WIDTH, 1), (200,) * 3, 200),
    "tensor of uint8": (torch.full((1, HEIGHT, WIDTH), 200, dtype=torch.uint8), (200,) * 3, 200),
    "tensor of uint16": (torch.full((3, HEIGHT, WIDTH), 0x8000, dtype=torch.uint16), (128,) * 3, 128),
    "tensor of bfloat16": (torch.full((HEIGHT, WIDTH, 3), 0.5, dtype=torch.bfloat16), (128,) * 3, 128),
    "tensor with gradient": (torch.full((HEIGHT, WIDTH), 0.2, requires_grad=True), (51,) * 3, 51),
}


@pytest.mark.parametrize(("picture", "rgb", "grey"), COLOURS.values(), ids=COLOURS.keys())
def test_colours(picture, rgb, grey):
    for num_channels, color in ((3, list(rgb)), (1, [grey])):
        pixels = raw_pixels(picture, num_channels)
        assert pixels.shape == (HEIGHT, WIDTH, num_channels)
        assert np.unique(pixels.reshape(-1, num_channels), axis=0).tolist() == [color]


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow(mode):
    for num_channels in (1, 3):
        assert raw_pixels(Image.new(mode, (WIDTH, HEIGHT)), num_channels).shape == (HEIGHT, WIDTH, num_channels)


def test_lab_to_its_8_bits():
    for lightness, grey in ((255, 255), (0, 0), (137, 128)):  # L* 53.7 is the middle grey of sRGB
        for num_channels in (1, 3):
            assert np.abs(raw_pixels(new("LAB", (lightness, 128, 128)), num_channels) - grey).max() <= 1


def test_16_bits_scale_exactly():
    values = np.arange(65536)
    exact = np.floor(values * 255 / 65535 + 0.5)
    np.testing.assert_array_equal(to_uint8(values.astype(np.uint16)), exact)
    # What saturates in Pillow, and hence in pipelines of transformers, as the docstring says, does not here.
    rows = b"".join(b"\0" + row.tobytes() for row in values.reshape(256, 256).astype(">u2"))
    data = png(256, 256, bit_depth=16, rows=rows)
    np.testing.assert_array_equal(raw_pixels(read_image(data), 1)[..., 0], exact.reshape(256, 256))
    assert (np.asarray(load_image(Image.open(BytesIO(data)))) == 255).mean() > 0.99
    transparent = png(256, 256, bit_depth=16, rows=rows, extra=[(b"tRNS", struct.pack(">H", 514))])
    assert raw_pixels(read_image(transparent), 1)[2, 1:4].tolist() == [[2], [255], [2]]


def test_luma_and_alpha_against_float64():
    rgba = np.random.default_rng(2).integers(0, 256, (37, 41, 4), dtype=np.uint8)
    luma = rgba[..., :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(raw_pixels(rgba[..., :3], 1)[..., 0] - luma).max() < 0.51
    alpha = rgba[..., 3:] / 255
    on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(raw_pixels(Image.fromarray(rgba), 3) - on_white).max() < 1
    np.testing.assert_array_equal(raw_pixels(rgba, 3), raw_pixels(Image.fromarray(rgba), 3))


LAYOUTS = {
    "picture": lambda: Image.fromarray(NOISE),
    "list": lambda: [Image.fromarray(NOISE)],
    "nested lists": lambda: [[], [Image.fromarray(NOISE)]],
    "channels last": lambda: NOISE,
    "channels first": lambda: np.moveaxis(NOISE, -1, 0).copy(),
    "not contiguous": lambda: np.moveaxis(NOISE, -1, 0)[:, ::-1][:, ::-1],
    "tensor, channels last": lambda: torch.tensor(NOISE),
    "tensor, channels first": lambda: torch.tensor(NOISE).permute(2, 0, 1),
    "batch": lambda: NOISE[None],
    "list of batches": lambda: [torch.tensor(NOISE).permute(2, 0, 1)[None]],
    "tuple": lambda: (torch.tensor(NOISE),),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(make):
    np.testing.assert_array_equal(raw_pixels(make(), 3), NOISE)


def test_input_data_format_decides_where_the_shape_does_not():
    picture = NOISE[:4]  # (4, 7, 3) may be four channels of 7 x 3
    np.testing.assert_array_equal(raw_pixels(picture, 3, input_data_format="channels_last"), picture)
    assert raw_pixels(picture, 3, input_data_format="channels_first").shape == (WIDTH, 3, 3)


@pytest.mark.parametrize("shape", [(3, 11, 3), (1, 11, 3), (4, 5, 3), (3, 5, 4), (3, 3, 3)], ids=str)
def test_an_ambiguous_layout_is_said(shape):
    """The first dim is taken for the channels, as `infer_channel_dimension_format` of transformers does."""
    picture = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    processor = AxialImageProcessor(do_resize=False)
    with pytest.warns(UserWarning, match='taken to be first.* input_data_format="channels_first"') as caught:
        values = processor(picture).pixel_values[0]
    assert len(caught) == 1 and infer_channel_dimension_format(picture, (1, 3, 4)) == ChannelDimension.FIRST
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(values, processor(picture, input_data_format="channels_first").pixel_values[0])
        last = processor(picture, input_data_format="channels_last").pixel_values[0]
        assert last.shape == (3, *shape[:2])
        processor([NOISE, np.moveaxis(NOISE, -1, 0), NOISE[..., 0]])  # and where nothing is ambiguous
        processor(Image.fromarray(NOISE[:, :3]))


# --- the processor ----------------------------------------------------------------------------------------------------


def test_defaults():
    black_and_white = [new("RGB", 0), new("1", 1), new("L", 51)]
    values = AxialImageProcessor()(black_and_white, return_tensors="pt").pixel_values
    assert values.shape == (3, 3, 224, 224) and values.dtype == torch.float32
    for picture, value in zip(values, (-1.0, 1.0, -0.6), strict=True):
        torch.testing.assert_close(picture, torch.full_like(picture, value))
    assert AxialImageProcessor(num_channels=1)(black_and_white, return_tensors="pt").pixel_values.shape[1] == 1
    assert AxialImageProcessor()(NOISE, num_channels=1, return_tensors="pt").pixel_values.shape[1] == 1


@pytest.mark.parametrize(
    ("size", "shape"),
    [(13, (13, 13)), ({"height": 13, "width": 17}, (13, 17)), ((13, 17), (13, 17)), ({"shortest_edge": 14}, (22, 14))],
    ids=str,
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_resize_is_pillows(size, shape, num_channels):
    picture = Image.fromarray(NOISE).convert("L" if num_channels == 1 else "RGB")
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        processor = AxialImageProcessor(num_channels=num_channels, size=size, resample=resample, do_normalize=False)
        values = processor(NOISE, do_rescale=False, return_tensors="np").pixel_values[0]
        expected = np.asarray(picture.resize(shape[::-1], resample)).reshape(*shape, num_channels)
        np.testing.assert_array_equal(np.moveaxis(values, 0, -1), expected)


def test_steps_can_be_left_out():
    def values(**options):
        processor = AxialImageProcessor(do_resize=False, **options)
        return np.moveaxis(processor(NOISE, return_tensors="np").pixel_values[0], 0, -1)

    exact = NOISE.astype(np.float64)
    np.testing.assert_array_equal(values(do_rescale=False, do_normalize=False), NOISE)
    np.testing.assert_allclose(values(do_normalize=False), exact / 255, rtol=1e-6)
    np.testing.assert_allclose(values(do_rescale=False), (exact - 0.5) / 0.5, rtol=1e-6)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    np.testing.assert_allclose(values(image_mean=mean, image_std=std), (exact / 255 - mean) / std, atol=1e-6)
    cropped = AxialImageProcessor(do_resize=False, do_center_crop=True, crop_size={"height": 5, "width": 3})
    assert cropped(NOISE, return_tensors="pt").pixel_values.shape == (1, 3, 5, 3)


def lazy_truncated():
    return Image.open(BytesIO(cut("PNG", 50)))


def nan():
    pixels = full(0.5, np.float32, HEIGHT, WIDTH, 3)
    pixels[2, 3, 1] = np.nan
    return pixels


BAD_PICTURES = {
    "none": (None, TypeError, "got NoneType"),
    "path as text": ("picture.png", TypeError, "open files with read_image"),
    "path": (Path("picture.png"), TypeError, "open files with read_image"),
    "address": ("https://example.org/picture.png", TypeError, "open files with read_image"),
    "bytes": (encode(NOISE), TypeError, "open files with read_image"),
    "number": (7, TypeError, "got int"),
    "list of numbers": ([[0, 1], [2, 3]], TypeError, "got int"),
    "dictionary": ({"image": NOISE}, TypeError, "got dict"),
    "empty list": ([], ValueError, "at least one"),
    "nested empty lists": ([[], []], ValueError, "at least one"),
    "empty batch": (NOISE[None][:0], ValueError, "at least one"),
    "a good one and none": ([NOISE, None], TypeError, "got NoneType"),
    "no dimension": (np.zeros(()), ValueError, "2 or 3 dimensions"),
    "one dimension": (NOISE.ravel(), ValueError, "2 or 3 dimensions"),
    "five dimensions": (NOISE[None, None], ValueError, "2 or 3 dimensions"),
    "list of five dimensions": ([torch.zeros(1, 1, 3, 5, 7)], ValueError, "2 or 3 dimensions"),
    "two channels": (NOISE[..., :2], ValueError, "1, 3 or 4 channels"),
    "five channels": (np.zeros((5, HEIGHT, WIDTH), np.uint8), ValueError, "1, 3 or 4 channels"),
    "stack of grey pictures": (np.zeros((100, HEIGHT, WIDTH), np.uint8), ValueError, "1, 3 or 4 channels"),
    "array without height": (NOISE[:0], ValueError, "at least one pixel"),
    "array without width": (torch.zeros(3, HEIGHT, 0), ValueError, "at least one pixel"),
    "picture without height": (Image.new("RGB", (WIDTH, 0)), ValueError, "at least one pixel"),
    "nan": (nan(), ValueError, r"\[0, 1\]"),
    "infinite": (full(np.inf, np.float32), ValueError, r"\[0, 1\]"),
    "float to 255": (NOISE.astype(np.float32), ValueError, r"\[0, 1\]"),
    "already normalized": (torch.linspace(-1, 1, HEIGHT * WIDTH).view(1, HEIGHT, WIDTH), ValueError, r"\[0, 1\]"),
    "float picture to 255": (new("F", 255.0), ValueError, r"\[0, 1\]"),
    "negative integers": (full(-1, np.int32), ValueError, "0 to 255"),
    "16 bits in int32": (full(40_000, np.int32), ValueError, "as uint16"),
    "20 bits in mode I": (new("I", 1_000_000), ValueError, "16-bit values"),
    "negative in mode I": (new("I", -1), ValueError, "16-bit values"),
    "objects": (np.full((HEIGHT, WIDTH), None, object), TypeError, "numbers"),
    "text": (np.full((HEIGHT, WIDTH), "x"), TypeError, "numbers"),
    "complex": (torch.zeros(HEIGHT, WIDTH, dtype=torch.complex64), TypeError, "numbers"),
    "dates": (np.zeros((HEIGHT, WIDTH), "datetime64[s]"), TypeError, "numbers"),
    "truncated file, not loaded yet": (lazy_truncated(), ValueError, "truncated or damaged"),
}


@pytest.mark.parametrize(("picture", "error", "message"), BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
def test_bad_pictures_are_refused(picture, error, message):
    with pytest.raises(error, match=message):
        AxialImageProcessor()(picture, return_tensors="pt")


@pytest.mark.parametrize(
    "option, message",
    [("sise", "did you mean 'size'"), ("num_chanels", "did you mean 'num_channels'"), ("zoom", r"no option 'zoom'\.")],
)
def test_unknown_options_are_refused_and_read_with_a_warning(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        AxialImageProcessor(**{option: 1})
    AxialImageProcessor(size=13).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    of_other_tools = {"processor_class": "AxialProcessor", "feature_extractor_type": "AxialFeatureExtractor"}
    file.write_text(json.dumps(json.loads(file.read_text()) | of_other_tools | {option: 1}))
    for read in (
        lambda: AxialImageProcessor.from_pretrained(tmp_path),
        lambda: AutoImageProcessor.from_pretrained(tmp_path),
        lambda: AxialImageProcessor.from_json_file(file),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            processor = read()
        assert len(caught) == 1 and processor.size["height"] == 13
        assert option not in processor.to_dict() and not hasattr(processor, option)


def test_what_a_processor_stores_makes_it_again(tmp_path):
    processor = AxialImageProcessor(**CHOICES)
    processor.save_pretrained(tmp_path)
    processor.note = "an attribute of the user"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in (AxialImageProcessor(**processor.to_dict()), AxialImageProcessor.from_pretrained(tmp_path)):
            assert again.to_dict() == processor.to_dict()


def test_bad_options_are_refused():
    for num_channels in (0, 2, 4, -1, "3", 3.0, True):
        with pytest.raises(ValueError, match="num_channels must be 1 .* or 3"):
            AxialImageProcessor(num_channels=num_channels)
    processor = AxialImageProcessor()
    with pytest.raises(ValueError, match="num_channels must be 1 .* or 3"):
        processor(NOISE, num_channels=4)
    with pytest.raises(StrictDataclassFieldValidationError, match="num_channels"):
        processor(NOISE, num_channels="3")
    with pytest.raises(TypeError, match="num_chanels"):
        processor(NOISE, num_chanels=3)
    with pytest.raises(ValueError, match="do_rescale=True"):  # they would come out in 0 to 255
        processor(full(0.5, np.float32), do_rescale=False)
    with pytest.raises(ValueError, match="do_rescale=True"):
        processor(new("F", 0.5), do_rescale=False)
    with pytest.raises(ValueError, match="channels_up"):
        processor(NOISE, input_data_format="channels_up")
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        processor(NOISE, input_data_format="channels_first")
    with pytest.raises(ValueError, match="mean must have 1 elements"):
        processor(NOISE, num_channels=1, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="[Ss]ize"):
        processor(NOISE, size={"height": 0, "width": 5})
    with pytest.raises(ValueError, match="same length|batched tensors|inhomogeneous|expected sequence|stack"):
        processor([NOISE, NOISE[1:]], do_resize=False, return_tensors="pt")


# --- segmentation maps, padding, and the way back ---------------------------------------------------------------------

LABELS = np.random.default_rng(4).integers(0, 300, (HEIGHT, WIDTH))
PATCH = (3, 2)


def in_palette(labels):
    image = Image.fromarray(labels.astype(np.uint8), "L").convert("P")
    image.putpalette(list(np.random.default_rng(5).integers(0, 256, 768)))  # no bearing on its indices
    image.putdata(labels.astype(np.uint8).ravel().tolist())
    return image


MAPS = {
    "array": lambda: LABELS,
    "big end first": lambda: LABELS.astype(">u2"),
    "tensor": lambda: torch.tensor(LABELS),
    "list": lambda: [LABELS],
    "batch": lambda: LABELS[None],
    "picture, 32 bits": lambda: Image.fromarray(LABELS.astype(np.int32)),
    "picture, 16 bits": lambda: Image.fromarray(LABELS.astype(np.uint16)),
    "masked": lambda: np.ma.MaskedArray(LABELS, np.zeros_like(LABELS, bool)),
}


@pytest.mark.parametrize("make", MAPS.values(), ids=MAPS.keys())
def test_maps_of_every_kind(make):
    inputs = AxialImageProcessor(do_resize=False, num_labels=300)(NOISE, segmentation_maps=make(), return_tensors="pt")
    assert inputs.labels.dtype == torch.int64 and "attention_mask" not in inputs
    assert inputs.labels[0].tolist() == LABELS.tolist()
    assert torch.equal(
        inputs.pixel_values, AxialImageProcessor(do_resize=False)(NOISE, return_tensors="pt").pixel_values
    )


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_maps_of_8_bits(mode):
    labels = LABELS % (2 if mode == "1" else 7)
    image = in_palette(labels) if mode == "P" else Image.fromarray(labels.astype(bool if mode == "1" else np.uint8))
    assert image.mode == mode
    inputs = AxialImageProcessor(do_resize=False)(NOISE, image)
    np.testing.assert_array_equal(inputs.labels[0], labels)


@pytest.mark.parametrize(
    "size", [{"height": 13, "width": 17}, {"height": 5, "width": 3}, {"shortest_edge": 14}], ids=str
)
def test_maps_are_resized_to_nearest_as_their_pictures(size):
    inputs = AxialImageProcessor(size=size)(NOISE, LABELS)
    height, width = inputs.pixel_values[0].shape[1:]
    expected = Image.fromarray(LABELS.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(inputs.labels[0], np.asarray(expected))  # labels above 255, too


def test_maps_are_cropped_as_their_pictures():
    picture = LABELS.astype(np.uint8)  # shows its own labels
    options = {"do_resize": False, "do_rescale": False, "do_normalize": False, "num_channels": 1}
    for height, width, ignored in ((5, 3, 0), (5, 13, 30), (15, 3, 12)):
        processor = AxialImageProcessor(do_center_crop=True, crop_size={"height": height, "width": width}, **options)
        inputs = processor(picture, picture.astype(int), ignore_index=-1)
        beyond = inputs.labels[0] == -1
        assert beyond.sum() == ignored
        np.testing.assert_array_equal(inputs.pixel_values[0][0], np.where(beyond, 0, inputs.labels[0]))


PICTURES = [NOISE, NOISE[:7, :5], NOISE[:5, :6]]


@pytest.mark.parametrize(("pad_size", "shape"), [(None, (12, 8)), ({"height": 14, "width": 9}, (15, 10))], ids=str)
def test_padding_and_its_mask_against_loops(pad_size, shape):
    processor = AxialImageProcessor(do_resize=False, do_pad=True, patch_size=PATCH, pad_size=pad_size, num_labels=300)
    maps = [LABELS[: picture.shape[0], : picture.shape[1]] for picture in PICTURES]
    inputs = processor(PICTURES, maps, return_tensors="pt")
    assert inputs.pixel_values.shape == (3, 3, *shape) and inputs.labels.shape == (3, *shape)
    assert inputs.attention_mask.shape == (3, shape[0] // 3, shape[1] // 2)
    assert inputs.attention_mask.dtype == torch.bool
    for i, picture in enumerate(PICTURES):
        height, width = picture.shape[:2]
        alone = AxialImageProcessor(do_resize=False)(picture, return_tensors="pt").pixel_values[0]
        assert torch.equal(inputs.pixel_values[i, :, :height, :width], alone)
        assert not inputs.pixel_values[i, :, height:].any() and not inputs.pixel_values[i, :, :, width:].any()
        np.testing.assert_array_equal(inputs.labels[i, :height, :width], maps[i])
        assert (inputs.labels[i] == 255).sum() == shape[0] * shape[1] - height * width + (maps[i] == 255).sum()
        for row, column in np.ndindex(*inputs.attention_mask.shape[1:]):
            assert inputs.attention_mask[i, row, column] == (row * 3 < height and column * 2 < width)
    assert inputs.to("cpu", torch.bfloat16).attention_mask.dtype == torch.bool


def test_a_padded_picture_gives_what_it_gives_alone():
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[12, 8],
        patch_size=list(PATCH),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_channels=3,
        initializer_range=0.5,
    )
    model = AxialModel(config).eval()
    processor = AxialImageProcessor(do_resize=False, do_pad=True, patch_size=PATCH)
    with torch.no_grad():
        together = model(**processor(PICTURES, return_tensors="pt")).pooler_output
        for pooled, picture in zip(together, PICTURES, strict=True):
            alone = model(**processor(picture, return_tensors="pt")).pooler_output[0]
            torch.testing.assert_close(pooled, alone)


def test_bad_maps_and_paddings():
    processor = AxialImageProcessor(do_resize=False, num_labels=3)
    for maps, message in (
        ([LABELS % 3] * 2, "1 pictures have 2 segmentation_maps"),
        ([], "1 pictures have 0 segmentation_maps"),
        (LABELS % 4, r"segmentation_maps\[0\] holds the label 3; labels are 0 to 2, or 255"),
        (LABELS[1:] % 3, r"segmentation_maps\[0\] has shape \(10, 7\)"),
        (LABELS % 3 / 2, "whole numbers, got float64"),
        (Image.fromarray(NOISE), r"shape \(11, 7, 3\)"),
        ("map.png", "must be an array .* got str"),
        (LABELS.astype(object), "objects"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(NOISE, segmentation_maps=maps)
    with pytest.raises(ValueError, match="do_pad needs patch_size"):
        processor(NOISE, do_pad=True)
    with pytest.raises(ValueError, match=r"pad_size \(9, 9\) is smaller than sample 0 of the batch, \(11, 7\)"):
        processor(NOISE, do_pad=True, patch_size=3, pad_size={"height": 9, "width": 9})
    with pytest.raises(ValueError, match="pad_size must be .height, width., got .*shortest_edge"):
        processor(NOISE, do_pad=True, patch_size=3, pad_size={"shortest_edge": 9})
    for options, message in (
        ({"patch_size": [2, 3, 5]}, "patch_size of pictures is .height, width."),
        ({"patch_size": [2, 0]}, "patch_size must be an int of at least 1, got 0"),
        ({"num_labels": 0}, "num_labels must be an int of at least 1"),
        ({"ignore_index": 2.5}, "ignore_index must be an int"),
    ):
        with pytest.raises(ValueError, match=message):
            AxialImageProcessor(**options)


def planes(height, width):
    """Logits of three labels that change linearly, which bilinear resizing keeps but at the edges."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return torch.tensor(np.stack([rows / height, columns / width, np.full_like(rows, 0.45)]), dtype=torch.float32)


def test_maps_of_labels_from_logits():
    logits = torch.stack([planes(6, 10), planes(6, 10).flip(1)])
    processor = AxialImageProcessor()
    maps = processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))
    assert [found.tolist() for found in maps] == logits.argmax(1).tolist()
    sizes = [(12, 20), (9, 7)]
    for given in (sizes, torch.tensor(sizes)):
        results = processor.post_process_semantic_segmentation(
            SemanticSegmenterOutput(logits=logits.bfloat16().float()), given, return_segmentation_scores=True
        )
        for result, scores, size in zip(results, logits.bfloat16().float(), sizes, strict=True):
            expected = torch.nn.functional.interpolate(scores[None], size, mode="bilinear")[0]
            assert torch.equal(result.segmentation_scores, expected)
            assert torch.equal(result.segmentation, expected.argmax(0)) and result.segmentation.dtype == torch.int64
    half = SemanticSegmenterOutput(logits=logits.bfloat16())
    assert processor.post_process_semantic_segmentation(half, sizes)[1].shape == (9, 7)


@pytest.mark.parametrize("options", [{"do_resize": False}, {"size": {"shortest_edge": 14}}, {"size": 13}], ids=str)
def test_padding_is_cut_off_before_logits_are_resized(options):
    processor = AxialImageProcessor(do_pad=True, patch_size=PATCH, **options)
    inputs = processor(PICTURES, return_tensors="pt")
    logits = torch.full((3, 3, *inputs.pixel_values.shape[2:]), 9.0)  # what stands in the padding
    shapes = [values.shape[1:] for values in AxialImageProcessor(**options)(PICTURES).pixel_values]
    for scores, (height, width) in zip(logits, shapes, strict=True):
        scores[:, :height, :width] = planes(height, width)
    sizes = [picture.shape[:2] for picture in PICTURES]
    outputs = SemanticSegmenterOutput(logits=logits)
    results = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    for result, shape, size in zip(results, shapes, sizes, strict=True):
        expected = torch.nn.functional.interpolate(planes(*shape)[None], size, mode="bilinear")[0]
        torch.testing.assert_close(result.segmentation_scores, expected)
        assert result.segmentation.shape == size


class Segmenter(AxialPreTrainedModel):
    """Labels of pixels are their brightest channels; what stands in the padding would be a fourth label."""

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.post_init()

    def forward(self, pixel_values, attention_mask=None):
        padding = (pixel_values == 0).all(1, keepdim=True) * 18.0 - 9.0
        return SemanticSegmenterOutput(logits=self.weight * torch.cat([pixel_values, padding], 1))


@pytest.mark.parametrize(
    "options", [{"do_resize": False}, {"do_resize": False, "do_pad": True, "patch_size": 5}], ids=str
)
def test_pipeline_of_segmentation(options):
    model = Segmenter(AxialConfig(id2label={0: "red", 1: "green", 2: "blue", 3: "padding"}))
    segment = pipeline("image-segmentation", model=model, image_processor=AxialImageProcessor(**options))
    shades = np.tile(np.arange(256, dtype=np.uint8), (HEIGHT, WIDTH, 1))  # no two channels of a pixel are equal
    picture = np.random.default_rng(6).permuted(shades, axis=-1)[..., :3]
    found = {part["label"]: np.asarray(part["mask"]) for part in segment(Image.fromarray(picture))}
    for label, name in enumerate(("red", "green", "blue")):
        np.testing.assert_array_equal(found.pop(name), (picture.argmax(-1) == label) * 255)
    assert not found


def test_bad_logits():
    outputs = SemanticSegmenterOutput(logits=torch.zeros(1, 3, 6, 10))
    for processor, sizes, message in (
        (AxialImageProcessor(), [(6, 10)] * 2, "one size for each of the 1 samples, got 2"),
        (AxialImageProcessor(), [(0, 10)], "2 positive lengths"),
        (AxialImageProcessor(do_center_crop=True, crop_size=5), [(6, 10)], "do_center_crop"),
        (
            AxialImageProcessor(do_pad=True, patch_size=2),
            [(6, 10)],
            "smaller than the picture before padding, .224, 224",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            processor.post_process_semantic_segmentation(outputs, sizes)
    with pytest.raises(ValueError, match="must have logits"):
        AxialImageProcessor().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=torch.zeros(1, 3, 6)))


# --- away from home ---------------------------------------------------------------------------------------------------

CHOICES = {
    "num_channels": 1,
    "size": {"height": 13, "width": 17},
    "resample": 3,
    "image_mean": [0.25],
    "image_std": 0.75,
    "do_rescale": True,
}


SAVED = ["image_processing_axial.py", "preprocessor_config.json", "processor_arrays.py", "processor_options.py"]


def test_saved_file_holds_the_choices_and_nothing_of_this_machine(tmp_path):
    processor = AxialImageProcessor(**CHOICES)
    processor.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == SAVED
    for name in SAVED[:1] + SAVED[2:]:
        code = Path(image_processing_axial.__file__).with_name(name).read_bytes()
        assert (tmp_path / name).read_bytes() == code
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        **CHOICES,
        "do_resize": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "ignore_index": 255,
        "auto_map": {"AutoImageProcessor": "image_processing_axial.AxialImageProcessor"},
        "image_processor_type": "AxialImageProcessor",
    }
    assert AxialImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert AxialImageProcessor.from_pretrained(tmp_path, num_channels=3).num_channels == 3


LOAD_AND_SAVE_AGAIN = """
import sys
import numpy as np
from transformers import AutoImageProcessor, pipeline

folder, picture, result, again = sys.argv[1:]
values = []
for options in ({}, {"backend": "torchvision"}, {"backend": "pil"}):
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, **options)
    name, home = type(processor).__name__, type(processor).__module__
    if name != "AxialImageProcessor" or not home.startswith("transformers_modules."):
        raise SystemExit(f"{options} gave {name} of {home}")
    values.append(processor(np.load(picture), return_tensors="np").pixel_values)
if not all((value == values[0]).all() for value in values):
    raise SystemExit("the backends differ")
if "torchvision" in sys.modules:
    raise SystemExit("torchvision was imported")
np.save(result, values[0])
processor.save_pretrained(again)
"""


@pytest.mark.audit
@pytest.mark.slow
def test_opens_where_the_package_is_missing_and_saves_itself_again(tmp_path, run_python):
    processor = AxialImageProcessor(**CHOICES)
    processor.save_pretrained(tmp_path / "written here")
    folder = (tmp_path / "written here").rename(tmp_path / "moved")
    np.save(tmp_path / "picture.npy", NOISE)
    expected = processor(NOISE, return_tensors="np").pixel_values
    for again in ("again", "and_again"):
        run_python(LOAD_AND_SAVE_AGAIN, folder, tmp_path / "picture.npy", tmp_path / "result.npy", tmp_path / again)
        np.testing.assert_array_equal(np.load(tmp_path / "result.npy"), expected)
        (tmp_path / "result.npy").unlink()
        for name in SAVED:
            assert (tmp_path / again / name).read_bytes() == (tmp_path / "moved" / name).read_bytes()
        folder = tmp_path / again
