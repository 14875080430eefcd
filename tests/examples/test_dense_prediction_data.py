"""Fields as they are read: axes, units, calendars, missing values; how they are split; what is wrong with bad ones."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import xarray

from examples import dense_prediction_data
from examples.dense_prediction_data import (
    BUILT_IN,
    ForecastData,
    ForecastSetup,
    MeasuredPasts,
    TrainingPairs,
    check_grid,
    mean_by_season,
    read_fields,
    split_by_time,
    times_after,
)
from modeling_axial import AxialConfig

LATITUDES, LONGITUDES = 5, 7


def monthly(steps=30, **variables):
    """A data set of xarray with the land at its first longitude, and a calendar that begins in November 1999."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(steps, LATITUDES, LONGITUDES)).astype(np.float32) + 280
    values[:, :, 0] = np.nan
    dims = ("time", "latitude", "longitude")
    coordinates = {
        "time": np.datetime64("1999-11") + np.arange(steps).astype("timedelta64[M]"),
        "latitude": ("latitude", np.linspace(-60, 60, LATITUDES), {"units": "degrees_north"}),
        "longitude": np.arange(LONGITUDES),
    }
    coordinates["time"] = coordinates["time"].astype("datetime64[ns]")
    temperature = xarray.DataArray(values, coordinates, dims, attrs={"units": "K"})
    return xarray.Dataset({"temperature": temperature, **variables})


def written(dataset, path, **options):
    dataset.to_netcdf(path, **options)
    return path


def setup_of(fields, history, lead_time, drifting=False):
    return ForecastSetup(history, lead_time, drifting, fields.channel_names)


# Built-in


@pytest.mark.parametrize(
    ("name", "shape", "step", "first", "last"),
    [
        ("sst", (54, 1, 18, 432), "month", "2006-04", "2010-09"),
        ("air_temperature", (240, 1, 37, 49), "12 months", "1860-06", "2099-06"),
    ],
)
def test_built_in_fields(name, shape, step, first, last):
    fields = BUILT_IN[name].read(num_axes=2)
    assert fields.values.shape == shape and fields.values.dtype == np.float32 and fields.units == ("K",)
    assert (fields.step, fields.times[0], fields.times[-1]) == (step, first, last)
    assert 250 < np.nanmin(fields.values) and np.nanmax(fields.values) < 320
    assert np.isnan(fields.values).mean() == pytest.approx(0.2643 if name == "sst" else 0, abs=1e-4)
    assert fields.weights.shape == shape[2:] and np.allclose(
        fields.weights.max(), 1 if name == "sst" else 0.966, atol=1e-3
    )
    assert set(fields.seasons.tolist()) == (set(range(12)) if name == "sst" else {0})


def test_a_changed_file_is_refused():
    with pytest.raises(ValueError, match="ostia_monthly.nc is not that of iris-sample-data 2.5.2"):
        dataclasses.replace(BUILT_IN["sst"], sha256=hashlib.sha256(b"").hexdigest()).read(num_axes=2)


