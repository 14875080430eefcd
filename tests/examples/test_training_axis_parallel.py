"""Training scripts with --axis_parallel_size: the run of a group is that of one process, and as safe from kills."""

import faulthandler
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from examples import train_dense_prediction, train_semantic_segmentation
from examples.training_run import TrainingArguments
from modeling_axial.training import read_metrics
from tests.examples import test_train_autoregressive_image as autoregressive
from tests.examples import test_train_dense_prediction as prediction
from tests.examples import test_train_image_classification as classification
from tests.examples import test_train_semantic_segmentation as segmentation
from tests.examples.test_train_image_classification import CONTEXT, assert_same_run, train_here
from tests.examples.test_train_image_classification_distributed import accelerate_launch, launch

GROUP = "--axis_parallel_size=2"
classification_inputs = classification.inputs
segmentation_inputs = segmentation.inputs
prediction_inputs = prediction.inputs


def train_on_ranks(script, arguments, world_size=2, kill_at=None):
    """(exit codes, all that was printed) of a script on several processes, which are forked as those of `train`."""
    with socket.socket() as free, tempfile.NamedTemporaryFile() as output:
        free.bind(("127.0.0.1", 0))
        environment = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
        free.close()
        ranks = [
            CONTEXT.Process(target=rank_here, args=(environment, rank, script, arguments, kill_at, output.name))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        end = time.monotonic() + 400
        for process in ranks:
            process.join(max(0, end - time.monotonic()))
        hung = [process for process in ranks if process.exitcode is None]
        for process in hung:
            os.kill(process.pid, signal.SIGUSR1)  # print where it stands
            process.join(5)
            process.kill()
        return [process.exitcode for process in ranks], Path(output.name).read_text()


def rank_here(environment, rank, script, arguments, kill_at, output):
    values = environment | {"RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in values.items()})
    faulthandler.register(signal.SIGUSR1)
    train_here(script, list(map(str, arguments)), kill_at if rank == 0 else None, output)


def with_config(arguments, folder, **changes):
    """The arguments of a run, its configuration changed."""
    (given,) = (argument.partition("=")[2] for argument in arguments if argument.startswith("--config_name="))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(Path(given).read_text()) | changes))
    others = [argument for argument in arguments if not argument.startswith("--config_name=")]
    return [*others, f"--config_name={config}"]


def arguments_of_classification(request, folder):
    return classification.pictures_arguments(request.getfixturevalue("classification_inputs"), folder)


def arguments_of_segmentation(request, folder):
    """Volumes in tiles, of the pyramid and with Dice loss, without the peer."""
    arguments = segmentation.volumes_arguments(request.getfixturevalue("segmentation_inputs"), folder)
    return [argument for argument in arguments if not argument.startswith("--peer")]


def arguments_of_prediction(request, folder):
    arguments = prediction.arguments_of(request.getfixturevalue("prediction_inputs"), folder)
    return [argument for argument in arguments if not argument.startswith("--peer")]


def arguments_of_autoregressive(request, folder):
    config = autoregressive.write_config(
        folder.parent, **autoregressive.SMALL, image_size=[3, 4, 5], num_channels=3, channel_order="nested"
    )
    return autoregressive.film_arguments(config, folder)


