"""Exchanges between ranks against the same on whole tensors, and their adjoints; the slicing without any process."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from modeling_axial.distributed import all_reduce, gather, switch
from modeling_axial.distributed.switching import neighbours, shard_sizes, shard_slice, with_neighbours
from tests.ranks import run_on_ranks

RANKS = 3


@given(st.integers(0, 20), st.integers(1, 7))
def test_shards_are_the_whole(length, world_size):
    sizes = shard_sizes(length, world_size)
    slices = [shard_slice(length, rank, world_size) for rank in range(world_size)]
    assert [cell for part in slices for cell in range(length)[part]] == list(range(length))
    assert [len(range(length)[part]) for part in slices] == sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("wraps", [False, True])
@given(st.integers(1, 9), st.integers(1, 5))
def test_neighbours_are_the_cells_beside(wraps, length, world_size):
    sizes = shard_sizes(length, world_size)
    for rank in range(world_size):
        own = shard_slice(length, rank, world_size)
        for cell, found in zip((own.start - 1, own.stop), neighbours(rank, sizes, wraps), strict=True):
            if not wraps and not 0 <= cell < length:
                assert found is None
            else:
                owner, index = found
                assert shard_slice(length, owner, world_size).start + index == cell % length
                assert 0 <= index < sizes[owner]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_lies_in_parts_is_not_copied(monkeypatch, batch_size):
    exchanged, states = [], torch.ones(batch_size, 4, 3)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "all_to_all_single", lambda *tensors, group: exchanged.append(tensors[:2]))
    switch(states, 1, [2, 2], 2, [3, 3], None)
    gathered = gather(states, 1, [4, 5], None)
    (_, sent), (received, _) = exchanged
    assert (sent.data_ptr() == states.data_ptr()) == (batch_size == 1)
    assert (gathered.data_ptr() == received.data_ptr()) == (batch_size == 1)


def part(whole, dim):
    own = shard_slice(whole.shape[dim], dist.get_rank(), RANKS)
    return whole.narrow(dim, own.start, own.stop - own.start)


def same_as_whole():
    """{what: the largest difference on this rank to the same of whole tensors}, and of an adjoint to what it is."""
    group, differences = dist.group.WORLD, {}
    for shape in ((2, 7, 5), (2, 2, 4), (2, 1, 4), (1, 3, 1), (1, 7, 5), (1, 2, 4)):
        whole = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        sizes = {dim: shard_sizes(shape[dim], RANKS) for dim in (1, 2)}
        edges = torch.cat([whole.new_zeros(shape[0], 1, shape[2]), whole, whole.new_zeros(shape[0], 1, shape[2])], 1)
        ring = torch.cat([whole[:, -1:], whole, whole[:, :1]], 1)
        own = shard_slice(shape[1], dist.get_rank(), RANKS)
        rows = slice(own.start, own.stop + 2)
        functions = {
            "switch": (lambda x, n=sizes: switch(x, 2, n[2], 1, n[1], group), part(whole, 2)),
            "switch, and back": (
                lambda x, n=sizes: switch(switch(x, 2, n[2], 1, n[1], group), 1, n[1], 2, n[2], group),
                part(whole, 1),
            ),
            "gather": (lambda x, n=sizes: gather(x, 1, n[1], group), whole),
            "all_reduce": (
                lambda x: all_reduce(x.sum(1), group),
                whole.sum(1),
            ),
            "with_neighbours": (lambda x, n=sizes: with_neighbours(x, 1, n[1], False, group), edges[:, rows]),
            "with_neighbours, wraps": (lambda x, n=sizes: with_neighbours(x, 1, n[1], True, group), ring[:, rows]),
        }
        for name, (function, expected) in functions.items():
            x = part(whole, 1).clone().requires_grad_()
            output = function(x)
            assert output.shape == expected.shape
            torch.manual_seed(dist.get_rank())
            direction, gradient = torch.randn_like(x), torch.randn_like(output).requires_grad_()
            (pulled,) = torch.autograd.grad(output, x, gradient, create_graph=True)
            # <gradient, f(direction)> over all ranks is <adjoint(gradient), direction>.
            both = torch.stack([(gradient * function(direction)).sum(), (pulled * direction).sum()])
            (again,) = torch.autograd.grad(pulled, gradient, direction)
            dist.all_reduce(both)
            for what, difference in {
                "values": output - expected,
                "adjoint": both[0] - both[1],
                "second derivative": again - function(direction),
            }.items():
                largest = difference.abs().max().item() if difference.numel() else 0.0
                differences[f"{name}: {what}"] = max(largest, differences.get(f"{name}: {what}", 0.0))
    return differences


@pytest.mark.distributed
def test_exchanges_are_those_of_whole_tensors():
    for differences in run_on_ranks(same_as_whole, world_size=RANKS):
        assert len(differences) == 18
        assert {name: number for name, number in differences.items() if number > 1e-13} == {}
