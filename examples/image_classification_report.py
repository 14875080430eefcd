"""What is told about a trained classifier: its numbers beside baselines, pictures of them, a model card."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_data import Digits, HubPictures, PictureFolder, printable
from image_classification_scores import Scores
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import Dataset

from modeling_axial import AxialForImageClassification, AxialSelfAttention, InducedAxialAttention

COLUMNS = 10
LINE_LENGTH = 13  # in letters: what fits above a picture
PRINTED_CLASSES = 50  # more of them are told in files alone
DRAWN_CLASSES = 30


@contextmanager
def attention_silenced(model: nn.Module) -> Iterator[None]:
    """Inside, the output of every axial attention in `model` is zero: no cell of the grid learns of another."""
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        for module in model.modules()
        if isinstance(module, AxialSelfAttention | InducedAxialAttention)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def baseline_accuracies(digits: Digits) -> dict[str, float]:
    """Accuracy on the held-out digits of two simple classifiers of the 784 grey values, fitted to the other digits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    pixels = digits.pictures.reshape(len(digits.pictures), -1) / 255
    held_out = digits.held_out
    classifiers = {
        "3 nearest neighbours": KNeighborsClassifier(3),
        "logistic regression": LogisticRegression(max_iter=1000),
    }
    return {
        name: float(
            classifier.fit(pixels[~held_out], digits.labels[~held_out]).score(pixels[held_out], digits.labels[held_out])
        )
        for name, classifier in classifiers.items()
    }


def per_class_rows(scores: Scores, label_names: Sequence[str]) -> list[tuple[str, ...]]:
    """
    Of each class and then of their means: precision, recall, F1, the number of pictures, and the name. Without pictures
    there are no numbers.
    """
    rows = [
        (*(f"{values[label]:.4f}" if count else "-" for values in scores.per_class.values()), str(count), _line(name))
        for label, (name, count) in enumerate(zip(label_names, scores.support.tolist(), strict=True))
    ]
    means = [f"{mean:.4f}" for mean in scores.means().values()]
    return [*rows, (*means, str(len(scores.labels)), "mean of the classes")]


def score_lines(scores: Scores, label_names: Sequence[str]) -> list[str]:
    """The head of a table, and a line for each class and for their means; for the means alone if there are many."""
    rows = per_class_rows(scores, label_names)
    rows = rows if len(label_names) <= PRINTED_CLASSES else rows[-1:]
    lines = [(*scores.per_class, "pictures", "class"), *rows]
    return [f"{''.join(f'{cell:>10}' for cell in cells)}  {name}" for *cells, name in lines]


