"""Accuracies of classifiers that are given a few labelled rows of a table, all of them the same ones."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from results import OURS
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.validation import validate_data
from tabular_data import draws
from tabular_in_context import TableClassifier, ridge_scores, standardise
from tqdm.auto import tqdm

NUMBERS_LABELLED = (10, 30)


class RidgeInput(ClassifierMixin, BaseEstimator):
    """What the model is told by a ridge regression, with the middle one of its strengths, taken for an answer."""

    def fit(self, X, y) -> "RidgeInput":
        self.rows_, y = validate_data(self, X, y, dtype=np.float64)
        self.classes_, self.labels_ = np.unique(y, return_inverse=True)
        return self

    def predict(self, X) -> np.ndarray:
        rows = torch.tensor(np.concatenate([self.rows_, validate_data(self, X, dtype=np.float64, reset=False)]))
        targets = torch.eye(len(self.classes_), dtype=torch.float64)[torch.tensor(self.labels_)]
        scores = ridge_scores(standardise(rows[None], len(targets)), targets[None], (0.2,))
        return self.classes_[scores[0, len(targets) :, :, 0].argmax(-1).numpy()]


# All as they are in scikit-learn if not said, fitted to standardised features.
BASELINES: dict[str, Callable[[], ClassifierMixin]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=1000),
    "3 nearest neighbours": lambda: KNeighborsClassifier(3),
    "support vectors": SVC,
    "random forest": lambda: RandomForestClassifier(random_state=0),
    "ridge regression": RidgeInput,
}


def accuracies(
    checkpoint, tables: dict[str, Callable], num_draws: int, numbers: Sequence[int] = NUMBERS_LABELLED
) -> dict[str, dict[str, np.ndarray]]:
    """
    Of each classifier, ours first, for each table the accuracies (numbers of labelled rows, draws) on all other rows.
    """
    classifiers = {OURS: TableClassifier(checkpoint)}
    classifiers |= {name: make_pipeline(StandardScaler(), make()) for name, make in BASELINES.items()}
    found = {name: {table: np.zeros((len(numbers), num_draws)) for table in tables} for name in classifiers}
    with tqdm(total=len(tables) * len(numbers) * num_draws, unit="draw", disable=None) as bar:
        for table, read in tables.items():
            features, labels = read()
            for at, number in enumerate(numbers):
                for draw, (given, others, known, truth) in enumerate(draws(features, labels, number, num_draws)):
                    for name, classifier in classifiers.items():
                        found[name][table][at, draw] = classifier.fit(given, known).score(others, truth)
                    bar.update()
    return found


def named_means(found: dict[str, np.ndarray], numbers: Sequence[int] = NUMBERS_LABELLED) -> dict[str, float]:
    """Those of a classifier over the draws, by names, and the means over the tables first."""
    means = {table: values.mean(1) for table, values in found.items()}
    means = {"mean": np.mean(list(means.values()), axis=0)} | means
    return {f"accuracy {table} n={n}": float(means[table][at]) for table in means for at, n in enumerate(numbers)}
