"""The autoregressive model: what it may know, what it says, and that its probabilities are probabilities.

Models start with residual branches and logits of about zero, which hides every fault: all tests but those of the start
itself re-draw the weights (`redraw`).
"""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import Trainer, TrainingArguments
from transformers.distributed import DistributedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_axial import OneStream, RebuiltTwoStream, TwoStream
from modeling_axial import modeling_axial_decoder as decoder_file
from modeling_axial.attention import AxialSelfAttention
from modeling_axial.axial_layer import OneAxisLayer
from modeling_axial.configuration_axial_decoder import AxialDecoderConfig
from modeling_axial.grid import neighbourhoods
from modeling_axial.modeling_axial_decoder import AxialForCausalImageModeling
from tests.ranks import gradient_error, held_share, run_on_ranks


def make_config(image_size=(3, 5), **overrides):
    options = {
        "num_channels": 2,
        "vocab_size": 5,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_outer_layers": 1,
        "num_inner_layers": 1,
        "num_exterior_layers": 1,
    }
    return AxialDecoderConfig(image_size=image_size, **{**options, **overrides})


def redraw(model, gain=1.5, head_gain=2.0, seed=1):
    """Draws all matrices anew at `gain / sqrt(inputs)`, and tables at 3 and 1, so that every part shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if name == "token_embeddings.weight":
                parameter.copy_(drawn * 3)
            elif "embeddings" in name:
                parameter.copy_(drawn)
            elif parameter.dim() == 2:
                gains = gain * head_gain if name == "head.weight" else gain
                parameter.copy_(drawn * gains * parameter.shape[1] ** -0.5)
            else:
                parameter.add_(drawn * 0.2)
    return model


def make_model(image_size=(3, 5), dtype=torch.float64, gain=1.5, head_gain=2.0, **overrides):
    return redraw(AxialForCausalImageModeling(make_config(image_size, **overrides)).eval().to(dtype), gain, head_gain)


def make_inputs(config, batch=2, seed=2, dtype=torch.float64, image_size=None):
    generator = torch.Generator().manual_seed(seed)
    image_size = config.image_size if image_size is None else image_size
    inputs = {
        "input_ids": torch.randint(config.vocab_size, (batch, config.num_channels, *image_size), generator=generator)
    }
    if config.num_classes:
        inputs["class_labels"] = torch.randint(config.num_classes, (batch,), generator=generator)
    if config.num_condition_channels:
        shape = (batch, config.num_condition_channels, *image_size)
        inputs["condition"] = torch.randn(shape, generator=generator, dtype=dtype)
    return inputs


def make_position_ids(image_size=(3, 5), batch=2, seed=6):
    """Places in and beyond the native grid, in no order, other ones for each sample."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.rand(batch, length, generator=generator, dtype=torch.float64) * 2 * length - length / 2
        for length in image_size
    )


orders = pytest.mark.parametrize("channel_order", ["slices", "nested"])
variants = pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"channel_order": "nested"},
        {"num_classes": 3, "num_condition_channels": 1},
        {"channel_order": "nested", "num_classes": 3, "num_condition_channels": 2, "num_channels": 3},
        {"num_channels": 1},
        {"reversible": True, "feed_forward": "gated_mlp", "num_outer_layers": 2},
        {"channel_order": "nested", "num_condition_channels": 1, "position_embedding": "rotary+relative"},
        {"attention_window": 1, "num_inner_layers": 2, "position_embedding": "learned+relative"},
    ],
    ids=str,
)
kinds = pytest.mark.parametrize("position_embedding", ["relative", "rotary", "learned+rotary+relative"])


# The start of training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@variants
def test_training_starts_at_the_uniform_distribution(overrides, dtype):
    torch.manual_seed(0)
    config = make_config((7, 11), **{"vocab_size": 256, **overrides})
    model = AxialForCausalImageModeling(config).to(dtype)
    for mode in (model.eval(), model.train()):
        output = mode(**make_inputs(config, dtype=dtype))
        assert abs(output.bits_per_dim.item() - 8) < 1e-6
        assert abs(output.loss.item() - 8 * math.log(2)) < 1e-6
    expected = -8 * math.log(2) * math.prod((config.num_channels, 7, 11))
    torch.testing.assert_close(
        model.log_prob(**make_inputs(config, dtype=dtype)), torch.full((2,), expected, dtype=torch.float64)
    )


def test_start_of_the_weights():
    torch.manual_seed(0)
    options = {"hidden_size": 256, "num_classes": 64, "vocab_size": 64, "position_embedding": "learned+relative"}
    model = AxialForCausalImageModeling(make_config((31, 37), num_attention_heads=8, **options))
    seen = set()
    for name, parameter in model.named_parameters():
        part = name.split(".")[-2]
        if name.endswith("bias"):
            assert not parameter.any()
        elif part in ("o_proj", "fc2"):
            assert 0 < parameter.abs().max() < 1e-10
        elif part == "head":
            assert not parameter.any()
        elif part in ("q_proj", "k_proj", "v_proj", "fc1", "projection"):
            assert 0.8 < parameter.std() * parameter.shape[1] ** 0.5 < 1.1
        elif part in ("token_embeddings", "class_embeddings", "position_embeddings"):
            assert 0.8 < parameter.std() / (5 / 16) < 1.2
        elif name.endswith("positions.0.table"):
            assert 0.8 < parameter.std() / 0.02 < 1.1
        else:
            assert part == "norm" and (parameter == 1).all()
        seen.add(part)
    assert {"o_proj", "fc2", "head", "projection", "class_embeddings", "position_embeddings", "0"} <= seen


def position_tables(**overrides):
    model = AxialForCausalImageModeling(make_config((4, 5), num_channels=3, num_condition_channels=1, **overrides))
    tables = {name: tuple(table.shape) for name, table in model.named_parameters() if "position" in name}
    return tables, {name for name, _ in model.named_parameters()} - set(tables)


