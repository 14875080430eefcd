"""
What one GPU makes of axial attention, in half an hour at most:

    python examples/benchmarks/gpu.py --output examples/benchmarks/results

Not run on a GPU yet. `--device cpu` shows that it runs, with `--tokens` and `--batch` of a size for that. Five parts:

- kernels: milliseconds and MiB of attention over 12,544 tokens in lines of each length, 12 heads of 64, bfloat16, by
  every kernel of PyTorch's fused attention, by plain steps that are compiled, by PyTorch's choice, by that of
  `modeling_axial.attention_interfaces.SHORT_LINES` and, where Triton is installed, by `"axial_triton"`, with lines
  folded into the heads (views) and into the batch (copies);
- bound: gradients just below and just above what the backward of flash attention counts with 32 bits, in one call of
  `axial_attention` and in two, both by flash attention;
- profile: which kernels a training step of `axial_base` spends its time in, and what of it is attention, and copies;
- determinism: whether two equal backwards give equal gradients, with and without PyTorch's deterministic algorithms;
- models: tokens a second of a training step, beside a ViT and a Swin with as many parameters, eager and compiled.
"""

import argparse
import datetime
import re
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from measuring import publish, rows
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

from modeling_axial import AxialConfig, AxialModel, attention_interfaces, axial_attention
from modeling_axial.attention import MAX_ACCUMULATED, fold_lines_into_batch, fold_lines_into_heads

sys.path.append(str(Path(__file__).resolve().parents[2]))
from configuration import load_preset  # noqa: E402  the folder is found from here on

LENGTHS = (5, 8, 14, 28, 56, 64, 128, 256)
HEADS, HEAD_DIM = 12, 64
FOLDS = {"heads": fold_lines_into_heads, "batch": fold_lines_into_batch}
ATTENTION = re.compile("flash|fmha|attention|sdpa|cudnn.*(mha|sdp)", re.IGNORECASE)
COPY = re.compile(r"copy|memcpy|::cat|CatArray|clone|contiguous", re.IGNORECASE)


# What is measured with


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one of so many runs in a row, after one that is not counted."""
    run()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / repeats * 1000


def mebibytes(run: Callable[[], object], device: torch.device) -> float:
    """By which the peak of the memory of a GPU exceeds what was taken before; NaN on CPUs."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


# Kernels