@pytest.mark.parametrize("package", ["iris_sample_data", "xarray", "zarr"])
def test_a_missing_package_is_named(monkeypatch, tmp_path, package):
    find_spec = dense_prediction_data.importlib.util.find_spec
    monkeypatch.setattr(
        dense_prediction_data.importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    (tmp_path / "a.nc").touch()
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'modeling-axial\[fields\]'"):
        if package == "iris_sample_data":
            BUILT_IN["sst"].read(2)
        read_fields(tmp_path / ("a.zarr" if package == "zarr" else "a.nc"), 2)


# Files


def test_netcdf(tmp_path):
    fields = read_fields(written(monthly(), tmp_path / "a.nc"), num_axes=2)
    assert np.array_equal(fields.values[:, 0], monthly().temperature.values, equal_nan=True)
    assert (fields.channel_names, fields.units, fields.name) == (("temperature",), ("K",), "a.nc")
    assert fields.times[:3] == ("1999-11", "1999-12", "2000-01") and fields.seasons[:3].tolist() == [10, 11, 0]
    assert np.allclose(fields.weights[:, 3], np.cos(np.deg2rad([-60, -30, 0, 30, 60])))


def test_zarr(tmp_path):
    monthly().to_zarr(tmp_path / "a.zarr", zarr_format=2)
    fields = read_fields(tmp_path / "a.zarr", num_axes=2)
    expected = read_fields(written(monthly(), tmp_path / "a.nc"), num_axes=2)
    assert np.array_equal(fields.values, expected.values, equal_nan=True) and fields.name == "a.zarr"
    assert (fields.times, fields.units, fields.step) == (expected.times, expected.units, expected.step)
    (tmp_path / "a folder").mkdir()
    with pytest.raises(ValueError, match="a folder cannot be read"):
        read_fields(tmp_path / "a folder", num_axes=2)


def test_variables_are_channels_with_time_first(tmp_path):
    dataset = monthly()
    dataset["speed"] = (2 * dataset.temperature).transpose("latitude", "time", "longitude")
    dataset["mask"] = dataset.temperature[0]
    dataset.speed.attrs.clear()
    fields = read_fields(written(dataset, tmp_path / "a.nc"), 2, ["speed", "temperature"])
    assert fields.values.shape == (30, 2, LATITUDES, LONGITUDES) and fields.units == ("", "K")
    assert np.array_equal(fields.values[:, 0], 2 * fields.values[:, 1], equal_nan=True)


def test_packed_values_come_in_their_units_and_spans_of_time_as_numbers(tmp_path):
    dataset = monthly()
    dataset.temperature.attrs["units"] = "days"
    packing = {"dtype": "int16", "scale_factor": 0.25, "add_offset": 280.0, "_FillValue": -999}
    fields = read_fields(written(dataset, tmp_path / "a.nc", encoding={"temperature": packing}), 2)
    there = ~np.isnan(fields.values)
    assert np.array_equal(there[:, 0], ~np.isnan(dataset.temperature.values)) and fields.units == ("days",)
    assert np.abs(fields.values[:, 0] - dataset.temperature.values)[there[:, 0]].max() <= 0.126


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 5, 2)])
def test_npy(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 100, shape, dtype=np.int16)
    np.save(tmp_path / "a.npy", array)
    fields = read_fields(tmp_path / "a.npy", num_axes=2)
    assert np.array_equal(np.moveaxis(fields.values, 1, -1).reshape(shape), array)
    assert fields.times[1] == "step 1" and fields.weights is None and set(fields.seasons.tolist()) == {0}


@pytest.mark.parametrize(
    ("times", "step", "first"),
    [
        (np.datetime64("2001-01-31") + np.arange(30).astype("timedelta64[D]"), "step", "2001-01-31 00:00"),
        (
            xarray.date_range("2001-01-01", periods=30, freq="3MS", calendar="360_day", use_cftime=True),
            "3 months",
            "2001-01",
        ),
        (xarray.date_range("2001-02-29", periods=30, calendar="360_day", use_cftime=True), "step", "2001-02-29 00:00"),
        (np.arange(30) * 0.1, "step", "time 0.0"),
        (None, "step", "step 0"),
    ],
    ids=["days", "quarters of another calendar", "days of another calendar", "numbers", "none"],
)
def test_calendars(tmp_path, times, step, first):
    dataset = monthly().drop_vars("time") if times is None else monthly().assign_coords(time=times)
    fields = read_fields(written(dataset, tmp_path / "a.nc"), 2)
    assert (fields.step, fields.times[0]) == (step, first)
    assert len(set(fields.seasons.tolist())) == (4 if step == "3 months" else 1)


def uneven():
    return monthly().isel(time=[0, 1, 3, *range(4, 30)])


def with_a_gap():
    """A calendar of months, whose first are of 31 and 29 days, that lacks one of them."""
    return monthly().isel(time=[*range(2, 12), *range(13, 30)])


def backwards():
    return monthly().isel(time=slice(None, None, -1))


