import pytest
import torch

from modeling_axial import AxialConfig, AxialModel, OneStream, RebuiltTwoStream, TwoStream
from modeling_axial.axial_layer import (
    AxialFeedForward,
    AxialLayer,
    OneAxisLayer,
    SequentialAxialAttention,
    SummedAxialAttention,
    run_layers,
)
from modeling_axial.layer_context import NO_CONTEXT, LayerContext
from modeling_axial.position_embeddings import AxisCells, prepare_line
from tests.reference import reference_axial_attention

GRIDS = [(7,), (5, 3), (2, 5, 3), (2, 3, 5, 7)]
HIDDEN = 6
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
modes = pytest.mark.parametrize("attention_mode", ["sum", "sequential", "split", "alternating"])


def make_layer(grid=(5, 3), layer_idx=0, **overrides):
    config = AxialConfig(
        image_size=list(grid),
        patch_size=[1] * len(grid),
        hidden_size=HIDDEN,
        num_attention_heads=12,
        head_dim=2,
        intermediate_size=7,
        **{"position_embedding": "rotary", **overrides},
    )
    torch.manual_seed(0)
    layer = AxialLayer(config, layer_idx).double().eval()
    for name, parameter in layer.named_parameters():
        if "norm" in name:  # norms start alike, and a wrong one among them would not show
            parameter.data += 0.3 * torch.randn_like(parameter)
        elif name.endswith((".points", ".table")):  # which are empty until a model fills them
            parameter.data.normal_()
    # Other positions than those that a layer takes by itself.
    positions = [0.7 * torch.arange(length, dtype=torch.float64)[None] for length in grid]
    prepared = (
        prepare_line(config, axis, AxisCells(cells)) for axis, cells in zip(config.axes, positions, strict=True)
    )
    return layer, LayerContext(prepared=tuple(prepared))


def states(grid=(5, 3), seed=1, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *grid, HIDDEN, generator=generator, dtype=torch.float64)


def padding(grid):
    """Half of the cells, at random."""
    return torch.rand(2, *grid, generator=torch.Generator().manual_seed(2)) < 0.5


def normalised(norm, hidden_states):
    """Layer norm over the channels, written out."""
    centred = hidden_states - hidden_states.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / deviation * norm.weight + norm.bias


def expected_f(layer, hidden_states, context=NO_CONTEXT):
    """The attention half of the layer, from its own attentions."""
    attention = layer.attention
    assert len(attention.axes) in (1, hidden_states.dim() - 2)
    if isinstance(attention, SummedAxialAttention):
        updates = [along(normalised(attention.norm, hidden_states), context) for along in attention.axes]
    else:
        updates = []
        for along, norm in zip(attention.axes, attention.norms, strict=True):
            so_far = hidden_states
            for update in updates:
                so_far = so_far + update
            updates.append(along(normalised(norm, so_far), context))
    return torch.stack(updates).sum(0)


def expected_g(layer, hidden_states):
    return layer.feed_forward.net(normalised(layer.feed_forward.norm, hidden_states))


def close(output, expected):
    return torch.allclose(output, expected, rtol=0, atol=1e-13)


class Recorder(TwoStream):
    """An executor that keeps the pair it was given, and counts how often the streams are left."""

    def __init__(self):
        self.pairs, self.times_left = [], 0

    def couple(self, f, g, *streams):
        self.pairs.append((f, g))
        return super().couple(f, g, *streams)

    def leave(self, *streams):
        self.times_left += 1
        return super().leave(*streams)


# ---- f and g ----