def test_tables_of_positions():
    """Of the native grid of the tokens, or of the pixels; learned ones and those of distances where they are named."""
    learned = {f"{part}position_embeddings.axis_{axis}": (4 + axis, 8) for part in ("", "exterior.") for axis in (0, 1)}
    place = "attention.attention.positions"
    distances = {"exterior.stack.blocks.0": 4, "exterior.stack.blocks.1": 5, "inner_level.blocks.0": 5}
    distances |= {"outer_levels.0.blocks.0": 5, "outer_levels.0.blocks.1": 4}
    relative = {f"{block}.{place}.%s.table": (2 * length - 1, 2) for block, length in distances.items()}
    first, second = ({name % index: shape for name, shape in relative.items()} for index in (0, 1))
    expected = {"learned": learned, "none": {}, "rotary": {}, "relative": first}
    expected |= {"learned+relative": learned | first, "rotary+relative": second}
    others = position_tables()[1]
    for position_embedding, tables in expected.items():
        assert position_tables(position_embedding=position_embedding) == (tables, others)
    nested, _ = position_tables(position_embedding="relative", channel_order="nested")
    found = {name.split(".attention")[0]: shape for name, shape in nested.items()}
    assert found["exterior.stack.blocks.0"] == (7, 2) and found["outer_levels.0.blocks.2"] == (5, 2)


# Who knows whom


def dependencies(model, **options):
    """The boolean matrix [logits of, value of]: which logits change, at all, when one value of a picture changes."""
    inputs = make_inputs(model.config, batch=1) | options
    input_ids = inputs.pop("input_ids")
    rows = []
    with torch.no_grad():
        before = model(input_ids, **inputs).logits.flatten(1, -2)[0]
        for number in range(input_ids.numel()):
            changed = input_ids.clone()
            changed.view(-1)[number] = (changed.view(-1)[number] + 1) % model.config.vocab_size
            rows.append((model(changed, **inputs).logits.flatten(1, -2)[0] != before).any(-1))
    return torch.stack(rows, 1)


def strict_raster_order(config):
    count = config.num_channels * math.prod(config.image_size)
    return torch.ones(count, count, dtype=torch.bool).tril(-1)


@orders
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", [(5,), (4, 5), (1, 7), (7, 1), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_logits_depend_on_exactly_what_comes_before(image_size, num_channels, channel_order, gain):
    model = make_model(image_size, num_channels=num_channels, channel_order=channel_order, gain=gain)
    assert torch.equal(dependencies(model), strict_raster_order(model.config))


@orders
def test_four_axes(channel_order):
    model = make_model((3, 2, 2, 3), channel_order=channel_order)
    assert torch.equal(dependencies(model), strict_raster_order(model.config))


@orders
@kinds
def test_dependencies_with_positions_in_the_blocks(position_embedding, channel_order):
    model = make_model((4, 5), channel_order=channel_order, position_embedding=position_embedding)
    assert torch.equal(dependencies(model), strict_raster_order(model.config))
    elsewhere = make_position_ids((4, 5), batch=1)
    assert torch.equal(dependencies(model, position_ids=elsewhere), strict_raster_order(model.config))


