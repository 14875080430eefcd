"""How fast, and in how much memory, is the drop-in against the package it replaces?

    python examples/benchmarks/attention_speed.py [--cases image latents] [--passes forward] [--compile] > result.md

Runs the examples of the README of axial_attention (extra `test`) with the package and with this project: the same
weights and input, eager, float32, equal results checked first, both alternating in one process, medians over pairs.

- seed / ours: seconds of axial_attention over ours, from the CPU seconds of one thread and from wall-clock time with
  `--threads` threads. Other load on a machine moves the second much more than the first.
- lead kept: the second over the same from the wall-clock time of one thread.
- scaling: wall-clock time of one thread over that of `--threads`, of axial_attention, of ours, of our kernels alone.
- over kernels: our CPU seconds over those of its matrix products, convolutions and attentions alone, on contiguous data
  of the same shapes, both alternating as well.
- over limit: our CPU seconds over the time its floating-point operations take at the rate of a large matrix product,
  measured in this run. Convolutions can beat that rate.
- memory: growth of the peak resident memory over the state before the call, in a fresh process each (Linux only).

Floating-point operations count what is executed, so the rebuilt activations of the reversible transformer count.
"""

import argparse
import datetime
import functools
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from unittest import mock

import torch
from measuring import added_memory, compare, compare_on_both_clocks, cpu_seconds, peak_growth, processor, wall_seconds
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling_axial import RebuiltTwoStream, TwoStream

VIDEO = {"dim": 128, "dim_index": 2, "heads": 8, "num_dimensions": 3}
# name: (class, its arguments, shape of the input); the large ones only where they are asked for
CASES = {
    "image": ("AxialAttention", {"dim": 3, "dim_index": 1, "dim_heads": 32, "heads": 1}, (1, 3, 256, 256)),
    "latents": ("AxialAttention", {"dim": 512, "dim_index": -1, "heads": 8}, (1, 20, 20, 512)),
    "latents-8": ("AxialAttention", {"dim": 512, "dim_index": -1, "heads": 8}, (8, 20, 20, 512)),
    "video-64": ("AxialAttention", VIDEO, (1, 5, 128, 64, 64)),
    "video-128": ("AxialAttention", VIDEO, (1, 5, 128, 128, 128)),
    "transformer": ("AxialImageTransformer", {"dim": 128, "depth": 12}, (1, 128, 64, 64)),
    "transformer-plain": ("AxialImageTransformer", {"dim": 128, "depth": 12, "reversible": False}, (1, 128, 64, 64)),
    "video-256": ("AxialAttention", VIDEO, (1, 5, 128, 256, 256)),
    "transformer-512": ("AxialImageTransformer", {"dim": 128, "depth": 12}, (1, 128, 512, 512)),
    "tiny": ("AxialImageTransformer", {"dim": 8, "depth": 2}, (1, 8, 7, 5)),
}
LARGE = ("video-128", "video-256", "transformer-512", "tiny")


def make(package: str, case: str) -> nn.Module:
    name, arguments, _ = CASES[case]
    if package == "seed":
        import axial_attention as module
    else:
        import modeling_axial as module
    torch.manual_seed(0)  # both packages draw the same weights from it
    return getattr(module, name)(**arguments)


def make_input(case: str) -> torch.Tensor:
    return torch.randn(CASES[case][2], generator=torch.Generator().manual_seed(1))


def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(x)


