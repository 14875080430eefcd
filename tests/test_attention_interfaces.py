"""Functions of transformers' attention interface: equal to the reference, or refused by name."""

import contextlib

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.utils import is_flash_attn_2_available

from modeling_axial import AxialModel
from modeling_axial import attention_interfaces as interfaces
from modeling_axial.attention import AxialAttentionCore, axial_attention
from modeling_axial.attention_interfaces import eager_attention_forward
from modeling_axial.configuration_axial import AxialConfig
from tests.reference import reference_axial_attention
from tests.test_attention import PRIME_GRIDS, states


@pytest.mark.parametrize("attend", [eager_attention_forward, interfaces.fused_attention_forward])
def test_interfaces_by_themselves(attend):
    query, key, value = (states(2, 7, 3, 4, seed=seed) for seed in range(3))
    mask = states(2, 7, seed=3) > -0.5
    cases = [{}, {"is_causal": True}, {"mask": mask}]
    if attend is eager_attention_forward:  # PyTorch's refuses the two together
        cases.append({"mask": mask, "is_causal": True})
    bias = states(2, 3, 7, 7, seed=4)
    cases.append({"bias": bias.masked_fill((states(7, 7, seed=5) > 0.5).fill_diagonal_(False), -torch.inf)})
    for case in cases:
        options = dict(case)
        attention_mask = options.pop("mask")[:, None, None] if "mask" in case else options.pop("bias", None)
        output, _ = attend(None, *(part.transpose(1, 2) for part in (query, key, value)), attention_mask, **options)
        expected, _ = reference_axial_attention(query, key, value, 0, **case)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_eager_softmax_runs_in_float32_for_half_precision():
    # 300 equal scores: a bfloat16 softmax would give 1/300 rounded, and a sum of weights off by more than 1e-3.
    query = torch.zeros(1, 300, 1, 2, dtype=torch.bfloat16)
    value = torch.ones(1, 300, 1, 1, dtype=torch.bfloat16)
    output, weights = axial_attention(query, query, value, 0, attention_interface=eager_attention_forward)
    assert output.dtype == weights.dtype == torch.bfloat16
    torch.testing.assert_close(output, value, rtol=5e-3, atol=0)


def test_gradients_of_eager_softmax_are_those_of_float32():
    # Of equal values the weights do not matter: a bfloat16 softmax would give 1/300 rounded, and query a gradient.
    query, key = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16, requires_grad=True), states(1, 300, 1, 2).bfloat16()
    value = torch.ones(1, 300, 1, 1, dtype=torch.bfloat16)
    output, _ = axial_attention(query, 1 + key.abs(), value, 0, attention_interface=eager_attention_forward)
    (gradient,) = torch.autograd.grad(output.sum(), query)
    assert gradient.abs().max() < 1e-5


# ---- flex attention ----


