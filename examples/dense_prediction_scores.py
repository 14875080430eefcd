"""Forecasts, those of a model step by step and those to compare with, and how far they are from the truth."""

import numpy as np
import torch
from accelerate import Accelerator
from dense_prediction_data import ForecastData, ForecastSetup
from torch.utils.data import DataLoader

from modeling_axial import AxialGridProcessor


@torch.no_grad()
def roll_out(
    model: torch.nn.Module,
    setup: ForecastSetup,
    processor: AxialGridProcessor,
    past: torch.Tensor,
    rollout: int,
    device: torch.device,
) -> torch.Tensor:
    """
    Forecasts of a model, each made from the one before: pasts (B, history, channels, *grid) to float32 (B, rollout,
    channels, *grid), on the device. Where the last step of a past is missing, so are its forecasts.
    """
    grid = past.shape[3:]
    forecasts = []
    for _ in range(rollout):
        batch = processor([setup.as_channels(each) for each in past.cpu()], return_tensors="pt").to(device)
        changes = processor.post_process_dense_prediction(model(**batch), [grid] * len(past))
        forecasts.append(past[:, -1] + torch.stack(changes).to(past))
        past = torch.cat([past[:, 1:], forecasts[-1][:, None]], dim=1)
    return torch.stack(forecasts, dim=1)


def forecast_all(
    accelerator: Accelerator,
    model: torch.nn.Module,
    data: ForecastData,
    processor: AxialGridProcessor,
    loader: DataLoader,
    rollout: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    What a model forecasts for a loader of `MeasuredPasts`, the same on every process: the last steps of the pasts (N,
    channels, *grid), the forecasts and the truth (N, rollout, channels, *grid), all anomalies.
    """
    model.eval()
    parts = []
    for past, truth in loader:
        forecast = roll_out(model, data.setup, processor, past, rollout, accelerator.device)
        gathered = accelerator.gather_for_metrics((past[:, -1].contiguous(), forecast, truth[:, :rollout].contiguous()))
        parts.append([values.cpu().numpy() for values in gathered])
    last, forecasts, truth = (np.concatenate(part) for part in zip(*parts, strict=True))
    return last, forecasts, truth


def damping(data: ForecastData, ahead: int) -> np.ndarray:
    """
    (channels,): the number by which to multiply an anomaly to be nearest, in least squares over the training time, to
    that of `ahead` steps later.
    """
    anomalies = data.anomalies[: data.split.first_measured].astype(np.float64)
    before, after = anomalies[:-ahead], anomalies[ahead:]
    there = ~np.isnan(before) & ~np.isnan(after)
    before, after = (np.where(there, values, 0) for values in (before, after))
    over = (0, *range(2, before.ndim))
    return (before * after).sum(over) / np.square(before).sum(over)


def simple_forecasts(data: ForecastData, last: np.ndarray, rollout: int) -> dict[str, np.ndarray]:
    """
    What needs no model, each (N, rollout, channels, *grid): the climatology, the last step of the past (N, channels,
    *grid) as it is, and drawn towards the climatology by `damping`. Without training steps so far apart, nothing is
    left of the last step.
    """
    count = data.split.first_measured
    factors = np.zeros((rollout, last.shape[1]))
    for lead in range(1, rollout + 1):
        if lead * data.lead_time < count:
            factors[lead - 1] = damping(data, lead * data.lead_time)
    factors = {"climatology": 0 * factors, "persistence": factors**0, "damped persistence": factors}
    grid = [1] * len(data.fields.grid)
    return {name: factor.reshape(*factor.shape, *grid) * last[:, None] for name, factor in factors.items()}


def rmse(forecast: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """
    The root of the mean square error (rollout, channels) of (N, rollout, channels, *grid), in float64, over what is
    there in both; the places count as `weights` (*grid) say. NaN where nothing is there.
    """
    error = forecast.astype(np.float64) - truth
    counted = ~np.isnan(error) * (1.0 if weights is None else weights.astype(np.float64))
    over = (0, *range(3, error.ndim))
    with np.errstate(invalid="ignore"):
        return np.sqrt((np.square(np.nan_to_num(error)) * counted).sum(over) / counted.sum(over))


def score_all(
    data: ForecastData,
    forecasts: dict[str, np.ndarray],
    last: np.ndarray,
    truth: np.ndarray,
    weights: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """`rmse` of forecasts (N, rollout, channels, *grid) by the names of what made them, then of `simple_forecasts`."""
    forecasts = forecasts | simple_forecasts(data, last, truth.shape[1])
    return {name: rmse(forecast, truth, weights) for name, forecast in forecasts.items()}
