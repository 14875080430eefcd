"""What is told about a model that was pretrained on hidden patches: errors, a picture, a model card."""

from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_data import printable
from image_classification_report import quoted
from masked_image_data import PictureTrees, UnlabelledDigits, fill_from_neighbours, hidden_pixels
from matplotlib.figure import Figure
from results import OURS
from torch.utils.data import Dataset

from modeling_axial import AxialForMaskedImageModeling

DRAWN = 8  # pictures


def score_lines(errors: dict[str, float]) -> list[str]:
    """The head of a table, and a line for each of `errors`."""
    lines = ["mean absolute error of hidden pixels, which lie in [-1, 1]"]
    return lines + [f"{error:.4f}  {who}" for who, error in errors.items()]


@torch.no_grad()
def draw_reconstructions(path: Path, model: AxialForMaskedImageModeling, dataset: Dataset, total: int) -> None:
    """
    Draws pictures spread evenly over `dataset`, items (pixel_values, mask): whole, as the model sees them, with what it
    puts in the place of what is hidden, and with what neighbours would.
    """
    spread = np.unique(np.linspace(0, total - 1, DRAWN).astype(int)).tolist()
    pictures, masks = (torch.stack(parts) for parts in zip(*(dataset[index] for index in spread), strict=True))
    hidden = hidden_pixels(masks, model.config.patch_shape)
    output = model(pixel_values=pictures.to(model.device), bool_masked_pos=masks.to(model.device))
    rows = {
        "picture": pictures,
        "what is seen": pictures.masked_fill(hidden, torch.nan),
        "reconstruction": torch.where(hidden, output.reconstruction.float().cpu(), pictures),
        "from neighbours": fill_from_neighbours(pictures, hidden),
    }
    figure = Figure(figsize=(1.4 * len(spread) + 0.5, 1.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(spread), squeeze=False)
    for row, (name, drawn) in zip(panels, rows.items(), strict=True):
        row[0].set_ylabel(name)
        for panel, picture, whole in zip(row, drawn, pictures, strict=True):
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_facecolor("steelblue")  # shines through where there is no number
            values = ((picture - whole.min()) / (whole.max() - whole.min()).clamp(min=1e-6)).clamp(0, 1)
            values = values.permute(1, 2, 0).numpy()
            if values.shape[-1] == 3:  # opacity, as colours that are no numbers are drawn in black
                values = np.concatenate([np.nan_to_num(values), ~np.isnan(values[..., :1])], -1)
            panel.imshow(values[..., 0] if values.shape[-1] < 3 else values, cmap="gray", vmin=0, vmax=1)
    figure.savefig(path, dpi=100)


def write_model_card(
    output_dir: Path,
    data: UnlabelledDigits | PictureTrees,
    errors: dict[str, float],
    mask_ratio: float,
    hub_model_id: str | None,
) -> None:
    """
    Writes `README.md`: what the model was trained on, what it was measured on and the error there, beside those of
    `errors`, and how to go on from it.
    """
    name = hub_model_id or printable(output_dir.resolve().name)
    result = EvalResult(
        task_type="masked-image-modeling",
        dataset_type=data.hub_id,
        dataset_name=data.name,
        metric_type="mae",
        metric_value=round(errors[OURS], 6),
    )
    card_data = ModelCardData(
        license=data.license,
        library_name="transformers",
        tags=["axial-attention", "masked-image-modeling"],
        metrics=["mae"],
        model_name=name,
        eval_results=[result],
    )
    table = "\n".join(f"| {who} | {error:.4f} |" for who, error in errors.items())
    text = f"""---
{card_data.to_yaml()}
---

# {name.rpartition("/")[2]}

Reconstructs hidden patches of pictures, {mask_ratio:.0%} of them: a start for models of other tasks.

- Trained by `examples/pretrain_masked_image_modeling.py` on {data.trained_on}.
- Measured on {data.measured_on}.

| | mean absolute error of hidden pixels, in [-1, 1] |
|---|---:|
{table}

![Pictures, what is seen of them, and reconstructions](reconstructions.png)

## Use

```python
from transformers import AutoImageProcessor, AutoModelForMaskedImageModeling

{loading_lines(name)}
```

`examples/train_image_classification.py --model_name_or_path` starts a classifier from it. Such a start need not be a
good one where pictures are few and small.

`trust_remote_code=True` runs the Python files that lie beside the weights. Read them first, and pin the version that
you have read with `revision="<commit>"`.
"""
    ModelCard(text).save(output_dir / "README.md")


def loading_lines(checkpoint: str) -> str:
    """The lines of Python that load a trained model and its processor."""
    return (
        f"model = AutoModelForMaskedImageModeling.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)\n"
        f"processor = AutoImageProcessor.from_pretrained({quoted(checkpoint)}, trust_remote_code=True)"
    )