@pytest.fixture
def flex(monkeypatch):
    """transformers' interface of that name, where PyTorch's function is not compiled, which would take seconds a case.

    So its numbers are those of PyTorch's plain steps, which say so in a warning.
    """
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(interfaces, "compiled_flex_attention", lambda: flex_attention)
    return flex_attention_forward


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("scores", ["plain", "bias of heads", "bias of samples", "pairs", "bias and pairs"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_flex_attention_equals_the_reference(flex, is_causal, masked, scores):
    for grid in PRIME_GRIDS[:-1]:
        for axis, length in enumerate(grid):
            query, key, value = (states(2, *grid, 3, 4, seed=seed, dtype=torch.float32) for seed in range(3))
            options = {"is_causal": is_causal, "scaling": 0.4}
            if masked:
                options["mask"] = states(2, *grid, seed=3) > 0
                options["mask"][(slice(None), *[0] * axis)] = False  # lines without any key
            if "bias" in scores:
                options["bias"] = states(2, 3, length, length, dtype=torch.float32)[: 2 if "samples" in scores else 1]
            if "pairs" in scores:
                options["pair_mask"] = states(1, length, length, seed=4) > -0.5
            found, weights = axial_attention(query, key, value, axis, attention_interface=flex, **options)
            options = {name: option.double() if name == "bias" else option for name, option in options.items()}
            operands = (operand.double() for operand in (query, key, value))
            expected, _ = axial_attention(*operands, axis, attention_interface=eager_attention_forward, **options)
            assert weights is None
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    empty = query[:0]
    assert axial_attention(empty, empty, empty, 0, attention_interface=flex)[0].shape == empty.shape


def make_flex_model(**options):
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[10, 21], patch_size=[2, 3], hidden_size=24, num_attention_heads=4, num_hidden_layers=1, **options
    )
    model = AxialModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"position_embedding": "rotary+relative"},
        pytest.param({"attention_window": [1, None], "attention_mode": "split"}, marks=pytest.mark.audit),
        pytest.param({"position_embedding": "relative", "periodic": [False, True]}, marks=pytest.mark.audit),
        pytest.param({"num_inducing_points": [None, 2], "use_qk_norm": True}, marks=pytest.mark.audit),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_model_with_compiled_flex_attention(options):
    torch.compiler.reset()
    model = make_flex_model(**options)
    pixel_values = states(2, 3, 10, 21, dtype=torch.float32)
    mask = states(2, 5, 7, seed=1) > 0
    mask[:, 1] = False
    model.set_attn_implementation("sdpa")
    expected = model(pixel_values, attention_mask=mask, output_attentions=True)
    model.set_attn_implementation("flex_attention")
    assert model.config._attn_implementation == "flex_attention"
    found = model(pixel_values, attention_mask=mask)
    torch.testing.assert_close(found.last_hidden_state[mask], expected.last_hidden_state[mask], rtol=1e-4, atol=1e-5)
    maps = model(pixel_values, attention_mask=mask, output_attentions=True).attentions  # eager attention gives them
    for map, expected_map in zip(maps, expected.attentions, strict=True):
        torch.testing.assert_close(map, expected_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reversible", [False, True])
def test_what_flex_attention_lacks_is_refused_by_name(reversible):
    torch.compiler.reset()
    model = make_flex_model(reversible=reversible, attention_probs_dropout_prob=0.1)
    model.set_attn_implementation("flex_attention")
    pixel_values = states(1, 3, 10, 21, dtype=torch.float32)
    with pytest.raises(ValueError, match='"flex_attention" has no backward on CPUs: take "sdpa"'):
        model(pixel_values)
    with torch.no_grad():
        with pytest.raises(ValueError, match='"flex_attention" has no dropout=0.1: take "sdpa"'):
            model.train()(pixel_values)
        with pytest.raises(ValueError, match='"flex_attention" has no torch.float64 on CPUs: take "sdpa"'):
            model.eval().double()(pixel_values.double())
        with pytest.raises(Exception, match='"flex_attention" has no place in a compiled model on CPUs: take "sdpa"'):
            torch.compile(model.float(), fullgraph=True)(pixel_values)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="backward on CPUs"):  # of the pixels
        model(pixel_values.requires_grad_())


# ---- short lines on a GPU ----

SHORT = ("cuda", torch.bfloat16, 14, 14, 64)


@pytest.mark.parametrize(
    ("changed", "prefers"),
    [
        ({}, True),
        ({1: torch.float16, 2: 1, 3: 64, 4: 128}, True),
        ({0: "cpu"}, False),
        ({0: "mps"}, False),
        ({1: torch.float32}, False),
        ({1: torch.float64}, False),
        ({2: 65}, False),
        ({3: 65}, False),
        ({4: 136}, False),
    ],
    ids=str,
)
def test_which_lines_are_for_the_memory_efficient_kernel(changed, prefers):
    call = [changed.get(place, value) for place, value in enumerate(SHORT)]
    assert interfaces.prefers_memory_efficient(*call) is prefers


def test_the_length_of_short_lines_may_be_another_or_none(monkeypatch):
    monkeypatch.setattr(interfaces, "SHORT_LINES", {"cuda": 13})
    assert not interfaces.prefers_memory_efficient(*SHORT)
    monkeypatch.setattr(interfaces, "SHORT_LINES", {})
    assert not interfaces.prefers_memory_efficient(*SHORT)


