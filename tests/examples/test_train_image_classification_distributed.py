"""The training script on two processes: the same run as on one, and as safe from kills."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_multi_gpu_env
from transformers import get_cosine_schedule_with_warmup

from configuration import load_preset
from modeling_axial import AxialModel
from modeling_axial.axial_layer import AxialLayer
from modeling_axial.training import read_metrics
from modeling_axial.training.checkpoints import checkpoint_step, newest_valid_checkpoint
from tests.conftest import ROOT
from tests.examples.test_train_image_classification import (
    SCRIPT,
    assert_same_run,
    inputs,
    pictures_arguments,
    train,
    without,
)

__all__ = ["inputs"]  # a fixture

LONGER = ["--num_train_epochs=8", "--num_warmup_steps=5"]  # two steps each
if sys.version_info < (3, 11, 8):  # where a worker that is forked beside the threads of gloo may stand still, gh-112275
    LONGER.append("--dataloader_num_workers=0")


def accelerate_launch(config, *options):
    path = ROOT / "configuration" / "accelerate" / f"{config}.yaml"
    return [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={path}", *options]


TWO_PROCESSES = accelerate_launch("two_cpu_processes", "--main_process_port=0")


def launch(script, arguments, launcher=TWO_PROCESSES):
    """(exit code, all that was printed)"""
    done = subprocess.run([*launcher, script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def with_trap(folder, trap):
    """The training script with `set_trap(trap)` on every rank."""
    script = folder / "trapped.py"
    script.write_text(
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from tests.examples.test_train_image_classification import SCRIPT, set_trap\n"
        f"set_trap({trap})\n"
        "runpy.run_path(str(SCRIPT), run_name='__main__')\n"
    )
    return script


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    exit_code, printed = launch(SCRIPT, [*pictures_arguments(inputs, folder), *LONGER])
    assert exit_code == 0, printed
    return folder


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(inputs, tmp_path):
    """Of one with the same global batch; without dropout, whose masks differ."""
    config = tmp_path / "config.json"
    config.write_text((inputs / "pictures.json").read_text().replace("0.1", "0.0"))
    losses = {}
    for name, batch_size in {"one": 4, "two": 2}.items():
        arguments = [
            *without(pictures_arguments(inputs, tmp_path / name), "config_name", "per_device_train_batch_size"),
            f"--config_name={config}",
            f"--per_device_train_batch_size={batch_size}",
            "--learning_rate=0.01",
            "--num_warmup_steps=2",
        ]
        exit_code, printed = train(*arguments) if name == "one" else launch(SCRIPT, arguments)
        assert exit_code == 0, printed
        losses[name] = read_metrics(tmp_path / name / "metrics.jsonl")
    assert len(losses["one"]) == 9  # two steps an epoch, of 12 and 8 pictures
    for one, two in zip(losses["one"], losses["two"], strict=True):
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_the_learning_rate_depends_on_the_step_and_not_on_the_number_of_processes(unbroken):
    rates = [line["learning_rate"] for line in read_metrics(unbroken / "metrics.jsonl") if "learning_rate" in line]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    factor = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=16).lr_lambdas[0]
    assert rates == [1e-3 * factor(step) for step in range(1, 17)]
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_killed_processes_resume_bit_for_bit(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*pictures_arguments(inputs, folder), *LONGER, "--resume_from_checkpoint=latest"]
    exit_code, printed = launch(with_trap(tmp_path, "'state written', 6"), arguments)
    assert exit_code == 1 and "SIGKILL" in printed, printed
    assert sorted(path.name for path in folder.glob("*checkpoint*"))[0] == "checkpoint-3"
    assert list(folder.glob("unfinished-checkpoint-*"))
    exit_code, printed = launch(SCRIPT, arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-3." in printed, printed
    assert_same_run(folder, unbroken)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.audit
def test_sigterm_to_one_process_stops_and_saves_both(unbroken, inputs, tmp_path):
    folder = tmp_path / "run"
    arguments = [*pictures_arguments(inputs, folder), *LONGER, "--resume_from_checkpoint=latest"]
    exit_code, printed = launch(with_trap(tmp_path, "'line written', 5, 15"), arguments)  # only the first writes lines
    assert exit_code == 1 and "Stopped as asked, with step 6 saved" in printed, printed
    exit_code, printed = launch(SCRIPT, arguments)
    assert exit_code == 0 and f"Resuming from {folder}/checkpoint-6." in printed, printed
    assert_same_run(folder, unbroken)


@pytest.mark.distributed
@pytest.mark.slow
def test_ctrl_c_saves_both(inputs, tmp_path):
    """The terminal sends it to the launcher, which passes it on to the processes and their workers."""
    folder = tmp_path / "run"
    arguments = [*pictures_arguments(inputs, folder), "--max_train_steps=10000", "--checkpointing_steps=10000"]
    with open(tmp_path / "printed", "w+") as printed:
        run = subprocess.Popen(
            [*TWO_PROCESSES, SCRIPT, *arguments], stdout=printed, stderr=printed, start_new_session=True
        )
        while not (folder / "metrics.jsonl").exists() or len(read_metrics(folder / "metrics.jsonl")) < 3:
            assert run.poll() is None, printed.read()
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(300) != 0
        printed.seek(0)
        assert "Stopped as asked, with step " in (text := printed.read()), text
    checkpoint = newest_valid_checkpoint(folder)
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == checkpoint_step(checkpoint)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.audit
def test_torchrun_makes_the_same_run(unbroken, inputs, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    exit_code, printed = launch(SCRIPT, [*pictures_arguments(inputs, tmp_path / "run"), *LONGER], torchrun)
    assert exit_code == 0, printed
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.audit
@pytest.mark.slow
def test_bf16_is_taken_from_accelerate_launch(inputs, tmp_path):
    launcher = accelerate_launch("one_cpu", "--mixed_precision=bf16")
    losses = []
    for name, run in {"float32": train, "bf16": lambda *arguments: launch(SCRIPT, arguments, launcher)}.items():
        exit_code, printed = run(*pictures_arguments(inputs, tmp_path / name), "--max_train_steps=1")
        assert exit_code == 0, printed
        losses.append(read_metrics(tmp_path / name / "metrics.jsonl")[0]["loss"])
    assert 1e-6 < abs(losses[1] / losses[0] - 1) < 2e-2


@pytest.mark.parametrize("path", sorted((ROOT / "configuration" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_launch_configurations_are_read(path):
    config = load_config_from_file(str(path))
    expected = {
        "one_cpu": ("NO", 1),
        "two_cpu_processes": ("MULTI_GPU", 2),
        "axis_parallel": ("MULTI_GPU", 4),
        "multi_gpu": ("MULTI_GPU", 4),
        "fsdp2": ("FSDP", 4),
    }
    assert (config.distributed_type.value, config.num_processes) == expected[path.stem]
    assert path.stem != "fsdp2" or config.fsdp_config["fsdp_version"] == 2
    assert path.stem in ("one_cpu", "two_cpu_processes", "axis_parallel") or "Not run yet" in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "configuration" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_launch_configurations_pass_the_checks_of_the_launcher(path, monkeypatch):
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([f"--config_file={path}", "script.py"]))
    assert arguments.mixed_precision == ("bf16" if path.stem in ("multi_gpu", "fsdp2") else "no")
    if path.stem == "fsdp2":
        for name, value in prepare_multi_gpu_env(arguments).items():
            monkeypatch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        plugin.set_auto_wrap_policy(AxialModel(load_preset("digits")))
        assert plugin.fsdp_version == 2 and plugin.auto_wrap_policy.keywords == {"transformer_layer_cls": {AxialLayer}}


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_processes_that_meet_damaged_pictures_stop_together(inputs, tmp_path):
    """Each reads every other picture; all tell what any has found."""
    for part in ("train", "validation"):
        shutil.copytree(inputs / part, tmp_path / part)
    damaged = [tmp_path / "train" / "blue" / f"{number}.png" for number in (2, 3)]
    for path in damaged:
        path.write_bytes(b"no picture")
    arguments = [*pictures_arguments(tmp_path, tmp_path / "run"), f"--config_name={inputs / 'pictures.json'}"]
    exit_code, printed = launch(SCRIPT, arguments)
    assert exit_code == 1, printed
    messages = [line for line in printed.splitlines() if "ValueError: 2 of 20 pictures cannot be read" in line]
    assert len(messages) >= 2 and all(str(path) in line for path in damaged for line in messages), printed
