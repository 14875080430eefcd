"""Several samplers, one picture: what they draw, from which noise, at which cost, and around which known values."""

import itertools
import math
import sys
from contextlib import nullcontext
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from modeling_axial.modeling_axial_decoder import AxialForCausalImageModeling
from modeling_axial.sampling import SAMPLERS, Known, LineDraws, SamplingOptions, keep_top_k, keep_top_p
from tests.test_modeling_axial_decoder import (
    kinds,
    make_config,
    make_inputs,
    make_model,
    make_position_ids,
    orders,
    redraw,
    variants,
)

EAGER = [name for name in SAMPLERS if name != "compiled"]


def sample(model, num_images=2, seed=4, **options):
    generator = torch.Generator().manual_seed(seed)
    return model.generate(num_images, generator=generator, **options)


def conditions(model, num_images=2, image_size=None):
    dtype = model.head.weight.dtype
    inputs = make_inputs(model.config, num_images, dtype=dtype, image_size=image_size)
    return {name: value for name, value in inputs.items() if name != "input_ids"}


# The same pixels


@variants
def test_samplers_draw_the_same_pixels(overrides):
    model = make_model(**{"vocab_size": 17, **overrides})
    options = conditions(model)
    naive = sample(model, sampler="naive", **options)
    assert naive.dtype == torch.int64 and naive.shape == (2, model.config.num_channels, 3, 5)
    assert len(naive.unique()) > 5 and not torch.equal(naive[0], naive[1])
    assert torch.equal(sample(model, sampler="semi_parallel", **options), naive)
    assert torch.equal(sample(model, sampler="cached", **options), naive)


@orders
@pytest.mark.parametrize("image_size", [(5,), (1, 7), (7, 1), (2, 3, 4), (3, 2, 2, 3)], ids=str)
def test_samplers_agree_on_any_number_of_axes(image_size, channel_order):
    model = make_model(image_size, channel_order=channel_order, vocab_size=7, num_outer_layers=2, num_inner_layers=2)
    pictures = [sample(model, sampler=sampler) for sampler in EAGER]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


@kinds
def test_samplers_agree_beyond_the_tables_of_distances(position_embedding):
    options = {"channel_order": "nested", "position_embedding": position_embedding, "num_condition_channels": 1}
    model = make_model((2, 3), vocab_size=7, num_outer_layers=2, num_inner_layers=2, **options)
    condition = conditions(model, image_size=(4, 5))["condition"]
    pictures = [sample(model, sampler=sampler, condition=condition) for sampler in EAGER]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


@variants
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_samplers_agree_on_cells_anywhere(overrides, guidance_scale):
    guided = {"num_classes": 3, "class_dropout_prob": 0.1} if guidance_scale > 1 else {}
    model = make_model(**{"vocab_size": 17, **overrides, **guided})
    options = conditions(model) | {"guidance_scale": guidance_scale}
    elsewhere = make_position_ids()
    pictures = [sample(model, sampler=sampler, position_ids=elsewhere, **options) for sampler in EAGER]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert not torch.equal(pictures[0], sample(model, **options))
    shared = [positions[:1] for positions in elsewhere]
    first, second = (sample(model, position_ids=each, **options) for each in (elsewhere, shared))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


@orders
@pytest.mark.parametrize("gain", [1.0, 4.0, 20.0])
def test_a_thousand_pixels_in_float64(gain, channel_order):
    """10 pictures of 2 x 7 x 8 values, at weights from ordinary to so large that one value decides all that follow."""
    model = make_model((7, 8), channel_order=channel_order, vocab_size=11, gain=gain, num_inner_layers=2)
    pictures = [sample(model, 10, sampler=sampler) for sampler in EAGER]
    assert pictures[0].numel() >= 1000
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


@orders
def test_a_thousand_pixels_in_float32(channel_order):
    """Equal, or apart from where the two likeliest values were within rounding of each other."""
    model = make_model((7, 8), dtype=torch.float32, channel_order=channel_order, vocab_size=11, num_inner_layers=2)
    naive, *others = (sample(model, 10, sampler=sampler) for sampler in EAGER)
    noise = line_noise(naive.shape, 11)
    with torch.no_grad():
        scores = model(naive).logits.double() + noise
    first, second = scores.topk(2).values.unbind(-1)
    for other in others:
        for ours, theirs, gap in zip(naive.flatten(1), other.flatten(1), (first - second).flatten(1), strict=True):
            different = (ours != theirs).nonzero().flatten()
            assert not len(different) or gap[different[0]] < 1e-4


