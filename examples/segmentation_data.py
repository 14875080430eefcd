"""Grids with a class for each pixel: folders of pictures or arrays with their masks."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from grid_augmentation import random_starts
from image_classification_data import first_few, printable
from PIL import Image
from transformers.utils import cached_file

from modeling_axial import AxialConfig
from modeling_axial.grid_processing_axial import AxialGridProcessor
from modeling_axial.image_processing_axial import AxialImageProcessor, read_image

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".webp")
ARRAY_SUFFIXES = (".npy", ".nii", ".nii.gz", ".tif", ".tiff")
LOSSY_SUFFIXES = (".jpeg", ".jpg", ".webp")  # where labels would come back as others
Processor = AxialImageProcessor | AxialGridProcessor


# All kinds of data have: for the metadata of a model card `name` and `hub_id`, of what is measured on, and `license`;
# `trained_on` and `measured_on`, in words; `what_is_taken`, likewise, and `pixels_of_shape`, which part of the shape of
# that are its pixels; `notes`, lines that a user should read; `label_names`; `train` and `held_out`, lists of
# `LabelledGrid`; `num_channels`; `orientation`, of NIfTI volumes that of all of them, else None; and `make_processor`.


@dataclass
class LabelledGrid:
    """`values` (C, *pixels), as they were read and perhaps still in their file; `labels` (*pixels), whole numbers."""

    name: str
    values: np.ndarray
    labels: np.ndarray

    def crop(self, starts: Sequence[int], sides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(values, labels) of the part that begins at `starts`, and ends with the grid where it is shorter."""
        part = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        return self.values[:, *part], self.labels[part]


class FolderPairs:
    """
    Folders of grids and of their masks, paired by the names of the files without their endings: `images/a.png` with
    `masks/a.png`, `images/b.nii.gz` with `masks/b.npy`. All is read at once, so that nothing bad ends a run later, and
    stays in memory, but for `.npy` and `.nii` files, which stay on the disk.

    Grids are either all pictures (`PICTURE_SUFFIXES`; the model says whether in grey or in colour, and sees them as
    `AxialImageProcessor` does), or all arrays (`ARRAY_SUFFIXES`) of any number of axes, with the channels, if they have
    some, before or behind the axes of their mask. Arrays are normalised by the mean and the deviation of the training
    part. Masks may be any of these but lossy ones, and hold a class for each pixel, or the model's
    `semantic_loss_ignore_index` where none is known; with `binary` all that is above 0 is class 1.

    Voxels of NIfTI files are taken as they lie in the file, whatever their spacing, which `notes` tell; resample them
    before if they differ much. What must not differ is the affine map of a grid and its mask, and the orientation of
    all grids.

    Raises:
        `ValueError`: for a folder that is missing or empty, a file without a partner, kinds of files that do not go
            together, what cannot be read, shapes or affine maps that differ, labels that are no classes, and fewer than
            two classes.
        `ModuleNotFoundError`: without nibabel or tifffile, where there are such files.
    """

    hub_id, license = "imagefolder", None

    def __init__(
        self,
        config: AxialConfig,
        train: tuple[str, str],
        held_out: tuple[str, str],
        label_names: Sequence[str] | None = None,
        binary: bool = False,
    ):
        pairs = [paired_files(*map(Path, folders)) for folders in (train, held_out)]
        self.pictures = all_pictures([grid for pair in pairs for grid, _ in pair.values()])
        if self.pictures:
            check_pictures(config)
        self.geometries: dict[str, Geometry] = {}
        self.in_colour: list[Path] = []  # pictures that the model sees in grey
        self.train, self.held_out = ([self._read(*files, config, binary) for files in pair.values()] for pair in pairs)
        self.notes = notes_on_geometry(self.geometries) + notes_on_colour(self.in_colour)
        self.orientation = next((geometry.orientation for geometry in self.geometries.values()), None)
        self.label_names = check_labels(
            self.train, self.held_out, label_names, binary, config.semantic_loss_ignore_index
        )
        self.num_channels = same_number_of_channels(self.train + self.held_out)
        names = [printable(Path(folders[0]).resolve().name) for folders in (train, held_out)]
        self.trained_on, self.measured_on = (
            f"the folder `{name}`, {len(grids)} grids"
            for name, grids in zip(names, (self.train, self.held_out), strict=True)
        )
        self.name = names[1]
        self.what_is_taken = "An array of a picture, its channels last" if self.pictures else "An array, channels first"
        self.pixels_of_shape = "[:2]" if self.pictures else f"[-{config.num_axes}:]"

    def _read(self, grid: Path, mask: Path, config: AxialConfig, binary: bool) -> LabelledGrid:
        labels, of_mask = read_array(mask)
        if labels.ndim != config.num_axes:
            raise ValueError(
                f"{mask} has shape {labels.shape}; a mask has the {config.num_axes} axes of the model, and no channels"
            )
        if self.pictures:
            values, geometry = read_picture(grid, config.num_channels), None
            with Image.open(grid) as picture:
                if config.num_channels == 1 and Image.getmodebase(picture.mode) != "L":
                    self.in_colour.append(grid)
        else:
            values, geometry = read_array(grid)
        if geometry is not None:
            self.geometries[str(grid)] = geometry
            if of_mask is not None and not np.allclose(geometry.affine, of_mask.affine, atol=1e-3):
                raise ValueError(
                    f"{grid} and {mask} have other affine maps, so they lie elsewhere: resample one to the other, "
                    f"got {geometry.affine.tolist()} and {of_mask.affine.tolist()}"
                )
        values = channels_first(values, labels.shape, grid, mask)
        check_finite(values, grid)
        return LabelledGrid(str(grid), values, whole(labels, mask, binary))

    def make_processor(self, config: AxialConfig) -> Processor:
        if not self.pictures:
            return fitted_processor(self.train, config)
        return picture_processor(config, self.num_channels)