SCRIPTS = {
    "classification": (classification.SCRIPT, arguments_of_classification),
    "segmentation": (segmentation.SCRIPT, arguments_of_segmentation),
    "prediction": (prediction.SCRIPT, arguments_of_prediction),
    "autoregressive": (autoregressive.SCRIPT, arguments_of_autoregressive),
}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def assert_alike(folder, reference):
    found, expected = (read_metrics(path / "metrics.jsonl") for path in (folder, reference))
    assert len(found) == len(expected) > 3
    for line, expected_line in zip(found, expected, strict=True):
        assert line == pytest.approx(expected_line, rel=1e-3, nan_ok=True)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "classification" else pytest.mark.audit) for name in SCRIPTS]
)
def test_a_group_takes_the_steps_of_one_process(request, tmp_path, name):
    script, arguments_of = SCRIPTS[name]
    one = with_config(arguments_of(request, tmp_path / "one"), tmp_path, **WITHOUT_DROPOUT)
    exit_code, printed = classification.train(*one, script=script)
    assert exit_code == 0, printed
    group = with_config(arguments_of(request, tmp_path / "group"), tmp_path, **WITHOUT_DROPOUT)
    exit_codes, printed = train_on_ranks(script, [*group, GROUP])
    assert exit_codes == [0, 0], printed
    assert_alike(tmp_path / "group", tmp_path / "one")


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_a_killed_group_resumes_bit_for_bit(request, tmp_path):
    """With dropout; killed while it saves."""
    arguments = {
        name: [*arguments_of_classification(request, tmp_path / name), GROUP, "--resume_from_checkpoint=latest"]
        for name in ("unbroken", "killed")
    }
    exit_codes, printed = train_on_ranks(classification.SCRIPT, arguments["unbroken"])
    assert exit_codes == [0, 0], printed
    exit_codes, printed = train_on_ranks(classification.SCRIPT, arguments["killed"], kill_at=("state written", 6))
    assert exit_codes[0] == -signal.SIGKILL and exit_codes[1] != 0, printed
    exit_codes, printed = train_on_ranks(classification.SCRIPT, arguments["killed"])
    assert exit_codes == [0, 0] and "checkpoint-3." in printed, printed
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.audit
@pytest.mark.distributed
@pytest.mark.slow
def test_two_groups_of_two_take_the_steps_of_two_processes(request, tmp_path):
    """By the recipe of the launcher."""
    folders = {name: tmp_path / name for name in ("two", "groups")}
    for name, folder in folders.items():
        arguments = with_config(arguments_of_classification(request, folder), tmp_path, **WITHOUT_DROPOUT)
        if name == "two":
            exit_codes, printed = train_on_ranks(classification.SCRIPT, arguments)
            assert exit_codes == [0, 0], printed
        else:
            launcher = accelerate_launch("axis_parallel", "--main_process_port=0")
            exit_code, printed = launch(classification.SCRIPT, [*arguments, GROUP], launcher)
            assert exit_code == 0, printed
    assert_alike(folders["groups"], folders["two"])


@pytest.mark.distributed
@pytest.mark.slow
def test_three_processes_make_no_groups_of_two(request, tmp_path):
    arguments = [*arguments_of_classification(request, tmp_path / "run"), GROUP]
    exit_codes, printed = train_on_ranks(classification.SCRIPT, arguments, world_size=3)
    assert exit_codes == [1, 1, 1], printed
    assert printed.count("axis_parallel_size=2 must divide the number of processes, 3") >= 3


@pytest.mark.distributed
@pytest.mark.slow
def test_an_axis_that_is_too_short(request, tmp_path):
    arguments = with_config(arguments_of_classification(request, tmp_path / "run"), tmp_path, image_size=[2, 5])
    exit_codes, printed = train_on_ranks(classification.SCRIPT, [*arguments, GROUP])
    assert exit_codes == [1, 1], printed
    assert "axis_parallel_size=2 must be at most 1, the cells along the longest axis of the grid (1, 1)" in printed


def test_no_processes_make_no_group():
    with pytest.raises(ValueError, match="axis_parallel_size must be at least 1, got 0"):
        TrainingArguments(axis_parallel_size=0)


@pytest.mark.parametrize("module", [train_semantic_segmentation, train_dense_prediction])
def test_a_peer_is_not_split(monkeypatch, tmp_path, module):
    """Refused before any data are read."""
    data = {"train_semantic_segmentation": "nuclei2d", "train_dense_prediction": "sst"}
    name = module.__name__.rpartition(".")[2]
    arguments = ["--config_name=none", f"--dataset_name={data[name]}", "--peer=unet", GROUP]
    monkeypatch.setattr(sys, "argv", [name, *arguments, f"--output_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match="--peer unet is trained by whole models, not of axis_parallel_size=2"):
        module.main()
    assert not (tmp_path / "run").exists()
