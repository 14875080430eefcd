"""The autoregressive Axial Transformer beside flat ones that read all pixels before: ImageGPT, GPT-2 of transformers.

    python examples/benchmarks/autoregressive_vs_imagegpt.py [--parts training learning sampling samplers] > result.md

All have the same width, heads and activation, and as many parameters to 5 %; position tables, which a flat model has
for each pixel, are not counted. The flat ones have 8 blocks. Ours has 7 with a wider feed-forward: 3 groups of two
outer blocks, and a single inner one, as inner blocks are what each drawn pixel waits for. All see the same pictures
(the handwritten digits; every fifth is held out) in the same order with the same optimizer, and score the same: all
values of a picture, the first from a start token. ImageGPT has a vocabulary of 257 and no colour palette, so its
likelihoods are those of the pixels, too; GPT-2 attends by PyTorch's fused kernel. Everything runs on one thread, in
float32, eager, in turns; ratios are medians of pairs.

- training: seconds of a step (forward, backward, AdamW), and the growth of the peak resident memory that it causes in
  a fresh process. ImageGPT's own default is dropout 0.1, which costs it time; it is measured with and without.
- learning: bits per dimension of the held-out digits after `--seconds` of training each, taken in turns of `--slice`
  seconds. The learning rate follows the same clock. It is that of one core (CPU seconds of the thread), which on a core
  that nobody else uses is wall-clock time, and on a shared one still the same for all; both are printed. Nobody has
  dropout here.
- sampling: seconds to draw pictures, ours by `generate`. The flat models keep their keys and values; they draw by the
  `generate` of transformers, and in the plainest loop that there is.
- samplers: our three samplers at `--batch` pictures, and what they compute, by formula and by count.
- compiled: the sampler whose steps are compiled beside the cached one and ImageGPT, and how long its first call takes,
  which is shorter where PyTorch's cache on disk has the code from an earlier run.
"""

import argparse
import datetime
import functools
import itertools
import math
import sys
import time
from pathlib import Path

import torch
import transformers
from measuring import added_memory, compare_on_both_clocks, peak_growth, processor, rows, wall_seconds
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    PreTrainedModel,
)

from modeling_axial import AxialDecoderConfig, AxialForCausalImageModeling

sys.path.append(str(Path(__file__).parents[1]))
from image_classification_data import Digits  # noqa: E402  the examples are found from here on

LEVELS = 256  # values of a pixel; the number after them starts a flat sequence
START = LEVELS
HEADS = 4
SIZES = {28: 16, 64: 1}  # pictures of so many pixels along a side: so many in a batch
LEARNING_RATE = 3e-3
WARM_UP = 0.05  # of the time


# Models and data


def make_model(name: str, side: int, width: int = 64) -> PreTrainedModel:
    """A new model for pictures of side x side pixels: `name` is one of `MODELS`."""
    torch.manual_seed(0)
    return MODELS[name](side, width)


def make_axial(side: int, width: int) -> PreTrainedModel:
    return AxialForCausalImageModeling(
        AxialDecoderConfig(
            image_size=[side, side],
            num_channels=1,
            vocab_size=LEVELS,
            hidden_size=width,
            num_attention_heads=HEADS,
            intermediate_size=39 * width // 8,
            num_outer_layers=3,  # groups of two blocks
            num_inner_layers=1,
        )
    )


def flat_options(side: int, width: int, dropout: float) -> dict:
    return {
        "vocab_size": LEVELS + 1,
        "n_positions": side * side,
        "n_embd": width,
        "n_layer": 8,
        "n_head": HEADS,
        "activation_function": "quick_gelu",
        "tie_word_embeddings": False,
        "bos_token_id": START,
        "eos_token_id": None,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout),
    }


def make_imagegpt(side: int, width: int, dropout: float) -> PreTrainedModel:
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**flat_options(side, width, dropout)))


def make_gpt2(side: int, width: int) -> PreTrainedModel:
    config = GPT2Config(**flat_options(side, width, dropout=0.0))
    return GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")


