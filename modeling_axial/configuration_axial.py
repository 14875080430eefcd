"""Configuration of the axial encoder models (`AxialModel` and its heads)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_strict import (
    AxisDescription,
    DerivedInt,
    StrictConfig,
    activation_name,
    booleans,
    check_positions,
    fractions,
    names_or_none,
    non_negative_number,
    number_of_layers,
    positive_int,
    positive_ints_or_none,
    positive_lengths,
    positive_number,
    probability,
    sums_of_names,
    weights_or_none,
)

# How each kind of feed-forward is split over ranks; convolutions stay whole.
FEED_FORWARD_TP_PLANS = {
    "mlp": {"fc1": "colwise", "fc2": "rowwise"},
    "gated_mlp": {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"},
    "convolution": {},
}

# Where the projections of a mixer lie in it. A mixer that is not named here stays whole on each rank.
PROJECTIONS_OF_MIXERS = {"full": [""], "window": [""], "induced": ["gather.", "scatter."]}

# Fields that may have one value for each axis; `axes` reads them in this order.
FIELDS_PER_AXIS = ("position_embedding", "mixer", "num_inducing_points", "attention_window", "periodic")

# What `mixer` takes. Code that adds a class to `MIXER_CLASSES` adds its name here.
MIXER_NAMES = {"full", "induced", "window"}


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
        attention_mode (`"sequential"`, `"sum"`, `"split"` or `"alternating"`, defaults to `"sequential"`):
            How the axes of one layer combine. `"sequential"`: each axis reads what the axes before it wrote, one
            layer reaches the full grid. `"sum"`: all axes read the same input, one layer reaches the cross. `"split"`:
            as `"sum"`, with the heads shared out evenly over the axes, in the order of the axes (CSWin, Dong et al.
            2022, arXiv 2107.00652). `"alternating"`: one axis per layer, in turn; layer l, counted from 0, attends
            along axis l mod the number of axes, and reaches its line.
        feed_forward (`"mlp"`, `"gated_mlp"` or `"convolution"`, defaults to `"mlp"`):
            `"convolution"` is that of `axial_attention`: 3-wide convolution up, activation, 3-wide convolution back
            (1 to 3 axes).
        position_embedding (`str` or one `str` per axis, defaults to `"learned"`):
            `"learned"`: one additive table per axis, interpolated to other sizes. `"rotary"`: rotation by the 1-D
            position along the attended axis. `"relative"`: a learned bias per layer, head and distance along the
            attended axis. `"none"`. Or several at once, such as `"learned+relative"`.
        rope_theta (`float`, defaults to 10000.0):
            Base of the rotary wavelengths, which run from 2π to about 2π·rope_theta tokens.
        mixer (`str`, or one `str` or `None` per axis, *optional*):
            What mixes the cells of an axis, by its name in `MIXER_CLASSES`. Only needed for classes of your own: by
            default the next two fields decide, and without them it is full attention.
        num_inducing_points (`int`, or one `int` or `None` per axis, *optional*):
            Mixes an axis by induced set attention through that many learned points, linear in the length of the axis.
        attention_window (`int`, or one `int` or `None` per axis, *optional*):
            A cell reads the cells at most so far from it along the axis, linear in the length of the axis.
        periodic (`bool` or one `bool` per axis, defaults to `False`):
            The ends of the axis meet, as those of longitudes: positions, windows and convolutions go across. To roll
            the input by whole patches rolls the output, but for learned positions.
        pooling (`"mean"` or `"attention"`, defaults to `"mean"`):
            How `pooler_output` sums up the grid: its mean, or attention by `num_pooling_seeds` learned seeds.
        num_pooling_seeds (`int`, defaults to 1):
            Seeds of `pooling="attention"`; `pooler_output` is `num_pooling_seeds * hidden_size` wide.
        use_qk_norm (`bool`, defaults to `False`):
            Normalises the queries and keys of each head, before their positions are applied, by a layer norm with a
            scale and no bias: scores cannot grow without bound (Dehghani et al. 2023, arXiv 2302.05442).
        layer_scale_init_value (`float`, *optional*):
            Multiplies the update of a residual function, f (attention along the axes of a layer) or g (its
            feed-forward), by one learned number per channel, which starts at this value, before it is added
            (LayerScale). Not given: no such numbers.
        drop_path_rate (`float`, defaults to 0.0):
            Probability of dropping the whole update of a sample in training (stochastic depth), of f and g each by
            itself. Linear over depth: that of layer l of n, counted from 1, is `drop_path_rate * l / n`.
        reversible (`bool`, defaults to `False`):
            Two-stream residual arithmetic (`y1 = x1 + f(x2)`, `y2 = x2 + g(y1)`) instead of one stream. The two are
            different functions of the same weights.
        dense_head (`"linear"` or `"pyramid"`, defaults to `"linear"`):
            What turns the grid into a value per pixel, in the models that give one. `"linear"`: one linear layer, patch
            by patch. `"pyramid"`: convolutions at full and half resolution before the trunk and behind it, joined
            across it, which small pictures need (1 to 3 axes).
        pyramid_size (`int`, *optional*):
            Channels of the pyramid at full resolution, twice as many at half; `hidden_size // 4`, at least 1, if not
            given.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that [`AxialForSemanticSegmentation`] leaves out of its loss. -100 is left out as well.
        class_weights (one `float` per label, *optional*):
            Weights of the labels in the cross-entropy of [`AxialForSemanticSegmentation`].
        dice_loss_weight (`float`, defaults to 0.0):
            What the Dice loss counts beside the cross-entropy in [`AxialForSemanticSegmentation`].
        num_target_channels (`int`, defaults to 1):
            Numbers per pixel that [`AxialForDensePrediction`] predicts.
        prediction_loss (`"squared"`, `"absolute"` or `"quantile"`, defaults to `"squared"`):
            Error of [`AxialForDensePrediction`]. `"quantile"` predicts each of `quantiles`.
        quantiles (one or more `float` between 0 and 1, defaults to `[0.1, 0.5, 0.9]`):
            Quantiles of `prediction_loss="quantile"`.
        out_features, out_indices (`list[str]`, `list[int]`, *optional*):
            Which feature maps [`AxialBackbone`] returns, by name or by number in `stage_names` (`"stem"`, the
            embeddings, then `"stage1"`, `"stage2"`, ... for the layers); either follows from the other. Not given: the
            last layer.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: for a wrong type, an impossible value or combination.
        `ValueError`: for a keyword that is no field.
    """

    model_type = "axial"
    base_model_fsdp_plan = {
        "embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    derived_fields: ClassVar[tuple[str, ...]] = (*StrictConfig.derived_fields, "pyramid_size")

    image_size: int | list[int] | tuple[int, ...] = positive_lengths(default=224)
    patch_size: int | list[int] | tuple[int, ...] = positive_lengths(default=16)
    num_channels: int = positive_int(default=3)
    hidden_size: int = positive_int(default=384)
    num_hidden_layers: int = number_of_layers(default=12)
    num_attention_heads: int = positive_int(default=6)
    head_dim: DerivedInt = positive_int(default=None)
    intermediate_size: DerivedInt = positive_int(default=None)
    hidden_act: str = activation_name(default="gelu")
    attention_mode: Literal["sequential", "sum", "split", "alternating"] = "sequential"
    feed_forward: Literal["mlp", "gated_mlp", "convolution"] = "mlp"
    position_embedding: str | list[str] | tuple[str, ...] = sums_of_names(default="learned")
    rope_theta: float | int = positive_number(default=10000.0)
    mixer: str | None | list[str | None] | tuple[str | None, ...] = names_or_none(default=None)
    num_inducing_points: int | None | list[int | None] | tuple[int | None, ...] = positive_ints_or_none(default=None)
    attention_window: int | None | list[int | None] | tuple[int | None, ...] = positive_ints_or_none(default=None)
    periodic: bool | list[bool] | tuple[bool, ...] = booleans(default=False)
    pooling: Literal["mean", "attention"] = "mean"
    num_pooling_seeds: int = positive_int(default=1)
    reversible: bool = False
    dense_head: Literal["linear", "pyramid"] = "linear"
    pyramid_size: DerivedInt = positive_int(default=None)
    semantic_loss_ignore_index: int = 255
    class_weights: list[float | int] | tuple[float | int, ...] | None = weights_or_none(default=None)
    dice_loss_weight: float | int = non_negative_number(default=0.0)
    num_target_channels: int = positive_int(default=1)
    prediction_loss: Literal["squared", "absolute", "quantile"] = "squared"
    quantiles: list[float | int] | tuple[float | int, ...] = fractions(default=(0.1, 0.5, 0.9))
    qkv_bias: bool = True
    use_qk_norm: bool = False
    layer_scale_init_value: float | int | None = positive_number(default=None)
    hidden_dropout_prob: float | int = probability(default=0.0)
    attention_probs_dropout_prob: float | int = probability(default=0.0)
    drop_path_rate: float | int = probability(default=0.0)
    layer_norm_eps: float | int = positive_number(default=1e-6)
    initializer_range: float | int = non_negative_number(default=0.02)
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    def _derived_values(self) -> dict[str, int | None]:
        return super()._derived_values() | {"pyramid_size": max(1, self.hidden_size // 4)}

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

    def _per_axis(self, name: str) -> tuple[Any, ...]:
        """The values of a field that has one for all axes, or one for each."""
        value = getattr(self, name)
        return tuple(value) if isinstance(value, list) else (value,) * self.num_axes

    @property
    def axes(self) -> tuple[AxisDescription, ...]:
        """The axes, slow to fast, each with its own value of the fields that may have one per axis."""
        fields = zip(self.grid_shape, *map(self._per_axis, FIELDS_PER_AXIS), strict=True)
        return tuple(
            AxisDescription(
                axis=axis,
                length=length,
                num_heads=self.num_attention_heads // (self.num_axes if self.attention_mode == "split" else 1),
                positions=tuple(names.split("+")),
                rope_theta=self.rope_theta,
                mixer=mixer or ("window" if window else "induced" if points else "full"),
                num_inducing_points=points,
                attention_window=window,
                periodic=periodic,
                use_qk_norm=self.use_qk_norm,
            )
            for axis, (length, names, mixer, points, window, periodic) in enumerate(fields)
        )

    def axes_of_layer(self, layer_idx: int) -> tuple[AxisDescription, ...]:
        """The axes that a layer, counted from 0, attends along, slow to fast."""
        axes = self.axes
        return (axes[layer_idx % len(axes)],) if self.attention_mode == "alternating" else axes

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
        if self.use_qk_norm:  # each rank normalises its own heads by the one scale of all
            attention |= dict.fromkeys(("q_norm", "k_norm"), "replicated_with_grad_allreduce")
        mixers = {axis.mixer for axis in self.axes}
        if any("relative" in axis.positions for axis in self.axes):
            mixers -= {"full", "window"}  # stay whole, as each rank would need the table of its own heads
        parts = [part for mixer, parts in PROJECTIONS_OF_MIXERS.items() if mixer in mixers for part in parts]
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
        for name in FIELDS_PER_AXIS:
            if len(self._per_axis(name)) != self.num_axes:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be one value, or one for each of the {self.num_axes} axes of "
                    f"patch_size={self.patch_size}."
                )
        for axis in self.axes:
            check_positions(self.position_embedding, axis.positions, self.head_dim)
            if axis.mixer not in MIXER_NAMES:
                raise ValueError(f"mixer={self.mixer!r}: {axis.mixer!r} is none of {', '.join(sorted(MIXER_NAMES))}.")
            chosen = {"induced": axis.num_inducing_points, "window": axis.attention_window}
            unfit = [name for name, value in chosen.items() if (value is None) == (axis.mixer == name)]
            if axis.mixer in ("full", *chosen) and unfit:
                raise ValueError(
                    f'num_inducing_points={axis.num_inducing_points} is for mixer="induced" and attention_window='
                    f'{axis.attention_window} for mixer="window", but axis {axis.axis} has mixer={axis.mixer!r}.'
                )
            if axis.mixer == "induced" and "relative" in axis.positions:
                raise ValueError(
                    f'position_embedding="relative" needs scores between cells, but axis {axis.axis} has '
                    f"num_inducing_points={axis.num_inducing_points}."
                )
        if self.attention_mode == "split" and self.num_attention_heads % self.num_axes:
            raise ValueError(
                f'attention_mode="split" shares out the heads: num_attention_heads={self.num_attention_heads} must be '
                f"a multiple of the {self.num_axes} axes of patch_size={self.patch_size}."
            )
        if self.attention_mode == "alternating" and self.num_hidden_layers < self.num_axes:
            raise ValueError(
                f'attention_mode="alternating" attends along one axis per layer: num_hidden_layers='
                f"{self.num_hidden_layers} must be at least the {self.num_axes} axes of patch_size={self.patch_size}."
            )
        if self.feed_forward == "convolution" and self.num_axes > 3:
            raise ValueError(
                f'feed_forward="convolution" exists for 1 to 3 axes, patch_size={self.patch_size} has '
                f'{self.num_axes}: use "mlp" or "gated_mlp".'
            )
        if self.dense_head == "pyramid" and self.num_axes > 3:
            raise ValueError(
                f'dense_head="pyramid" exists for 1 to 3 axes, patch_size={self.patch_size} has {self.num_axes}: use '
                '"linear".'
            )
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(
                f"class_weights={self.class_weights} must be one for each of the num_labels={self.num_labels} labels."
            )
