"""Checkpoints are complete or absent: after a kill, damage or a failing disk the newest good one loads, or an error."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from modeling_axial.training import find_checkpoint, load_state, lock_folder, save_state
from modeling_axial.training.checkpoints import (
    _fsync,
    commit_checkpoint,
    list_checkpoints,
    newest_valid_checkpoint,
    stage_checkpoint,
    verify_checkpoint,
)


def content(step):
    """What the files of the checkpoint of a step hold, one of them in a subfolder, one empty."""
    return {
        "model.safetensors": random.Random(step).randbytes(1000),
        "optimizer.bin": random.Random(-step - 1).randbytes(3000),
        "shards/part_0.bin": str(step).encode() * 10,
        "empty": b"",
    }


def save(folder, step, total_limit=None):
    staged = stage_checkpoint(folder)
    for name, data in content(step).items():
        (staged / name).parent.mkdir(exist_ok=True)
        (staged / name).write_bytes(data)
    return commit_checkpoint(staged, step, total_limit)


def newest_step(folder):
    """The step of the checkpoint that loads, or None; fails if what loads is not exactly what was saved."""
    checkpoint = newest_valid_checkpoint(folder)
    if checkpoint is None:
        return None
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    read = {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    del read["manifest.json"]
    assert read == content(step)
    return step


def steps(folder):
    return [int(path.name.removeprefix("checkpoint-")) for path in list_checkpoints(folder)]


# Saving


def test_a_checkpoint_lists_its_files(tmp_path):
    checkpoint = save(tmp_path, 5)
    assert checkpoint == tmp_path / "checkpoint-5"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["step"] == 5
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content(5).items()
    }
    assert os.listdir(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize("total_limit, kept", [(None, [3, 5, 9, 10, 100]), (2, [10, 100]), (1, [100]), (7, None)])
def test_the_earliest_are_removed_by_number_not_by_name(tmp_path, total_limit, kept):
    for step in (3, 5, 9, 10, 100):
        save(tmp_path, step, total_limit)
    assert steps(tmp_path) == (kept or [3, 5, 9, 10, 100])
    assert newest_step(tmp_path) == 100


@pytest.mark.parametrize("total_limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path, total_limit):
    with pytest.raises(ValueError, match=f"total_limit must be at least 1, or None for no limit, got {total_limit}"):
        save(tmp_path, 1, total_limit)


def test_only_checkpoints_are_touched(tmp_path):
    others = ["checkpoint-best", "checkpoint-05", "checkpoint-7.tmp", "checkpoint-", "metrics.jsonl", "my-checkpoint-3"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-2").write_text("a file")
    for step in (1, 3, 4):
        save(tmp_path, step, total_limit=1)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "checkpoint-2", "checkpoint-4"])


def test_a_good_checkpoint_is_not_overwritten(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(ValueError, match="checkpoint-5 is there already and complete"):
        save(tmp_path, 5)
    assert newest_step(tmp_path) == 5


def test_everything_is_on_the_disk_before_the_name_and_the_name_before_the_removal(tmp_path, monkeypatch):
    save(tmp_path, 1)
    events, descriptors = [], {}
    real_open, real_fsync, real_rename, real_rmtree = os.open, os.fsync, os.rename, shutil.rmtree

    def spy_open(path, *arguments, **keywords):
        descriptor = real_open(path, *arguments, **keywords)
        descriptors[descriptor] = Path(path)
        return descriptor

    def spy_fsync(descriptor):
        events.append(("fsync", descriptors[descriptor].name))
        real_fsync(descriptor)

    def spy_rename(source, target):
        events.append(("rename", Path(target).name))
        real_rename(source, target)

    def spy_rmtree(path):
        events.append(("rmtree", Path(path).name))
        real_rmtree(path)

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    monkeypatch.setattr(shutil, "rmtree", spy_rmtree)
    save(tmp_path, 2, total_limit=1)

    staged = f"unfinished-checkpoint-{os.getpid()}"
    named = events.index(("rename", "checkpoint-2"))
    files = ["empty", "model.safetensors", "optimizer.bin", "part_0.bin", "shards"]
    assert sorted(events[: named - 2]) == sorted(("fsync", name) for name in files)
    assert events[named - 2 : named] == [("fsync", "manifest.json"), ("fsync", staged)]
    assert events[named + 1 :] == [("fsync", tmp_path.name), ("rename", staged), ("rmtree", staged)]


# Kills and failures


def file_system_events(action):
    """Calls `action` and counts what it asks of the file system."""
    seen = []

    def note(event, arguments):
        if note.on and is_file_system(event):
            seen.append(event)

    note.on = True
    sys.addaudithook(note)  # cannot be removed again, so it is switched off
    try:
        action()
    finally:
        note.on = False
    return len(seen)


def is_file_system(event):
    return event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def killed_at(event_number, action):
    """Calls `action` in a fork that SIGKILL strikes right before its n-th file system event. Whether it struck."""
    child = os.fork()
    if child == 0:
        count = 0

        def strike(event, arguments):
            nonlocal count
            if is_file_system(event):
                count += 1
                if count == event_number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(strike)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # the fork only writes files
@pytest.mark.parametrize("total_limit", [None, 1, 2])
def test_a_kill_anywhere_in_a_save_leaves_the_old_or_the_new_checkpoint(tmp_path, total_limit):
    template, folder = tmp_path / "template", tmp_path / "run"
    template.mkdir()
    for step in (1, 2, 3):
        save(template, step, total_limit)

    def prepare(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)

    prepare(folder)
    number_of_events = file_system_events(lambda: save(folder, 4, total_limit))
    assert number_of_events > 15
    found = Counter()
    for event_number in range(1, number_of_events + 1):
        prepare(folder)
        assert killed_at(event_number, lambda: save(folder, 4, total_limit)), event_number
        step = newest_step(folder)
        found[step] += 1
        # The next save, or the same one again, works and leaves nothing behind.
        save(folder, step + 1, total_limit)
        assert newest_step(folder) == step + 1
        assert sorted(os.listdir(folder)) == sorted(path.name for path in list_checkpoints(folder))
        assert total_limit is None or len(list_checkpoints(folder)) == total_limit
    assert set(found) == {3, 4}, found


def test_a_kill_inside_the_first_save_leaves_no_checkpoint(tmp_path):
    staged = stage_checkpoint(tmp_path)
    (staged / "model.safetensors").write_bytes(b"half")
    assert newest_step(tmp_path) is None
    save(tmp_path, 1)
    assert os.listdir(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("function", ["open", "fsync", "rename", "mkdir"])
def test_a_failing_disk_is_an_error_and_keeps_the_old_checkpoint(tmp_path, monkeypatch, function):
    save(tmp_path, 1)
    real, calls = getattr(os, function), Counter()

    def fail_later(fails_at):
        def failing(*arguments, **keywords):
            calls[fails_at] += 1
            if calls[fails_at] == fails_at:
                raise OSError(28, "No space left on device")
            return real(*arguments, **keywords)

        return failing

    failures = 0
    for fails_at in range(1, 20):
        monkeypatch.setattr(os, function, fail_later(fails_at))
        try:
            save(tmp_path, 2, total_limit=1)
        except OSError as error:
            assert error.errno == 28
            failures += 1
        else:
            break
        finally:
            monkeypatch.setattr(os, function, real)
        step = newest_step(tmp_path)
        assert step in (1, 2)
        if step == 2:  # it was named before the failure: only the removal or the last fsync is missing
            shutil.rmtree(tmp_path / "checkpoint-2")
            if 1 not in steps(tmp_path):
                save(tmp_path, 1)
    assert failures >= 1
    assert newest_step(tmp_path) == 2


@pytest.mark.parametrize("kind", ["file", "link to a folder", "link to nothing", "named pipe", "link to itself"])
def test_a_leftover_of_any_kind_is_removed_and_no_target_of_a_link(tmp_path, kind):
    folder, target = tmp_path / "run", tmp_path / "target"
    folder.mkdir()
    (target / "inside").mkdir(parents=True)
    make_odd(folder / "unfinished-checkpoint-1", kind, target)
    save(folder, 5)
    assert os.listdir(folder) == ["checkpoint-5"] and (target / "inside").exists()


def make_odd(path, kind, target):
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("a file")
    else:
        path.symlink_to({"link to a folder": target, "link to itself": path}.get(kind, target / "nothing"))


def test_a_checkpoint_that_is_a_link_counts_as_one(tmp_path):
    """It loads, is not overwritten, and makes place for later ones while its folder stays."""
    folder, disk = tmp_path / "run", tmp_path / "other disk"
    folder.mkdir()
    disk.mkdir()
    (folder / "checkpoint-1").symlink_to(save(disk, 1))
    assert newest_step(folder) == 1
    with pytest.raises(ValueError, match="checkpoint-1 is there already and complete"):
        save(folder, 1)
    for step in (2, 3):
        save(folder, step, total_limit=1)
        assert os.listdir(folder) == [f"checkpoint-{step}"]
    assert newest_step(disk) == 1


@pytest.mark.parametrize("kind", ["link to a folder", "link to nothing", "link to itself"])
def test_a_link_to_no_checkpoint_is_replaced_when_its_step_comes(tmp_path, kind):
    folder, target = tmp_path / "run", tmp_path / "target"
    (target / "inside").mkdir(parents=True)
    folder.mkdir()
    make_odd(folder / "checkpoint-2", kind, target)
    save(folder, 1)
    assert newest_step(folder) == 1
    save(folder, 2)
    assert newest_step(folder) == 2 and (target / "inside").exists()


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(NotADirectoryError):
        save(tmp_path / "run", 1)
    (tmp_path / "checkpoint-1").write_text("a file")
    with pytest.raises(NotADirectoryError):
        save(tmp_path, 1)


# Damage


def damage(checkpoint, kind):
    if kind == "missing file":
        (checkpoint / "optimizer.bin").unlink()
    elif kind == "additional file":
        (checkpoint / "more.bin").touch()
    elif kind == "missing manifest":
        (checkpoint / "manifest.json").unlink()
    elif kind == "empty manifest":
        (checkpoint / "manifest.json").write_bytes(b"")
    elif kind == "a named pipe more":
        os.mkfifo(checkpoint / "pipe")
    elif kind == "a named pipe in place of a file":
        (checkpoint / "optimizer.bin").unlink()
        os.mkfifo(checkpoint / "optimizer.bin")
    elif kind == "a named pipe in place of the manifest":
        (checkpoint / "manifest.json").unlink()
        os.mkfifo(checkpoint / "manifest.json")
    elif kind == "a link to an endless file":
        (checkpoint / "optimizer.bin").unlink()
        (checkpoint / "optimizer.bin").symlink_to("/dev/zero")
    elif kind == "manifest nested too deep":
        (checkpoint / "manifest.json").write_text('{"files": ' + "[" * 100_000 + "]" * 100_000 + "}")
    elif kind == "other JSON":
        (checkpoint / "manifest.json").write_text("[1]")
    elif kind == "file of another checkpoint":
        (checkpoint / "optimizer.bin").write_bytes(content(1)["optimizer.bin"])
    elif kind == "manifest of another checkpoint":
        shutil.copy(checkpoint.with_name("checkpoint-1") / "manifest.json", checkpoint)
    elif kind == "another checkpoint under this name":
        shutil.rmtree(checkpoint)
        shutil.copytree(checkpoint.with_name("checkpoint-1"), checkpoint)
    elif kind == "a folder in place of a file":
        (checkpoint / "optimizer.bin").unlink()
        (checkpoint / "optimizer.bin").mkdir()
    else:
        share, name = kind
        os.truncate(checkpoint / name, int((checkpoint / name).stat().st_size * share))


KINDS = [
    "missing file",
    "additional file",
    "missing manifest",
    "empty manifest",
    "a named pipe more",
    "a named pipe in place of a file",
    "a named pipe in place of the manifest",
    "a link to an endless file",
    "manifest nested too deep",
    "other JSON",
    "file of another checkpoint",
    "manifest of another checkpoint",
    "another checkpoint under this name",
    "a folder in place of a file",
    *((share, name) for share in (0.01, 0.5, 0.99) for name in ("model.safetensors", "optimizer.bin", "manifest.json")),
]


@pytest.mark.timeout(20)  # what could hang, would
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_damage_is_found_and_the_checkpoint_before_is_taken(tmp_path, caplog, kind):
    for step in (1, 2, 3):
        save(tmp_path, step)
    damage(tmp_path / "checkpoint-3", kind)
    with pytest.raises(ValueError, match="checkpoint-3"):
        verify_checkpoint(tmp_path / "checkpoint-3")
    assert newest_step(tmp_path) == 2
    assert "checkpoint-3" in caplog.text and "Falling back" in caplog.text

    damage(tmp_path / "checkpoint-2", "missing manifest")
    damage(tmp_path / "checkpoint-1", "missing manifest")
    with pytest.raises(ValueError, match="all 3 checkpoints .* are damaged"):
        newest_valid_checkpoint(tmp_path)


def test_every_flipped_bit_is_found(tmp_path):
    checkpoint = save(tmp_path, 3)
    draw = random.Random(0)
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size]
    for _ in range(2000):
        path = draw.choice(files)
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="checkpoint-3"):
            verify_checkpoint(checkpoint)
        path.write_bytes(good)
    verify_checkpoint(checkpoint)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    damage(tmp_path / "checkpoint-30", "missing file")
    assert newest_step(tmp_path) == 20
    save(tmp_path, 25, total_limit=1)  # the damaged one, though of a later step, takes no good one's place
    assert newest_step(tmp_path) == 25
    save(tmp_path, 30, total_limit=1)
    assert (newest_step(tmp_path), steps(tmp_path)) == (30, [30])


# Which checkpoint to start from


def test_a_checkpoint_under_another_name_is_refused(tmp_path):
    save(tmp_path, 7).rename(tmp_path / "best")
    with pytest.raises(ValueError, match="a checkpoint is a folder named checkpoint-<step>, got .*best"):
        find_checkpoint(tmp_path, str(tmp_path / "best"))


def test_where_a_run_starts(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert find_checkpoint(folder, None) is None
    assert find_checkpoint(folder, "latest") is None
    with pytest.raises(ValueError, match="checkpoint-7 is not there"):
        find_checkpoint(folder, str(folder / "checkpoint-7"))
    save(folder, 7)
    save(folder, 8)
    assert find_checkpoint(folder, "latest") == folder / "checkpoint-8"
    assert find_checkpoint(folder, str(folder / "checkpoint-8")) == folder / "checkpoint-8"
    with pytest.raises(ValueError, match="already holds checkpoint-7, checkpoint-8 of another run"):
        find_checkpoint(folder, None)
    with pytest.raises(ValueError, match="already holds checkpoint-8 of another run"):
        find_checkpoint(folder, str(folder / "checkpoint-7"))
    other = tmp_path / "other"
    other.mkdir()
    assert find_checkpoint(other, str(folder / "checkpoint-7")) == folder / "checkpoint-7"


def test_a_named_checkpoint_that_is_damaged_is_an_error_and_no_other_is_taken(tmp_path):
    save(tmp_path, 7)
    save(tmp_path, 8)
    damage(tmp_path / "checkpoint-8", "missing file")
    with pytest.raises(ValueError, match="'optimizer.bin' is missing"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-8"))


# Two runs on one folder


def test_a_folder_has_one_run_at_a_time_and_a_killed_one_gives_it_free(tmp_path):
    code = (
        "import sys, time\n"
        "from modeling_axial.training.checkpoints import lock_folder\n"
        "lock = lock_folder(sys.argv[1])\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another training run is using"):
            lock_folder(tmp_path, timeout=0.1)
    finally:
        run.kill()
        run.wait()
        run.stdout.close()
    lock_folder(tmp_path, timeout=5).release()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_folder(tmp_path):
    run = os.fork()
    if run == 0:
        lock = lock_folder(tmp_path)
        worker = os.fork()
        if worker == 0:
            time.sleep(5)
            os._exit(0)
        (tmp_path / "ready").touch()
        time.sleep(5)
        lock.release()
        os._exit(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    lock_folder(tmp_path, timeout=1).release()


# With Accelerate


@pytest.fixture
def training():
    """(accelerator, take a step and return its loss, parameters) of a small model with dropout and momentum."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 1))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))

    def step():
        loss = model(torch.rand(7, 3)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return accelerator, step, list(model.parameters())


def test_a_restored_state_continues_bit_for_bit(tmp_path, training):
    accelerator, step, parameters = training
    step()
    save_state(accelerator, tmp_path, 1)
    losses = [step() for _ in range(5)]
    expected = [parameter.detach().clone() for parameter in parameters]
    assert load_state(accelerator, tmp_path / "checkpoint-1") == 1
    assert [step() for _ in range(5)] == losses
    assert all(torch.equal(parameter, other) for parameter, other in zip(parameters, expected, strict=True))


def limited_save(training, folder, limit, at_the_limit):
    """Saves step 2 in a fork that cannot write more than `limit` bytes into a file. Its status, as of `os.waitpid`."""
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, at_the_limit)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save_state(training[0], folder, 2, total_limit=1)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_write_that_fails_or_is_killed_half_way_keeps_the_old_state(tmp_path, training):
    """In the middle of every file that Accelerate writes, and of the manifest."""
    accelerator, step, _ = training
    step()
    save_state(accelerator, tmp_path, 1)
    sizes = {path.stat().st_size for path in (tmp_path / "checkpoint-1").iterdir()}
    limits = {limit for size in sizes for limit in (0, size // 100, size // 2, size * 99 // 100)}
    assert len(limits) > 8
    for limit in sorted(limits):
        status = limited_save(training, tmp_path, limit, signal.SIG_IGN)  # the write fails, as on a full disk
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1, limit
        assert newest_valid_checkpoint(tmp_path).name == "checkpoint-1"
        status = limited_save(training, tmp_path, limit, signal.SIG_DFL)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ, limit
        assert newest_valid_checkpoint(tmp_path).name == "checkpoint-1"
    assert limited_save(training, tmp_path, max(sizes) + 10_000, signal.SIG_DFL) == 0
    assert os.listdir(tmp_path) == ["checkpoint-2"] and load_state(accelerator, tmp_path / "checkpoint-2") == 2


def test_old_states_are_removed(tmp_path, training):
    for number in (1, 2, 3):
        save_state(training[0], tmp_path, number, total_limit=2)
    assert steps(tmp_path) == [2, 3]
    verify_checkpoint(tmp_path / "checkpoint-3")


def test_another_number_of_processes_is_refused(tmp_path, training):
    save_state(training[0], tmp_path, 1)
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copy(checkpoint / "random_states_0.pkl", checkpoint / "random_states_1.pkl")
    with pytest.raises(ValueError, match="written by 2 processes, this run has 1"):
        load_state(training[0], checkpoint)


class Unpickled:
    """Leaves a trace where it is unpickled without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_planted_pickle_is_not_run(tmp_path, training):
    accelerator = training[0]
    accelerator.register_for_checkpointing(torch.nn.Linear(1, 1))
    save_state(accelerator, tmp_path, 1)
    torch.save(Unpickled(tmp_path / "ran"), tmp_path / "checkpoint-1" / "custom_checkpoint_0.pkl")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_state(accelerator, tmp_path / "checkpoint-1")
    assert not (tmp_path / "ran").exists()


def test_random_states_that_cannot_be_restored_are_an_error(tmp_path, training):
    """Accelerate alone goes on in silence."""
    save_state(training[0], tmp_path, 1)
    path = tmp_path / "checkpoint-1" / "random_states_0.pkl"
    torch.save({"step": 1, "torch_manual_seed": torch.get_rng_state()}, path)
    torch.rand(3)
    with pytest.raises(RuntimeError, match="could not be restored"):
        load_state(training[0], tmp_path / "checkpoint-1")


def test_windows_opens_no_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_axial.training.checkpoints.os", SimpleNamespace(name="nt"))  # nothing else is there
    _fsync(tmp_path)


def test_a_file_that_was_written_to_the_disk_is_closed(tmp_path):
    def next_descriptor():
        descriptor = os.dup(0)
        os.close(descriptor)
        return descriptor

    before = next_descriptor()
    _fsync(tmp_path)
    assert next_descriptor() == before


def test_a_lock_waits_for_ten_seconds(tmp_path):
    lock = lock_folder(tmp_path)
    lock.release()
    assert lock.timeout == 10


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    for number, state in enumerate(("missing", "not listed", "changed")):
        checkpoint = save(tmp_path, number)
        file = checkpoint / ("another.bin" if state == "not listed" else "optimizer.bin")
        if state == "missing":
            file.unlink()
        else:
            file.write_bytes(b"other")
        with pytest.raises(ValueError, match=f"'{file.name}' is {state}$"):
            verify_checkpoint(checkpoint)


def test_a_checkpoint_is_there_once_all_have_written_and_before_any_goes_on(tmp_path):
    steps = []
    Accelerator(cpu=True)
    processes = SimpleNamespace(
        is_main_process=True,
        save_state=lambda folder: steps.append("written"),
        wait_for_everyone=lambda: steps.append([path.name for path in list_checkpoints(tmp_path)]),
    )
    save_state(processes, tmp_path, 1)
    assert steps == ["written", [], ["checkpoint-1"]]
