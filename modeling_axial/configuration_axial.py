"""Configuration of the axial encoder models (`AxialModel` and its heads)."""

import difflib
import inspect
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import as_validated_field, strict
from transformers import __version__
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
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
def probability(value: float | int) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"must be a probability in [0, 1), got {value}")


@as_validated_field
def positive_number(value: float | int) -> None:
    if not 0 < value < math.inf:
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
    derived_fields: ClassVar[tuple[str, ...]] = ("head_dim",)

    def _derived_values(self) -> dict[str, Any]:
        """What `derived_fields` follow to; a field that cannot be derived is missing."""
        if self.hidden_size % self.num_attention_heads:
            return {}
        return {"head_dim": self.hidden_size // self.num_attention_heads}

    def _derive(self, names: Iterable[str]) -> None:
        values = self._derived_values()
        for name in names:
            super().__setattr__(name, values.get(name))

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


# How each kind of feed-forward is split over ranks; convolutions stay whole.
FEED_FORWARD_TP_PLANS = {
    "mlp": {"fc1": "colwise", "fc2": "rowwise"},
    "gated_mlp": {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"},
    "convolution": {},
}


@strict
class AxialConfig(BackboneConfigMixin, StrictConfig):
    r"""
    Configuration of [`AxialModel`] and its heads, for grids of any number of axes (axes are counted slow to fast:
    time, depth, height, width).

    Args:
        image_size (`int` or one `int` per axis, defaults to 224):
            Pixels along each axis; an `int` stands for all axes. Other sizes are accepted at inference.
        patch_size (`int` or one `int` per axis, defaults to 16):
            Pixels of a patch along each axis. Its length **is** the number of axes; an `int` means 2 axes.
        head_dim (`int`, *optional*):
            Width of a head; `hidden_size // num_attention_heads` if not given.
        intermediate_size (`int`, *optional*):
            Width inside the feed-forward; `4 * hidden_size` if not given.
        attention_mode (`"sequential"` or `"sum"`, defaults to `"sequential"`):
            How the axes of one layer combine. `"sequential"`: each axis reads what the axes before it wrote, one
            layer reaches the full grid. `"sum"`: all axes read the same input, one layer reaches the cross.
        feed_forward (`"mlp"`, `"gated_mlp"` or `"convolution"`, defaults to `"mlp"`):
            `"convolution"` is the seed's: 3-wide convolution up, activation, 3-wide convolution back (1 to 3 axes).
        position_embedding (`"learned"`, `"rotary"` or `"none"`, defaults to `"learned"`):
            `"learned"`: one additive table per axis, interpolated to other sizes. `"rotary"`: rotation by the 1-D
            position along the attended axis.
        rope_theta (`float`, defaults to 10000.0):
            Base of the rotary wavelengths, which run from 2π to about 2π·rope_theta tokens.
        num_inducing_points (`int`, or one `int` or `None` per axis, *optional*):
            Mixes an axis by induced set attention through that many learned points, linear in the length of the axis;
            `None`: full attention along it.
        pooling (`"mean"` or `"attention"`, defaults to `"mean"`):
            How `pooler_output` sums up the grid: its mean, or attention by `num_pooling_seeds` learned seeds.
        num_pooling_seeds (`int`, defaults to 1):
            Seeds of `pooling="attention"`; `pooler_output` is `num_pooling_seeds * hidden_size` wide.
        reversible (`bool`, defaults to `False`):
            Two-stream residual arithmetic (`y1 = x1 + f(x2)`, `y2 = x2 + g(y1)`) instead of one stream. The two are
            different functions of the same weights.
        out_features, out_indices (`list[str]`, `list[int]`, *optional*):
            Which feature maps [`AxialBackbone`] returns, by name or by number in `stage_names` (`"stem"`, the
            embeddings, then `"stage1"`, `"stage2"`, ... for the layers); either follows from the other. Not given: the
            last layer.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: for a wrong type, an impossible value or combination.
        `ValueError`: for a keyword that is no field.
    """

    model_type = "axial"
    derived_fields = ("head_dim", "intermediate_size")
    base_model_fsdp_plan = {
        "embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    image_size: int | list[int] | tuple[int, ...] = positive_lengths(default=224)
    patch_size: int | list[int] | tuple[int, ...] = positive_lengths(default=16)
    num_channels: int = positive_int(default=3)
    hidden_size: int = positive_int(default=384)
    num_hidden_layers: int = number_of_layers(default=12)
    num_attention_heads: int = positive_int(default=6)
    head_dim: int | None = positive_int(default=None)
    intermediate_size: int | None = positive_int(default=None)
    hidden_act: str = activation_name(default="gelu")
    attention_mode: Literal["sequential", "sum"] = "sequential"
    feed_forward: Literal["mlp", "gated_mlp", "convolution"] = "mlp"
    position_embedding: Literal["learned", "rotary", "none"] = "learned"
    rope_theta: float | int = positive_number(default=10000.0)
    num_inducing_points: int | None | list[int | None] | tuple[int | None, ...] = positive_ints_or_none(default=None)
    pooling: Literal["mean", "attention"] = "mean"
    num_pooling_seeds: int = positive_int(default=1)
    reversible: bool = False
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = probability(default=0.0)
    attention_probs_dropout_prob: float | int = probability(default=0.0)
    layer_norm_eps: float | int = positive_number(default=1e-6)
    initializer_range: float | int = non_negative_number(default=0.02)
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    def _derived_values(self) -> dict[str, Any]:
        return super()._derived_values() | {"intermediate_size": 4 * self.hidden_size}

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Pixels of a patch along each axis, slow to fast."""
        return (self.patch_size,) * 2 if isinstance(self.patch_size, int) else tuple(self.patch_size)

    @property
    def num_axes(self) -> int:
        """Number of grid axes."""
        return len(self.patch_shape)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Pixels of the native image along each axis, slow to fast."""
        return (self.image_size,) * self.num_axes if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def inducing_points(self) -> tuple[int | None, ...]:
        """Number of inducing points of each axis, slow to fast; None for full attention."""
        points = self.num_inducing_points
        return tuple(points) if isinstance(points, list | tuple) else (points,) * self.num_axes

    @property
    def pooled_size(self) -> int:
        """Width of the pooled output."""
        return self.hidden_size * (self.num_pooling_seeds if self.pooling == "attention" else 1)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Tokens of the native grid along each axis, slow to fast."""
        return tuple(pixels // patch for pixels, patch in zip(self.image_shape, self.patch_shape, strict=True))

    @property
    def base_model_tp_plan(self) -> dict[str, str]:  # pyrefly: ignore[bad-override]  it depends on the fields
        """How tensor parallelism splits the layers: attention by heads, the feed-forward by its inner width."""
        attention = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}
        parts = [""] if None in self.inducing_points else []
        if any(self.inducing_points):
            parts += ["gather.", "scatter."]
        plan = {f"attention.axes.*.{part}{name}": style for part in parts for name, style in attention.items()}
        plan |= {f"feed_forward.net.{name}": style for name, style in FEED_FORWARD_TP_PLANS[self.feed_forward].items()}
        return {f"layers.*.{name}": style for name, style in plan.items()}

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that a backbone can return."""
        return ["stem", *(f"stage{layer}" for layer in range(1, self.num_hidden_layers + 1))]

    def set_output_features_output_indices(self, out_features: list[str] | None, out_indices: list[int] | None) -> None:
        """As in transformers, but no choice is kept as none, so that it survives another number of layers."""
        self._out_features = self._out_indices = None
        if out_features is not None or out_indices is not None:
            super().set_output_features_output_indices(out_features, out_indices)

    @BackboneConfigMixin.out_features.getter
    def out_features(self) -> list[str]:
        return self.stage_names[-1:] if self._out_features is None else self._out_features

    @BackboneConfigMixin.out_indices.getter
    def out_indices(self) -> list[int]:
        return [self.num_hidden_layers] if self._out_indices is None else self._out_indices

    def validate_architecture(self):
        """Checks the rules that tie fields to each other; raises `ValueError` naming fields, values and the rule."""
        if getattr(self, "is_heterogeneous", False):  # not in every transformers that we support
            raise ValueError("per_layer_config cannot be used: the layers of an axial model are alike.")
        super().validate_architecture()
        if len(self.image_shape) != self.num_axes:
            raise ValueError(
                f"image_size={self.image_size} has {len(self.image_shape)} axes but patch_size={self.patch_size} has "
                f"{self.num_axes}: give both the same length (an int patch_size means 2 axes)."
            )
        if any(pixels % patch for pixels, patch in zip(self.image_shape, self.patch_shape, strict=True)):
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size} along every axis."
            )
        if len(self.inducing_points) != self.num_axes:
            raise ValueError(
                f"num_inducing_points={self.num_inducing_points} must be one number, or one for each of the "
                f"{self.num_axes} axes of patch_size={self.patch_size}."
            )
        if self.head_dim is None:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads="
                f"{self.num_attention_heads}, or head_dim must be given."
            )
        if self.position_embedding == "rotary" and self.head_dim % 2:
            raise ValueError(f'position_embedding="rotary" rotates pairs: head_dim={self.head_dim} must be even.')
        if self.feed_forward == "convolution" and self.num_axes > 3:
            raise ValueError(
                f'feed_forward="convolution" exists for 1 to 3 axes, patch_size={self.patch_size} has '
                f'{self.num_axes}: use "mlp" or "gated_mlp".'
            )
