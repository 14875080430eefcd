"""The drop-in classes against the package `axial_attention` 0.6.1, in float64."""

import copy
import inspect
import itertools
import json

import axial_attention as package
import pytest
import torch
from axial_attention.axial_attention import PermuteToFrom, PreNorm, calculate_permutations
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModel
from transformers.distributed import DistributedConfig

from modeling_axial import (
    AxialAttention,
    AxialImageTransformer,
    AxialImageTransformerConfig,
    AxialImageTransformerModel,
    AxialPositionalEmbedding,
    InducedSetAttention,
    SelfAttention,
    TwoStream,
    image_transformer,
)
from tests.ranks import gradient_error, held_share, run_on_ranks

LENGTHS = [3, 5, 2, 7]  # of the axes
PACKAGE_CLASSES = {
    AxialAttention: package.AxialAttention,
    AxialImageTransformer: package.AxialImageTransformer,
    AxialPositionalEmbedding: package.AxialPositionalEmbedding,
    SelfAttention: package.SelfAttention,
}


def randn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_same(actual, expected, bound=1e-12):
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error <= bound, f"relative error {error:.1e}"


def outputs_and_gradients(module, *inputs):
    """The output, then the gradients of a weighted sum of it with respect to inputs and parameters."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    module.zero_grad()
    output = module(*inputs)
    output.backward(randn(*output.shape, seed=2))  # axial_attention knows no torch.autograd.grad
    return output, *(tensor.grad for tensor in (*inputs, *module.parameters()))


def assert_agrees(module, oracle, *inputs, bound=1e-12):
    compared = zip(outputs_and_gradients(module, *inputs), outputs_and_gradients(oracle, *inputs), strict=True)
    checked = 0
    for actual, expected in compared:
        assert_same(actual, expected, bound)
        checked += 1
    assert checked > 1 + len(inputs)
    with torch.no_grad():  # a path of its own, block by block
        assert_same(module(*inputs), oracle(*inputs), bound)


def make_pair(cls, *args, **kwargs):
    """Ours and that of `axial_attention`, made with the same random numbers, in float64."""
    torch.manual_seed(0)
    ours = cls(*args, **kwargs)
    torch.manual_seed(0)
    theirs = PACKAGE_CLASSES[cls](*args, **kwargs)
    return ours.double(), theirs.double()


def feature_shape(num_axes, dim, dim_index, batch=2):
    shape = [batch, *LENGTHS[:num_axes]]
    shape.insert(dim_index % (num_axes + 2), dim)
    return shape


def places_of_channels(num_axes):
    return [*range(1, num_axes + 2), *range(-num_axes - 1, 0)]


# Against the oracle

CASES = [(num_axes, dim_index) for num_axes in (1, 2, 3, 4) for dim_index in places_of_channels(num_axes)]


@pytest.mark.parametrize("sum_axial_out", [True, False], ids=["sum", "sequential"])
@pytest.mark.parametrize(("num_axes", "dim_index"), CASES)
def test_axial_attention(num_axes, dim_index, sum_axial_out, monkeypatch):
    monkeypatch.setattr(image_transformer, "tokens_at_once", lambda: 11)
    options = {"heads": 2, "dim_heads": 5, "dim_index": dim_index, "sum_axial_out": sum_axial_out}
    ours, theirs = make_pair(AxialAttention, 6, num_dimensions=num_axes, **options)
    # Behind three other axes the gradient of the queries is 1e-5 of the others, and more of it is rounding.
    assert_agrees(ours, theirs, randn(*feature_shape(num_axes, 6, dim_index)), bound=1e-11)
    assert ours(randn(*feature_shape(num_axes, 6, dim_index))).is_contiguous()


@pytest.mark.parametrize(("dim", "heads", "dim_heads"), [(7, 7, None), (6, 3, None), (4, 1, 5), (3, 1, 1), (8, 4, 3)])
def test_axial_attention_heads(dim, heads, dim_heads):
    ours, theirs = make_pair(AxialAttention, dim, heads=heads, dim_heads=dim_heads, dim_index=1)
    assert_agrees(ours, theirs, randn(3, dim, 5, 7))


@pytest.mark.parametrize("positions", [None, (5, 3)], ids=["no positions", "positions"])
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("tokens", [11, 10_000], ids=["blocks", "whole"])
def test_axial_image_transformer(tokens, reversible, positions, monkeypatch):
    monkeypatch.setattr(image_transformer, "tokens_at_once", lambda: tokens)
    options = {"heads": 2, "dim_heads": 3, "reversible": reversible, "axial_pos_emb_shape": positions}
    ours, theirs = make_pair(AxialImageTransformer, 7, 3, **options)
    assert_agrees(ours, theirs, randn(2, 7, 5, 3))
    assert ours(randn(2, 7, 5, 3)).is_contiguous()


def test_weights_go_both_ways():
    pairs = [
        make_pair(AxialAttention, 6, 3, heads=2),
        make_pair(AxialPositionalEmbedding, 6, (3, 5)),
        make_pair(SelfAttention, 6, 2),
        make_pair(AxialImageTransformer, 6, 2, heads=2, reversible=True, axial_pos_emb_shape=(3, 5)),
        make_pair(AxialImageTransformer, 6, 2, heads=2, reversible=False),
    ]
    for ours, theirs in pairs:
        for parameter, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(parameter, expected)  # the same seed draws the same initial weights
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.normal_()
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.mul_(2)
        theirs.load_state_dict(ours.state_dict())
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_names_of_the_state_dict():
    attention = {"to_q.weight", "to_kv.weight", "to_out.weight", "to_out.bias"}
    assert set(AxialAttention(4, 2, heads=2).state_dict()) == {
        f"axial_attentions.{axis}.fn.{name}" for axis in range(2) for name in attention
    }
    induced = {"queries", *(f"{part}.{name}" for part in ("attn_in", "attn_out") for name in attention)}
    assert set(InducedSetAttention(3, 4, heads=2).state_dict()) == induced
    layer = {f"fn.{name}" for name in ("norm.weight", "norm.bias", *(f"fn.{name}" for name in attention))}
    feed_forward = {"0.g", "0.b", "1.weight", "1.bias", "3.weight", "3.bias"}
    for reversible, places in ((True, ["f.net", "g.net"]), (False, ["0", "1"])):
        names = {f"layers.blocks.0.{place}.{name}" for place in places for name in layer}
        names |= {f"layers.blocks.1.{place}.{name}" for place in places for name in feed_forward}
        transformer = AxialImageTransformer(4, 1, heads=2, reversible=reversible, axial_pos_emb_shape=(3, 5))
        assert set(transformer.state_dict()) == names | {"pos_emb.param_0", "pos_emb.param_1"}


@pytest.mark.parametrize(("num_axes", "dim_index"), [(1, 1), (2, 1), (2, 2), (2, 3), (3, 2), (4, 5)])
def test_positional_embedding(num_axes, dim_index):
    ours, theirs = make_pair(AxialPositionalEmbedding, 6, tuple(LENGTHS[:num_axes]), dim_index)
    x = randn(*feature_shape(num_axes, 6, dim_index))
    assert_agrees(ours, theirs, x)
    negative = AxialPositionalEmbedding(6, tuple(LENGTHS[:num_axes]), dim_index - num_axes - 2).double()
    negative.load_state_dict(ours.state_dict())
    assert torch.equal(negative(x), ours(x))


@pytest.mark.parametrize("dim_heads", [None, 5])
def test_self_attention(dim_heads):
    ours, theirs = make_pair(SelfAttention, 6, 2, dim_heads)
    assert_agrees(ours, theirs, randn(3, 7, 6))
    assert_agrees(ours, theirs, randn(3, 7, 6), randn(3, 11, 6, seed=3))


@pytest.mark.parametrize("dim_heads", [None, 5])
def test_induced_set_attention(dim_heads):
    ours = InducedSetAttention(3, 6, 2, dim_heads).double()
    assert ours.attn_in.to_q.out_features == 2 * (dim_heads or 3)
    reading, answering = (package.SelfAttention(6, 2, dim_heads).double() for _ in range(2))
    reading.load_state_dict(ours.attn_in.state_dict())
    answering.load_state_dict(ours.attn_out.state_dict())
    x = randn(2, 7, 6)
    expected = answering(x, reading(ours.queries.repeat(2, 1, 1), x))
    assert_same(ours(x), expected)
    assert ours.queries.shape == (1, 3, 6) and 0.3 < ours.queries.std() < 3
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    assert_same(ours(x[:, order]), expected[:, order])
    gradients = outputs_and_gradients(ours, x)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


# What the README of axial_attention shows, at a size that runs in a second


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 3, 256, 256), {"dim": 3, "dim_index": 1, "dim_heads": 32, "heads": 1, "num_dimensions": 2}),
        ((1, 20, 20, 512), {"dim": 512, "dim_index": -1, "heads": 8, "num_dimensions": 2}),
        ((1, 5, 128, 16, 24), {"dim": 128, "dim_index": 2, "heads": 8, "num_dimensions": 3}),
    ],
    ids=["image", "latents", "video"],
)
def test_readme_of_the_seed(shape, options):
    attn, oracle = AxialAttention(**options), package.AxialAttention(**options)
    oracle.load_state_dict(attn.state_dict())
    x = randn(*shape, dtype=torch.float32)
    assert_same(attn(x), oracle(x), 1e-5)
    with torch.no_grad():
        assert_same(attn(x), oracle(x), 1e-5)


def test_readme_of_the_seed_transformer():
    conv1x1 = nn.Conv2d(3, 128, 1)
    transformer, oracle = (cls(dim=128, depth=12, reversible=True) for cls in PACKAGE_CLASSES_OF_TRANSFORMER)
    oracle.load_state_dict(transformer.state_dict())
    img = randn(1, 3, 16, 24, dtype=torch.float32)
    assert_same(transformer(conv1x1(img)), oracle(conv1x1(img)), 1e-5)


PACKAGE_CLASSES_OF_TRANSFORMER = (AxialImageTransformer, package.AxialImageTransformer)


# Blocks of lines


class RunningSums(nn.Module):
    """Sums along one axis; remembers how many tokens it was given at a time."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, lines, axis=0):
        self.seen.append(lines.shape[:-1].numel())
        return lines.cumsum(axis + 1)


