"""Predictions for files: what is written is what the model gives, in the kind and the place of what was read."""

import csv
import json
import runpy
import sys

import av
import nibabel
import numpy as np
import pytest
import tifffile
import torch
import xarray
from PIL import Image

from examples.dense_prediction_data import ForecastSetup
from examples.segmentation_data import save_orientation
from modeling_axial import (
    AxialConfig,
    AxialForDensePrediction,
    AxialForImageClassification,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
    AxialForVideoClassification,
    AxialGridProcessor,
    AxialImageProcessor,
    AxialVideoProcessor,
)
from tests.conftest import ROOT


def save(folder, model_class, processor, image_size, patch_size, **overrides):
    """A model with weights so large that its predictions differ."""
    torch.manual_seed(0)
    options = {"num_channels": 1, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
    options |= {"image_size": image_size, "patch_size": patch_size, "initializer_range": 0.7}
    model = model_class(AxialConfig(**options | overrides)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys):
    """predict(checkpoint, *arguments) -> the folder with the results"""

    def run(checkpoint, *arguments):
        arguments = (checkpoint, *arguments, "--output_dir", tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")
        assert str(tmp_path / "out") in capsys.readouterr().out
        return tmp_path / "out"

    return run


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".nii.gz"])
@pytest.mark.parametrize("options", [(), ("--tile_size=2,6,5", "--tiles_at_once=3")])
def test_volumes(tmp_path, predict, suffix, options):
    processor = AxialGridProcessor(patch_size=[1, 2, 1], image_mean=3.0, image_std=5.0)
    shape = {"image_size": [4, 6, 5], "patch_size": [1, 2, 1], "position_embedding": "none"}
    model = save(tmp_path / "model", AxialForSemanticSegmentation, processor, **shape)
    for layer in model.axial.layers:  # so that tiles make no difference
        for mixer in layer.attention.axes:
            torch.nn.init.zeros_(mixer.o_proj.weight)
    model.save_pretrained(tmp_path / "model")
    values, affine = np.random.default_rng(0).normal(3, 5, (3, 7, 5)).astype(np.float32), np.diag([1.0, 2.0, 4.0, 1.0])
    path = tmp_path / f"head{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".tif":
        tifffile.imwrite(path, values, photometric="minisblack")
    else:
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
    out = predict(tmp_path / "model", path, *options) / path.name
    if suffix == ".nii.gz":
        written = nibabel.load(out)
        assert np.array_equal(written.affine, affine)
        labels = np.asarray(written.dataobj)
    else:
        labels = np.load(out) if suffix == ".npy" else tifffile.imread(out)
    pixel_values = torch.from_numpy((values - 3) / 5)[None, None]
    expected = model(torch.nn.functional.pad(pixel_values, (0, 0, 0, 1))).logits.argmax(1)[0, :, :7]
    assert np.array_equal(labels, expected) and len(np.unique(labels)) > 1 and labels.dtype == np.uint8


def test_means_over_mirror_images(tmp_path, predict):
    processor = AxialGridProcessor(patch_size=[2, 3])
    model = save(tmp_path / "model", AxialForSemanticSegmentation, processor, [4, 6], [2, 3])
    values = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    labels = np.load(predict(tmp_path / "model", tmp_path / "a.npy", "--mirror_axes=1") / "a.npy")
    pixel_values = torch.from_numpy(values)[None, None]
    one, other = model(pixel_values).logits, model(pixel_values.flip(3)).logits.flip(3)
    assert np.array_equal(labels, (one + other).argmax(1)[0]) and not np.array_equal(labels, one.argmax(1)[0])


def test_volumes_that_lie_otherwise_are_refused(tmp_path, predict):
    options = {"image_size": [4, 6, 5], "patch_size": [1, 2, 1]}
    save(tmp_path / "model", AxialForSemanticSegmentation, AxialGridProcessor(patch_size=[1, 2, 1]), **options)
    save_orientation(tmp_path / "model", "LAS")
    values = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    for name, first in (("left", -1.0), ("right", 1.0)):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([first, 2.0, 4.0, 1.0])), tmp_path / f"{name}.nii")
    assert (predict(tmp_path / "model", tmp_path / "left.nii") / "left.nii").is_file()
    with pytest.raises(ValueError, match="the axes of .*right.nii lead to RAS, those of .* to LAS; bring"):
        predict(tmp_path / "model", tmp_path / "right.nii")
    save_orientation(tmp_path / "model", None)  # of a model that was trained anew, on arrays
    assert (predict(tmp_path / "model", tmp_path / "right.nii") / "right.nii").is_file()


