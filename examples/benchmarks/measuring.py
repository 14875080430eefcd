"""What the benchmarks measure with: time of alternating runs, memory of a fresh process, the name of the processor."""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def cpu_seconds(run: Callable[[], object]) -> float:
    torch.set_num_threads(1)
    start = time.thread_time()
    run()
    return time.thread_time() - start


def wall_seconds(run: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(runs: tuple[Callable, Callable], clock: Callable, pairs: int) -> tuple[float, float, float]:
    """(seconds of the first, seconds of the second, their ratio), medians over alternating pairs."""
    measured = [[clock(run) for run in runs] for _ in range(pairs)]
    first, second = (statistics.median(column) for column in zip(*measured, strict=True))
    return first, second, statistics.median(a / b for a, b in measured)


def compare_on_both_clocks(
    runs: tuple[Callable, Callable], pairs: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """What `compare` gives, from CPU seconds and from wall-clock seconds of the same runs, on one thread."""
    wall = []

    def clock(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        seconds = cpu_seconds(run)
        wall.append(time.perf_counter() - start)
        return seconds

    on_cpu = compare(runs, clock, pairs)
    taken = iter(wall)
    return on_cpu, compare(runs, lambda run: next(taken), pairs)


def peak_growth(run: Callable[[], object]) -> float:
    """MiB by which the peak resident memory of a run exceeds what was resident before it (Linux only).

    Only the first large run of a process tells: later ones find memory that the process has kept.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak of the imports
    before = resident_memory("VmRSS")
    run()
    return resident_memory("VmHWM") - before


def added_memory(script: str, *arguments: object) -> float:
    """The `peak_growth` of a fresh process: it is what `script --measure-memory *arguments` prints."""
    command = [sys.executable, script, "--measure-memory", *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident_memory(field: str) -> float:
    """MiB, now ("VmRSS") or at most so far ("VmHWM")."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def processor() -> str:
    """The name of the processor, and how many of it there are."""
    names = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def rows(columns: str, *lines: str) -> str:
    """A table in Markdown, of its head and its lines, whose cells have `|` between them."""
    return "\n".join([f"| {columns} |", "|---" * (columns.count("|") + 1) + "|", *(f"| {line} |" for line in lines)])


def publish(report: str, folder: Path | None, name: str) -> None:
    """Prints a report, and with a `folder`, which is made, writes it there under this name."""
    print(report)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(report, encoding="utf-8")
