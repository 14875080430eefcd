"""The benchmark runs, and ours and its peers are of one size and do the same job."""

import importlib.util
import re

import pytest
import torch

from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "vision_peers.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("vision_peers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("peer", ["ViT", "Swin", "VideoMAE", "TimeSformer"])
def test_models_of_a_pair_have_one_width_and_depth_and_see_the_same_tokens(benchmark, peer):
    case = benchmark.Case(peer, 14, 2 if peer in ("VideoMAE", "TimeSformer") else None)
    models = benchmark.make_peer(case), benchmark.make_ours(case, "alternating")
    theirs, ours = (model(case.inputs()[:1]).last_hidden_state.reshape(-1, 192) for model in models)
    of_the_whole = peer in ("ViT", "TimeSformer")  # a token that stands for all, beside those of the grid
    assert len(theirs) - of_the_whole == len(ours) == torch.Size(case.grid).numel()
    sizes = [benchmark.num_parameters(model) for model in models]
    if peer == "TimeSformer":  # two attentions in a layer
        assert 1.3 < sizes[0] / sizes[1] < 1.5
    else:
        assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.audit
def test_it_writes_a_table_and_a_plot(benchmark, monkeypatch, capsys, tmp_path):
    clock = iter(range(1000))
    monkeypatch.setattr(benchmark, "cpu_seconds", lambda run: 3.0 if next(clock) % 2 == 0 else 1.5)  # peer, ours
    arguments = ["--pairs", "1", "--largest", "14", "--peers", "ViT", "Swin", "--output", str(tmp_path)]
    benchmark.main(arguments)
    printed = capsys.readouterr().out
    assert (tmp_path / "vision_peers.md").read_text() == printed.removesuffix("\n")
    rows = re.findall(
        r"^\| (\w+) \| 14 x 14 \| (\w+) \| [\d, ]+ \| \*\*2.00\*\* \| \*\*2.00\*\* \|", printed, re.MULTILINE
    )
    assert rows == [(peer, mode) for peer in ("ViT", "Swin") for mode in ("alternating", "sequential")]
    assert (tmp_path / "vision_peers.png").stat().st_size > 10_000
