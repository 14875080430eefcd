"""
Training checkpoints that are complete or absent, never half, whatever kills the process and whenever.

A checkpoint is a folder `checkpoint-<step>` with a `manifest.json` that lists the size and SHA-256 of every other file.
Saving goes in this order, and after any of its steps the newest complete checkpoint can be found:
write aside -> fsync -> manifest -> fsync -> rename -> fsync the parent -> only now remove the old ones.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils import load as load_safely
from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
NAME = re.compile("checkpoint-(0|[1-9][0-9]*)")


# ---- one checkpoint folder ----


def checkpoint_step(checkpoint: Path) -> int:
    """The step in the name of a folder `checkpoint-<step>`; `ValueError` for any other name."""
    match = NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"a checkpoint is a folder named checkpoint-<step>, got {checkpoint}")
    return int(match[1])


def describe_checkpoint(folder: Path, step: int) -> dict:
    """
    What the manifest of a folder has to say: its step, and size and SHA-256 of each file but the manifest.

    Raises:
        `ValueError`: for what is neither a file nor a folder, such as a named pipe, from which reading could hang.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        if not path.is_file():
            raise ValueError(f"{path} is neither a file nor a folder")
        if path != folder / MANIFEST_NAME:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256}
    return {"step": step, "files": files}