@pytest.mark.parametrize(("ignore_index", "dtype"), [(255, np.uint8), (-100, np.int16)])
def test_no_class_where_nothing_is_known(tmp_path, predict, ignore_index, dtype):
    processor = AxialGridProcessor(patch_size=[2, 3], num_channels=2)
    options = {"num_channels": 2, "semantic_loss_ignore_index": ignore_index}
    save(tmp_path / "model", AxialForSemanticSegmentation, processor, [4, 6], [2, 3], **options)
    values = np.random.default_rng(0).normal(size=(2, 4, 9))
    values[:, :2, 3:6] = values[0, 3] = np.nan  # a whole cell, and one of the channels
    np.save(tmp_path / "a.npy", values)
    labels = np.load(predict(tmp_path / "model", tmp_path / "a.npy") / "a.npy")
    assert labels.dtype == dtype and np.array_equal(labels == ignore_index, np.isnan(values).all(0))
    assert set(np.unique(labels[labels != ignore_index])) <= {0, 1, 2}


def test_a_picture_for_a_model_of_volumes_is_refused(tmp_path, predict):
    options = {"image_size": [4, 6, 5], "patch_size": [1, 2, 1]}
    save(tmp_path / "model", AxialForSemanticSegmentation, AxialGridProcessor(patch_size=[1, 2, 1]), **options)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="pictures have 2 axes; the model has 3"):
        predict(tmp_path / "model", tmp_path / "a.png")


def test_channels_of_which_the_model_sees_components(tmp_path, predict):
    weights = np.random.default_rng(0).normal(size=(2, 5))
    processor = AxialGridProcessor(patch_size=[2, 3], num_channels=5, channel_components=weights)
    model = save(tmp_path / "model", AxialForSemanticSegmentation, processor, [4, 6], [2, 3], num_channels=2)
    values = np.random.default_rng(1).normal(size=(5, 4, 6))
    np.save(tmp_path / "a.npy", values)
    pixel_values = torch.from_numpy(np.einsum("oc,cij->oij", weights, values))[None].float()
    labels = np.load(predict(tmp_path / "model", tmp_path / "a.npy") / "a.npy")
    assert np.array_equal(labels, model(pixel_values).logits.argmax(1)[0]) and len(np.unique(labels)) > 1


def test_pictures_become_pictures_with_a_palette(tmp_path, predict):
    processor = AxialImageProcessor(num_channels=3, patch_size=[2, 3], do_resize=False, do_pad=True)
    model = save(tmp_path / "model", AxialForSemanticSegmentation, processor, [8, 9], [2, 3], num_channels=3)
    pictures = [np.random.default_rng(i).integers(0, 256, (8, 9, 3), dtype=np.uint8) for i in range(2)]
    for name, picture in zip(("a.png", "b.bmp"), pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    out = predict(tmp_path / "model", tmp_path / "a.png", tmp_path / "b.bmp")
    for name, picture in zip("ab", pictures, strict=True):
        expected = model(**processor(picture, return_tensors="pt")).logits.argmax(1)[0]
        with Image.open(out / f"{name}.png") as labels:
            assert labels.mode == "P" and np.array_equal(np.asarray(labels), expected)
            assert len(labels.convert("RGB").getcolors()) == len(expected.unique())


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return head, rows


def test_classes_of_pictures(tmp_path, predict):
    processor = AxialImageProcessor(num_channels=1, size={"height": 4, "width": 6})
    names = {0: "one", 1: "two, or more", 2: "none"}
    model = save(tmp_path / "model", AxialForImageClassification, processor, [4, 6], 2, id2label=names)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    head, rows = rows_of(predict(tmp_path / "model", tmp_path / "a.png") / "classes.csv")
    probabilities = model(**processor(picture, return_tensors="pt")).logits[0].softmax(-1)
    assert head == ["file", "class", *names.values()] and len(rows) == 1
    assert rows[0][:2] == [str(tmp_path / "a.png"), names[int(probabilities.argmax())]]
    assert list(map(float, rows[0][2:])) == pytest.approx(probabilities.tolist(), abs=1e-5)


def write_clip(path, num_frames):
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10, width=32, height=16)
        for number in range(num_frames):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 32, 3), 20 * number, np.uint8))))
        film.mux(stream.encode())


