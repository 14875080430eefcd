"""Fields that change in time, to be forecast: from NetCDF, zarr or npy, split by time, their seasonal cycle removed."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_classification_data import first_few, printable
from packaged_files import Package
from torch.utils.data import Dataset
from transformers.utils import cached_file

from modeling_axial import AxialConfig, AxialGridProcessor
from modeling_axial.processor_arrays import describe, pad_end, read

IRIS_SAMPLE_DATA = Package("iris-sample-data", "2.5.2", "iris_sample_data", "fields")
MONTHS = 12
CIRCLE = 360
LATITUDE_UNITS = {"degrees_north", "degree_north", "degree_N", "degrees_N", "degreeN", "degreesN"}  # of the CF rules
LONGITUDE_UNITS = {"degrees_east", "degree_east", "degree_E", "degrees_E", "degreeE", "degreesE"}  # likewise


@dataclass(frozen=True)
class Fields:
    """
    A series of fields on one grid, at even steps of time.

    Attributes:
        values: float32 (time, channels, *grid), NaN where they are missing.
        channel_names, units: of each channel; a unit that is not known is an empty text.
        times: what to call each step.
        seasons: (time,), int: the calendar month of each step, 0 for January, where steps are months, and no whole
            years; else 0.
        step: how long one is, in words.
        weights: float32 (*grid), the cosine of the latitude; None where no latitudes are known.
        months: how many a step has, 0 where steps are not months.
        arcs: of each axis of the grid the degrees of longitude that its points take up, each as much as lies between
            two; None of an axis without longitudes. Empty where nothing is known.
        ends: of each axis of the grid the first and the last coordinate, None where these are no numbers. Likewise.
        name, license, hub_id: for the metadata of a model card.
    """

    values: np.ndarray
    channel_names: tuple[str, ...]
    units: tuple[str, ...]
    times: tuple[str, ...]
    seasons: np.ndarray
    step: str
    weights: np.ndarray | None
    name: str
    license: str | None = None
    hub_id: str = "fields"
    months: int = 0
    arcs: tuple[float | None, ...] = ()
    ends: tuple[tuple[float, float] | None, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        return self.values.shape[2:]


# Reading


def read_npy(path: Path, num_axes: int) -> Fields:
    """An array (time, *grid) or (time, *grid, channels), without a calendar. `ValueError`: as `read_fields`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an array of NumPy: {error}") from error
    shape, _ = describe(array, str(path))
    if len(shape) not in (num_axes + 1, num_axes + 2):
        raise ValueError(
            f"{path} has shape {shape}; with a model of {num_axes} axes it must be (time, *grid) or (time, *grid, "
            f"channels), {num_axes + 1} or {num_axes + 2} dims"
        )
    values = read(array, str(path)).reshape(*shape[: num_axes + 1], -1)
    channels = range(values.shape[-1])
    return Fields(
        values=np.moveaxis(values, -1, 1).astype(np.float32),
        channel_names=tuple(f"channel {channel}" for channel in channels),
        units=("",) * len(channels),
        times=tuple(f"step {number}" for number in range(len(values))),
        seasons=np.zeros(len(values), int),
        step="step",
        weights=None,
        name=printable(path.name),
    )


