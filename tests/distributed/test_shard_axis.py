"""One axis split over ranks gives the numbers of one process."""


import pytest
import torch.distributed as dist

from tests.distributed.cases import errors_of_case, make_case, meshes
from tests.ranks import run_on_ranks

CASES, SAMPLED = 320, 32


def errors_of_cases(first, last, *world_sizes):
    """{case: its errors} of those that this rank has a part in."""
    world_sizes = tuple(map(int, world_sizes))
    by_size, errors = meshes(world_sizes), {}
    for number in range(int(first), int(last)):
        case = make_case(number, world_sizes)
        if dist.get_rank() < case.world_size:
            errors[case.name] = errors_of_case(case, by_size[case.world_size])
    return errors


@pytest.mark.distributed
def test_numbers_are_those_of_one_process():
    check(run_on_ranks(errors_of_cases, 0, SAMPLED, 2, 3, world_size=3), SAMPLED)


@pytest.mark.distributed
@pytest.mark.audit
def test_numbers_are_those_of_one_process_in_all_cases():
    check(run_on_ranks(errors_of_cases, 0, CASES, 2, 3, 4, world_size=4, timeout=540), CASES)


def check(errors_of_ranks, cases):
    errors = [entry for rank in errors_of_ranks for entry in rank.items()]
    assert len({name for name, _ in errors}) == cases
    wrong = [(name, *both) for name, both in errors if not max(both) <= 1e-13]
    assert not wrong, "\n".join(map(str, wrong))
