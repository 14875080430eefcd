"""The benchmark runs, its models are of one size, and what is held out is apart from what is learnt and chosen by."""

import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "benchmarks" / "vision_accuracy.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("vision_accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CROPS = 90
    return module


def kept_in(batches):
    """A change of pictures that changes nothing, and notes what it is given."""

    def change(batch, generator):
        batches.append(batch)
        return batch

    return change


def distinct(tensors):
    return {picture.numpy().tobytes() for picture in tensors[0]}


@pytest.fixture(scope="module", params=["digits", "films"])
def pictures(benchmark, request):
    """To measure at the end, and to choose by."""
    make = benchmark.DATASETS[request.param]
    return make(), make(benchmark.TO_CHOOSE)


def test_rates_are_chosen_by_pictures_that_are_not_held_out(pictures):
    final, choosing = pictures
    held_out = distinct(final.measured)
    assert len(held_out) > 300
    for part in (final.learnt, choosing.learnt, choosing.measured):
        assert part[0].shape[1:] == final.measured[0].shape[1:]
        assert not held_out & distinct(part)
    assert not distinct(choosing.learnt) & distinct(choosing.measured)
    for part in (final.measured, choosing.measured):
        assert part[1].unique().tolist() == list(range(final.num_labels))


def test_models_have_one_number_of_parameters(benchmark, pictures):
    final, _ = pictures
    counts = [benchmark.count_parameters(benchmark.make_model(name, final)) for name in benchmark.MODELS]
    assert [count for count, _ in counts] == [pytest.approx(counts[0][0], rel=0.02)] * 4
    assert all(positions > 0 for _, positions in counts)
    cells = (benchmark.SIDE // final.patch_size) ** 2
    assert counts[2][1] == (cells + 1) * benchmark.WIDTH  # ViT has a position for each cell, and one for its token


def test_accuracy_counts_each_class_the_same(benchmark):
    class First(torch.nn.Module):
        """Takes every picture for one of class 0."""

        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.tensor([1.0, 0.0]).expand(len(pixel_values), 2))

    measured = torch.zeros(5, 1, 4, 4), torch.tensor([0, 0, 0, 0, 1])
    assert benchmark.accuracy(First(), benchmark.Pictures(measured, measured, 2, 4, None)) == 0.5


def test_the_rate_warms_up_and_ends_at_nothing(benchmark):
    rates = [benchmark.schedule(percent / 100) for percent in range(101)]
    assert 0 < rates[0] < 0.2
    assert max(rates) == rates[10] == 1
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_models_learn_for_the_same_time_from_the_same_pictures(benchmark, monkeypatch):
    clock = iter(range(1000))  # the thread has had a second more at each look: so a step takes one
    monkeypatch.setattr(benchmark.time, "thread_time", lambda: next(clock))
    data = torch.rand(50, 1, 28, 28), torch.arange(50) % 10
    seen = {name: [] for name in benchmark.MODELS}
    learners = []
    for name in benchmark.MODELS:
        pictures = benchmark.Pictures(data, data, 10, 4, kept_in(seen[name]))
        learners.append(benchmark.Learner(name, pictures, rate=0.01, seed=1, seconds=4.0))
    before = [[parameter.clone() for parameter in learner.model.parameters()] for learner in learners]
    benchmark.learn_in_turns(learners, 4.0)
    assert [(learner.steps, learner.spent) for learner in learners] == [(4, 4.0)] * 4
    for learner, old in zip(learners, before, strict=True):
        assert all(not torch.equal(*pair) for pair in zip(old, learner.model.parameters(), strict=True))
        assert torch.equal(torch.stack(seen[learner.name]), torch.stack(seen["ViT"]))


def test_it_writes_a_table(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmark, "TURNS", 1)
    few = torch.rand(60, 1, 28, 28), torch.arange(60) % 3
    monkeypatch.setitem(
        benchmark.DATASETS, "films", lambda to_choose=0.0: benchmark.Pictures(few, few, 3, 4, kept_in([]))
    )
    benchmark.main(["--seconds", "0.01", "--seeds", "2", "--datasets", "films", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "vision_accuracy.md").read_text() == printed.removesuffix("\n")
    lines = re.findall(
        r"^\| films \| (.+?) \| [\d,]+ \| [\d,]+ \| (.*) \| \d+ \| \*\*0.\d+\*\* \|", printed, re.MULTILINE
    )
    assert [name for name, _ in lines] == list(benchmark.MODELS)
    for _, rates in lines:  # the best is chosen
        assert re.findall(r"0\.\d+(?=: )", rates) == [str(rate) for rate in benchmark.RATES]
        tried = dict(re.findall(r"(0\.\d+): (0\.\d+)", rates))
        (chosen,) = re.findall(r"\*\*(0\.\d+): 0\.\d+\*\*", rates)
        assert tried[chosen] == max(tried.values())
    assert re.search(r"^\| films \| ViT \| .* \| \+0.000 \|$", printed, re.MULTILINE)  # over itself
