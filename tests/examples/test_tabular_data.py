"""Tables that are drawn, and those of packages."""

import numpy as np
import pytest
import torch

from examples.tabular_data import KINDS, OTHER_ROWS, TABLES, DrawnTables, Noise, draw_group, draws, warp
from modeling_axial import AxialConfig

CONFIG = AxialConfig(image_size=[20, 9], patch_size=1, num_labels=4, hidden_size=8, num_attention_heads=1)


def test_a_group_is_a_function_of_seed_and_number():
    first, again, other_seed = (DrawnTables(10, seed, 1000, CONFIG) for seed in (0, 0, 1))
    torch.manual_seed(1)
    for index in (0, 7):
        expected = first[index]
        torch.rand(3)
        for name, values in again[index].items():
            assert torch.equal(values, expected[name])
        assert other_seed[index]["features"].shape != expected["features"].shape or not torch.equal(
            other_seed[index]["features"], expected["features"]
        )
    assert len(first) == 10 and not torch.equal(first[1]["features"].flatten()[:9], first[2]["features"].flatten()[:9])


def test_sizes_stay_in_their_limits_and_reach_them():
    sizes = []
    for index in range(150):
        group = DrawnTables(150, 0, 1000, CONFIG)[index]
        tables, rows, features = group["features"].shape
        labelled = group["labels"].shape[1]
        assert group["targets"].shape == (tables, OTHER_ROWS) and rows == labelled + OTHER_ROWS
        assert group["features"].isfinite().all()
        sizes.append((labelled, features, int(torch.cat([group["labels"], group["targets"]], 1).max()) + 1))
        assert tables == 1 or tables * rows * (features + 1) <= 1000
    assert np.max(sizes, 0).tolist() == [20, 8, 4] and np.min(sizes, 0)[:2].tolist() == [6, 2]


def test_every_class_is_among_the_labelled_rows():
    for index in range(20):
        group = draw_group(Noise(0, index), 4000, 6, 5, 6)
        for labels, targets in zip(group["labels"], group["targets"], strict=True):
            assert set(targets.tolist()) <= set(labels.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_each_kind_tell_the_class(kind):
    """More than chance, by the means of the classes alone or, for trees, by the nearest rows."""
    right = []
    for index in range(10):
        x, y = kind(Noise(1, index), 8, 200, 6, 3)
        assert x.shape == (8, 200, 6) and y.shape == (8, 200) and set(y.unique().tolist()) <= {0, 1, 2}
        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
        distances = torch.cdist(x, x) + 1e9 * torch.eye(200)
        share = torch.nn.functional.one_hot(y, 3).float().mean(1).amax(-1)
        right.append(((y.gather(1, distances.argmin(-1)) == y).float().mean(1) - share).mean())
    assert torch.stack(right).mean() > 0.1


def test_warped_features_keep_their_order_and_some_tables_stay():
    draw = Noise(0)
    x = draw.normal(200, 50, 4)
    warped = warp(x, draw)
    standard = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    ordered = warped.gather(1, x.argsort(1)).diff(dim=1)
    assert (ordered > -1e-5).all()
    unchanged = torch.isclose(warped, standard).all(1).all(1)
    assert 30 < unchanged.sum() < 170


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("iris", (150, 4), [50, 50, 50]),
        ("wine", (178, 13), [59, 71, 48]),
        ("breast cancer", (569, 30), [212, 357]),
        ("digits 3, 8, 9", (537, 64), [183, 174, 180]),
        ("diabetes", (442, 10), [221, 221]),
        ("houses", (506, 13), [256, 250]),
        ("cars", (392, 6), [245, 68, 79]),
        ("MNIST 4, 7, 9", (500, 49), [167, 167, 166]),
    ],
)
def test_tables_of_packages(name, shape, counts):
    (read,) = [tables[name] for tables in TABLES.values() if name in tables]
    features, labels = read()
    assert features.shape == shape and np.unique(labels, return_counts=True)[1].tolist() == counts
    assert np.isfinite(features).all() and (features.std(0) > 0).sum() >= shape[1] - 10


def test_draws_are_the_same_every_time_and_have_all_classes():
    features, labels = TABLES["held_out"]["iris"]()
    first, again = (list(draws(features, labels, 10, 3)) for _ in range(2))
    assert len(first) == 3 and not np.array_equal(first[0][0], first[1][0])
    for one, two in zip(first, again, strict=True):
        given, others, known, truth = one
        assert given.shape == (10, 4) and len(others) == len(truth) == 140
        assert np.bincount(known, minlength=3).min() >= 3
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
