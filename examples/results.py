"""
Trains the model of every task beside its peer, with three seeds, and writes what came out into one table.

    python examples/results.py                      # all tasks: some hours on one core
    python examples/results.py --tasks sst nuclei2d # these; the lines of the others stay

Each run is that of the command in the table, in a folder of `outputs/results`, and goes on where it was stopped. The
table is `examples/results.md`: means over the seeds, and the smallest and the largest. Held-out data chose nothing, but
that the best of the baselines is the one shown.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "examples" / "benchmarks"))
from measuring import processor  # noqa: E402

OURS = "this model"
SEEDS = (0, 1, 2)


def write_results(
    output_dir: Path,
    scores: dict[str, dict[str, float]],
    num_parameters: dict[str, int],
    cpu_seconds: dict[str, float | None],
) -> None:
    """
    Writes `results.json`: of all that was measured, by its name, the scores, and of what was trained the size and the
    time, which is not known (None) of a run that was resumed. What was trained stands first, the model before its peer.
    """
    trained = {name: {"num_parameters": num_parameters[name], "cpu_seconds": cpu_seconds[name]} for name in cpu_seconds}
    results = {"hardware": processor(), "scores": scores, "trained": trained}
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Task:
    """A line of the table.

    `recipe`: of `configuration/training`, which `script` reads; `options`: beside it. `score`: which of the scores of
    `results.json` is shown, and `larger_is_better` of it.
    """

    title: str
    script: str
    recipe: str
    score: str
    larger_is_better: bool
    options: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return ["python", f"examples/{self.script}", f"configuration/training/{self.recipe}.yaml", *self.options]

    @property
    def told_command(self) -> str:
        return f"`{' '.join(self.command)}`"

    def folder(self, results: Path, seed: int) -> Path:
        return results / "-".join((self.recipe, *(option.strip("-") for option in self.options), f"seed-{seed}"))


SEGMENT, FORECAST = "train_semantic_segmentation.py", "train_dense_prediction.py"
CLIPS, IN_CONTEXT = "train_video_classification.py", "train_tabular_in_context.py"
UNET, HIGHRESNET, TIMESFORMER = (("--peer", name) for name in ("unet", "highresnet", "timesformer"))
FOLDS = tuple(("--fold", str(fold)) for fold in range(4))
TASKS = (
    Task("nuclei 2-D, learnt left: IoU", SEGMENT, "nuclei2d", "iou nucleus", True, (*UNET, *FOLDS[0])),
    Task("nuclei 2-D, learnt right: IoU", SEGMENT, "nuclei2d", "iou nucleus", True, (*UNET, *FOLDS[1])),
    Task("nuclei 3-D, learnt left: IoU", SEGMENT, "nuclei3d", "iou nucleus", True, (*UNET, *FOLDS[0])),
    Task("nuclei 3-D, learnt right: IoU", SEGMENT, "nuclei3d", "iou nucleus", True, (*UNET, *FOLDS[1])),
    Task("tissue of the brain, learnt back: mean IoU", SEGMENT, "brain_tissue", "mean_iou", True, (*UNET, *FOLDS[0])),
    Task("tissue of the brain, learnt front: mean IoU", SEGMENT, "brain_tissue", "mean_iou", True, (*UNET, *FOLDS[1])),
    Task("tissue, learnt quarters 1 and 3: mean IoU", SEGMENT, "brain_tissue", "mean_iou", True, (*UNET, *FOLDS[2])),
    Task("tissue, learnt quarters 2 and 4: mean IoU", SEGMENT, "brain_tissue", "mean_iou", True, (*UNET, *FOLDS[3])),
    Task("200 wavelengths, draw 0: accuracy", SEGMENT, "indian_pines", "accuracy", True, (*HIGHRESNET, *FOLDS[0])),
    Task("200 wavelengths, draw 1: accuracy", SEGMENT, "indian_pines", "accuracy", True, (*HIGHRESNET, *FOLDS[1])),
    Task("200 wavelengths, draw 2: accuracy", SEGMENT, "indian_pines", "accuracy", True, (*HIGHRESNET, *FOLDS[2])),
    Task("sea surface temperature, next month: RMSE in K", FORECAST, "sst", "rmse", False, UNET),
    Task("air temperature, next year: RMSE in K", FORECAST, "air_temperature", "rmse", False, UNET),
    Task("which film, later in time: mean accuracy", CLIPS, "films", "mean accuracy", True, TIMESFORMER),
    Task("tables in context, 10 labelled rows: accuracy", IN_CONTEXT, "tables", "accuracy mean n=10", True),
    Task("tables in context, 30 labelled rows: accuracy", IN_CONTEXT, "tables", "accuracy mean n=30", True),
)


def run_task(task: Task, folder: Path, seed: int) -> None:
    """Runs the command of a task to its end, unless that has been done."""
    if not (folder / "results.json").exists():
        more = ["--seed", str(seed), "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
        subprocess.run([sys.executable, *task.command[1:], *more], cwd=ROOT, check=True)


def mean_and_range(values: Sequence[float], digits: int = 3) -> str:
    """`0.465 (0.461 to 0.468)`, one value alone."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def line_of(task: Task, runs: Sequence[dict]) -> str:
    """The line of a task in the table, of what its runs have written."""
    cells = [task.title]
    trained = list(runs[0]["trained"])
    for name in trained:
        cells.append(mean_and_range([run["scores"][name][task.score] for run in runs]))
    if len(trained) == 1:
        cells.append("-")
    baselines = {
        name: statistics.mean(run["scores"][name][task.score] for run in runs)
        for name in runs[0]["scores"]
        if name not in trained
    }
    best = (max if task.larger_is_better else min)(baselines, key=lambda name: baselines[name], default=None)
    cells.append("-" if best is None else f"{baselines[best]:.3f} ({best})")
    cells.append(", ".join(f"{runs[0]['trained'][name]['num_parameters']:,}" for name in trained))
    seconds = [[run["trained"][name]["cpu_seconds"] for run in runs] for name in trained]
    known = [[number for number in numbers if number is not None] for numbers in seconds]
    cells.append(", ".join(f"{statistics.mean(numbers):.0f}" if numbers else "-" for numbers in known))
    cells += [str(len(runs)), task.told_command]
    return f"| {' | '.join(cells)} |"


