"""The networks of convolutions to compare with: as large as the model, for grids of any size, with the same loss."""

import sys

import pytest
import torch

from examples.segmentation_peer import (
    NETWORKS,
    ConvolutionsConfig,
    ConvolutionsForSemanticSegmentation,
    make_peer,
)
from modeling_axial import AxialConfig, AxialForSemanticSegmentation


def make_config(num_axes, hidden_size=24):
    return AxialConfig(
        image_size=[8] * num_axes,
        patch_size=[4] * num_axes,
        num_channels=2,
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        dense_head="pyramid" if num_axes <= 3 else "linear",
        num_labels=3,
        dice_loss_weight=0.5,
        class_weights=[1.0, 2.0, 3.0],
        semantic_loss_ignore_index=7,
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("hidden_size", [24, 64])
def test_equal_size(name, num_axes, hidden_size):
    config = make_config(num_axes, hidden_size)
    size = AxialForSemanticSegmentation(config).num_parameters()
    peer = make_peer(name, config, size)
    assert abs(peer.num_parameters() - size) <= 0.05 * size
    assert (peer.config.num_labels, peer.config.class_weights) == (3, [1.0, 2.0, 3.0])
    assert (peer.config.dice_loss_weight, peer.config.semantic_loss_ignore_index) == (0.5, 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_such_peer(name):
    with pytest.raises(ValueError, match=f"--peer={name} exists for 1 to 3 axes, the model has 4"):
        make_peer(name, make_config(4), 1000)
    with pytest.raises(ValueError, match=f"no {NETWORKS[name].title} has within 5 % of the 10 parameters"):
        make_peer(name, make_config(2), 10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(8, 12), (5, 7), (3, 11, 5)])
def test_grids_of_any_size_and_the_loss_of_the_model(name, size):
    torch.manual_seed(0)
    config = make_config(len(size))
    peer = make_peer(name, config, 20_000)
    pixel_values = torch.randn(2, 2, *size)
    labels = torch.randint(3, (2, *size))
    labels[0, 0] = 7
    output = peer(pixel_values, labels=labels)
    assert output.logits.shape == (2, 3, *size)
    ours = AxialForSemanticSegmentation(config)
    expected = ours.loss_function(labels, output.logits, ours.config)
    assert torch.equal(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in peer.parameters())


@pytest.mark.parametrize("num_axes", [1, 2])
def test_a_pixel_of_the_highresnet_reads_those_up_to_7_away_and_gives_any_number(num_axes):
    torch.manual_seed(0)
    config = ConvolutionsConfig("highresnet", num_axes=num_axes, num_channels=2, widths=(5, 6), num_labels=3)
    peer = ConvolutionsForSemanticSegmentation(config).eval()
    pixel_values = torch.randn(1, 2, *[21] * num_axes, requires_grad=True)
    logits = peer(pixel_values).logits
    assert (logits < 0).any() and (logits > 0).any()
    logits[(0, slice(None), *[10] * num_axes)].sum().backward()
    read = pixel_values.grad[0].abs().sum(0).nonzero()
    assert read.amin() == 3 and read.amax() == 17


def test_weights_are_those_of_monai_and_come_back(tmp_path):
    config = ConvolutionsConfig(num_axes=2, widths=(4, 8, 16), num_labels=2)
    torch.manual_seed(0)
    peer = ConvolutionsForSemanticSegmentation(config).eval()
    torch.manual_seed(0)
    from monai.networks.nets import UNet

    monai = UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=2).eval()
    pixel_values = torch.randn(1, 1, 8, 12)
    assert torch.equal(peer(pixel_values).logits, monai(pixel_values))
    peer.save_pretrained(tmp_path)
    loaded = ConvolutionsForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values).logits, peer(pixel_values).logits)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ModuleNotFoundError, match=r"monai: pip install 'modeling-axial\[segmentation\]'"):
        ConvolutionsForSemanticSegmentation(ConvolutionsConfig())
