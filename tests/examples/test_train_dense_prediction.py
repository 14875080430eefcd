"""Training forecasters by script: what a run leaves behind, that a kill costs nothing, and its errors."""

import json
import re
import runpy
import signal
import sys

import numpy as np
import pytest
import torch
import xarray
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from configuration import load_preset
from examples import train_dense_prediction
from modeling_axial import AxialForDensePrediction
from modeling_axial.training import STOPPED_EXIT_CODE, checkpoints, parse_arguments, read_metrics, read_units
from tests.conftest import ROOT
from tests.examples import test_train_image_classification as classification
from tests.examples.test_dense_prediction_data import monthly
from tests.examples.test_train_image_classification_distributed import launch

SCRIPT = ROOT / "examples" / "train_dense_prediction.py"
SMALL = {"model_type": "axial", "image_size": [6, 8], "patch_size": [2, 4], "hidden_size": 8, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "hidden_dropout_prob": 0.1, "periodic": [False, True]}
SMALL |= {"position_embedding": ["learned", "rotary"], "dense_head": "pyramid", "pyramid_size": 4}


def train(*arguments, kill_at=None):
    return classification.train(*arguments, kill_at=kill_at, script=SCRIPT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small configuration, and monthly fields of 5 latitudes and 8 longitudes, of which one is land."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "config.json").write_text(json.dumps(SMALL))
    fields = monthly().pad(longitude=(0, 1), mode="reflect").assign_coords(longitude=range(8))
    fields.temperature.attrs["units"] = "K"
    fields["wind"] = 3 - fields.temperature
    fields.wind.attrs.clear()
    fields.to_netcdf(folder / "fields.nc")
    return folder


def arguments_of(inputs, output_dir):
    """20 pairs of past and change, 7 steps an epoch, the last of 2 pairs instead of 3."""
    arguments = {
        "data_file": inputs / "fields.nc",
        "variable_names": "temperature,wind",
        "config_name": inputs / "config.json",
        "output_dir": output_dir,
        "held_out_steps": 8,
        "rollout": 3,
        "weight_by_latitude": True,
        "augment_sign": True,
        "max_train_steps": 9,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "logging_steps": 1,
        "checkpointing_steps": 3,
        "seed": 7,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """(folder, printed text) of a run with its peer, from beginning to end."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    exit_code, printed = train(*arguments_of(inputs, folder), "--peer=unet")
    assert exit_code == 0, printed
    return folder, printed


def test_metrics_scores_and_card(unbroken):
    folder, printed = unbroken
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 10))
    measured = [line for line in lines if "rmse wind" in line]
    assert [line["step"] for line in measured] == [7, 9]
    assert "fields.nc; measured on the last 8 steps, held out\n" in printed
    assert read_units(folder / "metrics.jsonl") == {"rmse temperature": "K"}
    assert (folder / "curves.png").exists() and (folder / "unet" / "curves.png").exists()
    results = json.loads((folder / "results.json").read_text())
    titles = re.findall(r"^RMSE of (\w+.*), 1, 2, 3 months ahead$", printed, re.MULTILINE)
    how = "weighted by the cosine of the latitude"
    assert titles == [f"temperature in K, {how}", f"wind, {how}"]
    names = ["climatology", "persistence", "damped persistence"]
    for start, name in ((0, "temperature"), (1, "wind")):
        table = printed.split("months ahead\n")[start + 1].splitlines()[:5]
        rows = [re.fullmatch(r" +([\d.]+) +([\d.]+) +([\d.]+)  (.*)", line).groups() for line in table]
        assert [row[3] for row in rows] == ["this model", rows[1][3], *names]
        assert rows[1][3].startswith("circular U-Net with ")
        assert float(rows[0][0]) == pytest.approx(measured[-1][f"rmse {name}"], rel=1e-3)
        for first, _, _, who in rows:
            assert float(first) == pytest.approx(results["scores"][who][f"rmse {name}"], rel=1e-3)
    assert list(results["trained"]) == ["this model", rows[1][3]]
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_value == pytest.approx(measured[-1]["rmse temperature"], abs=1e-6)
    assert "22 steps, 1999-11 to 2001-08" in card.text and "held out: 2001-09 to 2002-04" in card.text
    with Image.open(folder / "predictions.png") as picture:
        assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_the_peer_takes_the_same_steps(unbroken):
    folder, printed = unbroken
    ours, peers = (read_metrics(path / "metrics.jsonl") for path in (folder, folder / "unet"))
    names = ("step", "epoch", "learning_rate")
    assert [[line.get(name) for name in names] for line in ours] == [
        [line.get(name) for name in names] for line in peers
    ]
    assert json.loads((folder / "unet" / "config.json").read_text())["model_type"] == "circular_unet"
    size, _ = re.findall(r"U-Net with ([\d,]+) parameters\n", printed)
    ours = sum(weight.numel() for weight in load_file(folder / "model.safetensors").values())
    assert abs(int(size.replace(",", "")) / ours - 1) < 0.05


def test_a_stranger_forecasts_as_the_card_says(unbroken, run_python, tmp_path):
    folder, _ = unbroken
    draw = np.random.default_rng(0)
    past = draw.normal(size=(2, 2, 5, 8)).astype(np.float32)
    past[:, :, :, 0] = np.nan
    np.save(tmp_path / "past.npy", past)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('"run"', f'"{folder}"')
    code += f"""
past = np.load("{tmp_path / "past.npy"}")
climatology = np.load("{folder / "climatology.npy"}")
print(climatology.shape)
coming = forecast(past) + climatology[3]
print(coming.shape, np.isnan(coming).sum(), np.nanmax(np.abs(coming - climatology[3] - past[-1])) < 10)
"""
    assert run_python(code).stdout.splitlines()[-2:] == ["(12, 2, 5, 8)", "(2, 5, 8) 10 True"]


def test_what_was_trained_predicts_what_comes_after_a_file(unbroken, inputs, monkeypatch, tmp_path):
    """Of several channels, with missing cells, in a row: each forecast is made from the one before."""
    folder, _ = unbroken
    stored = json.loads((folder / "forecast.json").read_text())
    assert (stored["step"], stored["units"][0], stored["ends"][0]) == ("month", "K", [-60, 60])
    for rollout in (1, 4):
        options = [f"--rollout={rollout}", f"--output_dir={tmp_path / str(rollout)}"]
        monkeypatch.setattr(sys, "argv", ["predict.py", str(folder), str(inputs / "fields.nc"), *options])
        runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")
    with (
        xarray.open_dataset(inputs / "fields.nc") as given,
        xarray.open_dataset(tmp_path / "1" / "fields.nc") as once,
        xarray.open_dataset(tmp_path / "4" / "fields.nc") as four,
    ):
        assert four.temperature.dims == ("steps_ahead", "latitude", "longitude") and four.sizes["steps_ahead"] == 4
        assert "after 2002-04" in four.steps_ahead.attrs["long_name"] and four.temperature.attrs["units"] == "K"
        for name in ("temperature", "wind"):
            land = np.isnan(given[name].values[-1])
            assert land.any() and np.array_equal(np.isnan(four[name].values), np.broadcast_to(land, (4, *land.shape)))
            assert np.array_equal(four[name][:1], once[name], equal_nan=True)
            steps = np.diff(np.concatenate([given[name].values[-1:], four[name].values])[:, ~land], axis=0)
            assert (np.abs(steps).max(1) > 0).all() and np.abs(steps).max() < 10


@pytest.mark.audit
def test_killed_and_resumed(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*arguments_of(inputs, folder), "--peer=unet", "--resume_from_checkpoint=latest"]
    exit_code, printed = train(*arguments, kill_at=("line written", 5))
    assert exit_code == -signal.SIGKILL and "starting from zero" in printed, printed
    exit_code, printed = train(*arguments, kill_at=("checkpoint named", 6, signal.SIGTERM))
    assert exit_code == STOPPED_EXIT_CODE and "Stopped as asked, with step 7 saved" in printed, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-7." in printed, printed
    for part in (".", "unet"):
        classification.assert_same_run(folder / part, unbroken[0] / part)
    assert printed.split("RMSE")[1] == unbroken[1].split("RMSE")[1]
    assert len(checkpoints.list_checkpoints(folder)) == 2


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(inputs, tmp_path):
    """Of one with the same global batch, the peer's included; without dropout, which differs between them."""
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "hidden_dropout_prob": 0.0}))
    for name, run, batch_size in (("one", train, 4), ("two", launch_two, 2)):
        exit_code, printed = run(
            *classification.without(arguments_of(inputs, tmp_path / name), "config_name"),
            *(f"--config_name={tmp_path / 'config.json'}", "--peer=unet"),
            f"--per_device_train_batch_size={batch_size}",
        )
        assert exit_code == 0, printed
    for part in (".", "unet"):
        lines = [read_metrics(tmp_path / name / part / "metrics.jsonl") for name in ("one", "two")]
        assert len(lines[0]) == len(lines[1]) == 11
        for one, two in zip(*lines, strict=True):
            assert two == pytest.approx(one, rel=1e-3)