def training_step(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.zero_grad()
    x = x.detach().requires_grad_()
    output = module(x)
    output.backward(output.detach())  # of a loss of half the sum of squares, without a kernel of the loss
    return x.grad


PASSES = {"forward": forward, "training step": training_step}


# Memory


def measure_memory(package: str, case: str, pass_name: str) -> float:
    return peak_growth(functools.partial(PASSES[pass_name], make(package, case), make_input(case)))


# What the machine allows


def matrix_product_rate() -> float:
    """Floating-point operations per CPU second of one thread in a product of 2048 x 2048 matrices."""
    matrix = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(cpu_seconds(lambda: matrix @ matrix) for _ in range(7))


def rebuilds_activations(module: nn.Module) -> bool:
    """Whether a training step of the module runs its forward pass twice."""
    return getattr(getattr(module, "layers", None), "executor_class", None) is RebuiltTwoStream


def count_operations(module: nn.Module, x: torch.Tensor, run: Callable) -> int:
    """Floating-point operations of run(module, x), counted without computing anything."""
    again = 0
    if rebuilds_activations(module):
        module.layers.executor_class = TwoStream  # no random state to keep where nothing is computed
        again = count_operations(module, x, forward) if run is training_step else 0
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(module.to("meta"), x.to("meta"))
    return counter.get_total_flops() + again


def find_kernels(module: nn.Module, x: torch.Tensor) -> Counter:
    """How often module(x) calls each kernel: {(kind of kernel, shapes of its operands): calls}."""
    kernels = Counter()

    def attend(query, key, value, **options):
        kernels["attention", query.shape, key.shape, value.shape] += 1
        return torch.empty_like(query)

    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            part.register_forward_hook(
                lambda part, inputs, output: kernels.update([(type(part).__name__, inputs[0].shape, part.weight.shape)])
            )
    with mock.patch.object(nn.functional, "scaled_dot_product_attention", attend):
        module.to("meta")(x.to("meta"))
    return kernels


def kernel_passes(kernel: tuple) -> tuple[Callable[[], object], Callable[[], object]]:
    """One kernel alone on operands of its own: (its forward pass, forward and backward)."""
    kind, *shapes = kernel
    if kind == "attention":
        # heads beside each other in memory, as projections leave them
        operands = [torch.randn(shape).transpose(1, 2).contiguous().transpose(1, 2) for shape in shapes]
        function = nn.functional.scaled_dot_product_attention
    elif kind == "Linear":
        operands, function = [torch.randn(shape) for shape in shapes], nn.functional.linear
    else:
        operands = [torch.randn(shape) for shape in shapes]
        operands[0] = operands[0].movedim(1, -1).contiguous().movedim(-1, 1)
        convolution = {"Conv1d": nn.functional.conv1d, "Conv2d": nn.functional.conv2d, "Conv3d": nn.functional.conv3d}
        function = functools.partial(convolution[kind], padding=1)
    operands = [operand.requires_grad_() for operand in operands]
    with torch.no_grad():
        gradient = torch.ones_like(function(*operands))
    return (
        torch.no_grad()(lambda: function(*operands)),
        lambda: torch.autograd.grad(function(*operands), operands, gradient),
    )


def kernels_alone(case: str, run: Callable) -> Callable[[], None]:
    """Runs all kernels that run(module, x) of this case calls, as often as it does, and nothing else."""
    module = make("ours", case)
    passes = []
    for kernel, calls in find_kernels(module, make_input(case)).items():
        forward_pass, both_passes = kernel_passes(kernel)
        passes.append((calls, both_passes if run is training_step else forward_pass))
        if run is training_step and rebuilds_activations(module):
            passes.append((calls, forward_pass))

    def run_all() -> None:
        for calls, kernel_pass in passes:
            for _ in range(calls):
                kernel_pass()

    return run_all


# The report

COLUMNS = (
    "case, pass | seed / ours, CPU of 1 thread | seed / ours, wall | lead kept | scaling: seed, ours, kernels | "
    "CPU of 1 thread, s: seed, ours | wall, s: seed, ours | memory, MiB: seed, ours | over kernels | over limit"
)


def check_equal(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """`ValueError` if they differ by more than 1/1000 as a whole.

    Not value by value: where rounding changes a sign before a leaky ReLU, single gradients differ by much more.
    """
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error <= 1e-3:
        raise ValueError(f"both must compute the same, up to a relative error of 1e-3, got {error:.1e}")


def measure(case: str, pass_name: str, rate: float, options: argparse.Namespace) -> str:
    """One row of the table."""
    x, run = make_input(case), PASSES[pass_name]
    modules = [make(package, case) for package in ("seed", "ours")]
    if options.compile:
        modules = [torch.compile(module) for module in modules]
    runs = tuple(functools.partial(run, module, x) for module in modules)
    check_equal(*(run() for run in runs))  # and both are warm
    cpu, wall_of_one = compare_on_both_clocks(runs, options.pairs)
    wall_clock = functools.partial(wall_seconds, threads=options.threads)
    wall = wall_of_one if options.threads == 1 else compare(runs, wall_clock, options.pairs)
    scaling = [alone / together for alone, together in zip(wall_of_one[:2], wall[:2], strict=True)]
    times = [f"{cpu[0]:.3f}, {cpu[1]:.3f}", f"{wall[0]:.3f}, {wall[1]:.3f}"]
    leads = [f"{case}, {pass_name}", f"**{cpu[2]:.2f}**", f"**{wall[2]:.2f}**", f"{wall[2] / wall_of_one[2]:.2f}"]
    if options.compile:
        return " | ".join([*leads, f"{scaling[0]:.2f}, {scaling[1]:.2f}, -", *times, "-", "-", "-"])
    kernels = kernels_alone(case, run)
    _, kernels_of_one, over_kernels = compare((runs[1], kernels), cpu_seconds, options.pairs)
    kernels_together = statistics.median(wall_clock(kernels) for _ in range(options.pairs))
    scaling.append(kernels_of_one / kernels_together)
    memory = [
        added_memory(__file__, package, case, pass_name, "--threads", options.threads) for package in ("seed", "ours")
    ]
    limit = count_operations(make("ours", case), x, run) / rate
    cells = [", ".join(f"{factor:.2f}" for factor in scaling), *times, f"{memory[0]:.0f}, {memory[1]:.0f}"]
    return " | ".join([*leads, *cells, f"{over_kernels:.2f}", f"{cpu[1] / limit:.2f}"])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[case for case in CASES if case not in LARGE])
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of measurements")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for wall-clock time")
    parser.add_argument("--compile", action="store_true", help="both through torch.compile, times only")
    parser.add_argument("--measure-memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure_memory:
        torch.set_num_threads(options.threads)
        return print(measure_memory(*options.measure_memory))
    rate = matrix_product_rate()
    print(
        f"{processor()}, PyTorch {torch.__version__}, {datetime.date.today()}, matrix product {rate / 1e9:.0f} GFLOP/s "
        f"on one thread; {'compiled' if options.compile else 'eager'}, {options.pairs} pairs, wall-clock with "
        f"{options.threads} thread(s): `python {' '.join(['examples/benchmarks/attention_speed.py', *arguments])}`\n\n"
        f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}",
        flush=True,
    )
    for case in options.cases:
        for pass_name in options.passes:
            print(f"| {measure(case, pass_name, rate, options)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
