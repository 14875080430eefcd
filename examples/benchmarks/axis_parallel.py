"""What does a process save when one axis of the grid is split, and what does it send?

    python examples/benchmarks/axis_parallel.py > examples/benchmarks/results/axis_parallel.md

Segmentation of a volume, forward and a training step, on one process and split over several of this machine, which talk
over gloo: "whole" with `gather=True`, each given all of the volume, "local" with `gather=False`, where each has
its part. Eager, float32, batch 1, one thread. CPU seconds are those of a process with all of its threads, the mean over
the processes of medians over the steps; other load on the machine moves wall-clock time much more, which is not given.
Memory is what a step adds to the peak resident memory of a fresh process, the most of all processes. The loss must be
that of one process.

Bytes are those that a process sends to others in exchanges of activations, in local mode, beside 2 (P - 1) / P of its
own activation for each attention along the split axis: once in forward, twice in a training step, three times where
activations are rebuilt. "Ulysses" is the same model with queries, keys, values and outputs exchanged, and heads split
instead (Jacobs et al. 2023, arXiv 2309.14509): 4 (P - 1) / P.
"""

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from measuring import peak_growth, processor
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from modeling_axial import AxialConfig, AxialForSemanticSegmentation
from modeling_axial.distributed import own_slice, shard_axis, switch
from modeling_axial.distributed.model_split import LocalTrunkSplit
from modeling_axial.distributed.switching import shard_sizes
from modeling_axial.distributed.trunk_split import layers_of, mixers_of

AXIS, PATCH, HIDDEN_SIZE, NUM_HEADS = 0, 2, 64, 4
PASSES = ("forward", "training step")
# How often the exchanges of forward are made.
TIMES = {"forward": 1, "training step": 2, "rebuilt": 3}


class Job(NamedTuple):
    """What a group of fresh processes runs."""

    cells: tuple[int, ...]
    layers: int
    processes: int
    mode: str  # "whole", "local" or "Ulysses"
    pass_name: str  # of `PASSES`, or "rebuilt": a training step of a reversible trunk
    steps: int  # that are timed, behind a first one


class Ulysses(LocalTrunkSplit):
    """Queries, keys and values get the split axis whole and their heads split instead, and their outputs go back."""

    def __init__(self, trunk: Any, *arguments: Any, **keywords: Any):
        super().__init__(trunk, *arguments, **keywords)
        self.head_sizes = shard_sizes(NUM_HEADS, self.mesh.size())
        for layer in layers_of(trunk):
            for mixer in mixers_of(layer.attention):
                if mixer.axis == self.axis:
                    core: Any = mixer.core
                    self.handles.append(core.register_forward_pre_hook(self.before_core))
                    self.handles.append(core.register_forward_hook(self.behind_core))

    def before_mixer(self, mixer: nn.Module, args: tuple) -> tuple:
        return args

    def behind_mixer(self, mixer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output

    def before_core(self, core: nn.Module, args: tuple) -> tuple:
        layout, heads = self.present, args[0].dim() - 2
        own = (heads, self.head_sizes, layout.dim, layout.sizes, layout.group)
        return *(switch(states, *own) for states in args[:3]), *args[3:]

    def behind_core(self, core: nn.Module, args: tuple, output: tuple) -> tuple:
        states, weights = output
        layout, heads = self.present, states.dim() - 2
        return switch(states, layout.dim, layout.sizes, heads, self.head_sizes, layout.group), weights


def make_model(job: Job) -> AxialForSemanticSegmentation:
    torch.manual_seed(0)
    return AxialForSemanticSegmentation(
        AxialConfig(
            image_size=[PATCH * cells for cells in job.cells],
            patch_size=[PATCH] * len(job.cells),
            num_channels=1,
            num_labels=2,
            hidden_size=HIDDEN_SIZE,
            num_attention_heads=NUM_HEADS,
            num_hidden_layers=job.layers,
            reversible=job.pass_name == "rebuilt",
        )
    )


def make_inputs(job: Job, cells: slice) -> dict[str, Tensor]:
    """This process's part of a volume and its labels. Each slice is drawn by itself, so that none needs the others."""
    sides = [PATCH * side for side in job.cells]
    sides[AXIS] = PATCH
    generators = [torch.Generator().manual_seed(number) for number in range(cells.start, cells.stop)]
    slices = [torch.randn(1, 1, *sides, generator=generator) for generator in generators]
    pixel_values = torch.cat(slices, AXIS + 2)
    return {"pixel_values": pixel_values, "labels": (pixel_values[:, 0] > 0.5).long()}


def run_step(model: nn.Module, inputs: dict[str, Tensor], job: Job) -> float:
    if job.pass_name == "forward":
        with torch.no_grad():
            return model(**inputs).loss.item()
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item()


def counted(exchange: Callable, sent: list[int]) -> Callable:
    """`all_to_all_single`, which notes the bytes that go to other processes."""

    def count(received: Tensor, states: Tensor, receive_sizes: list[int], send_sizes: list[int], group: Any) -> Any:
        others = sum(size for rank, size in enumerate(send_sizes) if rank != dist.get_rank(group))
        sent.append(others * states.element_size())
        return exchange(received, states, receive_sizes, send_sizes, group=group)

    return count


def run_job(job: Job) -> dict[str, float]:
    """What a process measures: CPU seconds of a step, MiB that the first adds, bytes that it sends, and the loss."""
    torch.set_num_threads(1)
    model: Any = make_model(job).train(job.pass_name != "forward")
    cells = slice(0, job.cells[AXIS])
    if job.processes > 1:
        mesh = init_device_mesh("cpu", (job.processes,))
        chosen = Ulysses if job.mode == "Ulysses" else LocalTrunkSplit
        with mock.patch("modeling_axial.distributed.shard_axis.LocalTrunkSplit", chosen):
            model = shard_axis(model, mesh, AXIS, gather=job.mode == "whole")
        cells = cells if job.mode == "whole" else own_slice(job.cells, mesh, AXIS)
        if model.training:
            model = DistributedDataParallel(model)
    inputs, sent, losses = make_inputs(job, cells), [], []
    step = lambda: losses.append(run_step(model, inputs, job))  # noqa: E731
    with mock.patch.object(dist, "all_to_all_single", counted(dist.all_to_all_single, sent)):
        memory = peak_growth(step)
    seconds = []
    for _ in range(job.steps):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    cpu = statistics.median(seconds) if seconds else 0.0
    return {"cpu": cpu, "memory": memory, "bytes": sum(sent), "loss": losses[0]}


def process_main(rank: int, job: Job, folder: str) -> None:
    if job.processes > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=job.processes)
    Path(folder, f"{rank}.json").write_text(json.dumps(run_job(job)), encoding="utf-8")
    if job.processes > 1:
        dist.barrier()
        time.sleep(0.5)  # gloo's threads may still let go of tensors
        dist.destroy_process_group()


