"""
How long do the encoders of other vision models take, beside an axial one of the same width and depth?

    python examples/benchmarks/vision_peers.py --output examples/benchmarks/results

Peers are those of transformers: ViT (every patch to every patch) and Swin (windows of 7 x 7) on pictures, VideoMAE
(every patch of all frames) and TimeSformer (time, then every patch of a frame) on clips. All have width 192, 3 heads, 4
layers, a feed-forward of 4 times the width and patches of 4 x 4 pixels, random weights, float32, and the attention that
transformers chooses for them. Ours is measured with one axis per layer, in turn (`alternating`: one attention and one
feed-forward in a layer, as in ViT and Swin), and with all axes in every layer (`sequential`). Pairs alternate in one
process on one thread; ratios are medians of the pairs' CPU seconds, above 1 where ours takes less.
"""

import argparse
import datetime
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from measuring import compare, cpu_seconds, processor, publish
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    SwinConfig,
    SwinModel,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    ViTModel,
)

from modeling_axial import AxialConfig, AxialModel

WIDTH, HEADS, LAYERS, PATCH = 192, 3, 4, 4
SIDES = (14, 28, 56)  # patches along a side of a picture
CLIP = (16, 14)  # frames, patches along a side
TOKENS = 3136  # of a batch of pictures
MODES = ("alternating", "sequential")
ENCODER = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
ENCODER |= {"intermediate_size": 4 * WIDTH, "patch_size": PATCH}


