"""What is told about a classifier of clips: its accuracies beside those of others, a picture, a model card."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_data import printable
from image_classification_report import quoted, shortened, stretched
from image_classification_scores import Scores
from matplotlib.figure import Figure
from results import OURS
from torch.utils.data import Dataset
from video_classification_data import ClipFolder, Films

DRAWN, COLUMNS, FRAMES = 15, 3, 4  # clips, of which so many stand side by side, and frames of each


def accuracies(scores: Scores, label_names: Sequence[str]) -> dict[str, float]:
    """
    The share of the clips whose class is right; the mean of these shares over the classes; and that of each class.
    Classes without a clip are left out.
    """
    recall = scores.per_class["recall"]
    of_classes = {f"accuracy {name}": share for name, share in zip(label_names, recall.tolist(), strict=True)}
    means = {"accuracy": scores.accuracy, "mean accuracy": recall.nanmean().item()}
    return means | {name: share for name, share in of_classes.items() if not math.isnan(share)}


def score_lines(scores: dict[str, dict[str, float]]) -> list[str]:
    """The head of a table, and a line for each of `scores`."""
    names = list(next(iter(scores.values())))
    lines = [f"{', '.join(names[:2])}, of each class: {', '.join(name.partition(' ')[2] for name in names[2:])}"]
    return lines + [f"{' '.join(f'{number:.4f}' for number in its.values())}  {who}" for who, its in scores.items()]


def draw_predictions(
    path: Path, dataset: Dataset, predictions: torch.Tensor, labels: torch.Tensor, label_names: Sequence[str]
) -> None:
    """
    Draws clips spread evenly over `dataset`, and the first of those that are classified wrongly, as some of their
    frames side by side. `predictions` and `labels`: (len(dataset),), as numbers.
    """
    total = len(labels)
    spread = np.unique(np.linspace(0, total - 1, DRAWN).astype(int)).tolist()
    wrong = torch.nonzero(predictions != labels).flatten().tolist()
    some = [wrong[i] for i in np.unique(np.linspace(0, len(wrong) - 1, 2 * COLUMNS).astype(int))] if wrong else []
    parts = {
        f"{len(spread)} of {total} clips that training has not seen: predicted class": spread,
        f"{len(some)} of {len(wrong)} errors: predicted ≠ true class": some,
    }
    rows = [max(1, -(-len(indices) // COLUMNS)) for indices in parts.values()]
    figure = Figure(figsize=(4 * COLUMNS, 1.35 * sum(rows) + 1), layout="constrained")
    for part, count, (title, indices) in zip(
        figure.subfigures(2, 1, height_ratios=[count + 0.3 for count in rows]), rows, parts.items(), strict=True
    ):
        part.suptitle(title)
        panels = part.subplots(count, COLUMNS, squeeze=False).ravel()
        for panel in panels:
            panel.axis("off")
        for panel, index in zip(panels, indices, strict=False):
            predicted, true = (shortened(label_names[its[index]]) for its in (predictions, labels))
            right = bool(predictions[index] == labels[index])
            panel.imshow(side_by_side(dataset[index][0]), cmap="gray")
            panel.set_title(
                predicted if right else f"{predicted} ≠ {true}",
                color="green" if right else "red",
                fontsize=9,
                parse_math=False,  # a name may hold dollar signs
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box
        figure.savefig(path, dpi=100)


def side_by_side(clip: torch.Tensor) -> np.ndarray:
    """(T, C, H, W) -> (H, W of each of some frames, C) from 0, the darkest value of the clip, to 1, the brightest."""
    numbers = np.unique(np.linspace(0, len(clip) - 1, FRAMES).astype(int)).tolist()
    return stretched(torch.cat([clip[number] for number in numbers], -1))


def write_model_card(
    output_dir: Path,
    data: ClipFolder | Films,
    scores: dict[str, dict[str, float]],
    num_frames: int,
    hub_model_id: str | None,
) -> None:
    """
    Writes `README.md`: what the model was trained on, what it was measured on and the accuracies there, beside those
    of `scores`, and the lines that use it.
    """
    name = hub_model_id or printable(output_dir.resolve().name)
    result = EvalResult(
        task_type="video-classification",
        dataset_type=data.hub_id,
        dataset_name=data.name,
        metric_type="accuracy",
        metric_value=round(scores[OURS]["accuracy"], 6),
    )
    card_data = ModelCardData(
        license=data.license,
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["axial-attention", "video-classification"],
        metrics=["accuracy"],
        model_name=name,
        eval_results=[result],
    )
    heads = [head.replace("|", "\\|") for head in scores[OURS]]
    table = "\n".join(
        f"| {who} | {' | '.join(f'{number:.4f}' for number in its.values())} |" for who, its in scores.items()
    )
    text = f"""---
{card_data.to_yaml()}
---

# {name.rpartition("/")[2]}

A classifier of clips, with {len(data.label_names)} classes. It sees {num_frames} frames, spread evenly over a clip.

- Trained by `examples/train_video_classification.py` on {data.trained_on}.
- Measured on {data.measured_on}.

| | {" | ".join(heads)} |
|---|{"---:|" * len(heads)}
{table}

![Clips and predictions](predictions.png)

## Use

```python
import av
import numpy as np
from transformers import AutoImageProcessor, AutoModelForVideoClassification

{loading_lines(name)}


def classify(path):
    with av.open(path) as film:
        clip = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    logits = model(**processor([clip], return_tensors="pt")).logits
    return model.config.id2label[logits.argmax().item()]
```

`trust_remote_code=True` runs the Python files that lie beside the weights. Read them first, and pin the version that
you have read with `revision="<commit>"`.
"""
    ModelCard(text).save(output_dir / "README.md")


def loading_lines(checkpoint: str) -> str:
    """The lines of Python that load a trained model and its processor."""
    return (
        f"model = AutoModelForVideoClassification.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)\n"
        f"processor = AutoImageProcessor.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)"
    )
