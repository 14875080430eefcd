"""Exact samplers of the autoregressive Axial Transformer: several ways to the same pixels.

Each fills the values of one token grid in raster order. They differ in what they compute again:

                     outer levels run on                    inner level runs on
    naive            the whole grid, for every token        the whole grid, for every token
    semi_parallel    the whole grid, for every line         the whole line, for every token
    cached           each token once                        each token once
    compiled         each token once, by compiled code      each token once, drawn by compiled code

Lines run along the fastest axis. What a level gives at a cell depends on earlier cells only, so it never changes once
these are filled: that is why `cached`, which keeps the keys and values of causal attention and goes on from there, is
exact. It leaves out the last slice of each level, which nobody reads.

Drawing is Gumbel-max: argmax(logits / temperature + noise). With the same noise all samplers give the same values, but
for ties within the rounding of the logits.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from .compiled_code import without_guards
from .grid import shift
from .layer_context import LayerContext
from .line_cache import LineCache, StaticLineCache


def to_integers(name: str, values: torch.Tensor, end: int) -> torch.Tensor:
    """`values` as int64; raises `ValueError` unless they are a tensor of integers, of whatever dtype."""
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{name} must be a tensor of integers from 0 to {end - 1}, got {values!r}.")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be integers from 0 to {end - 1}, got {values.dtype}.")
    return values.long()


class Known:
    """The picture to fill: known values in place, zeros elsewhere. `input_ids` int64 and `mask`, both of one shape.

    `shape` (images, C, *grid) is that of the picture, but for the axes of the grid along which known values or their
    mask are longer than 1: there, they decide.
    """

    def __init__(
        self,
        known: tuple[torch.Tensor, torch.Tensor] | None,
        shape: tuple[int, ...],
        vocab_size: int,
        device: torch.device,
    ):
        if known is None:
            nothing = torch.zeros([1] * len(shape), dtype=torch.long, device=device)
            known = nothing, nothing.bool()
        input_ids, mask = to_integers("known values", known[0], vocab_size), known[1]
        if mask.dtype != torch.bool:
            raise ValueError(f"The mask of known values must be boolean (True = given), got {mask.dtype}.")
        if input_ids.dim() == mask.dim() == len(shape):
            lengths = [max(both) for both in zip(input_ids.shape, mask.shape, strict=True)]
            grid = [native if ours == 1 else ours for ours, native in zip(lengths, shape, strict=True)][2:]
            shape = (*shape[:2], *grid)
        for name, states in (("input_ids", input_ids), ("mask", mask)):
            if states.dim() != len(shape) or any(
                ours not in (1, theirs) for ours, theirs in zip(states.shape, shape, strict=True)
            ):
                raise ValueError(f"known {name} {tuple(states.shape)} must broadcast to (images, C, *grid) {shape}.")
        self.input_ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.mask.copy_(mask.expand(shape))
        self.input_ids.copy_(torch.where(self.mask, input_ids.to(device), 0))
        if self.input_ids.numel() and (self.input_ids.min() < 0 or self.input_ids.max() >= vocab_size):
            raise ValueError(
                f"known values must be from 0 to {vocab_size - 1}, got {self.input_ids.min().item()} to "
                f"{self.input_ids.max().item()}."
            )


def keep_top_k(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """(B, vocab_size) with -inf in place of all but the `top_k` highest; of equal ones the first are kept."""
    highest = scores.topk(min(top_k, scores.shape[-1])).values
    lowest = highest[:, -1:]
    ties, places = scores == lowest, (highest == lowest).sum(-1, keepdim=True)
    return scores.masked_fill((scores < lowest) | (ties & (ties.cumsum(-1) > places)), -math.inf)


def keep_top_p(scores: torch.Tensor, top_p: float | torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """(B, vocab_size) with -inf in place of all but the highest that together have the probability `top_p`.

    These are the fewest: the last of them reaches `top_p`. Of equal ones the first are kept.
    """
    ordered, values = scores.sort(stable=True, dim=-1, descending=True)
    # The highest is moved to 0, so that no temperature makes an infinity of it.
    probabilities = ((ordered - ordered[:, :1]) / temperature).softmax(-1)
    dropped = probabilities.cumsum(-1) - probabilities >= top_p
    return scores.masked_fill(dropped.scatter(-1, values, dropped), -math.inf)


def noise_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, as float32 has only some 2 ** 24 different draws."""
    return torch.float32 if device.type == "mps" else torch.float64


