"""
Draws the numbers of a training run over its steps: `metrics.jsonl` of its folder becomes `curves.png` there.

    python examples/curves.py outputs/digits

The training scripts do so at their end; this is for a run that is still going on, or was stopped.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modeling_axial.training import read_metrics, read_units

COLUMNS = 3
MOST_NAMES = 12  # that a legend has room for
OF_STEPS = ("learning_rate", "grad_norm")  # how a run goes; behind what it reaches


def panels_of(names: Sequence[str]) -> dict[str, list[str]]:
    """
    Which numbers share a panel, by its title: all losses, and what begins with the same word, such as `iou cell` and
    `iou nucleus`.
    """
    panels = defaultdict(list)
    for name in sorted(names, key=OF_STEPS.__contains__):
        panels["loss" if name.endswith("loss") else name.partition(" ")[0]].append(name)
    return dict(panels)


def draw_curves(folder: Path) -> None:
    """Draws `curves.png` of the `metrics.jsonl` in a folder, with its units; nothing if it has no numbers yet."""
    lines, units = read_metrics(folder / "metrics.jsonl"), read_units(folder / "metrics.jsonl")
    names = [name for name in {name: None for line in lines for name in line} if name not in ("step", "epoch")]
    panels = panels_of(names)
    if not panels:
        return
    columns = min(COLUMNS, math.ceil(math.sqrt(len(panels))))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="tight")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (title, members) in zip(axes, panels.items(), strict=False):
        for name in members:
            steps, values = zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)
            panel.plot(steps, values, lw=1.2, marker="." if len(steps) <= 30 else None, label=name)
        shown = dict.fromkeys(units[name] for name in members if name in units)
        panel.set_title(title + (f" ({', '.join(shown)})" if shown else ""), fontsize=10, parse_math=False)
        if 1 < len(members) <= MOST_NAMES:
            for text in panel.legend(fontsize=8).get_texts():
                text.set_parse_math(False)  # the name of a class may hold dollar signs
        panel.set_xlim(0, 1.02 * lines[-1]["step"])
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.set_xlabel("step", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in axes[len(panels) :]:
        panel.axis("off")
    figure.savefig(folder / "curves.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="The folder of the run.")
    folder = parser.parse_args().output_dir
    draw_curves(folder)
    print(f"The curves are in {folder / 'curves.png'}.")


if __name__ == "__main__":
    main()