def score_table(scores: Scores, label_names: Sequence[str]) -> str:
    """The same of all classes in Markdown."""
    rows = [[name.replace("|", "\\|"), *cells] for *cells, name in per_class_rows(scores, label_names)]
    lines = [["class", *scores.per_class, "pictures"], ["---", *["---:"] * (len(scores.per_class) + 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw_confusion(path: Path, scores: Scores, label_names: Sequence[str]) -> None:
    """Draws how many pictures of each class are taken for which, coloured by their share of those of the class."""
    shares = scores.confusion / scores.support[:, None].clamp(min=1)
    side = 2.5 + 0.45 * len(label_names)
    figure = Figure(figsize=(side, side), layout="constrained")
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(shares.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        panel.text(column, row, f"{scores.confusion[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    names = [shortened(name) for name in label_names]
    panel.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    panel.set_yticks(range(len(names)), names, parse_math=False)
    panel.set_xlabel("predicted class")
    panel.set_ylabel("true class")
    _write(figure, path)


def attention_received(attentions: Sequence[torch.Tensor], grid_shape: Sequence[int]) -> list[torch.Tensor]:
    """
    For each axis, how much attention each cell of the grid receives along it, `(B, *grid)`: the mean over layers,
    heads and the cells that look, times the length of the axis, so that 1 is what a cell gets if all get the same.

    Args:
        attentions: as an axial model returns them, one `(B·lines, heads, length, length)` for each layer and axis.
    """
    num_axes = len(grid_shape)
    maps = []
    for axis, length in enumerate(grid_shape):
        other_axes = [other for position, other in enumerate(grid_shape) if position != axis]
        received = torch.stack([weights.mean(dim=(1, 2)) for weights in attentions[axis::num_axes]]).mean(0) * length
        maps.append(received.unflatten(0, (-1, *other_axes)).movedim(-1, axis + 1))
    return maps


def draw_predictions(
    path: Path,
    model: nn.Module,
    dataset: Dataset,
    predictions: torch.Tensor,
    labels: torch.Tensor,
    label_names: Sequence[str],
) -> None:
    """
    Draws pictures spread evenly over `dataset`, the first of those that are classified wrongly, and, for an axial
    model without inducing points, where some of them are attended to along each axis. `predictions` and `labels`:
    (len(dataset),), as numbers.
    """
    spread = np.unique(np.linspace(0, len(dataset) - 1, 4 * COLUMNS).astype(int)).tolist()
    wrong = torch.nonzero(predictions != labels).flatten().tolist()
    rows = -(-len(spread) // COLUMNS)

    figure = Figure(figsize=(COLUMNS, 1.3 * rows + 7), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1.3 * rows + 0.3, 1.7, 5])
    top.suptitle(f"{len(spread)} of {len(dataset)} pictures measured on: predicted class")
    middle.suptitle(f"{min(COLUMNS, len(wrong))} of {len(wrong)} errors: predicted ≠ true class")
    for part, indices, part_rows in ((top, spread, rows), (middle, wrong[:COLUMNS], 1)):
        panels = part.subplots(part_rows, COLUMNS, squeeze=False).ravel()
        for panel in panels:
            panel.axis("off")
        for panel, index in zip(panels, indices, strict=False):
            predicted, true = shortened(label_names[predictions[index]]), shortened(label_names[labels[index]])
            right = bool(predictions[index] == labels[index])
            error = f"{predicted} ≠ {true}"
            if len(error) > LINE_LENGTH:
                error = f"{predicted}\n≠ {true}"
            panel.imshow(stretched(dataset[index][0]), cmap="gray")
            panel.set_title(
                predicted if right else error,
                color="green" if right else "red",
                fontsize=9,
                parse_math=False,  # a name may hold dollar signs
            )
    if isinstance(model, AxialForImageClassification) and all(axis.mixer == "full" for axis in model.config.axes):
        _draw_attention(bottom, model, torch.stack([dataset[index][0] for index in spread[:: COLUMNS - 3]]))
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box
        figure.savefig(path, dpi=100, bbox_inches="tight")


def _line(name: str) -> str:
    """The name of a class in one line."""
    return " ".join(name.split())


def shortened(name: str) -> str:
    """The same, cut to what fits above a picture."""
    name = _line(name)
    return name if len(name) <= LINE_LENGTH else name[: LINE_LENGTH - 1] + "…"


def _draw_attention(figure, model: AxialForImageClassification, pixel_values: torch.Tensor) -> None:
    """One column for each picture: itself, then what its patches receive among the rows, then among the columns."""
    with torch.inference_mode():
        attentions = model(pixel_values=pixel_values.to(model.device), output_attentions=True).attentions
    figure.suptitle("attention that each patch receives (mean over layers and heads; 1 = spread evenly)")
    panels = figure.subplots(3, len(pixel_values), squeeze=False)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    for panel, picture in zip(panels[0], pixel_values, strict=True):
        panel.imshow(stretched(picture), cmap="gray")
    names = ("along the height", "along the width")
    grid_shape = [
        pixels // patch for pixels, patch in zip(pixel_values.shape[2:], model.config.patch_shape, strict=True)
    ]
    for row, name, received in zip(panels[1:], names, attention_received(attentions, grid_shape), strict=True):
        received = received.float().cpu().numpy()
        row[0].set_ylabel(name)
        for panel, values in zip(row, received, strict=True):
            image = panel.imshow(values, cmap="viridis", vmin=0, vmax=received.max())
        figure.colorbar(image, ax=row)


def stretched(pixel_values: torch.Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W, C) from 0 (the darkest value of the picture) to 1 (the brightest)."""
    pixels = pixel_values.permute(1, 2, 0).numpy()
    return (pixels - pixels.min()) / max(np.ptp(pixels), 1e-6)


def write_model_card(
    output_dir: Path,
    data: Digits | HubPictures | PictureFolder,
    measured: dict[str, float],
    hub_model_id: str | None,
    more: Sequence[str] = (),
) -> None:
    """
    Writes `README.md`: what the model was trained on, what it was measured on and the accuracies there (that of the
    model first), `more` paragraphs, and the lines that load it.
    """
    name = hub_model_id or printable(output_dir.resolve().name)
    result = EvalResult(
        task_type="image-classification",
        dataset_type=data.hub_id,
        dataset_name=data.name,
        metric_type="accuracy",
        metric_value=round(next(iter(measured.values())), 6),
    )
    card_data = ModelCardData(
        license=data.license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["axial-attention", "image-classification"],
        metrics=["accuracy"],
        model_name=name,
        eval_results=[result],
    )
    load = "\n".join(loading_lines(name))
    table = "\n".join(f"| {measured_on} | {accuracy:.2%} |" for measured_on, accuracy in measured.items())
    text = f"""---
{card_data.to_yaml()}
---

# {name.rpartition("/")[2]}

An image classifier of {len(data.label_names)} classes.

- Trained by `examples/train_image_classification.py` on {data.trained_on}.
- Measured on {data.measured_on}.

| measured | accuracy |
|---|---|
{table}
{"".join(f"{chr(10)}{paragraph}{chr(10)}" for paragraph in more)}
![Predictions, errors and attention](predictions.png)

## Use

```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

{load}
```

`trust_remote_code=True` runs the Python files that lie beside the weights. Read them first, and pin the version that
you have read with `revision="<commit>"`.
"""
    ModelCard(text).save(output_dir / "README.md")


def loading_lines(checkpoint: str) -> tuple[str, str]:
    """The two lines of Python that load a trained model and its processor."""
    return (
        f"model = AutoModelForImageClassification.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)",
        f"processor = AutoImageProcessor.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)",
    )


def quoted(text: str) -> str:
    """The literal of a text in Python, in double quotes unless it holds some."""
    literal = repr(text)
    return literal if '"' in text else f'"{literal[1:-1]}"'
