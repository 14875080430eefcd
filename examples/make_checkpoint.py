"""
Makes this repository a model repository: copies models that were trained here into it.

    python examples/make_checkpoint.py digits
    python examples/make_checkpoint.py digits-autoregressive nuclei2d tables

The first is what `make demo` has trained in `outputs/digits`, and goes into the root: its weights and JSON files, and
the metadata at the top of `README.md`. Any other folder of `outputs/` goes into `checkpoints/`, with its model card,
its pictures and what a forecast needs beside the weights; it is opened with `subfolder=`, that of the tables by
`tabular_in_context.py`. In a trained folder the code lies beside the weights. Here it lies in `modeling_axial/`, for
all of them, and the `auto_map` of the JSON files says so with a slash.
"""

import json
import shutil
import sys
from pathlib import Path

from huggingface_hub import ModelCard

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 2 * 1024**2  # bytes; the weights travel with every clone
# Beside the model card, of those that there are; without what a stopped run needs to go on.
COMPANIONS = ("samples.png", "predictions.png", "forecast.json", "climatology.npy")


def code_in_folder(stored: dict) -> dict:
    """The contents of a JSON file of a checkpoint, for a repository that keeps the code in `modeling_axial/`."""
    auto_map = {auto_class: f"modeling_axial/{where}" for auto_class, where in stored["auto_map"].items()}
    return stored | {"auto_map": auto_map}


def copy_checkpoint(trained: Path, target: Path) -> None:
    """Copies weights and configuration without the code."""
    weights = trained / "model.safetensors"
    if not weights.exists():
        raise FileNotFoundError(f"{weights} is missing: train the model first, `make demo` does for the digits")
    if weights.stat().st_size > LARGEST:
        raise ValueError(f"{weights} has {weights.stat().st_size} bytes, at most {LARGEST} are to be in the repository")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, target / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        if (trained / name).exists():
            stored = json.loads((trained / name).read_text(encoding="utf-8"))
            text = json.dumps(code_in_folder(stored), indent=2, sort_keys=True) + "\n"
            (target / name).write_text(text, encoding="utf-8")


def make_digits(trained: Path) -> None:
    copy_checkpoint(trained, ROOT)
    readme = ModelCard.load(ROOT / "README.md")
    readme.data = ModelCard.load(trained / "README.md").data
    readme.data.model_name = "axial-digits"
    readme.save(ROOT / "README.md")


def make_subfolder(trained: Path) -> None:
    subfolder = f"checkpoints/{trained.name}"
    copy_checkpoint(trained, ROOT / subfolder)
    for name in COMPANIONS:
        if (trained / name).exists():
            shutil.copyfile(trained / name, ROOT / subfolder / name)
    card = ModelCard.load(trained / "README.md")
    alone, inside = f'from_pretrained("{trained.name}"', f'from_pretrained(".", subfolder="{subfolder}"'
    if alone not in card.text:
        raise ValueError(f"the model card in {trained} does not say {alone}, which would have to become {inside}")
    card.text = card.text.replace(alone, inside)
    card.save(ROOT / subfolder / "README.md")


def make_tables(trained: Path) -> None:
    target = ROOT / "checkpoints" / trained.name
    copy_checkpoint(trained, target)
    shutil.copyfile(trained / "predictions.png", target / "predictions.png")
    card = ModelCard.load(trained / "README.md")
    card.text = card.text.replace(f'TableClassifier("{trained.name}")', "TableClassifier()")  # it is the default
    card.save(target / "README.md")


MAKERS = {"digits": make_digits, "tables": make_tables}  # others are made by `make_subfolder`


def main() -> None:
    names = sys.argv[1:]
    if not names:
        raise ValueError("name the checkpoints to make: `digits`, or other folders of outputs/")
    for name in names:
        MAKERS.get(name, make_subfolder)(ROOT / "outputs" / name)
        print(f"The model of outputs/{name} is now in this repository.")


if __name__ == "__main__":
    main()