def test_classes_of_clips(tmp_path, predict):
    processor = AxialVideoProcessor(
        num_channels=3, num_frames=2, size={"height": 16, "width": 32}, patch_size=[1, 8, 8]
    )
    model = save(tmp_path / "model", AxialForVideoClassification, processor, [2, 16, 32], [1, 8, 8], num_channels=3)
    write_clip(tmp_path / "clip.mp4", 5)
    _, rows = rows_of(predict(tmp_path / "model", tmp_path / "clip.mp4") / "classes.csv")
    with av.open(str(tmp_path / "clip.mp4")) as film:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    assert len(frames) == 5
    expected = model(**processor([frames], return_tensors="pt")).logits[0].softmax(-1)
    assert list(map(float, rows[0][2:])) == pytest.approx(expected.tolist(), abs=1e-5)


def test_only_frames_that_are_seen_are_held_and_bad_clips_are_found_first(tmp_path, predict, monkeypatch):
    size = {"size": {"height": 16, "width": 32}, "patch_size": [1, 8, 8]}
    processor = AxialVideoProcessor(num_channels=3, num_frames=3, **size)
    save(tmp_path / "model", AxialForVideoClassification, processor, [3, 16, 32], [1, 8, 8], num_channels=3)
    write_clip(tmp_path / "long.mp4", 11)
    write_clip(tmp_path / "short.mp4", 2)
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "long.mp4").read_bytes()[:700])
    held, stack = [], np.stack
    monkeypatch.setattr(np, "stack", lambda frames, **axis: held.append(len(frames)) or stack(frames, **axis))
    predict(tmp_path / "model", tmp_path / "long.mp4")
    assert max(held) == 3
    (tmp_path / "out" / "classes.csv").unlink()
    for name, words in (("bad", "bad.mp4"), ("short", "short.mp4 cannot be read: it has 2 frames; the model reads 3")):
        with pytest.raises(ValueError, match=words):
            predict(tmp_path / "model", tmp_path / "long.mp4", tmp_path / f"{name}.mp4")
    assert not (tmp_path / "out" / "classes.csv").exists()


def make_forecaster(folder, climatology, channels=("warmth",), history=2, step=None):
    counts = {"num_channels": history * len(channels), "num_target_channels": len(channels)}
    processor = AxialGridProcessor(patch_size=[2, 1], target_mean=0.5, target_std=2.0, **counts)
    model = save(folder, AxialForDensePrediction, processor, [4, 5], [2, 1], **counts)
    ForecastSetup(history, 1, False, tuple(channels), step=step).save(folder)
    np.save(folder / "climatology.npy", climatology)
    return model, processor


def expected_forecasts(model, processor, past, rollout):
    """Of anomalies (2, channels, *grid)."""
    found = []
    for _ in range(rollout):
        batch = processor(past.reshape(-1, *past.shape[2:]), return_tensors="pt")
        with torch.no_grad():
            (change,) = processor.post_process_dense_prediction(model(**batch), [past.shape[2:]])
        found.append((past[-1] + change.numpy()).astype(np.float32))
        past = np.stack([past[-1], found[-1]])
    return np.stack(found)


def test_fields_with_a_calendar_and_missing_cells(tmp_path, predict):
    """The climatology of the months that come is added; where the last step is missing, so is what comes."""
    draw = np.random.default_rng(0)
    climatology = 280 + draw.normal(size=(12, 1, 4, 5)).astype(np.float32)
    model, processor = make_forecaster(tmp_path / "model", climatology)
    values = 280 + draw.normal(size=(6, 4, 5)).astype(np.float32)
    values[:, 1, 2] = np.nan
    coordinates = {
        "time": (np.datetime64("2001-07") + np.arange(6).astype("timedelta64[M]")).astype("datetime64[ns]"),
        "latitude": ("latitude", np.linspace(-60, 60, 4), {"units": "degrees_north"}),
        "longitude": np.arange(5) * 2.0,
    }
    warmth = xarray.DataArray(values, coordinates, ("time", "latitude", "longitude"), attrs={"units": "K"})
    xarray.Dataset({"warmth": warmth}).to_netcdf(tmp_path / "fields.nc")
    out = predict(tmp_path / "model", tmp_path / "fields.nc", "--rollout=3")
    past = values[-2:, None] - climatology[[10, 11]]  # November and December
    expected = expected_forecasts(model, processor, past, 3) + climatology[[0, 1, 2]]
    with xarray.open_dataset(out / "fields.nc", decode_timedelta=False) as written:
        assert written.warmth.dims == ("steps_ahead", "latitude", "longitude") and written.warmth.attrs["units"] == "K"
        assert written.steps_ahead.values.tolist() == [1, 2, 3]
        assert written.steps_ahead.attrs["long_name"] == "steps of month after 2001-12"
        assert written.time.dims == ("steps_ahead",)
        assert np.array_equal(written.time, np.array(["2002-01", "2002-02", "2002-03"], "datetime64[ns]"))
        assert np.array_equal(written.longitude, coordinates["longitude"])
        assert written.latitude.attrs["units"] == "degrees_north"
        np.testing.assert_allclose(written.warmth.values, expected[:, 0], rtol=1e-6)
        assert np.isnan(written.warmth.values[:, 1, 2]).all() and np.isnan(written.warmth.values).sum() == 3