def picture_processor(config: AxialConfig, num_channels: int) -> AxialImageProcessor:
    """A processor of pictures as large as they are; `ValueError` for another number of channels."""
    if config.num_channels != num_channels:
        raise ValueError(f"channel_components={config.num_channels} is for arrays, and these are pictures")
    return AxialImageProcessor(
        num_channels=config.num_channels,
        patch_size=config.patch_shape,
        num_labels=config.num_labels,
        ignore_index=config.semantic_loss_ignore_index,
        do_resize=False,
        do_pad=True,
    )


def fitted_processor(train: Sequence[LabelledGrid], config: AxialConfig) -> AxialGridProcessor:
    """
    A processor of arrays that has learnt mean and deviation of each channel, and, if the model has fewer channels than
    they, as many principal components.
    """
    num_channels = len(train[0].values)
    processor = AxialGridProcessor(
        patch_size=config.patch_shape,
        num_channels=num_channels,
        num_labels=config.num_labels,
        ignore_index=config.semantic_loss_ignore_index,
    )
    processor.fit(grid.values for grid in train)
    if config.num_channels < num_channels:
        processor.fit_components((grid.values for grid in train), config.num_channels)
    return processor


# What the model gets


def as_batch(
    processor: Processor,
    values: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    size: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Grids (C, *pixels) and their labels as the model takes them, padded to `size`, or to the largest."""
    options = {}
    if size is not None:
        pictures = isinstance(processor, AxialImageProcessor)
        options["pad_size"] = dict(zip(("height", "width"), size, strict=True)) if pictures else tuple(size)
    return dict(
        processor(
            list(values),
            segmentation_maps=None if labels is None else list(labels),
            input_data_format="channels_first",
            return_tensors="pt",
            **options,
        )
    )


def for_model(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on the device of the model, without a mask that masks nothing: attention is faster without."""
    needed = {name: tensor for name, tensor in batch.items() if name != "attention_mask" or not tensor.all()}
    return {name: tensor.to(device) for name, tensor in needed.items()}


def random_crops(
    grids: Sequence[LabelledGrid],
    size: Sequence[int],
    processor: Processor,
    generator: torch.Generator,
    process_index: int = 0,
    num_processes: int = 1,
) -> dict[str, torch.Tensor]:
    """A batch with a crop of each grid, padded to `size` where the grid is smaller. Processes as in `random_starts`."""
    sizes = [grid.labels.shape for grid in grids]
    starts = random_starts(sizes, size, generator, process_index, num_processes)
    values, labels = zip(*(grid.crop(start, size) for grid, start in zip(grids, starts, strict=True)), strict=True)
    return as_batch(processor, values, labels, size)


# Files


def stem_and_suffix(path: Path) -> tuple[str, str]:
    """`a.b` and `.nii.gz` of `a.b.NII.GZ`."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower() + suffix
    return path.name[: len(path.name) - len(suffix)], suffix


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The visible files of a folder by their names without ending, in alphabetical order."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there, or no folder")
    files: dict[str, Path] = {}
    known = PICTURE_SUFFIXES + ARRAY_SUFFIXES
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        stem, suffix = stem_and_suffix(path)
        if suffix not in known or not path.is_file():
            raise ValueError(
                f"{path} is no picture and no array by its name, which must end in one of {' '.join(known)}"
            )
        if stem in files:
            raise ValueError(f"{files[stem]} and {path} have one name without their endings; give one another name")
        files[stem] = path
    if not files:
        raise ValueError(f"{folder} is empty")
    return files


def paired_files(grids: Path, masks: Path) -> dict[str, tuple[Path, Path]]:
    """{name: (grid, mask)}, in alphabetical order."""
    of_grids, of_masks = files_by_stem(grids), files_by_stem(masks)
    for one, other, folder, what in ((of_grids, of_masks, masks, "mask"), (of_masks, of_grids, grids, "grid")):
        if alone := sorted(one.keys() - other.keys()):
            raise ValueError(
                f"{len(alone)} files have no {what} of the same name in {folder}: {first_few([one[s] for s in alone])}"
            )
    if lossy := [path for path in of_masks.values() if stem_and_suffix(path)[1] in LOSSY_SUFFIXES]:
        raise ValueError(f"masks must be kept without loss, which {first_few(lossy)} are not; take PNG")
    return {stem: (of_grids[stem], of_masks[stem]) for stem in of_grids}


def all_pictures(paths: Sequence[Path]) -> bool:
    """Whether files are pictures, all, or arrays; `ValueError` for some of both."""
    pictures = [path for path in paths if stem_and_suffix(path)[1] in PICTURE_SUFFIXES]
    if pictures and len(pictures) < len(paths):
        arrays = [path for path in paths if path not in pictures]
        raise ValueError(
            f"{first_few(pictures)} are pictures and {first_few(arrays)} arrays, which are normalised in other ways; "
            "convert them to one kind"
        )
    return bool(pictures)


@dataclass(frozen=True)
class Geometry:
    """Of a NIfTI file: the affine map from voxels to millimetres, their spacing, and where the axes lead (`LPS`)."""

    affine: np.ndarray
    spacing: tuple[float, ...]
    orientation: str


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """`ValueError` that names the file, for all that goes wrong but a package that is missing."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # readers meet bad bytes with nearly every type of exception
        message = f"{error}" if str(path) in f"{error}" else f"{path} cannot be read: {error}"
        raise ValueError(printable(message)) from error


def read_picture(path: Path, num_channels: int) -> np.ndarray:
    """A picture as `AxialImageProcessor` sees it: uint8 (num_channels, height, width)."""
    with errors_naming(path):
        return as_channels(read_image(path), num_channels)


def as_channels(picture: Image.Image, num_channels: int) -> np.ndarray:
    """An opened picture as `AxialImageProcessor` sees it: uint8 (num_channels, height, width)."""
    processor = AxialImageProcessor(num_channels=num_channels, do_resize=False, do_rescale=False, do_normalize=False)
    return processor(picture)["pixel_values"][0]


def read_array(path: Path) -> tuple[np.ndarray, Geometry | None]:
    """(the numbers of a file, where they lie if it says so). Of a picture with a palette, those of its colours."""
    suffix = stem_and_suffix(path)[1]
    with errors_naming(path):
        if suffix == ".npy":
            return np.load(path, mmap_mode="r"), None
        if suffix in (".nii", ".nii.gz"):
            return read_nifti(path)
        if suffix in (".tif", ".tiff"):
            return read_tiff(path), None
        return np.asarray(read_image(path)), None


def read_nifti(path: Path) -> tuple[np.ndarray, Geometry]:
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "NIfTI files are read by nibabel: pip install 'modeling-axial[segmentation]'"
        ) from error

    image = nibabel.load(path)
    affine = image.affine
    spacing = tuple(float(length) for length in nibabel.affines.voxel_sizes(affine).round(4))
    return np.asanyarray(image.dataobj), Geometry(affine, spacing, "".join(map(str, nibabel.aff2axcodes(affine))))