def read_netcdf(path: Path, num_axes: int, variable_names: Sequence[str], time_name: str) -> Fields:
    """Variables of a NetCDF file or zarr store as channels, in their physical units. `ValueError`: as `read_fields`."""
    for package in ("xarray", "zarr") if path.is_dir() else ("xarray",):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{path} is read by {package}: pip install 'modeling-axial[fields]'")
    import xarray

    try:
        dataset = xarray.open_dataset(path, decode_timedelta=False)  # a unit may be `days` where no date is meant
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    with dataset:
        names = list(variable_names) or [choose_variable(dataset, path, num_axes, time_name)]
        if missing := [name for name in names if name not in dataset.data_vars]:
            raise ValueError(f"{path} has no variable {missing}; its variables are {sorted(dataset.data_vars)}")
        dims = [dim for dim in dataset[names[0]].dims if dim != time_name]
        for name in names:
            variable = dataset[name]
            if time_name not in variable.dims:
                raise ValueError(
                    f"variable {name} of {path} has the dims {variable.dims}, but no time axis {time_name!r}; name it "
                    "by --time_name"
                )
            if set(variable.dims) != {time_name, *dims} or len(dims) != num_axes:
                raise ValueError(
                    f"variable {name} of {path} has the dims {variable.dims}; they must be {time_name} and the "
                    f"{num_axes} axes of the model, the same in all variables"
                )
            describe(variable, f"variable {name} of {path}")
        variables = [dataset[name].transpose(time_name, *dims) for name in names]
        times, seasons, step, months = read_times(variables[0], time_name)
        return Fields(
            values=np.stack([read(variable, name) for name, variable in zip(names, variables, strict=True)], 1).astype(
                np.float32
            ),
            channel_names=tuple(names),
            units=tuple(str(variable.attrs.get("units", "")) for variable in variables),
            times=times,
            seasons=seasons,
            step=step,
            weights=latitude_weights(variables[0].isel({time_name: 0})),
            name=printable(path.name),
            months=months,
            arcs=tuple(longitude_arc(dataset, dim) for dim in dims),
            ends=tuple(coordinate_ends(dataset, dim) for dim in dims),
        )


def choose_variable(dataset: Any, path: Path, num_axes: int, time_name: str) -> str:
    """The one variable of an xarray data set that has time and the axes of the model."""
    found = [name for name, values in dataset.data_vars.items() if len(values.dims) == num_axes + 1]
    found = [name for name in found if time_name in dataset[name].dims]
    if len(found) != 1:
        raise ValueError(
            f"{path} has {len(found)} variables with a time axis {time_name!r} and the {num_axes} axes of the model, "
            f"{found}; say which by --variable_names. Its variables are "
            f"{ {name: values.dims for name, values in dataset.data_vars.items()} }"
        )
    return found[0]


def read_times(variable: Any, time_name: str) -> tuple[tuple[str, ...], np.ndarray, str, int]:
    """`times`, `seasons`, `step` and `months` of `Fields`; `ValueError` for steps that are not even, or go back."""
    count = variable.sizes[time_name]
    if time_name not in variable.coords:
        return tuple(f"step {number}" for number in range(count)), np.zeros(count, int), "step", 0
    coordinate = variable[time_name]
    times, differences = coordinate.values, np.diff(coordinate.values)
    usual = 0  # months of a step
    if times.dtype.kind in "MO":  # a calendar: dates of numpy, or of cftime
        calendar = coordinate.dt
        months = MONTHS * calendar.year.values + calendar.month.values - 1
        between = np.diff(months)
        usual = max(0, most_frequent(between))
        if usual and (between == usual).all():
            step = "month" if usual == 1 else f"{usual} months"
            seasons = months % MONTHS if usual % MONTHS else np.zeros(count, int)
            return tuple(calendar.strftime("%Y-%m").values), seasons, step, usual
        names = tuple(calendar.strftime("%Y-%m-%d %H:%M").values)
    else:
        names = tuple(f"{time_name} {time}" for time in times)
    first = differences[:1]
    even = np.isclose(differences, first, rtol=1e-3, atol=0) if times.dtype.kind == "f" else differences == first
    even = (even & (differences > 0 * first)).astype(bool)
    if not even.all():
        if usual:  # months differ in length, so their days tell nothing of a gap
            even = between == usual
            others = f", and most steps are {usual} month{'s' * (usual > 1)}"
        else:
            others = f", and {names[0]} by {names[1]}"
        wrong = np.flatnonzero(~even)[0]
        raise ValueError(
            f"the steps of {time_name} must be even and go forward, but {names[wrong]} is followed by "
            f"{names[wrong + 1]}{others}; sort them, and fill gaps with missing values"
        )
    return names, np.zeros(count, int), "step", 0


