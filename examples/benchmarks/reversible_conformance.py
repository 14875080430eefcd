"""The conformance matrix of reversible backbones: ours beside axial_attention, memcnn and RevTorch.

    python examples/benchmarks/reversible_conformance.py [--output results.md] [--quick]

Every package gets the same pairs (f, g) and the same data, and its gradients are compared with those of the plain
network, written out here: streams (x, x), y1 = x1 + f(x2), y2 = x2 + g(y1), their mean, everything stored. A cell holds
the relative error of the whole gradient (all parameters and the input), or the exception that was raised; "yes" marks
what is within the bar, "NO" what is not, "-" what a package has no interface for. Where dropout draws, the plain
network is given the very masks that the package used in its forward pass.

axial_attention is in the `test` extra. The other two are in none, as memcnn would install torchvision beside them:

    pip install --no-deps memcnn==1.5.2 RevTorch==0.2.4

They run with the options that serve them best here: memcnn with preserve_rng_state=True and num_bwd_passes=3, RevTorch
with fix_random_seed=True and eagerly_discard_variables=False. `--quick` leaves out the cases on two ranks.
"""

import argparse
import copy
import importlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from modeling_axial.reversible import RebuiltTwoStream  # noqa: E402, the checkout need not be installed

# The packages split the streams along the first grid axis, so all of f and g act on the others.
GRID, HIDDEN = (6, 5), 16


class Dropout(nn.Module):
    """Dropout that logs its masks; while `replay` holds masks it takes those."""

    log: list[Tensor] = []
    replay: list[Tensor] = []

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        mask = self.replay.pop(0) if self.replay else torch.rand_like(x) >= self.probability
        self.log.append(mask)
        return x * mask / (1 - self.probability)


class Attention(nn.Module):
    """f: self-attention along the second grid axis."""

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(hidden), nn.Linear(hidden, 3 * hidden)
        self.out, self.dropout = nn.Linear(hidden, hidden), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return self.dropout(self.out(scores @ value))


def feed_forward(hidden: int, dropout: float) -> nn.Sequential:
    """g: an MLP."""
    first, second = nn.Linear(hidden, 3 * hidden), nn.Linear(3 * hidden, hidden)
    return nn.Sequential(nn.LayerNorm(hidden), first, nn.GELU(), second, Dropout(dropout))


# ---------------------------------------------------------------------------------------------------------------------
# the packages: each a module made from pairs (f, g) that takes x (B, H, W, hidden) and gives the two streams as one
# tensor (B, 2 H, W, hidden), or their mean if that is all the package offers


class Plain(nn.Module):
    def __init__(self, pairs):
        super().__init__()
        self.f, self.g = (nn.ModuleList(functions) for functions in zip(*pairs, strict=True))

    def states(self, x):
        x1, x2 = x, x
        for f, g in zip(self.f, self.g, strict=True):
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
            yield torch.cat([x1, x2], 1)

    def forward(self, x):
        *_, state = self.states(x)
        return state


class OurLayer(nn.Module):
    def __init__(self, f, g):
        super().__init__()
        self.f, self.g = f, g

    def forward(self, *streams, executor):
        return executor.couple(self.f, self.g, *streams)


class Ours(nn.Module):
    def __init__(self, pairs):
        super().__init__()
        self.layers = nn.ModuleList(OurLayer(f, g) for f, g in pairs)

    def states(self, x):
        executor = RebuiltTwoStream()
        streams = executor.enter(x)
        for layer in self.layers:
            streams = layer(*streams, executor=executor)
            yield torch.cat(streams, 1).to(x.dtype)

    def forward(self, x):
        executor = RebuiltTwoStream()
        streams = executor.enter(x)
        for layer in self.layers:
            streams = layer(*streams, executor=executor)
        return torch.cat(streams, 1).to(x.dtype)