@orders
@pytest.mark.parametrize("depths", [(2, 1, 1), (1, 2, 1), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("reversible", [False, True])
def test_dependencies_at_other_depths(depths, reversible, channel_order):
    names = ("num_outer_layers", "num_inner_layers", "num_exterior_layers")
    model = make_model(
        (4, 5), channel_order=channel_order, reversible=reversible, **dict(zip(names, depths, strict=True))
    )
    assert torch.equal(dependencies(model), strict_raster_order(model.config))


def test_dependencies_are_read_from_the_inputs_alone():
    """Class and condition are seen by every logit, whatever the channel order; the picture's own order stays strict."""
    for channel_order in ("slices", "nested"):
        model = make_model((3, 4), channel_order=channel_order, num_classes=2, num_condition_channels=1)
        assert torch.equal(dependencies(model), strict_raster_order(model.config))
        inputs = make_inputs(model.config, batch=1)
        with torch.no_grad():
            before = model(**inputs).logits
            other_class = model(**{**inputs, "class_labels": 1 - inputs["class_labels"]}).logits
            assert (other_class != before).any(-1).all()
            for cell in itertools.product(range(3), range(4)):
                condition = inputs["condition"].clone()
                condition[(0, 0, *cell)] += 1
                assert (model(**{**inputs, "condition": condition}).logits != before).any(-1).all(), cell


@pytest.mark.parametrize("gain", [1.0, 4.0, 20.0])
def test_a_mask_that_is_missing_is_seen(gain):
    """At gain 20 attention weights underflow to zero, so that not all that is allowed shows in one picture."""
    model = make_model((4, 5), gain=gain)
    allowed = strict_raster_order(model.config)
    assert not (dependencies(model) & ~allowed).any()
    causal = {name: module for name, module in model.named_modules() if name.endswith(".core") and module.is_causal}
    assert len(causal) == 2
    for name, module in causal.items():
        module.is_causal = False
        assert (dependencies(model) & ~allowed).any(), name
        module.is_causal = True


def reached_by_rules(height, width, window):
    """[cell, cell before it] of one outer group and one inner block, written out by the rules of their blocks."""

    def back(cell):  # the cells that a causal block reads at most so far back
        return range(max(0, cell - window), cell + 1)

    reached = torch.zeros(height, width, height, width, dtype=torch.bool)
    gathered = torch.zeros_like(reached)  # by the outer level
    for row, column in itertools.product(range(height), range(width)):
        for above in back(row):
            for beside in range(max(0, column - window), min(width, column + window + 1)):
                gathered[row, column, above, beside] = True
    for row, column in itertools.product(range(height), range(width)):
        for left in back(column):
            if left > 0:
                reached[row, column, row, left - 1] = True
            if row > 0:
                reached[row, column] |= gathered[row - 1, left]
    return reached.view(height * width, -1)


@pytest.mark.parametrize("window", [1, 2, 10])
@pytest.mark.parametrize("position_embedding", ["learned", "rotary+relative"])
def test_windows_reach_what_their_rules_say(position_embedding, window):
    options = {"num_channels": 1, "attention_window": window, "position_embedding": position_embedding}
    model = make_model((5, 7), **options)
    expected = reached_by_rules(5, 7, window)
    assert torch.equal(dependencies(model), expected)
    # A window counts cells, wherever they lie.
    assert torch.equal(dependencies(model, position_ids=make_position_ids((5, 7), batch=1)), expected)
    assert not (expected & ~strict_raster_order(model.config)).any()
    assert torch.equal(expected, strict_raster_order(model.config)) == (window == 10)


def test_a_window_over_all_changes_no_number():
    inputs = make_inputs(make_config())
    whole, windowed = (make_model(attention_window=window)(**inputs).logits for window in (None, 7))
    torch.testing.assert_close(windowed, whole, rtol=1e-12, atol=1e-12)


# Probabilities


def log_probs_of_all_pictures(model):
    """Of 2 ** values pictures: 16 where there are 2 x 2 pixels of 1 channel."""
    channels, image_size = model.config.num_channels, model.config.image_size
    count = channels * math.prod(image_size)
    pictures = torch.tensor(list(itertools.product((0, 1), repeat=count))).view(-1, channels, *image_size)
    conditions = {
        name: value.expand(len(pictures), *value.shape[1:])
        for name, value in make_inputs(model.config, batch=1).items()
        if name != "input_ids"
    }
    with torch.no_grad():
        return model.log_prob(pictures, **conditions)


@variants
@pytest.mark.parametrize("gain", [1.0, 4.0, 20.0])
def test_probabilities_of_all_pictures_sum_to_one(overrides, gain):
    image_size = (1, 2) if overrides.get("num_channels") == 3 else (2, 2)
    log_probs = log_probs_of_all_pictures(make_model(image_size, gain=gain, **{**overrides, "vocab_size": 2}))
    assert log_probs.dtype == torch.float64 and log_probs.std() > 0.5  # far from uniform
    assert abs(log_probs.exp().sum().item() - 1) < 1e-12


@orders
@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_probabilities_of_a_model_that_sees_ahead_sum_to_something_else(gain, channel_order):
    # The head keeps its size, or all probability goes to one picture, ahead or not.
    model = make_model((2, 3), gain=gain, head_gain=2 / gain, channel_order=channel_order, vocab_size=2)
    causal = [module for module in model.modules() if getattr(module, "is_causal", False)]
    assert len(causal) == (2 if channel_order == "slices" else 3)
    for module in causal:
        module.is_causal = False
        assert abs(log_probs_of_all_pictures(model).exp().sum().item() - 1) > 1e-6
        module.is_causal = True
    assert abs(log_probs_of_all_pictures(model).exp().sum().item() - 1) < 1e-12


@variants
def test_log_prob_written_out(overrides):
    model = make_model(**overrides)
    inputs = make_inputs(model.config)
    output = model(**inputs)
    assert output.logits.shape == (*inputs["input_ids"].shape, 5)
    log_probs = output.logits.log_softmax(-1)
    expected = torch.zeros(2, dtype=torch.float64)
    for index in itertools.product(*map(range, inputs["input_ids"].shape)):
        expected[index[0]] += log_probs[(*index, inputs["input_ids"][index])].detach()
    torch.testing.assert_close(model.log_prob(**inputs).detach(), expected)
    torch.testing.assert_close(model.train().log_prob(**inputs).detach(), expected)
    count = inputs["input_ids"][0].numel()
    torch.testing.assert_close(output.loss.detach(), -expected.mean() / count)
    torch.testing.assert_close(output.bits_per_dim, -expected.mean() / count / math.log(2))
    assert not output.bits_per_dim.requires_grad and output.loss.requires_grad


def test_training_learns_one_random_channel_of_each_picture():
    model = make_model(num_channels=3)
    inputs = make_inputs(model.config, batch=4)
    with torch.no_grad():
        nats = -model(**inputs).logits.log_softmax(-1).gather(-1, inputs["input_ids"][..., None])[..., 0]
        nats = nats.flatten(2).mean(-1)  # of each picture and channel
        model.train()
        seen = set()
        for seed in range(20):
            torch.manual_seed(seed)
            channel = torch.randint(3, (4,))
            torch.manual_seed(seed)
            output = model(**inputs)
            assert output.logits is None
            torch.testing.assert_close(output.loss, nats[torch.arange(4), channel].mean())
            seen.add(output.loss.item())
    assert len(seen) > 10


@pytest.mark.parametrize("overrides", [{"channel_order": "nested", "num_channels": 3}, {"num_channels": 1}], ids=str)
def test_nothing_is_drawn_where_all_channels_are_learnt(overrides):
    model = make_model(**overrides)
    inputs = make_inputs(model.config)
    state = torch.get_rng_state()
    assert torch.equal(model(**inputs).loss, model.train()(**inputs).loss)
    assert torch.equal(torch.get_rng_state(), state)


@orders
def test_training_hides_some_classes(channel_order):
    model = make_model(num_classes=3, class_dropout_prob=0.25, num_channels=1, channel_order=channel_order)
    inputs = make_inputs(model.config, batch=400)
    seen = []
    model.class_embeddings.register_forward_hook(lambda module, labels, output: seen.append(labels[0]))
    expected = model(**inputs).loss  # evaluation hides none
    torch.testing.assert_close(-model.train().log_prob(**inputs).mean() / 15, expected)
    torch.manual_seed(3)
    loss = model(**inputs).loss
    assert all(torch.equal(labels, inputs["class_labels"]) for labels in seen[:2])
    hidden = seen[2] == 3
    assert torch.equal(seen[2][~hidden], inputs["class_labels"][~hidden])
    assert 0.17 < hidden.double().mean() < 0.33
    torch.testing.assert_close(model.eval()(**inputs | {"class_labels": seen[2]}).loss, loss)
    assert not torch.equal(loss, expected)


def test_evaluation_draws_nothing():
    model = make_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    state = torch.get_rng_state()
    model(**make_inputs(model.config))
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_is_summed_in_full():
    model = make_model(dtype=torch.bfloat16)
    inputs = make_inputs(model.config)
    output = model(**inputs)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    log_probs = output.logits.double().log_softmax(-1).gather(-1, inputs["input_ids"][..., None])
    torch.testing.assert_close(output.loss.double(), -log_probs.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(model.log_prob(**inputs), log_probs.flatten(1).sum(1), rtol=1e-6, atol=0)


def test_values_of_16_bits_in_half_precision():
    """float16 ends at 65,504, before the largest values: the encoder of earlier channels divides them first."""
    options = {"vocab_size": 65_536, "num_channels": 3, "gain": 1.0, "head_gain": 0.5}
    model = make_model(**options)
    inputs = make_inputs(model.config)
    inputs["input_ids"][:, 0] = torch.randint(65_500, 65_536, (2, 3, 5))
    with torch.no_grad():
        expected, expected_loss = model.log_prob(**inputs), model(**inputs).loss
        for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.02)):
            half = make_model(dtype=dtype, **options)
            torch.testing.assert_close(half.log_prob(**inputs), expected, rtol=tolerance, atol=0)
            torch.testing.assert_close(half(**inputs).loss.double(), expected_loss, rtol=tolerance, atol=0)
            assert half.generate(1).max() > 255


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int32, torch.uint64], ids=str)
def test_integers_of_any_dtype(dtype):
    model = make_model(num_classes=127, class_dropout_prob=0.5)
    inputs = make_inputs(model.config)
    others = {name: value.to(dtype) for name, value in inputs.items()}
    assert torch.equal(model(**others).logits, model(**inputs).logits)
    assert torch.equal(model.log_prob(**others), model.log_prob(**inputs))
    wrong = others["input_ids"].clone()
    wrong[1, 1, 2, 4] = 5
    with pytest.raises(ValueError, match="input_ids must be from 0 to 4, got 0 to 5"):
        model(**{**others, "input_ids": wrong})
    model.train()
    losses = []
    for each in (inputs, others):
        torch.manual_seed(4)
        losses.append(model(**each).loss)
    assert torch.equal(*losses)


