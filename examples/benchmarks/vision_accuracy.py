"""
How well do an axial classifier, ViT and Swin of one size classify, when all have learnt for the same CPU time?

    python examples/benchmarks/vision_accuracy.py --output examples/benchmarks/results

Two kinds of pictures, grey, with labels that are known: `digits`, 28 x 28 pixels in 7 x 7 patches, of which every fifth
is held out; and `films`, crops of 28 x 28 pixels in 14 x 14 patches, of single frames of three films (which film is it
from?), held out in time: later frames, behind a gap.

All models have width 32, 2 heads, 4 layers, and as many parameters, to 2 %, without tables of positions: their feed-
forwards have 4 times the width, but 2 times in the sequential axial model, whose layers have two attentions. ViT and
Swin are those of transformers; Swin has windows of 7 x 7, which shift, and one stage, so that it does not merge patches
on its way. All weights begin with the same deviation, nothing is dropped, and all have the same optimizer, batches and
changes of the pictures, drawn in the same order.

A model learns until it has had `--seconds` of one thread, whole steps with their data; what it takes to measure it is
not counted. The learning rate warms up and falls with the share of the time. Its peak is chosen for each model, among
the same few, by what a part of the pictures to learn from says when all others were learnt for as long: every model
gets the same trials, and what is held out chooses nothing. Models take turns, so that a busy machine slows all alike.
Accuracies are means over the classes, each of which counts the same, at the end of the time. Needs the extra
`generate`, for the films.
"""

import argparse
import datetime
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from measuring import processor, publish, rows
from torchmetrics.functional.classification import multiclass_accuracy
from tqdm.auto import tqdm
from transformers import PreTrainedModel, SwinConfig, SwinForImageClassification, ViTConfig, ViTForImageClassification

from modeling_axial import AxialConfig, AxialForImageClassification
from modeling_axial.image_processing_axial import AxialImageProcessor
from modeling_axial.training import ResumableSampler
from modeling_axial.video_processing_axial import AxialVideoProcessor

sys.path.append(str(Path(__file__).parents[1]))
from image_classification_data import Digits, RandomAffine, set_apart  # noqa: E402  the examples are found from here on
from video_classification_data import Films  # noqa: E402

SIDE = 28  # pixels along a side of a picture
SIZE = {"height": SIDE, "width": SIDE}
WIDTH, HEADS, LAYERS = 32, 2, 4
INITIALIZER_RANGE = 0.1  # as in recipes of small models: with the 0.02 of large ones none learns in so short a time
MODELS = ("axial, alternating", "axial, sequential", "ViT", "Swin")
RATES = (0.0003, 0.001, 0.003, 0.01)
BATCH, WEIGHT_DECAY, WARM_UP = 16, 0.05, 0.1  # the last one is a share of the time
TURNS = 20  # so many parts of the time, between which models take turns
TO_CHOOSE = 0.25  # of what there is to learn from, measured on while rates are chosen
CROPS = 6000  # drawn from the films
FRAMES = 8  # of which one is learnt or measured: neighbours hardly differ


# Pictures


@dataclass(frozen=True)
class Pictures:
    """
    `learnt` and `measured`: `pixel_values` (N, 1, SIDE, SIDE) and `labels` (N,), of `num_labels` classes; patches have
    `patch_size` pixels along a side; `change` varies the pictures of a batch that is learnt, by draws of a generator.
    """

    learnt: tuple[torch.Tensor, torch.Tensor]
    measured: tuple[torch.Tensor, torch.Tensor]
    num_labels: int
    patch_size: int
    change: Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def digits(to_choose: float = 0.0) -> Pictures:
    """
    Handwritten digits, varied as in `configuration/training/digits.yaml`. With `to_choose`, that share of those to
    learn from is measured on, and the held-out ones are left alone.
    """
    data = Digits()
    learnt, measured = data.datasets(AxialImageProcessor(size=SIZE, num_channels=1))
    tensors, held_out = learnt.tensors, measured.tensors
    if to_choose:
        kept, apart = set_apart(learnt, data.label_names, to_choose, seed=0)
        tensors, held_out = (tuple(tensor[part.indices] for tensor in learnt.tensors) for part in (kept, apart))
    change = RandomAffine(shift=0.09, rotation=12, scale=0.12, shear=7)
    return Pictures(tensors, held_out, len(data.label_names), 4, change)


