"""Grids with masks: pairs of files of every kind, what is refused before training, crops for the model."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from examples.segmentation_data import (
    FolderPairs,
    as_batch,
    for_model,
    paired_files,
    random_crops,
    read_array,
    stem_and_suffix,
)
from examples.segmentation_samples import Nuclei2d
from modeling_axial import AxialConfig

PICTURES = AxialConfig(image_size=[4, 6], patch_size=2, num_channels=1, num_labels=2)
VOLUMES = AxialConfig(image_size=[4, 6, 2], patch_size=[2, 3, 1], num_channels=1, num_labels=2)
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def numbers(*shape, below=200, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, below, shape).astype(dtype)


def write(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, values, photometric="minisblack")
    elif ".nii" in path.suffixes:
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
    else:
        Image.fromarray(values).save(path)


@pytest.fixture
def folders(tmp_path):
    """Writes {"images/a.npy": array, ...} into the folders of both parts, and opens them."""

    def open_pairs(files, config=PICTURES, held_out=None, **options):
        for part, its_files in (("train", files), ("held_out", files if held_out is None else held_out)):
            for name, values in its_files.items():
                write(tmp_path / part / name, *(values if isinstance(values, tuple) else (values,)))
        parts = [tuple(str(tmp_path / part / kind) for kind in ("images", "masks")) for part in ("train", "held_out")]
        return FolderPairs(config, *parts, **options)

    return open_pairs


def test_names_without_endings():
    assert [stem_and_suffix(Path(name)) for name in ("a.b.NII.GZ", "a.png", "a", "a.b.tif", "x.nii")] == [
        *[("a.b", ".nii.gz"), ("a", ".png"), ("a", ""), ("a.b", ".tif"), ("x", ".nii")]
    ]


# Folders


def test_pictures(folders):
    colour, mask = numbers(5, 7, 3), numbers(5, 7, below=2)
    data = folders({"images/a.png": colour, "masks/a.png": mask, "images/b.jpg": colour, "masks/b.npy": mask})
    assert [grid.values.shape for grid in data.train] == [(1, 5, 7)] * 2 and data.train[0].values.dtype == np.uint8
    assert all(np.array_equal(grid.labels, mask) for grid in data.train + data.held_out)
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.array_equal(data.train[0].values[0], grey)
    assert (data.num_channels, data.label_names) == (1, ("0", "1"))
    (note,) = data.notes
    assert note.startswith("4 pictures are stored in colour, such as ") and "the model sees them in grey" in note
    assert data.trained_on == "the folder `images`, 2 grids"
    config = AxialConfig(image_size=[4, 6], patch_size=2, num_channels=3, num_labels=2)
    in_colour = folders({}, config)
    assert in_colour.notes == []
    values = in_colour.train[0].values
    assert np.array_equal(values, colour.transpose(2, 0, 1))
    pixel_values = as_batch(in_colour.make_processor(config), [values])["pixel_values"]
    assert pixel_values.shape == (1, 3, 6, 8)
    torch.testing.assert_close(pixel_values[0, :, :5, :7], torch.from_numpy(values) / 127.5 - 1)


def test_the_numbers_of_a_palette_are_the_labels(tmp_path):
    mask = numbers(5, 7, below=3)
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    picture.save(tmp_path / "mask.png")
    assert np.array_equal(read_array(tmp_path / "mask.png")[0], mask)


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".nii", ".nii.gz"])
@pytest.mark.parametrize("channels", ["none", "first", "last"])
def test_arrays_of_three_axes(folders, suffix, channels):
    grid, mask = numbers(5, 4, 7, 2, below=60000, dtype=np.uint16), numbers(5, 4, 7, below=3)
    stored = {"none": grid[..., 0], "first": np.moveaxis(grid, -1, 0), "last": grid}[channels]
    data = folders({f"images/a.b{suffix}": stored, f"masks/a.b{suffix}": mask}, VOLUMES)
    expected = grid[None, ..., 0] if channels == "none" else np.moveaxis(grid, -1, 0)
    assert np.array_equal(data.train[0].values, expected) and np.array_equal(data.train[0].labels, mask)
    assert (data.num_channels, data.label_names) == (len(expected), ("0", "1", "2"))
    config = AxialConfig(image_size=[4, 6, 2], patch_size=[2, 3, 1], num_channels=len(expected), num_labels=3)
    processor = data.make_processor(config)
    assert processor.image_std == pytest.approx(expected.reshape(len(expected), -1).std(1))
    assert isinstance(data.train[0].values, np.memmap) == (suffix in (".npy", ".nii"))  # not read into memory


def test_a_model_of_fewer_channels_sees_principal_components(folders):
    values = np.random.default_rng(0).normal(size=(3, 5, 7))
    config = AxialConfig(image_size=[4, 6], patch_size=[1, 1], num_channels=3, num_labels=3)
    data = folders({"images/a.npy": values, "masks/a.npy": numbers(5, 7, below=3)}, config)
    fewer = AxialConfig(image_size=[4, 6], patch_size=[1, 1], num_channels=2, num_labels=3)
    processor = data.make_processor(fewer)
    seen = as_batch(processor, [values])["pixel_values"][0].flatten(1)
    assert processor.num_channels == 3 and seen.shape == (2, 35)
    torch.testing.assert_close(seen @ seen.T / 35, torch.eye(2), atol=1e-5, rtol=0)
    assert data.make_processor(config).channel_components is None


@pytest.mark.parametrize("num_axes", [1, 4])
def test_arrays_of_other_numbers_of_axes(folders, num_axes):
    shape = (6, 5, 3, 4)[:num_axes]
    config = AxialConfig(image_size=[4] * num_axes, patch_size=[2] * num_axes, num_channels=1, num_labels=2)
    data = folders({"images/a.npy": numbers(*shape), "masks/a.npy": numbers(*shape, below=2)}, config)
    crops = random_crops(data.train, (4,) * num_axes, data.make_processor(config), torch.Generator())
    assert crops["pixel_values"].shape == (1, 1, *[4] * num_axes) and crops["labels"].shape == (1, *[4] * num_axes)


def test_masks_of_0_and_255(folders):
    files = {"images/a.png": numbers(4, 6), "masks/a.png": numbers(4, 6, below=2) * 255}
    with pytest.raises(ValueError, match=r"the labels \[0\] only \(and 255, .* need --binary_masks"):
        folders(files)
    data = folders(files, binary=True)
    assert data.label_names == ("background", "foreground")
    assert np.array_equal(data.train[0].labels * 255, files["masks/a.png"])


def test_labels_that_do_not_count(folders):
    mask = numbers(4, 6, below=2)
    mask[0, 0] = 255
    data = folders({"images/a.png": numbers(4, 6), "masks/a.png": mask})
    assert data.label_names == ("0", "1")
    batch = as_batch(data.make_processor(PICTURES), [data.train[0].values], [data.train[0].labels])
    assert batch["labels"][0, 0, 0] == 255


def test_masks_of_whole_floats_are_taken(folders):
    mask = numbers(4, 6, 3, below=2).astype(np.float32)
    data = folders({"images/a.nii.gz": numbers(4, 6, 3), "masks/a.nii.gz": mask}, VOLUMES)
    assert data.train[0].labels.dtype == np.int64 and np.array_equal(data.train[0].labels, mask)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_masks_of_fractions_are_refused(folders, value):
    mask = np.zeros((4, 6), np.float32)
    mask[1, 2] = value
    with pytest.raises(ValueError, match=f"a.npy holds {value}; classes are whole numbers"):
        folders({"images/a.npy": numbers(4, 6), "masks/a.npy": mask})


def test_spacing_is_told(folders):
    mask = numbers(4, 6, 3, below=2)
    thick, thin = np.diag([0.5, 0.5, 5, 1]), np.diag([0.5, 0.5, 1, 1])
    files = {"images/a.nii": (numbers(4, 6, 3), thick), "masks/a.nii": (mask, thick)}
    assert folders(files, VOLUMES).orientation == "RAS"
    assert folders(files, VOLUMES).notes == [
        "voxels measure 0.5 x 0.5 x 5 mm and are taken as they lie: a patch_size and crop_size of their own for each "
        "axis can make up for it"
    ]
    other = {"images/a.nii": (numbers(4, 6, 3), thin), "masks/a.nii": (mask, thin)}
    (note,) = folders(files, VOLUMES, held_out=other).notes
    assert note.startswith("voxels measure 0.5 x 0.5 x 1 to 0.5 x 0.5 x 5 mm in different files")


def test_grids_and_masks_that_lie_elsewhere_are_refused(folders):
    grid, mask = numbers(4, 6, 3), numbers(4, 6, 3, below=2)
    moved = AFFINE.copy()
    moved[0, 3] = 2
    with pytest.raises(ValueError, match="images/a.nii and .*masks/a.nii have other affine maps"):
        folders({"images/a.nii": grid, "masks/a.nii": (mask, moved)}, VOLUMES)


def test_other_orientations_are_refused(folders):
    grid, mask = numbers(4, 6, 3), numbers(4, 6, 3, below=2)
    turned = np.diag([-1.0, 1, 1, 1])
    with pytest.raises(ValueError, match="train/images/a.nii lead to RAS, those of .*held_out/images/a.nii to LAS"):
        folders(
            {"images/a.nii": grid, "masks/a.nii": mask},
            VOLUMES,
            held_out={"images/a.nii": (grid, turned), "masks/a.nii": (mask, turned)},
        )


GRID, MASK = numbers(4, 6), numbers(4, 6, below=2)
INFINITE = np.where(MASK == 1, np.inf, GRID)


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({"images/a.png": GRID}, {}, "masks is not there, or no folder"),
        ({"images/a.png": GRID, "masks/b.png": MASK}, {}, "1 files have no mask of the same name in .*images/a.png"),
        (
            {"images/a.png": GRID, "masks/a.png": MASK, "masks/b.png": MASK},
            {},
            "1 files have no grid of the same name in .*masks/b.png",
        ),
        (
            {"images/a.png": GRID, "images/a.npy": GRID, "masks/a.png": MASK},
            {},
            "a.npy and .*a.png have one name without their endings",
        ),
        ({"images/a.png": GRID, "masks/a.jpg": MASK}, {}, "masks must be kept without loss, which .*a.jpg"),
        (
            {"images/a.png": GRID, "masks/a.png": MASK, "images/b.npy": GRID, "masks/b.png": MASK},
            {},
            "a.png are pictures and .*b.npy arrays",
        ),
        ({"images/a.png": GRID, "masks/a.png": numbers(4, 5, below=2)}, {}, r"\(1, 4, 6\) and its mask .* \(4, 5\)"),
        ({"images/a.npy": GRID.T, "masks/a.npy": MASK}, {}, r"\(6, 4\) and its mask .* \(4, 6\)"),
        ({"images/a.png": GRID, "masks/a.png": numbers(4, 6, 3)}, {}, "a mask has the 2 axes of the model"),
        ({"images/a.png": GRID, "masks/a.png": MASK}, {"config": VOLUMES}, "pictures have 2 axes; the model has 3"),
        ({"images/a.png": GRID, "masks/a.png": MASK * 0}, {}, r"the labels \[0\] only"),
        (
            {"images/a.png": GRID, "masks/a.png": MASK + 1},
            {"label_names": ["a", "b"]},
            r"a.png holds the label 2; labels are 0 to 1 \(2 classes\)",
        ),
        ({"images/a.npy": GRID, "masks/a.npy": MASK.astype(np.int8) - 1}, {}, "holds the label -1"),
        ({"images/a.npy": INFINITE, "masks/a.npy": MASK}, {}, "a.npy holds values that are not finite"),
        ({"images/a.npy": GRID.astype(complex), "masks/a.npy": MASK}, {}, "a.npy has values of complex128"),
        ({"images/a.npy": GRID, "masks/a.npy": MASK.astype("U1")}, {}, "whole numbers, got <U1"),
        (
            {
                **{"images/a.npy": GRID, "masks/a.npy": MASK},
                **{"images/b.npy": np.stack([GRID, GRID]), "masks/b.npy": MASK},
            },
            {},
            "b.npy has 2 channels, .*a.npy 1",
        ),
    ],
)
def test_what_does_not_fit_is_named(folders, files, options, words):
    with pytest.raises(ValueError, match=words):
        folders(files, **options)


def test_labels_of_the_held_out_part_must_be_known(folders):
    files = {"images/a.png": GRID, "masks/a.png": MASK}
    with pytest.raises(ValueError, match="held_out/images/a.png holds the label 2; labels are 0 to 1"):
        folders(files, held_out={**files, "masks/a.png": MASK * 2})


@pytest.mark.parametrize("name", ["a.npy", "a.nii.gz", "a.tif", "a.png"])
def test_damaged_files_are_named(tmp_path, name):
    write(tmp_path / name, GRID)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(ValueError, match=name):
        read_array(tmp_path / name)


@pytest.mark.parametrize("name", ["notes.txt", "a.gz", "folder.npy/"])
def test_files_of_no_known_kind_are_named(tmp_path, name):
    write(tmp_path / "masks" / "a.png", MASK)
    write(tmp_path / "images" / "a.png", GRID)
    path = tmp_path / "images" / name
    path.mkdir() if name.endswith("/") else path.touch()
    with pytest.raises(ValueError, match="is no picture and no array by its name"):
        paired_files(tmp_path / "images", tmp_path / "masks")


@pytest.mark.parametrize(("package", "name"), [("nibabel", "a.nii"), ("tifffile", "a.tif")])
def test_a_missing_package_is_named(monkeypatch, tmp_path, package, name):
    write(tmp_path / name, GRID)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}: pip install 'modeling-axial\[segmentation\]'"):
        read_array(tmp_path / name)


# What the model gets


def test_crops_are_parts_of_their_grids(folders):
    files = {}
    for number, shape in enumerate([(9, 8, 5), (11, 6, 3)]):
        size = np.prod(shape)
        grid = np.arange(size).reshape(shape) + 1000 * number
        files |= {f"images/{number}.npy": grid.astype(np.float32), f"masks/{number}.npy": grid % 2}
    data = folders(files, VOLUMES)
    processor = data.make_processor(VOLUMES)
    batch = random_crops([data.train[0], data.train[1]] * 20, (4, 6, 4), processor, torch.Generator())
    values = batch["pixel_values"][:, 0].double() * processor.image_std[0] + processor.image_mean[0]
    values = values.round().long()
    assert batch["labels"].shape == (40, 4, 6, 4)
    for number, (crop, labels) in enumerate(zip(values, batch["labels"], strict=True)):
        grid = data.train[number % 2].values[0]
        first = [int(index[0]) for index in np.where(grid == crop[0, 0, 0].item())]
        there = 4 - number % 2  # the second grid is shorter than the crop along the last axis
        part = tuple(slice(start, start + side) for start, side in zip(first, (4, 6, there), strict=True))
        expected = torch.tensor(grid[part]).long()
        assert torch.equal(crop[..., :there], expected) and torch.equal(labels[..., :there], expected % 2)
        assert (labels[..., there:] == 255).all()
    assert torch.equal(batch["attention_mask"][:2].all(1).all(1), torch.tensor([[True] * 4, [True] * 3 + [False]]))


def test_no_mask_where_nothing_is_masked():
    processor = Nuclei2d(PICTURES, 0).make_processor(PICTURES)
    values, labels = [numbers(1, 4, 6)], [numbers(4, 6, below=2)]
    device = torch.device("meta")
    whole = for_model(as_batch(processor, values, labels), device)
    padded = for_model(as_batch(processor, values, size=(6, 6)), device)
    assert set(whole) == {"pixel_values", "labels"} and set(padded) == {"pixel_values", "attention_mask"}
    assert all(tensor.device == device for tensor in (*whole.values(), *padded.values()))
