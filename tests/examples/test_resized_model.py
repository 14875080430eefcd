"""A classifier for another size of pictures computes there what the old one does."""

import pytest
import torch

from examples.resized_model import resized
from modeling_axial import AxialConfig, AxialForImageClassification


def make_model(**overrides):
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[6, 10],
        patch_size=2,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        num_labels=3,
        **overrides,
    )
    return AxialForImageClassification(config).eval()


KINDS = [
    {},
    {"position_embedding": "rotary"},
    {"position_embedding": ["learned", "relative"]},
    {"position_embedding": "learned+relative", "attention_window": [None, 1]},
    {"position_embedding": ["learned+relative", "relative"], "periodic": [False, True]},
    {"reversible": True, "position_embedding": "none", "feed_forward": "convolution"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [(6, 10), (8, 4), (14, 22)], ids=str)
def test_the_function_at_the_new_size_stays(kind, size):
    model = make_model(**kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = resized(model, size)
    assert new.config.image_shape == size and not new.training and model.config.image_shape == (6, 10)
    pixel_values = torch.rand(3, 1, *size)
    with torch.no_grad():
        expected, logits = model(pixel_values).logits, new(pixel_values).logits
    torch.testing.assert_close(logits, expected)
    assert expected.std(0).min() > 1e-4
    grown = {name for name, tensor in new.state_dict().items() if tensor.shape != before[name].shape}
    assert all("position" in name or name.endswith("table") for name in grown)
    assert bool(grown) == (size != (6, 10) and kind.get("position_embedding") not in ("rotary", "none"))


def test_a_size_of_half_a_patch_is_refused():
    with pytest.raises(
        ValueError, match=r"image_size=\(6, 9\) must be whole patches, multiples of patch_size=\(2, 2\)"
    ):
        resized(make_model(), (6, 9))