MODELS = {
    "axial": make_axial,
    "ImageGPT": functools.partial(make_imagegpt, dropout=0.0),
    "ImageGPT, dropout 0.1": functools.partial(make_imagegpt, dropout=0.1),
    "GPT-2": make_gpt2,
}


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(all but the position tables, these)."""
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    positions = sum(count for name, count in parameters.items() if "position_embeddings" in name or "wpe" in name)
    return sum(parameters.values()) - positions, positions


def make_pictures(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out digits, int64 (pictures, 1, side, side), enlarged or reduced if `side` is not 28."""
    digits = Digits()
    pictures = torch.from_numpy(digits.pictures)[:, None]
    if side != pictures.shape[-1]:
        pictures = F.interpolate(pictures, size=(side, side))
    held_out = torch.from_numpy(digits.held_out)
    return pictures[~held_out].long(), pictures[held_out].long()


# What is measured


def loss(model: PreTrainedModel, pictures: torch.Tensor) -> torch.Tensor:
    """The mean of -ln p over all values of the pictures."""
    if isinstance(model, AxialForCausalImageModeling):
        return model(pictures).loss
    values = pictures.flatten(1)
    start = torch.full_like(values[:, :1], START)
    logits = model(torch.cat((start, values[:, :-1]), 1), use_cache=False).logits[..., :LEVELS]
    return F.cross_entropy(logits.flatten(0, 1), values.flatten())


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def training_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, pictures: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss(model, pictures).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def make_training_step(name: str, side: int, batch_size: int, width: int):
    model = make_model(name, side, width).train()
    pictures = make_pictures(side)[0][:batch_size]
    return functools.partial(training_step, model, make_optimizer(model), pictures)


@torch.inference_mode()
def held_out_bits(model: PreTrainedModel, pictures: torch.Tensor, batch_size: int = 20) -> float:
    """Bits per dimension."""
    model.eval()
    total = sum(loss(model, batch).double() * len(batch) for batch in pictures.split(batch_size))
    return total.item() / len(pictures) / math.log(2)


@torch.inference_mode()
def sample_flat(model: PreTrainedModel, num_images: int, num_values: int) -> torch.Tensor:
    """Draws the values of pictures one by one: int64 (num_images, num_values)."""
    cache = DynamicCache(config=model.config)
    values = [torch.full((num_images, 1), START)]
    for _ in range(num_values):
        logits = model(values[-1], past_key_values=cache, use_cache=True).logits[:, -1, :LEVELS]
        values.append(torch.multinomial(logits.softmax(-1), 1))
    return torch.cat(values[1:], 1)


def generate_flat(model: PreTrainedModel, num_images: int, num_values: int) -> torch.Tensor:
    """As `sample_flat`, by the `generate` of transformers."""
    suppressed = {"suppress_tokens": [START]} if model.config.model_type == "gpt2" else {}  # ImageGPT has no such logit
    start = torch.full((num_images, 1), START)
    return model.generate(start, do_sample=True, top_k=0, max_new_tokens=num_values, **suppressed)[:, 1:]


class Learner:
    """A model in training, with its own order of the data (the same for all) and the time that it took so far."""

    def __init__(self, name: str, pictures: torch.Tensor, batch_size: int, seconds: float, width: int):
        self.model = make_model(name, pictures.shape[-1], width).train()
        self.optimizer = make_optimizer(self.model)
        self.pictures, self.batch_size, self.seconds = pictures, batch_size, seconds
        self.generator = torch.Generator().manual_seed(0)
        self.steps, self.wall, self.cpu = 0, 0.0, 0.0

    def train(self, until: float) -> None:
        """Makes steps until it has had `until` seconds of a core, or all that it has."""
        while self.cpu < min(until, self.seconds):
            wall, cpu = time.perf_counter(), time.thread_time()
            part = self.cpu / self.seconds
            rate = LEARNING_RATE * min(1.0, (part + 0.01) / WARM_UP) * (1 + math.cos(math.pi * part)) / 2
            self.optimizer.param_groups[0]["lr"] = rate
            chosen = torch.randint(len(self.pictures), (self.batch_size,), generator=self.generator)
            training_step(self.model, self.optimizer, self.pictures[chosen])
            self.steps += 1
            self.wall += time.perf_counter() - wall
            self.cpu += time.thread_time() - cpu


