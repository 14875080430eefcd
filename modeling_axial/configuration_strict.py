"""What the configurations of all models here share: a strict base class, rules for fields, and what blocks read."""

import difflib
import inspect
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from huggingface_hub.dataclasses import as_validated_field
from transformers import __version__
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

# What other tools, and transformers itself, store in config.json without being a field of any config class.
KEYS_OF_OTHER_TOOLS = frozenset(
    {"model_type", "auto_map", "_name_or_path", "_commit_hash", "custom_pipelines", "quantization_config"}
)

# Bounds of what is already built when a config.json is read: lists of as many stages, names of as many classes.
MAX_LAYERS = 10_000
MAX_LABELS = 1_000_000


@as_validated_field
def number_of_layers(value: int) -> None:
    if not 1 <= value <= MAX_LAYERS:
        raise ValueError(f"must be from 1 to {MAX_LAYERS}, got {value}")


@as_validated_field
def positive_int(value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"must be at least 1, got {value}")


@as_validated_field
def positive_lengths(value: int | list[int] | tuple[int, ...]) -> None:
    lengths = [value] if isinstance(value, int) else value
    if len(lengths) == 0 or min(lengths) < 1:
        raise ValueError(f"must be one length, or one per axis (slow to fast), each at least 1, got {value}")


@as_validated_field
def positive_ints_or_none(value: int | None | list[int | None] | tuple[int | None, ...]) -> None:
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) == 0 or any(number is not None and number < 1 for number in values):
        raise ValueError(f"must be one number, or one per axis (slow to fast), each at least 1 or None, got {value}")


@as_validated_field
def booleans(value: bool | list[bool] | tuple[bool, ...]) -> None:
    if isinstance(value, list | tuple) and len(value) == 0:
        raise ValueError(f"must be True or False, or one of them per axis (slow to fast), got {value}")


@as_validated_field
def names_or_none(value: str | None | list[str | None] | tuple[str | None, ...]) -> None:
    if isinstance(value, list | tuple) and len(value) == 0:
        raise ValueError(f"must be one name, or one name or None per axis (slow to fast), got {value}")


@as_validated_field
def sums_of_names(value: str | list[str] | tuple[str, ...]) -> None:
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) == 0 or not all(re.fullmatch(r"\w+(\+\w+)*", names) for names in values):
        raise ValueError(f'must be names joined by "+", or one such text per axis (slow to fast), got {value!r}')


@as_validated_field
def probability(value: float | int) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"must be a probability in [0, 1), got {value}")


@as_validated_field
def fractions(value: list[float | int] | tuple[float | int, ...]) -> None:
    if len(value) == 0 or not all(0 < number < 1 for number in value):
        raise ValueError(f"must be numbers between 0 and 1, at least one, got {value}")


@as_validated_field
def weights_or_none(value: list[float | int] | tuple[float | int, ...] | None) -> None:
    if value is not None and (not all(0 <= number < math.inf for number in value) or not any(value)):
        raise ValueError(f"must be finite and not negative, and not all 0, got {value}")


@as_validated_field
def positive_number(value: float | int | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"must be finite and greater than 0, got {value}")


@as_validated_field
def non_negative_number(value: float | int) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"must be finite and not negative, got {value}")


@as_validated_field
def activation_name(value: str) -> None:
    if value not in ACT2FN:
        raise ValueError(f"must be one of transformers' activations {sorted(ACT2FN)}, got {value!r}")


@as_validated_field
def dtype_name(value: str | torch.dtype | None) -> None:
    if isinstance(value, str) and not isinstance(getattr(torch, value, None), torch.dtype):
        raise ValueError(f"must be a torch.dtype or its name, such as 'bfloat16', got {value!r}")


@as_validated_field
def names_of_classes(value: dict[int, str] | dict[str, str] | None) -> None:
    if value is not None and sorted(map(str, value)) != sorted(map(str, range(len(value)))):
        raise ValueError(f"must name each class from 0 to {len(value) - 1}, got {value}")


# What `position_embedding` takes. Code that adds a kind to `POSITION_KINDS` adds its name here.
POSITION_NAMES = {"none", "learned", "rotary", "relative"}