ORIENTATION_FILE = "orientation.json"


def save_orientation(folder: Path, orientation: str | None) -> None:
    """Beside a model, so that `check_orientation` refuses volumes that lie otherwise than those it has learnt from."""
    path = folder / ORIENTATION_FILE
    if orientation is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps({"orientation": orientation}) + "\n", encoding="utf-8")


def check_orientation(checkpoint: str, geometry: Geometry, file: Path) -> None:
    """`ValueError` where the axes of a volume lead elsewhere than those of what the model has learnt from."""
    stored = cached_file(
        checkpoint,
        ORIENTATION_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,  # a model that was fetched without it is used offline as ever
    )
    if stored is None:
        return
    known = json.loads(Path(stored).read_text(encoding="utf-8"))["orientation"]
    if geometry.orientation != known:
        raise ValueError(
            f"the axes of {file} lead to {geometry.orientation}, those of the volumes that the model has learnt from "
            f"to {known}; bring it to that orientation, such as by nibabel.as_closest_canonical, which leads to RAS"
        )


def read_tiff(path: Path) -> np.ndarray:
    """All pages of a TIFF file."""
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TIFF files are read by tifffile: pip install 'modeling-axial[segmentation]'"
        ) from error

    return tifffile.imread(path)


def notes_on_geometry(geometries: dict[str, Geometry]) -> list[str]:
    """What to know of the spacing of voxels; `ValueError` where the axes of some grids lead elsewhere than others'."""
    by_orientation = {geometry.orientation: name for name, geometry in geometries.items()}
    if len(by_orientation) > 1:
        (one, name), (other, another), *_ = by_orientation.items()
        raise ValueError(
            f"the axes of {name} lead to {one}, those of {another} to {other}; bring all to one orientation, such as "
            "by nibabel.as_closest_canonical"
        )
    spacings = np.array([geometry.spacing for geometry in geometries.values()])
    if not len(spacings):
        return []
    least, most = spacings.min(0), spacings.max(0)
    if not np.allclose(least, most, rtol=0.01):
        return [
            f"voxels measure {in_words(least)} to {in_words(most)} mm in different files and are taken as they lie: "
            "resample them if sizes matter"
        ]
    if not np.allclose(least, least[0], rtol=0.01):
        return [
            f"voxels measure {in_words(least)} mm and are taken as they lie: a patch_size and crop_size of their own "
            "for each axis can make up for it"
        ]
    return []