@dataclass(frozen=True)
class Case:
    """A peer on pictures of `side` x `side` patches, or on clips of so many `frames` of them."""

    peer: str
    side: int
    frames: int | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        return (self.side, self.side) if self.frames is None else (self.frames, self.side, self.side)

    @property
    def pixels(self) -> int:
        return self.side * PATCH

    def inputs(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        if self.frames is None:
            return torch.randn(max(1, TOKENS // self.side**2), 3, self.pixels, self.pixels, generator=generator)
        return torch.randn(1, self.frames, 3, self.pixels, self.pixels, generator=generator)


CASES = (
    *(Case("ViT", side) for side in SIDES),
    *(Case("Swin", side) for side in SIDES),
    Case("VideoMAE", CLIP[1], CLIP[0]),
    Case("TimeSformer", CLIP[1], CLIP[0]),
)


def make_peer(case: Case) -> PreTrainedModel:
    torch.manual_seed(0)
    if case.peer == "ViT":
        return ViTModel(ViTConfig(image_size=case.pixels, **ENCODER), add_pooling_layer=False)
    if case.peer == "Swin":
        sizes = {"embed_dim": WIDTH, "depths": [LAYERS], "num_heads": [HEADS], "window_size": 7, "mlp_ratio": 4}
        return SwinModel(SwinConfig(image_size=case.pixels, patch_size=PATCH, **sizes), add_pooling_layer=False)
    clip = {"image_size": case.pixels, "num_frames": case.frames, **ENCODER}
    if case.peer == "VideoMAE":
        return VideoMAEModel(VideoMAEConfig(tubelet_size=1, **clip))
    return TimesformerModel(TimesformerConfig(**clip))


class AxialClips(torch.nn.Module):
    """Ours on clips (B, frames, C, H, W), as its peers take them."""

    def __init__(self, model: AxialModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor):
        return self.model(pixel_values.transpose(1, 2))


def make_ours(case: Case, mode: str) -> torch.nn.Module:
    torch.manual_seed(0)
    image_size, patch_size = [case.pixels] * 2, [PATCH] * 2
    if case.frames is not None:
        image_size, patch_size = [case.frames, *image_size], [1, *patch_size]
    sizes = ENCODER | {"image_size": image_size, "patch_size": patch_size}
    model = AxialModel(AxialConfig(attention_mode=mode, **sizes))
    return model if case.frames is None else AxialClips(model)


def num_parameters(model: torch.nn.Module) -> int:
    """Without tables of positions, which grow with the grid."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "position_embedding" not in name)


def forward(model: torch.nn.Module, pixel_values: torch.Tensor) -> None:
    with torch.inference_mode():
        model(pixel_values)


def training_step(model: torch.nn.Module, pixel_values: torch.Tensor) -> None:
    model.zero_grad()
    model(pixel_values).last_hidden_state.square().mean().backward()


PASSES = {"forward": forward, "training step": training_step}


def measure(case: Case, mode: str, pairs: int) -> dict:
    """{"case", "mode", "parameters": (ours, peer), and for each pass (seconds of the peer, of ours, their ratio)}."""
    models = {"peer": make_peer(case), "ours": make_ours(case, mode)}
    pixel_values = case.inputs()
    row = {"case": case, "mode": mode, "parameters": tuple(num_parameters(models[name]) for name in ("ours", "peer"))}
    for name, run in PASSES.items():
        runs = tuple(functools.partial(run, models[side].eval(), pixel_values) for side in ("peer", "ours"))
        for each in runs:
            each()  # warm up
        row[name] = compare(runs, cpu_seconds, pairs)
    return row


def as_table(rows: Sequence[dict]) -> str:
    lines = [
        "| peer | grid of patches | ours | parameters: ours, peer | forward, peer / ours | "
        "training step, peer / ours | forward, ms: peer, ours | training step, ms: peer, ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (peer, ours, ratio), (peer_step, our_step, step_ratio) = (row[name] for name in PASSES)
        lines.append(
            f"| {row['case'].peer} | {' x '.join(map(str, row['case'].grid))} | {row['mode']} | "
            f"{row['parameters'][0]:,}, {row['parameters'][1]:,} | **{ratio:.2f}** | **{step_ratio:.2f}** | "
            f"{1000 * peer:.1f}, {1000 * ours:.1f} | {1000 * peer_step:.1f}, {1000 * our_step:.1f} |"
        )
    return "\n".join(lines)


def plot(path: Path, rows: Sequence[dict]) -> None:
    """How many times as long the peers of pictures take, against the side of the grid: a line for each."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, name in zip(figure.subplots(1, 2, sharey=True), PASSES, strict=True):
        for peer, colour in (("ViT", "tab:orange"), ("Swin", "tab:green")):
            for mode, style in zip(MODES, ("-", "--"), strict=True):
                line = [row for row in rows if row["case"].peer == peer and row["mode"] == mode]
                sides, ratios = [row["case"].side for row in line], [row[name][2] for row in line]
                panel.plot(sides, ratios, style, color=colour, marker="o", label=f"{peer} / {mode} axial")
        panel.axhline(1, color="grey", linewidth=1)
        panel.set(title=name, xlabel="patches along a side", xscale="log", yscale="log")
        panel.set_xticks(SIDES, [str(side) for side in SIDES])
        panel.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        panel.minorticks_off()
    panel.legend()
    figure.axes[0].set_ylabel("the peer takes so many times as long")
    figure.savefig(path, dpi=100)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the report and the plot; printed without")
    parser.add_argument("--pairs", type=int, default=9, help="alternating pairs of measurements")
    parser.add_argument("--peers", nargs="+", default=sorted({case.peer for case in CASES}), help="leave out others")
    parser.add_argument("--largest", type=int, default=max(SIDES), help="leave out larger grids")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = [case for case in CASES if case.peer in options.peers and case.side <= options.largest]
    rows = [measure(case, mode, options.pairs) for case in tqdm(cases, unit="case") for mode in MODES]
    report = (
        f"{processor()}, PyTorch {torch.__version__}, {datetime.date.today()}, CPU seconds of one thread, eager, "
        f"float32, width {WIDTH}, {HEADS} heads, {LAYERS} layers, {options.pairs} pairs: "
        f"`python {' '.join(['examples/benchmarks/vision_peers.py', *arguments])}`\n\n"
        f"Parameters are without tables of positions. Above 1 ours takes less.\n\n{as_table(rows)}\n"
    )
    publish(report, options.output, "vision_peers.md")
    if options.output:
        plot(options.output / "vision_peers.png", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
