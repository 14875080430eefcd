"""What is handed to strangers: one version, distributions that hold what they should, and a workflow that fits."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.distributions import BUILD, main, shown_elsewhere, tracked_files, version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


# The version and what else is said of the package


def test_the_version_stands_in_one_place_and_others_agree():
    assert re.fullmatch(r"\d+\.\d+\.\d+", version()) and PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == version() and re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"])
    released = re.findall(r"^## \[(\d.*)\] - (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert released[0] == (version(), citation["date-released"])


def test_only_the_addresses_of_the_owner_are_left_open():
    fields = {"name", "description", "readme", "requires-python", "license", "license-files", "authors", "maintainers"}
    assert fields | {"keywords", "classifiers", "dependencies", "optional-dependencies"} <= {
        field for field, value in PROJECT.items() if value
    }
    assert "urls" not in PROJECT


# Distributions


@pytest.fixture(scope="module")
def files_of_git():
    """What git holds, if this is a clone of git; in an unpacked source distribution these tests are skipped."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository of git, whose files are those to be distributed")
    return tracked_files()


def run(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "TEST_SHARD"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(files_of_git, tmp_path_factory):
    """The unpacked source distribution of what git holds, and some files that it does not."""
    folder, built = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("built")
    for name in files_of_git:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name in ("outputs/model.safetensors", ".venv/bin/python", "tests/__pycache__/hub.cpython-311.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    run(sys.executable, "-c", BUILD.format("sdist"), built, cwd=folder)
    with tarfile.open(built / f"modeling_axial-{version()}.tar.gz") as archive:
        archive.extractall(built, filter="data")
    return built / f"modeling_axial-{version()}"


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-c", BUILD.format("wheel"), folder, cwd=source)
    return next(folder.glob("*.whl"))


def test_the_source_distribution_is_what_git_holds(source, files_of_git):
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    made = {name for name in files if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert files - made == files_of_git
    for name in ("model.safetensors", "tests/conftest.py"):
        assert (source / name).read_bytes() == (ROOT / name).read_bytes()
    assert os.access(source / ".ci/run", os.X_OK)


@pytest.mark.audit
def test_tests_pass_in_the_unpacked_source_distribution(source):
    names = ["tests/test_grid.py", "tests/test_hub.py", "tests/test_model_repository.py"]
    names.append("tests/test_conftest.py::test_children_import_this_checkout")  # these files, not those of the clone
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not audit"]
    assert " passed" in run(sys.executable, "-m", "pytest", *options, *names, cwd=source, PYTHONPATH="")


@pytest.mark.audit
def test_the_wheel_is_the_package_alone_and_is_imported_from_elsewhere(wheel, files_of_git, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == {name for name in files_of_git if name.startswith("modeling_axial/")}
    options = ["--no-deps", "--no-index", "--no-compile", "--target", tmp_path / "installed"]
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=tmp_path)
    code = "import importlib.metadata as i, modeling_axial as m; print(m.__file__, i.version('modeling-axial'))"
    installed = tmp_path / "installed"
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert printed == [str(installed / "modeling_axial" / "__init__.py"), version()]
    (metadata,) = installed.glob("*.dist-info/METADATA")
    described = metadata.read_text(encoding="utf-8")
    for line in [f"Version: {version()}", "License-Expression: MIT", f"Requires-Python: {PROJECT['requires-python']}"]:
        assert f"\n{line}\n" in described


# What an index shows

ADDRESS = "https://github.com/somebody/axial"


def test_links_lead_to_the_repository_where_an_index_shows_them():
    text = (
        "# Axial\n\n![A picture]({0}docs/a.png) of [two\nlines]({1}docs/b.md#part), [here](#c), [b](https://d.e)\n---\n"
    )
    front_matter = "---\nlicense: mit\n---\n\n"
    shown = shown_elsewhere(front_matter + text.format("", ""), ADDRESS, "v1.2.3")
    assert shown == text.format(f"{ADDRESS}/raw/v1.2.3/", f"{ADDRESS}/blob/v1.2.3/")


def test_every_link_of_the_readme_that_is_shown_is_absolute(files_of_git):
    shown = shown_elsewhere(read("README.md"), ADDRESS, "v1")
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    own = [target.removeprefix(f"{ADDRESS}/") for target in targets if target.startswith(ADDRESS)]
    assert len(own) > 30 and all(target.startswith(("https://", "#")) for target in targets)
    assert {re.sub("^(raw|blob)/v1/|#.*$", "", target) for target in own} <= files_of_git
    assert [target for target in own if target.startswith("raw/")] == re.findall(r"raw/v1/\S+\.png(?=\))", shown)
    assert shown.startswith("# ") and "license: mit" not in shown


def test_an_address_that_an_index_would_not_show_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["http://github.com/somebody/axial", "--output", str(tmp_path)])
    assert "must begin with https://" in capsys.readouterr().err


@pytest.mark.audit
def test_distributions_for_an_index(files_of_git, tmp_path):
    main([f"{ADDRESS}/", "--output", str(tmp_path / "dist")])
    name = f"modeling_axial-{version()}"
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == [f"{name}-py3-none-any.whl", f"{name}.tar.gz"]
    with zipfile.ZipFile(tmp_path / "dist" / f"{name}-py3-none-any.whl") as archive:
        described = message_from_bytes(archive.read(f"{name}.dist-info/METADATA"))
    assert described["Project-URL"] == f"Repository, {ADDRESS}"
    expected = shown_elsewhere(read("README.md"), ADDRESS, f"v{version()}")
    assert described.get_payload(decode=True).decode().strip() == expected.strip()


# The workflow

WORKFLOW = ".github/workflows/ci.yml"


def faults_of_a_workflow(text):
    """What in a workflow does not fit to pyproject.toml and the Makefile; empty if all does."""
    faults = [] if re.match(r"# .*\bNOT RUN\b", text) else ["the first line does not say that it was not run"]
    targets = re.findall(r"^([\w-]+):(?!=)", read("Makefile"), re.MULTILINE)
    supported, pythons, shards = SpecifierSet(PROJECT["requires-python"]), set(), {}
    for name, job in yaml.safe_load(text)["jobs"].items():
        matrix = job.get("strategy", {}).get("matrix", {})
        pythons |= set(matrix.get("python-version", []))
        shards[name] = matrix.get("shard", ["1/1"])
        for step in job["steps"]:
            python = step.get("with", {}).get("python-version", "")
            pythons |= {python} if python and "matrix" not in python else set()
            command = step.get("run", "make check").split()
            if command[0] != "make" or command[1] not in targets:
                faults.append(f"{name} runs {' '.join(command)}, which is no target of the Makefile")
    oldest = min(pythons, key=lambda python: [int(part) for part in python.split(".")])
    if supported != SpecifierSet(f">={oldest}") or not all(map(supported.contains, pythons)):
        faults.append(f"requires-python is {supported}, and it runs {sorted(pythons)}")
    for name, parts in shards.items():
        if parts != [f"{number + 1}/{len(parts)}" for number in range(len(parts))]:
            faults.append(f"the shards of {name} are not all tests: {parts}")
    return faults


def test_the_workflow_fits():
    text = read(WORKFLOW)
    assert not faults_of_a_workflow(text)
    assert {f"make {target}" for target in ("check", "test", "audit", "floors")} <= set(re.findall("make [a-z]+", text))


@pytest.mark.parametrize(
    "before, after, fault",
    [
        ("NOT RUN", "run", "not run"),
        ("run: make floors", "run: make cellars", "no target"),
        ("run: make floors", "run: pytest", "no target"),
        ('"3.11"', '"3.12"', "requires-python"),
        ('"3.11", "3.13"', '"3.10", "3.13"', "requires-python"),
        ('"3/4", "4/4"', '"4/4"', "not all tests"),
    ],
)
def test_planted_faults_of_a_workflow_are_found(before, after, fault):
    text = read(WORKFLOW)
    assert before in text
    assert any(fault in found for found in faults_of_a_workflow(text.replace(before, after)))