class AxialAttention(nn.Module):
    def __init__(self, pairs):
        from axial_attention.reversible import ReversibleSequence

        super().__init__()
        self.sequence = ReversibleSequence(nn.ModuleList(nn.ModuleList(pair) for pair in pairs))
        self.layers = self.sequence.blocks

    def forward(self, x):
        return self.sequence(x)


class MemCNN(nn.Module):
    def __init__(self, pairs):
        memcnn = importlib.import_module("memcnn")
        super().__init__()
        options = {"keep_input": False, "keep_input_inverse": False, "preserve_rng_state": True, "num_bwd_passes": 3}
        couplings = (memcnn.AdditiveCoupling(f, g, split_dim=1) for f, g in pairs)
        self.layers = nn.ModuleList(memcnn.InvertibleModuleWrapper(coupling, **options) for coupling in couplings)

    def states(self, x):
        x = torch.cat([x, x], 1)
        for layer in self.layers:
            x = layer(x)
            yield x

    def forward(self, x):
        x = torch.cat([x, x], 1)
        for layer in self.layers:
            x = layer(x)
        return x


class RevTorch(nn.Module):
    def __init__(self, pairs):
        revtorch = importlib.import_module("revtorch")
        super().__init__()
        blocks = (revtorch.ReversibleBlock(f, g, split_along_dim=1, fix_random_seed=True) for f, g in pairs)
        self.layers = nn.ModuleList(blocks)
        self.sequence = revtorch.ReversibleSequence(self.layers, eagerly_discard_variables=False)

    def forward(self, x):
        return self.sequence(torch.cat([x, x], 1))


PACKAGES = {"ours": Ours, "axial_attention": AxialAttention, "memcnn": MemCNN, "RevTorch": RevTorch}
ONLY_MEAN = (AxialAttention,)


def version(package: str) -> str | None:
    if package == "ours":
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Model(nn.Module):
    """stem -> a package's trunk -> mean of the streams -> head."""

    def __init__(self, trunk_class, depth=6, hidden=HIDDEN, dropout=0.0, dtype=torch.float32, stem=True, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.pairs = [(Attention(hidden, dropout), feed_forward(hidden, dropout)) for _ in range(depth)]
        self.stem = nn.Linear(hidden, hidden) if stem else nn.Identity()
        self.head = nn.Linear(hidden, 3)
        self.trunk_class = trunk_class
        self.trunk = trunk_class(self.pairs)
        self.to(dtype)
        self.example = torch.randn(2, *GRID, hidden).to(dtype)

    def streams(self, x):
        return self.trunk(self.stem(x).to(x.dtype))  # float32 under autocast

    def forward(self, x):
        streams = self.streams(x)
        return self.head(streams if self.trunk_class in ONLY_MEAN else mean(streams))

    def weights(self):
        """In the same order for every package."""
        parts = [self.stem, *(part for pair in self.pairs for part in pair), self.head]
        return [parameter for part in parts for parameter in part.parameters()]


def mean(streams: Tensor) -> Tensor:
    return streams.unflatten(1, (2, -1)).mean(1)


def square(output: Tensor) -> Tensor:
    return output.double().square().mean()


def once(model, x):
    square(model(x)).backward()


def gradients(model: Model, step: Callable, masks=(), input_requires_grad=True, training=True) -> list[Tensor | None]:
    """The gradients of all weights and of the input after `step(model, x)`; the masks it drew remain in Dropout.log."""
    model.train(training).zero_grad()
    x = model.example.detach().clone().requires_grad_(input_requires_grad)
    Dropout.log, Dropout.replay = [], list(masks)
    torch.manual_seed(1)
    step(model, x)
    return [tensor.grad for tensor in (*model.weights(), x)]


class MissingGradients(Exception):
    """The number of gradients that are None, and of those that the plain network has."""


def error(reference, found) -> float:
    missing = sum(f is None for r, f in zip(reference, found, strict=True) if r is not None)
    if missing:
        raise MissingGradients(f"{missing} of {sum(r is not None for r in reference)}")
    pairs = [(r.double(), f.double()) for r, f in zip(reference, found, strict=True) if r is not None]
    return math.sqrt(sum((r - f).square().sum() for r, f in pairs) / sum(r.square().sum() for r, _ in pairs))


def against_plain(trunk_class, step=once, prepare=lambda model: None, draws=0, **kwargs) -> float:
    """Relative error of the gradients of `step`; `draws`: how many masks its forward passes draw."""
    settings = {key: kwargs.pop(key) for key in ("input_requires_grad", "training") if key in kwargs}
    model, plain = Model(trunk_class, **kwargs), Model(Plain, **kwargs)
    prepare(model)
    prepare(plain)
    found = gradients(model, step, **settings)
    return error(gradients(plain, step, masks=Dropout.log[:draws], **settings), found)


# ---------------------------------------------------------------------------------------------------------------------
# the cases: each a function of the trunk class that gives an error, or (verdict, text); bars beside them


def two_forwards(model, x):
    outputs = model(x), model(x.flip(2))
    (square(outputs[0]) + 2 * square(outputs[1])).backward()


def backward_twice(model, x):
    loss = square(model(x))
    loss.backward(retain_graph=True)
    loss.backward()


def accumulate(model, x):
    for flipped in (x, x.flip(2), x.flip(1)):
        square(model(flipped)).backward()


def autograd_grad(model, x):
    weights = model.weights()
    for weight, gradient in zip(weights, torch.autograd.grad(square(model(x)), weights), strict=True):
        weight.grad = gradient


def autocast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        loss = square(model(x))
    loss.backward()


def gradient_penalty(model, x):
    (gradient,) = torch.autograd.grad(model(x).sum(), model.stem.weight, create_graph=True)
    (square(gradient) + square(model(x))).backward()


def second_stream(model, x):
    square(model.streams(x).chunk(2, 1)[1]).backward()


def hooks(model, x):
    for f, _ in model.pairs:
        f.out.weight.register_hook(lambda gradient: gradient * 2)
        f.register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0] * 3,))
    once(model, x)


