"""MetricsLog: no line lost, none doubled, whatever the file looks like after a kill."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest

from modeling_axial.training import MetricsLog, read_metrics, read_units


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write_lines(path, resumed_at, *lines):
    log = MetricsLog(path, resumed_at)
    for line in lines:
        log.write(**line)
    log.close()


def write_steps(path, steps, resumed_at=0):
    log = MetricsLog(path, resumed_at)
    for step in steps:
        log.write(step, loss=1 / 3 + step)
        if step % 4 == 0:
            log.write(step, accuracy=0.5)
    log.close()


def test_lines_are_json_with_every_digit(path):
    write_steps(path, range(1, 5))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert lines[1]["loss"] == 1 / 3 + 2 and lines[4] == {"step": 4, "accuracy": 0.5}


def test_a_line_is_in_the_file_at_once_until_the_log_is_closed(path):
    log = MetricsLog(path)
    log.write(0, loss=2.0)
    assert read_metrics(path) == [{"step": 0, "loss": 2.0}]
    log.close()
    with pytest.raises(ValueError, match="closed file"):
        log.write(1, loss=1.0)


@pytest.mark.parametrize("checkpoint", range(0, 11))
@pytest.mark.parametrize("torn", [b"", b'{"step": 11, "lo', b"\0\0\0", b"\xff\xfe"])
def test_a_resumed_log_equals_the_unbroken_one(tmp_path, path, checkpoint, torn):
    write_steps(path, range(1, 11))
    with open(path, "ab") as file:
        file.write(torn)
    write_steps(path, range(checkpoint + 1, 13), resumed_at=checkpoint)
    write_steps(tmp_path / "unbroken.jsonl", range(1, 13))
    assert path.read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()


def test_a_half_written_line_of_the_kept_step_is_dropped(path):
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    write_lines(path, 2, {"step": 3, "loss": 0.5})
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": 0.5}]


NESTED = b'{"step": 2, "loss": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"


@pytest.mark.parametrize(
    "damaged", [b'{"step": 2, "lo\n', b"\0\0\n", b"[2]\n", b'{"loss": 1}\n', b'{"step": "2"}\n', NESTED]
)
def test_damage_before_the_kept_step_is_an_error_and_changes_nothing(path, damaged):
    content = b'{"step": 1}\n' + damaged + b'{"step": 3}\n'
    path.write_bytes(content)
    with pytest.raises(ValueError, match="line 2 of .*metrics.jsonl is not a JSON object"):
        MetricsLog(path, step=3)
    assert path.read_bytes() == content


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["named pipe", "folder", "link to a device"])
def test_what_is_no_file_is_refused_by_name_and_stays(path, kind):
    make = {"named pipe": os.mkfifo, "folder": os.mkdir, "link to a device": lambda path: path.symlink_to("/dev/null")}
    make[kind](path)
    for opened in (MetricsLog, read_metrics, read_units):
        with pytest.raises(ValueError, match="metrics.jsonl must be a file; remove what is there"):
            opened(path)
    assert os.path.lexists(path)


def test_damage_behind_the_kept_step_is_cut_off(path):
    path.write_bytes(b'{"step": 1}\n{"step": 2}\ngarbage\n')
    write_lines(path, 1)
    assert path.read_bytes() == b'{"step": 1}\n'


def test_the_first_line_says_units_and_stays_when_a_run_goes_on(path):
    assert not path.exists()
    units = {"loss": "nats", "bits_per_dim": "bits"}
    for resumed_at, steps in ((0, range(1, 5)), (2, range(3, 7)), (0, range(1, 3))):
        log = MetricsLog(path, resumed_at, units)
        for step in steps:
            log.write(step, loss=float(step))
        log.close()
        assert read_units(path) == units and path.read_text().count("units") == 1
        assert [line["step"] for line in read_metrics(path)] == list(range(1, steps[-1] + 1))


def test_a_log_without_units_goes_on_without_them(path):
    write_lines(path, 0, {"step": 1, "loss": 2.0})
    assert read_units(path) == {}
    MetricsLog(path, 1, {"loss": "nats"}).close()
    assert read_units(path) == {} and len(read_metrics(path)) == 1
    MetricsLog(path, 0, {"loss": "nats"}).close()
    assert read_units(path) == {"loss": "nats"} and read_metrics(path) == []


def test_infinite_and_undefined_values_come_back(path):
    write_lines(path, 0, {"step": 1, "loss": math.inf, "grad_norm": math.nan})
    (line,) = read_metrics(path)
    assert line["loss"] == math.inf and math.isnan(line["grad_norm"])


def test_steps_do_not_decrease(path):
    log = MetricsLog(path, step=4)
    log.write(5, loss=1.0)
    with pytest.raises(ValueError, match="step=4 comes after step=5"):
        log.write(4, loss=1.0)


def test_every_line_survives_a_kill(path):
    code = (
        "import os, signal, sys\n"
        "from modeling_axial.training.metrics import MetricsLog\n"
        "log = MetricsLog(sys.argv[1])\n"
        "for step in range(1, 101): log.write(step, loss=0.1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 101))


def test_sync_reaches_the_disk(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    log = MetricsLog(path)
    log.write(1, loss=0.1)
    log.sync()
    assert len(synced) == 1