def test_an_unknown_class_that_the_dtype_of_the_labels_cannot_hold():
    model = make_model(num_classes=256, class_dropout_prob=0.9).train()
    inputs = make_inputs(model.config, batch=20)
    seen = []
    model.class_embeddings.register_forward_hook(lambda module, labels, output: seen.append(labels[0]))
    model(**{**inputs, "class_labels": inputs["class_labels"].to(torch.uint8)})
    assert (seen[0] == 256).any()


def test_sums_are_in_the_widest_dtype_of_the_device():
    for device, dtype in (("mps", torch.float32), ("cuda", torch.float64), ("cpu", torch.float64)):
        assert decoder_file._widest(SimpleNamespace(device=torch.device(device))) == dtype


@orders
def test_everything_is_made_where_the_inputs_are(channel_order):
    model = make_model(num_classes=3, class_dropout_prob=0.5, num_condition_channels=1, channel_order=channel_order)
    inputs = make_inputs(model.config)
    others = {name: value for name, value in inputs.items() if name != "input_ids"}

    def results():
        for seed, training in enumerate((False, True)):
            torch.manual_seed(seed)
            yield model.train(training)(**inputs).loss
        yield model.log_prob(**inputs)
        for sampler in ("naive", "semi_parallel", "cached"):
            yield model.generate(2, sampler=sampler, generator=torch.Generator().manual_seed(4), **others)

    expected = list(results())
    with torch.device("meta"):  # whatever is made without a word of a device is made there
        assert all(map(torch.equal, results(), expected))


def test_a_class_is_hidden_with_exactly_the_probability_of_the_configuration(monkeypatch):
    """Of the 2 ** 24 numbers that torch.rand draws, 0 is one and 1 is none."""
    model = make_model(num_classes=3, class_dropout_prob=0.25).train()
    monkeypatch.setattr(torch, "rand", lambda *args, **options: torch.tensor([0.0, 0.25 - 2**-24, 0.25, 1 - 2**-24]))
    seen = []
    model.class_embeddings.register_forward_hook(lambda module, labels, output: seen.append(labels[0].tolist()))
    model(**{**make_inputs(model.config, batch=4), "class_labels": torch.tensor([0, 1, 2, 0])})
    assert seen == [[3, 3, 2, 0]]


def test_where_no_class_is_hidden_training_draws_nothing():
    model = make_model(num_classes=3, num_channels=1).train()
    state = torch.get_rng_state()
    model(**make_inputs(model.config))
    assert torch.equal(torch.get_rng_state(), state)


# The parts written out


def test_one_channel_written_out():
    """The paper's formulas for one channel: rows and columns, the two shifts, positions added after each."""
    model = make_model((3, 5), num_channels=1, num_outer_layers=2, num_inner_layers=2)
    tokens = make_inputs(model.config)["input_ids"][:, 0]

    def block(module, states):
        states = states + module.attention.attention(module.attention.norm(states))
        return states + module.feed_forward.net(module.feed_forward.norm(states))

    embedded = model.token_embeddings(tokens)
    positions = model.position_embeddings.axis_0[:, None] + model.position_embeddings.axis_1
    (outer,) = model.outer_levels
    assert [(b.attention.attention.axis, b.attention.attention.core.is_causal) for b in outer.blocks] == [
        (1, False),
        (0, True),
    ] * 2
    states = embedded + positions
    for module in outer.blocks:
        states = block(module, states)
    above = torch.zeros_like(states)
    above[:, 1:] = states[:, :-1]
    left = torch.zeros_like(embedded)
    left[:, :, 1:] = embedded[:, :, :-1]
    states = left + above + positions
    for module in model.inner_level.blocks:
        assert (module.attention.attention.axis, module.attention.attention.core.is_causal) == (1, True)
        states = block(module, states)
    expected = model.head(model.norm(states))
    torch.testing.assert_close(model(tokens[:, None]).logits[:, 0], expected, rtol=1e-12, atol=1e-12)


def test_context_written_out():
    """Position, class, and what the exterior encoder makes of condition, earlier channels and number of the channel."""
    model = make_model((3, 4), num_channels=3, num_classes=3, num_condition_channels=2)
    inputs = make_inputs(model.config)
    own_positions, exterior_positions = (
        embeddings.axis_0[:, None] + embeddings.axis_1
        for embeddings in (model.position_embeddings, model.exterior.position_embeddings)
    )
    classes = model.class_embeddings.weight[inputs["class_labels"]][:, None, None]
    for channel in range(3):
        planes = torch.zeros(2, 3, 4, 8, dtype=torch.float64)  # condition, earlier channels, number of the channel
        planes[..., :2] = inputs["condition"].permute(0, 2, 3, 1)
        for earlier in range(channel):
            planes[..., 2 + earlier] = inputs["input_ids"][:, earlier] / 4
        planes[..., 5 + channel] = 1
        encoded = model.exterior.projection(neighbourhoods(planes)) + exterior_positions + classes
        expected = model.exterior.stack(encoded) + own_positions + classes
        found = model.make_context(channel=torch.tensor([channel] * 2), **inputs)
        torch.testing.assert_close(found, expected)
    directions = [
        (b.attention.attention.axis, b.attention.attention.core.is_causal) for b in model.exterior.stack.blocks
    ]
    assert directions == [(0, False), (1, False)]


