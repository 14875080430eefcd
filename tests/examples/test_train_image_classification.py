"""The training script, run as a program: what it leaves behind, that a kill costs nothing, and its errors."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file

from examples import image_classification_report, train_image_classification, training_run
from modeling_axial import AxialForImageClassification
from modeling_axial.training import MetricsLog, checkpoints, read_metrics
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "train_image_classification.py"

# Runs are forked from a server process that has imported the libraries, which otherwise takes most of their time.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["modeling_axial.training", "torchmetrics.classification", "matplotlib.figure", "sklearn.linear_model"]
)


def train(*arguments, kill_at=None, script=SCRIPT):
    """Runs a script, with the trap `kill_at=(moment, step[, signal])` if given. (exit code, all that it printed)"""
    with tempfile.NamedTemporaryFile() as output:  # no pipe: workers that outlive a killed run would keep it open
        process = CONTEXT.Process(target=train_here, args=(script, list(map(str, arguments)), kill_at, output.name))
        process.start()
        process.join()
        return process.exitcode, output.read().decode()


def train_here(script, arguments, kill_at, output):
    multiprocessing.set_start_method("fork", force=True)  # for workers, as in a run from the command line
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if kill_at is not None:
        set_trap(*kill_at)
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def set_trap(moment, step, signal_number=signal.SIGKILL):
    """Sends the process a signal at a moment of a step that none from outside would hit for certain."""
    write, commit = MetricsLog.write, checkpoints.commit_checkpoint

    def write_and_die(self, at_step, **values):
        write(self, at_step, **values)
        if at_step == step:
            os.kill(os.getpid(), signal_number)

    def commit_and_die(staged, at_step, total_limit):
        if at_step == step and moment == "state written":
            os.kill(os.getpid(), signal_number)
        commit(staged, at_step, total_limit)
        if at_step == step:
            os.kill(os.getpid(), signal_number)

    if moment == "line written":
        MetricsLog.write = write_and_die
    else:
        checkpoints.commit_checkpoint = commit_and_die


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def make_inputs(folder):
    """Two small configurations, and pictures of three classes: 20 to learn from and 7 to measure on."""
    small = {"model_type": "axial", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    configs = {
        "digits": {**small, "image_size": 28, "patch_size": 7, "num_channels": 1},
        "pictures": {**small, "image_size": [6, 10], "patch_size": [2, 5]},
    }
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    draw = np.random.default_rng(0)
    for part, counts in {"train": (9, 6, 5), "validation": (3, 3, 1)}.items():
        for name, count in zip(("blue", "green", "red"), counts, strict=True):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                picture = draw.integers(0, 256, (7, 11, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / part / name / f"{number}.png")
    return folder


def digits_arguments(inputs, output_dir):
    arguments = {
        "dataset_name": "digits",
        "config_name": inputs / "digits.json",
        "output_dir": output_dir,
        "max_train_steps": 12,
        "per_device_train_batch_size": 16,
        "num_warmup_steps": 3,
        "augment_shift": 0.1,
        "augment_rotation": 10,
        "logging_steps": 1,
        "checkpointing_steps": 3,
        "seed": 7,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


def pictures_arguments(inputs, output_dir):
    """4 steps an epoch, the last of 2 pictures instead of 6."""
    arguments = {
        "train_dir": inputs / "train",
        "validation_dir": inputs / "validation",
        "config_name": inputs / "pictures.json",
        "output_dir": output_dir,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "dataloader_num_workers": 2,
        "augment_scale": 0.2,
        "augment_shear": 10,
        "logging_steps": 1,
        "checkpointing_steps": 3,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


def without(arguments, *names):
    return [argument for argument in arguments if argument.removeprefix("--").partition("=")[0] not in names]


ARGUMENTS = {"digits": digits_arguments, "pictures": pictures_arguments}


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


def assert_same_run(folder, reference):
    """Every logged number and every weight, those of the optimizer included, to the last bit."""
    assert (folder / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, reference))
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    last = checkpoints.list_checkpoints(reference)[-1].name
    states = [torch.load(path / last / "optimizer.bin", weights_only=True) for path in (folder, reference)]
    assert str(states[0]) == str(states[1])
    moments = [[moment for state in states[i]["state"].values() for moment in state.values()] for i in (0, 1)]
    assert len(moments[0]) > 30 and all(torch.equal(*pair) for pair in zip(*moments, strict=True))


# What a run leaves behind


@pytest.mark.parametrize("name", ARGUMENTS)
def test_metrics_and_checkpoints(unbroken, name):
    folder, _ = unbroken[name]
    lines = read_metrics(folder / "metrics.jsonl")
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 13))
    assert all(0 < line["loss"] < 10 and line["grad_norm"] > 0 for line in losses)
    evaluations = [(line["step"], line["epoch"]) for line in lines if "accuracy" in line]
    assert evaluations == ([(12, 0)] if name == "digits" else [(4, 1), (8, 2), (12, 3)])
    assert sorted(path.name for path in folder.glob("*checkpoint*")) == ["checkpoint-12", "checkpoint-9"]
    learning_rates = [line["learning_rate"] for line in losses]
    if name == "digits":
        assert learning_rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert learning_rates[-1] == 0


def lines_that_load(printed):
    """The lines of Python that a run ends with."""
    return printed.split("Load the model with\n\n")[1].split("\n\n")[0].rstrip("\n")


@pytest.mark.parametrize("name", ["pictures", pytest.param("digits", marks=pytest.mark.audit)])
def test_a_stranger_opens_the_result(unbroken, inputs, run_python, tmp_path, name):
    folder, printed = unbroken[name]
    shutil.copytree(folder, tmp_path / "moved", ignore=shutil.ignore_patterns("checkpoint-*"))
    code = "import json, sys\nimport numpy as np\nfrom transformers import AutoImageProcessor\n"
    code += "from transformers import AutoModelForImageClassification\n"
    code += lines_that_load(printed).replace(str(folder), str(tmp_path / "moved"))
    code += """
