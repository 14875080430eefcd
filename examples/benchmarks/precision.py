"""
What do other number formats and the compiler gain on this machine, for the presets of large models?

    python examples/benchmarks/precision.py --output examples/benchmarks/results

One table: of each preset, eager in float32, the CPU seconds of a forward pass and of a training step (forward and
backward) of one input on one thread, and how many times as fast each way is, median of pairs that take turns with
float32:

- autocast: products of bfloat16 from weights of float32;
- bfloat16: everything in bfloat16, the weights as well;
- int8: the weights of linear layers in 8 bits (torchao), forward only;
- compiled: `torch.compile`, layer by layer, in float32 and with autocast.

The gain of bfloat16 hangs on the instructions of the machine, which stand beside the table: without `avx512_bf16` or
`amx_bf16` its products are made of those of float32. Needs the extra `features`.
"""

import argparse
import contextlib
import datetime
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measuring import compare, cpu_seconds, processor, publish
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from tqdm.auto import tqdm

from modeling_axial import AxialConfig, AxialModel

sys.path.append(str(Path(__file__).resolve().parents[2]))
from configuration import load_preset  # noqa: E402  the folder is found from here on

PRESETS = ("axial_tiny", "axial_base", "axial_video_small", "axial_volume_small")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx_vnni", "avx512_vnni")


def as_it_is(model: AxialModel) -> None:
    """Eager, in float32."""


def in_bfloat16(model: AxialModel) -> None:
    model.to(torch.bfloat16)


def in_int8(model: AxialModel) -> None:
    quantize_(model, Int8WeightOnlyConfig())


def compiled(model: AxialModel) -> None:
    for layer in model.layers:
        layer.compile(dynamic=False)


@dataclass(frozen=True)
class Way:
    """How a model is run: what befalls it before, and whether under autocast."""

    prepare: Callable[[AxialModel], None] = as_it_is
    autocast: bool = False
    can_train: bool = True


EAGER = Way()
WAYS = {
    "autocast": Way(autocast=True),
    "bfloat16": Way(in_bfloat16),
    "int8": Way(in_int8, can_train=False),
    "compiled": Way(compiled),
    "compiled, autocast": Way(compiled, autocast=True),
}


def make_pass(way: Way, config: AxialConfig, training: bool) -> Callable[[], torch.Tensor]:
    """A function that runs one input of the native size through a new model, and in training its gradients back."""
    torch.manual_seed(0)
    model = AxialModel(config).train(training)
    way.prepare(model)
    pixel_values = torch.randn(1, config.num_channels, *config.image_shape).to(model.dtype)
    return partial(run, model, pixel_values, way.autocast, training)


def run(model: nn.Module, pixel_values: torch.Tensor, autocast: bool, training: bool) -> torch.Tensor:
    """Returns the last hidden state."""
    precision = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with precision, torch.inference_mode(not training):
        hidden_states = model(pixel_values).last_hidden_state
    if training:
        hidden_states.float().square().mean().backward()
    return hidden_states.detach()


def instructions() -> str:
    """Those of `INSTRUCTIONS` that the processor has, as Linux names them."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return ", ".join(name for name in INSTRUCTIONS if name in flags) or "none of " + ", ".join(INSTRUCTIONS)


def line_of(name: str, config: AxialConfig, training: bool, pairs: int) -> str:
    eager = make_pass(EAGER, config, training)
    eager()
    seconds, cells = [], []
    for way in WAYS.values():
        if training and not way.can_train:
            cells.append("-")
            continue
        torch.compiler.reset()  # whether another model was compiled before changes nothing
        other = make_pass(way, config, training)
        other()  # which waits for the compiler
        first, _, ratio = compare((eager, other), cpu_seconds, pairs)
        seconds.append(first)
        cells.append(f"{ratio:.2f}")
    what = "training step" if training else "forward"
    return f"| `{name}` | {what} | {sorted(seconds)[len(seconds) // 2]:.3g} | {' | '.join(cells)} |"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Folder for the report, which is printed without.")
    parser.add_argument("--pairs", type=int, default=5, help="Runs of each way, in turns with float32. Default: 5.")
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="Which to run. Default: the large ones.")
    options = parser.parse_args(arguments)
    lines = [
        f"| preset | pass | float32, s | {' | '.join(WAYS)} |",
        f"|---|---|---:|{'---:|' * len(WAYS)}",
        *(
            line_of(name, load_preset(name), training, options.pairs)
            for name, training in tqdm([(name, what) for name in options.presets for what in (False, True)])
        ),
    ]
    report = "\n".join(
        (
            f"{processor()} ({instructions()}), PyTorch {torch.__version__}, {datetime.date.today()}, one thread: "
            f"`python {' '.join(['examples/benchmarks/precision.py', *arguments])}`",
            "",
            "How many times as fast as float32, eager, by CPU seconds, median of pairs.",
            "",
            *lines,
            "",
        )
    )
    publish(report, options.output, "precision.md")


if __name__ == "__main__":
    main(sys.argv[1:])
