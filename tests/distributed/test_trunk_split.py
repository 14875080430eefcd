"""Which parts of a trunk are split; that they give the numbers of one process is in test_shard_axis."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling_axial import AxialConfig, AxialModel
from modeling_axial.distributed.trunk_split import ShardedExecutor, TrunkSplit, layers_of, mixers_of, sharded
from modeling_axial.reversible import OneStream, RebuiltTwoStream, TwoStream

MESH = SimpleNamespace(get_group=lambda: None)


def make_trunk(**fields):
    sizes = {"image_size": [4, 6, 2], "patch_size": [1, 2, 1], "hidden_size": 6, "num_attention_heads": 1}
    return AxialModel(AxialConfig(**sizes | {"num_hidden_layers": 4} | fields))


EACH_ITS_OWN = {
    "mixer": ["full", "induced", "window"],
    "num_inducing_points": [None, 2, None],
    "attention_window": [None, None, 1],
}


@pytest.mark.parametrize(
    "fields, layers", [({}, range(4)), (EACH_ITS_OWN, range(4)), ({"attention_mode": "alternating"}, [1])]
)
def test_mixers_of_the_split_axis_alone_are_hooked(fields, layers):
    """Of an induced one the whole, and no attention inside."""
    trunk = make_trunk(**fields)
    TrunkSplit(trunk, MESH, 1)
    inside = [(name, module) for layer in layers_of(trunk) for name, module in layer.named_modules() if name]
    assert [name for name, module in inside if module._forward_pre_hooks] == ["attention.axes.1"] * len(layers)


def test_both_convolutions_are_hooked():
    trunk = make_trunk(feed_forward="convolution", num_hidden_layers=1)
    split = TrunkSplit(trunk, MESH, 0)
    net = trunk.layers[0].feed_forward.net
    assert net.conv1._forward_pre_hooks and net.conv2._forward_pre_hooks
    split.remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in trunk.modules())


def test_mixers_are_the_outermost():
    layer = make_trunk(num_inducing_points=2).layers[0]
    assert [mixer.axis for mixer in mixers_of(layer.attention)] == [0, 1, 2]
    assert list(mixers_of(nn.Linear(2, 2))) == []


@pytest.mark.parametrize("executor_class", [OneStream, TwoStream, RebuiltTwoStream])
def test_a_sharded_executor_is_one_of_its_kind(executor_class):
    split = TrunkSplit(make_trunk(), MESH, 0)
    ours = sharded(executor_class, split)
    assert issubclass(ours, ShardedExecutor) and issubclass(ours, executor_class)
    assert ours.whole is executor_class and ours.split is split
    assert (ours.stored is None) == (executor_class.stored is None)


def test_a_layout_is_present_while_a_function_runs():
    split = TrunkSplit(make_trunk(), MESH, 0)

    def function(x):
        assert split.present == "layout"
        raise KeyError

    with pytest.raises(KeyError):
        split.runs_in("layout", function)(torch.ones(()))
    with pytest.raises(ValueError, match="runs inside its trunk only"):
        split.present  # noqa: B018
