"""
What does a whole picture cost as it grows, up to 512 x 512 pixels at patch 2, which are 65,536 tokens?

    python examples/benchmarks/cost_at_size.py --output examples/benchmarks/results

One table and a plot: seconds and memory of a forward pass and of a training step of this package's encoder and of a ViT
of transformers with as many parameters (3 layers of two attentions and a feed-forward against 4 of one of each), width
64, 2 heads, fused attention, float32, eager, batch 1. Each figure is that of a fresh process on one thread, CPU seconds
and the growth of its peak resident memory (Linux only); the two models take turns.
"""

import argparse
import datetime
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from measuring import cpu_seconds, peak_growth, processor, publish
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ViTConfig, ViTModel

from modeling_axial import AxialConfig, AxialModel

SIDES = (64, 128, 256, 512)
PATCH = 2
ENOUGH = 60.0  # CPU seconds of one side, after which a measurement is not repeated
PASSES = ("forward", "training step")
MODELS = ("axial", "full")
NAMES = {"axial": "axial attention", "full": "full attention (ViT)"}


def make_model(name: str, side: int) -> PreTrainedModel:
    """An encoder of square pictures: ours, or a ViT with as many parameters but for its table of positions."""
    torch.manual_seed(0)
    sizes = {"image_size": side, "patch_size": PATCH, "hidden_size": 64, "num_attention_heads": 2}
    if name == "axial":
        return AxialModel(AxialConfig(num_hidden_layers=3, intermediate_size=256, **sizes))
    return ViTModel(ViTConfig(num_hidden_layers=4, intermediate_size=256, **sizes), add_pooling_layer=False)


def num_parameters(model: PreTrainedModel) -> int:
    """Those that do not depend on the size of the picture: without tables of positions."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "position" not in name)


def run_pass(name: str, model: PreTrainedModel, pixel_values: torch.Tensor) -> None:
    if name == "forward":
        with torch.inference_mode():
            model(pixel_values)
    else:
        model(pixel_values).last_hidden_state.square().mean().backward()


def measure_here(model_name: str, pass_name: str, side: int) -> tuple[float, float]:
    """CPU seconds of one thread, and MiB by which the peak memory grows; of a process that has done nothing else."""
    model = make_model(model_name, side).train(pass_name != "forward")
    pixel_values = torch.randn(1, 3, side, side)
    seconds = []
    memory = peak_growth(lambda: seconds.append(cpu_seconds(lambda: run_pass(pass_name, model, pixel_values))))
    return seconds[0], memory


def measure(model_name: str, pass_name: str, side: int) -> tuple[float, float]:
    """What `measure_here` gives in a fresh process."""
    command = [sys.executable, __file__, "--measure", model_name, pass_name, str(side)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[-2]), float(printed[-1])


def measure_all(sides: list[int], repeats: int) -> dict[tuple[str, str, int], tuple[float, float]]:
    """Of each model, pass and side the medians of seconds and of MiB."""
    medians = {}
    for side, pass_name in tqdm([(side, name) for side in sides for name in PASSES], unit="comparison"):
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in MODELS}
        for _ in range(repeats):
            for name in MODELS:
                if sum(seconds for seconds, _ in runs[name]) < ENOUGH:
                    runs[name].append(measure(name, pass_name, side))
        for name in MODELS:
            medians[name, pass_name, side] = tuple(map(statistics.median, zip(*runs[name], strict=True)))
    return medians


def as_table(measured: dict[tuple[str, str, int], tuple[float, float]], sides: list[int]) -> str:
    heads = [f"{pass_name}, {what}: axial, full, full / axial" for pass_name in PASSES for what in ("s", "MiB")]
    lines = [f"| pixels | tokens | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 2)}"]
    for side in sides:
        cells = [f"{side} x {side}", f"{(side // PATCH) ** 2:,}"]
        for pass_name in PASSES:
            for which, digits in ((0, 2), (1, 0)):
                ours, full = (measured[name, pass_name, side][which] for name in MODELS)
                cells.append(f"{ours:.{digits}f}, {full:.{digits}f}, **{full / ours:.2f}**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(path: Path, measured: dict[tuple[str, str, int], tuple[float, float]], sides: list[int]) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for which, (panel, label) in enumerate(zip(figure.subplots(1, 2), ("CPU seconds", "MiB"), strict=True)):
        for name, colour in zip(MODELS, ("tab:blue", "tab:orange"), strict=True):
            for pass_name, style in zip(PASSES, ("--", "-"), strict=True):
                values = [measured[name, pass_name, side][which] for side in sides]
                panel.plot(sides, values, style, color=colour, marker="o", label=f"{NAMES[name]}, {pass_name}")
        panel.set(xscale="log", yscale="log", xlabel="pixels along a side, patch 2", ylabel=label)
        panel.set_xticks(sides, [str(side) for side in sides])
        panel.minorticks_off()
    panel.legend()
    figure.savefig(path, dpi=100)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the report and the plot; printed without")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each figure, whose median is taken")
    parser.add_argument("--largest", type=int, default=max(SIDES), help="leave out larger pictures")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        model_name, pass_name, side = options.measure
        return print(*measure_here(model_name, pass_name, int(side)))
    sides = [side for side in SIDES if side <= options.largest]
    measured = measure_all(sides, options.repeats)
    parameters = ", ".join(f"{NAMES[name]} {num_parameters(make_model(name, sides[0])):,}" for name in MODELS)
    report = (
        f"{processor()}, PyTorch {torch.__version__}, {datetime.date.today()}, one thread, eager, float32: "
        f"`python {' '.join(['examples/benchmarks/cost_at_size.py', *arguments])}`\n\n"
        f"Parameters without positions: {parameters}.\n\n{as_table(measured, sides)}\n"
    )
    publish(report, options.output, "cost_at_size.md")
    if options.output:
        plot(options.output / "cost_at_size.png", measured, sides)


if __name__ == "__main__":
    main(sys.argv[1:])