def launch_two(*arguments):
    return launch(SCRIPT, arguments)


def test_fields_of_npy_with_settings_chosen_before_the_held_out_steps(inputs, tmp_path):
    """The last 8 steps are left alone: persistence is that of the 4 before."""
    values = np.random.default_rng(0).normal(size=(20, 5, 8)).cumsum(0)
    np.save(tmp_path / "a.npy", values)
    arguments = classification.without(arguments_of(inputs, tmp_path / "run"), "data_file", "variable_names")
    arguments = classification.without(arguments, "weight_by_latitude", "rollout")
    exit_code, printed = train(
        *arguments, f"--data_file={tmp_path / 'a.npy'}", "--validation_steps=4", "--max_train_steps=1", "--drifting"
    )
    assert exit_code == 0, printed
    assert "measured on the 4 steps before the held-out ones, to choose settings by" in printed
    persistence = np.sqrt(np.square(values[8:12] - values[7:11]).mean())
    assert float(re.search(r"([\d.]+)  persistence", printed).group(1)) == pytest.approx(persistence, rel=1e-3)
    assert "RMSE of channel 0, 1 step ahead\n" in printed
    assert np.load(tmp_path / "run" / "climatology.npy").shape == (1, 1, 5, 8)
    assert "seen = past[:-1] - past[-1]\n" in (tmp_path / "run" / "README.md").read_text()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_channels"] == 1