def check_positions(
    position_embedding: str | list[str] | tuple[str, ...], names: tuple[str, ...], head_dim: int
) -> None:
    """Raises `ValueError` unless `names`, those of an axis in `position_embedding`, can be its kinds of position."""
    unknown = [name for name in names if name not in POSITION_NAMES]
    if unknown:
        raise ValueError(
            f"position_embedding={position_embedding!r}: {unknown[0]!r} is none of {', '.join(sorted(POSITION_NAMES))}."
        )
    if len(set(names)) < len(names) or ("none" in names and names != ("none",)):
        raise ValueError(f'position_embedding={position_embedding!r} must name each kind once, and "none" alone.')
    if "rotary" in names and head_dim % 2:
        raise ValueError(f'position_embedding="rotary" rotates pairs: head_dim={head_dim} must be even.')


# A width that follows from other fields where it is not given. It may be given as None, and is always read as a number.
if TYPE_CHECKING:
    DerivedInt = int
else:
    DerivedInt = int | None


class StrictConfig(PreTrainedConfig):
    """A transformers config that refuses what it does not know.

    Constructor: an unknown keyword raises `ValueError` with the nearest field name. Reading a stored config
    (`from_dict`, `from_pretrained`) warns about unknown keys and drops them, so that a file written by a newer
    transformers still opens, but raises for unknown keyword arguments of the call. `to_dict` leaves out attributes
    that are no field, so that nothing is written that the constructor would refuse. Fields that were derived from
    others are stored as None, and follow when these change, later or in a call of `from_pretrained`. Tuples become
    lists and names of dtypes become dtypes, as after reading JSON, so that a config equals its reloaded self.
    """

    # The fields of every transformers config, whose types are not checked because they are declared as strings.
    architectures: list[str] | None = None
    output_hidden_states: bool | None = False
    return_dict: bool | None = True
    dtype: str | torch.dtype | None = dtype_name(default=None)
    chunk_size_feed_forward: int = 0
    is_encoder_decoder: bool = False
    id2label: dict[int, str] | dict[str, str] | None = names_of_classes(default=None)
    label2id: dict[str, int] | dict[str, str] | None = None
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    # Fields that follow from others as long as they are None. They read as numbers, and are stored as None.
    derived_fields: ClassVar[tuple[str, ...]] = ("head_dim", "intermediate_size")

    def _derived_values(self) -> dict[str, int | None]:
        """What each of `derived_fields` follows to; None where it must be given."""
        heads_fit = self.hidden_size % self.num_attention_heads == 0
        return {
            "head_dim": self.hidden_size // self.num_attention_heads if heads_fit else None,
            "intermediate_size": 4 * self.hidden_size,
        }

    def _derive(self, names: Iterable[str]) -> None:
        values = self._derived_values()
        for name in names:
            super().__setattr__(name, values[name])

    def __post_init__(self, _unknown_keys: Literal["raise", "warn"] = "raise", **kwargs):
        derived = {name for name in self.derived_fields if getattr(self, name) is None}
        self._derive(derived)
        self._refuse_derived(kwargs)
        if (model_type := kwargs.pop("model_type", self.model_type)) != self.model_type:
            raise ValueError(f"{type(self).__name__} has model_type={self.model_type!r}, got {model_type!r}.")
        unknown = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("_") and not self._is_known(key)}
        # transformers would replace a lone label2id, and leave a lone id2label without its counterpart.
        if self.id2label is None and self.label2id is not None:
            self.id2label = {int(index): label for label, index in self.label2id.items()}
        elif self.label2id is None and self.id2label is not None:
            self.label2id = {label: int(index) for index, label in self.id2label.items()}
        own_attributes = set(self.__dict__)
        try:
            super().__post_init__(**kwargs)
        except (AttributeError, TypeError) as error:  # transformers does not check the values of its keywords
            raise ValueError(f"{type(self).__name__} cannot be made with {kwargs}: {error}") from error
        self.transformers_version = __version__  # the writer's version is no difference between two configs
        # Whatever transformers consumed is gone by now; what nobody knew has become an attribute.
        for key in [key for key in self.__dict__ if key not in own_attributes and not key.startswith("_")]:
            if not self._is_known(key):
                unknown[key] = self.__dict__.pop(key)
        for key, value in unknown.items():
            message = f"{type(self).__name__} has no field {key!r} (value {value!r}){self._suggestion(key)}"
            if _unknown_keys == "raise":
                raise ValueError(message)
            warnings.warn(f"{message} Ignored.", stacklevel=2)
        self._derived = derived

    def validate_architecture(self):
        """Checks the rules that tie fields to each other; raises `ValueError` naming fields, values and the rule."""
        if getattr(self, "is_heterogeneous", False):  # not in every transformers that we support
            raise ValueError("per_layer_config cannot be used: the layers of this model are alike.")
        super().validate_architecture()
        if self.head_dim is None:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads="
                f"{self.num_attention_heads}, or head_dim must be given."
            )

    def validate_output_attentions(self):
        """Nothing to refuse: with a backend that gives no maps, the model uses eager attention for that call."""

    @classmethod
    def _field_names(cls) -> list[str]:
        return [field.name for field in fields(cls)]

    @classmethod
    def _is_known(cls, key: str) -> bool:
        """Whether the constructor takes `key`: a field, a property that can be set, or what other tools store."""
        descriptor = inspect.getattr_static(cls, key, None)
        can_be_set = isinstance(descriptor, property) and descriptor.fset is not None
        return can_be_set or key in KEYS_OF_OTHER_TOOLS or key in cls._field_names()

    @classmethod
    def _refuse_derived(cls, keys: Iterable[str]) -> None:
        for key in keys:
            if isinstance(inspect.getattr_static(cls, key, None), property) and not cls._is_known(key):
                raise ValueError(f"{cls.__name__} derives {key!r} from other fields; it cannot be set.")

    @classmethod
    def _suggestion(cls, key: str) -> str:
        nearest = difflib.get_close_matches(key, cls._field_names(), n=1)
        return f": did you mean {nearest[0]!r}?" if nearest else "."

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "num_labels" and (type(value) is not int or value < 0):
            raise ValueError(f"num_labels must be an int of at least 0, got {value!r}")
        if key == "num_labels" and value > MAX_LABELS:
            raise ValueError(f"num_labels must be at most {MAX_LABELS}, got {value}")
        if key == "num_labels" and value == 1 and self.id2label is not None and len(self.id2label) > 1:
            # One label instead of several is a number to predict. As a choice among one class its loss would be 0.
            if self.problem_type == "single_label_classification":
                self.problem_type = None
        if isinstance(value, tuple):
            value = list(value)
        if key == "dtype" and isinstance(value, str):
            value = getattr(torch, value)
        super().__setattr__(key, value)
        if "_derived" in self.__dict__ and key in self._field_names():  # no longer under construction
            if key in self.derived_fields:
                (self._derived.add if value is None else self._derived.discard)(key)
            self._derive(self._derived)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        cls._refuse_derived(kwargs)
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        if kwargs.get("dtype") == "auto":  # as stored
            del kwargs["dtype"]
        # Not set one by one after the construction, as transformers does: other fields may derive from them.
        overrides = {key: kwargs.pop(key) for key in cls._field_names() if key in kwargs}
        # transformers would replace a method by a keyword of its name.
        unused = {key: kwargs.pop(key) for key in list(kwargs) if hasattr(cls, key) and not cls._is_known(key)}
        config_dict = {**config_dict, **overrides, "_unknown_keys": "warn"}
        config_and_unused: Any = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        config, others = config_and_unused
        config.validate()
        unused |= others
        if return_unused_kwargs:  # transformers hands these to the model's constructor, which refuses unknown ones
            return config, unused
        for key, value in unused.items():
            raise ValueError(f"{cls.__name__} has no field {key!r} (value {value!r}){cls._suggestion(key)}")
        return config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict[str, Any]:
        known = {key: value for key, value in super().to_dict().items() if self._is_known(key)}
        return known | dict.fromkeys(self._derived)