def most_frequent(numbers: np.ndarray) -> int:
    """The number that is there most often, the smallest of several; 0 for none."""
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()]) if len(values) else 0


def times_after(times: np.ndarray, months: int, steps_ahead: Sequence[int]) -> np.ndarray | None:
    """
    The times that lie so many steps after the last of even `times`, which may be dates of numpy or of cftime. Steps of
    `months` lead to the same day of a later month: the last one from a last one, and where the month is too short.
    None where there is no second time that tells how long a step is.
    """
    if len(times) < 2:
        return None
    if not months:
        return np.array([times[-1] + int(ahead) * (times[-1] - times[-2]) for ahead in steps_ahead])
    import pandas  # with which xarray has come

    last = times[-1] if times.dtype.kind == "O" else pandas.Timestamp(times[-1])
    later = [months_later(last, months * int(ahead)) for ahead in steps_ahead]
    return np.array(later if times.dtype.kind == "O" else [date.to_datetime64() for date in later])


def months_later(date: Any, months: int) -> Any:
    """A date of pandas or of cftime some months later, as `times_after` says."""

    def first_day(later: int) -> Any:
        year, month = divmod(MONTHS * date.year + date.month - 1 + later, MONTHS)
        return date.replace(year=year, month=month + 1, day=1)

    def length(later: int) -> int:
        return (first_day(later + 1) - first_day(later)).days

    day = length(months) if date.day == length(0) else min(date.day, length(months))
    return first_day(months).replace(day=day)


def longitude_arc(dataset: Any, dim: str) -> float | None:
    """One of `arcs` of `Fields`, of a dim of a data set of xarray whose longitudes say so by their unit."""
    if dim not in dataset.coords or dataset[dim].attrs.get("units") not in LONGITUDE_UNITS or dataset.sizes[dim] < 2:
        return None
    longitudes = dataset[dim].values.astype(np.float64)
    return len(longitudes) * float(np.median(np.abs(np.diff(longitudes))))


def coordinate_ends(dataset: Any, dim: str) -> tuple[float, float] | None:
    """One of `ends` of `Fields`, of a dim of a data set of xarray."""
    if dim not in dataset.coords or dataset[dim].dtype.kind not in "iuf":
        return None
    first, last = dataset[dim].values[[0, -1]].tolist()
    return float(first), float(last)


def latitude_weights(field: Any) -> np.ndarray | None:
    """Cosine of the latitude (*grid) of a field of xarray, by the units of its coordinates; None without such."""
    for coordinate in field.coords.values():
        if coordinate.attrs.get("units") in LATITUDE_UNITS and set(coordinate.dims) <= set(field.dims):
            latitudes = coordinate.broadcast_like(field).transpose(*field.dims).values
            return np.cos(np.deg2rad(latitudes)).clip(min=0).astype(np.float32)
    return None


def read_fields(path: Path, num_axes: int, variable_names: Sequence[str] = (), time_name: str = "time") -> Fields:
    """
    Fields from a file, held in memory as float32: `.npy`, or whatever xarray opens.

    Raises:
        `ValueError`: for what cannot be read, is no real number, has another number of axes, no or uneven steps of
            time, no such variable, infinite values, or a step without any value. Missing values are NaN, or what the
            file declares as such.
        `ModuleNotFoundError`: without the package xarray, or, for a zarr store, without zarr.
    """
    if not path.exists():
        raise ValueError(f"{path} is not there")
    if path.suffix == ".npy":
        fields = read_npy(path, num_axes)
    else:
        fields = read_netcdf(path, num_axes, variable_names, time_name)
    for name, values in zip(fields.channel_names, fields.values.swapaxes(0, 1), strict=True):
        if infinite := [fields.times[number] for number, field in enumerate(values) if np.isinf(field).any()]:
            raise ValueError(
                f"{name} of {path} holds values that are infinite, or beyond float32, at {first_few(infinite)}; those "
                "that are missing are NaN, or declared by _FillValue"
            )
        if empty := [fields.times[number] for number, field in enumerate(values) if np.isnan(field).all()]:
            raise ValueError(f"{name} of {path} has no values at all at {first_few(empty)}")
    return fields


