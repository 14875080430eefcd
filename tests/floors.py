"""The tests with the oldest versions that pyproject.toml allows, in an environment of their own: `make floors`.

Each lower bound of pyproject.toml becomes a pin, and pip refuses pins that cannot stand together. The command line goes
to pytest: `python -m tests.floors tests/test_grid.py`. Without one, all tests run but the exhaustive ones. The
environment in `outputs/floors` is made again only where the pins have changed.
"""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "outputs" / "floors"
ELSEWHERE = {"kernels"}  # extras of other environments: builds of torch for CUDA demand one version of Triton
HELD = {"torch"}  # not run at its floor, for the reason in pyproject.toml, but at the version of constraints.txt


def floors(project: dict, pins: dict[str, str]) -> dict[str, str]:
    """
    {name: lowest version that is allowed} of what a project and its extras require, but for those of `ELSEWHERE`.

    Args:
        project: the table `[project]` of a pyproject.toml; the project itself, named by an extra, is left out.
        pins: {name: version} that stands in place of the floor of a package.
    """
    extras = [lines for extra, lines in project.get("optional-dependencies", {}).items() if extra not in ELSEWHERE]
    found = {}
    for requirement in map(Requirement, sum(extras, project["dependencies"])):
        name = canonicalize_name(requirement.name)
        if name != canonicalize_name(project["name"]):
            (version,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
            found[name] = pins.get(name, version)
    return found


def held_versions(constraints: str) -> dict[str, str]:
    """{name: version} of the packages in `HELD`, by the text of constraints.txt."""
    lines = (line.split("==") for line in constraints.splitlines() if "==" in line)
    return {canonicalize_name(name): version for name, version in lines if canonicalize_name(name) in HELD}


def make_environment(folder: Path, versions: dict[str, str]) -> Path:
    """The Python of an environment with these versions and what they need; pip's `CalledProcessError` if it fails."""
    python, installed = folder / "bin" / "python", folder / "constraints.txt"
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))
    if not installed.is_file() or installed.read_text() != pins:
        venv.create(folder, clear=True, with_pip=True)
        wanted = folder / "wanted.txt"
        wanted.write_text(pins)
        install = [python, "-m", "pip", "install", "--constraint", wanted, "--editable", f"{ROOT}[test]"]
        subprocess.run(install, check=True)
        wanted.rename(installed)  # last, so that an installation that was cut off is made again
    return python


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = floors(project, held_versions((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    python = make_environment(FOLDER, versions)
    arguments = sys.argv[1:] or ["--numprocesses", "auto", "--dist", "worksteal", "-m", "not audit"]
    return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
