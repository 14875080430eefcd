"""
From which size on is it cheaper to attend along axes, and through inducing points, than to everything?

    python examples/benchmarks/crossovers.py --output examples/benchmarks/results

Two tables and a plot. First, on square grids: one layer of sequential axial attention (both axes, so that every cell
reaches every other) against one layer of full attention over all cells. Second, on one axis: induced set attention with
32 points against full attention along that axis. Both sides are this package's modules on PyTorch's fused attention,
eager, float32, batch 1 and 128 channels in 4 heads; they alternate in one process, and ratios are medians of pairs.
Memory is what a forward and backward pass adds to the peak resident memory of a fresh process.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import torch
from measuring import processor
from tqdm.auto import tqdm

from modeling_axial import AxialConfig, AxialSelfAttention, InducedAxialAttention
from modeling_axial.axial_layer import SequentialAxialAttention

SIDES = (8, 16, 24, 32, 48, 64, 96, 128)
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NUM_POINTS = 32
CHANNELS = 128


def make_side(name: str, size: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A module and its input: "axial" and "full" on a grid of size x size, "induced" and "line" on an axis of size."""
    torch.manual_seed(0)
    num_axes = 2 if name == "axial" else 1
    config = AxialConfig(
        image_size=[1] * num_axes, patch_size=[1] * num_axes, hidden_size=CHANNELS, num_attention_heads=4
    )
    shape = {"axial": (size, size), "full": (size * size,), "induced": (size,), "line": (size,)}[name]
    if name == "axial":
        module = SequentialAxialAttention(config)
    elif name == "induced":
        module = InducedAxialAttention(config, 0, NUM_POINTS)
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


def seconds(run, module: torch.nn.Module, inputs: torch.Tensor) -> float:
    start = time.perf_counter()
    run(module, inputs)
    return time.perf_counter() - start


def median_ratio(numerator: str, denominator: str, size: int, run, pairs: int) -> tuple[float, float, float]:
    """(seconds of the numerator, seconds of the denominator, their ratio), medians over alternating pairs."""
    sides = make_side(numerator, size), make_side(denominator, size)
    for side in sides:
        run(*side)  # warm up
    measured = [[seconds(run, *side) for side in sides] for _ in range(pairs)]
    return (
        statistics.median(first for first, _ in measured),
        statistics.median(second for _, second in measured),
        statistics.median(first / second for first, second in measured),
    )


def added_memory(name: str, size: int) -> float:
    """MiB that one training step adds to the peak resident memory, in a fresh process."""
    command = [sys.executable, __file__, "--measure-memory", name, str(size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str, size: int) -> None:
    training_step(*make_side(name, 8))  # what PyTorch keeps for itself
    side = make_side(name, size)
    before = peak_memory()
    training_step(*side)
    print(peak_memory() - before)


def peak_memory() -> float:
    """MiB of the largest resident memory so far. Linux only; ru_maxrss would count that of the parent process, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def compare(numerator: str, denominator: str, sizes: tuple[int, ...], pairs: int) -> list[dict]:
    rows = []
    for size in tqdm(sizes, desc=f"{numerator} against {denominator}"):
        row = {"size": size}
        for run in (forward, training_step):
            first, second, ratio = median_ratio(numerator, denominator, size, run, pairs)
            row |= {f"{run.__name__} {numerator}": first, f"{run.__name__} {denominator}": second}
            row[f"{run.__name__} ratio"] = ratio
        row["memory " + numerator], row["memory " + denominator] = (
            added_memory(name, size) for name in (numerator, denominator)
        )
        rows.append(row)
    return rows


def as_table(rows: list[dict], first: str, second: str, heading: str) -> str:
    lines = [
        f"| {heading} | forward {second} / {first} | training step {second} / {first} | "
        f"forward {first}, ms | training step {first}, ms | memory {first}, MiB | memory {second}, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['size']} | {row['forward ratio']:.2f} | {row['training_step ratio']:.2f} | "
            f"{1000 * row[f'forward {first}']:.2f} | {1000 * row[f'training_step {first}']:.2f} | "
            f"{row[f'memory {first}']:.1f} | {row[f'memory {second}']:.1f} |"
        )
    return "\n".join(lines)


def plot(path: Path, axial: list[dict], induced: list[dict]) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, rows, title, label in (
        (panels[0], axial, "full over axial attention", "cells along a side of the square grid"),
        (panels[1], induced, f"full over induced attention ({NUM_POINTS} points)", "length of the axis"),
    ):
        sizes = [row["size"] for row in rows]
        for run in ("forward", "training_step"):
            panel.plot(sizes, [row[f"{run} ratio"] for row in rows], marker="o", label=run.replace("_", " "))
        panel.axhline(1, color="grey", linewidth=1)
        panel.set(title=title, xlabel=label, ylabel="times slower", xscale="log", yscale="log")
        panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        panel.minorticks_off()
        panel.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the report and the plot")
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of measurements")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--largest", type=int, help="leave out larger sizes")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure_memory:
        return measure_memory(arguments.measure_memory[0], int(arguments.measure_memory[1]))

    def kept(sizes):
        return tuple(size for size in sizes if arguments.largest is None or size <= arguments.largest)

    axial = compare("full", "axial", kept(SIDES), arguments.pairs)
    induced = compare("line", "induced", kept(LENGTHS), arguments.pairs)
    report = (
        f"# Crossovers\n\nPyTorch {torch.__version__}, {processor()}, "
        f"{arguments.threads} thread(s), {datetime.date.today()}: "
        f"`python {' '.join(['examples/benchmarks/crossovers.py', *sys.argv[1:]])}`\n\n"
        f"## Axial against full attention, square grids\n\n{as_table(axial, 'axial', 'full', 'side')}\n\n"
        f"## Induced ({NUM_POINTS} points) against full attention, one axis\n\n"
        f"{as_table(induced, 'induced', 'line', 'length')}\n"
    )
    print(report)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "crossovers.md").write_text(report, encoding="utf-8")
        plot(arguments.output / "crossovers.png", axial, induced)


if __name__ == "__main__":
    main()
