"""Patches to hide, pictures without labels, and what simple fillers put in the place of what is hidden."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import TensorDataset

from examples.masked_image_data import (
    MaskedPictures,
    PictureTrees,
    fill_from_neighbours,
    fill_with_mean,
    fill_with_median,
    hidden_errors,
    hidden_pixels,
    number_of_hidden,
    random_masks,
)
from modeling_axial import AxialImageProcessor


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_numbers_of_hidden_patches():
    assert [number_of_hidden(ratio, (3, 5)) for ratio in (0.01, 0.4, 0.6, 0.99)] == [1, 6, 9, 14]
    with pytest.raises(ValueError, match="a picture of 1 patch has none to hide"):
        number_of_hidden(0.5, (1, 1))


def test_all_choices_are_equally_likely():
    masks = random_masks(3000, 0.5, (2, 2), seeded())
    assert masks.shape == (3000, 2, 2) and masks.dtype == torch.bool
    kinds, counts = masks.flatten(1).unique(dim=0, return_counts=True)
    assert (kinds.sum(1) == 2).all() and len(kinds) == 6
    assert counts.min() > 0.85 * 500


def test_masks_of_two_processes_are_those_of_one():
    whole = random_masks(6, 0.4, (3, 5), seeded(5))
    for process_index in (0, 1):
        assert torch.equal(random_masks(3, 0.4, (3, 5), seeded(5), process_index, 2), whole[process_index::2])


def test_what_is_hidden_to_measure_on_depends_on_the_number_of_the_picture():
    dataset = TensorDataset(torch.rand(40, 1, 4, 4), torch.zeros(40))
    masked, again = (MaskedPictures(dataset, 0.5, (4, 4)) for _ in range(2))
    assert len(masked) == 40 and torch.equal(masked[3][0], dataset[3][0])
    assert torch.equal(masked[3][1], again[3][1])
    assert len({tuple(masked[index][1].flatten().tolist()) for index in range(40)}) > 35


def test_pixels_of_patches():
    (pixels,) = hidden_pixels(torch.tensor([[[True, False], [False, True]]]), (2, 3))
    expected = torch.zeros(1, 4, 6, dtype=torch.bool)
    expected[0, :2, :3] = expected[0, 2:, 3:] = True
    assert torch.equal(pixels, expected)


def test_fillers_see_only_what_they_may_and_fill_it():
    pixels = torch.tensor([[1.0, 2.0, 6.0], [9.0, 4.0, 50.0]]).view(1, 1, 2, 3).repeat(1, 2, 1, 1)
    pixels[:, 1] += 100
    hidden = torch.tensor([[False, False, False], [True, False, True]]).view(1, 1, 2, 3)
    for fill, left, right in (
        (fill_with_mean, 13 / 4, 13 / 4),
        (fill_with_median, 2.0, 2.0),  # the lower of the two in the middle
        (fill_from_neighbours, (1 + 2 + 4) / 3, (2 + 6 + 4) / 3),
    ):
        filled = fill(torch.where(hidden, torch.tensor(1e6), pixels), hidden)
        expected = pixels.clone()
        expected[:, :, 1, 0], expected[:, :, 1, 2] = left, right
        expected[:, 1, 1, [0, 2]] += 100
        torch.testing.assert_close(filled, expected)


def test_neighbours_grow_inwards():
    pixels = torch.arange(7.0).view(1, 1, 1, 7)
    hidden = torch.tensor([0, 1, 1, 1, 1, 1, 0]).bool().view(1, 1, 1, 7)
    assert fill_from_neighbours(pixels, hidden).flatten().tolist() == [0, 0, 0, 3, 6, 6, 6]


def test_errors_count_what_is_hidden():
    pixels, reconstruction = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    reconstruction[:, :, 0] = 7
    reconstruction[1, 0, 1, 0] = 4
    hidden = torch.tensor([[False, False], [True, True]]).expand(2, 1, 2, 2)
    assert hidden_errors(reconstruction, pixels, hidden).tolist() == [1, 1.5]


# Folders


@pytest.fixture
def folders(tmp_path):
    for number, name in enumerate(["train/b.png", "train/a/deep/c.png", "train/a/d.jpg", "validation/e.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 9, 3), 40 * number, np.uint8)).save(tmp_path / name)
    for name in ("train/.hidden/f.png", "train/.g.png", "train/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    return tmp_path


def datasets(folders):
    data = PictureTrees(str(folders / "train"), str(folders / "validation"))
    return data.datasets(AxialImageProcessor(size={"height": 4, "width": 6}), Accelerator(cpu=True), 0)


def test_pictures_at_any_depth(folders):
    train, validation = datasets(folders)
    assert [path.name for path, _ in train.items] == ["d.jpg", "c.png", "b.png"] and len(validation) == 1
    assert train[1][0].shape == (3, 4, 6)


def test_bad_folders(folders):
    with pytest.raises(ValueError, match="nowhere is not there, or no folder"):
        PictureTrees(str(folders / "train"), str(folders / "nowhere"))
    with pytest.raises(ValueError, match="hidden has no pictures below it"):
        (folders / "train" / ".hidden" / "f.png").unlink()
        PictureTrees(str(folders / "train" / ".hidden"), str(folders / "validation"))
    (folders / "train" / "a" / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match="1 of 4 pictures cannot be read: .*bad.png"):
        datasets(folders)
