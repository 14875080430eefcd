"""What is told about a trained autoregressive model: samples and completions as pictures, and a model card."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_data import printable
from image_classification_report import quoted
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from modeling_axial import AxialDecoderConfig, AxialForCausalImageModeling

COLUMNS = 10
MOST_ROWS = 10  # of samples class by class


def class_names(config: AxialDecoderConfig) -> list[str]:
    """The names of the classes of a model, in the order of their numbers; their numbers where it stores no names."""
    numbers = range(config.num_classes or 0)
    names = [str(config.id2label.get(number)) for number in numbers]
    stored = len(config.id2label) == len(names) and names != [f"LABEL_{number}" for number in numbers]
    return names if stored else [str(number) for number in numbers]


def to_levels(input_ids: torch.Tensor, vocab_size: int) -> np.ndarray:
    """
    Integers of a model to uint8 from 0 to 255, channels last: (N, C, *grid) -> (N, *grid, C). Of up to 256 levels each
    becomes a value that `Tokens` takes for it.
    """
    levels = (input_ids.float() * (255 / (vocab_size - 1))).round()
    if vocab_size <= 256:
        first, behind = (-(-256 * (input_ids.long() + more) // vocab_size) for more in (0, 1))
        levels = levels.clamp(first, behind - 1)
    return levels.to(torch.uint8).movedim(1, -1).cpu().numpy()


def tile(pictures: np.ndarray, columns: int, border: int = 1) -> np.ndarray:
    """
    Pictures side by side, `columns` in a row, with a grey border around each: uint8 (N, height, width, C) to
    (height', width', C). A clip (N, time, height, width, C) becomes a row of its frames.
    """
    if pictures.ndim == 5:
        pictures = np.concatenate(list(pictures.swapaxes(0, 1)), axis=2)
    edges = ((0, 0), (border, 0), (border, 0), (0, 0))
    pictures = np.pad(pictures, edges, constant_values=128)
    missing = -len(pictures) % columns
    pictures = np.concatenate([pictures, np.full_like(pictures[:1], 128).repeat(missing, axis=0)])
    rows = [np.concatenate(list(row), axis=1) for row in pictures.reshape(-1, columns, *pictures.shape[1:])]
    return np.pad(np.concatenate(rows), ((0, border), (0, border), (0, 0)), constant_values=128)


def tile_known(pictures: np.ndarray, known: np.ndarray, columns: int) -> np.ndarray:
    """The same with a fourth channel, opacity, which is 0 where `known` (N, [time,] height, width) is False."""
    tiled, seen = tile(pictures, columns), tile(known[..., None] * np.uint8(255), columns)
    return np.concatenate([np.broadcast_to(tiled, (*tiled.shape[:2], 3)), (seen > 0) * np.uint8(255)], -1)


def draw_tiles(path: Path, panels: dict[str, np.ndarray]) -> None:
    """Draws tiled pictures beside each other, each under its title. What is transparent is hatched."""
    heights, widths = zip(*(panel.shape[:2] for panel in panels.values()), strict=True)
    scale = max(1.5 / min(heights), 8 / sum(widths), 0.01)  # inches for each pixel, which is a dot at least
    figure = Figure(figsize=(scale * sum(widths) + 0.4, scale * max(heights) + 0.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for panel, (title, picture) in zip(axes, panels.items(), strict=True):
        if picture.shape[-1] == 4:
            behind = {"facecolor": "white", "edgecolor": "0.6", "hatch": "////", "lw": 0, "zorder": -1}
            panel.add_patch(Rectangle((0, 0), 1, 1, transform=panel.transAxes, **behind))
        panel.imshow(
            picture[:, :, 0] if picture.shape[-1] == 1 else picture,
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest",
        )
        panel.set_title(title, fontsize=9, parse_math=False)  # a name may hold dollar signs
        panel.axis("off")
    figure.savefig(path, dpi=100)


def draw_samples(
    path: Path, model: AxialForCausalImageModeling, generator: torch.Generator, guidance_scale: float = 1.0
) -> torch.Tensor:
    """Draws pictures of the model at temperature 1: a row for each of the first classes, or 4 rows. Returns them."""
    config = model.config
    clips = len(config.image_size) == 3
    columns = 1 if clips else COLUMNS
    labels = None
    names = class_names(config)[:MOST_ROWS]
    if names:
        labels = torch.arange(len(names), device=model.device).repeat_interleave(columns)
    num_images = 4 * columns if labels is None else len(labels)
    drawn = model.generate(
        num_images, class_labels=labels, generator=generator, guidance_scale=guidance_scale, show_progress=True
    )
    title = "drawn by the model" + (f", a row for each of {', '.join(names)}" if names else "")
    draw_tiles(path, {textwrap.shorten(title, 100): tile(to_levels(drawn, config.vocab_size), columns)})
    return drawn


def draw_completions(
    path: Path,
    model: AxialForCausalImageModeling,
    dataset: Dataset,
    generator: torch.Generator,
    guidance_scale: float = 1.0,
) -> None:
    """Draws how the model goes on from the first half (top, or earlier frames) of pictures spread over `dataset`."""
    rows, columns = (4, 1) if len(model.config.image_size) == 3 else (6, 2)
    indices = np.unique(np.linspace(0, len(dataset) - 1, rows * columns).astype(int)).tolist()
    batch = {name: values.to(model.device) for name, values in dataset[indices].items()}
    original = batch["input_ids"]
    known = torch.zeros_like(original, dtype=torch.bool)
    known[:, :, : original.shape[2] // 2] = True
    drawn = model.generate(
        len(original),
        class_labels=batch.get("class_labels"),
        known=(original, known),
        generator=generator,
        guidance_scale=guidance_scale,
        show_progress=True,
    )
    drawn, original = (to_levels(pictures, model.config.vocab_size) for pictures in (drawn, original))
    given = tile_known(original, known[:, 0].cpu().numpy(), columns)
    draw_tiles(path, {"given": given, "drawn by the model": tile(drawn, columns), "original": tile(original, columns)})


def classes_of_judge(classifier: str, of_model: Sequence[str]) -> torch.Tensor:
    """
    For each class of a classifier, the class of the model, of these names, that it stands for: by its name, or by its
    number, where the classifier has no names of its own (`LABEL_0`, ...).

    Raises:
        `ValueError`: for another number of classes, or other names.
    """
    config = AutoConfig.from_pretrained(classifier)
    if config.num_labels != len(of_model):
        raise ValueError(
            f"the classifier {classifier} has {config.num_labels} classes, the model {len(of_model)}; they must be the "
            "same"
        )
    names = [str(config.id2label[index]) for index in range(len(of_model))]
    if names == [f"LABEL_{index}" for index in range(len(of_model))]:
        return torch.arange(len(of_model))
    if sorted(names) != sorted(of_model):
        raise ValueError(
            f"the classifier {classifier} has the classes {names}, the model {list(of_model)}; give the config.json of "
            "the classifier these names in id2label, in the order of its classes"
        )
    return torch.tensor([of_model.index(name) for name in names])


@torch.no_grad()
def recognised_share(
    model: AxialForCausalImageModeling,
    classifier: str,
    num_images: int,
    generator: torch.Generator,
    guidance_scale: float = 1.0,
) -> float:
    """
    The share of pictures, drawn at temperature 1 for each class in turn, that a classifier takes for what they are to
    be. `classifier`: a checkpoint whose classes are those of the model, in any order.
    """
    classes = classes_of_judge(classifier, class_names(model.config))
    judge = AutoModelForImageClassification.from_pretrained(classifier).eval()
    processor = AutoImageProcessor.from_pretrained(classifier)
    labels = torch.arange(num_images) % model.config.num_classes
    drawn = model.generate(
        num_images,
        class_labels=labels.to(model.device),
        generator=generator,
        guidance_scale=guidance_scale,
        show_progress=True,
    )
    pictures = to_levels(drawn, model.config.vocab_size)
    pictures = [picture[..., 0] if picture.shape[-1] == 1 else picture for picture in pictures]
    predicted = classes[judge(**processor(pictures, return_tensors="pt")).logits.argmax(-1)]
    return (predicted == labels).float().mean().item()


def write_model_card(
    output_dir: Path,
    data,
    bits_per_dim: float,
    measured: dict[str, str],
    guidance_scale: float,
    hub_model_id: str | None,
) -> None:
    """
    Writes `README.md`: what the model was trained on, what it was measured on and the bits per dimension there, what
    else was measured, and the use.
    """
    name = hub_model_id or printable(output_dir.resolve().name)
    result = EvalResult(
        task_type="unconditional-image-generation",
        task_name="Autoregressive image modelling",
        dataset_type=data.hub_id,
        dataset_name=data.name,
        metric_type="bits_per_dim",
        metric_name="Bits per dimension, held-out",
        metric_value=round(bits_per_dim, 6),
    )
    card_data = ModelCardData(
        license=data.license,
        library_name="transformers",
        pipeline_tag="unconditional-image-generation",
        tags=["axial-attention", "autoregressive"],
        model_name=name,
        eval_results=[result],
    )
    rows = {f"bits per dimension on {len(data.held_out)} held-out examples": f"{bits_per_dim:.4f}"} | measured
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    text = f"""---
{card_data.to_yaml()}
---

# {name.rpartition("/")[2]}

An autoregressive Axial Transformer.

- Trained by `examples/train_autoregressive_image.py` on {data.trained_on}.
- Measured on {data.measured_on}.

| measured | |
|---|---|
{table}

![Pictures drawn by the model](samples.png)

## Use

```python
import torch
from transformers import AutoModelForCausalLM

{loading_line(name)}
pictures = model.generate({generate_arguments(data, guidance_scale)})  # integers (pictures, channels, *grid)
```

`trust_remote_code=True` runs the Python files that come with the model. Read them first, and pin the version that you
have read with `revision="<commit>"`.
"""
    ModelCard(text).save(output_dir / "README.md")


def generate_arguments(data, guidance_scale: float) -> str:
    """Of the call in the model card."""
    labels = data.held_out.class_labels
    classes = ""
    if labels is not None:
        classes = f", class_labels=torch.tensor({[number % (int(labels.max()) + 1) for number in range(4)]})"
    return f"num_images=4{classes}" + (f", guidance_scale={guidance_scale:g}" if guidance_scale > 1 else "")


def loading_line(checkpoint: str) -> str:
    """The line of Python that loads a trained model."""
    return f"model = AutoModelForCausalLM.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)"
