"""Processes in groups: which examples each works on, and that what is gathered counts each example once."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from modeling_axial.training import AxisAccelerator, ResumableSampler, StopRequest
from tests.ranks import run_on_ranks


def shares():
    accelerator, found = AxisAccelerator(2, cpu=True), {}
    number, count = accelerator.share
    found["share"] = accelerator.share
    found["groups"] = [
        dist.get_process_group_ranks(group) for group in (accelerator.axis_mesh.get_group(), accelerator.data_group)
    ]
    sampler = ResumableSampler(9, 1, number, count)
    found["read"] = list(sampler)
    found["gathered"] = accelerator.gather({"examples": torch.tensor(found["read"])})["examples"].tolist()
    found["measured"] = []
    for batch_size in (1, 2, 3):
        loader = DataLoader(range(7), batch_size=batch_size)
        loader = prepare_data_loader(loader, num_processes=count, process_index=number)
        measured = [accelerator.gather_for_metrics(batch).tolist() for batch in loader]
        found["measured"].append([index for batch in measured for index in batch])
    stop = StopRequest(accelerator)
    if dist.get_rank() == 3:  # none of those whose examples are gathered
        os.kill(os.getpid(), signal.SIGTERM)
    found["stops"] = stop.agreed()
    stop.close()
    try:
        AxisAccelerator(3, cpu=True)
    except ValueError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module")
def found():
    return run_on_ranks(shares, world_size=4)


@pytest.mark.distributed
def test_neighbours_read_the_same_examples(found):
    assert [rank["share"] for rank in found] == [[0, 2], [0, 2], [1, 2], [1, 2]]
    assert [rank["groups"][0] for rank in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["groups"][1] for rank in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    read = [rank["read"] for rank in found]
    assert read[0] == read[1] and read[2] == read[3] and len({*read[0], *read[2]}) == 8


@pytest.mark.distributed
def test_each_example_is_counted_once(found):
    for rank in found:
        assert rank["gathered"] == found[0]["read"] + found[2]["read"]
        assert rank["measured"] == [list(range(7))] * 3


@pytest.mark.distributed
def test_a_signal_to_any_process_stops_all(found):
    assert all(rank["stops"] for rank in found)


@pytest.mark.distributed
def test_processes_that_make_no_whole_groups_are_refused(found):
    assert all("axis_parallel_size=3 must divide the number of processes, 4" in rank["error"] for rank in found)


def test_groups_of_one_are_as_without():
    accelerator, plain = AxisAccelerator(cpu=True), Accelerator(cpu=True)
    assert accelerator.share == (plain.process_index, plain.num_processes) == (0, 1)
    assert accelerator.axis_mesh is accelerator.data_group is None
    batch = torch.arange(3)
    assert torch.equal(accelerator.gather(batch), plain.gather(batch))
    with pytest.raises(ValueError, match="axis_parallel_size=0 must divide"):
        AxisAccelerator(0, cpu=True)
