"""Losses of numbers for each pixel, over the pixels that count: (B, channels, *pixels) -> a scalar, 0 if none counts.

With `num_items_in_batch`, the number of labels in all batches that `Trainer` accumulates, a loss counts for the share
of these labels that it has seen, so that those of all batches add up.

Each is made of sums over pixels and of nothing else, which `over_all` makes those of the whole grid where a process has
a part of it: numbers to numbers of the same shape. The loss is then that of the whole, on every process.
"""

from collections.abc import Callable

import torch
from torch import nn

from .configuration_axial import AxialConfig
from .masks import boolean_mask, broadcasts, clear_masked, values_are_hidden

NOT_A_LABEL = -100  # to transformers' losses, and to `Trainer` where it counts labels
OverAll = Callable[[torch.Tensor], torch.Tensor]


def of_the_whole(sums: torch.Tensor) -> torch.Tensor:
    """The `over_all` of a process that has the whole grid."""
    return sums


def weighted_mean(values: torch.Tensor, weights: torch.Tensor, over_all: OverAll = of_the_whole) -> torch.Tensor:
    """Σ weights · values / Σ weights, 0 where all weights are 0."""
    total = over_all(weights.sum())
    return over_all((weights * values).sum()) / total.clamp(min=torch.finfo(total.dtype).tiny)


def share_of_all(
    loss: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None,
    over_all: OverAll = of_the_whole,
) -> torch.Tensor:
    """The loss for the share that these labels are of `num_items_in_batch`, which counts as `Trainer` does."""
    return loss if num_items_in_batch is None else loss * over_all((labels != NOT_A_LABEL).sum()) / num_items_in_batch


def in_full(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers in at least float32, in which sums over many pixels are exact enough."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def broadcastable(values: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    """`values` expanded to `shape`; `ValueError` where they have another number of dimensions, or do not fit."""
    if values.dim() != len(shape) or not broadcasts(values.shape, shape):
        raise ValueError(f"{name} has shape {tuple(values.shape)}, but must broadcast to {tuple(shape)}.")
    return values.expand(shape)


def pixels_that_count(pixel_mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A mask of pixels (B, *pixels) as one of all their numbers, `like` (B, channels, *pixels); None: all count."""
    everything = torch.ones_like(like, dtype=torch.bool)
    return everything if pixel_mask is None else everything & pixel_mask.unsqueeze(1)


def dice_loss(
    probabilities: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, over_all: OverAll = of_the_whole
) -> torch.Tensor:
    """1 - Dice, the mean over samples and classes (Milletari et al. 2016, arXiv 1606.04797).

    probabilities (B, classes, *pixels), target and boolean counted (B, *pixels). Of each sample and class
    Dice = (2 · Σ p t + 1) / (Σ p + Σ t + 1), the sums over the pixels that count: 1 where no pixel does.
    """
    counted = counted.unsqueeze(1).to(probabilities.dtype)
    one_hot = torch.zeros_like(probabilities).scatter(1, target.unsqueeze(1), counted)
    both = over_all((probabilities * one_hot).flatten(2).sum(2))
    each = over_all((probabilities * counted + one_hot).flatten(2).sum(2))
    return 1 - ((2 * both + 1) / (each + 1)).mean()


def segmentation_loss(
    labels: torch.Tensor,
    logits: torch.Tensor,
    config: AxialConfig,
    pixel_mask: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    over_all: OverAll = of_the_whole,
    **kwargs,
) -> torch.Tensor:
    """Cross-entropy of logits (B, num_labels, *pixels) with `class_weights`, plus `dice_loss_weight` · Dice loss.

    Pixels count unless their label (B, *pixels) is `semantic_loss_ignore_index` or -100, or `pixel_mask` is False.

    Raises:
        ValueError: for labels of another shape, that are no integers, or that are no class.
    """
    pixels = logits.shape[:1] + logits.shape[2:]
    if labels.shape != pixels:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but must be (batch, *pixels) {tuple(pixels)}.")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, one class per pixel, got {labels.dtype}.")
    labels = labels.to(logits.device, torch.long)
    counted = (labels != config.semantic_loss_ignore_index) & (labels != NOT_A_LABEL)
    if pixel_mask is not None:
        counted = counted & pixel_mask
    target = clear_masked(labels, counted)
    if not values_are_hidden(labels) and ((target < 0) | (target >= logits.shape[1])).any():
        other = target[(target < 0) | (target >= logits.shape[1])][0].item()
        raise ValueError(
            f"labels must be from 0 to {logits.shape[1] - 1} (num_labels={logits.shape[1]}), or "
            f"semantic_loss_ignore_index={config.semantic_loss_ignore_index} or {NOT_A_LABEL} where a pixel does not "
            f"count; got {other}."
        )
    logits = in_full(logits)
    weights = counted.to(logits.dtype)
    if config.class_weights is not None:
        weights = weights * logits.new_tensor(config.class_weights)[target]
    loss = weighted_mean(nn.functional.cross_entropy(logits, target, reduction="none"), weights, over_all)
    if config.dice_loss_weight:
        loss = loss + config.dice_loss_weight * dice_loss(logits.softmax(1), target, counted, over_all)
    return share_of_all(loss, labels, num_items_in_batch, over_all)