def quarterly(path):
    """Fields from January 2001 on."""
    times = xarray.date_range("2001-01-01", periods=4, freq="3MS")
    values = np.random.default_rng(0).normal(280, 1, (4, 4, 5)).astype(np.float32)
    xarray.Dataset({"warmth": (("time", "latitude", "longitude"), values)}, {"time": times}).to_netcdf(path)
    return values


def test_forecasts_of_quarters_are_of_the_next_ones(tmp_path, predict):
    """What is added is the mean of the quarter that comes, and its time is that of this quarter."""
    climatology = np.full((12, 1, 4, 5), np.nan, np.float32)
    climatology[::3] = 280 + 10 * np.arange(4, dtype=np.float32)[:, None, None, None]
    model, processor = make_forecaster(tmp_path / "model", climatology, step="3 months")
    values = quarterly(tmp_path / "fields.nc")
    expected = expected_forecasts(model, processor, values[-2:, None] - climatology[[6, 9]], 2) + climatology[[0, 3]]
    with xarray.open_dataset(predict(tmp_path / "model", tmp_path / "fields.nc", "--rollout=2") / "fields.nc") as out:
        np.testing.assert_allclose(out.warmth.values, expected[:, 0], rtol=1e-6)
        assert np.array_equal(out.time, np.array(["2002-01-01", "2002-04-01"], "datetime64[ns]"))


def test_fields_of_other_steps_are_refused(tmp_path, predict):
    make_forecaster(tmp_path / "model", np.full((12, 1, 4, 5), 280, np.float32), step="month")
    quarterly(tmp_path / "fields.nc")
    with pytest.raises(
        ValueError, match="a step in .*fields.nc is 3 months, and month in what the model was trained on"
    ):
        predict(tmp_path / "model", tmp_path / "fields.nc")


def test_fields_in_other_units_or_places_are_refused(tmp_path, predict):
    values = np.random.default_rng(0).normal(280, 1, (4, 4, 5)).astype(np.float32)
    coordinates = {"latitude": np.linspace(-60, 60, 4), "longitude": np.arange(5) * 2.0}
    warmth = xarray.DataArray(values, coordinates, ("time", "latitude", "longitude"), attrs={"units": "K"})
    make_forecaster(tmp_path / "model", np.full((1, 1, 4, 5), 280, np.float32))
    stored = json.loads((tmp_path / "model" / "forecast.json").read_text())
    stored |= {"units": ["K"], "ends": [[-60.0, 60.0], [0.0, 8.0]]}
    (tmp_path / "model" / "forecast.json").write_text(json.dumps(stored))
    others = {
        "same": (warmth, None),
        "rounded": (warmth.assign_coords(longitude=np.arange(5) * 2.0 + 1e-5), None),
        "named": (warmth.assign_coords(longitude=list("abcde")), None),
        "celsius": (warmth.assign_attrs(units="degC"), "warmth of .*celsius.nc is in degC; .* trained on K"),
        "upside_down": (warmth.isel(latitude=slice(None, None, -1)), "axis 0 .* from 60 to -60, and from -60 to 60"),
        "next_cell": (
            warmth.assign_coords(longitude=np.arange(5) * 2.0 + 2),
            "axis 1 .* from 2 to 10, and from 0 to 8",
        ),
    }
    for name, (field, words) in others.items():
        xarray.Dataset({"warmth": field}).to_netcdf(tmp_path / f"{name}.nc")
        if words is None:
            assert (predict(tmp_path / "model", tmp_path / f"{name}.nc") / f"{name}.nc").exists()
        else:
            with pytest.raises(ValueError, match=words):
                predict(tmp_path / "model", tmp_path / f"{name}.nc")


