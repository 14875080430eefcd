import pytest
import torch

from modeling_axial.pooling import AttentionPooling, MeanPooling, sum_and_count
from tests.test_set_attention import make_config, redrawn, reference_cross_attention, states


def test_mean_pooling():
    pooling = MeanPooling(make_config((3, 5)))
    hidden = torch.arange(2 * 3 * 5 * 1, dtype=torch.float64).view(2, 3, 5, 1)
    assert pooling(hidden).tolist() == [[7.0], [22.0]]
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 2, 4] = True  # cells 7 and 14 of the first, none of the second
    assert pooling(hidden, mask).tolist() == [[10.5], [0.0]]


@pytest.mark.parametrize("masked", [False, True])
def test_sums_and_counts_of_parts_add_up(masked):
    hidden_states, mask = states(2, 5, 7, 8), states(2, 5, 7, seed=5) > 0
    mask[0, :3] = False  # a part of which no cell counts
    mask = mask if masked else None
    total, count = sum_and_count(hidden_states, mask)
    parts = [
        sum_and_count(hidden_states[:, rows], None if mask is None else mask[:, rows])
        for rows in (slice(0, 3), slice(3, 5))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], total, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.as_tensor(parts[0][1] + parts[1][1]), torch.as_tensor(count))
    expected = hidden_states if mask is None else hidden_states * mask[..., None]
    torch.testing.assert_close(total, expected.sum((1, 2)), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("grid", [(70, 100), (300, 300)], ids=str)
def test_masked_mean_of_a_large_grid_in_float16(grid):
    # The sum exceeds float16, and of 300 x 300 cells their number, too.
    hidden = torch.full((1, *grid, 2), 12.0, dtype=torch.float16)
    pooled = MeanPooling(make_config(grid))(hidden, torch.ones(1, *grid, dtype=torch.bool))
    assert pooled.dtype == torch.float16 and pooled.tolist() == [[12.0, 12.0]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", [(7,), (5, 7), (2, 3, 5)], ids=str)
def test_attention_pooling_written_out(grid, masked):
    module = redrawn(AttentionPooling(make_config(grid)))
    hidden_states = states(2, *grid, 8)
    mask = states(2, *grid, seed=5) > 0 if masked else None
    seeds = module.seeds.expand(2, 3, 8)
    read = reference_cross_attention(
        module.attention,
        module.seeds_norm(seeds),
        hidden_states.view(2, -1, 8),
        0,
        mask.view(2, -1) if masked else None,
    )
    pooled = seeds + read
    pooled = module.norm(pooled + module.mlp(module.mlp_norm(pooled)))
    torch.testing.assert_close(module(hidden_states, mask), pooled.reshape(2, 24), rtol=1e-12, atol=1e-12)


def test_attention_pooling_is_invariant_to_permutations_of_the_cells():
    module, hidden_states = redrawn(AttentionPooling(make_config((5, 7)))), states(2, 5, 7, 8)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(3))
    permuted = hidden_states.view(2, 35, 8)[:, order].view(2, 5, 7, 8)
    torch.testing.assert_close(module(permuted), module(hidden_states), rtol=1e-12, atol=1e-12)
