"""Pictures of one's own for the autoregressive model: which are held out, and what the model gets of them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from examples.autoregressive_pictures import OwnPictures, class_fields, on_grid, open_folders
from examples.image_classification_data import HubPictures
from modeling_axial import AxialDecoderConfig

# Folders


@pytest.fixture
def folder(tmp_path):
    """folder(name, *files) -> the path of a folder of pictures of one grey value each, 1, 2, 3, ..."""

    def make(name, *files):
        for number, file in enumerate(files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                Image.new("L", (5, 4), number + 1).save(path)
            else:
                path.touch()
        return str(tmp_path / name)

    return make


def names(pictures):
    return {name: [path.name for path in paths] for name, paths in pictures.items()}


def test_a_share_of_each_class_is_held_out(folder):
    source = open_folders(
        folder("a", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(8))), None
    )
    config = config_of(2, 3, num_channels=1, **class_fields(source))
    data, again, other = (OwnPictures(source, config, Accelerator(cpu=True), 0.25, seed) for seed in (3, 3, 4))
    assert data.held_out[:]["class_labels"].tolist() == [0, 0, 1, 1]
    greys = [sorted(part[:]["input_ids"][:, 0, 0, 0].tolist()) for part in (data.train, data.held_out)]
    assert sorted(greys[0] + greys[1]) == list(range(1, 17)) and len(greys[1]) == 4
    held_out = [each.held_out[:]["input_ids"] for each in (data, again, other)]
    assert torch.equal(held_out[0], held_out[1]) and not torch.equal(held_out[0], held_out[2])
    assert data.name == "a, 4 pictures held out" and data.measured_on == "4 pictures held out of the folder `a`"
    assert data.trained_on == "the folder `a`, without 4 pictures held out"


def test_a_folder_without_classes(folder):
    pictures = open_folders(folder("pets", "1.png", "2.png", "list.txt", ".x.png"), None)
    assert names(pictures.train) == {"pets": ["1.png", "2.png"]} and pictures.validation is None
    assert pictures.label_names == ["pets"]
    assert class_fields(pictures) == {"num_classes": None, "class_dropout_prob": 0.0}
    (note,) = pictures.notes
    assert note == f"1 files are no pictures by their names: {folder('pets')}/list.txt"


def test_two_folders_without_classes(folder):
    pictures = open_folders(folder("mine", "1.png", "2.png"), folder("others", "3.png", "list.txt"))
    assert names(pictures.train) == {"mine": ["1.png", "2.png"]} and names(pictures.validation) == {"mine": ["3.png"]}
    assert (pictures.trained_on, pictures.measured_on) == ("the folder `mine`", "the folder `others`")
    assert pictures.notes[0].startswith("1 files are no pictures")


def test_two_folders_with_classes(folder):
    pictures = open_folders(folder("a", "cat/1.png", "dog/2.png"), folder("b", "cat/3.png"))
    assert names(pictures.train) == {"cat": ["1.png"], "dog": ["2.png"]}
    assert names(pictures.validation) == {"cat": ["3.png"]}
    fields = class_fields(pictures)
    assert fields["num_classes"] == 2 and fields["id2label"] == {0: "cat", 1: "dog"}
    assert "class_dropout_prob" not in fields  # that of the preset counts


@pytest.mark.parametrize("files", [("1.png",), ("cat/1.png", "cat/2.png", "dog/3.png")], ids=["plain", "classes"])
def test_of_a_single_picture_none_can_be_held_out(folder, files):
    source = open_folders(folder("a", *files), None)
    with pytest.raises(ValueError, match="have a single picture to learn from"):
        OwnPictures(source, config_of(2, 3, **class_fields(source)), Accelerator(cpu=True), 0.5, 0)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ((), None, "train is not there, or no folder"),
        (("list.txt",), None, "train has no pictures; it must hold some, or one folder of them for each class"),
        (("cat/1.png", "cat/2.png"), None, "only one class; .* or, for a model without classes, the pictures must"),
        (("cat/1.png", "dog/2.png", "3.png"), None, "3.png lies beside the classes"),
        (("cat/1.png", "dog/x.txt"), None, "the class folder .*dog is empty"),
        (("1.png", "2.png"), (), "validation is not there"),
        (("1.png", "2.png"), ("cat/1.png",), "validation has a subfolder for each class and .*train has none"),
        (("cat/1.png", "dog/2.png"), ("1.png",), "train has a subfolder for each class and .*validation has none"),
        (("cat/1.png", "dog/2.png"), ("owl/1.png",), r"validation has the classes \['owl'\], which .*train has not"),
        (("cat/1.png",), ("cat/1.png",), "only one class"),
    ],
)
def test_wrong_folders_are_named(folder, train, validation, message):
    arguments = folder("train", *train), None if validation is None else folder("validation", *validation)
    with pytest.raises(ValueError, match=message):
        open_folders(*arguments)


# Pixels


def config_of(*image_size, **fields):
    return AxialDecoderConfig(**{"image_size": image_size, "num_channels": 3, "hidden_size": 8} | fields)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_picture_of_the_right_size_stays_as_it_is(num_channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels = pixels[..., 0] if num_channels == 1 else pixels
    found = on_grid(Image.fromarray(pixels), config_of(5, 7, num_channels=num_channels))
    assert np.array_equal(found, pixels.reshape(5, 7, num_channels).transpose(2, 0, 1))


def test_what_is_too_long_is_cut_off_at_both_ends():
    stripes = np.repeat(np.arange(12, dtype=np.uint8), 4)  # 12 columns of 4 pixels
    wide = Image.fromarray(np.tile(stripes, (16, 1)))
    assert on_grid(wide, config_of(4, 6, num_channels=1)).tolist() == [[[3, 4, 5, 6, 7, 8]] * 4]
    tall = Image.fromarray(np.tile(stripes, (12, 1)).T)
    assert on_grid(tall, config_of(6, 3, num_channels=1)).tolist() == [[[value] * 3 for value in (3, 4, 5, 6, 7, 8)]]


def test_a_small_picture_becomes_larger():
    found = on_grid(Image.fromarray(np.array([[0, 200]], np.uint8)), config_of(4, 8, num_channels=1))
    assert found.shape == (1, 4, 8) and found[0, 0, 0] == 0 and found[0, 0, -1] == 200
    assert (np.diff(found[0, 0].astype(int)) >= 0).all()


def test_other_modes():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (on_grid(clear, config_of(2, 2)) == 255).all()
    deep = Image.fromarray(np.full((4, 4), 257 * 90, np.uint16))
    assert (on_grid(deep, config_of(2, 2, num_channels=1)) == 90).all()
    assert (on_grid(deep, config_of(2, 2)) == 90).all()
    red = Image.new("RGB", (4, 4), "red")
    assert (on_grid(red, config_of(2, 2, num_channels=1)) == 76).all()  # 0.299 of 255


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_become_levels_with_their_class(folder, num_workers):
    files = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    source = open_folders(folder("a", *files), folder("b", "dog/1.png"))
    config = config_of(2, 3, num_channels=1, vocab_size=128, **class_fields(source))
    data = OwnPictures(source, config, Accelerator(cpu=True), 0.1, 0, num_workers)
    assert data.train[:]["input_ids"].shape == (6, 1, 2, 3)
    found = [(int(item["class_labels"]), item["input_ids"].unique().tolist()) for item in data.train]
    # The grey values are 1 to 3 and 4 to 6, of 256 levels.
    assert found == [(0, [0]), (0, [1]), (0, [1]), (1, [2]), (1, [2]), (1, [3])]
    assert data.held_out[:]["class_labels"].tolist() == [1]
    assert (data.hub_id, data.license, data.name) == ("imagefolder", None, "b")


def test_a_model_without_classes_gets_none(folder):
    source = open_folders(folder("a", "1.png", "2.png", "3.png"), None)
    data = OwnPictures(source, config_of(2, 3, **class_fields(source)), Accelerator(cpu=True), 0.3, 0)
    assert data.train.class_labels is None and data.train[0].keys() == {"input_ids"}
    assert (len(data.train), len(data.held_out)) == (2, 1)


def test_broken_pictures_end_the_run_or_are_left_out(folder, tmp_path):
    source = open_folders(folder("a", *(f"{number}.png" for number in range(3))), folder("b", "9.png"))
    source.train["a"][1].write_bytes(b"no picture")
    config = config_of(2, 3, **class_fields(source))
    with pytest.raises(ValueError, match=r"1 of 3 pictures cannot be read: .*leave them out by --skip_broken"):
        OwnPictures(source, config, Accelerator(cpu=True), 0.1, 0)
    data = OwnPictures(source, config, Accelerator(cpu=True), 0.1, 0, skip_broken=True)
    assert [item["input_ids"].unique().item() for item in data.train] == [1, 3] and len(data.held_out) == 1


def test_a_folder_of_datasets_gives_what_the_folder_gives(folder, tmp_path):
    train_dir = folder("data/train", "dog/a.png", "dog/b.png", "cat/c.png")
    validation_dir = folder("data/validation", "dog/v.png", "cat/w.png")
    sources = open_folders(train_dir, validation_dir), HubPictures(str(tmp_path / "data"))
    assert class_fields(sources[0]) == class_fields(sources[1])
    config = config_of(2, 3, num_channels=1, **class_fields(sources[0]))
    for name in ("train", "held_out"):
        parts = [getattr(OwnPictures(source, config, Accelerator(cpu=True), 0.1, 0), name) for source in sources]
        rows = [
            sorted((int(item["class_labels"]), item["input_ids"].flatten().tolist()) for item in part) for part in parts
        ]
        assert rows[0] == rows[1] and len(rows[0]) == {"train": 3, "held_out": 2}[name]


def test_reading_draws_nothing(folder):
    source = open_folders(folder("a", "1.png", "2.png"), None)
    state = torch.get_rng_state()
    OwnPictures(source, config_of(2, 3, **class_fields(source)), Accelerator(cpu=True), 0.5, 0)
    assert torch.equal(torch.get_rng_state(), state)
