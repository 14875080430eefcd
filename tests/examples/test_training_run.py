"""What the training scripts share, in one process with a model of three weights; the scripts are run in their tests."""

import argparse
import importlib
import io
import json
import math
import os
import re
import sys
from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SchedulerType, get_scheduler
from transformers.utils.logging import enable_progress_bar

from examples import train_autoregressive_image, train_image_classification, training_run
from examples.training_run import RunArguments, TrainingArguments, TrainingRun
from modeling_axial.training import parse_arguments, read_metrics
from tests.conftest import ROOT

SCRIPTS_ARGUMENTS = [
    train_image_classification.ClassificationTrainingArguments,
    train_autoregressive_image.AutoregressiveTrainingArguments,
]
SCRIPTS = [path.stem for path in sorted((ROOT / "examples").glob("*train_*.py"))]
SCHEDULE_KWARGS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.25},
    "cosine_warmup_with_min_lr": {"min_lr": 0.125, "warmup_lr_rate": 0.5},
    "warmup_stable_decay": {"num_decay_steps": 2},
    "polynomial": {"lr_end": 0.125, "power": 2.0},
    "cosine_with_restarts": {"num_cycles": 2},
}
FOLLOW_A_METRIC = {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_how_data_of_your_own_are_given(monkeypatch, capsys, script):
    module = importlib.import_module(f"examples.{script}")
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0 and module.__doc__.strip() in capsys.readouterr().out


EACH_HAS = {"model", "data", "training", "evaluation", "hardware", "results", "logging", "hub"}
SOME_HAVE = {"task", "augmentation", "comparison"}


@pytest.fixture
def parser(monkeypatch, script):
    """The parser of a script, taken where it is about to print its help."""
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"examples.{script}").main()
    return parsers[0]


@pytest.mark.parametrize("script", [*SCRIPTS, "predict", "sample", "curves"])
def test_help_is_in_sentences(parser):
    for action in parser._actions[1:]:  # behind --help
        assert re.fullmatch(r"[A-Z].*[^,]\.", action.help), (action.dest, action.help)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_each_argument_once_below_its_subject(parser):
    groups = {group.title: group._group_actions for group in parser._action_groups if group._group_actions}
    general = groups.pop("options")
    assert [action.dest for action in general] == ["help"]
    assert set(groups) >= EACH_HAS and set(groups) <= EACH_HAS | SOME_HAVE
    text = parser.format_help().partition(parser.description)[2]
    for action in sum(groups.values(), []):
        assert len(re.findall(rf"^  --{action.dest}\b", text, re.MULTILINE)) == 1
        assert "_" not in action.dest or f"--{action.dest.replace('_', '-')} " not in text


@pytest.fixture
def train(tmp_path, monkeypatch):
    """
    train(name of a folder, resume_from_checkpoint, more RunArguments, **TrainingArguments) -> (weights before and after
    each step, lines of metrics.jsonl) of plain gradient descent: 12 examples, 4 a step.
    """
    monkeypatch.setattr(training_run, "end_processes", lambda accelerator: None)  # this process goes on

    def train(name, resume_from_checkpoint=None, run=None, **arguments):
        arguments = {"per_device_train_batch_size": 4, "learning_rate": 0.5, "seed": 1, **arguments}
        run = {"logging_steps": 1, "checkpointing_steps": "1"} | (run or {})
        where = RunArguments(str(tmp_path / name), resume_from_checkpoint=resume_from_checkpoint, **run)
        training = TrainingArguments(**arguments)
        run = TrainingRun(training, where)
        try:
            model = torch.nn.Linear(3, 1, bias=False)
            model.config = SimpleNamespace(to_dict=dict)
            generator = torch.Generator().manual_seed(2)
            inputs = torch.randn(12, 3, generator=generator)
            run.load(torch.utils.data.TensorDataset(inputs, inputs @ torch.tensor([[3.0], [-2.0], [5.0]])))
            weights = []

            def batch_loss(model, batch):
                if not weights:
                    weights.append(model.weight.detach().clone())
                return (model(batch[0]) - batch[1]).square().mean(), len(batch[0])

            optimizer = torch.optim.SGD(model.parameters(), lr=training.learning_rate)
            run.fit(
                model,
                [optimizer],
                batch_loss,
                evaluate=lambda model: {"accuracy": 0.5},
                after_step=lambda model: weights.append(model.weight.detach().clone()),
            )
        finally:
            run.close()
        return weights, read_metrics(tmp_path / name / "metrics.jsonl")

    yield train
    enable_progress_bar()