def test_nested_context_written_out():
    model = make_model((3, 4), channel_order="nested", num_channels=3, num_classes=3)
    inputs = make_inputs(model.config)
    tables = model.position_embeddings
    positions = tables.axis_0[:, None, None] + tables.axis_1[:, None] + tables.axis_2
    classes = model.class_embeddings.weight[inputs["class_labels"]][:, None, None, None]
    found = model.make_context(channel=torch.zeros(2, dtype=torch.long), condition=None, **inputs)
    torch.testing.assert_close(found, positions + classes)


# What each block computes


def recorded(model, inputs, **options):
    """The output of the model with states and maps, and what the blocks gave meanwhile, two streams by their mean."""
    found = []

    def note(block, streams, output):
        found.append((output[1] + output[2]) / 2 if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, OneAxisLayer)]
    output = model(**inputs, output_hidden_states=True, output_attentions=True, **options)
    for hook in hooks:
        hook.remove()
    return output, found


def blocks_of_one_grid(model):
    """(grid, axis, is_causal) of each block in order of execution."""
    stacks = [] if model.exterior is None else [(model.config.image_size, model.exterior.stack)]
    stacks += [(model.config.grid_shape, level) for level in (*model.outer_levels, model.inner_level)]
    cores = [(tuple(grid), block.attention.attention.core) for grid, stack in stacks for block in stack.blocks]
    return [(grid, core.axis, core.is_causal) for grid, core in cores]


@pytest.mark.parametrize("training", [False, True])
@variants
def test_hidden_states_and_attention_maps_of_every_block(overrides, training):
    model = make_model(**{"num_outer_layers": 2, **overrides})
    config = model.config
    inputs = make_inputs(config)
    torch.manual_seed(3)
    plain = model.train(training)(**inputs)
    assert plain.hidden_states is None and plain.attentions is None
    torch.manual_seed(3)
    output, expected = recorded(model, inputs)
    torch.testing.assert_close(output.loss, plain.loss)
    blocks = blocks_of_one_grid(model) * (1 if training else config.num_grids)
    assert len(output.hidden_states) == len(output.attentions) == len(expected) == len(blocks)
    for states, found, weights, (grid, axis, is_causal) in zip(
        output.hidden_states, expected, output.attentions, blocks, strict=True
    ):
        assert states.shape == (2, *grid, config.hidden_size)
        torch.testing.assert_close(states, found)
        length = grid[axis]
        assert weights.shape == (2 * math.prod(grid) // length, config.num_attention_heads, length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert bool(weights.triu(1).any()) == (length > 1 and not is_causal)
    # The last state of each channel is what its logits come from.
    last = model.head(model.norm(output.hidden_states[-1]))
    if not training:
        logits = output.logits.view(2, config.num_grids, *config.grid_shape, config.vocab_size)[:, -1]
        torch.testing.assert_close(last, logits)
    sum(states.square().sum() for states in (*output.hidden_states, *output.attentions)).backward()
    assert model.token_embeddings.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("reversible", [False, True])
def test_states_are_asked_for_as_in_transformers(reversible):
    model = make_model(reversible=reversible)
    inputs = make_inputs(model.config)
    plain, (output, _) = model(**inputs), recorded(model, inputs)
    assert list(plain) == ["loss", "bits_per_dim", "logits"]
    assert list(output) == [*plain, "hidden_states", "attentions"]
    model = make_model(reversible=reversible, output_hidden_states=True, output_attentions=True)
    configured, as_tuple = model(**inputs), model(**inputs, return_dict=False)
    for name in ("hidden_states", "attentions"):
        for ours, expected in zip(configured[name], output[name], strict=True):
            assert torch.equal(ours, expected)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 5
    assert len(model(**inputs, output_hidden_states=False, output_attentions=False)) == 3
    assert torch.equal(model.log_prob(**inputs), make_model(reversible=reversible).log_prob(**inputs))
    model.config.output_hidden_states = model.config.output_attentions = False
    chosen = model(**inputs, output_hidden_states=[1, 4]).hidden_states
    assert [state is None for state in chosen] == [index not in (1, 4) for index in range(len(chosen))]
    model.config.return_dict = False
    assert len(model(**inputs)) == 3


def test_unknown_keywords_are_refused():
    model = make_model()
    inputs = make_inputs(model.config)
    for keyword in ("output_hidden_state", "mask", "pixel_values", "labels", "attention_mask"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
            model(**inputs, **{keyword: inputs["input_ids"]})
    with pytest.raises(TypeError, match="unexpected keyword argument 'output_hidden_state'"):
        model(**inputs, output_hidden_state=None)


# Graphs of open sizes


OPEN = torch.export.Dim.DYNAMIC


def make_causal_layer():
    torch.manual_seed(0)
    return AxialSelfAttention(make_config(), axis=1, is_causal=True).double().eval()


def grids(*shapes):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, 8, generator=generator, dtype=torch.float64) for shape in shapes]


def test_a_causal_layer_exported_and_compiled_with_open_sizes():
    layer = make_causal_layer()
    first, *others = grids((2, 3, 5, 7), (3, 2, 11, 4), (4, 5, 2, 3))
    program = torch.export.export(layer, (first,), dynamic_shapes=({dim: OPEN for dim in range(4)},)).module()
    torch.compiler.reset()
    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend="eager")
    for states in (first, *others):
        for found in (program(states), compiled(states)):
            torch.testing.assert_close(found, layer(states), rtol=1e-12, atol=1e-12)


def compare_open_sizes(model, image_sizes):
    """Exported and compiled with open sizes against eager, in numbers of pictures and pixels along every axis."""
    first, *others = (make_inputs(model.config, batch, image_size=size) for batch, size in enumerate(image_sizes, 2))
    axes = range(2, 2 + len(model.config.image_size))
    shapes = {name: {0: OPEN} | {dim: OPEN for dim in axes if value.dim() > 1} for name, value in first.items()}
    program = torch.export.export(model, (), first, dynamic_shapes=shapes).module()
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="eager")
    with torch.no_grad():
        for inputs in (first, *others):
            expected = model(**inputs)
            for found in (program(**inputs), compiled(**inputs)):
                torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("channel_order", ["slices", pytest.param("nested", marks=pytest.mark.audit)])
