"""Grids inside packages: what is learnt from and what is measured on share nothing, and no package is imported."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from examples.segmentation_data import read_nifti
from examples.segmentation_samples import BrainTissue, IndianPines, Nuclei2d, Nuclei3d
from modeling_axial import AxialConfig
from tests.conftest import ROOT

VOLUMES = AxialConfig(image_size=[4, 4, 4], patch_size=[2, 2, 2], num_channels=1, num_labels=4)
PICTURES = AxialConfig(image_size=[4, 6], patch_size=2, num_channels=1, num_labels=2)


@pytest.mark.parametrize(("kind", "shape"), [(Nuclei2d, (512, 512)), (Nuclei3d, (31, 61, 57))])
def test_nuclei_are_cut_into_halves_that_share_nothing(kind, shape):
    config = AxialConfig(image_size=[4] * len(shape), patch_size=[2] * len(shape), num_channels=1, num_labels=2)
    folds = [kind(config, fold) for fold in (0, 1)]
    for learnt, other in (folds, folds[::-1]):
        (train,), (held_out,) = learnt.train, learnt.held_out
        assert np.array_equal(train.values, other.held_out[0].values)
        assert np.array_equal(held_out.labels, other.train[0].labels)
    (left,), (right,) = folds[0].train, folds[0].held_out
    assert (left.labels.shape[-1], right.labels.shape[-1]) == (shape[-1] // 2, shape[-1] - shape[-1] // 2)
    whole = np.concatenate([left.values, right.values], -1)
    assert whole.shape == (1, *shape) and set(np.unique(left.labels)) == {0, 1}
    images = Path(importlib.util.find_spec("stardist").submodule_search_locations[0]) / "data" / "images"
    assert np.array_equal(whole[0], tifffile.imread(images / kind.image))
    assert (folds[0].trained_on, folds[0].measured_on) == (
        f"the left half of {kind.image} in stardist",
        f"the right half of {kind.image} in stardist",
    )
    processor = folds[0].make_processor(config)
    assert processor.image_mean[0] == pytest.approx(left.values.mean(dtype=np.float64))


@pytest.mark.parametrize(("kind", "first"), [(Nuclei2d, 343), (Nuclei3d, 21)])
@pytest.mark.parametrize("fold", [0, 1])
def test_settings_are_chosen_on_rows_of_the_half_to_learn_from(kind, first, fold):
    axes = kind.num_axes
    config = AxialConfig(image_size=[4] * axes, patch_size=[2] * axes, num_channels=1, num_labels=2)
    (half,), chosen = kind(config, fold).train, kind(config, fold, validation_share=0.33)
    (train,), (held_out,) = chosen.train, chosen.held_out
    assert len(train.labels) == train.values.shape[1] == first
    assert np.array_equal(np.concatenate([train.values, held_out.values], 1), half.values)
    assert np.array_equal(np.concatenate([train.labels, held_out.labels]), half.labels)
    side = ("left", "right")[fold]
    assert chosen.measured_on == f"the last rows of the {side} half of {kind.image} in stardist"
    for share, rows in ((1e-9, len(half.labels) - 1), (1 - 1e-9, 1)):  # at least one row in each
        assert len(kind(config, fold, share).train[0].labels) == rows


def test_nuclei_are_found_without_importing_stardist():
    code = "import sys\nsys.path.insert(0, 'examples')\nfrom segmentation_samples import Nuclei2d\n"
    code += "from modeling_axial import AxialConfig\nNuclei2d(AxialConfig(num_channels=1), 0)\n"
    code += "print(*(name in sys.modules for name in ('tifffile', 'stardist', 'monai', 'nibabel')))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "False", "False", "False"], run.stderr


def test_a_model_of_other_axes_is_refused():
    with pytest.raises(ValueError, match="img3d.tif has 3 axes; the model has 2"):
        Nuclei3d(PICTURES, 0)
    with pytest.raises(ValueError, match="the brain has 3 axes; the model has 2"):
        BrainTissue(PICTURES, 0)
    with pytest.raises(ValueError, match="Indian Pines has 2 axes; the model has 3"):
        IndianPines(AxialConfig(image_size=[4, 6, 2], patch_size=[2, 2, 2]), 0)


@pytest.fixture(scope="module")
def brain():
    """The intensities of the brain without what lies around, (left to right, back to front, low to high)."""
    values = np.asarray(read_nifti(BrainTissue.file("t1"))[0])
    sides = [np.flatnonzero(values.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return values[tuple(slice(found[0], found[-1] + 1) for found in sides)]


QUARTERS = [f"the {which} quarter from the back" for which in ("first", "second", "third", "fourth")]


@pytest.mark.parametrize(
    ("first_fold", "names", "starts", "length"),
    [(0, ["the back half", "the front half"], [0, 97], 84), (2, QUARTERS, [0, 47, 94, 141], 40)],
)
def test_the_brain_is_cut_where_its_parts_share_nothing(brain, first_fold, names, starts, length):
    """From back to front, with gaps: from left to right it is its own mirror image."""
    assert brain.shape == (145, 181, 155) and np.array_equal(brain, brain[::-1])
    one, other = (BrainTissue(VOLUMES, first_fold + more) for more in (0, 1))
    slabs = [grid for pair in zip(one.train, one.held_out, strict=True) for grid in pair]
    assert [slab.name for slab in slabs] == names
    for slab, start in zip(slabs, starts, strict=True):
        assert np.array_equal(slab.values[0], brain[:, start : start + length])
        assert np.array_equal(slab.labels > 0, slab.values[0] > 0) and set(np.unique(slab.labels)) == {0, 1, 2, 3}
        medians = [np.median(slab.values[0][slab.labels == tissue]) for tissue in (1, 2, 3)]
        assert medians == sorted(medians)  # water is dark, and the fat of white matter bright
    for learnt, measured in ((one.train, other.held_out), (one.held_out, other.train)):
        for grid, same in zip(learnt, measured, strict=True):
            assert np.array_equal(grid.values, same.values) and np.array_equal(grid.labels, same.labels)
    assert one.trained_on == f"{' and '.join(names[::2])} of the brain in nilearn" == other.measured_on
    assert one.measured_on == f"{' and '.join(names[1::2])} of the brain in nilearn" == other.trained_on


@pytest.mark.parametrize(("fold", "gap"), [(0, 13), (1, 13), (2, 7), (3, 7)])
def test_settings_are_chosen_on_slices_of_what_is_to_learn_from(fold, gap):
    whole, chosen = BrainTissue(VOLUMES, fold), BrainTissue(VOLUMES, fold, validation_share=0.4)
    assert len(chosen.train) == len(chosen.held_out) == len(whole.train) == (1 if fold < 2 else 2)
    for slab, train, held_out in zip(whole.train, chosen.train, chosen.held_out, strict=True):
        slices = slab.labels.shape[1] - gap
        assert train.labels.shape[1] == round(0.6 * slices) and held_out.labels.shape[1] == slices - round(0.6 * slices)
        assert np.array_equal(train.values, slab.values[:, :, : train.labels.shape[1]])
        assert np.array_equal(held_out.labels, slab.labels[:, -held_out.labels.shape[1] :])
        assert held_out.name == f"the foremost slices of {slab.name}"
        for share, count in ((1e-9, slices - 1), (1 - 1e-9, 1)):  # at least one slice in each
            assert {grid.labels.shape[1] for grid in BrainTissue(VOLUMES, fold, share).train} == {count}


def test_likelier_tissue_wins():
    grey, white = (np.asarray(read_nifti(BrainTissue.file(kind))[0]) for kind in ("gm", "wm"))
    labels = BrainTissue(VOLUMES, 0).train[0].labels
    where = np.s_[26:171, 27:111, 0:155]
    grey, white = grey[where] / 255.0, white[where] / 255.0
    neither = 1 - grey - white
    sure = np.sort(np.stack([neither, grey, white]), 0)[-1] > 0.5
    expected = np.where(neither > 0.5, 1, np.where(grey > 0.5, 2, 3))
    inside = sure & (labels > 0)
    assert inside.sum() > 0.9 * (labels > 0).sum() and np.array_equal(labels[inside], expected[inside])


def blocks_of(grid):
    """Which of 29 x 29 blocks hold a pixel that counts."""
    counted = grid.labels != 255
    return {(row // 5, column // 5) for row, column in zip(*np.nonzero(counted), strict=True)}


def test_blocks_to_learn_from_and_to_measure_on():
    """They share none, hold all that has a class, and a tenth of them are to learn from."""
    whole = np.load(
        Path(importlib.util.find_spec("tensorly").submodule_search_locations[0]) / "datasets/data/Indian_pines_gt.npy"
    )
    drawn = []
    for fold in range(IndianPines.num_folds):
        data = IndianPines(PICTURES, fold)
        (train,), (held_out,) = data.train, data.held_out
        assert train.values.shape == (200, 145, 145) and np.array_equal(train.values, held_out.values)
        learnt, measured = blocks_of(train), blocks_of(held_out)
        assert not learnt & measured and len(learnt) == round(0.1 * (len(learnt) + len(measured)))
        together = np.minimum(train.labels, held_out.labels)
        assert np.array_equal(np.where(together == 255, 0, together + 1), whole)
        drawn.append(learnt)
    assert all(len(a & b) < len(a) / 2 for i, a in enumerate(drawn) for b in drawn[:i])


def test_settings_are_chosen_on_blocks_to_learn_from():
    data, chosen = IndianPines(PICTURES, 2), IndianPines(PICTURES, 2, validation_share=0.25)
    learnt, others, apart = (blocks_of(grids[0]) for grids in (data.train, chosen.train, chosen.held_out))
    assert others | apart == learnt and not others & apart and len(apart) == round(len(learnt) / 4)
    assert "set apart to choose settings" in chosen.measured_on
