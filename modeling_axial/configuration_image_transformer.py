"""Configuration of `AxialImageTransformerModel`, the Hugging Face form of `AxialImageTransformer`."""

from huggingface_hub.dataclasses import as_validated_field, strict

from .configuration_strict import DerivedInt, StrictConfig, number_of_layers, positive_int


@as_validated_field
def one_to_three(value: int) -> None:
    if not 1 <= value <= 3:
        raise ValueError(f"must be 1, 2 or 3, as the feed-forward is a convolution, got {value}")


@as_validated_field
def positive_lengths_or_none(value: list[int] | tuple[int, ...] | None) -> None:
    if value is not None and (len(value) == 0 or min(value) < 1):
        raise ValueError(f"must be one length per axis (slow to fast), each at least 1, or None, got {value}")


@strict
class AxialImageTransformerConfig(StrictConfig):
    r"""
    Configuration of [`AxialImageTransformerModel`]. The word of `axial_attention` for a field stands in brackets.

    Args:
        num_axes (`int`, defaults to 2):
            Axes of the grid: 2 for pictures, 3 for video or volumes; the channels are no axis. (num_dimensions)
        hidden_size (`int`, defaults to 128):
            Channels of the feature maps. (dim)
        num_hidden_layers (`int`, defaults to 12):
            One layer attends along every axis once and has as many feed-forwards. (depth)
        num_attention_heads (`int`, defaults to 8):
            Heads of each attention. (heads)
        head_dim (`int`, *optional*):
            Width of a head; `hidden_size // num_attention_heads` if not given. (dim_heads)
        position_embedding_shape (one `int` per axis, *optional*):
            Positions in the learned table of each axis, slow to fast; smaller inputs use the leading ones. No
            positions are added if not given. (axial_pos_emb_shape)
        reversible (`bool`, defaults to `True`):
            Two-stream residual arithmetic instead of one stream. The two are different functions of the same weights.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: for a wrong type, an impossible value or combination.
        `ValueError`: for a keyword that is no field.
    """

    model_type = "axial_image_transformer"
    derived_fields = ("head_dim",)

    num_axes: int = one_to_three(default=2)
    hidden_size: int = positive_int(default=128)
    num_hidden_layers: int = number_of_layers(default=12)
    num_attention_heads: int = positive_int(default=8)
    head_dim: DerivedInt = positive_int(default=None)
    position_embedding_shape: list[int] | tuple[int, ...] | None = positive_lengths_or_none(default=None)
    reversible: bool = True

    @property
    def base_model_fsdp_plan(self) -> dict[str, str]:  # pyrefly: ignore[bad-override]  it depends on the fields
        """How FSDP splits the model: block by block."""
        positions = {} if self.position_embedding_shape is None else {"transformer.pos_emb": "free_full_weight"}
        return positions | {"transformer.layers.blocks.*": "free_full_weight"}

    def validate_architecture(self):
        """Checks the rules that tie fields to each other; raises `ValueError` naming fields, values and the rule."""
        super().validate_architecture()
        shape = self.position_embedding_shape
        if shape is not None and len(shape) != self.num_axes:
            raise ValueError(
                f"position_embedding_shape={shape} has {len(shape)} axes, but num_axes={self.num_axes}: give one "
                "length per axis."
            )
