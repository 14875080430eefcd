"""
Makes this repository a model repository: copies the model that `make demo` has trained into its root.

    python examples/make_checkpoint.py

Writes `config.json`, `preprocessor_config.json`, `model.safetensors` and the metadata at the top of `README.md`. In a
trained folder the code lies beside the weights. Here it lies in `modeling_axial/`, and the `auto_map` of both JSON
files says so with a slash.
"""

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

ROOT = Path(__file__).resolve().parents[1]
TRAINED = ROOT / "outputs" / "digits"
LARGEST = 2 * 1024**2  # bytes; the weights travel with every clone


def code_in_folder(stored: dict) -> dict:
    """The contents of a JSON file of a checkpoint, for a repository that keeps the code in `modeling_axial/`."""
    auto_map = {auto_class: f"modeling_axial/{where}" for auto_class, where in stored["auto_map"].items()}
    return stored | {"auto_map": auto_map}


def main() -> None:
    weights = TRAINED / "model.safetensors"
    if not weights.exists():
        raise FileNotFoundError(f"{weights} is missing: run `make demo` first")
    if weights.stat().st_size > LARGEST:
        raise ValueError(f"{weights} has {weights.stat().st_size} bytes, at most {LARGEST} are to be in the repository")
    shutil.copyfile(weights, ROOT / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        stored = json.loads((TRAINED / name).read_text(encoding="utf-8"))
        text = json.dumps(code_in_folder(stored), indent=2, sort_keys=True) + "\n"
        (ROOT / name).write_text(text, encoding="utf-8")
    readme = ModelCard.load(ROOT / "README.md")
    readme.data = ModelCard.load(TRAINED / "README.md").data
    readme.data.model_name = "axial-digits"
    readme.save(ROOT / "README.md")
    print(f"The checkpoint of {TRAINED} is now that of {ROOT}.")


if __name__ == "__main__":
    main()
