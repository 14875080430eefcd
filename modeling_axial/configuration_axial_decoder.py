"""Configuration of the autoregressive Axial Transformer (`AxialForCausalImageModeling`)."""

from typing import Any, Literal

from huggingface_hub.dataclasses import as_validated_field, strict

from .configuration_strict import (
    AxisDescription,
    DerivedInt,
    StrictConfig,
    activation_name,
    check_positions,
    number_of_layers,
    positive_int,
    positive_lengths,
    positive_number,
    probability,
    sums_of_names,
)


@as_validated_field
def at_least_two(value: int) -> None:
    if value < 2:
        raise ValueError(f"must be at least 2, got {value}")


@as_validated_field
def count(value: int) -> None:
    if value < 0:
        raise ValueError(f"must not be negative, got {value}")


@strict
class AxialDecoderConfig(StrictConfig):
    r"""
    Configuration of [`AxialForCausalImageModeling`], for pictures, clips and volumes of any number of axes (counted
    slow to fast: time, depth, height, width) whose values are integers from 0 to `vocab_size - 1`.

    Args:
        image_size (one `int` per axis, defaults to `[32, 32]`):
            Pixels along each axis. Its length is the number of axes.
        num_channels (`int`, defaults to 3):
            Values of a pixel.
        vocab_size (`int`, defaults to 256):
            Values that a channel of a pixel can take.
        head_dim (`int`, *optional*):
            Width of a head; `hidden_size // num_attention_heads` if not given.
        intermediate_size (`int`, *optional*):
            Width inside the feed-forward; `4 * hidden_size` if not given.
        num_outer_layers (`int`, defaults to 4):
            Groups of blocks of each outer level. A group is one unmasked block along each faster axis and one causal
            block along the axis of the level. There is one level for each axis but the fastest.
        num_inner_layers (`int`, defaults to 4):
            Causal blocks along the fastest axis, which run once for each pixel that is sampled.
        num_exterior_layers (`int`, defaults to 4):
            Groups of one unmasked block along each axis, in the encoder of what the channel at hand is conditioned on.
            There is such an encoder where there is something to encode: other channels of `"slices"`, or a condition.
        channel_order (`"slices"` or `"nested"`, defaults to `"slices"`):
            Both generate one whole channel after the other. `"slices"`: earlier channels are seen through the exterior
            encoder, and a training step learns one random channel of each picture. `"nested"`: the channel is the
            slowest axis of the grid, and a training step learns all channels.
        num_classes (`int`, *optional*):
            Classes that pictures are conditioned on; none if not given.
        class_dropout_prob (`float`, defaults to 0.0):
            Share of training pictures whose class is hidden. Above 0, the model has one more class, `num_classes`, for
            pictures of an unknown one, and `generate` can be guided by the difference (classifier-free guidance).
        num_condition_channels (`int`, defaults to 0):
            Channels of a picture on the same grid to condition on (low resolution, grey, ...); 0 for none.
        hidden_act (`str`, defaults to `"quick_gelu"`):
            Activation inside the feed-forward.
        feed_forward (`"mlp"` or `"gated_mlp"`, defaults to `"mlp"`):
            What each block computes cell by cell.
        position_embedding (`str`, defaults to `"learned"`):
            Where a token is, along every axis. `"learned"`: one additive table per axis, interpolated to other sizes.
            `"rotary"`: every block turns queries and keys by the position along its axis. `"relative"`: a learned bias
            per block, head and distance along its axis. `"none"`. Or several at once, such as `"learned+relative"`.
        attention_window (`int`, *optional*):
            A cell reads the cells at most so far from it along each axis; in causal blocks, those at most so far back.
            A mask over whole lines: it changes what a block sees, not what it costs.
        reversible (`bool`, defaults to `False`):
            Two-stream residual arithmetic instead of one stream. The two are different functions of the same weights.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: for a wrong type, an impossible value or combination.
        `ValueError`: for a keyword that is no field.
    """

    model_type = "axial_decoder"

    image_size: list[int] | tuple[int, ...] = positive_lengths(default=(32, 32))
    num_channels: int = positive_int(default=3)
    vocab_size: int = at_least_two(default=256)
    hidden_size: int = positive_int(default=256)
    num_attention_heads: int = positive_int(default=8)
    head_dim: DerivedInt = positive_int(default=None)
    intermediate_size: DerivedInt = positive_int(default=None)
    num_outer_layers: int = number_of_layers(default=4)
    num_inner_layers: int = number_of_layers(default=4)
    num_exterior_layers: int = number_of_layers(default=4)
    channel_order: Literal["slices", "nested"] = "slices"
    num_classes: int | None = positive_int(default=None)
    class_dropout_prob: float | int = probability(default=0.0)
    num_condition_channels: int = count(default=0)
    hidden_act: str = activation_name(default="quick_gelu")
    feed_forward: Literal["mlp", "gated_mlp"] = "mlp"
    position_embedding: str = sums_of_names(default="learned")
    attention_window: int | None = positive_int(default=None)
    reversible: bool = False
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = probability(default=0.0)
    attention_probs_dropout_prob: float | int = probability(default=0.0)
    layer_norm_eps: float | int = positive_number(default=1e-5)

    @property
    def num_grids(self) -> int:
        """Token grids that a picture is generated in, one after the other, each knowing those before."""
        return self.num_channels if self.channel_order == "slices" else 1

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Tokens of one native grid along each axis, slow to fast; for `"nested"` the channels are the slowest axis."""
        # A level of one channel would cost its blocks and learn nothing.
        nested = self.channel_order == "nested" and self.num_channels > 1
        return (self.num_channels, *self.image_size) if nested else tuple(self.image_size)

    @property
    def axes(self) -> tuple[AxisDescription, ...]:
        """The axes of a token grid, slow to fast."""
        return self.describe_axes(self.grid_shape)

    def describe_axes(self, grid_shape: tuple[int, ...]) -> tuple[AxisDescription, ...]:
        """The axes of a grid of this native shape, slow to fast."""
        return tuple(
            AxisDescription(
                axis,
                length,
                num_heads=self.num_attention_heads,
                positions=tuple(self.position_embedding.split("+")),
                mixer="window" if self.attention_window else "full",
                attention_window=self.attention_window,
            )
            for axis, length in enumerate(grid_shape)
        )

    @property
    def num_class_embeddings(self) -> int:
        """Classes and, where training hides some, one for those."""
        return (self.num_classes or 0) + (self.class_dropout_prob > 0)

    @property
    def unknown_class(self) -> int:
        """The label of pictures whose class is hidden: `num_classes`."""
        return self.num_class_embeddings - 1

    @property
    def num_exterior_channels(self) -> int:
        """Channels that the exterior encoder reads: the condition, and for `"slices"` values and channel numbers."""
        return self.num_condition_channels + (2 * self.num_channels if self.num_grids > 1 else 0)

    @property
    def base_model_fsdp_plan(self) -> dict[str, str]:  # pyrefly: ignore[bad-override]  it depends on the fields
        """How FSDP splits the model: block by block."""
        stacks = ["outer_levels.*"] if len(self.grid_shape) > 1 else []
        stacks += ["exterior.stack"] if self.num_exterior_channels else []
        plan = {f"{stack}.blocks.*": "free_full_weight" for stack in (*stacks, "inner_level")}
        return {"token_embeddings": "free_full_weight", **plan, "norm": "keep_full_weight", "head": "keep_full_weight"}

    def validate_architecture(self):
        """Checks the rules that tie fields to each other; raises `ValueError` naming fields, values and the rule."""
        super().validate_architecture()
        if self.class_dropout_prob and self.num_classes is None:
            raise ValueError(f"class_dropout_prob={self.class_dropout_prob} needs num_classes, which is None.")
        check_positions(self.position_embedding, self.axes[0].positions, self.head_dim)


class ExteriorConfig:
    """What the exterior encoder reads of a configuration: all as it is, but for the grid, which is that of the pixels.

    A view and no copy, as the attention implementation may change at run time.
    """

    def __init__(self, config: AxialDecoderConfig):
        self.decoder = config

    def __getattr__(self, name: str) -> Any:
        if name == "decoder" or name.startswith("__"):  # not there while a copy is made
            raise AttributeError(name)
        return getattr(self.decoder, name)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        return tuple(self.decoder.image_size)

    @property
    def axes(self) -> tuple[AxisDescription, ...]:
        return self.decoder.describe_axes(self.grid_shape)
