"""The rules that no single module can hold: what may travel with a checkpoint, what no file may contain, and that the
project's own lists (dependencies, packages, tests, commands) agree with what is there.

Each rule is a function from a file to the faults it finds, and is itself tested on planted faults.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers.dynamic_module_utils import get_relative_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_axial"
FLAT_FILES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(path):
    return path.read_text(encoding="utf-8")


def project_files():
    """Every file of the project: all but what .gitignore names, and git's own."""
    ignored = [line.rstrip("/") for line in read(ROOT / ".gitignore").split()] + [".git"]
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(fnmatch(part, pattern) for part in parts for pattern in ignored):
            yield path


def python_files():
    return [path for path in project_files() if path.suffix == ".py"]


# Files that travel


def eager_and_lazy_imports(tree):
    """The import statements of a module that run when it is imported, and those inside functions."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(child) for function in functions for child in ast.walk(function)}
    return [node for node in imports if id(node) not in lazy], [node for node in imports if id(node) in lazy]


def allowed_packages(path):
    """What transformers always brings, so that no reader of a checkpoint has to install anything."""
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors"} | sys.stdlib_module_names
    if path.stem == "reversible":
        allowed -= {"transformers", "huggingface_hub", "numpy", "safetensors"}
    return allowed | {"PIL"} if path.stem.startswith("image_processing_") else allowed


def faults_of_a_flat_file(path):
    """Why transformers could not carry this file with a checkpoint and load it again; empty if it can."""
    tree = ast.parse(read(path))
    eager, lazy = eager_and_lazy_imports(tree)
    faults, siblings = [], set()
    for node in eager + lazy:
        where = f"line {node.lineno}"
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        level = 0 if isinstance(node, ast.Import) else node.level
        for module in modules:
            package = module.partition(".")[0]
            if module == "__future__":
                faults.append(f"{where}: a __future__ import; transformers reads the annotations of models at run time")
            elif level == 0 and package in (PACKAGE.name, "configuration"):
                faults.append(f"{where}: imports {module} by name, which a checkpoint does not have")
            elif level == 0 and package not in allowed_packages(path):
                faults.append(f"{where}: imports {package}, which not everyone with transformers has")
            elif level > 1:
                faults.append(f"{where}: climbs out of the folder with {'.' * level}")
            elif level == 1 and not module:
                faults.append(f"{where}: `from . import` is not seen by the scanner")
            elif level == 1 and (module == "__init__" or not (path.parent / f"{module}.py").is_file()):
                faults.append(f"{where}: .{module} is no file beside this one")
            elif level == 1:
                siblings.add(module)
    if path.stem != "modeling_axial" and any(isinstance(node, ast.ImportFrom) and node.level for node in lazy):
        faults.append("imports a sibling inside a function; only modeling_axial.py does, for carrying")
    if path.stem == "reversible" and siblings:
        faults.append("reversible.py imports torch only")
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(
            isinstance(child, ast.Import | ast.ImportFrom) for child in ast.walk(node)
        ):
            faults.append(f"line {node.lineno}: an import inside try")
    scanned = set(get_relative_imports(path))
    if scanned != siblings and not faults:
        faults.append(
            f"the scanner of transformers finds the imports {sorted(scanned)}, Python {sorted(siblings)}: one import "
            "per line, no backslash, and no such line in a docstring"
        )
    return faults


@pytest.mark.parametrize("path", FLAT_FILES, ids=lambda path: path.name)
def test_flat_files_can_travel(path):
    assert not faults_of_a_flat_file(path)


def test_flat_files_import_one_way():
    graph = {}
    for path in FLAT_FILES:
        eager, _ = eager_and_lazy_imports(ast.parse(read(path)))
        graph[path.stem] = {node.module for node in eager if isinstance(node, ast.ImportFrom) and node.level}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("attention") < order.index("axial_layer") < order.index("modeling_axial")


PLANTED_FLAT_FAULTS = {
    "from __future__ import annotations": "__future__",
    "import modeling_axial.attention": "by name",
    "from modeling_axial.attention import x": "by name",
    "from modeling_axial import attention": "by name",
    "from configuration import AxialConfig": "by name",
    "import einops": "einops",
    "def f():\n    import pandas as pd": "pandas",
    "from PIL import Image": "PIL",
    "from ..attention import x": "climbs out",
    "from .. import attention": "climbs out",
    "from . import attention": "not seen by the scanner",
    "from .missing import x": "no file beside",
    "from .folder import x": "no file beside",
    "from .folder.inside import x": "no file beside",
    "from .__init__ import x": "no file beside",
    "try:\n    from .attention import x\nexcept ImportError:\n    x = None": "inside try",
    "try:\n    import torch\nexcept ImportError:\n    torch = None": "inside try",
    "def f():\n    from .attention import x": "inside a function",
    "import torch; from .attention import x": "scanner",
    "from .attention \\\n    import x": "scanner",
    "from \\\n    .attention import x": "scanner",
    'def f():\n    """Such as\n\n    from .attention import x\n    """': "scanner",
    'TEXT = """\nfrom .missing import x\n"""': "scanner",
}


@pytest.fixture
def flat_folder(tmp_path):
    for name in ("attention.py", "__init__.py", "folder/__init__.py", "folder/inside.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(("source", "fault"), PLANTED_FLAT_FAULTS.items())
def test_planted_flat_faults_are_found(flat_folder, source, fault):
    path = flat_folder / "planted.py"
    path.write_text(source + "\n")
    assert any(fault in found for found in faults_of_a_flat_file(path))


@pytest.mark.parametrize(
    ("name", "source"),
    {
        "planted": "import math\nimport torch\nfrom torch import nn\nfrom .attention import (\n    x,\n    y,\n)",
        "modeling_axial": "def never_called():\n    from .attention import x",
        "image_processing_axial": "from PIL import Image",
        "reversible": "import contextlib\nimport torch",
    }.items(),
)
def test_good_flat_files_have_no_fault(flat_folder, name, source):
    path = flat_folder / f"{name}.py"
    path.write_text(source + "\n")
    assert not faults_of_a_flat_file(path)


@pytest.mark.parametrize("source", ["from transformers import x", "import numpy", "from .attention import x"])
def test_reversible_may_import_torch_only(flat_folder, source):
    path = flat_folder / "reversible.py"
    path.write_text(source + "\n")
    assert faults_of_a_flat_file(path)


# Code that no file may contain

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}
UNSAFE_KEYWORDS = {("weights_only", False), ("allow_pickle", True)}


def faults_of_code(path):
    """What in a Python file runs code that comes with data."""
    faults = []
    for node in ast.walk(ast.parse(read(path))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found = [node.module] if node.module.partition(".")[0] in UNSAFE_MODULES else names & UNSAFE_CALLS
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).removeprefix("builtins.")
            found = [called] if called in UNSAFE_CALLS else []
            found += [
                f"{keyword.arg}={keyword.value.value}"
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in UNSAFE_KEYWORDS
            ]
        faults += [f"{path.name}, line {node.lineno}: {name}" for name in found]
    return faults


def test_no_code_from_data():
    files = python_files()
    assert {"modeling_axial.py", "conftest.py", "train_image_classification.py"} <= {path.name for path in files}
    assert not [fault for path in files for fault in faults_of_code(path)]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "import joblib.externals",
        "def f():\n    import dill",
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(text)",
        "from yaml import load",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_planted_code_from_data_is_found(tmp_path, source):
    path = tmp_path / "planted.py"
    path.write_text(source)
    assert faults_of_code(path)


@pytest.mark.parametrize("source", ["model.eval()", "yaml.safe_load(t)", "torch.load(p)", "spec.loader.exec_module(m)"])
def test_good_code_has_no_fault(tmp_path, source):
    path = tmp_path / "good.py"
    path.write_text(source)
    assert not faults_of_code(path)


def test_package_does_not_print():
    calls = [
        f"{path.name}, line {node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert not calls


# Text that no file may contain. The patterns do not match themselves.

UNWANTED_TEXT = {
    "a path of someone's machine": re.compile(r"(?<![\w.:-])/(work|root|home|Users|tmp)/\w"),
    "work left over": re.compile(r"\b(TOD[O]|FIXM[E]|XX[X])\b"),
}


def unwanted_text(text):
    return [name for name, pattern in UNWANTED_TEXT.items() if pattern.search(text)]


def test_no_unwanted_text():
    checked = 0
    for path in project_files():
        try:
            text = read(path)
        except UnicodeDecodeError:
            continue  # weights and pictures
        assert not unwanted_text(text), path
        checked += 1
    assert checked > 30


def test_unwanted_text_is_found():
    # Put together here, or this file would contain it.
    for line in ["open('" + "/work" + "/x')", "see " + "/root" + "/x", '"' + "/tmp" + '/dev/x"', "# TO" + "DO: later"]:
        assert unwanted_text(line), line
    for line in ["outputs/work/x", "https://host/home/x", "https://a.b/tmp/x", "methodology", "a/work/x"]:
        assert not unwanted_text(line), line


# Lists that must agree with what is there


def requirements():
    project = PROJECT["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != "kernels"]
    listed = project["dependencies"] + sum(extras, [])
    return [Requirement(line) for line in listed if canonicalize_name(Requirement(line).name) != project["name"]]


def pins():
    lines = [line for line in read(ROOT / "constraints.txt").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "only exact public versions"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_requirement_is_a_lower_bound_and_pinned(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    # Our classes derive from those of these two, which break with a new major version.
    has_ceiling = canonicalize_name(requirement.name) in ("transformers", "huggingface-hub")
    assert operators == ({">=", "<"} if has_ceiling else {">="})
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_triton_is_pinned_by_the_makefile_alone():
    (line,) = PROJECT["project"]["optional-dependencies"]["kernels"]
    (pin,) = re.findall(r"^TRITON := (\S+)$", read(ROOT / "Makefile"), re.MULTILINE)
    assert re.fullmatch(r"triton>=[\d.]+", line) and Requirement(line).specifier.contains(pin)
    assert "triton" not in pins()  # or builds of torch for CUDA, which demand another version, could not be installed


# Where the two names differ.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "skimage": "scikit-image"}


def third_party_imports(folder):
    own = {path.name for path in ROOT.iterdir()} | {path.stem for path in folder.rglob("*.py")}
    imported = set()
    for path in folder.rglob("*.py"):
        if path.parent.name == "benchmarks":
            continue  # they say themselves with what they compare, and how to install it
        for node in sum(eager_and_lazy_imports(ast.parse(read(path))), []):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif not node.level:
                imported.add(node.module.partition(".")[0])
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported - own - sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("folder", "extras"),
    {
        "modeling_axial": ["kernels"],  # which test_flat_files_can_travel keeps out of the files that travel
        "examples": ["demo", "generate", "fields", "segmentation", "hub", "features"],
        "tests": ["demo", "generate", "fields", "segmentation", "hub", "features", "browser", "test"],
    }.items(),
)
def test_what_is_imported_is_required(folder, extras):
    extra_lines = [line for extra in extras for line in PROJECT["project"]["optional-dependencies"][extra]]
    named = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"] + extra_lines}
    imported = third_party_imports(ROOT / folder)
    assert {"torch", "transformers"} <= imported
    assert imported <= named


def test_packages_are_named():
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in PACKAGE.rglob("*.py")
        if path.parent == PACKAGE or path.name == "__init__.py"
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there
    assert (PACKAGE / "py.typed").is_file()


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_its_test(path):
    test_file = ROOT / "tests" / path.parent.relative_to(PACKAGE) / f"test_{path.name}"
    assert "def test_" in read(test_file)


def fenced_commands(text):
    """The shell commands of a Markdown text, one a line, continuation lines joined, comments cut off."""
    blocks = re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = re.sub(r"(^|\s)#.*", "", "".join(blocks).replace("\\\n", " "), flags=re.MULTILINE).splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def recipe(target, folder):
    """What `make target` runs in a fresh clone, without the bookkeeping of the installation."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    command = ["make", "--dry-run", "PYTHON=python3", *target.split()]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    lines = run.stdout.replace("\\\n", " ").splitlines()
    commands = [" ".join(line.rpartition(" || ")[2].replace(" --clear", "").split()) for line in lines]
    return [command for command in commands if command.split()[0] not in ("rm", "touch")]


