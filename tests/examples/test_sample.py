"""Pictures drawn, completed and scored by script: they are what the model gives, and the same in any batch."""

import csv
import importlib
import math
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from examples.autoregressive_report import to_levels
from examples.sample import number_of_rows
from modeling_axial import AxialConfig, AxialDecoderConfig, AxialForCausalImageModeling, AxialForImageClassification
from modeling_axial.training import seeded_generator
from tests.conftest import ROOT

PETS = {"num_classes": 3, "id2label": {0: "cat", 1: "dog", 2: "0"}, "class_dropout_prob": 0.1}
KINDS = {
    "grey": {"image_size": [5, 4], "num_channels": 1, "vocab_size": 8},
    "colour": {"image_size": [4, 5], "num_channels": 3, "vocab_size": 256},
    "clip": {"image_size": [3, 4, 6], "num_channels": 3, "vocab_size": 256},
    "pets": {"image_size": [5, 4], "num_channels": 1, "vocab_size": 8, **PETS},
    "certain": {"image_size": [5, 4], "num_channels": 1, "vocab_size": 8, "num_classes": 2},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """kind -> folder of a model whose weights are so large that its pictures are no noise."""
    folders = {}
    for kind, fields in KINDS.items():
        torch.manual_seed(0)
        layers = {"num_outer_layers": 1, "num_inner_layers": 1, "num_exterior_layers": 1}
        config = AxialDecoderConfig(hidden_size=8, num_attention_heads=2, **layers, **fields)
        model = AxialForCausalImageModeling(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        folders[kind] = tmp_path_factory.mktemp(kind) / "sub" / "model"
        model.save_pretrained(folders[kind])
    return folders


@pytest.fixture
def sample(models, tmp_path, monkeypatch, capsys):
    """sample(kind, *arguments, out=name) -> (the folder with the results, what was printed)"""

    def run(kind, *arguments, out="out"):
        arguments = ("--model_name_or_path", models[kind], *arguments, "--output_dir", tmp_path / out)
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / "sample.py"), run_name="__main__")
        return tmp_path / out, capsys.readouterr().out

    return run


def drawn_by_hand(folder, numbers, seed=0, labels=None, **options):
    """The pictures of these numbers, all in one batch, as levels of 0 to 255."""
    model = AxialForCausalImageModeling.from_pretrained(folder).eval()
    generators = [seeded_generator(seed, number) for number in numbers]
    labels = None if labels is None else torch.tensor(labels)
    drawn = model.generate(len(numbers), class_labels=labels, generator=generators, **options)
    return to_levels(drawn, model.config.vocab_size)


def read(path):
    """(frames, height, width, C)"""
    with Image.open(path) as picture:
        frames = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            frames.append(np.asarray(picture.convert(picture.mode if picture.mode == "L" else "RGB")))
    return np.stack(frames).reshape(len(frames), *frames[0].shape[:2], -1)


@pytest.mark.parametrize("kind", ["grey", "colour", "clip"])
def test_pictures_are_those_of_the_model(sample, models, kind):
    out, printed = sample(kind, "--num_samples=3", "--temperature=0.7", "--top_k=7", "--top_p=0.9", "--seed=5")
    expected = drawn_by_hand(models[kind], range(3), 5, temperature=0.7, top_k=7, top_p=0.9)
    assert sorted(path.name for path in out.iterdir()) == [
        "sample_0.png",
        "sample_1.png",
        "sample_2.png",
        "samples.png",
    ]
    for number, picture in enumerate(expected):
        frames = picture if kind == "clip" else picture[None]
        assert np.array_equal(read(out / f"sample_{number}.png"), frames)
    assert len(np.unique(expected.reshape(3, -1), axis=0)) == 3
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width >= 800 and min(sheet.size) > 100
    assert str(out / "samples.png") in printed and "sample_0.png to sample_2.png" in printed


