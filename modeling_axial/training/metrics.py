"""A log of measured numbers that survives a kill: one JSON object per line, in the order of the steps."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


class MetricsLog:
    """
    Appends lines such as `{"step": 10, "loss": 2.1}` to a file. Each line is handed to the operating system at once, so
    a killed process loses none of them; [`sync`] waits until they are on the disk.

    Opening a log for a run that continues after `step` drops every line of a later step, and a last line that was only
    half written: the lines of the repeated steps are then neither lost nor doubled. A run from scratch is `step=0`.

    Args:
        path (`str` or `os.PathLike`): the file, made if it does not exist.
        step (`int`): the last step whose lines are kept.

    Raises:
        `ValueError`: if the kept part of the file is not such a log, the path is that of something else than a file,
            such as a named pipe, or a line is written for an earlier step.
    """

    def __init__(self, path: str | os.PathLike, step: int = 0, units: Mapping[str, str] | None = None):
        self.path = Path(path)
        self.step = step
        kept = _length_up_to(self.path, step) if self.path.exists() else 0
        self._file = open(self.path, "ab")
        # Steps never decrease, so what has to go is the end of the file: cutting it off cannot leave a mixture.
        self._file.truncate(kept)
        if units and not kept:
            self._append({"step": 0, "units": dict(units)})

    def write(self, step: int, **values: float) -> None:
        """Appends one line. `step` must not be smaller than that of the line before."""
        if step < self.step:
            raise ValueError(f"step={step} comes after step={self.step} in {self.path}; steps must not decrease")
        self.step = step
        self._append({"step": step, **values})

    def _append(self, line: dict) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until the lines are on the disk. Call it before saving a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """
    The lines of a log that have numbers, without a half-written last one.

    Raises:
        `ValueError`: if any other line is not a JSON object with an integer `step`, or the path is not that of a file.
    """
    return [values for values, _ in _complete_lines(Path(path)) if "units" not in values]


def read_units(path: str | os.PathLike) -> dict[str, str]:
    """
    The units that the first line of a log says, by the names of the numbers; empty for a log without such a line.

    Raises:
        `ValueError`: as `read_metrics`, for the first line.
    """
    first, _ = next(_complete_lines(Path(path)), ({}, 0))
    return first.get("units", {})


def _complete_lines(path: Path) -> Iterator[tuple[dict, int]]:
    """(values, position in the file behind the line) of each line that ends in a newline."""
    if path.exists() and not path.is_file():  # a named pipe would hang
        raise ValueError(f"{path} must be a file; remove what is there")
    position = 0
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        position += len(line) + 1
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # of JSON or of UTF-8; nested too deep
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            raise ValueError(f'line {number} of {path} is not a JSON object with an integer "step": {line[:80]!r}')
        yield values, position


def _length_up_to(path: Path, step: int) -> int:
    """Bytes of the leading lines whose step is at most `step`; none of them for step 0."""
    length = 0
    for values, position in _complete_lines(path):
        if values["step"] > step or step == 0:
            break
        length = position
    return length