# The recipes


@pytest.mark.parametrize("name", ["air_temperature", "sst"])
def test_recipe(name):
    data, training, _ = parse_arguments(
        train_dense_prediction.DataArguments,
        train_dense_prediction.ForecastTrainingArguments,
        train_dense_prediction.RunArguments,
        argv=[str(ROOT / "configuration" / "training" / f"{name}.yaml")],
    )
    config, read = train_dense_prediction.load_data(data, training)
    assert not training.validation_steps and read.split.end == len(read.fields.values)
    assert not any(size % patch for size, patch in zip(config.image_shape, config.patch_shape, strict=True))
    assert config.to_dict() == load_preset(data.config_name).to_dict()  # so that it opens as it is trained


def test_to_roll_the_longitudes_rolls_the_forecast_of_the_temperature_of_the_sea():
    """By whole patches, land and all, to the last digits of float64."""
    torch.manual_seed(0)
    model = AxialForDensePrediction(load_preset("sst")).eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pixel_values = torch.randn(1, 2, 18, 432, dtype=torch.float64)
    mask = torch.rand(1, 9, 72) < 0.8
    expected = model(pixel_values=pixel_values, attention_mask=mask).prediction
    sea = mask.repeat_interleave(2, 1).repeat_interleave(6, 2)[:, None]
    for patches in (1, 29, -13):
        rolled = model(pixel_values=pixel_values.roll(6 * patches, 3), attention_mask=mask.roll(patches, 2)).prediction
        difference = (rolled.roll(-6 * patches, 3) - expected).abs()[sea]
        assert difference.max() < 1e-9 * expected.abs().max()
    shifted = model(pixel_values=pixel_values.roll(2, 2), attention_mask=mask.roll(1, 1)).prediction.roll(-2, 2)
    assert (shifted - expected).abs()[sea].max() > 1e-3  # latitudes have their places


