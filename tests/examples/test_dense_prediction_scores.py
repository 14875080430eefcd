"""Forecasts and their errors, beside slow loops; what is missing counts nowhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from examples.dense_prediction_data import Fields, ForecastData, ForecastSetup, MeasuredPasts, Split
from examples.dense_prediction_scores import damping, forecast_all, rmse, roll_out, score_all, simple_forecasts
from modeling_axial import AxialGridProcessor

GRID = (3, 5)


def make_data(history=2, lead_time=1, channels=2, steps=23, held_out=7, drifting=False):
    """Fields of unequal channels, of which a point is missing always and one once, without a calendar."""
    draw = np.random.default_rng(0)
    values = np.cumsum(draw.normal(size=(steps, channels, *GRID)), 0).astype(np.float32)
    values *= np.arange(1, channels + 1).reshape(-1, 1, 1)
    values[:, :, 1, 2], values[9, 0, 2, 4] = np.nan, np.nan
    names = tuple(f"channel {channel}" for channel in range(channels))
    times = tuple(map(str, range(steps)))
    fields = Fields(values, names, ("K",) * channels, times, np.zeros(steps, int), "step", None, "made up")
    split = Split(steps - held_out, steps, "last steps, held out")
    return ForecastData(fields, split, ForecastSetup(history, lead_time, drifting, names))


class Echo(torch.nn.Module):
    """Predicts, as the change of each channel, `factor` times the last step before it."""

    def __init__(self, factor, channels=2):
        super().__init__()
        self.factor, self.channels = factor, channels

    def forward(self, pixel_values, attention_mask):
        return SimpleNamespace(prediction=self.factor * pixel_values[:, -self.channels :])


def make_processor(history=2, channels=2):
    return AxialGridProcessor(patch_size=[2, 5], num_channels=history * channels, num_target_channels=channels)


def test_each_forecast_is_made_from_the_one_before():
    """Without scaling; the second step of the history is what was forecast first."""
    past = torch.randn(3, 2, 2, *GRID)
    past[0, 1, 0, 2, 1] = torch.nan
    processor = make_processor()
    processor.target_mean, processor.target_std = (0.0, 0.0), (1.0, 1.0)
    forecasts = roll_out(Echo(0.5), make_data().setup, processor, past, 3, torch.device("cpu"))
    assert forecasts.shape == (3, 3, 2, *GRID) and forecasts.dtype == torch.float32
    for lead in range(3):
        assert torch.allclose(forecasts[:, lead], past[:, 1] * 1.5 ** (lead + 1), equal_nan=True)
    assert forecasts.isnan().sum() == 3 and forecasts[0, :, 0, 2, 1].isnan().all()


def test_forecasts_are_in_the_units_of_the_fields():
    past = torch.randn(1, 1, 2, *GRID)
    processor = make_processor(history=1)
    processor.image_mean, processor.image_std = (1.0, 2.0), (4.0, 5.0)
    processor.target_mean, processor.target_std = (0.5, -0.5), (2.0, 3.0)
    forecasts = roll_out(Echo(1.0), make_data(history=1).setup, processor, past, 1, torch.device("cpu"))[:, 0]
    for channel, (mean, std, target_mean, target_std) in enumerate([(1, 4, 0.5, 2), (2, 5, -0.5, 3)]):
        last = past[:, 0, channel]
        expected = last + (last - mean) / std * target_std + target_mean
        assert torch.allclose(forecasts[:, channel], expected, atol=1e-6)


def test_forecasts_of_drifting_fields_drift_along():
    past = torch.randn(2, 2, 2, *GRID)
    setup = make_data(drifting=True).setup
    processor = make_processor(history=1)
    processor.target_mean, processor.target_std = (0.0, 0.0), (1.0, 1.0)
    here, there = (roll_out(Echo(-1.0), setup, processor, each, 3, torch.device("cpu")) for each in (past, past + 9))
    assert torch.allclose(there, here + 9, atol=1e-4)
    assert torch.allclose(here[:, 0], 2 * past[:, 1] - past[:, 0], atol=1e-5)  # goes on as it went


def test_all_forecasts_of_a_loader_and_their_truth():
    data = make_data()
    loader = DataLoader(MeasuredPasts(data, 3), batch_size=2)
    processor = make_processor()
    processor.target_mean, processor.target_std = (0.0, 0.0), (1.0, 1.0)
    last, forecasts, truth = forecast_all(Accelerator(cpu=True), Echo(0.0), data, processor, loader, rollout=2)
    assert np.array_equal(last, data.anomalies[15:22], equal_nan=True)
    assert forecasts.shape == truth.shape == (7, 2, 2, *GRID)
    assert np.array_equal(forecasts[:, 1], last, equal_nan=True)
    assert np.array_equal(truth[:6, 1], data.anomalies[17:23], equal_nan=True) and np.isnan(truth[6, 1]).all()


@pytest.mark.parametrize("ahead", [1, 4])
def test_damping_is_the_best_factor_of_the_training_time(ahead):
    data = make_data()
    factors = damping(data, ahead)
    assert factors.shape == (2,)
    for channel, factor in enumerate(factors):
        before, after = [], []
        for time in range(16 - ahead):
            for place in np.ndindex(GRID):
                before.append(data.anomalies[(time, channel, *place)])
                after.append(data.anomalies[(time + ahead, channel, *place)])
        there = np.isfinite(before) & np.isfinite(after)
        expected = np.linalg.lstsq(np.array(before)[there, None], np.array(after)[there], rcond=None)[0]
        assert factor == pytest.approx(expected.item(), rel=1e-5)


def test_simple_forecasts():
    data = make_data(lead_time=2, history=1)
    last = data.anomalies[14:21]
    forecasts = simple_forecasts(data, last, rollout=8)
    assert {forecast.shape for forecast in forecasts.values()} == {(7, 8, 2, *GRID)}
    missing = np.isnan(last)
    for forecast in forecasts.values():
        assert all(np.array_equal(np.isnan(forecast[:, lead]), missing) for lead in range(8))
    assert np.nanmax(np.abs(forecasts["climatology"])) == 0
    assert np.array_equal(forecasts["persistence"][:, 5], last, equal_nan=True)
    damped = forecasts["damped persistence"]
    assert np.allclose(damped[:, 1, 1], damping(data, 4)[1] * last[:, 1], equal_nan=True)
    assert np.nanmax(np.abs(damped[:, 7])) == 0 < np.nanmax(np.abs(damped[:, 6]))  # 16 training steps


@pytest.mark.parametrize("weighted", [False, True])
def test_rmse_is_that_of_loops(weighted):
    draw = np.random.default_rng(0)
    forecast, truth = draw.normal(size=(2, 4, 3, 2, *GRID))
    forecast[0, 1, 0, 2, 2], truth[:, 2, :, 0, 1], truth[:, :, 1, 2, 3] = np.nan, np.nan, np.nan
    weights = draw.random(GRID).astype(np.float32) if weighted else None
    errors = rmse(forecast, truth, weights)
    for lead, channel in np.ndindex(3, 2):
        total = count = 0.0
        for number in range(4):
            for place in np.ndindex(GRID):
                error = forecast[(number, lead, channel, *place)] - truth[(number, lead, channel, *place)]
                if np.isfinite(error):
                    weight = float(weights[place]) if weighted else 1.0
                    total, count = total + weight * error**2, count + weight
        assert errors[lead, channel] == pytest.approx((total / count) ** 0.5, rel=1e-12)
    truth[:, 1] = np.nan
    assert np.isnan(rmse(forecast, truth, weights)[1]).all()


def test_scores_are_in_the_order_in_which_they_are_told():
    data = make_data()
    last, truth = data.anomalies[15:22], data.anomalies[16:23, None]
    scores = score_all(data, {"perfect": truth}, last, truth, None)
    assert list(scores) == ["perfect", "climatology", "persistence", "damped persistence"]
    assert np.array_equal(scores["perfect"], [[0, 0]])
    assert np.allclose(scores["climatology"][0], np.sqrt(np.nanmean(truth[:, 0].astype(float) ** 2, (0, 2, 3))))
    halves = np.ones(GRID, np.float32)
    halves[0] = 0
    assert scores["persistence"][0, 0] != score_all(data, {}, last, truth, halves)["persistence"][0, 0]
