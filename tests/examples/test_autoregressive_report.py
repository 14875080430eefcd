"""How drawn pictures are laid out, how a classifier judges them, and the model card."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from examples import autoregressive_report
from examples.autoregressive_data import DATA_SETS, Tokens
from examples.autoregressive_report import (
    class_names,
    classes_of_judge,
    draw_tiles,
    loading_line,
    recognised_share,
    tile,
    tile_known,
    to_levels,
    write_model_card,
)
from examples.image_classification_data import Digits
from modeling_axial import AxialDecoderConfig, AxialForCausalImageModeling
from tests.conftest import ROOT


@pytest.mark.parametrize("vocab_size", range(2, 257))
def test_a_level_that_is_drawn_is_read_as_the_same_level(vocab_size):
    levels = torch.arange(vocab_size).view(-1, 1, 1, 1)
    drawn = to_levels(levels, vocab_size)
    assert drawn.min() == 0 and drawn.max() == 255
    assert abs(drawn.ravel() - np.linspace(0, 255, vocab_size)).max() <= 1.5  # as evenly as can be
    assert torch.equal(Tokens(drawn.transpose(0, 3, 1, 2), vocab_size)[:]["input_ids"], levels)


def test_levels():
    input_ids = torch.tensor([0, 1, 100, 255]).view(1, 4, 1, 1)
    assert to_levels(input_ids, 256).tolist() == [[[[0, 1, 100, 255]]]]  # channels last
    assert to_levels(input_ids.clamp(max=3), 4).tolist() == [[[[0, 85, 255, 255]]]]


def test_pictures_are_tiled_row_by_row():
    pictures = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(2, axis=2)
    g = 128
    assert tile(pictures, columns=2)[..., 0].tolist() == [
        [g, g, g, g, g, g, g],
        [g, 0, 0, g, 1, 1, g],
        [g, g, g, g, g, g, g],
        [g, 2, 2, g, g, g, g],
        [g, g, g, g, g, g, g],
    ]


def test_a_clip_is_a_row_of_its_frames():
    clips = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1)
    assert tile(clips, columns=1, border=0)[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_is_not_known_is_transparent_and_hatched(tmp_path):
    clips = np.full((2, 2, 3, 4, 1), 7, np.uint8)  # 2 frames of 3 x 4
    known = np.zeros(clips.shape[:-1], bool)
    known[:, 0] = True
    tiled = tile_known(clips, known, columns=1)
    assert tiled.shape == (9, 10, 4) and tiled.dtype == np.uint8
    first, second = tiled[1:4, 1:5], tiled[1:4, 5:9]
    assert (first == [7, 7, 7, 255]).all() and (second == [7, 7, 7, 0]).all()
    assert (tiled[0] == [128, 128, 128, 255]).all()  # the border

    shares = []  # of dark pixels, and of such as the lines are
    for part in (np.ones_like(known), np.zeros_like(known)):
        draw_tiles(tmp_path / "x.png", {"given": tile_known(clips, part, columns=1)})
        with Image.open(tmp_path / "x.png") as picture:
            levels = np.asarray(picture.convert("L"))
        shares.append(((levels < 20).mean(), ((levels > 140) & (levels < 200)).mean()))
    assert shares[0][0] > 0.3 and shares[0][1] < 0.01 and shares[1][0] < 0.01 and shares[1][1] > 0.03


@pytest.fixture
def judge(tmp_path):
    """Copies of the classifier of this repository with its class `i` at `order.index(i)`, and other names."""

    def make(order, names):
        for name in ("config.json", "preprocessor_config.json"):
            stored = json.loads((ROOT / name).read_text())
            del stored["auto_map"]
            if name == "config.json":
                stored["id2label"] = dict(enumerate(names))
                stored["label2id"] = {name: number for number, name in enumerate(names)}
            (tmp_path / name).write_text(json.dumps(stored))
        weights = load_file(ROOT / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name][order].clone()
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        return str(tmp_path)

    return make


DIGITS = [str(digit) for digit in range(10)]
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


class Forger:
    """Stands for a model: what it draws are digits that it has seen, ten of each class."""

    config = SimpleNamespace(num_classes=10, vocab_size=256, id2label={})
    device = "cpu"

    def generate(self, num_images, class_labels, **options):
        pictures = torch.from_numpy(Digits().pictures)[:, None].long()
        return pictures[500 * class_labels + torch.arange(num_images) // 10]  # sorted by class


def test_the_classes_of_a_judge_are_matched_by_name(judge):
    names = [str(number) for number in ORDER]
    assert classes_of_judge(str(ROOT), DIGITS).tolist() == list(range(10))
    shares = [recognised_share(Forger(), folder, 100, torch.Generator()) for folder in (str(ROOT), judge(ORDER, names))]
    assert shares[0] == shares[1] > 0.9


def test_a_judge_without_names_is_taken_by_number(judge):
    assert classes_of_judge(judge(ORDER, [f"LABEL_{number}" for number in range(10)]), DIGITS).tolist() == list(
        range(10)
    )


def test_a_judge_of_other_classes_is_refused(judge):
    folder = judge(ORDER, ["cat", "dog", *"23456789"])
    with pytest.raises(ValueError, match=r"has the classes \['cat', 'dog', '2', .* the model \['0', '1'.*id2label"):
        classes_of_judge(folder, DIGITS)
    with pytest.raises(ValueError, match="has 10 classes, the model 7; they must be the same"):
        classes_of_judge(folder, DIGITS[:7])


def test_a_judge_of_a_model_that_has_names_is_matched_by_them(judge):
    words = "zero one two three four five six seven eight nine".split()
    assert classes_of_judge(judge(ORDER, [words[number] for number in ORDER]), words).tolist() == ORDER


def test_names_of_classes():
    stored = {"num_classes": 2, "id2label": {0: "cat", 1: "$dog$"}}
    assert class_names(AxialDecoderConfig(**stored)) == ["cat", "$dog$"]
    assert class_names(AxialDecoderConfig(num_classes=2)) == ["0", "1"]  # where transformers says LABEL_0, LABEL_1
    assert class_names(AxialDecoderConfig(num_classes=3)) == ["0", "1", "2"]
    assert class_names(AxialDecoderConfig()) == []


def test_samples_have_a_row_for_each_of_the_first_classes(tmp_path, monkeypatch):
    """And a title with the names of these, which may hold dollar signs."""
    names = {number: f"${number}" for number in range(12)}
    config = AxialDecoderConfig(image_size=[2, 3], num_channels=1, hidden_size=8, num_classes=12, id2label=names)
    panels = {}
    monkeypatch.setattr(autoregressive_report, "draw_tiles", lambda path, tiles: panels.update(tiles))
    drawn = autoregressive_report.draw_samples(
        tmp_path / "x.png", AxialForCausalImageModeling(config), torch.Generator().manual_seed(0)
    )
    assert drawn.shape == (100, 1, 2, 3)
    ((title, picture),) = panels.items()
    assert title.endswith("a row for each of $0, $1, $2, $3, $4, $5, $6, $7, $8, $9") and picture.shape == (31, 41, 1)


def test_large_pictures_keep_their_pixels(tmp_path):
    autoregressive_report.draw_tiles(tmp_path / "x.png", {"$x": np.zeros((20, 1500, 1), np.uint8)})
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width >= 1500


def test_a_model_card_tells_what_was_learnt_from_what_was_measured(tmp_path):
    parts = {
        "digits": ("4,000 digits of MNIST", "1,000 other digits of MNIST", "1,000 of them held out"),
        "photographs": ("coffee, motorcycle_left and rocket", "astronaut and chelsea", "astronaut and chelsea"),
        "film": ("the first 96 frames", "the last 24 frames", "the last 24 frames"),
    }
    for name, (trained_on, measured_on, in_metadata) in parts.items():
        data = object.__new__(DATA_SETS[name])  # without reading the pictures
        data.held_out = Tokens(np.zeros((7, 1, 2, 3), np.uint8), 256)
        folder = tmp_path / f"it's {name}"
        folder.mkdir()
        write_model_card(folder, data, 1.5, {}, 1.0, None)
        card = ModelCard.load(folder / "README.md")
        trained, measured = [line for line in card.text.splitlines() if line.startswith("- ")]
        assert trained_on in trained and trained.startswith("- Trained by") and measured_on not in trained
        assert measured_on in measured and measured.startswith("- Measured on")
        assert in_metadata in card.data.eval_results[0].dataset_name
        assert loading_line(f"it's {name}") in card.text
