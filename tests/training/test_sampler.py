"""ResumableSampler: every sample once, the same order on any number of processes, and an exact position."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, TensorDataset

from modeling_axial.training import ResumableSampler, seeded_generator


def one_epoch(num_samples, seed=3, epoch=0, process_index=0, num_processes=1):
    sampler = ResumableSampler(num_samples, seed, process_index, num_processes)
    sampler.epoch = epoch
    return list(sampler)


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [one_epoch(101, seed, epoch) for seed in (0, 1, 2**40) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(101)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    assert orders == [one_epoch(101, seed, epoch) for seed in (0, 1, 2**40) for epoch in (0, 1)]
    # A fair shuffle leaves about one sample in its place.
    assert sum(index == position for position, index in enumerate(orders[0])) < 8


def test_the_order_is_pinned():
    """Another order in a later version would silently break the continuation of old checkpoints."""
    assert one_epoch(7, seed=0) == [0, 5, 6, 1, 2, 4, 3]
    assert one_epoch(7, seed=1, epoch=2) == [3, 1, 2, 6, 4, 5, 0]
    assert torch.rand((), generator=seeded_generator(1, 2, 3)).item() == 0.06167709827423096
    sampler = ResumableSampler(7, seed=1)
    sampler.epoch, sampler.offset = 2, 3
    assert torch.rand((), generator=sampler.generator()).item() == 0.06167709827423096


@pytest.mark.parametrize("num_samples", [10, 11, 13])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_a_step_of_all_processes_is_a_step_of_one_with_the_same_global_batch(num_samples, num_processes):
    alone = one_epoch(num_samples)
    parts = [one_epoch(num_samples, process_index=index, num_processes=num_processes) for index in range(num_processes)]
    used = num_samples // num_processes * num_processes
    assert {len(part) for part in parts} == {num_samples // num_processes}
    batch = 2
    for start in range(0, used // num_processes, batch):
        together = [index for part in parts for index in part[start : start + batch]]
        assert sorted(together) == sorted(
            alone[start * num_processes : (start + batch) * num_processes][: len(together)]
        )


def test_what_the_processes_leave_out_changes_every_epoch():
    left_out = set()
    for epoch in range(20):
        parts = [one_epoch(11, epoch=epoch, process_index=index, num_processes=3) for index in range(3)]
        left_out |= set(range(11)) - {index for part in parts for index in part}
    assert len(left_out) > 5


def test_the_length_is_what_is_left_of_the_epoch_for_one_process():
    sampler = ResumableSampler(11, seed=0, process_index=1, num_processes=2)
    for used, left in ((2, 4), (6, 1), (2, 5)):
        sampler.advance(used)
        assert len(sampler) == left == len(list(sampler))
    assert all(type(index) is int for index in sampler)
    assert len(ResumableSampler(3, seed=0, num_processes=3)) == 1


def test_each_position_has_a_generator_of_its_own_and_all_processes_the_same():
    draws = {}
    for process_index in (0, 1):
        sampler = ResumableSampler(6, 0, process_index, num_processes=2)
        draws[process_index] = []
        while sampler.epoch < 3:
            draws[process_index].append(torch.rand((), generator=sampler.generator()).item())
            sampler.advance(2)
    assert draws[0] == draws[1] and len(set(draws[0])) == 9


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    sampler = ResumableSampler(20, seed=0)
    list(DataLoader(range(20), sampler=sampler, batch_size=3, generator=torch.Generator()))
    torch.rand(3, generator=sampler.generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_resuming_at_any_batch_continues_the_order(num_workers, num_processes):
    """Through Accelerate's loader, which reads a batch ahead, and workers, which read further ahead."""

    def batches(sampler, until_epoch):
        loader = prepare_data_loader(
            DataLoader(
                TensorDataset(torch.arange(23)),
                sampler=sampler,
                batch_size=4,
                num_workers=num_workers,
                generator=torch.Generator(),
            ),
            num_processes=1,
            process_index=0,
        )
        while sampler.epoch < until_epoch:
            for (batch,) in loader:
                draw = torch.rand(2, generator=sampler.generator()).tolist()
                sampler.advance(len(batch) * num_processes)
                yield batch.tolist(), draw, sampler.state_dict()

    unbroken = list(batches(ResumableSampler(23, 5, num_processes - 1, num_processes), until_epoch=3))
    assert len(unbroken) == 3 * (6 if num_processes == 1 else 3)
    for position in range(0, len(unbroken) - 1, 1 if num_workers == 0 else 5):
        resumed = ResumableSampler(23, 5, num_processes - 1, num_processes)
        resumed.load_state_dict(unbroken[position][2])
        assert list(batches(resumed, until_epoch=3)) == unbroken[position + 1 :]


def test_accelerate_saves_and_restores_the_position(tmp_path):
    accelerator = Accelerator(cpu=True)
    sampler = ResumableSampler(10, seed=1)
    accelerator.register_for_checkpointing(sampler)
    sampler.advance(7)
    accelerator.save_state(str(tmp_path))
    sampler.advance(3)
    assert (sampler.epoch, sampler.offset) == (1, 0)
    accelerator.load_state(str(tmp_path))
    assert (sampler.epoch, sampler.offset) == (0, 7)


def test_a_state_of_another_run_is_refused():
    state = ResumableSampler(10, seed=1).state_dict()
    with pytest.raises(ValueError, match="num_samples=10, this run has num_samples=11"):
        ResumableSampler(11, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="seed=1, this run has seed=2"):
        ResumableSampler(10, seed=2).load_state_dict(state)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3, 0, 0, 4), "num_samples=3 is less"),
        ((3, 0, 2, 2), "process_index=2, num_processes=2"),
        ((3, 0, -1, 2), "process_index=-1"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResumableSampler(*arguments)


@pytest.mark.parametrize("num_samples", [0, 1, 12, -2])
def test_impossible_advances_are_refused(num_samples):
    sampler = ResumableSampler(11, seed=0, num_processes=2)
    with pytest.raises(ValueError, match=f"cannot use {num_samples} samples at 0 of 10"):
        sampler.advance(num_samples)
    sampler.advance(4)
    with pytest.raises(ValueError, match="cannot use 8 samples at 4 of 10"):
        sampler.advance(8)
    ResumableSampler(11, seed=0).advance(1)