def hidden_states(model, x, depths):
    states = list(model.trunk.states(model.stem(x)))
    square(torch.cat([mean(states[depth]) for depth in depths])).backward()


def freeze(model, parts):
    for part in parts(model):
        part.requires_grad_(False)


def start(model):
    return [model.stem, *model.pairs[0], *model.pairs[1]]


def middle(model):
    return [*model.pairs[2], *model.pairs[3]]


def end(model):
    return [*model.pairs[4], *model.pairs[5], model.head]


def compile_pairs(model):
    for f, g in model.pairs:
        f.compile(backend="aot_eager")
        g.compile(backend="aot_eager")


def needs_states(case):
    return lambda trunk_class: case(trunk_class) if hasattr(trunk_class, "states") else None


def needs_streams(case):
    return lambda trunk_class: None if trunk_class in ONLY_MEAN else case(trunk_class)


def gradcheck(trunk_class, check=torch.autograd.gradcheck):
    torch.manual_seed(0)
    pairs = [[nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double() for _ in "fg"] for _ in range(2)]
    weights = [parameter for pair in pairs for module in pair for parameter in module.parameters()]
    x = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    return check(lambda x, *weights: trunk_class(pairs)(x), (x, *weights)), "passes"


def running_statistics(trunk_class):
    """Updates of BatchNorm's statistics in one step. An error in forward is as good an answer as one update."""
    norm = nn.BatchNorm2d(GRID[0])
    trunk = trunk_class([(norm, nn.Linear(HIDDEN, HIDDEN))])
    try:
        output = trunk(torch.randn(2, *GRID, HIDDEN, requires_grad=True))
    except ValueError as refused:
        return "running statistics" in str(refused), "refused"
    square(output).backward()
    updates = int(norm.state_dict()["num_batches_tracked"])
    return updates == 1, f"{updates} updates"


