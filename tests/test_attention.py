import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from modeling_axial import attention as attention_module
from modeling_axial.attention import AxialAttentionCore, AxialSelfAttention, axial_attention, eager_attention_forward
from modeling_axial.axial_layer import ATTENTION_CLASSES
from modeling_axial.configuration_axial import AxialConfig
from modeling_axial.layer_context import LayerContext
from modeling_axial.position_embeddings import prepare_line
from modeling_axial.testing import receptive_field
from tests.reference import reference_axial_attention

BACKENDS = {"sdpa": None, "eager": eager_attention_forward}
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


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_by_default_attention_is_whole_and_scaled_by_the_root_of_the_width(backend):
    query, key, value = (states(2, 3, 5, 2, 4, seed=seed) for seed in range(3))
    for axis in (0, 1):
        output, _ = axial_attention(query, key, value, axis, attention_interface=BACKENDS[backend])
        expected, _ = reference_axial_attention(query, key, value, axis, scaling=0.5)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attend", [eager_attention_forward, attention_module.fused_attention_forward])
def test_interfaces_by_themselves(attend):
    query, key, value = (states(2, 7, 3, 4, seed=seed) for seed in range(3))
    mask = states(2, 7, seed=3) > -0.5
    cases = [{}, {"is_causal": True}, {"mask": mask}]
    if attend is eager_attention_forward:  # PyTorch's refuses the two together
        cases.append({"mask": mask, "is_causal": True})
    for case in cases:
        options = dict(case)
        attention_mask = options.pop("mask")[:, None, None] if "mask" in case else None
        output, _ = attend(None, *(part.transpose(1, 2) for part in (query, key, value)), attention_mask, **options)
        expected, _ = reference_axial_attention(query, key, value, 0, **case)
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
    output, _ = axial_attention(query, key, value, 0, mask=mask, attention_interface=BACKENDS[backend])
    assert (output[:, :, 2] == 0).all() and (output[:, :, 1] != 0).all()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))


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


def test_a_query_that_is_no_number_gives_none_unless_its_own_cell_is_masked():
    query, key, mask = states(1, 3, 2, 4), states(1, 5, 2, 4, seed=1), torch.ones(1, 5, dtype=torch.bool)
    query[0, 1] = torch.nan
    mask[0, 1] = False  # a key of another grid
    output, _ = axial_attention(query, key, key, 0, mask=mask)
    assert output[0, 1].isnan().all() and output[0, [0, 2]].isfinite().all()


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


@pytest.mark.parametrize("mode", ["sum", "sequential"])
@pytest.mark.parametrize("grid", PRIME_GRIDS, ids=str)
def test_receptive_field_of_the_modes(grid, mode):
    config = AxialConfig(
        image_size=list(grid), patch_size=[1] * len(grid), hidden_size=8, num_attention_heads=2, attention_mode=mode
    )
    position = tuple(length // 2 for length in grid)
    reached = receptive_field(ATTENTION_CLASSES[mode](config), (1, *grid, 8), position)
    distance = sum(
        (torch.arange(length) != centre).long().view(-1, *[1] * (len(grid) - axis - 1))
        for axis, (length, centre) in enumerate(zip(grid, position, strict=True))
    )
    expected = distance <= 1 if mode == "sum" else torch.ones(grid, dtype=torch.bool)
    assert reached.shape == grid and torch.equal(reached, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_receptive_field_of_one_axis_is_its_line(axis):
    grid, position = (2, 5, 3), (1, 2, 0)
    config = AxialConfig(image_size=list(grid), patch_size=[1] * 3, hidden_size=8, num_attention_heads=2)
    reached = receptive_field(AxialSelfAttention(config, axis), (1, *grid, 8), position)
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[tuple(slice(None) if number == axis else position[number] for number in range(3))] = True
    assert torch.equal(reached, expected)


def compile_cases(axes_of_audits=5):
    return [
        pytest.param(
            grid, mode, id=f"{len(grid)}-{mode}", marks=pytest.mark.audit if len(grid) >= axes_of_audits else ()
        )
        for grid, mode in itertools.product(PRIME_GRIDS[:4], ("sum", "sequential"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("grid, mode", compile_cases(axes_of_audits=4))
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
    for inputs in (hidden_states, states(5, *(length + 4 for length in grid), 8, dtype=torch.float32)):
        torch.testing.assert_close(program.module()(inputs), module(inputs))


def _small_attention(grid, mode):
    config = AxialConfig(
        image_size=list(grid), patch_size=[1] * len(grid), hidden_size=8, num_attention_heads=2, attention_mode=mode
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return ATTENTION_CLASSES[mode](config).eval()


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


def test_the_fused_kernel_is_used_where_it_can_be(monkeypatch):
    calls, fused = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: calls.append(1) or fused(*args, **options),
    )
    query = states(2, 3, 5, 2, 4)
    axial_attention(query, query, query, 1)
    assert len(calls) == 1
    torch.func.jvp(lambda query: axial_attention(query, query, query, 1)[0], (query,), (query,))
    assert len(calls) == 1


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
def test_dropout_drops_and_keeps_the_expectation(backend):
    query = states(1, 3, 101, 1, 2, dtype=torch.float32)
    value = torch.ones(1, 3, 101, 1, 1)
    torch.manual_seed(0)
    output, _ = axial_attention(query, query, value, 1, dropout=0.5, attention_interface=BACKENDS[backend])
    assert output.std() > 0.01 and abs(output.mean() - 1) < 0.05


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_scores_of_float16_overflow_later_than_their_products(backend):
    query = key = torch.full((1, 3, 1, 64), 40.0, dtype=torch.float16)  # 64 · 40² = 102,400, over 8 it is 12,800
    output, _ = axial_attention(query, key, key, 0, attention_interface=BACKENDS[backend])
    torch.testing.assert_close(output, key)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": states(5, 3) > -0.5, "scaling": 0.3}])
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


def test_eager_softmax_runs_in_float32_for_half_precision():
    # 300 equal scores: a bfloat16 softmax would give 1/300 rounded, and a sum of weights off by more than 1e-3.
    query = torch.zeros(1, 300, 1, 2, dtype=torch.bfloat16)
    value = torch.ones(1, 300, 1, 1, dtype=torch.bfloat16)
    output, weights = axial_attention(query, query, value, 0, attention_interface=eager_attention_forward)
    assert output.dtype == weights.dtype == torch.bfloat16
    torch.testing.assert_close(output, value, rtol=5e-3, atol=0)


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
            prepared[axis] = prepare_line(attention.config, attention.description, hidden_states, positions)
            attention(hidden_states, LayerContext(positions=tuple(prepared), output_attentions=True))
        for shifted in weights[1:3]:
            torch.testing.assert_close(shifted, weights[0], rtol=1e-11, atol=1e-11)
        assert (weights[3] - weights[0]).abs().max() > 1e-3  # and they do depend on it