def line_noise(shape, vocab_size, seed=4):
    """The noise that generate() draws: line by line in raster order, each line for all pictures at once."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(*shape, vocab_size, dtype=torch.float64)
    for line in itertools.product(*map(range, shape[1:-1])):
        exponential = torch.empty(shape[0], shape[-1], vocab_size, dtype=torch.float64)
        noise[(slice(None), *line)] = -exponential.exponential_(generator=generator).log()
    return noise


@variants
def test_every_value_is_the_argmax_of_its_logits_and_noise(overrides):
    """Gumbel-max, with the noise drawn line by line: one teacher-forced pass over the samples explains them all."""
    model = make_model(**overrides)
    options = conditions(model)
    pictures = sample(model, temperature=0.7, **options)
    with torch.no_grad():
        logits = model(pictures, **options).logits
    assert torch.equal((logits / 0.7 + line_noise(pictures.shape, 5)).argmax(-1), pictures)


@orders
@pytest.mark.parametrize("sampler", ["semi_parallel", "cached"])
@pytest.mark.parametrize("image_size", [(3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("gain", [1.0, 4.0, 20.0])
def test_logits_step_by_step_are_those_of_the_whole_picture(monkeypatch, gain, image_size, sampler, channel_order):
    compare_steps_and_whole(monkeypatch, sampler, image_size, channel_order=channel_order, gain=gain)


@orders
def test_logits_step_by_step_with_windows(monkeypatch, channel_order):
    overrides = {"channel_order": channel_order, "position_embedding": "rotary+relative", "num_outer_layers": 2}
    compare_steps_and_whole(monkeypatch, "cached", (4, 5), attention_window=1, **overrides)


@orders
@kinds
def test_logits_step_by_step_with_positions_in_the_blocks(monkeypatch, position_embedding, channel_order):
    overrides = {"channel_order": channel_order, "position_embedding": position_embedding, "num_inner_layers": 2}
    compare_steps_and_whole(monkeypatch, "cached", (2, 3, 4), **overrides)


def compare_steps_and_whole(monkeypatch, sampler, image_size, **overrides):
    model = make_model(image_size, num_classes=3, num_condition_channels=1, **overrides)
    options = conditions(model)
    steps = []
    draw = LineDraws.__call__

    def recording(self, position, logits):
        steps.append(logits)
        return draw(self, position, logits)

    monkeypatch.setattr(LineDraws, "__call__", recording)
    pictures = sample(model, sampler=sampler, **options)
    with torch.no_grad():
        expected = model(pictures, **options).logits
    found = torch.stack(steps, 1).view(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert expected.std() > 1


# Compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "overrides"),
    [
        ("sdpa", {}),
        pytest.param("eager", {}, marks=pytest.mark.audit),
        pytest.param("sdpa", {"position_embedding": "rotary+relative"}, marks=pytest.mark.audit),
        pytest.param(
            "eager", {"position_embedding": "rotary+relative", "attention_window": 2}, marks=pytest.mark.audit
        ),
    ],
    ids=str,
)
def test_compiled_code_draws_the_same_pixels(implementation, overrides):
    torch.compiler.reset()
    model = make_model((4, 5), num_channels=1, vocab_size=11, **overrides)
    model.set_attn_implementation(implementation)
    options = {"position_ids": make_position_ids((4, 5), 3)} if overrides else {}
    pictures = sample(model, 3, **options)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(sample(model, 3, sampler="compiled", **options), pictures)
        assert not torch.equal(sample(model, 3, seed=5, sampler="compiled", **options), pictures)


@pytest.fixture
def traced(monkeypatch):
    """Compilation without generated code, which takes a tenth of the time."""
    compile_in_full = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **_: compile_in_full(step, dynamic=False, backend="eager"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


ALL_OPTIONS = [
    {"guidance_scale": 2.5, "top_k": 5, "top_p": 0.7, "temperature": 1.5},
    {"guidance_scale": 1.25, "top_k": 5, "top_p": 0.9, "temperature": 4.0},
]


@pytest.mark.parametrize(
    "ways",
    [
        [{"top_k": 3}, {"top_k": 3, "temperature": 0.3}],
        [{"top_p": 0.5, "temperature": 0.6}, {"top_p": 0.8}],
        [{"temperature": 2.0}, {"temperature": 3.5}, {"temperature": math.inf}],
        ALL_OPTIONS,
    ],
    ids=str,
)
def test_one_compilation_draws_by_any_number_of_an_option(traced, ways):
    compare_ways_compiled_and_eager(ways)


@pytest.mark.slow
@pytest.mark.audit
def test_generated_code_draws_by_all_options():
    torch.compiler.reset()
    compare_ways_compiled_and_eager(ALL_OPTIONS)


def compare_ways_compiled_and_eager(ways):
    """Beside known values, which use up noise. Of plain eager code each of `ways` draws something else."""
    model = make_model((3, 5), num_channels=1, vocab_size=11, num_classes=2, class_dropout_prob=0.1)
    known = torch.full((1, 1, 3, 5), 4), torch.rand(1, 1, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.2
    options = {"known": known, "class_labels": torch.tensor([0, 1])}
    expected = [sample(model, 2, **options, **way) for way in ways]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(expected, 2))
    sample(model, 2, sampler="compiled", **options, **ways[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for way, pictures in zip(ways, expected, strict=True):
            assert torch.equal(sample(model, 2, sampler="compiled", **options, **way), pictures)


def test_compiled_code_follows_a_model_that_changes(traced):
    """Guards are left out between the cells of a line alone."""
    model = make_model((3, 5), num_channels=1, vocab_size=11)
    pictures = sample(model, sampler="compiled")
    assert torch.equal(pictures, sample(model))
    with torch.no_grad():
        model.head.weight.neg_()
    changed = sample(model, sampler="compiled")
    assert torch.equal(changed, sample(model)) and not torch.equal(changed, pictures)
    model.norm = nn.Identity()
    without_norm = sample(model, sampler="compiled")
    assert torch.equal(without_norm, sample(model)) and not torch.equal(without_norm, changed)


# Cost


@pytest.mark.parametrize(
    ("image_size", "overrides"),
    [((28, 28), {"num_channels": 1, "vocab_size": 2}), ((4, 5), {}), ((4, 5), {"channel_order": "nested"})]
    + [((2, 3, 4), {"num_channels": 1})],
    ids=str,
)
def test_tokens_that_pass_the_levels(image_size, overrides):
    model = make_model(image_size, **overrides)
    grid, num_grids = model.config.grid_shape, model.config.num_grids
    pixels, lines, length = math.prod(grid), math.prod(grid[:-1]), grid[-1]
    once = [math.prod(grid[:axis]) * (grid[axis] - 1) * math.prod(grid[axis + 1 :]) for axis in range(len(grid) - 1)]
    formulas = {
        "cached": (once, pixels),
        "semi_parallel": ([lines * pixels] * len(once), pixels * length),
        "naive": ([pixels * pixels] * len(once), pixels * pixels),
    }
    if image_size == (28, 28):
        assert formulas["cached"] == ([27 * 28], 784) and formulas["semi_parallel"] == ([28 * 784], 784 * 28)
        del formulas["naive"]  # takes too long
    counts = {}

    def count(module, inputs, output):
        counts[module] = counts.get(module, 0) + output.shape[:-1].numel()

    for level in (*model.outer_levels, model.inner_level):
        level.register_forward_hook(count)
    if model.exterior is not None:
        model.exterior.register_forward_hook(count)
    for sampler, (outer, inner) in formulas.items():
        counts.clear()
        sample(model, 1, sampler=sampler)
        assert [counts[level] for level in model.outer_levels] == [num_grids * tokens for tokens in outer]
        assert counts[model.inner_level] == num_grids * inner
        if model.exterior is not None:  # once for each channel, whichever sampler
            assert counts[model.exterior] == num_grids * math.prod(image_size)


# Known values


@orders
@pytest.mark.parametrize("sampler", EAGER)
def test_known_values_stay_and_what_comes_before_ignores_them(sampler, channel_order):
    model = make_model((4, 5), vocab_size=11, channel_order=channel_order)
    free = sample(model, 8, sampler=sampler).flatten(1)
    for cell in (0, 7, 19, 20, 33, 39):
        mask = torch.zeros(1, 2, 4, 5, dtype=torch.bool)
        mask.view(-1)[cell] = True
        values = torch.full((1, 2, 4, 5), -1)  # what is not known is not read
        others = []
        for value in (3, 8):
            values.view(-1)[cell] = value
            others.append(sample(model, 8, sampler=sampler, known=(values, mask)).flatten(1))
            assert (others[-1][:, cell] == value).all()
            assert torch.equal(others[-1][:, :cell], free[:, :cell])
        if cell < 34:
            assert not torch.equal(others[0][:, cell + 1 :], others[1][:, cell + 1 :])


@orders
@pytest.mark.parametrize("sampler", EAGER)
def test_a_picture_is_completed_with_the_noise_it_was_drawn_with(sampler, channel_order):
    model = make_model((4, 5), vocab_size=11, channel_order=channel_order)
    free = sample(model, sampler=sampler)
    for given in (1, 5, 12, 20, 25, 40):
        mask = (torch.arange(40) < given).view(1, 2, 4, 5)
        assert torch.equal(sample(model, sampler=sampler, known=(free, mask)), free)


def test_holes_and_batches_of_known_values():
    model = make_model((4, 5), vocab_size=11)
    generator = torch.Generator().manual_seed(6)
    values = torch.randint(11, (3, 2, 4, 5), generator=generator)
    mask = torch.rand(3, 2, 4, 5, generator=generator) < 0.6
    mask[:, 0, 2] = True  # a line that is known in all pictures is not computed
    pictures = [sample(model, 3, sampler=sampler, known=(values, mask)) for sampler in EAGER]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert torch.equal(pictures[0][mask], values[mask]) and not torch.equal(pictures[0], values)
    everything = sample(model, 3, known=(values, torch.ones(1, 1, 1, 1, dtype=torch.bool)))
    assert torch.equal(everything, values)


@pytest.mark.parametrize("sampler", EAGER)
def test_lines_that_are_known_are_not_computed(sampler):
    model = make_model((4, 5), num_channels=1)
    counts = []
    model.inner_level.register_forward_hook(lambda module, inputs, output: counts.append(output.shape[:-1].numel()))
    values = torch.zeros(1, 1, 4, 5, dtype=torch.long)
    mask = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    mask[:, :, :2] = True
    sample(model, 1, sampler=sampler, known=(values, mask))
    assert sum(counts) == {"cached": 10, "semi_parallel": 10 * 5, "naive": 10 * 20}[sampler]


# What samples depend on


@orders
def test_class_and_condition_change_the_samples(channel_order):
    model = make_model(channel_order=channel_order, num_classes=3, num_condition_channels=1, vocab_size=11)
    options = conditions(model)
    pictures = sample(model, **options)
    assert torch.equal(sample(model, **options), pictures)
    assert not torch.equal(sample(model, **options, seed=5), pictures)
    other_class = {**options, "class_labels": (options["class_labels"] + 1) % 3}
    other_condition = {**options, "condition": options["condition"] + 1}
    for other in (other_class, other_condition):
        assert not torch.equal(sample(model, **other), pictures)


@orders
@pytest.mark.parametrize("sampler", EAGER)
def test_guidance_moves_the_logits_away_from_those_of_an_unknown_class(sampler, channel_order):
    model = make_model(channel_order=channel_order, num_classes=3, class_dropout_prob=0.1, num_condition_channels=1)
    options = conditions(model, num_images=3)
    mask = torch.rand(3, 2, 3, 5, generator=torch.Generator().manual_seed(1)) < 0.2
    known = (torch.full((3, 2, 3, 5), 4), mask)
    pictures = sample(model, 3, guidance_scale=2.5, known=known, sampler=sampler, **options)
    assert pictures.shape == (3, 2, 3, 5) and (pictures[mask] == 4).all()
    with torch.no_grad():
        with_class = model(pictures, **options).logits
        without = model(pictures, **options | {"class_labels": torch.full((3,), 3)}).logits
    scores = without + 2.5 * (with_class - without) + line_noise(pictures.shape, 5)
    assert torch.equal(scores.argmax(-1)[~mask], pictures[~mask])
    assert not torch.equal(sample(model, 3, known=known, sampler=sampler, **options), pictures)


@pytest.mark.parametrize(
    ("class_dropout_prob", "guidance_scale", "message"),
    [
        (0.0, 2.0, "guidance_scale=2.0 needs a model with class_dropout_prob above 0"),
        (0.1, 0.5, "guidance_scale must be at least 1 and finite, got 0.5"),
        (0.1, math.nan, "guidance_scale must be at least 1 and finite, got nan"),
        (0.1, math.inf, "guidance_scale must be at least 1 and finite, got inf"),
        (0.1, sys.float_info.max, "NaN or infinity.*guidance_scale"),
    ],
)
def test_guidance_that_is_impossible(class_dropout_prob, guidance_scale, message):
    model = make_model(num_classes=3, class_dropout_prob=class_dropout_prob)
    with pytest.raises(ValueError, match=message):
        sample(model, guidance_scale=guidance_scale, **conditions(model))


@orders
def test_later_channels_never_change_earlier_ones(channel_order):
    model = make_model(num_channels=3, channel_order=channel_order, vocab_size=11)
    free = sample(model)
    for channel in (1, 2):
        mask = torch.zeros(1, 3, 1, 1, dtype=torch.bool)
        mask[:, channel] = True
        pictures = sample(model, known=((free + 1) % 11, mask))
        assert torch.equal(pictures[:, :channel], free[:, :channel])
        assert channel == 2 or not torch.equal(pictures[:, 2], free[:, 2])


def test_samples_follow_the_probabilities():
    """20,000 pictures of 2 x 2 pixels with two values: each of the 16 as often as log_prob says."""
    model = make_model((2, 2), num_channels=1, vocab_size=2)
    pictures = sample(model, 20_000).flatten(1)
    frequencies = (pictures * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16) / 20_000
    every = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(16, 1, 2, 2)
    with torch.no_grad():
        probabilities = model.log_prob(every).exp()
    deviations = (frequencies - probabilities) / (probabilities * (1 - probabilities) / 20_000).sqrt()
    assert deviations.abs().max() < 4


def test_temperature_and_truncation():
    model = make_model(vocab_size=11)
    greedy = sample(model, temperature=0.0)
    with torch.no_grad():
        logits = model(greedy).logits
    assert torch.equal(logits.argmax(-1), greedy)
    assert torch.equal(sample(model, top_k=1), greedy) and torch.equal(sample(model, top_p=1e-6), greedy)
    assert torch.equal(sample(model, temperature=1e-9), greedy)
    free = sample(model)
    assert not torch.equal(free, greedy)
    assert torch.equal(sample(model, top_k=11), free) and torch.equal(sample(model, top_k=100, top_p=1.0), free)
    for options in ({"top_k": 3}, {"top_p": 0.6, "temperature": 1.5}, {"top_k": 4, "top_p": 0.9}):
        pictures = [sample(model, 20, sampler=sampler, **options) for sampler in EAGER]
        assert all(torch.equal(picture, pictures[0]) for picture in pictures)
        with torch.no_grad():
            ordered = model(pictures[0]).logits / options.get("temperature", 1.0)
        probabilities = ordered.softmax(-1)
        own = probabilities.gather(-1, pictures[0][..., None])
        more_likely = probabilities > own
        assert (more_likely.sum(-1) < options.get("top_k", 11)).all() and more_likely.any()
        if "top_k" not in options:
            assert ((probabilities * more_likely).sum(-1) < options["top_p"]).all()


def peaked(logits):
    """Values of probability 0 among others, and ties, as half precision and new models have."""
    return (logits * 2).round().masked_fill(logits < -1, -math.inf)


@pytest.mark.parametrize("shape", [(1, 2), (7, 11), (3, 257)], ids=str)
def test_truncation_keeps_exactly_the_likeliest_values(shape):
    """Against the rule written out, on logits with many ties, of which the first values are kept."""
    scores = peaked(torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    scores[:, -1] = scores.amax(-1)
    ranked = [sorted(range(shape[1]), key=lambda value: (-row[value], value)) for row in scores.tolist()]
    for top_k in (1, 2, 5, shape[1], 1000):
        expected = torch.full_like(scores, -math.inf)
        for row, values in enumerate(ranked):
            expected[row, values[:top_k]] = scores[row, values[:top_k]]
        assert torch.equal(keep_top_k(scores, top_k), expected)
    for temperature, top_p in itertools.product((5e-324, 0.5, 1.0, sys.float_info.max), (1e-9, 0.3137, 0.7071, 0.9901)):
        expected = torch.full_like(scores, -math.inf)
        for row, values in enumerate(ranked):
            weights = [math.exp((scores[row, value] - scores[row, values[0]]).item() / temperature) for value in values]
            total = 0.0
            for value, weight in zip(values, weights, strict=True):
                if total < top_p * math.fsum(weights):
                    expected[row, value] = scores[row, value]
                total += weight
        assert torch.equal(keep_top_p(scores, top_p, temperature), expected)


@pytest.mark.parametrize("sampler", EAGER)
def test_equally_likely_values(sampler):
    """All logits of a new model are equal: top_k keeps no more than so many, and 1 takes what temperature 0 does."""
    torch.manual_seed(0)
    new = AxialForCausalImageModeling(make_config((3, 5), vocab_size=11))
    greedy = sample(new, 8, temperature=0, sampler=sampler)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"top_k": 7, "top_p": 0.1}):
        assert torch.equal(sample(new, 8, sampler=sampler, **options), greedy)
    assert sample(new, 8, top_k=4, sampler=sampler).unique().tolist() == [0, 1, 2, 3]
    assert sample(new, 8, top_p=0.4, sampler=sampler).unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"guidance_scale": 2.0}], ids=str)
def test_the_smallest_temperature_takes_the_likeliest_value(options):
    model = make_model(vocab_size=11, num_classes=3, class_dropout_prob=0.1)
    options = {**options, **conditions(model)}
    greedy = sample(model, temperature=0, **options)
    for temperature in (1e-12, 1e-45, 1e-307, 1e-308, 5e-324):
        assert torch.equal(sample(model, temperature=temperature, **options), greedy)


def test_an_infinite_temperature_draws_uniformly():
    """All but what has no probability at all, and with top_k the likeliest ones, each as often."""
    model = make_model((7, 8), vocab_size=5, num_channels=1)
    model.head.bias.data[3] = -math.inf
    for options, values in (({}, 4), ({"top_k": 2}, 2), ({"top_p": 0.5}, 3)):  # 2 of 5 hold 0.4, 3 hold 0.6
        model.head.bias.data[3] = -math.inf if not options or "top_k" in options else 0.0
        for temperature in (math.inf, sys.float_info.max):
            pictures = sample(model, 40, temperature=temperature, **options)
            with torch.no_grad():
                ranks = model(pictures).logits.argsort(-1, descending=True).argsort(-1)
            drawn = ranks.gather(-1, pictures[..., None]).flatten().bincount(minlength=5) / pictures.numel()
            assert not drawn[values:].any()
            assert (drawn[:values] - 1 / values).abs().max() < 5 * (0.25 / pictures.numel()) ** 0.5


def test_values_without_probability_are_never_drawn():
    model = make_model(vocab_size=5)
    model.head.bias.data[3] = -math.inf
    for options in ({}, {"temperature": 0.7}, {"temperature": 3.0}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 0}):
        assert 3 not in sample(model, 20, **options).unique()


@pytest.mark.parametrize("sampler", EAGER)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_logits_that_are_not_finite_are_refused(value, sampler):
    """One weight for one class of one picture is enough, whatever is drawn from the logits."""
    model = make_model(vocab_size=11, num_classes=3)
    model.class_embeddings.weight.data[1, 0] = value
    fine = torch.tensor([0, 2])
    sample(model, class_labels=fine, sampler=sampler)
    for options in ({}, {"temperature": 0}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.5}):
        with pytest.raises(ValueError, match="logits hold NaN or infinity"):
            sample(model, class_labels=torch.tensor([0, 1]), sampler=sampler, **options)
    model.head.bias.data[4] = value
    with pytest.raises(ValueError, match="logits hold NaN or infinity"):
        sample(model, class_labels=fine, sampler=sampler)


# One generator for each picture


@pytest.mark.parametrize("sampler", EAGER)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_picture_with_its_own_generator_is_the_same_in_any_batch(guidance_scale, sampler):
    model = make_model((3, 5), vocab_size=11, num_classes=3, class_dropout_prob=0.1, num_condition_channels=1)
    options = conditions(model, num_images=4)
    mask = torch.rand(4, 2, 3, 5, generator=torch.Generator().manual_seed(1)) < 0.2
    values = torch.randint(11, (4, 2, 3, 5), generator=torch.Generator().manual_seed(2))

    def draw(rows):
        generators = [torch.Generator().manual_seed(10 + row) for row in rows]
        own = {name: value[rows] for name, value in options.items()}
        own |= {"known": (values[rows], mask[rows]), "guidance_scale": guidance_scale, "sampler": sampler}
        return model.generate(len(rows), **own, generator=generators), own

    together, _ = draw([0, 1, 2, 3])
    assert not torch.equal(together[0], together[1])
    for rows in ([2], [3, 1], [0, 2, 3]):
        assert torch.equal(draw(rows)[0], together[rows])
    alone, own = draw([1])
    assert torch.equal(model.generate(1, **own, generator=torch.Generator().manual_seed(11)), alone)
    with pytest.raises(ValueError, match="generator lists 1 for num_images=2"):
        model.generate(2, **draw([0, 1])[1], generator=[torch.Generator()])


@pytest.mark.parametrize("given", ["nothing", pytest.param("one generator", marks=pytest.mark.audit), "a list"])
@pytest.mark.parametrize("guidance_scale", [pytest.param(1.0, marks=pytest.mark.audit), 2.0])
def test_pictures_are_the_same_whatever_the_batches(guidance_scale, given, monkeypatch):
    model = make_model((3, 5), vocab_size=11, num_classes=3, class_dropout_prob=0.1, num_condition_channels=1)
    mask = torch.rand(7, 2, 3, 5, generator=torch.Generator().manual_seed(1)) < 0.2
    values = torch.randint(11, (7, 2, 3, 5), generator=torch.Generator().manual_seed(2))
    positions = [torch.rand(7, length, generator=torch.Generator().manual_seed(3)) for length in (3, 5)]
    batch_sizes = []
    fill = type(model)._fill
    monkeypatch.setattr(
        type(model), "_fill", lambda self, part, *rest: (batch_sizes.append(len(part)), fill(self, part, *rest))
    )

    def draw(max_batch_size, position_ids):
        torch.manual_seed(4)
        generators = {
            "nothing": None,
            "one generator": torch.Generator().manual_seed(5),
            "a list": [torch.Generator().manual_seed(row) for row in range(7)],
        }
        return model.generate(
            7,
            **conditions(model, num_images=7),
            known=(values, mask),
            position_ids=position_ids,
            guidance_scale=guidance_scale,
            generator=generators[given],
            max_batch_size=max_batch_size,
        )

    for position_ids in (None, positions, [positions[0][:1], positions[1][0]]):
        whole = draw(7, position_ids)
        assert len({tuple(picture.flatten().tolist()) for picture in whole}) == 7
        assert len(whole[~mask].unique()) > 5  # they were drawn
        for max_batch_size in (1, 3, 100):
            assert torch.equal(draw(max_batch_size, position_ids), whole)
    assert batch_sizes == 3 * [7, *7 * [1], 3, 3, 1, 7]


def test_equal_generators_draw_equal_pictures():
    generators = tuple(torch.Generator().manual_seed(seed) for seed in (3, 4, 3))
    first, second, third = make_model(vocab_size=11).generate(3, generator=generators)
    assert torch.equal(first, third) and not torch.equal(first, second)


# How generate() behaves


@pytest.mark.parametrize("sampler", EAGER)
def test_size_of_known_values_and_condition_counts(sampler):
    model = make_model(num_condition_channels=1, vocab_size=11)
    condition = conditions(model, image_size=(4, 7))["condition"]
    pictures = sample(model, condition=condition, sampler=sampler)
    assert pictures.shape == (2, 2, 4, 7)
    known = (pictures, torch.ones(1, 1, 4, 7, dtype=torch.bool))
    assert torch.equal(sample(model, condition=condition, known=known, sampler=sampler), pictures)
    assert torch.equal(sample(model, condition=condition), pictures)


def test_known_values_and_mask_broadcast_to_each_other():
    mask = torch.zeros(1, 1, 4, 7, dtype=torch.bool)
    mask[..., 2:] = True
    drawn = sample(make_model(vocab_size=11), known=(torch.full((1, 1, 1, 1), 3), mask))
    assert drawn.shape[2:] == (4, 7) and (drawn[..., 2:] == 3).all()


@pytest.mark.parametrize(
    ("native", "values", "mask", "size"),
    [
        ((3, 5), (1, 1), (1, 1), (3, 5)),
        ((3, 5), (1, 7), (1, 1), (3, 7)),
        ((3, 5), (1, 1), (4, 1), (4, 5)),
        ((3, 5), (2, 1), (1, 7), (2, 7)),
        ((1, 5), (1, 2), (1, 2), (1, 2)),
        ((3, 5), (3, 5), (1, 1), (3, 5)),
    ],
    ids=str,
)
def test_known_values_of_length_one_are_broadcast(native, values, mask, size):
    """Along an axis of length 1 one value stands for all cells of the picture; it never makes a picture of one cell."""
    model = make_model(native, vocab_size=11)
    known = (torch.full((1, 1, *values), 3), torch.ones(1, 1, *mask, dtype=torch.bool))
    drawn = sample(model, known=known)
    assert drawn.shape == (2, 2, *size) and (drawn == 3).all()
    model = make_model(native, vocab_size=11, num_condition_channels=1)
    condition = conditions(model, image_size=size)["condition"]
    assert torch.equal(sample(model, known=known, condition=condition), drawn)
    condition = conditions(model, image_size=(6, 6))["condition"]
    if values == mask == (1, 1):
        assert sample(model, known=known, condition=condition).shape == (2, 2, 6, 6)
    else:
        with pytest.raises(ValueError, match="condition must have shape"):
            sample(model, known=known, condition=condition)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint64], ids=str)
def test_integers_of_any_dtype(dtype):
    model = make_model(vocab_size=11, num_classes=3, class_dropout_prob=0.1)
    known = (torch.full((1, 1, 1, 1), 3), torch.arange(5).view(1, 1, 1, 5) < 2)
    options = {"guidance_scale": 2.0, **conditions(model)}
    expected = sample(model, known=known, **options)
    options["class_labels"] = options["class_labels"].to(dtype)
    assert torch.equal(sample(model, known=(known[0].to(dtype), known[1]), **options), expected)


def test_noise_is_drawn_where_the_generator_is(monkeypatch):
    """So that a seed means the same on every device."""
    devices, exponential = [], torch.Tensor.exponential_

    def watched(noise, **options):
        devices.append(noise.device.type)
        return exponential(noise, **options)

    monkeypatch.setattr(torch.Tensor, "exponential_", watched)
    tokens, known = torch.zeros(1, 5, device="meta", dtype=torch.long), torch.zeros(1, 5, dtype=torch.bool)
    for generator in (torch.Generator(), [torch.Generator()], None):
        draw = LineDraws(SamplingOptions(generator=generator), 7, 1)
        assert draw.start_line(tokens, known, ())
        assert draw.noise.device == tokens.device
    assert devices == ["cpu", "cpu", "meta"]


def test_what_is_not_known_is_zero():
    values, mask = torch.tensor([[[5, 6]], [[7, 8]]]), torch.tensor([[[True, False]]])
    known = Known((values, mask), (2, 1, 2), 9, torch.device("cpu"))
    assert known.input_ids.tolist() == [[[5, 0]], [[7, 0]]] and known.mask.tolist() == [[[True, False]]] * 2


def test_options_cannot_be_changed_after_they_were_checked():
    with pytest.raises(FrozenInstanceError):
        SamplingOptions().temperature = -1.0
    with pytest.raises(TypeError):
        SamplingOptions(1.0)  # options have names


@pytest.mark.parametrize("place", range(3))
def test_a_value_drawn_from_no_number_is_noticed_at_the_end_of_its_line(place):
    draw = LineDraws(SamplingOptions(), 7, 1)
    draw.start_line(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool), ())
    for position in range(3):
        logits = torch.full((1, 7), math.nan if position == place else 0.0)
        with pytest.raises(ValueError, match="NaN") if position == 2 else nullcontext():
            draw(position, logits)


def test_without_a_generator_the_global_seed_counts():
    model = make_model()
    torch.manual_seed(1)
    first = model.generate(2)
    torch.manual_seed(1)
    assert torch.equal(model.generate(2), first) and not torch.equal(model.generate(2), first)


def test_dropout_rests_and_modes_come_back():
    model = make_model(hidden_dropout_prob=0.5)
    expected = sample(model)
    model.train()
    model.inner_level.eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(sample(model), expected)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="top_k"):
        sample(model, top_k=0)
    assert [module.training for module in model.modules()] == modes


def test_two_streams_sample_the_same_with_every_sampler():
    model = make_model(reversible=True, num_outer_layers=2, vocab_size=11)
    pictures = [sample(model, sampler=sampler) for sampler in EAGER]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_a_new_model_draws_uniformly():
    torch.manual_seed(0)
    model = AxialForCausalImageModeling(make_config((8, 8), vocab_size=4))
    assert torch.equal(sample(model, 4), line_noise((4, 2, 8, 8), 4).argmax(-1))
    assert not torch.equal(sample(redraw(model), 4), line_noise((4, 2, 8, 8), 4).argmax(-1))


def test_progress(capsys):
    model = make_model()
    sample(model)
    assert "30/30" not in capsys.readouterr().err
    sample(model, 1, show_progress=True)
    assert "30/30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "fast"}, r"one of \['cached', 'compiled', 'naive', 'semi_parallel'\], got 'fast'"),
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"top_k": 2.5}, "top_k must be an integer of at least 1, got 2.5"),
        ({"top_p": 0.0}, "top_p must be greater than 0 and at most 1, got 0.0"),
        ({"top_p": math.nan}, "top_p must be greater than 0 and at most 1, got nan"),
        ({"generator": 3}, "generator must be a torch.Generator or a list of them, got 3"),
        ({"generator": [torch.Generator(), None]}, "generator must be a torch.Generator or a list of them"),
        ({"generator": [torch.Generator()]}, "generator lists 1 for num_images=2: give each its own"),
        ({"generator": []}, "generator lists 0 for num_images=2"),
        ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1, got 0"),
        ({"max_batch_size": 2.0}, "max_batch_size must be an integer of at least 1, got 2.0"),
        ({"generator": [torch.Generator()], "max_batch_size": 1}, "generator lists 1 for num_images=2"),
        ({"known": ([[3]], torch.ones(1, 1, 1, 1) > 0)}, r"known values must be a tensor of integers.*\[\[3\]\]"),
        ({"known": (torch.ones(1, 1, 1, 1) > 0, torch.ones(1, 1, 1, 1) > 0)}, "integers from 0 to 4, got torch.bool"),
        ({"class_labels": torch.tensor([0, 1])}, "num_classes=None"),
        ({"known": (torch.zeros(2, 2, 3, 5).long(), torch.zeros(2, 2, 3, 5))}, "must be boolean"),
        ({"known": (torch.zeros(3, 2, 3, 5).long(), torch.ones(2, 2, 3, 5) > 0)}, r"known input_ids \(3, 2, 3, 5\)"),
        ({"known": (torch.zeros(2, 2, 3, 5).long(), torch.ones(3, 5) > 0)}, r"known mask \(3, 5\) must broadcast"),
        ({"known": (torch.zeros(2, 2, 3, 5), torch.ones(2, 2, 3, 5) > 0)}, "integers from 0 to 4, got torch.float32"),
        ({"known": (torch.zeros(1, 1, 0, 5).long(), torch.ones(1, 1, 0, 5) > 0)}, "at least 1 cell"),
        ({"known": (torch.full((2, 2, 3, 5), 5), torch.ones(2, 2, 3, 5) > 0)}, "from 0 to 4, got 5 to 5"),
    ],
)
def test_impossible_arguments(options, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.generate(**{"num_images": 2, **options})