@pytest.mark.parametrize("kind", ["colour", "pets"])
def test_a_picture_is_the_same_in_any_batch(sample, kind):
    whole, _ = sample(kind, "--num_samples=11", out="whole")
    parts, _ = sample(kind, "--num_samples=7", "--batch_size=3", out="parts")
    for number in range(7):
        assert np.array_equal(read(whole / f"sample_{number:02d}.png"), read(parts / f"sample_{number}.png"))


def test_a_checkpoint_in_a_subfolder(sample, models, tmp_path):
    folder = models["grey"]
    out, _ = sample("grey", "--model_name_or_path", folder.parents[1], "--subfolder=sub/model", "--num_samples=1")
    assert np.array_equal(read(out / "sample_0.png")[0], drawn_by_hand(folder, [0])[0])


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ((), [0, 1, 2, 0, 1]),  # in turn
        (("--class=dog",), [1] * 5),
        (("--class=1",), [1] * 5),
        (("--class=0",), [2] * 5),  # a name goes before a number
        (("--class=dog", "--guidance_scale=3"), [1] * 5),
    ],
)
def test_classes(sample, models, options, labels):
    out, _ = sample("pets", "--num_samples=5", *options)
    scale = 3 if len(options) == 2 else 1
    expected = drawn_by_hand(models["pets"], range(5), labels=labels, guidance_scale=scale)
    assert np.array_equal(np.concatenate([read(out / f"sample_{n}.png") for n in range(5)]), expected)


# Completions


def write_pictures(folder, size, mode="L", suffix=".png"):
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    path = folder / f"given{suffix}"
    Image.fromarray(pixels).save(path)
    return path, pixels


