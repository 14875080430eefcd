"""What the training script can do besides: keep the best weights, set a share apart, measure only, other sizes."""

import json
import re
import shutil
import signal

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from examples.train_image_classification import (
    ClassificationRunArguments,
    ClassificationTrainingArguments,
    DataArguments,
    ModelArguments,
    check_nothing_is_trained,
    load_data,
    load_model,
    load_trained_model,
    make_augmentation,
)
from modeling_axial import AxialForImageClassification, AxialModel
from modeling_axial.training import checkpoints, read_metrics
from tests.examples.test_train_image_classification import (
    SCRIPT,
    assert_same_run,
    inputs,
    pictures_arguments,
    train,
    without,
)
from tests.examples.test_train_image_classification_distributed import launch

__all__ = ["inputs"]  # a fixture


def kept_arguments(inputs, output_dir, config_name=None):
    """
    3 steps an epoch, of 12 pictures; 8 others of the same folder choose. A large learning rate makes some evaluation
    but the last the best.
    """
    arguments = {
        "config_name": config_name or inputs / "pictures.json",
        "num_train_epochs": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.05,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 100,
        "validation_share": 0.4,
        "augment_crop": 0.5,
        "augment_flip_axes": "0,1",
    }
    rest = without(pictures_arguments(inputs, output_dir), *arguments)
    return [*rest, *(f"--{name}={value}" for name, value in arguments.items()), "--load_best_model_at_end"]