def changed(**places):
    """With other values at some places (time, latitude, longitude)."""
    dataset = monthly()
    for value, where in places.values():
        dataset.temperature[where] = value
    return dataset


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (lambda: monthly().rename(time="t"), {}, r"0 variables with a time axis 'time' and the 2 axes"),
        (
            lambda: monthly().rename(time="t"),
            {"variable_names": ["temperature"]},
            r"\('t', 'latitude', 'longitude'\), but no time axis 'time'; name it by --time_name",
        ),
        (lambda: monthly(b=monthly().temperature), {}, r"2 variables with .* \['temperature', 'b'\]; say which by"),
        (monthly, {"variable_names": ["humidity"]}, r"no variable \['humidity'\]; its variables are \['temperature'\]"),
        (monthly, {"num_axes": 3, "variable_names": ["temperature"]}, "they must be time and the 3 axes of the model"),
        (lambda: monthly(b=monthly().temperature.astype(str)), {"variable_names": ["b"]}, "variable b of .*: text"),
        (uneven, {}, "even and go forward, but .*1999-12.* is followed by .*2000-02"),
        (with_a_gap, {}, "but 2000-10-01.* is followed by 2000-12-01.*, and most steps are 1 month;"),
        (backwards, {}, "even and go forward"),
        (lambda: monthly().assign_coords(time=[*range(29), 29.1]), {}, "but time 28.0 is followed by time 29.1"),
        (lambda: changed(a=(np.inf, (3, 2, 4))), {}, "infinite, or beyond float32, at 2000-02"),
        (lambda: changed(a=(np.nan, 5), b=(np.nan, 9)), {}, "no values at all at 2000-04; 2000-08"),
        (lambda: changed(a=(np.nan, slice(None))), {}, "no values at all at 1999-11; .*; ..."),
    ],
    # Not str of the first, an address, as processes must name the tests alike.
    ids=lambda value: None if callable(value) else str(value),
)
def test_bad_netcdf(tmp_path, make, arguments, words):
    path = written(make(), tmp_path / "a.nc")
    with pytest.raises(ValueError, match=words):
        read_fields(path, **{"num_axes": 2, **arguments})


def test_units_of_time_that_mean_nothing(tmp_path):
    dataset = monthly().assign_coords(time=("time", np.arange(30), {"units": "moons since the flood"}))
    with pytest.raises(ValueError, match="cannot be read: .*moons since the flood"):
        read_fields(written(dataset, tmp_path / "a.nc"), 2)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((9, 3)), r"shape \(9, 3\); with a model of 2 axes it must be \(time, \*grid\)"),
        (np.zeros((9, 3, 5, 7, 2)), "3 or 4 dims"),
        (np.zeros((9, 3, 5), complex), "complex numbers"),
        (np.zeros((0, 3, 5)), "is empty"),
        (np.full((9, 3, 5), np.nan), "no values at all at step 0"),
    ],
)
def test_bad_npy(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=words):
        read_fields(tmp_path / "a.npy", num_axes=2)


