"""How well pictures are classified: loss and accuracy of all, precision, recall and F1 of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)


@dataclass(frozen=True)
class Scores:
    """
    Of a classifier on N pictures.

    `loss`: the mean cross-entropy; `accuracy`: the share whose class is right; `predictions` and `labels`: (N,), as
    numbers; `per_class`: `precision`, `recall` and `f1`, each (num_labels,), where the precision of a class that is
    never predicted is 0, and all are NaN for a class without pictures; `confusion`: (num_labels, num_labels), how many
    pictures of the class of a row are taken for that of a column.
    """

    loss: float
    accuracy: float
    predictions: torch.Tensor
    labels: torch.Tensor
    per_class: dict[str, torch.Tensor]
    confusion: torch.Tensor

    @property
    def support(self) -> torch.Tensor:
        """How many pictures there are of each class, (num_labels,)."""
        return self.confusion.sum(1)

    def means(self) -> dict[str, float]:
        """Those of `per_class` over the classes that have pictures, all of which count the same."""
        return {name: values.nanmean().item() for name, values in self.per_class.items()}

    def by_name(self, label_names: Sequence[str]) -> dict[str, float]:
        """All numbers; those of a class, as `f1 cat`, if it has pictures."""
        numbers = {"accuracy": self.accuracy, "validation_loss": self.loss}
        numbers |= {f"mean {name}": mean for name, mean in self.means().items()}
        for label, count in enumerate(self.support.tolist()):
            if count:
                numbers |= {f"{name} {label_names[label]}": v[label].item() for name, v in self.per_class.items()}
                numbers[f"support {label_names[label]}"] = count
        return numbers


def score(losses: torch.Tensor, predictions: torch.Tensor, labels: torch.Tensor, num_labels: int) -> Scores:
    """The scores of pictures with the given losses, predicted and true classes, each (N,)."""
    confusion = multiclass_confusion_matrix(predictions, labels, num_labels)
    there = confusion.sum(1) > 0
    metrics = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    per_class = {
        name: metric(predictions, labels, num_labels, average="none").masked_fill(~there, torch.nan)
        for name, metric in metrics.items()
    }
    accuracy = multiclass_accuracy(predictions, labels, num_labels, average="micro").item()
    return Scores(losses.double().mean().item(), accuracy, predictions, labels, per_class, confusion)


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, num_labels: int) -> Scores:
    """The scores over a whole data set, the same on every process. The model is put into its evaluation mode."""
    model.eval()
    parts = []
    for pixel_values, labels in loader:
        logits = model(pixel_values=pixel_values).logits
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        parts.append([part.cpu() for part in accelerator.gather_for_metrics((losses, logits.argmax(-1), labels))])
    return score(*(torch.cat(column) for column in zip(*parts, strict=True)), num_labels)
