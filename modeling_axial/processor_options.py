"""Options of processors: unknown ones are refused by name, and the rules that several processors share."""

import difflib
import json
import os
import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin
from transformers.image_processing_utils import BaseImageProcessor

# What transformers stores in preprocessor_config.json, or has stored, without being an option.
KEYS_OF_TRANSFORMERS = frozenset(
    {"auto_map", "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys"}
)


class StrictOptions(ImageProcessingMixin):
    """Comes before an image processor's base class: the options of `valid_kwargs` and no others.

    An option that the constructor does not know is refused. In a preprocessor_config.json it is left out with a
    warning, so that a file of a newer transformers still opens. `from_pretrained` ignores keywords that are no options,
    because pipelines hand it those of the model.

    Raises:
        ValueError: an unknown option, with the nearest that there is.
    """

    valid_kwargs: type

    def __init__(self, **kwargs):
        self.refuse_unknown(kwargs)
        super().__init__(**kwargs)

    @classmethod
    def _unknown(cls, keys: Iterable[str]) -> dict[str, str]:
        """{key that is no option: what to say of it}."""
        names = list(cls.valid_kwargs.__annotations__)
        messages = {}
        for key in keys:
            if key not in names and key not in KEYS_OF_TRANSFORMERS:
                nearest = difflib.get_close_matches(key, names, n=1)
                suggestion = f": did you mean {nearest[0]!r}?" if nearest else "."
                messages[key] = f"{cls.__name__} has no option {key!r}{suggestion}"
        return messages

    @classmethod
    def refuse_unknown(cls, keys: Iterable[str]) -> None:
        for message in cls._unknown(keys).values():
            raise ValueError(message)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs) -> Any:
        unknown = cls._unknown(image_processor_dict)
        for message in unknown.values():
            warnings.warn(f"{message} Ignored.", stacklevel=2)
        known = {key: value for key, value in image_processor_dict.items() if key not in unknown}
        return super().from_dict(known, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        with open(json_file, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    def to_dict(self) -> dict[str, Any]:
        """Without attributes that are no options, which the constructor would refuse."""
        values = super().to_dict()
        unknown = self._unknown(values)
        return {key: value for key, value in values.items() if key not in unknown}


class ArrayProcessor(StrictOptions, BaseImageProcessor):
    """Base of processors of other data than pictures, of which transformers' own steps know nothing.

    Each has its options as attributes, `_standardize_kwargs`, which checks all of them, and `preprocess`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)

    def _options(self, **kwargs: Any) -> SimpleNamespace:
        """The processor's options, and in their place those given to a call."""
        self.refuse_unknown(kwargs)
        kept = {name: getattr(self, name) for name in self.valid_kwargs.__annotations__}
        return SimpleNamespace(**self._standardize_kwargs(**{**kept, **kwargs}))

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)


def whole_number(value: Any, name: str, least: int = 1) -> int:
    """An int of at least `least`, numpy's too, but neither True nor 3.0."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    return int(value)


def lengths(value: Any, name: str) -> tuple[int, ...]:
    """One positive int per axis. As in `AxialConfig`, an int alone means two axes."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (whole_number(value, name),) * 2
    numbers = tuple(whole_number(number, name) for number in value)
    if not numbers:
        raise ValueError(f"{name} must have one length per axis, got none")
    return numbers


def per_channel(value: Any, name: str, num_channels: int, positive: bool = False) -> tuple[float, ...]:
    """One finite number for all channels, or one each -> one each, as Python's floats."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be one number, or one per channel, got {value!r}") from error
    if numbers.ndim == 0:
        numbers = np.full(num_channels, numbers)
    if numbers.shape != (num_channels,):
        raise ValueError(f"{name} must be one number, or one for each of the {num_channels} channels, got {value!r}")
    if not np.isfinite(numbers).all() or (positive and (numbers <= 0).any()):
        raise ValueError(f"{name} must be finite{' and greater than 0' if positive else ''}, got {value!r}")
    return tuple(numbers.tolist())


def one_or_per_channel(value: Any, name: str, num_channels: int, positive: bool = False) -> float | tuple[float, ...]:
    """As `per_channel`, but one number stays one, as it is kept in a file."""
    numbers = per_channel(value, name, num_channels, positive)
    return numbers[0] if np.ndim(value) == 0 else numbers
