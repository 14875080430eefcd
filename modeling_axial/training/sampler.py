"""The order in which a training run reads its data: shuffled, split over processes, and resumed exactly."""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def seeded_generator(*key: int) -> torch.Generator:
    """
    A CPU generator whose stream depends on `key` alone, e.g. `(seed, epoch)`: whoever knows the key can draw the same
    numbers again, without touching torch's global generator.
    """
    # torch's CPU generator uses the low 32 bits of a seed, so the whole key is hashed into them.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


class ResumableSampler(Sampler[int]):
    """
    Yields indices of a data set of `num_samples`, in an order that depends on `(seed, epoch)` only.

    Sample `i` of an epoch goes to process `i % num_processes`, so that a step over all processes takes the same samples
    as one process with the same global batch. The `num_samples % num_processes` samples that would make the
    processes unequal are left out; which ones changes every epoch.

    The position is `(epoch, offset)`, with `offset` counted in samples over all processes. Iterating does not move it,
    because a `DataLoader` reads ahead: the training loop calls [`advance`] with what it has *used*. `state_dict` and
    `load_state_dict` make the position survive, through `accelerator.register_for_checkpointing(sampler)`.

    Do not let Accelerate split the loader a second time: wrap it with
    `accelerate.data_loader.prepare_data_loader(loader, num_processes=1, process_index=0, ...)`, and give the
    `DataLoader` a `generator` of its own, or starting an epoch draws from torch's global one.

    Args:
        num_samples (`int`): size of the data set, at least `num_processes`.
        seed (`int`): of the shuffling.
        process_index, num_processes (`int`): which part of every step this process takes.

    Raises:
        `ValueError`: if the data set is smaller than the number of processes, or a state belongs to another run.
    """

    # There is no `set_epoch` here on purpose: Accelerate's loaders would call it, counting from 0 after a resume.

    def __init__(self, num_samples: int, seed: int, process_index: int = 0, num_processes: int = 1):
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must be in [0, num_processes), got {process_index=}, {num_processes=}")
        if num_samples < num_processes:
            raise ValueError(f"num_samples={num_samples} is less than one sample for each of {num_processes} processes")
        self.num_samples = num_samples
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.epoch = 0
        self.offset = 0

    @property
    def samples_per_epoch(self) -> int:
        """Samples that all processes together use in one epoch."""
        return self.num_samples - self.num_samples % self.num_processes

    def __len__(self) -> int:
        """What is left of this epoch for this process."""
        return (self.samples_per_epoch - self.offset) // self.num_processes

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_samples, generator=seeded_generator(self.seed, self.epoch))
        yield from order[self.offset + self.process_index : self.samples_per_epoch : self.num_processes].tolist()

    def generator(self) -> torch.Generator:
        """A fresh generator that depends on the seed and the position alone: the same on all processes, and resumed."""
        return seeded_generator(self.seed, self.epoch, self.offset)

    def advance(self, num_samples: int) -> None:
        """
        Notes that all processes together have used `num_samples` more samples; after the last one of an epoch the
        position is the start of the next.
        """
        if num_samples % self.num_processes or not 0 < num_samples <= self.samples_per_epoch - self.offset:
            raise ValueError(
                f"cannot use {num_samples} samples at {self.offset} of {self.samples_per_epoch}: it must be a multiple "
                f"of num_processes={self.num_processes} and stay inside the epoch"
            )
        self.offset += num_samples
        if self.offset == self.samples_per_epoch:
            self.epoch, self.offset = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"num_samples": self.num_samples, "seed": self.seed, "epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        for name in ("num_samples", "seed"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint was made with {name}={state_dict[name]}, this run has "
                    f"{name}={getattr(self, name)}: the order of the data would not continue. Use the same ones."
                )
        self.epoch, self.offset = state_dict["epoch"], state_dict["offset"]