@pytest.mark.parametrize(
    ("capability", "hip", "both"),
    [((8, 0), None, True), ((12, 1), None, True), ((7, 5), None, False), ((13, 0), None, False), ((9, 0), "6", False)],
    ids=str,
)
def test_which_gpus_have_both_kernels(monkeypatch, capability, hip, both):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert interfaces.has_both_kernels(torch.device("cuda")) is both


@pytest.fixture
def memory_efficient_calls(monkeypatch):
    """As if CPUs had the memory-efficient kernel, in plain steps. Yields the arguments that it was called with."""
    calls = []

    def scores(query, key, is_causal, scale):
        product = query.double() @ key.double().mT * scale
        causal = torch.ones(product.shape[-2:], dtype=torch.bool).tril()
        return product.masked_fill(~causal, -torch.inf) if is_causal else product

    def forward(query, key, value, bias, with_backward, dropout=0.0, is_causal=False, *, scale=None):
        calls.append((tuple(query.shape), with_backward, dropout, is_causal, scale))
        products = scores(query, key, is_causal, scale)
        output = (products.softmax(-1) @ value.double()).to(query.dtype).transpose(1, 2).contiguous().transpose(1, 2)
        padded = -(-query.shape[2] // 32) * 32 - query.shape[2]
        log_sum = torch.nn.functional.pad(products.logsumexp(-1).float(), [0, padded])
        log_sum = log_sum if with_backward else log_sum[..., :0].contiguous()
        return output, log_sum, torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)

    def backward(grad, query, key, value, bias, output, log_sum, seed, offset, *options, scale=None):
        _, _, is_causal = (*options, False)[:3]
        weights = (scores(query, key, is_causal, scale) - log_sum.double()[..., : query.shape[2], None]).exp()
        of_weights = grad.double() @ value.double().mT
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        found = of_scores @ key.double(), of_scores.mT @ query.double(), weights.mT @ grad.double()
        return *(each.to(query.dtype) for each in found), None

    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_efficient_attention", forward, "CPU")
    library.impl("_scaled_dot_product_efficient_attention_backward", backward, "CPU")
    monkeypatch.setattr(interfaces, "SHORT_LINES", {"cpu": 64})
    monkeypatch.setattr(interfaces, "has_both_kernels", lambda device: True)
    yield calls
    library._destroy()


def half_precision(*shape, seed=0):
    return states(*shape, seed=seed).to(torch.bfloat16).requires_grad_()


