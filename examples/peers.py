"""What training scripts share of a peer, another model that is trained beside: its run, and its size."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from training_run import RunArguments, TrainingArguments, TrainingRun
from transformers import PreTrainedModel


def check_peer(training: TrainingArguments, peer: str | None) -> None:
    """`ValueError` for a peer in a run whose model is split along an axis."""
    if peer is not None and training.axis_parallel_size > 1:
        raise ValueError(
            f"--peer {peer} is trained by whole models, not of axis_parallel_size={training.axis_parallel_size}: train "
            "it in a run without that"
        )


def start_peer_run(training: TrainingArguments, run: RunArguments, name: str, steps: int | None) -> TrainingRun:
    """The run of a peer, in a folder of its own: the same training, of so many optimizer steps if they are given."""
    if steps is not None:
        training = replace(training, max_train_steps=steps)
    peer_run = TrainingRun(training, peer_arguments(run, name))
    peer_run.accelerator.print(f"Now the peer, in {peer_run.output_dir}.")
    return peer_run


def peer_arguments(run: RunArguments, name: str) -> RunArguments:
    """The arguments of the run of a peer, in the subfolder of its name."""
    resume = None if run.resume_from_checkpoint is None else "latest"
    return replace(run, output_dir=str(Path(run.output_dir) / name), resume_from_checkpoint=resume, push_to_hub=False)


def size_difference(
    make: Callable[[Sequence[int]], PreTrainedModel], widths: Sequence[int], num_parameters: int
) -> int:
    """How many more parameters `make(widths)` has, for which nothing is computed."""
    with torch.device("meta"):
        return make(widths).num_parameters() - num_parameters


def equally_large(
    make: Callable[[Sequence[int]], PreTrainedModel],
    candidates: Iterable[Sequence[int]],
    num_parameters: int,
    what: str,
) -> PreTrainedModel:
    """
    `make(widths)` with those widths of `candidates` for which the number of parameters is nearest to `num_parameters`.
    `ValueError`, which says `what` it is, if that is further than 5 % away.
    """
    differences = {tuple(widths): size_difference(make, widths, num_parameters) for widths in candidates}
    widths = min(differences, key=lambda widths: abs(differences[widths]))
    if abs(differences[widths]) > 0.05 * num_parameters:
        raise ValueError(
            f"no {what} has within 5 % of the {num_parameters} parameters of the model; the nearest differs by "
            f"{differences[widths]}"
        )
    return make(widths)


def equally_large_unet(make: Callable[[Sequence[int]], PreTrainedModel], num_parameters: int) -> PreTrainedModel:
    """
    `make(widths)` with three widths, about in the ratio 1 : 2 : 4, for which the number of parameters is nearest to
    `num_parameters`. `ValueError` if that is further than 5 % away.
    """
    width = 1
    while size_difference(make, (width + 1, 2 * width + 2, 4 * width + 4), num_parameters) <= 0:
        width += 1
    between = itertools.product(*(range(ratio * width, ratio * (width + 1) + 1) for ratio in (1, 2, 4)))
    return equally_large(make, between, num_parameters, "U-Net")
