"""What is told about a trained classifier: its numbers beside baselines, pictures of them, a model card."""

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_data import Digits, HubPictures, PictureFolder, printable
from image_classification_scores import Scores
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import Dataset

from modeling_axial import AxialForImageClassification, AxialSelfAttention, InducedAxialAttention

WIDTH, COLUMNS, ROWS = 10, 8, 2  # of the figure, in inches, and of each part of it, in pictures
LINE_LENGTH = 15  # in letters: what fits above a picture
PRINTED_CLASSES = 50  # more of them are told in files alone
NAMED_CLASSES = 30  # more of them are drawn without their names


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
    path: Path, model: nn.Module, dataset: Dataset, scores: Scores, label_names: Sequence[str]
) -> None:
    """
    Draws what a classifier says of a data set that has these `scores`: some of the pictures that it takes for what they
    are, some of the others, which classes it takes for which, if there are three at least, and, for an axial model
    without inducing points, where pictures are attended to along each axis.
    """
    right = scores.predictions == scores.labels
    sections = []  # heights in inches, titles, and what draws them
    text = 0.38 + 0.14 * max(wrapped(name).count("\n") for name in label_names)  # a name and a probability
    for indices, title, height in (
        (right.nonzero().flatten(), "recognised", 1.2 + text),
        ((~right).nonzero().flatten(), "errors: predicted class above, true class below", 1.2 + 2 * text),
    ):
        if shown := _spread(indices, ROWS * COLUMNS):
            draw = partial(
                _draw_pictures, model=model, dataset=dataset, indices=shown, scores=scores, names=label_names
            )
            sections.append((height * -(-len(shown) // COLUMNS), f"{len(shown)} of {len(indices):,} {title}", draw))
    if len(label_names) > 2:
        draw = partial(_draw_confusion, scores=scores, names=label_names)
        sections.append((min(2 + 0.3 * len(label_names), WIDTH), "which class is taken for which", draw))
    if isinstance(model, AxialForImageClassification) and all(axis.mixer == "full" for axis in model.config.axes):
        pixel_values = torch.stack([dataset[index][0] for index in _spread(torch.arange(len(right)), COLUMNS)])
        title = "attention that each patch receives, as a multiple of an even share (mean over layers and heads)"
        sections.append((3.7, title, partial(_draw_attention, model=model, pixel_values=pixel_values)))

    heights = [height + 0.3 for height, _, _ in sections]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(f"accuracy {scores.accuracy:.2%} on {len(right):,} pictures", fontsize=14)
    parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=heights).ravel()
    for part, (_, title, draw) in zip(parts, sections, strict=True):
        part.suptitle(title)
        draw(part)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box
        figure.savefig(path, dpi=100)


def _spread(indices: torch.Tensor, most: int) -> list[int]:
    """At most so many of the indices (N,), spread evenly."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, most).astype(int))].tolist() if len(indices) else []


def wrapped(name: str) -> str:
    """The name of a class in at most two lines that fit above a picture."""
    lines = textwrap.wrap(_line(name), LINE_LENGTH)
    if len(lines) > 2:
        lines = [lines[0], lines[1][: LINE_LENGTH - 1].rstrip(" ,;") + "…"]
    return "\n".join(lines)


def _line(name: str) -> str:
    """The name of a class in one line."""
    return " ".join(name.split())


def shortened(name: str, length: int = LINE_LENGTH) -> str:
    """The same, cut to so many letters."""
    name = _line(name)
    return name if len(name) <= length else name[: length - 1].rstrip(" ,;") + "…"


def _draw_pictures(
    figure, model: nn.Module, dataset: Dataset, indices: list[int], scores: Scores, names: Sequence[str]
) -> None:
    """Pictures under their predicted classes and, of errors, above the true ones, with the probabilities of both."""
    panels = figure.subplots(-(-len(indices) // COLUMNS), COLUMNS, squeeze=False).ravel()
    for panel, index in zip(panels, indices, strict=False):
        picture = dataset[index][0]
        with torch.inference_mode():
            probabilities = model(pixel_values=picture[None].to(model.device)).logits[0].float().softmax(-1).cpu()
        predicted, true = int(scores.predictions[index]), int(scores.labels[index])
        above, below = (f"{wrapped(names[label])}\n{probabilities[label]:.0%}" for label in (predicted, true))
        panel.imshow(stretched(picture), cmap="gray")
        # A name may hold dollar signs, which are no formula.
        panel.set_title(above, color="black" if predicted == true else "red", fontsize=8, parse_math=False)
        if predicted != true:
            panel.set_xlabel(below, color="green", fontsize=8, parse_math=False)
    for panel in panels:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for panel in panels[len(indices) :]:
        panel.axis("off")


def _draw_confusion(figure, scores: Scores, names: Sequence[str]) -> None:
    """How many pictures of each class are taken for which, coloured by their share of those of the class."""
    shares = (scores.confusion / scores.support[:, None].clamp(min=1)).numpy()
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # a small share is to be seen, too
    panel.set(xlabel="predicted class", ylabel="true class", xticks=[], yticks=[])
    if len(names) > NAMED_CLASSES:
        return
    for row, column in scores.confusion.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.3 else "black"
        panel.text(column, row, f"{scores.confusion[row, column]}", ha="center", va="center", color=colour, fontsize=7)
    names = [shortened(name, 2 * LINE_LENGTH) for name in names]
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    panel.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)


def _draw_attention(figure, model: AxialForImageClassification, pixel_values: torch.Tensor) -> None:
    """One column for each picture: itself, then over it what its patches receive along the height, and the width."""
    with torch.inference_mode():
        attentions = model(pixel_values=pixel_values.to(model.device), output_attentions=True).attentions
    grid_shape = [
        pixels // patch for pixels, patch in zip(pixel_values.shape[2:], model.config.patch_shape, strict=True)
    ]
    received = torch.stack(attention_received(attentions, grid_shape)).float().cpu().numpy()
    panels = figure.subplots(3, len(pixel_values), squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    norm = TwoSlopeNorm(1, 0, max(2, received.max()))
    for column, picture, maps in zip(panels.T, pixel_values, received.swapaxes(0, 1), strict=True):
        column[0].imshow(stretched(picture), cmap="gray")
        height, width = picture.shape[1:]
        for panel, values in zip(column[1:], maps, strict=True):
            # Paler than it is, so that colours show on what is dark. An even share has no colour.
            panel.imshow(stretched(picture).mean(-1), cmap="gray", vmin=-1, vmax=1)
            strength = 1.6 * abs(norm(values) - 0.5)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            panel.imshow(values, cmap="RdBu_r", norm=norm, alpha=strength, extent=extent)
    for panel, name in zip(panels[:, 0], ("picture", "along the height", "along the width"), strict=True):
        panel.set_ylabel(name, fontsize=8)
    figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=panels[1:])


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
