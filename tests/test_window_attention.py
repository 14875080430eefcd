import math

import pytest
import torch

from modeling_axial import AxialConfig, AxialModel
from modeling_axial.axial_layer import MIXER_CLASSES
from modeling_axial.layer_context import LayerContext
from modeling_axial.position_embeddings import AxisCells, apply_rotary
from modeling_axial.testing import receptive_field
from modeling_axial.window_attention import MaskedWindowAttention, WindowedAxialAttention, block_size, window_blocks
from tests.drawn import redrawn, states
from tests.reference import reference_axial_attention

HEADS, HEAD_DIM = 2, 4


def make_config(grid, **overrides):
    options = {"image_size": list(grid), "patch_size": [1] * len(grid), "num_channels": 2, "num_hidden_layers": 2}
    options |= {"hidden_size": HEADS * HEAD_DIM, "num_attention_heads": HEADS, "attention_window": 2}
    return AxialConfig(**{**options, **overrides})


def steps(length, periodic):
    """How far each key lies before each query, (queries, keys), by the shorter way round."""
    cells = torch.arange(length)
    distances = cells[:, None] - cells
    return (distances + length // 2) % length - length // 2 if periodic else distances


# Of each length and window, whether it is cut into blocks.
LINES = {(1, 1): False, (2, 1): False, (3, 5): False, (37, 3): False, (71, 1): True, (101, 3): True, (151, 20): True}


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("length, window", LINES)
def test_each_cell_reads_those_in_reach_once(monkeypatch, length, window, exporting, periodic):
    assert (block_size(length, window) < length) == LINES[length, window]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    queries, keys, allowed = window_blocks(length, window, periodic, torch.device("cpu"))
    assert not exporting or allowed.shape[1] == max(window, 32)
    reads = torch.zeros(allowed.shape[0] * allowed.shape[1], length, dtype=torch.long)
    reads.scatter_add_(1, keys.repeat_interleave(allowed.shape[1], 0), allowed.flatten(0, 1).long())
    assert queries.flatten()[:length].tolist() == list(range(length)) and queries.max() == length - 1
    assert torch.equal(reads[:length], (steps(length, periodic).abs() <= window).long())


def expected_attention(module, hidden_states, mask, periodic, positions):
    """The window written out, for one line or grid: attention by loops, with a mask of pairs and a bias."""
    axis, length = module.axis, hidden_states.shape[module.axis + 1]
    query, key, value = (
        (hidden_states @ projection.weight.T + projection.bias).unflatten(-1, (HEADS, HEAD_DIM))
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    distances, bias = steps(length, periodic), None
    if "rotary" in positions:
        frequencies = torch.tensor([1.0, 0.01], dtype=torch.float64)
        if periodic:
            turns = (frequencies * module.description.length / (2 * math.pi)).round()
            frequencies = 2 * math.pi / length * turns.clamp(min=torch.tensor([1.0, 0.0], dtype=torch.float64))
        angles = (torch.arange(length)[:, None] * frequencies).repeat(1, 2)[None]
        query, key = (apply_rotary(each, angles.cos(), angles.sin(), axis) for each in (query, key))
    if "relative" in positions:
        table = module.positions[-1].table
        bias = table[(distances + table.shape[0] // 2).clamp(0, table.shape[0] - 1)].movedim(-1, 0)[None]
    pairs = (distances.abs() <= module.description.attention_window)[None, None]
    output, _ = reference_axial_attention(query, key, value, axis, mask=mask, bias=bias, pair_mask=pairs)
    return output.flatten(-2) @ module.o_proj.weight.T + module.o_proj.bias


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("positions", ["none", "rotary+relative"])
@pytest.mark.parametrize("grid, axis, window", [((7,), 0, 2), ((83,), 0, 3), ((3, 71), 1, 1), ((83, 2), 0, 2)])
def test_the_window_written_out(grid, axis, window, positions, periodic, masked):
    config = make_config(grid, position_embedding=positions, periodic=periodic, attention_window=window)
    module, hidden_states = redrawn(WindowedAxialAttention(config, axis)), states(2, *grid, 8)
    mask = states(2, *grid, seed=5) > -0.3 if masked else None
    expected = expected_attention(module, hidden_states, mask, periodic, positions)
    for implementation in ("sdpa", "eager"):
        config._attn_implementation = implementation
        output = module(hidden_states, LayerContext(mask=mask))
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_window_written_out():
    config = make_config((3, 73), position_embedding="relative", periodic=[False, True])
    module, hidden_states = redrawn(WindowedAxialAttention(config, 1)), states(2, 3, 73, 8).requires_grad_()
    mask, parameters = states(2, 3, 73, seed=5) > -0.3, list(module.parameters())
    found, expected = (
        torch.autograd.grad((output * states(2, 3, 73, 8, seed=7)).sum(), [hidden_states, *parameters])
        for output in (
            module(hidden_states, LayerContext(mask=mask)),
            expected_attention(module, hidden_states, mask, True, "relative"),
        )
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("grid, axis", [((5, 7), 0), ((3, 73), 1), ((73, 3), 0)])
def test_maps_are_those_of_whole_lines(grid, axis):
    module = redrawn(WindowedAxialAttention(make_config(grid), axis))
    calls = []
    module.core.register_forward_hook(lambda _, arguments, output: calls.append((arguments, output)))
    hidden_states = states(2, *grid, 8)
    output = module(hidden_states, LayerContext(output_attentions=True))
    assert torch.allclose(output, module(hidden_states), rtol=1e-12, atol=1e-12)
    ((query, key, value, *_), (attended, weights)), (_, (_, no_weights)) = calls
    length, others = grid[axis], math.prod(grid) // grid[axis]
    assert no_weights is None and weights.shape == (2 * others, HEADS, length, length)
    assert torch.equal(weights != 0, (steps(length, False).abs() <= 2).expand_as(weights))
    lines = value.movedim(axis + 1, -3).flatten(0, -4).transpose(1, 2)
    expected = (weights @ lines).transpose(1, 2).reshape(value.movedim(axis + 1, -3).shape).movedim(-3, axis + 1)
    torch.testing.assert_close(attended, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("mode", ["sum", "sequential"])
def test_what_a_cell_of_a_model_reads(mode, periodic):
    grid, cell = (5, 73), (4, 72)
    config = make_config(grid, attention_mode=mode, attention_window=[1, 2], periodic=periodic, num_hidden_layers=1)
    seen = receptive_field(AxialModel(config), (1, 2, *grid), cell, channel_dim=1, output_channel_dim=-1)
    rows, columns = (steps(length, periodic)[at].abs() <= w for length, at, w in zip(grid, cell, (1, 2), strict=True))
    cross = (rows[:, None] & (torch.arange(73) == 72)) | (columns & (torch.arange(5) == 4)[:, None])
    assert torch.equal(seen, cross if mode == "sum" else rows[:, None] & columns)


def test_a_part_of_a_circle_has_ends():
    module = redrawn(WindowedAxialAttention(make_config((73,), periodic=True, position_embedding="relative"), 0))
    hidden_states = states(1, 73, 8)
    cells = torch.arange(73, dtype=torch.float64)[None]
    for first, last in ((0, 73), (3, 50)):
        part = AxisCells(cells[:, first:last], 73)
        context = LayerContext(prepared=(WindowedAxialAttention.prepare(module.config, module.description, part),))
        output = module(hidden_states[:, first:last], context)
        whole = module(hidden_states)[:, first:last]
        agrees = (output - whole).abs().amax((0, 2)) < 1e-12
        assert agrees.all() if last == 73 else agrees.tolist() == [False] * 2 + [True] * 43 + [False] * 2


def test_registered_and_refused_without_a_window():
    assert MIXER_CLASSES["window"] is WindowedAxialAttention
    config = make_config((5, 7), attention_window=[None, 2])
    assert [axis.mixer for axis in config.axes] == ["full", "window"]
    with pytest.raises(ValueError, match="attention_window must be given for axis 0, which is None"):
        WindowedAxialAttention.prepare(config, config.axes[0], AxisCells(torch.zeros(1, 5)))


@pytest.mark.audit
@pytest.mark.parametrize("periodic", [False, True])
def test_compiled_with_open_sizes(periodic):
    torch.compiler.reset()  # PyTorch compiles a function eight times at most
    config = make_config((3, 73), periodic=periodic, position_embedding="rotary+relative", num_hidden_layers=1)
    model = redrawn(AxialModel(config))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for grid in ((3, 73), (5, 7), (2, 131)):
        pixel_values = states(2, 2, *grid)
        torch.testing.assert_close(
            compiled(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state, rtol=1e-12, atol=1e-12
        )


def test_exported_with_open_sizes():
    model = redrawn(AxialModel(make_config((3, 73), periodic=[False, True], position_embedding="relative")))
    sizes = {2: torch.export.Dim("height", max=1000), 3: torch.export.Dim("width", max=1000)}
    program = torch.export.export(model, (states(2, 2, 3, 73),), dynamic_shapes={"pixel_values": sizes})
    for grid in ((3, 73), (5, 7), (2, 131)):
        pixel_values = states(2, 2, *grid)
        expected = model(pixel_values).last_hidden_state
        output = program.module()(pixel_values).last_hidden_state
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "rotary+relative"])
@pytest.mark.parametrize("length", [5, 73])  # as one block, and in several
def test_a_mask_over_whole_lines_reads_what_blocks_do(length, positions):
    config = make_config((3, length), position_embedding=positions)
    blocks, masked = (redrawn(kind(config, 1)) for kind in (WindowedAxialAttention, MaskedWindowAttention))
    hidden_states = states(2, 3, length, HEADS * HEAD_DIM)
    torch.testing.assert_close(masked(hidden_states), blocks(hidden_states), rtol=1e-12, atol=1e-12)
    causal = redrawn(MaskedWindowAttention(config, 1, is_causal=True))
    output = causal(hidden_states)
    for cell in range(length):  # alone with those that it reads, it gives the same
        first = max(0, cell - 2)
        alone = causal(hidden_states[:, :, first : cell + 1])[:, :, -1]
        torch.testing.assert_close(output[:, :, cell], alone, rtol=1e-11, atol=1e-11)
