import copy
import itertools

import pytest
import torch

from modeling_axial import AxialConfig, AxialModel, OneStream, RebuiltTwoStream, TwoStream
from modeling_axial.axial_layer import AxialLayer, OneAxisLayer
from modeling_axial.layer_context import LayerContext
from modeling_axial.residual_updates import DropPath, LayerScale, make_update
from tests.drawn import redrawn, states

GRID, HIDDEN = (5, 3), 8
ALL = {"use_qk_norm": True, "layer_scale_init_value": 0.3, "drop_path_rate": 0.5}


def make_config(**overrides):
    options = {"image_size": list(GRID), "patch_size": 1, "num_channels": 2, "hidden_size": HIDDEN}
    options |= {"num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.5}
    return AxialConfig(**{**options, **overrides})


# ---- LayerScale ----


def test_each_channel_is_scaled_by_its_number():
    module, update = redrawn(LayerScale(HIDDEN, 0.1)), states(2, *GRID, HIDDEN)
    expected = update.clone()
    for channel in range(HIDDEN):
        expected[..., channel] *= module.lambda1[channel].item()
    assert torch.equal(module(update), expected)


@pytest.mark.parametrize("value", [1e-5, 1, 0.3])
def test_numbers_start_at_the_given_value(value, tmp_path):
    model = AxialModel(make_config(layer_scale_init_value=value))
    numbers = {name: tensor for name, tensor in model.state_dict().items() if "layer_scale" in name}
    assert set(numbers) == {
        f"layers.{layer}.{half}_update.layer_scale.lambda1"
        for layer in range(3)
        for half in ("attention", "feed_forward")
    }
    rest = {name: tensor for name, tensor in model.state_dict().items() if name not in numbers}
    # Loading builds on the meta device; what the file lacks must be initialised.
    loaded = AxialModel.from_pretrained(None, config=model.config, state_dict=rest).state_dict()
    for name in numbers:
        assert torch.equal(numbers[name], torch.full((HIDDEN,), float(value))) and torch.equal(
            loaded[name], numbers[name]
        )
    model.save_pretrained(tmp_path)
    assert AxialModel.from_pretrained(tmp_path).config.layer_scale_init_value == value


# ---- stochastic depth ----


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 5, 3)])
def test_a_sample_is_dropped_or_kept_as_a_whole(shape, rate):
    module, update = DropPath(rate).train(), states(1000, *shape, HIDDEN)
    torch.manual_seed(0)
    output = module(update)
    dropped = (output == 0).flatten(1).all(1)
    torch.testing.assert_close(output[~dropped], update[~dropped] / (1 - rate), rtol=1e-15, atol=0)
    assert abs(dropped.double().mean() - rate) < 4 * (rate * (1 - rate) / 1000) ** 0.5
    assert not torch.equal(module(update) == 0, output == 0)


def test_the_mean_of_training_is_what_eval_gives():
    module, update = DropPath(0.3), states(1, *GRID, HIDDEN)
    assert module.eval()(update) is update
    torch.manual_seed(0)
    count = 20_000
    mean = module.train()(update.expand(count, *GRID, HIDDEN)).mean(0, keepdim=True)
    assert ((mean - update).abs() <= 4 * (0.3 / 0.7 / count) ** 0.5 * update.abs() + 1e-12).all()


def test_the_gradient_of_what_is_dropped_is_zero():
    update = states(50, *GRID, HIDDEN).requires_grad_()
    torch.manual_seed(0)
    output = DropPath(0.5).train()(update)
    output.sum().backward()
    assert torch.equal(update.grad, torch.where(output == 0, 0.0, 2.0).double()) and (output == 0).any()


def test_rates_are_linear_over_depth():
    model = AxialModel(make_config(num_hidden_layers=5, drop_path_rate=0.4))
    for half in ("attention", "feed_forward"):
        rates = [layer.get_submodule(f"{half}_update.drop_path").rate for layer in model.layers]
        assert rates == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert "rate=0.08" in str(model.layers[0])
    assert make_update(make_config(num_hidden_layers=1, drop_path_rate=0.4), 0).drop_path.rate == 0.4


# ---- in a layer ----


def test_nothing_of_them_is_there_by_default():
    for layer in (*AxialModel(make_config()).layers, OneAxisLayer(make_config(**ALL), 1, False)):
        assert not [*layer.attention_update.children(), *layer.feed_forward_update.children()]
    model = AxialModel(make_config())
    assert not [name for name in model.state_dict() if "scale" in name or "_norm" in name or "update" in name]


def recorded_draws(layer):
    """What each half's `DropPath` keeps of each sample: 0 or 1 / (1 - rate)."""
    factors = {}
    for half in ("attention", "feed_forward"):

        def record(module, inputs, output, half=half):
            factors[half] = (output / inputs[0]).flatten(1).mean(1)[:, None, None, None].detach()

        layer.get_submodule(f"{half}_update.drop_path").register_forward_hook(record)
    return factors