def count_tokens(sampler: str, side: int) -> tuple[int, int]:
    """Tokens that pass (the outer level, the inner level) while one picture is drawn, counted in a model of no size."""
    config = AxialDecoderConfig(
        image_size=[side, side], num_channels=1, vocab_size=2, hidden_size=1, num_attention_heads=1
    )
    model = AxialForCausalImageModeling(config)
    (outer,) = model.outer_levels
    counts = dict.fromkeys((outer, model.inner_level), 0)

    def count(module, inputs, output):
        counts[module] += output.shape[:-1].numel()

    for level in counts:
        level.register_forward_hook(count)
    model.generate(1, sampler=sampler)
    return counts[outer], counts[model.inner_level]


def formulas(side: int) -> dict[str, tuple[str, int, str, int]]:
    """For each sampler, tokens through the outer and the inner level of a picture: as text, and how many."""
    pixels = side * side
    return {
        "cached": ("(H - 1)·W", (side - 1) * side, "H·W", pixels),
        "semi_parallel": ("H·(H·W)", side * pixels, "(H·W)·W", pixels * side),
        "naive": ("(H·W)²", pixels**2, "(H·W)²", pixels**2),
    }


# The report


def in_turns(runs: tuple, pairs: int) -> str:
    """Three cells: ratios of CPU and of wall-clock seconds, and the seconds, of (a peer, ours)."""
    for run in runs:
        run()  # both are warm
    cpu, wall = compare_on_both_clocks(runs, pairs)
    return f"**{cpu[2]:.1f}** | {wall[2]:.1f} | {cpu[0]:.3g}, {cpu[1]:.3g} | {wall[0]:.3g}, {wall[1]:.3g}"


TIMES = "peer / ours, CPU | peer / ours, wall | CPU, s: peer, ours | wall, s: peer, ours"


def report_training(options: argparse.Namespace) -> str:
    lines = []
    for side, batch_size in options.sizes.items():
        memory = {name: added_memory(__file__, name, side, batch_size, options.width) for name in MODELS}
        ours = make_training_step("axial", side, batch_size, options.width)
        for name in PEERS:
            peer = make_training_step(name, side, batch_size, options.width)
            cells = in_turns((peer, ours), options.pairs)
            lines.append(
                f"{side} x {side}, batch {batch_size} | {name} | {cells} | {memory[name]:.0f}, {memory['axial']:.0f}"
            )
    return rows(f"pictures | peer | {TIMES} | memory, MiB: peer, ours", *lines)


def report_learning(options: argparse.Namespace) -> str:
    side, batch_size = next(iter(options.sizes.items()))
    train, held_out = make_pictures(side)
    names = [name for name in MODELS if "dropout" not in name]
    learners = {name: Learner(name, train, batch_size, options.seconds, options.width) for name in names}
    for part in range(math.ceil(options.seconds / options.slice)):
        for learner in learners.values():
            learner.train(until=(part + 1) * options.slice)
    return rows(
        "model | bits per dimension, held out | CPU, s | wall, s | steps",
        *(
            f"{name} | **{held_out_bits(learner.model, held_out):.3f}** | {learner.cpu:.0f} | {learner.wall:.0f} | "
            f"{learner.steps}"
            for name, learner in learners.items()
        ),
    )


def report_sampling(options: argparse.Namespace) -> str:
    side = next(iter(options.sizes))
    ours = make_model("axial", side, options.width)
    lines = []
    for name in ("ImageGPT", "GPT-2"):
        peer = make_model(name, side, options.width).eval()
        for num_images, draw in itertools.product((1, 16), (generate_flat, sample_flat)):
            runs = (
                functools.partial(draw, peer, num_images, side * side),
                functools.partial(ours.generate, num_images),
            )
            how = "generate()" if draw is generate_flat else "plain loop"
            lines.append(f"{num_images} | {name}, {how} | {in_turns(runs, options.pairs)}")
    return rows(f"pictures of {side} x {side} | peer | {TIMES}", *lines)


