"""TimeSformer to compare with: as large as the model, for the same clips and classes."""

import pytest
import torch

from examples.video_classification_peer import timesformer_for
from modeling_axial import AxialConfig, AxialForVideoClassification


def make_config(**overrides):
    sizes = {"image_size": [4, 8, 8], "patch_size": [1, 4, 4], "hidden_size": 12, "num_attention_heads": 2}
    return AxialConfig(
        **{**sizes, "num_channels": 1, "num_hidden_layers": 2, "hidden_dropout_prob": 0.1, **overrides},
        id2label={0: "a", 1: "b", 2: "c"},
    )


@pytest.mark.parametrize("overrides", [{}, {"patch_size": [2, 4, 4]}, {"num_channels": 3, "hidden_size": 32}], ids=str)
def test_equal_size_for_the_same_clips(overrides):
    torch.manual_seed(0)
    config = make_config(**overrides)
    size = AxialForVideoClassification(config).num_parameters()
    peer = timesformer_for(config, size)
    assert abs(peer.num_parameters() - size) <= 0.05 * size
    assert (peer.config.num_hidden_layers, peer.config.hidden_dropout_prob) == (2, 0.1)
    assert peer.config.attention_type == "divided_space_time" and peer.config.id2label == config.id2label
    clips = torch.randn(2, 4, config.num_channels, 8, 8)
    output = peer(pixel_values=clips, labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in peer.parameters())


def test_the_nearest_width_is_found():
    config = make_config(hidden_dropout_prob=0.0)
    nearest = timesformer_for(config, 5000)
    step = 2 * (2 * 12 + 1)  # of two layers, for one more number in their feed-forwards
    assert abs(nearest.num_parameters() - 5000) <= step / 2


def test_no_such_peer():
    with pytest.raises(ValueError, match=r"square frames and patches, the model has \(8, 12\) and \(4, 4\)"):
        timesformer_for(make_config(image_size=[4, 8, 12]), 5000)
    with pytest.raises(ValueError, match="square frames and patches"):
        timesformer_for(make_config(patch_size=[1, 4, 2]), 5000)
    with pytest.raises(ValueError, match="no TimeSformer of hidden_size=12 has within 5 % of the 10 parameters"):
        timesformer_for(make_config(), 10)
