"""Layouts of a rank, without the other ones."""

import pytest
import torch
import torch.distributed as dist

from modeling_axial.distributed.layout import Layout, LocalLayout, PreparedLayout
from modeling_axial.layer_context import LayerContext


@pytest.fixture
def make(monkeypatch):
    """Makes a layout as the second of three ranks."""
    monkeypatch.setattr(dist, "get_rank", lambda group: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    return lambda *arguments, kind=Layout, **options: kind(torch.Size(arguments[0]), *arguments[1:], None, **options)


@pytest.mark.parametrize(
    "shape, axis, other_dim", [((2, 5, 3, 8), 0, 2), ((2, 5, 3, 7, 8), 0, 3), ((9, 2, 2, 3, 8), 1, 3)]
)
def test_the_longest_other_axis_is_split_when_switched(make, shape, axis, other_dim):
    layout = make(shape, axis, False)
    assert (layout.dim, layout.other_dim) == (axis + 1, other_dim)
    assert (sum(layout.sizes), sum(layout.other_sizes)) == (shape[axis + 1], shape[other_dim])


def test_a_part_is_no_view(make):
    states = torch.randn(1, 5, 3, 2)
    part = make(states.shape, 0, False).part(states, 1)
    assert torch.equal(part, states[:, 2:4])
    assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_masks_of_both_layouts(make):
    mask = torch.rand(2, 5, 4) < 0.5
    layout, context = make((2, 5, 4, 8), 0, False), LayerContext(mask, ("a", "b"))
    home = layout.take(context)
    assert torch.equal(home.mask, mask[:, 2:4]) and torch.equal(layout.switched_context.mask, mask[:, :, 2:3])
    assert home.prepared == layout.switched_context.prepared == ("a", "b")
    assert layout.take(context) is home
    assert layout.take(LayerContext()).mask is None and layout.switched_context.mask is None


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("cropped", [(), (0,), (1,)])
def test_ends_meet_in_the_whole_and_not_in_a_part(make, periodic, cropped):
    layout = make((2, 5, 4, 8), 0, periodic)
    assert 0 in layout.take(LayerContext(cropped_axes=cropped)).cropped_axes
    assert layout.wraps == (periodic and 0 not in cropped)
    assert layout.switched_context.cropped_axes == cropped


@pytest.mark.parametrize("kind", [PreparedLayout, LocalLayout])
def test_of_parts_the_split_axis_is_prepared_whole(make, kind):
    layout = make((2, 5, 4, 8), 1, True, kind=kind, prepared="whole", closed=True)
    assert layout.take(LayerContext(None, ("first", "part"))).prepared == ("first", "whole")
    assert layout.wraps and layout.switched_context.prepared == ("first", "whole")


def test_a_whole_mask_is_cut_and_a_part_of_one_is_at_home(make, monkeypatch):
    mask, options = torch.rand(2, 5, 4) < 0.5, {"prepared": "whole", "closed": False}
    home, switched = make((2, 5, 4, 8), 0, False, kind=PreparedLayout, **options).masks(mask)
    assert torch.equal(home, mask[:, 2:4]) and torch.equal(switched, mask[:, :, 2:3])
    local = make((2, 5, 4, 8), 0, False, kind=LocalLayout, **options)
    monkeypatch.setattr(local, "to_switched", lambda part: 1 - part)
    home, switched = local.masks(mask)
    assert home is mask and torch.equal(switched, ~mask)
