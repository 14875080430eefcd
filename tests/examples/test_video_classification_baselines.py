"""Simple classifiers of clips: what they read, and what they learn from."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import TensorDataset

from examples.video_classification_baselines import (
    OF_MEAN_FRAMES,
    OF_STATISTICS,
    baseline_accuracies,
    features_of,
    mean_frame,
    statistics,
)

ALL = OF_STATISTICS | OF_MEAN_FRAMES


def measure(train, validation, baselines=ALL):
    return baseline_accuracies(baselines, train, validation, ["a", "b"], Accelerator(cpu=True))


def test_features_by_hand():
    clip = torch.tensor([[0.0, 2.0], [1.0, 5.0], [1.0, 9.0]]).view(3, 1, 1, 2)
    assert statistics(clip).tolist() == pytest.approx([3, np.std([0, 2, 1, 5, 1, 9], ddof=1), 2])
    assert statistics(clip[:1]).tolist() == pytest.approx([1, 2**0.5, 0])
    assert mean_frame(clip).tolist() == pytest.approx([2 / 3, 16 / 3])


def test_they_learn_from_training_clips_alone():
    """Class 1 is brighter and changes more; in the clips to measure on it is called 0."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    brightness = labels.view(-1, 1, 1, 1, 1).float()
    clips = brightness + 0.1 * (1 + brightness) * torch.randn(60, 3, 1, 2, 2)
    train, swapped = TensorDataset(clips[:40], labels[:40]), TensorDataset(clips[40:], 1 - labels[40:])
    right = measure(train, TensorDataset(clips[40:], labels[40:]))
    wrong = measure(train, swapped)
    assert len(right) == 3
    assert all(scores["mean accuracy"] > 0.9 for scores in right.values())
    assert all(scores["mean accuracy"] < 0.1 for scores in wrong.values())
    one_frame = TensorDataset(clips[:, :1], labels)
    assert all(scores["accuracy"] > 0.8 for scores in measure(one_frame, one_frame).values())


def test_the_change_between_frames_alone_tells():
    """What `statistics` is for, and a mean frame cannot tell: one class flickers."""
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    flicker = torch.tensor([-1.0, 1.0]).repeat(2).view(1, 4, 1, 1, 1) * labels.view(-1, 1, 1, 1, 1)
    still = torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(1, 4, 1, 1, 1) * (1 - labels).view(-1, 1, 1, 1, 1)
    clips = flicker + still + 0.01 * torch.randn(40, 4, 1, 3, 3)
    found = measure(TensorDataset(clips[:20], labels[:20]), TensorDataset(clips[20:], labels[20:]))
    assert found["logistic regression on brightness, contrast and change"]["accuracy"] == 1
    assert found["logistic regression on the mean frame"]["accuracy"] < 0.9


@pytest.mark.parametrize("num_workers", [0, 2])
def test_items_keep_their_order(num_workers):
    clips, labels = torch.arange(7.0).view(7, 1, 1, 1, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    features, found = features_of(TensorDataset(clips, labels), mean_frame, Accelerator(cpu=True), num_workers)
    assert features.tolist() == clips.view(7, 1).tolist() and found.tolist() == labels.tolist()
