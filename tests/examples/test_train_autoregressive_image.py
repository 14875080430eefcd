"""Training the autoregressive model by script: what a run leaves behind, that a kill costs nothing, and its errors."""

import json
import math
import re
import signal
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from examples import train_autoregressive_image
from modeling_axial import AxialConfig, AxialDecoderConfig, AxialForCausalImageModeling
from modeling_axial.training import checkpoints, read_metrics
from tests.conftest import ROOT
from tests.examples import test_train_image_classification as classification
from tests.examples.test_train_image_classification_distributed import launch

SCRIPT = ROOT / "examples" / "train_autoregressive_image.py"
SMALL = {"model_type": "axial_decoder", "hidden_size": 8, "num_attention_heads": 2, "hidden_dropout_prob": 0.1}
SMALL |= {"num_outer_layers": 1, "num_inner_layers": 1, "num_exterior_layers": 1}
DIGITS = {**SMALL, "image_size": [28, 28], "num_channels": 1, "vocab_size": 4}
DIGITS |= {"num_classes": 10, "class_dropout_prob": 0.1}


def train(*arguments, kill_at=None):
    return classification.train(*arguments, kill_at=kill_at, script=SCRIPT)


def write_config(folder, **config):
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def film_config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("film"), **SMALL, image_size=[3, 4, 5], num_channels=3)