@dataclass(frozen=True)
class BuiltIn:
    """A file of the package iris-sample-data, whose results we state."""

    file: str
    sha256: str
    variable: str
    name: str

    def read(self, num_axes: int) -> Fields:
        path = IRIS_SAMPLE_DATA.file(f"sample_data/{self.file}", self.sha256)
        fields = read_fields(path, num_axes, [self.variable])
        return Fields(**{**vars(fields), "name": self.name, "license": "other", "hub_id": "iris-sample-data"})


BUILT_IN = {
    "sst": BuiltIn(
        "ostia_monthly.nc",
        "e40d33fef22eabae985dae0fcee7643e127394195cef55a2e40e1f5416d57f98",
        "surface_temperature",
        "OSTIA, monthly sea surface temperature from 5° S to 5° N",
    ),
    "air_temperature": BuiltIn(
        "A1B_north_america.nc",
        "5f728a78bfc2d2503e26ab6faab82c23313eefd56bfae244ccc04b9d41b71816",
        "air_temperature",
        "yearly air temperature over North America in a climate projection (A1B)",
    ),
}


# What is learnt from


@dataclass(frozen=True)
class Split:
    """
    Fields split by time: the steps before `first_measured` are learnt from, and a forecast is measured where it is for
    one of those from there on to `end`; what lies behind that is not looked at.
    """

    first_measured: int
    end: int
    measured_on: str  # in words


def split_by_time(fields: Fields, held_out_steps: int, validation_steps: int, history: int, lead_time: int) -> Split:
    """
    Measured on are the last `held_out_steps`; or, to choose settings, the `validation_steps` before them.

    Raises:
        `ValueError`: if what is left to learn from has not two pairs of past and future, or, for months, not all of
            the seasons.
    """
    count = len(fields.values)
    end = count - held_out_steps if validation_steps else count
    first_measured = count - held_out_steps - validation_steps
    if first_measured < history + lead_time + 1:
        raise ValueError(
            f"{fields.name} has {count} steps: without held_out_steps={held_out_steps} and validation_steps="
            f"{validation_steps} {max(first_measured, 0)} are left, too few for two examples of history={history} and "
            f"lead_time={lead_time}"
        )
    if unseen := set(fields.seasons[:end].tolist()) - set(fields.seasons[:first_measured].tolist()):
        raise ValueError(
            f"{fields.name} has only {first_measured} steps to learn from, none of them in the calendar months "
            f"{sorted(month + 1 for month in unseen)}, whose mean is to be removed"
        )
    measured_on = f"last {held_out_steps} steps, held out"
    if validation_steps:
        measured_on = f"{validation_steps} steps before the held-out ones, to choose settings by"
    return Split(first_measured, end, measured_on)


def mean_by_season(fields: Fields, stop: int) -> np.ndarray:
    """
    The mean of the first `stop` steps at each place, NaN where there are no values: (12, channels, *grid), one for each
    calendar month, where the fields have seasons, else (1, channels, *grid).
    """
    seasons, values = fields.seasons[:stop], fields.values[:stop]
    means = np.full((MONTHS if fields.seasons.any() else 1, *values.shape[1:]), np.nan, np.float32)
    for season in np.unique(seasons):
        chosen = values[seasons == season]
        there = ~np.isnan(chosen)
        count = there.sum(0)
        total = np.where(there, chosen, 0).sum(0, dtype=np.float64)
        means[season] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means