pixel_values = processor(np.zeros((9, 9, 3), np.uint8), return_tensors="pt")["pixel_values"]
logits = model.eval()(pixel_values).logits
print(json.dumps([list(pixel_values.shape), list(logits.shape), model.config.id2label]))
"""
    shape, logits_shape, id2label = json.loads(run_python(code).stdout.splitlines()[-1])
    names = [str(digit) for digit in range(10)] if name == "digits" else ["blue", "green", "red"]
    assert list(id2label.values()) == names and logits_shape == [1, len(names)]
    assert shape == ([1, 1, 28, 28] if name == "digits" else [1, 3, 6, 10])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_model_card_and_picture(unbroken, name):
    folder, _ = unbroken[name]
    card = ModelCard.load(folder / "README.md")
    measured = [line["accuracy"] for line in read_metrics(folder / "metrics.jsonl") if "accuracy" in line][-1]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", pytest.approx(measured, abs=1e-6))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-classification")
    trained_on, measured_on = {
        "digits": ("4,000 digits of MNIST", "1,000 other digits of MNIST"),
        "pictures": ("the folder `train`", "the folder `validation`"),
    }[name]
    assert f" on {trained_on}.\n- Measured on {measured_on}.\n" in card.text
    assert result.dataset_name == ("MNIST, 5,000 digits" if name == "digits" else "validation")
    assert f"| {measured:.2%} |" in card.text and "trust_remote_code=True" in card.text
    with Image.open(folder / "predictions.png") as picture:
        assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_digits_are_compared_with_baselines(unbroken):
    _, printed = unbroken["digits"]
    shares = {name: float(share) for share, name in re.findall(r"^ *([\d.]+)%  (.*)$", printed, re.MULTILINE)}
    assert shares["3 nearest neighbours"] == 94.7 and shares["logistic regression"] == 90.8
    assert len(shares) == 4 and "kept out of training" in printed and "attention set to zero" in printed


# A kill costs nothing


@pytest.mark.parametrize(
    "name, kills",
    [
        pytest.param(
            "digits",
            [("line written", 2), ("state written", 3), ("line written", 5), ("state written", 9)],
            marks=pytest.mark.audit,
        ),
        (
            "pictures",
            [
                ("checkpoint named", 3),
                ("line written", 4),  # of the loss: the accuracy of the epoch is still to come
                ("line written", 7),
                ("state written", 12),
                ("checkpoint named", 12),  # only the results are missing
            ],
        ),
    ],
)
def test_killed_again_and_again_and_resumed(unbroken, inputs, tmp_path, name, kills):
    folder = tmp_path / "run"
    arguments = [*ARGUMENTS[name](inputs, folder), "--resume_from_checkpoint", "latest"]
    saved = 0
    for moment, step in kills:
        exit_code, printed = train(*arguments, kill_at=(moment, step))
        assert exit_code == -signal.SIGKILL, printed
        assert ("starting from zero" if saved == 0 else f"Resuming from {folder}/checkpoint-{saved}.") in printed
        saved = step if moment == "checkpoint named" else (step - 1) // 3 * 3
    exit_code, printed = train(*arguments)
    assert exit_code == 0, printed
    assert f"Resuming from {folder}/checkpoint-{saved}." in printed
    assert_same_run(folder, unbroken[name][0])
    assert not list(folder.glob("unfinished-*"))


@pytest.mark.audit
def test_killed_from_outside_and_resumed(unbroken, inputs, tmp_path):
    """Signals from outside hit wherever they hit; the command line is that of a user."""
    folder = tmp_path / "run"
    command = [sys.executable, SCRIPT, *digits_arguments(inputs, folder), "--resume_from_checkpoint", "latest"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(folder.glob("checkpoint-*")):
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    resumed = subprocess.run(command, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"Resuming from {folder}/checkpoint-" in resumed.stdout
    assert_same_run(folder, unbroken["digits"][0])


def test_a_finished_run_only_reports_again(unbroken, inputs, tmp_path):
    folder = shutil.copytree(unbroken["pictures"][0], tmp_path / "run")
    (folder / "predictions.png").unlink()
    exit_code, printed = train(*pictures_arguments(inputs, folder), "--resume_from_checkpoint=latest")
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-12." in printed
    assert_same_run(folder, unbroken["pictures"][0])
    assert (folder / "predictions.png").exists()


def test_a_damaged_checkpoint_is_stepped_over(unbroken, inputs, tmp_path):
    folder = shutil.copytree(unbroken["pictures"][0], tmp_path / "run")
    os.truncate(folder / "checkpoint-12" / "optimizer.bin", 1000)
    exit_code, printed = train(*pictures_arguments(inputs, folder), "--resume_from_checkpoint=latest")
    assert exit_code == 0, printed
    assert "'optimizer.bin' is changed. Falling back" in printed
    assert f"Resuming from {folder}/checkpoint-9." in printed
    assert_same_run(folder, unbroken["pictures"][0])


# Other starts


def test_fine_tuning_with_other_classes(unbroken, inputs, tmp_path):
    arguments = [
        *without(pictures_arguments(inputs, tmp_path / "run"), "config_name"),
        f"--model_name_or_path={unbroken['digits'][0]}",
        "--max_train_steps=1",
    ]
    exit_code, printed = train(*arguments)
    assert exit_code != 0 and "ignore_mismatched_sizes" in printed
    exit_code, printed = train(*arguments, "--ignore_mismatched_sizes")
    assert exit_code == 0, printed
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["blue", "green", "red"] and config["image_size"] == 28


@pytest.fixture(scope="module")
def reordered(unbroken, tmp_path_factory):
    """The classifier of the pictures, with its classes in another order."""
    folder = tmp_path_factory.mktemp("reordered") / "checkpoint"
    model = AxialForImageClassification.from_pretrained(unbroken["pictures"][0])
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    model.config.id2label = {number: model.config.id2label[old] for number, old in enumerate(order)}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(folder)
    shutil.copy(unbroken["pictures"][0] / "preprocessor_config.json", folder)
    return folder


def test_a_checkpoint_with_the_same_classes_keeps_their_order(unbroken, reordered, inputs, tmp_path):
    lines = read_metrics(unbroken["pictures"][0] / "metrics.jsonl")
    arguments = without(pictures_arguments(inputs, tmp_path / "run"), "config_name")
    arguments += [f"--model_name_or_path={reordered}", "--max_train_steps=1", "--learning_rate=0"]
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and "is kept for other classes" not in printed, printed
    (line,) = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "accuracy" in line]
    assert line["accuracy"] == [line["accuracy"] for line in lines if "accuracy" in line][-1]
    id2label = json.loads((tmp_path / "run" / "config.json").read_text())["id2label"]
    assert id2label == {"0": "red", "1": "blue", "2": "green"}


def load_model(checkpoint, label_names):
    arguments = train_image_classification.ModelArguments(model_name_or_path=str(checkpoint))
    return train_image_classification.load_model(arguments, label_names)[0]


def test_a_classifier_kept_for_other_classes_is_said(reordered, tmp_path):
    with pytest.warns(UserWarning, match=r"\['red', 'blue', 'green'\] of the .* become \['a', 'b', 'c'\]") as caught:
        model = load_model(reordered, ["a", "b", "c"])
    assert len(caught) == 1 and model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.equal(model.classifier.weight, load_file(reordered / "model.safetensors")["classifier.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(reordered, ["blue", "green", "red"]).config.id2label == {0: "red", 1: "blue", 2: "green"}
        model.axial.save_pretrained(tmp_path)  # without a classifier, and so with nothing that is kept
        shutil.copy(reordered / "preprocessor_config.json", tmp_path)
        assert load_model(tmp_path, ["a", "b", "c"]).config.id2label == {0: "a", 1: "b", 2: "c"}


def test_classes_of_a_checkpoint_are_compared_in_nfc(reordered, tmp_path):
    folder = shutil.copytree(reordered, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "Za\u0308une", "1": "green", "2": "blue"}  # as macOS writes ä
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(folder, ["blue", "green", "Z\u00e4une"])
    assert train_image_classification.class_names(model.config) == ["Z\u00e4une", "green", "blue"]


def test_damaged_pictures_end_a_run_before_its_first_step_or_are_left_out(inputs, tmp_path):
    for part in ("train", "validation"):
        shutil.copytree(inputs / part, tmp_path / part)
    bad = tmp_path / "train" / "green" / "3.png"
    bad.write_bytes(bad.read_bytes()[:50])
    (tmp_path / "train" / "green" / "Thumbs.db").touch()
    arguments = [*pictures_arguments(tmp_path, tmp_path / "run"), f"--config_name={inputs / 'pictures.json'}"]
    exit_code, printed = train(*arguments)
    assert exit_code == 1 and f"1 of 20 pictures cannot be read: {bad} is truncated or damaged" in printed, printed
    assert f"1 files are no pictures by their names: {bad.parent / 'Thumbs.db'}" in printed
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    exit_code, printed = train(*arguments, "--skip_broken", "--max_train_steps=1")
    assert exit_code == 0 and "They are left out." in printed, printed


def test_a_frozen_backbone_stays_and_the_classifier_learns(unbroken, inputs, tmp_path):
    start = unbroken["pictures"][0]
    arguments = without(pictures_arguments(inputs, tmp_path / "run"), "config_name")
    exit_code, printed = train(*arguments, f"--model_name_or_path={start}", "--freeze_backbone", "--max_train_steps=1")
    assert exit_code == 0, printed
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_fine_tuning_this_repository_on_a_folder_of_datasets(inputs, tmp_path):
    for part in ("train", "validation"):
        shutil.copytree(inputs / part, tmp_path / "pictures" / part)
    arguments = [
        *without(pictures_arguments(inputs, tmp_path / "run"), "config_name", "train_dir", "validation_dir"),
        f"--dataset_name={tmp_path / 'pictures'}",
        f"--model_name_or_path={ROOT}",
        *("--ignore_mismatched_sizes", "--freeze_backbone", "--max_train_steps=1"),
    ]
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and "on 7 pictures kept out of training" in printed, printed
    ours, tuned = (load_file(folder / "model.safetensors") for folder in (ROOT, tmp_path / "run"))
    changed = {name for name in ours if not torch.equal(ours[name], tuned[name])}
    assert changed == {"classifier.weight", "classifier.bias"} and tuned["classifier.bias"].shape == (3,)


def test_accumulated_batches_count_as_one(inputs, tmp_path):
    """Also at the end of an epoch, in 3 + 3 + 2 instead of 8 pictures; without what draws: dropout and augmentation."""
    config = tmp_path / "config.json"
    config.write_text((inputs / "pictures.json").read_text().replace("0.1", "0.0"))
    lines = {}
    for batch_size, batches in ((12, 1), (3, 4)):
        arguments = [
            *pictures_arguments(inputs, tmp_path / str(batches)),
            f"--config_name={config}",
            f"--per_device_train_batch_size={batch_size}",
            f"--gradient_accumulation_steps={batches}",
            *("--augment_scale=0", "--augment_shear=0"),
        ]
        exit_code, printed = train(*arguments)
        assert exit_code == 0, printed
        lines[batches] = read_metrics(tmp_path / str(batches) / "metrics.jsonl")
    assert len(lines[1]) == 9  # two steps an epoch
    for one, several in zip(lines[1], lines[4], strict=True):
        assert several == pytest.approx(one, rel=1e-4)


def test_every_picture_counts_the_same(inputs, tmp_path):
    """Where the weights stay as they are, the mean loss over an epoch does not depend on how it is cut into steps."""
    config = tmp_path / "config.json"
    config.write_text((inputs / "pictures.json").read_text().replace("0.1", "0.0"))
    arguments = [
        *pictures_arguments(inputs, tmp_path / "run"),
        f"--config_name={config}",
        *("--augment_scale=0", "--augment_shear=0", "--learning_rate=0"),
    ]
    exit_code, printed = train(*arguments)
    assert exit_code == 0, printed
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    epochs = np.array(losses).reshape(3, 4)  # steps of 6, 6, 6 and 2 pictures
    assert epochs.std(axis=0).min() > 1e-3
    assert epochs @ [6, 6, 6, 2] / 20 == pytest.approx(epochs[0] @ [6, 6, 6, 2] / 20, rel=1e-5)


def test_a_recipe_and_bf16(unbroken, inputs, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"config_name: {inputs / 'pictures.json'}\nnum_train_epochs: 1\nmixed_precision: bf16\n")
    arguments = without(pictures_arguments(inputs, tmp_path / "run"), "config_name", "num_train_epochs")
    exit_code, printed = train(recipe, *arguments)
    assert exit_code == 0, printed
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    in_float32 = read_metrics(unbroken["pictures"][0] / "metrics.jsonl")[0]["loss"]
    assert 1e-6 < abs(lines[0]["loss"] / in_float32 - 1) < 2e-2  # of the same weights and pictures


@pytest.fixture
def hub_calls(monkeypatch):
    """What a stand-in for the Hub, put into its place, is asked for."""
    calls = {}

    class Api:
        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, repo_id, exist_ok):
            return SimpleNamespace(repo_id=f"user/{repo_id}")

        def upload_folder(self, **arguments):
            calls.update(arguments)
            return SimpleNamespace(oid="0" * 40)

        def upload_file(self, path_or_fileobj, **arguments):
            calls["card"] = path_or_fileobj.decode()

    monkeypatch.setattr(training_run, "HfApi", Api)
    return calls


def test_the_upload_leaves_out_the_checkpoints(unbroken, hub_calls):
    folder, calls = unbroken["pictures"][0], hub_calls
    training_run.push_to_hub(folder, None, "secret", "Train")
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    files += ["unfinished-checkpoint-13/model.safetensors", "peer/checkpoint-12/model.safetensors", "peer/.lock"]
    uploaded = set(filter_repo_objects(files, ignore_patterns=calls["ignore_patterns"]))
    assert (calls["token"], calls["repo_id"], calls["folder_path"]) == ("secret", "user/run", folder)
    assert {"model.safetensors", "config.json", "README.md", "predictions.png", "metrics.jsonl"} <= uploaded
    assert not [name for name in uploaded if "checkpoint-" in name or ".lock" in name]
    assert calls["card"].count(f'from_pretrained("user/run", revision="{"0" * 40}", trust_remote_code=True)') == 2


@pytest.mark.parametrize("name", ["run", "it's", 'say "hi", ', "a\\", "both ' and \\\" ", "日本"])
def test_the_loading_lines_of_an_upload_are_pinned(hub_calls, tmp_path, name):
    lines = "\n".join(image_classification_report.loading_lines(name))
    (tmp_path / "README.md").write_text(lines, encoding="utf-8")
    training_run.push_to_hub(tmp_path, "run", None, "Train")
    pinned = f'"user/run", revision="{"0" * 40}"'
    assert hub_calls["card"] == lines.replace(image_classification_report.quoted(name), pinned)
    assert hub_calls["card"].count(pinned) == 2


@pytest.mark.parametrize("name", ["digits", pytest.param("pictures", marks=pytest.mark.audit)])
def test_sigterm_saves_and_the_run_goes_on(unbroken, inputs, tmp_path, name):
    folder = tmp_path / "run"
    arguments = [*ARGUMENTS[name](inputs, folder), "--resume_from_checkpoint=latest"]
    exit_code, printed = train(*arguments, kill_at=("line written", 6, signal.SIGTERM))
    assert exit_code == 143 and "Stopped as asked, with step 7 saved" in printed, printed
    assert not (folder / "model.safetensors").exists()
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-7." in printed, printed
    assert_same_run(folder, unbroken[name][0])


@pytest.mark.parametrize(
    "number, expected", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.audit)]
)
def test_a_signal_to_all_processes_saves_and_the_run_goes_on(unbroken, inputs, tmp_path, number, expected):
    """As a terminal and launchers send it: to the workers, too, who are to serve the last step."""
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import os, runpy, sys\n"
        "from modeling_axial.training import MetricsLog\n"
        "write = MetricsLog.write\n"
        "def write_and_interrupt(self, step, **values):\n"
        "    write(self, step, **values)\n"
        "    if step == 6:\n"
        f"        os.killpg(0, {number:d})\n"
        "MetricsLog.write = write_and_interrupt\n"
        "os.setsid()\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    folder = tmp_path / "run"
    arguments = [*pictures_arguments(inputs, folder), "--resume_from_checkpoint=latest"]
    exit_code, printed = train(*arguments, script=script)
    assert exit_code == expected and "Stopped as asked, with step 7 saved" in printed, printed
    assert "Traceback" not in printed and "KeyboardInterrupt" not in printed, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-7." in printed, printed
    assert_same_run(folder, unbroken["pictures"][0])


# Errors


@pytest.mark.parametrize(
    "additional, message",
    [
        (["--resume_from_checkpoint={}/checkpoint-5"], "checkpoint-5 is not there, or no folder"),
        (["--dataset_name=digits"], "give either --dataset_name, or --train_dir and --validation_dir"),
        (["--model_name_or_path={}"], "give either --model_name_or_path (a trained model) or --config_name"),
        (["--config_name=no_such_preset"], "no_such_preset"),
        (["--checkpointing_steps=often"], "checkpointing_steps must be `epoch` or at least 1, got 'often'"),
        (["--checkpointing_steps=0"], "checkpointing_steps must be `epoch` or at least 1, got '0'"),
        (["--logging_steps=0"], "logging_steps must be at least 1, got 0"),
        (["--num_train_epochs=-1"], "num_train_epochs must be at least 1, got -1"),
        (["--config_name=axial_volume_small"], "axial_volume_small has 3 axes; a model of pictures has 2"),
        (["--lr_scheduler_type=wild"], "warmup_stable_decay, got 'wild'"),
        (["--learning_rat=1"], "unknown arguments: --learning_rat=1"),
        (["--validation_dir={}"], "is empty; it must hold one folder of pictures for each class"),
        (["--train_dir="], "--train_dir is an empty text"),
        (["--augment_scale=1"], "scale must be in [0, 1), got 1.0"),
        (["--with_tracking", "--report_to=tensorboard"], "tensorboard"),
    ],
)
def test_wrong_arguments_are_named(inputs, tmp_path, additional, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    additional = [argument.format(empty) for argument in additional]
    exit_code, printed = train(*pictures_arguments(inputs, tmp_path / "run"), *additional)
    assert exit_code in (1, 2) and message in printed, printed
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_another_run_in_the_same_folder_is_refused(unbroken, inputs, tmp_path):
    folder = shutil.copytree(unbroken["pictures"][0], tmp_path / "run")
    exit_code, printed = train(*pictures_arguments(inputs, folder))
    assert exit_code == 1 and "already holds checkpoint-9, checkpoint-12 of another run" in printed
    exit_code, printed = train(
        *pictures_arguments(inputs, folder), "--resume_from_checkpoint=latest", "--learning_rate=0.5"
    )
    assert exit_code == 1 and "made with learning_rate=0.001, this run has learning_rate=0.5" in printed
    assert_same_run(folder, unbroken["pictures"][0])


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoints(inputs, tmp_path):
    arguments = [*pictures_arguments(inputs, tmp_path / "run"), "--checkpointing_steps=1", "--learning_rate=1e30"]
    exit_code, printed = train(*arguments)
    assert exit_code == 1 and re.search(
        r"the loss of step \d is (nan|inf); the checkpoints before it are kept", printed
    )
    newest = checkpoints.newest_valid_checkpoint(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


def test_weights_that_are_no_numbers_are_not_saved(inputs, tmp_path):
    """The loss of a step is computed before its weights are: it is finite here."""
    arguments = [*pictures_arguments(inputs, tmp_path / "run"), "--checkpointing_steps=1", "--learning_rate=1e39"]
    exit_code, printed = train(*arguments)
    assert exit_code == 1 and re.search("the largest weight after step 1 is (nan|inf)", printed), printed
    assert not list((tmp_path / "run").glob("checkpoint-*"))