def test_readme_commands_are_those_of_the_makefile(tmp_path):
    readme = fenced_commands(read(ROOT / "README.md"))
    assert "make demo" in readme and "make test" in readme
    for command in readme:
        if command.startswith("make "):
            recipe(command.removeprefix("make "), tmp_path)  # fails if there is no such target
    for target in ("demo", "test"):
        for command in recipe(target, tmp_path):
            assert command in readme, f"the README spells out `make {target}`, but for: {command}"


def test_contributing_commands_are_there(tmp_path):
    commands = fenced_commands(read(ROOT / "CONTRIBUTING.md"))
    assert ".ci/run" in commands and len(commands) >= 4
    for command in commands:
        if command.startswith("make "):
            recipe(command.removeprefix("make "), tmp_path)


def test_fenced_commands_and_recipes_are_read(tmp_path):
    text = "```bash\nmake demo  # trains\n\n# only a comment\na \\\n    b\n```\n```python\nmake x\n```\n"
    assert fenced_commands(text) == ["make demo", "a b"]
    commands = recipe("test", tmp_path)
    assert [command.split()[0] for command in commands] == ["python3", ".venv/bin/python", ".venv/bin/python"]
    assert "constraints.txt" in commands[1] and "'.[test]'" in commands[1] and " -m pytest" in commands[2]
    with pytest.raises(subprocess.CalledProcessError):
        recipe("no-such-target", tmp_path)
