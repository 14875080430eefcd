"""What runs have found, collected in a table."""

import json
from dataclasses import replace

import pytest

from examples import results
from examples.results import OURS, TASKS, Task, line_of, mean_and_range, run_task, table, write_results
from tests.conftest import ROOT

IOU = Task("nuclei", "train.py", "nuclei2d", "iou", True, ("--peer", "unet"))


def write(folder, ours, peer, otsu, threshold=0.1, seconds=30.0):
    folder.mkdir(parents=True)
    scores = {OURS: {"iou": ours}, "U-Net": {"iou": peer}, "Otsu": {"iou": otsu}, "threshold": {"iou": threshold}}
    write_results(folder, scores, {OURS: 1200, "U-Net": 1100}, {OURS: 20.4, "U-Net": seconds})


def test_a_line_holds_means_ranges_and_the_best_baseline(tmp_path):
    for seed, numbers in enumerate(((0.5, 0.4, 0.3), (0.75, 0.6, 0.2))):
        write(IOU.folder(tmp_path, seed), *numbers, seconds=[30.0, None][seed])
    text = table(tmp_path, tasks=[IOU])
    line = text.splitlines()[-1]
    assert line == (
        "| nuclei | 0.625 (0.500 to 0.750) | 0.500 (0.400 to 0.600) | 0.250 (Otsu) | 1,200, 1,100 | 20, 30 | 2 | "
        "`python examples/train.py configuration/training/nuclei2d.yaml --peer unet` |"
    )
    assert json.loads((IOU.folder(tmp_path, 0) / "results.json").read_text())["hardware"] in text
    smaller = table(tmp_path, tasks=[replace(IOU, larger_is_better=False)]).splitlines()[-1]
    assert "0.100 (threshold)" in smaller


def test_a_model_without_peer_and_baselines():
    run = {"scores": {OURS: {"iou": 0.5}}, "trained": {OURS: {"num_parameters": 10, "cpu_seconds": None}}}
    assert line_of(IOU, [run]).startswith("| nuclei | 0.500 | - | - | 10 | - | 1 | ")


def test_tasks_that_were_not_run_are_left_out(tmp_path):
    write(IOU.folder(tmp_path, 2), 0.5, 0.4, 0.3)
    text, other = table(tmp_path, tasks=[IOU]), replace(IOU, recipe="other")
    assert table(tmp_path, tasks=[other, IOU]) == text
    assert "| nuclei |" not in table(tmp_path / "nothing", tasks=[IOU])


def test_lines_of_tasks_that_are_not_here_stay(tmp_path):
    write(IOU.folder(tmp_path / "there", 2), 0.5, 0.4, 0.3)
    before, other = table(tmp_path / "there", tasks=[IOU]).replace(" on ", " on Abacus, ", 1), replace(IOU, recipe="b")
    assert table(tmp_path / "nothing", before, [other, IOU]).splitlines()[1:] == before.splitlines()[1:]
    write(other.folder(tmp_path / "here", 0), 0.25, 0.4, 0.3)
    lines = table(tmp_path / "here", before, [other, IOU]).splitlines()
    assert lines[-2].startswith("| nuclei | 0.250 |") and lines[-1] == before.splitlines()[-1]
    assert "Abacus" in lines[0]
    write(IOU.folder(tmp_path / "here", 0), 0.125, 0.4, 0.3)
    assert table(tmp_path / "here", before, [IOU]).splitlines()[-1].startswith("| nuclei | 0.125 |")


def test_two_scores_of_one_run_have_a_line_each(tmp_path):
    write(IOU.folder(tmp_path, 0), 0.5, 0.4, 0.3)
    both = [IOU, replace(IOU, title="nuclei again")]
    text = table(tmp_path, tasks=both)
    assert [line[:15] for line in text.splitlines()[-2:]] == ["| nuclei | 0.50", "| nuclei again "]
    assert table(tmp_path / "nothing", text, both).splitlines()[1:] == text.splitlines()[1:]


def test_mean_and_range():
    assert mean_and_range([0.5]) == "0.500"
    assert mean_and_range([1.0, 2.0, 4.0], digits=1) == "2.3 (1.0 to 4.0)"


def test_what_has_been_run_is_not_run_again(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(results.subprocess, "run", lambda command, **options: commands.append(command))
    folder = IOU.folder(tmp_path, 1)
    run_task(IOU, folder, 1)
    assert commands[0][1:] == [
        *("examples/train.py", "configuration/training/nuclei2d.yaml", "--peer", "unet", "--seed", "1"),
        *("--output_dir", str(folder), "--resume_from_checkpoint", "latest"),
    ]
    write(folder, 0.5, 0.4, 0.3)
    run_task(IOU, folder, 1)
    assert len(commands) == 1


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title)
def test_tasks_are_there(task):
    """Of each its script and recipe, and its line in the table that is committed."""
    assert (ROOT / task.command[1]).is_file() and (ROOT / task.command[2]).is_file()
    assert f"`{' '.join(task.command)}`" in (ROOT / "examples" / "results.md").read_text(encoding="utf-8")
    assert len({(one.folder(ROOT, 0), one.score) for one in TASKS}) == len(TASKS)