def random_stream(trunk_class):
    """The user's generator: as in the plain network after forward, and unmoved by backward."""
    model, plain = Model(trunk_class, dropout=0.3), Model(Plain, dropout=0.3)
    torch.manual_seed(1)
    plain(plain.example)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    loss = square(model(model.example.requires_grad_()))
    forward = torch.get_rng_state()
    loss.backward()
    moved = [
        name
        for name, before, after in (("forward", expected, forward), ("backward", forward, torch.get_rng_state()))
        if not torch.equal(before, after)
    ]
    return not moved, f"moved by {' and '.join(moved)}" if moved else "untouched"


def pure_bfloat16(trunk_class, depth=24):
    """Distance from the float64 truth, beside that of the plain network in bfloat16; means over three draws."""
    distances = []
    for seed in range(3):
        model, plain = (Model(cls, depth, dtype=torch.bfloat16, seed=seed) for cls in (trunk_class, Plain))
        truth = copy.deepcopy(plain)
        truth.pairs = list(zip(truth.trunk.f, truth.trunk.g, strict=True))
        truth.example = model.example.double()
        reference = gradients(truth.double(), once)
        distances.append([error(reference, gradients(each, once)) for each in (model, plain)])
    found, stored = (statistics.mean(column) for column in zip(*distances, strict=True))
    return found <= 1.05 * stored, f"{found:.1e} (plain {stored:.1e})"


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made under it that are alive, and their peak; `apart` lists tensors not to count."""

    def __init__(self, apart):
        super().__init__()
        self.apart = {tensor.untyped_storage() for tensor in apart}
        self.storages, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage not in self.apart and id(storage) not in self.storages:
                forget = partial(self.forget, id(storage), storage.nbytes())
                self.storages[id(storage)] = weakref.ref(storage, forget)
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return output

    def forget(self, key, size, _):
        del self.storages[key]
        self.now -= size


def peak_bytes(trunk_class, depth):
    """Of one training step, without weights and their gradients."""
    model = Model(trunk_class, depth, hidden=32)
    for weight in model.weights():
        weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    with LiveBytes(model.weights()) as live:
        once(model, model.example.requires_grad_())
    return live.peak


def memory_growth(trunk_class):
    """Growth of the peak from depth 4 to depth 32, as a share of what the plain network grows."""
    growth, plain = (peak_bytes(cls, 32) - peak_bytes(cls, 4) for cls in (trunk_class, Plain))
    return growth <= 0.05 * plain, f"{growth / plain:.1%}"


def step_time(trunk_class, dropout, bar):
    """CPU seconds of one training step over those of the plain network: median of alternating pairs, hidden size 64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = [Model(cls, 4, hidden=64, dropout=dropout) for cls in (trunk_class, Plain)]
    x = torch.randn(8, 16, 16, 64, requires_grad=True)
    ratios = []
    for _ in range(9):
        times = []
        for model in models:
            Dropout.log = []
            begin = time.process_time()
            once(model, x)
            times.append(time.process_time() - begin)
        ratios.append(times[0] / times[1])
    torch.set_num_threads(threads)
    return statistics.median(ratios) <= bar, f"{statistics.median(ratios):.2f} x"


def drift(trunk_class, depth, bar):
    """Largest difference between what any f took in forward and when it ran again; float32."""
    model, seen = Model(trunk_class, depth), []
    for index, (f, _) in enumerate(model.pairs):
        f.register_forward_pre_hook(lambda f, args, index=index: seen.append((index, args[0].detach())))
    gradients(model, once)
    first = dict(seen[:depth])  # nothing where a package calls f.forward, past the hooks
    again = [(value - first[index]).abs().max().item() for index, value in seen[depth:]]
    return (max(again) <= bar, f"{max(again):.1e}") if again else None


