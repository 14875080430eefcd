"""Accuracies of classifiers of tables."""

import numpy as np
import pytest
import torch

from examples import tabular_scores
from examples.tabular_in_context import AxialForTableClassification
from examples.tabular_scores import BASELINES, OURS, RidgeInput, accuracies, named_means
from modeling_axial import AxialConfig
from tests.examples.test_tabular_in_context import SMALL


def blobs():
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    return draw.normal(size=(60, 4)) + 6 * np.eye(3, 4)[labels], labels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    AxialForTableClassification(AxialConfig(**SMALL)).save_pretrained(folder)
    return folder


def test_all_classifiers_get_the_same_rows(checkpoint, monkeypatch):
    seen = []

    class Recorder(RidgeInput):
        def fit(self, X, y):
            seen.append(X * 1.0)
            return super().fit(X, y)

    monkeypatch.setitem(tabular_scores.BASELINES, "a", Recorder)
    monkeypatch.setitem(tabular_scores.BASELINES, "b", Recorder)
    found = accuracies(checkpoint, {"blobs": blobs}, 2, numbers=(9, 12))
    assert list(found) == [OURS, *BASELINES] and found[OURS]["blobs"].shape == (2, 2)
    assert [rows.shape for rows in seen] == [(9, 4)] * 4 + [(12, 4)] * 4
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(seen[0], seen[2])
    for name, of_tables in found.items():
        if name != OURS:  # has not been trained
            assert of_tables["blobs"].min() > 0.8, name


def test_means_over_draws_and_tables():
    found = {"x": np.array([[0.5, 0.7], [1.0, 0.8]]), "y": np.array([[0.2, 0.2], [0.4, 0.4]])}
    expected = {"mean n=10": 0.4, "mean n=30": 0.65, "x n=10": 0.6, "x n=30": 0.9, "y n=10": 0.2, "y n=30": 0.4}
    assert named_means(found) == {f"accuracy {name}": pytest.approx(value) for name, value in expected.items()}
