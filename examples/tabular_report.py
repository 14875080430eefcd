"""What is told about a trained classifier of tables: accuracies beside those of others, a picture, and a model card."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from image_classification_report import quoted
from matplotlib.figure import Figure
from results import OURS
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tabular_data import draws
from tabular_in_context import TableClassifier
from tabular_scores import BASELINES, NUMBERS_LABELLED, named_means

Accuracies = dict[str, dict[str, np.ndarray]]  # as `tabular_scores.accuracies` returns them
RESOLUTION = 60  # of a map


def score_table(found: Accuracies, numbers: Sequence[int] = NUMBERS_LABELLED) -> list[str]:
    """Lines of Markdown: a row for each classifier, a column for each table and number of labelled rows."""
    means = {name: named_means(of_tables, numbers) for name, of_tables in found.items()}
    titles = [title.removeprefix("accuracy ").replace(" n=", ", ") for title in means[OURS]]
    lines = [f"| accuracy, labelled rows | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    return lines + [f"| {name} | {' | '.join(f'{x:.3f}' for x in row.values())} |" for name, row in means.items()]


def draw_report(path: Path, checkpoint: Path, tables: dict[str, Callable], found: Accuracies) -> None:
    """
    For each table the accuracies against the number of labelled rows, with the standard error over the draws, and below
    what the model and logistic regression make of the first draw of 10 rows in the plane of the first two principal
    components of the table: the colour is the class, the paler the less sure.
    """
    figure = Figure(figsize=(3.4 * len(tables), 9.6), layout="constrained")
    panels = figure.subplots(3, len(tables), squeeze=False)
    for (name, read), column in zip(tables.items(), panels.T, strict=True):
        for who, of_tables in found.items():
            values = of_tables[name]
            error = values.std(1) / np.sqrt(values.shape[1])
            numbers = NUMBERS_LABELLED[: len(values)]
            column[0].errorbar(
                numbers, values.mean(1), error, label=who, marker="o", capsize=3, **({"lw": 3} if who == OURS else {})
            )
        column[0].set(title=name, xlabel="labelled rows", ylabel="accuracy on all others")
        features, labels = read()
        plane = make_pipeline(StandardScaler(), PCA(2)).fit_transform(features)
        given, others, known, truth = next(draws(plane, labels, 10, 1))
        for panel, classifier in zip(
            column[1:], (TableClassifier(checkpoint), BASELINES["logistic regression"]()), strict=True
        ):
            draw_map(panel, classifier.fit(given, known), given, known, others, truth)
    panels[1, 0].set_ylabel(OURS)
    panels[2, 0].set_ylabel("logistic regression")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=64)


def draw_map(panel, classifier: BaseEstimator, given, known, others, truth) -> None:
    """Probabilities over a plane, the given rows (large), and those to predict (small, in the colours of the truth)."""
    colours = np.array([[0.12, 0.47, 0.71], [1.0, 0.5, 0.05], [0.17, 0.63, 0.17], [0.84, 0.15, 0.16]])
    low, high = np.percentile(others, [1, 99], axis=0) + [[-0.5], [0.5]]
    x, y = (np.linspace(*ends, RESOLUTION) for ends in zip(low, high, strict=True))
    cells = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    probabilities = classifier.predict_proba(cells)
    of_classes = colours[np.arange(len(classifier.classes_)) % len(colours)]
    # White where all classes are as probable.
    certain = probabilities - probabilities.mean(1, keepdims=True)
    picture = 1 - certain.clip(0) @ (1 - of_classes)
    panel.imshow(
        picture.reshape(RESOLUTION, RESOLUTION, 3),
        origin="lower",
        extent=(low[0], high[0], low[1], high[1]),
        aspect="auto",
    )
    index = {label: colour for label, colour in zip(classifier.classes_, of_classes, strict=True)}
    panel.scatter(*others.T, s=4, c=[index[label] for label in truth])
    panel.scatter(*given.T, s=60, c=[index[label] for label in known], edgecolors="black")
    panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])


def write_model_card(
    output_dir: Path, found: Accuracies, trained_on: str, measured_on: str, hub_model_id: str | None
) -> None:
    """Writes `README.md`: what the model was trained and measured on, the accuracies, and how to use it."""
    name = hub_model_id or output_dir.resolve().name
    means = named_means(found[OURS])
    results = [
        EvalResult(
            task_type="tabular-classification",
            dataset_type="scikit-learn",
            dataset_name=f"{measured_on}, {number} labelled rows",
            metric_type="accuracy",
            metric_value=round(means[f"accuracy mean n={number}"], 6),
        )
        for number in NUMBERS_LABELLED
    ]
    card_data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="tabular-classification",
        tags=["axial-attention", "tabular-classification", "in-context-learning"],
        metrics=["accuracy"],
        model_name=name,
        eval_results=results,
    )
    table = "\n".join(score_table(found))
    draws = next(iter(found[OURS].values())).shape[1]
    text = f"""---
{card_data.to_yaml()}
---

# {name.rpartition("/")[2]}

A classifier of tables that reads labelled rows and new ones in one forward pass and predicts the new ones.

- Trained by `examples/train_tabular_in_context.py` on {trained_on}.
- Measured on {measured_on}: all rows but the labelled ones, which were drawn {draws} times.

{table}

The others are those of scikit-learn with their defaults, on standardised features and the same rows; "ridge regression"
is what the model is told by one, taken for an answer.

![Accuracies, and probabilities in a plane](predictions.png)

## Use

The code of the model is part of the repository, in `examples/tabular_in_context.py`:

```python
import sys

sys.path.append("examples")
{loading_lines(name)}
classifier.fit(features, labels)
probabilities = classifier.predict_proba(new_features)
```
"""
    ModelCard(text).save(output_dir / "README.md")


def loading_lines(checkpoint: str) -> str:
    """The lines of Python that make a classifier of a trained model."""
    return f"from tabular_in_context import TableClassifier\n\nclassifier = TableClassifier({quoted(checkpoint)})"
