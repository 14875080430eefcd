"""Pictures of your own, in a folder or a data set, as integers on the grid of an autoregressive model."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from autoregressive_data import Tokens
from image_classification_data import (
    PICTURE_SUFFIXES,
    HubPictures,
    PictureFolder,
    class_name,
    first_few,
    pictures_by_class,
    printable,
    readable_pictures,
    visible,
)
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from modeling_axial import AxialDecoderConfig
from modeling_axial.image_processing_axial import convert_channels, scale_to_8_bits

# Folders


def open_folders(train_dir: str, validation_dir: str | None, validation_share: float, seed: int) -> PictureFolder:
    """
    Pictures in one subfolder for each class or, without classes, directly in the folder; these are one class with the
    name of the folder. Measured on is `validation_dir`, of the same form, or else a share of `train_dir`.

    Raises:
        `ValueError`: as `PictureFolder`, for two folders of different forms, and too few pictures to hold one out.
    """
    if validation_dir is None:
        return SplitFolder(train_dir, validation_share, seed)
    forms = [has_classes(folder) for folder in (train_dir, validation_dir)]
    if forms[0] != forms[1]:
        with_classes, without = (train_dir, validation_dir) if forms[0] else (validation_dir, train_dir)
        raise ValueError(
            f"{with_classes} has a subfolder for each class and {without} has none: both must have, or none"
        )
    return PictureFolder(train_dir, validation_dir) if forms[0] else PlainFolders(train_dir, validation_dir)


class SplitFolder(PictureFolder):
    """
    One folder of pictures, with classes or without, of which a share of each class is held out: at least one picture,
    and not all. Which ones depends on their names and the seed alone.
    """

    def __init__(self, train_dir: str, validation_share: float, seed: int):
        pictures, no_pictures = pictures_in(train_dir)
        if has_classes(train_dir) and len(pictures) < 2:
            raise ValueError(
                f"{train_dir} has only the class {next(iter(pictures))!r}; there must be two at least, or, for a model "
                "without classes, the pictures must lie in the folder itself"
            )
        self.label_names = list(pictures)
        self.train, self.validation = set_apart(pictures, validation_share, seed)
        if not self.validation:
            raise ValueError(f"{train_dir} has no class of two pictures, so none can be held out: give validation_dir")
        folder, share = printable(Path(train_dir).resolve().name), f"{100 * validation_share:g} %"
        self.trained_on = f"the folder `{folder}` without what was held out"
        self.measured_on = f"{share} of the folder `{folder}`, held out"
        self.name = f"{folder}, {share} held out"
        self.notes = notes_on(no_pictures)
        if alone := sorted(set(self.train) - set(self.validation)):
            self.notes.append(f"there is but one picture of {alone}: they are not measured")


class PlainFolders(PictureFolder):
    """Two folders of pictures without classes."""

    def __init__(self, train_dir: str, validation_dir: str):
        (train, no_pictures), (validation, others) = map(pictures_in, (train_dir, validation_dir))
        self.label_names = list(train)
        self.train, self.validation = train, dict(zip(train, validation.values(), strict=True))
        train_name, self.name = (printable(Path(folder).resolve().name) for folder in (train_dir, validation_dir))
        self.trained_on, self.measured_on = (f"the folder `{name}`" for name in (train_name, self.name))
        self.notes = notes_on(no_pictures + others)


def has_classes(folder: str) -> bool:
    return Path(folder).is_dir() and any(path.is_dir() for path in visible(Path(folder)))


def pictures_in(folder: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """As `pictures_by_class`; of a folder without subfolders, its pictures as one class of its name."""
    path = Path(folder)
    if not path.is_dir() or has_classes(folder):
        return pictures_by_class(path)
    files = visible(path)
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise ValueError(
            f"{folder} has no pictures; it must hold some, or one folder of them for each class, in files whose names "
            f"end in one of {' '.join(PICTURE_SUFFIXES)}"
        )
    return {class_name(path.resolve()): pictures}, [file for file in files if file not in pictures]


def notes_on(no_pictures: list[Path]) -> list[str]:
    return [f"{len(no_pictures)} files are no pictures by their names: {first_few(no_pictures)}"] if no_pictures else []


def set_apart(
    pictures: dict[str, list[Path]], share: float, seed: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """
    (what is learnt from, what is held out) of each class, the second without classes of one picture. Drawn by hashes of
    the names, so that neither the place of the folder nor the order of its files has a part in it.
    """

    def draw(name: str, path: Path) -> bytes:
        return hashlib.sha256(f"{seed}/{name}/{path.name}".encode(errors="surrogateescape")).digest()

    train, held_out = {}, {}
    for name, paths in pictures.items():
        count = min(max(1, round(share * len(paths))), len(paths) - 1)
        apart = set(sorted(paths, key=lambda path: draw(name, path))[:count])
        train[name] = [path for path in paths if path not in apart]
        if apart:
            held_out[name] = sorted(apart)
    return train, held_out


# What the model gets


def class_fields(pictures: PictureFolder | HubPictures) -> dict:
    """The fields of an `AxialDecoderConfig` that follow from the classes of pictures; of a single one, none."""
    names = pictures.label_names
    if len(names) == 1:
        return {"num_classes": None, "class_dropout_prob": 0.0}
    by_name = {name: number for number, name in enumerate(names)}
    return {"num_classes": len(names), "id2label": dict(enumerate(names)), "label2id": by_name}


def on_grid(picture: Image.Image, config: AxialDecoderConfig) -> np.ndarray:
    """
    A picture, or a frame of a clip, on the grid of a model: uint8 (C, height, width). What is too long in one direction
    is cut off at both ends, the rest made smaller or larger; transparency becomes white.
    """
    height, width = config.image_size[-2:]
    picture = convert_channels(scale_to_8_bits(picture), config.num_channels)
    pixels = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, config.num_channels).transpose(2, 0, 1)


class GridProcessor:
    """Stands for an image processor: pictures as they are on the grid of a model."""

    def __init__(self, config: AxialDecoderConfig):
        self.config = config

    def __call__(self, picture: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(on_grid(picture, self.config).copy())[None]}


class OwnPictures:
    """
    Pictures of a folder or a data set, read once and kept in memory as the model takes them: `train` and `held_out`,
    with a class where there are several.

    Raises:
        `ValueError`: on all processes, as `readable_pictures`.
    """

    def __init__(
        self,
        pictures: PictureFolder | HubPictures,
        config: AxialDecoderConfig,
        accelerator: Accelerator,
        num_workers: int = 0,
        skip_broken: bool = False,
    ):
        self.hub_id, self.license, self.name = pictures.hub_id, pictures.license, pictures.name
        self.trained_on, self.measured_on = pictures.trained_on, pictures.measured_on
        self.train, self.held_out = (
            read_tokens(
                readable_pictures(part, pictures.label_names, accelerator, num_workers, skip_broken),
                config,
                num_workers,
            )
            for part in pictures.datasets(GridProcessor(config))
        )


def read_tokens(dataset: Dataset, config: AxialDecoderConfig, num_workers: int = 0) -> Tokens:
    """All (pixels, label) of a data set whose processor was a `GridProcessor`."""
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, generator=torch.Generator())
    pixels = np.empty((len(loader), config.num_channels, *config.image_size), np.uint8)
    labels = np.empty(len(loader), np.int64)
    for row, (picture, label) in enumerate(loader):
        pixels[row], labels[row] = picture, label
    return Tokens(pixels, config.vocab_size, labels if config.num_classes else None)