def test_exported_and_compiled_with_open_sizes(channel_order):
    compare_open_sizes(make_model((5,), channel_order=channel_order), [(5,), (7,), (3,)])


@pytest.mark.audit
@variants
def test_exported_and_compiled_with_open_sizes_on_two_axes(overrides):
    compare_open_sizes(make_model(**overrides), [(3, 5), (4, 7), (5, 2)])


# Training


def loss_and_gradients(model, inputs):
    model.zero_grad()
    torch.manual_seed(3)
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("channel_order", "position_embedding"),
    [("slices", "learned"), ("nested", "learned"), ("slices", "learned+rotary+relative")],
)
def test_reversible_and_checkpointed_training_gives_the_same_gradients(channel_order, position_embedding):
    for reversible in (False, True):
        model = make_model(
            channel_order=channel_order,
            position_embedding=position_embedding,
            reversible=reversible,
            num_channels=3,  # of 2 the first alone counts, whose causal attention has nothing to choose from
            num_outer_layers=2,
            num_classes=3,
            num_condition_channels=1,
            hidden_dropout_prob=0.2,
        ).train()
        inputs = make_inputs(model.config) | {"position_ids": make_position_ids()}
        stacks = [module for module in model.modules() if hasattr(module, "executor_class")]
        expected_class = RebuiltTwoStream if reversible else OneStream
        assert len(stacks) > 2 and all(stack.executor_class is expected_class for stack in stacks)
        loss, gradients = loss_and_gradients(model, inputs)
        assert all(gradient.any() for name, gradient in gradients.items() if not name.endswith("k_proj.bias"))
        runs = []
        if reversible:
            for stack in stacks:
                stack.executor_class = TwoStream
            runs.append(loss_and_gradients(model, inputs))
            for stack in stacks:
                stack.executor_class = RebuiltTwoStream
        model.gradient_checkpointing_enable()
        runs.append(loss_and_gradients(model, inputs))
        for other_loss, other_gradients in runs:
            torch.testing.assert_close(other_loss, loss)
            for name, gradient in gradients.items():
                torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-9, atol=1e-11)


@orders
@pytest.mark.parametrize("reversible", [False, True])
def test_autocast_keeps_the_streams_in_full(reversible, channel_order):
    model = make_model(
        dtype=torch.float32, reversible=reversible, channel_order=channel_order, num_classes=3, num_condition_channels=1
    ).train()
    inputs = make_inputs(model.config, dtype=torch.float32)
    expected, expected_gradients = loss_and_gradients(model, inputs)
    dtypes = set()
    for stack in (module for module in model.modules() if hasattr(module, "executor_class")):
        for block in stack.blocks:
            block.register_forward_pre_hook(lambda module, streams: dtypes.update(stream.dtype for stream in streams))
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = loss_and_gradients(model, inputs)
    assert dtypes == {torch.float32} and loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    distance, size = (
        math.sqrt(sum(gradient.square().sum().item() for gradient in each))
        for each in (
            [gradients[name] - gradient for name, gradient in expected_gradients.items()],
            expected_gradients.values(),
        )
    )
    assert 0 < distance / size < 0.2


@orders
def test_a_picture_is_learnt_by_heart(channel_order):
    torch.manual_seed(0)
    config = make_config((4, 5), channel_order=channel_order, hidden_size=16)
    model = AxialForCausalImageModeling(config).train()
    inputs = make_inputs(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert model.eval()(**inputs).bits_per_dim < 0.05


# In other tools


def test_embeddings_of_input_and_output():
    model = make_model()
    assert model.get_input_embeddings() is model.token_embeddings and model.get_output_embeddings() is model.head
    model.set_output_embeddings(head := torch.nn.Linear(8, 5).double())
    assert model.head is head
    model.resize_token_embeddings(7, mean_resizing=False)
    inputs = make_inputs(model.config)
    assert model.config.vocab_size == 7 and model(**inputs).logits.shape == (2, 2, 3, 5, 7)
    assert torch.equal(model.head.weight[:5], head.weight)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_adapters_of_peft(task_type, tmp_path):
    model = make_model(dtype=torch.float32, num_classes=3)
    inputs = make_inputs(model.config)
    expected = sample_of(model, inputs)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task_type)
    adapted = peft.get_peft_model(model, lora)
    assert torch.equal(sample_of(adapted, inputs), expected)  # a new adapter changes nothing
    adapted.train()(**inputs).loss.backward()
    gradients = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in gradients)
    assert any(gradient.any() for name, gradient in gradients.items() if "lora_B" in name and gradient is not None)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(1.0)
    adapted.eval().save_pretrained(tmp_path)
    changed = sample_of(adapted, inputs)
    assert not torch.equal(changed, expected)
    fresh = make_model(dtype=torch.float32, num_classes=3)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(sample_of(again, inputs), changed)
    assert len(again(**inputs, output_hidden_states=True).hidden_states) == len(blocks_of_one_grid(model)) * 2


def sample_of(model, inputs):
    return model.generate(2, class_labels=inputs["class_labels"], generator=torch.Generator().manual_seed(5))


def test_trainer(tmp_path):
    """Steps, and the exact loss of evaluation, also where the config asks for states."""
    model = make_model(dtype=torch.float32, output_hidden_states=True)
    input_ids = make_inputs(model.config, batch=4)["input_ids"]
    expected = model(input_ids).loss.item()
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, per_device_eval_batch_size=2, label_names=["input_ids"],
        prediction_loss_only=True, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    dataset = [{"input_ids": picture} for picture in input_ids]
    trainer = Trainer(model, arguments, train_dataset=dataset, eval_dataset=dataset)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(trainer.train().training_loss)
    assert trainer.evaluate()["eval_loss"] != pytest.approx(expected, rel=1e-5)


