"""The models of the page as ONNX graphs of fixed shapes, for one picture at a time: five, each a module of its own.

    classifier   pixel_values (1, C, *pixels)                    -> logits (1, labels), attentions
    context      class_label (1,)                                -> context (1, rows, columns, hidden_size)
    pixel        token, position, context of the cell, state     -> logits (1, vocab_size), state
    row          tokens, position, context of the row, state     -> gathered (1, 1, columns, hidden_size), state
    segmenter    pixel_values (1, 1, side, side)                 -> logits (1, 2, side, side)

Those from `context` to `row` are the `cached` sampler of the autoregressive model, without its loops: `pixel` is the
step of the inner level, `row` that of the outer one. What the sampler keeps from step to step, keys and values, is
handed in and out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from modeling_axial import AxialForCausalImageModeling, AxialForImageClassification, AxialForSemanticSegmentation
from modeling_axial.layer_context import LayerContext
from modeling_axial.position_embeddings import AxisCells

ROOT = Path(__file__).resolve().parents[2]
SEGMENTER = "checkpoints/nuclei2d"
# Pixels of a picture that is segmented, along each axis. The model takes grids of any size; of squares this large it
# makes out the nuclei as well as of the whole half of the picture that it is measured on.
SEGMENTER_SIDE = 256


def open_models() -> tuple[AxialForImageClassification, AxialForCausalImageModeling, AxialForSemanticSegmentation]:
    """The digits classifier, the autoregressive model and the one that finds nuclei, of this repository."""
    return (
        AutoModelForImageClassification.from_pretrained(ROOT).eval(),
        AutoModelForCausalLM.from_pretrained(ROOT, subfolder="checkpoints/digits-autoregressive").eval(),
        AutoModelForSemanticSegmentation.from_pretrained(ROOT, subfolder=SEGMENTER).eval(),
    )


class ClassifierWithMaps(nn.Module):
    """Logits, and the attention maps (layers, axes, lines, heads, length, length) of a square grid."""

    input_names, output_names = ("pixel_values",), ("logits", "attentions")

    def __init__(self, model: AxialForImageClassification):
        super().__init__()
        if len(set(model.config.grid_shape)) > 1:
            raise ValueError(f"the maps of a grid {model.config.grid_shape} do not stack: take a square one.")
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(pixel_values, output_attentions=True)
        maps = torch.stack(output.attentions)
        return output.logits, maps.unflatten(0, (-1, len(self.model.config.grid_shape)))

    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, self.model.config.num_channels, *self.model.config.image_shape),)


class StateCache:
    """As `LineCache`, but keys and values are kept in a tensor, `state` (modules, 2, B, *grid, heads, head_dim).

    `new_state` is what to hand in at the next position. At position 0 a state of any finite numbers will do.
    """

    def __init__(self, axis: int, position: torch.Tensor, state: torch.Tensor):
        self.axis = axis
        self.position = position  # (1,)
        self.state = state
        self.length = state.shape[axis + 3]
        self._positions = torch.arange(self.length)
        self._appended: list[torch.Tensor] = []

    @property
    def new_state(self) -> torch.Tensor:
        return torch.stack(self._appended)

    def append(
        self, attention: nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `StaticLineCache.append`; modules are told apart by the order in which they come."""
        newest = torch.stack((key, value))
        positions = self._positions.view(-1, *[1] * (key.dim() - self.axis - 2))
        kept = torch.where(positions == self.position, newest, self.state[len(self._appended)])
        self._appended.append(kept)
        return kept[0], kept[1], (positions <= self.position).flatten(-2).squeeze(-1)

    def prepare(self, make: Callable[[], Any]) -> Any:
        return make()

    def select(self, cells: AxisCells) -> AxisCells:
        newest = cells.positions.index_select(1, self.position)
        return cells._replace(positions=newest, queries=self.position, keys=self._positions, line=cells.positions)


class Decoder(nn.Module):
    """What the three graphs of the autoregressive model share: one channel on a grid of rows and columns."""

    def __init__(self, model: AxialForCausalImageModeling):
        super().__init__()
        config = model.config
        if config.num_channels != 1 or len(config.image_size) != 2 or config.num_classes is None:
            raise ValueError(
                "the page draws pictures of one channel and a class, got "
                f"num_channels={config.num_channels}, image_size={config.image_size}, num_classes={config.num_classes}."
            )
        self.model = model
        self.rows, self.columns = config.image_size
        self.heads = config.num_attention_heads, config.head_dim