@dataclass(frozen=True)
class ForecastSetup:
    """
    What a forecast needs beside a model and its processor: `history` steps, each with the variables `channel_names`
    along the dimension `time_name` of a file, for what comes `lead_time` steps after the last; how long a `step` is, in
    words, None where that is left open. A model sees them as channels; or, of fields that are `drifting`, only how
    those before the last differ from it, so that a change of all by one value changes no forecast of a change. `units`
    and `ends` of the `Fields` that were learnt from, as far as they are known.
    """

    history: int
    lead_time: int
    drifting: bool
    channel_names: tuple[str, ...]
    time_name: str = "time"
    step: str | None = None
    units: tuple[str, ...] = ()
    ends: tuple[tuple[float, float] | None, ...] = ()

    @property
    def num_channels(self) -> int:
        """Of what a model sees."""
        return (self.history - self.drifting) * len(self.channel_names)

    def as_channels(self, past: Any) -> Any:
        """What a model sees of a past (history, channels, *grid): (num_channels, *grid), its oldest step first."""
        seen = past[:-1] - past[-1:] if self.drifting else past
        return seen.reshape(-1, *seen.shape[2:])

    def check(self, fields: Fields, source: str) -> None:
        """`ValueError` for fields whose steps, units or places are known to be others than those learnt from."""
        if len(fields.times) > 1 and self.step not in (None, fields.step):
            found, learnt = ("no months" if step == "step" else step for step in (fields.step, self.step))
            raise ValueError(
                f"a step in {source} is {found}, and {learnt} in what the model was trained on: bring it to that"
            )
        for name, found, learnt in zip(self.channel_names, fields.units, self.units or fields.units, strict=True):
            if found and learnt and found != learnt:
                raise ValueError(f"{name} of {source} is in {found}; the model was trained on {learnt}: convert it")
        known = zip(fields.ends, self.ends or fields.ends, fields.grid, strict=True) if fields.ends else ()
        for axis, (found, learnt, length) in enumerate(known):
            if found is None or learnt is None:
                continue
            cell = abs(learnt[1] - learnt[0]) / max(1, length - 1)
            if not np.allclose(found, learnt, rtol=1e-6, atol=0.1 * cell):
                raise ValueError(
                    f"axis {axis} of the grid of {source} goes from {found[0]:g} to {found[1]:g}, and from "
                    f"{learnt[0]:g} to {learnt[1]:g} in what the model was trained on: bring it to that"
                )

    def save(self, folder: Path) -> None:
        (folder / "forecast.json").write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, checkpoint: str) -> tuple["ForecastSetup", np.ndarray]:
        """
        That of a trained model, in a folder or on the Hub, and its climatology. `ValueError` for a checkpoint of
        another script, which has none.
        """
        files = [
            cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
            for name in ("forecast.json", "climatology.npy")
        ]
        if None in files:
            raise ValueError(
                f"{checkpoint} lacks forecast.json or climatology.npy, which examples/train_dense_prediction.py writes"
            )
        stored = json.loads(Path(files[0]).read_text(encoding="utf-8"))
        setup = cls(**stored | {"channel_names": tuple(stored["channel_names"])})
        return setup, np.load(files[1], allow_pickle=False)