def split_and_whole(folder):
    """The model, split by its own plan, against the same model whole."""
    generator = torch.Generator().manual_seed(1)
    inputs = {"input_ids": torch.randint(5, (2, 2, 3, 5), generator=generator), "class_labels": torch.tensor([0, 2])}
    load = AxialForCausalImageModeling.from_pretrained
    plain = load(folder, dtype=torch.float64).train()
    split = load(folder, dtype=torch.float64, distributed_config=DistributedConfig(fsdp_size=2)).train()
    losses = []
    for model in (plain, split):
        torch.manual_seed(3)
        losses.append(model(**inputs).loss)
        losses[-1].backward()
    found = {"held": held_share(split), "gradient": gradient_error(split, plain)}
    for name in ("generate", "log_prob"):
        register_fsdp_forward_method(split, name)
    with torch.no_grad():
        log_probs = [model.eval().log_prob(**inputs) for model in (plain, split)]
    drawn = [
        model.generate(2, class_labels=inputs["class_labels"], generator=torch.Generator().manual_seed(4))
        for model in (plain, split)
    ]
    return found | {
        "split": [name for name, module in split.named_modules() if isinstance(module, FSDPModule)],
        "loss": abs(losses[0].item() - losses[1].item()),
        "log_prob": (log_probs[0] - log_probs[1]).abs().max().item(),
        "drawn": torch.equal(*drawn),
    }


def all_split_and_whole(folder):
    return {channel_order: split_and_whole(Path(folder, channel_order)) for channel_order in ("slices", "nested")}


@pytest.mark.audit
@pytest.mark.distributed
def test_blocks_split_over_two_ranks(tmp_path):
    """FSDP by the model's own plan: its blocks are split, and it learns, scores and draws as the whole model does."""
    for channel_order in ("slices", "nested"):
        model = make_model(channel_order=channel_order, reversible=channel_order == "nested", num_classes=3)
        model.save_pretrained(tmp_path / channel_order)
    for rank, channel_order in itertools.product(run_on_ranks(all_split_and_whole, tmp_path), ("slices", "nested")):
        found = rank[channel_order]
        model = AxialForCausalImageModeling.from_pretrained(tmp_path / channel_order)
        blocks = {name for name, module in model.named_modules() if isinstance(module, OneAxisLayer)}
        assert set(found["split"]) == blocks | {"", "token_embeddings", "norm", "head"}
        assert found["held"] == pytest.approx(0.5, abs=0.02)
        assert found["loss"] < 1e-12 and found["gradient"] < 1e-12 and found["log_prob"] < 1e-9 and found["drawn"]


# Cells that lie elsewhere


@variants
def test_cells_where_they_are_by_default_change_nothing(overrides):
    model = make_model(**overrides)
    inputs = make_inputs(model.config)
    counted = [torch.arange(3), torch.arange(5.0)]
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs, position_ids=counted).logits, model(**inputs).logits, rtol=1e-12, atol=1e-12
        )


@variants
def test_each_sample_has_its_own_places(overrides):
    model = make_model(**overrides)
    inputs, elsewhere = make_inputs(model.config), make_position_ids()
    with torch.no_grad():
        together = model(**inputs, position_ids=elsewhere).logits
        assert (together != model(**inputs).logits).any()
        torch.testing.assert_close(
            model.log_prob(**inputs, position_ids=elsewhere),
            together.log_softmax(-1).gather(-1, inputs["input_ids"][..., None]).flatten(1).sum(1),
        )
        for number in range(2):
            alone = {name: value[number : number + 1] for name, value in inputs.items()}
            places = [positions[number] for positions in elsewhere]
            found = model(**alone, position_ids=places).logits
            torch.testing.assert_close(found, together[number : number + 1], rtol=1e-12, atol=1e-12)


@orders
@pytest.mark.parametrize("window", [None, 1])
def test_distances_alone_count_in_the_blocks(window, channel_order):
    options = {"position_embedding": "rotary+relative", "num_condition_channels": 1, "attention_window": window}
    model = make_model(channel_order=channel_order, **options)
    inputs, elsewhere = make_inputs(model.config), make_position_ids()
    with torch.no_grad():
        logits = model(**inputs, position_ids=elsewhere).logits
        moved = model(**inputs, position_ids=[positions + 11.5 for positions in elsewhere]).logits
        torch.testing.assert_close(moved, logits, rtol=1e-10, atol=1e-10)
        for axis in range(2):
            stretched = [positions * (1.5 if each == axis else 1) for each, positions in enumerate(elsewhere)]
            assert (model(**inputs, position_ids=stretched).logits - logits).abs().max() > 1e-3, axis