@pytest.mark.parametrize("tokens", [1, 6, 7, 20, 10_000])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 7, 3), (2, 3, 5, 2, 4), (0, 3, 5, 4), (2, 0, 5, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_blocks_of_lines(training, tokens, shape, monkeypatch):
    monkeypatch.setattr(image_transformer, "tokens_at_once", lambda: tokens)
    hidden_states = randn(*shape).requires_grad_(training)
    weights = randn(*shape, seed=2)
    for axis in range(len(shape) - 2):
        running_sums = RunningSums()
        expected = hidden_states.cumsum(axis + 1)
        with torch.set_grad_enabled(training):
            output = image_transformer.AlongAxis(axis, running_sums)(hidden_states)
        assert torch.equal(output, expected)
        if training:
            gradients = [torch.autograd.grad(states, hidden_states, weights) for states in (output, expected)]
            assert torch.equal(*(gradient for (gradient,) in gradients))
        assert sum(running_sums.seen) == hidden_states[..., 0].numel()
        assert max(running_sums.seen) <= max(tokens, shape[axis + 1])


@pytest.mark.parametrize("threads", [1, 8, 16])
def test_blocks_grow_with_the_threads(threads, monkeypatch):
    monkeypatch.setattr(image_transformer, "BLOCK_TOKENS", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    hidden_states, running_sums = randn(7, 41, 5, 3), RunningSums()
    assert torch.equal(image_transformer.AlongAxis(1, running_sums)(hidden_states), hidden_states.cumsum(2))
    assert max(running_sums.seen) == 10 * threads  # in whole lines of 5 cells
    assert len(running_sums.seen) == -(-7 * 41 * 5 // (10 * threads))


def test_blocks_of_lines_keep_what_autocast_and_hooks_see(monkeypatch):
    attention = AxialAttention(6, 2, heads=2, dim_index=1)
    x = randn(2, 6, 5, 7, dtype=torch.float32)
    seen = []
    for module in attention.axial_attentions:
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    whole = attention(x)
    monkeypatch.setattr(image_transformer, "tokens_at_once", lambda: 11)
    with torch.no_grad():
        blocks = attention(x)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(seen[2:], seen[:2])
    torch.testing.assert_close(sum(seen[:2]).movedim(-1, 1), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(x).dtype == torch.bfloat16
        with torch.no_grad():
            assert attention(x).dtype == torch.bfloat16


# The faults of axial_attention, repaired


def make_transformer(reversible=True, depth=3, **options):
    torch.manual_seed(0)
    return AxialImageTransformer(6, depth, heads=2, reversible=reversible, **options).double()


def stored(transformer):
    """A copy that stores activations: the oracle of the rebuilding executor."""
    transformer = copy.deepcopy(transformer)
    transformer.layers.executor_class = TwoStream
    return transformer


def gradients(transformer, x):
    transformer(x).square().sum().backward()
    return [parameter.grad for parameter in transformer.parameters()]


def test_every_parameter_gets_its_gradient_when_the_input_needs_none():
    transformer, x = make_transformer(), randn(2, 6, 5, 3)
    found = gradients(transformer, x)
    assert all(gradient is not None for gradient in found)
    for gradient, expected in zip(found, gradients(stored(transformer), x), strict=True):
        assert_same(gradient, expected)


def test_backward_in_eval_mode():
    transformer, x = make_transformer().eval(), randn(2, 6, 5, 3)
    for gradient, expected in zip(gradients(transformer, x), gradients(make_transformer(), x), strict=True):
        assert torch.equal(gradient, expected)


def test_activations_are_dropped_in_forward():
    x = randn(2, 6, 5, 3)
    for transformer, dropped in ((make_transformer(), True), (stored(make_transformer()), False)):
        storages = []
        for module in transformer.modules():
            if isinstance(module, nn.LeakyReLU):
                module.register_forward_hook(
                    lambda module, inputs, output, storages=storages: storages.append(
                        StorageWeakRef(output.untyped_storage())
                    )
                )
        output = transformer(x)
        assert [storage.expired() for storage in storages] == [dropped] * 6
        output.sum().backward()


def test_autocast():
    transformer, x = make_transformer().float(), randn(2, 6, 5, 3, dtype=torch.float32)
    plain = stored(transformer)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = transformer(x), plain(x)
        low_precision = transformer(x.bfloat16())
    assert output.dtype == low_precision.dtype == torch.float32 and torch.equal(output, expected)
    assert not torch.allclose(output, transformer(x), rtol=1e-6, atol=1e-6)  # bfloat16 took part
    output.square().sum().backward()
    expected.square().sum().backward()
    for parameter, oracle in zip(transformer.parameters(), plain.parameters(), strict=True):
        # Recomputation starts from inputs that rounding moved by 1e-7, which can flip a rounding to bfloat16.
        assert_same(parameter.grad, oracle.grad, 5e-3)


def test_two_forwards_before_one_backward():
    transformer = make_transformer()
    plain = stored(transformer)
    first, second = randn(2, 6, 5, 3), randn(1, 6, 7, 2, seed=3)
    for module in (transformer, plain):
        (module(first).square().sum() + module(second).pow(3).sum()).backward()
    for parameter, expected in zip(transformer.parameters(), plain.parameters(), strict=True):
        assert_same(parameter.grad, expected.grad)


@pytest.mark.parametrize("module", [AxialAttention(4, heads=2, dim_index=1), AxialImageTransformer(4, 1, heads=2)])
def test_double_backward(module):
    x = randn(1, 4, 2, 3).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused kernels have no second derivative
        assert torch.autograd.gradcheck(module.double(), x)
        assert torch.autograd.gradgradcheck(module, x)


DERIVATIVES = {
    "forward mode": lambda module, x: torch.func.jvp(module, (x,), (x.flip(2),))[1],
    "forward mode of a gradient": lambda module, x: DERIVATIVES["forward mode"](torch.func.grad(cubes(module)), x),
    "gradient of a gradient": lambda module, x: torch.func.grad(cubes(torch.func.grad(cubes(module))))(x),
    "vmap": lambda module, x: torch.func.vmap(module, in_dims=1)(x[:, None]),
}


def cubes(function):
    return lambda x: function(x).pow(3).sum()


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_that_the_seed_has(derivative):
    ours, theirs = make_pair(AxialAttention, 4, heads=2, dim_index=1)
    x = randn(1, 4, 2, 3)
    assert_same(DERIVATIVES[derivative](ours, x), DERIVATIVES[derivative](theirs, x))


def test_forward_mode_of_dual_tensors():
    ours, theirs = make_pair(AxialAttention, 4, heads=2, dim_index=1)
    x, tangents = randn(1, 4, 2, 3), []
    for module in (ours, theirs):
        with forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(module(forward_ad.make_dual(x, x.flip(2)))).tangent)
    assert_same(*tangents)


def test_second_derivatives_name_the_way_out():
    """The way is the one that `test_double_backward` goes. First derivatives may ask for a graph and not use it."""
    ours, theirs = make_pair(AxialAttention, 4, heads=2, dim_index=1)
    x = randn(1, 4, 2, 3).requires_grad_()
    gradients = [torch.autograd.grad(cubes(module)(x), x, create_graph=True)[0] for module in (ours, theirs)]
    assert_same(*gradients)
    with pytest.raises(ValueError, match=r"sdpa_kernel\(torch.nn.attention.SDPBackend.MATH\).*attn_implementation="):
        gradients[0].sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(cubes(ours)(x), x, create_graph=True)
        penalties = [torch.autograd.grad(found.pow(2).sum(), x)[0] for found in (gradient, gradients[1])]
    assert_same(*penalties)


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("dim_index", [2, 3, -1, -3])
def test_channels_anywhere_in_the_transformer(dim_index, reversible):
    options = {"reversible": reversible, "axial_pos_emb_shape": (5, 3)}
    first = make_transformer(**options)
    elsewhere = make_transformer(dim_index=dim_index, **options)
    weights = first.state_dict()
    elsewhere.load_state_dict(
        {name: w.movedim(1, dim_index) if name.startswith("pos_emb") else w for name, w in weights.items()}
    )
    x = randn(2, 6, 5, 3)
    assert_same(elsewhere(x.movedim(1, dim_index)), first(x).movedim(1, dim_index))


def oracle_of_any_number_of_axes(transformer, x):
    """Two streams through attention along each axis in turn and then the feed-forwards, from the attention of the
    package and the formula of its norm."""
    num_axes = transformer.num_dimensions
    convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[num_axes - 1]
    streams = [x, x]
    functions = [function for block in transformer.layers.blocks for function in (block.f["net"], block.g["net"])]
    assert len(functions) == 2 * num_axes * 2
    for number, function in enumerate(functions):
        axis = number % (2 * num_axes)
        source = streams[(number + 1) % 2]
        if axis < num_axes:
            permutation = calculate_permutations(num_axes, 1)[axis]
            oracle = PermuteToFrom(permutation, PreNorm(6, package.SelfAttention(6, 2))).double()
            oracle.load_state_dict(function.state_dict())
            update = oracle(source)
        else:
            norm, up, _, down = function
            std = source.var(dim=1, unbiased=False, keepdim=True).sqrt()
            normalised = (source - source.mean(dim=1, keepdim=True)) / (std + 1e-5) * norm.g + norm.b
            hidden = nn.functional.leaky_relu(convolve(normalised, up.weight, up.bias, padding=1))
            update = convolve(hidden, down.weight, down.bias, padding=1)
        streams[number % 2] = streams[number % 2] + update
    return sum(streams) / 2


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_transformer_of_any_number_of_axes(num_axes):
    transformer = make_transformer(depth=2, num_dimensions=num_axes)
    with torch.no_grad():  # so that gain and bias of the norms count
        for parameter in transformer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) / 10)
    x = randn(2, 6, *LENGTHS[:num_axes])
    assert_same(transformer(x), oracle_of_any_number_of_axes(transformer, x))


def test_norm_adds_its_epsilon_to_the_deviation():
    norm = image_transformer.ChannelNorm(5, 2).double()
    oracle = package.axial_attention.ChanLayerNorm(5).double()
    for scale in (1, 1e-5, 1e-9):
        assert_agrees(norm, oracle, randn(2, 5, 3, 2) * scale, bound=1e-10)
    constant = torch.full((1, 5, 3, 2), 0.3, dtype=torch.float64)
    _, *found = outputs_and_gradients(norm, constant)
    assert all(gradient.isfinite().all() for gradient in found)


def test_state_is_in_registered_parameters_only():
    transformer, x = make_transformer(axial_pos_emb_shape=(5, 3)), randn(2, 6, 5, 3)
    transformer(x).sum().backward()
    for module in transformer.modules():
        state = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        assert not [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    replica = copy.deepcopy(transformer)
    with torch.no_grad():
        for parameter in replica.parameters():
            parameter.mul_(1.1)
        expected = replica(x)
        assert not torch.equal(expected, transformer(x))
        assert torch.equal(functional_call(transformer, dict(replica.named_parameters()), (x,)), expected)


@pytest.mark.parametrize("executor_class", [TwoStream, None])
def test_functional_call_with_gradients(executor_class):
    transformer, x = make_transformer(reversible=executor_class is not None), randn(2, 6, 5, 3)
    transformer.layers.executor_class = executor_class or transformer.layers.executor_class
    other = copy.deepcopy(transformer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    parameters = dict(other.named_parameters())
    output = functional_call(transformer, parameters, (x,))
    found = torch.autograd.grad(output.square().sum(), list(parameters.values()))
    assert all(map(torch.equal, found, gradients(other, x)))


def test_defaults_are_immutable():
    checked = 0
    for name, cls in inspect.getmembers(image_transformer, inspect.isclass):
        if cls.__module__ == image_transformer.__name__:
            for parameter in inspect.signature(cls).parameters.values():
                assert parameter.default is parameter.empty or isinstance(parameter.default, int | bool | None), name
                checked += 1
    assert checked > 30


def test_inside_a_sequential():
    def network(classes):
        attention, positions = classes
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 1), positions(6, (5, 7)), attention(6, dim_index=1, heads=2), nn.ReLU(), nn.Conv2d(6, 2, 3)
        ).double()

    ours = network((AxialAttention, AxialPositionalEmbedding))
    theirs = network((package.AxialAttention, package.AxialPositionalEmbedding))
    assert_agrees(ours, theirs, randn(2, 3, 5, 7))


@pytest.mark.parametrize("reversible", [True, False])
def test_whole_graph_is_captured(reversible):
    torch._dynamo.reset()
    transformer, x = make_transformer(reversible, depth=1), randn(2, 6, 5, 3)
    compiled = torch.compile(transformer, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), transformer(x))
    with torch.no_grad():
        assert_same(compiled(x), transformer(x))


