"""
Build the page that runs small models in a browser: `python examples/web/build_page.py`, or `make web`

What it writes is a folder of static files, ready to be served by any web server or uploaded as a static Space:

    python -m http.server --directory build/web

Needs the extras `segmentation` and `features`, and npm, which brings onnxruntime-web, whose version and hash are pinned
here.
"""

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from export_models import ROOT, SEGMENTER, SEGMENTER_SIDE, export_models, open_models
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from modeling_axial import (
    AxialConfig,
    AxialForCausalImageModeling,
    AxialForImageClassification,
    AxialForSemanticSegmentation,
)

sys.path.append(str(ROOT / "examples"))
from image_classification_data import Digits  # noqa: E402
from segmentation_samples import Nuclei2d  # noqa: E402

PAGE = Path(__file__).resolve().parent / "page"
RUNTIME = "onnxruntime-web@1.30.0"
PACKAGE = "onnxruntime-web-1.30.0.tgz"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The runtime for WebAssembly as one ES module, and the binary that it loads.
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
NUM_EXAMPLES = 20
# Rows at which the examples of nuclei begin, in the half of the picture that was kept out of training.
NUCLEI_ROWS = (0, 128, 256)


def fetch_runtime(cache: Path) -> Path:
    """The package of onnxruntime-web, which npm brings into the folder `cache` if it is not there; checked each time.

    Raises:
        FileNotFoundError: the package is not there, and npm is missing.
        ValueError: another file than the one pinned.
    """
    package = cache / PACKAGE
    if not package.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError(
                f"npm is missing, which brings {RUNTIME}: install it, or put {PACKAGE} into {cache}"
            )
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "pack", RUNTIME, "--silent"], cwd=cache, check=True, stdout=subprocess.DEVNULL)
    found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if found != RUNTIME_SHA512:
        raise ValueError(f"{package} has the SHA-512 {found}, not {RUNTIME_SHA512}: remove it, and it is fetched again")
    return package


def unpack_runtime(package: Path, folder: Path) -> None:
    """Puts the files of the package that the page needs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as archive:
        for name in RUNTIME_FILES:
            content = archive.extractfile(f"package/dist/{name}")
            (folder / name).write_bytes(content.read())


def example_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (20, 28, 28) and labels (20,), two of each class, from those that were kept out of training."""
    digits = Digits()
    pictures, labels = digits.pictures[digits.held_out], digits.labels[digits.held_out]
    # Sorted by class: taken in this order, neighbours are of different classes.
    order = np.arange(0, len(labels), len(labels) // NUM_EXAMPLES).reshape(-1, 2).T.ravel()
    return pictures[order], labels[order]


def example_nuclei(config: AxialConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and masks, 1 for nucleus, both uint8 (3, SEGMENTER_SIDE, SEGMENTER_SIDE), of the half that was kept out
    of training."""
    (held_out,) = Nuclei2d(config, fold=0).held_out
    crops = [held_out.crop((row, 0), (SEGMENTER_SIDE, SEGMENTER_SIDE)) for row in NUCLEI_ROWS]
    pictures, masks = zip(*crops, strict=True)
    return np.concatenate(pictures).astype(np.uint8), np.stack(masks)  # the file has 16 bits, of which it uses 8


def settings(
    processor: BaseImageProcessor,
    classifier: AxialForImageClassification,
    decoder: AxialForCausalImageModeling,
    labels: np.ndarray,
) -> dict:
    """What the page has to know beside the graphs: how pixels are prepared, the names of the classes, the labels of the
    examples, and what the page says of the models."""
    size = processor.size
    return {
        "runtime": RUNTIME,
        "classifier_weights": classifier.num_parameters(),
        "decoder_weights": decoder.num_parameters(),
        "classes": [classifier.config.id2label[index] for index in range(classifier.config.num_labels)],
        "rows": size.height,
        "columns": size.width,
        "rescale_factor": processor.rescale_factor,
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "example_labels": labels.tolist(),
    }


def segmenter_settings(processor: BaseImageProcessor, segmenter: AxialForSemanticSegmentation) -> dict:
    """The same for the model that finds nuclei, whose pixels are as those of the file, from 0 to 255."""
    (mean,), (deviation,) = processor.image_mean, processor.image_std
    return {
        "weights": segmenter.num_parameters(),
        "side": SEGMENTER_SIDE,
        "rescale_factor": 1,
        "image_mean": mean,
        "image_std": deviation,
        "example_rows": NUCLEI_ROWS,
    }


def build(folder: Path, package: Path, models: Path | None = None) -> None:
    """Writes the page into `folder`, anew. `models`: the folder of graphs that are exported already."""
    classifier, decoder, segmenter = open_models()
    digits, labels = example_digits()
    nuclei, masks = example_nuclei(segmenter.config)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PAGE, folder)
    unpack_runtime(package, folder / "runtime")
    if models is None:
        export_models(classifier, decoder, segmenter, folder / "models")
    else:
        shutil.copytree(models, folder / "models", ignore=lambda _, names: {n for n in names if n[-5:] != ".onnx"})
    (folder / "examples.bin").write_bytes(digits.tobytes())
    (folder / "nuclei.bin").write_bytes(np.stack((nuclei, masks), 1).tobytes())
    told = settings(AutoImageProcessor.from_pretrained(ROOT), classifier, decoder, labels)
    told["segmenter"] = segmenter_settings(AutoImageProcessor.from_pretrained(ROOT, subfolder=SEGMENTER), segmenter)
    (folder / "settings.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "web", help="the folder to write, anew")
    folder = parser.parse_args(arguments).output
    build(folder, fetch_runtime(ROOT / "build"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"{folder} holds the page, {size:.1f} MiB. To look at it: python -m http.server --directory {folder}")


if __name__ == "__main__":
    main()