def cases():
    """(name, function of the trunk class, bar on the error it gives, if it gives one)."""
    yield "float32, training", against_plain, 1e-6
    for depth, bar in ((1, 1e-6), (24, 1e-6), (64, 1e-6), (96, 2e-6)):
        yield f"float32, depth {depth}", partial(against_plain, depth=depth), bar
    yield "float64, depth 96", partial(against_plain, depth=96, dtype=torch.float64), 1e-12
    yield "gradcheck, float64", gradcheck, None
    yield "dropout 0.3", partial(against_plain, dropout=0.3, draws=12), 1e-6
    both = partial(against_plain, step=two_forwards, dropout=0.3, draws=24)
    yield "dropout, two forwards before one backward", both, 1e-6
    yield "user's random stream", random_stream, None
    yield "eval() and backward", partial(against_plain, dropout=0.3, training=False), 1e-6
    yield "input needs no gradient", partial(against_plain, stem=False, input_requires_grad=False), 1e-6
    for parts in (start, middle, end):
        frozen = partial(against_plain, prepare=partial(freeze, parts=parts), input_requires_grad=False)
        yield f"frozen {parts.__name__}", frozen, 1e-6
    yield "torch.autograd.grad", partial(against_plain, step=autograd_grad, input_requires_grad=False), 1e-6
    yield "backward twice (retain_graph)", partial(against_plain, step=backward_twice, dropout=0.3, draws=12), 1e-6
    yield "gradient accumulation", partial(against_plain, step=accumulate), 1e-6
    yield "double backward (gradient penalty)", partial(against_plain, step=gradient_penalty), 1e-6
    yield "gradgradcheck, float64", partial(gradcheck, check=torch.autograd.gradgradcheck), None
    yield "gradient hooks inside f", partial(against_plain, step=hooks), 1e-6
    yield "loss on the second stream only", needs_streams(partial(against_plain, step=second_stream)), 1e-6
    for name, depths in (("one hidden state only", (2,)), ("a hidden state and the last", (2, 5))):
        step = partial(hidden_states, depths=depths)
        yield f"loss on {name}", needs_states(partial(against_plain, step=step)), 1e-6
    yield "bfloat16 autocast, depth 24", partial(against_plain, step=autocast, depth=24), 2e-3
    yield "bfloat16, depth 24, from float64 truth", pure_bfloat16, None
    yield "BatchNorm inside f", running_statistics, None
    yield "torch.compile of f and g", partial(against_plain, prepare=compile_pairs), 1e-6
    yield "growth of activation memory with depth, over plain", memory_growth, None
    yield "step time, no dropout, over plain", partial(step_time, dropout=0.0, bar=1.45), None
    yield "step time, dropout, over plain", partial(step_time, dropout=0.1, bar=1.6), None
    for depth, bar in ((12, 3e-6), (48, 1e-5), (96, 2e-5)):
        yield f"largest drift of a stream, depth {depth}", partial(drift, depth=depth, bar=bar), None


def cell(function, trunk_class, bar) -> str:
    try:
        result = function(trunk_class)
    except Exception as raised:  # the table is to show what each package raises
        return f"NO {type(raised).__name__}: {' '.join(str(raised).split())[:50]}".replace("|", "/")
    if result is None:
        return "-"
    verdict, text = result if isinstance(result, tuple) else (result <= bar, f"{result:.1e}")
    return f"{'yes' if verdict else 'NO'} {text}"


# ---------------------------------------------------------------------------------------------------------------------
# processes: this file runs itself, once per package for the cases above, and once per rank for those on two ranks


DDP = ["DDP", "DDP, find_unused_parameters", "DDP, static_graph", "DDP, no_sync"]
FSDP2 = ["FSDP2, root", "FSDP2, per layer"]