def table(results: Path, before: str = "", tasks: Sequence[Task] = TASKS) -> str:
    """
    The text of `results.md`, of the runs that there are in the folder `results`. A task without any keeps its line in
    `before`, the text as it was.
    """
    lines = []
    made_on = re.search(r"^Made by .* on (.*)\.$", before, re.MULTILINE)
    hardware = set(made_on[1].split(", ")) if made_on else set()
    for task in tasks:
        paths = [path for seed in SEEDS if (path := task.folder(results, seed) / "results.json").exists()]
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        hardware |= {run["hardware"] for run in runs}
        if runs:
            lines.append(line_of(task, runs))
        else:
            first, last = f"| {task.title} |", f"| {task.told_command} |"
            lines += [line for line in before.splitlines() if line.startswith(first) and line.endswith(last)]
    return f"""Made by `python examples/results.py` on {", ".join(sorted(hardware))}.

Means over the seeds, in brackets the smallest and the largest. Parameters and CPU seconds, evaluations included, are
those of ours and of the peer: a U-Net; of wavelengths, convolutions at full resolution; of clips, TimeSformer.
These are samples to run and no benchmarks.

| task | ours | peer | best without training | parameters | CPU seconds | seeds | command |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = sorted({task.recipe for task in TASKS})
    parser.add_argument(
        "--tasks",
        nargs="*",
        choices=recipes,
        default=recipes,
        help="recipes to run; of none, the table only",
    )
    parser.add_argument("--results_dir", type=Path, default=ROOT / "outputs" / "results", help="where the runs are")
    parser.add_argument("--output", type=Path, default=ROOT / "examples" / "results.md", help="the table")
    arguments = parser.parse_args()
    chosen = [(task, seed) for seed in SEEDS for task in TASKS if task.recipe in arguments.tasks]
    for task, seed in tqdm(chosen, unit="run"):
        run_task(task, task.folder(arguments.results_dir.resolve(), seed), seed)
    before = arguments.output.read_text(encoding="utf-8") if arguments.output.exists() else ""
    arguments.output.write_text(table(arguments.results_dir, before), encoding="utf-8")


if __name__ == "__main__":
    main()