@pytest.mark.parametrize("rows", ["3", "0.6"])
def test_a_picture_is_completed(sample, models, tmp_path, rows):
    path, pixels = write_pictures(tmp_path, (5, 4))
    out, printed = sample("grey", "--complete", path, "--known_rows", rows, "--num_samples=4", "--batch_size=3")
    assert "given.png" not in printed  # nothing had to be changed
    levels = torch.from_numpy(pixels.astype(int) * 8 // 256)[None, None]
    mask = torch.zeros(1, 1, 5, 4, dtype=torch.bool)
    mask[:, :, :3] = True
    expected = drawn_by_hand(models["grey"], range(4), known=(levels, mask))
    found = np.concatenate([read(out / f"completion_{number}.png") for number in range(4)])
    assert np.array_equal(found, expected) and (found[:, :3] == found[:1, :3]).all()
    assert len(np.unique(found.reshape(4, -1), axis=0)) == 4
    assert sorted(path.name for path in out.glob("*s.png")) == ["completions.png"]


def test_the_unknown_part_is_shown(sample, tmp_path, monkeypatch):
    panels = {}
    report = importlib.import_module("autoregressive_report")  # as the script, which is run, imports it
    monkeypatch.setattr(report, "draw_tiles", lambda path, tiles: panels.update(tiles))
    sample("grey", "--complete", write_pictures(tmp_path, (5, 4))[0], "--num_samples=2")
    assert list(panels) == ["given", "drawn by the model"]
    given, drawn = (panel[1:-1, 1:5] for panel in panels.values())  # half of 5 rows: 2, as Python rounds
    assert given[:, :, 3].tolist() == [[255] * 4] * 2 + [[0] * 4] * 3  # opacity
    assert np.array_equal(given[:2, :, 0], drawn[:2, :, 0])
    assert panels["drawn by the model"].shape == (7, 11, 1)


def test_what_is_changed_is_said(sample, tmp_path):
    path, pixels = write_pictures(tmp_path, (10, 16), "RGB")
    out, printed = sample("grey", "--complete", path, "--num_samples=1")
    assert f"{path} is in colour; the model sees it in grey." in printed
    assert f"{path} has 16 x 10 pixels; cut and resized to 4 x 5." in printed
    path, _ = write_pictures(tmp_path, (4, 5), "L", ".bmp")
    _, printed = sample("colour", "--complete", path, "--num_samples=1", out="colour")
    assert f"{path} is grey; the model sees it in colour." in printed and "resized" not in printed


def test_a_clip_that_was_drawn_is_completed(sample, models):
    drawn, _ = sample("clip", "--num_samples=1", out="drawn")
    out, _ = sample("clip", "--complete", drawn / "sample_0.png", "--known_rows=2", "--num_samples=2", out="completed")
    for number in range(2):
        assert np.array_equal(read(out / f"completion_{number}.png")[:2], read(drawn / "sample_0.png")[:2])
    assert not np.array_equal(read(out / "completion_0.png")[2], read(out / "completion_1.png")[2])


@pytest.mark.parametrize(("options", "label"), [((), 3), (("--class=dog",), 1)])
def test_a_picture_of_an_unknown_class_or_a_known_one(sample, models, tmp_path, options, label):
    path, pixels = write_pictures(tmp_path, (5, 4))
    out, _ = sample("pets", "--complete", path, "--known_rows=1", "--num_samples=2", *options)
    mask = torch.zeros(1, 1, 5, 4, dtype=torch.bool)
    mask[:, :, :1] = True
    levels = torch.from_numpy(pixels.astype(int) * 8 // 256)[None, None]
    expected = drawn_by_hand(models["pets"], range(2), labels=[label] * 2, known=(levels, mask))
    assert np.array_equal(np.concatenate([read(out / f"completion_{n}.png") for n in range(2)]), expected)


def test_rows():
    assert [number_of_rows(text, 28) for text in ("1", "27", "0.5", ".25")] == [1, 27, 14, 7]
    for text, message in (
        ("0", "1 to 27 of the 28"),
        ("28", "1 to 27"),
        ("1.0", "whole number"),
        ("0.01", "1 to 27"),
        ("0.99", "1 to 27"),
        ("-1", "1 to 27"),
        ("half", "a whole number, or a share such as 0.5, got 'half'"),
        ("nan", "whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            number_of_rows(text, 28)


# Scores


@pytest.mark.parametrize(
    ("kind", "size", "mode"), [("grey", (5, 4), "L"), ("colour", (4, 5), "RGB"), ("pets", (5, 4), "L")]
)
def test_scores_are_bits_per_dimension(sample, models, tmp_path, kind, size, mode):
    paths, model = [], AxialForCausalImageModeling.from_pretrained(models[kind]).eval()
    for number in range(3):
        path, pixels = write_pictures(tmp_path, size, mode)
        paths.append(path.rename(tmp_path / f"{number}.png"))
    Image.fromarray(255 - pixels).save(paths[1])
    options = ["--class=cat"] if kind == "pets" else []
    out, printed = sample(kind, "--score", *paths, "--batch_size=2", *options)
    expected = []
    for picture in (pixels, 255 - pixels, pixels):
        levels = torch.from_numpy(picture.reshape(*size, -1).astype(int) * model.config.vocab_size // 256)
        labels = torch.tensor([0]) if kind == "pets" else None
        with torch.no_grad():
            output = model(levels.movedim(-1, 0)[None], class_labels=labels)
        expected.append(output.bits_per_dim.item())
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == list(map(str, paths))
    assert [float(row["bits_per_dim"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    of = math.log2(model.config.vocab_size)
    assert {float(row["bits_per_dim_of_uniform"]) for row in rows} == {of}
    assert f"{expected[1]:.4f} of {of:g} bits per dimension  {paths[1]}" in printed


def test_scores_without_a_folder_are_printed_alone(models, tmp_path, monkeypatch, capsys):
    path, _ = write_pictures(tmp_path, (5, 4))
    monkeypatch.chdir(tmp_path)
    arguments = ["sample.py", "--model_name_or_path", str(models["grey"]), "--score", "given.png"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / "examples" / "sample.py"), run_name="__main__")
    assert "of 3 bits per dimension  given.png" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


# Errors


def test_nothing_is_written_over_unless_told(sample, tmp_path):
    path, _ = write_pictures(tmp_path, (5, 4))
    for arguments in (["--num_samples=2"], ["--num_samples=2", "--complete", path], ["--score", path]):
        out, _ = sample("grey", *arguments)
        before = {path: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(ValueError, match="is there already: take another output_dir, or --overwrite"):
            sample("grey", *arguments)
        assert {path: path.read_bytes() for path in out.iterdir()} == before
    out, _ = sample("grey", "--num_samples=2", "--seed=1", "--overwrite")
    assert (out / "sample_1.png").read_bytes() != before[out / "sample_1.png"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("grey", ["--class=cat"], "has no classes: leave out --class, got 'cat'"),
        ("pets", ["--class=owl"], "no class 'owl'; its classes are cat; dog; 0, or 0 to 2"),
        ("pets", ["--class=3"], "no class '3'"),
        ("pets", ["--class=-1"], "no class '-1'"),
        ("certain", ["--score", "given.png"], "say --class, one of 0; 1"),
        ("certain", ["--complete", "given.png"], "say --class, one of 0; 1"),
        ("certain", ["--guidance_scale=2"], "needs a model with class_dropout_prob above 0"),
        ("pets", ["--guidance_scale=2", "--complete", "given.png"], "leads to a class: say --class"),
        ("grey", ["--temperature=-1"], "temperature must be at least 0"),
        ("grey", ["--top_p=0"], "top_p must be"),
        ("grey", ["--num_samples=0"], "num_samples must be at least 1"),
        ("grey", ["--batch_size=0"], "batch_size must be at least 1"),
        ("grey", ["--known_rows=2"], "known_rows is for --complete"),
        ("grey", ["--complete", "given.png", "--known_rows=5"], "must leave 1 to 4 of the 5 rows"),
        ("grey", ["--complete", "gone.png"], "no such file: .*gone.png"),
        ("grey", ["--complete", "bad.png"], "bad.png does not open as a picture"),
        ("grey", ["--score", "given.png", "gone.png"], "no such file: .*gone.png"),
        ("grey", ["--score", "given.png", "--num_samples=2", "--top_k=3"], "num_samples, top_k is for drawing"),
        ("clip", ["--complete", "given.png"], "given.png has 1 frames; the model takes clips of 3"),
        ("clip", ["--complete", "bad.png"], "bad.png cannot be read"),
    ],
)
def test_what_cannot_be_done_is_named(sample, tmp_path, kind, arguments, message):
    write_pictures(tmp_path, (5, 4))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    arguments = [tmp_path / argument if argument.endswith(".png") else argument for argument in arguments]
    with pytest.raises(ValueError, match=message):
        sample(kind, *arguments)
    assert not (tmp_path / "out").exists()


def test_drawing_needs_a_folder(models, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample.py", "--model_name_or_path", str(models["grey"])])
    with pytest.raises(ValueError, match="--output_dir is missing"):
        runpy.run_path(str(ROOT / "examples" / "sample.py"), run_name="__main__")


def test_other_models_are_named(sample, models, tmp_path):
    AxialForImageClassification(
        AxialConfig(image_size=4, patch_size=2, hidden_size=8, num_attention_heads=2)
    ).save_pretrained(tmp_path / "classifier")
    small = {"hidden_size": 8, "num_attention_heads": 2}
    AxialDecoderConfig(image_size=[4], **small).save_pretrained(tmp_path / "line")
    AxialDecoderConfig(image_size=[4, 4], num_channels=2, **small).save_pretrained(tmp_path / "two")
    AxialDecoderConfig(image_size=[4, 4], num_condition_channels=1, **small).save_pretrained(tmp_path / "conditioned")
    AxialDecoderConfig(image_size=[4, 4], vocab_size=300, **small).save_pretrained(tmp_path / "deep")
    for name, message in (
        ("classifier", "classifier is a checkpoint of model_type='axial', none of an autoregressive model"),
        ("line", r"pictures have 2 axes and clips 3; the model has image_size=\[4\]"),
        ("two", "pictures have 1 or 3 channels .* num_channels=2"),
        ("conditioned", "come without a condition"),
        ("deep", "256 levels"),
    ):
        with pytest.raises(ValueError, match=message):
            sample("grey", "--model_name_or_path", tmp_path / name)