def measure(job: Job) -> list[dict[str, float]]:
    """What `run_job` gives on each of as many fresh processes as it asks for, forked from this one."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(process_main, (job, folder), job.processes, start_method="fork")
        paths = [Path(folder, f"{rank}.json") for rank in range(job.processes)]
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def check_loss(found: list[dict[str, float]], expected: float) -> None:
    for rank, each in enumerate(found):
        if abs(each["loss"] - expected) > 1e-5 * expected:
            raise RuntimeError(f"the loss of process {rank} is {each['loss']}, that of one process {expected}")


def formula(job: Job) -> float:
    """Bytes that a process sends: of its own activation, for each attention along the split axis."""
    own = torch.Size(job.cells).numel() // job.processes * HIDDEN_SIZE * torch.float32.itemsize
    exchanges = 4 if job.mode == "Ulysses" else 2
    return TIMES[job.pass_name] * exchanges * (job.processes - 1) / job.processes * own * job.layers


def costs(job: Job, others: list[int]) -> list[str]:
    """The table of CPU seconds and memory."""
    rows = ["| pass | processes | mode | CPU, s | of one | memory, MiB | of one |", f"|{'---|' * 7}"]
    for pass_name in PASSES:
        one_job = job._replace(pass_name=pass_name, processes=1)
        (one,) = measure(one_job)
        rows.append(f"| {pass_name} | 1 | | {one['cpu']:.3f} | 1 | {one['memory']:.0f} | 1 |")
        for processes in others:
            for mode in ("whole", "local"):
                found = measure(one_job._replace(processes=processes, mode=mode))
                check_loss(found, one["loss"])
                cpu, memory = statistics.mean(each["cpu"] for each in found), max(each["memory"] for each in found)
                shares = cpu / max(one["cpu"], 1e-9), memory / one["memory"]
                rows.append(
                    f"| {pass_name} | {processes} | {mode} | {cpu:.3f} | **{shares[0]:.2f}** | {memory:.0f} | "
                    f"**{shares[1]:.2f}** |"
                )
    return rows


def exchanged(job: Job, others: list[int]) -> list[str]:
    """The table of bytes."""
    rows = ["| pass | processes | sent by one, MB | by the formula | Ulysses | by its formula |", f"|{'---|' * 6}"]
    for pass_name in TIMES:
        one_job = job._replace(pass_name=pass_name, processes=1, steps=0)
        (one,) = measure(one_job)
        for processes in others:
            cells = []
            for mode in ("local", "Ulysses"):
                split = one_job._replace(processes=processes, mode=mode)
                found = measure(split)
                check_loss(found, one["loss"])
                cells += [f"{max(each['bytes'] for each in found) / 1e6:.3f}", f"{formula(split) / 1e6:.3f}"]
            rows.append(f"| {pass_name} | {processes} | {' | '.join(cells)} |")
    return rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[32, 32, 32], help="the grid; its first axis is split")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="beside one; parts must be equal")
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    options = parser.parse_args(arguments)
    for processes in options.processes:
        if processes < 2 or options.cells[AXIS] % processes or NUM_HEADS % processes:
            parser.error(f"{processes} processes must be at least 2 and divide {options.cells[AXIS]} and {NUM_HEADS}")
    job = Job(tuple(options.cells), options.layers, 1, "whole", "forward", options.steps)
    print(
        f"{processor()}, PyTorch {torch.__version__}, {datetime.date.today()}, {job.layers} layers of {HIDDEN_SIZE} "
        f"channels on {' x '.join(map(str, job.cells))} cells, {job.steps} steps: "
        f"`python {' '.join(['examples/benchmarks/axis_parallel.py', *arguments])}`\n",
        flush=True,
    )
    for table in (partial(costs, job, options.processes), partial(exchanged, job, options.processes)):
        print(*table(), "", sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