@pytest.mark.parametrize("channels", [(), (2,)])
def test_fields_in_an_array(tmp_path, predict, channels):
    names = tuple(f"channel {number}" for number in range(*channels or (1,)))
    climatology = np.random.default_rng(1).normal(size=(1, len(names), 4, 5)).astype(np.float32)
    model, processor = make_forecaster(tmp_path / "model", climatology, names)
    values = np.random.default_rng(0).normal(size=(6, 4, 5, *channels)).astype(np.float32)
    np.save(tmp_path / "fields.npy", values)
    found = np.load(predict(tmp_path / "model", tmp_path / "fields.npy", "--rollout=2") / "fields.npy")
    past = np.moveaxis(values.reshape(6, 4, 5, -1), -1, 1)[-2:] - climatology
    expected = expected_forecasts(model, processor, past, 2) + climatology
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, -1).reshape(2, 4, 5, *channels), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter")
    save(folder / "model", AxialForSemanticSegmentation, AxialGridProcessor(patch_size=[2, 2]), [4, 6], 2)
    np.save(folder / "a.npy", np.zeros((4, 6)))
    np.save(folder / "volume.npy", np.zeros((4, 6, 8)))
    (folder / "b.npy").write_bytes(b"nothing")
    (folder / "other").mkdir()
    np.save(folder / "other" / "a.npy", np.zeros((4, 6)))
    return folder


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["none.npy"], [], "no such file: .*none.npy"),
        (["a.npy", "other/a.npy"], [], "several files have the names a without"),
        (["a.npy"], ["--output_dir=."], "results would lie among the files"),
        (["b.npy"], [], "b.npy cannot be read"),
        (["volume.npy"], [], r"volume.npy has shape \(4, 6, 8\); the model takes 2 axes, and 1 channels"),
        (["a.npy"], ["--tile_size=3"], r"a tile must be whole patches of \(2, 2\) pixels"),
        (["a.npy"], ["--tile_size=a"], "tile_size must be whole numbers with commas between, got 'a'"),
        (["a.npy"], ["--mirror_axes=2"], "mirror_axes must be different axes of the model, 0 to 1, got '2'"),
        (["a.npy"], ["--rollout=2"], "rollout is for forecasts, not for AxialForSemanticSegmentation"),
        (["a.npy"], ["--tiles_at_once=0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_named(segmenter, tmp_path, monkeypatch, files, options, message):
    options = [f"--output_dir={segmenter}" if option == "--output_dir=." else option for option in options]
    paths = [str(segmenter / file) for file in files]
    monkeypatch.setattr(
        sys, "argv", ["predict.py", str(segmenter / "model"), *paths, "--output_dir", str(tmp_path / "out"), *options]
    )
    with pytest.raises(ValueError, match=message):
        runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((4, 6)))
    arguments = [str(tmp_path / "none"), str(tmp_path / "a.npy"), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
    with pytest.raises(ValueError, match="there is no folder .*none, and models on the Hub are called user/model"):
        runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")


@pytest.mark.parametrize("option", ["tile_size", "mirror_axes"])
def test_options_of_classes_of_pixels_alone(tmp_path, predict, option):
    processor = AxialGridProcessor(patch_size=[2, 2])
    save(tmp_path / "model", AxialForImageClassification, processor, [4, 6], 2)
    np.save(tmp_path / "a.npy", np.zeros((4, 6)))
    with pytest.raises(ValueError, match=f"{option} is for models that give each pixel a class, not for AxialForImage"):
        predict(tmp_path / "model", tmp_path / "a.npy", f"--{option}=0")


def test_other_models_are_named(tmp_path, monkeypatch):
    processor = AxialGridProcessor(patch_size=[2, 2])
    save(tmp_path / "masked", AxialForMaskedImageModeling, processor, [4, 6], 2)
    save(tmp_path / "dense", AxialForDensePrediction, processor, [4, 6], 2)
    np.save(tmp_path / "a.npy", np.zeros((4, 6)))
    save(tmp_path / "number", AxialForImageClassification, processor, [4, 6], 2, num_labels=1)
    for name, message in (
        ("masked", "AxialForMaskedImageModeling, none of"),
        ("dense", "lacks forecast.json"),
        ("number", "gives numbers or several classes at once"),
    ):
        arguments = [str(tmp_path / name), str(tmp_path / "a.npy"), "--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        with pytest.raises(ValueError, match=message):
            runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")
