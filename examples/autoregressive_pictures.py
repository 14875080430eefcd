"""Pictures of your own, in a folder or a data set, as integers on the grid of an autoregressive model."""

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
    printable,
    readable_pictures,
    set_apart,
    visible,
)
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from modeling_axial import AxialDecoderConfig
from modeling_axial.image_processing_axial import convert_channels, scale_to_8_bits

# Folders


def open_folders(train_dir: str, validation_dir: str | None) -> PictureFolder:
    """
    Pictures in one subfolder for each class or, without classes, directly in the folder; these are one class with the
    name of the folder. `validation_dir`, which may be None, has the same form.

    Raises:
        `ValueError`: as `PictureFolder`, and for two folders of different forms.
    """
    forms = [has_classes(folder) for folder in (train_dir, validation_dir or train_dir)]
    if forms[0] != forms[1]:
        with_classes, without = (train_dir, validation_dir) if forms[0] else (validation_dir, train_dir)
        raise ValueError(
            f"{with_classes} has a subfolder for each class and {without} has none: both must have, or none"
        )
    if not forms[0]:
        return PlainFolders(train_dir, validation_dir)
    if sum(path.is_dir() for path in visible(Path(train_dir))) == 1:
        raise ValueError(
            f"{train_dir} has only one class; there must be two at least, or, for a model without classes, the "
            "pictures must lie in the folder itself"
        )
    return PictureFolder(train_dir, validation_dir)


class PlainFolders(PictureFolder):
    """One folder of pictures without classes, or two."""

    def __init__(self, train_dir: str, validation_dir: str | None):
        folders = [train_dir] if validation_dir is None else [train_dir, validation_dir]
        parts = [plain_pictures(Path(folder)) for folder in folders]
        names = [printable(Path(folder).resolve().name) for folder in folders]
        self.name = names[-1]
        self.trained_on, self.measured_on = (f"the folder `{name}`" for name in (names[0], names[-1]))
        self.label_names = [class_name(Path(train_dir).resolve())]
        self.train = {self.label_names[0]: parts[0][0]}
        self.validation = None if validation_dir is None else {self.label_names[0]: parts[1][0]}
        self.notes = notes_on([path for _, others in parts for path in others])


def has_classes(folder: str) -> bool:
    return Path(folder).is_dir() and any(path.is_dir() for path in visible(Path(folder)))


def plain_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """(the pictures of a folder in alphabetical order; the files that are none by their names)."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there, or no folder")
    files = visible(folder)
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise ValueError(
            f"{folder} has no pictures; it must hold some, or one folder of them for each class, in files whose names "
            f"end in one of {' '.join(PICTURE_SUFFIXES)}"
        )
    return pictures, [file for file in files if file not in pictures]


def notes_on(no_pictures: list[Path]) -> list[str]:
    return [f"{len(no_pictures)} files are no pictures by their names: {first_few(no_pictures)}"] if no_pictures else []


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
    with a class where there are several. Where nothing else is to be measured on, a share of each class is held out.

    Raises:
        `ValueError`: on all processes, as `set_apart` and `readable_pictures`.
    """

    def __init__(
        self,
        pictures: PictureFolder | HubPictures,
        config: AxialDecoderConfig,
        accelerator: Accelerator,
        validation_share: float,
        seed: int,
        num_workers: int = 0,
        skip_broken: bool = False,
    ):
        self.hub_id, self.license, self.name = pictures.hub_id, pictures.license, pictures.name
        self.trained_on, self.measured_on = pictures.trained_on, pictures.measured_on
        train, held_out = pictures.datasets(GridProcessor(config))
        if held_out is None:
            train, held_out = set_apart(train, pictures.label_names, validation_share, seed)
            apart = f"{len(held_out)} pictures held out"
            self.name, self.trained_on = f"{pictures.name}, {apart}", f"{pictures.trained_on}, without {apart}"
            self.measured_on = f"{apart} of {pictures.trained_on}"
        self.train, self.held_out = (
            read_tokens(
                readable_pictures(part, pictures.label_names, accelerator, num_workers, skip_broken),
                config,
                num_workers,
            )
            for part in (train, held_out)
        )


def read_tokens(dataset: Dataset, config: AxialDecoderConfig, num_workers: int = 0) -> Tokens:
    """All (pixels, label) of a data set whose processor was a `GridProcessor`."""
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, generator=torch.Generator())
    pixels = np.empty((len(loader), config.num_channels, *config.image_size), np.uint8)
    labels = np.empty(len(loader), np.int64)
    for row, (picture, label) in enumerate(loader):
        pixels[row], labels[row] = picture, label
    return Tokens(pixels, config.vocab_size, labels if config.num_classes else None)