def films(to_choose: float = 0.0) -> Pictures:
    """
    Crops of frames of three films, half of those to learn from mirrored. With `to_choose`, that last share of the time
    to learn from is measured on, behind a gap as well, and the held-out time is left alone.
    """
    config = AxialConfig(image_size=[FRAMES, SIDE, SIDE], patch_size=[1, 1, 1], num_channels=1)
    clips = AxialVideoProcessor(num_frames=FRAMES, size=SIZE, num_channels=1)
    data = Films(config, to_choose)
    data.crops_per_epoch = CROPS
    learnt, measured = data.datasets(clips, config, mirror=True, accelerator=None, workers=0)
    learnt.sampler = ResumableSampler(CROPS, seed=0)
    parts = []
    for part in (learnt, measured):
        items = (part[index] for index in range(len(part)))
        frames, labels = zip(*((clip[0].clone(), label) for clip, label in items), strict=True)  # the first of each
        parts.append((torch.stack(frames), torch.tensor(labels)))
    return Pictures(*parts, len(data.label_names), 2, RandomAffine())  # which changes nothing more


DATASETS = {"digits": digits, "films": films}


# Models


def make_model(name: str, pictures: Pictures) -> PreTrainedModel:
    """A new classifier of such pictures: `name` is one of `MODELS`."""
    shared = {"image_size": SIDE, "num_channels": 1, "initializer_range": INITIALIZER_RANGE}
    shared |= {"patch_size": pictures.patch_size, "num_labels": pictures.num_labels}
    if name == "Swin":
        sizes = {"embed_dim": WIDTH, "depths": [LAYERS], "num_heads": [HEADS], "window_size": 7, "mlp_ratio": 4}
        return SwinForImageClassification(SwinConfig(drop_path_rate=0.0, **sizes, **shared))
    shared |= {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    if name == "ViT":
        return ViTForImageClassification(ViTConfig(intermediate_size=4 * WIDTH, **shared))
    mode = name.removeprefix("axial, ")
    intermediate_size = {"alternating": 4, "sequential": 2}[mode] * WIDTH
    return AxialForImageClassification(AxialConfig(attention_mode=mode, intermediate_size=intermediate_size, **shared))


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(all but the tables of positions, these)."""
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    positions = sum(count for name, count in parameters.items() if "position" in name)
    return sum(parameters.values()) - positions, positions


def accuracy(model: PreTrainedModel, pictures: Pictures) -> float:
    """The mean over classes of the share of measured pictures whose class is right."""
    pixel_values, labels = pictures.measured
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(pixel_values=batch).logits for batch in pixel_values.split(100)])
    return multiclass_accuracy(logits, labels, pictures.num_labels, average="macro").item()


# Learning


class Learner:
    """A model in training, the steps that it made, and the CPU seconds that they took."""

    def __init__(self, name: str, pictures: Pictures, rate: float, seed: int, seconds: float):
        torch.manual_seed(seed)
        self.name, self.pictures, self.rate, self.seconds = name, pictures, rate, seconds
        self.model = make_model(name, pictures).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        self.generator = torch.Generator().manual_seed(seed)  # the same pictures for all, in the same order
        self.steps, self.spent = 0, 0.0

    def train(self, until: float) -> None:
        """Makes steps until it has had `until` seconds of the thread."""
        while self.spent < until:
            start = time.thread_time()
            self.optimizer.param_groups[0]["lr"] = self.rate * schedule(self.spent / self.seconds)
            self.step()
            self.steps += 1
            self.spent += time.thread_time() - start

    def step(self) -> None:
        pixel_values, labels = self.pictures.learnt
        chosen = torch.randint(len(labels), (BATCH,), generator=self.generator)
        changed = self.pictures.change(pixel_values[chosen], self.generator)
        self.optimizer.zero_grad()
        self.model(pixel_values=changed, labels=labels[chosen]).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def schedule(share: float) -> float:
    """The part of the peak of the learning rate after a share of the time: up in a line, down by a cosine to 0."""
    if share < WARM_UP:
        return (share + 0.01) / (WARM_UP + 0.01)  # the first step is no standstill
    return (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


def learn_in_turns(learners: Sequence[Learner], seconds: float) -> None:
    for turn in range(TURNS):
        for learner in learners:
            learner.train(until=seconds * (turn + 1) / TURNS)


def trials(pictures: Pictures, seconds: float) -> dict[str, dict[float, float]]:
    """For each model what it measures with each rate."""
    learners = [Learner(name, pictures, rate, 0, seconds) for name in MODELS for rate in RATES]
    learn_in_turns(learners, seconds)
    measured: dict[str, dict[float, float]] = {name: {} for name in MODELS}
    for learner in learners:
        measured[learner.name][learner.rate] = accuracy(learner.model, pictures)
    return measured


# The report

COLUMNS = (
    "pictures | model | parameters | of positions | accuracy while choosing, by learning rate | steps | "
    "accuracy, held out: mean | from, to | mean over that of ViT"
)


def measure(dataset: str, seconds: float, seeds: int) -> list[str]:
    """The lines of a data set, one for each model."""
    chosen_by = trials(DATASETS[dataset](TO_CHOOSE), seconds)
    chosen = {name: max(measured, key=measured.__getitem__) for name, measured in chosen_by.items()}
    pictures = DATASETS[dataset]()
    accuracies: dict[str, list[float]] = {name: [] for name in MODELS}
    steps = dict.fromkeys(MODELS, 0)
    for seed in tqdm(range(1, seeds + 1), dataset, unit="seed"):  # 0 has chosen
        learners = [Learner(name, pictures, chosen[name], seed, seconds) for name in MODELS]
        learn_in_turns(learners, seconds)
        for learner in learners:
            accuracies[learner.name].append(accuracy(learner.model, pictures))
            steps[learner.name] = learner.steps
    of_vit = statistics.mean(accuracies["ViT"])
    lines = []
    for name in MODELS:
        counts = count_parameters(make_model(name, pictures))
        mean = statistics.mean(accuracies[name])
        rates = ", ".join(
            f"**{rate}: {value:.3f}**" if rate == chosen[name] else f"{rate}: {value:.3f}"
            for rate, value in chosen_by[name].items()
        )
        lines.append(
            f"{dataset} | {name} | {counts[0]:,} | {counts[1]:,} | {rates} | {steps[name]} | **{mean:.3f}** | "
            f"{min(accuracies[name]):.3f}, {max(accuracies[name]):.3f} | {mean - of_vit:+.3f}"
        )
    return lines


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the report; printed without")
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU seconds that each training takes")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model, once its rate is chosen")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), help="leave out others")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = [line for dataset in options.datasets for line in measure(dataset, options.seconds, options.seeds)]
    report = (
        f"{processor()}, PyTorch {torch.__version__}, transformers {transformers.__version__}, "
        f"{datetime.date.today()}, one thread, eager, float32, {options.seconds:g} CPU seconds for each training, "
        f"seeds: {options.seeds}, width {WIDTH}, {HEADS} heads, {LAYERS} layers, batches of {BATCH}: "
        f"`python {' '.join(['examples/benchmarks/vision_accuracy.py', *arguments])}`\n\n"
        "Parameters are without tables of positions, which have a column of their own. The rate in bold was chosen, by "
        f"a part of the pictures to learn from. Steps are those of the last seed.\n\n{rows(COLUMNS, *lines)}\n"
    )
    publish(report, options.output, "vision_accuracy.md")


if __name__ == "__main__":
    main(sys.argv[1:])
