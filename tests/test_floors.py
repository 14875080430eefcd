import subprocess

import pytest

from tests import floors

PROJECT = {
    "name": "our-package",
    "dependencies": ["torch>=2.10", "huggingface_hub>=1.31,<3"],
    "optional-dependencies": {
        "demo": ["tqdm>=4.66.3"],
        "test": ["our-package[demo]", "pytest>=8.2"],
        "kernels": ["triton>=3.6"],
    },
}


def test_floors_are_the_lower_bounds():
    assert floors.floors(PROJECT, {}) == {"torch": "2.10", "huggingface-hub": "1.31", "tqdm": "4.66.3", "pytest": "8.2"}
    assert floors.floors(PROJECT, {"torch": "2.13.0"})["torch"] == "2.13.0"


def test_a_requirement_without_a_floor_is_refused():
    with pytest.raises(ValueError):
        floors.floors({"name": "ours", "dependencies": ["torch"]}, {})


def test_what_is_held_has_the_version_of_the_constraints():
    text = "# torch==1.0\naccelerate==1.15.0\ntorch==2.13.0\ntorchao==0.18.0\n"
    assert floors.held_versions(text) == {"torch": "2.13.0"}
    assert floors.held_versions((floors.ROOT / "constraints.txt").read_text()).keys() == floors.HELD


def test_an_environment_is_made_again_only_for_other_pins(tmp_path, monkeypatch):
    made, installed = [], []

    def install(command, check):
        assert check and command[0] == tmp_path / "bin" / "python"
        installed.append(command[command.index("--constraint") + 1].read_text())
        if "broken" in installed[-1]:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(floors.venv, "create", lambda folder, clear, with_pip: made.append(clear))
    monkeypatch.setattr(floors.subprocess, "run", install)
    for versions in [{"b": "2", "a": "1"}, {"a": "1", "b": "2"}, {"a": "3"}]:
        assert floors.make_environment(tmp_path, versions) == tmp_path / "bin" / "python"
    assert installed == ["a==1\nb==2\n", "a==3\n"] and made == [True, True]
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            floors.make_environment(tmp_path, {"broken": "1"})
    assert installed[2:] == ["broken==1\n"] * 2
