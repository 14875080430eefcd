"""That ranks work together, and that a test sees why they did not."""

import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks


def add_up(offset):
    total = torch.tensor(int(offset) + dist.get_rank())
    dist.all_reduce(total)
    return [dist.get_rank(), dist.get_world_size(), total.item()]


def sleep(seconds):
    time.sleep(int(seconds))


def fail_on_one_rank():
    if dist.get_rank() == 1:
        raise ValueError("this rank does not like it")
    sleep(600)


@pytest.mark.distributed
def test_ranks_know_each_other():
    assert run_on_ranks(add_up, 10, world_size=3) == [[rank, 3, 33] for rank in range(3)]


@pytest.mark.distributed
@pytest.mark.timeout(60)
def test_a_rank_that_fails_says_why_and_ends_the_others():
    with pytest.raises(RuntimeError, match="(?s)^fail_on_one_rank failed .*rank 1: .*this rank does not like it"):
        run_on_ranks(fail_on_one_rank)


@pytest.mark.distributed
def test_ranks_that_take_too_long_are_ended():
    with pytest.raises(RuntimeError, match="^sleep failed on its ranks:\nnot done after 2 seconds"):
        run_on_ranks(sleep, 600, timeout=2)