def with_gradients(attend, *inputs):
    output = attend(*inputs)
    return output, *torch.autograd.grad(output.double().square().sum(), inputs)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_short_lines_take_the_memory_efficient_kernel(memory_efficient_calls, compiled, is_causal, axis):
    torch.compiler.reset()
    inputs = [half_precision(2, 5, 7, 3, 8, seed=seed) for seed in range(3)]

    def attend(query, key, value):
        return axial_attention(query, key, value, axis, is_causal=is_causal, scaling=0.3)[0]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = with_gradients(attend, *inputs)
    assert not memory_efficient_calls
    found = with_gradients(torch.compile(attend, backend="aot_eager", fullgraph=True) if compiled else attend, *inputs)
    folded = ((2, 7 * 3, 5, 8), (2 * 5, 3, 7, 8))[axis]
    assert memory_efficient_calls == [(folded, True, 0.0, is_causal, 0.3)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_no_sums_for_a_backward_that_never_comes(memory_efficient_calls):
    query = half_precision(2, 5, 7, 3, 8)
    options = {"scaling": 0.3, "dropout": 0.25}
    with torch.no_grad():
        axial_attention(query, query, query, 0, **options)
    axial_attention(*[query.detach()] * 3, 0, **options)
    axial_attention(query.detach(), query.detach(), query, 0, **options)
    assert [call[1:3] for call in memory_efficient_calls] == [(False, 0.25), (False, 0.25), (True, 0.25)]


@pytest.mark.parametrize(
    "what",
    [
        "mask",
        "head_dim",
        "values",
        "strides",
        "nothing",
        "no keys",
        "dtype",
        "length",
        "exporting",
        "kernels",
        "device",
    ],
)
def test_other_lines_leave_the_choice_to_pytorch(memory_efficient_calls, monkeypatch, what):
    torch.manual_seed(0)
    query, key, value = (half_precision(2, 5, 7, 3, 8, seed=seed).detach() for seed in range(3))
    options = {"scaling": 0.3}
    axial_attention(query, key, value, 0, **options)
    assert len(memory_efficient_calls) == 1
    match what:
        case "mask":
            options["mask"] = torch.ones(2, 5, 7, dtype=torch.bool)
        case "head_dim":
            query, key = query[..., :7], key[..., :7]
        case "values":
            value = value[..., :7]
        case "strides":
            value = torch.stack([value, value], -1)[..., 0]
        case "nothing":
            query, key, value = query[:0], key[:0], value[:0]
        case "no keys":
            key, value = key[:, :0], value[:, :0]
        case "dtype":
            query, key, value = query.float(), key.float(), value.float()
        case "length":
            query = query.repeat(1, 13, 1, 1, 1)
        case "exporting":
            monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        case "device":
            monkeypatch.setattr(interfaces, "has_both_kernels", lambda device: False)
    backends = [torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION, torch.nn.attention.SDPBackend.MATH]
    with torch.nn.attention.sdpa_kernel(backends) if what == "kernels" else contextlib.nullcontext():
        axial_attention(query, key, value, 0, **options)
    assert len(memory_efficient_calls) == 1


def test_inputs_of_two_dtypes_are_left_to_autocast(memory_efficient_calls):
    query = half_precision(2, 5, 7, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert axial_attention(query, query, query.float(), 0)[0].dtype == torch.bfloat16
    assert not memory_efficient_calls


@pytest.mark.parametrize("kernel", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"])
def test_a_kernel_that_is_left_out_is_noticed(kernel):
    backends = torch.nn.attention.SDPBackend
    others = {"FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"} - {kernel}
    assert interfaces.every_kernel_is_enabled()
    with torch.nn.attention.sdpa_kernel([getattr(backends, name) for name in others]):
        assert not interfaces.every_kernel_is_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1, 5, 14, 64, 65])
@pytest.mark.parametrize("is_causal", [False, True])
def test_short_lines_on_a_gpu(is_causal, length):
    inputs = [half_precision(2, length, 7, 3, 64, seed=seed).detach().cuda().requires_grad_() for seed in range(3)]

    def attend(*inputs):
        return axial_attention(*inputs, 0, is_causal=is_causal)[0]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = with_gradients(attend, *(each.detach().double().requires_grad_() for each in inputs))
    found = with_gradients(attend, *inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        attend(*inputs)
    operators = {event.key for event in profiled.key_averages()}
    assert ("aten::_scaled_dot_product_efficient_attention" in operators) == (length <= 64)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-2, atol=2e-2)


# ---- FlashAttention's package ----


@pytest.fixture
def flash_calls(monkeypatch):
    """What transformers hands to FlashAttention, for which eager attention computes."""
    calls = []

    def flash(query, key, value, attention_mask, query_length, is_causal, dropout, softmax_scale, **options):
        calls.append({"shape": tuple(query.shape), "mask": attention_mask, "causal": is_causal, **options})
        calls[-1] |= {"dropout": dropout, "scale": softmax_scale, "query_length": query_length}
        heads_first = (states.transpose(1, 2) for states in (query, key, value))
        return eager_attention_forward(None, *heads_first, None, scaling=softmax_scale, is_causal=is_causal)[0]

    monkeypatch.setattr("transformers.integrations.flash_attention._flash_attention_forward", flash)
    return calls


def make_flash_model(**options):
    model = make_flex_model(**options).to(torch.bfloat16)
    model.config._attn_implementation = "flash_attention_2"  # as `set_attn_implementation` does where it is installed
    return model


@pytest.mark.parametrize("options", [{}, {"reversible": True, "position_embedding": "rotary"}], ids=str)
def test_a_model_hands_its_lines_to_flash_attention(flash_calls, options):
    model = make_flash_model(**options)
    pixel_values = states(2, 3, 10, 21).to(torch.bfloat16)
    found = model(pixel_values).last_hidden_state
    common = {"mask": None, "causal": False, "dropout": 0.0, "scale": None, "deterministic": None, "layer_idx": None}
    common |= {"attn_implementation": "flash_attention_2"}
    for call, (lines, length) in zip(flash_calls, [(2 * 7, 5), (2 * 5, 7)], strict=True):
        assert call["shape"] == (lines, length, 4, 6) and call["query_length"] == length
        assert {name: call[name] for name in common} == common
    model.set_attn_implementation("eager")
    torch.testing.assert_close(found, model(pixel_values).last_hidden_state)
    assert len(flash_calls) == 2
    found.float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.layers.parameters())


