import pytest
import torch

from modeling_axial import AxialConfig, AxialForImageClassification, AxialModel
from modeling_axial.attention import AxialSelfAttention
from modeling_axial.layer_context import LayerContext
from modeling_axial.set_attention import InducedAxialAttention
from modeling_axial.testing import receptive_field
from tests.drawn import redrawn, states
from tests.reference import reference_axial_attention


def make_config(grid, **overrides):
    options = {"image_size": list(grid), "patch_size": [1] * len(grid), "num_channels": 2, "hidden_size": 8}
    options |= {"num_attention_heads": 2, "num_hidden_layers": 2, "num_inducing_points": 3, "num_pooling_seeds": 3}
    return AxialConfig(**{**options, **overrides})


def reference_cross_attention(attention, hidden_states, key_value_states, axis, mask=None):
    query, key, value = (
        (states @ projection.weight.T + projection.bias).unflatten(-1, (2, 4))
        for states, projection in (
            (hidden_states, attention.q_proj),
            (key_value_states, attention.k_proj),
            (key_value_states, attention.v_proj),
        )
    )
    output, _ = reference_axial_attention(query, key, value, axis, mask=mask)
    return output.flatten(-2) @ attention.o_proj.weight.T + attention.o_proj.bias


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid, axis", [((7,), 0), ((5, 7), 0), ((5, 7), 1), ((2, 7, 5), 1)])
def test_induced_attention_written_out(grid, axis, masked):
    module = redrawn(InducedAxialAttention(make_config(grid), axis))
    hidden_states = states(2, *grid, 8)
    mask = states(2, *grid, seed=5) > -0.5 if masked else None
    points = module.points.view(3, *[1] * (len(grid) - axis - 1), 8).expand(
        2, *(3 if number == axis else length for number, length in enumerate(grid)), 8
    )
    gathered = reference_cross_attention(module.gather, module.points_norm(points), hidden_states, axis, mask)
    expected = reference_cross_attention(module.scatter, hidden_states, module.induced_norm(points + gathered), axis)
    torch.testing.assert_close(module(hidden_states, LayerContext(mask=mask)), expected, rtol=1e-12, atol=1e-12)


def test_a_number_of_points_must_be_given():
    with pytest.raises(ValueError, match="num_inducing_points must be given for axis 1"):
        InducedAxialAttention(make_config((5, 3), num_inducing_points=None), 1)


def test_every_norm_has_the_epsilon_of_the_configuration():
    model = AxialModel(make_config((5, 7), num_inducing_points=[None, 3], pooling="attention", layer_norm_eps=0.25))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * (2 + 2 + 1) + 1 + 3 and {norm.eps for norm in norms} == {0.25}


@pytest.mark.parametrize("axis", [0, 1])
def test_induced_attention_is_equivariant_to_permutations_along_its_axis(axis):
    module, hidden_states = redrawn(InducedAxialAttention(make_config((5, 7)), axis)), states(2, 5, 7, 8)
    order = torch.randperm((5, 7)[axis], generator=torch.Generator().manual_seed(3))
    permuted = hidden_states.index_select(axis + 1, order)
    expected = module(hidden_states).index_select(axis + 1, order)
    torch.testing.assert_close(module(permuted), expected, rtol=1e-12, atol=1e-12)
    assert (module(permuted) - module(hidden_states)).abs().max() > 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_receptive_field_of_induced_attention_is_its_line(axis):
    grid, position = (2, 5, 3), (1, 2, 0)
    reached = receptive_field(InducedAxialAttention(make_config(grid), axis), (1, *grid, 8), position)
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[tuple(slice(None) if number == axis else position[number] for number in range(3))] = True
    assert torch.equal(reached, expected)


def test_scores_grow_linearly_with_the_length_of_an_induced_axis():
    counts = []
    for length in (16, 32, 64):
        module, lengths = redrawn(InducedAxialAttention(make_config((length,)), 0)), []
        for attention in (module.gather, module.scatter):
            attention.core.register_forward_hook(
                lambda core, inputs, output, lengths=lengths: lengths.append(inputs[0].shape[1] * inputs[1].shape[1])
            )
        module(states(1, length, 8))
        counts.append(sum(lengths))
    assert counts == [2 * 3 * 16, 2 * 3 * 32, 2 * 3 * 64]


def test_a_model_with_one_induced_axis():
    torch.manual_seed(0)
    config = make_config((5, 7), num_inducing_points=[None, 3], pooling="attention", position_embedding="rotary")
    model = AxialModel(config).double().eval()
    axes = model.layers[0].attention.axes
    assert type(axes[0]) is AxialSelfAttention and type(axes[1]) is InducedAxialAttention
    for attn_implementation in ("sdpa", "eager"):
        model.set_attn_implementation(attn_implementation)
        output = model(states(2, 2, 5, 7), output_attentions=True)
        assert output.pooler_output.shape == (2, 3 * 8)
        maps = [tuple(weights.shape) for weights in output.attentions]
        assert maps == [(14, 2, 5, 5), (10, 2, 3, 7), (10, 2, 7, 3)] * 2
        for weights in output.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_padding_is_respected():
    torch.manual_seed(0)
    config = make_config((5, 7), pooling="attention", position_embedding="none", initializer_range=0.5)
    model, small = AxialModel(config).double().eval(), states(2, 2, 5, 7)
    padded = torch.nn.functional.pad(small, (0, 4, 0, 3), value=9.0)
    mask = torch.nn.functional.pad(torch.ones(1, 5, 7, dtype=torch.bool), (0, 4, 0, 3))
    output, expected = model(padded, attention_mask=mask), model(small)
    torch.testing.assert_close(output.last_hidden_state[:, :5, :7], expected.last_hidden_state, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, rtol=1e-12, atol=1e-12)


def test_a_classifier_on_pooling_by_attention_trains_everywhere_and_takes_any_size(tmp_path):
    torch.manual_seed(0)
    config = make_config((5, 7), pooling="attention", num_labels=3, initializer_range=0.02)
    model = AxialForImageClassification(config).train()
    model(torch.randn(2, 2, 9, 4), labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    points = model.axial.layers[0].attention.axes[0].points
    assert 0.01 < points.std() < 0.03 and 0.01 < model.axial.pooler.seeds.std() < 0.03
    model.eval().save_pretrained(tmp_path)
    reloaded, pixel_values = AxialForImageClassification.from_pretrained(tmp_path), torch.randn(2, 2, 5, 7)
    assert torch.equal(reloaded(pixel_values).logits, model(pixel_values).logits)
