import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_axial import AxialModel
from modeling_axial import attention as attention_module
from modeling_axial.attention import (
    AxialAttentionCore,
    AxialAttentionProjections,
    AxialCrossAttention,
    AxialSelfAttention,
    axial_attention,
)
from modeling_axial.attention_interfaces import eager_attention_forward, fused_attention_forward
from modeling_axial.axial_layer import ATTENTION_CLASSES
from modeling_axial.configuration_axial import AxialConfig
from modeling_axial.layer_context import LayerContext
from modeling_axial.position_embeddings import AxisCells, prepare_line
from modeling_axial.testing import receptive_field
from tests.reference import reference_axial_attention


def plain_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, is_causal=False, **kwargs):
    """Somebody else's interface: it folds lines into the batch, and a query without any key gives NaN."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if is_causal:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros(attention_mask.shape, dtype=query.dtype).masked_fill(~attention_mask, -torch.inf)
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


BACKENDS = {"sdpa": None, "eager": eager_attention_forward}
ALL_BACKENDS = {**BACKENDS, "another": plain_attention}
PRIME_GRIDS = [(7,), (5, 3), (2, 5, 3), (3, 2, 5, 7), (2, 3, 2, 5, 3)]


def states(*shape, spread=1.0, seed=0, dtype=torch.float64):
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def attention_cases(draw):
    num_axes = draw(st.integers(1, 4))
    longest = (9, 9, 5, 3)[num_axes - 1]
    grid = draw(st.lists(st.integers(1, longest), min_size=num_axes, max_size=num_axes))
    axis = draw(st.integers(0, num_axes - 1))
    key_grid = list(grid)
    is_causal = draw(st.booleans())
    if not is_causal:
        key_grid[axis] = draw(st.integers(1, longest))
    return {
        "batch": draw(st.integers(0, 2)),
        "grid": grid,
        "key_grid": key_grid,
        "axis": axis,
        "heads": draw(st.integers(1, 3)),
        "head_dim": draw(st.integers(1, 5)),
        "value_dim": draw(st.integers(1, 5)),
        "is_causal": is_causal,
        "masked": draw(st.sampled_from(["no", "full", "shared by batch", "some lines fully masked"])),
        "layout": draw(st.sampled_from(["contiguous", "heads first", "expanded batch", "strided"])),
        "spread": draw(st.sampled_from([0.1, 1.0, 10.0])),
        "scaling": draw(st.sampled_from([None, 0.3])),
        "backend": draw(st.sampled_from(sorted(BACKENDS))),
        "seed": draw(st.integers(0, 2**16)),
    }


def with_layout(tensor, layout):
    """The same numbers in another memory layout."""
    if layout == "heads first":
        return tensor.movedim(-2, 1).contiguous().movedim(1, -2)
    if layout == "strided":
        return tensor.repeat_interleave(2, dim=1)[:, ::2]
    if layout == "expanded batch" and len(tensor):
        return tensor[:1].expand_as(tensor)
    return tensor


@settings(max_examples=400)
@given(attention_cases())
def test_attention_equals_the_slow_reference(case):
    def draw(grid, width, salt):
        shape = (case["batch"], *grid, case["heads"], width)
        return with_layout(states(*shape, spread=case["spread"], seed=case["seed"] + salt), case["layout"])

    query = draw(case["grid"], case["head_dim"], 1)
    key = draw(case["key_grid"], case["head_dim"], 2)
    value = draw(case["key_grid"], case["value_dim"], 3)
    mask = None
    if case["masked"] != "no":
        mask = states(case["batch"], *case["key_grid"], seed=case["seed"]) > -0.3
        if case["masked"] == "shared by batch":
            mask = mask[:1] if case["batch"] else mask
        if case["masked"] == "some lines fully masked":
            mask = mask & (states(case["batch"], *case["key_grid"], seed=1) > 0).all(case["axis"] + 1, keepdim=True)
    options = {"mask": mask, "is_causal": case["is_causal"], "scaling": case["scaling"]}

    output, weights = axial_attention(
        query, key, value, case["axis"], attention_interface=BACKENDS[case["backend"]], **options
    )

    expected, expected_weights = reference_axial_attention(query, key, value, case["axis"], **options)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    if case["backend"] == "eager":
        lines = expected_weights.reshape(weights.shape)
        torch.testing.assert_close(weights, lines, rtol=1e-12, atol=1e-12)
    else:
        assert weights is None


@st.composite
def pair_cases(draw):
    num_axes = draw(st.integers(1, 4))
    lengths = st.sampled_from([1, 2, 3, 5] if num_axes < 3 else [1, 2, 3])
    grid = draw(st.lists(lengths, min_size=num_axes, max_size=num_axes))
    axis = draw(st.integers(0, num_axes - 1))
    is_causal = draw(st.booleans())
    # Which dims of (heads, queries, keys) or (batch, heads, queries, keys) do not broadcast.
    whole = st.one_of(*(st.lists(st.booleans(), min_size=rank, max_size=rank) for rank in (3, 4)))
    bias, pair_mask = draw(st.tuples(whole | st.none(), whole | st.none()).filter(any))
    return {
        "batch": draw(st.sampled_from([2, 1, 0])),
        "grid": grid,
        "axis": axis,
        "key_length": grid[axis] if is_causal else draw(st.sampled_from([1, 2, 3, 5])),
        "heads": draw(st.integers(1, 3)),
        "is_causal": is_causal,
        "bias": bias,
        "pair_mask": pair_mask,
        "masked": draw(st.booleans()),
        "learned": draw(st.sampled_from(["all", "states only", "bias only"] if bias else ["states only"])),
        "backend": draw(st.sampled_from(sorted(ALL_BACKENDS))),
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(max_examples=150)
@given(pair_cases())
def test_biases_and_masks_of_pairs_equal_the_slow_reference(case):
    def draw(*shape, salt):
        return states(*shape, seed=case["seed"] + salt)

    def draw_pairs(whole, salt):
        sizes = (case["batch"], case["heads"], case["grid"][case["axis"]], case["key_length"])[-len(whole) :]
        return draw(*(size if own else 1 for size, own in zip(sizes, whole, strict=True)), salt=salt)

    key_grid = list(case["grid"])
    key_grid[case["axis"]] = case["key_length"]
    inputs = [draw(case["batch"], *grid, case["heads"], 3, salt=n) for n, grid in enumerate((case["grid"], key_grid))]
    inputs.append(draw(case["batch"], *key_grid, case["heads"], 2, salt=2))
    options = {"is_causal": case["is_causal"]}
    if case["masked"]:
        options["mask"] = draw(case["batch"], *key_grid, salt=3) > -0.5
    if case["pair_mask"]:
        options["pair_mask"] = draw_pairs(case["pair_mask"], 4) > -0.5
    if case["bias"]:
        options["bias"] = draw_pairs(case["bias"], 5)
    learned = (inputs if case["learned"] != "bias only" else []) + (
        [options["bias"]] if case["learned"] != "states only" else []
    )
    for tensor in learned:
        tensor.requires_grad_()

    assert_equal_to_the_reference(inputs, case["axis"], case["backend"], learned, **options)


@pytest.mark.parametrize("backend", sorted(ALL_BACKENDS))
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_biases_and_masks_of_pairs_on_every_axis(axis, is_causal, backend):
    grid = (2, 5, 3)
    length = grid[axis]
    inputs = [states(2, *grid, 2, 3, seed=seed).requires_grad_() for seed in range(3)]
    biases = states(2, length, length, seed=3).requires_grad_(), states(2, 2, length, length, seed=4).requires_grad_()
    pair_masks = states(2, length, length, seed=5) > -0.5, states(2, 1, length, length, seed=6) > -0.5
    mask = states(2, *grid, seed=7) > -0.5
    for options in (
        {"bias": biases[0]},
        {"bias": biases[1]},
        {"bias": biases[0], "mask": mask},
        {"pair_mask": pair_masks[0]},
        {"pair_mask": pair_masks[1], "mask": mask},
        {"bias": biases[1], "pair_mask": pair_masks[0], "mask": mask},
    ):
        learned = inputs + ([options["bias"]] if "bias" in options else [])
        assert_equal_to_the_reference(inputs, axis, backend, learned, is_causal=is_causal, **options)


def assert_equal_to_the_reference(inputs, axis, backend, learned, **options):
    """Outputs, weights where there are any, and the gradients of what is learned."""
    output, weights = axial_attention(*inputs, axis, attention_interface=ALL_BACKENDS[backend], **options)
    expected, expected_weights = reference_axial_attention(*inputs, axis, **options)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    if backend == "sdpa":
        assert weights is None
    else:
        torch.testing.assert_close(weights, expected_weights.reshape(weights.shape), rtol=1e-12, atol=1e-12)
    if expected.requires_grad:  # there was some key to read
        ours, theirs = (
            torch.autograd.grad(result.sin().sum(), learned, materialize_grads=True) for result in (output, expected)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_by_default_attention_is_whole_and_scaled_by_the_root_of_the_width(backend):
    query, key, value = (states(2, 3, 5, 2, 4, seed=seed) for seed in range(3))
    for axis in (0, 1):
        output, _ = axial_attention(query, key, value, axis, attention_interface=BACKENDS[backend])
        expected, _ = reference_axial_attention(query, key, value, axis, scaling=0.5)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("planted", ["transposed axis", "missing scale"])
def test_the_reference_catches(planted):
    query, key, value = (states(2, 3, 5, 2, 4, seed=seed) for seed in range(3))
    expected, _ = reference_axial_attention(query, key, value, axis=0)
    wrong = axial_attention(
        query, key, value, 1 if planted == "transposed axis" else 0, scaling=1.0 if planted == "missing scale" else None
    )[0]
    assert (wrong - expected).abs().max() > 1e-2


def test_one_axis_equals_torch_multihead_attention():
    config = AxialConfig(image_size=[11], patch_size=[1], hidden_size=12, num_attention_heads=3)
    ours = AxialSelfAttention(config, axis=0).double()
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
        theirs.out_proj.bias.copy_(ours.o_proj.bias)
    hidden_states, keep = states(2, 11, 12), states(2, 11, seed=5) > -0.5
    expected, _ = theirs(hidden_states, hidden_states, hidden_states, key_padding_mask=~keep)
    torch.testing.assert_close(ours(hidden_states, LayerContext(mask=keep)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("grid", PRIME_GRIDS[:4], ids=str)
def test_gradcheck(grid, backend):
    grid = grid if len(grid) < 4 else (2, 1, 2, 3)
    for axis in range(len(grid)):
        inputs = [states(2, *grid, 2, 3, seed=seed).requires_grad_() for seed in range(3)]
        mask = states(2, *grid, seed=4) > 0  # includes lines without any key
        torch.autograd.gradcheck(
            lambda q, k, v, axis=axis, mask=mask: axial_attention(
                q, k, v, axis, mask=mask, attention_interface=BACKENDS[backend]
            )[0],
            inputs,
        )


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_fully_masked_line_gives_zeros_and_finite_gradients(backend):
    query, key, value = (states(1, 3, 5, 2, 4, seed=seed).requires_grad_() for seed in range(3))
    mask = torch.ones(1, 3, 5, dtype=torch.bool)
    mask[0, :, 2] = False  # the whole line of column 2 along axis 0
    output, weights = axial_attention(query, key, value, 0, mask=mask, attention_interface=BACKENDS[backend])
    assert (output[:, :, 2] == 0).all() and (output[:, :, 1] != 0).all()
    assert weights is None or (weights[2] == 0).all()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))


@pytest.mark.parametrize("by", ["mask", "pair_mask", "both", "is_causal"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("backend", sorted(ALL_BACKENDS))
def test_a_query_that_may_read_no_key_gives_zeros_and_finite_gradients(backend, biased, by):
    inputs = [states(2, 5, 3, 2, 4, seed=seed).requires_grad_() for seed in range(3)]
    first, options = torch.arange(5) < 2, {"pair_mask": torch.ones(2, 5, 5, dtype=torch.bool)}
    without_key = torch.zeros(2, 5, 3, 2, dtype=torch.bool)
    if by == "mask":
        options["mask"] = torch.ones(2, 5, 3, dtype=torch.bool)
        options["mask"][1, :, 2] = False
        without_key[1, :, 2] = True
    else:
        # The second head of query 1 may read the first two keys, if at all, and that of query 0 the others.
        options["pair_mask"][1, :2] = False
        options["pair_mask"][1, 1] = first
        options["pair_mask"][1, 0] = ~first
        if by == "both":
            options["mask"] = ~first[:, None]
            without_key[:, 1, :, 1] = True
        elif by == "is_causal":
            options["is_causal"] = True
            without_key[:, 0, :, 1] = True
        else:
            options["pair_mask"][1, 1] = False
            without_key[:, 1, :, 1] = True
    if biased:
        options["bias"] = states(2, 5, 5, seed=3).requires_grad_()
        inputs.append(options["bias"])
    output, weights = axial_attention(*inputs[:3], 0, attention_interface=ALL_BACKENDS[backend], **options)
    assert (output[without_key] == 0).all() and (output[~without_key] != 0).all()
    assert weights is None or ((weights.sum(-1) - 1).abs() < 1e-12).sum() == (~without_key).sum()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sin().sum(), inputs))


@pytest.mark.parametrize("content", [torch.nan, torch.inf, -torch.inf, 1e300])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_what_stands_in_masked_cells_has_no_effect(backend, axis, is_causal, content):
    mask = states(2, 5, 3, 7, seed=4) > -0.3
    mask[0, 2] = False  # whole lines
    results = []
    for filled in (0.0, content):
        inputs = [states(2, 5, 3, 7, 2, 4, seed=seed).masked_fill(~mask[..., None, None], filled) for seed in range(3)]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        output, weights = axial_attention(
            *inputs, axis, mask=mask, is_causal=is_causal, attention_interface=BACKENDS[backend]
        )
        gradients = torch.autograd.grad(output[mask].sin().sum(), inputs)
        results.append([output[mask], *gradients])
    expected, _ = reference_axial_attention(*(tensor.detach() for tensor in inputs), axis, mask, is_causal)
    torch.testing.assert_close(results[1][0], expected[mask], rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, *results)) and all(tensor[~mask].abs().sum() == 0 for tensor in results[1][1:])


@pytest.mark.parametrize("content", [torch.nan, torch.inf, -torch.inf, 1e300])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("backend", sorted(ALL_BACKENDS))
def test_neither_has_the_bias_of_pairs_that_are_masked(backend, axis, is_causal, content):
    mask, length = states(2, 5, 3, seed=4) > -0.3, (5, 3)[axis]
    mask[:, (0, 1)[axis]] = False  # a key that nobody reads
    pair_mask = states(2, length, length, seed=5) > -0.3
    pair_mask[1, 1] = False
    used = (pair_mask & torch.ones(length, length, dtype=torch.bool).tril()) if is_causal else pair_mask.clone()
    if axis == 0:
        used[..., 0] = False
    options, results = {"mask": mask, "pair_mask": pair_mask, "is_causal": is_causal}, []
    for filled in (0.0, content):
        inputs = [states(2, 5, 3, 2, 4, seed=seed).masked_fill(~mask[..., None, None], filled) for seed in range(3)]
        inputs.append(states(2, length, length, seed=6).masked_fill(~used, filled))
        *inputs, bias = (tensor.requires_grad_() for tensor in inputs)
        output, _ = axial_attention(*inputs, axis, bias=bias, attention_interface=ALL_BACKENDS[backend], **options)
        results.append([output[mask], *torch.autograd.grad(output[mask].sin().sum(), [*inputs, bias])])
    expected, _ = reference_axial_attention(*inputs, axis, bias=bias, **options)
    torch.testing.assert_close(results[1][0], expected[mask], rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, *results)) and (results[1][-1][~used] == 0).all()


def test_a_query_that_is_no_number_gives_none_unless_its_own_cell_is_masked():
    query, key, mask = states(1, 3, 2, 4), states(1, 5, 2, 4, seed=1), torch.ones(1, 5, dtype=torch.bool)
    query[0, 1] = torch.nan
    mask[0, 1] = False  # a key of another grid
    output, _ = axial_attention(query, key, key, 0, mask=mask)
    assert output[0, 1].isnan().all() and output[0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_query_that_is_no_number_in_a_masked_cell_counts_as_zeros(backend):
    query, key, value = (states(2, 5, 3, 2, 4, seed=seed) for seed in range(3))
    mask = states(2, 5, 3, seed=3) > -0.5
    filled = (query.masked_fill(~mask[..., None, None], content) for content in (0.0, torch.nan))
    zeros, ours = (
        axial_attention(content, key, value, 1, mask=mask, attention_interface=BACKENDS[backend])[0]
        for content in filled
    )
    assert torch.equal(ours, zeros)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scaling": 3.0}, {"dropout": 1.0}], ids=str)
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_every_piece_is_attended_alike(monkeypatch, backend, options):
    query, key, value = (states(3, 5, 2, 2, 3, seed=seed) for seed in range(3))
    options = {**options, "attention_interface": BACKENDS[backend]}
    whole = axial_attention(query, key, value, 1, **options)
    monkeypatch.setattr(attention_module, "MAX_LINES", 2)
    for ours, theirs in zip(axial_attention(query, key, value, 1, **options), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_more_lines_than_a_kernel_takes_are_split(monkeypatch, axis, masked, backend):
    query, key, value = (states(3, 5, 2, 7, 2, 3, seed=seed) for seed in range(3))
    mask = states(3, 5, 2, 7, seed=4) > -0.5 if masked else None
    options = {"mask": mask, "attention_interface": BACKENDS[backend]}
    whole = axial_attention(query, key, value, axis, **options)
    monkeypatch.setattr(attention_module, "MAX_LINES", 4)
    calls = []
    real = attention_module._attend_in_pieces

    def recording(interface, module, query, *args, **kwargs):
        calls.append(query.shape[:2])
        return real(interface, module, query, *args, **kwargs)

    monkeypatch.setattr(attention_module, "_attend_in_pieces", recording)
    split = axial_attention(query, key, value, axis, **options)
    assert sum(max(shape) <= 4 for shape in calls) > 1, "nothing was split"
    for ours, theirs in zip(split, whole, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("batch", "heads"), [(5, 2), (1, 20), (7, 9), (30, 1)])
@pytest.mark.parametrize(
    ("length", "head_dim", "lines"), [(3, 4, 8), (128, 32, 8), (129, 32, 4), (3, 33, 7), (600, 64, 1)]
)
def test_no_call_accumulates_more_than_flash_attention_counts(monkeypatch, batch, heads, length, head_dim, lines):
    """As if CPUs had the bound of GPUs, and it were that of 8 lines of 128 cells and a head_dim of 32."""
    query = states(batch, heads, length, head_dim, dtype=torch.float32)
    monkeypatch.setattr(attention_module, "MAX_ACCUMULATED", {"cpu": 8 * 128 * 32})
    calls = []

    def backend(module, query, key, value, mask, **options):
        calls.append(query.shape[0] * query.shape[1])
        return fused_attention_forward(module, query, key, value, mask, **options)

    split, _ = attention_module._attend_in_pieces(backend, None, query, query, query, None)
    whole, _ = fused_attention_forward(None, query, query, query, None)
    torch.testing.assert_close(split, whole)
    assert max(calls) <= lines and sum(calls) == batch * heads
    assert len(calls) <= -(-batch * heads // lines) * 2  # and none is much smaller than it may be


@pytest.mark.parametrize(
    ("shape", "piece"),
    [
        ((300_000, 1, 128, 64), (65_535, 1)),
        ((1, 300_000, 128, 64), (4, 65_535)),
        ((70_000, 32, 100, 16), (16_384, 32)),  # 2**31 / (128 * 32) = 524,288 lines
        ((70_000, 32, 128, 128), (4_096, 32)),
        ((9, 3, 2**24, 128), (1, 1)),
        ((9, 3, 2**23, 128), (1, 2)),
    ],
    ids=str,
)
def test_the_bound_on_a_gpu(monkeypatch, shape, piece):
    assert attention_module.MAX_ACCUMULATED == {"cuda": 2**31}
    monkeypatch.setattr(attention_module, "MAX_ACCUMULATED", {"meta": 2**31})
    assert attention_module._largest_piece(torch.empty(shape, device="meta")) == piece


@pytest.mark.parametrize("backend", sorted(ALL_BACKENDS))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(2,), (1,), (3, 2), (3, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_biases_are_split_with_the_lines(monkeypatch, axis, sizes, masked, backend):
    query, key, value = (states(3, 5, 2, 7, 2, 3, seed=seed) for seed in range(3))
    length = (5, 2, 7)[axis]
    options = {"bias": states(*sizes, length, length, seed=4), "attention_interface": ALL_BACKENDS[backend]}
    if masked:
        options["pair_mask"] = states(*sizes, length, length, seed=5) > -0.5
        options["mask"] = states(3, 5, 2, 7, seed=6) > -0.5
    whole = axial_attention(query, key, value, axis, **options)
    largest, real = [], attention_module._attend_in_pieces

    def recording(interface, module, query, *args, **kwargs):
        largest.append(max(query.shape[:2]))
        return real(interface, module, query, *args, **kwargs)

    monkeypatch.setattr(attention_module, "MAX_LINES", 4)
    monkeypatch.setattr(attention_module, "_attend_in_pieces", recording)
    split = axial_attention(query, key, value, axis, **options)
    assert sum(number <= 4 for number in largest) > 1, "nothing was split"
    for ours, theirs in zip(split, whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_lines_of_an_exported_graph_are_not_counted(monkeypatch):
    """Their number is open, and a comparison would close it."""
    query, calls = states(2, 5, 3, 2, 4), []

    def backend(*args, **options):
        calls.append(args)
        return eager_attention_forward(*args, **options)

    monkeypatch.setattr(attention_module, "MAX_LINES", 4)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    axial_attention(query, query, query, 0, attention_interface=backend)
    assert len(calls) == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_65537_lines(axis):
    grid = (2, 65_537) if axis == 0 else (65_537, 2)
    query, key, value = (states(1, *grid, 1, 1, seed=seed, dtype=torch.float32) for seed in range(3))
    output, _ = axial_attention(query, key, value, axis)
    last_line = [tensor.select(2 - axis, -1) for tensor in (query, key, value)]
    torch.testing.assert_close(output.select(2 - axis, -1), axial_attention(*last_line, 0)[0])


@pytest.mark.parametrize("axis", [0, 1])
def test_no_kernel_gets_more_lines_than_cuda_launches(axis):
    lines = []

    def backend(module, query, *args, **kwargs):
        lines.append(query.shape[0])
        return eager_attention_forward(module, query, *args, **kwargs)

    query = states(1, *((1, 65_536) if axis == 0 else (65_536, 1)), 1, 1)
    output, _ = axial_attention(query, query, query, axis, attention_interface=backend)
    assert torch.equal(output, query) and sum(lines) == 65_536 and max(lines) <= 65_535


def test_folding_for_the_fused_kernel_copies_nothing():
    query = states(2, 3, 5, 7, 2, 4)
    for axis in range(3):
        folded = attention_module.fold_lines_into_heads(query, axis)
        assert folded.dim() == 4 and folded.data_ptr() == query.data_ptr()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_all_lines_share_is_repeated_only_for_lines_that_are_heads(axis):
    query, length, lines_of_heads = states(3, 5, 2, 7, 2, 4), (5, 2, 7)[axis], (14, 7, 1)[axis]
    heads, batch = attention_module.fold_lines_into_heads, attention_module.fold_lines_into_batch
    for sizes, fold, expected in (
        ((2,), heads, (1, lines_of_heads * 2)),
        ((2,), batch, (1, 2)),
        ((1,), heads, (1, 1)),
        ((1, 1), batch, (1, 1)),
    ):
        pairs = states(*sizes, length, length)
        folded = attention_module.fold_pairs(pairs, fold, query, axis)
        assert folded.shape == (*expected, length, length)
        assert expected[1] > 2 or folded.data_ptr() == pairs.data_ptr()


@pytest.mark.parametrize("backend", sorted(ALL_BACKENDS))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_receptive_field_of_a_band_is_the_band(axis, backend):
    grid, position, heads = (7, 5, 3), (3, 2, 1), 2
    length = grid[axis]
    offsets = torch.arange(length) - torch.arange(length)[:, None]
    pair_mask = torch.stack([offsets.abs() <= 1, (offsets >= 0) & (offsets <= 1)])
    query = states(2, *grid, heads, 4)
    value = states(2, *grid, heads, 4, seed=1).requires_grad_()
    output, _ = axial_attention(
        query, query, value, axis, pair_mask=pair_mask, attention_interface=ALL_BACKENDS[backend]
    )
    for head in range(heads):
        (gradient,) = torch.autograd.grad(output[(0, *position, head)].sum(), value, retain_graph=True)
        expected = torch.zeros(2, *grid, heads, dtype=torch.bool)
        for reached in range(length):
            if pair_mask[head, position[axis], reached]:
                expected[(0, *position[:axis], reached, *position[axis + 1 :], head)] = True
        assert torch.equal(gradient.abs().sum(-1) > 0, expected) and expected.sum() > 1


MODES = ("sum", "sequential", "split", "alternating")


def make_config(grid, mode):
    """With heads and layers for every axis."""
    return AxialConfig(
        image_size=list(grid),
        patch_size=[1] * len(grid),
        hidden_size=8,
        num_attention_heads=len(grid) if mode == "split" else 2,
        head_dim=4,
        attention_mode=mode,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", PRIME_GRIDS, ids=str)
def test_receptive_field_of_the_modes(grid, mode):
    config = make_config(grid, mode)
    position = tuple(length // 2 for length in grid)
    reached = receptive_field(ATTENTION_CLASSES[mode](config), (1, *grid, 8), position)
    distance = sum(
        (torch.arange(length) != centre).long().view(-1, *[1] * (len(grid) - axis - 1))
        for axis, (length, centre) in enumerate(zip(grid, position, strict=True))
    )
    expected = torch.ones(grid, dtype=torch.bool) if mode == "sequential" else distance <= 1
    if mode == "alternating":
        expected = line_through(position, 0, grid)
    assert reached.shape == grid and torch.equal(reached, expected)


def line_through(position, axis, grid):
    line = torch.zeros(grid, dtype=torch.bool)
    line[tuple(slice(None) if number == axis else place for number, place in enumerate(position))] = True
    return line


@pytest.mark.parametrize("layer_idx", range(5))
def test_receptive_field_of_an_alternating_layer_is_a_line(layer_idx):
    grid, position = (2, 5, 3), (1, 2, 0)
    module = ATTENTION_CLASSES["alternating"](make_config(grid, "alternating"), layer_idx)
    assert torch.equal(receptive_field(module, (1, *grid, 8), position), line_through(position, layer_idx % 3, grid))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_receptive_field_of_one_axis_is_its_line(axis):
    grid, position = (2, 5, 3), (1, 2, 0)
    config = AxialConfig(image_size=list(grid), patch_size=[1] * 3, hidden_size=8, num_attention_heads=2)
    reached = receptive_field(AxialSelfAttention(config, axis), (1, *grid, 8), position)
    assert torch.equal(reached, line_through(position, axis, grid))


def compile_cases(axes_of_audits=5):
    return [
        pytest.param(
            grid, mode, id=f"{len(grid)}-{mode}", marks=pytest.mark.audit if len(grid) >= axes_of_audits else ()
        )
        for grid, mode in itertools.product(PRIME_GRIDS[:4], MODES)
        if len(grid) in (2, 3) or mode in ("sum", "sequential")
    ]


@pytest.mark.slow
# Whole models on more axes are compiled elsewhere.
@pytest.mark.parametrize("grid, mode", compile_cases(axes_of_audits=2))
def test_compiled_equals_eager(grid, mode):
    torch.compiler.reset()  # all cases share one code object, and so one limit of recompilations
    module, hidden_states = _small_attention(grid, mode), states(2, *grid, 8, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for inputs in (hidden_states, states(3, *(length + 2 for length in grid), 8, dtype=torch.float32)):
        torch.testing.assert_close(compiled(inputs), module(inputs))


@pytest.mark.parametrize("grid, mode", compile_cases())
def test_exported_equals_eager_at_other_sizes(grid, mode):
    module, hidden_states = _small_attention(grid, mode), states(2, *grid, 8, dtype=torch.float32)
    dynamic = {dim: torch.export.Dim.DYNAMIC for dim in range(1 + len(grid))}
    program = torch.export.export(module, (hidden_states,), dynamic_shapes=(dynamic,))
    assert all(bounds.upper > 2**31 for bounds in program.range_constraints.values()), "sizes are open"
    for inputs in (hidden_states, states(5, *(length + 4 for length in grid), 8, dtype=torch.float32)):
        torch.testing.assert_close(program.module()(inputs), module(inputs))


def _small_attention(grid, mode):
    config = make_config(grid, mode)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return ATTENTION_CLASSES[mode](config, len(grid) - 1).eval()


class BiasedAttention(torch.nn.Module):
    """Along every axis, with a bias of its own to learn and a mask of pairs, cut to the lengths of the input."""

    def __init__(self, grid):
        super().__init__()
        self.biases = torch.nn.ParameterList(
            states(2, length + 5, length + 5, seed=length, dtype=torch.float32) for length in grid
        )

    def forward(self, query, mask):
        output = 0.0
        for axis, bias in enumerate(self.biases):
            length = query.shape[axis + 1]
            bias = bias[:, :length, :length]
            pair_mask = torch.ones(length, length, dtype=torch.bool).triu(-2)[None]
            output = output + axial_attention(query, query, query, axis, mask=mask, bias=bias, pair_mask=pair_mask)[0]
            output = output + axial_attention(query, query, query, axis, bias=bias, is_causal=True)[0]
        return output


def biased_inputs(batch, *grid):
    return states(batch, *grid, 2, 4, dtype=torch.float32), states(batch, *grid, seed=1) > -0.5


@pytest.mark.slow
@pytest.mark.audit
@pytest.mark.parametrize("grid", [(7,), (5, 3)], ids=str)
def test_compiled_biases_equal_eager_ones(grid):
    torch.compiler.reset()
    module = BiasedAttention(grid)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for learned in (True, False):
        module.requires_grad_(learned)
        for inputs in (biased_inputs(2, *grid), biased_inputs(3, *(length + 2 for length in grid))):
            inputs[0].requires_grad_()
            learn = [inputs[0], *(parameter for parameter in module.parameters() if learned)]
            outputs = compiled(*inputs), module(*inputs)
            torch.testing.assert_close(*outputs)
            torch.testing.assert_close(*(torch.autograd.grad(output.sin().sum(), learn) for output in outputs))


@pytest.mark.parametrize("grid", PRIME_GRIDS[:2], ids=str)
def test_exported_biases_equal_eager_ones_at_other_sizes(grid):
    module, inputs = BiasedAttention(grid), biased_inputs(2, *grid)
    dynamic = {dim: torch.export.Dim.DYNAMIC for dim in range(1 + len(grid))}
    program = torch.export.export(module, inputs, dynamic_shapes=(dynamic, dynamic))
    kernels = [node for node in program.graph.nodes if "scaled_dot_product_attention" in str(node.target)]
    assert len(kernels) == 2 * len(grid)
    for others in (inputs, biased_inputs(5, *(length + 4 for length in grid))):
        torch.testing.assert_close(program.module()(*others), module(*others))


def test_biases_that_need_no_gradient_stay_on_the_fused_kernel():
    query, bias = states(2, 5, 3, 2, 4).requires_grad_(), states(2, 5, 5, seed=1).requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):  # fails where it cannot run
        for mask in (None, states(2, 5, 3) > 0):
            for pairs in (bias, bias[None], bias[:1]):
                with torch.no_grad():
                    axial_attention(query, query, query, 0, mask=mask, bias=pairs)
                output, _ = axial_attention(query, query, query, 0, mask=mask, bias=pairs.detach())
                assert "FlashAttention" in str(_kernels_of(output.grad_fn))
    output, _ = axial_attention(query, query, query, 0, bias=bias)
    assert "SoftmaxBackward" in str(_kernels_of(output.grad_fn)) and "SafeSoftmax" not in str(
        _kernels_of(output.grad_fn)
    )


def _kernels_of(node):
    """The names of all nodes of a graph that backward runs."""
    names, nodes = [], [node]
    while nodes:
        node = nodes.pop()
        names.append(node.name())
        nodes += [before for before, _ in node.next_functions if before is not None]
    return names


def test_a_registered_backend_is_used():
    seen = []

    def backend(module, query, key, value, attention_mask, **kwargs):
        seen.append((type(module).__name__, query.shape, kwargs["is_causal"]))
        return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("recording", backend)
    config = AxialConfig(image_size=[3, 5], patch_size=[1, 1], hidden_size=8, num_attention_heads=2)
    config._attn_implementation = "recording"
    module, hidden_states = AxialSelfAttention(config, axis=0), states(2, 3, 5, 8, dtype=torch.float32)
    output = module(hidden_states)
    assert seen == [("AxialAttentionCore", (2 * 5, 2, 3, 4), False)]
    config._attn_implementation = "sdpa"
    torch.testing.assert_close(module(hidden_states), output)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_weights_are_returned_only_if_asked_for(implementation):
    config = AxialConfig(image_size=[3, 5], patch_size=[1, 1], hidden_size=8, num_attention_heads=2)
    config._attn_implementation = implementation
    core, query = AxialAttentionCore(config, axis=1), states(2, 3, 5, 2, 4)
    assert core(query, query, query)[1] is None
    assert core(query, query, query, output_attentions=True)[1].shape == (6, 2, 5, 5)


def test_whose_weights_are_returned(monkeypatch):
    """Those of the backend, where it gives some; else those of eager attention, which then runs in its place."""
    config = AxialConfig(image_size=[3, 5], patch_size=[1, 1], hidden_size=8, num_attention_heads=2)
    core, calls = AxialAttentionCore(config, axis=1), []
    inputs = [states(2, 3, 5, 2, 4, seed=seed) for seed in range(3)]
    expected, expected_weights = reference_axial_attention(*inputs, 1)

    def eager(*args, **options):
        calls.append("eager")
        return eager_attention_forward(*args, **options)

    def backend(module, query, key, value, attention_mask, **options):
        output, weights = eager_attention_forward(module, query, key, value, attention_mask, **options)
        return -output, -weights if config._attn_implementation == "negative" else None

    monkeypatch.setattr(attention_module, "eager_attention_forward", eager)
    for name in ("negative", "without weights"):
        AttentionInterface.register(name, backend)
        config._attn_implementation = name
        output, weights = core(*inputs)
        torch.testing.assert_close(output, -expected)
        assert weights is None and not calls
        output, weights = core(*inputs, output_attentions=True)
        sign = -1 if name == "negative" else 1
        torch.testing.assert_close(output, sign * expected)
        torch.testing.assert_close(weights, sign * expected_weights.reshape(weights.shape))
        assert calls == ["eager"] * (name != "negative")
    config._attn_implementation = "sdpa"
    monkeypatch.setitem(attention_module.INTERFACES, sdpa_attention_forward, None)  # not even tried
    assert core(*inputs, output_attentions=True)[1] is not None and calls == ["eager"] * 2
    assert not core.is_causal


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_masks_are_made_where_the_states_are(backend):
    query, mask = states(2, 3, 5, 2, 4), states(2, 3, 5, seed=1) > -0.5
    for options in ({}, {"mask": mask}):
        options |= {"is_causal": True, "attention_interface": BACKENDS[backend]}
        expected, _ = axial_attention(query, query, query, 1, **options)
        with torch.device("meta"):  # whatever is made without a word of a device is made there
            output, _ = axial_attention(query, query, query, 1, **options)
        assert torch.equal(output, expected)


@pytest.mark.parametrize("learned", [0, 1, 2])
def test_derivatives_that_might_be_differentiated_again(learned):
    """Where only one of query, key and value learns, the kernel gives no gradient of the others."""
    inputs = [states(2, 3, 5, 2, 4, seed=seed).requires_grad_(seed == learned) for seed in range(3)]
    gradients = [
        torch.autograd.grad(axial_attention(*inputs, 1)[0].sin().sum(), inputs[learned], create_graph=create_graph)[0]
        for create_graph in (False, True)
    ]
    assert torch.equal(*gradients) and gradients[1].requires_grad


def test_projections_have_a_bias_unless_the_configuration_says_no():
    for qkv_bias in (True, False):
        config = AxialConfig(
            image_size=[3, 5], patch_size=[1, 1], hidden_size=8, num_attention_heads=2, qkv_bias=qkv_bias
        )
        attention = AxialSelfAttention(config, axis=0)
        biases = {name for name, _ in attention.named_parameters() if name.endswith("proj.bias")}
        assert biases == {"o_proj.bias"} | {f"{name}_proj.bias" for name in "qkv" if qkv_bias}


def test_the_fused_kernel_is_used_where_it_can_be(monkeypatch):
    calls, fused = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *args, **options: calls.append(tuple(query.shape)) or fused(query, *args, **options),
    )
    query = states(2, 3, 5, 2, 4)
    axial_attention(query, query, query, 0)
    assert calls == [(2, 5 * 2, 3, 4)], "lines are heads, which needs no copy"
    torch.func.jvp(lambda query: axial_attention(query, query, query, 0)[0], (query,), (query,))
    assert len(calls) == 1
    config = AxialConfig(image_size=[3, 5], patch_size=[1, 1], hidden_size=8, num_attention_heads=2)
    AxialAttentionCore(config, axis=1)(query, query, query)
    assert calls[1:] == [(2 * 3, 2, 5, 4)]


def test_heads_of_any_width():
    config = AxialConfig(image_size=[3, 5], patch_size=[1, 1], hidden_size=8, num_attention_heads=2, head_dim=3)
    attention = AxialSelfAttention(config, axis=1)
    shapes = {name: tuple(module.weight.shape) for name, module in attention.named_children() if "proj" in name}
    assert shapes == {"q_proj": (6, 8), "k_proj": (6, 8), "v_proj": (6, 8), "o_proj": (8, 6)}
    assert attention(torch.ones(2, 3, 5, 8)).shape == (2, 3, 5, 8)


# ---- normalised queries and keys ----


def normed_attention(module_class, position_embedding="none", **overrides):
    config = AxialConfig(
        image_size=[3, 5],
        patch_size=[1, 1],
        hidden_size=8,
        num_attention_heads=2,
        position_embedding=position_embedding,
        use_qk_norm=True,
        layer_norm_eps=0.01,
        **overrides,
    )
    module = module_class(config, 1).double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = states(*parameter.shape, seed=number)
    return module


def normed_heads(module, name, hidden_states):
    """Queries or keys, each head with mean 0 and variance 1 but for `layer_norm_eps`, times the scale."""
    projection, scale = module.get_submodule(f"{name}_proj"), module.get_submodule(f"{name}_norm").weight
    heads = (hidden_states @ projection.weight.T + projection.bias).unflatten(-1, (2, 4))
    centred = heads - heads.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 0.01).sqrt() * scale


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positions", ["none", "rotary", "relative", "rotary+relative"])
def test_normalised_queries_and_keys_written_out(positions, masked):
    """They are normalised first, and then have their positions."""
    module, hidden_states = normed_attention(AxialSelfAttention, positions), states(2, 3, 5, 8, seed=30)
    mask = states(2, 3, 5, seed=31) > -0.5 if masked else None
    query, key = (normed_heads(module, name, hidden_states) for name in "qk")
    if "rotary" in positions:
        query, key = turned(query, 1, 10000.0), turned(key, 1, 10000.0)
    value = module.v_proj(hidden_states).unflatten(-1, (2, 4))
    bias = None
    if "relative" in positions:
        rows = torch.arange(5)[:, None] - torch.arange(5) + 4
        bias = module.positions[-1].table[rows].movedim(-1, 0)
    output, _ = reference_axial_attention(query, key, value, 1, mask, bias=bias)
    expected = module.o_proj(output.flatten(-2))
    torch.testing.assert_close(module(hidden_states, LayerContext(mask)), expected, rtol=1e-12, atol=1e-12)


def test_normalised_cross_attention_written_out():
    module = normed_attention(AxialCrossAttention)
    hidden_states, others = states(1, 1, 2, 8, seed=30), states(2, 3, 5, 8, seed=31)
    query = normed_heads(module, "q", hidden_states).expand(2, 3, -1, -1, -1)
    value = module.v_proj(others).unflatten(-1, (2, 4))
    output, _ = reference_axial_attention(query, normed_heads(module, "k", others), value, 1)
    expected = module.o_proj(output.flatten(-2))
    torch.testing.assert_close(module(hidden_states, others), expected, rtol=1e-12, atol=1e-12)


def test_scores_of_normalised_queries_and_keys_are_bounded():
    module, scores = normed_attention(AxialSelfAttention), []
    module.core.register_forward_hook(lambda core, inputs, output: scores.append(inputs[0] @ inputs[1].mT))
    module(1e6 * states(2, 3, 5, 8))
    bound = 4 * module.q_norm.weight.abs().max() * module.k_norm.weight.abs().max()
    assert 0.1 * bound < scores[0].abs().max() <= bound


def test_normalisation_keeps_the_dtype(monkeypatch):
    """On CUDA devices autocast has layer norms in float32, and fused kernels want queries, keys and values alike."""
    in_float32 = torch.nn.functional.layer_norm
    monkeypatch.setattr(
        torch.nn.functional,
        "layer_norm",
        lambda states, shape, weight, bias, eps: in_float32(states.float(), shape, weight.float(), bias, eps),
    )
    module, seen = normed_attention(AxialSelfAttention).bfloat16(), []
    module.core.register_forward_hook(lambda core, inputs, output: seen.extend(part.dtype for part in inputs[:3]))
    module(states(2, 3, 5, 8, dtype=torch.bfloat16))
    assert seen == [torch.bfloat16] * 3


def test_every_attention_of_a_model_is_normalised_or_none():
    for flag in (True, False):
        config = AxialConfig(
            image_size=[3, 5],
            patch_size=[1, 1],
            hidden_size=8,
            num_attention_heads=2,
            num_hidden_layers=1,
            num_inducing_points=[None, 3],
            pooling="attention",
            use_qk_norm=flag,
            layer_norm_eps=0.25,
        )
        model = AxialModel(config)
        attentions = [module for module in model.modules() if isinstance(module, AxialAttentionProjections)]
        assert len(attentions) == 4
        norms = [norm for attention in attentions for norm in (attention.q_norm, attention.k_norm)]
        assert all(isinstance(norm, torch.nn.LayerNorm) == flag for norm in norms)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "q_norm" in name}
        assert set(shapes.values()) == ({(4,)} if flag else set())
        assert not flag or {norm.eps for norm in norms} == {0.25}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_dropout_is_for_training_only(implementation):
    config = AxialConfig(
        image_size=[3, 5], patch_size=[1, 1], hidden_size=8, num_attention_heads=2, attention_probs_dropout_prob=0.5
    )
    config._attn_implementation = implementation
    core, query = AxialAttentionCore(config, axis=1), states(2, 3, 5, 2, 4)
    expected, _ = axial_attention(query, query, query, 1)
    torch.testing.assert_close(core.eval()(query, query, query)[0], expected)
    assert (core.train()(query, query, query)[0] - expected).abs().max() > 0.1


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("biased", [False, True])
def test_dropout_drops_and_keeps_the_expectation(biased, backend):
    query = states(1, 3, 101, 1, 2, dtype=torch.float32)
    value = torch.ones(1, 3, 101, 1, 1)
    bias = states(1, 101, 101, dtype=torch.float32).requires_grad_() if biased else None
    torch.manual_seed(0)
    output, _ = axial_attention(query, query, value, 1, bias=bias, dropout=0.5, attention_interface=BACKENDS[backend])
    assert output.std() > 0.01 and abs(output.mean() - 1) < 0.05


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_scores_of_float16_overflow_later_than_their_products(backend):
    query = key = torch.full((1, 3, 1, 64), 40.0, dtype=torch.float16)  # 64 · 40² = 102,400, over 8 it is 12,800
    output, _ = axial_attention(query, key, key, 0, attention_interface=BACKENDS[backend])
    torch.testing.assert_close(output, key)
    # A bias that is the same for all keys changes nothing, and 12,800 + 60,000 is more than float16 holds.
    for bias in (torch.full((1, 3, 3), 60_000.0), torch.full((1, 3, 3), 60_000.0).requires_grad_()):
        output, _ = axial_attention(query, key, key, 0, bias=bias, attention_interface=BACKENDS[backend])
        torch.testing.assert_close(output, key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_bias_is_added_in_the_dtype_of_the_scores(backend, dtype):
    query, key, value = (states(2, 5, 3, 2, 4, seed=seed).to(dtype) for seed in range(3))
    bias, mask = states(2, 5, 5, dtype=torch.float32).requires_grad_(), states(2, 5, 3) > 0
    for options in ({}, {"mask": mask}, {"is_causal": True}):
        expected, _ = reference_axial_attention(
            *(tensor.double() for tensor in (query, key, value)), 0, bias=bias.to(dtype).double(), **options
        )
        (expected_gradient,) = torch.autograd.grad(expected.sum(), bias)
        output, _ = axial_attention(query, key, value, 0, bias=bias, attention_interface=BACKENDS[backend], **options)
        (gradient,) = torch.autograd.grad(output.sum(), bias)
        assert output.dtype == dtype and gradient.dtype == bias.dtype
        error = {torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=error)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=max(error, 1e-6))
        frozen, _ = axial_attention(
            query, key, value, 0, bias=bias.detach(), attention_interface=BACKENDS[backend], **options
        )
        torch.testing.assert_close(frozen.double(), expected, rtol=0, atol=error)
    dtypes = []
    axial_attention(
        query,
        key,
        value,
        0,
        bias=bias,
        attention_interface=lambda *arguments, **kwargs: (
            dtypes.append(arguments[4].dtype) or eager_attention_forward(*arguments, **kwargs)
        ),
    )
    assert dtypes == [dtype]


FORWARD_MODE_OPTIONS = [
    {},
    {"is_causal": True},
    {"mask": states(5, 3) > -0.5, "scaling": 0.3},
    {"bias": states(2, 5, 5, seed=6), "pair_mask": states(1, 5, 5, seed=7) > -0.5, "is_causal": True},
]


@pytest.mark.parametrize("options", FORWARD_MODE_OPTIONS)
def test_fused_attention_has_forward_mode_derivatives(options):
    """Along a direction, of outputs and of gradients: those of eager attention and of differences."""
    inputs, tangents = (tuple(states(2, 5, 3, 2, 4, seed=seed + n) for n in range(3)) for seed in (0, 3))
    found = {}
    for name, interface in BACKENDS.items():

        def attend(*inputs, interface=interface):
            return axial_attention(*inputs, 0, attention_interface=interface, **options)[0]

        def gradient(*inputs, attend=attend):
            return torch.func.grad(lambda *inputs: attend(*inputs).pow(3).sum(), argnums=(0, 1, 2))(*inputs)

        moved = torch.func.jvp(attend, inputs, tangents)[1], *torch.func.jvp(gradient, inputs, tangents)[1]
        step = 1e-5
        ahead, behind = (
            tuple(x + sign * step * tangent for x, tangent in zip(inputs, tangents, strict=True)) for sign in (1, -1)
        )
        torch.testing.assert_close(moved[0], (attend(*ahead) - attend(*behind)) / (2 * step), rtol=1e-6, atol=1e-8)
        found[name] = moved
    torch.testing.assert_close(found["sdpa"], found["eager"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("sizes", [(2, 3, 3), (2, 1, 3, 3), (1, 3, 1)], ids=str)
def test_gradcheck_of_biases(sizes, backend):
    query, key, value = (states(2, 3, 2, 2, 4, seed=seed) for seed in range(3))
    mask, pair_mask = states(2, 3, 2, seed=3) > -0.5, states(2, 3, 3, seed=4) > -0.5
    bias = states(*sizes, seed=5).requires_grad_()
    options = {"mask": mask, "pair_mask": pair_mask, "attention_interface": BACKENDS[backend]}
    torch.autograd.gradcheck(
        lambda bias: axial_attention(query, key, value, 0, bias=bias, **options)[0], bias, check_forward_ad=True
    )
    torch.autograd.gradgradcheck(lambda bias: axial_attention(query, key, value, 0, bias=bias, **options)[0], bias)


BAD_CALLS = {
    "no axis": (((2, 2, 4),) * 3, 0, {}, "at least 1 axis"),
    "negative axis": (((2, 3, 2, 4),) * 3, -1, {}, "from 0 to 0, got -1"),
    "axis too large": (((2, 3, 2, 4),) * 3, 1, {}, "from 0 to 0, got 1"),
    "key and value differ": (((2, 3, 2, 4), (2, 3, 2, 4), (2, 5, 2, 4)), 0, {}, "key and value must agree"),
    "key of another rank": (((2, 3, 2, 4), (2, 3, 5, 2, 4), (2, 3, 5, 2, 4)), 0, {}, "query and key must agree"),
    "other length on another axis": (((2, 3, 5, 2, 4), (2, 3, 7, 2, 4), (2, 3, 7, 2, 4)), 0, {}, "but for axis 0"),
    "other number of heads": (((2, 3, 2, 4), (2, 3, 1, 4), (2, 3, 1, 4)), 0, {}, "query and key must agree"),
    "other head_dim": (((2, 3, 2, 4), (2, 3, 2, 5), (2, 3, 2, 5)), 0, {}, "query and key must agree"),
    "causal with other length": (((2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4)), 0, {"is_causal": True}, "equally long"),
    "float mask": (((2, 3, 2, 4),) * 3, 0, {"mask": torch.ones(2, 3)}, "must be boolean"),
    "mask of a wrong shape": (((2, 3, 2, 4),) * 3, 0, {"mask": torch.ones(2, 5, dtype=torch.bool)}, "broadcast"),
    "mask with heads": (((2, 3, 2, 4),) * 3, 0, {"mask": torch.ones(2, 3, 2, dtype=torch.bool)}, "broadcast"),
    "mask of too many axes": (((2, 3, 2, 4),) * 3, 0, {"mask": torch.ones(1, 2, 3) > 0}, "broadcast"),
    "boolean bias": (((2, 3, 2, 4),) * 3, 0, {"bias": torch.ones(2, 3, 3) > 0}, "bias must be floating point.*bool"),
    "bias of integers": (((2, 3, 2, 4),) * 3, 0, {"bias": torch.ones(2, 3, 3).int()}, "floating point.*int32"),
    "float mask of pairs": (((2, 3, 2, 4),) * 3, 0, {"pair_mask": torch.ones(2, 3, 3)}, "pair_mask.*boolean.*float32"),
} | {
    f"{name} of {shape}": (
        ((2, 7, 5, 3, 4), (2, 7, 11, 3, 4), (2, 7, 11, 3, 4)),
        1,
        {name: torch.ones(shape) > 0 if name == "pair_mask" else torch.ones(shape)},
        f"{name} {re.escape(str(shape))} must .* 3 .*{re.escape('(3, 5, 11)')}.* 4 .*{re.escape('(2, 3, 5, 11)')}",
    )
    for name in ("bias", "pair_mask")
    for shape in (
        (),
        (5, 11),
        (1, 2, 3, 5, 11),
        (2, 5, 11),
        (3, 11, 5),
        (3, 7, 11),
        (3, 5, 10),
        (3, 2, 5, 11),
        (7, 3, 5, 11),
        (2, 3, 1, 5),
    )
}


@pytest.mark.parametrize("shapes, axis, options, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(shapes, axis, options, message):
    with pytest.raises(ValueError, match=message):
        axial_attention(*(torch.zeros(shape) for shape in shapes), axis, **options)


def turned(states, axis, rope_theta):
    """Rotary positions written out: channels k and k + D/2 are the complex number that position p multiplies by
    exp(i · p · rope_theta ** (-2k / D))."""
    first, second = states.chunk(2, dim=-1)
    head_dim, length = states.shape[-1], states.shape[axis + 1]
    frequencies = torch.tensor([rope_theta ** (-2 * k / head_dim) for k in range(head_dim // 2)], dtype=torch.float64)
    positions = torch.arange(length, dtype=torch.float64).view(length, *[1] * (states.dim() - axis - 2))
    numbers = torch.complex(first, second) * torch.exp(1j * positions * frequencies)
    return torch.cat((numbers.real, numbers.imag), dim=-1)


def rotary_attention(grid, axis, **options):
    config = AxialConfig(
        image_size=list(grid),
        patch_size=[1] * len(grid),
        hidden_size=12,
        num_attention_heads=2,
        position_embedding="rotary",
        **options,
    )
    torch.manual_seed(axis)
    attention = AxialSelfAttention(config, axis).double()
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.data *= 3  # or the scores are too small for positions to show
    return attention


@pytest.mark.parametrize("grid", PRIME_GRIDS[:3], ids=str)
def test_rotary_attention_equals_the_written_out_one_on_every_axis(grid):
    hidden_states, mask = states(2, *grid, 12), states(2, *grid, seed=1) > -1
    for axis in range(len(grid)):
        attention = rotary_attention(grid, axis, rope_theta=100)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (projection(hidden_states).unflatten(-1, (2, 6)).detach() for projection in projections)
        output = attention(hidden_states, LayerContext(mask=mask))
        turned_query, turned_key = turned(query, axis, 100), turned(key, axis, 100)
        expected, _ = reference_axial_attention(turned_query, turned_key, value, axis, mask)
        torch.testing.assert_close(output, attention.o_proj(expected.flatten(-2)), rtol=1e-12, atol=1e-12)
        one_turned, _ = reference_axial_attention(turned_query, key, value, axis, mask)
        assert (output - attention.o_proj(one_turned.flatten(-2))).abs().max() > 1e-3


@pytest.mark.parametrize("grid", PRIME_GRIDS[:3], ids=str)
def test_rotary_attention_weights_depend_on_the_distance_only(grid):
    hidden_states = states(2, *grid, 12)
    for axis in range(len(grid)):
        attention = rotary_attention(grid, axis)
        weights = []
        attention.core.register_forward_hook(lambda *call, weights=weights: weights.append(call[-1][1]))
        cells = torch.arange(grid[axis], dtype=torch.float64)[None]
        for positions in (cells, cells + 4, cells + 101.5, 1.5 * cells):
            prepared = [()] * len(grid)
            prepared[axis] = prepare_line(attention.config, attention.description, AxisCells(positions))
            attention(hidden_states, LayerContext(prepared=tuple(prepared), output_attentions=True))
        for shifted in weights[1:3]:
            torch.testing.assert_close(shifted, weights[0], rtol=1e-11, atol=1e-11)
        assert (weights[3] - weights[0]).abs().max() > 1e-3  # and they do depend on it