class ForecastData:
    """
    Examples made of fields whose mean seasonal cycle in the training time is removed.

    A past is what a forecast is made from: as many steps as the `setup` says, the last of them `lead_time` steps before
    its target. A model learns the change from the last of these to the target.

    Attributes:
        climatology: as `mean_by_season` of the training time; what to add to a forecast.
        anomalies: float32 (time, channels, *grid), the fields less their climatology, to the end of what is measured.
    """

    def __init__(self, fields: Fields, split: Split, setup: ForecastSetup):
        self.fields, self.split, self.setup = fields, split, setup
        self.history, self.lead_time = setup.history, setup.lead_time
        self.climatology = mean_by_season(fields, split.first_measured)
        self.anomalies = fields.values[: split.end] - self.climatology[fields.seasons[: split.end]]

    @property
    def training_targets(self) -> range:
        return range(self.history - 1 + self.lead_time, self.split.first_measured)

    @property
    def first_targets(self) -> range:
        """What is forecast first in each measured forecast."""
        return range(self.split.first_measured, self.split.end)

    def past(self, target: int) -> np.ndarray:
        """(history, channels, *grid)."""
        last = target - self.lead_time
        return self.anomalies[last - self.history + 1 : last + 1]

    def change(self, target: int) -> np.ndarray:
        """(channels, *grid)."""
        return self.anomalies[target] - self.anomalies[target - self.lead_time]

    def make_processor(self, config: AxialConfig) -> AxialGridProcessor:
        """What scales pasts, all their steps as channels, and changes, with the numbers of the training time."""
        processor = AxialGridProcessor(
            patch_size=list(config.patch_shape),
            num_channels=self.setup.num_channels,
            num_target_channels=len(self.fields.channel_names),
        )
        processor.fit(self.setup.as_channels(self.past(target)) for target in self.training_targets)
        return processor.fit_targets(self.change(target) for target in self.training_targets)


class TrainingPairs(Dataset):
    """
    Items `{"pixel_values", "attention_mask", "labels", "loss_mask"}`: a past and the change that follows, as the
    processor makes them. With `weights` (*grid) also `"loss_weights"`.
    """

    def __init__(self, data: ForecastData, processor: AxialGridProcessor, weights: np.ndarray | None = None):
        self.data, self.processor, self.weights = data, processor, weights

    def __len__(self) -> int:
        return len(self.data.training_targets)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        target = self.data.training_targets[index]
        batch = self.processor(
            [self.data.setup.as_channels(self.data.past(target))],
            targets=[self.data.change(target)],
            return_tensors="pt",
        )
        item = {name: values[0] for name, values in batch.items()}
        if self.weights is not None:
            item["loss_weights"] = torch.from_numpy(pad_end(self.weights, item["labels"].shape[1:], 0))[None]
        return item


class MeasuredPasts(Dataset):
    """
    Items `(past, truth)`: anomalies (history, channels, *grid), and (rollout, channels, *grid) of what came
    `lead_time`, 2 · `lead_time`, ... steps after its last, NaN behind the end of what is measured.
    """

    def __init__(self, data: ForecastData, rollout: int):
        self.data, self.rollout = data, rollout

    def __len__(self) -> int:
        return len(self.data.first_targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        target = self.data.first_targets[index]
        truth = np.full((self.rollout, *self.data.anomalies.shape[1:]), np.nan, np.float32)
        known = self.data.anomalies[target :: self.data.lead_time][: self.rollout]
        truth[: len(known)] = known
        return torch.from_numpy(self.data.past(target)), torch.from_numpy(truth)


def check_grid(config: AxialConfig, grid: Sequence[int], arcs: Sequence[float | None] = ()) -> tuple[int, ...]:
    """
    The grid of fields as whole patches of a model; `ValueError` where a periodic axis is not made of such, or where its
    longitudes (`arcs` of `Fields`) do not go round the globe.
    """
    way_out = "of fields that end, set periodic to false there, in a copy of the preset"
    for axis, length, patch, arc in zip(config.axes, grid, config.patch_shape, arcs or [None] * len(grid), strict=True):
        if axis.periodic and arc is not None and abs(arc - CIRCLE) > 0.5 * arc / length:
            raise ValueError(
                f"axis {axis.axis} is periodic in the model, but its {length} longitudes take up {arc:g} of {CIRCLE} "
                f"degrees: {way_out}"
            )
        if axis.periodic and length % patch:
            raise ValueError(
                f"axis {axis.axis} is periodic, so its {length} points must be whole patches; the model has patch_size="
                f"{config.patch_size}: set another one, or, {way_out}"
            )
    return tuple(-(-length // patch) * patch for length, patch in zip(grid, config.patch_shape, strict=True))