def notes_on_colour(in_colour: Sequence[Path]) -> list[str]:
    if not in_colour:
        return []
    return [
        f"{len(in_colour)} pictures are stored in colour, such as {in_colour[0]}, and the model sees them in grey: for "
        "colour set num_channels to 3, in a copy of the preset"
    ]


def in_words(lengths: Sequence[float]) -> str:
    return " x ".join(f"{length:g}" for length in lengths)


# What must hold for values and labels


def check_pictures(config: AxialConfig) -> None:
    """`ValueError` for a model that is not one of pictures in grey or in colour."""
    if config.num_axes != 2:
        raise ValueError(f"pictures have 2 axes; the model has {config.num_axes}")
    if config.num_channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels; the model has num_channels={config.num_channels}")


def channels_first(values: np.ndarray, pixels: tuple[int, ...], grid: Path, mask: Path) -> np.ndarray:
    """(*pixels), (C, *pixels) or (*pixels, C) -> (C, *pixels), as a view."""
    if values.shape == pixels:
        return values[None]
    if values.ndim == len(pixels) + 1:
        if values.shape[1:] == pixels:
            return values
        if values.shape[:-1] == pixels:
            return np.moveaxis(values, -1, 0)
    raise ValueError(
        f"{grid} has shape {values.shape} and its mask {mask} {pixels}: they must have the same pixels, and the grid "
        "may have channels before or behind them"
    )


