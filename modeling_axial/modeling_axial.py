"""AxialModel: pixels to a grid of features, through layers of attention along one axis at a time."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import merge_with_config_defaults

from .attention import AxialAttentionCore
from .axial_embeddings import AxialEmbeddings
from .axial_layer import MIXER_CLASSES, AxialLayer, run_layers
from .configuration_axial import AxialConfig
from .forward_keywords import records_outputs, refuse_unknown_keywords
from .layer_context import LayerContext
from .masks import grid_mask
from .pooling import POOLING_CLASSES, AttentionPooling, MeanPooling
from .position_embeddings import (
    AxisCells,
    GridPosition,
    LinePosition,
    cells_of_axis,
    check_position_ids,
    check_position_period,
    parts_of_circles,
)
from .remote_code import CodeCarryingModel
from .residual_updates import LayerScale
from .reversible import OneStream, RebuiltTwoStream, in_full_under_autocast
from .set_attention import InducedAxialAttention

# Every class that a checkpoint of this model type opens with, and the file that defines it.
AUTO_MAP = {
    "AutoConfig": "configuration_axial.AxialConfig",
    "AutoBackbone": "modeling_axial_heads.AxialBackbone",
    "AutoModel": "modeling_axial.AxialModel",
    "AutoModelForImageClassification": "modeling_axial_heads.AxialForImageClassification",
    "AutoModelForImageToImage": "modeling_axial_dense.AxialForDensePrediction",
    "AutoModelForMaskedImageModeling": "modeling_axial_dense.AxialForMaskedImageModeling",
    "AutoModelForSemanticSegmentation": "modeling_axial_dense.AxialForSemanticSegmentation",
    "AutoModelForVideoClassification": "modeling_axial_heads.AxialForVideoClassification",
}


def _files_that_travel():
    """Never called. transformers finds the files that a checkpoint needs by scanning for relative imports, and these
    are needed by AUTO_MAP without being imported by this file."""
    from .image_processing_axial import AxialImageProcessor
    from .modeling_axial_dense import AxialForSemanticSegmentation
    from .modeling_axial_heads import AxialForImageClassification
    from .video_processing_axial import AxialVideoProcessor

    return AxialImageProcessor, AxialForImageClassification, AxialForSemanticSegmentation, AxialVideoProcessor


@auto_docstring
class AxialPreTrainedModel(CodeCarryingModel):
    config: AxialConfig
    code_auto_map = AUTO_MAP
    base_model_prefix = "axial"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["AxialEmbeddings", "AxialLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True  # without masks and biases, which attention.py refuses by name
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": AxialLayer, "attentions": AxialAttentionCore}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GridPosition | LinePosition):
            for table in module.parameters(recurse=False):
                init.trunc_normal_(table, std=self.config.initializer_range)
        elif isinstance(module, InducedAxialAttention):
            init.trunc_normal_(module.points, std=self.config.initializer_range)
        elif isinstance(module, AttentionPooling):
            init.trunc_normal_(module.seeds, std=self.config.initializer_range)
        elif isinstance(module, LayerScale):
            init.constant_(module.lambda1, module.initial_value)


@auto_docstring(custom_intro="The axial trunk: features of every cell of the grid, and their mean.")
class AxialModel(AxialPreTrainedModel):
    def __init__(self, config: AxialConfig):
        r"""
        With `reversible=True` training rebuilds activations instead of storing them. `model.executor_class = TwoStream`
        stores them at run time: the same numbers, faster, for memory that grows with depth.
        """
        super().__init__(config)
        self.executor_class = RebuiltTwoStream if config.reversible else OneStream
        self.embeddings = AxialEmbeddings(config)
        self.layers = nn.ModuleList(AxialLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = POOLING_CLASSES[config.pooling](config)
        self.post_init()

    @merge_with_config_defaults
    @records_outputs
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        position_period: Sequence[float | None] | None = None,
        added_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  some are ours
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, *pixels)`):
            One picture, clip or volume each; any size that `patch_size` divides.
        attention_mask (`torch.BoolTensor` broadcastable to `(batch_size, *grid)`, *optional*):
            True (or 1) for cells to use, False for padding and for cells whose data are missing: what stands in them,
            NaN included, nothing reads. Learned positions are those of the smallest box around the cells in use of each
            sample, so that a padded picture gives what it gives alone. Booleans, or numbers that are exactly 0 or 1;
            compiled and exported code takes booleans and integers.
        position_ids (one tensor for each axis, `(length,)` or `(batch_size, length)`, *optional*):
            Where the cells lie along the axis, in cells, whole or not: those of a crop or tile in a larger grid,
            irregular times, latitudes. Learned tables are read at these cells of the native grid, and at their ends
            beyond it; a mask then moves nothing. Rotary and relative positions take any numbers. By default cells are
            counted from 0, and learned tables spread over the grid.
        position_period (one number or None for each axis, *optional*):
            With `position_ids`, for periodic axes: after how many cells the axis begins again. A grid that is shorter
            is a part of it, whose ends do not meet. By default the grid is all of the axis.
        added_embeds (`torch.FloatTensor` of shape `(batch_size, *grid, hidden_size)`, *optional*):
            Added to the embeddings of the patches, before positions: what else is known of each cell.

        Returns `last_hidden_state` `(batch_size, *grid, hidden_size)` and `pooler_output` `(batch_size, hidden_size)`,
        its mean over the grid (or what `pooling="attention"` makes of it).

        With `output_hidden_states`, `num_hidden_layers + 1` grids: after the embeddings, then after each layer (the
        mean of the two streams where there are two). With `output_attentions`, one map
        `(batch_size · lines, num_attention_heads, length, length)` for each layer and each of its axes, layer by layer
        and axes slow to fast, lines ordered as the remaining axes, slow to fast; an axis with inducing points gives
        two, what the points read and what the cells read from them. With `attention_mode="alternating"` a layer has
        one axis, and with `"split"` a map has the heads of its axis.
        """
        refuse_unknown_keywords(self, kwargs)
        batch_and_grid = self.embeddings.patch_embeddings.batch_and_grid(pixel_values)
        mask = None if attention_mask is None else grid_mask(attention_mask, batch_and_grid)
        axes, cells = self.config.axes, None
        periods = check_position_period(position_period, position_ids, axes)
        if position_ids is not None:
            dtype = self.embeddings.patch_embeddings.dtype
            positions = check_position_ids(position_ids, batch_and_grid, dtype, pixel_values.device)
            cells = tuple(map(AxisCells, positions, periods))
        hidden_states = in_full_under_autocast(self.embeddings(pixel_values, mask, cells, added_embeds))
        cells = cells or tuple(cells_of_axis(axis, hidden_states) for axis in axes)
        prepared = tuple(MIXER_CLASSES[axis.mixer].prepare(self.config, axis, cells[axis.axis]) for axis in axes)
        cropped_axes = parts_of_circles(batch_and_grid[1:], periods)
        output_hidden_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        output_attentions = kwargs.get("output_attentions", self.config.output_attentions)

        hidden_states = run_layers(
            self.layers,
            self.executor_class,
            hidden_states,
            LayerContext(mask, prepared, cropped_axes=cropped_axes, output_attentions=bool(output_attentions)),
            output_hidden_states=bool(output_hidden_states),
        )
        last_hidden_state = self.norm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state, pooler_output=self.pooler(last_hidden_state, mask)
        )


def make_trunk(config: AxialConfig) -> AxialModel:
    """An `AxialModel` without the parameters of what sums up its grid, for models that read the grid alone."""
    trunk = AxialModel(config)
    trunk.pooler = MeanPooling(config)
    return trunk
