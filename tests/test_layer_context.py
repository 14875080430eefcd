import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils._pytree import tree_map_only

from modeling_axial.layer_context import NO_CONTEXT, LayerContext


def test_nothing_can_be_set():
    with pytest.raises(AttributeError):
        NO_CONTEXT.mask = torch.ones(1)
    assert NO_CONTEXT == (None, (), (), (), None, False)


def test_what_moves_or_casts_arguments_finds_the_tensors():
    mask, cos, sin = torch.ones(2, 3, dtype=torch.bool), torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    context = LayerContext(mask, (((cos, sin),), ()), cache=object(), output_attentions=True)
    moved = send_to_device(context, "meta")
    assert type(moved) is LayerContext and moved.cache is context.cache and moved.output_attentions
    ((moved_cos, moved_sin),), nothing = moved.prepared
    assert {tensor.device.type for tensor in (moved.mask, moved_cos, moved_sin)} == {"meta"} and nothing == ()
    cast = tree_map_only(torch.Tensor, lambda tensor: tensor.half(), context)
    assert type(cast) is LayerContext and cast.prepared[0][0][1].dtype == torch.float16
