"""Training scripts with --axis_parallel_size: the run of a group is that of one process, and as safe from kills."""

import json
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from modeling_axial.training import read_metrics
from tests.examples import test_train_autoregressive_image as autoregressive
from tests.examples import test_train_dense_prediction as prediction
from tests.examples import test_train_image_classification as classification
from tests.examples import test_train_semantic_segmentation as segmentation
from tests.examples.test_train_image_classification import CONTEXT, assert_same_run, make_inputs, train_here, without
from tests.examples.test_train_image_classification_distributed import accelerate_launch, launch

classification_inputs = classification.inputs
segmentation_inputs = segmentation.inputs


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
            if process.exitcode is None:
                process.kill()
        return [process.exitcode for process in ranks], Path(output.name).read_text()


def rank_here(environment, rank, script, arguments, kill_at, output):
    values = environment | {"RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in values.items()})
    train_here(script, list(map(str, arguments)), kill_at if rank == 1 else None, output)


def pictures_arguments(inputs, folder, *others, **changes):
    """Of classification; `changes` of the configuration, else it has dropout."""
    config = folder.parent / f"{folder.name}.json"
    config.write_text(json.dumps(json.loads((inputs / "pictures.json").read_text()) | changes))
    return [
        *without(classification.pictures_arguments(inputs, folder), "config_name"),
        f"--config_name={config}",
        *others,
    ]


PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GROUP = "--axis_parallel_size=2"


def assert_alike(folder, reference):
    found, expected = (read_metrics(path / "metrics.jsonl") for path in (folder, reference))
    assert len(found) == len(expected) > 3
    for line, expected_line in zip(found, expected, strict=True):
        assert line == pytest.approx(expected_line, rel=1e-4, nan_ok=True)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_group_takes_the_steps_of_one_process(classification_inputs, tmp_path):
    for name in ("one", "group"):
        arguments = pictures_arguments(classification_inputs, tmp_path / name, "--learning_rate=0.01", **PLAIN)
        if name == "one":
            exit_code, printed = classification.train(*arguments)
            assert exit_code == 0, printed
        else:
            exit_codes, printed = train_on_ranks(classification.SCRIPT, [*arguments, GROUP])
            assert exit_codes == [0, 0], printed
    assert_alike(tmp_path / "group", tmp_path / "one")


@pytest.mark.distributed
@pytest.mark.slow
def test_a_killed_group_resumes_bit_for_bit(classification_inputs, tmp_path):
    """With dropout; the second of the two is killed, right after it has taken part in saving."""
    arguments = {
        name: pictures_arguments(classification_inputs, tmp_path / name, GROUP, "--resume_from_checkpoint=latest")
        for name in ("unbroken", "killed")
    }
    assert train_on_ranks(classification.SCRIPT, arguments["unbroken"])[0] == [0, 0]
    exit_codes, printed = train_on_ranks(classification.SCRIPT, arguments["killed"], kill_at=("step taken", 5))
    assert exit_codes[1] == -signal.SIGKILL and exit_codes[0] != 0, printed
    exit_codes, printed = train_on_ranks(classification.SCRIPT, arguments["killed"])
    assert exit_codes == [0, 0] and "checkpoint-3." in printed, printed
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")