@modes
def test_classes_of_the_modes(attention_mode):
    layer, _ = make_layer(attention_mode=attention_mode, layer_norm_eps=0.25)
    sequential = attention_mode == "sequential"
    assert type(layer.attention) is (SequentialAxialAttention if sequential else SummedAxialAttention)
    axes = [0] if attention_mode == "alternating" else [0, 1]
    assert [attention.axis for attention in layer.attention.axes] == axes
    norms = [module for module in layer.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == (3 if sequential else 2)
    assert {norm.eps for norm in norms} == {0.25}


@pytest.mark.parametrize("points", [None, 3])
@pytest.mark.parametrize("layer_idx", range(5))
def test_an_alternating_layer_has_one_axis_that_its_weights_are_named_after(layer_idx, points):
    layer, context = make_layer((2, 5, 3), layer_idx, attention_mode="alternating", num_inducing_points=points)
    axis = layer_idx % 3
    names = {name for name, _ in layer.attention.named_parameters() if not name.startswith("norm.")}
    assert names and all(name.startswith(f"axes.{axis}.") for name in names)
    (attention,) = layer.attention.axes
    assert attention.axis == axis and layer.get_submodule(f"attention.axes.{axis}") is attention
    x, context = states((2, 5, 3)), context._replace(mask=padding((2, 5, 3)))
    assert close(layer.attention(x, context), attention(normalised(layer.attention.norm, x), context))


@grids
@pytest.mark.parametrize("masked", [False, True])
def test_split_is_one_attention_whose_heads_look_along_different_axes(grid, masked):
    """As CSWin puts it: all heads from one projection each of queries, keys and values, side by side before another."""
    layer, _ = make_layer(grid, attention_mode="split", position_embedding="none")
    f, x, mask = layer.attention, states(grid), padding(grid) if masked else None
    weights = {
        name: torch.cat([attention.get_submodule(name).weight for attention in f.axes], int(name == "o_proj"))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    assert {tuple(weight.shape) for weight in weights.values()} == {(24, HIDDEN), (HIDDEN, 24)}
    query, key, value = (
        (normalised(f.norm, x) @ weights[name].T + torch.cat([along.get_submodule(name).bias for along in f.axes]))
        .unflatten(-1, (12, 2))
        .tensor_split(len(grid), dim=-2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    heads = [
        reference_axial_attention(*states_of_axis, axis, mask)[0]
        for axis, states_of_axis in enumerate(zip(query, key, value, strict=True))
    ]
    expected = torch.cat(heads, dim=-2).flatten(-2) @ weights["o_proj"].T + sum(along.o_proj.bias for along in f.axes)
    assert torch.allclose(f(x, LayerContext(mask=mask)), expected, rtol=0, atol=1e-12)


def test_only_the_axes_share_out_the_heads():
    options = {"image_size": [5, 3], "patch_size": 1, "hidden_size": 8, "num_hidden_layers": 1}
    options |= {"num_attention_heads": 4}
    heads = {}
    for mode in ("sum", "split"):
        config = AxialConfig(**options, attention_mode=mode, pooling="attention", position_embedding="relative")
        model = AxialModel(config)
        heads[mode] = [along.q_proj.out_features // config.head_dim for along in model.layers[0].attention.axes]
        assert [along.positions[0].table.shape[1] for along in model.layers[0].attention.axes] == heads[mode]
        assert model.pooler.attention.q_proj.out_features == 4 * config.head_dim
    assert heads == {"sum": [4, 4], "split": [2, 2]}
    model = AxialModel(AxialConfig(**options, attention_mode="split", num_inducing_points=3))
    points = model.layers[0].attention.axes[1]
    assert {points.gather.q_proj.out_features, points.scatter.q_proj.out_features} == {2 * config.head_dim}


@modes
@grids
@pytest.mark.parametrize("masked", [False, True])
def test_attention_half(grid, attention_mode, masked):
    layer, context = make_layer(grid, attention_mode=attention_mode)
    context = context._replace(mask=padding(grid) if masked else None)
    hidden_states = states(grid)
    output = layer.attention(hidden_states, context)
    assert close(output, expected_f(layer, hidden_states, context))
    # Mask and positions arrive at every axis.
    if len(grid) > 1:
        assert not close(output, layer.attention(hidden_states, context._replace(prepared=())))
        assert not close(output, layer.attention(hidden_states, context._replace(mask=~padding(grid))))


@grids
def test_modes_differ_but_for_one_axis(grid):
    """Two that have weights of the same shapes."""
    summed, context = make_layer(grid, attention_mode="sum")
    sequential, _ = make_layer(grid, attention_mode="sequential")
    sequential.attention.axes.load_state_dict(summed.attention.axes.state_dict())
    for norm in sequential.attention.norms:
        norm.load_state_dict(summed.attention.norm.state_dict())
    outputs = [layer.attention(states(grid), context) for layer in (summed, sequential)]
    assert close(*outputs) == (len(grid) == 1)


@pytest.mark.parametrize("feed_forward", ["mlp", "gated_mlp", "convolution"])
def test_feed_forward_half(feed_forward):
    layer, _ = make_layer(feed_forward=feed_forward)
    assert type(layer.feed_forward) is AxialFeedForward
    assert close(layer.feed_forward(states()), expected_g(layer, states()))


# ---- executors ----


@modes
@grids
def test_one_stream(grid, attention_mode):
    layer, context = make_layer(grid, attention_mode=attention_mode)
    context = context._replace(mask=padding(grid))
    x = states(grid)
    y = x + expected_f(layer, x, context)
    y = y + expected_g(layer, y)
    for output_hidden_states in (False, True):
        output = layer(x, executor=OneStream(), context=context, output_hidden_states=output_hidden_states)
        assert isinstance(output, torch.Tensor) and close(output, y)


@modes
@grids
def test_two_streams(grid, attention_mode):
    layer, context = make_layer(grid, attention_mode=attention_mode)
    context = context._replace(mask=padding(grid))
    x1, x2 = states(grid, seed=3), states(grid, seed=4)
    y1 = x1 + expected_f(layer, x2, context)
    y2 = x2 + expected_g(layer, y1)
    mean, *streams = layer(x1, x2, executor=TwoStream(), context=context, output_hidden_states=True)
    assert len(streams) == 2 and close(streams[0], y1) and close(streams[1], y2)
    assert close(mean, (y1 + y2) / 2)


def test_mean_is_made_only_when_asked_for():
    layer, context = make_layer()
    for kwargs, times in [({}, 0), ({"output_hidden_states": False}, 0), ({"output_hidden_states": True}, 1)]:
        executor = Recorder()
        mean, *_ = layer(states(), states(seed=3), executor=executor, context=context, **kwargs)
        assert executor.times_left == times
        assert (mean is None) == (times == 0)


def test_a_chain_of_layers_makes_one_mean_unless_asked_for_more():
    layer, context = make_layer()
    executors = []
    layer.register_forward_pre_hook(lambda *call: executors.append(call[2]["executor"]), with_kwargs=True)
    for kwargs, times in [({}, 1), ({"output_hidden_states": True}, 3)]:
        run_layers(torch.nn.ModuleList([layer, layer]), Recorder, states(), context, **kwargs)
        assert executors[-1].times_left == times


def test_gradient_checkpointing_wins_over_rebuilding(monkeypatch):
    warned, executors = [], []
    monkeypatch.setattr("modeling_axial.axial_layer.logger.warning_once", warned.append)
    layer, context = make_layer()
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, lambda run, *streams: run(*streams)
    layer.register_forward_pre_hook(lambda *call: executors.append(call[2]["executor"]), with_kwargs=True)
    for training in (True, False):
        run_layers(torch.nn.ModuleList([layer.train(training)]), RebuiltTwoStream, states(), context)
    assert [type(executor) for executor in executors] == [TwoStream, RebuiltTwoStream]
    assert len(warned) == 1 and "reversible" in warned[0]


def test_executor_gets_one_pair_of_modules():
    """What hangs on the modules (hooks, sharding, offloading) is called: they run by __call__."""
    layer, context = make_layer()
    called = []
    for name in ("attention", "feed_forward"):
        layer.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    executor, x = Recorder(), states()
    layer(x, x, executor=executor, context=context)
    assert called == ["attention", "feed_forward"]
    ((f, g),) = executor.pairs
    assert close(f(x), expected_f(layer, x, context)) and close(g(x), expected_g(layer, x))
    assert called == ["attention", "feed_forward"] * 2


# ---- dropout ----


@modes
@pytest.mark.parametrize("kind", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_active_in_training_only(attention_mode, kind):
    plain, context = make_layer(attention_mode=attention_mode)
    layer, _ = make_layer(attention_mode=attention_mode, **{kind: 0.5})

    def run(layer, seed):
        torch.manual_seed(seed)
        return layer(states(), executor=OneStream(), context=context)

    assert torch.equal(run(layer, 0), run(plain, 0))  # eval
    assert torch.equal(run(plain.train(), 0), run(plain, 1))  # training without dropout
    layer.train()
    assert torch.equal(run(layer, 0), run(layer, 0))
    assert not torch.equal(run(layer, 0), run(layer, 1))
    assert not torch.equal(run(layer, 0), run(plain, 0))


@modes
def test_dropout_of_the_attention_half(attention_mode):
    """The update of each axis is dropped by itself: kept entries are doubled, the others zero."""
    layer, context = make_layer(attention_mode=attention_mode, hidden_dropout_prob=0.5)
    layer.train()
    updates, dropped = [], []
    for attention in layer.attention.axes:
        attention.register_forward_hook(lambda module, args, output: updates.append(output))
    layer.attention.dropout.register_forward_hook(lambda module, args, output: dropped.append(output))
    output = layer.attention(states(), context)
    assert len(updates) == len(dropped) == (1 if attention_mode == "alternating" else 2)
    for update, kept in zip(updates, dropped, strict=True):
        assert (torch.isclose(kept, 2 * update) | (kept == 0)).all()
        assert 0.3 < (kept == 0).double().mean() < 0.7
    assert attention_mode == "alternating" or not torch.equal(dropped[0] == 0, dropped[1] == 0)
    assert close(output, sum(dropped))


def test_dropout_of_the_feed_forward_half():
    layer, _ = make_layer(hidden_dropout_prob=0.5)
    layer.train()
    kept, whole = layer.feed_forward(states()), expected_g(layer, states())
    assert (torch.isclose(kept, 2 * whole) | (kept == 0)).all()
    assert 0.3 < (kept == 0).double().mean() < 0.7


def make_block(axis, is_causal, **overrides):
    layer, context = make_layer(**overrides)
    block = OneAxisLayer(layer.attention.axes[0].core.config, axis, is_causal).double().eval()
    for parameter in (block.attention.norm.weight, block.attention.norm.bias):
        parameter.data += torch.linspace(0, 1, HIDDEN, dtype=torch.float64)
    return block, context


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_halves_of_a_block(axis, is_causal):
    block, context = make_block(axis, is_causal, layer_norm_eps=0.25)
    along = block.attention.attention
    assert (along.axis, along.core.is_causal, block.attention.norm.eps) == (axis, is_causal, 0.25)
    x = states()
    f = along(normalised(block.attention.norm, x), context)
    assert close(block.attention(x, context), f)
    y = block(x, executor=OneStream(), context=context)
    assert close(y, x + f + expected_g(block, x + f))


@pytest.mark.parametrize("is_causal", [False, True])
def test_dropout_of_both_halves_of_a_block(is_causal):
    block, _ = make_block(1, is_causal, hidden_dropout_prob=0.5)
    for half in (block.attention, block.feed_forward):
        whole = half(states())
        kept = half.train()(states())
        assert (torch.isclose(kept, 2 * whole) | (kept == 0)).all()
        assert 0.3 < (kept == 0).double().mean() < 0.7
