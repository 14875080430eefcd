"""Random crops and changes of grids: every symmetry once, what belongs together moves together, shares of processes."""

import itertools
from collections import Counter

import pytest
import torch

from examples.grid_augmentation import RandomGridChanges, random_starts


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def labelled(batch, *shape, channels=2, patch=None):
    """A batch in which values tell where they come from, and labels and mask are made of them."""
    numbers = torch.arange(batch * torch.Size(shape).numel()).view(batch, *shape)
    values = torch.stack([numbers + 1000 * channel for channel in range(channels)], 1).double()
    grids = {"pixel_values": values, "labels": numbers.clone()}
    if patch is not None:
        cells = numbers[(slice(None), *(slice(None, None, side) for side in patch))]
        grids["attention_mask"] = cells % 3 > 0
    return grids


def as_bytes(tensor):
    return tuple(tensor.flatten().tolist()), tuple(tensor.shape)


def test_starts_are_all_there_are_and_all_alike():
    starts = random_starts([(7, 5)] * 6000, (4, 5), seeded())
    counts = Counter(map(tuple, starts))
    assert set(counts) == {(row, 0) for row in range(4)}
    assert min(counts.values()) > 1350


def test_a_grid_smaller_than_the_crop_is_taken_whole():
    assert random_starts([(3, 11)], (5, 11), seeded()) == [[0, 0]]


def test_processes_cut_the_crops_of_one():
    sizes = [(7, 20), (30, 5), (9, 9), (11, 13), (4, 4), (100, 2)]
    alone = random_starts(sizes, (4, 2), seeded(1))
    for process in range(3):
        assert random_starts(sizes[process::3], (4, 2), seeded(1), process, 3) == alone[process::3]


@pytest.mark.parametrize(
    ("shape", "exchanged", "number"), [((3, 3), (0, 1), 8), ((2, 2, 2), (0, 1, 2), 48), ((2, 3, 3), (0, 1, 2), 16)]
)
def test_all_symmetries_come_and_no_other(shape, exchanged, number):
    axes = range(len(shape))
    grid = labelled(1, *shape)["labels"][0]
    symmetries = {
        as_bytes(grid.permute(order).flip(flips))
        for order in itertools.permutations(axes)
        for count in range(len(shape) + 1)
        for flips in itertools.combinations(axes, count)
        if tuple(shape[axis] for axis in order) == shape
    }
    changes = RandomGridChanges(flip_axes=axes, exchange_axes=exchanged)
    batch = {"pixel_values": grid.expand(200 * number, 1, *shape).double()}
    counts = Counter(map(as_bytes, changes(batch, seeded())["pixel_values"][:, 0].long()))
    assert len(symmetries) == number and set(counts) == symmetries
    assert min(counts.values()) > 130 and max(counts.values()) < 280


def test_only_the_named_axes_change():
    batch = labelled(40, 4, 4, 4)
    flipped = RandomGridChanges(flip_axes=[1])(batch, seeded())["labels"]
    kinds = {
        "as it was" if torch.equal(new, old) else "mirrored" if torch.equal(new, old.flip(1)) else "else"
        for new, old in zip(flipped, batch["labels"], strict=True)
    }
    assert kinds == {"as it was", "mirrored"}
    exchanged = RandomGridChanges(exchange_axes=[0, 2])(batch, seeded())["labels"]
    kinds = {
        "as it was" if torch.equal(new, old) else "exchanged" if torch.equal(new, old.transpose(0, 2)) else "else"
        for new, old in zip(exchanged, batch["labels"], strict=True)
    }
    assert kinds == {"as it was", "exchanged"}


def test_labels_and_mask_move_with_the_values():
    batch = labelled(30, 6, 6, 3, patch=(2, 3, 1))
    changed = RandomGridChanges(flip_axes=[0, 1, 2], exchange_axes=[0, 1, 2])(batch, seeded())
    assert torch.equal(changed["pixel_values"][:, 0].long(), changed["labels"])
    assert torch.equal(changed["pixel_values"][:, 1].long(), changed["labels"] + 1000)
    # Cells are of other sides along the two equally long axes, so these may not change places.
    corners = changed["labels"].unflatten(1, (3, 2)).unflatten(3, (2, 3)).amin((2, 4))
    assert torch.equal(corners % 3 > 0, changed["attention_mask"])
    assert not torch.equal(changed["labels"], batch["labels"])


def test_values_are_scaled_and_shifted_by_channel():
    values = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64).expand(500, 2, 3)
    batch = {"pixel_values": values, "labels": torch.zeros(500, 3, dtype=torch.long)}
    changed = RandomGridChanges(contrast=0.25, brightness=0.5)(batch, seeded())
    result = changed["pixel_values"]
    offset = result[..., 1]
    factor = (result[..., 2] - offset) / 2
    torch.testing.assert_close(result[..., 0], offset - factor)
    assert 0.75 < factor.min() < 0.76 and 1.24 < factor.max() < 1.25
    assert -0.5 < offset.min() < -0.49 and 0.49 < offset.max() < 0.5
    assert abs(torch.corrcoef(torch.stack([factor[:, 0], factor[:, 1], offset[:, 0]])).tril(-1)).max() < 0.15
    assert torch.equal(changed["labels"], batch["labels"])


def test_noise_is_normal_and_new_for_each_value():
    batch = {"pixel_values": torch.full((50, 2, 30), 3.0, dtype=torch.float64)} | {"labels": torch.zeros(50, 30)}
    changed = RandomGridChanges(noise=0.5)(batch, seeded())
    noise = changed["pixel_values"] - 3
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(0.5, abs=0.02)
    assert len(noise.unique()) == noise.numel() and abs((noise**4).mean() - 3 * 0.5**4) < 0.05
    assert torch.equal(changed["labels"], batch["labels"])
    # All else is drawn as without.
    numbers = labelled(6, 4, 4)
    plain, noisy = (RandomGridChanges([0, 1], [0, 1], 0.2, 0.3, noise)(numbers, seeded(5)) for noise in (0.0, 1e-9))
    torch.testing.assert_close(noisy["pixel_values"], plain["pixel_values"])


def test_nothing_asked_changes_nothing():
    batch = labelled(3, 5, 7, patch=(5, 1))
    changed = RandomGridChanges()(batch, seeded())
    assert changed.keys() == batch.keys() and all(torch.equal(changed[name], batch[name]) for name in batch)


def test_processes_draw_what_one_would():
    batch = labelled(6, 4, 4, patch=(2, 2))
    changes = RandomGridChanges([0, 1], [0, 1], 0.2, 0.3, 0.4)
    alone = changes(batch, seeded(5))
    for process in range(3):
        part = changes({name: tensor[process::3] for name, tensor in batch.items()}, seeded(5), process, 3)
        assert all(torch.equal(part[name], alone[name][process::3]) for name in batch)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"flip_axes": [0, 0]}, "flip_axes must be different axes"),
        ({"exchange_axes": [-1]}, "exchange_axes must be different axes"),
        ({"contrast": 1}, r"contrast must be in \[0, 1\)"),
        ({"brightness": float("nan")}, r"brightness must be in \[0, inf\)"),
        ({"noise": -0.1}, r"noise must be in \[0, inf\)"),
    ],
)
def test_impossible_changes_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        RandomGridChanges(**arguments)


def test_an_axis_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"the axes 0 to 1, not all of flip_axes=\(2,\)"):
        RandomGridChanges(flip_axes=[2])(labelled(1, 3, 3), seeded())
