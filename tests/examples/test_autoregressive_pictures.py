"""Pictures of one's own for the autoregressive model: which are held out, and what the model gets of them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from examples.autoregressive_pictures import OwnPictures, class_fields, on_grid, open_folders, set_apart
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


@pytest.mark.parametrize("num_pictures, share, num_held_out", [(20, 0.1, 2), (20, 0.01, 1), (3, 0.99, 2), (7, 0.5, 4)])
def test_a_share_of_each_class_is_held_out(folder, num_pictures, share, num_held_out):
    files = [f"{number}.png" for number in range(num_pictures)]
    pictures = open_folders(
        folder("a", *(f"{name}/{file}" for name in ("cat", "dog") for file in files)), None, share, 0
    )
    for name in ("cat", "dog"):
        train, held_out = names(pictures.train)[name], names(pictures.validation)[name]
        assert len(held_out) == num_held_out and sorted(train + held_out) == sorted(files)
        assert train == sorted(train) and held_out == sorted(held_out)


def test_what_is_held_out_depends_on_names_and_seed_alone(folder):
    files = [f"{number}.png" for number in range(40)]
    here, there = (open_folders(folder(place, *files), None, 0.25, 3) for place in ("here", "far/here"))
    assert names(here.validation) == names(there.validation)
    backwards = {name: [*here.train[name], *here.validation[name]][::-1] for name in here.train}
    train, held_out = set_apart(backwards, 0.25, 3)
    assert held_out == here.validation and sorted(train["here"]) == here.train["here"]
    assert names(open_folders(folder("here", *files), None, 0.25, 4).validation) != names(here.validation)
    by_class = open_folders(folder("two", *(f"{name}/{file}" for name in "ab" for file in files)), None, 0.25, 3)
    assert names(by_class.validation)["a"] != names(by_class.validation)["b"]


def test_a_folder_without_classes(folder):
    pictures = open_folders(folder("pets", "1.png", "2.png", "list.txt", ".x.png"), None, 0.5, 0)
    assert pictures.label_names == ["pets"] and len(pictures.train["pets"]) == len(pictures.validation["pets"]) == 1
    assert class_fields(pictures) == {"num_classes": None, "class_dropout_prob": 0.0}
    (note,) = pictures.notes
    assert note == f"1 files are no pictures by their names: {folder('pets')}/list.txt"
    assert pictures.measured_on == "50 % of the folder `pets`, held out" and pictures.name == "pets, 50 % held out"


def test_two_folders_without_classes(folder):
    pictures = open_folders(folder("mine", "1.png", "2.png"), folder("others", "3.png", "list.txt"), 0.1, 0)
    assert names(pictures.train) == {"mine": ["1.png", "2.png"]} and names(pictures.validation) == {"mine": ["3.png"]}
    assert (pictures.trained_on, pictures.measured_on) == ("the folder `mine`", "the folder `others`")
    assert pictures.notes[0].startswith("1 files are no pictures")


def test_two_folders_with_classes(folder):
    pictures = open_folders(folder("a", "cat/1.png", "dog/2.png"), folder("b", "cat/3.png"), 0.1, 0)
    assert names(pictures.train) == {"cat": ["1.png"], "dog": ["2.png"]}
    assert names(pictures.validation) == {"cat": ["3.png"]}
    fields = class_fields(pictures)
    assert fields["num_classes"] == 2 and fields["id2label"] == {0: "cat", 1: "dog"}
    assert "class_dropout_prob" not in fields  # that of the preset counts


def test_a_class_of_one_picture_is_learnt_and_said(folder):
    pictures = open_folders(folder("a", "cat/1.png", "cat/2.png", "dog/3.png"), None, 0.5, 0)
    assert names(pictures.train)["dog"] == ["3.png"] and list(pictures.validation) == ["cat"]
    assert pictures.notes == ["there is but one picture of ['dog']: they are not measured"]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ((), None, "train is not there, or no folder"),
        (("list.txt",), None, "train has no pictures; it must hold some, or one folder of them for each class"),
        (
            ("cat/1.png", "cat/2.png"),
            None,
            "only the class 'cat'; .* or, for a model without classes, the pictures must",
        ),
        (("1.png",), None, "no class of two pictures"),
        (("cat/1.png", "dog/2.png"), None, "no class of two pictures"),
        (("cat/1.png", "dog/2.png", "3.png"), None, "3.png lies beside the classes"),
        (("cat/1.png", "dog/x.txt"), None, "the class folder .*dog is empty"),
        (("1.png", "2.png"), (), "validation is not there"),
        (("1.png", "2.png"), ("cat/1.png",), "validation has a subfolder for each class and .*train has none"),
        (("cat/1.png", "dog/2.png"), ("1.png",), "train has a subfolder for each class and .*validation has none"),
        (("cat/1.png", "dog/2.png"), ("owl/1.png",), r"validation has the classes \['owl'\], which .*train has not"),
        (("cat/1.png",), ("cat/1.png",), "only the class 'cat'"),
    ],
)
def test_wrong_folders_are_named(folder, train, validation, message):
    arguments = folder("train", *train), None if validation is None else folder("validation", *validation)
    with pytest.raises(ValueError, match=message):
        open_folders(*arguments, 0.5, 0)


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
    source = open_folders(folder("a", *(f"{name}/{n}.png" for name in ("cat", "dog") for n in range(3))), None, 0.3, 0)
    config = config_of(2, 3, num_channels=1, vocab_size=128, **class_fields(source))
    data = OwnPictures(source, config, Accelerator(cpu=True), num_workers)
    found = []
    for part, expected in ((data.train, source.train), (data.held_out, source.validation)):
        assert part[:]["input_ids"].shape == (len(part), 1, 2, 3)
        assert part[:]["class_labels"].tolist() == [
            number for number, name in enumerate(expected) for _ in expected[name]
        ]
        found += [(int(item["class_labels"]), item["input_ids"].unique().tolist()) for item in part]
    # The grey values are 1 to 3 and 4 to 6, of 256 levels.
    assert sorted(found) == [(0, [0]), (0, [1]), (0, [1]), (1, [2]), (1, [2]), (1, [3])]
    assert (data.hub_id, data.license, data.name) == ("imagefolder", None, "a, 30 % held out")


def test_a_model_without_classes_gets_none(folder):
    source = open_folders(folder("a", "1.png", "2.png", "3.png"), None, 0.3, 0)
    data = OwnPictures(source, config_of(2, 3, **class_fields(source)), Accelerator(cpu=True))
    assert data.train.class_labels is None and data.train[0].keys() == {"input_ids"}


def test_broken_pictures_end_the_run_or_are_left_out(folder, tmp_path):
    path = folder("a", *(f"{number}.png" for number in range(6)))
    source = open_folders(path, None, 0.5, 0)
    source.train["a"][1].write_bytes(b"no picture")
    config = config_of(2, 3, **class_fields(source))
    with pytest.raises(ValueError, match=r"1 of 3 pictures cannot be read: .*leave them out by --skip_broken"):
        OwnPictures(source, config, Accelerator(cpu=True))
    data = OwnPictures(source, config, Accelerator(cpu=True), skip_broken=True)
    greys = [int(path.stem) + 1 for number, path in enumerate(source.train["a"]) if number != 1]
    assert [item["input_ids"].unique().item() for item in data.train] == greys and len(data.held_out) == 3


def test_a_folder_of_datasets_gives_what_the_folder_gives(folder, tmp_path):
    train_dir = folder("data/train", "dog/a.png", "dog/b.png", "cat/c.png")
    validation_dir = folder("data/validation", "dog/v.png", "cat/w.png")
    sources = open_folders(train_dir, validation_dir, 0.1, 0), HubPictures(str(tmp_path / "data"))
    assert class_fields(sources[0]) == class_fields(sources[1])
    config = config_of(2, 3, num_channels=1, **class_fields(sources[0]))
    for name in ("train", "held_out"):
        parts = [getattr(OwnPictures(source, config, Accelerator(cpu=True)), name) for source in sources]
        rows = [
            sorted((int(item["class_labels"]), item["input_ids"].flatten().tolist()) for item in part) for part in parts
        ]
        assert rows[0] == rows[1] and len(rows[0]) == {"train": 3, "held_out": 2}[name]


def test_reading_draws_nothing(folder):
    source = open_folders(folder("a", "1.png", "2.png"), None, 0.5, 0)
    state = torch.get_rng_state()
    OwnPictures(source, config_of(2, 3, **class_fields(source)), Accelerator(cpu=True))
    assert torch.equal(torch.get_rng_state(), state)