@pytest.mark.parametrize("name", ["a.npy", "a.nc", "a.zarr"])
def test_what_is_no_such_file(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is not there"):
        read_fields(tmp_path / name, 2)
    (tmp_path / name).write_text("nothing")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        read_fields(tmp_path / name, 2)


# What is learnt from


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return read_fields(written(monthly(), tmp_path_factory.mktemp("fields") / "a.nc"), num_axes=2)


def test_split_by_time(fields):
    held_out = split_by_time(fields, 6, 0, history=2, lead_time=1)
    assert (held_out.first_measured, held_out.end, held_out.measured_on) == (24, 30, "last 6 steps, held out")
    chosen_by = split_by_time(fields, 6, 4, history=2, lead_time=1)
    assert (chosen_by.first_measured, chosen_by.end) == (20, 24)
    assert "4 steps before the held-out ones" in chosen_by.measured_on


@pytest.mark.parametrize(
    ("held_out", "validation", "words"),
    [
        (27, 0, "has 30 steps: without held_out_steps=27 and validation_steps=0 3 are left, too few"),
        (30, 9, "0 are left"),
        (12, 8, r"only 10 steps to learn from, none of them in the calendar months \[9, 10\]"),
    ],
)
def test_too_few_steps(fields, held_out, validation, words):
    with pytest.raises(ValueError, match=words):
        split_by_time(fields, held_out, validation, history=2, lead_time=1)


def test_means_by_calendar_month(fields):
    means = mean_by_season(fields, stop=27)
    assert means.shape == (12, 1, LATITUDES, LONGITUDES)
    expected = fields.values[[0, 12, 24]].astype(np.float64).mean(0)  # November
    assert np.allclose(means[10], expected, rtol=1e-6, equal_nan=True)
    assert np.allclose(means[3], fields.values[[5, 17]].astype(np.float64).mean(0), rtol=1e-6, equal_nan=True)


def test_the_held_out_steps_change_nothing_that_is_learnt(fields):
    values = fields.values.copy()
    values[24:] += 1000
    config = AxialConfig(image_size=[6, 7], patch_size=[2, 7], num_channels=2)
    both = []
    for each in (fields, dataclasses.replace(fields, values=values)):
        data = ForecastData(each, split_by_time(each, 6, 0, 2, 1), setup_of(each, 2, 1))
        processor = data.make_processor(config)
        both.append((data.climatology, processor.to_dict(), list(TrainingPairs(data, processor)[21].values())))
    assert np.array_equal(both[0][0], both[1][0], equal_nan=True) and both[0][1] == both[1][1]
    assert all(torch.equal(*pair) for pair in zip(both[0][2], both[1][2], strict=True))


@pytest.mark.parametrize(("history", "lead_time"), [(2, 1), (1, 3)])
def test_pairs_of_past_and_change(fields, history, lead_time):
    data = ForecastData(fields, split_by_time(fields, 6, 0, history, lead_time), setup_of(fields, history, lead_time))
    processor = data.make_processor(AxialConfig(image_size=[6, 7], patch_size=[2, 1], num_channels=history))
    pairs = TrainingPairs(data, processor, fields.weights)
    assert len(pairs) == 24 - lead_time - history + 1
    anomalies = fields.values - data.climatology[fields.seasons]
    for index in (0, len(pairs) - 1):
        item, last = pairs[index], index + history - 1
        past = torch.from_numpy(anomalies[last - history + 1 : last + 1, 0])
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (processor.image_mean, processor.image_std))
        assert torch.allclose(item["pixel_values"][:, :5, 1:], ((past - mean) / std)[:, :, 1:].float(), atol=1e-5)
        change = anomalies[last + lead_time, 0] - anomalies[last, 0]
        expected = torch.from_numpy(change - processor.target_mean[0]).float() / processor.target_std[0]
        assert torch.allclose(item["labels"][0, :5, 1:], expected[:, 1:], atol=1e-5)
        assert item["attention_mask"].shape == (3, 7) and not item["attention_mask"][:, 0].any()
        assert item["attention_mask"][:, 1:].all()
        assert item["loss_mask"][0, :5, 1:].all() and item["loss_mask"].sum() == 5 * 6
        assert torch.equal(item["loss_weights"][0, :5], torch.from_numpy(fields.weights))
        assert not item["loss_weights"][0, 5:].any()
    assert last + lead_time == 23  # the last step that is not held out
    assert "loss_weights" not in TrainingPairs(data, processor)[0]


def test_of_drifting_fields_only_differences_are_seen(fields):
    data = ForecastData(fields, split_by_time(fields, 6, 0, 3, 1), setup_of(fields, 3, 1, drifting=True))
    assert data.setup.num_channels == 2
    past = data.past(12)
    seen = data.setup.as_channels(past)
    assert np.array_equal(seen, np.concatenate([past[0] - past[2], past[1] - past[2]]), equal_nan=True)
    assert np.allclose(data.setup.as_channels(past + 5), seen, atol=1e-5, equal_nan=True)
    processor = data.make_processor(AxialConfig(image_size=[6, 7], patch_size=[2, 7], num_channels=2))
    assert TrainingPairs(data, processor)[0]["pixel_values"].shape == (2, 6, 7)


def test_measured_pasts_end_with_the_data(fields):
    data = ForecastData(fields, split_by_time(fields, 6, 0, 1, 2), setup_of(fields, 1, 2))
    pasts = MeasuredPasts(data, rollout=3)
    assert len(pasts) == 6
    past, truth = pasts[1]
    assert np.array_equal(past.numpy(), data.anomalies[23:24], equal_nan=True)
    assert np.array_equal(truth.numpy(), data.anomalies[[25, 27, 29]], equal_nan=True)
    _, truth = pasts[4]
    assert np.array_equal(truth[0].numpy(), data.anomalies[28], equal_nan=True) and truth[1:].isnan().all()