def by_backend(backend: SDPBackend, *states: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(*states)


@cache
def compiled_steps() -> Callable:
    return torch.compile(attention_interfaces.eager_attention_forward, dynamic=False)


def by_compiled_steps(*states: torch.Tensor) -> torch.Tensor:
    return compiled_steps()(None, *states, None)[0].transpose(1, 2)


def by_packed_lines(*states: torch.Tensor) -> torch.Tensor:
    from modeling_axial.kernels.packed_lines import TILE, packed_attention

    if states[0].device.type == "cpu" or states[0].shape[-2] > TILE:
        raise RuntimeError("short lines on a GPU alone")
    return packed_attention(*states, mask=None, scaling=HEAD_DIM**-0.5, is_causal=False)


def by_our_choice(*states: torch.Tensor) -> torch.Tensor:
    return attention_interfaces.scaled_dot_product_attention(*states, None, dropout=0.0, is_causal=False, scaling=None)


KERNELS = {
    "flash": partial(by_backend, SDPBackend.FLASH_ATTENTION),
    "memory-efficient": partial(by_backend, SDPBackend.EFFICIENT_ATTENTION),
    "cuDNN": partial(by_backend, SDPBackend.CUDNN_ATTENTION),
    "plain": partial(by_backend, SDPBackend.MATH),
    "plain, compiled": by_compiled_steps,
    "PyTorch's choice": scaled_dot_product_attention,
    "ours": by_our_choice,
} | ({"Triton": by_packed_lines} if find_spec("triton") else {})


def attention_pass(
    kernel: Callable[..., torch.Tensor],
    fold: Callable,
    length: int,
    tokens: int,
    training: bool,
    device: torch.device,
) -> Callable[[], None]:
    """Attention along the slower of two axes, by this kernel, which raises `RuntimeError` where it cannot."""
    torch.compiler.reset()  # or it gives up after eight shapes
    shape = (1, length, tokens // length, HEADS, HEAD_DIM)
    states = [torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=training) for _ in range(3)]

    def run() -> None:
        with torch.set_grad_enabled(training):
            output = kernel(*(fold(each, 0) for each in states))
        if training:
            output.backward(output.detach())

    return run


def report_kernels(options: argparse.Namespace) -> str:
    lines = []
    cases = [(length, training, fold) for length in options.lengths for training in (False, True) for fold in FOLDS]
    for length, training, fold in tqdm(cases, desc="kernels"):
        cells, taken = [], {}
        for name, kernel in KERNELS.items():
            run = attention_pass(kernel, FOLDS[fold], length, options.tokens, training, options.device)
            try:
                taken[name] = milliseconds(run, options.device, options.repeats)
                cells.append(f"{taken[name]:.3f}, {mebibytes(run, options.device):.0f}")
            except RuntimeError:  # this kernel cannot
                cells.append("-")
        ratio = taken["PyTorch's choice"] / taken["ours"]
        lines.append(f"{length} | {'both' if training else 'forward'} | {fold} | {' | '.join(cells)} | {ratio:.2f}")
    columns = " | ".join(f"{name}: ms, MiB" for name in KERNELS)
    return rows(f"length | pass | lines as | {columns} | PyTorch's choice over ours", *lines)


# Bound


def gradients(states: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of query, key and value (1, lines, length, heads, head_dim), by attention along the faster axis."""
    states = [each.detach().requires_grad_() for each in states]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # or such short lines would take another kernel
        output, _ = axial_attention(*states, axis=1)
    return list(torch.autograd.grad(output.float().square().sum(), states))


def difference_in_parts(num_lines: int, length: int, device: torch.device) -> float:
    """The largest difference, relative to the largest gradient, between all lines at once and the two halves apart."""
    shape = (1, num_lines, length, HEADS, HEAD_DIM)
    states = [torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(3)]
    whole = gradients(states)
    halves = [
        gradients([each[:, part] for each in states]) for part in (slice(num_lines // 2), slice(num_lines // 2, None))
    ]
    differences = [
        ((one - torch.cat(parts, 1)).abs().max() / one.abs().max()).item()
        for one, parts in zip(whole, zip(*halves, strict=True), strict=True)
    ]
    return max(differences)


def report_bound(options: argparse.Namespace) -> str:
    length = 14
    accumulated = HEADS * -(-length // 128) * 128 * max(HEAD_DIM, 32)  # by each line
    bound = options.bound // accumulated
    return rows(
        "lines of 14 cells | largest difference of gradients, in one call and in two",
        *(f"{lines:,} | {difference_in_parts(lines, length, options.device):.1e}" for lines in (bound - 1, bound + 1)),
    )


# Profile, determinism, models


def training_step(model: nn.Module, pixel_values: torch.Tensor) -> None:
    with torch.autocast(pixel_values.device.type, torch.bfloat16):
        hidden_states = model(pixel_values).last_hidden_state
    hidden_states.float().square().mean().backward()


def new_step(model: nn.Module, options: argparse.Namespace, side: int) -> Callable[[], None]:
    pixel_values = torch.randn(options.batch, 3, side, side, device=options.device)
    return partial(training_step, model.to(options.device).train(), pixel_values)


def report_profile(options: argparse.Namespace) -> str:
    config = options.presets["axial_base"]
    step = new_step(AxialModel(config), options, config.image_shape[0])
    step()
    on_gpu = options.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        step()
        synchronize(options.device)
    events = profiled.key_averages()
    taken = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    total = sum(taken.values())
    shares = {
        what: sum(time for name, time in taken.items() if pattern.search(name)) / total
        for what, pattern in {"attention": ATTENTION, "copies": COPY}.items()
    }
    longest = sorted(taken, key=lambda name: -taken[name])[:12]
    return (
        f"Attention takes {shares['attention']:.1%} of the step, copies {shares['copies']:.1%}. The longest:\n\n"
        + rows("kernel | share", *(f"`{name[:90]}` | {taken[name] / total:.1%}" for name in longest))
    )


def report_determinism(options: argparse.Namespace) -> str:
    lines = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            config = options.presets["axial_tiny"]
            step = new_step(AxialModel(config), options, config.image_shape[0])
            parameters = [each for each in step.args[0].parameters() if each.requires_grad]
            found = []
            for _ in range(2):
                step.args[0].zero_grad()
                step()
                found.append([each.grad.clone() for each in parameters if each.grad is not None])
            equal = "equal" if all(map(torch.equal, *found)) else "differ"
        except RuntimeError as error:
            equal = f"refused: {str(error).splitlines()[0]}"
        finally:
            torch.use_deterministic_algorithms(False)
        lines.append(f"{'yes' if deterministic else 'no'} | {equal}")
    return rows("deterministic algorithms | two equal backwards", *lines)


def peers_of(config: AxialConfig) -> dict[str, nn.Module]:
    """A ViT and a Swin of the same width, and as deep as makes their parameters as many."""
    width, side = config.hidden_size, config.image_shape[0]
    layers = config.num_hidden_layers * 16 // 12  # a layer has 12 width², one of ours with two attentions 16
    sizes = {"image_size": side, "patch_size": config.patch_shape[0]}
    vit = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=4 * width,
        **sizes,
    )
    swin = SwinConfig(embed_dim=width, depths=[layers], num_heads=[config.num_attention_heads], window_size=7, **sizes)
    return {"ViT": ViTModel(vit, add_pooling_layer=False), "Swin": SwinModel(swin, add_pooling_layer=False)}


def report_models(options: argparse.Namespace) -> str:
    lines = []
    for name, config in tqdm(options.presets.items(), desc="models"):
        side = config.image_shape[0]
        tokens = options.batch * config.grid_shape[0] * config.grid_shape[1]
        for title, model in {f"`{name}`": AxialModel(config), **peers_of(config)}.items():
            step = new_step(model, options, side)
            eager = milliseconds(step, options.device, options.repeats)
            torch.compiler.reset()
            model.compile(dynamic=False)
            fast = milliseconds(step, options.device, options.repeats)
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            lines.append(f"{title} | {millions:.1f} | {tokens / eager * 1000:,.0f} | {tokens / fast * 1000:,.0f}")
            del step, model
    return rows("model | million parameters | tokens a second, eager | compiled", *lines)


PARTS = {
    "kernels": report_kernels,
    "bound": report_bound,
    "profile": report_profile,
    "determinism": report_determinism,
    "models": report_models,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Folder for the report, which is printed without.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="Which to run. Default: all.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="Default: cuda.")
    parser.add_argument("--tokens", type=int, default=12_544, help="Cells of a grid of the kernels. Default: 12544.")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="Of the lines of the kernels.")
    parser.add_argument("--batch", type=int, default=64, help="Pictures of a step. Default: 64.")
    parser.add_argument("--bound", type=int, default=MAX_ACCUMULATED["cuda"], help="Numbers, by default 2^31.")
    parser.add_argument("--repeats", type=int, default=20, help="Runs of each figure. Default: 20.")
    options = parser.parse_args(arguments)
    options.presets = {name: load_preset(name) for name in ("axial_tiny", "axial_base")}
    torch.manual_seed(0)
    hardware = torch.cuda.get_device_name() if options.device.type == "cuda" else "no GPU"
    report = (
        f"{hardware}, PyTorch {torch.__version__}, {datetime.date.today()}: "
        f"`python {' '.join(['examples/benchmarks/gpu.py', *arguments])}`\n"
    )
    for name in options.parts:
        report += f"\n## {name.capitalize()}\n\n{PARTS[name](options)}\n"
    publish(report, options.output, "gpu.md")


if __name__ == "__main__":
    main(sys.argv[1:])
