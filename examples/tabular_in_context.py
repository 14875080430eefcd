"""
A classifier of tables that learns in context: it reads labelled rows and new ones in one forward pass and predicts the
new ones, as TabPFN does (Hollmann et al. 2022, arXiv 2207.01848). Nothing is fitted to a table but means, deviations
and a ridge regression in closed form.

    from tabular_in_context import TableClassifier

    classifier = TableClassifier().fit(features, labels)
    probabilities = classifier.predict_proba(new_features)

A table is a grid of rows and features without positions, and each class a table of its own, in which labels say "this
class" or "another": to permute rows, features or classes permutes what comes out, and changes nothing else but its
rounding.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling_axial import AxialConfig
from modeling_axial.attention import AxialCrossAttention, AxialSelfAttention
from modeling_axial.axial_embeddings import AxialEmbeddings
from modeling_axial.axial_layer import AxialFeedForward, ResidualLayer, run_layers
from modeling_axial.layer_context import LayerContext
from modeling_axial.modeling_axial import AxialPreTrainedModel
from modeling_axial.reversible import OneStream

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "tables"
RIDGE_STRENGTHS = (0.02, 0.2, 2.0)  # for kernels whose diagonal is about 1
NUM_CHANNELS = 5 + len(RIDGE_STRENGTHS)
MAX_CELLS = 500_000  # of one forward pass of the estimator, in which new rows are split


def standardise(features: torch.Tensor, num_labelled: int) -> torch.Tensor:
    """
    (tables, rows, features) by the mean and deviation of each feature in the labelled rows, which stand first.
    A feature that is constant there becomes 0, and what is far away is drawn in: ±30 to ±9.
    """
    labelled = features[:, :num_labelled]
    mean = labelled.mean(1, keepdim=True)
    deviation = (labelled - mean).square().mean(1, keepdim=True).sqrt()
    # The mean of equal numbers is rounded, so that their deviation from it is not always 0.
    tiny = 16 * torch.finfo(features.dtype).eps * labelled.abs().amax(1, keepdim=True)
    scale = torch.where(deviation > tiny, deviation, torch.inf)
    return 3 * torch.asinh((features - mean) / scale / 3)


def normal_ranks(features: torch.Tensor, num_labelled: int) -> torch.Tensor:
    """
    (tables, rows, features) as quantiles of the normal distribution, which no growing function of a feature changes.

    Of n labelled rows, two at least, which stand first, a value becomes Φ⁻¹((below + equal / 2) / n), by the numbers of
    those that are below it and equal to it. What lies between two of them is interpolated, and what lies beyond all is
    as the last.
    """
    columns = features.mT.contiguous()
    known = columns[..., :num_labelled].sort(-1).values
    below, up_to = (torch.searchsorted(known, known, right=right) for right in (False, True))
    quantiles = torch.special.ndtri((below + up_to).to(features.dtype) / (2 * num_labelled))
    after = torch.searchsorted(known, columns, right=True).clamp(1, num_labelled - 1)
    low, high = known.gather(-1, after - 1), known.gather(-1, after)
    share = ((columns - low) / (high - low)).nan_to_num(0.0).clamp(0, 1)
    return torch.lerp(quantiles.gather(-1, after - 1), quantiles.gather(-1, after), share).mT


def ridge_scores(values: torch.Tensor, targets: torch.Tensor, strengths: Sequence[float]) -> torch.Tensor:
    """
    Kernel ridge regression on the classes: (tables, rows, features) and the targets of the labelled rows, which stand
    first, (tables, labelled, classes) -> (tables, rows, classes, strengths).

    A labelled row is predicted from all others (the closed form of leaving one out), so that scores mean the same in
    all rows. The kernel is the mean product over features, of which those that are 0 in all labelled rows do not count.
    """
    num_labelled = targets.shape[1]
    counted = (values[:, :num_labelled] != 0).any(1).sum(-1).clamp(min=1)
    kernel = values @ values[:, :num_labelled].mT / counted[:, None, None]
    base = targets.mean(1, keepdim=True)
    eigenvalues, vectors = torch.linalg.eigh(kernel[:, :num_labelled])
    scores = []
    for strength in strengths:
        inverse = vectors / (eigenvalues.clamp(min=0) + strength)[:, None] @ vectors.mT
        weights = inverse @ (targets - base)
        left_out = targets - weights / inverse.diagonal(dim1=1, dim2=2)[..., None]
        scores.append(torch.cat([left_out, base + kernel[:, num_labelled:] @ weights], 1))
    return torch.stack(scores, -1)


def table_channels(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    What the model reads, one table for each class: (tables, rows, features), standardised, and the targets, 0 or 1, of
    the labelled rows (tables, labelled, classes) -> (tables · classes, NUM_CHANNELS, rows, features + 1).

    Channels: the value, its square, the label (1 for this class, -1 for another, 0 for none), whether there is one, and
    in a last column, which sums up the row: that it is this column, and scores of ridge regressions.
    """
    (tables, rows, features), (num_labelled, classes) = values.shape, targets.shape[1:]
    channels = values.new_zeros(tables, classes, NUM_CHANNELS, rows, features + 1)
    channels[:, :, 0, :, :-1] = values[:, None]
    channels[:, :, 1, :, :-1] = values[:, None].square() / 3
    channels[:, :, 2, :num_labelled] = (2 * targets - 1).mT[..., None]
    channels[:, :, 3, :num_labelled] = 1
    channels[:, :, 4, :, -1] = 1
    channels[:, :, 5:, :, -1] = 3 * ridge_scores(values, targets, RIDGE_STRENGTHS).permute(0, 2, 3, 1)
    return channels.flatten(0, 1)


