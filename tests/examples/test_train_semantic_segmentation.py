"""Training segmentation by script: what a run leaves behind, that a kill costs nothing, and its errors."""

import json
import re
import runpy
import signal
import sys

import nibabel
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from examples import train_semantic_segmentation
from examples.segmentation_data import random_crops
from examples.train_semantic_segmentation import FOLDERS, numbers_per_axis
from modeling_axial.training import checkpoints, parse_arguments, read_metrics
from tests.conftest import ROOT
from tests.examples import test_train_image_classification as classification
from tests.examples.test_train_image_classification_distributed import launch

SCRIPT = ROOT / "examples" / "train_semantic_segmentation.py"
TURNED = np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])  # as oblique scans lie
SMALL = {"model_type": "axial", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_labels": 7}  # those of the data count
SMALL |= {"dense_head": "pyramid", "pyramid_size": 4, "hidden_dropout_prob": 0.1, "position_embedding": "relative"}
CONFIGS = {
    "pictures": {**SMALL, "image_size": [8, 12], "patch_size": [2, 4], "num_channels": 3},
    "volumes": {**SMALL, "image_size": [8, 8, 4], "patch_size": [2, 2, 4], "num_channels": 1, "dice_loss_weight": 1.0},
}


def train(*arguments, kill_at=None):
    return classification.train(*arguments, kill_at=kill_at, script=SCRIPT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """
    Two small configurations; pictures in colour of different sizes, some smaller than a crop, with masks of 0 and 255;
    and volumes of two classes and some pixels that do not count.
    """
    folder = tmp_path_factory.mktemp("inputs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
        for part in FOLDERS:
            (folder / name / part).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, sizes in {"train": [(9, 14), (11, 13), (7, 20)], "validation": [(10, 9), (13, 11)]}.items():
        for number, size in enumerate(sizes):
            mask = draw.random(size) < 0.4
            picture = np.where(mask[..., None], [200, 180, 90], 60) + draw.integers(-20, 20, (*size, 3))
            for kind, array in (("image", picture), ("mask", mask * 255)):
                path = folder / "pictures" / f"{part}_{kind}_dir" / f"{number}.png"
                Image.fromarray(array.astype(np.uint8)).save(path)
    affine = nibabel.affines.from_matvec(TURNED @ np.diag([0.8, 0.8, 3.0]), [-30, 20, 7])
    for part, size in {"train": (13, 11, 5), "validation": (9, 10, 6)}.items():
        labels = (draw.random(size) < 0.5).astype(np.uint8)
        values = labels * 300.0 + draw.normal(scale=30, size=size)
        labels[0, 0] = 255
        for kind, array in (("image", values.astype(np.float32)), ("mask", labels)):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / "volumes" / f"{part}_{kind}_dir" / "a.nii.gz")
    return folder


def folder_arguments(inputs, name):
    return {"config_name": inputs / f"{name}.json"} | {part: inputs / name / part for part in FOLDERS}


def pictures_arguments(inputs, output_dir):
    """4 steps an epoch, the last of 3 crops instead of 4."""
    return as_options(
        folder_arguments(inputs, "pictures"),
        binary_masks=True,
        output_dir=output_dir,
        max_train_steps=9,
        crops_per_grid=5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.03,
        augment_flip_axes="0,1",
        augment_exchange_axes="0,1",
        augment_turn=5,
        augment_zoom=0.05,
        augment_contrast=0.2,
        augment_brightness=0.2,
        logging_steps=1,
        checkpointing_steps=3,
    )


def volumes_arguments(inputs, output_dir):
    return as_options(
        folder_arguments(inputs, "volumes"),
        label_names="ground, cell",
        output_dir=output_dir,
        max_train_steps=6,
        crop_size="8,6,4",
        crops_per_grid=8,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        learning_rate=0.02,
        augment_flip_axes="0,1,2",
        tile_size="8",
        peer="unet",
        peer_steps=4,
        logging_steps=1,
        checkpointing_steps=3,
    )


def as_options(*parts, **more):
    return [f"--{name}={value}" for part in (*parts, more) for name, value in part.items()]


ARGUMENTS = {"pictures": pictures_arguments, "volumes": volumes_arguments}


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """name of the data -> (folder, printed text) of a run from beginning to end."""
    runs = {}
    for name, arguments in ARGUMENTS.items():
        folder = tmp_path_factory.mktemp(name) / "run"
        exit_code, printed = train(*arguments(inputs, folder))
        assert exit_code == 0, printed
        runs[name] = folder, printed
    return runs


def table(printed):
    """{who: [accuracy, mean IoU, IoU of each class]} as the script has printed them."""
    lines = printed[printed.index("IoU: mean, ") :].splitlines()[1:]
    found = [re.fullmatch(r"((?:[\d.]+ )+) (.*)", line) for line in lines]
    return {match[2]: list(map(float, match[1].split())) for match in found if match}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_metrics_picture_and_card(unbroken, name):
    folder, printed = unbroken[name]
    lines = read_metrics(folder / "metrics.jsonl")
    steps = {"pictures": 9, "volumes": 6}[name]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
    evaluations = [line for line in lines if "mean_iou" in line]
    assert [line["step"] for line in evaluations] == {"pictures": [4, 8, 9], "volumes": [2, 4, 6]}[name]
    classes = {"pictures": ["background", "foreground"], "volumes": ["ground", "cell"]}[name]
    measured = [evaluations[-1][key] for key in ("accuracy", "mean_iou", *(f"iou {label}" for label in classes))]
    scores = table(printed)
    assert scores["this model"] == pytest.approx(measured, abs=1e-4)
    assert measured[1] == pytest.approx(sum(measured[2:]) / 2)
    assert scores["Otsu's threshold"][1] > 0.95  # these data are easy for it
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_iou", pytest.approx(measured[1], abs=1e-6))
    results = json.loads((folder / "results.json").read_text())
    for who, its in results["scores"].items():
        assert list(its.values()) == pytest.approx(scores[who], abs=1e-4)
    trained = [who for who in scores if who == "this model" or "U-Net" in who]
    assert list(results["trained"]) == trained and all(its["cpu_seconds"] > 0 for its in results["trained"].values())
    with Image.open(folder / "predictions.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 30


def test_the_model_learns(unbroken):
    losses = [line["loss"] for line in read_metrics(unbroken["pictures"][0] / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_the_peer_is_trained_likewise(unbroken):
    folder, printed = unbroken["volumes"]
    lines = read_metrics(folder / "unet" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    measured = [line["mean_iou"] for line in lines if "mean_iou" in line][-1]
    ((who, scores),) = [item for item in table(printed).items() if "U-Net" in item[0]]
    assert scores[1] == pytest.approx(measured, abs=1e-4)
    size = int(re.fullmatch(r"U-Net with ([\d,]+) parameters", who)[1].replace(",", ""))
    ours = train_semantic_segmentation.AxialForSemanticSegmentation.from_pretrained(folder).num_parameters()
    assert abs(size - ours) <= 0.05 * ours
    assert f"| {who} | {scores[0]:.4f} |" in (folder / "README.md").read_text()


def test_spacing_is_told(unbroken):
    assert "voxels measure 0.8 x 0.8 x 3 mm" in unbroken["volumes"][1]


def test_what_is_trained_on_flat_voxels_predicts_where_they_lie(unbroken, inputs, monkeypatch, tmp_path):
    """The classes of a volume that was measured on are those that were measured, and lie where it lies."""
    folder, printed = unbroken["volumes"]
    volume = inputs / "volumes" / "validation_image_dir" / "a.nii.gz"
    options = ["--tile_size=8", "--tiles_at_once=2", f"--output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["predict.py", str(folder), str(volume), *options])
    runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")
    given, written = nibabel.load(volume), nibabel.load(tmp_path / "a.nii.gz")
    assert written.shape == given.shape and np.array_equal(written.affine, given.affine)
    assert written.header.get_zooms() == pytest.approx((0.8, 0.8, 3.0)) and given.affine[0, 1] != 0
    truth = np.asarray(nibabel.load(inputs / "volumes" / "validation_mask_dir" / "a.nii.gz").dataobj)
    assert json.loads((folder / "orientation.json").read_text()) == {
        "orientation": "".join(nibabel.aff2axcodes(given.affine))
    }
    right = (np.asarray(written.dataobj) == truth)[truth != 255].mean()
    assert right == pytest.approx(table(printed)["this model"][0], abs=1e-4)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_stranger_opens_the_result(unbroken, run_python, name):
    folder, printed = unbroken[name]
    card = (folder / "README.md").read_text()
    shape, expected = {"pictures": ((9, 7, 3), [9, 7]), "volumes": ((9, 7, 5), [9, 7, 5])}[name]
    code = "import json\nimport numpy as np\nfrom transformers import AutoImageProcessor\n"
    code += "from transformers import AutoModelForSemanticSegmentation\n"
    code += f"{classification.lines_that_load(printed)}\n{card[card.index('def segment') : card.rindex('```')]}\n"
    code += f"grid = np.zeros({shape}, np.uint8)\n"
    code += "print(json.dumps([list(segment(grid).shape), model.config.id2label]))"
    found, id2label = json.loads(run_python(code).stdout.splitlines()[-1])
    names = {"pictures": ["background", "foreground"], "volumes": ["ground", "cell"]}[name]
    assert found == expected and list(id2label.values()) == names


# A kill costs nothing


def test_killed_and_resumed(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*pictures_arguments(inputs, folder), "--resume_from_checkpoint=latest"]
    for moment, step in [("line written", 2), ("line written", 5), ("state written", 9)]:
        exit_code, printed = train(*arguments, kill_at=(moment, step))
        assert exit_code == -signal.SIGKILL, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-6." in printed, printed
    classification.assert_same_run(folder, unbroken["pictures"][0])
    assert len(checkpoints.list_checkpoints(folder)) == 2


def test_sigterm_saves_and_the_run_goes_on_with_its_peer(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*volumes_arguments(inputs, folder), "--resume_from_checkpoint=latest"]
    exit_code, printed = train(*arguments, kill_at=("line written", 3, signal.SIGTERM))
    assert exit_code == 143 and "Stopped as asked, with step 4 saved" in printed, printed
    assert not (folder / "model.safetensors").exists()
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-4." in printed, printed
    for part in (".", "unet"):
        classification.assert_same_run(folder / part, unbroken["volumes"][0] / part)


def test_another_fold_is_another_run(unbroken, inputs):
    folder, _ = unbroken["pictures"]
    exit_code, printed = train(*pictures_arguments(inputs, folder), "--fold=1", "--resume_from_checkpoint=latest")
    assert exit_code == 1 and "made with fold=0, this run has fold=1" in printed, printed


def of_recipe(name, fold):
    """The arguments that shape the training by a recipe, the configuration of its model, and its data."""
    arguments, training, _ = parse_arguments(
        train_semantic_segmentation.DataArguments,
        train_semantic_segmentation.SegmentationTrainingArguments,
        train_semantic_segmentation.RunArguments,
        argv=[str(ROOT / "configuration" / "training" / f"{name}.yaml"), f"--fold={fold}"],
    )
    return training, *train_semantic_segmentation.load_data(arguments, training)


@pytest.mark.parametrize(
    ("name", "first_fold", "parts"),
    [
        ("nuclei2d", 0, ("left half", "right half")),
        ("nuclei3d", 0, ("left half", "right half")),
        ("brain_tissue", 0, ("back half", "front half")),
        ("brain_tissue", 2, ("first quarter", "second quarter")),
    ],
)
@pytest.mark.parametrize("more", [0, 1])
def test_recipes(name, first_fold, parts, more):
    training, config, data = of_recipe(name, first_fold + more)
    assert data.trained_on.startswith(f"the {parts[more]}")
    assert data.measured_on.startswith(f"the {parts[1 - more]}") and not training.validation_share
    assert config.id2label[0] == "background" and len(config.id2label) == (4 if name == "brain_tissue" else 2)
    batch = random_crops(
        data.train * 2,
        train_semantic_segmentation.crop_size(training, config),
        data.make_processor(config),
        torch.Generator(),
    )
    batch = train_semantic_segmentation.make_augmentation(training, config.num_axes)(batch, torch.Generator())
    loss = train_semantic_segmentation.AxialForSemanticSegmentation(config)(**batch).loss
    assert 0.5 < loss.item() < 2.5


def test_crops_are_turned_zoomed_and_then_given_noise():
    training, config, _ = of_recipe("nuclei2d", 0)
    training.augment_flip_axes = training.augment_exchange_axes = ""
    training.augment_contrast = training.augment_brightness = 0.0
    labels = torch.arange(35).view(1, 5, 7)
    batch = {"pixel_values": torch.zeros(1, 1, 5, 7), "labels": labels}

    def changed(**strengths):
        vars(training).update(strengths)
        return train_semantic_segmentation.make_augmentation(training, 2)(batch, torch.Generator())

    assert torch.equal(changed()["labels"], labels)
    assert not torch.equal(changed(augment_turn=90.0)["labels"], labels)
    assert not torch.equal(changed(augment_turn=0.0, augment_zoom=2.0)["labels"], labels)
    noisy = changed(augment_noise=1.0)["pixel_values"]
    assert len(noisy.unique()) == noisy.numel()


def test_recipe_of_wavelengths():
    """The model sees whole grids of components that have variance 1, with noise on all of their values."""
    training, config, data = of_recipe("indian_pines", 2)
    assert (data.num_channels, config.num_channels, config.num_labels) == (200, 60, 16)
    crop = train_semantic_segmentation.crop_size(training, config)
    batch = random_crops(data.train, crop, data.make_processor(config), torch.Generator())
    pixel_values = batch["pixel_values"]
    assert pixel_values.shape == (1, 60, 145, 145) and batch["attention_mask"].all()
    torch.testing.assert_close(pixel_values[0].flatten(1).std(1), torch.ones(60), atol=1e-3, rtol=0)
    changed = train_semantic_segmentation.make_augmentation(training, 2)(batch, torch.Generator())
    assert (changed["pixel_values"] - pixel_values).std() == pytest.approx(training.augment_noise, rel=0.01)
    loss = train_semantic_segmentation.AxialForSemanticSegmentation(config)(**changed).loss
    assert 2.3 < loss.item() < 3.3  # about log 16


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(inputs, tmp_path):
    """Of one with the same global batch; without what differs between them: dropout, and pixels that do not count."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**CONFIGS["pictures"], "hidden_dropout_prob": 0.0}))
    for name, run, batch_size in (("one", train, 4), ("two", launch_two, 2)):
        exit_code, printed = run(
            *pictures_arguments(inputs, tmp_path / name),
            *(
                f"--config_name={config}",
                "--crop_size=6,8",
                "--crops_per_grid=4",
                f"--per_device_train_batch_size={batch_size}",
            ),
            *("--gradient_accumulation_steps=1", "--max_train_steps=4", "--peer=unet"),
        )
        assert exit_code == 0, printed
    for part in (".", "unet"):
        lines = [read_metrics(tmp_path / name / part / "metrics.jsonl") for name in ("one", "two")]
        assert len(lines[0]) == len(lines[1]) == 6
        for one, two in zip(*lines, strict=True):
            assert two == pytest.approx(one, rel=1e-4)


def launch_two(*arguments):
    return launch(SCRIPT, arguments)


@pytest.fixture
def picture_columns(tmp_path):
    """A folder that `datasets` reads: pictures in colour, and masks of three classes in the column `mask`."""
    draw = np.random.default_rng(1)
    for split in ("train", "test"):
        for part in ("images", "masks"):
            (tmp_path / "data" / split / part).mkdir(parents=True)
        labels = draw.integers(0, 3, (11, 13), dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / "data" / split / "masks" / "0.png")
        Image.fromarray(np.stack([80 * labels] * 3, -1)).save(tmp_path / "data" / split / "images" / "0.png")
        names = "file_name,mask_file_name\nimages/0.png,masks/0.png\n"
        (tmp_path / "data" / split / "metadata.csv").write_text(names)
    return tmp_path / "data"


def test_a_trained_model_goes_on_with_other_classes_of_a_data_set(unbroken, picture_columns, tmp_path, monkeypatch):
    trained, _ = unbroken["pictures"]
    arguments = [f"--model_name_or_path={trained}", f"--dataset_name={picture_columns}", "--mask_column_name=mask"]
    arguments += [f"--output_dir={tmp_path / 'run'}", "--max_train_steps=1", "--learning_rate=0"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        train_semantic_segmentation.main()
    exit_code, printed = train(*arguments, "--ignore_mismatched_sizes")
    assert exit_code == 0, printed
    before, after = (
        train_semantic_segmentation.AxialForSemanticSegmentation.from_pretrained(folder)
        for folder in (trained, tmp_path / "run")
    )
    assert after.config.num_labels == 3 and after.config.label2id == {"0": 0, "1": 1, "2": 2}
    after = after.state_dict()
    other = {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after.get(name))}
    assert other and all(after[name].shape[0] == 3 for name in other)  # the last layer
    card = (tmp_path / "run" / "README.md").read_text()
    assert "on the split train of `data`" in card and "on the split test of `data`" in card


def test_a_checkpoint_of_other_channels(unbroken, monkeypatch, tmp_path):
    arguments = [f"--model_name_or_path={unbroken['pictures'][0]}", "--dataset_name=nuclei2d"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match="takes 3 channels, and the data have 1"):
        train_semantic_segmentation.main()


# Errors

NUCLEI = ["--config_name=nuclei2d", "--dataset_name=nuclei2d"]


def test_numbers_per_axis():
    assert numbers_per_axis(None, "crop_size", 2) is None
    assert numbers_per_axis("64", "crop_size", 3) == (64, 64, 64)
    assert numbers_per_axis(" 16, 64", "crop_size", 2) == (16, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset_name=nuclei2d"], "give either --config_name .* or --model_name_or_path"),
        ([*NUCLEI, "--model_name_or_path=a"], "give either --config_name"),
        (["--model_name_or_path=a", "--dataset_name=nuclei2d", "--peer=unet"], "--peer is for new models"),
        (["--config_name=nuclei2d"], "give either --dataset_name, or all of --train_image_dir"),
        ([*NUCLEI, "--train_image_dir=a"], "give either --dataset_name"),
        (["--config_name=nuclei2d", "--train_image_dir=a", "--train_mask_dir=b"], "must come with --validation_image"),
        ([*NUCLEI, "--binary_masks"], "are for data of yours"),
        ([*NUCLEI, "--dataset_name=nuclei3d"], "img3d.tif has 3 axes; the model has 2"),
        ([*NUCLEI, "--config_name=digits_autoregressive"], "has no dense head"),
        ([*NUCLEI, "--fold=2"], "nuclei2d has the folds 0 to 1, got 2"),
        ([*NUCLEI, "--crops_per_grid=0"], "crops_per_grid must be at least 1"),
        ([*NUCLEI, "--peer_steps=0"], "peer_steps must be at least 1"),
        ([*NUCLEI, "--crop_size=30"], r"crop_size=\(30, 30\) must be whole patches"),
        ([*NUCLEI, "--crop_size=8,8,8"], "one for each of 2 axes"),
        ([*NUCLEI, "--crop_size=big"], "crop_size must be whole numbers"),
        ([*NUCLEI, "--tile_size=0"], "tile_size must be one positive"),
        ([*NUCLEI, "--augment_flip_axes=2"], "augment_flip_axes must be different axes of the model, 0 to 1, got '2'"),
        ([*NUCLEI, "--augment_exchange_axes=0,0"], "augment_exchange_axes must be different axes"),
        ([*NUCLEI, "--mirror_axes=0,2"], "mirror_axes must be different axes of the model, 0 to 1, got '0,2'"),
        ([*NUCLEI, "--augment_turn=181"], "turn must be in"),
        ([*NUCLEI, "--augment_zoom=-1"], "zoom must be in"),
        ([*NUCLEI, "--augment_contrast=1"], "contrast must be in"),
        ([*NUCLEI, "--augment_noise=-1"], "noise must be in"),
        ([*NUCLEI, "--channel_components=0"], "channel_components must be at least 1"),
        ([*NUCLEI, "--channel_components=2"], "channel_components must be at most the 1 channels, got 2"),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match=words):
        train_semantic_segmentation.main()
    assert not list(tmp_path.iterdir())  # before work starts


def test_pictures_have_no_components(monkeypatch, inputs, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *pictures_arguments(inputs, tmp_path), "--channel_components=1"])
    with pytest.raises(ValueError, match="channel_components=1 is for arrays, and these are pictures"):
        train_semantic_segmentation.main()
    assert not list(tmp_path.iterdir())


def test_bad_data_end_a_run_before_its_model_is_made(monkeypatch, inputs, tmp_path):
    monkeypatch.setattr(train_semantic_segmentation, "AxialForSemanticSegmentation", None)
    arguments = [*pictures_arguments(inputs, tmp_path / "run"), f"--train_mask_dir={inputs / 'volumes' / FOLDERS[1]}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match="3 files have no mask of the same name"):
        train_semantic_segmentation.main()
    assert not list(tmp_path.iterdir())