def film_arguments(config, output_dir):
    """9 steps of an epoch of 12, the last of which would have 6 clips instead of 8."""
    arguments = {
        "dataset_name": "film",
        "config_name": config,
        "output_dir": output_dir,
        "max_train_steps": 9,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "optimizer": "muon",
        "learning_rate": 0.01,
        "ema_decay": 0.5,
        "augment_shift": 1,
        "logging_steps": 1,
        "checkpointing_steps": 3,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


@pytest.fixture(scope="module")
def unbroken(film_config, tmp_path_factory):
    """(folder, printed text) of a run from beginning to end."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    exit_code, printed = train(*film_arguments(film_config, folder))
    assert exit_code == 0, printed
    return folder, printed


def test_metrics_pictures_and_card(unbroken):
    folder, printed = unbroken
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 10))
    assert lines[0]["loss"] == pytest.approx(math.log(256), abs=1e-6)
    (evaluation,) = [line for line in lines if "bits_per_dim" in line]
    assert evaluation["step"] == 9 and evaluation["bits_per_dim"] < 8
    assert f"{evaluation['bits_per_dim']:.4f} bits per dimension on 8 held-out examples" in printed
    for name in ("samples", "completions"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(2**24)) > 100
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(evaluation["bits_per_dim"], abs=1e-6)
    assert "the last 24 frames of the film carphone" in result.dataset_name


def test_the_average_of_the_weights_is_kept(unbroken):
    folder, _ = unbroken
    kept, last = (load_file(path / "model.safetensors") for path in (folder, folder / "checkpoint-9"))
    assert kept.keys() == last.keys()
    assert not any(torch.equal(kept[name], last[name]) for name in kept if "norm" not in name and "bias" not in name)


@pytest.mark.audit
def test_killed_and_resumed(unbroken, film_config, tmp_path):
    folder = tmp_path / "run"
    arguments = [*film_arguments(film_config, folder), "--resume_from_checkpoint", "latest"]
    for moment, step in [("line written", 2), ("line written", 5), ("state written", 9)]:
        exit_code, printed = train(*arguments, kill_at=(moment, step))
        assert exit_code == -signal.SIGKILL, printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-6." in printed, printed
    classification.assert_same_run(folder, unbroken[0])
    of_muon = [
        torch.load(path / "checkpoint-9" / "optimizer_1.bin", weights_only=True) for path in (folder, unbroken[0])
    ]
    momenta = [[state["momentum_buffer"] for state in states["state"].values()] for states in of_muon]
    assert len(momenta[0]) > 30 and all(torch.equal(*pair) for pair in zip(*momenta, strict=True))
    assert len(checkpoints.list_checkpoints(folder)) == 2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A configuration of other classes than the data have, and a folder of 8 cats and 6 dogs, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    config = {**SMALL, "image_size": [4, 5], "num_channels": 3, "vocab_size": 16}
    write_config(folder, **config, num_classes=7, class_dropout_prob=0.1)
    draw = np.random.default_rng(0)
    for name, count in (("cat", 8), ("dog", 6)):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 128, (6, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / name / f"{number}.png")
    (folder / "pets" / "dog" / "5.png").write_bytes(b"no picture")
    return folder


def pictures_arguments(pictures, output_dir):
    """2 epochs of 10 pictures in 3 steps, the last of 2 pictures instead of 4."""
    arguments = {
        "train_dir": pictures / "pets",
        "validation_share": 0.2,
        "skip_broken": True,
        "config_name": pictures / "config.json",
        "output_dir": output_dir,
        "max_train_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "ema_decay": 0.5,
        "logging_steps": 1,
        "checkpointing_steps": 2,
    }
    return [f"--{name}={value}" for name, value in arguments.items()]


@pytest.fixture(scope="module")
def of_pictures(pictures, tmp_path_factory):
    """(folder, printed text) of a run on one's own pictures from beginning to end."""
    folder = tmp_path_factory.mktemp("of_pictures") / "run"
    exit_code, printed = train(*pictures_arguments(pictures, folder))
    assert exit_code == 0, printed
    return folder, printed


def test_pictures_of_a_folder_are_learnt_by_class(of_pictures, run_python):
    folder, printed = of_pictures
    assert "1 of 11 pictures cannot be read" in printed and "They are left out." in printed
    lines = read_metrics(folder / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(16), abs=1e-6)  # uniform over 16 levels
    measured = [line["bits_per_dim"] for line in lines if "bits_per_dim" in line]
    assert len(measured) == 2 and measured[1] < measured[0] < 4
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 2 and config["id2label"] == {"0": "cat", "1": "dog"}
    assert config["class_dropout_prob"] == 0.1
    card = (folder / "README.md").read_text()
    assert "Trained by `examples/train_autoregressive_image.py` on the folder `pets`, without" in card
    assert re.search(r"Measured on \d+ pictures held out of the folder `pets`", card)
    for name in ("samples", "completions"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100
    (call,) = re.findall(r"^pictures = (model.generate.*)  #", card, re.MULTILINE)
    code = f"import torch\nfrom transformers import AutoModelForCausalLM\n{classification.lines_that_load(printed)}\n"
    code += f"print(tuple({call}.shape))"
    assert run_python(code).stdout.splitlines()[-1] == "(4, 3, 4, 5)"


@pytest.mark.audit
def test_a_run_on_pictures_of_a_folder_is_killed_and_resumed(of_pictures, pictures, tmp_path):
    folder = tmp_path / "run"
    arguments = [*pictures_arguments(pictures, folder), "--resume_from_checkpoint", "latest"]
    for moment, step in [("line written", 1), ("line written", 4), ("state written", 6)]:
        exit_code, printed = train(*arguments, kill_at=(moment, step))
        assert exit_code == -signal.SIGKILL, printed
    exit_code, printed = train(*arguments, "--validation_share=0.3")
    assert exit_code != 0 and "made with validation_share=0.2, this run has validation_share=0.3" in printed
    exit_code, printed = train(*arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-4." in printed, printed
    classification.assert_same_run(folder, of_pictures[0])


def test_pictures_without_classes_and_a_folder_to_measure_on(pictures, tmp_path):
    arguments = classification.without(pictures_arguments(pictures, tmp_path / "run"), "validation_share", "train_dir")
    arguments += [f"--train_dir={pictures / 'pets' / 'cat'}", f"--validation_dir={tmp_path / 'more'}"]
    (tmp_path / "more").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "more" / "1.png")  # grey, and smaller than the grid
    (tmp_path / "more" / "list.txt").touch()
    exit_code, printed = train(*arguments, "--max_train_steps=1")
    assert exit_code == 0 and "1 files are no pictures by their names" in printed, printed
    assert "bits per dimension on 1 held-out examples: the folder `more`" in printed
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_classes"] is None


def test_broken_pictures_end_a_run_before_its_first_step(pictures, tmp_path):
    exit_code, printed = train(*classification.without(pictures_arguments(pictures, tmp_path / "run"), "skip_broken"))
    assert exit_code != 0 and "5.png does not open as a picture" in printed
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """Of one with the same global batch; without what differs between them: dropout, and which channel is learnt."""
    config = write_config(tmp_path, **{**SMALL, "hidden_dropout_prob": 0.0}, image_size=[3, 4, 5], num_channels=1)
    for name, run, batch_size in (("one", train, 8), ("two", launch_two, 4)):
        exit_code, printed = run(
            *film_arguments(config, tmp_path / name),
            *("--gradient_accumulation_steps=1", f"--per_device_train_batch_size={batch_size}", "--max_train_steps=4"),
        )
        assert exit_code == 0, printed
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 5
    for one, two in zip(*lines, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[1][name], one, atol=1e-3) for name, one in weights[0].items())


def launch_two(*arguments):
    return launch(SCRIPT, arguments)


@pytest.mark.audit
@pytest.mark.slow
def test_digits_are_drawn_by_class_and_judged(tmp_path, run_python):
    folder = tmp_path / "run"
    exit_code, printed = train(
        ROOT / "configuration" / "training" / "digits_autoregressive.yaml",
        f"--config_name={write_config(tmp_path, **DIGITS)}",
        f"--output_dir={folder}",
        f"--classifier={ROOT}",
        *("--num_classified=10", "--max_train_steps=1"),
    )
    assert exit_code == 0, printed
    card = (folder / "README.md").read_text()
    shares = re.findall(r"^ *([\d.]+)%  (of 10 pictures .*)$", printed, re.MULTILINE)
    assert ["guidance_scale=2" in what for _, what in shares] == [False, True]
    for share, what in shares:
        assert f"| {what} | {float(share):.1f}% |" in card
    code = "import torch\nfrom transformers import AutoModelForCausalLM\n" + classification.lines_that_load(printed)
    code += "\nprint(tuple(model.generate(2, class_labels=torch.tensor([3, 7])).shape))"
    assert run_python(code).stdout.splitlines()[-1] == "(2, 1, 28, 28)"


def test_bits_of_an_untrained_model():
    model = AxialForCausalImageModeling(AxialDecoderConfig(**{**DIGITS, "image_size": [2, 3]}))
    batches = [{"input_ids": torch.randint(4, (3, 1, 2, 3)), "class_labels": torch.tensor([1, 2, 3])}] * 2
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    assert train_autoregressive_image.bits_per_dim(Accelerator(cpu=True), model, loader) == pytest.approx(2)


def test_the_average_forgets_the_first_steps_faster():
    layer = nn.Linear(1, 1, bias=False)
    average = AveragedModel(layer, multi_avg_fn=train_autoregressive_image.growing_average(0.25))
    expected = None
    for step, value in enumerate([3.0, 7.0, -2.0, 5.0, 1.0]):
        nn.init.constant_(layer.weight, value)
        average.update_parameters(layer)
        keep = min(0.25, (1 + step) / (10 + step))
        expected = value if expected is None else keep * expected + (1 - keep) * value
        assert average.module.weight.item() == pytest.approx(expected)


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest():
    config = AxialDecoderConfig(**{**SMALL, "num_channels": 3})
    model = AxialForCausalImageModeling(config)
    training = train_autoregressive_image.AutoregressiveTrainingArguments(optimizer="muon", weight_decay=0.5)
    adamw, muon = train_autoregressive_image.make_optimizers(model, training)
    of_muon = {id(weight) for group in muon.param_groups for weight in group["params"]}
    of_adamw = {id(weight): group["weight_decay"] for group in adamw.param_groups for weight in group["params"]}
    assert not of_muon & of_adamw.keys() and len(of_muon) + len(of_adamw) == len(list(model.parameters()))
    for name, weight in model.named_parameters():
        in_block = ".blocks." in name and name.endswith("weight") and "norm" not in name
        assert (id(weight) in of_muon) == in_block, name
        if not in_block:
            assert of_adamw[id(weight)] == (0.5 if weight.ndim > 1 else 0.0), name


def test_a_judge_of_other_classes_is_refused_before_training(monkeypatch, tmp_path):
    AxialConfig(id2label=dict(enumerate("abcdefghij"))).save_pretrained(tmp_path)
    arguments = ["--config_name=digits_autoregressive", "--dataset_name=digits", f"--classifier={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, f"--output_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match=r"has the classes \['a', 'b', .* the model \['0', '1'"):
        train_autoregressive_image.main()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config_name is missing"),
        (["--config_name=digits_autoregressive"], "give either --dataset_name or, .* --train_dir"),
        (["--config_name=digits_autoregressive", "--dataset_name=digits", "--train_dir=x"], "give either"),
        (
            ["--config_name=digits_autoregressive", "--dataset_name=digits", "--validation_dir=x"],
            "goes with --train_dir",
        ),
        (["--config_name=digits_autoregressive", "--dataset_name=digits", "--validation_share=0.5"], "leave it out"),
        (
            ["--config_name=digits_autoregressive", "--train_dir=x", "--validation_dir=y", "--validation_share=0.5"],
            "leave",
        ),
        (
            ["--config_name=digits_autoregressive", "--train_dir=x", "--validation_share=1"],
            r"validation_share must be in",
        ),
        (["--config_name=digits_autoregressive", "--train_dir=x"], "x is not there, or no folder"),
        (["--config_name=video_autoregressive", "--train_dir=PETS"], "pictures have 1 or 3 channels and 2 axes"),
        (["--config_name=digits", "--train_dir=PETS"], "is no model that generates"),
        (
            ["--config_name=digits_autoregressive", "--dataset_name=digits", "--dataloader_num_workers=-1"],
            "num_workers",
        ),
        (["--config_name=digits", "--dataset_name=digits"], "is no model that generates"),
        (["--config_name=colour_autoregressive", "--dataset_name=digits"], "num_channels=3"),
        (["--config_name=digits_autoregressive", "--dataset_name=film"], "3 axes"),
        (["--config_name=digits_autoregressive", "--dataset_name=photographs"], "have no classes"),
        (
            ["--config_name=colour_autoregressive", "--dataset_name=photographs", f"--classifier={ROOT}"],
            "10 classes, the model 0",
        ),
        (["--config_name=digits_autoregressive", "--dataset_name=digits", "--ema_decay=1"], "ema_decay"),
        (["--config_name=digits_autoregressive", "--dataset_name=digits", "--augment_shift=-1"], "augment_shift"),
        (["--config_name=digits_autoregressive", "--dataset_name=digits", "--num_classified=0"], "num_classified"),
        (["--config_name=digits_autoregressive", "--dataset_name=digits", "--guidance_scale=0"], "guidance_scale"),
        (
            ["--config_name=colour_autoregressive", "--dataset_name=photographs", "--guidance_scale=2"],
            "needs a model with class_dropout_prob",
        ),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, pictures, arguments, words):
    arguments = [argument.replace("PETS", str(pictures / "pets")) for argument in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(ValueError, match=words):
        train_autoregressive_image.main()
    assert not list(tmp_path.iterdir())  # before work starts
