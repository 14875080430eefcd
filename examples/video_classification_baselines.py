"""Simple classifiers of clips to compare with: of three numbers of each clip, or of its mean frame."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from image_classification_scores import score
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, Dataset, Subset
from video_classification_report import accuracies

Feature = Callable[[torch.Tensor], torch.Tensor]


def statistics(clip: torch.Tensor) -> torch.Tensor:
    """(T, C, H, W) -> (3,): brightness, contrast and the change from frame to frame, 0 of a single frame."""
    changes = clip.diff(dim=0).abs()
    return torch.stack([clip.mean(), clip.std(), changes.mean() if changes.numel() else clip.new_zeros(())])


def mean_frame(clip: torch.Tensor) -> torch.Tensor:
    """(T, C, H, W) -> (C·H·W,)."""
    return clip.mean(0).flatten()


# What is taken of each clip, and the classifier of that. Three numbers are quickly learnt from, however many clips
# there are and however large; mean frames are for few small ones.
OF_STATISTICS = {
    "logistic regression on brightness, contrast and change": (
        statistics,
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    )
}
OF_MEAN_FRAMES = {
    "nearest mean of the mean frame": (mean_frame, NearestCentroid()),
    "logistic regression on the mean frame": (mean_frame, LogisticRegression(max_iter=1000)),
}


def baseline_accuracies(
    baselines: Mapping[str, tuple[Feature, BaseEstimator]],
    train: Dataset,
    validation: Dataset,
    label_names: Sequence[str],
    accelerator: Accelerator,
    num_workers: int = 0,
) -> dict[str, dict[str, float]]:
    """
    Accuracies on `validation` of classifiers that are fitted to `train`, whose items (clip, label) are read once for
    each of them. The processes share the reading and get the same.
    """
    found = {}
    for name, (feature, classifier) in baselines.items():
        (learnt, labels), (measured, truth) = (
            features_of(part, feature, accelerator, num_workers) for part in (train, validation)
        )
        predictions = clone(classifier).fit(learnt, labels).predict(measured)
        no_losses = torch.full((len(truth),), torch.nan)
        scores = score(no_losses, torch.from_numpy(predictions), torch.from_numpy(truth), len(label_names))
        found[name] = accuracies(scores, label_names)
    return found


def features_of(
    dataset: Dataset, feature: Feature, accelerator: Accelerator, num_workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """(items, numbers of `feature`) and the label of each item, on all processes."""
    own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    loader = DataLoader(
        Subset(dataset, own),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=partial(with_feature, feature),  # in the worker, so that no whole clip is handed over
        generator=torch.Generator(),
    )
    found = dict(gather_object(list(zip(own, loader, strict=True))))
    features, labels = zip(*(found[index] for index in range(len(dataset))), strict=True)
    return np.stack(features), np.array(labels)


def with_feature(feature: Feature, item: tuple[torch.Tensor, int]) -> tuple[np.ndarray, int]:
    clip, label = item
    return feature(clip).numpy(), int(label)
