"""One axis split over ranks gives the numbers of one process."""

import pytest
import torch
import torch.distributed as dist

from modeling_axial.distributed import shard_axis
from tests.distributed.cases import (
    DECODER_CASES,
    Case,
    errors_of_case,
    errors_of_decoder,
    make_case,
    make_inputs,
    make_model,
    meshes,
)
from tests.ranks import run_on_ranks

EXACT = 1e-13  # relative difference, in float64
CASES, SAMPLED = 320, 32

PLAIN = Case("learned", "sequential", (4, 6), (4, 6), 0, 2, "trunk", False, "counted", None, False, 1)
# Calls of all-to-all in forward, and in all: 2, 4 and 6 for each attention along the split axis of two layers, another
# at the end of the trunk, and another for each convolution.
EXCHANGES = {
    "sequential": (PLAIN, 2 * 2 + 1, 2 * 4 + 2),
    "sum": (PLAIN._replace(mode="sum"), 2 * 2 + 1, 2 * 4 + 2),
    "alternating": (PLAIN._replace(mode="alternating"), 2 + 1, 4 + 2),
    "induced": (PLAIN._replace(feature="induced"), 2 * 2 + 1, 2 * 4 + 2),
    "rebuilt": (PLAIN._replace(feature="reversible"), 2 * 2 + 1, 2 * 6 + 2),
    "stored": (PLAIN._replace(feature="stored streams"), 2 * 2 + 1, 2 * 4 + 2),
    "checkpointed": (PLAIN._replace(checkpointing="not reentrant", training=True), 2 * 2 + 1, 2 * 6 + 2),
    "reentrant": (PLAIN._replace(checkpointing="reentrant", training=True), 2 * 2 + 1, 2 * 6 + 2),
    "convolution": (PLAIN._replace(feature="convolution"), 2 * (2 + 2) + 1, 2 * (4 + 4) + 2),
}


def errors_of_cases(first, last, *world_sizes):
    """{case: its errors} of those that this rank has a part in."""
    world_sizes = tuple(map(int, world_sizes))
    by_size, errors = meshes(world_sizes), {}
    for number in range(int(first), int(last)):
        case = make_case(number, world_sizes)
        if dist.get_rank() < case.world_size:
            errors[case.name] = errors_of_case(case, by_size[case.world_size])
    return errors


def errors_of_decoders(by_size):
    return {
        case.name: errors_of_decoder(case, by_size[case.world_size])
        for case in DECODER_CASES
        if dist.get_rank() < case.world_size
    }


class CountedExchanges:
    """In place of `all_to_all_single`: notes the bytes that each call sends to other ranks."""

    def __init__(self):
        self.sent, self.exchange = [], dist.all_to_all_single

    def __enter__(self):
        dist.all_to_all_single = self
        return self.sent

    def __exit__(self, *_):
        dist.all_to_all_single = self.exchange

    def __call__(self, received, sent, receive_sizes, send_sizes, group):
        numbers = sum(size for rank, size in enumerate(send_sizes) if rank != dist.get_rank(group))
        self.sent.append(numbers * sent.element_size())
        return self.exchange(received, sent, receive_sizes, send_sizes, group=group)


def count_exchanges(mesh):
    """{name: the bytes of each exchange in forward, and of each in backward}."""
    counted = {}
    for name, (case, _, _) in EXCHANGES.items():
        model = shard_axis(make_model(case), mesh, case.axis)
        if case.training:  # which only a wrapper may do
            model = torch.nn.parallel.DistributedDataParallel(model, process_group=mesh.get_group())
        inputs = make_inputs(case)
        inputs.pop("output_hidden_states")
        with CountedExchanges() as sent:
            output = model(**inputs)
            forward = list(sent)
            output.last_hidden_state.square().sum().backward()
        counted[name] = forward, sent[len(forward) :]
    return counted


def all_on_two_and_three_ranks():
    by_size = meshes((2, 3))
    found = {"cases": errors_of_cases(0, SAMPLED, 2, 3), "decoders": errors_of_decoders(by_size)}
    if dist.get_rank() < 2:
        found["exchanges"] = count_exchanges(by_size[2])
    return found


@pytest.fixture(scope="module")
def found():
    return run_on_ranks(all_on_two_and_three_ranks, world_size=3)


def check(errors_of_ranks, names):
    errors = [entry for rank in errors_of_ranks for entry in rank.items()]
    assert {name for name, _ in errors} == set(names)
    wrong = [(name, *both) for name, both in errors if not max(both) <= EXACT]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.distributed
def test_numbers_are_those_of_one_process(found):
    check([rank["cases"] for rank in found], [make_case(number, (2, 3)).name for number in range(SAMPLED)])


@pytest.mark.distributed
@pytest.mark.audit
def test_numbers_are_those_of_one_process_in_all_cases():
    errors = run_on_ranks(errors_of_cases, 0, CASES, 2, 3, 4, world_size=4, timeout=540)
    check(errors, [make_case(number, (2, 3, 4)).name for number in range(CASES)])


@pytest.mark.distributed
def test_decoders_draw_alike(found):
    check([rank["decoders"] for rank in found], [case.name for case in DECODER_CASES])


@pytest.mark.distributed
@pytest.mark.parametrize("name", EXCHANGES)
def test_number_of_exchanges(found, name):
    _, in_forward, in_all = EXCHANGES[name]
    for rank in found[:2]:
        forward, backward = rank["exchanges"][name]
        assert (len(forward), len(forward) + len(backward)) == (in_forward, in_all)


@pytest.mark.distributed
@pytest.mark.parametrize("name, times", {"sequential": 2, "rebuilt": 3}.items())
def test_bytes_of_exchanges(found, name, times):
    """2 (P - 1) / P of a rank's own activation for each attention in forward; twice, or thrice if rebuilt, in all."""
    own = 2 * 12 * 12 * 8  # a batch of 2, of 4 x 6 cells one half, 12 channels, in float64
    for rank in found[:2]:
        forward, backward = rank["exchanges"][name]
        *switches, gathered = forward
        assert sum(switches) == 2 * own and gathered == own  # 2 layers, 2 ranks
        assert sum(forward + backward) == times * 2 * own + 2 * gathered