@orders
def test_a_tile_has_the_rows_of_its_place_in_the_tables(channel_order):
    overrides = {"channel_order": channel_order, "num_condition_channels": 1}
    model, smaller = make_model((7, 11), **overrides), make_model((3, 5), **overrides)
    weights = {}
    for name, weight in model.state_dict().items():
        native = smaller.state_dict()[name].shape
        first = 2 if weight.shape[0] == 7 else 4  # of the rows, and of the columns
        weights[name] = weight if weight.shape == native else weight[first : first + native[0]]
    smaller.load_state_dict(weights)
    inputs, tile = make_inputs(smaller.config), [torch.arange(2, 5), torch.arange(4, 9)]
    with torch.no_grad():
        found, expected = model(**inputs, position_ids=tile).logits, smaller(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert (model(**inputs).logits - expected).abs().max() > 1e-3


# Other sizes, wrong inputs


@variants
def test_other_sizes_than_the_native_one(overrides):
    model = make_model((3, 5), **overrides)
    inputs = make_inputs(model.config, image_size=(4, 7))
    assert model(**inputs).logits.shape == (2, model.config.num_channels, 4, 7, 5)
    assert model.log_prob(**inputs).shape == (2,)


@variants
def test_no_pictures_have_no_probabilities(overrides):
    model = make_model(**overrides)
    nothing = make_inputs(model.config, batch=0)
    assert model(**nothing).logits.shape == (0, model.config.num_channels, 3, 5, 5)
    assert model.log_prob(**nothing).shape == (0,)


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        ({}, {"input_ids": torch.zeros(2, 3, 3, 5, dtype=torch.long)}, r"2 channels.*got \(2, 3, 3, 5\)"),
        ({}, {"input_ids": torch.zeros(2, 2, 15, dtype=torch.long)}, r"2 axes.*got \(2, 2, 15\)"),
        ({}, {"input_ids": torch.zeros(2, 2, 3, 0).long()}, r"at least 1 cell along each axis, got .*\(2, 2, 3, 0\)"),
        ({}, {"input_ids": torch.zeros(2, 2, 3, 5)}, "integers from 0 to 4, got torch.float32"),
        ({}, {"input_ids": torch.full((2, 2, 3, 5), 5)}, "input_ids must be from 0 to 4, got 5 to 5"),
        ({}, {"input_ids": -torch.eye(5)[:3].expand(2, 2, 3, 5).long()}, "input_ids must be from 0 to 4, got -1 to 0"),
        ({}, {"class_labels": torch.tensor([0, 1])}, "num_classes=None"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([0, 3])}, "class_labels must be from 0 to 2, got 0 to 3"),
        (
            {"num_classes": 3, "class_dropout_prob": 0.1},
            {"class_labels": torch.tensor([3, 4])},
            "class_labels must be from 0 to 3, got 3 to 4",
        ),
        ({"num_classes": 3}, {"class_labels": None}, "num_classes=3, class_labels=None"),
        ({"num_classes": 3}, {"class_labels": 1}, "class_labels must be a tensor of integers from 0 to 2, got 1"),
        ({"num_classes": 3}, {"class_labels": [0, 1]}, r"class_labels must be a tensor of integers.*got \[0, 1\]"),
        (
            {"num_classes": 3},
            {"class_labels": torch.tensor([0.0, 1.0])},
            "class_labels must be integers.*torch.float32",
        ),
        (
            {"num_classes": 3},
            {"class_labels": torch.tensor([True, False])},
            "class_labels must be integers.*torch.bool",
        ),
        (
            {},
            {"input_ids": torch.zeros(2, 2, 3, 5, dtype=torch.complex64)},
            "integers from 0 to 4, got torch.complex64",
        ),
        ({}, {"input_ids": [[[[0]]]]}, "input_ids must be a tensor of integers from 0 to 4"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([1])}, r"shape \(2,\), got \(1,\)"),
        ({}, {"condition": torch.zeros(2, 1, 3, 5)}, "num_condition_channels=0, condition is given"),
        ({"num_condition_channels": 1}, {"condition": None}, "num_condition_channels=1, condition is not given"),
        ({"num_condition_channels": 1}, {"condition": torch.zeros(2, 1, 5, 3)}, r"\(2, 1, 3, 5\), got \(2, 1, 5, 3\)"),
        ({}, {"position_ids": torch.zeros(3)}, "position_ids must be a sequence of one tensor for each of the 2 axes"),
        ({"channel_order": "nested"}, {"position_ids": [torch.zeros(n) for n in (2, 3, 5)]}, "2 axes.* got list of 3"),
        ({}, {"position_ids": [torch.zeros(3), torch.zeros(2, 3)]}, r"axis 1 must have shape \(5,\) or \(2, 5\)"),
        ({}, {"position_ids": [torch.zeros(3), torch.full((5,), math.nan)]}, "of axis 1 must be finite"),
    ],
)
def test_inputs_that_do_not_fit(overrides, changes, message):
    model = make_model(**overrides)
    inputs = {**make_inputs(model.config), **changes}
    for method in (model, model.log_prob):
        with pytest.raises(ValueError, match=message):
            method(**inputs)


# Remote code

LOAD = """
import sys
import torch
import transformers
from safetensors.torch import load_file

folder, tensors, auto_class, *again = sys.argv[1:]
tensors = load_file(tensors)
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
inputs = {name: tensors[name] for name in ("class_labels", "condition")}
with torch.no_grad():
    assert torch.equal(model(tensors["input_ids"], **inputs).logits, tensors["logits"])
for sampler in ("cached", "naive", "semi_parallel"):
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(model.generate(2, **inputs, generator=generator, sampler=sampler), tensors["samples"])
for folder in again:
    model.save_pretrained(folder)
print("equal")
"""


@pytest.mark.audit
def test_checkpoint_opens_where_the_package_is_not_installed(run_python, tmp_path):
    options = {"num_classes": 3, "num_condition_channels": 1, "position_embedding": "learned+rotary+relative"}
    config = make_config((3, 4), num_channels=3, reversible=True, **options)
    model = redraw(AxialForCausalImageModeling(config).eval())
    model.register_for_auto_class("AutoModelForCausalLM")
    AxialDecoderConfig.register_for_auto_class()
    inputs = make_inputs(config, dtype=torch.float32)
    with torch.no_grad():
        tensors = {**inputs, "logits": model(**inputs).logits}
    del inputs["input_ids"]
    tensors["samples"] = model.generate(2, **inputs, generator=torch.Generator().manual_seed(5))
    save_file(tensors, tmp_path / "tensors.safetensors")
    model.save_pretrained(tmp_path / "saved")
    folder = (tmp_path / "saved").rename(tmp_path / "first")

    closed_set = {
        Path(path).name for path in {decoder_file.__file__, *get_relative_import_files(decoder_file.__file__)}
    }
    assert {"modeling_axial_decoder.py", "configuration_axial_decoder.py", "sampling.py", "attention.py"} <= closed_set
    assert not closed_set & {"modeling_axial.py", "modeling_axial_heads.py", "image_processing_axial.py"}
    loads = [("first", "AutoModelForCausalLM", "second"), ("second", "AutoModel", "third")]
    for name, auto_class, again in loads:
        arguments = (tmp_path / name, tmp_path / "tensors.safetensors", auto_class, tmp_path / again)
        assert "equal" in run_python(LOAD, *arguments).stdout
    for folder in (tmp_path / name for name in ("first", "second", "third")):
        assert {path.name for path in folder.glob("*.py")} == closed_set
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert auto_map == AxialForCausalImageModeling.code_auto_map


@orders
def test_weights_offloaded_to_disk(channel_order, tmp_path):
    model = make_model(channel_order=channel_order)
    inputs = make_inputs(model.config)
    model.save_pretrained(tmp_path)
    # All but the last norm: Accelerate before 1.15 wants some part to stay.
    device_map = {name: "cpu" if name == "norm" else "disk" for name, _ in model.named_children()}
    offloaded = AxialForCausalImageModeling.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    stayed = {name for name, parameter in offloaded.named_parameters() if parameter.device.type != "meta"}
    assert stayed == {"norm.weight", "norm.bias"}
    torch.testing.assert_close(offloaded(**inputs).logits, model(**inputs).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("position_embedding", ["learned", "rotary+relative"])
def test_saved_and_loaded_with_the_package(position_embedding, tmp_path):
    model = make_model(dtype=torch.float32, position_embedding=position_embedding)
    model.save_pretrained(tmp_path)
    again = AxialForCausalImageModeling.from_pretrained(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