def step_sizes(weights):
    return [(after - before).norm().item() for before, after in zip(weights, weights[1:], strict=False)]


def logged(lines, name):
    return [line[name] for line in lines if name in line]


# Gradients


def test_gradients_are_clipped_to_the_norm(train):
    weights, lines = train("run", max_train_steps=5, max_grad_norm=0.01, lr_scheduler_type="constant")
    assert min(logged(lines, "grad_norm")) > 1
    assert step_sizes(weights) == pytest.approx([0.5 * 0.01] * 5, rel=1e-3)


@pytest.mark.parametrize("max_grad_norm", [0.0, math.inf, 1e6])
def test_gradients_are_left_alone(train, max_grad_norm):
    weights, lines = train("run", max_train_steps=5, max_grad_norm=max_grad_norm, lr_scheduler_type="constant")
    assert step_sizes(weights) == pytest.approx([0.5 * norm for norm in logged(lines, "grad_norm")], rel=1e-4)


# Schedules


def of_transformers(name, steps, num_warmup_steps=2, learning_rate=0.5, **arguments):
    """The learning rates of the steps, and after the last one."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    schedule = get_scheduler(name, optimizer, num_warmup_steps, steps, arguments)
    rates = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates += schedule.get_last_lr()
    return rates


@pytest.mark.parametrize("name", sorted({schedule.value for schedule in SchedulerType} - FOLLOW_A_METRIC))
def test_every_schedule_of_the_step_trains(train, name):
    arguments, warmup = SCHEDULE_KWARGS.get(name), 0 if name == "constant" else 2
    weights, lines = train(
        "run",
        max_train_steps=7,
        max_grad_norm=0.0,
        lr_scheduler_type=name,
        num_warmup_steps=warmup,
        lr_scheduler_kwargs=arguments and json.dumps(arguments),
    )
    expected = of_transformers(name, 7, warmup, **arguments or {})
    assert logged(lines, "learning_rate") == expected[1:]
    taken = [size / norm for size, norm in zip(step_sizes(weights), logged(lines, "grad_norm"), strict=True)]
    assert taken == pytest.approx(expected[:-1], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("script", SCRIPTS_ARGUMENTS)
@pytest.mark.parametrize(
    "arguments, message",
    [
        *(
            ({"lr_scheduler_type": name}, f"lr_scheduler_type must be one of .*linear.*{name}")
            for name in sorted(FOLLOW_A_METRIC)
        ),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type must be one of constant, .*, got 'cosin'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type=cosine_with_min_lr: One of min_lr or"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type=warmup_stable_decay: .*num_decay_steps"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "lr_end .* must be smaller than initial lr"),
        ({"lr_scheduler_type": "constant", "num_warmup_steps": 5}, "take constant_with_warmup"),
        ({"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": "{}"}, "takes no lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": '{"min_lr": 0.1}'}, 'lr_scheduler_kwargs={"min_lr": 0.1} does not fit .*=cosine: '),
        ({"lr_scheduler_kwargs": "min_lr=0.1"}, "lr_scheduler_kwargs=min_lr=0.1 does not fit .*Expecting value"),
        ({"lr_scheduler_kwargs": "[1]"}, "lr_scheduler_kwargs="),
        ({"lr_scheduler_kwargs": '{"last_epoch": 3}'}, "lr_scheduler_kwargs="),
        ({"lr_scheduler_kwargs": '{"num_cycles": NaN}'}, "lr_scheduler_kwargs="),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"lr_end": -1}'},
            "the learning rate is multiplied by -",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"power": -1}'},
            "lr_scheduler_type=polynomial",
        ),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_work_starts(script, arguments, message):
    with pytest.raises(ValueError, match=message):
        script(**arguments)


# Values that would run to the end and mean nothing


@pytest.mark.parametrize("script", SCRIPTS_ARGUMENTS)
@pytest.mark.parametrize(
    "name, values",
    {
        "learning_rate": [-1e-3, math.nan, math.inf],
        "weight_decay": [-0.1, math.nan, math.inf],
        "max_grad_norm": [-1.0, math.nan, -math.inf],
        "num_warmup_steps": [-1],
        "num_train_epochs": [0],
        "max_train_steps": [0, -1],
        "per_device_train_batch_size": [0],
        "gradient_accumulation_steps": [0],
        "seed": [-1, 2**31],
    }.items(),
)
def test_training_values_are_checked_by_name(script, name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be "):
            script(**{name: value})
    script(**{name: {"max_grad_norm": math.inf, "seed": 2**31 - 1}.get(name, 1)})


@pytest.mark.parametrize("name", ["per_device_eval_batch_size", "logging_steps", "checkpoints_total_limit"])
def test_run_values_are_checked_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        RunArguments(**{name: 0})


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, -1.0])
def test_other_values_of_the_scripts_are_checked_by_name(value):
    generating = {"config_name": "digits_autoregressive", "dataset_name": "digits"}
    with pytest.raises(ValueError, match="guidance_scale must be finite and at least 1"):
        train_autoregressive_image.DataArguments(**generating, guidance_scale=value)
    with pytest.raises(ValueError, match="dataloader_num_workers must be at least 0, got -1"):
        train_image_classification.DataArguments(dataloader_num_workers=-1)


def test_a_home_folder_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    classes = [train_image_classification.ModelArguments, train_image_classification.DataArguments, RunArguments]
    text = {"output_dir", "train_dir", "validation_dir", "dataset_name", "model_name_or_path", "config_name"}
    text |= {"resume_from_checkpoint"}
    assert text <= {field.name for each in classes for field in fields(each)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{name}: ~/{name}\n" for name in text))
    for argv in (["~/recipe.yaml"], [f"--{name}=~/{name}" for name in text]):
        instances = parse_arguments(*classes, argv=argv)
        given = {name: value for instance in instances for name, value in vars(instance).items() if name in text}
        assert given == {name: str(tmp_path / name) for name in text}


# More steps than were planned


@pytest.mark.parametrize("more", [{"max_train_steps": 9}, {"num_train_epochs": 3}])
def test_a_finished_run_goes_on_with_the_schedule_of_its_new_length(train, capsys, more):
    options = {"lr_scheduler_type": "linear", "num_warmup_steps": 2, "max_grad_norm": 0.0, "learning_rate": 0.25}
    train("run", max_train_steps=4, **options)
    capsys.readouterr()
    weights, lines = train("run", "latest", **more, **options)
    short, long = (of_transformers("linear", steps, learning_rate=0.25) for steps in (4, 9))
    assert logged(lines, "learning_rate") == short[1:5] + long[5:]
    norms = logged(lines, "grad_norm")[4:]
    taken = [size / norm for size, norm in zip(step_sizes(weights), norms, strict=True)]
    assert taken == pytest.approx(long[4:9], rel=1e-3)
    assert (
        f"The schedule is now that of 9 steps: after step 4 the learning rate is {long[4]:.3g} instead of 0."
        in capsys.readouterr().out
    )
    assert [line["step"] for line in lines if "accuracy" in line] == [3, 4, 6, 9]


def test_an_extended_run_with_a_constant_rate_is_the_unbroken_one(train, capsys):
    whole, _ = train("whole", max_train_steps=7, lr_scheduler_type="constant")
    train("run", max_train_steps=4, lr_scheduler_type="constant")
    capsys.readouterr()
    rest, _ = train("run", "latest", max_train_steps=7, lr_scheduler_type="constant")
    assert len(rest) == 4 and all(torch.equal(*pair) for pair in zip(rest, whole[4:], strict=True))
    assert "The schedule is now" not in capsys.readouterr().out


def test_fewer_steps_than_are_done_are_refused_and_other_arguments_stay_fixed(train, capsys):
    train("run", max_train_steps=4)
    with pytest.raises(ValueError, match="checkpoint-4 is behind the last of 2 steps: raise max_train_steps or"):
        train("run", "latest", max_train_steps=2)
    with pytest.raises(ValueError, match="made with learning_rate=0.5, this run has learning_rate=0.25"):
        train("run", "latest", max_train_steps=8, learning_rate=0.25)
    weights, _ = train("run", "latest", max_train_steps=4)
    assert weights == [] and "The schedule is now" not in capsys.readouterr().out


# What is shown


@pytest.mark.parametrize("deterministic", [False, True])
def test_only_deterministic_algorithms_where_they_are_asked_for(train, monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def step(optimizer, closure=None):
        seen.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    try:
        train("run", run={"deterministic": deterministic}, max_train_steps=2)
        assert seen == [deterministic] * 2 and ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
    finally:
        torch.use_deterministic_algorithms(False)


class ReadNumbers(TorchDispatchMode):
    """Counts how often Python reads a number of a tensor, for which it waits until a GPU has computed it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_numbers_are_read_where_a_step_logs_or_saves_alone(train, monkeypatch):
    before, plain = [], torch.optim.SGD.step
    with ReadNumbers() as numbers:

        def step(optimizer, closure=None):
            before.append(numbers.count)
            return plain(optimizer, closure)

        monkeypatch.setattr(torch.optim.SGD, "step", step)
        run = {"logging_steps": 6, "checkpointing_steps": "4"}
        train("run", run=run, max_train_steps=8, per_device_train_batch_size=1)
    read = [after > earlier for earlier, after in zip(before, before[1:], strict=False)]  # after steps 1, 2, ..., 7
    assert read == [False, False, False, True, False, True, False]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("load", ["load", "load_validation"])
