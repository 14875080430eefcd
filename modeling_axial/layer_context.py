"""What all layers of one forward pass share."""

from typing import Any, NamedTuple

import torch


class LayerContext(NamedTuple):
    """Handed down to every layer as it is. A tuple, so that whatever moves or casts arguments finds the tensors."""

    # Boolean (B, *grid): False cells are read by no other, but must hold finite numbers, as those of a model do.
    mask: torch.Tensor | None = None
    # For each axis, what the class of its mixers has prepared. Empty: each layer prepares it from the cells below.
    prepared: tuple[Any, ...] = ()
    # For each axis, its `AxisCells`. Empty: they lie at 0, 1, 2, ... along every axis.
    cells: tuple[Any, ...] = ()
    # Periodic axes of which the grid is a part only: their ends do not meet.
    cropped_axes: tuple[int, ...] = ()
    # Where causal attention that is given one position after the other keeps keys and values: its `append(attention,
    # key, value)` returns those of all positions so far, and a mask over them or None, in place of the mask above; its
    # `select(cells)` are, of all `AxisCells` along its `axis`, the newest and those whose keys come back; its
    # `prepare(make)` is `make()`, the above `prepared` at the newest position.
    cache: Any = None
    output_attentions: bool = False


NO_CONTEXT = LayerContext()