@pytest.mark.parametrize("attention_mode", ["sum", "sequential", "split", "alternating"])
def test_layer_written_out(attention_mode):
    """Scaled, then dropped, the updates of f and g each by themselves; they read what is not scaled."""
    layer = redrawn(AxialLayer(make_config(attention_mode=attention_mode, **ALL), 2)).train()
    factors = recorded_draws(layer)
    first, second, mask = states(9, *GRID, HIDDEN), states(9, *GRID, HIDDEN, seed=2), states(9, *GRID, seed=3) > 0
    context, (f, g) = LayerContext(mask), (layer.attention, layer.feed_forward)
    f_scale, g_scale = layer.attention_update.layer_scale.lambda1, layer.feed_forward_update.layer_scale.lambda1
    torch.manual_seed(0)
    output = layer(first, executor=OneStream(), context=context)
    expected = first + factors["attention"] * f_scale * f(first, context)
    expected = expected + factors["feed_forward"] * g_scale * g(expected, mask)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    _, *outputs = layer(first, second, executor=TwoStream(), context=context)
    y1 = first + factors["attention"] * f_scale * f(second, context)
    y2 = second + factors["feed_forward"] * g_scale * g(y1, mask)
    torch.testing.assert_close(outputs, [y1, y2], rtol=1e-12, atol=1e-12)
    kept = torch.cat([factors["attention"], factors["feed_forward"]]).flatten()
    assert kept.unique().tolist() == pytest.approx([0, 2])
    assert not torch.equal(factors["attention"], factors["feed_forward"])
    assert torch.equal(
        layer.eval()(first, executor=OneStream(), context=context), layer(first, executor=OneStream(), context=context)
    )


CASES = [
    {"attention_mode": mode, **overrides}
    for mode, overrides in itertools.product(
        ["sum", "sequential", "split", "alternating"],
        [
            {"position_embedding": "learned+rotary+relative", "feed_forward": "convolution"},
            {"num_inducing_points": [None, 3], "position_embedding": "rotary", "feed_forward": "gated_mlp"},
        ],
    )
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("overrides", CASES, ids=str)
def test_rebuilt_activations_give_the_gradients_of_stored_ones(overrides, masked):
    config = make_config(**ALL, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, reversible=True, **overrides)
    model, pixel_values = redrawn(AxialModel(config)).train(), states(3, 2, *GRID)
    mask = states(3, *GRID, seed=5) > -0.5 if masked else None
    results = []
    for executor_class in (TwoStream, RebuiltTwoStream):
        twin, inputs = copy.deepcopy(model), pixel_values.clone().requires_grad_()
        twin.executor_class = executor_class
        torch.manual_seed(3)
        output = twin(inputs, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        loss = output.last_hidden_state.square().sum() + output.hidden_states[1].sin().sum()
        torch.manual_seed(4)  # what is drawn in between has no effect
        (loss + output.attentions[-1].square().sum()).backward()
        state = [output.last_hidden_state, *output.hidden_states, *output.attentions]
        results.append((state, [inputs.grad, *(parameter.grad for parameter in twin.parameters())]))
    (stored, gradients), (rebuilt, rebuilt_gradients) = results
    assert all(map(torch.equal, stored, rebuilt))
    scale = max(gradient.abs().max() for gradient in gradients)
    for ours, expected in zip(rebuilt_gradients, gradients, strict=True):
        assert (ours - expected).abs().max() <= 1e-12 * scale


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("overrides", CASES, ids=str)
def test_eval_is_the_model_of_the_same_weights_without_stochastic_depth(overrides, reversible):
    model = redrawn(AxialModel(make_config(**ALL, reversible=reversible, **overrides)))
    plain = AxialModel(make_config(**ALL | {"drop_path_rate": 0.0}, reversible=reversible, **overrides)).double().eval()
    plain.load_state_dict(model.state_dict())
    pixel_values = states(2, 2, *GRID)
    assert torch.equal(model(pixel_values).last_hidden_state, plain(pixel_values).last_hidden_state)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(pixel_values).last_hidden_state, plain(pixel_values).last_hidden_state)


@pytest.mark.parametrize("executor_class", [OneStream, TwoStream, RebuiltTwoStream])
def test_gradcheck(executor_class):
    """First derivatives in the input and every weight, and second ones, with the same draws each time."""
    config = make_config(**ALL | {"layer_scale_init_value": 1}, image_size=[3, 2], hidden_size=4, intermediate_size=3)
    config._attn_implementation = "eager"
    layer = redrawn(AxialLayer(config, 1)).train()
    names = [name for name, _ in layer.named_parameters() if "scale" in name or "q_norm" in name or "k_proj.w" in name]
    weights = [layer.get_parameter(name) for name in names]
    assert len(weights) == 6

    def run(hidden_states, *weights):
        torch.manual_seed(1)
        executor = executor_class()
        streams = layer(*executor.enter(hidden_states), executor=executor)
        return executor.leave(*streams[1:]) if isinstance(streams, tuple) else streams

    inputs = (states(3, 3, 2, 4).requires_grad_(), *weights)
    factors = recorded_draws(layer)
    run(*inputs)
    assert all(len(factor.unique()) == 2 for factor in factors.values())  # some samples dropped, others not
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