def report_samplers(options: argparse.Namespace) -> str:
    side, batch_size = next(iter(options.sizes)), options.batch
    model = make_model("axial", side, options.width)
    counted = {}
    for sampler, (outer, outer_tokens, inner, inner_tokens) in formulas(side).items():
        counted[sampler] = f"{outer} = {outer_tokens} | {inner} = {inner_tokens} | {count_tokens(sampler, side)}"
    first_line = torch.ones(1, 1, side, side, dtype=torch.bool)
    first_line[:, :, 0] = False
    values = torch.zeros(1, 1, side, side, dtype=torch.long)
    naive_line = functools.partial(model.generate, batch_size, known=(values, first_line), sampler="naive")
    cached = functools.partial(model.generate, batch_size)
    cached()
    semi_parallel = functools.partial(model.generate, batch_size, sampler="semi_parallel")
    against = {
        "semi_parallel": compare_on_both_clocks((semi_parallel, cached), min(options.pairs, 3)),
        "naive": compare_on_both_clocks((naive_line, cached), 1),
    }
    lines = []
    for sampler, cells in counted.items():
        if sampler == "cached":
            times = "1 | 1 | - | -"
        else:
            cpu, wall = against[sampler]
            times_more = side if sampler == "naive" else 1  # lines of a picture, of which naive drew one
            times = (
                f"**{times_more * cpu[2]:.1f}** | {times_more * wall[2]:.1f} | {times_more * cpu[0]:.3g}, {cpu[1]:.3g} "
                f"| {times_more * wall[0]:.3g}, {wall[1]:.3g}"
            )
        lines.append(f"{sampler} | {cells} | {times}")
    table = rows(
        "sampler | outer level, tokens | inner level, tokens | counted | over cached, CPU | over cached, wall | "
        "CPU, s: it, cached | wall, s: it, cached",
        *lines,
    )
    return (
        f"{batch_size} pictures of {side} x {side}. Naive is extrapolated from the first {side} pixels: each costs it "
        f"the same.\n\n{table}"
    )


def report_compiled(options: argparse.Namespace) -> str:
    side = next(iter(options.sizes))
    ours, imagegpt = (make_model(name, side, options.width).eval() for name in ("axial", "ImageGPT"))
    lines = []
    for num_images in (1, 16):
        compiled = functools.partial(ours.generate, num_images, sampler="compiled")
        first = wall_seconds(compiled, threads=1)
        peers = {
            "cached": functools.partial(ours.generate, num_images),
            "ImageGPT, generate()": functools.partial(generate_flat, imagegpt, num_images, side * side),
        }
        for name, peer in peers.items():
            lines.append(f"{num_images} | {name} | {in_turns((peer, compiled), options.pairs)} | {first:.1f}")
    return rows(f"pictures of {side} x {side} | peer | {TIMES.replace('ours', 'compiled')} | first call, s", *lines)


PEERS = [name for name in MODELS if name != "axial"]
PARTS = {
    "training": report_training,
    "learning": report_learning,
    "sampling": report_sampling,
    "samplers": report_samplers,
    "compiled": report_compiled,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs of measurements")
    parser.add_argument("--seconds", type=float, default=300.0, help="of one core, to train each, for `learning`")
    parser.add_argument("--slice", type=float, default=60.0, help="seconds of training before the next has its turn")
    parser.add_argument("--batch", type=int, default=64, help="pictures for `samplers`")
    parser.add_argument("--tiny", action="store_true", help="small models and pictures, to try the script")
    parser.add_argument("--measure-memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.measure_memory:
        name, *sizes = options.measure_memory
        return print(peak_growth(make_training_step(name, *map(int, sizes))))
    options.width, options.sizes = (8, {7: 2}) if options.tiny else (64, SIZES)
    side = next(iter(options.sizes))
    counts = {name: count_parameters(make_model(name, side, options.width)) for name in MODELS}
    print(
        f"{processor()}, PyTorch {torch.__version__}, transformers {transformers.__version__}, "
        f"{datetime.date.today()}, one thread, eager, {options.pairs} pairs: "
        f"`python {' '.join(['examples/benchmarks/autoregressive_vs_imagegpt.py', *arguments])}`\n\n"
        + rows(
            f"model | parameters without position tables | position tables of {side} x {side}",
            *(f"{name} | {parameters:,} | {positions:,}" for name, (parameters, positions) in counts.items()),
        ),
        flush=True,
    )
    for part in options.parts:
        print(f"\n## {part.capitalize()}\n\n{PARTS[part](options)}", flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(sys.argv[1:])
