"""
What a trained model says of files:

    python examples/predict.py outputs/nuclei2d cells/*.png --output_dir predictions
    python examples/predict.py outputs/mine head.nii.gz --output_dir predictions --tile_size 64
    python examples/predict.py outputs/sst ostia.nc --output_dir predictions --rollout 6
    python examples/predict.py . digit.png --output_dir predictions

A model, in a folder or on the Hub, that gives each pixel a class writes the classes of each file in its kind: a
coloured PNG, `.npy`, TIFF, or NIfTI that lies where the volume lies. With `--tile_size` large grids are seen in parts,
each of which knows its place, and the memory of the model is that of a tile. A model of `train_dense_prediction.py`
writes what comes after the last steps of a file, in its units and at its times, as NetCDF or `.npy`. One that
classifies pictures or clips writes `classes.csv`. Needs the extras that such files need for training.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from dense_prediction_data import ForecastSetup, read_fields, times_after
from dense_prediction_scores import roll_out
from image_classification_data import check_checkpoint
from PIL import Image
from segmentation_data import (
    PICTURE_SUFFIXES,
    check_orientation,
    check_pictures,
    errors_naming,
    pixels_first,
    read_array,
    read_picture,
    stem_and_suffix,
)
from segmentation_report import class_colours
from segmentation_scores import predict
from tiles import axis_numbers, numbers_per_axis
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from video_classification_data import count_frames, read_frames

import modeling_axial
from modeling_axial.image_processing_axial import read_image
from modeling_axial.video_processing_axial import sampled_frames


@dataclass
class Job:
    """A model, its processor, and what the command line says. `checkpoint`: where these two are from."""

    checkpoint: str
    model: PreTrainedModel
    processor: Any
    output_dir: Path
    device: torch.device
    tile_size: str | None
    tiles_at_once: int
    mirror_axes: str
    rollout: int


def segment(job: Job, files: Sequence[Path]) -> None:
    """Writes the class of each pixel of each file; `semantic_loss_ignore_index` where an array has no numbers."""
    num_axes, num_labels = job.model.config.num_axes, job.model.config.num_labels
    tile = numbers_per_axis(job.tile_size, "tile_size", num_axes)
    mirrored = axis_numbers(job.mirror_axes, "mirror_axes", num_axes)
    for file in tqdm(files, unit="file", disable=len(files) == 1 or None):
        stem, suffix = stem_and_suffix(file)
        geometry = None
        if suffix in PICTURE_SUFFIXES:
            check_pictures(job.model.config)
            values, suffix = read_picture(file, job.model.config.num_channels), ".png"
        else:
            values, geometry = read_array(file)
            if geometry is not None:
                check_orientation(job.checkpoint, geometry, file)
            values = pixels_first(values, num_axes, job.processor.num_channels, file)
        labels = predict(
            job.model, values, job.processor, job.device, tile, job.tiles_at_once, mirrored, len(files) == 1
        )
        labels = labels.numpy().astype(np.min_scalar_type(num_labels - 1))
        if (missing := missing_pixels(values)).any():
            ignored = job.model.config.semantic_loss_ignore_index
            labels = np.where(missing, np.array(ignored, np.min_scalar_type(ignored)), labels)
        write_labels(job.output_dir / f"{stem}{suffix}", labels, num_labels, geometry and geometry.affine)


def missing_pixels(values: np.ndarray) -> np.ndarray:
    """Boolean (*pixels), of (C, *pixels): where no channel has a number, and so no class is known."""
    return np.isnan(values).all(0) if values.dtype.kind == "f" else np.zeros(values.shape[1:], bool)


def write_labels(path: Path, labels: np.ndarray, num_labels: int, affine: np.ndarray | None) -> None:
    """Classes (*pixels) in the kind of file that the name says; in PNG as numbers of a palette."""
    suffix = stem_and_suffix(path)[1]
    if suffix == ".png":
        picture = Image.fromarray(labels)
        if num_labels <= 256:
            picture.putpalette((255 * class_colours(num_labels)(range(num_labels))[:, :3]).astype(np.uint8).tobytes())
        picture.save(path)
    elif suffix == ".npy":
        np.save(path, labels)
    elif affine is not None:
        import nibabel  # which has read the volume

        nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    else:
        import tifffile

        tifffile.imwrite(path, labels)


def classify(job: Job, files: Sequence[Path]) -> None:
    """Writes `classes.csv`: of each picture or clip the likeliest class, and the probability of each."""
    if job.model.config.num_labels == 1 or job.model.config.problem_type == "multi_label_classification":
        raise ValueError(f"{job.checkpoint} gives numbers or several classes at once, and not one of its classes")
    names = [job.model.config.id2label[number] for number in range(job.model.config.num_labels)]
    read: Callable[[Path], Any] = read_image
    if isinstance(job.model, modeling_axial.AxialForVideoClassification):
        read = clip_reader(files, job.processor.num_frames)
    with (job.output_dir / "classes.csv").open("w", newline="", encoding="utf-8") as output:
        table = csv.writer(output)
        table.writerow(["file", "class", *names])
        for file in tqdm(files, unit="file", disable=None):
            with errors_naming(file):
                batch = job.processor([read(file)], return_tensors="pt").to(job.device)
            with torch.no_grad():
                probabilities = job.model(**batch).logits[0].softmax(-1).tolist()
            best = max(range(len(names)), key=probabilities.__getitem__)
            table.writerow([file, names[best], *(f"{probability:.6f}" for probability in probabilities)])


def clip_reader(files: Sequence[Path], wanted: int | None) -> Callable[[Path], np.ndarray]:
    """
    A function that reads those frames of one of the files which the processor takes, so that never more are held in
    memory. All files are decoded once before, so that none ends the work later; `ValueError` for what is no clip, or
    has fewer than the `wanted` frames that the model has learnt from.
    """
    counts = {}
    for file in files:
        with errors_naming(file):
            counts[file] = count_frames(file, wanted or 1)
    return lambda file: read_frames(file, sampled_frames(counts[file], wanted))


@torch.no_grad()
def forecast(job: Job, files: Sequence[Path]) -> None:
    """Writes for each file of fields what comes after its last steps, `lead_time`, 2 · `lead_time`, ... steps later."""
    setup, climatology = ForecastSetup.load(job.checkpoint)
    if job.rollout > 1 and setup.history > 1 and setup.lead_time > 1:
        raise ValueError(
            f"the forecasts of this model, {setup.lead_time} steps ahead from the last {setup.history}, lack the steps "
            "between them: rollout must be 1"
        )
    for file in tqdm(files, unit="file", disable=None):
        is_array = stem_and_suffix(file)[1] == ".npy"
        fields = read_fields(file, job.model.config.num_axes, () if is_array else setup.channel_names, setup.time_name)
        if len(fields.values) < setup.history:
            raise ValueError(f"{file} has {len(fields.values)} steps; a forecast is made from {setup.history}")
        if fields.values.shape[1:] != climatology.shape[1:]:
            raise ValueError(
                f"{file} has channels and grid {fields.values.shape[1:]}, but the model was trained on "
                f"{climatology.shape[1:]}"
            )
        if len(climatology) > 1 and not fields.seasons.any():
            raise ValueError(f"{file} has no calendar months, which the climatology of the model needs")
        if not is_array:  # which tells nothing of these
            setup.check(fields, str(file))
        seasons = fields.seasons[-setup.history :] % len(climatology)
        past = torch.from_numpy(fields.values[-setup.history :] - climatology[seasons])
        anomalies = roll_out(job.model, setup, job.processor, past[None], job.rollout, job.device)[0].cpu().numpy()
        steps_ahead = setup.lead_time * np.arange(1, job.rollout + 1)
        values = anomalies + climatology[(seasons[-1] + fields.months * steps_ahead) % len(climatology)]
        write_forecast(job.output_dir / file.name, values, steps_ahead, fields, setup, file)


def write_forecast(
    path: Path, values: np.ndarray, steps_ahead: np.ndarray, fields: Any, setup: ForecastSetup, source: Path
) -> None:
    """
    Fields (steps, channels, *grid) in the form of those of the source: `.npy`, channels last if it has them, or NetCDF
    with units and coordinates, among them the times that are forecast, where those of the source tell.
    """
    if path.suffix == ".npy":
        values = np.moveaxis(values, 1, -1)
        np.save(path, values[..., 0] if np.load(source, mmap_mode="r").ndim < values.ndim else values)
        return
    import xarray  # which has read the fields

    with xarray.open_dataset(source, decode_timedelta=False) as given:
        dims = [dim for dim in given[setup.channel_names[0]].dims if dim != setup.time_name]
        step = f"steps of {fields.step}" if fields.step != "step" else "steps"
        ahead = xarray.DataArray(
            steps_ahead, dims="steps_ahead", attrs={"long_name": f"{step} after {fields.times[-1]}"}
        )
        coordinates = {name: given[name] for name in given.coords if set(given[name].dims) <= set(dims)}
        if setup.time_name in given.coords:
            known = given[setup.time_name]
            times = times_after(known.values, fields.months, steps_ahead)
            if times is not None:
                attributes = {name: value for name, value in known.attrs.items() if name != "bounds"}
                coordinates[setup.time_name] = xarray.DataArray(times, dims="steps_ahead", attrs=attributes)
        forecasts = {
            name: xarray.DataArray(
                values[:, channel], dims=("steps_ahead", *dims), attrs={"units": unit} if unit else {}
            )
            for channel, (name, unit) in enumerate(zip(setup.channel_names, fields.units, strict=True))
        }
        dataset = xarray.Dataset(forecasts, coordinates | {"steps_ahead": ahead})
        dataset.to_netcdf(path.with_suffix(".nc"))


PREDICTORS: dict[str, Callable[[Job, Sequence[Path]], None]] = {
    "AxialForImageClassification": classify,
    "AxialForVideoClassification": classify,
    "AxialForSemanticSegmentation": segment,
    "AxialForDensePrediction": forecast,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="Open this trained model and its processor: a folder, or a model on the Hub.")
    add("files", nargs="+", type=Path, help="Look at these.")
    add("--output_dir", type=Path, required=True, help="Write the results here, under the same names.")
    add(
        "--tile_size", help="See tiles of so many pixels, whole patches: one number, or one for each axis, with commas."
    )
    add("--tiles_at_once", type=int, default=1, help="Show the model so many tiles together. Default: 1.")
    add(
        "--mirror_axes",
        default="",
        help="Take the mean over the mirror images along these axes, with commas between: twice the work for each.",
    )
    add("--rollout", type=int, default=1, help="Make so many forecasts in a row, each from the one before. Default: 1.")
    add("--device", help="Compute there. Default: an accelerator if there is one.")
    arguments = parser.parse_args()
    job, files = prepare(arguments)
    PREDICTORS[type(job.model).__name__](job, files)
    print(f"Written to {job.output_dir}.")


def prepare(arguments: argparse.Namespace) -> tuple[Job, list[Path]]:
    """
    Opens the model, and looks at the files by their names.

    Raises:
        `ValueError`: for a model that is none of `PREDICTORS`, files that are missing, or whose results would have one
            name or lie in their place, and options that mean nothing for the model.
    """
    files, output_dir = arguments.files, arguments.output_dir
    if missing := [str(file) for file in files if not file.exists()]:
        raise ValueError(f"no such file: {', '.join(missing)}")
    if output_dir.resolve() in {file.resolve().parent for file in files}:
        raise ValueError(f"the results would lie among the files in {output_dir}: take another output_dir")
    names = [stem_and_suffix(file)[0] for file in files]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several files have the names {', '.join(twice)} without their endings: predict them apart")
    if arguments.rollout < 1 or arguments.tiles_at_once < 1:
        raise ValueError("rollout and tiles_at_once must be at least 1")
    check_checkpoint(arguments.checkpoint)
    config = AutoConfig.from_pretrained(arguments.checkpoint)
    architecture = (config.architectures or ["nothing"])[0]
    if architecture not in PREDICTORS:
        raise ValueError(f"{arguments.checkpoint} is a checkpoint of {architecture}, none of {', '.join(PREDICTORS)}")
    does = PREDICTORS[architecture]
    if arguments.tile_size is not None and does is not segment:
        raise ValueError(f"tile_size is for models that give each pixel a class, not for {architecture}")
    if arguments.mirror_axes and does is not segment:
        raise ValueError(f"mirror_axes is for models that give each pixel a class, not for {architecture}")
    if arguments.rollout > 1 and does is not forecast:
        raise ValueError(f"rollout is for forecasts, not for {architecture}")
    device = arguments.device or PartialState().device
    model = getattr(modeling_axial, architecture).from_pretrained(arguments.checkpoint).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(arguments.checkpoint)
    output_dir.mkdir(parents=True, exist_ok=True)
    options = arguments.tile_size, arguments.tiles_at_once, arguments.mirror_axes, arguments.rollout
    return Job(arguments.checkpoint, model, processor, output_dir, torch.device(device), *options), files


if __name__ == "__main__":
    main()