def test_batches_come_to_a_gpu_from_pinned_memory_without_waiting(monkeypatch, load, device):
    loaders = []
    monkeypatch.setattr(training_run, "prepare_data_loader", lambda *args, **options: loaders.append((*args, options)))
    run = TrainingRun.__new__(TrainingRun)
    run.training, run.run = TrainingArguments(), RunArguments()
    run.accelerator = SimpleNamespace(device=torch.device(device), share=(0, 1))
    getattr(run, load)(torch.utils.data.TensorDataset(torch.ones(8, 1)), num_workers=2)
    (loader, *_, options) = loaders[0]
    assert loader.pin_memory == (device == "cuda") and options["put_on_device"] and options["non_blocking"]
    assert not loader.persistent_workers  # whose copies of the data, and generators, would be those of the epoch before


def test_a_checkpoint_of_before_an_argument_has_its_default(train, monkeypatch):
    def without_decay(arguments):
        return {name: value for name, value in asdict(arguments).items() if name != "weight_decay"}

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "asdict", without_decay)
        train("run", max_train_steps=4, weight_decay=0.05)  # the default
    with pytest.raises(ValueError, match="made with weight_decay=0.05, this run has weight_decay=0.5"):
        train("run", "latest", max_train_steps=7, weight_decay=0.5)
    _, lines = train("run", "latest", max_train_steps=7, weight_decay=0.05)
    assert lines[-1]["step"] == 7


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("batch_size", "steps"), [(4, "6 of 4 examples each"), (64, "2 of 12 examples each")])
def test_a_step_has_no_more_examples_than_an_epoch(tmp_path, monkeypatch, batch_size, steps):
    monkeypatch.setattr(training_run, "opening_lines", lambda *said: said[-1:])
    training = TrainingArguments(per_device_train_batch_size=batch_size, num_train_epochs=2)
    run, printed = TrainingRun(training, RunArguments(str(tmp_path))), []
    try:
        run.load(torch.utils.data.TensorDataset(torch.zeros(12, 3)))
        monkeypatch.setattr(run.accelerator, "print", lambda *lines, **_: printed.extend(lines))
        run.introduce("many", "few", [], torch.nn.Identity())
    finally:
        run.close()
    assert printed[0].startswith(steps)


def test_lines_without_a_terminal_and_a_bar_on_one(train, capsys, monkeypatch):
    train("lines", max_train_steps=4)
    printed, errors = capsys.readouterr()
    lines = [line for line in printed.splitlines() if line.startswith("step ")]
    assert len(lines) == 6 and lines[1].startswith("step 2 of 4: loss=") and ", learning_rate=0.25, grad" in lines[1]
    assert lines[3] == "step 3 of 4: epoch=1, accuracy=0.5" and "%|" not in errors
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    train("bar", max_train_steps=4)
    assert "4/4" in terminal.getvalue() and "step 2" not in capsys.readouterr().out
