"""What the examples of this folder start from: the trained digits model of this repository, and the held-out digits."""

import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples"))
from image_classification_data import Digits  # noqa: E402

import modeling_axial  # noqa: E402, F401  registers the classes, so that no remote code is needed


def open_model() -> PreTrainedModel:
    """The classifier in the root of this repository, in evaluation mode."""
    return AutoModelForImageClassification.from_pretrained(ROOT).eval()


def read_digits(held_out: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel_values (N, 1, 28, 28), labels (N,)) of the 1,000 digits kept out of training, or of the 4,000 others."""
    processor = AutoImageProcessor.from_pretrained(ROOT)
    return Digits().datasets(processor)[held_out].tensors


@torch.no_grad()
def logits_of(model, pixel_values: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
    return torch.cat([model(pixel_values=batch).logits for batch in pixel_values.split(batch_size)])


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(-1) == labels).float().mean().item()
