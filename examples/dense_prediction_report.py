"""What is told about a trained forecaster: its errors beside others', a picture of its forecasts, a model card."""

from pathlib import Path

import numpy as np
from dense_prediction_data import ForecastData
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_data import printable
from image_classification_report import quoted
from matplotlib.figure import Figure
from results import OURS

DRAWN = 3  # forecasts


def leads_in_words(data: ForecastData, rollout: int) -> str:
    """`1, 2, 3 months ahead`."""
    leads = ", ".join(str(lead * data.lead_time) for lead in range(1, rollout + 1))
    step = data.fields.step
    if step[0].isdigit():
        return f"{leads} times {step} ahead"
    return f"{leads} {step}{'' if leads == '1' else 's'} ahead"


def headings(data: ForecastData, rollout: int, weighted: bool) -> list[str]:
    """For each channel, in which unit its errors are and when."""
    how = ", weighted by the cosine of the latitude" if weighted else ""
    return [
        f"RMSE of {name}{f' in {unit}' if unit else ''}{how}, {leads_in_words(data, rollout)}"
        for name, unit in zip(data.fields.channel_names, data.fields.units, strict=True)
    ]


def score_lines(scores: dict[str, np.ndarray], titles: list[str]) -> list[str]:
    """For each channel its title, then a line for each forecast, of its errors (rollout, channels) lead by lead."""
    lines = []
    for channel, title in enumerate(titles):
        lines += [title, *(f"{numbers(errors[:, channel])}  {name}" for name, errors in scores.items())]
    return lines


def numbers(errors: np.ndarray) -> str:
    return " ".join(f"{error:8.4g}" for error in errors)


def draw_forecasts(
    path: Path,
    data: ForecastData,
    forecasts: np.ndarray,
    truth: np.ndarray,
    scores: dict[str, np.ndarray],
) -> None:
    """
    Draws, of the first channel, what came, what was forecast one lead ahead and the difference, for forecasts spread
    evenly over what is measured, and the errors of `scores` by lead. Of more than two axes the middle of the slowest is
    drawn. `forecasts`, `truth`: anomalies (N, rollout, channels, *grid).
    """
    spread = np.unique(np.linspace(0, len(truth) - 1, DRAWN).astype(int)).tolist()
    figure = Figure(figsize=(12, 2 * len(spread) + 4), layout="constrained")
    maps, curves = figure.subfigures(2, 1, height_ratios=[2 * len(spread), 3.5])
    fields, name, unit = data.fields, data.fields.channel_names[0], data.fields.units[0]
    label = f"{name}{f' ({unit})' if unit else ''}"
    mean = "mean seasonal cycle" if len(data.climatology) > 1 else "mean"
    maps.suptitle(f"{label}, less its {mean}", parse_math=False)
    panels = maps.subplots(len(spread), 3, squeeze=False)
    for row, number in zip(panels, spread, strict=True):
        true, forecast = truth[number, 0, 0], forecasts[number, 0, 0]
        time = fields.times[data.first_targets[number]]
        largest = np.nanmax(np.abs(true), initial=1e-6)
        for panel, values, title in zip(
            row, (true, forecast, forecast - true), (time, "forecast", "error"), strict=True
        ):
            image = panel.imshow(
                plane(values), cmap="RdBu_r", vmin=-largest, vmax=largest, origin="lower", aspect="auto"
            )
            panel.set_facecolor("lightgrey")
            panel.set_title(title, fontsize=9, parse_math=False)
            panel.set_xticks([])
            panel.set_yticks([])
        maps.colorbar(image, ax=row)
    panel = curves.subplots()
    leads = data.lead_time * np.arange(1, truth.shape[1] + 1)
    for name, errors in scores.items():
        panel.plot(leads, errors[:, 0], marker="o", label=name)
    panel.set_xlabel(f"steps ahead (step: {fields.step})" if fields.step != "step" else "steps ahead")
    panel.set_ylabel(f"RMSE{f' ({unit})' if unit else ''}")
    panel.set_ylim(bottom=0)
    panel.legend()
    figure.savefig(path, dpi=100)