def test_options_of_a_call_reach_flash_attention(flash_calls, monkeypatch):
    core = AxialAttentionCore(make_flash_model(attention_probs_dropout_prob=0.25).config, 0, is_causal=True)
    query, key, value = (half_precision(2, 5, 7, 3, 8, seed=seed) for seed in range(3))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    core.train()(query, key, value, is_causal=True)
    assert flash_calls[0]["dropout"] == 0.25 and flash_calls[0]["causal"] and flash_calls[0]["deterministic"] is True
    output, maps = core.eval()(query, key, value, output_attentions=True)  # which eager attention gives
    assert maps.shape == (2 * 7, 3, 5, 5)
    assert core(query[:0], key[:0], value[:0])[0].shape == (0, 5, 7, 3, 8) and len(flash_calls) == 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"position_embedding": "relative"}, "masks, biases or windows"),
        ({"attention_window": 1}, "masks, biases or windows"),
        ({"hidden_size": 4 * 264}, "head_dim=264, above 256"),
    ],
    ids=str,
)
def test_models_that_flash_attention_cannot_serve_say_so(flash_calls, options, what):
    sizes = {"image_size": [10, 21], "patch_size": [2, 3], "num_attention_heads": 4, "num_hidden_layers": 1}
    model = AxialModel(AxialConfig(**{"hidden_size": 24, **sizes, **options})).to(torch.bfloat16)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=f'FlashAttention has no {what}: take attn_implementation="sdpa"'):
        model(torch.zeros(1, 3, 10, 21, dtype=torch.bfloat16))
    assert not flash_calls


def test_inputs_that_flash_attention_cannot_serve_are_refused_by_name(flash_calls):
    model = make_flash_model()
    pixel_values = torch.zeros(1, 3, 10, 21, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="FlashAttention has no masks"):
        model(pixel_values, attention_mask=torch.ones(1, 5, 7, dtype=torch.bool))
    query = half_precision(2, 5, 7, 3, 8)
    with pytest.raises(ValueError, match=r"give axial_attention\(module=\)"):
        axial_attention(query, query, query, 0, attention_interface=flash_attention_forward)
    model.float()
    with pytest.raises(ValueError, match="FlashAttention has no torch.float32"):
        model(pixel_values.float())
    assert not flash_calls
    with torch.autocast("cpu", torch.bfloat16):
        model(pixel_values.float())
    assert len(flash_calls) == 2


def test_without_flash_attention_transformers_says_what_is_missing():
    if is_flash_attn_2_available():
        pytest.skip("FlashAttention is installed")
    with pytest.raises(ImportError, match="FlashAttention2 has been toggled on, but it cannot be used"):
        make_flex_model().set_attn_implementation("flash_attention_2")


@pytest.mark.gpu
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs the package flash-attn")
@pytest.mark.parametrize("options", [{}, {"reversible": True, "position_embedding": "rotary"}], ids=str)
def test_a_model_with_flash_attention_on_a_gpu(options):
    model = make_flex_model(**options).to("cuda", torch.bfloat16)
    pixel_values = states(2, 3, 10, 21).to("cuda", torch.bfloat16)
    model.set_attn_implementation("sdpa")
    expected = model(pixel_values).last_hidden_state
    model.set_attn_implementation("flash_attention_2")
    found = model(pixel_values).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
    found.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.layers.parameters())
