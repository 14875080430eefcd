"""
Draws the picture of the first page, of what is in this repository: `python examples/front_picture.py`

Beside each other: which cells one cell of a grid reads, measured by the axis audit, and what three of the checkpoints
make, of classes and of pixels and months that they were not trained on. It takes half a minute.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from autoregressive_report import tile, to_levels
from dense_prediction_data import BUILT_IN, ForecastData, ForecastSetup, split_by_time
from dense_prediction_scores import roll_out
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from segmentation_samples import Nuclei2d

from modeling_axial import (
    AxialConfig,
    AxialForCausalImageModeling,
    AxialForDensePrediction,
    AxialForSemanticSegmentation,
    AxialGridProcessor,
    AxialModel,
)
from modeling_axial.testing import receptive_field

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
PICTURE = CHECKPOINTS.parent / "docs" / "pictures" / "axial.png"
GRID, CELL = (11, 16), (4, 6)


def cells_read(num_layers: int) -> np.ndarray:
    """Boolean (rows, columns): which cells that at `CELL` reads through layers that attend along both axes at once."""
    config = AxialConfig(
        image_size=list(GRID),
        patch_size=1,
        hidden_size=8,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        attention_mode="sum",
    )
    return receptive_field(AxialModel(config), (1, 3, *GRID), CELL, channel_dim=1, output_channel_dim=-1).numpy()


def draw_cells(panel: Axes) -> None:
    """What one layer reads in a dark colour, and what two of them reach in a light one."""
    reached = cells_read(1).astype(int) + cells_read(2)
    panel.pcolormesh(reached, cmap="Blues", vmin=-0.5, vmax=2.6, edgecolors="white", linewidth=0.6)
    panel.plot(CELL[1] + 0.5, CELL[0] + 0.5, "o", color="tab:red", markersize=6)
    panel.invert_yaxis()
    panel.set_aspect("equal")
    read, reached_by_two = (int((reached >= least).sum()) for least in (2, 1))
    panel.set_title(f"reads a row and a column, {read} cells,\nand by two layers all {reached_by_two}")


def draw_digits(panel: Axes) -> None:
    model = AxialForCausalImageModeling.from_pretrained(CHECKPOINTS / "digits-autoregressive").eval()
    drawn = model.generate(
        20,
        class_labels=torch.arange(10).repeat(2),
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        show_progress=True,
    )
    panel.imshow(tile(to_levels(drawn, model.config.vocab_size), columns=5)[:, :, 0], cmap="gray")
    panel.set_title("draws digits,\npixel by pixel")


@torch.no_grad()
def draw_nuclei(panel: Axes) -> None:
    checkpoint = CHECKPOINTS / "nuclei2d"
    model = AxialForSemanticSegmentation.from_pretrained(checkpoint).eval()
    processor = AxialGridProcessor.from_pretrained(checkpoint)
    (grid,) = Nuclei2d(model.config, fold=0).held_out
    part = slice(130, 386)
    values, truth = grid.values[:, part], grid.labels[part]
    outputs = model(**processor(values, return_tensors="pt"))
    (predicted,) = processor.post_process_semantic_segmentation(outputs, [truth.shape])
    panel.imshow(values[0], cmap="gray", vmax=np.percentile(values, 99.5))
    panel.contour(predicted, [0.5], colors="tab:orange", linewidths=0.9)
    panel.set_title("finds nuclei,\nlearnt from half a picture")


@torch.no_grad()
def draw_forecast(panels: list[Axes]) -> None:
    checkpoint = CHECKPOINTS / "sst"
    model = AxialForDensePrediction.from_pretrained(checkpoint).eval()
    processor = AxialGridProcessor.from_pretrained(checkpoint)
    setup, _ = ForecastSetup.load(str(checkpoint))
    fields = BUILT_IN["sst"].read(num_axes=2)
    data = ForecastData(fields, split_by_time(fields, 12, 0, setup.history, setup.lead_time), setup)
    target = data.first_targets[0]
    past = torch.from_numpy(data.past(target))[None]
    forecast = roll_out(model, setup, processor, past, 1, torch.device("cpu"))[0, 0, 0].numpy()
    truth = data.anomalies[target, 0]
    largest = np.nanpercentile(np.abs(truth), 99)
    maps = {"this month": past[0, -1, 0].numpy(), "the next, forecast": forecast, "the next, as it came": truth}
    for panel, (title, field) in zip(panels, maps.items(), strict=True):
        panel.imshow(field, cmap="RdBu_r", vmin=-largest, vmax=largest, origin="lower", aspect="auto")
        panel.set_facecolor("lightgrey")
        panel.set_title(title)


def draw(path: Path) -> None:
    figure = Figure(figsize=(13, 3.3), layout="constrained")
    cells, digits, nuclei, sea = figure.subfigures(1, 4, width_ratios=[1.25, 1.1, 1, 1.5])
    panels = [part.subplots() for part in (cells, digits, nuclei)]
    for draw_panel, panel in zip((draw_cells, draw_digits, draw_nuclei), panels, strict=True):
        draw_panel(panel)
    sea.suptitle("forecasts the warmth of the sea, around the equator", fontsize=10)
    maps = list(sea.subplots(3, 1))
    draw_forecast(maps)
    for panel in (*panels, *maps):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.title.set_fontsize(10 if panel in panels else 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PICTURE, help="The file to write. Default: that of the README.")
    path = parser.parse_args(arguments).output
    draw(path)
    print(f"Drawn: {path}")


if __name__ == "__main__":
    main()