def test_other_dtypes():
    for module in (make_transformer(), AxialAttention(6, heads=2, dim_index=1)):
        x = randn(2, 6, 5, 3)
        expected = module.double()(x)
        output = module.bfloat16()(x.bfloat16())
        assert output.dtype == torch.bfloat16
        assert_same(output.double(), expected, 0.05)


# Positions


def test_smaller_inputs_use_the_leading_positions():
    positions = AxialPositionalEmbedding(2, (5, 7)).double()
    x = randn(1, 2, 3, 7)
    expected = x + positions.param_0[:, :, :3] + positions.param_1
    assert torch.equal(positions(x), expected)
    transformer = make_transformer(axial_pos_emb_shape=(5, 7))
    assert transformer(randn(1, 6, 4, 2)).shape == (1, 6, 4, 2)


def test_positions_of_a_volume():
    positions = AxialPositionalEmbedding(2, (3, 5, 7)).double()
    x = torch.zeros(1, 2, 3, 5, 7, dtype=torch.float64)
    expected = positions.param_0[0, :, 1, 0, 0] + positions.param_1[0, :, 0, 4, 0] + positions.param_2[0, :, 0, 0, 6]
    torch.testing.assert_close(positions(x)[0, :, 1, 4, 6], expected)


# Errors name what is wrong