def verify_checkpoint(checkpoint: str | os.PathLike) -> None:
    """
    Reads every file of a checkpoint and compares it with the manifest.

    Raises:
        `ValueError`: naming the first thing that is missing, superfluous or different.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise ValueError(f"checkpoint {checkpoint} is not there, or no folder")
    step = checkpoint_step(checkpoint)
    try:
        actual = describe_checkpoint(checkpoint, step)
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {checkpoint} cannot be read: {error}") from error
    try:
        manifest = json.loads((checkpoint / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint {checkpoint} has no readable {MANIFEST_NAME}: {error}") from error
    if manifest == actual:
        return
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    listed = listed if isinstance(listed, dict) else {}
    for name in sorted(listed.keys() | actual["files"].keys()):
        if listed.get(name) != actual["files"].get(name):
            state = "missing" if name not in actual["files"] else "not listed" if name not in listed else "changed"
            raise ValueError(f"checkpoint {checkpoint} does not match its {MANIFEST_NAME}: {name!r} is {state}")
    raise ValueError(f"the {MANIFEST_NAME} of checkpoint {checkpoint} belongs to another checkpoint or is damaged")


# ---- a folder of checkpoints ----


def list_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The folders `checkpoint-<step>` in `folder`, earliest step first, whether they verify or not."""
    found = [path for path in Path(folder).glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def newest_valid_checkpoint(folder: str | os.PathLike) -> Path | None:
    """
    The checkpoint of the highest step that verifies; logs a warning for every newer one that does not. None if there
    is no checkpoint at all.

    Raises:
        `ValueError`: if there are checkpoints, but none verifies.
    """
    checkpoints = list_checkpoints(folder)
    for checkpoint in reversed(checkpoints):
        try:
            verify_checkpoint(checkpoint)
        except ValueError as error:
            logger.warning("%s. Falling back to the checkpoint before it.", error)
        else:
            return checkpoint
    if checkpoints:
        raise ValueError(f"all {len(checkpoints)} checkpoints in {folder} are damaged; remove them to start from zero")
    return None


def stage_checkpoint(folder: str | os.PathLike) -> Path:
    """
    An empty folder in `folder` to write a checkpoint into. What killed saves left behind is removed: the caller must be
    the only one that saves here, see [`lock_folder`].
    """
    for leftover in Path(folder).glob("unfinished-checkpoint-*"):
        _remove(leftover)
    staged = Path(folder) / f"unfinished-checkpoint-{os.getpid()}"
    staged.mkdir()
    return staged


def commit_checkpoint(staged: Path, step: int, total_limit: int | None = None) -> Path:
    """
    Makes a staged folder the checkpoint `checkpoint-<step>`, durably, and then removes the earliest checkpoints of
    earlier steps until at most `total_limit` are left (None keeps all). Returns its path.

    Raises:
        `ValueError`: if a good checkpoint of this step is already there, or `total_limit` is not positive.
    """
    if total_limit is not None and total_limit < 1:
        raise ValueError(f"total_limit must be at least 1, or None for no limit, got {total_limit}")
    checkpoint = staged.with_name(f"checkpoint-{step}")
    if checkpoint.is_dir() or checkpoint.is_symlink():
        try:
            verify_checkpoint(checkpoint)
        except ValueError:
            _remove(checkpoint)  # the damaged one that loading has stepped over
        else:
            raise ValueError(f"{checkpoint} is there already and complete; it is not overwritten")

    for path in staged.rglob("*"):
        _fsync(path)
    with open(staged / MANIFEST_NAME, "w", encoding="utf-8") as file:
        json.dump(describe_checkpoint(staged, step), file, indent=1)
    _fsync(staged / MANIFEST_NAME)
    _fsync(staged)
    os.rename(staged, checkpoint)
    _fsync(checkpoint.parent)

    if total_limit is not None:
        earlier = [path for path in list_checkpoints(checkpoint.parent) if checkpoint_step(path) < step]
        for path in earlier[: max(0, len(earlier) + 1 - total_limit)]:
            # Renamed first, so that a kill in the middle of the removal leaves nothing that looks like a checkpoint.
            os.rename(path, staged)
            _remove(staged)
    return checkpoint


def lock_folder(folder: str | os.PathLike, timeout: float = 10) -> FileLock:
    """
    Takes the sole right to save in `folder`, until `release()` or the end of the process, however it ends.

    Raises:
        `ValueError`: if another process still holds it after `timeout` seconds.
    """
    lock = FileLock(Path(folder) / ".lock", timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another training run is using {folder}; stop it or choose another folder") from None
    return lock


def _remove(path: Path) -> None:
    """Removes a folder with all that is in it, or a file; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- the state of an Accelerator in such a folder ----


def save_state(accelerator: Accelerator, folder: str | os.PathLike, step: int, total_limit: int | None = None) -> None:
    """
    `accelerator.save_state` into a new `folder/checkpoint-<step>`. To be called by all processes, after a whole
    optimizer step; `folder` must be one folder for all of them.
    """
    staged = [str(stage_checkpoint(folder)) if accelerator.is_main_process else ""]
    broadcast_object_list(staged)
    accelerator.save_state(staged[0])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        commit_checkpoint(Path(staged[0]), step, total_limit)
    accelerator.wait_for_everyone()


def find_checkpoint(folder: str | os.PathLike, resume_from_checkpoint: str | None) -> Path | None:
    """
    The checkpoint with which a run that saves in `folder` starts, or None to start from zero.

    Args:
        resume_from_checkpoint (`str`, *optional*):
            `"latest"`: the newest good one in `folder`, None if there is none yet. A path: that one. None: start from
            zero.

    Raises:
        `ValueError`: if the named checkpoint is missing or damaged, none of several is good, or `folder` holds
            checkpoints of later steps, which `"latest"` would take for a continuation of this run.
    """
    if resume_from_checkpoint == "latest":
        return newest_valid_checkpoint(folder)
    checkpoint, step = None, -1
    if resume_from_checkpoint is not None:
        checkpoint = Path(resume_from_checkpoint)
        verify_checkpoint(checkpoint)
        step = checkpoint_step(checkpoint)
    later = [path.name for path in list_checkpoints(folder) if checkpoint_step(path) > step]
    if later:
        raise ValueError(
            f"{folder} already holds {', '.join(later)} of another run. Continue it with "
            "--resume_from_checkpoint latest, remove them, or choose another folder"
        )
    return checkpoint


def load_state(accelerator: Accelerator, checkpoint: Path) -> int:
    """
    `accelerator.load_state` from a verified checkpoint; returns its step. Unlike there, random states that cannot be
    restored are an error, and nothing is unpickled that torch's restricted unpickler would refuse.

    Raises:
        `ValueError`: if the checkpoint was written by another number of processes.
        `pickle.UnpicklingError`: if it holds a pickle of more than tensors and plain values.
        `RuntimeError`: if the random states were not restored.
    """
    num_processes = len(list(checkpoint.glob("random_states_*.pkl")))
    if num_processes != accelerator.num_processes:
        raise ValueError(
            f"{checkpoint} was written by {num_processes} processes, this run has {accelerator.num_processes}: it "
            "would not continue exactly. Use the same number, or start a new run from the trained weights"
        )
    for path in checkpoint.glob("custom_checkpoint_*.pkl"):
        torch.load(path, weights_only=True)  # Accelerate reads these without the restriction
    accelerator.load_state(str(checkpoint))
    random_states = load_safely(checkpoint / f"random_states_{accelerator.process_index}.pkl")
    if not torch.equal(torch.get_rng_state(), random_states["torch_manual_seed"]):
        raise RuntimeError(f"the random states of {checkpoint} could not be restored")
    return checkpoint_step(checkpoint)
