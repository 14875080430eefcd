import doctest
import importlib

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput

from modeling_axial.testing import receptive_field

GRIDS = [(2, 3), (5, 3), (2, 5, 3), (3, 2, 5, 4)]  # never square: a swapped axis must show
CHANNELS = 6


class AttentionAlong(nn.Module):
    """Attention along one axis of (B, *grid, channels), written with what torch has."""

    def __init__(self, axis, is_causal=False):
        super().__init__()
        self.axis, self.is_causal = axis, is_causal
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, hidden_states):
        moved = hidden_states.movedim(self.axis + 1, -2)
        lines = moved.flatten(0, -3)
        mask = torch.ones(lines.shape[1], lines.shape[1], dtype=torch.bool).triu(1) if self.is_causal else None
        return self.attention(lines, lines, lines, attn_mask=mask)[0].view_as(moved).movedim(-2, self.axis + 1)


class Summed(nn.ModuleList):
    def forward(self, hidden_states):
        return sum(module(hidden_states) for module in self)


class Flat(nn.Module):
    """The classic slip: lines are cut out of memory without moving the axis first. Every shape is right."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, hidden_states):
        lines = hidden_states.reshape(-1, hidden_states.shape[self.axis + 1], CHANNELS)
        return self.attention(lines, lines, lines)[0].reshape(hidden_states.shape)


def lines_through(position, grid, axes):
    """True at `position` and wherever exactly one coordinate, of an axis in `axes`, differs from it."""
    expected = torch.zeros(grid, dtype=torch.bool)
    for axis in axes:
        expected[tuple(slice(None) if a == axis else position[a] for a in range(len(grid)))] = True
    return expected


def positions(grid):
    return [tuple(0 for _ in grid), tuple(length // 2 for length in grid), tuple(length - 1 for length in grid)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_axis_reaches_its_line(grid):
    for axis in range(len(grid)):
        for position in positions(grid):
            reached = receptive_field(AttentionAlong(axis), (1, *grid, CHANNELS), position)
            assert reached.dtype == torch.bool and torch.equal(reached, lines_through(position, grid, [axis]))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_summed_axes_reach_the_cross(grid):
    layer = Summed(AttentionAlong(axis) for axis in range(len(grid)))
    for position in positions(grid):
        reached = receptive_field(layer, (1, *grid, CHANNELS), position)
        assert torch.equal(reached, lines_through(position, grid, range(len(grid))))
        assert not reached.all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_chained_axes_reach_the_full_grid(grid):
    layer = nn.Sequential(*(AttentionAlong(axis) for axis in range(len(grid))))
    for position in positions(grid):
        assert receptive_field(layer, (1, *grid, CHANNELS), position).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_layer_on_the_wrong_axis_is_caught(grid):
    wrong_axes = [0, *range(len(grid) - 1)]  # the last axis is never attended, the first twice
    chained, summed = (
        kind(map(AttentionAlong, wrong_axes)) for kind in (lambda layers: nn.Sequential(*layers), Summed)
    )
    for position in positions(grid):
        reached = receptive_field(chained, (1, *grid, CHANNELS), position)
        assert torch.equal(reached, (torch.arange(grid[-1]) == position[-1]).expand(grid))
        reached = receptive_field(summed, (1, *grid, CHANNELS), position)
        assert not torch.equal(reached, lines_through(position, grid, range(len(grid))))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_lines_cut_out_of_memory_are_caught(grid):
    position = positions(grid)[1]
    for axis in range(len(grid) - 1):
        reached = receptive_field(Flat(axis), (1, *grid, CHANNELS), position)
        assert not torch.equal(reached, lines_through(position, grid, [axis]))
    last = len(grid) - 1  # whose lines do lie in one piece
    assert torch.equal(
        receptive_field(Flat(last), (1, *grid, CHANNELS), position), lines_through(position, grid, [last])
    )


def test_causal_attention_reaches_the_past():
    for position in range(5):
        reached = receptive_field(AttentionAlong(0, is_causal=True), (1, 5, CHANNELS), (position,))
        assert reached.tolist() == [index <= position for index in range(5)]


def test_causal_convolution_reaches_its_kernel():
    causal = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(3, 5, 2, dilation=2))
    for position in range(7):
        reached = receptive_field(causal, (1, 3, 7), (position,), channel_dim=1)
        assert reached.tolist() == [index in (position - 2, position) for index in range(7)]


def test_row_mixer_reaches_its_row():
    class RowMixer(nn.Linear):
        def forward(self, hidden_states):
            return super().forward(hidden_states.transpose(-1, -2)).transpose(-1, -2)

    reached = receptive_field(RowMixer(5, 5), (1, 3, 5, CHANNELS), (1, 4))
    assert torch.equal(reached, lines_through((1, 4), (3, 5), [1]))


@pytest.mark.parametrize("channels_last", [True, False])
def test_patches_map_a_cell_to_its_pixels(channels_last):
    class Patches(nn.Conv2d):
        def forward(self, pixel_values):
            grid = super().forward(pixel_values)
            return grid.movedim(1, -1) if channels_last else grid

    patches = Patches(3, 4, kernel_size=(2, 5), stride=(2, 5))
    output_channel_dim = -1 if channels_last else None
    reached = receptive_field(patches, (1, 3, 6, 10), (2, 0), channel_dim=1, output_channel_dim=output_channel_dim)
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[4:6, 0:5] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("initial", [0.0, 1e-200])
def test_branches_that_start_at_zero_count(initial):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.full((CHANNELS,), initial, dtype=torch.float64))
            self.branch = AttentionAlong(0)
            nn.init.zeros_(self.branch.attention.out_proj.weight)

        def forward(self, hidden_states):
            return hidden_states + self.gate * self.branch(hidden_states)

    assert torch.equal(receptive_field(Gated(), (1, 3, 2, CHANNELS), (2, 1)), lines_through((2, 1), (3, 2), [0]))


def test_an_accidental_zero_hides_nothing():
    class NextIfPositive(nn.Module):
        def forward(self, hidden_states):
            return hidden_states + hidden_states.roll(-1, 1).relu()

    def reached(num_draws, seed):
        return receptive_field(NextIfPositive(), (1, 5, 1), (1,), num_draws=num_draws, seed=seed).tolist()

    found, missed = [False, True, True, False, False], [False, True, False, False, False]
    single = [reached(1, seed) for seed in range(20)]
    assert found in single and missed in single
    assert all(reached(30, seed) == found for seed in range(20))


def test_dropout_and_batch_statistics_are_off():
    layer = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Conv2d(3, 3, 1))
    reached = receptive_field(layer, (2, 3, 5, 7), (4, 2), channel_dim=1, num_draws=1)
    assert reached.sum() == 1 and reached[4, 2]


def test_module_and_random_state_are_left_alone():
    layer = nn.Sequential(AttentionAlong(0), nn.Dropout(0.5), AttentionAlong(1)).half()
    layer[0].requires_grad_(False)
    before = {name: (value.clone(), value.requires_grad) for name, value in layer.named_parameters()}
    random_state = torch.get_rng_state()
    with torch.no_grad():
        first = receptive_field(layer, (1, 2, 3, CHANNELS), (1, 1))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert layer.training
    for name, value in layer.named_parameters():
        assert torch.equal(value, before[name][0]) and value.requires_grad == before[name][1] and value.grad is None
    assert torch.equal(first, receptive_field(layer, (1, 2, 3, CHANNELS), (1, 1)))


class Returns(nn.Module):
    """A row mixer that packs its output, so that a wrong way to unpack it would show."""

    def __init__(self, pack):
        super().__init__()
        self.pack, self.linear = pack, nn.Linear(4, 4)

    def forward(self, hidden_states):
        return self.pack(hidden_states + hidden_states.flip(1), hidden_states)


PACKS = {
    "tensor": (lambda mixed, _: mixed, None),
    "tuple": (lambda mixed, other: (mixed, other), None),
    "list": (lambda mixed, other: [mixed, other], None),
    "ModelOutput": (lambda mixed, other: BaseModelOutput(mixed, hidden_states=(other,)), None),
    "output_fn": (lambda mixed, other: {"other": other, "mixed": mixed}, lambda output: output["mixed"]),
    "weak influence": (lambda mixed, other: other + 1e-30 * mixed, None),
    "channels that cancel out": (lambda mixed, _: torch.cat([mixed, -mixed], dim=-1), None),
    "output_fn first": (lambda mixed, other: BaseModelOutput(other, hidden_states=(mixed,)), lambda o: o[1][0]),
}


@pytest.mark.parametrize(("pack", "output_fn"), PACKS.values(), ids=PACKS.keys())
def test_what_a_module_may_return(pack, output_fn):
    assert receptive_field(Returns(pack), (1, 5, 4), (1,), output_fn=output_fn).nonzero().tolist() == [[1], [3]]


def test_output_without_a_grid():
    class LeftHalf(nn.Linear):
        def forward(self, pixel_values):
            return super().forward(pixel_values[..., :2].mean((2, 3)))

    reached = receptive_field(LeftHalf(3, 10), (1, 3, 4, 5), (), channel_dim=1, output_channel_dim=-1)
    assert torch.equal(reached, (torch.arange(5) < 2).expand(4, 5))


class Detached(nn.Linear):
    @torch.no_grad()
    def forward(self, hidden_states):
        return super().forward(hidden_states)


class Mixing(nn.Module):
    def forward(self, hidden_states):
        return hidden_states + hidden_states.mean(0, keepdim=True)


class Logarithm(nn.Linear):
    def forward(self, hidden_states):
        return super().forward(hidden_states).log()


def call(module=None, input_shape=(1, 3, 5, 4), position=(1, 1), **options):
    return lambda: receptive_field(nn.Linear(4, 4) if module is None else module, input_shape, position, **options)


ERRORS = {
    "position beyond the grid": (call(position=(3, 1)), r"output grid \(3, 5\).*got \(3, 1\)"),
    "position negative": (call(position=(1, -1)), r"output grid \(3, 5\), from 0 on, got \(1, -1\)"),
    "position too short": (call(position=(1,)), "position must have 2 indices"),
    "position too long": (call(position=(1, 1, 0)), "position must have 2 indices"),
    "input without channels": (call(input_shape=(3,)), r"input_shape must be \(batch, \*grid, channels\)"),
    "empty axis": (call(input_shape=(1, 0, 5, 4)), "each at least 1"),
    "channel_dim is the batch": (call(channel_dim=0), "channel_dim must be a dim of the 4"),
    "channel_dim is the batch from behind": (call(channel_dim=-4), "channel_dim must be a dim of the 4"),
    "channel_dim too large": (call(channel_dim=4), "channel_dim must be a dim of the 4"),
    "output_channel_dim": (call(output_channel_dim=7), "output_channel_dim must be a dim of the 4.*got 7"),
    "channels at the wrong place": (call(channel_dim=1, input_shape=(1, 4, 3, 5)), "Linear fails on a float64"),
    "rank that the module refuses": (call(nn.Conv2d(4, 4, 1), (1, 4, 3), (1,)), "Conv2d fails on a float64"),
    "integer input": (call(nn.Embedding(5, 4), (1, 3, 1), (1,)), "behind the embedding"),
    "integer output": (call(Returns(lambda mixed, _: mixed.argmax(-1, keepdim=True))), "torch.int64.*floating"),
    "input turned into integers": (
        call(Returns(lambda mixed, other: torch.zeros_like(other)[mixed.long().clamp(0, 0)[..., 0], 0, 0])),
        "not differentiable",
    ),
    "no gradient": (call(Detached(4, 4)), "not differentiable"),
    "output that is no tensor": (call(Returns(lambda mixed, _: {"x": mixed})), "returns dict: give an output_fn"),
    "model without last_hidden_state": (
        call(Returns(lambda mixed, _: ImageClassifierOutput(logits=mixed))),
        "output_fn",
    ),
    "no module": (call(torch.relu), "must be a torch.nn.Module, got builtin_function_or_method"),
    "no draws": (call(num_draws=0), "num_draws must be at least 1, got 0"),
    "samples mixed": (call(Mixing(), (2, 3, 5, 4)), "Mixing lets samples of a batch influence each other"),
    "values not finite": (call(Logarithm(4, 4)), "Logarithm gives values that are not finite"),
}


@pytest.mark.parametrize(("wrong_call", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(wrong_call, message):
    with pytest.raises(ValueError, match=message):
        wrong_call()


def test_example_of_the_docstring():
    results = doctest.testmod(importlib.import_module("modeling_axial.testing.receptive_field"))
    assert results.attempted >= 4 and results.failed == 0
