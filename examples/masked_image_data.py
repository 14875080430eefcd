"""Pictures without labels, patches of them to hide, and what simple fillers put there."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from image_classification_data import (
    PICTURE_SUFFIXES,
    Digits,
    PictureFiles,
    printable,
    readable_pictures,
)
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from modeling_axial.training import seeded_generator

# Both kinds of data have: for the metadata of a model card `name` and `hub_id`, of what is measured on, and `license`;
# `trained_on` and `measured_on`, in words; and `datasets()`, pictures to learn from and to measure on, whose items
# begin with `pixel_values`.


class UnlabelledDigits:
    """The digits of `Digits`, without their labels."""

    hub_id, license, name = Digits.hub_id, Digits.license, Digits.name
    trained_on, measured_on = Digits.trained_on, Digits.measured_on

    def datasets(self, processor: BaseImageProcessor, accelerator: Accelerator, workers: int) -> tuple[Dataset, ...]:
        return Digits().datasets(processor)


class PictureTrees:
    """
    All pictures below two folders, however deep, in alphabetical order of their paths. Hidden files are left out, and
    so are files that are no pictures by their names.

    Raises:
        `ValueError`: for a folder that is missing or has no pictures below it.
    """

    hub_id, license = "imagefolder", None

    def __init__(self, train_dir: str, validation_dir: str):
        folders = Path(train_dir), Path(validation_dir)
        train_name, self.name = (printable(folder.resolve().name) for folder in folders)
        self.trained_on, self.measured_on = (f"the pictures in `{name}`" for name in (train_name, self.name))
        self.parts = tuple(map(pictures_below, folders))

    def datasets(self, processor: BaseImageProcessor, accelerator: Accelerator, workers: int) -> tuple[Dataset, ...]:
        """Pictures to learn from and to measure on, each of which is read once. `ValueError`: for any that cannot."""
        name = "pictures"
        return tuple(
            readable_pictures(PictureFiles({name: part}, [name], processor), [name], accelerator, workers)
            for part in self.parts
        )


def pictures_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there, or no folder")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(f"{folder} has no pictures below it, files whose names end in {' '.join(PICTURE_SUFFIXES)}")
    return found


def number_of_hidden(mask_ratio: float, grid_shape: Sequence[int]) -> int:
    """How many cells of a grid are hidden: the nearest number to that share of them, but not none and not all."""
    cells = torch.Size(grid_shape).numel()
    if cells < 2:
        raise ValueError(f"a picture of {cells} patch has none to hide beside one to see; take smaller patches")
    return min(max(1, round(mask_ratio * cells)), cells - 1)


def random_masks(
    count: int,
    mask_ratio: float,
    grid_shape: Sequence[int],
    generator: torch.Generator,
    process_index: int = 0,
    num_processes: int = 1,
) -> torch.Tensor:
    """
    Boolean (count, *grid), True for cells to hide, equally many of each picture, all choices equally likely. Processes
    that share a step give equal generators, and get what one process with all their pictures would, in which picture
    `i` of this one is number `i·num_processes + process_index`.
    """
    cells = torch.Size(grid_shape).numel()
    draws = torch.rand(count * num_processes, cells, generator=generator)[process_index::num_processes]
    hidden = draws.argsort(1).argsort(1) < number_of_hidden(mask_ratio, grid_shape)
    return hidden.unflatten(1, tuple(grid_shape))


class MaskedPictures(Dataset):
    """Items (pixel_values, mask), to measure on: what is hidden of a picture depends on its number alone."""

    def __init__(self, dataset: Dataset, mask_ratio: float, grid_shape: Sequence[int]):
        self.dataset, self.mask_ratio, self.grid_shape = dataset, mask_ratio, grid_shape

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        (mask,) = random_masks(1, self.mask_ratio, self.grid_shape, seeded_generator(index))
        return self.dataset[index][0], mask


# A filler takes pixel_values (B, C, H, W) and the hidden pixels, boolean (B, 1, H, W), and fills them.


def fill_with_mean(pixel_values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden pixels become the mean of all that are seen of their channel."""
    seen = ~hidden
    mean = (pixel_values * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    return torch.where(hidden, mean, pixel_values)


def fill_with_median(pixel_values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden pixels become the median of all that are seen of their channel, the best constant by absolute error."""
    seen = pixel_values.masked_fill(hidden, torch.nan).flatten(2)
    return torch.where(hidden, seen.nanmedian(2).values[..., None, None], pixel_values)


def fill_from_neighbours(pixel_values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden pixels become the mean of those of their 8 neighbours that are known, from the rim inwards."""
    known = (~hidden).to(pixel_values.dtype)
    values = pixel_values * known
    while (known == 0).any():
        counts = F.avg_pool2d(known, 3, 1, 1, divisor_override=1)
        sums = F.avg_pool2d(values, 3, 1, 1, divisor_override=1)
        reached = (known == 0) & (counts > 0)
        values = torch.where(reached, sums / counts.clamp(min=1), values)
        known = torch.where(reached, 1.0, known)
    return values


FILLERS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean of what is seen": fill_with_mean,
    "median of what is seen": fill_with_median,
    "neighbours, from the rim inwards": fill_from_neighbours,
}


def hidden_pixels(masks: torch.Tensor, patch_shape: Sequence[int]) -> torch.Tensor:
    """Masks of cells (B, rows, columns) as those of their pixels (B, 1, H, W)."""
    rows, columns = patch_shape
    return masks.repeat_interleave(rows, 1).repeat_interleave(columns, 2)[:, None]


def hidden_errors(reconstruction: torch.Tensor, pixel_values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The mean absolute error over the hidden pixels of each picture, (B,)."""
    errors = (reconstruction - pixel_values).abs() * hidden
    return errors.flatten(1).sum(1) / (hidden.flatten(1).sum(1) * pixel_values.shape[1])