def rank_main(rank, folder, package, case):
    """Two steps on this rank against the mean over ranks of what the plain network gives; rank 0 writes the cell."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def step(model, x):
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(rank))
        with model.no_sync() if case == DDP[3] and hasattr(model, "no_sync") else nullcontext():
            once(model, x)
        once(model, x)

    def distributed(trunk_class):
        model = Model(trunk_class)
        reference = gradients(Model(Plain), step, input_requires_grad=False)[:-1]
        for gradient in filter(torch.is_tensor, reference):
            dist.all_reduce(gradient, dist.ReduceOp.SUM)
            gradient.div_(2)
        if case in DDP:
            find_unused, static = case == DDP[1], case == DDP[2]
            wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused, static_graph=static)
        else:
            for layer in model.trunk.layers if case == FSDP2[1] else ():
                fully_shard(layer, mesh=mesh)
            wrapped = fully_shard(model, mesh=mesh)
        step(wrapped, model.example)
        found = [weight.grad for weight in model.weights()]
        return error(reference, [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in found])

    text = cell(distributed, PACKAGES[package], 1e-6)
    if rank == 0:
        Path(folder, "cell.json").write_text(json.dumps(text))
    os._exit(0)  # a package that raised half-way may have left the other rank waiting


def in_processes(number, *arguments) -> bool:
    """Runs this file `number` times at once, as ranks 0, 1, ... of a case; False if that takes too long."""
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **os.environ}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, __file__, "--child"]
    children = [subprocess.Popen([*command, str(rank), *arguments], env=environment, **quiet) for rank in range(number)]
    try:
        for child in children:
            child.wait(timeout=600)
    except subprocess.TimeoutExpired:
        return False
    finally:
        for child in children:
            child.kill()
            child.wait()
    return True


def two_ranks(package, case) -> str:
    with tempfile.TemporaryDirectory() as folder:
        ended = in_processes(2, folder, package, case)
        written = Path(folder, "cell.json")
        if written.exists():
            return json.loads(written.read_text())
        return "NO process died" if ended else "NO hangs"


def column(package) -> list[str]:
    """The cells of all cases, in a process of its own, which is started again after a case that kills it."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "cells.jsonl")
        written.touch()
        total = len(list(cases()))
        while (done := len(written.read_text().splitlines())) < total:
            in_processes(1, folder, package, str(done))
            if len(written.read_text().splitlines()) < total:
                append(written, "NO process died")
        return [json.loads(line) for line in written.read_text().splitlines()]


def column_main(folder, package, first):
    for _, function, bar in list(cases())[int(first) :]:
        append(Path(folder, "cells.jsonl"), cell(function, PACKAGES[package], bar))


def append(path, text):
    with path.open("a") as file:
        file.write(json.dumps(text) + "\n")


# ---------------------------------------------------------------------------------------------------------------------


def hardware() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--quick", action="store_true", help="without the cases on two ranks")
    parser.add_argument("--child", nargs=4, metavar=("RANK", "FOLDER", "PACKAGE", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.child:
        rank, folder, package, case = arguments.child
        return column_main(folder, package, case) if case.isdecimal() else rank_main(int(rank), folder, package, case)

    names = [name for name, *_ in cases()] + [f"{case}, 2 ranks" for case in DDP + FSDP2]
    table = {}
    for package in PACKAGES:
        number = version(package)
        print(f"{package} {number or ('' if number == '' else 'is not installed')}", file=sys.stderr)
        cells = ["not installed"] * len(names)
        if number is not None:
            cells = column(package) + (["-"] * 6 if arguments.quick else [two_ranks(package, c) for c in DDP + FSDP2])
        table[f"{package} {number or ''}".strip()] = cells
    lines = [
        "# Conformance of reversible backbones",
        "",
        f"{hardware()}; torch {torch.__version__}; Python {platform.python_version()}; {time.strftime('%Y-%m-%d')}; "
        f"`python examples/benchmarks/{Path(__file__).name}{' --quick' if arguments.quick else ''}`",
        "",
        (__doc__ or "").split("\n\n")[2],
        "",
        f"| case | {' | '.join(table)} |",
        "|---|" + "---|" * len(table),
    ]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, *cells in zip(names, *table.values(), strict=True)]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
