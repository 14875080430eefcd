"""In Triton's interpreter, where `make kernels` runs this file; on a GPU without it, of which nothing has been run."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_axial import AxialConfig, AxialForImageClassification, AxialModel
from modeling_axial.attention import axial_attention
from tests.conftest import ROOT
from tests.reference import reference_axial_attention

pytestmark = pytest.mark.kernels
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or Triton's interpreter, in which `make kernels` runs it", allow_module_level=True)

from modeling_axial.kernels import packed_attention_forward, packed_lines  # noqa: E402  which imports Triton

GRID = (2, 5, 3)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def states(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def inputs(*shape, dtype=torch.float32):
    return [states(*shape, seed=seed, dtype=dtype).requires_grad_() for seed in range(3)]


def assert_equal_to_the_reference(operands, axis, tolerance=CLOSE, **options):
    """The output and the gradients of query, key, value and bias, against loops in float64."""
    output, weights = axial_attention(*operands, axis, attention_interface=packed_attention_forward, **options)
    assert weights is None and output.dtype == operands[0].dtype
    learned = [*operands, *(options[name] for name in options if name == "bias")]
    exact = [each.detach().double().cpu().requires_grad_() for each in learned]
    exact_options = {name: each.cpu() if isinstance(each, torch.Tensor) else each for name, each in options.items()}
    if "bias" in options:
        exact_options["bias"] = exact[3]
    expected, _ = reference_axial_attention(*exact[:3], axis, **exact_options)
    torch.testing.assert_close(output.double().cpu(), expected, **tolerance)
    upstream = states(*output.shape, seed=9, dtype=output.dtype)
    gradients = torch.autograd.grad(output, learned, upstream)
    exact_gradients = torch.autograd.grad(expected, exact, upstream.double().cpu())
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(gradient.double().cpu(), exact_gradient, **tolerance)


@pytest.fixture
def launches(monkeypatch):
    """The arguments with which kernels are launched, and the launches themselves take place."""
    launched, launch = [], packed_lines.launch

    def recording_launch(*arguments, **options):
        launched.append(arguments)
        launch(*arguments, **options)

    monkeypatch.setattr(packed_lines, "launch", recording_launch)
    return launched


@pytest.mark.parametrize(
    ("length", "head_dim"), [(1, 8), (2, 8), (3, 24), (5, 32), (7, 80), (13, 128), (31, 1), (61, 24), (64, 8)]
)
def test_lines_of_any_length_and_heads_of_any_width(launches, length, head_dim):
    other_lines = 3 if length < 31 else 1  # the reference is slow
    assert_equal_to_the_reference(inputs(1, length, other_lines, 2, head_dim), 0)
    assert len(launches) == 2


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_masks_and_biases_on_every_axis(axis, is_causal):
    length = GRID[axis]
    mask = states(2, *GRID, seed=3) > -0.5
    mask.movedim(axis + 1, 1)[:, :, 0] = False  # lines without any key
    biases = [states(3, length, length, seed=4).requires_grad_(), states(2, 1, length, length, seed=5).requires_grad_()]
    pair_mask = states(3, length, length, seed=6) > -0.5
    for options in (
        {},
        {"mask": mask},
        {"bias": biases[0]},
        {"bias": biases[1], "mask": mask},
        {"pair_mask": pair_mask},
        {"bias": biases[1], "pair_mask": pair_mask, "mask": mask},
    ):
        assert_equal_to_the_reference(inputs(2, *GRID, 3, 8), axis, is_causal=is_causal, **options)


def test_more_tiles_than_one_with_a_last_one_that_is_not_full():
    # 7 lines of 17 cells, of which 3 fit into a tile.
    assert_equal_to_the_reference(inputs(1, 7, 17, 1, 4), 1, scaling=0.3)


def test_other_keys_than_queries_and_other_widths_of_values():
    query, key, value = states(2, 3, 5, 2, 8), states(2, 13, 5, 2, 8, seed=1), states(2, 13, 5, 2, 24, seed=2)
    mask = states(2, 13, 5, seed=3) > 0
    operands = [each.requires_grad_() for each in (query, key, value)]
    assert_equal_to_the_reference(operands, 0, mask=mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_its_inputs(dtype):
    precision = torch.finfo(dtype).eps
    operands = inputs(2, 7, 3, 2, 16, dtype=dtype)
    assert_equal_to_the_reference(operands, 0, {"rtol": 4 * precision, "atol": 8 * precision})


def test_operands_and_gradients_of_any_strides():
    whole = states(2, 3, 5, 2, 3, 8)
    query, key = (whole[:, ..., part, :].requires_grad_() for part in range(2))  # slices of one projection
    value = states(1, 3, 5, 2, 8, seed=1).expand(2, -1, -1, -1, -1).requires_grad_()
    assert_equal_to_the_reference([query, key, value], 0)
    operands = inputs(2, 3, 5, 2, 8)
    output, _ = axial_attention(*operands, 1, attention_interface=packed_attention_forward)
    expected, _ = axial_attention(*operands, 1)
    for upstream in (torch.ones((), device=DEVICE).expand_as(output), states(8, 2, 5, 3, 2).permute(4, 3, 2, 1, 0)):
        found, others = (
            torch.autograd.grad(each, operands, upstream, retain_graph=True) for each in (output, expected)
        )
        torch.testing.assert_close(found, others, **CLOSE)


class RecordedOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_kernel_reads_and_writes_the_grid_itself(launches, axis):
    operands = inputs(2, *GRID, 3, 8)
    with RecordedOperators() as recorded:
        output, _ = axial_attention(*operands, axis, attention_interface=packed_attention_forward)
        upstream = torch.empty_like(output).normal_()
        gradients = torch.autograd.grad(output, operands, upstream)
    copies = {name for name in recorded.names if "copy" in name or "clone" in name or "contiguous" in name}
    assert not copies and "axial::packed_attention" in recorded.names
    forward, backward = launches
    for arguments, tensors in (
        (forward, (*operands, None, output)),
        (backward, (*operands, None, upstream, *gradients)),
    ):
        for seen, grid in zip(arguments[1:], tensors, strict=False):
            assert seen is None if grid is None else seen.data_ptr() == grid.data_ptr() and grid.is_contiguous()


def test_two_backwards_are_equal_bit_by_bit():
    operands = inputs(2, *GRID, 3, 8)
    first, second = (
        torch.autograd.grad(
            axial_attention(*operands, 1, attention_interface=packed_attention_forward)[0].sin().sum(), operands
        )
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


# Whole models


def make_model(model_class=AxialModel, **options):
    torch.manual_seed(0)
    sizes = {"image_size": [10, 21], "patch_size": [2, 3], "hidden_size": 24, "num_attention_heads": 3}
    model = model_class(AxialConfig(**sizes | {"num_hidden_layers": 2} | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval().to(DEVICE)


@pytest.mark.parametrize(
    "options",
    [{}, {"reversible": True}, {"position_embedding": "relative"}, {"num_inducing_points": [None, 2]}],
    ids=str,
)
def test_a_model_equals_that_of_eager_attention(launches, options):
    model, pixel_values = make_model(**options), states(2, 3, 10, 21)
    mask = torch.ones(2, 5, 7, dtype=torch.bool, device=DEVICE)
    mask[0, 3:], mask[1, :, 4:] = False, False
    found = {}
    for implementation in ("eager", "axial_triton"):
        model.set_attn_implementation(implementation)
        hidden_states = model(pixel_values, attention_mask=mask).last_hidden_state[mask]
        found[implementation] = hidden_states, torch.autograd.grad(hidden_states.sin().sum(), model.parameters())
    assert len(launches) >= 2 * 2 * 2  # layers, axes, forward and backward
    for (hidden_states, gradients), others in [found.values()]:
        torch.testing.assert_close(hidden_states, others[0], rtol=1e-4, atol=1e-4)
        for gradient, other in zip(gradients, others[1], strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-3 * (1 + other.abs().max().item()))
    assert model(pixel_values, output_attentions=True).attentions  # those of eager attention


def test_it_is_chosen_and_never_the_default():
    assert make_model().config._attn_implementation == "sdpa"
    model = make_model(AxialForImageClassification, attn_implementation="axial_triton")
    assert model.config._attn_implementation == "axial_triton"
    with torch.no_grad():
        assert model(states(1, 3, 10, 21)).logits.isfinite().all()


def test_a_compiled_model_calls_it(launches):
    torch.compiler.reset()
    model, pixel_values = make_model(num_hidden_layers=1), states(2, 3, 10, 21)
    model.set_attn_implementation("axial_triton")
    losses = [
        each(pixel_values).last_hidden_state.sin().sum()
        for each in (model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    ]
    gradients = [torch.autograd.grad(loss, model.parameters()) for loss in losses]
    assert len(launches) == 2 * 2 * 2  # models, axes, forward and backward
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4 * (1 + other.abs().max().item()))


def test_its_operators_are_what_pytorch_takes_them_for():
    query, key, value = inputs(2, 3, 5, 8)
    bias = states(1, 3, 5, 5).requires_grad_()
    torch.library.opcheck(packed_lines.packed_attention, (query, key, value, bias, 0.3, True))
    gradient = states(2, 5, 3, 8)
    plain = [each.detach() for each in (gradient, query, key, value, bias)]
    torch.library.opcheck(packed_lines.packed_attention_backward, (*plain, 0.3, False, True))


# What it is not made for


def test_other_calls_are_those_of_fused_attention(launches):
    def assert_fused(operands, **options):
        found, _ = axial_attention(*operands, 0, attention_interface=packed_attention_forward, **options)
        torch.testing.assert_close(found, axial_attention(*operands, 0, **options)[0])

    assert_fused(inputs(1, 65, 2, 1, 8))
    assert_fused(inputs(1, 3, 2, 1, 129))
    assert_fused(inputs(2, 3, 2, 1, 8, dtype=torch.float64))
    assert_fused(inputs(0, 3, 2, 1, 8))
    torch.manual_seed(0)
    output, _ = axial_attention(*inputs(1, 3, 2, 1, 8), 0, attention_interface=packed_attention_forward, dropout=0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(output, axial_attention(*inputs(1, 3, 2, 1, 8), 0, dropout=0.5)[0])
    query, key, value = inputs(1, 3, 2, 1, 8)

    def attend(query):
        return axial_attention(query, key, value, 0, attention_interface=packed_attention_forward)[0].sum()

    assert torch.func.grad(attend)(query).shape == query.shape
    assert torch.func.jvp(attend, (query,), (query,))[1].isfinite()
    assert not launches


def test_second_derivatives_are_refused():
    operands = inputs(1, 3, 2, 1, 8)
    output, _ = axial_attention(*operands, 0, attention_interface=packed_attention_forward)
    (gradient,) = torch.autograd.grad(output.sin().sum(), operands[0], create_graph=True)
    with pytest.raises(ValueError, match='"axial_triton" has no second derivatives: take "eager"'):
        gradient.sum().backward()


def test_cpus_are_refused(monkeypatch):
    monkeypatch.setattr(packed_lines, "INTERPRETED", type("No", (), {"value": False}))
    operands = [each.cpu() for each in inputs(1, 3, 2, 1, 8)]
    with pytest.raises(ValueError, match='"axial_triton" runs on GPUs, and the model is on the CPU: take "sdpa"'):
        axial_attention(*operands, 0, attention_interface=packed_attention_forward)


def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_without_triton_the_extra_is_named():
    done = run("import sys; sys.modules['triton'] = None; import modeling_axial; import modeling_axial.kernels")
    assert done.returncode == 1
    assert "ImportError: modeling_axial.kernels needs Triton: pip install 'modeling-axial[kernels]'." in done.stderr


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from modeling_axial.kernels import packed_lines

ROWS, WIDTH, LENGTH = 64, 64, 14
constants = {"IS_CAUSAL": False, "QUERIES": LENGTH, "KEYS": LENGTH, "WIDTH": WIDTH, "VALUE_WIDTH": WIDTH, "LINES": 4}
constants |= {"Q_ROWS": ROWS, "K_ROWS": ROWS, "COLUMNS": WIDTH, "V_COLUMNS": WIDTH}
scalars = {"num_lines": "i32", "num_heads": "i32", "scaling": "fp32", "mask": "*i1", "d_mask": "*fp32"}

for kernel in (packed_lines.forward_kernel, packed_lines.backward_kernel):
    signature = {
        name: "constexpr" if name in constants
        else ("i32",) * 4 if name.endswith("strides")
        else scalars.get(name, "*bf16")
        for name in kernel.arg_names
    }
    source = triton.compiler.ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": packed_lines.NUM_WARPS})
    assert "mma.sync" in compiled.asm["ptx"] and compiled.asm["cubin"], "no products of tensor cores"
    assert compiled.metadata.shared <= 48 * 1024, compiled.metadata.shared
"""


def test_kernels_are_compiled_for_a_gpu_that_is_not_there(tmp_path):
    done = run(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