@pytest.fixture(scope="module")
def kept(inputs, tmp_path_factory):
    """(folder, printed text) of a run that keeps the best weights."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    exit_code, printed = train(*kept_arguments(inputs, folder))
    assert exit_code == 0, printed
    return folder, printed


def evaluations(folder):
    return [line for line in read_metrics(folder / "metrics.jsonl") if "validation_loss" in line]


def best_step(folder):
    return min(evaluations(folder), key=lambda line: line["validation_loss"])["step"]


def best_file(folder, step):
    return load_file(folder / f"checkpoint-{step}" / "best_model.safetensors")


# The best weights


def test_the_model_is_that_of_the_best_evaluation(kept):
    folder, _ = kept
    lines = evaluations(folder)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert all(line["validation_loss"] > 0 and line["accuracy"] * 8 % 1 == 0 for line in lines)
    best = best_step(folder)
    assert best < 12
    then, last = (load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in (best, 12))
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == then.keys() and all(torch.equal(tensor, saved[name]) for name, tensor in then.items())
    assert not any(torch.equal(tensor, saved[name]) for name, tensor in last.items())


def test_what_has_chosen_is_told_apart_from_what_is_measured(kept):
    folder, printed = kept
    lines = evaluations(folder)
    best = min(lines, key=lambda line: line["validation_loss"])
    choice = (
        f"The weights are those of evaluation {lines.index(best) + 1} of 4, with the lowest validation_loss "
        f"({best['validation_loss']:.4g}) on pictures set apart; those measured on have chosen nothing."
    )
    card = ModelCard.load(folder / "README.md")
    assert choice in printed and choice in card.text
    shares = {name: float(share) for share, name in re.findall(r"^ *([\d.]+)%  (.*)$", printed, re.MULTILINE)}
    chosen_by = "this model, on 8 others, which have chosen its weights"
    assert list(shares) == ["this model, on 7 pictures kept out of training", chosen_by]
    assert shares[chosen_by] == pytest.approx(100 * best["accuracy"], abs=0.006)
    assert "on the folder `train`, without 8 pictures set apart to choose the weights.\n" in card.text
    assert card.data.eval_results[0].dataset_name == "validation"
    scores = json.loads((folder / "results.json").read_text())["scores"]
    assert scores["this model"]["support blue"] == 3 and scores["this model"]["support red"] == 1
    assert 100 * scores["this model"]["accuracy"] == pytest.approx(next(iter(shares.values())), abs=0.006)


@pytest.mark.audit
def test_a_killed_run_keeps_the_same_weights(kept, inputs, tmp_path):
    """At the end between two evaluations, so that the best are none of the weights at hand, nor of those to come."""
    folder = tmp_path / "run"
    arguments = [*kept_arguments(inputs, folder), "--resume_from_checkpoint=latest"]
    for kill in (("line written", 3), ("state written", 8), ("line written", 11)):
        exit_code, printed = train(*arguments, kill_at=kill)
        assert exit_code == -signal.SIGKILL, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-10." in printed, printed
    assert_same_run(folder, kept[0])
    last = checkpoints.list_checkpoints(folder)[-1].name
    ours, expected = ((path / last / "best_model.safetensors").read_bytes() for path in (folder, kept[0]))
    assert ours == expected
    assert (folder / "README.md").read_text() == (kept[0] / "README.md").read_text()


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_choose_as_one(inputs, tmp_path):
    """Without dropout, whose masks differ."""
    config = tmp_path / "config.json"
    config.write_text((inputs / "pictures.json").read_text().replace("0.1", "0.0"))
    lines = {}
    for name, size in {"one": 4, "two": 2}.items():
        arguments = [*kept_arguments(inputs, tmp_path / name, config), f"--per_device_train_batch_size={size}"]
        arguments += ["--learning_rate=0.01", "--num_warmup_steps=2"]
        exit_code, printed = train(*arguments) if name == "one" else launch(SCRIPT, arguments)
        assert exit_code == 0, printed
        lines[name] = evaluations(tmp_path / name)
        assert "on 8 others, which have chosen its weights" in printed
    for one, two in zip(lines["one"], lines["two"], strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert best_step(tmp_path / "one") == best_step(tmp_path / "two")
    saved = load_file(tmp_path / "two" / "model.safetensors")
    last = checkpoints.list_checkpoints(tmp_path / "two")[-1].name.removeprefix("checkpoint-")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in best_file(tmp_path / "two", last).items())


# One folder, and another size


def test_fine_tuning_on_a_share_of_one_folder_at_another_size(kept, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        *without(kept_arguments(inputs, folder), "config_name", "validation_dir"),
        f"--model_name_or_path={kept[0]}",
        *("--image_size=4,15", "--max_train_steps=1", "--metric_for_best_model=accuracy", "--learning_rate=0"),
    ]
    exit_code, printed = train(*arguments)
    assert exit_code == 0, printed
    config = json.loads((folder / "config.json").read_text())
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert config["image_size"] == [4, 15] and processor["size"] == {"height": 4, "width": 15}
    weights, before = (load_file(path / "model.safetensors") for path in (folder, kept[0]))
    tables = {name: tuple(tensor.shape) for name, tensor in weights.items() if "position" in name}
    assert sorted(tables.values()) == [(2, 8), (3, 8)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items() if name not in tables)
    card = ModelCard.load(folder / "README.md")
    assert "(highest accuracy" not in printed and "with the highest accuracy (" in printed
    assert "which have thus chosen them: the figures are better than on new pictures." in card.text
    assert "the folder `train`, without 8 pictures set apart.\n" in card.text
    assert "- Measured on 8 pictures set apart from the folder `train`.\n" in card.text
    assert card.data.eval_results[0].dataset_name == "train"


def test_a_new_model_of_another_size(inputs):
    names = ["a", "b"]
    for text, size in {"8,5": (8, 5), "10": (10, 10)}.items():
        arguments = ModelArguments(config_name=str(inputs / "pictures.json"), image_size=text)
        model, processor = load_model(arguments, names)
        assert model.config.image_shape == size
        assert (processor.size.height, processor.size.width) == size
    for text, message in {
        "7,10": r"image_size=\(7, 10\) must be whole patches, multiples of patch_size=\(2, 5\)",
        "4,5,6": "image_size must be one positive number, or one for each of 2 axes, got '4,5,6'",
        "0": "image_size must be one positive number",
        "4x5": "image_size must be whole numbers with commas between, got '4x5'",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_model(ModelArguments(config_name=str(inputs / "pictures.json"), image_size=text), names)


def test_a_checkpoint_at_an_impossible_size_is_refused(kept):
    arguments = ModelArguments(model_name_or_path=str(kept[0]), image_size="6,9")
    with pytest.raises(ValueError, match="must be whole patches"):
        load_model(arguments, ["blue", "green", "red"])


def test_what_the_folders_are_for(inputs):
    folders = {"train_dir": str(inputs / "train"), "validation_dir": str(inputs / "validation")}

    def load(eval_only=False, names=("train_dir", "validation_dir"), **training):
        given = {name: folders[name] for name in names}
        return load_data(DataArguments(**given), ClassificationTrainingArguments(**training), eval_only)

    assert load().validation is not None
    assert load(names=["train_dir"], validation_share=0.2).train is not None
    assert load(validation_share=0.2).validation is None  # left alone
    assert load(validation_share=0.2, load_best_model_at_end=True).validation is not None
    assert load(True, names=["validation_dir"]).train is None
    for names, options, message in (
        (["train_dir"], {}, "--train_dir needs pictures to measure on: a --validation_dir, or a --validation_share"),
        (["validation_dir"], {}, "--validation_dir needs a --train_dir to learn from"),
        (["validation_dir"], {"eval_only": True, "validation_share": 0.5}, "--validation_dir needs a --train_dir"),
        (["train_dir"], {"eval_only": True}, "--train_dir needs pictures to measure on"),
        ([], {"eval_only": True}, "give either --dataset_name, or --train_dir and --validation_dir"),
    ):
        with pytest.raises(ValueError, match=message):
            load(names=names, **options)


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match=r"validation_share must be in \[0, 1\), got"):
        ClassificationTrainingArguments(validation_share=share)


# Mirrors and crops


def test_pictures_are_cropped_and_mirrored():
    pictures = torch.rand(40, 1, 6, 10, generator=torch.Generator().manual_seed(1))
    assert make_augmentation(ClassificationTrainingArguments())(pictures, torch.Generator()) is pictures
    for axes, dims in {"1": [3], "0": [2], "0,1": [2, 3]}.items():
        augment = make_augmentation(ClassificationTrainingArguments(augment_flip_axes=axes))
        flipped = augment(pictures, torch.Generator().manual_seed(0))
        ways = [[], *([dim] for dim in dims), *([dims] if len(dims) > 1 else [])]
        counts = [sum(torch.equal(*pair) for pair in zip(flipped, pictures.flip(way), strict=True)) for way in ways]
        assert sum(counts) == 40 and min(counts) > 3
        parts = [augment(pictures[i::2], torch.Generator().manual_seed(0), i, 2) for i in range(2)]
        assert all(torch.equal(part, flipped[i::2]) for i, part in enumerate(parts))
    both = ClassificationTrainingArguments(augment_crop=0.5, augment_flip_axes="1")
    crop = ClassificationTrainingArguments(augment_crop=0.5)
    mirrored, cropped = (make_augmentation(each)(pictures, torch.Generator().manual_seed(0)) for each in (both, crop))
    pairs = list(zip(mirrored, cropped, strict=True))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in pairs) and not torch.equal(cropped, pictures)
    assert 3 < sum(torch.equal(a, b) for a, b in pairs) < 37


@pytest.mark.parametrize(
    "axes, message", [("2", "of the model, 0 to 1, got '2'"), ("1,1", "must be different axes"), ("x", "'x'")]
)
def test_axes_that_pictures_have_not_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        make_augmentation(ClassificationTrainingArguments(augment_flip_axes=axes))


# To measure only


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_measuring_only_repeats_the_figures_and_touches_nothing(kept, inputs, tmp_path):
    before = contents(kept[0])
    folder = tmp_path / "measured"
    arguments = ["--eval_only", f"--model_name_or_path={kept[0]}", f"--output_dir={folder}"]
    exit_code, printed = train(*arguments, f"--validation_dir={inputs / 'validation'}")
    assert exit_code == 0, printed
    assert contents(kept[0]) == before
    names = {path.name for path in folder.iterdir()}
    assert names == {".lock", "results.json", "predictions.png"}
    results, trained = (json.loads((path / "results.json").read_text()) for path in (folder, kept[0]))
    assert results["scores"] == {str(kept[0]): pytest.approx(trained["scores"]["this model"], rel=1e-5)}
    assert f"{kept[0]}, on the folder `validation`" in printed and "mean of the classes" in printed


def test_measuring_on_some_of_the_classes_and_on_the_share_of_a_run(kept, inputs, tmp_path):
    shutil.copytree(inputs / "validation", tmp_path / "few")
    shutil.rmtree(tmp_path / "few" / "green")
    arguments = ["--eval_only", f"--model_name_or_path={kept[0]}"]
    exit_code, printed = train(*arguments, f"--validation_dir={tmp_path / 'few'}", f"--output_dir={tmp_path / 'a'}")
    assert exit_code == 0 and re.search(r"- +- +- +0  green", printed), printed
    share = [f"--train_dir={inputs / 'train'}", "--validation_share=0.4", f"--output_dir={tmp_path / 'b'}"]
    exit_code, printed = train(*arguments, *share)
    assert exit_code == 0, printed
    best = min(evaluations(kept[0]), key=lambda line: line["validation_loss"])
    (scores,) = json.loads((tmp_path / "b" / "results.json").read_text())["scores"].values()
    assert (scores["accuracy"], scores["validation_loss"]) == pytest.approx(
        (best["accuracy"], best["validation_loss"]), rel=1e-5
    )


@pytest.mark.parametrize(
    "model, training, run, message",
    [
        ({}, {}, {}, "--eval_only measures a trained model: give --model_name_or_path"),
        ({"config_name": "digits"}, {}, {}, "--eval_only measures a trained model"),
        ({"config_name": "digits", "model_name_or_path": "x"}, {}, {}, "and no --config_name"),
        ({"model_name_or_path": "x", "freeze_backbone": True}, {}, {}, "has no use for --freeze_backbone"),
        (
            {"model_name_or_path": "x"},
            {"load_best_model_at_end": True},
            {"resume_from_checkpoint": "latest"},
            "no use for --load_best_model_at_end, --resume_from_checkpoint",
        ),
    ],
)
def test_measuring_only_refuses_what_is_about_training(tmp_path, model, training, run, message):
    run = ClassificationRunArguments(output_dir=str(tmp_path / "none"), **run)
    with pytest.raises(ValueError, match=message):
        check_nothing_is_trained(ModelArguments(**model), ClassificationTrainingArguments(**training), run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors", "checkpoint-3"])
def test_measuring_only_refuses_the_folder_of_a_run(tmp_path, name):
    (tmp_path / name).mkdir()
    arguments = ModelArguments(model_name_or_path="x"), ClassificationTrainingArguments()
    with pytest.raises(ValueError, match="holds a model or a training run, .* give another folder"):
        check_nothing_is_trained(*arguments, ClassificationRunArguments(output_dir=str(tmp_path)))


def test_measuring_only_needs_a_classifier_that_knows_the_classes(kept, tmp_path):
    arguments = ModelArguments(model_name_or_path=str(kept[0]))
    model, _ = load_trained_model(arguments, ["green"])
    assert isinstance(model, AxialForImageClassification)
    with pytest.raises(ValueError, match=r"the classes \['pink'\], which .* has not: \['blue', 'green', 'red'\]"):
        load_trained_model(arguments, ["green", "pink"])
    AxialModel.from_pretrained(kept[0]).save_pretrained(tmp_path)
    shutil.copy(kept[0] / "preprocessor_config.json", tmp_path)
    with pytest.raises(ValueError, match="is no trained classifier: it has no classifier.bias, classifier.weight"):
        load_trained_model(ModelArguments(model_name_or_path=str(tmp_path)), ["green"])
