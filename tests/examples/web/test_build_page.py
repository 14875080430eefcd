import hashlib
import io
import json
import re
import tarfile
from base64 import b64encode

import numpy as np
import pytest

from examples.segmentation_data import read_tiff
from examples.segmentation_samples import STARDIST, Nuclei2d
from examples.web import build_page
from modeling_axial import AxialConfig
from tests.conftest import ROOT

PAGE = ROOT / "examples" / "web" / "page"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package where the runtime of the right hash is looked for."""
    path = tmp_path / build_page.PACKAGE
    with tarfile.open(path, "w:gz") as archive:
        for name in (*build_page.RUNTIME_FILES, "other.js"):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(build_page, "RUNTIME_SHA512", b64encode(hashlib.sha512(path.read_bytes()).digest()).decode())
    return path


def test_the_runtime_is_checked_and_unpacked(package, tmp_path):
    assert build_page.fetch_runtime(tmp_path) == package
    build_page.unpack_runtime(package, tmp_path / "runtime")
    assert {path.name: path.read_text() for path in (tmp_path / "runtime").iterdir()} == {
        name: name for name in build_page.RUNTIME_FILES
    }


def test_another_runtime_is_refused(package, tmp_path):
    package.write_bytes(package.read_bytes() + b"more")
    with pytest.raises(ValueError, match=f"has the SHA-512 .* not {re.escape(build_page.RUNTIME_SHA512)}: remove it"):
        build_page.fetch_runtime(tmp_path)


def test_without_npm_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=r"npm is missing, .* put onnxruntime-web-1.30.0.tgz into "):
        build_page.fetch_runtime(tmp_path)


@pytest.mark.audit
@pytest.mark.slow
def test_the_page_is_built(package, exported, tmp_path):
    folder = tmp_path / "web"
    (folder / "left").mkdir(parents=True)
    build_page.build(folder, package, exported)
    built = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {path.name for path in PAGE.iterdir()}
    graphs = {f"models/{name}.onnx" for name in ("classifier", "context", "pixel", "row", "segmenter")}
    assert built == own | graphs | {f"runtime/{name}" for name in build_page.RUNTIME_FILES} | {
        "settings.json",
        "examples.bin",
        "nuclei.bin",
    }
    told = json.loads((folder / "settings.json").read_text())
    stored = json.loads((ROOT / "preprocessor_config.json").read_text())
    assert all(told[name] == stored[name] for name in ("rescale_factor", "image_mean", "image_std"))
    assert (told["rows"], told["columns"]) == (28, 28) and told["classes"] == [str(digit) for digit in range(10)]
    assert sorted(told["example_labels"]) == sorted([*range(10)] * 2)
    assert (folder / "examples.bin").stat().st_size == 20 * 28 * 28
    stored = json.loads((ROOT / "checkpoints" / "nuclei2d" / "preprocessor_config.json").read_text())
    segmenter = told["segmenter"]
    assert [segmenter["image_mean"]] == stored["image_mean"] and [segmenter["image_std"]] == stored["image_std"]
    assert (segmenter["side"], segmenter["rescale_factor"]) == (256, 1)
    pictures, masks = example_nuclei()
    written = np.frombuffer((folder / "nuclei.bin").read_bytes(), np.uint8).reshape(-1, 2, 256, 256)
    assert len(segmenter["example_rows"]) == len(pictures) == 3
    np.testing.assert_array_equal(written[:, 0], pictures)
    np.testing.assert_array_equal(written[:, 1], masks)


def example_nuclei():
    return build_page.example_nuclei(AxialConfig(image_size=[8, 8], patch_size=4, num_channels=1))


def test_nuclei_are_of_the_half_that_was_kept_out_of_training():
    picture, mask = (
        read_tiff(STARDIST.file(f"data/images/{name}", sha256)) for name, sha256 in Nuclei2d.sha256.items()
    )
    pictures, masks = example_nuclei()
    assert pictures.dtype == masks.dtype == np.uint8
    for row, part, nuclei in zip((0, 128, 256), pictures, masks, strict=True):
        np.testing.assert_array_equal(part, picture[row : row + 256, 256:])
        np.testing.assert_array_equal(nuclei, mask[row : row + 256, 256:] > 0)


def test_the_page_has_no_inline_code_and_no_foreign_address():
    texts = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    for name, text in texts.items():
        assert "://" not in text, name
    page = texts["index.html"]
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", page)
    modules = {name for name in texts if name.endswith(".js")}
    for name in modules:
        assert texts[name].startswith("/** "), f"{name} says first what it is"
    imported = {name for text in texts.values() for name in re.findall(r'(?:from |src=)"(?:\./)?(\w+\.js)"', text)}
    assert imported == modules