@pytest.mark.parametrize(
    ("last", "months", "expected"),
    [
        ("2000-12-16T12", 1, ["2001-01-16T12", "2001-03-16T12"]),
        ("2001-11-30", 3, ["2002-02-28", "2002-08-31"]),  # ends of months stay such
        ("2001-12-30", 1, ["2002-01-30", "2002-03-30"]),
        ("2001-01-30", 1, ["2001-02-28", "2001-03-30"]),
        ("2000-02-28", 12, ["2001-02-28", "2003-02-28"]),
    ],
)
def test_times_after_steps_of_months(last, months, expected):
    ahead = [1, 3] if last != "2001-01-30" else [1, 2]
    times = np.array(["1999-01-01", last], "datetime64[ns]")
    assert times_after(times, months, ahead).tolist() == np.array(expected, "datetime64[ns]").tolist()
    dates = xarray.date_range("2001-11-30", periods=3, freq="D", calendar="360_day", use_cftime=True).values
    assert [str(date)[:10] for date in times_after(dates, 1, [1, 2])] == ["2002-01-02", "2002-02-02"]


def test_times_after_even_steps():
    days = np.datetime64("2000-02-26") + 2 * np.arange(2).astype("timedelta64[D]")
    assert times_after(days, 0, np.array([1, 3])).astype(str).tolist() == ["2000-03-01", "2000-03-05"]
    dates = xarray.date_range("2000-02-26", periods=2, freq="2D", calendar="360_day", use_cftime=True).values
    assert [str(date)[:10] for date in times_after(dates, 0, [1])] == ["2000-02-30"]
    assert times_after(np.array([0.5, 1.0]), 0, [1, 2]).tolist() == [1.5, 2.0]
    assert times_after(days[:1], 0, [1]) is None


def test_a_periodic_axis_goes_round_the_globe(tmp_path):
    config = AxialConfig(image_size=[6, 9], patch_size=[2, 3], periodic=[False, True])
    arcs = []
    for end in (360, 120):
        dataset = monthly().isel(longitude=slice(6))
        longitudes = ("longitude", np.arange(6) * end / 6, {"units": "degrees_east"})
        fields = read_fields(written(dataset.assign_coords(longitude=longitudes), tmp_path / f"{end}.nc"), 2)
        arcs.append(fields.arcs)
    assert arcs == [(None, 360), (None, 120)] and read_fields(written(monthly(), tmp_path / "a.nc"), 2).arcs[1] is None
    assert check_grid(config, (5, 6), arcs[0]) == check_grid(config, (5, 6)) == (6, 6)
    with pytest.raises(ValueError, match="axis 1 is periodic in the model, but its 6 longitudes take up 120 of 360"):
        check_grid(config, (5, 6), arcs[1])


def test_a_periodic_axis_is_made_of_whole_patches():
    config = AxialConfig(image_size=[4, 6], patch_size=[2, 3], periodic=[False, True])
    assert check_grid(config, (7, 9)) == (8, 9)
    with pytest.raises(ValueError, match=r"axis 1 is periodic, so its 10 points must be whole patches; .*=\[2, 3\]"):
        check_grid(config, (8, 10))


def test_the_rounding_of_coordinates_is_no_other_place(tmp_path):
    """Of an axis of one cell, too, where no step tells how much is little."""
    fields = read_fields(written(monthly().isel(latitude=[3]), tmp_path / "a.nc"), 2)
    (latitude, _), longitudes = fields.ends
    for factor, is_same in ((1 + 1e-8, True), (1.01, False)):
        setup = ForecastSetup(2, 1, False, fields.channel_names, ends=((latitude * factor,) * 2, longitudes))
        if is_same:
            setup.check(fields, "a.nc")
        else:
            with pytest.raises(ValueError, match="axis 0 of the grid of a.nc"):
                setup.check(fields, "a.nc")
