import pytest
import torch

from modeling_axial import AxialConfig
from modeling_axial.axial_embeddings import AxialEmbeddings
from modeling_axial.position_embeddings import AxisCells

GRID, PATCH = (5, 3), (2, 3)


def make_embeddings(**overrides):
    torch.manual_seed(0)
    options = {"image_size": [10, 9], "patch_size": list(PATCH), "num_channels": 2, "hidden_size": 8}
    embeddings = AxialEmbeddings(AxialConfig(num_attention_heads=2, **{**options, **overrides})).double().eval()
    for parameter in embeddings.parameters():
        parameter.data = torch.randn_like(parameter)
    return embeddings


def pixels(*sizes):
    return torch.randn(2, 2, *sizes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_patches_then_what_is_added_then_positions():
    embeddings, inputs = make_embeddings(), pixels(10, 9)
    added = torch.randn(2, *GRID, 8, dtype=torch.float64)
    tables = embeddings.position_embeddings
    expected = embeddings.patch_embeddings(inputs) + added + tables.axis_0[:, None] + tables.axis_1
    torch.testing.assert_close(embeddings(inputs, added=added), expected, rtol=1e-13, atol=1e-13)
    mask = torch.rand(2, *GRID) > 0.4
    filled = added.masked_fill(~mask[..., None], torch.nan)
    assert torch.equal(embeddings(inputs, mask, added=filled), embeddings(inputs, mask, added=added))


@pytest.mark.parametrize("position_embedding", ["none", "learned", "rotary"])
def test_dropout_of_the_embeddings(position_embedding):
    embeddings = make_embeddings(position_embedding=position_embedding, hidden_dropout_prob=0.5)
    whole = embeddings(pixels(10, 9))
    kept = embeddings.train()(pixels(10, 9))
    assert (torch.isclose(kept, 2 * whole) | (kept == 0)).all()
    assert 0.3 < (kept == 0).double().mean() < 0.7


def test_a_crop_has_the_learned_positions_that_it_has_in_the_whole():
    embeddings, whole = make_embeddings(), pixels(10, 9)
    positions = (torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[1.0, 2.0]]).double())
    crop = embeddings(whole[:, :, 2:8, 3:9], cells=tuple(map(AxisCells, positions)))
    torch.testing.assert_close(crop, embeddings(whole)[:, 1:4, 1:3], rtol=1e-13, atol=1e-13)
