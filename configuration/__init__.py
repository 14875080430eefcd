"""Configuration classes, and the presets of `configuration/models` by name. A part of the repository, not installed."""

import json
import os
from pathlib import Path

from modeling_axial.configuration_axial import AxialConfig

__all__ = ["AxialConfig", "list_presets", "load_preset"]

PRESETS = Path(__file__).parent / "models"


def list_presets() -> list[str]:
    """Names of the presets: the files of `configuration/models`, without `.json`."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def load_preset(name_or_path: str | os.PathLike, **overrides) -> AxialConfig:
    """The configuration that a preset describes.

    Args:
        name_or_path: a name of `list_presets()`, or the path of a file like theirs, which ends in `.json`.
        overrides: fields with another value than in the preset.

    Raises:
        ValueError: for an unknown preset, or a file that is no preset.
        `ValueError`, `huggingface_hub.errors.StrictDataclassError`: what `AxialConfig` raises, for unknown keys too.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = PRESETS / f"{name_or_path}.json"
    if not path.is_file():
        raise ValueError(
            f"There is no preset {str(name_or_path)!r}: the presets are {', '.join(list_presets())}, and another file "
            "is opened by its path, ending in .json. pip does not install the presets: without a checkout of the "
            'repository, take the file from there and open it with AxialConfig.from_pretrained("path/to/preset.json").'
        )
    try:
        preset = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(preset, dict) or preset.get("model_type") != AxialConfig.model_type:
        raise ValueError(f'{path} must be a JSON object with "model_type": "{AxialConfig.model_type}".')
    return AxialConfig(**{**preset, **overrides})
