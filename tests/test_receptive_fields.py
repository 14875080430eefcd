"""What a cell of a model reads, in every combination of what decides it, against sets made by hand-written rules."""

import random

import pytest
import torch

from modeling_axial import AxialConfig, AxialModel
from modeling_axial.testing import receptive_field
from tests.test_modeling_axial import Masked

# Lengths that all differ. The long one is read in blocks by small windows.
GRIDS = [(7,), (79,), (5, 3), (73, 2), (2, 83), (2, 5, 3), (3, 2, 73), (3, 2, 1, 5)]


def draw_case(number):
    """(grid, options of the configuration, mask or None)"""
    draw = random.Random(number)
    grid = GRIDS[number % len(GRIDS)]
    mode = ["sequential", "sum", "split", "alternating"][number // len(GRIDS) % 4]
    mixers = [draw.choice(["full", "window", "window", "induced"]) for _ in grid]
    kinds = {"full": ["learned", "rotary", "relative", "none"], "induced": ["learned", "none"]}
    options = {
        "attention_mode": mode,
        "attention_window": [draw.choice([1, 2, 4]) if mixer == "window" else None for mixer in mixers],
        "num_inducing_points": [draw.choice([1, 3]) if mixer == "induced" else None for mixer in mixers],
        "position_embedding": [draw.choice(kinds.get(mixer, kinds["full"])) for mixer in mixers],
        "periodic": [draw.random() < 0.5 for _ in grid],
        "feed_forward": draw.choice(["mlp", "gated_mlp", "convolution"] if len(grid) < 4 else ["mlp", "gated_mlp"]),
        "reversible": draw.random() < 0.4,
        "num_hidden_layers": len(grid) if mode == "alternating" else draw.choice([1, 1, 2]),
    }
    generator = torch.Generator().manual_seed(number)
    mask = torch.rand(grid, generator=generator) > 0.25 if draw.random() < 0.6 else None
    return grid, options, mask


def reads_along(grid, axis, reach, periodic):
    """Which cell (rows) may read which (columns) that differs from it along one axis only, at most so far away."""
    cells = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid))
    steps = (cells[:, None] - cells).abs()
    if periodic:
        steps[..., axis] = torch.minimum(steps[..., axis], grid[axis] - steps[..., axis])
    elsewhere = steps.sum(-1) - steps[..., axis]
    return (elsewhere == 0) & (steps[..., axis] <= (grid[axis] if reach is None else reach))


def reads_around(grid, periodic):
    """Which cell may read which by a convolution that is three wide along every axis."""
    cells = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid))
    steps, lengths = (cells[:, None] - cells).abs(), torch.tensor(grid)
    around = torch.minimum(steps, lengths - steps)
    return (torch.where(torch.tensor(periodic), around, steps) <= 1).all(-1)


def expected_reads(grid, options, mask):
    """Which cell (rows) of the output reads which (columns) of the input."""
    used = torch.ones(grid, dtype=torch.bool).flatten() if mask is None else mask.flatten()
    own = torch.eye(used.numel(), dtype=torch.bool)

    def after(second, first):
        return second.float() @ first.float() > 0

    attentions = [
        reads_along(grid, axis, reach, periodic) & used | own
        for axis, (reach, periodic) in enumerate(zip(options["attention_window"], options["periodic"], strict=True))
    ]
    feed_forward = own
    if options["feed_forward"] == "convolution":
        convolution = reads_around(grid, options["periodic"]) & used
        feed_forward = after(convolution, convolution)
    first = second = own
    for layer in range(options["num_hidden_layers"]):
        if options["attention_mode"] == "sequential":
            attention = own
            for along in attentions:
                attention = after(along, attention)
        elif options["attention_mode"] == "alternating":
            attention = attentions[layer % len(grid)]
        else:
            attention = torch.stack(attentions).any(0)
        if options["reversible"]:
            first = first | after(attention, second)
            second = second | after(feed_forward, first)
        else:
            first = first | after(attention, first)
            first = second = first | after(feed_forward, first)
    return first | second


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=pytest.mark.audit if number % 10 else ()) for number in range(240)]
)
def test_a_cell_reads_what_the_rules_say(number):
    grid, options, mask = draw_case(number)
    expected = expected_reads(grid, options, mask)
    config = AxialConfig(
        image_size=list(grid),
        patch_size=[1] * len(grid),
        num_channels=1,
        hidden_size=24,
        num_attention_heads=12,
        **options,
    )
    model = Masked(AxialModel(config), None if mask is None else mask[None])
    used = torch.ones(grid, dtype=torch.bool) if mask is None else mask
    cells = used.nonzero()[:: max(1, int(used.sum()) // 2)].tolist()
    assert cells
    for cell in cells:
        seen = receptive_field(model, (1, 1, *grid), cell, channel_dim=1, output_channel_dim=-1, seed=number)
        row = expected.view(*grid, *grid)[tuple(cell)]
        assert torch.equal(seen, row), (grid, options, cell, (seen != row).nonzero().tolist())


def test_every_choice_is_among_the_cases():
    cases = [draw_case(number) for number in range(240)]
    seen = {
        (mode, mixer, periodic, mask is not None)
        for grid, options, mask in cases
        for mode in [options["attention_mode"]]
        for mixer, periodic in zip(
            [
                "window" if w else "induced" if p else "full"
                for w, p in zip(options["attention_window"], options["num_inducing_points"], strict=True)
            ],
            options["periodic"],
            strict=True,
        )
    }
    assert len(seen) == 4 * 3 * 2 * 2
