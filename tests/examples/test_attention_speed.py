"""The benchmark runs, and what it holds timings against is counted right."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from modeling_axial import AxialAttention, AxialImageTransformer
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "attention_speed.py"
LENGTHS = (7, 5)
TOKENS = 35


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("attention_speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attention_operations(dim, heads, dim_heads):
    """Of projections, scores and weighted sums, along both axes."""
    inner = heads * dim_heads
    return sum(TOKENS * (2 * dim * inner * 4 + 2 * length * inner * 2) for length in LENGTHS)


def test_operations_of_attention(benchmark):
    attention, x = AxialAttention(6, heads=2, dim_heads=4, dim_index=1), torch.randn(1, 6, *LENGTHS)
    expected = attention_operations(6, 2, 4)
    assert benchmark.count_operations(attention, x, benchmark.forward) == expected
    assert benchmark.count_operations(attention, x, benchmark.training_step) == 3 * expected


@pytest.mark.parametrize("reversible", [True, False])
def test_operations_of_the_transformer(benchmark, reversible):
    def make():
        return AxialImageTransformer(6, 3, heads=2, reversible=reversible), torch.randn(1, 6, *LENGTHS)

    expected = 3 * (attention_operations(6, 2, 3) + 2 * TOKENS * 2 * 2 * 9 * 6 * 24)
    assert benchmark.count_operations(*make(), benchmark.forward) == expected
    assert benchmark.count_operations(*make(), benchmark.training_step) == (4 if reversible else 3) * expected


def test_kernels_are_found(benchmark):
    kernels = benchmark.find_kernels(AxialImageTransformer(6, 3, heads=2), torch.randn(1, 6, *LENGTHS))
    calls = {}
    for (kind, *_), count in kernels.items():
        calls[kind] = calls.get(kind, 0) + count
    assert calls == {"attention": 3 * 2, "Linear": 3 * 2 * 3, "Conv2d": 3 * 2 * 2}
    # lines along the first axis lie in the heads, those along the second in the batch
    assert kernels["attention", *[(1, 2 * 5, 7, 3)] * 3] == kernels["attention", *[(7, 2, 5, 3)] * 3] == 3


@pytest.mark.parametrize("pass_name", ["forward", "training step"])
def test_kernels_alone_compute_what_the_pass_computes(benchmark, pass_name):
    """As many floating-point operations: no kernel is missing, and none is run too often."""
    run = benchmark.PASSES[pass_name]
    alone = benchmark.kernels_alone("tiny", run)
    with benchmark.sdpa_kernel(benchmark.SDPBackend.MATH), benchmark.FlopCounterMode(display=False) as counter:
        alone()
    whole = benchmark.count_operations(benchmark.make("ours", "tiny"), benchmark.make_input("tiny"), run)
    assert counter.get_total_flops() == whole


def test_results_are_compared_as_a_whole(benchmark):
    theirs, ours = torch.ones(1000), torch.ones(1000)
    ours[0] += 0.01
    benchmark.check_equal(theirs, ours)
    for wrong in (torch.ones(1000) + 0.002, torch.full((1000,), torch.nan)):
        with pytest.raises(ValueError, match="must compute the same, up to a relative error of 1e-3, got"):
            benchmark.check_equal(theirs, wrong)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.audit
@pytest.mark.parametrize(
    "options", [["--threads", "2"], ["--threads", "1", "--compile", "--passes", "forward"]], ids=["eager", "compiled"]
)
def test_benchmark_runs(options):
    if "--compile" in options and not importlib.util.find_spec("torch._inductor"):
        pytest.skip("no compiler")
    command = [sys.executable, SCRIPT, "--cases", "tiny", "--pairs", "1", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| tiny, {name}" for name in (["forward"] if "--compile" in options else ["forward", "training step"])
    ]
    assert all(row.count("|") == 11 for row in rows)