class TableAttention(nn.Module):
    """Attention along the rows, of which the labelled ones are read, then along the features; both without positions.

    `context.prepared` holds, for the axis of the rows, how many are labelled.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.row_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rows = AxialCrossAttention(config, axis=0, num_heads=config.num_attention_heads)
        self.feature_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.features = AxialSelfAttention(config, axis=1)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext) -> torch.Tensor:
        normalised = self.row_norm(hidden_states)
        of_rows = self.rows(normalised, normalised[:, : context.prepared[0]])
        return of_rows + self.features(self.feature_norm(hidden_states + of_rows))


class TableLayer(ResidualLayer):
    def __init__(self, config: AxialConfig):
        super().__init__(TableAttention(config), AxialFeedForward(config))


class AxialForTableClassification(AxialPreTrainedModel):
    """
    Logits of the rows of a table that have no label, from those that have one.

    `config`: an `AxialConfig` of two axes, rows and features, with patches of 1, `num_channels` of NUM_CHANNELS and no
    positions; `image_size` and `num_labels` are the largest table and number of classes that training has seen. Larger
    ones are accepted.
    """

    main_input_name = "features"
    _auto_class = None  # no class that travels opens its checkpoints

    def __init__(self, config: AxialConfig):
        check_table_config(config)
        super().__init__(config)
        self.embeddings = AxialEmbeddings(config)
        self.layers = nn.ModuleList(TableLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int | None = None,
        targets: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """
        Args:
            features: (tables, rows, features), finite numbers of any scale; the labelled rows stand first.
            labels: (tables, labelled rows), classes from 0.
            num_classes: so many. Default: as many as labels or targets name.
            targets: (tables, other rows), their classes, for the loss (cross-entropy).

        Returns:
            `logits` (tables, other rows, classes), and the `loss` if there are targets.

        Raises:
            `ValueError`: for shapes that do not fit together.
        """
        num_labelled = labels.shape[-1]
        if features.dim() != 3 or labels.dim() != 2 or not 0 < num_labelled <= features.shape[1]:
            raise ValueError(
                "features must be (tables, rows, features) and labels (tables, labelled rows) of the first rows, at "
                f"least one; got shapes {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        if num_classes is None:
            num_classes = 1 + max(int(named.max()) for named in (labels, targets) if named is not None)
        values = standardise(features, num_labelled)
        one_hot = nn.functional.one_hot(labels, num_classes).to(values.dtype)
        hidden_states = self.embeddings(table_channels(values, one_hot))
        context = LayerContext(prepared=(num_labelled, None))
        hidden_states = run_layers(self.layers, OneStream, hidden_states, context)
        summaries = self.norm(hidden_states[:, num_labelled:, -1])
        logits = self.classifier(summaries).view(len(features), num_classes, -1).mT
        loss = None
        if targets is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return SequenceClassifierOutput(loss=loss, logits=logits)


def check_table_config(config: AxialConfig) -> None:
    """`ValueError` for a configuration that is none of a model of tables."""
    positions = sorted({name for axis in config.axes for name in axis.positions})
    for name, value, *allowed in (
        ("patch_size", list(config.patch_shape), [1, 1]),
        ("num_channels", config.num_channels, NUM_CHANNELS),
        ("position_embedding", positions, ["none"]),
        ("feed_forward", config.feed_forward, "mlp", "gated_mlp"),
        ("reversible", config.reversible, False),
    ):
        if value not in allowed:
            raise ValueError(f"a model of tables needs {name}={' or '.join(map(str, allowed))}, got {value}")


@lru_cache(maxsize=2)
def load_model(checkpoint: str) -> AxialForTableClassification:
    """The model of a folder, shared by all who ask for it, in float64: which rows come together leaves no trace."""
    return AxialForTableClassification.from_pretrained(checkpoint, dtype=torch.float64).eval()


class TableClassifier(ClassifierMixin, BaseEstimator):
    """
    The model as an estimator of scikit-learn: `fit` stores the rows, `predict_proba` is one forward pass (of as many
    new rows at a time as fit into memory, which know nothing of each other). In it the model reads the table twice, as
    it is and in `normal_ranks`, and the logarithms of what it finds are averaged.

    Args:
        checkpoint: folder of an `AxialForTableClassification`. Default: that of this repository.

    Raises:
        `ValueError`: from `fit`, for labels of one class alone, and for missing or infinite numbers, which are to be
            imputed first.

    A `UserWarning` says that a table is larger, or has more classes, than those of the training.
    """

    def __init__(self, checkpoint: str | Path | None = None):
        self.checkpoint = checkpoint

    def fit(self, X, y) -> "TableClassifier":
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, self.labels_ = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"labels must be of at least 2 classes, got one class alone: {self.classes_.tolist()}")
        self.rows_ = X
        self.model_ = load_model(str(self.checkpoint or CHECKPOINT))
        most_rows, most_columns = self.model_.config.image_shape
        sizes = {"labelled rows": len(X), "features": X.shape[1], "classes": len(self.classes_)}
        limits = (most_rows, most_columns - 1, self.model_.config.num_labels)
        for (name, size), limit in zip(sizes.items(), limits, strict=True):
            if size > limit:
                warnings.warn(f"the table has {size} {name}, in training there were at most {limit}", stacklevel=2)
        return self

    def predict_proba(self, X) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        varying = np.ptp(self.rows_, axis=0) > 0  # the others say nothing
        labelled, labels = torch.tensor(self.rows_[:, varying])[None], torch.tensor(self.labels_)[None]
        rows = torch.tensor(X[:, varying])[None]
        at_a_time = max(1, MAX_CELLS // (2 * (labelled.shape[2] + 1) * len(self.classes_)) - labelled.shape[1])
        with torch.inference_mode():
            logits = [self._logits(torch.cat([labelled, part], 1), labels) for part in rows.split(at_a_time, dim=1)]
        return torch.cat(logits).softmax(-1).numpy()

    def _logits(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(1, rows, features), the labelled ones first -> (other rows, classes)."""
        views = torch.cat([features, normal_ranks(features, labels.shape[1])])
        found = self.model_(views, labels.expand(2, -1), len(self.classes_)).logits
        return found.log_softmax(-1).mean(0)

    def predict(self, X) -> np.ndarray:
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]