def test_signs_change_together_and_in_half_of_the_examples():
    batch = {"pixel_values": torch.rand(400, 2, 3, 5) + 1, "labels": torch.rand(400, 1, 3, 5) + 1}
    batch["loss_mask"] = batch["labels"] > 1.5
    changed = train_dense_prediction.change_signs(batch, torch.Generator().manual_seed(0))
    signs = changed["pixel_values"][:, 0, 0, 0].sign()
    assert 150 < (signs > 0).sum() < 250
    for name in ("pixel_values", "labels"):
        assert torch.equal(changed[name], batch[name] * signs.view(-1, 1, 1, 1))
    assert changed["loss_mask"] is batch["loss_mask"]
    for index in (0, 1):
        part = {name: values[index::2] for name, values in batch.items()}
        part = train_dense_prediction.change_signs(part, torch.Generator().manual_seed(0), index, num_processes=2)
        assert torch.equal(part["labels"], changed["labels"][index::2])


# Errors, before work starts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset_name=sst"], "--config_name is missing"),
        (["--config_name=sst"], "give either --dataset_name or --data_file"),
        (["--config_name=sst", "--dataset_name=sst", "--data_file=a.nc"], "give either"),
        (["--config_name=sst", "--dataset_name=sst", "--variable_names=a"], "goes with --data_file"),
        (["--config_name=sst", "--dataset_name=sst", "--rollout=0"], "rollout must be at least 1"),
        (["--config_name=sst", "--dataset_name=sst", "--history=0"], "history must be at least 1"),
        (["--config_name=sst", "--dataset_name=sst", "--validation_steps=-1"], "validation_steps must be"),
        (["--config_name=sst", "--dataset_name=sst", "--history=1", "--drifting"], "history of at least 2, got 1"),
        (["--config_name=digits_autoregressive", "--dataset_name=sst"], "has no dense head"),
        (["--config_name=axial_volume_small", "--dataset_name=sst"], "3 axes of the model"),
        (["--config_name=sst", "--dataset_name=sst", "--lead_time=2", "--rollout=2"], "needs history=1, got 2"),
        (["--config_name=sst", "--dataset_name=sst", "--held_out_steps=48"], "none of them in the calendar months"),
        (["--config_name=sst", "--data_file=nowhere.nc"], "nowhere.nc is not there"),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match=words):
        train_dense_prediction.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "config", "more", "words"),
    [
        (np.ones((20, 5, 8)), {}, [], "channel 0 has the value 0.0 only"),
        (np.zeros((20, 5, 7)), {}, [], "axis 1 is periodic, so its 7 points must be whole patches"),
        (np.zeros((20, 5, 8)), {"prediction_loss": "quantile"}, [], "predicts quantiles, which cannot be rolled out"),
        (np.zeros((20, 5, 8)), {}, ["--weight_by_latitude"], "a.npy has no latitudes"),
        (np.zeros((14, 5, 8)), {}, [], "has 14 steps: without held_out_steps=12"),
    ],
)
def test_data_that_do_not_fit(monkeypatch, tmp_path, values, config, more, words):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", values)
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **config}))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--config_name=config.json", "--data_file=a.npy", *more])
    with pytest.raises(ValueError, match=words):
        train_dense_prediction.main()
    assert len(list(tmp_path.iterdir())) == 2
