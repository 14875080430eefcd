"""The curves of a run: which numbers share a panel, their units, and files with few numbers or none."""

import math
import sys

import pytest
from matplotlib.figure import Figure
from PIL import Image

from examples import curves
from modeling_axial.training import MetricsLog


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(lines, units) -> {title of a panel: {name of a curve: (steps, values)}} of a `metrics.jsonl`."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **b: (figures.append(figure), savefig(figure, *a, **b)))

    def drawn(lines, units=None):
        log = MetricsLog(tmp_path / "metrics.jsonl", 0, units)
        for line in lines:
            log.write(**line)
        log.close()
        curves.draw_curves(tmp_path)
        return {
            panel.get_title(): {line.get_label(): tuple(map(list, line.get_data())) for line in panel.lines}
            for figure in figures
            for panel in figure.axes
            if panel.axison
        }

    return drawn


def test_numbers_of_a_kind_share_a_panel():
    names = ["loss", "learning_rate", "grad_norm", "accuracy", "validation_loss", "iou a", "iou b c", "mean_iou"]
    assert curves.panels_of(names) == {
        "loss": ["loss", "validation_loss"],
        "accuracy": ["accuracy"],
        "iou": ["iou a", "iou b c"],
        "mean_iou": ["mean_iou"],
        "learning_rate": ["learning_rate"],
        "grad_norm": ["grad_norm"],
    }


def test_each_number_is_drawn_at_its_steps_with_its_unit(drawn, tmp_path):
    lines = [
        {"step": 5, "loss": 2.0, "learning_rate": 0.1},
        {"step": 10, "loss": 1.0, "learning_rate": 0.0},
        {"step": 10, "epoch": 1, "validation_loss": 1.5, "accuracy $1$": math.nan},
    ]
    panels = drawn(lines, {"loss": "nats", "validation_loss": "nats"})
    assert panels["loss (nats)"] == {"loss": ([5, 10], [2.0, 1.0]), "validation_loss": ([10], [1.5])}
    assert panels["learning_rate"] == {"learning_rate": ([5, 10], [0.1, 0.0])}
    assert list(panels) == ["loss (nats)", "accuracy", "learning_rate"]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width >= 800


def test_many_classes_have_no_legend(drawn, tmp_path):
    drawn([{"step": 1, **{f"iou ${number}": 0.5 for number in range(40)}}])
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_nothing_is_drawn_of_no_numbers(drawn, tmp_path):
    assert drawn([], {"loss": "nats"}) == {} and not (tmp_path / "curves.png").exists()


def test_as_a_script(drawn, tmp_path, monkeypatch, capsys):
    drawn([{"step": 1, "loss": 0.5}])
    (tmp_path / "curves.png").unlink()
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path)])
    curves.main()
    assert (tmp_path / "curves.png").exists() and str(tmp_path / "curves.png") in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError):
        curves.main()