class Warping(NamedTuple):
    """What befalls logits before noise is added, in this order; what is None is left out.

    Numbers, or tensors of one number each, by which one compilation serves all.
    """

    guidance_scale: float | torch.Tensor | None = None
    top_k: int | None = None
    top_p: float | torch.Tensor | None = None
    top_p_temperature: float | torch.Tensor = 1.0
    divisor: float | torch.Tensor | None = None

    def as_tensors(self, device: torch.device) -> "Warping":
        """The same, of tensors, but for `top_k`, by which sizes change."""
        options = {"dtype": noise_dtype(device), "device": device}
        guidance_scale, top_p, divisor = (
            None if number is None else torch.as_tensor(number, **options)
            for number in (self.guidance_scale, self.top_p, self.divisor)
        )
        temperature = torch.as_tensor(self.top_p_temperature, **options)
        return Warping(guidance_scale, self.top_k, top_p, temperature, divisor)


def draw_values(
    logits: torch.Tensor,
    noise: torch.Tensor,
    tokens: torch.Tensor,
    known: torch.Tensor | None,
    warping: Warping,
) -> torch.Tensor:
    """The values (B,) of one cell of each picture: argmax(warped logits + noise), or `tokens` (B,) where `known` (B,).

    `logits` (B, vocab_size); `noise` (B, vocab_size) becomes what the argmax is taken of. Guided, B of it is a half:
    logits are those of a class before those of none, and what is drawn is twice the same.
    """
    scores = logits.to(noise.dtype)
    if warping.guidance_scale is not None:
        with_class, without = scores.chunk(2)
        scores = without + warping.guidance_scale * (with_class - without)
    if warping.top_k is not None:
        scores = keep_top_k(scores, warping.top_k)
    if warping.top_p is not None:
        scores = keep_top_p(scores, warping.top_p, warping.top_p_temperature)
    if warping.divisor is not None:
        scores = scores / warping.divisor
    drawn = noise.add_(scores).argmax(-1)
    if warping.guidance_scale is not None:
        drawn = torch.cat((drawn, drawn))
    return drawn if known is None else torch.where(known, tokens, drawn)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the values of pictures are drawn.

    Args:
        temperature: flattens (above 1, up to infinity: all values alike) or sharpens (below 1) the distribution; 0
            takes the likeliest value.
        top_k: draws from exactly so many likeliest values; of equally likely ones the lower count as likelier.
        top_p: draws from the fewest likeliest values that together have this probability.
        guidance_scale: above 1, draws what is more typical of its class: from the logits
            unknown + guidance_scale · (class - unknown), those of an unknown class and of the class given, for twice
            the work (classifier-free guidance, Ho and Salimans 2022, arXiv 2207.12598). Needs `class_dropout_prob`.
        generator: where the noise comes from; torch's own random state if not given. Of a list of one for each picture,
            each draws its own, which is then the same (to rounding) alone or in any batch.
        max_batch_size: how many pictures are drawn at a time, by which the memory is bounded; all if not given. Each
            picture then has a generator of its own, as in a list, seeded from the one that is given: it is the same (to
            rounding) whatever the number.
        sampler: `"cached"`: every token once through every block. `"semi_parallel"` (the paper's): the outer levels
            once per line, the inner one along the whole line for each pixel. `"naive"`: everything per pixel.
            `"compiled"`: as `"cached"`, the outer levels and the step of a pixel, drawing included, by compiled code.
            The first call for a number of pictures, a `top_k` and which of the other options are in use waits for the
            compiler, for half a minute.
        show_progress: shows a bar.

    Raises:
        ValueError: for values that are impossible.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    generator: torch.Generator | list[torch.Generator] | None = None
    max_batch_size: int | None = None
    sampler: str = "cached"
    show_progress: bool = False

    def __post_init__(self):
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {self.sampler!r}.")
        if not self.temperature >= 0:  # written so that NaN fails, too
            raise ValueError(f"temperature must be at least 0, got {self.temperature}.")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k must be an integer of at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be greater than 0 and at most 1, got {self.top_p}.")
        if not 1 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be at least 1 and finite, got {self.guidance_scale}.")
        if self.generator is not None and not all(isinstance(each, torch.Generator) for each in self.generators):
            raise ValueError(f"generator must be a torch.Generator or a list of them, got {self.generator!r}.")
        if self.max_batch_size is not None and (not isinstance(self.max_batch_size, int) or self.max_batch_size < 1):
            raise ValueError(f"max_batch_size must be an integer of at least 1, got {self.max_batch_size!r}.")

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    @property
    def warping(self) -> Warping:
        temperature = min(self.temperature, sys.float_info.max)  # by infinity, -inf would become NaN
        guidance_scale = self.guidance_scale if self.is_guided else None
        if temperature == 0:  # whatever is kept, the likeliest is
            return Warping(guidance_scale)
        top_p = self.top_p if self.top_p is not None and self.top_p < 1 else None
        # A low temperature is not divided by, as logits would overflow: `LineDraws` multiplies the noise by it.
        divisor = temperature if temperature > 1 else None
        return Warping(guidance_scale, self.top_k, top_p, temperature, divisor)

    @property
    def generators(self) -> list[torch.Generator | None]:
        """One for all pictures, or one for each."""
        return list(self.generator) if isinstance(self.generator, list | tuple) else [self.generator]

    def in_batches(self, num_images: int) -> list[tuple[slice, "SamplingOptions"]]:
        """Which pictures are drawn together, and by which options. `ValueError` for a wrong number of generators."""
        generators = self.generators
        if isinstance(self.generator, list | tuple) and len(generators) != num_images:
            raise ValueError(f"generator lists {len(generators)} for num_images={num_images}: give each its own.")
        if self.max_batch_size is None:
            return [(slice(num_images), self)]
        if not isinstance(self.generator, list | tuple):
            device = "cpu" if self.generator is None else self.generator.device
            seeds = torch.randint(2**62, (num_images,), generator=self.generator, device=device)
            generators = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
        starts = range(0, num_images, self.max_batch_size)
        batches = [slice(start, start + self.max_batch_size) for start in starts]
        return [(batch, replace(self, generator=generators[batch])) for batch in batches]


class LineDraws:
    """Draws the values of one line after the other, in place; known values stay, but use up their noise as well.

    Guided, it is given every picture twice, in the two halves of the batch, and draws once for both.
    """

    def __init__(
        self,
        options: SamplingOptions,
        vocab_size: int,
        num_images: int,
        on_drawn: Callable[[int], Any] = lambda _: None,
    ):
        """`on_drawn` is called with the number of values that have been drawn, or were known."""
        self.options = options
        self.warping = options.warping
        self.vocab_size = vocab_size
        self.num_images = num_images
        self.generators = options.generators
        self.on_drawn = on_drawn

    def start_line(self, tokens: torch.Tensor, known: torch.Tensor, line: tuple[int, ...]) -> bool:
        """Turns to a line of `tokens` (B, *grid) and draws its noise. Returns whether any value of it is unknown."""
        self.tokens, self.known = tokens[(slice(None), *line)], known[(slice(None), *line)]
        length = self.tokens.shape[1]
        # A line at a time, as the noise of a whole picture may not fit into memory; where the generator is, so that a
        # seed means the same on every device.
        device = tokens.device if self.generators[0] is None else self.generators[0].device
        noise = torch.empty(self.num_images, length, self.vocab_size, dtype=noise_dtype(device), device=device)
        for part, generator in zip(noise.chunk(len(self.generators)), self.generators, strict=True):
            part.exponential_(generator=generator)
        self.noise = noise.log_().mul_(-min(self.options.temperature, 1.0)).to(tokens.device)
        self.any_known = bool(self.known.any())
        if self.any_known and self.known.all():
            self.on_drawn(self.num_images * length)
            return False
        return True

    def __call__(self, position: int, logits: torch.Tensor) -> None:
        """Draws the values at one position of the line from logits (B, vocab_size), and looks at them at its end."""
        tokens = self.tokens[:, position]
        known = self.known[:, position] if self.any_known else None
        tokens.copy_(draw_values(logits, self.noise[:, position], tokens, known, self.warping))
        self.count_position(position)

    def count_position(self, position: int) -> None:
        """To be called when the values at a position have been drawn.

        At the last one of the line it raises `ValueError` if any was drawn from NaN or infinite logits.
        """
        self.on_drawn(self.num_images)
        # All scores of the line have been added to its noise: a device waits for this look once per line.
        if position + 1 == self.noise.shape[1] and not self.noise.amax(-1).isfinite().all():
            raise ValueError(
                "The logits hold NaN or infinity, so that nothing can be drawn from them: look for weights or a "
                "condition that are not finite, a dtype that overflows (float16 where bfloat16 would not), or a "
                f"guidance_scale (here {self.options.guidance_scale}) that is too large."
            )


def sample_naive(
    model,
    tokens: torch.Tensor,
    known: torch.Tensor,
    context: torch.Tensor,
    layer_context: LayerContext,
    draw: LineDraws,
) -> None:
    """Fills `tokens` (B, *grid) in place where `known` is False, by one pass over the whole grid for each position.

    `context`: what every cell knows beforehand, (B, *grid, hidden_size). `layer_context`: as in `run_layers`.
    """
    for line in _lines(tokens):
        if draw.start_line(tokens, known, line):
            for position in range(tokens.shape[-1]):
                logits = model.decode(tokens, context, layer_context=layer_context)
                draw(position, logits[(slice(None), *line, position)])


def sample_semi_parallel(
    model,
    tokens: torch.Tensor,
    known: torch.Tensor,
    context: torch.Tensor,
    layer_context: LayerContext,
    draw: LineDraws,
) -> None:
    """As `sample_naive`, but the outer levels run once for each line, and the inner level along that line only."""
    fastest = tokens.dim() - 2
    for line in _lines(tokens):
        if draw.start_line(tokens, known, line):
            embedded = model.token_embeddings(tokens)
            line_context = _at(model.run_outer_levels(embedded, context, layer_context=layer_context), line)
            for position in range(tokens.shape[-1]):
                previous = shift(model.token_embeddings(_at(tokens, line)), fastest)
                logits = model.run_inner_level(previous, line_context, layer_context=layer_context)
                draw(position, logits.flatten(1, -2)[:, position])


def sample_cached(
    model,
    tokens: torch.Tensor,
    known: torch.Tensor,
    context: torch.Tensor,
    layer_context: LayerContext,
    draw: LineDraws,
) -> None:
    """As `sample_naive`, but each token passes each level once: outer levels slice by slice, the inner one by one."""
    *outer_caches, inner_cache = (LineCache(axis, length) for axis, length in enumerate(tokens.shape[1:]))
    with_outer_caches = [layer_context._replace(cache=cache) for cache in outer_caches]
    with_inner_cache = layer_context._replace(cache=inner_cache)
    cell_dim = tokens.dim() - 1

    def fill_line(line: tuple[int, ...], context: torch.Tensor) -> None:
        previous = torch.zeros_like(context.narrow(cell_dim, 0, 1), memory_format=torch.contiguous_format)
        for position in range(tokens.shape[-1]):
            inner_cache.position = position
            own_context = context.narrow(cell_dim, position, 1)
            logits = model.run_inner_level(previous, own_context, layer_context=with_inner_cache)
            draw(position, logits.flatten(1, -2)[:, 0])
            previous = model.token_embeddings(_at(tokens, (*line, position)))

    _fill_line_by_line(model, tokens, known, context, draw, model.outer_levels, with_outer_caches, fill_line)


def sample_compiled(
    model,
    tokens: torch.Tensor,
    known: torch.Tensor,
    context: torch.Tensor,
    layer_context: LayerContext,
    draw: LineDraws,
) -> None:
    """As `sample_cached`, by compiled code: the outer levels, and all that is done for a cell. What is drawn first
    waits for the compiler."""
    device = tokens.device
    *outer_caches, inner_cache = (StaticLineCache(axis, length, device) for axis, length in enumerate(tokens.shape[1:]))
    with_outer_caches = [layer_context._replace(cache=cache) for cache in outer_caches]
    with_inner_cache = layer_context._replace(cache=inner_cache)
    # Each runs once, by which the caches make their tensors: compiled code finds them there.
    for axis, (level, with_cache) in enumerate(zip(model.outer_levels, with_outer_caches, strict=True)):
        level(_at(context, (0,) * (axis + 1)), with_cache)
    first_cell = _at(context, (0,) * len(tokens.shape[1:]))
    model.run_inner_level(torch.zeros_like(first_cell), first_cell, layer_context=with_inner_cache)
    compiled = partial(torch.compile, dynamic=False, options={"cpp_wrapper": device.type == "cpu"})
    warping = draw.warping.as_tensors(device)
    compiled_fill, outer_levels = compiled(fill_cell), [compiled(level) for level in model.outer_levels]

    def fill_line(line: tuple[int, ...], context: torch.Tensor) -> None:
        arguments = {
            "model": model,
            "tokens": draw.tokens,
            "known": draw.known,
            "noise": draw.noise,
            "context": context,
            "layer_context": with_inner_cache,
            "warping": warping,
        }
        fill = compiled_fill
        for position in range(tokens.shape[-1]):
            inner_cache.position = position
            fill(**arguments)
            draw.count_position(position)
            if position == 0:
                fill = without_guards(fill_cell, compiled_fill, arguments)

    _fill_line_by_line(model, tokens, known, context, draw, outer_levels, with_outer_caches, fill_line)


def fill_cell(
    model,
    tokens: torch.Tensor,
    known: torch.Tensor,
    noise: torch.Tensor,
    context: torch.Tensor,
    layer_context: LayerContext,
    warping: Warping,
) -> None:
    """Draws, in place, what stands in `tokens` (B, length) of a line at the position of the cache.

    `known` (B, length), `noise` (B, length, vocab_size): as in `draw_values`; `context` (B, *1, length, hidden_size).
    `layer_context`: with a `StaticLineCache`. No shape depends on the position.
    """
    position = layer_context.cache.position_index
    own_context = context.index_select(-2, position)
    before = model.token_embeddings(tokens.index_select(1, (position - 1).clamp(min=0))).view_as(own_context)
    before = torch.where(position > 0, before, torch.zeros_like(before))
    logits = model.run_inner_level(before, own_context, layer_context=layer_context).flatten(0, -2)
    scores, values = noise.index_select(1, position)[:, 0], tokens.index_select(1, position)[:, 0]
    drawn = draw_values(logits, scores, values, known.index_select(1, position)[:, 0], warping)
    noise.index_copy_(1, position, scores[:, None])
    tokens.index_copy_(1, position, drawn[:, None])


def _fill_line_by_line(
    model,
    tokens: torch.Tensor,
    known: torch.Tensor,
    context: torch.Tensor,
    draw: LineDraws,
    outer_levels: Sequence[Callable],
    with_outer_caches: Sequence[LayerContext],
    fill_line: Callable[[tuple[int, ...], torch.Tensor], None],
) -> None:
    """Runs the outer levels slice by slice, each with its cache. `fill_line` is given the coordinates of a line whose
    noise is drawn, and its context (B, 1, ..., 1, length, hidden_size)."""
    fastest = tokens.dim() - 2

    def fill_slice(index: tuple[int, ...], context: torch.Tensor) -> None:
        """Fills the cells that begin with `index`, whose context is (B, 1, ..., 1, *other axes, hidden_size)."""
        axis = len(index)
        if axis == fastest:
            if draw.start_line(tokens, known, index):
                fill_line(index, context)
            return
        gathered = torch.zeros_like(context.narrow(axis + 1, 0, 1))  # by this level, over the slices before
        for position in range(tokens.shape[axis + 1]):
            own_context = context.narrow(axis + 1, position, 1)
            fill_slice((*index, position), own_context + gathered)
            if position + 1 < tokens.shape[axis + 1]:
                hidden_states = model.token_embeddings(_at(tokens, (*index, position)))
                with_outer_caches[axis].cache.position = position
                gathered = outer_levels[axis](hidden_states + own_context, with_outer_caches[axis])

    fill_slice((), context)


def _lines(tokens: torch.Tensor) -> Iterator[tuple[int, ...]]:
    """The lines along the fastest axis of (B, *grid), in raster order: the coordinates of each on the other axes."""
    return itertools.product(*(range(length) for length in tokens.shape[1:-1]))


def _at(states: torch.Tensor, index: tuple[int, ...]) -> torch.Tensor:
    """The slice of (B, *grid, ...) at these coordinates of the first axes, whose lengths become 1."""
    for axis, position in enumerate(index):
        states = states.narrow(axis + 1, position, 1)
    return states


SAMPLERS = {
    "naive": sample_naive,
    "semi_parallel": sample_semi_parallel,
    "cached": sample_cached,
    "compiled": sample_compiled,
}
