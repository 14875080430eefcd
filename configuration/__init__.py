"""Configuration classes, and the presets of `configuration/models` by name. A part of the repository, not installed."""

import json
import os
from pathlib import Path

from modeling_axial.configuration_axial import AxialConfig
from modeling_axial.configuration_axial_decoder import AxialDecoderConfig

__all__ = ["AxialConfig", "AxialDecoderConfig", "list_presets", "load_preset"]

PRESETS = Path(__file__).parent / "models"
CONFIG_CLASSES = {config_class.model_type: config_class for config_class in (AxialConfig, AxialDecoderConfig)}


def list_presets() -> list[str]:
    """Names of the presets: the files of `configuration/models`, without `.json`."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def load_preset(name_or_path: str | os.PathLike, **overrides) -> AxialConfig | AxialDecoderConfig:
    """The configuration that a preset describes, of the class that its `model_type` names.

    Args:
        name_or_path: a name of `list_presets()`, or the path of a file like theirs, which ends in `.json`.
        overrides: fields with another value than in the preset.

    Raises:
        ValueError: for an unknown preset, a file that is no preset, or a key that is no field of the class.
        `huggingface_hub.errors.StrictDataclassError`: for a wrong type, an impossible value or combination.
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
    model_type = preset.get("model_type") if isinstance(preset, dict) else None
    if model_type not in CONFIG_CLASSES:
        known = " or ".join(f'"model_type": "{name}"' for name in CONFIG_CLASSES)
        raise ValueError(f"{path} must be a JSON object with {known}.")
    return CONFIG_CLASSES[model_type](**{**preset, **overrides})
