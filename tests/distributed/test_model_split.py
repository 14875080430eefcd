"""What a rank embeds, without the other ones; that results are those of one process is in test_shard_axis."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from modeling_axial import AxialConfig, AxialModel
from modeling_axial.distributed.layout import LocalLayout
from modeling_axial.distributed.model_split import LateTrunkSplit, LocalTrunkSplit, WholeTrunkSplit
from modeling_axial.position_embeddings import AxisCells, GridPosition

MESH = SimpleNamespace(size=lambda: 3, get_group=lambda: None)


@pytest.fixture
def be(monkeypatch):
    """Makes this process one of three ranks."""
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    return lambda rank: monkeypatch.setattr(dist, "get_rank", lambda group: rank)


def make_trunk(**fields):
    torch.manual_seed(0)
    sizes = {"image_size": [5, 6], "patch_size": [1, 2], "hidden_size": 6, "num_attention_heads": 1}
    trunk = AxialModel(AxialConfig(**sizes | {"num_hidden_layers": 1, "num_channels": 2} | fields)).double().eval()
    for parameter in trunk.parameters():
        parameter.data = torch.randn_like(parameter)
    return trunk


def make_inputs(grid, masked, cells):
    """What embeddings are given: pixels, a mask, positions, what is added."""
    pixels = torch.randn(2, 2, grid[0], 2 * grid[1], dtype=torch.float64)
    mask = torch.rand(2, *grid) < 0.5 if masked else None
    return pixels, mask, cells, torch.randn(2, *grid, 6, dtype=torch.float64)


PERIODS = {"none": None, "whole": 7.0, "part": 9.0}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("given", ["counted", *PERIODS])
@pytest.mark.parametrize("position_embedding", ["learned", "rotary"])
def test_a_rank_embeds_its_part_alone(be, axis, masked, given, position_embedding):
    period, grid = PERIODS.get(given), (7, 4)
    trunk = make_trunk(periodic=period is not None, position_embedding=position_embedding)
    positions = [3 * torch.rand(2, length, dtype=torch.float64) for length in grid]
    cells = None if given == "counted" else tuple(AxisCells(each, period) for each in positions)
    inputs = make_inputs(grid, masked, cells)
    expected, sizes = trunk.embeddings(*inputs), []
    split = WholeTrunkSplit(trunk, MESH, axis)
    trunk.embeddings.patch_embeddings.projection.register_forward_hook(lambda *of: sizes.append(of[2].shape[axis + 1]))
    parts = []
    for rank in range(3):
        be(rank)
        embedded = trunk.embeddings(*inputs)
        layout, own = split.enter(embedded)
        parts.append(own)
        assert own is embedded and layout.sizes == split.sizes
        assert layout.closed == (given == "whole" and axis == 0)
    torch.testing.assert_close(torch.cat(parts, axis + 1), expected, rtol=1e-13, atol=1e-13)
    assert sizes == ([3, 2, 2] if axis == 0 else [2, 1, 1])


class Foreign(GridPosition):
    def forward(self, hidden_states, mask=None, cells=None):
        return hidden_states.cumsum(1)


@pytest.mark.parametrize("foreign", [False, True])
def test_all_is_embedded_where_parts_would_not_do(be, foreign):
    """A rank would have nothing, or positions are of an unknown kind."""
    trunk, grid = make_trunk(), (5, 3) if foreign else (2, 3)
    if foreign:
        trunk.embeddings.position_embeddings = Foreign(trunk.config, (0, 1))
    inputs = make_inputs(grid, True, None)
    expected = trunk.embeddings(*inputs)
    split, parts = WholeTrunkSplit(trunk, MESH, 0), []
    for rank in range(3):
        be(rank)
        embedded = trunk.embeddings(*inputs)
        assert torch.equal(embedded, expected)
        parts.append(split.enter(embedded)[1])
    assert [part.shape[1] for part in parts] == ([2, 2, 1] if foreign else [1, 1, 0])
    assert torch.equal(torch.cat(parts, 1), expected)


def test_what_each_gives():
    """A whole grid or parts, which need a mean over all ranks."""
    trunk, states, layout = make_trunk(), torch.ones(1), SimpleNamespace(gather=lambda states: "gathered")
    whole = WholeTrunkSplit(trunk, MESH, 0)
    assert whole.leave(layout, states) == "gathered" and not trunk.pooler._forward_hooks
    whole.remove()
    for split in (LateTrunkSplit(trunk, MESH, 0), LocalTrunkSplit(trunk, MESH, 0, lambda: [2, 2, 1])):
        assert split.leave(layout, states) is states and trunk.pooler._forward_hooks
        assert issubclass(split.layout_class, LocalLayout) == isinstance(split, LocalTrunkSplit)
        split.remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in trunk.modules())


def test_the_pooler_of_parts_gets_the_mask_of_its_part(be):
    trunk, mask = make_trunk(), torch.rand(2, 7, 3) < 0.5
    split = LateTrunkSplit(trunk, MESH, 0)
    be(1)
    _, own = split.enter(trunk.embeddings(*make_inputs((7, 3), False, None)))
    states, cut = split.before_pooler(trunk.pooler, (own, mask))
    assert states is own and torch.equal(cut, mask[:, 3:5])
    assert split.before_pooler(trunk.pooler, (own, None)) == (own, None)