def pixels_first(values: np.ndarray, num_axes: int, num_channels: int, grid: Path) -> np.ndarray:
    """
    (*pixels), (C, *pixels) or (*pixels, C) of so many axes and channels -> (C, *pixels), as a view; the channels are
    the first dim if both could be.
    """
    if values.ndim == num_axes and num_channels == 1:
        return values[None]
    if values.ndim == num_axes + 1:
        if values.shape[0] == num_channels:
            return values
        if values.shape[-1] == num_channels:
            return np.moveaxis(values, -1, 0)
    raise ValueError(
        f"{grid} has shape {values.shape}; the model takes {num_axes} axes, and {num_channels} channels before or "
        "behind them"
    )


def check_finite(values: np.ndarray, grid: Path) -> None:
    if values.dtype.kind not in "buif":
        raise ValueError(f"{grid} has values of {values.dtype}; they must be real numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(
            f"{grid} holds values that are not finite; fill them in, and give their pixels the label ignore_index if "
            "they are not to count"
        )


def whole(labels: np.ndarray, mask: Path | str, binary: bool) -> np.ndarray:
    """Labels as integers, for which numbers like 1.0 pass, as NIfTI files often have them."""
    if binary:
        return (np.asarray(labels) > 0).astype(np.uint8)
    if labels.dtype.kind in "bui":
        return labels
    if labels.dtype.kind != "f":
        raise ValueError(f"{mask} must hold classes as whole numbers, got {labels.dtype}")
    fractions = ~(labels == np.rint(labels))  # NaN is one, too
    if fractions.any():
        raise ValueError(
            f"{mask} holds {labels[fractions][0]:g}; classes are whole numbers, so decide from where on a probability "
            "is a class"
        )
    return labels.astype(np.int64)


def same_number_of_channels(grids: Sequence[LabelledGrid]) -> int:
    first = grids[0]
    for grid in grids:
        if len(grid.values) != len(first.values):
            raise ValueError(
                f"{grid.name} has {len(grid.values)} channels, {first.name} {len(first.values)}; all must have the same"
            )
    return len(first.values)


def check_labels(
    train: Sequence[LabelledGrid],
    held_out: Sequence[LabelledGrid],
    label_names: Sequence[str] | None,
    binary: bool,
    ignore_index: int,
) -> tuple[str, ...]:
    """
    The names of the classes: those that were given, or as many as there are in the training part. `ValueError` for a
    label that is none of them and not `ignore_index`, and for fewer than two classes there.
    """
    labels = {grid.name: labels_of(grid, ignore_index) for grid in (*train, *held_out)}
    found = set().union(*(labels[grid.name] for grid in train))
    if len(found) < 2:
        raise ValueError(
            f"the masks of the training part have the labels {sorted(found)} only (and {ignore_index}, which does not "
            "count): there must be two classes at least; masks of 0 and another number need --binary_masks"
        )
    if label_names is None:
        label_names = ("background", "foreground") if binary else tuple(map(str, range(max(found) + 1)))
    for name, there in labels.items():
        if wrong := [label for label in there if not 0 <= label < len(label_names)]:
            raise ValueError(
                f"the mask of {name} holds the label {min(wrong)}; labels are 0 to {len(label_names) - 1} "
                f"({len(label_names)} classes), or {ignore_index} for pixels that do not count (ignore_index)"
            )
    return tuple(label_names)


def labels_of(grid: LabelledGrid, ignore_index: int) -> set[int]:
    return set(np.unique(grid.labels).tolist()) - {ignore_index}
