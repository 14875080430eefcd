"""AxialForCausalImageModeling: the exact probability of every value of a picture given all before it in raster order.

The autoregressive Axial Transformer (Ho et al. 2019, arXiv 1912.12180) on grids of any number of axes. Raster order is
channel by channel, and inside a channel the axes slow to fast. With h the embedded tokens and P the positions:

    context = P + what is conditioned on
    for each axis a but the fastest (the outer levels):
        u = Level_a(h + context)             unmasked along the axes faster than a, causal along a
        context = context + shift_a(u)       a cell gets what the cell before it along a has gathered
    logits = head(norm(Inner(shift(h) + context)))        causal along the fastest axis

u at a cell knows all cells that agree with it on the axes slower than a and do not come later along a. Shifted, these
are all cells that come strictly before along a; the inner blocks add those before on the same line. The causal masks
include the diagonal, because the shifts have already taken away the cell itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, logging
from transformers.utils.output_capturing import OutputRecorder

from .attention import AxialAttentionCore
from .axial_layer import BLOCK_MIXER_CLASSES, OneAxisLayer, run_layers
from .configuration_axial_decoder import AxialDecoderConfig, ExteriorConfig
from .forward_keywords import records_outputs
from .grid import neighbourhoods, shift
from .layer_context import NO_CONTEXT, LayerContext
from .position_embeddings import (
    AxisCells,
    GridPosition,
    LinePosition,
    add_grid_positions,
    cells_of_axis,
    check_position_ids,
    count_cells,
)
from .remote_code import CodeCarryingModel
from .reversible import OneStream, RebuiltTwoStream
from .sampling import SAMPLERS, Known, LineDraws, SamplingOptions, to_integers


class AxialStack(nn.Module):
    """Blocks one after the other on one grid: (B, *grid, hidden_size) -> the same shape.

    `directions`: for each block its axis and whether it is causal. With `reversible=True` training rebuilds
    activations; `executor_class = TwoStream` stores them at run time.
    """

    def __init__(self, config: AxialDecoderConfig | ExteriorConfig, directions: list[tuple[int, bool]]):
        super().__init__()
        self.config = config
        self.executor_class = RebuiltTwoStream if config.reversible else OneStream
        self.axes = [config.axes[axis] for axis in sorted({axis for axis, _ in directions})]
        self.blocks = nn.ModuleList(OneAxisLayer(config, axis, is_causal) for axis, is_causal in directions)
        for branch in (branch for block in self.blocks for branch in (block.attention, block.feed_forward)):
            branch.last_projection.initial_gain = 1e-10  # pyrefly: ignore  residual branches start at about zero

    def forward(self, hidden_states: torch.Tensor, layer_context: LayerContext = NO_CONTEXT, **kwargs) -> torch.Tensor:
        """`kwargs`: as in `run_layers`. With a cache in the `layer_context`, `hidden_states` is the next position along
        the causal axis."""
        cache = layer_context.cache
        prepare = partial(self._prepare, hidden_states, layer_context)
        layer_context = layer_context._replace(prepared=prepare() if cache is None else cache.prepare(prepare))
        return run_layers(self.blocks, self.executor_class, hidden_states, layer_context, **kwargs)

    def _prepare(self, hidden_states: torch.Tensor, layer_context: LayerContext) -> tuple[Any, ...]:
        """Of each axis of the blocks, what their mixers want prepared; other axes may be cut to a slice."""
        prepared = [None] * (hidden_states.dim() - 2)
        for axis in self.axes:
            cells = cells_of_axis(axis, hidden_states, layer_context)
            prepared[axis.axis] = BLOCK_MIXER_CLASSES[axis.mixer].prepare(self.config, axis, cells)
        return tuple(prepared)


class AxialExteriorEncoder(nn.Module):
    """Pictures that are known in full to features of each cell: (B, *grid, K) -> (B, *grid, hidden_size), unmasked."""

    def __init__(self, config: AxialDecoderConfig):
        super().__init__()
        num_axes = len(config.image_size)
        self.projection = nn.Linear(config.num_exterior_channels * 3**num_axes, config.hidden_size)
        grid = ExteriorConfig(config)
        self.position_names = add_grid_positions(self, grid)
        self.stack = AxialStack(grid, [(axis, False) for axis in range(num_axes)] * config.num_exterior_layers)

    def forward(
        self,
        planes: torch.Tensor,
        context: torch.Tensor | None = None,
        layer_context: LayerContext = NO_CONTEXT,
        **kwargs,
    ) -> torch.Tensor:
        """`context`: added to every cell, broadcast. `layer_context`, `kwargs`: as in `run_layers`."""
        hidden_states = self.projection(neighbourhoods(planes))
        for name in self.position_names:
            hidden_states = self.get_submodule(name)(hidden_states, cells=layer_context.cells or None)
        hidden_states = hidden_states if context is None else hidden_states + context
        return self.stack(hidden_states, layer_context, **kwargs)


@dataclass
class CausalImageModelingOutput(ModelOutput):
    """
    Args:
        loss: mean of -ln p over the values of `input_ids`, in nats per dimension.
        bits_per_dim: `loss` in bits, without a gradient.
        logits: `(B, C, *grid, vocab_size)`; None in training, where one channel of each picture is learnt at a time.
        hidden_states: with `output_hidden_states`, what each block that ran gives, in order of execution: channel by
            channel those of the exterior encoder, the outer levels (slow to fast) and the inner level; in training,
            of the one channel learnt. Each `(B, *grid, hidden_size)`, behind the encoder of `"nested"` with the
            channels as the slowest axis; the mean of the two streams where there are two.
        attentions: with `output_attentions`, the map of each of these blocks along its axis, in the same order: `(B ·
            lines, num_attention_heads, length, length)`, lines ordered as the remaining axes, slow to fast.
    """

    loss: torch.Tensor | None = None
    bits_per_dim: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class AxialForCausalImageModeling(CodeCarryingModel):
    """Exact likelihoods, and samples, of pictures, clips and volumes whose values are integers.

    `Trainer` finds the loss in evaluation too with `TrainingArguments(label_names=["input_ids"])`;
    `prediction_loss_only=True` keeps it from gathering the logits. Split by FSDP2, weights are gathered for `forward`
    alone, until `torch.distributed.fsdp.register_fsdp_forward_method(model, "generate")`, and `"log_prob"`.
    """

    config: AxialDecoderConfig
    code_auto_map = {
        "AutoConfig": "configuration_axial_decoder.AxialDecoderConfig",
        "AutoModel": "modeling_axial_decoder.AxialForCausalImageModeling",
        "AutoModelForCausalLM": "modeling_axial_decoder.AxialForCausalImageModeling",
    }
    base_model_prefix = "axial_decoder"
    main_input_name = "input_ids"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    generation_config = None  # PEFT reads it
    _no_split_modules = ["AxialStack", "AxialExteriorEncoder"]
    _input_embed_layer = "token_embeddings"
    _supports_sdpa = True
    _supports_flash_attn = True  # without masks and biases, which attention.py refuses by name
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(OneAxisLayer, capture_initial_hidden_state=False),
        "attentions": AxialAttentionCore,
    }

    def __init__(self, config: AxialDecoderConfig):
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.class_embeddings = (
            nn.Embedding(config.num_class_embeddings, config.hidden_size) if config.num_classes else None
        )
        self.position_names = add_grid_positions(self, config)
        self.exterior = AxialExteriorEncoder(config) if config.num_exterior_channels else None
        num_axes = len(config.grid_shape)
        self.outer_levels = nn.ModuleList(
            AxialStack(
                config,
                [*((faster, False) for faster in range(axis + 1, num_axes)), (axis, True)] * config.num_outer_layers,
            )
            for axis in range(num_axes - 1)
        )
        self.inner_level = AxialStack(config, [(num_axes - 1, True)] * config.num_inner_layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        # So that training starts at log2(vocab_size) bits per dimension.
        self.head.initial_gain = 0.0  # pyrefly: ignore[bad-argument-type]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The paper's: weights at variance 1 / inputs times their `initial_gain` squared, tables of what is added to
        tokens at 5 / sqrt(width). What is added to scores starts small."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            std = getattr(module, "initial_gain", 1.0) * module.in_features**-0.5
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std) if std else init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding | GridPosition):
            for table in module.parameters(recurse=False):
                init.normal_(table, std=5 * self.config.hidden_size**-0.5)
        elif isinstance(module, LinePosition):
            for table in module.parameters(recurse=False):
                init.trunc_normal_(table, std=0.02)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings  # pyrefly: ignore[bad-assignment]  as transformers declares it

    @classmethod
    def can_generate(cls) -> bool:
        """False: `generate` draws pictures, and is not the one of transformers."""
        return False

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs) -> dict:
        """The arguments of `forward`. PEFT wants it for `task_type="CAUSAL_LM"`; `generate` does not use it."""
        return {"input_ids": input_ids, **kwargs}

    @records_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        **kwargs,
    ) -> CausalImageModelingOutput:
        """Scores `input_ids` themselves; there are no labels beside them.

        In training mode with `channel_order="slices"` the loss is that of one channel of each picture, drawn from
        torch's own random state: unbiased, but noisy. So are the classes that `class_dropout_prob` hides. In eval mode
        the loss is exact over all channels and nothing is drawn.

        Args:
            input_ids: integers `(B, C, *grid)` from 0 to `vocab_size - 1`; the grid may differ from the native one.
            class_labels: integers `(B,)`, for a model with `num_classes`; with `class_dropout_prob`, `num_classes`
                stands for an unknown class.
            condition: floats `(B, num_condition_channels, *grid)`, for a model with `num_condition_channels`; any
                scale, about -1 to 1 is best.
            position_ids: one tensor for each axis of `grid`, `(length,)` or `(B, length)`: where the cells lie along
                it, in cells, whole or not, as those of a tile in a larger picture. Learned tables are read at these
                cells of the native grid, and at their ends beyond it. By default cells are counted from 0, and learned
                tables spread over the grid.
            kwargs: `output_hidden_states` and `output_attentions`, for which see `CausalImageModelingOutput`, and
                `return_dict`, as in transformers; else those of `config`. What PEFT hands to any causal model,
                `attention_mask`, `inputs_embeds` and `labels`, must be None.

        Raises:
            ValueError: for shapes, types or conditions that the model does not have.
            TypeError: for other keywords.
        """
        output_hidden_states, output_attentions = (
            bool(kwargs.pop(name, getattr(self.config, name))) for name in ("output_hidden_states", "output_attentions")
        )
        for name, value in kwargs.items():
            if value is not None or name not in ("attention_mask", "inputs_embeds", "labels"):
                raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}.")
        input_ids, class_labels = self._check_inputs(input_ids, class_labels, condition)
        cells = self._cells(position_ids, input_ids)
        recorded = {
            "layer_context": LayerContext(cells=cells, output_attentions=output_attentions),
            "output_hidden_states": output_hidden_states,
        }
        grids = self._split_grids(input_ids)
        if self.training and class_labels is not None and self.config.class_dropout_prob > 0:
            hidden = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout_prob
            class_labels = class_labels.masked_fill(hidden, self.config.unknown_class)
        if self.training and self.config.num_grids > 1:
            # Drawn here, outside of everything that may run again in backward.
            channel = torch.randint(self.config.num_grids, input_ids.shape[:1], device=input_ids.device)
            tokens = grids[torch.arange(len(grids), device=grids.device), channel]
            context = self.make_context(input_ids, channel, class_labels, condition, **recorded)
            nats, logits = _nats(self.decode(tokens, context, **recorded), tokens), None
        else:
            logits = self._all_logits(input_ids, class_labels, condition, **recorded)
            nats = _nats(logits, input_ids)
        loss = nats.mean(dtype=_widest(nats))
        bits_per_dim = loss.detach() / math.log(2)
        return CausalImageModelingOutput(loss.to(nats.dtype), bits_per_dim.to(nats.dtype), logits)

    def log_prob(
        self,
        input_ids: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """ln p of each picture, over all channels, in nats: `(B,)`, summed in float64 where the device has it.

        Arguments and errors as in `forward`. In training mode too all channels count; dropout, if any, is active then.
        """
        input_ids, class_labels = self._check_inputs(input_ids, class_labels, condition)
        layer_context = LayerContext(cells=self._cells(position_ids, input_ids))
        logits = self._all_logits(input_ids, class_labels, condition, layer_context=layer_context)
        nats = _nats(logits, input_ids)
        return -nats.flatten(1).sum(1, dtype=_widest(nats))

    @torch.no_grad()
    def generate(
        self,
        num_images: int = 1,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
        position_ids: Sequence[torch.Tensor] | None = None,
        **options,
    ) -> torch.Tensor:
        """Draws pictures: int64 `(num_images, C, *grid)`, of the size of `condition` or `known`, else the native one.

        All samplers draw the same pixels from the same `generator`: every value is the argmax of
        logits / temperature + Gumbel noise, and the noise is drawn line by line in raster order.

        What is drawn depends on what comes before it in raster order (channel by channel, axes slow to fast) and on
        nothing else. So `known` completes a picture from its beginning, and fills holes so that they fit what stands
        before them: a hole is filled without regard to known values after it, while what is drawn after these sees
        them.

        Args:
            num_images: how many.
            class_labels: integers `(num_images,)`, as in `forward`.
            condition: floats `(num_images, num_condition_channels, *grid)`, as in `forward`.
            known: `(input_ids, mask)`, each broadcastable to `(num_images, C, *grid)`; values stay as given where the
                boolean mask is True. Along an axis where either is longer than 1 the picture has that length, along
                others that of `condition`, or the native one.
            position_ids: as in `forward`, of the picture that is drawn.
            options: `temperature`, `top_k`, `top_p`, `guidance_scale`, `generator`, `max_batch_size`, `sampler` and
                `show_progress`, for which see `SamplingOptions`.

        Raises:
            ValueError: for shapes or values that are impossible, and if logits are NaN or infinite.
            TypeError: for other keywords.
        """
        sampling = SamplingOptions(**options)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}.")
        image_shape = self.config.image_size if condition is None else condition.shape[2:]
        shape = (num_images, self.config.num_channels, *image_shape)
        values = Known(known, shape, self.config.vocab_size, self.device)
        input_ids, mask = values.input_ids, values.mask
        _, class_labels = self._check_inputs(input_ids, class_labels, condition)
        cells = self._cells(position_ids, input_ids)
        if sampling.is_guided and (class_labels is None or not self.config.class_dropout_prob):
            raise ValueError(f"guidance_scale={sampling.guidance_scale} needs a model with class_dropout_prob above 0.")
        batches = sampling.in_batches(num_images)

        training_modules = [module for module in self.modules() if module.training]
        self.eval()  # dropout would make the samplers disagree, and the distribution another
        try:
            with logging.tqdm(total=mask.numel(), disable=not sampling.show_progress) as progress:
                for batch, of_batch in batches:
                    self._fill(
                        input_ids[batch],
                        mask[batch],
                        None if class_labels is None else class_labels[batch],
                        None if condition is None else condition[batch],
                        tuple(axis if len(axis.positions) == 1 else AxisCells(axis.positions[batch]) for axis in cells),
                        LineDraws(of_batch, self.config.vocab_size, len(mask[batch]), progress.update),
                    )
        finally:
            for module in training_modules:
                module.training = True
        return input_ids

    def _fill(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        class_labels: torch.Tensor | None,
        condition: torch.Tensor | None,
        cells: tuple[AxisCells, ...],
        draw: LineDraws,
    ) -> None:
        """Draws the values of `input_ids` (B, C, *grid) where `mask` is False, in place."""
        values, num_images = input_ids, len(input_ids)
        if draw.options.is_guided and class_labels is not None:
            # Each picture twice, the second time of an unknown class; both get what is drawn.
            values, mask = (torch.cat((states, states)) for states in (values, mask))
            class_labels = torch.cat((class_labels, torch.full_like(class_labels, self.config.unknown_class)))
            condition = None if condition is None else torch.cat((condition, condition))
            cells = tuple(AxisCells(axis.positions.expand(num_images, -1).repeat(2, 1)) for axis in cells)
        grids, known_grids = self._split_grids(values), self._split_grids(mask)
        layer_context = LayerContext(cells=cells)
        sample = SAMPLERS[draw.options.sampler]
        for index in range(self.config.num_grids):
            channel = torch.full(values.shape[:1], index, device=values.device)
            context = self.make_context(values, channel, class_labels, condition, layer_context)
            sample(self, grids[:, index], known_grids[:, index], context, layer_context, draw)
        if draw.options.is_guided:
            input_ids.copy_(values[:num_images])

    # The parts of the model, in the order in which data flow through them; the samplers call them one by one.

    def make_context(
        self,
        input_ids: torch.Tensor,
        channel: torch.Tensor,
        class_labels: torch.Tensor | None,
        condition: torch.Tensor | None,
        layer_context: LayerContext = NO_CONTEXT,
        **kwargs,
    ) -> torch.Tensor:
        """What every cell of a token grid knows beforehand: its position, class, condition, and earlier channels.

        `channel` `(B,)`: the channel of each picture that is to be generated (`channel_order="slices"`); of
        `input_ids`, only the channels before it are read. Returns `(B, *token grid, hidden_size)`. `layer_context` and
        `kwargs`, here and below: as in `run_layers`.
        """
        batch_size, num_channels, *image_shape = input_ids.shape
        grid_shape = self._split_grids(input_ids).shape[2:]
        # Not on the device of the weight, which is "meta" where it is offloaded.
        options = {"dtype": self.token_embeddings.weight.dtype, "device": input_ids.device}
        context = torch.zeros(batch_size, *grid_shape, self.config.hidden_size, **options)
        classes, one_cell = None, [1] * len(image_shape)
        if self.class_embeddings is not None:
            classes = self.class_embeddings(class_labels).view(batch_size, *one_cell, self.config.hidden_size)
        if self.exterior is not None:
            planes = [] if condition is None else [condition.movedim(1, -1).to(context.dtype)]
            if self.config.num_grids > 1:
                numbers = torch.arange(num_channels, device=channel.device)
                earlier, own = numbers < channel[:, None], numbers == channel[:, None]
                earlier, own = (mask.view(batch_size, *one_cell, num_channels) for mask in (earlier, own))
                # float16 ends at 65,504, which a value may exceed: divided first.
                values = input_ids.movedim(1, -1).to(torch.promote_types(context.dtype, torch.float32))
                scaled = (values / (self.config.vocab_size - 1)).to(context.dtype)
                planes += [scaled * earlier, own.expand(scaled.shape).to(context.dtype)]
            of_pixels = layer_context._replace(cells=layer_context.cells[-len(image_shape) :])
            encoded = self.exterior(torch.cat(planes, dim=-1), classes, of_pixels, **kwargs)
            context = context + (encoded if encoded.dim() == context.dim() else encoded.unsqueeze(1))
        if classes is not None:
            context = context + (classes if classes.dim() == context.dim() else classes.unsqueeze(1))
        for name in self.position_names:
            context = self.get_submodule(name)(context, cells=layer_context.cells or None)
        return context

    def decode(self, tokens: torch.Tensor, context: torch.Tensor, **kwargs) -> torch.Tensor:
        """Tokens `(B, *grid)` of one token grid to logits `(B, *grid, vocab_size)`, each from the tokens before it."""
        hidden_states = self.token_embeddings(tokens.long())
        context = self.run_outer_levels(hidden_states, context, **kwargs)
        return self.run_inner_level(shift(hidden_states, tokens.dim() - 2), context, **kwargs)

    def run_outer_levels(self, hidden_states: torch.Tensor, context: torch.Tensor, **kwargs) -> torch.Tensor:
        """`context` with what the lines before each line tell; all `(B, *grid, hidden_size)`."""
        for axis, level in enumerate(self.outer_levels):
            context = context + shift(level(hidden_states + context, **kwargs), axis)
        return context

    def run_inner_level(self, previous: torch.Tensor, context: torch.Tensor, **kwargs) -> torch.Tensor:
        """Logits from the token before each cell on its line (`previous`, zeros at the start) and `context`."""
        return self.head(self.norm(self.inner_level(previous + context, **kwargs)))

    def _all_logits(self, input_ids, class_labels, condition, **kwargs) -> torch.Tensor:
        logits = []
        for index, tokens in enumerate(self._split_grids(input_ids).unbind(1)):
            channel = torch.full(input_ids.shape[:1], index, device=input_ids.device)
            context = self.make_context(input_ids, channel, class_labels, condition, **kwargs)
            logits.append(self.decode(tokens, context, **kwargs))
        return torch.stack(logits, 1).reshape(*input_ids.shape, self.config.vocab_size)

    def _split_grids(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *grid) as (B, token grids, *token grid), a view of a contiguous tensor."""
        grid_shape = images.shape[-len(self.config.grid_shape) :]
        return images.reshape(images.shape[0], self.config.num_grids, *grid_shape)

    def _cells(self, position_ids: Sequence[torch.Tensor] | None, input_ids: torch.Tensor) -> tuple[AxisCells, ...]:
        """Where the cells of a token grid lie; nothing, if that is not said. Channels that are an axis are counted."""
        if position_ids is None:
            return ()
        batch_size, num_channels, *image_shape = input_ids.shape
        dtype = self.token_embeddings.weight.dtype
        positions = check_position_ids(position_ids, (batch_size, *image_shape), dtype, input_ids.device)
        if len(self.config.grid_shape) > len(image_shape):
            positions = (count_cells(num_channels, positions[0]), *positions)
        return tuple(map(AxisCells, positions))

    def _check_inputs(self, input_ids, class_labels, condition) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`input_ids` and `class_labels` as int64."""
        config = self.config
        input_ids = to_integers("input_ids", input_ids, config.vocab_size)
        shape = tuple(input_ids.shape)
        if len(shape) != len(config.image_size) + 2 or shape[1] != config.num_channels:
            raise ValueError(
                f"input_ids must be (batch, {config.num_channels} channels, *{len(config.image_size)} axes), "
                f"got {shape}."
            )
        if 0 in shape[2:]:
            raise ValueError(f"input_ids must have at least 1 cell along each axis, got shape {shape}.")
        _check_range("input_ids", input_ids, config.vocab_size)
        if (class_labels is None) != (config.num_classes is None):
            raise ValueError(
                f"class_labels must be given for a model with num_classes and for no other; num_classes="
                f"{config.num_classes}, class_labels={class_labels}."
            )
        if class_labels is not None:
            class_labels = to_integers("class_labels", class_labels, config.num_class_embeddings)
            if tuple(class_labels.shape) != shape[:1]:
                raise ValueError(f"class_labels must have shape {shape[:1]}, got {tuple(class_labels.shape)}.")
            _check_range("class_labels", class_labels, config.num_class_embeddings)
        expected = (shape[0], config.num_condition_channels, *shape[2:])
        if (condition is None) != (config.num_condition_channels == 0):
            raise ValueError(
                "condition must be given for a model with num_condition_channels and for no other; "
                f"num_condition_channels={config.num_condition_channels}, condition is "
                f"{'not ' if condition is None else ''}given."
            )
        if condition is not None and tuple(condition.shape) != expected:
            raise ValueError(f"condition must have shape {expected}, got {tuple(condition.shape)}.")
        return input_ids, class_labels


def _check_range(name: str, values: torch.Tensor, end: int) -> None:
    # Only where there are values (fake tensors have none), and looking at them breaks no graph and no device waits.
    plain = type(values) is torch.Tensor and values.device.type == "cpu" and values.numel() > 0
    if not plain or torch.compiler.is_compiling():
        return
    least, largest = (value.item() for value in values.aminmax())
    if least < 0 or largest >= end:
        raise ValueError(f"{name} must be from 0 to {end - 1}, got {least} to {largest}.")


def _nats(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """-ln p of each token, in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(logits.flatten(0, -2), tokens.flatten().long(), reduction="none").view(
        tokens.shape
    )


def _widest(states: torch.Tensor) -> torch.dtype:
    """The dtype to sum in: float64 where the device has it."""
    return torch.float32 if states.device.type == "mps" else torch.float64