def squared_error(prediction: torch.Tensor, target: torch.Tensor, config: AxialConfig) -> torch.Tensor:
    """(p - t)²."""
    return (prediction - target).square()


def absolute_error(prediction: torch.Tensor, target: torch.Tensor, config: AxialConfig) -> torch.Tensor:
    """|p - t|."""
    return (prediction - target).abs()


def quantile_error(prediction: torch.Tensor, target: torch.Tensor, config: AxialConfig) -> torch.Tensor:
    """The mean over the quantiles q, at dim 2 of the prediction, of max(q · (t - p), (q - 1) · (t - p))."""
    short = target.unsqueeze(2) - prediction
    quantiles = prediction.new_tensor(config.quantiles).view(-1, *[1] * (prediction.dim() - 3))
    return torch.maximum(quantiles * short, (quantiles - 1) * short).mean(2)


PREDICTION_ERRORS: dict[str, Callable[[torch.Tensor, torch.Tensor, AxialConfig], torch.Tensor]] = {
    "squared": squared_error,
    "absolute": absolute_error,
    "quantile": quantile_error,
}


def numbers_per_target(config: AxialConfig) -> tuple[int, ...]:
    """The dims that a prediction has behind that of the target channels and before those of the pixels."""
    return (len(config.quantiles),) if config.prediction_loss == "quantile" else ()


def prediction_loss(
    labels: torch.Tensor,
    prediction: torch.Tensor,
    config: AxialConfig,
    pixel_mask: torch.Tensor | None = None,
    loss_mask: torch.Tensor | None = None,
    loss_weights: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    over_all: OverAll = of_the_whole,
    **kwargs,
) -> torch.Tensor:
    """The mean error of a prediction over the numbers that count, each with its weight.

    labels (B, channels, *pixels); prediction likewise, with the quantiles at dim 2 where there are any. `loss_mask`
    (True: counts) and `loss_weights` (not negative) broadcast to the labels; what stands in labels that do not count,
    NaN included, has no effect. `pixel_mask` (B, *pixels) is that of the pixels that are there.

    Raises:
        ValueError: for labels, a mask or weights of another shape, and for a mask that is none.
    """
    shape = prediction.shape[:2] + prediction.shape[2 + len(numbers_per_target(config)) :]
    if labels.shape != shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but must be (batch, num_target_channels, *pixels) "
            f"{tuple(shape)}."
        )
    prediction = in_full(prediction)
    counted = pixels_that_count(pixel_mask, labels.to(prediction.device))
    if loss_mask is not None:
        counted = counted & broadcastable(boolean_mask(loss_mask, "loss_mask"), shape, "loss_mask")
    weights = counted.to(prediction.dtype)
    if loss_weights is not None:
        weights = weights * broadcastable(loss_weights, shape, "loss_weights")
    target = clear_masked(labels.to(prediction.device, prediction.dtype), counted)
    loss = weighted_mean(PREDICTION_ERRORS[config.prediction_loss](prediction, target, config), weights, over_all)
    return share_of_all(loss, labels, num_items_in_batch, over_all)


def reconstruction_loss(
    pixel_values: torch.Tensor,
    reconstruction: torch.Tensor,
    pixel_mask: torch.Tensor | None,
    over_all: OverAll = of_the_whole,
) -> torch.Tensor:
    """The mean absolute error over the pixels of `pixel_mask` (B, *pixels), whatever stands in others."""
    reconstruction, counted = in_full(reconstruction), pixels_that_count(pixel_mask, pixel_values)
    errors = (reconstruction - clear_masked(pixel_values, counted)).abs()
    return weighted_mean(errors, counted.to(errors.dtype), over_all)
