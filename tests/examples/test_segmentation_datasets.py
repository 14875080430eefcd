"""Pictures and masks as `datasets` reads them are those of their files; what is wrong with them is said."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from examples.segmentation_data import FolderPairs
from examples.segmentation_datasets import HubPairs
from modeling_axial import AxialConfig

COLOUR = AxialConfig(image_size=[4, 6], patch_size=2, num_channels=3, num_labels=2)
SIZES = {"train": [(9, 14), (7, 5)], "validation": [(10, 9)]}


@pytest.fixture
def folder(tmp_path):
    """Pictures in colour and masks of three classes, one of them in a palette, in folders that both kinds read."""
    draw = np.random.default_rng(0)
    for split, sizes in SIZES.items():
        for part in ("images", "masks"):
            (tmp_path / "data" / split / part).mkdir(parents=True)
        with (tmp_path / "data" / split / "metadata.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file_name", "label_file_name"])
            for number, size in enumerate(sizes):
                names = [f"{part}/{number}.png" for part in ("images", "masks")]
                table.writerow(names)
                picture = Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8))
                picture.save(tmp_path / "data" / split / names[0])
                mask = draw.integers(0, 3, size, dtype=np.uint8)
                mask[0, 0] = 255
                mask = Image.fromarray(mask)
                if number == 1:
                    mask.putpalette(list(range(256)) * 3)
                mask.save(tmp_path / "data" / split / names[1])
    return tmp_path / "data"


def test_rows_are_the_files(folder):
    ours = HubPairs(COLOUR, str(folder))
    parts = [tuple(str(folder / split / part) for part in ("images", "masks")) for split in SIZES]
    expected = FolderPairs(COLOUR, *parts)
    for one, other in ((ours.train, expected.train), (ours.held_out, expected.held_out)):
        assert len(one) == len(other) > 0
        for row, pair in zip(one, other, strict=True):
            assert np.array_equal(row.values, pair.values) and np.array_equal(row.labels, pair.labels)
    assert ours.label_names == expected.label_names == ("0", "1", "2")
    assert ours.num_channels == 3 and [grid.name for grid in ours.held_out] == ["row 0 of the split validation"]
    assert (ours.name, ours.hub_id, ours.trained_on) == ("data", "imagefolder", "the split train of `data`")
    assert ours.make_processor(COLOUR).to_dict() == expected.make_processor(COLOUR).to_dict()
    grey = HubPairs(AxialConfig(image_size=4, patch_size=2, num_channels=1), str(folder))
    assert grey.train[0].values.shape == (1, 9, 14)


def test_binary_masks_and_names(folder):
    data = HubPairs(COLOUR, str(folder), label_names=["none", "some"], binary=True)
    assert data.label_names == ("none", "some")
    assert set(np.unique(data.train[0].labels)) == {0, 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask.resize((3, 3)), r"has \(3, 3\) pixels .* must have the \(9, 10\) of its picture"),
        (lambda mask: mask.convert("RGB"), "mode RGB"),
        (lambda mask: mask.point(lambda value: 7), "holds the label 7; labels are 0 to 2"),
    ],
    ids=["size", "colours", "label"],
)
def test_bad_masks_are_named(folder, change, message):
    path = folder / "validation" / "masks" / "0.png"
    mask = change(Image.open(path))
    mask.save(path)
    with pytest.raises(ValueError, match=f"row 0 of the split validation.*{message}"):
        HubPairs(COLOUR, str(folder))


def test_what_cannot_be_read_is_named(folder):
    path = folder / "train" / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="row 1 of the split train cannot be read"):
        HubPairs(COLOUR, str(folder))


def test_columns_and_models_that_do_not_fit(folder, monkeypatch):
    with pytest.raises(ValueError, match="column 'mask' must be there, of Image"):
        HubPairs(COLOUR, str(folder), mask_column="mask")
    with pytest.raises(ValueError, match="1 or 3 channels"):
        HubPairs(AxialConfig(image_size=4, patch_size=2, num_channels=2), str(folder))
    with pytest.raises(ValueError, match="pictures have 2 axes"):
        HubPairs(AxialConfig(image_size=[4] * 3, patch_size=[2] * 3, num_channels=1), str(folder))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"modeling-axial\[hub\]"):
        HubPairs(COLOUR, str(folder))
