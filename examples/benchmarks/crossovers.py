"""
From which size on is it cheaper to attend along axes, and through inducing points, than to everything?

    python examples/benchmarks/crossovers.py --output examples/benchmarks/results

Two tables and a plot. First, on square grids: one layer of sequential axial attention (both axes, so that every cell
reaches every other) against one layer of full attention over all cells. Second, on one axis: induced set attention with
32 points against full attention along that axis. Both sides are this package's modules on PyTorch's fused attention,
eager, float32, batch 1 and 128 channels in 4 heads; they alternate in one process, and ratios are medians of pairs of
CPU seconds of one thread. Memory is what a training step adds to the peak resident memory of a fresh process.
"""

import argparse
import datetime
import functools
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from measuring import added_memory, compare, cpu_seconds, peak_growth, processor, publish
from tqdm.auto import tqdm

from modeling_axial import AxialConfig, AxialSelfAttention, InducedAxialAttention
from modeling_axial.axial_layer import SequentialAxialAttention

SIDES = (8, 16, 24, 32, 48, 64, 96, 128)
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NUM_POINTS = 32
CHANNELS = 128


def make_side(name: str, size: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """
    A module and its input: "axial" and "full" on a grid of size x size, "induced" and "line" (full attention along
    it) on an axis of that size.
    """
    torch.manual_seed(0)
    num_axes = 2 if name == "axial" else 1
    config = AxialConfig(
        image_size=[1] * num_axes,
        patch_size=[1] * num_axes,
        hidden_size=CHANNELS,
        num_attention_heads=4,
        num_inducing_points=NUM_POINTS if name == "induced" else None,
    )
    shape = {"axial": (size, size), "full": (size * size,), "induced": (size,), "line": (size,)}[name]
    if name == "axial":
        module = SequentialAxialAttention(config)
    elif name == "induced":
        module = InducedAxialAttention(config, 0)
        torch.nn.init.normal_(module.points)
    else:
        module = AxialSelfAttention(config, 0)
    return module, torch.randn(1, *shape, CHANNELS)


def forward(module: torch.nn.Module, inputs: torch.Tensor) -> None:
    with torch.inference_mode():
        module(inputs)


def training_step(module: torch.nn.Module, inputs: torch.Tensor) -> None:
    module.zero_grad()
    module(inputs).square().sum().backward()


PASSES = {"forward": forward, "training step": training_step}


def measure_memory(name: str, size: int) -> float:
    return peak_growth(functools.partial(training_step, *make_side(name, size)))


def measure(cheap: str, full: str, sizes: list[int], pairs: int) -> list[dict]:
    """One row for each size: {"size", and for each pass (seconds of full, of cheap, their ratio), "memory": (...)}."""
    rows = []
    for size in tqdm(sizes, desc=f"{cheap} against {full}"):
        row = {"size": size}
        for name, run in PASSES.items():
            runs = tuple(functools.partial(run, *make_side(side, size)) for side in (full, cheap))
            for each in runs:
                each()  # warm up
            row[name] = compare(runs, cpu_seconds, pairs)
        row["memory"] = added_memory(__file__, full, size), added_memory(__file__, cheap, size)
        rows.append(row)
    return rows


def as_table(rows: list[dict], cheap: str, heading: str) -> str:
    lines = [
        f"| {heading} | forward, full / {cheap} | training step, full / {cheap} | forward, ms: full, {cheap} | "
        f"training step, ms: full, {cheap} | memory, MiB: full, {cheap} |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        (full, ours, ratio), (full_step, our_step, step_ratio) = (row[name] for name in PASSES)
        lines.append(
            f"| {row['size']} | **{ratio:.2f}** | **{step_ratio:.2f}** | {1000 * full:.2f}, {1000 * ours:.2f} | "
            f"{1000 * full_step:.2f}, {1000 * our_step:.2f} | {row['memory'][0]:.1f}, {row['memory'][1]:.1f} |"
        )
    return "\n".join(lines)


def plot(path: Path, axial: list[dict], induced: list[dict]) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, rows, title, label in zip(
        figure.subplots(1, 2),
        (axial, induced),
        ("axial attention", f"induced attention, {NUM_POINTS} points"),
        ("cells along a side of the square grid", "length of the axis"),
        strict=True,
    ):
        sizes = [row["size"] for row in rows]
        for name in PASSES:
            panel.plot(sizes, [row[name][2] for row in rows], marker="o", label=f"time, {name}")
        panel.plot(sizes, [row["memory"][0] / row["memory"][1] for row in rows], "k--", label="memory, training step")
        panel.axhline(1, color="grey", linewidth=1)
        panel.set(title=title, xlabel=label, ylabel="full attention takes so many times more")
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.legend()
    figure.savefig(path, dpi=100)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the report and the plot; printed without")
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of measurements")
    parser.add_argument("--largest", type=int, default=max(LENGTHS), help="leave out larger sizes")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.measure_memory:
        return print(measure_memory(options.measure_memory[0], int(options.measure_memory[1])))
    axial = measure("axial", "full", [side for side in SIDES if side <= options.largest], options.pairs)
    induced = measure("induced", "line", [length for length in LENGTHS if length <= options.largest], options.pairs)
    report = (
        f"{processor()}, PyTorch {torch.__version__}, {datetime.date.today()}, CPU seconds of one thread, eager, "
        f"{options.pairs} pairs: `python {' '.join(['examples/benchmarks/crossovers.py', *arguments])}`\n\n"
        f"Axial against full attention, square grids:\n\n{as_table(axial, 'axial', 'side')}\n\n"
        f"Induced attention ({NUM_POINTS} points) against full attention, one axis:\n\n"
        f"{as_table(induced, 'induced', 'length')}\n"
    )
    publish(report, options.output, "crossovers.md")
    if options.output:
        plot(options.output / "crossovers.png", axial, induced)


if __name__ == "__main__":
    main(sys.argv[1:])