WRONG = {
    "dim=3 must be a multiple of heads=2": lambda: AxialAttention(3, heads=2),
    "dim=3 must be a multiple of heads=0": lambda: SelfAttention(3, 0),
    "dim_index=0 .* Dimension 0 is the batch": lambda: AxialAttention(4, heads=2, dim_index=0),
    "dim_index=-4 ": lambda: AxialAttention(4, heads=2, dim_index=-4),
    "dim_index=4 ": lambda: AxialAttention(4, heads=2, dim_index=4),
    "dim_index=0 ": lambda: AxialImageTransformer(4, 1, heads=2, dim_index=0),
    "emb_dim_index=0 ": lambda: AxialPositionalEmbedding(4, (2, 3), 0),
    "num_dimensions=0 ": lambda: AxialAttention(4, 0, heads=2),
    "num_dimensions=4 must be 1, 2 or 3": lambda: AxialImageTransformer(4, 1, heads=2, num_dimensions=4),
    r"axial_pos_emb_shape=\(3,\) must have": lambda: AxialImageTransformer(4, 1, heads=2, axial_pos_emb_shape=(3,)),
    "num_dimensions=2 axes": lambda: AxialAttention(4, heads=2)(randn(1, 2, 3, 5, 4)),
    "dim=4 channels at dimension 3": lambda: AxialAttention(4, heads=2).double()(randn(1, 4, 5, 3)),
    "dim=4 channels at dimension 1": lambda: AxialImageTransformer(4, 1, heads=2).double()(randn(1, 5, 3, 4)),
    r"got shape \(1, 5, 2, 3\)": lambda: AxialPositionalEmbedding(4, (2, 3))(randn(1, 5, 2, 3)),
    "8 positions along axis 1, the positional table only 3": lambda: AxialPositionalEmbedding(4, (2, 3))(
        randn(1, 4, 2, 8)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_wide_heads_need_no_divisible_channels():
    ours = AxialAttention(3, heads=2, dim_heads=32, dim_index=1).double()
    oracle = package.AxialAttention(3, heads=1, dim_heads=64, dim_index=1).double()
    oracle.load_state_dict(ours.state_dict())
    for attention in oracle.axial_attentions:
        attention.fn.heads, attention.fn.dim_heads = 2, 32
    assert_agrees(ours, oracle, randn(2, 3, 5, 7))


# The model of transformers

CONFIGS = {
    "plane": {"num_axes": 2, "position_embedding_shape": [5, 3]},
    "volume": {"num_axes": 3, "reversible": False},
}


def make_config(**options):
    return AxialImageTransformerConfig(hidden_size=6, num_hidden_layers=2, num_attention_heads=2, **options)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_model_is_the_transformer(options):
    model = AxialImageTransformerModel(make_config(**options))
    x = randn(2, 6, *LENGTHS[: options["num_axes"]], dtype=torch.float32)[:, :, :, :3]
    output = model(x)
    assert torch.equal(output.last_hidden_state, model.transformer(x))
    assert torch.equal(model(x, return_dict=False)[0], output.last_hidden_state)
    output.last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def make_model(**options):
    torch.manual_seed(0)
    return AxialImageTransformerModel(make_config(**options)).double()


def feature_maps(options):
    return randn(2, 6, *LENGTHS[: options["num_axes"]])[:, :, :, :3].contiguous()


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_hidden_states(options):
    model, x = make_model(**options), feature_maps(options)
    output = model(x, output_hidden_states=True)
    positioned, first, second = output.hidden_states
    assert torch.equal(positioned, model.transformer.pos_emb(x))
    assert torch.equal(second, output.last_hidden_state) and second.is_contiguous()
    whole = model.transformer.layers.blocks
    model.transformer.layers.blocks = whole[: len(whole) // 2]  # of two layers
    assert torch.equal(first, model(x).last_hidden_state)
    model.transformer.layers.blocks = whole
    assert model(x).hidden_states is None
    model.config.output_hidden_states = True
    assert all(map(torch.equal, model(x).hidden_states, output.hidden_states))
    assert all(map(torch.equal, model(x, return_dict=False)[1], output.hidden_states))
    # One is chosen by its number, counted from the end.
    assert [state is None for state in model(x, output_hidden_states=-3).hidden_states] == [False, True, True]


def test_gradients_through_hidden_states_that_are_rebuilt():
    model, x = make_model(**CONFIGS["plane"]), feature_maps(CONFIGS["plane"])
    plain = copy.deepcopy(model)
    plain.transformer.layers.executor_class = TwoStream
    for module in (model, plain):
        output = module(x, output_hidden_states=True, output_attentions=True)
        (output.hidden_states[1].pow(3).sum() + output.attentions[2].pow(3).sum()).backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    found = [(ours.grad, theirs.grad) for ours, theirs in pairs if theirs.grad is not None]
    assert len(found) > 15
    for gradient, expected in found:
        assert_same(gradient, expected)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_attention_maps(options, monkeypatch):
    monkeypatch.setattr(image_transformer, "tokens_at_once", lambda: 5)
    model, x = make_model(**options), feature_maps(options)
    num_axes, grid = options["num_axes"], x.shape[2:]
    inputs = []
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_pre_hook(lambda module, args: inputs.append((module, args[0])))
    output = model(x, output_attentions=True)
    assert len(output.attentions) == len(inputs) == 2 * num_axes
    for number, (weights, (module, hidden_states)) in enumerate(zip(output.attentions, inputs, strict=True)):
        axis = number % num_axes
        lines = hidden_states.movedim(axis + 1, -2).flatten(0, -3)
        assert weights.shape == (len(lines), 2, grid[axis], grid[axis])
        query, key = (
            projected.unflatten(-1, (2, 3)).transpose(1, 2)
            for projected in (module.to_q(lines), module.to_kv(lines)[..., :6])
        )
        torch.testing.assert_close(weights, (query @ key.mT / 3**0.5).softmax(-1), rtol=1e-12, atol=1e-12)
    assert_same(output.last_hidden_state, model(x).last_hidden_state)
    assert model(x).attentions is None
    always = make_model(**options, output_attentions=True)
    assert all(map(torch.equal, always(x).attentions, output.attentions))


def test_attention_implementations(monkeypatch):
    options = CONFIGS["plane"]
    fused, x = make_model(**options), feature_maps(options)
    assert fused.config._attn_implementation == "sdpa"
    eager = AxialImageTransformerModel(make_config(**options, attn_implementation="eager")).double()
    assert eager.config._attn_implementation == "eager"
    eager.load_state_dict(fused.state_dict())
    calls, kernel = [], nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    expected = eager(x).last_hidden_state
    assert not calls
    assert_same(fused(x).last_hidden_state, expected)
    assert len(calls) == 4  # layers, axes
    fused.set_attn_implementation("eager")
    assert torch.equal(fused(x).last_hidden_state, expected)
    assert len(calls) == 4


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_forward_mode_of_the_model(implementation):
    model = make_model(**CONFIGS["volume"], attn_implementation=implementation)
    x, step = feature_maps(CONFIGS["volume"]), 1e-6
    tangent = torch.func.jvp(lambda x: model(x).last_hidden_state, (x,), (x.flip(2),))[1]
    with torch.no_grad():
        ahead, behind = (model(x + sign * step * x.flip(2)).last_hidden_state for sign in (1, -1))
    assert_same(tangent, (ahead - behind) / (2 * step), 1e-7)


def test_unknown_keywords_are_refused():
    model, x = make_model(**CONFIGS["plane"]), feature_maps(CONFIGS["plane"])
    for name in ("attention_mask", "pixel_mask", "output_hidden_state"):
        with pytest.raises(TypeError, match=f"{name}.*it takes feature_maps"):
            model(x, **{name: None})


def test_compiled_model_records_states():
    torch._dynamo.reset()
    torch.manual_seed(0)
    fields = {"num_axes": 1, "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, x = AxialImageTransformerModel(AxialImageTransformerConfig(**fields)).double(), randn(2, 6, 5)
    options = {"output_hidden_states": True, "output_attentions": True}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, **options), model(x, **options)
    for ours, theirs in zip((*found.hidden_states, *found.attentions), (*expected[1], *expected[2]), strict=True):
        assert_same(ours, theirs)


def split_and_whole(folder, options):
    """The model, split by its own plan, against the same model whole."""
    load = AxialImageTransformerModel.from_pretrained
    plain = load(folder).train()
    split = load(folder, distributed_config=DistributedConfig(fsdp_size=2)).train()
    outputs = [model(feature_maps(options)).last_hidden_state for model in (plain, split)]
    for output in outputs:
        output.pow(3).sum().backward()
    return {
        "split": [name for name, module in split.named_modules() if isinstance(module, FSDPModule)],
        "held": held_share(split),
        "output": (outputs[0] - outputs[1]).abs().max().item(),
        "gradient": gradient_error(split, plain),
    }


def all_split_and_whole(folder):
    return {name: split_and_whole(f"{folder}/{name}", options) for name, options in CONFIGS.items()}


@pytest.mark.audit
@pytest.mark.distributed
def test_blocks_split_over_two_ranks(tmp_path):
    """FSDP by the model's own plan: its blocks are split, and it computes what the whole model does."""
    for name, options in CONFIGS.items():
        make_model(**options).save_pretrained(tmp_path / name)
    for rank, name in itertools.product(run_on_ranks(all_split_and_whole, tmp_path), CONFIGS):
        found = rank[name]
        expected = {f"transformer.layers.blocks.{number}" for number in range(2 * CONFIGS[name]["num_axes"])}
        assert set(found["split"]) == expected | {""} | ({"transformer.pos_emb"} if name == "plane" else set())
        assert found["held"] == pytest.approx(0.5, abs=0.03)
        assert found["output"] < 1e-12 and found["gradient"] < 1e-12


def test_initial_weights_of_the_model_are_those_of_the_seed():
    model = AxialImageTransformerModel(make_config(**CONFIGS["plane"]))
    # Each is drawn again by the model, so that only the distributions can be compared.
    bounds = {"to_q.weight": 6**-0.5, "1.weight": (6 * 9) ** -0.5, "3.bias": (24 * 9) ** -0.5}
    checked = 0
    for name, parameter in model.named_parameters():
        for ending, bound in bounds.items():
            if name.endswith(ending):
                assert 0.5 * bound < parameter.abs().max() <= bound
                checked += 1
        if name.endswith(("norm.weight", "0.g")):
            assert (parameter == 1).all()
        if name.endswith(("norm.bias", "0.b")):
            assert (parameter == 0).all()
    assert checked == 12
    tables = torch.cat([table.flatten() for table in model.transformer.pos_emb.parameters()])
    assert 0.7 < tables.std() < 1.3


def test_missing_weights_are_drawn_and_the_others_kept(tmp_path):
    torch.manual_seed(0)
    model = AxialImageTransformerModel(make_config(**CONFIGS["plane"]))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    # One of each kind of parameter.
    missing = {
        "transformer.pos_emb.param_0",
        "transformer.layers.blocks.0.f.net.fn.norm.weight",
        "transformer.layers.blocks.0.g.net.fn.fn.to_kv.weight",
        "transformer.layers.blocks.1.f.net.0.g",
        "transformer.layers.blocks.1.f.net.1.weight",
        "transformer.layers.blocks.1.g.net.3.bias",
    }
    kept = {name: tensor for name, tensor in weights.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, info = AxialImageTransformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing
    for name, parameter in again.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 5, name
        if name.endswith((".g", "norm.weight")):
            assert (parameter == 1).all()
        elif name in missing:
            assert parameter.std() > 0 and not torch.equal(parameter, weights[name])
        else:
            assert torch.equal(parameter, weights[name])


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_saved_and_loaded(options, tmp_path):
    model = AxialImageTransformerModel(make_config(**options)).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is AxialImageTransformerModel and again.config == model.config
    x = randn(2, 6, *LENGTHS[: options["num_axes"]], dtype=torch.float32)[:, :, :, :3]
    assert torch.equal(again(x).last_hidden_state, model(x).last_hidden_state)


LOAD = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModel

folder, tensors, *again = sys.argv[1:]
tensors = load_file(tensors)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    assert torch.equal(model(tensors["feature_maps"]).last_hidden_state, tensors["last_hidden_state"])
for folder in again:
    model.save_pretrained(folder)
print("equal")
"""


@pytest.mark.audit
def test_opens_where_the_package_was_never_installed(run_python, tmp_path):
    torch.manual_seed(0)
    model = AxialImageTransformerModel(make_config(**CONFIGS["plane"])).eval()
    tensors = {"feature_maps": randn(2, 6, 5, 3, dtype=torch.float32)}
    with torch.no_grad():
        tensors["last_hidden_state"] = model(tensors["feature_maps"]).last_hidden_state
    save_file(tensors, tmp_path / "tensors.safetensors")
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    for folder, again in (("moved", [tmp_path / "again"]), ("again", [])):
        auto_map = json.loads((tmp_path / folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig", "AutoModel"}
        files = {path.name for path in (tmp_path / folder).glob("*.py")}
        assert {"image_transformer.py", "configuration_image_transformer.py", "remote_code.py"} <= files
        assert "modeling_axial.py" not in files
        assert "equal" in run_python(LOAD, tmp_path / folder, tmp_path / "tensors.safetensors", *again).stdout
