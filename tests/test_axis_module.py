import pytest
import torch

from modeling_axial import AxialConfig, AxialModel
from modeling_axial.attention import AxialSelfAttention
from modeling_axial.axial_layer import BLOCK_MIXER_CLASSES, MIXER_CLASSES, make_axes
from modeling_axial.axis_module import AxisModule
from modeling_axial.configuration_axial import MIXER_NAMES
from modeling_axial.layer_context import NO_CONTEXT, LayerContext
from modeling_axial.masks import clear_masked
from modeling_axial.position_embeddings import AxisCells
from modeling_axial.testing import receptive_field
from tests.drawn import states


def make_config(**overrides):
    options = {"image_size": [5, 3], "patch_size": [1, 1], "num_channels": 2, "hidden_size": 8, "num_hidden_layers": 2}
    return AxialConfig(**{**options, "num_attention_heads": 2, **overrides})


def test_names_and_classes_of_mixers_agree():
    assert set(MIXER_CLASSES) == MIXER_NAMES and set(BLOCK_MIXER_CLASSES) <= MIXER_NAMES
    config = make_config(num_inducing_points=[None, 3])
    for axis, module in enumerate(make_axes(config, 0)):
        assert isinstance(module, AxisModule) and type(module) is MIXER_CLASSES[config.axes[axis].mixer]
        assert (module.axis, module.description, module.config) == (axis, config.axes[axis], config)


def test_what_is_prepared_is_that_of_the_model_or_of_positions_counted_from_zero():
    config = make_config(position_embedding="rotary", periodic=[False, True])
    module, hidden_states = AxialSelfAttention(config, 1), states(2, 5, 3, 8)
    ours = object()
    assert module.prepared(hidden_states, LayerContext(prepared=(None, ours))) is ours
    cells = AxisCells(torch.arange(3, dtype=torch.float64)[None], 3)
    expected = AxialSelfAttention.prepare(config, config.axes[1], cells)
    torch.testing.assert_close(module.prepared(hidden_states, NO_CONTEXT), expected)
    assert AxisModule.prepare(config, config.axes[1], cells) is None


class AxialMean(AxisModule):
    """A mixer of user code: each cell gets a projection of the mean of its line."""

    def __init__(self, config, axis):
        super().__init__(config, axis)
        self.projection = torch.nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, context=NO_CONTEXT):
        total = clear_masked(hidden_states, context.mask).sum(self.axis + 1, keepdim=True)
        if context.mask is None:
            return self.projection(total / hidden_states.shape[self.axis + 1]).expand_as(hidden_states)
        count = context.mask.sum(self.axis + 1, keepdim=True).clamp(min=1)
        return self.projection(total / count[..., None]).expand_as(hidden_states)


@pytest.mark.parametrize("reversible", [False, True])
def test_a_mixer_from_other_code(monkeypatch, tmp_path, reversible):
    monkeypatch.setitem(MIXER_CLASSES, "mean", AxialMean)
    monkeypatch.setattr("modeling_axial.configuration_axial.MIXER_NAMES", {*MIXER_NAMES, "mean"})
    torch.manual_seed(0)
    config = make_config(mixer=["mean", None], attention_window=[None, 1], reversible=reversible)
    assert [axis.mixer for axis in config.axes] == ["mean", "window"]
    model, pixel_values = AxialModel(config).double().eval(), states(2, 2, 5, 3)
    model.save_pretrained(tmp_path)
    again = AxialModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert again.config.axes == config.axes
    # Not to the last bit: products may round by where in memory the weights lie.
    expected = model(pixel_values).last_hidden_state
    torch.testing.assert_close(again(pixel_values).last_hidden_state, expected, rtol=0, atol=1e-12)
    # Padding is not there, for this mixer as for ours.
    padded = torch.nn.functional.pad(pixel_values, (0, 2, 0, 1), value=torch.nan)
    mask = torch.zeros(2, 6, 5, dtype=torch.bool)
    mask[:, :5, :3] = True
    output = model(padded, attention_mask=mask).last_hidden_state[:, :5, :3]
    torch.testing.assert_close(output, model(pixel_values).last_hidden_state, rtol=1e-12, atol=1e-12)
    config.num_hidden_layers = 1
    seen = receptive_field(AxialModel(config), (1, 2, 5, 3), (1, 0), channel_dim=1, output_channel_dim=-1)
    assert seen.tolist() == [[True, True, False]] * 5
