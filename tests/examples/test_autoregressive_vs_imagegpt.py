"""The benchmark runs, and what it compares is comparable: sizes, scores, samples."""

import math
import sys

import pytest
import torch

from examples.benchmarks import autoregressive_vs_imagegpt as benchmark

SIDE = 5


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (3, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [64, 128])
def test_models_are_equally_large(width):
    counts = {name: benchmark.count_parameters(benchmark.make_model(name, 28, width)) for name in benchmark.MODELS}
    (ours, ours_positions) = counts.pop("axial")
    assert len(counts) == 3 and ours_positions == 2 * 28 * width
    for parameters, positions in counts.values():
        assert abs(parameters / ours - 1) < 0.05 and positions == 784 * width


def redrawn(name):
    """A model in float64, whose logits are far from uniform."""
    model = benchmark.make_model(name, SIDE, width=8).eval().double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", ["axial", "ImageGPT", "GPT-2"])
def test_all_values_are_scored_each_from_those_before(name, pictures):
    model = redrawn(name)
    with torch.no_grad():
        total = benchmark.loss(model, pictures)
        assert total > math.log(256)
        changed = pictures.clone()
        changed[:, :, -1, -1] = (changed[:, :, -1, -1] + 1) % 256
        if name != "axial":
            logits = logits_of(model, pictures)
            assert torch.equal(logits_of(model, changed), logits)  # the last value is read by nobody, but scored
            assert logits.shape == (3, SIDE * SIDE, 256)
            expected = -logits.log_softmax(-1).gather(-1, pictures.flatten(1)[..., None]).mean()
            torch.testing.assert_close(total, expected)
        assert benchmark.loss(model, changed) != total


def logits_of(model, pictures):
    inputs = torch.cat((torch.full((len(pictures), 1), 256), pictures.flatten(1)[:, :-1]), 1)
    return model(inputs).logits[..., :256]


@pytest.mark.parametrize("name", ["ImageGPT", "GPT-2"])
def test_flat_models_sample_what_they_score(name, monkeypatch):
    model = redrawn(name)
    steps = []
    draw = torch.multinomial

    def recording(probabilities, count):
        steps.append(probabilities)
        return draw(probabilities, count)

    monkeypatch.setattr(torch, "multinomial", recording)
    values = benchmark.sample_flat(model, 2, SIDE * SIDE)
    assert values.shape == (2, SIDE * SIDE) and values.max() < 256
    with torch.no_grad():
        expected = logits_of(model, values.view(2, 1, SIDE, SIDE)).softmax(-1)
    torch.testing.assert_close(torch.stack(steps, 1), expected)


@pytest.mark.parametrize("name", ["ImageGPT", "GPT-2"])
def test_flat_models_generate_pixels_only(name):
    """With the weights redrawn, the start token would be drawn among so many values if it could."""
    values = benchmark.generate_flat(redrawn(name), 40, SIDE * SIDE)
    assert values.shape == (40, SIDE * SIDE) and len(values.unique()) > 100 and values.max() < 256


def test_digits_are_those_of_the_other_examples():
    train, held_out = benchmark.make_pictures(28)
    assert train.shape == (4000, 1, 28, 28) and held_out.shape == (1000, 1, 28, 28)
    assert train.dtype == torch.int64 and train.max() == 255
    enlarged, _ = benchmark.make_pictures(64)
    assert enlarged.shape == (4000, 1, 64, 64)
    assert enlarged.float().mean().item() == pytest.approx(train.float().mean().item(), rel=0.05)


def test_learners_see_the_same_and_stop_in_time(pictures, monkeypatch):
    seen = {}
    step = benchmark.training_step
    monkeypatch.setattr(
        benchmark,
        "training_step",
        lambda model, optimizer, batch: (seen.setdefault(type(model), []).append(batch), step(model, optimizer, batch)),
    )
    for name in ("axial", "GPT-2"):
        learner = benchmark.Learner(name, pictures, batch_size=2, seconds=0.3, width=8)
        learner.train(until=0.1)
        assert 0.1 <= learner.cpu < 0.3 and 0 < learner.wall and learner.steps == len(seen[type(learner.model)])
        learner.train(until=9.0)
        assert learner.cpu >= 0.3
        assert 0 <= learner.optimizer.param_groups[0]["lr"] < benchmark.LEARNING_RATE
        before = learner.steps
        learner.train(until=9.0)
        assert learner.steps == before
    ours, theirs = seen.values()
    assert all(torch.equal(*batches) for batches in zip(ours, theirs, strict=False))


def test_counts_of_tokens_follow_the_formulas():
    for sampler, (_, outer_tokens, _, inner_tokens) in benchmark.formulas(SIDE).items():
        assert benchmark.count_tokens(sampler, SIDE) == (outer_tokens, inner_tokens)


@pytest.mark.audit
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_that_of_a_training_step():
    assert 0 < benchmark.added_memory(benchmark.__file__, "GPT-2", 7, 2, 8) < 1000


def test_report(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "added_memory", lambda *arguments: 1.0)  # tested above, in its slow fresh process
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    benchmark.main(["--tiny", "--pairs", "1", "--seconds", "0.2", "--slice", "0.1", "--batch", "2"])
    report = capsys.readouterr().out
    assert all(f"## {part.capitalize()}" in report for part in benchmark.PARTS)
    columns = [line.count("|") - 1 for line in report.splitlines() if line.startswith("|")]
    lines = {"models": (3, 4), "training": (7, 3), "learning": (5, 3), "sampling": (6, 8), "samplers": (8, 3)}
    lines |= {"compiled": (7, 4)}
    assert columns == [count for count, number in lines.values() for _ in range(number + 2)]
