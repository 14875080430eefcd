"""What is told about a model that segments: its scores beside others', a picture of its maps, a model card."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_data import printable
from image_classification_report import quoted
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from results import OURS
from segmentation_data import FolderPairs, LabelledGrid
from segmentation_datasets import HubPairs
from segmentation_samples import BrainTissue, IndianPines, Nuclei
from segmentation_scores import Scores

SegmentationData = Nuclei | BrainTissue | IndianPines | FolderPairs | HubPairs
DRAWN = 3  # grids
# Of an error map: right, wrong, and what does not count.
ERROR_COLOURS = ListedColormap(["white", "red", "lightgrey"])


def score_lines(scores: dict[str, Scores], label_names: Sequence[str]) -> list[str]:
    """The head of a table, and a line for each of `scores`: the accuracy, the mean IoU and that of each class."""
    lines = [f"accuracy, IoU: mean, {', '.join(label_names)}"]
    return lines + [f"{' '.join(f'{number:.4f}' for number in its.numbers())}  {who}" for who, its in scores.items()]


def planes(values: np.ndarray) -> list[np.ndarray]:
    """
    The two-dimensional views of a grid, (*pixels): itself, or, of three axes, the middle slices across each; of more,
    those of the middle of the first ones; a row for a single axis.
    """
    while values.ndim > 3:
        values = values[len(values) // 2]
    if values.ndim == 3:
        return [values.take(length // 2, axis) for axis, length in enumerate(values.shape)]
    return [np.atleast_2d(values)]


def shown(values: np.ndarray) -> list[np.ndarray]:
    """
    The `planes` of a grid (C, *pixels), from 0 to 1: in colour if it has three channels or more, of which those at a
    quarter, half and three quarters are shown, else of the first one.
    """
    if len(values) > 3:
        values = values[[len(values) * quarter // 4 for quarter in (3, 2, 1)]].astype(np.float64)
        darkest, brightest = np.percentile(values, (1, 99), axis=tuple(range(1, values.ndim)), keepdims=True)
    else:
        values = values.astype(np.float64) if len(values) == 3 else values[:1].astype(np.float64)
        darkest, brightest = np.percentile(values, (1, 99))
    values = ((values - darkest) / np.maximum(brightest - darkest, 1e-6)).clip(0, 1)
    views = [np.stack(channels, -1) for channels in zip(*map(planes, values), strict=True)]
    return [view[..., 0] if view.shape[-1] == 1 else view for view in views]


def draw_predictions(
    path: Path,
    predict: Callable[[LabelledGrid], torch.Tensor],
    grids: Sequence[LabelledGrid],
    num_labels: int,
    ignore_index: int,
) -> None:
    """Draws grids spread evenly over `grids`, of volumes the middle slices: input, truth, prediction and errors."""
    spread = np.unique(np.linspace(0, len(grids) - 1, DRAWN).astype(int)).tolist()
    rows = []
    for grid in (grids[number] for number in spread):
        truth, predicted = grid.labels.astype(np.int64), predict(grid).numpy()
        errors = np.where(truth == ignore_index, 2, truth != predicted)
        drawn = np.where(truth == ignore_index, num_labels, truth)
        rows += list(zip(shown(grid.values), *map(planes, (drawn, predicted, errors)), strict=True))

    classes = {"cmap": class_colours(num_labels), "vmin": 0, "vmax": num_labels}
    styles = {
        "input": {"cmap": "gray", "vmin": 0, "vmax": 1},
        "truth": classes,
        "prediction": classes,
        "errors": {"cmap": ERROR_COLOURS, "vmin": 0, "vmax": 2},
    }
    heights = [3 * min(1.5, max(0.3, row[0].shape[0] / row[0].shape[1])) for row in rows]
    figure = Figure(figsize=(12, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(rows), len(styles), squeeze=False, height_ratios=heights)
    for panel, title in zip(panels[0], styles, strict=True):
        panel.set_title(title)
    for row, views in zip(panels, rows, strict=True):
        for panel, view, style in zip(row, views, styles.values(), strict=True):
            panel.imshow(view, interpolation="nearest", **style)
            panel.axis("off")
    figure.savefig(path, dpi=100)


def class_colours(num_labels: int) -> ListedColormap:
    """Black for class 0, a colour for each other one, and grey for what does not count."""
    from matplotlib import colormaps

    others = colormaps["turbo"](np.linspace(0.15, 0.9, num_labels - 1))
    return ListedColormap([(0, 0, 0, 1), *map(tuple, others), (0.5, 0.5, 0.5, 1)])


def write_model_card(
    output_dir: Path,
    data: SegmentationData,
    scores: dict[str, Scores],
    num_axes: int,
    mirror_axes: Sequence[int],
    hub_model_id: str | None,
) -> None:
    """
    Writes `README.md`: what the model was trained on, what it was measured on, along which axes in the mean over mirror
    images, and the IoU there, beside those of `scores`, and the lines that use it.
    """
    name = hub_model_id or printable(output_dir.resolve().name)
    mirrors = ""
    if mirror_axes:
        listed = ",".join(map(str, mirror_axes))
        mirrors = f", in the mean over its mirror images\n  (`examples/predict.py --mirror_axes {listed}`)"
    result = EvalResult(
        task_type="image-segmentation",
        dataset_type=data.hub_id,
        dataset_name=data.name,
        metric_type="mean_iou",
        metric_value=round(scores[OURS].mean_iou, 6),
    )
    card_data = ModelCardData(
        license=data.license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["axial-attention", "semantic-segmentation"],
        metrics=["mean_iou"],
        model_name=name,
        eval_results=[result],
    )
    heads = [label.replace("|", "\\|") for label in data.label_names]
    table = "\n".join(
        f"| {who} | {' | '.join(f'{number:.4f}' for number in its.numbers())} |" for who, its in scores.items()
    )
    text = f"""---
{card_data.to_yaml()}
---

# {name.rpartition("/")[2]}

Gives each pixel of a grid with {num_axes} axes one of {len(data.label_names)} classes.

- Trained by `examples/train_semantic_segmentation.py` on {data.trained_on}.
- Measured on {data.measured_on}{mirrors}.

Accuracy is the share of the pixels whose class is right; the other numbers are intersections over unions:

| | accuracy | mean | {" | ".join(heads)} |
|---|{"---:|" * (len(heads) + 2)}
{table}

![Input, truth, prediction and errors](predictions.png)

## Use

```python
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

{loading_lines(name)}


def segment(grid):
    \"\"\"{data.what_is_taken} -> the class of each pixel.\"\"\"
    inputs = processor(grid, return_tensors="pt")
    (labels,) = processor.post_process_semantic_segmentation(model(**inputs), [grid.shape{data.pixels_of_shape}])
    return labels
```

`trust_remote_code=True` runs the Python files that lie beside the weights. Read them first, and pin the version that
you have read with `revision="<commit>"`.
"""
    ModelCard(text).save(output_dir / "README.md")


def loading_lines(checkpoint: str) -> str:
    """The lines of Python that load a trained model and its processor."""
    return (
        f"model = AutoModelForSemanticSegmentation.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)\n"
        f"processor = AutoImageProcessor.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)"
    )
