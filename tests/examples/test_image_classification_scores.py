"""How well pictures are classified: against counts one by one."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from examples.image_classification_scores import evaluate, score

NAMES = ["cat", "dog", "owl", "elk"]


def drawn(number=41):
    """Classes of pictures, of which none is an elk, and none is taken for an owl."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (number,), generator=draw)
    predictions = torch.tensor([0, 1, 3])[torch.randint(3, (number,), generator=draw)]
    return torch.rand(number, generator=draw), predictions, labels


def test_scores_equal_the_counts():
    losses, predictions, labels = drawn()
    scores = score(losses, predictions, labels, 4)
    pairs = list(zip(predictions.tolist(), labels.tolist(), strict=True))
    assert scores.accuracy == pytest.approx(sum(a == b for a, b in pairs) / 41)
    assert scores.loss == pytest.approx(sum(losses.tolist()) / 41, rel=1e-6)
    for label in range(4):
        right = sum(a == b == label for a, b in pairs)
        predicted, there = sum(a == label for a, _ in pairs), sum(b == label for _, b in pairs)
        assert scores.support[label] == there
        assert scores.confusion[label].tolist() == [sum(b == label and a == c for a, b in pairs) for c in range(4)]
        values = [scores.per_class[name][label].item() for name in ("precision", "recall", "f1")]
        if label == 3:  # predicted, but not there
            assert predicted > 0 and all(math.isnan(value) for value in values)
        else:
            expected = right / max(1, predicted), right / there, 2 * right / (predicted + there)
            assert values == pytest.approx(expected)
    assert scores.per_class["precision"][2] == 0  # there, but never predicted
    assert scores.means()["recall"] == pytest.approx(scores.per_class["recall"][:3].mean().item())


def test_numbers_have_the_names_of_the_classes():
    scores = score(*drawn(), 4)
    numbers = scores.by_name(NAMES)
    assert numbers["accuracy"] == scores.accuracy and numbers["validation_loss"] == scores.loss
    assert numbers["f1 dog"] == scores.per_class["f1"][1].item() and numbers["support cat"] == scores.support[0]
    assert numbers["mean precision"] == scores.means()["precision"]
    assert not [name for name in numbers if "elk" in name] and not any(map(math.isnan, numbers.values()))


def test_the_loss_is_the_mean_over_pictures_and_not_over_batches():
    class Model(torch.nn.Module):
        def forward(self, pixel_values):
            assert not self.training and not torch.is_grad_enabled()
            return SimpleNamespace(logits=pixel_values)

    logits = 3 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(TensorDataset(logits, labels), batch_size=5))
    scores = evaluate(accelerator, Model(), loader, 4)
    assert scores.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert torch.equal(scores.predictions, logits.argmax(-1)) and torch.equal(scores.labels, labels)