@dataclass(frozen=True)
class AxisDescription:
    """One axis of the grid: all that its layers read of what may differ from axis to axis."""

    axis: int
    length: int  # in tokens, of the native grid
    num_heads: int = field(kw_only=True)  # that attend along it in each of its layers
    positions: tuple[str, ...] = ("learned",)  # names of `POSITION_KINDS`
    rope_theta: float = 10000.0
    mixer: str = "full"  # a name of `MIXER_CLASSES`
    num_inducing_points: int | None = None
    attention_window: int | None = None
    periodic: bool = False
    use_qk_norm: bool = False

    @property
    def reach(self) -> int:
        """The largest distance, in cells, of two cells of the native grid of which one may read the other."""
        farthest = self.length // 2 if self.periodic else self.length - 1
        return farthest if self.attention_window is None else min(farthest, self.attention_window)


class BlockConfig(Protocol):
    """What a block and its parts read of a configuration, of whatever model type."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Tokens of the native grid along each axis, slow to fast."""
        ...

    @property
    def axes(self) -> tuple[AxisDescription, ...]:
        """The axes of the grid, slow to fast."""
        ...

    @property
    def feed_forward(self) -> str: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def hidden_dropout_prob(self) -> float: ...
    @property
    def attention_probs_dropout_prob(self) -> float: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def _attn_implementation(self) -> str | None: ...
