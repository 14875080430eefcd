"""Each loss against loops over the pixels that count, in float64."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from modeling_axial import AxialConfig
from modeling_axial.dense_losses import (
    PREDICTION_ERRORS,
    dice_loss,
    prediction_loss,
    reconstruction_loss,
    segmentation_loss,
    share_of_all,
    weighted_mean,
)

SIZES = [(7,), (5, 3), (2, 5, 3)]
sizes_of_pictures = pytest.mark.parametrize("sizes", SIZES, ids=str)


def make_config(**overrides):
    return AxialConfig(**{"num_labels": 4, "semantic_loss_ignore_index": 9, **overrides})


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(sizes, seed=1):
    """Classes 0 to 3, some pixels -100 or 9."""
    labels = torch.randint(6, (2, *sizes), generator=torch.Generator().manual_seed(seed))
    return labels.where(labels != 4, -100).where(labels != 5, 9)


def pixels(shape):
    return itertools.product(*(range(length) for length in shape))


def counted_pixels(labels, pixel_mask=None):
    return [
        pixel
        for pixel in pixels(labels.shape)
        if labels[pixel] not in (-100, 9) and (pixel_mask is None or pixel_mask[pixel])
    ]


def slow_cross_entropy(labels, logits, class_weights, counted):
    total = weight_sum = 0.0
    for sample, *place in counted:
        scores = logits[(sample, slice(None), *place)]
        label = labels[(sample, *place)].item()
        loss = math.log(sum(math.exp(score) for score in scores.tolist())) - scores[label].item()
        total += class_weights[label] * loss
        weight_sum += class_weights[label]
    return total / weight_sum


def slow_dice(labels, logits, counted):
    each = []
    for sample, label in itertools.product(range(logits.shape[0]), range(logits.shape[1])):
        both = sums = 0.0
        for other, *place in counted:
            if other == sample:
                probability = logits[(sample, slice(None), *place)].softmax(0)[label].item()
                target = float(labels[(sample, *place)] == label)
                both, sums = both + probability * target, sums + probability + target
        each.append((2 * both + 1) / (sums + 1))
    return 1 - sum(each) / len(each)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dice", [0.0, 0.7])
@pytest.mark.parametrize("class_weights", [None, [0.5, 2, 0.0, 1.25]])
@sizes_of_pictures
def test_segmentation_written_out(sizes, class_weights, dice, masked):
    config = make_config(class_weights=class_weights, dice_loss_weight=dice)
    logits, labels = draw(2, 4, *sizes), labels_of(sizes)
    pixel_mask = draw(2, *sizes, seed=3) > -0.5 if masked else None
    counted = counted_pixels(labels, pixel_mask)
    assert 0 < len(counted) < labels.numel()
    expected = slow_cross_entropy(labels, logits, class_weights or [1.0] * 4, counted)
    expected += dice * slow_dice(labels, logits, counted)
    assert segmentation_loss(labels, logits, config, pixel_mask).item() == pytest.approx(expected, rel=1e-13)


def test_dice_of_perfect_and_of_opposite_answers():
    target, counted = torch.tensor([[0, 1, 1, 0]]), torch.ones(1, 4, dtype=torch.bool)
    perfect = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).double()
    assert dice_loss(perfect, target, counted).item() == 0
    assert dice_loss(1 - perfect, target, counted).item() == pytest.approx(1 - 1 / 5)
    assert dice_loss(1 - perfect, target, ~counted).item() == 0  # no pixel counts


@pytest.mark.parametrize("ignored", [-100, 9])
@pytest.mark.parametrize("overrides", [{}, {"dice_loss_weight": 1.0}, {"class_weights": [1, 2, 3, 4]}], ids=str)
def test_nothing_counts(overrides, ignored):
    logits = draw(2, 4, 5, 3).requires_grad_()
    loss = segmentation_loss(torch.full((2, 5, 3), ignored), logits, make_config(**overrides))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_classes_without_weight_give_no_loss():
    logits = draw(1, 4, 3).requires_grad_()
    loss = segmentation_loss(torch.full((1, 3), 2), logits, make_config(class_weights=[1, 1, 0, 1]))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
def test_labels_of_any_integer_type(dtype):
    logits, labels = draw(2, 4, 5, 3), labels_of((5, 3)).clamp(0, 1).to(dtype)
    expected = segmentation_loss(labels.long(), logits, make_config())
    assert torch.equal(segmentation_loss(labels, logits, make_config()), expected)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(2, 5, 4, dtype=torch.long), ["(2, 5, 4)", "(2, 5, 3)"]),
        (torch.zeros(2, 1, 5, 3, dtype=torch.long), ["(2, 1, 5, 3)", "(2, 5, 3)"]),
        (torch.zeros(2, 5, 3), ["integers", "float32"]),
        (torch.full((2, 5, 3), 4), ["from 0 to 3", "num_labels=4", "semantic_loss_ignore_index=9", "-100", "got 4"]),
        (torch.full((2, 5, 3), -1), ["got -1"]),
        (torch.full((2, 5, 3), 255, dtype=torch.uint8), ["got 255"]),
    ],
)
def test_labels_that_are_none_are_refused(labels, words):
    with pytest.raises(ValueError) as error:
        segmentation_loss(labels, draw(2, 4, 5, 3), make_config())
    assert all(word in str(error.value) for word in words)


def test_half_precision_is_summed_in_full():
    # More pixels than float16 can count, and a sum beyond its largest number.
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.float16)
    loss = segmentation_loss(torch.zeros(1, 300, 300, dtype=torch.long), logits, make_config(num_labels=2))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.log(2), rel=1e-6)
    config = make_config(dice_loss_weight=1.0, num_labels=2)
    loss = segmentation_loss(torch.zeros(1, 300, 300, dtype=torch.long), logits, config)
    assert loss.item() == pytest.approx(math.log(2) + 1 - (2 / 3 + 0) / 2, rel=1e-4)


# ---- numbers for each pixel ----

SLOW_ERRORS = {
    "squared": lambda p, t, quantiles: (p[0] - t) ** 2,
    "absolute": lambda p, t, quantiles: abs(p[0] - t),
    "quantile": lambda p, t, quantiles: (
        sum(q * (t - own) if t > own else (1 - q) * (own - t) for q, own in zip(quantiles, p, strict=True))
        / len(quantiles)
    ),
}


def test_every_error_is_tested():
    assert SLOW_ERRORS.keys() == PREDICTION_ERRORS.keys()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", SLOW_ERRORS)
@sizes_of_pictures
def test_prediction_written_out(sizes, kind, masked, weighted):
    config = make_config(prediction_loss=kind, quantiles=[0.2, 0.7], num_target_channels=3)
    numbers = 2 if kind == "quantile" else 1
    prediction, labels = draw(2, 3, numbers, *sizes), draw(2, 3, *sizes, seed=1)
    pixel_mask = loss_mask = loss_weights = None
    if masked:
        pixel_mask, loss_mask = draw(2, *sizes, seed=2) > -0.5, draw(1, 3, *sizes, seed=3) > -0.5
    if weighted:
        loss_weights = draw(1, 1, sizes[0], *[1] * (len(sizes) - 1), seed=4).square()
    total = weight_sum = 0.0
    for sample, channel, *place in pixels(labels.shape):
        if masked and not (pixel_mask[(sample, *place)] and loss_mask[(0, channel, *place)]):
            labels[(sample, channel, *place)] = torch.nan
            continue
        own = prediction[(sample, channel, slice(None), *place)].tolist()
        weight = loss_weights[0, 0, place[0]].sum().item() if weighted else 1.0
        total += weight * SLOW_ERRORS[kind](own, labels[(sample, channel, *place)].item(), config.quantiles)
        weight_sum += weight
    prediction = (prediction if kind == "quantile" else prediction[:, :, 0]).requires_grad_()
    loss = prediction_loss(labels, prediction, config, pixel_mask, loss_mask, loss_weights)
    assert loss.item() == pytest.approx(total / weight_sum, rel=1e-13)
    loss.backward()
    assert prediction.grad.isfinite().all() and prediction.grad.any()


def test_a_quantile_is_where_its_loss_is_least():
    targets, tried = draw(1, 1, 2001), torch.linspace(-3, 3, 601, dtype=torch.float64)
    for q in (0.1, 0.5, 0.9):
        config = make_config(prediction_loss="quantile", quantiles=[q])
        losses = [prediction_loss(targets, value.expand(1, 1, 1, 2001), config).item() for value in tried]
        assert tried[losses.index(min(losses))].item() == pytest.approx(targets.quantile(q).item(), abs=0.02)


def test_no_number_counts():
    prediction = draw(2, 1, 5, 3).requires_grad_()
    labels, nothing = torch.full((2, 1, 5, 3), torch.nan), torch.zeros(2, 1, 5, 3, dtype=torch.bool)
    loss = prediction_loss(labels, prediction, make_config(), loss_mask=nothing)
    loss.backward()
    assert loss.item() == 0 and not prediction.grad.any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": torch.zeros(2, 5, 3)}, ["labels", "(2, 5, 3)", "(2, 1, 5, 3)", "num_target_channels"]),
        ({"labels": torch.zeros(2, 2, 5, 3)}, ["labels", "(2, 2, 5, 3)"]),
        ({"loss_mask": torch.ones(5, 3)}, ["loss_mask", "(5, 3)", "broadcast to (2, 1, 5, 3)"]),
        ({"loss_mask": torch.full((1, 1, 5, 3), 0.5)}, ["loss_mask must be boolean", "0.5"]),
        ({"loss_weights": torch.ones(1, 1, 3, 1)}, ["loss_weights", "(1, 1, 3, 1)"]),
    ],
)
def test_what_does_not_fit_is_refused(given, words):
    with pytest.raises(ValueError) as error:
        prediction_loss(prediction=draw(2, 1, 5, 3), config=make_config(), **{"labels": draw(2, 1, 5, 3)} | given)
    assert all(word in str(error.value) for word in words)


def test_reconstruction_written_out():
    pixel_values, reconstruction, pixel_mask = draw(2, 3, 5, 2), draw(2, 3, 5, 2, seed=1), draw(2, 5, 2, seed=2) > 0
    errors = [
        abs(pixel_values[place] - reconstruction[place]).item()
        for place in pixels(pixel_values.shape)
        if pixel_mask[(place[0], *place[2:])]
    ]
    assert 0 < len(errors) < pixel_values.numel()
    of_all = pixel_values.masked_fill(~pixel_mask[:, None], torch.nan)
    loss = reconstruction_loss(of_all, reconstruction, pixel_mask)
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-13)
    everything = reconstruction_loss(pixel_values, reconstruction, None)
    assert everything.item() == pytest.approx((pixel_values - reconstruction).abs().mean().item(), rel=1e-13)


# ---- parts of a grid ----


def losses_of_parts(loss, parts):
    """What each part is given as its loss, all of them run at once, and the sums over all."""
    meeting, sums = Barrier(len(parts)), [None] * len(parts)

    def run(number):
        def over_all(own):
            sums[number] = own
            meeting.wait(20)
            total = torch.stack(sums).sum(0)
            meeting.wait(20)
            return total

        return loss(*parts[number], over_all=over_all)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, range(len(parts))))


LOSSES_OF_PARTS = {
    "cross-entropy": {},
    "class weights": {"class_weights": [0.5, 2, 0.0, 1.25]},
    "Dice": {"dice_loss_weight": 0.7},
    **{kind: {"prediction_loss": kind, "quantiles": [0.2, 0.7]} for kind in PREDICTION_ERRORS},
    "reconstruction": {},
}


@pytest.mark.parametrize("items", [None, 17], ids=["", "accumulated"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("name", LOSSES_OF_PARTS)
def test_losses_of_parts_are_made_of_sums(name, masked, items):
    """The loss on every part is that of the whole; one of the parts has no pixel that counts."""
    config, sizes = make_config(**LOSSES_OF_PARTS[name]), (5, 3)
    pixel_mask = draw(2, *sizes, seed=3) > -0.5 if masked else torch.ones(2, *sizes, dtype=torch.bool)
    pixel_mask[:, 4] = False
    if name == "reconstruction":
        values = draw(2, 3, *sizes), draw(2, 3, *sizes, seed=1), pixel_mask

        def loss(wanted, reconstruction, mask, **kwargs):
            return reconstruction_loss(wanted, reconstruction, mask, **kwargs)

    elif name in PREDICTION_ERRORS:
        numbers = (2,) if name == "quantile" else ()
        weights = draw(1, 1, sizes[0], 1, seed=4).square() if masked else torch.ones(1, 1, *sizes)
        values = draw(2, 1, *sizes), draw(2, 1, *numbers, *sizes, seed=1), pixel_mask, weights

        def loss(labels, prediction, mask, weights, **kwargs):
            keywords = kwargs | {"loss_weights": weights, "num_items_in_batch": items}
            return prediction_loss(labels, prediction, config, mask, **keywords)

    else:
        values = labels_of(sizes), draw(2, 4, *sizes), pixel_mask

        def loss(labels, logits, mask, **kwargs):
            return segmentation_loss(labels, logits, config, mask, items, **kwargs)

    parts = [
        [each.narrow(each.dim() - 2, first, count) for each in values] for first, count in ((0, 3), (3, 1), (4, 1))
    ]
    expected = loss(*values)
    assert expected > 0
    for found in losses_of_parts(loss, parts):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    assert not any(torch.allclose(loss(*part), expected, rtol=1e-3) for part in parts)  # as they would be alone


# ---- accumulated batches ----


def test_weighted_mean():
    assert weighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0])).item() == 2
    assert weighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 0.0])).item() == 0


def test_share_of_all():
    loss, labels = torch.tensor(3.0, dtype=torch.float64), torch.tensor([[1, -100, 9], [0, 1, 2]])
    assert share_of_all(loss, labels, None) is loss and share_of_all(loss, labels, 20).item() == 3 * 5 / 20
    assert share_of_all(loss, labels.double(), torch.tensor(7)).item() == 3 * 5 / 7


@pytest.mark.parametrize("overrides", [{}, {"dice_loss_weight": 1.0}, {"class_weights": [1, 2, 3, 4]}], ids=str)
def test_segmentation_of_accumulated_batches_adds_up(overrides):
    config = make_config(**overrides)
    logits, labels = draw(4, 4, 5, 3), labels_of((10, 3)).view(4, 5, 3)
    parts = [slice(0, 1), slice(1, 4)]
    if overrides:  # a mean over classes, samples or weights, of parts of one composition
        logits, labels = logits[[0, 0, 0, 0]], labels[[0, 0, 0, 0]]
    else:  # exact for what Trainer counts
        labels = labels.where(labels != 9, -100)
    items = (labels != -100).sum()
    whole = segmentation_loss(labels, logits, config, num_items_in_batch=items)
    torch.testing.assert_close(whole, segmentation_loss(labels, logits, config), rtol=1e-13, atol=0)
    added = sum(segmentation_loss(labels[part], logits[part], config, num_items_in_batch=items) for part in parts)
    torch.testing.assert_close(added, whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", PREDICTION_ERRORS)
def test_prediction_of_accumulated_batches_adds_up(kind):
    config = make_config(prediction_loss=kind, quantiles=[0.2, 0.7])
    prediction = draw(4, 1, 2, 5, 3) if kind == "quantile" else draw(4, 1, 5, 3)
    labels = draw(4, 1, 5, 3, seed=1)
    whole = prediction_loss(labels, prediction, config)
    added = sum(
        prediction_loss(labels[part], prediction[part], config, num_items_in_batch=labels.numel())
        for part in (slice(0, 1), slice(1, 4))
    )
    torch.testing.assert_close(added, whole, rtol=1e-13, atol=0)
