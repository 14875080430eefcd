"""What ranks draw alike, one process standing for each of them; models that do so run on ranks in test_shard_axis."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from modeling_axial.distributed.shared_draws import SharedDraws

MESH = SimpleNamespace(device_type="cpu", get_group=lambda: None)


class Drawing(nn.Module):
    """Draws before its trunk, inside, and behind it."""

    def __init__(self):
        super().__init__()
        self.trunk, self.weight = nn.Dropout(0.5), nn.Parameter(torch.ones(()))

    def forward(self, fails=False):
        before = torch.rand(3)
        if fails:
            raise ValueError("this input does not fit")
        return before, self.trunk(torch.ones(20)), torch.rand(3)


@pytest.fixture
def of_rank(monkeypatch):
    """Calls a model on a rank, whose random state is its number, when the first rank has the seed 7."""
    monkeypatch.setattr(dist, "broadcast", lambda seed, group, group_src: seed.fill_(7))

    def call(rank, train=True, shared=True):
        model = Drawing().train(train)
        if shared:
            SharedDraws(model, [model.trunk], MESH)
        torch.manual_seed(rank)
        return model, model()

    return call


def test_ranks_draw_alike_before_the_trunk_only(of_rank):
    (_, first), (_, second) = of_rank(0), of_rank(1)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0], torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(first[1], second[1]) and not torch.equal(first[2], second[2])
    torch.manual_seed(0)
    torch.randint(2**62, (1,))  # the seed, which each draws
    assert torch.equal(first[1], nn.functional.dropout(torch.ones(20))) and torch.equal(first[2], torch.rand(3))


def test_nothing_is_shared_in_eval_mode(of_rank):
    for ours, plain in zip(of_rank(0, train=False)[1], of_rank(0, train=False, shared=False)[1], strict=True):
        assert torch.equal(ours, plain)


def test_a_call_that_fails_leaves_the_random_state_as_its_own(of_rank):
    model, _ = of_rank(0)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="does not fit"):
        model(fails=True)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    torch.randint(2**62, (1,))
    assert torch.equal(drawn, torch.rand(3))