def plane(values: np.ndarray) -> np.ndarray:
    """Two axes of a field (*grid): the middle of the slower ones, and a row for a single axis."""
    while values.ndim > 2:
        values = values[len(values) // 2]
    return np.atleast_2d(values)


def write_model_card(
    output_dir: Path, data: ForecastData, scores: dict[str, np.ndarray], titles: list[str], hub_model_id: str | None
) -> None:
    """
    Writes `README.md`: what the model was trained on, what it was measured on and the errors there, beside those of
    `scores`, and how to forecast with it.
    """
    name = hub_model_id or printable(output_dir.resolve().name)
    fields, split = data.fields, data.split
    unit = fields.units[0]
    result = EvalResult(
        task_type="image-to-image",
        task_name="Forecast of fields",
        dataset_type=fields.hub_id,
        dataset_name=fields.name,
        metric_type="rmse",
        metric_name=f"RMSE of {fields.channel_names[0]}{f' in {unit}' if unit else ''}",
        metric_value=round(float(scores[OURS][0, 0]), 6),
    )
    card_data = ModelCardData(
        license=fields.license,
        library_name="transformers",
        pipeline_tag="image-to-image",
        tags=["axial-attention", "forecasting"],
        metrics=["rmse"],
        model_name=name,
        eval_results=[result],
    )
    first, last, end = fields.times[0], fields.times[split.first_measured - 1], fields.times[split.end - 1]
    tables = "\n\n".join(
        f"{title}:\n\n| forecast |{' |' * len(scores[OURS])}\n|---|{'---:|' * len(scores[OURS])}\n"
        + "\n".join(
            f"| {who} | {' | '.join(f'{error:.4g}' for error in errors[:, channel])} |"
            for who, errors in scores.items()
        )
        for channel, title in enumerate(titles)
    )
    leads = leads_in_words(data, 1)
    seasonal = "of each calendar month" if len(data.climatology) > 1 else "of all steps"
    text = f"""---
{card_data.to_yaml()}
---

# {name.rpartition("/")[2]}

A forecast of {" and ".join(fields.channel_names)} on a grid of {" x ".join(map(str, fields.grid))} points, {leads} from
the last {data.history}, as a change from the last.

- Trained by `examples/train_dense_prediction.py` on {fields.name}: {split.first_measured} steps, {first} to {last}.
- Measured on the {split.measured_on}: {fields.times[split.first_measured]} to {end}.

{tables}

All are made from the same pasts; those of a model further ahead are made from its forecasts before. The climatology is
the mean {seasonal} in the training time; damped persistence shrinks towards it, as far as was best in that time.

![Forecasts and their errors](predictions.png)

## Use

`climatology.npy` holds the means {seasonal}, {data.climatology.shape}: to be taken off before and added after.

```python
import numpy as np
from transformers import AutoImageProcessor, AutoModelForImageToImage

{loading_lines(name)}


def forecast(past):
    \"\"\"The last {data.history} fields less their climatology, (steps, channels, *grid) -> what comes, likewise.\"\"\"
    seen = {"past[:-1] - past[-1]" if data.setup.drifting else "past"}
    inputs = processor(seen.reshape(-1, *past.shape[2:]), return_tensors="pt")
    (change,) = processor.post_process_dense_prediction(model(**inputs), [past.shape[2:]])
    return past[-1] + change.numpy()
```

`trust_remote_code=True` runs the Python files that lie beside the weights. Read them first, and pin the version that
you have read with `revision="<commit>"`.
"""
    ModelCard(text).save(output_dir / "README.md")


def loading_lines(checkpoint: str) -> str:
    """The lines of Python that load a trained model and its processor."""
    return (
        f"model = AutoModelForImageToImage.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)\n"
        f"processor = AutoImageProcessor.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)"
    )