class DecoderContext(Decoder):
    """What every cell knows beforehand, from the class alone: (1, rows, columns, hidden_size)."""

    input_names, output_names = ("class_label",), ("context",)

    def forward(self, class_label: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros(1, 1, self.rows, self.columns, dtype=torch.long)
        return self.model.make_context(nothing, torch.zeros(1, dtype=torch.long), class_label, None)

    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, dtype=torch.long),)


class DecoderPixel(Decoder):
    """The logits of the cell at `position` of a row, from the token before it (none before the first)."""

    input_names = ("token", "position", "context", "state")
    output_names = ("logits", "new_state")

    def forward(
        self, token: torch.Tensor, position: torch.Tensor, context: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`token`, `position`: (1,); `context`: (1, 1, 1, hidden_size)."""
        cache = StateCache(1, position, state)
        previous = self.model.token_embeddings(token) * (position > 0)[:, None]
        logits = self.model.run_inner_level(previous.view_as(context), context, layer_context=LayerContext(cache=cache))
        return logits.flatten(0, -2), cache.new_state

    def example(self) -> tuple[torch.Tensor, ...]:
        # Two tensors: what is one tensor here would be one input of the graph.
        token, position = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        modules = self.model.config.num_inner_layers
        state = torch.zeros(modules, 2, 1, 1, self.columns, *self.heads)
        return token, position, torch.zeros(1, 1, 1, self.model.config.hidden_size), state


class DecoderRow(Decoder):
    """What a finished row at `position` tells the next one, to be added to the context of that."""

    input_names = ("tokens", "position", "context", "state")
    output_names = ("gathered", "new_state")

    def forward(
        self, tokens: torch.Tensor, position: torch.Tensor, context: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`tokens`: (1, columns); `position`: (1,); `context`: (1, 1, columns, hidden_size), without what is added."""
        cache = StateCache(0, position, state)
        hidden_states = self.model.token_embeddings(tokens[:, None])
        gathered = self.model.outer_levels[0](hidden_states + context, LayerContext(cache=cache))
        return gathered, cache.new_state

    def example(self) -> tuple[torch.Tensor, ...]:
        tokens = torch.zeros(1, self.columns, dtype=torch.long)
        modules = self.model.config.num_outer_layers
        state = torch.zeros(modules, 2, 1, self.rows, self.columns, *self.heads)
        context = torch.zeros(1, 1, self.columns, self.model.config.hidden_size)
        return tokens, torch.zeros(1, dtype=torch.long), context, state


class Segmenter(nn.Module):
    """The logits of two classes for each pixel of a square picture, which the model sees whole."""

    input_names, output_names = ("pixel_values",), ("logits",)

    def __init__(self, model: AxialForSemanticSegmentation):
        super().__init__()
        config = model.config
        if config.num_channels != 1 or config.num_axes != 2 or config.num_labels != 2:
            raise ValueError(
                "the page outlines the second of two classes on pictures of one channel, got "
                f"num_channels={config.num_channels}, num_axes={config.num_axes}, num_labels={config.num_labels}."
            )
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits

    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, 1, SEGMENTER_SIDE, SEGMENTER_SIDE),)


def export_models(
    classifier: AxialForImageClassification,
    decoder: AxialForCausalImageModeling,
    segmenter: AxialForSemanticSegmentation,
    folder: Path,
) -> list[Path]:
    """Writes the five graphs into `folder`, as `NAME.onnx`."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = {
        "classifier": ClassifierWithMaps(classifier),
        "context": DecoderContext(decoder),
        "pixel": DecoderPixel(decoder),
        "row": DecoderRow(decoder),
        "segmenter": Segmenter(segmenter),
    }
    paths = []
    for name, module in modules.items():
        paths.append(folder / f"{name}.onnx")
        torch.onnx.export(
            module.eval(),
            module.example(),
            paths[-1],
            dynamo=True,
            external_data=False,
            input_names=list(module.input_names),
            output_names=list(module.output_names),
            verbose=False,
        )
    return paths
