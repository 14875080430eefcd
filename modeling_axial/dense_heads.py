"""From the grid of a trunk to the features that numbers for each pixel are made of, as `DenseHead` says."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_axial import AxialConfig
from .feed_forward import convolve, make_convolution
from .grid import patchify, unpatchify
from .layer_context import NO_CONTEXT, LayerContext
from .masks import repeat_mask
from .reversible import in_full_under_autocast


class DenseHead(nn.Module):
    """Made of a configuration: (B, *grid, hidden_size) -> (B, *cells, output_size), the identity unless it says else.

    A cell stands for `output_shape` pixels along each axis. Nothing reads what is False in the mask (B, *grid) of the
    context. Pixels are those of whole patches, in the dtype of the model. Layers with an `initial_gain` start with
    weights of variance gain² / inputs in place of `initializer_range`, with which a picture would fade on its way
    through many layers.
    """

    output_size: int
    output_shape: tuple[int, ...]

    def before_trunk(
        self, pixel_values: torch.Tensor, context: LayerContext = NO_CONTEXT
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """What is to be added to the embeddings of the patches, and the states that `forward` gets back as `kept`."""
        return None, ()

    def forward(
        self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT, kept: tuple[torch.Tensor, ...] = ()
    ) -> torch.Tensor:
        return hidden_states


class LinearDenseHead(DenseHead):
    """The grid as it is, for any number of axes: all pixels of a patch are linear in its cell."""

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.output_size, self.output_shape = config.hidden_size, config.patch_shape


def at_resolution(context: LayerContext, cells_per_token: tuple[int, ...]) -> LayerContext:
    """The context of a finer grid, of so many cells for each token along each axis."""
    return context._replace(mask=repeat_mask(context.mask, cells_per_token))


class PyramidConvolution(nn.Module):
    """3-wide convolution over 1 to 3 axes: (B, *grid, in_channels) -> (B, *grid, out_channels).

    What lies beyond the edge, and cells that are masked, count as zeros; across the ends of a periodic axis it goes on.
    """

    def __init__(self, config: AxialConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = make_convolution(config.num_axes, in_channels, out_channels)
        self.convolution.initial_gain = 1.0  # pyrefly: ignore[bad-argument-type]
        self.periodic_axes = [axis.axis for axis in config.axes if axis.periodic]

    def forward(self, states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        return convolve(self.convolution, states, context, self.periodic_axes)


class PyramidBlock(nn.Module):
    """h + conv(act(conv(norm(h)))), normalised over channels, so that neither tiles nor padding change a cell."""

    def __init__(self, config: AxialConfig, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.conv1 = PyramidConvolution(config, channels, channels)
        self.activation = ACT2FN[config.hidden_act]
        self.conv2 = PyramidConvolution(config, channels, channels)

    def forward(self, states: torch.Tensor, context: LayerContext = NO_CONTEXT) -> torch.Tensor:
        return states + self.conv2(self.activation(self.conv1(self.norm(states), context)), context)


class PyramidDenseHead(DenseHead):
    """Convolutions at full and at half resolution around the trunk, which stands at the resolution of the patches.

        full   = block(conv(pixels))              half   = block(down(full))        tokens += down(half)
        half' = block(up(tokens) + half)          full' = block(up(half') + full)   output = norm(full')

    The arrangement is that of the U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with its skips added. Up and down
    are linear layers on whole cells. Along an axis whose patch is odd, half resolution is full resolution.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.output_size, self.output_shape = config.pyramid_size, (1,) * config.num_axes
        self.patch_shape = config.patch_shape
        self.half_shape = tuple(1 if patch % 2 else 2 for patch in self.patch_shape)  # pixels of a cell of `half`
        self.rest_shape = tuple(patch // half for patch, half in zip(self.patch_shape, self.half_shape, strict=True))
        full, half = config.pyramid_size, 2 * config.pyramid_size
        full_per_half, half_per_token = (torch.Size(shape).numel() for shape in (self.half_shape, self.rest_shape))
        self.stem = PyramidConvolution(config, config.num_channels, full)
        self.full_before = PyramidBlock(config, full)
        self.full_to_half = nn.Linear(full * full_per_half, half)
        self.half_before = PyramidBlock(config, half)
        self.half_to_tokens = nn.Linear(half * half_per_token, config.hidden_size)
        self.tokens_to_half = nn.Linear(config.hidden_size, half * half_per_token)
        self.half_after = PyramidBlock(config, half)
        self.half_to_full = nn.Linear(half, full * full_per_half)
        self.full_after = PyramidBlock(config, full)
        self.norm = nn.LayerNorm(full, eps=config.layer_norm_eps)
        # Not of what is added to the tokens, so that a trained trunk starts from about what it knows.
        for layer in (self.full_to_half, self.tokens_to_half, self.half_to_full):
            layer.initial_gain = 1.0  # pyrefly: ignore[bad-argument-type]

    def before_trunk(
        self, pixel_values: torch.Tensor, context: LayerContext = NO_CONTEXT
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]:
        of_full, of_half = at_resolution(context, self.patch_shape), at_resolution(context, self.rest_shape)
        full = in_full_under_autocast(self.stem(pixel_values.movedim(1, -1), of_full))
        full = self.full_before(full, of_full)
        half = self.full_to_half(patchify(full.movedim(-1, 1), self.half_shape))
        half = self.half_before(in_full_under_autocast(half), of_half)
        tokens = self.half_to_tokens(patchify(half.movedim(-1, 1), self.rest_shape))
        return tokens, (full, half)

    def forward(
        self, hidden_states: torch.Tensor, context: LayerContext = NO_CONTEXT, kept: tuple[torch.Tensor, ...] = ()
    ) -> torch.Tensor:
        full, half = kept
        half = half + unpatchify(self.tokens_to_half(hidden_states), self.rest_shape).movedim(1, -1)
        half = self.half_after(half, at_resolution(context, self.rest_shape))
        full = full + unpatchify(self.half_to_full(half), self.half_shape).movedim(1, -1)
        full = self.full_after(full, at_resolution(context, self.patch_shape))
        return self.norm(full)


DENSE_HEAD_CLASSES: dict[str, type[DenseHead]] = {"linear": LinearDenseHead, "pyramid": PyramidDenseHead}
