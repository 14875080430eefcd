"""Turns and sizes of grids: where each pixel comes from, and that labels and masks come along."""

import math

import pytest
import torch

from examples.grid_warping import RandomWarping, warp


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(*shape, slopes):
    """(1, 1, *shape), which grows by `slopes` along the axes, 0 in the middle: exact where it is interpolated."""
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape), indexing="ij")
    return sum(slope * place for slope, place in zip(slopes, places, strict=True))[None, None]


def one(angle=0.0, factor=1.0):
    return torch.tensor([angle]), torch.tensor([factor])


def test_a_quarter_is_an_exact_turn():
    numbers = torch.arange(36).view(1, 6, 6)
    batch = {"pixel_values": numbers[:, None].double(), "labels": numbers, "attention_mask": numbers[:, ::2, ::2] > 9}
    warped = warp(batch, *one(math.pi / 2))
    torch.testing.assert_close(warped["pixel_values"], batch["pixel_values"].rot90(1, (2, 3)), rtol=0, atol=1e-5)
    for name in ("labels", "attention_mask"):
        assert torch.equal(warped[name], batch[name].rot90(1, (1, 2))), name
        assert warped[name].dtype == batch[name].dtype


@pytest.mark.parametrize(("angle", "factor"), [(0.4, 1.0), (0.0, 1.6), (-0.7, 1.3)])
@pytest.mark.parametrize("shape", [(7, 13), (5, 7, 13)])
def test_a_pixel_comes_from_where_turn_and_size_say(shape, angle, factor):
    slopes = (2.0, 3.0, 5.0)[-len(shape) :]
    found = warp({"pixel_values": ramp(*shape, slopes=slopes)}, *one(angle, factor))["pixel_values"]
    *first, row, column = slopes
    turned = (
        row * math.cos(angle) - column * math.sin(angle),
        row * math.sin(angle) + column * math.cos(angle),
    )
    expected = ramp(*shape, slopes=[slope / factor for slope in (*first, *turned)])
    inside = (..., *[slice(None)] * len(first), slice(2, 5), slice(5, 8))  # whose sources are not mirrored
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-6, atol=1e-6)


def test_what_comes_from_outside_is_a_mirror_image():
    smaller = warp({"pixel_values": torch.arange(6.0).view(1, 1, 1, 6)}, *one(factor=0.5))["pixel_values"]
    torch.testing.assert_close(smaller.flatten(), torch.tensor([1.5, 0, 1.5, 3.5, 5, 3.5]))


def test_a_cell_with_any_pixel_stays_in_the_mask():
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[:, 1, 1] = True
    larger = warp({"pixel_values": torch.zeros(1, 1, 6, 6), "attention_mask": mask}, *one(factor=2.5))
    assert larger["attention_mask"].all()


def test_labels_are_of_the_nearest_pixel_and_keep_large_numbers():
    labels = torch.tensor([0, 1, 255, -100, 2**40])[torch.randint(5, (3, 9, 11), generator=seeded())]
    batch = {"pixel_values": torch.zeros(3, 1, 9, 11), "labels": labels}
    warped = RandomWarping(2, 45, 0.5)(batch, seeded())["labels"]
    assert set(warped.unique().tolist()) == set(labels.unique().tolist()) and not torch.equal(warped, labels)


def test_draws_fill_their_ranges():
    """Seen in a field that grows along its columns alone: the two slopes tell turn and size."""
    fields = ramp(5, 5, slopes=(0.0, 1.0)).expand(400, -1, -1, -1)
    warped = RandomWarping(2, 30, 0.25)({"pixel_values": fields}, seeded())["pixel_values"][:, 0]
    down, right = (warped[:, 3, 2] - warped[:, 1, 2]) / 2, (warped[:, 2, 3] - warped[:, 2, 1]) / 2
    angles, factors = torch.rad2deg(torch.atan2(-down, right)), (down**2 + right**2).rsqrt()
    assert -30 <= angles.min() < -28 and 28 < angles.max() <= 30 and abs(angles.mean()) < 2
    assert 0.8 <= factors.min() < 0.81 and 1.24 < factors.max() < 1.2501 and abs(factors.log().mean()) < 0.02


def test_processes_draw_what_one_would():
    batch = {"pixel_values": torch.randn(6, 2, 4, 8, generator=seeded()), "labels": torch.arange(192).view(6, 4, 8)}
    warping = RandomWarping(2, 90, 0.3)
    alone = warping(batch, seeded(5))
    for process in range(3):
        part = warping({name: tensor[process::3] for name, tensor in batch.items()}, seeded(5), process, 3)
        assert all(torch.equal(part[name], alone[name][process::3]) for name in batch)


def test_nothing_asked_draws_nothing():
    generator, batch = seeded(), {"pixel_values": torch.zeros(1, 1, 5)}
    assert RandomWarping(1)(batch, generator) is batch and torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize(("arguments", "words"), [({"turn": 181}, r"\[0, 180\]"), ({"zoom": -0.1}, r"\[0, inf\)")])
def test_impossible_strengths_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        RandomWarping(3, **arguments)


@pytest.mark.parametrize("num_axes", [1, 4])
def test_other_grids_are_refused(num_axes):
    with pytest.raises(ValueError, match=f"2 or 3 axes can be turned and zoomed, these have {num_axes}"):
        RandomWarping(num_axes, zoom=0.5)
